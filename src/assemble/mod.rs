//! Is the study complete, by which evidence, and which route takes it: pure decisions, and the job that carries
//! them out.
//!
//! Architecture invariant: knows no pixels. [`completeness`] and [`choose_route`] are pure; [`CompleteWorkup`] is
//! the only piece with effects.

mod complete_workup;
mod decide;

pub use complete_workup::{CompleteWorkup, CountAtSource, SourceQuestion};
pub use decide::{Completeness, NotRouted, Rules, StudyToRoute, choose_route, completeness};
