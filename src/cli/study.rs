//! `hilum study`: what a person can do to a study.

use clap::{Args, Subcommand};

use super::{
    Global,
    output::{count, print},
    store::Store,
};
use crate::{
    db::{self, Db, status, workup},
    jobs::{self, Job},
    types::{AeTitle, Uid},
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Takes a study that is still being received as complete now
    Complete(Complete),
}

#[derive(Debug, Args)]
pub(super) struct Complete {
    /// (0020,000D), from `hilum studies`
    #[arg(value_name = "STUDY_UID")]
    study: Uid,
    /// Only as it was sent to this AE title of ours [default: all that it was sent to]
    #[arg(long, value_name = "TITLE")]
    local_ae: Option<AeTitle>,
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    let Action::Complete(options) = action;
    let store = Store::open(&global.load()?).await?;
    let outcome = complete(&store.db, &options, &super::user()).await;
    store.close().await?;
    print(&outcome?)
}

async fn complete(db: &Db, options: &Complete, user: &str) -> anyhow::Result<String> {
    let Complete { study, local_ae } = options;
    let mut tx = db.begin().await?;
    let forced_by = format!("user `{user}`, with `hilum study complete`,");
    let forced = workup::force(&mut tx, study.as_str(), local_ae.as_ref().map(AeTitle::as_str), &forced_by).await?;
    for workup_id in &forced {
        jobs::queue(&mut tx, db, &Job::CompleteWorkup(*workup_id), None).await?;
    }
    if forced.is_empty() {
        let known = status::workups(&mut tx, Some(study.as_str()), 20).await?;
        anyhow::bail!(nothing_to_complete(study, local_ae.as_ref(), &known));
    }
    tx.commit().await.map_err(db::DbError::from)?;
    Ok(format!(
        "{} taken as complete; `hilum timeline {study}` tells what becomes of it",
        count(forced.len(), "workup")
    ))
}

fn nothing_to_complete(study: &Uid, local_ae: Option<&AeTitle>, known: &[status::WorkupRow]) -> String {
    let states: Vec<String> =
        known.iter().map(|workup| format!("{} at `{}`", workup.state, workup.local_ae_title)).collect();
    match (states.is_empty(), local_ae) {
        (true, _) => format!("there is no study {study}; `hilum studies` lists them"),
        (false, Some(title)) => {
            format!("study {study} is not being received at `{title}`; it is {}", states.join(", "))
        }
        (false, None) => format!("study {study} is complete already: it is {}", states.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workup(local_ae_title: &str, state: &str) -> status::WorkupRow {
        status::WorkupRow {
            id: uuid::Uuid::nil(),
            study_instance_uid: "1.2.3".into(),
            local_ae_title: local_ae_title.into(),
            calling_ae_title: "DX01".into(),
            state: state.into(),
            state_words: String::new(),
            revision: 1,
            route_name: None,
            modalities: Vec::new(),
            object_count: 1,
            last_object_at: time::OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_cannot_be_completed_is_explained() {
        let (study, title) = (Uid::new("1.2.3").unwrap(), AeTitle::new("OTHER").unwrap());
        let known = [workup("HILUM", "answered"), workup("RESEARCH", "parked")];
        insta::assert_snapshot!(nothing_to_complete(&study, None, &[]), @"there is no study 1.2.3; `hilum studies` lists them");
        insta::assert_snapshot!(nothing_to_complete(&study, None, &known), @"study 1.2.3 is complete already: it is answered at `HILUM`, parked at `RESEARCH`");
        insta::assert_snapshot!(nothing_to_complete(&study, Some(&title), &known), @"study 1.2.3 is not being received at `OTHER`; it is answered at `HILUM`, parked at `RESEARCH`");
    }
}
