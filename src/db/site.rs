//! The site configuration: local AE titles, peers, destinations and routes.

use serde_json::json;
use sqlx::{FromRow, types::Json};

use super::{Connection, Db, DbError, Result, delivery, event};
use crate::types::{
    AeTitle, AssociationPolicy, CommitmentUse, Destination, DestinationKind, Duplicates, LateImages, LocalAe, Peer,
    Pipeline, Requirement, ResultProfile, ResultRule, Route, RunPriority, SiteConfig, Trial, TrialMode,
    WebAuthentication,
};

/// The channel on which Postgres announces a change.
pub const CHANNEL: &str = "hilum_site";

#[derive(FromRow)]
struct PeerRow {
    name: String,
    ae_title: String,
    host: String,
    port: Option<i32>,
    may_store: bool,
    contact: String,
    policy: Json<AssociationPolicy>,
    tls: bool,
    require_tls: bool,
    tls_certificate_sha256: Vec<String>,
    tls_subject_name: Option<String>,
    count_at_source: bool,
    duplicates: String,
    duplicate_status: Option<i32>,
}

#[derive(FromRow)]
struct DestinationRow {
    name: String,
    kind: String,
    peer: Option<String>,
    calling_ae_title: Option<String>,
    url: Option<String>,
    authentication: Option<Json<WebAuthentication>>,
    folder: Option<String>,
    maximum_associations: i32,
    commitment: String,
    commitment_timeout_seconds: i32,
    send_not_analysed: bool,
    results: Json<ResultProfile>,
}

#[derive(FromRow)]
struct RouteRow {
    name: String,
    sort_order: i32,
    enabled: bool,
    called_ae_title: String,
    calling_ae_titles: Vec<String>,
    modalities: Vec<String>,
    pipeline: String,
    bundle: String,
    quiet_seconds: i32,
    max_wait_seconds: i32,
    released_quiet_seconds: Option<i32>,
    lost_quiet_seconds: Option<i32>,
    required: Option<String>,
    late_images: String,
    late_images_within_seconds: Option<i32>,
    destinations: Vec<String>,
    rules: Json<Vec<ResultRule>>,
    priority: String,
    trial_bundle: Option<String>,
    trial_mode: Option<String>,
    trial_share_percent: Option<i32>,
}

fn ae_title(text: &str) -> Result<AeTitle> {
    AeTitle::new(text).map_err(|error| DbError::unreadable("AE title", error))
}

/// The whole configuration, each list in its stable order.
pub async fn load(connection: &mut Connection) -> Result<SiteConfig> {
    let local_aes = sqlx::query_as::<_, (String, bool, String, Json<AssociationPolicy>)>(
        "select ae_title, enabled, description, policy from local_ae order by ae_title",
    )
    .fetch_all(&mut *connection)
    .await?
    .into_iter()
    .map(|(title, enabled, description, Json(policy))| {
        Ok(LocalAe { ae_title: ae_title(&title)?, enabled, description, policy })
    })
    .collect::<Result<_>>()?;
    let peers = sqlx::query_as::<_, PeerRow>("select * from peer order by name")
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .map(peer_from_row)
        .collect::<Result<_>>()?;
    let destinations = sqlx::query_as::<_, DestinationRow>("select * from destination order by name")
        .fetch_all(&mut *connection)
        .await?
        .into_iter()
        .map(destination_from_row)
        .collect::<Result<_>>()?;
    let routes = sqlx::query_as::<_, RouteRow>("select * from route order by sort_order, name")
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(route_from_row)
        .collect::<Result<_>>()?;
    Ok(SiteConfig { local_aes, peers, destinations, routes })
}

fn peer_from_row(row: PeerRow) -> Result<Peer> {
    let duplicates = match row.duplicates.as_str() {
        "keep_version" => Duplicates::KeepVersion,
        "refuse" => Duplicates::Refuse,
        other => return Err(DbError::unreadable("policy for duplicates", other)),
    };
    let small = |value: Option<i32>, what| {
        value.map(u16::try_from).transpose().map_err(|error| DbError::unreadable(what, error))
    };
    Ok(Peer {
        ae_title: ae_title(&row.ae_title)?,
        name: row.name,
        host: row.host,
        port: small(row.port, "port")?,
        may_store: row.may_store,
        contact: row.contact,
        count_at_source: row.count_at_source,
        duplicates,
        duplicate_status: small(row.duplicate_status, "status for duplicates")?,
        policy: row.policy.0,
        tls: row.tls,
        require_tls: row.require_tls,
        tls_certificate_sha256: row
            .tls_certificate_sha256
            .iter()
            .map(|digest| digest.parse().map_err(|error| DbError::unreadable("certificate fingerprint", error)))
            .collect::<Result<_>>()?,
        tls_subject_name: row.tls_subject_name,
    })
}

fn destination_from_row(row: DestinationRow) -> Result<Destination> {
    let number = |value: i32| u32::try_from(value).map_err(|error| DbError::unreadable("destination", error));
    Ok(Destination {
        kind: DestinationKind::from_name(&row.kind)
            .ok_or_else(|| DbError::unreadable("destination kind", row.kind.as_str()))?,
        name: row.name,
        peer: row.peer,
        calling_ae_title: row.calling_ae_title.as_deref().map(ae_title).transpose()?,
        url: row.url,
        authentication: row.authentication.map(|Json(authentication)| authentication).unwrap_or_default(),
        folder: row.folder.map(Into::into),
        maximum_associations: number(row.maximum_associations)?,
        commitment: CommitmentUse::from_name(&row.commitment)
            .ok_or_else(|| DbError::unreadable("use of storage commitment", row.commitment.as_str()))?,
        commitment_timeout_seconds: number(row.commitment_timeout_seconds)?,
        send_not_analysed: row.send_not_analysed,
        results: row.results.0,
    })
}

fn route_from_row(row: RouteRow) -> Result<Route> {
    let pipeline =
        Pipeline::from_name(&row.pipeline).ok_or_else(|| DbError::unreadable("pipeline", row.pipeline.as_str()))?;
    let late_images = match row.late_images.as_str() {
        "new_revision" => LateImages::NewRevision,
        "ignore" => LateImages::Ignore,
        other => return Err(DbError::unreadable("policy for late images", other)),
    };
    let required = row.required.as_deref().map(Requirement::parse).transpose();
    let seconds = |value: i32| u32::try_from(value).map_err(|error| DbError::unreadable("route time", error));
    let trial = match (row.trial_bundle, row.trial_mode, row.trial_share_percent) {
        (Some(bundle), Some(mode), Some(share)) => Some(Trial {
            bundle,
            mode: TrialMode::from_name(&mode).ok_or_else(|| DbError::unreadable("mode of a trial", &mode))?,
            share_percent: u32::try_from(share).map_err(|error| DbError::unreadable("share of a trial", error))?,
        }),
        _ => None,
    };
    Ok(Route {
        name: row.name,
        order: row.sort_order,
        enabled: row.enabled,
        called_ae_title: ae_title(&row.called_ae_title)?,
        calling_ae_titles: row.calling_ae_titles.iter().map(|title| ae_title(title)).collect::<Result<_>>()?,
        modalities: row.modalities,
        pipeline,
        bundle: row.bundle,
        priority: RunPriority::from_name(&row.priority)
            .ok_or_else(|| DbError::unreadable("priority of a route", &row.priority))?,
        quiet_seconds: seconds(row.quiet_seconds)?,
        max_wait_seconds: seconds(row.max_wait_seconds)?,
        released_quiet_seconds: row.released_quiet_seconds.map(seconds).transpose()?,
        lost_quiet_seconds: row.lost_quiet_seconds.map(seconds).transpose()?,
        required: required.map_err(|error| DbError::unreadable("requirement of a route", error))?,
        late_images,
        late_images_within_seconds: row.late_images_within_seconds.map(seconds).transpose()?,
        destinations: row.destinations,
        rules: row.rules.0,
        trial,
    })
}

/// What a change did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SiteDiff {
    /// One line for each difference: `+ peer ...`, `- route ...`, `~ destination ...`.
    pub lines: Vec<String>,
}

/// Changes the configuration in one transaction: locks it, lets `change` edit a copy, refuses it with every
/// problem when the outcome is not valid, writes the differences, and notifies every node. With `dry_run`
/// nothing is kept.
pub async fn change(
    db: &Db,
    dry_run: bool,
    change: impl FnOnce(&mut SiteConfig) -> std::result::Result<(), String>,
) -> Result<SiteDiff> {
    let mut tx = db.begin().await?;
    let diff = change_in(&mut tx, dry_run, change).await?;
    tx.commit().await?;
    Ok(diff)
}

/// The same in the caller's transaction.
pub(super) async fn change_in(
    tx: &mut Connection,
    dry_run: bool,
    change: impl FnOnce(&mut SiteConfig) -> std::result::Result<(), String>,
) -> Result<SiteDiff> {
    sqlx::query("lock table local_ae, peer, destination, route in share row exclusive mode").execute(&mut *tx).await?;
    let before = load(tx).await?;
    let mut after = before.clone();
    change(&mut after).map_err(DbError::SiteRefused)?;
    let problems = after.problems();
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Err(DbError::SiteRefused(lines.join("\n")));
    }
    let diff = difference(&before, &after);
    if dry_run || diff.lines.is_empty() {
        return Ok(diff);
    }
    write(tx, &after).await?;
    // What was mended is noticed at once.
    sqlx::query("update destination_state set next_probe_at = now() where next_probe_at > now()")
        .execute(&mut *tx)
        .await?;
    let is_new = |name: &str| before.destinations.iter().all(|known| known.name != name);
    for destination in after.destinations.iter().filter(|destination| is_new(&destination.name)) {
        delivery::hurry(tx, &destination.name).await?;
    }
    event::append(tx, event::Subject::Site, "site", "changed", &diff.lines.join("; "), json!({})).await?;
    sqlx::query("select pg_notify($1, '')").bind(CHANNEL).execute(tx).await?;
    Ok(diff)
}

async fn write(connection: &mut Connection, site: &SiteConfig) -> Result<()> {
    for table in ["delete from route", "delete from destination", "delete from peer", "delete from local_ae"] {
        sqlx::query(table).execute(&mut *connection).await?;
    }
    for local_ae in &site.local_aes {
        sqlx::query("insert into local_ae (ae_title, enabled, description, policy) values ($1, $2, $3, $4)")
            .bind(local_ae.ae_title.as_str())
            .bind(local_ae.enabled)
            .bind(&local_ae.description)
            .bind(Json(&local_ae.policy))
            .execute(&mut *connection)
            .await?;
    }
    for peer in &site.peers {
        let fingerprints: Vec<String> = peer.tls_certificate_sha256.iter().map(ToString::to_string).collect();
        sqlx::query(
            "insert into peer (name, ae_title, host, port, may_store, contact, policy, tls, require_tls,
                               tls_certificate_sha256, tls_subject_name, count_at_source, duplicates, duplicate_status)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        )
        .bind(&peer.name)
        .bind(peer.ae_title.as_str())
        .bind(&peer.host)
        .bind(peer.port.map(i32::from))
        .bind(peer.may_store)
        .bind(&peer.contact)
        .bind(Json(&peer.policy))
        .bind(peer.tls)
        .bind(peer.require_tls)
        .bind(&fingerprints)
        .bind(&peer.tls_subject_name)
        .bind(peer.count_at_source)
        .bind(match peer.duplicates {
            Duplicates::KeepVersion => "keep_version",
            Duplicates::Refuse => "refuse",
        })
        .bind(peer.duplicate_status.map(i32::from))
        .execute(&mut *connection)
        .await?;
    }
    for destination in &site.destinations {
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        sqlx::query(
            "insert into destination (name, kind, peer, calling_ae_title, url, authentication, folder,
                                      maximum_associations, commitment, commitment_timeout_seconds, send_not_analysed,
                                      results)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(&destination.name)
        .bind(destination.kind.name())
        .bind(&destination.peer)
        .bind(destination.calling_ae_title.as_ref().map(AeTitle::as_str))
        .bind(&destination.url)
        .bind((destination.authentication != WebAuthentication::None).then_some(Json(&destination.authentication)))
        .bind(destination.folder.as_ref().map(|folder| folder.display().to_string()))
        .bind(number(destination.maximum_associations))
        .bind(destination.commitment.name())
        .bind(number(destination.commitment_timeout_seconds))
        .bind(destination.send_not_analysed)
        .bind(Json(&destination.results))
        .execute(&mut *connection)
        .await?;
    }
    let seconds = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    for route in &site.routes {
        let calling: Vec<&str> = route.calling_ae_titles.iter().map(AeTitle::as_str).collect();
        sqlx::query(
            "insert into route (name, sort_order, enabled, called_ae_title, calling_ae_titles, modalities, pipeline,
                                bundle, quiet_seconds, max_wait_seconds, destinations, released_quiet_seconds,
                                lost_quiet_seconds, required, late_images, late_images_within_seconds, priority,
                                trial_bundle, trial_mode, trial_share_percent, rules)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21)",
        )
        .bind(&route.name)
        .bind(route.order)
        .bind(route.enabled)
        .bind(route.called_ae_title.as_str())
        .bind(&calling)
        .bind(&route.modalities)
        .bind(route.pipeline.name())
        .bind(&route.bundle)
        .bind(seconds(route.quiet_seconds))
        .bind(seconds(route.max_wait_seconds))
        .bind(&route.destinations)
        .bind(route.released_quiet_seconds.map(seconds))
        .bind(route.lost_quiet_seconds.map(seconds))
        .bind(route.required.as_ref().map(Requirement::as_str))
        .bind(match route.late_images {
            LateImages::NewRevision => "new_revision",
            LateImages::Ignore => "ignore",
        })
        .bind(route.late_images_within_seconds.map(seconds))
        .bind(route.priority.name())
        .bind(route.trial.as_ref().map(|trial| &trial.bundle))
        .bind(route.trial.as_ref().map(|trial| trial.mode.name()))
        .bind(route.trial.as_ref().map(|trial| seconds(trial.share_percent)))
        .bind(Json(&route.rules))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

/// What would change from `before` to `after`, one line for each difference.
#[must_use]
pub fn difference(before: &SiteConfig, after: &SiteConfig) -> SiteDiff {
    let mut lines = Vec::new();
    fn compare<'a, T: PartialEq>(
        lines: &mut Vec<String>,
        noun: &str,
        before: &'a [T],
        after: &'a [T],
        name: impl Fn(&'a T) -> &'a str,
    ) {
        for old in before {
            match after.iter().find(|new| name(new) == name(old)) {
                None => lines.push(format!("- {noun} `{}`", name(old))),
                Some(new) if new != old => lines.push(format!("~ {noun} `{}`", name(old))),
                Some(_) => {}
            }
        }
        for new in after {
            if !before.iter().any(|old| name(old) == name(new)) {
                lines.push(format!("+ {noun} `{}`", name(new)));
            }
        }
    }
    compare(&mut lines, "local AE", &before.local_aes, &after.local_aes, |ae| ae.ae_title.as_str());
    compare(&mut lines, "peer", &before.peers, &after.peers, |peer| &peer.name);
    compare(&mut lines, "destination", &before.destinations, &after.destinations, |destination| &destination.name);
    compare(&mut lines, "route", &before.routes, &after.routes, |route| &route.name);
    SiteDiff { lines }
}
