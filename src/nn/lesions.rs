//! Networks that outline lesions in the slices of a chest CT: UNet++, or a TorchScript file of the site.

use std::sync::Arc;

use tch::{TchError, Tensor};

use super::{
    bundle::Bundle,
    error::NnError,
    jit::JitModule,
    load::{LoadPlan, Network, batch, only, rows_of},
    manifest::{Member, MemberArchitecture},
    owner::{GO_ON, Model, Step},
    runner::{Forward, Runner},
    scan::{Portion, Slices},
    scan_manifest::{ScanArchitecture, ScanPreprocessing},
    unet_plus_plus::UNetPlusPlus,
};

/// Loads one network onto its thread.
pub(super) fn start(
    bundle: &Bundle,
    member: &Member,
    mut plan: LoadPlan,
) -> Result<Network<Arc<Slices>, Vec<f32>>, NnError> {
    let shape = bundle.manifest().input.scan().map_or([0; 3], ScanPreprocessing::shape);
    let (width, portion) = (member.width, plan.by_portions());
    match member.architecture {
        MemberArchitecture::Scan(architecture @ ScanArchitecture::UNetPlusPlus) => {
            plan.start(&member.name, vec![shape], move |plan| {
                let (network, _store) =
                    plan.load(|path| UNetPlusPlus::new(path, width, 1), |name| architecture.ignores_tensor(name))?;
                let forward: Forward = Box::new(move |inputs| Ok(vec![network.forward(only(inputs)?)?]));
                let runner = plan.runner(forward, shape.map(|side| side as i64), 1)?;
                Ok(LesionModel { name: plan.name.clone(), runner, device: plan.device, portion })
            })
        }
        MemberArchitecture::TorchScript => plan.start(&member.name, vec![shape], move |plan| {
            let model = LesionModel::script(&plan.name, &plan.read()?, plan.device, portion);
            model.map_err(|reason| plan.problems(&[reason]))
        }),
        MemberArchitecture::Known(_) | MemberArchitecture::Scan(_) => {
            plan.name.clone_from(&member.name);
            Err(plan.problems(&[format!("`{}` outlines no lesions", member.architecture.name())]))
        }
    }
}

/// Whether a TorchScript file outlines lesions in slices of this shape (channels, rows, columns): tried on one black slice
/// and on two. The error says what is wrong with it.
pub(super) fn try_script(name: &str, bytes: &[u8], shape: [usize; 3]) -> Result<(), String> {
    let model = LesionModel::script(name, bytes, tch::Device::Cpu, Portion::of(2))?;
    let [channels, rows, columns] = shape;
    for count in [1, 2] {
        let values = vec![0.0; count * channels * rows * columns];
        let black = Slices { count, channels, rows, columns, values };
        tch::no_grad(|| model.probabilities(&black, GO_ON)).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The lesions of slices.
struct LesionModel {
    name: String,
    runner: Runner,
    device: tch::Device,
    portion: Portion,
}

impl LesionModel {
    /// Of a TorchScript file, whose `forward` takes `n x channels x rows x columns` and gives logits `n x 1 x rows x columns`,
    /// alone or first in a tuple.
    fn script(name: &str, bytes: &[u8], device: tch::Device, portion: Portion) -> Result<Self, String> {
        let module = JitModule::load(bytes, device).map_err(|words| {
            format!("not a sound TorchScript file ({words}): save the module with `torch.jit.save` after `eval()`")
        })?;
        let forward: Forward = Box::new(move |inputs| {
            let outputs = module.forward(&[only(inputs)?.shallow_clone()]).map_err(TchError::Torch)?;
            Ok(vec![only(&outputs)?.f_to_kind(tch::Kind::Float)?])
        });
        Ok(Self { name: name.to_owned(), runner: Runner::plain(name, forward), device, portion })
    }

    fn probabilities(&self, slices: &Slices, step: Step<'_>) -> Result<Vec<f32>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let [_, rows, columns] = slices.shape();
        self.portion.each(&self.name, slices.count, step, |range| {
            let n = range.len() as i64;
            let input = batch(slices.slices().skip(range.start).take(range.len()), slices.shape(), self.device)
                .map_err(torch)?;
            let targets = Tensor::f_zeros([n], (tch::Kind::Int64, self.device)).map_err(torch)?;
            let [logits] = self.runner.run_for(&[input, targets])?;
            let expected = [n, 1, rows as i64, columns as i64];
            if logits.size() != expected {
                let words = format!("its logits have the shape {:?}, expected {expected:?}", logits.size());
                return Err(NnError::Torch { network: self.name.clone(), words });
            }
            // Reduced precision would make many probabilities alike.
            let logits = logits.f_to_kind(tch::Kind::Float).map_err(torch)?;
            // A logit without limit would pass as a probability of 0 or 1.
            rows_of(&self.name, &logits)?;
            Ok(rows_of(&self.name, &logits.f_sigmoid().map_err(torch)?)?.concat())
        })
    }
}

impl Model for LesionModel {
    type Question = Arc<Slices>;
    type Answer = Vec<f32>;

    fn answer(&self, questions: &[&Arc<Slices>], step: Step<'_>) -> Result<Vec<Vec<f32>>, NnError> {
        questions.iter().map(|slices| self.probabilities(slices, step)).collect()
    }
}

/// A TorchScript file that computes `forward` of slices of this shape (channels, rows, columns), any number of them.
#[cfg(test)]
pub(crate) fn script_of([channels, rows, columns]: [i64; 3], forward: impl Fn(&Tensor) -> Tensor) -> Vec<u8> {
    script_of_shape(&[1, channels, rows, columns], forward)
}

/// The same of an input of any shape.
#[cfg(test)]
pub(crate) fn script_of_shape(shape: &[i64], forward: impl Fn(&Tensor) -> Tensor) -> Vec<u8> {
    let example = Tensor::zeros(shape, (tch::Kind::Float, tch::Device::Cpu));
    let mut closure = |inputs: &[Tensor]| vec![forward(&inputs[0])];
    let module = tch::CModule::create_by_tracing("Site", "forward", &[example], &mut closure).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.pt");
    module.save(&file).unwrap();
    fs_err::read(file).unwrap()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            EnsembleOptions, ImportTarget, MANIFEST_FILE_NAME, Manifest, ScanEnsemble, ScanOptions, import,
            init_untrained_scan_bundle, seeded, verify::try_out,
        },
        *,
    };
    use crate::types::Errand;

    fn bundle_of(size_pixels: [u32; 2], width: f64) -> (tempfile::TempDir, Bundle) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scan");
        let architecture = MemberArchitecture::Scan(ScanArchitecture::UNetPlusPlus);
        let options = ScanOptions { seed: 1, architecture, width, size_pixels: Some(size_pixels) };
        init_untrained_scan_bundle(&path, options).unwrap();
        let bundle = Bundle::open(&path).unwrap();
        (folder, bundle)
    }

    fn slices(seed: u64, count: usize) -> Slices {
        let values = seeded::uniform(seed, "scan", count * 3 * 64 * 96, -2.0, 2.0);
        Slices { count, channels: 3, rows: 64, columns: 96, values }
    }

    async fn outline(ensemble: &ScanEnsemble, slices: Slices) -> Vec<f32> {
        ensemble.outline(0, Arc::new(slices), &Errand::default()).await.unwrap()
    }

    #[tokio::test]
    async fn every_pixel_has_a_probability_and_portions_change_nothing() {
        let (_folder, bundle) = bundle_of([64, 96], 0.25);
        let load = |max_batch| {
            ScanEnsemble::load(&bundle, EnsembleOptions { max_batch, ..EnsembleOptions::default() }).unwrap()
        };
        let (small, large) = (load(2), load(16));
        let found = outline(&small, slices(1, 5)).await;
        assert_eq!(found.len(), 5 * 64 * 96);
        assert!(found.iter().all(|p| (0.0..=1.0).contains(p)));
        let spread = found.iter().copied().fold(0.0, f32::max) - found.iter().copied().fold(1.0, f32::min);
        assert!(spread > 0.01, "one answer for all pixels: {spread}");
        assert_eq!(found, outline(&small, slices(1, 5)).await, "bit for bit");
        let by_one = outline(&large, slices(1, 5)).await;
        assert!(found.iter().zip(&by_one).all(|(a, b)| (a - b).abs() < 1e-4));
        // The third slice alone is the third of five.
        let third = slices(1, 5).values[2 * 3 * 64 * 96..3 * 3 * 64 * 96].to_vec();
        let alone = outline(&small, Slices { values: third, ..slices(1, 1) }).await;
        assert!(found[2 * 64 * 96..3 * 64 * 96].iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-4));
    }

    #[tokio::test]
    async fn wrong_slices_and_members_are_refused_and_verify_asks_the_network() {
        let (_folder, bundle) = bundle_of([64, 96], 0.0625);
        let ensemble = ScanEnsemble::load(&bundle, EnsembleOptions::default()).unwrap();
        let small = Slices { rows: 96, columns: 64, ..slices(1, 1) };
        let refused = ensemble.outline(0, Arc::new(small), &Errand::default()).await;
        assert!(matches!(refused, Err(NnError::InputSize { .. })), "{refused:?}");
        let refused = ensemble.outline(1, Arc::new(slices(1, 1)), &Errand::default()).await;
        assert_eq!(refused, Err(NnError::NoSuchMember { member_idx: 1, n_members: 1 }));
        let refused = ensemble.classify(0, Arc::new(slices(1, 1)), 0, &Errand::default()).await;
        assert!(matches!(refused, Err(NnError::NoSuchMember { n_members: 0, .. })), "{refused:?}");
        let tried = try_out(&bundle, EnsembleOptions::default()).await.unwrap();
        assert_eq!((tried[0].network.as_str(), tried[0].tells_pictures_apart), ("unet_plus_plus", true));
        assert_eq!(tried[0].gave, "64 x 96 probabilities of lesion of each slice");
    }

    #[test]
    fn a_checkpoint_is_imported_and_one_of_another_network_is_not() {
        let (_folder, bundle) = bundle_of([64, 96], 0.0625);
        let member =
            |name: &str, architecture| ImportTarget::Member { name: name.to_owned(), architecture, width: None };
        let own = bundle.folder().join("unet_plus_plus.safetensors");
        let imported = import(bundle.folder(), &own, &member("unet_plus_plus", None), "site-1").unwrap();
        assert_eq!((imported.architecture.as_str(), imported.n_tensors > 100), ("unet_plus_plus", true));
        let reopened = Bundle::open(bundle.folder()).unwrap();
        assert_eq!(reopened.identity().members[0].version, "site-1");
        let covnet = Some(MemberArchitecture::Scan(ScanArchitecture::Covnet));
        let file = bundle.folder().join(&imported.file_name);
        let refused = import(bundle.folder(), &file, &member("other", covnet), "1").unwrap_err().to_string();
        assert!(refused.contains("tensors"), "{refused}");
        // Two logits for each picture are no mask.
        let script = bundle.folder().join("corner.pt");
        fs_err::write(&script, include_bytes!("../../tests/golden/checkpoints/corner.pt")).unwrap();
        let refused = import(bundle.folder(), &script, &member("own", None), "1").unwrap_err().to_string();
        assert!(refused.contains("expected [1, 1, 64, 96]"), "{refused}");
    }

    /// The brightness of the first channel as logit: what a file says of a pixel comes back at that pixel.
    #[tokio::test]
    async fn a_torch_script_file_outlines_pixel_by_pixel() {
        let (_folder, bundle) = bundle_of([64, 96], 0.0625);
        let file = bundle.folder().join("own.pt");
        fs_err::write(&file, script_of([3, 64, 96], |slices| slices.narrow(1, 0, 1) * 4.0)).unwrap();
        let target = ImportTarget::Member { name: "unet_plus_plus".to_owned(), architecture: None, width: None };
        let imported = import(bundle.folder(), &file, &target, "site-1").unwrap();
        assert_eq!(imported.architecture, "torch_script");
        let bundle = Bundle::open(bundle.folder()).unwrap();
        let ensemble = ScanEnsemble::load(&bundle, EnsembleOptions::default()).unwrap();
        let asked = slices(1, 3);
        let found = outline(&ensemble, asked.clone()).await;
        for (found, slice) in found.chunks(64 * 96).zip(asked.slices()) {
            let expected = slice[..64 * 96].iter().map(|value| 1.0 / (1.0 + (-4.0 * value).exp()));
            assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5));
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let (_folder, bundle) = bundle_of([64, 96], 0.0625);
        let text = fs_err::read_to_string(bundle.folder().join(MANIFEST_FILE_NAME)).unwrap();
        let classification = "[classification]\ntarget_class_idx = 0\nthreshold = 0.5\nfusion = \"mean_prob\"\n\
                              calibration = { method = \"none\" }\nclasses = []\n\n[[members]]";
        let validated = text.replace("status = \"untrained\"", "status = \"validated\"").replace("\"untrained-", "\"");
        assert!(Manifest::parse(&validated).is_ok());
        let problems = Manifest::parse(&validated.replace("lungs_only = false", "lungs_only = true")).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains("the densest lesions would not count"), "{problems:?}");
        for (from, to, words) in [
            ("rows = 64", "rows = 80", "give multiples of 32"),
            ("columns = 96", "columns = 100", "give multiples of 32"),
            ("slices = 3", "slices = 0", "`input.rule.slices` is 0: give 1 to 100"),
            ("maximum_slices = 1000", "maximum_slices = 2", "no scan could ever satisfy the rule"),
            ("probability = 0.5", "probability = 1.0", "`input.rule.probability` is 1: give a number between 0 and 1"),
            ("minimum_area_mm2 = 10.0", "minimum_area_mm2 = -1.0", "give 0 to 10000"),
            ("method = \"consecutive_slices\"", "method = \"any\"", "consecutive_slices"),
            ("lungs_only = false\n", "", "lungs_only"),
            ("label = \"Lesion\"", "label = \"\"", "`input.lesion.label` is empty"),
            (
                "architecture = \"unet_plus_plus\"",
                "architecture = \"covnet\"",
                "`covnet`, which has no use for the input of the kind `seg2d`",
            ),
            ("[[members]]", classification, "`classification` is there"),
            ("status = \"untrained\"", "status = \"validated\"", "bring trained weights in"),
        ] {
            assert!(text.contains(from), "{from}\n{text}");
            let problems = Manifest::parse(&text.replacen(from, to, 1)).unwrap_err();
            assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:?}");
        }
        let slices2d = Manifest::parse(&text.replacen("kind = \"seg2d\"", "kind = \"slices2d\"", 1));
        assert!(slices2d.is_err(), "a rule is no aggregation");
        assert!(Manifest::parse(&text).is_ok());
    }
}
