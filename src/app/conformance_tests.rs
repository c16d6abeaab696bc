//! `docs/conformance.md` against the program's own tables: every table under a line `<!-- checked: … -->`.

use std::collections::{BTreeMap, BTreeSet};

use dicom_core::dictionary::{UidDictionary as _, UidDictionaryEntry as _};
use dicom_dictionary_std::{StandardSopClassDictionary, uids};

use crate::{
    config::DicomConfig,
    deliver::{Verdict, verdict},
    dimse::{self, NegotiationPolicy, Rejection, negotiation, status, storage_policy, transfer_syntax_name},
    report,
    types::Peer,
};

/// The rows of one checked table, cell by cell, without its heading.
type Rows = Vec<Vec<String>>;

/// Every checked table by its name.
fn tables() -> BTreeMap<String, Rows> {
    let mut tables = BTreeMap::new();
    let mut lines = include_str!("../../docs/conformance.md").lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("<!-- checked: ").and_then(|rest| rest.strip_suffix(" -->")) else {
            continue;
        };
        let rows = lines.by_ref().take_while(|line| line.starts_with('|')).skip(2).map(|line| {
            let cells = line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
            cells.collect()
        });
        let before = tables.insert(name.to_owned(), rows.collect::<Rows>());
        assert!(before.is_none(), "two tables are called `{name}`");
    }
    tables
}

/// What stands between backticks.
fn coded(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn only_coded(text: &str) -> String {
    coded(text).first().map_or_else(|| panic!("no code in {text:?}"), |code| (*code).to_owned())
}

/// The text of each `pattern…"` in a source: what follows up to the next quote, and the next quoted text after it.
fn quoted_pairs(source: &str, pattern: &str) -> Vec<(String, String)> {
    let pairs = source.split(pattern).skip(1).map(|rest| {
        let mut quoted = rest.split('"').step_by(2);
        (quoted.next().unwrap_or_default().to_owned(), quoted.next().unwrap_or_default().to_owned())
    });
    pairs.collect()
}

fn sop_class_rows(sop_classes: &[&str]) -> Vec<(String, String)> {
    let name = |uid: &str| StandardSopClassDictionary.by_uid(uid).map_or("?", |entry| entry.name()).to_owned();
    sop_classes.iter().map(|uid| (name(uid), (*uid).to_owned())).collect()
}

fn names_and_uids(rows: &Rows) -> Vec<(String, String)> {
    rows.iter().map(|row| (row[0].clone(), only_coded(&row[1]))).collect()
}

/// One table against what it should hold; the table is taken out, so that what nobody checks is left.
fn take(tables: &mut BTreeMap<String, Rows>, name: &str) -> Rows {
    tables.remove(name).unwrap_or_else(|| panic!("docs/conformance.md has no table `{name}`"))
}

#[test]
fn the_conformance_statement_says_what_the_program_does() {
    let mut tables = tables();
    let defaults = DicomConfig::default();

    let said: Vec<String> = take(&mut tables, "implementation").iter().map(|row| only_coded(&row[1])).collect();
    assert_eq!(
        said,
        [
            dimse::APPLICATION_CONTEXT_NAME.to_owned(),
            dimse::IMPLEMENTATION_CLASS_UID.to_owned(),
            dimse::IMPLEMENTATION_VERSION_NAME.to_owned(),
            defaults.max_pdu_length_bytes.to_string(),
            defaults.max_associations.to_string(),
            defaults.listen.port().to_string(),
        ]
    );

    let said: Vec<(String, String)> =
        take(&mut tables, "time limits").iter().map(|row| (only_coded(&row[2]), only_coded(&row[1]))).collect();
    let seconds = |key: &str, time: std::time::Duration| (format!("dicom.{key}"), time.as_secs().to_string());
    assert_eq!(
        said,
        [
            seconds("association_request_timeout_seconds", defaults.association_request_timeout),
            seconds("idle_timeout_seconds", defaults.idle_timeout),
            seconds("message_timeout_seconds", defaults.message_timeout),
        ]
    );

    check_presentation_contexts(&mut tables);
    check_statuses(&mut tables);
    check_rejections(&take(&mut tables, "rejections"));
    check_results(&mut tables);
    assert!(tables.is_empty(), "no test checks {:?}", tables.keys());
}

fn check_presentation_contexts(tables: &mut BTreeMap<String, Rows>) {
    let policy = storage_policy();
    let said = names_and_uids(&take(tables, "SOP classes of the Receiver"));
    assert_eq!(said, sop_class_rows(&policy.abstract_syntaxes().collect::<Vec<_>>()));

    let transfer_syntaxes = |policy: &NegotiationPolicy, sop_class: &str| -> Vec<Vec<String>> {
        let list = policy.transfer_syntaxes(sop_class).unwrap_or_default().iter().enumerate();
        list.map(|(index, uid)| vec![(index + 1).to_string(), transfer_syntax_name(uid).into(), format!("`{uid}`")])
            .collect()
    };
    let said = take(tables, "transfer syntaxes of Verification");
    assert_eq!(said, transfer_syntaxes(&policy, uids::VERIFICATION));
    let commitment = transfer_syntaxes(&policy, uids::STORAGE_COMMITMENT_PUSH_MODEL);
    assert_eq!(said[..said.len() - 1], commitment);
    let said = take(tables, "transfer syntaxes of Storage");
    for sop_class in negotiation::STORAGE_SOP_CLASSES {
        assert_eq!(said, transfer_syntaxes(&policy, sop_class), "{sop_class}");
    }
}

fn check_statuses(tables: &mut BTreeMap<String, Rows>) {
    // Every status that the program has a name for, but those that it only receives.
    let named = include_str!("../dimse/status.rs").split("\npub const ").skip(1).filter_map(|rest| {
        let (_, value) = rest.split_once(": u16 = 0x")?;
        u16::from_str_radix(value.get(..4)?, 16).ok()
    });
    let sent = named.filter(|status| *status != status::NOT_AUTHORIZED);
    let ours: BTreeSet<u16> = sent.chain([Peer::DUPLICATE_STATUS]).collect();
    let code = |text: &str| u16::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("{text}"));
    let rows = [take(tables, "statuses"), take(tables, "statuses of Storage Commitment")].concat();
    let said: BTreeSet<u16> = rows.iter().flat_map(|row| coded(&row[0])).map(code).collect();
    assert_eq!(said, ours);

    for row in take(tables, "answers to deliveries") {
        let expected = match row[1].split(':').next() {
            Some("delivered") => Verdict::Delivered,
            Some("tried again") => Verdict::Retry,
            Some("the next form, or dead") => Verdict::NextForm,
            Some("dead") => Verdict::Dead,
            other => panic!("{other:?}"),
        };
        for status in coded(&row[0]) {
            assert_eq!(verdict(code(status)), expected, "{status}");
        }
    }
}

fn check_rejections(said: &Rows) {
    let said: BTreeSet<String> = said.iter().map(|row| row[1..].join(", ")).collect();
    let constructors = [
        Rejection::not_authorized("", "", ""),
        Rejection::calling_ae_title_not_recognized("", "", ""),
        Rejection::called_ae_title_not_recognized("", "", ""),
        Rejection::application_context_not_supported("", "", ""),
        Rejection::protocol_version_not_supported("", "", ""),
        Rejection::local_limit_exceeded("", "", ""),
        Rejection::temporary_congestion("", "", ""),
    ];
    let ours = constructors.iter().map(|one| format!("{}, {}, {}", one.result, one.source(), one.reason)).collect();
    assert_eq!(said, ours);
}

fn check_results(tables: &mut BTreeMap<String, Rows>) {
    let said = names_and_uids(&take(tables, "SOP classes of results"));
    assert_eq!(said, sop_class_rows(report::CREATED_SOP_CLASSES));

    let codes = include_str!("../report/codes.rs");
    let said: Vec<(String, String)> =
        take(tables, "private codes").iter().map(|row| (only_coded(&row[0]), row[1].clone())).collect();
    assert_eq!(said, quoted_pairs(codes, "= private(\""));
    let schemes = codes.split("REGISTERED_SCHEMES: ").nth(1).and_then(|rest| rest.split("];").next()).unwrap_or("");
    let said: Vec<(String, String)> =
        take(tables, "coding schemes").iter().map(|row| (only_coded(&row[0]), only_coded(&row[1]))).collect();
    assert_eq!(said, quoted_pairs(schemes, "    (\""));

    let part10 = include_str!("../archive/part10.rs");
    let said: Vec<String> = take(tables, "private elements").iter().map(|row| only_coded(&row[0])).collect();
    assert_eq!(said, ["(0002,0100)", "(0002,0102)"]);
    assert!(
        part10.contains(".private_information_creator_uid(ids.class_uid") && part10.contains(".private_information(")
    );
}
