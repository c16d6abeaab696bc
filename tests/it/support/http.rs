//! Requests to status pages and Orthanc.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }
}

/// GETs a path from a server of this machine; `None` when nobody answers.
pub(crate) fn get(port: u16, path: &str) -> Option<Answer> {
    send(port, "GET", path, "")
}

/// The same with a method and a body.
pub(crate) fn send(port: u16, method: &str, path: &str, body: &str) -> Option<Answer> {
    send_as(port, method, path, body, None)
}

/// The same as somebody: `authorization` is the value of the header of that name.
pub(crate) fn send_as(port: u16, method: &str, path: &str, body: &str, authorization: Option<&str>) -> Option<Answer> {
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nAccept: */*\r\n{authorization}Content-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).ok()?;
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: bytes.split_off(end + 4) })
}
