//! Hands applied state to its readers, once it is durable here and the node has recovered.
//!
//! State is published only up to the locally durable log index: a leader may apply an entry that the others have stored
//! and it has not yet, and what it showed must be there again after a restart. A write is answered after its state is
//! published, so that a client that asks this node next sees it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::storage::ApplyResponder;
use tokio::sync::watch;

use super::types::{LogId, Response, TypeConfig};
use crate::{model::snapshot::Snapshot, state::State};

/// States waiting for the disk. When there are more, the newest ones are joined.
const WAITING: usize = 64;

/// The whole state after the entry `log_id`.
#[derive(Clone, Debug, Default)]
pub struct AppliedState {
    pub log_id: Option<LogId>,
    pub state: Arc<State>,
}

/// Follows the states. It gives copies only (two reference counts): whoever held on to the channel's own value and looked a second
/// time, with the state machine waiting in between to publish, would wait for ever, and so would the log.
#[derive(Clone, Debug)]
pub struct States(watch::Receiver<AppliedState>);

/// No state will follow: consensus has ended.
#[derive(Debug, thiserror::Error)]
#[error("consensus has ended; restart the node")]
pub struct StatesEnded;

impl States {
    /// The newest state.
    pub fn newest(&self) -> AppliedState {
        self.0.borrow().clone()
    }

    /// The newest state, from which on `changed` counts.
    pub fn newest_seen(&mut self) -> AppliedState {
        self.0.borrow_and_update().clone()
    }

    /// Waits for a state newer than the one that `newest_seen` gave last. Losing this future loses nothing.
    pub async fn changed(&mut self) -> Result<(), StatesEnded> {
        self.0.changed().await.map_err(|_| StatesEnded)
    }

    /// The first state from the newest on that is as wanted. `wanted` must not look at the states by another way.
    pub async fn wait_for(
        &mut self,
        wanted: impl FnMut(&AppliedState) -> bool,
    ) -> Result<AppliedState, StatesEnded> {
        let found = self.0.wait_for(wanted).await;
        found.map(|state| state.clone()).map_err(|_| StatesEnded)
    }
}

/// An answer that waits for its state to be published.
pub(super) type Answer = (ApplyResponder<TypeConfig>, Response);

/// The switch between the state machine and those who read its state. Clones are the same switch.
#[derive(Clone)]
pub struct Publication(Arc<Inner>);

struct Inner {
    states: watch::Sender<AppliedState>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    gate: Mutex<Gate>,
}

#[derive(Default)]
struct Gate {
    started: bool,
    /// The last index that is durable here, in the log and as a snapshot.
    log: Option<u64>,
    snapshot: Option<u64>,
    waiting: VecDeque<Waiting>,
    /// Nothing will become durable any more.
    abandoned: bool,
    published: Option<LogId>,
}

impl Gate {
    fn durable(&self) -> Option<u64> {
        self.log.max(self.snapshot)
    }
}

struct Waiting {
    applied: AppliedState,
    answers: Vec<Answer>,
}

impl Publication {
    /// `applied` is durable: it comes from a snapshot file, or is the empty state. `log` is the last durable log index.
    pub(super) fn new(applied: AppliedState, log: Option<u64>) -> Self {
        let gate = Gate {
            log,
            snapshot: applied.log_id.map(|id| id.index),
            ..Gate::default()
        };
        Self(Arc::new(Inner {
            states: watch::Sender::new(applied),
            snapshots: watch::Sender::new(None),
            gate: Mutex::new(gate),
        }))
    }

    /// The servers get the state from now on. Called once, when recovery has ended; until then they are given nothing.
    pub fn start(&self) {
        let mut gate = self.gate();
        if !gate.started {
            gate.started = true;
            let applied = self.state();
            self.show(&mut gate, &applied);
        }
    }

    /// Whole states, for the API: durable, but not held back until `start`.
    pub fn states(&self) -> States {
        States(self.0.states.subscribe())
    }

    /// The newest of `states`.
    pub fn state(&self) -> AppliedState {
        self.0.states.borrow().clone()
    }

    /// What the servers serve; none before `start`.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.0.snapshots.subscribe()
    }

    /// The last log id whose state the servers were given.
    pub fn published(&self) -> Option<LogId> {
        self.gate().published
    }

    /// State to be published as soon as it is durable; the answers go out right after.
    pub(super) fn offer(&self, applied: AppliedState, answers: Vec<Answer>) {
        let mut gate = self.gate();
        if gate.abandoned && applied.log_id.map(|id| id.index) > gate.durable() {
            return;
        }
        let full = gate.waiting.len() >= WAITING;
        match gate.waiting.back_mut() {
            Some(last) if full => {
                last.applied = applied;
                last.answers.extend(answers);
            }
            _ => gate.waiting.push_back(Waiting { applied, answers }),
        }
        self.release(gate);
    }

    /// The log is durable up to `index` and no further.
    pub(super) fn log_durable(&self, index: Option<u64>) {
        let mut gate = self.gate();
        gate.log = index;
        self.release(gate);
    }

    /// A snapshot file of the state at `index` is durable.
    pub(super) fn snapshot_durable(&self, index: Option<u64>) {
        let mut gate = self.gate();
        gate.snapshot = gate.snapshot.max(index);
        self.release(gate);
    }

    /// Nothing more will be durable: what waits for it is given up. Its clients are told that the node stopped.
    pub(super) fn abandon(&self) {
        let mut gate = self.gate();
        gate.abandoned = true;
        gate.waiting.clear();
    }

    fn release(&self, mut gate: MutexGuard<'_, Gate>) {
        let mut answers = Vec::new();
        let mut newest = None;
        while let Some(first) = gate.waiting.front() {
            if first.applied.log_id.map(|id| id.index) > gate.durable() {
                break;
            }
            if let Some(released) = gate.waiting.pop_front() {
                answers.extend(released.answers);
                newest = Some(released.applied);
            }
        }
        if let Some(applied) = newest {
            self.0.states.send_replace(applied.clone());
            if gate.started {
                self.show(&mut gate, &applied);
            }
        }
        drop(gate);
        for (responder, response) in answers {
            responder.send(response);
        }
    }

    fn show(&self, gate: &mut Gate, applied: &AppliedState) {
        gate.published = applied.log_id;
        let snapshot = Arc::new(applied.state.snapshot().clone());
        self.0.snapshots.send_replace(Some(snapshot));
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.0.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use openraft::{impls::leader_id_std::LeaderId, vote::RaftLeaderId};

    use super::*;

    #[test]
    fn whoever_looks_twice_while_states_are_published_sees_them_in_order_and_is_done() {
        const STATES: u64 = 100_000;
        let publication = Publication::new(AppliedState::default(), Some(STATES));
        let publisher = publication.clone();
        let publishing = std::thread::spawn(move || {
            for index in 1..=STATES {
                let applied = AppliedState {
                    log_id: Some(LogId::new(
                        LeaderId::<u64, u64>::new(1, 1).to_committed(),
                        index,
                    )),
                    ..AppliedState::default()
                };
                publisher.offer(applied, Vec::new());
            }
        });
        let newest = || publication.state().log_id.map_or(0, |id| id.index);
        let states = publication.states();
        while newest() < STATES {
            // Two looks in one statement, by two ways: none may keep the publisher waiting while the next one waits for it.
            let looks = (publication.state(), states.newest());
            assert!(looks.0.log_id <= looks.1.log_id);
        }
        publishing.join().unwrap();
    }
}
