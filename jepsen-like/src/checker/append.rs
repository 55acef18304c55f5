//! List-append transactions over several keys, judged as Elle does (Kingsbury & Alvaro, 2020).
//!
//! Every element is appended once, so a list that was read tells in which order its elements came. From that follow, between transactions:
//! *ww* (appended just before), *wr* (was read by), *rw* (read the list just before the other appended), and, because strict
//! serialisability is promised, *rt* (ended before the other began). A cycle of these is a contradiction; its class is named by Adya.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::{Finding, Verdict, planned};
use crate::{
    history::{Call, History, Micro, Operation, Outcome, Reply},
    workload::Workload,
};

const NAME: &str = "append";

/// Judges all list-append transactions of a run.
pub fn check(history: &History) -> Verdict {
    let operations: Vec<_> = (history.operations.iter())
        .filter(|operation| matches!(operation.call, Call::Transaction { .. }))
        .collect();
    let summary = format!("{} transactions", operations.len());
    let nothing = planned::unjudged(
        &history.run,
        &[Workload::Append],
        operations.len(),
        "transactions",
    );
    let count = operations.len();
    let mut judgement = Judgement::new(operations);
    judgement.judge_reads();
    let orders = judgement.orders();
    judgement.judge_orders(&orders);
    let graph = judgement.graph(&orders);
    judgement.judge_cycles(&graph);
    Verdict::of(NAME, summary, judgement.findings)
        .unless_undecided(nothing)
        .exercised_by(count)
}

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Edge {
    Ww,
    Wr,
    Rw,
    Rt,
}

/// Cycles from the worst: the first edge that one must have, and what the others may be. Each also with real time.
const CLASSES: [(&str, Edge, &[Edge]); 8] = [
    ("G0", Edge::Ww, &[Edge::Ww]),
    ("G1c", Edge::Wr, &[Edge::Ww, Edge::Wr]),
    ("G-single", Edge::Rw, &[Edge::Ww, Edge::Wr]),
    ("G2", Edge::Rw, &[Edge::Ww, Edge::Wr, Edge::Rw]),
    ("G0-realtime", Edge::Ww, &[Edge::Ww, Edge::Rt]),
    ("G1c-realtime", Edge::Wr, &[Edge::Ww, Edge::Wr, Edge::Rt]),
    (
        "G-single-realtime",
        Edge::Rw,
        &[Edge::Ww, Edge::Wr, Edge::Rt],
    ),
    (
        "G2-realtime",
        Edge::Rw,
        &[Edge::Ww, Edge::Wr, Edge::Rw, Edge::Rt],
    ),
];

/// Nodes below the number of transactions are transactions; the others are instants, which carry the order of real time with one edge for each
/// transaction instead of one for each pair.
struct Graph {
    edges: Vec<Vec<(usize, Edge)>>,
    transactions: usize,
}

/// A list that was read: by which transaction, and what.
struct ListRead<'a> {
    by: usize,
    list: &'a [u64],
}

struct Judgement<'a> {
    operations: Vec<&'a Operation>,
    /// The transaction that appends an element, by key: there are ever new keys, and each is judged by its own elements.
    appended: HashMap<&'a str, HashMap<u64, usize>>,
    reads: BTreeMap<&'a str, Vec<ListRead<'a>>>,
    /// An element of it was seen, or it is known to have taken effect.
    has_effect: Vec<bool>,
    findings: Vec<Finding>,
}

impl<'a> Judgement<'a> {
    fn new(operations: Vec<&'a Operation>) -> Self {
        let mut judgement = Self {
            has_effect: operations
                .iter()
                .map(|operation| operation.is_ok())
                .collect(),
            operations,
            appended: HashMap::new(),
            reads: BTreeMap::new(),
            findings: vec![],
        };
        for at in 0..judgement.operations.len() {
            judgement.add(at);
        }
        judgement
    }

    fn add(&mut self, at: usize) {
        let operation = self.operations[at];
        for member in members(operation) {
            if let Micro::Append { key, element } = member {
                let of_key = self.appended.entry(key).or_default();
                of_key.insert(*element, at);
            }
        }
        // A read after an append of the same transaction sees a list that no other sees.
        let mut own: BTreeSet<&str> = BTreeSet::new();
        for (member, list) in members(operation).iter().zip(lists(operation)) {
            match (member, list) {
                (Micro::Append { key, .. }, _) => {
                    own.insert(key);
                }
                (Micro::Read { key }, Some(list)) => {
                    let is_internal = own.contains(key.as_str());
                    let list = if is_internal {
                        self.judge_internal(at, key, list)
                    } else {
                        list
                    };
                    self.reads
                        .entry(key)
                        .or_default()
                        .push(ListRead { by: at, list });
                }
                (Micro::Read { .. }, None) => {}
            }
        }
    }

    /// A read after own appends must end in them; what comes before is what others appended.
    fn judge_internal(&mut self, at: usize, key: &str, list: &'a [u64]) -> &'a [u64] {
        let operation = self.operations[at];
        let others = (list.iter())
            .position(|element| is_append_of(operation, key, *element))
            .unwrap_or(list.len());
        let (before, own) = list.split_at(others);
        if own.is_empty()
            || !own
                .iter()
                .all(|element| is_append_of(operation, key, *element))
        {
            self.find(
                "internal",
                format!("{key}: does not see its own appends last"),
                &[at],
            );
        }
        before
    }

    /// The transaction that appends an element.
    fn appender(&self, key: &str, element: u64) -> Option<usize> {
        self.appended.get(key)?.get(&element).copied()
    }

    fn find(&mut self, kind: &'static str, what: String, transactions: &[usize]) {
        let operations = transactions.iter().map(|at| self.operations[*at]);
        let mut text = what;
        for operation in operations.clone() {
            text += &format!("\n  {operation}");
        }
        self.findings.push(Finding::about(kind, text, operations));
    }

    /// What is wrong with one list alone.
    fn judge_reads(&mut self) {
        let reads = std::mem::take(&mut self.reads);
        for (key, reads) in &reads {
            for read in reads {
                self.judge_list(key, read);
            }
        }
        self.reads = reads;
    }

    fn judge_list(&mut self, key: &str, read: &ListRead<'_>) {
        let mut seen = BTreeSet::new();
        for element in read.list {
            if !seen.insert(element) {
                self.find(
                    "duplicate",
                    format!("{key}: {element} is there twice"),
                    &[read.by],
                );
            }
            match self.appender(key, *element) {
                None => {
                    let text = format!("{key}: {element} was appended by nobody");
                    self.find("never appended", text, &[read.by]);
                }
                Some(by) if self.operations[by].outcome == Outcome::Fail => {
                    let text = format!("{key}: {element} is of a transaction that failed");
                    self.find("G1a", text, &[by, read.by]);
                }
                Some(by) => self.has_effect[by] = true,
            }
        }
        let Some(last) = read.list.last() else { return };
        let by = self.appender(key, *last).filter(|by| *by != read.by);
        if let Some(by) = by
            && last_append(self.operations[by], key) != Some(*last)
        {
            let text = format!("{key}: saw {last}, in the middle of a transaction");
            self.find("G1b", text, &[by, read.by]);
        }
    }

    /// The order of each key's elements: its longest list.
    fn orders(&self) -> BTreeMap<&'a str, &'a [u64]> {
        let longest = |reads: &Vec<ListRead<'a>>| {
            reads
                .iter()
                .map(|read| read.list)
                .max_by_key(|list| list.len())
        };
        self.reads
            .iter()
            .filter_map(|(key, reads)| Some((*key, longest(reads)?)))
            .collect()
    }

    fn judge_orders(&mut self, orders: &BTreeMap<&'a str, &'a [u64]>) {
        let mut wrong = vec![];
        for (key, reads) in &self.reads {
            let order = orders.get(key).copied().unwrap_or_default();
            let longest = reads.iter().find(|read| read.list.len() == order.len());
            for read in reads.iter().filter(|read| !order.starts_with(read.list)) {
                let text = format!("{key}: one list is not the beginning of the other");
                wrong.push((text, [read.by, longest.map_or(read.by, |read| read.by)]));
            }
        }
        for (text, transactions) in wrong {
            self.find("incompatible order", text, &transactions);
        }
    }

    fn graph(&self, orders: &BTreeMap<&'a str, &'a [u64]>) -> Graph {
        let transactions = self.operations.len();
        let mut graph = Graph {
            edges: vec![vec![]; transactions],
            transactions,
        };
        for (key, reads) in &self.reads {
            let order = orders.get(key).copied().unwrap_or_default();
            let writer = |element: &u64| self.appender(key, *element);
            for pair in order.windows(2) {
                if let (Some(one), Some(other)) = (writer(&pair[0]), writer(&pair[1])) {
                    graph.add(one, other, Edge::Ww);
                }
            }
            let unseen = self.unseen(key, order);
            let last = order.last().and_then(writer);
            for other in &unseen {
                last.into_iter()
                    .for_each(|last| graph.add(last, *other, Edge::Ww));
            }
            for read in reads.iter().filter(|read| order.starts_with(read.list)) {
                if let Some(writer) = read.list.last().and_then(writer) {
                    graph.add(writer, read.by, Edge::Wr);
                }
                match order.get(read.list.len()) {
                    Some(next) => {
                        if let Some(writer) = writer(next) {
                            graph.add(read.by, writer, Edge::Rw);
                        }
                    }
                    None => unseen
                        .iter()
                        .for_each(|next| graph.add(read.by, *next, Edge::Rw)),
                }
            }
        }
        graph.add_real_time(&self.operations, &self.has_effect);
        graph
    }

    /// Transactions that did append to the key, and no list shows it: they come after all that the lists show.
    fn unseen(&self, key: &str, order: &[u64]) -> BTreeSet<usize> {
        let seen: BTreeSet<_> = order.iter().collect();
        let appends = self.appended.get(key).into_iter().flatten();
        appends
            .filter(|(element, by)| !seen.contains(element) && self.has_effect[**by])
            .map(|(_, by)| *by)
            .collect()
    }

    /// One cycle for each knot of transactions, of its worst class.
    fn judge_cycles(&mut self, graph: &Graph) {
        let mut judged = vec![false; graph.edges.len()];
        for (class, first, rest) in CLASSES {
            let allowed = |edge: Edge| edge == first || rest.contains(&edge);
            let component = graph.components(allowed);
            for from in 0..graph.transactions {
                for (to, edge) in &graph.edges[from] {
                    let is_knot = component[from] == component[*to] && *edge == first;
                    if !is_knot || judged[from] || judged[*to] {
                        continue;
                    }
                    let Some(path) = graph.path(*to, from, rest) else {
                        continue;
                    };
                    for (node, is_judged) in judged.iter_mut().enumerate() {
                        *is_judged |= component[node] == component[from];
                    }
                    self.find_cycle(class, graph, from, first, &path);
                }
            }
        }
    }

    fn find_cycle(
        &mut self,
        class: &'static str,
        graph: &Graph,
        from: usize,
        first: Edge,
        path: &[(usize, Edge)],
    ) {
        let id = |at: usize| self.operations[at].id;
        let mut text = format!("{} -{first:?}->", id(from)).to_lowercase();
        let mut transactions = vec![from];
        for (node, by) in path {
            if *node >= graph.transactions {
                continue;
            }
            text += &format!(" {}", id(*node));
            if *node != from {
                transactions.push(*node);
            }
            text += &if *by == Edge::Rt {
                " ..".to_owned()
            } else {
                String::new()
            };
        }
        self.find(class, text, &transactions);
    }
}

impl Graph {
    fn add(&mut self, from: usize, to: usize, edge: Edge) {
        if from != to && !self.edges[from].contains(&(to, edge)) {
            self.edges[from].push((to, edge));
        }
    }

    /// Each end leads to the instant of that end, each instant to the next, and the last instant before a beginning to what begins.
    fn add_real_time(&mut self, operations: &[&Operation], has_effect: &[bool]) {
        let mut ends: Vec<_> = (0..operations.len())
            .filter(|at| operations[*at].is_ok())
            .filter_map(|at| Some((operations[at].completed?, at)))
            .collect();
        ends.sort_unstable();
        for (n, (_, at)) in ends.iter().enumerate() {
            let instant = self.transactions + n;
            self.edges.push(vec![]);
            self.edges[*at].push((instant, Edge::Rt));
            if n > 0 {
                self.edges[instant - 1].push((instant, Edge::Rt));
            }
        }
        for (at, operation) in operations
            .iter()
            .enumerate()
            .filter(|(at, _)| has_effect[*at])
        {
            let before = ends.partition_point(|(end, _)| *end < operation.invoked);
            if before > 0 {
                self.edges[self.transactions + before - 1].push((at, Edge::Rt));
            }
        }
    }

    /// The shortest way with these edges, as the nodes it comes to and the edge by which.
    fn path(&self, from: usize, to: usize, allowed: &[Edge]) -> Option<Vec<(usize, Edge)>> {
        let mut came: HashMap<usize, (usize, Edge)> = HashMap::new();
        let mut open = VecDeque::from([from]);
        while let Some(node) = open.pop_front() {
            if node == to {
                let mut path = vec![];
                let mut at = to;
                while at != from {
                    let (before, edge) = *came.get(&at)?;
                    path.push((at, edge));
                    at = before;
                }
                path.push((from, Edge::Ww)); // the edge to it is the first of the cycle
                path.reverse();
                return Some(path);
            }
            for (next, edge) in &self.edges[node] {
                if allowed.contains(edge) && *next != from && !came.contains_key(next) {
                    came.insert(*next, (node, *edge));
                    open.push_back(*next);
                }
            }
        }
        None
    }

    /// The strongly connected component of each node (Kosaraju, without recursion).
    fn components(&self, allowed: impl Fn(Edge) -> bool) -> Vec<usize> {
        let count = self.edges.len();
        let mut backwards = vec![vec![]; count];
        for (from, edges) in self.edges.iter().enumerate() {
            for (to, edge) in edges.iter().filter(|(_, edge)| allowed(*edge)) {
                let _ = edge;
                backwards[*to].push(from);
            }
        }
        let mut finished = vec![];
        let mut seen = vec![false; count];
        for root in 0..count {
            let mut stack = vec![(root, 0)];
            while let Some((node, next)) = stack.pop() {
                if next == 0 && std::mem::replace(&mut seen[node], true) {
                    continue;
                }
                match self.edges[node].get(next) {
                    None => finished.push(node),
                    Some((to, edge)) => {
                        stack.push((node, next + 1));
                        if allowed(*edge) && !seen[*to] {
                            stack.push((*to, 0));
                        }
                    }
                }
            }
        }
        let mut component = vec![usize::MAX; count];
        for root in finished.into_iter().rev() {
            let mut stack = vec![root];
            while let Some(node) = stack.pop() {
                if component[node] == usize::MAX {
                    component[node] = root;
                    stack.extend(&backwards[node]);
                }
            }
        }
        component
    }
}

fn members(operation: &Operation) -> &[Micro] {
    match &operation.call {
        Call::Transaction { members } => members,
        _ => &[],
    }
}

/// What each member read, in the order of the members.
fn lists(operation: &Operation) -> impl Iterator<Item = Option<&[u64]>> {
    let lists = match &operation.reply {
        Some(Reply::Lists(lists)) if operation.is_ok() => lists.as_slice(),
        _ => &[],
    };
    lists
        .iter()
        .map(|list| list.as_deref())
        .chain(std::iter::repeat(None))
}

fn is_append_of(operation: &Operation, of: &str, what: u64) -> bool {
    members(operation).iter().any(
        |member| matches!(member, Micro::Append { key, element } if key == of && *element == what),
    )
}

fn last_append(operation: &Operation, of: &str) -> Option<u64> {
    members(operation)
        .iter()
        .rev()
        .find_map(|member| match member {
            Micro::Append { key, element } if key == of => Some(*element),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::fixture::*;

    /// `x1` appends 1 to x; `x=1,2` reads it.
    fn transaction(id: u64, from: u64, to: u64, text: &str) -> Operation {
        let mut called = vec![];
        let mut replied = vec![];
        for word in text.split_whitespace() {
            let (key, rest) = word.split_at(1);
            let key = key.to_owned();
            match rest.strip_prefix('=') {
                Some(list) => {
                    let list = list.split(',').filter(|word| !word.is_empty());
                    replied.push(Some(list.map(|word| word.parse().unwrap()).collect()));
                    called.push(Micro::Read { key });
                }
                None => {
                    let element = rest.parse().unwrap();
                    replied.push(None);
                    called.push(Micro::Append { key, element });
                }
            }
        }
        let call = Call::Transaction { members: called };
        ok(id, from, to, call, Reply::Lists(replied))
    }

    fn kinds(operations: impl IntoIterator<Item = Operation>) -> Vec<&'static str> {
        let verdict = check(&history(operations));
        verdict
            .findings
            .iter()
            .map(|finding| finding.kind)
            .collect()
    }

    /// Transactions that all overlap, so that real time orders none.
    fn at_once<const N: usize>(texts: [&str; N]) -> Vec<&'static str> {
        let all = texts.iter().enumerate();
        kinds(all.map(|(id, text)| transaction(id as u64, id as u64, 100, text)))
    }

    fn in_turn<const N: usize>(texts: [&str; N]) -> Vec<&'static str> {
        let all = texts.iter().enumerate();
        kinds(all.map(|(id, text)| {
            let from = 10 * id as u64;
            transaction(id as u64, from, from + 5, text)
        }))
    }

    #[test]
    fn what_is_serial_holds() {
        assert!(in_turn(["x1 y1", "x=1 y=1 x2", "x=1,2 y3 y=1,3", "x=1,2 y=1,3 z="]).is_empty());
        assert!(at_once(["x=1,2 y=1", "x2", "x1 y1", "x= y="]).is_empty());
    }

    #[test]
    fn each_anomaly_has_its_name() {
        // Each appends to both keys, in opposite orders.
        assert_eq!(at_once(["x1 y1", "x2 y2", "x=1,2 y=2,1"]), ["G0"]);
        // Each sees what the other appended.
        assert_eq!(at_once(["x1 y=1", "y1 x=1"]), ["G1c"]);
        // Sees one half of a transaction.
        assert_eq!(at_once(["x1 y1", "x=1 y=", "y=1"]), ["G-single"]);
        // Neither sees the other.
        assert_eq!(at_once(["x1 y=", "y1 x=", "x=1 y=1"]), ["G2"]);
        assert_eq!(
            at_once(["x1", "x2", "x=1,2", "x=2,1"]),
            ["incompatible order"]
        );
        assert_eq!(at_once(["x1", "x=1,1"]), ["duplicate"]);
        assert_eq!(at_once(["x=1"]), ["never appended"]);
        assert!(at_once(["x1 x2", "x=1"]).contains(&"G1b"));
        assert_eq!(at_once(["x1", "x2 x=2,1", "x=2"]), ["internal"]);
    }

    #[test]
    fn real_time_counts() {
        assert_eq!(in_turn(["x1", "x="]), ["G-single-realtime"]);
        assert_eq!(in_turn(["x1", "x2", "x=2,1"]), ["G0-realtime"]);
        assert!(at_once(["x1", "x="]).is_empty());
    }

    #[test]
    fn unknown_may_be_seen_and_failed_may_not() {
        let append = || transaction(0, 0, 10, "x1");
        let call = append().call;
        let seen = || transaction(1, 20, 30, "x=1");
        let absent = || transaction(1, 20, 30, "x=");
        assert!(kinds([unknown(0, 0, 10, call.clone()), seen()]).is_empty());
        assert!(kinds([unknown(0, 0, 10, call.clone()), absent()]).is_empty());
        assert!(kinds([failed(0, 0, 10, call.clone()), absent()]).is_empty());
        assert_eq!(kinds([failed(0, 0, 10, call), seen()]), ["G1a"]);
        assert_eq!(kinds([append(), absent()]), ["G-single-realtime"]);
    }

    #[test]
    fn a_key_is_judged_by_its_own_elements_however_many_others_there_are() {
        let keys = || (0..1000).map(|key| format!("k{key}"));
        let append = |(key, id): (String, u64)| {
            let members = vec![Micro::Append { key, element: id }];
            let call = Call::Transaction { members };
            ok(id, id, id + 1, call, Reply::Lists(vec![None]))
        };
        let operations: Vec<_> = keys().zip(0..).map(append).collect();
        let judgement = Judgement::new(operations.iter().collect());
        let looked_at = keys().map(|key| judgement.appended[key.as_str()].len());
        assert_eq!(looked_at.sum::<usize>(), 1000);
        assert_eq!(judgement.unseen("k7", &[]), BTreeSet::from([7]));
    }

    #[test]
    fn a_cycle_names_its_transactions() {
        let texts = ["x1 y1", "x=1 y=", "y=1"];
        let all = texts
            .iter()
            .zip(0..)
            .map(|(text, id)| transaction(id, id, 100, text));
        let verdict = check(&history(all));
        assert_eq!(verdict.findings[0].operations, [1, 0]);
        assert!(
            verdict.findings[0].text.starts_with("1 -rw-> 0 1"),
            "{verdict:?}"
        );
    }
}
