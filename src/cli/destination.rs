//! `hilum destination`: where results go.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use tokio::sync::watch;

use super::{
    Global, echo,
    failure::Usage,
    output::{Table, print, print_json, time_json, time_text, yes_no},
    peer,
    site::{self, ListOptions},
    store::Store,
};
use crate::{
    app::tls_settings,
    config::Config,
    db::destination::{self, DestinationState},
    deliver::{self, Caller},
    tls::TlsMaterial,
    types::{AeTitle, CommitmentUse, Destination, DestinationKind, ResultProfile, SiteConfig, WebAuthentication},
};

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Adds a destination, or replaces what is known of it
    Add(Box<Add>),
    /// Lists them
    List(ListOptions),
    /// Says how they do: which are left alone because they have failed, since when and why
    Status(ListOptions),
    /// Removes one that no route sends to
    Remove {
        /// Which
        name: String,
    },
    /// Asks it whether it is there: C-ECHO, a search for nothing, or a file that goes again
    Test {
        /// Which
        name: String,
    },
}

/// As on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// C-STORE to a peer
    Dicom,
    /// STOW-RS to a DICOMweb server
    Dicomweb,
    /// Files in a folder
    Folder,
    /// C-STORE to the peer that sent the study
    ReturnToSender,
}

impl From<Kind> for DestinationKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Dicom => Self::Dicom,
            Kind::Dicomweb => Self::Dicomweb,
            Kind::Folder => Self::Folder,
            Kind::ReturnToSender => Self::ReturnToSender,
        }
    }
}

/// As on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Commitment {
    /// It is not asked
    Off,
    /// It is asked if it offers that
    Optional,
    /// A study is answered only when everything is committed
    Required,
}

impl From<Commitment> for CommitmentUse {
    fn from(commitment: Commitment) -> Self {
        match commitment {
            Commitment::Off => Self::Off,
            Commitment::Optional => Self::Optional,
            Commitment::Required => Self::Required,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The administrators' name for it, unique
    name: String,
    /// How results travel
    #[arg(long, value_enum, default_value = "dicom")]
    kind: Kind,
    /// Kind dicom: name of the peer to send to; it must have a host and a port
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,
    /// AE title that we call as; kind return-to-sender: unless it is the one that the study was sent to
    #[arg(long, value_name = "TITLE")]
    calling_ae_title: Option<AeTitle>,
    /// Kind dicomweb: the service, without /studies
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    authentication: Authentication,
    /// Kind folder: an absolute path
    #[arg(long, value_name = "PATH")]
    folder: Option<PathBuf>,
    /// Associations, or connections, at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    maximum_associations: u32,
    /// Whether it is asked to keep what it got (Storage Commitment)
    #[arg(long, value_enum, default_value = "off")]
    commitment: Commitment,
    /// How long its report may take
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    commitment_timeout_seconds: u32,
    /// Send reports of studies that were not analysed as well
    #[arg(long)]
    send_not_analysed: bool,
    /// TOML file with the keys of `results`: what it gets, and in which form [default: what is known of it]
    #[arg(long, value_name = "FILE")]
    results_file: Option<PathBuf>,
    /// One key of `results`, such as results.language=zh; may be given several times
    #[arg(long = "set", value_name = "results.KEY=VALUE")]
    settings: Vec<String>,
}

/// How a web server is told who we are. Secrets stay in their files.
#[derive(Debug, Args)]
#[command(next_help_heading = "Authentication")]
struct Authentication {
    /// User of HTTP Basic
    #[arg(long, value_name = "NAME", requires = "basic_password_file", conflicts_with = "oauth2_token_url")]
    basic_user: Option<String>,
    /// File with the password in its first line
    #[arg(long, value_name = "FILE", requires = "basic_user")]
    basic_password_file: Option<PathBuf>,
    /// Where an OAuth 2.0 token is asked for, with client credentials
    #[arg(long, value_name = "URL", requires_all = ["oauth2_client_id", "oauth2_client_secret_file"])]
    oauth2_token_url: Option<String>,
    /// Who we are there
    #[arg(long, value_name = "ID", requires = "oauth2_token_url")]
    oauth2_client_id: Option<String>,
    /// File with the client's secret in its first line
    #[arg(long, value_name = "FILE", requires = "oauth2_token_url")]
    oauth2_client_secret_file: Option<PathBuf>,
    /// What the token is for
    #[arg(long, value_name = "SCOPE", requires = "oauth2_token_url")]
    oauth2_scope: Option<String>,
}

impl From<Authentication> for WebAuthentication {
    fn from(given: Authentication) -> Self {
        let Authentication {
            basic_user,
            basic_password_file,
            oauth2_token_url,
            oauth2_client_id,
            oauth2_client_secret_file,
            oauth2_scope,
        } = given;
        if let (Some(user), Some(password_file)) = (basic_user, basic_password_file) {
            return Self::Basic { user, password_file };
        }
        match (oauth2_token_url, oauth2_client_id, oauth2_client_secret_file) {
            (Some(token_url), Some(client_id), Some(client_secret_file)) => {
                Self::Oauth2 { token_url, client_id, client_secret_file, scope: oauth2_scope }
            }
            _ => Self::None,
        }
    }
}

impl Add {
    /// With what is known of its results, unless something else is said of them.
    fn over(self, results: ResultProfile) -> Destination {
        Destination {
            name: self.name,
            kind: self.kind.into(),
            peer: self.peer,
            calling_ae_title: self.calling_ae_title,
            url: self.url,
            authentication: self.authentication.into(),
            folder: self.folder,
            maximum_associations: self.maximum_associations,
            commitment: self.commitment.into(),
            commitment_timeout_seconds: self.commitment_timeout_seconds,
            send_not_analysed: self.send_not_analysed,
            results,
        }
    }
}

/// `known`, or what is in the file, with these keys set.
fn results(known: ResultProfile, file: Option<&str>, settings: &[String]) -> Result<ResultProfile, String> {
    let base = match file {
        Some(text) => {
            toml::from_str(text).map_err(|error| format!("the file of --results-file: {}", error.message()))?
        }
        None => known,
    };
    let mut table = toml::Table::try_from(base).map_err(|error| error.to_string())?;
    for setting in settings {
        let parsed =
            setting.split_once('=').and_then(|(key, value)| Some((key.trim().strip_prefix("results.")?, value)));
        let (key, value) = parsed.ok_or_else(|| format!("--set {setting}: give results.KEY=VALUE"))?;
        let value = format!("value = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
        table.insert(key.to_owned(), value);
    }
    table.try_into().map_err(|error: toml::de::Error| {
        let message = error.message().lines().next().unwrap_or_default();
        format!("results: {message}; config/site.example.toml explains every key")
    })
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Add(add) => {
            let file = add
                .results_file
                .as_ref()
                .map(|path| fs_err::read_to_string(path).context("--results-file"))
                .transpose()?;
            // Tried before anything is opened: a slip of the pen is told as one.
            results(ResultProfile::default(), file.as_deref(), &add.settings).map_err(Usage)?;
            site::change(global, move |site| {
                let known = site.destinations.iter().find(|destination| destination.name == add.name);
                let known = known.map(|destination| destination.results.clone()).unwrap_or_default();
                let results = results(known, file.as_deref(), &add.settings)?;
                site::upsert(&mut site.destinations, add.over(results), |destination| &destination.name);
                Ok(())
            })
            .await
        }
        Action::List(options) => options.print(&site::load(global).await?.destinations, table),
        Action::Status(options) => {
            let store = Store::open(&global.load()?).await?;
            let read = async {
                let mut connection = store.db.acquire().await?;
                Ok::<_, crate::db::DbError>((
                    crate::db::site::load(&mut connection).await?,
                    destination::all(&mut connection).await?,
                ))
            }
            .await;
            store.close().await?;
            let (site, states) = read?;
            if options.is_json() {
                return print_json(&states.iter().map(state_json).collect::<Vec<_>>());
            }
            print(&status_table(&site.destinations, &states))
        }
        Action::Remove { name } => {
            site::change(global, move |site| {
                site::remove(site, "destination", &name, |site| &mut site.destinations, |destination| &destination.name)
            })
            .await
        }
        Action::Test { name } => {
            let site = site::load(global).await?;
            test(&global.load()?, &site, &name).await
        }
    }
}

/// Asks the destination `name` whether it is there.
async fn test(config: &Config, site: &SiteConfig, name: &str) -> anyhow::Result<()> {
    let Some(destination) = site.destinations.iter().find(|destination| destination.name == name) else {
        let known: Vec<String> =
            site.destinations.iter().map(|destination| format!("`{}`", destination.name)).collect();
        anyhow::bail!(site::unknown("destination", name, &known));
    };
    if let (DestinationKind::Dicom, Some(peer), Some(calling)) =
        (destination.kind, &destination.peer, &destination.calling_ae_title)
    {
        return peer::test(config, site, peer, calling).await;
    }
    let (_keeps, tls) = watch::channel(std::sync::Arc::new(TlsMaterial::load(&tls_settings(&config.tls))?));
    let timeout = echo::DEFAULT_TIMEOUT;
    let caller = Caller { connect_timeout: timeout, response_timeout: timeout, tls };
    let lines = deliver::check(&caller, site, destination).await.map_err(anyhow::Error::msg)?;
    print(&lines.join("\n"))
}

fn table(destinations: &[Destination]) -> String {
    let mut table = Table::new(&["NAME", "KIND", "WHERE", "CALLING", "COMMITMENT", "SENDS NOT ANALYSED"]);
    for destination in destinations {
        table.row([
            destination.name.clone(),
            destination.kind.name().to_owned(),
            destination.place(),
            destination.calling_ae_title.as_ref().map(ToString::to_string).unwrap_or_default(),
            destination.commitment.name().to_owned(),
            yes_no(destination.send_not_analysed),
        ]);
    }
    table.render("no destinations; add one with `hilum destination add NAME --peer PEER --calling-ae-title TITLE`")
}

fn status_table(destinations: &[Destination], states: &[DestinationState]) -> String {
    let mut table = Table::new(&["NAME", "STATE", "FAILURES", "SINCE", "NEXT QUESTION", "LAST FAILURE"]);
    for destination in destinations {
        let Some(state) = states.iter().find(|state| state.destination == destination.name) else {
            let nothing = std::iter::repeat_n(String::new(), 4);
            table.row([destination.name.clone(), "in use".to_owned()].into_iter().chain(nothing));
            continue;
        };
        let words = match state.state.as_str() {
            "open" => "left alone",
            "half_open" => "being tried",
            _ => "in use",
        };
        table.row([
            destination.name.clone(),
            words.to_owned(),
            state.failures.to_string(),
            time_text(state.since),
            state.next_probe_at.map(time_text).unwrap_or_default(),
            state.words.clone(),
        ]);
    }
    table.render("no destinations")
}

fn state_json(state: &DestinationState) -> serde_json::Value {
    json!({
        "destination": state.destination,
        "state": state.state,
        "failures": state.failures,
        "since": time_json(state.since),
        "next_probe_at": state.next_probe_at.map(time_json),
        "words": state.words,
    })
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::{super::tests::site, *};
    use crate::types::ReportClass;

    #[test]
    fn the_table_of_destinations() {
        let mut destinations = site().destinations;
        destinations.push(Destination {
            folder: Some("/srv/results".into()),
            ..Destination::new("files", DestinationKind::Folder)
        });
        insta::assert_snapshot!(table(&destinations), @"
        NAME   KIND    WHERE         CALLING  COMMITMENT  SENDS NOT ANALYSED
        pacs   dicom   pacs          HILUM    off         no
        files  folder  /srv/results  -        off         no
        ");
        let state = DestinationState {
            destination: "pacs".into(),
            state: "open".into(),
            failures: 6,
            since: OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap(),
            next_probe_at: Some(OffsetDateTime::from_unix_timestamp(1_790_000_100).unwrap()),
            words: "connection refused".into(),
        };
        insta::assert_snapshot!(status_table(&destinations, &[state]), @"
        NAME   STATE       FAILURES  SINCE                 NEXT QUESTION         LAST FAILURE
        pacs   left alone  6         2026-09-21 14:13:20Z  2026-09-21 14:15:00Z  connection refused
        files  in use      -         -                     -                     -
        ");
    }

    #[test]
    fn results_are_set_key_by_key() {
        let given = |file: Option<&str>, settings: &[&str]| {
            let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
            results(ResultProfile::default(), file, &settings)
        };
        let profile =
            given(None, &["results.language=zh", "results.report_classes=[\"enhanced\"]", "results.key_objects=true"]);
        let profile = profile.unwrap();
        assert_eq!(profile.language, "zh");
        assert_eq!(profile.report_classes, [ReportClass::Enhanced]);
        assert!(profile.key_objects);
        let profile = given(Some("pictures = false"), &["results.picture_longest_side=1024"]).unwrap();
        assert!(!profile.pictures && profile.picture_longest_side == 1024);
        assert!(given(None, &["language=zh"]).unwrap_err().contains("give results.KEY=VALUE"));
        assert!(given(None, &["results.colour=red"]).unwrap_err().contains("colour"));
        assert!(given(Some("colour = 'red'"), &[]).unwrap_err().contains("--results-file"));
    }

    #[test]
    fn every_kind_can_be_added() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            add: Add,
        }
        let add = |options: &[&str]| {
            let words = ["add", "d"].iter().chain(options);
            let line = <Line as clap::Parser>::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
            line.add.over(ResultProfile::default())
        };
        let mut site = site();
        site.destinations = vec![
            add(&["--peer", "pacs", "--calling-ae-title", "HILUM", "--commitment", "required"]),
            Destination {
                name: "web".into(),
                ..add(&[
                    "--kind",
                    "dicomweb",
                    "--url",
                    "https://pacs.example.org/dicom-web",
                    "--basic-user",
                    "hilum",
                    "--basic-password-file",
                    "/etc/hilum/password",
                ])
            },
            Destination { name: "files".into(), ..add(&["--kind", "folder", "--folder", "/srv/results"]) },
            Destination { name: "back".into(), ..add(&["--kind", "return-to-sender"]) },
        ];
        site.routes.clear();
        assert_eq!(site.problems(), []);
        let basic = WebAuthentication::Basic { user: "hilum".into(), password_file: "/etc/hilum/password".into() };
        assert_eq!(site.destinations[1].authentication, basic);
        assert_eq!(site.destinations[0].commitment, CommitmentUse::Required);
    }

    #[tokio::test]
    async fn a_test_says_what_is_wrong() {
        let config = Config::defaults_for_dev(std::path::Path::new("no/such/folder"));
        let mut site = site();
        site.destinations.push(Destination {
            folder: Some("/no/such/folder".into()),
            ..Destination::new("files", DestinationKind::Folder)
        });
        let error = test(&config, &site, "files").await.unwrap_err().to_string();
        assert!(error.contains("create the folder, or mount it"), "{error}");
        let error = test(&config, &site, "nobody").await.unwrap_err().to_string();
        assert_eq!(error, "there is no destination `nobody`; known: `pacs`, `files`");
    }
}
