//! The job `ask_source`: asks a sender how many instances a study has.
//!
//! It has workers of its own: a sender that does not answer takes no place from the decisions on other senders' studies.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::CompleteWorkup;
use crate::{
    db::workup::{self, SourceAnswer},
    jobs::{self, Job, JobHandler},
    types::{AeTitle, Peer},
};

/// Longest time that a sender may take to say how many instances it has.
const PATIENCE: Duration = Duration::from_secs(20);
/// A question in vain that took so long is not repeated for [`LEFT_ALONE`], whatever the study.
const SLOW: Duration = Duration::from_secs(2);
/// How long a sender that does not answer is asked nothing.
const LEFT_ALONE: Duration = Duration::from_mins(1);

/// A question to the sender of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceQuestion {
    /// Who is asked.
    pub peer: Peer,
    /// Our AE title that the study was sent to; we ask as it.
    pub calling_ae_title: AeTitle,
    /// (0020,000D)
    pub study_instance_uid: String,
}

/// Asks a sender how many instances of a study it has.
pub trait CountAtSource: Send + Sync + 'static {
    /// The number, or why there is none, in words without patient data.
    fn count(&self, question: SourceQuestion) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>>;
}

/// Asks senders and notes what they say.
pub struct AskSource {
    /// Whose question it is.
    complete: CompleteWorkup,
    /// Who asks.
    source: Arc<dyn CountAtSource>,
    /// Peers that did not answer, by name, and since when.
    silent: Mutex<BTreeMap<String, Instant>>,
}

impl AskSource {
    /// Asks for `complete` through `source`.
    #[must_use]
    pub fn new(complete: CompleteWorkup, source: Arc<dyn CountAtSource>) -> Self {
        Self { complete, source, silent: Mutex::default() }
    }

    async fn serve(&self, workup_id: Uuid) -> anyhow::Result<()> {
        let Some(question) = self.complete.look(workup_id).await? else { return Ok(()) };
        let asked_at = OffsetDateTime::now_utc();
        let outcome = self.ask(question).await;
        let db = &self.complete.db;
        let mut connection = db.acquire().await?;
        workup::source_answered(&mut connection, workup_id, &SourceAnswer { asked_at, outcome }).await?;
        Ok(jobs::queue(&mut connection, db, &Job::CompleteWorkup(workup_id), None).await?)
    }

    async fn ask(&self, question: SourceQuestion) -> Result<u64, String> {
        let name = question.peer.name.clone();
        let since = self.silent(|silent| silent.get(&name).map(Instant::elapsed));
        if let Some(since) = since.filter(|since| *since < LEFT_ALONE) {
            return Err(format!("it did not answer {} s ago and is left alone for a minute", since.as_secs()));
        }
        let started = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, self.source.count(question)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
        self.silent(|silent| match outcome {
            Err(_) if started.elapsed() >= SLOW => silent.insert(name, Instant::now()),
            _ => silent.remove(&name),
        });
        outcome
    }

    fn silent<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Instant>) -> T) -> T {
        work(&mut self.silent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl JobHandler for AskSource {
    fn run(&self, id: String) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send + '_>> {
        Box::pin(async move { self.serve(id.parse().context("read the workup id")?).await })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::db::Db;

    /// Answers one peer after the patience of anybody, the other at once.
    #[derive(Default)]
    struct Source(AtomicUsize);

    impl CountAtSource for Source {
        fn count(&self, question: SourceQuestion) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send + '_>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                if question.peer.name == "dead" {
                    std::thread::sleep(SLOW);
                    return Err("the firewall says nothing".to_owned());
                }
                Err("it does not know the study".to_owned())
            })
        }
    }

    #[tokio::test]
    async fn a_sender_that_does_not_answer_is_left_alone_and_others_are_asked() {
        let complete = CompleteWorkup {
            db: Db::connect_lazy("postgres://nobody@127.0.0.1:1/none", 1).unwrap(),
            maximum_attempts: 3,
        };
        let source = Arc::new(Source::default());
        let asking = AskSource::new(complete, Arc::clone(&source) as Arc<dyn CountAtSource>);
        let question = |name: &str| SourceQuestion {
            peer: Peer::new(name, AeTitle::new("CT01").unwrap(), "127.0.0.1"),
            calling_ae_title: AeTitle::new("HILUM").unwrap(),
            study_instance_uid: "1.2.3".to_owned(),
        };
        let mut heard = Vec::new();
        for name in ["dead", "dead", "alive", "alive", "dead"] {
            heard.push(asking.ask(question(name)).await.unwrap_err());
        }
        assert_eq!(source.0.load(Ordering::SeqCst), 3, "the dead one is asked once: {heard:?}");
        assert!(heard[1].contains("left alone for a minute") && heard[4].contains("left alone"), "{heard:?}");
        assert_eq!(heard[2..4], ["it does not know the study"; 2]);
    }
}
