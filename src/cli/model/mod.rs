//! `hilum model`: bundles.

mod card;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::{
    Global,
    output::{Table, print},
};
use crate::{
    nn::{
        Bundle, CT_BUNDLE_NAME, EnsembleOptions, ImportTarget, Imported, MANIFEST_FILE_NAME, MemberArchitecture,
        ScanOptions, Tried, UNTRAINED_BUNDLE_NAME, UntrainedOptions, import, init_ct_bundle, init_untrained_bundle,
        init_untrained_scan_bundle, try_out,
    },
    types::{BundleIdentity, BundleStatus, Device, Devices, UNTRAINED_NOTICE},
};

#[derive(Debug, Args)]
pub(super) struct Folder {
    /// Folder of the bundles [default: the configured one]
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// Writes the bundles that need no trained weights: one with random weights for trying out, one that measures CT
    Init {
        #[command(flatten)]
        folder: Folder,
        /// Only the bundle with random weights, under this name
        #[arg(long, value_parser = bundle_name)]
        name: Option<String>,
        /// The published networks at their full size (950 MB) instead of narrow ones
        #[arg(long)]
        full_width: bool,
        /// Side of the classifiers' square input in pixels
        #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(32..=1024))]
        image_side: u32,
        /// Only a bundle for chest CT with this network, such as `covnet`, with random weights [default name: ct-<NETWORK>]
        #[arg(long, value_name = "NETWORK", value_parser = architecture, conflicts_with = "image_side")]
        ct: Option<MemberArchitecture>,
    },
    /// Lists the bundles and verifies their weights
    List {
        #[command(flatten)]
        folder: Folder,
    },
    /// Verifies one bundle: its manifest, the digest of every file, and each network on a made-up picture
    #[command(alias = "check")]
    Verify {
        #[command(flatten)]
        folder: Folder,
        /// Name of the bundle
        #[arg(value_parser = bundle_name)]
        name: String,
        /// Devices that compute, such as cuda:0; each gets a copy of every network
        #[arg(long, value_name = "DEVICE", value_delimiter = ',', default_value = "cpu")]
        device: Vec<Device>,
    },
    /// Brings weights into a bundle: a file of `torch.save` (zip or legacy), safetensors, or TorchScript
    Import {
        #[command(flatten)]
        folder: Folder,
        #[command(flatten)]
        import: ImportOptions,
    },
    /// Prints the model card of a bundle as Markdown
    Card {
        #[command(flatten)]
        folder: Folder,
        /// Name of the bundle
        #[arg(value_parser = bundle_name)]
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct ImportOptions {
    /// The checkpoint
    file: PathBuf,
    /// Name of the bundle that gets it; it must be there (`hilum model init` makes one)
    #[arg(long, value_name = "BUNDLE", value_parser = bundle_name)]
    name: String,
    /// The classifier that gets it; one that the bundle does not have is added
    #[arg(long, value_name = "NAME", value_parser = bundle_name, required_unless_present = "segmenter")]
    member: Option<String>,
    /// The lung segmenter gets it
    #[arg(long, conflicts_with_all = ["member", "architecture", "width"])]
    segmenter: bool,
    /// Architecture of the checkpoint; needed for a new member [default: the member's]
    #[arg(long, value_parser = architecture)]
    architecture: Option<MemberArchitecture>,
    /// Factor on the published channel counts [default: the member's, or 1]
    #[arg(long)]
    width: Option<f64>,
    /// Version of the weights, as results will name it
    #[arg(long, value_name = "VERSION")]
    weights_version: String,
}

fn architecture(text: &str) -> Result<MemberArchitecture, String> {
    MemberArchitecture::named(text)
        .ok_or_else(|| format!("expected one of {}", MemberArchitecture::names().collect::<Vec<_>>().join(", ")))
}

/// A folder name, never a way out of the folder of the bundles.
pub(super) fn bundle_name(text: &str) -> Result<String, String> {
    let good = !text.is_empty()
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if good { Ok(text.to_owned()) } else { Err("expected letters, digits, `-`, `_` and `.`".to_owned()) }
}

pub(super) async fn run(global: &Global, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Init { folder, name, full_width, image_side: _, ct: Some(architecture) } => {
            let name = name.unwrap_or_else(|| format!("ct-{}", architecture.name()));
            let folder = folder.resolve(global)?.join(name);
            let width = if full_width { 1.0 } else { UntrainedOptions::default().resnet_width };
            let options = ScanOptions { seed: 1, architecture, width, size_pixels: None };
            let identity = init_untrained_scan_bundle(&folder, options)?;
            print(&format!("bundle in `{}` is ready\n{}", folder.display(), describe(&identity)))
        }
        Action::Init { folder, name, full_width, image_side, ct: None } => {
            let models = folder.resolve(global)?;
            let folder = models.join(name.as_deref().unwrap_or(UNTRAINED_BUNDLE_NAME));
            let options = if full_width { UntrainedOptions::FULL_WIDTH } else { UntrainedOptions::default() };
            let options = UntrainedOptions { image_side_pixels: image_side, ..options };
            let identity = init_untrained_bundle(&folder, options)?;
            print(&format!("bundle in `{}` is ready\n{}", folder.display(), describe(&identity)))?;
            if name.is_none() {
                let folder = models.join(CT_BUNDLE_NAME);
                let identity = init_ct_bundle(&folder)?;
                print(&format!("bundle in `{}` is ready\n{}", folder.display(), describe(&identity)))?;
            }
            Ok(())
        }
        Action::List { folder } => {
            let folder = folder.resolve(global)?;
            let bundles = bundles(&folder)?;
            print(&table(&bundles, &folder))?;
            let broken = bundles.iter().filter(|(_, opened)| opened.is_err()).count();
            if broken > 0 {
                anyhow::bail!(
                    "{broken} of {} bundles cannot be used; `hilum model verify NAME` says why",
                    bundles.len()
                );
            }
            Ok(())
        }
        Action::Verify { folder, name, device } => {
            let folder = folder.resolve(global)?.join(name);
            let bundle = Bundle::open(&folder)?;
            let devices = Devices::new(device)?.as_slice().to_vec();
            let tried = try_out(&bundle, EnsembleOptions { devices, ..EnsembleOptions::default() }).await?;
            print(&format!(
                "bundle in `{}` is sound: every digest is as the manifest says\n{}\n{}",
                folder.display(),
                describe(&bundle.identity()),
                tried_table(&tried)
            ))?;
            let dead: Vec<&str> =
                tried.iter().filter(|tried| !tried.tells_pictures_apart).map(|tried| tried.network.as_str()).collect();
            anyhow::ensure!(
                dead.is_empty(),
                "{} gave the same answer to two different pictures: are the weights those of a trained network?",
                dead.join(", ")
            );
            Ok(())
        }
        Action::Import {
            folder,
            import: ImportOptions { file, name, member, segmenter: _, architecture, width, weights_version },
        } => {
            let folder = folder.resolve(global)?.join(name);
            let target = match member {
                Some(name) => ImportTarget::Member { name, architecture, width },
                None => ImportTarget::Segmenter,
            };
            let to_change = folder.clone();
            let imported =
                tokio::task::spawn_blocking(move || import(&to_change, &file, &target, &weights_version)).await??;
            let identity = Bundle::open(&folder)?.identity();
            print(&imported_words(&imported, &identity, &folder))
        }
        Action::Card { folder, name } => print(&card::card(&Bundle::open(&folder.resolve(global)?.join(name))?)),
    }
}

impl Folder {
    pub(super) fn resolve(self, global: &Global) -> anyhow::Result<PathBuf> {
        match self.models_dir {
            Some(models_dir) => Ok(models_dir),
            None => Ok(global.load()?.inference.models_dir),
        }
    }
}

type Opened = (String, Result<BundleIdentity, String>);

/// Every sub-folder with a manifest, in the order of their names.
fn bundles(folder: &Path) -> anyhow::Result<Vec<Opened>> {
    let entries = match fs_err::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bundles = Vec::new();
    for entry in entries {
        let path = entry.context("read the folder of the bundles")?.path();
        if path.join(MANIFEST_FILE_NAME).is_file() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let opened = Bundle::open(&path).map(|bundle| bundle.identity()).map_err(|error| error.to_string());
            bundles.push((name, opened));
        }
    }
    bundles.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(bundles)
}

const fn status_name(status: BundleStatus) -> &'static str {
    match status {
        BundleStatus::Untrained => "untrained",
        BundleStatus::Unvalidated => "unvalidated",
        BundleStatus::Validated => "validated",
    }
}

fn table(bundles: &[Opened], folder: &Path) -> String {
    let mut table = Table::new(&["BUNDLE", "VERSION", "STATUS", "MEMBERS", "DIGEST"]);
    for (name, opened) in bundles {
        table.row(match opened {
            Ok(identity) => {
                let members: Vec<&str> = identity.members.iter().map(|member| member.name.as_str()).collect();
                let digest = identity.digest.to_string();
                [
                    name.clone(),
                    identity.version.clone(),
                    status_name(identity.status).to_owned(),
                    members.join(","),
                    format!("sha256:{}", digest.get(..16).unwrap_or(&digest)),
                ]
            }
            Err(_) => [name.clone(), String::new(), "broken".to_owned(), String::new(), String::new()],
        });
    }
    table.render(&format!("no bundles in `{}`; `hilum model init` makes an untrained one", folder.display()))
}

fn tried_table(tried: &[Tried]) -> String {
    let mut table = Table::new(&["NETWORK", "MS", "COMPUTES WITH", "GAVE"]);
    for Tried { network, milliseconds, computing, gave, .. } in tried {
        table.row([network.clone(), format!("{milliseconds:.0}"), computing.clone(), gave.clone()]);
    }
    table.render("it has no networks to try")
}

fn imported_words(imported: &Imported, identity: &BundleIdentity, folder: &Path) -> String {
    let what = match imported.n_tensors {
        0 => "a TorchScript file".to_owned(),
        n_tensors => format!("{n_tensors} tensors of {}", imported.architecture),
    };
    let mut words = format!(
        "imported {what} as `{}`\n{}\nNext: set threshold, calibration, licence, training data and performance in `{}` (see \
         models/README.md), then run `hilum model verify`.",
        imported.file_name,
        describe(identity),
        folder.join(MANIFEST_FILE_NAME).display()
    );
    for note in &imported.notes {
        words.push_str("\nNote: ");
        words.push_str(note);
        words.push('.');
    }
    if identity.status == BundleStatus::Untrained {
        words +=
            "\nThe bundle still says `untrained`: set `status = \"unvalidated\"` once every network in it is trained.";
    }
    words
}

/// The identity of a bundle, as results record it.
fn describe(identity: &BundleIdentity) -> String {
    let networks = identity.networks().map(|network| {
        format!(
            "  {:<16} {:<10} {}  sha256:{}",
            network.name, network.architecture, network.version, network.weights_sha256
        )
    });
    let classes: Vec<&str> = identity.classes.iter().map(|class| class.label.as_str()).collect();
    let mut lines = vec![
        format!("{} {}, status {}", identity.name, identity.version, status_name(identity.status)),
        format!("digest     sha256:{}", identity.digest),
        format!("classes    {}", classes.join(", ")),
        format!(
            "fusion     {}, {}, calibration {}",
            identity.fusion,
            identity.pixel_threshold.map_or_else(
                || format!("threshold {}", identity.threshold),
                |of_pixel| format!("a pixel is lesion from {of_pixel} on"),
            ),
            identity.calibration.as_deref().unwrap_or("none")
        ),
        "networks".to_owned(),
    ];
    lines.extend(networks);
    if identity.status == BundleStatus::Untrained {
        lines.insert(0, UNTRAINED_NOTICE.to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_names_stay_in_their_folder() {
        assert!(bundle_name("cxr-2.1_b").is_ok());
        for bad in ["", "..", "a/b", "../x", ".hidden", "a b"] {
            assert!(bundle_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bundles_are_made_listed_and_found_broken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(bundles(&folder.path().join("absent")).unwrap().is_empty());
        let small = UntrainedOptions {
            image_side_pixels: 32,
            segmenter_side_pixels: 32,
            resnet_width: 0.0625,
            vgg_width: 0.0625,
            segmenter_width: 0.0625,
            ..UntrainedOptions::default()
        };
        let identity = init_untrained_bundle(&folder.path().join("good"), small).unwrap();
        assert!(describe(&identity).starts_with(UNTRAINED_NOTICE));
        fs_err::create_dir(folder.path().join("bad")).unwrap();
        fs_err::write(folder.path().join("bad").join(MANIFEST_FILE_NAME), "name = 5").unwrap();
        fs_err::create_dir(folder.path().join("not-a-bundle")).unwrap();

        let found = bundles(folder.path()).unwrap();
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["bad", "good"]);
        let text = table(&found, folder.path());
        assert!(text.lines().nth(1).unwrap().starts_with("bad") && text.contains("broken"), "{text}");
        assert!(text.lines().nth(2).unwrap().contains("untrained"), "{text}");
    }
}
