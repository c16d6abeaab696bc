//! How the node calls a configured peer.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::sync::watch;

use crate::{
    dimse::{AssociationRequestor, RequestorTimeouts, TlsClient},
    tls::TlsMaterial,
    types::{AeTitle, Peer},
};

/// Calls peers, over TLS where they are configured so, within the node's time limits.
#[derive(Clone)]
pub struct Caller {
    /// For the TCP connection and its TLS handshake.
    pub connect_timeout: Duration,
    /// For each answer of the peer.
    pub response_timeout: Duration,
    /// Our certificate and the CAs we trust, as they are now.
    pub tls: watch::Receiver<Arc<TlsMaterial>>,
}

impl Caller {
    /// A requestor for `peer` as `calling_ae_title`, with nothing proposed yet. Fails for a peer without a port, and
    /// where TLS is asked for and nobody could prove who they are.
    pub fn requestor(&self, calling_ae_title: AeTitle, peer: &Peer) -> anyhow::Result<AssociationRequestor> {
        let port = peer.port.with_context(|| {
            format!(
                "peer `{}` has no port to call; give it one with `hilum peer add {} --port …`",
                peer.name, peer.name
            )
        })?;
        let timeouts = RequestorTimeouts {
            connect: self.connect_timeout,
            acse: self.response_timeout,
            dimse: self.response_timeout,
        };
        let tls = self.tls.borrow().client_for(peer)?.map(|config| TlsClient { config });
        Ok(AssociationRequestor::new(calling_ae_title, peer.ae_title.clone(), peer.host.clone(), port)
            .with_timeouts(timeouts)
            .with_tls(tls))
    }
}
