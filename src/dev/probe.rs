//! Finding out whether a node of the development cluster serves.

use std::{net::SocketAddr, time::Duration};

use pontoon_proto::v1::{
    ProbeRequest, Role, StatusRequest, cluster_client::ClusterClient, node_client::NodeClient,
};
use tokio::time::Instant;

use super::layout::Layout;
use crate::{
    pki::verify::Expected,
    transport::{Security, connect},
};

/// Voters that a cluster makes by itself.
const MAX_VOTERS: usize = 5;
/// Between two looks at a node that does not serve yet.
const PAUSE: Duration = Duration::from_millis(30);

/// Waits until `node` serves a state of at least `revision`. The error says what it lacked last.
pub(super) async fn until_serving(
    layout: &Layout,
    node: u16,
    revision: u64,
    deadline: Instant,
) -> Result<(), String> {
    let mut problem = format!("node {node} was not asked");
    while Instant::now() < deadline {
        match serving_revision(layout.api(node)).await {
            Ok(found) if found >= revision => return Ok(()),
            Ok(found) => {
                problem = format!("node {node} serves revision {found}, not yet {revision}")
            }
            Err(lack) => problem = format!("node {node}: {lack}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(problem)
}

/// Waits until every node votes: before that, the loss of one could stop writes. Beyond five, the rest stay learners.
pub(super) async fn until_voting(layout: &Layout, deadline: Instant) -> Result<(), String> {
    let wanted = usize::from(layout.nodes).min(MAX_VOTERS);
    let mut problem = "node 1 was not asked".to_owned();
    while Instant::now() < deadline {
        match voters(layout.api(1)).await {
            Ok(found) if found >= wanted => return Ok(()),
            Ok(found) => problem = format!("{found} of {wanted} nodes are voters"),
            Err(lack) => problem = lack,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(problem)
}

async fn voters(api: SocketAddr) -> Result<usize, String> {
    let channel = connect::channel(api, &Security::Plain, Expected::AnyNode);
    let status = ClusterClient::new(channel).status(StatusRequest {}).await;
    let nodes = status
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
    let reply = NodeClient::new(channel)
        .probe(ProbeRequest {})
        .await
        .map_err(|e| e.message().to_owned())?;
    let reply = reply.into_inner();
    if reply.serving {
        Ok(reply.revision)
    } else {
        Err(reply.problems.join("; "))
    }
}
