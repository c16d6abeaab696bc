//! The association acceptor: listens, admits, and serves C-ECHO, C-STORE and Storage Commitment until the peer is
//! done.
//!
//! Start at [`Acceptor`]. What an association may do and what happens to its objects is decided by an
//! [`AssociationHandler`]. The acceptor sees to the rest: limits in number, length and time, exactly one final
//! response to each request, and an orderly shutdown.

use std::{
    borrow::Cow,
    fmt, io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use dicom_ul::pdu::{AssociationAC, AssociationRQ, MINIMUM_PDU_SIZE};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, Span, debug, error, field, info_span, warn};
use uuid::Uuid;

use super::{
    APPLICATION_CONTEXT_NAME,
    command::{
        C_FIND_RQ, Command, CommandSet, MoveOriginator, N_ACTION_RQ, N_EVENT_REPORT_RQ, Priority, ResponseCommand,
        StoreRequestCommand, operation_name,
    },
    commitment::{
        COMMITMENT, MAX_LIST_BYTES, check_action, check_event_report, decode_report, decode_request, report_message,
    },
    data_set::Encoding,
    message::{EndReason, MessageLayer, TimeLimit},
    negotiation::{
        Admission, NegotiatedContext, NegotiationPolicy, PeerImplementation, ProposedContext, UserIdentity, negotiate,
        user_variables,
    },
    open_associations::{OpenAssociations, Outgoing, Registered},
    own_thread,
    pdu_io::PduLimits,
    quota::{Quota, Quotas, Share},
    refusal::{Refusal, ServiceFailure},
    rejection::{AbortReason, AbortSource, Rejection},
    status,
    tls::{self, AcceptError, Security, TlsRefusal, TlsServer},
    upper_layer::{Indication, UpperLayer},
};
use crate::types::{AeTitle, CommitmentReport, CommitmentRequest, Uid};

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
    /// Connections open at once from one address; one more is closed at once. `None` means half of all that the
    /// acceptor holds.
    pub max_connections_per_address: Option<usize>,
    /// Longest P-DATA-TF that we accept and announce, in bytes; held between 1018 and 16 MiB.
    pub max_pdu_length: u32,
    /// Longest A-ASSOCIATE-RQ that we read, in bytes. 128 contexts of 45 transfer syntaxes have about 160 KB.
    pub max_association_request_bytes: u32,
    /// Total time from the connection over the TLS handshake to its whole A-ASSOCIATE-RQ (ARTIM), and for one write to the peer.
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
            max_connections_per_address: None,
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
    /// Who the peer says its user is.
    pub user_identity: Option<UserIdentity>,
    /// How it came.
    pub security: Security,
}

impl AssociationRequest {
    fn new(association_id: Uuid, peer_address: SocketAddr, security: Security, request: &AssociationRQ) -> Self {
        Self {
            association_id,
            peer_address,
            calling_ae_title: RequestedTitle::new(&request.calling_ae_title),
            called_ae_title: RequestedTitle::new(&request.called_ae_title),
            application_context_name: request.application_context_name.clone(),
            implementation: PeerImplementation::from_user_variables(&request.user_variables),
            proposed_contexts: request.presentation_contexts.iter().cloned().map(ProposedContext::from).collect(),
            user_identity: UserIdentity::from_user_variables(&request.user_variables),
            security,
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
    /// Where it ended.
    pub step: FailedStep,
    /// Why it ended.
    pub reason: EndReason,
    /// What would have been right.
    pub expected: String,
    /// What somebody can do about it.
    pub remedy: String,
}

/// The step to an association that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedStep {
    /// The TLS handshake, or the lack of one.
    Tls,
    /// The association request.
    Request,
}

impl NotEstablished {
    fn new(
        association_id: Uuid,
        peer_address: SocketAddr,
        request: Option<AssociationRequest>,
        reason: EndReason,
    ) -> Self {
        Self {
            association_id,
            peer_address,
            request,
            step: FailedStep::Request,
            reason,
            expected: "a complete association request".to_owned(),
            remedy: "look at the peer's own log: what it sent is no complete association request (PS3.8 section 9.3.2)"
                .to_owned(),
        }
    }

    fn tls(association_id: Uuid, peer_address: SocketAddr, refusal: TlsRefusal) -> Self {
        Self {
            association_id,
            peer_address,
            request: None,
            step: FailedStep::Tls,
            reason: EndReason::protocol_error(refusal.received),
            expected: refusal.expected,
            remedy: refusal.remedy,
        }
    }
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

/// Why an object is not stored.
pub type StoreFailure = ServiceFailure;

/// A C-STORE request that was answered with a failure, or cut off by a limit or rule of ours.
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
    /// What was answered, or would have been.
    pub failure: StoreFailure,
    /// Whether the peer got the answer: not when the association had to end before.
    pub answered: bool,
}

/// A request other than C-STORE that was answered with a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedOperation {
    /// Such as `N-ACTION`.
    pub operation: Cow<'static, str>,
    /// Affected or Requested SOP Class UID as sent, possibly malformed; empty when there was none.
    pub sop_class_uid: String,
    /// What was answered.
    pub failure: ServiceFailure,
}

/// Why a connection is not heard at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unheard {
    /// It closed without a word: a port probe.
    Silent,
    /// As many connections are open as may be.
    TooMany {
        /// Which limit that is, in words.
        limit: String,
    },
}

/// The data set will not be complete; the association has ended for this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the data set is incomplete: {0}")]
pub struct StreamError(pub EndReason);

/// A handler that reads no further has no one to answer to: the status is lost with the association.
impl From<StreamError> for ServiceFailure {
    fn from(error: StreamError) -> Self {
        Self::processing_failure(error.to_string())
    }
}

/// What the acceptor asks of the application.
///
/// Each connection has a thread and a runtime of its own, which end with it: a handler may block, and must hand work on
/// sockets that outlive the connection, such as those of a pool, to the runtime where they belong.
pub trait AssociationHandler: Send + Sync + 'static {
    /// State of one association, made on acceptance.
    type Association: Send;

    /// Whether the peer may associate with us, and with what. Called before the limits on associations are applied.
    fn admit(&self, request: &AssociationRequest) -> impl Future<Output = Result<Admission, Rejection>> + Send;

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

    /// Promises to compare this list with what is stored and to report (PS3.4 section J.3.2). `Ok` is answered with
    /// Success, so the request must be durable by then. The report goes out on [`OpenAssociations`] or on an
    /// association of its own. The same time limit holds as for [`AssociationHandler::store`].
    fn commit(
        &self,
        _association: &mut Self::Association,
        _request: CommitmentRequest,
    ) -> impl Future<Output = Result<(), ServiceFailure>> + Send {
        std::future::ready(Err(Refusal::NotOffered.into()))
    }

    /// Takes a peer's report on what we asked it to keep (PS3.4 section J.3.3). `Ok` is answered with Success, so the
    /// report must be durable by then.
    fn commitment_reported(
        &self,
        _association: &mut Self::Association,
        _report: CommitmentReport,
    ) -> impl Future<Output = Result<(), ServiceFailure>> + Send {
        std::future::ready(Err(Refusal::NotOffered.into()))
    }
    /// A C-STORE request is answered with a failure: by [`AssociationHandler::store`], or because it could not be
    /// handed to it; or we end the association before there is an answer, because of a time limit or a violation of the
    /// protocol. Not called when the peer leaves or the node stops.
    fn refused(&self, _association: &Self::Association, _refused: &RefusedObject) {}

    /// Another request is answered with a failure: by the handler, or because it could not be handed to it.
    fn operation_refused(&self, _association: &Self::Association, _refused: &RefusedOperation) {}

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
    /// The sender is faster than it may be: nothing is read until then.
    paused_until: Option<Instant>,
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
        if let Some(until) = self.paused_until {
            // The wait is ours, not the peer's: only the end of the node cuts it short.
            select! {
                () = sleep_until(until) => self.paused_until = None,
                () = self.limits.kill.cancelled() => return Err(EndReason::ShutDown),
            }
        }
        let pdv = self.limits.apply(self.messages.next_data_fragment(self.context_id)).await?;
        if pdv.is_last {
            self.state = StreamState::Finished;
        }
        self.n_bytes += pdv.data.len() as u64;
        let now = Instant::now();
        let pause = self.messages.pace.pause_after(pdv.data.len(), now);
        if !pause.is_zero() {
            self.paused_until = Some(now + pause);
            self.limits.deadline.extend(pause);
        }
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

/// When the message that is being served must end. It is moved on by our own pauses, for everybody who waits for it.
struct Deadline(Mutex<Instant>);

impl Deadline {
    fn after(time: Duration) -> Self {
        Self(Mutex::new(Instant::now() + time))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Instant) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn extend(&self, pause: Duration) {
        self.with(|deadline| *deadline += pause);
    }

    async fn passed(&self) {
        loop {
            let deadline = self.with(|deadline| *deadline);
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// What ends the message that is being served.
#[derive(Clone, Copy)]
struct MessageLimits<'a> {
    deadline: &'a Deadline,
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
            () = self.deadline.passed() => EndReason::TimedOut(TimeLimit::Message),
            () = self.kill.cancelled() => EndReason::ShutDown,
        }
    }
}

/// Accepts associations on a listening socket.
pub struct Acceptor<H> {
    listener: TcpListener,
    tls: Option<(TcpListener, TlsServer)>,
    options: AcceptorOptions,
    handler: Arc<H>,
    open_associations: OpenAssociations,
}

impl<H: AssociationHandler> Acceptor<H> {
    /// An acceptor on a socket that the caller has bound.
    pub fn new(listener: TcpListener, mut options: AcceptorOptions, handler: Arc<H>) -> Self {
        options.max_pdu_length = options.max_pdu_length.clamp(MINIMUM_PDU_SIZE, 16 * 1024 * 1024);
        Self { listener, tls: None, options, handler, open_associations: OpenAssociations::default() }
    }

    /// Listens for TLS on a further socket. Both share the limits.
    #[must_use]
    pub fn with_tls(mut self, listener: TcpListener, server: TlsServer) -> Self {
        self.tls = Some((listener, server));
        self
    }

    /// The way to report to peers on the associations that they have opened.
    pub fn open_associations(&self) -> OpenAssociations {
        self.open_associations.clone()
    }

    /// The address that peers call.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`; then accepts nothing more, lets every association finish its current message, and
    /// aborts what is left after the grace time.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, tls, options, handler, open_associations } = self;
        let kill = CancellationToken::new();
        // Were this future dropped, its associations must not go on without it.
        let _kill_on_drop = kill.clone().drop_guard();
        let grace = options.shutdown_grace;
        let max_connections = options.max_associations + EXTRA_CONNECTIONS;
        let server = Arc::new(Server {
            associations: Arc::new(Semaphore::new(options.max_associations)),
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections_per_address: options.max_connections_per_address.unwrap_or(max_connections / 2),
            addresses: Arc::default(),
            quotas: Arc::default(),
            options,
            handler,
            open_associations,
            shutdown: shutdown.clone(),
            kill: kill.clone(),
        });
        let tasks = TaskTracker::new();
        let over_tls = async {
            if let Some((listener, tls)) = tls {
                server.accept_all(listener, Some(tls), &tasks).await;
            }
        };
        tokio::join!(server.accept_all(listener, None, &tasks), over_tls);
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
    open_associations: OpenAssociations,
    associations: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    max_connections_per_address: usize,
    /// Connections by address.
    addresses: Arc<Quotas>,
    /// Associations by what the handler counts them as.
    quotas: Arc<Quotas>,
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
    _places: Places,
}

/// What an association holds of the limits; given back when it is dropped.
struct Places {
    share: Share,
    _permit: OwnedSemaphorePermit,
}

/// What a connection holds of the limits.
struct ConnectionPlaces {
    _share: Share,
    _permit: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Counts {
    objects_stored: u64,
    objects_failed: u64,
    bytes_received: u64,
}

impl<H: AssociationHandler> Server<H> {
    /// Accepts connections until the shutdown.
    async fn accept_all(self: &Arc<Self>, listener: TcpListener, tls: Option<TlsServer>, tasks: &TaskTracker) {
        let mut backoff = MIN_ACCEPT_BACKOFF;
        loop {
            let accepted = select! {
                biased;
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer_address)) => {
                    backoff = MIN_ACCEPT_BACKOFF;
                    if let Err(limit) = self.serve_on_own_thread(stream, tls.clone(), peer_address, tasks) {
                        debug!(peer = %peer_address, "connection closed at once: {limit}");
                        self.handler.unheard(peer_address, Unheard::TooMany { limit });
                    }
                }
                Err(error) => {
                    warn!("cannot accept a connection: {error}; trying again in {} ms", backoff.as_millis());
                    select! {
                        () = sleep(backoff) => {}
                        () = self.shutdown.cancelled() => {}
                    }
                    backoff = (backoff * 2).min(MAX_ACCEPT_BACKOFF);
                }
            }
        }
    }

    /// Serves a connection if there is room for it; otherwise returns the limit in words.
    fn serve_on_own_thread(
        self: &Arc<Self>,
        stream: TcpStream,
        tls: Option<TlsServer>,
        peer_address: SocketAddr,
        tasks: &TaskTracker,
    ) -> Result<(), String> {
        let places = self.connection_places(peer_address)?;
        // The socket leaves the runtime that has accepted it.
        let stream = stream.into_std().map_err(|error| format!("the socket cannot be handed on: {error}"))?;
        let server = Arc::clone(self);
        own_thread::spawn(tasks, move || async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => server.serve_connection(stream, tls, peer_address, places).await,
                Err(error) => error!(%error, "a connection is closed: it cannot be served"),
            }
        })
        .map_err(|error| format!("this machine has no thread for it: {error}"))
    }

    /// Room for one more connection from this address, or the limit in words.
    fn connection_places(&self, peer_address: SocketAddr) -> Result<ConnectionPlaces, String> {
        let address = peer_address.ip().to_canonical();
        let limit = self.max_connections_per_address;
        let quota = Quota {
            subject: address.to_string(),
            max_associations: Some(u32::try_from(limit).unwrap_or(u32::MAX)),
            max_associations_per_minute: None,
            max_bytes_per_second: None,
        };
        let share = self.addresses.take(&[quota], Instant::now()).map_err(|_| {
            format!("{limit} connections from {address} are open already (dicom.max_connections_per_address)")
        })?;
        let permit = Arc::clone(&self.connections).try_acquire_owned().map_err(|_| {
            let n_open = self.options.max_associations + EXTRA_CONNECTIONS;
            format!("{n_open} connections are open already (dicom.max_associations and 32 more)")
        })?;
        Ok(ConnectionPlaces { _share: share, _permit: permit })
    }

    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        tls: Option<TlsServer>,
        peer_address: SocketAddr,
        places: ConnectionPlaces,
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
            let established = self.establish(association_id, stream, tls, peer_address).await;
            if let Some(established) = established {
                self.serve_association(established).await;
            }
        }
        .instrument(span)
        .await;
        drop(places);
    }

    async fn establish(
        &self,
        association_id: Uuid,
        stream: TcpStream,
        tls: Option<TlsServer>,
        peer_address: SocketAddr,
    ) -> Option<Established> {
        let artim = self.options.association_request_timeout;
        let deadline = Instant::now() + artim;
        let secured = select! {
            biased;
            secured = timeout_at(deadline, tls::accept(stream, tls.as_ref())) => secured,
            () = self.shutdown.cancelled() => return None,
        };
        let failed = |request, reason| NotEstablished::new(association_id, peer_address, request, reason);
        let timed_out = || failed(None, EndReason::TimedOut(TimeLimit::AssociationRequest));
        let (transport, security) = match secured {
            Ok(Ok(secured)) => secured,
            Ok(Err(AcceptError::Closed)) => {
                debug!("the peer connected and closed without a word");
                self.handler.unheard(peer_address, Unheard::Silent);
                return None;
            }
            Ok(Err(AcceptError::Refused(refusal))) => {
                self.report_not_established(&NotEstablished::tls(association_id, peer_address, refusal));
                return None;
            }
            Err(_) => {
                self.report_not_established(&timed_out());
                return None;
            }
        };
        let limits = PduLimits {
            max_association_bytes: self.options.max_association_request_bytes,
            max_p_data_bytes: self.options.max_pdu_length,
        };
        let mut layer = UpperLayer::accepted(transport, limits, artim);
        let indication = select! {
            biased;
            indication = timeout_at(deadline, layer.next()) => indication,
            () = self.shutdown.cancelled() => {
                layer.close().await;
                return None;
            }
        };
        let failure = match indication {
            Ok(Indication::AssociationRequested(request)) => {
                return self.answer_request(association_id, peer_address, security, *request, layer).await;
            }
            Ok(Indication::UnsupportedProtocolVersion(request)) => {
                let rejection = Rejection::protocol_version_not_supported(
                    "version 1 of the DICOM upper layer protocol",
                    format!("protocol version bits {:#06x}", request.protocol_version),
                    "update the peer: every DICOM implementation speaks version 1",
                );
                let request = AssociationRequest::new(association_id, peer_address, security, &request);
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
                timed_out()
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
        security: Security,
        asked: AssociationRQ,
        mut layer: UpperLayer,
    ) -> Option<Established> {
        let request = AssociationRequest::new(association_id, peer_address, security, &asked);
        Span::current().record("calling", field::display(&request.calling_ae_title));
        Span::current().record("called", field::display(&request.called_ae_title));
        let (admission, places) = match self.admit(&request).await {
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
        let failure = match negotiate(&admission.contexts, &request.proposed_contexts) {
            Ok(negotiated) => {
                let own_limit = self.options.max_pdu_length;
                let max_pdu_length =
                    admission.max_pdu_length.map_or(own_limit, |length| length.clamp(MINIMUM_PDU_SIZE, own_limit));
                layer.limit_p_data(max_pdu_length);
                let mut user_variables = user_variables(max_pdu_length, &asked.user_variables, &negotiated);
                let wants_response =
                    request.user_identity.as_ref().is_some_and(|identity| identity.positive_response_requested);
                if admission.identity_accepted && wants_response {
                    user_variables.push(UserIdentity::positive_response());
                }
                let accept = AssociationAC {
                    protocol_version: 1,
                    user_variables,
                    calling_ae_title: asked.calling_ae_title,
                    called_ae_title: asked.called_ae_title,
                    application_context_name: APPLICATION_CONTEXT_NAME.to_owned(),
                    presentation_contexts: negotiated.iter().map(NegotiatedContext::to_result).collect(),
                };
                match layer.accept_association(accept).await {
                    Ok(()) => {
                        let mut messages = MessageLayer::new(layer, request.implementation.max_pdu_length);
                        messages.pace = places.share.pace();
                        return Some(Established {
                            request,
                            policy: admission.contexts,
                            negotiated,
                            messages,
                            _places: places,
                        });
                    }
                    Err(error) => EndReason::from_write_error(&error),
                }
            }
            Err(error) => EndReason::protocol_error(error.to_string()),
        };
        layer.abort(AbortSource::ServiceProvider(AbortReason::InvalidPduParameter)).await;
        self.report_not_established(&NotEstablished::new(association_id, peer_address, Some(request), failure));
        layer.close().await;
        None
    }

    async fn admit(&self, request: &AssociationRequest) -> Result<(Admission, Places), Rejection> {
        if request.application_context_name != APPLICATION_CONTEXT_NAME {
            return Err(Rejection::application_context_not_supported(
                format!("application context {APPLICATION_CONTEXT_NAME} (DICOM)"),
                format!("`{}`", request.application_context_name.escape_debug()),
                "check that the peer is a DICOM application",
            ));
        }
        let admission = self.handler.admit(request).await?;
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
        let share = self.quotas.take(&admission.quotas, Instant::now())?;
        Ok((admission, Places { share, _permit: permit }))
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
        let Established { request, policy, negotiated, mut messages, _places } = established;
        let n_accepted = negotiated.iter().filter(|context| context.transfer_syntax_uid().is_some()).count();
        debug!(
            implementation = %request.implementation,
            peer_max_pdu_length = request.implementation.max_pdu_length,
            "association accepted with {n_accepted} of {} presentation contexts",
            negotiated.len()
        );
        // Before the handler hears of the association: whoever it tells may report on it at once.
        let mut reports = Reports::new(&self.open_associations, request.association_id, &negotiated);
        let mut association = self.handler.accepted(&request, &policy, &negotiated);
        let mut counts = Counts::default();
        let reason = self.serve_messages(&mut messages, &negotiated, &mut association, &mut counts, &mut reports).await;
        drop(reports);
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
        reports: &mut Option<Reports>,
    ) -> EndReason {
        loop {
            let served = match self.wait_for_message(messages, reports.as_mut()).await {
                Ok(Turn::Peer) => self.serve_message(messages, contexts, association, counts, reports.as_mut()).await,
                Ok(Turn::Ours(outgoing)) => match reports {
                    Some(reports) => reports.send(messages, outgoing).await,
                    None => Ok(()),
                },
                Err(reason) => Err(reason),
            };
            if let Err(reason) = served {
                return reason;
            }
        }
    }

    async fn wait_for_message(
        &self,
        messages: &mut MessageLayer,
        reports: Option<&mut Reports>,
    ) -> Result<Turn, EndReason> {
        if self.shutdown.is_cancelled() {
            return Err(EndReason::ShutDown);
        }
        let idle_until = Instant::now() + self.options.idle_timeout;
        select! {
            biased;
            result = messages.wait() => return result.map(|()| Turn::Peer),
            () = sleep_until(idle_until) => return Err(EndReason::TimedOut(TimeLimit::Idle)),
            () = self.shutdown.cancelled() => {}
            outgoing = next_report(reports) => return Ok(Turn::Ours(outgoing)),
        }
        if !messages.message_has_begun() {
            return Err(EndReason::ShutDown);
        }
        // The first PDU of a message is on its way: it counts as the current message.
        select! {
            biased;
            result = messages.wait() => result.map(|()| Turn::Peer),
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
        reports: Option<&mut Reports>,
    ) -> Result<(), EndReason> {
        let deadline = Deadline::after(self.options.message_timeout);
        let limits = MessageLimits { deadline: &deadline, kill: &self.kill };
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
        let mut data =
            DataSetStream { messages: &mut *messages, limits, context_id, state, n_bytes: 0, paused_until: None };
        let response = match command {
            Command::EchoRequest { message_id } => {
                data.drain().await?;
                ResponseCommand::echo(message_id)
            }
            Command::StoreRequest(command) => {
                let checked = check_store_request(&command, has_data_set, context, transfer_syntax_uid);
                let (stored, end) = match checked {
                    Ok(request) => self.run_store_handler(association, request, &mut data).await,
                    Err(refusal) => (Err(refusal.into()), None),
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
                let refused = |failure, answered| RefusedObject {
                    affected_sop_class_uid: command.affected_sop_class_uid.clone(),
                    affected_sop_instance_uid: command.affected_sop_instance_uid.clone(),
                    transfer_syntax_uid: transfer_syntax_uid.clone(),
                    n_bytes: data.n_bytes,
                    failure,
                    answered,
                };
                if let Err(reason) = drained {
                    if let Some(failure) = cut_off(&reason) {
                        self.handler.refused(association, &refused(failure, false));
                    }
                    return Err(reason);
                }
                let (status, comment) = match stored {
                    Ok(()) => (status::SUCCESS, String::new()),
                    Err(failure) => {
                        let refused = refused(failure, true);
                        self.handler.refused(association, &refused);
                        (refused.failure.status, refused.failure.comment)
                    }
                };
                let response = CommandSet::response(ResponseCommand::store(&command, status, &comment));
                let sent = messages.send_command(context_id, &response).await;
                sent.map_err(|error| EndReason::from_write_error(&error))?;
                return end.map_or(Ok(()), Err);
            }
            Command::CancelRequest { .. } => {
                data.drain().await?;
                return Ok(());
            }
            Command::ActionRequest(command) => {
                let checked = check_action(&command, has_data_set, &context.abstract_syntax);
                let list = data.list(checked, transfer_syntax_uid, decode_request).await?;
                let (kept, end) = run(limits, list, |request| self.handler.commit(association, request)).await;
                let (status, comment) = self.answer(association, N_ACTION_RQ, &command.requested_sop_class_uid, kept);
                let response = CommandSet::response(ResponseCommand::action(&command, status, &comment));
                let sent = messages.send_command(context_id, &response).await;
                sent.map_err(|error| EndReason::from_write_error(&error))?;
                return end.map_or(Ok(()), Err);
            }
            Command::EventReportRequest(command) => {
                let checked = check_event_report(&command, has_data_set, &context.abstract_syntax);
                let list = data.list(checked, transfer_syntax_uid, decode_report).await?;
                let (kept, end) =
                    run(limits, list, |report| self.handler.commitment_reported(association, report)).await;
                let class = &command.affected_sop_class_uid;
                let (status, comment) = self.answer(association, N_EVENT_REPORT_RQ, class, kept);
                let response = CommandSet::response(ResponseCommand::event_report(&command, status, &comment));
                let sent = messages.send_command(context_id, &response).await;
                sent.map_err(|error| EndReason::from_write_error(&error))?;
                return end.map_or(Ok(()), Err);
            }
            Command::FindRequest { message_id, affected_sop_class_uid } => {
                data.drain().await?;
                self.unrecognized(association, C_FIND_RQ, message_id, Some(&affected_sop_class_uid))
            }
            Command::UnknownRequest { command_field, message_id, affected_sop_class_uid } => {
                data.drain().await?;
                self.unrecognized(association, command_field, message_id, affected_sop_class_uid.as_deref())
            }
            Command::Response(response) => {
                data.drain().await?;
                if reports.is_some_and(|reports| reports.answered(&response)) {
                    return Ok(());
                }
                return Err(messages.break_off("the peer sent a response to a request that we never made").await);
            }
        };
        let sent = messages.send_command(context_id, &CommandSet::response(response)).await;
        sent.map_err(|error| EndReason::from_write_error(&error))
    }

    /// The response to an operation that is not offered.
    fn unrecognized(
        &self,
        association: &H::Association,
        request_field: u16,
        message_id: u16,
        sop_class_uid: Option<&str>,
    ) -> ResponseCommand {
        let refused = Err(Refusal::NotOffered.into());
        let (status, comment) = self.answer(association, request_field, sop_class_uid.unwrap_or_default(), refused);
        ResponseCommand::unrecognized(request_field, message_id, sop_class_uid, status, &comment)
    }

    /// Status and Error Comment; the handler hears of a failure.
    fn answer(
        &self,
        association: &H::Association,
        request_field: u16,
        sop_class_uid: &str,
        outcome: Result<(), ServiceFailure>,
    ) -> (u16, String) {
        let Err(failure) = outcome else { return (status::SUCCESS, String::new()) };
        let sop_class_uid = sop_class_uid.to_owned();
        let refused = RefusedOperation { operation: operation_name(request_field), sop_class_uid, failure };
        self.handler.operation_refused(association, &refused);
        (refused.failure.status, refused.failure.comment)
    }

    /// The handler's answer, and the reason for which the association must end after it, if any.
    async fn run_store_handler(
        &self,
        association: &mut H::Association,
        request: StoreRequest,
        data: &mut DataSetStream<'_>,
    ) -> (Result<(), ServiceFailure>, Option<EndReason>) {
        let (stored, end) = guarded(data.limits, self.handler.store(association, request, &mut *data)).await;
        if stored.is_ok() && !data.is_finished() {
            error!("the store handler reports success without having read the whole data set");
            return (Err(Refusal::NotRead.into()), end);
        }
        (stored, end)
    }
}

/// Why we end an association in the middle of an object; `None` when it is not us who end it for the object's sake.
fn cut_off(reason: &EndReason) -> Option<ServiceFailure> {
    let remedy = match reason {
        EndReason::TimedOut(_) => {
            "look at the network and the sender, or raise message_timeout_seconds in section [dicom] of hilum.toml"
        }
        EndReason::ProtocolError { .. } => "report it to the sender's vendor",
        EndReason::Released
        | EndReason::AbortedByPeer { .. }
        | EndReason::ConnectionLost { .. }
        | EndReason::ShutDown
        | EndReason::HandlerFailed => return None,
    };
    Some(ServiceFailure::processing_failure(reason.to_string()).with_remedy(remedy))
}

/// Whose turn it is to send.
enum Turn {
    /// The first fragment of a message of the peer is there.
    Peer,
    /// A report is to be sent.
    Ours(Outgoing),
}

/// The reports that we send on an association of a peer: one at a time, as we announce no asynchronous operations.
struct Reports {
    registered: Registered,
    context_id: u8,
    encoding: Encoding,
    last_message_id: u16,
    /// Message id of the report that has been sent, and who waits for its answer.
    outstanding: Option<(u16, Outgoing)>,
}

impl Reports {
    /// `None` when Storage Commitment was not accepted.
    fn new(open: &OpenAssociations, association_id: Uuid, contexts: &[NegotiatedContext]) -> Option<Self> {
        let (context_id, encoding) = contexts.iter().find_map(|context| {
            let encoding = Encoding::of(context.transfer_syntax_uid()?.as_str())?;
            (context.abstract_syntax == COMMITMENT).then_some((context.id, encoding))
        })?;
        let registered = open.register(association_id);
        Some(Self { registered, context_id, encoding, last_message_id: 0, outstanding: None })
    }

    async fn send(&mut self, messages: &mut MessageLayer, outgoing: Outgoing) -> Result<(), EndReason> {
        if outgoing.answer.is_closed() {
            // Who has lost patience reports in another way: the peer must not hear it twice.
            return Ok(());
        }
        self.last_message_id = self.last_message_id.checked_add(1).unwrap_or(1);
        let (command, data_set) = match report_message(&outgoing.report, self.last_message_id, self.encoding) {
            Ok(message) => message,
            Err(problem) => {
                error!("a Storage Commitment report cannot be encoded: {problem}");
                return Ok(());
            }
        };
        let sent = messages.send_message(self.context_id, &command, &data_set).await;
        sent.map_err(|error| EndReason::from_write_error(&error))?;
        self.outstanding = Some((self.last_message_id, outgoing));
        Ok(())
    }

    /// Hands a response on to who waits for it; false when nobody does.
    fn answered(&mut self, response: &ResponseCommand) -> bool {
        match self.outstanding.take_if(|(id, _)| *id == response.responds_to && response.is_event_report()) {
            None => false,
            Some((_, outgoing)) => {
                // Who has lost patience has other ways to report.
                let _ = outgoing.answer.send(response.clone().into());
                true
            }
        }
    }
}

/// The next report to send; waits for ever while one is unanswered. Cancel safety: cancel-safe.
async fn next_report(reports: Option<&mut Reports>) -> Outgoing {
    match reports {
        Some(reports) if reports.outstanding.is_none() => reports.registered.next().await,
        _ => std::future::pending().await,
    }
}

/// Runs a handler on what was understood, or refuses.
async fn run<T, F: Future<Output = Result<(), ServiceFailure>>>(
    limits: MessageLimits<'_>,
    understood: Result<T, Refusal>,
    handler: impl FnOnce(T) -> F,
) -> (Result<(), ServiceFailure>, Option<EndReason>) {
    match understood {
        Ok(argument) => guarded(limits, handler(argument)).await,
        Err(refusal) => (Err(refusal.into()), None),
    }
}

/// A handler's answer, and the reason for which the association must end after it, if any: a handler that panics or
/// does not end in time is answered for.
async fn guarded(
    limits: MessageLimits<'_>,
    handler: impl Future<Output = Result<(), ServiceFailure>>,
) -> (Result<(), ServiceFailure>, Option<EndReason>) {
    let outcome = select! {
        biased;
        outcome = catch_panic(handler) => outcome,
        reason = async {
            let reason = limits.reached().await;
            sleep(HANDLER_CLEANUP).await;
            reason
        } => {
            error!("a handler does not end in time and is stopped: {reason}");
            return (Err(Refusal::TooSlow.into()), Some(reason));
        }
    };
    if let Ok(answer) = outcome {
        return (answer, None);
    }
    error!("a handler panicked");
    (Err(Refusal::Panicked.into()), Some(EndReason::HandlerFailed))
}

impl DataSetStream<'_> {
    fn is_finished(&self) -> bool {
        matches!(self.state, StreamState::Finished)
    }

    /// The list that the data set holds, where the command has passed its check; what was refused is read over.
    async fn list<T>(
        &mut self,
        checked: Result<(), Refusal>,
        transfer_syntax_uid: &Uid,
        decode: impl FnOnce(Option<&[u8]>, Encoding) -> Result<T, Refusal>,
    ) -> Result<Result<T, Refusal>, EndReason> {
        let mut bytes = Some(Vec::new());
        while let Some(fragment) = self.next().await.map_err(|StreamError(reason)| reason)? {
            bytes = bytes.filter(|bytes| checked.is_ok() && bytes.len() + fragment.len() <= MAX_LIST_BYTES);
            if let Some(bytes) = &mut bytes {
                bytes.extend_from_slice(&fragment);
            }
        }
        let encoding = Encoding::of(transfer_syntax_uid.as_str()).ok_or(Refusal::NoSuchSopClass);
        Ok(checked.and(encoding).and_then(|encoding| decode(bytes.as_deref(), encoding)))
    }
}

/// Refuses what no handler should see.
fn check_store_request(
    command: &StoreRequestCommand,
    has_data_set: bool,
    context: &NegotiatedContext,
    transfer_syntax_uid: &Uid,
) -> Result<StoreRequest, Refusal> {
    let affected_sop_class_uid = Uid::new(&command.affected_sop_class_uid).map_err(|_| Refusal::SopClassMissing)?;
    if affected_sop_class_uid.as_str() != context.abstract_syntax {
        return Err(Refusal::SopClassNotOfContext);
    }
    let affected_sop_instance_uid =
        Uid::new(&command.affected_sop_instance_uid).map_err(|_| Refusal::SopInstanceMissing)?;
    if !has_data_set {
        return Err(Refusal::DataSetMissing);
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
