//! What goes out: the delivery ledger, drained destination by destination, and the reports that peers have asked for
//! with Storage Commitment.
//!
//! A delivery is counted before it is sent and closed by the peer's status. What happens to it then is
//! [`policy`]: stored, try again later, or a person has to look. One destination down never delays another: each
//! has its own job, its own queue and its own backoff.
//!
//! Architecture invariant: knows no models.

mod caller;
mod commitment;
mod drain;
mod opened;
mod policy;

use opened::opened;

pub use caller::Caller;
pub use commitment::ReportCommitment;
pub use drain::{Deliver, DeliverSettings};
pub use policy::{Verdict, backoff, verdict};
