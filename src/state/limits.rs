//! Limits of the replicated state. All of them are checked before a command is proposed or when it is applied.
//!
//! Apply decides by these numbers, so every node must have the same ones: a change of a number takes effect only behind a
//! new feature level.

use std::time::Duration;

/// Changes of one command.
pub const CHANGES_PER_COMMAND: usize = 200_000;
/// Preconditions of one command.
pub const PRECONDITIONS_PER_COMMAND: usize = 10_000;
/// Octets of a command's author.
pub const AUTHOR_OCTETS: usize = 256;

/// Zones in the state.
pub const ZONES: usize = 100_000;
/// Records of one zone.
pub const RECORDS_PER_ZONE: u64 = 2_000_000;
/// Octets of record data of one zone.
pub const DATA_PER_ZONE: u64 = 512 << 20;
/// Records of all zones together.
pub const RECORDS: u64 = 4_000_000;
/// Octets of record data of all zones together.
pub const DATA: u64 = 1 << 30;
/// Record types at one name.
pub const TYPES_PER_NAME: usize = 100;
/// Octets of a set in a message of 65,535: without the header, the question, an OPT record and a signature.
pub const RRSET_WIRE_OCTETS: usize = 65_535 - 12 - 259 - 11 - 512;
/// Octets of a record in a message beside its data: a compressed owner, type, class, TTL and length.
pub const RECORD_OVERHEAD: usize = 12;

/// Versions kept in the history of one zone.
pub const VERSIONS_PER_ZONE: usize = 100;
/// Octets kept in the history of one zone: a few imports of 200,000 records can be taken back.
pub const HISTORY_PER_ZONE: u64 = 64 << 20;
/// Octets kept in the histories of all zones together.
pub const HISTORY: u64 = 128 << 20;
/// Characters of a summary in a history.
pub const SUMMARY_CHARS: usize = 200;
/// Deleted zones whose serials are remembered.
pub const DELETED_ZONES: usize = 100_000;

/// Commands whose request ids and outcomes are remembered.
pub const REQUESTS: usize = 100_000;
/// Octets of the words of a remembered refusal: longer ones are cut.
pub const REFUSAL_OCTETS: usize = 480;
/// Octets of remembered outcomes.
pub const REQUEST_OCTETS: u64 = 64 << 20;

/// Pools in the state.
pub const POOLS: usize = 10_000;
/// Backends of one pool.
pub const BACKENDS_PER_POOL: usize = 1_000;
/// Backends of all pools together.
pub const BACKENDS: usize = 100_000;
/// Listeners in the state.
pub const LISTENERS: usize = 10_000;
/// VIPs in the state.
pub const VIPS: usize = 1_000;
/// Forwarders in the state.
pub const FORWARDERS: usize = 10_000;
/// Upstreams of one forwarder.
pub const UPSTREAMS: usize = 16;
/// Networks of the recursion allow-list.
pub const RECURSION_NETWORKS: usize = 10_000;

/// Largest weight of a backend.
pub const WEIGHT: u16 = 1_000;
/// Connections at one time of a listener on one node.
pub const CONNECTIONS: u32 = 1_000_000;
/// Further backends tried when a connection fails.
pub const CONNECT_RETRIES: u8 = 10;
/// Rise and fall counts of a health check.
pub const HEALTH_COUNT: u8 = 100;
/// Interval between probes, at least and at most.
pub const PROBE_INTERVAL: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(3600));
/// Timeout of a probe and of a connection to a backend, at least and at most.
pub const CONNECT_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_secs(60));
/// Idle timeout of a listener, at least and at most.
pub const IDLE_TIMEOUT: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Timeout of a forwarder's upstream, at least and at most.
pub const UPSTREAM_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_secs(30));

/// Members of the cluster.
pub const MEMBERS: usize = 1_000;
/// Characters of a member's name.
pub const MEMBER_NAME: usize = 63;
/// Join tokens, used ones included.
pub const TOKENS: usize = 1_000;
/// Octets of a token id or of the hash of its secret.
pub const TOKEN_OCTETS: usize = 128;
/// Octets of the certificate authority in PEM.
pub const CA_OCTETS: usize = 64 << 10;
