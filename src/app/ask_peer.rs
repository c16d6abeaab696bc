//! Asking the sender of a study how many instances it has.

use std::{future::Future, pin::Pin, time::Duration};

use crate::{
    assemble::{CountAtSource, SourceQuestion},
    dimse::{AssociationRequestor, RequestorTimeouts, count_study_instances},
    types::Uid,
};

/// Asks with C-FIND.
#[derive(Debug, Clone, Copy)]
pub(super) struct AskPeer {
    /// For the TCP connection.
    pub(super) connect_timeout: Duration,
    /// For each answer of the peer.
    pub(super) response_timeout: Duration,
}

impl CountAtSource for AskPeer {
    fn count(&self, question: SourceQuestion) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>> {
        Box::pin(async move {
            let SourceQuestion { peer, calling_ae_title, study_instance_uid } = question;
            let study_instance_uid = Uid::new(&study_instance_uid).map_err(|error| error.to_string())?;
            let port = peer.port.ok_or("it has no port to call")?;
            let timeouts = RequestorTimeouts {
                connect: self.connect_timeout,
                acse: self.response_timeout,
                dimse: self.response_timeout,
            };
            let requestor =
                AssociationRequestor::new(calling_ae_title, peer.ae_title, peer.host, port).with_timeouts(timeouts);
            match count_study_instances(requestor, &study_instance_uid).await {
                Ok(Some(count)) => Ok(count.instances),
                Ok(None) => Err("it does not know the study".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
