//! Unique adds: what was acknowledged is there, what was deleted or refused is not, and nothing is there that nobody added.
//!
//! Judged on the reads that may not be old: linearizable ones, and the final ones, which every node owes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Verdict, planned};
use crate::{
    history::{Call, History, Operation, Outcome, Reply},
    workload::Workload,
};

const NAME: &str = "set";

/// Judges every set of a run.
pub fn check(history: &History) -> Verdict {
    let mut sets: BTreeMap<&str, Set<'_>> = BTreeMap::new();
    for operation in &history.operations {
        if let Call::Add { set, .. } | Call::Remove { set, .. } | Call::Elements { set, .. } =
            &operation.call
        {
            sets.entry(set).or_default().add(operation);
        }
    }
    let mut findings = vec![];
    let mut missing = vec![];
    for (name, set) in &sets {
        for read in &set.reads {
            set.judge(name, read, &mut findings);
        }
        set.compare_final(name, &mut findings);
        missing.extend(
            set.owing(&history.run.nodes)
                .map(|node| format!("{name} on {node}")),
        );
    }
    let adds: usize = sets.values().map(|set| set.adds.len()).sum();
    let reads: usize = sets.values().map(|set| set.reads.len()).sum();
    let summary = format!("{adds} adds, {reads} reads of {} sets", sets.len());
    let nothing = || {
        planned::unjudged(
            &history.run,
            &[Workload::Set],
            adds + reads,
            "adds or reads",
        )
    };
    let reason = (!missing.is_empty())
        .then(|| format!("no final read of {}", missing.join(", ")))
        .or_else(nothing);
    Verdict::of(NAME, summary, findings).unless_undecided(reason)
}

/// A read with what it saw.
struct SetRead<'a> {
    operation: &'a Operation,
    elements: &'a [u64],
    is_local: bool,
    is_final: bool,
}

#[derive(Default)]
struct Set<'a> {
    adds: BTreeMap<u64, &'a Operation>,
    removes: BTreeMap<u64, Vec<&'a Operation>>,
    reads: Vec<SetRead<'a>>,
}

impl<'a> Set<'a> {
    fn add(&mut self, operation: &'a Operation) {
        match (&operation.call, &operation.reply) {
            (Call::Add { element, .. }, _) => {
                self.adds.insert(*element, operation);
            }
            (Call::Remove { element, .. }, _) if operation.outcome != Outcome::Fail => {
                self.removes.entry(*element).or_default().push(operation);
            }
            (
                Call::Elements {
                    local, is_final, ..
                },
                Some(Reply::Elements(elements)),
            ) if operation.is_ok() => {
                self.reads.push(SetRead {
                    operation,
                    elements,
                    is_local: *local && !*is_final,
                    is_final: *is_final,
                });
            }
            _ => {}
        }
    }

    fn judge(&self, name: &str, read: &SetRead<'a>, findings: &mut Vec<Finding>) {
        let seen: BTreeSet<u64> = read.elements.iter().copied().collect();
        if seen.len() < read.elements.len() {
            let text = format!("{name}: an element is there twice in {}", read.operation);
            findings.push(Finding::about("duplicate", text, [read.operation]));
        }
        for element in &seen {
            self.judge_present(name, read, *element, findings);
        }
        if read.is_local {
            return; // may be old: that something is absent says nothing
        }
        for (element, add) in &self.adds {
            let is_owed = add.is_ok() && add.precedes(read.operation) && !seen.contains(element);
            let may_be_removed = self.removes.get(element).is_some_and(|removes| {
                removes
                    .iter()
                    .any(|remove| !read.operation.precedes(remove))
            });
            if is_owed && !may_be_removed {
                let text = format!(
                    "{name}: {element} is gone from {}, after {add}",
                    read.operation
                );
                findings.push(Finding::about("lost", text, [*add, read.operation]));
            }
        }
    }

    /// Whether an element may be there.
    fn judge_present(
        &self,
        name: &str,
        read: &SetRead<'a>,
        element: u64,
        findings: &mut Vec<Finding>,
    ) {
        let seen_by = read.operation;
        let Some(add) = self.adds.get(&element).copied() else {
            let text = format!("{name}: {element} is in {seen_by}, and nobody added it");
            findings.push(Finding::about("never added", text, [seen_by]));
            return;
        };
        if add.outcome == Outcome::Fail {
            let text = format!("{name}: {element} is in {seen_by}, and was refused in {add}");
            findings.push(Finding::about("refused, yet there", text, [add, seen_by]));
        } else if seen_by.precedes(add) {
            let text = format!("{name}: {element} is in {seen_by}, before {add}");
            findings.push(Finding::about("never added", text, [seen_by, add]));
        }
        // An add of unknown outcome may come after any removal.
        let removed = self
            .removes
            .get(&element)
            .into_iter()
            .flatten()
            .find(|remove| {
                remove.is_ok() && add.is_ok() && add.precedes(remove) && remove.precedes(seen_by)
            });
        if let Some(remove) = removed.filter(|_| !read.is_local) {
            let text = format!("{name}: {element} is in {seen_by}, after {remove}");
            findings.push(Finding::about("resurrected", text, [*remove, seen_by]));
        }
    }

    /// The final reads of all nodes see the same.
    fn compare_final(&self, name: &str, findings: &mut Vec<Finding>) {
        let finals: Vec<_> = self.reads.iter().filter(|read| read.is_final).collect();
        for pair in finals.windows(2) {
            let [one, other] = pair else { continue };
            let left: BTreeSet<_> = one.elements.iter().collect();
            let right: BTreeSet<_> = other.elements.iter().collect();
            let differing: Vec<_> = left.symmetric_difference(&right).take(5).collect();
            if !differing.is_empty() {
                let text = format!(
                    "{name}: {differing:?} only in one of {} and {}",
                    one.operation, other.operation
                );
                findings.push(Finding::about(
                    "nodes differ",
                    text,
                    [one.operation, other.operation],
                ));
            }
        }
    }

    /// Nodes without a final read.
    fn owing<'b>(&'b self, nodes: &'b BTreeSet<String>) -> impl Iterator<Item = &'b String> {
        nodes.iter().filter(|node| {
            let is_final =
                |read: &SetRead<'_>| read.is_final && read.operation.node.as_ref() == Some(*node);
            !self.adds.is_empty() && !self.reads.iter().any(is_final)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{Conclusion, fixture::*};

    fn add(element: u64) -> Call {
        Call::Add {
            set: "s".into(),
            element,
        }
    }

    fn remove(element: u64) -> Call {
        Call::Remove {
            set: "s".into(),
            element,
        }
    }

    fn elements(local: bool, is_final: bool) -> Call {
        Call::Elements {
            set: "s".into(),
            local,
            is_final,
        }
    }

    fn last(id: u64, node: &str, seen: &[u64]) -> Operation {
        at(
            node,
            ok(
                id,
                900,
                910,
                elements(true, true),
                Reply::Elements(seen.to_vec()),
            ),
        )
    }

    fn kinds(operations: Vec<Operation>) -> Vec<&'static str> {
        let mut history = history(operations);
        history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
        let verdict = check(&history);
        assert_ne!(verdict.conclusion, Conclusion::Undecided, "{verdict:?}");
        verdict
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    fn with_final(mut operations: Vec<Operation>, seen: &[u64]) -> Vec<Operation> {
        operations.extend([last(90, "n1", seen), last(91, "n2", seen)]);
        operations
    }

    #[test]
    fn each_defect_has_its_name() {
        let add1 = || ok(1, 0, 10, add(1), committed(1));
        let add2 = || ok(2, 20, 30, add(2), committed(2));
        let gone = || ok(3, 40, 50, remove(1), committed(3));
        let linear = |id, from, seen: &[u64]| {
            ok(
                id,
                from,
                from + 5,
                elements(false, false),
                Reply::Elements(seen.to_vec()),
            )
        };
        let local = |id, from, seen: &[u64]| {
            ok(
                id,
                from,
                from + 5,
                elements(true, false),
                Reply::Elements(seen.to_vec()),
            )
        };
        /// Name, operations, what the final reads see, findings.
        type Case<'a> = (&'a str, Vec<Operation>, &'a [u64], Vec<&'a str>);
        let cases: [Case<'_>; 11] = [
            ("all there", vec![add1(), add2()], &[2, 1], vec![]),
            ("removed", vec![add1(), add2(), gone()], &[2], vec![]),
            ("lost", vec![add1(), add2()], &[1], vec!["lost", "lost"]),
            (
                "resurrected",
                vec![add1(), gone()],
                &[1],
                vec!["resurrected", "resurrected"],
            ),
            (
                "never added",
                vec![],
                &[7],
                vec!["never added", "never added"],
            ),
            (
                "refused",
                vec![failed(1, 0, 10, add(1))],
                &[1],
                vec!["refused, yet there"; 2],
            ),
            (
                "twice",
                vec![add1()],
                &[1, 1],
                vec!["duplicate", "duplicate"],
            ),
            (
                "unknown, there",
                vec![unknown(1, 0, 10, add(1))],
                &[1],
                vec![],
            ),
            (
                "unknown, absent",
                vec![unknown(1, 0, 10, add(1))],
                &[],
                vec![],
            ),
            (
                "lost for a while",
                vec![add1(), linear(5, 15, &[])],
                &[1],
                vec!["lost"],
            ),
            (
                "local reads may be old",
                vec![add1(), local(5, 15, &[]), gone(), local(6, 55, &[1])],
                &[],
                vec![],
            ),
        ];
        for (name, operations, seen, expected) in cases {
            assert_eq!(kinds(with_final(operations, seen)), expected, "{name}");
        }
    }

    #[test]
    fn nodes_that_differ_are_named() {
        let operations = vec![
            unknown(1, 0, 10, add(1)),
            last(90, "n1", &[1]),
            last(91, "n2", &[]),
        ];
        assert_eq!(kinds(operations), ["nodes differ"]);
    }

    #[test]
    fn a_node_without_a_final_read_leaves_it_open() {
        let mut history = history([ok(1, 0, 10, add(1), committed(1)), last(90, "n1", &[1])]);
        history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
        let verdict = check(&history);
        assert_eq!(verdict.conclusion, Conclusion::Undecided);
        assert!(verdict.summary.ends_with("no final read of s on n2"));
    }
}
