//! The words that are burnt into pictures, in the language of the picture: in English where pictures cannot show it.

use super::{
    Texts, ct_words,
    texts::Argument,
    wording::{self, against_threshold, output_of, percent_or_none},
};
use crate::{
    imaging::{
        FAINTEST_HEAT, MemberWords, OverlayWords, ScaleWords,
        ct::{BAND_LIMITS_HU, LegendWords, SliceWords, SummaryWords},
    },
    types::{BundleIdentity, BundleStatus, CtAnalysis, CtPlane, ImageAnalysis, MemberScore, RunRecord},
};

/// What is written around the heat map of an analysed radiograph.
#[must_use]
pub fn overlay_words(record: &RunRecord, image: &ImageAnalysis, texts: Texts<'_>) -> OverlayWords {
    let speaker = Speaker::new(&record.bundle, texts);
    let Speaker { bundle, texts } = speaker;
    let threshold = percent_or_none(texts, Some(bundle.threshold));
    let output = [
        ("calibration", wording::calibration(texts, bundle).into()),
        ("position", against_threshold(texts, bundle, image.into()).into()),
        ("threshold", threshold.clone().into()),
    ];
    let above = vec![speaker.title(image), speaker.say("picture-model-output", &output)];
    let mut reservations = Vec::new();
    let of_target = image.fused.get(bundle.target_class_idx).copied().unwrap_or(f64::NAN);
    if let Some(zone) = wording::grey_zone(texts, bundle).filter(|_| bundle.is_in_grey_zone(of_target)) {
        reservations.push(speaker.say("picture-in-grey-zone", &[("zone", zone.into())]));
    }
    if wording::is_without_map(image) {
        reservations.push(speaker.plain("picture-no-map"));
    } else if !image.localised {
        reservations.push(speaker.say("picture-not-localised", &[("threshold", threshold.into())]));
    } else if !image.heat_map.values.iter().any(|&value| value > 0.0) {
        reservations.push(speaker.plain("picture-no-region"));
    } else {
        reservations.extend(speaker.heat_elsewhere(image));
    }
    speaker.around(image, above, reservations)
}

/// What is written around a map of a radiograph that a person asked for. Neither threshold nor decision, which are about
/// the bundle's own class, are spoken of.
#[must_use]
pub fn overlay_words_on_demand(bundle: &BundleIdentity, image: &ImageAnalysis, texts: Texts<'_>) -> OverlayWords {
    let speaker = Speaker::new(bundle, texts);
    let texts = speaker.texts;
    let made = image.member_heat_maps.iter().map(|(member, map)| {
        let arguments = [("method", map.method.as_str().into()), ("member", member.as_str().into())];
        speaker.say("picture-on-demand-map", &arguments)
    });
    let made = wording::list(texts, &made.collect::<Vec<String>>());
    let above = vec![speaker.title(image), speaker.say("picture-on-demand", &[("maps", made.into())])];
    let mut reservations = vec![speaker.plain("picture-on-demand-limits")];
    reservations.extend(speaker.heat_elsewhere(image));
    speaker.around(image, above, reservations)
}

/// What is written around the sections of a measured CT.
#[must_use]
pub fn ct_overlay_words(record: &RunRecord, analysis: &CtAnalysis, texts: Texts<'_>) -> SummaryWords {
    let speaker = Speaker::new(&record.bundle, texts);
    let Speaker { bundle, texts } = speaker;
    let mut below = vec![speaker.series(analysis)];
    below.extend(analysis.lungs.iter().map(|lung| ct_words::lung(texts, lung)));
    below.extend(analysis.lungs.iter().flat_map(|lung| ct_words::thirds_of_lung(texts, lung)));
    below.extend(analysis.classification.iter().map(|scan| ct_words::classification(texts, bundle, scan)));
    below.extend(analysis.lesions.iter().flat_map(|lesions| ct_words::lesions(texts, bundle, lesions)));
    below.extend(ct_words::not_judged(texts, analysis));
    below.push(speaker.plain("ct-limits"));
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
        above: speaker.say("picture-ct-title", &[("purpose", speaker.purpose().into())]),
        sections: analysis.sections.iter().map(|shown| section(shown.plane, shown.index)).collect(),
        legend: speaker.legend(),
        below,
    }
}

/// What is written on slice number `slice` (from 0) of a measured CT.
#[must_use]
pub fn ct_slice_words(record: &RunRecord, analysis: &CtAnalysis, slice: usize, texts: Texts<'_>) -> SliceWords {
    let speaker = Speaker::new(&record.bundle, texts);
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

impl<'a> Speaker<'a> {
    fn new(bundle: &'a BundleIdentity, texts: Texts<'a>) -> Self {
        Self { bundle, texts: texts.in_pictures() }
    }

    fn say(self, id: &str, arguments: &[Argument<'_>]) -> String {
        self.texts.say(id, arguments)
    }

    fn plain(self, id: &str) -> String {
        self.say(id, &[])
    }

    fn notice(self) -> String {
        if self.bundle.status == BundleStatus::Untrained { self.plain("picture-untrained") } else { String::new() }
    }

    fn purpose(self) -> String {
        self.plain("not-for-diagnostic-use")
    }

    fn class(self) -> String {
        match wording::target_label(self.bundle) {
            "" => self.plain("picture-no-class"),
            label => label.to_owned(),
        }
    }

    fn title(self, image: &ImageAnalysis) -> String {
        let output = match image.fused.get(self.bundle.target_class_idx) {
            Some(output) => percent_or_none(self.texts, Some(*output)),
            None => self.plain("picture-no-output"),
        };
        let (class, purpose) = (self.class(), self.purpose());
        self.say("picture-title", &[("class", class.into()), ("output", output.into()), ("purpose", purpose.into())])
    }

    /// Where the map that is shown points beside the lungs.
    fn heat_elsewhere(self, image: &ImageAnalysis) -> Option<String> {
        let share = percent_or_none(self.texts, Some(wording::little_heat_in_lungs(image)?));
        Some(self.say("picture-heat-elsewhere", &[("share", share.into())]))
    }

    /// The words of a radiograph that do not depend on who asked.
    fn around(self, image: &ImageAnalysis, above: Vec<String>, reservations: Vec<String>) -> OverlayWords {
        let bundle = self.bundle;
        let map = &image.heat_map;
        let along = |share: f64, cells: usize| f64::from(image.placement.side) * share / cells.max(1) as f64;
        let cell = along(map.frame.height, map.rows).max(along(map.frame.width, map.columns));
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
            below: vec![
                if wording::is_without_map(image) {
                    self.plain("picture-no-grid")
                } else {
                    self.say("picture-grid", &grid)
                },
                self.say("picture-identity", &identity),
            ],
            scale: ScaleWords {
                faintest: self.say("picture-scale-faintest", &[("share", share.into())]),
                strongest: self.plain("picture-scale-strongest"),
                outline: self.plain("picture-scale-outline"),
            },
            members_title: self.say("picture-members", &[("class", self.class().into())]),
            members: members.iter().map(|member| self.member(member)).collect(),
        }
    }

    fn member(self, member: &MemberScore) -> MemberWords {
        let name = member.name.clone();
        let words = match output_of(member, self.bundle.target_class_idx) {
            Some(output) => {
                let output = percent_or_none(self.texts, Some(output));
                self.say("picture-member", &[("name", name.as_str().into()), ("output", output.into())])
            }
            None => self.say("picture-member-failed", &[("name", name.as_str().into())]),
        };
        MemberWords { name, words }
    }

    fn legend(self) -> LegendWords {
        let [_, opacity, _, consolidation] = BAND_LIMITS_HU;
        let dense = |hu: i16| self.say("picture-ct-legend-dense", &[("limit", format!("{hu} HU").into())]);
        LegendWords {
            right_lung: self.plain("picture-ct-legend-right"),
            left_lung: self.plain("picture-ct-legend-left"),
            opacity: dense(opacity),
            consolidation: dense(consolidation),
            airway: self.plain("picture-ct-legend-airway"),
            heat: self.plain("picture-ct-legend-heat"),
            lesion: self.plain("picture-ct-legend-lesion"),
        }
    }

    /// Size and spacing; what identifies the series is in the object.
    fn series(self, analysis: &CtAnalysis) -> String {
        let series = &analysis.series;
        let [columns, rows, slices] = series.size;
        let [x, y, z] = series.spacing_mm;
        let (thickness, kernel) = ct_words::thickness_and_kernel(self.texts, series);
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

    fn ct_identity(self, analysis: &CtAnalysis) -> String {
        let bundle = self.bundle;
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
                ("segmentation", ct_words::segmentation(analysis).into()),
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

    /// As of a bundle whose members are TorchScript files that give none, or must not be explained.
    #[test]
    fn without_maps_nothing_is_called_one() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let mut record = radiograph(BundleStatus::Unvalidated);
        let RunOutcome::Analysed(analysis) = &mut record.outcome else { panic!("analysed") };
        analysis.images[0].member_heat_maps.clear();
        for tag in ["en", "zh"] {
            let words = overlay_words(&record, image(&record), catalogue.language(tag));
            assert_eq!(words.reservations.len(), 1, "{tag}: {words:?}");
            assert!(!words.below[0].contains("1x1") && !words.below[0].contains("7x7"), "{tag}: {words:?}");
        }
        let english = catalogue.language("en");
        let words = overlay_words(&record, image(&record), english);
        assert_eq!(words.reservations, ["no map: the networks that answered give none"]);
        assert_eq!(words.below[0], "A result below the threshold does not exclude infection.");
        let analysed = image(&record);
        assert_eq!(
            wording::heat_map_method(english, analysed),
            "There is no heat map: the networks that answered give none."
        );
        assert_eq!(wording::localisation(english, analysed.into()), "No localisation: there is no map");
        assert!(wording::lung_heat(english, analysed).is_empty());
        let described = crate::report::describe(&record);
        assert!(!described.contains("Heat map by") && described.contains("There is no heat map"), "{described}");

        let sources = samples::ct_sources();
        let mut record = samples::ct_classified(BundleStatus::Unvalidated, &sources);
        let RunOutcome::CtMeasured(analysis) = &mut record.outcome else { panic!("measured") };
        let scan = analysis.classification.as_mut().unwrap();
        (scan.without_maps, scan.key_slices) = (true, Vec::new());
        let below = ct_overlay_words(&record, ct(&record), english).below.join("\n");
        assert!(below.contains("The networks do not say which slices speak for class"), "{below}");
        assert!(below.contains("No localisation: there is no map.") && !below.contains("No slice speaks"), "{below}");
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
    fn every_picture_is_in_english_where_pictures_cannot_show_the_language() {
        let hindi = "not-for-diagnostic-use = निदान\npicture-untrained = अप्रशिक्षित\npicture-no-region = निदान\n";
        let catalogue = Catalogue::new(&[("hi".to_owned(), hindi.to_owned())]).unwrap();
        let (radiograph, sources) = (radiograph(BundleStatus::Untrained), samples::ct_sources());
        let of_ct = samples::ct_measured(BundleStatus::Untrained, &sources);
        let words_in = |tag: &str| {
            let texts = catalogue.language(tag);
            (
                overlay_words(&radiograph, image(&radiograph), texts),
                overlay_words_on_demand(&radiograph.bundle, image(&radiograph), texts),
                ct_overlay_words(&of_ct, ct(&of_ct), texts),
                ct_slice_words(&of_ct, ct(&of_ct), 0, texts),
            )
        };
        assert_eq!(words_in("hi"), words_in("en"));
        assert_eq!(words_in("hi").0.notice, UNTRAINED_NOTICE);
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
        assert!(words.reservations[0].contains("in the grey zone, 10.0 % to below 20.0 %"), "{words:?}");
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
    fn a_map_beside_the_lungs_says_so_where_it_is_shown() {
        let catalogue = Catalogue::new(&[]).unwrap();
        let record = radiograph(BundleStatus::Unvalidated);
        let mut shown = image(&record).clone();
        let mut reservations = |share: Option<f64>, localised: bool, tag: &str| {
            (shown.lung_heat_fraction, shown.localised) = (share, localised);
            overlay_words(&record, &shown, catalogue.language(tag)).reservations
        };
        assert_eq!(
            reservations(Some(0.123), true, "en"),
            ["12.3 % of the heat lies in the lungs, less than half: the output may rest on something else"]
        );
        assert_eq!(
            reservations(Some(0.123), true, "zh"),
            ["热量的 12.3 % 位于肺内，不足一半：输出可能以其他内容为依据"]
        );
        assert_eq!(reservations(Some(0.5), true, "en"), [""; 0]);
        assert_eq!(reservations(None, true, "en"), [""; 0]);
        // Without colours there is no map to be read.
        let hidden = reservations(Some(0.123), false, "en");
        assert!(matches!(hidden.as_slice(), [only] if only.starts_with("no localisation")), "{hidden:?}");
        let on_demand = overlay_words_on_demand(&record.bundle, &shown, catalogue.language("en")).reservations;
        assert!(on_demand[1].starts_with("12.3 % of the heat lies in the lungs"), "{on_demand:?}");
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
