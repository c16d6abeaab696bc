//! Reads the few attributes that the index needs from a data set, without recursion and without holding it.
//!
//! The process that receives must survive any bytes: dicom-object's reader recurses into nested sequences until
//! the stack ends, so this one walks the elements of PS3.5 chapter 7 in a loop, skips values by seeking, and
//! stops after the last attribute it wants.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Seek, SeekFrom},
};

use crate::types::{ObjectHeader, Uid, UidError, decode_text};

/// Why a data set's header is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The bytes end or make no sense.
    #[error("the data set cannot be read: {0}")]
    Malformed(String),
    /// An identifier without which the object cannot be filed.
    #[error("{0} is missing or empty in the data set")]
    Missing(&'static str),
    /// An identifier that is not a UID.
    #[error("{what} in the data set is not valid: {problem}")]
    BadUid {
        /// Which attribute.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The data set is another object than the command announced.
    #[error("{what} is {announced} in the C-STORE request but {found} in the data set")]
    Announced {
        /// Which attribute.
        what: &'static str,
        /// In the request.
        announced: Uid,
        /// In the data set.
        found: Uid,
    },
    /// The file meta group is not ours.
    #[error("file meta: {0}")]
    FileMeta(String),
}

/// How deep sequences may nest in front of the attributes that we need.
const MAXIMUM_DEPTH: usize = 64;
/// How many elements may stand in front of the attributes that we need.
const MAXIMUM_ELEMENTS: usize = 200_000;
/// The longest value that is kept; longer ones are cut.
const MAXIMUM_VALUE_BYTES: u32 = 16 * 1024;
/// How much of a deflated data set is inflated in search of the attributes that we need.
const MAXIMUM_INFLATED_BYTES: u64 = 64 << 20;
/// Deflated Explicit VR Little Endian.
const DEFLATED: &str = "1.2.840.10008.1.2.1.99";
/// The last attribute of [`WANTED`].
const LAST_WANTED: u32 = 0x0020_0013;
const PATIENT_NAME: u32 = 0x0010_0010;
const UNDEFINED_LENGTH: u32 = 0xFFFF_FFFF;

const WANTED: [u32; 19] = [
    0x0008_0005,
    0x0008_0016,
    0x0008_0018,
    0x0008_0020,
    0x0008_0030,
    0x0008_0050,
    0x0008_0060,
    0x0008_1030,
    0x0008_103E,
    0x0010_0010,
    0x0010_0020,
    0x0010_0030,
    0x0010_0040,
    0x0018_0015,
    0x0018_1002,
    0x0020_000D,
    0x0020_000E,
    0x0020_0011,
    0x0020_0013,
];

/// Reads the header of a data set that starts at the reader's position.
pub(super) fn read(reader: &mut (impl BufRead + Seek), transfer_syntax_uid: &Uid) -> Result<ObjectHeader, HeaderError> {
    let encoding = Encoding::of(transfer_syntax_uid);
    let values = if transfer_syntax_uid.as_str() == DEFLATED {
        let inflated = io::BufReader::new(flate2::bufread::DeflateDecoder::new(reader));
        collect(&mut Draining { reader: inflated, left: MAXIMUM_INFLATED_BYTES }, encoding)
    } else {
        collect(&mut Seeking::new(reader)?, encoding)
    }?;
    header_from(&values)
}

/// The header of a data set of which `beginning` is the beginning, as [`read`] finds it in the whole; `None` when more is
/// needed to know it.
pub(super) fn read_beginning(beginning: &[u8], transfer_syntax_uid: &Uid) -> Option<ObjectHeader> {
    if transfer_syntax_uid.as_str() == DEFLATED {
        return None;
    }
    let values = collect(&mut Beginning(beginning), Encoding::of(transfer_syntax_uid)).ok()?;
    header_from(&values).ok()
}

/// The header of a data set in memory, as [`super::Archive`] reads it from a file.
///
/// # Errors
/// [`HeaderError`] when the bytes are no data set, or one that cannot be filed.
pub fn read_header(data_set: &[u8], transfer_syntax_uid: &Uid) -> Result<ObjectHeader, HeaderError> {
    read(&mut io::Cursor::new(data_set), transfer_syntax_uid)
}

/// A source of bytes that can skip.
trait Source: Read {
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// Skips by seeking, never beyond the end: what a length declares must be there.
struct Seeking<'a, R> {
    reader: &'a mut R,
    left: u64,
}

impl<'a, R: Seek> Seeking<'a, R> {
    fn new(reader: &'a mut R) -> Result<Self, HeaderError> {
        let to_the_end = |reader: &mut R| -> io::Result<u64> {
            let start = reader.stream_position()?;
            let end = reader.seek(SeekFrom::End(0))?;
            reader.seek(SeekFrom::Start(start))?;
            Ok(end.saturating_sub(start))
        };
        let left = to_the_end(reader).map_err(|error| HeaderError::Malformed(error.to_string()))?;
        Ok(Self { reader, left })
    }
}

impl<R: Read> Read for Seeking<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.left = self.left.saturating_sub(count as u64);
        Ok(count)
    }
}

impl<R: BufRead + Seek> Source for Seeking<'_, R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        self.left =
            self.left.checked_sub(count).ok_or_else(|| io::Error::other("a value is longer than what is left"))?;
        let count = i64::try_from(count).map_err(io::Error::other)?;
        // Unlike `seek`, this keeps what is in the buffer.
        self.reader.seek_relative(count)
    }
}

/// The first bytes of something longer: whoever wants more than these has not come to the end, but gets an error.
struct Beginning<'a>(&'a [u8]);

impl Read for Beginning<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { self.0.read(buffer) }
    }
}

impl Source for Beginning<'_> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let rest = usize::try_from(count).ok().and_then(|count| self.0.get(count..));
        self.0 = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// Skips by reading, and gives up after so many bytes: a small deflated object may inflate for hours.
struct Draining<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Draining<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| {
            io::Error::other(format!("it inflates to more than {MAXIMUM_INFLATED_BYTES} bytes before (0020,0013)"))
        })?;
        Ok(count)
    }
}

impl<R: Read> Source for Draining<R> {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        match io::copy(&mut self.by_ref().take(count), &mut io::sink())? {
            skipped if skipped == count => Ok(()),
            _ => Err(io::Error::other("a value is longer than what is left")),
        }
    }
}

#[derive(Clone, Copy)]
struct Encoding {
    explicit_vr: bool,
    big_endian: bool,
}

impl Encoding {
    fn of(transfer_syntax_uid: &Uid) -> Self {
        match transfer_syntax_uid.as_str() {
            "1.2.840.10008.1.2" => Self { explicit_vr: false, big_endian: false },
            "1.2.840.10008.1.2.2" => Self { explicit_vr: true, big_endian: true },
            _ => Self { explicit_vr: true, big_endian: false },
        }
    }

    fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

/// The raw values of the wanted attributes at the top level, by tag.
fn collect(source: &mut impl Source, encoding: Encoding) -> Result<BTreeMap<u32, Vec<u8>>, HeaderError> {
    let mut values = BTreeMap::new();
    // Inside a sequence or item of undefined length; an undefined-length UN value is Implicit VR Little Endian
    // inside, whatever is outside (PS3.5 section 6.2.2, note 4).
    let mut depth = 0_usize;
    let mut implicit_from_depth: Option<usize> = None;
    for _ in 0..MAXIMUM_ELEMENTS {
        let current = match implicit_from_depth {
            Some(from) if depth >= from => Encoding { explicit_vr: false, big_endian: false },
            _ => encoding,
        };
        let Some((tag, vr, length)) = element_header(source, current)? else {
            return if depth == 0 { Ok(values) } else { Err(malformed("it ends inside a sequence")) };
        };
        match tag {
            0xFFFE_E000 => {
                if depth == 0 {
                    return Err(malformed("an item stands outside of a sequence"));
                }
                if length == UNDEFINED_LENGTH { depth += 1 } else { skip(source, length)? }
            }
            0xFFFE_E00D | 0xFFFE_E0DD => {
                depth = depth.checked_sub(1).ok_or_else(|| malformed("a delimiter stands outside of a sequence"))?;
                if implicit_from_depth.is_some_and(|from| depth < from) {
                    implicit_from_depth = None;
                }
            }
            _ if length == UNDEFINED_LENGTH => {
                if depth == 0 && tag > LAST_WANTED {
                    return Ok(values);
                }
                depth += 1;
                if vr == *b"UN" && implicit_from_depth.is_none() {
                    implicit_from_depth = Some(depth);
                }
            }
            _ if depth == 0 && tag > LAST_WANTED => return Ok(values),
            _ if depth == 0 && WANTED.contains(&tag) => {
                let kept = length.min(MAXIMUM_VALUE_BYTES);
                let mut value = vec![0; kept as usize];
                source.read_exact(&mut value).map_err(|_| malformed("it ends inside a value"))?;
                skip(source, length - kept)?;
                values.insert(tag, value);
            }
            _ => skip(source, length)?,
        }
        if depth > MAXIMUM_DEPTH {
            return Err(malformed(&format!("sequences are nested more than {MAXIMUM_DEPTH} deep")));
        }
    }
    Err(malformed(&format!("more than {MAXIMUM_ELEMENTS} elements stand before (0020,0013)")))
}

fn malformed(problem: &str) -> HeaderError {
    HeaderError::Malformed(problem.to_owned())
}

fn skip(source: &mut impl Source, length: u32) -> Result<(), HeaderError> {
    source.skip(u64::from(length)).map_err(|error| HeaderError::Malformed(error.to_string()))
}

/// Tag, VR (two spaces where there is none) and value length; `None` at the end of the data.
fn element_header(source: &mut impl Source, encoding: Encoding) -> Result<Option<(u32, [u8; 2], u32)>, HeaderError> {
    let mut start = [0; 8];
    let mut filled = 0;
    while filled < start.len() {
        let Some(rest) = start.get_mut(filled..) else { break };
        match source.read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(malformed("it ends inside an element header")),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(HeaderError::Malformed(error.to_string())),
        }
    }
    let [g0, g1, e0, e1, a, b, c, d] = start;
    let tag = u32::from(encoding.u16([g0, g1])) << 16 | u32::from(encoding.u16([e0, e1]));
    if tag >> 16 == 0xFFFE || !encoding.explicit_vr {
        return Ok(Some((tag, *b"  ", encoding.u32([a, b, c, d]))));
    }
    let vr = [a, b];
    let long_form = matches!(
        &vr,
        b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UN" | b"UR" | b"UT" | b"UV"
    );
    if !long_form {
        if !vr.iter().all(u8::is_ascii_uppercase) {
            return Err(HeaderError::Malformed(format!(
                "element ({:04X},{:04X}) has no value representation, as if it were Implicit VR",
                tag >> 16,
                tag & 0xFFFF
            )));
        }
        return Ok(Some((tag, vr, u32::from(encoding.u16([c, d])))));
    }
    let mut length = [0; 4];
    source.read_exact(&mut length).map_err(|_| malformed("it ends inside an element header"))?;
    Ok(Some((tag, vr, encoding.u32(length))))
}

/// What is wrong with a UID, without its text: the reason is logged and answered, and anything may stand there.
fn problem_of(error: &UidError) -> String {
    match error {
        UidError::Empty => "it is empty".to_owned(),
        UidError::TooLong(_, length) => {
            format!("it has {length} characters, at most 64 are allowed (PS3.5 section 9.1)")
        }
        UidError::Malformed(_) => "only digits in dot-separated components are allowed (PS3.5 section 9.1)".to_owned(),
    }
}

fn header_from(values: &BTreeMap<u32, Vec<u8>>) -> Result<ObjectHeader, HeaderError> {
    let character_set = values.get(&0x0008_0005).map(Vec::as_slice);
    let text = |tag: u32| {
        let decoded = decode_text(character_set, values.get(&tag)?, tag == PATIENT_NAME);
        let trimmed = decoded.trim_matches(['\0', ' ']);
        (!trimmed.is_empty()).then(|| trimmed.to_owned())
    };
    let uid = |tag: u32, what: &'static str| {
        let value = text(tag).ok_or(HeaderError::Missing(what))?;
        Uid::new(&value).map_err(|error| HeaderError::BadUid { what, problem: problem_of(&error) })
    };
    Ok(ObjectHeader {
        sop_class_uid: uid(0x0008_0016, "SOP Class UID (0008,0016)")?,
        sop_instance_uid: uid(0x0008_0018, "SOP Instance UID (0008,0018)")?,
        study_instance_uid: uid(0x0020_000D, "Study Instance UID (0020,000D)")?,
        series_instance_uid: uid(0x0020_000E, "Series Instance UID (0020,000E)")?,
        modality: text(0x0008_0060),
        patient_id: text(0x0010_0020),
        patient_name: text(0x0010_0010),
        patient_birth_date: text(0x0010_0030),
        patient_sex: text(0x0010_0040),
        accession_number: text(0x0008_0050),
        study_date: text(0x0008_0020),
        study_time: text(0x0008_0030),
        study_description: text(0x0008_1030),
        series_number: text(0x0020_0011).and_then(|number| number.parse().ok()),
        series_description: text(0x0008_103E),
        instance_number: text(0x0020_0013).and_then(|number| number.parse().ok()),
        body_part_examined: text(0x0018_0015),
        device_uid: text(0x0018_1002).and_then(|value| Uid::new(&value).ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const EXPLICIT: &str = "1.2.840.10008.1.2.1";
    const IMPLICIT: &str = "1.2.840.10008.1.2";

    fn read_bytes(bytes: Vec<u8>, syntax: &str) -> Result<ObjectHeader, HeaderError> {
        read(&mut Cursor::new(bytes), &Uid::new(syntax).unwrap())
    }

    fn tag_bytes(tag: u32, big_endian: bool) -> Vec<u8> {
        let (group, element) = ((tag >> 16) as u16, tag as u16);
        if big_endian {
            [group.to_be_bytes(), element.to_be_bytes()].concat()
        } else {
            [group.to_le_bytes(), element.to_le_bytes()].concat()
        }
    }

    fn explicit(tag: u32, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut bytes = tag_bytes(tag, false);
        bytes.extend(vr);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn implicit(tag: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = tag_bytes(tag, false);
        bytes.extend((value.len() as u32).to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn long(tag: u32, vr: &[u8; 2], length: u32) -> Vec<u8> {
        let mut bytes = tag_bytes(tag, false);
        bytes.extend(vr);
        bytes.extend([0, 0]);
        bytes.extend(length.to_le_bytes());
        bytes
    }

    const ITEM: [u8; 8] = [0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF];
    const ITEM_END: [u8; 8] = [0xFE, 0xFF, 0x0D, 0xE0, 0, 0, 0, 0];
    const SEQUENCE_END: [u8; 8] = [0xFE, 0xFF, 0xDD, 0xE0, 0, 0, 0, 0];

    fn uids() -> Vec<u8> {
        [explicit(0x0020_000D, b"UI", b"1.2\0"), explicit(0x0020_000E, b"UI", b"1.2.3\0")].concat()
    }

    fn head() -> Vec<u8> {
        [explicit(0x0008_0016, b"UI", b"1.9\0"), explicit(0x0008_0018, b"UI", b"1.5\0")].concat()
    }

    #[test]
    fn nested_sequences_of_undefined_length_are_walked_over() {
        let bytes = [
            head(),
            long(0x0008_1140, b"SQ", UNDEFINED_LENGTH),
            ITEM.to_vec(),
            explicit(0x0008_0018, b"UI", b"9.9\0"),
            long(0x0040_A170, b"SQ", UNDEFINED_LENGTH),
            ITEM.to_vec(),
            explicit(0x0020_000D, b"UI", b"8.8\0"),
            ITEM_END.to_vec(),
            SEQUENCE_END.to_vec(),
            ITEM_END.to_vec(),
            SEQUENCE_END.to_vec(),
            uids(),
        ]
        .concat();
        let header = read_bytes(bytes, EXPLICIT).unwrap();
        assert_eq!(header.sop_instance_uid.as_str(), "1.5");
        assert_eq!(header.study_instance_uid.as_str(), "1.2");
    }

    #[test]
    fn unknown_values_of_undefined_length_are_implicit_inside() {
        let bytes = [
            head(),
            long(0x0009_1001, b"UN", UNDEFINED_LENGTH),
            ITEM.to_vec(),
            implicit(0x0009_1002, b"AB"),
            ITEM_END.to_vec(),
            SEQUENCE_END.to_vec(),
            uids(),
        ]
        .concat();
        assert_eq!(read_bytes(bytes, EXPLICIT).unwrap().series_instance_uid.as_str(), "1.2.3");
    }

    #[test]
    fn every_native_encoding_is_read() {
        let implicit_bytes = [
            implicit(0x0008_0016, b"1.9\0"),
            implicit(0x0008_0018, b"1.5\0"),
            implicit(0x0020_000D, b"1.2\0"),
            implicit(0x0020_000E, b"1.3\0"),
        ]
        .concat();
        assert_eq!(read_bytes(implicit_bytes, IMPLICIT).unwrap().study_instance_uid.as_str(), "1.2");

        let mut big = Vec::new();
        for (tag, value) in
            [(0x0008_0016, b"1.9\0"), (0x0008_0018, b"1.5\0"), (0x0020_000D, b"1.2\0"), (0x0020_000E, b"1.3\0")]
        {
            big.extend(tag_bytes(tag, true));
            big.extend(b"UI");
            big.extend(4_u16.to_be_bytes());
            big.extend(value);
        }
        assert_eq!(read_bytes(big, "1.2.840.10008.1.2.2").unwrap().study_instance_uid.as_str(), "1.2");

        let mut deflater = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
        io::Write::write_all(&mut deflater, &[head(), uids()].concat()).unwrap();
        let deflated = deflater.finish().unwrap();
        assert_eq!(read_bytes(deflated, "1.2.840.10008.1.2.1.99").unwrap().study_instance_uid.as_str(), "1.2");
    }

    #[test]
    fn a_hundred_thousand_nested_sequences_are_an_error_not_a_crash() {
        let mut bytes = head();
        for _ in 0..100_000 {
            bytes.extend(long(0x0008_1140, b"SQ", UNDEFINED_LENGTH));
            bytes.extend(ITEM);
        }
        let error = read_bytes(bytes, EXPLICIT).unwrap_err().to_string();
        assert!(error.contains("nested more than 64 deep"), "{error}");
    }

    #[test]
    fn a_huge_declared_length_costs_no_memory() {
        let bytes = [head(), long(0x0008_1190, b"UR", 0xFFFF_FFF0)].concat();
        let error = read_bytes(bytes, EXPLICIT).unwrap_err();
        assert!(
            matches!(&error, HeaderError::Malformed(words) if words.contains("longer than what is left")),
            "{error}"
        );
    }

    #[test]
    fn a_beginning_gives_the_header_of_the_whole_or_none() {
        let bytes =
            [head(), explicit(0x0010_0010, b"PN", b"A^B "), uids(), explicit(0x0020_0013, b"IS", b"7 ")].concat();
        let complete = bytes.len();
        let bytes = [bytes, explicit(0x0028_0010, b"US", &[0, 2]), long(0x7FE0_0010, b"OW", 1 << 20)].concat();
        let explicit_vr = Uid::new(EXPLICIT).unwrap();
        for length in 0..bytes.len() {
            let found = read_beginning(&bytes[..length], &explicit_vr);
            // The element after the last wanted one says that it is the last.
            let expected = (length >= complete + 8).then(|| read_bytes(bytes.clone(), EXPLICIT).unwrap());
            assert_eq!(found, expected, "{length} of {} bytes", bytes.len());
        }
        assert_eq!(read_beginning(&bytes, &Uid::new(DEFLATED).unwrap()), None);
    }

    #[test]
    fn inflating_is_bounded() {
        use std::io::Write as _;
        // 80 KiB that inflate to 80 MiB in front of the identifiers.
        let bytes = [long(0x0008_1190, b"UR", 80 << 20), vec![b' '; 80 << 20], head(), uids()].concat();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&bytes).unwrap();
        let error = read_bytes(encoder.finish().unwrap(), "1.2.840.10008.1.2.1.99").unwrap_err();
        assert!(error.to_string().contains("inflates to more than 67108864 bytes"), "{error}");
    }

    #[test]
    fn truncated_and_missing_identifiers_are_named() {
        let mut bytes = [head(), uids()].concat();
        bytes.truncate(bytes.len() - 3);
        assert!(matches!(read_bytes(bytes, EXPLICIT), Err(HeaderError::Malformed(_))));
        let error = read_bytes(head(), EXPLICIT).unwrap_err().to_string();
        assert!(error.contains("Study Instance UID (0020,000D)"), "{error}");
        let error = read_bytes(implicit(0x0008_0016, b"1.9\0"), EXPLICIT).unwrap_err().to_string();
        assert!(error.contains("Implicit VR"), "{error}");
    }

    #[test]
    fn names_are_decoded_by_their_character_set() {
        let bytes = [
            explicit(0x0008_0005, b"CS", b"ISO_IR 192"),
            head(),
            explicit(0x0010_0010, b"PN", "Müller^Ä".as_bytes()),
            uids(),
        ]
        .concat();
        // (0008,0005) stands before (0008,0016).
        assert_eq!(read_bytes(bytes, EXPLICIT).unwrap().patient_name.as_deref(), Some("Müller^Ä"));
    }
}
