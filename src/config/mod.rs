//! The node's configuration, read once at start and passed down.
//!
//! * [`Config`] is the process configuration (`hilum.toml`): parsed, overlaid with `HILUM__SECTION__KEY` from the
//!   environment, validated. Start with [`Config::load`] or [`Config::defaults_for_dev`].
//! * [`load_site`] reads what administrators own (`site.toml`) for `hilum apply`.
//!
//! Every problem of a file is reported in one go, with its position, its key, the reason and the remedy
//! ([`ConfigErrors`]). Secrets are wrapped in [`Redacted`] and cannot be printed by accident.
//!
//! Architecture invariant: nothing here knows the network, the database or DICOM encoding. The only files read
//! are the configuration files and the files that `*_file` keys name.

mod document;
mod load;
mod problem;
mod sections;
mod site;
mod values;
mod vars;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use load::problems_of_text;
pub use load::{Config, effective_toml};
pub use problem::{ConfigErrors, ConfigProblem, Origin};
pub use sections::{
    ArchiveConfig, AssembleConfig, DatabaseConfig, DatabaseSource, DeliverConfig, DicomConfig, HttpConfig,
    InferenceConfig, LogConfig, LogFormat, NodeConfig, RetentionConfig, TlsConfig,
};
pub use site::{load_site, parse_site};
pub use values::{ByteSize, ByteSizeError, DicomText, DicomTextError, Redacted};
pub use vars::{ProcessEnvironment, Vars};
