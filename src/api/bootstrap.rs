//! The Bootstrap and Peer services: a machine becomes a member by a token, and a member renews its certificate.

use std::time::{Instant, SystemTime};

use pontoon_proto::v1::{self, bootstrap_server::Bootstrap, peer_server::Peer};
use tonic::{Request, Response, Status};

use super::{
    Api, Proposal, admit,
    caller::Caller,
    cluster::{authority, ca_certificates, cluster_id, internal},
    deadline_of, now,
};
use crate::{
    model::node::NodeId,
    pki::{identity::Identity, token::hash_secret},
    state::{
        State,
        command::{Change, NewMember, RequestId, UnixMillis},
    },
    wire::error::{Failure, FailureCode},
};

#[tonic::async_trait]
impl Bootstrap for Api {
    async fn admit(
        &self,
        request: Request<v1::AdmitRequest>,
    ) -> Result<Response<v1::AdmitReply>, Status> {
        Ok(Response::new(
            self.admit_member(deadline_of(&request), request.into_inner())
                .await?,
        ))
    }
}

#[tonic::async_trait]
impl Peer for Api {
    async fn renew_certificate(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::RenewCertificateReply>, Status> {
        let id = Caller::node(&request)?;
        let deadline = deadline_of(&request);
        let v1::RenewCertificateRequest { csr_pem } = request.into_inner();
        let group = self.group()?;
        group.catch_up(deadline).await?;
        let state = group.state();
        if !state.members().contains_key(&id) {
            let problem = "was removed from the cluster";
            let hint = "empty its data directory and join it anew";
            return Err(Failure::new(
                FailureCode::PermissionDenied,
                format!("node {id}"),
                problem,
                hint,
            )
            .into());
        }
        Ok(Response::new(v1::RenewCertificateReply {
            certificate_pem: sign(&state, &csr_pem, id)?,
            ca_certificates_pem: ca_certificates(&state),
        }))
    }
}

impl Api {
    async fn admit_member(
        &self,
        deadline: Instant,
        request: v1::AdmitRequest,
    ) -> Result<v1::AdmitReply, Failure> {
        let _permit = admit(&self.0.admissions, "machines that ask to be admitted")?;
        let v1::AdmitRequest {
            token_id,
            secret,
            name,
            raft_address,
            api_address,
            csr_pem,
            request_id,
        } = request;
        let member: NewMember = v1::NewMember {
            name,
            raft_address,
            api_address,
        }
        .try_into()?;
        let request = crate::wire::command::request_id(&request_id)?;
        if request == RequestId::default() {
            let problem = "the request id is zero";
            return Err(Failure::new(FailureCode::Invalid, "request", problem, ""));
        }
        let group = self.group()?;
        group.catch_up(deadline).await?;
        check_token(&group.state(), &token_id, &secret, now())?;
        let applied = self
            .commit(Proposal {
                author: format!("token {token_id}"),
                request,
                born: 0,
                preconditions: Vec::new(),
                changes: vec![Change::AddMember {
                    token: token_id,
                    member,
                }],
                deadline,
            })
            .await?;
        let id = applied
            .applied
            .node
            .ok_or_else(|| internal("no node id was allocated"))?;
        let state = group.state();
        tracing::info!(node = id.0, "a new member was admitted");
        Ok(v1::AdmitReply {
            cluster_id: cluster_id(&state)?.0,
            node_id: id.0,
            certificate_pem: sign(&state, &csr_pem, id)?,
            ca_certificates_pem: ca_certificates(&state),
            peers: peers(&state, id),
        })
    }
}

/// Whether the secret is the token's and its time has not ended. Whether it was used is decided by apply, which knows a retry.
fn check_token(state: &State, id: &str, secret: &str, at: UnixMillis) -> Result<(), Failure> {
    let refused = |problem: &str| {
        Err(Failure::new(
            FailureCode::Unauthenticated,
            "join token",
            problem,
            "make a new one by `pontoon cluster token create` on a member",
        ))
    };
    match state.tokens().get(id) {
        None => refused("is not known here: it was deleted, or it is of another cluster"),
        Some(token) if token.secret_hash.0 != hash_secret(secret) => {
            refused("has a wrong secret: it was cut short or changed")
        }
        Some(token) if token.expires_at <= at => refused("has expired"),
        Some(_) => Ok(()),
    }
}

fn sign(state: &State, csr_pem: &str, id: NodeId) -> Result<String, Failure> {
    let cluster = state.cluster().cloned().unwrap_or_default();
    let member = state.members().get(&id);
    let addresses: Vec<_> = member.map(|m| m.api_address.ip()).into_iter().collect();
    let holder = Identity::node(cluster, id);
    authority(state)?
        .sign(csr_pem, &holder, &addresses, SystemTime::now())
        .map_err(|e| Failure::new(FailureCode::Invalid, "certificate request", e, ""))
}

fn peers(state: &State, except: NodeId) -> Vec<v1::PeerAddress> {
    let others = state.members().values().filter(|m| m.id != except);
    let address = |m: &std::sync::Arc<crate::model::node::Member>| v1::PeerAddress {
        id: m.id.0,
        raft_address: m.raft_address.to_string(),
        api_address: m.api_address.to_string(),
    };
    others.map(address).collect()
}
