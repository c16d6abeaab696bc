//! The checks of the node itself and of the peers that it calls.

use std::{fmt::Display, net::SocketAddr, time::Duration};

use serde_json::json;
use time::OffsetDateTime;
use tokio::task::JoinSet;

use super::super::{
    Address, echo,
    failure::Hinted,
    output::{bytes_text, count},
    site::default_calling,
    tls,
};
use super::http;
use crate::{
    app,
    config::Config,
    db::{Db, destination, status},
    dimse::{
        AssociationRequestor, NegotiatedContext, RequestorTimeouts, TlsClient, sop_class_name, transfer_syntax_name,
    },
    infer::pipeline::check_pipeline,
    nn::Bundle,
    report::{self, ResultForm},
    types::{AeTitle, CommitmentUse, Peer, Pipeline, Route, SiteConfig},
};

/// How long a peer may take for each step.
const PEER_PATIENCE: Duration = Duration::from_secs(5);
/// Peers that are called at the same time.
const CALLS_AT_ONCE: usize = 8;
/// How far this machine's clock and Postgres's may be apart.
const CLOCK_TOLERANCE: time::Duration = time::Duration::seconds(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ok,
    /// Worth knowing; nothing to mend.
    Note,
    Problem,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// What one check found; a problem has its remedy in its words.
#[derive(Debug)]
pub(super) struct Check {
    name: String,
    state: State,
    words: String,
}

impl Check {
    fn new(name: impl Into<String>, state: State, words: impl Display) -> Self {
        Self { name: name.into(), state, words: words.to_string() }
    }

    pub(super) fn ok(name: impl Into<String>, words: impl Display) -> Self {
        Self::new(name, State::Ok, words)
    }

    pub(super) fn note(name: impl Into<String>, words: impl Display) -> Self {
        Self::new(name, State::Note, words)
    }

    pub(super) fn problem(name: impl Into<String>, words: impl Display) -> Self {
        Self::new(name, State::Problem, words)
    }

    pub(super) fn is_problem(&self) -> bool {
        self.state == State::Problem
    }

    pub(super) fn line(&self) -> String {
        format!("{:<8} {}: {}", self.state.as_str(), self.name, self.words)
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        json!({ "name": self.name, "state": self.state.as_str(), "words": self.words })
    }
}

/// An error as a problem, with its hint.
pub(super) fn failed(name: &str, error: &anyhow::Error) -> Check {
    let hint = error.downcast_ref::<Hinted>().map(|hinted| format!("; {}", hinted.hint)).unwrap_or_default();
    Check::problem(name, format!("{error:#}{hint}"))
}

/// What can be looked at without Postgres: the running node and the archive's disk.
pub(super) async fn without_postgres(config: &Config) -> Vec<Check> {
    let mut checks = node(config).await;
    checks.push(archive(config));
    checks
}

/// The running node, by its own `/readyz`.
async fn node(config: &Config) -> Vec<Check> {
    let address = config.http.listen;
    let ready = match http::get_json(address, "/readyz").await {
        Ok(ready) => ready,
        Err(error) => {
            let remedy = "start the node with `hilum serve`, or name its configuration with --config";
            let dicom = on_this_machine(config.dicom.listen);
            let taken = match tokio::time::timeout(PEER_PATIENCE, tokio::net::TcpStream::connect(dicom)).await {
                Ok(Ok(_)) => format!("; yet something listens on its DICOM port {}", dicom.port()),
                _ => format!("; nothing listens on its DICOM port {} either", dicom.port()),
            };
            let words = format!("its status page at {address} does not answer ({error:#}){taken}; {remedy}");
            return vec![Check::problem("node", words)];
        }
    };
    let parts = ready["checks"].as_array().into_iter().flatten();
    let check = |part: &serde_json::Value| {
        let name = part["name"].as_str().unwrap_or("?").replace('_', " ");
        let words = part["words"].as_str().unwrap_or_default();
        let state = if part["passed"] == true { State::Ok } else { State::Problem };
        Check::new(format!("node, {name}"), state, words)
    };
    parts.map(check).collect()
}

/// Where a listener on every address can be reached from here.
fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let loopback: std::net::IpAddr =
        if listen.is_ipv6() { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() };
    SocketAddr::new(if listen.ip().is_unspecified() { loopback } else { listen.ip() }, listen.port())
}

fn archive(config: &Config) -> Check {
    let folder = config.node.data_dir.join("archive");
    if !folder.is_dir() {
        return Check::problem("archive", format!("there is none at `{}`; start the node once", folder.display()));
    }
    let minimum = config.archive.minimum_free_bytes.bytes();
    let free = app::open_archive(config).and_then(|archive| Ok(archive.free_bytes()?));
    match free {
        Ok(free) if free < minimum => Check::problem(
            "archive",
            format!(
                "{} free on its disk, objects are refused below {}; make room, or lower archive.minimum_free_bytes",
                bytes_text(free),
                bytes_text(minimum)
            ),
        ),
        Ok(free) => Check::ok("archive", format!("{} free on its disk", bytes_text(free))),
        Err(error) => failed("archive", &error),
    }
}

/// Postgres answers (or the caller would not be here); whether its clock is ours.
pub(super) async fn clock(db: &Db) -> Check {
    match db.now().await {
        Ok(theirs) => {
            let apart = (OffsetDateTime::now_utc() - theirs).abs();
            if apart > CLOCK_TOLERANCE {
                let words = format!("{:.0} s", apart.as_seconds_f64());
                Check::problem("clock", format!("this machine and Postgres are {words} apart; set both by NTP"))
            } else {
                Check::ok("postgres", "answers, its schema is this program's, and its clock agrees with ours")
            }
        }
        Err(error) => Check::problem("postgres", error),
    }
}

/// What administrators own.
pub(super) fn site(site: &SiteConfig) -> Vec<Check> {
    let mut checks: Vec<Check> = site.problems().iter().map(|problem| Check::problem("site", problem)).collect();
    if !site.local_aes.iter().any(|ae| ae.enabled) {
        checks.push(Check::problem("site", "no local AE is enabled; run `hilum local-ae add TITLE`"));
    }
    if !site.peers.iter().any(|peer| peer.may_store) {
        let words = "no peer may store; run `hilum peer add NAME --ae-title TITLE --host HOST --may-store`";
        checks.push(Check::problem("site", words));
    }
    if !site.routes.iter().any(|route| route.enabled) {
        checks.push(Check::note("site", "no route is enabled: studies are kept and not analysed"));
    }
    if checks.is_empty() {
        let words = format!(
            "{}, {}, {}",
            count(site.local_aes.len(), "local AE title"),
            count(site.peers.len(), "peer"),
            count(site.routes.len(), "route")
        );
        checks.push(Check::ok("site", words));
    }
    for destination in site.destinations.iter().filter(|destination| destination.commitment != CommitmentUse::Off) {
        let named = |peer: &&Peer| Some(&peer.name) == destination.peer.as_ref() && !peer.may_store;
        if let Some(peer) = site.peers.iter().find(named) {
            let words = format!(
                "destination `{}` asks peer `{}` to keep results, and that peer may not call this node: a report on an \
                 association of its own is turned away; if it reports so, give it `may_store` on its page or in the site file",
                destination.name, peer.name
            );
            checks.push(Check::note("site", words));
        }
    }
    checks
}

/// The bundles of the enabled routes: there, for the routes' pipelines, and their weights as the manifest says.
pub(super) async fn models(config: &Config, site: &SiteConfig) -> Vec<Check> {
    let mut names: Vec<&str> =
        site.routes.iter().filter(|route| route.enabled).flat_map(crate::types::Route::bundles).collect();
    names.sort_unstable();
    names.dedup();
    let mut checks = Vec::new();
    for name in names {
        let folder = config.inference.models_dir.join(name);
        let subject = format!("bundle `{name}`");
        let opened = tokio::task::spawn_blocking(move || Bundle::open(&folder)).await;
        let mismatch = |bundle: &Bundle| {
            let mut routes =
                site.routes.iter().filter(|route| route.enabled && route.bundles().any(|of_route| of_route == name));
            routes.find_map(|route| check_pipeline(bundle.manifest(), name, route.pipeline).err())
        };
        checks.push(match opened {
            Ok(Ok(bundle)) => mismatch(&bundle).map_or_else(
                || {
                    let version = &bundle.manifest().version;
                    Check::ok(subject.clone(), format!("version {version}, every digest is right"))
                },
                |mismatch| Check::problem(subject.clone(), mismatch),
            ),
            Ok(Err(error)) => Check::problem(
                subject,
                format!("{error}; install it, or let the route name another (`hilum model list`)"),
            ),
            Err(error) => Check::problem(subject, error),
        });
    }
    checks
}

/// Runs and deliveries that wait for a person.
pub(super) async fn backlog(db: &Db) -> Vec<Check> {
    let backlog = async { status::backlog(&mut *db.acquire().await?).await }.await;
    let backlog = match backlog {
        Ok(backlog) => backlog,
        Err(error) => return vec![Check::problem("open work", error)],
    };
    let mut checks = Vec::new();
    if backlog.runs_parked > 0 {
        let words = format!("{} parked; see `hilum runs`, mend the cause, `hilum run restart`", backlog.runs_parked);
        checks.push(Check::problem("runs", words));
    }
    if backlog.deliveries_dead > 0 {
        let words = format!("{} given up; see `hilum deliveries`", backlog.deliveries_dead);
        checks.push(Check::problem("deliveries", words));
    }
    if backlog.deliveries_not_committed > 0 {
        let words = format!(
            "{} delivered, and the destination does not promise to keep them; see `hilum deliveries`",
            backlog.deliveries_not_committed
        );
        checks.push(Check::problem("storage commitment", words));
    }
    match async { status::failing_networks(&mut *db.acquire().await?).await }.await {
        Ok(failing) => {
            for status::FailingNetwork { bundle, network, runs, words } in failing {
                let words = format!(
                    "it failed in {} in the last ten minutes, the last time because {words}; the others answered without it, and \
                     such runs decide nothing; look into the log, then run `hilum model verify {bundle}`",
                    count(usize::try_from(runs).unwrap_or(usize::MAX), "run")
                );
                checks.push(Check::problem(format!("network `{network}` of bundle `{bundle}`"), words));
            }
        }
        Err(error) => checks.push(Check::problem("networks", error)),
    }
    match async { destination::all(&mut *db.acquire().await?).await }.await {
        Ok(states) => {
            for state in states.iter().filter(|state| state.is_open()) {
                let words = format!("left alone after {} failures in a row: {}", state.failures, state.words);
                checks.push(Check::problem(format!("destination `{}`", state.destination), words));
            }
        }
        Err(error) => checks.push(Check::problem("destinations", error)),
    }
    if checks.is_empty() {
        checks.push(Check::ok("open work", "no run is parked, no delivery is given up"));
    }
    checks
}

/// One peer that is called.
struct Call {
    name: String,
    calling: AeTitle,
    called: AeTitle,
    address: Address,
    tls: Option<TlsClient>,
    /// What it must take as a destination: of each list one form. Empty for a peer that is none.
    forms: Vec<Vec<ResultForm>>,
}

/// Every peer with a port: TCP, association, C-ECHO; a destination must accept the SOP classes of results, too.
pub(super) async fn peers(config: &Config, site: &SiteConfig, only: Option<&str>) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut calls = Vec::new();
    for peer in site.peers.iter().filter(|peer| only.is_none_or(|name| name == peer.name)) {
        match call(config, site, peer) {
            Ok(call) => calls.push(call),
            Err(check) => checks.push(check),
        }
    }
    let mut running = JoinSet::new();
    for call in calls {
        if running.len() >= CALLS_AT_ONCE
            && let Some(Ok(check)) = running.join_next().await
        {
            checks.push(check);
        }
        running.spawn(verify(call));
    }
    checks.extend(running.join_all().await);
    checks.sort_by(|one, other| one.name.cmp(&other.name));
    checks
}

fn call(config: &Config, site: &SiteConfig, peer: &Peer) -> Result<Call, Check> {
    let subject = format!("peer `{}`", peer.name);
    let Some(port) = peer.port.filter(|_| peer.host != "*") else {
        return Err(Check::note(subject, "only calls us: it has no host and port to call"));
    };
    let destination = site.destinations.iter().find(|destination| destination.peer.as_ref() == Some(&peer.name));
    let calling = destination.and_then(|destination| destination.calling_ae_title.clone());
    let Some(calling) = calling.or_else(|| default_calling(site)) else {
        return Err(Check::problem(subject, "there is no AE title to call with; run `hilum local-ae add TITLE`"));
    };
    let tls = tls::client_for(config, peer).map_err(|error| failed(&subject, &error))?;
    let address = Address { host: peer.host.clone(), port };
    let forms = forms(site, peer);
    Ok(Call { name: subject, calling, called: peer.ae_title.clone(), address, tls, forms })
}

/// What is sent to a peer by the routes that send to it. A destination that no route names may get anything.
fn forms(site: &SiteConfig, peer: &Peer) -> Vec<Vec<ResultForm>> {
    let mut forms = Vec::new();
    for destination in site.destinations.iter().filter(|destination| destination.peer.as_ref() == Some(&peer.name)) {
        let sends = |route: &&Route| {
            let of_rules = route.rules.iter().flat_map(|rule| &rule.destinations);
            route.destinations.iter().chain(of_rules).any(|name| *name == destination.name)
        };
        let mut pipelines: Vec<Pipeline> = site.routes.iter().filter(sends).map(|route| route.pipeline).collect();
        if pipelines.is_empty() {
            pipelines.extend(Pipeline::ALL);
        }
        for form in pipelines.into_iter().flat_map(|pipeline| report::forms(&destination.results, pipeline)) {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
    }
    forms
}

async fn verify(call: Call) -> Check {
    let Call { name, calling, called, address, tls, forms } = call;
    let verified = match echo::verify(&calling, &called, &address, PEER_PATIENCE, tls.clone()).await {
        Ok(verified) => verified,
        Err(error) => return failed(&name, &error),
    };
    let words = echo::describe(&called, &address, &verified);
    if forms.is_empty() {
        return Check::ok(name, words);
    }
    match untaken_results(&calling, &called, &address, tls, &forms).await {
        Ok(untaken) if untaken.is_empty() => Check::ok(name, format!("{words}; takes results")),
        Ok(untaken) => Check::problem(
            name,
            format!(
                "does not take {}; configure it to, or the results of the destination not to be sent so",
                untaken.join(" and ")
            ),
        ),
        Err(error) => failed(&name, &error),
    }
}

fn untaken(forms: &[Vec<ResultForm>], contexts: &[NegotiatedContext]) -> Vec<String> {
    let is_taken = |(class, syntax): &ResultForm| {
        contexts.iter().any(|context| {
            context.abstract_syntax == *class
                && context.transfer_syntax_uid().is_some_and(|uid| uid.as_str() == *syntax)
        })
    };
    let in_words =
        |(class, syntax): &ResultForm| format!("{} in {}", sop_class_name(class), transfer_syntax_name(syntax));
    forms
        .iter()
        .filter(|alternatives| !alternatives.iter().any(is_taken))
        .map(|alternatives| alternatives.iter().map(in_words).collect::<Vec<_>>().join(" or "))
        .collect()
}

/// The results that a destination accepts in none of the forms in which they are sent.
async fn untaken_results(
    calling: &AeTitle,
    called: &AeTitle,
    address: &Address,
    tls: Option<TlsClient>,
    forms: &[Vec<ResultForm>],
) -> anyhow::Result<Vec<String>> {
    let timeouts = RequestorTimeouts { connect: PEER_PATIENCE, acse: PEER_PATIENCE, dimse: PEER_PATIENCE };
    let requestor = AssociationRequestor::new(calling.clone(), called.clone(), address.host.as_str(), address.port)
        .with_timeouts(timeouts)
        .with_tls(tls);
    let mut proposed = Vec::new();
    for form in forms.iter().flatten() {
        if !proposed.contains(form) {
            proposed.push(*form);
        }
    }
    let propose = |requestor: AssociationRequestor, (class, syntax): ResultForm| requestor.propose(class, &[syntax]);
    let association = proposed.into_iter().fold(requestor, propose).establish().await?;
    let untaken = untaken(forms, association.contexts());
    // The question is answered: how the peer says goodbye is its own affair.
    let _ = association.release().await;
    Ok(untaken)
}

#[cfg(test)]
mod tests {
    use super::{super::super::tests::site as sample, *};

    #[test]
    fn a_listener_on_every_address_is_reached_on_loopback() {
        for (listen, expected) in
            [("0.0.0.0:104", "127.0.0.1:104"), ("[::]:104", "[::1]:104"), ("192.0.2.1:104", "192.0.2.1:104")]
        {
            assert_eq!(on_this_machine(listen.parse().unwrap()), expected.parse().unwrap());
        }
    }

    #[test]
    fn a_site_without_titles_senders_or_routes_says_so() {
        assert!(site(&sample()).iter().all(|check| !check.is_problem()), "{:?}", site(&sample()));
        let empty = site(&SiteConfig::default());
        assert_eq!(empty.iter().filter(|check| check.is_problem()).count(), 2, "{empty:?}");
        assert!(empty.iter().any(|check| check.words.contains("hilum local-ae add")), "{empty:?}");
    }

    #[test]
    fn a_destination_that_may_not_bring_its_reports_is_noted() {
        let mut sample = sample();
        let destination = &mut sample.destinations[0];
        destination.commitment = CommitmentUse::Optional;
        let peer = sample.peers.iter_mut().find(|peer| Some(&peer.name) == destination.peer.as_ref()).unwrap();
        peer.may_store = false;
        let noted = |site_config: &SiteConfig| {
            site(site_config).iter().filter(|check| check.words.contains("may not call this node")).count()
        };
        assert_eq!(noted(&sample), 1);
        assert!(site(&sample).iter().all(|check| !check.is_problem()), "it may report on our association");
        sample.peers.iter_mut().for_each(|peer| peer.may_store = true);
        assert_eq!(noted(&sample), 0);
    }

    #[tokio::test]
    async fn a_bundle_of_another_pipeline_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        crate::nn::init_ct_bundle(&folder.path().join("ct")).unwrap();
        let mut config = Config::defaults_for_dev(std::path::Path::new("data"));
        config.inference.models_dir = folder.path().to_owned();
        let mut sample = sample();
        sample.routes[0].bundle = "ct".to_owned();
        let line = models(&config, &sample).await[0].line();
        assert!(line.starts_with("problem  bundle `ct`: bundle `ct` belongs to pipeline `chest_ct`"), "{line}");
        sample.routes[0].pipeline = crate::types::Pipeline::ChestCt;
        let line = models(&config, &sample).await[0].line();
        assert!(line.starts_with("ok       bundle `ct`: version"), "{line}");
    }

    #[test]
    fn a_destination_is_asked_for_what_it_is_sent_and_one_form_of_the_report_is_enough() {
        use crate::{dimse::ContextOutcome, types::Uid};
        let context = |id: u8, class: &str, syntax: &str| NegotiatedContext {
            id,
            abstract_syntax: class.to_owned(),
            outcome: ContextOutcome::Accepted { transfer_syntax_uid: Uid::new(syntax).unwrap() },
        };
        let (explicit, rle) = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5");
        let (picture, segmentation) = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.66.4");
        let (basic, enhanced) = ("1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.88.22");
        let taken = [context(1, picture, explicit), context(3, enhanced, explicit), context(5, basic, explicit)];

        let mut sample = sample();
        let pacs = sample.peers[1].clone();
        assert_eq!(untaken(&forms(&sample, &pacs), &taken), [""; 0]);
        assert!(forms(&sample, &sample.peers[0]).is_empty(), "it gets no results");
        sample.destinations[0].results.picture_compression = crate::types::PictureCompression::RleLossless;
        let lacking = untaken(&forms(&sample, &pacs), &taken);
        assert!(lacking.len() == 1 && lacking[0].ends_with("in RLE Lossless"), "{lacking:?}");
        assert_eq!(untaken(&forms(&sample, &pacs), &[taken.as_slice(), &[context(7, picture, rle)]].concat()), [""; 0]);
        sample.routes[0].pipeline = Pipeline::ChestCt;
        assert!(forms(&sample, &pacs).contains(&vec![(segmentation, explicit)]), "a CT has a segmentation");
        let lacking = untaken(&forms(&sample, &pacs), &taken[..1]);
        assert!(lacking.iter().any(|words| words.matches(" or ").count() == 2), "{lacking:?}");
    }

    #[tokio::test]
    async fn a_peer_that_cannot_be_called_is_a_note_and_one_that_does_not_answer_a_problem() {
        let mut sample = sample();
        let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for peer in sample.peers.iter_mut().filter(|peer| peer.port.is_some()) {
            (peer.host, peer.port) = ("127.0.0.1".into(), Some(unused));
        }
        let config = Config::defaults_for_dev(std::path::Path::new("data"));
        let checks = peers(&config, &sample, None).await;
        let lines: Vec<String> = checks.iter().map(Check::line).collect();
        assert!(lines[0].starts_with("note     peer `dx-room-1`: only calls us"), "{lines:#?}");
        assert!(lines[1].starts_with("problem  peer `pacs`: cannot connect"), "{lines:#?}");
        assert!(lines[1].contains("check that the peer is running"), "{lines:#?}");
        assert_eq!(peers(&config, &sample, Some("dx-room-1")).await.len(), 1);
    }
}
