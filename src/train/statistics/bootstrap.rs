//! Percentile intervals by resampling patients (Efron and Tibshirani 1993, chapter 13): images of one patient go together.

use serde::Serialize;

use super::Undefined;
use crate::nn::seeded;

/// Largest share of the resamples in which a figure may be undefined: more, and what is left is a selection.
const MOST_UNDEFINED: f64 = 0.05;

/// An interval by resampling.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bootstrap {
    /// The 2.5 and 97.5 percentiles.
    pub interval: [f64; 2],
    /// Patients that were drawn from.
    pub patients: usize,
    /// Resamples in which the figure could be computed.
    pub resamples: usize,
}

/// The 95 % interval of `figure`, which gets the indices of the images of each resample. As many patients are drawn, with
/// replacement, as there are; the same seed draws the same.
///
/// # Errors
/// [`Undefined`] with fewer than two patients, or when the figure cannot be computed in more than one resample in twenty.
pub fn bootstrap(
    patients: &[&str],
    resamples: usize,
    seed: u64,
    figure: impl Fn(&[usize]) -> Option<f64>,
) -> Result<Bootstrap, Undefined> {
    let mut images_of: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for (idx, patient) in patients.iter().enumerate() {
        let place = *known.entry(*patient).or_insert_with(|| {
            images_of.push((patient, Vec::new()));
            images_of.len() - 1
        });
        if let Some((_, images)) = images_of.get_mut(place) {
            images.push(idx);
        }
    }
    if images_of.len() < 2 {
        return Err(Undefined::because(format!(
            "there are images of {} patient(s): resampling needs two",
            images_of.len()
        )));
    }
    let mut found = Vec::with_capacity(resamples);
    for resample in 0..resamples {
        let draws = seeded::uniform(seed, &format!("bootstrap/{resample}"), images_of.len(), 0.0, 1.0);
        let images: Vec<usize> = draws
            .into_iter()
            .filter_map(|draw| images_of.get((f64::from(draw) * images_of.len() as f64) as usize))
            .flat_map(|(_, images)| images.iter().copied())
            .collect();
        found.extend(figure(&images));
    }
    if (found.len() as f64) < (1.0 - MOST_UNDEFINED) * resamples as f64 || found.is_empty() {
        return Err(Undefined::because(format!(
            "only {} of {resamples} resamples of {} patients have what the figure needs",
            found.len(),
            images_of.len()
        )));
    }
    found.sort_by(f64::total_cmp);
    let interval = [percentile(&found, 2.5), percentile(&found, 97.5)];
    Ok(Bootstrap { interval, patients: images_of.len(), resamples: found.len() })
}

/// Of sorted values, with linear interpolation between ranks, as numpy does.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let at = |idx: usize| sorted.get(idx).or(sorted.last()).copied().unwrap_or(f64::NAN);
    let (below, share) = (rank.floor() as usize, rank.fract());
    at(below) + (at(below + 1) - at(below)) * share
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patients_are_drawn_whole() {
        // Both images of a patient are there as often as the other.
        let patients = ["a", "b", "a", "c"];
        let found = bootstrap(&patients, 200, 1, |images| {
            let count = |idx: usize| images.iter().filter(|image| **image == idx).count();
            assert_eq!(count(0), count(2));
            Some(images.len() as f64)
        });
        let found = found.unwrap();
        assert_eq!((found.patients, found.resamples), (3, 200));
        assert!(found.interval[0] >= 3.0 && found.interval[1] <= 6.0, "{found:?}");
    }

    #[test]
    fn what_cannot_be_resampled_is_refused() {
        let one = bootstrap(&["a", "a"], 10, 1, |_| Some(1.0)).unwrap_err();
        assert!(one.to_string().contains("1 patient(s)"), "{one}");
        let rare = bootstrap(&["a", "b"], 100, 1, |images| images.contains(&0).then_some(1.0)).unwrap_err();
        assert!(rare.to_string().contains("of 100 resamples of 2 patients"), "{rare}");
    }
}
