//! Dates and times of a result in one offset from UTC (PS3.3 section C.12.1.1.8).

use dicom_dictionary_std::tags;
use time::{OffsetDateTime, UtcOffset};

use super::{RenderOptions, source::SourceHeader};

/// When the analysis began, expressed so that generated and copied dates and times agree.
pub(super) struct Moment {
    /// (0008,0201), when there is one to write.
    pub(super) timezone_offset: Option<String>,
    local: OffsetDateTime,
}

impl Moment {
    /// See [`RenderOptions::site_utc_offset`] for the rule.
    pub(super) fn new(started_at: OffsetDateTime, source: &SourceHeader, options: &RenderOptions) -> Self {
        let of_source = source.ascii(tags::TIMEZONE_OFFSET_FROM_UTC).and_then(|text| parse(&text));
        let written = of_source.or(options.site_utc_offset);
        Self {
            timezone_offset: written.map(format),
            local: started_at.to_offset(written.unwrap_or(started_at.offset())),
        }
    }

    /// Value of a DA attribute.
    pub(super) fn date(&self) -> String {
        let date = self.local.date();
        format!("{:04}{:02}{:02}", date.year(), u8::from(date.month()), date.day())
    }

    /// Value of a TM attribute.
    pub(super) fn time(&self) -> String {
        let (hour, minute, second, microsecond) = self.local.time().as_hms_micro();
        format!("{hour:02}{minute:02}{second:02}.{microsecond:06}")
    }

    /// Value of a DT attribute, which names its own offset.
    pub(super) fn date_time(&self) -> String {
        format!("{}{}{}", self.date(), self.time(), format(self.local.offset()))
    }
}

/// `&ZZXX`; offsets that DICOM does not know (beyond -1200 to +1400, or `-0000`) are nothing.
fn parse(text: &str) -> Option<UtcOffset> {
    let sign = match text.get(..1)? {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let digits =
        text.get(1..).filter(|digits| digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (hours, minutes): (i8, i8) = (digits.get(..2)?.parse().ok()?, digits.get(2..)?.parse().ok()?);
    let total = sign * (i32::from(hours) * 60 + i32::from(minutes));
    if minutes > 59 || !(-720..=840).contains(&total) || text == "-0000" {
        return None;
    }
    UtcOffset::from_hms(sign as i8 * hours, sign as i8 * minutes, 0).ok()
}

fn format(offset: UtcOffset) -> String {
    let minutes = offset.whole_minutes();
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

#[cfg(test)]
mod tests {
    use time::macros::offset;

    use super::*;

    #[test]
    fn offsets_are_read_and_written_as_the_standard_has_them() {
        for (text, expected) in
            [("+0000", offset!(UTC)), ("-0500", offset!(-5)), ("+0545", offset!(+5:45)), ("-0330", offset!(-3:30))]
        {
            assert_eq!(parse(text), Some(expected));
            assert_eq!(format(expected), text);
        }
        for illegal in ["-0000", "+1500", "-1300", "+0060", "0100", "+01", "+1", "+01:0", "+1é0"] {
            assert_eq!(parse(illegal), None, "{illegal}");
        }
    }
}
