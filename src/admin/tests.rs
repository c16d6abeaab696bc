use std::{net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use uuid::Uuid;

use super::{findings::FindingsView, pages, view, *};
use crate::{
    archive::{DiskGuard, DiskLines, ImplementationIds},
    db::{
        delivery,
        destination::DestinationState,
        instance,
        managed::{ManagedPostgres, ManagedPostgresOptions},
        refusal::{CountedRefusal, RefusalRow},
        result, run,
        status::{DeliveryRow, RunFindings, RunRow, WorkupRow},
        testing, workup,
    },
    report::samples,
    types::{
        BundleStatus, CxrAnalysis, Decision, LateImages, NotAnalysed, ObjectHeader, ObjectOrigin, ReasonCode, Refusal,
        RefusalKey, RefusalKind, RunOutcome, RunRecord, Sha256Digest, StoredObject, UNTRAINED_NOTICE, Uid,
    },
};

const STUDY: &str = "1.2.826.0.1.3680043.8.498.77";

// --- a listener and a client ---------------------------------------------------------------------------------------

struct Running {
    address: SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<io::Result<()>>,
    metrics: Arc<Metrics>,
    archive: Archive,
    _folder: TempDir,
}

fn ids() -> ImplementationIds {
    ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".to_owned() }
}

fn absent_postgres() -> Db {
    Db::connect_lazy("postgres:///hilum?host=/nowhere-at-all&user=hilum", 1).unwrap()
}

/// A disk that has room when it has more than `stop_bytes`.
fn disk(stop_bytes: u64) -> Arc<DiskGuard> {
    let archive = Archive::open(&std::env::temp_dir().join("hilum-admin-tests"), ids(), 0).unwrap();
    Arc::new(DiskGuard::new(archive, DiskLines { stop_bytes, resume_bytes: stop_bytes }))
}

async fn start(db: Db, readiness: Readiness) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let archive = Archive::open(folder.path(), ids(), 0).unwrap();
    let metrics = Arc::new(Metrics::new());
    let state = AdminState {
        db,
        archive: archive.clone(),
        metrics: Arc::clone(&metrics),
        readiness,
        node_name: "test-node".to_owned(),
        version: "9.8.7".to_owned(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(listener, state, shutdown.clone()));
    Running { address, shutdown, server, metrics, archive, _folder: folder }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// Sends `request` as it is and reads until the server closes.
async fn exchange(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer with a header");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: bytes[end + 4..].to_vec() }
}

impl Running {
    async fn get(&self, path: &str) -> Answer {
        exchange(self.address, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }
}

// --- without Postgres ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn health_needs_nothing_and_shutdown_ends_the_listener() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    let answer = running.get("/healthz").await;
    assert_eq!((answer.status, answer.text()), (200, "ok\n"));
    let address = running.address;
    running.stop().await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn an_idle_or_half_asked_connection_does_not_hold_up_the_shutdown() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    let _idle = TcpStream::connect(running.address).await.unwrap();
    let mut half = TcpStream::connect(running.address).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    assert_eq!(running.get("/healthz").await.status, 200);
    let begun = std::time::Instant::now();
    running.stop().await;
    assert!(begun.elapsed() < SHUTDOWN_GRACE + Duration::from_secs(2));
}

#[tokio::test]
async fn without_postgres_pages_and_json_say_that_receiving_goes_on() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    for path in ["/", "/studies/1.2.3", "/results/00000000-0000-0000-0000-000000000000/preview.png"] {
        let page = running.get(path).await;
        assert_eq!(page.status, 503, "{path}");
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
        assert!(page.text().contains("Receiving goes on"), "{}", page.text());
        assert!(page.text().contains("http-equiv=\"refresh\""), "the page comes back by itself");
        assert!(page.text().contains("RESEARCH USE ONLY"));
    }
    for path in ["/api/studies", "/api/studies/1.2.3", "/api/runs", "/api/backlog"] {
        let answer = running.get(path).await;
        assert_eq!(answer.status, 503, "{path}");
        let json = answer.json();
        assert_eq!((json["status"].as_u64(), json["request"].as_str()), (Some(503), Some(path)));
        assert!(json["reason"].as_str().unwrap().contains("Receiving goes on"), "{json}");
        assert!(json["remedy"].as_str().unwrap().contains("see that Postgres runs"), "{json}");
    }
    running.stop().await;
}

#[tokio::test]
async fn metrics_are_served_without_postgres_and_know_the_free_disk() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    running.metrics.set_deliveries_waiting(3);
    let answer = running.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(answer.text().ends_with("# EOF\n"));
    assert!(answer.text().contains("hilum_deliveries_waiting 3\n"), "what was known stays");
    let free = answer.text().lines().find_map(|line| line.strip_prefix("hilum_archive_free_bytes ")).unwrap();
    assert!(free.parse::<u64>().unwrap() > 0);
    running.stop().await;
}

#[tokio::test]
async fn readiness_names_every_check_and_fails_with_any() {
    let infer_is_up = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = Arc::clone(&infer_is_up);
    let readiness = Readiness::new(disk(u64::MAX)).with("infer_process", move || {
        if flag.load(std::sync::atomic::Ordering::Relaxed) {
            CheckOutcome::passed("the inference process runs")
        } else {
            CheckOutcome::failed("the inference process died; it is restarted in 4 s")
        }
    });
    let running = start(absent_postgres(), readiness).await;
    for (up, words) in
        [(true, "the inference process runs"), (false, "the inference process died; it is restarted in 4 s")]
    {
        infer_is_up.store(up, std::sync::atomic::Ordering::Relaxed);
        let answer = running.get("/readyz").await;
        assert_eq!(answer.status, 503);
        let json = answer.json();
        assert_eq!(json["ready"], false);
        let checks = json["checks"].as_array().unwrap();
        let names: Vec<&str> = checks.iter().map(|check| check["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["postgres", "schema", "free_disk", "infer_process"]);
        assert!(checks[0]["words"].as_str().unwrap().contains("receiving goes on"), "{json}");
        assert_eq!(checks[1]["passed"], false);
        assert!(checks[2]["words"].as_str().unwrap().contains("make room"), "{json}");
        assert_eq!(checks[3], json!({ "name": "infer_process", "passed": up, "words": words }));
    }
    running.stop().await;
}

#[tokio::test]
async fn only_loopback_names_are_answered() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    let port = running.address.port();
    for host in ["localhost", &format!("localhost:{port}"), &format!("127.0.0.1:{port}"), "[::1]:9"] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        assert_eq!(exchange(running.address, &request).await.status, 200, "{host}");
    }
    let rebound = format!("rebound.example:{port}");
    for head in [
        format!("Host: {rebound}\r\n"),
        "Host: 10.0.0.1\r\n".to_owned(),
        "Host: \r\n".to_owned(),
        String::new(),
        format!("Host: localhost\r\nHost: {rebound}\r\n"),
    ] {
        for path in ["/", "/healthz", "/metrics", "/api/runs", "/style.css", "/nothing"] {
            let request = format!("GET {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n");
            let answer = exchange(running.address, &request).await;
            assert_eq!(answer.status, 421, "{head}{path}");
            assert!(answer.text().contains("does not name this machine"));
        }
    }
    let absolute = format!("GET http://{rebound}/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(exchange(running.address, &absolute).await.status, 421);
    running.stop().await;
}

#[tokio::test]
async fn nothing_but_reading_is_possible() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = exchange(running.address, &request).await;
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    let head = "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = exchange(running.address, head).await;
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    for body in ["Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"] {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{body}");
        assert_eq!(exchange(running.address, &request).await.status, 413, "{body}");
    }
    running.stop().await;
}

#[tokio::test]
async fn every_answer_forbids_scripts_frames_and_caching() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    for path in ["/", "/healthz", "/readyz", "/metrics", "/style.css", "/icon.svg", "/api/runs", "/nothing"] {
        let answer = running.get(path).await;
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'self'; img-src 'self';"), "{policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.header("cache-control"), Some("private, no-store"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    }
    assert_eq!(running.get("/style.css").await.header("content-type"), Some("text/css; charset=utf-8"));
    assert_eq!(running.get("/icon.svg").await.header("content-type"), Some("image/svg+xml"));
    running.stop().await;
}

#[tokio::test]
async fn unknown_paths_are_explained_and_escaped() {
    let running = start(absent_postgres(), Readiness::new(disk(0))).await;
    assert_eq!(running.get("/nothing<script>").await.status, 400, "no markup in a request line");
    let page = running.get("/nothing&'x'").await;
    assert_eq!(page.status, 404);
    assert!(page.text().contains("<code>/nothing&#38;&#39;x&#39;</code>"), "{}", page.text());
    assert!(!page.text().contains("http-equiv=\"refresh\""), "nothing will ever be here");
    let json = running.get("/api/nothing").await.json();
    assert_eq!(json["request"], "/api/nothing");
    assert_eq!(json["reason"], "no page has this path");
    for (path, reason) in [
        ("/studies/not-a-uid", "malformed"),
        ("/studies/%ff", "not valid"),
        ("/studies/..%2f..%2fetc%2fpasswd", "malformed"),
        ("/results/1/preview.png", "not valid"),
    ] {
        let answer = running.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains(reason), "{path}: {}", answer.text());
    }
    let long = running.get(&format!("/{}", "a".repeat(3000))).await;
    assert!(long.status == 404 && !long.text().contains(&"a".repeat(201)));
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_trickles_its_header_is_cut_off_and_leaves_its_place() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // One place: the second client is served only when the first has been cut off.
    let listener = LimitedListener::with_limits(listener, 1, Duration::from_millis(400));
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(api::health))).await });
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    let trickle = tokio::spawn(async move {
        let begun = std::time::Instant::now();
        let mut sent = 0;
        // Until the server has closed: then a write fails.
        while slow.write_all(b"X-Slow: yes\r\n").await.is_ok() && begun.elapsed() < Duration::from_secs(10) {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        (sent, begun.elapsed())
    });
    let answer = exchange(address, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert_eq!(answer.status, 200);
    let (sent, lasted) = trickle.await.unwrap();
    assert!(sent > 1 && lasted < Duration::from_secs(5), "{sent} lines in {lasted:?}");
    server.abort();
}

#[tokio::test]
async fn a_connection_in_use_is_kept_alive() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listener = LimitedListener::with_limits(listener, 1, Duration::from_millis(600));
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(api::health))).await });
    let mut stream = TcpStream::connect(address).await.unwrap();
    for _ in 0..5 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed although in use");
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    server.abort();
}

// --- pages from hand-made rows -------------------------------------------------------------------------------------

fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_795_340_000 + second).unwrap()
}

fn workup_row(state: &str) -> WorkupRow {
    WorkupRow {
        id: Uuid::from_u128(1),
        study_instance_uid: STUDY.to_owned(),
        local_ae_title: "HILUM".to_owned(),
        calling_ae_title: "<b>CT1</b>".to_owned(),
        state: state.to_owned(),
        state_words: "route `chest`".to_owned(),
        revision: 2,
        route_name: Some("chest".to_owned()),
        modalities: vec!["CR".to_owned(), "DX".to_owned()],
        object_count: 2,
        last_object_at: at(0),
    }
}

fn run_row(state: &str, bundle_status: Option<&str>) -> RunRow {
    RunRow {
        id: Uuid::from_u128(2),
        workup_id: Uuid::from_u128(1),
        study_instance_uid: STUDY.to_owned(),
        revision: 2,
        bundle: "cxr".to_owned(),
        role: "live".to_owned(),
        bundle_status: bundle_status.map(str::to_owned),
        state: state.to_owned(),
        reason: (state == "parked").then(|| "crash".to_owned()),
        words: "1 image(s) analysed, 0 left out".to_owned(),
        attempt: 1,
        maximum_attempts: 3,
        queued_at: at(1),
        finished_at: Some(at(5)),
        stage_milliseconds: Some(json!({ "decode": 210.4, "classify": 1789.6 })),
    }
}

fn delivery_row(destination: Option<&str>, state: Option<&str>) -> DeliveryRow {
    DeliveryRow {
        result_id: Uuid::from_u128(3),
        run_id: Uuid::from_u128(2),
        study_instance_uid: STUDY.to_owned(),
        kind: "sc".to_owned(),
        sop_instance_uid: "2.25.42".to_owned(),
        archive_key: "results/2026/11/22/09/secret.dcm".to_owned(),
        preview_key: Some("results/2026/11/22/09/secret.png".to_owned()),
        destination: destination.map(str::to_owned),
        state: state.map(str::to_owned),
        attempts: Some(4),
        last_status: Some(0xA700),
        last_words: Some("out of resources".to_owned()),
        next_attempt_at: Some(at(60)),
        delivery_id: destination.map(|_| Uuid::from_u128(4)),
        chain: destination.map(|_| "sc0".to_owned()),
        rank: destination.map(|_| 0),
        commitment: (state == Some("delivered")).then(|| "failed".to_owned()),
        commitment_words: None,
    }
}

fn status_page(runs: Vec<RunRow>) -> pages::StatusPage {
    let runs: Vec<view::RunView> = runs.into_iter().map(Into::into).collect();
    pages::StatusPage {
        node_name: "test-node".to_owned(),
        version: "9.8.7".to_owned(),
        now: view::Moment::new(at(9)),
        untrained: runs.iter().any(view::RunView::is_untrained),
        checks: Vec::new(),
        backlog: view::BacklogView::new(Backlog { runs_parked: 1, ..Backlog::default() }, Some(3 << 30)),
        studies: vec![workup_row("analysing").into()],
        runs,
        trials: Vec::new(),
        destinations: view::by_destination(vec![
            delivery_row(Some("PACS"), Some("waiting")),
            delivery_row(Some("ARCHIVE"), Some("dead")),
            delivery_row(None, None),
        ]),
        failing: vec![
            DestinationState {
                destination: "PACS".to_owned(),
                state: "open".to_owned(),
                failures: 7,
                since: at(5),
                next_probe_at: Some(at(90)),
                words: "connection refused".to_owned(),
            }
            .into(),
        ],
        refusals: refusal::causes(vec![RefusalRow {
            id: 12,
            kind: "association".to_owned(),
            reason: "calling_ae_title".to_owned(),
            peer_address: "192.0.2.7".to_owned(),
            calling_ae_title: "<img src=x onerror=alert(1)>".to_owned(),
            called_ae_title: "HILUM".to_owned(),
            sop_class_uid: String::new(),
            expected: "a configured peer".to_owned(),
            received: "calling AE title STRANGER".to_owned(),
            remedy: "hilum peer add STRANGER".to_owned(),
            harmless: false,
            example: None,
            count: 3,
            first_at: at(3),
            last_at: at(3),
            mended: false,
        }])
        .into_iter()
        .filter_map(RefusalView::new)
        .collect(),
    }
}

fn render(page: &impl askama::Template) -> String {
    page.render().unwrap()
}

#[test]
fn the_status_page_says_every_state_in_words() {
    let page = render(&status_page(vec![run_row("parked", None)]));
    for expected in [
        "being analysed",
        "parked: a person has to look",
        "<code>crash</code>",
        "1 of 3",
        "2.00 s",
        "To PACS",
        "To ARCHIVE",
        "Results without a destination",
        "1 given up: a person has to look",
        "left alone until it answers",
        "7 failures in a row",
        "<code>0xA700</code> out of resources",
        "3.0 GiB",
        "hilum peer add STRANGER",
        "RESEARCH USE ONLY",
        &format!("href=\"/studies/{STUDY}\""),
        "<time datetime=\"2026-11-22T09:33:20Z\">2026-11-22 09:33:20 UTC</time>",
    ] {
        assert!(page.contains(expected), "{expected} is missing in {page}");
    }
    assert!(!page.contains(UNTRAINED_NOTICE));
    assert!(!page.contains("secret"), "archive keys stay inside");
}

#[test]
fn what_a_stranger_sends_is_text_and_never_markup() {
    let page = render(&status_page(Vec::new()));
    assert!(!page.contains("<img src=x") && !page.contains("<b>CT1"), "{page}");
    assert!(page.contains("&#60;img src=x onerror=alert(1)&#62;"), "{page}");
}

#[test]
fn only_a_waiting_delivery_has_a_next_attempt() {
    assert!(view::DeliveryView::from(delivery_row(Some("PACS"), Some("waiting"))).next_attempt_at.is_some());
    for state in ["sending", "delivered", "dead", "cancelled", "spare", "replaced", "unneeded"] {
        assert!(view::DeliveryView::from(delivery_row(Some("PACS"), Some(state))).next_attempt_at.is_none(), "{state}");
    }
}

#[test]
fn every_state_of_the_schema_has_words_of_its_own() {
    let schema =
        [include_str!("../../migrations/0001_initial.sql"), include_str!("../../migrations/0019_delivery.sql")]
            .concat();
    let mut seen = 0;
    for check in schema.split("check (state in").skip(1) {
        for state in check.split(')').next().unwrap().split('\'').skip(1).step_by(2) {
            let run = view::RunView::from(run_row(state, None));
            assert!(matches!(run.state_words(), std::borrow::Cow::Borrowed(_)), "{state} has no words");
            seen += 1;
        }
    }
    assert!(seen >= 18, "{seen}");
}

fn findings(status: BundleStatus, outcome: RunOutcome) -> RunFindings {
    RunFindings { bundle: samples::bundle(status), computed_with: Vec::new(), outcome }
}

fn analysed(decision: Decision) -> RunOutcome {
    let mut image = samples::analysis(samples::image("1.2.3.4", "DX"));
    image.decision = decision;
    RunOutcome::Analysed(CxrAnalysis { images: vec![image], excluded: Vec::new() })
}

fn study_page(state: &str, findings: &RunFindings) -> String {
    let mut run = view::RunView::from(run_row(state, None));
    run.findings = Some(FindingsView::from(findings));
    let study = view::StudyDetail {
        study_instance_uid: STUDY.to_owned(),
        workups: vec![view::WorkupDetail {
            study: workup_row("answered").into(),
            runs: vec![run],
            deliveries: vec![
                delivery_row(Some("PACS"), Some("delivered")).into(),
                delivery_row(Some("ARCHIVE"), Some("waiting")).into(),
            ],
            events: Vec::new(),
        }],
    };
    render(&pages::StudyPage {
        node_name: "test-node".to_owned(),
        version: "9.8.7".to_owned(),
        now: view::Moment::new(at(9)),
        untrained: study.is_untrained(),
        study,
    })
}

#[test]
fn scores_are_model_outputs_with_every_member_and_the_picture_once() {
    let page = study_page("succeeded", &findings(BundleStatus::Unvalidated, analysed(Decision::Present)));
    for expected in [
        "model output for class COVID-19 (uncalibrated)",
        "model output for class Normal (uncalibrated)",
        "87.3 %",
        "88.1 %",
        "86.5 %",
        "12.7 %",
        "is at or above the operating threshold of 50.0 %",
        "withheld (undetermined): these weights are not validated",
        "lung_mask.area",
        "failed, reported only",
        "input.view.not_frontal",
        "NOT FOR DIAGNOSTIC USE",
    ] {
        assert!(page.contains(expected), "{expected} is missing in {page}");
    }
    let picture = format!("<img src=\"/results/{}/preview.png\"", Uuid::from_u128(3));
    assert_eq!(page.matches(&picture).count(), 1, "one picture for two destinations");
    assert!(!page.contains(UNTRAINED_NOTICE));
}

#[test]
fn the_grey_zone_is_named_and_says_why_nothing_is_decided() {
    let mut findings = findings(BundleStatus::Validated, analysed(Decision::Undetermined));
    findings.bundle.grey_zone = Some([0.4, 0.9]);
    let page = study_page("succeeded", &findings);
    for expected in [
        "outputs from 40.0 % to below 90.0 % decide nothing",
        "undetermined: the output lies in the grey zone, 40.0 % to below 90.0 %",
    ] {
        assert!(page.contains(expected), "{expected} is missing in {page}");
    }
}

#[test]
fn heat_beside_the_lungs_is_named_on_the_page_and_in_json() {
    let caution = "Less than half of the heat lies in the lungs: the output may rest on something else.";
    let with = |share: Option<f64>| {
        let mut image = samples::analysis(samples::image("1.2.3.4", "DX"));
        image.lung_heat_fraction = share;
        let outcome = RunOutcome::Analysed(CxrAnalysis { images: vec![image], excluded: Vec::new() });
        let findings = findings(BundleStatus::Unvalidated, outcome);
        let json = serde_json::to_value(FindingsView::from(&findings)).unwrap();
        (study_page("succeeded", &findings), json["images"][0].clone())
    };
    let (page, json) = with(Some(0.123));
    assert!(page.contains("12.3 % of the heat") && page.contains(caution), "{page}");
    assert_eq!((&json["lung_heat_fraction"], &json["heat_caution"]), (&json!(0.123), &json!(caution)));
    let (page, json) = with(Some(0.625));
    assert!(page.contains("62.5 % of the heat") && !page.contains(caution), "{page}");
    assert_eq!((&json["lung_heat_fraction"], &json["heat_caution"]), (&json!(0.625), &Value::Null));
    let (page, json) = with(None);
    assert!(!page.contains("of the heat") && !page.contains(caution), "{page}");
    assert_eq!(json["lung_heat_fraction"], Value::Null);
}

#[test]
fn no_page_uses_a_forbidden_word() {
    for status in [BundleStatus::Untrained, BundleStatus::Unvalidated, BundleStatus::Validated] {
        for decision in [Decision::Present, Decision::Absent, Decision::Undetermined] {
            let page = study_page("succeeded", &findings(status, analysed(decision))).to_lowercase();
            for word in ["positive", "detected", "probability of", "infected"] {
                assert!(!page.contains(word), "{word} in {page}");
            }
        }
    }
}

#[test]
fn only_validated_weights_decide_and_untrained_ones_announce_themselves() {
    let untrained = study_page("succeeded", &findings(BundleStatus::Untrained, analysed(Decision::Present)));
    assert_eq!(untrained.matches(UNTRAINED_NOTICE).count(), 2, "at the top and at the run");
    assert!(untrained.contains("withheld (undetermined): these weights are not trained"));
    let validated = study_page("succeeded", &findings(BundleStatus::Validated, analysed(Decision::Absent)));
    assert!(validated.contains("absent, at the operating threshold") && !validated.contains("withheld"));
    let notice = render(&status_page(vec![run_row("succeeded", Some("untrained"))]));
    assert_eq!(notice.matches(UNTRAINED_NOTICE).count(), 1);
}

#[test]
fn lesions_that_networks_outlined_are_listed_with_rule_and_decision() {
    let page = |record: &RunRecord| {
        study_page(
            "succeeded",
            &RunFindings { bundle: record.bundle.clone(), computed_with: Vec::new(), outcome: record.outcome.clone() },
        )
    };
    let sources = samples::ct_sources();
    let outlined = page(&samples::ct_outlined(BundleStatus::Untrained, &sources));
    for expected in [
        "Outlined by networks, class Lesion: 30.2 ml in all; 0.0 ml in the right lung (0.0 % of it), 30.2 ml in the left",
        "on 2 consecutive slices of the scan",
        "The rule is satisfied first by 2 slice(s), 1 to 2 from the feet, left back quadrant of the image.",
        "Decision withheld (undetermined): these weights are not trained.",
        "Member own failed: out of memory.",
        "and, dashed, of what networks outlined as lesions",
        UNTRAINED_NOTICE,
    ] {
        assert!(outlined.contains(expected), "{expected} is missing in {outlined}");
    }
    for word in ["positive", "detected", "probability of", "infected"] {
        assert!(!outlined.to_lowercase().contains(word), "{word} in {outlined}");
    }
    let measured = page(&samples::ct_measured(BundleStatus::Unvalidated, &sources));
    assert!(measured.contains("outlines of the lungs") && !measured.contains("dashed"), "{measured}");
}

#[test]
fn a_refused_input_shows_its_reason_and_no_score() {
    let outcome = RunOutcome::NotAnalysed(NotAnalysed {
        reason: ReasonCode::ViewNotFrontal,
        words: "the header says LL, PA or AP expected".to_owned(),
        sources: vec![samples::image("1.2.3.4", "DX")],
    });
    let page = study_page("not_analysed", &findings(BundleStatus::Unvalidated, outcome));
    assert!(page.contains("the header says LL, PA or AP expected (<code>input.view.not_frontal</code>)"), "{page}");
    assert!(page.contains("No score is shown") && !page.contains("Model output"), "{page}");
}

#[test]
fn a_failed_member_and_a_missing_number_are_said() {
    let mut image = samples::analysis(samples::image("1.2.3.4", "DX"));
    image.members[1].probabilities.clear();
    image.members[1].failure = Some("weights file truncated".to_owned());
    image.fused[0] = f64::NAN;
    let outcome = RunOutcome::Analysed(CxrAnalysis { images: vec![image], excluded: Vec::new() });
    let findings = findings(BundleStatus::Unvalidated, outcome);
    let page = study_page("succeeded", &findings);
    assert!(page.contains("Member vgg16 failed: weights file truncated"), "{page}");
    assert!(page.contains("no value") && page.contains("not comparable with the operating threshold"), "{page}");
    let json = serde_json::to_value(FindingsView::from(&findings)).unwrap();
    assert_eq!(json["images"][0]["outputs"][0]["ensemble"], Value::Null);
    assert_eq!(json["images"][0]["outputs"][0]["members"], json!([0.881, null]));
}

// --- with Postgres -------------------------------------------------------------------------------------------------

const PATIENT: [&str; 4] = ["DOE^JANE", "PID-4711", "19610203", "ACC-99"];

fn object() -> StoredObject {
    let uid = |text: &str| Uid::new(text).unwrap();
    StoredObject {
        archive_key: "objects/2026/11/22/09/a.dcm".to_owned(),
        sha256: Sha256Digest::of(b"object"),
        size_bytes: 10,
        transfer_syntax_uid: uid("1.2.840.10008.1.2.1"),
        origin: ObjectOrigin {
            calling_ae_title: "CR1".parse().unwrap(),
            called_ae_title: "HILUM".parse().unwrap(),
            peer_address: "192.0.2.5".parse().unwrap(),
            association_id: Uuid::now_v7(),
            received_at: OffsetDateTime::now_utc(),
        },
        header: ObjectHeader {
            sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.1.1"),
            series_instance_uid: uid("1.2.3"),
            modality: Some("DX".to_owned()),
            patient_id: Some(PATIENT[1].to_owned()),
            patient_name: Some(PATIENT[0].to_owned()),
            patient_birth_date: Some(PATIENT[2].to_owned()),
            patient_sex: Some("F".to_owned()),
            accession_number: Some(PATIENT[3].to_owned()),
            study_date: Some("20261122".to_owned()),
            study_description: Some(PATIENT[0].to_owned()),
            ..testing::header("1.2.3.4", STUDY)
        },
    }
}

/// A study that was received, analysed and half delivered, and an association that was refused. Returns the result.
async fn tell_a_story(db: &Db, archive: &Archive, png: &[u8]) -> Uuid {
    let mut tx = db.begin().await.unwrap();
    let patience = instance::Patience {
        quiet: Duration::from_secs(1),
        maximum_wait: Duration::from_secs(9),
        late_images: LateImages::NewRevision,
        late_images_within: None,
    };
    let own = Uid::new("2.25.9").unwrap();
    let (_, due) = instance::index(&mut tx, &[object()], &own, |_| patience).await.unwrap();
    let workup_id = due[0].workup_id;
    let facts = workup::lock_facts(&mut tx, workup_id).await.unwrap().unwrap();
    let words = "no further object for 1 s".to_owned();
    let evidence = workup::Evidence { kind: "released", words, data: json!({}) };
    assert!(workup::complete(&mut tx, &facts, &evidence).await.unwrap());
    assert!(workup::analysing(&mut tx, workup_id, 1, "chest").await.unwrap());
    let new = run::NewRun {
        workup_id,
        revision: 1,
        bundle: "cxr",
        role: crate::types::RunRole::Live,
        pipeline: crate::types::Pipeline::ChestRadiograph,
        priority: crate::types::RunPriority::Routine,
        destinations: &["PACS".to_owned()],
        rules: &[],
        maximum_attempts: 3,
    };
    let run_id = run::insert(&mut tx, &new).await.unwrap().unwrap();
    let run::Claim::Claimed(claimed) = run::claim(&mut tx, run_id, "node").await.unwrap() else {
        panic!("not claimed")
    };
    let finished = run::Finished {
        outcome: &analysed(Decision::Undetermined),
        bundle: &samples::bundle(BundleStatus::Untrained),
        configuration_sha256: Sha256Digest::of(b"configuration"),
        result_key: Sha256Digest::of(b"key"),
        stage_milliseconds: &[("decode".to_owned(), 120.0), ("classify".to_owned(), 900.0)],
        computed_with: &["resnet50 cpu float32".to_owned()],
        masks: None,
    };
    assert!(run::finish(&mut tx, run_id, claimed.attempt, &finished).await.unwrap().is_some());
    let uid = |text: &str| Uid::new(text).unwrap();
    let key = archive.store_result(png, run_id, OffsetDateTime::now_utc(), "sc-0.png").unwrap();
    let new = result::NewResult {
        run_id,
        kind: "sc",
        ordinal: 0,
        sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.7"),
        sop_instance_uid: uid("2.25.42"),
        series_instance_uid: uid("2.25.43"),
        transfer_syntax_uid: uid("1.2.840.10008.1.2.1"),
        archive_key: "results/2026/11/22/09/r.dcm".to_owned(),
        preview_key: Some(key),
        sha256: Sha256Digest::of(b"result"),
        size_bytes: 5,
        device_uid: own,
    };
    let result_id = result::insert_or_existing(&mut tx, &new).await.unwrap();
    let new =
        delivery::NewDelivery { result_id, destination: "PACS", send_order: 0, chain: "sc0", rank: 0, urgent: false };
    delivery::insert(&mut tx, &new).await.unwrap();
    let due = delivery::due(&mut tx, "PACS", 1).await.unwrap();
    let attempt = delivery::start(&mut tx, &due[0]).await.unwrap().unwrap();
    let later = OffsetDateTime::now_utc() + Duration::from_mins(10);
    let answer =
        delivery::Answer { attempt, status: Some(0xA700), words: "out of resources", not_taken: false, broke: false };
    assert!(delivery::retry(&mut tx, &due[0], answer, later).await.unwrap());
    let now = OffsetDateTime::now_utc();
    let refused = Refusal {
        key: RefusalKey {
            kind: RefusalKind::Association,
            reason: "calling_ae_title",
            peer_address: "192.0.2.7".parse().unwrap(),
            calling_ae_title: "STRANGER".to_owned(),
            called_ae_title: "HILUM".to_owned(),
            sop_class_uid: String::new(),
        },
        expected: "a configured peer".to_owned(),
        received: "calling AE title STRANGER".to_owned(),
        remedy: "hilum peer add STRANGER".to_owned(),
        harmless: false,
        example: None,
        at: now,
    };
    refusal::record(&mut tx, "test-node", &[CountedRefusal { last: refused, count: 1, first_at: now }]).await.unwrap();
    tx.commit().await.unwrap();
    result_id
}

fn sample_png() -> Vec<u8> {
    let picture =
        image::RgbImage::from_fn(320, 280, |x, y| image::Rgb([(x * 255 / 320) as u8, (y * 255 / 280) as u8, 90]));
    let mut bytes = io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[tokio::test]
async fn a_study_is_shown_from_the_database_without_its_patient() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("hilum-test-admin-").tempdir_in("/tmp").unwrap();
    fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let postgres = ManagedPostgres::start(&ManagedPostgresOptions::throw_away(folder.path())).await.unwrap();
    let db = Db::connect_lazy(&postgres.connection_url(), 4).unwrap();

    let running = start(db.clone(), Readiness::new(disk(0))).await;
    let answer = running.get("/readyz").await;
    assert_eq!(answer.status, 503);
    assert!(answer.json()["checks"][1]["words"].as_str().unwrap().contains("hilum migrate"), "{}", answer.text());
    assert_eq!(running.get("/").await.status, 503, "an empty database has no pages");

    // What a page asks ends in Postgres too when its patience does.
    let pages = Db::connect_lazy_limited(&postgres.connection_url(), 1, Duration::from_millis(50)).unwrap();
    let ended = sqlx::query("select pg_sleep(60)").execute(&mut *pages.acquire().await.unwrap()).await.unwrap_err();
    assert!(ended.to_string().contains("statement timeout"), "{ended}");

    db.migrate().await.unwrap();
    let ready = running.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (200, &json!(true)));
    let empty = running.get("/").await;
    assert!(empty.status == 200 && empty.text().contains("No study has arrived yet"), "{}", empty.text());

    let png = sample_png();
    let result_id = tell_a_story(&db, &running.archive, &png).await;

    let status = running.get("/").await;
    let study = running.get(&format!("/studies/{STUDY}")).await;
    let api_studies = running.get("/api/studies").await;
    let api_study = running.get(&format!("/api/studies/{STUDY}")).await;
    let api_runs = running.get("/api/runs").await;
    for answer in [&status, &study, &api_studies, &api_study, &api_runs] {
        assert_eq!(answer.status, 200);
        for identity in PATIENT {
            assert!(!answer.text().contains(identity), "{identity} in {}", answer.text());
        }
        assert!(!answer.text().contains("objects/2026") && !answer.text().contains("results/2026"), "archive keys");
    }
    for expected in ["STRANGER", "out of resources", "being analysed", UNTRAINED_NOTICE, "Free archive disk"] {
        assert!(status.text().contains(expected), "{expected} is missing in {}", status.text());
    }
    for expected in ["first object from CR1", "attempt 1 of 3 starts", "87.3 %", "model output for class COVID-19"] {
        assert!(study.text().contains(expected), "{expected} is missing in {}", study.text());
    }

    let workup = &api_study.json()["workups"][0];
    assert_eq!(workup["state"], "analysing");
    assert_eq!(workup["runs"][0]["findings"]["images"][0]["outputs"][0]["class"], "COVID-19");
    assert_eq!(workup["runs"][0]["stages"][0], json!({ "name": "decode", "milliseconds": 120.0 }));
    assert_eq!(workup["deliveries"][0]["last_status"], "0xA700");
    let ledger = &workup["deliveries"][0]["ledger"];
    assert_eq!((&ledger[0]["number"], &ledger[0]["status"]), (&json!(1), &json!("0xA700")));
    assert_eq!(ledger[0]["state"], "waiting");
    assert!(study.text().contains("to be tried again"), "{}", study.text());
    let api_deliveries = running.get("/api/deliveries").await.json();
    assert_eq!(api_deliveries[0]["ledger"], *ledger);
    assert_eq!(running.get("/api/destinations").await.json(), json!([]));
    let moment = workup["last_object_at"].as_str().unwrap();
    assert!(OffsetDateTime::parse(moment, &time::format_description::well_known::Rfc3339).is_ok(), "{moment}");
    assert_eq!(api_runs.json()[0]["bundle_status"], "untrained");
    assert!(api_runs.json()[0].get("findings").is_none());
    let backlog = running.get("/api/backlog").await.json();
    assert_eq!((&backlog["runs_open"], &backlog["deliveries_open"]), (&json!(0), &json!(1)));
    assert!(running.get("/metrics").await.text().contains("hilum_deliveries_waiting 1\n"));

    let preview = running.get(&format!("/results/{result_id}/preview.png")).await;
    assert_eq!((preview.status, preview.header("content-type")), (200, Some("image/png")));
    assert!(preview.body == png, "the bytes of the archive");
    assert_eq!(preview.header("cache-control"), Some("private, no-store"));
    let missing = running.get(&format!("/results/{}/preview.png", Uuid::now_v7())).await;
    assert!(missing.status == 404 && missing.text().contains("there is no such result"), "{}", missing.text());
    let absent = running.get("/studies/1.2.3.999").await;
    assert!(absent.status == 404 && absent.text().contains("no study with the UID 1.2.3.999"), "{}", absent.text());

    running.stop().await;
    db.close().await;
    postgres.stop().await.unwrap();
}
