//! What other hosts on a segment say of addresses, and what it means: whether a foreign host uses a VIP too (RFC 5227 section 2.4,
//! and its equal for IPv6). Frames and instants in, verdicts out.
//!
//! A host speaks for an address if it is the sender of an ARP packet, or if it advertises it or solicits from it (RFC 4861). One that
//! probes for an address (sender 0.0.0.0 or `::`) does not use it yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::{
    announce::{Mac, ethernet_header, icmpv6_checksum},
    machine::Target,
};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const BROADCAST: Mac = [0xff; 6];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Of options that carry a link-layer address (RFC 4861 section 4.6.1).
const SOURCE_OPTION: u8 = 1;
const TARGET_OPTION: u8 = 2;

/// A host speaks for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    pub address: IpAddr,
    pub mac: Mac,
}

/// Who speaks for which address in an Ethernet frame, if anybody does.
pub fn spoken(frame: &[u8]) -> Option<Spoken> {
    match u16::from_be_bytes(array(frame, 12)?) {
        ETHERTYPE_ARP => spoken_in_arp(frame),
        ETHERTYPE_IPV6 => spoken_in_discovery(frame),
        _ => None,
    }
}

/// RFC 826, for Ethernet and IPv4.
fn spoken_in_arp(frame: &[u8]) -> Option<Spoken> {
    if frame.get(14..20)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let address = Ipv4Addr::from(array::<4>(frame, 28)?);
    (!address.is_unspecified()).then_some(Spoken {
        address: address.into(),
        mac: array(frame, 22)?,
    })
}

/// RFC 4861 sections 4.3 and 4.4; what its section 7.1 has ignored is ignored.
fn spoken_in_discovery(frame: &[u8]) -> Option<Spoken> {
    const BODY: usize = 54;
    let [next_header, hop_limit] = array(frame, 20)?;
    let length = usize::from(u16::from_be_bytes(array(frame, 18)?));
    let body = frame.get(BODY..BODY.checked_add(length)?)?;
    let source = Ipv6Addr::from(array::<16>(frame, 22)?);
    let destination = Ipv6Addr::from(array::<16>(frame, 38)?);
    if next_header != ICMPV6 || hop_limit != 255 || icmpv6_checksum(source, destination, body) != 0
    {
        return None;
    }
    let sender: Mac = array(frame, 6)?;
    let target = Ipv6Addr::from(array::<16>(body, 8)?);
    let (address, option) = match *body.first()? {
        ADVERTISEMENT => (target, TARGET_OPTION),
        SOLICITATION if !source.is_unspecified() => (source, SOURCE_OPTION),
        _ => return None,
    };
    let mac = link_layer_option(body.get(24..)?, option).unwrap_or(sender);
    Some(Spoken {
        address: address.into(),
        mac,
    })
}

fn link_layer_option(mut options: &[u8], wanted: u8) -> Option<Mac> {
    loop {
        let [kind, units] = array(options, 0)?;
        let length = usize::from(units) * 8;
        if length == 0 {
            return None;
        }
        if kind == wanted {
            return array(options, 2);
        }
        options = options.get(length..)?;
    }
}

fn array<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..)?.first_chunk().copied()
}

/// The frame that asks who has `address`, and teaches nobody anything: an ARP probe (RFC 5227 section 2.1.1), or a solicitation from
/// the unspecified address (RFC 4862 section 5.4.2).
pub fn question(address: IpAddr, mac: Mac) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => arp_probe(address, mac),
        IpAddr::V6(address) => solicitation(address, mac),
    }
}

fn arp_probe(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = ethernet_header(BROADCAST, mac, ETHERTYPE_ARP);
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&mac);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&address.octets());
    frame.resize(60, 0); // smallest Ethernet frame without its check sequence
    frame
}

fn solicitation(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut body = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&address.octets());
    let checksum = icmpv6_checksum(Ipv6Addr::UNSPECIFIED, group, &body);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = ethernet_header([0x33, 0x33, 0xff, a, b, c], mac, ETHERTYPE_IPV6);
    frame.extend_from_slice(&[0x60, 0, 0, 0, 0, 24, ICMPV6, 255]);
    frame.extend_from_slice(&Ipv6Addr::UNSPECIFIED.octets());
    frame.extend_from_slice(&group.octets());
    frame.extend_from_slice(&body);
    frame
}

/// At most one defence in this time (DEFEND_INTERVAL of RFC 5227 section 1.1).
pub const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

/// Hosts that use VIPs and are no members.
#[derive(Debug)]
pub struct Conflicts {
    /// A member that got another Ethernet address is known by it within this time: before, there is no alarm.
    confirm: Duration,
    /// An alarm ends when its host was not heard for so long.
    lasts: Duration,
    known: BTreeMap<Target, Conflict>,
}

#[derive(Clone, Copy, Debug)]
struct Conflict {
    mac: Mac,
    since: Instant,
    heard: Instant,
    defended: Option<Instant>,
}

impl Conflicts {
    pub fn new(confirm: Duration, lasts: Duration) -> Self {
        Self {
            confirm,
            lasts,
            known: BTreeMap::new(),
        }
    }

    /// A host that is neither this node nor a member spoke for a VIP. Whether that is to be defended, by one announcement.
    pub fn hear(&mut self, target: &Target, mac: Mac, held: bool, now: Instant) -> bool {
        let conflict = self.known.entry(target.clone()).or_insert(Conflict {
            mac,
            since: now,
            heard: now,
            defended: None,
        });
        (conflict.mac, conflict.heard) = (mac, now);
        let lately = conflict
            .defended
            .is_some_and(|at| now < at + DEFEND_INTERVAL);
        if held && !lately {
            conflict.defended = Some(now);
        }
        held && !lately
    }

    /// Forgets what was not heard for long, and what turned out to be a member.
    pub fn forget(
        &mut self,
        targets: impl Fn(&Target) -> bool,
        members: &BTreeSet<Mac>,
        now: Instant,
    ) {
        let lasts = self.lasts;
        self.known.retain(|target, conflict| {
            targets(target) && !members.contains(&conflict.mac) && now < conflict.heard + lasts
        });
    }

    /// Every VIP with a conflict, whether it raises an alarm yet or not.
    pub fn targets(&self) -> BTreeSet<Target> {
        self.known.keys().cloned().collect()
    }

    /// What needs a person, and the Ethernet address of the host.
    pub fn alarms(&self, now: Instant) -> BTreeMap<Target, Mac> {
        let confirmed = |conflict: &Conflict| now >= conflict.since + self.confirm;
        self.known
            .iter()
            .filter(|(_, conflict)| confirmed(conflict))
            .map(|(target, conflict)| (target.clone(), conflict.mac))
            .collect()
    }
}

/// `02:00:5e:10:00:01`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vip::announce::announcement;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];
    const CONFIRM: Duration = Duration::from_secs(2);
    const LASTS: Duration = Duration::from_secs(30);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn target() -> Target {
        Target {
            address: ip("192.0.2.10"),
            interface: "vip".parse().unwrap(),
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn announcements_speak_for_their_address_and_questions_for_none() {
        for address in ["192.0.2.10", "2001:db8::10"].map(ip) {
            let mac = MAC;
            let expected = Some(Spoken { address, mac });
            assert_eq!(spoken(&announcement(address, MAC)), expected);
            assert_eq!(spoken(&question(address, MAC)), None);
        }
    }

    #[test]
    fn a_question_is_what_the_standards_say() {
        let probe = question(ip("192.0.2.10"), MAC);
        let head = [&[0xff; 6][..], &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC].concat();
        let rest = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10];
        assert_eq!(probe, [&head[..], &rest, &[0; 18]].concat());
        let solicitation = question(ip("2001:db8::12:3456"), MAC);
        assert_eq!(solicitation[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(solicitation[22..38], [0; 16]);
        assert_eq!(solicitation[54], SOLICITATION);
        let group = Ipv6Addr::from(array::<16>(&solicitation, 38).unwrap());
        assert_eq!(group, ip("ff02::1:ff12:3456"));
        let sum = icmpv6_checksum(Ipv6Addr::UNSPECIFIED, group, &solicitation[54..]);
        assert_eq!(sum, 0);
    }

    #[test]
    fn a_reply_speaks_and_a_damaged_message_does_not() {
        let mut reply = announcement(ip("192.0.2.10"), MAC);
        reply[21] = 2;
        assert!(spoken(&reply).is_some());
        let advertisement = announcement(ip("2001:db8::10"), MAC);
        for at in [21, 40, 60, 70] {
            let mut damaged = advertisement.clone();
            damaged[at] ^= 1;
            assert_eq!(spoken(&damaged), None, "octet {at}");
        }
        let mut other = reply;
        other[15] = 6; // not Ethernet
        assert_eq!(spoken(&other), None);
    }

    #[test]
    fn a_conflict_is_defended_seldom_and_told_until_it_was_not_heard_for_long() {
        let start = Instant::now();
        let mut conflicts = Conflicts::new(CONFIRM, LASTS);
        // (heard at, held, defended)
        let heard = [
            (0, false, false),
            (1, true, true),
            (5, true, false),
            (10, true, false),
            (11, true, true),
            (12, false, false),
        ];
        for (at, held, defended) in heard {
            let seen = conflicts.hear(&target(), MAC, held, start + s(at));
            assert_eq!(seen, defended, "at {at}");
        }
        let all = |_: &Target| true;
        for (at, told) in [(0, false), (1, false), (2, true), (41, true), (42, false)] {
            conflicts.forget(all, &BTreeSet::new(), start + s(at));
            let alarms = conflicts.alarms(start + s(at));
            assert_eq!(alarms.get(&target()), told.then_some(&MAC), "at {at}");
        }
    }

    #[test]
    fn a_member_and_a_vip_that_is_gone_are_no_conflict() {
        let now = Instant::now();
        let mut conflicts = Conflicts::new(CONFIRM, LASTS);
        conflicts.hear(&target(), MAC, true, now);
        conflicts.forget(|_| true, &[MAC].into(), now);
        assert!(conflicts.alarms(now + CONFIRM).is_empty());
        conflicts.hear(&target(), MAC, true, now);
        conflicts.forget(|_| false, &BTreeSet::new(), now);
        assert!(conflicts.alarms(now + CONFIRM).is_empty());
    }

    proptest! {
        /// Whatever arrives, it is read without a panic.
        #[test]
        fn any_frame_is_read(kind in prop::sample::select(vec![[8u8, 6], [0x86, 0xdd]]), octets in prop::collection::vec(any::<u8>(), 0..120)) {
            let frame = [&[0; 12][..], &kind, &octets].concat();
            let _ = spoken(&frame);
        }
    }
}
