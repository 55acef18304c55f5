//! What this node has to tell a person, the gravest first. What repeats is cut by its kind, so that it hides nothing else.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    model::few::first_few,
    vip::{
        announce::Mac,
        driver::VipStatus,
        neighbour::mac_text,
        occupied::{self, Occupied},
    },
};

/// The alarms of one node, by kind.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    /// What there is one of: consensus, the disk, the clocks, the certificate. All are told.
    pub(super) single: Vec<String>,
    /// VIPs that foreign hosts use too, by host. All are told, a line for each host.
    conflicts: BTreeMap<Mac, Vec<IpAddr>>,
    /// What keeps VIPs from being held or announced.
    vips: Vec<String>,
    /// Addresses on which listeners do not answer.
    pub(super) listeners: Vec<String>,
    /// Addresses on which DNS does not answer.
    pub(super) dns: Vec<String>,
}

impl Alarms {
    /// Adds what is wrong with VIPs. `occupied`: what somebody else has put on devices here, which is told before this node is to hold it.
    pub(super) fn look_at(&mut self, vips: &[VipStatus], occupied: &Occupied) {
        for vip in vips {
            if let Some(taken) = taken(vip, occupied) {
                self.vips.push(format!("VIP {}: {taken}", vip.address));
            }
            if let Some(host) = vip.conflict {
                self.conflicts.entry(host).or_default().push(vip.address);
            }
            if let Some(problem) = &vip.problem {
                self.vips.push(format!("VIP {}: {problem}", vip.address));
            }
        }
    }

    /// How many there are, each VIP and each address counted.
    pub(super) fn count(&self) -> usize {
        let conflicts: usize = self.conflicts.values().map(Vec::len).sum();
        let kinds = [&self.single, &self.vips, &self.listeners, &self.dns];
        conflicts + kinds.map(Vec::len).iter().sum::<usize>()
    }

    /// A line each, the gravest first.
    pub(super) fn told(self) -> Vec<String> {
        let Self {
            single,
            conflicts,
            vips,
            listeners,
            dns,
        } = self;
        let mut told = single;
        told.extend(conflicts.iter().map(|(host, vips)| conflict(*host, vips)));
        told.extend(few(vips, "VIPs have such a problem"));
        told.extend(few(listeners, "addresses of listeners do not answer"));
        told.extend(few(dns, "addresses of DNS do not answer"));
        told
    }
}

/// That somebody else has put the VIP on a device here, unless its own problem says so.
fn taken(vip: &VipStatus, occupied: &Occupied) -> Option<String> {
    let taken = occupied::taken(occupied, vip.address)?.to_string();
    (vip.problem.as_ref() != Some(&taken)).then_some(taken)
}

fn conflict(host: Mac, vips: &[IpAddr]) -> String {
    let host = mac_text(host);
    match vips {
        [vip] => format!(
            "VIP {vip}: the foreign host {host} uses this address: find it, and take the address from it"
        ),
        vips => {
            let vips: Vec<String> = vips.iter().map(ToString::to_string).collect();
            let vips = vips.join(", ");
            format!(
                "VIPs {vips}: the foreign host {host} uses these addresses: find it, and take the addresses from it"
            )
        }
    }
}

/// The first few of one kind, and what is true of how many more.
fn few(told: Vec<String>, what: &str) -> Vec<String> {
    first_few(told, |more| format!("{more} more {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vip::Fence;
    use crate::vip::interface::InterfaceError;

    fn vip(last: u8, problem: Option<&str>, conflict: Option<Mac>) -> VipStatus {
        VipStatus {
            address: [192, 0, 2, last].into(),
            interface: "vip".parse().expect("a label"),
            device: None,
            held: false,
            since: None,
            fence: Fence::None,
            problem: problem.map(str::to_owned),
            device_problem: None,
            fence_problem: None,
            announce_problem: None,
            add_problem: None,
            conflict,
        }
    }

    #[test]
    fn what_repeats_hides_nothing_else() {
        const CERTIFICATE: &str = "this node's certificate ended";
        let mut vips: Vec<_> = (1..=12).map(|n| vip(n, Some("it is down"), None)).collect();
        vips.push(vip(13, None, Some([2, 0, 0, 0, 0, 9])));
        let mut alarms = Alarms {
            listeners: (0..15).map(|n| format!("listener {n}")).collect(),
            dns: vec!["DNS on 192.0.2.1".into()],
            ..Alarms::default()
        };
        alarms.look_at(&vips, &Occupied::new());
        alarms.single.push(CERTIFICATE.into());
        assert_eq!(alarms.count(), 1 + 1 + 12 + 15 + 1);
        let told = alarms.told();
        assert_eq!(told[0], CERTIFICATE);
        assert!(
            told[1].starts_with("VIP 192.0.2.13: the foreign host 02:00:00:00:00:09 uses"),
            "{told:?}"
        );
        assert_eq!(told[2], "VIP 192.0.2.1: it is down");
        assert_eq!(told[12], "2 more VIPs have such a problem");
        assert_eq!(told[13], "listener 0");
        assert_eq!(told[23], "5 more addresses of listeners do not answer");
        assert_eq!(told[24..], ["DNS on 192.0.2.1"]);
    }

    #[test]
    fn a_vip_that_somebody_else_has_put_on_a_device_is_told_once_with_the_device() {
        let on = |last: u8| (IpAddr::from([192, 0, 2, last]), "eth1".to_owned());
        // The last one is no VIP.
        let occupied = Occupied::from([on(1), on(2), on(9)]);
        let taken = "is already on this node's device eth1, put there by somebody else";
        let told = |vips: &[VipStatus]| {
            let mut alarms = Alarms::default();
            alarms.look_at(vips, &occupied);
            assert_eq!(alarms.count(), alarms.vips.len());
            alarms.told()
        };
        let seen = told(&[vip(1, None, None), vip(3, None, None)]);
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].starts_with("VIP 192.0.2.1: 192.0.2.1 is"));
        assert!(seen[0].contains(taken), "{seen:?}");
        // What came of a try to hold it says the same.
        let tried = InterfaceError::Taken {
            address: [192, 0, 2, 2].into(),
            device: "eth1".into(),
        };
        let seen = told(&[vip(2, Some(&tried.to_string()), None)]);
        assert_eq!(seen.len(), 1, "{seen:?}");
        let seen = told(&[vip(2, Some("no carrier"), None)]);
        assert_eq!(seen.len(), 2, "{seen:?}");
    }

    #[test]
    fn every_address_that_a_foreign_host_uses_is_named() {
        let (one, other) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let host = |n| if n == 7 { other } else { one };
        let vips: Vec<_> = (1..=15).map(|n| vip(n, None, Some(host(n)))).collect();
        let mut alarms = Alarms::default();
        alarms.look_at(&vips, &Occupied::new());
        assert_eq!(alarms.count(), 15);
        let told = alarms.told();
        assert_eq!(told.len(), 2, "{told:?}");
        for n in 1..=15 {
            let (line, address) = (usize::from(n == 7), format!("192.0.2.{n}"));
            let named = told[line]
                .split([' ', ',', ':'])
                .any(|word| word == address);
            assert!(named, "{address}: {told:?}");
        }
    }
}
