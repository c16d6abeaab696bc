//! Everything that is counted. `docs/metrics.md` lists it; a test compares the two.
//!
//! Labels are closed enums. Every value of every label exists from the start with 0, so that `rate()` sees the first
//! event and alerts can be written before anything went wrong.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelValue, EncodeMetric, LabelValueEncoder, MetricEncoder, text},
    metrics::{
        MetricType,
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
        info::Info,
    },
    registry::{Registry, Unit},
};

/// A closed set of label values.
pub trait Label: Copy + Eq + std::hash::Hash + fmt::Debug + Send + Sync + 'static {
    /// The label's name.
    const NAME: &'static str;

    /// Every value.
    const ALL: &'static [Self];

    /// As written in the exposition and in log lines.
    fn as_str(self) -> &'static str;
}

/// Defines a closed set of label values with their texts.
macro_rules! label {
    ($(#[$docs:meta])* $name:ident as $label:literal { $($(#[$value_docs:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$value_docs])* $value,)+
        }

        impl Label for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$value => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
                self.as_str().encode(encoder)
            }
        }
    };
}

label! {
    /// Why an association was rejected.
    RejectionReason as "reason" {
        /// The calling AE title is not a configured peer, or the peer may not store.
        CallingAeTitle = "calling_ae_title",
        /// We have no such AE title, or it is disabled.
        CalledAeTitle = "called_ae_title",
        /// The peer calls from another address than configured.
        PeerAddress = "peer_address",
        /// The application context is not DICOM's.
        ApplicationContext = "application_context",
        /// The protocol version is not 1.
        ProtocolVersion = "protocol_version",
        /// Too many associations are open: transient.
        LimitReached = "limit_reached",
        /// No TLS where it is asked for, or a wrong certificate or user identity.
        Security = "security",
        /// No site configuration to admit by, or the node is stopping: transient.
        NotReady = "not_ready",
        /// No valid A-ASSOCIATE-RQ arrived.
        MalformedRequest = "malformed_request",
        /// No complete A-ASSOCIATE-RQ arrived in time.
        RequestTimeout = "request_timeout",
        /// The connection was closed without a word, as port probes do.
        NoRequest = "no_request",
    }
}

label! {
    /// Why a presentation context was refused (PS3.8 table 9-18).
    ContextRefusal as "reason" {
        /// We do not take that SOP class.
        AbstractSyntax = "abstract_syntax",
        /// We take the SOP class, but in none of the proposed transfer syntaxes.
        TransferSyntaxes = "transfer_syntaxes",
        /// Any other.
        Other = "other",
    }
}

label! {
    /// How an accepted association ended.
    AssociationEnd as "end" {
        /// A-RELEASE.
        Released = "released",
        /// A-ABORT by the peer.
        AbortedByPeer = "aborted_by_peer",
        /// A-ABORT by us, for a protocol error.
        ProtocolError = "protocol_error",
        /// A-ABORT by us, for silence.
        Timeout = "timeout",
        /// A-ABORT by us, because the node stops.
        Shutdown = "shutdown",
        /// The connection broke.
        ConnectionLost = "connection_lost",
    }
}

label! {
    /// The status that refused an object (PS3.4 section B.2.3, PS3.7 annex C).
    RefusalStatus as "status" {
        /// 0xA7xx
        OutOfResources = "0xA700",
        /// 0xA9xx
        DataSetMismatch = "0xA900",
        /// 0xCxxx
        CannotUnderstand = "0xC000",
        /// 0x0110
        ProcessingFailure = "0x0110",
        /// 0x0117
        InvalidSopInstance = "0x0117",
        /// 0x0122
        SopClassNotSupported = "0x0122",
        /// 0x0124
        NotAuthorised = "0x0124",
        /// Any other.
        Other = "other",
    }
}

impl RefusalStatus {
    /// The class of a C-STORE-RSP status.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            0xA700..=0xA7FF => Self::OutOfResources,
            0xA900..=0xA9FF => Self::DataSetMismatch,
            0xC000..=0xCFFF => Self::CannotUnderstand,
            0x0110 => Self::ProcessingFailure,
            0x0117 => Self::InvalidSopInstance,
            0x0122 => Self::SopClassNotSupported,
            0x0124 => Self::NotAuthorised,
            _ => Self::Other,
        }
    }
}

label! {
    /// Why a request other than C-STORE was refused.
    OperationRefusal as "reason" {
        /// 0x0211, 0x0112, 0x0113, 0x0118 or 0x0123: no such operation, class, instance, event or action.
        NotOffered = "not_offered",
        /// 0x0115 or 0x0212: what it says cannot be acted upon.
        BadRequest = "bad_request",
        /// 0x0213
        TooLong = "too_long",
        /// Any other: our own fault, or Postgres's.
        NotKept = "not_kept",
    }
}

impl OperationRefusal {
    /// The class of a status.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            0x0211 | 0x0112 | 0x0113 | 0x0118 | 0x0123 => Self::NotOffered,
            0x0115 | 0x0212 => Self::BadRequest,
            0x0213 => Self::TooLong,
            _ => Self::NotKept,
        }
    }
}

label! {
    /// How an attempt of a run ended.
    RunEnd as "end" {
        /// Scores and maps.
        Succeeded = "succeeded",
        /// A gate refused: a result in its own right.
        NotAnalysed = "not_analysed",
        /// A newer revision took over.
        Superseded = "superseded",
        /// Technical failure, will be tried again.
        Failed = "failed",
        /// Technical failure at the last attempt.
        Parked = "parked",
    }
}

label! {
    /// A step of a run.
    RunStage as "stage" {
        /// Reading the files from the archive.
        Read = "read",
        /// Parsing the headers of a CT.
        Headers = "headers",
        /// Decoding, the checks of header and picture, padding, resizing.
        Decode = "decode",
        /// Lungs.
        Segment = "segment",
        /// The ensemble, with its class-activation maps.
        Classify = "classify",
        /// Fusion and decision.
        Explain = "explain",
        /// The search for similar cases.
        Compare = "compare",
        /// Densitometry of a CT.
        Measure = "measure",
        /// What networks outline in a CT.
        Lesions = "lesions",
    }
}

label! {
    /// How an attempt of a delivery ended.
    DeliveryEnd as "end" {
        /// The destination answered Success or a warning.
        Delivered = "delivered",
        /// It will be tried again.
        Retry = "retry",
        /// Given up; a person can restart it.
        Dead = "dead",
        /// The destination does not take this form; the next one is sent.
        Replaced = "replaced",
        /// A newer revision of its study came while it was sent in vain.
        Cancelled = "cancelled",
    }
}

label! {
    /// How an attempt to report on a peer's Storage Commitment request ended.
    CommitmentEnd as "end" {
        /// The peer has the report.
        Reported = "reported",
        /// It will be tried again.
        Retry = "retry",
        /// Given up; a person can restart it.
        Dead = "dead",
    }
}

label! {
    /// What retention removes.
    RetentionKind as "kind" {
        /// Received objects.
        Objects = "objects",
        /// Results, their pictures left out.
        Results = "results",
    }
}

/// One label with its name.
type By<L> = [(&'static str, L); 1];

fn by<L: Label>(value: L) -> By<L> {
    [(L::NAME, value)]
}

/// Makes the series of every value.
fn start_at_zero<L, M, C>(family: &Family<By<L>, M, C>)
where
    L: Label,
    C: MetricConstructor<M>,
{
    for value in L::ALL.iter().copied() {
        drop(family.get_or_create(&by(value)));
    }
}

type SecondsGauge = Gauge<f64, AtomicU64>;

/// A gauge that has no value at times, and no series then.
#[derive(Debug, Clone, Default)]
struct GaugeAtTimes(Arc<Mutex<Option<f64>>>);

impl GaugeAtTimes {
    fn value(&self) -> MutexGuard<'_, Option<f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for GaugeAtTimes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match *self.value() {
            Some(value) => encoder.encode_gauge(&value),
            None => Ok(()),
        }
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.value().is_none()
    }
}

/// Every metric of one process. Made once, shared by reference; gauges are set by whoever knows the value, everything
/// else is counted by [`super::events`].
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    associations_accepted: Counter,
    associations_rejected: Family<By<RejectionReason>, Counter>,
    associations_ended: Family<By<AssociationEnd>, Counter>,
    associations_open: Gauge,
    contexts_refused: Family<By<ContextRefusal>, Counter>,
    refusals_dropped: Counter,
    objects_stored: Counter,
    objects_duplicate: Counter,
    objects_version_conflict: Counter,
    objects_duplicate_refused: Counter,
    objects_refused: Family<By<RefusalStatus>, Counter>,
    operations_refused: Family<By<OperationRefusal>, Counter>,
    received_bytes: Counter,
    store_seconds: Histogram,
    index_queue_objects: Gauge,
    index_lag_seconds: SecondsGauge,
    runs_started: Counter,
    runs_ended: Family<By<RunEnd>, Counter>,
    run_seconds: Histogram,
    run_stage_seconds: Family<By<RunStage>, Histogram, StageBuckets>,
    deliveries_ended: Family<By<DeliveryEnd>, Counter>,
    deliveries_waiting: Gauge,
    deliveries_not_committed: Gauge,
    destinations_open: Gauge,
    commitments_ended: Family<By<CommitmentEnd>, Counter>,
    commitments_waiting: Gauge,
    infer_restarts: Counter,
    networks_failing: Gauge,
    archive_free_bytes: Gauge<u64, AtomicU64>,
    archive_unreadable_files: Gauge,
    tls_certificate_expires_seconds: SecondsGauge,
    archive_receiving_stopped: Gauge,
    /// Empty while the disk does not fill.
    archive_seconds_to_full: GaugeAtTimes,
    retention_removed_bytes: Family<By<RetentionKind>, Counter>,
}

/// Makes the histogram of one stage.
#[derive(Debug, Clone)]
struct StageBuckets;

impl MetricConstructor<Histogram> for StageBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("hilum"),
            associations_accepted: Counter::default(),
            associations_rejected: Family::default(),
            associations_ended: Family::default(),
            associations_open: Gauge::default(),
            contexts_refused: Family::default(),
            refusals_dropped: Counter::default(),
            objects_stored: Counter::default(),
            objects_duplicate: Counter::default(),
            objects_version_conflict: Counter::default(),
            objects_duplicate_refused: Counter::default(),
            objects_refused: Family::default(),
            operations_refused: Family::default(),
            received_bytes: Counter::default(),
            store_seconds: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0]),
            index_queue_objects: Gauge::default(),
            index_lag_seconds: SecondsGauge::default(),
            runs_started: Counter::default(),
            runs_ended: Family::default(),
            run_seconds: Histogram::new([0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0]),
            run_stage_seconds: Family::new_with_constructor(StageBuckets),
            deliveries_ended: Family::default(),
            deliveries_waiting: Gauge::default(),
            deliveries_not_committed: Gauge::default(),
            networks_failing: Gauge::default(),
            destinations_open: Gauge::default(),
            commitments_ended: Family::default(),
            commitments_waiting: Gauge::default(),
            infer_restarts: Counter::default(),
            archive_free_bytes: Gauge::default(),
            archive_unreadable_files: Gauge::default(),
            tls_certificate_expires_seconds: SecondsGauge::default(),
            archive_receiving_stopped: Gauge::default(),
            archive_seconds_to_full: GaugeAtTimes::default(),
            retention_removed_bytes: Family::default(),
        };
        // Without a certificate none ends.
        metrics.tls_certificate_expires_seconds.set(f64::INFINITY);
        start_at_zero(&metrics.associations_rejected);
        start_at_zero(&metrics.associations_ended);
        start_at_zero(&metrics.contexts_refused);
        start_at_zero(&metrics.objects_refused);
        start_at_zero(&metrics.operations_refused);
        start_at_zero(&metrics.runs_ended);
        start_at_zero(&metrics.run_stage_seconds);
        start_at_zero(&metrics.deliveries_ended);
        start_at_zero(&metrics.commitments_ended);
        start_at_zero(&metrics.retention_removed_bytes);
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let registry = &mut self.registry;
        registry.register(
            "associations_accepted",
            "Associations that were accepted",
            self.associations_accepted.clone(),
        );
        registry.register(
            "associations_rejected",
            "Associations that were rejected, by reason",
            self.associations_rejected.clone(),
        );
        registry.register(
            "associations_ended",
            "Accepted associations that ended, by how",
            self.associations_ended.clone(),
        );
        registry.register("associations_open", "Associations that are open now", self.associations_open.clone());
        registry.register(
            "contexts_refused",
            "Presentation contexts that were refused, by reason",
            self.contexts_refused.clone(),
        );
        registry.register("refusals_dropped", "Refusals that could not be written down", self.refusals_dropped.clone());
        registry.register("objects_stored", "Objects made durable for the first time", self.objects_stored.clone());
        registry.register(
            "objects_duplicate",
            "Objects that arrived again with the same bytes",
            self.objects_duplicate.clone(),
        );
        registry.register(
            "objects_version_conflict",
            "Objects that arrived under a known UID with other bytes and were kept as a further version",
            self.objects_version_conflict.clone(),
        );
        registry.register(
            "objects_duplicate_refused",
            "Objects that were refused because their UID is known with other bytes",
            self.objects_duplicate_refused.clone(),
        );
        registry.register("objects_refused", "Objects that were refused, by status", self.objects_refused.clone());
        registry.register(
            "operations_refused",
            "Requests other than C-STORE that were refused, by reason",
            self.operations_refused.clone(),
        );
        registry.register_with_unit(
            "received",
            "Data set bytes of stored, duplicate and refused objects",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        registry.register_with_unit(
            "store_duration",
            "From the first byte of an object to its durable file",
            Unit::Seconds,
            self.store_seconds.clone(),
        );
        registry.register(
            "index_queue_objects",
            "Durable objects that are not in the index yet",
            self.index_queue_objects.clone(),
        );
        registry.register_with_unit(
            "index_lag",
            "Age of the oldest durable object that is not in the index yet",
            Unit::Seconds,
            self.index_lag_seconds.clone(),
        );
        registry.register("runs_started", "Attempts of runs that were started", self.runs_started.clone());
        registry.register("runs_ended", "Attempts of runs that ended, by how", self.runs_ended.clone());
        registry.register_with_unit("run_duration", "One attempt of a run", Unit::Seconds, self.run_seconds.clone());
        registry.register_with_unit(
            "run_stage_duration",
            "One stage of a run",
            Unit::Seconds,
            self.run_stage_seconds.clone(),
        );
        registry.register(
            "deliveries_ended",
            "Attempts of deliveries that ended, by how",
            self.deliveries_ended.clone(),
        );
        registry.register(
            "deliveries_waiting",
            "Results that wait for their destination",
            self.deliveries_waiting.clone(),
        );
        registry.register(
            "deliveries_not_committed",
            "Delivered results that their destination does not promise to keep, although it was asked to",
            self.deliveries_not_committed.clone(),
        );
        registry.register(
            "destinations_open",
            "Destinations that are left alone because they have failed again and again",
            self.destinations_open.clone(),
        );
        registry.register(
            "networks_failing",
            "Networks that failed in a run of the last ten minutes, while others of their bundle answered",
            self.networks_failing.clone(),
        );
        registry.register(
            "commitments_ended",
            "Attempts to report on Storage Commitment requests of peers that ended, by how",
            self.commitments_ended.clone(),
        );
        registry.register(
            "commitments_waiting",
            "Storage Commitment requests of peers that are not reported on yet",
            self.commitments_waiting.clone(),
        );
        registry.register(
            "infer_restarts",
            "Restarts of the infer process after it ended by itself",
            self.infer_restarts.clone(),
        );
        registry.register_with_unit(
            "archive_free",
            "Free space on the archive's disk",
            Unit::Bytes,
            self.archive_free_bytes.clone(),
        );
        registry.register(
            "archive_unreadable_files",
            "Received files that the disk does not give, so that they are not in the index; they are tried again",
            self.archive_unreadable_files.clone(),
        );
        registry.register_with_unit(
            "tls_certificate_expires",
            "Time until our TLS certificate expires, negative once it has; infinite without one",
            Unit::Seconds,
            self.tls_certificate_expires_seconds.clone(),
        );
        registry.register(
            "archive_receiving_stopped",
            "1 while too little space is free on the archive's disk to receive",
            self.archive_receiving_stopped.clone(),
        );
        registry.register(
            "archive_seconds_to_full",
            "Until receiving stops for want of space, at the rate of the last minutes; absent while the disk does not fill",
            self.archive_seconds_to_full.clone(),
        );
        registry.register_with_unit(
            "retention_removed",
            "What retention has removed, by kind",
            Unit::Bytes,
            self.retention_removed_bytes.clone(),
        );
        registry.register("build", "The running version", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        self
    }

    /// All metrics in the OpenMetrics text format; its media type is
    /// `application/openmetrics-text; version=1.0.0; charset=utf-8`.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut exposition = String::new();
        match text::encode(&mut exposition, &self.registry) {
            Ok(()) => exposition,
            // Writing to a `String` does not fail; an exposition that ends early is at least a valid one.
            Err(fmt::Error) => "# EOF\n".to_owned(),
        }
    }

    /// Sets how many durable objects wait to be indexed and how old the oldest of them is.
    pub fn set_index_backlog(&self, objects: usize, oldest: Duration) {
        self.index_queue_objects.set(i64::try_from(objects).unwrap_or(i64::MAX));
        self.index_lag_seconds.set(oldest.as_secs_f64());
    }

    /// Sets how many results wait for their destination.
    pub fn set_deliveries_waiting(&self, count: u64) {
        self.deliveries_waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Delivered results that their destination does not promise to keep, and destinations that are left alone.
    pub fn set_delivery_alarms(&self, not_committed: u64, destinations_open: u64) {
        self.deliveries_not_committed.set(i64::try_from(not_committed).unwrap_or(i64::MAX));
        self.destinations_open.set(i64::try_from(destinations_open).unwrap_or(i64::MAX));
    }

    /// Sets how many networks failed in a run of the last ten minutes.
    pub fn set_networks_failing(&self, count: u64) {
        self.networks_failing.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets how many Storage Commitment requests of peers are not reported on yet.
    pub fn set_commitments_waiting(&self, count: u64) {
        self.commitments_waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an attempt to report on a Storage Commitment request.
    pub fn commitment_ended(&self, end: CommitmentEnd) {
        self.commitments_ended.get_or_create(&by(end)).inc();
    }

    /// Sets the free space on the archive's disk.
    pub fn set_archive_free_bytes(&self, bytes: u64) {
        self.archive_free_bytes.set(bytes);
    }

    /// Sets how many received files the disk does not give.
    pub fn set_archive_unreadable_files(&self, count: usize) {
        self.archive_unreadable_files.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Sets the time until our TLS certificate expires, in seconds; negative once it has.
    pub fn set_tls_certificate_expires(&self, seconds: f64) {
        self.tls_certificate_expires_seconds.set(seconds);
    }

    /// Sets whether receiving is stopped for want of space, and when it will be; `None` while the disk does not fill.
    pub fn set_archive_room(&self, stopped: bool, seconds_to_full: Option<f64>) {
        self.archive_receiving_stopped.set(i64::from(stopped));
        *self.archive_seconds_to_full.value() = seconds_to_full;
    }

    /// Counts an object that was refused because its UID is known with other bytes.
    pub fn duplicate_refused(&self) {
        self.objects_duplicate_refused.inc();
    }

    /// Counts bytes that retention has removed.
    pub fn retention_removed(&self, kind: RetentionKind, bytes: u64) {
        self.retention_removed_bytes.get_or_create(&by(kind)).inc_by(bytes);
    }

    pub(super) fn association_accepted(&self) {
        self.associations_accepted.inc();
        self.associations_open.inc();
    }

    pub(super) fn association_rejected(&self, reason: RejectionReason) {
        self.associations_rejected.get_or_create(&by(reason)).inc();
    }

    pub(super) fn context_refused(&self, reason: ContextRefusal) {
        self.contexts_refused.get_or_create(&by(reason)).inc();
    }

    /// Counts refusals that could not be written down.
    pub fn refusals_dropped(&self, count: u64) {
        self.refusals_dropped.inc_by(count);
    }

    pub(super) fn association_ended(&self, end: AssociationEnd) {
        self.associations_ended.get_or_create(&by(end)).inc();
        self.associations_open.dec();
    }

    pub(super) fn object_stored(&self, size_bytes: u64, duration: Duration) {
        self.objects_stored.inc();
        self.received_bytes.inc_by(size_bytes);
        self.store_seconds.observe(duration.as_secs_f64());
    }

    pub(super) fn object_duplicate(&self, size_bytes: u64) {
        self.objects_duplicate.inc();
        self.received_bytes.inc_by(size_bytes);
    }

    pub(super) fn object_version_conflict(&self) {
        self.objects_version_conflict.inc();
    }

    pub(super) fn object_refused(&self, status: RefusalStatus, received_bytes: u64) {
        self.objects_refused.get_or_create(&by(status)).inc();
        self.received_bytes.inc_by(received_bytes);
    }

    pub(super) fn operation_refused(&self, reason: OperationRefusal) {
        self.operations_refused.get_or_create(&by(reason)).inc();
    }

    pub(super) fn run_started(&self) {
        self.runs_started.inc();
    }

    pub(super) fn run_ended(&self, end: RunEnd, duration: Duration, stages: &[(RunStage, Duration)]) {
        self.runs_ended.get_or_create(&by(end)).inc();
        self.run_seconds.observe(duration.as_secs_f64());
        for (stage, duration) in stages.iter().copied() {
            self.run_stage_seconds.get_or_create(&by(stage)).observe(duration.as_secs_f64());
        }
    }

    pub(super) fn deliveries_ended(&self, end: DeliveryEnd, count: u64) {
        self.deliveries_ended.get_or_create(&by(end)).inc_by(count);
    }

    pub(super) fn infer_restarted(&self) {
        self.infer_restarts.inc();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
    };

    use super::*;

    /// Type and label values of each metric. Bucket bounds are no label of ours.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Shape {
        kind: String,
        labels: BTreeMap<String, BTreeSet<String>>,
    }

    fn from_exposition(text: &str) -> BTreeMap<String, Shape> {
        let mut shapes = BTreeMap::<String, Shape>::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                shapes.entry(name.to_owned()).or_default().kind = kind.to_owned();
                continue;
            }
            let Some((series, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) else { continue };
            let (_, shape) = shapes
                .iter_mut()
                .filter(|(name, _)| series.starts_with(*name))
                .max_by_key(|(name, _)| name.len())
                .unwrap();
            for label in rest.split_once('}').unwrap().0.split(',') {
                let (name, value) = label.split_once('=').unwrap();
                if !["le", "version"].contains(&name) {
                    shape.labels.entry(name.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
                }
            }
        }
        shapes
    }

    /// Rows of the table: name, type, labels as `reason`: `a`, `b`, meaning.
    fn from_docs(text: &str) -> BTreeMap<String, Shape> {
        let words = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        text.lines()
            .filter(|line| line.starts_with("| `hilum_"))
            .map(|line| {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                assert_eq!(cells.len(), 4, "{line}");
                assert!(!cells[3].is_empty(), "{line}");
                let mut values = words(cells[2]).into_iter();
                let labels = values.next().map(|label| (label, values.filter(|value| value != "version").collect()));
                let labels = labels.into_iter().filter(|(label, _)| label != "version").collect();
                (words(cells[0]).remove(0), Shape { kind: cells[1].to_owned(), labels })
            })
            .collect()
    }

    #[test]
    fn the_documentation_lists_every_metric_and_no_other() {
        let docs = fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).unwrap();
        let documented = from_docs(&docs);
        let metrics = Metrics::new();
        metrics.set_archive_room(false, Some(1.0));
        let registered = from_exposition(&metrics.encode());
        assert_eq!(registered.len(), 35);
        assert_eq!(documented, registered);
    }

    #[test]
    fn every_label_value_starts_at_zero() {
        let text = Metrics::new().encode();
        for line in [
            "hilum_associations_rejected_total{reason=\"calling_ae_title\"} 0",
            "hilum_objects_refused_total{status=\"0xA700\"} 0",
            "hilum_runs_ended_total{end=\"parked\"} 0",
            "hilum_run_stage_duration_seconds_count{stage=\"explain\"} 0",
            "hilum_deliveries_ended_total{end=\"dead\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn label_texts_differ() {
        fn check<L: Label>() {
            let texts: BTreeSet<&str> = L::ALL.iter().map(|label| label.as_str()).collect();
            assert_eq!(texts.len(), L::ALL.len());
        }
        check::<RejectionReason>();
        check::<AssociationEnd>();
        check::<RefusalStatus>();
        check::<OperationRefusal>();
        check::<RunEnd>();
        check::<RunStage>();
        check::<DeliveryEnd>();
        check::<RetentionKind>();
    }

    #[test]
    fn statuses_are_classed() {
        assert_eq!(RefusalStatus::of(0xA702), RefusalStatus::OutOfResources);
        assert_eq!(RefusalStatus::of(0xC123), RefusalStatus::CannotUnderstand);
        assert_eq!(RefusalStatus::of(0x0122), RefusalStatus::SopClassNotSupported);
        assert_eq!(RefusalStatus::of(0xFFFF), RefusalStatus::Other);
    }

    #[test]
    fn gauges_show_what_was_set() {
        let metrics = Metrics::new();
        metrics.set_index_backlog(3, Duration::from_millis(1500));
        metrics.set_deliveries_waiting(7);
        metrics.set_delivery_alarms(3, 1);
        metrics.set_networks_failing(4);
        metrics.set_commitments_waiting(2);
        metrics.commitment_ended(CommitmentEnd::Retry);
        metrics.set_archive_free_bytes(1 << 40);
        metrics.set_archive_unreadable_files(1);
        metrics.set_archive_room(true, Some(3600.5));
        let text = metrics.encode();
        for line in [
            "hilum_index_queue_objects 3",
            "hilum_index_lag_seconds 1.5",
            "hilum_deliveries_waiting 7",
            "hilum_deliveries_not_committed 3",
            "hilum_destinations_open 1",
            "hilum_networks_failing 4",
            "hilum_commitments_waiting 2",
            "hilum_commitments_ended_total{end=\"retry\"} 1",
            "hilum_commitments_ended_total{end=\"dead\"} 0",
            "hilum_archive_free_bytes 1099511627776",
            "hilum_archive_unreadable_files 1",
            "hilum_archive_receiving_stopped 1",
            "hilum_archive_seconds_to_full 3600.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn time_to_full_is_absent_while_nothing_fills() {
        let metrics = Metrics::new();
        let shown = || metrics.encode().lines().any(|line| line.starts_with("hilum_archive_seconds_to_full "));
        assert!(!shown());
        metrics.set_archive_room(false, Some(9.0));
        assert!(shown(), "{}", metrics.encode());
        metrics.set_archive_room(false, None);
        assert!(!shown());
    }
}
