//! The run itself: it must have been a trial, and sessions that nothing touched must have lived.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Finding, Verdict};
use crate::history::{Call, Fault, History, Responder, Session, SessionEnd};

/// Faults that end no established session, by the beginning of their names.
///
/// Some are more than one thing: what ends sessions in them (`kill`, `restart`) is in the history under a name of its own.
const HARMLESS: [&str; 11] = [
    "transfer",
    "vip-move",
    "clock",
    "profile",
    "flush",
    "slow-disk",
    "disk-full",
    "bit-flip",
    "join",
    "dns-hang",
    "rolling",
];

/// A profile that is too fast for the machine loses leaders, and with each the sessions through the VIP.
const RESTLESS: &str = "profile-change";

/// A run in which nothing was injected, no leader was hit, or nothing succeeded shows nothing, and fails.
pub fn check_trial(history: &History, bounds: &Bounds) -> Verdict {
    let (injected, skipped): (Vec<_>, Vec<_>) =
        (history.faults.iter()).partition(|fault| fault.skipped.is_none());
    let mut findings = vec![];
    if !history.run.nemeses.is_empty() {
        if injected.is_empty() {
            findings.push(Finding::new(
                "nothing injected",
                "no fault was injected".to_owned(),
            ));
        }
        if !injected.is_empty() && !injected.iter().any(|fault| fault.hit_leader) {
            let text = format!("none of {} faults touched a leader", injected.len());
            findings.push(Finding::new("leader never hit", text));
        }
    }
    if !bounds.allow_skip {
        findings.extend(skipped.iter().map(|fault| {
            let why = fault.skipped.as_deref().unwrap_or_default();
            Finding::new("skipped", format!("{}: {why}", fault.kind)).at(fault.began)
        }));
    }
    let mut succeeded: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for operation in &history.operations {
        let (ok, all) = succeeded.entry(kind(&operation.call)).or_default();
        *ok += usize::from(operation.is_ok());
        *all += 1;
    }
    for (kind, (ok, all)) in &succeeded {
        if *ok == 0 {
            let text = format!("none of {all} operations succeeded: {kind}");
            findings.push(Finding::new("nothing succeeded", text));
        }
    }
    if succeeded.is_empty() {
        findings.push(Finding::new(
            "nothing succeeded",
            "there are no operations".to_owned(),
        ));
    }
    let reason = (!history.is_complete).then(|| "the run did not come to its end".to_owned());
    let summary = format!(
        "{} operations, {} faults, {} skipped",
        history.operations.len(),
        injected.len(),
        skipped.len()
    );
    Verdict::of("run", summary, findings).unless_undecided(reason)
}

fn kind(call: &Call) -> &'static str {
    match call {
        Call::Read { .. } => "register reads",
        Call::Write { .. } => "register writes",
        Call::CompareAndSet { .. } => "compare-and-sets",
        Call::Add { .. } => "adds",
        Call::Remove { .. } => "removes",
        Call::Elements { .. } => "set reads",
        Call::Transaction { .. } => "transactions",
        Call::Lookup { .. } => "lookups",
    }
}

/// Sessions whose way no fault touched were closed by their client, and no session got anything but what it had sent.
pub fn check_sessions(history: &History) -> Verdict {
    let mut findings = vec![];
    for session in &history.sessions {
        let (kind, how) = match &session.end {
            SessionEnd::Closed => continue,
            SessionEnd::Corrupt(how) => ("corrupt", how),
            SessionEnd::Broken(_) if is_excused(session, history) => continue,
            SessionEnd::Broken(how) => ("broken", how),
        };
        let way = if session.through_vip {
            " through the VIP"
        } else {
            ""
        };
        let text = format!(
            "session {} at {}{way}, opened at {}: {how}",
            session.id, session.node, session.opened
        );
        findings.push(Finding::new(kind, text).at(session.ended));
    }
    Verdict::of(
        "sessions",
        format!("{} sessions", history.sessions.len()),
        findings,
    )
}

/// Whether a fault that ends sessions was in force on the session's way while it lived.
///
/// Through the VIP the way leads over whoever held it then: a holder passes on to an earlier one what is not its own. It does so once, so
/// that a second planned move in the life of a session may end it (docs/decisions/0012).
fn is_excused(session: &Session, history: &History) -> bool {
    let holders = match session.through_vip {
        true => holders(session, history),
        false => vec![],
    };
    let way: BTreeSet<&str> = (holders.iter().copied())
        .chain([session.node.as_str()])
        .collect();
    holders.len() > 2 || is_hit(session, &way, &history.faults)
}

/// Who held the VIP during a session, in order.
fn holders<'a>(session: &'a Session, history: &'a History) -> Vec<&'a str> {
    let mut answers: Vec<_> = (history.answers.iter())
        .filter(|answer| session.opened <= answer.latest && answer.earliest <= session.ended)
        .filter(|answer| answer.vip.parse::<std::net::Ipv4Addr>().is_ok())
        .filter_map(|answer| match &answer.by {
            Responder::Node(node) => Some((answer.latest, node.as_str())),
            Responder::Stranger(_) => None,
        })
        .collect();
    answers.sort();
    let mut holders: Vec<&str> = vec![session.node.as_str()];
    for (_, node) in answers {
        if holders.last() != Some(&node) {
            holders.push(node);
        }
    }
    holders
}

fn is_hit(session: &Session, way: &BTreeSet<&str>, faults: &[Fault]) -> bool {
    faults.iter().any(|fault| {
        let is_on_way = |node: &String| way.contains(node.as_str());
        let is_there = fault.nodes.is_empty() || fault.nodes.iter().any(is_on_way);
        let is_over = fault.healed.is_some_and(|healed| healed < session.opened);
        let is_harmless = HARMLESS.iter().any(|name| fault.kind.starts_with(name))
            && !(session.through_vip && fault.kind == RESTLESS);
        is_there
            && !is_over
            && !is_harmless
            && fault.skipped.is_none()
            && fault.began <= session.ended
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::*},
        history::{Moment, Operation},
    };

    fn fault(kind: &str, node: &str, began: u64, healed: u64, hit_leader: bool) -> Fault {
        Fault {
            kind: kind.into(),
            nodes: [node.to_owned()].into(),
            began: Moment(began),
            healed: Some(Moment(healed)),
            hit_leader,
            skipped: None,
        }
    }

    fn tried(faults: Vec<Fault>, operations: Vec<Operation>) -> History {
        let mut history = history(operations);
        history.run.nemeses = ["kill".to_owned()].into();
        history.run.recovery_bound_ms = 1;
        history.faults = faults;
        history.is_complete = true;
        history
    }

    fn kinds(verdict: &Verdict) -> Vec<&'static str> {
        verdict
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    #[test]
    fn a_run_that_tried_nothing_fails() {
        let written = || vec![ok(0, 0, 1, write("a", "1"), committed(1))];
        let judged = |history: &History| kinds(&check_trial(history, &Bounds::default()));
        let leader = || fault("kill", "n1", 5, 6, true);
        assert!(judged(&tried(vec![leader()], written())).is_empty());
        assert_eq!(judged(&tried(vec![], written())), ["nothing injected"]);
        assert_eq!(
            judged(&tried(vec![fault("kill", "n2", 5, 6, false)], written())),
            ["leader never hit"]
        );
        assert_eq!(
            judged(&tried(vec![leader()], vec![])),
            ["nothing succeeded"]
        );
        assert_eq!(
            judged(&tried(
                vec![leader()],
                vec![failed(0, 0, 1, write("a", "1"))]
            )),
            ["nothing succeeded"]
        );

        let mut skipped = fault("skew", "n2", 5, 6, false);
        skipped.skipped = Some("faketime is absent".into());
        let history = tried(vec![leader(), skipped], written());
        assert_eq!(judged(&history), ["skipped"]);
        let lenient = Bounds {
            allow_skip: true,
            ..Bounds::default()
        };
        assert!(check_trial(&history, &lenient).findings.is_empty());

        let mut history = tried(vec![leader()], written());
        history.is_complete = false;
        assert_eq!(
            check_trial(&history, &Bounds::default()).conclusion,
            Conclusion::Undecided
        );
    }

    #[test]
    fn the_way_of_a_session_through_the_vip_leads_over_its_holders() {
        let judged = |holders: &[(u64, &str)], faults: Vec<Fault>| {
            let mut history = tried(faults, vec![]);
            history.sessions = vec![Session {
                id: 1,
                node: "n1".into(),
                through_vip: true,
                opened: Moment(10),
                ended: Moment(100),
                end: SessionEnd::Broken("reset".into()),
                longest_gap_us: 0,
            }];
            let answer = |(at, node): &(u64, &str)| crate::history::Answer {
                vip: "10.77.0.100".into(),
                by: Responder::Node((*node).into()),
                earliest: Moment(*at),
                latest: Moment(*at),
                kind: "arp".into(),
            };
            history.answers = holders.iter().map(answer).collect();
            kinds(&check_sessions(&history))
        };
        let kill_n2 = || vec![fault("kill", "n2", 50, 60, false)];
        // It was moved from n1 to n2, and n2 was killed.
        assert!(judged(&[(20, "n1"), (40, "n2")], kill_n2()).is_empty());
        assert_eq!(judged(&[(20, "n1")], kill_n2()), ["broken"]);
        assert_eq!(judged(&[(20, "n1"), (140, "n2")], kill_n2()), ["broken"]);
        let profile = || vec![fault("profile-change", "n1", 50, 60, true)];
        assert!(judged(&[(20, "n1"), (40, "n2")], profile()).is_empty());
        // One move is to be survived, two are not promised.
        assert_eq!(judged(&[(20, "n1"), (40, "n2")], vec![]), ["broken"]);
        assert!(judged(&[(20, "n1"), (40, "n2"), (60, "n3")], vec![]).is_empty());
    }

    #[test]
    fn sessions_that_no_fault_touched_live() {
        let judged = |node: &str, end: SessionEnd, faults: Vec<Fault>| {
            let mut history = tried(faults, vec![]);
            history.sessions = vec![Session {
                id: 1,
                node: node.into(),
                through_vip: true,
                opened: Moment(10),
                ended: Moment(100),
                end,
                longest_gap_us: 0,
            }];
            kinds(&check_sessions(&history))
        };
        let broken = || SessionEnd::Broken("reset".into());
        let kill = || vec![fault("kill", "n1", 50, 60, true)];
        assert!(judged("n1", SessionEnd::Closed, vec![]).is_empty());
        assert!(judged("n1", broken(), kill()).is_empty());
        assert_eq!(judged("n2", broken(), kill()), ["broken"]);
        assert_eq!(
            judged("n1", broken(), vec![fault("transfer", "n1", 50, 60, true)]),
            ["broken"]
        );
        assert_eq!(
            judged("n1", broken(), vec![fault("kill", "n1", 1, 5, true)]),
            ["broken"]
        );
        assert_eq!(
            judged("n1", SessionEnd::Corrupt("x".into()), kill()),
            ["corrupt"]
        );
    }
}
