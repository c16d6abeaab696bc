//! The job `deliver`: sends everything that is due for one destination on one association.

use std::{future::Future, io, pin::Pin, sync::Arc, time::Duration};

use anyhow::Context as _;
use time::OffsetDateTime;
use tokio::io::AsyncReadExt as _;

use super::{Caller, Verdict, backoff, opened, verdict};
use crate::{
    archive::Archive,
    db::{self, Db, delivery, delivery::DueDelivery, event},
    dimse::{Association, RequestError, StoreSource, status},
    jobs::{self, Job, JobHandler},
    telemetry::{DeliveryEnd, Metrics, events},
    types::{Destination, DestinationKind, Peer, SiteConfig, Uid},
};

/// How deliveries are made.
#[derive(Debug, Clone, Copy)]
pub struct DeliverSettings {
    /// A delivery older than this is given up.
    pub maximum_age: Duration,
    /// Pause after the first failure.
    pub initial_backoff: Duration,
    /// Longest pause.
    pub maximum_backoff: Duration,
}

/// Deliveries that go on one association.
const BATCH: i64 = 50;

/// Drains the ledger of one destination.
#[derive(Clone)]
pub struct Deliver {
    /// Where the rows are.
    pub db: Db,
    /// Where the files are.
    pub archive: Archive,
    /// Limits and pauses.
    pub settings: DeliverSettings,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Calls the destination.
    pub caller: Caller,
}

/// How one attempt ended.
struct Answer {
    verdict: Verdict,
    status: Option<u16>,
    words: String,
    /// The peer's own text, which may name the patient: kept with the event in Postgres, never logged or shown.
    peer_comment: Option<String>,
    /// The association is of no more use.
    broken: bool,
}

impl Answer {
    fn retry(words: String) -> Self {
        Self { verdict: Verdict::Retry, status: None, words, peer_comment: None, broken: true }
    }

    fn dead(words: String) -> Self {
        Self { verdict: Verdict::Dead, status: None, words, peer_comment: None, broken: false }
    }
}

impl JobHandler for Deliver {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.drain(&id).await })
    }
}

impl Deliver {
    async fn drain(&self, destination_name: &str) -> anyhow::Result<()> {
        loop {
            let (due, site) = {
                let mut connection = self.db.acquire().await?;
                (delivery::due(&mut connection, destination_name, BATCH).await?, db::site::load(&mut connection).await?)
            };
            if due.is_empty() {
                break;
            }
            match target(&site, destination_name) {
                Ok((destination, peer)) => self.send_batch(&due, destination, peer).await?,
                Err(words) => {
                    for delivery in &due {
                        if let Some(attempt) = self.start(delivery).await? {
                            let answer = Answer { broken: false, ..Answer::retry(words.clone()) };
                            self.close(delivery, destination_name, attempt, answer).await?;
                        }
                    }
                }
            }
        }
        let mut tx = self.db.begin().await?;
        if let Some(next) = delivery::next_due_at(&mut tx, destination_name).await? {
            jobs::queue(&mut tx, &self.db, &Job::Deliver(destination_name.to_owned()), Some(next)).await?;
        }
        tx.commit().await.context("commit")
    }

    /// Counts the attempt, durably, before anything is sent.
    async fn start(&self, delivery: &DueDelivery) -> anyhow::Result<Option<i32>> {
        let mut tx = self.db.begin().await?;
        let attempt = delivery::start(&mut tx, delivery).await?;
        tx.commit().await.context("commit")?;
        Ok(attempt)
    }

    /// Sends what is due on one association, in order. When the association cannot be had or breaks, the rest of
    /// the batch waits with the one that failed: it would fail the same way.
    async fn send_batch(&self, due: &[DueDelivery], destination: &Destination, peer: &Peer) -> anyhow::Result<()> {
        let mut association = match self.associate(due, destination, peer).await {
            Ok(association) => {
                opened(&self.db, &peer.name, association.peer(), association.contexts()).await;
                Ok(association)
            }
            Err(error) => Err(error.to_string()),
        };
        for delivery in due {
            let Some(attempt) = self.start(delivery).await? else { continue };
            let answer = match &mut association {
                Ok(association) => self.send(association, delivery).await,
                Err(words) => Answer::retry(words.clone()),
            };
            if answer.broken
                && association.is_ok()
                && let Ok(broken) = std::mem::replace(&mut association, Err(answer.words.clone()))
            {
                broken.abort().await;
            }
            self.close(delivery, &destination.name, attempt, answer).await?;
        }
        if let Ok(association) = association
            && let Err(error) = association.release().await
        {
            tracing::debug!(destination = destination.name, %error, "the association was not released in order");
        }
        Ok(())
    }

    async fn associate(
        &self,
        due: &[DueDelivery],
        destination: &Destination,
        peer: &Peer,
    ) -> anyhow::Result<Association> {
        let mut requestor = self.caller.requestor(destination.calling_ae_title.clone(), peer)?;
        for delivery in due {
            requestor = requestor.propose(&delivery.sop_class_uid, &[&delivery.transfer_syntax_uid]);
        }
        Ok(requestor.establish().await?)
    }

    async fn send(&self, association: &mut Association, delivery: &DueDelivery) -> Answer {
        let source = match self.open(delivery).await {
            Ok(source) => source,
            // Too many open files or a disk that is away is not the end of a result; a missing or foreign file is.
            Err(error) => {
                let words = format!("the result's file cannot be read: {error:#}");
                let gone = error.downcast_ref::<io::Error>().is_none_or(|error| {
                    matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                    )
                });
                return if gone { Answer::dead(words) } else { Answer { broken: false, ..Answer::retry(words) } };
            }
        };
        match association.store(source).await {
            Ok(response) => Answer {
                verdict: verdict(response.status),
                status: Some(response.status),
                words: status::InWords(response.status).to_string(),
                peer_comment: response.error_comment.filter(|comment| !comment.is_empty()),
                broken: false,
            },
            // The peer may be configured to accept it one day; until then the others of this association go on.
            Err(error @ RequestError::NoContext { .. }) => Answer { broken: false, ..Answer::retry(error.to_string()) },
            Err(error) => Answer::retry(error.to_string()),
        }
    }

    /// The stored file from its data set on: what was rendered is what is sent.
    async fn open(&self, delivery: &DueDelivery) -> anyhow::Result<StoreSource<tokio::fs::File>> {
        let path = self.archive.path(&delivery.archive_key)?;
        let mut file = tokio::fs::File::open(&path).await.context("open")?;
        let length = file.metadata().await?.len();
        let offset = data_set_offset(&mut file).await.context("read the Part 10 header")?;
        Ok(StoreSource {
            sop_class_uid: Uid::new(&delivery.sop_class_uid)?,
            sop_instance_uid: Uid::new(&delivery.sop_instance_uid)?,
            transfer_syntax_uid: Uid::new(&delivery.transfer_syntax_uid)?,
            data: file,
            length: length.saturating_sub(offset),
        })
    }

    async fn close(
        &self,
        delivery: &DueDelivery,
        destination: &str,
        attempt: i32,
        answer: Answer,
    ) -> anyhow::Result<()> {
        let now = OffsetDateTime::now_utc();
        let age = Duration::try_from(now - delivery.created_at).unwrap_or_default();
        let mut tx = self.db.begin().await?;
        let mut retry_in = None;
        let end = match answer.verdict {
            Verdict::Delivered => {
                let status = answer.status.unwrap_or_default();
                delivery::delivered(&mut tx, delivery, attempt, status, &answer.words).await?;
                DeliveryEnd::Delivered
            }
            Verdict::Retry if age < self.settings.maximum_age => {
                let spread = f64::from(delivery.id.as_bytes()[15]) / 255.0;
                let pause = backoff(attempt, self.settings.initial_backoff, self.settings.maximum_backoff, spread);
                retry_in = Some(pause);
                delivery::retry(&mut tx, delivery, attempt, answer.status, &answer.words, now + pause).await?;
                DeliveryEnd::Retry
            }
            Verdict::Retry => {
                let words = format!(
                    "given up after {attempt} attempts in {} days; run `hilum deliveries --restart-dead {destination}` when the destination works: {}",
                    age.as_secs() / 86_400,
                    answer.words
                );
                delivery::dead(&mut tx, delivery, attempt, answer.status, &words).await?;
                DeliveryEnd::Dead
            }
            Verdict::Dead => {
                delivery::dead(&mut tx, delivery, attempt, answer.status, &answer.words).await?;
                DeliveryEnd::Dead
            }
        };
        if let Some(comment) = &answer.peer_comment {
            let data = serde_json::json!({ "attempt": attempt, "error_comment": comment });
            event::append(
                &mut tx,
                event::Subject::Delivery,
                delivery.id,
                "peer_comment",
                "the destination commented on its answer; the text is in this event's data",
                data,
            )
            .await?;
        }
        tx.commit().await.context("commit")?;
        if let Ok(sop_instance_uid) = Uid::new(&delivery.sop_instance_uid) {
            events::DeliveryEnded {
                delivery_id: delivery.id,
                destination,
                sop_instance_uid: &sop_instance_uid,
                end,
                attempt: u32::try_from(attempt).unwrap_or_default(),
                status: answer.status,
                words: &answer.words,
                retry_in,
            }
            .emit(&self.metrics);
        }
        Ok(())
    }
}

/// The destination and the peer to call, or why there is none, in words.
fn target<'a>(site: &'a SiteConfig, name: &str) -> Result<(&'a Destination, &'a Peer), String> {
    let destination = site.destinations.iter().find(|destination| destination.name == name).ok_or_else(|| {
        format!("destination `{name}` is no longer configured; add it again, or let its deliveries grow old")
    })?;
    let DestinationKind::Dicom = destination.kind;
    let peer =
        site.peers.iter().find(|peer| peer.name == destination.peer).ok_or_else(|| {
            format!("destination `{name}` names peer `{}`, which is not configured", destination.peer)
        })?;
    Ok((destination, peer))
}

/// Leaves the file at its data set and returns the offset: 128 bytes of preamble, `DICM`, and a file meta group
/// of the length that (0002,0000) gives (PS3.10 section 7.1).
async fn data_set_offset(file: &mut tokio::fs::File) -> io::Result<u64> {
    let mut start = [0; 144];
    file.read_exact(&mut start).await?;
    let (prefix, group_length) = (start.get(128..140), start.get(140..144));
    if prefix != Some(b"DICM\x02\x00\x00\x00UL\x04\x00".as_slice()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a Part 10 file"));
    }
    let group_length = group_length.and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map_or(0, u32::from_le_bytes);
    let offset = 144 + u64::from(group_length);
    tokio::io::AsyncSeekExt::seek(file, io::SeekFrom::Start(offset)).await?;
    Ok(offset)
}
