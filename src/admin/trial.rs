//! The page and the JSON of a bundle that is tried beside a route's own.

use std::sync::Arc;

use askama::Template;
use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    response::Html,
};

use super::{AdminState, problem::Problem, view::Moment};
use crate::{
    db::{
        Connection, site,
        trial::{self, COMPARED_STUDIES, Promotion},
    },
    report,
    types::{Compared, FurthestStudy, Route, SiteConfig, UNTRAINED_NOTICE},
};

/// Promotions and rollbacks that are shown.
const LIMIT: i64 = 50;

/// How the bundle that a route tries agrees with the route's own.
#[derive(Template)]
#[template(path = "trial.html")]
pub(super) struct TrialPage {
    pub(super) node_name: String,
    pub(super) version: String,
    pub(super) now: Moment,
    pub(super) untrained: bool,
    pub(super) trial: TrialView,
    pub(super) lines: Vec<String>,
    pub(super) furthest: Vec<FurthestView>,
    pub(super) promotions: Vec<PromotionView>,
}

/// A route that tries a bundle.
#[derive(Debug)]
pub(super) struct TrialView {
    pub(super) route: String,
    pub(super) words: String,
}

impl TrialView {
    fn of(route: &Route) -> Option<Self> {
        let trial = route.trial.as_ref()?;
        let words = format!("beside bundle `{}`, {}", route.bundle, report::describe_trial(trial));
        Some(Self { route: route.name.clone(), words })
    }

    /// Of every route that tries one.
    pub(super) fn all(site: &SiteConfig) -> Vec<Self> {
        site.routes.iter().filter_map(Self::of).collect()
    }
}

/// A study whose outputs differ, in percent.
#[derive(Debug)]
pub(super) struct FurthestView {
    pub(super) study_instance_uid: String,
    pub(super) own: String,
    pub(super) tried: String,
}

impl FurthestView {
    fn new(study: &FurthestStudy) -> Self {
        let share = |output: f64| format!("{:.1} %", output * 100.0);
        let study_instance_uid = study.study_instance_uid.clone();
        Self { study_instance_uid, own: share(study.own), tried: share(study.tried) }
    }
}

/// A promotion or rollback.
#[derive(Debug)]
pub(super) struct PromotionView {
    pub(super) at: Moment,
    pub(super) kind: String,
    pub(super) from_bundle: String,
    pub(super) to_bundle: String,
    pub(super) by_whom: String,
    pub(super) reason: String,
}

impl From<Promotion> for PromotionView {
    fn from(row: Promotion) -> Self {
        let Promotion { at, kind, from_bundle, to_bundle, by_whom, reason, .. } = row;
        Self { at: Moment::new(at), kind, from_bundle, to_bundle, by_whom, reason }
    }
}

impl TrialPage {
    fn new(state: &AdminState, trial: TrialView, compared: &Compared, promotions: Vec<Promotion>) -> Self {
        Self {
            node_name: state.node_name.clone(),
            version: state.version.clone(),
            now: Moment::now(),
            untrained: compared.is_untrained(),
            trial,
            lines: report::describe_comparison(compared),
            furthest: compared.comparison.furthest.iter().map(FurthestView::new).collect(),
            promotions: promotions.into_iter().map(PromotionView::from).collect(),
        }
    }
}

pub(super) async fn page(
    State(state): State<Arc<AdminState>>,
    route: Result<Path<String>, PathRejection>,
) -> Result<Html<String>, Problem> {
    let Path(name) = route?;
    let mut connection = state.connection().await?;
    let (view, compared) = compared(&mut connection, &name).await?;
    let promotions = trial::promotions(&mut connection, Some(&name), LIMIT).await?;
    drop(connection);
    Ok(Html(TrialPage::new(&state, view, &compared, promotions).render()?))
}

pub(super) async fn json(
    State(state): State<Arc<AdminState>>,
    route: Result<Path<String>, PathRejection>,
) -> Result<Json<Compared>, Problem> {
    let Path(name) = route?;
    let mut connection = state.connection().await?;
    Ok(Json(compared(&mut connection, &name).await?.1))
}

/// What the bundles of a route's trial said.
async fn compared(connection: &mut Connection, name: &str) -> Result<(TrialView, Compared), Problem> {
    let site = site::load(connection).await?;
    let route = site.routes.iter().find(|route| route.name == name);
    let route = route.ok_or_else(|| Problem::not_found("there is no route of this name"))?;
    let (Some(trial), Some(view)) = (&route.trial, TrialView::of(route)) else {
        return Err(Problem::not_found("this route tries no bundle beside its own"));
    };
    let compared = trial::compare(connection, name, &route.bundle, &trial.bundle, COMPARED_STUDIES).await?;
    Ok((view, compared))
}
