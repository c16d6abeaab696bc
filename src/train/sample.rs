//! What a data set is: labelled images, and whose they are.

use std::{
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use crate::imaging::{
    DecodeLimits, ImagingError, PictureError, PictureFacts, Plane, decode_grey, decode_picture, is_part10,
    picture_as_radiograph, read_object,
};

/// Larger files are no radiographs.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// SOP Instance UID of pictures, which have none of their own; it leaves this room in no object.
const PICTURE_UID: &str = "2.25.1";

/// Which part of an experiment an image belongs to, when its list says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Weights are fitted on these.
    Train,
    /// Epoch, threshold and calibration are chosen on these.
    Validation,
    /// Figures are reported on these, and nothing is chosen on them.
    Test,
}

impl Split {
    /// As lists write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    /// `train`, `validation` (or `val`), `test`, in any case.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "train" | "training" => Ok(Self::Train),
            "validation" | "val" | "valid" => Ok(Self::Validation),
            "test" => Ok(Self::Test),
            _ => Err("expected `train`, `validation` or `test`".to_owned()),
        }
    }
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

/// Why an image or a mask of a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// It is not there, or may not be read.
    #[error("`{}` cannot be read: {reason}; correct the list, or bring the file back", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A picture that cannot be taken for a radiograph.
    #[error("`{}` cannot be used: {error}; take it out of the list, or replace the file", file.display())]
    Picture {
        /// Which file.
        file: PathBuf,
        /// Why not.
        error: PictureError,
    },
    /// A DICOM object whose pixels cannot be had. What the parser says may quote the data set and is left out.
    #[error("`{}` cannot be used: {}; take it out of the list, or replace the file", file.display(), error.reason_and_words().1)]
    Dicom {
        /// Which file.
        file: PathBuf,
        /// Why not.
        error: ImagingError,
    },
    /// A mask of another size than its image.
    #[error(
        "mask `{}` has {} x {} pixels and its image {} x {}: masks have the size of their image",
        mask.display(), found.1, found.0, expected.1, expected.0
    )]
    MaskSize {
        /// Which mask.
        mask: PathBuf,
        /// Its rows and columns.
        found: (usize, usize),
        /// Those of the image.
        expected: (usize, usize),
    },
}

impl Sample {
    /// The image as a DICOM Part 10 file, so that PNG and JPEG take the same way as what scanners send: the file itself,
    /// or the picture wrapped with its view and age.
    ///
    /// # Errors
    /// [`SampleError`], naming the file.
    pub fn part10(&self) -> Result<Vec<u8>, SampleError> {
        let bytes = read(&self.file)?;
        if is_part10(&bytes) {
            return Ok(bytes);
        }
        let facts = PictureFacts {
            view: self.view.as_deref().unwrap_or_default(),
            age_years: self.age_years.map(|years| years.floor() as u32),
        };
        picture_as_radiograph(&bytes, facts, PICTURE_UID)
            .map_err(|error| SampleError::Picture { file: self.file.clone(), error })
    }

    /// The grey values as they are meant to be seen: larger is brighter, after the object's window if `use_voi`; see
    /// [`crate::imaging::GreyImage::presentation`].
    ///
    /// # Errors
    /// [`SampleError`], naming the file.
    pub fn grey(&self, use_voi: bool) -> Result<Plane, SampleError> {
        let part10 = self.part10()?;
        let grey = read_object(&part10).and_then(|object| decode_grey(&object, DecodeLimits::default()));
        match grey {
            Ok(grey) => Ok(grey.presentation(use_voi)),
            Err(error) => Err(SampleError::Dicom { file: self.file.clone(), error }),
        }
    }

    /// The lung mask of an image of these rows and columns: 1 where lung is, 0 elsewhere. `None` where the list names none.
    ///
    /// # Errors
    /// [`SampleError`], naming the file.
    pub fn lung_mask(&self, rows: usize, columns: usize) -> Result<Option<Plane>, SampleError> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let picture = decode_picture(&read(mask)?)
            .map_err(|error| SampleError::Picture { file: mask.clone(), error })?
            .into_luma16();
        let found = (picture.height() as usize, picture.width() as usize);
        if found != (rows, columns) {
            return Err(SampleError::MaskSize { mask: mask.clone(), found, expected: (rows, columns) });
        }
        let values = picture.into_raw().into_iter().map(|value| f32::from(u8::from(value > 0))).collect();
        Ok(Some(Plane { rows, columns, values }))
    }
}

/// The bytes of a file of the data set.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, SampleError> {
    let unreadable = |reason: String| SampleError::Unreadable { file: file.to_owned(), reason };
    let metadata = fs_err::metadata(file).map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(unreadable(format!("it has {} bytes and at most {MAX_FILE_BYTES} are read", metadata.len())));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    fs_err::File::open(file)
        .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes))
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(bytes)
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

impl DataSet {
    /// The samples of one split, or all of them for `None`, in the list's order.
    pub fn of(&self, split: Option<Split>) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| split.is_none() || sample.split == split)
    }

    /// The labels that occur, sorted, each once.
    #[must_use]
    pub fn labels(&self) -> Vec<&str> {
        let labels: std::collections::BTreeSet<&str> =
            self.samples.iter().filter_map(|sample| sample.label.as_deref()).collect();
        labels.into_iter().collect()
    }
}
