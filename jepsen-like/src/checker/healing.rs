//! Healing: the cluster comes back from what was done to it, in its time.

use super::{Finding, Verdict};
use crate::history::History;

/// Whatever the cluster owed while a fault was injected or healed (a join, a leave, an end, a profile) it did in the time it had.
pub fn check(history: &History) -> Verdict {
    let findings = (history.unhealed.iter())
        .map(|unhealed| Finding::new("not healed", unhealed.to_string()).at(unhealed.at));
    let injected = history
        .faults
        .iter()
        .filter(|fault| fault.skipped.is_none());
    let healed = injected.clone().filter(|fault| fault.healed.is_some());
    let summary = format!(
        "{} of {} faults healed",
        healed.count(),
        injected.clone().count()
    );
    let count = injected.count();
    Verdict::of("healing", summary, findings.collect()).exercised_by(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::*},
        history::{Fault, Moment, Unhealed},
    };

    #[test]
    fn a_cluster_that_did_not_heal_is_found_with_the_fault_it_began_with() {
        let open = Fault {
            healed: None,
            ..fault("leave", "n2", 40, 0, false)
        };
        let mut history = tried(vec![fault("kill", "n1", 5, 6, true), open.clone()], vec![]);
        let verdict = check(&history);
        assert_eq!(
            (verdict.conclusion, verdict.summary.as_str()),
            (Conclusion::Holds, "1 of 2 faults healed")
        );
        history.unhealed = vec![Unhealed {
            at: Moment(90),
            text: "the leave of n2 did not happen within 90 s".into(),
            fault: Some(open),
        }];
        let verdict = check(&history);
        assert_eq!(kinds(&verdict), ["not healed"]);
        let told = &verdict.findings[0];
        assert_eq!(
            told.text,
            "the leave of n2 did not happen within 90 s (with leave on n2, begun at 0.000000 s)"
        );
        assert_eq!(told.at, Some(Moment(90)));
    }
}
