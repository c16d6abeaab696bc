//! Where results go, and how they travel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AeTitle, Peer, ResultProfile};

/// How results travel to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationKind {
    /// C-STORE to a peer.
    Dicom,
    /// STOW-RS to a DICOMweb server (PS3.18 section 10.5).
    Dicomweb,
    /// Files in a folder.
    Folder,
    /// C-STORE to the peer that sent the study.
    ReturnToSender,
}

impl DestinationKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dicom, Self::Dicomweb, Self::Folder, Self::ReturnToSender];

    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dicom => "dicom",
            Self::Dicomweb => "dicomweb",
            Self::Folder => "folder",
            Self::ReturnToSender => "return_to_sender",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// How a DICOMweb server is told who we are. Secrets stay in their files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WebAuthentication {
    /// Not at all, or by our TLS certificate alone.
    #[default]
    None,
    /// A user and a password (RFC 7617).
    Basic {
        /// The user.
        user: String,
        /// File with the password in its first line.
        password_file: PathBuf,
    },
    /// A token that an authorization server gives to us as a client (RFC 6749 section 4.4).
    Oauth2 {
        /// Where the token is asked for.
        token_url: String,
        /// Who we are there.
        client_id: String,
        /// File with the client's secret in its first line.
        client_secret_file: PathBuf,
        /// What the token is for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
    },
}

impl WebAuthentication {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// Whether a destination is asked to keep what it got (Storage Commitment, PS3.4 annex J).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitmentUse {
    /// It is not asked.
    #[default]
    Off,
    /// It is asked if it offers that; its answer is shown.
    Optional,
    /// A study is answered only when everything is committed.
    Required,
}

impl CommitmentUse {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Optional, Self::Required];

    /// The name used in configuration and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }

    /// The use of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    fn is_off(&self) -> bool {
        *self == Self::Off
    }
}

/// Where results go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// The administrators' name for it, unique.
    pub name: String,
    /// How results travel.
    pub kind: DestinationKind,
    /// `dicom`: name of the peer to call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// `dicom`: AE title that we call as. `return_to_sender`: the same, unless it is the one that the study was sent to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calling_ae_title: Option<AeTitle>,
    /// `dicomweb`: the service, without `/studies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `dicomweb`: how it is told who we are.
    #[serde(default, skip_serializing_if = "WebAuthentication::is_none")]
    pub authentication: WebAuthentication,
    /// `folder`: an absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
    /// Associations, or connections, that are open to it at the same time, [`Destination::ASSOCIATIONS`]. The results of
    /// one study go over one of them, in order.
    #[serde(default = "one")]
    pub maximum_associations: u32,
    /// `dicom` and `return_to_sender`: whether it is asked to keep what it got.
    #[serde(default, skip_serializing_if = "CommitmentUse::is_off")]
    pub commitment: CommitmentUse,
    /// How long its report may take before it is asked again, and then before somebody has to look, in seconds.
    #[serde(default = "a_day")]
    pub commitment_timeout_seconds: u32,
    /// Send "not analysed" reports too (default: keep them here only).
    #[serde(default)]
    pub send_not_analysed: bool,
    /// What it gets of the results, and in which form.
    #[serde(default)]
    pub results: ResultProfile,
}

const fn one() -> u32 {
    1
}

const fn a_day() -> u32 {
    86_400
}

impl Destination {
    /// Allowed numbers of associations.
    pub const ASSOCIATIONS: std::ops::RangeInclusive<u32> = 1..=4;
    /// Allowed time limits of reports, in seconds.
    pub const COMMITMENT_TIMEOUT: std::ops::RangeInclusive<u32> = 1..=2_592_000;

    /// A destination of which nothing else is said yet.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: DestinationKind) -> Self {
        Self {
            name: name.into(),
            kind,
            peer: None,
            calling_ae_title: None,
            url: None,
            authentication: WebAuthentication::None,
            folder: None,
            maximum_associations: one(),
            commitment: CommitmentUse::Off,
            commitment_timeout_seconds: a_day(),
            send_not_analysed: false,
            results: ResultProfile::default(),
        }
    }

    /// C-STORE to `peer` as `calling_ae_title`.
    #[must_use]
    pub fn dicom(name: impl Into<String>, peer: impl Into<String>, calling_ae_title: AeTitle) -> Self {
        Self {
            peer: Some(peer.into()),
            calling_ae_title: Some(calling_ae_title),
            ..Self::new(name, DestinationKind::Dicom)
        }
    }

    /// Where it is, in short.
    #[must_use]
    pub fn place(&self) -> String {
        match self.kind {
            DestinationKind::Dicom => self.peer.clone().unwrap_or_default(),
            DestinationKind::Dicomweb => self.url.clone().unwrap_or_default(),
            DestinationKind::Folder => {
                self.folder.as_ref().map(|folder| folder.display().to_string()).unwrap_or_default()
            }
            DestinationKind::ReturnToSender => "who sent the study".to_owned(),
        }
    }

    /// What is wrong with it and the remedy, in words.
    pub(super) fn problems(&self, peers: &[Peer]) -> Vec<(String, &'static str)> {
        let mut problems = self.results.problems();
        let kind = self.kind;
        let given: [(&str, bool, &[DestinationKind]); 5] = [
            ("peer", self.peer.is_some(), &[DestinationKind::Dicom]),
            (
                "calling_ae_title",
                self.calling_ae_title.is_some(),
                &[DestinationKind::Dicom, DestinationKind::ReturnToSender],
            ),
            ("url", self.url.is_some(), &[DestinationKind::Dicomweb]),
            ("authentication", !self.authentication.is_none(), &[DestinationKind::Dicomweb]),
            ("folder", self.folder.is_some(), &[DestinationKind::Folder]),
        ];
        for (key, is_given, kinds) in given {
            if is_given && !kinds.contains(&kind) {
                let problem = format!("has `{key}`, which kind \"{}\" does not use", kind.name());
                problems.push((problem, "remove the key or give another kind"));
            }
        }
        match kind {
            DestinationKind::Dicom => self.problems_of_dicom(peers, &mut problems),
            DestinationKind::Dicomweb => self.problems_of_web(&mut problems),
            DestinationKind::Folder => match &self.folder {
                None => problems.push(("has no `folder`".to_owned(), "give an absolute path")),
                Some(folder) if !folder.is_absolute() => problems.push((
                    format!("has folder = {:?}, which is not an absolute path", folder.display().to_string()),
                    "give a path that begins with /",
                )),
                Some(_) => {}
            },
            DestinationKind::ReturnToSender => {}
        }
        if !self.commitment.is_off() && !matches!(kind, DestinationKind::Dicom | DestinationKind::ReturnToSender) {
            problems.push((
                format!("has `commitment`, which kind \"{}\" does not use", kind.name()),
                "remove the key; Storage Commitment is a service of DICOM peers",
            ));
        }
        if !Self::ASSOCIATIONS.contains(&self.maximum_associations) {
            problems.push((format!("has maximum_associations = {}", self.maximum_associations), "give 1 to 4"));
        }
        if !Self::COMMITMENT_TIMEOUT.contains(&self.commitment_timeout_seconds) {
            problems.push((
                format!("has commitment_timeout_seconds = {}", self.commitment_timeout_seconds),
                "give 1 to 2592000 (30 days)",
            ));
        }
        problems
    }

    fn problems_of_dicom(&self, peers: &[Peer], problems: &mut Vec<(String, &'static str)>) {
        if self.calling_ae_title.is_none() {
            problems.push(("has no `calling_ae_title`".to_owned(), "give the AE title that we call as"));
        }
        let Some(name) = &self.peer else {
            problems.push(("has no `peer`".to_owned(), "name the peer to call"));
            return;
        };
        match peers.iter().find(|peer| peer.name == *name) {
            None => {
                problems.push((format!("names peer `{name}`, which does not exist"), "add that peer or name another"));
            }
            Some(peer) if peer.port.is_none() || peer.host == "*" => problems.push((
                format!("names peer `{name}`, which has no host and port to call"),
                "give that peer a host and a port",
            )),
            Some(_) => {}
        }
    }

    fn problems_of_web(&self, problems: &mut Vec<(String, &'static str)>) {
        const REMEDY: &str = "give https://HOST[:PORT][/PATH], without user, question mark and #";
        const IN_CLEAR: &str = "give an https:// address, or remove authentication";
        let secret_is_sent = !self.authentication.is_none();
        match self.url.as_deref().map(|url| (url, WebAddress::read(url))) {
            None => problems.push(("has no `url`".to_owned(), REMEDY)),
            Some((url, None)) => problems.push((format!("has url = {url:?}, which is no web address"), REMEDY)),
            Some((_, Some(address))) if secret_is_sent && !address.keeps_secrets() => {
                problems.push(("would send its secret without TLS".to_owned(), IN_CLEAR));
            }
            Some(_) => {}
        }
        match &self.authentication {
            WebAuthentication::None => {}
            WebAuthentication::Basic { user, password_file } => {
                if user.is_empty() || user.contains(':') || user.contains(char::is_control) {
                    problems.push((
                        format!("has user = {user:?}"),
                        "give a user name without a colon (RFC 7617 section 2)",
                    ));
                }
                if !password_file.is_absolute() {
                    problems.push(("has a password_file that is not an absolute path".to_owned(), "give it from / on"));
                }
            }
            WebAuthentication::Oauth2 { token_url, client_id, client_secret_file, .. } => {
                match WebAddress::read(token_url) {
                    None => problems.push((format!("has token_url = {token_url:?}, which is no web address"), REMEDY)),
                    Some(address) if !address.keeps_secrets() => {
                        problems.push(("would send its secret to token_url without TLS".to_owned(), IN_CLEAR));
                    }
                    Some(_) => {}
                }
                if client_id.is_empty() {
                    problems.push(("has an empty client_id".to_owned(), "give the name of the client"));
                }
                if !client_secret_file.is_absolute() {
                    problems.push((
                        "has a client_secret_file that is not an absolute path".to_owned(),
                        "give it from / on",
                    ));
                }
            }
        }
    }
}

/// An address of a web service, as far as configuration cares (RFC 3986 section 3).
struct WebAddress<'a> {
    is_encrypted: bool,
    host: &'a str,
}

impl<'a> WebAddress<'a> {
    /// `None` for anything else than `http(s)://host[:port][/path]`.
    fn read(url: &'a str) -> Option<Self> {
        let (is_encrypted, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, rest) => (false, rest?),
        };
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"@?#\\<>\"{}|^`".contains(&byte);
        let authority = rest.split('/').next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let good_port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
        (!host.is_empty() && good_port && rest.bytes().all(is_plain)).then_some(Self { is_encrypted, host })
    }

    /// Nobody can read what is sent there on its way.
    fn keeps_secrets(&self) -> bool {
        self.is_encrypted || self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(keys: &str) -> Vec<String> {
        let destination: Destination = toml::from_str(&format!("name = 'd'\n{keys}")).unwrap();
        let mut pacs = Peer::new("pacs", AeTitle::new("PACS").unwrap(), "192.0.2.1");
        pacs.port = Some(104);
        destination.problems(&[pacs]).into_iter().map(|(problem, remedy)| format!("{problem}; {remedy}")).collect()
    }

    #[rstest::rstest]
    #[case("kind = 'dicom'\npeer = 'pacs'\ncalling_ae_title = 'HILUM'\ncommitment = 'required'")]
    #[case("kind = 'dicomweb'\nurl = 'http://192.0.2.1:8042/dicom-web'")]
    #[case(
        "kind = 'dicomweb'\nurl = 'https://[2001:db8::1]'\nauthentication = { basic = { user = 'u', password_file = '/p' } }"
    )]
    #[case(
        "kind = 'dicomweb'\nurl = 'http://127.0.0.1:1/x'\nauthentication = { basic = { user = 'u', password_file = '/p' } }"
    )]
    #[case("kind = 'folder'\nfolder = '/srv/results'")]
    #[case("kind = 'return_to_sender'\nmaximum_associations = 4")]
    fn good_destinations(#[case] keys: &str) {
        assert_eq!(problems(keys), Vec::<String>::new());
    }

    #[rstest::rstest]
    #[case("kind = 'dicom'", &["no `calling_ae_title`", "no `peer`"])]
    #[case("kind = 'dicom'\npeer = 'x'\ncalling_ae_title = 'H'", &["peer `x`, which does not exist"])]
    #[case("kind = 'dicomweb'", &["no `url`"])]
    #[case("kind = 'dicomweb'\nurl = 'ftp://x'", &["which is no web address"])]
    #[case("kind = 'dicomweb'\nurl = 'https://user@x/y'", &["which is no web address"])]
    #[case("kind = 'dicomweb'\nurl = 'https://x:0'\npeer = 'pacs'", &["`peer`, which kind \"dicomweb\" does not use", "no web address"])]
    #[case("kind = 'dicomweb'\nurl = 'http://x'\nauthentication = { basic = { user = 'a:b', password_file = 'p' } }", &["without TLS", "without a colon", "not an absolute path"])]
    #[case("kind = 'dicomweb'\nurl = 'https://x'\nauthentication = { oauth2 = { token_url = 'http://t', client_id = '', client_secret_file = '/s' } }", &["token_url without TLS", "empty client_id"])]
    #[case("kind = 'folder'", &["no `folder`"])]
    #[case("kind = 'folder'\nfolder = 'results'\ncommitment = 'optional'", &["not an absolute path", "`commitment`, which kind \"folder\""])]
    #[case("kind = 'return_to_sender'\nmaximum_associations = 5\ncommitment_timeout_seconds = 0", &["maximum_associations = 5", "commitment_timeout_seconds = 0"])]
    fn problems_have_words(#[case] keys: &str, #[case] words: &[&str]) {
        let problems = problems(keys);
        assert_eq!(problems.len(), words.len(), "{problems:?}");
        for (problem, words) in problems.iter().zip(words) {
            assert!(problem.contains(words), "{problem} lacks {words}");
        }
    }

    #[test]
    fn unknown_keys_of_an_authentication_are_refused() {
        let text = "name = 'd'\nkind = 'dicomweb'\nauthentication = { basic = { user = 'u', password = 'secret' } }";
        let error = toml::from_str::<Destination>(text).unwrap_err().to_string();
        assert!(error.contains("password"), "{error}");
    }
}
