//! `hilum deliveries`.

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::{
    Global,
    output::{Table, count, print, print_json, time_json, time_text},
    site,
    store::Store,
};
use crate::{
    db::{
        self,
        status::{self, DeliveryRow},
    },
    dimse::status::InWords,
    jobs::{self, Job},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Try the dead deliveries of this destination again, at once
    #[arg(long, value_name = "DESTINATION", conflicts_with_all = ["workup", "json"])]
    restart_dead: Option<String>,
    /// Only the results of this workup; `hilum studies --json` gives its id
    #[arg(long, value_name = "ID")]
    workup: Option<Uuid>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    if let Some(destination) = &options.restart_dead {
        let words = restart_dead(&store, destination).await;
        store.close().await?;
        return print(&words?);
    }
    let rows = async { status::deliveries(&mut *store.db.acquire().await?, options.workup, options.limit).await }.await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

async fn restart_dead(store: &Store, destination: &str) -> anyhow::Result<String> {
    let mut tx = store.db.begin().await?;
    let site = db::site::load(&mut tx).await?;
    if !site.destinations.iter().any(|known| known.name == destination) {
        let known: Vec<String> = site.destinations.iter().map(|known| format!("`{}`", known.name)).collect();
        anyhow::bail!(site::unknown("destination", destination, &known));
    }
    let restarted = db::delivery::restart_dead(&mut tx, destination).await?;
    if restarted == 0 {
        return Ok(format!("destination `{destination}` has no dead deliveries"));
    }
    jobs::queue(&mut tx, &store.db, &Job::Deliver(destination.to_owned()), None).await?;
    tx.commit().await.map_err(db::DbError::from)?;
    let restarted = usize::try_from(restarted).unwrap_or(usize::MAX);
    Ok(format!("{} to `{destination}` restarted", count(restarted, "dead result")))
}

fn table(rows: &[DeliveryRow]) -> String {
    let mut table =
        Table::new(&["STUDY INSTANCE UID", "KIND", "DESTINATION", "STATE", "ATTEMPTS", "NEXT ATTEMPT", "LAST ANSWER"]);
    for row in rows {
        let is_waiting = row.state.as_deref() == Some("waiting");
        table.row([
            row.study_instance_uid.clone(),
            row.kind.clone(),
            row.destination.clone().unwrap_or_else(|| "kept here".to_owned()),
            row.state.clone().unwrap_or_default(),
            row.attempts.map(|attempts| attempts.to_string()).unwrap_or_default(),
            row.next_attempt_at.filter(|_| is_waiting).map(time_text).unwrap_or_default(),
            last_answer(row),
        ]);
    }
    table.render("no results")
}

fn last_answer(row: &DeliveryRow) -> String {
    let status =
        row.last_status.and_then(|status| u16::try_from(status).ok()).map(|status| InWords(status).to_string());
    match (status, row.last_words.as_deref()) {
        (Some(status), Some(words)) if !words.is_empty() && !words.contains(&status) => format!("{status}: {words}"),
        (Some(status), None | Some("")) => status,
        (_, words) => words.unwrap_or_default().to_owned(),
    }
}

fn to_json(row: &DeliveryRow) -> serde_json::Value {
    json!({
        "result_id": row.result_id,
        "run_id": row.run_id,
        "study_instance_uid": row.study_instance_uid,
        "kind": row.kind,
        "sop_instance_uid": row.sop_instance_uid,
        "archive_key": row.archive_key,
        "preview_key": row.preview_key,
        "destination": row.destination,
        "state": row.state,
        "attempts": row.attempts,
        "last_status": row.last_status,
        "last_words": row.last_words,
        "next_attempt_at": row.next_attempt_at.map(time_json),
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn row() -> DeliveryRow {
        DeliveryRow {
            result_id: Uuid::nil(),
            run_id: Uuid::nil(),
            study_instance_uid: "1.2.3".into(),
            kind: "sr".into(),
            sop_instance_uid: "2.25.7".into(),
            archive_key: "results/a.dcm".into(),
            preview_key: None,
            destination: Some("pacs".into()),
            state: Some("waiting".into()),
            attempts: Some(2),
            last_status: Some(0xA700),
            last_words: Some("disk full".into()),
            next_attempt_at: Some(OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()),
        }
    }

    #[test]
    fn the_table_of_deliveries() {
        let delivered = DeliveryRow {
            state: Some("delivered".into()),
            last_status: Some(0),
            last_words: Some("0x0000 (success)".into()),
            ..row()
        };
        let kept = DeliveryRow {
            destination: None,
            state: None,
            attempts: None,
            last_status: None,
            last_words: None,
            next_attempt_at: None,
            ..row()
        };
        insta::assert_snapshot!(table(&[row(), delivered, kept]), @"
        STUDY INSTANCE UID  KIND  DESTINATION  STATE      ATTEMPTS  NEXT ATTEMPT          LAST ANSWER
        1.2.3               sr    pacs         waiting    2         2026-09-21 14:13:20Z  0xA700 (refused: out of resources): disk full
        1.2.3               sr    pacs         delivered  2         -                     0x0000 (success)
        1.2.3               sr    kept here    -          -         -                     -
        ");
        assert_eq!(table(&[]), "no results\n");
    }

    #[test]
    fn the_json_of_a_delivery() {
        insta::assert_json_snapshot!(to_json(&row()), @r#"
        {
          "result_id": "00000000-0000-0000-0000-000000000000",
          "run_id": "00000000-0000-0000-0000-000000000000",
          "study_instance_uid": "1.2.3",
          "kind": "sr",
          "sop_instance_uid": "2.25.7",
          "archive_key": "results/a.dcm",
          "preview_key": null,
          "destination": "pacs",
          "state": "waiting",
          "attempts": 2,
          "last_status": 42752,
          "last_words": "disk full",
          "next_attempt_at": "2026-09-21T14:13:20Z"
        }
        "#);
    }
}
