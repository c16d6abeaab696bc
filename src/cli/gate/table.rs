//! `hilum gate table`: which gate refuses which file.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    super::{
        Global,
        cases::files,
        output::{count, print, visible},
    },
    Which,
};
use crate::{
    infer::{CxrPipeline, GateCheck, NnModels, PipelineSettings, Refused, check_gates_before_networks},
    train::{DataSet, Sample, SampleError},
    types::{BundleStatus, Errand, ReasonCode, Sha256Digest, wilson_interval},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    which: Which,
    /// Files that should be accepted: a folder of DICOM, PNG or JPEG files, or a list in CSV with the columns file, label and patient
    #[arg(long, value_name = "FOLDER-OR-CSV")]
    accept: Vec<PathBuf>,
    /// Files that should be refused
    #[arg(long, value_name = "FOLDER-OR-CSV", required_unless_present = "accept")]
    refuse: Vec<PathBuf>,
    /// Only the gates on header and picture, which ask no network
    #[arg(long)]
    before_networks: bool,
    /// Only patients of this half, by the digest of their name: limits set on one are reported on the other
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    half: Option<u8>,
    /// Writes every file with its verdict, as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

/// What became of one file.
struct Row {
    /// Label of the list, else the name of the file's folder.
    group: String,
    file: String,
    should_be_accepted: bool,
    refused: Option<Refused>,
}

/// Asks the gates.
enum Judge {
    BeforeNetworks(BundleStatus, Box<PipelineSettings>),
    All(Box<CxrPipeline<NnModels>>),
}

impl Judge {
    /// The gate that refuses the image, enforced or not; `Err` when the networks fail.
    async fn refused(&self, sample: &Sample) -> anyhow::Result<Option<Refused>> {
        let bytes = match sample.part10() {
            Ok(bytes) => bytes,
            Err(SampleError::Picture { error, .. }) => {
                let (gate, words) = (Refused::FILE.to_owned(), error.to_string());
                return Ok(Some(Refused { gate, reason: ReasonCode::Undecodable, words }));
            }
            Err(error) => return Err(error.into()),
        };
        let GateCheck { gates, refused, .. } = match self {
            Self::BeforeNetworks(status, settings) => check_gates_before_networks(&bytes, *status, settings)?,
            Self::All(pipeline) => pipeline.check_gates(bytes, &Errand::default()).await?,
        };
        Ok(refused.or_else(|| gates.iter().find(|gate| !gate.passed).map(Refused::by)))
    }
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let opened = options.which.open(global)?;
    let judge = if options.before_networks {
        Judge::BeforeNetworks(opened.bundle.manifest().status, Box::new(opened.settings))
    } else {
        Judge::All(Box::new(opened.pipeline().await?))
    };
    let mut rows = Vec::new();
    for (paths, should_be_accepted) in [(&options.accept, true), (&options.refuse, false)] {
        for path in paths {
            for sample in samples(path)?.iter().filter(|sample| is_in_half(sample, options.half)) {
                let folder = sample.file.parent().and_then(Path::file_name).unwrap_or_default();
                rows.push(Row {
                    group: sample.label.clone().unwrap_or_else(|| folder.to_string_lossy().into_owned()),
                    file: sample.file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                    should_be_accepted,
                    refused: judge.refused(sample).await?,
                });
            }
        }
    }
    if let Some(path) = &options.csv {
        write_csv(path, &rows)?;
    }
    print(&summary(&rows))
}

/// The images of a list, or every file of a folder, each of a patient of its own.
fn samples(path: &Path) -> anyhow::Result<Vec<Sample>> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv")) {
        return Ok(DataSet::read(path)?.samples);
    }
    let of_file = |file: PathBuf| Sample {
        patient: file.display().to_string(),
        file,
        label: None,
        view: None,
        mask: None,
        site: None,
        split: None,
        age_years: None,
        sex: None,
    };
    Ok(files::find(path)?.into_iter().map(|listed| of_file(listed.path)).collect())
}

/// By the last bit of the SHA-256 of the patient's name.
fn is_in_half(sample: &Sample, half: Option<u8>) -> bool {
    let of_patient = Sha256Digest::of(sample.patient.as_bytes()).0.last().copied().unwrap_or(0) & 1;
    half.is_none_or(|half| of_patient == half)
}

fn write_csv(path: &PathBuf, rows: &[Row]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(fs_err::File::create(path)?);
    writer.write_record(["group", "file", "expected", "verdict", "gate", "reason", "words"])?;
    for row in rows {
        let expected = if row.should_be_accepted { "accepted" } else { "refused" };
        let (verdict, gate, reason, words) = match &row.refused {
            None => ("accepted", "", "", String::new()),
            Some(refused) => ("refused", refused.gate.as_str(), refused.reason.id(), visible(&refused.words)),
        };
        writer.write_record([&row.group, &row.file, expected, verdict, gate, reason, &words])?;
    }
    writer.flush()?;
    Ok(())
}

/// Two tables in Markdown, and the sums with their 95 % intervals.
fn summary(rows: &[Row]) -> String {
    let mut groups: BTreeMap<(bool, &str), Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry((row.should_be_accepted, &row.group)).or_default().push(row);
    }
    let mut text = "| files | expected | n | refused | by gate (reason) |\n|---|---|---|---|---|\n".to_owned();
    for ((should_be_accepted, group), rows) in &groups {
        let expected = if *should_be_accepted { "accepted" } else { "refused" };
        let mut by_gate: BTreeMap<String, usize> = BTreeMap::new();
        for refused in rows.iter().filter_map(|row| row.refused.as_ref()) {
            *by_gate.entry(format!("`{}` ({})", refused.gate, refused.reason.id())).or_default() += 1;
        }
        let by_gate: Vec<String> = by_gate.into_iter().map(|(gate, n)| format!("{n} {gate}")).collect();
        let refused = rows.iter().filter(|row| row.refused.is_some()).count();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {expected} | {} | {refused} | {} |",
            visible(group).replace('|', "\\|"),
            rows.len(),
            by_gate.join("; ")
        );
    }
    for (should_be_accepted, what) in
        [(true, "refused of those to be accepted"), (false, "accepted of those to be refused")]
    {
        let of: Vec<&Row> = rows.iter().filter(|row| row.should_be_accepted == should_be_accepted).collect();
        if of.is_empty() {
            continue;
        }
        let wrong: Vec<&Row> = of.iter().copied().filter(|row| row.refused.is_some() == should_be_accepted).collect();
        let [low, high] = wilson_interval(wrong.len(), of.len());
        let _ = writeln!(
            text,
            "\n{what}: {} of {} ({:.1} %, 95 % interval {:.1} to {:.1} %)",
            wrong.len(),
            count(of.len(), "file"),
            100.0 * wrong.len() as f64 / of.len() as f64,
            100.0 * low,
            100.0 * high
        );
        for row in wrong {
            let words = row
                .refused
                .as_ref()
                .map_or_else(String::new, |refused| format!(": {} ({})", visible(&refused.words), refused.gate));
            let _ = writeln!(text, "- {} {}{words}", visible(&row.group), visible(&row.file));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReasonCode;

    #[test]
    fn the_table_counts_by_group_and_names_what_went_wrong() {
        let row = |group: &str, file: &str, should_be_accepted, gate: Option<&str>| Row {
            group: group.to_owned(),
            file: file.to_owned(),
            should_be_accepted,
            refused: gate.map(|gate| Refused {
                gate: gate.to_owned(),
                reason: ReasonCode::ImageQuality,
                words: "so many".to_owned(),
            }),
        };
        let text = summary(&[
            row("chest", "a.png", true, None),
            row("chest", "b.png", true, Some("quality.border")),
            row("blank", "c.png", false, Some("quality.entropy")),
            row("blank", "d.png", false, Some("quality.entropy")),
            row("hand", "e.png", false, None),
        ]);
        assert!(text.contains("| blank | refused | 2 | 2 | 2 `quality.entropy` (quality.image) |"), "{text}");
        assert!(text.contains("| chest | accepted | 2 | 1 | 1 `quality.border` (quality.image) |"), "{text}");
        assert!(text.contains("refused of those to be accepted: 1 of 2 files (50.0 %, 95 % interval 9.5 to"), "{text}");
        assert!(text.contains("- chest b.png: so many (quality.border)"), "{text}");
        assert!(
            text.contains("accepted of those to be refused: 1 of 3 files") && text.contains("- hand e.png\n"),
            "{text}"
        );
    }

    #[test]
    fn every_patient_is_in_one_half() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..200 {
            fs_err::write(folder.path().join(format!("{number}.png")), "").unwrap();
        }
        let files = samples(folder.path()).unwrap();
        let in_half = |half| files.iter().filter(|sample| is_in_half(sample, half)).count();
        assert_eq!((in_half(None), in_half(Some(0)) + in_half(Some(1))), (200, 200));
        assert!((70..=130).contains(&in_half(Some(0))), "{}", in_half(Some(0)));
    }
}
