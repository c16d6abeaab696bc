//! What people call SOP classes and transfer syntaxes.

use std::borrow::Cow;

use dicom_core::dictionary::{UidDictionary, UidDictionaryEntry};
use dicom_dictionary_std::{StandardSopClassDictionary, uids};

/// Short names, ours first in our order of preference.
const TRANSFER_SYNTAXES: &[(&str, &str)] = &[
    (uids::EXPLICIT_VR_LITTLE_ENDIAN, "Explicit VR Little Endian"),
    (uids::IMPLICIT_VR_LITTLE_ENDIAN, "Implicit VR Little Endian"),
    (uids::RLE_LOSSLESS, "RLE Lossless"),
    (uids::JPEGLS_LOSSLESS, "JPEG-LS Lossless"),
    (uids::JPEG_LOSSLESS_SV1, "JPEG Lossless SV1"),
    (uids::JPEG_LOSSLESS, "JPEG Lossless"),
    (uids::JPEG2000_LOSSLESS, "JPEG 2000 Lossless"),
    (uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "Deflated Explicit VR Little Endian"),
    ("1.2.840.10008.1.2.2", "Explicit VR Big Endian"),
    (uids::JPEGLS_NEAR_LOSSLESS, "JPEG-LS Near-Lossless"),
    (uids::JPEG2000, "JPEG 2000"),
    (uids::JPEG_BASELINE8_BIT, "JPEG Baseline"),
    (uids::JPEG_EXTENDED12_BIT, "JPEG Extended"),
    ("1.2.840.10008.1.2.4.201", "HTJ2K Lossless"),
    ("1.2.840.10008.1.2.4.202", "HTJ2K Lossless RPCL"),
    ("1.2.840.10008.1.2.4.203", "HTJ2K"),
    ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
    ("1.2.840.10008.1.2.4.112", "JPEG XL"),
    ("1.2.840.10008.1.2.4.100", "MPEG-2 Main Profile"),
    ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC High Profile"),
    ("1.2.840.10008.1.2.4.107", "HEVC Main Profile"),
];

/// The transfer syntaxes that have a short name here.
pub fn named_transfer_syntaxes() -> impl Iterator<Item = &'static str> {
    TRANSFER_SYNTAXES.iter().map(|(uid, _)| *uid)
}

/// The short name of a transfer syntax; what has none, and what a peer made up, is given as the UID, harmless to show.
pub fn transfer_syntax_name(uid: &str) -> Cow<'static, str> {
    match TRANSFER_SYNTAXES.iter().find(|(known, _)| *known == uid) {
        Some((_, name)) => Cow::Borrowed(name),
        None => Cow::Owned(harmless(uid)),
    }
}

/// The standard's name of a SOP class with its UID: `CT Image Storage (1.2.840.10008.5.1.4.1.1.2)`; the UID alone, harmless
/// to show, where the standard has none.
pub fn sop_class_name(uid: &str) -> String {
    match StandardSopClassDictionary.by_uid(uid) {
        Some(entry) => format!("{} ({uid})", entry.name()),
        None => harmless(uid),
    }
}

/// A stranger's text without what could command a terminal or forge a line; cut to the length of a UID.
fn harmless(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_accepted_has_a_name_and_what_is_made_up_is_harmless() {
        for uid in super::super::negotiation::DECODABLE_TRANSFER_SYNTAXES {
            assert_ne!(transfer_syntax_name(uid), *uid);
        }
        assert_eq!(sop_class_name(uids::CT_IMAGE_STORAGE), "CT Image Storage (1.2.840.10008.5.1.4.1.1.2)");
        assert_eq!(sop_class_name("9.9\u{1b}[2J"), "9.9\\u{1b}[2J");
        assert_eq!(transfer_syntax_name("1.2\n3"), "1.2\\n3");
        assert_eq!(transfer_syntax_name(&"1".repeat(500)).len(), 64);
    }
}
