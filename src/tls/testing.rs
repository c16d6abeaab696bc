//! Certificates made for one test.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use time::{Duration, OffsetDateTime};

use super::TlsSettings;

/// A certificate authority.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A signed certificate with its key.
pub(crate) struct Signed {
    pub(crate) pem: String,
    pub(crate) key_pem: String,
    pub(crate) der: Vec<u8>,
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = common_name(name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// For both roles, valid for a year.
    pub(crate) fn sign(&self, name: &str, alternative_names: &[&str]) -> Signed {
        self.sign_for(name, alternative_names, 365)
    }

    /// The same, valid until so many days from now.
    pub(crate) fn sign_for(&self, name: &str, alternative_names: &[&str], days: i64) -> Signed {
        let key = KeyPair::generate().unwrap();
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now - Duration::days(400);
        params.not_after = now + Duration::days(days);
        params.distinguished_name = common_name(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = alternative_names
            .iter()
            .map(|name| match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if name.contains(':') => SanType::URI((*name).try_into().unwrap()),
                Err(_) => SanType::DnsName((*name).try_into().unwrap()),
            })
            .collect();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed { pem: certificate.pem(), key_pem: key.serialize_pem(), der: certificate.der().to_vec() }
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Writes the files of a node that trusts `ca`.
pub(crate) fn write(folder: &Path, ca: &Ca, own: &Signed) -> TlsSettings {
    let file = |name: &str| folder.join(name);
    fs_err::write(file("ca.pem"), &ca.pem).unwrap();
    fs_err::write(file("certificate.pem"), &own.pem).unwrap();
    fs_err::write(file("key.pem"), &own.key_pem).unwrap();
    fs_err::set_permissions(file("key.pem"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    TlsSettings {
        certificate_and_key: Some((file("certificate.pem"), file("key.pem"))),
        ca_files: vec![file("ca.pem")],
        require_client_certificate: true,
    }
}
