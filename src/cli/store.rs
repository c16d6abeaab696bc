//! Postgres for client commands.

use std::path::Path;

use anyhow::Context as _;

use super::failure::hinted;
use crate::{
    config::{Config, DatabaseSource},
    db::{
        Db,
        managed::{ManagedPostgres, ManagedPostgresOptions},
    },
};

/// Connections of a client command: one for its transaction, one for what it looks up meanwhile.
const CONNECTIONS: u32 = 2;

/// The node's Postgres, answering.
pub(super) struct Store {
    pub(super) db: Db,
    managed: Option<ManagedPostgres>,
}

impl Store {
    /// Connects. A managed server is used while its node runs it, else started until [`Store::close`].
    pub(super) async fn connect(config: &Config) -> anyhow::Result<Self> {
        let (url, managed) = match &config.database.source {
            DatabaseSource::External { url, .. } => (url.expose().clone(), None),
            DatabaseSource::Managed => {
                let data_dir = &config.node.data_dir;
                if !has_cluster(data_dir) {
                    return Err(hinted(
                        anyhow::anyhow!("there is no Postgres below `{}`", data_dir.display()),
                        "start the node once (`hilum dev` or `hilum serve`), or name another one with --config or --dev",
                    ));
                }
                let server = ManagedPostgres::start(&ManagedPostgresOptions::durable(data_dir)).await?;
                (server.connection_url(), Some(server))
            }
        };
        let store = Self { db: Db::connect_lazy(&url, CONNECTIONS)?, managed };
        store.db.ping().await.map_err(|error| {
            hinted(error, "check that Postgres runs, and `url` in section [database] of the configuration")
        })?;
        Ok(store)
    }

    /// The same, with the schema that this program knows.
    pub(super) async fn open(config: &Config) -> anyhow::Result<Self> {
        let store = Self::connect(config).await?;
        match store.db.check_schema().await {
            Ok(()) => Ok(store),
            Err(error) => {
                store.close().await?;
                Err(error.into())
            }
        }
    }

    /// Closes the connections and stops a server that [`Store::connect`] has started.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        self.db.close().await;
        match self.managed {
            Some(server) if !server.adopted() => server.stop().await.context("stop the managed Postgres"),
            _ => Ok(()),
        }
    }
}

/// Whether a node has ever had its Postgres there: a client command must not make a new one out of a typing error.
fn has_cluster(data_dir: &Path) -> bool {
    data_dir.join("postgres").exists() || data_dir.join("postgres.lock").exists()
}
