//! `hilum retention`: what is, or would be, removed.

use clap::Args;

use super::{
    Global,
    output::{count, print},
    store::Store,
};
use crate::{
    app::{open_archive, retention_policy},
    retention::{Amount, Policy, Retention, Summary},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let policy = retention_policy(&config.retention);
    let retention = Retention { db: store.db.clone(), archive: open_archive(&config)?, policy };
    let (summary, ended) = if options.dry_run { (retention.plan().await?, Ok(())) } else { retention.remove().await };
    store.close().await?;
    print(&describe(&summary, &policy, options.dry_run))?;
    ended
}

fn describe(summary: &Summary, policy: &Policy, dry_run: bool) -> String {
    if !policy.removes_anything() {
        return "retention is off: section [retention] of the configuration says what may be removed".to_owned();
    }
    let would = if dry_run { "would be removed" } else { "removed" };
    let amount = |amount: &Amount, noun: &str| {
        format!(
            "{} of {}, {} bytes, {would}",
            count(usize::try_from(amount.files).unwrap_or(usize::MAX), noun),
            match amount.studies {
                1 => "1 study".to_owned(),
                studies => format!("{studies} studies"),
            },
            amount.bytes
        )
    };
    let mut lines = vec![amount(&summary.objects, "received object"), amount(&summary.results, "result")];
    lines.push(format!(
        "{} without a row {would}",
        count(usize::try_from(summary.orphans).unwrap_or(usize::MAX), "file")
    ));
    if !dry_run {
        lines.push(format!(
            "{} steps of timelines, {} associations and {} commitment requests forgotten",
            summary.events, summary.associations, summary.commitments
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_goes_is_told() {
        let summary = Summary {
            objects: Amount { studies: 2, files: 5, bytes: 1000 },
            results: Amount { studies: 1, files: 1, bytes: 7 },
            events: 3,
            associations: 4,
            commitments: 5,
            orphans: 1,
        };
        let policy = Policy { history: Some(Duration::from_hours(24)), ..Policy::default() };
        insta::assert_snapshot!(describe(&summary, &policy, true), @"
        5 received objects of 2 studies, 1000 bytes, would be removed
        1 result of 1 study, 7 bytes, would be removed
        1 file without a row would be removed
        ");
        insta::assert_snapshot!(describe(&summary, &policy, false), @"
        5 received objects of 2 studies, 1000 bytes, removed
        1 result of 1 study, 7 bytes, removed
        1 file without a row removed
        3 steps of timelines, 4 associations and 5 commitment requests forgotten
        ");
        assert!(describe(&summary, &Policy::default(), true).starts_with("retention is off"));
    }
}
