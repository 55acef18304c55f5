//! Form of pools, listeners, VIPs, forwarders and the DNS policy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{invalid, too_many};
use crate::{
    model::{
        forwarder::Forwarder,
        health::HealthCheck,
        label::Label,
        listener::{ListenAddress, Listener},
        name::Name,
        network::without_scope,
        pool::{Backend, Pool},
        snapshot::DnsPolicy,
        vip::Vip,
    },
    state::{
        limits,
        outcome::{Refusal, RefusalKind},
    },
};

pub fn pool_object(pool: &Label) -> String {
    format!("pool {pool}")
}

pub fn backend_object(pool: &Label, backend: &Label) -> String {
    format!("backend {backend} of pool {pool}")
}

pub fn listener_object(listener: &Label) -> String {
    format!("listener {listener}")
}

pub fn vip_object(address: IpAddr) -> String {
    format!("vip {address}")
}

pub fn forwarder_object(suffix: &Name) -> String {
    format!("forwarder {suffix}")
}

pub fn pool(pool: &Pool) -> Result<(), Refusal> {
    let object = pool_object(&pool.name);
    within(
        &object,
        "connect timeout",
        pool.connect_timeout,
        limits::CONNECT_TIMEOUT,
    )?;
    if pool.connect_retries > limits::CONNECT_RETRIES {
        return Err(invalid(
            object,
            format!("{} connect retries", pool.connect_retries),
            format!("use 0 to {}", limits::CONNECT_RETRIES),
        ));
    }
    if let Some(check) = &pool.health_check {
        health_check(&object, check)?;
    }
    for one in &pool.backends {
        backend(&pool.name, one)?;
    }
    backends_together(pool)
}

/// What must be true of a pool's backends together: their number, names and addresses.
pub fn backends_together(pool: &Pool) -> Result<(), Refusal> {
    if pool.backends.len() > limits::BACKENDS_PER_POOL {
        return Err(too_many(
            pool_object(&pool.name),
            format!(
                "it has {} backends; at most {} are allowed",
                pool.backends.len(),
                limits::BACKENDS_PER_POOL
            ),
        ));
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for backend in &pool.backends {
        let object = || backend_object(&pool.name, &backend.name);
        if !names.insert(&backend.name) {
            return Err(duplicate(
                object(),
                "another backend of the pool has this name",
            ));
        }
        if !addresses.insert(backend.address) {
            let problem = format!(
                "another backend of the pool has address {}",
                backend.address
            );
            return Err(duplicate(object(), problem));
        }
    }
    Ok(())
}

fn duplicate(object: String, problem: impl ToString) -> Refusal {
    Refusal::new(
        RefusalKind::Conflict,
        object,
        problem,
        "names and addresses are unique in a pool",
    )
}

fn health_check(object: &str, check: &HealthCheck) -> Result<(), Refusal> {
    for (what, value, range) in [
        (
            "health check interval",
            check.interval,
            limits::PROBE_INTERVAL,
        ),
        (
            "health check interval while down",
            check.down_interval,
            limits::PROBE_INTERVAL,
        ),
        (
            "health check timeout",
            check.timeout,
            limits::CONNECT_TIMEOUT,
        ),
    ] {
        within(object, what, value, range)?;
    }
    for (what, count) in [("rise", check.rise), ("fall", check.fall)] {
        if count == 0 || count > limits::HEALTH_COUNT {
            return Err(invalid(
                object,
                format!("a {what} count of {count}"),
                format!("use 1 to {}", limits::HEALTH_COUNT),
            ));
        }
    }
    Ok(())
}

pub fn backend(pool: &Label, backend: &Backend) -> Result<(), Refusal> {
    weight(pool, &backend.name, backend.weight)?;
    target(&backend_object(pool, &backend.name), backend.address)
}

pub fn weight(pool: &Label, backend: &Label, weight: u16) -> Result<(), Refusal> {
    if weight <= limits::WEIGHT {
        return Ok(());
    }
    Err(invalid(
        backend_object(pool, backend),
        format!("a weight of {weight}"),
        format!("use 0 to {}", limits::WEIGHT),
    ))
}

/// That one can connect to the address: a single host and a port.
fn target(object: &str, address: SocketAddr) -> Result<(), Refusal> {
    let ip = address.ip().to_canonical();
    let problem = if address != without_scope(address) {
        "a scope id is the number of a device on one node, and nodes share this address"
    } else if address.port() == 0 {
        "port 0 is no port"
    } else if ip.is_unspecified() {
        "the unspecified address is no target"
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "a multicast or broadcast address is no target"
    } else {
        return Ok(());
    };
    Err(invalid(
        object,
        format!("{address}: {problem}"),
        "use ADDRESS:PORT of one host, with a port from 1 to 65535",
    ))
}

pub fn listener(listener: &Listener) -> Result<(), Refusal> {
    let object = listener_object(&listener.name);
    if listener.port == 0 {
        return Err(invalid(object, "port 0 is no port", "use 1 to 65535"));
    }
    if let ListenAddress::Address(ip) = listener.address {
        single_address(&object, ip, "leave the address out to listen on every node")?;
    }
    within(
        &object,
        "idle timeout",
        listener.idle_timeout,
        limits::IDLE_TIMEOUT,
    )?;
    if listener.max_connections == 0 || listener.max_connections > limits::CONNECTIONS {
        return Err(invalid(
            object,
            format!("at most {} connections", listener.max_connections),
            format!("use 1 to {}", limits::CONNECTIONS),
        ));
    }
    Ok(())
}

pub fn vip(vip: &Vip) -> Result<(), Refusal> {
    single_address(
        &vip_object(vip.address),
        vip.address,
        "use the address of one host",
    )
}

fn single_address(object: &str, ip: IpAddr, hint: &str) -> Result<(), Refusal> {
    let mapped = ip.to_canonical() != ip;
    let problem = if mapped {
        "an IPv4-mapped IPv6 address"
    } else if ip.is_unspecified() {
        "the unspecified address is not one address"
    } else if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "a multicast or broadcast address is not one host's"
    } else {
        return Ok(());
    };
    Err(invalid(object, format!("{ip}: {problem}"), hint))
}

pub fn forwarder(forwarder: &Forwarder) -> Result<(), Refusal> {
    let object = forwarder_object(&forwarder.suffix);
    let count = forwarder.upstreams.len();
    if count == 0 || count > limits::UPSTREAMS {
        return Err(invalid(
            object,
            format!("{count} upstreams"),
            format!("give 1 to {}", limits::UPSTREAMS),
        ));
    }
    let mut seen = BTreeSet::new();
    for upstream in &forwarder.upstreams {
        target(&object, *upstream)?;
        if !seen.insert(upstream) {
            let problem = format!("upstream {upstream} is named twice");
            return Err(invalid(object, problem, "name each once"));
        }
    }
    within(
        &object,
        "timeout",
        forwarder.timeout,
        limits::UPSTREAM_TIMEOUT,
    )
}

pub fn dns_policy(policy: &DnsPolicy) -> Result<(), Refusal> {
    let count = policy.recursion_allowed.len();
    if count <= limits::RECURSION_NETWORKS {
        return Ok(());
    }
    Err(too_many(
        "dns policy",
        format!(
            "{count} networks may recurse; at most {} are allowed",
            limits::RECURSION_NETWORKS
        ),
    ))
}

fn within(
    object: &str,
    what: &str,
    value: Duration,
    (least, most): (Duration, Duration),
) -> Result<(), Refusal> {
    let whole = value.subsec_nanos().is_multiple_of(1_000_000);
    if (least..=most).contains(&value) && whole {
        return Ok(());
    }
    Err(invalid(
        object,
        format!("a {what} of {value:?}"),
        format!("use {least:?} to {most:?}, in whole milliseconds"),
    ))
}
