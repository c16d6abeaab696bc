//! DIMSE messages on an association: command sets are joined from their fragments, data sets pass through
//! fragment by fragment.

use std::{collections::VecDeque, fmt, io};

use super::{
    command::{CommandSet, MAX_COMMAND_BYTES},
    pdu_io::Pdv,
    rejection::{AbortReason, AbortSource},
    upper_layer::{Indication, UpperLayer},
};

/// A limit in time that was exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeLimit {
    /// No A-ASSOCIATE-RQ in time (ARTIM).
    AssociationRequest,
    /// No message in time.
    Idle,
    /// A message took too long.
    Message,
    /// The peer did not read what we sent.
    Write,
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AssociationRequest => "no association request came in time",
            Self::Idle => "the association was idle for too long",
            Self::Message => "a message took too long",
            Self::Write => "the peer did not read our answer in time",
        })
    }
}

/// How an association ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndReason {
    /// The peer released it.
    Released,
    /// The peer aborted it.
    AbortedByPeer {
        /// Who and why, such as `by the service provider: unexpected PDU`.
        words: String,
    },
    /// The connection was closed or failed.
    ConnectionLost {
        /// How.
        words: String,
    },
    /// We aborted it because a time limit was exceeded.
    TimedOut(TimeLimit),
    /// We aborted it because the node shuts down.
    ShutDown,
    /// We aborted it because the peer broke the protocol.
    ProtocolError {
        /// How.
        words: String,
    },
    /// We aborted it because our own handler failed.
    HandlerFailed,
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str("released by the peer"),
            Self::AbortedByPeer { words } => write!(f, "aborted {words}"),
            Self::ConnectionLost { words } => write!(f, "connection lost: {words}"),
            Self::TimedOut(limit) => write!(f, "aborted by us: {limit}"),
            Self::ShutDown => f.write_str("aborted by us: the node is shutting down"),
            Self::ProtocolError { words } => write!(f, "aborted by us: {words}"),
            Self::HandlerFailed => f.write_str("aborted by us: our own handler failed"),
        }
    }
}

impl EndReason {
    pub(crate) fn protocol_error(words: impl Into<String>) -> Self {
        Self::ProtocolError { words: words.into() }
    }

    /// The end that a failed write means.
    pub(crate) fn from_write_error(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::TimedOut {
            Self::TimedOut(TimeLimit::Write)
        } else {
            Self::ConnectionLost { words: format!("cannot send: {error}") }
        }
    }
}

/// An established association as a stream of fragments.
pub(crate) struct MessageLayer {
    pub(crate) layer: UpperLayer,
    pending: VecDeque<Pdv>,
    /// Longest P-DATA-TF that the peer accepts, 0 for unlimited.
    peer_max_pdu_length: u32,
}

impl MessageLayer {
    pub(crate) fn new(layer: UpperLayer, peer_max_pdu_length: u32) -> Self {
        Self { layer, pending: VecDeque::new(), peer_max_pdu_length }
    }

    pub(crate) fn peer_max_pdu_length(&self) -> u32 {
        self.peer_max_pdu_length
    }

    /// Waits until a fragment is there or the association ends; a release request is such an end, and the caller
    /// answers it.
    ///
    /// Cancel safety: cancel-safe while the peer keeps to the protocol (see [`UpperLayer::next`]).
    pub(crate) async fn wait(&mut self) -> Result<(), EndReason> {
        while self.pending.is_empty() {
            match self.layer.next().await {
                Indication::Data(pdvs) => self.pending.extend(pdvs),
                Indication::ReleaseRequested | Indication::Released => return Err(EndReason::Released),
                Indication::Aborted(words) => return Err(EndReason::AbortedByPeer { words }),
                Indication::ConnectionLost(words) => return Err(EndReason::ConnectionLost { words }),
                Indication::ProtocolError(words) => return Err(EndReason::ProtocolError { words }),
                Indication::AssociationRequested(_)
                | Indication::UnsupportedProtocolVersion(_)
                | Indication::AssociationAccepted(_)
                | Indication::AssociationRejected { .. } => {
                    return Err(EndReason::protocol_error("the peer negotiates an association that is established"));
                }
            }
        }
        Ok(())
    }

    /// Whether a message has begun to arrive.
    pub(crate) fn message_has_begun(&self) -> bool {
        !self.pending.is_empty() || self.layer.has_partial_pdu()
    }

    /// The next fragment. Cancel safety: as [`MessageLayer::wait`].
    pub(crate) async fn next_fragment(&mut self) -> Result<Pdv, EndReason> {
        loop {
            if let Some(pdv) = self.pending.pop_front() {
                return Ok(pdv);
            }
            self.wait().await?;
        }
    }

    /// The next fragment inside a message, where a release request is a breach of protocol.
    pub(crate) async fn next_fragment_of_message(&mut self) -> Result<Pdv, EndReason> {
        match self.next_fragment().await {
            Err(EndReason::Released) => {
                self.abort_as_provider(AbortReason::UnexpectedPdu).await;
                Err(EndReason::protocol_error("the peer asks for release in the middle of a message"))
            }
            other => other,
        }
    }

    /// The next fragment of the data set of a message on `context_id`. On any error the peer has been told and the
    /// association is over. Cancel safety: as [`MessageLayer::wait`].
    pub(crate) async fn next_data_fragment(&mut self, context_id: u8) -> Result<Pdv, EndReason> {
        let pdv = self.next_fragment_of_message().await?;
        if pdv.is_command {
            return Err(self.break_off("the peer sent a command inside a data set").await);
        }
        if pdv.context_id != context_id {
            return Err(self.break_off("the peer changed the presentation context inside a message").await);
        }
        Ok(pdv)
    }

    /// Joins the data set of a message; `None` when it is longer than `max_bytes`, in which case the rest has been
    /// thrown away. Errors and cancel safety: as [`MessageLayer::read_command`].
    pub(crate) async fn read_data_set(
        &mut self,
        context_id: u8,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, EndReason> {
        let mut bytes = Some(Vec::new());
        loop {
            let pdv = self.next_data_fragment(context_id).await?;
            bytes = bytes.filter(|bytes| bytes.len() + pdv.data.len() <= max_bytes);
            if let Some(bytes) = &mut bytes {
                bytes.extend_from_slice(&pdv.data);
            }
            if pdv.is_last {
                return Ok(bytes);
            }
        }
    }

    /// Joins the fragments of the next command set. On any error the peer has been told and the association is
    /// over. Not cancel-safe: fragments already joined are lost.
    pub(crate) async fn read_command(&mut self) -> Result<(u8, CommandSet), EndReason> {
        let first = self.next_fragment().await?;
        let context_id = first.context_id;
        let mut bytes = Vec::new();
        let mut fragment = first;
        loop {
            if !fragment.is_command {
                return Err(self.break_off("the peer sent data where a command must be").await);
            }
            if fragment.context_id != context_id {
                return Err(self.break_off("the peer changed the presentation context inside a command").await);
            }
            if bytes.len() + fragment.data.len() > MAX_COMMAND_BYTES {
                let words = format!("the peer sent a command set of more than {MAX_COMMAND_BYTES} bytes");
                return Err(self.break_off(words).await);
            }
            bytes.extend_from_slice(&fragment.data);
            if fragment.is_last {
                break;
            }
            fragment = self.next_fragment_of_message().await?;
        }
        match CommandSet::decode(&bytes) {
            Ok(command_set) => Ok((context_id, command_set)),
            Err(error) => Err(self.break_off(error.to_string()).await),
        }
    }

    /// Sends a command set without a data set.
    pub(crate) async fn send_command(&mut self, context_id: u8, command_set: &CommandSet) -> io::Result<()> {
        self.queue_command(context_id, command_set).await?;
        self.layer.finish_message().await
    }

    /// Sends a command set and its data set.
    pub(crate) async fn send_message(
        &mut self,
        context_id: u8,
        command_set: &CommandSet,
        data_set: &[u8],
    ) -> io::Result<()> {
        self.queue_command(context_id, command_set).await?;
        self.layer.send_bytes(context_id, false, data_set, self.peer_max_pdu_length).await?;
        self.layer.finish_message().await
    }

    /// Queues a command set, to be followed by its data set.
    pub(crate) async fn queue_command(&mut self, context_id: u8, command_set: &CommandSet) -> io::Result<()> {
        let bytes = command_set.encode().map_err(io::Error::other)?;
        self.layer.send_bytes(context_id, true, &bytes, self.peer_max_pdu_length).await
    }

    /// Aborts because the peer broke the DIMSE protocol.
    pub(crate) async fn break_off(&mut self, words: impl Into<String>) -> EndReason {
        self.abort_as_provider(AbortReason::InvalidPduParameter).await;
        EndReason::protocol_error(words)
    }

    async fn abort_as_provider(&mut self, reason: AbortReason) {
        self.layer.abort(AbortSource::ServiceProvider(reason)).await;
    }
}
