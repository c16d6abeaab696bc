//! Chest CT: from slices to a volume, to two lungs, to what they measure, to a picture; and what networks see of it.
//!
//! The way through: [`SliceHeader`] of every image → [`choose_stacks`] → [`decode_hu`] slice by slice into a [`Volume`] →
//! [`segment`] (or a network between [`lung_network_slice`] and [`network_lungs`]) → [`measure`] → [`choose_sections`], and
//! later [`render_sections`] and [`render_slice`].

mod labels;
mod lesions;
mod lung_network;
mod measure;
mod morphology;
mod network_input;
#[cfg(test)]
pub(crate) mod phantom;
mod picture;
mod segment;
mod series;
mod slice;
mod volume;

pub use labels::voxel_labels;
pub use lesions::{measure_lesions, slice_with_most_lesion};
pub use lung_network::{BodyBox, NETWORK_METHOD, lung_network_slice, network_lungs, paste_lung_labels};
pub use measure::{BAND_LIMITS_HU, DENSITOMETRY_METHOD, measure};
pub use morphology::TooManyPieces;
pub use network_input::{Channel, ScanInput, ScanPlan, ScanRecipe, scan_input};
pub use picture::{
    LegendWords, SectionError, SectionPixels, ShownSection, ShownSlice, SliceWords, SummaryWords, choose_sections,
    render_sections, render_slice,
};
pub use segment::{AIRWAY, BACKGROUND, LEFT_LUNG, LungLabels, METHOD as SEGMENTATION_METHOD, RIGHT_LUNG, segment};
pub use series::{Candidate, Choice, MAXIMUM_VOXELS, MINIMUM_SLICES, OtherSeries, Refusal, Stack, choose_stacks};
pub use slice::{HuSlice, PADDING_HU, SliceHeader, decode_hu};
pub use volume::Volume;
