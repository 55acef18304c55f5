//! Finding out whether a node of the development cluster serves.

use std::{net::SocketAddr, time::Duration};

use super::{layout::Layout, progress::Progress};
use crate::{
    consensus::StopReason,
    pki::verify::Expected,
    transport::{Security, connect},
};
use pontoon_proto::v1::{
    ProbeRequest, Role, StatusRequest, cluster_client::ClusterClient, node_client::NodeClient,
};

/// Voters that a cluster makes by itself.
const MAX_VOTERS: usize = 5;
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(3);
const SILENT: &str = "it does not answer";
/// Between two looks at a node that does not serve yet.
const PAUSE: Duration = Duration::from_millis(30);

/// Why a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The cluster has removed it: it will serve no more.
    Removed,
    Other(String),
}

impl Lack {
    /// By what the node says of itself.
    fn of(problems: &[String]) -> Self {
        let removed = StopReason::Removed.to_string();
        match problems.contains(&removed) {
            true => Self::Removed,
            false => Self::Other(problems.join("; ")),
        }
    }
}

/// Waits until `node` serves a state of at least `revision`. The error says that it never will, or what it lacked last.
pub(super) async fn until_serving(
    layout: &Layout,
    node: u16,
    revision: u64,
    progress: &mut Progress,
) -> Result<(), Lack> {
    while !progress.is_over() {
        let lack = match serving_revision(layout.api(node)).await {
            Ok(found) if found >= revision => return Ok(()),
            Ok(found) => format!("node {node} serves revision {found}, not yet {revision}"),
            Err(Lack::Removed) => return Err(Lack::Removed),
            Err(Lack::Other(lack)) => format!("node {node}: {lack}"),
        };
        progress.note(lack);
        tokio::time::sleep(PAUSE).await;
    }
    Err(Lack::Other(progress.obstacle()))
}

/// Whether the node with this API runs and says that the cluster has removed it.
pub(super) async fn is_removed(api: SocketAddr) -> bool {
    serving_revision(api).await == Err(Lack::Removed)
}

/// Waits until every node votes: before that, the loss of one could stop writes. Beyond five, the rest stay learners.
pub(super) async fn until_voting(layout: &Layout, progress: &mut Progress) -> Result<(), String> {
    let wanted = usize::from(layout.nodes).min(MAX_VOTERS);
    while !progress.is_over() {
        let lack = match voters(layout.api(1)).await {
            Ok(found) if found >= wanted => return Ok(()),
            Ok(found) => format!("{found} of {wanted} nodes are voters"),
            Err(lack) => format!("node 1: {lack}"),
        };
        progress.note(lack);
        tokio::time::sleep(PAUSE).await;
    }
    Err(progress.obstacle())
}

async fn voters(api: SocketAddr) -> Result<usize, String> {
    let channel = connect::channel(api, &Security::Plain, Expected::AnyNode);
    let mut cluster = ClusterClient::new(channel);
    let asked = tokio::time::timeout(PATIENCE, cluster.status(StatusRequest {})).await;
    let nodes = asked
        .map_err(|_| SILENT.to_owned())?
        .map_err(|e| e.message().to_owned())?
        .into_inner()
        .nodes;
    Ok(nodes
        .iter()
        .filter(|node| node.role() == Role::Voter)
        .count())
}

/// The revision that the node with this API serves; the error says why it serves none.
async fn serving_revision(api: SocketAddr) -> Result<u64, Lack> {
    let channel = connect::channel(api, &Security::Plain, Expected::AnyNode);
    let mut node = NodeClient::new(channel);
    let asked = tokio::time::timeout(PATIENCE, node.probe(ProbeRequest {})).await;
    let reply = asked
        .map_err(|_| Lack::Other(SILENT.to_owned()))?
        .map_err(|e| Lack::Other(e.message().to_owned()))?;
    let reply = reply.into_inner();
    match reply.serving {
        true => Ok(reply.revision),
        false => Err(Lack::of(&reply.problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_removed_is_told_from_one_that_does_not_serve_yet() {
        let removed = StopReason::Removed.to_string();
        let stale = StopReason::TooStale.to_string();
        let unbound = String::from("127.0.0.1:53 cannot be bound");
        // (what it says, whether it was removed)
        let cases = [
            (vec![removed.clone()], true),
            (vec![removed, unbound.clone()], true),
            (vec![stale], false),
            (vec!["the state is being recovered".into(), unbound], false),
            (vec![], false),
        ];
        for (problems, expected) in cases {
            let lack = Lack::of(&problems);
            assert_eq!(lack == Lack::Removed, expected, "{problems:?}");
        }
    }
}
