//! Drives the state machine of `state` over the PDUs of `pdu_io`: performs the actions of PS3.8 tables 9-6 to 9-9
//! and tells the layer above what happened.
//!
//! The layer above owns the clocks (ARTIM and the others): it wraps the calls into timeouts and reports an expiry
//! with [`UpperLayer::artim_expired`] or an abort.

use std::{io, time::Duration};

use dicom_ul::pdu::{AssociationAC, AssociationRQ};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

use super::{
    pdu_io::{Pdu, PduLimits, PduStream, Pdv, ReceiveError, Transport, max_fragment_bytes},
    rejection::{AbortReason, AbortSource, RejectReason, RejectResult, abort_words},
    state::{Action, Event, Role, State, StateMachine},
};

/// How long we wait for the peer to close the connection after a PDU that ends the association, so that the PDU
/// is not lost in a TCP reset.
const LINGER: Duration = Duration::from_secs(2);

/// Data is written when so many bytes are queued.
const WRITE_CHUNK_BYTES: usize = 64 * 1024;

/// What happened on the association.
#[derive(Debug)]
pub(crate) enum Indication {
    /// A peer asks for an association.
    AssociationRequested(Box<AssociationRQ>),
    /// A peer asks in a protocol version that we do not speak; it has been rejected.
    UnsupportedProtocolVersion(Box<AssociationRQ>),
    /// The peer accepts ours.
    AssociationAccepted(Box<AssociationAC>),
    /// The peer rejects ours.
    AssociationRejected { result: RejectResult, reason: RejectReason },
    /// Fragments arrived.
    Data(Vec<Pdv>),
    /// The peer asks for release.
    ReleaseRequested,
    /// The peer confirms our release.
    Released,
    /// The peer aborted, in words.
    Aborted(String),
    /// The connection is gone, in words.
    ConnectionLost(String),
    /// The peer broke the protocol, in words; it has been told by A-ABORT.
    ProtocolError(String),
}

/// One association as the upper layer service sees it.
pub(crate) struct UpperLayer {
    pdus: PduStream,
    machine: StateMachine,
    /// Longest time for one write to make progress.
    write_timeout: Duration,
}

impl UpperLayer {
    /// A peer has connected: we await its A-ASSOCIATE-RQ (`Sta2`).
    pub(crate) fn accepted(transport: Box<dyn Transport>, limits: PduLimits, write_timeout: Duration) -> Self {
        let mut layer = Self::new(transport, limits, write_timeout, Role::Acceptor);
        layer.advance(Event::Evt5);
        layer
    }

    /// We have connected: the A-ASSOCIATE-RQ comes next (`Sta4`).
    pub(crate) fn connected(transport: Box<dyn Transport>, limits: PduLimits, write_timeout: Duration) -> Self {
        let mut layer = Self::new(transport, limits, write_timeout, Role::Requestor);
        layer.advance(Event::Evt1);
        layer
    }

    fn new(transport: Box<dyn Transport>, limits: PduLimits, write_timeout: Duration, role: Role) -> Self {
        Self { pdus: PduStream::new(transport, limits), machine: StateMachine::new(role), write_timeout }
    }

    /// An association in `Sta6` without the negotiation.
    #[cfg(test)]
    pub(crate) fn established_for_test(transport: Box<dyn Transport>, limits: PduLimits) -> Self {
        let mut layer = Self::accepted(transport, limits, Duration::from_secs(20));
        layer.machine.on_association_request(true).unwrap();
        layer.advance(Event::Evt7);
        layer
    }

    /// An event that the caller's place in the protocol allows; were it not so, the machine stays where it is and
    /// the peer is the next to be told.
    fn advance(&mut self, event: Event) {
        if let Err(error) = self.machine.on(event) {
            tracing::error!("association state machine: {error}");
        }
    }

    fn require(&mut self, event: Event) -> io::Result<()> {
        self.machine.on(event).map(|_| ()).map_err(io::Error::other)
    }

    /// Whether messages can be exchanged.
    pub(crate) fn is_established(&self) -> bool {
        self.machine.state() == State::Sta6
    }

    /// From now on P-DATA-TF of the peer may have so many bytes.
    pub(crate) fn limit_p_data(&mut self, max_p_data_bytes: u32) {
        self.pdus.limit_p_data(max_p_data_bytes);
    }

    /// Whether bytes of a PDU have arrived that nobody has seen yet.
    pub(crate) fn has_partial_pdu(&self) -> bool {
        self.pdus.has_partial_pdu()
    }

    /// The next thing that happens on the association.
    ///
    /// Cancel safety: cancel-safe while the peer is silent. When it breaks the protocol, a cancelled call may lose
    /// the A-ABORT that tells it so; the association is over either way.
    pub(crate) async fn next(&mut self) -> Indication {
        loop {
            let indication = match self.pdus.receive().await {
                Ok(pdu) => self.on_pdu(pdu).await,
                Err(error) => Some(self.on_receive_error(error).await),
            };
            if let Some(indication) = indication {
                return indication;
            }
        }
    }

    async fn on_pdu(&mut self, pdu: Pdu) -> Option<Indication> {
        let state = self.machine.state();
        let name = pdu.name();
        let action = match &pdu {
            Pdu::AssociateAccept(_) => self.machine.on(Event::Evt3),
            Pdu::AssociateReject { .. } => self.machine.on(Event::Evt4),
            // A receiver tests bit 0 only (PS3.8 section 9.3.2).
            Pdu::AssociateRequest(request) => self.machine.on_association_request(request.protocol_version & 1 == 1),
            Pdu::Data(_) => self.machine.on(Event::Evt10),
            Pdu::ReleaseRequest => self.machine.on(Event::Evt12),
            Pdu::ReleaseResponse => self.machine.on(Event::Evt13),
            Pdu::Abort { .. } => self.machine.on(Event::Evt16),
        };
        let action = match action {
            Ok(action) => action,
            Err(error) => return Some(Indication::ProtocolError(error.to_string())),
        };
        match (action, pdu) {
            (Action::Ae3, Pdu::AssociateAccept(accept)) => Some(Indication::AssociationAccepted(accept)),
            (Action::Ae4, Pdu::AssociateReject { result, reason }) => {
                self.pdus.shut_down().await;
                Some(Indication::AssociationRejected { result, reason })
            }
            (Action::Ae6, Pdu::AssociateRequest(request)) => {
                if self.machine.state() == State::Sta3 {
                    return Some(Indication::AssociationRequested(request));
                }
                self.pdus.queue_reject(RejectResult::Permanent, RejectReason::ProtocolVersionNotSupported);
                self.flush_last_words().await;
                Some(Indication::UnsupportedProtocolVersion(request))
            }
            (Action::Dt2 | Action::Ar6, Pdu::Data(pdvs)) => Some(Indication::Data(pdvs)),
            (Action::Ar2, _) => Some(Indication::ReleaseRequested),
            (Action::Ar3, _) => {
                self.pdus.shut_down().await;
                Some(Indication::Released)
            }
            // Release collision (PS3.8 section 7.2.2): the requestor answers first, the acceptor second.
            (Action::Ar8, _) => {
                if self.machine.state() == State::Sta9 {
                    self.advance(Event::Evt14);
                    self.pdus.queue_release_response();
                    self.flush_last_words().await;
                }
                None
            }
            (Action::Ar10, _) => {
                self.advance(Event::Evt14);
                self.pdus.queue_release_response();
                self.flush_last_words().await;
                Some(Indication::Released)
            }
            (Action::Aa3 | Action::Aa2, Pdu::Abort { source, reason }) => {
                Some(Indication::Aborted(abort_words(source, reason)))
            }
            (Action::Aa6, _) => None,
            // AA-1, AA-7, AA-8: not what table 9-10 allows here.
            _ => {
                self.send_provider_abort(AbortReason::UnexpectedPdu).await;
                Some(Indication::ProtocolError(format!("the peer sent {name} while we are {state}")))
            }
        }
    }

    async fn on_receive_error(&mut self, error: ReceiveError) -> Indication {
        match error.abort_reason() {
            None => {
                self.advance(Event::Evt17);
                Indication::ConnectionLost(error.to_string())
            }
            Some(reason) => {
                self.advance(Event::Evt19);
                self.send_provider_abort(reason).await;
                Indication::ProtocolError(error.to_string())
            }
        }
    }

    /// Sends the A-ABORT of AA-1, AA-7 and AA-8.
    async fn send_provider_abort(&mut self, reason: AbortReason) {
        self.pdus.discard_unsent();
        self.pdus.queue_abort(AbortSource::ServiceProvider(reason));
        self.flush_last_words().await;
    }

    /// Writes PDUs after which the association is over, whether or not the peer still hears them.
    async fn flush_last_words(&mut self) {
        if let Err(error) = self.flush().await {
            tracing::debug!("the last PDU of the association cannot be sent: {error}");
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        match timeout(self.write_timeout, self.pdus.flush()).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the peer has not read for {} s", self.write_timeout.as_secs_f32()),
            )),
        }
    }

    /// Sends an A-ASSOCIATE-RQ (AE-2). Not cancel-safe.
    pub(crate) async fn request_association(&mut self, request: AssociationRQ) -> io::Result<()> {
        self.require(Event::Evt2)?;
        self.pdus.queue_association(&dicom_ul::Pdu::AssociationRQ(request))?;
        self.flush().await
    }

    /// Sends an A-ASSOCIATE-AC (AE-7). Not cancel-safe.
    pub(crate) async fn accept_association(&mut self, accept: AssociationAC) -> io::Result<()> {
        self.require(Event::Evt7)?;
        self.pdus.queue_association(&dicom_ul::Pdu::AssociationAC(accept))?;
        self.flush().await
    }

    /// Sends an A-ASSOCIATE-RJ (AE-8). Not cancel-safe.
    pub(crate) async fn reject_association(&mut self, result: RejectResult, reason: RejectReason) -> io::Result<()> {
        self.require(Event::Evt8)?;
        self.pdus.queue_reject(result, reason);
        self.flush().await
    }

    /// Sends `bytes` as fragments (DT-1) of at most `max_pdu_length`; they are written when much is queued or at
    /// [`UpperLayer::finish_message`]. Not cancel-safe.
    pub(crate) async fn send_bytes(
        &mut self,
        context_id: u8,
        is_command: bool,
        bytes: &[u8],
        max_pdu_length: u32,
    ) -> io::Result<()> {
        let length = bytes.len() as u64;
        self.send_from(context_id, is_command, &mut &bytes[..], length, max_pdu_length).await.map_err(|error| {
            match error {
                SendError::Source(error) | SendError::Connection(error) => error,
            }
        })
    }

    /// Sends exactly `length` bytes of `source` as fragments (DT-1) of at most `max_pdu_length` each. When the
    /// source fails or ends early, no last fragment is sent: the caller must abort. Not cancel-safe.
    pub(crate) async fn send_from<R: AsyncRead + Unpin + Send>(
        &mut self,
        context_id: u8,
        is_command: bool,
        source: &mut R,
        length: u64,
        max_pdu_length: u32,
    ) -> Result<(), SendError> {
        let max_fragment_bytes = max_fragment_bytes(max_pdu_length).ok_or_else(|| {
            SendError::Connection(io::Error::other(format!(
                "the peer accepts PDUs of at most {max_pdu_length} bytes, too short for any data"
            )))
        })?;
        let mut remaining = length;
        loop {
            self.require(Event::Evt9).map_err(SendError::Connection)?;
            let n_bytes = remaining.min(max_fragment_bytes as u64) as usize;
            remaining -= n_bytes as u64;
            let fragment = self.pdus.queue_p_data(context_id, is_command, remaining == 0, n_bytes);
            if let Err(error) = source.read_exact(fragment).await {
                self.pdus.discard_unsent();
                return Err(SendError::Source(error));
            }
            if self.pdus.n_unsent_bytes() >= WRITE_CHUNK_BYTES {
                self.flush().await.map_err(SendError::Connection)?;
            }
            if remaining == 0 {
                return Ok(());
            }
        }
    }

    /// Writes what is still queued of a message. Not cancel-safe.
    pub(crate) async fn finish_message(&mut self) -> io::Result<()> {
        self.flush().await
    }

    /// Asks for release (AR-1). Not cancel-safe.
    pub(crate) async fn request_release(&mut self) -> io::Result<()> {
        self.require(Event::Evt11)?;
        self.pdus.queue_release_request();
        self.flush().await
    }

    /// Answers the peer's release request (AR-4).
    pub(crate) async fn answer_release(&mut self) {
        if self.require(Event::Evt14).is_ok() {
            self.pdus.queue_release_response();
            self.flush_last_words().await;
        }
    }

    /// Aborts the association (AA-1), where it is not over already.
    pub(crate) async fn abort(&mut self, source: AbortSource) {
        if let Ok(Action::Aa1) = self.machine.on(Event::Evt15) {
            self.pdus.discard_unsent();
            self.pdus.queue_abort(source);
            self.flush_last_words().await;
        }
    }

    /// No A-ASSOCIATE-RQ came in time (AA-2).
    pub(crate) async fn artim_expired(&mut self) {
        self.advance(Event::Evt18);
        self.pdus.shut_down().await;
    }

    /// Ends the connection; where the peer owes us its close (`Sta13`), waits a little for it.
    pub(crate) async fn close(mut self) {
        if self.machine.state() == State::Sta13 {
            let event = match timeout(LINGER, self.pdus.discard_until_closed()).await {
                Ok(()) => Event::Evt17,
                Err(_) => Event::Evt18,
            };
            self.advance(event);
        }
        self.pdus.shut_down().await;
    }
}

/// Why data could not be sent.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Its source failed or ended early.
    Source(io::Error),
    /// The connection failed.
    Connection(io::Error),
}
