//! Which frames the fence lets pass: the rules and sets, as values. Pure.
//!
//! The same rules stand on every node at all times. What differs is what is in the sets:
//!
//! | set | elements | who puts them there |
//! | --- | --- | --- |
//! | `vips4`, `vips6` | every VIP of the snapshot | the driver, for as long as the VIP exists |
//! | `holding4`, `holding6` | VIPs that this node holds | the driver, for what is left of its lease |
//! | `serving4`, `serving6` | VIPs that this node answers for on behalf of their holder | for at most two seconds |
//! | `members` | Ethernet addresses of the other members | together with `serving` |
//! | `members4`, `members6` | IP addresses of the members | together with `serving` |
//! | `moment` | one mark, for a few milliseconds | the driver, right before it puts something into a timed set |
//!
//! A VIP's frames pass while it is in *holding*. While it is in *serving*, IP packets to it are taken from another member's
//! Ethernet address, and none that a member itself sent; answers from it may leave; ARP and neighbour discovery for it may
//! not, in either direction. Everything else about a VIP is dropped; everything about other addresses passes.

use std::{collections::BTreeSet, net::IpAddr};

use super::message::{Base, Chain, Element, Hook, Key, Request, Step, Table, key_of};

/// The fence's table, of the family `netdev`.
pub const TABLE: &str = "pontoon_fence";
/// Ahead of every other rule of ours and, as far as they keep to the usual numbers, of others.
const INGRESS_PRIORITY: i32 = -500;
/// Behind them: nothing changes a frame after it was looked at.
const EGRESS_PRIORITY: i32 = 500;
/// Elements in one message; an attribute has at most 64 KiB.
const CHUNK: usize = 500;

pub const MOMENT: &str = "moment";
/// The only element of `moment`.
pub const NOW: [u8; 4] = [0, 0, 0, 1];

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The sets, in the order in which they are made.
const SETS: [(&str, Key, bool); 10] = [
    ("vips4", Key::Ipv4, false),
    ("vips6", Key::Ipv6, false),
    ("holding4", Key::Ipv4, true),
    ("holding6", Key::Ipv6, true),
    ("serving4", Key::Ipv4, true),
    ("serving6", Key::Ipv6, true),
    ("members", Key::Ethernet, true),
    ("members4", Key::Ipv4, true),
    ("members6", Key::Ipv6, true),
    (MOMENT, Key::Mark, true),
];

/// Name, octets of a key, and whether elements expire, of every set.
pub fn sets() -> impl Iterator<Item = (&'static str, u32, bool)> {
    SETS.into_iter()
        .map(|(name, key, timed)| (name, key.length(), timed))
}

/// A set that exists once for each IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    Vips,
    Holding,
    Serving,
    Members,
}

impl Addresses {
    /// The name of the set that takes addresses of the version of `address`.
    pub fn set_for(self, address: IpAddr) -> &'static str {
        match (self, address.is_ipv4()) {
            (Addresses::Vips, true) => "vips4",
            (Addresses::Vips, false) => "vips6",
            (Addresses::Holding, true) => "holding4",
            (Addresses::Holding, false) => "holding6",
            (Addresses::Serving, true) => "serving4",
            (Addresses::Serving, false) => "serving6",
            (Addresses::Members, true) => "members4",
            (Addresses::Members, false) => "members6",
        }
    }
}

/// What the fence has to be on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub vips: BTreeSet<IpAddr>,
    /// Names of the devices that VIPs may be on.
    pub devices: BTreeSet<String>,
}

impl Ruleset {
    /// The two chains, each on every device.
    pub fn chains(&self) -> [Chain; 2] {
        let chain = |name: &str, hook, priority| Chain {
            name: name.to_owned(),
            hook,
            priority,
            devices: self.devices.iter().cloned().collect(),
        };
        [
            chain("ingress", Hook::Ingress, INGRESS_PRIORITY),
            chain("egress", Hook::Egress, EGRESS_PRIORITY),
        ]
    }

    /// The requests that make the fence where there is none, or in place of one that is there, in one transaction: at no
    /// instant is there no fence. Nothing is permitted afterwards.
    pub fn replace(&self, there_is_one: bool, flags: u32) -> Vec<Request> {
        let table = Table(TABLE);
        let mut requests = vec![];
        if there_is_one {
            requests.push(table.delete());
        }
        requests.push(table.create(flags));
        for (number, (name, key, timed)) in (1..).zip(SETS) {
            requests.push(table.create_set(name, key, timed, number));
        }
        requests.extend(elements_requests(Change::Add, Addresses::Vips, &self.vips));
        for chain in self.chains() {
            requests.extend(chain_requests(&chain));
        }
        requests
    }

    /// The requests that turn this fence, which stands, into another, in one transaction. What is permitted stays so: for other devices
    /// the chains alone are made anew, and the old ones stand until the new ones do.
    pub fn change(&self, to: &Self) -> Vec<Request> {
        let added = to.vips.difference(&self.vips).copied().collect();
        let removed = self.vips.difference(&to.vips).copied().collect();
        let mut requests = elements_requests(Change::Add, Addresses::Vips, &added);
        requests.extend(elements_requests(Change::Delete, Addresses::Vips, &removed));
        if self.devices != to.devices {
            for chain in to.chains() {
                requests.push(Table(TABLE).delete_chain(&chain.name));
                requests.extend(chain_requests(&chain));
            }
        }
        requests
    }
}

/// The requests that make a chain and its rules.
fn chain_requests(chain: &Chain) -> Vec<Request> {
    let table = Table(TABLE);
    let rules = rules_of(chain.hook);
    let rules = rules
        .iter()
        .map(|rule| table.append_rule(&chain.name, rule));
    std::iter::once(table.create_chain(chain))
        .chain(rules)
        .collect()
}

/// What becomes of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Add,
    Delete,
}

fn elements_requests(change: Change, which: Addresses, of: &BTreeSet<IpAddr>) -> Vec<Request> {
    let elements = of.iter().map(|address| (*address, None));
    requests_by_set(which, elements, |set, chunk| match change {
        Change::Add => Table(TABLE).add_elements(set, chunk),
        Change::Delete => Table(TABLE).delete_elements(set, chunk),
    })
}

/// Calls `request` for each IP version, in chunks.
fn requests_by_set(
    which: Addresses,
    elements: impl Iterator<Item = (IpAddr, Option<std::time::Duration>)>,
    mut request: impl FnMut(&'static str, &[Element]) -> Request,
) -> Vec<Request> {
    let (v4, v6): (Vec<_>, Vec<_>) = elements.partition(|(address, _)| address.is_ipv4());
    let mut requests = vec![];
    for family in [v4, v6] {
        for chunk in family.chunks(CHUNK) {
            let Some((address, _)) = chunk.first() else {
                continue;
            };
            let elements: Vec<Element> = chunk
                .iter()
                .map(|(address, lasts)| (key_of(*address), *lasts))
                .collect();
            requests.push(request(which.set_for(*address), &elements));
        }
    }
    requests
}

/// Marks the moment, for `lasts`: a transaction that consumes the mark fails once it is gone.
pub fn mark_moment(lasts: std::time::Duration) -> Vec<Request> {
    vec![
        Table(TABLE).flush_set(MOMENT),
        Table(TABLE).add_elements(MOMENT, &[(NOW.to_vec(), Some(lasts))]),
    ]
}

/// Puts addresses into a timed set for `lasts` from now, whether they are in it already or not, provided that the moment is
/// still marked. Adding what is there does not put its end off, and deleting what is not there fails: so each is added, deleted and
/// added. The mark is consumed last, after the kernel has stamped the elements.
pub fn permit(
    which: Addresses,
    addresses: &BTreeSet<IpAddr>,
    lasts: std::time::Duration,
) -> Vec<Request> {
    let table = Table(TABLE);
    let timed = || addresses.iter().map(move |address| (*address, Some(lasts)));
    let bare = || addresses.iter().map(|address| (*address, None));
    let mut requests = requests_by_set(which, timed(), |set, chunk| table.add_elements(set, chunk));
    requests.extend(requests_by_set(which, bare(), |set, chunk| {
        table.delete_elements(set, chunk)
    }));
    requests.extend(requests_by_set(which, timed(), |set, chunk| {
        table.add_elements(set, chunk)
    }));
    requests.push(table.delete_elements(MOMENT, &[(NOW.to_vec(), None)]));
    requests
}

/// Takes addresses out of a timed set, whether they are in it or not.
pub fn forbid(which: Addresses, addresses: &BTreeSet<IpAddr>) -> Vec<Request> {
    let table = Table(TABLE);
    let brief = Some(std::time::Duration::from_millis(1)); // deleted in the same transaction
    let timed = addresses.iter().map(|address| (*address, brief));
    let bare = addresses.iter().map(|address| (*address, None));
    let mut requests = requests_by_set(which, timed, |set, chunk| table.add_elements(set, chunk));
    requests.extend(requests_by_set(which, bare, |set, chunk| {
        table.delete_elements(set, chunk)
    }));
    requests
}

/// Lets VIPs be served for `lasts` from now: frames to them are taken from these Ethernet addresses, but not if one of the
/// members' own addresses is their source.
pub fn serve(
    vips: &BTreeSet<IpAddr>,
    macs: &BTreeSet<[u8; 6]>,
    members: &BTreeSet<IpAddr>,
    lasts: std::time::Duration,
) -> Vec<Request> {
    let table = Table(TABLE);
    let mut requests = vec![];
    for (which, addresses) in [(Addresses::Serving, vips), (Addresses::Members, members)] {
        let timed = || addresses.iter().map(|address| (*address, Some(lasts)));
        let bare = addresses.iter().map(|address| (*address, None));
        requests.extend(requests_by_set(which, timed(), |set, chunk| {
            table.add_elements(set, chunk)
        }));
        requests.extend(requests_by_set(which, bare, |set, chunk| {
            table.delete_elements(set, chunk)
        }));
        requests.extend(requests_by_set(which, timed(), |set, chunk| {
            table.add_elements(set, chunk)
        }));
    }
    let timed: Vec<Element> = macs.iter().map(|mac| (mac.to_vec(), Some(lasts))).collect();
    let bare: Vec<Element> = macs.iter().map(|mac| (mac.to_vec(), None)).collect();
    for (timed, bare) in timed.chunks(CHUNK).zip(bare.chunks(CHUNK)) {
        requests.push(table.add_elements("members", timed));
        requests.push(table.delete_elements("members", bare));
        requests.push(table.add_elements("members", timed));
    }
    requests
}

/// A place in a frame where an address is.
fn load(base: Base, offset: u32, length: u32) -> Step {
    Step::Load {
        base,
        offset,
        length,
    }
}

fn in_set(name: &str) -> Step {
    Step::In(name.to_owned())
}

fn not_in_set(name: &str) -> Step {
    Step::NotIn(name.to_owned())
}

fn protocol(ethertype: [u8; 2]) -> [Step; 2] {
    [Step::LoadProtocol, Step::Is(ethertype.to_vec())]
}

/// Neighbour discovery messages of one type.
fn discovery(message_type: u8) -> Vec<Step> {
    let mut steps = protocol(IPV6).to_vec();
    steps.extend([
        Step::LoadUpperProtocol,
        Step::Is(vec![ICMPV6]),
        load(Base::Transport, 0, 1),
        Step::Is(vec![message_type]),
    ]);
    steps
}

/// What `steps` match is dropped if the address at `place` is a VIP that this node does not hold.
fn drop_unless_held(mut steps: Vec<Step>, place: &Step, version: char) -> Vec<Step> {
    steps.extend([
        place.clone(),
        in_set(&format!("vips{version}")),
        place.clone(),
        not_in_set(&format!("holding{version}")),
        Step::Drop,
    ]);
    steps
}

fn accept_if_in(ethertype: [u8; 2], place: &Step, set: &str) -> Vec<Step> {
    let mut steps = protocol(ethertype).to_vec();
    steps.extend([place.clone(), in_set(set), Step::Accept]);
    steps
}

fn drop_if_in(ethertype: [u8; 2], place: &Step, set: &str) -> Vec<Step> {
    let mut steps = protocol(ethertype).to_vec();
    steps.extend([place.clone(), in_set(set), Step::Drop]);
    steps
}

/// The rules of a chain, in order.
pub fn rules_of(hook: Hook) -> Vec<Vec<Step>> {
    match hook {
        Hook::Ingress => ingress_rules(),
        Hook::Egress => egress_rules(),
    }
}

fn ingress_rules() -> Vec<Vec<Step>> {
    // RFC 826, for Ethernet and IPv4.
    let (arp_sender, arp_target) = (load(Base::Network, 14, 4), load(Base::Network, 24, 4));
    let discovery_target = load(Base::Transport, 8, 16); // RFC 4861 section 4.3
    // The holder's own announcements (sender and target are the VIP) pass: the kernel learns from them and never answers.
    let mut question = protocol(ARP).to_vec();
    question.extend([arp_sender, not_in_set("vips4")]);
    let mut rules = vec![
        drop_unless_held(question, &arp_target, '4'),
        drop_unless_held(discovery(SOLICITATION), &discovery_target, '6'),
    ];
    for (ethertype, version, source, destination) in [
        (
            IPV4,
            '4',
            load(Base::Network, 12, 4),
            load(Base::Network, 16, 4),
        ),
        (
            IPV6,
            '6',
            load(Base::Network, 8, 16),
            load(Base::Network, 24, 16),
        ),
    ] {
        let named = |name: &str| format!("{name}{version}");
        rules.push(accept_if_in(ethertype, &destination, &named("holding")));
        let mut from_member = protocol(ethertype).to_vec();
        from_member.extend([
            destination.clone(),
            in_set(&named("serving")),
            load(Base::Link, 6, 6),
            in_set("members"),
            source,
            not_in_set(&named("members")),
            Step::Accept,
        ]);
        rules.push(from_member);
        rules.push(drop_if_in(ethertype, &destination, &named("vips")));
    }
    rules
}

fn egress_rules() -> Vec<Vec<Step>> {
    let arp_sender = load(Base::Network, 14, 4);
    let discovery_target = load(Base::Transport, 8, 16);
    let ipv6_source = load(Base::Network, 8, 16);
    let mut rules = vec![
        drop_unless_held(protocol(ARP).to_vec(), &arp_sender, '4'),
        drop_unless_held(discovery(ADVERTISEMENT), &discovery_target, '6'),
        // A solicitation from a VIP teaches its receiver where the VIP is, like an advertisement.
        drop_unless_held(discovery(SOLICITATION), &ipv6_source, '6'),
    ];
    for (ethertype, version, source) in [
        (IPV4, '4', load(Base::Network, 12, 4)),
        (IPV6, '6', ipv6_source),
    ] {
        let named = |name: &str| format!("{name}{version}");
        rules.push(accept_if_in(ethertype, &source, &named("holding")));
        rules.push(accept_if_in(ethertype, &source, &named("serving")));
        rules.push(drop_if_in(ethertype, &source, &named("vips")));
    }
    rules
}

#[cfg(test)]
mod tests;
