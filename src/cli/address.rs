//! `HOST:PORT` on the command line.

use std::{fmt, str::FromStr};

/// Where a peer listens: a host name or IP address and a TCP port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || "expected HOST:PORT, such as pacs.example.org:104 or [::1]:11112".to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(expected)?,
            // Without brackets nobody can tell where an IPv6 address ends.
            None if host.contains(':') => return Err(expected()),
            None => host,
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(expected)?;
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(expected());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("pacs.example.org:104", "pacs.example.org", 104)]
    #[case("192.0.2.1:11112", "192.0.2.1", 11112)]
    #[case("[::1]:11112", "::1", 11112)]
    fn good_addresses(#[case] text: &str, #[case] host: &str, #[case] port: u16) {
        let address: Address = text.parse().unwrap();
        assert_eq!(address, Address { host: host.to_owned(), port });
        assert_eq!(address.to_string(), text);
    }

    #[rstest::rstest]
    #[case("pacs")]
    #[case("pacs:")]
    #[case(":104")]
    #[case("pacs:0")]
    #[case("pacs:65536")]
    #[case("::1:104")]
    #[case("[::1:104")]
    #[case("my pacs:104")]
    fn bad_addresses(#[case] text: &str) {
        assert!(text.parse::<Address>().unwrap_err().contains("HOST:PORT"));
    }
}
