//! Whether a node is fit to hold the VIPs: what it says of itself, and what the others make of its report.
//!
//! A node that is starting counts as unfit to the others, for it holds nothing yet. It is no fault of it: a leader gives nothing
//! away because it starts, no alarm tells of it, and `damping` does not count it.

use std::{
    fmt,
    time::{Duration, Instant},
};

use super::messages::{NodeState, PeerReport};

/// What the checks of a node found counts for so long.
pub const FITNESS_LASTS: Duration = Duration::from_secs(5);

/// What the checks of a node found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Why it is unfit to hold VIPs; none: it is fit.
    pub unfit: Option<String>,
    /// What failed last, and does not count as failed yet. It keeps what it has, and is given nothing: what befalls all nodes at one
    /// moment would send the VIPs to each of them that has not counted to the end.
    pub doubt: Option<String>,
}

/// What a node last said of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fitness {
    /// Nobody checks: it counts as fit.
    #[default]
    Unchecked,
    /// Its services are still to be started.
    Starting,
    /// What its checks found when they ended last.
    Checked { at: Instant, found: Findings },
    /// Nothing checks any more, or not yet: it is unfit until something else is said.
    Stopped(String),
}

impl Fitness {
    /// Why the node is unfit to hold VIPs; none: it is fit, is starting, or nobody checks.
    pub fn unfit(&self, now: Instant) -> Option<String> {
        match self {
            Self::Unchecked | Self::Starting => None,
            Self::Stopped(why) => Some(why.clone()),
            Self::Checked { at, found } => {
                let silent = now.saturating_duration_since(*at);
                match silent > FITNESS_LASTS {
                    true => Some(format!(
                        "its checks have not ended for {} s: it hangs",
                        silent.as_secs()
                    )),
                    false => found.unfit.clone(),
                }
            }
        }
    }

    /// Why the node takes no VIPs now: it is unfit, or may be before long.
    pub fn takes_none(&self, now: Instant) -> Option<String> {
        let doubt = || match self {
            Self::Checked { found, .. } => found.doubt.clone(),
            Self::Unchecked | Self::Starting | Self::Stopped(_) => None,
        };
        self.unfit(now).or_else(doubt)
    }

    pub fn is_starting(&self) -> bool {
        *self == Self::Starting
    }
}

/// What keeps another node from being given the VIPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It serves nothing yet, and will before long.
    Starting,
    Because(String),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("it is starting"),
            Self::Because(problem) => f.write_str(problem),
        }
    }
}

impl PeerReport {
    /// Why the node that says this is to be given no VIPs; none: it is fit.
    pub fn why_unfit(&self) -> Option<Unfit> {
        match self.state {
            NodeState::Starting => Some(Unfit::Starting),
            NodeState::Failed => {
                let problem = self.problem.clone();
                let problem = problem.unwrap_or_else(|| "it has left consensus".into());
                Some(Unfit::Because(problem))
            }
            NodeState::Leader
            | NodeState::Follower
            | NodeState::Candidate
            | NodeState::Learner
            | NodeState::Unreachable => self.unfit.clone().map(Unfit::Because),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{node::NodeId, vip::VipFacts};

    fn report(state: NodeState, problem: Option<&str>, unfit: Option<&str>) -> PeerReport {
        PeerReport {
            id: NodeId(2),
            term: 1,
            leader: None,
            state,
            applied: 1,
            revision: 1,
            state_hash: [0; 16],
            stale: false,
            pid: 1,
            version: String::new(),
            feature_level: 1,
            problem: problem.map(str::to_owned),
            low_space: None,
            vips: VipFacts::default(),
            unfit: unfit.map(str::to_owned),
        }
    }

    #[test]
    fn one_that_starts_or_has_failed_is_unfit_though_its_checks_say_nothing() {
        let because = |problem: &str| Some(Unfit::Because(problem.into()));
        // (state, its problem, what its checks say, why it is unfit)
        let cases = [
            (NodeState::Follower, None, None, None),
            (NodeState::Leader, None, None, None),
            (NodeState::Candidate, None, None, None),
            // Little space alone is no reason.
            (NodeState::Follower, Some("little space"), None, None),
            (
                NodeState::Follower,
                None,
                Some("no carrier"),
                because("no carrier"),
            ),
            (NodeState::Starting, None, None, Some(Unfit::Starting)),
            (
                NodeState::Starting,
                None,
                Some("no carrier"),
                Some(Unfit::Starting),
            ),
            (
                NodeState::Failed,
                None,
                None,
                because("it has left consensus"),
            ),
            (
                NodeState::Failed,
                Some("its disk failed"),
                None,
                because("its disk failed"),
            ),
        ];
        for (state, problem, unfit, expected) in cases {
            let report = report(state, problem, unfit);
            assert_eq!(report.why_unfit(), expected, "{report:?}");
        }
    }

    #[test]
    fn what_checks_said_is_over_after_a_while_and_what_was_said_at_the_end_is_not() {
        let now = Instant::now();
        let checked = |unfit: Option<&str>| Fitness::Checked {
            at: now,
            found: Findings {
                unfit: unfit.map(str::to_owned),
                doubt: Some("no answer".into()),
            },
        };
        let hangs = Some("its checks have not ended for 60 s: it hangs");
        let stopped = "DNS and listeners are stopped";
        // (what was said, what that says at once, after a minute)
        let cases = [
            (Fitness::Unchecked, None, None),
            (Fitness::Starting, None, None),
            (checked(None), None, hangs),
            (checked(Some("no carrier")), Some("no carrier"), hangs),
            (
                Fitness::Stopped(stopped.into()),
                Some(stopped),
                Some(stopped),
            ),
        ];
        for (said, at_once, later) in cases {
            assert_eq!(said.unfit(now).as_deref(), at_once, "{said:?}");
            assert_eq!(
                said.unfit(now + FITNESS_LASTS).as_deref(),
                at_once,
                "{said:?}"
            );
            let minute = now + Duration::from_secs(60);
            assert_eq!(said.unfit(minute).as_deref(), later, "{said:?}");
            let is_checked = matches!(said, Fitness::Checked { .. });
            let none = at_once.or(is_checked.then_some("no answer"));
            assert_eq!(said.takes_none(now).as_deref(), none, "{said:?}");
        }
    }
}
