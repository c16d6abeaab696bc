//! Keeps the TLS material fresh: files are read again when they change, and certificates that end are warned about.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Certificate, TlsError, TlsMaterial, TlsSettings};
use crate::telemetry::Metrics;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a certificate that ends soon is warned about in the log.
const WARN_EVERY: Duration = Duration::from_hours(24);
/// From so many days before its end a certificate is warned about.
pub const EXPIRY_WARNING_DAYS: i64 = 30;

/// What changes with a file's content: time of modification, size, inode (a link that is pointed elsewhere).
type Stamp = Vec<Option<(SystemTime, u64, u64)>>;

/// Reads the files of a node again when they change.
#[derive(Debug)]
pub struct TlsWatch {
    settings: TlsSettings,
    metrics: Arc<Metrics>,
    stamp: Stamp,
    sender: watch::Sender<Arc<TlsMaterial>>,
}

impl TlsWatch {
    /// Reads the files for the first time. Blocks.
    pub fn new(
        settings: TlsSettings,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, watch::Receiver<Arc<TlsMaterial>>), TlsError> {
        // Before reading: what changes meanwhile is seen next time.
        let stamp = stamp(&settings);
        let material = TlsMaterial::load(&settings)?;
        let (sender, receiver) = watch::channel(Arc::new(material));
        let watch = Self { settings, metrics, stamp, sender };
        watch.tell_expiry();
        Ok((watch, receiver))
    }

    /// Looks at the files until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut watch = self;
        let mut warned_at = None;
        loop {
            let certificate = watch.sender.borrow().certificate().cloned();
            if let Some(words) =
                certificate.and_then(|certificate| expiry_words(&certificate, OffsetDateTime::now_utc()))
                && warned_at.is_none_or(|at: tokio::time::Instant| at.elapsed() >= WARN_EVERY)
            {
                tracing::warn!("{words}");
                warned_at = Some(tokio::time::Instant::now());
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let Ok((again, changed)) = tokio::task::spawn_blocking(move || {
                let changed = watch.look();
                (watch, changed)
            })
            .await
            else {
                tracing::error!("watching the TLS files failed; they are not read again before the next start");
                return;
            };
            watch = again;
            if changed {
                warned_at = None;
            }
        }
    }

    /// Reads the files if they have changed; what cannot be used changes nothing. Blocks.
    fn look(&mut self) -> bool {
        let stamp = stamp(&self.settings);
        let changed = stamp != self.stamp;
        if changed {
            self.stamp = stamp;
            match TlsMaterial::load(&self.settings) {
                Ok(material) => {
                    if let Some(certificate) = material.certificate() {
                        tracing::info!(
                            fingerprint = %certificate.sha256,
                            valid_until = %certificate.not_after,
                            "TLS files read again; new associations use them"
                        );
                    }
                    self.sender.send_replace(Arc::new(material));
                }
                Err(error) => tracing::error!(
                    "the changed TLS files are not used, those of before stay in force until they are mended: {error}"
                ),
            }
        }
        self.tell_expiry();
        changed
    }

    fn tell_expiry(&self) {
        if let Some(certificate) = self.sender.borrow().certificate() {
            self.metrics
                .set_tls_certificate_expires((certificate.not_after - OffsetDateTime::now_utc()).as_seconds_f64());
        }
    }
}

/// The warning about a certificate that has ended or ends within [`EXPIRY_WARNING_DAYS`].
#[must_use]
pub fn expiry_words(certificate: &Certificate, now: OffsetDateTime) -> Option<String> {
    let left = certificate.not_after - now;
    let until = certificate.not_after.date();
    if left.is_negative() {
        return Some(format!(
            "our TLS certificate has expired on {until}: peers refuse it; renew it, the node reads it without a restart"
        ));
    }
    (left.whole_days() < EXPIRY_WARNING_DAYS).then(|| {
        format!(
            "our TLS certificate expires on {until}, in {} days; renew it, the node reads it without a restart",
            left.whole_days()
        )
    })
}

fn stamp(settings: &TlsSettings) -> Stamp {
    let files: Vec<PathBuf> = settings.files().map(Into::into).collect();
    files
        .iter()
        .map(|file| {
            let metadata = fs_err::metadata(file).ok()?;
            let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
            Some((metadata.modified().ok()?, metadata.len(), inode))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Ca, write},
        *,
    };

    #[test]
    fn new_files_are_used_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::new("Test CA");
        let settings = write(folder.path(), &ca, &ca.sign("first", &["first"]));
        let (mut watch, material) = TlsWatch::new(settings.clone(), Arc::new(Metrics::new())).unwrap();
        let is_for = |name: &str| material.borrow().certificate().unwrap().has_name(name);
        assert!(!watch.look() && is_for("first"));

        let (certificate_file, key_file) = settings.certificate_and_key.clone().unwrap();
        fs_err::write(&certificate_file, "no certificate at all").unwrap();
        assert!(watch.look() && is_for("first"));

        write(folder.path(), &ca, &ca.sign("second-with-another-length", &["second"]));
        assert!(watch.look() && is_for("second"));

        // The certificate comes before its key, as tools write them: the pair of before holds meanwhile.
        let third = ca.sign("the-third-and-longest-name-of-all", &["third"]);
        fs_err::write(&certificate_file, &third.pem).unwrap();
        assert!(watch.look() && is_for("second"));
        fs_err::remove_file(&key_file).unwrap();
        assert!(watch.look() && is_for("second"));
        write(folder.path(), &ca, &third);
        assert!(watch.look() && is_for("third"));
    }

    #[test]
    fn the_end_of_a_certificate_is_told_from_thirty_days_before() {
        let now = OffsetDateTime::now_utc();
        let until = |days: i64| Certificate {
            sha256: crate::types::Sha256Digest::of(b""),
            names: Vec::new(),
            not_before: now - time::Duration::days(100),
            not_after: now + time::Duration::days(days),
        };
        assert_eq!(expiry_words(&until(31), now), None);
        assert!(expiry_words(&until(29), now).unwrap().contains("in 29 days"));
        assert!(expiry_words(&until(-1), now).unwrap().contains("has expired"));
    }
}
