//! Who is a member, as the replicated state says.

use std::collections::BTreeMap;

use super::types::Peer;
use crate::{model::node::NodeId, state::State};

/// The members; none while the state names none.
pub(super) fn members(state: &State) -> Option<BTreeMap<NodeId, Peer>> {
    let _ = state;
    None
}

/// Whether `id` belonged to a member that is one no longer.
pub(super) fn is_retired(state: &State, id: NodeId) -> bool {
    let _ = (state, id);
    false
}
