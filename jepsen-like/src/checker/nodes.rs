//! The nodes themselves: equal states, no panic, no growth without bound.

use std::collections::{BTreeMap, BTreeSet};

use super::{Bounds, Finding, Verdict, set_aside};
use crate::history::{History, NoticeKind, StateHash, Usage};

/// Samples of a process, about a second apart, below which its own beginning is no measure: it may still be starting.
const FEWEST_SAMPLES: usize = 10;
/// The last samples of a process that ended sooner; one may be of a burst.
const SETTLED: usize = 2;

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

/// What processes use does not grow without bound.
///
/// - A process of [`FEWEST_SAMPLES`] or more: the least it uses in its last fifth is at most the bound above the most of its first. Least
///   against most: a burst of connections or a snapshot under way is no growth, what is never given back is.
/// - One that ended before, as those do that are killed again and again: the least of its last [`SETTLED`] samples is at most the bound above
///   what a process of the run usually uses soon after its start: the median over all of them of the sample after the first, which may have
///   been taken while a process was still being loaded. What each reads from its disk is in it, and half of them have to be wrong to move it.
/// - Of a process with no sample between these two nothing can be said.
pub fn check_growth(history: &History, bounds: &Bounds) -> Verdict {
    let mut processes: BTreeMap<(&str, u32), Vec<&Usage>> = BTreeMap::new();
    for usage in &history.usages {
        let process = (usage.node.as_str(), usage.pid);
        processes.entry(process).or_default().push(usage);
    }
    for samples in processes.values_mut() {
        samples.sort_by_key(|usage| usage.at);
    }
    let measures: [(&'static str, &str, Measure, u64); 2] = [
        (
            "descriptors",
            "",
            |used| used.descriptors,
            bounds.descriptors,
        ),
        (
            "memory",
            " KiB",
            |used| used.resident_kib,
            bounds.resident_kib,
        ),
    ];
    let mut findings = vec![];
    for (kind, unit, of, bound) in measures {
        let usual = usual_start(processes.values(), of);
        for ((node, pid), samples) in &processes {
            let grown = grown(samples, usual, of);
            if let Some((first, last)) =
                grown.filter(|(first, last)| last.saturating_sub(*first) > bound)
            {
                let text = format!(
                    "{node}, process {pid}: from {first}{unit} to {last}{unit}; {bound}{unit} more are allowed"
                );
                findings.push(Finding::new(kind, text));
            }
        }
    }
    let count = |wanted| {
        let lengths = processes.values().map(|samples| Length::of(samples));
        lengths.filter(|length| *length == wanted).count()
    };
    let (long, short) = (count(Length::Long), count(Length::Short));
    let summary = format!(
        "{} processes: {long} judged by their beginnings, {short} of fewer than {FEWEST_SAMPLES} samples by the usual start, {} too short",
        processes.len(),
        count(Length::TooShort)
    );
    let nothing = || "no process was sampled for long enough".to_owned();
    // What a process uses now it may have given back later.
    let reason =
        set_aside(history, &mut findings, |_| false).or_else(|| (long + short == 0).then(nothing));
    Verdict::of("growth", summary, findings).unless_undecided(reason)
}

/// What a sample says of one resource.
type Measure = fn(&Usage) -> u64;

/// What a process can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// Its own beginning.
    Long,
    /// The beginnings of all processes.
    Short,
    TooShort,
}

impl Length {
    fn of(samples: &[&Usage]) -> Self {
        match samples.len() {
            FEWEST_SAMPLES.. => Self::Long,
            count if count > SETTLED => Self::Short,
            _ => Self::TooShort,
        }
    }
}

/// What processes usually use soon after their start.
fn usual_start<'a>(
    processes: impl Iterator<Item = &'a Vec<&'a Usage>>,
    of: Measure,
) -> Option<u64> {
    let mut starts: Vec<u64> = processes
        .filter_map(|samples| samples.get(1).map(|usage| of(usage)))
        .collect();
    starts.sort_unstable();
    starts.get(starts.len() / 2).copied()
}

/// What a process is compared with, and the least that it used in the end.
fn grown(samples: &[&Usage], usual: Option<u64>, of: Measure) -> Option<(u64, u64)> {
    let least_of_last = |count| {
        let last = samples.iter().rev().take(count);
        last.map(|usage| of(usage)).min()
    };
    match Length::of(samples) {
        Length::Long => {
            let fifth = samples.len() / 5;
            let first = samples.iter().take(fifth).map(|usage| of(usage)).max()?;
            Some((first, least_of_last(fifth)?))
        }
        Length::Short => Some((usual?, least_of_last(SETTLED)?)),
        Length::TooShort => None,
    }
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

    /// Processes of so many descriptors, sample by sample.
    fn processes(of: &[&[u64]]) -> Verdict {
        let samples = |(pid, samples): (u32, &&[u64])| {
            let usage = move |(at, descriptors): (u64, &u64)| Usage {
                at: Moment(at + 100 * u64::from(pid)),
                node: "n1".into(),
                pid,
                descriptors: *descriptors,
                resident_kib: 1000,
            };
            (0..).zip(samples.iter()).map(usage).collect::<Vec<_>>()
        };
        let history = History {
            usages: (0..).zip(of).flat_map(samples).collect(),
            ..History::default()
        };
        check_growth(&history, &Bounds::default())
    }

    #[test]
    fn a_process_that_ends_soon_is_compared_with_how_all_of_them_start() {
        let calm: &[u64] = &[5, 40, 45, 50];
        let leaking: &[u64] = &[5, 45, 120, 180, 240, 300];
        let bursting: &[u64] = &[5, 45, 400, 400, 60];
        let long: &[u64] = &[40; 12];
        let verdict = processes(&[calm, leaking, bursting, long, &[900, 900], &[]]);
        assert_eq!(verdict.found, 1, "{verdict:?}");
        let text = &verdict.findings[0].text;
        assert!(text.starts_with("n1, process 1: from 45 to 240;"), "{text}");
        assert_eq!(
            verdict.summary,
            "5 processes: 1 judged by their beginnings, 3 of fewer than 10 samples by the usual start, 1 too short"
        );
        // What every process has from its start is usual.
        let full: &[u64] = &[5, 900, 900, 900];
        assert_eq!(processes(&[full; 3]).conclusion, Conclusion::Holds);
        // One process alone is compared with itself.
        assert_eq!(processes(&[leaking]).conclusion, Conclusion::Violated);
        let unknown = processes(&[&[900, 900]]);
        assert_eq!(unknown.conclusion, Conclusion::Undecided, "{unknown:?}");
        assert_eq!(processes(&[]).conclusion, Conclusion::Undecided);
    }
}
