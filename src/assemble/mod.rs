//! Is the study complete, by which evidence, and which route takes it: pure decisions, and the jobs that carry
//! them out.
//!
//! Architecture invariant: knows no pixels. [`completeness`] and [`choose_route`] are pure; [`CompleteWorkup`] and
//! [`AskSource`] are the only pieces with effects.

mod ask_source;
mod complete_workup;
mod decide;

pub use ask_source::{AskSource, CountAtSource, SourceQuestion};
pub use complete_workup::CompleteWorkup;
pub use decide::{Completeness, NotRouted, Rules, StudyToRoute, choose_route, completeness};
