//! Refusals on their way to Postgres: counted in memory by what they have in common, written every moment, kept while
//! Postgres is away, and bounded. Neither waits nor fails where they happen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::receiver::DRAIN_GRACE;
use crate::{
    db::{
        Db, DbError,
        refusal::{self, CountedRefusal},
    },
    telemetry::Metrics,
    types::{PeerOffer, Refusal, RefusalKey, RefusalKind},
};

/// Kinds of refusals that wait for Postgres at most. What is alike needs no further room, however often it comes.
const MAX_PENDING: usize = 1000;
/// Peers whose latest offers wait at most.
const MAX_OFFERS: usize = 200;
/// How long alike refusals are counted before they are written.
const GATHERING: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Pending {
    refusals: HashMap<(RefusalKey, bool, Option<String>), CountedRefusal>,
    offers: HashMap<String, PeerOffer>,
}

impl Pending {
    /// Counts it with what is alike. Returns whether there was room.
    fn add(&mut self, new: CountedRefusal) -> bool {
        let Refusal { key, harmless, expected, .. } = &new.last;
        // One reason has several causes: a limit in number and one in time. What was expected tells them apart.
        let expected = (key.kind == RefusalKind::Association).then(|| expected.clone());
        let key = (key.clone(), *harmless, expected);
        if let Some(known) = self.refusals.get_mut(&key) {
            known.count += new.count;
            known.first_at = known.first_at.min(new.first_at);
            if known.last.at <= new.last.at {
                known.last = new.last;
            }
            return true;
        }
        let has_room = self.refusals.len() < MAX_PENDING;
        if has_room {
            self.refusals.insert(key, new);
        }
        has_room
    }

    fn add_offer(&mut self, offer: PeerOffer) {
        let has_room = self.offers.len() < MAX_OFFERS;
        match self.offers.get_mut(&offer.calling_ae_title) {
            Some(known) if known.at <= offer.at => *known = offer,
            None if has_room => drop(self.offers.insert(offer.calling_ae_title.clone(), offer)),
            _ => {}
        }
    }
}

#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    changed: Notify,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, refusals: impl IntoIterator<Item = CountedRefusal>) {
        let mut pending = self.pending();
        for refusal in refusals {
            let count = refusal.count;
            if !pending.add(refusal) {
                self.metrics.refusals_dropped(count);
            }
        }
    }
}

/// The way in: never waits, never fails.
#[derive(Debug, Clone)]
pub struct RefusalLog {
    shared: Arc<Shared>,
}

impl RefusalLog {
    /// Writes down what was refused.
    pub fn refused(&self, refusals: impl IntoIterator<Item = Refusal>) {
        let counted = |last: Refusal| CountedRefusal { first_at: last.at, last, count: 1 };
        self.shared.add(refusals.into_iter().map(counted));
        self.shared.changed.notify_one();
    }

    /// Writes down what an admitted peer offered.
    pub fn offered(&self, offer: PeerOffer) {
        self.shared.pending().add_offer(offer);
        self.shared.changed.notify_one();
    }
}

/// Writes them into Postgres.
#[derive(Debug)]
pub struct RefusalWriter {
    db: Db,
    node: String,
    shared: Arc<Shared>,
}

impl RefusalWriter {
    /// A writer for the node of this name, and the log that feeds it.
    #[must_use]
    pub fn new(db: Db, node: String, metrics: Arc<Metrics>) -> (Self, RefusalLog) {
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Notify::new(), metrics });
        (Self { db, node, shared: Arc::clone(&shared) }, RefusalLog { shared })
    }

    /// Writes until `shutdown`, then what is left, for a few seconds.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut pause = GATHERING;
        let mut reachable = true;
        while !shutdown.is_cancelled() {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = self.shared.changed.notified() => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            match self.write().await {
                Ok(()) => (reachable, pause) = (true, GATHERING),
                Err(error) => {
                    if std::mem::take(&mut reachable) {
                        tracing::warn!(%error, "cannot write refusals down; they are in the log, trying again");
                    }
                    pause = (pause * 2).min(Duration::from_secs(5));
                    self.shared.changed.notify_one();
                }
            }
        }
        let written = tokio::time::timeout(DRAIN_GRACE, self.write()).await;
        if !matches!(written, Ok(Ok(()))) {
            tracing::warn!("the last refusals are not written down; they are in the log");
        }
    }

    /// Writes what waits. What Postgres does not take now waits again; what it will never take is left out.
    async fn write(&self) -> Result<(), DbError> {
        let Pending { refusals, offers } = std::mem::take(&mut *self.shared.pending());
        if refusals.is_empty() && offers.is_empty() {
            return Ok(());
        }
        let refusals: Vec<CountedRefusal> = refusals.into_values().collect();
        let offers: Vec<PeerOffer> = offers.into_values().collect();
        let error = match self.write_all(&refusals, &offers).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if error.is_about_the_data() {
            tracing::error!(%error, "Postgres refuses the words of refusals; they are left out");
            self.shared.metrics.refusals_dropped(refusals.iter().map(|refusal| refusal.count).sum());
            return Ok(());
        }
        self.shared.add(refusals);
        let mut pending = self.shared.pending();
        for offer in offers {
            pending.add_offer(offer);
        }
        Err(error)
    }

    async fn write_all(&self, refusals: &[CountedRefusal], offers: &[PeerOffer]) -> Result<(), DbError> {
        let mut tx = self.db.begin().await?;
        refusal::record(&mut tx, &self.node, refusals).await?;
        refusal::keep_offers(&mut tx, offers).await?;
        Ok(tx.commit().await?)
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::types::RefusalKind;

    fn refusal(title: &str, second: i64) -> Refusal {
        Refusal {
            key: RefusalKey {
                kind: RefusalKind::Association,
                reason: "calling_ae_title",
                peer_address: "192.0.2.7".parse().unwrap(),
                calling_ae_title: title.to_owned(),
                called_ae_title: "HILUM".into(),
                sop_class_uid: String::new(),
            },
            expected: "e".into(),
            received: format!("at second {second}"),
            remedy: "do".into(),
            harmless: false,
            example: None,
            at: OffsetDateTime::from_unix_timestamp(second).unwrap(),
        }
    }

    #[tokio::test]
    async fn a_flood_is_counted_in_one_place_and_strangers_beyond_the_bound_are_counted_too() {
        let metrics = Arc::new(Metrics::new());
        let db = Db::connect_lazy("postgres://nobody@127.0.0.1:1/none", 1).unwrap();
        let (writer, log) = RefusalWriter::new(db, "test".into(), Arc::clone(&metrics));
        log.refused((1..=100_000).map(|second| refusal("FLOOD", second)));
        assert_eq!(log.shared.pending().refusals.len(), 1);
        // Postgres is away: nothing is lost, and nothing counted twice.
        assert!(writer.write().await.is_err());
        {
            let pending = log.shared.pending();
            let flood = pending.refusals.values().next().unwrap();
            assert_eq!((flood.count, flood.first_at.unix_timestamp()), (100_000, 1));
            assert_eq!(flood.last.received, "at second 100000");
        }
        for number in 1..MAX_PENDING + 5 {
            log.refused([refusal(&format!("SCAN{number}"), 1)]);
        }
        assert_eq!(log.shared.pending().refusals.len(), MAX_PENDING);
        assert!(metrics.encode().contains("hilum_refusals_dropped_total 5"), "{}", metrics.encode());
        log.refused([refusal("FLOOD", 200_000)]);
        assert!(metrics.encode().contains("hilum_refusals_dropped_total 5"), "what is known needs no room");
    }

    #[test]
    fn the_latest_offer_of_a_peer_is_kept() {
        let offer = |second| PeerOffer {
            calling_ae_title: "CT01".into(),
            peer_address: "192.0.2.7".parse().unwrap(),
            called_ae_title: "HILUM".into(),
            implementation_class_uid: None,
            implementation_version_name: None,
            max_pdu_length_bytes: 0,
            contexts: Vec::new(),
            at: OffsetDateTime::from_unix_timestamp(second).unwrap(),
        };
        let mut pending = Pending::default();
        for second in [5, 9, 7] {
            pending.add_offer(offer(second));
        }
        assert_eq!(pending.offers["CT01"].at.unix_timestamp(), 9);
    }
}
