//! The types of configuration values. Each refuses what it cannot mean, in words that say what to give instead:
//! a message of the form `…, expected X` becomes the remedy "give X".

use std::{fmt, marker::PhantomData, net::SocketAddr, ops::Deref, str::FromStr, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Unexpected, Visitor},
};
use time::UtcOffset;

/// A value that must not be shown: `Debug`, `Display` and serialisation print `[redacted]`.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Redacted<T>(T);

/// What stands for a secret.
const REDACTED: &str = "[redacted]";

impl<T> Redacted<T> {
    /// Wraps `secret`.
    pub const fn new(secret: T) -> Self {
        Self(secret)
    }

    /// The secret itself. Grep for this name to find every place that sees one.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T> Serialize for Redacted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// A number of bytes, written as `"512 MiB"`, `"4 GiB"`, `"100 MB"` or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// The text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: give a whole number and a unit, such as \"512 MiB\" or \"4 GiB\"")]
pub struct ByteSizeError(String);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// From a number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `count` × 1,048,576 bytes.
    #[must_use]
    pub const fn from_mebibytes(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// `count` × 1,073,741,824 bytes.
    #[must_use]
    pub const fn from_gibibytes(count: u32) -> Self {
        Self((count as u64) << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact =
            UNITS.iter().find(|(unit, size)| unit.ends_with("iB") && self.0 != 0 && self.0.is_multiple_of(*size));
        match exact {
            Some((unit, size)) => write!(f, "{} {unit}", self.0 / size),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ByteSizeError(text.to_owned());
        let text = text.trim();
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (count, unit) = text.split_at(digits_end);
        let count: u64 = count.parse().map_err(|_| error())?;
        let unit = unit.trim_start();
        let size = match unit {
            "" => 1,
            _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(error)?.1,
        };
        count.checked_mul(size).map(Self).ok_or_else(error)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A size from `MIN` to `MAX` bytes.
pub(super) fn size_within<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ByteSize, D::Error> {
    struct SizeVisitor<const MIN: u64, const MAX: u64>;
    impl<const MIN: u64, const MAX: u64> Visitor<'_> for SizeVisitor<MIN, MAX> {
        type Value = ByteSize;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a size from \"{}\" to \"{}\"", ByteSize(MIN), ByteSize(MAX))
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
            match text.parse::<ByteSize>() {
                Ok(size) if (MIN..=MAX).contains(&size.0) => Ok(size),
                _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
            }
        }
        fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
            if (MIN..=MAX).contains(&bytes) {
                return Ok(ByteSize(bytes));
            }
            Err(E::invalid_value(Unexpected::Unsigned(bytes), &self))
        }
        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
            match u64::try_from(bytes) {
                Ok(bytes) => self.visit_u64(bytes),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(bytes), &self)),
            }
        }
    }
    deserializer.deserialize_any(SizeVisitor::<MIN, MAX>)
}

/// A whole number from `MIN` to `MAX`.
pub(super) fn within<'de, const MIN: u64, const MAX: u64, T: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    struct RangeVisitor<const MIN: u64, const MAX: u64, T>(PhantomData<T>);
    impl<const MIN: u64, const MAX: u64, T: TryFrom<u64>> Visitor<'_> for RangeVisitor<MIN, MAX, T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a whole number from {MIN} to {MAX}")
        }
        fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
            let error = E::invalid_value(Unexpected::Unsigned(number), &self);
            if !(MIN..=MAX).contains(&number) {
                return Err(error);
            }
            T::try_from(number).map_err(|_| error)
        }
        fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
            match u64::try_from(number) {
                Ok(number) => self.visit_u64(number),
                Err(_) => Err(E::invalid_value(Unexpected::Signed(number), &self)),
            }
        }
    }
    deserializer.deserialize_any(RangeVisitor::<MIN, MAX, T>(PhantomData))
}

/// The same, where leaving the key out means something else than any size.
pub(super) fn optional_size_within<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<ByteSize>, D::Error> {
    size_within::<MIN, MAX, D>(deserializer).map(Some)
}

/// The same as [`within`], where leaving the key out means something else than any number.
pub(super) fn optional_within<'de, const MIN: u64, const MAX: u64, T: TryFrom<u64>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    within::<MIN, MAX, T, D>(deserializer).map(Some)
}

/// A whole number of seconds from `MIN` to `MAX`.
pub(super) fn seconds<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    within::<MIN, MAX, u64, D>(deserializer).map(Duration::from_secs)
}

pub(super) fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// A whole number of days from `MIN` to `MAX`.
pub(super) fn days<'de, const MIN: u64, const MAX: u64, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Duration, D::Error> {
    within::<MIN, MAX, u64, D>(deserializer).map(|count| Duration::from_secs(count * SECONDS_PER_DAY))
}

pub(super) fn as_days<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs() / SECONDS_PER_DAY)
}

pub(super) const SECONDS_PER_DAY: u64 = 24 * 60 * 60;

/// Reads a text with `parse`; what does not parse is refused with `expected`.
fn text_with<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    struct TextVisitor<F>(&'static str, F);
    impl<T, F: FnOnce(&str) -> Option<T>> Visitor<'_> for TextVisitor<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            let expected = self.0;
            (self.1)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &expected))
        }
    }
    deserializer.deserialize_any(TextVisitor(expected, parse))
}

/// An address and port to listen on.
pub(super) fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let expected = "an IP address and a port, such as \"127.0.0.1:11112\" or \"[::]:11112\"";
    text_with(deserializer, expected, |text| text.trim().parse().ok())
}

/// The same, for a key that may be left out.
pub(super) fn optional_listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    listen(deserializer).map(Some)
}

/// A directive of tracing's `EnvFilter`. A bare word must be a level: `EnvFilter` would take it for a module name.
pub(super) fn log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let expected = "off, error, warn, info, debug or trace, optionally with levels for single modules, such as \
                    \"info,hilum::dimse=debug\"";
    text_with(deserializer, expected, |text| {
        let levels_known = text
            .split(',')
            .map(str::trim)
            .filter(|directive| !directive.contains(['=', '[']))
            .all(|level| ["off", "error", "warn", "info", "debug", "trace"].contains(&level));
        let understood = tracing_subscriber::EnvFilter::builder().parse(text).is_ok();
        (levels_known && understood).then(|| text.to_owned())
    })
}

/// A Postgres URL. The value is a secret, so no message shows it.
pub(super) fn database_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Redacted<String>>, D::Error> {
    match toml::Value::deserialize(deserializer) {
        Ok(toml::Value::String(url)) if is_postgres_url(&url) => Ok(Some(Redacted::new(url))),
        _ => Err(de::Error::custom(format!("the value (not shown) is not a Postgres URL, expected {POSTGRES_URL}"))),
    }
}

pub(super) const POSTGRES_URL: &str = "a URL such as \"postgres://hilum@db.example.org/hilum\"";

pub(super) fn is_postgres_url(text: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme))
}

/// A path that is not empty.
pub(super) fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<std::path::PathBuf, D::Error> {
    text_with(deserializer, "a path", |text| (!text.trim().is_empty()).then(|| text.into()))
}

/// The same, for a key that may be left out.
pub(super) fn optional_path<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<std::path::PathBuf>, D::Error> {
    path(deserializer).map(Some)
}

/// An offset from UTC such as `+02:00`, within what DICOM allows (PS3.3 C.12.1.1.8: -12:00 to +14:00).
pub(super) fn utc_offset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UtcOffset>, D::Error> {
    let expected = "an offset from UTC from \"-12:00\" to \"+14:00\"";
    text_with(deserializer, expected, parse_utc_offset).map(Some)
}

fn parse_utc_offset(text: &str) -> Option<UtcOffset> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = rest.split_once(':')?;
    let two_digits = |part: &str| {
        (part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse::<i32>().ok()).flatten()
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    let total_minutes = sign * (hours * 60 + minutes);
    if minutes > 59 || !(-12 * 60..=14 * 60).contains(&total_minutes) {
        return None;
    }
    UtcOffset::from_whole_seconds(total_minutes * 60).ok()
}

pub(super) fn utc_offset_text(offset: UtcOffset) -> String {
    let sign = if offset.is_negative() { '-' } else { '+' };
    let (hours, minutes, _) = offset.as_hms();
    format!("{sign}{:02}:{:02}", hours.unsigned_abs(), minutes.unsigned_abs())
}

#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
pub(super) fn as_utc_offset<S: Serializer>(offset: &Option<UtcOffset>, serializer: S) -> Result<S::Ok, S::Error> {
    offset.map(utc_offset_text).serialize(serializer)
}

/// A text that becomes a DICOM attribute of at most `MAX` characters (16 for VR SH, 64 for VR LO; PS3.5 section
/// 6.2): no backslash, no control characters, no spaces at either end. May be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct DicomText<const MAX: usize>(String);

/// Why a text cannot be a DICOM attribute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} does not fit a DICOM attribute: at most {1} characters, no backslash and no control characters")]
pub struct DicomTextError(String, usize);

impl<const MAX: usize> DicomText<MAX> {
    /// Validates `text`, ignoring spaces at either end.
    pub fn new(text: &str) -> Result<Self, DicomTextError> {
        let trimmed = text.trim();
        if trimmed.chars().count() > MAX || trimmed.chars().any(|c| c == '\\' || c.is_control()) {
            return Err(DicomTextError(trimmed.to_owned(), MAX));
        }
        Ok(Self(trimmed.to_owned()))
    }
}

impl<const MAX: usize> Deref for DicomText<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for DicomText<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for DicomText<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = text_with(deserializer, "a text", |text| Some(text.to_owned()))?;
        let expected = format!("at most {MAX} characters without backslash and control characters");
        Self::new(&text).map_err(|_| de::Error::invalid_value(Unexpected::Str(&text), &expected.as_str()))
    }
}

/// A text for DICOM that must not be empty.
pub(super) fn required_text<'de, const MAX: usize, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<DicomText<MAX>, D::Error> {
    let text = DicomText::deserialize(deserializer)?;
    if text.is_empty() {
        let expected = format!("1 to {MAX} characters");
        return Err(de::Error::invalid_value(Unexpected::Str(""), &expected.as_str()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("4 GiB", Some(4 << 30))]
    #[case("512MiB", Some(512 << 20))]
    #[case("100 mb", Some(100_000_000))]
    #[case(" 17 ", Some(17))]
    #[case("0", Some(0))]
    #[case("1.5 GiB", None)]
    #[case("GiB", None)]
    #[case("-1 B", None)]
    #[case("4 GiBs", None)]
    #[case("99999999999999999999", None)]
    #[case("99999999 TiB", None)]
    fn sizes(#[case] text: &str, #[case] bytes: Option<u64>) {
        assert_eq!(text.parse::<ByteSize>().ok().map(ByteSize::bytes), bytes);
    }

    #[test]
    fn sizes_print_exactly_and_read_back() {
        for (bytes, text) in [(0, "0 B"), (1025, "1025 B"), (1 << 30, "1 GiB"), (3 << 19, "1536 KiB")] {
            assert_eq!(ByteSize::from_bytes(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(ByteSize::from_bytes(bytes)));
        }
    }

    #[rstest]
    #[case("+02:00", Some(120))]
    #[case("-09:30", Some(-570))]
    #[case("+14:00", Some(840))]
    #[case("-00:30", Some(-30))]
    #[case("+14:01", None)]
    #[case("-12:30", None)]
    #[case("02:00", None)]
    #[case("+2:00", None)]
    #[case("+02:60", None)]
    #[case("Z", None)]
    #[case("", None)]
    #[case("é02:00", None)]
    fn utc_offsets(#[case] text: &str, #[case] minutes: Option<i16>) {
        let offset = parse_utc_offset(text);
        assert_eq!(offset.map(UtcOffset::whole_minutes), minutes);
        if let Some(offset) = offset {
            assert_eq!(utc_offset_text(offset), text);
        }
    }

    #[test]
    fn a_redacted_value_never_shows() {
        let secret = Redacted::new("hunter2".to_owned());
        assert_eq!(format!("{secret} {secret:?} {secret:#?}"), "[redacted] [redacted] [redacted]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"[redacted]\"");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn dicom_texts_fit_their_attribute() {
        assert_eq!(&*DicomText::<16>::new(" Radiology 1 ").unwrap(), "Radiology 1");
        assert_eq!(&*DicomText::<4>::new("Ωμέγ").unwrap(), "Ωμέγ", "characters count, not bytes");
        assert!(DicomText::<16>::new("a\\b").is_err());
        assert!(DicomText::<16>::new("a\nb").is_err());
        assert!(DicomText::<16>::new("12345678901234567").unwrap_err().to_string().contains("at most 16"));
    }
}
