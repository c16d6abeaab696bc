//! `hilum peer probe`: finds out what a peer accepts, keeps it, and says what has changed since the last time.

mod ask;
mod questions;
mod show;

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{
    Address, Global,
    failure::hinted,
    output::{print, print_json},
    peer::callable,
    site::{default_calling, unknown},
    store::Store,
    tls,
};
use crate::{
    config::Config,
    db::{probe, refusal},
    types::{AeTitle, Uid},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Which
    name: String,
    /// Call this host instead of the configured one
    #[arg(long)]
    host: Option<String>,
    /// Call this TCP port instead of the configured one
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Call as this AE title [default: the one of its destination, or the first enabled local AE]
    #[arg(long, value_name = "TITLE")]
    calling: Option<AeTitle>,
    /// Ask for this SOP class, too; may be repeated
    #[arg(long = "sop-class", value_name = "UID")]
    sop_classes: Vec<Uid>,
    /// How long the peer may take for each step
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let probed = run_with(&config, &store, &options).await;
    store.close().await?;
    probed
}

async fn run_with(config: &Config, store: &Store, options: &Options) -> anyhow::Result<()> {
    let mut connection = store.db.acquire().await?;
    let site = crate::db::site::load(&mut connection).await?;
    let Some(peer) = site.peers.iter().find(|peer| peer.name == options.name) else {
        let known: Vec<String> = site.peers.iter().map(|peer| format!("`{}`", peer.name)).collect();
        anyhow::bail!(unknown("peer", &options.name, &known));
    };
    let mut peer = peer.clone();
    peer.host = options.host.clone().unwrap_or(peer.host);
    peer.port = options.port.or(peer.port);
    let offer = refusal::offer_of(&mut connection, peer.ae_title.as_str()).await?;
    drop(connection);
    let Address { host, port } = match callable(&peer) {
        Ok(address) => address,
        // It cannot be asked; what it said by itself can be shown.
        Err(error) => {
            if let Some(offer) = &offer {
                print(&show::offer(offer))?;
            }
            return Err(error);
        }
    };
    let destination = site.destinations.iter().find(|destination| destination.peer.as_ref() == Some(&peer.name));
    let calling = options.calling.clone().or_else(|| destination.and_then(|one| one.calling_ae_title.clone()));
    let Some(calling) = calling.or_else(|| default_calling(&site)) else {
        return Err(hinted(
            anyhow::anyhow!("this node has no AE title to call with"),
            "add one with `hilum local-ae add TITLE`, or give --calling",
        ));
    };
    let tls = tls::client_for(config, &peer)?;
    let timeout = Duration::from_secs(options.timeout);
    let whom = ask::Whom { calling, called: peer.ae_title, host, port, tls, timeout };
    let found = ask::probe(&whom, &questions::questions(&options.sop_classes)).await?;
    let previous = probe::keep(&mut *store.db.acquire().await?, &peer.name, &found).await?;
    let changes = previous.as_ref().map(|previous| show::changes(previous, &found));
    if options.json {
        print_json(&json!({ "peer": peer.name, "probe": found, "changes": changes }))?;
    } else {
        print(&show::probe(&peer.name, &found, changes.as_deref()))?;
        if let Some(offer) = &offer {
            print(&show::offer(offer))?;
        }
    }
    if found.failures.is_empty() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("peer `{}` left questions open: {}", peer.name, found.failures.join("; ")))
    }
}
