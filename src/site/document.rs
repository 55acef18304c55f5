//! Reading a site document. All faults are found in one reading, each naming its key; unknown keys are refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use toml::Table;

use super::{
    MANUAL, Site,
    lines::{self, Lines},
};
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
    state::{
        check, limits,
        outcome::{Refusal, RefusalKind},
        rules,
    },
    zonefile::{self, Loader, Severity, include},
};

/// Largest document, in octets.
pub const MAX_DOCUMENT: usize = 512 << 20;

/// Longest wait for an upstream of a forwarder that states none.
const UPSTREAM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

impl Site {
    /// Reads a document that stands alone: without `file` keys and `$INCLUDE`, which `bundle` resolves.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        read(text, None).map(|(site, _)| site)
    }
}

/// Reads a document; `files` gives what it names, if anybody does. With the site come warnings, a line each.
///
/// # Errors
/// Everything that is wrong with it, in the order of its lines.
pub(super) fn read(
    text: &str,
    files: Option<&mut dyn Loader>,
) -> Result<(Site, Vec<String>), Vec<Fault>> {
    let (mut faults, mut warnings) = (Vec::new(), Vec::new());
    let site = read_all(text, files, &mut faults, &mut warnings);
    match site {
        Some(site) if faults.is_empty() => Ok((site, warnings)),
        _ => Err(Lines::of(text).put(faults)),
    }
}

/// The document as a TOML table; none, with the faults noted, when it is no TOML.
pub(super) fn table(text: &str, faults: &mut Vec<Fault>) -> Option<Table> {
    if text.len() > MAX_DOCUMENT {
        let problem = format!("the document is longer than {MAX_DOCUMENT} octets");
        faults.push(Fault::new("", problem));
        return None;
    }
    match text.parse::<Table>() {
        // An export that failed leaves an empty file: applied, it would remove what nothing brings back.
        Ok(table) if table.is_empty() => {
            let problem = "the document says nothing, and would remove every zone, pool, listener, VIP and forwarder: \
                           if that is meant, write the one line `[dns]`";
            faults.push(Fault::new("", problem));
            None
        }
        Ok(table) => Some(table),
        Err(_) => {
            faults.extend(lines::syntax_faults(text));
            None
        }
    }
}

fn read_all(
    text: &str,
    mut files: Option<&mut dyn Loader>,
    faults: &mut Vec<Fault>,
    warnings: &mut Vec<String>,
) -> Option<Site> {
    let mut root = Section::root(table(text, faults)?, faults, MANUAL);
    let dns = dns_policy(root.section("dns"));
    let zones = root.each("zone", "name", |section| {
        // The lifetime of the loader is narrowed for each zone.
        let files: Option<&mut dyn Loader> = match &mut files {
            Some(files) => Some(&mut **files),
            None => None,
        };
        zone(section, files, warnings)
    });
    let forwarders = root.each("forwarder", "suffix", forwarder);
    let pools = root.each("pool", "name", pool);
    let listeners = root.each("listener", "name", listener);
    let vips = root.each("vip", "address", vip);
    root.finish();
    let sound = faults.is_empty();
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
    if sound {
        check_zones(&site, faults);
    }
    check_values(&site, faults);
    check_together(&site, faults);
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
            faults.push(Fault::new(format!("{kind}[{key}]"), "is given twice"));
        }
        map.insert(key, value);
    }
    map
}

/// The limits of zones, for what `zonefile` finds nothing wrong with.
fn check_zones(site: &Site, faults: &mut Vec<Fault>) {
    for (apex, records) in &site.zones {
        let sound = check::zones::contents(apex, records)
            .and_then(|()| rules::gather(apex, records))
            .and_then(|gathered| rules::whole(apex, &gathered));
        if let Err(refusal) = sound {
            let problem = format!("{}: {}", refusal.object, refusal.problem);
            faults.push(Fault::new(format!("zone[{apex}]"), problem));
        }
    }
}

/// The limits and rules that also hold for commands.
fn check_values(site: &Site, faults: &mut Vec<Fault>) {
    let mut hold = |key: String, verdict: Result<(), Refusal>| {
        faults.extend(verdict.err().map(|refusal| fault_of(key, &refusal)));
    };
    hold("dns".into(), check::balancing::dns_policy(&site.dns));
    for forwarder in site.forwarders.values() {
        let key = format!("forwarder[{}]", forwarder.suffix);
        hold(key, check::balancing::forwarder(forwarder));
    }
    for listener in site.listeners.values() {
        let key = format!("listener[{}]", listener.name);
        hold(key, check::balancing::listener(listener));
    }
    for vip in site.vips.values() {
        hold(format!("vip[{}]", vip.address), check::balancing::vip(vip));
    }
    for pool in site.pools.values() {
        let key = format!("pool[{}]", pool.name);
        let alone = Pool {
            backends: Vec::new(),
            ..pool.clone()
        };
        hold(key.clone(), check::balancing::pool(&alone));
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for backend in &pool.backends {
            let key = format!("{key}.backend[{}]", backend.name);
            hold(key.clone(), check::balancing::backend(&pool.name, backend));
            let again = |what: &str| {
                let problem = format!("another backend of the pool has this {what}");
                let hint = "names and addresses are unique in a pool";
                Err(Refusal::new(RefusalKind::Conflict, "", problem, hint))
            };
            if !names.insert(&backend.name) {
                hold(key.clone(), again("name"));
            }
            if !addresses.insert(backend.address) {
                hold(key, again("address"));
            }
        }
        if pool.backends.len() > limits::BACKENDS_PER_POOL {
            hold(key, check::balancing::backends_together(pool));
        }
    }
}

/// What objects say of one another.
fn check_together(site: &Site, faults: &mut Vec<Fault>) {
    let listeners: Vec<&Listener> = site.listeners.values().collect();
    for (at, listener) in listeners.iter().enumerate() {
        let mut fault = |problem| {
            faults.push(Fault::new(format!("listener[{}]", listener.name), problem));
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

fn fault_of(key: String, refusal: &Refusal) -> Fault {
    let problem = match refusal.hint.is_empty() {
        true => refusal.problem.clone(),
        false => format!("{}: {}", refusal.problem, refusal.hint),
    };
    Fault::new(key, problem)
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

/// A zone, with the records that could be read.
fn zone(
    mut section: Section<'_>,
    files: Option<&mut dyn Loader>,
    warnings: &mut Vec<String>,
) -> Option<(Name, Vec<(Name, Rrset)>)> {
    let name = section.required_text("name", None, "the apex of the zone", |t| {
        t.parse().map(Some::<Name>)
    });
    match (section.has("file"), section.has("records")) {
        (true, true) => section.fault("file", "is given beside `records`: keep one of them"),
        (false, false) => {
            section.fault("records", "missing: expected the records as a master file");
        }
        _ => {}
    }
    let taken = |text: &str| Ok::<_, String>(text.to_owned());
    let file = section.optional_text("file", taken);
    let text = section.optional_text("records", taken);
    let records = match (name.as_ref(), file, text) {
        (Some(apex), _, Some(text)) => records(
            &mut section,
            apex,
            text.as_bytes(),
            "records",
            files,
            warnings,
        ),
        (Some(apex), Some(file), None) => match load(&file, files) {
            Ok((text, loader)) => records(&mut section, apex, &text, &file, Some(loader), warnings),
            Err(problem) => {
                section.fault("file", problem);
                Vec::new()
            }
        },
        _ => Vec::new(),
    };
    section.finish();
    Some((name?, records))
}

/// The text of a file that a document names.
fn load<'l>(
    file: &str,
    files: Option<&'l mut dyn Loader>,
) -> Result<(Vec<u8>, &'l mut dyn Loader), String> {
    let loader =
        files.ok_or("this document came without its files: put the text under `records`")?;
    if !include::is_plain(file) {
        return Err(format!(
            "{} is no plain file name: only files beside the document are read",
            quoted(file)
        ));
    }
    match loader.load(file) {
        Ok(text) => Ok((text, loader)),
        Err(error) => Err(format!("{file}: {error}")),
    }
}

/// The records of a master file by owner and type. `source` is the file, or the key that holds the text; what is wrong with
/// it is noted under `file` or that key.
fn records(
    section: &mut Section<'_>,
    apex: &Name,
    text: &[u8],
    source: &str,
    files: Option<&mut dyn Loader>,
    warnings: &mut Vec<String>,
) -> Vec<(Name, Rrset)> {
    let key = if source == "records" { source } else { "file" };
    let nothing: &mut dyn Loader = &mut include::Nothing;
    let loaded = match zonefile::load(text, Some(apex), source, files.unwrap_or(nothing)) {
        Ok(loaded) => loaded,
        Err(error) => {
            section.fault(key, error.to_string());
            return Vec::new();
        }
    };
    for finding in loaded.report.findings {
        let problem = match finding.object.as_str() {
            "" => finding.problem,
            object => format!("{object}: {}", finding.problem),
        };
        let own = finding.place.as_ref().filter(|p| *p.file == *key);
        let there = finding.place.as_ref().map(|p| format!("{p}: {problem}"));
        match (finding.severity, own) {
            (Severity::Warning, _) => {
                let text = there.unwrap_or(problem);
                warnings.push(format!("zone[{apex}].{text}"));
            }
            (Severity::Error, Some(place)) => section.fault_within(key, place.line, problem),
            (Severity::Error, None) => section.fault(key, there.unwrap_or(problem)),
        }
    }
    let mut records = loaded.records;
    records.sort_by(|(a, x), (b, y)| (a, x.rtype()).cmp(&(b, y.rtype())));
    records
}

fn forwarder(mut section: Section<'_>) -> Option<Forwarder> {
    let suffix = section.required_text("suffix", None, "a domain name, or \".\" for all", |t| {
        t.parse().map(Some::<Name>)
    });
    let before = section.fault_count();
    let upstreams = section.list("upstreams", "an address and port such as \"192.0.2.53:53\"");
    let known = section.fault_count() == before;
    let timeout = section.text("timeout", UPSTREAM_TIMEOUT, parse_duration);
    section.finish();
    // How many there would be cannot be judged when some could not be read.
    known.then_some(())?;
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
    let before = section.fault_count();
    let address = section.text("address", ListenAddress::EveryNode, |text| {
        ip(text).map(ListenAddress::Address)
    });
    if !section.has("port") {
        section.fault("port", "missing: expected a port from 1 to 65535");
    }
    let port = section.number("port", 1, 1..=u16::MAX);
    let known = section.fault_count() == before;
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
    // Whether it clashes with others cannot be judged when its place could not be read.
    known.then_some(())?;
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
