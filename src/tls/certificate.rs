//! What an X.509 certificate says of its holder.

use std::{fmt, net::IpAddr};

use time::OffsetDateTime;
use x509_parser::{extensions::GeneralName, prelude::parse_x509_certificate};

use crate::types::Sha256Digest;

/// Names that are shown of one certificate, and characters of each.
const MAX_SHOWN: usize = 4;
const MAX_SHOWN_CHARACTERS: usize = 80;

/// The parts of a certificate that Hilum looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Fingerprint: the digest of its DER encoding.
    pub sha256: Sha256Digest,
    /// DNS names, IP addresses and URIs of the subject alternative names, then the subject's common names.
    pub names: Vec<String>,
    /// Valid from then.
    pub not_before: OffsetDateTime,
    /// Valid until then.
    pub not_after: OffsetDateTime,
}

/// The bytes are no X.509 certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate is not readable: {0}")]
pub struct UnreadableCertificate(String);

impl Certificate {
    /// Reads the DER encoding.
    pub fn read(der: &[u8]) -> Result<Self, UnreadableCertificate> {
        let (_, certificate) = parse_x509_certificate(der).map_err(|error| UnreadableCertificate(error.to_string()))?;
        let alternative = certificate
            .subject_alternative_name()
            .map_err(|error| UnreadableCertificate(error.to_string()))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let time = |seconds| {
            OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| UnreadableCertificate(error.to_string()))
        };
        Ok(Self {
            sha256: Sha256Digest::of(der),
            names: alternative.iter().filter_map(name_of).chain(common.map(str::to_owned)).collect(),
            not_before: time(certificate.validity().not_before.timestamp())?,
            not_after: time(certificate.validity().not_after.timestamp())?,
        })
    }

    /// Whether it is for `wanted`; letters of either case are the same.
    #[must_use]
    pub fn has_name(&self, wanted: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(wanted))
    }
}

fn name_of(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

/// For people; what strangers wrote is escaped.
impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self
            .names
            .iter()
            .take(MAX_SHOWN)
            .map(|name| format!("`{}`", name.chars().take(MAX_SHOWN_CHARACTERS).collect::<String>().escape_debug()))
            .collect();
        let names = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
        write!(f, "a certificate for {names} with fingerprint {}", self.sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::Ca, *};

    #[test]
    fn a_certificate_is_known_by_its_names_and_its_fingerprint() {
        let ca = Ca::new("Test CA");
        let made = ca.sign("ct-1.example.org", &["ct-1.example.org", "192.0.2.5", "urn:dicom:ae:CT01"]);
        let certificate = Certificate::read(&made.der).unwrap();
        for name in ["CT-1.example.org", "192.0.2.5", "urn:dicom:ae:CT01"] {
            assert!(certificate.has_name(name), "{name}: {:?}", certificate.names);
        }
        assert!(!certificate.has_name("ct-2.example.org"));
        assert_eq!(certificate.sha256, Sha256Digest::of(&made.der));
        assert!(certificate.not_after > OffsetDateTime::now_utc());
        assert!(certificate.to_string().contains("`ct-1.example.org`"), "{certificate}");
    }

    #[test]
    fn hostile_names_are_escaped_and_short() {
        let certificate = Certificate {
            sha256: Sha256Digest::of(b""),
            names: vec!["a\u{1b}[2J\n".to_owned(), "x".repeat(10_000)],
            not_before: OffsetDateTime::UNIX_EPOCH,
            not_after: OffsetDateTime::UNIX_EPOCH,
        };
        let shown = certificate.to_string();
        assert!(!shown.contains('\u{1b}') && !shown.contains('\n') && shown.len() < 300, "{shown}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_certificate_or_an_error(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = Certificate::read(&bytes);
        }
    }

    #[test]
    fn a_damaged_certificate_is_an_error_and_no_panic() {
        let der = Ca::new("Test CA").sign("x", &["x"]).der;
        for idx in 0..der.len() {
            let mut damaged = der.clone();
            damaged[idx] ^= 0xFF;
            let _ = Certificate::read(&damaged);
            let _ = Certificate::read(&der[..idx]);
        }
    }
}
