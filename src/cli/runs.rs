//! `hilum runs` and `hilum run show`.

use std::fmt::Write as _;

use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text, visible},
    store::Store,
};
use crate::{
    app::installation_named,
    config::Config,
    db::{
        Connection, DbError, installation, run,
        status::{self, RunRow},
    },
    jobs::{self, Job},
    report,
    types::RunRole,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only the runs of this workup; `hilum studies --json` gives its id
    #[arg(long, value_name = "ID")]
    workup: Option<Uuid>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum RunAction {
    /// Prints what a run found: the text of its report
    Show {
        /// Id of the run, from `hilum runs`
        run_id: Uuid,
    },
    /// Starts a parked run anew, when what parked it is mended
    Restart {
        /// Id of the run, from `hilum runs`
        run_id: Uuid,
    },
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let rows = async { status::runs(&mut *store.db.acquire().await?, options.workup, options.limit).await }.await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

fn table(rows: &[RunRow]) -> String {
    let mut table = Table::new(&[
        "QUEUED",
        "RUN",
        "STUDY INSTANCE UID",
        "REVISION",
        "BUNDLE",
        "STATE",
        "ATTEMPT",
        "REASON",
        "WORDS",
    ]);
    for row in rows {
        table.row([
            time_text(row.queued_at),
            row.id.to_string(),
            row.study_instance_uid.clone(),
            row.revision.to_string(),
            bundle_text(row),
            row.state.clone(),
            format!("{} of {}", row.attempt, row.maximum_attempts),
            row.reason.clone().unwrap_or_default(),
            row.words.clone(),
        ]);
    }
    table.render("no runs")
}

/// The bundle, how far to believe it, and its role where it is tried.
fn bundle_text(row: &RunRow) -> String {
    let role = (row.role != RunRole::Live.name()).then_some(&row.role);
    let more: Vec<&str> = row.bundle_status.iter().chain(role).map(String::as_str).collect();
    if more.is_empty() { row.bundle.clone() } else { format!("{} ({})", row.bundle, more.join(", ")) }
}

fn to_json(row: &RunRow) -> serde_json::Value {
    json!({
        "run_id": row.id,
        "workup_id": row.workup_id,
        "study_instance_uid": row.study_instance_uid,
        "revision": row.revision,
        "bundle": row.bundle,
        "bundle_status": row.bundle_status,
        "role": row.role,
        "state": row.state,
        "reason": row.reason,
        "words": row.words,
        "attempt": row.attempt,
        "maximum_attempts": row.maximum_attempts,
        "queued_at": time_json(row.queued_at),
        "finished_at": row.finished_at.map(time_json),
        "stage_milliseconds": row.stage_milliseconds,
    })
}

/// Prints one run.
pub(super) async fn show(global: &Global, run_id: Uuid) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let text = async { text_of(&mut *store.db.acquire().await?, &config, run_id).await }.await;
    store.close().await?;
    print(&text?)
}

/// Starts a parked run anew.
pub(super) async fn restart(global: &Global, run_id: Uuid) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let restarted = restart_in(&store, run_id).await;
    store.close().await?;
    print(&restarted?)
}

pub(super) async fn restart_in(store: &Store, run_id: Uuid) -> anyhow::Result<String> {
    let mut tx = store.db.begin().await?;
    if !run::restart(&mut tx, run_id).await? {
        let Some(row) = status::run(&mut tx, run_id).await? else {
            anyhow::bail!("there is no run {run_id}; `hilum runs` lists them");
        };
        anyhow::bail!("run {run_id} is {}: only a parked run of its study's newest revision is restarted", row.state);
    }
    jobs::queue(&mut tx, &store.db, &Job::RunBundle(run_id), None).await?;
    tx.commit().await.map_err(DbError::from)?;
    Ok(format!("run {run_id} starts anew; `hilum run show {run_id}` tells how it goes"))
}

pub(super) async fn text_of(connection: &mut Connection, config: &Config, run_id: Uuid) -> anyhow::Result<String> {
    let Some(row) = status::run(connection, run_id).await? else {
        anyhow::bail!("there is no run {run_id}; `hilum runs` lists them");
    };
    let mut text = state_text(&row);
    // The row of the installation is there: without it there would be no run.
    let installation = installation_named(config, installation::id_or_insert(connection, Uuid::now_v7()).await?);
    if let Some(finished) = run::finished(connection, run_id, &installation).await? {
        text.push('\n');
        text.push_str(&report::describe(&finished.record));
    }
    Ok(text)
}

/// Where a run stands.
fn state_text(row: &RunRow) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "Run {}: {}", row.id, visible(&row.words));
    let reason = row.reason.as_deref().map(|reason| format!(", reason {}", visible(reason))).unwrap_or_default();
    if let Some(words) = RunRole::from_name(&row.role).and_then(RunRole::words) {
        let _ = writeln!(text, "Bundle {}, {words}", row.bundle);
    }
    let _ = writeln!(text, "State {}{reason}, attempt {} of {}", row.state, row.attempt, row.maximum_attempts);
    let finished = row.finished_at.map(|at| format!(", finished {}", time_text(at))).unwrap_or_default();
    let _ = writeln!(text, "Queued {}{finished}", time_text(row.queued_at));
    text
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn row() -> RunRow {
        RunRow {
            id: Uuid::nil(),
            workup_id: Uuid::nil(),
            study_instance_uid: "1.2.3".into(),
            revision: 1,
            bundle: "cxr-untrained".into(),
            bundle_status: Some("untrained".into()),
            role: "live".into(),
            state: "not_analysed".into(),
            reason: Some("input.view.not_frontal".into()),
            words: "the view is\u{7}lateral".into(),
            attempt: 1,
            maximum_attempts: 3,
            queued_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            finished_at: Some(OffsetDateTime::from_unix_timestamp(1_790_000_003).unwrap()),
            stage_milliseconds: Some(json!({ "decode": 12.5 })),
        }
    }

    #[test]
    fn the_table_of_runs() {
        insta::assert_snapshot!(table(&[row()]), @"
        QUEUED                RUN                                   STUDY INSTANCE UID  REVISION  BUNDLE                     STATE         ATTEMPT  REASON                  WORDS
        2026-09-21 14:13:20Z  00000000-0000-0000-0000-000000000000  1.2.3               1         cxr-untrained (untrained)  not_analysed  1 of 3   input.view.not_frontal  the view is lateral
        ");
        assert_eq!(table(&[]), "no runs\n");
        let shadow = RunRow { role: "shadow".into(), ..row() };
        assert!(table(std::slice::from_ref(&shadow)).contains("cxr-untrained (untrained, shadow)"));
        assert!(state_text(&shadow).contains("Bundle cxr-untrained, as a shadow"));
    }

    #[test]
    fn the_json_of_a_run() {
        insta::assert_json_snapshot!(to_json(&row()), @r#"
        {
          "run_id": "00000000-0000-0000-0000-000000000000",
          "workup_id": "00000000-0000-0000-0000-000000000000",
          "study_instance_uid": "1.2.3",
          "revision": 1,
          "bundle": "cxr-untrained",
          "bundle_status": "untrained",
          "role": "live",
          "state": "not_analysed",
          "reason": "input.view.not_frontal",
          "words": "the view is\u0007lateral",
          "attempt": 1,
          "maximum_attempts": 3,
          "queued_at": "2026-09-21T14:13:20Z",
          "finished_at": "2026-09-21T14:13:23Z",
          "stage_milliseconds": {
            "decode": 12.5
          }
        }
        "#);
    }

    #[test]
    fn where_a_run_stands() {
        insta::assert_snapshot!(state_text(&row()), @"
        Run 00000000-0000-0000-0000-000000000000: the view is lateral
        State not_analysed, reason input.view.not_frontal, attempt 1 of 3
        Queued 2026-09-21 14:13:20Z, finished 2026-09-21 14:13:23Z
        ");
    }
}
