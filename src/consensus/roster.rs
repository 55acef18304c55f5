//! Who is a member, as the replicated state says.

use std::collections::BTreeMap;

use super::types::Peer;
use crate::{model::node::NodeId, state::State};

/// The members; none while the state names none.
pub(super) fn members(state: &State) -> Option<BTreeMap<NodeId, Peer>> {
    let members = state.members();
    let peer = |member: &crate::model::node::Member| Peer {
        name: member.name.clone(),
        raft_address: member.raft_address,
        api_address: member.api_address,
    };
    (!members.is_empty()).then(|| {
        members
            .iter()
            .map(|(id, member)| (*id, peer(member)))
            .collect()
    })
}
