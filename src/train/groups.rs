//! The columns by which figures are told apart.

use super::sample::Sample;

/// Years from which each band of ages starts.
const AGE_BANDS: [u32; 5] = [0, 18, 40, 60, 80];

/// A column of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Where the image comes from.
    Site,
    /// How it was taken.
    View,
    /// Of the patient.
    Sex,
    /// Of the patient, in bands.
    Age,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Site, Self::View, Self::Sex, Self::Age];

    /// As lists call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::View => "view",
            Self::Sex => "sex",
            Self::Age => "age",
        }
    }
}

/// What the list says of a sample in this column, ages as the band that they are in; `None` where it says nothing.
#[must_use]
pub fn group_of(sample: &Sample, group: Group) -> Option<String> {
    match group {
        Group::Site => sample.site.clone(),
        Group::View => sample.view.clone(),
        Group::Sex => sample.sex.clone(),
        Group::Age => sample.age_years.map(age_band),
    }
}

fn age_band(years: f64) -> String {
    let starts = AGE_BANDS.iter().zip(AGE_BANDS.iter().skip(1).map(Some).chain([None]));
    let band = starts.filter(|(start, _)| years >= f64::from(**start)).last();
    match band {
        Some((start, Some(end))) => format!("{start:02} to {}", end - 1),
        Some((start, None)) => format!("{start} and over"),
        None => "not known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_put_into_bands() {
        for (years, band) in
            [(0.0, "00 to 17"), (17.9, "00 to 17"), (18.0, "18 to 39"), (79.5, "60 to 79"), (99.0, "80 and over")]
        {
            assert_eq!(age_band(years), band);
        }
    }
}
