//! Certificates and keys: from PEM files to rustls configurations for both roles, read again when the files change.
//!
//! Start at [`TlsWatch`] (a node) or [`TlsMaterial::load`] (one command). [`Certificate`] is what a certificate says of
//! its holder. TLS 1.2 with ECDHE and AES-GCM or ChaCha20, and TLS 1.3: the suites of BCP 195, which the profiles of
//! PS3.15 sections B.9 to B.13 build on.
//!
//! Architecture invariant: no DICOM. Handshakes are dimse/'s, who may associate is receive/'s.

mod certificate;
mod material;
mod secret_file;
#[cfg(test)]
pub(crate) mod testing;
mod verify;
mod watch;

pub use certificate::{Certificate, UnreadableCertificate};
pub use material::{TlsError, TlsMaterial, TlsSettings};
pub use secret_file::{SecretFileError, check_permissions};
pub use verify::ExpectedServer;
pub use watch::{EXPIRY_WARNING_DAYS, TlsWatch, expiry_words};
