//! What the node counts, gathered at each scrape. `docs/metrics.md` lists all of it; a test compares the two.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};

use super::{control::Control, fitness::Report, ports::Ports, services::Observed};
use crate::{
    api::Api,
    consensus::{self, Consensus},
    dns, proxy,
    telemetry::{
        log::QUEUE_LINES,
        metrics::{Kind, Labels, Metric, Source},
    },
    transport::port::{Port, Refusal},
    vip::{Fence, driver::VipStatus},
};

/// The sources of this node's metrics.
pub(super) fn sources(control: &Arc<Control>, api: &Api, ports: &Ports) -> Vec<Source> {
    let (control, api, ports) = (Arc::clone(control), api.clone(), ports.clone());
    vec![Arc::new(move || gather(&control, &api, &ports))]
}

fn gather(control: &Control, api: &Api, ports: &Ports) -> Vec<Metric> {
    let mut metrics = process();
    metrics.extend(of_log(control.dropped_log_lines()));
    metrics.extend(of_ports(&ports.all()));
    metrics.extend(of_calls(&api.load()));
    metrics.push(of_alarms(control.alarms().count()));
    if let Some(consensus) = control.consensus() {
        metrics.extend(of_consensus(consensus));
    }
    if let Some(services) = control.services() {
        metrics.extend(of_services(&services));
    }
    metrics
}

fn of_consensus(consensus: &Consensus) -> Vec<Metric> {
    let mut metrics = consensus::metrics::of_group(&consensus.status());
    metrics.extend(consensus::metrics::of_storage(
        &consensus.health().borrow(),
        &consensus.log_figures(),
    ));
    metrics.extend(consensus::metrics::of_state(
        &consensus.state(),
        consensus.proposals(),
    ));
    metrics
}

fn of_services(services: &Observed) -> Vec<Metric> {
    let mut metrics = dns::metrics::of(&services.dns.stats());
    metrics.extend(proxy::metrics::of(&services.proxy.status()));
    metrics.extend(of_vips(&services.vips.borrow()));
    metrics.push(of_fitness(&services.fitness.borrow()));
    metrics
}

fn of_log(dropped: u64) -> [Metric; 3] {
    let build: Labels = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    [
        Metric::labelled(
            "build_info",
            "The running program",
            Kind::Gauge,
            [(build, 1.0)],
        ),
        Metric::counter(
            "log_dropped",
            "Log lines lost: the target was too slow for them, or did not take them",
            dropped,
        ),
        Metric::gauge(
            "log_lines_limit",
            "Log lines that may wait for the writer",
            QUEUE_LINES as f64,
        ),
    ]
}

fn of_ports(ports: &[&Port]) -> [Metric; 3] {
    let by_port = |value: fn(&Port) -> usize| {
        let samples = ports.iter().map(move |port| {
            let labels: Labels = vec![("port", port.name().to_owned())];
            (labels, value(port) as f64)
        });
        samples.collect::<Vec<_>>()
    };
    let refused = ports.iter().flat_map(|port| {
        Refusal::ALL.map(|why| {
            let labels: Labels = vec![
                ("port", port.name().to_owned()),
                ("reason", why.name().to_owned()),
            ];
            (labels, port.refused(why) as f64)
        })
    });
    [
        Metric::labelled(
            "connections",
            "Connections of operators and peers that are open",
            Kind::Gauge,
            by_port(Port::open),
        ),
        Metric::labelled(
            "connections_limit",
            "Connections of operators and peers that may be open",
            Kind::Gauge,
            by_port(|port| port.limits().connections),
        ),
        Metric::labelled(
            "connections_refused",
            "Connections of operators and peers closed before they were served",
            Kind::Counter,
            refused,
        ),
    ]
}

fn of_calls(load: &[(&'static str, usize, usize)]) -> [Metric; 2] {
    let by_kind = |value: fn(&(&'static str, usize, usize)) -> usize| {
        let samples = load.iter().map(move |call| {
            let labels = vec![("kind", call.0.to_owned())];
            (labels, value(call) as f64)
        });
        samples.collect::<Vec<_>>()
    };
    [
        Metric::labelled(
            "api_calls",
            "Calls of the API under way",
            Kind::Gauge,
            by_kind(|call| call.1),
        ),
        Metric::labelled(
            "api_calls_limit",
            "Calls of the API that may be under way",
            Kind::Gauge,
            by_kind(|call| call.2),
        ),
    ]
}

fn of_alarms(count: usize) -> Metric {
    Metric::gauge("alarms", "Alarms that this node raises", count as f64)
}

fn of_fitness(fitness: &Report) -> Metric {
    let samples = fitness.checks.iter().map(|(check, why)| {
        let labels: Labels = vec![("check", check.name())];
        (labels, f64::from(u8::from(why.is_none())))
    });
    Metric::labelled(
        "vip_check",
        "1 while the check passes that this node has to pass to be fit to hold VIPs",
        Kind::Gauge,
        samples.collect::<Vec<_>>(),
    )
}

fn of_vips(vips: &[VipStatus]) -> [Metric; 3] {
    let by_address = |holds: fn(&VipStatus) -> bool| {
        let samples = vips.iter().map(move |vip| {
            let labels = vec![("address", vip.address.to_string())];
            (labels, f64::from(u8::from(holds(vip))))
        });
        samples.collect::<Vec<_>>()
    };
    [
        Metric::labelled(
            "vip_conflict",
            "1 while a host that is no member uses the VIP's address too",
            Kind::Gauge,
            by_address(|vip| vip.conflict.is_some()),
        ),
        Metric::labelled(
            "vip_fenced",
            "1 while the kernel keeps this node silent about the VIP unless it holds it",
            Kind::Gauge,
            by_address(|vip| vip.fence == Fence::Kernel),
        ),
        Metric::labelled(
            "vip_held",
            "1 while this node holds the VIP",
            Kind::Gauge,
            by_address(|vip| vip.held),
        ),
    ]
}

/// Memory and file descriptors of this process, from `/proc/self`.
fn process() -> Vec<Metric> {
    let mut metrics = Vec::new();
    if let Some(resident) = resident_bytes() {
        metrics.push(Metric::gauge(
            "process_resident_bytes",
            "Resident memory",
            resident as f64,
        ));
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        metrics.push(Metric::gauge(
            "process_open_fds",
            "Open file descriptors",
            entries.count() as f64,
        ));
    }
    if let Ok((open_files, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        metrics.push(Metric::gauge(
            "process_max_fds",
            "File descriptors that may be open",
            open_files as f64,
        ));
    }
    metrics
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        consensus::{ClusterStatus, Recovery, health::StorageHealth, writer::LogFigures},
        dns::DnsStats,
        model::node::{ClusterId, NodeId},
        proxy::ProxyStatus,
        state::State,
    };

    const DOCUMENT: &str = include_str!("../../docs/metrics.md");

    fn all() -> Vec<Metric> {
        let status = ClusterStatus {
            cluster: ClusterId::default(),
            answered_by: NodeId(1),
            leader: None,
            term: 0,
            revision: 0,
            applied: 0,
            recovery: Recovery::Recovering,
            nodes: Vec::new(),
            alarms: Vec::new(),
        };
        let health = StorageHealth {
            free_bytes: Some(1),
            ..StorageHealth::default()
        };
        let proxy = ProxyStatus {
            listeners: Vec::new(),
            pools: Vec::new(),
            connections: 0,
            connection_limit: 0,
            pipes_open: 0,
            pipe_limit: 0,
            probes_under_way: 0,
            probes_waiting: 0,
            probe_limit: 0,
            listening_sockets: 0,
            listening_limit: 0,
        };
        let mut metrics = process();
        metrics.extend(of_log(0));
        metrics.extend(of_ports(&[]));
        metrics.extend(of_calls(&[]));
        metrics.push(of_alarms(0));
        metrics.extend(consensus::metrics::of_group(&status));
        metrics.extend(consensus::metrics::of_storage(
            &health,
            &LogFigures::default(),
        ));
        metrics.extend(consensus::metrics::of_state(&State::default(), (0, 0)));
        metrics.extend(dns::metrics::of(&DnsStats::default()));
        metrics.extend(proxy::metrics::of(&proxy));
        metrics.extend(of_vips(&[]));
        metrics.push(of_fitness(&Report::default()));
        metrics
    }

    /// Name and type of every row of the document's tables.
    fn documented() -> BTreeMap<String, String> {
        let (tables, _) = DOCUMENT.split_once("## Alerts").expect("a chapter");
        let rows = tables
            .lines()
            .filter(|line| line.starts_with("| `pontoon_"));
        rows.map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
        })
        .collect()
    }

    #[test]
    fn every_metric_is_documented_and_nothing_else() {
        let shown: BTreeMap<String, String> = all()
            .into_iter()
            .map(|metric| match metric.kind {
                Kind::Counter => (
                    format!("pontoon_{}_total", metric.name),
                    "counter".to_owned(),
                ),
                Kind::Gauge => (format!("pontoon_{}", metric.name), "gauge".to_owned()),
            })
            .collect();
        assert_eq!(documented(), shown);
    }

    #[test]
    fn what_alerts_name_exists() {
        let documented = documented();
        let mut rest = DOCUMENT.split_once("## Alerts").expect("a chapter").1;
        let mut seen = 0;
        while let Some((_, after)) = rest.split_once("pontoon_") {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let name = format!("pontoon_{}", &after[..end.unwrap_or(after.len())]);
            assert!(documented.contains_key(&name), "{name}");
            rest = after;
            seen += 1;
        }
        assert!(seen > 5);
    }
}
