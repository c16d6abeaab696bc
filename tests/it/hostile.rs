//! Peers that break off, stall, lie or attack: nothing of theirs is stored by half, everybody else is served.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use dicom_core::{DataElement, VR, value::PixelFragmentSequence};
use dicom_dictionary_std::{tags, uids};

use super::{
    crash::files_below,
    support::{
        Node, NodeOptions, PATIENCE, Radiograph, Sample, Site, StoreScp, fixture, fresh_uid, http, set_uids, wait_for,
    },
};

pub(crate) const CR_STORAGE: &str = uids::COMPUTED_RADIOGRAPHY_IMAGE_STORAGE;
const VERIFICATION: &str = uids::VERIFICATION;
const EXPLICIT_LITTLE_ENDIAN: &str = uids::EXPLICIT_VR_LITTLE_ENDIAN;
const IMPLICIT_LITTLE_ENDIAN: &str = uids::IMPLICIT_VR_LITTLE_ENDIAN;

/// Presentation contexts of a [`RawPeer`].
const STORE_CONTEXT: u8 = 1;
const ECHO_CONTEXT: u8 = 3;

const ASSOCIATE_ACCEPT: u8 = 0x02;
const ASSOCIATE_REJECT: u8 = 0x03;
const P_DATA: u8 = 0x04;
const RELEASE_RESPONSE: u8 = 0x06;
const ABORT: u8 = 0x07;

/// A peer that says byte for byte what it is told, and no DICOM library in between.
#[derive(Debug)]
pub(crate) struct RawPeer {
    stream: TcpStream,
    message_id: u16,
}

impl RawPeer {
    /// A TCP connection.
    #[track_caller]
    fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the node listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, message_id: 0 }
    }

    /// An association for C-ECHO and C-STORE of CR in Explicit VR Little Endian.
    #[track_caller]
    pub(crate) fn associate(port: u16, calling: &str, called: &str) -> Self {
        Self::negotiate(port, calling, called, CR_STORAGE, EXPLICIT_LITTLE_ENDIAN).0
    }

    /// The same for another SOP class and transfer syntax, with the result of that context (PS3.8 table 9-18): 0 is
    /// acceptance.
    #[track_caller]
    pub(crate) fn negotiate(
        port: u16,
        calling: &str,
        called: &str,
        sop_class: &str,
        transfer_syntax: &str,
    ) -> (Self, u8) {
        let mut peer = Self::connect(port);
        peer.send(&association_request_for(calling, called, sop_class, transfer_syntax));
        let (kind, body) = peer.read_pdu().expect("an answer");
        assert_eq!(kind, ASSOCIATE_ACCEPT, "not accepted: {body:?}");
        // The items that follow the fixed part; in a presentation context its identifier comes first.
        let mut items = &body[68..];
        while let [item_type, _, high, low, rest @ ..] = items {
            let (value, after) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            if *item_type == 0x21 && value[0] == STORE_CONTEXT {
                return (peer, value[2]);
            }
            items = after;
        }
        panic!("the context is not answered: {body:?}");
    }

    #[track_caller]
    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the node reads");
    }

    /// The next PDU: its type and what follows its length.
    fn read_pdu(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 6];
        self.stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_be_bytes([head[2], head[3], head[4], head[5]]) as usize];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// The status of the next response.
    #[track_caller]
    fn read_status(&mut self) -> u16 {
        let (kind, body) = self.read_pdu().expect("a response");
        assert_eq!(kind, P_DATA, "no response: {body:?}");
        // Elements of the command set, implicit little endian, after PDV length, context and control header.
        let mut rest = &body[6..];
        while rest.len() >= 8 {
            let length = u32::from_le_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
            if rest[..4] == [0x00, 0x00, 0x00, 0x09] {
                return u16::from_le_bytes([rest[8], rest[9]]);
            }
            rest = &rest[8 + length..];
        }
        panic!("the response has no status: {body:?}");
    }

    #[track_caller]
    fn send_store_command(&mut self, sop_class: &str, sop_instance: &str) {
        self.message_id += 1;
        let command = command_set(&[
            (0x0002, padded_uid(sop_class)),
            (0x0100, 0x0001_u16.to_le_bytes().to_vec()),
            (0x0110, self.message_id.to_le_bytes().to_vec()),
            (0x0700, 0_u16.to_le_bytes().to_vec()),
            (0x0800, 0x0001_u16.to_le_bytes().to_vec()),
            (0x1000, padded_uid(sop_instance)),
        ]);
        self.send(&p_data(STORE_CONTEXT, 0x03, &command));
    }

    /// A whole C-STORE; the status of its response.
    #[track_caller]
    pub(crate) fn store(&mut self, sop_class: &str, sop_instance: &str, data_set: &[u8]) -> u16 {
        self.send_store_command(sop_class, sop_instance);
        let pieces: Vec<&[u8]> = data_set.chunks(16 * 1024).collect();
        for (index, piece) in pieces.iter().enumerate() {
            let last = index + 1 == pieces.len();
            self.send(&p_data(STORE_CONTEXT, if last { 0x02 } else { 0x00 }, piece));
        }
        self.read_status()
    }

    /// The same with so many bytes of zeros as Pixel Data, which are never in memory.
    #[track_caller]
    pub(crate) fn store_with_pixels(&mut self, sop_class: &str, sop_instance: &str, pixel_bytes: u32) -> u16 {
        self.send_store_command(sop_class, sop_instance);
        let mut head = plain_header(sop_class, sop_instance);
        head.extend(long_element(0x7FE0, 0x0010, *b"OW", pixel_bytes));
        self.send(&p_data(STORE_CONTEXT, 0x00, &head));
        let block = vec![0; 100_000];
        let mut left = pixel_bytes as usize;
        while left > 0 {
            let piece = &block[..left.min(block.len())];
            left -= piece.len();
            self.send(&p_data(STORE_CONTEXT, if left == 0 { 0x02 } else { 0x00 }, piece));
        }
        self.read_status()
    }

    /// C-ECHO; the status of its response.
    #[track_caller]
    pub(crate) fn echo(&mut self) -> u16 {
        self.message_id += 1;
        let command = command_set(&[
            (0x0002, padded_uid(VERIFICATION)),
            (0x0100, 0x0030_u16.to_le_bytes().to_vec()),
            (0x0110, self.message_id.to_le_bytes().to_vec()),
            (0x0800, 0x0101_u16.to_le_bytes().to_vec()),
        ]);
        self.send(&p_data(ECHO_CONTEXT, 0x03, &command));
        self.read_status()
    }

    /// An orderly end.
    #[track_caller]
    pub(crate) fn release(mut self) {
        self.send(&[0x05, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        assert_eq!(self.read_pdu().expect("an answer").0, RELEASE_RESPONSE);
    }
}

fn association_request(calling: &str, called: &str) -> Vec<u8> {
    association_request_for(calling, called, CR_STORAGE, EXPLICIT_LITTLE_ENDIAN)
}

fn association_request_for(calling: &str, called: &str, sop_class: &str, transfer_syntax: &str) -> Vec<u8> {
    let item = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).expect("short").to_be_bytes();
        [&[kind, 0][..], &length, content].concat()
    };
    let context = |id: u8, abstract_syntax: &str, transfer_syntax: &str| {
        let inside =
            [vec![id, 0, 0, 0], item(0x30, abstract_syntax.as_bytes()), item(0x40, transfer_syntax.as_bytes())]
                .concat();
        item(0x20, &inside)
    };
    let user = [item(0x51, &16_384_u32.to_be_bytes()), item(0x52, b"2.25.123456789"), item(0x55, b"RAW_PEER")].concat();
    let body = [
        vec![0, 1, 0, 0],
        format!("{called:<16}{calling:<16}").into_bytes(),
        vec![0; 32],
        item(0x10, b"1.2.840.10008.3.1.1.1"),
        context(STORE_CONTEXT, sop_class, transfer_syntax),
        context(ECHO_CONTEXT, VERIFICATION, IMPLICIT_LITTLE_ENDIAN),
        item(0x50, &user),
    ]
    .concat();
    pdu(0x01, &body)
}

fn pdu(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[kind, 0][..], &length, body].concat()
}

/// One P-DATA-TF with one PDV; `control` bit 0: command, bit 1: last.
fn p_data(context_id: u8, control: u8, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len() + 2).expect("short").to_be_bytes();
    pdu(P_DATA, &[&length[..], &[context_id, control], data].concat())
}

/// A command set of group 0000 with its group length.
fn command_set(elements: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let element = |number: u16, value: &[u8]| {
        let length = u32::try_from(value.len()).expect("short").to_le_bytes();
        [&[0, 0][..], &number.to_le_bytes(), &length, value].concat()
    };
    let body: Vec<u8> = elements.iter().flat_map(|(number, value)| element(*number, value)).collect();
    let length = u32::try_from(body.len()).expect("short").to_le_bytes();
    [element(0, &length), body].concat()
}

fn padded_uid(uid: &str) -> Vec<u8> {
    let mut bytes = uid.as_bytes().to_vec();
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    bytes
}

/// An element in Explicit VR Little Endian with a short length.
fn element(group: u16, number: u16, vr: [u8; 2], value: &str) -> Vec<u8> {
    let mut value = value.as_bytes().to_vec();
    if value.len() % 2 == 1 {
        value.push(if vr == *b"UI" { 0 } else { b' ' });
    }
    let length = u16::try_from(value.len()).expect("short").to_le_bytes();
    [&group.to_le_bytes()[..], &number.to_le_bytes(), &vr, &length, &value].concat()
}

/// The header of an element with a long length; the value follows.
fn long_element(group: u16, number: u16, vr: [u8; 2], length: u32) -> Vec<u8> {
    [&group.to_le_bytes()[..], &number.to_le_bytes(), &vr, &[0, 0], &length.to_le_bytes()].concat()
}

/// A CR data set with what filing needs and no pixels.
pub(crate) fn plain_header(sop_class: &str, sop_instance: &str) -> Vec<u8> {
    header_around(sop_class, sop_instance, &fresh_uid(), &[], &[])
}

/// The same with bytes before (0010,xxxx) and at the end.
fn header_around(sop_class: &str, sop_instance: &str, study: &str, early: &[u8], late: &[u8]) -> Vec<u8> {
    [
        element(0x0008, 0x0016, *b"UI", sop_class),
        element(0x0008, 0x0018, *b"UI", sop_instance),
        element(0x0008, 0x0060, *b"CS", "CR"),
        early.to_vec(),
        element(0x0010, 0x0020, *b"LO", "HOSTILE"),
        element(0x0020, 0x000D, *b"UI", study),
        element(0x0020, 0x000E, *b"UI", &fresh_uid()),
        element(0x0020, 0x0013, *b"IS", "1"),
        late.to_vec(),
    ]
    .concat()
}

/// `depth` sequences, each the only element of the item before, 20 bytes each, never closed.
fn nested(group: u16, number: u16, depth: usize) -> Vec<u8> {
    let level = [long_element(group, number, *b"SQ", u32::MAX), vec![0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF]];
    level.concat().repeat(depth)
}

/// Nothing is stored, nothing half received is left, and the node serves the next one.
#[track_caller]
fn assert_nothing_stored(node: &Node) {
    wait_for("nothing half received is left", PATIENCE, || {
        files_below(&node.data_folder.join("archive/incoming"), "part").is_empty().then_some(())
    });
    assert!(files_below(&node.data_folder.join("archive/objects"), "dcm").is_empty());
    assert_eq!(node.database.count("select 1 from instance"), 0);
    assert_eq!(RawPeer::associate(node.dicom_port, "SCANNER", "HILUM").echo(), 0x0000);
    assert_eq!(http::get(node.http_port, "/readyz").map(|answer| answer.status), Some(200));
}

/// Waits for the first association that ended like this and returns its words.
#[track_caller]
fn ended(node: &Node, kind: &str) -> String {
    let query = format!("select end_words from association where end_kind = '{kind}'");
    let row = node.database.wait_for_rows(1, &query).remove(0);
    row["end_words"].as_str().expect("words").to_owned()
}

#[test]
fn a_peer_that_vanishes_in_the_middle_of_an_object_leaves_nothing() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let uid = fresh_uid();
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    peer.send_store_command(CR_STORAGE, &uid);
    let half =
        [plain_header(CR_STORAGE, &uid), long_element(0x7FE0, 0x0010, *b"OW", 8_000_000), vec![0; 60_000]].concat();
    peer.send(&p_data(STORE_CONTEXT, 0x00, &half));
    // The file is made with the first MiB.
    for _ in 0..40 {
        peer.send(&p_data(STORE_CONTEXT, 0x00, &vec![0; 60_000]));
    }
    wait_for("the object is being received", PATIENCE, || {
        (!files_below(&node.data_folder.join("archive/incoming"), "part").is_empty()).then_some(())
    });
    drop(peer);
    let words = ended(&node, "connection_lost");
    assert!(words.starts_with("connection lost: "), "{words}");
    assert_nothing_stored(&node);

    // In the middle of a PDU, and by A-ABORT.
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    peer.send_store_command(CR_STORAGE, &uid);
    let whole = p_data(STORE_CONTEXT, 0x02, &half);
    peer.send(&whole[..whole.len() / 2]);
    drop(peer);
    let lost = "select 1 from association where end_words like '%in the middle of a PDU'";
    node.database.wait_for_rows(1, lost);
    let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    peer.send_store_command(CR_STORAGE, &uid);
    peer.send(&p_data(STORE_CONTEXT, 0x00, &half));
    peer.send(&pdu(ABORT, &[0, 0, 0, 0]));
    ended(&node, "aborted");
    assert_nothing_stored(&node);
}

#[test]
fn a_peer_that_stalls_is_timed_out() {
    let pacs = StoreScp::start();
    let options = NodeOptions::default()
        .setting("HILUM__DICOM__IDLE_TIMEOUT_SECONDS", 1)
        .setting("HILUM__DICOM__MESSAGE_TIMEOUT_SECONDS", 2);
    let node = Node::start_with(&Site::usual(pacs.port), options);

    // Silence between messages.
    let mut idle = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    let (kind, _) = idle.read_pdu().expect("an abort");
    assert_eq!(kind, ABORT);
    assert!(ended(&node, "timed_out").contains("the association was idle for too long"));

    // An object that trickles: each fragment comes in time, the whole does not.
    let uid = fresh_uid();
    let mut slow = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
    slow.send_store_command(CR_STORAGE, &uid);
    slow.send(&p_data(STORE_CONTEXT, 0x00, &plain_header(CR_STORAGE, &uid)));
    let started = Instant::now();
    slow.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let aborted = loop {
        match slow.read_pdu() {
            Ok((kind, _)) => break kind,
            Err(error) => {
                let waiting = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind());
                assert!(waiting, "the connection broke without an abort: {error}");
                assert!(started.elapsed() < PATIENCE, "the node waits for ever");
                let _ = slow.stream.write_all(&p_data(STORE_CONTEXT, 0x00, &[0; 2]));
            }
        }
    };
    assert_eq!(aborted, ABORT);
    assert!(started.elapsed() < Duration::from_secs(10), "it took {:?}", started.elapsed());
    let rows =
        node.database.wait_for_rows(2, "select end_words from association where end_kind = 'timed_out' order by id");
    assert!(rows[1]["end_words"].as_str().expect("words").contains("a message took too long"), "{rows:?}");

    // Bytes that trickle inside one P-DATA-TF: of a command, and of a data set.
    let command = p_data(STORE_CONTEXT, 0x03, &command_set(&[(0x0002, padded_uid(CR_STORAGE))]));
    let data = p_data(STORE_CONTEXT, 0x00, &[0; 200]);
    for (n_timed_out, pdu, after_command) in [(3, command, false), (4, data, true)] {
        let mut slow = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
        if after_command {
            slow.send_store_command(CR_STORAGE, &fresh_uid());
        }
        let started = Instant::now();
        slow.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket");
        let mut bytes = pdu.iter();
        let aborted = loop {
            if let Ok((kind, _)) = slow.read_pdu() {
                break kind;
            }
            assert!(started.elapsed() < PATIENCE, "the node waits for ever");
            // Never the last byte.
            let _ = slow.stream.write_all(&[*bytes.next().filter(|_| bytes.len() > 1).unwrap_or(&0)]);
        };
        assert_eq!(aborted, ABORT);
        node.database.wait_for_rows(n_timed_out, "select 1 from association where end_kind = 'timed_out'");
    }
    assert_nothing_stored(&node);
}

#[test]
fn a_slow_loris_is_cut_off_and_others_are_served() {
    let pacs = StoreScp::start();
    let options = NodeOptions::default().setting("HILUM__DICOM__ASSOCIATION_REQUEST_TIMEOUT_SECONDS", 2);
    let node = Node::start_with(&Site::usual(pacs.port), options);
    let request = association_request("SCANNER", "HILUM");
    let started = Instant::now();
    // One address may hold 48 connections: there is room for those who are quick.
    let mut slow: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", node.dicom_port)).expect("the node listens")).collect();
    for stream in &slow {
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a socket");
    }
    let mut sent = 0;
    while !slow.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(20), "{} connections are still open", slow.len());
        slow.retain_mut(|stream| {
            let mut buffer = [0; 64];
            // One byte at a time never ends the request; an end of file or a reset ends the connection.
            let written = stream.write_all(&request[sent..=sent]).is_ok();
            let open = match stream.read(&mut buffer) {
                Ok(0) => false,
                Ok(_) => true,
                Err(error) => [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut].contains(&error.kind()),
            };
            written && open
        });
        sent = (sent + 1).min(60);
        assert_eq!(RawPeer::associate(node.dicom_port, "SCANNER", "HILUM").echo(), 0x0000);
    }
    assert!(started.elapsed() >= Duration::from_secs(1), "cut off before the time limit");
    assert_nothing_stored(&node);
}

#[test]
fn one_association_more_than_the_limit_is_rejected_transiently() {
    let pacs = StoreScp::start();
    // The default is 64, of which one peer and one address may take only a part.
    let options = NodeOptions::default()
        .setting("HILUM__DICOM__MAX_CONNECTIONS_PER_ADDRESS", 96)
        .setting("HILUM__POLICY__MAX_ASSOCIATIONS", 64);
    let node = Node::start_with(&Site::usual(pacs.port), options);
    let mut open: Vec<RawPeer> = (0..64).map(|_| RawPeer::associate(node.dicom_port, "SCANNER", "HILUM")).collect();
    let mut one_more = RawPeer::connect(node.dicom_port);
    one_more.send(&association_request("SCANNER", "HILUM"));
    let (kind, body) = one_more.read_pdu().expect("an answer");
    // PS3.8 table 9-21: transient; service provider, presentation related; local limit exceeded.
    assert_eq!((kind, body[1], body[2], body[3]), (ASSOCIATE_REJECT, 2, 3, 2));
    let refusal = node.database.wait_for_rows(1, "select expected, remedy from refusal");
    assert_eq!(refusal[0]["expected"], "at most 64 associations at once");
    assert!(open.iter_mut().all(|peer| peer.echo() == 0x0000), "an open association suffered");

    open.pop().expect("64 of them").release();
    let again = wait_for("there is room again", PATIENCE, || {
        let mut peer = RawPeer::connect(node.dicom_port);
        peer.send(&association_request("SCANNER", "HILUM"));
        (peer.read_pdu().expect("an answer").0 == ASSOCIATE_ACCEPT).then_some(peer)
    });
    again.release();
}

/// Sequences nested far deeper than a recursive parser survives.
#[test]
fn deeply_nested_objects_crash_nobody() {
    let pacs = StoreScp::start();
    let mut node = Node::start(&Site::usual(pacs.port));
    let inference = node.inference_process_id().expect("the inference process runs");
    for depth in [2_000, 100_000] {
        let mut peer = RawPeer::associate(node.dicom_port, "SCANNER", "HILUM");
        // In front of what filing needs: refused, and the association goes on.
        let uid = fresh_uid();
        let early = header_around(CR_STORAGE, &uid, &fresh_uid(), &nested(0x0008, 0x1140, depth), &[]);
        assert_eq!(peer.store(CR_STORAGE, &uid, &early), 0xC000, "depth {depth}");
        assert_eq!(peer.echo(), 0x0000);

        // Behind it: kept bit for bit, and the study is answered with the reason why it is not analysed.
        let (uid, study) = (fresh_uid(), fresh_uid());
        let late = header_around(CR_STORAGE, &uid, &study, &[], &nested(0x0040, 0x0275, depth));
        assert_eq!(peer.store(CR_STORAGE, &uid, &late), 0x0000, "depth {depth}");
        // A study waits for the end of the associations that have stored to it.
        peer.release();
        node.wait_for_workup(&study, "answered");
        let run = node.database.row(&format!(
            "select r.state, r.reason, r.words from run r join workup w on w.id = r.workup_id \
             where w.study_instance_uid = '{study}'"
        ));
        assert_eq!(
            (run["state"].as_str(), run["reason"].as_str()),
            (Some("not_analysed"), Some("input.undecodable")),
            "{run}"
        );
        let key = node.database.row(&format!("select archive_key from instance where sop_instance_uid = '{uid}'"));
        let file = node.archived(key["archive_key"].as_str().expect("a key"));
        assert!(super::support::data_set_bytes(&file) == late, "not kept bit for bit");
    }
    assert_eq!(node.inference_process_id(), Some(inference), "the inference process died");
    node.wait_until_ready();
}

/// A radiograph in JPEG 2000 with this codestream.
fn in_jpeg_2000(codestream: Vec<u8>, rows: u16, columns: u16, folder: &Path) -> Sample {
    let mut object = Radiograph { rows, columns, ..Radiograph::default() }.object();
    let fragments: PixelFragmentSequence<Vec<u8>> = PixelFragmentSequence::new_fragments(vec![codestream]);
    object.put_element(DataElement::new(tags::PIXEL_DATA, VR::OB, fragments));
    object.update_meta(|meta| uids::JPEG2000_LOSSLESS.clone_into(&mut meta.transfer_syntax));
    Sample::write(&object, folder)
}

/// Codestreams that are noise, cut off, or lie about their size: each study gets its answer in words or is parked,
/// and the good study between them gets its report.
#[test]
fn heavy_broken_codestreams_cost_nobody_else_anything() {
    let pacs = StoreScp::start();
    let node = Node::start(&Site::usual(pacs.port));
    let folder = node.scratch("broken");
    let real = dicom_object::open_file(fixture("RG1_J2KR.dcm")).expect("a DICOM file");
    let fragment = real
        .element(tags::PIXEL_DATA)
        .expect("pixels")
        .fragments()
        .and_then(|fragments| fragments.first().cloned())
        .expect("a fragment");
    let (rows, columns) = (1955_u16, 1841_u16);
    let mut noise: u32 = 1;
    let garbage: Vec<u8> = [0xFF, 0x4F, 0xFF, 0x51]
        .into_iter()
        .chain((0..50_000).map(|_| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (noise >> 24) as u8
        }))
        .collect();
    let cut = fragment[..fragment.len() / 3].to_vec();
    let mut scrambled = fragment.clone();
    for index in (400..scrambled.len()).step_by(97) {
        scrambled[index] ^= 0x5A;
    }
    // SIZ: marker, length, capabilities, then width and height of the grid as 32-bit numbers (ISO 15444-1 A.5.1).
    let mut giant = fragment.clone();
    let siz = giant.windows(2).position(|two| two == [0xFF, 0x51]).expect("a SIZ marker");
    giant[siz + 6..siz + 14].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    let broken = [
        in_jpeg_2000(garbage, 320, 288, &folder),
        in_jpeg_2000(cut, rows, columns, &folder),
        in_jpeg_2000(scrambled, rows, columns, &folder),
        in_jpeg_2000(giant, rows, columns, &folder),
        in_jpeg_2000(Vec::new(), rows, columns, &folder),
    ];
    let good = Radiograph::default().write(&folder);
    let mut real = real;
    set_uids(&mut real, &fresh_uid(), &fresh_uid(), &fresh_uid());
    let also_good = Sample::write(&real, &folder);
    node.send("SCANNER", &[&folder]);
    for sample in [&good, &also_good] {
        node.wait_for_workup(&sample.study_instance_uid, "answered");
        let run = node.database.row(&format!(
            "select r.state, r.words from run r join workup w on w.id = r.workup_id where w.study_instance_uid = '{}'",
            sample.study_instance_uid
        ));
        assert_eq!(run["state"], "succeeded", "{run}");
    }
    for sample in &broken {
        let run = wait_for("the broken study has its end", PATIENCE, || {
            let query = format!(
                "select w.state as workup, r.state, r.reason, r.words from workup w join run r on r.workup_id = w.id \
                 where w.study_instance_uid = '{}' and w.state in ('answered', 'parked')",
                sample.study_instance_uid
            );
            node.database.rows(&query).pop()
        });
        // A codec may also make some picture of a damaged stream: then there is a result, as any viewer would have.
        let words = run["words"].as_str().unwrap_or_default();
        assert!(["succeeded", "not_analysed", "parked"].contains(&run["state"].as_str().unwrap_or_default()), "{run}");
        assert!(!words.is_empty(), "{run}");
        if run["state"] == "not_analysed" {
            assert_eq!(run["reason"], "input.undecodable", "{run}");
        }
    }
    let refused = "select 1 from run where state in ('not_analysed', 'parked')";
    assert!(node.database.count(refused) >= 3, "noise, nothing and a lie about the size were analysed");
    assert_eq!(node.database.count("select 1 from run where state in ('queued', 'running', 'failed')"), 0);
    assert_eq!(http::get(node.http_port, "/healthz").map(|answer| answer.status), Some(200));
}
