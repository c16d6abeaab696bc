//! The report for people: the facts of the Structured Report as plain text, without patient identity.

use std::fmt::Write;

use super::{ct_words, texts::Texts, wording};
use crate::types::{
    BundleIdentity, CtAnalysis, CxrAnalysis, ImageAnalysis, NotAnalysed, RunOutcome, RunRecord, SourceImage,
    UNTRAINED_NOTICE,
};

/// The report as plain text for the terminal and the status page: the same facts and the same wording as the
/// Structured Report, no patient identity. Several lines, each ended by a line feed.
#[must_use]
pub fn describe(record: &RunRecord) -> String {
    let mut lines = Lines::default();
    let bundle = &record.bundle;
    lines.add(0, &format!("AI result - {}", wording::NOT_FOR_DIAGNOSTIC_USE));
    if bundle.status == crate::types::BundleStatus::Untrained {
        lines.add(0, UNTRAINED_NOTICE);
    }
    lines.add(0, &format!("Study      {}", record.study_instance_uid));
    let run = format!("Run        {}, revision {}, started {}", record.run_id, record.revision, started(record));
    lines.add(0, &run);
    lines.add(
        0,
        &format!(
            "Algorithm  {} {} ({}), sha256:{}",
            bundle.name,
            bundle.version,
            wording::status(bundle.status),
            bundle.digest
        ),
    );
    if !record.computed_with.is_empty() {
        lines.add(0, &format!("Computed   {}", record.computed_with.join("; ")));
    }
    match &record.outcome {
        RunOutcome::Analysed(analysis) => analysed(&mut lines, record, analysis),
        RunOutcome::CtMeasured(analysis) => measured(&mut lines, bundle, analysis),
        RunOutcome::NotAnalysed(reason) => not_analysed(&mut lines, record, reason),
    }
    lines.blank();
    for line in wording::disclaimer(Texts::english(), bundle, &record.outcome) {
        lines.add(0, &line);
    }
    lines.text
}

fn started(record: &RunRecord) -> String {
    record
        .started_at
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| record.started_at.to_string())
}

fn analysed(lines: &mut Lines, record: &RunRecord, analysis: &CxrAnalysis) {
    let english = Texts::english();
    for (image, name) in analysis.images.iter().zip(wording::image_names(english, analysis)) {
        lines.blank();
        lines.add(0, &format!("{} {}", name.as_deref().unwrap_or("Image"), named(&image.source)));
        image_lines(lines, record, image);
    }
    if !analysis.excluded.is_empty() {
        lines.blank();
        lines.add(0, "Images that were not analysed");
    }
    for (idx, excluded) in analysis.excluded.iter().enumerate() {
        let name = wording::image_name(english, analysis.images.len() + idx);
        lines.add(1, &format!("{name} {}: {}", named(&excluded.source), wording::excluded(english, excluded)));
    }
    if let (failed @ 1.., all) = wording::failed_members(analysis) {
        lines.blank();
        lines.add(0, &format!("Partial: {failed} of {all} ensemble member runs failed."));
    }
}

fn measured(lines: &mut Lines, bundle: &BundleIdentity, analysis: &CtAnalysis) {
    let english = Texts::english();
    lines.blank();
    lines.add(0, &ct_words::series(english, analysis));
    for lung in &analysis.lungs {
        lines.add(1, &ct_words::lung(english, lung));
        for third in ct_words::thirds(english, lung) {
            lines.add(2, &third);
        }
    }
    if let Some(scan) = &analysis.classification {
        lines.add(1, &ct_words::classification(english, bundle, scan));
    }
    if let Some(lesions) = &analysis.lesions {
        for line in ct_words::lesions(english, bundle, lesions) {
            lines.add(1, &line);
        }
    }
    if let Some(words) = ct_words::not_judged(english, analysis) {
        lines.add(1, &words);
    }
    lines.add(1, "Input checks");
    for gate in &analysis.gates {
        lines.add(2, &wording::gate(english, gate));
    }
    for series in ct_words::excluded_series(english, analysis) {
        lines.add(1, &series);
    }
    for excluded in &analysis.excluded {
        lines.add(1, &format!("{}: {}", named(&excluded.source), wording::excluded(english, excluded)));
    }
}

fn image_lines(lines: &mut Lines, record: &RunRecord, image: &ImageAnalysis) {
    let bundle = &record.bundle;
    let english = Texts::english();
    lines.add(
        1,
        &format!(
            "Model output ({}), {} of {} members",
            wording::calibration(english, bundle),
            bundle.fusion,
            image.members.len()
        ),
    );
    for (class_idx, (class, output)) in bundle.classes.iter().zip(&image.fused).enumerate() {
        let members: Vec<String> = image
            .members
            .iter()
            .map(|member| {
                let output =
                    wording::output_of(member, class_idx).map_or_else(|| "failed".to_owned(), wording::percent);
                format!("{} {output}", member.name)
            })
            .collect();
        lines.add(2, &format!("{:<20} {:>8}   ({})", class.label, wording::percent(*output), members.join(", ")));
    }
    for member in image.members.iter().filter(|member| member.failure.is_some()) {
        lines.add(2, &format!("{}.", wording::member_failure(english, &member.name, member.failure.as_deref())));
    }
    let spread = wording::percent(image.member_spread);
    lines.add(1, &format!("Members for class {}: largest minus smallest {spread}", wording::target_label(bundle)));
    lines.add(1, &wording::operating_point(english, bundle, image.into()));
    lines.add(1, &wording::heat_map_method(english, image));
    for words in wording::lung_heat(english, image) {
        lines.add(1, &words);
    }
    lines.add(1, &format!("{}.", wording::localisation(english, image.into())));
    if let Some(similar) = &image.similar_cases {
        lines.add(1, &format!("Similar cases: {}", wording::similar_cases(english, bundle.status, similar)));
        for (idx, case) in similar.cases.iter().enumerate() {
            let words = format!("label {}, cohort {}", case.label, case.cohort);
            lines.add(2, &format!("{}. {}  distance {:.4}, {words}", idx + 1, case.case_id, case.distance));
        }
        for prior in &similar.priors {
            let date = prior.study_date.as_deref().unwrap_or("unknown date");
            lines.add(2, &format!("prior {date} {}  distance {:.4}", prior.study_instance_uid, prior.distance));
        }
    }
    if !image.gates.is_empty() {
        lines.add(1, "Input checks");
    }
    for gate in &image.gates {
        lines.add(2, &wording::gate(english, gate));
    }
}

fn not_analysed(lines: &mut Lines, record: &RunRecord, not_analysed: &NotAnalysed) {
    lines.blank();
    lines.add(0, &wording::not_analysed(Texts::english(), &record.bundle, not_analysed));
    for source in &not_analysed.sources {
        lines.add(1, &format!("looked at {}", named(source)));
    }
}

fn named(source: &SourceImage) -> String {
    format!("{} {}", source.modality, source.sop_instance_uid)
}

/// Indented lines; line breaks and control characters within a line become spaces, so that no text from
/// outside can forge a line or command a terminal.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn add(&mut self, depth: usize, line: &str) {
        let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{:indent$}{clean}", "", indent = depth * 2);
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }
}
