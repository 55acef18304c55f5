//! Decides, for each interface that VIPs are on, whether its clients' side is reached: answers and the time in, verdicts out.
//!
//! Each is judged by itself, for a holder that is cut off on one of them is dead to the clients there: by the addresses that the
//! operator named, those in the networks of the interface, or else by the members there. Where the networks do not say who is there,
//! an answer on any interface counts for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::model::{label::Label, network::Network};

/// Who answered where, and when last.
#[derive(Debug)]
pub struct Reach {
    /// Silence of this length counts.
    patience: Duration,
    /// Since when those on each interface are asked.
    since: BTreeMap<Label, Instant>,
    heard: BTreeMap<(Label, IpAddr), Instant>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Addresses that the operator named. They have to answer, whether they ever did or not.
    pub named: &'a BTreeSet<IpAddr>,
    /// Own addresses of the other members. One is counted on only if it was heard before: it need not be in the VIPs' networks at all.
    pub members: &'a BTreeSet<IpAddr>,
    /// The networks that this node itself has addresses in, on each interface.
    pub networks: &'a BTreeMap<Label, BTreeSet<Network>>,
}

impl Reach {
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            since: BTreeMap::new(),
            heard: BTreeMap::new(),
        }
    }

    /// The interfaces that there are VIPs on, and a device for.
    pub fn watch(&mut self, interfaces: &BTreeSet<Label>, now: Instant) {
        self.since.retain(|known, _| interfaces.contains(known));
        for interface in interfaces {
            self.since.entry(interface.clone()).or_insert(now);
        }
    }

    /// One of the addresses that were asked for answered on an interface.
    pub fn hear(&mut self, interface: &Label, address: IpAddr, now: Instant) {
        self.heard.insert((interface.clone(), address), now);
    }

    /// Why an interface counts as cut off.
    pub fn problems(&self, asked: Asked<'_>, now: Instant) -> BTreeMap<Label, String> {
        let watched = self.since.iter();
        let patient = watched.filter(|(_, since)| now >= **since + self.patience);
        let problem =
            |interface: &Label| Some((interface.clone(), self.problem(interface, asked, now)?));
        patient
            .filter_map(|(interface, _)| problem(interface))
            .collect()
    }

    fn problem(&self, interface: &Label, asked: Asked<'_>, now: Instant) -> Option<String> {
        let is_in = |interface: &Label, address: IpAddr| {
            let networks = asked.networks.get(interface);
            networks.is_some_and(|all| all.iter().any(|network| network.contains(address)))
        };
        let here = |all: &BTreeSet<IpAddr>| -> BTreeSet<IpAddr> {
            let all = all.iter().copied();
            all.filter(|address| is_in(interface, *address)).collect()
        };
        let only = |one: &Label| one == interface;
        // On an interface that is watched no more nobody is asked.
        let anywhere = |one: &Label| self.since.contains_key(one);

        let named = here(asked.named);
        if !named.is_empty() {
            let silent = !self.answers(asked.named, only, now);
            return silent.then(|| told(&named, "`reachable`", Some(interface)));
        }
        let is_elsewhere = |address: &IpAddr| self.since.keys().any(|one| is_in(one, *address));
        if !asked.named.is_empty() && !asked.named.iter().any(is_elsewhere) {
            let silent = !self.answers(asked.named, anywhere, now);
            return silent.then(|| told(asked.named, "`reachable`", None));
        }
        let mut members = here(asked.members);
        members.retain(|address| self.was_heard(*address, only));
        if !members.is_empty() {
            let silent = !self.answers(asked.members, only, now);
            return silent.then(|| told(&members, "other members", Some(interface)));
        }
        let mut members = asked.members.clone();
        members.retain(|address| self.was_heard(*address, anywhere));
        let silent = !members.is_empty() && !self.answers(&members, anywhere, now);
        silent.then(|| told(&members, "other members", None))
    }

    fn was_heard(&self, address: IpAddr, on: impl Fn(&Label) -> bool) -> bool {
        self.heard
            .keys()
            .any(|(interface, heard)| *heard == address && on(interface))
    }

    /// Whether one of these was heard lately.
    fn answers(
        &self,
        addresses: &BTreeSet<IpAddr>,
        on: impl Fn(&Label) -> bool,
        now: Instant,
    ) -> bool {
        self.heard.iter().any(|((interface, address), at)| {
            addresses.contains(address) && on(interface) && now < *at + self.patience
        })
    }
}

fn told(silent: &BTreeSet<IpAddr>, who: &str, interface: Option<&Label>) -> String {
    let addresses: Vec<String> = silent.iter().map(ToString::to_string).collect();
    let place = match interface {
        Some(interface) => format!("interface {interface}"),
        None => "the VIPs' networks".to_owned(),
    };
    format!("no answer from {who} ({}) on {place}", addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn label(text: &str) -> Label {
        text.parse().unwrap()
    }

    fn set(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| ip(text)).collect()
    }

    /// `lan` and `wan`, with a network each.
    fn two() -> BTreeMap<Label, BTreeSet<Network>> {
        let network = |text: &str| -> BTreeSet<Network> { [text.parse().unwrap()].into() };
        [
            (label("lan"), network("192.0.2.0/24")),
            (label("wan"), network("198.51.100.0/24")),
        ]
        .into()
    }

    /// Those that count as cut off a minute after the start. `heard`: interface, address, second.
    fn cut(
        networks: &BTreeMap<Label, BTreeSet<Network>>,
        interfaces: &[&str],
        heard: &[(&str, &str, u64)],
        (named, members): (&[&str], &[&str]),
    ) -> Vec<String> {
        let start = Instant::now();
        let mut reach = Reach::new(PATIENCE);
        reach.watch(&interfaces.iter().map(|i| label(i)).collect(), start);
        for (interface, address, second) in heard {
            let at = start + Duration::from_secs(*second);
            reach.hear(&label(interface), ip(address), at);
        }
        let (named, members) = (set(named), set(members));
        let asked = Asked {
            named: &named,
            members: &members,
            networks,
        };
        let early = reach.problems(asked, start + PATIENCE - Duration::from_millis(1));
        assert!(early.is_empty(), "it has just begun to ask: {early:?}");
        let problems = reach.problems(asked, start + Duration::from_secs(60));
        problems.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn being_cut_off_is_silence_of_all_that_were_named_or_heard() {
        let (gateway, other) = ("203.0.113.1", "203.0.113.2");
        let (member, second) = ("203.0.113.11", "203.0.113.12");
        let (named, members): (&[&str], &[&str]) = (&[gateway, other], &[member, second]);
        // Nothing is known of the networks. (heard, named, members, cut off)
        type Case<'a> = (&'a [(&'a str, u64)], &'a [&'a str], &'a [&'a str], bool);
        let cases: [Case<'_>; 9] = [
            (&[], &[], &[], false),
            (&[], &[], members, false), // never heard there
            (&[(member, 58)], &[], members, false),
            (&[(member, 50)], &[], members, true),
            (&[(member, 50), (second, 59)], &[], members, false),
            (&[(gateway, 50)], &[], members, false),
            (&[], named, &[], true),
            (&[(other, 59)], named, &[], false),
            (&[(member, 59)], named, members, true),
        ];
        for (heard, named, members, expected) in cases {
            let heard: Vec<_> = heard
                .iter()
                .map(|(address, at)| ("lan", *address, *at))
                .collect();
            let cut = cut(&BTreeMap::new(), &["lan"], &heard, (named, members));
            assert_eq!(!cut.is_empty(), expected, "{heard:?} {named:?} {members:?}");
        }
    }

    #[test]
    fn each_interface_is_judged_by_those_in_its_networks() {
        let both: &[&str] = &["lan", "wan"];
        let (lan, wan) = ("192.0.2.1", "198.51.100.1");
        let (near, far) = ("192.0.2.12", "198.51.100.12");
        let foreign = "203.0.113.1";
        // (heard, named, members, cut off)
        type Case<'a> = (
            &'a [(&'a str, &'a str, u64)],
            &'a [&'a str],
            &'a [&'a str],
            &'a [&'a str],
        );
        let cases: [Case<'_>; 11] = [
            // One named address in each network.
            (&[("lan", lan, 59), ("wan", wan, 59)], &[lan, wan], &[], &[]),
            (
                &[("lan", lan, 59), ("wan", wan, 50)],
                &[lan, wan],
                &[],
                &["wan"],
            ),
            (&[("lan", lan, 59)], &[lan, wan], &[], &["wan"]),
            (&[], &[lan, wan], &[], both),
            // It answers on the other one alone: by another way.
            (
                &[("lan", lan, 59), ("lan", wan, 59)],
                &[lan, wan],
                &[],
                &["wan"],
            ),
            // Nobody is named in one of them: the members there tell.
            (
                &[("lan", lan, 59), ("wan", far, 50)],
                &[lan],
                &[near, far],
                &["wan"],
            ),
            (&[("lan", lan, 59)], &[lan], &[near, far], &[]),
            // Members in both.
            (
                &[("lan", near, 59), ("wan", far, 50)],
                &[],
                &[near, far],
                &["wan"],
            ),
            (&[("lan", near, 59), ("wan", near, 50)], &[], &[near], &[]),
            // A named address in no network of them counts wherever it answers.
            (&[("lan", foreign, 59)], &[foreign], &[near, far], &[]),
            (
                &[("lan", near, 59), ("wan", far, 59)],
                &[foreign],
                &[near, far],
                both,
            ),
        ];
        for (heard, named, members, expected) in cases {
            let cut = cut(&two(), both, heard, (named, members));
            assert_eq!(cut, expected, "{heard:?} {named:?} {members:?}");
        }
    }

    const MEMBER: &str = "192.0.2.12";

    /// What is wrong where that member alone is asked.
    fn problems_with_one_member(reach: &Reach, now: Instant) -> BTreeMap<Label, String> {
        let (named, members, networks) = (BTreeSet::new(), [ip(MEMBER)].into(), two());
        let asked = Asked {
            named: &named,
            members: &members,
            networks: &networks,
        };
        reach.problems(asked, now)
    }

    #[test]
    fn an_interface_that_gets_its_first_vip_again_is_not_judged_by_what_was_heard_long_ago() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let lan = label("lan");
        let mut reach = Reach::new(PATIENCE);
        let only: BTreeSet<Label> = [lan.clone()].into();
        reach.watch(&only, start);
        reach.hear(&lan, ip(MEMBER), start);
        reach.watch(&BTreeSet::new(), start + s(10));
        assert!(problems_with_one_member(&reach, start + s(10)).is_empty());
        reach.watch(&only, start + s(60));
        assert!(problems_with_one_member(&reach, start + s(62)).is_empty());
        let problems = problems_with_one_member(&reach, start + s(63));
        assert_eq!(
            problems.get(&lan).map(String::as_str),
            Some("no answer from other members (192.0.2.12) on interface lan")
        );
    }

    #[test]
    fn what_was_heard_on_an_interface_that_is_watched_no_more_owes_nothing_elsewhere() {
        let (start, s) = (Instant::now(), Duration::from_secs);
        let (lan, wan) = (label("lan"), label("wan"));
        let mut reach = Reach::new(PATIENCE);
        reach.watch(&[lan.clone(), wan.clone()].into(), start);
        reach.hear(&lan, ip(MEMBER), start);
        reach.watch(&[wan].into(), start + s(10));
        assert!(problems_with_one_member(&reach, start + s(60)).is_empty());
    }

    proptest! {
        /// Whoever answers and whoever is named: an interface on which somebody of its networks that is asked answers is not cut off, and
        /// one that is cut off is among those that were watched.
        #[test]
        fn an_answer_on_an_interface_is_enough_for_it(
            heard in prop::collection::vec((0usize..2, 0usize..4, 0u64..60), 0..8),
            named in 0u8..16,
        ) {
            let (names, networks) = (["lan", "wan"], two());
            let all = ["192.0.2.1", "198.51.100.1", "192.0.2.12", "198.51.100.12"];
            let chosen: Vec<&str> = (0..4).filter(|i| (named >> i) & 1 == 1).map(|i| all[i]).collect();
            let mut heard: Vec<_> = heard.into_iter().map(|(i, a, at)| (names[i], all[a], at)).collect();
            heard.sort_by_key(|(_, _, at)| *at);
            let cut = cut(&networks, &names, &heard, (&chosen[..], &all[..]));
            for name in &cut {
                prop_assert!(names.contains(&name.as_str()));
            }
            for (interface, address, at) in heard {
                let is_in = networks[&label(interface)].iter().any(|n| n.contains(ip(address)));
                let is_named_here = |a: &&str| networks[&label(interface)].iter().any(|n| n.contains(ip(a)));
                let counts = chosen.contains(&address) || !chosen.iter().any(is_named_here);
                if is_in && counts && at > 57 {
                    prop_assert!(!cut.iter().any(|name| name == interface), "{:?}", cut);
                }
            }
        }
    }
}
