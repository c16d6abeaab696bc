//! Who this installation is: an id made once, kept in the data folder and in Postgres.

use std::time::Duration;

use anyhow::Context as _;
use uuid::Uuid;

use crate::{config::Config, db, db::Db, report, types::Installation};

/// The installation as results name it.
#[derive(Debug, Clone)]
pub struct Installed {
    /// What results say.
    pub installation: Installation,
}

/// Reads the id from Postgres, else from the data folder, and makes it when there is none. Postgres wins: it is
/// shared by all nodes.
pub async fn installation(config: &Config, db: &Db) -> anyhow::Result<Installed> {
    let file = config.node.data_dir.join("installation-id");
    let on_disk = match fs_err::read_to_string(&file) {
        Ok(text) => Some(text.trim().parse::<Uuid>().with_context(|| format!("read {}", file.display()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let proposed = on_disk.unwrap_or_else(Uuid::now_v7);
    let in_database = tokio::time::timeout(Duration::from_secs(10), async {
        let mut connection = db.acquire().await?;
        db::installation::id_or_insert(&mut connection, proposed).await
    })
    .await;
    let id = match in_database {
        Ok(Ok(id)) => id,
        _ => proposed,
    };
    if on_disk != Some(id) {
        let temporary = file.with_extension("part");
        fs_err::write(&temporary, format!("{id}\n"))?;
        fs_err::File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, &file)?;
    }
    Ok(Installed { installation: installation_named(config, id) })
}

/// The installation with this id, as results name it.
#[must_use]
pub fn installation_named(config: &Config, id: Uuid) -> Installation {
    Installation {
        id,
        device_uid: report::uid("device", &[&id.to_string()]),
        station_name: config.node.name.to_string(),
        institution_name: config.node.institution_name.to_string(),
    }
}
