//! A classifier that a site exported itself: a TorchScript file (`torch.jit.save`) with network and weights.
//!
//! Its `forward` takes one or two tensors `n x channels x rows x columns` and gives the logits `n x outputs`, or a tuple
//! of the logits, the embedding `n x features`, and (if there is one) a map for every output, `n x outputs x rows x
//! columns`. One that sees a scan as a volume takes one tensor `1 x channels x slices x rows x columns` and gives no maps.

use tch::{TchError, Tensor};

use super::{
    ensemble::{ActivationMap, ClassifierQuestion, MemberOutput, input_batch, member_outputs, target_outputs},
    error::NnError,
    fusion::class_probabilities,
    jit::JitModule,
    load::{LoadPlan, rows_of},
    owner::{Model, Step},
    plane::Planes,
    scan::{ScanOutput, ScanQuestion, SliceOutput, Slices, volume_of},
};

pub(super) struct ScriptModel {
    name: String,
    module: JitModule,
    class_of_output: Vec<usize>,
    /// The output that its only logit is; the other one is 0.
    one_logit_of: Option<usize>,
    /// Whether maps that it gives are taken.
    explain: bool,
    device: tch::Device,
}

/// What one call of a file gave.
struct Output {
    logits: Tensor,
    embedding: Option<Tensor>,
    /// Of each output.
    maps: Option<Tensor>,
}

impl ScriptModel {
    /// Loads the file of a plan.
    pub(super) fn load_planned(plan: &LoadPlan, class_of_output: Vec<usize>) -> Result<Self, NnError> {
        let model = Self::load(&plan.name, &plan.read()?, (class_of_output, plan.one_logit_of), plan.device);
        let model = model.map_err(|reason| plan.problems(&[reason]))?;
        Ok(Self { explain: plan.options.explain, ..model })
    }

    /// Reads the file; weights of half precision are widened. The error says what is wrong with it.
    pub(super) fn load(
        name: &str,
        bytes: &[u8],
        (class_of_output, one_logit_of): (Vec<usize>, Option<usize>),
        device: tch::Device,
    ) -> Result<Self, String> {
        let module = JitModule::load(bytes, device).map_err(|words| {
            format!("not a sound TorchScript file ({words}): save the module with `torch.jit.save` after `eval()`")
        })?;
        Ok(Self { name: name.to_owned(), module, class_of_output, one_logit_of, explain: true, device })
    }

    /// Runs it on `n_images` black images of these shapes (channels, rows, columns), to see whether its outputs fit.
    pub(super) fn try_out(&self, input_shapes: &[[usize; 3]], n_images: usize) -> Result<(), NnError> {
        let black = |shape: &[usize; 3]| Planes {
            channels: shape[0],
            rows: shape[1],
            columns: shape[2],
            values: vec![0.0; shape.iter().product()],
        };
        let question = || ClassifierQuestion { inputs: input_shapes.iter().map(black).collect(), target_class_idx: 0 };
        let questions: Vec<ClassifierQuestion> = std::iter::repeat_with(question).take(n_images).collect();
        tch::no_grad(|| self.of_images(&questions.iter().collect::<Vec<_>>())).map(drop)
    }

    fn unfit(&self, words: String) -> NnError {
        NnError::Torch { network: self.name.clone(), words }
    }

    fn of_images(&self, questions: &[&ClassifierQuestion]) -> Result<Output, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let n_inputs = questions.first().map_or(0, |question| question.inputs.len());
        let inputs = (0..n_inputs)
            .map(|input_idx| input_batch(questions, input_idx, self.device).map_err(torch))
            .collect::<Result<Vec<_>, _>>()?;
        let output = self.call(&inputs, questions.len() as i64)?;
        if let Some(maps) = &output.maps
            && maps.dim() != 4
        {
            return Err(self.unfit(format!("its maps have the shape {:?}, expected 4 dimensions", maps.size())));
        }
        Ok(output)
    }

    /// Asks about `n` inputs.
    fn call(&self, inputs: &[Tensor], n: i64) -> Result<Output, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let tensors = self.module.forward(inputs).map_err(|words| self.unfit(words))?;
        let mut tensors = tensors.into_iter().map(|tensor| tensor.f_to_kind(tch::Kind::Float).map_err(torch));
        let n_outputs = if self.one_logit_of.is_some() { 1 } else { self.class_of_output.len() as i64 };
        let logits = tensors.next().transpose()?.ok_or_else(|| self.unfit("it gives an empty tuple".to_owned()))?;
        if logits.size() != [n, n_outputs] {
            let wants = match self.one_logit_of {
                Some(_) => "`output` in the manifest is `sigmoid`, which wants",
                None if self.class_of_output.len() == 2 && logits.size() == [n, 1] => {
                    "`output = \"sigmoid\"` of the member takes one logit, the manifest's classes want"
                }
                None => "the manifest's classes want",
            };
            return Err(self.unfit(format!(
                "its logits have the shape {:?} for {n} input(s), {wants} [{n}, {n_outputs}]",
                logits.size()
            )));
        }
        let embedding = tensors.next().transpose()?;
        if let Some(embedding) = &embedding
            && (embedding.dim() != 2 || embedding.size()[0] != n)
        {
            return Err(self.unfit(format!("its embedding has the shape {:?}, expected [{n}, …]", embedding.size())));
        }
        let maps = tensors.next().transpose()?;
        if let Some(maps) = &maps
            && maps.size().get(..2) != Some([n, n_outputs].as_slice())
        {
            let found = maps.size();
            return Err(self.unfit(format!("its maps have the shape {found:?}, expected [{n}, {n_outputs}, …, …]")));
        }
        Ok(Output {
            logits: self.of_each_output(logits).map_err(torch)?,
            embedding,
            maps: maps.map(|maps| self.of_each_output(maps)).transpose().map_err(torch)?,
        })
    }

    /// What there is of each output, where a file has one logit: 0 of the other.
    fn of_each_output(&self, of_logits: Tensor) -> Result<Tensor, TchError> {
        let Some(output) = self.one_logit_of else { return Ok(of_logits) };
        let other = of_logits.f_zeros_like()?;
        Tensor::f_cat(&if output == 0 { [of_logits, other] } else { [other, of_logits] }, 1)
    }
}

impl Model for ScriptModel {
    type Question = ClassifierQuestion;
    type Answer = MemberOutput;

    fn answer(&self, questions: &[&ClassifierQuestion], _: Step<'_>) -> Result<Vec<MemberOutput>, NnError> {
        let torch = |error: TchError| NnError::torch(&self.name, &error);
        let Output { logits, embedding, maps } = self.of_images(questions)?;
        let embeddings = match embedding {
            Some(embedding) => rows_of(&self.name, &embedding)?,
            None => vec![Vec::new(); questions.len()],
        };
        let all_logits = rows_of(&self.name, &logits)?;
        let mut activation_maps = vec![None; questions.len()];
        if let Some(maps) = maps.filter(|_| self.explain) {
            let (_, _, rows, columns) = maps.size4().map_err(torch)?;
            let targets = target_outputs(questions, &self.class_of_output, Some(&all_logits));
            for (idx, (slot, target)) in activation_maps.iter_mut().zip(targets).enumerate() {
                let map = maps.f_select(0, idx as i64).and_then(|maps| maps.f_narrow(0, target, 1)).map_err(torch)?;
                let values = rows_of(&self.name, &map)?.into_iter().flatten().collect();
                *slot = Some(ActivationMap::new(rows as usize, columns as usize, values, "own"));
            }
        }
        Ok(member_outputs(&self.class_of_output, all_logits, embeddings, activation_maps))
    }
}

/// Such a file that sees a scan as one volume. It says nothing of its slices.
pub(super) struct ScriptVolume(ScriptModel);

impl ScriptVolume {
    pub(super) const fn of(model: ScriptModel) -> Self {
        Self(model)
    }

    /// Runs it on a black volume of `n_slices` slices of this shape (channels, rows, columns), to see whether its outputs fit.
    pub(super) fn try_out(&self, [channels, rows, columns]: [usize; 3], n_slices: usize) -> Result<(), NnError> {
        let values = vec![0.0; n_slices * channels * rows * columns];
        let black = Slices { count: n_slices, channels, rows, columns, values };
        tch::no_grad(|| self.of_scan(&black)).map(drop)
    }

    fn of_scan(&self, slices: &Slices) -> Result<ScanOutput, NnError> {
        let Self(model) = self;
        let volume = volume_of(slices, model.device).map_err(|error| NnError::torch(&model.name, &error))?;
        let Output { logits, embedding, maps } = model.call(&[volume], 1)?;
        if maps.is_some() {
            let words = "it gives maps, which are not taken of volumes: give logits, or logits and an embedding";
            return Err(model.unfit(words.to_owned()));
        }
        let embedding = embedding.map(|embedding| rows_of(&model.name, &embedding)).transpose()?;
        let slice = SliceOutput { probabilities: Vec::new(), weight: 0.0, activation_map: None };
        Ok(ScanOutput {
            probabilities: class_probabilities(&rows_of(&model.name, &logits)?.concat(), &model.class_of_output),
            embedding: embedding.unwrap_or_default().concat(),
            slices: vec![slice; slices.count],
        })
    }
}

impl Model for ScriptVolume {
    type Question = ScanQuestion;
    type Answer = ScanOutput;

    fn answer(&self, scans: &[&ScanQuestion], _: Step<'_>) -> Result<Vec<ScanOutput>, NnError> {
        scans.iter().map(|scan| self.of_scan(&scan.slices)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::lesions::script_of_shape, *};

    /// Of `deploy/golden/make_checkpoints.py`: the corner sample of an image and its negative as logits, alone and with
    /// an embedding (the mean of each channel) and maps (2 x 3 cells of the logit).
    const CORNER: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner.pt");
    const CORNER_WITH_ALL: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner_with_all.pt");

    /// The corner sample as the only logit, the mean of each channel, and a map of one cell.
    const CORNER_AS_ONE_LOGIT: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner_as_one_logit.pt");

    /// The mean of each channel of a volume as logits and twice that as embedding; the same with the volume as maps.
    const VOLUME_MEANS: &[u8] = include_bytes!("../../tests/golden/checkpoints/volume_means.pt");
    const VOLUME_WITH_MAPS: &[u8] = include_bytes!("../../tests/golden/checkpoints/volume_with_maps.pt");

    /// The negative first and twice as large, by a buffer of whole numbers and one of half precision.
    const CORNER_OF_HALVES: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner_of_halves.pt");

    fn question(first: f32) -> ClassifierQuestion {
        let mut values = vec![0.5; 3 * 64];
        values[0] = first;
        ClassifierQuestion { inputs: vec![Planes { channels: 3, rows: 8, columns: 8, values }], target_class_idx: 1 }
    }

    fn load(bytes: &[u8], class_of_output: &[usize]) -> Result<ScriptModel, String> {
        ScriptModel::load("site", bytes, (class_of_output.to_vec(), None), tch::Device::Cpu)
    }

    fn answer(model: &ScriptModel, questions: &[ClassifierQuestion]) -> Result<Vec<MemberOutput>, NnError> {
        tch::no_grad(|| model.answer(&questions.iter().collect::<Vec<_>>(), super::super::owner::GO_ON))
    }

    #[test]
    fn logits_alone_are_enough_and_a_batch_keeps_its_order() {
        let model = load(CORNER, &[0, 1]).unwrap();
        let found = answer(&model, &[question(2.0), question(-1.0)]).unwrap();
        assert_eq!(found[0].logits, [2.0, -2.0]);
        assert_eq!(found[1].logits, [-1.0, 1.0]);
        assert!((found[0].probabilities[0] - 1.0 / (1.0 + (-4f32).exp())).abs() < 1e-6);
        assert_eq!((found[0].embedding.len(), found[0].activation_map.clone()), (0, None));
    }

    #[test]
    fn embedding_and_map_of_the_target_are_taken_when_there_are_some() {
        let model = load(CORNER_WITH_ALL, &[0, 1]).unwrap();
        let found = answer(&model, &[question(-3.0)]).unwrap().remove(0);
        assert_eq!(found.embedding.len(), 3);
        let map = found.activation_map.unwrap();
        assert_eq!((map.rows, map.columns, map.method), (2, 3, "own"));
        assert_eq!(map.values, [3.0; 6], "the second output is the target's");
    }

    #[test]
    fn whole_numbers_stay_whole_and_half_precision_is_widened() {
        let model = load(CORNER_OF_HALVES, &[0, 1]).unwrap();
        assert_eq!(answer(&model, &[question(1.5)]).unwrap()[0].logits, [-3.0, 3.0]);
    }

    #[test]
    fn one_logit_is_that_of_the_target_and_the_other_is_0() {
        for (target, logits) in [(0, [1.5, 0.0]), (1, [0.0, 1.5])] {
            let model =
                ScriptModel::load("site", CORNER_AS_ONE_LOGIT, (vec![0, 1], Some(target)), tch::Device::Cpu).unwrap();
            let found = answer(&model, &[question(1.5), question(-2.0)]).unwrap();
            assert_eq!(found[0].logits, logits);
            let sigmoid = |z: f32| 1.0 / (1.0 + (-z).exp());
            assert!((found[0].probabilities[target] - sigmoid(1.5)).abs() < 1e-6);
            assert!((found[1].probabilities[target] - sigmoid(-2.0)).abs() < 1e-6);
            assert_eq!(found[0].embedding.len(), 3);
            // The question is about the class of index 1; nothing speaks for the other one.
            let map = found[0].activation_map.clone().unwrap();
            assert_eq!(map.values, [if target == 1 { 1.5 } else { 0.0 }]);
            let silent = ScriptModel { explain: false, ..model };
            assert_eq!(answer(&silent, &[question(1.5)]).unwrap()[0].activation_map, None);
        }
        let error = answer(&load(CORNER_AS_ONE_LOGIT, &[0, 1]).unwrap(), &[question(0.0)]).unwrap_err().to_string();
        assert!(error.contains("`output = \"sigmoid\"` of the member takes one logit"), "{error}");
        let two = ScriptModel::load("site", CORNER, (vec![0, 1], Some(0)), tch::Device::Cpu).unwrap();
        let error = answer(&two, &[question(0.0)]).unwrap_err().to_string();
        assert!(
            error.contains("[1, 2] for 1 input(s), `output` in the manifest is `sigmoid`, which wants [1, 1]"),
            "{error}"
        );
    }

    #[test]
    fn a_volume_gives_logits_and_perhaps_an_embedding_of_any_number_of_slices() {
        let load = |bytes: &[u8], one_logit_of| {
            let model = ScriptModel::load("site", bytes, (vec![0, 1], one_logit_of), tch::Device::Cpu);
            ScriptVolume::of(model.unwrap())
        };
        let of_shape = |forward: &dyn Fn(&Tensor) -> Tensor| script_of_shape(&[1, 2, 3, 4, 5], forward);
        let slices = |count: usize| {
            // The first channel is 1, the second 2.
            let slice = [vec![1.0; 20], vec![2.0; 20]].concat();
            Slices { count, channels: 2, rows: 4, columns: 5, values: slice.repeat(count) }
        };
        let found = tch::no_grad(|| load(VOLUME_MEANS, None).of_scan(&slices(7))).unwrap();
        let expected = class_probabilities(&[1.0, 2.0], &[0, 1]);
        assert!(found.probabilities.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));
        assert_eq!((found.embedding.as_slice(), found.slices.len()), ([2.0, 4.0].as_slice(), 7));
        assert!(found.slices.iter().all(|slice| slice.weight == 0.0 && slice.activation_map.is_none()));

        let sum =
            of_shape(&|volume| volume.sum_dim_intlist([2i64, 3, 4].as_slice(), false, None).narrow(1, 1, 1) / 100.0);
        let one = load(&sum, Some(0));
        let found = tch::no_grad(|| one.of_scan(&slices(5))).unwrap();
        assert!((found.probabilities[0] - 1.0 / (1.0 + (-2f32).exp())).abs() < 1e-6 && found.embedding.is_empty());
        assert!(one.try_out([2, 4, 5], 2).is_ok());

        let error = load(VOLUME_WITH_MAPS, None).try_out([2, 4, 5], 2).unwrap_err().to_string();
        assert!(error.contains("gives maps, which are not taken of volumes: give logits"), "{error}");
        let of_slices = of_shape(&|volume| volume.mean_dim([3i64, 4].as_slice(), false, None).flatten(1, -1));
        let error = load(&of_slices, None).try_out([2, 4, 5], 2).unwrap_err().to_string();
        assert!(error.contains("[1, 4] for 1 input(s), the manifest's classes want [1, 2]"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = answer(&load(CORNER, &[0, 1, 2]).unwrap(), &[question(0.0)]).unwrap_err().to_string();
        assert!(error.contains("[1, 2]") && error.contains("[1, 3]"), "{error}");
        for damaged in [&CORNER[..CORNER.len() / 2], b"not a file", b""] {
            let error = load(damaged, &[0, 1]).err().unwrap();
            assert!(error.contains("torch.jit.save") && error.len() < 700, "{error}");
        }
    }
}
