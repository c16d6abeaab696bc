//! What administrators own: local AE titles, peers, destinations and routes, and the rules that hold between
//! them.

use serde::{Deserialize, Serialize};

use super::{AeTitle, AssociationPolicy, Sha256Digest};

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
}

/// How results travel to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationKind {
    /// C-STORE to a peer.
    Dicom,
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The administrators' name for it, unique.
    pub name: String,
    /// How results travel.
    pub kind: DestinationKind,
    /// Name of the peer to call.
    pub peer: String,
    /// AE title that we call as.
    pub calling_ae_title: AeTitle,
    /// Send "not analysed" reports too (default: keep them here only).
    #[serde(default)]
    pub send_not_analysed: bool,
}

/// Which analysis a study gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pipeline {
    /// Chest radiographs (CR, DX).
    ChestRadiograph,
}

/// Which studies get which pipeline and where the results go. The first enabled route in `order` that matches
/// decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A study is complete when nothing has been stored to it for so long and no association is open that has.
    pub quiet_seconds: u32,
    /// A study is complete at the latest so long after its first object.
    pub max_wait_seconds: u32,
    /// Names of destinations that get the results.
    #[serde(default)]
    pub destinations: Vec<String>,
}

/// Everything administrators own, as applied from a file, kept in Postgres, and snapshotted on disk for
/// admission without Postgres.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
            match self.peers.iter().find(|peer| peer.name == destination.peer) {
                None => report(
                    subject(),
                    format!("names peer `{}`, which does not exist", destination.peer),
                    "add that peer or name another",
                ),
                Some(peer) if peer.port.is_none() || peer.host == "*" => report(
                    subject(),
                    format!("names peer `{}`, which has no host and port to call", destination.peer),
                    "give that peer a host and a port",
                ),
                Some(_) => {}
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
            if route.quiet_seconds == 0 || route.max_wait_seconds < route.quiet_seconds {
                report(
                    subject(),
                    format!(
                        "has quiet_seconds = {} and max_wait_seconds = {}",
                        route.quiet_seconds, route.max_wait_seconds
                    ),
                    "quiet_seconds must be at least 1 and max_wait_seconds at least as long",
                );
            }
            for name in &route.destinations {
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
}
