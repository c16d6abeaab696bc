//! `hilum infer-child`: the inference process, started by `serve` and `dev`, never by hand.

use tokio_util::sync::CancellationToken;

use crate::{app::infer_process, config::Config};

/// Works on runs until the parent closes our standard input or a signal comes.
pub(super) async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let grace = config.node.shutdown_grace;
    tokio::spawn(async move {
        tokio::select! {
            () = infer_process::parent_is_gone() => {}
            () = super::serve::signalled() => {}
        }
        stop.cancel();
        // A network that hangs must not outlive the node.
        tokio::time::sleep(grace + std::time::Duration::from_secs(5)).await;
        tracing::warn!("the run under way did not end in time; it is taken up again at the next start");
        std::process::exit(1);
    });
    Box::pin(infer_process::run(config, shutdown)).await
}
