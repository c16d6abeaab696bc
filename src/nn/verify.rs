//! Tries every network of a bundle on a made-up picture: does it answer, with finite numbers, and does it see anything?

use std::time::Instant;

use super::{Bundle, Ensemble, EnsembleOptions, NnError, Plane, Planes, seeded};
use crate::types::RunPriority;

/// How one network did.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Its name in the bundle.
    pub network: String,
    /// Time of one picture in milliseconds, the first left out.
    pub milliseconds: f64,
    /// Whether two pictures gave two answers; weights of zeros do not.
    pub tells_pictures_apart: bool,
    /// What it gave: `2 logits, 512 features, map 7 x 7 (cam)`.
    pub gave: String,
}

/// Loads the networks of a bundle and asks each twice. A bundle without networks gives an empty list.
///
/// # Errors
/// As [`Ensemble::load`] and [`Ensemble::classify`].
pub async fn try_out(bundle: &Bundle, options: EnsembleOptions) -> Result<Vec<Tried>, NnError> {
    let manifest = bundle.manifest();
    if manifest.networks().next().is_none() {
        return Ok(Vec::new());
    }
    let to_load = bundle.clone();
    let ensemble = tokio::task::spawn_blocking(move || Ensemble::load(&to_load, options))
        .await
        .map_err(|error| NnError::Panic { network: "every one".to_owned(), words: error.to_string() })??;

    let mut tried = Vec::new();
    if let Some(segmenter) = &manifest.segmenter {
        let side = segmenter.input_side_pixels as usize;
        let picture =
            |seed| Plane { rows: side, columns: side, values: seeded::uniform(seed, "picture", side * side, 0.0, 1.0) };
        let first = ensemble.segment(picture(1), RunPriority::Routine).await?;
        let started = Instant::now();
        let second = ensemble.segment(picture(2), RunPriority::Routine).await?;
        tried.push(Tried {
            network: "lung segmenter".to_owned(),
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
            tells_pictures_apart: first != second,
            gave: format!("{} x {} probabilities", second.rows, second.columns),
        });
    }
    for (member_idx, member) in manifest.members.iter().enumerate() {
        let inputs = |seed| -> Vec<Planes> {
            let shapes = manifest.inputs_of(member).into_iter().map(super::Preprocessing::shape);
            shapes
                .map(|[channels, rows, columns]| Planes {
                    channels,
                    rows,
                    columns,
                    values: seeded::uniform(seed, "picture", channels * rows * columns, -2.0, 2.0),
                })
                .collect()
        };
        let first = ensemble.classify(member_idx, inputs(1), 0, RunPriority::Routine).await?;
        let started = Instant::now();
        let second = ensemble.classify(member_idx, inputs(2), 0, RunPriority::Routine).await?;
        let map = second
            .activation_map
            .as_ref()
            .map_or_else(|| "no map".to_owned(), |map| format!("map {} x {} ({})", map.rows, map.columns, map.method));
        tried.push(Tried {
            network: member.name.clone(),
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
            tells_pictures_apart: first.logits != second.logits,
            gave: format!("{} logits, {} features, {map}", second.logits.len(), second.embedding.len()),
        });
    }
    Ok(tried)
}

#[cfg(test)]
mod tests {
    use super::{super::init::test_bundle, *};

    #[tokio::test]
    async fn every_network_is_asked_and_a_dead_one_is_found_out() {
        let folder = test_bundle();
        let tried = try_out(&Bundle::open(folder.path()).unwrap(), EnsembleOptions::default()).await.unwrap();
        let names: Vec<&str> = tried.iter().map(|tried| tried.network.as_str()).collect();
        assert_eq!(names, ["lung segmenter", "resnet34", "resnet50", "resnet152", "vgg16"]);
        assert!(tried.iter().all(|tried| tried.tells_pictures_apart && tried.milliseconds > 0.0), "{tried:?}");
        assert_eq!(tried[1].gave, "2 logits, 32 features, map 2 x 2 (cam)");

        // All weights 0.
        let file = folder.path().join("resnet34.safetensors");
        let bytes = fs_err::read(&file).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let dead = [&bytes[..header], &vec![0; bytes.len() - header]].concat();
        fs_err::write(&file, dead).unwrap();
        let target =
            super::super::ImportTarget::Member { name: "resnet34".to_owned(), architecture: None, width: None };
        super::super::import(folder.path(), &file, &target, "dead").unwrap();
        let tried = try_out(&Bundle::open(folder.path()).unwrap(), EnsembleOptions::default()).await.unwrap();
        assert!(!tried[1].tells_pictures_apart && tried[2].tells_pictures_apart);
    }
}
