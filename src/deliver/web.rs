//! HTTP as a client: one connection with TLS by rustls, and how a server is told who we are.
//!
//! No redirects, no proxies, no cookies. Secrets are read from their files when they are needed, and are in no error.

use std::{
    collections::HashMap,
    error::Error,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    HeaderMap, Request, StatusCode, Uri,
    body::{Body, Frame, SizeHint},
    client::conn::http1::{self, SendRequest},
    header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::Caller;
use crate::{tls::check_permissions, types::WebAuthentication};

/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;
/// A body is sent in pieces of this many bytes.
const PIECE_BYTES: u64 = 64 * 1024;
/// A server that takes less than this in a second is given up.
const SLOWEST_BYTES_PER_SECOND: u64 = 16 * 1024;
/// A token that ends so soon is not used any more.
const TOKEN_MARGIN: Duration = Duration::from_secs(30);
/// How long a token is good whose server does not say so.
const TOKEN_LIFETIME: Duration = Duration::from_mins(5);

/// A web service and how it is told who we are.
#[derive(Debug, Clone)]
pub(super) struct WebTarget {
    pub(super) url: Uri,
    pub(super) authentication: WebAuthentication,
}

impl WebTarget {
    pub(super) fn new(url: &str, authentication: WebAuthentication) -> Result<Self, String> {
        let url = url.parse::<Uri>().map_err(|error| format!("`{url}` is no web address: {error}"))?;
        Ok(Self { url, authentication })
    }
}

pub(super) type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is there already.
pub(super) fn whole(bytes: impl Into<Bytes>) -> RequestBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A server's answer.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A connection to a server. Dropping it closes it.
pub(super) struct WebConnection {
    sender: SendRequest<RequestBody>,
    host: HeaderValue,
    response_timeout: Duration,
    /// Moves the bytes.
    _driver: JoinSet<()>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl WebConnection {
    /// Connects to the server of `url`; errors are words.
    pub(super) async fn open(caller: &Caller, url: &Uri) -> Result<Self, String> {
        let authority = url.authority().ok_or_else(|| format!("`{url}` names no server"))?;
        let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let encrypted = url.scheme_str() == Some("https");
        let port = authority.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let problem = |words: String, remedy: &str| format!("cannot connect to {name}:{port}: {words}; {remedy}");
        let connecting = TcpStream::connect((name.as_str(), port));
        let stream = match timeout(caller.connect_timeout, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(problem(error.to_string(), "check `url` and that the server runs")),
            Err(_) => {
                let words = format!("no answer within {} s", caller.connect_timeout.as_secs_f32());
                return Err(problem(words, "check that no firewall drops the connection"));
            }
        };
        let _ = stream.set_nodelay(true);
        let stream: Box<dyn Stream> =
            if encrypted { Box::new(secured(caller, stream, &name).await?) } else { Box::new(stream) };
        let handshake = http1::handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|error| problem(chain(&error), "look into its log"))?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // What goes wrong is the answer to the request of the moment.
            let _ = connection.await;
        });
        let host = HeaderValue::from_str(authority.as_str()).map_err(|error| error.to_string())?;
        Ok(Self { sender, host, response_timeout: caller.response_timeout, _driver: driver })
    }

    /// Whether the server has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request with a body of `length` bytes and reads the answer.
    pub(super) async fn exchange(&mut self, mut request: Request<RequestBody>, length: u64) -> Result<Reply, String> {
        request.headers_mut().insert(HOST, self.host.clone());
        let limit = self.response_timeout + Duration::from_secs(length / SLOWEST_BYTES_PER_SECOND);
        let exchange = async {
            self.sender.ready().await.map_err(|error| chain(&error))?;
            let response = self.sender.send_request(request).await.map_err(|error| chain(&error))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        match timeout(limit, exchange).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => Err(format!("the connection to the web server ended: {error}; look into its log")),
            Err(_) => Err(format!("the web server does not answer within {} s; look into its log", limit.as_secs())),
        }
    }
}

async fn secured(
    caller: &Caller,
    stream: TcpStream,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let material = Arc::clone(&caller.tls.borrow());
    let config = tokio::task::spawn_blocking(move || material.web_client())
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    let server = ServerName::try_from(name.to_owned()).map_err(|error| format!("`{name}`: {error}"))?;
    let handshake = TlsConnector::from(config).connect(server, stream);
    match timeout(caller.response_timeout, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!(
            "no TLS with {name}: {error}; give its CA in tls.ca_files, or let it show a certificate for this name"
        )),
        Err(_) => Err(format!("no TLS with {name}: no answer in time; check that it speaks TLS on that port")),
    }
}

/// An error with what it came from.
fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words = format!("{words}: {error}");
        source = error.source();
    }
    words
}

// Who we are ------------------------------------------------------------------------------------------------------

struct Token {
    header: HeaderValue,
    good_until: Instant,
}

/// The tokens that authorization servers have given us, in memory only. Each waits for its own server alone.
#[derive(Clone, Default)]
pub struct Tokens(Arc<Mutex<HashMap<String, Place>>>);

/// Where the token of one server is kept.
type Place = Arc<Mutex<Option<Token>>>;

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// What goes into the header Authorization for `target`; `None` without authentication.
    pub(super) async fn authorization(
        &self,
        caller: &Caller,
        target: &WebTarget,
    ) -> Result<Option<HeaderValue>, String> {
        match &target.authentication {
            WebAuthentication::None => Ok(None),
            WebAuthentication::Basic { user, password_file } => {
                let password = secret(password_file).await?;
                basic(user, &password).map(Some)
            }
            WebAuthentication::Oauth2 { token_url, client_id, client_secret_file, scope } => {
                let place = Arc::clone(self.0.lock().await.entry(key(&target.authentication)).or_default());
                let mut known = place.lock().await;
                if let Some(token) = known.as_ref().filter(|token| token.good_until > Instant::now()) {
                    return Ok(Some(token.header.clone()));
                }
                let secret = secret(client_secret_file).await?;
                // RFC 6749 section 2.3.1.
                let encoded = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let user = basic(&encoded(client_id), &encoded(&secret))?;
                let token = new_token(caller, token_url, user, scope.as_deref()).await?;
                Ok(Some(known.insert(token).header.clone()))
            }
        }
    }

    /// Forgets a token that the server does not take any more. Returns whether there was one.
    pub(super) async fn forget(&self, target: &WebTarget) -> bool {
        let place = self.0.lock().await.get(&key(&target.authentication)).cloned();
        match place {
            Some(place) => place.lock().await.take().is_some(),
            None => false,
        }
    }
}

/// What tells tokens apart; no secret is in it.
fn key(authentication: &WebAuthentication) -> String {
    serde_json::to_string(authentication).unwrap_or_default()
}

/// RFC 7617 section 2.
fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    let credentials = BASE64_STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {credentials}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, String> {
    // The error of the library is left out: it could show the text.
    let mut header = HeaderValue::from_str(text).map_err(|_| "the secret has characters that HTTP cannot send")?;
    header.set_sensitive(true);
    Ok(header)
}

/// The first line of a file that others may not read.
async fn secret(file: &Path) -> Result<String, String> {
    let path = file.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        check_permissions(&path).map_err(|error| error.to_string())?;
        let text = fs_err::read_to_string(&path).map_err(|error| error.to_string())?;
        Ok::<_, String>(text.lines().next().unwrap_or_default().to_owned())
    });
    let secret = read.await.map_err(|error| error.to_string())??;
    if secret.is_empty() {
        return Err(format!("`{}` has no secret in its first line", file.display()));
    }
    Ok(secret)
}

/// Asks for a token with the client credentials grant (RFC 6749 section 4.4).
async fn new_token(caller: &Caller, token_url: &str, user: HeaderValue, scope: Option<&str>) -> Result<Token, String> {
    let url = token_url.parse::<Uri>().map_err(|error| format!("`{token_url}` is no web address: {error}"))?;
    let form = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        .extend_pairs(scope.map(|scope| ("scope", scope)))
        .finish();
    let length = form.len() as u64;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(hyper::header::AUTHORIZATION, user)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(whole(form))
        .map_err(|error| error.to_string())?;
    let mut connection = WebConnection::open(caller, &url).await?;
    let reply = connection.exchange(request, length).await?;
    read_token(reply.status, &reply.body, Instant::now())
        .map_err(|words| format!("no token from `{token_url}`: {words}"))
}

/// RFC 6749 sections 5.1 and 5.2.
fn read_token(status: StatusCode, body: &[u8], now: Instant) -> Result<Token, String> {
    let answer: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if !status.is_success() {
        let error: String = answer["error"]
            .as_str()
            .unwrap_or("no reason")
            .chars()
            .filter(|character| character.is_ascii_alphanumeric() || *character == '_')
            .take(40)
            .collect();
        return Err(format!(
            "HTTP {} ({error}); check client_id, the secret in client_secret_file, and scope",
            status.as_u16()
        ));
    }
    let bearer = answer["token_type"].as_str().is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
    let token = answer["access_token"].as_str().filter(|token| !token.is_empty() && bearer);
    let token = token.ok_or("its answer holds no bearer token; check that token_url is the token endpoint")?;
    let lifetime = answer["expires_in"].as_u64().map_or(TOKEN_LIFETIME, Duration::from_secs);
    let good_until = now + lifetime.saturating_sub(TOKEN_MARGIN).min(Duration::from_hours(24));
    Ok(Token { header: sensitive(&format!("Bearer {token}"))?, good_until })
}

// A file as a body ------------------------------------------------------------------------------------------------

/// A file between two texts, read while it is sent.
pub(super) struct FileBody {
    head: Option<Bytes>,
    file: tokio::fs::File,
    left: u64,
    tail: Option<Bytes>,
}

impl FileBody {
    pub(super) fn new(head: String, file: tokio::fs::File, length: u64, tail: String) -> Self {
        Self { head: Some(head.into()), file, left: length, tail: Some(tail.into()) }
    }

    /// Bytes that are left to send.
    pub(super) fn length(&self) -> u64 {
        let text = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        text(&self.head) + self.left + text(&self.tail)
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        if self.left == 0 {
            return Poll::Ready(self.tail.take().map(|tail| Ok(Frame::data(tail))));
        }
        let mut piece = vec![0; usize::try_from(self.left.min(PIECE_BYTES)).unwrap_or_default()];
        let mut buffer = ReadBuf::new(&mut piece);
        ready!(Pin::new(&mut self.file).poll_read(cx, &mut buffer))?;
        let length = buffer.filled().len();
        if length == 0 {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof))));
        }
        piece.truncate(length);
        self.left -= length as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.length() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_and_refusals_told_without_their_text() {
        let now = Instant::now();
        let token = read_token(StatusCode::OK, br#"{"access_token":"abc","token_type":"Bearer","expires_in":90}"#, now);
        let token = token.unwrap_or_else(|words| panic!("{words}"));
        assert_eq!(token.header, "Bearer abc");
        assert!(token.header.is_sensitive());
        assert_eq!(token.good_until, now + Duration::from_mins(1));
        let refused = |status, body: &[u8]| read_token(status, body, now).err().unwrap();
        let words = refused(StatusCode::UNAUTHORIZED, br#"{"error":"invalid_client","error_description":"s3cret"}"#);
        assert!(words.contains("HTTP 401 (invalid_client)") && !words.contains("s3cret"), "{words}");
        assert!(refused(StatusCode::OK, b"<html>").contains("no bearer token"));
        assert!(refused(StatusCode::OK, br#"{"access_token":"a","token_type":"mac"}"#).contains("no bearer token"));
    }

    #[test]
    fn credentials_are_encoded() {
        assert_eq!(basic("Aladdin", "open sesame").unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!sensitive("Bearer a\nb").unwrap_err().contains("a\nb"));
    }

    #[tokio::test]
    async fn a_secret_is_one_line_of_a_closed_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs_err::write(&file, "hidden\nmore\n").unwrap();
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let words = secret(&file).await.unwrap_err();
        assert!(words.contains("chmod 600") && !words.contains("hidden"), "{words}");
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(secret(&file).await.unwrap(), "hidden");
        fs_err::write(&file, "\n").unwrap();
        assert!(secret(&file).await.unwrap_err().contains("no secret in its first line"));
    }

    #[tokio::test]
    async fn a_file_is_sent_between_its_texts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let content = vec![7; 200_000];
        fs_err::write(&path, &content).unwrap();
        let file = tokio::fs::File::open(&path).await.unwrap();
        let body = FileBody::new("head".to_owned(), file, 200_000, "tail".to_owned());
        assert_eq!(body.length(), 200_008);
        let sent = body.collect().await.unwrap().to_bytes();
        assert_eq!(sent, [b"head".as_slice(), &content, b"tail"].concat());
        let file = tokio::fs::File::open(&path).await.unwrap();
        let longer = FileBody::new(String::new(), file, 200_001, String::new());
        assert!(longer.collect().await.is_err(), "a file that became shorter is no whole object");
    }
}
