//! The DICOM upper layer state machine (PS3.8 section 9.2, table 9-10) as data.
//!
//! Pure: knows no sockets and no clocks. [`StateMachine::on`] turns an event into the action to perform and moves
//! to the next state; `upper_layer` performs the actions.

use std::fmt;

/// Which side of the association this machine plays; it decides release collisions (AR-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// We asked for the association.
    Requestor,
    /// The peer asked for it.
    Acceptor,
}

/// The states of PS3.8 tables 9-1 to 9-5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Idle.
    Sta1,
    /// Transport connection open, awaiting A-ASSOCIATE-RQ.
    Sta2,
    /// Awaiting the local A-ASSOCIATE response.
    Sta3,
    /// Awaiting the transport connection.
    Sta4,
    /// Awaiting A-ASSOCIATE-AC or A-ASSOCIATE-RJ.
    Sta5,
    /// Association established, ready for data transfer.
    Sta6,
    /// Awaiting A-RELEASE-RP.
    Sta7,
    /// Awaiting the local A-RELEASE response.
    Sta8,
    /// Release collision, requestor side: awaiting the local A-RELEASE response.
    Sta9,
    /// Release collision, acceptor side: awaiting A-RELEASE-RP.
    Sta10,
    /// Release collision, requestor side: awaiting A-RELEASE-RP.
    Sta11,
    /// Release collision, acceptor side: awaiting the local A-RELEASE response.
    Sta12,
    /// Awaiting the close of the transport connection.
    Sta13,
}

/// The events of PS3.8 table 9-10.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Local A-ASSOCIATE request.
    Evt1,
    /// Transport connection confirmed (we connected).
    Evt2,
    /// A-ASSOCIATE-AC received.
    Evt3,
    /// A-ASSOCIATE-RJ received.
    Evt4,
    /// Transport connection indicated (a peer connected).
    Evt5,
    /// A-ASSOCIATE-RQ received.
    Evt6,
    /// Local A-ASSOCIATE response: accept.
    Evt7,
    /// Local A-ASSOCIATE response: reject.
    Evt8,
    /// Local P-DATA request.
    Evt9,
    /// P-DATA-TF received.
    Evt10,
    /// Local A-RELEASE request.
    Evt11,
    /// A-RELEASE-RQ received.
    Evt12,
    /// A-RELEASE-RP received.
    Evt13,
    /// Local A-RELEASE response.
    Evt14,
    /// Local A-ABORT request.
    Evt15,
    /// A-ABORT received.
    Evt16,
    /// Transport connection closed.
    Evt17,
    /// ARTIM timer expired.
    Evt18,
    /// Unrecognised or invalid PDU received.
    Evt19,
}

/// The actions of PS3.8 tables 9-6 to 9-9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Open the transport connection.
    Ae1,
    /// Send A-ASSOCIATE-RQ.
    Ae2,
    /// Report the acceptance.
    Ae3,
    /// Report the rejection and close.
    Ae4,
    /// Start ARTIM.
    Ae5,
    /// Stop ARTIM; indicate the request, or reject it as service provider.
    Ae6,
    /// Send A-ASSOCIATE-AC.
    Ae7,
    /// Send A-ASSOCIATE-RJ and start ARTIM.
    Ae8,
    /// Send P-DATA-TF.
    Dt1,
    /// Indicate data.
    Dt2,
    /// Send A-RELEASE-RQ.
    Ar1,
    /// Indicate the release request.
    Ar2,
    /// Confirm the release and close.
    Ar3,
    /// Send A-RELEASE-RP and start ARTIM.
    Ar4,
    /// Stop ARTIM.
    Ar5,
    /// Indicate data although we have asked for release.
    Ar6,
    /// Send data although the peer has asked for release.
    Ar7,
    /// Indicate the release collision.
    Ar8,
    /// Send A-RELEASE-RP (collision).
    Ar9,
    /// Confirm the release (collision).
    Ar10,
    /// Send A-ABORT and start ARTIM.
    Aa1,
    /// Stop ARTIM and close.
    Aa2,
    /// Indicate the peer's abort and close.
    Aa3,
    /// Indicate the loss of the connection.
    Aa4,
    /// Stop ARTIM.
    Aa5,
    /// Ignore the PDU.
    Aa6,
    /// Send A-ABORT.
    Aa7,
    /// Send A-ABORT as service provider, indicate it, start ARTIM.
    Aa8,
}

use Action::{
    Aa1, Aa2, Aa3, Aa4, Aa5, Aa6, Aa7, Aa8, Ae1, Ae2, Ae3, Ae4, Ae5, Ae6, Ae7, Ae8, Ar1, Ar2, Ar3, Ar4, Ar5, Ar6, Ar7,
    Ar8, Ar9, Ar10, Dt1, Dt2,
};
use Event::{
    Evt1, Evt2, Evt3, Evt4, Evt5, Evt6, Evt7, Evt8, Evt9, Evt10, Evt11, Evt12, Evt13, Evt14, Evt15, Evt16, Evt17,
    Evt18, Evt19,
};
use State::{Sta1, Sta2, Sta3, Sta4, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12, Sta13};

/// Every allowed pair of table 9-10 with its action, one row per (event, action). What is not listed is not
/// allowed.
pub(crate) const TRANSITIONS: &[(Event, &[State], Action)] = &[
    (Evt1, &[Sta1], Ae1),
    (Evt2, &[Sta4], Ae2),
    (Evt3, &[Sta2], Aa1),
    (Evt3, &[Sta5], Ae3),
    (Evt3, &[Sta3, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt3, &[Sta13], Aa6),
    (Evt4, &[Sta2], Aa1),
    (Evt4, &[Sta5], Ae4),
    (Evt4, &[Sta3, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt4, &[Sta13], Aa6),
    (Evt5, &[Sta1], Ae5),
    (Evt6, &[Sta2], Ae6),
    (Evt6, &[Sta3, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt6, &[Sta13], Aa7),
    (Evt7, &[Sta3], Ae7),
    (Evt8, &[Sta3], Ae8),
    (Evt9, &[Sta6], Dt1),
    (Evt9, &[Sta8], Ar7),
    (Evt10, &[Sta2], Aa1),
    (Evt10, &[Sta6], Dt2),
    (Evt10, &[Sta7], Ar6),
    (Evt10, &[Sta3, Sta5, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt10, &[Sta13], Aa6),
    (Evt11, &[Sta6], Ar1),
    (Evt12, &[Sta2], Aa1),
    (Evt12, &[Sta6], Ar2),
    (Evt12, &[Sta7], Ar8),
    (Evt12, &[Sta3, Sta5, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt12, &[Sta13], Aa6),
    (Evt13, &[Sta2], Aa1),
    (Evt13, &[Sta7, Sta11], Ar3),
    (Evt13, &[Sta10], Ar10),
    (Evt13, &[Sta3, Sta5, Sta6, Sta8, Sta9, Sta12], Aa8),
    (Evt13, &[Sta13], Aa6),
    (Evt14, &[Sta8, Sta12], Ar4),
    (Evt14, &[Sta9], Ar9),
    (Evt15, &[Sta4], Aa2),
    (Evt15, &[Sta3, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa1),
    (Evt16, &[Sta2, Sta13], Aa2),
    (Evt16, &[Sta3, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa3),
    (Evt17, &[Sta2], Aa5),
    (Evt17, &[Sta3, Sta4, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa4),
    (Evt17, &[Sta13], Ar5),
    (Evt18, &[Sta2, Sta13], Aa2),
    (Evt19, &[Sta2], Aa1),
    (Evt19, &[Sta3, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12], Aa8),
    (Evt19, &[Sta13], Aa7),
];

impl Action {
    /// The state after the action. It follows from the action alone, but for a release collision (AR-8), where
    /// the role decides, and for AE-6, where `Sta3` stands for an acceptable request
    /// (see [`StateMachine::on_association_request`]).
    pub(crate) const fn next_state(self, role: Role) -> State {
        match self {
            Ae1 => Sta4,
            Ae2 => Sta5,
            Ae3 | Ae7 | Dt1 | Dt2 => Sta6,
            Ae5 => Sta2,
            Ae6 => Sta3,
            Ar1 | Ar6 => Sta7,
            Ar2 | Ar7 => Sta8,
            Ar8 => match role {
                Role::Requestor => Sta9,
                Role::Acceptor => Sta10,
            },
            Ar9 => Sta11,
            Ar10 => Sta12,
            Ae4 | Ar3 | Ar5 | Aa2 | Aa3 | Aa4 | Aa5 => Sta1,
            Ae8 | Ar4 | Aa1 | Aa6 | Aa7 | Aa8 => Sta13,
        }
    }
}

/// An event that table 9-10 does not allow in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} is not allowed in {state:?} (PS3.8 table 9-10)")]
pub(crate) struct NotAllowed {
    event: Event,
    state: State,
}

/// The action of table 9-10 for `event` in `state`.
pub(crate) fn transition(event: Event, state: State) -> Result<Action, NotAllowed> {
    TRANSITIONS
        .iter()
        .find(|(row_event, states, _)| *row_event == event && states.contains(&state))
        .map(|(_, _, action)| *action)
        .ok_or(NotAllowed { event, state })
}

/// The state of one association.
#[derive(Debug)]
pub(crate) struct StateMachine {
    state: State,
    role: Role,
}

impl StateMachine {
    /// A machine in `Sta1`.
    pub(crate) const fn new(role: Role) -> Self {
        Self { state: Sta1, role }
    }

    /// The present state.
    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Takes `event`: the action to perform, and the machine is in the state after it. An event that is not
    /// allowed leaves the state as it is.
    pub(crate) fn on(&mut self, event: Event) -> Result<Action, NotAllowed> {
        let action = transition(event, self.state)?;
        self.state = action.next_state(self.role);
        Ok(action)
    }

    /// Evt6, where AE-6 has two outcomes: a request that the service provider cannot accept (its protocol
    /// version) is rejected at once and leads to `Sta13`.
    pub(crate) fn on_association_request(&mut self, acceptable: bool) -> Result<Action, NotAllowed> {
        let action = self.on(Evt6)?;
        if action == Ae6 && !acceptable {
            self.state = Sta13;
        }
        Ok(action)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Sta1 => "idle",
            Sta2 => "awaiting an A-ASSOCIATE-RQ",
            Sta3 => "answering an A-ASSOCIATE-RQ",
            Sta4 => "connecting",
            Sta5 => "awaiting the answer to an A-ASSOCIATE-RQ",
            Sta6 => "exchanging data",
            Sta7 | Sta11 => "awaiting an A-RELEASE-RP",
            Sta8 | Sta9 | Sta12 => "answering an A-RELEASE-RQ",
            Sta10 => "awaiting an A-RELEASE-RP after a release collision",
            Sta13 => "awaiting the close of the connection",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 19] = [
        Evt1, Evt2, Evt3, Evt4, Evt5, Evt6, Evt7, Evt8, Evt9, Evt10, Evt11, Evt12, Evt13, Evt14, Evt15, Evt16, Evt17,
        Evt18, Evt19,
    ];
    const STATES: [State; 13] = [Sta1, Sta2, Sta3, Sta4, Sta5, Sta6, Sta7, Sta8, Sta9, Sta10, Sta11, Sta12, Sta13];

    /// Table 9-10 written down again in the standard's own layout: a row per event, a column per state; each cell
    /// names the action and the next state for an acceptor, `.` is an empty cell.
    const TABLE_9_10: &str = "
        Evt1  Ae1>4 .      .      .     .      .      .      .      .      .       .      .       .
        Evt2  .     .      .      Ae2>5 .      .      .      .      .      .       .      .       .
        Evt3  .     Aa1>13 Aa8>13 .     Ae3>6  Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa6>13
        Evt4  .     Aa1>13 Aa8>13 .     Ae4>1  Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa6>13
        Evt5  Ae5>2 .      .      .     .      .      .      .      .      .       .      .       .
        Evt6  .     Ae6>3  Aa8>13 .     Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa7>13
        Evt7  .     .      Ae7>6  .     .      .      .      .      .      .       .      .       .
        Evt8  .     .      Ae8>13 .     .      .      .      .      .      .       .      .       .
        Evt9  .     .      .      .     .      Dt1>6  .      Ar7>8  .      .       .      .       .
        Evt10 .     Aa1>13 Aa8>13 .     Aa8>13 Dt2>6  Ar6>7  Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa6>13
        Evt11 .     .      .      .     .      Ar1>7  .      .      .      .       .      .       .
        Evt12 .     Aa1>13 Aa8>13 .     Aa8>13 Ar2>8  Ar8>10 Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa6>13
        Evt13 .     Aa1>13 Aa8>13 .     Aa8>13 Aa8>13 Ar3>1  Aa8>13 Aa8>13 Ar10>12 Ar3>1  Aa8>13  Aa6>13
        Evt14 .     .      .      .     .      .      .      Ar4>13 Ar9>11 .       .      Ar4>13  .
        Evt15 .     .      Aa1>13 Aa2>1 Aa1>13 Aa1>13 Aa1>13 Aa1>13 Aa1>13 Aa1>13  Aa1>13 Aa1>13  .
        Evt16 .     Aa2>1  Aa3>1  .     Aa3>1  Aa3>1  Aa3>1  Aa3>1  Aa3>1  Aa3>1   Aa3>1  Aa3>1   Aa2>1
        Evt17 .     Aa5>1  Aa4>1  Aa4>1 Aa4>1  Aa4>1  Aa4>1  Aa4>1  Aa4>1  Aa4>1   Aa4>1  Aa4>1   Ar5>1
        Evt18 .     Aa2>1  .      .     .      .      .      .      .      .       .      .       Aa2>1
        Evt19 .     Aa1>13 Aa8>13 .     Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13 Aa8>13  Aa8>13 Aa8>13  Aa7>13";

    #[test]
    fn every_pair_is_the_standards_entry_or_not_allowed() {
        let rows: Vec<Vec<&str>> =
            TABLE_9_10.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(rows.len(), EVENTS.len());
        for (event, row) in EVENTS.iter().zip(&rows) {
            assert_eq!(row[0], format!("{event:?}"));
            assert_eq!(row.len(), 1 + STATES.len(), "{event:?}");
            for (state, expected) in STATES.iter().zip(&row[1..]) {
                let mut machine = StateMachine { state: *state, role: Role::Acceptor };
                let found = match machine.on(*event) {
                    Ok(action) => format!("{action:?}>{}", format!("{:?}", machine.state()).trim_start_matches("Sta")),
                    Err(error) => {
                        assert_eq!(error, NotAllowed { event: *event, state: *state });
                        assert_eq!(machine.state(), *state, "a refused event must not move the machine");
                        ".".to_owned()
                    }
                };
                assert_eq!(found, *expected, "{event:?} in {state:?}");
            }
        }
    }

    #[test]
    fn no_pair_is_listed_twice() {
        for event in EVENTS {
            for state in STATES {
                let n_rows = TRANSITIONS.iter().filter(|(e, states, _)| *e == event && states.contains(&state)).count();
                assert!(n_rows <= 1, "{event:?} in {state:?} has {n_rows} rows");
            }
        }
    }

    #[test]
    fn the_role_decides_a_release_collision() {
        for (role, events, states) in [
            (Role::Requestor, [Evt12, Evt14, Evt13], [Sta9, Sta11, Sta1]),
            (Role::Acceptor, [Evt12, Evt13, Evt14], [Sta10, Sta12, Sta13]),
        ] {
            let mut machine = StateMachine { state: Sta7, role };
            for (event, state) in events.into_iter().zip(states) {
                machine.on(event).unwrap();
                assert_eq!(machine.state(), state, "{role:?} {event:?}");
            }
        }
    }

    #[test]
    fn an_unacceptable_request_is_rejected_by_the_provider() {
        let mut machine = StateMachine { state: Sta2, role: Role::Acceptor };
        assert_eq!(machine.on_association_request(false), Ok(Ae6));
        assert_eq!(machine.state(), Sta13);
        let mut machine = StateMachine { state: Sta2, role: Role::Acceptor };
        assert_eq!(machine.on_association_request(true), Ok(Ae6));
        assert_eq!(machine.state(), Sta3);
    }
}
