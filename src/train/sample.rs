//! What a data set is: labelled images, and whose they are.

use std::path::PathBuf;

/// Which part of an experiment an image belongs to, when its list says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    /// Weights are fitted on these.
    Train,
    /// Epoch, threshold and calibration are chosen on these.
    Validation,
    /// Figures are reported on these, and nothing is chosen on them.
    Test,
}

/// One image.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The image: DICOM, PNG or JPEG.
    pub file: PathBuf,
    /// Its class; `None` where only a mask is known.
    pub label: Option<String>,
    /// Whose it is. Images of one patient are never on two sides of a split; an image whose list names no patient is a
    /// patient of its own, named after the file.
    pub patient: String,
    /// As the list says: `PA`, `AP`, `L`, …
    pub view: Option<String>,
    /// The lung mask, an image of the same size that is not black where lung is.
    pub mask: Option<PathBuf>,
    /// Where it comes from: a hospital, a device, a publication. What confounds a label is looked for here.
    pub site: Option<String>,
    /// The split that the list gives it.
    pub split: Option<Split>,
    /// At the time of the image.
    pub age_years: Option<f64>,
    /// `F`, `M` or as the list says.
    pub sex: Option<String>,
}

/// The images of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct DataSet {
    /// The list that it was read from.
    pub list: PathBuf,
    /// In the list's order.
    pub samples: Vec<Sample>,
    /// SHA-256, in hexadecimal, of the list and of every file that it names, in its order: what figures refer to.
    pub sha256: String,
}
