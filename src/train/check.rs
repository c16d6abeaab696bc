//! What is wrong with a data set before anything is trained on it, in words.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
};

use serde::Serialize;

use super::{
    dataset::patients_on_two_sides,
    groups::{Group, group_of},
    sample::{DataSet, Sample},
    statistics::{CrossTable, site_guess},
};
use crate::{
    imaging::{Plane, canvas},
    types::Sha256Digest,
};

/// Bits of a fingerprint in which near duplicates differ at most. On the 500 films of `cxr-open` the nearest two films of
/// different patients differ in 17 of 256 bits, while a film differs from itself in at most 3 after JPEG at quality 30, at
/// half its size, or with another gamma; one that was cut by 2 % at each side differs in about 18 and is not found.
const NEAR_BITS: u32 = 10;

/// Cramér's V from which a column is warned about.
const CONFOUNDED: f64 = 0.3;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// SHA-256 of list and files.
    pub sha256: String,
    /// Images of the list.
    pub images: usize,
    /// Patients of the list.
    pub patients: usize,
    /// Images whose list names no patient.
    pub images_without_patient: usize,
    /// What cannot be decoded, in words that name the file.
    pub unreadable: Vec<String>,
    /// Files whose pixels are the same, the first of them first.
    pub duplicates: Vec<Duplicate>,
    /// Files that look the same.
    pub near_duplicates: Vec<Duplicate>,
    /// Patients in more than one split.
    pub patients_on_two_sides: Vec<String>,
    /// Images by label and each other column.
    pub tables: Vec<Table>,
    /// All that should be known before training, in words.
    pub warnings: Vec<String>,
}

/// Two files that are the same image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Duplicate {
    /// The one.
    pub one: String,
    /// The other.
    pub other: String,
    /// Bits of 256 in which their fingerprints differ.
    pub differing_bits: u32,
    /// What the list says differently of the two: `patient`, `label`, `split`.
    pub contradictions: Vec<&'static str>,
}

/// Images by label and another column.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// The other column: `site`, `view`, `sex`, `age`, `split`.
    pub column: &'static str,
    /// Its values.
    pub values: Vec<String>,
    /// Counts for each label.
    pub rows: Vec<(String, Vec<usize>)>,
    /// Cramér's V of label and column over the images that have both, bias-corrected; `None` where it cannot be computed.
    pub cramers_v: Option<f64>,
}

/// Looks at every image. `progress` is called once after each.
#[must_use]
pub fn check(data: &DataSet, mut progress: impl FnMut(&Sample)) -> Findings {
    let mut unreadable = Vec::new();
    let mut seen: Vec<Seen<'_>> = Vec::new();
    for sample in &data.samples {
        match look_at(sample) {
            Ok((pixels, fingerprint)) => seen.push(Seen { sample, pixels, fingerprint }),
            Err(words) => unreadable.push(words),
        }
        progress(sample);
    }
    let (duplicates, near_duplicates) = duplicates(&seen);
    let on_two_sides: Vec<String> = patients_on_two_sides(&data.samples).into_iter().map(str::to_owned).collect();
    let without_patient =
        data.samples.iter().filter(|sample| sample.patient == sample.file.display().to_string()).count();
    let patients: std::collections::HashSet<&str> = data.samples.iter().map(|sample| sample.patient.as_str()).collect();
    let tables: Vec<Table> = Group::ALL.into_iter().map(|group| table(&data.samples, group)).collect();

    let mut warnings = Vec::new();
    let mut warn = |holds: bool, words: String| {
        if holds {
            warnings.push(words);
        }
    };
    warn(!unreadable.is_empty(), format!("{} image(s) cannot be read: take them out of the list", unreadable.len()));
    warn(
        !on_two_sides.is_empty(),
        format!(
            "{} patient(s) are in more than one split: figures on the one side would be about patients of the other; give all \
             images of a patient the same split",
            on_two_sides.len()
        ),
    );
    warn(
        without_patient > 0,
        format!(
            "{without_patient} image(s) name no patient and count as patients of their own: if some are of one patient, no \
             split can keep them together; fill the column `patient`"
        ),
    );
    for (found, what) in [(&duplicates, "have the same pixels"), (&near_duplicates, "look the same")] {
        let with = |contradiction| found.iter().filter(|pair| pair.contradictions.contains(&contradiction)).count();
        warn(
            !found.is_empty(),
            format!(
                "{} pair(s) of files {what}; {} of them under two patients, {} with two labels, {} in two splits: keep one of \
                 each pair, or give both the same patient",
                found.len(),
                with("patient"),
                with("label"),
                with("split")
            ),
        );
    }
    warnings.extend(Group::ALL.into_iter().filter_map(|group| confounding(&data.samples, group)));
    warnings.extend(mask_warning(&data.samples));
    Findings {
        sha256: data.sha256.clone(),
        images: data.samples.len(),
        patients: patients.len(),
        images_without_patient: without_patient,
        unreadable,
        duplicates,
        near_duplicates,
        patients_on_two_sides: on_two_sides,
        tables,
        warnings,
    }
}

struct Seen<'a> {
    sample: &'a Sample,
    pixels: Sha256Digest,
    fingerprint: [u64; 4],
}

/// Digest of the pixels and fingerprint of an image whose mask has its size, or what is wrong in words.
fn look_at(sample: &Sample) -> Result<(Sha256Digest, [u64; 4]), String> {
    let plane = sample.grey(false).map_err(|error| error.to_string())?;
    sample.lung_mask(plane.rows, plane.columns).map_err(|error| error.to_string())?;
    let sizes = [plane.rows as u64, plane.columns as u64].into_iter().flat_map(u64::to_le_bytes);
    let bytes: Vec<u8> = sizes.chain(plane.values.iter().flat_map(|value| value.to_le_bytes())).collect();
    let fingerprint =
        fingerprint(&plane).ok_or_else(|| format!("`{}` has no pixels to look at", sample.file.display()))?;
    Ok((Sha256Digest::of(&bytes), fingerprint))
}

/// A difference hash: whether each of 16 x 16 cells is darker than its neighbour at the right, of the picture between its
/// 0.5 and 99.5 percentiles.
fn fingerprint(plane: &Plane) -> Option<[u64; 4]> {
    let small = canvas::resize(&canvas::percentile_scale(plane, 0.5, 99.5), 16, 17).ok()?;
    let mut bits = [0; 4];
    let rises = small.values.chunks_exact(17).flat_map(|row| row.windows(2).map(|pair| pair.first() < pair.last()));
    for (idx, rises) in rises.enumerate() {
        if let Some(word) = bits.get_mut(idx / 64) {
            *word |= u64::from(rises) << (idx % 64);
        }
    }
    Some(bits)
}

/// Pairs with the same pixels, and other pairs whose fingerprints are near; each file is named with the first that it is
/// like.
fn duplicates(seen: &[Seen<'_>]) -> (Vec<Duplicate>, Vec<Duplicate>) {
    let (mut same, mut near) = (Vec::new(), Vec::new());
    let mut first_with: HashMap<Sha256Digest, usize> = HashMap::new();
    for (idx, other) in seen.iter().enumerate() {
        let first = *first_with.entry(other.pixels).or_insert(idx);
        if let Some(one) = seen.get(first).filter(|_| first != idx) {
            same.push(pair(one, other, 0));
            continue;
        }
        let earlier = seen.get(..idx).unwrap_or_default();
        let nearest = earlier.iter().map(|one| (distance(one, other), one)).min_by_key(|(bits, _)| *bits);
        near.extend(nearest.filter(|(bits, _)| *bits <= NEAR_BITS).map(|(bits, one)| pair(one, other, bits)));
    }
    (same, near)
}

fn distance(one: &Seen<'_>, other: &Seen<'_>) -> u32 {
    one.fingerprint.iter().zip(&other.fingerprint).map(|(a, b)| (a ^ b).count_ones()).sum()
}

fn pair(one: &Seen<'_>, other: &Seen<'_>, differing_bits: u32) -> Duplicate {
    let (a, b) = (one.sample, other.sample);
    let differs = [("patient", a.patient != b.patient), ("label", a.label != b.label), ("split", a.split != b.split)];
    Duplicate {
        one: a.file.display().to_string(),
        other: b.file.display().to_string(),
        differing_bits,
        contradictions: differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect(),
    }
}

fn table(samples: &[Sample], group: Group) -> Table {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for sample in samples {
        let label = sample.label.as_deref().unwrap_or("(no label)").to_owned();
        let value = group_of(sample, group).unwrap_or_else(|| "(not stated)".to_owned());
        *counts.entry((label, value)).or_default() += 1;
    }
    let mut values: Vec<String> = counts.keys().map(|(_, value)| value.clone()).collect();
    values.sort();
    values.dedup();
    let mut labels: Vec<String> = counts.keys().map(|(label, _)| label.clone()).collect();
    labels.dedup();
    let rows = labels
        .into_iter()
        .map(|label| {
            let count = |value: &String| counts.get(&(label.clone(), value.clone())).copied().unwrap_or(0);
            (label.clone(), values.iter().map(count).collect())
        })
        .collect();
    let pairs = stated_pairs(samples, group);
    let cramers_v = CrossTable::of(&as_text(&pairs)).cramers_v().ok();
    Table { column: group.name(), values, rows, cramers_v }
}

/// Label and value of the images that state both.
fn stated_pairs(samples: &[Sample], group: Group) -> Vec<(String, String)> {
    samples.iter().filter_map(|sample| Some((sample.label.clone()?, group_of(sample, group)?))).collect()
}

fn as_text(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(label, value)| (label.as_str(), value.as_str())).collect()
}

/// What a column gives away about the label, in words; `None` where it is little.
pub(super) fn confounding(samples: &[Sample], group: Group) -> Option<String> {
    let pairs = stated_pairs(samples, group);
    let pairs = as_text(&pairs);
    let table = CrossTable::of(&pairs);
    let v = table.cramers_v().ok().filter(|v| *v >= CONFOUNDED)?;
    let name = group.name();
    let stated = if pairs.len() == samples.len() {
        String::new()
    } else {
        format!(" (of the {} images that state both)", pairs.len())
    };
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let (always, by_value) = site_guess(&table).ok()?;
    let mut reach = if by_value > always {
        format!(
            "a network can reach {} by recognising the {name} alone, where always saying the most frequent label reaches {}",
            percent(by_value),
            percent(always)
        )
    } else {
        format!("the {name} changes how likely each label is")
    };
    if let Some((label, always, by_value)) = most_given_away(&pairs, &table) {
        // Writing to a String cannot fail.
        let _ = write!(
            reach,
            "; for `{label}` against all others it can reach {}, where always saying the more frequent one reaches {}",
            percent(by_value),
            percent(always)
        );
    }
    Some(format!(
        "label and {name} go together (Cramér's V {v:.2}){stated}: {reach}; figures over all images say little, look at those \
         within one {name}"
    ))
}

/// Of three or more labels the one that the column gives away most, with the shares of [`site_guess`] against all others.
fn most_given_away<'a>(pairs: &[(&'a str, &'a str)], table: &CrossTable<'a>) -> Option<(&'a str, f64, f64)> {
    let against_others = |label: &&'a str| {
        let is_label = |of: &str| if of == *label { "it" } else { "another" };
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(of, value)| (is_label(of), *value)).collect();
        let (always, by_value) = site_guess(&CrossTable::of(&pairs)).ok()?;
        (by_value > always).then_some((*label, always, by_value))
    };
    let labels = if table.rows.len() > 2 { table.rows.as_slice() } else { &[] };
    labels.iter().filter_map(against_others).max_by(|one, other| (one.2 - one.1).total_cmp(&(other.2 - other.1)))
}

/// Masks that only some labels have give the label away to a network that gets them.
fn mask_warning(samples: &[Sample]) -> Option<String> {
    let pairs: Vec<(&str, &str)> = samples
        .iter()
        .filter_map(|sample| Some((sample.label.as_deref()?, if sample.mask.is_some() { "mask" } else { "none" })))
        .collect();
    let v = CrossTable::of(&pairs).cramers_v().ok().filter(|v| *v >= CONFOUNDED)?;
    Some(format!(
        "masks are given for some labels more than for others (Cramér's V {v:.2}): a classifier that gets the given masks reads \
         the label from them; give it predicted ones only, as Hilum does"
    ))
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Luma};

    use super::*;

    /// A smooth picture of its own for each number.
    fn picture(number: u32) -> GrayImage {
        let waves = crate::nn::seeded::uniform(9, &format!("picture {number}"), 12, 0.5, 3.0);
        GrayImage::from_fn(120, 100, |x, y| {
            let (x, y) = (x as f32 / 120.0, y as f32 / 100.0);
            let wave = |idx: usize| (waves[idx] * 6.0 * x + waves[idx + 1] * 6.0 * y + waves[idx + 2]).sin();
            Luma([(128.0 + 30.0 * (wave(0) + wave(3) + wave(6) + wave(9))) as u8])
        })
    }

    #[test]
    fn what_is_wrong_is_found_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut list = "file,label,patient,site,split,mask\n".to_owned();
        for number in 0..12 {
            picture(number).save(at(&format!("{number}.png"))).unwrap();
            let (label, site) = if number.is_multiple_of(2) { ("covid", "web") } else { ("normal", "hospital") };
            let split = if number < 8 { "train" } else { "test" };
            writeln!(list, "{number}.png,{label},p{number},{site},{split},").unwrap();
        }
        // The first again: the same pixels in another file and split, then smaller and paler.
        picture(0).save(at("again.bmp.png")).unwrap();
        list += "again.bmp.png,covid,p0,web,test,\n";
        let paler = image::imageops::resize(&picture(1), 70, 58, image::imageops::FilterType::Triangle);
        let paler = GrayImage::from_fn(70, 58, |x, y| Luma([40 + paler.get_pixel(x, y).0[0] / 2]));
        paler.save(at("paler.jpg")).unwrap();
        list += "paler.jpg,covid,other,web,train,\n";
        fs_err::write(at("broken.png"), "no picture").unwrap();
        list += "broken.png,normal,,hospital,,\n";
        list += "2.png2,normal,p2b,hospital,,7.png\n";
        GrayImage::new(8, 8).save_with_format(at("2.png2"), image::ImageFormat::Png).unwrap();
        fs_err::write(at("list.csv"), list).unwrap();
        let data = DataSet::read(&at("list.csv")).unwrap();
        let mut looked_at = 0;
        let found = check(&data, |_| looked_at += 1);
        assert_eq!((looked_at, found.images, found.patients, found.images_without_patient), (16, 16, 15, 1));
        assert_eq!(found.unreadable.len(), 2, "{:?}", found.unreadable);
        assert!(
            found.unreadable[0].contains("broken.png") && found.unreadable[1].contains("have the size"),
            "{found:?}"
        );
        let [same] = found.duplicates.as_slice() else { panic!("{:?}", found.duplicates) };
        assert!(same.one.ends_with("0.png") && same.other.ends_with("again.bmp.png"), "{same:?}");
        assert_eq!(same.contradictions, ["split"]);
        let [near] = found.near_duplicates.as_slice() else { panic!("{:?}", found.near_duplicates) };
        assert!(near.one.ends_with("1.png") && near.other.ends_with("paler.jpg"), "{near:?}");
        assert_eq!(near.contradictions, ["patient", "label"]);
        assert_eq!(found.patients_on_two_sides, ["p0"]);
        let words = found.warnings.join("\n");
        for expected in [
            "2 image(s) cannot be read",
            "1 patient(s) are in more than one split",
            "1 image(s) name no patient",
            "1 pair(s) of files have the same pixels; 0 of them under two patients, 0 with two labels, 1 in two splits",
            "a network can reach 100.0 % by recognising the site alone, where always saying the most frequent label reaches 50.0 %",
        ] {
            assert!(words.contains(expected), "{expected}: {words}");
        }
        assert_eq!(found.tables[0].column, "site");
        assert_eq!(found.tables[0].rows[0], ("covid".to_owned(), vec![0, 8]));
    }

    #[test]
    fn of_three_labels_the_one_that_is_given_away_is_named() {
        let sample = |number: usize| Sample {
            file: format!("{number}.png").into(),
            label: Some(["covid", "normal", "pneumonia"][number % 3].to_owned()),
            patient: number.to_string(),
            view: None,
            mask: None,
            site: Some(if number.is_multiple_of(3) { "web" } else { "hospital" }.to_owned()),
            split: None,
            age_years: None,
            sex: None,
        };
        let samples: Vec<Sample> = (0..60).map(sample).collect();
        let words = confounding(&samples, Group::Site).unwrap();
        assert!(words.contains("can reach 66.7 % by recognising the site alone"), "{words}");
        assert!(words.contains("for `covid` against all others it can reach 100.0 %"), "{words}");
        // Far more of one label at both sites: the site makes no guess better, and still tells something.
        let samples: Vec<Sample> = (0..100)
            .map(|number| Sample {
                label: Some(if number < 12 { "covid" } else { "normal" }.to_owned()),
                site: Some(if (12..80).contains(&number) { "hospital" } else { "web" }.to_owned()),
                ..sample(number)
            })
            .collect();
        assert!(confounding(&samples, Group::Site).unwrap().contains("changes how likely each label is"));
    }

    #[test]
    fn a_sound_data_set_has_no_warnings() {
        let folder = tempfile::tempdir().unwrap();
        let mut list = "file,label,patient,site\n".to_owned();
        for number in 0..16 {
            picture(number).save(folder.path().join(format!("{number}.png"))).unwrap();
            let (label, site) = (["x", "y"][number as usize % 2], ["a", "b"][number as usize / 2 % 2]);
            writeln!(list, "{number}.png,{label},p{number},{site}").unwrap();
        }
        fs_err::write(folder.path().join("list.csv"), list).unwrap();
        let found = check(&DataSet::read(folder.path()).unwrap(), |_| {});
        assert_eq!(found.warnings, Vec::<String>::new());
    }

    #[test]
    fn masks_that_give_the_label_away_are_named() {
        let sample = |number: usize| Sample {
            file: format!("{number}.png").into(),
            label: Some(["covid", "normal"][number % 2].to_owned()),
            patient: number.to_string(),
            view: None,
            mask: number.is_multiple_of(2).then(|| "mask.png".into()),
            site: None,
            split: None,
            age_years: None,
            sex: None,
        };
        let samples: Vec<Sample> = (0..20).map(sample).collect();
        assert!(mask_warning(&samples).unwrap().contains("reads the label from them"));
        let samples: Vec<Sample> = (0..20).map(|number| Sample { mask: None, ..sample(number) }).collect();
        assert_eq!(mask_warning(&samples), None);
    }
}
