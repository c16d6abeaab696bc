//! One OS thread owns one loaded model.
//!
//! Tensors must not be shared between threads and torch's gradient mode is a property of the thread, so the
//! model is loaded, used and dropped on one thread, and only plain data crosses. Requests wait in a bounded
//! channel; the thread takes what is waiting, up to a limit, as one batch, whoever asked.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot};

use super::error::{NnError, cut};

/// A model on its thread.
pub(super) trait Model {
    /// Plain data.
    type Question: Send + 'static;
    /// Plain data.
    type Answer: Send + 'static;

    /// Answers in the order of the questions, as many as there are.
    fn answer(&self, questions: &[&Self::Question]) -> Result<Vec<Self::Answer>, NnError>;
}

struct Request<Q, A> {
    question: Q,
    reply: oneshot::Sender<Result<A, NnError>>,
}

/// Limits of an owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnerLimits {
    /// Largest batch, at least 1.
    pub(super) max_batch: usize,
    /// Requests that wait in the channel, at least 1.
    pub(super) queue_length: usize,
}

/// The handle of a model's thread. Dropping it answers what waits with [`NnError::Stopped`], waits for the batch
/// that runs, and joins the thread.
pub(super) struct Owner<Q, A> {
    network: String,
    stopping: Arc<AtomicBool>,
    // `None` only while dropping: closing the channel ends the thread.
    requests: Option<mpsc::Sender<Request<Q, A>>>,
    thread: Option<JoinHandle<()>>,
}

impl<Q: Send + 'static, A: Send + 'static> Owner<Q, A> {
    /// Starts the thread, loads the model on it, and waits until that is done.
    pub(super) fn start<M>(
        network: &str,
        limits: OwnerLimits,
        load: impl FnOnce() -> Result<M, NnError> + Send + 'static,
    ) -> Result<Self, NnError>
    where
        M: Model<Question = Q, Answer = A>,
    {
        let (requests, waiting) = mpsc::channel(limits.queue_length.max(1));
        let (loaded, loading) = std::sync::mpsc::sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name(format!("nn {network}").chars().take(15).collect())
            .spawn({
                let network = network.to_owned();
                let stopping = Arc::clone(&stopping);
                move || match guarded(&network, load) {
                    Ok(model) => {
                        if loaded.send(Ok(())).is_ok() {
                            serve(&network, &model, waiting, limits.max_batch.max(1), &stopping);
                        }
                    }
                    Err(error) => {
                        // Nobody listens only if the caller itself is gone.
                        let _ = loaded.send(Err(error));
                    }
                }
            })
            .map_err(|error| NnError::Thread { network: network.to_owned(), reason: error.to_string() })?;
        // From here on dropping `owner` joins the thread, whatever happens.
        let owner = Self { network: network.to_owned(), stopping, requests: Some(requests), thread: Some(thread) };
        loading.recv().map_err(|_| owner.stopped())??;
        Ok(owner)
    }

    /// Queues a question, waiting while the queue is full.
    ///
    /// Cancel safety: dropping the future withdraws the question, unless it is already being answered.
    pub(super) async fn ask(&self, question: Q) -> Result<A, NnError> {
        let answer = self.submit(question).await?;
        answer.await.map_err(|_| self.stopped())?
    }

    async fn submit(&self, question: Q) -> Result<oneshot::Receiver<Result<A, NnError>>, NnError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or_else(|| self.stopped())?;
        requests.send(Request { question, reply }).await.map_err(|_| self.stopped())?;
        Ok(answer)
    }

    fn stopped(&self) -> NnError {
        NnError::Stopped { network: self.network.clone() }
    }
}

impl<Q, A> Drop for Owner<Q, A> {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(network = self.network, "the thread of a network ended by a panic");
        }
    }
}

/// The thread's loop: ends when the channel is closed and empty.
fn serve<M: Model>(
    network: &str,
    model: &M,
    mut waiting: mpsc::Receiver<Request<M::Question, M::Answer>>,
    max_batch: usize,
    stopping: &AtomicBool,
) {
    while let Some(first) = waiting.blocking_recv() {
        let mut requests = vec![first];
        while requests.len() < max_batch
            && let Ok(request) = waiting.try_recv()
        {
            requests.push(request);
        }
        if stopping.load(Ordering::Acquire) {
            for request in requests {
                let _ = request.reply.send(Err(NnError::Stopped { network: network.to_owned() }));
            }
            continue;
        }
        // Whoever has gone away needs no answer.
        requests.retain(|request| !request.reply.is_closed());
        if !requests.is_empty() {
            answer_batch(network, model, requests);
        }
    }
}

fn answer_batch<M: Model>(network: &str, model: &M, requests: Vec<Request<M::Question, M::Answer>>) {
    let questions: Vec<&M::Question> = requests.iter().map(|request| &request.question).collect();
    let result = guarded(network, || model.answer(&questions));
    match result {
        Ok(answers) if answers.len() == requests.len() => {
            for (request, answer) in requests.into_iter().zip(answers) {
                let _ = request.reply.send(Ok(answer));
            }
        }
        // One bad question must not fail its neighbours: each is asked again alone.
        Err(_) if requests.len() > 1 => {
            for request in requests {
                answer_batch(network, model, vec![request]);
            }
        }
        result => {
            let error = result.err().unwrap_or_else(|| NnError::Torch {
                network: network.to_owned(),
                words: "it gave another number of answers than there were questions".to_owned(),
            });
            for request in requests {
                let _ = request.reply.send(Err(error.clone()));
            }
        }
    }
}

/// Runs `work` without recording gradients and turns a panic into an error.
fn guarded<T>(network: &str, work: impl FnOnce() -> Result<T, NnError>) -> Result<T, NnError> {
    // The model is only read: a panic leaves nothing half-written in it.
    catch_unwind(AssertUnwindSafe(|| {
        let _guard = tch::no_grad_guard();
        work()
    }))
    .unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a message");
        Err(NnError::Panic { network: network.to_owned(), words: cut(words) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles; panics at 13; fails batches that contain 7; reports each batch, then waits for the gate.
    struct Doubler {
        entered: std::sync::mpsc::Sender<usize>,
        gate: std::sync::mpsc::Receiver<()>,
    }

    impl Model for Doubler {
        type Question = i32;
        type Answer = i32;

        fn answer(&self, questions: &[&i32]) -> Result<Vec<i32>, NnError> {
            // A test that no longer listens does not care.
            let _ = self.entered.send(questions.len());
            // A gate whose handle is dropped stays open.
            let _ = self.gate.recv();
            assert!(!questions.contains(&&13), "thirteen");
            if questions.contains(&&7) {
                return Err(NnError::Torch { network: "doubler".to_owned(), words: "seven".to_owned() });
            }
            Ok(questions.iter().map(|question| **question * 2).collect())
        }
    }

    struct Setup {
        owner: Owner<i32, i32>,
        /// Sizes of the batches that began.
        entered: std::sync::mpsc::Receiver<usize>,
        gate: std::sync::mpsc::Sender<()>,
    }

    fn setup(max_batch: usize, queue_length: usize) -> Setup {
        let (open, gate) = std::sync::mpsc::channel();
        let (enter, entered) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch, queue_length };
        let owner = Owner::start("doubler", limits, move || Ok(Doubler { entered: enter, gate })).unwrap();
        Setup { owner, entered, gate: open }
    }

    #[tokio::test]
    async fn what_waits_is_answered_together_and_a_bad_question_fails_alone() {
        let Setup { owner, entered, gate } = setup(4, 16);
        let first = owner.submit(1).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let mut answers = vec![first];
        for question in [2, 13, 3, 4, 7, 5] {
            answers.push(owner.submit(question).await.unwrap());
        }
        drop(gate);
        let mut found = Vec::new();
        for answer in answers {
            found.push(answer.await.unwrap().map_err(|error| error.to_string()));
        }
        let panics = Err("network `doubler` panics: thirteen".to_owned());
        let fails = Err("network `doubler` fails: seven".to_owned());
        assert_eq!(found, [Ok(2), Ok(4), panics, Ok(6), Ok(8), fails, Ok(10)]);
        // Four together and then alone, because of 13; the last two likewise, because of 7.
        assert_eq!(entered.try_iter().collect::<Vec<_>>(), [4, 1, 1, 1, 1, 2, 1, 1]);
        assert_eq!(owner.ask(21).await, Ok(42), "the thread outlives a panic");
    }

    #[tokio::test]
    async fn dropping_the_owner_finishes_what_runs_and_answers_what_waits() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let running = owner.submit(1).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let waiting = [owner.submit(2).await.unwrap(), owner.submit(3).await.unwrap()];
        let stopping = Arc::clone(&owner.stopping);
        let dropping = std::thread::spawn(move || drop(owner));
        while !stopping.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        drop(gate);
        dropping.join().unwrap();
        assert_eq!(running.await.unwrap(), Ok(2));
        for answer in waiting {
            assert_eq!(answer.await.unwrap(), Err(NnError::Stopped { network: "doubler".to_owned() }));
        }
        assert!(entered.recv().is_err(), "the model is gone with its thread and saw no further batch");
    }

    #[tokio::test]
    async fn a_withdrawn_question_is_not_run() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let running = owner.submit(1).await.unwrap();
        drop(owner.submit(2).await.unwrap());
        let last = owner.submit(3).await.unwrap();
        drop(gate);
        assert_eq!((running.await.unwrap(), last.await.unwrap()), (Ok(2), Ok(6)));
        assert_eq!(entered.try_iter().count(), 2);
    }

    #[tokio::test]
    async fn a_full_queue_makes_askers_wait() {
        let Setup { owner, entered, gate } = setup(1, 1);
        let running = owner.submit(1).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let waiting = owner.submit(2).await.unwrap();
        let mut third = std::pin::pin!(owner.ask(3));
        let is_pending =
            std::future::poll_fn(|context| std::task::Poll::Ready(third.as_mut().poll(context).is_pending())).await;
        assert!(is_pending);
        drop(gate);
        assert_eq!(third.await, Ok(6));
        assert_eq!((running.await.unwrap(), waiting.await.unwrap()), (Ok(2), Ok(4)));
    }

    #[test]
    fn a_model_that_cannot_be_loaded_is_an_error() {
        let limits = OwnerLimits { max_batch: 1, queue_length: 1 };
        let failed = Owner::start("doubler", limits, || {
            Err::<Doubler, _>(NnError::Load { bundle: "b".to_owned(), problems: vec!["p".to_owned()] })
        });
        assert!(matches!(failed.err().unwrap(), NnError::Load { .. }));
        let panicked = Owner::start("doubler", limits, || -> Result<Doubler, _> { panic!("at load") });
        assert_eq!(panicked.err().unwrap().to_string(), "network `doubler` panics: at load");
    }
}
