//! The answering side of the peer links.
//!
//! Every call is checked before anything is done with it: the cluster, the intended receiver, the protocol, the sender's
//! certificate where there is one, whether the sender was removed, and whether it counts time as we do. Votes pass the
//! gate of `gate.rs`. A refusal says why; it is never an internal error.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use openraft::{
    errors::Fatal,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderRequest, VoteRequest,
    },
};
use pontoon_proto::v1::{
    RaftMessage,
    raft_server::{Raft as RaftRpc, RaftServer},
};
use serde::{Serialize, de::DeserializeOwned};
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{
    core::{Core, lock},
    fitness::Unfit,
    forward,
    gate::Gate,
    messages::{AdministerRequest, GrantRequest, Offer, ProposeRequest, ReadIndexRequest},
    network::{Identity, MESSAGE_LIMIT, PROTOCOL, REMOVED_KEY, SNAPSHOT_LIMIT, SnapshotHead},
    recovery::StopReason,
    types::{Snapshot, SnapshotData, TypeConfig},
};
use crate::{
    model::node::NodeId,
    pki::identity::Role,
    transport::{Peer as Caller, PeerInfo},
};

/// Bytes reserved at the start of a snapshot's transfer, whatever its head claims.
const SNAPSHOT_RESERVE: usize = 16 * 1024 * 1024;

/// How long a snapshot's sender may be silent before its transfer is given up. The whole transfer has no limit here: a slow
/// link may take long.
#[derive(Clone, Copy, Debug)]
pub(super) struct SenderSilence {
    /// Before the head.
    pub first: Duration,
    /// Between two parts.
    pub between: Duration,
}

impl Default for SenderSilence {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(5),
            between: Duration::from_secs(30),
        }
    }
}

/// Answers peers.
#[derive(Clone)]
pub struct RaftService {
    core: Arc<Core>,
    /// One snapshot is received at a time.
    receiving: Arc<tokio::sync::Semaphore>,
    silence: SenderSilence,
}

impl RaftService {
    pub(super) fn server(core: Arc<Core>, silence: SenderSilence) -> RaftServer<Self> {
        let service = Self {
            core,
            receiving: Arc::new(tokio::sync::Semaphore::new(1)),
            silence,
        };
        RaftServer::new(service)
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    fn admit(&self, extensions: &Extensions, message: &RaftMessage) -> Result<(), Status> {
        let caller = extensions.get::<PeerInfo>().map(|info| &info.peer);
        let from = NodeId(message.from);
        check(message, &self.core.links.me, caller, self.core.certificates)
            .and_then(|()| match self.core.is_retired(from) {
                true => Err(Refused::Removed(from)),
                false => Ok(()),
            })
            .map_err(|refused| {
                tracing::debug!(from = message.from, %refused, "peer call refused");
                refused.into()
            })
    }

    /// Checks a call and reads its payload.
    fn open<T: DeserializeOwned>(&self, request: Request<RaftMessage>) -> Result<T, Status> {
        let (_, extensions, message) = request.into_parts();
        self.admit(&extensions, &message)?;
        read(&message.payload)
    }

    fn envelope<T: Serialize>(&self, value: &T) -> Result<RaftMessage, Status> {
        let payload = postcard::to_stdvec(value)
            .map_err(|error| Status::internal(format!("the answer cannot be encoded: {error}")))?;
        let stated = self.core.stated();
        let links = &self.core.links;
        Ok(links.envelope_stating(stated, NodeId(0), Bytes::from(payload)))
    }

    fn reply<T: Serialize>(&self, value: &T) -> Result<Response<RaftMessage>, Status> {
        self.envelope(value).map(Response::new)
    }

    /// Consensus goes on here. openraft would log every message that it cannot take any more.
    fn takes_part(&self) -> Result<(), Status> {
        match self.core.ended() {
            Some(_) => Err(Refused::Ended.into()),
            None => Ok(()),
        }
    }

    /// A transfer voids what was promised to the leader that made it.
    fn vote_allowed(&self, by_transfer: bool) -> Result<(), Status> {
        self.takes_part()?;
        if !by_transfer && let Some(left) = self.core.refuses_for(Instant::now()) {
            return Err(Refused::Promised(left).into());
        }
        if let Gate::Closed(left) = self.core.gate.at(Instant::now()) {
            return Err(Refused::VotesWithheld(left).into());
        }
        // Nobody asks a newcomer for its vote. Who is asked and has no log has lost it, and with it what it promised.
        match self.core.last_log_index() {
            None => Err(Refused::NoLog.into()),
            Some(_) => Ok(()),
        }
    }

    /// Refuses the leader's entries when they show that entries this node acknowledged are gone: taken for a newcomer, it
    /// would make the cluster forget.
    fn log_is_whole(&self, message_to_voter: bool, known_here: Option<u64>) -> Result<(), Status> {
        if !log_lost(self.core.last_log_index(), message_to_voter, known_here) {
            return Ok(());
        }
        if !self.core.log_lost.send_replace(true) {
            tracing::error!(reason = %StopReason::LogLost, "this node leaves consensus");
        }
        Err(Refused::NoLog.into())
    }

    /// Checks a request of the leader's. `known_here` is the last entry that it says this node acknowledged.
    fn check_append(
        &self,
        extensions: &Extensions,
        message: &RaftMessage,
        known_here: impl FnOnce(&Append) -> Option<u64>,
    ) -> Result<Append, Status> {
        self.admit(extensions, message)?;
        let append: Append = read(&message.payload)?;
        self.takes_part()?;
        self.log_is_whole(message.to_is_voter, known_here(&append))?;
        // Before openraft sees it: whatever it answers, the promise is made.
        self.core.promise(append.vote.leader_id().term);
        Ok(append)
    }

    /// The requests of a stream, until the first that is refused: the reason is left in `refusal`.
    fn requests(
        &self,
        extensions: Extensions,
        messages: Streaming<RaftMessage>,
        refusal: Arc<Mutex<Option<Status>>>,
    ) -> impl Stream<Item = Append> + Send + 'static {
        let start = (self.clone(), extensions, messages, refusal);
        let requests = stream::unfold(start, |mut state| async move {
            let (service, extensions, messages, refusal) = &mut state;
            let checked = match messages.message().await {
                Ok(Some(message)) => {
                    service.check_append(extensions, &message, |_| message.acknowledged)
                }
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            match checked {
                Ok(append) => Some((append, state)),
                Err(status) => {
                    *lock(refusal) = Some(status);
                    None
                }
            }
        });
        requests.take_until(self.core.stop.clone().cancelled_owned())
    }

    fn answer_append(
        &self,
        appended: Result<StreamAppendResult<TypeConfig>, Fatal<TypeConfig>>,
    ) -> Result<RaftMessage, Status> {
        let appended = appended.map_err(|fatal| stopped(&fatal))?;
        if !matches!(appended, Err(StreamAppendError::HigherVote(_))) {
            self.core.heard_leader();
        }
        self.envelope(&appended)
    }
}

type Append = AppendEntriesRequest<TypeConfig>;

#[tonic::async_trait]
impl RaftRpc for RaftService {
    type AppendStream = BoxStream<'static, Result<RaftMessage, Status>>;
    type ForwardStream = BoxStream<'static, Result<RaftMessage, Status>>;

    async fn append(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (_, extensions, messages) = request.into_parts();
        let refusal = Arc::new(Mutex::new(None));
        let requests = self.requests(extensions, messages, Arc::clone(&refusal));
        let service = self.clone();
        let answers = self.core.raft.stream_append(requests);
        let answers = answers.map(move |appended| service.answer_append(appended));
        let refused = stream::once(async move { lock(&refusal).take().map(Err) });
        Ok(Response::new(
            answers
                .chain(refused.filter_map(std::future::ready))
                .boxed(),
        ))
    }

    async fn heartbeat(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let (_, extensions, message) = request.into_parts();
        // A heartbeat names the last entry that this node acknowledged.
        let acknowledged = |append: &Append| append.prev_log_id.map(|id| id.index);
        let append = self.check_append(&extensions, &message, acknowledged)?;
        let answer = self.core.raft.append_entries(append).await;
        let answer = answer.map_err(|error| match error.into_fatal() {
            Some(fatal) => stopped(&fatal),
            None => Status::internal("append refused"),
        })?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.core.heard_leader();
        }
        self.reply(&answer)
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let vote: VoteRequest<TypeConfig> = self.open(request)?;
        let by_transfer = vote.leadership_transfer;
        self.vote_allowed(by_transfer)?;
        let answer = self.core.raft.vote(vote).await;
        let answer = answer.map_err(|error| stopped(&error.unwrap_fatal()))?;
        // A leader may have been promised something meanwhile: then this vote is never heard of.
        self.vote_allowed(by_transfer)?;
        self.reply(&answer)
    }

    async fn pre_vote(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let vote: VoteRequest<TypeConfig> = self.open(request)?;
        self.vote_allowed(false)?;
        let answer = self.core.raft.pre_vote(vote).await;
        self.reply(&answer.map_err(|error| stopped(&error.unwrap_fatal()))?)
    }

    async fn transfer(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let transfer: TransferLeaderRequest<TypeConfig> = self.open(request)?;
        self.vote_allowed(true)?;
        let answer = self.core.raft.handle_transfer_leader(transfer).await;
        self.reply(&answer.map_err(|fatal| stopped(&fatal))?)
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let (_, extensions, mut messages) = request.into_parts();
        // Before the permit: who has not said who it is keeps nobody else from sending.
        let first = next_part(&mut messages, self.silence.first).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a snapshot without a head"))?;
        self.admit(&extensions, &first)?;
        self.takes_part()?;
        let head: SnapshotHead = read(&first.payload)?;
        let _one = self
            .receiving
            .try_acquire()
            .map_err(|_| Status::unavailable("another snapshot is being received"))?;
        let data = self.receive(&extensions, &head, messages).await?;
        let snapshot = Snapshot {
            meta: head.meta,
            snapshot: data,
        };
        self.core.promise(head.vote.leader_id().term);
        let answer = self
            .core
            .raft
            .install_full_snapshot(head.vote, snapshot)
            .await;
        let answer = answer.map_err(|fatal| stopped(&fatal))?;
        self.core.heard_leader();
        self.reply(&answer)
    }

    async fn propose(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let request: ProposeRequest = self.open(request)?;
        let deadline = deadline(request.wait_ms);
        self.reply(&self.core.propose_here(request.command, deadline).await)
    }

    async fn forward(
        &self,
        request: Request<Streaming<RaftMessage>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let (_, extensions, messages) = request.into_parts();
        let (reader, answerer) = (self.clone(), self.clone());
        let core = Arc::clone(&self.core);
        let read_commands = move |message: &RaftMessage| {
            reader.admit(&extensions, message)?;
            read(&message.payload)
        };
        let propose = move |request: ProposeRequest| {
            let core = Arc::clone(&core);
            async move {
                let deadline = deadline(request.wait_ms);
                core.propose_here(request.command, deadline).await
            }
        };
        let outcomes = forward::answers(messages, read_commands, propose);
        let answers = outcomes.map(move |outcomes| answerer.envelope(&outcomes?));
        let ended = self.core.stop.clone().cancelled_owned();
        Ok(Response::new(answers.take_until(ended).boxed()))
    }

    async fn read_index(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let request: ReadIndexRequest = self.open(request)?;
        self.reply(&self.core.read_index_here(deadline(request.wait_ms)).await)
    }

    async fn administer(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let request: AdministerRequest = self.open(request)?;
        let deadline = deadline(request.wait_ms);
        self.reply(&self.core.administer_here(request.change, deadline).await)
    }

    async fn canvass(
        &self,
        request: Request<RaftMessage>,
    ) -> Result<Response<RaftMessage>, Status> {
        let () = self.open(request)?;
        self.vote_allowed(true)?;
        // A vote is written before it is given.
        let disk = &self.core.disk;
        // Who asks waits no longer than the limit: it is to hear why.
        let limit = self.core.canvass_limit() * 2 / 3;
        if disk.silent_for().is_some() || !disk.answers_within(limit).await {
            return Err(Refused::DiskHangs.into());
        }
        self.reply(&())
    }

    async fn offer(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let from = NodeId(request.get_ref().from);
        let offer: Offer = self.open(request)?;
        self.vote_allowed(true)?;
        // The leader may not have heard of it: what a node says of itself is a second old, or as old as a cut that was just healed.
        if offer.only_fit
            && let Some(unfit) = self.core.why_unfit()
        {
            return Err(Refused::Unfit(unfit).into());
        }
        let limit = self.core.canvass_limit();
        let (canvassed, disk_answers) =
            tokio::join!(self.core.canvass(), self.core.probe.answers_within(limit));
        canvassed.map_err(Refused::NotElectable)?;
        if !disk_answers {
            return Err(Refused::DiskHangs.into());
        }
        self.reply(&self.core.note_offer(from, offer.term))
    }

    async fn grant(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let from = NodeId(request.get_ref().from);
        let grant: GrantRequest = self.open(request)?;
        self.takes_part()?;
        self.reply(&self.core.take_grant(from, grant))
    }

    async fn status(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let () = self.open(request)?;
        self.reply(&self.core.report())
    }
}

impl RaftService {
    async fn receive(
        &self,
        extensions: &Extensions,
        head: &SnapshotHead,
        mut messages: Streaming<RaftMessage>,
    ) -> Result<SnapshotData, Status> {
        let whole = usize::try_from(head.bytes)
            .ok()
            .filter(|bytes| *bytes <= SNAPSHOT_LIMIT)
            .ok_or_else(|| {
                Status::invalid_argument(format!(
                    "a snapshot of {} bytes; the limit is {SNAPSHOT_LIMIT}",
                    head.bytes
                ))
            })?;
        let mut data = Vec::with_capacity(whole.min(SNAPSHOT_RESERVE));
        while let Some(message) = next_part(&mut messages, self.silence.between).await? {
            self.admit(extensions, &message)?;
            data.extend_from_slice(&message.payload);
            if data.len() > whole {
                return Err(Status::invalid_argument(
                    "a snapshot longer than its head says",
                ));
            }
            // A leader that sends a snapshot lives.
            self.core.heard_leader();
        }
        if data.len() < whole {
            return Err(Status::invalid_argument(
                "a snapshot shorter than its head says",
            ));
        }
        Ok(SnapshotData(data.into()))
    }
}

/// The next part of a snapshot; none at its end. A sender that lost power never ends its stream.
async fn next_part(
    messages: &mut Streaming<RaftMessage>,
    silence: Duration,
) -> Result<Option<RaftMessage>, Status> {
    tokio::time::timeout(silence, messages.message())
        .await
        .unwrap_or_else(|_| {
            let problem = format!("the snapshot's sender was silent for {silence:?}: send it anew");
            Err(Status::deadline_exceeded(problem))
        })
}

/// Whether entries are gone that the leader counts on: a voter has some, and a heartbeat names one that was acknowledged.
fn log_lost(last_here: Option<u64>, voter: bool, acknowledged: Option<u64>) -> bool {
    (voter && last_here.is_none()) || acknowledged > last_here
}

fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Status> {
    postcard::from_bytes(payload)
        .map_err(|error| Status::invalid_argument(format!("the payload cannot be read: {error}")))
}

fn deadline(wait_ms: u64) -> Instant {
    // A peer's clock and patience are its own; ours ends.
    const LONGEST: u64 = 300_000;
    Instant::now() + Duration::from_millis(wait_ms.min(LONGEST))
}

fn stopped(fatal: &Fatal<TypeConfig>) -> Status {
    Status::unavailable(format!("consensus has ended on this node: {fatal}"))
}

/// Whether callers must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificates {
    Required,
    /// `pontoon dev` and tests, on loopback.
    NotUsed,
}

/// Why a peer's call is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("the caller belongs to cluster {theirs}, this node to cluster {ours}")]
    OtherCluster { theirs: String, ours: String },
    #[error("the call is meant for node {meant}, this is node {this}")]
    OtherNode { meant: u64, this: NodeId },
    #[error(
        "the caller speaks version {theirs} of the peer protocol, this node version {PROTOCOL}: run the same release on both"
    )]
    Protocol { theirs: u32 },
    #[error("the caller says it is node {claimed}, its certificate says {certified}")]
    OtherCertificate { claimed: u64, certified: String },
    #[error("the caller shows no certificate of a node")]
    NoCertificate,
    #[error("node {0} was removed from the cluster")]
    Removed(NodeId),
    #[error("the log of this node is gone: remove it from the cluster and join it anew")]
    NoLog,
    #[error("consensus has ended on this node until it is restarted")]
    Ended,
    #[error("a leader was heard a moment ago: this node elects nobody else for {0:?}")]
    Promised(Duration),
    #[error("this node started a moment ago and votes again in {0:?}")]
    VotesWithheld(Duration),
    /// Who would vote for it and why others would not.
    #[error("it would not be elected: {0}")]
    NotElectable(String),
    #[error("its disk does not answer: a write does not end in time")]
    DiskHangs,
    #[error("it is to hold no VIPs now: {0}")]
    Unfit(Unfit),
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        match refused {
            Refused::VotesWithheld(_)
            | Refused::NotElectable(_)
            | Refused::DiskHangs
            | Refused::Unfit(_)
            | Refused::NoLog
            | Refused::Promised(_)
            | Refused::Protocol { .. } => Status::failed_precondition(text),
            Refused::Removed(_) => {
                let mut status = Status::permission_denied(text);
                let yes = tonic::metadata::MetadataValue::from_static("1");
                status.metadata_mut().insert(REMOVED_KEY, yes);
                status
            }
            _ => Status::permission_denied(text),
        }
    }
}

/// Whether a message may be taken from this caller.
fn check(
    message: &RaftMessage,
    me: &Identity,
    caller: Option<&Caller>,
    certificates: Certificates,
) -> Result<(), Refused> {
    if message.cluster_id != me.cluster.0 {
        return Err(Refused::OtherCluster {
            theirs: message.cluster_id.chars().take(64).collect(),
            ours: me.cluster.0.clone(),
        });
    }
    if message.to != me.id.0 {
        return Err(Refused::OtherNode {
            meant: message.to,
            this: me.id,
        });
    }
    check_certificate(message, me, caller, certificates)?;
    if message.protocol != PROTOCOL {
        return Err(Refused::Protocol {
            theirs: message.protocol,
        });
    }
    Ok(())
}

fn check_certificate(
    message: &RaftMessage,
    me: &Identity,
    caller: Option<&Caller>,
    certificates: Certificates,
) -> Result<(), Refused> {
    match caller {
        Some(Caller::Identified(identity)) => {
            let same =
                identity.cluster == me.cluster && identity.role == Role::Node(NodeId(message.from));
            same.then_some(()).ok_or_else(|| Refused::OtherCertificate {
                claimed: message.from,
                certified: identity.to_string(),
            })
        }
        Some(Caller::Anonymous | Caller::Local { .. }) => Err(Refused::NoCertificate),
        Some(Caller::Plain) | None => match certificates {
            Certificates::Required => Err(Refused::NoCertificate),
            Certificates::NotUsed => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::node::ClusterId, pki::identity::Identity as Certified};

    #[test]
    fn a_log_is_lost_when_less_is_there_than_was_acknowledged() {
        // (last index here, counted as a voter, acknowledged, lost)
        let cases = [
            (None, false, None, false),
            (None, true, None, true),
            (None, false, Some(3), true),
            (Some(3), true, None, false),
            (Some(3), true, Some(3), false),
            (Some(9), false, Some(3), false),
            (Some(2), true, Some(3), true),
        ];
        for (last, voter, acknowledged, lost) in cases {
            assert_eq!(
                log_lost(last, voter, acknowledged),
                lost,
                "{last:?} {voter} {acknowledged:?}"
            );
        }
    }

    #[test]
    fn every_call_is_checked() {
        let me = Identity {
            cluster: ClusterId("c1".into()),
            id: NodeId(1),
        };
        let good = RaftMessage {
            cluster_id: "c1".into(),
            from: 2,
            to: 1,
            protocol: PROTOCOL,
            payload: Bytes::new(),
            election_timeout_max_ms: 300,
            to_is_voter: true,
            acknowledged: None,
        };
        let node = |cluster: &str, id| {
            Some(Caller::Identified(Certified::node(
                ClusterId(cluster.into()),
                NodeId(id),
            )))
        };
        let admin = Certified::admin(ClusterId("c1".into()), "ann");
        use Certificates::{NotUsed, Required};
        // (message, caller, certificates, part of the refusal)
        let cases = [
            (good.clone(), None, NotUsed, None),
            (good.clone(), Some(Caller::Plain), NotUsed, None),
            (good.clone(), node("c1", 2), Required, None),
            (good.clone(), None, Required, Some("no certificate")),
            (
                good.clone(),
                Some(Caller::Plain),
                Required,
                Some("no certificate"),
            ),
            (
                good.clone(),
                Some(Caller::Anonymous),
                NotUsed,
                Some("no certificate"),
            ),
            (
                good.clone(),
                Some(Caller::Local { uid: 0 }),
                Required,
                Some("no certificate"),
            ),
            (
                good.clone(),
                node("c1", 3),
                Required,
                Some("certificate says node 3"),
            ),
            (good.clone(), node("c2", 2), Required, Some("cluster c2")),
            (
                good.clone(),
                Some(Caller::Identified(admin)),
                Required,
                Some("administrator ann"),
            ),
            (
                RaftMessage {
                    cluster_id: "c2".into(),
                    ..good.clone()
                },
                None,
                NotUsed,
                Some("cluster c2"),
            ),
            (
                RaftMessage {
                    to: 3,
                    ..good.clone()
                },
                None,
                NotUsed,
                Some("meant for node 3"),
            ),
            (
                RaftMessage {
                    protocol: PROTOCOL + 1,
                    ..good.clone()
                },
                None,
                NotUsed,
                Some("the caller speaks version"),
            ),
            (
                RaftMessage {
                    election_timeout_max_ms: 400,
                    ..good.clone()
                },
                None,
                NotUsed,
                None,
            ),
            (RaftMessage::default(), None, NotUsed, Some("cluster")),
        ];
        for (message, caller, certificates, refusal) in cases {
            let verdict = check(&message, &me, caller.as_ref(), certificates);
            let text = verdict.map_err(|refused| refused.to_string());
            match refusal {
                None => assert_eq!(text, Ok(())),
                Some(part) => assert!(
                    text.as_ref().is_err_and(|t| t.contains(part)),
                    "{text:?}: {part}"
                ),
            }
        }
    }
}
