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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::{
        api::{group::Group, testing::Served},
        state::command::{Command, JoinToken, Secret},
    };
    use pontoon_proto::v1::bootstrap_client::BootstrapClient;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    /// A token that is good until `expires_at`.
    fn token(id: &str, expires_at: UnixMillis) -> Command {
        let token = JoinToken {
            id: id.into(),
            secret_hash: Secret(hash_secret(SECRET)),
            expires_at,
            used_by: None,
        };
        Command {
            request: RequestId(1000 + u128::from(expires_at.0)),
            born: 0,
            proposed_at: UnixMillis(0),
            author: "ann".into(),
            preconditions: vec![],
            changes: vec![Change::CreateToken { token }],
        }
    }

    #[test]
    fn a_token_is_good_until_its_time_ends() {
        let mut state = State::default();
        state.apply(1, &token("t", UnixMillis(1000)));
        let problem = |secret: &str, at| {
            let checked = check_token(&state, "t", secret, UnixMillis(at));
            checked.map_err(|failure| failure.problem)
        };
        assert_eq!(problem(SECRET, 999), Ok(()));
        for at in [1000, 1001, u64::MAX] {
            assert_eq!(problem(SECRET, at), Err("has expired".into()), "{at}");
        }
        // Who does not know the secret is not told that there was such a token.
        assert!(problem("x", 1000).is_err_and(|p| p.contains("wrong secret")));
        let other = check_token(&state, "u", SECRET, UnixMillis(0));
        assert!(other.is_err_and(|f| f.problem.contains("not known here")));
    }

    #[tokio::test]
    async fn nobody_joins_by_a_token_that_has_expired() {
        let served = Served::start().await;
        for (id, expires_at) in [("old", UnixMillis(1)), ("good", UnixMillis(u64::MAX))] {
            let made = served.group.propose(token(id, expires_at), Instant::now());
            made.await.expect("made");
        }
        let endpoint = format!("http://{}", served.address);
        let mut client = BootstrapClient::connect(endpoint).await.expect("connects");
        let mut admit = async |id: &str| {
            let request = v1::AdmitRequest {
                token_id: id.into(),
                secret: SECRET.into(),
                name: "n2".into(),
                raft_address: "127.0.0.1:3".into(),
                api_address: "127.0.0.1:4".into(),
                csr_pem: crate::pki::authority::request().expect("made").csr_pem,
                request_id: vec![7; 16].into(),
            };
            client.admit(request).await.map_err(|status| {
                Failure::from_details(status.details()).map_or(String::new(), |f| f.problem)
            })
        };
        let before = served.group.proposals.load(Ordering::SeqCst);
        assert_eq!(admit("old").await.err().as_deref(), Some("has expired"));
        assert_eq!(served.group.proposals.load(Ordering::SeqCst), before);
        assert_eq!(
            admit("good").await.expect("admitted").into_inner().node_id,
            2
        );
    }
}
