//! Stored objects: the index of the archive, filled in batches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result, digest_from_bytes, event, sender_habit, workup};
use crate::types::{AeTitle, LateImages, ObjectHeader, Sha256Digest, StoredObject, Uid};

/// How long a study waits for more, as its route says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which a study is complete.
    pub quiet: Duration,
    /// Age of the first object at which it is complete at the latest.
    pub maximum_wait: Duration,
    /// What becomes of objects that arrive when it is complete.
    pub late_images: LateImages,
    /// How long after that they still start a new revision; `None` means for ever.
    pub late_images_within: Option<Duration>,
}

/// What indexing one object did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Indexed {
    /// A new row.
    New {
        /// 1, or higher when the same SOP Instance UID was received before with other bytes.
        version: i32,
        /// Our own result came back: kept, never analysed.
        own_output: bool,
    },
    /// The same bytes were received before and are kept under another key; this file may be removed.
    Duplicate {
        /// The file that stays.
        kept_archive_key: String,
    },
    /// This very file is in the index already.
    Known,
}

/// A workup that has new objects and is due at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueWorkup {
    /// Which.
    pub workup_id: Uuid,
    /// When to look at it.
    pub due_at: OffsetDateTime,
}

/// Indexes a batch of durable objects in the caller's transaction: study, series and instance rows, versions,
/// loop guard, and the workup of each study, which goes (back) to `receiving`.
///
/// `own_device_uid` is this installation's Device UID; `patience` gives the timing for an object's origin and
/// modality. Returns one [`Indexed`] for each object, in order, and the workups to look at later.
pub async fn index(
    connection: &mut Connection,
    objects: &[StoredObject],
    own_device_uid: &Uid,
    patience: impl Fn(&StoredObject) -> Patience,
) -> Result<(Vec<Indexed>, Vec<DueWorkup>)> {
    upsert_studies(connection, objects).await?;
    let outcomes = insert_all(connection, objects, own_device_uid).await?;
    let mut touched: BTreeMap<(String, String), workup::Arrival> = BTreeMap::new();
    let mut own_results: BTreeMap<(String, String), OffsetDateTime> = BTreeMap::new();
    for (object, outcome) in objects.iter().zip(&outcomes) {
        let key = (object.header.study_instance_uid.to_string(), object.origin.called_ae_title.to_string());
        let received_at = object.origin.received_at;
        if matches!(outcome, Indexed::New { own_output: true, .. }) {
            let latest = own_results.entry(key).or_insert(received_at);
            *latest = received_at.max(*latest);
        } else if matches!(outcome, Indexed::New { own_output: false, .. }) {
            let arrival = touched.entry(key).or_insert_with(|| workup::Arrival {
                calling_ae_title: object.origin.calling_ae_title.to_string(),
                first_at: received_at,
                last_at: received_at,
                object_count: 0,
                patience: patience(object),
            });
            arrival.object_count += 1;
            arrival.first_at = arrival.first_at.min(received_at);
            arrival.last_at = arrival.last_at.max(received_at);
        }
    }
    let mut due = Vec::with_capacity(touched.len());
    let mut lessons = Vec::new();
    for ((study_instance_uid, local_ae_title), arrival) in &touched {
        let arrived = workup::objects_arrived(connection, study_instance_uid, local_ae_title, arrival).await?;
        due.extend(arrived.due);
        if let Some(gap_seconds) = arrived.late_gap_seconds {
            lessons.push((&arrival.calling_ae_title, gap_seconds));
        }
    }
    for ((study_instance_uid, local_ae_title), received_at) in &own_results {
        workup::other_receipt(connection, study_instance_uid, local_ae_title, *received_at).await?;
    }
    lessons.sort_by_key(|(calling_ae_title, _)| *calling_ae_title);
    for (calling_ae_title, gap_seconds) in lessons {
        sender_habit::learn(connection, calling_ae_title, gap_seconds).await?;
    }
    Ok((outcomes, due))
}

async fn upsert_studies(connection: &mut Connection, objects: &[StoredObject]) -> Result<()> {
    // Of each study and series the newest object of the batch speaks.
    let mut studies: BTreeMap<&Uid, &StoredObject> = BTreeMap::new();
    let mut series: BTreeMap<&Uid, &ObjectHeader> = BTreeMap::new();
    for object in objects {
        studies.insert(&object.header.study_instance_uid, object);
        series.insert(&object.header.series_instance_uid, &object.header);
    }
    for (study_instance_uid, object) in studies {
        let header = &object.header;
        sqlx::query(
            "insert into study (study_instance_uid, patient_id, patient_name, patient_birth_date, patient_sex,
                 accession_number, study_date, study_time, study_description, first_received_at, last_received_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10)
             on conflict (study_instance_uid) do update set
                 patient_id = excluded.patient_id, patient_name = excluded.patient_name,
                 patient_birth_date = excluded.patient_birth_date, patient_sex = excluded.patient_sex,
                 accession_number = excluded.accession_number, study_date = excluded.study_date,
                 study_time = excluded.study_time, study_description = excluded.study_description,
                 last_received_at = greatest(study.last_received_at, excluded.last_received_at)",
        )
        .bind(study_instance_uid.as_str())
        .bind(storable(header.patient_id.as_ref()))
        .bind(storable(header.patient_name.as_ref()))
        .bind(storable(header.patient_birth_date.as_ref()))
        .bind(storable(header.patient_sex.as_ref()))
        .bind(storable(header.accession_number.as_ref()))
        .bind(storable(header.study_date.as_ref()))
        .bind(storable(header.study_time.as_ref()))
        .bind(storable(header.study_description.as_ref()))
        .bind(object.origin.received_at)
        .execute(&mut *connection)
        .await?;
    }
    for (series_instance_uid, header) in series {
        sqlx::query(
            "insert into series (series_instance_uid, study_instance_uid, modality, series_number, series_description)
             values ($1, $2, $3, $4, $5) on conflict (series_instance_uid) do nothing",
        )
        .bind(series_instance_uid.as_str())
        .bind(header.study_instance_uid.as_str())
        .bind(storable(header.modality.as_ref()))
        .bind(header.series_number)
        .bind(storable(header.series_description.as_ref()))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// Postgres text cannot hold NUL.
fn storable(text: Option<&String>) -> Option<String> {
    text.map(|text| text.replace('\0', "\u{fffd}"))
}

/// Inserts objects in as few statements as it can: objects of one SOP Instance UID and local AE, whose versions are
/// counted, go one after the other, all others together.
async fn insert_all(
    connection: &mut Connection,
    objects: &[StoredObject],
    own_device_uid: &Uid,
) -> Result<Vec<Indexed>> {
    let mut outcomes: Vec<Option<Indexed>> = objects.iter().map(|_| None).collect();
    let mut left: Vec<usize> = (0..objects.len()).collect();
    while !left.is_empty() {
        let mut keys = BTreeSet::new();
        let (now, later): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|index| {
            objects
                .get(*index)
                .is_some_and(|object| keys.insert((&object.header.sop_instance_uid, &object.origin.called_ae_title)))
        });
        let together: Vec<&StoredObject> = now.iter().filter_map(|index| objects.get(*index)).collect();
        for (index, outcome) in now.iter().zip(insert_together(connection, &together, own_device_uid).await?) {
            if let Some(place) = outcomes.get_mut(*index) {
                *place = Some(outcome);
            }
        }
        left = later;
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Inserts objects of which no two have both SOP Instance UID and local AE in common.
async fn insert_together(
    connection: &mut Connection,
    objects: &[&StoredObject],
    own_device_uid: &Uid,
) -> Result<Vec<Indexed>> {
    fn column<T>(objects: &[&StoredObject], of: impl Fn(&StoredObject) -> T) -> Vec<T> {
        objects.iter().map(|object| of(object)).collect()
    }
    let sop_instance_uids = column(objects, |object| object.header.sop_instance_uid.to_string());
    let results: Vec<String> =
        sqlx::query_scalar("select sop_instance_uid from result where sop_instance_uid = any($1)")
            .bind(&sop_instance_uids)
            .fetch_all(&mut *connection)
            .await?;
    let is_own_output = |object: &StoredObject| {
        object.header.device_uid.as_ref() == Some(own_device_uid)
            || results.iter().any(|result| result == object.header.sop_instance_uid.as_str())
    };
    let ids = column(objects, |_| Uuid::now_v7());
    let inserted: Vec<(Uuid, i32)> = sqlx::query_as(
        "insert into instance (id, sop_instance_uid, local_ae_title, sha256, version, sop_class_uid,
             study_instance_uid, series_instance_uid, modality, transfer_syntax_uid, size_bytes, archive_key,
             association_id, calling_ae_title, peer_address, received_at, own_output)
         select n.id, n.sop_instance_uid, n.local_ae_title, n.sha256,
             1 + (select coalesce(max(i.version), 0) from instance i
                  where i.sop_instance_uid = n.sop_instance_uid and i.local_ae_title = n.local_ae_title),
             n.sop_class_uid, n.study_instance_uid, n.series_instance_uid, n.modality, n.transfer_syntax_uid,
             n.size_bytes, n.archive_key, n.association_id, n.calling_ae_title, n.peer_address, n.received_at,
             n.own_output
         from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::text[], $10::bigint[], $11::text[], $12::uuid[], $13::text[], $14::text[], $15::timestamptz[],
                     $16::boolean[])
              as n (id, sop_instance_uid, local_ae_title, sha256, sop_class_uid, study_instance_uid,
                    series_instance_uid, modality, transfer_syntax_uid, size_bytes, archive_key, association_id,
                    calling_ae_title, peer_address, received_at, own_output)
         on conflict do nothing returning id, version",
    )
    .bind(&ids)
    .bind(&sop_instance_uids)
    .bind(column(objects, |object| object.origin.called_ae_title.to_string()))
    .bind(column(objects, |object| object.sha256.0.to_vec()))
    .bind(column(objects, |object| object.header.sop_class_uid.to_string()))
    .bind(column(objects, |object| object.header.study_instance_uid.to_string()))
    .bind(column(objects, |object| object.header.series_instance_uid.to_string()))
    .bind(column(objects, |object| storable(object.header.modality.as_ref())))
    .bind(column(objects, |object| object.transfer_syntax_uid.to_string()))
    .bind(column(objects, |object| i64::try_from(object.size_bytes).unwrap_or(i64::MAX)))
    .bind(column(objects, |object| object.archive_key.clone()))
    .bind(column(objects, |object| object.origin.association_id))
    .bind(column(objects, |object| object.origin.calling_ae_title.to_string()))
    .bind(column(objects, |object| object.origin.peer_address.to_string()))
    .bind(column(objects, |object| object.origin.received_at))
    .bind(column(objects, is_own_output))
    .fetch_all(&mut *connection)
    .await?;
    let versions: HashMap<Uuid, i32> = inserted.into_iter().collect();
    let mut outcomes = Vec::with_capacity(objects.len());
    for (object, id) in objects.iter().zip(&ids) {
        outcomes.push(match versions.get(id) {
            None => received_again(connection, object).await?,
            Some(version) => {
                let own_output = is_own_output(object);
                tell_of_new(connection, object, *id, *version, own_output).await?;
                Indexed::New { version: *version, own_output }
            }
        });
    }
    Ok(outcomes)
}

/// What is worth a line on the timeline of a new instance.
async fn tell_of_new(
    connection: &mut Connection,
    object: &StoredObject,
    id: Uuid,
    version: i32,
    own_output: bool,
) -> Result<()> {
    let sop_instance_uid = &object.header.sop_instance_uid;
    if version > 1 {
        let words = format!(
            "SOP Instance UID {sop_instance_uid} was received before with other bytes: kept as version {version}, nothing \
             overwritten"
        );
        let data = json!({ "version": version });
        event::append(connection, event::Subject::Instance, id, "version", &words, data).await?;
    }
    if own_output {
        let words = format!("{sop_instance_uid} is one of our own results: kept, not analysed");
        event::append(connection, event::Subject::Instance, id, "own_output", &words, json!({})).await?;
    }
    Ok(())
}

/// The same bytes once more: a second file, or a file whose row is there already, or an object that retention had
/// removed and that is kept again.
async fn received_again(connection: &mut Connection, object: &StoredObject) -> Result<Indexed> {
    let header = &object.header;
    let origin = &object.origin;
    // Before the instance is locked, as retention does: its answer is Success by a file that must not go now.
    let study_instance_uid = header.study_instance_uid.as_str();
    workup::other_receipt(connection, study_instance_uid, origin.called_ae_title.as_str(), origin.received_at).await?;
    let (id, version, kept_archive_key, own_output, removed): (Uuid, i32, String, bool, bool) = sqlx::query_as(
        "select id, version, archive_key, own_output, removed_at is not null from instance
         where archive_key = $4 or (sop_instance_uid = $1 and local_ae_title = $2 and sha256 = $3)
         order by archive_key = $4 desc limit 1 for update",
    )
    .bind(header.sop_instance_uid.as_str())
    .bind(origin.called_ae_title.as_str())
    .bind(&object.sha256.0[..])
    .bind(&object.archive_key)
    .fetch_one(&mut *connection)
    .await?;
    if kept_archive_key == object.archive_key {
        return Ok(Indexed::Known);
    }
    if !removed {
        let words = format!(
            "{} from {} again with the same bytes: stored once",
            header.sop_instance_uid, origin.calling_ae_title
        );
        let data = json!({ "association_id": origin.association_id, "calling_ae_title": origin.calling_ae_title });
        event::append(connection, event::Subject::Instance, id, "duplicate", &words, data).await?;
        return Ok(Indexed::Duplicate { kept_archive_key });
    }
    sqlx::query(
        "update instance set archive_key = $2, association_id = $3, calling_ae_title = $4, peer_address = $5,
             received_at = $6, removed_at = null
         where id = $1 and removed_at is not null",
    )
    .bind(id)
    .bind(&object.archive_key)
    .bind(origin.association_id)
    .bind(origin.calling_ae_title.as_str())
    .bind(origin.peer_address.to_string())
    .bind(origin.received_at)
    .execute(&mut *connection)
    .await?;
    let words = format!("{} was removed by retention and is stored again", header.sop_instance_uid);
    event::append(connection, event::Subject::Instance, id, "stored_again", &words, json!({})).await?;
    Ok(Indexed::New { version, own_output })
}

/// The file of an object is gone and the same bytes came again: its row names the new file from now on. Does nothing when
/// the row names another one already.
pub async fn replace_lost_file(
    connection: &mut Connection,
    object: &StoredObject,
    lost_archive_key: &str,
) -> Result<()> {
    let id: Option<Uuid> = sqlx::query_scalar(
        // Where retention has just removed it, it is kept again: its sender was told Success since.
        "update instance set archive_key = $2, removed_at = null where archive_key = $1 and sha256 = $3 returning id",
    )
    .bind(lost_archive_key)
    .bind(&object.archive_key)
    .bind(&object.sha256.0[..])
    .fetch_optional(&mut *connection)
    .await?;
    let Some(id) = id else { return Ok(()) };
    let words = format!(
        "the file of {} was gone from the archive; it came again and is kept in its place",
        object.header.sop_instance_uid
    );
    event::append(connection, event::Subject::Instance, id, "file_replaced", &words, json!({})).await
}

/// Whether other bytes are known under a SOP Instance UID at a local AE.
pub async fn has_other_bytes(
    connection: &mut Connection,
    sop_instance_uid: &Uid,
    local_ae_title: &AeTitle,
    sha256: &Sha256Digest,
) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "select exists (select from instance where sop_instance_uid = $1 and local_ae_title = $2 and sha256 <> $3)
            and not exists (select from instance where sop_instance_uid = $1 and local_ae_title = $2 and sha256 = $3)",
    )
    .bind(sop_instance_uid.as_str())
    .bind(local_ae_title.as_str())
    .bind(&sha256.0[..])
    .fetch_one(connection)
    .await?)
}

/// Other bytes under a known SOP Instance UID that were refused.
#[derive(Debug, Clone)]
pub struct DuplicateRefusal {
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// Our AE title that it was sent to.
    pub local_ae_title: AeTitle,
    /// Who sent it.
    pub calling_ae_title: AeTitle,
    /// The association that carried it.
    pub association_id: Uuid,
    /// The C-STORE status of the answer.
    pub status: u16,
}

/// Notes a refusal with the object that is kept; does nothing when that is not indexed.
pub async fn duplicate_refused(connection: &mut Connection, refusal: &DuplicateRefusal) -> Result<()> {
    let kept: Option<Uuid> = sqlx::query_scalar(
        "select id from instance where sop_instance_uid = $1 and local_ae_title = $2 order by version desc limit 1",
    )
    .bind(refusal.sop_instance_uid.as_str())
    .bind(refusal.local_ae_title.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(id) = kept else { return Ok(()) };
    let words = format!(
        "{} from {} with other bytes: refused with {:#06X}, what was there is kept",
        refusal.sop_instance_uid, refusal.calling_ae_title, refusal.status
    );
    let data = json!({ "association_id": refusal.association_id, "calling_ae_title": refusal.calling_ae_title });
    event::append(connection, event::Subject::Instance, id, "duplicate_refused", &words, data).await
}

/// An indexed object, as later rooms need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// (0008,0016)
    pub sop_class_uid: String,
    /// (0020,000E)
    pub series_instance_uid: String,
    /// (0008,0060)
    pub modality: Option<String>,
    /// Where the archive keeps it.
    pub archive_key: String,
    /// Digest of the data set as received.
    pub sha256: Sha256Digest,
}

#[derive(FromRow)]
struct InstanceRow {
    sop_instance_uid: String,
    sop_class_uid: String,
    series_instance_uid: String,
    modality: Option<String>,
    archive_key: String,
    sha256: Vec<u8>,
}

/// The newest version of every object of a study as received by one local AE, own results left out, ordered by
/// SOP Instance UID.
pub async fn of_study(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
) -> Result<Vec<Instance>> {
    let rows: Vec<InstanceRow> = sqlx::query_as(
        "select distinct on (sop_instance_uid) sop_instance_uid, sop_class_uid, series_instance_uid, modality,
                archive_key, sha256
         from instance where study_instance_uid = $1 and local_ae_title = $2 and not own_output
           and removed_at is null
         order by sop_instance_uid, version desc",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Instance {
                sha256: digest_from_bytes(&row.sha256, "instance digest")?,
                sop_instance_uid: row.sop_instance_uid,
                sop_class_uid: row.sop_class_uid,
                series_instance_uid: row.series_instance_uid,
                modality: row.modality,
                archive_key: row.archive_key,
            })
        })
        .collect()
}

/// A radiograph that is exported as part of a data set.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Exported {
    /// (0008,0018)
    pub sop_instance_uid: String,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// (0010,0020); `None` when there is none.
    pub patient_id: Option<String>,
    /// Who sent it.
    pub calling_ae_title: String,
    /// Where its file is.
    pub archive_key: String,
}

/// The newest version of every radiograph (CR, DX) that is one of these SOP Instance UIDs, or of a study that is, own results
/// left out, ordered by SOP Instance UID.
pub async fn radiographs(connection: &mut Connection, uids: &[String]) -> Result<Vec<Exported>> {
    Ok(sqlx::query_as(
        "select distinct on (i.sop_instance_uid) i.sop_instance_uid, i.study_instance_uid,
                nullif(trim(s.patient_id), '') patient_id, i.calling_ae_title, i.archive_key
         from instance i join study s using (study_instance_uid)
         where (i.study_instance_uid = any($1) or i.sop_instance_uid = any($1)) and i.modality in ('CR', 'DX')
           and not i.own_output and i.removed_at is null
         order by i.sop_instance_uid, i.version desc",
    )
    .bind(uids)
    .fetch_all(connection)
    .await?)
}

/// When each of these objects was received.
pub async fn received_at(
    connection: &mut Connection,
    archive_keys: &[String],
) -> Result<HashMap<String, OffsetDateTime>> {
    let rows: Vec<(String, OffsetDateTime)> =
        sqlx::query_as("select archive_key, received_at from instance where archive_key = any($1)")
            .bind(archive_keys)
            .fetch_all(connection)
            .await?;
    Ok(rows.into_iter().collect())
}

/// Which of `archive_keys` are in the index.
pub async fn known_keys(connection: &mut Connection, archive_keys: &[String]) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("select archive_key from instance where archive_key = any($1)")
        .bind(archive_keys)
        .fetch_all(connection)
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::testing::{TestDatabase, header},
        types::ObjectOrigin,
    };

    const OWN_DEVICE: &str = "2.25.9";

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn object(sop_instance_uid: &str, study_instance_uid: &str, device_uid: Option<&str>) -> StoredObject {
        StoredObject {
            archive_key: format!("objects/{sop_instance_uid}.dcm"),
            sha256: Sha256Digest::of(sop_instance_uid.as_bytes()),
            size_bytes: 10,
            transfer_syntax_uid: uid("1.2.840.10008.1.2.1"),
            origin: ObjectOrigin {
                calling_ae_title: "DX_ROOM_1".parse().unwrap(),
                called_ae_title: "HILUM".parse().unwrap(),
                peer_address: "192.0.2.5".parse().unwrap(),
                association_id: Uuid::now_v7(),
                received_at: OffsetDateTime::now_utc(),
            },
            header: ObjectHeader {
                modality: Some("CR".to_owned()),
                device_uid: device_uid.map(uid),
                ..header(sop_instance_uid, study_instance_uid)
            },
        }
    }

    /// Architecture invariant 16, by our Device UID and by the SOP Instance UID of a result that lost it on its way.
    #[tokio::test]
    async fn our_own_output_is_kept_and_never_analysed() {
        let database = TestDatabase::start("own_output").await;
        let mut connection = database.db.acquire().await.unwrap();
        let patience = |_: &StoredObject| Patience {
            quiet: Duration::from_secs(1),
            maximum_wait: Duration::from_secs(9),
            late_images: LateImages::NewRevision,
            late_images_within: None,
        };
        let own_device = uid(OWN_DEVICE);
        let scan = object("1.2.1", "1.2.100", Some("2.25.8"));
        let (indexed, due) = index(&mut connection, &[scan], &own_device, patience).await.unwrap();
        assert_eq!(indexed, [Indexed::New { version: 1, own_output: false }]);
        let workup_id = due[0].workup_id;
        let state = async || -> (String, i32) {
            let row = sqlx::query_as("select state, revision from workup where id = $1").bind(workup_id);
            row.fetch_one(database.db.pool()).await.unwrap()
        };
        let run = crate::db::testing::new_run(workup_id);
        let run_id = crate::db::run::insert(&mut connection, &run).await.unwrap().unwrap();
        sqlx::query(
            "insert into result (id, run_id, kind, ordinal, sop_class_uid, sop_instance_uid, series_instance_uid,
                                 transfer_syntax_uid, archive_key, sha256, size_bytes, device_uid)
             values ($1, $2, 'sc', 0, '1.2.840.10008.5.1.4.1.1.7', '1.2.2', '1.2.100.2', '1.2.840.10008.1.2.1', 'r',
                     sha256('r'), 1, $3)",
        )
        .bind(Uuid::now_v7())
        .bind(run_id)
        .bind(OWN_DEVICE)
        .execute(database.db.pool())
        .await
        .unwrap();
        sqlx::query("update workup set state = 'answered'").execute(database.db.pool()).await.unwrap();
        let before = state().await;

        let returned = [
            object("1.2.2", "1.2.100", None),
            object("1.2.3", "1.2.100", Some(OWN_DEVICE)),
            // Nothing but our own output: not even a study that waits.
            object("1.2.4", "1.2.200", Some(OWN_DEVICE)),
        ];
        let (indexed, due) = index(&mut connection, &returned, &own_device, patience).await.unwrap();
        assert_eq!(indexed, vec![Indexed::New { version: 1, own_output: true }; 3], "it is kept");
        assert!(due.is_empty(), "and nothing is looked at because of it: {due:?}");
        assert_eq!(state().await, before, "the study it is of stays as it was");
        let workups: i64 =
            sqlx::query_scalar("select count(*) from workup").fetch_one(database.db.pool()).await.unwrap();
        assert_eq!(workups, 1);

        // Another image begins another revision, of which it is no part.
        let late = object("1.2.5", "1.2.100", None);
        let (_, due) = index(&mut connection, &[late], &own_device, patience).await.unwrap();
        assert_eq!(due.len(), 1);
        let of_run = of_study(&mut connection, "1.2.100", "HILUM").await.unwrap();
        let of_run: Vec<&str> = of_run.iter().map(|instance| instance.sop_instance_uid.as_str()).collect();
        assert_eq!(of_run, ["1.2.1", "1.2.5"]);
        drop(connection);
        database.stop().await;
    }
}
