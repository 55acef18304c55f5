//! Zones that every name server should have so that questions about private and special names do not leave the site
//! (RFC 6303, RFC 6761 section 6.3, RFC 7793). An own zone, or a forwarder for anything but the root, takes precedence.

use std::sync::{Arc, LazyLock};

use crate::model::{
    name::{Name, NameKey},
    rdata,
    rrset::{RecordType, Rrset},
    serial::Serial,
    snapshot::Snapshot,
    zone::{Node, Zone},
};

/// TTL and negative TTL, in seconds (RFC 6303 section 3).
const TTL: u32 = 10_800;

/// Empty zones below `in-addr.arpa.`, as reversed octets; ranges are in `ranges`.
const EMPTY_V4: [&str; 8] = [
    "0",
    "10",
    "254.169",
    "168.192",
    "2.0.192",
    "100.51.198",
    "113.0.203",
    "255.255.255.255",
];

/// Empty zones below `ip6.arpa.`: unique local, link-local and documentation addresses.
const EMPTY_V6: [&str; 6] = ["d.f", "8.e.f", "9.e.f", "a.e.f", "b.e.f", "8.b.d.0.1.0.0.2"];

/// The built-in zones, in a snapshot of their own.
pub(super) static BUILT_IN: LazyLock<Snapshot> = LazyLock::new(|| {
    let localhost = [
        ("@", RecordType::A, "127.0.0.1"),
        ("@", RecordType::AAAA, "::1"),
        // Names below it are loopback names too (RFC 6761 section 6.3).
        ("*", RecordType::A, "127.0.0.1"),
        ("*", RecordType::AAAA, "::1"),
    ];
    let nibbles = "0.".repeat(31);
    let mut zones = vec![
        zone("localhost.", &localhost),
        zone(
            "127.in-addr.arpa.",
            &[("1.0.0", RecordType::PTR, "localhost.")],
        ),
        zone(
            &format!("1.{nibbles}ip6.arpa."),
            &[("@", RecordType::PTR, "localhost.")],
        ),
        zone(&format!("0.{nibbles}ip6.arpa."), &[]),
    ];
    let v4 = EMPTY_V4
        .iter()
        .map(|octets| format!("{octets}.in-addr.arpa."));
    let v6 = EMPTY_V6
        .iter()
        .map(|nibbles| format!("{nibbles}.ip6.arpa."));
    let private = (16..=31).map(|octet| format!("{octet}.172.in-addr.arpa."));
    let shared = (64..=127).map(|octet| format!("{octet}.100.in-addr.arpa."));
    let empty = v4.chain(v6).chain(private).chain(shared);
    zones.extend(empty.map(|apex| zone(&apex, &[])));
    Snapshot {
        zones: zones
            .into_iter()
            .map(|zone| (zone.apex.clone(), Arc::new(zone)))
            .collect(),
        ..Snapshot::default()
    }
});

/// A zone written in this file: it is known to be sound.
fn zone(apex: &str, records: &[(&str, RecordType, &str)]) -> Zone {
    let apex: Name = apex.parse().expect("a name written in this file");
    let always = [
        (
            "@",
            RecordType::SOA,
            "@ nobody.invalid. 1 3600 1200 604800 10800",
        ),
        ("@", RecordType::NS, "@"),
    ];
    let mut zone = Zone {
        apex: apex.clone(),
        serial: Serial(1),
        revision: 0,
        nodes: Default::default(),
        record_count: 0,
        data_bytes: 0,
        content_hash: [0; 16],
    };
    for (owner, rtype, text) in always.iter().chain(records) {
        let owner = Name::parse(owner, &apex).expect("a name written in this file");
        let key = NameKey::of(&owner, &apex).expect("a name in the zone");
        let data = rdata::parse(*rtype, text, &apex).expect("data written in this file");
        let set = Rrset::new(*rtype, TTL, [data]).expect("one record");
        let node = match zone.nodes.get(&key) {
            Some(node) => node.with(set),
            None => Node::new([set]).expect("one set"),
        };
        zone.nodes.insert(key, node);
    }
    zone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_zone_is_whole() {
        assert_eq!(
            BUILT_IN.zones.len(),
            4 + EMPTY_V4.len() + EMPTY_V6.len() + 16 + 64
        );
        for zone in BUILT_IN.zones.values() {
            assert!(zone.soa().is_some(), "{}", zone.apex);
        }
    }
}
