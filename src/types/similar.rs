//! Similar cases: what a run found of them, and the pseudonyms that keep a patient's own images out.

use std::fmt;

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{BundleStatus, Sha256Digest, Uid};

/// A patient or a study of the reference library: HMAC-SHA256 under the installation's key. The same identifier always
/// gives the same pseudonym; without the key it cannot be computed, so identifiers cannot be tried one by one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pseudonym(pub [u8; 32]);

impl fmt::Debug for Pseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonym(..)")
    }
}

/// The key of the pseudonyms. It cannot be printed.
#[derive(Clone)]
pub struct PseudonymKey([u8; 32]);

impl fmt::Debug for PseudonymKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PseudonymKey(..)")
    }
}

impl PseudonymKey {
    /// A key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The pseudonym of a Patient ID (0010,0020); spaces around it do not count. `None` for an empty one.
    #[must_use]
    pub fn patient(&self, patient_id: &str) -> Option<Pseudonym> {
        self.pseudonym("patient", patient_id)
    }

    /// The pseudonym of a study: its Study Instance UID (0020,000D) or another name. `None` for an empty one.
    #[must_use]
    pub fn study(&self, study: &str) -> Option<Pseudonym> {
        self.pseudonym("study", study)
    }

    fn pseudonym(&self, kind: &str, identifier: &str) -> Option<Pseudonym> {
        let identifier = identifier.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if identifier.is_empty() {
            return None;
        }
        // A key of any length is accepted: there is no error to meet.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(kind.as_bytes());
        mac.update(&[0x1f]);
        mac.update(identifier.as_bytes());
        Some(Pseudonym(mac.finalize().into_bytes().into()))
    }
}

/// Which state of the reference library a search saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseLibraryVersion {
    /// Cases of this bundle and embedding method.
    pub n_cases: u64,
    /// SHA-256 over case id, label, cohort and digest of the vector of every case, in the order of the ids.
    pub sha256: Sha256Digest,
}

/// A case of the reference library: always of another patient and another study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimilarCase {
    /// Its number in the library, such as `LIB-0123456789ABCDEF`.
    pub case_id: String,
    /// Euclidean distance of the embeddings of length 1: 0 (same direction) to 2 (opposite).
    pub distance: f64,
    /// What the library says of the case; no evidence for the patient at hand.
    pub label: String,
    /// Where the case is from.
    pub cohort: String,
}

/// An image of an earlier study of the same patient that this installation has analysed with the same bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PriorImage {
    /// (0020,000D)
    pub study_instance_uid: Uid,
    /// (0008,0018)
    pub sop_instance_uid: Uid,
    /// (0008,0020), `YYYYMMDD`.
    pub study_date: Option<String>,
    /// As in [`SimilarCase::distance`].
    pub distance: f64,
}

/// What the search for similar cases gave for one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimilarCases {
    /// How the vector was made, such as `all-members` or `member:resnet50`.
    pub method: String,
    /// The library that was searched; `None` when none was.
    pub library: Option<CaseLibraryVersion>,
    /// The nearest first.
    pub cases: Vec<SimilarCase>,
    /// Of the same patient, the newest first.
    pub priors: Vec<PriorImage>,
    /// Why `cases` is empty; one sentence without patient data.
    pub reason: Option<String>,
}

/// What nobody may conclude from similar cases.
#[must_use]
pub const fn neighbours_caution(status: BundleStatus) -> &'static str {
    match status {
        BundleStatus::Untrained => "The weights are untrained: these distances mean nothing.",
        BundleStatus::Unvalidated | BundleStatus::Validated => {
            "Similar by network embedding; the labels of similar cases are not evidence for this patient."
        }
    }
}

/// Cosine of the angle between two vectors of length 1 at this Euclidean distance (0 to 2).
#[must_use]
pub fn cosine_of_distance(distance: f64) -> f64 {
    1.0 - distance * distance / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pseudonyms_are_keyed_and_tell_patients_from_studies() {
        let (one, other) = (PseudonymKey::new([1; 32]), PseudonymKey::new([2; 32]));
        assert_eq!(one.patient("P1"), one.patient(" P1 "));
        assert_ne!(one.patient("P1"), one.patient("P2"));
        assert_ne!(one.patient("P1"), one.study("P1"));
        assert_ne!(one.patient("P1"), other.patient("P1"));
        assert_eq!(one.patient("  "), None);
        // Python: hmac.new(bytes([1] * 32), b"patient\x1fP1", "sha256").hexdigest()
        let digest = Sha256Digest(one.patient("P1").unwrap().0);
        assert_eq!(digest.to_string(), "d55912f12cd0d8f0d26e9b0c84eb24e43b4a94a29799effcdacd6467bbd35d66");
        assert_eq!(format!("{one:?} {:?}", one.patient("P1").unwrap()), "PseudonymKey(..) Pseudonym(..)");
    }

    #[test]
    fn distance_and_cosine_agree() {
        assert!((cosine_of_distance(0.0) - 1.0).abs() < 1e-12);
        assert!((cosine_of_distance(2.0) + 1.0).abs() < 1e-12);
        assert!(cosine_of_distance(2.0_f64.sqrt()).abs() < 1e-12);
    }
}
