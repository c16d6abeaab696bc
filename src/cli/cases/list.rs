//! `hilum cases list` and `hilum cases remove`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;

use super::{
    super::{
        Global,
        output::{Table, print, print_json, time_json, time_text},
        store::Store,
    },
    RemoveOptions, Selection,
};
use crate::{
    db::case::{self, Case, CaseFilter},
    types::Sha256Digest,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    #[command(flatten)]
    selection: Selection,
    /// List single cases instead of counts
    #[arg(long)]
    cases: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let filter = options.selection.filter();
    let cases = async { anyhow::Ok(case::list(&mut *store.db.acquire().await?, &filter).await?) }.await;
    store.close().await?;
    let cases = cases?;
    match (options.cases, options.json) {
        (true, true) => print_json(&cases.iter().map(case_json).collect::<Vec<_>>()),
        (true, false) => print(&cases_table(&cases)),
        (false, true) => print_json(&counts(&cases).into_iter().map(count_json).collect::<Vec<_>>()),
        (false, false) => print(&counts_table(&cases)),
    }
}

/// Bundle digest, method, cohort, label.
type Group = (Sha256Digest, String, String, String);

/// (cases, patients) of each group.
fn counts(cases: &[Case]) -> BTreeMap<Group, (usize, usize)> {
    let mut groups: BTreeMap<Group, (usize, BTreeSet<_>)> = BTreeMap::new();
    for case in cases {
        let group = (case.bundle_digest, case.method.clone(), case.cohort.clone(), case.label.clone());
        let (count, patients) = groups.entry(group).or_default();
        *count += 1;
        patients.insert(case.patient);
    }
    groups.into_iter().map(|(group, (count, patients))| (group, (count, patients.len()))).collect()
}

fn counts_table(cases: &[Case]) -> String {
    let mut table = Table::new(&["CASES", "PATIENTS", "LABEL", "COHORT", "EMBEDDING", "BUNDLE DIGEST"]);
    for ((bundle, method, cohort, label), (count, patients)) in counts(cases) {
        table.row([count.to_string(), patients.to_string(), label, cohort, method, bundle.to_string()]);
    }
    table.render("no cases; `hilum cases import` adds them")
}

fn cases_table(cases: &[Case]) -> String {
    let mut table = Table::new(&["CASE", "LABEL", "COHORT", "VIEW", "IMPORTED", "SOURCE"]);
    for case in cases {
        table.row([
            case.case_id.clone(),
            case.label.clone(),
            case.cohort.clone(),
            case.view.clone(),
            time_text(case.imported_at),
            case.source.clone(),
        ]);
    }
    table.render("no cases; `hilum cases import` adds them")
}

fn count_json(((bundle, method, cohort, label), (count, patients)): (Group, (usize, usize))) -> serde_json::Value {
    json!({
        "bundle_digest": bundle,
        "method": method,
        "cohort": cohort,
        "label": label,
        "cases": count,
        "patients": patients,
    })
}

fn case_json(case: &Case) -> serde_json::Value {
    json!({
        "case_id": case.case_id,
        "bundle_digest": case.bundle_digest,
        "method": case.method,
        "label": case.label,
        "cohort": case.cohort,
        "view": case.view,
        "source": case.source,
        "imported_at": time_json(case.imported_at),
    })
}

pub(super) async fn remove(global: &Global, options: RemoveOptions) -> anyhow::Result<()> {
    let filter = removal(options)?;
    let store = Store::open(&global.load()?).await?;
    let removed = async {
        let mut tx = store.db.begin().await?;
        let removed = case::remove(&mut tx, &filter).await?;
        tx.commit().await.context("commit the removal")?;
        anyhow::Ok(removed)
    }
    .await;
    store.close().await?;
    let removed = removed?;
    anyhow::ensure!(removed > 0, "no case matches; `hilum cases list --cases` names those there are");
    print(&format!("{removed} case{} removed", if removed == 1 { "" } else { "s" }))
}

/// What is to go; a command that names nothing removes nothing.
fn removal(options: RemoveOptions) -> anyhow::Result<CaseFilter> {
    let RemoveOptions { case_ids, selection, all } = options;
    let mut filter = selection.filter();
    filter.case_ids = (!case_ids.is_empty()).then_some(case_ids);
    let named = filter.case_ids.is_some()
        || filter.cohort.is_some()
        || filter.label.is_some()
        || filter.bundle_digest.is_some();
    anyhow::ensure!(all || named, "name cases, --cohort, --label or --bundle-digest, or say --all");
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::types::Pseudonym;

    fn case(number: u8, patient: u8, label: &str) -> Case {
        Case {
            case_id: format!("LIB-{number}"),
            bundle_digest: Sha256Digest([7; 32]),
            method: "all-members".into(),
            patient: Pseudonym([patient; 32]),
            study: Pseudonym([number; 32]),
            label: label.into(),
            cohort: "open".into(),
            view: "PA".into(),
            source: "CC BY".into(),
            embedding_sha256: Sha256Digest([9; 32]),
            imported_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        }
    }

    #[test]
    fn cases_are_counted_by_bundle_cohort_and_label_with_their_patients() {
        let cases = [case(1, 1, "COVID-19"), case(2, 1, "COVID-19"), case(3, 2, "other")];
        insta::assert_snapshot!(counts_table(&cases), @r"
        CASES  PATIENTS  LABEL     COHORT  EMBEDDING    BUNDLE DIGEST
        2      1         COVID-19  open    all-members  0707070707070707070707070707070707070707070707070707070707070707
        1      1         other     open    all-members  0707070707070707070707070707070707070707070707070707070707070707
        ");
        insta::assert_snapshot!(cases_table(&cases[..1]), @r"
        CASE   LABEL     COHORT  VIEW  IMPORTED              SOURCE
        LIB-1  COVID-19  open    PA    2026-09-21 14:13:20Z  CC BY
        ");
        let text = case_json(&cases[0]).to_string();
        assert!(!text.contains("patient"), "no pseudonym leaves the database: {text}");
    }

    #[test]
    fn removing_needs_something_that_names_cases() {
        let nothing = RemoveOptions { case_ids: Vec::new(), selection: Selection::default(), all: false };
        assert!(removal(nothing).is_err());
        let all = RemoveOptions { case_ids: Vec::new(), selection: Selection::default(), all: true };
        assert!(removal(all).unwrap().case_ids.is_none());
        let cohort = Selection { cohort: Some("open".into()), ..Selection::default() };
        let filter = removal(RemoveOptions { case_ids: vec!["LIB-1".into()], selection: cohort, all: false }).unwrap();
        assert_eq!((filter.case_ids, filter.cohort), (Some(vec!["LIB-1".to_owned()]), Some("open".to_owned())));
    }
}
