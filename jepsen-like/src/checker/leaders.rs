//! Leaders: Raft elects at most one node in a term.

use std::collections::BTreeMap;

use super::{Finding, Verdict};
use crate::history::{History, LeaderSeen};

/// No two nodes said of themselves that they lead in one term. What one of them said before the other proves it as well as what both say at
/// once: a vote is given to one node in a term, and kept. Nodes are asked from the beginning of a run on: where none ever led, lines are missing.
pub fn check(history: &History) -> Verdict {
    let mut terms: BTreeMap<u64, BTreeMap<&str, &LeaderSeen>> = BTreeMap::new();
    for seen in &history.leaders {
        let term = terms.entry(seen.term).or_default();
        let first = term.entry(&seen.node).or_insert(seen);
        if seen.at < first.at {
            *first = seen;
        }
    }
    let several = terms.iter().filter(|(_, leaders)| leaders.len() > 1);
    let findings = several.map(|(term, leaders)| {
        let mut leaders: Vec<_> = leaders.values().collect();
        leaders.sort_by_key(|seen| seen.at);
        let shown = leaders
            .iter()
            .map(|seen| format!("{} at {}", seen.node, seen.at));
        let text = format!("term {term}: {}", shown.collect::<Vec<_>>().join(", "));
        let finding = Finding::new("two leaders in one term", text);
        match leaders.get(1) {
            Some(second) => finding.at(second.at),
            None => finding,
        }
    });
    let summary = format!("{} terms with a leader", terms.len());
    Verdict::of("leaders", summary, findings.collect()).unless_undecided(unseen(history))
}

/// Why nothing follows for whoever led. None: somebody was seen to.
pub fn unseen(history: &History) -> Option<String> {
    let none = history.leaders.is_empty();
    none.then(|| {
        "the history has no line \"entry\": \"leader\", which says who led: give all of it"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{Conclusion, fixture::kinds},
        history::Moment,
    };

    fn judged(seen: &[(u64, &str, u64)]) -> Verdict {
        let leader = |(at, node, term): &(u64, &str, u64)| LeaderSeen {
            at: Moment(*at),
            node: (*node).into(),
            term: *term,
        };
        check(&History {
            leaders: seen.iter().map(leader).collect(),
            is_cut_off: true,
            ..History::default()
        })
    }

    #[test]
    fn two_leaders_of_one_term_are_found_and_any_of_different_terms_are_not() {
        // One leads again, in its term and in a later one; two lead at once, in different terms.
        let sound = [
            (1, "n1", 3),
            (5, "n1", 3),
            (6, "n2", 4),
            (7, "n1", 3),
            (9, "n1", 5),
        ];
        let verdict = judged(&sound);
        assert_eq!(verdict.conclusion, Conclusion::Holds, "{verdict:?}");
        assert_eq!(verdict.summary, "3 terms with a leader");
        // However late the other is seen, and in a part of a history too.
        let two = judged(&[(9, "n2", 4), (1, "n1", 3), (20, "n1", 4), (30, "n2", 4)]);
        assert_eq!(kinds(&two), ["two leaders in one term"]);
        let told = &two.findings[0];
        assert_eq!(told.text, "term 4: n2 at 0.000000 s, n1 at 0.000000 s");
        assert_eq!(told.at, Some(Moment(20)));
        let unseen = judged(&[]);
        assert_eq!(unseen.conclusion, Conclusion::Undecided);
        let missing = "no line \"entry\": \"leader\"";
        assert!(unseen.summary.contains(missing), "{unseen:?}");
    }
}
