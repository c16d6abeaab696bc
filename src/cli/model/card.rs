//! `hilum model card`: what a bundle says of itself, as Markdown.

use std::fmt::Write as _;

use crate::{
    nn::{
        Bundle, Calibration, CtGates, FeatureGate, Fusion, GatePolicies, Input, LungLimits, Manifest, MaskMode, Member,
        OutputKind, Performance, PictureLimits, Policy, Preprocessing, ScanPreprocessing, Whose,
    },
    types::{BundleStatus, UNTRAINED_NOTICE},
};

const NOT_KNOWN: &str = "not known";

/// The card: everything is from the manifest, and what it leaves empty is written "not known".
pub(super) fn card(bundle: &Bundle) -> String {
    let manifest = bundle.manifest();
    let identity = bundle.identity();
    let mut card = format!("# Model card: {} {}\n\n", manifest.name, manifest.version);
    if manifest.status == BundleStatus::Untrained {
        let _ = writeln!(card, "**{UNTRAINED_NOTICE}**\n");
    }
    // Who makes a bundle says first what is wrong with it.
    let _ = writeln!(card, "{}\n", known(&manifest.description));
    card.push_str("Research use only. Not for clinical use.\n\n");
    table(
        &mut card,
        &["", ""],
        vec![
            vec!["Status".to_owned(), super::status_name(manifest.status).to_owned()],
            vec!["Digest".to_owned(), format!("`sha256:{}`", identity.digest)],
            vec!["Licence of the weights".to_owned(), known(&manifest.licence)],
            vec!["Reads".to_owned(), reads(&manifest.input)],
        ],
    );
    scope(&mut card, &manifest.input);
    networks(&mut card, manifest);
    decision(&mut card, manifest);
    rule(&mut card, &manifest.input);
    section(&mut card, "Training data", &manifest.training_data);
    performance(&mut card, manifest);
    card
}

fn known(text: &str) -> String {
    if text.trim().is_empty() { NOT_KNOWN.to_owned() } else { text.trim().to_owned() }
}

fn section(card: &mut String, title: &str, text: &str) {
    let _ = write!(card, "\n## {title}\n\n{}\n", known(text));
}

/// A bar would end a cell, a line break the row.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn table(card: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let _ = writeln!(card, "| {} |\n|{}", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|text| cell(text)).collect();
        let _ = writeln!(card, "| {} |", cells.join(" | "));
    }
}

fn reads(input: &Input) -> String {
    match input {
        Input::Image2d { .. } => "single frontal chest radiographs (`image2d`)".to_owned(),
        Input::CtMeasurement { .. } => "a chest CT series, measured without classifiers (`ct_measurement`)".to_owned(),
        Input::Slices2d { .. } => "a chest CT series, slice by slice (`slices2d`)".to_owned(),
        Input::Volume3d { .. } => "a chest CT series as one volume (`volume3d`)".to_owned(),
        Input::Seg2d { .. } => "a chest CT series, lesions outlined slice by slice (`seg2d`)".to_owned(),
    }
}

const SCOPE: &str = "\n## Scope\n\nImages beyond it are refused with their reason, unless the bundle is untrained.\n\n";

fn ct_scope(card: &mut String, gates: &CtGates) {
    let body_parts: Vec<&str> =
        gates.accepted_body_parts.iter().map(|word| if word.is_empty() { "not stated" } else { word }).collect();
    card.push_str(SCOPE);
    let rows = vec![
        vec!["Age".to_owned(), format!("at least {} years, or not stated", gates.minimum_age_years)],
        vec!["Body part holds one of".to_owned(), body_parts.join(", ")],
        vec!["Slice thickness".to_owned(), format!("at most {} mm, or not stated", gates.maximum_slice_thickness_mm)],
        vec!["Volume of one lung".to_owned(), format!("{} to {} ml", gates.minimum_lung_ml, gates.maximum_lung_ml)],
    ];
    table(card, &["gate", "accepted"], rows);
}

fn scope(card: &mut String, input: &Input) {
    if let Some(gates) = input.ct_gates() {
        ct_scope(card, gates);
    }
    let Input::Image2d { gates, .. } = input else { return };
    let views: Vec<&str> =
        gates.accepted_views.iter().map(|view| if view.is_empty() { "not stated" } else { view }).collect();
    card.push_str(SCOPE);
    let range = |low: f64, high: f64| format!("{low} to {high}");
    table(
        card,
        &["gate", "accepted"],
        vec![
            vec!["Age".to_owned(), format!("at least {} years", gates.minimum_age_years)],
            vec!["View Position".to_owned(), views.join(", ")],
            vec![
                "Size".to_owned(),
                format!("at least {} rows and {} columns", gates.minimum_rows, gates.minimum_columns),
            ],
            vec![
                "Lungs, share of the image".to_owned(),
                range(gates.minimum_lung_area_fraction, gates.maximum_lung_area_fraction),
            ],
            vec![
                "Left to right lung, areas".to_owned(),
                range(gates.minimum_lung_area_ratio, gates.maximum_lung_area_ratio),
            ],
            vec!["Images of a kind that may or may not be meant".to_owned(), policies(&gates.policies)],
            vec!["Grey values".to_owned(), picture_limits(&gates.picture)],
            vec!["Shape of the lungs".to_owned(), lung_limits(&gates.lungs)],
            vec!["Distance from the training images".to_owned(), feature_limits(gates.features.as_ref())],
            vec!["Difference between the members' outputs".to_owned(), at_most(gates.maximum_member_spread)],
        ],
    );
}

fn at_most(limit: f64) -> String {
    if limit < 1.0 { format!("at most {limit}") } else { "any".to_owned() }
}

fn policies(policies: &GatePolicies) -> String {
    let named = [
        ("derived", policies.derived),
        ("secondary", policies.secondary),
        ("colour", policies.colour),
        ("burned-in annotation", policies.burned_in_annotation),
    ];
    let of = |wanted: Policy| {
        let names: Vec<&str> = named.iter().filter(|(_, policy)| *policy == wanted).map(|(name, _)| *name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    };
    format!("accepted: {}; refused: {}", of(Policy::Accept), of(Policy::Refuse))
}

fn picture_limits(limits: &PictureLimits) -> String {
    format!(
        "width to height {} to {}; black at most {}, white {}, empty border {}; entropy at least {} bits; sharpness {} to \
         {}; polarity at least {}",
        limits.minimum_aspect_ratio,
        limits.maximum_aspect_ratio,
        limits.maximum_black_share,
        limits.maximum_white_share,
        limits.maximum_border_share,
        limits.minimum_entropy_bits,
        limits.minimum_sharpness,
        limits.maximum_sharpness,
        limits.minimum_polarity
    )
}

fn lung_limits(limits: &LungLimits) -> String {
    format!(
        "height at least {}, rows shared {}, height to width {}; at the border at most {}; contrast at least {}; pixels in \
         doubt at most {} for each of lung",
        limits.minimum_height_fraction,
        limits.minimum_level_fraction,
        limits.minimum_height_to_width,
        limits.maximum_border_share,
        limits.minimum_contrast,
        limits.maximum_doubtful_ratio
    )
}

fn feature_limits(gate: Option<&FeatureGate>) -> String {
    gate.map_or_else(
        || "not compared".to_owned(),
        |gate| {
            format!(
                "features of `{}`: Mahalanobis at most {:.3}, to training image {} by nearness {:.4}; fitted on n = {}, \
                 limits at the quantile {} of n = {} of other patients",
                gate.member,
                gate.maximum_mahalanobis_distance,
                gate.neighbours,
                gate.maximum_neighbour_distance,
                gate.n_fitted,
                gate.quantile,
                gate.n_held_out
            )
        },
    )
}

fn networks(card: &mut String, manifest: &Manifest) {
    card.push_str("\n## Networks\n\n");
    let mut rows = Vec::new();
    if let Some(segmenter) = &manifest.segmenter {
        rows.push(vec![
            "lung segmenter".to_owned(),
            segmenter.architecture.name().to_owned(),
            segmenter.width.to_string(),
            segmenter.version.clone(),
            format!("{0} x {0}", segmenter.input_side_pixels),
            format!("`{}`", segmenter.sha256),
        ]);
    }
    for member in &manifest.members {
        let inputs: Vec<String> = manifest
            .inputs_of(member)
            .into_iter()
            .map(Preprocessing::shape)
            .chain(manifest.input.scan().map(ScanPreprocessing::shape))
            .map(|shape| shape.map(|side| side.to_string()).join(" x "))
            .collect();
        rows.push(vec![
            member.name.clone(),
            member.architecture.name().to_owned(),
            member.width.to_string(),
            member.version.clone(),
            inputs.join(" and "),
            format!("`{}`", member.sha256),
        ]);
    }
    if rows.is_empty() {
        card.push_str("None.\n");
        return;
    }
    table(card, &["name", "architecture", "width", "version", "input", "weights SHA-256"], rows);
    if let Some(preprocessing) = manifest.preprocessing() {
        let _ = writeln!(card, "\nPreprocessing: {}.", steps(preprocessing));
    }
    if let Some(preprocessing) = manifest.input.scan() {
        let _ = writeln!(card, "\nPreprocessing: {}.", scan_steps(preprocessing));
    }
    let named = |of: fn(&Member) -> bool| {
        let names: Vec<String> =
            manifest.members.iter().filter(|member| of(member)).map(|member| format!("`{}`", member.name)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = named(|member| member.output == OutputKind::Sigmoid) {
        let _ = writeln!(card, "\nOne output, the logit of the target class: {names}.");
    }
    if let Some(names) = named(|member| !member.is_explained()) {
        let _ = writeln!(card, "\nNo map is shown of: {names}.");
    }
    if let Input::Slices2d { aggregation, .. } = &manifest.input {
        let _ = writeln!(card, "\nFrom slices to the scan: {}.", aggregation.words());
    }
}

fn scan_steps(preprocessing: &ScanPreprocessing) -> String {
    let [low, high] = preprocessing.window_hu;
    let mut steps = vec![format!("{low} to {high} HU become 0 to 1")];
    if preprocessing.outside_lungs_black {
        steps.push("black outside the lungs".to_owned());
    }
    if preprocessing.crop_to_lungs {
        steps.push(format!("cut to the lungs with {} mm around them", preprocessing.crop_margin_mm));
    }
    steps.push(format!(
        "slices with at least {} cm2 of lung, at most {}",
        preprocessing.minimum_lung_cm2, preprocessing.maximum_slices
    ));
    if let Some(spacing_mm) = preprocessing.slice_spacing_mm {
        steps.push(format!("resampled to {spacing_mm} mm"));
    }
    steps.extend(preprocessing.range.map(range_words));
    steps.push(format!("minus {:?}, divided by {:?}", preprocessing.mean, preprocessing.std));
    steps.join("; ")
}

fn range_words([low, high]: [f32; 2]) -> String {
    format!("0 to 1 of the grey values become {low} to {high}")
}

fn steps(preprocessing: &Preprocessing) -> String {
    let mut steps = vec![format!(
        "percentiles {} to {} become 0 to 1",
        preprocessing.percentile_low, preprocessing.percentile_high
    )];
    match preprocessing.equalisation {
        crate::nn::Equalisation::None => {}
        crate::nn::Equalisation::Histogram => steps.push("histogram equalisation".to_owned()),
        crate::nn::Equalisation::Clahe { clip_limit, tiles } => {
            steps.push(format!("CLAHE with clip limit {clip_limit} and {tiles} x {tiles} tiles"));
        }
    }
    if preprocessing.top_crop_fraction > 0.0 {
        steps.push(format!("the top {} % cut off", preprocessing.top_crop_fraction * 100.0));
    }
    steps.push(
        match preprocessing.resize {
            crate::nn::ResizeMode::Pad => "padded to a square",
            crate::nn::ResizeMode::Crop => "cut to the middle square",
            crate::nn::ResizeMode::Stretch => "stretched to a square",
        }
        .to_owned(),
    );
    steps.push(
        match preprocessing.mask_mode {
            MaskMode::None => "no lung mask",
            MaskMode::Channel3 => "the lung mask as third channel",
            MaskMode::Overlay => "halved outside the lungs",
            MaskMode::Multiply => "black outside the lungs",
            MaskMode::Crop => "cut to the lungs",
        }
        .to_owned(),
    );
    steps.extend(preprocessing.range.map(range_words));
    steps.join(", ")
}

fn decision(card: &mut String, manifest: &Manifest) {
    let Some(rules) = &manifest.classification else { return };
    card.push_str("\n## Decision\n\n");
    let label = |idx: usize| rules.classes.get(idx).map_or("", |class| class.label.as_str());
    let classes: Vec<&str> = rules.classes.iter().map(|class| class.label.as_str()).collect();
    let fusion = match rules.fusion {
        Fusion::MeanProb => "mean of the members' probabilities",
        Fusion::MeanLogit => "softmax of the mean of the members' logits",
        Fusion::Vote => "votes; a tie is decided by the mean of the probabilities",
    };
    let calibration = match &rules.calibration {
        Calibration::None {} => "none: outputs are not probabilities of disease".to_owned(),
        Calibration::Temperature { temperature, id, n, date } => {
            format!("temperature {temperature}, fitted on {n} images ({id}, {date})")
        }
        Calibration::Platt { slope, intercept, id, n, date } => {
            format!("Platt, slope {slope}, intercept {intercept}, fitted on {n} images ({id}, {date})")
        }
    };
    let mut rows = vec![
        vec!["Classes".to_owned(), classes.join(", ")],
        vec!["Target".to_owned(), label(rules.target_class_idx).to_owned()],
        vec!["Fusion".to_owned(), fusion.to_owned()],
        vec!["Threshold".to_owned(), rules.threshold.to_string()],
        vec![
            "Grey zone".to_owned(),
            rules.grey_zone.map_or_else(|| "none".to_owned(), |[low, high]| format!("{low} to {high}: no decision")),
        ],
        vec!["Calibration".to_owned(), calibration],
    ];
    if let Some(prior) = rules.prior {
        rows.push(vec![
            "Prevalence".to_owned(),
            format!("{} at training, {} at the site", prior.training_prevalence, prior.site_prevalence),
        ]);
    }
    if let Some(label_map) = &rules.label_map {
        let of_outputs: Vec<&str> = label_map.iter().map(|class_idx| label(*class_idx)).collect();
        rows.push(vec!["Class of each network output".to_owned(), of_outputs.join(", ")]);
    }
    table(card, &["", ""], rows);
}

/// Of a bundle that outlines lesions.
fn rule(card: &mut String, input: &Input) {
    let Input::Seg2d { preprocessing, rule, lesion, .. } = input else { return };
    card.push_str("\n## Decision\n\n");
    let rows = vec![
        vec!["Outlined".to_owned(), lesion.label.clone()],
        vec!["Fusion".to_owned(), "mean of the members' probabilities, pixel by pixel".to_owned()],
        vec!["Positive".to_owned(), rule.words(preprocessing.slice_spacing_mm)],
        vec!["Not seen".to_owned(), "a slice that was left out is one without lesion".to_owned()],
        vec![
            "Not judged".to_owned(),
            format!("scans with lung in more than {} slices are refused", preprocessing.maximum_slices),
        ],
    ];
    table(card, &["", ""], rows);
}

fn performance(card: &mut String, manifest: &Manifest) {
    card.push_str("\n## Performance\n\n");
    if manifest.performance.is_empty() {
        let _ = writeln!(card, "Measured with these weights: {NOT_KNOWN}.");
    } else {
        let row = |figure: &Performance| {
            vec![
                figure.measure.clone(),
                format!("{:.3}", figure.value),
                format!("{:.3} to {:.3} ({} %)", figure.interval[0], figure.interval[1], figure.confidence_percent),
                figure.n.to_string(),
                figure.data.clone(),
                match figure.whose {
                    Whose::Publication => "the publication's, with its own weights",
                    Whose::Makers => "the makers'",
                    Whose::Site => "the site's",
                }
                .to_owned(),
                figure.reference.clone(),
            ]
        };
        let head = ["measure", "value", "interval", "n", "data", "whose", "reference"];
        table(card, &head, manifest.performance.iter().map(row).collect());
    }
    if !manifest.reference_performance.trim().is_empty() {
        let _ = writeln!(card, "\nOf the reference publication: {}", manifest.reference_performance.trim());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::nn::{
        MemberArchitecture, ScanArchitecture, ScanOptions, UntrainedOptions, init_untrained_bundle,
        init_untrained_scan_bundle,
    };

    #[test]
    fn the_card_of_the_untrained_bundle() {
        let folder = tempfile::tempdir().unwrap();
        init_untrained_bundle(&folder.path().join("cxr-untrained"), UntrainedOptions::default()).unwrap();
        insta::assert_snapshot!(card(&Bundle::open(&folder.path().join("cxr-untrained")).unwrap()));
    }

    /// Bundles that come with Hilum, deploy/reference.sh: nothing is decided by them, their cards are those of their
    /// manifests, begin with what is wrong with them, and have figures; all together stay small.
    #[test]
    fn the_bundles_of_the_repository_are_sound_and_their_cards_true() {
        let models = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models"));
        let mut n_bytes = 0;
        for (name, flaw) in [("cxr-lungs", "not for clinical use"), ("cxr-covid-reference", "be worthless")] {
            let bundle = Bundle::open(&models.join(name)).unwrap();
            assert_eq!(bundle.identity().status, BundleStatus::Unvalidated, "{name}");
            let card = card(&bundle);
            assert_eq!(fs_err::read_to_string(models.join(name).join("README.md")).unwrap(), card, "{name}");
            let first = bundle.manifest().description.lines().next().unwrap();
            assert!(first.contains(flaw), "{name}: {first}");
            let figures = &bundle.manifest().performance;
            assert!(figures.iter().all(|figure| figure.data.contains("cross-validation in 5 folds")), "{name}");
            assert!(!figures.is_empty(), "{name}");
            let files = fs_err::read_dir(models.join(name)).unwrap();
            n_bytes += files.map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
        }
        assert!(n_bytes < 25_000_000, "{n_bytes}");
        // The first figure is the one that recognising the source does not explain.
        let bundle = Bundle::open(&models.join("cxr-covid-reference")).unwrap();
        let first = &bundle.manifest().performance[0];
        assert!(first.measure == "roc_auc" && first.data.starts_with("within covid-chestxray-dataset"), "{first:?}");
    }

    #[test]
    fn the_card_of_a_bundle_that_outlines_lesions_has_its_rule() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ct-lesions");
        let architecture = MemberArchitecture::Scan(ScanArchitecture::UNetPlusPlus);
        let options = ScanOptions { seed: 1, architecture, width: 0.0625, size_pixels: None };
        init_untrained_scan_bundle(&path, options).unwrap();
        let card = card(&Bundle::open(&path).unwrap());
        let decision = card.split("## Decision").nth(1).unwrap().split("## Training").next().unwrap();
        insta::assert_snapshot!(decision.trim(), @r"
        |  |  |
        | --- | --- |
        | Outlined | Lesion |
        | Fusion | mean of the members' probabilities, pixel by pixel |
        | Positive | at least 10 mm2 of lesion in one quadrant of the image on 3 consecutive slices of the scan; a pixel is lesion from an output of 0.5 on |
        | Not seen | a slice that was left out is one without lesion |
        | Not judged | scans with lung in more than 1000 slices are refused |
        ");
        for words in [UNTRAINED_NOTICE, "from memory", "3 x 512 x 512", "(`seg2d`)"] {
            assert!(card.contains(words), "{words}: {card}");
        }
    }

    #[test]
    fn the_card_tells_one_output_no_map_and_a_range() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cxr-untrained");
        init_untrained_bundle(&path, UntrainedOptions::default()).unwrap();
        let manifest = path.join(crate::nn::MANIFEST_FILE_NAME);
        let text = fs_err::read_to_string(&manifest).unwrap();
        let text = text.replace("architecture = \"vgg16\"\n", "architecture = \"vgg16\"\nexplanation = \"none\"\n");
        let text = text.replace("architecture = \"resnet34\"\n", "architecture = \"resnet34\"\noutput = \"sigmoid\"\n");
        let text = text.replace("normalisation = \"mean_std\"\n", "normalisation = \"mean_std\"\nrange = [-8, 8.5]\n");
        fs_err::write(&manifest, text).unwrap();
        let card = card(&Bundle::open(&path).unwrap());
        for words in [
            "One output, the logit of the target class: `resnet34`.",
            "No map is shown of: `vgg16`.",
            "0 to 1 of the grey values become -8 to 8.5",
        ] {
            assert!(card.contains(words), "{words}: {card}");
        }
        let path = folder.path().join("ct");
        crate::nn::init_ct_bundle(&path).unwrap();
        let card = super::card(&Bundle::open(&path).unwrap());
        assert!(card.contains("| Age | at least 18 years, or not stated |"), "{card}");
        assert!(
            card.contains("| Body part holds one of | CHEST, THORA, LUNG, PULMO, BODY, TRUNK, TORSO, not stated |")
        );
    }

    #[test]
    fn figures_come_with_n_interval_and_whose_they_are() {
        let mut text = String::new();
        let figure = Performance {
            measure: "sensitivity".to_owned(),
            value: 0.905,
            interval: [0.853, 0.94],
            confidence_percent: 95.0,
            n: 179,
            data: "radiographs | of four hospitals".to_owned(),
            whose: Whose::Publication,
            reference: "Eur Radiol 2021;31:9654".to_owned(),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cxr-untrained");
        init_untrained_bundle(&path, UntrainedOptions::default()).unwrap();
        let manifest = Manifest { performance: vec![figure], ..Bundle::open(&path).unwrap().manifest().clone() };
        performance(&mut text, &manifest);
        assert!(
            text.contains(
                "| sensitivity | 0.905 | 0.853 to 0.940 (95 %) | 179 | radiographs \\| of four hospitals | the publication's, \
                 with its own weights |"
            ),
            "{text}"
        );
    }
}
