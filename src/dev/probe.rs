//! Finding out whether a node of the development cluster serves.

use std::{net::SocketAddr, time::Duration};

use super::{layout::Layout, progress::Progress};
use crate::{
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

/// Waits until `node` serves a state of at least `revision`. The error says what it lacked last.
pub(super) async fn until_serving(
    layout: &Layout,
    node: u16,
    revision: u64,
    progress: &mut Progress,
) -> Result<(), String> {
    while !progress.is_over() {
        let lack = match serving_revision(layout.api(node)).await {
            Ok(found) if found >= revision => return Ok(()),
            Ok(found) => format!("node {node} serves revision {found}, not yet {revision}"),
            Err(lack) => format!("node {node}: {lack}"),
        };
        progress.note(lack);
        tokio::time::sleep(PAUSE).await;
    }
    Err(progress.obstacle())
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
async fn serving_revision(api: SocketAddr) -> Result<u64, String> {
    let channel = connect::channel(api, &Security::Plain, Expected::AnyNode);
    let mut node = NodeClient::new(channel);
    let asked = tokio::time::timeout(PATIENCE, node.probe(ProbeRequest {})).await;
    let reply = asked
        .map_err(|_| SILENT.to_owned())?
        .map_err(|e| e.message().to_owned())?;
    let reply = reply.into_inner();
    if reply.serving {
        Ok(reply.revision)
    } else {
        Err(reply.problems.join("; "))
    }
}
