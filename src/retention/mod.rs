//! What is removed by itself: received objects and results by age and size, old history, and result files that no row
//! names. Nothing, unless the configuration says so.
//!
//! Architecture invariant: never what is not yet analysed, what a destination has not got, or what a person has to look
//! at. The row of a study is locked, judged and marked in one statement ([`retention::remove`]); the files go after that
//! is committed. Rows stay, so studies stay listed and the same bytes can come again.
//! Entry type: [`Retention`].

use std::time::Duration;

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::{
    archive::{Archive, hour_folder},
    db::{
        Db, DbError,
        retention::{self, Candidate, History, Kind},
    },
    telemetry::{Metrics, RetentionKind},
};

/// Studies in one batch; each is a transaction of its own.
const STUDIES: i64 = 100;
/// Rows or files in one batch.
const BATCH: i64 = 1000;
/// Studies that a dry run looks at.
const PLANNED_STUDIES: i64 = 1_000_000;

/// How long and how much is kept of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Older ones go.
    pub age: Option<Duration>,
    /// When there are more bytes, the oldest go.
    pub maximum_bytes: Option<u64>,
}

/// What is kept and what goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Received objects.
    pub objects: Limits,
    /// Results.
    pub results: Limits,
    /// Nothing younger goes.
    pub minimum_age: Duration,
    /// Timelines, associations and Storage Commitment requests.
    pub history: Option<Duration>,
    /// Result files without a row.
    pub orphan_results: Option<Duration>,
}

impl Policy {
    /// Whether there is anything that it lets go.
    #[must_use]
    pub fn removes_anything(&self) -> bool {
        *self != Self { minimum_age: self.minimum_age, ..Self::default() }
    }
}

/// What goes, or would go, of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Studies at a local AE.
    pub studies: u64,
    /// Files, previews left out.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What went, or would go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Received objects.
    pub objects: Amount,
    /// Results.
    pub results: Amount,
    /// Steps of timelines; not counted by a dry run.
    pub events: u64,
    /// Associations; not counted by a dry run.
    pub associations: u64,
    /// Storage Commitment requests; not counted by a dry run.
    pub commitments: u64,
    /// Result files without a row.
    pub orphans: u64,
}

/// Removes what the policy lets go.
#[derive(Debug, Clone)]
pub struct Retention {
    /// Where the rows are.
    pub db: Db,
    /// Where the files are.
    pub archive: Archive,
    /// What is kept.
    pub policy: Policy,
}

/// Why a study's files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Old(Duration),
    Much(u64),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Old(age) => write!(f, "older than {} day(s)", age.as_secs() / 86_400),
            Self::Much(maximum_bytes) => write!(f, "together they take more than {maximum_bytes} bytes"),
        }
    }
}

/// Of candidates that are old enough, oldest first, those that go: by age, and until `excess_bytes` are freed.
fn choose(candidates: &[Candidate], limits: Limits, now: OffsetDateTime, excess_bytes: u64) -> Vec<(&Candidate, Why)> {
    let mut freed_bytes = 0_u64;
    let mut chosen = Vec::new();
    for candidate in candidates {
        let old = limits.age.filter(|age| candidate.newest_at < now - *age).map(Why::Old);
        let much = limits.maximum_bytes.filter(|_| freed_bytes < excess_bytes).map(Why::Much);
        let Some(why) = old.or(much) else { break };
        freed_bytes = freed_bytes.saturating_add(u64::try_from(candidate.bytes).unwrap_or_default());
        chosen.push((candidate, why));
    }
    chosen
}

impl Amount {
    fn add(&mut self, files: usize, bytes: i64) {
        self.studies += 1;
        self.files += files as u64;
        self.bytes += u64::try_from(bytes).unwrap_or_default();
    }
}

impl Retention {
    /// Says what [`Retention::remove`] would remove now; changes nothing.
    pub async fn plan(&self) -> anyhow::Result<Summary> {
        let mut summary = Summary::default();
        for (kind, limits, amount) in self.kinds(&mut summary) {
            let (candidates, excess_bytes) = self.look(kind, limits, PLANNED_STUDIES).await?;
            for (candidate, _) in choose(&candidates, limits, OffsetDateTime::now_utc(), excess_bytes) {
                amount.add(usize::try_from(candidate.files).unwrap_or_default(), candidate.bytes);
            }
        }
        for (hour, until) in self.orphan_hours().await? {
            summary.orphans += self.orphans_of(hour, until).await?.len() as u64;
        }
        Ok(summary)
    }

    /// Removes what the policy lets go. What fails or is much holds up nothing of another kind: what went is told beside the
    /// problems.
    pub async fn remove(&self) -> (Summary, anyhow::Result<()>) {
        let mut summary = Summary::default();
        let Summary { objects, results, events, associations, commitments, orphans } = &mut summary;
        let (mut own_commitments, mut attempts) = (0, 0);
        let files = async {
            let earlier = self.finish_earlier().await;
            let objects = self.remove_kind(Kind::Objects, self.policy.objects, objects).await;
            let results = self.remove_kind(Kind::Results, self.policy.results, results).await;
            let orphans = self.remove_orphans(orphans).await;
            [earlier, objects, results, orphans]
        };
        let history = async {
            let (events, associations, of_peers, own, of_deliveries) = tokio::join!(
                self.forget(History::Events, events),
                self.forget(History::Associations, associations),
                self.forget(History::RequestsOfPeers, commitments),
                self.forget(History::OwnRequests, &mut own_commitments),
                self.forget(History::Attempts, &mut attempts),
            );
            [events, associations, of_peers, own, of_deliveries]
        };
        let (files, history) = tokio::join!(Box::pin(files), Box::pin(history));
        summary.commitments += own_commitments;
        // They are steps of timelines, kept apart.
        summary.events += attempts;
        let problems: Vec<String> =
            files.into_iter().chain(history).filter_map(Result::err).map(|problem| format!("{problem:#}")).collect();
        let ended = if problems.is_empty() { Ok(()) } else { Err(anyhow::anyhow!(problems.join("; "))) };
        (summary, ended)
    }

    /// Removes at every `interval` until `shutdown`; what fails is tried again at the next.
    pub async fn remove_regularly(self, interval: Duration, metrics: &Metrics, shutdown: CancellationToken) {
        if !self.policy.removes_anything() {
            tracing::debug!("retention is off: nothing is removed by itself");
            return;
        }
        loop {
            let (summary, ended) = self.remove().await;
            if summary != Summary::default() {
                metrics.retention_removed(RetentionKind::Objects, summary.objects.bytes);
                metrics.retention_removed(RetentionKind::Results, summary.results.bytes);
                tracing::info!(?summary, "retention removed what was old enough");
            }
            if let Err(error) = ended {
                tracing::warn!(error = format!("{error:#}"), "retention could not remove everything; it goes on later");
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(interval) => {}
            }
        }
    }

    fn kinds<'a>(&self, summary: &'a mut Summary) -> [(Kind, Limits, &'a mut Amount); 2] {
        [
            (Kind::Objects, self.policy.objects, &mut summary.objects),
            (Kind::Results, self.policy.results, &mut summary.results),
        ]
    }

    /// Candidates that are old enough for any reason, and the bytes that are too many.
    async fn look(&self, kind: Kind, limits: Limits, limit: i64) -> Result<(Vec<Candidate>, u64), DbError> {
        if limits == Limits::default() {
            return Ok((Vec::new(), 0));
        }
        let mut connection = self.db.acquire().await?;
        let excess_bytes = match limits.maximum_bytes {
            None => 0,
            Some(maximum_bytes) => {
                let kept_bytes = retention::kept_bytes(&mut connection, kind).await?;
                u64::try_from(kept_bytes).unwrap_or_default().saturating_sub(maximum_bytes)
            }
        };
        let before = OffsetDateTime::now_utc() - self.policy.minimum_age;
        Ok((retention::candidates(&mut connection, kind, before, limit).await?, excess_bytes))
    }

    async fn remove_kind(&self, kind: Kind, limits: Limits, amount: &mut Amount) -> anyhow::Result<()> {
        loop {
            let now = OffsetDateTime::now_utc();
            let (candidates, excess_bytes) = self.look(kind, limits, STUDIES).await?;
            let before = amount.studies;
            for (candidate, why) in choose(&candidates, limits, now, excess_bytes) {
                let mut tx = self.db.begin().await?;
                let youngest = now - self.policy.minimum_age;
                let removed = retention::remove(&mut tx, kind, candidate, youngest, &why.to_string()).await?;
                tx.commit().await.map_err(DbError::from)?;
                if !removed.archive_keys.is_empty() {
                    amount.add(usize::try_from(candidate.files).unwrap_or_default(), removed.bytes);
                    self.remove_listed(removed.archive_keys).await?;
                }
            }
            // Nothing more goes, or what is left was taken up again meanwhile.
            if amount.studies == before {
                return Ok(());
            }
        }
    }

    /// Forgets what is old enough of one kind of history, a batch at a time.
    async fn forget(&self, kind: History, forgotten: &mut u64) -> anyhow::Result<()> {
        let Some(age) = self.policy.history else { return Ok(()) };
        let before = OffsetDateTime::now_utc() - age;
        loop {
            let gone = retention::forget(&mut *self.db.acquire().await?, kind, before, BATCH).await;
            match gone.with_context(|| format!("forget {}", kind.noun()))? {
                0 => return Ok(()),
                gone => *forgotten += gone,
            }
        }
    }

    /// Removes result files that no row names.
    async fn remove_orphans(&self, removed: &mut u64) -> anyhow::Result<()> {
        for (hour, until) in self.orphan_hours().await? {
            let orphans = self.orphans_of(hour, until).await?;
            *removed += orphans.len() as u64;
            self.remove_files(orphans).await?;
        }
        Ok(())
    }

    /// What a process that was killed had marked.
    async fn finish_earlier(&self) -> anyhow::Result<()> {
        loop {
            let keys = retention::files_to_remove(&mut *self.db.acquire().await?, BATCH).await?;
            if keys.is_empty() {
                return Ok(());
            }
            self.remove_listed(keys).await?;
        }
    }

    async fn remove_listed(&self, keys: Vec<String>) -> anyhow::Result<()> {
        self.remove_files(keys.clone()).await?;
        Ok(retention::files_removed(&mut *self.db.acquire().await?, &keys).await?)
    }

    async fn remove_files(&self, keys: Vec<String>) -> anyhow::Result<()> {
        let archive = self.archive.clone();
        tokio::task::spawn_blocking(move || keys.iter().try_for_each(|key| archive.remove(key))).await??;
        Ok(())
    }

    /// The folders in which results without a row may be, each with the time before which they are old enough.
    async fn orphan_hours(&self) -> anyhow::Result<Vec<(String, OffsetDateTime)>> {
        let Some(age) = self.policy.orphan_results else { return Ok(Vec::new()) };
        let (archive, until) = (self.archive.clone(), OffsetDateTime::now_utc() - age);
        let hours = tokio::task::spawn_blocking(move || archive.result_hours(&hour_folder(until))).await??;
        Ok(hours.into_iter().map(|hour| (hour, until)).collect())
    }

    async fn orphans_of(&self, hour: String, until: OffsetDateTime) -> anyhow::Result<Vec<String>> {
        let archive = self.archive.clone();
        let keys = tokio::task::spawn_blocking(move || archive.result_keys_of_hour(&hour, until)).await??;
        Ok(retention::unknown_results(&mut *self.db.acquire().await?, &keys).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{archive::ImplementationIds, db::testing::TestDatabase, types::Uid};

    const DAY: Duration = Duration::from_hours(24);

    fn candidates(ages_in_days: &[u32]) -> Vec<Candidate> {
        let candidate = |days: &u32| Candidate {
            workup_id: uuid::Uuid::from_u128(u128::from(*days)),
            newest_at: OffsetDateTime::UNIX_EPOCH + DAY * (1000 - days),
            files: 1,
            bytes: 100,
        };
        ages_in_days.iter().map(candidate).collect()
    }

    #[rstest::rstest]
    #[case::off(Limits::default(), 0, &[])]
    #[case::by_age(Limits { age: Some(DAY * 30), maximum_bytes: None }, 0, &[90, 60, 31])]
    #[case::by_size(Limits { age: None, maximum_bytes: Some(1) }, 150, &[90, 60])]
    #[case::small_enough(Limits { age: None, maximum_bytes: Some(1) }, 0, &[])]
    #[case::by_both(Limits { age: Some(DAY * 80), maximum_bytes: Some(1) }, 101, &[90, 60])]
    #[case::age_goes_further(Limits { age: Some(DAY * 30), maximum_bytes: Some(1) }, 1, &[90, 60, 31])]
    fn the_oldest_go_first_and_no_more_than_needed(
        #[case] limits: Limits,
        #[case] excess_bytes: u64,
        #[case] expected: &[u32],
    ) {
        let candidates = candidates(&[90, 60, 31, 29, 8]);
        let chosen = choose(&candidates, limits, OffsetDateTime::UNIX_EPOCH + DAY * 1000, excess_bytes);
        let ids: Vec<u128> = chosen.iter().map(|(candidate, _)| candidate.workup_id.as_u128()).collect();
        assert_eq!(ids, expected.iter().map(|days| u128::from(*days)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_cannot_be_forgotten_holds_nothing_else_up() {
        let database = TestDatabase::start("retention_kinds").await;
        let folder = tempfile::tempdir().unwrap();
        let ids = ImplementationIds { class_uid: Uid::new("2.25.1").unwrap(), version_name: "HILUM_TEST".to_owned() };
        let archive = Archive::open(folder.path(), ids, 0).unwrap();
        let policy = Policy { history: Some(DAY * 30), ..Policy::default() };
        let retention = Retention { db: database.db.clone(), archive, policy };
        // More than a batch of one kind, and two others that cannot be read.
        sqlx::raw_sql(
            "insert into commitment_asked
             select '2.25.' || number, 'PACS', 'HILUM', 'asked', now() - interval '40 days' from generate_series(1, 1001) number;
             alter table event rename to gone;
             alter table file_to_remove rename to gone_as_well",
        )
        .execute(database.db.pool())
        .await
        .unwrap();
        let (summary, ended) = retention.remove().await;
        assert_eq!(summary, Summary { commitments: 1001, ..Summary::default() });
        let problem = format!("{:#}", ended.unwrap_err());
        assert!(problem.contains("file_to_remove"), "the first: {problem}");
        drop(retention);
        database.stop().await;
    }
}
