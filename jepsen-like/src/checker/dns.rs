//! DNS answers: of committed states only, never older than one already seen from that node; serials never go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pontoon::model::serial::Serial;

use super::{Bounds, Finding, LEADER_SEEN_WITHIN, Verdict, planned, witnessed::Witnessed};
use crate::{
    history::{Answer, Call, History, LeaderSeen, Moment, Operation, Outcome, Reply},
    workload::Workload,
};

/// Those that ask for values.
const OF_VALUES: &[Workload] = &[Workload::Dns, Workload::Vip, Workload::Acme];
/// Those that ask for serials.
const OF_SERIALS: &[Workload] = &[Workload::Dns, Workload::Vip, Workload::Zones];

/// Judges the values that DNS answers gave, by node and key.
///
/// The versions of a key are what its acknowledged writes left, in the order of their revisions. An answer is placed at the earliest
/// version that it can be; never before one that an earlier answer of that node, or a write acknowledged by that node, had shown.
/// An answer marked stale may be old, but not invented. One through a VIP is of the node that held it for the whole of the query, and beyond;
/// where the witness cannot tell, whether it was invented is all that is judged. A VIP's holder leads, and never serves old state.
pub fn check_answers(history: &History, bounds: &Bounds) -> Verdict {
    let lookups = lookups(history, bounds);
    let values = lookups.iter().filter(|lookup| lookup.serial.is_none());
    let mut by_key: BTreeMap<&str, Vec<&Lookup<'_>>> = BTreeMap::new();
    for lookup in values {
        by_key.entry(lookup.key).or_default().push(lookup);
    }
    let mut findings = vec![];
    let (mut judged, mut placeless) = (0, 0);
    let versions = Versions::by_key(&history.operations);
    let unwritten = Versions::of([]);
    for (key, lookups) in by_key {
        judged += lookups.len();
        placeless += lookups.iter().filter(|one| one.node.is_none()).count();
        let versions = versions.get(key).unwrap_or(&unwritten);
        let mut by_node: BTreeMap<&str, Vec<&Lookup<'_>>> = BTreeMap::new();
        for lookup in lookups {
            if versions.judge_origin(key, lookup, &mut findings)
                && let Some(node) = lookup.node
            {
                by_node.entry(node).or_default().push(lookup);
            }
        }
        for (node, lookups) in by_node {
            versions.judge_order(key, node, &lookups, &mut findings);
        }
    }
    let mut summary = format!("{judged} answers");
    if placeless > 0 {
        summary += &format!(", {placeless} through a VIP whose holder is not known for certain");
    }
    let nothing = planned::unjudged(&history.run, OF_VALUES, judged, "answers");
    Verdict::of("dns answers", summary, findings)
        .unless_undecided(nothing)
        .exercised_by(judged)
}

/// Judges the serials that each observer saw (RFC 1982), and those that acknowledged changes were given.
///
/// An observer is a place that was asked: a node, or a VIP whoever held it. Where the holder is known its answer counts for both.
pub fn check_serials(history: &History, bounds: &Bounds) -> Verdict {
    let mut observed: BTreeMap<(&str, &str), Vec<(&Operation, Serial)>> = BTreeMap::new();
    let mut judged = 0;
    for lookup in lookups(history, bounds) {
        let (Some(serial), false) = (lookup.serial, lookup.is_stale) else {
            continue;
        };
        let asked = lookup.operation.node.as_deref();
        let by = lookup.node.filter(|node| asked != Some(*node));
        judged += usize::from(asked.or(by).is_some());
        for place in asked.into_iter().chain(by) {
            let seen = observed.entry((lookup.key, place)).or_default();
            seen.push((lookup.operation, Serial(serial)));
        }
    }
    let mut findings = vec![];
    for ((zone, asked), seen) in &observed {
        let mut floor = Floor::new(seen.iter().map(|(operation, serial)| (*operation, *serial)));
        for (operation, serial) in seen {
            let before = floor.before(
                operation,
                |old, new| if new.is_newer_than(old) { new } else { old },
            );
            judge_step(
                &format!("{zone} at {asked}"),
                before,
                (operation, *serial),
                &mut findings,
            );
        }
    }
    let commits = judge_commits(history, &mut findings);
    let summary = format!("{judged} serials from {} observers", observed.len());
    let nothing = planned::unjudged(&history.run, OF_SERIALS, judged, "serials");
    Verdict::of("serials", summary, findings)
        .unless_undecided(nothing)
        .exercised_by(judged + commits)
}

fn judge_step<'a>(
    place: &str,
    before: Option<(&'a Operation, Serial)>,
    (operation, serial): (&'a Operation, Serial),
    findings: &mut Vec<Finding>,
) {
    let Some((earlier, seen)) = before else {
        return;
    };
    if seen != serial && !serial.is_newer_than(seen) {
        let text = format!("{place}: {serial} after {seen}: {operation} after {earlier}");
        findings.push(Finding::about(
            "serial went back",
            text,
            [earlier, operation],
        ));
    }
}

/// Later revisions have later serials; those of one key are of one zone. Says how many there are.
fn judge_commits(history: &History, findings: &mut Vec<Finding>) -> usize {
    let mut commits: BTreeMap<&str, BTreeMap<u64, (&Operation, Serial)>> = BTreeMap::new();
    for operation in &history.operations {
        if let (
            Call::Write { key, .. } | Call::CompareAndSet { key, .. },
            Some(Reply::Committed {
                revision,
                serial: Some(serial),
            }),
        ) = (&operation.call, &operation.reply)
        {
            commits
                .entry(key)
                .or_default()
                .insert(*revision, (operation, Serial(*serial)));
        }
    }
    let count = commits.values().map(BTreeMap::len).sum();
    for (key, commits) in commits {
        let mut before = None;
        for commit in commits.into_values() {
            judge_step(&format!("commits of {key}"), before, commit, findings);
            before = Some(commit);
        }
    }
    count
}

/// A DNS query that was answered.
struct Lookup<'a> {
    operation: &'a Operation,
    key: &'a str,
    /// Who answered, where that is known.
    node: Option<&'a str>,
    value: Option<&'a str>,
    serial: Option<u32>,
    is_stale: bool,
}

/// The answers for the VIPs, by how clients name the VIP.
fn witnessed(history: &History) -> BTreeMap<&'static str, Witnessed<'_>> {
    let mut by_place: BTreeMap<&str, Vec<&Answer>> = BTreeMap::new();
    for answer in &history.answers {
        if let Some((place, _)) = planned::asked_as(&answer.vip) {
            by_place.entry(place).or_default().push(answer);
        }
    }
    let by_place = by_place.into_iter();
    by_place
        .map(|(place, answers)| (place, Witnessed::of(answers)))
        .collect()
}

/// Whether somebody was seen to lead who may have been elected within this time or `around` it.
fn is_elected_between(leaders: &[LeaderSeen], from: Moment, to: Moment, around: Duration) -> bool {
    let from = from.0.saturating_sub(Moment::after(around).0);
    let to = Duration::from_nanos(to.0).saturating_add(around + LEADER_SEEN_WITHIN);
    let times = Moment(from)..=Moment::after(to);
    leaders.iter().any(|leader| times.contains(&leader.at))
}

/// In order of invocation.
fn lookups<'a>(history: &'a History, bounds: &Bounds) -> Vec<Lookup<'a>> {
    let nodes = &history.run.nodes;
    let vips = witnessed(history);
    let holder = |operation: &Operation| {
        let vip = vips.get(operation.node.as_deref()?)?;
        let (from, to) = (operation.invoked, operation.completed?);
        let is_calm = !is_elected_between(&history.leaders, from, to, bounds.fastest_return);
        vip.holder(from, to, bounds.fastest_return)
            .filter(|_| is_calm)
    };
    let mut found = vec![];
    for operation in &history.operations {
        if let (
            Call::Lookup { key },
            Some(Reply::Dns {
                node,
                value,
                serial,
                stale,
            }),
            true,
        ) = (&operation.call, &operation.reply, operation.is_ok())
        {
            let asked = operation
                .node
                .as_ref()
                .filter(|asked| nodes.contains(*asked));
            let known = node.as_ref().or(asked).map(String::as_str);
            found.push(Lookup {
                operation,
                key,
                node: known.or_else(|| holder(operation)),
                value: value.as_deref(),
                serial: *serial,
                is_stale: *stale,
            });
        }
    }
    found
}

/// The greatest of what was seen before something began.
struct Floor<'a, T> {
    /// By completion.
    seen: Vec<(Moment, &'a Operation, T)>,
    next: usize,
    floor: Option<(&'a Operation, T)>,
}

impl<'a, T: Copy + PartialEq> Floor<'a, T> {
    fn new(seen: impl Iterator<Item = (&'a Operation, T)>) -> Self {
        let mut seen: Vec<_> = (seen)
            .filter_map(|(operation, value)| Some((operation.completed?, operation, value)))
            .collect();
        seen.sort_by_key(|(completed, operation, _)| (*completed, operation.id));
        Self {
            seen,
            next: 0,
            floor: None,
        }
    }

    /// To be asked in order of invocation.
    fn before(
        &mut self,
        operation: &Operation,
        later: impl Fn(T, T) -> T,
    ) -> Option<(&'a Operation, T)> {
        while let Some((_, earlier, value)) = self
            .seen
            .get(self.next)
            .filter(|(completed, ..)| *completed < operation.invoked)
        {
            self.floor = match self.floor {
                Some((by, old)) if later(old, *value) == old => Some((by, old)),
                _ => Some((earlier, *value)),
            };
            self.next += 1;
        }
        self.floor
    }
}

/// What was to be left, and by which operation.
type Write<'a> = (Option<&'a str>, &'a Operation);

/// What a key was, one after the other.
struct Versions<'a> {
    /// The initial state, then what each acknowledged write left, by revision.
    known: Vec<(Option<&'a str>, Option<&'a Operation>)>,
    /// Writes of unknown outcome: of no known place.
    floating: Vec<(Option<&'a str>, &'a Operation)>,
    failed: BTreeSet<Option<&'a str>>,
}

impl<'a> Versions<'a> {
    /// Of every key that was written. There are ever new ones, so all operations are gone through once and not once for each.
    fn by_key(operations: impl IntoIterator<Item = &'a Operation>) -> BTreeMap<&'a str, Self> {
        let mut writes: BTreeMap<&str, Vec<Write<'a>>> = BTreeMap::new();
        for operation in operations {
            if let Call::Write { key, value } | Call::CompareAndSet { key, value, .. } =
                &operation.call
            {
                let of_key = writes.entry(key).or_default();
                of_key.push((value.as_deref(), operation));
            }
        }
        let writes = writes.into_iter();
        writes
            .map(|(key, writes)| (key, Self::of(writes)))
            .collect()
    }

    /// Of a key that was written so, in order of invocation.
    fn of(writes: impl IntoIterator<Item = Write<'a>>) -> Self {
        let mut known = BTreeMap::new();
        let mut versions = Self {
            known: vec![(None, None)],
            floating: vec![],
            failed: BTreeSet::new(),
        };
        for (value, operation) in writes {
            match (operation.outcome, &operation.reply) {
                // One that changed nothing has the revision of that which had left it so: which of them was the first is not known.
                (Outcome::Ok, Some(Reply::Committed { revision, .. })) => {
                    let first = known.entry(*revision).or_insert((value, operation));
                    if operation.invoked < first.1.invoked {
                        *first = (value, operation);
                    }
                }
                (Outcome::Fail, _) => {
                    versions.failed.insert(value);
                }
                _ => versions.floating.push((value, operation)),
            }
        }
        let known = known.into_values();
        versions
            .known
            .extend(known.map(|(value, by)| (value, Some(by))));
        versions
    }

    /// Whether the answer is of a state that can have been committed when it was given.
    fn judge_origin(&self, key: &str, lookup: &Lookup<'_>, findings: &mut Vec<Finding>) -> bool {
        let can_be = |by: &Operation| !lookup.operation.precedes(by);
        let is_known =
            (self.known.iter()).any(|(value, by)| *value == lookup.value && by.is_none_or(can_be));
        let is_floating =
            (self.floating.iter()).any(|(value, by)| *value == lookup.value && can_be(by));
        if is_known || is_floating {
            return true;
        }
        let why = match self.failed.contains(&lookup.value) {
            true => "its write was refused",
            false => "nobody had written it",
        };
        let text = format!("{key}: {why}: {}", lookup.operation);
        findings.push(Finding::about("never committed", text, [lookup.operation]));
        false
    }

    fn judge_order(
        &self,
        key: &str,
        node: &str,
        lookups: &[&Lookup<'_>],
        findings: &mut Vec<Finding>,
    ) {
        let acknowledged = self
            .known
            .iter()
            .enumerate()
            .filter_map(|(place, (_, by))| {
                by.filter(|by| by.node.as_deref() == Some(node))
                    .map(|by| (by, place))
            });
        // Places are found in order of invocation, and needed in order of completion; both at once by going through all instants.
        let mut seen: Vec<(Moment, &Operation, usize)> = acknowledged
            .filter_map(|(by, place)| Some((by.completed?, by, place)))
            .collect();
        for lookup in lookups {
            let began = lookup.operation.invoked;
            let before = seen
                .iter()
                .filter(|(completed, ..)| *completed < began)
                .max_by_key(|(.., place)| *place);
            let floor = before
                .filter(|_| !lookup.is_stale)
                .map_or(0, |(.., place)| *place);
            // Of a write that began after the answer came it cannot be.
            let can_be = |by: &Operation| !lookup.operation.precedes(by);
            let place = (self.known.iter().enumerate().skip(floor))
                .find(|(_, (value, by))| *value == lookup.value && by.is_none_or(can_be))
                .map(|(place, _)| place);
            let is_floating = self
                .floating
                .iter()
                .any(|(value, by)| *value == lookup.value && can_be(by));
            match (place, before) {
                (None, Some((_, earlier, _))) if !is_floating => {
                    let text = format!(
                        "{key} at {node}: {} is older than {earlier}",
                        lookup.operation
                    );
                    findings.push(Finding::about(
                        "older than seen",
                        text,
                        [*earlier, lookup.operation],
                    ));
                }
                _ => {}
            }
            if let Some(completed) = lookup.operation.completed {
                // What may be of a write of no known place says nothing of the others.
                let place = place.filter(|_| !is_floating).unwrap_or(floor);
                seen.push((completed, lookup.operation, place));
            }
            // What is below the greatest and ended before it says nothing any more.
            if seen.len() > 64
                && let Some(greatest) = before_all(&seen, began)
            {
                seen.retain(|(completed, _, place)| *completed >= began || *place >= greatest);
            }
        }
        self.judge_returns(key, node, lookups, findings);
    }

    /// A value that was written once does not come back after another was seen, wherever its place is.
    fn judge_returns(
        &self,
        key: &str,
        node: &str,
        lookups: &[&Lookup<'_>],
        findings: &mut Vec<Finding>,
    ) {
        let once = self.floating.iter().filter(|(value, _)| {
            let writes = self.known.iter().map(|(value, _)| value);
            let all = writes.chain(self.floating.iter().map(|(value, _)| value));
            all.filter(|other| *other == value).count() == 1
        });
        for (value, _) in once {
            let mut first = None;
            let mut other = None;
            for lookup in lookups.iter().filter(|lookup| !lookup.is_stale) {
                let operation = lookup.operation;
                match (first, other) {
                    _ if lookup.value != *value => {
                        let follows =
                            first.is_some_and(|first: &Operation| first.precedes(operation));
                        other = other.or(follows.then_some(operation));
                    }
                    (Some(_), Some(other)) if Operation::precedes(other, operation) => {
                        let text = format!("{key} at {node}: {operation} is older than {other}");
                        findings.push(Finding::about("older than seen", text, [other, operation]));
                    }
                    _ => first = first.or(Some(operation)),
                }
            }
        }
    }
}

/// The greatest place of what ended before.
fn before_all(seen: &[(Moment, &Operation, usize)], began: Moment) -> Option<usize> {
    let before = seen.iter().filter(|(completed, ..)| *completed < began);
    before.map(|(.., place)| *place).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::fixture::*;

    fn lookup(id: u64, from: u64, node: &str, value: Option<&str>, is_stale: bool) -> Operation {
        let reply = Reply::Dns {
            node: Some(node.into()),
            value: value.map(str::to_owned),
            serial: None,
            stale: is_stale,
        };
        at(
            node,
            ok(id, from, from + 5, Call::Lookup { key: "a".into() }, reply),
        )
    }

    fn serial(id: u64, from: u64, node: &str, serial: u32) -> Operation {
        let reply = Reply::Dns {
            node: None,
            value: None,
            serial: Some(serial),
            stale: false,
        };
        at(
            node,
            ok(
                id,
                from,
                from + 5,
                Call::Lookup { key: "zone".into() },
                reply,
            ),
        )
    }

    fn kinds(verdict: &Verdict) -> Vec<&'static str> {
        verdict
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    fn judged(answers: &[(u64, &str, Option<&str>, bool)]) -> Vec<&'static str> {
        let mut operations = vec![
            ok(100, 0, 10, write("a", "1"), committed(5)),
            ok(101, 20, 30, write("a", "2"), committed(6)),
            unknown(102, 40, 50, write("a", "3")),
            failed(103, 60, 70, write("a", "4")),
            at("n3", ok(104, 80, 90, write("a", "5"), committed(8))),
        ];
        let answers = answers.iter().zip(0..);
        operations.extend(
            answers.map(|((from, node, value, is_stale), id)| {
                lookup(id, *from, node, *value, *is_stale)
            }),
        );
        kinds(&check_answers(&history(operations), &Bounds::default()))
    }

    #[test]
    fn an_election_around_an_answer_leaves_open_whose_it_is() {
        const MS: u64 = 1_000_000;
        let seen = |at: u64| {
            let leaders = [LeaderSeen {
                at: Moment(at * MS),
                node: "n1".into(),
                term: 2,
            }];
            let (from, to) = (Moment(5000 * MS), Moment(5010 * MS));
            is_elected_between(&leaders, from, to, Duration::from_millis(100))
        };
        assert_eq!(
            [4899, 4900, 5005, 6110, 6111].map(seen),
            [false, true, true, true, false]
        );
    }

    #[test]
    fn answers_may_lag_and_not_go_back() {
        let (old, new, late) = (Some("1"), Some("2"), Some("3"));
        assert!(
            judged(&[
                (5, "n1", None, false),
                (31, "n1", old, false),
                (41, "n1", new, false)
            ])
            .is_empty()
        );
        assert!(
            judged(&[(31, "n1", new, false), (41, "n2", old, false)]).is_empty(),
            "another node"
        );
        assert!(
            judged(&[(31, "n1", new, false), (32, "n1", old, false)]).is_empty(),
            "at once"
        );
        assert!(
            judged(&[(31, "n1", new, false), (41, "n1", old, true)]).is_empty(),
            "said to be stale"
        );
        assert_eq!(
            judged(&[(31, "n1", new, false), (41, "n1", old, false)]),
            ["older than seen"]
        );
        assert_eq!(
            judged(&[(31, "n1", new, false), (41, "n1", None, false)]),
            ["older than seen"]
        );
        assert!(
            judged(&[(45, "n1", late, false), (60, "n1", new, false)]).is_empty(),
            "its place is not known"
        );
        assert_eq!(
            judged(&[
                (45, "n1", late, false),
                (60, "n1", new, false),
                (70, "n1", late, false)
            ]),
            ["older than seen"]
        );
    }

    #[test]
    fn all_operations_are_gone_through_once_for_all_keys() {
        let key = |n: u64| format!("h{n}");
        let write = |n| ok(n, n, n + 1, write(&key(n), "1"), committed(n));
        let operations: Vec<_> = (0..1000).map(write).collect();
        let mut visited = 0;
        let versions = Versions::by_key(operations.iter().inspect(|_| visited += 1));
        assert_eq!((visited, versions.len()), (1000, 1000));
        assert!(versions.values().all(|of_key| of_key.known.len() == 2));
    }

    /// The second one changed nothing, and has the revision of the first.
    #[test]
    fn what_is_deleted_twice_is_gone_since_the_first() {
        let delete = || Call::Write {
            key: "a".into(),
            value: None,
        };
        let operations = vec![
            ok(100, 0, 10, write("a", "1"), committed(5)),
            lookup(0, 15, "n1", Some("1"), false),
            ok(101, 20, 30, delete(), committed(6)),
            lookup(1, 40, "n1", None, false),
            ok(102, 50, 60, delete(), committed(6)),
        ];
        assert_eq!(
            kinds(&check_answers(&history(operations), &Bounds::default())),
            [""; 0]
        );
    }

    #[test]
    fn a_deletion_of_unknown_outcome_is_not_taken_for_a_later_one() {
        let delete = || Call::Write {
            key: "a".into(),
            value: None,
        };
        let operations = |last: Option<&str>| {
            vec![
                ok(100, 0, 10, write("a", "1"), committed(5)),
                unknown(101, 20, 30, delete()),
                lookup(0, 31, "n1", None, false),
                ok(102, 40, 50, write("a", "2"), committed(7)),
                lookup(1, 51, "n1", Some("2"), false),
                ok(103, 60, 70, delete(), committed(9)),
                lookup(2, 71, "n1", last, false),
            ]
        };
        let judged = |last| {
            kinds(&check_answers(
                &history(operations(last)),
                &Bounds::default(),
            ))
        };
        assert!(judged(None).is_empty());
        assert_eq!(judged(Some("1")), ["older than seen"]);
    }

    /// Times in milliseconds: `n1` answers 2 itself, then somebody `value` through the VIP, while the witness sees these.
    fn through_the_vip(value: &str, witnessed: &[(u64, &str)]) -> Vec<&'static str> {
        const MS: u64 = 1_000_000;
        let look_up = |id, place: &str, from: u64, value: &str| {
            let reply = Reply::Dns {
                node: None,
                value: Some(value.to_owned()),
                serial: None,
                stale: false,
            };
            let call = Call::Lookup { key: "a".into() };
            at(place, ok(id, from * MS, (from + 5) * MS, call, reply))
        };
        let mut history = history([
            ok(100, 0, MS, write("a", "1"), committed(5)),
            ok(101, 2 * MS, 3 * MS, write("a", "2"), committed(6)),
            look_up(0, "n1", 10, "2"),
            look_up(1, "vip4", 100, value),
        ]);
        history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
        history.answers = (witnessed.iter())
            .map(|(at, by)| Answer {
                vip: "10.77.0.100".into(),
                by: crate::history::Responder::Node((*by).into()),
                earliest: Moment(at * MS),
                latest: Moment(at * MS),
                kind: "arp".into(),
            })
            .collect();
        kinds(&check_answers(&history, &Bounds::default()))
    }

    #[test]
    fn an_answer_through_the_vip_is_its_holders() {
        let by_n1 = [(95, "n1"), (102, "n1"), (110, "n1")];
        assert_eq!(through_the_vip("1", &by_n1), ["older than seen"]);
        assert_eq!(through_the_vip("2", &by_n1), [""; 0]);
        let by_n2 = [(95, "n2"), (102, "n2"), (110, "n2")];
        assert_eq!(through_the_vip("1", &by_n2), [""; 0], "another node");
        let moved = [(95, "n1"), (102, "n1"), (110, "n2")];
        assert_eq!(through_the_vip("1", &moved), [""; 0], "by either");
        assert_eq!(through_the_vip("1", &by_n1[..2]), [""; 0], "not known");
        assert_eq!(through_the_vip("7", &[]), ["never committed"]);
    }

    #[test]
    fn a_serial_through_the_vip_counts_for_its_holder_too() {
        let judged = |holder: &str| {
            let mut history = history([serial(0, 10, "n1", 7), serial(1, 30, "vip6", 5)]);
            history.run.nodes = ["n1", "n2"].map(str::to_owned).into();
            let answer = |at| Answer {
                vip: "fd77::64".into(),
                by: crate::history::Responder::Node(holder.into()),
                earliest: Moment(at),
                latest: Moment(at),
                kind: "nd".into(),
            };
            history.answers = [29, 40].map(answer).into();
            kinds(&check_serials(&history, &Bounds::default()))
        };
        assert_eq!(judged("n1"), ["serial went back"]);
        assert_eq!(judged("n2"), [""; 0]);
    }

    #[test]
    fn an_acknowledged_write_is_served_by_the_node_that_acknowledged_it() {
        assert!(judged(&[(91, "n1", Some("2"), false)]).is_empty());
        assert_eq!(judged(&[(91, "n3", Some("2"), false)]), ["older than seen"]);
    }

    #[test]
    fn what_was_not_committed_is_not_answered() {
        assert_eq!(judged(&[(91, "n1", Some("4"), false)]), ["never committed"]);
        assert_eq!(judged(&[(91, "n1", Some("9"), true)]), ["never committed"]);
        assert_eq!(
            judged(&[(5, "n1", Some("2"), false)]),
            ["never committed"],
            "not yet"
        );
    }

    #[test]
    fn serials_move_forward_on_the_circle() {
        let judged = |serials: &[(u64, &str, u32)]| {
            let all = serials
                .iter()
                .zip(0..)
                .map(|((from, node, number), id)| serial(id, *from, node, *number));
            kinds(&check_serials(&history(all), &Bounds::default()))
        };
        assert!(judged(&[(0, "n1", u32::MAX), (10, "n1", u32::MAX), (20, "n1", 3)]).is_empty());
        assert!(
            judged(&[(0, "n1", 7), (10, "n2", 5)]).is_empty(),
            "another observer"
        );
        assert!(judged(&[(0, "n1", 7), (4, "n1", 5)]).is_empty(), "at once");
        assert_eq!(judged(&[(0, "n1", 7), (10, "n1", 5)]), ["serial went back"]);
        assert_eq!(
            judged(&[(0, "n1", 3), (10, "n1", u32::MAX)]),
            ["serial went back"]
        );
        assert_eq!(
            judged(&[(0, "n1", 0), (10, "n1", 1 << 31)]),
            ["serial went back"],
            "no order"
        );
    }

    #[test]
    fn a_serial_that_restarts_is_seen_in_the_commits() {
        let commit = |id, revision, serial| {
            let reply = Reply::Committed {
                revision,
                serial: Some(serial),
            };
            ok(id, id, id + 1, write("a", "1"), reply)
        };
        assert!(
            kinds(&check_serials(
                &history([commit(1, 1, 8), commit(2, 2, 9)]),
                &Bounds::default()
            ))
            .is_empty()
        );
        assert_eq!(
            kinds(&check_serials(
                &history([commit(1, 1, 8), commit(2, 2, 1)]),
                &Bounds::default()
            )),
            ["serial went back"]
        );
    }
}
