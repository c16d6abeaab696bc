//! A bundle: a folder `models/<name>/` with `manifest.toml` and the weights files that it names.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::manifest::Manifest;
use crate::types::{BundleIdentity, MemberIdentity, Sha256Digest};

/// Name of the manifest in the bundle's folder.
pub const MANIFEST_FILE_NAME: &str = "manifest.toml";

/// Largest manifest, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// Largest weights file, in bytes: four times VGG-16 in f32.
pub const MAX_WEIGHTS_BYTES: u64 = 2_300_000_000;

/// Why a folder is not a sound bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// The manifest cannot be read.
    #[error(
        "the manifest of the bundle in `{folder}` cannot be read: {reason}; give the folder that holds \
         `manifest.toml`, or make an untrained bundle with `hilum model init`"
    )]
    Unreadable {
        /// The bundle's folder.
        folder: String,
        /// Why not.
        reason: String,
    },
    /// The manifest is wrong.
    #[error("the manifest of the bundle in `{folder}` is not valid:\n{}", problems.join("\n"))]
    Manifest {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
    /// Weights files are missing, too large, or not the ones that the manifest means.
    #[error("the weights of the bundle in `{folder}` are not as its manifest says:\n{}", problems.join("\n"))]
    Weights {
        /// The bundle's folder.
        folder: String,
        /// All of them, each with the remedy.
        problems: Vec<String>,
    },
}

/// A bundle whose manifest is valid and whose weights files have the digests that the manifest gives.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
    digest: Sha256Digest,
}

impl Bundle {
    /// Reads the manifest in `folder` and checks the digest of every weights file (about a second per gigabyte).
    /// The weights themselves are read, and checked once more, by [`Ensemble::load`](super::Ensemble::load).
    pub fn open(folder: &Path) -> Result<Self, BundleError> {
        let folder_text = folder.display().to_string();
        let unreadable = |reason: String| BundleError::Unreadable { folder: folder_text.clone(), reason };
        let manifest_bytes = read_bounded(&folder.join(MANIFEST_FILE_NAME), MAX_MANIFEST_BYTES).map_err(unreadable)?;
        let text = std::str::from_utf8(&manifest_bytes)
            .map_err(|error| unreadable(format!("`{MANIFEST_FILE_NAME}` is not UTF-8 text ({error})")))?;
        let manifest = Manifest::parse(text)
            .map_err(|problems| BundleError::Manifest { folder: folder_text.clone(), problems })?;

        let problems: Vec<String> = manifest
            .networks()
            .filter_map(|network| weights_problem(folder, network.weights, network.sha256))
            .collect();
        if !problems.is_empty() {
            return Err(BundleError::Weights { folder: folder_text, problems });
        }

        let mut hasher = Sha256::new();
        hasher.update(&manifest_bytes);
        for network in manifest.networks() {
            hasher.update(network.sha256.0);
        }
        let digest = Sha256Digest(hasher.finalize().into());
        Ok(Self { folder: folder.to_owned(), manifest, digest })
    }

    /// What the bundle says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What results record of the bundle. The digest is SHA-256 over the manifest's bytes followed by the
    /// digests of the weights (32 bytes each; segmenter, then members in order).
    #[must_use]
    pub fn identity(&self) -> BundleIdentity {
        let manifest = &self.manifest;
        BundleIdentity {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            status: manifest.status,
            digest: self.digest,
            classes: manifest.classes.clone(),
            target_class_idx: manifest.target_class_idx,
            threshold: manifest.threshold,
            fusion: manifest.fusion.name().to_owned(),
            calibration: manifest.calibration.id().map(str::to_owned),
            reference_performance: manifest.reference_performance.clone(),
            segmenter: MemberIdentity {
                name: "lung segmenter".to_owned(),
                architecture: "unet".to_owned(),
                version: manifest.segmenter.version.clone(),
                weights_sha256: manifest.segmenter.sha256,
            },
            members: manifest
                .members
                .iter()
                .map(|member| MemberIdentity {
                    name: member.name.clone(),
                    architecture: member.architecture.name().to_owned(),
                    version: member.version.clone(),
                    weights_sha256: member.sha256,
                })
                .collect(),
        }
    }
}

/// Reads a regular file of at most `max_bytes`.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, String> {
    let (file, size_bytes) = open_bounded(path, max_bytes)?;
    let mut bytes = Vec::with_capacity(size_bytes as usize);
    // One byte more than allowed shows a file that grew meanwhile.
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_large(path, bytes.len() as u64, max_bytes));
    }
    Ok(bytes)
}

fn open_bounded(path: &Path, max_bytes: u64) -> Result<(fs_err::File, u64), String> {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    let metadata = fs_err::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err(format!("`{}` is not a regular file", path.display()));
    }
    if metadata.len() > max_bytes {
        return Err(too_large(path, metadata.len(), max_bytes));
    }
    let file = fs_err::File::open(path).map_err(|error| error.to_string())?;
    Ok((file, metadata.len()))
}

fn too_large(path: &Path, size_bytes: u64, max_bytes: u64) -> String {
    format!("`{}` has {size_bytes} bytes, more than the allowed {max_bytes}", path.display())
}

fn weights_problem(folder: &Path, file_name: &str, expected: Sha256Digest) -> Option<String> {
    match file_digest(&folder.join(file_name)) {
        Ok(found) => digest_problem(file_name, expected, found),
        Err(reason) => Some(format!("`{file_name}` cannot be read: {reason}; copy the file into the bundle's folder")),
    }
}

/// What to say when a file is not the one that the manifest means.
pub(super) fn digest_problem(file_name: &str, expected: Sha256Digest, found: Sha256Digest) -> Option<String> {
    (expected != found).then(|| {
        format!(
            "`{file_name}` has SHA-256 {found}, the manifest expects {expected}: restore the file, or correct the \
             manifest if the new weights are meant"
        )
    })
}

/// SHA-256 of a regular file of at most [`MAX_WEIGHTS_BYTES`].
fn file_digest(path: &Path) -> Result<Sha256Digest, String> {
    let (file, _) = open_bounded(path, MAX_WEIGHTS_BYTES)?;
    let mut file = file.take(MAX_WEIGHTS_BYTES + 1);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1024 * 1024];
    let mut n_bytes = 0;
    loop {
        let n_read = file.read(&mut buffer).map_err(|error| error.to_string())?;
        if n_read == 0 {
            break;
        }
        n_bytes += n_read as u64;
        hasher.update(&buffer[..n_read]);
    }
    if n_bytes > MAX_WEIGHTS_BYTES {
        return Err(too_large(path, n_bytes, MAX_WEIGHTS_BYTES));
    }
    Ok(Sha256Digest(hasher.finalize().into()))
}
