//! Answers for programs: JSON, health, readiness, metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::IntoResponse,
};
use serde::Serialize;

use super::{
    AdminState,
    problem::Problem,
    readiness::{self, NamedCheck},
    view::{BacklogView, DeliveryView, DestinationStateView, RefusalView, RunView, StudyDetail, StudyView},
};
use crate::db::{destination, status};

/// Rows in a list.
const LIMIT: i64 = 100;

/// A scrape does not wait longer for Postgres.
const SCRAPE_PATIENCE: Duration = Duration::from_secs(1);

pub(super) async fn health() -> &'static str {
    "ok\n"
}

#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    checks: Vec<NamedCheck>,
}

pub(super) async fn ready(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    let checks = readiness::check(&state).await;
    let ready = checks.iter().all(|check| check.passed);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, checks }))
}

#[derive(Debug, Serialize)]
pub(super) struct Doctor {
    /// Checks that failed and causes that are open.
    problems: usize,
    checks: Vec<NamedCheck>,
    causes: Vec<RefusalView>,
}

/// The same words as on the status page.
pub(super) async fn doctor(State(state): State<Arc<AdminState>>) -> Result<Json<Doctor>, Problem> {
    let mut connection = state.connection().await?;
    let causes = state.refusals(&mut connection).await?;
    drop(connection);
    let checks = readiness::check(&state).await;
    let problems = checks.iter().filter(|check| !check.passed).count()
        + causes.iter().filter(|cause| cause.state == "open").count();
    Ok(Json(Doctor { problems, checks, causes }))
}

/// Refreshes the gauges that nobody else sets, then shows all; what cannot be refreshed keeps its last value.
pub(super) async fn metrics(State(state): State<Arc<AdminState>>) -> impl IntoResponse {
    if let Ok(Ok(backlog)) = tokio::time::timeout(SCRAPE_PATIENCE, state.backlog()).await {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        state.metrics.set_deliveries_waiting(count(backlog.deliveries_open));
        let (not_committed, open) = (count(backlog.deliveries_not_committed), count(backlog.destinations_open));
        state.metrics.set_delivery_alarms(not_committed, open);
        state.metrics.set_networks_failing(count(backlog.networks_failing));
    }
    if let Ok(free_bytes) = state.free_bytes().await {
        state.metrics.set_archive_free_bytes(free_bytes);
    }
    let media_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, media_type)], state.metrics.encode())
}

pub(super) async fn studies(State(state): State<Arc<AdminState>>) -> Result<Json<Vec<StudyView>>, Problem> {
    let mut connection = state.connection().await?;
    let rows = status::workups(&mut connection, None, LIMIT).await?;
    Ok(Json(rows.into_iter().map(StudyView::from).collect()))
}

pub(super) async fn study(
    State(state): State<Arc<AdminState>>,
    study_instance_uid: Result<Path<String>, PathRejection>,
) -> Result<Json<StudyDetail>, Problem> {
    let Path(study_instance_uid) = study_instance_uid?;
    StudyDetail::read(&state, &study_instance_uid).await.map(Json)
}

pub(super) async fn runs(State(state): State<Arc<AdminState>>) -> Result<Json<Vec<RunView>>, Problem> {
    let mut connection = state.connection().await?;
    let rows = status::runs(&mut connection, None, LIMIT).await?;
    Ok(Json(rows.into_iter().map(RunView::from).collect()))
}

/// The newest results with their deliveries and every attempt, as `hilum deliveries --json`.
pub(super) async fn deliveries(State(state): State<Arc<AdminState>>) -> Result<Json<Vec<DeliveryView>>, Problem> {
    let mut connection = state.connection().await?;
    let rows = status::deliveries(&mut connection, None, LIMIT).await?;
    Ok(Json(DeliveryView::with_ledgers(&mut connection, rows).await?))
}

/// Destinations that have failed, as `hilum destination status --json`.
pub(super) async fn destinations(
    State(state): State<Arc<AdminState>>,
) -> Result<Json<Vec<DestinationStateView>>, Problem> {
    let mut connection = state.connection().await?;
    let rows = destination::all(&mut connection).await?;
    Ok(Json(rows.into_iter().map(DestinationStateView::from).collect()))
}

pub(super) async fn backlog(State(state): State<Arc<AdminState>>) -> Result<Json<BacklogView>, Problem> {
    Ok(Json(BacklogView::new(state.backlog().await?, state.free_bytes().await.ok())))
}
