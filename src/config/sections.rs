//! The sections of `hilum.toml` with their defaults and ranges. `config/hilum.example.toml` documents every key;
//! a test keeps the two equal.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use time::UtcOffset;

use super::values::{
    ByteSize, DicomText, Redacted, SECONDS_PER_DAY, as_days, as_seconds, as_utc_offset, database_url, days, listen,
    log_level, optional_listen, optional_path, optional_size_within, optional_within, path, required_text, seconds,
    size_within, utc_offset, within,
};
use crate::types::Devices;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR: u64 = 60 * 60;

/// `[node]`: who this installation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Station Name (0008,1010) in results, 1 to 16 characters.
    #[serde(deserialize_with = "required_text")]
    pub name: DicomText<16>,
    /// Folder of the archive, the snapshot of the site configuration and a managed Postgres. A relative path is
    /// taken from the process's working folder.
    #[serde(deserialize_with = "path")]
    pub data_dir: PathBuf,
    /// Institution Name (0008,0080) in results; may be empty.
    pub institution_name: DicomText<64>,
    /// Manufacturer (0008,0070) in results, for sites that redistribute Hilum; `None` means Hilum's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manufacturer_name: Option<DicomText<64>>,
    /// Time zone of dates and times in results and their Timezone Offset From UTC (0008,0201) where the images state
    /// none; `None` means UTC, without (0008,0201).
    #[serde(
        deserialize_with = "utc_offset",
        serialize_with = "as_utc_offset",
        skip_serializing_if = "Option::is_none"
    )]
    pub utc_offset: Option<UtcOffset>,
    /// Folder of further languages of results, a file `TAG.ftl` each; `None` means that the built-in ones are all.
    #[serde(deserialize_with = "optional_path", skip_serializing_if = "Option::is_none")]
    pub texts_dir: Option<PathBuf>,
    /// How long a stop waits for associations and jobs to finish their current step.
    #[serde(
        rename = "shutdown_grace_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub shutdown_grace: Duration,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: DicomText::new("HILUM").unwrap_or_default(),
            data_dir: "/var/lib/hilum".into(),
            institution_name: DicomText::default(),
            manufacturer_name: None,
            utc_offset: None,
            texts_dir: None,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// Which Postgres to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseSource {
    /// A private server in the data folder that Hilum starts and stops itself.
    Managed,
    /// A server that somebody else runs.
    External {
        /// `postgres://…`; may hold a password.
        url: Redacted<String>,
        /// The file that the URL was read from.
        url_file: Option<PathBuf>,
    },
}

/// `[database]`: Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// Which server.
    pub source: DatabaseSource,
    /// Connections that one process opens at most, 2 to 1000.
    pub max_connections: u32,
    /// Apply missing migrations at start instead of refusing to start.
    pub migrate_on_start: bool,
}

/// `[database]` as written; [`DatabaseConfig`] is what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawDatabase {
    #[serde(deserialize_with = "database_url", skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<Redacted<String>>,
    #[serde(deserialize_with = "optional_path", skip_serializing_if = "Option::is_none")]
    pub(super) url_file: Option<PathBuf>,
    pub(super) managed: bool,
    #[serde(deserialize_with = "within::<2, 1000, _, _>")]
    pub(super) max_connections: u32,
    pub(super) migrate_on_start: bool,
}

impl Default for RawDatabase {
    fn default() -> Self {
        Self { url: None, url_file: None, managed: false, max_connections: 16, migrate_on_start: false }
    }
}

/// Where Postgres is unless the configuration says otherwise: on this machine, by Unix socket, signed in as the
/// operating system's user.
pub(super) const DEFAULT_DATABASE_URL: &str = "postgres:///hilum?host=/var/run/postgresql";

/// `[dicom]`: the DICOM listener and its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DicomConfig {
    /// Address and port; port 0 takes a free one.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// Associations open at the same time, 1 to 4096; one more is rejected transiently.
    #[serde(deserialize_with = "within::<1, 4096, _, _>")]
    pub max_associations: usize,
    /// Connections open at the same time from one address, 1 to 8192; one more is closed at once. `None` means half of
    /// all.
    #[serde(deserialize_with = "optional_within::<1, 8192, _, _>", skip_serializing_if = "Option::is_none")]
    pub max_connections_per_address: Option<usize>,
    /// Largest P-DATA-TF PDU that we accept and announce, 4096 to 1,048,576 bytes.
    #[serde(deserialize_with = "within::<4096, MIB, _, _>")]
    pub max_pdu_length_bytes: u32,
    /// From the TCP connection to the end of the negotiation (the ARTIM timer of PS3.8 section 9.1.5).
    #[serde(
        rename = "association_request_timeout_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub association_request_timeout: Duration,
    /// Between two messages of one association.
    #[serde(
        rename = "idle_timeout_seconds",
        deserialize_with = "seconds::<1, { 24 * HOUR }, _>",
        serialize_with = "as_seconds"
    )]
    pub idle_timeout: Duration,
    /// From the first to the last byte of one message.
    #[serde(
        rename = "message_timeout_seconds",
        deserialize_with = "seconds::<1, { 24 * HOUR }, _>",
        serialize_with = "as_seconds"
    )]
    pub message_timeout: Duration,
    /// Largest object that we store; a larger one is refused with status 0xC000.
    #[serde(deserialize_with = "size_within::<MIB, TIB, _>")]
    pub max_object_bytes: ByteSize,
}

impl Default for DicomConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 11112)),
            max_associations: 64,
            max_connections_per_address: None,
            max_pdu_length_bytes: 131_072,
            association_request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(1),
            message_timeout: Duration::from_mins(10),
            max_object_bytes: ByteSize::from_gibibytes(4),
        }
    }
}

/// `[tls]`: certificates for DICOM over TLS, and its listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Address and port for associations over TLS, beside `dicom.listen`; `None` means no such listener.
    #[serde(deserialize_with = "optional_listen", skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// PEM file with our certificate and those that lead to its CA.
    #[serde(deserialize_with = "optional_path", skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// PEM file with the private key; nobody but its owner and group may read it.
    #[serde(deserialize_with = "optional_path", skip_serializing_if = "Option::is_none")]
    pub private_key_file: Option<PathBuf>,
    /// PEM files with the certificates of the CAs that sign the peers' certificates.
    pub ca_files: Vec<PathBuf>,
    /// Whether callers must show a certificate.
    pub require_client_certificate: bool,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            listen: None,
            certificate_file: None,
            private_key_file: None,
            ca_files: Vec::new(),
            require_client_certificate: true,
        }
    }
}

/// `[archive]`: the object files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveConfig {
    /// With less than this free on the disk, objects are refused with status 0xA700 (out of resources).
    #[serde(deserialize_with = "size_within::<{ 64 * MIB }, { 1024 * TIB }, _>")]
    pub minimum_free_bytes: ByteSize,
    /// Receiving goes on when so much more than `minimum_free_bytes` is free again.
    #[serde(deserialize_with = "size_within::<0, { 1024 * TIB }, _>")]
    pub resume_margin_bytes: ByteSize,
    /// Results are made down to this free space, and wait below it; at most `minimum_free_bytes`.
    #[serde(deserialize_with = "size_within::<MIB, { 1024 * TIB }, _>")]
    pub results_minimum_free_bytes: ByteSize,
    /// Objects that one database transaction indexes at most, 1 to 10,000.
    #[serde(deserialize_with = "within::<1, 10_000, _, _>")]
    pub index_batch_size: usize,
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            minimum_free_bytes: ByteSize::from_gibibytes(2),
            resume_margin_bytes: ByteSize::from_mebibytes(256),
            results_minimum_free_bytes: ByteSize::from_mebibytes(64),
            index_batch_size: 256,
        }
    }
}

/// `[retention]`: what is removed by itself. Nothing, unless told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Received objects of studies that are answered or not routed go when the study's newest is so old.
    #[serde(deserialize_with = "optional_within::<1, 36_500, _, _>", skip_serializing_if = "Option::is_none")]
    pub objects_days: Option<u32>,
    /// When the received objects take more, those of the oldest such studies go.
    #[serde(
        deserialize_with = "optional_size_within::<MIB, { 1024 * TIB }, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub objects_maximum_bytes: Option<ByteSize>,
    /// Results that every destination has got go when they are so old.
    #[serde(deserialize_with = "optional_within::<1, 36_500, _, _>", skip_serializing_if = "Option::is_none")]
    pub results_days: Option<u32>,
    /// When the results take more, the oldest that every destination has got go.
    #[serde(
        deserialize_with = "optional_size_within::<MIB, { 1024 * TIB }, _>",
        skip_serializing_if = "Option::is_none"
    )]
    pub results_maximum_bytes: Option<ByteSize>,
    /// Whatever the sizes, nothing younger goes.
    #[serde(deserialize_with = "within::<1, 36_500, _, _>")]
    pub minimum_age_days: u32,
    /// Steps of the timeline and ended associations go when they are so old and their study is not under way.
    #[serde(deserialize_with = "optional_within::<1, 36_500, _, _>", skip_serializing_if = "Option::is_none")]
    pub history_days: Option<u32>,
    /// Files among the results that no row names go when they are so old.
    #[serde(deserialize_with = "optional_within::<1, 36_500, _, _>", skip_serializing_if = "Option::is_none")]
    pub orphan_results_days: Option<u32>,
    /// How often this is looked after.
    #[serde(
        rename = "interval_seconds",
        deserialize_with = "seconds::<1, { 24 * HOUR }, _>",
        serialize_with = "as_seconds"
    )]
    pub interval: Duration,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            objects_days: None,
            objects_maximum_bytes: None,
            results_days: None,
            results_maximum_bytes: None,
            minimum_age_days: 7,
            history_days: None,
            orphan_results_days: None,
            interval: Duration::from_hours(1),
        }
    }
}

/// `[assemble]`: from images to studies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AssembleConfig {
    /// How often everything that is due but has no job gets one.
    #[serde(rename = "reconcile_seconds", deserialize_with = "seconds::<1, HOUR, _>", serialize_with = "as_seconds")]
    pub reconcile_interval: Duration,
}

impl Default for AssembleConfig {
    fn default() -> Self {
        Self { reconcile_interval: Duration::from_mins(1) }
    }
}

/// `[inference]`: the infer child process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InferenceConfig {
    /// Folder of the bundles. A relative path is taken from the process's working folder.
    #[serde(deserialize_with = "path")]
    pub models_dir: PathBuf,
    /// Threads that one network computes with; 0 takes one for each core. `None` takes what `hilum bench --tune` found for
    /// this machine, or 1. The networks of a bundle compute at the same time.
    #[serde(deserialize_with = "optional_within::<0, 1024, _, _>", skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Images that one network computes at a time at most, 1 to 256.
    #[serde(deserialize_with = "within::<1, 256, _, _>")]
    pub max_batch: usize,
    /// Studies that are analysed at the same time, 1 to 64: one is decoded while another is on the networks' threads, and
    /// what meets there is computed as one batch. Urgent ones have as many places of their own.
    #[serde(deserialize_with = "within::<1, 64, _, _>")]
    pub concurrent_runs: usize,
    /// How long a batch waits for more images after its first, 0 to 1000. Pays on GPUs, where a batch costs little more
    /// than one image.
    #[serde(deserialize_with = "within::<0, 1000, _, _>")]
    pub batch_wait_milliseconds: u64,
    /// Whether networks are optimised for the processor when they are loaded; their outputs are compared first.
    pub optimise: bool,
    /// Attempts of one run before it is parked, 1 to 20.
    #[serde(deserialize_with = "within::<1, 20, _, _>")]
    pub maximum_attempts: u32,
    /// Longest time in which an attempt does no step (an object read, an image or a portion of slices computed, a stage); a
    /// network or codec that hangs is ended with its process. Waiting for other runs does not count.
    #[serde(
        rename = "run_timeout_seconds",
        deserialize_with = "seconds::<10, { 24 * HOUR }, _>",
        serialize_with = "as_seconds"
    )]
    pub run_timeout: Duration,
    /// Pause before the first restart of a child process that died; doubles with every further one.
    #[serde(
        rename = "restart_backoff_minimum_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub restart_backoff_minimum: Duration,
    /// Longest pause before a restart.
    #[serde(
        rename = "restart_backoff_maximum_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub restart_backoff_maximum: Duration,
    /// Largest decoded image; a larger one is not analysed.
    #[serde(deserialize_with = "size_within::<MIB, { 64 * GIB }, _>")]
    pub max_decoded_bytes: ByteSize,
    /// What computes: one device as its name, several GPUs as a list.
    #[serde(rename = "device")]
    pub devices: Devices,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            models_dir: "models".into(),
            threads: None,
            max_batch: 8,
            concurrent_runs: 2,
            batch_wait_milliseconds: 0,
            optimise: true,
            maximum_attempts: 3,
            run_timeout: Duration::from_mins(10),
            restart_backoff_minimum: Duration::from_secs(1),
            restart_backoff_maximum: Duration::from_mins(1),
            max_decoded_bytes: ByteSize::from_mebibytes(512),
            devices: Devices::default(),
        }
    }
}

/// `[deliver]`: sending results.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliverConfig {
    /// A result that could not be delivered for so long is given up (until a person restarts it).
    #[serde(rename = "maximum_age_days", deserialize_with = "days::<1, 365, _>", serialize_with = "as_days")]
    pub maximum_age: Duration,
    /// Pause after the first failure; doubles with every further one.
    #[serde(
        rename = "initial_backoff_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub initial_backoff: Duration,
    /// Longest pause between two attempts.
    #[serde(
        rename = "maximum_backoff_seconds",
        deserialize_with = "seconds::<1, { 24 * HOUR }, _>",
        serialize_with = "as_seconds"
    )]
    pub maximum_backoff: Duration,
    /// For the TCP connection and the negotiation.
    #[serde(
        rename = "connect_timeout_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub connect_timeout: Duration,
    /// For the response to one object.
    #[serde(
        rename = "response_timeout_seconds",
        deserialize_with = "seconds::<1, HOUR, _>",
        serialize_with = "as_seconds"
    )]
    pub response_timeout: Duration,
}

impl Default for DeliverConfig {
    fn default() -> Self {
        Self {
            maximum_age: Duration::from_secs(7 * SECONDS_PER_DAY),
            initial_backoff: Duration::from_secs(10),
            maximum_backoff: Duration::from_hours(1),
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_mins(1),
        }
    }
}

/// `[http]`: status page, health and metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Address and port; a loopback address until there is a sign-in. Port 0 takes a free one.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8088)) }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One compact line for people.
    #[default]
    Human,
    /// One JSON object a line for log collectors.
    Json,
}

/// `[log]`: log lines on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// How they look.
    pub format: LogFormat,
    /// A level, or directives of tracing's `EnvFilter` such as `info,hilum::dimse=debug`.
    #[serde(deserialize_with = "log_level")]
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".into() }
    }
}
