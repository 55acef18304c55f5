//! The nodes themselves: equal states, no panic, no growth without bound.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Finding, Verdict};
use crate::history::{History, NoticeKind, StateHash, Usage};

/// Samples of a process below which nothing is said about its growth.
const FEWEST_SAMPLES: usize = 10;

/// At one index all nodes have one state, and at the end they are all at one.
pub fn check_hashes(history: &History) -> Verdict {
    let mut at_index: BTreeMap<u64, &StateHash> = BTreeMap::new();
    let mut findings = vec![];
    for hash in &history.hashes {
        let first = *at_index.entry(hash.index).or_insert(hash);
        if first.hash != hash.hash {
            let text = format!(
                "index {}: {} has {}, {} has {}",
                hash.index, first.node, first.hash, hash.node, hash.hash
            );
            findings.push(Finding::new("states differ", text).at(hash.at));
        }
    }
    let missing: Vec<_> = (history.run.nodes.iter())
        .filter(|node| {
            !history
                .hashes
                .iter()
                .any(|hash| hash.is_final && hash.node == **node)
        })
        .cloned()
        .collect();
    let last: Vec<_> = (history.hashes.iter())
        .filter(|hash| hash.is_final)
        .collect();
    let indexes: BTreeSet<u64> = last.iter().map(|hash| hash.index).collect();
    if indexes.len() > 1 {
        let shown = last
            .iter()
            .map(|hash| format!("{} at {}", hash.node, hash.index));
        let shown: Vec<_> = shown.collect();
        let text = format!(
            "nobody wrote any more, and the nodes were of different indexes: {}",
            shown.join(", ")
        );
        let at = last.iter().map(|hash| hash.at).max().unwrap_or_default();
        findings.push(Finding::new("final indexes differ", text).at(at));
    }
    let reason = (!missing.is_empty()).then(|| format!("no final hash of {}", missing.join(", ")));
    let summary = format!(
        "{} hashes at {} indexes",
        history.hashes.len(),
        at_index.len()
    );
    Verdict::of("state hashes", summary, findings).unless_undecided(reason)
}

/// No panic in any log, and no process that ended by itself.
pub fn check_notices(history: &History) -> Verdict {
    let finding = |notice: &crate::history::Notice| {
        let kind = match notice.kind {
            NoticeKind::Panic => "panic",
            NoticeKind::UnexpectedExit => "ended by itself",
        };
        Finding::new(kind, format!("{}: {}", notice.node, notice.text)).at(notice.at)
    };
    let findings = history.notices.iter().map(finding).collect();
    let summary = format!("logs of {} nodes", history.run.nodes.len());
    Verdict::of("logs", summary, findings)
}

/// The least that a process uses in its last fifth exceeds the most of its first fifth by no more than the bounds.
///
/// Least against most: a burst of connections or a snapshot under way is no growth, what is never given back is.
pub fn check_growth(history: &History, bounds: &Bounds) -> Verdict {
    let mut processes: BTreeMap<(&str, u32), Vec<&Usage>> = BTreeMap::new();
    for usage in &history.usages {
        processes
            .entry((&usage.node, usage.pid))
            .or_default()
            .push(usage);
    }
    let mut findings = vec![];
    for ((node, pid), samples) in &mut processes {
        if samples.len() < FEWEST_SAMPLES {
            continue;
        }
        samples.sort_by_key(|usage| usage.at);
        for (kind, unit, of, bound) in [
            (
                "descriptors",
                "",
                (|usage| usage.descriptors) as fn(&Usage) -> u64,
                bounds.descriptors,
            ),
            (
                "memory",
                " KiB",
                |usage| usage.resident_kib,
                bounds.resident_kib,
            ),
        ] {
            let fifth = samples.len() / 5;
            let first = samples
                .iter()
                .take(fifth)
                .map(|usage| of(usage))
                .max()
                .unwrap_or_default();
            let last = samples
                .iter()
                .rev()
                .take(fifth)
                .map(|usage| of(usage))
                .min()
                .unwrap_or_default();
            if last > first.saturating_add(bound) {
                let text = format!(
                    "{node}, process {pid}: from {first}{unit} to {last}{unit}; {bound}{unit} more are allowed"
                );
                findings.push(Finding::new(kind, text));
            }
        }
    }
    Verdict::of("growth", format!("{} processes", processes.len()), findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::Conclusion,
        history::{Moment, Notice},
    };

    fn hashes(of: &[(&str, u64, &str)]) -> Verdict {
        let mut history = History::default();
        history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
        history.hashes = (of.iter())
            .map(|(node, index, hash)| StateHash {
                at: Moment(0),
                node: (*node).into(),
                index: *index,
                hash: (*hash).into(),
                is_final: true,
            })
            .collect();
        check_hashes(&history)
    }

    #[test]
    fn equal_indexes_have_equal_states() {
        assert_eq!(
            hashes(&[("n1", 5, "x"), ("n2", 5, "x")]).conclusion,
            Conclusion::Holds
        );
        assert_eq!(
            hashes(&[("n1", 5, "x"), ("n2", 5, "y")]).conclusion,
            Conclusion::Violated
        );
        let apart = hashes(&[("n1", 5, "x"), ("n2", 6, "y")]);
        assert_eq!(apart.findings[0].kind, "final indexes differ");
        assert!(apart.findings[0].text.ends_with("n1 at 5, n2 at 6"));
        assert_eq!(hashes(&[("n1", 5, "x")]).conclusion, Conclusion::Undecided);
    }

    #[test]
    fn a_panic_is_a_finding() {
        let mut history = History::default();
        assert_eq!(check_notices(&history).conclusion, Conclusion::Holds);
        history.notices.push(Notice {
            at: Moment(1),
            node: "n1".into(),
            kind: NoticeKind::Panic,
            text: "thread 'dns' panicked".into(),
        });
        assert_eq!(check_notices(&history).findings[0].kind, "panic");
    }

    #[test]
    fn growth_is_what_is_never_given_back() {
        let judged = |descriptors: &dyn Fn(u64) -> u64| {
            let usage = |at| Usage {
                at: Moment(at),
                node: "n1".into(),
                pid: 7,
                descriptors: descriptors(at),
                resident_kib: 1000,
            };
            let history = History {
                usages: (0..50).map(usage).collect(),
                ..History::default()
            };
            check_growth(&history, &Bounds::default()).conclusion
        };
        assert_eq!(judged(&|_| 40), Conclusion::Holds);
        assert_eq!(
            judged(&|at| if at % 7 == 0 { 900 } else { 40 }),
            Conclusion::Holds
        );
        assert_eq!(judged(&|at| 40 + 10 * at), Conclusion::Violated);
    }
}
