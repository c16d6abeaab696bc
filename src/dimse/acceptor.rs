//! The association acceptor: listens, admits, and serves C-ECHO and C-STORE until the peer is done.
//!
//! Start at [`Acceptor`]. What an association may do and what happens to its objects is decided by an
//! [`AssociationHandler`]. The acceptor sees to the rest: limits in number, length and time, exactly one final
//! response to each request, and an orderly shutdown.

use std::{
    fmt, io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use dicom_ul::pdu::{AssociationAC, AssociationRQ, MINIMUM_PDU_SIZE};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span, debug, error, field, info_span, warn};
use uuid::Uuid;

use super::{
    APPLICATION_CONTEXT_NAME,
    command::{Command, CommandSet, MoveOriginator, Priority, ResponseCommand, StoreRequestCommand},
    message::{EndReason, MessageLayer, TimeLimit},
    negotiation::{
        NegotiatedContext, NegotiationPolicy, PeerImplementation, ProposedContext, negotiate, user_variables,
    },
    pdu_io::PduLimits,
    rejection::{AbortReason, AbortSource, Rejection},
    status,
    upper_layer::{Indication, UpperLayer},
};
use crate::types::{AeTitle, Uid};

/// How long a store handler may go on after its data set stream has failed, to remove what it has begun.
const HANDLER_CLEANUP: Duration = Duration::from_secs(1);

/// Connections beyond the associations that may be open at once while they negotiate: enough to tell peers over
/// the limit so instead of leaving them waiting.
const EXTRA_CONNECTIONS: usize = 32;

/// Waiting time after the first failed accept; doubled up to [`MAX_ACCEPT_BACKOFF`].
const MIN_ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Limits of an [`Acceptor`].
#[derive(Debug, Clone)]
pub struct AcceptorOptions {
    /// Associations open at once; one more is rejected as transient, local limit exceeded.
    pub max_associations: usize,
    /// Longest P-DATA-TF that we accept and announce, in bytes; held between 1018 and 16 MiB.
    pub max_pdu_length: u32,
    /// Longest A-ASSOCIATE-RQ that we read, in bytes. 128 contexts of 45 transfer syntaxes have about 160 KB.
    pub max_association_request_bytes: u32,
    /// Total time from the connection to its whole A-ASSOCIATE-RQ (ARTIM), and for one write to the peer.
    pub association_request_timeout: Duration,
    /// Total time without a message.
    pub idle_timeout: Duration,
    /// Total time from the first fragment of a message to our response.
    pub message_timeout: Duration,
    /// Total time that associations get to finish their current message at shutdown.
    pub shutdown_grace: Duration,
}

impl Default for AcceptorOptions {
    fn default() -> Self {
        Self {
            max_associations: 64,
            max_pdu_length: 128 * 1024,
            max_association_request_bytes: 1024 * 1024,
            association_request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(2),
            message_timeout: Duration::from_mins(10),
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

/// An AE title as a peer sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedTitle {
    /// Without padding; hostile until proven otherwise. [`fmt::Display`] escapes it.
    pub text: String,
    /// The title, where the text is a valid one.
    pub title: Option<AeTitle>,
}

impl RequestedTitle {
    fn new(text: &str) -> Self {
        Self { text: text.trim_matches(['\0', ' ']).to_owned(), title: AeTitle::new(text).ok() }
    }
}

impl fmt::Display for RequestedTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.escape_debug().fmt(f)
    }
}

/// An A-ASSOCIATE-RQ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationRequest {
    /// Our name for the association: UUID version 7.
    pub association_id: Uuid,
    /// Where it comes from.
    pub peer_address: SocketAddr,
    /// Who calls.
    pub calling_ae_title: RequestedTitle,
    /// Whom it calls.
    pub called_ae_title: RequestedTitle,
    /// As sent; only the DICOM application context is admitted.
    pub application_context_name: String,
    /// What the peer says of itself.
    pub implementation: PeerImplementation,
    /// In the peer's order.
    pub proposed_contexts: Vec<ProposedContext>,
}

impl AssociationRequest {
    fn new(association_id: Uuid, peer_address: SocketAddr, request: &AssociationRQ) -> Self {
        Self {
            association_id,
            peer_address,
            calling_ae_title: RequestedTitle::new(&request.calling_ae_title),
            called_ae_title: RequestedTitle::new(&request.called_ae_title),
            application_context_name: request.application_context_name.clone(),
            implementation: PeerImplementation::from_user_variables(&request.user_variables),
            proposed_contexts: request.presentation_contexts.iter().cloned().map(ProposedContext::from).collect(),
        }
    }
}

/// A connection that ended before there was an association, other than by a [`Rejection`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotEstablished {
    /// Our name for it: UUID version 7.
    pub association_id: Uuid,
    /// Where it came from.
    pub peer_address: SocketAddr,
    /// The request, where a whole one could be read.
    pub request: Option<AssociationRequest>,
    /// Why it ended.
    pub reason: EndReason,
}

/// The end of an association and what it carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationEnd {
    /// Why it ended.
    pub reason: EndReason,
    /// C-STORE requests answered with Success.
    pub n_objects_stored: u64,
    /// C-STORE requests that failed, with or without an answer.
    pub n_objects_failed: u64,
    /// Data set bytes received.
    pub n_bytes_received: u64,
}

/// A C-STORE request that has been checked: its SOP class is the one of its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRequest {
    /// (0000,0110)
    pub message_id: u16,
    /// Presentation context that it came on.
    pub context_id: u8,
    /// Transfer syntax of the data set.
    pub transfer_syntax_uid: Uid,
    /// (0000,0002)
    pub affected_sop_class_uid: Uid,
    /// (0000,1000); never to be used as a path.
    pub affected_sop_instance_uid: Uid,
    /// (0000,0700)
    pub priority: Priority,
    /// (0000,1030), (0000,1031)
    pub move_originator: Option<MoveOriginator>,
}

/// Why an object is not stored: the DIMSE status and the Error Comment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {comment}", status::InWords(*.status))]
pub struct StoreFailure {
    /// A failure status (see [`status`]).
    pub status: u16,
    /// For the peer's log; the wire holds its first 64 characters. No patient data.
    pub comment: String,
    /// What to do, where the status alone does not say it.
    pub remedy: Option<&'static str>,
}

impl StoreFailure {
    /// A failure with `status` and `comment`.
    pub fn new(status: u16, comment: impl Into<String>) -> Self {
        Self { status, comment: comment.into(), remedy: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn with_remedy(self, remedy: &'static str) -> Self {
        Self { remedy: Some(remedy), ..self }
    }

    /// 0xA700: the sender should try again later.
    pub fn out_of_resources(comment: impl Into<String>) -> Self {
        Self::new(status::OUT_OF_RESOURCES, comment)
    }

    /// 0xC000: the data set is not readable.
    pub fn cannot_understand(comment: impl Into<String>) -> Self {
        Self::new(status::CANNOT_UNDERSTAND, comment)
    }

    /// 0xA900: the data set is not what the command says.
    pub fn data_set_does_not_match(comment: impl Into<String>) -> Self {
        Self::new(status::DATA_SET_DOES_NOT_MATCH_SOP_CLASS, comment)
    }

    /// 0x0110: our own fault.
    pub fn processing_failure(comment: impl Into<String>) -> Self {
        Self::new(status::PROCESSING_FAILURE, comment)
    }
}

/// A C-STORE request that was answered with a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedObject {
    /// (0000,0002) as sent, possibly malformed.
    pub affected_sop_class_uid: String,
    /// (0000,1000) as sent, possibly malformed.
    pub affected_sop_instance_uid: String,
    /// Transfer syntax of its presentation context.
    pub transfer_syntax_uid: Uid,
    /// Data set bytes that came, before and after the refusal.
    pub n_bytes: u64,
    /// What was answered.
    pub failure: StoreFailure,
}

/// Why a connection is not heard at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unheard {
    /// It closed without a word: a port probe.
    Silent,
    /// As many connections are open as may be.
    TooMany {
        /// How many that is.
        limit: usize,
    },
}

/// The data set will not be complete; the association has ended for this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data set is incomplete: {0}")]
pub struct StreamError(pub EndReason);

/// A handler that reads no further has no one to answer to: the status is lost with the association.
impl From<StreamError> for StoreFailure {
    fn from(error: StreamError) -> Self {
        Self::processing_failure(error.to_string())
    }
}

/// What the acceptor asks of the application.
pub trait AssociationHandler: Send + Sync + 'static {
    /// State of one association, made on acceptance.
    type Association: Send;

    /// Whether the peer may associate with us, and with what. Called before the limit on associations is
    /// applied, on the network task: it must not block.
    fn admit(&self, request: &AssociationRequest) -> Result<NegotiationPolicy, Rejection>;

    /// The association was rejected: by [`AssociationHandler::admit`], or for a limit or the protocol. It has been
    /// logged.
    fn rejected(&self, request: &AssociationRequest, rejection: &Rejection);

    /// The connection ended without an association, and not by a rejection. It has been logged.
    fn not_established(&self, failure: &NotEstablished);

    /// The connection ended before a byte of it was read.
    fn unheard(&self, _peer_address: SocketAddr, _why: Unheard) {}

    /// The association has been accepted with these contexts, which are the answers of `policy`.
    fn accepted(
        &self,
        request: &AssociationRequest,
        policy: &NegotiationPolicy,
        negotiated: &[NegotiatedContext],
    ) -> Self::Association;

    /// Stores one object. `Ok` is answered with Success, so the object must be durable by then, and its data set
    /// must have been read to the end. On an error the rest of the data set is thrown away and the association
    /// goes on.
    ///
    /// When [`DataSetStream::next`] fails, nobody awaits the result any more: remove what has been written. The
    /// future is dropped when it does not end within a second of that, and when it panics.
    fn store(
        &self,
        association: &mut Self::Association,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> impl Future<Output = Result<(), StoreFailure>> + Send;

    /// A C-STORE request is answered with a failure: by [`AssociationHandler::store`], or because it could not be
    /// handed to it. Not called when the association ends before there is an answer.
    fn refused(&self, _association: &Self::Association, _refused: &RefusedObject) {}

    /// The association has ended.
    fn ended(&self, association: Self::Association, end: AssociationEnd);
}

/// The data set of a C-STORE request, fragment by fragment as it comes from the socket: a slow reader slows the
/// sender down, and no object is held in memory.
pub struct DataSetStream<'a> {
    messages: &'a mut MessageLayer,
    limits: MessageLimits<'a>,
    context_id: u8,
    state: StreamState,
    n_bytes: u64,
}

enum StreamState {
    Reading,
    Finished,
    Failed(EndReason),
}

impl DataSetStream<'_> {
    /// The next fragment, `None` after the last one.
    ///
    /// Cancel safety: cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StreamError> {
        loop {
            match &self.state {
                StreamState::Reading => {}
                StreamState::Finished => return Ok(None),
                StreamState::Failed(reason) => return Err(StreamError(reason.clone())),
            }
            match self.next_fragment().await {
                // An empty last fragment is how some peers end a data set.
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(reason) => self.state = StreamState::Failed(reason),
            }
        }
    }

    async fn next_fragment(&mut self) -> Result<Bytes, EndReason> {
        let pdv = self.limits.apply(self.messages.next_fragment_of_message()).await?;
        if pdv.is_command {
            return Err(self.messages.break_off("the peer sent a command inside a data set").await);
        }
        if pdv.context_id != self.context_id {
            return Err(self.messages.break_off("the peer changed the presentation context inside a message").await);
        }
        if pdv.is_last {
            self.state = StreamState::Finished;
        }
        self.n_bytes += pdv.data.len() as u64;
        Ok(pdv.data)
    }

    /// Throws the rest away.
    async fn drain(&mut self) -> Result<(), EndReason> {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(StreamError(reason)) => return Err(reason),
            }
        }
    }
}

/// When the message that is being served must end.
#[derive(Clone, Copy)]
struct MessageLimits<'a> {
    deadline: Instant,
    kill: &'a CancellationToken,
}

impl MessageLimits<'_> {
    async fn apply<T>(&self, work: impl Future<Output = Result<T, EndReason>>) -> Result<T, EndReason> {
        select! {
            biased;
            result = work => result,
            reason = self.reached() => Err(reason),
        }
    }

    /// Completes when a limit is reached.
    async fn reached(&self) -> EndReason {
        select! {
            () = sleep_until(self.deadline) => EndReason::TimedOut(TimeLimit::Message),
            () = self.kill.cancelled() => EndReason::ShutDown,
        }
    }
}

/// Accepts associations on a listening socket.
pub struct Acceptor<H> {
    listener: TcpListener,
    options: AcceptorOptions,
    handler: Arc<H>,
}

impl<H: AssociationHandler> Acceptor<H> {
    /// An acceptor on a socket that the caller has bound.
    pub fn new(listener: TcpListener, mut options: AcceptorOptions, handler: Arc<H>) -> Self {
        options.max_pdu_length = options.max_pdu_length.clamp(MINIMUM_PDU_SIZE, 16 * 1024 * 1024);
        Self { listener, options, handler }
    }

    /// The address that peers call.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`; then accepts nothing more, lets every association finish its current message, and
    /// aborts what is left after the grace time.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, options, handler } = self;
        let kill = CancellationToken::new();
        // Were this future dropped, its associations must not go on without it.
        let _kill_on_drop = kill.clone().drop_guard();
        let grace = options.shutdown_grace;
        let server = Arc::new(Server {
            associations: Arc::new(Semaphore::new(options.max_associations)),
            connections: Arc::new(Semaphore::new(options.max_associations + EXTRA_CONNECTIONS)),
            options,
            handler,
            shutdown: shutdown.clone(),
            kill: kill.clone(),
        });
        let tasks = TaskTracker::new();
        let mut backoff = MIN_ACCEPT_BACKOFF;
        loop {
            let accepted = select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer_address)) => {
                    backoff = MIN_ACCEPT_BACKOFF;
                    if let Ok(permit) = Arc::clone(&server.connections).try_acquire_owned() {
                        tasks.spawn(Arc::clone(&server).serve_connection(stream, peer_address, permit));
                    } else {
                        let limit = server.options.max_associations + EXTRA_CONNECTIONS;
                        debug!(peer = %peer_address, "connection closed at once: {limit} connections are open already");
                        server.handler.unheard(peer_address, Unheard::TooMany { limit });
                    }
                }
                Err(error) => {
                    warn!("cannot accept a connection: {error}; trying again in {} ms", backoff.as_millis());
                    select! {
                        () = sleep(backoff) => {}
                        () = shutdown.cancelled() => {}
                    }
                    backoff = (backoff * 2).min(MAX_ACCEPT_BACKOFF);
                }
            }
        }
        drop(listener);
        tasks.close();
        if timeout(grace, tasks.wait()).await.is_err() {
            warn!("{} associations are still busy after {} s: aborting them", tasks.len(), grace.as_secs_f32());
            kill.cancel();
            tasks.wait().await;
        }
    }
}

/// What the connections of one acceptor share.
struct Server<H> {
    handler: Arc<H>,
    options: AcceptorOptions,
    associations: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Finish the current message.
    shutdown: CancellationToken,
    /// Stop now.
    kill: CancellationToken,
}

/// An association that has been accepted.
struct Established {
    request: AssociationRequest,
    policy: NegotiationPolicy,
    negotiated: Vec<NegotiatedContext>,
    messages: MessageLayer,
    _permit: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Counts {
    objects_stored: u64,
    objects_failed: u64,
    bytes_received: u64,
}

impl<H: AssociationHandler> Server<H> {
    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer_address: SocketAddr,
        connection_permit: OwnedSemaphorePermit,
    ) {
        let association_id = Uuid::now_v7();
        let span = info_span!(
            "association",
            id = %association_id,
            peer = %peer_address,
            calling = field::Empty,
            called = field::Empty
        );
        async {
            let established = self.establish(association_id, stream, peer_address).await;
            if let Some(established) = established {
                self.serve_association(established).await;
            }
        }
        .instrument(span)
        .await;
        drop(connection_permit);
    }

    async fn establish(
        &self,
        association_id: Uuid,
        stream: TcpStream,
        peer_address: SocketAddr,
    ) -> Option<Established> {
        let limits = PduLimits {
            max_association_bytes: self.options.max_association_request_bytes,
            max_p_data_bytes: self.options.max_pdu_length,
        };
        let artim = self.options.association_request_timeout;
        let mut layer = UpperLayer::accepted(Box::new(stream), limits, artim);
        let indication = select! {
            biased;
            indication = timeout(artim, layer.next()) => indication,
            () = self.shutdown.cancelled() => {
                layer.close().await;
                return None;
            }
        };
        let failed = |request, reason| NotEstablished { association_id, peer_address, request, reason };
        let failure = match indication {
            Ok(Indication::AssociationRequested(request)) => {
                return self.answer_request(association_id, peer_address, *request, layer).await;
            }
            Ok(Indication::UnsupportedProtocolVersion(request)) => {
                let rejection = Rejection::protocol_version_not_supported(
                    "version 1 of the DICOM upper layer protocol",
                    format!("protocol version bits {:#06x}", request.protocol_version),
                    "update the peer: every DICOM implementation speaks version 1",
                );
                let request = AssociationRequest::new(association_id, peer_address, &request);
                self.report_rejection(&request, &rejection);
                layer.close().await;
                return None;
            }
            Ok(Indication::ConnectionLost(words)) => {
                if !layer.has_partial_pdu() {
                    debug!("the peer connected and closed without a word: {words}");
                    self.handler.unheard(peer_address, Unheard::Silent);
                    return None;
                }
                failed(None, EndReason::ConnectionLost { words })
            }
            Ok(Indication::Aborted(words)) => failed(None, EndReason::AbortedByPeer { words }),
            Ok(Indication::ProtocolError(words)) => failed(None, EndReason::ProtocolError { words }),
            Ok(_) => failed(None, EndReason::protocol_error("the peer did not begin with an A-ASSOCIATE-RQ")),
            Err(_) => {
                layer.artim_expired().await;
                failed(None, EndReason::TimedOut(TimeLimit::AssociationRequest))
            }
        };
        self.report_not_established(&failure);
        layer.close().await;
        None
    }

    /// Accepts or rejects. What the peer is told is also logged and reported to the handler.
    async fn answer_request(
        &self,
        association_id: Uuid,
        peer_address: SocketAddr,
        asked: AssociationRQ,
        mut layer: UpperLayer,
    ) -> Option<Established> {
        let request = AssociationRequest::new(association_id, peer_address, &asked);
        Span::current().record("calling", field::display(&request.calling_ae_title));
        Span::current().record("called", field::display(&request.called_ae_title));
        let (policy, permit) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(rejection) => {
                self.report_rejection(&request, &rejection);
                if let Err(error) = layer.reject_association(rejection.result, rejection.reason).await {
                    debug!("the rejection cannot be sent: {error}");
                }
                layer.close().await;
                return None;
            }
        };
        let failure = match negotiate(&policy, &request.proposed_contexts) {
            Ok(negotiated) => {
                let accept = AssociationAC {
                    protocol_version: 1,
                    user_variables: user_variables(self.options.max_pdu_length, &asked.user_variables, &negotiated),
                    calling_ae_title: asked.calling_ae_title,
                    called_ae_title: asked.called_ae_title,
                    application_context_name: APPLICATION_CONTEXT_NAME.to_owned(),
                    presentation_contexts: negotiated.iter().map(NegotiatedContext::to_result).collect(),
                };
                match layer.accept_association(accept).await {
                    Ok(()) => {
                        let messages = MessageLayer::new(layer, request.implementation.max_pdu_length);
                        return Some(Established { request, policy, negotiated, messages, _permit: permit });
                    }
                    Err(error) => EndReason::from_write_error(&error),
                }
            }
            Err(error) => EndReason::protocol_error(error.to_string()),
        };
        layer.abort(AbortSource::ServiceProvider(AbortReason::InvalidPduParameter)).await;
        self.report_not_established(&NotEstablished {
            association_id,
            peer_address,
            request: Some(request),
            reason: failure,
        });
        layer.close().await;
        None
    }

    fn admit(&self, request: &AssociationRequest) -> Result<(NegotiationPolicy, OwnedSemaphorePermit), Rejection> {
        if request.application_context_name != APPLICATION_CONTEXT_NAME {
            return Err(Rejection::application_context_not_supported(
                format!("application context {APPLICATION_CONTEXT_NAME} (DICOM)"),
                format!("`{}`", request.application_context_name.escape_debug()),
                "check that the peer is a DICOM application",
            ));
        }
        let policy = self.handler.admit(request)?;
        if self.shutdown.is_cancelled() {
            return Err(Rejection::temporary_congestion(
                "a running node",
                "an association request while it shuts down",
                "try again when the node has started again",
            ));
        }
        let n_allowed = self.options.max_associations;
        let permit = Arc::clone(&self.associations).try_acquire_owned().map_err(|_| {
            Rejection::local_limit_exceeded(
                format!("at most {n_allowed} associations at once"),
                "one more",
                "try again later, let the peer reuse its associations, or raise the limit of associations",
            )
        })?;
        Ok((policy, permit))
    }

    fn report_rejection(&self, request: &AssociationRequest, rejection: &Rejection) {
        debug!(
            result = %rejection.result,
            source = rejection.source(),
            reason = %rejection.reason,
            expected = rejection.expected,
            received = rejection.received,
            remedy = rejection.remedy,
            calling = %request.calling_ae_title,
            called = %request.called_ae_title,
            implementation = %request.implementation,
            "association rejected"
        );
        self.handler.rejected(request, rejection);
    }

    fn report_not_established(&self, failure: &NotEstablished) {
        debug!("no association: {}", failure.reason);
        self.handler.not_established(failure);
    }

    async fn serve_association(&self, established: Established) {
        let Established { request, policy, negotiated, mut messages, _permit } = established;
        let n_accepted = negotiated.iter().filter(|context| context.transfer_syntax_uid().is_some()).count();
        debug!(
            implementation = %request.implementation,
            peer_max_pdu_length = request.implementation.max_pdu_length,
            "association accepted with {n_accepted} of {} presentation contexts",
            negotiated.len()
        );
        let mut association = self.handler.accepted(&request, &policy, &negotiated);
        let mut counts = Counts::default();
        let reason = self.serve_messages(&mut messages, &negotiated, &mut association, &mut counts).await;
        if reason == EndReason::Released {
            messages.layer.answer_release().await;
        } else {
            // Nothing is sent where the peer has aborted, gone, or been told already.
            messages.layer.abort(AbortSource::ServiceUser).await;
        }
        let Counts {
            objects_stored: n_objects_stored,
            objects_failed: n_objects_failed,
            bytes_received: n_bytes_received,
        } = counts;
        if matches!(reason, EndReason::Released | EndReason::ShutDown) {
            debug!(n_objects_stored, n_objects_failed, n_bytes_received, "association ended: {reason}");
        } else {
            debug!(n_objects_stored, n_objects_failed, n_bytes_received, "association ended: {reason}");
        }
        let end = AssociationEnd { reason, n_objects_stored, n_objects_failed, n_bytes_received };
        self.handler.ended(association, end);
        messages.layer.close().await;
    }

    /// Serves one message after the other until the association ends.
    async fn serve_messages(
        &self,
        messages: &mut MessageLayer,
        contexts: &[NegotiatedContext],
        association: &mut H::Association,
        counts: &mut Counts,
    ) -> EndReason {
        loop {
            let served = match self.wait_for_message(messages).await {
                Ok(()) => self.serve_message(messages, contexts, association, counts).await,
                Err(reason) => Err(reason),
            };
            if let Err(reason) = served {
                return reason;
            }
        }
    }

    async fn wait_for_message(&self, messages: &mut MessageLayer) -> Result<(), EndReason> {
        if self.shutdown.is_cancelled() {
            return Err(EndReason::ShutDown);
        }
        let idle_until = Instant::now() + self.options.idle_timeout;
        select! {
            biased;
            result = messages.wait() => return result,
            () = sleep_until(idle_until) => return Err(EndReason::TimedOut(TimeLimit::Idle)),
            () = self.shutdown.cancelled() => {}
        }
        if !messages.message_has_begun() {
            return Err(EndReason::ShutDown);
        }
        // The first PDU of a message is on its way: it counts as the current message.
        select! {
            biased;
            result = messages.wait() => result,
            () = sleep_until(idle_until) => Err(EndReason::TimedOut(TimeLimit::Idle)),
            () = self.kill.cancelled() => Err(EndReason::ShutDown),
        }
    }

    async fn serve_message(
        &self,
        messages: &mut MessageLayer,
        contexts: &[NegotiatedContext],
        association: &mut H::Association,
        counts: &mut Counts,
    ) -> Result<(), EndReason> {
        let limits = MessageLimits { deadline: Instant::now() + self.options.message_timeout, kill: &self.kill };
        let (context_id, CommandSet { command, has_data_set }) = limits.apply(messages.read_command()).await?;
        let accepted = contexts
            .iter()
            .find(|context| context.id == context_id)
            .and_then(|context| Some((context, context.transfer_syntax_uid()?)));
        let Some((context, transfer_syntax_uid)) = accepted else {
            return Err(messages
                .break_off(format!("the peer uses presentation context {context_id}, which was not accepted"))
                .await);
        };
        let state = if has_data_set { StreamState::Reading } else { StreamState::Finished };
        let mut data = DataSetStream { messages: &mut *messages, limits, context_id, state, n_bytes: 0 };
        let response = match command {
            Command::EchoRequest { message_id } => {
                data.drain().await?;
                ResponseCommand::echo(message_id)
            }
            Command::StoreRequest(command) => {
                let checked = check_store_request(&command, has_data_set, context, transfer_syntax_uid);
                let (stored, end) = match checked {
                    Ok(request) => self.run_store_handler(association, request, &mut data).await,
                    Err(failure) => (Err(failure), None),
                };
                let drained = match end {
                    // The message cannot be waited for any longer.
                    Some(EndReason::TimedOut(_) | EndReason::ShutDown) if !data.is_finished() => {
                        end.clone().map_or(Ok(()), Err)
                    }
                    _ => data.drain().await,
                };
                counts.bytes_received += data.n_bytes;
                match &stored {
                    Ok(()) if drained.is_ok() => counts.objects_stored += 1,
                    Ok(()) => counts.objects_failed += 1,
                    Err(failure) => {
                        counts.objects_failed += 1;
                        if drained.is_ok() {
                            debug!(sop_instance_uid = %command.affected_sop_instance_uid.escape_debug(), "object not stored: {failure}");
                        }
                    }
                }
                drained?;
                let (status, comment) = match stored {
                    Ok(()) => (status::SUCCESS, String::new()),
                    Err(failure) => {
                        let refused = RefusedObject {
                            affected_sop_class_uid: command.affected_sop_class_uid.clone(),
                            affected_sop_instance_uid: command.affected_sop_instance_uid.clone(),
                            transfer_syntax_uid: transfer_syntax_uid.clone(),
                            n_bytes: data.n_bytes,
                            failure,
                        };
                        self.handler.refused(association, &refused);
                        (refused.failure.status, refused.failure.comment)
                    }
                };
                let response = CommandSet::response(ResponseCommand::store(&command, status, &comment));
                let sent = messages.send_command(context_id, &response).await;
                sent.map_err(|error| EndReason::from_write_error(&error))?;
                return end.map_or(Ok(()), Err);
            }
            Command::CancelRequest => {
                data.drain().await?;
                return Ok(());
            }
            Command::UnknownRequest { command_field, message_id, affected_sop_class_uid } => {
                warn!("the peer asks for operation {command_field:#06X}, which is not offered");
                data.drain().await?;
                ResponseCommand {
                    affected_sop_class_uid: affected_sop_class_uid
                        .and_then(|uid| Uid::new(&uid).ok())
                        .map(String::from),
                    ..ResponseCommand::new(
                        command_field,
                        message_id,
                        status::UNRECOGNIZED_OPERATION,
                        "only C-ECHO and C-STORE are offered",
                    )
                }
            }
            Command::Response(_) => {
                return Err(messages.break_off("the peer sent a response to a request that we never made").await);
            }
        };
        let sent = messages.send_command(context_id, &CommandSet::response(response)).await;
        sent.map_err(|error| EndReason::from_write_error(&error))
    }

    /// The handler's answer, and the reason for which the association must end after it, if any.
    async fn run_store_handler(
        &self,
        association: &mut H::Association,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> (Result<(), StoreFailure>, Option<EndReason>) {
        let limits = data.limits;
        let outcome = select! {
            biased;
            outcome = catch_panic(self.handler.store(association, request, &mut *data)) => outcome,
            reason = async {
                let reason = limits.reached().await;
                sleep(HANDLER_CLEANUP).await;
                reason
            } => {
                error!("the store handler does not end in time and is stopped: {reason}");
                return (Err(StoreFailure::processing_failure("storing takes too long")), Some(reason));
            }
        };
        match outcome {
            Ok(Ok(())) if !data.is_finished() => {
                error!("the store handler reports success without having read the whole data set");
                (Err(StoreFailure::processing_failure("the data set was not read to its end")), None)
            }
            Ok(result) => (result, None),
            Err(Panicked) => {
                error!("the store handler panicked");
                (Err(StoreFailure::processing_failure("internal error")), Some(EndReason::HandlerFailed))
            }
        }
    }
}

impl DataSetStream<'_> {
    fn is_finished(&self) -> bool {
        matches!(self.state, StreamState::Finished)
    }
}

/// Refuses what no handler should see.
fn check_store_request(
    command: &StoreRequestCommand,
    has_data_set: bool,
    context: &NegotiatedContext,
    transfer_syntax_uid: &Uid,
) -> Result<StoreRequest, StoreFailure> {
    let affected_sop_class_uid = Uid::new(&command.affected_sop_class_uid)
        .map_err(|_| StoreFailure::new(status::MISTYPED_ARGUMENT, "Affected SOP Class UID is missing or malformed"))?;
    if affected_sop_class_uid.as_str() != context.abstract_syntax {
        return Err(StoreFailure::new(
            status::SOP_CLASS_NOT_SUPPORTED,
            "the SOP class is not the one of the presentation context",
        ));
    }
    let affected_sop_instance_uid = Uid::new(&command.affected_sop_instance_uid).map_err(|_| {
        StoreFailure::new(status::INVALID_SOP_INSTANCE, "Affected SOP Instance UID is missing or malformed")
    })?;
    if !has_data_set {
        return Err(StoreFailure::new(status::MISTYPED_ARGUMENT, "C-STORE without a data set"));
    }
    Ok(StoreRequest {
        message_id: command.message_id,
        context_id: context.id,
        transfer_syntax_uid: transfer_syntax_uid.clone(),
        affected_sop_class_uid,
        affected_sop_instance_uid,
        priority: command.priority,
        move_originator: command.move_originator.clone(),
    })
}

/// The future panicked; the panic hook has reported it.
struct Panicked;

/// Runs `future` to its end or to its panic, after which it is not polled again.
async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(Err(Panicked)),
    })
    .await
}
