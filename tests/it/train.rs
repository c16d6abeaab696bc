//! `hilum train` through the real binary, on made-up chests that can be told apart: what is learned, and that a training
//! which is killed and taken up again ends with the very bits of one that was not. `make train-smoke` runs these.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use image::{GrayImage, Luma};
use serde_json::Value;

use crate::support::said;

/// Pixels of a side of the made-up films.
const SIDE: u32 = 64;

/// A folder with films, masks and a list.
struct Chests {
    folder: tempfile::TempDir,
}

impl Chests {
    /// `n` films of as many patients: a grey body with two dark lungs, somewhere else and otherwise noisy in each. Every
    /// other film has bright spots in its lungs, and is called sick.
    fn new(n: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut list = "file,label,patient,mask,site\n".to_owned();
        // A segmenter that was trained on a patient may not find lungs for a classifier's training: here it is of others.
        let mut masks = "file,patient,mask,site\n".to_owned();
        for film in 0..n {
            let mut noise = Noise(u64::from(film) + 1);
            let [x, y, size] = [noise.up_to(9.0) - 4.0, noise.up_to(9.0) - 4.0, 0.85 + noise.up_to(0.3)];
            let is_sick = film % 2 == 0;
            let spots: Vec<(f64, f64)> = (0..4).map(|_| (noise.up_to(8.0) - 4.0, noise.up_to(20.0) - 10.0)).collect();
            let depth = |column: u32, row: u32, middle: f64| {
                let across = (f64::from(column) - middle - x) / (9.0 * size);
                let down = (f64::from(row) - 32.0 - y) / (18.0 * size);
                across * across + down * down
            };
            let in_lung = |column, row| depth(column, row, 18.0) < 1.0 || depth(column, row, 46.0) < 1.0;
            let picture = GrayImage::from_fn(SIDE, SIDE, |column, row| {
                let is_spot = spots.iter().enumerate().any(|(idx, (across, down))| {
                    let middle = if idx % 2 == 0 { 18.0 } else { 46.0 };
                    let off = (f64::from(column) - middle - x - across, f64::from(row) - 32.0 - y - down);
                    off.0 * off.0 + off.1 * off.1 < 12.0
                });
                let grey = match (in_lung(column, row), is_sick && is_spot) {
                    (true, false) => 60.0,
                    (true, true) => 200.0,
                    (false, _) => 140.0,
                };
                Luma([(grey + noise.up_to(30.0)) as u8])
            });
            let mask = GrayImage::from_fn(SIDE, SIDE, |column, row| Luma([if in_lung(column, row) { 255 } else { 0 }]));
            picture.save(folder.path().join(format!("{film}.png"))).expect("a picture is written");
            mask.save(folder.path().join(format!("{film}-mask.png"))).expect("a mask is written");
            let label = if is_sick { "sick" } else { "well" };
            writeln!(list, "{film}.png,{label},patient-{film},{film}-mask.png,site-{}", film % 3).unwrap();
            writeln!(masks, "{film}.png,lungs-of-{film},{film}-mask.png,site-{}", film % 3).unwrap();
        }
        fs_err::write(folder.path().join("list.csv"), list).expect("a list is written");
        fs_err::write(folder.path().join("masks.csv"), masks).expect("a list is written");
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration.
    fn configure(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).expect("a configuration is written");
    }

    /// `hilum train`, in the folder.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hilum"));
        command.current_dir(self.folder.path()).arg("train").args(arguments);
        command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn train(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("hilum runs")
    }

    /// `hilum evaluate` without tests of shortcuts, into the folder `report`.
    fn evaluate(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hilum"));
        command.current_dir(self.folder.path()).arg("evaluate").args(arguments);
        command.args(["--out", "report", "--resamples", "100", "--map", "sick=Sick", "--map", "well=Well"]);
        command.env("OMP_NUM_THREADS", "1").env_remove("HILUM_CONFIG").output().expect("hilum runs")
    }

    #[track_caller]
    fn train_ok(&self, arguments: &[&str]) -> String {
        let output = self.train(arguments);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }
}

/// SplitMix64, from 0 to a number.
struct Noise(u64);

impl Noise {
    fn up_to(&mut self, most: f64) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 * most
    }
}

const LUNGS: &str = r#"
[task]
kind = "lungs"
width = 0.125
side_pixels = 64

[data]
list = "masks.csv"
validation = { by = "fold", folds = 4, fold = 1 }

[optimisation]
learning_rate = 0.003
epochs = 12
monitor = "score"

[bundle]
name = "made-up-lungs"
description = "Lungs of made-up chests."
licence = "Apache-2.0"
training_data = "Made-up chests."
weights = "float32"
"#;

const CLASSES: &str = r#"
[task]
kind = "classifier"
segmenters = ["lungs"]
sub_classes = 1

[[task.classes]]
label = "Sick"
of_list = ["sick"]
code = { value = "1", scheme = "99TEST", meaning = "Sick" }

[[task.classes]]
label = "Well"
of_list = ["well"]
code = { value = "2", scheme = "99TEST", meaning = "Well" }

[[task.members]]
name = "first"
architecture = "resnet18"
width = 0.125

[[task.members]]
name = "second"
architecture = "vgg16"
width = 0.0625
learning_rate = 0.001

[data]
list = "list.csv"
validation = { by = "fold", folds = 4, fold = 1 }

[preprocessing]
voi = "window"
percentile_low = 0.5
percentile_high = 99.5
image_side_pixels = 64
mask_mode = "multiply"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]

[optimisation]
learning_rate = 0.003
epochs = 10
dropout = 0.1
average_decay = 0.9
accumulate = 2
batch_size = 4
clip_length = 5.0
checkpoint_steps = 2

[sampling]
classes = "oversample"
equal_sites = true

[bundle]
name = "made-up-classes"
description = "Classes of made-up chests."
licence = "Apache-2.0"
training_data = "Made-up chests."
"#;

/// The last epoch's record of a network.
fn last_epoch(folder: &Path, network: &str) -> Value {
    let text = fs_err::read_to_string(folder.join(network).join("epochs.jsonl")).expect("epochs");
    serde_json::from_str(text.lines().last().expect("an epoch")).expect("JSON")
}

/// Name and bytes of every file of a bundle but the manifest, which holds the command.
fn weights(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs_err::read_dir(folder.join("bundle"))
        .expect("a bundle")
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_name() != "manifest.toml")
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), fs_err::read(entry.path()).expect("weights")))
        .collect();
    files.sort();
    files
}

/// Waits until a file holds so many lines, then ends the process as `kill -9` does.
fn kill_after(mut child: Child, file: &Path, lines: usize) {
    let started = Instant::now();
    loop {
        let found = fs_err::read_to_string(file).map_or(0, |text| text.lines().count());
        if found >= lines {
            break;
        }
        assert!(child.try_wait().expect("a process").is_none(), "it ended before it could be killed");
        assert!(started.elapsed() < Duration::from_secs(240), "nothing is trained");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it is killed");
    child.wait().expect("it is gone");
}

#[test]
fn heavy_lungs_and_classes_are_learned_and_a_killed_training_ends_with_the_same_bits() {
    let chests = Chests::new(48);
    chests.configure("lungs.toml", LUNGS);
    chests.configure("classes.toml", CLASSES);

    let report = chests.train_ok(&["--config", "lungs.toml", "--out", "lungs"]);
    let lungs = last_epoch(&chests.path("lungs"), "segmenter");
    assert!(lungs["validation"]["score"].as_f64().expect("Dice") > 0.9, "{report}");
    // Killed in the middle, and taken up by the same command.
    let again = ["--config", "lungs.toml", "--out", "lungs-killed"];
    let child = chests.command(&again).spawn().expect("hilum runs");
    kill_after(child, &chests.path("lungs-killed/segmenter/epochs.jsonl"), 4);
    let report = chests.train_ok(&again);
    assert!(report.contains("of them done before"), "{report}");
    assert!(weights(&chests.path("lungs")) == weights(&chests.path("lungs-killed")), "other bits");
    let steps = |folder: &str| fs_err::read(chests.path(folder).join("segmenter/steps.jsonl")).expect("steps");
    assert!(steps("lungs") == steps("lungs-killed"), "other losses");

    let report = chests.train_ok(&["--config", "classes.toml", "--out", "classes"]);
    for member in ["first", "second"] {
        let epoch = last_epoch(&chests.path("classes"), member);
        assert!(epoch["validation"]["score"].as_f64().expect("accuracy") > 0.85, "{member}: {epoch}\n{report}");
        assert!(fs_err::read_to_string(chests.path("classes").join(member).join("curves.svg")).is_ok());
    }
    // Within an epoch of the second network, after a checkpoint between two epochs' ends.
    let again = ["--config", "classes.toml", "--out", "classes-killed"];
    let child = chests.command(&again).spawn().expect("hilum runs");
    kill_after(child, &chests.path("classes-killed/second/epochs.jsonl"), 3);
    chests.train_ok(&again);
    assert!(weights(&chests.path("classes")) == weights(&chests.path("classes-killed")), "other bits");
    let predictions = |folder: &str| fs_err::read_to_string(chests.path(folder).join("predictions.csv")).expect("them");
    assert_eq!(predictions("classes"), predictions("classes-killed"));
    assert!(predictions("classes").starts_with("file,patient,site,label,class,first: Sick,first: Well,second: Sick"));

    // What was trained is a bundle like any other.
    for name in ["lungs", "classes"] {
        let verify = Command::new(env!("CARGO_BIN_EXE_hilum"))
            .args(["model", "verify", "bundle", "--models-dir"])
            .arg(chests.path(name))
            .output()
            .expect("hilum runs");
        assert!(verify.status.success(), "{}", said(&verify));
    }
    let manifest = fs_err::read_to_string(chests.path("classes/bundle/manifest.toml")).expect("a manifest");
    for part in ["unvalidated", "Made-up chests.", "seed 1", "Lungs predicted", "hilum train --config classes.toml"] {
        assert!(manifest.contains(part), "{part}: {manifest}");
    }
}

#[test]
fn heavy_cross_validation_judges_each_image_by_networks_that_do_not_know_its_patient() {
    let chests = Chests::new(16);
    chests.configure("lungs.toml", LUNGS);
    chests.configure("classes.toml", CLASSES);
    let quick = ["--set", "data.list=list.csv", "--epochs", "2", "--set", "optimisation.warm_up_epochs=0"];
    let lungs = |more: &[&'static str]| [&["--config", "lungs.toml"][..], &quick, more].concat();
    chests.train_ok(&lungs(&["--out", "lungs", "--fold", "all/2", "--set", "optimisation.monitor=none"]));
    chests.train_ok(&lungs(&["--out", "lungs-final", "--without-validation"]));
    let segmenters = "task.segmenters=[\"lungs/fold-0\", \"lungs/fold-1\"]";
    let with_final = "task.segmenter_of_bundle=lungs-final";
    let classes = |more: &[&'static str]| {
        [&["--config", "classes.toml"][..], &quick, &["--set", segmenters, "--set", with_final], more].concat()
    };
    chests.train_ok(&classes(&["--out", "classes", "--fold", "all/2", "--set", "optimisation.monitor=none"]));
    chests.train_ok(&classes(&["--out", "classes-final", "--without-validation"]));

    // What is finished stays, by whatever command it is asked for again.
    let again =
        chests.train_ok(&classes(&["--out", "classes/fold-1", "--fold", "1/2", "--set", "optimisation.monitor=none"]));
    assert!(again.contains("this training is finished"), "{again}");

    // Segmenter and classifiers of a fold were tried on the same patients, so that the bundle of each knows none of them.
    let judged =
        chests.evaluate(&["classes-final/bundle", "--data", "list.csv", "--cross-validated", "classes", "--write"]);
    assert!(judged.status.success(), "{}", said(&judged));
    assert!(said(&judged).contains("networks of 2 folds that were not trained on its patient"), "{}", said(&judged));
    let report = fs_err::read_to_string(chests.path("report/report.json")).expect("a report");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!((&report["folds"], &report["images"]), (&2.into(), &16.into()));
    assert_eq!((&report["selection"], &report["not_scored"]), (&Value::Null, &serde_json::json!([])));
    assert_eq!(report["trained_on"], Value::Null);
    assert_eq!(report["shortcuts"]["altered"][0]["leaves_nothing"], true);
    let predictions = fs_err::read_to_string(chests.path("report/predictions.csv")).expect("predictions");
    assert_eq!(predictions.lines().count(), 17);
    let manifest = fs_err::read_to_string(chests.path("classes-final/bundle/manifest.toml")).expect("a manifest");
    assert!(manifest.contains("cross-validation in 2 folds by patient"), "{manifest}");

    // Segmenters are judged by masks alone, whoever else is in the list.
    let list = fs_err::read_to_string(chests.path("list.csv")).expect("a list");
    fs_err::copy(chests.path("0.png"), chests.path("more.png")).expect("a copy");
    fs_err::write(chests.path("more.csv"), list + "more.png,well,nobody,,site-0\n").expect("a list is written");
    let lungs = chests.evaluate(&["lungs-final/bundle", "--data", "more.csv", "--cross-validated", "lungs"]);
    assert!(said(&lungs).contains("16 images of 16 patients"), "{}", said(&lungs));
    assert!(said(&lungs).contains("lungs: mean Dice"), "{}", said(&lungs));

    // The fold's outputs are those of its own bundle.
    let fold = ["classes/fold-1/bundle", "--data", "classes/fold-1/validation.csv", "--without-shortcut-tests"];
    let of_fold = chests.evaluate(&fold);
    assert!(of_fold.status.success(), "{}", said(&of_fold));
    let of_fold = fs_err::read_to_string(chests.path("report/predictions.csv")).expect("predictions");
    let outputs = |text: &str| -> Vec<(String, String)> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let of_column = |wanted: &str, headers: &csv::StringRecord| headers.iter().position(|name| name == wanted);
        let headers = reader.headers().expect("a header").clone();
        let (file, output) = (of_column("file", &headers).unwrap(), of_column("output", &headers).unwrap());
        let records = reader.records().map(|record| record.expect("a record"));
        records
            .map(|record| (record[file].rsplit('/').next().unwrap_or_default().to_owned(), record[output].to_owned()))
            .collect()
    };
    let all = outputs(&predictions);
    assert!(outputs(&of_fold).len() == 8 && outputs(&of_fold).iter().all(|output| all.contains(output)), "{of_fold}");

    // Away from its training nobody knows whom a bundle was trained on, but what its manifest says of this very list.
    fs_err::create_dir(chests.path("shipped")).expect("a folder");
    fs_err::create_dir(chests.path("shipped/bundle")).expect("a folder");
    for file in fs_err::read_dir(chests.path("classes-final/bundle")).expect("a bundle") {
        let file = file.expect("a file");
        fs_err::copy(file.path(), chests.path("shipped/bundle").join(file.file_name())).expect("a copy");
    }
    let two = "file,label,patient,mask,site\n0.png,sick,patient-0,,site-0\n1.png,well,patient-1,,site-0\n";
    fs_err::write(chests.path("two.csv"), two).expect("a list is written");
    for (list, words) in [("list.csv", "was trained on this very list"), ("two.csv", "is not known here")] {
        let output = chests.evaluate(&["shipped/bundle", "--data", list, "--without-shortcut-tests"]);
        assert!(output.status.success() && said(&output).contains(words), "{words}: {}", said(&output));
    }

    let refused = |arguments: &[&str], words: &str| {
        let output = chests.evaluate(arguments);
        assert!(!output.status.success() && said(&output).contains(words), "{words}: {}", said(&output));
    };
    let cross =
        |folds: &'static str, list: &'static str| ["classes-final/bundle", "--data", list, "--cross-validated", folds];
    refused(&cross("classes-final", "list.csv"), "has no trainings in `fold-0`");
    refused(&cross("lungs", "list.csv"), "it is no fold of the same recipe");
    let strangers = fs_err::read_to_string(chests.path("list.csv")).expect("a list").replace("patient-", "stranger-");
    fs_err::write(chests.path("strangers.csv"), strangers).expect("a list is written");
    refused(&cross("classes", "strangers.csv"), "16 of the 16 images are of patients that no fold");
    refused(&["classes/fold-0/bundle", "--data", "list.csv"], "patient(s) of these images");
    // A segmenter that knows a validation patient, another list, a training that is not finished.
    let record = chests.path("classes/fold-1/run.json");
    let kept = fs_err::read_to_string(&record).expect("a record");
    let change = |key: &str, value: Value| {
        let mut changed: Value = serde_json::from_str(&kept).expect("JSON");
        changed[key] = value;
        fs_err::write(&record, changed.to_string()).expect("a record is written");
    };
    let before: Value = serde_json::from_str(&kept).expect("JSON");
    change("segmenter_patients", before["validation_patients"].clone());
    refused(&cross("classes", "list.csv"), "lung segmenter of `classes/fold-1/bundle` were trained on patients of 8");
    change("list_sha256", "0".into());
    refused(&cross("classes", "list.csv"), "by another configuration or on another list");
    fs_err::write(&record, &kept).expect("a record is written");
    fs_err::rename(chests.path("classes/fold-1/bundle"), chests.path("away")).expect("a bundle");
    refused(&cross("classes", "list.csv"), "is not finished");
    fs_err::rename(chests.path("away"), chests.path("classes/fold-1/bundle")).expect("a bundle");
    // Two trainings that were tried on the same patients are no cross-validation.
    fs_err::copy(chests.path("classes/fold-0/run.json"), chests.path("classes/fold-1/run.json")).expect("a copy");
    refused(&cross("classes", "list.csv"), "more than one fold that was tried on patient");
}

#[test]
fn heavy_sub_classes_and_starts_from_bundles_are_trained() {
    let chests = Chests::new(24);
    chests.configure("lungs.toml", LUNGS);
    chests.configure("classes.toml", CLASSES);
    chests.train_ok(&["--config", "lungs.toml", "--out", "lungs", "--epochs", "4"]);
    let quick = ["--config", "classes.toml", "--epochs", "2", "--set", "optimisation.warm_up_epochs=0"];
    let with = |more: &[&'static str]| [quick.as_slice(), more].concat();
    chests.train_ok(&with(&["--out", "first"]));
    // A start from the first training, whose last layer has two outputs, with four: it is made anew.
    let start = "task.members=[{ name = \"fine\", architecture = \"resnet18\", width = 0.125, frozen = [\"stem\", \"layer1\"], \
                 start = { from = \"bundle\", folder = \"first\" } }]";
    let report = chests.train_ok(&with(&["--out", "second", "--set", start, "--set", "task.sub_classes=2"]));
    assert!(report.contains("the last layer is made anew (fc.bias, fc.weight)"), "{report}");
    let manifest = fs_err::read_to_string(chests.path("second/bundle/manifest.toml")).expect("a manifest");
    assert!(manifest.contains("label_map = [0, 0, 1, 1]"), "{manifest}");
    // It knows whom the start was trained on, so that nobody judges it on them.
    let record = |folder: &str| -> serde_json::Value {
        let text = fs_err::read_to_string(chests.path(folder).join("run.json")).expect("a record");
        serde_json::from_str(&text).expect("JSON")
    };
    let (before, after) = (record("first"), record("second"));
    assert!(before["training_patients"].as_array().is_some_and(|patients| !patients.is_empty()));
    assert_eq!(after["start_patients"], before["training_patients"]);
    assert!(before["start_patients"].as_array().is_some_and(Vec::is_empty));
    // Frozen stages are those of the start, in half precision; the others have changed.
    let tensor = |folder: &str, file: &str, name: &str| {
        let bytes = fs_err::read(chests.path(folder).join("bundle").join(file)).expect("weights");
        safetensors::SafeTensors::deserialize(&bytes).expect("safetensors").tensor(name).expect(name).data().to_vec()
    };
    let [before, after] = ["conv1.weight", "layer4.0.conv1.weight"]
        .map(|name| (tensor("first", "first.safetensors", name), tensor("second", "fine.safetensors", name)));
    assert!(before.0 == before.1, "a frozen stage changed");
    assert!(after.0 != after.1, "nothing was trained");

    // Another configuration does not go on in the same folder.
    let other = chests.train(&with(&["--out", "first", "--seed", "2"]));
    assert!(said(&other).contains("another configuration"), "{}", said(&other));
}

#[test]
fn what_cannot_be_trained_is_explained_at_once() {
    let chests = Chests::new(4);
    chests.configure("lungs.toml", LUNGS);
    chests.configure("classes.toml", CLASSES);
    let refused = |arguments: &[&str], words: &[&str]| {
        let output = chests.train(&[arguments, &["--out", "out"]].concat());
        assert!(!output.status.success());
        for word in words {
            assert!(said(&output).contains(word), "{word}: {}", said(&output));
        }
    };
    refused(
        &["--config", "lungs.toml", "--set", "optimisation.batch_size=0", "--set", "task.frozen=[\"layer1\"]"],
        &["`optimisation.batch_size` is 0: give 1 to 512", "`task.frozen` lists `layer1`", "down1"],
    );
    refused(&["--config", "lungs.toml", "--set", "optimisation.lerning_rate=1"], &["lerning_rate"]);
    refused(
        &["--config", "lungs.toml", "--set", "optimisation.mixed_precision=true"],
        &["processors compute in single precision"],
    );
    refused(&["--config", "lungs.toml", "--device", "cuda:0"], &["cuda:0"]);
    refused(&["--config", "absent.toml"], &["absent.toml", "give the file"]);
    refused(&["--config", "classes.toml"], &["lungs", "manifest.toml"]);
    let elsewhere = ["--config", "lungs.toml", "--set", "data.sites=[\"elsewhere\"]", "--set"];
    let by_list = [elsewhere.as_slice(), &["data.validation={ by = \"list\" }"]].concat();
    refused(&by_list, &["leaves 0 images to train on"]);
    refused(&["--config", "lungs.toml", "--fold", "4/4"], &["there are 4 folds"]);
}
