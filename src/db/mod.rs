//! The database: the only room with SQL. One file per aggregate; every function takes the connection or
//! transaction it works in, so that callers decide what is atomic.
//!
//! Architecture invariant: knows `types` and nothing else. Every state transition is one statement fenced by the
//! old state (and, for runs and deliveries, the attempt number) and writes its [`event`] in the same transaction.
//! Entry type: [`Db`].

pub mod archive_watermark;
pub mod association;
pub mod case;
pub mod commitment;
pub mod delivery;
pub mod destination;
pub mod event;
pub mod installation;
pub mod instance;
pub mod managed;
pub mod masks;
pub mod probe;
pub mod queue_worker;
pub mod refusal;
pub mod result;
pub mod retention;
pub mod run;
pub mod sender_habit;
pub mod site;
pub mod status;
#[cfg(test)]
pub(crate) mod testing;
pub mod trial;
pub mod workup;

use std::{str::FromStr, time::Duration};

use sqlx::{
    PgPool, Postgres,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};

use crate::types::Sha256Digest;

/// A transaction; rolled back when dropped without [`Tx::commit`].
pub type Tx = sqlx::Transaction<'static, Postgres>;
/// One connection, inside or outside a transaction.
pub type Connection = sqlx::PgConnection;
/// The pool, for `jobs/`, which hands it to the queue.
pub type Pool = PgPool;

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// What can go wrong with the database.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The URL cannot be understood.
    #[error("the database URL is not valid: {0}; expected postgres://USER@HOST/DATABASE")]
    Url(String),
    /// A query failed, or Postgres cannot be reached.
    #[error("database: {0}")]
    Query(#[from] sqlx::Error),
    /// A migration failed.
    #[error("database migration: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A row holds what this version cannot read.
    #[error("the database holds an unreadable {what} ({problem}); was it written by another version of Hilum?")]
    Unreadable {
        /// Which column or value.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The schema is older or newer than this program.
    #[error("the database schema is at version {found} and this program needs {expected}; {remedy}")]
    SchemaVersion {
        /// Newest applied migration, 0 for none.
        found: i64,
        /// Newest migration of this program.
        expected: i64,
        /// What to do.
        remedy: &'static str,
    },
    /// A change of the site configuration was refused.
    #[error("{0}")]
    SiteRefused(String),
}

/// Results of this room.
pub type Result<T> = std::result::Result<T, DbError>;

impl DbError {
    /// Whether Postgres refuses the values themselves (SQLSTATE classes 22 and 23; 54, too large for it): the same will
    /// fail again.
    #[must_use]
    pub fn is_about_the_data(&self) -> bool {
        match self {
            Self::Query(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
            }
            Self::Query(sqlx::Error::Encode(_)) => true,
            _ => false,
        }
    }

    /// Whether Postgres did not answer, so that waiting may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Query(
                sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_),
            ) => true,
            // 57P03: the server is starting or stopping; 53300: too many connections; 3D000 is a real mistake.
            Self::Query(sqlx::Error::Database(error)) => {
                matches!(error.code().as_deref(), Some("57P01" | "57P02" | "57P03" | "53300"))
            }
            _ => false,
        }
    }

    fn unreadable(what: &'static str, problem: impl std::fmt::Display) -> Self {
        Self::Unreadable { what, problem: problem.to_string() }
    }
}

/// The connection pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Db {
    pool: PgPool,
}

impl Db {
    /// A pool that connects when first used, so that a node starts while Postgres is down.
    ///
    /// `url` is a `postgres://` URL; `maximum_connections` at least 1.
    pub fn connect_lazy(url: &str, maximum_connections: u32) -> Result<Self> {
        Self::connect_lazy_with(url, maximum_connections, None)
    }

    /// As [`Db::connect_lazy`]; Postgres ends each statement after `statement_limit`, so that questions whose asker has
    /// gone do not keep the connections from others.
    pub fn connect_lazy_limited(url: &str, maximum_connections: u32, statement_limit: Duration) -> Result<Self> {
        Self::connect_lazy_with(url, maximum_connections, Some(statement_limit))
    }

    fn connect_lazy_with(url: &str, maximum_connections: u32, statement_limit: Option<Duration>) -> Result<Self> {
        let mut options = PgConnectOptions::from_str(url)
            .map_err(|error| DbError::Url(error.to_string()))?
            .application_name("hilum")
            // A peer that vanished must not hold locks for ever. Compiling a statement takes longer than any of ours saves by it.
            .options([("idle_in_transaction_session_timeout", "60s"), ("jit", "off")]);
        if let Some(limit) = statement_limit {
            options = options.options([("statement_timeout", format!("{}ms", limit.as_millis()))]);
        }
        let pool = PgPoolOptions::new()
            .max_connections(maximum_connections.max(1))
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(options);
        Ok(Self { pool })
    }

    /// The pool itself, for the job queue.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Begins a transaction.
    pub async fn begin(&self) -> Result<Tx> {
        Ok(self.pool.begin().await?)
    }

    /// A connection for single statements.
    pub async fn acquire(&self) -> Result<sqlx::pool::PoolConnection<Postgres>> {
        Ok(self.pool.acquire().await?)
    }

    /// Whether Postgres answers.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }

    /// The time by Postgres's clock.
    pub async fn now(&self) -> Result<time::OffsetDateTime> {
        Ok(sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool).await?)
    }

    /// Applies the migrations that are missing, under a lock, so that several nodes may try at once.
    pub async fn migrate(&self) -> Result<()> {
        MIGRATOR.run(&self.pool).await?;
        Ok(())
    }

    /// Fails unless exactly this program's migrations are applied.
    pub async fn check_schema(&self) -> Result<()> {
        let expected = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
        let table: Option<String> =
            sqlx::query_scalar("select to_regclass('_sqlx_migrations')::text").fetch_one(&self.pool).await?;
        let found: i64 = match table {
            None => 0,
            Some(_) => {
                sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
                    .fetch_one(&self.pool)
                    .await?
            }
        };
        match found.cmp(&expected) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(DbError::SchemaVersion {
                found,
                expected,
                remedy: "run `hilum migrate`, or set database.migrate_on_start = true",
            }),
            std::cmp::Ordering::Greater => Err(DbError::SchemaVersion {
                found,
                expected,
                remedy: "this program is older than the database: install the newer version",
            }),
        }
    }

    /// Listens for changes of the site configuration. Each notification means "read it again".
    pub async fn listen_site(&self) -> Result<SiteListener> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(site::CHANNEL).await?;
        Ok(SiteListener { listener })
    }

    /// Closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A stream of "the site configuration changed".
#[derive(Debug)]
pub struct SiteListener {
    listener: PgListener,
}

impl SiteListener {
    /// Waits for the next change. An error means the connection was lost and changes may have been missed.
    ///
    /// Cancel safety: safe; a notification not yet returned stays in the listener.
    pub async fn changed(&mut self) -> Result<()> {
        match self.listener.try_recv().await? {
            Some(_) => Ok(()),
            None => Err(DbError::Query(sqlx::Error::PoolClosed)),
        }
    }
}

/// Postgres text cannot hold NUL, which a hostile peer may send.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn digest_from_bytes(bytes: &[u8], what: &'static str) -> Result<Sha256Digest> {
    <[u8; 32]>::try_from(bytes)
        .map(Sha256Digest)
        .map_err(|_| DbError::unreadable(what, format!("{} bytes instead of 32", bytes.len())))
}
