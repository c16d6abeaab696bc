//! The HTTP listener: health, readiness, metrics, a status page and the same facts as JSON.
//!
//! There is no sign-in yet, so it listens on loopback only (`config/` refuses anything else), answers only requests
//! that name this machine, changes nothing, and shows no patient identity: studies are named by their UID.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the status page |
//! | `/studies/{study_instance_uid}` | one study: timeline, runs with findings, heat maps, deliveries |
//! | `/routes/{name}/trial` | how the bundle that a route tries agrees with its own |
//! | `/results/{result_id}/preview.png` | the picture of a heat map |
//! | `/api/studies`, `/api/studies/{study_instance_uid}`, `/api/runs`, `/api/routes/{name}/trial`, `/api/backlog` | the same as JSON |
//! | `/api/doctor` | the checks of `/readyz`, and what was refused in the last day by cause |
//! | `/healthz` | 200 while the process runs |
//! | `/readyz` | 200 or 503, and every check in words |
//! | `/metrics` | OpenMetrics |
//!
//! Architecture invariant: no tensors and no SQL; reads through `db/`, `archive/` and `telemetry/` only.
//! Entry type: [`AdminState`], given to [`serve`].

mod api;
mod connection;
mod findings;
mod guard;
mod pages;
mod problem;
mod readiness;
#[cfg(test)]
mod tests;
mod trial;
mod view;

use std::{io, ops::DerefMut, sync::Arc, time::Duration};

use axum::{Router, middleware, routing::get};
use time::OffsetDateTime;
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

pub use guard::RESPONSE_TIMEOUT;
pub use readiness::{CheckOutcome, Readiness};

use crate::{
    archive::Archive,
    db::{
        self, Db,
        refusal::{self, Whose},
        status::Backlog,
    },
    telemetry::Metrics,
};
use connection::LimitedListener;
use problem::Problem;
use view::RefusalView;

/// How long a request waits for a connection to Postgres before it says that there is none.
const DATABASE_PATIENCE: Duration = Duration::from_secs(2);

/// How far back refusals are shown.
const REFUSALS_OF: time::Duration = time::Duration::hours(24);
/// Rows of refusals that are grouped.
const REFUSAL_ROWS: i64 = 1000;

/// How long open requests may take after the shutdown began.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What the listener shows. Everything is passed in; nothing is global.
#[derive(Debug)]
pub struct AdminState {
    /// Read only. Best a small pool of its own, so that pages never take connections from receiving.
    pub db: Db,
    /// Read only.
    pub archive: Archive,
    /// What `/metrics` answers.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` asks.
    pub readiness: Readiness,
    /// The name of this node.
    pub node_name: String,
    /// The version of Hilum.
    pub version: String,
}

impl AdminState {
    /// A connection to Postgres, or the page that says there is none.
    async fn connection(&self) -> Result<impl DerefMut<Target = db::Connection> + use<>, Problem> {
        match timeout(DATABASE_PATIENCE, self.db.acquire()).await {
            Ok(acquired) => acquired.map_err(Problem::from),
            Err(_) => {
                Err(Problem::database(&format!("no connection to Postgres within {} s", DATABASE_PATIENCE.as_secs())))
            }
        }
    }

    /// What was refused in the last day, by cause: the open ones first.
    async fn refusals(&self, connection: &mut db::Connection) -> Result<Vec<RefusalView>, Problem> {
        let since = OffsetDateTime::now_utc() - REFUSALS_OF;
        let rows = refusal::list(connection, since, &Whose::default(), REFUSAL_ROWS).await?;
        Ok(refusal::causes(rows).into_iter().filter_map(RefusalView::new).collect())
    }

    async fn backlog(&self) -> Result<Backlog, Problem> {
        let mut connection = self.connection().await?;
        Ok(db::status::backlog(&mut connection).await?)
    }

    /// Free bytes on the archive's disk.
    async fn free_bytes(&self) -> Result<u64, String> {
        let archive = self.archive.clone();
        match tokio::task::spawn_blocking(move || archive.free_bytes()).await {
            Ok(free_bytes) => free_bytes.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Every path, behind the checks of every request.
pub fn router(state: AdminState) -> Router {
    let state = Arc::new(state);
    Router::new()
        .route("/", get(pages::status))
        .route("/studies/{study_instance_uid}", get(pages::study))
        .route("/routes/{name}/trial", get(trial::page))
        .route("/results/{result_id}/preview.png", get(pages::preview))
        .route("/style.css", get(pages::style))
        .route("/icon.svg", get(pages::icon))
        .route("/api/studies", get(api::studies))
        .route("/api/studies/{study_instance_uid}", get(api::study))
        .route("/api/runs", get(api::runs))
        .route("/api/routes/{name}/trial", get(trial::json))
        .route("/api/deliveries", get(api::deliveries))
        .route("/api/destinations", get(api::destinations))
        .route("/api/backlog", get(api::backlog))
        .route("/api/doctor", get(api::doctor))
        .route("/healthz", get(api::health))
        .route("/readyz", get(api::ready))
        .route("/metrics", get(api::metrics))
        .fallback(problem::not_found)
        .layer(middleware::from_fn(guard::guard))
        .with_state(state)
}

/// Serves until `shutdown`, then lets open requests finish for at most 5 seconds. The caller has bound the listener
/// to a loopback address.
pub async fn serve(listener: TcpListener, state: AdminState, shutdown: CancellationToken) -> io::Result<()> {
    let server = axum::serve(LimitedListener::new(listener), router(state))
        .with_graceful_shutdown(shutdown.clone().cancelled_owned());
    // Cancel safety: requests that outlive the grace are dropped, they change nothing.
    tokio::select! {
        ended = server.into_future() => ended,
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(SHUTDOWN_GRACE).await;
        } => Ok(()),
    }
}
