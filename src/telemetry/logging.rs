//! Log lines on standard error.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
};

use crate::config::LogFormat;

/// Modules of libraries that say too much, or show the payload of jobs, at the level that we run at. The
/// configured directives come after these and win.
const QUIET_LIBRARIES: &str = "graphile_worker=warn,sqlx=warn,hyper=warn,h2=warn";

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The directives do not parse.
    #[error(
        "log level `{level}` is not understood: give a level such as `info`, or directives such as `info,hilum::dimse=debug`"
    )]
    Level {
        /// What was given.
        level: String,
        /// What the filter says.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// This process has a subscriber already.
    #[error("logging is started already: start it once, at the beginning of the process")]
    Started(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Starts logging to standard error for the whole process: `level` is a level or `EnvFilter` directives. Human lines
/// are coloured on a terminal unless `NO_COLOR` is set (<https://no-color.org>).
pub fn init_logging(format: LogFormat, level: &str) -> Result<(), LoggingError> {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let coloured = std::io::stderr().is_terminal() && !no_color;
    let subscriber = subscriber(format, level, coloured, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(LoggingError::Started)
}

/// The subscriber that [`init_logging`] installs, writing to `writer`; tests use it with
/// `tracing::subscriber::with_default`.
pub fn subscriber<W>(
    format: LogFormat,
    level: &str,
    coloured: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, LoggingError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(format!("{QUIET_LIBRARIES},{level}"))
        .map_err(|source| LoggingError::Level { level: level.to_owned(), source })?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Human => fmt::layer().compact().with_ansi(coloured).with_writer(writer).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
    };
    Ok(tracing_subscriber::registry().with(lines.with_filter(filter)))
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    /// Collects log lines.
    #[derive(Clone, Default)]
    pub(in crate::telemetry) struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        pub(in crate::telemetry) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'w> MakeWriter<'w> for Lines {
        type Writer = Self;
        fn make_writer(&'w self) -> Self {
            self.clone()
        }
    }

    /// What `work` logs.
    pub(in crate::telemetry) fn logged(format: LogFormat, level: &str, work: impl FnOnce()) -> String {
        let lines = Lines::default();
        let subscriber = subscriber(format, level, false, lines.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, work);
        lines.text()
    }

    #[test]
    fn json_lines_carry_the_event_and_its_span() {
        let text = logged(LogFormat::Json, "info", || {
            let span = tracing::info_span!("association", association_id = "a-1");
            span.in_scope(|| tracing::info!(objects = 3, "association ended"));
        });
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "association ended");
        assert_eq!(line["objects"], 3);
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["span"]["association_id"], "a-1");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn human_lines_are_plain_without_a_terminal() {
        let text = logged(LogFormat::Human, "info", || {
            tracing::info!(objects = 3, "association ended");
            tracing::debug!("not shown");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("association ended") && text.contains("objects=3"), "{text}");
        assert!(!text.contains('\u{1b}'), "no escape sequences: {text:?}");
    }

    #[test]
    fn colours_are_used_when_asked_for() {
        let lines = Lines::default();
        let subscriber = subscriber(LogFormat::Human, "info", true, lines.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
        assert!(lines.text().contains('\u{1b}'));
    }

    #[test]
    fn libraries_are_quiet_until_asked() {
        let work = || {
            tracing::info!(target: "graphile_worker::runner", "payload at info");
            tracing::warn!(target: "graphile_worker_recovery", "trouble");
            tracing::debug!(target: "sqlx::query", "statement");
        };
        let text = logged(LogFormat::Human, "debug", work);
        assert!(text.contains("trouble") && !text.contains("payload") && !text.contains("statement"), "{text}");
        let text = logged(LogFormat::Human, "info,graphile_worker=info,sqlx=debug", work);
        assert!(text.contains("payload") && text.contains("statement"), "{text}");
    }

    #[test]
    fn a_bad_level_is_explained() {
        let error = subscriber(LogFormat::Human, "hilum=loud", false, io::sink).err().unwrap();
        assert!(error.to_string().contains("log level `hilum=loud` is not understood"), "{error}");
    }
}
