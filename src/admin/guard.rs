//! The checks that every request passes, and the headers that every answer carries.

use std::{net::IpAddr, time::Duration};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::timeout;

use super::problem::Problem;

/// Longest time for one answer.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// No scripts, no frames, nothing from elsewhere, nothing kept.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (header::CACHE_CONTROL, "private, no-store"),
];

/// Refuses what may not be asked, limits the time of the rest, and answers every [`Problem`] in words.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut response = match refuse(&request) {
        Some(problem) => problem.into_response(),
        None => match timeout(RESPONSE_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem::database(&format!("no answer within {} s", RESPONSE_TIMEOUT.as_secs())).into_response(),
        },
    };
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        tracing::debug!(path, status = problem.status.as_u16(), reason = problem.reason, "HTTP request refused");
        response = problem.respond(&path);
    }
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refuse(request: &Request) -> Option<Problem> {
    if !names_this_machine(request) {
        return Some(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host header does not name this machine; a page of another name may not read this one",
            "ask for localhost, 127.0.0.1 or [::1]; from another machine, through an SSH tunnel",
        ));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Some(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{} is not possible, nothing can be changed here", request.method()),
            "use GET to read; use the hilum command to change something",
        ));
    }
    if has_body(request.headers()) {
        return Some(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request has a body, and nothing here takes one",
            "send the request without a body",
        ));
    }
    None
}

/// Whether the request is meant for a loopback name, against DNS rebinding: a hostile site that makes its own name
/// resolve to 127.0.0.1 still sends that name.
fn names_this_machine(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_loopback) && request.uri().authority().is_none_or(|host| is_loopback(host.as_str()))
}

fn is_loopback(authority: &str) -> bool {
    let Ok(parsed) = authority.parse::<Authority>() else { return false };
    let host = parsed.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    !authority.contains('@')
        && (host.eq_ignore_ascii_case("localhost")
            || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()))
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("localhost", true)]
    #[case("LOCALHOST:8088", true)]
    #[case("127.0.0.1", true)]
    #[case("127.0.0.1:8088", true)]
    #[case("[::1]", true)]
    #[case("[::1]:8088", true)]
    #[case("", false)]
    #[case("example.org", false)]
    #[case("example.org:8088", false)]
    #[case("localhost.example.org", false)]
    #[case("127.0.0.1.example.org", false)]
    #[case("localhost@example.org", false)]
    #[case("example.org@localhost", false)]
    #[case("10.0.0.1", false)]
    #[case("0.0.0.0", false)]
    #[case("[2001:db8::1]", false)]
    #[case("localhost/example.org", false)]
    fn only_loopback_names_are_ours(#[case] host: &str, #[case] ours: bool) {
        assert_eq!(is_loopback(host), ours);
    }
}
