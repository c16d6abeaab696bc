//! Database rows as they are shown: in words, for pages and JSON alike. No patient identity, no archive keys.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::Serialize;
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description};
use uuid::Uuid;

use super::{AdminState, findings::FindingsView, problem::Problem, readiness::gibibytes};
use crate::{
    db::{
        Connection, DbError, delivery,
        delivery::AttemptRow,
        destination::DestinationState,
        refusal::Cause,
        status::{self, Backlog, DeliveryRow, EventRow, RunRow, WorkupRow},
    },
    types::{BundleStatus, RunRole, Uid},
};

/// Workups of one study: one for each of our AE titles that it was sent to.
const WORKUP_LIMIT: i64 = 20;
/// Runs of one workup.
const RUN_LIMIT: i64 = 20;
/// Newest runs of a workup whose findings are shown: an outcome with its maps is large.
const FINDINGS_LIMIT: usize = 5;
/// Deliveries of one workup.
const DELIVERY_LIMIT: i64 = 200;
/// Newest attempts of one delivery.
pub(super) const ATTEMPT_LIMIT: i64 = 50;

/// An instant: RFC 3339 in JSON, a `<time>` element in UTC in pages.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
pub(super) struct Moment(#[serde(with = "time::serde::rfc3339")] OffsetDateTime);

impl Moment {
    pub(super) fn new(at: OffsetDateTime) -> Self {
        Self(at.to_offset(UtcOffset::UTC))
    }

    pub(super) fn now() -> Self {
        Self::new(OffsetDateTime::now_utc())
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = self.0.truncate_to_second().format(&Rfc3339).map_err(|_| fmt::Error)?;
        let people = self
            .0
            .format(format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC"))
            .map_err(|_| fmt::Error)?;
        write!(f, "<time datetime=\"{machine}\">{people}</time>")
    }
}

/// Digits and our own markup only.
impl askama::filters::HtmlSafe for Moment {}

/// How a state is coloured. The words beside it say the same.
fn tone(state: &str) -> &'static str {
    match state {
        "answered" | "succeeded" | "delivered" => "good",
        "parked" | "dead" | "open" => "bad",
        "failed" | "not_analysed" | "half_open" => "warn",
        "receiving" | "complete" | "analysing" | "queued" | "running" | "waiting" | "sending" => "busy",
        _ => "quiet",
    }
}

/// A state of a workup, run or delivery in words.
fn state_words(state: &str) -> Cow<'_, str> {
    let words = match state {
        "receiving" => "being received",
        "complete" => "complete, not yet analysed",
        "analysing" => "being analysed",
        "answered" => "answered",
        "not_routed" => "kept, not routed",
        "parked" => "parked: a person has to look",
        "queued" => "queued",
        "running" => "running",
        "succeeded" => "analysed",
        "not_analysed" => "not analysed",
        "superseded" => "superseded by a newer revision",
        "failed" => "failed, will be tried again",
        "waiting" => "waiting",
        "sending" => "being sent",
        "delivered" => "delivered",
        "cancelled" => "cancelled",
        "spare" => "kept as another form",
        "replaced" => "not taken, replaced by another form",
        "unneeded" => "not needed, another form is delivered",
        "closed" => "in use",
        "open" => "left alone until it answers",
        "half_open" => "answers again, being tried",
        "dead" => "given up: a person has to look",
        other => return Cow::Owned(other.replace('_', " ")),
    };
    Cow::Borrowed(words)
}

/// A study at one of our AE titles.
#[derive(Debug, Serialize)]
pub(super) struct StudyView {
    pub(super) workup_id: Uuid,
    pub(super) study_instance_uid: String,
    pub(super) local_ae_title: String,
    pub(super) calling_ae_title: String,
    pub(super) state: String,
    pub(super) words: String,
    pub(super) revision: i32,
    pub(super) route: Option<String>,
    pub(super) modalities: Vec<String>,
    pub(super) object_count: i64,
    pub(super) last_object_at: Moment,
}

impl From<WorkupRow> for StudyView {
    fn from(row: WorkupRow) -> Self {
        Self {
            workup_id: row.id,
            study_instance_uid: row.study_instance_uid,
            local_ae_title: row.local_ae_title,
            calling_ae_title: row.calling_ae_title,
            state: row.state,
            words: row.state_words,
            revision: row.revision,
            route: row.route_name,
            modalities: row.modalities,
            object_count: row.object_count,
            last_object_at: Moment::new(row.last_object_at),
        }
    }
}

impl StudyView {
    pub(super) fn tone(&self) -> &'static str {
        tone(&self.state)
    }

    pub(super) fn state_words(&self) -> Cow<'_, str> {
        state_words(&self.state)
    }

    pub(super) fn modalities(&self) -> String {
        self.modalities.join(", ")
    }
}

/// One stage of a run.
#[derive(Debug, Serialize)]
pub(super) struct StageView {
    pub(super) name: String,
    pub(super) milliseconds: f64,
}

/// A run.
#[derive(Debug, Serialize)]
pub(super) struct RunView {
    pub(super) id: Uuid,
    pub(super) study_instance_uid: String,
    pub(super) revision: i32,
    pub(super) bundle: String,
    pub(super) bundle_status: Option<String>,
    /// `live`, `shadow` or `canary`.
    pub(super) role: String,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) words: String,
    pub(super) attempts: i32,
    pub(super) maximum_attempts: i32,
    pub(super) queued_at: Moment,
    pub(super) finished_at: Option<Moment>,
    pub(super) stages: Vec<StageView>,
    /// Only where one study is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) findings: Option<FindingsView>,
}

impl From<RunRow> for RunView {
    fn from(row: RunRow) -> Self {
        let stages = row.stage_milliseconds.as_ref().and_then(serde_json::Value::as_object);
        let stages = stages
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some(StageView { name: name.clone(), milliseconds: value.as_f64()? }))
            .collect();
        Self {
            id: row.id,
            study_instance_uid: row.study_instance_uid,
            revision: row.revision,
            bundle: row.bundle,
            bundle_status: row.bundle_status,
            role: row.role,
            state: row.state,
            reason: row.reason,
            words: row.words,
            attempts: row.attempt,
            maximum_attempts: row.maximum_attempts,
            queued_at: Moment::new(row.queued_at),
            finished_at: row.finished_at.map(Moment::new),
            stages,
            findings: None,
        }
    }
}

impl RunView {
    pub(super) fn tone(&self) -> &'static str {
        tone(&self.state)
    }

    pub(super) fn state_words(&self) -> Cow<'_, str> {
        state_words(&self.state)
    }

    pub(super) fn is_untrained(&self) -> bool {
        self.bundle_status.as_deref() == Some("untrained")
            || self.findings.as_ref().is_some_and(|findings| findings.bundle_status == BundleStatus::Untrained)
    }

    /// What is said of it where its bundle is tried, or beside one that is.
    pub(super) fn role_words(&self) -> Option<&'static str> {
        RunRole::from_name(&self.role).and_then(RunRole::words)
    }

    /// All stages together, in seconds.
    pub(super) fn duration(&self) -> Option<String> {
        let milliseconds: f64 = self.stages.iter().map(|stage| stage.milliseconds).sum();
        (!self.stages.is_empty()).then(|| format!("{:.2} s", milliseconds / 1000.0))
    }

    /// Every stage in one line.
    pub(super) fn stages(&self) -> String {
        let stages: Vec<String> =
            self.stages.iter().map(|stage| format!("{} {:.0} ms", stage.name, stage.milliseconds)).collect();
        stages.join(", ")
    }
}

/// A result with its delivery to one destination.
#[derive(Debug, Serialize)]
pub(super) struct DeliveryView {
    pub(super) result_id: Uuid,
    pub(super) run_id: Uuid,
    pub(super) study_instance_uid: String,
    /// `sr` or `sc`.
    pub(super) kind: String,
    pub(super) sop_instance_uid: String,
    /// Where the picture of the result is.
    pub(super) preview: Option<String>,
    pub(super) destination: Option<String>,
    pub(super) state: Option<String>,
    pub(super) attempts: i32,
    /// DICOM status, such as `0xA700`.
    pub(super) last_status: Option<String>,
    pub(super) last_words: String,
    /// While it waits.
    pub(super) next_attempt_at: Option<Moment>,
    /// What `hilum deliveries --restart` takes.
    pub(super) delivery_id: Option<Uuid>,
    /// Deliveries of a run and destination with the same one are forms of the same thing.
    pub(super) chain: Option<String>,
    /// Place among these forms, from 0.
    pub(super) rank: Option<i32>,
    /// State of Storage Commitment, where it is used.
    pub(super) commitment: Option<String>,
    pub(super) commitment_words: String,
    /// Its attempts, the newest last.
    pub(super) ledger: Vec<AttemptView>,
}

/// One attempt of a delivery.
#[derive(Debug, Serialize)]
pub(super) struct AttemptView {
    pub(super) number: i32,
    pub(super) started_at: Moment,
    /// `null` while it goes on, or when its process died.
    pub(super) ended_at: Option<Moment>,
    /// What the delivery became by it.
    pub(super) state: Option<String>,
    /// DICOM status, such as `0xA700`.
    pub(super) status: Option<String>,
    pub(super) words: String,
}

impl From<AttemptRow> for AttemptView {
    fn from(row: AttemptRow) -> Self {
        Self {
            number: row.number,
            started_at: Moment::new(row.started_at),
            ended_at: row.ended_at.map(Moment::new),
            state: row.state,
            status: row.status.map(|status| format!("0x{status:04X}")),
            words: row.words,
        }
    }
}

impl AttemptView {
    /// What it came to.
    pub(super) fn state_words(&self) -> Cow<'_, str> {
        match self.state.as_deref() {
            Some("waiting") => Cow::Borrowed("to be tried again"),
            Some(state) => state_words(state),
            None => Cow::Borrowed("not ended"),
        }
    }
}

/// How a destination does that has failed.
#[derive(Debug, Serialize)]
pub(super) struct DestinationStateView {
    pub(super) destination: String,
    /// `closed`, `open` or `half_open`.
    pub(super) state: String,
    /// Failures in a row.
    pub(super) failures: i32,
    pub(super) since: Moment,
    /// Nothing is tried before.
    pub(super) next_probe_at: Option<Moment>,
    pub(super) words: String,
}

impl From<DestinationState> for DestinationStateView {
    fn from(row: DestinationState) -> Self {
        Self {
            destination: row.destination,
            state: row.state,
            failures: row.failures,
            since: Moment::new(row.since),
            next_probe_at: row.next_probe_at.map(Moment::new),
            words: row.words,
        }
    }
}

impl DestinationStateView {
    pub(super) fn tone(&self) -> &'static str {
        tone(&self.state)
    }

    pub(super) fn state_words(&self) -> Cow<'_, str> {
        state_words(&self.state)
    }
}

impl From<DeliveryRow> for DeliveryView {
    fn from(row: DeliveryRow) -> Self {
        let waits = row.state.as_deref() == Some("waiting");
        Self {
            result_id: row.result_id,
            run_id: row.run_id,
            study_instance_uid: row.study_instance_uid,
            kind: row.kind,
            sop_instance_uid: row.sop_instance_uid,
            preview: row.preview_key.map(|_| format!("/results/{}/preview.png", row.result_id)),
            destination: row.destination,
            state: row.state,
            attempts: row.attempts.unwrap_or(0),
            last_status: row.last_status.map(|status| format!("0x{status:04X}")),
            last_words: row.last_words.unwrap_or_default(),
            next_attempt_at: row.next_attempt_at.filter(|_| waits).map(Moment::new),
            delivery_id: row.delivery_id,
            chain: row.chain,
            rank: row.rank,
            commitment: row.commitment,
            commitment_words: row.commitment_words.unwrap_or_default(),
            ledger: Vec::new(),
        }
    }
}

impl DeliveryView {
    /// Rows with their attempts.
    pub(super) async fn with_ledgers(
        connection: &mut Connection,
        rows: Vec<DeliveryRow>,
    ) -> Result<Vec<Self>, DbError> {
        let ids: Vec<Uuid> = rows.iter().filter_map(|row| row.delivery_id).collect();
        let mut views: Vec<Self> = rows.into_iter().map(Self::from).collect();
        for attempt in delivery::attempts(connection, &ids, ATTEMPT_LIMIT).await? {
            if let Some(view) = views.iter_mut().find(|view| view.delivery_id == Some(attempt.delivery_id)) {
                view.ledger.push(attempt.into());
            }
        }
        Ok(views)
    }

    /// Whether the destination keeps it, where it is asked.
    pub(super) fn commitment_state(&self) -> &str {
        match self.commitment.as_deref() {
            Some("wanted") => "to be asked for commitment",
            Some("asked") => "asked for commitment",
            Some("committed") => "committed",
            Some("failed") => "not committed: a person has to look",
            Some("unanswered") => "commitment not answered: a person has to look",
            Some("unsupported") => "the destination offers no commitment",
            _ => "",
        }
    }

    pub(super) fn tone(&self) -> &'static str {
        tone(self.state.as_deref().unwrap_or("none"))
    }

    pub(super) fn state_words(&self) -> Cow<'_, str> {
        self.state.as_deref().map_or(Cow::Borrowed("not to be sent"), state_words)
    }

    pub(super) fn kind_words(&self) -> &str {
        match self.kind.as_str() {
            "sr" => "report (SR)",
            "sr_text" => "report as text (SR)",
            "sc" => "picture (SC)",
            "seg" => "segmentation (SEG)",
            "pr" => "outlines (PR)",
            "ko" => "key images (KO)",
            other => other,
        }
    }

    pub(super) fn destination(&self) -> &str {
        self.destination.as_deref().unwrap_or("no destination")
    }
}

/// The deliveries to one destination.
#[derive(Debug)]
pub(super) struct DestinationView {
    /// Empty for results without a destination.
    pub(super) name: String,
    pub(super) deliveries: Vec<DeliveryView>,
}

impl DestinationView {
    /// How many are in which state, such as `3 delivered, 1 waiting`.
    pub(super) fn summary(&self) -> String {
        let mut counts = BTreeMap::<Cow<'_, str>, usize>::new();
        for delivery in &self.deliveries {
            *counts.entry(delivery.state_words()).or_default() += 1;
        }
        let counts: Vec<String> = counts.into_iter().map(|(words, count)| format!("{count} {words}")).collect();
        counts.join(", ")
    }
}

/// Groups deliveries by destination, by name; the newest first in each.
pub(super) fn by_destination(rows: Vec<DeliveryRow>) -> Vec<DestinationView> {
    let mut destinations = BTreeMap::<String, Vec<DeliveryView>>::new();
    for row in rows {
        destinations.entry(row.destination.clone().unwrap_or_default()).or_default().push(row.into());
    }
    destinations.into_iter().map(|(name, deliveries)| DestinationView { name, deliveries }).collect()
}

/// What was refused for one cause; the words are those of the newest.
#[derive(Debug, Serialize)]
pub(super) struct RefusalView {
    /// What `hilum doctor allow` takes.
    pub(super) id: i64,
    /// `association`, `context` or `object`.
    pub(super) kind: String,
    pub(super) reason: String,
    /// `open`, `mended` or `harmless`.
    pub(super) state: &'static str,
    pub(super) count: i64,
    pub(super) first_at: Moment,
    pub(super) last_at: Moment,
    pub(super) peer_address: String,
    pub(super) calling_ae_title: String,
    pub(super) called_ae_title: String,
    pub(super) expected: String,
    /// Each kind of thing that came, the newest first, a few.
    pub(super) received: Vec<String>,
    pub(super) remedy: String,
}

impl RefusalView {
    /// What was received in so many words at most; the rest is in `hilum doctor`.
    const RECEIVED_LIMIT: usize = 5;

    pub(super) fn new(cause: Cause) -> Option<Self> {
        let newest = cause.newest()?.clone();
        let state = match (cause.is_open(), newest.mended) {
            (true, _) => "open",
            (false, true) => "mended",
            (false, false) => "harmless",
        };
        let (count, first_at) = (cause.count(), cause.first_at().unwrap_or(newest.first_at));
        let received = cause.rows.into_iter().map(|row| row.received).take(Self::RECEIVED_LIMIT).collect();
        Some(Self {
            id: newest.id,
            kind: newest.kind,
            reason: newest.reason,
            state,
            count,
            first_at: Moment::new(first_at),
            last_at: Moment::new(newest.last_at),
            peer_address: newest.peer_address,
            calling_ae_title: newest.calling_ae_title,
            called_ae_title: newest.called_ae_title,
            expected: newest.expected,
            received,
            remedy: newest.remedy,
        })
    }

    pub(super) fn tone(&self) -> &'static str {
        match self.state {
            "open" => "bad",
            "mended" => "good",
            _ => "quiet",
        }
    }

    pub(super) fn caller(&self) -> String {
        match (self.calling_ae_title.as_str(), self.called_ae_title.as_str()) {
            ("", "") => self.peer_address.clone(),
            (calling, called) => format!("{calling} at {}, calling {called}", self.peer_address),
        }
    }
}

/// One step of a timeline.
#[derive(Debug, Serialize)]
pub(super) struct EventView {
    pub(super) at: Moment,
    pub(super) subject: String,
    pub(super) kind: String,
    pub(super) words: String,
}

impl From<EventRow> for EventView {
    fn from(row: EventRow) -> Self {
        Self { at: Moment::new(row.at), subject: row.subject_kind, kind: row.kind, words: row.words }
    }
}

impl EventView {
    pub(super) fn kind_words(&self) -> String {
        self.kind.replace('_', " ")
    }
}

/// What is open.
#[derive(Debug, Serialize)]
pub(super) struct BacklogView {
    pub(super) studies_receiving: i64,
    pub(super) runs_open: i64,
    pub(super) runs_parked: i64,
    pub(super) deliveries_open: i64,
    pub(super) deliveries_given_up: i64,
    /// Delivered, and the destination does not promise to keep them.
    pub(super) deliveries_not_committed: i64,
    /// Destinations that are left alone.
    pub(super) destinations_open: i64,
    /// Networks that failed in a run of the last ten minutes, while others of their bundle answered.
    pub(super) networks_failing: i64,
    /// On the archive's disk; `null` when unknown.
    pub(super) archive_free_bytes: Option<u64>,
}

impl BacklogView {
    pub(super) fn new(backlog: Backlog, archive_free_bytes: Option<u64>) -> Self {
        Self {
            studies_receiving: backlog.workups_receiving,
            runs_open: backlog.runs_open,
            runs_parked: backlog.runs_parked,
            deliveries_open: backlog.deliveries_open,
            deliveries_given_up: backlog.deliveries_dead,
            deliveries_not_committed: backlog.deliveries_not_committed,
            destinations_open: backlog.destinations_open,
            networks_failing: backlog.networks_failing,
            archive_free_bytes,
        }
    }

    pub(super) fn free_words(&self) -> String {
        self.archive_free_bytes.map_or_else(|| "unknown".to_owned(), gibibytes)
    }
}

/// A workup with all that belongs to it.
#[derive(Debug, Serialize)]
pub(super) struct WorkupDetail {
    #[serde(flatten)]
    pub(super) study: StudyView,
    pub(super) runs: Vec<RunView>,
    pub(super) deliveries: Vec<DeliveryView>,
    pub(super) events: Vec<EventView>,
}

impl WorkupDetail {
    /// Pictures of a run's results, each once.
    pub(super) fn pictures(&self, run: &RunView) -> Vec<&str> {
        let mut pictures: Vec<&str> = self
            .deliveries
            .iter()
            .filter(|delivery| delivery.run_id == run.id)
            .filter_map(|delivery| delivery.preview.as_deref())
            .collect();
        pictures.sort_unstable();
        pictures.dedup();
        pictures
    }
}

/// A study with all its workups.
#[derive(Debug, Serialize)]
pub(super) struct StudyDetail {
    pub(super) study_instance_uid: String,
    pub(super) workups: Vec<WorkupDetail>,
}

impl StudyDetail {
    /// Reads everything that is known of a study.
    pub(super) async fn read(state: &AdminState, study_instance_uid: &str) -> Result<Self, Problem> {
        let uid = Uid::new(study_instance_uid).map_err(|error| Problem::not_found(error.to_string()))?;
        let mut connection = state.connection().await?;
        let rows = status::workups(&mut connection, Some(uid.as_str()), WORKUP_LIMIT).await?;
        if rows.is_empty() {
            return Err(Problem::not_found(format!("no study with the UID {uid} has arrived")));
        }
        let mut workups = Vec::with_capacity(rows.len());
        for row in rows {
            let workup_id = row.id;
            let runs = status::runs(&mut connection, Some(workup_id), RUN_LIMIT).await?;
            let mut runs: Vec<RunView> = runs.into_iter().map(RunView::from).collect();
            for run in runs.iter_mut().take(FINDINGS_LIMIT) {
                run.findings = status::findings(&mut connection, run.id).await?.as_ref().map(FindingsView::from);
            }
            let deliveries = status::deliveries(&mut connection, Some(workup_id), DELIVERY_LIMIT).await?;
            let deliveries = DeliveryView::with_ledgers(&mut connection, deliveries).await?;
            let events = status::timeline(&mut connection, workup_id).await?;
            workups.push(WorkupDetail {
                study: row.into(),
                runs,
                deliveries,
                events: events.into_iter().map(EventView::from).collect(),
            });
        }
        Ok(Self { study_instance_uid: uid.to_string(), workups })
    }

    pub(super) fn is_untrained(&self) -> bool {
        self.workups.iter().flat_map(|workup| &workup.runs).any(RunView::is_untrained)
    }
}
