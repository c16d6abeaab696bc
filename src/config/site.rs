//! The site file: local AE titles, peers, destinations and routes, as `hilum apply` reads them.

use std::{collections::BTreeMap, path::Path};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::{
    document::Document,
    problem::{ConfigErrors, Origin},
};
use crate::types::{
    AeTitle, AssociationPolicy, Destination, DestinationKind, Duplicates, LateImages, LocalAe, Peer, Pipeline, Route,
    SiteConfig,
};

/// Reads and validates a site file. The error holds every problem: syntax, unknown and missing keys, values, and
/// the rules between the entries.
pub fn load_site(path: &Path) -> Result<SiteConfig, ConfigErrors> {
    check(Document::read(path))
}

/// The same for a text; `name` is what problems call it.
pub fn parse_site(text: &str, name: &Path) -> Result<SiteConfig, ConfigErrors> {
    check(Document::parse(text, name))
}

/// A kind of entry of the site file.
trait Entry: DeserializeOwned {
    /// The `[[kind]]` of the file; also what [`crate::types::SiteProblem`] calls it, see [`Entry::subject`].
    const KIND: &'static str;
    /// The key that names an entry.
    const NAME_KEY: &'static str;
    /// Keys without a default; a test compares them with serde's.
    const REQUIRED: &'static [&'static str];

    /// How [`SiteConfig::problems`] calls the entry of this name.
    fn subject(name: &str) -> String {
        format!("{} `{name}`", Self::KIND)
    }

    /// Stands in for an entry with problems, so that what refers to it is not reported as well.
    fn stand_in(name: &str, table: &Table) -> Option<Self>;
}

impl Entry for LocalAe {
    const KIND: &'static str = "local_ae";
    const NAME_KEY: &'static str = "ae_title";
    const REQUIRED: &'static [&'static str] = &["ae_title"];

    fn subject(name: &str) -> String {
        format!("local AE `{name}`")
    }

    fn stand_in(name: &str, _: &Table) -> Option<Self> {
        Some(Self {
            ae_title: AeTitle::new(name).ok()?,
            enabled: true,
            description: String::new(),
            policy: AssociationPolicy::default(),
        })
    }
}

impl Entry for Peer {
    const KIND: &'static str = "peer";
    const NAME_KEY: &'static str = "name";
    const REQUIRED: &'static [&'static str] = &["name", "ae_title", "host"];

    fn stand_in(name: &str, _: &Table) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            ae_title: AeTitle::new("STAND_IN").ok()?,
            host: "stand-in".to_owned(),
            port: Some(104),
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
        })
    }
}

impl Entry for Destination {
    const KIND: &'static str = "destination";
    const NAME_KEY: &'static str = "name";
    const REQUIRED: &'static [&'static str] = &["name", "kind"];

    /// One that names a peer checks that name; without, there is nothing between it and other entries.
    fn stand_in(name: &str, table: &Table) -> Option<Self> {
        Some(match table.get("peer").and_then(Value::as_str) {
            Some(peer) => Self::dicom(name, peer, AeTitle::new("STAND_IN").ok()?),
            None => Self::new(name, DestinationKind::ReturnToSender),
        })
    }
}

impl Entry for Route {
    const KIND: &'static str = "route";
    const NAME_KEY: &'static str = "name";
    const REQUIRED: &'static [&'static str] =
        &["name", "order", "called_ae_title", "modalities", "pipeline", "bundle", "quiet_seconds", "max_wait_seconds"];

    /// Routes name others and nothing names a route, so a stand-in is only good for checking those names.
    fn stand_in(name: &str, table: &Table) -> Option<Self> {
        let destinations = table.get("destinations").and_then(Value::as_array).cloned().unwrap_or_default();
        Some(Self {
            name: name.to_owned(),
            order: 0,
            enabled: false,
            called_ae_title: AeTitle::new(table.get("called_ae_title")?.as_str()?).ok()?,
            calling_ae_titles: Vec::new(),
            modalities: vec!["DX".to_owned()],
            pipeline: Pipeline::ChestRadiograph,
            bundle: "stand-in".to_owned(),
            priority: crate::types::RunPriority::default(),
            quiet_seconds: 1,
            max_wait_seconds: 1,
            released_quiet_seconds: None,
            lost_quiet_seconds: None,
            required: None,
            late_images: LateImages::default(),
            late_images_within_seconds: None,
            destinations: destinations.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect(),
            rules: Vec::new(),
            trial: None,
        })
    }
}

fn check(mut document: Document) -> Result<SiteConfig, ConfigErrors> {
    let mut table = std::mem::take(&mut document.table);
    document.refuse_unknown_keys::<SiteConfig>("", &mut table, |_| Vec::new());
    let mut places = BTreeMap::new();
    let site = SiteConfig {
        local_aes: entries(&mut document, &mut table, &mut places),
        peers: entries(&mut document, &mut table, &mut places),
        destinations: entries(&mut document, &mut table, &mut places),
        routes: entries(&mut document, &mut table, &mut places),
    };
    // A broken line may have swallowed the entry that another one names: the rules between entries wait for it.
    if !document.has_syntax_errors() {
        let whole_file = || match document.path() {
            Some(path) => Origin::WholeFile { path: path.to_owned() },
            None => Origin::Default,
        };
        let problems: Vec<_> = site
            .problems()
            .into_iter()
            .map(|problem| (places.get(&problem.subject).cloned().unwrap_or_else(whole_file), problem))
            .collect();
        for (origin, problem) in problems {
            document.push(origin, "", format!("{} {}", problem.subject, problem.problem), problem.remedy);
        }
    }
    ConfigErrors::check("the site configuration", document.into_problems(), Some(site))
}

/// Reads every `[[kind]]`; of two entries with one name, `places` keeps the later.
fn entries<T: Entry>(document: &mut Document, table: &mut Table, places: &mut BTreeMap<String, Origin>) -> Vec<T> {
    let kind = T::KIND;
    let elements = match table.remove(kind) {
        None => return Vec::new(),
        Some(Value::Array(elements)) => elements,
        Some(_) => {
            document.report(kind, "is not a list of entries", format!("write [[{kind}]] with two brackets"));
            return Vec::new();
        }
    };
    let mut entries = Vec::new();
    for (idx, element) in elements.into_iter().enumerate() {
        let path = format!("{kind}[{idx}]");
        let Value::Table(mut element) = element else {
            document.report(&path, "is not an entry", format!("write [[{kind}]] and its keys below it"));
            continue;
        };
        document.refuse_unknown_keys::<T>(&path, &mut element, |_| Vec::new());
        for key in T::REQUIRED.iter().filter(|key| !element.contains_key(**key)) {
            document.report(&path, format!("has no `{key}`"), "add it; config/site.example.toml explains every key");
        }
        let name = element.get(T::NAME_KEY).and_then(Value::as_str).map(str::to_owned);
        let stand_in = name.as_deref().and_then(|name| T::stand_in(name, &element));
        if let Some(name) = name {
            // AE titles are compared without padding, as `SiteConfig::problems` prints them.
            places.insert(T::subject(name.trim_matches(' ')), document.origin_of(&path));
        }
        entries.extend(document.decode(&path, element).or(stand_in));
    }
    entries
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn example() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config/site.example.toml")
    }

    fn parse(text: &str) -> Result<SiteConfig, ConfigErrors> {
        parse_site(text, Path::new("site.toml"))
    }

    #[test]
    fn the_example_is_good() {
        let site = load_site(&example()).unwrap();
        assert_eq!(site.local_aes[0].ae_title.as_str(), "HILUM");
        assert!(site.peers.iter().filter(|peer| peer.may_store).count() >= 2);
        assert_eq!(site.routes[0].bundle, "cxr-untrained");
        assert!(!site.routes[0].destinations.is_empty());
    }

    #[test]
    fn the_example_explains_every_key() {
        let text = fs_err::read_to_string(example()).unwrap();
        assert_mentions::<LocalAe>(&text);
        assert_mentions::<Peer>(&text);
        assert_mentions::<Destination>(&text);
        assert_mentions::<Route>(&text);
    }

    fn assert_mentions<T: Entry>(text: &str) {
        let keys = super::super::document::field_names::<T>();
        assert!(!keys.is_empty());
        let (_, entry) = text.split_once(&format!("[[{}]]", T::KIND)).unwrap();
        for key in keys {
            let mentioned = entry.lines().any(|line| {
                line.trim_start_matches(['#', ' ']).split('=').next().is_some_and(|word| word.trim() == *key)
            });
            assert!(mentioned, "config/site.example.toml does not mention `{key}` of [[{}]]", T::KIND);
        }
    }

    /// Serde's idea of the required keys, found by leaving each of them out.
    fn required<T: Entry>(full: &Table) -> Vec<&'static str> {
        assert!(T::deserialize(Value::Table(full.clone())).is_ok());
        super::super::document::field_names::<T>()
            .iter()
            .copied()
            .filter(|key| {
                let mut without = full.clone();
                without.remove(*key);
                T::deserialize(Value::Table(without)).is_err()
            })
            .collect()
    }

    #[test]
    fn required_keys_are_serdes() {
        let site = load_site(&example()).unwrap();
        let table = |value: Value| value.as_table().unwrap().clone();
        let local_ae = table(Value::try_from(&site.local_aes[0]).unwrap());
        assert_eq!(required::<LocalAe>(&local_ae), LocalAe::REQUIRED);
        let peer = table(Value::try_from(&site.peers[0]).unwrap());
        assert_eq!(required::<Peer>(&peer), Peer::REQUIRED);
        let destination = table(Value::try_from(&site.destinations[0]).unwrap());
        assert_eq!(required::<Destination>(&destination), Destination::REQUIRED);
        let route = table(Value::try_from(&site.routes[0]).unwrap());
        assert_eq!(required::<Route>(&route), Route::REQUIRED);
    }

    #[test]
    fn every_problem_is_reported_once_with_its_place() {
        let errors = parse(
            r#"
[[local_ae]]
ae_title = "SEVENTEEN_LETTERS"
[[local_ae]]
ae_title = "HILUM"
[[peer]]
name = "ct-1"
ae_title = 5
host = "10.0.0.1"
may_stor = true
[[peer]]
name = "pacs"
host = "10.0.0.2"
port = 70000
[[destination]]
name = "pacs"
kind = "carrier pigeon"
peer = "pacs"
calling_ae_title = "HILUM"
[[route]]
name = "chest"
order = 1
called_ae_title = "HILUM"
modalities = ["DX"]
pipeline = "chest_radiograph"
bundle = "cxr-untrained"
quiet_seconds = 0
max_wait_seconds = 300
destinations = ["pacs", "nowhere"]
[colour]
"#,
        )
        .unwrap_err();
        insta::assert_snapshot!(errors, @r#"
        the site configuration has 9 problems:
          site.toml:3:1: `local_ae[0].ae_title`: AE title `SEVENTEEN_LETTERS` has 17 characters; at most 16 are allowed
          site.toml:8:1: `peer[0].ae_title`: got integer `5`; give a text in double quotes
          site.toml:10:1: `peer[0].may_stor`: unknown key; did you mean `may_store`?
          site.toml:11:1: `peer[1]`: has no `ae_title`; add it; config/site.example.toml explains every key
          site.toml:14:1: `peer[1].port`: got integer `70000`; give a whole number from 0 to 65535
          site.toml:17:1: `destination[0].kind`: unknown variant `carrier pigeon`; give one of `dicom`, `dicomweb`, `folder`, `return_to_sender`
          site.toml:20:1: route `chest` has quiet_seconds = 0 and max_wait_seconds = 300; quiet_seconds must be at least 1 and max_wait_seconds at least as long
          site.toml:20:1: route `chest` sends to destination `nowhere`, which does not exist; add that destination or name another
          site.toml:30:2: `colour`: unknown key; remove it; this file knows `local_ae`, `peer`, `destination`, `route`
        "#);
    }

    #[test]
    fn a_syntax_error_does_not_hide_the_others() {
        let errors = parse("[[peer]\nname = \"ct\"\n[[local_ae]]\nae_title = HILUM\nenabled = \"yes\"\n").unwrap_err();
        insta::assert_snapshot!(errors, @r#"
        the site configuration has 3 problems:
          site.toml:1:8: unclosed array table; TOML wants `]` here
          site.toml:4:12: no value, or a text without quotes; write texts in double quotes
          site.toml:5:1: `local_ae[0].enabled`: got string "yes"; give true or false
        "#);
    }

    #[test]
    fn a_missing_file_is_explained() {
        let errors = load_site(Path::new("does/not/exist.toml")).unwrap_err();
        let text = errors.to_string();
        assert!(text.contains("does/not/exist.toml: failed to open file"), "{text}");
    }

    proptest::proptest! {
        /// Whatever a file holds, the answer is a configuration or a list of problems, never a panic.
        #[test]
        fn any_text_is_answered(
            text in r#"((\[{1,2}(peer|route|x)\]{0,2}|name|ae_title|[a-z]{1,3})( ?[=.] ?|\n| )|"[^"]{0,3}"?|[0-9{},é\n]){0,12}"#
        ) {
            if let Err(errors) = parse(&text) {
                proptest::prop_assert!(!errors.problems.is_empty());
                proptest::prop_assert!(errors.to_string().contains("site.toml"));
            }
        }
    }

    #[test]
    fn single_brackets_are_explained() {
        let text = parse("[peer]\nname = \"ct\"\n").unwrap_err().to_string();
        assert!(text.contains("write [[peer]] with two brackets"), "{text}");
    }
}
