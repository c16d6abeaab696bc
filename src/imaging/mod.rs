//! From the bytes of a DICOM file to calibrated grey values, and from an analysis to a picture.
//!
//! The way through this room: [`read_object`] (guarded parsing) → [`ImageHeader`] (what the header says) →
//! [`decode_grey`] (stored values, Modality LUT, VOI) → [`canvas`] (percentiles, padding, resampling) →
//! [`lungs`] (mask clean-up and measurements) → [`classifier_input`] (equalisation, crop, mask, channels) → [`heat`]
//! (fusion of activation maps) → [`render_overlay`].
//!
//! Architecture invariant: pure functions only. This room knows no files, no network, no database, no clock and
//! no tensors; the same input gives the same output.

pub mod canvas;
pub mod classifier_input;
mod codestream;
mod color;
mod compress;
pub mod ct;
pub mod equalise;
mod error;
mod frame;
#[cfg(test)]
mod golden_tests;
mod grey;
mod guard;
mod header;
pub mod heat;
mod inks;
mod jpeg12;
mod lung_mask;
pub mod lungs;
mod lut;
pub mod outline;
mod overlay;
mod picture;
pub mod quality;
#[cfg(test)]
pub(crate) mod testing;
mod text;

pub use canvas::{Plane, PlaneError, Planes};
pub use compress::{JpegError, jpeg_baseline, rle_lossless};
pub use error::ImagingError;
pub use frame::{StoredFrame, decode_frame};
pub use grey::{DecodeLimits, GreyImage, decode_grey, display_image, display_object};
pub use guard::{GuardError, GuardLimits, check_part10, read_object};
pub use header::{AnatomicRegion, ImageHeader, PatientAge, View, names_chest};
pub use inks::FAINTEST_HEAT;
pub use jpeg12::decode as decode_jpeg_12_bit;
pub use lung_mask::{LungMaskError, lungs_over_source};
pub use lut::{LookUpTable, Voi, WindowFunction};
pub use overlay::{MemberWords, OverlayError, OverlayOptions, OverlayWords, ScaleWords, encode_png, render_overlay};
pub use picture::{PictureError, PictureFacts, decode_picture, is_part10, picture_as_radiograph};
pub use text::TextFont;
