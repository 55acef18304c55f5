//! Reading a site document. All faults are found in one reading, each naming its key; unknown keys are refused.

use std::{collections::BTreeMap, net::IpAddr};

use toml::Table;

use super::{MANUAL, Site};
use crate::{
    config::{Fault, reader::Section, units::parse_duration},
    model::{
        forwarder::Forwarder,
        health::{HealthCheck, Probe},
        label::Label,
        listener::{ListenAddress, Listener},
        name::Name,
        network::Network,
        pool::{Backend, BackendState, Policy, Pool},
        quoted::quoted,
        rrset::Rrset,
        snapshot::DnsPolicy,
        vip::Vip,
    },
    state::{check, limits, outcome::Refusal, rules},
    zonefile::{self, Loader, include},
};

/// Largest document, in octets.
pub const MAX_DOCUMENT: usize = 512 << 20;

/// Longest wait for an upstream of a forwarder that states none.
const UPSTREAM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

impl Site {
    /// Reads a document that stands alone: without `file` keys and `$INCLUDE`, which `bundle` resolves.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let site = read(text, &mut faults);
        match site {
            Some(site) if faults.is_empty() => Ok(site),
            _ => Err(faults),
        }
    }
}

/// The document as a TOML table; none, with the fault noted, when it is no TOML.
pub(super) fn table(text: &str, faults: &mut Vec<Fault>) -> Option<Table> {
    let problem = if text.len() > MAX_DOCUMENT {
        format!("the document is longer than {MAX_DOCUMENT} octets")
    } else {
        match text.parse::<Table>() {
            Ok(table) => return Some(table),
            Err(error) => error.to_string().trim_end().to_owned(),
        }
    };
    faults.push(Fault {
        key: String::new(),
        problem,
    });
    None
}

fn read(text: &str, faults: &mut Vec<Fault>) -> Option<Site> {
    let mut root = Section::root(table(text, faults)?, faults, MANUAL);
    let dns = dns_policy(root.section("dns"));
    let zones = root.each("zone", "name", zone);
    let forwarders = root.each("forwarder", "suffix", forwarder);
    let pools = root.each("pool", "name", pool);
    let listeners = root.each("listener", "name", listener);
    let vips = root.each("vip", "address", vip);
    root.finish();
    let site = Site {
        dns,
        zones: unique("zone", zones, faults),
        forwarders: unique(
            "forwarder",
            forwarders.into_iter().map(|f| (f.suffix.clone(), f)),
            faults,
        ),
        pools: unique(
            "pool",
            pools.into_iter().map(|p| (p.name.clone(), p)),
            faults,
        ),
        listeners: unique(
            "listener",
            listeners.into_iter().map(|l| (l.name.clone(), l)),
            faults,
        ),
        vips: unique("vip", vips.into_iter().map(|v| (v.address, v)), faults),
    };
    if faults.is_empty() {
        check_values(&site, faults);
        check_together(&site, faults);
    }
    Some(site)
}

fn unique<K: Ord + std::fmt::Display, V>(
    kind: &str,
    values: impl IntoIterator<Item = (K, V)>,
    faults: &mut Vec<Fault>,
) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    for (key, value) in values {
        if map.contains_key(&key) {
            faults.push(Fault {
                key: format!("{kind}[{key}]"),
                problem: "is given twice".into(),
            });
        }
        map.insert(key, value);
    }
    map
}

/// The limits and rules that also hold for commands.
fn check_values(site: &Site, faults: &mut Vec<Fault>) {
    let zones = site.zones.iter().map(|(apex, records)| {
        check::zones::contents(apex, records)?;
        rules::whole(apex, &rules::gather(apex, records)?)
    });
    let forwarders = site.forwarders.values().map(check::balancing::forwarder);
    let pools = site.pools.values().map(check::balancing::pool);
    let listeners = site.listeners.values().map(check::balancing::listener);
    let vips = site.vips.values().map(check::balancing::vip);
    let dns = [check::balancing::dns_policy(&site.dns)];
    let all = zones
        .chain(forwarders)
        .chain(pools)
        .chain(listeners)
        .chain(vips)
        .chain(dns);
    faults.extend(all.filter_map(Result::err).map(fault_of));
}

/// What objects say of one another.
fn check_together(site: &Site, faults: &mut Vec<Fault>) {
    let listeners: Vec<&Listener> = site.listeners.values().collect();
    for (at, listener) in listeners.iter().enumerate() {
        let mut fault = |problem| {
            faults.push(Fault {
                key: format!("listener[{}]", listener.name),
                problem,
            });
        };
        if !site.pools.contains_key(&listener.pool) {
            fault(format!("its pool {} is not in the document", listener.pool));
        }
        if let Some(other) = listeners
            .iter()
            .take(at)
            .find(|other| listener.clashes_with(other))
        {
            fault(format!(
                "listener {} has port {} already",
                other.name, other.port
            ));
        }
    }
}

fn fault_of(refusal: Refusal) -> Fault {
    let problem = match refusal.hint.is_empty() {
        true => refusal.problem,
        false => format!("{}: {}", refusal.problem, refusal.hint),
    };
    Fault {
        key: refusal.object,
        problem,
    }
}

fn dns_policy(mut section: Section<'_>) -> DnsPolicy {
    let policy = match section.has("recursion_allowed") {
        true => DnsPolicy {
            recursion_allowed: section
                .list::<Network>("recursion_allowed", "a network such as \"10.0.0.0/8\""),
        },
        false => DnsPolicy::default(),
    };
    section.finish();
    policy
}

fn zone(mut section: Section<'_>) -> Option<(Name, Vec<(Name, Rrset)>)> {
    let name = section.required_text("name", None, "the apex of the zone", |t| {
        t.parse().map(Some::<Name>)
    });
    if section.has("file") {
        section.fault(
            "file",
            "this document came without its files: put the text under `records`",
        );
        section.optional_text("file", |_| Ok::<_, String>(()));
    }
    let text = section.required_text(
        "records",
        String::new(),
        "the records as a master file",
        |t| Ok::<_, String>(t.to_owned()),
    );
    let records = match name.as_ref().filter(|_| !text.is_empty()) {
        Some(apex) => records(
            &mut section,
            apex,
            text.as_bytes(),
            "records",
            &mut include::Nothing,
        ),
        None => None,
    };
    section.finish();
    name.zip(records)
}

/// The records of a master file by owner and type; faults are noted under `key`.
pub(super) fn records(
    section: &mut Section<'_>,
    apex: &Name,
    text: &[u8],
    key: &str,
    loader: &mut dyn Loader,
) -> Option<Vec<(Name, Rrset)>> {
    match zonefile::parse(text, apex, key, loader) {
        Ok(parsed) => {
            let mut records = parsed.records;
            records.sort_by(|(a, x), (b, y)| (a, x.rtype()).cmp(&(b, y.rtype())));
            Some(records)
        }
        Err(found) => {
            for fault in found.list {
                let problem = match *fault.place.file == *key {
                    true => format!("line {}: {}", fault.place.line, fault.problem),
                    false => fault.to_string(),
                };
                section.fault(key, problem);
            }
            None
        }
    }
}

fn forwarder(mut section: Section<'_>) -> Option<Forwarder> {
    let suffix = section.required_text("suffix", None, "a domain name, or \".\" for all", |t| {
        t.parse().map(Some::<Name>)
    });
    let upstreams = section.list("upstreams", "an address and port such as \"192.0.2.53:53\"");
    let timeout = section.text("timeout", UPSTREAM_TIMEOUT, parse_duration);
    section.finish();
    Some(Forwarder {
        suffix: suffix?,
        upstreams,
        timeout,
    })
}

fn pool(mut section: Section<'_>) -> Option<Pool> {
    let name = label(&mut section, "name");
    let defaults = name.clone().map(Pool::new);
    let policy = section.text("policy", Policy::default(), policy_of);
    let (timeout, retries) = defaults.as_ref().map_or(Default::default(), |d| {
        (d.connect_timeout, d.connect_retries)
    });
    let connect_timeout = section.text("connect_timeout", timeout, parse_duration);
    let connect_retries = section.number("connect_retries", retries, 0..=limits::CONNECT_RETRIES);
    let health_check = health_check(&mut section);
    let mut backends = section.each("backend", "name", backend);
    backends.sort_by(|a, b| a.name.cmp(&b.name));
    section.finish();
    Some(Pool {
        name: name?,
        policy,
        backends,
        health_check,
        connect_timeout,
        connect_retries,
    })
}

/// `health_check = "none"`, a table, or nothing at all for the default check.
fn health_check(section: &mut Section<'_>) -> Option<HealthCheck> {
    if section.is_text("health_check", "none") {
        section.optional_text("health_check", |_| Ok::<_, String>(()));
        return None;
    }
    let defaults = HealthCheck::default();
    let mut section = section.section("health_check");
    let probe = section.text("probe", Probe::default(), |text| match text {
        "tcp-connect" => Ok(Probe::TcpConnect),
        other => Err(format!(
            "{other} is no probe: expected \"tcp-connect\"",
            other = quoted(other)
        )),
    });
    let check = HealthCheck {
        probe,
        interval: section.text("interval", defaults.interval, parse_duration),
        down_interval: section.text("down_interval", defaults.down_interval, parse_duration),
        timeout: section.text("timeout", defaults.timeout, parse_duration),
        rise: section.number("rise", defaults.rise, 1..=limits::HEALTH_COUNT),
        fall: section.number("fall", defaults.fall, 1..=limits::HEALTH_COUNT),
    };
    section.finish();
    Some(check)
}

fn backend(mut section: Section<'_>) -> Option<Backend> {
    let name = label(&mut section, "name");
    let expected = "an address and port such as \"192.0.2.10:80\"";
    let address = section.required_text("address", None, expected, |text| {
        text.parse()
            .map(Some)
            .map_err(|_| format!("{text} is not {expected}", text = quoted(text)))
    });
    let weight = section.number("weight", 1, 0..=limits::WEIGHT);
    let state = section.text("state", BackendState::default(), state_of);
    section.finish();
    Some(Backend {
        name: name?,
        address: address?,
        weight,
        state,
    })
}

fn listener(mut section: Section<'_>) -> Option<Listener> {
    let name = label(&mut section, "name");
    let address = section.text("address", ListenAddress::EveryNode, |text| {
        ip(text).map(ListenAddress::Address)
    });
    if !section.has("port") {
        section.fault("port", "missing: expected a port from 1 to 65535");
    }
    let port = section.number("port", 1, 1..=u16::MAX);
    let pool = label(&mut section, "pool");
    let defaults = name
        .zip(pool)
        .map(|(name, pool)| Listener::new(name, address, port, pool));
    let (idle, connections) = defaults
        .as_ref()
        .map_or(Default::default(), |d| (d.idle_timeout, d.max_connections));
    let idle_timeout = section.text("idle_timeout", idle, parse_duration);
    let max_connections = section.number("max_connections", connections, 1..=limits::CONNECTIONS);
    section.finish();
    Some(Listener {
        idle_timeout,
        max_connections,
        ..defaults?
    })
}

fn vip(mut section: Section<'_>) -> Option<Vip> {
    let address = section.required_text("address", None, "an IPv4 or IPv6 address", |t| {
        ip(t).map(Some)
    });
    let interface = section.text("interface", None, |t| t.parse().map(Some::<Label>));
    section.finish();
    Some(Vip {
        address: address?,
        interface: interface.or_else(|| "vip".parse().ok())?,
    })
}

fn label(section: &mut Section<'_>, key: &str) -> Option<Label> {
    let expected = "a name of a-z, 0-9, '-', '_' and '.'";
    section.required_text(key, None, expected, |t| t.parse().map(Some::<Label>))
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("{text} is no IPv4 or IPv6 address", text = quoted(text)))
}

/// The words for policies, in the order in which they are offered.
pub(super) const POLICIES: [(&str, Policy); 3] = [
    ("round-robin", Policy::RoundRobin),
    ("least-connections", Policy::LeastConnections),
    ("source-hash", Policy::SourceHash),
];

/// The words for states of backends.
pub(super) const STATES: [(&str, BackendState); 3] = [
    ("enabled", BackendState::Enabled),
    ("drain", BackendState::Drain),
    ("disabled", BackendState::Disabled),
];

fn policy_of(text: &str) -> Result<Policy, String> {
    word_of(text, &POLICIES, "policy")
}

fn state_of(text: &str) -> Result<BackendState, String> {
    word_of(text, &STATES, "state")
}

fn word_of<T: Copy>(text: &str, words: &[(&str, T)], what: &str) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!(
            "{text} is no {what}: expected {}",
            known.join(", "),
            text = quoted(text)
        )
    })
}
