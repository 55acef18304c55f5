//! What `dns`, `proxy` and `vip` may know of consensus: a signal, received over a channel.

use std::time::{Duration, Instant};

use super::node::NodeId;

/// Where the VIPs are to be when that node can serve them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    pub node: NodeId,
    /// How long it has to have been fit and caught up before they go there; whole milliseconds, see `COOL_DOWN`.
    pub cool_down: Duration,
}

/// Shortest and longest cool-down of a preference.
pub const COOL_DOWN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(86_400));

/// This node's standing in its Raft group, as far as it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// The leader this node follows, or itself.
    pub leader: Option<NodeId>,
    /// Set while this node leads and has committed in its own term: until when no other node can have been elected. It
    /// runs from the *send* time of a heartbeat round that a quorum acknowledged. Being leader alone permits nothing.
    pub lease_until: Option<Instant>,
    /// This node gave its lease of `term` up for good: whatever else comes in this term, it holds nothing. A lease that is merely not
    /// there, because no quorum answers for a while, may come back in the same term.
    pub given_up: bool,
    /// Set while this node has given its lease of `term` away: to whom. Its VIPs are to be left to that node, and the
    /// connections it has through them served to their end.
    pub heir: Option<NodeId>,
    /// The term in which the right to hold was granted by another leader, if it has been unbroken since: nobody else can have
    /// held in between, whatever the term is now.
    pub granted_in: Option<u64>,
}

impl Leadership {
    /// Whether this node leads and its lease holds at `now`.
    pub fn holds(&self, now: Instant) -> bool {
        self.lease_until.is_some_and(|until| now < until)
    }
}
