//! Places for few. Whoever is more urgent is let in first, and a shadow gives its place up when somebody else waits for it.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::types::Urgency;

/// A number of places. Cloning gives another handle on the same ones.
#[derive(Clone)]
pub(super) struct Room(Arc<Inner>);

struct Inner {
    places: usize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// The number of the next that comes.
    next: u64,
    /// In the order in which they are let in.
    waiting: BTreeMap<(Urgency, u64), Waiting>,
    /// Those that have places and give them up when others wait, by their number.
    shadows: BTreeMap<u64, Shadow>,
}

struct Waiting {
    places: usize,
    /// Sends what tells a shadow to leave.
    admit: oneshot::Sender<oneshot::Receiver<()>>,
}

struct Shadow {
    places: usize,
    /// `None` once it was told.
    leave: Option<oneshot::Sender<()>>,
}

/// Places in a room, given back when this and all that holds them is dropped.
pub(super) struct Place {
    hold: Hold,
    leave: Option<oneshot::Receiver<()>>,
}

/// What holds places in a room: clones are of the same ones.
#[derive(Clone)]
pub(super) struct Hold {
    _held: Arc<Held>,
}

struct Held {
    room: Room,
    key: (Urgency, u64),
    places: usize,
}

/// What takes up places, and holds them for as long as it lives: a thread may have it when nobody waits for the thread.
pub(super) struct Placed<T> {
    value: T,
    _hold: Hold,
}

impl Room {
    /// A room with that many places, at least one.
    pub(super) fn new(places: usize) -> Self {
        let places = places.max(1);
        let state = State { free: places, next: 0, waiting: BTreeMap::new(), shadows: BTreeMap::new() };
        Self(Arc::new(Inner { places, state: Mutex::new(state) }))
    }

    /// Waits for one place.
    ///
    /// Cancel safety: dropping the future gives up the place in the queue, or the place.
    pub(super) async fn enter(&self, urgency: Urgency) -> Place {
        self.take(1, urgency).await
    }

    /// Waits for all places: nobody else is in the room then. Whoever comes later and is not more urgent waits behind.
    ///
    /// Cancel safety: as [`enter`](Self::enter).
    pub(super) async fn enter_alone(&self, urgency: Urgency) -> Place {
        self.take(self.0.places, urgency).await
    }

    async fn take(&self, places: usize, urgency: Urgency) -> Place {
        let (admit, admitted) = oneshot::channel();
        let mut place = {
            let mut state = self.state();
            let key = (urgency, state.next);
            state.next += 1;
            state.waiting.insert(key, Waiting { places, admit });
            state.admit();
            Place { hold: Hold::new(Held { room: self.clone(), key, places }), leave: None }
        };
        // The room lives as long as `place` does, and admits everybody some time.
        place.leave = admitted.await.ok();
        place
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets in whoever is first and fits; tells as many shadows to leave as somebody else needs.
    fn admit(&mut self) {
        while let Some(first) = self.waiting.first_entry() {
            let ((urgency, number), wanted) = (*first.key(), first.get().places);
            if wanted > self.free {
                if urgency != Urgency::Shadow {
                    self.tell_shadows(wanted - self.free);
                }
                return;
            }
            let Waiting { places, admit } = first.remove();
            self.free -= places;
            let (leave, told) = oneshot::channel();
            if urgency == Urgency::Shadow {
                self.shadows.insert(number, Shadow { places, leave: Some(leave) });
            }
            // Whoever has gone away meanwhile gives the places back.
            let _ = admit.send(told);
        }
    }

    /// The ones that came last have least to lose.
    fn tell_shadows(&mut self, mut missing: usize) {
        for shadow in self.shadows.values_mut().rev() {
            if missing == 0 {
                return;
            }
            missing = missing.saturating_sub(shadow.places);
            if let Some(leave) = shadow.leave.take() {
                let _ = leave.send(());
            }
        }
    }
}

impl Place {
    /// What holds it beside this.
    pub(super) fn hold(&self) -> Hold {
        self.hold.clone()
    }

    /// Completes when the place is to be given up, for one that is more urgent; never of one that is no shadow's.
    ///
    /// Cancel safety: safe.
    pub(super) async fn wanted(&mut self) {
        if let Some(leave) = &mut self.leave
            && leave.await.is_ok()
        {
            self.leave = None;
            return;
        }
        self.leave = None;
        std::future::pending::<()>().await;
    }
}

impl Hold {
    fn new(held: Held) -> Self {
        Self { _held: Arc::new(held) }
    }

    /// What takes up the places.
    pub(super) fn on<T>(&self, value: T) -> Placed<T> {
        Placed { value, _hold: self.clone() }
    }
}

#[cfg(test)]
impl<T> Placed<T> {
    /// In a room of its own.
    pub(super) fn apart(value: T) -> Self {
        Hold::new(Held { room: Room::new(1), key: (Urgency::Routine, 0), places: 0 }).on(value)
    }
}

impl<T> Deref for Placed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.room.state();
        // One that was never let in has nothing to give back.
        if state.waiting.remove(&self.key).is_none() {
            state.free += self.places;
            state.shadows.remove(&self.key.1);
        }
        state.admit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_ready<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
        let mut future = Some(future);
        std::future::poll_fn(|context| {
            let polled = future.take().map(|future| future.poll(context));
            std::task::Poll::Ready(match polled {
                Some(std::task::Poll::Ready(value)) => Some(value),
                _ => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn the_most_urgent_is_let_in_first() {
        let room = Room::new(1);
        let held = room.enter(Urgency::Routine).await;
        let mut shadow = std::pin::pin!(room.enter(Urgency::Shadow));
        let mut routine = std::pin::pin!(room.enter(Urgency::Routine));
        let mut stat = std::pin::pin!(room.enter(Urgency::Stat));
        assert!(is_ready(shadow.as_mut()).await.is_none());
        assert!(is_ready(routine.as_mut()).await.is_none());
        assert!(is_ready(stat.as_mut()).await.is_none());
        drop(held);
        assert!(is_ready(routine.as_mut()).await.is_none());
        let first = is_ready(stat.as_mut()).await.unwrap();
        drop(first);
        let second = is_ready(routine.as_mut()).await.unwrap();
        assert!(is_ready(shadow.as_mut()).await.is_none());
        drop(second);
        assert!(is_ready(shadow.as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn a_shadow_is_told_to_leave_when_somebody_else_waits() {
        let room = Room::new(2);
        let mut first = room.enter(Urgency::Shadow).await;
        let mut second = room.enter(Urgency::Shadow).await;
        let mut third = std::pin::pin!(room.enter(Urgency::Shadow));
        assert!(is_ready(third.as_mut()).await.is_none());
        assert!(is_ready(std::pin::pin!(second.wanted())).await.is_none(), "not for another shadow");

        let mut live = std::pin::pin!(room.enter(Urgency::Routine));
        assert!(is_ready(live.as_mut()).await.is_none());
        second.wanted().await;
        assert!(is_ready(std::pin::pin!(first.wanted())).await.is_none(), "one is enough");
        drop(second);
        let mut live = is_ready(live.as_mut()).await.unwrap();
        assert!(is_ready(std::pin::pin!(live.wanted())).await.is_none(), "it is no shadow");

        let mut alone = std::pin::pin!(room.enter_alone(Urgency::Stat));
        assert!(is_ready(alone.as_mut()).await.is_none());
        first.wanted().await;
        drop((first, live));
        drop(is_ready(alone.as_mut()).await.unwrap());
        assert!(is_ready(third.as_mut()).await.is_some());
    }

    #[tokio::test]
    async fn whoever_goes_away_leaves_no_place_taken() {
        let room = Room::new(1);
        let held = room.enter(Urgency::Routine).await;
        {
            let mut waiting = std::pin::pin!(room.enter(Urgency::Stat));
            assert!(is_ready(waiting.as_mut()).await.is_none());
        }
        let mut admitted = Box::pin(room.enter(Urgency::Stat));
        assert!(is_ready(admitted.as_mut()).await.is_none());
        drop(held);
        // Let in, and gone before it knew.
        drop(admitted);
        room.enter_alone(Urgency::Shadow).await;
    }

    /// A thread has the volume when its run has long been cancelled.
    #[tokio::test]
    async fn what_takes_up_a_place_holds_it_as_long_as_it_lives() {
        let room = Room::new(1);
        let mut shadow = room.enter(Urgency::Shadow).await;
        let of_thread = Arc::new(shadow.hold().on(vec![1, 2, 3]));
        let mut live = std::pin::pin!(room.enter(Urgency::Routine));
        assert!(is_ready(live.as_mut()).await.is_none());
        shadow.wanted().await;
        drop(shadow);
        assert!(is_ready(live.as_mut()).await.is_none(), "there is no room for two");
        assert_eq!(of_thread.len(), 3);
        drop(of_thread);
        assert!(is_ready(live.as_mut()).await.is_some());
    }
}
