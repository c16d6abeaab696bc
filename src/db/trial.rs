//! Bundles that are tried beside a route's own: what both said, and which took over when.

use serde_json::{Value, json};
use sqlx::{FromRow, types::Json};
use time::OffsetDateTime;

use super::{Connection, DbError, Result, digest_from_bytes, event, site};
use crate::types::{
    BundleIdentity, Code, Compared, ComparedBundle, ComparedClass, Judged, Route, Sha256Digest, TrialComparison,
    TrialPair, TrialSide,
};

/// Runs of a tried bundle that are parked one after the other until it is tried no more.
const PARKED_IN_A_ROW: i64 = 3;

/// Whether a bundle is not tried on a route for now: those of its runs there that ended last are all parked. It is tried
/// again when one of them was restarted and has ended well.
pub async fn is_suspended(connection: &mut Connection, route_name: &str, bundle: &str) -> Result<bool> {
    Ok(sqlx::query_scalar(
        "select count(*) filter (where state = 'parked') = $3
         from (select r.state from run r join workup w on w.id = r.workup_id
               where r.bundle = $2 and r.role <> 'live' and w.route_name = $1
                 and r.state in ('succeeded', 'not_analysed', 'parked')
               order by r.finished_at desc limit $3) newest",
    )
    .bind(route_name)
    .bind(bundle)
    .bind(PARKED_IN_A_ROW)
    .fetch_one(connection)
    .await?)
}

/// Study, then of each side why it was not analysed, its seconds, and what it said.
type PairRow = (
    String,
    Option<String>,
    Option<f64>,
    Option<Json<Vec<Judged>>>,
    Option<String>,
    Option<f64>,
    Option<Json<Vec<Judged>>>,
);

fn pair_of(row: PairRow) -> TrialPair {
    let side = |reason: Option<String>, seconds: Option<f64>, judged: Option<Json<Vec<Judged>>>| TrialSide {
        reason,
        seconds: seconds.unwrap_or_default(),
        judged: judged.map(|judged| judged.0).unwrap_or_default(),
    };
    let (study_instance_uid, own_reason, own_seconds, own_judged, reason, seconds, judged) = row;
    TrialPair {
        study_instance_uid,
        own: side(own_reason, own_seconds, own_judged),
        tried: side(reason, seconds, judged),
    }
}

/// SQL for why a run was not analysed: its own reason, or that of a scan that was measured and that its networks did not
/// judge. Only of runs without a judgement is the outcome read, with all that it holds.
macro_rules! why_not_analysed {
    ($run:literal) => {
        concat!(
            "case when ",
            $run,
            ".state = 'not_analysed' then ",
            $run,
            ".outcome ->> 'reason'
                  when coalesce(",
            $run,
            ".judged, 'null') = 'null' then ",
            $run,
            ".outcome -> 'not_judged' ->> 'reason' end"
        )
    };
}

/// Compares what `own` and `tried` said of the newest `limit` studies of a route that both have finished, each study in its
/// newest revision and each bundle in the version of its newest run there.
pub async fn compare(
    connection: &mut Connection,
    route_name: &str,
    own: &str,
    tried: &str,
    limit: i64,
) -> Result<Compared> {
    let newest_own = newest(connection, route_name, own).await?;
    let newest_tried = newest(connection, route_name, tried).await?;
    let rows: Vec<PairRow> = match (&newest_own, &newest_tried) {
        (Some(own), Some(tried)) => {
            sqlx::query_as(concat!(
                "select w.study_instance_uid, ",
                why_not_analysed!("o"),
                ",
                        extract(epoch from o.finished_at - o.started_at)::float8,
                        nullif(coalesce(o.judged, run_judged(o.outcome)), 'null'), ",
                why_not_analysed!("t"),
                ",
                        extract(epoch from t.finished_at - t.started_at)::float8,
                        nullif(coalesce(t.judged, run_judged(t.outcome)), 'null')
                 from run t join workup w on w.id = t.workup_id
                 join run o on o.workup_id = t.workup_id and o.revision = t.revision and o.bundle = $2
                      and o.bundle_digest = $4 and o.state in ('succeeded', 'not_analysed')
                 where w.route_name = $1 and t.bundle = $3 and t.bundle_digest = $5
                   and t.state in ('succeeded', 'not_analysed')
                   and not exists (
                       select from run later join run beside on beside.workup_id = later.workup_id
                            and beside.revision = later.revision and beside.bundle = $2
                            and beside.bundle_digest = $4 and beside.state in ('succeeded', 'not_analysed')
                       where later.workup_id = t.workup_id and later.revision > t.revision and later.bundle = $3
                         and later.bundle_digest = $5 and later.state in ('succeeded', 'not_analysed'))
                 order by t.queued_at desc limit $6",
            ))
            .bind(route_name)
            .bind(&own.name)
            .bind(&tried.name)
            .bind(&own.digest.0[..])
            .bind(&tried.digest.0[..])
            .bind(limit)
            .fetch_all(&mut *connection)
            .await?
        }
        _ => Vec::new(),
    };
    let unfinished: Vec<(String, i64)> = sqlx::query_as(
        "select r.state, count(*) from run r join workup w on w.id = r.workup_id
         where w.route_name = $1 and r.bundle = $2 and r.state in ('queued', 'running', 'failed', 'parked')
         group by r.state order by r.state",
    )
    .bind(route_name)
    .bind(tried)
    .fetch_all(connection)
    .await?;
    let class = newest_own.as_ref().zip(newest_tried.as_ref()).and_then(|(own, tried)| common_class(own, tried));
    let pairs: Vec<TrialPair> = rows.into_iter().map(pair_of).collect();
    let of = |name: &str, identity: BundleIdentity| ComparedBundle {
        name: name.to_owned(),
        version: identity.version,
        status: identity.status,
        digest: identity.digest,
    };
    Ok(Compared {
        route: route_name.to_owned(),
        comparison: TrialComparison::of(&pairs, class.as_ref().map(|(_, places)| *places)),
        class_label: class.map(|(label, _)| label),
        own: newest_own.map(|newest| of(own, newest.identity)),
        tried: newest_tried.map(|newest| of(tried, newest.identity)),
        unfinished: unfinished.into_iter().collect(),
    })
}

/// A bundle as its newest finished run on a route knew it.
struct Newest {
    name: String,
    digest: Sha256Digest,
    identity: BundleIdentity,
}

async fn newest(connection: &mut Connection, route_name: &str, bundle: &str) -> Result<Option<Newest>> {
    let identity: Option<Json<BundleIdentity>> = sqlx::query_scalar(
        "select r.bundle_identity from run r join workup w on w.id = r.workup_id
         where r.bundle = $2 and w.route_name = $1 and r.state in ('succeeded', 'not_analysed')
         order by r.queued_at desc limit 1",
    )
    .bind(route_name)
    .bind(bundle)
    .fetch_optional(connection)
    .await?;
    Ok(identity.map(|Json(identity)| Newest { name: bundle.to_owned(), digest: identity.digest, identity }))
}

/// The own bundle's target class, where it is the tried one's as well: a class of the same code.
fn common_class(own: &Newest, tried: &Newest) -> Option<(String, (ComparedClass, ComparedClass))> {
    let (own, tried) = (&own.identity, &tried.identity);
    let class = own.classes.get(own.target_class_idx)?;
    let class_idx = tried.classes.iter().position(|of_tried| same(&of_tried.code, &class.code))?;
    // A threshold is one of the target class.
    (class_idx == tried.target_class_idx).then(|| {
        let of = |class_idx, threshold| ComparedClass { class_idx, threshold };
        (class.label.clone(), (of(own.target_class_idx, own.threshold), of(class_idx, tried.threshold)))
    })
}

/// The meaning is for people and may be spelled otherwise.
fn same(one: &Code, other: &Code) -> bool {
    (&one.value, &one.scheme) == (&other.value, &other.scheme)
}

/// A bundle that took over a route.
#[derive(Debug, Clone, FromRow)]
pub struct Promotion {
    /// When.
    pub at: OffsetDateTime,
    /// Which route.
    pub route: String,
    /// `promotion` or `rollback`.
    pub kind: String,
    /// The bundle until then.
    pub from_bundle: String,
    /// Digest of its manifest, where a run told it.
    pub from_digest: Option<Vec<u8>>,
    /// The bundle from then on.
    pub to_bundle: String,
    /// Who wanted it.
    pub by_whom: String,
    /// Why.
    pub reason: String,
    /// What the comparison said then.
    pub comparison: Value,
}

/// The promotions and rollbacks of all routes or of one, the newest first.
pub async fn promotions(connection: &mut Connection, route_name: Option<&str>, limit: i64) -> Result<Vec<Promotion>> {
    Ok(sqlx::query_as(
        "select at, route, kind, from_bundle, from_digest, to_bundle, by_whom, reason, comparison from promotion
         where $1::text is null or route = $1 order by id desc limit $2",
    )
    .bind(route_name)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Who wants a change of bundles, and why.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// The user.
    pub by_whom: &'a str,
    /// In a few words, not empty.
    pub reason: &'a str,
}

/// Studies that a promotion looks back on.
pub const COMPARED_STUDIES: i64 = 1000;

/// The tried bundle becomes the route's own and the trial ends. Unless `untried`, both must have analysed a study.
pub async fn promote(tx: &mut Connection, route_name: &str, wish: Wish<'_>, untried: bool) -> Result<Promotion> {
    let route = route(tx, route_name).await?;
    let Some(trial) = route.trial else {
        return Err(DbError::SiteRefused(format!(
            "route `{route_name}` tries no bundle; `hilum route trial {route_name} --bundle NAME --mode shadow` begins a trial"
        )));
    };
    let compared = compare(tx, route_name, &route.bundle, &trial.bundle, COMPARED_STUDIES).await?;
    if compared.comparison.both_analysed == 0 && !untried {
        return Err(DbError::SiteRefused(format!(
            "bundles `{}` and `{}` have analysed no study of route `{route_name}` both: wait until `hilum route compare \
             {route_name}` shows some, or promote it unseen with --untried",
            route.bundle, trial.bundle
        )));
    }
    let (from, to) = (&route.bundle, &trial.bundle);
    Change { route_name, kind: "promotion", from, to, tried: to, wish }.make(tx, &compared).await
}

/// The bundle before the last promotion becomes the route's own again. `digest_now` gives the digest of the bundle of a name as it
/// is now, where it is there: unless the change is `also_changed`, it must be what it was then.
pub async fn roll_back(
    tx: &mut Connection,
    route_name: &str,
    wish: Wish<'_>,
    digest_now: impl Fn(&str) -> Option<Sha256Digest>,
    also_changed: bool,
) -> Result<Promotion> {
    let route = route(tx, route_name).await?;
    let last = promotions(tx, Some(route_name), 1).await?.pop();
    let Some(last) = last.filter(|last| last.kind == "promotion" && last.to_bundle == route.bundle) else {
        return Err(DbError::SiteRefused(format!(
            "route `{route_name}` has bundle `{}`, which no promotion gave it last: there is nothing to roll back; `hilum \
             route history {route_name}` lists what happened",
            route.bundle
        )));
    };
    let then =
        last.from_digest.as_deref().map(|bytes| digest_from_bytes(bytes, "promotion.from_digest")).transpose()?;
    if let (Some(then), Some(now)) = (then, digest_now(&last.from_bundle).filter(|_| !also_changed))
        && then != now
    {
        return Err(DbError::SiteRefused(format!(
            "bundle `{}` is not what it was when `{}` took its place (SHA-256 {then} then, {now} now): put back its files of \
             then, or take it as it is with --changed",
            last.from_bundle, last.to_bundle
        )));
    }
    let compared = compare(tx, route_name, &last.from_bundle, &route.bundle, COMPARED_STUDIES).await?;
    let (from, to) = (&route.bundle, &last.from_bundle);
    if let Some(trial) = route.trial.as_ref().filter(|trial| trial.bundle != *to) {
        return Err(DbError::SiteRefused(format!(
            "route `{route_name}` tries bundle `{}` beside `{from}`: end that with `hilum route trial {route_name} --end` \
             before the bundle is taken back",
            trial.bundle
        )));
    }
    let tried = route.trial.as_ref().map_or("", |trial| trial.bundle.as_str());
    Change { route_name, kind: "rollback", from, to, tried, wish }.make(tx, &compared).await
}

async fn route(connection: &mut Connection, route_name: &str) -> Result<Route> {
    let mut routes = site::load(connection).await?.routes;
    let known: Vec<String> = routes.iter().map(|route| format!("`{}`", route.name)).collect();
    let place = routes.iter().position(|route| route.name == route_name);
    let place = place.ok_or_else(|| {
        DbError::SiteRefused(format!("there is no route `{route_name}`; known: {}", known.join(", ")))
    })?;
    Ok(routes.swap_remove(place))
}

struct Change<'a> {
    route_name: &'a str,
    kind: &'static str,
    from: &'a str,
    to: &'a str,
    /// The bundle that the route tries now; empty when it tries none.
    tried: &'a str,
    wish: Wish<'a>,
}

impl Change<'_> {
    async fn make(&self, tx: &mut Connection, compared: &Compared) -> Result<Promotion> {
        let Self { route_name, kind, from, to, tried, wish } = *self;
        site::change_in(tx, false, |site| {
            let route = site.routes.iter_mut().find(|route| route.name == route_name);
            // It may have been changed since it was read.
            let route = route
                .filter(|route| route.bundle == from)
                .filter(|route| route.trial.as_ref().map_or("", |trial| trial.bundle.as_str()) == tried)
                .ok_or_else(|| format!("route `{route_name}` was changed meanwhile: look at it and try again"))?;
            to.clone_into(&mut route.bundle);
            route.trial = None;
            Ok(())
        })
        .await?;
        let digest = |name: &str| {
            let known = [&compared.own, &compared.tried].into_iter().flatten().find(|bundle| bundle.name == name);
            known.map(|bundle| bundle.digest.0.to_vec())
        };
        let made: Promotion = sqlx::query_as(
            "insert into promotion (route, kind, from_bundle, from_digest, to_bundle, to_digest, by_whom, reason, comparison)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             returning at, route, kind, from_bundle, from_digest, to_bundle, by_whom, reason, comparison",
        )
        .bind(route_name)
        .bind(kind)
        .bind(from)
        .bind(digest(from))
        .bind(to)
        .bind(digest(to))
        .bind(wish.by_whom)
        .bind(wish.reason)
        .bind(Json(compared))
        .fetch_one(&mut *tx)
        .await?;
        let words = format!(
            "{kind} on route `{route_name}` from bundle `{from}` to `{to}` by {}: {}",
            wish.by_whom, wish.reason
        );
        event::append(tx, event::Subject::Site, "site", kind, &words, json!({ "route": route_name })).await?;
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        db::{
            Db,
            run::{self, Claim, NewRun},
            testing::{self, TestDatabase, new_run},
        },
        report::samples::{SampleSource, analysed, ct_classified, ct_sources, not_analysed},
        types::{BundleStatus, NotJudged, ReasonCode, RunOutcome, RunRecord, RunRole, SiteConfig, TrialMode},
    };

    fn site() -> SiteConfig {
        toml::from_str(
            r#"
            [[local_ae]]
            ae_title = "HILUM"
            [[route]]
            name = "chest"
            order = 1
            called_ae_title = "HILUM"
            modalities = ["DX"]
            pipeline = "chest_radiograph"
            bundle = "cxr"
            quiet_seconds = 1
            max_wait_seconds = 10
            trial = { bundle = "next", mode = "shadow", share_percent = 100 }
            "#,
        )
        .unwrap()
    }

    /// A study of the route, judged by both bundles.
    async fn study(db: &Db, number: usize, own: &RunRecord, tried: &RunRecord) -> Uuid {
        study_of(db, number, ["cxr", "next"], own, tried).await
    }

    async fn study_of(db: &Db, number: usize, bundles: [&str; 2], own: &RunRecord, tried: &RunRecord) -> Uuid {
        let [own_bundle, tried_bundle] = bundles;
        let workup_id = testing::workup(db, &format!("1.2.{number}")).await;
        sqlx::query("update workup set route_name = 'chest' where id = $1")
            .bind(workup_id)
            .execute(db.pool())
            .await
            .unwrap();
        for (bundle, role, record) in [(own_bundle, RunRole::Live, own), (tried_bundle, RunRole::Shadow, tried)] {
            let claimed = claim(db, &NewRun { bundle, role, ..new_run(workup_id) }).await;
            assert_eq!(testing::finish(db, &claimed, record).await, Some(role));
        }
        workup_id
    }

    async fn claim(db: &Db, new: &NewRun<'_>) -> run::ClaimedRun {
        let mut connection = db.acquire().await.unwrap();
        let run_id = run::insert(&mut connection, new).await.unwrap().unwrap();
        match run::claim(&mut connection, run_id, "node").await.unwrap() {
            Claim::Claimed(claimed) => claimed,
            other => panic!("{other:?}"),
        }
    }

    fn record(output: f64) -> RunRecord {
        let mut record = analysed(BundleStatus::Unvalidated, &SampleSource::new("1.2.3"));
        let target = record.bundle.target_class_idx;
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("not analysed") };
        for image in &mut analysis.images {
            image.fused[target] = output;
        }
        record
    }

    async fn both_bundles_are_compared(db: &Db) {
        let mut connection = db.acquire().await.unwrap();
        let nothing = compare(&mut connection, "chest", "cxr", "next", 10).await.unwrap();
        assert_eq!((nothing.own, nothing.tried, nothing.comparison.studies), (None, None, 0));
        let first = study(db, 1, &record(0.9), &record(0.7)).await;
        study(db, 2, &record(0.2), &record(0.3)).await;
        study(db, 3, &record(0.2), &not_analysed(&SampleSource::new("1.2.3"), ReasonCode::ImageQuality)).await;
        // Another version of the tried bundle, before: left out. It would differ by 0.9.
        let mut other = record(1.0);
        other.bundle.digest = Sha256Digest([9; 32]);
        let workup_id = study(db, 4, &record(0.1), &other).await;
        sqlx::query("update run set queued_at = queued_at - interval '1 day' where workup_id = $1")
            .bind(workup_id)
            .execute(db.pool())
            .await
            .unwrap();
        let compared = compare(&mut connection, "chest", "cxr", "next", 10).await.unwrap();
        let of = &compared.comparison;
        assert_eq!([of.studies, of.both_analysed, of.only_own_analysed], [3, 2, 1]);
        let outputs = of.outputs.as_ref().unwrap();
        assert!((outputs.mean_difference + 0.05).abs() < 1e-9, "{outputs:?}");
        assert!((outputs.largest_difference - 0.2).abs() < 1e-9, "{outputs:?}");
        assert_eq!((of.furthest[0].study_instance_uid.as_str(), of.furthest.len()), ("1.2.1", 2));
        assert!(compared.class_label.is_some());
        assert_eq!(compare(&mut connection, "chest", "cxr", "next", 1).await.unwrap().comparison.studies, 1);
        // A late image: the study counts once, by its newest revision.
        sqlx::query("update workup set revision = 2 where id = $1").bind(first).execute(db.pool()).await.unwrap();
        for (bundle, role, output) in [("cxr", RunRole::Live, 0.9), ("next", RunRole::Shadow, 0.85)] {
            let claimed = claim(db, &NewRun { bundle, role, revision: 2, ..new_run(first) }).await;
            testing::finish(db, &claimed, &record(output)).await;
        }
        let again = compare(&mut connection, "chest", "cxr", "next", 10).await.unwrap().comparison;
        assert_eq!(again.studies, 3);
        // Measured by both, and the second by one only judged.
        let judged = ct_classified(BundleStatus::Unvalidated, &ct_sources());
        let mut not_judged = judged.clone();
        let RunOutcome::CtMeasured(analysis) = &mut not_judged.outcome else { panic!("not measured") };
        let (reason, words) = (ReasonCode::UnsupportedImage, "too many slices".to_owned());
        (analysis.classification, analysis.not_judged) = (None, Some(NotJudged { reason, words }));
        for (number, tried) in [(5, &judged), (6, &not_judged)] {
            study_of(db, number, ["scan", "scan-next"], &judged, tried).await;
        }
        let of = compare(&mut connection, "chest", "scan", "scan-next", 10).await.unwrap().comparison;
        assert_eq!([of.studies, of.both_analysed, of.only_own_analysed], [2, 1, 1], "by what was kept with the run");
        sqlx::query("update run set judged = null").execute(db.pool()).await.unwrap();
        let of = compare(&mut connection, "chest", "scan", "scan-next", 10).await.unwrap().comparison;
        assert_eq!([of.studies, of.both_analysed, of.only_own_analysed], [2, 1, 1], "of a run from before that");
        assert!((again.outputs.unwrap().largest_difference - 0.1).abs() < 1e-9);
        assert_eq!(compare(&mut connection, "other", "cxr", "next", 10).await.unwrap().comparison.studies, 0);
    }

    async fn what_parks_again_and_again_is_suspended(db: &Db) {
        let mut connection = db.acquire().await.unwrap();
        let mut last = None;
        for number in 0..3 {
            assert!(!is_suspended(&mut connection, "chest", "broken").await.unwrap(), "after {number}");
            let workup_id = testing::workup(db, &format!("1.3.{number}")).await;
            let route = sqlx::query("update workup set route_name = 'chest' where id = $1");
            route.bind(workup_id).execute(db.pool()).await.unwrap();
            let new = NewRun { bundle: "broken", role: RunRole::Shadow, maximum_attempts: 1, ..new_run(workup_id) };
            let claimed = claim(db, &new).await;
            run::fail(&mut connection, &claimed, "processing.failure", "it cannot").await.unwrap();
            last = Some(claimed.id);
        }
        assert!(is_suspended(&mut connection, "chest", "broken").await.unwrap());
        assert!(!is_suspended(&mut connection, "other", "broken").await.unwrap());
        assert!(run::restart(&mut connection, last.unwrap()).await.unwrap());
        let Claim::Claimed(claimed) = run::claim(&mut connection, last.unwrap(), "node").await.unwrap() else {
            panic!("parked")
        };
        assert_eq!(testing::finish(db, &claimed, &record(0.5)).await, Some(RunRole::Shadow));
        assert!(!is_suspended(&mut connection, "chest", "broken").await.unwrap());
    }

    const WISH: Wish<'static> = Wish { by_whom: "root", reason: "it is better" };

    async fn bundles_take_over_and_go_back(db: &Db) {
        let refusal = |error: DbError| error.to_string();
        let mut tx = db.begin().await.unwrap();
        let unknown = promote(&mut tx, "nowhere", WISH, false).await.unwrap_err();
        assert!(refusal(unknown).contains("there is no route `nowhere`; known: `chest`"));
        assert!(
            refusal(roll_back(&mut tx, "chest", WISH, |_| None, false).await.unwrap_err())
                .contains("nothing to roll back")
        );
        let made = promote(&mut tx, "chest", WISH, false).await.unwrap();
        assert_eq!(
            (made.from_bundle.as_str(), made.to_bundle.as_str(), made.by_whom.as_str()),
            ("cxr", "next", "root")
        );
        assert_eq!(made.comparison["comparison"]["both_analysed"], 2);
        let now = route(&mut tx, "chest").await.unwrap();
        assert_eq!((now.bundle.as_str(), now.trial), ("next", None));
        assert!(refusal(promote(&mut tx, "chest", WISH, false).await.unwrap_err()).contains("tries no bundle"));
        let other = |_: &str| Some(Sha256Digest([7; 32]));
        let changed = refusal(roll_back(&mut tx, "chest", WISH, other, false).await.unwrap_err());
        assert!(changed.contains("bundle `cxr` is not what it was") && changed.contains("--changed"), "{changed}");
        let back = roll_back(&mut tx, "chest", WISH, other, true).await.unwrap();
        assert_eq!((back.kind.as_str(), back.to_bundle.as_str()), ("rollback", "cxr"));
        assert_eq!(route(&mut tx, "chest").await.unwrap().bundle, "cxr");
        assert!(
            refusal(roll_back(&mut tx, "chest", WISH, |_| None, false).await.unwrap_err())
                .contains("nothing to roll back")
        );
        assert_eq!(promotions(&mut tx, Some("chest"), 10).await.unwrap().len(), 2);
        // What no study has seen is promoted only when that is wished.
        site::change_in(&mut tx, false, |site| {
            let trial = crate::types::Trial { bundle: "unseen".into(), mode: TrialMode::Canary, share_percent: 5 };
            site.routes[0].trial = Some(trial);
            Ok(())
        })
        .await
        .unwrap();
        assert!(refusal(promote(&mut tx, "chest", WISH, false).await.unwrap_err()).contains("--untried"));
        assert_eq!(promote(&mut tx, "chest", WISH, true).await.unwrap().to_bundle, "unseen");
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn a_bundle_is_tried_compared_and_promoted() {
        let database = TestDatabase::start("trial").await;
        site::change(&database.db, false, |of_database| {
            *of_database = site();
            Ok(())
        })
        .await
        .unwrap();
        let stored = site::load(&mut database.db.acquire().await.unwrap()).await.unwrap();
        assert_eq!(stored, site(), "a trial survives the tables");
        both_bundles_are_compared(&database.db).await;
        what_parks_again_and_again_is_suspended(&database.db).await;
        bundles_take_over_and_go_back(&database.db).await;
        database.stop().await;
    }
}
