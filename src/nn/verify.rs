//! Tries every network of a bundle on a made-up picture: does it answer, with finite numbers, and does it see anything?

use std::time::Instant;

use super::{Bundle, EnsembleOptions, NnError, probe::Probe};

/// How one network did.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried {
    /// Its name in the bundle.
    pub network: String,
    /// Time of one picture in milliseconds, the first left out.
    pub milliseconds: f64,
    /// Whether two pictures gave two answers; weights of zeros do not.
    pub tells_pictures_apart: bool,
    /// What it computes with: devices and precision, such as `cuda:0 float16`.
    pub computing: String,
    /// What it gave: `2 logits, 512 features, map 7 x 7 (cam)`.
    pub gave: String,
}

/// Loads the networks of a bundle and asks each twice. A bundle without networks gives an empty list.
///
/// # Errors
/// As [`Ensemble::load`] and [`Ensemble::classify`].
pub async fn try_out(bundle: &Bundle, options: EnsembleOptions) -> Result<Vec<Tried>, NnError> {
    if bundle.manifest().networks().next().is_none() {
        return Ok(Vec::new());
    }
    let probe = Probe::load(bundle, options).await?;
    let mut tried = Vec::new();
    for (network_idx, (network, computing)) in probe.names().into_iter().zip(probe.computing()).enumerate() {
        let first = probe.ask(network_idx, 1, 1).await?;
        let started = Instant::now();
        let second = probe.ask(network_idx, 2, 1).await?;
        tried.push(Tried {
            network,
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
            tells_pictures_apart: first.numbers != second.numbers,
            computing,
            gave: second.gave,
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
