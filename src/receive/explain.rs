//! Refusals of presentation contexts, objects and other requests in plain words: pure.

use std::{collections::BTreeMap, net::IpAddr};

use time::OffsetDateTime;

use crate::{
    dimse::{
        AssociationRequest, ContextOutcome, NegotiatedContext, NegotiationPolicy, RefusedObject, RefusedOperation,
        sop_class_name, status, transfer_syntax_name,
    },
    telemetry::{ContextRefusal, Label as _, OperationRefusal, RefusalStatus},
    types::{OfferedContext, PeerOffer, Refusal, RefusalKey, RefusalKind},
};

/// Names in one sentence at most.
const MAX_NAMES: usize = 8;

/// Who called whom: texts as sent, escaped.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) peer_address: IpAddr,
    pub(super) calling_ae_title: String,
    pub(super) called_ae_title: String,
}

impl Caller {
    pub(super) fn of(request: &AssociationRequest) -> Self {
        Self {
            peer_address: request.peer_address.ip().to_canonical(),
            calling_ae_title: request.calling_ae_title.to_string(),
            called_ae_title: request.called_ae_title.to_string(),
        }
    }

    /// Somebody who has not said who he is.
    pub(super) const fn unknown(peer_address: IpAddr) -> Self {
        Self { peer_address, calling_ae_title: String::new(), called_ae_title: String::new() }
    }

    pub(super) fn key(&self, kind: RefusalKind, reason: &'static str, sop_class_uid: &str) -> RefusalKey {
        RefusalKey {
            kind,
            reason,
            peer_address: self.peer_address,
            calling_ae_title: self.calling_ae_title.clone(),
            called_ae_title: self.called_ae_title.clone(),
            sop_class_uid: harmless(sop_class_uid),
        }
    }
}

/// A stranger's text, escaped and no longer than a UID.
fn harmless(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// Why a context was refused; `None` where it was not.
pub(super) const fn context_refusal(outcome: &ContextOutcome) -> Option<ContextRefusal> {
    match outcome {
        ContextOutcome::Accepted { .. } => None,
        ContextOutcome::AbstractSyntaxNotSupported => Some(ContextRefusal::AbstractSyntax),
        ContextOutcome::TransferSyntaxesNotSupported => Some(ContextRefusal::TransferSyntaxes),
        ContextOutcome::UserRejection | ContextOutcome::NoReason => Some(ContextRefusal::Other),
    }
}

/// Every refused context of an accepted association: those of one SOP class with the same reason are one refusal.
pub(super) fn contexts(
    caller: &Caller,
    request: &AssociationRequest,
    policy: &NegotiationPolicy,
    negotiated: &[NegotiatedContext],
    at: OffsetDateTime,
) -> Vec<Refusal> {
    let accepted = |sop_class: &str| {
        negotiated.iter().any(|context| context.abstract_syntax == sop_class && context.transfer_syntax_uid().is_some())
    };
    let mut alike: BTreeMap<(&str, ContextRefusal), Vec<&str>> = BTreeMap::new();
    for (proposed, answered) in request.proposed_contexts.iter().zip(negotiated) {
        let Some(reason) = context_refusal(&answered.outcome) else { continue };
        let offered = alike.entry((&proposed.abstract_syntax, reason)).or_default();
        offered.extend(proposed.transfer_syntaxes.iter().map(String::as_str));
    }
    alike
        .into_iter()
        .map(|((sop_class, reason), offered)| {
            let (expected, remedy) = context_words(policy, sop_class, reason);
            Refusal {
                key: caller.key(RefusalKind::Context, reason.as_str(), sop_class),
                expected,
                received: format!("{} in {}", sop_class_name(sop_class), transfer_syntaxes(offered)),
                remedy,
                harmless: accepted(sop_class),
                example: None,
                at,
            }
        })
        .collect()
}

/// What would have been accepted, and the remedy.
fn context_words(policy: &NegotiationPolicy, sop_class: &str, reason: ContextRefusal) -> (String, String) {
    let wanted = policy.transfer_syntaxes(sop_class).unwrap_or_default();
    if let (ContextRefusal::TransferSyntaxes, Some(preferred)) = (reason, wanted.first()) {
        let preferred = transfer_syntax_name(preferred);
        return (
            format!("one of {}", transfer_syntaxes(wanted.iter().map(String::as_str))),
            format!("let the sender convert to {preferred}, or offer it beside its own transfer syntax"),
        );
    }
    let classes = policy.abstract_syntaxes().map(sop_class_name).collect();
    let remedy = if is_storage(sop_class) {
        "this node does not take such objects from that sender: add it to `sop_classes` in the policy of the local AE or the peer if it \
         may, or send them elsewhere"
    } else {
        "this node does not offer that service to that sender: ask for it elsewhere"
    };
    (format!("one of {}", list(classes)), remedy.to_owned())
}

/// The storage SOP classes share an arc (PS3.6 table A-1); a made up UID may be a vendor's own class.
fn is_storage(sop_class: &str) -> bool {
    sop_class.starts_with("1.2.840.10008.5.1.4.1.1.") || !sop_class.starts_with("1.2.840.10008.")
}

fn transfer_syntaxes<'a>(uids: impl IntoIterator<Item = &'a str>) -> String {
    let mut names: Vec<String> = Vec::new();
    for uid in uids {
        let name = transfer_syntax_name(uid).into_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { "no transfer syntax at all".to_owned() } else { list(names) }
}

fn list(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    let end = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{end}", names.join(", "))
}

/// A refused object.
pub(super) fn object(caller: &Caller, refused: &RefusedObject, at: OffsetDateTime) -> Refusal {
    let failure = &refused.failure;
    let (expected, remedy) = object_words(failure.status);
    Refusal {
        key: caller.key(
            RefusalKind::Object,
            RefusalStatus::of(failure.status).as_str(),
            &refused.affected_sop_class_uid,
        ),
        expected: expected.to_owned(),
        received: format!(
            "{}, {} bytes in {}, {}: {}",
            sop_class_name(&refused.affected_sop_class_uid),
            refused.n_bytes,
            transfer_syntax_name(refused.transfer_syntax_uid.as_str()),
            if refused.answered {
                format!("answered {}", status::InWords(failure.status))
            } else {
                "cut off without an answer".to_owned()
            },
            failure.comment.escape_debug()
        ),
        remedy: failure.remedy.unwrap_or(remedy).to_owned(),
        harmless: false,
        example: Some(harmless(&refused.affected_sop_instance_uid)),
        at,
    }
}

/// What would have been stored, and the remedy.
const fn object_words(status: u16) -> (&'static str, &'static str) {
    match status {
        status::OUT_OF_RESOURCES => (
            "room for the object in the archive",
            "make room on the archive's disk; senders try again by themselves, and `hilum doctor` shows the free space",
        ),
        status::DATA_SET_DOES_NOT_MATCH_SOP_CLASS => (
            "a data set whose UIDs are there, well-formed, and those of its command",
            "repair the object at the sender: its SOP Class, SOP Instance, Study and Series Instance UID",
        ),
        status::CANNOT_UNDERSTAND => (
            "a data set that can be read up to Instance Number (0020,0013)",
            "look at the object with another program (`dcmdump`), and repair it at the sender",
        ),
        status::INVALID_SOP_INSTANCE => (
            "a command with a well-formed Affected SOP Instance UID (0000,1000)",
            "repair the object's SOP Instance UID at the sender",
        ),
        status::SOP_CLASS_NOT_SUPPORTED => (
            "an object of the SOP class of its presentation context",
            "report it to the sender's vendor: it uses a presentation context of another SOP class",
        ),
        status::MISTYPED_ARGUMENT => (
            "a C-STORE request with a SOP class and a data set",
            "report it to the sender's vendor: its request is not complete (PS3.7 section 9.1.1)",
        ),
        _ => ("an object that can be stored", "look into the log of this node at that time, and send the object again"),
    }
}

/// A refused request other than C-STORE.
pub(super) fn operation(caller: &Caller, refused: &RefusedOperation, at: OffsetDateTime) -> Refusal {
    let failure = &refused.failure;
    let reason = OperationRefusal::of(failure.status);
    let (expected, remedy) = operation_words(reason);
    let of = match refused.sop_class_uid.as_str() {
        "" => String::new(),
        uid => format!(" of {}", sop_class_name(&harmless(uid))),
    };
    Refusal {
        key: caller.key(RefusalKind::Operation, reason.as_str(), &refused.sop_class_uid),
        expected: expected.to_owned(),
        received: format!(
            "{}{of}, answered {}: {}",
            refused.operation,
            status::InWords(failure.status),
            failure.comment.escape_debug()
        ),
        remedy: failure.remedy.unwrap_or(remedy).to_owned(),
        harmless: false,
        example: None,
        at,
    }
}

/// What would have been done, and the remedy.
const fn operation_words(reason: OperationRefusal) -> (&'static str, &'static str) {
    match reason {
        OperationRefusal::NotOffered => (
            "C-ECHO, C-STORE, or a request or report of Storage Commitment (PS3.4 annex J)",
            "ask another node: this one answers no queries and gives no images out",
        ),
        OperationRefusal::BadRequest => (
            "a Storage Commitment message with a Transaction UID and a list of instances (PS3.4 tables J.3-1 and J.3-2)",
            "report it to the peer's vendor",
        ),
        OperationRefusal::TooLong => (
            "a Storage Commitment list of at most 65,536 instances and 4 MiB",
            "let the peer ask for fewer instances at once",
        ),
        OperationRefusal::NotKept => {
            ("a request that can be served", "look into the log of this node at that time, and let the peer ask again")
        }
    }
}

/// What a peer's request offers.
pub(super) fn offer(
    caller: &Caller,
    request: &AssociationRequest,
    negotiated: &[NegotiatedContext],
    at: OffsetDateTime,
) -> PeerOffer {
    let contexts = request.proposed_contexts.iter().zip(negotiated).map(|(proposed, answered)| OfferedContext {
        abstract_syntax: harmless(&proposed.abstract_syntax),
        transfer_syntaxes: proposed.transfer_syntaxes.iter().take(64).map(|uid| harmless(uid)).collect(),
        accepted: answered.transfer_syntax_uid().map(ToString::to_string),
    });
    PeerOffer {
        calling_ae_title: caller.calling_ae_title.clone(),
        peer_address: caller.peer_address,
        called_ae_title: caller.called_ae_title.clone(),
        implementation_class_uid: request.implementation.class_uid.as_deref().map(harmless),
        implementation_version_name: request.implementation.version_name.as_deref().map(harmless),
        max_pdu_length_bytes: request.implementation.max_pdu_length,
        contexts: contexts.collect(),
        at,
    }
}

#[cfg(test)]
mod tests {
    use dicom_dictionary_std::uids;

    use super::*;
    use crate::{
        dimse::{PeerImplementation, ProposedContext, RequestedTitle, StoreFailure, negotiation, storage_policy},
        types::{AeTitle, Uid},
    };

    fn request(contexts: &[(&str, &[&str])]) -> AssociationRequest {
        let title = |text: &str| RequestedTitle { text: text.into(), title: AeTitle::new(text).ok() };
        let contexts = contexts.iter().zip((1..).step_by(2)).map(|((abstract_syntax, transfer_syntaxes), id)| {
            let transfer_syntaxes = transfer_syntaxes.iter().map(|uid| (*uid).to_owned()).collect();
            ProposedContext { id, abstract_syntax: (*abstract_syntax).to_owned(), transfer_syntaxes }
        });
        AssociationRequest {
            association_id: uuid::Uuid::from_u128(1),
            peer_address: "10.1.2.3:40000".parse().unwrap(),
            calling_ae_title: title("CT01"),
            called_ae_title: title("HILUM"),
            application_context_name: "1.2.840.10008.3.1.1.1".into(),
            implementation: PeerImplementation::default(),
            proposed_contexts: contexts.collect(),
            user_identity: None,
            security: crate::dimse::Security::Plain,
        }
    }

    fn refused(contexts: &[(&str, &[&str])]) -> Vec<Refusal> {
        let request = request(contexts);
        let policy = storage_policy();
        let negotiated = negotiation::negotiate(&policy, &request.proposed_contexts).unwrap();
        super::contexts(&Caller::of(&request), &request, &policy, &negotiated, OffsetDateTime::UNIX_EPOCH)
    }

    #[test]
    fn a_context_is_explained_with_names_and_a_remedy() {
        let explicit = uids::EXPLICIT_VR_LITTLE_ENDIAN;
        let list = refused(&[
            (uids::MR_IMAGE_STORAGE, &[explicit]),
            (uids::MR_IMAGE_STORAGE, &[uids::JPEG2000]),
            (uids::CT_IMAGE_STORAGE, &[uids::MPEG2MPML]),
            (uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND, &[explicit]),
        ]);
        assert_eq!(list.len(), 3, "contexts of one SOP class and reason are one refusal: {list:#?}");
        let of = |uid: &str| list.iter().find(|refusal| refusal.key.sop_class_uid == uid).unwrap();

        let mr = of(uids::MR_IMAGE_STORAGE);
        assert_eq!(mr.key.reason, "abstract_syntax");
        assert_eq!(mr.received, "MR Image Storage (1.2.840.10008.5.1.4.1.1.4) in Explicit VR Little Endian, JPEG 2000");
        assert!(mr.expected.contains("CT Image Storage (1.2.840.10008.5.1.4.1.1.2)"), "{mr:?}");
        assert!(mr.remedy.contains("`sop_classes` in the policy of the local AE"), "{mr:?}");

        let ct = of(uids::CT_IMAGE_STORAGE);
        assert_eq!((ct.key.reason, ct.harmless), ("transfer_syntaxes", false));
        assert!(ct.expected.starts_with("one of Explicit VR Little Endian, Implicit"), "{ct:?}");
        assert!(ct.expected.ends_with("and 5 more"), "{ct:?}");
        assert!(ct.remedy.starts_with("let the sender convert to Explicit VR Little Endian"), "{ct:?}");

        let find = of(uids::STUDY_ROOT_QUERY_RETRIEVE_INFORMATION_MODEL_FIND);
        assert!(find.remedy.contains("does not offer that service"), "{find:?}");
    }

    #[test]
    fn a_sop_class_that_is_accepted_in_another_context_has_lost_nothing() {
        let list = refused(&[
            (uids::CT_IMAGE_STORAGE, &[uids::MPEG2MPML]),
            (uids::CT_IMAGE_STORAGE, &[uids::EXPLICIT_VR_LITTLE_ENDIAN]),
        ]);
        assert_eq!(list.len(), 1);
        assert!(list[0].harmless);
        assert!(refused(&[(uids::CT_IMAGE_STORAGE, &[uids::EXPLICIT_VR_LITTLE_ENDIAN])]).is_empty());
    }

    #[test]
    fn what_a_stranger_makes_up_is_escaped_and_cut() {
        let long = "9".repeat(5000);
        let list = refused(&[("1.2.evil\u{1b}[2J\n", &[&long, "\r\nforged"]), (&long, &[])]);
        for refusal in &list {
            for text in [&refusal.key.sop_class_uid, &refusal.received] {
                assert!(!text.chars().any(char::is_control) && text.len() < 400, "{text:?}");
            }
        }
        assert!(list.iter().any(|refusal| refusal.received.ends_with("in no transfer syntax at all")));
    }

    #[rstest::rstest]
    #[case(StoreFailure::out_of_resources("3 MiB free"), "0xA700", "make room")]
    #[case(StoreFailure::data_set_does_not_match("no UID"), "0xA900", "repair the object")]
    #[case(StoreFailure::cannot_understand("it ends inside a value"), "0xC000", "dcmdump")]
    #[case(StoreFailure::cannot_understand("too long").with_remedy("raise the limit"), "0xC000", "raise the limit")]
    #[case(StoreFailure::processing_failure("broken"), "0x0110", "look into the log")]
    #[case(StoreFailure::new(status::INVALID_SOP_INSTANCE, "bad"), "0x0117", "SOP Instance UID")]
    #[case(StoreFailure::new(status::SOP_CLASS_NOT_SUPPORTED, "other"), "0x0122", "vendor")]
    #[case(StoreFailure::new(status::MISTYPED_ARGUMENT, "nothing"), "other", "not complete")]
    fn an_object_is_explained_by_its_status(#[case] failure: StoreFailure, #[case] reason: &str, #[case] remedy: &str) {
        let request = request(&[]);
        let object = RefusedObject {
            affected_sop_class_uid: uids::CT_IMAGE_STORAGE.into(),
            affected_sop_instance_uid: "1.2.3\n".into(),
            transfer_syntax_uid: Uid::new(uids::EXPLICIT_VR_LITTLE_ENDIAN).unwrap(),
            n_bytes: 4711,
            failure,
            answered: true,
        };
        let refusal = super::object(&Caller::of(&request), &object, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(refusal.key.reason, reason);
        assert!(refusal.remedy.contains(remedy), "{refusal:?}");
        assert!(refusal.received.contains("4711 bytes in Explicit VR Little Endian"), "{refusal:?}");
        assert!(refusal.received.contains(&object.failure.comment), "{refusal:?}");
        assert_eq!(refusal.example.as_deref(), Some("1.2.3\\n"));
        let cut = RefusedObject { answered: false, ..object };
        let received = super::object(&Caller::of(&request), &cut, OffsetDateTime::UNIX_EPOCH).received;
        assert!(received.contains(", cut off without an answer: ") && !received.contains("answered 0x"), "{received}");
    }

    #[rstest::rstest]
    #[case(0x0211, "not_offered", "another node")]
    #[case(0x0123, "not_offered", "another node")]
    #[case(0x0115, "bad_request", "vendor")]
    #[case(0x0212, "bad_request", "vendor")]
    #[case(0x0213, "too_long", "fewer instances")]
    #[case(0x0110, "not_kept", "look into the log")]
    fn another_request_is_explained_by_its_status(#[case] status: u16, #[case] reason: &str, #[case] remedy: &str) {
        let caller = Caller::of(&request(&[]));
        let told = |sop_class_uid: &str, failure: StoreFailure| {
            let refused =
                RefusedOperation { operation: "N-ACTION".into(), sop_class_uid: sop_class_uid.to_owned(), failure };
            super::operation(&caller, &refused, OffsetDateTime::UNIX_EPOCH)
        };
        let refusal = told(uids::STORAGE_COMMITMENT_PUSH_MODEL, StoreFailure::new(status, "bad\n"));
        assert_eq!((refusal.key.kind, refusal.key.reason), (RefusalKind::Operation, reason));
        assert!(refusal.remedy.contains(remedy), "{refusal:?}");
        let received = format!("(1.2.840.10008.1.20.1), answered {status:#06X} (");
        assert!(refusal.received.starts_with("N-ACTION of Storage Commitment"), "{refusal:?}");
        assert!(refusal.received.contains(&received) && refusal.received.ends_with("): bad\\n"), "{refusal:?}");
        let nothing_said = told("", StoreFailure::new(status, "").with_remedy("wait"));
        assert!(nothing_said.received.starts_with("N-ACTION, answered "), "{nothing_said:?}");
        assert_eq!(nothing_said.remedy, "wait");
    }
}
