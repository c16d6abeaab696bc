//! Specific Character Set (0008,0005): bytes of text to Unicode, with the code extensions of ISO 2022 (PS3.5 section
//! 6.1, PS3.3 C.12.1.1.2).
//!
//! dicom-rs reads the first value of (0008,0005) only and splits values at byte 5CH before it decodes them, which
//! cuts GB18030, GBK and JIS X 0208 characters in two. Here a whole value is decoded in one pass, and a byte 5CH is a
//! delimiter only where no character of several bytes is open.

use encoding_rs::{
    EUC_JP, EUC_KR, Encoding, GB18030, GBK, ISO_8859_2, ISO_8859_3, ISO_8859_4, ISO_8859_5, ISO_8859_6, ISO_8859_7,
    ISO_8859_8, ISO_8859_15, UTF_8, WINDOWS_874, WINDOWS_1254,
};

const ESCAPE: u8 = 0x1B;

/// What to decode the texts of one data set with.
#[derive(Debug, Clone, Copy)]
enum CharacterSet {
    /// Absent, or no value of it is known: UTF-8 where the bytes are that, otherwise ISO 8859-1.
    Unknown,
    /// A set without code extensions: ISO_IR 192, GB18030, GBK.
    Whole(&'static Encoding),
    /// Sets of ISO 2022: what G1 holds at the beginning and after each delimiter. G0 is ASCII then.
    CodeExtensions { initial_g1: Option<Set> },
}

/// A coded graphic character set. Those of G0 have bytes below 80H, those of G1 above.
#[derive(Debug, Clone, Copy)]
enum Set {
    /// ISO 646; JIS X 0201 Romaji as well, whose 5CH is a delimiter all the same.
    Ascii,
    /// ISO 8859-1.
    Latin1,
    /// The upper half of a set with one byte for each character.
    Upper(&'static Encoding),
    /// JIS X 0201 Katakana.
    Katakana,
    /// JIS X 0208, two bytes in G0.
    Kanji,
    /// JIS X 0212, two bytes in G0.
    SupplementaryKanji,
    /// KS X 1001, two bytes in G1.
    Hangul,
    /// GB 2312, two bytes in G1.
    Hanzi,
}

/// Which half of the code table an escape sequence fills.
enum Designation {
    G0(Set),
    G1(Set),
}

/// Text of a data set as Unicode: `character_set` is the value of (0008,0005), `None` when it is absent.
///
/// Nothing fails: bytes that the set does not know become U+FFFD, and without a known set the bytes count as UTF-8 or,
/// where they are not, as ISO 8859-1.
#[must_use]
pub fn decode_text(character_set: Option<&[u8]>, bytes: &[u8], is_person_name: bool) -> String {
    CharacterSet::of_value(character_set).decode(bytes, is_person_name)
}

/// The final bytes of escape sequences (PS3.3 tables C.12-3 and C.12-4).
fn designation(after_escape: &[u8]) -> Option<(usize, Designation)> {
    use Designation::{G0, G1};
    Some(match after_escape {
        [b'(', b'B' | b'J', ..] => (2, G0(Set::Ascii)),
        [b'$', b'B' | b'@', ..] => (2, G0(Set::Kanji)),
        [b'$', b'(', b'D', ..] => (3, G0(Set::SupplementaryKanji)),
        [b'$', b')', b'C', ..] => (3, G1(Set::Hangul)),
        [b'$', b')', b'A', ..] => (3, G1(Set::Hanzi)),
        [b')', b'I', ..] => (2, G1(Set::Katakana)),
        [b'-', b'A', ..] => (2, G1(Set::Latin1)),
        [b'-', b'B', ..] => (2, G1(Set::Upper(ISO_8859_2))),
        [b'-', b'C', ..] => (2, G1(Set::Upper(ISO_8859_3))),
        [b'-', b'D', ..] => (2, G1(Set::Upper(ISO_8859_4))),
        [b'-', b'L', ..] => (2, G1(Set::Upper(ISO_8859_5))),
        [b'-', b'G', ..] => (2, G1(Set::Upper(ISO_8859_6))),
        [b'-', b'F', ..] => (2, G1(Set::Upper(ISO_8859_7))),
        [b'-', b'H', ..] => (2, G1(Set::Upper(ISO_8859_8))),
        [b'-', b'M', ..] => (2, G1(Set::Upper(WINDOWS_1254))),
        [b'-', b'b', ..] => (2, G1(Set::Upper(ISO_8859_15))),
        [b'-', b'T', ..] => (2, G1(Set::Upper(WINDOWS_874))),
        _ => return None,
    })
}

/// One defined term; `None` for one that is not known.
fn of_defined_term(term: &str) -> Option<CharacterSet> {
    // `ISO_IR 100`, `ISO-IR 100` and `ISO 2022-IR 100` all occur.
    let letters: String =
        term.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_uppercase()).collect();
    let registration = letters.strip_prefix("ISO2022IR").or_else(|| letters.strip_prefix("ISOIR"));
    let initial_g1 = match registration.unwrap_or(&letters) {
        "192" | "UTF8" => return Some(CharacterSet::Whole(UTF_8)),
        "GB18030" => return Some(CharacterSet::Whole(GB18030)),
        "GBK" => return Some(CharacterSet::Whole(GBK)),
        // No upper half, or none before an escape sequence.
        "6" | "87" | "159" => None,
        "100" => Some(Set::Latin1),
        "101" => Some(Set::Upper(ISO_8859_2)),
        "109" => Some(Set::Upper(ISO_8859_3)),
        "110" => Some(Set::Upper(ISO_8859_4)),
        "144" => Some(Set::Upper(ISO_8859_5)),
        "127" => Some(Set::Upper(ISO_8859_6)),
        "126" => Some(Set::Upper(ISO_8859_7)),
        "138" => Some(Set::Upper(ISO_8859_8)),
        "148" => Some(Set::Upper(WINDOWS_1254)),
        "203" => Some(Set::Upper(ISO_8859_15)),
        "166" => Some(Set::Upper(WINDOWS_874)),
        "13" => Some(Set::Katakana),
        "149" => Some(Set::Hangul),
        "58" => Some(Set::Hanzi),
        _ => return None,
    };
    Some(CharacterSet::CodeExtensions { initial_g1 })
}

impl CharacterSet {
    /// Of the bytes of (0008,0005), `None` when it is absent.
    fn of_value(value: Option<&[u8]>) -> Self {
        let value = String::from_utf8_lossy(value.unwrap_or_default());
        let mut found = Self::Unknown;
        for (index, term) in value.split('\\').map(|term| term.trim_matches(['\0', ' '])).enumerate() {
            let set = match of_defined_term(term) {
                Some(set) => set,
                // An empty first value stands for ISO-IR 6 when there are others.
                None if index == 0 && term.is_empty() && value.contains('\\') => {
                    Self::CodeExtensions { initial_g1: None }
                }
                None => continue,
            };
            // Bytes above 7FH before any escape sequence are not allowed when the first set has none, and occur: they
            // are taken to be of the first set that has.
            let is_open = match found {
                Self::Unknown => true,
                Self::CodeExtensions { initial_g1 } => initial_g1.is_none() && !matches!(set, Self::Whole(_)),
                Self::Whole(_) => false,
            };
            if is_open {
                found = set;
            }
        }
        found
    }

    /// Decodes one whole value, delimiters included. A person name's component delimiters reset the sets too. What
    /// its set does not know becomes U+FFFD.
    fn decode(self, bytes: &[u8], is_person_name: bool) -> String {
        match self {
            Self::Unknown => undeclared(bytes),
            Self::Whole(encoding) => encoding.decode_without_bom_handling(bytes).0.into_owned(),
            Self::CodeExtensions { initial_g1: None } if !bytes.contains(&ESCAPE) => undeclared(bytes),
            Self::CodeExtensions { initial_g1 } => with_code_extensions(bytes, initial_g1, is_person_name),
        }
    }
}

fn undeclared(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

fn with_code_extensions(bytes: &[u8], initial_g1: Option<Set>, is_person_name: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    let (mut g0, mut g1) = (Set::Ascii, initial_g1);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        if byte == ESCAPE
            && let Some((length, designation)) = designation(after)
        {
            match designation {
                Designation::G0(set) => g0 = set,
                Designation::G1(set) => g1 = Some(set),
            }
            rest = after.get(length..).unwrap_or_default();
            continue;
        }
        let set = if byte < 0x80 { Some(g0) } else { g1 };
        let second = after.first().copied();
        if let (Some(set), Some(second)) = (set, second)
            && let Some(character) = of_two_bytes(set, byte, second)
        {
            text.push_str(&character);
            rest = after.get(1..).unwrap_or_default();
            continue;
        }
        let is_delimiter =
            matches!(byte, b'\\' | b'\t' | b'\n' | b'\r' | 0x0C) || is_person_name && matches!(byte, b'^' | b'=');
        if is_delimiter {
            (g0, g1) = (Set::Ascii, initial_g1);
        }
        text.push(of_one_byte(set, byte));
        rest = after;
    }
    text
}

/// A character of two bytes, if the set has such and these are one.
fn of_two_bytes(set: Set, first: u8, second: u8) -> Option<String> {
    let is_pair = (0x21..=0x7E).contains(&(first & 0x7F)) && (0x21..=0x7E).contains(&(second & 0x7F));
    if !is_pair || (first ^ second) & 0x80 != 0 {
        return None;
    }
    let (first, second) = (first | 0x80, second | 0x80);
    let (encoding, bytes): (_, &[u8]) = match set {
        Set::Kanji => (EUC_JP, &[first, second]),
        Set::SupplementaryKanji => (EUC_JP, &[0x8F, first, second]),
        Set::Hangul => (EUC_KR, &[first, second]),
        Set::Hanzi => (GBK, &[first, second]),
        Set::Ascii | Set::Latin1 | Set::Upper(_) | Set::Katakana => return None,
    };
    Some(encoding.decode_without_bom_handling(bytes).0.into_owned())
}

fn of_one_byte(set: Option<Set>, byte: u8) -> char {
    match set {
        _ if byte < 0x80 => char::from(byte),
        Some(Set::Latin1) => char::from(byte),
        Some(Set::Katakana) if (0xA1..=0xDF).contains(&byte) => {
            char::from_u32(0xFF61 + u32::from(byte - 0xA1)).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        Some(Set::Upper(encoding)) => {
            encoding.decode_without_bom_handling(&[byte]).0.chars().next().unwrap_or(char::REPLACEMENT_CHARACTER)
        }
        _ => char::REPLACEMENT_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(character_set: &str, bytes: &[u8]) -> String {
        CharacterSet::of_value(Some(character_set.as_bytes())).decode(bytes, true)
    }

    /// Examples of PS3.5 annexes H, I, J and K, and of the sets that stand alone.
    #[test]
    fn names_of_the_standards_examples_are_decoded() {
        let japanese = b"Yamada^Tarou=\x1B$B;3ED\x1B(B^\x1B$BB@O:\x1B(B=\x1B$B$d$^$@\x1B(B^\x1B$B$?$m$&\x1B(B";
        assert_eq!(name("\\ISO 2022 IR 87", japanese), "Yamada^Tarou=山田^太郎=やまだ^たろう");
        let half_width =
            b"\xD4\xCF\xC0\xDE^\xC0\xDB\xB3=\x1B$B;3ED\x1B(J^\x1B$BB@O:\x1B(J=\x1B$B$d$^$@\x1B(J^\x1B$B$?$m$&\x1B(J";
        assert_eq!(name("ISO 2022 IR 13\\ISO 2022 IR 87", half_width), "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう");
        let korean = b"Hong^Gildong=\x1B$)C\xFB\xF3^\x1B$)C\xD1\xCE\xD4\xD7=\x1B$)C\xC8\xAB^\x1B$)C\xB1\xE6\xB5\xBF";
        assert_eq!(name("\\ISO 2022 IR 149", korean), "Hong^Gildong=洪^吉洞=홍^길동");
        let chinese = b"Zhang^XiaoDong=\x1B$)A\xD5\xC5^\x1B$)A\xD0\xA1\xB6\xAB=";
        assert_eq!(name("\\ISO 2022 IR 58", chinese), "Zhang^XiaoDong=张^小东=");
        assert_eq!(name("GB18030", b"Wang^XiaoDong=\xCD\xF5^\xD0\xA1\xB6\xAB="), "Wang^XiaoDong=王^小东=");
        assert_eq!(name("ISO_IR 100", b"Buc^J\xE9r\xF4me"), "Buc^Jérôme");
        assert_eq!(name("ISO_IR 144", b"\xBB\xEEkceM\xD1yp\xD3"), "ЛюkceMбypг");
        assert_eq!(name("ISO_IR 166", b"\xCA\xC1\xAA\xD2\xC2"), "สมชาย");
        assert_eq!(name("ISO_IR 192", "Jérôme 王".as_bytes()), "Jérôme 王");
        let mixed = b"Dionysios=\x1B-F\xC4\xE9\xEF\xED\xF5\xF3\xE9\xEF\xF2=\x1B-L\xBB\xEE\xDA";
        assert_eq!(name("ISO 2022 IR 100\\ISO 2022 IR 126\\ISO 2022 IR 144", mixed), "Dionysios=Διονυσιος=Люк");
    }

    #[test]
    fn a_trail_byte_of_5c_is_no_delimiter() {
        assert_eq!(name("GB18030", b"\xD5\x5C^A\\B"), "誠^A\\B");
        assert_eq!(name("GBK", b"\xD5\x5C"), "誠");
        // JIS X 0208 3F5CH and 245EH, whose second bytes are those of the delimiters `\` and `^`.
        assert_eq!(name("\\ISO 2022 IR 87", b"\x1B$B?\\$^\x1B(B\\x"), "仄ま\\x".replace('仄', &kanji(0x3F, 0x5C)));
    }

    fn kanji(first: u8, second: u8) -> String {
        EUC_JP.decode(&[first | 0x80, second | 0x80]).0.into_owned()
    }

    #[test]
    fn delimiters_bring_the_first_set_back() {
        let set = "ISO 2022 IR 100\\ISO 2022 IR 126";
        assert_eq!(name(set, b"\x1B-F\xE1^\xE9"), "α^é");
        let decoded = CharacterSet::of_value(Some(set.as_bytes())).decode(b"\x1B-F\xE1^\xE1\\\xE9\r\n\xE9", false);
        assert_eq!(decoded, "α^α\\é\r\né");
    }

    #[test]
    fn sets_that_are_missing_unknown_or_misspelt_are_forgiven() {
        assert_eq!(CharacterSet::of_value(None).decode(b"J\xE9", true), "Jé");
        assert_eq!(CharacterSet::of_value(None).decode("山".as_bytes(), true), "山");
        assert_eq!(name("ISO_IR 999", b"J\xE9"), "Jé");
        assert_eq!(name("iso-ir 126", b"\xE1"), "α");
        assert_eq!(name("ISO2022_IR_149", b"\xC8\xAB"), "홍");
        assert_eq!(name("\\ISO 2022 IR 149", b"\xC8\xAB"), "홍");
        // Not of the declared set, an escape sequence that nobody knows, one that is cut off.
        assert_eq!(name("ISO_IR 13", b"\xFE"), "\u{FFFD}");
        assert_eq!(name("ISO 2022 IR 100\\ISO 2022 IR 87", b"\x1B%Gx"), "\u{1B}%Gx");
        assert_eq!(name("\\ISO 2022 IR 87", b"\x1B$"), "\u{1B}$");
        assert_eq!(name("\\ISO 2022 IR 87", b"\x1B$B;"), ";");
    }

    proptest! {
        #[test]
        fn decoding_never_panics(set in "[A-Z0-9_ \\\\]{0,40}", bytes: Vec<u8>, is_person_name: bool) {
            let _ = CharacterSet::of_value(Some(set.as_bytes())).decode(&bytes, is_person_name);
        }

        #[test]
        fn escape_sequences_anywhere_never_panic(pieces in prop::collection::vec(prop::sample::select(vec![
            &b"\x1B"[..], b"$B", b"$(D", b"$)C", b"-F", b"\\", b"^", b"=", b"\x5C\x5C", b"\xD5\x5C", b"\xA1", b";",
        ]), 0..20)) {
            for set in ["\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 159", "ISO_IR 149", "GB18030", "ISO_IR 192"] {
                let _ = name(set, &pieces.concat());
            }
        }
    }
}
