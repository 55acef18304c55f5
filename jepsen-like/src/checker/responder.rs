//! One responder for a VIP at every instant.
//!
//! An answer counts for the node and the instant at which the request reached it from outside; the witness gives that instant as narrowly as it
//! knows it. Of two nodes one of these proves that both held the VIP:
//! - both took requests at the same instant: within less than any hand-over takes, however the uncertainty is resolved;
//! - one took requests before and after the other, within less time than a VIP needs to leave a node and come back, and was not seen to lead
//!   again right then, two terms later: each of two planned moves has a term of its own.
//!
//! Anything less is what an ordinary hand-over looks like too, and proves nothing.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Bounds, Finding, LEADER_SEEN_WITHIN, Verdict,
    planned::{self, Part, WATCHED},
    set_aside,
};
use crate::history::{Answer, History, LeaderSeen, Responder};

const NAME: &str = "one responder";
/// The finding that needs nothing beside the answers.
const AT_ONCE: &str = "two responders at once";

/// Judges every VIP's answers.
pub fn check(history: &History, bounds: &Bounds) -> Verdict {
    let mut vips: BTreeMap<&str, Vec<&Answer>> = BTreeMap::new();
    for answer in &history.answers {
        vips.entry(&answer.vip).or_default().push(answer);
    }
    let mut findings = vec![];
    for (vip, answers) in &mut vips {
        answers.sort_by_key(|answer| (answer.latest, answer.earliest));
        judge(vip, answers, &history.leaders, bounds, &mut findings);
        judge_strangers(vip, answers, history, &mut findings);
    }
    let summary = format!("{} answers for {} VIPs", history.answers.len(), vips.len());
    // Who leads is seen later than who answers, and a fault that puts a stranger there is written when it is healed.
    let reason = set_aside(history, &mut findings, |finding| finding.kind == AT_ONCE)
        .or_else(|| planned::unjudged(&history.run, WATCHED, history.answers.len(), "answers"))
        .or_else(|| silent(history, &vips));
    Verdict::of(NAME, summary, findings)
        .unless_undecided(reason)
        .exercised_by(history.answers.len())
}

/// Which VIPs were asked for and never answered: of those nothing is known.
fn silent(history: &History, vips: &BTreeMap<&str, Vec<&Answer>>) -> Option<String> {
    if planned::part(&history.run, WATCHED) == Part::NotPlanned {
        return None;
    }
    let is_node = |answer: &&Answer| matches!(answer.by, Responder::Node(_));
    let has_answered = |vip: &str| {
        vips.get(vip)
            .is_some_and(|answers| answers.iter().any(is_node))
    };
    let all = history.run.vips.iter().map(String::as_str);
    let silent: Vec<_> = all.filter(|vip| !has_answered(vip)).collect();
    (!silent.is_empty()).then(|| format!("no node answered for {}", silent.join(", ")))
}

fn judge(
    vip: &str,
    answers: &[&Answer],
    leaders: &[LeaderSeen],
    bounds: &Bounds,
    findings: &mut Vec<Finding>,
) {
    let mut recent: VecDeque<&Answer> = VecDeque::new();
    let is_node = |answer: &&&Answer| matches!(answer.by, Responder::Node(_));
    for answer in answers.iter().filter(is_node) {
        while (recent.front())
            .is_some_and(|first| answer.latest.since(first.earliest) >= bounds.fastest_return)
        {
            recent.pop_front();
        }
        let other = recent.iter().rev().find(|other| other.by != answer.by);
        let at_once = other.filter(|other| {
            let first = other.earliest.min(answer.earliest);
            answer.latest.max(other.latest).since(first) < bounds.fastest_handover
        });
        if let Some(other) = at_once {
            let text = format!("{vip}: {} and {}", shown(other), shown(answer));
            findings.push(Finding::new(AT_ONCE, text).at(answer.latest));
        } else if let Some((first, between)) = returned(&recent, answer)
            && !leads_again(leaders, first, answer)
        {
            let text = format!(
                "{vip}: {}, then {}, then {}",
                shown(first),
                shown(between),
                shown(answer)
            );
            findings.push(Finding::new("two responders in turn", text).at(answer.latest));
        }
        recent.push_back(answer);
    }
}

/// Whether a node came to lead again, two terms or more later, between its answer before another's and its answer after: then it gave the
/// VIP away and got it back. It is seen to lead a moment after.
fn leads_again(leaders: &[LeaderSeen], first: &Answer, answer: &Answer) -> bool {
    let Responder::Node(name) = &answer.by else {
        return false;
    };
    let seen_by = answer
        .earliest
        .0
        .saturating_add(LEADER_SEEN_WITHIN.as_nanos() as u64);
    let before = leaders.iter().filter(|leader| leader.at <= first.latest);
    let before = before.map(|leader| leader.term).max();
    leaders.iter().any(|leader| {
        leader.at > first.latest
            && leader.at.0 <= seen_by
            && leader.node == *name
            && before.is_some_and(|before| leader.term >= before + 2)
    })
}

/// An earlier answer of the same node, with one of another node for certain between them.
fn returned<'a>(
    recent: &VecDeque<&'a Answer>,
    answer: &Answer,
) -> Option<(&'a Answer, &'a Answer)> {
    let mut others = recent
        .iter()
        .filter(|other| other.by != answer.by && other.latest < answer.earliest);
    let between = others.next_back()?;
    let first = recent
        .iter()
        .find(|first| first.by == answer.by && first.latest < between.earliest)?;
    Some((first, between))
}

/// Somebody else answers for the VIP, and no fault had put him there.
fn judge_strangers(vip: &str, answers: &[&Answer], history: &History, findings: &mut Vec<Finding>) {
    for answer in answers {
        let Responder::Stranger(_) = &answer.by else {
            continue;
        };
        let is_injected = history.faults.iter().any(|fault| {
            let ended = fault.healed.is_some_and(|healed| healed < answer.earliest);
            fault.kind.contains("address")
                && fault.skipped.is_none()
                && fault.began <= answer.latest
                && !ended
        });
        if !is_injected {
            let text = format!("{vip}: {}", shown(answer));
            findings.push(Finding::new("a stranger answered", text).at(answer.latest));
        }
    }
}

fn shown(answer: &Answer) -> String {
    let by = match &answer.by {
        Responder::Node(node) => node.clone(),
        Responder::Stranger(mac) => format!("stranger {mac}"),
    };
    let Answer {
        kind,
        earliest,
        latest,
        ..
    } = answer;
    format!("{by} ({kind}, {earliest} to {latest})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::planned},
        history::{Fault, Moment},
        workload::Workload,
    };

    /// Times in microseconds.
    fn answer(by: &str, earliest: u64, latest: u64) -> Answer {
        let by = match by.strip_prefix('!') {
            Some(mac) => Responder::Stranger(mac.into()),
            None => Responder::Node(by.into()),
        };
        Answer {
            vip: "v".into(),
            by,
            earliest: Moment(earliest * 1000),
            latest: Moment(latest * 1000),
            kind: "arp".into(),
        }
    }

    fn kinds(answers: &[(&str, u64, u64)]) -> Vec<&'static str> {
        let history = History {
            answers: answers
                .iter()
                .map(|(by, from, to)| answer(by, *from, *to))
                .collect(),
            ..History::default()
        };
        check(&history, &Bounds::default())
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    #[test]
    fn a_hand_over_holds_and_two_holders_do_not() {
        let moved = [
            ("a", 0, 10),
            ("a", 5000, 5010),
            ("b", 10_000, 10_010),
            ("b", 15_000, 15_010),
        ];
        assert!(kinds(&moved).is_empty());
        let back = [("a", 0, 10), ("b", 5000, 5010), ("a", 900_000, 900_010)];
        assert!(kinds(&back).is_empty());
        assert_eq!(
            kinds(&[("a", 0, 10), ("b", 20, 30)]),
            ["two responders at once"]
        );
        let in_turn = [("a", 0, 10), ("b", 5000, 5010), ("a", 10_000, 10_010)];
        assert_eq!(kinds(&in_turn), ["two responders in turn"]);
    }

    #[test]
    fn two_moves_at_once_bring_a_vip_back_in_two_terms() {
        let judged = |terms: &[(u64, u64, &str)]| {
            let seen = |(at, term, node): &(u64, u64, &str)| LeaderSeen {
                at: Moment(at * 1_000_000),
                node: (*node).into(),
                term: *term,
            };
            let in_turn = [("a", 0, 10), ("b", 30_000, 30_010), ("a", 60_000, 60_010)];
            let history = History {
                answers: in_turn.map(|(by, from, to)| answer(by, from, to)).into(),
                leaders: terms.iter().map(seen).collect(),
                ..History::default()
            };
            check(&history, &Bounds::default()).findings.len()
        };
        // Milliseconds at which a leader of a term was seen.
        let a_led = (0, 7, "a");
        assert_eq!(judged(&[a_led, (500, 9, "a")]), 0);
        assert_eq!(judged(&[a_led, (20, 8, "b"), (70, 9, "a")]), 0);
        assert_eq!(
            judged(&[a_led, (500, 8, "a")]),
            1,
            "in one term nothing goes and comes back"
        );
        assert_eq!(
            judged(&[a_led, (500, 9, "b")]),
            1,
            "another led: it never came back"
        );
        assert_eq!(
            judged(&[a_led, (5000, 9, "a")]),
            1,
            "what comes later explains nothing"
        );
        assert_eq!(judged(&[]), 1);
    }

    #[test]
    fn of_a_vip_that_never_answered_nothing_is_known() {
        let judged = |workloads: &[Workload], vips: &[&str]| {
            let answered = |vip: &&str| Answer {
                vip: (*vip).to_owned(),
                ..answer("n1", 0, 10)
            };
            let history = History {
                run: planned(workloads),
                answers: vips.iter().map(answered).collect(),
                ..History::default()
            };
            check(&history, &Bounds::default())
        };
        let both = ["10.77.0.100", "fd77::64"];
        let vip = [Workload::Vip];
        assert_eq!(judged(&vip, &both).conclusion, Conclusion::Holds);
        let one = judged(&vip, &both[..1]);
        assert_eq!(one.conclusion, Conclusion::Undecided);
        assert!(one.summary.ends_with("no node answered for fd77::64"));
        assert_eq!(judged(&vip, &[]).conclusion, Conclusion::Undecided);
        assert_eq!(judged(&[], &[]).conclusion, Conclusion::Undecided);
        let others = judged(&[Workload::Register], &[]);
        assert_eq!(others.conclusion, Conclusion::NotExercised, "nobody asked");
    }

    #[test]
    fn what_is_uncertain_proves_nothing() {
        assert!(kinds(&[("a", 0, 20_000), ("b", 10_000, 30_000)]).is_empty());
        assert!(kinds(&[("a", 0, 10), ("b", 5, 5010), ("a", 4000, 5020)]).is_empty());
    }

    #[test]
    fn a_stranger_is_found_unless_he_was_put_there() {
        let stolen = Fault {
            kind: "address-stolen".into(),
            nodes: Default::default(),
            began: Moment(0),
            healed: Some(Moment(50_000)),
            hit_leader: false,
            skipped: None,
        };
        let history = |at| History {
            answers: vec![answer("!02:00", at, at)],
            faults: vec![stolen.clone()],
            ..History::default()
        };
        assert!(check(&history(20), &Bounds::default()).findings.is_empty());
        let found = check(&history(70), &Bounds::default());
        assert_eq!(found.findings[0].kind, "a stranger answered");
    }
}
