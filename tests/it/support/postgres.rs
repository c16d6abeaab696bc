//! One throw-away Postgres for all tests of a run, with a database for each; or a server of one's own to stop.

use hilum::db::managed::{ManagedPostgres, ManagedPostgresOptions};
use serde_json::Value;
use sqlx::{Executor as _, PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;

use super::{PATIENCE, runtime, shared_folder, signal, temporary_folder, wait_for};

/// A database of one test.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    pub url: String,
    pool: PgPool,
}

impl Database {
    /// A new one on the shared server.
    pub(crate) fn fresh() -> Self {
        let options = ManagedPostgresOptions::throw_away(shared_folder());
        let server = runtime().block_on(ManagedPostgres::start(&options)).expect("the shared Postgres of the tests");
        Self::fresh_on(&server)
    }

    fn fresh_on(server: &ManagedPostgres) -> Self {
        let name = format!("test_{}", uuid::Uuid::now_v7().simple());
        runtime().block_on(async {
            let admin =
                PgPoolOptions::new().max_connections(1).connect(&server.connection_url()).await.expect("Postgres");
            admin.execute(sqlx::AssertSqlSafe(format!("create database {name}"))).await.expect("a database");
            admin.close().await;
        });
        Self::at(server.connection_url_of(&name))
    }

    fn at(url: String) -> Self {
        let pool = runtime()
            .block_on(async { PgPoolOptions::new().max_connections(2).connect_lazy(&url).expect("a well-formed URL") });
        Self { url, pool }
    }

    /// The rows of a query, each as a JSON object.
    #[track_caller]
    pub(crate) fn rows(&self, query: &str) -> Vec<Value> {
        self.try_rows(query).unwrap_or_else(|error| panic!("{error}\n{query}"))
    }

    pub(crate) fn try_rows(&self, query: &str) -> Result<Vec<Value>, sqlx::Error> {
        let wrapped = format!("select to_jsonb(t) from ({query}) t");
        runtime().block_on(sqlx::query_scalar(sqlx::AssertSqlSafe(wrapped)).fetch_all(&self.pool))
    }

    /// The only row of a query.
    #[track_caller]
    pub(crate) fn row(&self, query: &str) -> Value {
        let mut rows = self.rows(query);
        assert_eq!(rows.len(), 1, "{query} has {} rows: {rows:?}", rows.len());
        rows.remove(0)
    }

    /// The number of rows of a query.
    #[track_caller]
    pub(crate) fn count(&self, query: &str) -> usize {
        self.rows(query).len()
    }

    /// Changes something behind the node's back.
    #[track_caller]
    pub(crate) fn execute(&self, statement: &str) {
        runtime()
            .block_on(self.pool.execute(sqlx::AssertSqlSafe(statement.to_owned())))
            .unwrap_or_else(|error| panic!("{error}\n{statement}"));
    }

    /// Waits until a query has exactly `count` rows and returns them.
    #[track_caller]
    pub(crate) fn wait_for_rows(&self, count: usize, query: &str) -> Vec<Value> {
        let mut last = Vec::new();
        let started = std::time::Instant::now();
        loop {
            if let Ok(rows) = self.try_rows(query) {
                if rows.len() == count {
                    return rows;
                }
                last = rows;
            }
            assert!(
                started.elapsed() < PATIENCE,
                "waited {} s in vain for {count} rows of: {query}\nthere are {}: {last:#?}",
                PATIENCE.as_secs(),
                last.len()
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// A Postgres server of one test, which may stop, kill and start it.
#[derive(Debug)]
pub(crate) struct PrivatePostgres {
    server: ManagedPostgres,
    options: ManagedPostgresOptions,
    folder: TempDir,
}

impl PrivatePostgres {
    /// `durable` keeps what was committed over [`PrivatePostgres::crash`].
    pub(crate) fn start(durable: bool) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = temporary_folder();
        fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("our own folder");
        let mut options = ManagedPostgresOptions::throw_away(folder.path());
        options.durable = durable;
        let server = runtime().block_on(ManagedPostgres::start(&options)).expect("a private Postgres");
        Self { server, options, folder }
    }

    /// A new database on it.
    pub(crate) fn fresh_database(&self) -> Database {
        Database::fresh_on(&self.server)
    }

    /// Stops it in order.
    pub(crate) fn stop(&self) {
        runtime().block_on(self.server.stop()).expect("Postgres stops");
    }

    /// `kill -9` of all its processes, as if the machine had died.
    pub(crate) fn crash(&self) {
        let main = self.server.process_id();
        signal(main, "KILL");
        let gone = || (!std::path::Path::new(&format!("/proc/{main}/exe")).exists()).then_some(());
        wait_for("Postgres is dead", PATIENCE, gone);
    }

    /// Starts it again after a stop or a crash.
    pub(crate) fn start_again(&mut self) {
        self.server = runtime().block_on(ManagedPostgres::start(&self.options)).expect("Postgres starts again");
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        let _ = runtime().block_on(self.server.stop());
    }
}
