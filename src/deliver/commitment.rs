//! The job `report_commitment`: compares what a peer has listed with the files of the archive and reports to it, for
//! days if need be.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Caller, DeliverSettings, opened};
use crate::{
    archive::{Archive, ArchiveError},
    db::{
        self, Db,
        commitment::{self, AttemptEnd, Candidate, OpenRequest},
        workup,
    },
    dimse::{
        CommitmentResponse, OpenAssociations, RequestError,
        status::{self as dimse_status, Category},
    },
    jobs::{self, Job, JobHandler},
    telemetry::{CommitmentEnd, Metrics},
    types::{AeTitle, CommitmentReport, FailureReason, Peer, SiteConfig},
};

/// How long an instance may be missing before it counts as not there, while the index follows the files: one that owes
/// a scan of the archive does not.
const INDEX_PATIENCE: Duration = Duration::from_mins(1);
/// Pause before a list with missing instances is compared again.
const INDEX_PAUSE: Duration = Duration::from_secs(1);
/// A peer that releases the association as soon as its request is answered gets that moment; one that keeps it open is
/// told on it.
const RELEASE_FIRST: Duration = Duration::from_millis(300);

/// Answers peers' Storage Commitment requests.
#[derive(Clone)]
pub struct ReportCommitment {
    /// Where the rows are.
    pub db: Db,
    /// Where the files are.
    pub archive: Archive,
    /// Limits and pauses, the same as for deliveries.
    pub settings: DeliverSettings,
    /// Calls the peers.
    pub caller: Caller,
    /// The associations that peers hold open.
    pub open_associations: OpenAssociations,
    /// Where attempts are counted.
    pub metrics: Arc<Metrics>,
    /// Whether files of the archive may be unknown to the index.
    pub index_is_behind: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What the archive has under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    /// The file, with the length it had when it was acknowledged.
    Whole,
    /// The file, with another length, or unreadable.
    Damaged,
    Gone,
}

/// How an attempt to tell the peer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Answered(u16),
    NotTold(String),
}

impl JobHandler for ReportCommitment {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.work(id.parse().context("read the id of the commitment request")?).await })
    }
}

impl ReportCommitment {
    async fn work(&self, id: Uuid) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        let started = commitment::start(&mut tx, id).await?;
        tx.commit().await.context("commit")?;
        let Some(request) = started else { return Ok(()) };
        if request.evaluated_at.is_none()
            && let Some(n_missing) = self.evaluate(&request).await?
        {
            let words = format!("{n_missing} instance(s) are not in the index yet");
            let again = AttemptEnd::Again(OffsetDateTime::now_utc() + INDEX_PAUSE);
            return self.close(&request, again, None, &words).await;
        }
        let (report, site) = {
            let mut connection = self.db.acquire().await?;
            (commitment::report(&mut connection, &request).await?, db::site::load(&mut connection).await?)
        };
        let told = self.tell(&request, &report, &site).await;
        let (end, status, words) = self.verdict(&request, told);
        self.close(&request, end, status, &words).await
    }

    /// Compares the list with the archive and keeps the outcome. Returns how many instances are missing when it is too
    /// early to say that they are not there.
    async fn evaluate(&self, request: &OpenRequest) -> anyhow::Result<Option<usize>> {
        self.look_at_studies(request).await?;
        let candidates = commitment::candidates(&mut *self.db.acquire().await?, request.id).await?;
        let n_instances = candidates.last().map_or(0, |last| last.ordinal);
        let failures: BTreeMap<i32, FailureReason> = if request.duplicate_transaction {
            (1..=n_instances).map(|ordinal| (ordinal, FailureReason::DUPLICATE_TRANSACTION_UID)).collect()
        } else {
            let archive = self.archive.clone();
            tokio::task::spawn_blocking(move || judge(&candidates, |key, size| look(&archive, key, size)))
                .await
                .context("look at the archive")?
        };
        let is_missing = |reason: &&FailureReason| **reason == FailureReason::NO_SUCH_OBJECT_INSTANCE;
        let n_missing = failures.values().filter(is_missing).count();
        if is_too_early(n_missing, OffsetDateTime::now_utc() - request.created_at, (self.index_is_behind)()) {
            return Ok(Some(n_missing));
        }
        let mut tx = self.db.begin().await?;
        let n_instances = usize::try_from(n_instances).unwrap_or_default();
        commitment::evaluated(&mut tx, request, &failures, n_instances).await?;
        tx.commit().await.context("commit")?;
        Ok(None)
    }

    /// A request lists all that its sender has sent: studies that still wait for more may be complete.
    async fn look_at_studies(&self, request: &OpenRequest) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        for workup_id in workup::receiving_of_commitment(&mut tx, request.id).await? {
            jobs::queue(&mut tx, &self.db, &Job::CompleteWorkup(workup_id), None).await?;
        }
        tx.commit().await.context("commit")
    }

    /// On the association on which the peer asked while that is open, else on one of our own.
    async fn tell(&self, request: &OpenRequest, report: &CommitmentReport, site: &SiteConfig) -> Told {
        let (open, id) = (&self.open_associations, request.association_id);
        if open.contains(id) {
            tokio::time::sleep(RELEASE_FIRST).await;
            if let Some(response) = open.report(id, report.clone(), self.caller.response_timeout).await {
                return Told::Answered(response.status);
            }
        }
        let peer = match callable(site, request) {
            Ok(callable) => callable,
            Err(words) => return Told::NotTold(words),
        };
        match self.call(request, report, peer).await {
            Ok(response) => Told::Answered(response.status),
            Err(error) => Told::NotTold(error.to_string()),
        }
    }

    async fn call(
        &self,
        request: &OpenRequest,
        report: &CommitmentReport,
        peer: &Peer,
    ) -> anyhow::Result<CommitmentResponse> {
        let calling = AeTitle::new(&request.local_ae_title)?;
        let mut association = self.caller.requestor(calling, peer)?.propose_commitment_report().establish().await?;
        opened(&self.db, &peer.name, association.peer(), association.contexts()).await;
        let told = association.report_commitment(report).await;
        match &told {
            Ok(_) | Err(RequestError::NoContext { .. } | RequestError::RoleRefused { .. }) => {
                if let Err(error) = association.release().await {
                    tracing::debug!(%error, "the association was not released in order");
                }
            }
            Err(_) => association.abort().await,
        }
        Ok(told?)
    }

    fn verdict(&self, request: &OpenRequest, told: Told) -> (AttemptEnd, Option<u16>, String) {
        let now = OffsetDateTime::now_utc();
        let (status, words) = match told {
            Told::Answered(status) => (Some(status), dimse_status::InWords(status).to_string()),
            Told::NotTold(words) => (None, words),
        };
        match status.map(|status| (status, dimse_status::category(status))) {
            Some((_, Category::Success | Category::Warning)) => return (AttemptEnd::Reported, status, words),
            // Processing failure, not authorised, duplicate invocation, resource limitation: these pass.
            Some((0x0110 | 0x0124 | 0x0210 | 0x0213, _)) | None => {}
            Some(_) => return (AttemptEnd::Dead, status, format!("the peer refuses the report: {words}")),
        }
        if now - request.created_at >= self.settings.maximum_age {
            let words = format!(
                "given up after {} attempts; run `hilum commitments --restart-dead {}` when the peer can be told: {words}",
                request.attempts, request.calling_ae_title
            );
            return (AttemptEnd::Dead, status, words);
        }
        let since = now - request.evaluated_at.unwrap_or(now);
        let pause = pause(Duration::try_from(since).unwrap_or_default(), &self.settings);
        (AttemptEnd::Again(now + pause), status, words)
    }

    async fn close(
        &self,
        request: &OpenRequest,
        end: AttemptEnd,
        status: Option<u16>,
        words: &str,
    ) -> anyhow::Result<()> {
        let mut tx = self.db.begin().await?;
        let done = commitment::close(&mut tx, request, &end, status, words).await?;
        if done && let AttemptEnd::Again(at) = end {
            jobs::queue(&mut tx, &self.db, &Job::ReportCommitment(request.id), Some(at)).await?;
        }
        tx.commit().await.context("commit")?;
        if !done {
            return Ok(());
        }
        self.metrics.commitment_ended(match end {
            AttemptEnd::Reported => CommitmentEnd::Reported,
            AttemptEnd::Again(_) => CommitmentEnd::Retry,
            AttemptEnd::Dead => CommitmentEnd::Dead,
        });
        let (id, attempt) = (request.id, request.attempts);
        match end {
            AttemptEnd::Reported => tracing::info!(commitment_request_id = %id, attempt, "storage commitment reported"),
            AttemptEnd::Again(_) => {
                tracing::info!(commitment_request_id = %id, attempt, words, "storage commitment not reported yet");
            }
            AttemptEnd::Dead => {
                tracing::warn!(commitment_request_id = %id, attempt, words, "storage commitment cannot be reported");
            }
        }
        Ok(())
    }
}

/// Whether it is too early to say that instances are not there: what has just come is not in the index yet, and while a scan
/// of the archive is owed any file may be unknown to it.
fn is_too_early(n_missing: usize, since_request: time::Duration, index_is_behind: bool) -> bool {
    n_missing > 0 && (index_is_behind || since_request < INDEX_PATIENCE)
}

/// As long again as it has taken so far: doubles from the initial pause up to the maximum.
fn pause(since_evaluation: Duration, settings: &DeliverSettings) -> Duration {
    since_evaluation.clamp(settings.initial_backoff, settings.maximum_backoff.max(settings.initial_backoff))
}

/// The peer that asked, with the port to call; of several with its title the one at its address.
fn callable<'a>(site: &'a SiteConfig, request: &OpenRequest) -> Result<&'a Peer, String> {
    let title = &request.calling_ae_title;
    let callable =
        || site.peers.iter().filter(|peer| peer.ae_title.as_str() == title && peer.host != "*" && peer.port.is_some());
    let here = callable().find(|peer| peer.host == request.peer_address);
    here.or_else(|| callable().next()).ok_or_else(|| {
        format!(
            "`{title}` does not hold its association open, and no peer with this title has a host and port to call: \
             run `hilum peer add NAME --ae-title {title} --host HOST --port PORT`"
        )
    })
}

/// Which instances of a list are not in safe keeping, by ordinal. Of several objects with the same UID one is enough.
fn judge(candidates: &[Candidate], look: impl Fn(&str, u64) -> Stored) -> BTreeMap<i32, FailureReason> {
    let mut failures = BTreeMap::new();
    for of_instance in candidates.chunk_by(|one, next| one.ordinal == next.ordinal) {
        let mut reason = Some(FailureReason::NO_SUCH_OBJECT_INSTANCE);
        for candidate in of_instance {
            let (Some(class), Some(key), Some(size)) =
                (&candidate.stored_sop_class_uid, &candidate.archive_key, candidate.size_bytes)
            else {
                continue;
            };
            let stored = look(key, u64::try_from(size).unwrap_or_default());
            reason = match (stored, *class == candidate.listed_sop_class_uid) {
                (Stored::Whole, true) => None,
                (Stored::Whole, false) => Some(FailureReason::CLASS_INSTANCE_CONFLICT),
                (Stored::Damaged, _) => Some(FailureReason::PROCESSING_FAILURE),
                (Stored::Gone, _) => reason,
            };
            if reason.is_none() {
                break;
            }
        }
        if let (Some(reason), Some(candidate)) = (reason, of_instance.first()) {
            failures.insert(candidate.ordinal, reason);
        }
    }
    failures
}

/// Looks for a file. Blocks.
fn look(archive: &Archive, key: &str, size_bytes: u64) -> Stored {
    match archive.data_set_bytes(key) {
        Ok(Some(found)) if found == size_bytes => Stored::Whole,
        Ok(None) => Stored::Gone,
        Ok(Some(found)) => {
            tracing::error!(archive_key = key, found, expected = size_bytes, "an archived file has another length");
            Stored::Damaged
        }
        Err(error @ (ArchiveError::Io(_) | ArchiveError::Header(_) | ArchiveError::BadKey(_))) => {
            tracing::error!(archive_key = key, %error, "an archived file cannot be looked at");
            Stored::Damaged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(ordinal: i32, listed: &str, stored: Option<(&str, &str)>) -> Candidate {
        Candidate {
            ordinal,
            listed_sop_class_uid: listed.into(),
            stored_sop_class_uid: stored.map(|(class, _)| class.into()),
            archive_key: stored.map(|(_, key)| key.into()),
            size_bytes: stored.map(|_| 100),
        }
    }

    #[test]
    fn only_whole_files_of_the_listed_class_are_kept() {
        let candidates = [
            candidate(1, "CT", Some(("CT", "whole"))),
            candidate(2, "CT", None),
            candidate(3, "CT", Some(("CR", "whole"))),
            candidate(4, "CT", Some(("CT", "damaged"))),
            candidate(5, "CT", Some(("CT", "gone"))),
            // one whole version is enough, whatever became of the others
            candidate(6, "CT", Some(("CT", "damaged"))),
            candidate(6, "CT", Some(("CT", "whole"))),
            candidate(7, "CT", Some(("CR", "whole"))),
            candidate(7, "CT", Some(("CT", "gone"))),
            candidate(8, "CT", Some(("CT", "whole"))),
            candidate(8, "CT", Some(("CT", "gone"))),
        ];
        let failures = judge(&candidates, |key, size| {
            assert_eq!(size, 100);
            match key {
                "whole" => Stored::Whole,
                "damaged" => Stored::Damaged,
                _ => Stored::Gone,
            }
        });
        let expected = BTreeMap::from([
            (2, FailureReason::NO_SUCH_OBJECT_INSTANCE),
            (3, FailureReason::CLASS_INSTANCE_CONFLICT),
            (4, FailureReason::PROCESSING_FAILURE),
            (5, FailureReason::NO_SUCH_OBJECT_INSTANCE),
            (7, FailureReason::CLASS_INSTANCE_CONFLICT),
        ]);
        assert_eq!(failures, expected);
    }

    #[test]
    fn nothing_is_said_to_be_missing_before_the_index_can_know() {
        let (soon, late) = (time::Duration::seconds(59), time::Duration::seconds(61));
        for (n_missing, since_request, index_is_behind, expected) in [
            (0, soon, true, false),
            (1, soon, false, true),
            (1, late, false, false),
            (1, late, true, true),
            (1, time::Duration::days(2), true, true),
        ] {
            let told = is_too_early(n_missing, since_request, index_is_behind);
            assert_eq!(told, expected, "{n_missing} {since_request} {index_is_behind}");
        }
    }

    fn settings() -> DeliverSettings {
        DeliverSettings {
            maximum_age: Duration::from_hours(48),
            initial_backoff: Duration::from_secs(10),
            maximum_backoff: Duration::from_hours(1),
        }
    }

    #[test]
    fn pauses_grow_with_the_time_that_has_passed() {
        for (since, expected) in [(0, 10), (9, 10), (40, 40), (100_000, 3600)] {
            assert_eq!(pause(Duration::from_secs(since), &settings()), Duration::from_secs(expected));
        }
    }

    #[test]
    fn the_peer_at_its_address_is_called_and_a_missing_port_is_named() {
        let peer = |name: &str, host: &str, port| Peer {
            port,
            may_store: true,
            ..Peer::new(name, AeTitle::new("CT01").unwrap(), host)
        };
        let request = OpenRequest {
            id: Uuid::nil(),
            transaction_uid: "1.2".into(),
            association_id: Uuid::nil(),
            calling_ae_title: "CT01".into(),
            local_ae_title: "HILUM".into(),
            peer_address: "10.1.2.3".into(),
            duplicate_transaction: false,
            attempts: 1,
            evaluated_at: None,
            created_at: OffsetDateTime::now_utc(),
        };
        let mut site = SiteConfig { peers: vec![peer("any", "*", Some(104))], ..SiteConfig::default() };
        let words = callable(&site, &request).unwrap_err();
        assert!(words.contains("hilum peer add NAME --ae-title CT01"), "{words}");
        site.peers.extend([peer("silent", "10.1.2.3", None), peer("other", "10.9.9.9", Some(105))]);
        assert_eq!(callable(&site, &request).unwrap().port, Some(105));
        site.peers.push(peer("here", "10.1.2.3", Some(106)));
        assert_eq!(callable(&site, &request).unwrap().port, Some(106));
    }
}
