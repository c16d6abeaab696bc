//! From file and environment to a validated [`Config`].

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{
    document::{Document, field_names, list},
    problem::ConfigErrors,
    sections::{
        ArchiveConfig, AssembleConfig, DEFAULT_DATABASE_URL, DatabaseConfig, DatabaseSource, DeliverConfig,
        DicomConfig, HttpConfig, InferenceConfig, LogConfig, NodeConfig, RawDatabase, RetentionConfig, TlsConfig,
    },
    values::{POSTGRES_URL, Redacted, is_postgres_url, utc_offset_text},
    vars::Vars,
};
use crate::types::{AssociationPolicy, Sha256Digest};

const ENVIRONMENT_PREFIX: &str = "HILUM__";

/// The process configuration, complete and valid. Rooms get their own section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[database]`
    pub database: DatabaseConfig,
    /// `[dicom]`
    pub dicom: DicomConfig,
    /// `[tls]`
    pub tls: TlsConfig,
    /// `[policy]`: what each peer's associations may do unless the site configuration says otherwise.
    pub policy: AssociationPolicy,
    /// `[archive]`
    pub archive: ArchiveConfig,
    /// `[retention]`
    pub retention: RetentionConfig,
    /// `[assemble]`
    pub assemble: AssembleConfig,
    /// `[inference]`
    pub inference: InferenceConfig,
    /// `[deliver]`
    pub deliver: DeliverConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// The sections as written in the file. What differs from [`Config`] is `[database]`, whose secret may be in a
/// file of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    node: NodeConfig,
    database: RawDatabase,
    dicom: DicomConfig,
    tls: TlsConfig,
    policy: AssociationPolicy,
    archive: ArchiveConfig,
    retention: RetentionConfig,
    assemble: AssembleConfig,
    inference: InferenceConfig,
    deliver: DeliverConfig,
    http: HttpConfig,
    log: LogConfig,
}

impl Config {
    /// Reads `path` (built-in defaults without one), overlays `HILUM__SECTION__KEY=value` from `vars` (the value
    /// is TOML if it parses as a value, else a text) and validates. The error holds every problem.
    pub fn load(path: Option<&Path>, vars: &dyn Vars) -> Result<Self, ConfigErrors> {
        let mut document = path.map_or_else(Document::empty, Document::read);
        overlay_environment(&mut document, vars);
        let raw = read_sections(&mut document);
        let config = resolve(raw, &mut document);
        ConfigErrors::check("the node's configuration", document.into_problems(), config)
    }

    /// What `hilum dev` runs on: everything below `data_dir`, a managed Postgres, migrations applied at start, and
    /// listeners on loopback only.
    #[must_use]
    pub fn defaults_for_dev(data_dir: &Path) -> Self {
        let raw = RawConfig::default();
        Self {
            node: NodeConfig { data_dir: data_dir.to_owned(), ..raw.node },
            database: DatabaseConfig {
                source: DatabaseSource::Managed,
                max_connections: raw.database.max_connections,
                migrate_on_start: true,
            },
            dicom: DicomConfig { listen: SocketAddr::from(([127, 0, 0, 1], raw.dicom.listen.port())), ..raw.dicom },
            tls: raw.tls,
            policy: raw.policy,
            archive: raw.archive,
            retention: raw.retention,
            assemble: raw.assemble,
            inference: InferenceConfig { models_dir: data_dir.join("models"), ..raw.inference },
            deliver: raw.deliver,
            http: raw.http,
            log: raw.log,
        }
    }

    /// Digest of the settings that influence the content of results: who signs them, their time zone, what
    /// computes and what is too large to compute. Part of the identity of results: two settings that give the same
    /// results give the same digest.
    #[must_use]
    pub fn results_digest(&self) -> Sha256Digest {
        let NodeConfig { name, institution_name, manufacturer_name, utc_offset, .. } = &self.node;
        let InferenceConfig { devices, max_decoded_bytes, optimise, .. } = &self.inference;
        let settings = serde_json::json!({
            "format": 1,
            "node.name": &**name,
            "node.institution_name": &**institution_name,
            "node.manufacturer_name": manufacturer_name.as_deref(),
            "node.utc_offset": utc_offset.map(utc_offset_text),
            "inference.device": devices.kind(),
            "inference.max_decoded_bytes": max_decoded_bytes.bytes(),
            "inference.optimise": optimise,
        });
        Sha256Digest::of(settings.to_string().as_bytes())
    }
}

/// How many problems a text has as a node's configuration file. The files that it names are not read.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn problems_of_text(text: &str) -> usize {
    let mut document = Document::parse(text, Path::new("hilum.toml"));
    let _ = read_sections(&mut document);
    document.into_problems().len()
}

/// The configuration as a file would say it, defaults included, secrets redacted.
#[must_use]
pub fn effective_toml(config: &Config) -> String {
    let Config { node, database, dicom, tls, policy, archive, retention, assemble, inference, deliver, http, log } =
        config.clone();
    let DatabaseConfig { source, max_connections, migrate_on_start } = database;
    let (managed, url, url_file) = match source {
        DatabaseSource::Managed => (true, None, None),
        DatabaseSource::External { url_file: Some(file), .. } => (false, None, Some(file)),
        DatabaseSource::External { url, url_file: None } => (false, Some(url), None),
    };
    let database = RawDatabase { url, url_file, managed, max_connections, migrate_on_start };
    let policy = policy.redacted();
    let raw =
        RawConfig { node, database, dicom, tls, policy, archive, retention, assemble, inference, deliver, http, log };
    // Serialising plain tables of texts and numbers only fails for a path that is not UTF-8.
    toml::to_string(&raw).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}

/// Every section with its keys.
fn sections() -> [(&'static str, &'static [&'static str]); 12] {
    [
        ("node", field_names::<NodeConfig>()),
        ("database", field_names::<RawDatabase>()),
        ("dicom", field_names::<DicomConfig>()),
        ("tls", field_names::<TlsConfig>()),
        ("policy", field_names::<AssociationPolicy>()),
        ("archive", field_names::<ArchiveConfig>()),
        ("retention", field_names::<RetentionConfig>()),
        ("assemble", field_names::<AssembleConfig>()),
        ("inference", field_names::<InferenceConfig>()),
        ("deliver", field_names::<DeliverConfig>()),
        ("http", field_names::<HttpConfig>()),
        ("log", field_names::<LogConfig>()),
    ]
}

fn overlay_environment(document: &mut Document, vars: &dyn Vars) {
    let mut vars: Vec<(String, Option<String>)> = vars
        .vars()
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok())))
        .collect();
    vars.sort();
    for (variable, value) in vars {
        let Some(key) = variable.strip_prefix(ENVIRONMENT_PREFIX).map(str::to_lowercase) else { continue };
        let origin = super::Origin::Environment { variable: variable.clone() };
        match (key.split_once("__"), value) {
            (Some((section, key)), Some(text)) if !section.is_empty() && !key.is_empty() => {
                document.overlay(section, key, &variable, &text);
            }
            (_, None) => document.push(origin, "", "the value is not UTF-8".into(), "give it in UTF-8".into()),
            _ => document.push(
                origin,
                "",
                "the name does not name a section and a key".into(),
                "write HILUM__SECTION__KEY, such as HILUM__DICOM__LISTEN".into(),
            ),
        }
    }
}

fn read_sections(document: &mut Document) -> RawConfig {
    let mut file = std::mem::take(&mut document.table);
    document.refuse_unknown_keys::<RawConfig>("", &mut file, homes_of);
    RawConfig {
        node: read_section(document, &mut file, "node"),
        database: read_section(document, &mut file, "database"),
        dicom: read_section(document, &mut file, "dicom"),
        tls: read_section(document, &mut file, "tls"),
        policy: read_section(document, &mut file, "policy"),
        archive: read_section(document, &mut file, "archive"),
        retention: read_section(document, &mut file, "retention"),
        assemble: read_section(document, &mut file, "assemble"),
        inference: read_section(document, &mut file, "inference"),
        deliver: read_section(document, &mut file, "deliver"),
        http: read_section(document, &mut file, "http"),
        log: read_section(document, &mut file, "log"),
    }
}

fn read_section<T: DeserializeOwned + Default>(document: &mut Document, file: &mut Table, name: &str) -> T {
    let mut table = match file.remove(name) {
        Some(Value::Table(table)) => table,
        Some(_) => {
            document.report(name, "is not a section", format!("write [{name}] and its keys below it"));
            Table::new()
        }
        None => Table::new(),
    };
    document.refuse_unknown_keys::<T>(name, &mut table, homes_of);
    document.decode(name, table).unwrap_or_default()
}

/// Where a misplaced key belongs, in words.
fn homes_of(key: &str) -> Vec<String> {
    let homes = sections().into_iter().filter(|(_, keys)| keys.contains(&key));
    homes.map(|(section, _)| format!("`{key}` in [{section}]")).collect()
}

/// The rules between keys, and the secrets that live in files. `None` when there is no usable database source.
fn resolve(raw: RawConfig, document: &mut Document) -> Option<Config> {
    let RawConfig { node, database, dicom, tls, policy, archive, retention, assemble, inference, deliver, http, log } =
        raw;
    if !http.listen.ip().is_loopback() {
        document.report(
            "http.listen",
            format!("{} can be reached from other machines, and the page has no sign-in yet", http.listen),
            format!("give a loopback address, such as \"127.0.0.1:{}\", and an SSH tunnel to those who need it", {
                http.listen.port()
            }),
        );
    }
    let same_port = dicom.listen.port() == http.listen.port() && dicom.listen.port() != 0;
    let same_address = dicom.listen.ip() == http.listen.ip() || dicom.listen.ip().is_unspecified();
    if same_port && same_address {
        document.report(
            "http.listen",
            format!("`dicom.listen` takes port {} already", http.listen.port()),
            "give one of them another port",
        );
    }
    check_tls(&tls, document);
    for (key, other) in [("dicom.listen", dicom.listen), ("http.listen", http.listen)] {
        if let Some(listen) = tls.listen
            && listen.port() == other.port()
            && listen.port() != 0
        {
            let reason = format!("`{key}` takes port {} already", listen.port());
            document.report("tls.listen", reason, "give one of them another port; that of DICOM over TLS is 2762");
        }
    }
    for (problem, remedy) in policy.problems() {
        document.report("policy", problem, remedy);
    }
    if archive.results_minimum_free_bytes > archive.minimum_free_bytes {
        document.report(
            "archive.results_minimum_free_bytes",
            format!(
                "{} is more than `minimum_free_bytes` ({}): results would wait while objects still come",
                archive.results_minimum_free_bytes, archive.minimum_free_bytes
            ),
            "give at most as much",
        );
    }
    if deliver.initial_backoff > deliver.maximum_backoff {
        document.report(
            "deliver.initial_backoff_seconds",
            format!(
                "{} is more than `maximum_backoff_seconds` ({})",
                deliver.initial_backoff.as_secs(),
                deliver.maximum_backoff.as_secs()
            ),
            "give at most as much",
        );
    }
    if inference.restart_backoff_minimum > inference.restart_backoff_maximum {
        document.report(
            "inference.restart_backoff_minimum_seconds",
            format!(
                "{} is more than `restart_backoff_maximum_seconds` ({})",
                inference.restart_backoff_minimum.as_secs(),
                inference.restart_backoff_maximum.as_secs()
            ),
            "give at most as much",
        );
    }
    let source = database_source(&database, document)?;
    let RawDatabase { max_connections, migrate_on_start, .. } = database;
    let database = DatabaseConfig { source, max_connections, migrate_on_start };
    Some(Config { node, database, dicom, tls, policy, archive, retention, assemble, inference, deliver, http, log })
}

/// What the keys of `[tls]` ask of each other; the files themselves are read by whoever uses them.
fn check_tls(tls: &TlsConfig, document: &mut Document) {
    let with_key = tls.private_key_file.is_some();
    match (tls.certificate_file.is_some(), with_key) {
        (true, false) => {
            document.report("tls.certificate_file", "comes without its key", "give `private_key_file` too");
        }
        (false, true) => {
            document.report("tls.private_key_file", "comes without its certificate", "give `certificate_file` too");
        }
        _ => {}
    }
    if tls.listen.is_none() {
        return;
    }
    if !with_key {
        document.report(
            "tls.listen",
            "a listener for TLS needs a certificate and its key",
            "give `certificate_file` and `private_key_file`; docs/operations.md shows how to make them",
        );
    }
    if tls.require_client_certificate && tls.ca_files.is_empty() {
        document.report(
            "tls.listen",
            "callers must show a certificate, and no CA is trusted to sign one",
            "give `ca_files`, or, on a network that you trust, require_client_certificate = false",
        );
    }
}

fn database_source(raw: &RawDatabase, document: &mut Document) -> Option<DatabaseSource> {
    let given: Vec<&str> = [
        ("database.url", raw.url.is_some()),
        ("database.url_file", raw.url_file.is_some()),
        ("database.managed", raw.managed),
    ]
    .into_iter()
    .filter_map(|(key, given)| given.then_some(key))
    .collect();
    match (given.as_slice(), &raw.url, &raw.url_file) {
        ([], _, _) => {
            Some(DatabaseSource::External { url: Redacted::new(DEFAULT_DATABASE_URL.to_owned()), url_file: None })
        }
        (["database.managed"], _, _) => Some(DatabaseSource::Managed),
        (["database.url"], Some(url), _) => Some(DatabaseSource::External { url: url.clone(), url_file: None }),
        (["database.url_file"], _, Some(file)) => {
            let url = read_url_file(file, document)?;
            Some(DatabaseSource::External { url, url_file: Some(file.clone()) })
        }
        ([.., last], _, _) => {
            let reason = format!("{} are given, and each says where the database is", list(&given));
            document.report(last, reason, "keep one of them");
            None
        }
    }
}

fn read_url_file(file: &PathBuf, document: &mut Document) -> Option<Redacted<String>> {
    let key = "database.url_file";
    if is_postgres_url(&file.to_string_lossy()) {
        document.report(key, "the value (not shown) is a URL, not a path", "write the URL to a file, or use `url`");
        return None;
    }
    match fs_err::read_to_string(file) {
        Ok(text) if is_postgres_url(text.trim()) => Some(Redacted::new(text.trim().to_owned())),
        Ok(_) => {
            let reason = format!("{} (content not shown) holds no Postgres URL", file.display());
            document.report(key, reason, format!("write {POSTGRES_URL} into it"));
            None
        }
        Err(error) => {
            document.report(key, error.to_string(), "check that the file exists and that this user may read it");
            None
        }
    }
}

#[cfg(test)]
mod tests;
