//! One OS thread owns one loaded model.
//!
//! Tensors must not be shared between threads and torch's gradient mode is a property of the thread, so the
//! model is loaded, used and dropped on one thread, and only plain data crosses. Requests wait in a bounded
//! queue; the thread takes what is waiting, up to a limit, as one batch, whoever asked. A model that works in portions
//! is asked to stop between them when nobody waits for its answer any more.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    error::{NnError, cut},
    queue::Queue,
};
use crate::types::{Errand, Progress};

/// A model on its thread.
pub(super) trait Model {
    /// Plain data.
    type Question: Send + 'static;
    /// Plain data.
    type Answer: Send + 'static;

    /// Answers in the order of the questions, as many as there are. A model that works in portions calls `step` after each
    /// and passes its error on.
    fn answer(&self, questions: &[&Self::Question], step: Step<'_>) -> Result<Vec<Self::Answer>, NnError>;
}

/// Tells that a portion of the work is done; fails when nobody waits for the rest.
pub(super) type Step<'a> = &'a dyn Fn() -> Result<(), NnError>;

/// Of work that nobody watches.
pub(super) const GO_ON: Step<'static> = &|| Ok(());

/// Why a question has no answer.
#[derive(Debug)]
pub(super) struct Unanswered<Q> {
    pub(super) error: NnError,
    /// Given back where the model was not asked.
    pub(super) question: Option<Q>,
}

struct Request<Q, A> {
    question: Q,
    reply: oneshot::Sender<Result<A, Unanswered<Q>>>,
    /// Of whoever asks.
    progress: Progress,
    /// Counts as open until it is answered or dropped.
    open: OpenQuestion,
}

impl<Q, A> Request<Q, A> {
    fn answer(self, answer: Result<A, NnError>) {
        self.reply(|_| answer.map_err(|error| Unanswered { error, question: None }));
    }

    /// Gives the question back: it was not asked.
    fn give_back(self, error: NnError) {
        self.reply(|question| Err(Unanswered { error, question: Some(question) }));
    }

    fn reply(self, answer: impl FnOnce(Q) -> Result<A, Unanswered<Q>>) {
        let Self { question, reply, open, .. } = self;
        // Whoever is told may ask the next question at once.
        drop(open);
        // Whoever has gone away needs no answer.
        let _ = reply.send(answer(question));
    }
}

/// What a thread and the handle on it know of each other.
#[derive(Debug, Default)]
struct Standing {
    /// The thread is to end.
    is_stopping: AtomicBool,
    /// Questions that wait or are being answered.
    n_open: AtomicUsize,
    /// Until when the model is out.
    out_until: Mutex<Option<Instant>>,
}

impl Standing {
    fn out_until(&self) -> MutexGuard<'_, Option<Instant>> {
        // Nothing panics while it holds the lock.
        self.out_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the model is still out; `None` when it may be asked.
    fn time_out(&self) -> Option<Duration> {
        let left = (*self.out_until())?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }
}

struct OpenQuestion(Arc<Standing>);

impl OpenQuestion {
    fn of(standing: &Arc<Standing>) -> Self {
        standing.n_open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(standing))
    }
}

impl Drop for OpenQuestion {
    fn drop(&mut self) {
        self.0.n_open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Limits of an owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnerLimits {
    /// Largest batch, at least 1.
    pub(super) max_batch: usize,
    /// How long a batch waits for more requests after its first.
    pub(super) gather: Duration,
    /// Requests that wait in the queue, at least 1.
    pub(super) queue_length: usize,
}

/// Questions that fail one after the other, each asked alone, before the model is taken out.
pub(super) const FAILURES_UNTIL_OUT: u32 = 5;

/// How long a model that was taken out is left alone before one more question may try it.
const OUT_FOR: Duration = Duration::from_mins(5);

/// The handle of a model's thread. Dropping it answers what waits with [`NnError::Stopped`], waits for the batch
/// that runs, and joins the thread.
pub(super) struct Owner<Q, A> {
    network: String,
    standing: Arc<Standing>,
    requests: Arc<Queue<Request<Q, A>>>,
    // `None` only while dropping.
    thread: Option<JoinHandle<()>>,
}

/// Takes questions that nobody waits for out of the queue when dropped.
struct Withdrawal<'a, Q, A>(&'a Queue<Request<Q, A>>);

impl<Q, A> Drop for Withdrawal<'_, Q, A> {
    fn drop(&mut self) {
        self.0.retain(|request| !request.reply.is_closed());
    }
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
        let requests = Arc::new(Queue::new(limits.queue_length));
        let (loaded, loading) = std::sync::mpsc::sync_channel(1);
        let standing = Arc::new(Standing::default());
        let thread = std::thread::Builder::new()
            .name(format!("nn {network}").chars().take(15).collect())
            .spawn({
                let (network, standing, requests) = (network.to_owned(), Arc::clone(&standing), Arc::clone(&requests));
                move || match guarded(&network, load) {
                    Ok(model) => {
                        if loaded.send(Ok(())).is_ok() {
                            Server { network, model, limits, standing, health: Health::default() }.serve(&requests);
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
        let owner = Self { network: network.to_owned(), standing, requests, thread: Some(thread) };
        loading.recv().map_err(|_| owner.stopped())??;
        Ok(owner)
    }

    /// Queues a question, waiting while the queue is full. A question that meets a model that is out is given back.
    ///
    /// Cancel safety: dropping the future withdraws the question; of one that is being answered, the portion that is being
    /// worked on is the last. Until then the errand's progress is shared.
    pub(super) async fn ask(&self, question: Q, errand: &Errand) -> Result<A, Unanswered<Q>> {
        let stopped = || Unanswered { error: self.stopped(), question: None };
        // Dropped after `answer`, by which the queue tells that nobody waits.
        let _withdrawal = Withdrawal(&self.requests);
        let answer = self.submit(question, errand).await.map_err(|error| Unanswered { error, question: None })?;
        answer.await.map_err(|_| stopped())?
    }

    async fn submit(
        &self,
        question: Q,
        errand: &Errand,
    ) -> Result<oneshot::Receiver<Result<A, Unanswered<Q>>>, NnError> {
        let (reply, answer) = oneshot::channel();
        let progress = errand.progress.clone();
        let request = Request { question, reply, progress, open: OpenQuestion::of(&self.standing) };
        errand.progress.waiting(self.requests.push(request, errand.urgency)).await.map_err(|_| self.stopped())?;
        Ok(answer)
    }

    /// Questions that wait, for a place in the queue or in it, or are being answered.
    pub(super) fn n_open(&self) -> usize {
        self.standing.n_open.load(Ordering::Relaxed)
    }

    /// Whether the model is taken out for a while.
    pub(super) fn is_out(&self) -> bool {
        self.standing.time_out().is_some()
    }

    fn stopped(&self) -> NnError {
        NnError::Stopped { network: self.network.clone() }
    }
}

impl<Q, A> Drop for Owner<Q, A> {
    fn drop(&mut self) {
        self.standing.is_stopping.store(true, Ordering::Release);
        self.requests.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(network = self.network, "the thread of a network ended by a panic");
        }
    }
}

/// What the thread works with.
struct Server<M> {
    network: String,
    model: M,
    limits: OwnerLimits,
    standing: Arc<Standing>,
    health: Health,
}

/// How the last questions went.
#[derive(Debug, Default)]
struct Health {
    /// Questions that failed one after the other.
    failures: u32,
    /// The words of the last one.
    last_failure: String,
}

impl<M: Model> Server<M> {
    /// The thread's loop: ends when the queue is closed and empty.
    fn serve(mut self, requests: &Queue<Request<M::Question, M::Answer>>) {
        while let Some(mut batch) = requests.take(self.limits.max_batch.max(1), self.limits.gather) {
            if self.standing.is_stopping.load(Ordering::Acquire) {
                for request in batch {
                    request.answer(Err(NnError::Stopped { network: self.network.clone() }));
                }
                continue;
            }
            // Whoever has gone away needs no answer.
            batch.retain(|request| !request.reply.is_closed());
            if let Some(taken_out) = self.taken_out() {
                for request in batch {
                    request.give_back(taken_out.clone());
                }
            } else if !batch.is_empty() {
                self.answer_batch(batch, requests);
            }
        }
    }

    /// The answer to everybody while the model is out; `None` when it may be asked.
    fn taken_out(&self) -> Option<NnError> {
        Some(NnError::TakenOut {
            network: self.network.clone(),
            failures: self.health.failures,
            seconds: self.seconds_out()?,
            words: self.health.last_failure.clone(),
        })
    }

    /// Whole seconds that the model is still out, at least 1; `None` when it may be asked.
    fn seconds_out(&self) -> Option<u64> {
        Some(self.standing.time_out()?.as_secs().max(1))
    }

    /// `waiting` is for whom the model has no time yet.
    fn answer_batch(
        &mut self,
        mut requests: Vec<Request<M::Question, M::Answer>>,
        waiting: &Queue<Request<M::Question, M::Answer>>,
    ) {
        let questions: Vec<&M::Question> = requests.iter().map(|request| &request.question).collect();
        let step = || {
            // The model gets on, and so does everybody who waits for it.
            for request in &requests {
                request.progress.renew();
            }
            waiting.each(|request| request.progress.renew());
            if requests.iter().all(|request| request.reply.is_closed()) {
                return Err(NnError::Withdrawn { network: self.network.clone() });
            }
            Ok(())
        };
        let result = guarded(&self.network, || self.model.answer(&questions, &step)).and_then(|answers| {
            let fits = answers.len() == questions.len();
            fits.then_some(answers).ok_or_else(|| NnError::Torch {
                network: self.network.clone(),
                words: "it gave another number of answers than there were questions".to_owned(),
            })
        });
        // The batch is the last portion, or the only one.
        let _ = step();
        match result {
            Ok(answers) => {
                self.went_well();
                for (request, answer) in requests.into_iter().zip(answers) {
                    request.answer(Ok(answer));
                }
            }
            Err(NnError::Withdrawn { network }) => {
                tracing::debug!(network, "nobody waits for the answer any more: the rest is not computed");
            }
            // Half as many need half the memory, now and later.
            Err(error) if requests.len() > 1 && error.is_out_of_memory() => {
                let half = requests.len() / 2;
                self.limits.max_batch = self.limits.max_batch.min(half).max(1);
                tracing::warn!(
                    network = self.network,
                    images = requests.len(),
                    max_batch = self.limits.max_batch,
                    "not enough memory for the batch: smaller ones from now on"
                );
                let rest = requests.split_off(half);
                self.answer_batch(requests, waiting);
                self.answer_batch(rest, waiting);
            }
            // One bad question must not fail its neighbours: each is asked again alone, until the model is out. Whoever
            // would come then is not charged with what the others met.
            Err(_) if requests.len() > 1 => {
                for request in requests {
                    match self.taken_out() {
                        Some(taken_out) => request.give_back(taken_out),
                        None => self.answer_batch(vec![request], waiting),
                    }
                }
            }
            Err(error) => {
                self.went_wrong(&error);
                for request in requests {
                    request.answer(Err(error.clone()));
                }
            }
        }
    }

    fn went_well(&mut self) {
        if self.standing.out_until().take().is_some() {
            tracing::info!(network = self.network, "the network answers again: it is back in");
        }
        self.health = Health::default();
    }

    fn went_wrong(&mut self, error: &NnError) {
        // A number that is not finite comes from the picture as often as from the network: other pictures must not suffer.
        if matches!(error, NnError::OutputNotFinite { .. }) {
            return;
        }
        self.health.failures += 1;
        self.health.last_failure = error.to_string();
        if self.health.failures >= FAILURES_UNTIL_OUT {
            *self.standing.out_until() = Some(Instant::now() + OUT_FOR);
            tracing::error!(
                network = self.network,
                failures = self.health.failures,
                words = self.health.last_failure,
                minutes = OUT_FOR.as_secs() / 60,
                "the network fails again and again: it is taken out, the others go on without it"
            );
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
    use crate::types::Urgency;

    /// Doubles; panics at 13; fails batches that contain 7; reports each batch, then waits for the gate.
    struct Doubler {
        entered: std::sync::mpsc::Sender<usize>,
        gate: std::sync::mpsc::Receiver<()>,
    }

    impl Model for Doubler {
        type Question = i32;
        type Answer = i32;

        fn answer(&self, questions: &[&i32], _: Step<'_>) -> Result<Vec<i32>, NnError> {
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

    type Pending = oneshot::Receiver<Result<i32, Unanswered<i32>>>;

    async fn answered(pending: impl Future<Output = <Pending as Future>::Output>) -> Result<i32, NnError> {
        pending.await.unwrap().map_err(|unanswered| unanswered.error)
    }

    async fn ask(owner: &Owner<i32, i32>, question: i32, errand: &Errand) -> Result<i32, NnError> {
        owner.ask(question, errand).await.map_err(|unanswered| unanswered.error)
    }

    fn setup(max_batch: usize, queue_length: usize) -> Setup {
        let (open, gate) = std::sync::mpsc::channel();
        let (enter, entered) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch, gather: Duration::ZERO, queue_length };
        let owner = Owner::start("doubler", limits, move || Ok(Doubler { entered: enter, gate })).unwrap();
        Setup { owner, entered, gate: open }
    }

    #[tokio::test]
    async fn what_waits_is_answered_together_and_a_bad_question_fails_alone() {
        let Setup { owner, entered, gate } = setup(4, 16);
        let first = owner.submit(1, &Errand::default()).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let mut answers = vec![first];
        for question in [2, 13, 3, 4, 7, 5] {
            answers.push(owner.submit(question, &Errand::default()).await.unwrap());
        }
        drop(gate);
        let mut found = Vec::new();
        for answer in answers {
            found.push(answered(answer).await.map_err(|error| error.to_string()));
        }
        let panics = Err("network `doubler` panics: thirteen".to_owned());
        let fails = Err("network `doubler` fails: seven".to_owned());
        assert_eq!(found, [Ok(2), Ok(4), panics, Ok(6), Ok(8), fails, Ok(10)]);
        // Four together and then alone, because of 13; the last two likewise, because of 7.
        assert_eq!(entered.try_iter().collect::<Vec<_>>(), [4, 1, 1, 1, 1, 2, 1, 1]);
        assert_eq!(ask(&owner, 21, &Errand::default()).await, Ok(42), "the thread outlives a panic");
    }

    #[tokio::test]
    async fn dropping_the_owner_finishes_what_runs_and_answers_what_waits() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let running = owner.submit(1, &Errand::default()).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let waiting =
            [owner.submit(2, &Errand::default()).await.unwrap(), owner.submit(3, &Errand::default()).await.unwrap()];
        let standing = Arc::clone(&owner.standing);
        let dropping = std::thread::spawn(move || drop(owner));
        while !standing.is_stopping.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        drop(gate);
        dropping.join().unwrap();
        assert_eq!(answered(running).await, Ok(2));
        for answer in waiting {
            assert_eq!(answered(answer).await, Err(NnError::Stopped { network: "doubler".to_owned() }));
        }
        assert!(entered.recv().is_err(), "the model is gone with its thread and saw no further batch");
    }

    #[tokio::test]
    async fn a_withdrawn_question_is_not_run() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let running = owner.submit(1, &Errand::default()).await.unwrap();
        drop(owner.submit(2, &Errand::default()).await.unwrap());
        let last = owner.submit(3, &Errand::default()).await.unwrap();
        drop(gate);
        assert_eq!((answered(running).await, answered(last).await), (Ok(2), Ok(6)));
        assert_eq!(entered.try_iter().count(), 2);
        assert_eq!(owner.n_open(), 0, "neither is it counted any more");
    }

    #[tokio::test]
    async fn a_question_that_waits_leaves_with_its_asker() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let (asks, waits) = (Errand::default(), Errand::default());
        let running = owner.submit(1, &asks).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        {
            let mut waiting = std::pin::pin!(ask(&owner, 2, &waits));
            let poll = std::future::poll_fn(|context| std::task::Poll::Ready(waiting.as_mut().poll(context)));
            assert!(poll.await.is_pending());
            assert!(waits.progress.is_shared() && owner.requests.is_waiting());
        }
        assert!(!waits.progress.is_shared() && !owner.requests.is_waiting());
        assert!(asks.progress.is_shared(), "the thread is at it");
        drop(running);
        assert!(asks.progress.is_shared(), "the thread is still at it");
        drop(gate);
        while asks.progress.is_shared() {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_full_queue_makes_askers_wait() {
        let Setup { owner, entered, gate } = setup(1, 1);
        let running = owner.submit(1, &Errand::default()).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let waiting = owner.submit(2, &Errand::default()).await.unwrap();
        let errand = Errand::default();
        let mut third = std::pin::pin!(ask(&owner, 3, &errand));
        let is_pending =
            std::future::poll_fn(|context| std::task::Poll::Ready(third.as_mut().poll(context).is_pending())).await;
        assert!(is_pending);
        drop(gate);
        assert_eq!(third.await, Ok(6));
        assert_eq!((answered(running).await, answered(waiting).await), (Ok(2), Ok(4)));
    }

    #[test]
    fn a_model_that_cannot_be_loaded_is_an_error() {
        let limits = OwnerLimits { max_batch: 1, gather: Duration::ZERO, queue_length: 1 };
        let failed = Owner::start("doubler", limits, || {
            Err::<Doubler, _>(NnError::Load { bundle: "b".to_owned(), problems: vec!["p".to_owned()] })
        });
        assert!(matches!(failed.err().unwrap(), NnError::Load { .. }));
        let panicked = Owner::start("doubler", limits, || -> Result<Doubler, _> { panic!("at load") });
        assert_eq!(panicked.err().unwrap().to_string(), "network `doubler` panics: at load");
    }

    #[tokio::test]
    async fn urgent_questions_are_answered_first() {
        let Setup { owner, entered, gate } = setup(1, 16);
        let running = owner.submit(1, &Errand::default()).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let routine = owner.submit(2, &Errand::default()).await.unwrap();
        let mut urgent = owner.submit(3, &Errand { urgency: Urgency::Stat, ..Errand::default() }).await.unwrap();
        let open = gate.clone();
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert_eq!((answered(running).await, answered(&mut urgent).await), (Ok(2), Ok(6)));
        drop((open, gate));
        assert_eq!(answered(routine).await, Ok(4));
    }

    /// Works in three portions, each when the gate is opened.
    struct InPortions(std::sync::mpsc::Receiver<()>);

    impl Model for InPortions {
        type Question = i32;
        type Answer = i32;

        fn answer(&self, questions: &[&i32], step: Step<'_>) -> Result<Vec<i32>, NnError> {
            for _ in 0..3 {
                let _ = self.0.recv();
                step()?;
            }
            Ok(questions.iter().map(|question| **question).collect())
        }
    }

    /// By the progress of whoever asks and whoever waits, not by the time.
    #[tokio::test]
    async fn a_network_that_gets_on_renews_everybody_and_one_that_is_stuck_nobody() {
        let (open, gate) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch: 1, gather: Duration::ZERO, queue_length: 4 };
        let owner = Owner::start("in portions", limits, move || Ok(InPortions(gate))).unwrap();
        let (asks, waits) = (Errand::default(), Errand::default());
        let asked = owner.submit(1, &asks).await.unwrap();
        let waiting = owner.submit(2, &waits).await.unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((asks.progress.steps(), waits.progress.steps()), (0, 0), "it is stuck");
        for portion in 1..=2 {
            open.send(()).unwrap();
            while asks.progress.steps() < portion {
                std::thread::yield_now();
            }
        }
        drop(open);
        assert_eq!((answered(asked).await, answered(waiting).await), (Ok(1), Ok(2)));
        // Three portions and the whole of the first, while the second waited; then its own.
        assert_eq!((asks.progress.steps(), waits.progress.steps()), (4, 8));
    }

    /// A shadow's scan is withdrawn while a network works on it: what somebody waits for comes after one portion.
    #[tokio::test]
    async fn a_withdrawn_question_ends_with_the_portion_that_is_worked_on() {
        let (open, gate) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch: 1, gather: Duration::ZERO, queue_length: 4 };
        let owner = Owner::start("in portions", limits, move || Ok(InPortions(gate))).unwrap();
        let shadow = Errand { urgency: Urgency::Shadow, ..Errand::default() };
        let of_shadow = owner.submit(1, &shadow).await.unwrap();
        while owner.requests.is_waiting() {
            std::thread::yield_now();
        }
        let live = owner.submit(2, &Errand::default()).await.unwrap();
        drop(of_shadow);
        // One portion of the shadow's, three of the other.
        for _ in 0..4 {
            open.send(()).unwrap();
        }
        assert_eq!(answered(live).await, Ok(2));
        assert_eq!(shadow.progress.steps(), 2, "one portion, and its end");
        assert!(!owner.is_out(), "that is no failure");
    }

    /// Has memory for two questions at once.
    struct Cramped(std::sync::mpsc::Sender<usize>);

    impl Model for Cramped {
        type Question = i32;
        type Answer = i32;

        fn answer(&self, questions: &[&i32], _: Step<'_>) -> Result<Vec<i32>, NnError> {
            let _ = self.0.send(questions.len());
            if questions.len() > 2 {
                let words = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes".to_owned();
                return Err(NnError::Torch { network: "cramped".to_owned(), words });
            }
            Ok(questions.iter().map(|question| **question + 1).collect())
        }
    }

    #[tokio::test]
    async fn without_memory_batches_become_smaller_and_stay_so() {
        let (enter, entered) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch: 8, gather: Duration::from_millis(300), queue_length: 32 };
        let owner = Owner::start("cramped", limits, move || Ok(Cramped(enter))).unwrap();
        for _ in 0..2 {
            let mut answers = Vec::new();
            for question in 0..8 {
                answers.push(owner.submit(question, &Errand::default()).await.unwrap());
            }
            for (question, answer) in (0..8).zip(answers) {
                assert_eq!(answered(answer).await, Ok(question + 1));
            }
        }
        let batches: Vec<usize> = entered.try_iter().collect();
        assert_eq!(batches, [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2], "eight fit no more");
    }

    #[tokio::test]
    async fn a_model_that_fails_again_and_again_is_taken_out() {
        let Setup { owner, entered, gate } = setup(1, 16);
        drop(gate);
        for _ in 0..FAILURES_UNTIL_OUT {
            assert!(matches!(ask(&owner, 7, &Errand::default()).await, Err(NnError::Torch { .. })));
        }
        let asked = entered.try_iter().count();
        let error = ask(&owner, 1, &Errand::default()).await.unwrap_err();
        assert!(matches!(error, NnError::TakenOut { .. }), "{error}");
        assert!(error.to_string().contains("seven"), "{error}");
        assert_eq!((asked, entered.try_iter().count()), (FAILURES_UNTIL_OUT as usize, 0), "it was not asked");
    }

    #[tokio::test]
    async fn neighbours_of_the_failure_that_takes_a_model_out_are_not_asked() {
        let Setup { owner, entered, gate } = setup(8, 16);
        // The first is answered alone, so that the others wait and become one batch.
        let running = owner.submit(1, &Errand::default()).await.unwrap();
        assert_eq!(entered.recv().unwrap(), 1);
        let mut answers = Vec::new();
        for _ in 0..=FAILURES_UNTIL_OUT {
            answers.push(owner.submit(7, &Errand::default()).await.unwrap());
        }
        drop(gate);
        assert_eq!(answered(running).await, Ok(2));
        let last = answers.pop().unwrap();
        for answer in answers {
            assert!(matches!(answered(answer).await, Err(NnError::Torch { .. })));
        }
        assert!(matches!(answered(last).await, Err(NnError::TakenOut { .. })));
        assert_eq!(entered.try_iter().collect::<Vec<_>>(), [6, 1, 1, 1, 1, 1], "all at once, then five alone");
    }

    #[test]
    fn a_picture_that_makes_no_number_does_not_take_the_network_out() {
        let (entered, _) = std::sync::mpsc::channel();
        let (_, gate) = std::sync::mpsc::channel();
        let limits = OwnerLimits { max_batch: 1, gather: Duration::ZERO, queue_length: 1 };
        let mut server = Server {
            network: "n".to_owned(),
            model: Doubler { entered, gate },
            limits,
            standing: Arc::default(),
            health: Health::default(),
        };
        for _ in 0..2 * FAILURES_UNTIL_OUT {
            server.went_wrong(&NnError::OutputNotFinite { network: "n".to_owned() });
        }
        assert_eq!(server.seconds_out(), None);
    }

    #[tokio::test]
    async fn a_success_forgives_failures() {
        let Setup { owner, entered: _entered, gate } = setup(1, 16);
        drop(gate);
        for _ in 0..3 {
            for _ in 1..FAILURES_UNTIL_OUT {
                assert!(ask(&owner, 7, &Errand::default()).await.is_err());
            }
            assert_eq!(ask(&owner, 1, &Errand::default()).await, Ok(2));
        }
    }
}
