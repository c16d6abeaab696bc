//! Is a SOP Instance UID known with other bytes? Asked before Success, for peers whose duplicates are refused.
//!
//! Postgres knows, a moment late: what was acknowledged in the last moments is remembered here. When Postgres cannot be
//! asked in time, the answer is "unknown" and the object is kept: receiving needs no database.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    db::{Db, instance},
    types::{AeTitle, Sha256Digest, StoredObject, Uid},
};

/// Longest wait for Postgres's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long Postgres is not asked again after it did not answer: a sender must not wait with every object.
const PAUSE: Duration = Duration::from_secs(10);
/// Objects that are remembered.
const REMEMBERED: usize = 20_000;

/// What is known of a SOP Instance UID at a local AE.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Nothing, or the same bytes. Held until the object is stored, so that no other of its UID slips in meanwhile.
    New { _claim: Option<Claim> },
    /// Other bytes are kept under it.
    OtherBytes,
    /// Postgres cannot be asked.
    Unknown { reason: String },
}

type Key = (Uid, AeTitle);

#[derive(Debug, Default)]
struct Recent {
    stored: HashMap<Key, Vec<Sha256Digest>>,
    /// In the order in which they are forgotten.
    order: VecDeque<Key>,
    /// Being stored now, by refusing peers.
    claimed: HashMap<Key, Sha256Digest>,
    /// Postgres did not answer: not asked before this.
    ask_again_at: Option<Instant>,
}

/// A SOP Instance UID that is being stored; free again when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    recent: Arc<Mutex<Recent>>,
    key: Key,
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.recent).claimed.remove(&self.key);
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone)]
pub(super) struct KnownObjects {
    db: Db,
    recent: Arc<Mutex<Recent>>,
}

impl KnownObjects {
    pub(super) fn new(db: Db) -> Self {
        Self { db, recent: Arc::default() }
    }

    /// Remembers what was acknowledged.
    pub(super) fn stored(&self, object: &StoredObject) {
        let key = (object.header.sop_instance_uid.clone(), object.origin.called_ae_title.clone());
        let mut recent = lock(&self.recent);
        let digests = recent.stored.entry(key.clone()).or_default();
        if digests.contains(&object.sha256) {
            return;
        }
        digests.push(object.sha256);
        recent.order.push_back(key);
        if recent.order.len() > REMEMBERED
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.stored.remove(&oldest);
        }
    }

    /// Whether other bytes are known. Waits for Postgres at most [`PATIENCE`].
    pub(super) async fn ask(&self, sop_instance_uid: &Uid, local_ae_title: &AeTitle, sha256: Sha256Digest) -> Verdict {
        let key = (sop_instance_uid.clone(), local_ae_title.clone());
        let claim = {
            let mut recent = lock(&self.recent);
            match recent.stored.get(&key) {
                Some(digests) if !digests.contains(&sha256) => return Verdict::OtherBytes,
                _ => {}
            }
            match recent.claimed.get(&key) {
                // The other one may still fail: the sender will come again and learn which.
                Some(other) if *other != sha256 => return Verdict::OtherBytes,
                Some(_) => None,
                None => {
                    recent.claimed.insert(key.clone(), sha256);
                    Some(Claim { recent: Arc::clone(&self.recent), key })
                }
            }
        };
        if lock(&self.recent).ask_again_at.is_some_and(|ask_again_at| Instant::now() < ask_again_at) {
            return Verdict::Unknown { reason: "it did not answer a moment ago".to_owned() };
        }
        let asked = async {
            let mut connection = self.db.acquire().await?;
            instance::has_other_bytes(&mut connection, sop_instance_uid, local_ae_title, &sha256).await
        };
        let reason = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(true)) => return Verdict::OtherBytes,
            Ok(Ok(false)) => return Verdict::New { _claim: claim },
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        lock(&self.recent).ask_again_at = Some(Instant::now() + PAUSE);
        Verdict::Unknown { reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{db::testing::header, types::ObjectOrigin};

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn title() -> AeTitle {
        AeTitle::new("HILUM").unwrap()
    }

    fn known() -> KnownObjects {
        KnownObjects::new(Db::connect_lazy("postgres://nobody@127.0.0.1:1/none", 1).unwrap())
    }

    fn object(number: usize, digest: u8) -> StoredObject {
        StoredObject {
            archive_key: format!("objects/2026/11/22/09/{number}.dcm"),
            sha256: Sha256Digest([digest; 32]),
            size_bytes: 1,
            transfer_syntax_uid: uid("1.2.840.10008.1.2.1"),
            origin: ObjectOrigin {
                calling_ae_title: AeTitle::new("CT01").unwrap(),
                called_ae_title: title(),
                peer_address: "127.0.0.1".parse().unwrap(),
                association_id: uuid::Uuid::nil(),
                received_at: time::OffsetDateTime::UNIX_EPOCH,
            },
            header: header(&format!("1.2.3.{number}"), "1.2.3"),
        }
    }

    #[tokio::test]
    async fn what_was_just_acknowledged_is_known_without_postgres() {
        let known = known();
        known.stored(&object(5, 1));
        assert!(matches!(known.ask(&uid("1.2.3.5"), &title(), Sha256Digest([2; 32])).await, Verdict::OtherBytes));
        let other_title = AeTitle::new("OTHER").unwrap();
        let other = known.ask(&uid("1.2.3.5"), &other_title, Sha256Digest([2; 32])).await;
        assert!(matches!(other, Verdict::Unknown { .. }), "{other:?}");
        // A version that was kept for another peer is no duplicate of itself.
        known.stored(&object(5, 2));
        assert!(!matches!(known.ask(&uid("1.2.3.5"), &title(), Sha256Digest([2; 32])).await, Verdict::OtherBytes));
    }

    #[tokio::test]
    async fn a_postgres_that_does_not_answer_is_left_alone_for_a_while() {
        let known = known();
        let first = known.ask(&uid("1.2.3.5"), &title(), Sha256Digest([1; 32])).await;
        assert!(matches!(first, Verdict::Unknown { .. }), "{first:?}");
        let started = Instant::now();
        match known.ask(&uid("1.2.3.6"), &title(), Sha256Digest([1; 32])).await {
            Verdict::Unknown { reason } => assert!(reason.contains("a moment ago"), "{reason}"),
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() < PATIENCE);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let known = known();
        for number in 0..REMEMBERED + 10 {
            known.stored(&object(number, 1));
        }
        let recent = lock(&known.recent);
        assert_eq!((recent.order.len(), recent.stored.len()), (REMEMBERED, REMEMBERED));
        assert!(!recent.stored.contains_key(&(uid("1.2.3.0"), title())));
    }
}
