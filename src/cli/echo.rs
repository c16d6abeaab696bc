//! `hilum echo`: does a peer answer, and how fast.

use std::time::{Duration, Instant};

use clap::Args;

use super::{Address, output::print, output::visible, tls::TlsOptions};
use crate::{
    dimse::{
        AssociationRequestor, PeerImplementation, RequestError, RequestorTimeouts, TlsClient,
        status::{self, InWords},
    },
    types::AeTitle,
};

/// How long a peer may take for each step unless told otherwise.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What `hilum echo` is told.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where the peer listens
    #[arg(value_name = "HOST:PORT")]
    address: Address,
    /// AE title of the peer
    #[arg(long, value_name = "TITLE")]
    called: AeTitle,
    /// AE title that we call as
    #[arg(long, value_name = "TITLE", default_value = "HILUM")]
    calling: AeTitle,
    /// How long the peer may take for each step
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_TIMEOUT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    tls: TlsOptions,
}

/// A peer's answer to C-ECHO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// From the start of the TCP connection to the accepted association.
    pub association_time: Duration,
    /// From the request to the response.
    pub round_trip_time: Duration,
    /// What the peer says of itself.
    pub peer: PeerImplementation,
}

pub(super) async fn run(options: &Options) -> anyhow::Result<()> {
    let timeout = Duration::from_secs(options.timeout);
    let verified = verify(&options.calling, &options.called, &options.address, timeout, options.tls.client()?).await?;
    print(&describe(&options.called, &options.address, &verified))
}

/// C-ECHO on an association of its own, over TLS if `tls` says how; each step may take `timeout`. The error names the reason and the remedy.
pub async fn verify(
    calling: &AeTitle,
    called: &AeTitle,
    address: &Address,
    timeout: Duration,
    tls: Option<TlsClient>,
) -> anyhow::Result<Verified> {
    let started = Instant::now();
    let mut association =
        AssociationRequestor::new(calling.clone(), called.clone(), address.host.as_str(), address.port)
            .with_timeouts(RequestorTimeouts { connect: timeout, acse: timeout, dimse: timeout })
            .with_tls(tls)
            .propose_verification()
            .establish()
            .await?;
    let association_time = started.elapsed();
    let peer = association.peer().clone();
    let asked = Instant::now();
    let answer = association.echo().await?;
    let round_trip_time = asked.elapsed();
    match association.release().await {
        // The question is answered: how the peer says goodbye is its own affair.
        Ok(()) | Err(RequestError::Ended { .. } | RequestError::TimedOut { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if status::category(answer) != status::Category::Success {
        anyhow::bail!("`{called}` at {address} answers C-ECHO with {}; look into its log", InWords(answer));
    }
    Ok(Verified { association_time, round_trip_time, peer })
}

/// The answer in words.
pub(super) fn describe(called: &AeTitle, address: &Address, verified: &Verified) -> String {
    let Verified { association_time, round_trip_time, peer } = verified;
    let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
    let implementation = match (&peer.version_name, &peer.class_uid) {
        (Some(version), _) => format!(", implementation {}", visible(version)),
        (None, Some(class_uid)) => format!(", implementation {}", visible(class_uid)),
        (None, None) => String::new(),
    };
    let max_pdu = match peer.max_pdu_length {
        0 => "PDUs of any length".to_owned(),
        length => format!("PDUs of up to {length} bytes"),
    };
    format!(
        "`{called}` at {address} answers: association {:.1} ms, C-ECHO {:.1} ms; {max_pdu}{implementation}",
        milliseconds(association_time),
        milliseconds(round_trip_time)
    )
}
