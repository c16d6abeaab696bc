//! Options of commands that call a peer over TLS, and what they mean.

use std::path::PathBuf;

use clap::Args;

use super::failure::Usage;
use crate::{
    app::tls_settings,
    config::Config,
    dimse::TlsClient,
    tls::{ExpectedServer, TlsMaterial, TlsSettings},
    types::{AssociationPolicy, Peer, Sha256Digest},
};

/// How to call over TLS.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsOptions {
    /// Call over TLS; any other option of this group means it, too
    #[arg(long)]
    tls: bool,
    /// PEM file with certificates of CAs that are trusted to sign the peer's
    #[arg(long, value_name = "FILE")]
    tls_ca: Vec<PathBuf>,
    /// Trust the certificate with this SHA-256 fingerprint, whoever signed it
    #[arg(long, value_name = "HEX", value_parser = fingerprint)]
    tls_fingerprint: Vec<Sha256Digest>,
    /// A name that the peer's certificate must have [default: the host's]
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// PEM file with our certificate, for peers that ask for one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the private key of our certificate
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
}

impl TlsOptions {
    /// The files read, where TLS is wanted.
    pub(super) fn client(&self) -> anyhow::Result<Option<TlsClient>> {
        let wanted = self.tls
            || !self.tls_ca.is_empty()
            || !self.tls_fingerprint.is_empty()
            || self.tls_name.is_some()
            || self.tls_certificate.is_some();
        if !wanted {
            return Ok(None);
        }
        let material = TlsMaterial::load(&TlsSettings {
            certificate_and_key: self.tls_certificate.clone().zip(self.tls_key.clone()),
            ca_files: self.tls_ca.clone(),
            require_client_certificate: true,
        })?;
        let expected =
            ExpectedServer { certificate_sha256: self.tls_fingerprint.clone(), subject_name: self.tls_name.clone() };
        Ok(Some(TlsClient { config: material.client(expected)? }))
    }
}

/// How the node calls `peer`; `None` where it does so without TLS.
pub(super) fn client_for(config: &Config, peer: &Peer) -> anyhow::Result<Option<TlsClient>> {
    if !peer.tls {
        return Ok(None);
    }
    let material = TlsMaterial::load(&tls_settings(&config.tls))?;
    Ok(material.client_for(peer)?.map(|config| TlsClient { config }))
}

/// A fingerprint as openssl prints it, with or without colons.
pub(super) fn fingerprint(text: &str) -> Result<Sha256Digest, String> {
    text.replace(':', "").parse().map_err(|_| "expected 64 hexadecimal digits, with or without colons".to_owned())
}

/// A policy as the site file writes it, such as `max_associations = 8`; several keys are separated by line feeds or
/// semicolons.
pub(super) fn policy(text: &str) -> Result<AssociationPolicy, String> {
    toml::from_str(&text.replace(';', "\n")).map_err(|error| error.message().to_owned())
}

/// Reads a passcode from standard input.
pub(super) fn read_passcode() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let passcode = line.trim_end_matches(['\r', '\n']);
    if passcode.is_empty() {
        return Err(Usage("there is no passcode on standard input; type one line, or pipe it in".to_owned()).into());
    }
    Ok(passcode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_openssl_prints_them() {
        let digest = Sha256Digest::of(b"x");
        let plain = digest.to_string();
        let pairs: Vec<&str> = plain.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap()).collect();
        let with_colons = pairs.join(":").to_uppercase();
        assert_eq!(fingerprint(&with_colons).unwrap(), digest);
        assert_eq!(fingerprint(&plain).unwrap(), digest);
        assert!(fingerprint("AB:CD").is_err());
    }

    #[test]
    fn a_policy_is_read_as_the_site_file_writes_it() {
        let policy = policy("max_associations = 8; max_bytes_per_second = 2048").unwrap();
        assert_eq!((policy.max_associations, policy.max_bytes_per_second), (Some(8), Some(2048)));
        assert!(super::policy("max_asociations = 8").unwrap_err().contains("unknown field"));
    }

    #[test]
    fn tls_is_asked_for_by_any_of_its_options() {
        assert!(TlsOptions::default().client().unwrap().is_none());
        let nobody_trusted = TlsOptions { tls: true, ..TlsOptions::default() };
        assert!(nobody_trusted.client().unwrap_err().to_string().contains("--tls-ca"));
        let pinned = TlsOptions { tls_fingerprint: vec![Sha256Digest::of(b"x")], ..TlsOptions::default() };
        assert!(pinned.client().unwrap().is_some());
    }
}
