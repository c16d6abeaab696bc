//! What a pipeline asks of the networks.

use std::{future::Future, time::Duration};

use crate::{
    imaging::{Plane, Planes},
    types::Errand,
};

/// The networks of one bundle: a lung segmenter and the classifiers.
pub trait Models: Send + Sync + 'static {
    /// The probability of lung, 0 to 1, for each pixel of a square canvas (0 black to 1 white) of the segmenter's
    /// side.
    fn segment(&self, canvas: Plane, errand: &Errand) -> impl Future<Output = Result<Plane, ModelError>> + Send;

    /// Runs the classifier `member_idx` on its inputs (normalised channels) and explains its output for `target_class_idx`.
    fn classify(
        &self,
        member_idx: usize,
        inputs: Vec<Planes>,
        target_class_idx: usize,
        errand: &Errand,
    ) -> impl Future<Output = Result<MemberOutput, ModelError>> + Send;

    /// The bundle's fusion and calibration: one output per class, 0 to 1, of the logits of the members that ran.
    /// `None` when there is nothing to fuse or a member has another number of outputs than the bundle says.
    fn fuse(&self, member_logits: &[&[f32]]) -> Option<Vec<f64>>;
}

/// What one classifier says about one image.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberOutput {
    /// One per network output.
    pub logits: Vec<f32>,
    /// One per class, 0 to 1.
    pub probabilities: Vec<f32>,
    /// Features before the last layer; empty when the network gives none.
    pub embedding: Vec<f32>,
    /// Of the target class; `None` when the network gives none.
    pub activation_map: Option<ActivationMap>,
}

/// A class-activation map on the grid of the last feature map.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationMap {
    /// Grid rows.
    pub rows: usize,
    /// Grid columns.
    pub columns: usize,
    /// `rows * columns` values, row-major, signed, not scaled.
    pub values: Vec<f32>,
    /// Such as `cam`, `hirescam`, `own`.
    pub method: String,
}

/// Why a network gave no answer; the words of the room that runs it, without patient data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// It was asked and failed.
    #[error("{0}")]
    Failed(String),
    /// It was not asked: it failed for others before. That says nothing about this image.
    #[error("{words}")]
    TakenOut {
        /// Until it may be asked again.
        wait: Duration,
        /// Which network, and how it failed.
        words: String,
    },
}

impl ModelError {
    /// How long to wait before the network may be asked; `None` when it was asked.
    #[must_use]
    pub const fn wait(&self) -> Option<Duration> {
        match self {
            Self::Failed(_) => None,
            Self::TakenOut { wait, .. } => Some(*wait),
        }
    }
}
