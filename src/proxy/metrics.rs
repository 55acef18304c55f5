//! The proxy's Prometheus metrics, read from its status at every scrape: nothing is counted twice.

use super::{
    health::Verdict,
    status::{BackendStatus, ListenerStatus, PoolStatus, ProxyStatus, SocketState},
};
use crate::telemetry::metrics::{Kind, Labels, Metric};

type Samples = Vec<(Labels, f64)>;

/// Everything that is counted, for a scrape. Names begin with `proxy_`.
pub fn of(status: &ProxyStatus) -> Vec<Metric> {
    let gauge = |name, help, samples: Samples| Metric::labelled(name, help, Kind::Gauge, samples);
    let counter =
        |name, help, samples: Samples| Metric::labelled(name, help, Kind::Counter, samples);
    vec![
        gauge(
            "proxy_connections",
            "Connections of all listeners, removed ones included",
            vec![(Vec::new(), f64::from(status.connections))],
        ),
        gauge(
            "proxy_connections_limit",
            "Connections that all listeners may have together",
            vec![(Vec::new(), f64::from(status.connection_limit))],
        ),
        gauge(
            "proxy_pipes_open",
            "Pipes open for splicing",
            vec![(Vec::new(), f64::from(status.pipes_open))],
        ),
        gauge(
            "proxy_pipes_limit",
            "Pipes that may be open for splicing; connections beyond are copied",
            vec![(Vec::new(), f64::from(status.pipe_limit))],
        ),
        gauge(
            "proxy_probes_under_way",
            "Health probes under way",
            vec![(Vec::new(), status.probes_under_way as f64)],
        ),
        gauge(
            "proxy_probes_waiting",
            "Health probes that are due and wait for others to end",
            vec![(Vec::new(), f64::from(status.probes_waiting))],
        ),
        gauge(
            "proxy_probes_limit",
            "Health probes that may be under way",
            vec![(Vec::new(), status.probe_limit as f64)],
        ),
        gauge(
            "proxy_listening_sockets",
            "Listening sockets of all listeners",
            vec![(Vec::new(), f64::from(status.listening_sockets))],
        ),
        gauge(
            "proxy_listening_sockets_limit",
            "Listening sockets that all listeners may have together",
            vec![(Vec::new(), f64::from(status.listening_limit))],
        ),
        gauge(
            "proxy_listener_connections_limit",
            "Connections that a listener may have",
            per_listener(status, |l| u64::from(l.max_connections)),
        ),
        gauge(
            "proxy_listener_connections",
            "Connections of a listener",
            per_listener(status, |l| u64::from(l.connections)),
        ),
        counter(
            "proxy_listener_accepted",
            "Connections accepted and served",
            per_listener(status, |l| l.total),
        ),
        counter(
            "proxy_listener_refused",
            "Connections reset because the listener or the node was full",
            per_listener(status, |l| l.refused),
        ),
        counter(
            "proxy_listener_accept_errors",
            "Failures of accept for want of file descriptors or memory",
            per_listener(status, |l| l.accept_errors),
        ),
        gauge(
            "proxy_listener_unbound_addresses",
            "Addresses that could not be bound so far",
            per_listener(status, |l| {
                let failed = |s: &&(_, SocketState)| s.1 != SocketState::Bound;
                l.sockets.iter().filter(failed).count() as u64
            }),
        ),
        counter(
            "proxy_listener_bytes",
            "Bytes relayed, by direction",
            listener_bytes(status),
        ),
        counter(
            "proxy_listener_endings",
            "Connections ended, by reason",
            listener_endings(status),
        ),
        gauge(
            "proxy_pool_backends_usable",
            "Backends of a pool that take connections: enabled, with a weight, and up in the eyes of this node",
            per_pool(status, PoolStatus::usable),
        ),
        gauge(
            "proxy_backend_up",
            "1 if the backend is up in the eyes of this node",
            per_backend(status, |b| u64::from(b.verdict == Verdict::Up)),
        ),
        gauge(
            "proxy_backend_connections",
            "Connections to a backend",
            per_backend(status, |b| u64::from(b.connections)),
        ),
        counter(
            "proxy_backend_connected",
            "Connections made to a backend",
            per_backend(status, |b| b.total),
        ),
        counter(
            "proxy_backend_connect_failures",
            "Connection attempts that failed",
            per_backend(status, |b| b.connect_failures),
        ),
        counter(
            "proxy_backend_probes",
            "Health probes made",
            per_backend(status, |b| b.probes),
        ),
        counter(
            "proxy_backend_probes_failed",
            "Health probes that failed",
            per_backend(status, |b| b.probes_failed),
        ),
        counter(
            "proxy_backend_probes_unmade",
            "Health probes that this node could not make for want of files, memory or ports",
            per_backend(status, |b| b.probes_unmade),
        ),
        counter(
            "proxy_backend_bytes",
            "Bytes relayed, by direction",
            backend_bytes(status),
        ),
    ]
}

fn listener_labels(listener: &ListenerStatus) -> Labels {
    vec![("listener", listener.name.to_string())]
}

fn backend_labels(pool: &PoolStatus, backend: &BackendStatus) -> Labels {
    vec![
        ("pool", pool.name.to_string()),
        ("backend", backend.name.to_string()),
    ]
}

fn with(mut labels: Labels, key: &'static str, value: &str) -> Labels {
    labels.push((key, value.to_owned()));
    labels
}

fn per_listener(status: &ProxyStatus, value: impl Fn(&ListenerStatus) -> u64) -> Samples {
    let listeners = status.listeners.iter();
    listeners
        .map(|l| (listener_labels(l), value(l) as f64))
        .collect()
}

fn per_pool(status: &ProxyStatus, value: impl Fn(&PoolStatus) -> usize) -> Samples {
    let labels = |pool: &PoolStatus| vec![("pool", pool.name.to_string())];
    let pools = status.pools.iter();
    pools.map(|p| (labels(p), value(p) as f64)).collect()
}

fn backends(status: &ProxyStatus) -> impl Iterator<Item = (&PoolStatus, &BackendStatus)> {
    let pools = status.pools.iter();
    pools.flat_map(|p| p.backends.iter().map(move |b| (p, b)))
}

fn per_backend(status: &ProxyStatus, value: impl Fn(&BackendStatus) -> u64) -> Samples {
    backends(status)
        .map(|(p, b)| (backend_labels(p, b), value(b) as f64))
        .collect()
}

/// Two samples: what came from clients and what went to them.
fn both_ways(labels: Labels, from_clients: u64, to_clients: u64) -> [(Labels, f64); 2] {
    [
        (
            with(labels.clone(), "direction", "from_clients"),
            from_clients as f64,
        ),
        (with(labels, "direction", "to_clients"), to_clients as f64),
    ]
}

fn listener_bytes(status: &ProxyStatus) -> Samples {
    let listeners = status.listeners.iter();
    listeners
        .flat_map(|l| both_ways(listener_labels(l), l.bytes_from_clients, l.bytes_to_clients))
        .collect()
}

fn listener_endings(status: &ProxyStatus) -> Samples {
    let of = |l: &ListenerStatus| {
        let labels = listener_labels(l);
        l.endings
            .iter()
            .map(|(ending, count)| {
                (
                    with(labels.clone(), "reason", ending.as_str()),
                    *count as f64,
                )
            })
            .collect::<Vec<_>>()
    };
    status.listeners.iter().flat_map(of).collect()
}

fn backend_bytes(status: &ProxyStatus) -> Samples {
    backends(status)
        .flat_map(|(p, b)| {
            both_ways(
                backend_labels(p, b),
                b.bytes_from_clients,
                b.bytes_to_clients,
            )
        })
        .collect()
}
