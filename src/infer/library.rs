//! The reference libraries in memory: loaded when first asked for, kept at what Postgres holds, bounded.
//!
//! Every search compares the library's version number in Postgres, and takes over what was added and removed since. A
//! notification that is lost, or a connection that breaks, can therefore not leave an old index behind.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::nearest::{VectorTable, distance};
use crate::{
    db::{
        Db,
        case::{self, Case, CaseFilter},
    },
    types::{CaseLibraryVersion, PriorImage, Pseudonym, Sha256Digest, SimilarCase, SimilarCases, Uid},
};

/// Earlier images of a patient that are named at most.
const MAX_PRIORS: i64 = 20;

/// The libraries of all bundles. Cheap to clone.
#[derive(Clone)]
pub struct CaseLibrary {
    db: Db,
    maximum_bytes: u64,
    indices: Arc<Mutex<Indices>>,
}

/// By bundle digest and method.
type Indices = HashMap<(Sha256Digest, String), CaseIndex>;

/// For whom similar cases are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// Whose cases are left out.
    pub patient: Pseudonym,
    /// The study that is left out.
    pub study: Option<Pseudonym>,
}

/// The library of one bundle and method.
pub struct CaseIndex {
    /// Of the state that is in memory; `None` while it is being taken over.
    version: Option<i64>,
    identity: CaseLibraryVersion,
    records: Vec<Case>,
    vectors: VectorTable,
}

/// Why a library cannot be searched, in words for a result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the reference library of {cases} cases needs {needed} MiB of memory and {allowed} MiB are allowed; remove cases with `hilum cases remove`"
)]
pub struct LibraryTooLarge {
    cases: u64,
    needed: u64,
    allowed: u64,
}

/// Whether a library of so many vectors of this length may be kept in memory.
///
/// # Errors
/// [`LibraryTooLarge`], with the remedy.
pub fn check_size(cases: u64, dimensions: u64, maximum_bytes: u64) -> Result<(), LibraryTooLarge> {
    let needed = bytes_of(cases, dimensions);
    if needed <= maximum_bytes {
        return Ok(());
    }
    Err(LibraryTooLarge { cases, needed: needed.div_ceil(1 << 20), allowed: maximum_bytes >> 20 })
}

fn bytes_of(cases: u64, dimensions: u64) -> u64 {
    cases.saturating_mul(dimensions).saturating_mul(size_of::<f32>() as u64)
}

impl CaseIndex {
    /// An empty library of vectors with `dimensions` numbers.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        Self { version: None, identity: identity_of(&[]), records: Vec::new(), vectors: VectorTable::new(dimensions) }
    }

    /// Which state this is.
    #[must_use]
    pub const fn identity(&self) -> &CaseLibraryVersion {
        &self.identity
    }

    /// The `count` cases nearest to `query` (length 1) that are neither of the asker's patient nor of the asker's
    /// study, nearest first; those at the same distance in the order of their ids.
    #[must_use]
    pub fn search(&self, query: &[f32], count: usize, asker: &Asker) -> Vec<SimilarCase> {
        let eligible = |row_idx: usize| {
            self.records
                .get(row_idx)
                .is_some_and(|case| case.patient != asker.patient && Some(case.study) != asker.study)
        };
        let id = |row_idx: usize| self.records.get(row_idx).map(|case| &case.case_id);
        let found = self.vectors.nearest(query, count, eligible, |one, other| id(one).cmp(&id(other)));
        found
            .into_iter()
            .filter_map(|(row_idx, distance)| {
                let case = self.records.get(row_idx)?;
                Some(SimilarCase {
                    case_id: case.case_id.clone(),
                    distance,
                    label: case.label.clone(),
                    cohort: case.cohort.clone(),
                })
            })
            .collect()
    }

    /// Adds a case; a vector of another length is left out.
    fn push(&mut self, case: Case, vector: &[f32]) {
        if self.vectors.push(vector) {
            self.records.push(case);
        }
    }

    /// Removes what is not among `wanted`, takes over what is said of the rest, and returns which are missing.
    fn keep(&mut self, wanted: Vec<Case>) -> Vec<Case> {
        let mut wanted: HashMap<String, Case> = wanted.into_iter().map(|case| (case.case_id.clone(), case)).collect();
        let mut row_idx = 0;
        while let Some(record) = self.records.get_mut(row_idx) {
            match wanted.remove(&record.case_id) {
                Some(case) if case.embedding_sha256 == record.embedding_sha256 => {
                    *record = case;
                    row_idx += 1;
                }
                other => {
                    wanted.extend(other.map(|case| (case.case_id.clone(), case)));
                    self.records.swap_remove(row_idx);
                    self.vectors.swap_remove(row_idx);
                }
            }
        }
        wanted.into_values().collect()
    }

    fn bytes(&self) -> u64 {
        (self.vectors.len() * self.vectors.dimensions() * size_of::<f32>()) as u64
    }
}

fn identity_of(records: &[Case]) -> CaseLibraryVersion {
    let mut sorted: Vec<&Case> = records.iter().collect();
    sorted.sort_by(|one, other| one.case_id.cmp(&other.case_id));
    let mut hasher = Sha256::new();
    for case in &sorted {
        for part in [case.case_id.as_bytes(), case.label.as_bytes(), case.cohort.as_bytes(), &case.embedding_sha256.0] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    CaseLibraryVersion { n_cases: sorted.len() as u64, sha256: Sha256Digest(hasher.finalize().into()) }
}

impl CaseLibrary {
    /// Nothing is loaded yet; `maximum_bytes` is what all vectors in memory may take together.
    #[must_use]
    pub fn new(db: Db, maximum_bytes: u64) -> Self {
        Self { db, maximum_bytes, indices: Arc::default() }
    }

    /// The nearest `count` cases of the library of `bundle` and `method` to a vector of length 1, and the library's
    /// state. Cases of the asker's patient and study are left out.
    ///
    /// # Errors
    /// [`LibraryTooLarge`], or Postgres does not answer.
    ///
    /// Cancel safety: safe; what was being taken over is compared anew by the next search.
    pub async fn search(
        &self,
        bundle: Sha256Digest,
        method: &str,
        query: Vec<f32>,
        count: usize,
        asker: Asker,
    ) -> anyhow::Result<(CaseLibraryVersion, Vec<SimilarCase>)> {
        let key = (bundle, method.to_owned());
        let indices = self.current(&key).await?;
        // Tens of milliseconds of arithmetic: not on a thread that others wait for.
        Ok(tokio::task::spawn_blocking(move || {
            indices.get(&key).map_or_else(
                || (identity_of(&[]), Vec::new()),
                |index| (index.identity().clone(), index.search(&query, count, &asker)),
            )
        })
        .await?)
    }

    /// Everything that is found for one analysed image; what fails is said in `reason`.
    pub async fn similar_cases(
        &self,
        study_instance_uid: &str,
        bundle: Sha256Digest,
        method: &str,
        count: usize,
        embedding: &Result<Vec<f32>, String>,
    ) -> SimilarCases {
        let mut found = SimilarCases {
            method: method.to_owned(),
            library: None,
            cases: Vec::new(),
            priors: Vec::new(),
            reason: None,
        };
        let embedding = match embedding {
            Ok(embedding) => embedding,
            Err(words) => {
                found.reason = Some(words.clone());
                return found;
            }
        };
        if let Err(error) = self.fill(study_instance_uid, bundle, count, embedding, &mut found).await {
            tracing::warn!(error = format!("{error:#}"), "similar cases cannot be looked for");
            found.reason = Some(match error.downcast_ref::<LibraryTooLarge>() {
                Some(too_large) => too_large.to_string(),
                None => "the reference library could not be read".to_owned(),
            });
        }
        found
    }

    async fn fill(
        &self,
        study_instance_uid: &str,
        bundle: Sha256Digest,
        count: usize,
        embedding: &[f32],
        found: &mut SimilarCases,
    ) -> anyhow::Result<()> {
        let (patient, study) = {
            let mut connection = self.db.acquire().await?;
            let key = case::pseudonym_key(&mut connection).await?;
            let priors = case::priors(&mut connection, study_instance_uid, &bundle, &found.method, MAX_PRIORS).await?;
            for prior in priors.into_iter().filter(|prior| prior.embedding.len() == embedding.len()) {
                found.priors.push(PriorImage {
                    study_instance_uid: Uid::new(&prior.study_instance_uid)?,
                    sop_instance_uid: Uid::new(&prior.sop_instance_uid)?,
                    study_date: prior.study_date,
                    distance: distance(embedding, &prior.embedding),
                });
            }
            let patient_id = case::patient_id(&mut connection, study_instance_uid).await?;
            (patient_id.and_then(|patient_id| key.patient(&patient_id)), key.study(study_instance_uid))
        };
        let Some(patient) = patient else {
            found.reason =
                Some("the study has no Patient ID, so that cases of the same patient cannot be left out".to_owned());
            return Ok(());
        };
        let (library, cases) =
            self.search(bundle, &found.method, embedding.to_vec(), count, Asker { patient, study }).await?;
        found.reason = match (library.n_cases, cases.is_empty()) {
            (0, _) => Some("the reference library holds no case of this bundle".to_owned()),
            (_, true) => Some("the reference library holds no comparable case of another patient".to_owned()),
            (_, false) => None,
        };
        found.library = Some(library);
        found.cases = cases;
        Ok(())
    }

    /// The indices, with that of `key` at what Postgres holds.
    async fn current(&self, key: &(Sha256Digest, String)) -> anyhow::Result<OwnedMutexGuard<Indices>> {
        let mut indices = Arc::clone(&self.indices).lock_owned().await;
        let mut tx = case::snapshot(&self.db).await?;
        let version = case::version(&mut tx).await.context("read the version of the reference library")?;
        if indices.get(key).is_some_and(|index| index.version == Some(version)) {
            return Ok(indices);
        }
        let (cases, dimensions) = case::extent(&mut tx, &key.0, &key.1).await?;
        if let Err(too_large) = check_size(cases, dimensions, self.maximum_bytes) {
            indices.remove(key);
            anyhow::bail!(too_large);
        }
        let needed = bytes_of(cases, dimensions);
        // Those of other bundles make room; they come back when they are asked for.
        let others: u64 = indices.iter().filter(|(other, _)| *other != key).map(|(_, index)| index.bytes()).sum();
        if needed.saturating_add(others) > self.maximum_bytes {
            indices.retain(|other, _| other == key);
        }
        let dimensions = usize::try_from(dimensions)?;
        let index = indices.entry(key.clone()).or_insert_with(|| CaseIndex::new(dimensions));
        if index.vectors.is_empty() {
            *index = CaseIndex::new(dimensions);
        }
        index.version = None;
        let filter = CaseFilter { bundle_digest: Some(key.0), ..CaseFilter::default() };
        let mut wanted = case::list(&mut tx, &filter).await?;
        wanted.retain(|case| case.method == key.1);
        let missing = index.keep(wanted);
        index.vectors.reserve(missing.len());
        let mut missing: HashMap<String, Case> = missing.into_iter().map(|case| (case.case_id.clone(), case)).collect();
        let ids: Vec<String> = missing.keys().cloned().collect();
        case::each_embedding(&mut tx, &ids, |case_id, vector| {
            if let Some(case) = missing.remove(&case_id) {
                index.push(case, &vector);
            }
        })
        .await
        .context("read the reference library")?;
        index.identity = identity_of(&index.records);
        index.version = Some(version);
        tracing::info!(
            bundle_digest = %key.0,
            method = key.1,
            cases = index.identity.n_cases,
            library = %index.identity.sha256,
            patients = index.records.iter().map(|case| case.patient).collect::<HashSet<_>>().len(),
            "reference library loaded"
        );
        Ok(indices)
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn case(number: u8, patient: u8, vector: &[f32]) -> (Case, Vec<f32>) {
        let record = Case {
            case_id: format!("LIB-{number:03}"),
            bundle_digest: Sha256Digest::of(b"bundle"),
            method: "all-members".to_owned(),
            patient: Pseudonym([patient; 32]),
            study: Pseudonym([100 + number; 32]),
            label: "COVID-19".to_owned(),
            cohort: "test".to_owned(),
            view: "PA".to_owned(),
            source: String::new(),
            embedding_sha256: Sha256Digest::of(&[number]),
            imported_at: OffsetDateTime::UNIX_EPOCH,
        };
        (record, vector.to_vec())
    }

    fn index(cases: &[(Case, Vec<f32>)]) -> CaseIndex {
        let mut index = CaseIndex::new(2);
        for (case, vector) in cases {
            index.push(case.clone(), vector);
        }
        index
    }

    fn ids(found: &[SimilarCase]) -> Vec<&str> {
        found.iter().map(|case| case.case_id.as_str()).collect()
    }

    #[test]
    fn a_library_fits_up_to_the_last_byte() {
        check_size(100, 1 << 18, 100 << 20).unwrap();
        let words = check_size(101, 1 << 18, 100 << 20).unwrap_err().to_string();
        assert!(words.contains("101 cases needs 101 MiB of memory and 100 MiB are allowed"), "{words}");
        check_size(u64::MAX, u64::MAX, 100 << 20).unwrap_err();
    }

    #[test]
    fn never_the_same_patient_or_study_and_ties_by_id() {
        let same = [1.0, 0.0];
        let index = index(&[case(3, 3, &same), case(1, 1, &same), case(2, 2, &same), case(4, 4, &[0.0, 1.0])]);
        let asker = |patient: u8, study: Option<u8>| Asker {
            patient: Pseudonym([patient; 32]),
            study: study.map(|study| Pseudonym([study; 32])),
        };
        assert_eq!(ids(&index.search(&same, 9, &asker(9, None))), ["LIB-001", "LIB-002", "LIB-003", "LIB-004"]);
        assert_eq!(ids(&index.search(&same, 2, &asker(1, None))), ["LIB-002", "LIB-003"]);
        assert_eq!(ids(&index.search(&same, 9, &asker(1, Some(102)))), ["LIB-003", "LIB-004"]);
        let found = index.search(&same, 9, &asker(9, None));
        assert!(found[0].distance.abs() < 1e-9 && (found[3].distance - 2.0_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn what_was_added_removed_and_named_anew_is_taken_over() {
        let all = [case(1, 1, &[1.0, 0.0]), case(2, 2, &[0.0, 1.0]), case(3, 3, &[-1.0, 0.0])];
        let mut index = index(&all);
        let before = identity_of(&index.records);
        let mut renamed = all[2].0.clone();
        renamed.label = "other".to_owned();
        let mut remade = all[1].0.clone();
        remade.embedding_sha256 = Sha256Digest::of(b"other vector");
        let added = case(4, 4, &[0.6, 0.8]);
        let missing = index.keep(vec![renamed, remade, added.0.clone()]);
        let mut missing: Vec<&str> = missing.iter().map(|case| case.case_id.as_str()).collect();
        missing.sort_unstable();
        assert_eq!(missing, ["LIB-002", "LIB-004"]);
        let asker = Asker { patient: Pseudonym([9; 32]), study: None };
        let found = index.search(&[-1.0, 0.0], 9, &asker);
        assert_eq!(ids(&found), ["LIB-003"]);
        assert_eq!(found[0].label, "other");
        assert!(found[0].distance < 1e-9, "the row went with its record");
        assert_ne!(identity_of(&index.records), before);
    }

    #[test]
    fn the_identity_does_not_depend_on_the_order() {
        let (one, other) = (case(1, 1, &[1.0, 0.0]), case(2, 2, &[0.0, 1.0]));
        let forwards = index(&[one.clone(), other.clone()]);
        assert_eq!(identity_of(&forwards.records), identity_of(&index(&[other, one.clone()]).records));
        assert_ne!(identity_of(&forwards.records), identity_of(&index(&[one]).records));
        assert_eq!(identity_of(&[]).n_cases, 0);
    }

    async fn add(db: &Db, bundle: Sha256Digest, number: u8, patient: Pseudonym, vector: &[f32]) -> String {
        let file_sha256 = Sha256Digest::of(&[number]);
        let case_id = case::case_id(&bundle, "all-members", &file_sha256);
        let new = case::NewCase {
            case_id: &case_id,
            bundle_digest: bundle,
            method: "all-members",
            file_sha256,
            patient,
            study: Pseudonym([number; 32]),
            label: "COVID-19",
            cohort: "test",
            view: "PA",
            source: "",
            embedding: vector,
        };
        let mut tx = db.begin().await.unwrap();
        assert!(case::insert(&mut tx, &new).await.unwrap());
        assert!(!case::insert(&mut tx, &new).await.unwrap(), "the same case again");
        tx.commit().await.unwrap();
        case_id
    }

    #[tokio::test]
    async fn the_index_follows_postgres_and_refuses_what_does_not_fit() {
        use std::os::unix::fs::PermissionsExt as _;

        use crate::db::managed::{ManagedPostgres, ManagedPostgresOptions};
        let folder = tempfile::Builder::new().prefix("hilum-test-cases").tempdir_in("/tmp").unwrap();
        fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let postgres = ManagedPostgres::start(&ManagedPostgresOptions::throw_away(folder.path())).await.unwrap();
        let db = Db::connect_lazy(&postgres.connection_url(), 4).unwrap();
        db.migrate().await.unwrap();
        let (bundle, other_bundle) = (Sha256Digest::of(b"bundle"), Sha256Digest::of(b"other bundle"));
        let (patient, asker) = (Pseudonym([1; 32]), Asker { patient: Pseudonym([9; 32]), study: None });
        let library = CaseLibrary::new(db.clone(), 4 * 8);
        let search = |bundle, asker| library.search(bundle, "all-members", vec![1.0, 0.0], 4, asker);

        assert!(search(bundle, asker).await.unwrap().1.is_empty());
        let first = add(&db, bundle, 1, patient, &[1.0, 0.0]).await;
        let second = add(&db, bundle, 2, Pseudonym([2; 32]), &[0.0, 1.0]).await;
        let of_other_bundle = add(&db, other_bundle, 3, patient, &[1.0, 0.0]).await;
        let (version, found) = search(bundle, asker).await.unwrap();
        assert_eq!((version.n_cases, ids(&found)), (2, vec![first.as_str(), second.as_str()]));
        let same_patient = Asker { patient, study: None };
        assert_eq!(ids(&search(bundle, same_patient).await.unwrap().1), [second.as_str()]);
        assert_eq!(ids(&search(other_bundle, asker).await.unwrap().1), [of_other_bundle.as_str()]);

        let filter = CaseFilter { case_ids: Some(vec![first]), ..CaseFilter::default() };
        assert_eq!(case::remove(&mut db.acquire().await.unwrap(), &filter).await.unwrap(), 1);
        let (after, found) = search(bundle, asker).await.unwrap();
        assert_eq!(ids(&found), [second.as_str()]);
        assert_ne!(after, version);

        for number in 10..14 {
            add(&db, bundle, number, patient, &[0.6, 0.8]).await;
        }
        let error = search(bundle, asker).await.unwrap_err();
        assert!(error.downcast_ref::<LibraryTooLarge>().is_some(), "{error:#}");
        assert_eq!(ids(&search(other_bundle, asker).await.unwrap().1), [of_other_bundle.as_str()]);
        let key = case::pseudonym_key(&mut db.acquire().await.unwrap()).await.unwrap();
        let again = case::pseudonym_key(&mut db.acquire().await.unwrap()).await.unwrap();
        assert_eq!(key.patient("P1"), again.patient("P1"), "the key is made once");
        db.close().await;
        postgres.stop().await.unwrap();
    }
}
