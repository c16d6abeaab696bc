//! Storage Commitment as peers see it: their requests and their reports become rows before they are answered.

use std::time::Duration;

use tokio::time::timeout;

use super::receiver::ReceivingAssociation;
use crate::{
    db::{Db, DbError, commitment},
    dimse::ServiceFailure,
    jobs::{self, Job, JobError},
    types::{CommitmentReport, CommitmentRequest},
};

/// How long Postgres may take before the peer is asked to come again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps a request and queues its report in the same transaction.
pub(super) async fn keep_request(
    db: &Db,
    association: &ReceivingAssociation,
    request: &CommitmentRequest,
) -> Result<(), ServiceFailure> {
    let titles = association.titles()?;
    let peer_address = association.peer_address().to_string();
    let asker = commitment::Asker {
        association_id: association.id(),
        calling_ae_title: titles.0.as_str(),
        local_ae_title: titles.1.as_str(),
        peer_address: &peer_address,
    };
    let kept = in_time(async {
        let mut tx = db.begin().await?;
        let id = commitment::insert(&mut tx, &asker, request).await?;
        jobs::queue(&mut tx, db, &Job::ReportCommitment(id), None).await?;
        tx.commit().await.map_err(DbError::from)?;
        Ok(id)
    })
    .await?;
    tracing::info!(
        association_id = %association.id(),
        commitment_request_id = %kept,
        transaction_uid = %request.transaction_uid,
        instances = request.instances.len(),
        "storage commitment requested"
    );
    Ok(())
}

/// Keeps a peer's report on what we have asked it.
pub(super) async fn keep_report(
    db: &Db,
    association: &ReceivingAssociation,
    report: &CommitmentReport,
) -> Result<(), ServiceFailure> {
    let titles = association.titles()?;
    let is_known = in_time(async {
        let mut tx = db.begin().await?;
        let is_known = commitment::answered(&mut tx, titles.0.as_str(), report).await?;
        tx.commit().await.map_err(DbError::from)?;
        Ok(is_known)
    })
    .await?;
    tracing::info!(
        association_id = %association.id(),
        transaction_uid = %report.transaction_uid,
        committed = report.committed.len(),
        failed = report.failed.len(),
        is_known,
        "storage commitment reported to us"
    );
    if is_known { Ok(()) } else { Err(ServiceFailure::unknown_transaction()) }
}

/// Without Postgres nothing is promised: the peer is told to come again.
async fn in_time<T>(work: impl Future<Output = Result<T, JobError>>) -> Result<T, ServiceFailure> {
    let problem = match timeout(PATIENCE, work).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    tracing::warn!(problem, "a storage commitment message cannot be kept; the peer is asked to send it again");
    Err(ServiceFailure::database_away())
}
