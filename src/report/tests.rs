//! What holds for every result.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use dicom_core::{Tag, VR, header::Header};
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, InMemDicomObject};
use rstest::rstest;
use time::macros::{datetime, offset};

use super::samples::{self, SampleSource, Syntax, text};
use super::*;
use crate::types::{
    BundleStatus, CxrAnalysis, Decision, PredecessorDocument, PriorImage, ReasonCode, ReportClass, RunOutcome,
    RunRecord, Sha256Digest, SimilarCase, SimilarCases, UNTRAINED_NOTICE, Uid,
};

#[path = "../../tests/it/validators.rs"]
#[allow(unreachable_pub, reason = "the module belongs to the integration tests")]
pub(super) mod validators;

mod pictures;

const SOURCE_1: &str = "1.2.826.0.1.3680043.8.498.11";

fn parse(object: &RenderedObject) -> DefaultDicomObject {
    dicom_object::from_reader(&object.part10[128..]).unwrap()
}

fn pairs(sources: &[SampleSource]) -> Vec<(SourceImage, SourceHeader)> {
    sources.iter().map(|source| (source.image(), source.header())).collect()
}

/// English, without segmentation.
fn plain(class: ReportClass) -> ReportForm {
    ReportForm { class, language: "en".to_owned(), with_segmentation: false, predecessor: None }
}

fn chinese(class: ReportClass) -> ReportForm {
    ReportForm { language: "zh".to_owned(), ..plain(class) }
}

fn segmented(class: ReportClass) -> ReportForm {
    ReportForm { with_segmentation: true, ..plain(class) }
}

fn predecessor(sop_instance_uid: &str) -> PredecessorDocument {
    PredecessorDocument {
        sop_class_uid: Uid::new("1.2.840.10008.5.1.4.1.1.88.33").unwrap(),
        sop_instance_uid: Uid::new(sop_instance_uid).unwrap(),
        series_instance_uid: Uid::new("2.25.78").unwrap(),
    }
}

fn in_form(record: &RunRecord, sources: &[SampleSource], form: &ReportForm) -> RenderedObject {
    render_report(record, &pairs(sources), form, &samples::options()).unwrap()
}

fn companion(record: &RunRecord, sources: &[SampleSource], form: &ReportForm) -> RenderedObject {
    render_text_companion(record, &pairs(sources), form, &samples::options()).unwrap()
}

fn sr(record: &RunRecord, sources: &[SampleSource]) -> RenderedObject {
    in_form(record, sources, &plain(ReportClass::Comprehensive))
}

fn picture_form() -> PictureForm {
    PictureForm::default()
}

fn heat_map(record: &RunRecord, sources: &[SampleSource]) -> RenderedObject {
    render_heat_map(record, 0, &picture_form(), &pairs(sources), &samples::overlay(32, 40), &samples::options())
        .unwrap()
}

/// The raw value of the first top-level element with this tag and VR, found in the bytes themselves.
fn raw_value(part10: &[u8], tag: Tag, vr: [u8; 2]) -> Option<&[u8]> {
    let header = [tag.group().to_le_bytes(), tag.element().to_le_bytes(), vr].concat();
    let at = part10.windows(header.len()).position(|window| window == header)? + header.len();
    let length = usize::from(u16::from_le_bytes([part10[at], part10[at + 1]]));
    Some(&part10[at + 2..at + 2 + length])
}

fn string(object: &InMemDicomObject, tag: Tag) -> Option<String> {
    Some(object.get(tag)?.to_str().ok()?.trim_end_matches(['\0', ' ']).to_owned())
}

fn first_item(object: &InMemDicomObject, tag: Tag) -> Option<&InMemDicomObject> {
    object.get(tag)?.items()?.first()
}

/// The content tree as indented text.
fn tree(object: &InMemDicomObject) -> String {
    fn code(item: &InMemDicomObject) -> String {
        let value = string(item, tags::CODE_VALUE).or_else(|| string(item, tags::LONG_CODE_VALUE)).unwrap();
        let scheme = string(item, tags::CODING_SCHEME_DESIGNATOR).unwrap();
        format!("({value}, {scheme}, {})", string(item, tags::CODE_MEANING).unwrap())
    }
    fn value(item: &InMemDicomObject) -> String {
        match string(item, tags::VALUE_TYPE).unwrap().as_str() {
            "CONTAINER" => string(item, tags::CONTINUITY_OF_CONTENT).unwrap(),
            "CODE" => code(first_item(item, tags::CONCEPT_CODE_SEQUENCE).unwrap()),
            "TEXT" => format!("{:?}", string(item, tags::TEXT_VALUE).unwrap()),
            "UIDREF" => string(item, tags::UID).unwrap(),
            "DATE" => string(item, tags::DATE).unwrap(),
            "TIME" => string(item, tags::TIME).unwrap(),
            "NUM" => {
                let measured = first_item(item, tags::MEASURED_VALUE_SEQUENCE).unwrap();
                let unit = first_item(measured, tags::MEASUREMENT_UNITS_CODE_SEQUENCE).unwrap();
                let double = measured.get(tags::FLOATING_POINT_VALUE).unwrap().to_float64().unwrap();
                let decimal = string(measured, tags::NUMERIC_VALUE).unwrap();
                assert!((decimal.parse::<f64>().unwrap() - double).abs() < 1e-9);
                format!("{decimal} {}", code(unit))
            }
            "IMAGE" => {
                let reference = first_item(item, tags::REFERENCED_SOP_SEQUENCE).unwrap();
                let segment =
                    reference.get(tags::REFERENCED_SEGMENT_NUMBER).map(|number| number.to_int::<u16>().unwrap());
                let segment = segment.map_or_else(String::new, |number| format!(" segment {number}"));
                string(reference, tags::REFERENCED_SOP_INSTANCE_UID).unwrap() + &segment
            }
            other => panic!("value type {other}"),
        }
    }
    fn lines(item: &InMemDicomObject, depth: usize, out: &mut String) {
        let relation = string(item, tags::RELATIONSHIP_TYPE).map(|relation| relation + " ").unwrap_or_default();
        let value_type = string(item, tags::VALUE_TYPE).unwrap();
        let concept = code(first_item(item, tags::CONCEPT_NAME_CODE_SEQUENCE).unwrap());
        writeln!(out, "{}{relation}{value_type} {concept} = {}", "  ".repeat(depth), value(item)).unwrap();
        for child in item.get(tags::CONTENT_SEQUENCE).and_then(|children| children.items()).unwrap_or_default() {
            lines(child, depth + 1, out);
        }
    }
    let mut out = String::new();
    lines(object, 0, &mut out);
    out
}

/// Every element at every depth.
fn walk(object: &InMemDicomObject, visit: &mut impl FnMut(&dicom_object::mem::InMemElement)) {
    for element in object {
        visit(element);
        element.items().unwrap_or_default().iter().for_each(|item| walk(item, visit));
    }
}

/// All results of all samples, by name.
fn all_results() -> Vec<(String, RenderedObject)> {
    let mut results = Vec::new();
    for (name, source) in matrix() {
        let sources = [source];
        for status in [BundleStatus::Untrained, BundleStatus::Unvalidated, BundleStatus::Validated] {
            let record = samples::analysed(status, &sources[0]);
            results.push((format!("{name}-{status:?}-sr"), sr(&record, &sources)));
            results.push((format!("{name}-{status:?}-sc"), heat_map(&record, &sources)));
        }
        let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
        let zh = chinese(ReportClass::Comprehensive);
        results.push((format!("{name}-chinese-sr"), in_form(&record, &sources, &zh)));
        results.push((format!("{name}-chinese-text"), companion(&record, &sources, &zh)));
        let record = samples::not_analysed(&sources[0], ReasonCode::ViewNotFrontal);
        results.push((format!("{name}-rejected-sr"), sr(&record, &sources)));
    }
    let sources = samples::three_sources();
    results.extend(in_all_forms("partial", &samples::partial(&sources), &sources));
    results.extend(in_all_forms("similar", &with_similar_cases(&sources[0]), &sources[..1]));
    let record = samples::not_analysed(&sources[0], ReasonCode::LungMask);
    results.extend(in_all_forms("rejected", &record, &sources[..1]));
    for reason in ReasonCode::ALL {
        let record = samples::not_analysed(&sources[0], reason);
        results.push((format!("rejected-{reason:?}-sr"), sr(&record, &sources[..1])));
    }
    let record = samples::partial(&sources);
    for image_idx in 0..2 {
        let overlay = samples::overlay(31, 39);
        let object =
            render_heat_map(&record, image_idx, &picture_form(), &pairs(&sources), &overlay, &samples::options())
                .unwrap();
        results.push((format!("partial-sc-{image_idx}"), object));
    }
    let sources = samples::ct_sources();
    for status in [BundleStatus::Untrained, BundleStatus::Unvalidated] {
        let record = samples::ct_measured(status, &sources);
        results.extend(in_all_forms(&format!("ct-{status:?}"), &record, &sources));
        results.push((format!("ct-{status:?}-sc"), ct_overlay(&record, &sources)));
        let record = samples::ct_classified(status, &sources);
        results.extend(in_all_forms(&format!("ct-classified-{status:?}"), &record, &sources));
        results.push((format!("ct-classified-{status:?}-sc"), ct_overlay(&record, &sources)));
        let record = samples::ct_outlined(status, &sources);
        results.extend(in_all_forms(&format!("ct-outlined-{status:?}"), &record, &sources));
        results.push((format!("ct-outlined-{status:?}-sc"), ct_overlay(&record, &sources)));
    }
    let record = samples::not_analysed(&sources[0], ReasonCode::SliceGap);
    let record = crate::types::RunRecord { bundle: samples::ct_bundle(BundleStatus::Unvalidated), ..record };
    results.extend(in_all_forms("ct-rejected", &record, &sources));
    results.extend(pictures::pictures_in_all_forms().into_iter().map(|(name, object, _)| (name, object)));
    results
}

/// Every form of the report of a record.
fn in_all_forms(name: &str, record: &RunRecord, sources: &[SampleSource]) -> Vec<(String, RenderedObject)> {
    let mut results = Vec::new();
    for class in ReportClass::ALL {
        for form in [plain(class), chinese(class)] {
            let name = format!("{name}-{}-{}-sr", class.name(), form.language);
            results.push((name, in_form(record, sources, &form)));
        }
    }
    if !matches!(record.outcome, RunOutcome::NotAnalysed(_)) {
        let form = segmented(ReportClass::Comprehensive);
        results.push((format!("{name}-segmented-sr"), in_form(record, sources, &form)));
    }
    for form in [plain(ReportClass::BasicText), chinese(ReportClass::BasicText)] {
        results.push((format!("{name}-companion-{}-sr", form.language), companion(record, sources, &form)));
    }
    results
}

/// A radiograph with two cases of other patients and an earlier image of this one.
fn with_similar_cases(source: &SampleSource) -> RunRecord {
    let mut record = samples::analysed(BundleStatus::Unvalidated, source);
    let label = record.bundle.classes[0].label.clone();
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
    analysis.images[0].similar_cases = Some(similar(&label, &["LIB-1", "LIB-2"]));
    record
}

fn similar(label: &str, case_ids: &[&str]) -> SimilarCases {
    let case = |case_id: &&str| SimilarCase {
        case_id: (*case_id).to_owned(),
        distance: 1.0,
        label: label.to_owned(),
        cohort: "open".to_owned(),
    };
    SimilarCases {
        method: "all-members".to_owned(),
        library: Some(crate::types::CaseLibraryVersion { n_cases: 7, sha256: Sha256Digest::of(b"library") }),
        cases: case_ids.iter().map(case).collect(),
        priors: vec![PriorImage {
            study_instance_uid: Uid::new("1.2.3.99").unwrap(),
            sop_instance_uid: Uid::new("1.2.3.99.1").unwrap(),
            study_date: Some("20250102".to_owned()),
            distance: 0.0,
        }],
        reason: None,
    }
}

fn ct_overlay(record: &crate::types::RunRecord, sources: &[SampleSource]) -> RenderedObject {
    super::render_ct_summary(record, &picture_form(), &pairs(sources), &samples::overlay(64, 80), &samples::options())
        .unwrap()
}

#[test]
fn the_tree_of_a_measured_ct() {
    let sources = samples::ct_sources();
    let record = samples::ct_measured(BundleStatus::Unvalidated, &sources);
    let rendered = sr(&record, &sources);
    insta::assert_snapshot!(tree(&parse(&rendered)));
    assert_eq!(rendered.part10, sr(&record, &sources).part10, "rendering twice gives the same bytes");
    assert_eq!(ct_overlay(&record, &sources).part10, ct_overlay(&record, &sources).part10);
}

#[test]
fn the_tree_of_a_ct_that_networks_judged() {
    let sources = samples::ct_sources();
    let shown = tree(&parse(&sr(&samples::ct_classified(BundleStatus::Unvalidated, &sources), &sources)));
    // The lungs are in the other snapshot.
    let of_networks: Vec<&str> = shown.lines().skip_while(|line| !line.contains("Ensemble:")).collect();
    insta::assert_snapshot!(of_networks.join("\n"));
}

#[test]
fn a_ct_that_networks_judged_in_words_for_people() {
    let sources = samples::ct_sources();
    insta::assert_snapshot!(super::describe(&samples::ct_classified(BundleStatus::Untrained, &sources)));
}

#[test]
fn the_tree_of_lesions_that_networks_outlined() {
    let sources = samples::ct_sources();
    let shown = tree(&parse(&sr(&samples::ct_outlined(BundleStatus::Unvalidated, &sources), &sources)));
    // The lungs are in another snapshot.
    let of_lesions: Vec<&str> = shown
        .lines()
        .skip_while(|line| !line.contains("\"Lesions\""))
        .take_while(|line| !line.contains("Qualitative Evaluations"))
        .collect();
    insta::assert_snapshot!(of_lesions.join("\n"));
    let conclusion = shown.lines().find(|line| line.contains("(121077, DCM, Conclusion)")).unwrap();
    assert!(conclusion.contains("AI: Outlined by networks, class Lesion: 30.2 ml in all"), "{conclusion}");
    assert!(shown.contains("a slice that the networks did not see counts as one without lesion"));
}

#[test]
fn lesions_that_networks_outlined_in_words_for_people() {
    let sources = samples::ct_sources();
    insta::assert_snapshot!(super::describe(&samples::ct_outlined(BundleStatus::Untrained, &sources)));
}

/// The rule says yes: only a validated bundle whose members all ran may say so, and no record can say more.
#[test]
fn the_threshold_of_a_pixel_is_not_that_of_a_decision() {
    let record = samples::ct_outlined(BundleStatus::Unvalidated, &samples::ct_sources());
    let parameters = super::wording::parameters(&record, "0.0.0");
    assert!(parameters.contains(&"target=Lesion;decision=by rule;pixel_threshold=0.5000".to_owned()), "{parameters:?}");
    assert!(!parameters.iter().any(|parameter| parameter.contains(";threshold=0.5")), "{parameters:?}");
    let RunOutcome::CtMeasured(analysis) = &record.outcome else { panic!("measured") };
    let lesions = analysis.lesions.as_ref().unwrap();
    let of_lungs: f64 = lesions.lungs.iter().map(|lung| lung.volume_ml).sum();
    assert!((lesions.volume_ml - of_lungs).abs() < 1e-9);
}

#[test]
fn a_scan_that_networks_could_not_judge_is_measured_and_says_why() {
    let sources = samples::ct_sources();
    let mut record = samples::ct_outlined(BundleStatus::Unvalidated, &sources);
    record.computed_with = vec!["unet_plus_plus cuda:0 float16".to_owned()];
    let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("measured") };
    analysis.lesions = None;
    analysis.not_judged = Some(crate::types::NotJudged {
        reason: ReasonCode::UnsupportedImage,
        words: "the lungs lie in 900 slices and the bundle takes 500".to_owned(),
    });
    let words = "The networks of the bundle did not judge the scan because the lungs lie in 900 slices and the bundle takes \
                 500 (input.unsupported_image).";
    let RunOutcome::CtMeasured(analysis) = &record.outcome else { panic!("measured") };
    assert!(super::ct_measurement_lines(&record.bundle, analysis).contains(&words.to_owned()));
    let of_people = describe(&record);
    assert!(of_people.contains(words) && of_people.contains("Right lung: 2700 ml"), "{of_people}");
    assert!(of_people.contains("Computed   unet_plus_plus cuda:0 float16"), "{of_people}");
    let rendered = parse(&sr(&record, &sources));
    let report = tree(&rendered);
    assert!(report.contains(words) && report.contains("computed_with=unet_plus_plus cuda:0 float16"), "{report}");
    assert_eq!(rendered.element(tags::COMPLETION_FLAG).unwrap().to_str().unwrap(), "PARTIAL");
    assert!(
        super::ct_overlay_words(&record, analysis, samples::options().texts.language("en"))
            .below
            .contains(&words.to_owned())
    );
}

#[test]
fn a_rule_over_lesions_decides_in_validated_bundles_only() {
    let sources = samples::ct_sources();
    let presence = |status, decision, run_is_there: bool| {
        let mut record = samples::ct_outlined(status, &sources);
        let crate::types::RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("a measured CT") };
        let lesions = analysis.lesions.as_mut().unwrap();
        lesions.decision = decision;
        lesions.run = lesions.run.filter(|_| run_is_there);
        let shown = tree(&parse(&sr(&record, &sources)));
        let code = shown.lines().find(|line| line.contains("(705057003, SCT, Presence)")).unwrap().trim().to_owned();
        (code.rsplit(", ").next().unwrap().to_owned(), super::describe(&record))
    };
    let (code, words) = presence(BundleStatus::Validated, Decision::Present, true);
    assert_eq!(code, "Present)");
    assert!(words.contains("Decision by the rule: present.") && words.contains("left back quadrant"), "{words}");
    let (code, words) = presence(BundleStatus::Validated, Decision::Absent, false);
    assert_eq!(code, "Absent)");
    assert!(words.contains("The rule is not satisfied: there is no such run of slices."), "{words}");
    let (code, words) = presence(BundleStatus::Validated, Decision::Undetermined, true);
    assert_eq!(code, "Undetermined)");
    assert!(words.contains("because 1 of 2 members failed"), "{words}");
    for status in [BundleStatus::Unvalidated, BundleStatus::Untrained] {
        let (code, words) = presence(status, Decision::Present, true);
        assert_eq!(code, "Undetermined)");
        assert!(words.contains("Decision withheld") && !words.contains("present."), "{words}");
    }
}

#[test]
fn a_measured_ct_in_words_for_people() {
    let sources = samples::ct_sources();
    insta::assert_snapshot!(super::describe(&samples::ct_measured(BundleStatus::Untrained, &sources)));
}

#[test]
fn the_words_on_the_overlay_of_a_ct() {
    let sources = samples::ct_sources();
    let words = |status| {
        let record = samples::ct_measured(status, &sources);
        let crate::types::RunOutcome::CtMeasured(analysis) = record.outcome.clone() else { panic!("a measured CT") };
        super::ct_overlay_words(&record, &analysis, samples::options().texts.language("en"))
    };
    let unvalidated = words(BundleStatus::Unvalidated);
    assert!(unvalidated.notice.is_empty() && unvalidated.above.contains("NOT FOR DIAGNOSTIC USE"));
    assert!(
        unvalidated.below.iter().any(|line| line.starts_with("Right lung: 2700 ml, mean -812 HU")),
        "{unvalidated:?}"
    );
    assert!(unvalidated.below.iter().any(|line| line.contains("RESEARCH, UNVERIFIED. ct-lung-measurement 1.0.0")));
    assert_eq!(words(BundleStatus::Untrained).notice, crate::types::UNTRAINED_NOTICE);
    let record = samples::ct_outlined(BundleStatus::Untrained, &sources);
    let crate::types::RunOutcome::CtMeasured(analysis) = &record.outcome else { panic!("a measured CT") };
    let outlined = super::ct_overlay_words(&record, analysis, samples::options().texts.language("en"));
    assert!(
        outlined.below.iter().any(|line| line.contains("The rule is satisfied first by 2 slice(s)")),
        "{outlined:?}"
    );
    assert!(outlined.below.iter().any(|line| line.contains("Decision withheld")), "{outlined:?}");
}

/// {DX, CR} x {character sets} x {complete, no type 2 attributes, no Pixel Spacing}.
fn matrix() -> Vec<(String, SampleSource)> {
    let names: [(&str, Option<&'static str>, Vec<u8>); 5] = [
        ("ascii", None, b"Sample^Synthetic".to_vec()),
        // The second byte of the family name is 5CH, a backslash to who does not know the set.
        ("gb18030", Some("GB18030"), [b"Cheng^Xin=".as_slice(), &[0xd5, 0x5c], b"^", &[0xd0, 0xc0], b"="].concat()),
        (
            "iso2022jp",
            Some("\\ISO 2022 IR 87"),
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B".to_vec(),
        ),
        ("utf8", Some("ISO_IR 192"), "Müller^Jörg=诚^欣".as_bytes().to_vec()),
        ("undeclared", None, b"M\xfcller^J\xf6rg".to_vec()),
    ];
    let mut sources = Vec::new();
    for modality in ["DX", "CR"] {
        for (name, character_set, patient_name) in &names {
            for variant in ["complete", "bare", "unspaced"] {
                let mut source = SampleSource::new(SOURCE_1);
                source.modality = modality;
                source.character_set = *character_set;
                source.patient_name.clone_from(patient_name);
                source.without_type_2 = variant == "bare";
                if variant == "unspaced" {
                    source.pixel_spacing = None;
                }
                sources.push((format!("{modality}-{name}-{variant}"), source));
            }
        }
    }
    sources
}

#[test]
fn patient_names_keep_their_bytes_and_their_character_set() {
    for (name, source) in matrix() {
        let sources = [source];
        let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
        for object in [sr(&record, &sources), heat_map(&record, &sources)] {
            let mut expected = sources[0].patient_name.clone();
            if expected.len() % 2 == 1 {
                expected.push(b' ');
            }
            if sources[0].without_type_2 {
                expected.clear();
            }
            assert_eq!(raw_value(&object.part10, tags::PATIENT_NAME, *b"PN"), Some(&expected[..]), "{name}");

            let set = raw_value(&object.part10, tags::SPECIFIC_CHARACTER_SET, *b"CS");
            let undeclared = sources[0].character_set.is_none() && !expected.is_ascii();
            let expected_set = if undeclared { Some("ISO_IR 100") } else { sources[0].character_set };
            let set = set.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap().trim_end().to_owned());
            assert_eq!(set.as_deref(), expected_set, "{name}");
        }
    }
}

#[test]
fn attributes_that_results_must_have_are_there_even_if_the_source_lacks_them() {
    let source = SampleSource { without_type_2: true, ..SampleSource::new(SOURCE_1) };
    let sources = [source];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    for object in [sr(&record, &sources), heat_map(&record, &sources)] {
        let parsed = parse(&object);
        for tag in [tags::PATIENT_NAME, tags::PATIENT_ID, tags::PATIENT_BIRTH_DATE, tags::PATIENT_SEX, tags::STUDY_DATE]
            .into_iter()
            .chain([tags::STUDY_TIME, tags::REFERRING_PHYSICIAN_NAME, tags::STUDY_ID, tags::ACCESSION_NUMBER])
        {
            assert_eq!(string(&parsed, tag).as_deref(), Some(""), "{tag}");
        }
    }
}

#[test]
fn the_newest_source_gives_patient_and_study() {
    let mut sources = samples::three_sources();
    sources[2].patient_name = b"Corrected^Name".to_vec();
    let record = samples::partial(&sources);
    for object in [sr(&record, &sources), heat_map(&record, &sources)] {
        assert_eq!(string(&parse(&object), tags::PATIENT_NAME).as_deref(), Some("Corrected^Name"));
    }
}

#[test]
fn sequences_and_numbers_are_copied_from_every_transfer_syntax() {
    let qualifier = vec![vec![text(0x0040, 0x0032, "UT", b"1.2.3"), text(0x0040, 0x0033, "CS", b"ISO")]];
    let procedure = vec![vec![
        text(0x0008, 0x0100, "SH", b"36643-5"),
        text(0x0008, 0x0102, "SH", b"LN"),
        text(0x0008, 0x0104, "LO", &[b"XR ".as_slice(), &[0xd5, 0x5c]].concat()),
    ]];
    let request = vec![vec![text(0x0040, 0x1001, "SH", b"RP-7"), text(0x0032, 0x1060, "LO", b"Chest PA")]];
    let mut source = SampleSource::new(SOURCE_1);
    source.character_set = Some("GB18030");
    source.more = vec![
        (0x0010, 0x0024, "SQ", samples::Sample::Items(qualifier)),
        (0x0008, 0x1032, "SQ", samples::Sample::Items(procedure)),
        (0x0040, 0x0275, "SQ", samples::Sample::Items(request)),
        (0x0010, 0x21c0, "US", samples::Sample::Number(4)),
        text(0x0010, 0x1030, "DS", b" 71.50"),
        // Private, before the patient group: not copied, does not disturb.
        (0x0009, 0x0010, "LO", samples::Sample::Bytes(b"VENDOR".to_vec())),
        (0x0009, 0x1001, "UN", samples::Sample::Bytes(vec![1, 2, 3, 4])),
    ];
    let record = samples::analysed(BundleStatus::Unvalidated, &source);
    let render = |syntax| {
        let header = SourceHeader::from_part10(&source.part10(syntax)).unwrap();
        render_report(&record, &[(source.image(), header)], &plain(ReportClass::Comprehensive), &samples::options())
            .unwrap()
    };
    let object = render(Syntax::ExplicitLittle);
    for syntax in [Syntax::ImplicitLittle, Syntax::ExplicitBig, Syntax::Deflated] {
        assert_eq!(render(syntax).part10, object.part10, "{syntax:?}");
    }
    let parsed = parse(&object);
    assert_eq!(parsed.element(tags::PREGNANCY_STATUS).unwrap().to_int::<u16>().unwrap(), 4);
    assert_eq!(raw_value(&object.part10, tags::PATIENT_WEIGHT, *b"DS"), Some(&b" 71.50"[..]));
    let qualifiers = first_item(&parsed, tags::ISSUER_OF_PATIENT_ID_QUALIFIERS_SEQUENCE).unwrap();
    assert_eq!(string(qualifiers, tags::UNIVERSAL_ENTITY_ID).as_deref(), Some("1.2.3"));
    let request = first_item(&parsed, tags::REFERENCED_REQUEST_SEQUENCE).unwrap();
    assert_eq!(string(request, tags::REQUESTED_PROCEDURE_ID).as_deref(), Some("RP-7"));
    assert_eq!(string(request, tags::ACCESSION_NUMBER).as_deref(), Some("ACC-1"));
    let meaning = [b"XR ".as_slice(), &[0xd5, 0x5c]].concat();
    let in_tree = object.part10.windows(meaning.len()).filter(|window| *window == meaning).count();
    assert_eq!(in_tree, 2, "the procedure code is copied to the study and to Procedure reported");
    assert!(parsed.get(Tag(0x0009, 0x1001)).is_none());
}

#[test]
fn rendering_twice_gives_the_same_bytes_and_other_runs_other_uids() {
    let sources = samples::three_sources();
    let record = samples::partial(&sources);
    assert_eq!(sr(&record, &sources), sr(&record, &sources));
    assert_eq!(heat_map(&record, &sources), heat_map(&record, &sources));
    let through_json: RunRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(sr(&through_json, &sources), sr(&record, &sources));

    let mut next = record.clone();
    next.result_key = Sha256Digest::of(b"next revision");
    let uids = |object: RenderedObject| [object.sop_instance_uid, object.series_instance_uid];
    let all = [sr(&record, &sources), heat_map(&record, &sources), sr(&next, &sources), heat_map(&next, &sources)];
    let distinct: BTreeSet<Uid> = all.into_iter().flat_map(uids).collect();
    assert_eq!(distinct.len(), 8);
}

#[test]
fn the_file_names_what_it_holds() {
    for (name, object) in all_results() {
        let parsed = parse(&object);
        let meta = parsed.meta();
        assert_eq!(meta.media_storage_sop_class_uid(), object.sop_class_uid.as_str(), "{name}");
        assert_eq!(meta.media_storage_sop_instance_uid(), object.sop_instance_uid.as_str(), "{name}");
        assert_eq!(meta.transfer_syntax(), object.transfer_syntax_uid.as_str(), "{name}");
        assert_eq!(meta.implementation_version_name(), Some("HILUM_TEST"), "{name}");
        assert_eq!(
            string(&parsed, tags::SOP_INSTANCE_UID).as_deref(),
            Some(object.sop_instance_uid.as_str()),
            "{name}"
        );
        assert_eq!(
            string(&parsed, tags::SERIES_INSTANCE_UID).as_deref(),
            Some(object.series_instance_uid.as_str()),
            "{name}"
        );
        assert_eq!(string(&parsed, tags::STUDY_INSTANCE_UID).as_deref(), Some(samples::STUDY), "{name}");
        assert_eq!(object.sha256, Sha256Digest::of(&object.part10), "{name}");
        assert_eq!(string(&parsed, tags::CONTENT_QUALIFICATION).as_deref(), Some("RESEARCH"), "{name}");
        if matches!(object.kind, ResultKind::Sr | ResultKind::SrText) {
            assert_eq!(string(&parsed, tags::VERIFICATION_FLAG).as_deref(), Some("UNVERIFIED"), "{name}");
        }
    }
}

#[test]
fn the_tree_of_an_analysed_study() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Untrained, &sources[0]);
    insta::assert_snapshot!(tree(&parse(&sr(&record, &sources))));
}

#[test]
fn the_tree_of_a_partial_analysis_of_two_images() {
    let sources = samples::three_sources();
    insta::assert_snapshot!(tree(&parse(&sr(&samples::partial(&sources), &sources))));
}

/// As of a bundle whose members are TorchScript files without maps, or may not be explained.
#[test]
fn without_maps_no_form_speaks_of_heat() {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
    analysis.images[0].member_heat_maps.clear();
    analysis.images[0].lung_heat_fraction = None;
    let words = "There is no heat map: the networks that answered give none. No localisation: there is no map";
    let tree = tree(&parse(&sr(&record, &sources)));
    assert!(tree.contains(words), "{tree}");
    for absent in ["HM-THRESHOLD", "Heat map by", "at half its maximum", "not an indication"] {
        assert!(!tree.contains(absent), "{absent}: {tree}");
    }
    let picture = parse(&heat_map(&record, &sources));
    let derivation = string(&picture, tags::DERIVATION_DESCRIPTION).unwrap();
    assert!(derivation.contains(". Output for class COVID-19 of cxr-ensemble 1.2.0 (bundle sha256:"), "{derivation}");
    assert!(derivation.contains(&format!("written around the windowed source image. {words}.")), "{derivation}");
    let comment = string(&picture, tags::IMAGE_COMMENTS).unwrap();
    assert_eq!(comment, "AI overlay without a heat map. NOT FOR DIAGNOSTIC USE");
}

/// What every form says of one radiograph with this share of its heat in the lungs.
fn forms_with_heat_in_lungs(share: Option<f64>) -> [String; 4] {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
    analysis.images[0].lung_heat_fraction = share;
    [
        tree(&parse(&sr(&record, &sources))),
        tree(&parse(&companion(&record, &sources, &plain(ReportClass::BasicText)))),
        tree(&parse(&in_form(&record, &sources, &chinese(ReportClass::Comprehensive)))),
        super::describe(&record),
    ]
}

#[test]
fn heat_beside_the_lungs_is_named_in_every_form() {
    let said = |number: &str| {
        [
            format!("lies in the lungs) = {number} (%, UCUM, Percent)"),
            format!("= \"{number} % of the heat lies in the lungs.\""),
            format!("热量的 {number} % 位于肺内。"),
            format!("  {number} % of the heat lies in the lungs.\n"),
        ]
    };
    let cautions = [
        "Less than half of the heat lies in the lungs: the output may rest on something else.",
        "位于肺内的热量不足一半：输出可能以其他内容为依据。",
    ];
    let is_cautioned = |words: &String| cautions.iter().any(|caution| words.contains(caution));
    let beside = forms_with_heat_in_lungs(Some(0.499));
    for (words, number) in beside.iter().zip(said("49.9")) {
        assert!(is_cautioned(words) && words.contains(&number), "{number} in\n{words}");
        for forbidden in ["阳性", "阴性", "检出", "确诊", "概率", "可疑"] {
            assert!(!words.contains(forbidden), "{forbidden} in\n{words}");
        }
    }
    for (words, number) in forms_with_heat_in_lungs(Some(0.501)).iter().zip(said("50.1")) {
        assert!(!is_cautioned(words) && words.contains(&number), "{number} in\n{words}");
    }
    // Without heat.
    for words in forms_with_heat_in_lungs(None) {
        assert!(
            !is_cautioned(&words) && !words.contains("HEAT-IN-LUNGS") && !words.contains("of the heat lies"),
            "{words}"
        );
    }
}

#[test]
fn an_outcome_of_a_version_that_did_not_measure_the_heat_in_the_lungs_is_read() {
    let sources = [SampleSource::new(SOURCE_1)];
    let RunRecord { outcome, .. } = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let mut stored = serde_json::to_value(&outcome).unwrap();
    assert_eq!(stored["images"][0].as_object_mut().unwrap().remove("lung_heat_fraction"), Some(0.625.into()));
    let RunOutcome::Analysed(read) = serde_json::from_value(stored).unwrap() else { panic!("analysed") };
    let RunOutcome::Analysed(mut written) = outcome else { panic!("analysed") };
    written.images[0].lung_heat_fraction = None;
    assert_eq!(read, written);
}

#[test]
fn the_tree_of_a_study_that_was_not_analysed() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::not_analysed(&sources[0], ReasonCode::ViewNotFrontal);
    insta::assert_snapshot!(tree(&parse(&sr(&record, &sources))));
}

#[test]
fn the_tree_is_the_same_in_every_class_that_has_measurements() {
    let sources = samples::ct_sources();
    let record = samples::ct_outlined(BundleStatus::Unvalidated, &sources);
    let comprehensive = tree(&parse(&sr(&record, &sources)));
    for (class, sop_class, name) in [
        (ReportClass::Enhanced, "1.2.840.10008.5.1.4.1.1.88.22", "enhanced"),
        (ReportClass::Comprehensive3d, "1.2.840.10008.5.1.4.1.1.88.34", "comprehensive 3D"),
    ] {
        let object = in_form(&record, &sources, &plain(class));
        assert_eq!(object.sop_class_uid.as_str(), sop_class, "{name}");
        assert_eq!(tree(&parse(&object)), comprehensive, "{name}");
    }
}

#[test]
fn no_two_forms_share_an_instance() {
    let sources = samples::three_sources();
    let record = samples::partial(&sources);
    let mut objects = Vec::new();
    for class in ReportClass::ALL {
        for language in ["en", "zh", "xx"] {
            for with_segmentation in [false, true] {
                for predecessor in [None, Some(predecessor("2.25.77")), Some(predecessor("2.25.79"))] {
                    let language = language.to_owned();
                    let form = ReportForm { class, language, with_segmentation, predecessor };
                    objects.push(in_form(&record, &sources, &form));
                    if class == ReportClass::BasicText {
                        objects.push(companion(&record, &sources, &form));
                    }
                }
            }
        }
    }
    // A site's own sentences are other sentences.
    let mut options = samples::options();
    let own = [("zh".to_owned(), "conclusion = AI 结论：\n".to_owned())];
    options.texts = Catalogue::new(&own).unwrap();
    let form = chinese(ReportClass::Comprehensive);
    objects.push(render_report(&record, &pairs(&sources), &form, &options).unwrap());
    let distinct: BTreeSet<&Uid> = objects.iter().map(|object| &object.sop_instance_uid).collect();
    assert_eq!(distinct.len(), objects.len());
    let texts = objects.iter().filter(|object| object.kind == ResultKind::SrText);
    let series: BTreeSet<&Uid> = texts.map(|object| &object.series_instance_uid).collect();
    assert!(
        objects
            .iter()
            .all(|object| (object.kind == ResultKind::SrText) == series.contains(&object.series_instance_uid))
    );
}

#[test]
fn the_plain_report_keeps_the_identity_that_it_always_had() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let object = sr(&record, &sources);
    let key = record.result_key.to_string();
    assert_eq!(object.series_instance_uid, uid("series", &["sr", &key]));
    assert_eq!(object.sop_instance_uid, uid("instance", &["sr", "1.2.840.10008.5.1.4.1.1.88.33", &key, "1"]));
}

#[test]
fn lungs_and_lesions_refer_to_the_segments_that_they_measure() {
    let with_segments = |object: &RenderedObject| {
        let shown = tree(&parse(object));
        let mut group = String::new();
        let mut found = Vec::new();
        for line in shown.lines() {
            if let Some((_, name)) = line.split_once("Tracking Identifier) = ") {
                name.clone_into(&mut group);
            }
            if line.contains(" segment ") {
                found.push(format!("{group}: {}", line.trim()));
            }
        }
        found.join("\n")
    };
    let radiographs = samples::three_sources();
    let form = segmented(ReportClass::Enhanced);
    let of_radiographs = in_form(&samples::partial(&radiographs), &radiographs, &form);
    let slices = samples::ct_sources();
    let of_ct = in_form(&samples::ct_outlined(BundleStatus::Unvalidated, &slices), &slices, &form);
    insta::assert_snapshot!([with_segments(&of_radiographs), with_segments(&of_ct)].join("\n"));
    // Without lesions there is no such segment, and no reference to one.
    let mut none = samples::ct_outlined(BundleStatus::Unvalidated, &slices);
    let RunOutcome::CtMeasured(analysis) = &mut none.outcome else { panic!("a measured CT") };
    analysis.lesions.as_mut().unwrap().volume_ml = 0.0;
    assert_eq!(with_segments(&in_form(&none, &slices, &form)).lines().count(), 2);
    assert_eq!(with_segments(&sr(&none, &slices)), "");
}

#[test]
fn the_report_in_sentences() {
    let radiographs = samples::three_sources();
    let similar = with_similar_cases(&radiographs[0]);
    let slices = samples::ct_sources();
    let outlined = samples::ct_outlined(BundleStatus::Unvalidated, &slices);
    let rejected = samples::not_analysed(&radiographs[0], ReasonCode::ViewNotFrontal);
    let form = plain(ReportClass::BasicText);
    let trees = [
        tree(&parse(&companion(&samples::partial(&radiographs), &radiographs, &form))),
        tree(&parse(&companion(&similar, &radiographs[..1], &form))),
        tree(&parse(&companion(&outlined, &slices, &form))),
        tree(&parse(&companion(&rejected, &radiographs[..1], &form))),
    ];
    insta::assert_snapshot!(trees.join("\n"));
    let classified = samples::ct_classified(BundleStatus::Unvalidated, &slices);
    let report = companion(&classified, &slices, &form);
    assert_eq!(report.kind, ResultKind::SrText);
    let parsed = parse(&report);
    assert_eq!(string(&parsed, tags::SERIES_NUMBER).as_deref(), Some("9002"));
    assert_eq!(string(&parsed, tags::SERIES_DESCRIPTION).as_deref(), Some("AI result (text) - NOT FOR DIAGNOSTIC USE"));
    let shown = tree(&parsed);
    assert!(
        shown.contains(
            "Model output for class COVID-19, ensemble (uncalibrated): 62.5 %; members: resnet50 62.5 %, vgg16 failed."
        ),
        "{shown}"
    );
    // The image of the key slice stands for the series.
    assert!(shown.contains("CONTAINS IMAGE (260753009, SCT, Source) = 1.2.826.0.1.3680043.8.498.22"), "{shown}");
    // As the report itself it is in the report's series and says the same.
    let as_report = in_form(&classified, &slices, &form);
    assert_eq!(tree(&parse(&as_report)), shown);
    assert_eq!(string(&parse(&as_report), tags::SERIES_NUMBER).as_deref(), Some("9001"));
}

#[test]
fn the_report_in_chinese() {
    let radiographs = samples::three_sources();
    let slices = samples::ct_sources();
    let form = chinese(ReportClass::BasicText);
    let similar = with_similar_cases(&radiographs[0]);
    let rejected = samples::not_analysed(&radiographs[0], ReasonCode::ViewNotFrontal);
    let mut validated = samples::analysed(BundleStatus::Validated, &radiographs[0]);
    validated.bundle.grey_zone = Some([0.85, 0.9]);
    let trees = [
        tree(&parse(&companion(&samples::partial(&radiographs), &radiographs, &form))),
        tree(&parse(&companion(&similar, &radiographs[..1], &form))),
        tree(&parse(&companion(&validated, &radiographs[..1], &form))),
        tree(&parse(&companion(&samples::ct_classified(BundleStatus::Untrained, &slices), &slices, &form))),
        tree(&parse(&companion(&samples::ct_outlined(BundleStatus::Unvalidated, &slices), &slices, &form))),
        tree(&parse(&companion(&rejected, &radiographs[..1], &form))),
    ];
    // The context of the observer is in another snapshot.
    let shown = trees.join("\n");
    let shown: Vec<&str> = shown.lines().filter(|line| !line.contains("HAS OBS CONTEXT")).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

/// Only texts differ between languages: the structure, codes, numbers and identities are the same.
#[test]
fn languages_differ_in_sentences_only() {
    let without_texts = |object: &RenderedObject| -> Vec<String> {
        let shown = tree(&parse(object));
        let cut = |line: &str| match line.split_once(" = ") {
            Some((item, _)) if item.contains(" TEXT ") || item.contains("Language of Content") => item.to_owned(),
            _ => line.to_owned(),
        };
        shown.lines().map(cut).collect()
    };
    let slices = samples::ct_sources();
    let radiographs = samples::three_sources();
    for (record, sources) in [
        (samples::partial(&radiographs), &radiographs[..]),
        (samples::ct_classified(BundleStatus::Unvalidated, &slices), &slices[..]),
        (samples::ct_outlined(BundleStatus::Untrained, &slices), &slices[..]),
        (samples::not_analysed(&radiographs[0], ReasonCode::SliceGap), &radiographs[..1]),
    ] {
        let english = sr(&record, sources);
        let in_chinese = in_form(&record, sources, &chinese(ReportClass::Comprehensive));
        assert_eq!(without_texts(&in_chinese), without_texts(&english));
        assert!(tree(&parse(&in_chinese)).contains("(zh, RFC5646, Chinese)"));
        assert!(tree(&parse(&english)).contains("(en, RFC5646, English)"));
    }
}

#[test]
fn a_language_of_the_site_names_itself_or_its_tag() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let shown = |file: &str| {
        let mut options = samples::options();
        options.texts = Catalogue::new(&[("pt-BR".to_owned(), file.to_owned())]).unwrap();
        let form = ReportForm { language: "pt-BR".to_owned(), ..plain(ReportClass::Comprehensive) };
        tree(&parse(&render_report(&record, &pairs(&sources), &form, &options).unwrap()))
    };
    let named = shown("language-name = Portuguese (Brazil)\nlocalised = Localizado: saída no limiar ou acima\n");
    assert!(named.contains("(pt-BR, RFC5646, Portuguese (Brazil))") && named.contains("Localizado: saída"), "{named}");
    assert!(shown("localised = Localizado\n").contains("(pt-BR, RFC5646, pt-BR)"));
}

/// Copied names stay what they are where the set can write Chinese, and are decoded where it cannot.
#[test]
fn the_character_set_follows_what_is_written() {
    let name_of = |source: &SampleSource, form: &ReportForm| {
        let record = samples::analysed(BundleStatus::Unvalidated, source);
        let object = in_form(&record, std::slice::from_ref(source), form);
        let value = |tag, vr| raw_value(&object.part10, tag, vr).map(<[u8]>::to_vec).unwrap_or_default();
        let set = String::from_utf8(value(tags::SPECIFIC_CHARACTER_SET, *b"CS")).unwrap();
        assert!(tree(&parse(&object)).contains("Conclusion)"));
        (set.trim_end().to_owned(), value(tags::PATIENT_NAME, *b"PN"))
    };
    let [english, zh] = [plain(ReportClass::Comprehensive), chinese(ReportClass::Comprehensive)];
    for (character_set, name, in_unicode) in [
        (None, b"Sample^Synthetic".to_vec(), "Sample^Synthetic"),
        (Some("ISO_IR 100"), b"M\xfcller^J\xf6rg".to_vec(), "Müller^Jörg "),
        (None, b"M\xfcller^J\xf6rg ".to_vec(), "Müller^Jörg "),
        (Some("\\ISO 2022 IR 87"), b"Yamada=\x1b$B;3ED\x1b(B".to_vec(), "Yamada=山田 "),
    ] {
        let source = SampleSource { character_set, patient_name: name.clone(), ..SampleSource::new(SOURCE_1) };
        let (_, kept) = name_of(&source, &english);
        assert!(kept.starts_with(name.trim_ascii_end()), "{character_set:?}");
        let (set, decoded) = name_of(&source, &zh);
        assert_eq!(set, "ISO_IR 192", "{character_set:?}");
        assert_eq!(String::from_utf8(decoded).unwrap().trim_end(), in_unicode.trim_end(), "{character_set:?}");
    }
    for set in ["GB18030", "GBK", "ISO_IR 192"] {
        let name =
            if set == "ISO_IR 192" { "诚^欣=".as_bytes().to_vec() } else { vec![0xd5, 0x5c, b'^', 0xd0, 0xc0] };
        let source =
            SampleSource { character_set: Some(set), patient_name: name.clone(), ..SampleSource::new(SOURCE_1) };
        let (written, kept) = name_of(&source, &zh);
        assert_eq!(written, set);
        assert!(kept.starts_with(&name), "{set}");
    }
}

#[test]
fn a_rejection_says_what_is_wrong_in_codes() {
    let sources = [SampleSource::new(SOURCE_1)];
    let codes = |reason| {
        let shown = tree(&parse(&sr(&samples::not_analysed(&sources[0], reason), &sources)));
        let about = ["Findings Summary", "Reason for not processing", "Quality Assessment", "Quality Finding"];
        let lines = shown.lines().filter(|line| about.iter().any(|concept| line.contains(concept)));
        lines.map(|line| line.rsplit(" = ").next().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    let nothing = "(111245, DCM, No algorithms succeeded; without findings)";
    let quality = "(110531, DCM, Insufficient quality for interpretation) (RID14, RADLEX, Non-diagnostic quality)";
    for (reason, expected) in [
        (ReasonCode::ViewNotFrontal, format!("{nothing} {quality} (111209, DCM, Positioning)")),
        (ReasonCode::LungMask, format!("{nothing} {quality}")),
        (ReasonCode::SliceGap, format!("{nothing} (110523, DCM, Object Set incomplete)")),
        (ReasonCode::Undecodable, format!("{nothing} (110521, DCM, Objects incorrectly formatted)")),
        (ReasonCode::NoSuitableImage, format!("{nothing} (110522, DCM, Object Types not supported)")),
        (
            ReasonCode::ProcessingFailure,
            format!("{nothing} (110513, DCM, Discontinued for unspecified reason) (111218, DCM, Software failure)"),
        ),
    ] {
        assert_eq!(codes(reason), expected, "{reason:?}");
    }
}

#[rstest]
#[case(BundleStatus::Unvalidated, Decision::Present, false, "Succeeded")]
#[case(BundleStatus::Unvalidated, Decision::Present, true, "Partially Succeeded")]
#[case(BundleStatus::Validated, Decision::Present, false, "All algorithms succeeded; with findings")]
#[case(BundleStatus::Validated, Decision::Absent, true, "Not all algorithms succeeded; without findings")]
#[case(BundleStatus::Validated, Decision::Undetermined, true, "Partially Succeeded")]
fn the_summary_of_a_ct_says_what_its_networks_came_to(
    #[case] status: BundleStatus,
    #[case] decision: Decision,
    #[case] one_failed: bool,
    #[case] summary: &str,
) {
    let sources = samples::ct_sources();
    let mut record = samples::ct_classified(status, &sources);
    let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("a measured CT") };
    let scan = analysis.classification.as_mut().unwrap();
    scan.decision = decision;
    if !one_failed {
        scan.members.pop();
    }
    let shown = tree(&parse(&sr(&record, &sources)));
    assert!(shown.contains(&format!("DCM, {summary})\n")), "{shown}");
}

#[test]
fn a_ct_series_names_its_frame_of_reference() {
    let mut sources = samples::ct_sources();
    sources[0].more = vec![text(0x0020, 0x0052, "UI", b"1.2.826.0.1.3680043.8.498.29")];
    let shown = tree(&parse(&sr(&samples::ct_measured(BundleStatus::Unvalidated, &sources), &sources)));
    let line = "HAS ACQ CONTEXT UIDREF (112227, DCM, Frame of Reference UID) = 1.2.826.0.1.3680043.8.498.29";
    assert_eq!(shown.matches(line).count(), 1, "{shown}");
}

#[test]
fn the_text_for_people() {
    let sources = samples::three_sources();
    let texts = [
        describe(&samples::analysed(BundleStatus::Untrained, &sources[0])),
        describe(&samples::partial(&sources)),
        describe(&samples::not_analysed(&sources[0], ReasonCode::LungMask)),
    ];
    insta::assert_snapshot!(texts.join("\n=====\n\n"));
}

#[test]
fn the_attributes_of_a_heat_map() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Untrained, &sources[0]);
    let parsed = parse(&heat_map(&record, &sources));
    let mut out = String::new();
    for element in parsed.iter().filter(|element| element.tag() != tags::PIXEL_DATA) {
        let value = match element.items() {
            Some(items) => format!("{} items", items.len()),
            None => element.to_str().unwrap().trim_end_matches(['\0', ' ']).to_owned(),
        };
        writeln!(out, "{} {} {value}", element.tag(), element.vr()).unwrap();
    }
    insta::assert_snapshot!(out);
}

/// SOP Instance UIDs: those that the evidence sequences name, in order, and those that the tree refers to.
fn evidence_and_references(parsed: &InMemDicomObject) -> (Vec<String>, BTreeSet<String>) {
    let mut evidence = Vec::new();
    for sequence in [tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE, tags::PERTINENT_OTHER_EVIDENCE_SEQUENCE] {
        for study in parsed.get(sequence).and_then(|element| element.items()).unwrap_or_default() {
            walk(study, &mut |element| {
                if element.tag() == tags::REFERENCED_SOP_INSTANCE_UID {
                    evidence.push(element.to_str().unwrap().trim_end_matches('\0').to_owned());
                }
            });
        }
    }
    evidence.sort();
    let mut referenced = BTreeSet::new();
    for item in parsed.element(tags::CONTENT_SEQUENCE).unwrap().items().unwrap() {
        walk(item, &mut |element| {
            if element.tag() == tags::REFERENCED_SOP_INSTANCE_UID {
                referenced.insert(element.to_str().unwrap().trim_end_matches('\0').to_owned());
            }
        });
    }
    (evidence, referenced)
}

#[test]
fn every_referenced_instance_is_in_the_evidence_once() {
    for (name, object) in all_results() {
        if !matches!(object.kind, ResultKind::Sr | ResultKind::SrText) {
            continue;
        }
        let (evidence, referenced) = evidence_and_references(&parse(&object));
        assert!(!evidence.is_empty(), "{name}");
        assert_eq!(evidence, referenced.into_iter().collect::<Vec<_>>(), "{name}");
    }
}

/// Identifiers that are UIDs of somebody: not ours, not DICOM's own, not of the study.
fn foreign_uids(object: &InMemDicomObject) -> Vec<String> {
    let mut texts = Vec::new();
    walk(object, &mut |element| {
        if element.vr() != VR::SQ {
            texts.push(element.to_str().unwrap_or_default().into_owned());
        }
    });
    texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_digit() && c != '.'))
        .filter(|word| word.split('.').filter(|part| !part.is_empty()).count() >= 4)
        .filter(|word| {
            !["1.2.826.0.1.3680043.8.498.", "1.2.840.", "2.16.840.", "2.25."].iter().any(|own| word.starts_with(own))
        })
        .map(str::to_owned)
        .collect()
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(96))]

    #[test]
    fn references_resolve_and_lead_to_nobody_else(
        outcome in 0_usize..6,
        class in 0_usize..4,
        is_companion: bool,
        is_chinese: bool,
        with_segmentation: bool,
        failures in 0_usize..3,
        case_ids in proptest::collection::vec("LIB-[0-9A-F]{4,16}", 0..4),
    ) {
        let sources = samples::three_sources();
        let of_ct = samples::ct_sources();
        let status = BundleStatus::Unvalidated;
        let (mut record, sources) = match outcome {
            0 => (samples::analysed(status, &sources[0]), &sources[..1]),
            1 => (samples::partial(&sources), &sources[..]),
            2 => (samples::not_analysed(&sources[0], ReasonCode::LungMask), &sources[..]),
            3 => (samples::ct_measured(status, &of_ct), &of_ct[..]),
            4 => (samples::ct_classified(status, &of_ct), &of_ct[..]),
            _ => (samples::ct_outlined(status, &of_ct), &of_ct[..]),
        };
        if let RunOutcome::Analysed(analysis) = &mut record.outcome {
            let ids: Vec<&str> = case_ids.iter().map(String::as_str).collect();
            let image = analysis.images.last_mut().unwrap();
            image.similar_cases = Some(similar("COVID-19", &ids));
            for member in image.members.iter_mut().take(failures) {
                member.failure = Some("out of memory".to_owned());
            }
        }
        let class = ReportClass::ALL[class];
        let form = ReportForm { with_segmentation, ..if is_chinese { chinese(class) } else { plain(class) } };
        let object = if is_companion { companion(&record, sources, &form) } else { in_form(&record, sources, &form) };
        let parsed = parse(&object);
        let (evidence, referenced) = evidence_and_references(&parsed);
        proptest::prop_assert!(!evidence.is_empty());
        proptest::prop_assert_eq!(&evidence, &referenced.into_iter().collect::<Vec<_>>());
        // The earlier study of the same patient is named in words; its image is not, and nobody else is.
        let foreign = foreign_uids(&parsed);
        proptest::prop_assert!(foreign.iter().all(|uid| uid == "1.2.3.99"), "{:?}", foreign);
    }

    #[test]
    fn any_text_and_any_number_fit_their_value_representation(
        words in proptest::collection::vec("[^\u{fffd}]{0,90}", 4),
        numbers in proptest::collection::vec(proptest::num::f64::ANY, 4),
        set in 0_usize..6,
        class in 0_usize..4,
        is_chinese: bool,
    ) {
        let sets = [None, Some("ISO_IR 192"), Some("ISO_IR 100"), Some("GB18030"), Some("GBK"), Some("\\ISO 2022 IR 87")];
        let sources = [SampleSource { character_set: sets[set], ..SampleSource::new(SOURCE_1) }];
        let mut record = samples::partial(&samples::three_sources());
        record = RunRecord { outcome: samples::analysed(BundleStatus::Unvalidated, &sources[0]).outcome, ..record };
        record.installation.station_name.clone_from(&words[0]);
        record.installation.institution_name.clone_from(&words[1]);
        record.bundle.classes[0].label.clone_from(&words[2]);
        record.bundle.classes[0].code.meaning.clone_from(&words[3]);
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
        let image = &mut analysis.images[0];
        image.fused = numbers[..2].to_vec();
        image.member_spread = numbers[2];
        image.right_lung_heat_fraction = Some(numbers[3]);
        image.lung_heat_fraction = Some(numbers[3]);
        image.gates[0].words.clone_from(&words[3]);
        image.members[0].failure = Some(words[2].clone());
        let class = ReportClass::ALL[class];
        let form = if is_chinese { chinese(class) } else { plain(class) };
        assert_limits(&parse(&in_form(&record, &sources, &form)));
    }
}

/// No value is longer than its value representation allows, nor cut where nobody meant to.
fn assert_limits(object: &InMemDicomObject) {
    walk(object, &mut |element| {
        let limit = match element.vr() {
            VR::SH | VR::CS | VR::DS | VR::AE => 16,
            VR::LO | VR::UI => 64,
            VR::IS => 12,
            VR::ST => 1024,
            VR::LT => 10240,
            _ => usize::MAX,
        };
        let value = element.to_str().unwrap_or_default();
        for part in value.split('\\') {
            let length = part.trim_end_matches(['\0', ' ']).chars().count();
            assert!(length <= limit, "{} {} has {length} characters", element.tag(), element.vr());
        }
        assert!(!value.contains('\u{fffd}'), "{} {}: {value}", element.tag(), element.vr());
    });
}

/// Tracking UIDs by identifier.
fn tracking(record: &RunRecord, sources: &[SampleSource]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let parsed = parse(&sr(record, sources));
    let measurements = parsed.element(tags::CONTENT_SEQUENCE).unwrap().items().unwrap();
    let groups = measurements
        .iter()
        .filter_map(|item| item.get(tags::CONTENT_SEQUENCE))
        .flat_map(|children| children.items().unwrap())
        .filter_map(|group| group.get(tags::CONTENT_SEQUENCE)?.items())
        .filter(|children| string(&children[0], tags::TEXT_VALUE).is_some());
    for children in groups {
        let identifier = string(&children[0], tags::TEXT_VALUE).unwrap();
        let uid = string(&children[1], tags::UID).unwrap();
        assert_eq!(found.insert(identifier.clone(), uid), None, "{identifier} occurs twice");
    }
    let distinct: BTreeSet<&String> = found.values().collect();
    assert_eq!(distinct.len(), found.len());
    found
}

#[test]
fn tracking_identities_are_unique_in_a_document_and_stable_over_revisions() {
    let sources = samples::three_sources();
    let first = samples::partial(&sources);
    let mut second = first.clone();
    second.revision = 3;
    second.result_key = Sha256Digest::of(b"third");
    let found = tracking(&first, &sources);
    assert_eq!(found.len(), 2 * (2 + 4 + 3), "{found:#?}");
    assert_eq!(found, tracking(&second, &sources));
}

#[test]
fn nothing_says_more_than_a_model_output() {
    for (name, object) in all_results() {
        let mut texts = Vec::new();
        walk(&parse(&object), &mut |element| {
            if element.vr() != VR::SQ && element.tag() != tags::PIXEL_DATA {
                texts.push(element.to_str().unwrap().to_lowercase());
            }
        });
        assert_wording(&name, &texts.join("\n"));
    }
    let sources = samples::three_sources();
    for record in [samples::partial(&sources), samples::not_analysed(&sources[0], ReasonCode::LungMask)] {
        assert_wording("describe", &describe(&record).to_lowercase());
    }
}

fn assert_wording(name: &str, text: &str) {
    for forbidden in ["阳性", "阴性", "检出", "诊断为", "确诊", "疑似", "概率", "患有"] {
        assert!(!text.contains(forbidden), "{name} says {forbidden}: {text}");
    }
    for forbidden in ["positive", "negative", "detected", "diagnosis", "probability", "infected", "suspicious"] {
        assert!(!text.contains(forbidden), "{name} says {forbidden}: {text}");
    }
}

#[test]
fn untrained_weights_announce_themselves_everywhere() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Untrained, &sources[0]);
    let report = parse(&sr(&record, &sources));
    let picture = parse(&heat_map(&record, &sources));
    for (object, tag) in [
        (&report, tags::SERIES_DESCRIPTION),
        (&picture, tags::SERIES_DESCRIPTION),
        (&picture, tags::DERIVATION_DESCRIPTION),
        (&picture, tags::IMAGE_COMMENTS),
    ] {
        assert!(string(object, tag).unwrap().contains(UNTRAINED_NOTICE), "{tag}");
    }
    let tree = tree(&report);
    assert!(tree.contains(&format!("Conclusion) = \"{UNTRAINED_NOTICE}")));
    assert!(tree.contains(&format!("Comment) = \"{UNTRAINED_NOTICE}")));
    assert!(describe(&record).contains(UNTRAINED_NOTICE));

    let rejected = samples::not_analysed(&sources[0], ReasonCode::ImageQuality);
    let rejected = RunRecord { bundle: samples::bundle(BundleStatus::Untrained), ..rejected };
    let description = string(&parse(&sr(&rejected, &sources)), tags::SERIES_DESCRIPTION).unwrap();
    assert_eq!(description, format!("AI not analysed - {UNTRAINED_NOTICE}"));
    assert!(description.len() <= 64);
}

#[rstest]
#[case(BundleStatus::Untrained, Decision::Present, "Undetermined", "Succeeded")]
#[case(BundleStatus::Unvalidated, Decision::Present, "Undetermined", "Succeeded")]
#[case(BundleStatus::Unvalidated, Decision::Absent, "Undetermined", "Succeeded")]
#[case(BundleStatus::Validated, Decision::Present, "Present", "All algorithms succeeded; with findings")]
#[case(BundleStatus::Validated, Decision::Absent, "Absent", "All algorithms succeeded; without findings")]
#[case(BundleStatus::Validated, Decision::Undetermined, "Undetermined", "Succeeded")]
fn only_validated_bundles_decide(
    #[case] status: BundleStatus,
    #[case] decision: Decision,
    #[case] presence: &str,
    #[case] summary: &str,
) {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::analysed(status, &sources[0]);
    if let RunOutcome::Analysed(analysis) = &mut record.outcome {
        analysis.images[0].decision = decision;
    }
    let tree = tree(&parse(&sr(&record, &sources)));
    let presences: Vec<&str> = tree.lines().filter(|line| line.contains("SCT, Presence)")).collect();
    assert_eq!(presences.len(), 1);
    assert!(presences[0].ends_with(&format!("SCT, {presence})")), "{presences:?}");
    assert!(tree.contains(&format!("DCM, {summary})\n")), "{tree}");
    assert_eq!(tree.contains("findings"), summary.contains("findings"));
}

#[test]
fn the_grey_zone_is_named_and_says_why_nothing_is_decided() {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::analysed(BundleStatus::Validated, &sources[0]);
    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    let image = &mut analysis.images[0];
    let output = image.fused[record.bundle.target_class_idx];
    image.decision = Decision::Undetermined;
    for member in &mut image.members {
        member.failure = None;
    }
    let shown = |record: &RunRecord| tree(&parse(&sr(record, &sources)));
    assert!(shown(&record).contains("Decision: undetermined."), "nothing is known of a reason");

    record.bundle.grey_zone = Some([output - 0.05, output + 0.05]);
    let in_zone = shown(&record);
    let zone = format!("{:.1} % to below {:.1} %", (output - 0.05) * 100.0, (output + 0.05) * 100.0);
    assert!(in_zone.contains(&format!("(grey zone {zone})")), "{in_zone}");
    assert!(
        in_zone.contains(&format!("Decision: undetermined, because the output lies in the grey zone, {zone}.")),
        "{in_zone}"
    );
    assert!(in_zone.contains(&format!("grey_zone={:.4} to {:.4}", output - 0.05, output + 0.05)), "{in_zone}");

    let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
    analysis.images[0].members[0].failure = Some("no memory".to_owned());
    assert!(shown(&record).contains("; 1 of "), "{}", shown(&record));
}

#[test]
fn a_failed_member_makes_the_report_partial_without_an_empty_number() {
    let sources = samples::three_sources();
    let form = ReportForm { predecessor: Some(predecessor("2.25.77")), ..plain(ReportClass::Comprehensive) };
    let parsed = parse(&in_form(&samples::partial(&sources), &sources, &form));
    assert_eq!(string(&parsed, tags::COMPLETION_FLAG).as_deref(), Some("PARTIAL"));
    let description = string(&parsed, tags::COMPLETION_FLAG_DESCRIPTION);
    assert_eq!(description.as_deref(), Some("1 of 4 ensemble member runs failed"));
    walk(&parsed, &mut |element| {
        if element.tag() == tags::MEASURED_VALUE_SEQUENCE {
            assert_eq!(element.items().unwrap().len(), 1);
        }
    });
    let predecessor = first_item(&parsed, tags::PREDECESSOR_DOCUMENTS_SEQUENCE).unwrap();
    let series = first_item(predecessor, tags::REFERENCED_SERIES_SEQUENCE).unwrap();
    assert_eq!(string(series, tags::SERIES_INSTANCE_UID).as_deref(), Some("2.25.78"));
    let document = first_item(series, tags::REFERENCED_SOP_SEQUENCE).unwrap();
    assert_eq!(string(document, tags::REFERENCED_SOP_INSTANCE_UID).as_deref(), Some("2.25.77"));
}

#[test]
fn numbers_that_are_none_become_words() {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::analysed(BundleStatus::Validated, &sources[0]);
    if let RunOutcome::Analysed(analysis) = &mut record.outcome {
        let image = &mut analysis.images[0];
        image.fused = vec![f64::NAN, f64::INFINITY];
        image.members[0].probabilities = vec![f64::NAN, f64::NAN];
        image.member_spread = f64::NAN;
    }
    let object = sr(&record, &sources);
    let tree = tree(&parse(&object));
    assert!(!tree.contains("NaN") && !tree.contains("inf "), "{tree}");
    assert_eq!(tree.matches("no value, the output is not a finite number").count(), 5);
    assert!(!describe(&record).contains("NaN"));
}

#[test]
fn texts_of_any_length_fit_their_value_representation() {
    let long = "诚 \\ é \n".repeat(100);
    for character_set in [None, Some("ISO_IR 192"), Some("GB18030"), Some("\\ISO 2022 IR 87")] {
        let source = SampleSource { character_set, ..SampleSource::new(SOURCE_1) };
        let sources = [source];
        let mut record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
        record.installation.station_name.clone_from(&long);
        record.installation.institution_name.clone_from(&long);
        let bundle = &mut record.bundle;
        bundle.name.clone_from(&long);
        bundle.version.clone_from(&long);
        bundle.reference_performance.clone_from(&long);
        bundle.classes[0].label.clone_from(&long);
        bundle.classes[0].code.meaning.clone_from(&long);
        bundle.members[0].name.clone_from(&long);
        bundle.members[0].version.clone_from(&long);
        bundle.members[0].architecture.clone_from(&long);
        let mut options = samples::options();
        options.manufacturer.clone_from(&long);
        options.software_version.clone_from(&long);
        options.file_meta.implementation_version_name.clone_from(&long);
        let pairs = pairs(&sources);
        let report = render_report(&record, &pairs, &plain(ReportClass::Comprehensive), &options).unwrap();
        let picture = render_heat_map(&record, 0, &picture_form(), &pairs, &samples::overlay(3, 3), &options).unwrap();
        for object in [report, picture] {
            let parsed = parse(&object);
            assert!(parsed.meta().implementation_version_name().unwrap().len() <= 16);
            assert_limits(&parsed);
        }
    }
}

#[rstest]
// The source's own offset counts; the date changes with it.
#[case(Some("+1400"), Some(offset!(-5)), datetime!(2020-03-15 10:15:30.5 UTC), Some("+1400"), "20200316", "001530.500000")]
#[case(Some("-0330"), None, datetime!(2020-03-15 02:15:30 UTC), Some("-0330"), "20200314", "224530.000000")]
// Without one, the site's.
#[case(None, Some(offset!(+8)), datetime!(2020-03-15 20:00 UTC), Some("+0800"), "20200316", "040000.000000")]
// An illegal one is none.
#[case(Some("-0000"), Some(offset!(UTC)), datetime!(2020-03-15 20:00 +1), Some("+0000"), "20200315", "190000.000000")]
// With neither, the wall clock of the record, and no claim.
#[case(None, None, datetime!(2020-03-15 20:00 +1), None, "20200315", "200000.000000")]
fn generated_times_are_in_the_offset_of_the_copied_ones(
    #[case] timezone: Option<&'static str>,
    #[case] site: Option<UtcOffset>,
    #[case] started_at: time::OffsetDateTime,
    #[case] written: Option<&str>,
    #[case] date: &str,
    #[case] clock: &str,
) {
    let source = SampleSource { timezone, ..SampleSource::new(SOURCE_1) };
    let sources = [source];
    let mut record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    record.started_at = started_at;
    let mut options = samples::options();
    options.site_utc_offset = site;
    let parsed =
        parse(&render_report(&record, &pairs(&sources), &plain(ReportClass::Comprehensive), &options).unwrap());
    assert_eq!(string(&parsed, tags::TIMEZONE_OFFSET_FROM_UTC).as_deref(), written);
    assert_eq!(string(&parsed, tags::CONTENT_DATE).as_deref(), Some(date));
    assert_eq!(string(&parsed, tags::CONTENT_TIME).as_deref(), Some(clock));
    assert_eq!(string(&parsed, tags::STUDY_TIME).as_deref(), Some("093000"));
}

#[rstest]
#[case::same_size(32, 40, Some("0.143\\0.143"), "YES")]
#[case::enlarged(64, 80, Some("0.0715\\0.0715"), "NO")]
#[case::rounded(16, 20, Some("0.286\\0.286"), "NO")]
#[case::banner_added(32, 48, None, "NO")]
fn spacing_follows_the_size_of_the_overlay(
    #[case] width: u32,
    #[case] height: u32,
    #[case] spacing: Option<&str>,
    #[case] preserved: &str,
) {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let overlay = samples::overlay(width, height);
    let object = render_heat_map(&record, 0, &picture_form(), &pairs(&sources), &overlay, &samples::options()).unwrap();
    let parsed = parse(&object);
    assert_eq!(string(&parsed, tags::PIXEL_SPACING).as_deref(), spacing);
    let source = first_item(&parsed, tags::SOURCE_IMAGE_SEQUENCE).unwrap();
    assert_eq!(string(source, tags::SPATIAL_LOCATIONS_PRESERVED).as_deref(), Some(preserved));
    assert_eq!(string(source, tags::REFERENCED_SOP_INSTANCE_UID).as_deref(), Some(SOURCE_1));
    let pixels = parsed.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap().into_owned();
    assert_eq!(pixels[..overlay.bytes.len()], overlay.bytes);
    assert_eq!(pixels.len() % 2, 0);
}

#[rstest]
#[case("0.000000\\0.000000")]
#[case("0.1")]
#[case("0.1\\0.1\\0.1")]
#[case("-0.1\\0.1")]
#[case("NaN\\0.1")]
#[case("x\\y")]
fn a_spacing_that_cannot_be_is_not_copied(#[case] spacing: &'static str) {
    let sources = [SampleSource { pixel_spacing: Some(spacing), ..SampleSource::new(SOURCE_1) }];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    assert!(parse(&heat_map(&record, &sources)).get(tags::PIXEL_SPACING).is_none());
}

#[test]
fn imager_pixel_spacing_never_becomes_pixel_spacing_and_lossy_stays_lossy() {
    let mut source = SampleSource { pixel_spacing: None, ..SampleSource::new(SOURCE_1) };
    source.more = vec![text(0x0028, 0x2110, "CS", b"01"), text(0x0028, 0x2112, "DS", b"12.5")];
    source.more.extend([text(0x0028, 0x2114, "CS", b"ISO_10918_1"), text(0x0028, 0x0301, "CS", b"YES")]);
    let sources = [source];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let parsed = parse(&heat_map(&record, &sources));
    assert_eq!(string(&parsed, tags::PIXEL_SPACING), None);
    assert_eq!(string(&parsed, tags::IMAGER_PIXEL_SPACING), None);
    assert_eq!(string(&parsed, tags::LOSSY_IMAGE_COMPRESSION).as_deref(), Some("01"));
    assert_eq!(string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_RATIO).as_deref(), Some("12.5"));
    assert_eq!(string(&parsed, tags::LOSSY_IMAGE_COMPRESSION_METHOD).as_deref(), Some("ISO_10918_1"));
    assert_eq!(string(&parsed, tags::BURNED_IN_ANNOTATION).as_deref(), Some("YES"));
}

#[test]
fn a_rejection_without_images_names_what_was_received() {
    let sources = [SampleSource::new(SOURCE_1)];
    let mut record = samples::not_analysed(&sources[0], ReasonCode::NoSuitableImage);
    if let RunOutcome::NotAnalysed(not_analysed) = &mut record.outcome {
        not_analysed.sources.clear();
    }
    let tree = tree(&parse(&sr(&record, &sources)));
    assert!(tree.contains(&format!("CONTAINS IMAGE (260753009, SCT, Source) = {SOURCE_1}")));
    assert!(tree.contains("(input.no_suitable_image)"));
}

#[test]
fn what_cannot_be_rendered_is_refused_with_its_reason() {
    let sources = samples::three_sources();
    let record = samples::partial(&sources);
    let options = samples::options();
    let form = plain(ReportClass::Comprehensive);
    let message = |result: Result<RenderedObject, ReportError>| result.unwrap_err().to_string();

    assert!(message(render_report(&record, &[], &form, &options)).contains("at least one source image"));
    let only_third = pairs(&sources[2..]);
    assert!(message(render_report(&record, &only_third, &form, &options)).contains("498.11 is missing"));
    assert!(
        message(render_heat_map(&record, 0, &picture_form(), &only_third, &samples::overlay(2, 2), &options))
            .contains("498.11")
    );
    // The header of an excluded image may be missing: it may be what could not be read.
    assert!(render_report(&record, &pairs(&sources[..2]), &form, &options).is_ok());

    let all = pairs(&sources);
    assert!(
        message(render_heat_map(&record, 2, &picture_form(), &all, &samples::overlay(2, 2), &options))
            .contains("number 2")
    );
    for (width, height, bytes) in [(0, 2, 0), (2, 2, 11), (65536, 1, 196_608)] {
        let overlay = RgbPixels { width, height, bytes: vec![0; bytes] };
        assert!(
            message(render_heat_map(&record, 0, &picture_form(), &all, &overlay, &options))
                .contains("not an RGB image")
        );
    }
    let mut other_study = record.clone();
    other_study.study_instance_uid = Uid::new("1.2.3").unwrap();
    assert!(message(render_report(&other_study, &all, &form, &options)).contains("not of study 1.2.3"));

    let mut no_target = record.clone();
    no_target.bundle.target_class_idx = 7;
    assert!(message(render_report(&no_target, &all, &form, &options)).contains("target class number 7"));
    let mut fewer_outputs = record.clone();
    if let RunOutcome::Analysed(analysis) = &mut fewer_outputs.outcome {
        analysis.images[0].fused.pop();
    }
    assert!(message(render_report(&fewer_outputs, &all, &form, &options)).contains("1 fused outputs for 2 classes"));
    let mut empty = record;
    empty.outcome = RunOutcome::Analysed(CxrAnalysis { images: Vec::new(), excluded: Vec::new() });
    assert!(message(render_report(&empty, &all, &form, &options)).contains("names no image"));
}

#[test]
fn damaged_sources_are_refused_without_a_panic_and_without_patient_data() {
    let source = SampleSource::new(SOURCE_1);
    let file = source.part10(Syntax::ExplicitLittle);
    assert!(SourceHeader::from_part10(b"").is_err());
    assert!(SourceHeader::from_part10(&[0; 200]).is_err());
    // Cut anywhere: an error or a header, never a panic.
    for length in 0..file.len().min(1200) {
        if let Err(error) = SourceHeader::from_part10(&file[..length]) {
            assert!(!error.to_string().contains("Synthetic"), "{error}");
        }
    }
    // The rest of the file is not needed.
    let pixel_data = file.windows(4).position(|window| window == [0xe0, 0x7f, 0x10, 0x00]).unwrap();
    assert_eq!(SourceHeader::from_part10(&file[..pixel_data + 12]).unwrap(), source.header());

    let mut lying = SampleSource::new(SOURCE_1);
    lying.more = vec![(0x0009, 0x1001, "UN", samples::Sample::Bytes(b"LENGTH".to_vec()))];
    let mut file = lying.part10(Syntax::ExplicitLittle);
    let at = file.windows(6).position(|window| window == b"LENGTH").unwrap();
    file[at - 4..at].copy_from_slice(&0xffff_fff0_u32.to_le_bytes());
    let error = SourceHeader::from_part10(&file).unwrap_err().to_string();
    assert!(error.contains("declares 4294967280 bytes"), "{error}");

    let mut nameless = SampleSource::new(SOURCE_1);
    nameless.more = vec![text(0x0020, 0x000d, "UI", b"")];
    let error = SourceHeader::from_part10(&nameless.part10(Syntax::ExplicitLittle)).unwrap_err().to_string();
    assert!(error.contains("(0020,000D)"), "{error}");
}

proptest::proptest! {
    #[test]
    fn mutilated_sources_never_panic(
        changes in proptest::collection::vec((0_usize..900, proptest::num::u8::ANY), 1..8),
        syntax in 0_usize..4,
    ) {
        let syntaxes = [Syntax::ExplicitLittle, Syntax::ImplicitLittle, Syntax::ExplicitBig, Syntax::Deflated];
        let request = vec![vec![text(0x0040, 0x1001, "SH", b"RP-7")]];
        let mut source = SampleSource::new(SOURCE_1);
        source.more = vec![(0x0010, 0x0024, "SQ", samples::Sample::Items(request))];
        let mut file = source.part10(syntaxes[syntax]);
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        // What can be read can be rendered, or is refused.
        if let Ok(header) = SourceHeader::from_part10(&file) {
            let record = samples::analysed(BundleStatus::Unvalidated, &source);
            let _ = render_report(&record, &[(source.image(), header)], &plain(ReportClass::Comprehensive), &samples::options());
        }
    }
}

#[test]
fn debug_output_holds_no_patient_data() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::analysed(BundleStatus::Unvalidated, &sources[0]);
    let shown = format!("{:?} {:?}", sources[0].header(), sr(&record, &sources));
    assert!(!shown.contains("Synthetic") && !shown.contains("SYN-1"), "{shown}");
}

/// What validators say about the samples and not about us: the sources of some lack type 2 attributes, and no
/// validator reads every character set (GB18030's 5CH separates values to who does not know it).
const ALLOWED_ABOUT_SAMPLES: [(&str, &str); 5] = [
    ("bare", "Missing attribute or value that would be needed to build DICOMDIR"),
    ("iso2022jp", "Reading unknown/unsupported SpecificCharacterSet (\\ISO 2022 IR 87)"),
    ("gb18030", "Bad attribute Value Multiplicity Type 2 Required Element=<PatientName> Module=<Patient>"),
    ("gb18030", "Bad attribute Value Multiplicity 2 (1 Required by Dictionary) Element=<PatientName> Module=<Patient>"),
    ("gb18030", "PatientName (0010,0010) VM != 1 in PatientModule"),
];

/// Reading back with dicom-rs alone would prove little: other people's validators read all samples.
/// `HILUM_REPORT_SAMPLES` names a folder that keeps the files.
#[test]
fn heavy_validators_accept_all_results() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("HILUM_REPORT_SAMPLES").map_or(temporary.path().to_path_buf(), Into::into);
    for (name, object) in all_results() {
        fs_err::write(folder.join(format!("{name}.dcm")), &object.part10).unwrap();
    }
    validators::assert_valid(&folder, &ALLOWED_ABOUT_SAMPLES);
}

#[test]
fn similar_cases_are_named_without_a_way_to_other_patients() {
    use crate::types::CaseLibraryVersion;
    let sources = samples::three_sources();
    for (status, caution) in [
        (BundleStatus::Untrained, "these distances mean nothing"),
        (BundleStatus::Unvalidated, "not evidence for this patient"),
    ] {
        let mut record = samples::analysed(status, &sources[0]);
        let label = record.bundle.classes[0].label.clone();
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
        analysis.images[0].similar_cases = Some(SimilarCases {
            method: "all-members".into(),
            library: Some(CaseLibraryVersion { n_cases: 7, sha256: Sha256Digest::of(b"library") }),
            cases: vec![
                SimilarCase { case_id: "LIB-1".into(), distance: 1.0, label, cohort: "open".into() },
                SimilarCase {
                    case_id: "LIB-2".into(),
                    distance: 1.2,
                    label: "unheard of".into(),
                    cohort: "open".into(),
                },
            ],
            priors: vec![PriorImage {
                study_instance_uid: Uid::new("1.2.3.99").unwrap(),
                sop_instance_uid: Uid::new("1.2.3.99.1").unwrap(),
                study_date: Some("20250102".into()),
                distance: 0.0,
            }],
            reason: None,
        });
        let shown = tree(&parse(&sr(&record, &sources[..1])));
        for part in
            ["Similar case 1", "LIB-2", "unheard of", "Prior image 1", "2025-01-02", "1.2.3.99", "7 cases", caution]
        {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert!(!shown.contains("1.2.3.99.1"), "no reference leads out of the study:\n{shown}");
        assert_eq!(shown.matches("Neighbour rank").count(), 2, "priors are in the order of their dates:\n{shown}");
        let text = super::describe(&record);
        assert!(text.contains("LIB-1") && text.contains("20250102") && text.contains(caution), "{text}");

        // A later revision finds another case first: what is tracked is the case, not its place.
        let before = tracking(&record, &sources[..1]);
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!() };
        let similar = analysis.images[0].similar_cases.as_mut().unwrap();
        similar.cases.swap(0, 1);
        similar.cases[1].case_id = "LIB-3".into();
        let after = tracking(&record, &sources[..1]);
        assert_eq!(before["Similar case 2"], after["Similar case 1"]);
        assert_ne!(before["Similar case 1"], after["Similar case 2"]);
        assert_eq!(before["Prior image 1"], after["Prior image 1"]);
    }
}
