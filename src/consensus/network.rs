//! The calling side of the peer links: openraft's network over gRPC.
//!
//! Every peer has four connections, one per `Lane`, because a large append or a snapshot must never stand in front of a
//! heartbeat. Connections are lazy, reconnect by themselves and are shared by all callers of a lane. A call that found no connection
//! makes one; but for that nothing here retries: openraft and the handle decide what to do with a failed call.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use openraft::{
    OptionalSend, RPCTypes,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{Backoff, RPCOption, RaftNetworkFactory, v2::RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use pontoon_proto::v1::{RaftMessage, raft_client::RaftClient};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Server},
};

use super::{
    append_stream::{self, Appended},
    types::{Peer, Snapshot, SnapshotData, SnapshotMeta, TypeConfig, Vote},
};
use crate::model::node::{ClusterId, NodeId};

/// Version of the payloads' encoding. Raised when a message changes its shape.
pub const PROTOCOL: u32 = 11;

/// Largest message on a peer link, in bytes: one command of the largest size and its envelope. Larger ones are refused by
/// both sides.
pub const MESSAGE_LIMIT: usize = 72 * 1024 * 1024;

/// Bytes of a snapshot in one message.
const SNAPSHOT_CHUNK: usize = 1024 * 1024;

/// Largest snapshot that is sent or taken, in bytes. A million records take 5-15 MiB compressed.
pub const SNAPSHOT_LIMIT: usize = 1024 * 1024 * 1024;

/// A whole snapshot, sent, verified, flushed and installed by the peer.
const SNAPSHOT_TIME_LIMIT: Duration = Duration::from_secs(120);

/// A connection attempt. Peers are one switch away; a lost SYN is sent again after a second.
const CONNECT_LIMIT: Duration = Duration::from_millis(1500);

/// A call that finds no connection in so short a time has hardly tried to make one.
const AT_ONCE: Duration = Duration::from_millis(50);

/// How long sent bytes may stay unacknowledged before the kernel gives the connection up (TCP_USER_TIMEOUT), and how long
/// an HTTP/2 ping may. After a cut link heals, the next attempt then starts from a fresh connection at once.
pub const LINK_DEAD_AFTER: Duration = Duration::from_millis(1500);

/// Pause between HTTP/2 pings.
pub const PING_EVERY: Duration = Duration::from_millis(500);

/// Pause between the HTTP/2 pings of the answering side, and how long they may stay unanswered: a connection whose other end
/// lost power ends after both. More patient than the calling side, which has given a link up long before it could be cut
/// here.
const SERVER_PING_EVERY: Duration = Duration::from_secs(5);
const SERVER_PING_LIMIT: Duration = Duration::from_secs(10);

/// Makes channels to peers: plaintext for `pontoon dev` and tests, mutual TLS otherwise.
pub trait PeerConnector: Send + Sync + 'static {
    /// A channel to `to` at `address` that connects when first used and again whenever the connection is lost. Called once
    /// per lane and address.
    fn channel(&self, to: NodeId, address: SocketAddr) -> Channel;
}

/// The HTTP/2 settings of every peer channel. The address is the dialer's business.
pub fn peer_endpoint() -> Endpoint {
    Endpoint::from_static("http://peer")
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(LINK_DEAD_AFTER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(8 * 1024 * 1024)
}

/// The HTTP/2 settings of the server that peers connect to.
pub fn peer_server() -> Server {
    pinging_server(SERVER_PING_EVERY, SERVER_PING_LIMIT)
}

fn pinging_server(every: Duration, limit: Duration) -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(every))
        .http2_keepalive_timeout(Some(limit))
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    Append,
    /// Heartbeats, votes and the hand-over of leadership.
    Heartbeat,
    Snapshot,
    /// Forwarded proposals, reads and status.
    Call,
}

/// Who this node is to its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    pub cluster: ClusterId,
    pub id: NodeId,
}

/// Why a call to a peer brought no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The peer was not reached: it has not seen the request.
    #[error("node {to} at {address} cannot be reached: {problem}")]
    Unreached {
        to: NodeId,
        address: SocketAddr,
        problem: String,
    },
    /// The request may or may not have been seen.
    #[error("node {to} at {address} did not answer: {problem}")]
    NoAnswer {
        to: NodeId,
        address: SocketAddr,
        problem: String,
    },
    /// The peer refused to talk to this node, and has done nothing.
    #[error("node {to} at {address} refused: {problem}")]
    Refused {
        to: NodeId,
        address: SocketAddr,
        problem: String,
        /// The peer says that this node was removed from the cluster.
        removed: bool,
    },
}

/// Metadata key with which a peer says that the caller was removed from the cluster.
pub const REMOVED_KEY: &str = "pontoon-removed";

/// Metadata key with which a peer that ends a stream says that it has taken nothing of all that was on it.
pub const NOTHING_TAKEN_KEY: &str = "pontoon-nothing-taken";

/// The channels to all peers.
pub struct PeerLinks {
    pub me: Identity,
    connector: Arc<dyn PeerConnector>,
    channels: Mutex<HashMap<(NodeId, Lane), (SocketAddr, Channel)>>,
    voters: Mutex<BTreeSet<NodeId>>,
    /// What this node promises at present: for how long it refuses to elect another, in milliseconds.
    refusal_ms: AtomicU32,
    /// What each peer promised with the newest entries or heartbeat of ours that it answered, and when those were sent.
    promised: Mutex<HashMap<NodeId, (Instant, Duration)>>,
    /// The last entry that each peer acknowledged, and to which leadership of this node.
    acknowledged: Mutex<HashMap<NodeId, (Vote, u64)>>,
}

impl PeerLinks {
    pub fn new(me: Identity, connector: Arc<dyn PeerConnector>) -> Self {
        Self {
            me,
            connector,
            channels: Mutex::default(),
            voters: Mutex::default(),
            refusal_ms: AtomicU32::new(0),
            promised: Mutex::default(),
            acknowledged: Mutex::default(),
        }
    }

    /// This node promises so much from now on.
    pub fn set_refusal(&self, refusal: Duration) {
        let ms = u32::try_from(refusal.as_millis()).unwrap_or(u32::MAX);
        self.refusal_ms.store(ms, Ordering::SeqCst);
    }

    pub fn refusal(&self) -> Duration {
        Duration::from_millis(self.refusal_ms.load(Ordering::SeqCst).into())
    }

    /// What a peer promised with its newest answer; none before the first.
    pub fn promised(&self, by: NodeId) -> Option<Duration> {
        let promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        promised.get(&by).map(|(_, refusal)| *refusal)
    }

    /// Answers overtake each other: what was asked last counts.
    pub(super) fn note_promise(&self, by: NodeId, sent: Instant, refusal_ms: u32) {
        let refusal = Duration::from_millis(refusal_ms.into());
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = promised.entry(by).or_insert((sent, refusal));
        if newest.0 <= sent {
            *newest = (sent, refusal);
        }
    }

    pub(super) fn client(
        &self,
        to: NodeId,
        address: SocketAddr,
        lane: Lane,
    ) -> RaftClient<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = channels
            .entry((to, lane))
            .and_modify(|(known, channel)| {
                if *known != address {
                    *known = address;
                    *channel = self.connector.channel(to, address);
                }
            })
            .or_insert_with(|| (address, self.connector.channel(to, address)));
        RaftClient::new(entry.1.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// The lanes to a peer that were used.
    #[cfg(test)]
    pub(super) fn lanes_to(&self, to: NodeId) -> Vec<Lane> {
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let used = channels.keys().filter(|(peer, _)| *peer == to);
        used.map(|(_, lane)| *lane).collect()
    }

    /// Drops the channels to nodes that are no longer members.
    pub fn retain(&self, is_member: impl Fn(NodeId) -> bool) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(id, _), _| is_member(*id));
        self.promised
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id, _| is_member(*id));
        self.acknowledged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|id, _| is_member(*id));
    }

    /// Whom this node counts among the voters from now on.
    pub fn set_voters(&self, voters: BTreeSet<NodeId>) {
        *self.voters.lock().unwrap_or_else(PoisonError::into_inner) = voters;
    }

    pub fn envelope(&self, to: NodeId, payload: Bytes) -> RaftMessage {
        self.envelope_stating(self.refusal(), to, payload)
    }

    /// As `envelope`; `refusal` is what was promised with the answer that this is.
    pub fn envelope_stating(&self, refusal: Duration, to: NodeId, payload: Bytes) -> RaftMessage {
        RaftMessage {
            cluster_id: self.me.cluster.0.clone(),
            from: self.me.id.0,
            to: to.0,
            protocol: PROTOCOL,
            payload,
            election_timeout_max_ms: u32::try_from(refusal.as_millis()).unwrap_or(u32::MAX),
            to_is_voter: self
                .voters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&to),
            acknowledged: None,
        }
    }

    /// The last entry that `by` acknowledged to this node as the leader that `vote` names.
    pub(super) fn acknowledged(&self, by: NodeId, vote: &Vote) -> Option<u64> {
        let acknowledged = (self.acknowledged.lock()).unwrap_or_else(PoisonError::into_inner);
        let (to, index) = acknowledged.get(&by)?;
        (to == vote).then_some(*index)
    }

    pub(super) fn note_acknowledged(&self, by: NodeId, vote: Vote, index: u64) {
        let mut acknowledged = (self.acknowledged.lock()).unwrap_or_else(PoisonError::into_inner);
        let last = acknowledged.entry(by).or_insert((vote, index));
        *last = match last.0 == vote {
            true => (vote, last.1.max(index)),
            false => (vote, index),
        };
    }

    /// Calls a peer and waits at most `limit` for its answer.
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        target: Target,
        rpc: Rpc,
        request: &Q,
        limit: Duration,
    ) -> Result<A, CallError> {
        let message = self.envelope(target.id, target.encode(request)?);
        let calling = async {
            let began = Instant::now();
            match self.call_once(target, rpc, message.clone()).await {
                // A channel that nobody waits for stands still: what failed at once is an attempt of a call before, of long ago perhaps.
                Err(CallError::Unreached { .. }) if began.elapsed() < AT_ONCE => {
                    self.call_once(target, rpc, message).await
                }
                answered => answered,
            }
        };
        let answer = tokio::time::timeout(limit, calling)
            .await
            .map_err(|_| target.no_answer(format!("nothing within {limit:?}")))??;
        target.decode(&answer.payload)
    }

    async fn call_once(
        &self,
        target: Target,
        rpc: Rpc,
        message: RaftMessage,
    ) -> Result<RaftMessage, CallError> {
        let mut client = self.client(target.id, target.address, rpc.lane());
        let sent = Instant::now();
        let answer = match rpc {
            Rpc::Heartbeat => client.heartbeat(message).await,
            Rpc::Vote => client.vote(message).await,
            Rpc::PreVote => client.pre_vote(message).await,
            Rpc::Transfer => client.transfer(message).await,
            Rpc::Propose => client.propose(message).await,
            Rpc::ReadIndex => client.read_index(message).await,
            Rpc::Administer => client.administer(message).await,
            Rpc::Canvass => client.canvass(message).await,
            Rpc::Offer => client.offer(message).await,
            Rpc::Grant => client.grant(message).await,
            Rpc::Status => client.status(message).await,
        };
        let answer = answer
            .map_err(|status| target.failed(&status))?
            .into_inner();
        if rpc == Rpc::Heartbeat {
            self.note_promise(target.id, sent, answer.election_timeout_max_ms);
        }
        Ok(answer)
    }

    async fn send_snapshot(
        &self,
        target: Target,
        head: &SnapshotHead,
        data: &SnapshotData,
    ) -> Result<SnapshotResponse<TypeConfig>, CallError> {
        let mut client = self.client(target.id, target.address, Lane::Snapshot);
        let mut messages = vec![self.envelope(target.id, target.encode(head)?)];
        let mut rest = data.0.clone();
        while !rest.is_empty() {
            let chunk = rest.split_to(rest.len().min(SNAPSHOT_CHUNK));
            messages.push(self.envelope(target.id, chunk));
        }
        let sent = Instant::now();
        let sending = client.snapshot(futures::stream::iter(messages));
        let answer = tokio::time::timeout(SNAPSHOT_TIME_LIMIT, sending)
            .await
            .map_err(|_| target.no_answer(format!("nothing within {SNAPSHOT_TIME_LIMIT:?}")))?
            .map_err(|status| target.failed(&status))?
            .into_inner();
        self.note_promise(target.id, sent, answer.election_timeout_max_ms);
        target.decode(&answer.payload)
    }
}

/// The calls with one request and one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rpc {
    Heartbeat,
    Vote,
    PreVote,
    Transfer,
    Propose,
    ReadIndex,
    Administer,
    Canvass,
    Offer,
    Grant,
    Status,
}

impl Rpc {
    fn lane(self) -> Lane {
        match self {
            Self::Heartbeat
            | Self::Vote
            | Self::PreVote
            | Self::Transfer
            | Self::Canvass
            | Self::Offer
            | Self::Grant => Lane::Heartbeat,
            Self::Propose | Self::ReadIndex | Self::Administer | Self::Status => Lane::Call,
        }
    }
}

/// A peer to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub id: NodeId,
    pub address: SocketAddr,
}

impl Target {
    pub(super) fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes, CallError> {
        postcard::to_stdvec(value)
            .map(Bytes::from)
            .map_err(|error| self.unreached(format!("the request cannot be encoded: {error}")))
    }

    pub(super) fn decode<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, CallError> {
        postcard::from_bytes(payload)
            .map_err(|error| self.no_answer(format!("its answer cannot be read: {error}")))
    }

    pub(super) fn no_answer(&self, problem: String) -> CallError {
        CallError::NoAnswer {
            to: self.id,
            address: self.address,
            problem,
        }
    }

    pub(super) fn unreached(&self, problem: String) -> CallError {
        CallError::Unreached {
            to: self.id,
            address: self.address,
            problem,
        }
    }

    /// Sorts what gRPC says into: not seen, perhaps seen, refused. In doubt: perhaps seen.
    pub(super) fn failed(&self, status: &Status) -> CallError {
        let (to, address) = (self.id, self.address);
        let problem = describe(status);
        match status.code() {
            Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::Unimplemented => CallError::Refused {
                to,
                address,
                problem,
                removed: status.metadata().contains_key(REMOVED_KEY),
            },
            Code::Unavailable if is_connect_failure(status) => CallError::Unreached {
                to,
                address,
                problem,
            },
            _ => CallError::NoAnswer {
                to,
                address,
                problem,
            },
        }
    }
}

/// The message of a status with the causes below it, which tonic keeps apart.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_string();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Whether the connection could not even be made. tonic marks those with its `ConnectError`.
fn is_connect_failure(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// First message of a snapshot transfer.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct SnapshotHead {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub bytes: u64,
}

/// Hands openraft its clients.
#[derive(Clone)]
pub struct Network {
    pub links: Arc<PeerLinks>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerNetwork;

    /// Entries and heartbeats travel on lanes of their own, whoever sends them.
    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerNetwork {
        PeerNetwork {
            links: Arc::clone(&self.links),
            target: Target {
                id: NodeId(target),
                address: node.raft_address,
            },
        }
    }
}

/// openraft's client of one peer.
pub struct PeerNetwork {
    links: Arc<PeerLinks>,
    target: Target,
}

impl PeerNetwork {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        kind: RPCTypes,
        request: &Q,
        limit: Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let answer = self.links.call(self.target, rpc, request, limit).await;
        answer.map_err(|error| self.rpc_error(kind, limit, error))
    }

    fn rpc_error(
        &self,
        action: RPCTypes,
        timeout: Duration,
        error: CallError,
    ) -> RPCError<TypeConfig> {
        rpc_error(self.links.me.id, action, timeout, error)
    }
}

/// A failed call of node `me`, in openraft's terms.
pub(super) fn rpc_error(
    me: NodeId,
    action: RPCTypes,
    timeout: Duration,
    error: CallError,
) -> RPCError<TypeConfig> {
    match error {
        CallError::NoAnswer { to, .. } => RPCError::Timeout(Timeout {
            action,
            id: me.0,
            target: to.0,
            timeout,
        }),
        // Both make openraft wait before it tries again.
        error @ (CallError::Unreached { .. } | CallError::Refused { .. }) => {
            tracing::debug!(%error, "peer call failed");
            RPCError::Unreachable(Unreachable::from_string(error))
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    /// A heartbeat: see `stream_append`.
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        // openraft itself gives up then.
        let limit = option.hard_ttl();
        self.ask(Rpc::Heartbeat, RPCTypes::AppendEntries, &rpc, limit)
            .await
    }

    /// openraft sends heartbeats this way too, each as a stream of its own that holds one request and says so. On the stream
    /// they would stand behind entries, and wait for an answer to its opening before they are sent at all.
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if input.size_hint() != (1, Some(1)) {
            return Box::pin(append_stream::open(&self.links, self.target, input));
        }
        Box::pin(async move {
            let Some(request) = input.next().await else {
                return Ok(stream::empty().boxed());
            };
            if !request.entries.is_empty() {
                let input = stream::iter([request]);
                return append_stream::open(&self.links, self.target, input).await;
            }
            let (prev_log_id, limit) = (request.prev_log_id, option.hard_ttl());
            let answer = self.append_entries(request, option).await?;
            let nonsense = || {
                let error = self.target.no_answer("a conflict with nothing".into());
                rpc_error(self.links.me.id, RPCTypes::AppendEntries, limit, error)
            };
            let appended = append_stream::appended(answer, prev_log_id).ok_or_else(nonsense)?;
            Ok(stream::iter([Ok(appended)]).boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Rpc::Vote, RPCTypes::Vote, &rpc, option.soft_ttl())
            .await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(Rpc::PreVote, RPCTypes::Vote, &rpc, option.soft_ttl())
            .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let head = SnapshotHead {
            vote,
            meta: snapshot.meta,
            bytes: snapshot.snapshot.0.len() as u64,
        };
        // The transfer may be dropped midway: the peer throws away what it has of it.
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = self.links.send_snapshot(self.target, &head, &snapshot.snapshot) => {
                answer.map_err(|error| match error {
                    CallError::NoAnswer { .. } => StreamingError::Network(NetworkError::from_string(error)),
                    error => StreamingError::Unreachable(Unreachable::from_string(error)),
                })
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.ask(
            Rpc::Transfer,
            RPCTypes::TransferLeader,
            &req,
            option.soft_ttl(),
        )
        .await
    }

    /// Quickly at first: a peer that was restarted should be back within its first second.
    fn backoff(&self) -> Option<Backoff> {
        let pauses = [20, 40, 80, 160, 250].map(Duration::from_millis);
        Some(Backoff::new(
            pauses
                .into_iter()
                .chain(std::iter::repeat(Duration::from_millis(250))),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };
    use tokio_stream::wrappers::TcpListenerStream;

    use super::*;
    use crate::consensus::plaintext::dial;

    #[tokio::test]
    async fn a_connection_ends_when_pings_are_not_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let served = pinging_server(Duration::from_millis(20), Duration::from_millis(20))
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(served);
        let mut silent = TcpStream::connect(address).await.unwrap();
        let preface_and_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        silent.write_all(preface_and_settings).await.unwrap();
        let mut said = Vec::new();
        let ended = silent.read_to_end(&mut said);
        // It may be reset: an end either way.
        let _ = tokio::time::timeout(Duration::from_secs(30), ended)
            .await
            .expect("the server ends it");
        server.abort();
    }

    /// The first connection attempt is answered by nobody, the later ones are made.
    struct SilentAtFirst {
        dials: Arc<AtomicU32>,
    }

    impl PeerConnector for SilentAtFirst {
        fn channel(&self, _: NodeId, address: SocketAddr) -> Channel {
            let dials = Arc::clone(&self.dials);
            let dialer = tower::service_fn(move |_| {
                let first = dials.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    if first {
                        tokio::time::sleep(CONNECT_LIMIT).await;
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    Ok::<_, io::Error>(TokioIo::new(dial(address).await?))
                }
            });
            peer_endpoint().connect_with_connector_lazy(dialer)
        }
    }

    #[tokio::test]
    async fn an_attempt_to_connect_of_long_ago_fails_no_call() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let served = Server::builder()
            .add_service(health)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(served);
        let dials = Arc::new(AtomicU32::new(0));
        let connector = SilentAtFirst {
            dials: Arc::clone(&dials),
        };
        let me = Identity {
            cluster: ClusterId("test".into()),
            id: NodeId(1),
        };
        let links = PeerLinks::new(me, Arc::new(connector));
        let to = Target {
            id: NodeId(2),
            address,
        };
        let call = |limit| links.call::<(), ()>(to, Rpc::PreVote, &(), limit);
        let early = call(Duration::from_millis(50)).await.unwrap_err();
        assert!(early.to_string().contains("nothing within"), "{early}");
        assert_eq!(dials.load(Ordering::SeqCst), 1);
        // The link is whole again, and nobody uses it for a while.
        tokio::time::sleep(CONNECT_LIMIT * 2).await;
        let answered = call(Duration::from_secs(10)).await.unwrap_err();
        // There is no such service: the peer was reached.
        assert!(matches!(answered, CallError::Refused { .. }), "{answered}");
        server.abort();
    }

    #[test]
    fn a_status_is_sorted_by_whether_the_request_was_seen() {
        let target = Target {
            id: NodeId(2),
            address: "127.0.0.1:1".parse().unwrap(),
        };
        let seen = |status| match target.failed(&status) {
            CallError::Unreached { .. } => "unreached",
            CallError::NoAnswer { .. } => "no answer",
            CallError::Refused { .. } => "refused",
        };
        assert_eq!(seen(Status::permission_denied("wrong cluster")), "refused");
        assert_eq!(seen(Status::failed_precondition("no vote yet")), "refused");
        assert_eq!(seen(Status::unavailable("connection reset")), "no answer");
        assert_eq!(seen(Status::internal("h2")), "no answer");
        assert_eq!(seen(Status::deadline_exceeded("late")), "no answer");
    }
}
