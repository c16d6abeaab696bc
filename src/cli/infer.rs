//! `hilum infer-child`.

use crate::config::Config;

/// Computes until the parent process ends.
pub(super) async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("`hilum infer-child` is not part of this build")
}
