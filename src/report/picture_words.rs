//! The words that are burnt into pictures, in the language of the picture.

use super::{
    Texts,
    texts::Argument,
    wording::{self, Scores, allowed_decision, output_of},
};
use crate::{
    imaging::{
        FAINTEST_HEAT, MemberWords, OverlayWords, ScaleWords,
        ct::{BAND_LIMITS_HU, LegendWords, SliceWords, SummaryWords},
    },
    types::{
        BundleIdentity, BundleStatus, CtAnalysis, CtClassification, CtDensities, CtKeySlice, CtLesions, CtLung,
        CtLungLesions, CtPlane, CtQuadrant, Decision, ImageAnalysis, RunRecord, Side,
    },
};

/// What is written around the heat map of an analysed radiograph.
#[must_use]
pub fn overlay_words(record: &RunRecord, image: &ImageAnalysis, texts: Texts<'_>) -> OverlayWords {
    let speaker = Speaker { bundle: &record.bundle, texts };
    let bundle = speaker.bundle;
    let output = image.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    let mut above = vec![speaker.title(image)];
    above.push(speaker.say(
        "picture-model-output",
        &[
            ("calibration", speaker.calibration().into()),
            ("position", speaker.position(image.into()).into()),
            ("threshold", speaker.percent(bundle.threshold).into()),
        ],
    ));
    let mut reservations = Vec::new();
    if let Some(zone) = bundle.grey_zone.filter(|_| bundle.is_in_grey_zone(output)) {
        reservations.push(speaker.zone("picture-in-grey-zone", zone));
    }
    if !image.localised {
        let threshold = speaker.percent(bundle.threshold);
        reservations.push(speaker.say("picture-not-localised", &[("threshold", threshold.into())]));
    } else if !image.heat_map.values.iter().any(|&value| value > 0.0) {
        reservations.push(speaker.plain("picture-no-region"));
    }
    speaker.around(image, above, reservations)
}

/// What is written around a map of a radiograph that a person asked for. Neither threshold nor decision, which are about
/// the bundle's own class, are spoken of.
#[must_use]
pub fn overlay_words_on_demand(bundle: &BundleIdentity, image: &ImageAnalysis, texts: Texts<'_>) -> OverlayWords {
    let speaker = Speaker { bundle, texts };
    let made = image.member_heat_maps.iter().map(|(member, map)| {
        speaker
            .say("picture-on-demand-map", &[("method", map.method.as_str().into()), ("member", member.as_str().into())])
    });
    let made = speaker.list(made);
    let above = vec![speaker.title(image), speaker.say("picture-on-demand", &[("maps", made.into())])];
    speaker.around(image, above, vec![speaker.plain("picture-on-demand-limits")])
}

/// What is written around the sections of a measured CT.
#[must_use]
pub fn ct_overlay_words(record: &RunRecord, analysis: &CtAnalysis, texts: Texts<'_>) -> SummaryWords {
    let speaker = Speaker { bundle: &record.bundle, texts };
    let purpose = speaker.purpose();
    let mut below = vec![speaker.series(analysis)];
    below.extend(analysis.lungs.iter().map(|lung| speaker.lung(lung)));
    below.extend(analysis.lungs.iter().flat_map(|lung| speaker.thirds(lung)));
    below.extend(analysis.classification.iter().map(|scan| speaker.scan(scan)));
    below.extend(analysis.lesions.iter().flat_map(|lesions| speaker.lesions(lesions)));
    below.extend(analysis.not_judged.iter().map(|not_judged| {
        let words = not_judged.words.trim_end_matches('.');
        speaker.say("picture-ct-not-judged", &[("words", words.into()), ("reason", not_judged.reason.id().into())])
    }));
    below.push(speaker.plain("picture-ct-limits"));
    below.push(speaker.ct_identity(analysis));
    let [_, rows, slices] = analysis.series.size;
    let section = |plane: CtPlane, index: usize| {
        let (id, all) = match plane {
            CtPlane::Axial => ("picture-ct-axial", slices),
            CtPlane::Coronal => ("picture-ct-coronal", rows),
        };
        speaker.say(id, &[("number", (index + 1).to_string().into()), ("all", all.to_string().into())])
    };
    SummaryWords {
        notice: speaker.notice(),
        above: speaker.say("picture-ct-title", &[("purpose", purpose.into())]),
        sections: analysis.sections.iter().map(|shown| section(shown.plane, shown.index)).collect(),
        legend: speaker.legend(),
        below,
    }
}

/// What is written on slice number `slice` (from 0) of a measured CT.
#[must_use]
pub fn ct_slice_words(record: &RunRecord, analysis: &CtAnalysis, slice: usize, texts: Texts<'_>) -> SliceWords {
    let speaker = Speaker { bundle: &record.bundle, texts };
    let [.., slices] = analysis.series.size;
    let number = [("number", (slice + 1).to_string().into()), ("all", slices.to_string().into())];
    SliceWords { notice: speaker.notice(), lines: vec![speaker.purpose(), speaker.say("picture-ct-slice", &number)] }
}

/// Says everything in one language about what one bundle found.
#[derive(Clone, Copy)]
struct Speaker<'a> {
    bundle: &'a BundleIdentity,
    texts: Texts<'a>,
}

impl Speaker<'_> {
    fn say(self, id: &str, arguments: &[Argument<'_>]) -> String {
        self.texts.say(id, arguments)
    }

    fn plain(self, id: &str) -> String {
        self.say(id, &[])
    }

    /// Names and numbers one after the other.
    fn list(self, parts: impl Iterator<Item = String>) -> String {
        parts.collect::<Vec<_>>().join(", ")
    }

    fn notice(self) -> String {
        if self.bundle.status == BundleStatus::Untrained { self.plain("picture-untrained") } else { String::new() }
    }

    fn purpose(self) -> String {
        self.plain("not-for-diagnostic-use")
    }

    fn percent(self, share: f64) -> String {
        if share.is_finite() { wording::percent(share) } else { self.plain("picture-no-value") }
    }

    fn hounsfield(self, value: Option<f64>) -> String {
        value.map_or_else(|| self.plain("picture-no-value"), |value| format!("{value:.0} HU"))
    }

    fn class(self) -> String {
        match wording::target_label(self.bundle) {
            "" => self.plain("picture-no-class"),
            label => label.to_owned(),
        }
    }

    fn calibration(self) -> String {
        self.plain(if self.bundle.calibration.is_some() { "picture-calibrated" } else { "picture-uncalibrated" })
    }

    fn position(self, scores: Scores<'_>) -> String {
        let output = scores.fused.get(self.bundle.target_class_idx).copied().unwrap_or(f64::NAN);
        self.plain(if output >= self.bundle.threshold {
            "picture-at-or-above"
        } else if output < self.bundle.threshold {
            "picture-below"
        } else {
            "picture-not-comparable"
        })
    }

    fn zone(self, id: &str, [low, high]: [f64; 2]) -> String {
        self.say(id, &[("low", self.percent(low).into()), ("high", self.percent(high).into())])
    }

    fn title(self, image: &ImageAnalysis) -> String {
        let output = match image.fused.get(self.bundle.target_class_idx) {
            Some(output) => self.percent(*output),
            None => self.plain("picture-no-output"),
        };
        let (class, purpose) = (self.class(), self.purpose());
        self.say("picture-title", &[("class", class.into()), ("output", output.into()), ("purpose", purpose.into())])
    }

    /// The words of a radiograph that do not depend on who asked.
    fn around(self, image: &ImageAnalysis, above: Vec<String>, reservations: Vec<String>) -> OverlayWords {
        let bundle = self.bundle;
        let map = &image.heat_map;
        let cell = f64::from(image.placement.side) / map.rows.max(map.columns).max(1) as f64;
        let grid = [
            ("rows", map.rows.to_string().into()),
            ("columns", map.columns.to_string().into()),
            ("pixels", format!("{cell:.0}").into()),
        ];
        let status = match bundle.status {
            BundleStatus::Untrained => "picture-untrained",
            BundleStatus::Unvalidated => "picture-unvalidated",
            BundleStatus::Validated => "picture-validated",
        };
        let digest: String = bundle.digest.to_string().chars().take(16).collect();
        let identity = [
            ("name", bundle.name.as_str().into()),
            ("version", bundle.version.as_str().into()),
            ("digest", digest.into()),
            ("status", self.plain(status).into()),
        ];
        let share = format!("{:.0} %", FAINTEST_HEAT * 100.0);
        // One network is its own ensemble.
        let members = if image.members.len() < 2 { &[] } else { image.members.as_slice() };
        OverlayWords {
            notice: self.notice(),
            above,
            reservations,
            below: vec![self.say("picture-grid", &grid), self.say("picture-identity", &identity)],
            scale: ScaleWords {
                faintest: self.say("picture-scale-faintest", &[("share", share.into())]),
                strongest: self.plain("picture-scale-strongest"),
                outline: self.plain("picture-scale-outline"),
            },
            members_title: self.say("picture-members", &[("class", self.class().into())]),
            members: members
                .iter()
                .map(|member| MemberWords {
                    name: member.name.clone(),
                    words: self.member(&member.name, output_of(member, bundle.target_class_idx)),
                })
                .collect(),
        }
    }

    fn member(self, name: &str, output: Option<f64>) -> String {
        match output {
            Some(output) => {
                self.say("picture-member", &[("name", name.into()), ("output", self.percent(output).into())])
            }
            None => self.say("picture-member-failed", &[("name", name.into())]),
        }
    }

    fn legend(self) -> LegendWords {
        let [_, opacity, _, consolidation] = BAND_LIMITS_HU;
        let limit = |id: &str, hu: i16| self.say(id, &[("limit", format!("{hu} HU").into())]);
        LegendWords {
            right_lung: self.plain("picture-ct-legend-right"),
            left_lung: self.plain("picture-ct-legend-left"),
            opacity: limit("picture-ct-legend-opacity", opacity),
            consolidation: limit("picture-ct-legend-consolidation", consolidation),
            airway: self.plain("picture-ct-legend-airway"),
            heat: self.plain("picture-ct-legend-heat"),
            lesion: self.plain("picture-ct-legend-lesion"),
        }
    }

    fn series(self, analysis: &CtAnalysis) -> String {
        let series = &analysis.series;
        let [columns, rows, slices] = series.size;
        let [x, y, z] = series.spacing_mm;
        let thickness = series.slice_thickness_mm.map_or_else(String::new, |mm| {
            self.say("picture-ct-thickness", &[("thickness", format!("{mm:.2}").into())])
        });
        let kernel = series
            .convolution_kernel
            .as_ref()
            .map_or_else(String::new, |kernel| self.say("picture-ct-kernel", &[("kernel", kernel.as_str().into())]));
        self.say(
            "picture-ct-series",
            &[
                ("size", format!("{columns} x {rows} x {slices}").into()),
                ("spacing", format!("{x:.3} x {y:.3} x {z:.3}").into()),
                ("thickness", thickness.into()),
                ("kernel", kernel.into()),
            ],
        )
    }

    fn side(self, side: Side) -> String {
        self.plain(match side {
            Side::Right => "picture-ct-right-lung",
            Side::Left => "picture-ct-left-lung",
        })
    }

    fn lung(self, lung: &CtLung) -> String {
        let CtDensities { volume_ml, mean_hu, percentile_15_hu, band_fractions } = lung.whole;
        self.say(
            "picture-ct-lung",
            &[
                ("lung", self.side(lung.side).into()),
                ("volume", format!("{volume_ml:.0}").into()),
                ("mean", self.hounsfield(mean_hu).into()),
                ("percentile", self.hounsfield(percentile_15_hu).into()),
                ("opacity", self.percent(lung.whole.opacity_fraction()).into()),
                ("consolidation", self.percent(lung.whole.consolidation_fraction()).into()),
                ("emphysema", self.percent(band_fractions[0]).into()),
            ],
        )
    }

    fn thirds(self, lung: &CtLung) -> Vec<String> {
        let names = ["picture-ct-upper-third", "picture-ct-middle-third", "picture-ct-lower-third"];
        let line = |(name, third): (&str, &CtDensities)| {
            self.say(
                "picture-ct-third",
                &[
                    ("lung", self.side(lung.side).into()),
                    ("third", self.plain(name).into()),
                    ("volume", format!("{:.0}", third.volume_ml).into()),
                    ("mean", self.hounsfield(third.mean_hu).into()),
                    ("opacity", self.percent(third.opacity_fraction()).into()),
                    ("consolidation", self.percent(third.consolidation_fraction()).into()),
                ],
            )
        };
        names.into_iter().zip(&lung.thirds).map(line).collect()
    }

    /// What the networks said of a scan.
    fn scan(self, scan: &CtClassification) -> String {
        let bundle = self.bundle;
        let scores = Scores::from(scan);
        let outputs = bundle.classes.iter().zip(scores.fused);
        let outputs = self.list(outputs.map(|(class, output)| format!("{} {}", class.label, self.percent(*output))));
        let outputs = [("calibration", self.calibration().into()), ("outputs", outputs.into())];
        let of_members = scan.members.iter();
        let of_members =
            self.list(of_members.map(|member| self.member(&member.name, output_of(member, bundle.target_class_idx))));
        let members = [
            ("class", self.class().into()),
            ("outputs", of_members.into()),
            ("spread", self.percent(scan.member_spread).into()),
        ];
        let zone = bundle.grey_zone.map_or_else(String::new, |zone| self.zone("picture-grey-zone", zone));
        let operating_point = [
            ("threshold", self.percent(bundle.threshold).into()),
            ("zone", zone.into()),
            ("class", self.class().into()),
            ("position", self.position(scores).into()),
            ("decision", self.decision(scores).into()),
        ];
        let localisation = if scan.localised { "picture-ct-localised" } else { "picture-ct-not-localised" };
        self.say(
            "picture-ct-scan",
            &[
                ("outputs", self.say("picture-outputs", &outputs).into()),
                ("operating_point", self.say("picture-operating-point", &operating_point).into()),
                ("members", self.say("picture-all-members", &members).into()),
                ("slices", scan.slices.len().to_string().into()),
                ("aggregation", scan.aggregation.as_str().into()),
                ("keys", self.key_slices(scan).into()),
                ("localisation", self.plain(localisation).into()),
            ],
        )
    }

    fn key_slices(self, scan: &CtClassification) -> String {
        let class = self.class();
        if scan.key_slices.is_empty() {
            return self.say("picture-ct-no-key-slice", &[("class", class.into())]);
        }
        let slices: Vec<String> = scan.key_slices.iter().map(|key| self.key_slice(key)).collect();
        self.say("picture-ct-key-slices", &[("class", class.into()), ("slices", slices.join("; ").into())])
    }

    fn key_slice(self, key: &CtKeySlice) -> String {
        let share = |id: &str, name: &'static str, share: Option<f64>| {
            share.map_or_else(String::new, |share| self.say(id, &[(name, self.percent(share).into())]))
        };
        let slice = self.say("picture-ct-key-slice", &[("number", (key.slice + 1).to_string().into())]);
        let output = share("picture-ct-key-output", "output", key.output);
        slice + &output + &share("picture-ct-key-heat", "share", key.lung_heat_fraction)
    }

    /// The decision at the threshold; why there is none.
    fn decision(self, scores: Scores<'_>) -> String {
        let bundle = self.bundle;
        let output = scores.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
        let zone = bundle.grey_zone.filter(|_| bundle.is_in_grey_zone(output));
        let failed = scores.members.iter().filter(|member| member.failure.is_some()).count();
        let decided = match allowed_decision(bundle, scores.decision) {
            Decision::Present => Some("picture-decision-present"),
            Decision::Absent => Some("picture-decision-absent"),
            Decision::Undetermined => None,
        };
        self.decided(decided, zone, (failed, scores.members.len()))
    }

    fn decided(self, decided: Option<&str>, zone: Option<[f64; 2]>, (failed, all): (usize, usize)) -> String {
        match (self.bundle.status, decided) {
            (BundleStatus::Untrained, _) => return self.plain("picture-decision-untrained"),
            (BundleStatus::Unvalidated, _) => return self.plain("picture-decision-unvalidated"),
            (BundleStatus::Validated, Some(id)) => return self.plain(id),
            (BundleStatus::Validated, None) => {}
        }
        let zone = zone.map(|zone| self.zone("picture-because-grey-zone", zone));
        let counts = [("failed", failed.to_string().into()), ("all", all.to_string().into())];
        let failed = (failed > 0).then(|| self.say("picture-because-members", &counts));
        let reasons: Vec<String> = [zone, failed].into_iter().flatten().collect();
        if reasons.is_empty() {
            return self.plain("picture-decision-undetermined");
        }
        self.say("picture-decision-because", &[("reasons", reasons.join("; ").into())])
    }

    /// What the networks outlined and what the rule makes of it.
    fn lesions(self, lesions: &CtLesions) -> Vec<String> {
        let outlined = [
            ("class", self.class().into()),
            ("volume", format!("{:.1}", lesions.volume_ml).into()),
            ("lungs", self.list(lesions.lungs.iter().map(|lung| self.lesions_in(lung))).into()),
        ];
        let decided = match allowed_decision(self.bundle, lesions.decision) {
            Decision::Present => Some("picture-ct-by-rule-present"),
            Decision::Absent => Some("picture-ct-by-rule-absent"),
            Decision::Undetermined => None,
        };
        let failed = lesions.members.iter().filter(|member| member.failure.is_some()).count();
        let outcome = [
            ("run", self.run(lesions).into()),
            ("with_lesion", lesions.slices_with_lesion.to_string().into()),
            ("seen", lesions.slices.len().to_string().into()),
            ("longest", lesions.longest_run.to_string().into()),
            ("decision", self.decided(decided, None, (failed, lesions.members.len())).into()),
        ];
        let mut lines = vec![
            self.say("picture-ct-outlined", &outlined),
            self.say("picture-ct-rule", &[("rule", lesions.rule.as_str().into())]),
            self.say("picture-ct-rule-outcome", &outcome),
        ];
        lines.extend(lesions.members.iter().filter_map(|member| {
            let reason = member.failure.as_deref()?;
            let arguments = [("name", member.name.as_str().into()), ("reason", reason.into())];
            Some(self.say("picture-ct-member-failed", &arguments))
        }));
        lines
    }

    fn lesions_in(self, lung: &CtLungLesions) -> String {
        let id = match lung.side {
            Side::Right => "picture-ct-in-right-lung",
            Side::Left => "picture-ct-in-left-lung",
        };
        let share = self.percent(lung.fraction.unwrap_or(f64::NAN));
        self.say(id, &[("volume", format!("{:.1}", lung.volume_ml).into()), ("share", share.into())])
    }

    /// Whether the rule is satisfied, and where.
    fn run(self, lesions: &CtLesions) -> String {
        let Some(run) = &lesions.run else { return self.plain("picture-ct-rule-not-satisfied") };
        let quadrant = match run.quadrant {
            CtQuadrant::RightFront => "picture-ct-right-front",
            CtQuadrant::LeftFront => "picture-ct-left-front",
            CtQuadrant::RightBack => "picture-ct-right-back",
            CtQuadrant::LeftBack => "picture-ct-left-back",
        };
        self.say(
            "picture-ct-rule-satisfied",
            &[
                ("slices", run.slices.to_string().into()),
                ("first", (run.first_slice + 1).to_string().into()),
                ("last", (run.last_slice + 1).to_string().into()),
                ("quadrant", self.plain(quadrant).into()),
            ],
        )
    }

    fn ct_identity(self, analysis: &CtAnalysis) -> String {
        let bundle = self.bundle;
        let method = analysis.method.segmentation.as_str();
        let segmentation = match analysis.method.threshold_hu {
            Some(hu) => {
                self.say("picture-ct-threshold", &[("method", method.into()), ("threshold", format!("{hu} HU").into())])
            }
            None => method.to_owned(),
        };
        let status = match bundle.status {
            BundleStatus::Untrained => "picture-status-untrained",
            BundleStatus::Unvalidated => "picture-status-unvalidated",
            BundleStatus::Validated => "picture-status-validated",
        };
        self.say(
            "picture-ct-identity",
            &[
                ("name", bundle.name.as_str().into()),
                ("version", bundle.version.as_str().into()),
                ("status", self.plain(status).into()),
                ("segmentation", segmentation.into()),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::{Catalogue, samples},
        types::{CxrAnalysis, RunOutcome, UNTRAINED_NOTICE},
    };

    fn image(record: &RunRecord) -> &ImageAnalysis {
        let RunOutcome::Analysed(CxrAnalysis { images, .. }) = &record.outcome else { panic!("analysed") };
        images.last().unwrap()
    }

    fn ct(record: &RunRecord) -> &CtAnalysis {
        let RunOutcome::CtMeasured(analysis) = &record.outcome else { panic!("measured") };
        analysis
    }

    fn radiograph(status: BundleStatus) -> RunRecord {
        samples::analysed(status, &samples::SampleSource::new("1.2.3"))
    }

    #[test]
    fn the_words_name_class_output_purpose_and_grid() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let record = radiograph(BundleStatus::Unvalidated);
        let words = overlay_words(&record, image(&record), catalogue.language("en"));
        assert_eq!(words.above[0], "AI heat map · COVID-19 87.3 % · NOT FOR DIAGNOSTIC USE");
        assert_eq!(words.above[1], "Model output, uncalibrated, at or above the operating threshold (50.0 %).");
        assert_eq!((words.notice.as_str(), words.reservations.len()), ("", 0));
        assert!(words.below[0].starts_with("grid 7x7: one cell = 6 px of the source image."), "{words:?}");
        assert!(words.below[1].starts_with("RESEARCH, UNVERIFIED. cxr-ensemble 1.2.0 (sha256 "), "{words:?}");
        assert!(words.below[1].ends_with(": these weights are not validated"), "{words:?}");
        let members: Vec<&str> = words.members.iter().map(|member| member.words.as_str()).collect();
        assert_eq!(members, ["resnet50 88.1 %", "vgg16 86.5 %"]);
        assert_eq!(words.members[1].name, "vgg16");
        assert_eq!(words.scale.faintest, "activation 30 %");
    }

    #[test]
    fn an_untrained_bundle_announces_itself_in_every_language() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let (radiograph, sources) = (radiograph(BundleStatus::Untrained), samples::ct_sources());
        let of_ct = samples::ct_measured(BundleStatus::Untrained, &sources);
        for tag in ["en", "zh"] {
            let texts = catalogue.language(tag);
            let notices = [
                overlay_words(&radiograph, image(&radiograph), texts).notice,
                ct_overlay_words(&of_ct, ct(&of_ct), texts).notice,
                ct_slice_words(&of_ct, ct(&of_ct), 0, texts).notice,
            ];
            assert!(notices.iter().all(|notice| notice.contains(UNTRAINED_NOTICE)), "{tag}: {notices:?}");
        }
        let english = overlay_words(&radiograph, image(&radiograph), catalogue.language("en"));
        assert_eq!(english.notice, UNTRAINED_NOTICE);
    }

    #[test]
    fn what_is_not_localised_says_so_and_a_member_that_failed_as_well() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let mut record = samples::partial(&samples::three_sources());
        let words = overlay_words(&record, image(&record), catalogue.language("en"));
        assert_eq!(words.reservations, ["no localisation: the output is below the threshold of 50.0 %"]);
        assert_eq!(words.members[1].words, "vgg16 failed");
        record.bundle.grey_zone = Some([0.1, 0.2]);
        let words = overlay_words(&record, image(&record), catalogue.language("en"));
        assert!(words.reservations[0].contains("grey zone, 10.0 % to below 20.0 %"), "{words:?}");
        let mut cold = image(&record).clone();
        cold.localised = true;
        cold.heat_map.values.fill(0.0);
        let words = overlay_words(&record, &cold, catalogue.language("en"));
        assert!(words.reservations.contains(&"no localisation: no region raised the output".to_owned()), "{words:?}");
        // One network alone has no strip.
        cold.members.truncate(1);
        assert_eq!(overlay_words(&record, &cold, catalogue.language("en")).members, []);
    }

    #[test]
    fn a_map_on_demand_speaks_of_no_threshold() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let record = samples::partial(&samples::three_sources());
        let words = overlay_words_on_demand(&record.bundle, image(&record), catalogue.language("en"));
        assert_eq!(words.above[1], "made on demand: cam of resnet50, hirescam of vgg16");
        assert!(words.reservations[0].contains("no indication"), "{words:?}");
        let all = [words.above, words.reservations].concat().join(" ");
        assert!(!all.contains("threshold") && !all.contains("localisation"), "{all}");
    }

    /// What the report says in English, the picture says.
    #[test]
    fn the_words_of_a_ct_are_those_of_its_report() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let sources = samples::ct_sources();
        for status in [BundleStatus::Untrained, BundleStatus::Unvalidated, BundleStatus::Validated] {
            for record in [
                samples::ct_measured(status, &sources),
                samples::ct_classified(status, &sources),
                samples::ct_outlined(status, &sources),
            ] {
                let words = ct_overlay_words(&record, ct(&record), catalogue.language("en"));
                let report = crate::report::ct_measurement_lines(&record.bundle, ct(&record));
                for line in report.iter().filter(|line| !line.contains("eries ")) {
                    let line = line.trim_end_matches('.');
                    let is_said = words.below.iter().any(|of_picture| of_picture.trim_end_matches('.') == line);
                    assert!(is_said, "{line} is not in {:#?}", words.below);
                }
                assert!(words.below[0].starts_with("Measured: 32 x 40 x 2 voxels of 0.700 x 0.700 x 2.500 mm"));
                assert_eq!(words.sections, ["axial, slice 2 of 2 from the feet"]);
                assert_eq!(words.legend.opacity, "in a lung, -700 HU and above (vessels too)");
                assert!(words.below.last().unwrap().starts_with("RESEARCH, UNVERIFIED. ct-"), "{words:?}");
            }
        }
    }

    #[test]
    fn a_chinese_picture_is_chinese_throughout_and_says_no_more_than_an_output() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let texts = catalogue.language("zh");
        let sources = samples::ct_sources();
        let record = radiograph(BundleStatus::Unvalidated);
        let words = overlay_words(&record, image(&record), texts);
        assert_eq!(words.above[0], "AI 热图 · COVID-19 87.3 % · 不可用于诊断");
        let mut said = [words.above, words.below, vec![words.members_title]].concat();
        for record in [
            samples::ct_measured(BundleStatus::Unvalidated, &sources),
            samples::ct_classified(BundleStatus::Unvalidated, &sources),
            samples::ct_outlined(BundleStatus::Unvalidated, &sources),
        ] {
            let words = ct_overlay_words(&record, ct(&record), texts);
            said.extend(words.below);
            said.extend(words.sections);
            said.push(words.above);
            said.extend(ct_slice_words(&record, ct(&record), 1, texts).lines);
        }
        for line in said {
            assert!(line.chars().any(|character| ('\u{4e00}'..='\u{9fff}').contains(&character)), "{line}");
            assert!(!line.contains("picture-"), "a message is missing: {line}");
            for forbidden in ["阳性", "阴性", "检出", "确诊", "概率", "可疑"] {
                assert!(!line.contains(forbidden), "{line}");
            }
        }
    }
}
