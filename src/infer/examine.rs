//! The chest radiograph pipeline in two halves, for those who ask what it does rather than what it finds: evaluation puts
//! altered pictures between them.

use super::{
    CxrPipeline, InferError, Models,
    cxr::{Exclusion, Fused, Seen, StageTimes, Verdict},
};
use crate::{
    imaging::{Plane, lungs::Lungs},
    types::{Errand, GateResult, HeatMap, MemberScore, Placement, ReasonCode},
};

/// An image on its canvas with its lungs, as the classifiers are about to see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Examination {
    /// Every check so far, passed or not.
    pub gates: Vec<GateResult>,
    /// How the image lies on the canvas.
    pub placement: Placement,
    /// 0 to 1, padded to a square, in source pixels.
    pub canvas: Plane,
    /// As they were segmented.
    pub lungs: Lungs,
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Examined {
    /// It can be judged.
    Ready(Box<Examination>),
    /// It cannot be decoded, is no radiograph, or a gate that is enforced stops it.
    Excluded {
        /// The coded reason.
        reason: ReasonCode,
        /// Without patient data.
        words: String,
    },
}

/// What the classifiers say of a canvas.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Fused, calibrated output per class, 0 to 1.
    pub fused: Vec<f64>,
    /// Every member, failed or not, in the bundle's order.
    pub members: Vec<MemberScore>,
    /// Of length 1, or in words why there is none.
    pub embedding: Result<Vec<f32>, String>,
    /// Of the target class, all members together.
    pub heat_map: HeatMap,
}

impl<M: Models> CxrPipeline<M> {
    /// The first half: decoding, gates, lungs. Gates that fail stop it only if `enforce_gates`, whatever the bundle's status.
    ///
    /// # Errors
    /// [`InferError`] when the segmenter or the worker fails.
    ///
    /// Cancel safety: as [`CxrPipeline::analyse`].
    pub async fn examine(&self, part10: Vec<u8>, enforce_gates: bool) -> Result<Examined, InferError> {
        let errand = Errand::default();
        let seen = self.see(part10, enforce_gates, &errand, &mut StageTimes::of(&errand)).await?;
        Ok(match seen {
            Verdict::Goes(Seen { gates, placement, canvas, lungs }) => {
                Examined::Ready(Box::new(Examination { gates: gates.into_results(), placement, canvas, lungs }))
            }
            Verdict::Excluded(Exclusion { refused, .. }) => {
                Examined::Excluded { reason: refused.reason, words: refused.words }
            }
        })
    }

    /// The second half: the classifiers on this canvas with these lungs.
    ///
    /// # Errors
    /// [`InferError`] when no classifier answers, or canvas and placement contradict each other.
    ///
    /// Cancel safety: as [`CxrPipeline::analyse`].
    pub async fn judge(&self, canvas: Plane, placement: Placement, lungs: Lungs) -> Result<Judgement, InferError> {
        let errand = Errand::default();
        let (of_members, _) = self.compose(canvas, placement, lungs, &errand).await?;
        let frames = of_members.iter().map(|(_, frame)| *frame).collect();
        let inputs = of_members.into_iter().map(|(inputs, _)| inputs).collect();
        let outputs = self.classify(inputs, &errand).await?;
        let embedding = self.embedding(&outputs);
        let Fused { outputs, members, heat_map, .. } = self.fused(outputs, frames)?;
        Ok(Judgement { fused: outputs, members, embedding, heat_map })
    }
}
