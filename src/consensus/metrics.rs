//! What the group and the storage of this node tell at each scrape.

use super::{health::StorageHealth, recovery::Recovery, status::ClusterStatus, writer::LogFigures};
use crate::{
    state::{State, limits},
    telemetry::metrics::{Kind, Metric},
};

/// Leadership, the log index of every node, alarms.
pub fn of_group(status: &ClusterStatus) -> Vec<Metric> {
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
        Metric::labelled(
            "raft_applied",
            "Log index applied, by node as this one knows it",
            Kind::Gauge,
            applied,
        ),
        Metric::gauge(
            "stale",
            "1 while serving a state that no leader has confirmed",
            flag(stale),
        ),
    ]
}

/// How much of what the state may hold is used, and of what this node may have under way.
pub fn of_state(state: &State, (proposals, most): (usize, usize)) -> Vec<Metric> {
    let (snapshot, totals) = (state.snapshot(), state.totals());
    let used = [
        (
            (
                "raft_proposals",
                "Writes that wait for their commit on this node",
            ),
            (
                "raft_proposals_limit",
                "Writes that may wait for their commit",
            ),
            (proposals as f64, most as f64),
        ),
        (
            ("zones", "Zones in the state"),
            ("zones_limit", "Zones that the state may hold"),
            (snapshot.zones.len() as f64, limits::ZONES as f64),
        ),
        (
            ("records", "Records of all zones"),
            ("records_limit", "Records that all zones may hold"),
            (totals.records as f64, limits::RECORDS as f64),
        ),
        (
            ("record_bytes", "Octets of record data of all zones"),
            (
                "record_bytes_limit",
                "Octets of record data that all zones may hold",
            ),
            (totals.data_bytes as f64, limits::DATA as f64),
        ),
        (
            ("pools", "Pools in the state"),
            ("pools_limit", "Pools that the state may hold"),
            (snapshot.pools.len() as f64, limits::POOLS as f64),
        ),
        (
            ("listeners", "Listeners in the state"),
            ("listeners_limit", "Listeners that the state may hold"),
            (snapshot.listeners.len() as f64, limits::LISTENERS as f64),
        ),
        (
            ("vips", "VIPs in the state"),
            ("vips_limit", "VIPs that the state may hold"),
            (snapshot.vips.len() as f64, limits::VIPS as f64),
        ),
        (
            ("forwarders", "Forwarders in the state"),
            ("forwarders_limit", "Forwarders that the state may hold"),
            (snapshot.forwarders.len() as f64, limits::FORWARDERS as f64),
        ),
    ];
    let both = |((name, help), (limit, limit_help), (value, most))| {
        [
            Metric::gauge(name, help, value),
            Metric::gauge(limit, limit_help, most),
        ]
    };
    used.into_iter().flat_map(both).collect()
}

/// The disk, and the queue in front of it. `rate(log_write_seconds) / rate(log_writes)` is the mean time of a write with
/// its barrier.
pub fn of_storage(health: &StorageHealth, log: &LogFigures) -> Vec<Metric> {
    let failed = f64::from(u8::from(health.failure.is_some()));
    let mut metrics = vec![
        Metric::gauge(
            "storage_failed",
            "1 when the log takes no more writes",
            failed,
        ),
        Metric::gauge(
            "storage_low_watermark_bytes",
            "Free space below which this node counts as short of space",
            health.watermark as f64,
        ),
        Metric::gauge(
            "log_queue_bytes",
            "Bytes waiting to be written to the log",
            log.waiting_bytes as f64,
        ),
        Metric::gauge(
            "log_queue_limit_bytes",
            "Bytes that may wait to be written to the log",
            log.limit_bytes as f64,
        ),
        Metric::counter(
            "log_writes",
            "Batches written to the log, each with one durability barrier",
            log.writes,
        ),
        Metric::counter(
            "log_written_bytes",
            "Bytes of the batches written to the log",
            log.written_bytes,
        ),
        Metric::labelled(
            "log_write_seconds",
            "Time spent on writing batches and on their barriers",
            Kind::Counter,
            [(Vec::new(), log.spent.as_secs_f64())],
        ),
        Metric::gauge(
            "log_write_last_seconds",
            "Time of the last batch with its barrier",
            log.last.as_secs_f64(),
        ),
    ];
    if let Some(free) = health.free_bytes {
        metrics.push(Metric::gauge(
            "storage_free_bytes",
            "Free space of the data directory",
            free as f64,
        ));
    }
    metrics
}
