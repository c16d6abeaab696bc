//! The snapshot of the site configuration that admission works on: refreshed from Postgres by notification and
//! regularly, kept on disk for starts without Postgres.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    db::{self, Db},
    types::{Peer, SiteConfig},
};

/// How often the configuration is read again even without a notification; host names are resolved again then.
const REFRESH: Duration = Duration::from_secs(30);

/// The site configuration with the addresses of its peers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteSnapshot {
    /// What administrators own.
    pub site: SiteConfig,
    /// Kept on disk too, so that a start needs no name service. The addresses that each peer's host stood for when it was last resolved.
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl SiteSnapshot {
    /// Resolves the hosts of `site`. A host that cannot be resolved keeps its addresses of `before`. Blocks.
    #[must_use]
    pub fn resolve(site: SiteConfig, before: Option<&Self>) -> Self {
        let mut addresses = BTreeMap::new();
        for host in site.peers.iter().map(|peer| &peer.host).filter(|host| *host != "*") {
            let resolved: Vec<IpAddr> = match (host.as_str(), 0_u16).to_socket_addrs() {
                Ok(resolved) => resolved.map(|address| address.ip().to_canonical()).collect(),
                Err(error) => {
                    tracing::warn!(host, %error, "cannot resolve the host of a peer; using its last known addresses");
                    before.and_then(|before| before.addresses.get(host)).cloned().unwrap_or_default()
                }
            };
            addresses.insert(host.clone(), resolved);
        }
        Self { site, addresses }
    }

    /// The addresses of a peer's host.
    #[must_use]
    pub fn addresses(&self, peer: &Peer) -> Vec<IpAddr> {
        self.addresses.get(&peer.host).cloned().unwrap_or_default()
    }
}

/// Keeps the snapshot fresh.
#[derive(Debug)]
pub struct SiteWatch {
    db: Db,
    file: PathBuf,
    sender: watch::Sender<Option<Arc<SiteSnapshot>>>,
}

impl SiteWatch {
    /// Starts from the snapshot in `file`, if there is one. Blocks.
    #[must_use]
    pub fn new(db: Db, file: &Path) -> (Self, watch::Receiver<Option<Arc<SiteSnapshot>>>) {
        let from_disk = match fs_err::read(file)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| serde_json::from_slice::<SiteSnapshot>(&bytes).map_err(anyhow::Error::from))
        {
            Ok(snapshot) => Some(Arc::new(snapshot)),
            Err(error) if file.exists() => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the site snapshot on disk cannot be read; without Postgres every association is rejected transiently"
                );
                None
            }
            Err(_) => None,
        };
        let (sender, receiver) = watch::channel(from_disk);
        (Self { db, file: file.to_owned(), sender }, receiver)
    }

    /// Reads the configuration once; tells whether it could be read.
    pub async fn refresh(&self) -> anyhow::Result<()> {
        let mut connection = self.db.acquire().await?;
        let site = db::site::load(&mut connection).await?;
        drop(connection);
        let before = self.sender.borrow().clone();
        let file = self.file.clone();
        let (snapshot, changed) = tokio::task::spawn_blocking(move || {
            let snapshot = SiteSnapshot::resolve(site, before.as_deref());
            let changed = before.as_deref() != Some(&snapshot);
            if changed || !file.exists() {
                keep(&file, &snapshot)?;
            }
            anyhow::Ok((snapshot, changed))
        })
        .await??;
        if changed {
            tracing::info!(
                local_aes = snapshot.site.local_aes.len(),
                peers = snapshot.site.peers.len(),
                destinations = snapshot.site.destinations.len(),
                routes = snapshot.site.routes.len(),
                "site configuration read"
            );
            self.sender.send_replace(Some(Arc::new(snapshot)));
        }
        Ok(())
    }

    /// Refreshes on every notification, and regularly, until `shutdown`. Without Postgres the last snapshot stays.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut reachable = true;
        while !shutdown.is_cancelled() {
            let listener = tokio::select! {
                () = shutdown.cancelled() => return,
                listener = self.db.listen_site() => listener,
            };
            match (listener, self.refresh().await) {
                (Ok(mut listener), Ok(())) => {
                    if !reachable {
                        tracing::info!("Postgres can be reached again; the site configuration is fresh");
                        reachable = true;
                    }
                    self.follow(&mut listener, &shutdown).await;
                }
                (listener, refreshed) => {
                    if reachable {
                        let error = refreshed.err().map(|error| format!("{error:#}"));
                        let error = error.or(listener.err().map(|error| error.to_string())).unwrap_or_default();
                        tracing::warn!(
                            error,
                            "cannot read the site configuration from Postgres; admission goes on with the last snapshot"
                        );
                        reachable = false;
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(2)) => {}
                    }
                }
            }
        }
    }

    /// Returns when the connection is lost or `shutdown` begins.
    async fn follow(&self, listener: &mut db::SiteListener, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = listener.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REFRESH) => {}
            }
            if self.refresh().await.is_err() {
                return;
            }
        }
    }
}

/// Replaces the snapshot on disk in one step.
fn keep(file: &Path, snapshot: &SiteSnapshot) -> anyhow::Result<()> {
    let temporary = file.with_extension("part");
    // It may hold hashes of passcodes.
    let mut written =
        fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    written.write_all(&serde_json::to_vec_pretty(snapshot)?)?;
    written.sync_all()?;
    fs_err::rename(&temporary, file)?;
    if let Some(folder) = file.parent() {
        fs_err::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
