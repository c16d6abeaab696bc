//! What a request gets instead of an answer: what was asked, why there is no answer, and what to do.

use askama::Template;
use axum::{
    Json,
    extract::rejection::PathRejection,
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde::Serialize;

use crate::{archive::ArchiveError, db::DbError};

/// Why there is no answer. Becomes a page or JSON in [`Problem::respond`], when the path is known.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// A sentence without a full stop.
    pub(super) reason: String,
    /// A sentence without a full stop.
    pub(super) remedy: String,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    title: &'a str,
    /// Tries again by itself.
    refresh: bool,
    path: &'a str,
    reason: &'a str,
    remedy: &'a str,
}

#[derive(Serialize)]
struct ProblemJson<'a> {
    status: u16,
    request: &'a str,
    reason: &'a str,
    remedy: &'a str,
}

impl Problem {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), remedy: remedy.into() }
    }

    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, reason, "start at the status page: /")
    }

    /// Postgres cannot be asked.
    pub(super) fn database(reason: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "Postgres cannot be asked ({reason}). Receiving goes on: images are acknowledged, kept in the archive, \
                 and processed when Postgres is back"
            ),
            "see that Postgres runs and that its schema is current (hilum migrate); /readyz says what is wrong",
        )
    }

    fn title(&self) -> &'static str {
        match self.status {
            StatusCode::NOT_FOUND => "There is nothing here",
            StatusCode::SERVICE_UNAVAILABLE => "Not available at the moment",
            status if status.is_client_error() => "This request is not answered",
            _ => "Something went wrong",
        }
    }

    /// The answer to a request for `path`: JSON for programs, a page for people.
    pub(super) fn respond(&self, path: &str) -> Response {
        // A path is at most as long as a request line; nobody reads more than this of it.
        let path: String = path.chars().take(200).collect();
        let (reason, remedy) = (self.reason.as_str(), self.remedy.as_str());
        let mut response = if path.starts_with("/api/") {
            Json(ProblemJson { status: self.status.as_u16(), request: &path, reason, remedy }).into_response()
        } else {
            let refresh = self.status == StatusCode::SERVICE_UNAVAILABLE;
            match (ProblemPage { title: self.title(), refresh, path: &path, reason, remedy }).render() {
                Ok(page) => Html(page).into_response(),
                Err(_) => format!("{reason}; {remedy}\n").into_response(),
            }
        };
        *response.status_mut() = self.status;
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Empty: [`super::guard`] takes the problem out and answers it.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        Self::database(&error.to_string())
    }
}

impl From<ArchiveError> for Problem {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Self::not_found("the archive does not hold this picture any more")
            }
            error => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("the archive cannot read this picture: {error}"),
                "see that the disk is well",
            ),
        }
    }
}

impl From<askama::Error> for Problem {
    fn from(error: askama::Error) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the page cannot be written: {error}"),
            "report this with the version of Hilum",
        )
    }
}

impl From<PathRejection> for Problem {
    fn from(_: PathRejection) -> Self {
        Self::not_found("this path is not valid")
    }
}

/// The answer to unknown paths.
pub(super) async fn not_found() -> Problem {
    Problem::not_found("no page has this path")
}
