//! Rendered result objects.

use uuid::Uuid;

use super::{Connection, Result};
use crate::types::{Sha256Digest, Uid};

/// A rendered object that the archive has made durable.
#[derive(Debug, Clone)]
pub struct NewResult {
    /// Its run.
    pub run_id: Uuid,
    /// `sr` or `sc`.
    pub kind: &'static str,
    /// Number within the kind, from 0.
    pub ordinal: i32,
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// (0020,000E)
    pub series_instance_uid: Uid,
    /// Transfer syntax of the data set.
    pub transfer_syntax_uid: Uid,
    /// Where the archive keeps the DICOM file.
    pub archive_key: String,
    /// Where the archive keeps a PNG of it.
    pub preview_key: Option<String>,
    /// Digest of the file.
    pub sha256: Sha256Digest,
    /// Size of the file.
    pub size_bytes: u64,
    /// Our Device UID.
    pub device_uid: Uid,
}

/// Inserts a result, or returns the existing row of the same SOP Instance UID: rendering is idempotent.
pub async fn insert_or_existing(connection: &mut Connection, new: &NewResult) -> Result<Uuid> {
    sqlx::query(
        "insert into result (id, run_id, kind, ordinal, sop_class_uid, sop_instance_uid, series_instance_uid,
             transfer_syntax_uid, archive_key, preview_key, sha256, size_bytes, device_uid)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict (sop_instance_uid) do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(new.run_id)
    .bind(new.kind)
    .bind(new.ordinal)
    .bind(new.sop_class_uid.as_str())
    .bind(new.sop_instance_uid.as_str())
    .bind(new.series_instance_uid.as_str())
    .bind(new.transfer_syntax_uid.as_str())
    .bind(&new.archive_key)
    .bind(&new.preview_key)
    .bind(&new.sha256.0[..])
    .bind(i64::try_from(new.size_bytes).unwrap_or(i64::MAX))
    .bind(new.device_uid.as_str())
    .execute(&mut *connection)
    .await?;
    Ok(sqlx::query_scalar("select id from result where sop_instance_uid = $1")
        .bind(new.sop_instance_uid.as_str())
        .fetch_one(connection)
        .await?)
}
