//! Calls of one node's API, over its unix socket: that lies in the file system, which all namespaces of the lab share.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use pontoon::{model::timing::Timing, state::command::Change};
use pontoon_proto::v1::{
    CreateTokenRequest, LeaveRequest, NodeStatusReply, NodeStatusRequest, ProposeRequest,
    RemoveRequest, SetProfileRequest, StatusReply, StatusRequest, TransferRequest,
    admin_client::AdminClient, cluster_client::ClusterClient, node_client::NodeClient,
};
use rand::RngExt;
use tokio::{net::UnixStream, runtime::Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::LabError;

/// A client of one node. Blocks; every call has a deadline.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    socket: PathBuf,
    channel: Channel,
}

impl Client {
    /// Connects when first used, and anew after the node was restarted.
    pub fn to(socket: &Path) -> Result<Self, LabError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(LabError::Runtime)?;
        let channel = {
            let _inside = runtime.enter();
            lazy_channel(socket.to_owned())
        };
        Ok(Self {
            runtime,
            socket: socket.to_owned(),
            channel,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn status(&self, patience: Duration) -> Result<StatusReply, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        self.call(
            patience,
            async move { client.status(StatusRequest {}).await },
        )
    }

    /// What the node says of itself, with nobody else asked.
    pub fn own_status(&self, patience: Duration) -> Result<NodeStatusReply, Status> {
        let mut client = NodeClient::new(self.channel.clone());
        self.call(patience, async move {
            client.status(NodeStatusRequest {}).await
        })
    }

    pub fn create_token(&self, patience: Duration) -> Result<String, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let request = CreateTokenRequest::default();
        let reply = self.call(patience, async move { client.create_token(request).await })?;
        Ok(reply.token)
    }

    /// Hands leadership to another voter.
    pub fn transfer(&self, patience: Duration) -> Result<u64, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let request = TransferRequest::default();
        let reply = self.call(patience, async move { client.transfer(request).await })?;
        Ok(reply.leader)
    }

    /// Sets how the group counts time.
    pub fn set_timing(&self, timing: &Timing, patience: Duration) -> Result<(), Status> {
        let request_id: [u8; 16] = rand::rng().random();
        let request = SetProfileRequest {
            profile: String::new(),
            timing: Some((*timing).into()),
            request_id: request_id.to_vec().into(),
        };
        let mut client = ClusterClient::new(self.channel.clone());
        self.call(patience, async move { client.set_profile(request).await })
            .map(drop)
    }

    /// Moves leadership, and with it the VIPs, to a voter by its id (`pontoon vip move`).
    pub fn move_to(&self, node_id: u64, patience: Duration) -> Result<u64, Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let request = TransferRequest { to: Some(node_id) };
        let reply = self.call(patience, async move { client.transfer(request).await })?;
        Ok(reply.leader)
    }

    /// Sets the timing profile: `lan`, `fast` or `wan`.
    pub fn set_profile(&self, profile: &str, patience: Duration) -> Result<(), Status> {
        let request_id: [u8; 16] = rand::rng().random();
        let request = SetProfileRequest {
            profile: profile.to_owned(),
            timing: None,
            request_id: request_id.to_vec().into(),
        };
        let mut client = ClusterClient::new(self.channel.clone());
        self.call(patience, async move { client.set_profile(request).await })
            .map(drop)
    }

    /// Makes this node leave; its process ends.
    pub fn leave(&self, patience: Duration) -> Result<(), Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        self.call(patience, async move { client.leave(LeaveRequest {}).await })
            .map(drop)
    }

    /// Removes another node by its id.
    pub fn remove(&self, node_id: u64, patience: Duration) -> Result<(), Status> {
        let mut client = ClusterClient::new(self.channel.clone());
        let request = RemoveRequest { node_id };
        self.call(patience, async move { client.remove(request).await })
            .map(drop)
    }

    /// Commits changes as one command; returns the revision.
    pub fn propose(&self, changes: &[Change], patience: Duration) -> Result<u64, Status> {
        let request_id: [u8; 16] = rand::rng().random();
        let request = ProposeRequest {
            request_id: request_id.to_vec().into(),
            born: 0,
            preconditions: vec![],
            changes: changes.iter().map(Into::into).collect(),
        };
        let mut client = AdminClient::new(self.channel.clone());
        let reply = self.call(patience, async move { client.propose(request).await })?;
        let applied = reply
            .applied
            .ok_or_else(|| Status::internal("no outcome"))?;
        Ok(applied.revision)
    }

    fn call<T>(
        &self,
        patience: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let bounded = async { tokio::time::timeout(patience, call).await };
        match self.runtime.block_on(bounded) {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer in time")),
        }
    }
}

/// A connection that is made when first used, and again whenever it broke.
pub(crate) fn lazy_channel(socket: PathBuf) -> Channel {
    // The URI is for show: the connector goes to the socket whatever it says.
    Endpoint::from_static("http://node.invalid").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}
