//! `hilum reindex`: every file of the archive into the index.

use super::{
    Global,
    output::{count, print},
    store::Store,
};
use crate::{app::open_for_reindex, receive::ScanSummary};

pub(super) async fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let summary = open_for_reindex(&config, store.db.clone()).await?.scan(None).await?;
    store.close().await?;
    print(&describe(&summary))?;
    let unreadable = summary.unreadable + summary.not_given.len();
    if unreadable > 0 {
        anyhow::bail!("{} cannot be read; the log lines above tell of them", count(unreadable, "file"));
    }
    Ok(())
}

fn describe(summary: &ScanSummary) -> String {
    format!(
        "{} looked at, {} newly indexed, {} removed as copies of others, {} unreadable",
        count(summary.files, "file"),
        summary.indexed,
        summary.duplicates,
        summary.unreadable + summary.not_given.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_everything() {
        let summary = ScanSummary { files: 10, indexed: 2, duplicates: 1, unreadable: 3, not_given: vec!["a".into()] };
        assert_eq!(
            describe(&summary),
            "10 files looked at, 2 newly indexed, 1 removed as copies of others, 4 unreadable"
        );
    }
}
