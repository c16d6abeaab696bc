//! TLS below the upper layer (PS3.15 annex B): the handshake in both roles, and its failures in words.
//!
//! Certificates, keys and the rules for trusting them come from the caller as rustls configurations.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use rustls::{AlertDescription, CertificateError, ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::pdu_io::Transport;

/// First byte of a TLS handshake record (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 0x16;
/// First byte of an A-ASSOCIATE-RQ (PS3.8 section 9.3.2).
const A_ASSOCIATE_RQ: u8 = 0x01;

/// Gives the configuration that is in force when a connection comes.
pub type TlsServer = Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;

/// How to call a peer over TLS.
#[derive(Debug, Clone)]
pub struct TlsClient {
    /// Our certificate and whom we trust.
    pub config: Arc<ClientConfig>,
}

/// How an association request came to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Without TLS, on a port without TLS.
    Plain,
    /// Without TLS on the port for TLS: to be rejected, in the words of DICOM, which the peer understands.
    PlainOnTlsPort,
    /// Over TLS.
    Tls {
        /// The peer's verified certificate in DER, where it showed one.
        peer_certificate: Option<Vec<u8>>,
    },
}

/// A connection that did not become secure, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsRefusal {
    pub expected: String,
    pub received: String,
    pub remedy: String,
}

impl TlsRefusal {
    fn new(expected: &str, received: impl Into<String>, remedy: &str) -> Self {
        Self { expected: expected.to_owned(), received: received.into(), remedy: remedy.to_owned() }
    }
}

impl fmt::Display for TlsRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, received {}", self.expected, self.received)
    }
}

/// Why there is no transport for an association.
#[derive(Debug)]
pub(crate) enum AcceptError {
    /// The peer closed without a byte.
    Closed,
    /// The handshake failed.
    Refused(TlsRefusal),
}

impl Transport for TlsStream<TcpStream> {
    fn prepare(&self) {
        self.get_ref().0.prepare();
    }

    fn after_read(&self) {
        self.get_ref().0.after_read();
    }
}

/// Makes an accepted connection ready for its association: does the TLS handshake where `server` is given. Nothing is
/// taken from a plain connection. The caller limits the time.
pub(crate) async fn accept(
    stream: TcpStream,
    server: Option<&TlsServer>,
) -> Result<(Box<dyn Transport>, Security), AcceptError> {
    stream.prepare();
    let mut first = [0];
    let n_bytes = stream.peek(&mut first).await.unwrap_or_default();
    if n_bytes == 0 {
        return Err(AcceptError::Closed);
    }
    let Some(server) = server else {
        if first == [TLS_HANDSHAKE] {
            return Err(AcceptError::Refused(TlsRefusal::new(
                "an association request without TLS on this port",
                "a TLS handshake (first byte 0x16)",
                "turn TLS off at the peer, or let it call the port for TLS (`listen` in section [tls])",
            )));
        }
        return Ok((Box::new(stream), Security::Plain));
    };
    if first == [A_ASSOCIATE_RQ] {
        return Ok((Box::new(stream), Security::PlainOnTlsPort));
    }
    let stream = TlsAcceptor::from(server())
        .accept(stream)
        .await
        .map_err(|error| AcceptError::Refused(refusal(&error, Side::Server)))?;
    let peer_certificate = stream.get_ref().1.peer_certificates().and_then(|chain| Some(chain.first()?.to_vec()));
    Ok((Box::new(TlsStream::from(stream)), Security::Tls { peer_certificate }))
}

/// The handshake of a call to `host`. The caller limits the time.
pub(crate) async fn connect(
    stream: TcpStream,
    client: &TlsClient,
    host: &str,
) -> Result<Box<dyn Transport>, TlsRefusal> {
    let name = match ServerName::try_from(host.to_owned()) {
        Ok(name) => name,
        // A name that no certificate can hold: the address stands for it, and whoever verifies compares other things.
        Err(_) => {
            ServerName::from(stream.peer_addr().map_or_else(|_| [0, 0, 0, 0].into(), |peer: SocketAddr| peer.ip()))
        }
    };
    match TlsConnector::from(Arc::clone(&client.config)).connect(name, stream).await {
        Ok(stream) => Ok(Box::new(TlsStream::from(stream))),
        Err(error) => Err(refusal(&error, Side::Client)),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Server,
    Client,
}

/// A failed handshake in words. rustls names what is wrong; we add what would have been right and what to do.
fn refusal(error: &io::Error, side: Side) -> TlsRefusal {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                TlsRefusal::new(
                    "a TLS handshake",
                    "the end of the connection in the middle of it",
                    "look into the peer's log: it may not trust our certificate, or not speak TLS on that port",
                )
            }
            _ => TlsRefusal::new("a TLS handshake", error.to_string(), "check the network and the peer's log"),
        };
    };
    match error {
        rustls::Error::NoCertificatesPresented => TlsRefusal::new(
            "a certificate that a CA of tls.ca_files has signed",
            "no certificate",
            "give the peer a certificate and its key, signed by one of those CAs",
        ),
        rustls::Error::InvalidCertificate(problem) => {
            let (received, remedy) = certificate_problem(problem, side);
            TlsRefusal::new("a valid certificate from a trusted CA", received, remedy)
        }
        rustls::Error::AlertReceived(alert) => {
            TlsRefusal::new("a TLS handshake", format!("the peer's alert {alert:?}"), alert_remedy(*alert))
        }
        rustls::Error::InvalidMessage(_) => TlsRefusal::new(
            "a TLS handshake",
            "bytes that are not TLS",
            match side {
                Side::Server => "turn TLS on at the peer, or let it call the port without TLS",
                Side::Client => "turn TLS off for that peer, or give the port on which it speaks TLS",
            },
        ),
        rustls::Error::PeerIncompatible(problem) => TlsRefusal::new(
            "TLS 1.2 with ECDHE and AES-GCM or ChaCha20, or TLS 1.3",
            format!("an offer that does not fit ({problem:?})"),
            "update the peer, or let it offer TLS 1.2 or 1.3 with one of those suites",
        ),
        other => TlsRefusal::new("a TLS handshake", other.to_string(), "check the peer's TLS settings and its log"),
    }
}

fn certificate_problem(problem: &CertificateError, side: Side) -> (String, &'static str) {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("one that has expired".to_owned(), "renew the peer's certificate, and check the clocks of both")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("one that is not valid yet".to_owned(), "check the clocks of both")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            match problem {
                CertificateError::BadSignature => "one from a CA that is not trusted, though one of its name is",
                _ => "one from a CA that is not trusted",
            }
            .to_owned(),
            match side {
                Side::Server => "add the CA's certificate to tls.ca_files, or let a CA that is there sign the peer's",
                Side::Client => "add the CA's certificate to tls.ca_files (--tls-ca), or pin the peer's fingerprint",
            },
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "one for another name".to_owned(),
            "call the peer by a name of its certificate, give tls_subject_name, or pin its fingerprint",
        ),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => (
            "one for another purpose".to_owned(),
            "let the CA sign one whose extended key usage allows both client and server authentication",
        ),
        // Our own words, from the rules for pinned and named certificates.
        CertificateError::Other(words) => (
            words.to_string(),
            "check the peer's certificate, and what is configured of it (tls_certificate_sha256, tls_subject_name)",
        ),
        other => (format!("one that is not accepted ({other:?})"), "check the peer's certificate"),
    }
}

fn alert_remedy(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            "let the peer trust the CA that signed our certificate"
        }
        AlertDescription::CertificateExpired => "renew our certificate",
        AlertDescription::CertificateRequired => {
            "the peer wants a certificate of ours: give certificate_file and private_key_file (--tls-certificate, --tls-key)"
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "let the peer allow TLS 1.2 with ECDHE, or TLS 1.3"
        }
        _ => "look into the peer's log",
    }
}
