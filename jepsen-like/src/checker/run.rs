//! The run itself: it must have been a trial.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Bounds, Finding, Verdict};
use crate::history::{Call, Fault, History, Skip};

/// A run in which nothing was injected, no leader was hit, or nothing succeeded shows nothing, and fails.
pub fn check_trial(history: &History, bounds: &Bounds) -> Verdict {
    let (injected, skipped): (Vec<_>, Vec<_>) =
        (history.faults.iter()).partition(|fault| fault.skipped.is_none());
    let mut findings = vec![];
    if !history.run.nemeses.is_empty() {
        if injected.is_empty() {
            let text = match skipped.first() {
                Some(first) => format!(
                    "none of {} faults was injected; {}",
                    skipped.len(),
                    why(first)
                ),
                None => "no fault was injected".to_owned(),
            };
            findings.push(Finding::new("nothing injected", text));
        }
        if !injected.is_empty() && !injected.iter().any(|fault| fault.hit_leader) {
            let text = format!("none of {} faults touched a leader", injected.len());
            findings.push(Finding::new("leader never hit", text));
        }
    }
    // One that was missed is no failure of the run: it tells of what the cluster was then, and the others were done.
    let is_impossible = |fault: &&&Fault| matches!(fault.skipped, Some(Skip::Impossible(_)));
    let impossible = skipped.iter().filter(is_impossible);
    let missed = skipped.len() - impossible.clone().count();
    if !bounds.allow_skip {
        let told = |fault: &&Fault| Finding::new("skipped", why(fault)).at(fault.began);
        findings.extend(impossible.map(told));
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
    let reason = match &history.breakdown {
        Some(breakdown) => Some(format!(
            "the laboratory failed at {}: {}",
            breakdown.at, breakdown.text
        )),
        None => (!history.is_complete).then(|| "the run did not come to its end".to_owned()),
    };
    let mut summary = format!(
        "{} operations, {} faults, {} skipped",
        history.operations.len(),
        injected.len(),
        skipped.len() - missed
    );
    if missed > 0 {
        let _ = write!(summary, ", {missed} missed");
    }
    if let Some(worst) = history.latenesses.iter().map(|late| late.worst_us).max() {
        let _ = write!(summary, ", the machine up to {} ms late", worst / 1000);
    }
    Verdict::of("run", summary, findings).unless_undecided(reason)
}

/// The kind of a fault that was not injected, and why it was not.
fn why(fault: &Fault) -> String {
    match &fault.skipped {
        Some(skip) => format!("{}: {skip}", fault.kind),
        None => fault.kind.clone(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Conclusion, fixture::*};

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

        // What was tried and not done touched nobody, and fails a run only if nothing else was done.
        let mut missed = fault("vip-move", "n1", 5, 6, false);
        missed.skipped = Some(Skip::Missed {
            missed: "n2 lags".into(),
        });
        assert!(judged(&tried(vec![leader(), missed.clone()], written())).is_empty());
        let verdict = check_trial(&tried(vec![missed], written()), &Bounds::default());
        assert_eq!(kinds(&verdict), ["nothing injected"]);
        assert!(verdict.findings[0].text.contains("vip-move: n2 lags"));
        assert!(verdict.summary.ends_with("0 faults, 0 skipped, 1 missed"));

        let mut history = tried(vec![leader()], written());
        history.is_complete = false;
        assert_eq!(
            check_trial(&history, &Bounds::default()).conclusion,
            Conclusion::Undecided
        );
    }
}
