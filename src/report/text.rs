//! The character set of a result and the limits of its texts.

use std::borrow::Cow;

use dicom_core::{DataElement, PrimitiveValue, VR};
use dicom_dictionary_std::tags;
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};

use super::source::{Element, SourceHeader};

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
/// bytes stay what they were and a study does not mix sets.
pub(super) struct TextEncoding {
    /// (0008,0005); `None` leaves it out (default repertoire).
    pub(super) character_set: Option<Element>,
    codec: Option<SpecificCharacterSet>,
}

impl TextEncoding {
    /// The set of `source`, or `assumed` when it declares none although the copied values need one.
    pub(super) fn of_source(source: &SourceHeader, copied_beyond_ascii: bool, assumed: &str) -> Self {
        let name = source.character_set().or_else(|| copied_beyond_ascii.then(|| assumed.to_owned()));
        let codec = name.as_deref().filter(|set| PLAIN_SETS.contains(set)).and_then(SpecificCharacterSet::from_code);
        let character_set = name.map(|name| match source.element(tags::SPECIFIC_CHARACTER_SET) {
            Some(declared) if source.character_set().is_some() => declared.clone(),
            _ => DataElement::new(tags::SPECIFIC_CHARACTER_SET, VR::CS, PrimitiveValue::from(name)),
        });
        Self { character_set, codec }
    }

    /// The bytes of a generated text. Characters that the set lacks (or that would contain the byte of a
    /// backslash) are written in ASCII.
    pub(super) fn encode(&self, text: &str) -> Vec<u8> {
        if !text.is_ascii()
            && let Some(codec) = &self.codec
            && let Ok(bytes) = codec.encode(text)
            && bytes.split(|byte| *byte == b'\\').count() == text.split('\\').count()
        {
            return bytes;
        }
        ascii(text).into_bytes()
    }
}

/// The text in ASCII: common signs are spelled, others become `?`.
pub(super) fn ascii(text: &str) -> String {
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
            ascii if ascii.is_ascii() => out.push(ascii),
            _ => out.push('?'),
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
        let encoding = |set: &str| TextEncoding {
            character_set: None,
            codec: PLAIN_SETS.contains(&set).then(|| SpecificCharacterSet::from_code(set)).flatten(),
        };
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
            let encoding = TextEncoding { character_set: None, codec: None };
            prop_assert!(encoding.encode(&cut).is_ascii());
        }
    }
}
