//! Recovery: after the last fault was healed, the cluster is as good as new within the run's bound. Writes succeed, VIPs answer, every place
//! that clients ask serves them, and every member has what had been committed by then: a node whose replication is stuck serves old answers
//! for ever, and no client notices.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Conclusion, Finding, LISTED, Verdict,
    calm::{self, Calm, injected},
    outage::Outages,
    planned::{self, Part, Trial, WATCHED},
};
use crate::{
    history::{Call, History, Micro, Moment, Operation, Reply, Responder},
    workload::Workload,
};

/// Those that write.
const WRITERS: &[Workload] = &[
    Workload::Register,
    Workload::Set,
    Workload::Append,
    Workload::Zones,
    Workload::Acme,
];

const NAME: &str = "recovery";

/// Writes succeed, VIPs answer again, every place serves again and every member catches up within the bound after the last fault was healed;
/// and the same after every other one that a calm as long came after. Once they do they go on doing so until the next fault ([`Outages`]).
pub fn check_recovery(history: &History) -> Verdict {
    let bound = Duration::from_millis(history.run.recovery_bound_ms);
    if history.is_cut_off {
        let reason = "the history is cut off: whether its last fault was the last is not known";
        return Verdict::of(NAME, format!("bound {bound:?}"), vec![])
            .unless_undecided(Some(reason.to_owned()));
    }
    let Outages { findings, peace } = Outages::of(history, bound);
    let calms = calm::calms(history, calm::last_look(history));
    let behind = calms.iter().filter(|calm| !calm.is_last);
    let behind = behind.flat_map(|calm| nodes_behind(history, calm, bound));
    let findings: Vec<Finding> = behind.chain(findings).collect();

    let mut verdict = judge_last(history, bound);
    verdict.summary += &format!(", {peace:?} of peace");
    if !findings.is_empty() {
        verdict.conclusion = Conclusion::Violated;
    }
    verdict.found += findings.len();
    let later = std::mem::replace(&mut verdict.findings, findings);
    verdict.findings.extend(later);
    verdict.findings.truncate(LISTED);
    let faults = injected(history).filter(|fault| fault.healed.is_some());
    verdict.exercised_by(faults.count() + usize::from(!peace.is_zero()))
}

/// What has to come back after the last fault.
fn judge_last(history: &History, bound: Duration) -> Verdict {
    if let Some(fault) = injected(history).find(|fault| fault.healed.is_none()) {
        let reason = format!("{} was never healed", fault.kind);
        return Verdict::of(NAME, format!("bound {bound:?}"), vec![])
            .unless_undecided(Some(reason));
    }
    let Some(healed) = injected(history).filter_map(|fault| fault.healed).max() else {
        return Verdict::of(NAME, "no fault to recover from".to_owned(), vec![]);
    };
    let watch = Watch::of(history, healed, bound);
    let mut judged: Vec<_> = judge_writes(history, &watch).into_iter().collect();
    judged.extend(judge_vips(history, &watch));
    judged.extend(judge_services(history, &watch));
    let nodes = judge_nodes(history, &watch);

    let mut texts = vec![format!("bound {bound:?} after {healed}")];
    let mut findings = vec![];
    let mut reason = None;
    let judged = judged.into_iter().map(|judged| ("too late", judged));
    let nodes = nodes.into_iter().map(|judged| ("node left behind", judged));
    for (kind, (conclusion, text)) in judged.chain(nodes) {
        match conclusion {
            Conclusion::NotExercised | Conclusion::Holds => texts.push(text),
            Conclusion::Undecided => reason = Some(text),
            Conclusion::Violated => findings.push(Finding::new(kind, text).at(healed)),
        }
    }
    Verdict::of(NAME, texts.join(", "), findings).unless_undecided(reason)
}

/// Members that in this calm, the bound after the faults before it, did not have what had been committed by the end of those.
fn nodes_behind(history: &History, calm: &Calm, bound: Duration) -> Vec<Finding> {
    let due = calm.from.later(bound);
    if due > calm.until || !calm.is_after_fault {
        return vec![];
    }
    let Some(goal) = committed(history, calm.from) else {
        return vec![];
    };
    let is_behind = |node: &&String| {
        let mut hashes = history.hashes.iter();
        hashes.any(|hash| {
            hash.node == **node && hash.index < goal.index && (due..=calm.until).contains(&hash.at)
        })
    };
    let behind = history.run.nodes.iter().filter(is_behind);
    behind
        .map(|node| {
            let text = format!(
                "{node} did not have it by {due}: {} index {} at {}",
                goal.known_by, goal.index, calm.from
            );
            Finding::new("node left behind", text).at(due)
        })
        .collect()
}

/// How long clients and watchers looked for what has to come back.
struct Watch {
    /// The end of the last fault.
    healed: Moment,
    bound: Duration,
    /// The last that any of them wrote down.
    until: Moment,
    /// The run came to its end, and before that it waits for what is owed.
    is_complete: bool,
    /// The laboratory broke down: what was not seen from then on says nothing of the cluster.
    has_broken_down: bool,
}

impl Watch {
    fn of(history: &History, healed: Moment, bound: Duration) -> Self {
        Self {
            healed,
            bound,
            until: calm::last_look(history),
            is_complete: history.is_complete,
            has_broken_down: history.breakdown.is_some(),
        }
    }

    /// Whether what those who looked until then did not see had not come back in its time.
    fn is_long_enough(&self, until: Moment) -> bool {
        !self.has_broken_down && until.since(self.healed) >= self.bound
    }

    /// The same, or they looked for as long as the run waited.
    fn is_over(&self, until: Moment) -> bool {
        self.is_long_enough(until) || (self.is_complete && !self.has_broken_down)
    }
}

/// None: nobody was to write.
fn judge_writes(history: &History, watch: &Watch) -> Option<(Conclusion, String)> {
    let mut operations = history.operations.iter();
    let has_writers = planned::part(&history.run, WRITERS) != Part::NotPlanned;
    if !has_writers && !operations.any(|operation| is_write(&operation.call)) {
        return None;
    }
    let is_after =
        |operation: &&Operation| is_write(&operation.call) && operation.invoked >= watch.healed;
    let written = (history.operations.iter())
        .filter(|operation| is_after(operation) && operation.is_ok())
        .filter_map(|operation| operation.completed)
        .min();
    let was_tried =
        watch.is_over(watch.until) && history.operations.iter().any(|one| is_after(&one));
    Some(judge("write", written, watch, was_tried))
}

/// Those of the head, where it names them and they were watched, and all that answered at any time.
fn judge_vips(history: &History, watch: &Watch) -> Vec<(Conclusion, String)> {
    let mut vips: BTreeMap<&str, Option<Moment>> = BTreeMap::new();
    let part = planned::part(&history.run, WATCHED);
    if part == Part::Planned {
        vips.extend(history.run.vips.iter().map(|vip| (vip.as_str(), None)));
    }
    for answer in &history.answers {
        let first = vips.entry(&answer.vip).or_default();
        if answer.earliest >= watch.healed && matches!(answer.by, Responder::Node(_)) {
            *first = Some(first.map_or(answer.latest, |first| first.min(answer.latest)));
        }
    }
    if vips.is_empty() && part != Part::NotPlanned {
        let text = "no VIP ever answered, and the head names none".to_owned();
        return vec![(Conclusion::Undecided, text)];
    }
    let was_watched = watch.is_over(watch.until);
    vips.iter()
        .map(|(vip, first)| judge(&format!("answer for {vip}"), *first, watch, was_watched))
        .collect()
}

/// What clients of the planned workloads ask for at each node and each VIP: a lookup that succeeded, a session that came to life, each begun
/// after the last fault and within the bound.
fn judge_services(history: &History, watch: &Watch) -> Vec<(Conclusion, String)> {
    let mut first: BTreeMap<Trial<'_>, Option<Moment>> = BTreeMap::new();
    let lookups = history.operations.iter().map(|one| {
        let (trial, is_ok) = Trial::of_operation(one);
        (trial, is_ok, one.invoked)
    });
    let sessions = history.sessions.iter().map(|session| {
        let (trial, has_lived) = Trial::of_session(session);
        (trial, has_lived, session.opened)
    });
    for (trial, is_ok, began) in lookups.chain(sessions) {
        if trial.is_service() && began >= watch.healed {
            let first = first.entry(trial).or_default();
            if is_ok {
                *first = Some(first.map_or(began, |first| first.min(began)));
            }
        }
    }
    // A run goes on for a place until it serves: one that ended before the bound asked there for too short a time.
    let is_long_enough = watch.is_long_enough(watch.until);
    let owed = Trial::owed(&history.run).into_iter();
    owed.filter(Trial::is_service)
        .map(|trial| {
            let tried = first.get(&trial);
            let was_tried = tried.is_some() && is_long_enough;
            let first = tried.copied().flatten();
            judge(&trial.to_string(), first, watch, was_tried)
        })
        .collect()
}

/// What had been committed by a moment, and how that is known.
struct Committed {
    index: u64,
    known_by: String,
}

/// The highest index that is known to have been committed: a node had applied it, or a client had its write acknowledged.
fn committed(history: &History, by: Moment) -> Option<Committed> {
    let leader = (history.leaders.iter())
        .filter(|seen| seen.at <= by)
        .max_by_key(|seen| seen.term);
    let applied = (history.hashes.iter())
        .filter(|hash| hash.at <= by)
        .max_by_key(|hash| {
            let leads = leader.is_some_and(|leader| leader.node == hash.node);
            (hash.index, leads)
        });
    let applied = applied.map(|hash| Committed {
        index: hash.index,
        known_by: match leader {
            Some(leader) if leader.node == hash.node => {
                format!("the leader, {}, had applied", hash.node)
            }
            _ => format!("{} had applied", hash.node),
        },
    });
    let acknowledged = (history.operations.iter())
        .filter(|operation| operation.is_ok() && operation.completed.is_some_and(|at| at <= by))
        .filter_map(|operation| match operation.reply {
            Some(Reply::Committed { revision, .. }) => Some((revision, operation)),
            _ => None,
        })
        .max_by_key(|(revision, _)| *revision)
        .map(|(index, operation)| Committed {
            index,
            known_by: match leader {
                Some(leader) => format!(
                    "the leader, {}, had acknowledged (operation {})",
                    leader.node, operation.id
                ),
                None => format!("operation {} had been acknowledged at", operation.id),
            },
        });
    // Of two that are equal the one that names a node.
    [acknowledged, applied]
        .into_iter()
        .flatten()
        .max_by_key(|committed| committed.index)
}

/// Every member reaches what had been committed as the last fault was healed.
fn judge_nodes(history: &History, watch: &Watch) -> Vec<(Conclusion, String)> {
    let healed = watch.healed;
    // Clients may go on when nobody looks at the nodes any more.
    let observed_until = history.hashes.iter().map(|hash| hash.at).max();
    let (Some(goal), Some(observed_until)) = (committed(history, healed), observed_until) else {
        return vec![]; // of a history without hashes `state hashes` is undecided
    };
    let was_observed = watch.is_over(observed_until);
    let judge_node = |node: &String| {
        let of_node = || history.hashes.iter().filter(|hash| hash.node == *node);
        // What it had before its last look is no proof: its data may have been lost since.
        let before = of_node().map(|hash| hash.at).filter(|at| *at <= healed);
        let from = before.max().unwrap_or(healed);
        let reached = of_node()
            .filter(|hash| hash.index >= goal.index && hash.at >= from)
            .map(|hash| hash.at)
            .min();
        let last = of_node()
            .max_by_key(|hash| hash.at)
            .map(|last| format!("index {} at {}", last.index, last.at));
        let last = last.unwrap_or_else(|| "never seen".to_owned());
        let goal_text = format!("{} index {} at {healed}", goal.known_by, goal.index);
        match reached.map(|reached| reached.since(healed)) {
            Some(took) if took <= watch.bound => (
                Conclusion::Holds,
                format!("{node} caught up after {took:?}"),
            ),
            Some(took) => (
                Conclusion::Violated,
                format!("{node} caught up {took:?} after the last fault only: {goal_text}"),
            ),
            None if was_observed => (
                Conclusion::Violated,
                format!("{node} did not catch up: {last}, {goal_text}"),
            ),
            None => (
                Conclusion::Undecided,
                format!("{node} was not observed long enough: {last}, {goal_text}"),
            ),
        }
    };
    history.run.nodes.iter().map(judge_node).collect()
}

fn judge(
    what: &str,
    first: Option<Moment>,
    watch: &Watch,
    was_tried: bool,
) -> (Conclusion, String) {
    match first.map(|first| first.since(watch.healed)) {
        Some(took) if took <= watch.bound => (Conclusion::Holds, format!("{what} after {took:?}")),
        Some(took) => (
            Conclusion::Violated,
            format!("first {what} {took:?} after the last fault"),
        ),
        None if was_tried => (
            Conclusion::Violated,
            format!("no {what} after the last fault"),
        ),
        None => (
            Conclusion::Undecided,
            format!("no {what} was tried after the last fault, or not for long enough"),
        ),
    }
}

pub(super) fn is_write(call: &Call) -> bool {
    match call {
        Call::Write { .. }
        | Call::CompareAndSet { .. }
        | Call::Add { .. }
        | Call::Remove { .. } => true,
        Call::Transaction { members } => members
            .iter()
            .any(|member| matches!(member, Micro::Append { .. })),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::fixture::*,
        history::{Answer, Breakdown, Fault, LeaderSeen, Session, SessionEnd, StateHash},
    };

    /// Times in nanoseconds; the bound is a millisecond, and nobody asked for a VIP.
    fn tried(healed: u64, operations: Vec<Operation>) -> History {
        let mut history = history(operations);
        history.run.workloads = [Workload::Register.to_string()].into();
        history.run.recovery_bound_ms = 1;
        history.faults = vec![Fault {
            kind: "kill".into(),
            nodes: ["n1".to_owned()].into(),
            began: Moment(5),
            healed: Some(Moment(healed)),
            hit_leader: true,
            skipped: None,
        }];
        history.is_complete = true;
        history
    }

    fn written_soon() -> Vec<Operation> {
        vec![ok(
            0,
            1_000_010,
            1_000_020,
            write("a", "1"),
            committed_as(7),
        )]
    }

    fn committed_as(revision: u64) -> Reply {
        crate::checker::fixture::committed(revision)
    }

    fn hash(node: &str, at: u64, index: u64) -> StateHash {
        StateHash {
            at: Moment(at),
            node: node.into(),
            index,
            hash: "x".into(),
            is_final: false,
        }
    }

    #[test]
    fn recovery_is_measured_from_the_last_heal() {
        let at = |invoked| ok(0, invoked, invoked + 10, write("a", "1"), committed_as(1));
        let judged = |operations| check_recovery(&tried(1_000_000, operations)).conclusion;
        assert_eq!(judged(vec![at(1_500_000)]), Conclusion::Holds);
        assert_eq!(judged(vec![at(2_500_000)]), Conclusion::Violated);
        assert_eq!(
            judged(vec![unknown(0, 1_500_000, 9_000_000, write("a", "1"))]),
            Conclusion::Violated
        );
        assert_eq!(judged(vec![at(1000)]), Conclusion::Undecided);
        let mut endless = tried(1_000_000, vec![at(1_500_000)]);
        endless.faults[0].healed = None;
        assert_eq!(check_recovery(&endless).conclusion, Conclusion::Undecided);
    }

    #[test]
    fn a_vip_that_never_answers_again_is_found() {
        let mut history = tried(1_000_000, written_soon());
        let answer = |at| Answer {
            vip: "v".into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(at),
            latest: Moment(at),
            kind: "arp".into(),
        };
        history.answers = vec![answer(0)];
        assert_eq!(kinds(&check_recovery(&history)), ["too late"]);
        // A run that was told to end before the bound was over leaves it open; one that was told so after it does not.
        history.is_complete = false;
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Undecided);
        history.hashes = vec![hash("n1", 2_000_000, 9)];
        assert_eq!(kinds(&check_recovery(&history)), ["too late"]);
        history.answers.push(answer(1_000_500));
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
    }

    #[test]
    fn a_vip_that_never_answered_at_all_is_found() {
        let mut history = tried(1_000_000, written_soon());
        let answer = |vip: &str, at| Answer {
            vip: vip.into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(at),
            latest: Moment(at),
            kind: "arp".into(),
        };
        history.run.workloads = [Workload::Vip.to_string()].into();
        let lookups = ["vip4", "vip6"].iter().zip(10..);
        let lookups = lookups.map(|(place, id)| look_up(id, place, 1_000_100));
        history.operations.extend(lookups);
        let silent = check_recovery(&history);
        assert_eq!(silent.conclusion, Conclusion::Undecided, "none is known");
        history.run.vips = ["10.77.0.100", "fd77::64"].map(str::to_owned).into();
        assert_eq!(kinds(&check_recovery(&history)), ["too late", "too late"]);
        history.answers = vec![answer("10.77.0.100", 0), answer("10.77.0.100", 1_000_500)];
        let verdict = check_recovery(&history);
        assert_eq!(kinds(&verdict), ["too late"]);
        assert!(verdict.findings[0].text.contains("fd77::64"), "{verdict:?}");
        history.answers.push(answer("fd77::64", 1_000_600));
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
        // Without a workload that writes no write is owed.
        history.operations.retain(|one| !is_write(&one.call));
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
    }

    fn session(node: &str, through_vip: bool, opened: u64, end: SessionEnd) -> Session {
        Session {
            id: 0,
            node: node.into(),
            through_vip,
            opened: Moment(opened),
            ended: Moment(2_500_000),
            end,
            longest_gap_us: 0,
        }
    }

    /// A run of the workloads of DNS, the VIPs and sessions in which every place serves again.
    fn served() -> History {
        let places = ["n1", "n2", "vip4", "vip6"].iter().zip(10..);
        let lookups = places.map(|(place, id)| look_up(id, place, 1_300_000));
        let mut history = tried(1_000_000, lookups.collect());
        history.run = planned(&[Workload::Dns, Workload::Vip, Workload::Sessions]);
        history.run.recovery_bound_ms = 1;
        history.answers = ["10.77.0.100", "fd77::64"].map(answered).into();
        let closed = |node, through_vip| session(node, through_vip, 1_200_000, SessionEnd::Closed);
        history.sessions = vec![closed("n1", true), closed("n1", false), closed("n2", false)];
        history
    }

    fn answered(vip: &str) -> Answer {
        Answer {
            vip: vip.into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(1_100_000),
            latest: Moment(1_100_000),
            kind: "arp".into(),
        }
    }

    fn texts(history: &History) -> Vec<String> {
        let verdict = check_recovery(history);
        verdict.findings.into_iter().map(|one| one.text).collect()
    }

    #[test]
    fn a_place_whose_service_never_comes_back_is_found() {
        assert_eq!(check_recovery(&served()).conclusion, Conclusion::Holds);
        // A proxy that refuses and a DNS server that is silent, after faults that they had lived before.
        let mut history = served();
        let refused = || SessionEnd::NotConnected("refused".into());
        history.sessions[2] = session("n2", false, 900_000, SessionEnd::Closed);
        (history.sessions).push(session("n2", false, 1_200_000, refused()));
        for lookup in &mut history.operations {
            if lookup.node.as_deref() == Some("vip6") {
                (lookup.outcome, lookup.reply) = (crate::history::Outcome::Fail, None);
            }
        }
        assert_eq!(
            texts(&history),
            [
                "no sessions through n2 after the last fault",
                "no lookups at vip6 after the last fault"
            ]
        );
        // A health check that is down for ever takes what the VIP's connections bring.
        let mut history = served();
        let silent = SessionEnd::Stillborn("reset".into());
        history.sessions[0] = session("n1", true, 1_200_000, silent);
        assert_eq!(
            texts(&history),
            ["no sessions through the VIP after the last fault"]
        );
        // One that came back later than it may.
        let mut history = served();
        history.sessions[1].opened = Moment(2_100_000);
        assert_eq!(
            texts(&history),
            ["first sessions through n1 1.1ms after the last fault"]
        );
    }

    #[test]
    fn a_place_that_nobody_asked_for_long_enough_decides_nothing() {
        let mut history = served();
        history.sessions.retain(|session| session.node != "n2");
        let verdict = check_recovery(&history);
        assert_eq!(verdict.conclusion, Conclusion::Undecided, "{verdict:?}");
        let mut history = served();
        history.sessions[2].end = SessionEnd::NotConnected("refused".into());
        for session in &mut history.sessions {
            session.ended = Moment(1_400_000);
        }
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Undecided);
        // Without these workloads nobody asks, and nothing is owed.
        let mut history = served();
        history.run.workloads = [Workload::Register.to_string()].into();
        history.operations.extend(written_soon());
        history.sessions.clear();
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
    }

    /// What clients and watchers do not see when the laboratory has failed says nothing of the cluster.
    #[test]
    fn after_a_breakdown_nothing_is_missed() {
        let mut refused = served();
        refused.sessions[2].end = SessionEnd::NotConnected("refused".into());
        let mut behind = tried(1_000_000, written_soon());
        behind.run.nodes = ["n1".to_owned()].into();
        behind.hashes = vec![hash("n2", 900_000, 50), hash("n1", 2_900_000, 40)];
        let mut silent = served();
        silent.answers.clear();
        let mut unwritten = served();
        unwritten
            .operations
            .push(failed(9, 1_200_000, 1_300_000, write("a", "1")));
        for mut history in [refused, behind, silent, unwritten] {
            history.is_complete = false;
            assert_eq!(check_recovery(&history).conclusion, Conclusion::Violated);
            history.breakdown = Some(Breakdown {
                at: Moment(2_000_000),
                text: "no such device".into(),
            });
            let verdict = check_recovery(&history);
            assert_eq!(verdict.conclusion, Conclusion::Undecided, "{verdict:?}");
        }
    }

    #[test]
    fn a_node_that_stays_behind_is_named_with_its_index_and_the_leaders() {
        let judged = |of_n2: &[(u64, u64)]| {
            let mut history = tried(1_000_000, written_soon());
            history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
            history.leaders = vec![LeaderSeen {
                at: Moment(10),
                node: "n1".into(),
                term: 3,
            }];
            history.hashes = vec![hash("n1", 900_000, 50), hash("n1", 2_900_000, 60)];
            let of_n2 = of_n2.iter().map(|(at, index)| hash("n2", *at, *index));
            history.hashes.extend(of_n2);
            check_recovery(&history)
        };
        // Caught up in time, or never behind: 60 was committed later.
        for good in [
            [(900_000, 20), (1_900_000, 50)],
            [(900_000, 50), (2_900_000, 50)],
        ] {
            assert_eq!(judged(&good).conclusion, Conclusion::Holds, "{good:?}");
        }
        for bad in [
            &[(900_000, 20), (1_900_000, 49), (2_900_000, 49)][..],
            &[(900_000, 20), (2_900_000, 60)],
            &[],
        ] {
            let verdict = judged(bad);
            assert_eq!(kinds(&verdict), ["node left behind"], "{bad:?}");
            let text = &verdict.findings[0].text;
            let is_told =
                text.contains("n2") && text.contains("the leader, n1, had applied index 50");
            assert!(is_told, "{text}");
            assert!(bad.len() < 3 || text.contains("index 49"), "{text}");
        }
    }

    #[test]
    fn what_a_client_was_told_is_committed_binds_too() {
        let early = ok(1, 900_000, 950_000, write("a", "2"), committed_as(70));
        let mut history = tried(1_000_000, [written_soon(), vec![early]].concat());
        history.run.nodes = ["n1".to_owned()].into();
        history.hashes = vec![hash("n1", 900_000, 50), hash("n1", 2_900_000, 60)];
        assert_eq!(kinds(&check_recovery(&history)), ["node left behind"]);
        history.hashes.push(hash("n1", 1_500_000, 70));
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
    }

    #[test]
    fn a_node_that_is_behind_long_after_a_fault_is_found_before_the_next() {
        let judged = |of_n2: &[(u64, u64)]| {
            // Healed at 1 ms, the next one from 4 ms on; written after it.
            let mut history = tried(1_000_000, vec![]);
            let written = ok(0, 5_100_000, 5_200_000, write("a", "1"), committed_as(7));
            history.operations.push(written);
            history
                .faults
                .push(fault("pause", "n1", 4_000_000, 5_000_000, true));
            history.run.nodes = ["n2".to_owned()].into();
            history.hashes = vec![hash("n1", 900_000, 50)];
            let of_n2 = of_n2.iter().map(|(at, index)| hash("n2", *at, *index));
            history.hashes.extend(of_n2);
            history.hashes.push(hash("n2", 5_100_000, 60));
            check_recovery(&history)
        };
        let verdict = judged(&[(1_500_000, 40), (3_000_000, 49)]);
        assert_eq!(kinds(&verdict), ["node left behind"], "{verdict:?}");
        let text = &verdict.findings[0].text;
        assert!(
            text.starts_with("n2 did not have it by 0.002000 s"),
            "{text}"
        );
        for good in [
            &[(1_500_000, 40), (3_000_000, 50)][..],
            &[(1_500_000, 40)],
            &[],
        ] {
            assert_eq!(judged(good).conclusion, Conclusion::Holds, "{good:?}");
        }
    }

    #[test]
    fn an_outage_in_peace_is_a_violation_with_or_without_faults() {
        const SECOND: u64 = 1_000_000_000;
        let mut history = tried(1_000_000, vec![]);
        history.operations = (0..100)
            .map(|at| {
                let (from, to) = (at * SECOND + 2_000_000, at * SECOND + 2_100_000);
                match (50..65).contains(&at) {
                    true => failed(at, from, to, write("a", "1")),
                    false => ok(at, from, to, write("a", "1"), committed_as(at)),
                }
            })
            .collect();
        history.run.recovery_bound_ms = 20_000;
        let verdict = check_recovery(&history);
        assert_eq!(kinds(&verdict), ["outage"], "{verdict:?}");
        assert_eq!(verdict.conclusion, Conclusion::Violated);
        history.faults.clear();
        assert_eq!(kinds(&check_recovery(&history)), ["outage"]);
        history.operations.truncate(50);
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
        history.operations.clear();
        let idle = check_recovery(&history);
        assert_eq!(idle.conclusion, Conclusion::NotExercised, "{idle:?}");
    }

    #[test]
    fn a_run_that_broke_off_too_early_decides_nothing_about_its_nodes() {
        let mut history = tried(1_000_000, written_soon());
        history.run.nodes = ["n1".to_owned()].into();
        history.is_complete = false;
        history.hashes = vec![hash("n2", 900_000, 50), hash("n1", 1_100_000, 40)];
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Undecided);
        history.is_complete = true;
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Violated);
    }
}
