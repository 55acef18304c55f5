//! What the node counts, gathered at each scrape.

use std::sync::Arc;

use super::control::Control;
use crate::{
    consensus::{ClusterStatus, Recovery},
    dns::DnsStats,
    telemetry::metrics::{Kind, Metric, Sample, Source},
};

/// The sources of this node's metrics.
pub(super) fn sources(control: &Arc<Control>) -> Vec<Source> {
    let control = Arc::clone(control);
    vec![Arc::new(move || gather(&control))]
}

fn gather(control: &Control) -> Vec<Metric> {
    let mut metrics = process();
    metrics.push(Metric::counter(
        "log_dropped",
        "Log lines lost because the writer was too slow",
        control.dropped_log_lines(),
    ));
    let build = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    metrics.push(labelled(
        "build_info",
        "The running program",
        Kind::Gauge,
        vec![(build, 1.0)],
    ));
    if let Some(consensus) = control.consensus() {
        metrics.extend(group(&consensus.status()));
        let health = consensus.health().borrow().clone();
        let failed = f64::from(u8::from(health.failure.is_some()));
        metrics.push(Metric::gauge(
            "storage_failed",
            "1 when the log takes no more writes",
            failed,
        ));
        if let Some(free) = health.free_bytes {
            metrics.push(Metric::gauge(
                "storage_free_bytes",
                "Free space of the data directory",
                free as f64,
            ));
        }
    }
    if let Some(services) = control.services() {
        metrics.extend(dns(&services.dns.stats()));
        let held = services
            .vips
            .borrow()
            .iter()
            .map(|vip| {
                (
                    vec![("address", vip.address.to_string())],
                    f64::from(u8::from(vip.held)),
                )
            })
            .collect();
        metrics.push(labelled(
            "vip_held",
            "1 while this node holds the VIP",
            Kind::Gauge,
            held,
        ));
    }
    metrics
}

fn group(status: &ClusterStatus) -> Vec<Metric> {
    let leads = status.leader == Some(status.answered_by);
    let stale = status.recovery == Recovery::Stale;
    let flag = |set: bool| f64::from(u8::from(set));
    let applied = status
        .nodes
        .iter()
        .filter_map(|node| Some((vec![("node", node.id.to_string())], node.applied? as f64)));
    vec![
        Metric::gauge("raft_term", "Raft term", status.term as f64),
        Metric::gauge(
            "raft_leader",
            "Node id of the leader, 0 when none is known",
            status.leader.map_or(0.0, |id| id.0 as f64),
        ),
        Metric::gauge("raft_leads", "1 on the leader", flag(leads)),
        Metric::gauge(
            "revision",
            "Revision of the state served",
            status.revision as f64,
        ),
        labelled(
            "raft_applied",
            "Log index applied, by node as this one knows it",
            Kind::Gauge,
            applied.collect(),
        ),
        Metric::gauge(
            "stale",
            "1 while serving a state that no leader has confirmed",
            flag(stale),
        ),
        Metric::gauge("alarms", "Alarms in the status", status.alarms.len() as f64),
    ]
}

fn dns(stats: &DnsStats) -> Vec<Metric> {
    let queries = stats.queries.iter().map(|((transport, family), count)| {
        (
            vec![
                ("transport", (*transport).to_owned()),
                ("family", (*family).to_owned()),
            ],
            *count as f64,
        )
    });
    let replies = stats
        .replies
        .iter()
        .map(|(rcode, count)| (vec![("rcode", rcode.clone())], *count as f64));
    let dropped = stats
        .dropped
        .iter()
        .map(|(why, count)| (vec![("reason", (*why).to_owned())], *count as f64));
    let mut metrics = vec![
        labelled(
            "dns_queries",
            "Questions received",
            Kind::Counter,
            queries.collect(),
        ),
        labelled(
            "dns_replies",
            "Replies sent, by response code",
            Kind::Counter,
            replies.collect(),
        ),
        labelled(
            "dns_dropped",
            "Messages not answered, by reason",
            Kind::Counter,
            dropped.collect(),
        ),
    ];
    metrics.extend(
        plain_dns(stats)
            .into_iter()
            .map(|(name, help, kind, value)| match kind {
                Kind::Counter => Metric::counter(name, help, value),
                Kind::Gauge => Metric::gauge(name, help, value as f64),
            }),
    );
    metrics
}

type Plain = (&'static str, &'static str, Kind, u64);

/// DNS counters without labels.
fn plain_dns(stats: &DnsStats) -> Vec<Plain> {
    use Kind::{Counter, Gauge};
    let (cache, forward) = (&stats.cache, &stats.forward);
    vec![
        (
            "dns_truncated",
            "UDP replies cut for their size",
            Counter,
            stats.truncated,
        ),
        (
            "dns_fast_path_hits",
            "Replies made by patching an earlier one",
            Counter,
            stats.copies_used,
        ),
        (
            "dns_fast_path_misses",
            "Replies made anew",
            Counter,
            stats.copies_missed,
        ),
        (
            "dns_tcp_connections",
            "TCP connections open",
            Gauge,
            stats.connections_open,
        ),
        (
            "dns_tcp_accepted",
            "TCP connections accepted",
            Counter,
            stats.connections_accepted,
        ),
        (
            "dns_tcp_refused",
            "TCP connections closed because a limit was reached",
            Counter,
            stats.connections_refused,
        ),
        (
            "dns_tcp_timed_out",
            "TCP connections closed for their silence",
            Counter,
            stats.connections_timed_out,
        ),
        ("dns_cache_entries", "Cached answers", Gauge, cache.entries),
        (
            "dns_cache_bytes",
            "Octets of cached answers",
            Gauge,
            cache.bytes,
        ),
        (
            "dns_cache_hits",
            "Answers from the cache",
            Counter,
            cache.hits,
        ),
        (
            "dns_cache_misses",
            "Questions the cache could not answer",
            Counter,
            cache.misses,
        ),
        (
            "dns_cache_evicted",
            "Cached answers dropped for room",
            Counter,
            cache.evicted,
        ),
        (
            "dns_upstream_sent",
            "Queries sent to upstreams",
            Counter,
            forward.sent,
        ),
        (
            "dns_upstream_timed_out",
            "Queries to upstreams without an answer in time",
            Counter,
            forward.timed_out,
        ),
        (
            "dns_upstream_failed",
            "Queries to upstreams that failed",
            Counter,
            forward.failed,
        ),
        (
            "dns_upstream_ignored",
            "Messages that did not fit a query: late, or forged",
            Counter,
            forward.ignored,
        ),
        (
            "dns_upstream_over_tcp",
            "Queries to upstreams repeated over TCP",
            Counter,
            forward.over_tcp,
        ),
        (
            "dns_coalesced",
            "Questions that waited for a query under way",
            Counter,
            forward.coalesced,
        ),
        (
            "dns_shed",
            "Questions refused because too much was under way",
            Counter,
            forward.shed,
        ),
        (
            "dns_upstream_outstanding",
            "Queries to upstreams under way",
            Gauge,
            forward.outstanding,
        ),
    ]
}

/// The same as names and values, for `dns stats`. Sorted by name.
pub(super) fn dns_counters(stats: &DnsStats) -> Vec<(String, u64)> {
    let mut counters: Vec<(String, u64)> = plain_dns(stats)
        .into_iter()
        .map(|(name, _, _, value)| (name.trim_start_matches("dns_").to_owned(), value))
        .collect();
    counters.extend(
        stats
            .queries
            .iter()
            .map(|((transport, family), n)| (format!("queries_{transport}_{family}"), *n)),
    );
    counters.extend(
        stats
            .replies
            .iter()
            .map(|(rcode, n)| (format!("replies_{}", rcode.to_lowercase()), *n)),
    );
    counters.extend(
        stats
            .dropped
            .iter()
            .map(|(why, n)| (format!("dropped_{why}"), *n)),
    );
    counters.sort();
    counters
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

fn labelled(
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<(Vec<(&'static str, String)>, f64)>,
) -> Metric {
    let samples = samples
        .into_iter()
        .map(|(labels, value)| Sample { labels, value })
        .collect();
    Metric {
        name,
        help,
        kind,
        samples,
    }
}
