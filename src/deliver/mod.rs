//! What goes out: the delivery ledger, drained destination by destination, and the reports that peers have asked for
//! with Storage Commitment.
//!
//! A delivery is counted before it is sent and closed by the destination's answer. What happens to it then is
//! [`policy`]: stored, try again later, the next of its alternatives, or a person has to look. One destination down never
//! delays another: each has its own job, its own queue and its own pauses, and is left alone when it fails again and again.
//!
//! Start at [`Deliver`]. How results travel is a `way`: an association, a web server, a folder. `asking` asks destinations
//! to keep what they got; [`ReportCommitment`] answers peers that ask us.
//!
//! Architecture invariant: knows no models.

mod asking;
mod caller;
mod commitment;
mod dicom;
mod drain;
mod folder;
mod opened;
pub mod policy;
mod stow;
mod way;
mod web;

use opened::opened;

pub use caller::Caller;
pub use commitment::ReportCommitment;
pub use drain::{Deliver, DeliverSettings};
pub use policy::{Verdict, backoff, verdict};
pub use web::Tokens;

use crate::types::{Destination, DestinationKind, SiteConfig};

/// Asks a destination whether it is there, for a person: what was found, line by line, or what is wrong.
pub async fn check(caller: &Caller, site: &SiteConfig, destination: &Destination) -> Result<Vec<String>, String> {
    let tokens = Tokens::default();
    if destination.kind != DestinationKind::ReturnToSender {
        let target = way::Target::of(site, destination, "", "")?;
        return target.probe(caller, &tokens).await.map(|words| vec![words]);
    }
    let Some(local) = site.local_aes.first() else {
        return Err("this node has no AE title to call with; add one with `hilum local-ae add TITLE`".to_owned());
    };
    let (mut lines, mut problems) = (Vec::new(), Vec::new());
    for sender in site.peers.iter().filter(|peer| peer.may_store) {
        let found = match way::Target::of(site, destination, sender.ae_title.as_str(), local.ae_title.as_str()) {
            Ok(target) => target.probe(caller, &tokens).await,
            Err(words) => Err(words),
        };
        match found {
            Ok(words) => lines.push(format!("sender `{}`: {words}", sender.name)),
            Err(words) => problems.push(format!("sender `{}`: {words}", sender.name)),
        }
    }
    if problems.is_empty() { Ok(lines) } else { Err([lines, problems].concat().join("\n")) }
}
