//! `hilum deliveries`.

use anyhow::Context as _;
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
        delivery::{self, AttemptRow},
        status::{self, DeliveryRow},
    },
    deliver::{Verdict, policy::status_policy},
    dimse::status::InWords,
    jobs::{self, Job},
};

/// Newest attempts of a delivery.
const LEDGER_LIMIT: i64 = 200;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Try the dead deliveries of this destination again, at once
    #[arg(long, value_name = "DESTINATION", conflicts_with_all = ["workup", "json", "restart", "explain"])]
    restart_dead: Option<String>,
    /// Try this delivery again, at once; the list gives its id
    #[arg(long, value_name = "ID", conflicts_with_all = ["workup", "json", "explain"])]
    restart: Option<Uuid>,
    /// Show every attempt of this delivery, and what to do
    #[arg(long, value_name = "ID", conflicts_with = "workup")]
    explain: Option<Uuid>,
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
    if let Some(delivery_id) = options.restart {
        let words = restart(&store, delivery_id).await;
        store.close().await?;
        return print(&words?);
    }
    let read = async {
        let mut connection = store.db.acquire().await?;
        let rows = match options.explain {
            Some(delivery_id) => status::delivery(&mut connection, delivery_id).await?.into_iter().collect(),
            None => status::deliveries(&mut connection, options.workup, options.limit).await?,
        };
        let ids: Vec<Uuid> = rows.iter().filter_map(|row: &DeliveryRow| row.delivery_id).collect();
        let attempts = delivery::attempts(&mut connection, &ids, LEDGER_LIMIT).await?;
        Ok::<_, db::DbError>((rows, attempts))
    };
    let read = read.await;
    store.close().await?;
    let (rows, attempts) = read?;
    if let Some(delivery_id) = options.explain {
        let row = rows.first().with_context(|| no_such_delivery(delivery_id))?;
        return if options.json { print_json(&to_json(row, &attempts)) } else { print(&explanation(row, &attempts)) };
    }
    if options.json {
        return print_json(&rows.iter().map(|row| to_json(row, &attempts)).collect::<Vec<_>>());
    }
    print(&table(&rows))
}

fn no_such_delivery(delivery_id: Uuid) -> String {
    format!("there is no delivery {delivery_id}; `hilum deliveries` lists them")
}

async fn restart(store: &Store, delivery_id: Uuid) -> anyhow::Result<String> {
    let mut tx = store.db.begin().await?;
    let Some(destination) = delivery::restart(&mut tx, delivery_id).await? else {
        let row = status::delivery(&mut tx, delivery_id).await?;
        let row = row.with_context(|| no_such_delivery(delivery_id))?;
        anyhow::bail!("delivery {delivery_id} is {}: there is nothing to restart", row.state.unwrap_or_default());
    };
    db::destination::try_now(&mut tx, &destination).await?;
    jobs::queue(&mut tx, &store.db, &Job::Deliver(destination.clone()), None).await?;
    tx.commit().await.map_err(db::DbError::from)?;
    Ok(format!("the delivery to `{destination}` is tried again"))
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
    db::destination::try_now(&mut tx, destination).await?;
    jobs::queue(&mut tx, &store.db, &Job::Deliver(destination.to_owned()), None).await?;
    tx.commit().await.map_err(db::DbError::from)?;
    let restarted = usize::try_from(restarted).unwrap_or(usize::MAX);
    Ok(format!("{} to `{destination}` restarted", count(restarted, "dead result")))
}

fn table(rows: &[DeliveryRow]) -> String {
    let mut table = Table::new(&[
        "STUDY INSTANCE UID",
        "KIND",
        "DESTINATION",
        "STATE",
        "ATTEMPTS",
        "NEXT ATTEMPT",
        "DELIVERY",
        "LAST ANSWER",
    ]);
    for row in rows {
        let is_waiting = row.state.as_deref() == Some("waiting");
        table.row([
            row.study_instance_uid.clone(),
            row.kind.clone(),
            row.destination.clone().unwrap_or_else(|| "kept here".to_owned()),
            row.state.clone().unwrap_or_default(),
            row.attempts.map(|attempts| attempts.to_string()).unwrap_or_default(),
            row.next_attempt_at.filter(|_| is_waiting).map(time_text).unwrap_or_default(),
            row.delivery_id.map(|id| id.to_string()).unwrap_or_default(),
            last_answer(row),
        ]);
    }
    table.render("no results")
}

fn last_answer(row: &DeliveryRow) -> String {
    let status =
        row.last_status.and_then(|status| u16::try_from(status).ok()).map(|status| InWords(status).to_string());
    let answer = match (status, row.last_words.as_deref()) {
        (Some(status), Some(words)) if !words.is_empty() && !words.contains(&status) => format!("{status}: {words}"),
        (Some(status), None | Some("")) => status,
        (_, words) => words.unwrap_or_default().to_owned(),
    };
    match row.commitment.as_deref() {
        Some("committed") => format!("{answer}; committed"),
        Some("wanted" | "asked") => format!("{answer}; commitment asked for"),
        Some(_) => format!("{answer}; not committed: {}", row.commitment_words.as_deref().unwrap_or_default()),
        None => answer,
    }
}

/// Everything about a delivery, its attempts, and what to do.
fn explanation(row: &DeliveryRow, attempts: &[AttemptRow]) -> String {
    let mut lines = vec![
        format!("{} {} of study {}", row.kind, row.sop_instance_uid, row.study_instance_uid),
        format!(
            "to `{}`: {}, after {}",
            row.destination.as_deref().unwrap_or_default(),
            row.state.as_deref().unwrap_or_default(),
            count(usize::try_from(row.attempts.unwrap_or_default()).unwrap_or_default(), "attempt"),
        ),
    ];
    if let (Some("waiting"), Some(at)) = (row.state.as_deref(), row.next_attempt_at) {
        lines.push(format!("next attempt: {}", time_text(at)));
    }
    if let Some(commitment) = &row.commitment {
        let words = row.commitment_words.as_deref().unwrap_or_default();
        lines.push(format!("storage commitment: {commitment}: {words}"));
    }
    let status = row.last_status.and_then(|status| u16::try_from(status).ok()).map(status_policy);
    if let Some(policy) = status.filter(|policy| policy.verdict != Verdict::Delivered) {
        lines.push(format!("what to do: {}", policy.remedy));
    }
    if matches!(row.state.as_deref(), Some("dead" | "waiting")) || row.commitment.as_deref() == Some("failed") {
        let id = row.delivery_id.unwrap_or_default();
        lines.push(format!("then `hilum deliveries --restart {id}` tries it again at once"));
    }
    let mut table = Table::new(&["ATTEMPT", "BEGAN", "BECAME", "STATUS", "ANSWER"]);
    for attempt in attempts {
        table.row([
            attempt.number.to_string(),
            time_text(attempt.started_at),
            attempt.state.clone().unwrap_or_else(|| "not ended".to_owned()),
            attempt.status.map(|status| format!("{status:#06X}")).unwrap_or_default(),
            attempt.words.clone(),
        ]);
    }
    lines.push(String::new());
    lines.push(table.render("no attempt yet"));
    lines.join("\n")
}

fn to_json(row: &DeliveryRow, attempts: &[AttemptRow]) -> serde_json::Value {
    let ledger = attempts.iter().filter(|attempt| Some(attempt.delivery_id) == row.delivery_id).map(|attempt| {
        json!({
            "number": attempt.number,
            "started_at": time_json(attempt.started_at),
            "ended_at": attempt.ended_at.map(time_json),
            "state": attempt.state,
            "status": attempt.status,
            "words": attempt.words,
        })
    });
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
        "delivery_id": row.delivery_id,
        "chain": row.chain,
        "rank": row.rank,
        "commitment": row.commitment,
        "commitment_words": row.commitment_words,
        "ledger": ledger.collect::<Vec<_>>(),
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
            delivery_id: Some(Uuid::from_u128(4)),
            chain: Some("sr0".into()),
            rank: Some(0),
            commitment: None,
            commitment_words: None,
        }
    }

    fn attempt() -> AttemptRow {
        AttemptRow {
            delivery_id: Uuid::from_u128(4),
            number: 2,
            started_at: OffsetDateTime::from_unix_timestamp(1_789_999_990).unwrap(),
            ended_at: Some(OffsetDateTime::from_unix_timestamp(1_789_999_991).unwrap()),
            state: Some("waiting".into()),
            status: Some(0xA700),
            words: "disk full".into(),
        }
    }

    #[test]
    fn a_delivery_is_explained() {
        insta::assert_snapshot!(explanation(&row(), &[attempt()]), @"
        sr 2.25.7 of study 1.2.3
        to `pacs`: waiting, after 2 attempts
        next attempt: 2026-09-21 14:13:20Z
        what to do: make room at the destination
        then `hilum deliveries --restart 00000000-0000-0000-0000-000000000004` tries it again at once

        ATTEMPT  BEGAN                 BECAME   STATUS  ANSWER
        2        2026-09-21 14:13:10Z  waiting  0xA700  disk full
        ");
    }

    #[test]
    fn the_table_of_deliveries() {
        let delivered = DeliveryRow {
            state: Some("delivered".into()),
            last_status: Some(0),
            last_words: Some("0x0000 (success)".into()),
            commitment: Some("committed".into()),
            ..row()
        };
        let kept = DeliveryRow {
            destination: None,
            state: None,
            attempts: None,
            last_status: None,
            last_words: None,
            next_attempt_at: None,
            delivery_id: None,
            ..row()
        };
        insta::assert_snapshot!(table(&[row(), delivered, kept]), @"
        STUDY INSTANCE UID  KIND  DESTINATION  STATE      ATTEMPTS  NEXT ATTEMPT          DELIVERY                              LAST ANSWER
        1.2.3               sr    pacs         waiting    2         2026-09-21 14:13:20Z  00000000-0000-0000-0000-000000000004  0xA700 (refused: out of resources): disk full
        1.2.3               sr    pacs         delivered  2         -                     00000000-0000-0000-0000-000000000004  0x0000 (success); committed
        1.2.3               sr    kept here    -          -         -                     -                                     -
        ");
        assert_eq!(table(&[]), "no results\n");
    }

    #[test]
    fn the_json_of_a_delivery() {
        insta::assert_json_snapshot!(to_json(&row(), &[attempt()]), @r#"
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
          "next_attempt_at": "2026-09-21T14:13:20Z",
          "delivery_id": "00000000-0000-0000-0000-000000000004",
          "chain": "sr0",
          "rank": 0,
          "commitment": null,
          "commitment_words": null,
          "ledger": [
            {
              "number": 2,
              "started_at": "2026-09-21T14:13:10Z",
              "ended_at": "2026-09-21T14:13:11Z",
              "state": "waiting",
              "status": 42752,
              "words": "disk full"
            }
          ]
        }
        "#);
    }
}
