//! `hilum migrate`.

use anyhow::Context as _;

use super::{Global, output::print, store::Store};
use crate::{db::DbError, jobs};

pub(super) async fn run(global: &Global) -> anyhow::Result<()> {
    let store = Store::connect(&global.load()?).await?;
    let outcome = migrate(&store).await;
    store.close().await?;
    print(&outcome?)
}

/// Applies our migrations, then the queue's, and tells what it did.
async fn migrate(store: &Store) -> anyhow::Result<String> {
    let words = match store.db.check_schema().await {
        Ok(()) => "the schema is up to date".to_owned(),
        Err(DbError::SchemaVersion { found, expected, .. }) if found < expected => {
            store.db.migrate().await?;
            store.db.check_schema().await.context("check the schema after the migration")?;
            format!("the schema has been migrated from version {found} to version {expected}")
        }
        Err(error) => return Err(error.into()),
    };
    jobs::migrate(&store.db).await?;
    Ok(format!("{words}; the tables of the job queue are up to date"))
}
