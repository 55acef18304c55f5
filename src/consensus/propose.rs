//! Proposing and reading on any node.
//!
//! A command goes to whoever leads, again and again under the same request id until its deadline; the state machine
//! applies it once. Whoever asked is told *done* with the outcome only after the command was applied and published on
//! this node. A failure is claimed only where it is certain that the command is in no log; in doubt the end is *unknown*.

use std::time::{Duration, Instant};

use super::{
    Consensus,
    core::{Core, RETRY_PAUSE},
    forward::Forwarder,
    leaderless::Leaderless,
    messages::{ProposalRefused, ProposeRequest, Proposed, ReadIndex, ReadIndexRequest},
    network::{CallError, Rpc, Target},
    types::EncodedCommand,
};
use crate::{
    defect::{self, Defect},
    model::node::NodeId,
    state::{
        command::{Change, Command},
        outcome::Outcome,
    },
    wire,
};

/// Added to the wait of a forwarded call, so that the leader's own answer comes before ours is given up.
const FORWARD_MARGIN: Duration = Duration::from_millis(50);

/// A proposal brought no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly nothing was written.
    #[error(
        "no leader took the command in time: {why}; nothing was changed, {next}",
        why = .0, next = .0.what_next("try again when a majority is up")
    )]
    NoLeader(Leaderless),
    /// It may have been written, or be written later. A retry under the same request id tells.
    #[error(
        "the outcome is unknown: {problem}; ask again with the same request id, or read what is there"
    )]
    Unknown { problem: String },
    /// Certainly nothing was written.
    #[error(transparent)]
    Refused(#[from] ProposalRefused),
    /// Consensus has ended on this node. Certainly nothing was written.
    #[error("this node takes no writes: {problem}; use another node")]
    Ended { problem: String },
}

/// A linearizable read cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error(
        "no leader confirmed the read in time: {why}; read with local consistency, or {next}",
        why = .0, next = .0.what_next("try again")
    )]
    NoLeader(Leaderless),
    #[error(
        "this node has not applied the log up to entry {index} in time; try again, or ask another node"
    )]
    Behind { index: u64 },
    #[error(
        "consensus has ended on this node: {problem}; use another node, or read with local consistency"
    )]
    Ended { problem: String },
}

impl Consensus {
    /// Commits `command` and waits until this node has applied it. May be called on any node, and again with the same
    /// command: its request id is applied once.
    ///
    /// # Errors
    /// Only `Unknown` leaves open whether the command was, or will be, applied.
    pub async fn propose(
        &self,
        command: Command,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        let encoded = encode(command).await.ok_or_else(|| ProposeError::Ended {
            problem: "it is stopping".into(),
        })?;
        self.core.propose(encoded, deadline).await
    }

    /// Waits until this node shows everything that was acknowledged anywhere before the call, and returns the revision of
    /// its state then.
    ///
    /// # Errors
    /// When no leader confirms it, or this node does not catch up, before `deadline`.
    pub async fn read_revision(&self, deadline: Instant) -> Result<u64, ReadError> {
        self.core.read_barrier(deadline).await?;
        Ok(self.state().snapshot().revision)
    }
}

impl Core {
    pub(super) async fn propose(
        &self,
        command: EncodedCommand,
        deadline: Instant,
    ) -> Result<Outcome, ProposeError> {
        // Why an earlier attempt may have got into the log.
        let mut perhaps: Option<String> = None;
        let mut attempt = Leaderless::Unknown;
        loop {
            if let Some(ended) = self.ended() {
                return Err(match perhaps {
                    Some(problem) => ProposeError::Unknown { problem },
                    None => ProposeError::Ended { problem: ended },
                });
            }
            let proposed = match self.propose_once(&command, deadline).await {
                Ok(proposed) => proposed,
                Err(error) if is_certain(&error) => {
                    attempt = Leaderless::Attempt(error.to_string());
                    Proposed::NotTaken { leader: None }
                }
                Err(error) => Proposed::Perhaps(error.to_string()),
            };
            match proposed {
                Proposed::Done { index, outcome } => {
                    let applied = self.wait_applied(index, deadline).await;
                    return applied
                        .map(|()| outcome)
                        .map_err(|_| ProposeError::Unknown {
                            problem: format!(
                                "entry {index} is committed, but not applied on this node yet"
                            ),
                        });
                }
                Proposed::Refused(refused) => {
                    return Err(match perhaps {
                        Some(problem) => ProposeError::Unknown { problem },
                        None => refused.into(),
                    });
                }
                Proposed::NotTaken { leader: None } => {}
                Proposed::NotTaken { leader: Some(id) } => {
                    attempt = Leaderless::Attempt(format!("node {id} did not take it"));
                }
                Proposed::Perhaps(why) => perhaps = Some(why),
            }
            if !self.pause(deadline).await {
                return Err(match perhaps {
                    Some(problem) => ProposeError::Unknown { problem },
                    None => ProposeError::NoLeader(self.leaderless(attempt)),
                });
            }
        }
    }

    /// One attempt, here or at the leader. It ends early when another node comes to lead.
    async fn propose_once(
        &self,
        command: &EncodedCommand,
        deadline: Instant,
    ) -> Result<Proposed, CallError> {
        let Some(leader) = self.leader() else {
            return Ok(Proposed::NotTaken { leader: None });
        };
        let attempt = async {
            if leader == self.id {
                return Ok(self.propose_here(command.clone(), deadline).await);
            }
            let request = ProposeRequest {
                command: command.clone(),
                wait_ms: wait_ms(deadline),
            };
            self.ask_to_propose(leader, request, deadline).await
        };
        tokio::select! {
            proposed = attempt => proposed,
            // Dropping the attempt loses no more than its answer; the retry carries the same request id.
            () = self.leader_other_than(leader) => {
                Ok(Proposed::Perhaps(format!("node {leader} led no longer before it answered")))
            }
        }
    }

    /// Waits until all that was acknowledged before the call is applied and published here.
    pub(super) async fn read_barrier(&self, deadline: Instant) -> Result<u64, ReadError> {
        if defect::is(Defect::StaleReads) {
            return Ok(0);
        }
        loop {
            if let Some(problem) = self.ended() {
                return Err(ReadError::Ended { problem });
            }
            if let Some(index) = self.read_index_once(deadline).await {
                let applied = self.wait_applied(index, deadline).await;
                return applied
                    .map(|()| index)
                    .map_err(|_| ReadError::Behind { index });
            }
            if !self.pause(deadline).await {
                let attempt = match self.leader() {
                    None => Leaderless::Unknown,
                    Some(id) => {
                        Leaderless::Attempt(format!("node {id} could not confirm that it leads"))
                    }
                };
                return Err(ReadError::NoLeader(self.leaderless(attempt)));
            }
        }
    }

    async fn read_index_once(&self, deadline: Instant) -> Option<u64> {
        let leader = self.leader()?;
        let attempt = async {
            if leader == self.id {
                return self.read_index_here(deadline).await;
            }
            let request = ReadIndexRequest {
                wait_ms: wait_ms(deadline),
            };
            let answer = self.ask(leader, Rpc::ReadIndex, &request, deadline).await;
            answer.unwrap_or(ReadIndex::NotLeading { leader: None })
        };
        let answer = tokio::select! {
            answer = attempt => answer,
            // A read has no effect to lose.
            () = self.leader_other_than(leader) => return None,
        };
        match answer {
            ReadIndex::Index(index) => Some(index),
            ReadIndex::NotLeading { .. } => None,
        }
    }

    pub(super) async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        to: NodeId,
        rpc: Rpc,
        request: &Q,
        deadline: Instant,
    ) -> Result<A, CallError> {
        let target = self.known(to)?;
        self.links
            .call(target, rpc, request, patience(deadline))
            .await
    }

    async fn ask_to_propose(
        &self,
        leader: NodeId,
        request: ProposeRequest,
        deadline: Instant,
    ) -> Result<Proposed, CallError> {
        if !Forwarder::takes(&request) {
            return self.ask(leader, Rpc::Propose, &request, deadline).await;
        }
        let leader = self.known(leader)?;
        self.forwarder
            .forward(leader, request, patience(deadline))
            .await
    }

    fn known(&self, peer: NodeId) -> Result<Target, CallError> {
        self.target_of(peer).ok_or_else(|| CallError::Unreached {
            to: peer,
            address: ([0, 0, 0, 0], 0).into(),
            problem: "its address is not known".into(),
        })
    }

    /// Ends when somebody else is seen to lead. Losing sight of the leader is not enough: it may still answer.
    async fn leader_other_than(&self, leader: NodeId) {
        let mut leaders = self.leader.subscribe();
        let other = |now: &Option<NodeId>| now.is_some_and(|now| now != leader);
        if leaders.wait_for(other).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A short wait before the next attempt; false when the deadline leaves no time for one.
    pub(super) async fn pause(&self, deadline: Instant) -> bool {
        if Instant::now() + RETRY_PAUSE >= deadline {
            return false;
        }
        let before = self.leader();
        let mut leaders = self.leader.subscribe();
        let news = leaders.wait_for(|now| now.is_some() && *now != before);
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            _ = news => {}
            () = self.stop.cancelled() => {}
        }
        true
    }

    /// Why this node takes part no longer.
    pub(super) fn ended(&self) -> Option<String> {
        if let Some(failure) = &self.health.borrow().failure {
            return Some(format!("its storage failed: {failure}"));
        }
        if self.stop.is_cancelled() {
            return Some("it is stopping".into());
        }
        if *self.removed.borrow() {
            return Some("it was removed from the cluster".into());
        }
        if *self.log_lost.borrow() {
            return Some("its log is gone".into());
        }
        let ended = self.metrics().running_state.err();
        ended.map(|fatal| format!("consensus has ended: {fatal}"))
    }
}

/// Encodes a command, a large one away from the asynchronous threads. None when the process ends meanwhile.
async fn encode(command: Command) -> Option<EncodedCommand> {
    if !is_large(&command) {
        return Some(EncodedCommand(wire::command::encode(&command)));
    }
    let encoding = tokio::task::spawn_blocking(move || wire::command::encode(&command));
    encoding.await.ok().map(EncodedCommand)
}

fn is_large(command: &Command) -> bool {
    const RECORD_SETS: usize = 500;
    let sets = |change: &Change| match change {
        Change::CreateZone { records, .. } | Change::ReplaceZone { records, .. } => records.len(),
        _ => 1,
    };
    command.changes.iter().map(sets).sum::<usize>() > RECORD_SETS
}

/// Whether the leader has certainly not taken what it was asked.
fn is_certain(error: &CallError) -> bool {
    match error {
        CallError::Unreached { .. } | CallError::Refused { .. } => true,
        CallError::NoAnswer { .. } => false,
    }
}

/// How long the answer to a forwarded call is waited for.
fn patience(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()) + FORWARD_MARGIN
}

pub(super) fn wait_ms(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_call_that_was_not_seen_counts_as_not_taken() {
        let (to, address) = (NodeId(2), "127.0.0.1:1".parse().unwrap());
        let problem = String::from("x");
        let unreached = CallError::Unreached {
            to,
            address,
            problem: problem.clone(),
        };
        let silent = CallError::NoAnswer {
            to,
            address,
            problem: problem.clone(),
        };
        let refused = CallError::Refused {
            to,
            address,
            problem,
            removed: false,
        };
        assert!(is_certain(&unreached) && is_certain(&refused));
        assert!(!is_certain(&silent));
    }
}
