//! `hilum timeline`: the story of a study.

use clap::Args;
use serde_json::json;

use super::{
    Global,
    output::{Table, print, print_json, time_json, time_text},
    store::Store,
};
use crate::{
    db::{
        Db, DbError,
        status::{self, EventRow, WorkupRow},
    },
    types::Uid,
};

/// A study has one workup for each of our AE titles and senders.
const MAX_WORKUPS: i64 = 100;

#[derive(Debug, Args)]
pub(super) struct Options {
    /// (0020,000D), from `hilum studies`
    #[arg(value_name = "STUDY_UID")]
    study: Uid,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let store = Store::open(&global.load()?).await?;
    let stories = stories(&store.db, &options.study).await;
    store.close().await?;
    let stories = stories?;
    if stories.is_empty() {
        anyhow::bail!("there is no study {}; `hilum studies` lists them", options.study);
    }
    if options.json { print_json(&stories.iter().map(to_json).collect::<Vec<_>>()) } else { print(&text(&stories)) }
}

type Story = (WorkupRow, Vec<EventRow>);

async fn stories(db: &Db, study: &Uid) -> Result<Vec<Story>, DbError> {
    let mut connection = db.acquire().await?;
    let mut stories = Vec::new();
    for workup in status::workups(&mut connection, Some(study.as_str()), MAX_WORKUPS).await? {
        let events = status::timeline(&mut connection, workup.id).await?;
        stories.push((workup, events));
    }
    Ok(stories)
}

fn text(stories: &[Story]) -> String {
    let texts: Vec<String> = stories
        .iter()
        .map(|(workup, events)| {
            let mut table = Table::new(&["AT", "ABOUT", "WHAT", "WORDS"]);
            for event in events {
                table.row([time_text(event.at), event.subject_kind.clone(), event.kind.clone(), event.words.clone()]);
            }
            format!(
                "Study {} from `{}` to `{}`: {}\n{}",
                workup.study_instance_uid,
                workup.calling_ae_title,
                workup.local_ae_title,
                workup.state,
                table.render("nothing has happened yet")
            )
        })
        .collect();
    texts.join("\n")
}

fn to_json((workup, events): &Story) -> serde_json::Value {
    let events: Vec<_> = events
        .iter()
        .map(|event| {
            json!({
                "at": time_json(event.at),
                "subject": event.subject_kind,
                "kind": event.kind,
                "words": event.words,
            })
        })
        .collect();
    json!({
        "workup_id": workup.id,
        "study_instance_uid": workup.study_instance_uid,
        "state": workup.state,
        "events": events,
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_story_is_told_in_order() {
        let at = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        let workup = WorkupRow {
            id: Uuid::nil(),
            study_instance_uid: "1.2.3".into(),
            local_ae_title: "HILUM".into(),
            calling_ae_title: "DX_ROOM_1".into(),
            state: "analysing".into(),
            state_words: String::new(),
            revision: 1,
            route_name: None,
            modalities: Vec::new(),
            object_count: 1,
            last_object_at: at,
        };
        let event = |subject: &str, kind: &str, words: &str| EventRow {
            at,
            subject_kind: subject.into(),
            kind: kind.into(),
            words: words.into(),
        };
        let events =
            vec![event("workup", "complete", "1 object, nothing new for 20 s"), event("run", "queued", "queued")];
        insta::assert_snapshot!(text(&[(workup, events)]), @"
        Study 1.2.3 from `DX_ROOM_1` to `HILUM`: analysing
        AT                    ABOUT   WHAT      WORDS
        2026-09-21 14:13:20Z  workup  complete  1 object, nothing new for 20 s
        2026-09-21 14:13:20Z  run     queued    queued
        ");
    }
}
