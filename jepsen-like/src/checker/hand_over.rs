//! Hand-over: a leader that its peers hear, but that cannot serve, gives the VIPs to a node that can. Its lease says nothing of that.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Bounds, Finding, Verdict,
    planned::{self, WATCHED},
    set_aside,
    witnessed::Witnessed,
};
use crate::history::{Answer, Fault, History, Moment, Responder};

/// Faults that leave a leader its quorum and take its clients.
const UNFIT: [&str; 2] = ["dns-hang", "partition-client"];

/// A holder that such a fault hit alone, and for long enough, is followed by another node within the bound, and does not answer beyond it.
pub fn check(history: &History, bounds: &Bounds) -> Verdict {
    let mut vips: BTreeMap<&str, Vec<&Answer>> = BTreeMap::new();
    for answer in &history.answers {
        vips.entry(&answer.vip).or_default().push(answer);
    }
    let vips: BTreeMap<&str, Witnessed<'_>> = (vips.into_iter())
        .map(|(vip, answers)| (vip, Witnessed::of(answers)))
        .collect();
    let within = bounds.hand_over;
    let mut findings = vec![];
    let (mut owed, mut judged) = (0, 0);
    for fault in history
        .faults
        .iter()
        .filter(|f| is_owed(f, history, within))
    {
        owed += 1;
        for (vip, witnessed) in &vips {
            let Some(holder) = holder(witnessed, fault) else {
                continue; // nobody answered for it before
            };
            judged += 1;
            findings.extend(judge((vip, witnessed), holder, fault, within));
        }
    }
    let summary = format!("{judged} hand-overs of a VIP owed within {within:?}");
    let answers = history.answers.len();
    // Another fault may have been open at the same time.
    let aside = set_aside(history, &mut findings, |_| false);
    let nothing = || planned::unjudged(&history.run, WATCHED, answers, "answers");
    let reason = aside.or_else(|| (owed > 0).then(nothing).flatten());
    Verdict::of("hand-over", summary, findings)
        .unless_undecided(reason)
        .exercised_by(judged)
}

/// It hit a leader, nothing else was wrong meanwhile, and it lasted longer than a hand-over may take.
fn is_owed(fault: &Fault, history: &History, within: Duration) -> bool {
    let Some(until) = judged_until(fault, within) else {
        return false;
    };
    let is_unfit = UNFIT.contains(&fault.kind.as_str()) && fault.hit_leader;
    let is_other = |other: &&Fault| !std::ptr::eq(*other, fault) && other.skipped.is_none();
    let overlaps = |other: &Fault| {
        other.began <= until && other.healed.is_none_or(|healed| healed >= fault.began)
    };
    let mut others = history.faults.iter().filter(is_other);
    is_unfit && fault.skipped.is_none() && !others.any(overlaps)
}

/// When the hand-over has to be done; none: the fault was over before.
fn judged_until(fault: &Fault, within: Duration) -> Option<Moment> {
    let due = Moment::after(Duration::from_nanos(fault.began.0) + within);
    fault
        .healed
        .is_none_or(|healed| healed > due)
        .then_some(due)
}

/// The node that was hit, if it answered for the VIP last before.
fn holder<'a>(witnessed: &Witnessed<'a>, fault: &Fault) -> Option<&'a str> {
    let last = witnessed.last_by(fault.began)?;
    node(last).filter(|node| fault.nodes.contains(*node))
}

fn judge(
    (vip, witnessed): (&str, &Witnessed<'_>),
    holder: &str,
    fault: &Fault,
    within: Duration,
) -> Option<Finding> {
    let due = Moment::after(Duration::from_nanos(fault.began.0) + within);
    let during = |answer: &&Answer| {
        answer.earliest > fault.began && fault.healed.is_none_or(|healed| answer.latest < healed)
    };
    let until = fault.healed.unwrap_or(Moment(u64::MAX));
    let answers = || witnessed.between(fault.began, until).filter(during);
    let kept = answers()
        .filter(|answer| node(answer) == Some(holder) && answer.earliest > due)
        .max_by_key(|answer| answer.latest);
    let heir = answers().find(|answer| node(answer).is_some_and(|by| by != holder));
    let what = format!("{} hit {holder} at {}", fault.kind, fault.began);
    match (kept, heir) {
        (Some(kept), _) => {
            let text = format!(
                "{what}: {holder} answered for {vip} still at {}",
                kept.latest
            );
            Some(Finding::new("VIP kept", text).at(kept.latest))
        }
        (None, Some(heir)) if heir.latest <= due => None,
        (None, Some(heir)) => {
            let text = format!(
                "{what}: another node answered for {vip} at {} only",
                heir.latest
            );
            Some(Finding::new("too late", text).at(heir.latest))
        }
        (None, None) => {
            let text = format!("{what}: nobody answered for {vip} until it was healed");
            Some(Finding::new("no heir", text).at(due))
        }
    }
}

fn node(answer: &Answer) -> Option<&str> {
    match &answer.by {
        Responder::Node(node) => Some(node),
        Responder::Stranger(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Conclusion, fixture::history};

    const SECOND: u64 = 1_000_000_000;

    fn fault(kind: &str, node: &str, began: u64, healed: u64) -> Fault {
        Fault {
            kind: kind.into(),
            nodes: [node.to_owned()].into(),
            began: Moment(began * SECOND),
            healed: Some(Moment(healed * SECOND)),
            hit_leader: true,
            skipped: None,
        }
    }

    /// Who answered at which second.
    fn answered(faults: Vec<Fault>, answers: &[(u64, &str)]) -> History {
        let mut history = history([]);
        history.faults = faults;
        history.answers = (answers.iter())
            .map(|(at, by)| Answer {
                vip: "10.0.0.100".into(),
                by: Responder::Node((*by).to_owned()),
                earliest: Moment(at * SECOND),
                latest: Moment(at * SECOND),
                kind: "arp".into(),
            })
            .collect();
        history
    }

    #[test]
    fn a_leader_that_cannot_serve_owes_a_hand_over() {
        let hang = || fault("dns-hang", "n1", 10, 25);
        let elsewhere = |began, healed| fault("kill", "n2", began, healed);
        let follower = Fault {
            hit_leader: false,
            ..hang()
        };
        // (faults, answers, findings)
        let cases = [
            (vec![hang()], vec![(9, "n1"), (15, "n2")], vec![]),
            (
                vec![hang()],
                vec![(9, "n1"), (12, "n1"), (15, "n2")],
                vec![],
            ),
            (vec![hang()], vec![(9, "n1"), (12, "n1")], vec!["no heir"]),
            (vec![hang()], vec![(9, "n1"), (24, "n1")], vec!["VIP kept"]),
            (
                vec![hang()],
                vec![(9, "n1"), (15, "n2"), (24, "n1")],
                vec!["VIP kept"],
            ),
            (vec![hang()], vec![(9, "n1"), (23, "n2")], vec!["too late"]),
            // After the end nothing is owed.
            (
                vec![hang()],
                vec![(9, "n1"), (15, "n2"), (26, "n1")],
                vec![],
            ),
            // It did not hold, or lead.
            (vec![hang()], vec![(9, "n2"), (24, "n2")], vec![]),
            (vec![follower], vec![(9, "n1"), (24, "n1")], vec![]),
            // Too short, another fault beside it, and such that end before or begin after.
            (
                vec![fault("dns-hang", "n1", 10, 19)],
                vec![(9, "n1"), (18, "n1")],
                vec![],
            ),
            (
                vec![hang(), elsewhere(12, 13)],
                vec![(9, "n1"), (24, "n1")],
                vec![],
            ),
            (
                vec![hang(), elsewhere(1, 2)],
                vec![(9, "n1"), (24, "n1")],
                vec!["VIP kept"],
            ),
            (
                vec![hang(), elsewhere(22, 23)],
                vec![(9, "n1"), (24, "n1")],
                vec!["VIP kept"],
            ),
            (
                vec![fault("partition-client", "n1", 10, 25)],
                vec![(9, "n1")],
                vec!["no heir"],
            ),
            // Others take the quorum too.
            (vec![fault("kill", "n1", 10, 25)], vec![(9, "n1")], vec![]),
        ];
        for (faults, answers, expected) in cases {
            let bounds = Bounds::default();
            assert_eq!(bounds.hand_over, Duration::from_secs(10));
            let verdict = check(&answered(faults.clone(), &answers), &bounds);
            let kinds: Vec<_> = verdict.findings.iter().map(|f| f.kind).collect();
            assert_eq!(kinds, expected, "{faults:?} {answers:?}");
            let is_violated = verdict.conclusion == Conclusion::Violated;
            assert_eq!(is_violated, !expected.is_empty());
        }
        // Owed, and nobody was seen to answer.
        let unseen = check(&answered(vec![hang()], &[]), &Bounds::default());
        assert_eq!(unseen.conclusion, Conclusion::Undecided);
        let peaceful = check(&answered(vec![], &[]), &Bounds::default());
        assert_eq!(peaceful.conclusion, Conclusion::NotExercised);
        assert_eq!(peaceful.summary, "0 hand-overs of a VIP owed within 10s");
        let done = check(
            &answered(vec![hang()], &[(9, "n1"), (15, "n2")]),
            &Bounds::default(),
        );
        assert_eq!(done.conclusion, Conclusion::Holds);
    }
}
