//! Chest CT without any trained weights: from slices to a volume, to two lungs, to what they measure, to a picture.
//!
//! The way through: [`SliceHeader`] of every image → [`choose_stacks`] → [`decode_hu`] slice by slice into a [`Volume`] →
//! [`segment`] → [`measure`] → [`choose_sections`], and later [`render_sections`].

mod measure;
mod morphology;
#[cfg(test)]
pub(crate) mod phantom;
mod picture;
mod segment;
mod series;
mod slice;
mod volume;

pub use measure::{BAND_LIMITS_HU, DENSITOMETRY_METHOD, measure};
pub use morphology::TooManyPieces;
pub use picture::{SectionError, SectionPixels, choose_sections, render_sections};
pub use segment::{AIRWAY, BACKGROUND, LEFT_LUNG, LungLabels, METHOD as SEGMENTATION_METHOD, RIGHT_LUNG, segment};
pub use series::{Candidate, Choice, MAXIMUM_VOXELS, MINIMUM_SLICES, OtherSeries, Refusal, Stack, choose_stacks};
pub use slice::{HuSlice, PADDING_HU, SliceHeader, decode_hu};
pub use volume::Volume;
