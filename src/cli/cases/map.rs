//! `hilum cases map`: the library of one bundle as a picture, by its first two principal components.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;

use super::{
    super::{
        Global,
        output::{count, print},
        store::Store,
    },
    Selection,
};
use crate::{
    db::case::{self, Case},
    types::Sha256Digest,
};

/// Steps of the power iteration: it has converged long before, or the two components are equally strong.
const MAX_STEPS: usize = 2000;
/// Change of a unit vector in one step below which it has converged.
const TOLERANCE: f64 = 1e-10;
/// Okabe and Ito's colours, which people with colour blindness can tell apart.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b3a800"];
/// Side of the drawing and width of the legend, in pixels.
const SIDE: f64 = 720.0;
const LEGEND: f64 = 300.0;
const MARGIN: f64 = 60.0;

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    selection: Selection,
    /// Where to write the picture
    #[arg(long, short, value_name = "FILE.svg")]
    output: PathBuf,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let filter = options.selection.filter();
    let store = Store::open(&global.load()?).await?;
    let found = async {
        let mut tx = case::snapshot(&store.db).await?;
        let cases = case::list(&mut tx, &filter).await?;
        let ids: Vec<String> = cases.iter().map(|case| case.case_id.clone()).collect();
        let mut vectors = HashMap::new();
        one_library(&cases)?;
        case::each_embedding(&mut tx, &ids, |case_id, vector| drop(vectors.insert(case_id, vector))).await?;
        anyhow::Ok((cases, vectors))
    }
    .await;
    store.close().await?;
    let (cases, mut vectors) = found?;
    let (digest, method) = one_library(&cases)?;
    let rows: Vec<Vec<f32>> = cases.iter().filter_map(|case| vectors.remove(&case.case_id)).collect();
    let projection = tokio::task::spawn_blocking(move || project(&rows))
        .await?
        .context("a map needs at least 3 cases that differ in two directions; import more with `hilum cases import`")?;
    let labels: Vec<&str> = cases.iter().map(|case| case.label.as_str()).collect();
    fs_err::write(&options.output, svg(&labels, &projection, &digest, &method))?;
    print(&format!(
        "{} drawn to {}; the two components explain {:.1} % and {:.1} % of the variance",
        count(cases.len(), "case"),
        options.output.display(),
        projection.explained[0] * 100.0,
        projection.explained[1] * 100.0
    ))
}

/// Vectors of different networks have nothing in common.
fn one_library(cases: &[Case]) -> anyhow::Result<(Sha256Digest, String)> {
    let first = cases.first().context("no case matches; `hilum cases list` counts those there are")?;
    anyhow::ensure!(
        cases.iter().all(|case| (case.bundle_digest, &case.method) == (first.bundle_digest, &first.method)),
        "the cases are of several bundles or embedding methods; choose a bundle with --bundle-digest, as `hilum cases list` shows it"
    );
    Ok((first.bundle_digest, first.method.clone()))
}

/// Every case on the two strongest principal components.
#[derive(Debug, Clone, PartialEq)]
struct Projection {
    points: Vec<[f64; 2]>,
    /// Share of the variance, 0 to 1, the larger first.
    explained: [f64; 2],
}

/// Principal components by power iteration on the centred rows, the second orthogonal to the first. Deterministic: it
/// starts from the row farthest from the mean, and the largest coefficient is made positive. `None` when there are not
/// two directions.
fn project(rows: &[Vec<f32>]) -> Option<Projection> {
    let dimensions = rows.first()?.len();
    if rows.len() < 3 || rows.iter().any(|row| row.len() != dimensions) {
        return None;
    }
    let mut mean = vec![0.0_f64; dimensions];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += f64::from(*value) / rows.len() as f64);
    }
    let centred: Vec<Vec<f64>> =
        rows.iter().map(|row| row.iter().zip(&mean).map(|(value, mean)| f64::from(*value) - mean).collect()).collect();
    let total: f64 = centred.iter().map(|row| dot(row, row)).sum();
    let (first, first_variance) = component(&centred, &[], total)?;
    let (second, second_variance) = component(&centred, std::slice::from_ref(&first), total)?;
    let points = centred.iter().map(|row| [dot(row, &first), dot(row, &second)]).collect();
    Some(Projection { points, explained: [first_variance / total, second_variance / total] })
}

/// The direction of the largest variance that is orthogonal to `found`, and that variance.
fn component(rows: &[Vec<f64>], found: &[Vec<f64>], total: f64) -> Option<(Vec<f64>, f64)> {
    let deflated = |mut vector: Vec<f64>| {
        for other in found {
            let share = dot(&vector, other);
            vector.iter_mut().zip(other).for_each(|(value, other)| *value -= share * other);
        }
        vector
    };
    let start = rows
        .iter()
        .map(|row| deflated(row.clone()))
        .max_by(|one, other| dot(one, one).total_cmp(&dot(other, other)))?;
    if dot(&start, &start) <= total * 1e-12 {
        return None;
    }
    let mut direction = unit(start)?;
    for _ in 0..MAX_STEPS {
        let mut next = vec![0.0; direction.len()];
        for row in rows {
            let along = dot(row, &direction);
            next.iter_mut().zip(row).for_each(|(next, value)| *next += along * value);
        }
        let next = unit(deflated(next))?;
        let change: f64 = next.iter().zip(&direction).map(|(one, other)| (one - other).powi(2)).sum::<f64>().sqrt();
        direction = next;
        if change < TOLERANCE {
            break;
        }
    }
    let largest = direction.iter().copied().max_by(|one, other| one.abs().total_cmp(&other.abs()))?;
    if largest < 0.0 {
        for value in &mut direction {
            *value = -*value;
        }
    }
    let variance = rows.iter().map(|row| dot(row, &direction).powi(2)).sum();
    Some((direction, variance))
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

fn unit(mut vector: Vec<f64>) -> Option<Vec<f64>> {
    let length = dot(&vector, &vector).sqrt();
    if length.is_nan() || length <= 0.0 {
        return None;
    }
    for value in &mut vector {
        *value /= length;
    }
    Some(vector)
}

/// A picture without anything from outside: no script, no font, no link.
fn svg(labels: &[&str], projection: &Projection, digest: &Sha256Digest, method: &str) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for label in labels {
        *counts.entry(label).or_default() += 1;
    }
    let colour_of: HashMap<&str, &str> = counts.keys().copied().zip(COLOURS.iter().copied().cycle()).collect();
    // One scale for both axes: distances keep their proportions.
    let extent = projection.points.iter().flatten().fold(f64::MIN_POSITIVE, |most, value| most.max(value.abs()));
    let place = |value: f64| SIDE / 2.0 + value / extent * (SIDE / 2.0 - MARGIN);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{SIDE}\" font-family=\"sans-serif\" font-size=\"14\">\n\
         <title>Similar cases: {} cases</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
        SIDE + LEGEND,
        labels.len()
    );
    for (label, [x, y]) in labels.iter().zip(&projection.points) {
        let _ = writeln!(
            text,
            "<circle cx=\"{:.2}\" cy=\"{:.2}\" r=\"4\" fill=\"{}\" fill-opacity=\"0.7\"/>",
            place(*x),
            place(-*y),
            colour_of.get(label).copied().unwrap_or("#000000")
        );
    }
    for (idx, (label, count)) in counts.iter().enumerate() {
        let y = MARGIN + 22.0 * idx as f64;
        let colour = colour_of.get(label).copied().unwrap_or("#000000");
        let _ = writeln!(text, "<circle cx=\"{SIDE}\" cy=\"{:.1}\" r=\"6\" fill=\"{colour}\"/>", y - 5.0);
        let _ = writeln!(text, "<text x=\"{}\" y=\"{y:.1}\">{} (n = {count})</text>", SIDE + 14.0, escaped(label));
    }
    let explained = projection.explained.map(|share| share * 100.0);
    let short_digest: String = digest.to_string().chars().take(12).collect();
    for (idx, line) in [
        format!("n = {}; principal components of the embeddings ({method})", labels.len()),
        format!("across: component 1, {:.1} % of the variance; up: component 2, {:.1} %", explained[0], explained[1]),
        format!("bundle sha256:{short_digest}…; research use only"),
    ]
    .iter()
    .enumerate()
    {
        let y = SIDE - 44.0 + 17.0 * idx as f64;
        let _ = writeln!(text, "<text x=\"12\" y=\"{y:.1}\" font-size=\"12\">{}</text>", escaped(line));
    }
    text.push_str("</svg>\n");
    text
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points of an ellipse in a tilted plane of 5 dimensions, half axes 3 and 1.
    fn ellipse() -> Vec<Vec<f32>> {
        (0..40)
            .map(|step| {
                let angle = f64::from(step) / 40.0 * std::f64::consts::TAU;
                let (long, short) = (3.0 * angle.cos(), angle.sin());
                let half = 0.5_f64.sqrt();
                [long * half, long * half, short + 7.0, 0.0, -2.0].map(|value| value as f32).to_vec()
            })
            .collect()
    }

    #[test]
    fn the_components_are_the_axes_of_an_ellipse() {
        let projection = project(&ellipse()).unwrap();
        // Variances are as the squares of the half axes.
        assert!((projection.explained[0] - 0.9).abs() < 1e-6, "{:?}", projection.explained);
        assert!((projection.explained[1] - 0.1).abs() < 1e-6, "{:?}", projection.explained);
        for (step, [x, y]) in projection.points.iter().enumerate() {
            let angle = step as f64 / 40.0 * std::f64::consts::TAU;
            assert!((x - 3.0 * angle.cos()).abs() < 1e-5 && (y - angle.sin()).abs() < 1e-5, "{step}: {x} {y}");
        }
        assert_eq!(project(&ellipse()), Some(projection));
    }

    #[test]
    fn what_has_no_two_directions_is_not_drawn() {
        assert_eq!(project(&[]), None);
        assert_eq!(project(&ellipse()[..2]), None);
        assert_eq!(project(&vec![vec![1.0, 2.0]; 9]), None);
        let line: Vec<Vec<f32>> = (0..9).map(|step| vec![step as f32, 2.0 * step as f32]).collect();
        assert_eq!(project(&line), None);
    }

    #[test]
    fn the_picture_states_counts_and_variance_and_escapes_labels() {
        let labels = ["a<b", "a<b", "other"];
        let projection = Projection { points: vec![[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], explained: [0.6, 0.25] };
        let picture = svg(&labels, &projection, &Sha256Digest([7; 32]), "all-members");
        for part in ["a&lt;b (n = 2)", "other (n = 1)", "n = 3;", "60.0 % of the variance", "25.0 %", "0707070707"] {
            assert!(picture.contains(part), "{part} is not in {picture}");
        }
        assert_eq!(picture.matches("r=\"4\"").count(), 3);
        assert!(!picture.contains("a<b"));
    }
}
