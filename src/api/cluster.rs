//! The Cluster service: membership, leadership, tokens and the certificate authority.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use pontoon_proto::v1::{self, cluster_server::Cluster};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tonic::{Request, Response, Status};

use super::{
    Api, Proposal,
    admin::vip_statuses,
    admit,
    caller::Caller,
    deadline_of,
    group::{Group, Standing, random_request},
    now,
};
use crate::{
    model::{
        few::{and_more, first_few},
        node::{ClusterId, NodeId},
        quoted::quoted,
        timing::{Profile, TimingFault},
    },
    pki::{
        authority::{Authority, fingerprint},
        token::{Token, checked_lifetime},
    },
    state::{
        State,
        command::{Change, JoinToken, Secret, UnixMillis},
    },
    wire::error::{Failure, FailureCode},
};

/// A token is good for this long unless asked otherwise.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

#[tonic::async_trait]
impl Cluster for Api {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::CreateTokenRequest { lifetime_ms } = request.into_inner();
        let lifetime = token_lifetime(lifetime_ms)?;
        let state = self.group()?.state();
        // While an authority is replaced, members still show certificates of the one before.
        let shown = self.0.node.authority_fingerprint();
        let token = Token::draw(shown.map_or_else(|| ca_fingerprint(&state), Ok)?);
        let expires_at = UnixMillis(now().0.saturating_add(crate::wire::millis(lifetime)));
        let change = Change::CreateToken {
            token: JoinToken {
                id: token.id.clone(),
                secret_hash: Secret(token.secret_hash()),
                expires_at,
                used_by: None,
            },
        };
        // A request of its own each time: a token whose answer was lost is never used and ends by itself.
        self.commit(single(author, deadline, change)).await?;
        let peer = self.0.node.report().api_address;
        Ok(Response::new(v1::CreateTokenReply {
            id: token.id.clone(),
            token: token.to_string(),
            expires_at_ms: expires_at.0,
            peer: peer.map(|a| a.to_string()).unwrap_or_default(),
        }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let (state, header) = self
            .read(request.into_inner().consistency, deadline)
            .await?;
        let tokens = state.tokens().values().map(|token| v1::TokenSummary {
            id: token.id.clone(),
            expires_at_ms: token.expires_at.0,
            used_by: token.used_by.map(|id| id.0),
        });
        Ok(Response::new(v1::ListTokensReply {
            header: Some(header),
            tokens: tokens.collect(),
        }))
    }

    async fn delete_token(
        &self,
        request: Request<v1::DeleteTokenRequest>,
    ) -> Result<Response<v1::DeleteTokenReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::DeleteTokenRequest { id, request_id } = request.into_inner();
        let proposal = Proposal {
            request: super::admin::request_id_of(&request_id)?,
            ..single(author, deadline, Change::DeleteToken { id })
        };
        self.commit(proposal).await?;
        Ok(Response::new(v1::DeleteTokenReply {}))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::LeaveReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        // Also of one that was removed already: the answer to the first call may have been lost.
        let group = self.own_group()?;
        let id = group.standing().id;
        let node = Arc::clone(&self.0.node);
        let permit = admit(&self.0.writes, "writes")?;
        // It ends by the deadline.
        let leave = self.0.leaves.carry_out(async move {
            let _permit = permit;
            if let Err(failure) = group.remove(id, deadline).await {
                // Of a node that lost its log, this says more.
                return Err(group.gone().unwrap_or(failure));
            }
            node.stop();
            Ok(())
        });
        leave.await?;
        Ok(Response::new(v1::LeaveReply { node_id: id.0 }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let id = NodeId(request.into_inner().node_id);
        let group = self.group()?;
        let is_known = |state: &State| state.members().contains_key(&id) || state.is_retired(id);
        expect_member(group.as_ref(), id, deadline, is_known).await?;
        let changed = group.remove(id, deadline).await?;
        Ok(Response::new(v1::RemoveReply { changed }))
    }

    async fn find_member(
        &self,
        request: Request<v1::FindMemberRequest>,
    ) -> Result<Response<v1::FindMemberReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::FindMemberRequest { name } = request.into_inner();
        let group = self.group()?;
        group.catch_up(deadline).await?;
        let state = group.state();
        let found = state.members().values().find(|member| member.name == name);
        let id = found.ok_or_else(|| no_such_name(&name, &state))?.id;
        Ok(Response::new(v1::FindMemberReply { node_id: id.0 }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        Ok(Response::new(self.cluster_status(deadline).await?))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let to = request.into_inner().to.map(NodeId);
        let group = self.group()?;
        if let Some(id) = to {
            let is_known = |state: &State| state.members().contains_key(&id);
            expect_member(group.as_ref(), id, deadline, is_known).await?;
        }
        let leader = group.transfer(to, deadline).await?;
        Ok(Response::new(v1::TransferReply {
            leader: leader.0,
            term: group.standing().term,
        }))
    }

    async fn set_profile(
        &self,
        request: Request<v1::SetProfileRequest>,
    ) -> Result<Response<v1::SetProfileReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::SetProfileRequest {
            profile,
            timing,
            request_id,
        } = request.into_inner();
        let profile = wanted_profile(&profile, timing)?;
        let state = self.group()?.state();
        let reports = self.all_reports(&state, deadline).await;
        let flushes = reports.iter().filter_map(|report| {
            let node = report.node.as_ref()?;
            (node.role == i32::from(v1::Role::Voter) && node.flush_us > 0)
                .then(|| Duration::from_micros(node.flush_us))
        });
        let checked = profile.timing().check(flushes.max());
        checked.map_err(|fault| profile_refused(&fault))?;
        let proposal = Proposal {
            request: super::admin::request_id_of(&request_id)?,
            ..single(author, deadline, Change::SetProfile { profile })
        };
        self.commit(proposal).await?;
        Ok(Response::new(v1::SetProfileReply {
            profile: profile.word().to_owned(),
            timing: Some(profile.timing().into()),
        }))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<v1::PromoteReply>, Status> {
        Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let id = NodeId(request.into_inner().node_id);
        let group = self.group()?;
        let is_known = |state: &State| state.members().contains_key(&id);
        expect_member(group.as_ref(), id, deadline, is_known).await?;
        let changed = group.promote(id, deadline).await?;
        Ok(Response::new(v1::PromoteReply { changed }))
    }

    async fn rotate_ca(
        &self,
        request: Request<v1::RotateCaRequest>,
    ) -> Result<Response<v1::RotateCaReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let v1::RotateCaRequest { request_id } = request.into_inner();
        let cluster = cluster_id(&self.group()?.state())?;
        let ca = Authority::create(&cluster, SystemTime::now()).map_err(internal)?;
        let change = Change::RotateCa {
            ca: Secret(ca.to_pem()),
        };
        let proposal = Proposal {
            request: super::admin::request_id_of(&request_id)?,
            ..single(author.clone(), deadline, change)
        };
        self.commit(proposal).await?;
        // A retry finds the authority that the first attempt made.
        let state = self.group()?.state();
        let (admin_certificate_pem, admin_key_pem) = self.admin_of(&state, &author)?;
        Ok(Response::new(v1::RotateCaReply {
            ca_certificates_pem: ca_certificates(&state),
            ca_sha256: ca_fingerprint(&state)?,
            admin_certificate_pem,
            admin_key_pem,
        }))
    }

    async fn create_admin(
        &self,
        request: Request<v1::CreateAdminRequest>,
    ) -> Result<Response<v1::CreateAdminReply>, Status> {
        let author = Caller::admin(&request)?;
        let deadline = deadline_of(&request);
        let signed = self.sign_admin(&author, request.into_inner(), deadline);
        Ok(Response::new(signed.await?))
    }
}

impl Api {
    /// The cluster as this node sees it, the others asked.
    async fn cluster_status(&self, deadline: Instant) -> Result<v1::StatusReply, Failure> {
        let group = self.group()?;
        let state = group.state();
        let standing = group.standing();
        let reports = self.all_reports(&state, deadline).await;
        let by_id: BTreeMap<u64, &v1::NodeStatusReply> = reports
            .iter()
            .filter_map(|r| Some((r.node.as_ref()?.id, r)))
            .collect();
        let (leader, term) = leader_of(&standing, &by_id);
        let leader_applied = leader.and_then(|id| by_id.get(&id.0)?.node.as_ref()?.applied);
        let nodes = state.members().values().map(|member| {
            let heard = by_id.get(&member.id.0).and_then(|r| r.node.clone());
            let mut node = heard.unwrap_or_else(|| v1::NodeSummary {
                state: "unreachable".to_owned(),
                ..v1::NodeSummary::default()
            });
            node.id = member.id.0;
            node.name = member.name.clone();
            node.address = member.api_address.to_string();
            node.raft_address = member.raft_address.to_string();
            let voter = standing.voters.contains(&member.id);
            node.role = if voter {
                v1::Role::Voter
            } else {
                v1::Role::Learner
            }
            .into();
            node.lag = leader_applied
                .zip(node.applied)
                .map(|(leader, applied)| leader.saturating_sub(applied));
            node
        });
        let nodes: Vec<v1::NodeSummary> = nodes.collect();
        let mut alarms: Vec<String> = differing_hashes(&nodes).into_iter().collect();
        alarms.extend(old_view(&standing, leader));
        alarms.extend(gathered(&by_id));
        Ok(v1::StatusReply {
            cluster_id: state.cluster().map(|id| id.0.clone()).unwrap_or_default(),
            leader: leader.map(|id| id.0),
            term,
            revision: state.revision(),
            vips: vip_statuses(&state, &reports),
            nodes,
            alarms,
            answered_by: standing.id.0,
            profile: state.profile().word().to_owned(),
            timing: Some(state.profile().timing().into()),
            preference: state.preference().map(Into::into),
        })
    }
}

/// Who leads, and in which term. A node that takes no part, or hears no leader, does not know: of the others that say they lead, the
/// one of the newest term. One of an older term than this node takes part in leads no more.
fn leader_of(
    own: &Standing,
    reports: &BTreeMap<u64, &v1::NodeStatusReply>,
) -> (Option<NodeId>, u64) {
    let leads = |report: &v1::NodeStatusReply| {
        let node = report.node.as_ref();
        node.is_some_and(|node| node.state == "leader")
    };
    let leaders = reports.iter().filter(|(_, report)| leads(report));
    let newest = leaders.max_by_key(|(_, report)| report.term);
    match newest {
        Some((id, report))
            if own.role == "failed" || (own.leader.is_none() && report.term >= own.term) =>
        {
            (Some(NodeId(*id)), report.term)
        }
        _ => (own.leader, own.term),
    }
}

/// That the node which tells all this hears nothing of a leader that others hear. Of one that has left consensus, or that starts, its
/// state says so.
fn old_view(own: &Standing, leader: Option<NodeId>) -> Option<String> {
    let takes_part = !matches!(own.role, "failed" | "starting");
    let leader = leader.filter(|_| takes_part && own.leader.is_none())?;
    Some(format!(
        "node {}, which tells this, does not hear node {leader}, which leads: what it serves may be old; look at its disk and its links",
        own.id
    ))
}

/// The alarms of all nodes, each once with the nodes that raise it. A node tells its gravest first, and so they stay.
fn gathered(reports: &BTreeMap<u64, &v1::NodeStatusReply>) -> Vec<String> {
    let mut raised: BTreeMap<&str, (usize, Vec<String>)> = BTreeMap::new();
    for (id, report) in reports {
        for (place, alarm) in report.alarms.iter().enumerate() {
            let (first, by) = raised.entry(alarm).or_insert((place, Vec::new()));
            *first = place.min(*first);
            by.push(id.to_string());
        }
    }
    let mut raised: Vec<_> = raised.into_iter().collect();
    raised.sort_by_key(|(_, (first, _))| *first);
    raised
        .into_iter()
        .map(|(alarm, (_, by))| format!("{alarm} (says node {})", by.join(", ")))
        .collect()
}

/// Nodes that hold different states at one log index: a fault of the program, or of a machine. At one revision they may
/// honestly differ, since a refused command is remembered and moves no revision.
fn differing_hashes(nodes: &[v1::NodeSummary]) -> Option<String> {
    let mut at: BTreeMap<u64, &v1::NodeSummary> = BTreeMap::new();
    for node in nodes.iter().filter(|n| !n.state_hash.is_empty()) {
        let Some(index) = node.applied else { continue };
        let first = at.entry(index).or_insert(node);
        if first.state_hash != node.state_hash {
            return Some(format!(
                "nodes {} and {} hold different states at log index {index}: remove one of them and join it anew, and report this",
                first.id, node.id
            ));
        }
    }
    None
}

fn wanted_profile(word: &str, timing: Option<v1::Timing>) -> Result<Profile, Failure> {
    let failed = |problem: String| {
        let hint = "`lan`, `fast` or `wan`, or numbers of its own";
        Failure::new(FailureCode::Invalid, "cluster profile", problem, hint)
    };
    match (word, timing) {
        ("", Some(timing)) => Ok(Profile::of_timing(timing.into())),
        ("", None) => Err(failed("neither a name nor numbers are given".into())),
        (_, Some(_)) => Err(failed("both a name and numbers are given".into())),
        (word, None) => Profile::of_word(word).ok_or_else(|| {
            failed(format!(
                "{} is no profile",
                crate::model::quoted::quoted(word)
            ))
        }),
    }
}

fn profile_refused(fault: &TimingFault) -> Failure {
    Failure::new(FailureCode::Invalid, "cluster profile", fault, "")
}

fn single(author: String, deadline: Instant, change: Change) -> Proposal {
    Proposal {
        author,
        request: random_request(),
        born: 0,
        preconditions: Vec::new(),
        changes: vec![change],
        deadline,
    }
}

fn token_lifetime(ms: u64) -> Result<Duration, Failure> {
    let asked = match ms {
        0 => TOKEN_LIFETIME,
        ms => Duration::from_millis(ms),
    };
    checked_lifetime(asked)
        .map_err(|problem| Failure::new(FailureCode::Invalid, "join token", problem, ""))
}

/// The authority's certificate and key.
pub(super) fn authority(state: &State) -> Result<Authority, Failure> {
    Authority::from_pem(&state.ca().0).map_err(internal)
}

/// Certificates of the authority and of the one before it, in PEM.
pub(super) fn ca_certificates(state: &State) -> String {
    let current = crate::state::cluster::certificates(&state.ca().0).unwrap_or_default();
    current + state.previous_ca().unwrap_or_default()
}

pub(super) fn cluster_id(state: &Arc<State>) -> Result<ClusterId, Failure> {
    state.cluster().cloned().ok_or_else(|| {
        Failure::new(
            FailureCode::NotReady,
            "cluster",
            "its first entry has not been committed yet",
            "try again in a second",
        )
    })
}

fn ca_fingerprint(state: &Arc<State>) -> Result<String, Failure> {
    cluster_id(state)?;
    let authority = authority(state)?;
    let der = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
    der.map(|der| fingerprint(&der)).map_err(internal)
}

/// Refuses a node that is not known even to the newest state; the state that is here may be behind.
async fn expect_member(
    group: &dyn Group,
    id: NodeId,
    deadline: Instant,
    is_known: impl Fn(&State) -> bool + Send,
) -> Result<(), Failure> {
    if is_known(&group.state()) {
        return Ok(());
    }
    group.catch_up(deadline).await?;
    match is_known(&group.state()) {
        true => Ok(()),
        false => Err(no_member(id)),
    }
}

fn no_member(node: impl std::fmt::Display) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!("node {node}"),
        "is no member of the cluster",
        "`pontoon cluster status` shows the members",
    )
}

/// Of a node that was removed, its id alone is remembered: its name is free for another.
fn no_such_name(name: &str, state: &State) -> Failure {
    let members = state.members().values();
    let members = members.map(|member| format!("{} ({})", member.name, member.id));
    Failure::new(
        FailureCode::NotFound,
        format!("node {}", quoted(name)),
        "no member has this name",
        format!(
            "the members are {}; one that was removed is known by its id alone",
            first_few(members.collect(), and_more).join(", ")
        ),
    )
}

pub(super) fn internal(error: impl std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Internal, "certificate authority", error, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::token::LIFETIME;

    fn node(id: u64, applied: u64, hash: u8) -> v1::NodeSummary {
        v1::NodeSummary {
            id,
            applied: Some(applied),
            state_hash: vec![hash; 16].into(),
            ..v1::NodeSummary::default()
        }
    }

    #[test]
    fn a_node_that_takes_no_part_names_the_leader_of_the_others() {
        let report = |id, state: &str, term| v1::NodeStatusReply {
            node: Some(v1::NodeSummary {
                state: state.into(),
                ..node(id, 7, 1)
            }),
            term,
            ..v1::NodeStatusReply::default()
        };
        let all = [
            report(1, "leader", 4),
            report(2, "leader", 5),
            report(3, "failed", 3),
        ];
        let by_id: BTreeMap<u64, &v1::NodeStatusReply> = (1..).zip(&all).collect();
        let own = |role, leader: Option<u64>| Standing {
            id: NodeId(3),
            role,
            leader: leader.map(NodeId),
            term: 3,
            ..Standing::default()
        };
        for (role, leader, expected) in [
            ("failed", None, (Some(NodeId(2)), 5)),
            // What it knew when it left.
            ("failed", Some(1), (Some(NodeId(2)), 5)),
            // One whose disk hangs answers no heartbeat, and hears none.
            ("candidate", None, (Some(NodeId(2)), 5)),
            ("follower", None, (Some(NodeId(2)), 5)),
            // One that takes part goes by what it hears itself.
            ("follower", Some(1), (Some(NodeId(1)), 3)),
        ] {
            let (own, hears) = (own(role, leader), leader.is_some());
            let (leader, term) = leader_of(&own, &by_id);
            assert_eq!((leader, term), expected, "{role}");
            let told = old_view(&own, leader);
            assert_eq!(told.is_some(), role != "failed" && !hears, "{told:?}");
        }
        let in_election = Standing {
            term: 6,
            ..own("candidate", None)
        };
        assert_eq!(leader_of(&in_election, &by_id), (None, 6));
        let nobody = leader_of(&own("failed", None), &BTreeMap::new());
        assert_eq!(nobody, (None, 3));
    }

    #[test]
    fn the_gravest_alarms_of_all_nodes_come_first() {
        let report = |alarms: &[&str]| v1::NodeStatusReply {
            alarms: alarms.iter().map(ToString::to_string).collect(),
            ..v1::NodeStatusReply::default()
        };
        let all = [report(&["a VIP", "b VIP"]), report(&["z disk", "a VIP"])];
        let by_id: BTreeMap<u64, &v1::NodeStatusReply> = (1..).zip(&all).collect();
        let expected = [
            "a VIP (says node 1, 2)",
            "z disk (says node 2)",
            "b VIP (says node 1)",
        ];
        assert_eq!(gathered(&by_id), expected);
    }

    #[test]
    fn only_hashes_of_one_log_index_are_compared() {
        assert_eq!(differing_hashes(&[node(1, 7, 1), node(2, 8, 2)]), None);
        assert_eq!(differing_hashes(&[node(1, 7, 1), node(2, 7, 1)]), None);
        let alarm = differing_hashes(&[node(1, 7, 1), node(2, 8, 1), node(3, 7, 2)]);
        assert!(alarm.is_some_and(|a| a.contains("nodes 1 and 3")));
    }

    #[test]
    fn tokens_live_an_hour_unless_asked() {
        assert_eq!(token_lifetime(0), Ok(TOKEN_LIFETIME));
        assert!(token_lifetime(999).is_err());
        assert!(token_lifetime(30 * 86_400_000 + 1).is_err());
        assert_eq!(token_lifetime(1000), Ok(LIFETIME.0));
    }
}
