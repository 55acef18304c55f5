//! Which nodes a fault hits, and who no longer hears whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use super::{Kind, schedule::Planned};
use crate::lab::switch::Rule;

/// Who drops the frames of whom.
pub type Deaf = BTreeMap<String, BTreeSet<String>>;

/// The node that a fault of one node hits: the leader, or the drawn one of the others.
pub fn node<'a>(planned: &Planned, nodes: &'a [String], leader: Option<&str>) -> Option<&'a str> {
    let is_leader = |node: &&String| Some(node.as_str()) == leader;
    if planned.at_leader && leader.is_some() {
        return nodes.iter().find(is_leader).map(String::as_str);
    }
    let others: Vec<_> = nodes.iter().filter(|node| !is_leader(node)).collect();
    let place = planned.draw.checked_rem(others.len() as u64)?;
    others.get(place as usize).map(|node| node.as_str())
}

/// The node that a fault of one node hits, and further ones as drawn: fewer than half.
pub fn minority(planned: &Planned, nodes: &[String], leader: Option<&str>) -> Vec<String> {
    let Some(first) = node(planned, nodes, leader) else {
        return vec![];
    };
    let most = nodes.len().saturating_sub(1) / 2;
    let count = StdRng::seed_from_u64(planned.draw).random_range(1..=most.max(1));
    let others = shuffled(nodes, planned.draw).into_iter();
    let others = others.filter(|node| *node != first).take(count - 1);
    let hit = std::iter::once(first).chain(others);
    hit.map(str::to_owned).collect()
}

/// Who drops whose frames in a partition; `clients` are the hosts outside the cluster. Empty for other kinds.
pub fn deaf(planned: &Planned, nodes: &[String], leader: Option<&str>, clients: &[String]) -> Deaf {
    let shuffled = with_leader_placed(planned, shuffled(nodes, planned.draw), leader);
    let chosen = leader
        .or_else(|| shuffled.first().copied())
        .map(str::to_owned);
    let Some(chosen) = chosen else {
        return Deaf::new();
    };
    let lone = |node: &str| usize::from(node == chosen);
    match planned.kind {
        Kind::PartitionLeader => between(&shuffled, |a, b| lone(a) != lone(b)),
        Kind::PartitionHalves => {
            let half = |node: &str| place(&shuffled, node) < shuffled.len() / 2;
            between(&shuffled, |a, b| half(a) != half(b))
        }
        Kind::PartitionRing => {
            // Three in a ring all hear each other: there a line.
            let is_line = shuffled.len() <= 3;
            between(&shuffled, |a, b| {
                let apart = place(&shuffled, a).abs_diff(place(&shuffled, b));
                apart != 1 && (is_line || apart != shuffled.len() - 1)
            })
        }
        Kind::PartitionBridge => {
            let bridge = shuffled.len() / 2;
            let side = |node: &str| place(&shuffled, node).cmp(&bridge) as i8;
            between(&shuffled, |a, b| side(a) * side(b) == -1)
        }
        Kind::PartitionOneWay if planned.draw & 1 == 0 => {
            between(&shuffled, |to, from| lone(to) > lone(from))
        }
        Kind::PartitionOneWay => between(&shuffled, |to, from| lone(to) < lone(from)),
        Kind::PartitionClient => [(chosen, clients.iter().cloned().collect())].into(),
        _ => Deaf::new(),
    }
}

/// The nodes in the drawn order, with the leader where the fault touches it, or spares it where it is not aimed at: in the smaller half or the
/// larger, at the side or in the middle, from where everybody is heard.
fn with_leader_placed<'a>(
    planned: &Planned,
    mut order: Vec<&'a str>,
    leader: Option<&str>,
) -> Vec<&'a str> {
    let Some(at) = order.iter().position(|node| Some(*node) == leader) else {
        return order;
    };
    let middle = order.len() / 2;
    let place = match (planned.kind, planned.at_leader) {
        (Kind::PartitionHalves, true) if at >= middle => 0,
        (Kind::PartitionHalves, false) if at < middle => order.len() - 1,
        (Kind::PartitionRing | Kind::PartitionBridge, true) if at == middle => 0,
        (Kind::PartitionRing | Kind::PartitionBridge, false) => middle,
        _ => at,
    };
    order.swap(at, place);
    order
}

/// The nodes whose sessions a partition may end; empty: all.
pub fn cut_off(planned: &Planned, deaf: &Deaf) -> BTreeSet<String> {
    match planned.kind {
        Kind::PartitionRing | Kind::PartitionBridge => BTreeSet::new(),
        // Who is deaf to most: the lone one, or the smaller half.
        Kind::PartitionLeader | Kind::PartitionHalves | Kind::PartitionClient => {
            let most = deaf.values().map(BTreeSet::len).max().unwrap_or(0);
            let cut = deaf.iter().filter(|(_, from)| from.len() == most);
            cut.map(|(to, _)| to.clone()).collect()
        }
        _ => {
            let speakers: BTreeSet<_> = deaf.values().flatten().collect();
            match deaf.keys().next() {
                Some(only) if deaf.len() == 1 => [only.clone()].into(),
                _ => speakers.into_iter().cloned().collect(),
            }
        }
    }
}

/// The nodes that a partition takes their quorum from: those that hear, and are heard by, fewer than a majority, themselves included. A leader that
/// keeps one leads on, whoever else it misses.
pub fn bereft(deaf: &Deaf, nodes: &[String]) -> BTreeSet<String> {
    let hears =
        |to: &String, from: &String| !deaf.get(to).is_some_and(|unheard| unheard.contains(from));
    let is_bereft = |node: &&String| {
        let peers = nodes
            .iter()
            .filter(|peer| hears(node, peer) && hears(peer, node));
        peers.count() <= nodes.len() / 2
    };
    nodes.iter().filter(is_bereft).cloned().collect()
}

/// Lost frames and late ones: the rules of the switch, and the nodes that are hit (empty: all of them). `others` are the hosts
/// outside of the cluster.
pub fn links(
    planned: &Planned,
    nodes: &[String],
    leader: Option<&str>,
    others: &[String],
) -> (Vec<Rule>, BTreeSet<String>) {
    let mut draws = StdRng::seed_from_u64(planned.draw);
    let delay = Duration::from_millis(draws.random_range(10..=200));
    let (delay, jitter, loss_percent) = match planned.kind {
        Kind::Delay => (delay, delay.mul_f64(draws.random_range(0.0..0.3)), 0),
        _ => (Duration::ZERO, Duration::ZERO, draws.random_range(5..=30)),
    };
    let one = node(planned, nodes, leader).unwrap_or_default();
    let (is_from, is_to, is_all) = match draws.random_range(0..4) {
        0 => (true, false, false),
        1 => (false, true, false),
        2 => (true, true, false),
        _ => (false, false, true),
    };
    let hosts = || nodes.iter().chain(others);
    let pairs = hosts().flat_map(|from| hosts().map(move |to| (from, to)));
    let is_hit = |(from, to): &(&String, &String)| {
        let is_one = (is_from && *from == one) || (is_to && *to == one);
        let is_inside = nodes.contains(from) && nodes.contains(to);
        from != to && (is_one || (is_all && is_inside))
    };
    let rule = |(from, to): (&String, &String)| Rule {
        from: from.clone(),
        to: to.clone(),
        delay,
        jitter,
        loss_percent,
    };
    let hit = match is_all {
        true => BTreeSet::new(),
        false => [one.to_owned()].into(),
    };
    (pairs.filter(is_hit).map(rule).collect(), hit)
}

/// The rate at which a wall clock runs, 1 being right: half to twice, and never nearly right.
pub fn clock_rate(planned: &Planned) -> f64 {
    let mut draws = StdRng::seed_from_u64(planned.draw);
    match draws.random_bool(0.5) {
        true => draws.random_range(0.5..0.9),
        false => draws.random_range(1.1..2.0),
    }
}

/// The profile that is set in the place of `lan`.
pub fn profile(planned: &Planned) -> &'static str {
    match planned.draw & 1 {
        0 => "fast",
        _ => "wan",
    }
}

/// In which order nodes are upgraded: one after the other from the drawn one, the leader last.
pub fn upgrade_order(planned: &Planned, nodes: &[String], leader: Option<&str>) -> Vec<String> {
    let mut order = nodes.to_vec();
    let first = planned.draw.checked_rem(nodes.len() as u64).unwrap_or(0);
    order.rotate_left(first as usize);
    order.sort_by_key(|node| Some(node.as_str()) == leader);
    order
}

/// For all ordered pairs (who hears, who speaks).
fn between(nodes: &[&str], is_deaf: impl Fn(&str, &str) -> bool) -> Deaf {
    let mut deaf = Deaf::new();
    for to in nodes {
        let unheard = nodes.iter().filter(|from| *from != to && is_deaf(to, from));
        let unheard: BTreeSet<String> = unheard.map(|from| (*from).to_owned()).collect();
        if !unheard.is_empty() {
            deaf.insert((*to).to_owned(), unheard);
        }
    }
    deaf
}

fn place(nodes: &[&str], node: &str) -> usize {
    nodes.iter().position(|other| *other == node).unwrap_or(0)
}

fn shuffled(nodes: &[String], draw: u64) -> Vec<&str> {
    let mut order: Vec<_> = nodes.iter().map(String::as_str).collect();
    order.shuffle(&mut StdRng::seed_from_u64(draw));
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn planned(kind: Kind, at_leader: bool, draw: u64) -> Planned {
        Planned {
            at: Duration::ZERO,
            lasts: Duration::ZERO,
            kind,
            at_leader,
            draw,
        }
    }

    fn nodes(count: usize) -> Vec<String> {
        (1..=count).map(|number| format!("n{number}")).collect()
    }

    fn clients() -> Vec<String> {
        vec!["client".to_owned()]
    }

    fn is_symmetric(deaf: &Deaf) -> bool {
        deaf.iter().all(|(to, from)| {
            from.iter()
                .all(|from| deaf.get(from).is_some_and(|back| back.contains(to)))
        })
    }

    #[test]
    fn the_leader_is_hit_when_aimed_at_and_spared_otherwise() {
        let nodes = nodes(3);
        let hit = |at_leader, draw| node(&planned(Kind::Kill, at_leader, draw), &nodes, Some("n2"));
        assert_eq!(hit(true, 5), Some("n2"));
        assert_eq!((hit(false, 0), hit(false, 1)), (Some("n1"), Some("n3")));
        assert_eq!(
            node(&planned(Kind::Kill, true, 4), &nodes, None),
            Some("n2")
        );
        assert_eq!(node(&planned(Kind::Kill, true, 4), &[], None), None);
    }

    #[test]
    fn partitions_cut_what_their_names_say() {
        for count in [3, 5] {
            let nodes = nodes(count);
            let cut = |kind, draw| deaf(&planned(kind, true, draw), &nodes, Some("n1"), &clients());
            let links = |deaf: &Deaf| deaf.values().map(BTreeSet::len).sum::<usize>();
            for draw in 0..20 {
                let leader = cut(Kind::PartitionLeader, draw);
                assert_eq!(leader["n1"].len(), count - 1);
                assert_eq!(
                    (links(&leader), is_symmetric(&leader)),
                    (2 * (count - 1), true)
                );
                let hit = |kind| cut_off(&planned(kind, true, draw), &cut(kind, draw));
                for kind in [
                    Kind::PartitionLeader,
                    Kind::PartitionOneWay,
                    Kind::PartitionClient,
                ] {
                    assert_eq!(hit(kind), ["n1".to_owned()].into(), "{kind}");
                }
                assert_eq!(hit(Kind::PartitionHalves).len(), count / 2);
                assert!(hit(Kind::PartitionRing).is_empty());

                let halves = cut(Kind::PartitionHalves, draw);
                let small = count / 2;
                assert_eq!(links(&halves), 2 * small * (count - small));

                let ring = cut(Kind::PartitionRing, draw);
                assert_eq!(
                    links(&ring),
                    if count == 3 { 2 } else { count * (count - 3) }
                );

                let bridge = cut(Kind::PartitionBridge, draw);
                assert_eq!(
                    (links(&bridge), bridge.len()),
                    (2 * small * small, count - 1)
                );

                let one_way = cut(Kind::PartitionOneWay, draw);
                assert_eq!(links(&one_way), count - 1);
                assert_eq!(one_way.contains_key("n1"), draw & 1 == 0);

                let client = cut(Kind::PartitionClient, draw);
                assert_eq!(client["n1"], ["client".to_owned()].into());
                assert_eq!(links(&client), 1);
            }
        }
    }

    #[test]
    fn a_partition_hits_the_leader_that_it_is_aimed_at_and_no_other() {
        for (count, draw) in [3, 5]
            .into_iter()
            .flat_map(|count| (0..40).map(move |draw| (count, draw)))
        {
            let nodes = nodes(count);
            for at_leader in [true, false] {
                let planned = planned(Kind::PartitionHalves, at_leader, draw);
                let deaf = deaf(&planned, &nodes, Some("n2"), &clients());
                let cut = cut_off(&planned, &deaf);
                assert_eq!(cut, bereft(&deaf, &nodes));
                assert_eq!(cut.contains("n2"), at_leader, "{count}: {deaf:?}");
            }
        }
    }

    /// Aimed at it or not: it hears a majority, and is heard by it.
    #[test]
    fn a_leader_that_keeps_its_quorum_is_not_hit() {
        for (count, draw) in [3, 5]
            .into_iter()
            .flat_map(|count| (0..40).map(move |draw| (count, draw)))
        {
            let nodes = nodes(count);
            for kind in [Kind::PartitionRing, Kind::PartitionBridge] {
                assert!(!kind.can_hit_leader());
                let deaf = deaf(&planned(kind, true, draw), &nodes, Some("n2"), &clients());
                assert!(!deaf.is_empty());
                assert_eq!(bereft(&deaf, &nodes), BTreeSet::new(), "{kind}: {deaf:?}");
            }
            for kind in [Kind::PartitionLeader, Kind::PartitionOneWay] {
                let planned = planned(kind, true, draw);
                let deaf = deaf(&planned, &nodes, Some("n2"), &clients());
                let lone = BTreeSet::from(["n2".to_owned()]);
                assert_eq!(bereft(&deaf, &nodes), lone, "{kind}: {deaf:?}");
                assert_eq!(cut_off(&planned, &deaf), lone);
            }
        }
    }

    #[test]
    fn each_direction_comes_to_be_hit_alone() {
        let nodes = nodes(3);
        let drawn = (0..40).map(|draw| {
            let planned = planned(Kind::Delay, true, draw);
            let (rules, who) = links(&planned, &nodes, Some("n1"), &clients());
            let from = rules.iter().all(|rule| rule.from == "n1");
            let to = rules.iter().all(|rule| rule.to == "n1");
            (from, to, who.is_empty())
        });
        let drawn: BTreeSet<_> = drawn.collect();
        let all = [
            (true, false, false),
            (false, true, false),
            (false, false, false),
            (false, false, true),
        ];
        assert_eq!(drawn, all.into());
        let profiles: BTreeSet<_> = (0..4)
            .map(|draw| profile(&planned(Kind::ProfileChange, true, draw)))
            .collect();
        assert_eq!(profiles, ["fast", "wan"].into());
    }

    proptest! {
        #[test]
        fn a_minority_is_fewer_than_half_and_has_the_one_that_is_aimed_at(draw: u64, at_leader: bool, count in 1usize..=5) {
            let nodes = nodes(count);
            let planned = planned(Kind::BitFlip, at_leader, draw);
            let hit = minority(&planned, &nodes, Some("n1"));
            let distinct: BTreeSet<_> = hit.iter().collect();
            prop_assert_eq!(distinct.len(), hit.len());
            prop_assert_eq!(hit.first().map(String::as_str), node(&planned, &nodes, Some("n1")));
            prop_assert!(hit.len() <= (count.saturating_sub(1) / 2).max(1));
        }

        #[test]
        fn losses_and_delays_are_moderate_and_hit_somebody(draw: u64, at_leader: bool, count in 3usize..=5) {
            let nodes = nodes(count);
            let hit = |kind| links(&planned(kind, at_leader, draw), &nodes, Some("n3"), &clients());
            let (rules, _) = hit(Kind::Loss);
            prop_assert!(rules.iter().all(|rule| (5..=30).contains(&rule.loss_percent) && rule.delay.is_zero()));
            let (rules, who) = hit(Kind::Delay);
            for rule in &rules {
                prop_assert!((10..=200).contains(&rule.delay.as_millis()) && rule.jitter < rule.delay);
                prop_assert_eq!(rule.loss_percent, 0);
                prop_assert_ne!(&rule.from, &rule.to);
                prop_assert!(who.is_empty() || who.contains(&rule.from) || who.contains(&rule.to));
            }
            let pairs: BTreeSet<_> = rules.iter().map(|rule| (&rule.from, &rule.to)).collect();
            prop_assert_eq!(pairs.len(), rules.len());
            // One node's to or from its peers and the client, or both; or all between nodes.
            let expected = if who.is_empty() { vec![count * (count - 1)] } else { vec![count, 2 * count] };
            prop_assert!(expected.contains(&rules.len()), "{}", rules.len());
            prop_assert_eq!(!who.is_empty() && at_leader, who.contains("n3"));
        }

        #[test]
        fn clocks_are_clearly_wrong_and_not_absurdly(draw: u64) {
            let rate = clock_rate(&planned(Kind::ClockSkew, false, draw));
            prop_assert!((0.5..0.9).contains(&rate) || (1.1..2.0).contains(&rate));
        }

        #[test]
        fn an_upgrade_reaches_every_node_and_the_leader_last(draw: u64) {
            let nodes = nodes(5);
            let order = upgrade_order(&planned(Kind::RollingRestart, true, draw), &nodes, Some("n2"));
            prop_assert_eq!(order.last().map(String::as_str), Some("n2"));
            prop_assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), nodes.into_iter().collect());
        }
    }
}
