//! A throw-away Postgres with the schema, for tests of this room.

use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

use uuid::Uuid;

use super::{
    Db,
    managed::{ManagedPostgres, ManagedPostgresOptions},
    run,
};
use crate::types::{ObjectHeader, Pipeline, RunPriority, RunRecord, RunRole, Uid};

/// A database of its own.
pub(crate) struct TestDatabase {
    pub(crate) db: Db,
    /// `None` of the server that all tests share.
    own_server: Option<ManagedPostgres>,
    _folder: tempfile::TempDir,
}

impl TestDatabase {
    /// `name` is that of the test. `make test` gives all tests one server, which it stops itself.
    pub(crate) async fn start(name: &str) -> Self {
        let shared = std::env::var_os("HILUM_TEST_POSTGRES_FOLDER").map(PathBuf::from);
        let folder = tempfile::Builder::new().prefix("hilum-test-db").tempdir_in("/tmp").unwrap();
        fs_err::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = ManagedPostgresOptions::throw_away(shared.as_deref().unwrap_or(folder.path()));
        options.database_name = format!("hilum_db_{name}_{}", std::process::id());
        let server = ManagedPostgres::start(&options).await.unwrap();
        let db = Db::connect_lazy(&server.connection_url(), 4).unwrap();
        db.migrate().await.unwrap();
        Self { db, own_server: shared.is_none().then_some(server), _folder: folder }
    }

    /// Ends it; a server that others use goes on.
    pub(crate) async fn stop(self) {
        self.db.close().await;
        if let Some(server) = self.own_server {
            server.stop().await.unwrap();
        }
    }
}

/// A study that is being analysed, and its workup, of revision 1.
pub(crate) async fn workup(db: &Db, study_instance_uid: &str) -> Uuid {
    let workup_id = Uuid::now_v7();
    sqlx::query(
        "insert into study (study_instance_uid, first_received_at, last_received_at) values ($1, now(), now())",
    )
    .bind(study_instance_uid)
    .execute(db.pool())
    .await
    .unwrap();
    sqlx::query(
        "insert into workup (id, study_instance_uid, local_ae_title, state, state_words, revision, calling_ae_title,
                             first_object_at, last_object_at, due_at)
         values ($1, $2, 'HILUM', 'analysing', 'analysing', 1, 'DX_ROOM_1', now(), now(), now())",
    )
    .bind(workup_id)
    .bind(study_instance_uid)
    .execute(db.pool())
    .await
    .unwrap();
    workup_id
}

/// The header of a Computed Radiography image that says no more of itself than it must. Its series follows from its study.
pub(crate) fn header(sop_instance_uid: &str, study_instance_uid: &str) -> ObjectHeader {
    let uid = |text: &str| Uid::new(text).unwrap();
    ObjectHeader {
        sop_class_uid: uid("1.2.840.10008.5.1.4.1.1.1"),
        sop_instance_uid: uid(sop_instance_uid),
        study_instance_uid: uid(study_instance_uid),
        series_instance_uid: uid(&format!("{study_instance_uid}.1")),
        modality: None,
        patient_id: None,
        patient_name: None,
        patient_birth_date: None,
        patient_sex: None,
        accession_number: None,
        study_date: None,
        study_time: None,
        study_description: None,
        series_number: None,
        series_description: None,
        instance_number: None,
        body_part_examined: None,
        device_uid: None,
    }
}

/// A run of bundle `cxr` on revision 1 of a workup, with three attempts and no destination.
pub(crate) const fn new_run(workup_id: Uuid) -> run::NewRun<'static> {
    run::NewRun {
        workup_id,
        revision: 1,
        bundle: "cxr",
        role: RunRole::Live,
        pipeline: Pipeline::ChestRadiograph,
        priority: RunPriority::Routine,
        destinations: &[],
        rules: &[],
        maximum_attempts: 3,
    }
}

/// Ends an attempt with the outcome of `record`, and gives the role that the run has then.
pub(crate) async fn finish(db: &Db, claimed: &run::ClaimedRun, record: &RunRecord) -> Option<RunRole> {
    let finished = run::Finished {
        outcome: &record.outcome,
        bundle: &record.bundle,
        configuration_sha256: record.configuration_sha256,
        result_key: record.result_key,
        stage_milliseconds: &[],
        computed_with: &record.computed_with,
        masks: None,
    };
    run::finish(&mut db.acquire().await.unwrap(), claimed.id, claimed.attempt, &finished).await.unwrap()
}
