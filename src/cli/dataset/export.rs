//! `hilum dataset export`: images of the archive as a data set, with labels that people gave to studies or images.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        output::{count, print, visible},
        store::Store,
    },
    anonymous::{Anonymous, anonymous},
};
use crate::{
    app::open_archive,
    cli::Global,
    db::{
        case,
        instance::{self, Exported},
    },
    report,
    types::Sha256Digest,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// CSV with the columns uid (Study or SOP Instance UID) and label, and if known split: what people say of the studies or
    /// images, such as feedback on results
    #[arg(long, value_name = "CSV")]
    labels: PathBuf,
    /// Folder for the images and their list.csv; it must be new or empty
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

/// A line of what people say.
#[derive(Debug, Clone, Deserialize)]
struct Said {
    uid: String,
    label: String,
    #[serde(default)]
    split: String,
}

/// A line of the list.
#[derive(Debug, Serialize)]
struct Line {
    file: String,
    label: String,
    patient: String,
    view: String,
    site: String,
    split: String,
    age: String,
    sex: String,
}

pub(in crate::cli) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let config = global.load()?;
    let labels = read_labels(&options.labels)?;
    let is_empty = match fs_err::read_dir(&options.out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error.into()),
    };
    anyhow::ensure!(is_empty, "`{}` is not empty: give a folder of its own with --out", options.out.display());
    let store = Store::open(&config).await?;
    let found = async {
        let mut connection = store.db.acquire().await?;
        let uids: Vec<String> = labels.keys().cloned().collect();
        let images = instance::radiographs(&mut connection, &uids).await?;
        anyhow::Ok((images, case::pseudonym_key(&mut connection).await?))
    }
    .await;
    store.close().await?;
    let (images, key) = found?;
    let archive = open_archive(&config)?;

    fs_err::create_dir_all(options.out.join("images"))?;
    let mut lines = Vec::new();
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for image in &images {
        // What is said of an image comes before what is said of its study.
        let said =
            [&image.sop_instance_uid, &image.study_instance_uid].into_iter().find_map(|uid| labels.get_key_value(uid));
        let Some((uid, said)) = said else { continue };
        used.insert(uid.clone());
        let line = archive
            .read(&image.archive_key)
            .context("its file cannot be read")
            .and_then(|bytes| write_image(&options.out, image, &bytes, said, &key));
        match line {
            Ok(line) => lines.push(line),
            Err(error) => problems.push(format!("image {}: {error:#}", image.sop_instance_uid)),
        }
    }
    problems.extend(
        labels
            .keys()
            .filter(|uid| !used.contains(*uid))
            .map(|uid| format!("{uid}: no radiograph of it is in the archive")),
    );
    let mut writer = csv::Writer::from_path(options.out.join("list.csv"))?;
    for line in &lines {
        writer.serialize(line)?;
    }
    writer.flush()?;
    for problem in &problems {
        print(&visible(problem))?;
    }
    print(&format!(
        "{} in `{}`, without names, numbers, dates and devices; texts burned into pixels stay: look at them before you pass \
         them on. `hilum dataset check` comes next.",
        count(lines.len(), "image"),
        options.out.display()
    ))?;
    anyhow::ensure!(problems.is_empty(), "{} of the labels or images could not be exported", problems.len());
    Ok(())
}

/// What is said of each UID.
fn read_labels(path: &Path) -> anyhow::Result<BTreeMap<String, Said>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(fs_err::File::open(path)?);
    let mut labels = BTreeMap::new();
    for (idx, row) in reader.deserialize().enumerate() {
        let said: Said = row.with_context(|| {
            format!("read `{}`: its first line names the columns uid, label and if known split", path.display())
        })?;
        let line = idx + 2;
        anyhow::ensure!(
            !said.uid.is_empty() && !said.label.is_empty(),
            "`{}`, line {line}: give a uid and a label",
            path.display()
        );
        if let Some(known) = labels.insert(said.uid.clone(), said.clone()) {
            anyhow::ensure!(
                known.label == said.label,
                "`{}`, line {line}: `{}` has two labels; keep one of them",
                path.display(),
                said.uid
            );
        }
    }
    anyhow::ensure!(!labels.is_empty(), "`{}` names no uid: give a line for each study or image", path.display());
    Ok(labels)
}

/// Writes an image under a name of its own, and says its line of the list.
fn write_image(
    folder: &Path,
    image: &Exported,
    bytes: &[u8],
    said: &Said,
    key: &crate::types::PseudonymKey,
) -> anyhow::Result<Line> {
    // Neither name nor UID leads back: both are keyed.
    let own = key.study(&image.sop_instance_uid).context("it has no UID")?;
    let own = Sha256Digest(own.0).to_string();
    let uid = report::uid("exported", &[&own]);
    let Anonymous { part10, age_years, sex, view } = anonymous(bytes, uid.as_str())?;
    let file = format!("images/{}.dcm", own.get(..24).unwrap_or(&own));
    fs_err::write(folder.join(&file), part10)?;
    let patient = image.patient_id.as_deref().and_then(|id| key.patient(id));
    // Without a Patient ID the study is all that holds images together.
    let patient =
        patient.or_else(|| key.study(&image.study_instance_uid)).context("it names neither patient nor study")?;
    Ok(Line {
        file,
        label: said.label.clone(),
        patient: Sha256Digest(patient.0).to_string().get(..16).unwrap_or_default().to_owned(),
        view: view.unwrap_or_default(),
        site: image.calling_ae_title.clone(),
        split: said.split.clone(),
        age: age_years.map_or_else(String::new, |years| years.to_string()),
        sex: sex.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_and_contradictions_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.csv");
        let read = |text: &str| {
            fs_err::write(&path, text).unwrap();
            read_labels(&path)
        };
        let labels = read("uid,label,split,remark\n1.2,covid,test,x\n1.3, normal ,,\n").unwrap();
        assert_eq!((labels["1.3"].label.as_str(), labels["1.2"].split.as_str()), ("normal", "test"));
        assert!(
            read("uid,label\n1.2,covid\n1.2,normal\n")
                .unwrap_err()
                .to_string()
                .contains("line 3: `1.2` has two labels")
        );
        assert!(read("uid,label\n,covid\n").unwrap_err().to_string().contains("line 2: give a uid"));
        assert!(read("study,label\n1,2\n").unwrap_err().to_string().contains("names the columns uid"));
        assert!(read("uid,label\n").unwrap_err().to_string().contains("names no uid"));
    }
}
