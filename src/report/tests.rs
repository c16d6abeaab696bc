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
    BundleStatus, CxrAnalysis, Decision, ReasonCode, RunOutcome, RunRecord, Sha256Digest, UNTRAINED_NOTICE, Uid,
};

#[path = "../../tests/it/validators.rs"]
#[allow(unreachable_pub, reason = "the module belongs to the integration tests")]
mod validators;

const SOURCE_1: &str = "1.2.826.0.1.3680043.8.498.11";

fn parse(object: &RenderedObject) -> DefaultDicomObject {
    dicom_object::from_reader(&object.part10[128..]).unwrap()
}

fn pairs(sources: &[SampleSource]) -> Vec<(SourceImage, SourceHeader)> {
    sources.iter().map(|source| (source.image(), source.header())).collect()
}

fn sr(record: &RunRecord, sources: &[SampleSource]) -> RenderedObject {
    render_sr(record, &pairs(sources), &samples::options()).unwrap()
}

fn heat_map(record: &RunRecord, sources: &[SampleSource]) -> RenderedObject {
    render_heat_map(record, 0, &pairs(sources), &samples::overlay(32, 40), &samples::options()).unwrap()
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
                string(reference, tags::REFERENCED_SOP_INSTANCE_UID).unwrap()
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
        let record = samples::not_analysed(&sources[0], ReasonCode::ViewNotFrontal);
        results.push((format!("{name}-rejected-sr"), sr(&record, &sources)));
    }
    let sources = samples::three_sources();
    let record = samples::partial(&sources);
    results.push(("partial-sr".to_owned(), sr(&record, &sources)));
    for image_idx in 0..2 {
        let overlay = samples::overlay(31, 39);
        let object = render_heat_map(&record, image_idx, &pairs(&sources), &overlay, &samples::options()).unwrap();
        results.push((format!("partial-sc-{image_idx}"), object));
    }
    let sources = samples::ct_sources();
    for status in [BundleStatus::Untrained, BundleStatus::Unvalidated] {
        let record = samples::ct_measured(status, &sources);
        results.push((format!("ct-{status:?}-sr"), sr(&record, &sources)));
        results.push((format!("ct-{status:?}-sc"), ct_overlay(&record, &sources)));
        let record = samples::ct_classified(status, &sources);
        results.push((format!("ct-classified-{status:?}-sr"), sr(&record, &sources)));
        results.push((format!("ct-classified-{status:?}-sc"), ct_overlay(&record, &sources)));
        let record = samples::ct_outlined(status, &sources);
        results.push((format!("ct-outlined-{status:?}-sr"), sr(&record, &sources)));
        results.push((format!("ct-outlined-{status:?}-sc"), ct_overlay(&record, &sources)));
    }
    let record = samples::not_analysed(&sources[0], ReasonCode::SliceGap);
    let record = crate::types::RunRecord { bundle: samples::ct_bundle(BundleStatus::Unvalidated), ..record };
    results.push(("ct-rejected-sr".to_owned(), sr(&record, &sources)));
    results
}

fn ct_overlay(record: &crate::types::RunRecord, sources: &[SampleSource]) -> RenderedObject {
    super::render_ct_overlay(record, &pairs(sources), &samples::overlay(64, 80), &samples::options()).unwrap()
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
    assert!(super::ct_overlay_words(&record, analysis).below.contains(&words.to_owned()));
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
        super::ct_overlay_words(&record, &analysis)
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
    let outlined = super::ct_overlay_words(&record, analysis);
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
        render_sr(&record, &[(source.image(), header)], &samples::options()).unwrap()
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
        if object.kind == ResultKind::Sr {
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

#[test]
fn the_tree_of_a_study_that_was_not_analysed() {
    let sources = [SampleSource::new(SOURCE_1)];
    let record = samples::not_analysed(&sources[0], ReasonCode::ViewNotFrontal);
    insta::assert_snapshot!(tree(&parse(&sr(&record, &sources))));
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

#[test]
fn every_referenced_instance_is_in_the_evidence_once() {
    for (name, object) in all_results().into_iter().filter(|(_, object)| object.kind == ResultKind::Sr) {
        let parsed = parse(&object);
        let mut evidence = Vec::new();
        let study = first_item(&parsed, tags::CURRENT_REQUESTED_PROCEDURE_EVIDENCE_SEQUENCE).unwrap();
        walk(study, &mut |element| {
            if element.tag() == tags::REFERENCED_SOP_INSTANCE_UID {
                evidence.push(element.to_str().unwrap().into_owned());
            }
        });
        let mut referenced = BTreeSet::new();
        for item in parsed.element(tags::CONTENT_SEQUENCE).unwrap().items().unwrap() {
            walk(item, &mut |element| {
                if element.tag() == tags::REFERENCED_SOP_INSTANCE_UID {
                    referenced.insert(element.to_str().unwrap().into_owned());
                }
            });
        }
        evidence.sort();
        assert!(!evidence.is_empty(), "{name}");
        assert_eq!(evidence, referenced.into_iter().collect::<Vec<_>>(), "{name}");
    }
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
    assert_eq!(found.len(), 2 * (2 + 4 + 2), "{found:#?}");
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
    let parsed = parse(&sr(&samples::partial(&sources), &sources));
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
        let report = render_sr(&record, &pairs, &options).unwrap();
        let picture = render_heat_map(&record, 0, &pairs, &samples::overlay(3, 3), &options).unwrap();
        for object in [report, picture] {
            let parsed = parse(&object);
            assert!(parsed.meta().implementation_version_name().unwrap().len() <= 16);
            walk(&parsed, &mut |element| {
                let value = element.to_str().unwrap_or_default();
                for part in value.split('\\') {
                    let length = part.trim_end_matches(['\0', ' ']).chars().count();
                    // GB18030 texts are read by dicom-rs, which counts what it cannot decode differently.
                    let limit = match element.vr() {
                        VR::SH | VR::CS | VR::DS | VR::AE => 16,
                        VR::LO | VR::UI => 64,
                        VR::IS => 12,
                        VR::ST => 1024,
                        VR::LT => 10240,
                        _ => usize::MAX,
                    };
                    assert!(length <= limit, "{} {} has {length} characters", element.tag(), element.vr());
                }
            });
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
    let parsed = parse(&render_sr(&record, &pairs(&sources), &options).unwrap());
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
    let object = render_heat_map(&record, 0, &pairs(&sources), &overlay, &samples::options()).unwrap();
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
    let message = |result: Result<RenderedObject, ReportError>| result.unwrap_err().to_string();

    assert!(message(render_sr(&record, &[], &options)).contains("at least one source image"));
    let only_third = pairs(&sources[2..]);
    assert!(message(render_sr(&record, &only_third, &options)).contains("498.11 is missing"));
    assert!(message(render_heat_map(&record, 0, &only_third, &samples::overlay(2, 2), &options)).contains("498.11"));
    // The header of an excluded image may be missing: it may be what could not be read.
    assert!(render_sr(&record, &pairs(&sources[..2]), &options).is_ok());

    let all = pairs(&sources);
    assert!(message(render_heat_map(&record, 2, &all, &samples::overlay(2, 2), &options)).contains("number 2"));
    for (width, height, bytes) in [(0, 2, 0), (2, 2, 11), (65536, 1, 196_608)] {
        let overlay = RgbPixels { width, height, bytes: vec![0; bytes] };
        assert!(message(render_heat_map(&record, 0, &all, &overlay, &options)).contains("not an RGB image"));
    }
    let mut other_study = record.clone();
    other_study.study_instance_uid = Uid::new("1.2.3").unwrap();
    assert!(message(render_sr(&other_study, &all, &options)).contains("not of study 1.2.3"));

    let mut no_target = record.clone();
    no_target.bundle.target_class_idx = 7;
    assert!(message(render_sr(&no_target, &all, &options)).contains("target class number 7"));
    let mut fewer_outputs = record.clone();
    if let RunOutcome::Analysed(analysis) = &mut fewer_outputs.outcome {
        analysis.images[0].fused.pop();
    }
    assert!(message(render_sr(&fewer_outputs, &all, &options)).contains("1 fused outputs for 2 classes"));
    let mut empty = record;
    empty.outcome = RunOutcome::Analysed(CxrAnalysis { images: Vec::new(), excluded: Vec::new() });
    assert!(message(render_sr(&empty, &all, &options)).contains("names no image"));
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
            let _ = render_sr(&record, &[(source.image(), header)], &samples::options());
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
    use crate::types::{CaseLibraryVersion, PriorImage, SimilarCase, SimilarCases};
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
