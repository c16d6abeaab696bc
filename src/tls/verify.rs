//! Whether the server that we call is the one that is meant: by pinned fingerprint, by name, or by its host.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use time::OffsetDateTime;

use super::Certificate;
use crate::types::Sha256Digest;

/// Which server is expected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedServer {
    /// Fingerprints of its certificates. Where there are any, one of them must match, and no CA is asked.
    pub certificate_sha256: Vec<Sha256Digest>,
    /// A name that its certificate must have; without it (and without fingerprints) it must have the host's.
    pub subject_name: Option<String>,
}

/// Our words as an error of rustls.
fn refused(words: String) -> Error {
    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Words(String);
    Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(Words(words)))))
}

/// Verifies by fingerprint, or by CA and a configured name.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) expected: ExpectedServer,
    /// Asked where no fingerprint is given.
    pub(super) by_ca: Option<Arc<WebPkiServerVerifier>>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    /// The certificate itself is trusted; it must still be in force.
    fn verify_pinned(&self, certificate: &Certificate, now: OffsetDateTime) -> Result<(), Error> {
        if !self.expected.certificate_sha256.contains(&certificate.sha256) {
            return Err(refused(format!("{certificate}, which is not a pinned one")));
        }
        if now > certificate.not_after {
            return Err(CertificateError::Expired.into());
        }
        if now < certificate.not_before {
            return Err(CertificateError::NotValidYet.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let read = || Certificate::read(end_entity).map_err(|_| Error::from(CertificateError::BadEncoding));
        if self.expected.certificate_sha256.is_empty() {
            let Some(by_ca) = &self.by_ca else { return Err(CertificateError::UnknownIssuer.into()) };
            match by_ca.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                // The chain is looked at before the name, so everything but the name is good.
                Err(Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) if self.expected.subject_name.is_some() => {}
                verified => {
                    verified?;
                }
            }
        } else {
            let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            let now = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Error::FailedToGetCurrentTime)?;
            self.verify_pinned(&read()?, now)?;
        }
        if let Some(wanted) = &self.expected.subject_name {
            let certificate = read()?;
            if !certificate.has_name(wanted) {
                return Err(refused(format!("{certificate}, not one for `{wanted}`")));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
