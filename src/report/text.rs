//! The character set of a result and the limits of its texts.

use std::borrow::Cow;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::tags;
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};

use super::source::{Element, SourceHeader};
use crate::types::decode_text;

/// Character sets of one value without escape sequences, in which generated text can be written as it is.
const PLAIN_SETS: [&str; 12] = [
    "ISO_IR 192",
    "ISO_IR 100",
    "ISO_IR 101",
    "ISO_IR 109",
    "ISO_IR 110",
    "ISO_IR 126",
    "ISO_IR 127",
    "ISO_IR 138",
    "ISO_IR 144",
    "ISO_IR 166",
    "GB18030",
    "GBK",
];

/// How the texts of one object are written: in the character set of the source, which is kept so that copied
/// bytes stay what they were and a study does not mix sets; in another one only where that set lacks characters of a
/// generated text.
#[derive(Clone)]
pub(super) struct TextEncoding {
    /// (0008,0005); `None` leaves it out (default repertoire).
    pub(super) character_set: Option<Element>,
    /// The value of (0008,0005) of what is copied.
    source_set: Option<String>,
    codec: Option<SpecificCharacterSet>,
    /// Copied texts are in `source_set` and go out in another one.
    decodes_copies: bool,
}

impl TextEncoding {
    /// The set of `source`, or `assumed` when it declares none although the copied values need one.
    pub(super) fn of_source(source: &SourceHeader, copied_beyond_ascii: bool, assumed: &str) -> Self {
        let name = source.character_set().or_else(|| copied_beyond_ascii.then(|| assumed.to_owned()));
        let character_set = name.as_ref().map(|name| match source.element(tags::SPECIFIC_CHARACTER_SET) {
            Some(declared) if source.character_set().is_some() => declared.clone(),
            _ => character_set(name),
        });
        let codec = name.as_deref().and_then(codec);
        Self { character_set, source_set: name, codec, decodes_copies: false }
    }

    /// The encoding in which every one of the generated `texts` can be written: this one where it can, else GB18030 for a
    /// source in GBK, whose bytes stay, else UTF-8, for which what is copied is decoded.
    pub(super) fn for_texts(&self, texts: &[&str]) -> Self {
        let fits = |encoding: &Self| texts.iter().all(|text| encoding.exact(text).is_some());
        if fits(self) {
            return self.clone();
        }
        let other = |name: &str, decodes_copies| Self {
            character_set: Some(character_set(name)),
            source_set: self.source_set.clone(),
            codec: codec(name),
            decodes_copies,
        };
        if self.source_set.as_deref() == Some("GBK") {
            let superset = other("GB18030", false);
            if fits(&superset) {
                return superset;
            }
        }
        other("ISO_IR 192", true)
    }

    /// The bytes of a generated text. Characters that the set lacks (or that would contain the byte of a
    /// backslash) are written in ASCII.
    pub(super) fn encode(&self, text: &str) -> Vec<u8> {
        self.exact(text).unwrap_or_else(|| ascii(text).into_bytes())
    }

    /// The bytes of a generated text, common signs spelled in ASCII where the set lacks them; `None` when it lacks others.
    fn exact(&self, text: &str) -> Option<Vec<u8>> {
        let encoded = |text: &str| {
            if text.is_ascii() {
                return Some(text.as_bytes().to_vec());
            }
            let bytes = self.codec.as_ref()?.encode(text).ok()?;
            // A second byte that is a backslash cuts the value in two for who does not know the set.
            let is_whole = bytes.split(|byte| *byte == b'\\').count() == text.split('\\').count();
            is_whole.then_some(bytes)
        };
        encoded(text).or_else(|| encoded(&spelled(text)))
    }

    /// The bytes of a copied text in this encoding; `None` where they stay what they are. `item_set` is the value of
    /// (0008,0005) of the item that it stands in, where that has its own.
    pub(super) fn copied(&self, bytes: &[u8], vr: VR, item_set: Option<&[u8]>) -> Option<Vec<u8>> {
        let is_text = matches!(vr, VR::PN | VR::LO | VR::SH | VR::ST | VR::LT | VR::UT | VR::UC);
        if !self.decodes_copies || !is_text || (bytes.is_ascii() && !bytes.contains(&0x1b)) {
            return None;
        }
        let set = item_set.or(self.source_set.as_deref().map(str::as_bytes));
        let text = decode_text(set, bytes, vr == VR::PN);
        Some(text.trim_end_matches([' ', '\0']).as_bytes().to_vec())
    }

    /// Whether items keep a (0008,0005) of their own.
    pub(super) const fn keeps_copies(&self) -> bool {
        !self.decodes_copies
    }
}

fn codec(name: &str) -> Option<SpecificCharacterSet> {
    PLAIN_SETS.contains(&name).then(|| SpecificCharacterSet::from_code(name)).flatten()
}

fn character_set(name: &str) -> Element {
    DataElement::new(tags::SPECIFIC_CHARACTER_SET, VR::CS, PrimitiveValue::from(name))
}

/// The text in ASCII: common signs are spelled, others become `?`.
pub(super) fn ascii(text: &str) -> String {
    spelled(text).chars().map(|character| if character.is_ascii() { character } else { '?' }).collect()
}

/// The text with common signs spelled in ASCII.
fn spelled(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{2010}'..='\u{2015}' | '\u{2212}' => out.push('-'),
            '\u{2018}' | '\u{2019}' => out.push('\''),
            '\u{201c}' | '\u{201d}' => out.push('"'),
            '\u{2026}' => out.push_str("..."),
            '\u{a0}' | '\u{2009}' | '\u{202f}' => out.push(' '),
            '\u{d7}' => out.push('x'),
            '\u{b1}' => out.push_str("+/-"),
            '\u{2264}' => out.push_str("<="),
            '\u{2265}' => out.push_str(">="),
            other => out.push(other),
        }
    }
    out
}

/// A text for a value of one line (LO, SH): no control characters, no backslash (it would separate values),
/// no padding, at most `limit` characters.
pub(super) fn single_line(text: &str, limit: usize) -> String {
    let clean: String = text
        .trim()
        .chars()
        .map(|character| match character {
            '\\' => '/',
            control if control.is_control() => ' ',
            other => other,
        })
        .take(limit)
        .collect();
    clean.trim_end().to_owned()
}

/// A text for a value of several lines (ST, LT, UT): line breaks stay, at most `limit` characters.
pub(super) fn multi_line(text: &str, limit: usize) -> String {
    let clean: String = text
        .replace("\r\n", "\n")
        .chars()
        .flat_map(|character| {
            match character {
                '\n' => Cow::Borrowed("\r\n"),
                control if control.is_control() => Cow::Borrowed(" "),
                other => Cow::Owned(other.to_string()),
            }
            .chars()
            .collect::<Vec<_>>()
        })
        .take(limit)
        .collect();
    clean.trim_end().to_owned()
}

/// A number as Decimal String: at most 16 characters (PS3.5 section 6.2); `None` unless it is finite.
pub(super) fn decimal_string(value: f64) -> Option<String> {
    if !value.is_finite() {
        return None;
    }
    let shortest = |text: String| {
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        if text == "-0" { "0".to_owned() } else { text.to_owned() }
    };
    (0..=10)
        .rev()
        .map(|decimals| shortest(format!("{value:.decimals$}")))
        .find(|text| text.len() <= 16)
        .or_else(|| Some(format!("{value:.7e}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_set(set: &str) -> TextEncoding {
        let source_set = Some(set.to_owned()).filter(|set| !set.is_empty());
        TextEncoding { character_set: None, source_set, codec: codec(set), decodes_copies: false }
    }

    fn declared(encoding: &TextEncoding) -> Option<String> {
        Some(encoding.character_set.as_ref()?.to_str().unwrap().into_owned())
    }

    #[test]
    fn the_set_of_the_source_stays_unless_it_lacks_a_generated_character() {
        for set in ["", "ISO_IR 100", "GBK", "\\ISO 2022 IR 87"] {
            let kept = in_set(set).for_texts(&["AI result", "5 \u{2265} 4"]);
            assert!(declared(&kept).is_none() && kept.keeps_copies(), "{set}");
        }
        let chinese = ["AI 结果 - 不可用于诊断"];
        assert!(in_set("GBK").for_texts(&chinese).keeps_copies());
        assert!(in_set("GB18030").for_texts(&chinese).keeps_copies());
        // Beyond GBK; and a character whose second byte is a backslash.
        assert_eq!(declared(&in_set("GBK").for_texts(&["한"])).as_deref(), Some("GB18030"));
        assert_eq!(declared(&in_set("GB18030").for_texts(&["誠"])).as_deref(), Some("ISO_IR 192"));
        for set in ["", "ISO_IR 100", "\\ISO 2022 IR 87"] {
            let unicode = in_set(set).for_texts(&chinese);
            assert_eq!(declared(&unicode).as_deref(), Some("ISO_IR 192"), "{set}");
            assert_eq!(unicode.encode(chinese[0]), chinese[0].as_bytes());
        }
    }

    #[test]
    fn copied_texts_are_decoded_where_the_set_changes() {
        let japanese = in_set("\\ISO 2022 IR 87");
        let name = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B ";
        assert_eq!(japanese.copied(name, VR::PN, None), None);
        let unicode = japanese.for_texts(&["结果"]);
        assert_eq!(unicode.copied(name, VR::PN, None).unwrap(), "Yamada^Tarou=山田^太郎".as_bytes());
        assert_eq!(unicode.copied(b"J\xe9", VR::LO, Some(b"ISO_IR 100")).unwrap(), "Jé".as_bytes());
        assert_eq!(unicode.copied(b"1.2.3", VR::UI, None), None);
        assert_eq!(unicode.copied(b"Plain ", VR::LO, None), None);
    }

    #[test]
    fn decimal_strings_are_short_and_exact_enough() {
        assert_eq!(decimal_string(87.266_7).as_deref(), Some("87.2667"));
        assert_eq!(decimal_string(0.872_667 * 100.0).as_deref(), Some("87.2667"));
        assert_eq!(decimal_string(-0.0).as_deref(), Some("0"));
        assert_eq!(decimal_string(100.0).as_deref(), Some("100"));
        assert_eq!(decimal_string(100.0 / 3.0).as_deref(), Some("33.3333333333"));
        assert_eq!(decimal_string(-1.234_567_8e200).as_deref(), Some("-1.2345678e200"));
        assert_eq!(decimal_string(f64::NAN), None);
        assert_eq!(decimal_string(f64::NEG_INFINITY), None);
    }

    #[test]
    fn texts_are_cut_by_characters_not_bytes() {
        assert_eq!(single_line(&"诚".repeat(70), 64).chars().count(), 64);
        assert_eq!(single_line("  a\\b\u{7}c  ", 64), "a/b c");
        assert_eq!(multi_line("a\\b\nc\u{0}", 1024), "a\\b\r\nc");
        assert_eq!(multi_line(&"x".repeat(2000), 1024).len(), 1024);
    }

    #[test]
    fn generated_text_follows_the_set_of_the_source() {
        let encoding = in_set;
        assert_eq!(encoding("ISO_IR 192").encode("é≥"), "é≥".as_bytes());
        assert_eq!(encoding("ISO_IR 100").encode("é"), [0xe9]);
        assert_eq!(encoding("ISO_IR 100").encode("5 ≥ 4 诚"), b"5 >= 4 ?");
        assert_eq!(encoding("GB18030").encode("中"), [0xd6, 0xd0]);
        // The second byte of this character is that of a backslash.
        assert_eq!(encoding("GB18030").encode("誠"), b"?");
        assert_eq!(encoding("\\ISO 2022 IR 87").encode("中 – a"), b"? - a");
    }

    proptest! {
        #[test]
        fn every_number_fits_a_decimal_string(value in proptest::num::f64::ANY) {
            if let Some(text) = decimal_string(value) {
                prop_assert!(text.len() <= 16, "{text}");
                let read: f64 = text.parse().unwrap();
                prop_assert!((read - value).abs() <= 1e-6_f64.max(value.abs() * 1e-6), "{text} for {value}");
            } else {
                prop_assert!(!value.is_finite());
            }
        }

        #[test]
        fn every_text_fits_its_limit(text in ".{0,200}") {
            let cut = single_line(&text, 64);
            prop_assert!(cut.chars().count() <= 64);
            prop_assert!(!cut.contains('\\') && !cut.chars().any(char::is_control));
            prop_assert!(in_set("").encode(&cut).is_ascii());
            // What one encoding lacks, another one has.
            for set in ["", "ISO_IR 100", "GBK", "GB18030", "\\ISO 2022 IR 87"] {
                prop_assert!(in_set(set).for_texts(&[&cut]).exact(&cut).is_some(), "{set}");
            }
        }
    }
}
