//! Pages for people.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::header,
    response::{Html, IntoResponse},
};
use uuid::Uuid;

use super::{
    AdminState,
    problem::Problem,
    readiness::{self, NamedCheck},
    trial::TrialView,
    view::{
        self, BacklogView, DestinationStateView, DestinationView, Moment, RefusalView, RunView, StudyDetail, StudyView,
    },
};
use crate::{
    db::{destination, site, status},
    types::UNTRAINED_NOTICE,
};

/// Rows of each table.
const LIMIT: i64 = 50;

/// Everything at a glance.
#[derive(Template)]
#[template(path = "status.html")]
pub(super) struct StatusPage {
    pub(super) node_name: String,
    pub(super) version: String,
    pub(super) now: Moment,
    /// Whether a run that is shown used untrained weights.
    pub(super) untrained: bool,
    pub(super) checks: Vec<NamedCheck>,
    pub(super) backlog: BacklogView,
    pub(super) studies: Vec<StudyView>,
    pub(super) runs: Vec<RunView>,
    pub(super) trials: Vec<TrialView>,
    pub(super) destinations: Vec<DestinationView>,
    /// Destinations that have failed.
    pub(super) failing: Vec<DestinationStateView>,
    pub(super) refusals: Vec<RefusalView>,
}

/// One study.
#[derive(Template)]
#[template(path = "study.html")]
pub(super) struct StudyPage {
    pub(super) node_name: String,
    pub(super) version: String,
    pub(super) now: Moment,
    pub(super) untrained: bool,
    pub(super) study: StudyDetail,
}

pub(super) async fn status(State(state): State<Arc<AdminState>>) -> Result<Html<String>, Problem> {
    let mut connection = state.connection().await?;
    let backlog = status::backlog(&mut connection).await?;
    let studies = status::workups(&mut connection, None, LIMIT).await?;
    let runs = status::runs(&mut connection, None, LIMIT).await?;
    let deliveries = status::deliveries(&mut connection, None, LIMIT).await?;
    let failing = destination::all(&mut connection).await?;
    let refusals = state.refusals(&mut connection).await?;
    let trials = TrialView::all(&site::load(&mut connection).await?);
    drop(connection);
    let runs: Vec<RunView> = runs.into_iter().map(RunView::from).collect();
    let page = StatusPage {
        node_name: state.node_name.clone(),
        version: state.version.clone(),
        now: Moment::now(),
        untrained: runs.iter().any(RunView::is_untrained),
        checks: readiness::check(&state).await,
        backlog: BacklogView::new(backlog, state.free_bytes().await.ok()),
        studies: studies.into_iter().map(StudyView::from).collect(),
        runs,
        trials,
        destinations: view::by_destination(deliveries),
        failing: failing.into_iter().map(DestinationStateView::from).collect(),
        refusals,
    };
    Ok(Html(page.render()?))
}

pub(super) async fn study(
    State(state): State<Arc<AdminState>>,
    study_instance_uid: Result<Path<String>, PathRejection>,
) -> Result<Html<String>, Problem> {
    let Path(study_instance_uid) = study_instance_uid?;
    let study = StudyDetail::read(&state, &study_instance_uid).await?;
    let page = StudyPage {
        node_name: state.node_name.clone(),
        version: state.version.clone(),
        now: Moment::now(),
        untrained: study.is_untrained(),
        study,
    };
    Ok(Html(page.render()?))
}

pub(super) async fn preview(
    State(state): State<Arc<AdminState>>,
    result_id: Result<Path<Uuid>, PathRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Path(result_id) = result_id?;
    let mut connection = state.connection().await?;
    let key = status::preview_key(&mut connection, result_id).await?;
    drop(connection);
    let key =
        key.ok_or_else(|| Problem::not_found("there is no such result, or it is a report, which has no picture"))?;
    let archive = state.archive.clone();
    let png = tokio::task::spawn_blocking(move || archive.read(&key))
        .await
        .map_err(|error| Problem::not_found(format!("reading the picture was interrupted: {error}")))??;
    Ok(([(header::CONTENT_TYPE, "image/png")], png))
}

pub(super) async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("../../templates/style.css"))
}

pub(super) async fn icon() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "image/svg+xml")], include_str!("../../templates/icon.svg"))
}
