//! Writing the state as a site document, and the text of each object in it.

use std::fmt::Write as _;

use super::{
    Site,
    document::{POLICIES, STATES},
};
use crate::{
    config::units::format_duration,
    model::{
        forwarder::Forwarder,
        health::{HealthCheck, Probe},
        listener::{ListenAddress, Listener},
        name::Name,
        pool::{Backend, Pool},
        rrset::Rrset,
        snapshot::{DnsPolicy, Snapshot},
        vip::Vip,
    },
    zonefile,
};

/// The whole state as a document. Read again and compared, it changes nothing.
pub fn export(snapshot: &Snapshot) -> String {
    Site::of(snapshot).to_toml()
}

impl Site {
    /// This site as a document.
    pub fn to_toml(&self) -> String {
        let Self {
            dns,
            zones,
            forwarders,
            pools,
            listeners,
            vips,
        } = self;
        let mut text = self::dns(dns);
        let mut push = |part: String| {
            text.push('\n');
            text.push_str(&part);
        };
        vips.values().map(vip).for_each(&mut push);
        listeners.values().map(listener).for_each(&mut push);
        pools.values().map(pool).for_each(&mut push);
        forwarders.values().map(forwarder).for_each(&mut push);
        zones
            .iter()
            .map(|(apex, records)| zone(apex, records))
            .for_each(&mut push);
        text
    }
}

pub(super) fn dns(policy: &DnsPolicy) -> String {
    let DnsPolicy { recursion_allowed } = policy;
    let networks: String = recursion_allowed
        .iter()
        .map(|n| format!("  \"{n}\",\n"))
        .collect();
    format!("[dns]\nrecursion_allowed = [\n{networks}]\n")
}

fn zone(apex: &Name, records: &[(Name, Rrset)]) -> String {
    let sets = records.iter().map(|(owner, set)| (owner.clone(), set));
    let text = zonefile::write(apex, sets);
    format!(
        "[[zone]]\nname = {}\nrecords = {}\n",
        quoted(&apex.to_string()),
        long_text(&text)
    )
}

pub(super) fn forwarder(forwarder: &Forwarder) -> String {
    let Forwarder {
        suffix,
        upstreams,
        timeout,
    } = forwarder;
    let upstreams: Vec<String> = upstreams.iter().map(|u| format!("\"{u}\"")).collect();
    format!(
        "[[forwarder]]\nsuffix = {}\nupstreams = [{}]\ntimeout = \"{}\"\n",
        quoted(&suffix.to_string()),
        upstreams.join(", "),
        format_duration(*timeout)
    )
}

pub(super) fn pool(pool: &Pool) -> String {
    let Pool {
        name,
        policy,
        backends,
        health_check,
        connect_timeout,
        connect_retries,
    } = pool;
    let mut text = format!(
        "[[pool]]\nname = \"{name}\"\npolicy = \"{}\"\nconnect_timeout = \"{}\"\nconnect_retries = {connect_retries}\n",
        word_of(&POLICIES, *policy),
        format_duration(*connect_timeout)
    );
    match health_check {
        None => text.push_str("health_check = \"none\"\n"),
        Some(check) => text.push_str(&self::health_check(check)),
    }
    text.extend(backends.iter().map(backend));
    text
}

fn health_check(check: &HealthCheck) -> String {
    let HealthCheck {
        probe,
        interval,
        down_interval,
        timeout,
        rise,
        fall,
    } = check;
    let probe = match probe {
        Probe::TcpConnect => "tcp-connect",
    };
    format!(
        "\n[pool.health_check]\nprobe = \"{probe}\"\ninterval = \"{}\"\ndown_interval = \"{}\"\ntimeout = \"{}\"\nrise = {rise}\nfall = {fall}\n",
        format_duration(*interval),
        format_duration(*down_interval),
        format_duration(*timeout)
    )
}

fn backend(backend: &Backend) -> String {
    let Backend {
        name,
        address,
        weight,
        state,
    } = backend;
    format!(
        "\n[[pool.backend]]\nname = \"{name}\"\naddress = \"{address}\"\nweight = {weight}\nstate = \"{}\"\n",
        word_of(&STATES, *state)
    )
}

pub(super) fn listener(listener: &Listener) -> String {
    let Listener {
        name,
        address,
        port,
        pool,
        idle_timeout,
        max_connections,
    } = listener;
    let mut text = format!("[[listener]]\nname = \"{name}\"\n");
    if let ListenAddress::Address(ip) = address {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "address = \"{ip}\"");
    }
    let _ = write!(
        text,
        "port = {port}\npool = \"{pool}\"\nidle_timeout = \"{}\"\nmax_connections = {max_connections}\n",
        format_duration(*idle_timeout)
    );
    text
}

pub(super) fn vip(vip: &Vip) -> String {
    let Vip { address, interface } = vip;
    format!("[[vip]]\naddress = \"{address}\"\ninterface = \"{interface}\"\n")
}

fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, known)| *known == value);
    found.map_or("", |(word, _)| word)
}

/// A text in quotes.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// A text of many lines: as it stands where TOML allows that, else with escapes.
fn long_text(text: &str) -> String {
    let plain = |c: char| c == '\n' || c == '\t' || !c.is_control();
    match text.chars().all(plain) && !text.contains("''") {
        true => format!("'''\n{text}'''"),
        false => quoted(text),
    }
}
