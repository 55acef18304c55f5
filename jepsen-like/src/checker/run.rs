//! The run itself: it must have been a trial, its cluster must have recovered, and sessions that nothing touched must have lived.

use std::collections::BTreeMap;

use super::{Bounds, Conclusion, Finding, Verdict};
use crate::history::{
    Call, Fault, History, Micro, Moment, Operation, Responder, Session, SessionEnd,
};

/// Faults that end no established session, by the beginning of their names.
const HARMLESS: [&str; 11] = [
    "transfer",
    "move",
    "clock",
    "profile",
    "flush",
    "slow-disk",
    "disk-full",
    "bit-flip",
    "join",
    "lost-writes",
    "skew",
];

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

/// Writes succeed and VIPs answer again within the bound after the last fault was healed.
pub fn check_recovery(history: &History) -> Verdict {
    let name = "recovery";
    let bound = std::time::Duration::from_millis(history.run.recovery_bound_ms);
    let injected = || {
        history
            .faults
            .iter()
            .filter(|fault| fault.skipped.is_none())
    };
    if let Some(fault) = injected().find(|fault| fault.healed.is_none()) {
        let reason = format!("{} was never healed", fault.kind);
        return Verdict::of(name, format!("bound {bound:?}"), vec![])
            .unless_undecided(Some(reason));
    }
    let Some(healed) = injected().filter_map(|fault| fault.healed).max() else {
        return Verdict::of(name, "no fault to recover from".to_owned(), vec![]);
    };
    let is_after =
        |operation: &&Operation| is_write(&operation.call) && operation.invoked >= healed;
    let written = (history.operations.iter())
        .filter(|operation| is_after(operation) && operation.is_ok())
        .filter_map(|operation| operation.completed)
        .min();
    let mut judged = vec![judge(
        "write",
        written,
        healed,
        bound,
        history.operations.iter().any(|one| is_after(&one)),
    )];
    let mut vips: BTreeMap<&str, Option<Moment>> = BTreeMap::new();
    for answer in &history.answers {
        let first = vips.entry(&answer.vip).or_default();
        if answer.earliest >= healed && matches!(answer.by, Responder::Node(_)) {
            *first = Some(first.map_or(answer.latest, |first| first.min(answer.latest)));
        }
    }
    judged.extend(
        vips.iter()
            .map(|(vip, first)| judge(&format!("answer for {vip}"), *first, healed, bound, true)),
    );

    let mut texts = vec![format!("bound {bound:?} after {healed}")];
    let mut findings = vec![];
    let mut reason = None;
    for (conclusion, text) in judged {
        match conclusion {
            Conclusion::Holds => texts.push(text),
            Conclusion::Undecided => reason = Some(text),
            Conclusion::Violated => findings.push(Finding::new("too late", text).at(healed)),
        }
    }
    Verdict::of(name, texts.join(", "), findings).unless_undecided(reason)
}

fn judge(
    what: &str,
    first: Option<Moment>,
    healed: Moment,
    bound: std::time::Duration,
    was_tried: bool,
) -> (Conclusion, String) {
    match first.map(|first| first.since(healed)) {
        Some(took) if took <= bound => (Conclusion::Holds, format!("{what} after {took:?}")),
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
            format!("no {what} was tried after the last fault"),
        ),
    }
}

fn is_write(call: &Call) -> bool {
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

/// Sessions whose way no fault touched were closed by their client, and no session got anything but what it had sent.
pub fn check_sessions(history: &History) -> Verdict {
    let mut findings = vec![];
    for session in &history.sessions {
        let (kind, how) = match &session.end {
            SessionEnd::Closed => continue,
            SessionEnd::Corrupt(how) => ("corrupt", how),
            SessionEnd::Broken(_) if is_excused(session, &history.faults) => continue,
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
fn is_excused(session: &Session, faults: &[Fault]) -> bool {
    faults.iter().any(|fault| {
        let is_there = fault.nodes.is_empty() || fault.nodes.contains(&session.node);
        let is_over = fault.healed.is_some_and(|healed| healed < session.opened);
        let is_harmless = HARMLESS.iter().any(|name| fault.kind.starts_with(name));
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
    use crate::checker::fixture::*;

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
    fn recovery_is_measured_from_the_last_heal() {
        let faults = || vec![fault("kill", "n1", 5, 1_000_000, true)];
        let at = |invoked| ok(0, invoked, invoked + 10, write("a", "1"), committed(1));
        let judged = |operations| check_recovery(&tried(faults(), operations)).conclusion;
        assert_eq!(judged(vec![at(1_500_000)]), Conclusion::Holds);
        assert_eq!(judged(vec![at(2_500_000)]), Conclusion::Violated);
        assert_eq!(
            judged(vec![unknown(0, 1_500_000, 9_000_000, write("a", "1"))]),
            Conclusion::Violated
        );
        assert_eq!(judged(vec![at(1000)]), Conclusion::Undecided);
        let mut endless = tried(faults(), vec![at(1_500_000)]);
        endless.faults[0].healed = None;
        assert_eq!(check_recovery(&endless).conclusion, Conclusion::Undecided);
    }

    #[test]
    fn a_vip_that_never_answers_again_is_found() {
        let mut history = tried(
            vec![fault("kill", "n1", 5, 1_000_000, true)],
            vec![ok(0, 1_000_010, 1_000_020, write("a", "1"), committed(1))],
        );
        let answer = |at| crate::history::Answer {
            vip: "v".into(),
            by: Responder::Node("n1".into()),
            earliest: Moment(at),
            latest: Moment(at),
            kind: "arp".into(),
        };
        history.answers = vec![answer(0)];
        assert_eq!(kinds(&check_recovery(&history)), ["too late"]);
        history.answers.push(answer(1_000_500));
        assert_eq!(check_recovery(&history).conclusion, Conclusion::Holds);
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
