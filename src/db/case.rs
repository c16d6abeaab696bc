//! Similar cases: the reference library, and the embeddings of the images that were analysed here.

use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Db, DbError, Result, Tx, digest_from_bytes};
use crate::types::{Pseudonym, PseudonymKey, Sha256Digest};

/// Rows of vectors that are fetched at once: tens of megabytes at most.
const VECTORS_AT_ONCE: usize = 512;

/// A case for the reference library.
#[derive(Debug, Clone)]
pub struct NewCase<'a> {
    /// See [`case_id`].
    pub case_id: &'a str,
    /// Which networks made the vector.
    pub bundle_digest: Sha256Digest,
    /// What the vector is made of.
    pub method: &'a str,
    /// Digest of the imported file.
    pub file_sha256: Sha256Digest,
    /// Whose image it is.
    pub patient: Pseudonym,
    /// Of which study.
    pub study: Pseudonym,
    /// Not empty.
    pub label: &'a str,
    /// Not empty.
    pub cohort: &'a str,
    /// Such as `PA`; may be empty.
    pub view: &'a str,
    /// Licence or origin; may be empty.
    pub source: &'a str,
    /// Of length 1.
    pub embedding: &'a [f32],
}

/// A case without its vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Its number.
    pub case_id: String,
    /// Which networks made the vector.
    pub bundle_digest: Sha256Digest,
    /// What the vector is made of.
    pub method: String,
    /// Whose image it is.
    pub patient: Pseudonym,
    /// Of which study.
    pub study: Pseudonym,
    /// What the importer says of it.
    pub label: String,
    /// Where it is from.
    pub cohort: String,
    /// Such as `PA`.
    pub view: String,
    /// Licence or origin.
    pub source: String,
    /// Digest of the vector's bytes.
    pub embedding_sha256: Sha256Digest,
    /// When it came.
    pub imported_at: OffsetDateTime,
}

/// What removing, listing and drawing are about; `None` means all.
#[derive(Debug, Clone, Default)]
pub struct CaseFilter {
    /// These ids.
    pub case_ids: Option<Vec<String>>,
    /// This cohort.
    pub cohort: Option<String>,
    /// This label.
    pub label: Option<String>,
    /// This bundle.
    pub bundle_digest: Option<Sha256Digest>,
}

/// The number of a case: 64 bits of the SHA-256 over bundle digest, method and file, so that the same file is the same
/// case.
#[must_use]
pub fn case_id(bundle_digest: &Sha256Digest, method: &str, file_sha256: &Sha256Digest) -> String {
    let digest = Sha256Digest::of(format!("{bundle_digest}\u{1f}{method}\u{1f}{file_sha256}").as_bytes());
    format!("LIB-{}", digest.to_string().get(..16).unwrap_or_default().to_uppercase())
}

/// The key of the pseudonyms, made when there is none.
pub async fn pseudonym_key(connection: &mut Connection) -> Result<PseudonymKey> {
    // Twice 122 random bits of the operating system.
    let random: Vec<u8> = [Uuid::new_v4(), Uuid::new_v4()].iter().flat_map(|part| *part.as_bytes()).collect();
    sqlx::query("insert into pseudonym_key (key) values ($1) on conflict (singleton) do nothing")
        .bind(&Sha256Digest::of(&random).0[..])
        .execute(&mut *connection)
        .await?;
    let key: Vec<u8> = sqlx::query_scalar("select key from pseudonym_key").fetch_one(connection).await?;
    Ok(PseudonymKey::new(digest_from_bytes(&key, "pseudonym_key.key")?.0))
}

/// Adds a case; returns whether it is new. One that is there stays as it is.
pub async fn insert(connection: &mut Connection, new: &NewCase<'_>) -> Result<bool> {
    let bytes = bytes_of(new.embedding);
    let done = sqlx::query(
        "insert into similar_case (case_id, bundle_digest, method, file_sha256, patient, study, label, cohort, view,
             source, embedding, embedding_sha256)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         on conflict do nothing",
    )
    .bind(new.case_id)
    .bind(&new.bundle_digest.0[..])
    .bind(new.method)
    .bind(&new.file_sha256.0[..])
    .bind(&new.patient.0[..])
    .bind(&new.study.0[..])
    .bind(super::storable(new.label))
    .bind(super::storable(new.cohort))
    .bind(super::storable(new.view))
    .bind(super::storable(new.source))
    .bind(&bytes)
    .bind(&Sha256Digest::of(&bytes).0[..])
    .execute(&mut *connection)
    .await?;
    let is_new = done.rows_affected() == 1;
    if is_new {
        count_change(connection).await?;
    }
    Ok(is_new)
}

/// Removes the cases that the filter names; returns how many there were.
pub async fn remove(connection: &mut Connection, filter: &CaseFilter) -> Result<u64> {
    let removed = sqlx::query(
        "delete from similar_case
         where ($1::text[] is null or case_id = any($1)) and ($2::text is null or cohort = $2)
           and ($3::text is null or label = $3) and ($4::bytea is null or bundle_digest = $4)",
    )
    .bind(filter.case_ids.as_deref())
    .bind(filter.cohort.as_deref())
    .bind(filter.label.as_deref())
    .bind(filter.bundle_digest.map(|digest| digest.0.to_vec()))
    .execute(&mut *connection)
    .await?
    .rows_affected();
    if removed > 0 {
        count_change(connection).await?;
    }
    Ok(removed)
}

async fn count_change(connection: &mut Connection) -> Result<()> {
    sqlx::query("update similar_case_version set version = version + 1").execute(connection).await?;
    Ok(())
}

/// Number of the library's state; another after every change.
pub async fn version(connection: &mut Connection) -> Result<i64> {
    Ok(sqlx::query_scalar("select version from similar_case_version").fetch_one(connection).await?)
}

/// A transaction that sees one state of the library throughout.
pub async fn snapshot(db: &Db) -> Result<Tx> {
    let mut tx = db.begin().await?;
    sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *tx).await?;
    Ok(tx)
}

#[derive(FromRow)]
struct CaseRow {
    case_id: String,
    bundle_digest: Vec<u8>,
    method: String,
    patient: Vec<u8>,
    study: Vec<u8>,
    label: String,
    cohort: String,
    view: String,
    source: String,
    embedding_sha256: Vec<u8>,
    imported_at: OffsetDateTime,
}

impl TryFrom<CaseRow> for Case {
    type Error = DbError;

    fn try_from(row: CaseRow) -> Result<Self> {
        Ok(Self {
            case_id: row.case_id,
            bundle_digest: digest_from_bytes(&row.bundle_digest, "similar_case.bundle_digest")?,
            method: row.method,
            patient: Pseudonym(digest_from_bytes(&row.patient, "similar_case.patient")?.0),
            study: Pseudonym(digest_from_bytes(&row.study, "similar_case.study")?.0),
            label: row.label,
            cohort: row.cohort,
            view: row.view,
            source: row.source,
            embedding_sha256: digest_from_bytes(&row.embedding_sha256, "similar_case.embedding_sha256")?,
            imported_at: row.imported_at,
        })
    }
}

/// The cases that the filter names, in the order of their ids.
pub async fn list(connection: &mut Connection, filter: &CaseFilter) -> Result<Vec<Case>> {
    let rows: Vec<CaseRow> = sqlx::query_as(
        "select case_id, bundle_digest, method, patient, study, label, cohort, view, source, embedding_sha256,
                imported_at
         from similar_case
         where ($1::text[] is null or case_id = any($1)) and ($2::text is null or cohort = $2)
           and ($3::text is null or label = $3) and ($4::bytea is null or bundle_digest = $4)
         order by case_id collate \"C\"",
    )
    .bind(filter.case_ids.as_deref())
    .bind(filter.cohort.as_deref())
    .bind(filter.label.as_deref())
    .bind(filter.bundle_digest.map(|digest| digest.0.to_vec()))
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Case::try_from).collect()
}

/// Hands the vector of each of these cases to `take`, in no certain order, some at a time in memory.
pub async fn each_embedding(
    connection: &mut Connection,
    case_ids: &[String],
    mut take: impl FnMut(String, Vec<f32>),
) -> Result<()> {
    for some in case_ids.chunks(VECTORS_AT_ONCE) {
        let rows: Vec<(String, Vec<u8>)> =
            sqlx::query_as("select case_id, embedding from similar_case where case_id = any($1)")
                .bind(some)
                .fetch_all(&mut *connection)
                .await?;
        for (case_id, bytes) in rows {
            take(case_id, floats_of(&bytes));
        }
    }
    Ok(())
}

/// Length in numbers of the longest vector of a bundle and method, and how many there are.
pub async fn extent(connection: &mut Connection, bundle: &Sha256Digest, method: &str) -> Result<(u64, u64)> {
    let (count, longest): (i64, i64) = sqlx::query_as(
        "select count(*), coalesce(max(length(embedding)), 0)::bigint / 4 from similar_case
         where bundle_digest = $1 and method = $2",
    )
    .bind(&bundle.0[..])
    .bind(method)
    .fetch_one(connection)
    .await?;
    Ok((count.unsigned_abs(), longest.unsigned_abs()))
}

/// Keeps the embedding of an image that a run has analysed. The caller's transaction finishes the run.
pub async fn keep_own(
    connection: &mut Connection,
    run_id: Uuid,
    sop_instance_uid: &str,
    method: &str,
    embedding: &[f32],
) -> Result<()> {
    sqlx::query(
        "insert into image_embedding (run_id, sop_instance_uid, method, embedding) values ($1, $2, $3, $4)
         on conflict (run_id, sop_instance_uid) do update set method = excluded.method, embedding = excluded.embedding",
    )
    .bind(run_id)
    .bind(sop_instance_uid)
    .bind(method)
    .bind(bytes_of(embedding))
    .execute(connection)
    .await?;
    Ok(())
}

/// (0010,0020) of a study; `None` when it has none.
pub async fn patient_id(connection: &mut Connection, study_instance_uid: &str) -> Result<Option<String>> {
    let patient_id: Option<Option<String>> =
        sqlx::query_scalar("select nullif(trim(patient_id), '') from study where study_instance_uid = $1")
            .bind(study_instance_uid)
            .fetch_optional(connection)
            .await?;
    Ok(patient_id.flatten())
}

/// An analysed image of an earlier study.
#[derive(Debug, Clone)]
pub struct OwnImage {
    /// (0020,000D)
    pub study_instance_uid: String,
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// (0008,0020)
    pub study_date: Option<String>,
    /// Of length 1.
    pub embedding: Vec<f32>,
}

/// The images of the patient's other studies, not later than `study_instance_uid`, that the same bundle and method have
/// seen: the newest `limit`, newest first. Nothing when the study has no Patient ID.
pub async fn priors(
    connection: &mut Connection,
    study_instance_uid: &str,
    bundle: &Sha256Digest,
    method: &str,
    limit: i64,
) -> Result<Vec<OwnImage>> {
    let rows: Vec<(String, String, Option<String>, Vec<u8>)> = sqlx::query_as(
        "select study_instance_uid, sop_instance_uid, study_date, embedding from (
             select distinct on (s.study_instance_uid, e.sop_instance_uid)
                    s.study_instance_uid, e.sop_instance_uid, nullif(s.study_date, '') study_date, s.study_time,
                    e.embedding
             from study now_seen
             join study s on s.patient_id = now_seen.patient_id and s.study_instance_uid <> now_seen.study_instance_uid
             join workup w on w.study_instance_uid = s.study_instance_uid
             join run r on r.workup_id = w.id and r.bundle_digest = $2 and r.state = 'succeeded'
             join image_embedding e on e.run_id = r.id and e.method = $3
             where now_seen.study_instance_uid = $1 and trim(now_seen.patient_id) <> ''
               and (coalesce(s.study_date, '') = '' or coalesce(now_seen.study_date, '') = ''
                    or (s.study_date, coalesce(s.study_time, ''))
                       <= (now_seen.study_date, coalesce(now_seen.study_time, '')))
             order by s.study_instance_uid, e.sop_instance_uid, r.finished_at desc
         ) found
         order by study_date desc nulls last, study_time desc nulls last, study_instance_uid, sop_instance_uid
         limit $4",
    )
    .bind(study_instance_uid)
    .bind(&bundle.0[..])
    .bind(method)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(study_instance_uid, sop_instance_uid, study_date, bytes)| OwnImage {
            study_instance_uid,
            sop_instance_uid,
            study_date,
            embedding: floats_of(&bytes),
        })
        .collect())
}

fn bytes_of(vector: &[f32]) -> Vec<u8> {
    vector.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).filter_map(|four| Some(f32::from_le_bytes(four.try_into().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_survive_as_bytes() {
        let vector = [0.0, -1.5, f32::MIN_POSITIVE, 0.1];
        assert_eq!(floats_of(&bytes_of(&vector)), vector);
    }

    #[test]
    fn the_same_file_is_the_same_case_and_nothing_else_is() {
        let (one, other) = (Sha256Digest::of(b"1"), Sha256Digest::of(b"2"));
        let id = case_id(&one, "all-members", &other);
        assert_eq!(id, case_id(&one, "all-members", &other));
        assert_ne!(id, case_id(&other, "all-members", &one));
        assert_ne!(id, case_id(&one, "member:vgg16", &other));
        assert_eq!((id.len(), id.starts_with("LIB-")), (20, true));
    }
}
