//! Storage Commitment Push Model (PS3.4 annex J): its messages in both roles, and what a requestor does with them.
//! What an acceptor does is in `acceptor` and [`super::OpenAssociations`].
//!
//! Encoding and decoding are pure; lists are read without recursion and are bounded in bytes.

use std::time::Duration;

use dicom_core::{DataElement, PrimitiveValue, Tag, VR, value::DataSetSequence};
use dicom_dictionary_std::{tags, uids};
use dicom_object::InMemDicomObject;
use tokio::time::{Instant, timeout_at};

use super::{
    command::{ActionRequestCommand, Command, CommandSet, EventReportCommand, ResponseCommand},
    data_set::{Encoding, Part, plain_text, uid_element, walk},
    refusal::{Refusal, ServiceFailure},
    requestor::{Association, AssociationRequestor, RequestError},
    status,
};
use crate::types::{CommitmentReport, CommitmentRequest, FailureReason, SopReference, Uid};

pub(crate) const COMMITMENT: &str = uids::STORAGE_COMMITMENT_PUSH_MODEL;
pub(crate) const COMMITMENT_INSTANCE: &str = uids::STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE;

/// Longest list that is read, in bytes: more than 30,000 instances.
pub(crate) const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;
/// Most instances in such a list: as many as have UIDs in it. Empty items would take a hundred times their bytes in memory.
const MAX_INSTANCES: usize = 65_536;

/// Reports that an association keeps for later; a peer that sends more without an answer breaks the protocol.
const MAX_KEPT_REPORTS: usize = 16;

/// Action Type ID: Request Storage Commitment.
const REQUEST_STORAGE_COMMITMENT: u16 = 1;
/// Event Type ID: Storage Commitment Request Successful.
const ALL_COMMITTED: u16 = 1;
/// Event Type ID: Storage Commitment Request Complete - Failures Exist.
const FAILURES_EXIST: u16 = 2;

/// Refuses what is no Storage Commitment request.
pub(crate) fn check_action(
    command: &ActionRequestCommand,
    has_data_set: bool,
    abstract_syntax: &str,
) -> Result<(), Refusal> {
    if command.requested_sop_class_uid != COMMITMENT || abstract_syntax != COMMITMENT {
        return Err(Refusal::NoSuchSopClass);
    }
    if command.requested_sop_instance_uid != COMMITMENT_INSTANCE {
        return Err(Refusal::NoSuchSopInstance);
    }
    if command.action_type_id != REQUEST_STORAGE_COMMITMENT {
        return Err(Refusal::NoSuchAction(command.action_type_id));
    }
    has_data_set.then_some(()).ok_or(Refusal::DataSetMissing)
}

/// Refuses what is no Storage Commitment report.
pub(crate) fn check_event_report(
    command: &EventReportCommand,
    has_data_set: bool,
    abstract_syntax: &str,
) -> Result<(), Refusal> {
    if command.affected_sop_class_uid != COMMITMENT || abstract_syntax != COMMITMENT {
        return Err(Refusal::NoSuchSopClass);
    }
    if command.affected_sop_instance_uid != COMMITMENT_INSTANCE {
        return Err(Refusal::NoSuchSopInstance);
    }
    if ![ALL_COMMITTED, FAILURES_EXIST].contains(&command.event_type_id) {
        return Err(Refusal::NoSuchEvent(command.event_type_id));
    }
    has_data_set.then_some(()).ok_or(Refusal::DataSetMissing)
}

/// The list in an N-ACTION-RQ.
pub(crate) fn decode_request(bytes: Option<&[u8]>, encoding: Encoding) -> Result<CommitmentRequest, Refusal> {
    let List { transaction_uid, referenced, .. } = List::read(bytes, encoding)?;
    if referenced.is_empty() {
        return Err(Refusal::BadDataSet("Referenced SOP Sequence is missing or empty".to_owned()));
    }
    let instances = referenced.into_iter().map(Entry::reference).collect::<Result<_, _>>()?;
    Ok(CommitmentRequest { transaction_uid, instances })
}

/// The lists in an N-EVENT-REPORT-RQ.
pub(crate) fn decode_report(bytes: Option<&[u8]>, encoding: Encoding) -> Result<CommitmentReport, Refusal> {
    let List { transaction_uid, referenced, failed } = List::read(bytes, encoding)?;
    let failed = failed
        .into_iter()
        .map(|entry| {
            // A reason is mandatory; without one the instance is not committed all the same.
            let reason = entry.reason.unwrap_or(FailureReason::PROCESSING_FAILURE);
            Ok((entry.reference()?, reason))
        })
        .collect::<Result<_, Refusal>>()?;
    let committed = referenced.into_iter().map(Entry::reference).collect::<Result<_, _>>()?;
    Ok(CommitmentReport { transaction_uid, committed, failed })
}

/// An item of a list, as sent.
#[derive(Default)]
struct Entry {
    sop_class_uid: String,
    sop_instance_uid: String,
    reason: Option<FailureReason>,
}

impl Entry {
    fn reference(self) -> Result<SopReference, Refusal> {
        let uid = |text: &str| {
            Uid::new(text).map_err(|_| Refusal::BadDataSet("an instance of the list has no valid UIDs".to_owned()))
        };
        Ok(SopReference { sop_class_uid: uid(&self.sop_class_uid)?, sop_instance_uid: uid(&self.sop_instance_uid)? })
    }
}

struct List {
    transaction_uid: Uid,
    referenced: Vec<Entry>,
    failed: Vec<Entry>,
}

impl List {
    fn read(bytes: Option<&[u8]>, encoding: Encoding) -> Result<Self, Refusal> {
        let bytes = bytes.ok_or(Refusal::DataSetTooLong(MAX_LIST_BYTES))?;
        let mut transaction_uid = String::new();
        let (mut referenced, mut failed): (Vec<Entry>, Vec<Entry>) = (Vec::new(), Vec::new());
        let mut too_many = false;
        walk(bytes, encoding, |path, part| {
            let list = match path {
                [] => {
                    if let Part::Value(tags::TRANSACTION_UID, value) = part {
                        transaction_uid = plain_text(value);
                    }
                    return;
                }
                [tags::REFERENCED_SOP_SEQUENCE] => &mut referenced,
                [tags::FAILED_SOP_SEQUENCE] => &mut failed,
                _ => return,
            };
            let is_full = list.len() >= MAX_INSTANCES;
            match (part, list.last_mut()) {
                (Part::Item, _) if is_full => too_many = true,
                (Part::Item, _) => list.push(Entry::default()),
                (Part::Value(tags::REFERENCED_SOP_CLASS_UID, value), Some(entry)) => {
                    entry.sop_class_uid = plain_text(value);
                }
                (Part::Value(tags::REFERENCED_SOP_INSTANCE_UID, value), Some(entry)) => {
                    entry.sop_instance_uid = plain_text(value);
                }
                (Part::Value(tags::FAILURE_REASON, &[low, high]), Some(entry)) => {
                    entry.reason = Some(FailureReason(u16::from_le_bytes([low, high])));
                }
                (Part::Value(..), _) => {}
            }
        })
        .map_err(|error| Refusal::BadDataSet(error.to_string()))?;
        if too_many {
            return Err(Refusal::TooManyInstances(MAX_INSTANCES));
        }
        let transaction_uid = Uid::new(&transaction_uid)
            .map_err(|_| Refusal::BadDataSet("Transaction UID is missing or malformed".to_owned()))?;
        Ok(Self { transaction_uid, referenced, failed })
    }
}

fn encode_request(request: &CommitmentRequest, encoding: Encoding) -> Result<Vec<u8>, String> {
    let items = request.instances.iter().map(|reference| item(reference, None)).collect();
    encoding.encode(vec![
        uid_element(tags::TRANSACTION_UID, request.transaction_uid.as_str()),
        sequence(tags::REFERENCED_SOP_SEQUENCE, items),
    ])
}

fn encode_report(report: &CommitmentReport, encoding: Encoding) -> Result<Vec<u8>, String> {
    let mut elements = vec![uid_element(tags::TRANSACTION_UID, report.transaction_uid.as_str())];
    if !report.failed.is_empty() {
        let items = report.failed.iter().map(|(reference, reason)| item(reference, Some(*reason))).collect();
        elements.push(sequence(tags::FAILED_SOP_SEQUENCE, items));
    }
    if !report.committed.is_empty() {
        let items = report.committed.iter().map(|reference| item(reference, None)).collect();
        elements.push(sequence(tags::REFERENCED_SOP_SEQUENCE, items));
    }
    encoding.encode(elements)
}

fn item(reference: &SopReference, reason: Option<FailureReason>) -> InMemDicomObject {
    let reason = reason.map(|reason| DataElement::new(tags::FAILURE_REASON, VR::US, PrimitiveValue::from(reason.0)));
    InMemDicomObject::from_element_iter(
        [
            uid_element(tags::REFERENCED_SOP_CLASS_UID, reference.sop_class_uid.as_str()),
            uid_element(tags::REFERENCED_SOP_INSTANCE_UID, reference.sop_instance_uid.as_str()),
        ]
        .into_iter()
        .chain(reason),
    )
}

fn sequence(tag: Tag, items: Vec<InMemDicomObject>) -> DataElement<InMemDicomObject> {
    DataElement::new(tag, VR::SQ, DataSetSequence::from(items))
}

/// The N-EVENT-REPORT-RQ for `report`: command and data set.
pub(crate) fn report_message(
    report: &CommitmentReport,
    message_id: u16,
    encoding: Encoding,
) -> Result<(CommandSet, Vec<u8>), String> {
    let command = Command::EventReportRequest(EventReportCommand {
        message_id,
        affected_sop_class_uid: COMMITMENT.to_owned(),
        affected_sop_instance_uid: COMMITMENT_INSTANCE.to_owned(),
        event_type_id: if report.failed.is_empty() { ALL_COMMITTED } else { FAILURES_EXIST },
    });
    Ok((CommandSet { command, has_data_set: true }, encode_report(report, encoding)?))
}

/// A peer's answer to N-ACTION or N-EVENT-REPORT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitmentResponse {
    /// (0000,0900): see [`status`] for categories and meanings.
    pub status: u16,
    /// (0000,0902); may hold anything.
    pub error_comment: Option<String>,
}

impl From<ResponseCommand> for CommitmentResponse {
    fn from(response: ResponseCommand) -> Self {
        Self { status: response.status, error_comment: response.error_comment }
    }
}

/// A report that the peer has sent and that waits for our answer: [`Association::answer_report`].
#[derive(Debug)]
pub struct ReceivedReport {
    context_id: u8,
    command: EventReportCommand,
    read: Result<CommitmentReport, Refusal>,
}

impl ReceivedReport {
    /// What it says; an error when it cannot be read, which is what the answer should be then.
    pub fn read(&self) -> Result<&CommitmentReport, ServiceFailure> {
        self.read.as_ref().map_err(|refusal| refusal.clone().into())
    }
}

impl AssociationRequestor {
    /// Proposes Storage Commitment as SCU: [`Association::request_commitment`].
    #[must_use]
    pub fn propose_commitment(self) -> Self {
        self.propose(COMMITMENT, &Encoding::TRANSFER_SYNTAXES)
    }

    /// Proposes Storage Commitment as SCP, to report to a peer that has asked us on another association:
    /// [`Association::report_commitment`].
    #[must_use]
    pub fn propose_commitment_report(self) -> Self {
        self.propose_as_scp(COMMITMENT, &Encoding::TRANSFER_SYNTAXES)
    }
}

impl Association {
    /// N-ACTION: asks the peer to keep these instances. Its report comes later: [`Association::next_report`] on this
    /// association, or on one that the peer opens. Not cancel-safe.
    pub async fn request_commitment(
        &mut self,
        request: &CommitmentRequest,
    ) -> Result<CommitmentResponse, RequestError> {
        let (context_id, encoding) = self.message_context(COMMITMENT)?;
        let data_set = encode_request(request, encoding).map_err(RequestError::Encode)?;
        let message_id = self.next_message_id();
        let command = Command::ActionRequest(ActionRequestCommand {
            message_id,
            requested_sop_class_uid: COMMITMENT.to_owned(),
            requested_sop_instance_uid: COMMITMENT_INSTANCE.to_owned(),
            action_type_id: REQUEST_STORAGE_COMMITMENT,
        });
        let command = CommandSet { command, has_data_set: true };
        if let Err(error) = self.messages.send_message(context_id, &command, &data_set).await {
            return Err(self.write_failed("N-ACTION", &error).await);
        }
        Ok(self.response("N-ACTION", message_id, ResponseCommand::is_action).await?.into())
    }

    /// N-EVENT-REPORT: tells the peer what has become of its request, on an association with
    /// [`AssociationRequestor::propose_commitment_report`]. A peer that answers our role selection with a refusal is an
    /// error; one that leaves it unanswered, as some do, is told all the same. Not cancel-safe.
    pub async fn report_commitment(&mut self, report: &CommitmentReport) -> Result<CommitmentResponse, RequestError> {
        let (context_id, encoding) = self.message_context(COMMITMENT)?;
        if self.scp_role_refused.iter().any(|refused| refused == COMMITMENT) {
            return Err(RequestError::RoleRefused { called: self.requestor.called.clone() });
        }
        let message_id = self.next_message_id();
        let (command, data_set) = report_message(report, message_id, encoding).map_err(RequestError::Encode)?;
        if let Err(error) = self.messages.send_message(context_id, &command, &data_set).await {
            return Err(self.write_failed("N-EVENT-REPORT", &error).await);
        }
        Ok(self.response("N-EVENT-REPORT", message_id, ResponseCommand::is_event_report).await?.into())
    }

    /// The peer's next report, if it comes within `patience`. A peer that releases the association has ended it
    /// ([`RequestError::Ended`]) and reports on another one.
    ///
    /// Cancel safety: cancel-safe until a report begins to arrive.
    pub async fn next_report(&mut self, patience: Duration) -> Result<Option<ReceivedReport>, RequestError> {
        if let Some(report) = self.reports.pop_front() {
            return Ok(Some(report));
        }
        const OPERATION: &str = "Storage Commitment";
        match timeout_at(Instant::now() + patience, self.messages.wait()).await {
            Err(_) => return Ok(None),
            Ok(Err(reason)) => return Err(self.over(OPERATION, reason).await),
            Ok(Ok(())) => {}
        }
        let deadline = Instant::now() + self.requestor.timeouts.dimse;
        let (context_id, CommandSet { command, has_data_set }) = self.next_command(OPERATION, deadline).await?;
        match command {
            Command::EventReportRequest(command) if has_data_set => {
                self.keep_report(OPERATION, context_id, command, deadline).await?;
                Ok(self.reports.pop_front())
            }
            _ => Err(self.broken(OPERATION, "the peer sent something else than a report").await),
        }
    }

    /// Answers a report: once what it says is kept, or with the reason why it is not.
    pub async fn answer_report(
        &mut self,
        report: ReceivedReport,
        kept: Result<(), ServiceFailure>,
    ) -> Result<(), RequestError> {
        let (status, comment) = match kept {
            Ok(()) => (status::SUCCESS, String::new()),
            Err(failure) => (failure.status, failure.comment),
        };
        let response = CommandSet::response(ResponseCommand::event_report(&report.command, status, &comment));
        match self.messages.send_command(report.context_id, &response).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.write_failed("N-EVENT-REPORT", &error).await),
        }
    }

    /// Reads the data set of a report and keeps it for [`Association::next_report`].
    pub(super) async fn keep_report(
        &mut self,
        operation: &'static str,
        context_id: u8,
        command: EventReportCommand,
        deadline: Instant,
    ) -> Result<(), RequestError> {
        let bytes = self.data_set(operation, context_id, MAX_LIST_BYTES, deadline).await?;
        let (expected_id, encoding) = self.message_context(COMMITMENT)?;
        if context_id != expected_id || self.reports.len() >= MAX_KEPT_REPORTS {
            return Err(self.broken(operation, "the peer sent a report that nobody has asked for").await);
        }
        let read =
            check_event_report(&command, true, COMMITMENT).and_then(|()| decode_report(bytes.as_deref(), encoding));
        self.reports.push_back(ReceivedReport { context_id, command, read });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(number: usize) -> SopReference {
        SopReference {
            sop_class_uid: Uid::new(uids::CT_IMAGE_STORAGE).unwrap(),
            sop_instance_uid: Uid::new(&format!("1.2.{number}")).unwrap(),
        }
    }

    fn transaction() -> Uid {
        Uid::new("2.25.77").unwrap()
    }

    #[rstest::rstest]
    fn lists_of_thousands_round_trip(
        #[values(Encoding::ImplicitLittleEndian, Encoding::ExplicitLittleEndian)] encoding: Encoding,
    ) {
        let request =
            CommitmentRequest { transaction_uid: transaction(), instances: (0..5000).map(reference).collect() };
        let bytes = encode_request(&request, encoding).unwrap();
        assert!(bytes.len() < MAX_LIST_BYTES / 5);
        assert_eq!(decode_request(Some(&bytes), encoding).unwrap(), request);
        for (n_committed, n_failed, event) in [(3, 0, ALL_COMMITTED), (2, 2, FAILURES_EXIST), (0, 1, FAILURES_EXIST)] {
            let report = CommitmentReport {
                transaction_uid: transaction(),
                committed: (0..n_committed).map(reference).collect(),
                failed: (10..10 + n_failed).map(|n| (reference(n), FailureReason::NO_SUCH_OBJECT_INSTANCE)).collect(),
            };
            let (command, bytes) = report_message(&report, 1, encoding).unwrap();
            let Command::EventReportRequest(command) = command.command else { panic!() };
            assert_eq!(command.event_type_id, event);
            assert_eq!(check_event_report(&command, true, COMMITMENT), Ok(()));
            assert_eq!(decode_report(Some(&bytes), encoding).unwrap(), report);
        }
    }

    #[test]
    fn lists_that_say_nothing_are_refused_in_words() {
        let encoding = Encoding::ExplicitLittleEndian;
        let bad = |elements| {
            let bytes = encoding.encode(elements).unwrap();
            ServiceFailure::from(decode_request(Some(&bytes), encoding).unwrap_err()).to_string()
        };
        let transaction = || uid_element(tags::TRANSACTION_UID, "1.2");
        let list = |items| sequence(tags::REFERENCED_SOP_SEQUENCE, items);
        let broken = InMemDicomObject::from_element_iter([uid_element(tags::REFERENCED_SOP_CLASS_UID, "../../etc")]);
        for (elements, words) in [
            (vec![], "Transaction UID is missing"),
            (vec![uid_element(tags::TRANSACTION_UID, "a.b")], "Transaction UID is missing or malformed"),
            (vec![transaction()], "Referenced SOP Sequence is missing or empty"),
            (vec![transaction(), list(vec![])], "Referenced SOP Sequence is missing or empty"),
            (vec![transaction(), list(vec![broken])], "no valid UIDs"),
        ] {
            let said = bad(elements);
            assert!(said.starts_with("0x0115") && said.contains(words), "{said}");
        }
        assert_eq!(decode_request(None, encoding), Err(Refusal::DataSetTooLong(MAX_LIST_BYTES)));
        let nested = [0x08, 0, 0x99, 0x11, b'S', b'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF].repeat(10_000);
        assert!(matches!(decode_request(Some(&nested), encoding), Err(Refusal::BadDataSet(_))));
    }

    #[test]
    fn only_the_services_own_messages_pass() {
        let action = |class: &str, instance: &str, id| ActionRequestCommand {
            message_id: 1,
            requested_sop_class_uid: class.to_owned(),
            requested_sop_instance_uid: instance.to_owned(),
            action_type_id: id,
        };
        let good = action(COMMITMENT, COMMITMENT_INSTANCE, 1);
        for (command, has_data_set, context, expected) in [
            (good.clone(), true, COMMITMENT, Ok(())),
            (good.clone(), true, uids::VERIFICATION, Err(Refusal::NoSuchSopClass)),
            (action("", COMMITMENT_INSTANCE, 1), true, COMMITMENT, Err(Refusal::NoSuchSopClass)),
            (action(COMMITMENT, "1.2.3", 1), true, COMMITMENT, Err(Refusal::NoSuchSopInstance)),
            (action(COMMITMENT, COMMITMENT_INSTANCE, 2), true, COMMITMENT, Err(Refusal::NoSuchAction(2))),
            (good, false, COMMITMENT, Err(Refusal::DataSetMissing)),
        ] {
            assert_eq!(check_action(&command, has_data_set, context), expected, "{command:?}");
        }
        let event = |class: &str, instance: &str, id| EventReportCommand {
            message_id: 1,
            affected_sop_class_uid: class.to_owned(),
            affected_sop_instance_uid: instance.to_owned(),
            event_type_id: id,
        };
        for (command, has_data_set, expected) in [
            (event(COMMITMENT, COMMITMENT_INSTANCE, 2), true, Ok(())),
            (event("1.2", COMMITMENT_INSTANCE, 1), true, Err(Refusal::NoSuchSopClass)),
            (event(COMMITMENT, "", 1), true, Err(Refusal::NoSuchSopInstance)),
            (event(COMMITMENT, COMMITMENT_INSTANCE, 3), true, Err(Refusal::NoSuchEvent(3))),
            (event(COMMITMENT, COMMITMENT_INSTANCE, 1), false, Err(Refusal::DataSetMissing)),
        ] {
            assert_eq!(check_event_report(&command, has_data_set, COMMITMENT), expected, "{command:?}");
        }
    }
}
