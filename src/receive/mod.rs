//! What comes in: who may send what, the C-STORE handler, and the index that follows the files.
//!
//! The way of an object: [`Receiver::store`](crate::dimse::AssociationHandler::store) streams it into the archive
//! and answers Success when the file is durable; the file is handed to the [`indexer`](Indexer), which writes rows
//! in batches and may be minutes behind when Postgres is down. What does not fit the indexer's queue, and what a
//! kill cut off, is found again by scanning the archive from the last indexed hour.
//!
//! Storage Commitment requests and reports become rows before they are answered (`commitment`).
//!
//! Architecture invariant: knows no models and no SQL; admission and objects need no database. It is asked, with a short
//! limit, only for peers whose duplicates are refused.

mod admission;
mod commitment;
mod explain;
mod hints;
mod identity;
mod indexer;
mod known_objects;
mod policy;
mod receiver;
mod refusals;
mod site_watch;

pub use admission::{Admitted, admit};
pub use indexer::{IndexQueue, Indexer, IndexerSettings, ScanSummary};
pub use receiver::{Receiver, ReceiverParts, ReceiverSettings};
pub use refusals::{RefusalLog, RefusalWriter};
pub use site_watch::{SiteSnapshot, SiteWatch};
