//! Channels to other members, by the node's own credentials and from its own address.

use std::net::{IpAddr, SocketAddr};

use tonic::transport::Channel;

use crate::{
    consensus::{
        PeerConnector,
        network::{LINK_DEAD_AFTER, peer_endpoint},
    },
    model::node::NodeId,
    pki::verify::Expected,
    transport::{
        Security,
        connect::{Link, channel_over},
    },
};

/// Connects to peers as this node.
pub(super) struct Connector {
    pub(super) security: Security,
    /// This node's own address.
    pub(super) local: IpAddr,
}

impl PeerConnector for Connector {
    fn channel(&self, to: NodeId, address: SocketAddr) -> Channel {
        let link = Link {
            endpoint: peer_endpoint(),
            local: Some(self.local),
            user_timeout: LINK_DEAD_AFTER,
        };
        channel_over(link, address, &self.security, Expected::Node(to))
    }
}
