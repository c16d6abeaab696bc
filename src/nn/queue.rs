//! Where requests wait for the thread of a network: a bounded queue with a lane for each urgency.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

use crate::types::Urgency;

/// A bounded queue between askers, which wait without a thread, and one thread, which takes batches.
pub(super) struct Queue<R> {
    lanes: Mutex<Lanes<R>>,
    arrived: Condvar,
    /// One permit for each free place.
    room: Semaphore,
}

struct Lanes<R> {
    /// In the order of [`Urgency::ALL`].
    by_urgency: [VecDeque<R>; Urgency::ALL.len()],
    is_closed: bool,
}

impl<R> Lanes<R> {
    fn pop(&mut self) -> Option<R> {
        self.by_urgency.iter_mut().find_map(VecDeque::pop_front)
    }
}

impl<R> Queue<R> {
    /// A queue with `length` places, at least one.
    pub(super) fn new(length: usize) -> Self {
        Self {
            lanes: Mutex::new(Lanes { by_urgency: Default::default(), is_closed: false }),
            arrived: Condvar::new(),
            room: Semaphore::new(length.clamp(1, Semaphore::MAX_PERMITS)),
        }
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes<R>> {
        // Nothing panics while it holds the lock.
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a free place. `Err` gives the request back when the queue is closed.
    ///
    /// Cancel safety: a request whose future is dropped before it has a place is not in the queue.
    pub(super) async fn push(&self, request: R, urgency: Urgency) -> Result<(), R> {
        let Ok(permit) = self.room.acquire().await else { return Err(request) };
        let mut lanes = self.lanes();
        if lanes.is_closed {
            return Err(request);
        }
        permit.forget();
        if let Some(lane) = lanes.by_urgency.get_mut(urgency as usize) {
            lane.push_back(request);
        }
        drop(lanes);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next requests, the urgent ones first: what is there, and what comes within `gather` of the first, up to
    /// `max_batch`. Blocks until there is one; `None` when the queue is closed and empty.
    pub(super) fn take(&self, max_batch: usize, gather: Duration) -> Option<Vec<R>> {
        let mut lanes = self.lanes();
        let mut batch = Vec::new();
        let mut until: Option<Instant> = None;
        loop {
            while batch.len() < max_batch
                && let Some(request) = lanes.pop()
            {
                batch.push(request);
                // Whoever waits for a place may come into this batch.
                self.room.add_permits(1);
            }
            if batch.len() >= max_batch || lanes.is_closed {
                break;
            }
            if batch.is_empty() {
                lanes = self.arrived.wait(lanes).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + gather);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            lanes = self.arrived.wait_timeout(lanes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(lanes);
        (!batch.is_empty()).then_some(batch)
    }

    /// Shows every request that waits.
    pub(super) fn each(&self, look: impl FnMut(&R)) {
        self.lanes().by_urgency.iter().flatten().for_each(look);
    }

    /// Takes out the requests that wait and that `stays` is false of.
    pub(super) fn retain(&self, stays: impl Fn(&R) -> bool) {
        let mut lanes = self.lanes();
        let waiting = |lanes: &Lanes<R>| lanes.by_urgency.iter().map(VecDeque::len).sum::<usize>();
        let n_before = waiting(&lanes);
        lanes.by_urgency.iter_mut().for_each(|lane| lane.retain(&stays));
        self.room.add_permits(n_before - waiting(&lanes));
    }

    /// Whether a request waits.
    #[cfg(test)]
    pub(super) fn is_waiting(&self) -> bool {
        let mut any = false;
        self.each(|_| any = true);
        any
    }

    /// Takes no more requests; what waits is still given out.
    pub(super) fn close(&self) {
        self.lanes().is_closed = true;
        self.room.close();
        self.arrived.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn urgent_requests_go_first_and_batches_are_bounded() {
        let queue = Queue::new(8);
        for (request, urgency) in [
            (6, Urgency::Shadow),
            (1, Urgency::Routine),
            (2, Urgency::Routine),
            (3, Urgency::Stat),
            (4, Urgency::Routine),
            (5, Urgency::Stat),
        ] {
            queue.push(request, urgency).await.unwrap();
        }
        assert_eq!(queue.take(3, Duration::ZERO), Some(vec![3, 5, 1]));
        assert_eq!(queue.take(3, Duration::ZERO), Some(vec![2, 4, 6]), "a shadow's goes last");
    }

    #[tokio::test]
    async fn a_batch_waits_for_company_but_not_for_ever() {
        let queue = Arc::new(Queue::new(8));
        let taker = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.take(2, Duration::from_mins(10))
        });
        queue.push(1, Urgency::Routine).await.unwrap();
        queue.push(2, Urgency::Routine).await.unwrap();
        assert_eq!(taker.join().unwrap(), Some(vec![1, 2]), "a full batch goes at once");
        queue.push(3, Urgency::Routine).await.unwrap();
        assert_eq!(queue.take(2, Duration::from_millis(5)), Some(vec![3]), "a single one goes when its time is up");
    }

    /// One place, a batch of three: places become free while the batch waits for company.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_batch_may_be_larger_than_the_queue() {
        let queue = Arc::new(Queue::new(1));
        let taker = std::thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.take(3, Duration::from_mins(10))
        });
        for request in 1..=3 {
            queue.push(request, Urgency::Routine).await.unwrap();
        }
        assert_eq!(taker.join().unwrap(), Some(vec![1, 2, 3]));
    }

    #[tokio::test]
    async fn what_is_taken_out_makes_room() {
        let queue = Queue::new(3);
        for (request, urgency) in [(1, Urgency::Routine), (2, Urgency::Shadow), (3, Urgency::Routine)] {
            queue.push(request, urgency).await.unwrap();
        }
        queue.retain(|request| *request == 3);
        queue.push(4, Urgency::Shadow).await.unwrap();
        queue.push(5, Urgency::Stat).await.unwrap();
        assert_eq!(queue.take(9, Duration::ZERO), Some(vec![5, 3, 4]));
    }

    #[tokio::test]
    async fn a_full_queue_makes_askers_wait_and_a_closed_one_sends_them_away() {
        let queue = Queue::new(1);
        queue.push(1, Urgency::Routine).await.unwrap();
        let mut second = std::pin::pin!(queue.push(2, Urgency::Stat));
        let pending =
            std::future::poll_fn(|context| std::task::Poll::Ready(second.as_mut().poll(context).is_pending())).await;
        assert!(pending);
        assert_eq!(queue.take(4, Duration::ZERO), Some(vec![1]));
        second.await.unwrap();
        queue.close();
        assert_eq!(queue.push(3, Urgency::Stat).await, Err(3));
        assert_eq!(queue.take(4, Duration::from_mins(10)), Some(vec![2]), "what waited is given out");
        assert_eq!(queue.take(4, Duration::ZERO), None);
    }
}
