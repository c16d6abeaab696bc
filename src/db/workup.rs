//! Workups: one study for one local AE, for which we owe an answer.
//!
//! ```text
//! receiving ─► complete ─► analysing ─► answered        (late image: back to receiving, revision + 1)
//!                  └────► not_routed                    parked when its run is parked
//! ```

use serde_json::json;
use sqlx::FromRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Connection, Result, event,
    instance::{DueWorkup, Patience},
    run,
};

/// Objects that came for a workup in one batch.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Who sent the first of them.
    pub calling_ae_title: String,
    /// Receipt of the first.
    pub first_at: OffsetDateTime,
    /// Receipt of the last.
    pub last_at: OffsetDateTime,
    /// How long to wait for more.
    pub patience: Patience,
}

/// Notes that objects came: makes the workup, or keeps it `receiving`, or takes it back to `receiving` with the
/// next revision, which supersedes its runs.
pub async fn objects_arrived(
    connection: &mut Connection,
    study_instance_uid: &str,
    local_ae_title: &str,
    arrival: &Arrival,
) -> Result<DueWorkup> {
    let due_at = |first_at: OffsetDateTime| {
        (arrival.last_at + arrival.patience.quiet).min(first_at + arrival.patience.maximum_wait)
    };
    let existing: Option<(Uuid, String, i32, OffsetDateTime)> = sqlx::query_as(
        "select id, state, revision, first_object_at from workup
         where study_instance_uid = $1 and local_ae_title = $2 for update",
    )
    .bind(study_instance_uid)
    .bind(local_ae_title)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((workup_id, state, revision, first_object_at)) = existing else {
        let workup_id = Uuid::now_v7();
        let due_at = due_at(arrival.first_at);
        sqlx::query(
            "insert into workup (id, study_instance_uid, local_ae_title, state, state_words, revision,
                 calling_ae_title, first_object_at, last_object_at, due_at)
             values ($1, $2, $3, 'receiving', 'objects are arriving', 1, $4, $5, $6, $7)",
        )
        .bind(workup_id)
        .bind(study_instance_uid)
        .bind(local_ae_title)
        .bind(&arrival.calling_ae_title)
        .bind(arrival.first_at)
        .bind(arrival.last_at)
        .bind(due_at)
        .execute(&mut *connection)
        .await?;
        event::append(
            connection,
            event::Subject::Workup,
            workup_id,
            "receiving",
            &format!("first object from {}", arrival.calling_ae_title),
            json!({ "revision": 1 }),
        )
        .await?;
        return Ok(DueWorkup { workup_id, due_at });
    };
    if state == "receiving" {
        let due_at = due_at(first_object_at);
        sqlx::query(
            "update workup set last_object_at = greatest(last_object_at, $2), due_at = $3, updated_at = now()
             where id = $1 and state = 'receiving'",
        )
        .bind(workup_id)
        .bind(arrival.last_at)
        .bind(due_at)
        .execute(connection)
        .await?;
        return Ok(DueWorkup { workup_id, due_at });
    }
    let due_at = due_at(arrival.first_at);
    let revision = revision + 1;
    sqlx::query(
        "update workup set state = 'receiving', state_words = 'objects arrived late', revision = $2,
             calling_ae_title = $3, first_object_at = $4, last_object_at = $5, due_at = $6, updated_at = now()
         where id = $1 and state = $7",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(&arrival.calling_ae_title)
    .bind(arrival.first_at)
    .bind(arrival.last_at)
    .bind(due_at)
    .bind(&state)
    .execute(&mut *connection)
    .await?;
    let words = format!("late objects from {} start revision {revision}", arrival.calling_ae_title);
    event::append(
        connection,
        event::Subject::Workup,
        workup_id,
        "late_objects",
        &words,
        json!({ "revision": revision, "from_state": state }),
    )
    .await?;
    run::supersede_earlier(connection, workup_id, revision).await?;
    Ok(DueWorkup { workup_id, due_at })
}

/// What the decision "is this study complete?" is made from.
#[derive(Debug, Clone, FromRow)]
pub struct Facts {
    /// The workup.
    pub id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: String,
    /// Our AE title that it was sent to.
    pub local_ae_title: String,
    /// The sender of the newest revision's first object.
    pub calling_ae_title: String,
    /// Its state.
    pub state: String,
    /// Its revision.
    pub revision: i32,
    /// Receipt of the revision's first object.
    pub first_object_at: OffsetDateTime,
    /// Receipt of the newest object.
    pub last_object_at: OffsetDateTime,
    /// Distinct modalities of the study's objects, own results left out.
    pub modalities: Vec<String>,
    /// How many objects there are, own results left out.
    pub object_count: i64,
    /// Open associations that have stored to the study.
    pub open_association_count: i64,
    /// The database's clock.
    pub now: OffsetDateTime,
}

/// Reads and locks a workup with what the completeness decision needs; `None` when it does not exist.
pub async fn lock_facts(connection: &mut Connection, workup_id: Uuid) -> Result<Option<Facts>> {
    let locked: Option<Uuid> = sqlx::query_scalar("select id from workup where id = $1 for update")
        .bind(workup_id)
        .fetch_optional(&mut *connection)
        .await?;
    if locked.is_none() {
        return Ok(None);
    }
    Ok(sqlx::query_as(
        "select w.id, w.study_instance_uid, w.local_ae_title, w.calling_ae_title, w.state, w.revision,
                w.first_object_at, w.last_object_at, now() as now,
                coalesce(array_agg(distinct i.modality) filter (where i.modality is not null), '{}') as modalities,
                count(distinct i.sop_instance_uid) as object_count,
                count(distinct a.id) filter (where a.ended_at is null) as open_association_count
         from workup w
         left join instance i on i.study_instance_uid = w.study_instance_uid
                             and i.local_ae_title = w.local_ae_title and not i.own_output
         left join association a on a.id = i.association_id
         where w.id = $1 group by w.id",
    )
    .bind(workup_id)
    .fetch_optional(connection)
    .await?)
}

/// Puts the next look at a workup off.
pub async fn postpone(connection: &mut Connection, workup_id: Uuid, due_at: OffsetDateTime) -> Result<()> {
    sqlx::query("update workup set due_at = $2, updated_at = now() where id = $1 and state = 'receiving'")
        .bind(workup_id)
        .bind(due_at)
        .execute(connection)
        .await?;
    Ok(())
}

/// `receiving` → `complete` with the reason. Returns whether it happened.
pub async fn complete(connection: &mut Connection, workup_id: Uuid, revision: i32, reason: &str) -> Result<bool> {
    let done = sqlx::query(
        "update workup set state = 'complete', state_words = $3, completeness_reason = $3, updated_at = now()
         where id = $1 and state = 'receiving' and revision = $2",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(reason)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        event::append(
            connection,
            event::Subject::Workup,
            workup_id,
            "complete",
            reason,
            json!({ "revision": revision }),
        )
        .await?;
    }
    Ok(done)
}

/// One fenced change of a workup's state, with its event. Returns whether it happened.
async fn change_state(
    connection: &mut Connection,
    workup_id: Uuid,
    revision: i32,
    from: &[&str],
    to: &str,
    words: &str,
) -> Result<bool> {
    let done = sqlx::query(
        "update workup set state = $3, state_words = $4, updated_at = now()
         where id = $1 and revision = $2 and state = any($5)",
    )
    .bind(workup_id)
    .bind(revision)
    .bind(to)
    .bind(words)
    .bind(from)
    .execute(&mut *connection)
    .await?
    .rows_affected()
        == 1;
    if done {
        event::append(connection, event::Subject::Workup, workup_id, to, words, json!({ "revision": revision }))
            .await?;
    }
    Ok(done)
}

/// `complete` → `not_routed`: kept, shown, never silent.
pub async fn not_routed(connection: &mut Connection, workup_id: Uuid, revision: i32, words: &str) -> Result<bool> {
    change_state(connection, workup_id, revision, &["complete"], "not_routed", words).await
}

/// `complete` → `analysing` by a route.
pub async fn analysing(connection: &mut Connection, workup_id: Uuid, revision: i32, route_name: &str) -> Result<bool> {
    sqlx::query("update workup set route_name = $2 where id = $1")
        .bind(workup_id)
        .bind(route_name)
        .execute(&mut *connection)
        .await?;
    let words = format!("route `{route_name}`");
    change_state(connection, workup_id, revision, &["complete"], "analysing", &words).await
}

/// `analysing` → `parked`: a person has to look.
pub async fn park(connection: &mut Connection, workup_id: Uuid, revision: i32, words: &str) -> Result<bool> {
    change_state(connection, workup_id, revision, &["analysing"], "parked", words).await
}

/// `parked` → `analysing`: a person restarts its run.
pub async fn unpark(connection: &mut Connection, workup_id: Uuid, words: &str) -> Result<bool> {
    let revision: i32 = sqlx::query_scalar("select revision from workup where id = $1")
        .bind(workup_id)
        .fetch_one(&mut *connection)
        .await?;
    change_state(connection, workup_id, revision, &["parked"], "analysing", words).await
}

/// `analysing` → `answered` when every live run of the revision is terminal and rendered, and every delivery closed.
pub async fn answer_if_done(connection: &mut Connection, workup_id: Uuid) -> Result<bool> {
    // Locked by a statement of its own: the next one then sees what others committed while this one waited. In one
    // statement, the last two deliveries of a study that close at once would each see the other one open.
    sqlx::query("select from workup where id = $1 for update").bind(workup_id).execute(&mut *connection).await?;
    let open: Option<(i32, bool)> = sqlx::query_as(
        "select w.revision,
                exists (select from run r where r.workup_id = w.id and r.revision = w.revision
                        and (r.state not in ('succeeded', 'not_analysed') or r.rendered_at is null))
             or exists (select from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
                        where r.workup_id = w.id and r.revision = w.revision
                        and d.state in ('waiting', 'sending'))
         from workup w where w.id = $1 and w.state = 'analysing'",
    )
    .bind(workup_id)
    .fetch_optional(&mut *connection)
    .await?;
    match open {
        Some((revision, false)) => {
            change_state(
                connection,
                workup_id,
                revision,
                &["analysing"],
                "answered",
                "every result is delivered or closed",
            )
            .await
        }
        _ => Ok(false),
    }
}

/// Workups that are due and still `receiving`, for `reconcile`.
pub async fn due(connection: &mut Connection) -> Result<Vec<Uuid>> {
    Ok(sqlx::query_scalar(
        "select id from workup where state = 'receiving' and due_at <= now() order by due_at limit 1000",
    )
    .fetch_all(connection)
    .await?)
}

/// Closes workups whose last delivery was closed by a process that died before saying so.
pub async fn answer_all_done(connection: &mut Connection) -> Result<u64> {
    // Only those that look done: locking every study that waits for a PACS would hold up the index. In the order of
    // the index's own locks, so that the two never wait for each other.
    let candidates: Vec<Uuid> = sqlx::query_scalar(
        "select w.id from workup w
         where w.state = 'analysing' and w.updated_at < now() - interval '1 minute'
           and not exists (select from run r where r.workup_id = w.id and r.revision = w.revision
                           and (r.state not in ('succeeded', 'not_analysed') or r.rendered_at is null))
           and not exists (select from delivery d join result x on x.id = d.result_id join run r on r.id = x.run_id
                           where r.workup_id = w.id and r.revision = w.revision
                           and d.state in ('waiting', 'sending'))
         order by w.study_instance_uid, w.local_ae_title limit 1000",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut answered = 0;
    for workup_id in candidates {
        answered += u64::from(answer_if_done(connection, workup_id).await?);
    }
    Ok(answered)
}
