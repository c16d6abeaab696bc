//! For tests: a scripted raw peer that sends given bytes and sees the PDUs that come back, and bytes to give it.
//! It shares no code with the room, so that a mistake in the framing cannot hide itself.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    time::timeout,
};

use super::pdu_io::Transport;

impl Transport for DuplexStream {}

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A peer that does what the script says, right or wrong.
pub(crate) struct RawPeer(pub TcpStream);

impl RawPeer {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next PDU: type and content; `None` when the connection is closed.
    pub(crate) async fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(PATIENCE, async {
            let mut header = [0; 6];
            if self.0.read(&mut header[..1]).await.unwrap_or(0) == 0 {
                return None;
            }
            self.0.read_exact(&mut header[1..]).await.unwrap();
            let mut body = vec![0; u32::from_be_bytes(header[2..].try_into().unwrap()) as usize];
            self.0.read_exact(&mut body).await.unwrap();
            Some((header[0], body))
        })
        .await
        .expect("the other side neither answers nor closes")
    }

    /// Expects an A-ABORT with these source and reason bytes, then the close.
    pub(crate) async fn expect_abort(&mut self, source: u8, reason: u8) {
        assert_eq!(self.receive().await, Some((7, vec![0, 0, source, reason])));
        self.0.shutdown().await.unwrap();
        assert_eq!(self.receive().await, None);
    }

    /// Associates with the given items and expects acceptance.
    pub(crate) async fn associate(address: SocketAddr, items: &[u8]) -> Self {
        let mut peer = Self::connect(address).await;
        peer.send(&associate_rq(1, items)).await;
        let (pdu_type, _) = peer.receive().await.unwrap();
        assert_eq!(pdu_type, 2, "A-ASSOCIATE-AC");
        peer
    }
}

pub(crate) fn pdu(pdu_type: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![pdu_type, 0];
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn item(item_type: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![item_type, 0];
    bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
    bytes.extend_from_slice(value);
    bytes
}

pub(crate) fn application_context() -> Vec<u8> {
    item(0x10, b"1.2.840.10008.3.1.1.1")
}

pub(crate) fn proposed_context(id: u8, abstract_syntax: &str, transfer_syntaxes: &[&str]) -> Vec<u8> {
    let mut value = vec![id, 0, 0, 0];
    value.extend(item(0x30, abstract_syntax.as_bytes()));
    for uid in transfer_syntaxes {
        value.extend(item(0x40, uid.as_bytes()));
    }
    item(0x20, &value)
}

pub(crate) fn user_information(max_length: u32) -> Vec<u8> {
    let sub_items = [item(0x51, &max_length.to_be_bytes()), item(0x52, b"1.2.3.4"), item(0x55, b"RAW_PEER")].concat();
    item(0x50, &sub_items)
}

/// An A-ASSOCIATE-RQ or, with its type changed, -AC.
pub(crate) fn associate_rq(protocol_version: u16, items: &[u8]) -> Vec<u8> {
    let mut body = protocol_version.to_be_bytes().to_vec();
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(b"HILUM           ");
    body.extend_from_slice(b"RAW             ");
    body.extend_from_slice(&[0; 32]);
    body.extend_from_slice(items);
    pdu(1, &body)
}

pub(crate) fn pdv(context_id: u8, control: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = ((data.len() + 2) as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[context_id, control]);
    bytes.extend_from_slice(data);
    bytes
}

/// A command set from (element, value) pairs, without group length.
pub(crate) fn command(elements: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (element, value) in elements {
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&element.to_le_bytes());
        bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

/// The US value of an element of a command set.
pub(crate) fn command_number(bytes: &[u8], wanted: u16) -> Option<u16> {
    let mut rest = bytes;
    while rest.len() >= 8 {
        let element = u16::from_le_bytes([rest[2], rest[3]]);
        let length = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
        if element == wanted {
            return Some(u16::from_le_bytes([rest[8], rest[9]]));
        }
        rest = &rest[8 + length..];
    }
    None
}
