//! Unique adds: what was acknowledged is there, what was deleted or refused is not, and nothing is there that nobody added.
//!
//! Judged on the reads that may not be old: linearizable ones, and the final ones, which every node owes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::{Finding, LISTED, Verdict, planned};
use crate::{
    history::{Call, History, Moment, Operation, Outcome, Reply},
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
    let mut cases = Cases::default();
    let mut differing = vec![];
    let mut missing = vec![];
    for (name, set) in &sets {
        for read in &set.reads {
            set.judge(name, read, &mut cases);
        }
        set.judge_absent(name, &mut cases);
        set.compare_final(name, &mut differing);
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
    let found = cases.found.len() + differing.len();
    // Few, and they say what the others come to.
    let findings = differing.into_iter().chain(cases.findings());
    Verdict::of(NAME, summary, findings.take(LISTED).collect())
        .counting(found)
        .unless_undecided(reason)
        .exercised_by(adds + reads)
}

/// What is wrong with elements. Each is named once, with the read that showed it first: one that is lost is lost in every later read.
#[derive(Default)]
struct Cases<'a> {
    /// In the order in which they were found.
    found: Vec<Case<'a>>,
    /// By what is wrong, with which set and element.
    places: HashMap<(&'static str, &'a str, u64), usize>,
}

struct Case<'a> {
    set: &'a str,
    element: u64,
    wrong: Wrong<'a>,
    read: &'a Operation,
    /// Reads that showed the same after it.
    further: usize,
}

/// What is wrong with an element that is, or is not, in a read.
#[derive(Clone, Copy)]
enum Wrong<'a> {
    Twice,
    Unknown,
    Refused(&'a Operation),
    BeforeItsAdd(&'a Operation),
    AfterItsRemoval(&'a Operation),
    Lost(&'a Operation),
}

impl Wrong<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::Twice => "duplicate",
            Self::Unknown | Self::BeforeItsAdd(_) => "never added",
            Self::Refused(_) => "refused, yet there",
            Self::AfterItsRemoval(_) => "resurrected",
            Self::Lost(_) => "lost",
        }
    }
}

impl<'a> Cases<'a> {
    fn add(&mut self, set: &'a str, element: u64, wrong: Wrong<'a>, read: &'a Operation) {
        let next = self.found.len();
        let place = *(self.places)
            .entry((wrong.kind(), set, element))
            .or_insert(next);
        match self.found.get_mut(place) {
            Some(case) => case.further += 1,
            None => self.found.push(Case {
                set,
                element,
                wrong,
                read,
                further: 0,
            }),
        }
    }

    fn findings(&self) -> impl Iterator<Item = Finding> {
        self.found.iter().map(Case::finding)
    }
}

impl Case<'_> {
    fn finding(&self) -> Finding {
        let (read, element) = (self.read, self.element);
        let (how, operations) = match self.wrong {
            Wrong::Twice => (format!("is there twice in {read}"), vec![read]),
            Wrong::Unknown => (format!("is in {read}, and nobody added it"), vec![read]),
            Wrong::Refused(add) => (
                format!("is in {read}, and was refused in {add}"),
                vec![add, read],
            ),
            Wrong::BeforeItsAdd(add) => (format!("is in {read}, before {add}"), vec![read, add]),
            Wrong::AfterItsRemoval(remove) => {
                (format!("is in {read}, after {remove}"), vec![remove, read])
            }
            Wrong::Lost(add) => (format!("is gone from {read}, after {add}"), vec![add, read]),
        };
        let further = match self.further {
            0 => String::new(),
            1 => "; and in 1 further read".to_owned(),
            further => format!("; and in {further} further reads"),
        };
        let text = format!("{}: {element} {how}{further}", self.set);
        Finding::about(self.wrong.kind(), text, operations)
    }
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

    fn judge(&self, name: &'a str, read: &SetRead<'a>, cases: &mut Cases<'a>) {
        let mut seen = BTreeSet::new();
        for element in read.elements {
            match seen.insert(*element) {
                true => self.judge_present(name, read, *element, cases),
                false => cases.add(name, *element, Wrong::Twice, read.operation),
            }
        }
    }

    /// Whether each read has what it owes. One that may be old owes nothing.
    fn judge_absent(&self, name: &'a str, cases: &mut Cases<'a>) {
        let mut owed = Owed::of(self);
        for read in self.reads.iter().filter(|read| !read.is_local) {
            let seen: BTreeSet<u64> = read.elements.iter().copied().collect();
            for (element, add) in owed.by(read.operation) {
                if !seen.contains(&element) {
                    cases.add(name, element, Wrong::Lost(add), read.operation);
                }
            }
        }
    }

    /// Whether an element may be there.
    fn judge_present(
        &self,
        name: &'a str,
        read: &SetRead<'a>,
        element: u64,
        cases: &mut Cases<'a>,
    ) {
        let seen_by = read.operation;
        let Some(add) = self.adds.get(&element).copied() else {
            return cases.add(name, element, Wrong::Unknown, seen_by);
        };
        if add.outcome == Outcome::Fail {
            cases.add(name, element, Wrong::Refused(add), seen_by);
        } else if seen_by.precedes(add) {
            cases.add(name, element, Wrong::BeforeItsAdd(add), seen_by);
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
            cases.add(name, element, Wrong::AfterItsRemoval(remove), seen_by);
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

/// What reads owe as time goes on. Holds what is in the set now and not all that ever was: it is gone through for every read.
struct Owed<'a> {
    /// Acknowledged adds by their ends, each with its element and the beginning of its first removal.
    coming: VecDeque<(Moment, u64, Added<'a>)>,
    present: BTreeMap<u64, Added<'a>>,
}

struct Added<'a> {
    by: &'a Operation,
    removed: Option<Moment>,
}

impl<'a> Owed<'a> {
    fn of(set: &Set<'a>) -> Self {
        let removed = |element: &u64| {
            let removes = set.removes.get(element)?.iter();
            removes.map(|remove| remove.invoked).min()
        };
        let added = |(element, by): (&u64, &&'a Operation)| {
            let removed = removed(element);
            Some((by.completed?, *element, Added { by, removed }))
        };
        let adds = set.adds.iter().filter(|(_, add)| add.is_ok());
        let mut coming: Vec<_> = adds.filter_map(added).collect();
        coming.sort_by_key(|(completed, element, _)| (*completed, *element));
        Self {
            coming: coming.into(),
            present: BTreeMap::new(),
        }
    }

    /// What a read has to show: added before it began, and its removal not begun before it ended. To be asked in order of invocation.
    fn by(&mut self, read: &Operation) -> impl Iterator<Item = (u64, &'a Operation)> {
        while let Some((_, element, added)) =
            (self.coming).pop_front_if(|(completed, ..)| *completed < read.invoked)
        {
            self.present.insert(element, added);
        }
        // Later reads end after it too.
        (self.present).retain(|_, added| added.removed.is_none_or(|at| at > read.invoked));
        let ended = read.completed;
        let is_owed = move |removed: Option<Moment>| match (removed, ended) {
            (Some(removed), Some(ended)) => ended < removed,
            (Some(_), None) => false,
            (None, _) => true,
        };
        (self.present.iter())
            .filter(move |(_, added)| is_owed(added.removed))
            .map(|(element, added)| (*element, added.by))
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
            ("lost", vec![add1(), add2()], &[1], vec!["lost"]),
            (
                "resurrected",
                vec![add1(), gone()],
                &[1],
                vec!["resurrected"],
            ),
            ("never added", vec![], &[7], vec!["never added"]),
            (
                "refused",
                vec![failed(1, 0, 10, add(1))],
                &[1],
                vec!["refused, yet there"],
            ),
            ("twice", vec![add1()], &[1, 1], vec!["duplicate"]),
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
    fn elements_that_are_lost_for_good_are_named_once_and_few_of_them() {
        let lost: u64 = 1000;
        let adds = (0..lost).map(|n| ok(n, 0, 10, add(n), committed(n)));
        let reads = (0..300).map(|n| {
            let from = 100 + 10 * n;
            let (call, seen) = (elements(false, false), Reply::Elements(vec![]));
            ok(lost + n, from, from + 5, call, seen)
        });
        let verdict = check(&history(adds.chain(reads)));
        assert_eq!(verdict.found, 1000);
        assert_eq!(verdict.findings.len(), LISTED);
        let first = &verdict.findings[0];
        assert_eq!(
            (first.kind, &first.operations[..]),
            ("lost", &[0, lost][..])
        );
        assert!(first.text.ends_with("; and in 299 further reads"));
    }

    /// A thousand elements, one after the other added, read and removed.
    #[test]
    fn a_read_is_compared_with_what_is_there_and_not_with_all_that_ever_was() {
        let mut operations = vec![];
        for n in 0..1000 {
            let from = n * 100;
            operations.push(ok(4 * n, from, from + 10, add(n), committed(n)));
            let read = elements(false, false);
            operations.push(ok(
                4 * n + 1,
                from + 20,
                from + 30,
                read,
                Reply::Elements(vec![n]),
            ));
            operations.push(ok(4 * n + 2, from + 40, from + 50, remove(n), committed(n)));
        }
        let mut set = Set::default();
        operations.iter().for_each(|operation| set.add(operation));
        let mut owed = Owed::of(&set);
        let mut compared = 0;
        for read in &set.reads {
            compared += owed.by(read.operation).count();
            assert_eq!(owed.present.len(), 1);
        }
        assert_eq!(compared, 1000);
    }

    #[test]
    fn what_is_being_removed_may_be_there_or_not() {
        let add1 = || ok(1, 0, 10, add(1), committed(1));
        let read = |id, from, to| {
            let call = elements(false, false);
            ok(id, from, to, call, Reply::Elements(vec![]))
        };
        let gone = || unknown(3, 50, 60, remove(1));
        let judged = |reads: &[(u64, u64)]| {
            let reads = reads.iter().zip(10..);
            let reads = reads.map(|((from, to), id)| read(id, *from, *to));
            kinds(with_final(
                [vec![add1(), gone()], reads.collect()].concat(),
                &[],
            ))
        };
        assert!(judged(&[(20, 50), (60, 70), (5, 8)]).is_empty());
        assert_eq!(judged(&[(20, 49), (60, 70)]), ["lost"]);
        // The earlier of two ends later: it may have missed what the other must show.
        assert_eq!(judged(&[(20, 55), (21, 49)]), ["lost"]);
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
