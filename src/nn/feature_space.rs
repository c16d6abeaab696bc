//! Where the training images lie in the feature space of one classifier, and how far another image is from them.
//!
//! Two distances, of embeddings of length 1, reduced to their principal components: Mahalanobis to the nearest class, with
//! one covariance for all classes (Lee et al., NeurIPS 2018), and Euclidean to the k-th nearest training image (Sun et al.,
//! ICML 2022). `train::feature_space` fits it, `hilum gate fit` writes it into a bundle. What differs from the training
//! images only in directions that these do not use is not seen.

use std::{collections::BTreeMap, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use toml_edit::{DocumentMut, Item, Table, value};

use super::{
    bundle::{Bundle, BundleError, MANIFEST_FILE_NAME, MAX_MANIFEST_BYTES, digest_problem, read_bounded},
    gates::FeatureGate,
    import::{ImportError, replace},
    init::lock_neighbourhood,
    manifest::{Input, Manifest},
};
use crate::types::Sha256Digest;

/// Largest number of principal components.
pub const MAX_COMPONENTS: usize = 128;
/// Largest file of a feature space, in bytes: 128 components of 16,384 features and 200,000 images.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Names of the tensors in the file.
const CENTRE: &str = "centre";
const COMPONENTS: &str = "components";
const CLASS_MEANS: &str = "class_means";
const PRECISION: &str = "precision";
const VECTORS: &str = "vectors";

/// Numbers in rows and columns, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Numbers of each row, at least 1.
    pub columns: usize,
    /// A multiple of `columns`.
    pub values: Vec<f64>,
}

impl Matrix {
    fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.columns.max(1))
    }
}

/// The training images in the feature space of one classifier.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureSpace {
    /// Mean of the training images' embeddings: one number for each feature.
    pub centre: Vec<f64>,
    /// Principal components, one a row: as many columns as features, 1 to [`MAX_COMPONENTS`] rows of length 1.
    pub components: Matrix,
    /// Mean of each class, one a row, in components.
    pub class_means: Matrix,
    /// Inverse of the covariance that the classes share, in components: symmetric.
    pub precision: Matrix,
    /// Every training image, one a row, in components.
    pub vectors: Matrix,
}

/// How far an image is from the training images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureDistances {
    /// Mahalanobis distance (not squared) to the nearest class.
    pub mahalanobis: f64,
    /// Euclidean distance to the k-th nearest training image.
    pub neighbour: f64,
}

impl FeatureSpace {
    /// Features of an embedding.
    #[must_use]
    pub const fn features(&self) -> usize {
        self.centre.len()
    }

    /// The distances of an embedding of length 1; `neighbours` from 1 (of fewer training images the farthest). `None` when
    /// it has another number of features.
    #[must_use]
    pub fn distances(&self, embedding: &[f32], neighbours: usize) -> Option<FeatureDistances> {
        let reduced = self.reduced(embedding)?;
        let mahalanobis = self.class_means.rows().map(|mean| {
            let apart: Vec<f64> = reduced.iter().zip(mean).map(|(value, mean)| value - mean).collect();
            let weighted = self.precision.rows().map(|row| dot(row, &apart));
            weighted.zip(&apart).map(|(one, other)| one * other).sum::<f64>()
        });
        let nearest_class = mahalanobis.min_by(f64::total_cmp)?;
        let mut squares: Vec<f64> = self
            .vectors
            .rows()
            .map(|vector| vector.iter().zip(&reduced).map(|(one, other)| (one - other).powi(2)).sum())
            .collect();
        let wanted = neighbours.clamp(1, squares.len().max(1)) - 1;
        if squares.is_empty() {
            return None;
        }
        let (_, &mut square, _) = squares.select_nth_unstable_by(wanted, f64::total_cmp);
        // Rounding may go below 0; what is no number stays none.
        let nearest_class = if nearest_class < 0.0 { 0.0 } else { nearest_class };
        Some(FeatureDistances { mahalanobis: nearest_class.sqrt(), neighbour: square.sqrt() })
    }

    fn reduced(&self, embedding: &[f32]) -> Option<Vec<f64>> {
        if embedding.len() != self.centre.len() {
            return None;
        }
        let centred: Vec<f64> =
            embedding.iter().zip(&self.centre).map(|(value, centre)| f64::from(*value) - centre).collect();
        Some(self.components.rows().map(|component| dot(component, &centred)).collect())
    }

    /// What is wrong with the numbers, in words.
    fn problem(&self) -> Option<String> {
        let (features, components) = (self.features(), self.components.rows().len());
        let finite = [&self.components, &self.class_means, &self.precision, &self.vectors]
            .into_iter()
            .flat_map(|table| &table.values)
            .chain(&self.centre)
            .all(|value| value.is_finite());
        if !finite {
            return Some("it holds numbers that are not finite".to_owned());
        }
        if features == 0 || self.components.columns != features || !(1..=MAX_COMPONENTS).contains(&components) {
            let columns = self.components.columns;
            return Some(format!(
                "`{COMPONENTS}` has {components} rows of {columns} for {features} features, 1 to {MAX_COMPONENTS} expected"
            ));
        }
        for (name, table) in [(CLASS_MEANS, &self.class_means), (PRECISION, &self.precision), (VECTORS, &self.vectors)]
        {
            if table.columns != components || table.values.is_empty() {
                return Some(format!("`{name}` has rows of {}, one or more of {components} expected", table.columns));
            }
        }
        (self.precision.rows().len() != components).then(|| format!("`{PRECISION}` is not square"))
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// Words that name the tensor that is missing or wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| format!("it is not a sound safetensors file ({error})"))?;
        let table = |name: &str| {
            let tensor = file.tensor(name).map_err(|_| format!("it has no tensor `{name}`"))?;
            let (Dtype::F64, &[_, columns]) = (tensor.dtype(), tensor.shape()) else {
                let (dtype, shape) = (tensor.dtype(), tensor.shape());
                return Err(format!("`{name}` is {dtype:?} of shape {shape:?}, F64 of two dimensions expected"));
            };
            let values = tensor.data().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
            Ok(Matrix { columns, values })
        };
        let space = Self {
            centre: table(CENTRE)?.values,
            components: table(COMPONENTS)?,
            class_means: table(CLASS_MEANS)?,
            precision: table(PRECISION)?,
            vectors: table(VECTORS)?,
        };
        match space.problem() {
            Some(problem) => Err(problem),
            None => Ok(space),
        }
    }

    /// A safetensors file: five tensors of 64-bit floats with two dimensions.
    ///
    /// # Errors
    /// Words that name what is wrong with the numbers.
    pub fn to_bytes(&self) -> Result<Vec<u8>, String> {
        if let Some(problem) = self.problem() {
            return Err(problem);
        }
        let centre = Matrix { columns: self.centre.len(), values: self.centre.clone() };
        let tensors: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = [
            (CENTRE, &centre),
            (COMPONENTS, &self.components),
            (CLASS_MEANS, &self.class_means),
            (PRECISION, &self.precision),
            (VECTORS, &self.vectors),
        ]
        .into_iter()
        .map(|(name, table)| {
            let bytes = table.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, (vec![table.rows().len(), table.columns], bytes))
        })
        .collect();
        let views = tensors
            .iter()
            .map(|(name, (shape, bytes))| Ok((*name, TensorView::new(Dtype::F64, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| error.to_string())?;
        safetensors::serialize(views, None).map_err(|error| error.to_string())
    }
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

impl Bundle {
    /// The feature space of the bundle's gate, read and checked against the manifest; `None` in bundles without.
    ///
    /// # Errors
    /// [`BundleError::Weights`] when the file is not the one that the manifest means, or makes no sense.
    pub fn feature_space(&self) -> Result<Option<FeatureSpace>, BundleError> {
        let Input::Image2d { gates, .. } = &self.manifest().input else { return Ok(None) };
        let Some(FeatureGate { file, sha256, .. }) = &gates.features else { return Ok(None) };
        let read = || {
            let bytes = read_bounded(&self.folder().join(file), MAX_FILE_BYTES)?;
            match digest_problem(file, *sha256, Sha256Digest::of(&bytes)) {
                Some(problem) => Err(problem),
                None => FeatureSpace::from_bytes(&bytes),
            }
        };
        read().map(Some).map_err(|reason| BundleError::Weights {
            folder: self.folder().display().to_string(),
            problems: vec![format!(
                "the feature space `{file}` cannot be used: {reason}; run `hilum gate fit` again, or take \
                 `[input.gates.features]` out of the manifest"
            )],
        })
    }
}

/// What `hilum gate fit` found, besides the space itself.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedGate {
    /// The classifier whose features they are.
    pub member: String,
    /// Which of the nearest training images is meant, from 1.
    pub neighbours: u32,
    /// Largest distances that are let pass.
    pub limits: FeatureDistances,
    /// Share of the held-out images that each limit lets pass.
    pub quantile: f64,
    /// Images that the space was fitted on.
    pub n_fitted: u64,
    /// Images of other patients that the limits were set on.
    pub n_held_out: u64,
}

/// Writes a feature space into the bundle in `folder` and `[input.gates.features]` into its manifest, whose comments stay.
/// The bundle is sound at every moment. The name of the new file.
///
/// # Errors
/// [`ImportError`] when the manifest cannot be used or nothing can be written.
pub fn write_feature_gate(folder: &Path, space: &FeatureSpace, gate: &FittedGate) -> Result<String, ImportError> {
    let manifest_error = |problems| ImportError::Manifest { folder: folder.display().to_string(), problems };
    let _lock = lock_neighbourhood(folder)?;
    let manifest_path = folder.join(MANIFEST_FILE_NAME);
    let text = read_bounded(&manifest_path, MAX_MANIFEST_BYTES)
        .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        .map_err(|reason| manifest_error(vec![reason]))?;
    let bytes = space.to_bytes().map_err(ImportError::Request)?;
    let digest = Sha256Digest::of(&bytes).to_string();
    let file_name = format!("features-{}.safetensors", digest.get(..12).unwrap_or(&digest));

    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| manifest_error(vec![error.to_string()]))?;
    let gates = document.get_mut("input").and_then(|input| input.get_mut("gates")).and_then(Item::as_table_mut);
    let Some(gates) = gates else {
        let problem =
            "`input.gates` is not there as a table: only bundles of the kind `image2d` have this gate".to_owned();
        return Err(manifest_error(vec![problem]));
    };
    let replaced = gates.get("features").and_then(|features| features.get("file")).and_then(Item::as_str);
    let replaced = replaced.map(str::to_owned).filter(|name| *name != file_name);
    let mut table = Table::new();
    table.insert("member", value(gate.member.as_str()));
    table.insert("file", value(file_name.as_str()));
    table.insert("sha256", value(digest.as_str()));
    table.insert("neighbours", value(i64::from(gate.neighbours)));
    table.insert("maximum_mahalanobis_distance", value(gate.limits.mahalanobis));
    table.insert("maximum_neighbour_distance", value(gate.limits.neighbour));
    table.insert("quantile", value(gate.quantile));
    table.insert("n_fitted", value(i64::try_from(gate.n_fitted).unwrap_or(i64::MAX)));
    table.insert("n_held_out", value(i64::try_from(gate.n_held_out).unwrap_or(i64::MAX)));
    gates.insert("features", Item::Table(table));
    let changed = document.to_string();
    Manifest::parse(&changed).map_err(manifest_error)?;
    replace(&folder.join(&file_name), &bytes)?;
    replace(&manifest_path, changed.as_bytes())?;
    // A name that the manifest was not allowed to have may lead anywhere.
    if let Some(replaced) = replaced.filter(|name| super::manifest::is_plain_name(name))
        && let Err(error) = fs_err::remove_file(folder.join(replaced))
    {
        tracing::warn!(%error, "the feature space that was replaced cannot be removed: nothing names it any more");
    }
    Ok(file_name)
}

#[cfg(test)]
mod tests {
    use super::{super::init::test_bundle, *};

    fn table(columns: usize, values: &[f64]) -> Matrix {
        Matrix { columns, values: values.to_vec() }
    }

    /// Two of three features count; two classes; the second direction varies less.
    fn space() -> FeatureSpace {
        FeatureSpace {
            centre: vec![0.0, 0.0, 1.0],
            components: table(3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            class_means: table(2, &[0.0, 0.0, 4.0, 0.0]),
            precision: table(2, &[1.0, 0.0, 0.0, 4.0]),
            vectors: table(2, &[0.0, 0.0, 0.0, 1.0, 3.0, 4.0]),
        }
    }

    #[test]
    fn distances_are_those_by_hand() {
        let of = |x: f32, y: f32, neighbours| space().distances(&[x, y, 9.0], neighbours).unwrap();
        // 3 from the second class in the wide direction, 2 x 2 in the narrow one.
        let near = of(1.0, 2.0, 1);
        assert!((near.mahalanobis - (1.0_f64 + 16.0).sqrt()).abs() < 1e-12, "{near:?}");
        assert!((near.neighbour - 2.0_f64.sqrt()).abs() < 1e-12);
        assert!((of(4.0, 0.0, 1).mahalanobis).abs() < 1e-12);
        assert!((of(0.0, 0.0, 3).neighbour - 5.0).abs() < 1e-12);
        assert_eq!(of(0.0, 0.0, 99), of(0.0, 0.0, 3));
        assert_eq!(space().distances(&[1.0, 2.0], 1), None);
        let no_number = of(f32::NAN, 0.0, 1);
        assert!(no_number.mahalanobis.is_nan() && no_number.neighbour.is_nan(), "{no_number:?}");
    }

    #[test]
    fn a_space_survives_its_file_and_what_makes_no_sense_is_named() {
        let bytes = space().to_bytes().unwrap();
        assert_eq!(FeatureSpace::from_bytes(&bytes).unwrap(), space());
        assert!(FeatureSpace::from_bytes(b"nothing").unwrap_err().contains("safetensors"));
        let broken = FeatureSpace { precision: table(2, &[1.0, 0.0]), ..space() };
        assert!(broken.to_bytes().unwrap_err().contains("not square"));
        let broken = FeatureSpace { centre: vec![0.0, f64::NAN, 1.0], ..space() };
        assert!(broken.to_bytes().unwrap_err().contains("not finite"));
        let broken = FeatureSpace { centre: vec![0.0; 2], ..space() };
        assert!(broken.to_bytes().unwrap_err().contains("for 2 features"));
        let broken = FeatureSpace { vectors: table(3, &[0.0; 3]), ..space() };
        assert!(broken.to_bytes().unwrap_err().contains("`vectors` has rows of 3"));
    }

    #[test]
    fn a_bundle_gets_its_gate_and_a_changed_file_is_refused() {
        let bundle = test_bundle();
        let limits = FeatureDistances { mahalanobis: 3.5, neighbour: 0.25 };
        let gate = FittedGate {
            member: "resnet50".to_owned(),
            neighbours: 2,
            limits,
            quantile: 0.99,
            n_fitted: 3,
            n_held_out: 7,
        };
        assert_eq!(Bundle::open(bundle.path()).unwrap().feature_space().unwrap(), None);
        let before = Bundle::open(bundle.path()).unwrap().identity().digest;
        let first = write_feature_gate(bundle.path(), &space(), &gate).unwrap();
        let opened = Bundle::open(bundle.path()).unwrap();
        assert_ne!(opened.identity().digest, before);
        assert_eq!(opened.feature_space().unwrap(), Some(space()));
        let Input::Image2d { gates, .. } = &opened.manifest().input else { panic!() };
        let written = gates.features.as_ref().unwrap();
        assert_eq!((written.member.as_str(), written.neighbours, written.n_held_out), ("resnet50", 2, 7));
        assert!((written.maximum_mahalanobis_distance - 3.5).abs() < 1e-12);

        let mut other = space();
        other.vectors.values[0] = 0.5;
        let second = write_feature_gate(bundle.path(), &other, &gate).unwrap();
        assert_ne!(first, second);
        assert!(!bundle.path().join(&first).exists() && bundle.path().join(&second).exists());
        fs_err::write(bundle.path().join(&second), space().to_bytes().unwrap()).unwrap();
        let error = opened.feature_space().unwrap_err().to_string();
        assert!(error.contains(&first) && error.contains("hilum gate fit"), "{error}");
        let error = Bundle::open(bundle.path()).unwrap_err().to_string();
        assert!(error.contains(&second) && error.contains("SHA-256"), "{error}");

        let unknown = FittedGate { member: "nobody".to_owned(), ..gate };
        let error = write_feature_gate(bundle.path(), &space(), &unknown).unwrap_err().to_string();
        assert!(error.contains("`input.gates.features.member` is `nobody`: give one of resnet34"), "{error}");
    }
}
