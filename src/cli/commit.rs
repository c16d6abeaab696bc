//! `hilum commit`: asks a peer whether it keeps objects (Storage Commitment) and shows its answer.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    Global, echo,
    failure::{Usage, hinted},
    output::{Table, count, print, print_json},
    peer,
    send::files,
    store::Store,
    tls,
};
use crate::{
    config::Config,
    db::{self, DbError, commitment, commitment::AskedInstance},
    dimse::{
        Association, AssociationRequestor, RequestorTimeouts, ServiceFailure,
        status::{self, InWords},
    },
    types::{AeTitle, CommitmentRequest, FailureReason, SopReference, Uid},
};

/// How long the association is held open for a report on it, before the peer is left to call the node.
const ON_THE_SAME_ASSOCIATION: Duration = Duration::from_secs(10);

/// Pause between two looks at what the node has taken.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Name of the peer
    peer: String,
    /// DICOM files, or folders with such
    #[arg(value_name = "FILE", required_unless_present = "study", conflicts_with = "study")]
    paths: Vec<PathBuf>,
    /// Everything that this node has of the study: images and results
    #[arg(long, value_name = "UID")]
    study: Option<Uid>,
    /// Call as this AE title, to which the peer reports [default: the first enabled local AE]
    #[arg(long, value_name = "TITLE")]
    calling: Option<AeTitle>,
    /// How long to wait for the report
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: u64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(global: &Global, options: &Options) -> anyhow::Result<()> {
    let config = global.load()?;
    let store = Store::open(&config).await?;
    let asked = ask(&config, &store, options).await;
    store.close().await?;
    let (transaction_uid, instances) = asked?;
    if options.json {
        print_json(&to_json(&transaction_uid, &instances))?;
    } else {
        print(&table(&instances))?;
    }
    let n_open = instances.iter().filter(|one| one.answer.as_deref() != Some("committed")).count();
    anyhow::ensure!(n_open == 0, "peer `{}` does not keep {}", options.peer, count(n_open, "instance"));
    Ok(())
}

/// Asks, and waits for the answer whichever way it comes.
async fn ask(config: &Config, store: &Store, options: &Options) -> anyhow::Result<(Uid, Vec<AskedInstance>)> {
    let site = db::site::load(&mut *store.db.acquire().await?).await?;
    let (peer, address) = peer::find_callable(&site, &options.peer)?;
    let calling = peer::calling_as(&site, options.calling.clone())?;
    let request = CommitmentRequest {
        transaction_uid: Uid::from_uuid(Uuid::new_v4()),
        instances: instances(store, options).await?,
    };
    // Noted before it is asked: the report may come to the running node before the answer comes here.
    let mut tx = store.db.begin().await?;
    commitment::ask(&mut tx, peer.ae_title.as_str(), calling.as_str(), None, &request).await?;
    tx.commit().await.map_err(DbError::from)?;
    let timeout = echo::DEFAULT_TIMEOUT;
    let mut association =
        AssociationRequestor::new(calling.clone(), peer.ae_title.clone(), address.host.as_str(), address.port)
            .with_timeouts(RequestorTimeouts { connect: timeout, acse: timeout, dimse: timeout * 3 })
            .with_tls(tls::client_for(config, peer)?)
            .propose_commitment()
            .establish()
            .await?;
    let response = association.request_commitment(&request).await?;
    if status::category(response.status) == status::Category::Failure {
        let _ = association.release().await;
        anyhow::bail!("peer `{}` answers N-ACTION with {}; look into its log", options.peer, InWords(response.status));
    }
    let deadline = Instant::now() + Duration::from_secs(options.wait);
    let patience = ON_THE_SAME_ASSOCIATION.min(Duration::from_secs(options.wait));
    let transaction_uid = request.transaction_uid.as_str();
    take_report(store, association, peer.ae_title.as_str(), transaction_uid, patience).await?;
    loop {
        if let Some(answer) = commitment::answer(&mut *store.db.acquire().await?, transaction_uid).await? {
            return Ok((request.transaction_uid, answer));
        }
        if Instant::now() >= deadline {
            return Err(hinted(
                anyhow::anyhow!("peer `{}` has not reported within {} s", options.peer, options.wait),
                format!(
                    "it reports to `{calling}` at this node's DICOM port: check that the node runs, that the peer knows \
                     where it is, and that it may store (`hilum peer list`)"
                ),
            ));
        }
        sleep(LOOK).await;
    }
}

/// Waits a little for a report on the association on which we have asked, and ends it. It ends early when the report has
/// come to the node meanwhile.
async fn take_report(
    store: &Store,
    mut association: Association,
    peer_ae_title: &str,
    transaction_uid: &str,
    patience: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    let received = loop {
        match association.next_report(LOOK).await {
            Ok(Some(received)) => break received,
            Ok(None) => {}
            // The peer has ended the association: it reports on another one.
            Err(_) => return Ok(()),
        }
        let is_answered = commitment::answer(&mut *store.db.acquire().await?, transaction_uid).await?.is_some();
        if is_answered || Instant::now() >= deadline {
            let _ = association.release().await;
            return Ok(());
        }
    };
    let kept = match received.read() {
        Ok(report) => {
            let mut tx = store.db.begin().await?;
            let is_known = commitment::answered(&mut tx, peer_ae_title, report).await?;
            tx.commit().await.map_err(DbError::from)?;
            is_known.then_some(()).ok_or_else(ServiceFailure::unknown_transaction)
        }
        Err(failure) => Err(failure),
    };
    association.answer_report(received, kept).await?;
    let _ = association.release().await;
    Ok(())
}

async fn instances(store: &Store, options: &Options) -> anyhow::Result<Vec<SopReference>> {
    if let Some(study) = &options.study {
        let instances = commitment::instances_of_study(&mut *store.db.acquire().await?, study.as_str()).await?;
        anyhow::ensure!(
            !instances.is_empty(),
            "this node has nothing of study {study}; `hilum studies` lists what it has"
        );
        return Ok(instances);
    }
    let paths = options.paths.clone();
    let found = tokio::task::spawn_blocking(move || files::find(&paths)).await??;
    if let Some(unusable) = found.unusable.first() {
        return Err(Usage(format!("{}: {}", unusable.path.display(), unusable.reason)).into());
    }
    let mut instances: Vec<SopReference> = found
        .files
        .into_iter()
        .map(|file| SopReference { sop_class_uid: file.sop_class_uid, sop_instance_uid: file.sop_instance_uid })
        .collect();
    instances.sort();
    instances.dedup();
    if instances.is_empty() {
        return Err(Usage("there is no DICOM file under these paths".to_owned()).into());
    }
    Ok(instances)
}

fn words(instance: &AskedInstance) -> String {
    match (instance.answer.as_deref(), instance.failure_reason.and_then(|reason| u16::try_from(reason).ok())) {
        (Some("committed"), _) => "kept".to_owned(),
        (Some(_), Some(reason)) => format!("not kept: {}", FailureReason(reason)),
        (Some(_), None) => "not kept".to_owned(),
        (None, _) => "not mentioned".to_owned(),
    }
}

fn table(instances: &[AskedInstance]) -> String {
    let mut table = Table::new(&["SOP INSTANCE UID", "ANSWER"]);
    for instance in instances {
        table.row([instance.sop_instance_uid.clone(), words(instance)]);
    }
    table.render("nothing was asked")
}

fn to_json(transaction_uid: &Uid, instances: &[AskedInstance]) -> serde_json::Value {
    let instance = |one: &AskedInstance| {
        json!({
            "sop_instance_uid": one.sop_instance_uid,
            "answer": one.answer,
            "failure_reason": one.failure_reason,
        })
    };
    json!({
        "transaction_uid": transaction_uid.as_str(),
        "instances": instances.iter().map(instance).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_words() {
        let instance = |uid: &str, answer: Option<&str>, failure_reason| AskedInstance {
            sop_instance_uid: uid.into(),
            answer: answer.map(str::to_owned),
            failure_reason,
        };
        let instances = [
            instance("1.2.1", Some("committed"), None),
            instance("1.2.2", Some("failed"), Some(0x0112)),
            instance("1.2.3", Some("failed"), Some(0x9999)),
            instance("1.2.4", None, None),
        ];
        insta::assert_snapshot!(table(&instances), @"
        SOP INSTANCE UID  ANSWER
        1.2.1             kept
        1.2.2             not kept: 0x0112 (no such object instance)
        1.2.3             not kept: 0x9999 (a reason that the standard does not know)
        1.2.4             not mentioned
        ");
    }
}
