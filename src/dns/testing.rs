//! Zones and messages for the tests of this module, written as people write them.

use std::sync::Arc;

use crate::model::{
    forwarder::Forwarder,
    name::{Name, NameKey},
    rrset::{RecordType, Rrset},
    serial::Serial,
    snapshot::Snapshot,
    zone::{Node, Zone},
};

/// A name that is known to be one.
pub fn name(text: &str) -> Name {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Record data of the types that the tests use.
pub fn rdata(rtype: RecordType, words: &[&str]) -> Vec<u8> {
    let number = |text: &str| {
        text.parse::<u32>()
            .unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    let wire = |text: &str| name(text).as_wire().to_vec();
    let short = |text: &str| (number(text) as u16).to_be_bytes().to_vec();
    match rtype {
        RecordType::A => words[0]
            .parse::<std::net::Ipv4Addr>()
            .unwrap()
            .octets()
            .to_vec(),
        RecordType::AAAA => words[0]
            .parse::<std::net::Ipv6Addr>()
            .unwrap()
            .octets()
            .to_vec(),
        RecordType::NS | RecordType::CNAME | RecordType::DNAME | RecordType::PTR => wire(words[0]),
        RecordType::MX => [short(words[0]), wire(words[1])].concat(),
        RecordType::SRV => {
            let numbers = words[..3].iter().flat_map(|word| short(word));
            numbers.chain(wire(words[3])).collect()
        }
        RecordType::SVCB | RecordType::HTTPS => [short(words[0]), wire(words[1])].concat(),
        RecordType::SOA => {
            let numbers = words[2..7]
                .iter()
                .flat_map(|word| number(word).to_be_bytes());
            [wire(words[0]), wire(words[1])]
                .into_iter()
                .flatten()
                .chain(numbers)
                .collect()
        }
        RecordType::TXT => words
            .iter()
            .map(|word| word.trim_matches('"').as_bytes())
            .flat_map(|text| std::iter::once(text.len() as u8).chain(text.iter().copied()))
            .collect(),
        _ => words.concat().into_bytes(),
    }
}

/// A zone of lines `owner ttl IN type data...`; the owner of its SOA is the apex.
pub fn zone(text: &str) -> Zone {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| !words.is_empty())
        .collect();
    let soa = lines
        .iter()
        .find(|words| words[3] == "SOA")
        .expect("an SOA");
    let apex = name(soa[0]);
    let mut sets = std::collections::BTreeMap::<_, (u32, Vec<Vec<u8>>)>::new();
    for words in &lines {
        let rtype = RecordType::parse(words[3]).unwrap_or_else(|| panic!("{words:?}"));
        let entry = sets.entry((name(words[0]), rtype)).or_default();
        entry.0 = words[1].parse().unwrap_or_else(|_| panic!("{words:?}"));
        entry.1.push(rdata(rtype, &words[4..]));
    }
    let mut zone = Zone {
        apex: apex.clone(),
        serial: Serial(1),
        revision: 1,
        nodes: Default::default(),
        record_count: 0,
        data_bytes: 0,
        content_hash: [0; 16],
    };
    for ((owner, rtype), (ttl, data)) in sets {
        let key = NameKey::of(&owner, &apex).unwrap_or_else(|| panic!("{owner} is outside"));
        let set = Rrset::new(rtype, ttl, data).expect("records");
        let node = match zone.nodes.get(&key) {
            Some(node) => node.with(set),
            None => Node::new([set]).expect("a set"),
        };
        zone.nodes.insert(key, node);
    }
    zone
}

/// A snapshot of zones.
pub fn snapshot(zones: &[&str]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for text in zones {
        let zone = zone(text);
        snapshot.zones.insert(zone.apex.clone(), Arc::new(zone));
    }
    snapshot
}

/// `snapshot` with every zone at `revision`.
pub fn at_revision(mut snapshot: Snapshot, revision: u64) -> Snapshot {
    for (apex, zone) in snapshot.zones.clone() {
        let zone = Zone {
            revision,
            ..Zone::clone(&zone)
        };
        snapshot.zones.insert(apex, Arc::new(zone));
    }
    snapshot
}

/// A forwarder for `suffix` in `snapshot`.
pub fn add_forwarder(snapshot: &mut Snapshot, suffix: &str, upstreams: &[std::net::SocketAddr]) {
    let forwarder = Forwarder {
        suffix: name(suffix),
        upstreams: upstreams.to_vec(),
        timeout: std::time::Duration::from_millis(300),
    };
    snapshot
        .forwarders
        .insert(name(suffix), Arc::new(forwarder));
}

/// A query message with recursion desired or not, with EDNS or not.
pub fn query(id: u16, qname: &str, rtype: RecordType, flags: u16, payload: Option<u16>) -> Vec<u8> {
    let mut message = Vec::new();
    for word in [id, flags, 1, 0, 0, u16::from(payload.is_some())] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(name(qname).as_wire());
    message.extend_from_slice(&rtype.0.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    if let Some(payload) = payload {
        message.extend_from_slice(&[0, 0, 41]);
        message.extend_from_slice(&payload.to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

/// Records as lines `owner ttl type data`, sorted; names in data are written out for the types of `rdata`.
pub fn lines(records: &[super::message::record::Record]) -> Vec<String> {
    let mut lines: Vec<String> = records
        .iter()
        .map(|r| line(&r.owner, r.rtype, r.ttl, &r.data))
        .collect();
    lines.sort();
    lines
}

pub fn line(owner: &[u8], rtype: RecordType, ttl: u32, data: &[u8]) -> String {
    let owner = Name::from_wire(owner).expect("an owner");
    format!("{owner} {ttl} IN {rtype} {}", data_text(rtype, data))
}

fn data_text(rtype: RecordType, data: &[u8]) -> String {
    let wire = |data: &[u8]| Name::from_wire(data).expect("a name").to_string();
    let short = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    match rtype {
        RecordType::A => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(data).unwrap()).to_string(),
        RecordType::AAAA => {
            std::net::Ipv6Addr::from(<[u8; 16]>::try_from(data).unwrap()).to_string()
        }
        RecordType::NS | RecordType::CNAME | RecordType::DNAME | RecordType::PTR => wire(data),
        RecordType::MX => format!("{} {}", short(0), wire(&data[2..])),
        RecordType::SRV => {
            format!(
                "{} {} {} {}",
                short(0),
                short(2),
                short(4),
                wire(&data[6..])
            )
        }
        RecordType::SOA => {
            let (first, used) = Name::parse_wire(data).unwrap();
            let (second, more) = Name::parse_wire(&data[used..]).unwrap();
            let numbers = data[used + more..].chunks(4);
            let numbers: Vec<String> = numbers
                .map(|n| u32::from_be_bytes(n.try_into().unwrap()).to_string())
                .collect();
            format!("{first} {second} {}", numbers.join(" "))
        }
        RecordType::TXT => {
            let mut rest = data;
            let mut texts = Vec::new();
            while let Some((&length, tail)) = rest.split_first() {
                let (text, tail) = tail.split_at(usize::from(length));
                texts.push(format!("\"{}\"", text.escape_ascii()));
                rest = tail;
            }
            texts.join(" ")
        }
        _ => data_encoding::HEXLOWER.encode(data),
    }
}
