//! Decides whether this node is fit to hold VIPs: what its checks found comes in, a verdict with its reasons goes out.
//!
//! A check counts as passed until it has failed `fall` times in a row, and then as failed until it has passed `rise` times in a
//! row. `rise` is well above `fall` where a fault comes and goes: a VIP that follows each turn of it would move all the time.
//! What becomes of an unfit node is decided elsewhere (`consensus::succession`).

use std::{collections::BTreeMap, fmt, net::IpAddr};

use crate::model::{
    few::{and_more, first_few},
    label::Label,
};

/// Something that a node needs to hold VIPs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// DNS answers on the node's own addresses, over UDP and TCP.
    Dns,
    /// The threads of the listeners live, and their sockets are bound.
    Listeners,
    /// The thread that holds VIPs lives.
    Holding,
    /// The disk of the log takes what is written to it: who is to lead has to write.
    Disk,
    /// The device behind an interface of a VIP is there and has carrier.
    Interface(Label),
    /// The fence stands on it, where it has to.
    Fence(Label),
    /// VIPs can be announced on it.
    Announce(Label),
    /// This VIP can be put on its device, as far as was tried and looked.
    Vip(IpAddr),
    /// Another member, or one of the addresses that `reachable` names, answers on it.
    Segment(Label),
    /// The operator's own command.
    Script,
}

impl Check {
    /// The name in metrics and logs.
    pub fn name(&self) -> String {
        match self {
            Check::Dns => "dns".to_owned(),
            Check::Listeners => "listeners".to_owned(),
            Check::Holding => "holding".to_owned(),
            Check::Disk => "disk".to_owned(),
            Check::Interface(label) => format!("interface {label}"),
            Check::Fence(label) => format!("fence {label}"),
            Check::Announce(label) => format!("announce {label}"),
            Check::Vip(address) => format!("vip {address}"),
            Check::Segment(label) => format!("segment {label}"),
            Check::Script => "script".to_owned(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// After how many results in a row, at least one, a check changes sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub fall: u32,
    pub rise: u32,
}

/// What one run of a check found: a failure says what is wrong.
pub type Finding = Result<(), String>;

/// A check that changed sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    Failed(Check, String),
    Passed(Check),
}

/// All checks of a node.
#[derive(Clone, Debug, Default)]
pub struct Fitness {
    checks: BTreeMap<Check, Counter>,
}

/// One check.
#[derive(Clone, Debug, Default)]
struct Counter {
    /// Results in a row that speak against the side it is on.
    against: u32,
    /// What the last run found wrong, of one that counts as passed.
    doubt: Option<String>,
    /// Why it counts as failed; none: it counts as passed.
    failed: Option<String>,
}

impl Fitness {
    /// Takes in what a check found.
    pub fn observe(&mut self, check: &Check, counts: Counts, finding: Finding) -> Option<Turn> {
        let counter = self.checks.entry(check.clone()).or_default();
        match (&mut counter.failed, finding) {
            (None, Ok(())) => *counter = Counter::default(),
            (Some(why), Err(problem)) => {
                counter.against = 0;
                *why = problem;
            }
            (None, Err(problem)) => {
                counter.against = counter.against.saturating_add(1);
                counter.doubt = Some(problem.clone());
                if counter.against >= counts.fall {
                    *counter = Counter {
                        failed: Some(problem.clone()),
                        ..Counter::default()
                    };
                    return Some(Turn::Failed(check.clone(), problem));
                }
            }
            (Some(_), Ok(())) => {
                counter.against = counter.against.saturating_add(1);
                if counter.against >= counts.rise {
                    *counter = Counter::default();
                    return Some(Turn::Passed(check.clone()));
                }
            }
        }
        None
    }

    /// What the last run of a check found wrong that counts as passed still: it may have come upon the node a moment ago.
    pub fn doubt(&self) -> Option<&str> {
        let mut counters = self.checks.values();
        counters.find_map(|counter| counter.doubt.as_deref())
    }

    /// Says in other words why a check counts as failed, until something else is found; nothing of one that counts as passed.
    pub fn reword(&mut self, check: &Check, words: String) {
        let counter = self.checks.get_mut(check);
        if let Some(why) = counter.and_then(|counter| counter.failed.as_mut()) {
            *why = words;
        }
    }

    /// Forgets checks that are not made any more.
    pub fn retain(&mut self, made: impl Fn(&Check) -> bool) {
        self.checks.retain(|check, _| made(check));
    }

    /// Every check that was made, and why it counts as failed.
    pub fn checks(&self) -> impl Iterator<Item = (&Check, Option<&str>)> {
        let checks = self.checks.iter();
        checks.map(|(check, counter)| (check, counter.failed.as_deref()))
    }

    /// Why the node is unfit, each reason once and the first few of them; none: it is fit. A thousand VIPs can have one each, and each
    /// second all peers hear of it.
    pub fn unfit(&self) -> Option<String> {
        let mut failed: Vec<&str> = vec![];
        for why in self.checks().filter_map(|(_, why)| why) {
            if !failed.contains(&why) {
                failed.push(why);
            }
        }
        let told: Vec<String> = failed.into_iter().map(str::to_owned).collect();
        (!told.is_empty()).then(|| first_few(told, and_more).join("; "))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COUNTS: Counts = Counts { fall: 3, rise: 2 };

    fn finding(passes: bool) -> Finding {
        match passes {
            true => Ok(()),
            false => Err("no answer".into()),
        }
    }

    #[test]
    fn results_in_a_row_turn_a_check() {
        // (results, fit after each)
        let cases = [
            ("..", "++"),
            ("!!!", "++-"),
            ("!!.!!", "+++++"),
            ("!!.!!!", "+++++-"),
            ("!!!..", "++--+"),
            ("!!!.!..", "++----+"),
            ("!!!..!!!", "++--+++-"),
        ];
        for (results, expected) in cases {
            let mut fitness = Fitness::default();
            let mut seen = String::new();
            for result in results.chars() {
                fitness.observe(&Check::Dns, COUNTS, finding(result == '.'));
                seen.push(if fitness.unfit().is_none() { '+' } else { '-' });
            }
            assert_eq!(seen, expected, "{results}");
        }
    }

    #[test]
    fn a_check_that_failed_last_and_counts_as_passed_is_a_doubt() {
        // (results, a doubt after each)
        let cases = [
            ("..", "--"),
            ("!!!", "??-"),
            ("!.!!", "?-??"),
            ("!!!!.!..", "??------"),
        ];
        for (results, expected) in cases {
            let mut fitness = Fitness::default();
            let mut seen = String::new();
            for result in results.chars() {
                fitness.observe(&Check::Dns, COUNTS, finding(result == '.'));
                seen.push(fitness.doubt().map_or('-', |_| '?'));
            }
            assert_eq!(seen, expected, "{results}");
        }
    }

    #[test]
    fn a_turn_is_told_once_and_names_its_reason() {
        let mut fitness = Fitness::default();
        let once = Counts { fall: 1, rise: 1 };
        let lan = Check::Interface("lan".parse().unwrap());
        let turns: Vec<_> = [Err("no carrier"), Err("no device"), Ok(()), Ok(())]
            .into_iter()
            .map(|f| fitness.observe(&lan, once, f.map_err(str::to_owned)))
            .collect();
        assert_eq!(
            turns,
            [
                Some(Turn::Failed(lan.clone(), "no carrier".into())),
                None,
                Some(Turn::Passed(lan)),
                None
            ]
        );
    }

    #[test]
    fn one_failed_check_of_several_makes_the_node_unfit_until_it_is_made_no_more() {
        let mut fitness = Fitness::default();
        let once = Counts { fall: 1, rise: 1 };
        let lan = Check::Fence("lan".parse().unwrap());
        fitness.observe(&Check::Dns, once, Ok(()));
        fitness.observe(&lan, once, Err("no fence".into()));
        fitness.observe(&Check::Script, once, Err("it ended with 1".into()));
        assert_eq!(
            fitness.unfit().as_deref(),
            Some("no fence; it ended with 1")
        );
        assert_eq!(fitness.checks().filter(|(_, why)| why.is_none()).count(), 1);
        fitness.retain(|check| *check == Check::Dns);
        assert_eq!(fitness.unfit(), None);
    }

    #[test]
    fn a_reason_that_several_checks_have_is_told_once() {
        let mut fitness = Fitness::default();
        let once = Counts { fall: 1, rise: 1 };
        for interface in ["lan", "wan"] {
            let fence = Check::Fence(interface.parse().unwrap());
            fitness.observe(&fence, once, Err("no fence".into()));
        }
        fitness.observe(&Check::Dns, once, Err("no answer".into()));
        assert_eq!(fitness.unfit().as_deref(), Some("no answer; no fence"));
    }

    #[test]
    fn of_many_reasons_the_first_few_are_told() {
        let mut fitness = Fitness::default();
        let once = Counts { fall: 1, rise: 1 };
        for last in 0..50u8 {
            let vip = IpAddr::from([10, 77, 0, last]);
            let why =
                format!("{vip} is already on this node's device eth0, put there by somebody else");
            fitness.observe(&Check::Vip(vip), once, Err(why));
        }
        let told = fitness.unfit().unwrap();
        assert_eq!(told.matches("is already on").count(), 10);
        assert!(told.ends_with("; and 40 more"), "{told}");
        assert_eq!(
            fitness.checks().filter(|(_, why)| why.is_some()).count(),
            50
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        /// Several checks with counts of their own, some of which end and begin again: each turns by itself, each turn is told once, and the
        /// node is unfit exactly while one of them is on the failed side.
        #[test]
        fn checks_turn_each_by_itself(
            counts in prop::array::uniform3((1u32..5, 1u32..5)),
            events in prop::collection::vec((0usize..3, prop::option::weighted(0.95, any::<bool>())), 0..120),
        ) {
            let checks = [Check::Dns, Check::Script, Check::Fence("lan".parse().unwrap())];
            let mut fitness = Fitness::default();
            // What each found since it is made, and whether it is on the failed side.
            let mut found: [(Vec<bool>, bool); 3] = Default::default();
            for (place, event) in events {
                let ((fall, rise), check) = (counts[place], &checks[place]);
                let (results, failed) = &mut found[place];
                let Some(passes) = event else {
                    fitness.retain(|made| made != check);
                    (*results, *failed) = (vec![], false);
                    prop_assert_eq!(fitness.unfit().is_some(), found.iter().any(|(_, failed)| *failed));
                    continue;
                };
                results.push(passes);
                let in_a_row = results.iter().rev().take_while(|result| **result == passes).count();
                let before = *failed;
                match passes {
                    true if in_a_row >= rise as usize => *failed = false,
                    false if in_a_row >= fall as usize => *failed = true,
                    _ => {}
                }
                let expected = match (before, *failed) {
                    (false, true) => Some(Turn::Failed(check.clone(), "no answer".into())),
                    (true, false) => Some(Turn::Passed(check.clone())),
                    _ => None,
                };
                let told = fitness.observe(check, Counts { fall, rise }, finding(passes));
                prop_assert_eq!(told, expected);
                prop_assert_eq!(fitness.unfit().is_some(), found.iter().any(|(_, failed)| *failed));
            }
        }

        /// Whatever comes, a check is on the failed side exactly if the last turn of `fall` failures in a row is newer than that of
        /// `rise` passes.
        #[test]
        fn sides_change_as_counted(results in prop::collection::vec(any::<bool>(), 0..60), fall in 1u32..5, rise in 1u32..5) {
            let counts = Counts { fall, rise };
            let (mut fitness, mut failed, mut row) = (Fitness::default(), false, (true, 0));
            for passes in results {
                row = if row.0 == passes { (passes, row.1 + 1) } else { (passes, 1) };
                if !passes && row.1 >= fall { failed = true; }
                if passes && row.1 >= rise { failed = false; }
                fitness.observe(&Check::Listeners, counts, finding(passes));
                prop_assert_eq!(fitness.unfit().is_some(), failed);
            }
        }
    }
}
