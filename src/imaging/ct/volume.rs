//! A CT volume in Hounsfield units on a regular grid that lies along the patient's axes.

/// Values in Hounsfield units. Columns run towards the patient's left, rows towards the back, slices towards the head
/// (LPS), whatever way the images were stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Volume {
    /// Columns, rows, slices.
    pub size: [usize; 3],
    /// Distance between neighbours along columns, rows and slices, in millimetres.
    pub spacing_mm: [f64; 3],
    /// Slice after slice from the feet, row after row from the front, column after column from the patient's right.
    pub hu: Vec<i16>,
}

impl Volume {
    /// Pixels of one slice.
    #[must_use]
    pub const fn slice_pixels(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Volume of one voxel in millilitres.
    #[must_use]
    pub fn voxel_ml(&self) -> f64 {
        self.spacing_mm.iter().product::<f64>() / 1000.0
    }

    /// The values of one slice, counted from the feet.
    #[must_use]
    pub fn slice(&self, slice: usize) -> &[i16] {
        let pixels = self.slice_pixels();
        self.hu.get(slice * pixels..(slice + 1) * pixels).unwrap_or_default()
    }
}
