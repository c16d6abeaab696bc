//! The association requestor: calls a peer, verifies it (C-ECHO) and sends it objects (C-STORE). What else an
//! [`Association`] can do is in `find` and `commitment`.
//!
//! Start at [`AssociationRequestor`]. Errors name the peer, what it answered and what to do about it.

use std::{collections::VecDeque, io, time::Duration};

use dicom_dictionary_std::uids;
use dicom_ul::pdu::{AssociationRQ, PresentationContextProposed, RequestorRoles, UserVariableItem};
use tokio::{
    io::AsyncRead,
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::{
    APPLICATION_CONTEXT_NAME,
    command::{Command, CommandSet, MoveOriginator, Priority, ResponseCommand, StoreRequestCommand},
    commitment::ReceivedReport,
    data_set::Encoding,
    message::{EndReason, MessageLayer},
    negotiation::{NegotiatedContext, PeerImplementation, ProposedContext, match_results, user_variables},
    pdu_io::{PduLimits, Transport},
    rejection::{AbortSource, RejectReason, RejectResult},
    status,
    tls::{self, TlsClient},
    upper_layer::{Indication, SendError, UpperLayer},
};
use crate::types::{AeTitle, Uid};

/// Longest A-ASSOCIATE-AC that we read, in bytes.
const MAX_ASSOCIATION_BYTES: u32 = 1024 * 1024;
/// Longest P-DATA-TF that we accept, in bytes: we receive responses only.
const MAX_PDU_LENGTH: u32 = 64 * 1024;
/// Ids are odd numbers of one byte.
const MAX_CONTEXTS: usize = 128;

/// How long a requestor waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestorTimeouts {
    /// For name resolution and the TCP connection.
    pub connect: Duration,
    /// For the answer to an A-ASSOCIATE-RQ or A-RELEASE-RQ.
    pub acse: Duration,
    /// For the response to a message, and for each write to make progress.
    pub dimse: Duration,
}

impl Default for RequestorTimeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), acse: Duration::from_secs(30), dimse: Duration::from_mins(2) }
    }
}

/// Why a request failed. Statuses of the peer are not errors: they are in the responses.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No TCP connection.
    #[error("cannot connect to `{called}` at {host}:{port}: {reason}; {remedy}")]
    Connect {
        /// Whom we called.
        called: AeTitle,
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// What went wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No TLS, or not with the right peer.
    #[error("no TLS with `{called}` at {host}:{port}: expected {expected}, received {received}; {remedy}")]
    Tls {
        /// Whom we called.
        called: AeTitle,
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// What would have been right.
        expected: String,
        /// What came.
        received: String,
        /// What to do.
        remedy: String,
    },
    /// The peer refused the association.
    #[error("`{called}` at {host}:{port} rejects the association ({result}, {}): {reason}; {remedy}", .reason.source())]
    Rejected {
        /// Whom we called.
        called: AeTitle,
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
        /// Permanent or transient.
        result: RejectResult,
        /// Source and reason.
        reason: RejectReason,
        /// What to do.
        remedy: String,
    },
    /// The peer said nothing in time.
    #[error("`{called}` does not answer {what} within {} s; {remedy}", .limit.as_secs_f32())]
    TimedOut {
        /// Whom we called.
        called: AeTitle,
        /// What it should have answered.
        what: &'static str,
        /// How long we waited.
        limit: Duration,
        /// What to do.
        remedy: &'static str,
    },
    /// The association ended in the middle.
    #[error("the association with `{called}` ended during {during}: {reason}")]
    Ended {
        /// Whom we called.
        called: AeTitle,
        /// What we were doing.
        during: &'static str,
        /// How it ended.
        reason: EndReason,
    },
    /// The peer accepted no presentation context that fits.
    #[error(
        "`{called}` accepts no presentation context for SOP class {sop_class_uid} in {transfer_syntax_uid}: {answers}; {remedy}"
    )]
    NoContext {
        /// Whom we called.
        called: AeTitle,
        /// The SOP class wanted.
        sop_class_uid: Uid,
        /// The transfer syntax wanted, or `any transfer syntax`.
        transfer_syntax_uid: String,
        /// What was proposed for the SOP class and what the peer answered.
        answers: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The peer does not let us be SCP.
    #[error(
        "`{called}` refuses us the role of SCP for Storage Commitment, so it cannot be told on an association of ours; \
         let it accept the role, or keep the association open on which it asks"
    )]
    RoleRefused {
        /// Whom we called.
        called: AeTitle,
    },
    /// The object could not be read. The association is aborted, so the peer does not keep half of it.
    #[error("cannot read the object to send: {0}")]
    Source(#[source] io::Error),
    /// More than 128 presentation contexts, or none.
    #[error(
        "{0} presentation contexts are proposed: an association holds 1 to 128; split the objects among several associations"
    )]
    ContextCount(usize),
    /// A name or UID that the wire does not hold.
    #[error("the association request cannot be encoded: {0}")]
    Encode(String),
}

impl RequestError {
    /// Whether trying again later, unchanged, may succeed.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::TimedOut { .. } | Self::Ended { .. } => true,
            Self::Rejected { result, .. } => matches!(result, RejectResult::Transient),
            Self::Tls { .. }
            | Self::NoContext { .. }
            | Self::RoleRefused { .. }
            | Self::Source(_)
            | Self::ContextCount(_)
            | Self::Encode(_) => false,
        }
    }
}

/// Calls a peer.
#[derive(Debug, Clone)]
pub struct AssociationRequestor {
    calling: AeTitle,
    pub(super) called: AeTitle,
    host: String,
    port: u16,
    pub(super) timeouts: RequestorTimeouts,
    tls: Option<TlsClient>,
    proposed: Vec<ProposedContext>,
    /// Abstract syntaxes in which we are SCP and the peer SCU.
    scp_of: Vec<String>,
    asked_roles: Vec<String>,
}

impl AssociationRequestor {
    /// A call as `calling` to the peer `called` at `host` (name or address) and `port`. Propose contexts next.
    pub fn new(calling: AeTitle, called: AeTitle, host: impl Into<String>, port: u16) -> Self {
        Self {
            calling,
            called,
            host: host.into(),
            port,
            timeouts: RequestorTimeouts::default(),
            tls: None,
            proposed: Vec::new(),
            scp_of: Vec::new(),
            asked_roles: Vec::new(),
        }
    }

    /// Waits as long as these.
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: RequestorTimeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Calls over TLS, if `tls` says how.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<TlsClient>) -> Self {
        self.tls = tls;
        self
    }

    /// Proposes Verification, for C-ECHO.
    #[must_use]
    pub fn propose_verification(self) -> Self {
        self.propose(uids::VERIFICATION, &[uids::EXPLICIT_VR_LITTLE_ENDIAN, uids::IMPLICIT_VR_LITTLE_ENDIAN])
    }

    /// Proposes one context: `abstract_syntax` in any of `transfer_syntaxes`, from which the peer chooses one. A
    /// context that has been proposed already is not proposed again.
    #[must_use]
    pub fn propose(mut self, abstract_syntax: &str, transfer_syntaxes: &[&str]) -> Self {
        let transfer_syntaxes: Vec<String> = transfer_syntaxes.iter().map(|&uid| uid.to_owned()).collect();
        let is_known = self.proposed.iter().any(|context| {
            context.abstract_syntax == abstract_syntax && context.transfer_syntaxes == transfer_syntaxes
        });
        if !is_known {
            // Ids beyond the 128th are never used: `establish` refuses so many contexts.
            let id = (self.proposed.len() * 2 + 1) as u8;
            self.proposed.push(ProposedContext { id, abstract_syntax: abstract_syntax.to_owned(), transfer_syntaxes });
        }
        self
    }

    /// As [`AssociationRequestor::propose`], with the roles turned round: we are SCP, the peer SCU (SCP/SCU role
    /// selection, PS3.7 section D.3.3.4).
    #[must_use]
    pub fn propose_as_scp(mut self, abstract_syntax: &str, transfer_syntaxes: &[&str]) -> Self {
        self.scp_of.push(abstract_syntax.to_owned());
        self.propose(abstract_syntax, transfer_syntaxes)
    }

    /// Asks for both roles, SCU and SCP, for a proposed SOP class; what the peer grants is in [`Association::roles`]
    /// (SCP/SCU role selection, PS3.7 D.3.3.4).
    #[must_use]
    pub fn ask_for_both_roles(mut self, sop_class_uid: &str) -> Self {
        self.asked_roles.push(sop_class_uid.to_owned());
        self
    }

    fn user_variables(&self) -> Vec<UserVariableItem> {
        let as_scp = self.scp_of.iter().map(|uid| (uid, RequestorRoles { scu: false, scp: true }));
        let both = self.asked_roles.iter().map(|uid| (uid, RequestorRoles { scu: true, scp: true }));
        let roles =
            as_scp.chain(both).map(|(uid, roles)| UserVariableItem::ScuScpRoleSelectionSubItem(uid.clone(), roles));
        user_variables(MAX_PDU_LENGTH, &[], &[]).into_iter().chain(roles).collect()
    }

    /// Connects and negotiates.
    pub async fn establish(self) -> Result<Association, RequestError> {
        if self.proposed.is_empty() || self.proposed.len() > MAX_CONTEXTS {
            return Err(RequestError::ContextCount(self.proposed.len()));
        }
        let transport = self.connect().await?;
        let limits = PduLimits { max_association_bytes: MAX_ASSOCIATION_BYTES, max_p_data_bytes: MAX_PDU_LENGTH };
        let mut layer = UpperLayer::connected(transport, limits, self.timeouts.dimse);
        let request = AssociationRQ {
            protocol_version: 1,
            calling_ae_title: self.calling.to_string(),
            called_ae_title: self.called.to_string(),
            application_context_name: APPLICATION_CONTEXT_NAME.to_owned(),
            presentation_contexts: self.proposed.iter().map(to_wire).collect(),
            user_variables: self.user_variables(),
        };
        if let Err(error) = layer.request_association(request).await {
            return Err(match error.kind() {
                io::ErrorKind::Other => RequestError::Encode(error.to_string()),
                _ => self.ended("the association request", EndReason::from_write_error(&error)),
            });
        }
        let Ok(indication) = timeout(self.timeouts.acse, layer.next()).await else {
            layer.abort(AbortSource::ServiceUser).await;
            layer.close().await;
            return Err(RequestError::TimedOut {
                called: self.called,
                what: "the association request",
                limit: self.timeouts.acse,
                remedy: "check that a DICOM service listens on that port, without TLS",
            });
        };
        match indication {
            Indication::AssociationAccepted(accept) => {
                let peer = PeerImplementation::from_user_variables(&accept.user_variables);
                tracing::debug!(called = %self.called, implementation = %peer, "association established");
                Ok(Association {
                    contexts: match_results(&self.proposed, &accept.presentation_contexts),
                    messages: MessageLayer::new(layer, peer.max_pdu_length),
                    roles: granted_roles(&accept.user_variables),
                    peer,
                    scp_role_refused: refused_scp_roles(&accept.user_variables),
                    requestor: self,
                    last_message_id: 0,
                    reports: VecDeque::new(),
                })
            }
            Indication::AssociationRejected { result, reason } => {
                layer.close().await;
                let remedy = rejection_remedy(&self, result, reason);
                Err(RequestError::Rejected {
                    called: self.called,
                    host: self.host,
                    port: self.port,
                    result,
                    reason,
                    remedy,
                })
            }
            other => {
                let reason = match other {
                    Indication::Aborted(words) => EndReason::AbortedByPeer { words },
                    Indication::ConnectionLost(words) => EndReason::ConnectionLost { words },
                    Indication::ProtocolError(words) => EndReason::ProtocolError { words },
                    _ => EndReason::protocol_error("the peer answers something else than the association request"),
                };
                layer.close().await;
                Err(self.ended("the association request", reason))
            }
        }
    }

    /// The connection, with TLS on it where that is wanted.
    async fn connect(&self) -> Result<Box<dyn Transport>, RequestError> {
        let stream = self.connect_plainly().await?;
        let Some(client) = &self.tls else { return Ok(Box::new(stream)) };
        let limit = self.timeouts.acse;
        match timeout(limit, tls::connect(stream, client, &self.host)).await {
            Ok(Ok(transport)) => Ok(transport),
            Ok(Err(refusal)) => Err(RequestError::Tls {
                called: self.called.clone(),
                host: self.host.clone(),
                port: self.port,
                expected: refusal.expected,
                received: refusal.received,
                remedy: refusal.remedy,
            }),
            Err(_) => Err(RequestError::TimedOut {
                called: self.called.clone(),
                what: "the TLS handshake",
                limit,
                remedy: "check that the peer speaks TLS on that port",
            }),
        }
    }

    async fn connect_plainly(&self) -> Result<TcpStream, RequestError> {
        let limit = self.timeouts.connect;
        let (reason, remedy) = match timeout(limit, TcpStream::connect((self.host.as_str(), self.port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::ConnectionRefused => {
                    ("connection refused".to_owned(), "check that the peer is running and listens on that port")
                }
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                    (error.to_string(), "check the address, the network and the firewall between the two")
                }
                _ => (error.to_string(), "check the peer's host name, address and port"),
            },
            Err(_) => (
                format!("no answer within {} s", limit.as_secs_f32()),
                "check the address, and that no firewall drops the connection",
            ),
        };
        Err(RequestError::Connect {
            called: self.called.clone(),
            host: self.host.clone(),
            port: self.port,
            reason,
            remedy,
        })
    }

    fn ended(&self, during: &'static str, reason: EndReason) -> RequestError {
        RequestError::Ended { called: self.called.clone(), during, reason }
    }
}

/// The abstract syntaxes for which the peer's answer to our role selection says that we may not be SCP.
fn refused_scp_roles(answer: &[UserVariableItem]) -> Vec<String> {
    let refused = |item: &UserVariableItem| match item {
        UserVariableItem::ScuScpRoleSelectionSubItem(abstract_syntax, roles) if !roles.scp => {
            Some(abstract_syntax.clone())
        }
        _ => None,
    };
    answer.iter().filter_map(refused).collect()
}

/// The roles that a peer grants us, the requestor, for one SOP class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedRoles {
    /// As answered.
    pub sop_class_uid: String,
    /// We may be SCU.
    pub scu: bool,
    /// We may be SCP.
    pub scp: bool,
}

fn granted_roles(items: &[UserVariableItem]) -> Vec<GrantedRoles> {
    let granted = items.iter().filter_map(|item| match item {
        UserVariableItem::ScuScpRoleSelectionSubItem(uid, roles) => {
            Some(GrantedRoles { sop_class_uid: uid.clone(), scu: roles.scu, scp: roles.scp })
        }
        _ => None,
    });
    granted.collect()
}

fn to_wire(context: &ProposedContext) -> PresentationContextProposed {
    PresentationContextProposed {
        id: context.id,
        abstract_syntax: context.abstract_syntax.clone(),
        transfer_syntaxes: context.transfer_syntaxes.clone(),
    }
}

fn rejection_remedy(requestor: &AssociationRequestor, result: RejectResult, reason: RejectReason) -> String {
    match reason {
        RejectReason::CallingAeTitleNotRecognized => {
            format!("the peer does not know our calling AE title `{}`: have it added there", requestor.calling)
        }
        RejectReason::CalledAeTitleNotRecognized => format!(
            "the peer does not answer to the called AE title `{}`: correct the title configured for it here",
            requestor.called
        ),
        RejectReason::TemporaryCongestion | RejectReason::LocalLimitExceeded => {
            "the peer is busy: it will be tried again later, or have its limit of associations raised".to_owned()
        }
        RejectReason::ApplicationContextNotSupported | RejectReason::ProtocolVersionNotSupported => {
            "check that the peer is a DICOM application".to_owned()
        }
        RejectReason::NoReasonGiven | RejectReason::ProviderGivesNoReason | RejectReason::Other { .. } => {
            match result {
                RejectResult::Transient => "try again later; the peer's log may say more".to_owned(),
                RejectResult::Permanent => format!(
                    "look into the peer's log; often it does not know our calling AE title `{}` or our address",
                    requestor.calling
                ),
            }
        }
    }
}

/// An object to send.
#[derive(Debug)]
pub struct StoreSource<R> {
    /// (0008,0016)
    pub sop_class_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// Transfer syntax of `data`; a context must have been accepted in it.
    pub transfer_syntax_uid: Uid,
    /// The data set, without file meta information.
    pub data: R,
    /// How many bytes of `data` to send: all of the data set.
    pub length: u64,
    /// (0000,0700)
    pub priority: Priority,
}

/// The peer's answer to a C-STORE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreResponse {
    /// (0000,0900): see [`status`] for categories and meanings.
    pub status: u16,
    /// (0000,0902)
    pub error_comment: Option<String>,
}

/// An association that we have requested. After an error other than [`RequestError::NoContext`] it is over.
///
/// End it with [`Association::release`]; dropping it closes the connection without a word.
pub struct Association {
    pub(super) requestor: AssociationRequestor,
    contexts: Vec<NegotiatedContext>,
    peer: PeerImplementation,
    roles: Vec<GrantedRoles>,
    /// Abstract syntaxes for which the peer has refused us the role of SCP.
    pub(super) scp_role_refused: Vec<String>,
    pub(super) messages: MessageLayer,
    last_message_id: u16,
    /// Reports that came while we waited for something else.
    pub(super) reports: VecDeque<ReceivedReport>,
}

impl Association {
    /// The answers to our proposals.
    pub fn contexts(&self) -> &[NegotiatedContext] {
        &self.contexts
    }

    /// What the peer says of itself.
    pub fn peer(&self) -> &PeerImplementation {
        &self.peer
    }

    /// The peer's answers to [`AssociationRequestor::ask_for_both_roles`]; no answer means the default roles.
    pub fn roles(&self) -> &[GrantedRoles] {
        &self.roles
    }

    /// Whether objects of this SOP class in this transfer syntax can be sent.
    pub fn accepts(&self, sop_class_uid: &Uid, transfer_syntax_uid: &Uid) -> bool {
        self.context_id(sop_class_uid, Some(transfer_syntax_uid)).is_some()
    }

    /// C-ECHO: the peer's status.
    pub async fn echo(&mut self) -> Result<u16, RequestError> {
        let verification = Uid::new(uids::VERIFICATION).map_err(|error| RequestError::Encode(error.to_string()))?;
        let Some(context_id) = self.context_id(&verification, None) else {
            return Err(self.no_context(verification, None));
        };
        let message_id = self.next_message_id();
        let command = CommandSet::without_data_set(Command::EchoRequest { message_id });
        if let Err(error) = self.messages.send_command(context_id, &command).await {
            return Err(self.write_failed("C-ECHO", &error).await);
        }
        let response = self.response("C-ECHO", message_id, ResponseCommand::is_echo).await?;
        Ok(response.status)
    }

    /// C-STORE: sends the object and waits for the peer's answer.
    ///
    /// Not cancel-safe: a cancelled call leaves half an object on the wire, so the association must be aborted.
    pub async fn store<R: AsyncRead + Unpin + Send>(
        &mut self,
        source: StoreSource<R>,
    ) -> Result<StoreResponse, RequestError> {
        self.store_for(source, None).await
    }

    /// As [`Association::store`], as sub-operation of a C-MOVE.
    pub async fn store_for<R: AsyncRead + Unpin + Send>(
        &mut self,
        source: StoreSource<R>,
        move_originator: Option<MoveOriginator>,
    ) -> Result<StoreResponse, RequestError> {
        let StoreSource { sop_class_uid, sop_instance_uid, transfer_syntax_uid, mut data, length, priority } = source;
        let Some(context_id) = self.context_id(&sop_class_uid, Some(&transfer_syntax_uid)) else {
            return Err(self.no_context(sop_class_uid, Some(&transfer_syntax_uid)));
        };
        let message_id = self.next_message_id();
        let command = CommandSet {
            command: Command::StoreRequest(StoreRequestCommand {
                message_id,
                affected_sop_class_uid: sop_class_uid.to_string(),
                affected_sop_instance_uid: sop_instance_uid.to_string(),
                priority,
                move_originator,
            }),
            has_data_set: true,
        };
        if let Err(error) = self.messages.queue_command(context_id, &command).await {
            return Err(self.write_failed("C-STORE", &error).await);
        }
        let max_pdu_length = self.messages.peer_max_pdu_length();
        match self.messages.layer.send_from(context_id, false, &mut data, length, max_pdu_length).await {
            Ok(()) => {}
            Err(SendError::Source(error)) => {
                self.messages.layer.abort(AbortSource::ServiceUser).await;
                return Err(RequestError::Source(error));
            }
            Err(SendError::Connection(error)) => return Err(self.write_failed("C-STORE", &error).await),
        }
        if let Err(error) = self.messages.layer.finish_message().await {
            return Err(self.write_failed("C-STORE", &error).await);
        }
        let response = self.response("C-STORE", message_id, ResponseCommand::is_store).await?;
        Ok(StoreResponse { status: response.status, error_comment: response.error_comment })
    }

    /// Releases the association and closes the connection.
    pub async fn release(mut self) -> Result<(), RequestError> {
        let acse = self.requestor.timeouts.acse;
        if let Err(error) = self.messages.layer.request_release().await {
            return Err(self.write_failed("release", &error).await);
        }
        let deadline = Instant::now() + acse;
        let result = loop {
            break match timeout_at(deadline, self.messages.layer.next()).await {
                Ok(Indication::Released) => Ok(()),
                // Late data of the peer means nothing to us any more.
                Ok(Indication::Data(_)) => continue,
                Ok(Indication::Aborted(words)) => {
                    Err(self.requestor.ended("release", EndReason::AbortedByPeer { words }))
                }
                Ok(Indication::ConnectionLost(words)) => {
                    Err(self.requestor.ended("release", EndReason::ConnectionLost { words }))
                }
                Ok(Indication::ProtocolError(words)) => {
                    Err(self.requestor.ended("release", EndReason::ProtocolError { words }))
                }
                Ok(_) => Err(self.requestor.ended(
                    "release",
                    EndReason::protocol_error("the peer answers something else than the release request"),
                )),
                Err(_) => {
                    self.messages.layer.abort(AbortSource::ServiceUser).await;
                    Err(RequestError::TimedOut {
                        called: self.requestor.called.clone(),
                        what: "the release request",
                        limit: acse,
                        remedy: "everything it had answered before is valid",
                    })
                }
            };
        };
        self.messages.layer.close().await;
        result
    }

    /// Aborts the association and closes the connection.
    pub async fn abort(mut self) {
        self.messages.layer.abort(AbortSource::ServiceUser).await;
        self.messages.layer.close().await;
    }

    fn context_id(&self, sop_class_uid: &Uid, transfer_syntax_uid: Option<&Uid>) -> Option<u8> {
        self.contexts
            .iter()
            .find(|context| {
                context.abstract_syntax == sop_class_uid.as_str()
                    && context
                        .transfer_syntax_uid()
                        .is_some_and(|accepted| transfer_syntax_uid.is_none_or(|wanted| wanted == accepted))
            })
            .map(|context| context.id)
    }

    /// The context for messages of a service whose data sets we read ourselves, and their encoding.
    pub(super) fn message_context(&self, sop_class_uid: &'static str) -> Result<(u8, Encoding), RequestError> {
        let accepted = self.contexts.iter().find_map(|context| {
            let encoding = Encoding::of(context.transfer_syntax_uid()?.as_str())?;
            (context.abstract_syntax == sop_class_uid).then_some((context.id, encoding))
        });
        if let Some(accepted) = accepted {
            return Ok(accepted);
        }
        let sop_class_uid = Uid::new(sop_class_uid).map_err(|error| RequestError::Encode(error.to_string()))?;
        Err(self.no_context(sop_class_uid, None))
    }

    fn no_context(&self, sop_class_uid: Uid, transfer_syntax_uid: Option<&Uid>) -> RequestError {
        let answers: Vec<String> = self
            .requestor
            .proposed
            .iter()
            .zip(&self.contexts)
            .filter(|(proposed, _)| proposed.abstract_syntax == sop_class_uid.as_str())
            .map(|(proposed, answered)| {
                format!("proposed in {}: {}", proposed.transfer_syntaxes.join(", "), answered.outcome)
            })
            .collect();
        let (answers, remedy) = if answers.is_empty() {
            ("we have not proposed it".to_owned(), "propose it when associating")
        } else {
            (answers.join("; "), "enable the SOP class and transfer syntax at the peer, or convert the object")
        };
        RequestError::NoContext {
            called: self.requestor.called.clone(),
            sop_class_uid,
            transfer_syntax_uid: transfer_syntax_uid
                .map_or_else(|| "any transfer syntax".to_owned(), |uid| format!("transfer syntax {uid}")),
            answers,
            remedy,
        }
    }

    pub(super) fn next_message_id(&mut self) -> u16 {
        self.last_message_id = self.last_message_id.checked_add(1).unwrap_or(1);
        self.last_message_id
    }

    /// The final response to `message_id`. A data set that comes with it says nothing that we need.
    pub(super) async fn response(
        &mut self,
        operation: &'static str,
        message_id: u16,
        answers: impl Fn(&ResponseCommand) -> bool,
    ) -> Result<ResponseCommand, RequestError> {
        let deadline = Instant::now() + self.requestor.timeouts.dimse;
        loop {
            let (context_id, CommandSet { command, has_data_set }) = self.next_command(operation, deadline).await?;
            match command {
                Command::Response(response) if response.responds_to == message_id && answers(&response) => {
                    if has_data_set {
                        self.data_set(operation, context_id, 0, deadline).await?;
                    }
                    if status::category(response.status) != status::Category::Pending {
                        return Ok(response);
                    }
                }
                Command::EventReportRequest(command) if has_data_set => {
                    self.keep_report(operation, context_id, command, deadline).await?;
                }
                _ => return Err(self.broken(operation, "the peer sent a message that answers no request").await),
            }
        }
    }

    /// The next command set of the peer, until `deadline`.
    pub(super) async fn next_command(
        &mut self,
        operation: &'static str,
        deadline: Instant,
    ) -> Result<(u8, CommandSet), RequestError> {
        match timeout_at(deadline, self.messages.read_command()).await {
            Ok(Ok(command)) => Ok(command),
            Ok(Err(reason)) => Err(self.over(operation, reason).await),
            Err(_) => Err(self.silent(operation).await),
        }
    }

    /// The data set of a message on `context_id`, until `deadline`; `None` when it has more than `max_bytes`.
    pub(super) async fn data_set(
        &mut self,
        operation: &'static str,
        context_id: u8,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<Option<Vec<u8>>, RequestError> {
        match timeout_at(deadline, self.messages.read_data_set(context_id, max_bytes)).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(reason)) => Err(self.over(operation, reason).await),
            Err(_) => Err(self.silent(operation).await),
        }
    }

    /// The association has ended; a release request is answered.
    pub(super) async fn over(&mut self, operation: &'static str, reason: EndReason) -> RequestError {
        if reason == EndReason::Released {
            self.messages.layer.answer_release().await;
        }
        self.requestor.ended(operation, reason)
    }

    /// Aborts because the peer broke the DIMSE protocol.
    pub(super) async fn broken(&mut self, operation: &'static str, words: &str) -> RequestError {
        let reason = self.messages.break_off(words).await;
        self.requestor.ended(operation, reason)
    }

    /// Aborts because the peer says nothing.
    pub(super) async fn silent(&mut self, operation: &'static str) -> RequestError {
        self.messages.layer.abort(AbortSource::ServiceUser).await;
        RequestError::TimedOut {
            called: self.requestor.called.clone(),
            what: operation,
            limit: self.requestor.timeouts.dimse,
            remedy: "the peer is overloaded or stuck: look into its log",
        }
    }

    /// A write failed, most often because the peer has aborted and closed: says so, where its A-ABORT can still be
    /// read.
    pub(super) async fn write_failed(&mut self, during: &'static str, error: &io::Error) -> RequestError {
        /// The A-ABORT, if any, is in the receive buffer already.
        const LAST_WORDS: Duration = Duration::from_millis(500);
        let mut reason = EndReason::from_write_error(error);
        if self.messages.layer.is_established()
            && let Ok(Indication::Aborted(words)) = timeout(LAST_WORDS, self.messages.layer.next()).await
        {
            reason = EndReason::AbortedByPeer { words };
        }
        self.messages.layer.abort(AbortSource::ServiceUser).await;
        self.requestor.ended(during, reason)
    }
}
