//! The rules, evaluated over frames as the kernel would. What the kernel itself makes of them is tried in `fence/tests.rs` and
//! `jepsen-like/tests/fence.rs`.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];
const MEMBER: [u8; 6] = [2, 0, 0, 0, 0, 2];

fn vip4() -> IpAddr {
    [10, 77, 0, 100].into()
}
fn vip6() -> IpAddr {
    "fd77::100".parse().unwrap()
}
fn client4() -> IpAddr {
    [10, 77, 0, 200].into()
}
fn client6() -> IpAddr {
    "fd77::200".parse().unwrap()
}
fn member4() -> IpAddr {
    [10, 77, 0, 12].into()
}

/// A frame, with the offsets at which its layers begin.
#[derive(Clone)]
struct Frame {
    octets: Vec<u8>,
    upper_protocol: Option<u8>,
    transport: Option<usize>,
}

fn ethernet(from: [u8; 6], ethertype: [u8; 2]) -> Vec<u8> {
    [&[0xff; 6][..], &from, &ethertype].concat()
}

fn arp(sender: IpAddr, target: IpAddr) -> Frame {
    let mut octets = ethernet(CLIENT, ARP);
    octets.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    octets.extend(CLIENT);
    octets.extend(key_of(sender));
    octets.extend([0; 6]);
    octets.extend(key_of(target));
    Frame {
        octets,
        upper_protocol: None,
        transport: None,
    }
}

fn ip(link: [u8; 6], from: IpAddr, to: IpAddr, upper: u8, body: &[u8]) -> Frame {
    let mut octets = match from {
        IpAddr::V4(_) => {
            let mut octets = ethernet(link, IPV4);
            octets.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, upper, 0, 0]);
            octets
        }
        IpAddr::V6(_) => {
            let mut octets = ethernet(link, IPV6);
            octets.extend([0x60, 0, 0, 0, 0, 0, upper, 255]);
            octets
        }
    };
    octets.extend(key_of(from));
    octets.extend(key_of(to));
    let transport = octets.len();
    octets.extend(body);
    Frame {
        octets,
        upper_protocol: Some(upper),
        transport: Some(transport),
    }
}

fn discovery_message(kind: u8, from: IpAddr, target: IpAddr) -> Frame {
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    let body = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &key_of(target)].concat();
    ip(CLIENT, from, all_nodes, ICMPV6, &body)
}

#[derive(Default)]
struct World(BTreeMap<String, BTreeSet<Vec<u8>>>);

impl World {
    fn with(sets: &[(&str, Vec<u8>)]) -> Self {
        let mut world = Self::default();
        for (name, key) in [("vips4", key_of(vip4())), ("vips6", key_of(vip6()))]
            .iter()
            .chain(sets)
        {
            world
                .0
                .entry((*name).to_owned())
                .or_default()
                .insert(key.clone());
        }
        world
    }

    fn passes(&self, hook: Hook, frame: &Frame) -> bool {
        for rule in rules_of(hook) {
            if let Some(verdict) = self.verdict(&rule, frame) {
                return verdict;
            }
        }
        true
    }

    fn verdict(&self, rule: &[Step], frame: &Frame) -> Option<bool> {
        let mut register = vec![];
        for step in rule {
            match step {
                Step::LoadProtocol => register = frame.octets[12..14].to_vec(),
                Step::LoadUpperProtocol => register = vec![frame.upper_protocol?],
                Step::Load {
                    base,
                    offset,
                    length,
                } => {
                    let base = match base {
                        Base::Link => 0,
                        Base::Network => 14,
                        Base::Transport => frame.transport?,
                    };
                    let start = base + *offset as usize;
                    register = frame.octets.get(start..start + *length as usize)?.to_vec();
                }
                Step::Is(value) => (register == *value).then_some(())?,
                Step::In(set) => self.has(set, &register).then_some(())?,
                Step::NotIn(set) => (!self.has(set, &register)).then_some(())?,
                Step::Accept => return Some(true),
                Step::Drop => return Some(false),
                other => panic!("the fence makes no such step: {other:?}"),
            }
        }
        None
    }

    fn has(&self, set: &str, key: &[u8]) -> bool {
        assert!(SETS.iter().any(|(name, ..)| *name == set), "no set {set}");
        self.0.get(set).is_some_and(|keys| keys.contains(key))
    }
}

fn holding() -> World {
    World::with(&[("holding4", key_of(vip4())), ("holding6", key_of(vip6()))])
}

fn serving() -> World {
    World::with(&[
        ("serving4", key_of(vip4())),
        ("serving6", key_of(vip6())),
        ("members", MEMBER.to_vec()),
        ("members4", key_of(member4())),
    ])
}

/// What comes in about a VIP: frame, passes without a permission, while holding, while serving.
#[test]
fn what_comes_in_passes_as_the_table_says() {
    let (tcp, udp) = (6, 17);
    let cases = [
        (
            "ARP for the VIP",
            arp(client4(), vip4()),
            [false, true, false],
        ),
        ("the holder's announcement", arp(vip4(), vip4()), [true; 3]),
        ("ARP for another", arp(client4(), member4()), [true; 3]),
        (
            "ND for the VIP",
            discovery_message(SOLICITATION, client6(), vip6()),
            [false, true, false],
        ),
        (
            "DAD for the VIP",
            discovery_message(SOLICITATION, "::".parse().unwrap(), vip6()),
            [false, true, false],
        ),
        (
            "ND for another",
            discovery_message(SOLICITATION, client6(), client6()),
            [true; 3],
        ),
        (
            "the holder's advertisement",
            discovery_message(ADVERTISEMENT, vip6(), vip6()),
            [true; 3],
        ),
        (
            "IPv4 from a client",
            ip(CLIENT, client4(), vip4(), udp, &[]),
            [false, true, false],
        ),
        (
            "IPv6 from a client",
            ip(CLIENT, client6(), vip6(), tcp, &[]),
            [false, true, false],
        ),
        (
            "IPv4 by a member",
            ip(MEMBER, client4(), vip4(), udp, &[]),
            [false, true, true],
        ),
        (
            "IPv6 by a member",
            ip(MEMBER, client6(), vip6(), udp, &[]),
            [false, true, true],
        ),
        (
            "IPv4 of a member",
            ip(MEMBER, member4(), vip4(), udp, &[]),
            [false, true, false],
        ),
        (
            "IPv4 to another",
            ip(CLIENT, client4(), member4(), udp, &[]),
            [true; 3],
        ),
        (
            "IPv6 to another",
            ip(CLIENT, client6(), client6(), udp, &[]),
            [true; 3],
        ),
    ];
    for (name, frame, expected) in cases {
        let worlds = [World::with(&[]), holding(), serving()];
        let seen = worlds.map(|world| world.passes(Hook::Ingress, &frame));
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn what_goes_out_passes_as_the_table_says() {
    let cases = [
        (
            "an ARP answer",
            arp(vip4(), client4()),
            [false, true, false],
        ),
        (
            "an ARP announcement",
            arp(vip4(), vip4()),
            [false, true, false],
        ),
        ("ARP of its own", arp(member4(), client4()), [true; 3]),
        (
            "ARP as a client of the VIP",
            arp(member4(), vip4()),
            [true; 3],
        ),
        (
            "an advertisement",
            discovery_message(ADVERTISEMENT, vip6(), vip6()),
            [false, true, false],
        ),
        (
            "an advertisement from another address",
            discovery_message(ADVERTISEMENT, client6(), vip6()),
            [false, true, false],
        ),
        (
            "a solicitation from the VIP",
            discovery_message(SOLICITATION, vip6(), client6()),
            [false, true, false],
        ),
        (
            "a solicitation for the VIP",
            discovery_message(SOLICITATION, client6(), vip6()),
            [true; 3],
        ),
        (
            "IPv4 from the VIP",
            ip(OWN, vip4(), client4(), 17, &[]),
            [false, true, true],
        ),
        (
            "IPv6 from the VIP",
            ip(OWN, vip6(), client6(), 6, &[]),
            [false, true, true],
        ),
        (
            "IPv4 to the VIP",
            ip(OWN, member4(), vip4(), 17, &[]),
            [true; 3],
        ),
        (
            "IPv6 of its own",
            ip(OWN, client6(), vip6(), 6, &[]),
            [true; 3],
        ),
    ];
    for (name, frame, expected) in cases {
        let worlds = [World::with(&[]), holding(), serving()];
        let seen = worlds.map(|world| world.passes(Hook::Egress, &frame));
        assert_eq!(seen, expected, "{name}");
    }
}

#[test]
fn a_permission_is_added_deleted_and_added_and_consumes_the_moment_last() {
    let about: Vec<_> = permit(
        Addresses::Holding,
        &[vip4(), vip6()].into(),
        std::time::Duration::from_millis(200),
    )
    .into_iter()
    .map(|request| request.about)
    .collect();
    assert_eq!(
        about,
        [
            "add to set holding4",
            "add to set holding6",
            "delete from set holding4",
            "delete from set holding6",
            "add to set holding4",
            "add to set holding6",
            "delete from set moment",
        ]
    );
}

#[test]
fn many_vips_go_in_chunks() {
    let vips = (0..1_200u16)
        .map(|n| IpAddr::from([10, 78, (n >> 8) as u8, n as u8]))
        .collect();
    let ruleset = Ruleset {
        vips,
        devices: BTreeSet::new(),
    };
    let empty = Ruleset::default();
    assert_eq!(empty.change(&ruleset).len(), 3);
    assert_eq!(ruleset.change(&empty).len(), 3);
    assert!(ruleset.change(&ruleset).is_empty());
}
