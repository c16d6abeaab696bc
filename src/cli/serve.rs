//! `hilum serve`.

use crate::{config::Config, receive::Indexer};

/// Runs the node until it is told to stop.
pub(super) async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("`hilum serve` is not part of this build")
}

/// Becomes `crate::app::open_for_reindex`.
pub(super) async fn open_for_reindex(_config: Config) -> anyhow::Result<Indexer> {
    anyhow::bail!("`hilum reindex` is not part of this build")
}
