//! Asking: associations of up to 128 contexts, one transfer syntax for each context.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use time::OffsetDateTime;

use super::questions::{BOTH_ROLES, Question};
use crate::{
    dimse::{Association, AssociationRequestor, RequestError, RequestorTimeouts, TlsClient},
    types::{AeTitle, PeerProbe, ProbedRoles},
};

/// Contexts of one association (PS3.8 section 7.1.1.13: odd ids of one byte).
const MAX_CONTEXTS: usize = 128;
/// A peer that breaks off is asked again in halves, down to this many contexts.
const MIN_CONTEXTS: usize = 8;
/// Associations of one probe at most.
const MAX_ASSOCIATIONS: usize = 100;

/// Who calls whom.
pub(super) struct Whom {
    pub(super) calling: AeTitle,
    pub(super) called: AeTitle,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<TlsClient>,
    /// For each step.
    pub(super) timeout: Duration,
}

impl Whom {
    fn requestor(&self) -> AssociationRequestor {
        let Self { calling, called, host, port, tls, timeout } = self;
        AssociationRequestor::new(calling.clone(), called.clone(), host.as_str(), *port)
            .with_timeouts(RequestorTimeouts { connect: *timeout, acse: *timeout, dimse: *timeout })
            .with_tls(tls.clone())
    }
}

/// What the peer accepts. An error when nothing at all could be found out; what could be is kept, and the outcome says
/// what could not.
pub(super) async fn probe(whom: &Whom, questions: &[Question]) -> Result<PeerProbe, RequestError> {
    let mut found = PeerProbe {
        at: OffsetDateTime::now_utc(),
        called_ae_title: whom.called.to_string(),
        calling_ae_title: whom.calling.to_string(),
        host: whom.host.clone(),
        port: whom.port,
        implementation_class_uid: None,
        implementation_version_name: None,
        max_pdu_length_bytes: 0,
        echo_status: None,
        echo_milliseconds: None,
        accepted: BTreeMap::new(),
        refused: BTreeMap::new(),
        roles: BTreeMap::new(),
        proposed_contexts: 0,
        failures: Vec::new(),
    };
    let mut waiting: VecDeque<Vec<Question>> = questions.chunks(MAX_CONTEXTS).map(<[Question]>::to_vec).collect();
    let mut n_associations = 0;
    while let Some(batch) = waiting.pop_front() {
        n_associations += 1;
        if n_associations > MAX_ASSOCIATIONS {
            found.failures.push(format!("not asked after {MAX_ASSOCIATIONS} associations: {} contexts", batch.len()));
            break;
        }
        let error = match ask(whom, &batch, &mut found).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        match error {
            // Perhaps it cannot stand something in there, or so many contexts: find out what.
            RequestError::Ended { .. } if batch.len() > MIN_CONTEXTS => {
                let (first, second) = batch.split_at(batch.len() / 2);
                waiting.push_front(second.to_vec());
                waiting.push_front(first.to_vec());
            }
            RequestError::Ended { .. } if found.proposed_contexts > 0 => {
                found.failures.push(format!("{}: {error}", names(&batch)));
            }
            // Gone, silent or unwilling: asking on would only take long.
            _ if found.proposed_contexts > 0 => {
                found.failures.push(error.to_string());
                break;
            }
            _ => return Err(error),
        }
    }
    // Accepted in one transfer syntax counts.
    let accepted = &found.accepted;
    found.refused.retain(|sop_class, _| !accepted.contains_key(sop_class));
    Ok(found)
}

fn names(batch: &[Question]) -> String {
    let mut sop_classes: Vec<&str> = batch.iter().map(|question| question.sop_class.as_str()).collect();
    sop_classes.dedup();
    format!("asked for {}", sop_classes.join(", "))
}

/// Asks one batch on an association of its own, and adds the answers.
async fn ask(whom: &Whom, batch: &[Question], found: &mut PeerProbe) -> Result<(), RequestError> {
    let propose = |requestor: AssociationRequestor, question: &Question| {
        requestor.propose(&question.sop_class, &[question.transfer_syntax])
    };
    let requestor = batch.iter().fold(whom.requestor(), propose);
    let is_asked = |sop_class: &&&str| batch.iter().any(|question| question.sop_class == **sop_class);
    let requestor = BOTH_ROLES
        .iter()
        .filter(is_asked)
        .fold(requestor, |requestor, sop_class| requestor.ask_for_both_roles(sop_class));
    let mut association = requestor.establish().await?;
    found.proposed_contexts += batch.len();
    note_answers(&association, found);
    let verifies = association.contexts().iter().any(|context| {
        context.abstract_syntax == dicom_dictionary_std::uids::VERIFICATION && context.transfer_syntax_uid().is_some()
    });
    if verifies && found.echo_status.is_none() {
        let asked = Instant::now();
        match association.echo().await {
            Ok(status) => {
                found.echo_status = Some(status);
                found.echo_milliseconds = Some(asked.elapsed().as_secs_f64() * 1e3);
            }
            Err(error) => {
                found.failures.push(error.to_string());
                return Ok(());
            }
        }
    }
    // The questions are answered: how the peer says goodbye is its own affair.
    let _ = association.release().await;
    Ok(())
}

fn note_answers(association: &Association, found: &mut PeerProbe) {
    let escaped = |text: &String| text.escape_debug().to_string();
    let peer = association.peer();
    found.implementation_class_uid = peer.class_uid.as_ref().map(escaped);
    found.implementation_version_name = peer.version_name.as_ref().map(escaped);
    found.max_pdu_length_bytes = peer.max_pdu_length;
    for context in association.contexts() {
        let sop_class = context.abstract_syntax.clone();
        match context.transfer_syntax_uid() {
            Some(uid) => found.accepted.entry(sop_class).or_default().push(uid.to_string()),
            None => drop(found.refused.insert(sop_class, context.outcome.to_string())),
        }
    }
    for granted in association.roles() {
        let roles = ProbedRoles { scu: granted.scu, scp: granted.scp };
        found.roles.insert(escaped(&granted.sop_class_uid), roles);
    }
}
