//! The copies of one network, one for each device, and which of them is asked.

use super::{error::NnError, owner::Owner};
use crate::types::RunPriority;

/// The copies of one network, at least one, each with its thread.
pub(super) struct Replicas<Q, A> {
    owners: Vec<Owner<Q, A>>,
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
        Self { owners }
    }

    /// Asks one copy, waiting while its queue is full. A copy that is taken out is passed over while another one lives;
    /// what waits for it at that moment is answered with [`NnError::TakenOut`].
    ///
    /// Cancel safety: as [`Owner::ask`].
    pub(super) async fn ask(&self, question: Q, priority: RunPriority) -> Result<A, NnError> {
        let states = self.owners.iter().map(|owner| State { n_open: owner.n_open(), is_out: owner.is_out() });
        match choose(states).and_then(|idx| self.owners.get(idx)) {
            Some(owner) => owner.ask(question, priority).await,
            None => Err(NnError::Stopped { network: "without a copy".to_owned() }),
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
        super::owner::{FAILURES_UNTIL_OUT, Model, OwnerLimits},
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

        fn answer(&self, questions: &[&i32]) -> Result<Vec<usize>, NnError> {
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
            tokio::spawn(async move { replicas.ask(question, RunPriority::Routine).await })
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
    async fn a_copy_that_is_taken_out_is_passed_over_until_all_are() {
        let Setup { replicas, entered: _entered, gates } = two_copies();
        drop(gates);
        // Nothing else is open: every question goes to the first copy.
        for _ in 0..FAILURES_UNTIL_OUT {
            assert!(matches!(replicas.ask(-1, RunPriority::Routine).await, Err(NnError::Torch { .. })));
        }
        for _ in 0..3 {
            assert_eq!(replicas.ask(1, RunPriority::Routine).await, Ok(1), "the second copy answers");
        }
        for _ in 0..FAILURES_UNTIL_OUT {
            assert!(matches!(replicas.ask(-1, RunPriority::Routine).await, Err(NnError::Torch { .. })));
        }
        let error = replicas.ask(1, RunPriority::Routine).await.unwrap_err();
        assert!(matches!(error, NnError::TakenOut { .. }), "{error}");
    }
}
