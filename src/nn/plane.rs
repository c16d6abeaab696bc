//! The plain data that goes into and comes out of the networks.

/// One plane of samples, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// `rows * columns` samples.
    pub values: Vec<f32>,
}

/// Planes of one size, the channels of a classifier's input, channel after channel, each row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Planes {
    /// Number of channels.
    pub channels: usize,
    /// Number of rows of each channel.
    pub rows: usize,
    /// Number of columns of each channel.
    pub columns: usize,
    /// `channels * rows * columns` samples.
    pub values: Vec<f32>,
}
