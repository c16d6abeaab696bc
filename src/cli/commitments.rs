//! `hilum commitments`: what peers have asked us to keep, and what became of the reports.

use clap::Args;
use serde_json::json;

use super::{
    Global,
    output::{Table, count, print, print_json, time_json, time_text},
    store::Store,
};
use crate::{
    db::{
        self,
        commitment::{self, RequestRow},
    },
    jobs::{self, Job},
    types::AeTitle,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Report again, at once, what was given up for this calling AE title
    #[arg(long, value_name = "TITLE", conflicts_with = "json")]
    restart_dead: Option<AeTitle>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    if let Some(title) = &options.restart_dead {
        let words = restart_dead(&store, title).await;
        store.close().await?;
        return print(&words?);
    }
    let rows = async { commitment::newest(&mut *store.db.acquire().await?, options.limit).await }.await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

async fn restart_dead(store: &Store, title: &AeTitle) -> anyhow::Result<String> {
    let mut tx = store.db.begin().await?;
    let restarted = commitment::restart_dead(&mut tx, title.as_str()).await?;
    for id in &restarted {
        jobs::queue(&mut tx, &store.db, &Job::ReportCommitment(*id), None).await?;
    }
    tx.commit().await.map_err(db::DbError::from)?;
    Ok(format!("{} to `{title}` restarted", count(restarted.len(), "dead report")))
}

fn table(rows: &[RequestRow]) -> String {
    let mut table = Table::new(&["ASKED AT", "BY", "INSTANCES", "NOT KEPT", "STATE", "ATTEMPTS", "LAST ANSWER"]);
    for row in rows {
        table.row([
            time_text(row.created_at),
            row.calling_ae_title.clone(),
            row.instances.to_string(),
            row.failed.to_string(),
            row.state.clone(),
            row.attempts.to_string(),
            row.last_words.clone(),
        ]);
    }
    table.render("no peer has asked for storage commitment")
}

fn to_json(row: &RequestRow) -> serde_json::Value {
    json!({
        "id": row.id,
        "transaction_uid": row.transaction_uid,
        "calling_ae_title": row.calling_ae_title,
        "local_ae_title": row.local_ae_title,
        "instances": row.instances,
        "failed": row.failed,
        "state": row.state,
        "attempts": row.attempts,
        "last_words": row.last_words,
        "created_at": time_json(row.created_at),
        "reported_at": row.reported_at.map(time_json),
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_table_of_requests() {
        let row = RequestRow {
            id: Uuid::nil(),
            transaction_uid: "1.2".into(),
            calling_ae_title: "CT_1".into(),
            local_ae_title: "HILUM".into(),
            state: "waiting".into(),
            attempts: 2,
            last_words: "connection refused".into(),
            created_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            reported_at: None,
            instances: 12,
            failed: 1,
        };
        insta::assert_snapshot!(table(&[row]), @"
        ASKED AT              BY    INSTANCES  NOT KEPT  STATE    ATTEMPTS  LAST ANSWER
        2026-09-21 14:13:20Z  CT_1  12         1         waiting  2         connection refused
        ");
    }
}
