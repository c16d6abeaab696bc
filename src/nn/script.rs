//! A classifier that a site exported itself: a TorchScript file (`torch.jit.save`) with network and weights.
//!
//! Its `forward` takes one or two tensors `n x channels x rows x columns` and gives the logits `n x outputs`, or a tuple
//! of the logits, the embedding `n x features`, and (if there is one) a map for every output, `n x outputs x rows x
//! columns`.

use tch::Tensor;

use super::{
    ensemble::{ActivationMap, ClassifierQuestion, MemberOutput, input_batch, member_outputs, target_outputs},
    error::NnError,
    jit::JitModule,
    load::{LoadPlan, rows_of},
    owner::{Model, Step},
    plane::Planes,
};

pub(super) struct ScriptModel {
    name: String,
    module: JitModule,
    class_of_output: Vec<usize>,
    device: tch::Device,
}

/// What one call of a file gave.
struct Output {
    logits: Tensor,
    embedding: Option<Tensor>,
    maps: Option<Tensor>,
}

impl ScriptModel {
    /// Loads the file of a plan.
    pub(super) fn load_planned(plan: &LoadPlan, class_of_output: Vec<usize>) -> Result<Self, NnError> {
        Self::load(&plan.name, &plan.read()?, class_of_output, plan.device).map_err(|reason| plan.problems(&[reason]))
    }

    /// Reads the file; weights of half precision are widened. The error says what is wrong with it.
    pub(super) fn load(
        name: &str,
        bytes: &[u8],
        class_of_output: Vec<usize>,
        device: tch::Device,
    ) -> Result<Self, String> {
        let module = JitModule::load(bytes, device).map_err(|words| {
            format!("not a sound TorchScript file ({words}): save the module with `torch.jit.save` after `eval()`")
        })?;
        Ok(Self { name: name.to_owned(), module, class_of_output, device })
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
        tch::no_grad(|| self.call(&questions.iter().collect::<Vec<_>>())).map(drop)
    }

    fn unfit(&self, words: String) -> NnError {
        NnError::Torch { network: self.name.clone(), words }
    }

    fn call(&self, questions: &[&ClassifierQuestion]) -> Result<Output, NnError> {
        let torch = |error: tch::TchError| NnError::torch(&self.name, &error);
        let n_inputs = questions.first().map_or(0, |question| question.inputs.len());
        let inputs = (0..n_inputs)
            .map(|input_idx| input_batch(questions, input_idx, self.device).map_err(torch))
            .collect::<Result<Vec<_>, _>>()?;
        let tensors = self.module.forward(&inputs).map_err(|words| self.unfit(words))?;
        let mut tensors = tensors.into_iter().map(|tensor| tensor.f_to_kind(tch::Kind::Float).map_err(torch));
        let (n, n_outputs) = (questions.len() as i64, self.class_of_output.len() as i64);
        let logits = tensors.next().transpose()?.ok_or_else(|| self.unfit("it gives an empty tuple".to_owned()))?;
        if logits.size() != [n, n_outputs] {
            return Err(self.unfit(format!(
                "its logits have the shape {:?} for {n} images, the manifest's classes want [{n}, {n_outputs}]",
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
            && (maps.dim() != 4 || maps.size()[..2] != [n, n_outputs])
        {
            let found = maps.size();
            return Err(self.unfit(format!("its maps have the shape {found:?}, expected [{n}, {n_outputs}, …, …]")));
        }
        Ok(Output { logits, embedding, maps })
    }
}

impl Model for ScriptModel {
    type Question = ClassifierQuestion;
    type Answer = MemberOutput;

    fn answer(&self, questions: &[&ClassifierQuestion], _: Step<'_>) -> Result<Vec<MemberOutput>, NnError> {
        let torch = |error: tch::TchError| NnError::torch(&self.name, &error);
        let Output { logits, embedding, maps } = self.call(questions)?;
        let embeddings = match embedding {
            Some(embedding) => rows_of(&self.name, &embedding)?,
            None => vec![Vec::new(); questions.len()],
        };
        let all_logits = rows_of(&self.name, &logits)?;
        let mut activation_maps = vec![None; questions.len()];
        if let Some(maps) = maps {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `deploy/golden/make_checkpoints.py`: the corner sample of an image and its negative as logits, alone and with
    /// an embedding (the mean of each channel) and maps (2 x 3 cells of the logit).
    const CORNER: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner.pt");
    const CORNER_WITH_ALL: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner_with_all.pt");

    /// The negative first and twice as large, by a buffer of whole numbers and one of half precision.
    const CORNER_OF_HALVES: &[u8] = include_bytes!("../../tests/golden/checkpoints/corner_of_halves.pt");

    fn question(first: f32) -> ClassifierQuestion {
        let mut values = vec![0.5; 3 * 64];
        values[0] = first;
        ClassifierQuestion { inputs: vec![Planes { channels: 3, rows: 8, columns: 8, values }], target_class_idx: 1 }
    }

    fn load(bytes: &[u8], class_of_output: &[usize]) -> Result<ScriptModel, String> {
        ScriptModel::load("site", bytes, class_of_output.to_vec(), tch::Device::Cpu)
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
    fn what_does_not_fit_is_named() {
        let error = answer(&load(CORNER, &[0, 1, 2]).unwrap(), &[question(0.0)]).unwrap_err().to_string();
        assert!(error.contains("[1, 2]") && error.contains("[1, 3]"), "{error}");
        for damaged in [&CORNER[..CORNER.len() / 2], b"not a file", b""] {
            let error = load(damaged, &[0, 1]).err().unwrap();
            assert!(error.contains("torch.jit.save") && error.len() < 700, "{error}");
        }
    }
}
