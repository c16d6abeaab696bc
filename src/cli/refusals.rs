//! `hilum refusals`: who was turned away, and what to do about it.

use clap::Args;
use serde_json::json;

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text},
    store::Store,
};
use crate::db::status::{self, RefusalRow};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// At most so many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let rows = async { status::refusals(&mut *store.db.acquire().await?, options.limit).await }.await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

fn table(rows: &[RefusalRow]) -> String {
    let mut table = Table::new(&["AT", "ADDRESS", "CALLING", "CALLED", "EXPECTED", "RECEIVED", "REMEDY"]);
    for row in rows {
        table.row([
            time_text(row.started_at),
            row.peer_address.clone(),
            row.calling_ae_title.clone(),
            row.called_ae_title.clone(),
            row.expected.clone(),
            row.received.clone(),
            row.remedy.clone(),
        ]);
    }
    table.render("no refused associations")
}

fn to_json(row: &RefusalRow) -> serde_json::Value {
    json!({
        "at": time_json(row.started_at),
        "peer_address": row.peer_address,
        "calling_ae_title": row.calling_ae_title,
        "called_ae_title": row.called_ae_title,
        "expected": row.expected,
        "received": row.received,
        "remedy": row.remedy,
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn the_table_of_refusals() {
        let row = RefusalRow {
            started_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            peer_address: "192.0.2.7".into(),
            calling_ae_title: "EVIL\u{1b}[2J".into(),
            called_ae_title: "HILUM".into(),
            expected: "a call from `DX_ROOM_1`".into(),
            received: "a call from `EVIL`".into(),
            remedy: "run `hilum peer add NAME`".into(),
        };
        insta::assert_snapshot!(table(&[row]), @"
        AT                    ADDRESS    CALLING   CALLED  EXPECTED                 RECEIVED            REMEDY
        2026-09-21 14:13:20Z  192.0.2.7  EVIL [2J  HILUM   a call from `DX_ROOM_1`  a call from `EVIL`  run `hilum peer add NAME`
        ");
        assert_eq!(table(&[]), "no refused associations\n");
    }
}
