//! What administrators own: local AE titles, peers, destinations and routes, and the rules that hold between
//! them.

use serde::{Deserialize, Serialize};

use super::{
    AeTitle, AssociationPolicy, Destination, Requirement, ResultRule, RunPriority, RunRole, Sha256Digest, Trial,
    TrialMode,
};

fn default_true() -> bool {
    true
}

/// An AE title that this node answers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalAe {
    /// The title peers call.
    pub ae_title: AeTitle,
    /// Refuse associations to it without forgetting it.
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What associations to it may do.
    #[serde(default)]
    pub policy: AssociationPolicy,
}

/// Another DICOM node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The administrators' name for it, unique.
    pub name: String,
    /// Its AE title.
    pub ae_title: AeTitle,
    /// Host name or address. For a sender, associations from elsewhere are refused unless it is `*`.
    pub host: String,
    /// TCP port it listens on; needed only where we call it.
    #[serde(default)]
    pub port: Option<u16>,
    /// It may send us objects.
    #[serde(default)]
    pub may_store: bool,
    /// For people: who to ask.
    #[serde(default)]
    pub contact: String,
    /// What its associations may do.
    #[serde(default)]
    pub policy: AssociationPolicy,
    /// Call it over TLS.
    #[serde(default)]
    pub tls: bool,
    /// Refuse its associations unless they come over TLS.
    #[serde(default)]
    pub require_tls: bool,
    /// SHA-256 fingerprints of its certificates (of the DER encoding); empty means any that a trusted CA signed.
    #[serde(default)]
    pub tls_certificate_sha256: Vec<Sha256Digest>,
    /// A name that its certificate must have: a DNS name, IP address or URI among the subject alternative names, or
    /// the subject's common name.
    #[serde(default)]
    pub tls_subject_name: Option<String>,
    /// Ask it by C-FIND how many instances a study has, before a study that it sent counts as complete.
    #[serde(default)]
    pub count_at_source: bool,
    /// What to do when it sends other bytes under a known SOP Instance UID.
    #[serde(default)]
    pub duplicates: Duplicates,
    /// The C-STORE status of a refused duplicate, [`Peer::DUPLICATE_STATUS`] when not given; a failure status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_status: Option<u16>,
}

impl LocalAe {
    /// An enabled AE title with nothing else said of it.
    #[must_use]
    pub fn new(ae_title: AeTitle) -> Self {
        Self { ae_title, enabled: true, description: String::new(), policy: AssociationPolicy::default() }
    }
}

impl Peer {
    /// A peer of which nothing else is said: it is not called and may not store.
    #[must_use]
    pub fn new(name: impl Into<String>, ae_title: AeTitle, host: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ae_title,
            host: host.into(),
            port: None,
            may_store: false,
            contact: String::new(),
            policy: AssociationPolicy::default(),
            tls: false,
            require_tls: false,
            tls_certificate_sha256: Vec::new(),
            tls_subject_name: None,
            count_at_source: false,
            duplicates: Duplicates::default(),
            duplicate_status: None,
        }
    }
}

/// What to do with other bytes under a known SOP Instance UID. The same bytes again are always answered with Success
/// and stored once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// Keep them beside the first.
    #[default]
    KeepVersion,
    /// Answer with a failure status and keep the first only.
    Refuse,
}

impl Peer {
    /// Duplicate SOP instance (PS3.7 section C.5.6).
    pub const DUPLICATE_STATUS: u16 = 0x0111;

    /// The status of a refused duplicate.
    #[must_use]
    pub fn duplicate_status(&self) -> u16 {
        self.duplicate_status.unwrap_or(Self::DUPLICATE_STATUS)
    }

    /// Whether senders take a status as "not stored, do not try again": PS3.7 annex C, PS3.4 table B.2-1. A warning
    /// would say that the object is stored.
    const fn refuses_for_good(status: u16) -> bool {
        matches!(status, Self::DUPLICATE_STATUS | 0x0110 | 0x0117 | 0x0124 | 0xA900..=0xA9FF | 0xC000..=0xCFFF)
    }
}

/// Which analysis a study gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pipeline {
    /// Chest radiographs (CR, DX).
    ChestRadiograph,
    /// Chest CT.
    ChestCt,
}

impl Pipeline {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ChestRadiograph, Self::ChestCt];

    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChestRadiograph => "chest_radiograph",
            Self::ChestCt => "chest_ct",
        }
    }

    /// The pipeline of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pipeline| pipeline.name() == name)
    }
}

/// What becomes of images that arrive when their study has been analysed already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LateImages {
    /// The study is analysed again with them.
    #[default]
    NewRevision,
    /// They are kept and told of; nothing is analysed again.
    Ignore,
}

/// Which studies get which pipeline and where the results go. The first enabled route in `order` that matches
/// decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The administrators' name for it, unique.
    pub name: String,
    /// Lower comes first.
    pub order: i32,
    /// Keep the route but do not use it.
    #[serde(default = "default_true")]
    pub enabled: bool,
    /// Our AE title that the study was sent to.
    pub called_ae_title: AeTitle,
    /// Only from these senders; empty means any.
    #[serde(default)]
    pub calling_ae_titles: Vec<AeTitle>,
    /// Only studies with one of these modalities.
    pub modalities: Vec<String>,
    /// What to run.
    pub pipeline: Pipeline,
    /// Name of the bundle folder under `models/`.
    pub bundle: String,
    /// Whether its studies go before others.
    #[serde(default)]
    pub priority: RunPriority,
    /// A study is complete when nothing has been stored to it for so long and no association is open that has.
    pub quiet_seconds: u32,
    /// A study is complete at the latest so long after its first object.
    pub max_wait_seconds: u32,
    /// Instead of `quiet_seconds`, when every association that stored to the study was released; at least so long
    /// for senders that are known to pause for longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_quiet_seconds: Option<u32>,
    /// Instead of `quiet_seconds`, when an association was lost and its sender has not come again; at most so long
    /// for senders that are known to pause. Three times `quiet_seconds` when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_quiet_seconds: Option<u32>,
    /// What must be there before a study is complete, unless `max_wait_seconds` have passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub required: Option<Requirement>,
    /// What becomes of images that arrive when their study has been analysed already.
    #[serde(default)]
    pub late_images: LateImages,
    /// With `late_images = "new_revision"`: only so long after the study was complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_images_within_seconds: Option<u32>,
    /// Names of destinations that get the results.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// Where results go besides, and how soon, because of what was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<ResultRule>,
    /// A bundle that is tried beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
}

impl Route {
    /// The bundles that it names: its own, then the one that is tried.
    pub fn bundles(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.bundle.as_str()).chain(self.trial.as_ref().map(|trial| trial.bundle.as_str()))
    }

    /// The bundles that judge a study, and what each run is to it. The one whose results are sent comes first.
    #[must_use]
    pub fn runs_of(&self, study_instance_uid: &str) -> Vec<(&str, RunRole)> {
        match self.trial.as_ref().filter(|trial| trial.takes(&self.name, study_instance_uid)) {
            None => vec![(self.bundle.as_str(), RunRole::Live)],
            Some(Trial { bundle, mode: TrialMode::Shadow, .. }) => {
                vec![(self.bundle.as_str(), RunRole::Live), (bundle, RunRole::Shadow)]
            }
            Some(Trial { bundle, mode: TrialMode::Canary, .. }) => {
                vec![(bundle.as_str(), RunRole::Canary), (&self.bundle, RunRole::Shadow)]
            }
        }
    }

    /// Silence that completes a study whose associations were all released.
    #[must_use]
    pub fn released_quiet_seconds(&self) -> u32 {
        self.released_quiet_seconds.unwrap_or(self.quiet_seconds)
    }

    /// Silence that completes a study one of whose associations was lost.
    #[must_use]
    pub fn lost_quiet_seconds(&self) -> u32 {
        let thrice = self.quiet_seconds.saturating_mul(3).min(self.max_wait_seconds);
        self.lost_quiet_seconds.unwrap_or(thrice)
    }

    /// The keys that contradict each other, in words.
    fn contradictions(&self) -> Vec<(String, &'static str)> {
        let mut found = Vec::new();
        let (quiet, longest) = (self.quiet_seconds, self.max_wait_seconds);
        if quiet == 0 || longest < quiet {
            found.push((
                format!("has quiet_seconds = {quiet} and max_wait_seconds = {longest}"),
                "quiet_seconds must be at least 1 and max_wait_seconds at least as long",
            ));
            return found;
        }
        if let Some(released) = self.released_quiet_seconds.filter(|released| !(1..=quiet).contains(released)) {
            found.push((
                format!("has released_quiet_seconds = {released} and quiet_seconds = {quiet}"),
                "released_quiet_seconds must be at least 1 and at most quiet_seconds",
            ));
        }
        if let Some(lost) = self.lost_quiet_seconds.filter(|lost| !(quiet..=longest).contains(lost)) {
            found.push((
                format!("has lost_quiet_seconds = {lost}, quiet_seconds = {quiet} and max_wait_seconds = {longest}"),
                "lost_quiet_seconds must be at least quiet_seconds and at most max_wait_seconds",
            ));
        }
        match (self.late_images, self.late_images_within_seconds) {
            (LateImages::Ignore, Some(_)) => found.push((
                "has late_images_within_seconds and late_images = \"ignore\"".to_owned(),
                "remove one of the two",
            )),
            (LateImages::NewRevision, Some(0)) => {
                found.push(("has late_images_within_seconds = 0".to_owned(), "give late_images = \"ignore\" instead"));
            }
            _ => {}
        }
        if let Some(trial) = &self.trial {
            if trial.bundle == self.bundle {
                found.push((
                    format!("tries bundle `{}`, which is its own", trial.bundle),
                    "name another bundle in trial.bundle, or remove the trial",
                ));
            }
            if !(1..=100).contains(&trial.share_percent) {
                found.push((
                    format!("has trial.share_percent = {}", trial.share_percent),
                    "give 1 to 100, or remove the trial",
                ));
            }
        }
        found
    }
}

/// Everything administrators own, as applied from a file, kept in Postgres, and snapshotted on disk for
/// admission without Postgres.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// AE titles that we answer to.
    #[serde(default, rename = "local_ae")]
    pub local_aes: Vec<LocalAe>,
    /// Other nodes.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// Where results go.
    #[serde(default, rename = "destination")]
    pub destinations: Vec<Destination>,
    /// Which studies get what.
    #[serde(default, rename = "route")]
    pub routes: Vec<Route>,
}

/// One thing that is wrong with a site configuration, with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{subject}: {problem}; {remedy}")]
pub struct SiteProblem {
    /// What the problem is about, such as ``route `chest` ``.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl SiteConfig {
    /// Every problem at once; an empty list means the configuration can be applied.
    #[must_use]
    pub fn problems(&self) -> Vec<SiteProblem> {
        let mut problems = Vec::new();
        let mut report = |subject: String, problem: String, remedy: &str| {
            problems.push(SiteProblem { subject, problem, remedy: remedy.to_owned() });
        };
        for name in duplicates(self.local_aes.iter().map(|ae| ae.ae_title.as_str())) {
            report(format!("local AE `{name}`"), "is given twice".into(), "remove one of the two");
        }
        for name in duplicates(self.peers.iter().map(|peer| peer.name.as_str())) {
            report(format!("peer `{name}`"), "is given twice".into(), "rename or remove one of the two");
        }
        for name in duplicates(self.destinations.iter().map(|destination| destination.name.as_str())) {
            report(format!("destination `{name}`"), "is given twice".into(), "rename or remove one of the two");
        }
        for name in duplicates(self.routes.iter().map(|route| route.name.as_str())) {
            report(format!("route `{name}`"), "is given twice".into(), "rename or remove one of the two");
        }
        for peer in &self.peers {
            let subject = || format!("peer `{}`", peer.name);
            if peer.name.trim().is_empty() {
                report(subject(), "has no name".into(), "give it a name");
            }
            if peer.host.trim().is_empty() {
                report(subject(), "has no host".into(), "give its host name or address, or `*` for any");
            }
            if peer.tls_subject_name.as_ref().is_some_and(|name| name.trim().is_empty()) {
                report(subject(), "has an empty tls_subject_name".into(), "give a name, or leave the key out");
            }
            if peer.port == Some(0) {
                report(subject(), "has port 0".into(), "give the TCP port it listens on, 1 to 65535");
            }
            if peer.count_at_source && (peer.port.is_none() || peer.host == "*") {
                report(
                    subject(),
                    "has count_at_source and no host and port to ask".into(),
                    "give it a host and a port, or remove count_at_source",
                );
            }
            match (peer.duplicates, peer.duplicate_status) {
                (Duplicates::KeepVersion, Some(_)) => report(
                    subject(),
                    "has duplicate_status and refuses no duplicates".into(),
                    "give duplicates = \"refuse\", or remove duplicate_status",
                ),
                (Duplicates::Refuse, Some(status)) if !Peer::refuses_for_good(status) => report(
                    subject(),
                    format!("has duplicate_status = {status:#06X}"),
                    "give a status that says \"not stored\", such as 0x0111; a warning would say that it is stored",
                ),
                _ => {}
            }
        }
        let policies = self
            .local_aes
            .iter()
            .map(|ae| (format!("local AE `{}`", ae.ae_title), &ae.policy))
            .chain(self.peers.iter().map(|peer| (format!("peer `{}`", peer.name), &peer.policy)));
        for (subject, policy) in policies {
            for (problem, remedy) in policy.problems() {
                report(subject.clone(), problem, &remedy);
            }
        }
        for destination in &self.destinations {
            let subject = || format!("destination `{}`", destination.name);
            for (problem, remedy) in destination.problems(&self.peers) {
                report(subject(), problem, remedy);
            }
        }
        for route in &self.routes {
            let subject = || format!("route `{}`", route.name);
            if !self.local_aes.iter().any(|ae| ae.ae_title == route.called_ae_title) {
                report(
                    subject(),
                    format!("listens to local AE `{}`, which does not exist", route.called_ae_title),
                    "add that local AE or name another",
                );
            }
            if route.modalities.is_empty() {
                report(subject(), "has no modalities".into(), "list at least one, such as \"DX\"");
            }
            for (problem, remedy) in route.contradictions() {
                report(subject(), problem, remedy);
            }
            for (problem, remedy) in route.rules.iter().flat_map(ResultRule::problems) {
                report(subject(), problem, remedy);
            }
            for name in route.destinations.iter().chain(route.rules.iter().flat_map(|rule| &rule.destinations)) {
                if !self.destinations.iter().any(|destination| &destination.name == name) {
                    report(
                        subject(),
                        format!("sends to destination `{name}`, which does not exist"),
                        "add that destination or name another",
                    );
                }
            }
        }
        problems
    }
}

fn duplicates<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = std::collections::BTreeSet::new();
    let mut twice = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            twice.insert(name);
        }
    }
    twice.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_at_once() {
        let site: SiteConfig = toml::from_str(
            r#"
            [[local_ae]]
            ae_title = "HILUM"
            [[peer]]
            name = "pacs"
            ae_title = "PACS"
            host = "10.0.0.9"
            [[destination]]
            name = "archive"
            kind = "dicom"
            peer = "pacs"
            calling_ae_title = "HILUM"
            [[route]]
            name = "chest"
            order = 1
            called_ae_title = "OTHER"
            modalities = []
            pipeline = "chest_radiograph"
            bundle = "cxr"
            quiet_seconds = 10
            max_wait_seconds = 5
            destinations = ["nowhere"]
            "#,
        )
        .unwrap();
        let problems: Vec<String> = site.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(problems[0].contains("no host and port"));
        assert!(problems.iter().any(|problem| problem.contains("`OTHER`, which does not exist")));
        assert!(problems.iter().any(|problem| problem.contains("`nowhere`")));
    }

    fn problems_of(peer_keys: &str, route_keys: &str) -> Vec<String> {
        let text = format!(
            r#"
            [[local_ae]]
            ae_title = "HILUM"
            [[peer]]
            name = "ct"
            ae_title = "CT"
            host = "10.0.0.9"
            {peer_keys}
            [[route]]
            name = "chest"
            order = 1
            called_ae_title = "HILUM"
            modalities = ["DX"]
            pipeline = "chest_radiograph"
            bundle = "cxr"
            quiet_seconds = 10
            max_wait_seconds = 100
            {route_keys}
            "#
        );
        toml::from_str::<SiteConfig>(&text).unwrap().problems().iter().map(ToString::to_string).collect()
    }

    #[rstest::rstest]
    #[case("", "", "")]
    #[case("duplicates = \"refuse\"", "", "")]
    #[case("duplicates = \"refuse\"\nduplicate_status = 0xC111", "", "")]
    #[case("duplicates = \"refuse\"\nduplicate_status = 0xB000", "", "a warning would say that it is stored")]
    #[case("duplicate_status = 0x0111", "", "refuses no duplicates")]
    #[case("count_at_source = true", "", "no host and port to ask")]
    #[case("count_at_source = true\nport = 104", "", "")]
    #[case("", "released_quiet_seconds = 3\nlost_quiet_seconds = 60", "")]
    #[case("", "released_quiet_seconds = 11", "at most quiet_seconds")]
    #[case("", "lost_quiet_seconds = 101", "at most max_wait_seconds")]
    #[case("", "late_images = \"ignore\"\nlate_images_within_seconds = 5", "remove one of the two")]
    #[case("", "late_images_within_seconds = 0", "\"ignore\" instead")]
    #[case("", "required = 'series >= 2'\nlate_images_within_seconds = 5", "")]
    #[case("", "trial = { bundle = 'new', mode = 'canary', share_percent = 5 }", "")]
    #[case("", "trial = { bundle = 'cxr', mode = 'shadow', share_percent = 5 }", "which is its own")]
    #[case("", "trial = { bundle = 'new', mode = 'shadow', share_percent = 0 }", "give 1 to 100")]
    #[case("", "trial = { bundle = 'new', mode = 'shadow', share_percent = 101 }", "give 1 to 100")]
    fn evidence_and_duplicate_keys_are_checked(#[case] peer: &str, #[case] route: &str, #[case] words: &str) {
        let problems = problems_of(peer, route);
        assert_eq!(problems.len(), usize::from(!words.is_empty()), "{problems:?}");
        assert!(problems.iter().all(|problem| problem.contains(words)), "{problems:?}");
    }

    fn route(keys: &str) -> Route {
        toml::from_str(&format!(
            "name = \"r\"\norder = 1\ncalled_ae_title = \"H\"\nmodalities = [\"DX\"]\n\
             pipeline = \"chest_radiograph\"\nbundle = \"b\"\nmax_wait_seconds = 50\n{keys}"
        ))
        .unwrap()
    }

    #[test]
    fn one_bundle_answers_a_study_whatever_is_tried() {
        let with = |trial: &str| route(&format!("quiet_seconds = 10\n{trial}"));
        assert_eq!(with("").runs_of("1.2"), [("b", RunRole::Live)]);
        let shadow = with("trial = { bundle = 'new', mode = 'shadow', share_percent = 100 }");
        assert_eq!(shadow.runs_of("1.2"), [("b", RunRole::Live), ("new", RunRole::Shadow)]);
        let canary = with("trial = { bundle = 'new', mode = 'canary', share_percent = 40 }");
        let mut canaries = 0;
        for number in 0..200 {
            let study = format!("1.2.{number}");
            let runs = canary.runs_of(&study);
            let answers = runs.iter().filter(|(_, role)| *role != RunRole::Shadow).count();
            assert_eq!(answers, 1, "{runs:?}");
            canaries += usize::from(runs == [("new", RunRole::Canary), ("b", RunRole::Shadow)]);
        }
        assert!((50..110).contains(&canaries), "{canaries}");
        assert_eq!(canary.bundles().collect::<Vec<_>>(), ["b", "new"]);
    }

    #[test]
    fn a_lost_association_waits_three_times_as_long_unless_told() {
        let plain = route("quiet_seconds = 10");
        assert_eq!((plain.released_quiet_seconds(), plain.lost_quiet_seconds()), (10, 30));
        assert_eq!(route("quiet_seconds = 20").lost_quiet_seconds(), 50, "never later than the maximum");
        let told = route("quiet_seconds = 10\nreleased_quiet_seconds = 2\nlost_quiet_seconds = 15");
        assert_eq!((told.released_quiet_seconds(), told.lost_quiet_seconds()), (2, 15));
    }
}
