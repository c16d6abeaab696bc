//! The operational events: one struct for each, whose `emit` logs it and counts it. No other place counts these
//! things, so that a log line and a number can never disagree.
//!
//! Texts are passed as string values, which both log formats escape: a stranger's AE title cannot forge a line. Words
//! must hold no patient data.

use std::{net::IpAddr, time::Duration};

use tracing::{debug, error, info, warn};
use uuid::Uuid;

use super::metrics::{
    AssociationEnd, ContextRefusal, DeliveryEnd, Metrics, OperationRefusal, RefusalStatus, RejectionReason, RunEnd,
    RunStage,
};
use crate::types::{AeTitle, ReasonCode, Uid};

/// A peer's association was accepted. Must be followed by one [`AssociationEnded`].
#[derive(Debug, Clone, Copy)]
pub struct AssociationAccepted<'a> {
    /// The association.
    pub association_id: Uuid,
    /// The peer's AE title.
    pub calling_ae_title: &'a AeTitle,
    /// Our AE title.
    pub called_ae_title: &'a AeTitle,
    /// The peer's address.
    pub peer_address: IpAddr,
    /// Presentation contexts that were accepted.
    pub accepted_contexts: usize,
    /// Presentation contexts that were proposed.
    pub proposed_contexts: usize,
}

impl AssociationAccepted<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.association_accepted();
        info!(
            association_id = %self.association_id,
            calling_ae_title = %self.calling_ae_title,
            called_ae_title = %self.called_ae_title,
            peer_address = %self.peer_address,
            accepted_contexts = self.accepted_contexts,
            proposed_contexts = self.proposed_contexts,
            "association accepted"
        );
    }
}

/// An association was not accepted.
#[derive(Debug, Clone, Copy)]
pub struct AssociationRejected<'a> {
    /// The attempt.
    pub association_id: Uuid,
    /// As sent, possibly malformed; empty when it did not get so far.
    pub calling_ae_title: &'a str,
    /// As sent, possibly malformed; empty when it did not get so far.
    pub called_ae_title: &'a str,
    /// The caller's address.
    pub peer_address: IpAddr,
    /// Why, as counted.
    pub reason: RejectionReason,
    /// What was expected and what was received.
    pub words: &'a str,
    /// What an administrator can do.
    pub remedy: &'a str,
}

impl AssociationRejected<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.association_rejected(self.reason);
        warn!(
            association_id = %self.association_id,
            calling_ae_title = self.calling_ae_title,
            called_ae_title = self.called_ae_title,
            peer_address = %self.peer_address,
            reason = %self.reason,
            words = self.words,
            remedy = self.remedy,
            "association rejected"
        );
    }
}

/// A connection was closed before a byte of it was read.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionUnheard<'a> {
    /// The caller's address.
    pub peer_address: IpAddr,
    /// Why, as counted.
    pub reason: RejectionReason,
    /// Why, in words.
    pub words: &'a str,
}

impl ConnectionUnheard<'_> {
    /// Counts, and logs what somebody should know of: not every port probe.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.association_rejected(self.reason);
        if self.reason == RejectionReason::NoRequest {
            debug!(peer_address = %self.peer_address, words = self.words, "connection closed without a word");
        } else {
            warn!(
                peer_address = %self.peer_address,
                reason = %self.reason,
                words = self.words,
                "connection closed at once"
            );
        }
    }
}

/// Presentation contexts of an accepted association were refused.
#[derive(Debug, Clone, Copy)]
pub struct ContextsRefused<'a> {
    /// The association.
    pub association_id: Uuid,
    /// One for each refused context.
    pub reasons: &'a [ContextRefusal],
    /// What was refused; a list that ends when it gets long.
    pub words: &'a str,
}

impl ContextsRefused<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        for reason in self.reasons {
            metrics.context_refused(*reason);
        }
        info!(
            association_id = %self.association_id,
            refused_contexts = self.reasons.len(),
            words = self.words,
            "presentation contexts refused"
        );
    }
}

/// An accepted association is over.
#[derive(Debug, Clone, Copy)]
pub struct AssociationEnded<'a> {
    /// The association.
    pub association_id: Uuid,
    /// How, as counted.
    pub end: AssociationEnd,
    /// Details of an irregular end; may be empty.
    pub words: &'a str,
    /// Objects that were acknowledged with Success.
    pub objects: u64,
    /// Data set bytes that were received.
    pub received_bytes: u64,
    /// Since it was accepted.
    pub duration: Duration,
}

impl AssociationEnded<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.association_ended(self.end);
        let seconds = self.duration.as_secs_f64();
        if self.end == AssociationEnd::Released {
            info!(
                association_id = %self.association_id,
                end = %self.end,
                objects = self.objects,
                received_bytes = self.received_bytes,
                seconds,
                "association ended"
            );
        } else {
            warn!(
                association_id = %self.association_id,
                end = %self.end,
                words = self.words,
                objects = self.objects,
                received_bytes = self.received_bytes,
                seconds,
                "association ended irregularly"
            );
        }
    }
}

/// An object is durable; a further version of a known UID counts too.
#[derive(Debug, Clone, Copy)]
pub struct ObjectStored<'a> {
    /// The association that carried it.
    pub association_id: Uuid,
    /// (0008,0018)
    pub sop_instance_uid: &'a Uid,
    /// (0020,000D)
    pub study_instance_uid: &'a Uid,
    /// Size of the data set.
    pub size_bytes: u64,
    /// From its first byte to the durable file.
    pub duration: Duration,
}

impl ObjectStored<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.object_stored(self.size_bytes, self.duration);
        info!(
            association_id = %self.association_id,
            sop_instance_uid = %self.sop_instance_uid,
            study_instance_uid = %self.study_instance_uid,
            size_bytes = self.size_bytes,
            seconds = self.duration.as_secs_f64(),
            "object stored"
        );
    }
}

/// An object arrived again with the same bytes: acknowledged, stored once.
#[derive(Debug, Clone, Copy)]
pub struct ObjectDuplicate<'a> {
    /// The association that carried it.
    pub association_id: Uuid,
    /// (0008,0018)
    pub sop_instance_uid: &'a Uid,
    /// Size of the data set.
    pub size_bytes: u64,
}

impl ObjectDuplicate<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.object_duplicate(self.size_bytes);
        info!(
            association_id = %self.association_id,
            sop_instance_uid = %self.sop_instance_uid,
            size_bytes = self.size_bytes,
            "object received again, same bytes"
        );
    }
}

/// A known UID arrived with other bytes and was kept beside the first. Emitted in addition to [`ObjectStored`].
#[derive(Debug, Clone, Copy)]
pub struct ObjectVersionConflict<'a> {
    /// (0008,0018)
    pub sop_instance_uid: &'a Uid,
    /// (0020,000D)
    pub study_instance_uid: &'a Uid,
    /// Versions that are kept now, at least 2.
    pub versions: u32,
}

impl ObjectVersionConflict<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.object_version_conflict();
        warn!(
            sop_instance_uid = %self.sop_instance_uid,
            study_instance_uid = %self.study_instance_uid,
            versions = self.versions,
            "object received with other bytes under a known SOP Instance UID: both are kept"
        );
    }
}

/// An object was answered with a failure status.
#[derive(Debug, Clone, Copy)]
pub struct ObjectRefused<'a> {
    /// The association that carried it.
    pub association_id: Uuid,
    /// Affected SOP Instance UID as sent, possibly malformed.
    pub sop_instance_uid: &'a str,
    /// The status of the response, such as 0xA700.
    pub status: u16,
    /// Why.
    pub words: &'a str,
    /// Data set bytes that arrived before and after the refusal.
    pub received_bytes: u64,
}

impl ObjectRefused<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.object_refused(RefusalStatus::of(self.status), self.received_bytes);
        warn!(
            association_id = %self.association_id,
            sop_instance_uid = self.sop_instance_uid,
            status = format_args!("0x{:04X}", self.status),
            words = self.words,
            received_bytes = self.received_bytes,
            "object refused"
        );
    }
}

/// A request other than C-STORE was answered with a failure.
#[derive(Debug, Clone, Copy)]
pub struct OperationRefused<'a> {
    /// The association that carried it.
    pub association_id: Uuid,
    /// Such as `N-ACTION`.
    pub operation: &'a str,
    /// The status of the response, such as 0x0115.
    pub status: u16,
    /// Why.
    pub words: &'a str,
}

impl OperationRefused<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.operation_refused(OperationRefusal::of(self.status));
        warn!(
            association_id = %self.association_id,
            operation = self.operation,
            status = format_args!("0x{:04X}", self.status),
            words = self.words,
            "request refused"
        );
    }
}

/// An attempt of a run begins.
#[derive(Debug, Clone, Copy)]
pub struct RunStarted<'a> {
    /// The run.
    pub run_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: &'a Uid,
    /// Name of the bundle.
    pub bundle: &'a str,
    /// From 1.
    pub attempt: u32,
    /// The last one.
    pub maximum_attempts: u32,
}

impl RunStarted<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.run_started();
        info!(
            run_id = %self.run_id,
            study_instance_uid = %self.study_instance_uid,
            bundle = self.bundle,
            attempt = self.attempt,
            maximum_attempts = self.maximum_attempts,
            "run started"
        );
    }
}

/// An attempt of a run is over.
#[derive(Debug, Clone, Copy)]
pub struct RunEnded<'a> {
    /// The run.
    pub run_id: Uuid,
    /// (0020,000D)
    pub study_instance_uid: &'a Uid,
    /// How, as counted.
    pub end: RunEnd,
    /// Why there is no score.
    pub reason: Option<ReasonCode>,
    /// Details, without patient data; may be empty.
    pub words: &'a str,
    /// The whole attempt.
    pub duration: Duration,
    /// The stages that ran.
    pub stages: &'a [(RunStage, Duration)],
}

impl RunEnded<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.run_ended(self.end, self.duration, self.stages);
        let reason = self.reason.map(ReasonCode::id);
        let seconds = self.duration.as_secs_f64();
        match self.end {
            RunEnd::Succeeded | RunEnd::NotAnalysed | RunEnd::Superseded => info!(
                run_id = %self.run_id,
                study_instance_uid = %self.study_instance_uid,
                end = %self.end,
                reason,
                words = self.words,
                seconds,
                "run ended"
            ),
            RunEnd::Failed => warn!(
                run_id = %self.run_id,
                study_instance_uid = %self.study_instance_uid,
                end = %self.end,
                reason,
                words = self.words,
                seconds,
                "run failed, it will be tried again"
            ),
            RunEnd::Parked => error!(
                run_id = %self.run_id,
                study_instance_uid = %self.study_instance_uid,
                end = %self.end,
                reason,
                words = self.words,
                seconds,
                "run parked after its last attempt"
            ),
        }
    }
}

/// An attempt of a delivery is over.
#[derive(Debug, Clone, Copy)]
pub struct DeliveryEnded<'a> {
    /// The delivery.
    pub delivery_id: Uuid,
    /// The administrators' name of the destination.
    pub destination: &'a str,
    /// The result.
    pub sop_instance_uid: &'a Uid,
    /// How, as counted.
    pub end: DeliveryEnd,
    /// From 1; 0 when it was never tried.
    pub attempt: u32,
    /// The destination's status, if it answered.
    pub status: Option<u16>,
    /// Details; may be empty.
    pub words: &'a str,
    /// When it will be tried again, for [`DeliveryEnd::Retry`].
    pub retry_in: Option<Duration>,
}

/// Deliveries grew too old while their destination was left alone.
#[derive(Debug)]
pub struct DeliveriesExpired<'a> {
    /// The administrators' name of the destination.
    pub destination: &'a str,
    /// How many; at least one.
    pub count: u64,
    /// What the destination said last, or why it could not be reached.
    pub words: &'a str,
}

impl DeliveriesExpired<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.deliveries_ended(DeliveryEnd::Dead, self.count);
        error!(
            destination = self.destination,
            dead = self.count,
            words = self.words,
            "deliveries given up until a person restarts them"
        );
    }
}

impl DeliveryEnded<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.deliveries_ended(self.end, 1);
        let status = self.status.map(|status| tracing::field::display(format!("0x{status:04X}")));
        match self.end {
            DeliveryEnd::Delivered | DeliveryEnd::Replaced | DeliveryEnd::Cancelled => info!(
                delivery_id = %self.delivery_id,
                destination = self.destination,
                sop_instance_uid = %self.sop_instance_uid,
                end = %self.end,
                attempt = self.attempt,
                status,
                words = self.words,
                "delivery ended"
            ),
            DeliveryEnd::Retry => warn!(
                delivery_id = %self.delivery_id,
                destination = self.destination,
                sop_instance_uid = %self.sop_instance_uid,
                end = %self.end,
                attempt = self.attempt,
                status,
                words = self.words,
                retry_in_seconds = self.retry_in.map(|pause| pause.as_secs_f64()),
                "delivery failed, it will be tried again"
            ),
            DeliveryEnd::Dead => error!(
                delivery_id = %self.delivery_id,
                destination = self.destination,
                sop_instance_uid = %self.sop_instance_uid,
                end = %self.end,
                attempt = self.attempt,
                status,
                words = self.words,
                "delivery given up until a person restarts it"
            ),
        }
    }
}

/// The infer process ended by itself and will be started again.
#[derive(Debug, Clone, Copy)]
pub struct InferChildExited<'a> {
    /// Its exit code or signal, in words.
    pub exit: &'a str,
    /// The pause before the restart.
    pub restart_in: Duration,
}

impl InferChildExited<'_> {
    /// Logs and counts.
    pub fn emit(&self, metrics: &Metrics) {
        metrics.infer_restarted();
        error!(
            exit = self.exit,
            restart_in_seconds = self.restart_in.as_secs_f64(),
            "infer process ended by itself, it will be started again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{super::logging::tests::logged, *};
    use crate::config::LogFormat;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    /// Emits every kind of event once and returns the log lines.
    fn emit_all(metrics: &Metrics) -> Vec<serde_json::Value> {
        let id = Uuid::from_u128(1);
        let (ct, hilum) = (AeTitle::new("CT_1").unwrap(), AeTitle::new("HILUM").unwrap());
        let (object, study) = (uid("1.2.3.4"), uid("1.2.3"));
        let peer_address = IpAddr::from([192, 0, 2, 31]);
        let text = logged(LogFormat::Json, "info", || {
            AssociationAccepted {
                association_id: id,
                calling_ae_title: &ct,
                called_ae_title: &hilum,
                peer_address,
                accepted_contexts: 2,
                proposed_contexts: 3,
            }
            .emit(metrics);
            AssociationRejected {
                association_id: id,
                calling_ae_title: "EVIL\nINFO forged line",
                called_ae_title: "HILUM",
                peer_address,
                reason: RejectionReason::CallingAeTitle,
                words: "expected a configured peer",
                remedy: "add the peer",
            }
            .emit(metrics);
            ObjectStored {
                association_id: id,
                sop_instance_uid: &object,
                study_instance_uid: &study,
                size_bytes: 1000,
                duration: Duration::from_millis(2),
            }
            .emit(metrics);
            ObjectDuplicate { association_id: id, sop_instance_uid: &object, size_bytes: 100 }.emit(metrics);
            ObjectVersionConflict { sop_instance_uid: &object, study_instance_uid: &study, versions: 2 }.emit(metrics);
            ObjectRefused {
                association_id: id,
                sop_instance_uid: "1.2..3",
                status: 0xA700,
                words: "the disk is full",
                received_bytes: 10,
            }
            .emit(metrics);
            OperationRefused { association_id: id, operation: "N-ACTION", status: 0x0213, words: "too long" }
                .emit(metrics);
            AssociationEnded {
                association_id: id,
                end: AssociationEnd::Timeout,
                words: "silent for 60 s",
                objects: 2,
                received_bytes: 1110,
                duration: Duration::from_secs(61),
            }
            .emit(metrics);
            RunStarted { run_id: id, study_instance_uid: &study, bundle: "cxr", attempt: 1, maximum_attempts: 3 }
                .emit(metrics);
            RunEnded {
                run_id: id,
                study_instance_uid: &study,
                end: RunEnd::NotAnalysed,
                reason: Some(ReasonCode::LungMask),
                words: "",
                duration: Duration::from_secs(3),
                stages: &[(RunStage::Segment, Duration::from_millis(300))],
            }
            .emit(metrics);
            DeliveryEnded {
                delivery_id: id,
                destination: "pacs",
                sop_instance_uid: &object,
                end: DeliveryEnd::Retry,
                attempt: 1,
                status: Some(0xA701),
                words: "out of resources",
                retry_in: Some(Duration::from_secs(10)),
            }
            .emit(metrics);
            InferChildExited { exit: "signal 11", restart_in: Duration::from_secs(1) }.emit(metrics);
        });
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn every_event_is_one_line_and_is_counted() {
        let metrics = Metrics::new();
        let lines = emit_all(&metrics);
        assert_eq!(lines.len(), 12, "one line each, a newline from a stranger starts no new one: {lines:#?}");
        let exposition = metrics.encode();
        for expected in [
            "hilum_associations_accepted_total 1",
            "hilum_associations_rejected_total{reason=\"calling_ae_title\"} 1",
            "hilum_associations_ended_total{end=\"timeout\"} 1",
            "hilum_associations_open 0",
            "hilum_objects_stored_total 1",
            "hilum_objects_duplicate_total 1",
            "hilum_objects_version_conflict_total 1",
            "hilum_objects_refused_total{status=\"0xA700\"} 1",
            "hilum_operations_refused_total{reason=\"too_long\"} 1",
            "hilum_received_bytes_total 1110",
            "hilum_store_duration_seconds_count 1",
            "hilum_runs_started_total 1",
            "hilum_runs_ended_total{end=\"not_analysed\"} 1",
            "hilum_run_duration_seconds_sum 3.0",
            "hilum_run_stage_duration_seconds_sum{stage=\"segment\"} 0.3",
            "hilum_deliveries_ended_total{end=\"retry\"} 1",
            "hilum_infer_restarts_total 1",
        ] {
            assert!(exposition.lines().any(|line| line == expected), "{expected} is not in\n{exposition}");
        }
    }

    #[test]
    fn lines_say_what_happened() {
        let lines = emit_all(&Metrics::new());
        let find = |message: &str| lines.iter().find(|line| line["message"] == message).unwrap();
        let rejected = find("association rejected");
        assert_eq!(rejected["level"], "WARN");
        assert_eq!(rejected["remedy"], "add the peer");
        assert_eq!(rejected["calling_ae_title"], "EVIL\nINFO forged line");
        assert_eq!(find("object refused")["status"], "0xA700");
        assert_eq!(find("run ended")["reason"], "quality.lung_mask");
        let delivery = find("delivery failed, it will be tried again");
        assert_eq!(delivery["status"], "0xA701");
        assert_eq!(delivery["retry_in_seconds"], 10.0);
    }

    #[test]
    fn a_stranger_cannot_forge_a_human_line() {
        let text = logged(LogFormat::Human, "info", || {
            AssociationRejected {
                association_id: Uuid::from_u128(1),
                calling_ae_title: "EVIL\nINFO forged\u{1b}[2J",
                called_ae_title: "",
                peer_address: IpAddr::from([192, 0, 2, 66]),
                reason: RejectionReason::MalformedRequest,
                words: "received EVIL\nagain",
                remedy: "",
            }
            .emit(&Metrics::new());
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("EVIL\\nINFO forged") && !text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn no_uid_title_or_address_becomes_a_label() {
        let metrics = Metrics::new();
        emit_all(&metrics);
        let exposition = metrics.encode();
        for stranger in ["1.2.3", "CT_1", "EVIL", "192.0.2.31", "pacs", "cxr"] {
            assert!(!exposition.contains(stranger), "{stranger}");
        }
    }
}
