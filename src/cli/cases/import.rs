//! `hilum cases import`: the pipeline of a bundle on reference images, each case in a transaction of its own.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::Args;
use dicom_dictionary_std::tags;
use indicatif::ProgressBar;

use super::{
    super::{
        Global,
        output::{count, print, visible},
        store::Store,
    },
    files::{self, Listed},
};
use crate::{
    app::tuning::network_threads,
    db::{
        Db,
        case::{self, Case, CaseFilter, NewCase},
    },
    imaging::{self, DecodeLimits, PictureFacts, picture_as_radiograph},
    infer::{
        CxrPipeline, LoadedImage, NnModels,
        library::{Asker, CaseLibrary, check_size},
        pipeline_settings,
    },
    nn::{Bundle, Ensemble, EnsembleOptions},
    report,
    types::{Pseudonym, PseudonymKey, RunOutcome, RunPriority, Sha256Digest, SourceImage, Uid},
};

/// Larger files are no radiographs.
const MAX_FILE_BYTES: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(in crate::cli) struct Options {
    /// Name of the bundle whose networks look at the images
    #[arg(long)]
    bundle: String,
    /// Name of the collection that the cases belong to
    #[arg(long, value_parser = not_empty)]
    cohort: String,
    /// Label of files that a list gives none
    #[arg(long, value_parser = not_empty)]
    label: Option<String>,
    /// Warn when a case of another patient is nearer than this (0 to 2)
    #[arg(long, default_value_t = 0.02)]
    duplicate_distance: f64,
    /// A folder of DICOM, PNG or JPEG files, or a list in CSV: file, label, patient, study, view, source, licence
    #[arg(value_name = "FOLDER-OR-CSV")]
    path: PathBuf,
}

fn not_empty(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() { Err("a name is expected".to_owned()) } else { Ok(text.to_owned()) }
}

/// What became of the files.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    added: usize,
    known: usize,
    /// Reason by file.
    refused: BTreeMap<PathBuf, String>,
    warnings: usize,
}

/// What became of one file.
enum Fate {
    Added { warning: Option<String> },
    Known { warning: Option<String> },
}

struct Importer {
    db: Db,
    pipeline: CxrPipeline<NnModels>,
    library: CaseLibrary,
    maximum_index_bytes: u64,
    key: PseudonymKey,
    cohort: String,
    label: Option<String>,
    duplicate_distance: f64,
}

pub(super) async fn run(global: &Global, options: Options) -> anyhow::Result<()> {
    let config = global.load()?;
    anyhow::ensure!(
        Path::new(&options.bundle).file_name().is_some_and(|name| name == options.bundle.as_str()),
        "`{}` is not the name of a bundle",
        visible(&options.bundle)
    );
    let listed = files::find(&options.path)?;
    let bundle = Bundle::open(&config.inference.models_dir.join(&options.bundle))
        .with_context(|| format!("open bundle `{}`; `hilum model list` names those there are", options.bundle))?;
    let decode_limits = DecodeLimits { max_decoded_bytes: config.inference.max_decoded_bytes.bytes() };
    let (settings, classification) = pipeline_settings(bundle.manifest(), decode_limits)?;
    let maximum_index_bytes = settings.similar_cases.maximum_index_bytes;
    let threads = network_threads(&config);
    let ensemble = EnsembleOptions {
        // One question at a time: one device is enough, and the node needs its memory.
        devices: config.inference.devices.as_slice().iter().take(1).copied().collect(),
        optimise: config.inference.optimise,
        intra_op_threads: threads.classifiers,
        segmenter_threads: threads.segmenter,
        ..EnsembleOptions::default()
    };
    let identity = bundle.identity();
    let models = tokio::task::spawn_blocking(move || {
        anyhow::Ok(NnModels::new(Ensemble::load(&bundle, ensemble)?, classification))
    })
    .await??;
    let store = Store::open(&config).await?;
    let summary = async {
        let key = case::pseudonym_key(&mut *store.db.acquire().await?).await?;
        let importer = Importer {
            pipeline: CxrPipeline::new(models, identity, settings)?,
            library: CaseLibrary::new(store.db.clone(), maximum_index_bytes),
            maximum_index_bytes,
            db: store.db.clone(),
            key,
            cohort: options.cohort,
            label: options.label,
            duplicate_distance: options.duplicate_distance,
        };
        importer.import(listed).await
    }
    .await;
    store.close().await?;
    let summary = summary?;
    print(&describe(&summary))?;
    anyhow::ensure!(summary.refused.is_empty(), "{} could not be imported", count(summary.refused.len(), "file"));
    Ok(())
}

fn describe(summary: &Summary) -> String {
    let mut text = String::new();
    for (path, reason) in &summary.refused {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}: refused: {}", path.display(), visible(reason));
    }
    let _ = write!(
        text,
        "{} added, {} there already, {} refused, {}",
        summary.added,
        summary.known,
        summary.refused.len(),
        count(summary.warnings, "warning")
    );
    text
}

impl Importer {
    /// Takes one file after the other; only Postgres being away ends it early.
    async fn import(&self, listed: Vec<Listed>) -> anyhow::Result<Summary> {
        let bar = io::stderr().is_terminal().then(|| ProgressBar::new(listed.len() as u64));
        let mut summary = Summary::default();
        for (idx, file) in listed.iter().enumerate() {
            let name = file.path.display().to_string();
            let (words, warning) = match self.import_one(file).await {
                Ok(Fate::Added { warning }) => {
                    summary.added += 1;
                    ("added".to_owned(), warning)
                }
                Ok(Fate::Known { warning }) => {
                    summary.known += 1;
                    ("there already".to_owned(), warning)
                }
                Err(error) => {
                    // Without Postgres no other file can be imported either.
                    self.db.ping().await?;
                    let words = format!("{error:#}");
                    summary.refused.insert(file.path.clone(), words.clone());
                    (format!("refused: {words}"), None)
                }
            };
            summary.warnings += usize::from(warning.is_some());
            let mut line = format!("{}/{} {}: {}", idx + 1, listed.len(), visible(&name), visible(&words));
            line.extend(warning.map(|warning| format!("\n  warning: {}", visible(&warning))));
            match &bar {
                Some(bar) => {
                    bar.println(line);
                    bar.inc(1);
                }
                None => print(&line)?,
            }
        }
        if let Some(bar) = &bar {
            bar.finish_and_clear();
        }
        Ok(summary)
    }

    async fn import_one(&self, file: &Listed) -> anyhow::Result<Fate> {
        let size = fs_err::metadata(&file.path)?.len();
        anyhow::ensure!(size <= MAX_FILE_BYTES, "it has {size} bytes and at most {MAX_FILE_BYTES} are read");
        let bytes = fs_err::read(&file.path)?;
        let label = file.label.as_ref().or(self.label.as_ref());
        let label = label.context("it has no label; give one in the list or with --label")?;
        let (bundle_digest, method) = (self.pipeline.bundle().digest, self.pipeline.similar_cases().method.id());
        let file_sha256 = Sha256Digest::of(&bytes);
        let case_id = case::case_id(&bundle_digest, &method, &file_sha256);
        let described = tokio::task::spawn_blocking({
            let (file, key) = (file.clone(), self.key.clone());
            move || describe_file(&file, bytes, &file_sha256, &key)
        })
        .await??;
        let Described { part10, patient, study, view, sop_instance_uid } = described;
        let asked = Asked { patient, study, label, cohort: &self.cohort };
        if let Some(known) = self.known(&case_id).await? {
            return Ok(Fate::Known { warning: asked.compare(&known)? });
        }
        let embedding = self.embedding(part10, &sop_instance_uid, file_sha256).await?;
        let warning = self.duplicate_warning(bundle_digest, &method, &embedding, patient).await?;
        let new = NewCase {
            case_id: &case_id,
            bundle_digest,
            method: &method,
            file_sha256,
            patient,
            study,
            label,
            cohort: &self.cohort,
            view: &view,
            source: file.source.as_deref().unwrap_or_default(),
            embedding: &embedding,
        };
        let mut tx = self.db.begin().await?;
        if !case::insert(&mut tx, &new).await? {
            // Another import of the same file was first.
            let known = self.known(&case_id).await?.context("another import removed it; import it again")?;
            return Ok(Fate::Known { warning: asked.compare(&known)? });
        }
        // Inserting has locked the library's version: no other import comes between.
        let (cases, dimensions) = case::extent(&mut tx, &bundle_digest, &method).await?;
        check_size(cases, dimensions, self.maximum_index_bytes).context("there is no room for it")?;
        tx.commit().await.context("commit the case")?;
        Ok(Fate::Added { warning })
    }

    async fn known(&self, case_id: &str) -> anyhow::Result<Option<Case>> {
        let filter = CaseFilter { case_ids: Some(vec![case_id.to_owned()]), ..CaseFilter::default() };
        Ok(case::list(&mut *self.db.acquire().await?, &filter).await?.pop())
    }

    /// The same preparation, gates and networks as in a run.
    async fn embedding(&self, part10: Vec<u8>, uid: &Uid, sha256: Sha256Digest) -> anyhow::Result<Vec<f32>> {
        let source = SourceImage {
            sop_class_uid: Uid::new(dicom_dictionary_std::uids::DIGITAL_X_RAY_IMAGE_STORAGE_FOR_PRESENTATION)?,
            sop_instance_uid: uid.clone(),
            series_instance_uid: uid.clone(),
            modality: "DX".to_owned(),
            archive_key: String::new(),
            sha256,
        };
        let mut part10 = Some(part10);
        let analysis = self
            .pipeline
            .analyse(vec![source], RunPriority::Routine, |source| {
                std::future::ready(Ok(LoadedImage { source, bytes: part10.take().unwrap_or_default() }))
            })
            .await?;
        if let RunOutcome::NotAnalysed(reason) = &analysis.outcome {
            anyhow::bail!("{} ({})", reason.words, reason.reason.id());
        }
        let embedding = analysis.embeddings.into_iter().next().context("the image was not analysed")?;
        embedding.map_err(anyhow::Error::msg)
    }

    /// Two patients hardly have the same picture: one of them may be in the library under two names.
    async fn duplicate_warning(
        &self,
        bundle_digest: Sha256Digest,
        method: &str,
        embedding: &[f32],
        patient: Pseudonym,
    ) -> anyhow::Result<Option<String>> {
        let asker = Asker { patient, study: None };
        let (_, nearest) = self.library.search(bundle_digest, method, embedding.to_vec(), 1, asker).await?;
        Ok(nearest.first().filter(|near| near.distance < self.duplicate_distance).map(|near| {
            format!(
                "nearly identical (distance {:.5}) to case {} of another patient, label `{}`, cohort `{}`: is it the same image?",
                near.distance, near.case_id, near.label, near.cohort
            )
        }))
    }
}

/// What this import says of a case.
#[derive(Clone, Copy)]
struct Asked<'a> {
    patient: Pseudonym,
    study: Pseudonym,
    label: &'a str,
    cohort: &'a str,
}

impl Asked<'_> {
    /// Compares with what is kept: a warning when label or cohort stay as they are. Another patient or study is refused,
    /// because patients would be shown their own case as another's.
    fn compare(&self, known: &Case) -> anyhow::Result<Option<String>> {
        let id = &known.case_id;
        let remedy = format!("if that is wrong, run `hilum cases remove {id}` and import it again");
        anyhow::ensure!(known.patient == self.patient, "it is already case {id}, of another patient; {remedy}");
        anyhow::ensure!(known.study == self.study, "it is already case {id}, of another study; {remedy}");
        Ok((known.label != self.label || known.cohort != self.cohort).then(|| {
            format!(
                "it stays case {id} with label `{}` in cohort `{}`; to change that, remove it and import it again",
                known.label, known.cohort
            )
        }))
    }
}

/// A file, ready for the pipeline.
struct Described {
    part10: Vec<u8>,
    patient: Pseudonym,
    study: Pseudonym,
    view: String,
    sop_instance_uid: Uid,
}

/// Reads what the file itself says. A list adds what the file does not say; it contradicts the file about the patient or
/// the study only by mistake, and the mistake would show patients their own case as another's.
fn describe_file(
    file: &Listed,
    bytes: Vec<u8>,
    sha256: &Sha256Digest,
    key: &PseudonymKey,
) -> anyhow::Result<Described> {
    // A UID of our own: the file's would lead to a patient.
    let sop_instance_uid = report::uid("case", &[&sha256.to_string()]);
    let (mut patient, mut study, mut view) = (file.patient.clone(), file.study.clone(), file.view.clone());
    let part10 = if imaging::is_part10(&bytes) {
        let object = imaging::read_object(&bytes).map_err(|_| anyhow::anyhow!("the data set cannot be parsed"))?;
        let text = |tag| {
            let element = object.element_opt(tag).ok().flatten()?;
            Some(element.to_str().ok()?.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_owned())
        };
        patient = agreed(patient, text(tags::PATIENT_ID), |id| key.patient(id), "patient", "Patient ID (0010,0020)")?;
        let in_file = text(tags::STUDY_INSTANCE_UID);
        study = agreed(study, in_file, |uid| key.study(uid), "study", "Study Instance UID (0020,000D)")?;
        view = view.or_else(|| text(tags::VIEW_POSITION));
        bytes
    } else {
        let facts = PictureFacts { view: view.as_deref().unwrap_or_default(), age_years: None };
        picture_as_radiograph(&bytes, facts, sop_instance_uid.as_str())?
    };
    let patient = key.patient(patient.as_deref().unwrap_or_default()).context(
        "it names no patient, so that the same patient could not be left out later; give one in the list's column `patient`",
    )?;
    let study = study.and_then(|study| key.study(&study)).or_else(|| key.study(&sha256.to_string()));
    Ok(Described {
        part10,
        patient,
        study: study.context("it names no study")?,
        view: view.unwrap_or_default(),
        sop_instance_uid,
    })
}

/// What a list says, or else the file; refused when both say something and not the same. Neither is printed.
fn agreed(
    listed: Option<String>,
    in_file: Option<String>,
    pseudonym: impl Fn(&str) -> Option<Pseudonym>,
    column: &str,
    attribute: &str,
) -> anyhow::Result<Option<String>> {
    let of = |text: &Option<String>| text.as_deref().and_then(&pseudonym);
    match (of(&listed), of(&in_file)) {
        (Some(one), Some(other)) if one != other => anyhow::bail!(
            "the list's column `{column}` and the file's {attribute} differ; leave the column empty for this file, or \
             correct the one that is wrong"
        ),
        (Some(_), _) => Ok(listed),
        (None, _) => Ok(in_file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::testing::{part10, radiograph, text};

    #[test]
    fn identity_comes_from_the_file_or_the_list_and_never_leaves_it() {
        let key = PseudonymKey::new([7; 32]);
        let mut object = radiograph(4, 4, &[0; 16]);
        object.put(text(tags::PATIENT_ID, dicom_core::VR::LO, "HOSPITAL-1 "));
        object.put(text(tags::STUDY_INSTANCE_UID, dicom_core::VR::UI, "1.2.3"));
        let bytes = part10(object);
        let sha256 = Sha256Digest::of(&bytes);
        let of_file = describe_file(&Listed::default(), bytes.clone(), &sha256, &key).unwrap();
        assert_eq!(Some(of_file.patient), key.patient("HOSPITAL-1"));
        assert_eq!(Some(of_file.study), key.study("1.2.3"));
        assert_eq!(of_file.view, "PA");
        assert!(of_file.sop_instance_uid.as_str().starts_with("2.25."));

        let nameless = part10(radiograph(4, 4, &[0; 16]));
        let listed = Listed { patient: Some("P9".into()), ..Listed::default() };
        let of_list = describe_file(&listed, nameless, &sha256, &key).unwrap();
        assert_eq!(Some(of_list.patient), key.patient("P9"));

        let same = Listed { patient: Some("HOSPITAL-1".into()), study: Some("1.2.3".into()), ..Listed::default() };
        assert_eq!(describe_file(&same, bytes.clone(), &sha256, &key).unwrap().patient, of_file.patient);
        let other_patient = Listed { patient: Some("P9".into()), ..Listed::default() };
        let other_study = Listed { study: Some("S9".into()), ..Listed::default() };
        for (listed, attribute) in [(other_patient, "Patient ID (0010,0020)"), (other_study, "Study Instance UID")] {
            let error = describe_file(&listed, bytes.clone(), &sha256, &key).err().unwrap().to_string();
            assert!(error.contains(attribute) && error.contains("differ; leave the column empty"), "{error}");
            assert!(!error.contains("HOSPITAL") && !error.contains("P9") && !error.contains("S9"), "{error}");
        }
    }

    #[test]
    fn a_known_file_of_another_patient_or_study_is_refused_and_other_words_are_a_warning() {
        let (one, other) = (Pseudonym([1; 32]), Pseudonym([2; 32]));
        let known = Case {
            case_id: "LIB-1".to_owned(),
            bundle_digest: Sha256Digest::of(b"bundle"),
            method: "all-members".to_owned(),
            patient: one,
            study: one,
            label: "normal".to_owned(),
            cohort: "tests".to_owned(),
            view: String::new(),
            source: String::new(),
            embedding_sha256: Sha256Digest::of(b"vector"),
            imported_at: time::OffsetDateTime::UNIX_EPOCH,
        };
        let asked = Asked { patient: one, study: one, label: "normal", cohort: "tests" };
        assert_eq!(asked.compare(&known).unwrap(), None);
        let named = Asked { label: "COVID-19", ..asked };
        assert!(named.compare(&known).unwrap().unwrap().contains("stays case LIB-1 with label `normal`"));
        for (asked, what) in
            [(Asked { patient: other, ..asked }, "patient"), (Asked { study: other, ..asked }, "study")]
        {
            let error = asked.compare(&known).unwrap_err().to_string();
            assert!(error.contains(&format!("case LIB-1, of another {what}")), "{error}");
            assert!(error.contains("`hilum cases remove LIB-1`"), "{error}");
        }
    }

    #[test]
    fn a_file_without_a_patient_is_refused_with_the_remedy() {
        let bytes = part10(radiograph(4, 4, &[0; 16]));
        let sha256 = Sha256Digest::of(&bytes);
        let error = describe_file(&Listed::default(), bytes, &sha256, &PseudonymKey::new([7; 32])).err().unwrap();
        assert!(error.to_string().contains("names no patient"), "{error}");
    }

    #[test]
    fn the_summary_names_every_refused_file() {
        let summary = Summary {
            added: 2,
            known: 1,
            refused: BTreeMap::from([(PathBuf::from("a.png"), "it is a picture in colour".to_owned())]),
            warnings: 1,
        };
        assert_eq!(
            describe(&summary),
            "a.png: refused: it is a picture in colour\n2 added, 1 there already, 1 refused, 1 warning"
        );
    }
}
