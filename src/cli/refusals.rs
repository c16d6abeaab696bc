//! `hilum refusals`: what was turned away, and what to do about it. `hilum doctor` groups it by cause.

use clap::Args;
use serde_json::json;
use time::OffsetDateTime;

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text},
    store::Store,
};
use crate::db::refusal::{self, RefusalRow, Whose};

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
    let rows = async {
        let mut connection = store.db.acquire().await?;
        refusal::list(&mut connection, OffsetDateTime::UNIX_EPOCH, &Whose::default(), options.limit).await
    }
    .await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

fn table(rows: &[RefusalRow]) -> String {
    let mut table =
        Table::new(&["ID", "WHAT", "LAST", "COUNT", "ADDRESS", "CALLING", "CALLED", "EXPECTED", "RECEIVED", "REMEDY"]);
    for row in rows {
        table.row([
            row.id.to_string(),
            row.kind.clone(),
            time_text(row.last_at),
            row.count.to_string(),
            row.peer_address.clone(),
            row.calling_ae_title.clone(),
            row.called_ae_title.clone(),
            row.expected.clone(),
            row.received.clone(),
            row.remedy.clone(),
        ]);
    }
    table.render("nothing has been refused")
}

/// A refusal for programs.
pub(super) fn to_json(row: &RefusalRow) -> serde_json::Value {
    json!({
        "id": row.id,
        "kind": row.kind,
        "reason": row.reason,
        "peer_address": row.peer_address,
        "calling_ae_title": row.calling_ae_title,
        "called_ae_title": row.called_ae_title,
        "sop_class_uid": row.sop_class_uid,
        "sop_instance_uid": row.example,
        "expected": row.expected,
        "received": row.received,
        "remedy": row.remedy,
        "harmless": row.harmless,
        "mended": row.mended,
        "count": row.count,
        "first_at": time_json(row.first_at),
        "last_at": time_json(row.last_at),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A caller that nobody knows.
    pub(in crate::cli) fn row() -> RefusalRow {
        let last_at = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        RefusalRow {
            id: 12,
            kind: "association".into(),
            reason: "calling_ae_title".into(),
            peer_address: "192.0.2.7".into(),
            calling_ae_title: "EVIL\u{1b}[2J".into(),
            called_ae_title: "HILUM".into(),
            sop_class_uid: String::new(),
            expected: "a call from `DX_ROOM_1`".into(),
            received: "a call from `EVIL`".into(),
            remedy: "run `hilum peer add NAME`".into(),
            harmless: false,
            example: None,
            count: 3,
            first_at: last_at - time::Duration::minutes(5),
            last_at,
            mended: false,
        }
    }

    #[test]
    fn the_table_of_refusals() {
        insta::assert_snapshot!(table(&[row()]), @"
        ID  WHAT         LAST                  COUNT  ADDRESS    CALLING   CALLED  EXPECTED                 RECEIVED            REMEDY
        12  association  2026-09-21 14:13:20Z  3      192.0.2.7  EVIL [2J  HILUM   a call from `DX_ROOM_1`  a call from `EVIL`  run `hilum peer add NAME`
        ");
        assert_eq!(table(&[]), "nothing has been refused\n");
    }
}
