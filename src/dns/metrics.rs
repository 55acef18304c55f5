//! What DNS counts, as metrics and as plain numbers: read from the same statistics, so that nothing is counted twice.

use super::DnsStats;
use crate::telemetry::metrics::{Kind, Metric};

/// Everything that is counted, for a scrape.
pub fn of(stats: &DnsStats) -> Vec<Metric> {
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
        Metric::labelled("dns_queries", "Questions received", Kind::Counter, queries),
        Metric::labelled(
            "dns_replies",
            "Replies sent, by response code",
            Kind::Counter,
            replies,
        ),
        Metric::labelled(
            "dns_dropped",
            "Messages not answered, by reason",
            Kind::Counter,
            dropped,
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
    let (cache, forward, limits) = (&stats.cache, &stats.forward, &stats.limits);
    vec![
        (
            "dns_unbound_addresses",
            "Addresses of VIPs that could not be bound so far",
            Gauge,
            stats.addresses_missing,
        ),
        (
            "dns_tcp_connections_limit",
            "TCP connections that may be open",
            Gauge,
            limits.connections,
        ),
        (
            "dns_tcp_connections_per_client_limit",
            "TCP connections that one client address may have open",
            Gauge,
            limits.connections_per_client,
        ),
        (
            "dns_cache_limit_bytes",
            "Octets that cached answers may take",
            Gauge,
            limits.cache_bytes,
        ),
        (
            "dns_upstream_outstanding_limit",
            "Queries to upstreams that may be under way",
            Gauge,
            limits.outstanding,
        ),
        (
            "dns_upstream_outstanding_of_one",
            "Questions under way by the forwarder that has the most",
            Gauge,
            forward.most_of_one,
        ),
        (
            "dns_upstream_outstanding_of_one_limit",
            "Questions that one of several forwarders may have under way",
            Gauge,
            limits.outstanding_per_forwarder,
        ),
        (
            "dns_waiting",
            "Client questions that wait for an upstream",
            Gauge,
            forward.waiting,
        ),
        (
            "dns_waiting_limit",
            "Client questions that may wait for upstreams",
            Gauge,
            limits.waiting,
        ),
        (
            "dns_waiting_per_client_limit",
            "Client questions that may wait for one client address",
            Gauge,
            limits.waiting_per_client,
        ),
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
        (
            "dns_tcp_accept_errors",
            "Failures of accept for want of file descriptors or memory",
            Counter,
            stats.accept_errors,
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
            "dns_upstream_unasked",
            "Queries to upstreams that could not be made for want of file descriptors, memory or ports",
            Counter,
            forward.unasked,
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
pub fn counters(stats: &DnsStats) -> Vec<(String, u64)> {
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
