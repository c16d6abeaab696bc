//! What the networks' answers tell: whether the image is like those of the training, and whether the members agree.

use std::sync::Arc;

use super::{super::settings::GateSettings, Gates, two_decimals};
use crate::{nn::FeatureSpace, types::ReasonCode};

/// The distance from the training images that is let pass.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureGateSettings {
    /// The classifier whose features are compared.
    pub member: String,
    /// Where the training images lie.
    pub space: Arc<FeatureSpace>,
    /// Which of the nearest training images the second distance is to, from 1.
    pub neighbours: usize,
    /// Largest Mahalanobis distance to the nearest class.
    pub maximum_mahalanobis_distance: f64,
    /// Largest distance to that training image.
    pub maximum_neighbour_distance: f64,
}

impl Gates {
    /// Both distances of an embedding of length 1; `Err` says why the member gave none. What cannot be measured fails: no
    /// score is shown of an image that nobody compared.
    pub(in super::super) fn check_features(&mut self, gate: &FeatureGateSettings, embedding: Result<&[f32], String>) {
        let reason = ReasonCode::OutOfDistribution;
        let distances = embedding.and_then(|embedding| {
            gate.space.distances(embedding, gate.neighbours).ok_or_else(|| {
                let (found, expected) = (embedding.len(), gate.space.features());
                format!("its embedding has {found} numbers, {expected} expected")
            })
        });
        let distances = match distances {
            Ok(distances) => distances,
            Err(words) => {
                let words =
                    format!("the distance from the training images is not known: member {}: {words}", gate.member);
                self.add("features.mahalanobis", false, reason, words);
                return;
            }
        };
        self.add_range(
            "features.mahalanobis",
            reason,
            distances.mahalanobis,
            (f64::NEG_INFINITY, gate.maximum_mahalanobis_distance),
            two_decimals,
            |found| format!("the Mahalanobis distance from the training images is {found}"),
        );
        self.add_range(
            "features.neighbour",
            reason,
            distances.neighbour,
            (f64::NEG_INFINITY, gate.maximum_neighbour_distance),
            |distance| format!("{distance:.4}"),
            |found| format!("training image number {} by nearness is {found} away", gate.neighbours),
        );
    }

    /// `spread` is the largest minus the smallest output of the members for the target class. Left out where the limit is
    /// one that nothing reaches.
    pub(in super::super) fn check_spread(&mut self, spread: f64, settings: &GateSettings) {
        if settings.maximum_member_spread < 1.0 {
            self.add_range(
                "ensemble.disagreement",
                ReasonCode::MemberDisagreement,
                spread,
                (f64::NEG_INFINITY, settings.maximum_member_spread),
                two_decimals,
                |found| format!("the members' outputs differ by {found}"),
            );
        }
    }
}
