//! Members of the cluster.

use std::{fmt, net::SocketAddr};

/// A node's number: allocated from the log, never reused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a text means a node's id where an id or a name may stand: digits alone. No node may have such a name.
pub fn is_like_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit())
}

/// The cluster's name for itself: 128 random bits, in hexadecimal, made by `cluster init`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub String);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the state knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    /// Unique among members that have not been retired.
    pub name: String,
    /// Where peers reach it.
    pub raft_address: SocketAddr,
    /// Where its API is reached.
    pub api_address: SocketAddr,
}
