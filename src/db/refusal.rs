//! Refused associations, presentation contexts and objects, and what peers offered.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::{FromRow, types::Json};
use time::{Duration, OffsetDateTime};

use super::{
    Connection, Db, DbError, Result,
    association::AssociationStart,
    event,
    site::{self, SiteDiff},
    storable,
};
use crate::types::{OfferedContext, PeerOffer, Refusal, SiteConfig};

/// Refusals that are alike and no further apart are one row.
const ALIKE_WITHIN: Duration = Duration::hours(1);
/// A row covers no more than this, so that what goes on for days is seen to.
const ROW_COVERS: Duration = Duration::hours(24);
/// Rows older than this are deleted.
const KEPT_FOR: Duration = Duration::days(90);
/// Rows of a node beyond this are deleted, the oldest first.
const KEPT_ROWS: i64 = 10_000;

/// Refusals that are alike, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedRefusal {
    /// The last of them.
    pub last: Refusal,
    /// How many.
    pub count: u64,
    /// When the first was.
    pub first_at: OffsetDateTime,
}

/// Adds to the row of what is alike, or makes a new one, and removes what is too old or too much.
pub async fn record(connection: &mut Connection, node: &str, refusals: &[CountedRefusal]) -> Result<()> {
    let mut is_longer = false;
    for refusal in refusals {
        is_longer |= record_one(connection, node, refusal).await?;
    }
    if is_longer {
        sqlx::query(
            "delete from refusal where node = $1 and (last_at < now() - make_interval(days => $2) or id in
                 (select id from refusal where node = $1 order by last_at desc, id desc offset $3))",
        )
        .bind(node)
        .bind(i32::try_from(KEPT_FOR.whole_days()).unwrap_or(i32::MAX))
        .bind(KEPT_ROWS)
        .execute(connection)
        .await?;
    }
    Ok(())
}

/// Returns whether a new row was made.
async fn record_one(connection: &mut Connection, node: &str, refusal: &CountedRefusal) -> Result<bool> {
    let CountedRefusal { last, count, first_at } = refusal;
    let key = &last.key;
    let done = sqlx::query(
        "with alike as (
             select id from refusal
             where node = $1 and kind = $2 and reason = $3 and peer_address = $4 and calling_ae_title = $5
                 and called_ae_title = $6 and sop_class_uid = $7 and harmless = $8
                 and (kind <> 'association' or expected = $13)
                 and last_at > $9 and first_at > $10 and allowed_at is null
             order by last_at desc limit 1),
         -- accepted before its refusal is written down here
         accepted as (
             select max(started_at) as at from association
             where $2 = 'association' and started_at > $12 and calling_ae_title = $5 and called_ae_title = $6
                 and peer_address = $4),
         known as (
             update refusal r set count = r.count + $11, last_at = greatest(r.last_at, $12), expected = $13,
                 received = $14, remedy = $15, example = coalesce($16, r.example),
                 mended_at = coalesce(accepted.at, r.mended_at)
             from alike, accepted where r.id = alike.id returning r.id)
         insert into refusal (node, kind, reason, peer_address, calling_ae_title, called_ae_title, sop_class_uid,
                              harmless, count, first_at, last_at, expected, received, remedy, example, mended_at)
         select $1, $2, $3, $4, $5, $6, $7, $8, $11, $17, $12, $13, $14, $15, $16, accepted.at
         from accepted where not exists (select 1 from known)",
    )
    .bind(node)
    .bind(key.kind.as_str())
    .bind(key.reason)
    .bind(key.peer_address.to_string())
    .bind(storable(&key.calling_ae_title))
    .bind(storable(&key.called_ae_title))
    .bind(storable(&key.sop_class_uid))
    .bind(last.harmless)
    .bind(*first_at - ALIKE_WITHIN)
    .bind(last.at - ROW_COVERS)
    .bind(i64::try_from(*count).unwrap_or(i64::MAX))
    .bind(last.at)
    .bind(storable(&last.expected))
    .bind(storable(&last.received))
    .bind(storable(&last.remedy))
    .bind(last.example.as_deref().map(storable))
    .bind(first_at)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// A row of what was refused.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct RefusalRow {
    /// What `hilum doctor allow` takes.
    pub id: i64,
    /// `association`, `context` or `object`.
    pub kind: String,
    /// Why, as counted.
    pub reason: String,
    /// From where.
    pub peer_address: String,
    /// As sent, escaped.
    pub calling_ae_title: String,
    /// As sent, escaped.
    pub called_ae_title: String,
    /// Of a context or object.
    pub sop_class_uid: String,
    /// What would have been accepted.
    pub expected: String,
    /// What came.
    pub received: String,
    /// What to do.
    pub remedy: String,
    /// Nothing was lost by it.
    pub harmless: bool,
    /// SOP Instance UID of the last object.
    pub example: Option<String>,
    /// How often.
    pub count: i64,
    /// The first time.
    pub first_at: OffsetDateTime,
    /// The last time.
    pub last_at: OffsetDateTime,
    /// Since then the same caller's association was accepted, or a person has allowed it.
    pub mended: bool,
}

/// Notes that a caller is accepted whose associations were refused before.
pub(super) async fn mend(connection: &mut Connection, accepted: &AssociationStart) -> Result<()> {
    sqlx::query(
        "update refusal set mended_at = $4
         where kind = 'association' and peer_address = $1 and calling_ae_title = $2 and called_ae_title = $3
             and last_at < $4 and (mended_at is null or mended_at <= last_at)",
    )
    .bind(accepted.peer_address.to_string())
    .bind(storable(&accepted.calling_ae_title))
    .bind(storable(&accepted.called_ae_title))
    .bind(accepted.started_at)
    .execute(connection)
    .await?;
    Ok(())
}

const COLUMNS: &str =
    "id, kind, reason, peer_address, calling_ae_title, called_ae_title, sop_class_uid, expected, received,
    remedy, harmless, example, count, first_at, last_at,
    allowed_at is not null or coalesce(mended_at > last_at, false) as mended";

/// Whose refusals are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whose {
    /// AE titles as sent; none means any.
    pub ae_titles: Vec<String>,
    /// Addresses; none means any.
    pub addresses: Vec<String>,
}

/// What was refused at or after `since`, the newest first. With titles or addresses in `whose`, what has one of them.
pub async fn list(
    connection: &mut Connection,
    since: OffsetDateTime,
    whose: &Whose,
    limit: i64,
) -> Result<Vec<RefusalRow>> {
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select {COLUMNS} from refusal
         where last_at >= $1
             and (cardinality($2::text[]) + cardinality($3::text[]) = 0
                  or calling_ae_title = any($2) or peer_address = any($3))
         order by last_at desc, id desc limit $4"
    )))
    .bind(since)
    .bind(&whose.ae_titles)
    .bind(&whose.addresses)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// One row; `None` when there is no such row.
pub async fn get(connection: &mut Connection, id: i64) -> Result<Option<RefusalRow>> {
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!("select {COLUMNS} from refusal where id = $1")))
        .bind(id)
        .fetch_optional(connection)
        .await?)
}

/// Changes the site so that what row `id` refused is let in, and says so on the site's timeline: all in one
/// transaction. `by` names who does it. Refused when somebody has allowed it before.
pub async fn allow(
    db: &Db,
    id: i64,
    by: &str,
    change: impl FnOnce(&mut SiteConfig) -> std::result::Result<(), String>,
) -> Result<SiteDiff> {
    let mut tx = db.begin().await?;
    let done = sqlx::query("update refusal set allowed_at = now() where id = $1 and allowed_at is null")
        .bind(id)
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 0 {
        return Err(DbError::SiteRefused(format!("refusal {id} has been allowed already, or is there no longer")));
    }
    let diff = site::change_in(&mut tx, false, change).await?;
    let words = format!("refusal {id} allowed by {}: {}", storable(by), diff.lines.join("; "));
    event::append(
        &mut tx,
        event::Subject::Site,
        "site",
        "allowed",
        &words,
        json!({ "refusal": id, "by": storable(by) }),
    )
    .await?;
    tx.commit().await?;
    Ok(diff)
}

/// Refusals with the same cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Its rows, the newest first; never empty.
    pub rows: Vec<RefusalRow>,
}

impl Cause {
    /// The newest row, whose words stand for all.
    #[must_use]
    pub fn newest(&self) -> Option<&RefusalRow> {
        self.rows.first()
    }

    /// How often, all rows together.
    #[must_use]
    pub fn count(&self) -> i64 {
        self.rows.iter().map(|row| row.count).sum()
    }

    /// The first time.
    #[must_use]
    pub fn first_at(&self) -> Option<OffsetDateTime> {
        self.rows.iter().map(|row| row.first_at).min()
    }

    /// Whether somebody has to act: not when nothing was lost, and not when it is mended.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.rows.iter().any(|row| !row.harmless && !row.mended)
    }
}

/// Groups rows by cause: the same reason, caller and titles. What a peer proposes or sends in several SOP classes is one
/// cause. Open ones come first, then the newest.
#[must_use]
pub fn causes(rows: Vec<RefusalRow>) -> Vec<Cause> {
    let mut causes = BTreeMap::<_, Vec<RefusalRow>>::new();
    for row in rows {
        let key = (
            row.kind.clone(),
            row.reason.clone(),
            row.peer_address.clone(),
            row.calling_ae_title.clone(),
            row.called_ae_title.clone(),
            row.harmless,
        );
        causes.entry(key).or_default().push(row);
    }
    let mut causes: Vec<Cause> = causes
        .into_values()
        .map(|mut rows| {
            rows.sort_by_key(|row| std::cmp::Reverse((row.last_at, row.id)));
            Cause { rows }
        })
        .collect();
    causes.sort_by_key(|cause| (!cause.is_open(), std::cmp::Reverse(cause.newest().map(|row| row.last_at))));
    causes
}

/// Keeps what admitted peers offered, one row for each calling AE title.
pub async fn keep_offers(connection: &mut Connection, offers: &[PeerOffer]) -> Result<()> {
    for offer in offers {
        sqlx::query(
            "insert into peer_offer (calling_ae_title, peer_address, called_ae_title, implementation_class_uid,
                                     implementation_version_name, max_pdu_length_bytes, contexts, at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)
             on conflict (calling_ae_title) do update set peer_address = excluded.peer_address,
                 called_ae_title = excluded.called_ae_title,
                 implementation_class_uid = excluded.implementation_class_uid,
                 implementation_version_name = excluded.implementation_version_name,
                 max_pdu_length_bytes = excluded.max_pdu_length_bytes, contexts = excluded.contexts, at = excluded.at
             where peer_offer.at <= excluded.at",
        )
        .bind(storable(&offer.calling_ae_title))
        .bind(offer.peer_address.to_string())
        .bind(storable(&offer.called_ae_title))
        .bind(offer.implementation_class_uid.as_deref().map(storable))
        .bind(offer.implementation_version_name.as_deref().map(storable))
        .bind(i64::from(offer.max_pdu_length_bytes))
        .bind(Json(&offer.contexts))
        .bind(offer.at)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// What a peer offered in its latest association request.
#[derive(Debug, Clone, FromRow)]
pub struct OfferRow {
    /// From where.
    pub peer_address: String,
    /// Our AE title that it called.
    pub called_ae_title: String,
    /// PS3.7 D.3.3.2, escaped.
    pub implementation_class_uid: Option<String>,
    /// PS3.7 D.3.3.2, escaped.
    pub implementation_version_name: Option<String>,
    /// Longest P-DATA-TF that it accepts, in bytes; 0 means unlimited.
    pub max_pdu_length_bytes: i64,
    /// What it proposed.
    pub contexts: Json<Vec<OfferedContext>>,
    /// When.
    pub at: OffsetDateTime,
}

/// What the peer with this AE title offered last; `None` when it has never called.
pub async fn offer_of(connection: &mut Connection, calling_ae_title: &str) -> Result<Option<OfferRow>> {
    Ok(sqlx::query_as(
        "select peer_address, called_ae_title, implementation_class_uid, implementation_version_name,
                max_pdu_length_bytes, contexts, at
         from peer_offer where calling_ae_title = $1",
    )
    .bind(calling_ae_title)
    .fetch_optional(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, reason: &str, address: &str, last_minute: i64) -> RefusalRow {
        let at = OffsetDateTime::UNIX_EPOCH + Duration::minutes(last_minute);
        RefusalRow {
            id,
            kind: "context".into(),
            reason: reason.into(),
            peer_address: address.into(),
            calling_ae_title: "CT01".into(),
            called_ae_title: "HILUM".into(),
            sop_class_uid: format!("1.2.{id}"),
            expected: "e".into(),
            received: "r".into(),
            remedy: "do".into(),
            harmless: false,
            example: None,
            count: id,
            first_at: at - Duration::minutes(5),
            last_at: at,
            mended: false,
        }
    }

    #[test]
    fn rows_with_one_cause_are_counted_together_and_open_ones_come_first() {
        let mended = RefusalRow { mended: true, ..row(7, "transfer_syntax", "10.0.0.1", 99) };
        let rows = vec![
            mended,
            row(2, "abstract_syntax", "10.0.0.1", 10),
            row(3, "abstract_syntax", "10.0.0.1", 20),
            row(4, "abstract_syntax", "10.0.0.2", 30),
        ];
        let causes = causes(rows);
        let summary: Vec<_> = causes.iter().map(|cause| (cause.rows[0].id, cause.count(), cause.is_open())).collect();
        assert_eq!(summary, [(4, 4, true), (3, 5, true), (7, 7, false)]);
        assert_eq!(causes[1].first_at(), Some(OffsetDateTime::UNIX_EPOCH + Duration::minutes(5)));
    }
}
