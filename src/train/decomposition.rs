//! Class decomposition as in DeTraC (Abbas et al., Applied Intelligence 2021;51:854-864): the images of each class are
//! divided into sub-classes, which a network tells apart more easily than the wide class; their probabilities are added
//! up again by the bundle's label map. Principal components of the starting network's embeddings, then k-means
//! (Lloyd, with the seeding of Arthur and Vassilvitskii, SODA 2007).

use tch::{Kind, Tensor};

use super::{augmentation::Stream, error::TrainError};

/// Components that are kept at most, and the share of the variance that is enough.
const MAX_COMPONENTS: usize = 50;
const VARIANCE_SHARE: f64 = 0.95;

/// Starts of k-means, of which the best counts, and rounds of each.
const N_STARTS: u64 = 8;
const MAX_ROUNDS: usize = 100;

/// Divides each class into `n_sub_classes`. `embeddings` and `classes` are those of all images, of which `training` (indices)
/// are looked at; the others get the nearest sub-class of their class. Returns the output of each image: sub-class `s` of
/// class `c` is the output `c * n_sub_classes + s`.
///
/// # Errors
/// When a class has fewer training images than sub-classes, or libtorch refuses.
pub(super) fn sub_classes(
    embeddings: &[Vec<f32>],
    classes: &[usize],
    training: &[usize],
    n_sub_classes: usize,
    seed: u64,
) -> Result<Vec<usize>, TrainError> {
    if n_sub_classes == 1 {
        return Ok(classes.to_vec());
    }
    let points = principal_components(embeddings, training)?;
    let mut outputs = vec![0; classes.len()];
    for class in 0..classes.iter().max().map_or(0, |last| last + 1) {
        let of_class = |image: &usize| classes.get(*image) == Some(&class);
        let members: Vec<&[f64]> = training
            .iter()
            .filter(|image| of_class(image))
            .filter_map(|image| Some(points.get(*image)?.as_slice()))
            .collect();
        if members.len() < n_sub_classes {
            return Err(TrainError::Data(format!(
                "class {class} has {} training images and shall have {n_sub_classes} sub-classes: lower `task.sub_classes`",
                members.len()
            )));
        }
        let centres = k_means(&members, n_sub_classes, seed.wrapping_add(class as u64));
        for (image, output) in outputs.iter_mut().enumerate().filter(|(image, _)| of_class(image)) {
            let point = points.get(image).map(Vec::as_slice).unwrap_or_default();
            *output = class * n_sub_classes + nearest(&centres, point).0;
        }
    }
    Ok(outputs)
}

/// Every embedding by the principal components of the training images.
fn principal_components(embeddings: &[Vec<f32>], training: &[usize]) -> Result<Vec<Vec<f64>>, TrainError> {
    let n_features = embeddings.first().map_or(0, Vec::len) as i64;
    let all: Vec<f32> = embeddings.iter().flatten().copied().collect();
    let all = Tensor::f_from_slice(&all)?.f_view([-1, n_features])?.f_to_kind(Kind::Double)?;
    let rows: Vec<i64> = training.iter().map(|image| *image as i64).collect();
    let chosen = all.f_index_select(0, &Tensor::f_from_slice(&rows)?)?;
    let mean = chosen.f_mean_dim([0i64].as_slice(), true, Kind::Double)?;
    let (_, lengths, directions) = chosen.f_sub(&mean)?.f_svd(true, true)?;
    let variances: Vec<f64> = Vec::<f64>::try_from(lengths)?.into_iter().map(|length| length * length).collect();
    let total: f64 = variances.iter().sum();
    let mut n_components = 0;
    let mut explained = 0.0;
    while n_components < variances.len().min(MAX_COMPONENTS) && explained < VARIANCE_SHARE * total {
        explained += variances.get(n_components).copied().unwrap_or(0.0);
        n_components += 1;
    }
    let n_components = n_components.max(1);
    let directions = directions.f_narrow(1, 0, n_components as i64)?;
    let projected = all.f_sub(&mean)?.f_matmul(&directions)?.f_contiguous()?.f_flatten(0, -1)?;
    Ok(Vec::<f64>::try_from(projected)?.chunks_exact(n_components).map(<[f64]>::to_vec).collect())
}

/// The centres of the best of several starts.
fn k_means(points: &[&[f64]], k: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut best: Option<(f64, Vec<Vec<f64>>)> = None;
    for start in 0..N_STARTS {
        let mut centres = spread_out(points, k, &mut Stream::new(seed, start, 0));
        let mut assigned: Vec<usize> = Vec::new();
        for _ in 0..MAX_ROUNDS {
            let now: Vec<usize> = points.iter().map(|point| nearest(&centres, point).0).collect();
            if now == assigned {
                break;
            }
            assigned = now;
            for (idx, centre) in centres.iter_mut().enumerate() {
                let of_centre: Vec<&&[f64]> =
                    points.iter().zip(&assigned).filter(|(_, to)| **to == idx).map(|(point, _)| point).collect();
                // A centre that lost all of its points stays where it is.
                if of_centre.is_empty() {
                    continue;
                }
                for (axis, value) in centre.iter_mut().enumerate() {
                    let sum: f64 = of_centre.iter().filter_map(|point| point.get(axis)).sum();
                    *value = sum / of_centre.len() as f64;
                }
            }
        }
        let cost: f64 = points.iter().map(|point| nearest(&centres, point).1).sum();
        if best.as_ref().is_none_or(|(least, _)| cost < *least) {
            best = Some((cost, centres));
        }
    }
    best.map(|(_, centres)| centres).unwrap_or_default()
}

/// The first centre by chance, each other one by its squared distance from those before it.
fn spread_out(points: &[&[f64]], k: usize, stream: &mut Stream) -> Vec<Vec<f64>> {
    let mut centres: Vec<Vec<f64>> =
        points.get(stream.below(points.len().max(1))).map(|point| point.to_vec()).into_iter().collect();
    while centres.len() < k {
        let distances: Vec<f64> = points.iter().map(|point| nearest(&centres, point).1).collect();
        let mut left = stream.unit() * distances.iter().sum::<f64>();
        let drawn = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // Points that are all the same leave nothing to draw by.
        let Some(point) = drawn.or(points.len().checked_sub(1)).and_then(|idx| points.get(idx)) else { break };
        centres.push(point.to_vec());
    }
    centres
}

/// The nearest centre and its squared distance.
fn nearest(centres: &[Vec<f64>], point: &[f64]) -> (usize, f64) {
    let distance = |centre: &Vec<f64>| centre.iter().zip(point).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
    let distances = centres.iter().map(distance).enumerate();
    distances.min_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or((0, 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::seeded;

    #[test]
    fn heaps_within_a_class_become_sub_classes() {
        // Two classes; each has two heaps along another direction of six.
        let mut embeddings = Vec::new();
        let mut classes = Vec::new();
        let mut heaps = Vec::new();
        for image in 0..80_usize {
            let (class, heap) = (image % 2, image / 2 % 2);
            let mut embedding = seeded::normal(3, &format!("image{image}"), 6, 0.1);
            embedding[class] += if heap == 0 { 3.0 } else { -3.0 };
            embeddings.push(embedding);
            classes.push(class);
            heaps.push(heap);
        }
        let training: Vec<usize> = (0..60).collect();
        let outputs = sub_classes(&embeddings, &classes, &training, 2, 1).unwrap();
        assert_eq!(outputs, sub_classes(&embeddings, &classes, &training, 2, 1).unwrap());
        for class in 0..2 {
            let of = |heap| -> std::collections::BTreeSet<usize> {
                (0..80)
                    .filter(|image| classes[*image] == class && heaps[*image] == heap)
                    .map(|image| outputs[image])
                    .collect()
            };
            assert_eq!((of(0).len(), of(1).len()), (1, 1), "a heap is divided");
            assert_ne!(of(0), of(1));
            assert!(of(0).iter().chain(&of(1)).all(|output| output / 2 == class));
        }
    }

    #[test]
    fn one_sub_class_is_the_class_and_too_many_are_refused() {
        let embeddings = vec![vec![0.0, 1.0], vec![1.0, 0.0], vec![0.5, 0.5]];
        assert_eq!(sub_classes(&embeddings, &[0, 1, 1], &[0, 1], 1, 1).unwrap(), [0, 1, 1]);
        let error = sub_classes(&embeddings, &[0, 1, 1], &[0, 1, 2], 2, 1).unwrap_err().to_string();
        assert!(error.contains("class 0 has 1 training images") && error.contains("task.sub_classes"), "{error}");
    }
}
