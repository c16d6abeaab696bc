//! What may be removed, and its removal: rows are marked and their files listed in one transaction; the caller removes
//! the files then.

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, Result, event};

/// A workup `w` for which nothing is owed any more: its files are read by nobody. A parked run, a result that a
/// destination has refused or, where it is to promise it, does not keep, and a Storage Commitment request that is not answered
/// yet keep everything; of a shadow, whose results nobody is owed, only one that works.
macro_rules! settled {
    () => {
        "w.state in ('answered', 'not_routed')
         and not exists (select from run r where r.workup_id = w.id
                         and (r.state = 'running'
                              or r.role <> 'shadow' and (r.state in ('queued', 'failed', 'parked')
                                 or r.state in ('succeeded', 'not_analysed') and r.rendered_at is null)))
         and not exists (select from run r join result x on x.run_id = r.id join delivery d on d.result_id = x.id
                         where r.workup_id = w.id
                         and (d.state in ('waiting', 'sending', 'dead')
                              or d.commitment in ('wanted', 'asked')
                              or d.commitment_required and d.commitment in ('failed', 'unanswered')))
         and not exists (select from commitment_request c
                         join commitment_instance ci on ci.commitment_request_id = c.id
                         join instance i on i.sop_instance_uid = ci.sop_instance_uid
                         where c.evaluated_at is null and i.study_instance_uid = w.study_instance_uid
                         and i.local_ae_title = w.local_ae_title)"
    };
}

/// What is kept by age and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Received objects.
    Objects,
    /// Rendered results with their pictures.
    Results,
}

impl Kind {
    /// As in events and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Objects => "objects",
            Self::Results => "results",
        }
    }
}

/// The files of one kind of a settled workup.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Candidate {
    /// The workup.
    pub workup_id: Uuid,
    /// The newest of them.
    pub newest_at: OffsetDateTime,
    /// How many there are.
    pub files: i64,
    /// How many bytes they take.
    pub bytes: i64,
}

/// Settled workups with files whose newest is from before `before`, oldest first.
pub async fn candidates(
    connection: &mut Connection,
    kind: Kind,
    before: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Candidate>> {
    let query = match kind {
        Kind::Objects => concat!(
            "select w.id as workup_id, greatest(w.last_object_at, w.last_other_receipt_at) as newest_at, i.files, i.bytes
             from workup w join lateral (
                 select count(*) as files, sum(i.size_bytes)::bigint as bytes from instance i
                 where i.study_instance_uid = w.study_instance_uid and i.local_ae_title = w.local_ae_title
                   and i.removed_at is null) i on i.files > 0
             where greatest(w.last_object_at, w.last_other_receipt_at) < $1 and ",
            settled!(),
            " order by greatest(w.last_object_at, w.last_other_receipt_at), w.id limit $2"
        ),
        Kind::Results => concat!(
            "select w.id as workup_id, x.newest_at, x.files, x.bytes
             from workup w join lateral (
                 select max(x.created_at) as newest_at, count(*) as files, sum(x.size_bytes)::bigint as bytes
                 from run r join result x on x.run_id = r.id
                 where r.workup_id = w.id and x.removed_at is null) x on x.files > 0
             where x.newest_at < $1 and ",
            settled!(),
            " order by x.newest_at, w.id limit $2"
        ),
    };
    Ok(sqlx::query_as(query).bind(before).bind(limit).fetch_all(connection).await?)
}

/// Bytes that the files of a kind take, previews left out.
pub async fn kept_bytes(connection: &mut Connection, kind: Kind) -> Result<i64> {
    let query = match kind {
        Kind::Objects => "select coalesce(sum(size_bytes), 0)::bigint from instance where removed_at is null",
        Kind::Results => "select coalesce(sum(size_bytes), 0)::bigint from result where removed_at is null",
    };
    Ok(sqlx::query_scalar(query).fetch_one(connection).await?)
}

/// Files whose rows are marked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Their keys, previews included.
    pub archive_keys: Vec<String>,
    /// Their bytes, previews left out.
    pub bytes: i64,
}

/// Marks the files of a candidate, unless it is not settled any more or something newer came: the workup is locked and
/// looked at in the same statement. What the networks made of received images goes with them. `why` is told on its
/// timeline.
pub async fn remove(
    connection: &mut Connection,
    kind: Kind,
    candidate: &Candidate,
    before: OffsetDateTime,
    why: &str,
) -> Result<Removed> {
    let query = match kind {
        Kind::Objects => concat!(
            "with w as (select w.id, w.study_instance_uid, w.local_ae_title from workup w
                        where w.id = $1 and greatest(w.last_object_at, w.last_other_receipt_at) < $2 and ",
            settled!(),
            " for update),
             gone as (update instance i set removed_at = now() from w
                      where i.study_instance_uid = w.study_instance_uid and i.local_ae_title = w.local_ae_title
                        and i.removed_at is null
                      returning i.archive_key, null::text as preview_key, i.size_bytes),
             forgotten as (delete from image_embedding e using w, run r
                           where r.workup_id = w.id and e.run_id = r.id and exists (select from gone)),
             given_up as (update run r set state = 'superseded', words = 'its images were removed', finished_at = now(),
                                           masks = null
                          from w where r.workup_id = w.id and r.role = 'shadow' and r.state in ('queued', 'failed')
                            and exists (select from gone)),
             unmasked as (update run r set masks = null
                          from w where r.workup_id = w.id and r.masks is not null
                            and not (r.role = 'shadow' and r.state in ('queued', 'failed'))
                            and exists (select from gone)),
             listed as (insert into file_to_remove (archive_key) select archive_key from gone on conflict do nothing)
             select archive_key, preview_key, size_bytes from gone"
        ),
        Kind::Results => concat!(
            "with w as (select w.id from workup w where w.id = $1 and ",
            settled!(),
            " for update),
             gone as (update result x set removed_at = now() from w, run r
                      where r.workup_id = w.id and x.run_id = r.id and x.removed_at is null and x.created_at < $2
                      returning x.archive_key, x.preview_key, x.size_bytes),
             listed as (insert into file_to_remove (archive_key)
                        select archive_key from gone union select preview_key from gone where preview_key is not null
                        on conflict do nothing)
             select archive_key, preview_key, size_bytes from gone"
        ),
    };
    let rows: Vec<(String, Option<String>, i64)> =
        sqlx::query_as(query).bind(candidate.workup_id).bind(before).fetch_all(&mut *connection).await?;
    if rows.is_empty() {
        return Ok(Removed::default());
    }
    let bytes = rows.iter().map(|(_, _, bytes)| bytes).sum();
    let words = format!("{} {} ({bytes} bytes) removed by retention: {why}", rows.len(), noun(kind));
    let event_kind = format!("{}_removed", kind.as_str());
    let data = json!({ "files": rows.len(), "bytes": bytes });
    event::append(connection, event::Subject::Workup, candidate.workup_id, &event_kind, &words, data).await?;
    let archive_keys = rows.into_iter().flat_map(|(key, preview, _)| [Some(key), preview]).flatten().collect();
    Ok(Removed { archive_keys, bytes })
}

const fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Objects => "received object(s)",
        Kind::Results => "result(s)",
    }
}

/// Files that an earlier process marked and may not have removed.
pub async fn files_to_remove(connection: &mut Connection, limit: i64) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar("select archive_key from file_to_remove order by since limit $1")
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// These are gone.
pub async fn files_removed(connection: &mut Connection, archive_keys: &[String]) -> Result<()> {
    sqlx::query("delete from file_to_remove where archive_key = any($1)")
        .bind(archive_keys)
        .execute(connection)
        .await?;
    Ok(())
}

/// Which of these result files no row names.
pub async fn unknown_results(connection: &mut Connection, archive_keys: &[String]) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "select key from unnest($1::text[]) key
         where not exists (select from result x where x.archive_key = key)
           and not exists (select from result x where x.preview_key = key)
           and not exists (select from file_to_remove f where f.archive_key = key)",
    )
    .bind(archive_keys)
    .fetch_all(connection)
    .await?)
}

/// What is kept by age alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum History {
    /// Steps of timelines; not those of studies that are under way, and not what administrators have changed.
    Events,
    /// Associations that have ended; not those that stored to studies that are under way.
    Associations,
    /// Peers' Storage Commitment requests that were reported, unless a study of theirs is under way. What was given up stays
    /// until a person has looked at it.
    RequestsOfPeers,
    /// Our own Storage Commitment requests that were answered, or asked in vain.
    OwnRequests,
    /// Attempts of deliveries that are closed, of studies that are not under way; not those that a person has to look at.
    Attempts,
}

impl History {
    /// In the plural, as in messages.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Events => "steps of timelines",
            Self::Associations => "associations",
            Self::RequestsOfPeers => "commitment requests of peers",
            Self::OwnRequests => "commitment requests of our own",
            Self::Attempts => "attempts of deliveries",
        }
    }
}

/// Deletes at most `limit` rows of one kind from before `before`, the oldest first. Returns how many.
pub async fn forget(connection: &mut Connection, kind: History, before: OffsetDateTime, limit: i64) -> Result<u64> {
    let query = match kind {
        History::Events => FORGET_EVENTS,
        History::Associations => FORGET_ASSOCIATIONS,
        History::RequestsOfPeers => FORGET_REQUESTS_OF_PEERS,
        History::OwnRequests => FORGET_OWN_REQUESTS,
        History::Attempts => FORGET_ATTEMPTS,
    };
    Ok(sqlx::query(query).bind(before).bind(limit).execute(connection).await?.rows_affected())
}

const FORGET_ATTEMPTS: &str = "
    delete from delivery_attempt where (delivery_id, number) in (
        select a.delivery_id, a.number from delivery_attempt a join delivery d on d.id = a.delivery_id
        join run r on r.id = d.run_id join workup w on w.id = r.workup_id
        where a.started_at < $1 and w.state in ('answered', 'not_routed') and d.state not in ('waiting', 'sending', 'dead')
          and (d.commitment is null or d.commitment not in ('wanted', 'asked', 'failed', 'unanswered'))
        order by a.started_at limit $2)";

const FORGET_EVENTS: &str = "
    with open as (select w.id from workup w where w.state not in ('answered', 'not_routed')),
         kept as (select 'workup' as subject_kind, id::text as subject_id from open
                  union all select 'run', r.id::text from run r join open on open.id = r.workup_id
                  union all select 'delivery', d.id::text from delivery d join result x on x.id = d.result_id
                            join run r on r.id = x.run_id join open on open.id = r.workup_id
                  union all select 'delivery', d.id::text from delivery d
                            where d.state in ('waiting', 'sending', 'dead')
                               or d.commitment in ('wanted', 'asked', 'failed', 'unanswered'))
    delete from event where id in (
        select e.id from event e
        where e.at < $1 and e.subject_kind not in ('site', 'node')
          and not exists (select from kept where kept.subject_kind = e.subject_kind
                          and kept.subject_id = e.subject_id)
        order by e.at limit $2)";

const FORGET_ASSOCIATIONS: &str = "
    delete from association where id in (
        select a.id from association a
        where a.started_at < $1 and a.ended_at < $1 and not exists (
            select from instance i join workup w on w.study_instance_uid = i.study_instance_uid
                   and w.local_ae_title = i.local_ae_title
            where i.association_id = a.id and w.state not in ('answered', 'not_routed'))
        order by a.started_at limit $2)";

const FORGET_REQUESTS_OF_PEERS: &str = "
    delete from commitment_request where id in (
        select c.id from commitment_request c
        where c.state = 'reported' and c.reported_at < $1 and not exists (
            select from commitment_instance ci
            join instance i on i.sop_instance_uid = ci.sop_instance_uid
            join workup w on w.study_instance_uid = i.study_instance_uid and w.local_ae_title = i.local_ae_title
            where ci.commitment_request_id = c.id and w.state not in ('answered', 'not_routed'))
        order by c.reported_at limit $2)";

const FORGET_OWN_REQUESTS: &str = "
    delete from commitment_asked where transaction_uid in (
        select transaction_uid from commitment_asked where coalesce(answered_at, asked_at) < $1
        order by coalesce(answered_at, asked_at) limit $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        db::{
            Db, case, run,
            testing::{self, TestDatabase},
        },
        types::RunRole,
    };

    /// An image of a study, with a SOP Instance UID that follows from it.
    async fn image_of(db: &Db, study: &str) {
        sqlx::query(
            "insert into instance (id, sop_instance_uid, local_ae_title, sha256, version, sop_class_uid,
                                   study_instance_uid, series_instance_uid, transfer_syntax_uid, size_bytes,
                                   archive_key, association_id, calling_ae_title, peer_address, received_at,
                                   own_output)
             values ($1, $2 || '.1', 'HILUM', sha256($2::bytea), 1, '1.2', $2, $2 || '.2', '1.2.840.10008.1.2.1', 9,
                     $2, $1, 'DX_ROOM_1', '192.0.2.1', now(), false)",
        )
        .bind(Uuid::now_v7())
        .bind(study)
        .execute(db.pool())
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn commitments_that_are_settled_go_by_age_and_open_ones_stay() {
        let database = TestDatabase::start("retention_commitments").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let now = OffsetDateTime::now_utc();
        let (old, young) = (now - time::Duration::days(40), now - time::Duration::days(2));
        // A study under way and one that is answered, each with an image of its name.
        for (study, state) in [("1.2.3", "analysing"), ("1.2.4", "answered")] {
            let workup_id = testing::workup(db, study).await;
            let set = sqlx::query("update workup set state = $2 where id = $1").bind(workup_id).bind(state);
            set.execute(db.pool()).await.unwrap();
            image_of(db, study).await;
        }
        for (transaction, state, reported_at, image) in [
            ("2.25.1", "reported", Some(old), "1.2.4.1"),
            ("2.25.2", "reported", Some(young), "1.2.4.1"),
            ("2.25.3", "reported", Some(old), "1.2.3.1"),
            ("2.25.4", "waiting", None, "1.2.4.1"),
            ("2.25.5", "dead", None, "1.2.4.1"),
        ] {
            let id = Uuid::now_v7();
            sqlx::query(
                "insert into commitment_request (id, transaction_uid, association_id, calling_ae_title, local_ae_title,
                     peer_address, instances_sha256, duplicate_transaction, state, created_at, reported_at)
                 values ($1, $2, $1, 'DX_ROOM_1', 'HILUM', '192.0.2.1', sha256('a'), false, $3, $4, $5)",
            )
            .bind(id)
            .bind(transaction)
            .bind(state)
            .bind(old)
            .bind(reported_at)
            .execute(db.pool())
            .await
            .unwrap();
            let list = sqlx::query("insert into commitment_instance values ($1, 1, '1.2', $2)").bind(id).bind(image);
            list.execute(db.pool()).await.unwrap();
        }
        for (transaction, state, answered_at, asked_at) in [
            ("2.25.11", "answered", Some(old), old),
            ("2.25.12", "answered", Some(young), old),
            ("2.25.13", "asked", None, old),
            ("2.25.14", "asked", None, young),
        ] {
            sqlx::query("insert into commitment_asked values ($1, 'PACS', 'HILUM', $2, $3, $4)")
                .bind(transaction)
                .bind(state)
                .bind(asked_at)
                .bind(answered_at)
                .execute(db.pool())
                .await
                .unwrap();
        }
        let before = now - time::Duration::days(30);
        let mut forgotten = 0;
        for kind in [History::RequestsOfPeers, History::OwnRequests] {
            loop {
                match forget(&mut connection, kind, before, 1).await.unwrap() {
                    0 => break,
                    some => forgotten += some,
                }
            }
        }
        assert_eq!(forgotten, 3);
        let rows: Vec<String> = sqlx::query_scalar(
            "select transaction_uid from commitment_request
             union all select transaction_uid from commitment_asked order by transaction_uid",
        )
        .fetch_all(db.pool())
        .await
        .unwrap();
        assert_eq!(rows, ["2.25.12", "2.25.14", "2.25.2", "2.25.3", "2.25.4", "2.25.5"]);
        let lists: i64 =
            sqlx::query_scalar("select count(*) from commitment_instance").fetch_one(db.pool()).await.unwrap();
        assert_eq!(lists, 4, "a list goes with its request");
        drop(connection);
        database.stop().await;
    }

    #[tokio::test]
    async fn what_networks_made_of_images_goes_with_them() {
        let database = TestDatabase::start("retention").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let mut workups = Vec::new();
        for study in ["1.2.3", "1.2.4"] {
            let workup_id = testing::workup(db, study).await;
            let run_id = run::insert(&mut connection, &testing::new_run(workup_id)).await.unwrap().unwrap();
            case::keep_own(&mut connection, run_id, &format!("{study}.1"), "all-members", &[1.0]).await.unwrap();
            image_of(db, study).await;
            workups.push(workup_id);
        }
        sqlx::query("update run set state = 'succeeded', rendered_at = now()").execute(db.pool()).await.unwrap();
        sqlx::query("update workup set state = 'answered'").execute(db.pool()).await.unwrap();
        let mut shadows = Vec::new();
        for workup_id in &workups {
            let new = run::NewRun { bundle: "next", role: RunRole::Shadow, ..testing::new_run(*workup_id) };
            shadows.push(run::insert(&mut connection, &new).await.unwrap().unwrap());
        }
        // One that works keeps its images, one that waits does not.
        let works = sqlx::query("update run set state = 'running' where id = $1").bind(shadows[1]);
        works.execute(db.pool()).await.unwrap();

        let before = OffsetDateTime::now_utc() + time::Duration::DAY;
        let candidates = candidates(&mut connection, Kind::Objects, before, 9).await.unwrap();
        let [candidate] = candidates.as_slice() else { panic!("{candidates:?}") };
        assert_eq!(candidate.workup_id, workups[0]);
        let removed = remove(&mut connection, Kind::Objects, candidate, before, "a test").await.unwrap();
        assert_eq!(removed.archive_keys, ["1.2.3"]);
        let kept: Vec<String> =
            sqlx::query_scalar("select sop_instance_uid from image_embedding").fetch_all(db.pool()).await.unwrap();
        assert_eq!(kept, ["1.2.4.1"]);
        let shadow: String = sqlx::query_scalar("select state from run where id = $1")
            .bind(shadows[0])
            .fetch_one(db.pool())
            .await
            .unwrap();
        assert_eq!(shadow, "superseded", "there is nothing left to compute it from");
        drop(connection);
        database.stop().await;
    }
}
