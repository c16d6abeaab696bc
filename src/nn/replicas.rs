//! The copies of one network, one for each device, and which of them is asked.

use super::{
    error::NnError,
    owner::{Owner, Unanswered},
};
use crate::types::Errand;

/// The copies of one network, at least one, each with its thread.
pub(super) struct Replicas<Q, A> {
    owners: Vec<Owner<Q, A>>,
    /// The one that is asked when all are alike.
    first: usize,
}

/// What the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    /// Questions that wait or are being answered.
    n_open: usize,
    /// Whether it was taken out after failures in a row.
    is_out: bool,
}

/// The copy with the fewest open questions of those that are not taken out, of all if every one is; of equals the first.
fn choose(copies: impl Iterator<Item = State>) -> Option<usize> {
    copies.enumerate().min_by_key(|(_, copy)| (copy.is_out, copy.n_open)).map(|(idx, _)| idx)
}

impl<Q: Send + 'static, A: Send + 'static> Replicas<Q, A> {
    /// The copies in the order of their devices.
    pub(super) const fn new(owners: Vec<Owner<Q, A>>) -> Self {
        Self { owners, first: 0 }
    }

    /// Number of copies, at least one.
    pub(super) fn count(&self) -> usize {
        self.owners.len().max(1)
    }

    /// Of copies that are alike, begins with another one: networks that are asked at the same time then work on different
    /// devices.
    pub(super) fn begin_with(&mut self, number: usize) {
        self.first = number % self.count();
    }

    /// Asks one copy, waiting while its queue is full. A copy that is taken out is passed over while another one lives, and
    /// what waits for it at that moment is moved to that one.
    ///
    /// Cancel safety: as [`Owner::ask`].
    pub(super) async fn ask(&self, mut question: Q, errand: &Errand) -> Result<A, NnError> {
        loop {
            let (before, from_first) = self.owners.split_at_checked(self.first).unwrap_or((&[], &self.owners));
            let mut copies = from_first.iter().chain(before);
            let states = copies.clone().map(|owner| State { n_open: owner.n_open(), is_out: owner.is_out() });
            let Some(owner) = choose(states).and_then(|idx| copies.nth(idx)) else {
                return Err(NnError::Stopped { network: "without a copy".to_owned() });
            };
            match owner.ask(question, errand).await {
                Ok(answer) => return Ok(answer),
                Err(Unanswered { question: Some(given_back), .. })
                    if self.owners.iter().any(|owner| !owner.is_out()) =>
                {
                    question = given_back;
                }
                Err(Unanswered { error, .. }) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            mpsc::{Receiver, Sender, channel},
        },
        time::Duration,
    };

    use super::{
        super::owner::{FAILURES_UNTIL_OUT, Model, OwnerLimits, Step},
        *,
    };

    #[test]
    fn the_copy_with_the_fewest_open_questions_is_chosen() {
        let choose_of =
            |copies: &[(usize, bool)]| choose(copies.iter().map(|&(n_open, is_out)| State { n_open, is_out }));
        assert_eq!(choose_of(&[(0, false), (0, false)]), Some(0), "of equals the first");
        assert_eq!(choose_of(&[(2, false), (1, false), (1, false)]), Some(1));
        assert_eq!(choose_of(&[(0, true), (9, false)]), Some(1), "what is out is passed over");
        assert_eq!(choose_of(&[(1, true), (0, true)]), Some(1), "all are out");
        assert_eq!(choose_of(&[]), None);
    }

    /// Answers with the number of the copy, once its gate opens; fails questions below 0.
    struct Copy {
        number: usize,
        entered: Sender<usize>,
        gate: Receiver<()>,
    }

    impl Model for Copy {
        type Question = i32;
        type Answer = usize;

        fn answer(&self, questions: &[&i32], _: Step<'_>) -> Result<Vec<usize>, NnError> {
            let _ = self.entered.send(self.number);
            // A gate whose handle is dropped stays open.
            let _ = self.gate.recv();
            if questions.iter().any(|question| **question < 0) {
                return Err(NnError::Torch { network: "copy".to_owned(), words: "below 0".to_owned() });
            }
            Ok(vec![self.number; questions.len()])
        }
    }

    struct Setup {
        replicas: Arc<Replicas<i32, usize>>,
        /// Numbers of the copies that were asked.
        entered: Receiver<usize>,
        gates: Vec<Sender<()>>,
    }

    fn two_copies() -> Setup {
        let (enter, entered) = channel();
        let limits = OwnerLimits { max_batch: 1, gather: Duration::ZERO, queue_length: 16 };
        let (mut owners, mut gates) = (Vec::new(), Vec::new());
        for number in 0..2 {
            let (open, gate) = channel();
            let entered = enter.clone();
            owners.push(Owner::start("copy", limits, move || Ok(Copy { number, entered, gate })).unwrap());
            gates.push(open);
        }
        Setup { replicas: Arc::new(Replicas::new(owners)), entered, gates }
    }

    #[tokio::test]
    async fn questions_are_shared_among_copies_that_run_and_wait() {
        let Setup { replicas, entered, gates } = two_copies();
        let ask = |question| {
            let replicas = Arc::clone(&replicas);
            tokio::spawn(async move { replicas.ask(question, &Errand::default()).await })
        };
        let mut asked = Vec::new();
        for question in 0..4 {
            asked.push(ask(question));
            tokio::task::yield_now().await;
        }
        let mut running = [entered.recv().unwrap(), entered.recv().unwrap()];
        running.sort_unstable();
        assert_eq!(running, [0, 1], "both compute, although the first could take all");
        drop(gates);
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.unwrap().unwrap());
        }
        assert_eq!(answers, [0, 1, 0, 1]);
    }

    #[tokio::test]
    async fn what_waits_for_a_copy_that_is_taken_out_is_moved_to_another() {
        let Setup { replicas, entered, gates } = two_copies();
        let ask = |question| {
            let replicas = Arc::clone(&replicas);
            tokio::spawn(async move { replicas.ask(question, &Errand::default()).await })
        };
        // The first copy gets every other question: those that it fails at, and two that wait behind them.
        let mut bad = Vec::new();
        let mut good = Vec::new();
        for number in 0..FAILURES_UNTIL_OUT + 2 {
            if number < FAILURES_UNTIL_OUT { &mut bad } else { &mut good }.push(ask(if number < FAILURES_UNTIL_OUT {
                -1
            } else {
                1
            }));
            tokio::task::yield_now().await;
            good.push(ask(1));
            tokio::task::yield_now().await;
        }
        assert_eq!(replicas.owners[0].n_open(), FAILURES_UNTIL_OUT as usize + 2);
        drop(gates);
        for answer in bad {
            assert!(matches!(answer.await.unwrap(), Err(NnError::Torch { .. })));
        }
        for answer in good {
            assert_eq!(answer.await.unwrap(), Ok(1), "the second copy answers");
        }
        assert!(replicas.owners[0].is_out());
        assert_eq!(entered.try_iter().filter(|copy| *copy == 0).count(), FAILURES_UNTIL_OUT as usize);
    }

    #[tokio::test]
    async fn copies_that_are_alike_are_asked_from_the_chosen_one_on() {
        let Setup { replicas, entered: _entered, gates } = two_copies();
        drop(gates);
        let mut replicas = Arc::into_inner(replicas).unwrap();
        for (number, copy) in [(0, 0), (1, 1), (2, 0), (5, 1)] {
            replicas.begin_with(number);
            assert_eq!(replicas.ask(1, &Errand::default()).await, Ok(copy));
        }
    }

    #[tokio::test]
    async fn a_copy_that_is_taken_out_is_passed_over_until_all_are() {
        let Setup { replicas, entered: _entered, gates } = two_copies();
        drop(gates);
        // Nothing else is open: every question goes to the first copy.
        for _ in 0..FAILURES_UNTIL_OUT {
            assert!(matches!(replicas.ask(-1, &Errand::default()).await, Err(NnError::Torch { .. })));
        }
        for _ in 0..3 {
            assert_eq!(replicas.ask(1, &Errand::default()).await, Ok(1), "the second copy answers");
        }
        for _ in 0..FAILURES_UNTIL_OUT {
            assert!(matches!(replicas.ask(-1, &Errand::default()).await, Err(NnError::Torch { .. })));
        }
        let error = replicas.ask(1, &Errand::default()).await.unwrap_err();
        assert!(matches!(error, NnError::TakenOut { .. }), "{error}");
    }
}
