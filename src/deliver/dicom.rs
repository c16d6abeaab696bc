//! Results over an association: C-STORE (PS3.4 annex B).

use std::io;

use anyhow::Context as _;
use tokio::io::AsyncReadExt as _;

use super::{
    Caller, Verdict, opened,
    policy::status_policy,
    way::{Answer, Carrier, ResultFile, unreadable},
};
use crate::{
    db::delivery::DueDelivery,
    dimse::{Association, Priority, RequestError, StoreSource, status},
    types::{AeTitle, Peer, Uid},
};

/// An association with a destination.
pub(super) struct DicomWay {
    association: Association,
}

/// C-ECHO. An association that is accepted without Verification is an answer, too.
pub(super) async fn probe(caller: &Caller, calling: &AeTitle, peer: &Peer) -> Result<String, String> {
    let requestor = caller.requestor(calling.clone(), peer).map_err(|error| format!("{error:#}"))?;
    let mut association = requestor.propose_verification().establish().await.map_err(|error| error.to_string())?;
    match association.echo().await {
        Ok(answer) => {
            // How the peer says goodbye is its own affair.
            let _ = association.release().await;
            let words = format!("`{}` answers C-ECHO with {}", peer.ae_title, status::InWords(answer));
            if status::category(answer) == status::Category::Failure { Err(words) } else { Ok(words) }
        }
        Err(RequestError::NoContext { .. }) => {
            let _ = association.release().await;
            Ok(format!("`{}` accepts the association, without C-ECHO", peer.ae_title))
        }
        Err(error) => Err(error.to_string()),
    }
}

impl DicomWay {
    /// Associates, proposing these SOP classes, each with its transfer syntax.
    pub(super) async fn open(
        carrier: &Carrier,
        calling: &AeTitle,
        peer: &Peer,
        forms: &[(String, String)],
    ) -> Result<Self, String> {
        let requestor = carrier.caller.requestor(calling.clone(), peer).map_err(|error| format!("{error:#}"))?;
        let requestor =
            forms.iter().fold(requestor, |requestor, (class, syntax)| requestor.propose(class, &[syntax.as_str()]));
        let association = requestor.establish().await.map_err(|error| error.to_string())?;
        opened(&carrier.db, &peer.name, association.peer(), association.contexts()).await;
        Ok(Self { association })
    }

    /// Whether a context for this form was accepted.
    pub(super) fn takes(&self, delivery: &DueDelivery) -> bool {
        self.association.contexts().iter().any(|context| {
            context.abstract_syntax == delivery.sop_class_uid
                && context.transfer_syntax_uid().is_some_and(|uid| uid.as_str() == delivery.transfer_syntax_uid)
        })
    }

    pub(super) async fn send(&mut self, carrier: &Carrier, delivery: &DueDelivery) -> Answer {
        let source = match carrier.open(delivery).await {
            Ok(file) => source(delivery, file).await.map_err(|error| unreadable(&error)),
            Err(answer) => Err(answer),
        };
        let source = match source {
            Ok(source) => source,
            Err(answer) => return answer,
        };
        match self.association.store(source).await {
            Ok(response) => Answer {
                status: Some(response.status),
                peer_comment: response.error_comment.filter(|comment| !comment.is_empty()),
                ..Answer::new(status_policy(response.status).verdict, in_words(response.status))
            },
            // The peer may be configured to accept it one day; until then the others of this association go on.
            Err(error @ RequestError::NoContext { .. }) => {
                Answer { no_context: true, ..Answer::new(Verdict::Retry, error.to_string()) }
            }
            Err(error) => Answer::broken(error.to_string()),
        }
    }

    pub(super) async fn close(self) {
        if let Err(error) = self.association.release().await {
            tracing::debug!(%error, "the association was not released in order");
        }
    }

    pub(super) async fn abort(self) {
        self.association.abort().await;
    }
}

/// A status with its meaning and, where something is to be done, the remedy.
pub(super) fn in_words(status: u16) -> String {
    let policy = status_policy(status);
    let words = status::InWords(status);
    if policy.verdict == Verdict::Delivered { words.to_string() } else { format!("{words}; {}", policy.remedy) }
}

/// The file from its data set on.
async fn source(delivery: &DueDelivery, file: ResultFile) -> anyhow::Result<StoreSource<tokio::fs::File>> {
    let ResultFile { mut file, length } = file;
    let offset = data_set_offset(&mut file).await.context("read the Part 10 header")?;
    Ok(StoreSource {
        priority: if delivery.urgent { Priority::High } else { Priority::Medium },
        sop_class_uid: Uid::new(&delivery.sop_class_uid)?,
        sop_instance_uid: Uid::new(&delivery.sop_instance_uid)?,
        transfer_syntax_uid: Uid::new(&delivery.transfer_syntax_uid)?,
        data: file,
        length: length.saturating_sub(offset),
    })
}

/// Leaves the file at its data set and returns the offset: 128 bytes of preamble, `DICM`, and a file meta group
/// of the length that (0002,0000) gives (PS3.10 section 7.1).
async fn data_set_offset(file: &mut tokio::fs::File) -> io::Result<u64> {
    let mut start = [0; 144];
    file.read_exact(&mut start).await?;
    let (prefix, group_length) = (start.get(128..140), start.get(140..144));
    if prefix != Some(b"DICM\x02\x00\x00\x00UL\x04\x00".as_slice()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a Part 10 file"));
    }
    let group_length = group_length.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map_or(0, u32::from_le_bytes);
    let offset = 144 + u64::from(group_length);
    tokio::io::AsyncSeekExt::seek(file, io::SeekFrom::Start(offset)).await?;
    Ok(offset)
}
