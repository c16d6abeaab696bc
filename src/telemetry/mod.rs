//! What the node says of itself while it runs: log lines, metrics, and the operational events that make both.
//!
//! * [`init_logging`] once at start.
//! * [`Metrics::new`] once at start; it is passed down, nothing is global. [`Metrics::encode`] is what `/metrics`
//!   answers.
//! * [`events`]: one struct for each thing worth knowing; `emit` logs and counts it at once, and nothing else does.
//!
//! Architecture invariant: no patient data passes through here. UIDs, AE titles and addresses may be logged; none
//! of them is ever a label of a metric, because labels must be bounded.

pub mod events;
mod logging;
mod metrics;

pub use logging::{LoggingError, init_logging, subscriber};
pub use metrics::{
    AssociationEnd, CommitmentEnd, ContextRefusal, DeliveryEnd, Label, Metrics, OperationRefusal, RefusalStatus,
    RejectionReason, RetentionKind, RunEnd, RunStage,
};
