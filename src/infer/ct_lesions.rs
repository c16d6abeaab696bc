//! The lesions of a scan: what the networks of a bundle outline in its slices, and what the bundle's rule makes of it.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::{
    CtNetworks, InferError, ModelError,
    adapter::model_error,
    ct_networks::recipe,
    room::Placed,
    scores::{decide_by_rule, surviving},
    thread::on_thread,
};
use crate::{
    imaging::{
        Plane, PlaneError,
        ct::{
            LEFT_LUNG, LungLabels, RIGHT_LUNG, Refusal, ScanPlan, ScanRecipe, Volume, measure_lesions,
            slice_with_most_lesion,
        },
    },
    nn::{
        Input, LesionRule, Slices,
        quadrants::{Quadrants, consecutive_lesions, longest_run, quadrants_with_lesion},
    },
    types::{BundleIdentity, CtLesionMember, CtLesionRun, CtLesions, CtQuadrant, Errand, ReasonCode},
};

/// Slices that are handed to the networks at once: one portion is in memory beside the volume.
const SLICES_AT_ONCE: usize = 16;

/// What a bundle says of lesions.
pub(super) struct LesionOutlining {
    recipe: ScanRecipe,
    rule: LesionRule,
}

/// The lesions of a scan.
pub(super) struct Outlined {
    /// What the results say.
    pub(super) lesions: CtLesions,
    /// 1 for each voxel of lesion, 0 elsewhere, in the order of the volume.
    pub(super) mask: Vec<u8>,
}

impl Outlined {
    /// The slices that are shown because of their lesions: the one with most, and the middle of the run that satisfied the
    /// rule.
    pub(super) fn key_slices(&self) -> Vec<usize> {
        let of_run = self.lesions.run.map(|run| usize::midpoint(run.first_slice, run.last_slice));
        let mut slices: Vec<usize> = self.lesions.largest_slice.into_iter().chain(of_run).collect();
        slices.dedup();
        slices
    }
}

impl LesionOutlining {
    /// `None` of a bundle that outlines none.
    pub(super) fn of(input: &Input) -> Option<Self> {
        match input {
            Input::Seg2d { preprocessing, rule, .. } => Some(Self { recipe: recipe(preprocessing), rule: *rule }),
            _ => None,
        }
    }
}

impl CtNetworks {
    /// What the networks outline in a scan; `None` where the bundle has none for that. The inner error is what is wrong with
    /// the images.
    ///
    /// # Errors
    /// [`InferError`] when all networks or the worker fail.
    pub(super) async fn lesions(
        &self,
        bundle: &BundleIdentity,
        volume: &Arc<Placed<Volume>>,
        lungs: &Arc<LungLabels>,
        errand: &Errand,
    ) -> Result<Option<Result<Outlined, Refusal>>, InferError> {
        let Some(outlining) = self.outlining.clone() else { return Ok(None) };
        let plan = on_thread(&errand.progress, {
            let (volume, lungs, outlining) = (Arc::clone(volume), Arc::clone(lungs), Arc::clone(&outlining));
            move || ScanPlan::of(&volume, &lungs, &outlining.recipe)
        })
        .await?;
        let Some(plan) = plan else {
            let words = format!(
                "no slice holds {} cm2 of lung, which the networks of the bundle ask for",
                outlining.recipe.minimum_lung_cm2
            );
            return Ok(Some(Err(Refusal { reason: ReasonCode::LungMask, words })));
        };
        let (taken, wanted) = (plan.slices().len(), plan.wanted());
        if taken < wanted {
            let words = format!(
                "the lungs lie in {wanted} slices and the bundle takes {taken}: slices between them would be left out, and \
                 no run of lesions be found; reconstruct thicker slices, or raise `maximum_slices`"
            );
            return Ok(Some(Err(Refusal { reason: ReasonCode::UnsupportedImage, words })));
        }
        let scan = Scan {
            volume: Arc::clone(volume),
            lungs: Arc::clone(lungs),
            outlining,
            plan: Arc::new(plan),
            errand: errand.clone(),
        };

        let mut answers: Vec<Result<(), ModelError>> = bundle.members.iter().map(|_| Ok(())).collect();
        let (mask, quadrants) = loop {
            let asked: Vec<usize> = (0..answers.len()).filter(|member_idx| answers[*member_idx].is_ok()).collect();
            if asked.is_empty() {
                return Err(surviving(bundle, answers).err().unwrap_or_else(InferError::not_fused));
            }
            // What is outlined is of the same members in every slice: where one fails the others begin again.
            match self.outlines(&scan, &asked).await? {
                Ok(found) => break found,
                Err(failures) => {
                    for (member_idx, failure) in failures {
                        answers[member_idx] = Err(failure);
                    }
                }
            }
        };
        let answers = surviving(bundle, answers)?;
        let outlined = on_thread(&errand.progress, {
            let bundle = bundle.clone();
            move || scan.result(&bundle, answers, mask, &quadrants)
        })
        .await?;
        Ok(Some(Ok(outlined)))
    }

    /// The mask of a scan and the quadrants of its slices, by the mean of some members; the inner error names those that
    /// failed.
    async fn outlines(
        &self,
        scan: &Scan,
        members: &[usize],
    ) -> Result<Result<(Vec<u8>, Vec<Quadrants>), Failures>, InferError> {
        let n_slices = scan.plan.slices().len();
        let mut mask = vec![0_u8; scan.volume.hu.len()];
        let mut quadrants = scan.no_lesions();
        for first in (0..n_slices).step_by(SLICES_AT_ONCE) {
            let range = first..(first + SLICES_AT_ONCE).min(n_slices);
            let input = on_thread(&scan.errand.progress, {
                let (scan, range) = (scan.clone(), range.clone());
                move || scan.plan.input(&scan.volume, &scan.lungs, &scan.outlining.recipe, range)
            })
            .await??;
            let [channels, rows, columns] = [input.channels, input.rows, input.columns];
            let slices = Arc::new(Slices { count: range.len(), channels, rows, columns, values: input.values });
            let mut tasks = JoinSet::new();
            for &member_idx in members {
                let (ensemble, slices, errand) = (self.ensemble.clone(), Arc::clone(&slices), scan.errand.clone());
                tasks.spawn(async move { (member_idx, ensemble.outline(member_idx, slices, &errand).await) });
            }
            drop(slices);
            let mut of_members: Vec<(usize, Vec<f32>)> = Vec::with_capacity(members.len());
            let mut failures = Failures::new();
            while let Some(joined) = tasks.join_next().await {
                match joined {
                    Ok((member_idx, Ok(probabilities))) => of_members.push((member_idx, probabilities)),
                    Ok((member_idx, Err(error))) => failures.push((member_idx, model_error(&error))),
                    Err(panic) => return Err(panic.into()),
                }
            }
            if !failures.is_empty() {
                return Ok(Err(failures));
            }
            // In the order of the bundle, so that sums are the same every time.
            of_members.sort_by_key(|(member_idx, _)| *member_idx);
            let of_members: Vec<Vec<f32>> = of_members.into_iter().map(|(_, probabilities)| probabilities).collect();
            (mask, quadrants) = on_thread(&scan.errand.progress, {
                let scan = scan.clone();
                move || {
                    scan.paste(range, [rows, columns], &of_members, &mut mask, &mut quadrants)?;
                    Ok::<_, PlaneError>((mask, quadrants))
                }
            })
            .await??;
        }
        Ok(Ok((mask, quadrants)))
    }
}

/// Members by their place in the bundle, and how they failed.
type Failures = Vec<(usize, ModelError)>;

/// A scan and how it is looked at.
#[derive(Clone)]
struct Scan {
    volume: Arc<Placed<Volume>>,
    lungs: Arc<LungLabels>,
    outlining: Arc<LesionOutlining>,
    plan: Arc<ScanPlan>,
    errand: Errand,
}

impl Scan {
    /// One entry for each slice that the rule counts: those of the scan, seen or not, or the resampled ones.
    fn no_lesions(&self) -> Vec<Quadrants> {
        let is_resampled = self.outlining.recipe.slice_spacing_mm.is_some();
        let count = if is_resampled { self.plan.slices().len() } else { self.volume.size[2] };
        vec![[false; 4]; count]
    }

    /// Where the slice that the plan has at this number stands among those that the rule counts.
    fn place_in_rule(&self, number: usize, slice: usize) -> usize {
        if self.outlining.recipe.slice_spacing_mm.is_some() { number } else { slice }
    }

    /// Puts the slices of a portion into the mask and among the quadrants: the mean of the members (each `rows x columns`
    /// for every slice), at the pixels of the scan, from the probability of the rule on.
    fn paste(
        &self,
        range: std::ops::Range<usize>,
        [rows, columns]: [usize; 2],
        of_members: &[Vec<f32>],
        mask: &mut [u8],
        quadrants: &mut [Quadrants],
    ) -> Result<(), PlaneError> {
        let LesionRule { minimum_area_mm2, probability, lungs_only, .. } = self.outlining.rule;
        let [scan_columns, scan_rows, _] = self.volume.size;
        let slice_pixels = self.volume.slice_pixels();
        let pixel_mm2 = self.volume.spacing_mm[0] * self.volume.spacing_mm[1];
        // A grid that does not divide evenly must not ask for a pixel more than the area has.
        let minimum_pixels = (minimum_area_mm2 / pixel_mm2 - 1e-9).ceil().max(1.0) as usize;
        let pixels = rows * columns;
        let slices = self.plan.slices();
        for (number_in_portion, number) in range.enumerate() {
            let mut mean = vec![0.0_f32; pixels];
            for member in of_members {
                let first = number_in_portion * pixels;
                let said = member.get(first..first + pixels).ok_or(PlaneError::Shape {
                    rows,
                    columns,
                    values: member.len().saturating_sub(first),
                })?;
                for (mean, p) in mean.iter_mut().zip(said) {
                    *mean += p / of_members.len() as f32;
                }
            }
            let over_slice = self.plan.over_slice(&Plane { rows, columns, values: mean })?;
            let lesion_of = |slice: usize| -> Vec<bool> {
                let labels = self.lungs.labels.get(slice * slice_pixels..(slice + 1) * slice_pixels);
                let is_within = |label: &u8| !lungs_only || *label == RIGHT_LUNG || *label == LEFT_LUNG;
                let is_lesion = |(p, label): (&f32, &u8)| f64::from(*p) >= probability && is_within(label);
                over_slice.values.iter().zip(labels.unwrap_or_default()).map(is_lesion).collect()
            };
            let Some(&slice) = slices.get(number) else { continue };
            let found = quadrants_with_lesion(&lesion_of(slice), scan_rows, scan_columns, minimum_pixels);
            if let Some(place) = quadrants.get_mut(self.place_in_rule(number, slice)) {
                *place = found;
            }
            for slice in self.plan.slices_of(number) {
                if let Some(target) = mask.get_mut(slice * slice_pixels..(slice + 1) * slice_pixels) {
                    for (target, is_lesion) in target.iter_mut().zip(lesion_of(slice)) {
                        *target = u8::from(is_lesion);
                    }
                }
            }
        }
        Ok(())
    }

    /// The rule, and what the lesions measure.
    fn result(
        &self,
        bundle: &BundleIdentity,
        answers: Vec<Result<(), String>>,
        mask: Vec<u8>,
        quadrants: &[Quadrants],
    ) -> Outlined {
        let LesionOutlining { recipe, rule } = &*self.outlining;
        let run = self.first_run(quadrants, rule.slices as usize);
        let members: Vec<CtLesionMember> = bundle
            .members
            .iter()
            .zip(answers)
            .map(|(member, answer)| CtLesionMember { name: member.name.clone(), failure: answer.err() })
            .collect();
        let is_whole = members.iter().all(|member| member.failure.is_none());
        let (volume_ml, lungs) = measure_lesions(&self.volume, &self.lungs, &mask);
        let lesions = CtLesions {
            rule: rule.words(recipe.slice_spacing_mm),
            members,
            slices: self.plan.slices(),
            slices_with_lesion: quadrants.iter().filter(|slice| slice.contains(&true)).count(),
            longest_run: longest_run(quadrants),
            run,
            decision: decide_by_rule(bundle, run.is_some(), is_whole),
            volume_ml,
            lungs,
            largest_slice: slice_with_most_lesion(&self.volume, &mask),
        };
        Outlined { lesions, mask }
    }

    /// The first run that satisfies the rule, over at least as many slices that were acquired: one slice that is resampled
    /// to several is none.
    fn first_run(&self, quadrants: &[Quadrants], n_slices: usize) -> Option<CtLesionRun> {
        let mut from = 0;
        loop {
            let (first, quadrant_idx) = consecutive_lesions(quadrants.get(from..)?, n_slices)?;
            let run = self.run(quadrants, from + first, quadrant_idx)?;
            if run.first_slice.abs_diff(run.last_slice) + 1 >= n_slices {
                return Some(run);
            }
            from += first + 1;
        }
    }

    /// The whole run that begins at `first` among the slices that the rule counts.
    fn run(&self, quadrants: &[Quadrants], first: usize, quadrant_idx: usize) -> Option<CtLesionRun> {
        let of_run = quadrants.iter().skip(first).take_while(|slice| slice.get(quadrant_idx) == Some(&true));
        let count = of_run.count();
        let slice_at = |place: usize| {
            if self.outlining.recipe.slice_spacing_mm.is_some() {
                self.plan.slices().get(place).copied()
            } else {
                Some(place)
            }
        };
        Some(CtLesionRun {
            first_slice: slice_at(first)?,
            last_slice: slice_at((first + count).checked_sub(1)?)?,
            slices: count,
            quadrant: *CtQuadrant::ALL.get(quadrant_idx)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        imaging::classifier_input::ResizeMode,
        nn::LesionRuleMethod,
        types::{BundleStatus, Decision, MemberIdentity, Sha256Digest},
    };

    /// Eight slices of 4 x 4 pixels, all of them lung but slice 3, which has one pixel of it.
    fn scan(rule_slices: u32, slice_spacing_mm: Option<f64>) -> Scan {
        let mut labels = vec![RIGHT_LUNG; 8 * 16];
        labels[3 * 16..4 * 16].fill(0);
        labels[3 * 16] = RIGHT_LUNG;
        let lungs = LungLabels {
            labels,
            threshold_hu: None,
            airway_found: false,
            touching: false,
            border_pixels: 0,
            dropped_voxels: 0,
        };
        let volume = Volume { size: [4, 4, 8], spacing_mm: [10.0, 10.0, 5.0], hu: vec![0; 8 * 16] };
        let recipe = ScanRecipe {
            window_hu: [-1000.0, 1000.0],
            outside_lungs_black: false,
            crop_to_lungs: false,
            crop_margin_mm: 0.0,
            resize: ResizeMode::Stretch,
            rows: 4,
            columns: 4,
            channels: Vec::new(),
            z_score: false,
            range: None,
            mean: Vec::new(),
            std: Vec::new(),
            minimum_lung_cm2: 2.0,
            slice_spacing_mm,
            maximum_slices: 100,
        };
        let rule = LesionRule {
            method: LesionRuleMethod::ConsecutiveSlices,
            slices: rule_slices,
            minimum_area_mm2: 0.0,
            probability: 0.5,
            lungs_only: false,
        };
        Scan {
            plan: Arc::new(ScanPlan::of(&volume, &lungs, &recipe).unwrap()),
            volume: Arc::new(Placed::apart(volume)),
            lungs: Arc::new(lungs),
            outlining: Arc::new(LesionOutlining { recipe, rule }),
            errand: Errand::default(),
        }
    }

    fn bundle(status: BundleStatus) -> BundleIdentity {
        let member = MemberIdentity {
            name: "one".to_owned(),
            architecture: "unet_plus_plus".to_owned(),
            version: "1".to_owned(),
            weights_sha256: Sha256Digest::of(b"one"),
        };
        BundleIdentity {
            name: "ct".to_owned(),
            version: "1".to_owned(),
            status,
            digest: Sha256Digest::of(b"ct"),
            classes: Vec::new(),
            target_class_idx: 0,
            threshold: 0.5,
            pixel_threshold: None,
            grey_zone: None,
            fusion: "mean_prob".to_owned(),
            calibration: None,
            reference_performance: String::new(),
            segmenter: None,
            members: vec![member],
        }
    }

    /// What comes of members that say `probability` of the pixel in row 0, column 3 of every slice they see.
    fn outlined(scan: &Scan, probabilities: &[f32], status: BundleStatus, failure: Option<&str>) -> Outlined {
        let n_slices = scan.plan.slices().len();
        let of_member = |probability: f32| {
            let mut said = vec![0.0; n_slices * 16];
            said.iter_mut().skip(3).step_by(16).for_each(|pixel| *pixel = probability);
            said
        };
        let of_members: Vec<Vec<f32>> = probabilities.iter().map(|probability| of_member(*probability)).collect();
        let (mut mask, mut quadrants) = (vec![0; scan.volume.hu.len()], scan.no_lesions());
        scan.paste(0..n_slices, [4, 4], &of_members, &mut mask, &mut quadrants).unwrap();
        let answer = failure.map_or(Ok(()), |words| Err(words.to_owned()));
        scan.result(&bundle(status), vec![answer], mask, &quadrants)
    }

    #[test]
    fn neighbours_of_a_slice_that_was_left_out_are_not_consecutive() {
        let three = outlined(&scan(3, None), &[1.0], BundleStatus::Validated, None);
        assert_eq!(three.lesions.slices, [0, 1, 2, 4, 5, 6, 7], "slice 3 has too little lung");
        let run = CtLesionRun { first_slice: 0, last_slice: 2, slices: 3, quadrant: CtQuadrant::LeftFront };
        assert_eq!(three.lesions.run, Some(run));
        let four = outlined(&scan(4, None), &[1.0], BundleStatus::Validated, None).lesions;
        let run = CtLesionRun { first_slice: 4, last_slice: 7, slices: 4, quadrant: CtQuadrant::LeftFront };
        assert_eq!((four.run, four.longest_run, four.slices_with_lesion), (Some(run), 4, 7));
        let five = outlined(&scan(5, None), &[1.0], BundleStatus::Validated, None).lesions;
        assert_eq!((five.run, five.longest_run, five.decision), (None, 4, Decision::Absent));
        // One pixel of half a millilitre in each of seven slices, at its place.
        assert!((five.volume_ml - 3.5).abs() < 1e-9 && five.largest_slice == Some(0));
        let voxels: Vec<usize> = (0..8 * 16).filter(|voxel| three.mask[*voxel] == 1).collect();
        assert_eq!(voxels, [3, 19, 35, 67, 83, 99, 115]);
    }

    /// 35 mm in steps of 10 mm are five slices, 8.75 mm apart.
    #[test]
    fn resampled_slices_are_counted_as_such_and_every_slice_gets_the_nearest_mask() {
        let found = outlined(&scan(5, Some(10.0)), &[1.0], BundleStatus::Validated, None);
        assert_eq!(found.lesions.slices.len(), 5);
        let run = CtLesionRun { first_slice: 0, last_slice: 7, slices: 5, quadrant: CtQuadrant::LeftFront };
        assert_eq!((found.lesions.run, found.lesions.decision), (Some(run), Decision::Present));
        assert_eq!(found.mask.iter().map(|lesion| usize::from(*lesion)).sum::<usize>(), 8, "all slices of the scan");
        let none = outlined(&scan(6, Some(10.0)), &[1.0], BundleStatus::Validated, None).lesions;
        assert_eq!((none.run, none.longest_run), (None, 5), "the scan's eight slices are not what is counted");
    }

    /// 35 mm in steps of 1 mm: several resampled slices show one slice of the scan.
    #[test]
    fn one_acquired_slice_is_no_run_however_finely_it_is_resampled() {
        let scan = scan(3, Some(1.0));
        let with_lesion_in = |acquired: std::ops::RangeInclusive<usize>| {
            let mut quadrants = scan.no_lesions();
            for (place, slice) in scan.plan.slices().into_iter().enumerate() {
                quadrants[place][1] = acquired.contains(&slice);
            }
            scan.result(&bundle(BundleStatus::Validated), vec![Ok(())], vec![0; scan.volume.hu.len()], &quadrants)
                .lesions
        };
        let one = with_lesion_in(5..=5);
        assert!(one.longest_run >= 3, "{}", one.longest_run);
        assert_eq!((one.run, one.decision), (None, Decision::Absent));
        let three = with_lesion_in(4..=6);
        let run = three.run.map(|run| (run.first_slice, run.last_slice, run.quadrant));
        assert_eq!((run, three.decision), (Some((4, 6, CtQuadrant::LeftFront)), Decision::Present));
    }

    #[test]
    fn members_are_averaged_and_what_is_left_of_them_decides_nothing() {
        let scan = scan(3, None);
        let lesions = |said: &[f32], status, failure| outlined(&scan, said, status, failure).lesions;
        assert!(lesions(&[0.9, 0.1], BundleStatus::Validated, None).run.is_some(), "the mean is 0.5");
        assert_eq!(lesions(&[0.9, 0.0], BundleStatus::Validated, None).decision, Decision::Absent);
        assert_eq!(lesions(&[0.9], BundleStatus::Validated, None).decision, Decision::Present);
        let partial = lesions(&[0.9], BundleStatus::Validated, Some("out of memory"));
        assert_eq!((partial.decision, partial.run.is_some()), (Decision::Undetermined, true));
        assert_eq!(partial.members[0].failure.as_deref(), Some("out of memory"));
        for status in [BundleStatus::Unvalidated, BundleStatus::Untrained] {
            assert_eq!(lesions(&[0.9], status, None).decision, Decision::Undetermined);
        }
    }

    #[test]
    fn small_areas_and_what_lies_beyond_the_lungs_count_as_the_rule_says() {
        let with = |minimum_area_mm2, lungs_only| {
            let mut scan = scan(3, None);
            let rule = LesionRule { minimum_area_mm2, lungs_only, ..scan.outlining.rule };
            scan.outlining = Arc::new(LesionOutlining { rule, recipe: scan.outlining.recipe.clone() });
            let mut labels = scan.lungs.labels.clone();
            // The lesion of slice 1 lies beyond the lung.
            labels[16 + 3] = 0;
            scan.lungs = Arc::new(LungLabels { labels, ..(*scan.lungs).clone() });
            outlined(&scan, &[1.0], BundleStatus::Unvalidated, None).lesions
        };
        assert_eq!(with(100.0, false).slices_with_lesion, 7, "one pixel has 100 square millimetres");
        let too_small = with(100.1, false);
        assert_eq!((too_small.slices_with_lesion, too_small.run), (0, None));
        assert!((too_small.volume_ml - 3.5).abs() < 1e-9, "what is too small for the rule is measured all the same");
        let within = with(0.0, true);
        assert_eq!((within.slices_with_lesion, within.run.map(|run| run.first_slice)), (6, Some(4)));
        assert!((within.volume_ml - 3.0).abs() < 1e-9);
    }
}
