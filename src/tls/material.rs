//! The files of a node's TLS settings, read and checked.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use super::{
    Certificate, SecretFileError, UnreadableCertificate, check_permissions,
    verify::{ExpectedServer, ServerVerifier},
};
use crate::types::Peer;

/// Which files, and what is asked of callers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// Our certificate and those that lead to its CA, with the file of its private key; PEM.
    pub certificate_and_key: Option<(PathBuf, PathBuf)>,
    /// Certificates of trusted CAs; PEM.
    pub ca_files: Vec<PathBuf>,
    /// Whether callers must show a certificate.
    pub require_client_certificate: bool,
}

impl TlsSettings {
    /// Every file.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let own = self.certificate_and_key.iter().flat_map(|(certificate, key)| [certificate, key]);
        own.chain(&self.ca_files).map(PathBuf::as_path)
    }
}

/// What is wrong with a file or what is made of it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read, or it is not PEM.
    #[error("cannot read {what} from `{file}`: {reason}; {remedy}")]
    File {
        /// What should be in it.
        what: &'static str,
        /// The file.
        file: String,
        /// Why it is not.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The key is for everybody.
    #[error(transparent)]
    Secret(#[from] SecretFileError),
    /// Our own certificate is broken.
    #[error(transparent)]
    Certificate(#[from] UnreadableCertificate),
    /// rustls does not take it.
    #[error("`{file}` and its private key cannot be used: {reason}; check that the key belongs to the certificate")]
    Pair {
        /// The certificate's file.
        file: String,
        /// What rustls says.
        reason: rustls::Error,
    },
    /// There is nobody to trust.
    #[error("{0}")]
    Trust(String),
}

/// Everything that handshakes need. It does not change; a [`super::TlsWatch`] makes a new one when files do.
#[derive(Debug)]
pub struct TlsMaterial {
    provider: Arc<CryptoProvider>,
    own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    certificate: Option<Certificate>,
    roots: Arc<RootCertStore>,
    server: Option<Arc<ServerConfig>>,
}

impl TlsMaterial {
    /// Reads and checks every file. Blocks.
    pub fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for file in &settings.ca_files {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| TlsError::File {
                    what: "the certificate of a CA",
                    file: file.display().to_string(),
                    reason: error.to_string(),
                    remedy: "give the certificate of the CA itself, X.509 version 3",
                })?;
            }
        }
        let mut material = Self { provider, own: None, certificate: None, roots: Arc::new(roots), server: None };
        if let Some((certificate_file, key_file)) = &settings.certificate_and_key {
            let chain = certificates(certificate_file)?;
            check_permissions(key_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| TlsError::File {
                what: "a private key",
                file: key_file.display().to_string(),
                reason: error.to_string(),
                remedy: "give a PEM file with a private key that no passphrase protects",
            })?;
            let leaf = chain.first().map(|leaf| Certificate::read(leaf)).transpose()?;
            let server = material.server_config(settings, chain.clone(), key.clone_key(), certificate_file)?;
            material.own = Some((chain, key));
            material.certificate = leaf;
            material.server = Some(Arc::new(server));
        }
        Ok(material)
    }

    fn server_config(
        &self,
        settings: &TlsSettings,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        certificate_file: &Path,
    ) -> Result<ServerConfig, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Trust(error.to_string()))?;
        let builder = if self.roots.is_empty() {
            builder.with_no_client_auth()
        } else {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider));
            let verifier =
                if settings.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsError::Trust(error.to_string()))?)
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|reason| TlsError::Pair { file: certificate_file.display().to_string(), reason })?;
        // Every association proves anew who calls, by the rules of the moment.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// Our certificate, where we have one.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_ref()
    }

    /// For accepting; `None` without a certificate of our own.
    #[must_use]
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.server.clone()
    }

    /// For calling `peer`; `None` where it is called without TLS.
    pub fn client_for(&self, peer: &Peer) -> Result<Option<Arc<ClientConfig>>, TlsError> {
        let expected = ExpectedServer {
            certificate_sha256: peer.tls_certificate_sha256.clone(),
            subject_name: peer.tls_subject_name.clone(),
        };
        peer.tls.then(|| self.client(expected)).transpose()
    }

    /// For calling `expected`; with our certificate, where we have one.
    pub fn client(&self, expected: ExpectedServer) -> Result<Arc<ClientConfig>, TlsError> {
        let by_ca = if expected.certificate_sha256.is_empty() {
            if self.roots.is_empty() {
                return Err(TlsError::Trust(
                    "no CA is trusted and no fingerprint is pinned, so nobody can prove who they are; give ca_files \
                     in section [tls] (--tls-ca), or tls_certificate_sha256 of the peer (--tls-fingerprint)"
                        .to_owned(),
                ));
            }
            let roots = Arc::clone(&self.roots);
            let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider)).build();
            Some(verifier.map_err(|error| TlsError::Trust(error.to_string()))?)
        } else {
            None
        };
        let verifier = ServerVerifier { expected, by_ca, provider: Arc::clone(&self.provider) };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Trust(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.own {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| TlsError::Trust(error.to_string()))?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }
}

impl TlsMaterial {
    /// For calling a web server, which proves who it is by a CA of ours or of the operating system; with our certificate,
    /// where we have one and it asks. Reads the operating system's list: blocks.
    pub fn web_client(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let mut roots = RootCertStore::clone(&self.roots);
        let of_system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(of_system.certs);
        if roots.is_empty() {
            return Err(TlsError::Trust(
                "neither section [tls] nor the operating system names a CA, so no web server can prove who it is; give \
                 ca_files, or install ca-certificates"
                    .to_owned(),
            ));
        }
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Trust(error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.own {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain.clone(), key.clone_key())
                .map_err(|error| TlsError::Trust(error.to_string()))?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |reason: String| TlsError::File {
        what: "certificates",
        file: file.display().to_string(),
        reason,
        remedy: "give a PEM file that this user may read, with -----BEGIN CERTIFICATE----- in it",
    };
    let read = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| problem(error.to_string()))?;
    if read.is_empty() {
        return Err(problem("it holds none".to_owned()));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Ca, write},
        *,
    };

    fn error(settings: &TlsSettings) -> String {
        TlsMaterial::load(settings).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_set_of_files_is_usable_in_both_roles() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("Test CA");
        let settings = write(folder.path(), &ca, &ca.sign("hilum", &["hilum.example.org"]));
        let material = TlsMaterial::load(&settings).unwrap();
        assert!(material.server().is_some());
        assert!(material.certificate().unwrap().has_name("hilum.example.org"));
        assert!(material.client(ExpectedServer::default()).is_ok());
    }

    #[test]
    fn every_broken_file_is_named_with_its_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("Test CA");
        let good = write(folder.path(), &ca, &ca.sign("hilum", &["hilum"]));
        let missing = TlsSettings { ca_files: vec!["no/such/ca.pem".into()], ..good.clone() };
        assert!(error(&missing).contains("no/such/ca.pem"));
        let empty = folder.path().join("empty.pem");
        fs_err::write(&empty, "nothing here\n").unwrap();
        let message = error(&TlsSettings { ca_files: vec![empty.clone()], ..good.clone() });
        assert!(message.contains("it holds none") && message.contains("BEGIN CERTIFICATE"), "{message}");

        let other = tempfile::tempdir().unwrap();
        let foreign = write(other.path(), &ca, &ca.sign("other", &["other"]));
        let (certificate, key) = good.certificate_and_key.clone().unwrap();
        let foreign_key = foreign.certificate_and_key.unwrap().1;
        let mixed = TlsSettings { certificate_and_key: Some((certificate.clone(), foreign_key)), ..good.clone() };
        assert!(error(&mixed).contains("the key belongs to the certificate"), "{}", error(&mixed));

        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        fs_err::set_permissions(&key, open).unwrap();
        assert!(error(&good).contains("mode 0644"), "{}", error(&good));
    }

    #[test]
    fn without_a_ca_nobody_is_trusted_unless_pinned() {
        let material = TlsMaterial::load(&TlsSettings::default()).unwrap();
        let message = material.client(ExpectedServer::default()).unwrap_err().to_string();
        assert!(message.contains("--tls-ca"), "{message}");
        let pinned =
            ExpectedServer { certificate_sha256: vec![crate::types::Sha256Digest::of(b"x")], subject_name: None };
        assert!(material.client(pinned).is_ok());
        assert!(material.server().is_none() && material.certificate().is_none());
    }
}
