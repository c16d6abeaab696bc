//! What each voxel of a measured CT is, in the form in which its run keeps it.
//!
//! The column `run.masks` is a byte with the version, 1, and a zlib stream (RFC 1950) of columns, rows and slices, 32 bits
//! each, little endian, and of one byte for each voxel.

use std::io::{Read as _, Write as _};

use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};

use super::{DbError, Result};
use crate::types::VoxelLabels;

/// The only version so far.
const VERSION: u8 = 1;

/// More voxels than any volume that is measured; a damaged size must not ask for more memory.
const MAXIMUM_VOXELS: u64 = 1 << 29;

/// A CT of 35 million voxels takes 0.4 MB and 0.2 s: less effort is no faster and leaves half as much again, more saves little.
const COMPRESSION: Compression = Compression::new(4);

/// Compressed [`VoxelLabels`].
#[derive(Clone, PartialEq, Eq)]
pub struct PackedMasks(Vec<u8>);

impl std::fmt::Debug for PackedMasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMasks").field("size_bytes", &self.0.len()).finish()
    }
}

impl PackedMasks {
    /// Compresses labels. Takes a second for a large CT: not on a thread that others wait for.
    ///
    /// # Errors
    /// [`DbError::Unreadable`] when size and labels contradict each other or are too large to be read again.
    pub fn of(labels: &VoxelLabels) -> Result<Self> {
        if voxels(labels.size) != Some(labels.bits.len() as u64) {
            return Err(unreadable(format!("{:?} voxels and {} labels", labels.size, labels.bits.len())));
        }
        compressed(labels).map(Self).map_err(unreadable)
    }

    /// The labels. Takes a moment and a byte for each voxel.
    ///
    /// # Errors
    /// [`DbError::Unreadable`] when the column is damaged or of a later version. What is declared bounds what is read.
    pub fn unpack(&self) -> Result<VoxelLabels> {
        let Some((&version, compressed)) = self.0.split_first() else { return Err(unreadable("it is empty")) };
        if version != VERSION {
            return Err(unreadable(format!("it is of version {version}, {VERSION} is known")));
        }
        let mut decoder = ZlibDecoder::new(compressed);
        let mut size = [0_usize; 3];
        for length in &mut size {
            let mut bytes = [0; 4];
            decoder.read_exact(&mut bytes).map_err(unreadable)?;
            *length = u32::from_le_bytes(bytes) as usize;
        }
        let expected = voxels(size).ok_or_else(|| unreadable(format!("it says that there are {size:?} voxels")))?;
        let mut bits = Vec::new();
        // One more than there may be, to see whether there is.
        decoder.take(expected + 1).read_to_end(&mut bits).map_err(unreadable)?;
        if bits.len() as u64 != expected {
            let found = if bits.len() as u64 > expected { "more".to_owned() } else { bits.len().to_string() };
            return Err(unreadable(format!("it says that there are {size:?} voxels and has {found}")));
        }
        Ok(VoxelLabels { size, bits })
    }

    pub(super) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn compressed(labels: &VoxelLabels) -> std::io::Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(vec![VERSION], COMPRESSION);
    for length in labels.size {
        encoder.write_all(&(length as u32).to_le_bytes())?;
    }
    encoder.write_all(&labels.bits)?;
    encoder.finish()
}

/// The number of voxels; `None` when it is beyond what is kept.
fn voxels(size: [usize; 3]) -> Option<u64> {
    let product = size.iter().try_fold(1_u64, |product, length| product.checked_mul(*length as u64))?;
    (product <= MAXIMUM_VOXELS && size.iter().all(|length| u32::try_from(*length).is_ok())).then_some(product)
}

fn unreadable(problem: impl std::fmt::Display) -> DbError {
    DbError::unreadable("column run.masks", problem)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        db::{
            retention, run,
            testing::{self, TestDatabase},
        },
        report::samples,
        types::{BundleStatus, Sha256Digest},
    };

    fn labels() -> VoxelLabels {
        VoxelLabels { size: [5, 3, 2], bits: (0..30).map(|voxel| voxel % 32).collect() }
    }

    #[test]
    fn what_is_damaged_is_named_and_costs_no_memory() {
        let packed = PackedMasks::of(&labels()).unwrap();
        assert_eq!(packed.unpack().unwrap(), labels());
        let said = |bytes: Vec<u8>| PackedMasks(bytes).unpack().unwrap_err().to_string();
        let whole = packed.0.clone();
        assert!(said(Vec::new()).contains("column run.masks (it is empty)"));
        assert!(said([&[2], &whole[1..]].concat()).contains("version 2"));
        assert!(said(whole[..whole.len() / 2].to_vec()).contains("column run.masks"));
        let mut other = whole;
        let last = other.len() - 1;
        other[last] ^= 1;
        assert!(said(other).contains("column run.masks"), "the checksum is wrong");

        // Sizes that lie.
        let zlib = |size: [u32; 3], bits: usize| {
            let mut packed = vec![VERSION];
            let mut encoder = ZlibEncoder::new(&mut packed, COMPRESSION);
            for length in size {
                encoder.write_all(&length.to_le_bytes()).unwrap();
            }
            encoder.write_all(&vec![1; bits]).unwrap();
            encoder.finish().unwrap();
            packed
        };
        assert_eq!(PackedMasks(zlib([2, 2, 2], 8)).unpack().unwrap().bits, [1; 8]);
        assert!(said(zlib([2, 2, 2], 7)).contains("[2, 2, 2] voxels and has 7"));
        assert!(said(zlib([2, 2, 2], 1 << 20)).contains("has more"));
        assert!(said(zlib([u32::MAX; 3], 8)).contains("says that there are"));
        assert!(said(zlib([1 << 14, 1 << 14, 2], 8)).contains("has 8"));

        let contradiction = VoxelLabels { size: [5, 3, 3], ..labels() };
        assert!(PackedMasks::of(&contradiction).unwrap_err().to_string().contains("[5, 3, 3] voxels and 30 labels"));
    }

    proptest! {
        #[test]
        fn every_volume_comes_back(columns in 0_usize..9, rows in 0_usize..9, slices in 0_usize..9, seed: u8) {
            let bits = (0..columns * rows * slices).map(|voxel| (voxel as u8).wrapping_mul(seed)).collect();
            let labels = VoxelLabels { size: [columns, rows, slices], bits };
            prop_assert_eq!(PackedMasks::of(&labels).unwrap().unpack().unwrap(), labels);
        }

        #[test]
        fn no_damage_is_a_panic(at in 0_usize..64, byte: u8) {
            let mut packed = PackedMasks::of(&labels()).unwrap();
            let at = at % packed.0.len();
            packed.0[at] = byte;
            if let Ok(read) = packed.unpack() {
                prop_assert_eq!(read.bits.len(), read.size.iter().product::<usize>());
            }
        }
    }

    /// They are kept with the run, come back as they were, and go with its images.
    #[tokio::test]
    async fn masks_are_kept_with_their_run_and_go_with_its_images() {
        let database = TestDatabase::start("masks").await;
        let db = &database.db;
        let mut connection = db.acquire().await.unwrap();
        let mut runs = Vec::new();
        for study in ["1.2.3", "1.2.4"] {
            let workup_id = testing::workup(db, study).await;
            let run_id = run::insert(&mut connection, &testing::new_run(workup_id)).await.unwrap().unwrap();
            let run::Claim::Claimed(claimed) = run::claim(&mut connection, run_id, "node").await.unwrap() else {
                panic!("not claimed")
            };
            let record = samples::ct_measured(BundleStatus::Unvalidated, &samples::ct_sources());
            let packed = PackedMasks::of(&labels()).unwrap();
            let finished = run::Finished {
                outcome: &record.outcome,
                bundle: &record.bundle,
                configuration_sha256: Sha256Digest::of(b"configuration"),
                result_key: Sha256Digest::of(study.as_bytes()),
                stage_milliseconds: &[],
                computed_with: &[],
                masks: Some(&packed),
            };
            assert_eq!(run::masks(&mut connection, run_id).await.unwrap(), None);
            run::finish(&mut connection, run_id, claimed.attempt, &finished).await.unwrap().unwrap();
            let kept = run::masks(&mut connection, run_id).await.unwrap().unwrap();
            assert_eq!(kept.unpack().unwrap(), labels());
            runs.push(run_id);
        }
        assert_eq!(run::masks(&mut connection, uuid::Uuid::from_u128(7)).await.unwrap(), None);

        // The images of the first study are removed.
        sqlx::query(
            "insert into instance (id, sop_instance_uid, local_ae_title, sha256, version, sop_class_uid,
                                   study_instance_uid, series_instance_uid, transfer_syntax_uid, size_bytes,
                                   archive_key, association_id, calling_ae_title, peer_address, received_at,
                                   own_output)
             values ($1, '1.2.3.1', 'HILUM', sha256('a'), 1, '1.2', '1.2.3', '1.2.3.2', '1.2.840.10008.1.2.1', 9,
                     '1.2.3', $1, 'CT_1', '192.0.2.1', now(), false)",
        )
        .bind(uuid::Uuid::now_v7())
        .execute(db.pool())
        .await
        .unwrap();
        sqlx::query("update run set rendered_at = now()").execute(db.pool()).await.unwrap();
        sqlx::query("update workup set state = 'answered'").execute(db.pool()).await.unwrap();
        let before = time::OffsetDateTime::now_utc() + time::Duration::DAY;
        let kind = retention::Kind::Objects;
        let candidates = retention::candidates(&mut connection, kind, before, 9).await.unwrap();
        let removed = retention::remove(&mut connection, kind, &candidates[0], before, "a test").await.unwrap();
        assert_eq!(removed.archive_keys, ["1.2.3"]);
        assert_eq!(run::masks(&mut connection, runs[0]).await.unwrap(), None);
        assert!(run::masks(&mut connection, runs[1]).await.unwrap().is_some());
        drop(connection);
        database.stop().await;
    }
}
