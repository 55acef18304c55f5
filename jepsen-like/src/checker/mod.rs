//! What must hold in a run, judged from its history alone.
//!
//! Each checker is a function from a [`History`] (and stated [`Bounds`]) to a [`Verdict`] that names the offending operations. None of
//! them knows a clock, a file or a socket: the same history gives the same verdict.

pub mod append;
pub mod calm;
pub mod dns;
pub mod hand_over;
pub mod healing;
pub mod leaders;
pub mod linearizable;
pub mod nodes;
pub mod outage;
pub mod planned;
pub mod recovery;
pub mod register;
pub mod responder;
pub mod run;
pub mod sessions;
pub mod set;
pub mod visibility;
pub mod witnessed;

#[cfg(test)]
pub(crate) mod fixture;

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::history::{History, Moment, Operation};
use register::Limits;

/// Findings that a verdict lists; beyond that it only counts.
const LISTED: usize = 50;

/// What a checker came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Conclusion {
    /// It holds, for there was nothing to judge, and nothing was owed.
    #[serde(rename = "not exercised")]
    NotExercised,
    Holds,
    /// Neither could be shown: a limit was reached, or what would be needed is not in the history.
    Undecided,
    Violated,
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotExercised => "not exercised",
            Self::Holds => "holds",
            Self::Undecided => "undecided",
            Self::Violated => "violated",
        })
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The kind of violation, in the checker's words: `lost`, `G-single`, `two responders`.
    pub kind: &'static str,
    pub text: String,
    /// Ids of the offending operations.
    pub operations: Vec<u64>,
    pub at: Option<Moment>,
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub checker: &'static str,
    pub conclusion: Conclusion,
    /// What was judged, or why nothing could be.
    pub summary: String,
    /// How many findings there are in all; the first of them follow.
    pub found: usize,
    pub findings: Vec<Finding>,
}

impl Verdict {
    /// Violated if there are findings.
    pub fn of(checker: &'static str, summary: String, findings: Vec<Finding>) -> Self {
        let conclusion = match findings.is_empty() {
            true => Conclusion::Holds,
            false => Conclusion::Violated,
        };
        Self {
            checker,
            conclusion,
            summary,
            found: findings.len(),
            findings: findings.into_iter().take(LISTED).collect(),
        }
    }

    /// The same of so many findings, of which only the first were put into words.
    #[must_use]
    pub fn counting(mut self, found: usize) -> Self {
        self.found = self.found.max(found);
        self
    }

    /// The same, not exercised if it only holds because there was nothing to judge.
    #[must_use]
    pub fn exercised_by(mut self, judged: usize) -> Self {
        if judged == 0 && self.conclusion == Conclusion::Holds {
            self.conclusion = Conclusion::NotExercised;
        }
        self
    }

    /// The same, undecided for this reason unless it is violated anyway.
    #[must_use]
    pub fn unless_undecided(mut self, reason: Option<String>) -> Self {
        if let Some(reason) = reason {
            self.conclusion = self.conclusion.max(Conclusion::Undecided);
            self.summary = format!("{}; {reason}", self.summary);
        }
        self
    }
}

impl Finding {
    pub fn new(kind: &'static str, text: String) -> Self {
        Self {
            kind,
            text,
            operations: vec![],
            at: None,
        }
    }

    /// A finding about operations; the last of them gives the time.
    pub fn about<'a>(
        kind: &'static str,
        text: String,
        operations: impl IntoIterator<Item = &'a Operation>,
    ) -> Self {
        let mut finding = Self::new(kind, text);
        for operation in operations {
            finding.operations.push(operation.id);
            finding.at = Some(operation.completed.unwrap_or(operation.invoked));
        }
        finding
    }

    #[must_use]
    pub fn at(mut self, at: Moment) -> Self {
        self.at = Some(at);
        self
    }
}

/// Takes out what is no proof in a history that was cut off: what excuses it may have been written later. Says how much that is.
fn set_aside(
    history: &History,
    findings: &mut Vec<Finding>,
    is_proof: impl Fn(&Finding) -> bool,
) -> Option<String> {
    let before = findings.len();
    if history.is_cut_off {
        findings.retain(is_proof);
    }
    let count = before - findings.len();
    (count > 0).then(|| {
        format!("{count} findings that the rest of the run may explain: the history is cut off")
    })
}

/// How much later than it was elected a leader is seen: nodes are asked five times a second, and may be slow to answer.
const LEADER_SEEN_WITHIN: Duration = Duration::from_secs(1);

/// What is still accepted.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Two nodes that answered for a VIP within this time did so at once: no hand-over is that fast. 100 us, the time of a few frames.
    pub fastest_handover: Duration,
    /// A VIP that left a node is not back on it within this time, unless it leads again two terms later. 100 ms: a hand-over takes a
    /// commit each way, a failover a lease. Nemeses must keep planned moves further apart.
    pub fastest_return: Duration,
    /// A leader that cannot serve has given the VIPs away within this time. 10 s: three failed checks a second apart and a move by
    /// plan, on a machine that is busy.
    pub hand_over: Duration,
    /// A process may have so many more file descriptors at the end than in its first fifth, or, where it ended soon, than is usual at the start.
    pub descriptors: u64,
    /// ... and so much more resident memory, in KiB.
    pub resident_kib: u64,
    /// Faults that could not be injected here are no failure of the run.
    pub allow_skip: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            fastest_handover: Duration::from_micros(100),
            fastest_return: Duration::from_millis(100),
            hand_over: Duration::from_secs(10),
            descriptors: 128,
            resident_kib: 256 << 10,
            allow_skip: false,
        }
    }
}

/// Every checker with what it requires, in one line.
pub const ABOUT: [(&str, &str); 16] = [
    (
        "run",
        "faults were injected, one hit a leader if it could, every workload had successes of each kind, the run came to its end",
    ),
    (
        "linearizability",
        "there is one order of the operations on each register",
    ),
    (
        "set",
        "what was added is there, on every node, and nothing else is",
    ),
    (
        "append",
        "lists never disagree, and no cycle follows from them",
    ),
    (
        "dns answers",
        "only committed states are answered, none older than one seen from that node",
    ),
    ("serials", "no observer sees a serial go back"),
    (
        "visibility",
        "in peace every place shows what was acknowledged, and nothing that was deleted",
    ),
    ("leaders", "no two nodes lead in one term"),
    ("one responder", "no two nodes answer for a VIP"),
    (
        "hand-over",
        "a leader that cannot serve gives the VIPs to a node that can",
    ),
    (
        "state hashes",
        "nodes at one index have one state, and end at one index",
    ),
    (
        "healing",
        "the cluster comes back from each fault in the time that is given for it",
    ),
    (
        "recovery",
        "writes, VIPs and every place that clients ask are back, and every node has what was committed, within the bound after faults, and stay so until the next",
    ),
    (
        "sessions",
        "sessions that no fault touched live, and bring what was sent",
    ),
    (
        "logs",
        "no panic, no process that ended by itself or otherwise than it was told to",
    ),
    ("growth", "descriptors and memory do not grow without bound"),
];

/// Every checker's verdict on a run.
pub fn check(history: &History, bounds: &Bounds, limits: &Limits<'_>) -> Vec<Verdict> {
    vec![
        run::check_trial(history, bounds),
        linearizable::check(history, limits),
        set::check(history),
        append::check(history),
        dns::check_answers(history, bounds),
        dns::check_serials(history, bounds),
        visibility::check(history),
        leaders::check(history),
        responder::check(history, bounds),
        hand_over::check(history, bounds),
        nodes::check_hashes(history),
        healing::check(history),
        recovery::check_recovery(history),
        sessions::check(history),
        nodes::check_notices(history),
        nodes::check_growth(history, bounds),
    ]
}

/// What all verdicts together say.
pub fn conclusion(verdicts: &[Verdict]) -> Conclusion {
    let worst = verdicts.iter().map(|verdict| verdict.conclusion).max();
    // What was not exercised takes nothing from what holds.
    worst.unwrap_or(Conclusion::Holds).max(Conclusion::Holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_exercised_is_told_and_changes_nothing() {
        let verdict = |judged| Verdict::of("hand-over", String::new(), vec![]).exercised_by(judged);
        let (idle, held) = (verdict(0), verdict(1));
        assert_eq!(idle.conclusion.to_string(), "not exercised");
        let json = serde_json::to_value(&idle).unwrap();
        assert_eq!(json["conclusion"], "not exercised");
        assert_eq!(held.conclusion, Conclusion::Holds);
        for verdicts in [vec![idle.clone()], vec![idle.clone(), held], vec![]] {
            assert_eq!(conclusion(&verdicts), Conclusion::Holds);
        }
        let open = verdict(0).unless_undecided(Some("cut off".to_owned()));
        assert_eq!(open.exercised_by(0).conclusion, Conclusion::Undecided);
        let found = Verdict::of(
            "set",
            String::new(),
            vec![Finding::new("lost", "9".to_owned())],
        );
        let found = found.exercised_by(0);
        assert_eq!(conclusion(&[idle, found]), Conclusion::Violated);
    }
}
