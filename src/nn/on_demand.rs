//! Maps of regions that are made when somebody asks: of one network for one image or slice, with its weights loaded for the
//! purpose and nothing optimised, since gradients have to pass.

use tch::{TchError, Tensor};

use super::{
    bundle::Bundle,
    classifier::Classifier,
    ensemble::{ActivationMap, EnsembleOptions, target_output},
    error::NnError,
    explain::{Explanation, IntegratedGradientsOptions, grey_of_attribution},
    fusion::class_probabilities,
    load::{LoadPlan, batch, rows_of},
    manifest::{Classification, Member, MemberArchitecture},
    multi_scale::MultiScale,
    plane::Planes,
    scan_manifest::ScanArchitecture,
};

/// What a network says of one input, and where it looked.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainedInput {
    /// One per class, 0 to 1, not calibrated.
    pub probabilities: Vec<f32>,
    /// About the class that was asked for. By Integrated Gradients on the grid of the input, 0 to 1; else on that of the
    /// last feature map, signed.
    pub map: ActivationMap,
}

/// Asks the member of index `member_idx` for a map of an input by `method`, its own method without one. The input is that
/// of an image, or of one slice of a CT, as the manifest prescribes it and already normalised. Blocks: seconds to load, and
/// for Integrated Gradients as many forward and backward passes as `options` has steps.
///
/// # Errors
/// [`NnError::NotOffered`] for a network that has no such map of a single input (COVNet, DRE-Net and DeCoVNet see whole
/// scans, a TorchScript file cannot be differentiated here); other [`NnError`]s as for [`super::Ensemble`].
pub fn explain_input(
    bundle: &Bundle,
    member_idx: usize,
    input: &Planes,
    target_class_idx: usize,
    method: Option<Explanation>,
    options: IntegratedGradientsOptions,
) -> Result<ExplainedInput, NnError> {
    let manifest = bundle.manifest();
    let n_members = manifest.members.len();
    let entries = manifest.networks().skip(usize::from(manifest.segmenter.is_some()));
    let Some((member, entry)) = manifest.members.iter().zip(entries).nth(member_idx) else {
        return Err(NnError::NoSuchMember { member_idx, n_members });
    };
    let class_of_output = manifest.classification.as_ref().map(Classification::class_of_output).unwrap_or_default();
    if !class_of_output.contains(&target_class_idx) {
        let n_classes = manifest.classification.as_ref().map_or(0, |of| of.classes.len());
        return Err(NnError::NoSuchClass { class_idx: target_class_idx, n_classes });
    }
    let method = choose(member, method)?;
    let mut plan = LoadPlan::new(bundle, &entry, EnsembleOptions::default());
    plan.name.clone_from(&member.name);
    tch::no_grad(|| {
        let torch = |error: TchError| NnError::torch(&member.name, &error);
        let shape = [input.channels, input.rows, input.columns];
        let image = batch(std::iter::once(input.values.as_slice()), shape, plan.device).map_err(torch)?;
        let network = Differentiable::load(&plan, member, class_of_output.len() as i64)?;
        let logits = rows_of(&member.name, &network.logits(&image).map_err(torch)?)?.concat();
        let target = target_output(&class_of_output, target_class_idx, Some(&logits));
        let map = network.map(&image, target, method, options).map_err(torch)?;
        let (rows, columns) = map.size2().map_err(torch)?;
        let values = rows_of(&member.name, &map)?.concat();
        Ok(ExplainedInput {
            probabilities: class_probabilities(&logits, &class_of_output),
            map: ActivationMap::new(rows as usize, columns as usize, values, method.name()),
        })
    })
}

/// The method that is asked for, or the member's own.
fn choose(member: &Member, method: Option<Explanation>) -> Result<Explanation, NnError> {
    let of_one_input: &[Explanation] = match member.architecture {
        MemberArchitecture::Known(_) | MemberArchitecture::Scan(ScanArchitecture::MultiScale) => {
            member.architecture.explanations()
        }
        MemberArchitecture::Scan(_) | MemberArchitecture::TorchScript => &[],
    };
    if !member.is_explained() {
        return Err(NnError::NotOffered {
            network: member.name.clone(),
            method: method.map_or("of any kind", Explanation::name).to_owned(),
            offered: "its manifest says `explanation = \"none\"`, no map of it is shown".to_owned(),
        });
    }
    let wanted = method.or(member.method()).or(of_one_input.first().copied());
    match wanted.filter(|wanted| of_one_input.contains(wanted)) {
        Some(method) => Ok(method),
        None => Err(NnError::NotOffered {
            network: member.name.clone(),
            method: wanted.map_or("of any kind", Explanation::name).to_owned(),
            offered: if of_one_input.is_empty() {
                format!("networks of the architecture `{}` are explained in the run only", member.architecture.name())
            } else {
                let names: Vec<&str> = of_one_input.iter().map(|method| method.name()).collect();
                format!("choose one of {}", names.join(", "))
            },
        }),
    }
}

/// A network whose answer on one input can be differentiated.
enum Differentiable {
    Classifier(Classifier),
    MultiScale(MultiScale),
}

impl Differentiable {
    fn load(plan: &LoadPlan, member: &Member, n_outputs: i64) -> Result<Self, NnError> {
        let width = member.width;
        match member.architecture {
            MemberArchitecture::Known(architecture) => {
                let options = member.classifier_options();
                let (network, _store) = plan.load(
                    |path| Classifier::new(path, architecture, width, n_outputs, options),
                    |name| architecture.ignores_tensor(name),
                )?;
                Ok(Self::Classifier(network))
            }
            other => {
                let ignores = |name: &str| match other {
                    MemberArchitecture::Scan(architecture) => architecture.ignores_tensor(name),
                    _ => false,
                };
                let (network, _store) = plan.load(|path| MultiScale::new(path, width, n_outputs), ignores)?;
                Ok(Self::MultiScale(network))
            }
        }
    }

    fn logits(&self, image: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Classifier(network) => Ok(network.forward(image, &Tensor::f_from_slice(&[0i64])?)?.logits),
            Self::MultiScale(network) => Ok(network.forward(image)?.logits),
        }
    }

    /// `rows x columns`.
    fn map(
        &self,
        image: &Tensor,
        target: i64,
        method: Explanation,
        options: IntegratedGradientsOptions,
    ) -> Result<Tensor, TchError> {
        let targets = Tensor::f_from_slice(&[target])?;
        match (self, method) {
            (Self::Classifier(network), Explanation::IntegratedGradients) => {
                grey_of_attribution(&network.integrated_gradients(image, target, options)?)
            }
            (Self::Classifier(network), _) => network.explained(image, &targets, method)?.activation_map.f_select(0, 0),
            (Self::MultiScale(network), Explanation::IntegratedGradients) => {
                network.joint_saliency(image, target, options)
            }
            (Self::MultiScale(network), _) => network.forward(image)?.class_map(&targets)?.f_select(0, 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            ensemble::Ensemble,
            init::{ScanOptions, init_untrained_scan_bundle, test_bundle},
            seeded,
        },
        *,
    };
    use crate::types::Errand;

    const SIDE: usize = 64;

    fn input(channels: usize, side: usize) -> Planes {
        let values = seeded::uniform(5, "on demand", channels * side * side, -2.0, 2.0);
        Planes { channels, rows: side, columns: side, values }
    }

    fn explained(bundle: &Bundle, member_idx: usize, method: Option<Explanation>) -> Result<ExplainedInput, NnError> {
        let shape = input(3, SIDE);
        explain_input(bundle, member_idx, &shape, 0, method, IntegratedGradientsOptions::default())
    }

    #[tokio::test]
    async fn the_default_map_is_that_of_the_run() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let ensemble = Ensemble::load(&bundle, EnsembleOptions::default()).unwrap();
        for member_idx in 0..4 {
            let found = explained(&bundle, member_idx, None).unwrap();
            let of_run = ensemble.classify(member_idx, vec![input(3, SIDE)], 0, &Errand::default()).await.unwrap();
            let of_run_map = of_run.activation_map.unwrap();
            assert_eq!(found.map.method, of_run_map.method);
            let near = |a: &[f32], b: &[f32]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * b.abs().max(1e-2))
            };
            assert!(near(&found.probabilities, &of_run.probabilities), "{member_idx}");
            assert!(near(&found.map.values, &of_run_map.values), "{member_idx}");
        }
    }

    #[test]
    fn integrated_gradients_have_the_grid_of_the_input() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let mut maps = Vec::new();
        for member_idx in [0, 3] {
            let found = explained(&bundle, member_idx, Some(Explanation::IntegratedGradients)).unwrap().map;
            assert_eq!((found.rows, found.columns, found.method), (SIDE, SIDE, "integrated_gradients"));
            assert!(found.values.iter().all(|value| (0.0..=1.0).contains(value)));
            assert!((found.maximum_activation - 1.0).abs() < 1e-6);
            maps.push(found.values);
        }
        assert_ne!(maps[0], maps[1]);
    }

    #[test]
    fn what_a_network_has_not_is_refused_with_what_it_has() {
        let folder = test_bundle();
        let bundle = Bundle::open(folder.path()).unwrap();
        let error = explained(&bundle, 3, Some(Explanation::Cam)).unwrap_err();
        insta::assert_snapshot!(error, @"network `vgg16` has no map `cam` of one image or slice: choose one of hirescam, gradcam, gradcam_plus_plus, integrated_gradients");
        assert!(matches!(explained(&bundle, 9, None), Err(NnError::NoSuchMember { member_idx: 9, n_members: 4 })));
        let manifest = folder.path().join(super::super::MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let named = "architecture = \"resnet34\"\n";
        fs_err::write(&manifest, text.replace(named, &format!("{named}explanation = \"none\"\n"))).unwrap();
        let silent = Bundle::open(folder.path()).unwrap();
        for (method, asked) in [(None, "of any kind"), (Some(Explanation::Cam), "cam")] {
            let error = explained(&silent, 0, method).unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "network `resnet34` has no map `{asked}` of one image or slice: its manifest says `explanation = \
                     \"none\"`, no map of it is shown"
                )
            );
        }
        let class = explain_input(&bundle, 0, &input(3, SIDE), 7, None, IntegratedGradientsOptions::default());
        assert!(matches!(class, Err(NnError::NoSuchClass { class_idx: 7, .. })));
    }

    /// The joint map of the three heads, as Hu et al. released it, and the class map.
    #[test]
    fn a_slice_of_a_ct_has_its_joint_saliency() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("multi-scale");
        let architecture = MemberArchitecture::Scan(ScanArchitecture::MultiScale);
        init_untrained_scan_bundle(
            &folder,
            ScanOptions { architecture, width: 0.25, seed: 1, size_pixels: Some([64, 64]) },
        )
        .unwrap();
        let bundle = Bundle::open(&folder).unwrap();
        let [_, side, _] = bundle.manifest().input.scan().unwrap().shape();
        let of = |method| {
            let options = IntegratedGradientsOptions { steps: 3, ..IntegratedGradientsOptions::default() };
            explain_input(&bundle, 0, &input(1, side), 1, method, options).unwrap().map
        };
        let saliency = of(Some(Explanation::IntegratedGradients));
        assert_eq!((saliency.rows, saliency.columns), (side, side));
        let class_map = of(None);
        assert_eq!(class_map.method, "class_maps");
        assert!(class_map.rows < side);
    }
}
