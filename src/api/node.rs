//! The Node service: what one node does, and calls that are passed on to other nodes.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use pontoon_proto::v1::{self, node_client::NodeClient, node_server::Node};
use tonic::{Request, Response, Status};

use super::{
    Api,
    caller::Caller,
    deadline_of,
    dns::until,
    group::{BackendHealth, BackendVerdict, HeldVip, ListenerReport, NodeReport},
};
use crate::{
    model::{
        few::{and_more, first_few},
        node::{Member, NodeId},
    },
    wire::error::Failure,
};

/// Largest answer of another node, in octets: a hundred thousand backends and listeners with their problems.
const MAX_ANSWER: usize = 64 << 20;
/// Longest wait for another node that is asked about itself.
const ASK_TIMEOUT: Duration = Duration::from_millis(1000);

#[tonic::async_trait]
impl Node for Api {
    async fn status(
        &self,
        request: Request<v1::NodeStatusRequest>,
    ) -> Result<Response<v1::NodeStatusReply>, Status> {
        Caller::member_or_admin(&request)?;
        Ok(Response::new(self.own_status()))
    }

    async fn reload(
        &self,
        request: Request<v1::ReloadRequest>,
    ) -> Result<Response<v1::ReloadReply>, Status> {
        Caller::admin(&request)?;
        let reloaded = self.node().reload().await?;
        Ok(Response::new(v1::ReloadReply {
            applied: reloaded.applied,
            needs_restart: reloaded.needs_restart,
        }))
    }

    async fn probe(
        &self,
        request: Request<v1::ProbeRequest>,
    ) -> Result<Response<v1::ProbeReply>, Status> {
        Caller::member_or_admin(&request)?;
        let mut problems = self.node().report().not_serving;
        let (stale, revision) = match self.0.node.group() {
            Some(group) => (group.standing().stale, group.state().revision()),
            None => {
                // The node says why by itself.
                if problems.is_empty() {
                    problems.push("it belongs to no cluster yet".to_owned());
                }
                (false, 0)
            }
        };
        Ok(Response::new(v1::ProbeReply {
            serving: problems.is_empty(),
            problems,
            stale,
            revision,
        }))
    }

    async fn dns_stats(
        &self,
        request: Request<v1::DnsStatsRequest>,
    ) -> Result<Response<v1::DnsStatsReply>, Status> {
        Caller::member_or_admin(&request)?;
        let deadline = deadline_of(&request);
        let reply = self.stats(request.into_inner(), deadline).await?;
        Ok(Response::new(reply))
    }

    async fn dns_flush(
        &self,
        request: Request<v1::DnsFlushRequest>,
    ) -> Result<Response<v1::DnsFlushReply>, Status> {
        Caller::member_or_admin(&request)?;
        let deadline = deadline_of(&request);
        let reply = self.flush(request.into_inner(), deadline).await?;
        Ok(Response::new(reply))
    }

    async fn dns_query(
        &self,
        request: Request<v1::DnsQueryRequest>,
    ) -> Result<Response<v1::DnsQueryReply>, Status> {
        Caller::member_or_admin(&request)?;
        let deadline = deadline_of(&request);
        let reply = self.query(request.into_inner(), deadline).await?;
        Ok(Response::new(reply))
    }
}

impl Api {
    /// What this node says of itself.
    pub(super) fn own_status(&self) -> v1::NodeStatusReply {
        let NodeReport {
            name,
            pid,
            raft_address,
            api_address,
            not_serving,
            held_vips,
            unfenced_vips,
            backends,
            listeners,
            alarms,
            service_addresses,
            interfaces,
            occupied,
        } = self.node().report();
        let group = self.0.node.group();
        let standing = group.as_ref().map(|g| g.standing()).unwrap_or_default();
        // Index and hash of one state: taken apart, another entry could come between.
        let applied = group.map(|g| g.applied());
        let id = standing.id.0;
        let problems = std::iter::once(standing.problem).filter(|p| !p.is_empty());
        let problems = first_few(problems.chain(not_serving).collect(), and_more);
        let node = v1::NodeSummary {
            id,
            name,
            role: if standing.voters.contains(&standing.id) {
                v1::Role::Voter
            } else {
                v1::Role::Learner
            }
            .into(),
            state: match standing.role {
                "" => "starting".to_owned(),
                role => role.to_owned(),
            },
            applied: applied.as_ref().map(|a| a.index),
            lag: None,
            address: api_address.map(|a| a.to_string()).unwrap_or_default(),
            raft_address: raft_address.map(|a| a.to_string()).unwrap_or_default(),
            state_hash: applied
                .map(|a| bytes::Bytes::copy_from_slice(&a.state.hash()))
                .unwrap_or_default(),
            stale: standing.stale,
            pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            problem: problems.join("; "),
            election_timeout_max_ms: crate::wire::millis(standing.refusal),
            flush_us: u64::try_from(standing.flush.as_micros()).unwrap_or(u64::MAX),
            unfit: standing.unfit,
        };
        v1::NodeStatusReply {
            node: Some(node),
            term: standing.term,
            leader: standing.leader.map(|id| id.0),
            held_vips: held_vips.into_iter().map(|vip| held(vip, id)).collect(),
            backends: backends.into_iter().map(|b| verdict(b, id)).collect(),
            listeners: listeners.into_iter().map(|l| listener(l, id)).collect(),
            alarms,
            service_addresses: service_addresses.iter().map(ToString::to_string).collect(),
            interfaces,
            occupied: occupied.into_iter().map(on_device).collect(),
            unfenced_vips: unfenced_vips.iter().map(ToString::to_string).collect(),
        }
    }

    /// What a member says of itself; none when it does not answer in time.
    pub(super) async fn ask_status(
        &self,
        member: &Arc<Member>,
        deadline: Instant,
    ) -> Option<v1::NodeStatusReply> {
        if member.id == self.id() {
            return Some(self.own_status());
        }
        let mut client = self.client(member);
        let asked = client.status(v1::NodeStatusRequest {});
        let asked = tokio::time::timeout(until(deadline, ASK_TIMEOUT), asked);
        let reply = match asked.await {
            Ok(Ok(reply)) => reply.into_inner(),
            Ok(Err(status)) => {
                self.note_no_answer(member, &status);
                return None;
            }
            Err(_) => {
                tracing::debug!(node = %member.id, "a member did not say in time how it is");
                return None;
            }
        };
        // An answer under a wrong id is no answer of this member.
        (reply.node.as_ref()?.id == member.id.0).then_some(reply)
    }

    /// A member that is away is seen in the status; one that answers what cannot be used is not, and the log says so.
    fn note_no_answer(&self, member: &Member, status: &Status) {
        use tonic::Code::{Cancelled, DeadlineExceeded, Unavailable};
        let (node, error) = (member.id, status.message());
        match status.code() {
            Unavailable | DeadlineExceeded | Cancelled => {
                tracing::debug!(%node, error, "a member does not answer");
            }
            code => {
                if let Some(left_out) = self.0.unusable.admit(Instant::now()) {
                    tracing::warn!(%node, ?code, error, left_out, "what a member says of itself cannot be used");
                }
            }
        }
    }

    pub(super) fn client(&self, member: &Member) -> NodeClient<tonic::transport::Channel> {
        NodeClient::new(self.node().channel(member)).max_decoding_message_size(MAX_ANSWER)
    }

    /// The members a selection names; none: this node alone.
    pub(super) fn selected(
        &self,
        selection: Option<&v1::NodeSelection>,
    ) -> Result<Option<Vec<Arc<Member>>>, Failure> {
        let Some(v1::NodeSelection { all, node }) = selection else {
            return Ok(None);
        };
        if !all && (*node == 0 || *node == self.id().0) {
            return Ok(None);
        }
        let state = self.group()?.state();
        let members = state.members();
        if *all {
            return Ok(Some(members.values().cloned().collect()));
        }
        let member = members.get(&NodeId(*node)).ok_or_else(|| {
            Failure::new(
                crate::wire::error::FailureCode::NotFound,
                format!("node {node}"),
                "is no member of the cluster",
                "`pontoon cluster status` shows the members",
            )
        })?;
        Ok(Some(vec![Arc::clone(member)]))
    }
}

fn on_device((address, device): (IpAddr, String)) -> v1::OccupiedAddress {
    let address = address.to_string();
    v1::OccupiedAddress { address, device }
}

fn held(vip: HeldVip, node: u64) -> v1::VipStatus {
    let HeldVip { address, fence } = vip;
    v1::VipStatus {
        address: address.to_string(),
        interface: String::new(),
        holder: Some(node),
        fence,
    }
}

fn verdict(verdict: BackendVerdict, node: u64) -> v1::BackendHealth {
    let BackendVerdict {
        pool,
        backend,
        health,
        connections,
        problem,
        since,
    } = verdict;
    let health = match health {
        BackendHealth::Unknown => v1::Health::Unknown,
        BackendHealth::Up => v1::Health::Up,
        BackendHealth::Down => v1::Health::Down,
        BackendHealth::Unchecked => v1::Health::Unchecked,
    };
    v1::BackendHealth {
        node,
        pool,
        backend,
        health: health.into(),
        connections,
        problem,
        since_ms: crate::wire::millis(since),
    }
}

fn listener(report: ListenerReport, node: u64) -> v1::ListenerStatus {
    let ListenerReport {
        listener,
        bound,
        problem,
        connections,
    } = report;
    v1::ListenerStatus {
        node,
        listener,
        bound: bound.iter().map(ToString::to_string).collect(),
        problem,
        connections,
    }
}
