//! The Raft group as the API sees it: a thin layer over `consensus` that gives every call a deadline and turns errors into
//! failures for the caller.

use std::{sync::Arc, time::Instant};

use super::services::Observed;
use crate::{
    api::group::{Applied, Group, Standing},
    consensus::{
        Change, ChangeRefused, Consensus, MemberRole, ProposalRefused, ProposeError, ReadError,
        Recovery, StopReason, administer::AdministerError, publication::AppliedState,
    },
    model::node::NodeId,
    state::{command::Command, outcome::Outcome},
    wire::error::{Failure, FailureCode},
};

/// This node's group.
pub(super) struct NodeGroup {
    pub(super) consensus: Consensus,
    /// None while nothing is served.
    pub(super) services: Option<Arc<Observed>>,
}

impl NodeGroup {
    /// Waits until DNS answers from a state that shows `revision`: what is acknowledged here is answered here.
    async fn wait_until_served(&self, revision: u64, deadline: Instant) -> Result<(), Failure> {
        let Some(services) = &self.services else {
            return Ok(());
        };
        // Handed over here: the way through the channels costs every write two changes of threads.
        let newest = self.consensus.snapshots().borrow().clone();
        if let Some(newest) = newest.filter(|newest| newest.revision >= revision) {
            services.dns.serve(&newest);
            return Ok(());
        }
        let mut served = services.dns.served();
        let reached = served.wait_for(|served| *served >= revision);
        match tokio::time::timeout_at(deadline.into(), reached).await {
            // The sender is gone: DNS has stopped, and nothing is answered from anything.
            Ok(_) => Ok(()),
            Err(_) => Err(Failure::new(
                FailureCode::UnknownOutcome,
                "cluster",
                format!(
                    "revision {revision} is committed, but this node does not answer from it yet"
                ),
                "look at `pontoon cluster status` before you repeat the change",
            )),
        }
    }
}

#[tonic::async_trait]
impl Group for NodeGroup {
    async fn propose(&self, command: Command, deadline: Instant) -> Result<Outcome, Failure> {
        let outcome = self
            .consensus
            .propose(command, deadline)
            .await
            .map_err(propose_failure)?;
        if let Outcome::Applied(applied) = &outcome {
            self.wait_until_served(applied.revision, deadline).await?;
        }
        Ok(outcome)
    }

    async fn catch_up(&self, deadline: Instant) -> Result<(), Failure> {
        let read = self.consensus.read_revision(deadline).await;
        read.map(|_| ()).map_err(read_failure)
    }

    fn applied(&self) -> Applied {
        self.consensus.states().newest().into()
    }

    async fn applied_after(&self, revision: u64) -> Option<Applied> {
        let mut states = self.consensus.states();
        // Waiting loses nothing when it is dropped: the channel holds the newest state.
        let newer = states
            .wait_for(|applied| applied.state.revision() > revision)
            .await
            .ok()?;
        Some(newer.into())
    }

    fn standing(&self) -> Standing {
        let status = self.consensus.status();
        let voters = status
            .nodes
            .iter()
            .filter(|n| n.role == MemberRole::Voter)
            .map(|n| n.id);
        let own = status.nodes.iter().find(|n| n.id == status.answered_by);
        Standing {
            id: status.answered_by,
            leader: status.leader,
            term: status.term,
            role: own.map_or("starting", |own| own.state.word()),
            voters: voters.collect(),
            stale: status.recovery != Recovery::Current,
            problem: own.map(|own| own.problem.clone()).unwrap_or_default(),
            unfit: own.map(|own| own.unfit.clone()).unwrap_or_default(),
            refusal: self.consensus.timing().election_timeout_max,
            flush: self.consensus.log_figures().flush().unwrap_or_default(),
        }
    }

    fn gone(&self) -> Option<Failure> {
        gone(*self.consensus.recovery().borrow())
    }

    async fn until_gone(&self) -> Failure {
        let mut recovery = self.consensus.recovery();
        loop {
            if let Some(why) = gone(*recovery.borrow_and_update()) {
                return why;
            }
            // The node stops.
            if recovery.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn transfer(&self, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, Failure> {
        let object = || to.map_or_else(|| "leadership".to_owned(), |id| format!("node {id}"));
        let moved = match to {
            Some(_) => self.consensus.transfer(to, deadline).await,
            None => self.consensus.move_on(deadline).await,
        };
        moved.map_err(|e| administer_failure(object(), &e))
    }

    async fn promote(&self, id: NodeId, deadline: Instant) -> Result<bool, Failure> {
        let changed = self.consensus.promote(id, deadline).await;
        changed
            .map(is_change)
            .map_err(|e| administer_failure(format!("node {id}"), &e))
    }

    async fn remove(&self, id: NodeId, deadline: Instant) -> Result<bool, Failure> {
        let changed = if id == self.consensus.id() {
            self.consensus.leave(deadline).await
        } else {
            self.consensus.remove(id, deadline).await
        };
        changed
            .map(is_change)
            .map_err(|e| administer_failure(format!("node {id}"), &e))
    }
}

impl From<AppliedState> for Applied {
    fn from(applied: AppliedState) -> Self {
        Self {
            index: applied.log_id.map_or(0, |id| id.index),
            state: applied.state,
        }
    }
}

fn is_change(change: Change) -> bool {
    change == Change::Made
}

fn propose_failure(error: ProposeError) -> Failure {
    let code = match &error {
        ProposeError::NoLeader { .. } => FailureCode::NoLeader,
        // The code says that the outcome is unknown, and whoever shows it puts that in front.
        ProposeError::Unknown { problem } => {
            let hint = "ask again with the same request id, or read what is there";
            return Failure::new(FailureCode::UnknownOutcome, "cluster", problem, hint);
        }
        ProposeError::Refused(
            ProposalRefused::TooLarge { .. } | ProposalRefused::LowSpace { .. },
        ) => FailureCode::LimitExceeded,
        ProposeError::Refused(ProposalRefused::Overloaded { .. }) => FailureCode::Overloaded,
        ProposeError::Ended { .. } => FailureCode::NotReady,
    };
    failure(code, "cluster", &error.to_string())
}

/// Why state of such a standing is the cluster's no longer. One that is merely old is told, as stale.
fn gone(recovery: Recovery) -> Option<Failure> {
    match recovery {
        Recovery::Stopped(reason @ (StopReason::Removed | StopReason::LogLost)) => Some(failure(
            FailureCode::NotReady,
            "this node",
            &reason.to_string(),
        )),
        Recovery::Stopped(StopReason::TooStale)
        | Recovery::Recovering
        | Recovery::Current
        | Recovery::Stale => None,
    }
}

fn read_failure(error: ReadError) -> Failure {
    let code = match &error {
        ReadError::NoLeader { .. } => FailureCode::NoLeader,
        ReadError::Behind { .. } => FailureCode::Overloaded,
        ReadError::Ended { .. } => FailureCode::NotReady,
    };
    failure(code, "cluster", &error.to_string())
}

fn administer_failure(object: String, error: &AdministerError) -> Failure {
    let code = match error {
        AdministerError::Refused(ChangeRefused::NotMember(_)) => FailureCode::NotFound,
        AdministerError::Refused(_) => FailureCode::Conflict,
        AdministerError::NoLeader { .. } => FailureCode::NoLeader,
        AdministerError::Unfinished { .. } => FailureCode::UnknownOutcome,
        AdministerError::Ended { .. } => FailureCode::NotReady,
    };
    failure(code, &*object, &about(&object, &error.to_string()))
}

/// The text without the object, which is told before it: "node 2" is "it".
fn about(object: &str, text: &str) -> String {
    text.replacen(&format!("{object} "), "it ", 1)
}

/// Errors of `consensus` end in what to do next, after the last colon or semicolon.
fn failure(code: FailureCode, object: impl Into<String>, text: &str) -> Failure {
    let (problem, hint) = text
        .rsplit_once("; ")
        .or_else(|| text.rsplit_once(": "))
        .unwrap_or((text, ""));
    Failure::new(code, object.into(), problem, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_node_that_was_removed_or_lost_its_log_is_not_told() {
        for (recovery, told) in [
            (Recovery::Current, true),
            (Recovery::Stale, true),
            (Recovery::Recovering, true),
            (Recovery::Stopped(StopReason::TooStale), true),
            (Recovery::Stopped(StopReason::Removed), false),
            (Recovery::Stopped(StopReason::LogLost), false),
        ] {
            let why = gone(recovery);
            assert_eq!(why.is_none(), told, "{recovery:?}");
            assert!(
                why.is_none_or(|why| why.code == FailureCode::NotReady && !why.hint.is_empty())
            );
        }
    }

    #[test]
    fn a_refusal_names_its_node_once() {
        let told = |object: &str, refused: ChangeRefused| {
            let failure = administer_failure(object.to_owned(), &refused.into());
            (failure.to_string(), failure.hint)
        };
        let unfit = |id| ChangeRefused::Unfit {
            id: NodeId(id),
            problem: "no carrier".into(),
        };
        assert_eq!(
            told("node 2", unfit(2)),
            (
                "node 2: it is unfit to hold the VIPs: no carrier".into(),
                "choose another, or mend it".into()
            )
        );
        // Another node is named.
        for (object, id) in [("node 2", 21), ("leadership", 2)] {
            let (text, _) = told(object, unfit(id));
            assert_eq!(
                text,
                format!("{object}: node {id} is unfit to hold the VIPs: no carrier")
            );
        }
        let declined = ChangeRefused::Declined {
            id: NodeId(2),
            problem: "its disk does not answer".into(),
        };
        let (text, _) = told("node 2", declined);
        assert_eq!(
            text,
            "node 2: nothing was handed over, as it declined: its disk does not answer"
        );
    }

    #[test]
    fn an_outcome_that_is_known_is_no_unknown_one() {
        let code = |error: AdministerError| administer_failure("node 2".into(), &error).code;
        let went = ChangeRefused::WentTo {
            to: NodeId(2),
            leader: NodeId(3),
            why: String::new(),
        };
        let own_disk = ChangeRefused::OwnDisk {
            id: NodeId(1),
            silent_ms: 12_345,
        };
        assert!(own_disk.to_string().contains("node 1"));
        assert!(own_disk.to_string().contains("12.3 s"), "{own_disk}");
        for refused in [
            went,
            own_disk,
            ChangeRefused::NoLease(NodeId(1)),
            ChangeRefused::Busy,
        ] {
            assert_eq!(code(refused.into()), FailureCode::Conflict);
        }
    }

    #[test]
    fn an_unknown_outcome_is_called_so_once() {
        let problem = String::from("node 1 at 10.0.0.1:7400 did not answer: nothing within 5s");
        let failure = propose_failure(ProposeError::Unknown {
            problem: problem.clone(),
        });
        assert_eq!(failure.code, FailureCode::UnknownOutcome);
        // The command line puts the words in front.
        assert_eq!(failure.problem, problem);
        assert!(failure.hint.contains("same request id"), "{failure:?}");
    }
}
