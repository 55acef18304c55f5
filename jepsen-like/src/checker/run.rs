//! The run itself: it must have been a trial.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Bounds, Finding, Verdict};
use crate::history::{Call, History};

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
    let mut summary = format!(
        "{} operations, {} faults, {} skipped",
        history.operations.len(),
        injected.len(),
        skipped.len()
    );
    if let Some(worst) = history.latenesses.iter().map(|late| late.worst_us).max() {
        let _ = write!(summary, ", the machine up to {} ms late", worst / 1000);
    }
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

        let mut history = tried(vec![leader()], written());
        history.is_complete = false;
        assert_eq!(
            check_trial(&history, &Bounds::default()).conclusion,
            Conclusion::Undecided
        );
    }
}
