//! Answering DNS: authoritative from the snapshot, else from upstreams through a bounded cache.
//!
//! Deciding: `respond` (a message in, a reply or a question to an upstream out) with `answer`, `zone_tree`, `message` and
//! `cache`. Doing: `server` owns `udp` workers, `tcp` connections and `forward`. Snapshots come over a channel; consensus
//! is never called, so a node without a quorum goes on answering.

mod attempts;
mod builtin;
mod chain;
mod exchange;
mod fast_path;
mod files;
mod flushes;
mod forward;
mod query_source;
mod scrub;
mod sections;
mod server;
mod service;
mod socket;
mod stats;
mod tcp;
mod udp;
mod under_way;
mod upstream_times;
mod waiting;
mod zone_tree;

pub mod answer;
pub mod cache;
pub mod message;
pub mod metrics;
pub mod respond;

pub use cache::{CacheLimits, CacheStats, Flush};
pub use forward::ForwardLimits;
pub use respond::Identity;
pub use server::{DnsConfig, DnsServer, LocalReply, Source, StartError, Unbound};
pub use service::TcpLimits;
pub use stats::{DnsStats, Dropped, ForwardStats};

#[cfg(test)]
mod agreement_tests;
#[cfg(test)]
mod answer_tests;
#[cfg(test)]
mod chain_tests;
#[cfg(test)]
mod entry_tests;
#[cfg(test)]
mod fast_path_tests;
#[cfg(test)]
mod forward_tests;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod testing;
