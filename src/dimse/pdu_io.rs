//! PDUs on a byte stream (PS3.8 section 9.3): framing, limits and the skipping of unknown items; association PDUs
//! are parsed and written by dicom-ul.
//!
//! Why not dicom-ul's own framing: it has one length limit for all PDUs (an A-ASSOCIATE-RQ of a PACS is longer
//! than any P-DATA), checks it only in a mode that then also refuses such requests, and fails on items that
//! PS3.8 section 9.3.1 tells receivers to skip. P-DATA is cut from the receive buffer without copying.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use dicom_ul::pdu::{AssociationAC, AssociationRQ, MAXIMUM_PDU_SIZE};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rejection::{AbortReason, AbortSource, RejectReason, RejectResult};

/// PDU type, reserved byte and length.
pub(crate) const PDU_HEADER_LENGTH: usize = 6;
/// Item length, presentation context id and message control header.
pub(crate) const PDV_HEADER_LENGTH: usize = 6;
/// How much buffer a read offers when the length of the PDU is not known yet.
const READ_CHUNK_BYTES: usize = 64 * 1024;
/// How much is reserved at a time for one PDU on the word of its header alone.
const MAX_RESERVE_BYTES: usize = 256 * 1024;

const A_ASSOCIATE_RQ: u8 = 0x01;
const A_ASSOCIATE_AC: u8 = 0x02;
const A_ASSOCIATE_RJ: u8 = 0x03;
const P_DATA_TF: u8 = 0x04;
const A_RELEASE_RQ: u8 = 0x05;
const A_RELEASE_RP: u8 = 0x06;
const A_ABORT: u8 = 0x07;

/// A connection that PDUs travel on.
pub(crate) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {
    /// Called before the first byte.
    fn prepare(&self) {}
    /// Called after each read.
    fn after_read(&self) {}
}

impl Transport for TcpStream {
    fn prepare(&self) {
        // Failure only costs speed.
        let _ = self.set_nodelay(true);
        self.after_read();
    }

    /// Acknowledges at once. Senders that leave Nagle's algorithm on (dcmtk's default) wait for the
    /// acknowledgement of one small write before the next: 45 ms per object with delayed ones. The kernel leaves
    /// this mode by itself, so it is set again after each read.
    fn after_read(&self) {
        #[cfg(target_os = "linux")]
        let _ = self.set_quickack(true);
    }
}

/// Lengths that a peer may not exceed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PduLimits {
    /// Length field of A-ASSOCIATE-RQ and -AC, in bytes.
    pub max_association_bytes: u32,
    /// Length field of P-DATA-TF, in bytes: the maximum length that we announce (PS3.8 annex D.1).
    pub max_p_data_bytes: u32,
}

/// A presentation data value: one fragment of a command set or data set (PS3.8 section 9.3.5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pdv {
    pub context_id: u8,
    pub is_command: bool,
    pub is_last: bool,
    pub data: Bytes,
}

/// A received PDU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pdu {
    AssociateRequest(Box<AssociationRQ>),
    AssociateAccept(Box<AssociationAC>),
    AssociateReject { result: RejectResult, reason: RejectReason },
    Data(Vec<Pdv>),
    ReleaseRequest,
    ReleaseResponse,
    Abort { source: u8, reason: u8 },
}

impl Pdu {
    /// The standard's name.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::AssociateRequest(_) => pdu_name(A_ASSOCIATE_RQ),
            Self::AssociateAccept(_) => pdu_name(A_ASSOCIATE_AC),
            Self::AssociateReject { .. } => pdu_name(A_ASSOCIATE_RJ),
            Self::Data(_) => pdu_name(P_DATA_TF),
            Self::ReleaseRequest => pdu_name(A_RELEASE_RQ),
            Self::ReleaseResponse => pdu_name(A_RELEASE_RP),
            Self::Abort { .. } => pdu_name(A_ABORT),
        }
    }
}

const fn pdu_name(pdu_type: u8) -> &'static str {
    match pdu_type {
        A_ASSOCIATE_RQ => "A-ASSOCIATE-RQ",
        A_ASSOCIATE_AC => "A-ASSOCIATE-AC",
        A_ASSOCIATE_RJ => "A-ASSOCIATE-RJ",
        P_DATA_TF => "P-DATA-TF",
        A_RELEASE_RQ => "A-RELEASE-RQ",
        A_RELEASE_RP => "A-RELEASE-RP",
        A_ABORT => "A-ABORT",
        _ => "unknown PDU",
    }
}

/// Why no PDU could be received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The peer closed the connection between two PDUs.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the connection inside a PDU.
    #[error("the peer closed the connection in the middle of a PDU")]
    ClosedInsidePdu,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// Not a PDU type of PS3.8.
    #[error("the peer sent a PDU of unknown type {pdu_type:#04x}: is it speaking DICOM, and without TLS?")]
    UnrecognizedPdu { pdu_type: u8 },
    /// Longer than the limits allow.
    #[error("the peer's {} has {length} bytes: at most {limit} are allowed", pdu_name(*.pdu_type))]
    TooLong { pdu_type: u8, length: u32, limit: u32 },
    /// The content breaks PS3.8 section 9.3.
    #[error("the peer's {} is malformed: {problem}", pdu_name(*.pdu_type))]
    Malformed { pdu_type: u8, problem: String },
}

impl ReceiveError {
    /// The reason to abort with; `None` when the connection is gone.
    pub(crate) const fn abort_reason(&self) -> Option<AbortReason> {
        match self {
            Self::Closed | Self::ClosedInsidePdu | Self::Io(_) => None,
            Self::UnrecognizedPdu { .. } => Some(AbortReason::UnrecognizedPdu),
            Self::TooLong { .. } | Self::Malformed { .. } => Some(AbortReason::InvalidPduParameter),
        }
    }
}

/// PDUs in both directions over one connection.
pub(crate) struct PduStream {
    transport: Box<dyn Transport>,
    limits: PduLimits,
    received: BytesMut,
    /// Encoded PDUs that [`PduStream::flush`] has not written yet.
    unsent: Vec<u8>,
}

impl PduStream {
    pub(crate) fn new(transport: Box<dyn Transport>, limits: PduLimits) -> Self {
        transport.prepare();
        Self { transport, limits, received: BytesMut::new(), unsent: Vec::new() }
    }

    /// From now on P-DATA-TF may be so long.
    pub(crate) fn limit_p_data(&mut self, max_p_data_bytes: u32) {
        self.limits.max_p_data_bytes = max_p_data_bytes;
    }

    /// Whether bytes of a PDU have arrived that [`PduStream::receive`] has not returned.
    pub(crate) fn has_partial_pdu(&self) -> bool {
        !self.received.is_empty()
    }

    /// The next PDU. Type and length are checked before anything is buffered for it.
    ///
    /// Cancel safety: cancel-safe; what has arrived stays in the buffer.
    pub(crate) async fn receive(&mut self) -> Result<Pdu, ReceiveError> {
        loop {
            let wanted = match self.checked_header()? {
                Some((pdu_type, length)) => {
                    let total = PDU_HEADER_LENGTH + length;
                    if self.received.len() >= total {
                        self.received.advance(PDU_HEADER_LENGTH);
                        return parse_pdu(pdu_type, self.received.split_to(length).freeze());
                    }
                    (total - self.received.len()).min(MAX_RESERVE_BYTES)
                }
                None => READ_CHUNK_BYTES,
            };
            self.received.reserve(wanted);
            let n_bytes = self.transport.read_buf(&mut self.received).await?;
            self.transport.after_read();
            if n_bytes == 0 {
                return Err(if self.received.is_empty() {
                    ReceiveError::Closed
                } else {
                    ReceiveError::ClosedInsidePdu
                });
            }
        }
    }

    /// Type and length of the PDU at the head of the buffer, if the header is there.
    fn checked_header(&self) -> Result<Option<(u8, usize)>, ReceiveError> {
        let mut header = &self.received[..];
        if header.len() < PDU_HEADER_LENGTH {
            // One byte is enough to recognise what is not DICOM, such as a TLS or HTTP client.
            return match header.first() {
                Some(&pdu_type) if !(A_ASSOCIATE_RQ..=A_ABORT).contains(&pdu_type) => {
                    Err(ReceiveError::UnrecognizedPdu { pdu_type })
                }
                _ => Ok(None),
            };
        }
        let pdu_type = header.get_u8();
        header.advance(1);
        let length = header.get_u32();
        let limit = match pdu_type {
            A_ASSOCIATE_RQ | A_ASSOCIATE_AC => self.limits.max_association_bytes,
            P_DATA_TF => self.limits.max_p_data_bytes,
            A_ASSOCIATE_RJ | A_RELEASE_RQ | A_RELEASE_RP | A_ABORT => 4,
            _ => return Err(ReceiveError::UnrecognizedPdu { pdu_type }),
        };
        if length > limit {
            return Err(ReceiveError::TooLong { pdu_type, length, limit });
        }
        Ok(Some((pdu_type, length as usize)))
    }

    /// Throws away what arrives until the peer closes the connection.
    ///
    /// Cancel safety: cancel-safe.
    pub(crate) async fn discard_until_closed(&mut self) {
        loop {
            self.received.clear();
            self.received.reserve(READ_CHUNK_BYTES);
            match self.transport.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return,
                Ok(_) => self.transport.after_read(),
            }
        }
    }

    /// Queues an A-ASSOCIATE-RQ or -AC.
    pub(crate) fn queue_association(&mut self, pdu: &dicom_ul::Pdu) -> io::Result<()> {
        let mut encoded = Vec::new();
        dicom_ul::pdu::write_pdu(&mut encoded, pdu).map_err(io::Error::other)?;
        self.unsent.append(&mut encoded);
        Ok(())
    }

    /// Queues an A-ASSOCIATE-RJ.
    pub(crate) fn queue_reject(&mut self, result: RejectResult, reason: RejectReason) {
        let (source, reason) = reason.codes();
        self.queue_short(A_ASSOCIATE_RJ, [0, result.code(), source, reason]);
    }

    /// Queues an A-RELEASE-RQ.
    pub(crate) fn queue_release_request(&mut self) {
        self.queue_short(A_RELEASE_RQ, [0; 4]);
    }

    /// Queues an A-RELEASE-RP.
    pub(crate) fn queue_release_response(&mut self) {
        self.queue_short(A_RELEASE_RP, [0; 4]);
    }

    /// Queues an A-ABORT.
    pub(crate) fn queue_abort(&mut self, source: AbortSource) {
        let (source, reason) = source.codes();
        self.queue_short(A_ABORT, [0, 0, source, reason]);
    }

    fn queue_short(&mut self, pdu_type: u8, body: [u8; 4]) {
        self.unsent.extend_from_slice(&[pdu_type, 0, 0, 0, 0, 4]);
        self.unsent.extend_from_slice(&body);
    }

    /// Queues the header of a P-DATA-TF with one PDV of `length` bytes and returns the space for them.
    pub(crate) fn queue_p_data(&mut self, context_id: u8, is_command: bool, is_last: bool, length: usize) -> &mut [u8] {
        let item_length = (length + 2) as u32;
        self.unsent.extend_from_slice(&[P_DATA_TF, 0]);
        self.unsent.put_u32(item_length + 4);
        self.unsent.put_u32(item_length);
        self.unsent.put_u8(context_id);
        self.unsent.put_u8(u8::from(is_command) | u8::from(is_last) << 1);
        let start = self.unsent.len();
        self.unsent.resize(start + length, 0);
        &mut self.unsent[start..]
    }

    /// How many bytes are queued.
    pub(crate) fn n_unsent_bytes(&self) -> usize {
        self.unsent.len()
    }

    /// Forgets what is queued, after a failure that leaves it half made.
    pub(crate) fn discard_unsent(&mut self) {
        self.unsent.clear();
    }

    /// Writes what is queued.
    ///
    /// Not cancel-safe: a PDU may be left half written.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        let result = self.transport.write_all(&self.unsent).await;
        self.unsent.clear();
        result?;
        self.transport.flush().await
    }

    /// Closes our direction of the connection.
    pub(crate) async fn shut_down(&mut self) {
        // The connection is given up: nobody is left to tell about a failure.
        let _ = self.transport.shutdown().await;
    }
}

/// The largest PDV that fits into a P-DATA-TF of at most `max_pdu_length` bytes (0: unlimited, taken as
/// `UNLIMITED_PDU_BYTES`), even as PS3.5 data is; `None` when not even two bytes fit.
pub(crate) fn max_fragment_bytes(max_pdu_length: u32) -> Option<usize> {
    /// What we send to a peer that names no limit.
    const UNLIMITED_PDU_BYTES: u32 = 128 * 1024;
    let max_pdu_length =
        if max_pdu_length == 0 { UNLIMITED_PDU_BYTES } else { max_pdu_length.min(UNLIMITED_PDU_BYTES) };
    match (max_pdu_length as usize).checked_sub(PDV_HEADER_LENGTH) {
        Some(bytes @ 2..) => Some(bytes & !1),
        _ => None,
    }
}

fn parse_pdu(pdu_type: u8, body: Bytes) -> Result<Pdu, ReceiveError> {
    let malformed = |problem: String| ReceiveError::Malformed { pdu_type, problem };
    match pdu_type {
        A_ASSOCIATE_RQ | A_ASSOCIATE_AC => {
            let known = keep_known_items(pdu_type, &body).map_err(|problem| malformed(problem.to_owned()))?;
            // Our own length limit has been applied; dicom-ul's is for callers without one.
            match dicom_ul::pdu::read_pdu(&known[..], MAXIMUM_PDU_SIZE, false) {
                Ok(Some(dicom_ul::Pdu::AssociationRQ(request))) => Ok(Pdu::AssociateRequest(Box::new(request))),
                Ok(Some(dicom_ul::Pdu::AssociationAC(accept))) => Ok(Pdu::AssociateAccept(Box::new(accept))),
                Ok(_) => Err(malformed("it ends inside a field".to_owned())),
                Err(error) => Err(malformed(error.to_string())),
            }
        }
        P_DATA_TF => parse_p_data(body).map(Pdu::Data).map_err(|problem| malformed(problem.to_owned())),
        _ => {
            let &[_, second, third, fourth] = &body[..] else {
                return Err(malformed(format!("its length is {}, not 4", body.len())));
            };
            Ok(match pdu_type {
                A_ASSOCIATE_RJ => Pdu::AssociateReject {
                    result: RejectResult::from_code(second),
                    reason: RejectReason::from_codes(third, fourth),
                },
                A_RELEASE_RQ => Pdu::ReleaseRequest,
                A_RELEASE_RP => Pdu::ReleaseResponse,
                A_ABORT => Pdu::Abort { source: third, reason: fourth },
                _ => return Err(ReceiveError::UnrecognizedPdu { pdu_type }),
            })
        }
    }
}

fn parse_p_data(mut body: Bytes) -> Result<Vec<Pdv>, &'static str> {
    let mut pdvs = Vec::with_capacity(1);
    while body.has_remaining() {
        if body.len() < PDV_HEADER_LENGTH {
            return Err("it ends inside the header of a presentation data value");
        }
        let length = body.get_u32() as usize;
        if length < 2 || length > body.len() {
            return Err("a presentation data value has a wrong length");
        }
        let context_id = body.get_u8();
        let control = body.get_u8();
        pdvs.push(Pdv {
            context_id,
            is_command: control & 1 != 0,
            is_last: control & 2 != 0,
            data: body.split_to(length - 2),
        });
    }
    if pdvs.is_empty() {
        return Err("it holds no presentation data value");
    }
    Ok(pdvs)
}

/// Bytes before the items of A-ASSOCIATE-RQ and -AC: protocol version, reserved, AE titles, reserved.
const ASSOCIATION_FIXED_BYTES: usize = 68;

/// Of one presentation context. PS3.6 table A-1 has some 60; a million bytes of empty ones would be 200,000.
const MAX_TRANSFER_SYNTAXES: usize = 256;

/// There are no more: their identifiers are the odd numbers of one byte (PS3.8 section 9.3.2.2).
const MAX_PRESENTATION_CONTEXTS: usize = 128;

/// The whole PDU (with a header) without the items that Hilum does not use, as PS3.8 section 9.3.1 demands of
/// unrecognised ones. Extended negotiation and asynchronous operations are optional for an acceptor to answer
/// (PS3.7 annex D.3.3) and left out too; so nothing in them can break the parser.
fn keep_known_items(pdu_type: u8, body: &[u8]) -> Result<Vec<u8>, &'static str> {
    if body.len() < ASSOCIATION_FIXED_BYTES {
        return Err("it ends before its AE titles do");
    }
    let (fixed, items) = body.split_at(ASSOCIATION_FIXED_BYTES);
    let presentation_context = if pdu_type == A_ASSOCIATE_RQ { 0x20 } else { 0x21 };
    let mut kept = vec![pdu_type, 0, 0, 0, 0, 0];
    kept.extend_from_slice(fixed);
    let mut n_contexts = 0;
    for_each_item(items, |item_type, value| {
        match item_type {
            0x10 => push_item(&mut kept, item_type, trim_uid(value)),
            0x20 | 0x21 if item_type == presentation_context => {
                n_contexts += 1;
                if n_contexts > MAX_PRESENTATION_CONTEXTS {
                    return Err("it has more than 128 presentation contexts");
                }
                push_item(&mut kept, item_type, &known_context_items(item_type, value)?);
            }
            0x50 => push_item(&mut kept, item_type, &known_user_items(value)?),
            _ => {}
        }
        Ok(())
    })?;
    let length = (kept.len() - PDU_HEADER_LENGTH) as u32;
    kept[2..PDU_HEADER_LENGTH].copy_from_slice(&length.to_be_bytes());
    Ok(kept)
}

fn known_context_items(item_type: u8, value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let Some((fixed, sub_items)) = value.split_at_checked(4) else {
        return Err("a presentation context item is too short");
    };
    let mut kept = fixed.to_vec();
    let is_refused_result = item_type == 0x21 && fixed[2] != 0;
    if is_refused_result {
        // Its transfer syntax is not significant and may be missing (PS3.8 section 9.3.3.2), but the parser wants one.
        push_item(&mut kept, 0x40, b"1.2.840.10008.1.2");
        if fixed[2] > 4 {
            kept[2] = 2; // a reason that the standard does not define is "no reason"
        }
        return Ok(kept);
    }
    let mut n_kept = 0;
    for_each_item(sub_items, |sub_type, value| {
        if matches!(sub_type, 0x30 | 0x40) && !(item_type == 0x21 && sub_type == 0x30) {
            n_kept += 1;
            if n_kept > MAX_TRANSFER_SYNTAXES {
                return Err("a presentation context has more than 256 transfer syntaxes");
            }
            push_item(&mut kept, sub_type, trim_uid(value));
        }
        Ok(())
    })?;
    Ok(kept)
}

fn known_user_items(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut kept = Vec::with_capacity(value.len());
    for_each_item(value, |sub_type, value| {
        match sub_type {
            0x51 if value.len() != 4 => return Err("its maximum length item has a wrong length"),
            0x51 => push_item(&mut kept, sub_type, value),
            0x52 | 0x55 => push_item(&mut kept, sub_type, trim_uid(value)),
            // A broken one is none; whether one is needed is decided elsewhere.
            0x58 if is_user_identity(value) => push_item(&mut kept, sub_type, value),
            0x54 => {
                let uid_length = value.first_chunk().map_or(0, |length| u16::from_be_bytes(*length) as usize);
                if value.len() != 2 + uid_length + 2 {
                    return Err("a role selection item has a wrong length");
                }
                push_item(&mut kept, sub_type, value);
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Type, response requested, and two fields with their lengths (PS3.7 table D.3-14).
fn is_user_identity(value: &[u8]) -> bool {
    let field = |rest: &[u8]| {
        let length = u16::from_be_bytes(*rest.first_chunk()?);
        Some(2 + usize::from(length)).filter(|end| *end <= rest.len())
    };
    let end_of_fields = || {
        let fields = value.get(2..)?;
        let primary_end = field(fields)?;
        Some(2 + primary_end + field(fields.get(primary_end..)?)?)
    };
    end_of_fields() == Some(value.len())
}

/// Without the padding that some peers add to UIDs and names in association items.
fn trim_uid(value: &[u8]) -> &[u8] {
    let end = value.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
    &value[..end]
}

fn for_each_item<'a>(
    mut items: &'a [u8],
    mut take: impl FnMut(u8, &'a [u8]) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    while !items.is_empty() {
        let Some((&[item_type, _, high, low], rest)) = items.split_first_chunk() else {
            return Err("it ends inside the header of an item");
        };
        let Some((value, rest)) = rest.split_at_checked(u16::from_be_bytes([high, low]) as usize) else {
            return Err("an item is longer than what holds it");
        };
        take(item_type, value)?;
        items = rest;
    }
    Ok(())
}

fn push_item(items: &mut Vec<u8>, item_type: u8, value: &[u8]) {
    items.extend_from_slice(&[item_type, 0]);
    // Never longer than the item it comes from, whose length was 16 bits.
    items.extend_from_slice(&(value.len() as u16).to_be_bytes());
    items.extend_from_slice(value);
}
