//! The cluster's own part of the state: its id, certificate authority, members, join tokens and feature level.

use std::sync::Arc;

use imbl::OrdMap;

use super::command::{JoinToken, Secret};
use crate::model::{
    leadership::Preference,
    node::{ClusterId, Member, NodeId},
    timing::Profile,
};

/// The level of a new cluster: kinds of command that every release knows.
pub const FIRST_FEATURE_LEVEL: u32 = 1;
/// The newest level this program knows.
pub const FEATURE_LEVEL: u32 = 1;

/// Who belongs to the cluster and by what right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// None before `InitCluster`.
    pub id: Option<ClusterId>,
    /// Certificate and key in PEM.
    pub ca: Secret,
    /// Certificate, without key, of the authority before the last rotation: still trusted.
    pub previous_ca: Option<String>,
    /// The id the next member gets. Every lower id is a member's or has been retired for ever.
    pub next_node: NodeId,
    pub members: OrdMap<NodeId, Arc<Member>>,
    pub tokens: OrdMap<String, Arc<JoinToken>>,
    pub feature_level: u32,
    /// How the group counts time.
    pub profile: Profile,
    /// The last hand-over of the VIPs; none when the node that leads now has taken them under a lease of its own.
    pub vip_release: Option<VipRelease>,
    /// Where the VIPs are to be; none: wherever they are.
    pub preference: Option<Preference>,
}

/// The VIPs were given up in `term`, for `to` to take: the votes that make it the leader do not wait for the lease to lapse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipRelease {
    pub to: NodeId,
    pub term: u64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            id: None,
            ca: Secret::default(),
            previous_ca: None,
            next_node: NodeId(1),
            members: OrdMap::new(),
            tokens: OrdMap::new(),
            feature_level: FIRST_FEATURE_LEVEL,
            profile: Profile::default(),
            vip_release: None,
            preference: None,
        }
    }
}

impl Cluster {
    /// Whether `id` belonged to a member that is one no longer.
    pub fn is_retired(&self, id: NodeId) -> bool {
        id.0 > 0 && id < self.next_node && !self.members.contains_key(&id)
    }
}

/// The certificates of a PEM text, without its keys; none when it holds none.
pub fn certificates(pem: &str) -> Option<String> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let mut found = String::new();
    let mut rest = pem;
    while let Some((_, tail)) = rest.split_once(BEGIN) {
        let Some((body, tail)) = tail.split_once(END) else {
            break;
        };
        for part in [BEGIN, body, END, "\n"] {
            found.push_str(part);
        }
        rest = tail;
    }
    (!found.is_empty()).then_some(found)
}
