//! Counters of the DNS service: counted where things happen, one shard for each worker, summed when somebody asks.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    cache::CacheStats,
    message::{Rcode, request::Nonsense},
    respond::Transport,
};

/// Response codes counted one by one; higher ones share the last counter.
const RCODES: usize = 24;

/// Why a message was left without a reply, or a reply could not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// Shorter than a DNS header.
    TooShort,
    /// Not a query.
    Response,
    /// Longer than any query we take.
    TooLong,
    /// The kernel did not take the reply.
    Unsendable,
    /// Handling it failed in a way that must not happen; the log has the details.
    Fault,
}

impl Dropped {
    pub const ALL: [Self; 5] = [
        Self::TooShort,
        Self::Response,
        Self::TooLong,
        Self::Unsendable,
        Self::Fault,
    ];

    /// The word for it in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::Response => "response",
            Self::TooLong => "too_long",
            Self::Unsendable => "unsendable",
            Self::Fault => "fault",
        }
    }
}

impl From<Nonsense> for Dropped {
    fn from(why: Nonsense) -> Self {
        match why {
            Nonsense::TooShort => Self::TooShort,
            Nonsense::Response => Self::Response,
        }
    }
}

/// One shard of counters.
#[derive(Default)]
pub(super) struct Counters {
    queries: [AtomicU64; 4],
    replies: [AtomicU64; RCODES],
    truncated: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
    copies_used: AtomicU64,
    copies_missed: AtomicU64,
    pub connections_accepted: AtomicU64,
    pub connections_refused: AtomicU64,
    pub connections_timed_out: AtomicU64,
    pub accept_errors: AtomicU64,
}

/// Adds one. Counters order nothing, so nothing stronger than relaxed is called for.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub fn query(&self, transport: Transport, is_ipv6: bool) {
        count(&self.queries[transport as usize * 2 + usize::from(is_ipv6)]);
    }

    pub fn reply(&self, rcode: Rcode, truncated: bool) {
        count(&self.replies[usize::from(rcode.0).min(RCODES - 1)]);
        if truncated {
            count(&self.truncated);
        }
    }

    pub fn dropped(&self, why: Dropped) {
        count(&self.dropped[why as usize]);
    }

    /// A reply was made from a copy of an earlier one, or could not be.
    pub fn copy(&self, used: bool) {
        count(if used {
            &self.copies_used
        } else {
            &self.copies_missed
        });
    }
}

/// Counters of the questions to upstream servers.
#[derive(Default)]
pub(super) struct ForwardCounters {
    pub sent: AtomicU64,
    pub timed_out: AtomicU64,
    pub failed: AtomicU64,
    pub unasked: AtomicU64,
    pub ignored: AtomicU64,
    pub over_tcp: AtomicU64,
    pub coalesced: AtomicU64,
    pub shed: AtomicU64,
}

/// What is known of the questions to upstream servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardStats {
    /// Queries sent, repeats and those over TCP included.
    pub sent: u64,
    /// Queries without an answer in time.
    pub timed_out: u64,
    /// Queries that failed otherwise, or were answered with an error.
    pub failed: u64,
    /// Queries that this node had no files, memory or ports for.
    pub unasked: u64,
    /// Messages that did not fit the query and were ignored: late, or forged.
    pub ignored: u64,
    /// Queries repeated over TCP.
    pub over_tcp: u64,
    /// Client questions that waited for a query already under way.
    pub coalesced: u64,
    /// Client questions refused because too much was under way.
    pub shed: u64,
    /// Questions under way now.
    pub outstanding: u64,
    /// Of these, by the forwarder that has the most.
    pub most_of_one: u64,
    /// Client questions waiting now.
    pub waiting: u64,
}

/// Everything that is counted, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsStats {
    /// By transport (`udp`, `tcp`) and address family (`ipv4`, `ipv6`).
    pub queries: BTreeMap<(&'static str, &'static str), u64>,
    /// By response code; codes above 22 are together under `OTHER`.
    pub replies: BTreeMap<String, u64>,
    pub truncated: u64,
    /// By the words of `Dropped::word`.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Replies made by patching a copy of an earlier one.
    pub copies_used: u64,
    pub copies_missed: u64,
    pub connections_accepted: u64,
    /// Connections closed at once because a limit was reached.
    pub connections_refused: u64,
    pub connections_timed_out: u64,
    /// Failures of accept for want of files or memory.
    pub accept_errors: u64,
    pub connections_open: u64,
    pub cache: CacheStats,
    pub forward: ForwardStats,
    /// Addresses that could not be bound yet.
    pub addresses_missing: u64,
    pub limits: Limits,
}

/// The bounds that the figures above run up against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of `connections_open`.
    pub connections: u64,
    /// Of these, from one client address.
    pub connections_per_client: u64,
    /// Of `cache.bytes`.
    pub cache_bytes: u64,
    /// Of `forward.outstanding`.
    pub outstanding: u64,
    /// Of `forward.most_of_one`, where there are several forwarders.
    pub outstanding_per_forwarder: u64,
    /// Of `forward.waiting`.
    pub waiting: u64,
    /// Of these, from one client address.
    pub waiting_per_client: u64,
}

impl DnsStats {
    pub(super) fn sum(shards: &[Arc<Counters>]) -> Self {
        let total = |pick: &dyn Fn(&Counters) -> &AtomicU64| -> u64 {
            shards.iter().map(|shard| pick(shard).load(Relaxed)).sum()
        };
        let kinds = [
            ("udp", "ipv4"),
            ("udp", "ipv6"),
            ("tcp", "ipv4"),
            ("tcp", "ipv6"),
        ];
        let queries = kinds.into_iter().enumerate();
        let replies = (0..RCODES).map(|at| (rcode_word(at), total(&|c| &c.replies[at])));
        let dropped = Dropped::ALL.into_iter();
        Self {
            queries: queries
                .map(|(at, kind)| (kind, total(&|c| &c.queries[at])))
                .collect(),
            replies: replies.filter(|(_, count)| *count > 0).collect(),
            truncated: total(&|c| &c.truncated),
            dropped: dropped
                .map(|why| (why.word(), total(&|c| &c.dropped[why as usize])))
                .collect(),
            copies_used: total(&|c| &c.copies_used),
            copies_missed: total(&|c| &c.copies_missed),
            connections_accepted: total(&|c| &c.connections_accepted),
            connections_refused: total(&|c| &c.connections_refused),
            connections_timed_out: total(&|c| &c.connections_timed_out),
            accept_errors: total(&|c| &c.accept_errors),
            ..Self::default()
        }
    }

    /// Queries of every kind.
    pub fn total_queries(&self) -> u64 {
        self.queries.values().sum()
    }
}

fn rcode_word(at: usize) -> String {
    if at == RCODES - 1 {
        return "OTHER".to_owned();
    }
    Rcode(at as u16).to_string()
}
