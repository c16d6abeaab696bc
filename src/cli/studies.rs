//! `hilum studies`.

use clap::Args;
use serde_json::json;

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text},
    store::Store,
};
use crate::{
    db::status::{self, WorkupRow},
    types::Uid,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Only the study with this Study Instance UID
    #[arg(long, value_name = "UID")]
    study: Option<Uid>,
    /// At most so many
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
    limit: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let study = options.study.as_ref().map(Uid::as_str);
    let rows = async { status::workups(&mut *store.db.acquire().await?, study, options.limit).await }.await;
    store.close().await?;
    let rows = rows?;
    if options.json { print_json(&rows.iter().map(to_json).collect::<Vec<_>>()) } else { print(&table(&rows)) }
}

fn table(rows: &[WorkupRow]) -> String {
    let mut table = Table::new(&[
        "LAST OBJECT",
        "STUDY INSTANCE UID",
        "FROM",
        "TO",
        "MODALITY",
        "OBJECTS",
        "REVISION",
        "STATE",
        "ROUTE",
        "WORDS",
    ]);
    for row in rows {
        table.row([
            time_text(row.last_object_at),
            row.study_instance_uid.clone(),
            row.calling_ae_title.clone(),
            row.local_ae_title.clone(),
            row.modalities.join(","),
            row.object_count.to_string(),
            row.revision.to_string(),
            row.state.clone(),
            row.route_name.clone().unwrap_or_default(),
            row.state_words.clone(),
        ]);
    }
    table.render("no studies")
}

fn to_json(row: &WorkupRow) -> serde_json::Value {
    json!({
        "workup_id": row.id,
        "study_instance_uid": row.study_instance_uid,
        "calling_ae_title": row.calling_ae_title,
        "local_ae_title": row.local_ae_title,
        "modalities": row.modalities,
        "object_count": row.object_count,
        "last_object_at": time_json(row.last_object_at),
        "revision": row.revision,
        "state": row.state,
        "state_words": row.state_words,
        "route": row.route_name,
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn row() -> WorkupRow {
        WorkupRow {
            id: Uuid::nil(),
            study_instance_uid: "1.2.3".into(),
            local_ae_title: "HILUM".into(),
            calling_ae_title: "DX_ROOM_1".into(),
            state: "answered".into(),
            state_words: "all results are delivered".into(),
            revision: 1,
            route_name: Some("chest".into()),
            modalities: vec!["DX".into()],
            object_count: 2,
            last_object_at: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
        }
    }

    #[test]
    fn the_table_of_studies() {
        insta::assert_snapshot!(table(&[row(), WorkupRow { route_name: None, ..row() }]), @"
        LAST OBJECT           STUDY INSTANCE UID  FROM       TO     MODALITY  OBJECTS  REVISION  STATE     ROUTE  WORDS
        2026-09-21 14:13:20Z  1.2.3               DX_ROOM_1  HILUM  DX        2        1         answered  chest  all results are delivered
        2026-09-21 14:13:20Z  1.2.3               DX_ROOM_1  HILUM  DX        2        1         answered  -      all results are delivered
        ");
        assert_eq!(table(&[]), "no studies\n");
    }

    #[test]
    fn the_json_of_a_study() {
        insta::assert_json_snapshot!(to_json(&row()), @r#"
        {
          "workup_id": "00000000-0000-0000-0000-000000000000",
          "study_instance_uid": "1.2.3",
          "calling_ae_title": "DX_ROOM_1",
          "local_ae_title": "HILUM",
          "modalities": [
            "DX"
          ],
          "object_count": 2,
          "last_object_at": "2026-09-21T14:13:20Z",
          "revision": 1,
          "state": "answered",
          "state_words": "all results are delivered",
          "route": "chest"
        }
        "#);
    }
}
