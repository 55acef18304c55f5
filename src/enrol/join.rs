//! `cluster join`: this machine becomes a member of an existing cluster, by a token.
//!
//! The authority is believed by the fingerprint in the token during the TLS handshake itself, so the secret is sent only
//! to a member (in a development cluster, which speaks plaintext, to a loopback address alone). Key and request id are kept in
//! `joining.toml` until the identity is written: a join that was cut off and is run again is the same join, and gets the same
//! node id. One that asks for something else, or was refused, is judged anew.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use pontoon_proto::v1::{AdmitRequest, bootstrap_client::BootstrapClient};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tonic::transport::Channel;

use super::{
    identity_file::{IdentityError, IdentityFile, StoredCertificate, StoredIdentity, write_secret},
    ownership::give_to_owner,
};
use crate::{
    config::node::NodeConfig,
    model::node::{ClusterId, NodeId},
    pki::{PkiError, authority, token::Token, verify::Expected},
    transport::{Security, connect, credentials::CredentialsError},
    wire::error::{Failure, FailureCode},
};

/// Why this machine did not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("this machine is node {node} of cluster {cluster} already; to join another one, leave first and empty {}", data_dir.display())]
    AlreadyMember {
        cluster: ClusterId,
        node: NodeId,
        data_dir: PathBuf,
    },
    #[error("{} holds data of a node but no identity: empty it, and join anew (node ids are never reused)", data_dir.display())]
    OldData { data_dir: PathBuf },
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("no member could be reached: {0}")]
    Unreachable(String),
    #[error("what answers is no member of the token's cluster: {0}")]
    NotMembers(String),
    #[error("member {peer} refused: {failure}")]
    Refused { peer: SocketAddr, failure: Failure },
    #[error("the answer of member {peer} cannot be used: {problem}")]
    Answer { peer: SocketAddr, problem: String },
}

/// A join under way, kept so that it can be repeated.
#[derive(Serialize, Deserialize)]
struct Joining {
    token: String,
    request: String,
    key: String,
    csr: String,
    asked: Asked,
    /// It was begun by an earlier call, which may know its outcome already.
    #[serde(skip)]
    is_resumed: bool,
}

/// What this machine asks to be. A member remembers what it said to a request, so another question is another request.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    name: String,
    raft_address: SocketAddr,
    api_address: SocketAddr,
}

impl Asked {
    fn of(config: &NodeConfig) -> Self {
        Self {
            name: config.name.clone(),
            raft_address: config.addresses.raft,
            api_address: config.addresses.api,
        }
    }
}

impl JoinError {
    /// Whether the cluster decided against this join: asked again, it says the same.
    fn is_verdict(&self) -> bool {
        matches!(self, Self::Refused { failure, .. } if failure.code.is_verdict())
    }
}

/// What became of a join.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// False: it was admitted by this token before, and nothing was done.
    pub news: bool,
}

/// Asks the members at `peers` in turn to admit this machine, and stores the identity it is given.
///
/// # Errors
/// A member's refusal ends it at once; members that cannot be reached are passed over.
pub async fn join(
    config: &NodeConfig,
    token: &Token,
    peers: &[SocketAddr],
    timeout: Duration,
) -> Result<Joined, JoinError> {
    let file = IdentityFile::in_dir(&config.data_dir);
    if let Some(existing) = file.load()? {
        if existing.joined_by.as_ref() == Some(&token.id) {
            return Ok(Joined {
                cluster: existing.cluster,
                node: existing.node,
                news: false,
            });
        }
        let data_dir = config.data_dir.clone();
        return Err(JoinError::AlreadyMember {
            cluster: existing.cluster,
            node: existing.node,
            data_dir,
        });
    }
    if config.data_dir.join("log").exists() {
        return Err(JoinError::OldData {
            data_dir: config.data_dir.clone(),
        });
    }
    let mut joining = resume_or_begin(config, token)?;
    let (mut unreachable, mut foreign) = (Vec::new(), Vec::new());
    for peer in peers {
        let mut answer = tokio::time::timeout(timeout, ask(config, token, &joining, *peer)).await;
        // Perhaps what was said to the call before, and what was in the way then is gone.
        if joining.is_resumed && matches!(&answer, Ok(Err(error)) if error.is_verdict()) {
            joining = begin(config, token)?;
            answer = tokio::time::timeout(timeout, ask(config, token, &joining, *peer)).await;
        }
        match answer {
            Ok(Ok(identity)) => {
                file.store(&identity)?;
                let path = joining_path(&config.data_dir);
                std::fs::remove_file(&path).map_err(|source| JoinError::File { path, source })?;
                give_to_owner(&config.data_dir).map_err(|source| JoinError::File {
                    path: config.data_dir.clone(),
                    source,
                })?;
                return Ok(Joined {
                    cluster: identity.cluster,
                    node: identity.node,
                    news: true,
                });
            }
            Ok(Err(JoinError::Unreachable(problem))) => unreachable.push(of_peer(*peer, &problem)),
            Ok(Err(JoinError::NotMembers(problem))) => foreign.push(of_peer(*peer, &problem)),
            Ok(Err(refused)) => return Err(refused),
            Err(_) => unreachable.push(format!("{peer}: no answer within {timeout:?}")),
        }
    }
    match foreign.is_empty() {
        true => Err(JoinError::Unreachable(unreachable.join("; "))),
        false => Err(JoinError::NotMembers(foreign.join("; "))),
    }
}

/// A problem with the address of the peer in front, once.
fn of_peer(peer: SocketAddr, problem: &str) -> String {
    let address = format!("{peer}: ");
    format!(
        "{address}{}",
        problem.strip_prefix(&address).unwrap_or(problem)
    )
}

async fn ask(
    config: &NodeConfig,
    token: &Token,
    joining: &Joining,
    peer: SocketAddr,
) -> Result<StoredIdentity, JoinError> {
    let channel = match config.dev {
        true => plain_channel(peer)?,
        false => connect::pinned_channel(peer, &token.ca_fingerprint)
            .map_err(|e| JoinError::Unreachable(e.to_string()))?,
    };
    let request_id = data_encoding::HEXLOWER
        .decode(joining.request.as_bytes())
        .unwrap_or_default();
    let request = AdmitRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        name: joining.asked.name.clone(),
        raft_address: joining.asked.raft_address.to_string(),
        api_address: joining.asked.api_address.to_string(),
        csr_pem: joining.csr.clone(),
        request_id: request_id.into(),
    };
    let reply = BootstrapClient::new(channel)
        .admit(request)
        .await
        .map_err(|status| refusal(peer, &status))?;
    let reply = reply.into_inner();
    let tls = StoredCertificate {
        certificate: reply.certificate_pem,
        key: joining.key.clone(),
        authorities: reply.ca_certificates_pem,
    };
    let unusable = |e: CredentialsError| JoinError::Answer {
        peer,
        problem: e.to_string(),
    };
    tls.credentials().map_err(unusable)?;
    let mut identity = StoredIdentity::new(
        ClusterId(reply.cluster_id),
        NodeId(reply.node_id),
        config.name.clone(),
    );
    identity.tls = (!config.dev).then_some(tls);
    identity.joined_by = Some(token.id.clone());
    Ok(identity)
}

/// To a member of a development cluster, which speaks plaintext: the secret must not leave this machine.
fn plain_channel(peer: SocketAddr) -> Result<Channel, JoinError> {
    match peer.ip().is_loopback() {
        true => Ok(connect::channel(peer, &Security::Plain, Expected::AnyNode)),
        false => Err(JoinError::Unreachable(
            "dev = true speaks plaintext, to loopback addresses only".to_owned(),
        )),
    }
}

/// The alert of a TLS server that demands a certificate, as rustls words it.
const NO_CERTIFICATE: &str = "CertificateRequired";

/// Tells a member that could not be reached from one that said no.
fn refusal(peer: SocketAddr, status: &tonic::Status) -> JoinError {
    use std::error::Error;
    if let Some(failure) = Failure::from_details(status.details()) {
        return JoinError::Refused { peer, failure };
    }
    let mut reason = status.message().to_owned();
    let mut source = status.source();
    // What was said was understood, and was not what a member of that cluster says.
    let mut is_foreign = false;
    while let Some(cause) = source {
        let io = cause.downcast_ref::<std::io::Error>();
        is_foreign |= io.is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidData);
        reason = cause.to_string();
        source = cause.source();
    }
    match status.code() {
        _ if is_foreign && reason.contains(NO_CERTIFICATE) => JoinError::NotMembers(
            "it demands a certificate, as the Raft port of a node does: give the address that `addresses.api` of its node.toml names"
                .to_owned(),
        ),
        _ if is_foreign => JoinError::NotMembers(reason),
        tonic::Code::Unimplemented => {
            JoinError::NotMembers("it is not the API of a node".to_owned())
        }
        tonic::Code::Unavailable | tonic::Code::Unknown => JoinError::Unreachable(reason),
        _ => JoinError::Refused {
            peer,
            failure: Failure::new(FailureCode::PermissionDenied, "join", reason, ""),
        },
    }
}

/// The join of an earlier call, when it was by this token and asked for the same; else a new one.
fn resume_or_begin(config: &NodeConfig, token: &Token) -> Result<Joining, JoinError> {
    if let Ok(text) = std::fs::read_to_string(joining_path(&config.data_dir))
        && let Ok(joining) = toml::from_str::<Joining>(&text)
        && joining.token == token.id
        && joining.asked == Asked::of(config)
    {
        return Ok(Joining {
            is_resumed: true,
            ..joining
        });
    }
    begin(config, token)
}

/// A new join, under a request id of its own.
fn begin(config: &NodeConfig, token: &Token) -> Result<Joining, JoinError> {
    let path = joining_path(&config.data_dir);
    let request = authority::request()?;
    let joining = Joining {
        token: token.id.clone(),
        request: format!("{:032x}", rand::rng().random::<u128>()),
        key: request.key_pem,
        csr: request.csr_pem,
        asked: Asked::of(config),
        is_resumed: false,
    };
    let text = toml::to_string(&joining).map_err(|e| JoinError::File {
        path: path.clone(),
        source: std::io::Error::other(e),
    })?;
    write_secret(&path, &text).map_err(|source| JoinError::File { path, source })?;
    Ok(joining)
}

fn joining_path(data_dir: &Path) -> PathBuf {
    data_dir.join("joining.toml")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        api::{group::Group, testing::Served},
        state::command::{Change, Command, JoinToken, NewMember, RequestId, Secret, UnixMillis},
    };

    /// A cluster of node 1, and node 2 that is a member by name; and a machine that wants to be the third.
    struct Joins {
        served: Served,
        dir: tempfile::TempDir,
        token: Token,
    }

    impl Joins {
        async fn new() -> Self {
            let served = Served::start().await;
            let joins = Self {
                served,
                dir: tempfile::tempdir().expect("a directory"),
                token: Token::draw("f".repeat(64)),
            };
            let other = Token::draw("f".repeat(64));
            joins.create(&other).await;
            joins.create(&joins.token).await;
            let member = NewMember {
                name: "n2".into(),
                raft_address: "127.0.0.1:20".parse().expect("an address"),
                api_address: "127.0.0.1:21".parse().expect("an address"),
            };
            let token = other.id;
            joins.change(Change::AddMember { token, member }).await;
            joins
        }

        async fn create(&self, token: &Token) {
            let token = JoinToken {
                id: token.id.clone(),
                secret_hash: Secret(token.secret_hash()),
                expires_at: UnixMillis(u64::MAX),
                used_by: None,
            };
            self.change(Change::CreateToken { token }).await;
        }

        async fn change(&self, change: Change) {
            let command = Command {
                request: RequestId(rand::rng().random()),
                born: self.served.group.state().revision(),
                proposed_at: UnixMillis(0),
                author: "ann".into(),
                preconditions: vec![],
                changes: vec![change],
            };
            let proposed = self
                .served
                .group
                .propose(command, std::time::Instant::now());
            let outcome = proposed.await.expect("decided");
            assert!(
                matches!(outcome, crate::state::outcome::Outcome::Applied(_)),
                "{outcome:?}"
            );
        }

        /// Joins as `name` with a Raft address of this port.
        async fn join(&self, name: &str, port: u16) -> Result<Joined, JoinError> {
            let data = self.dir.path().join("data");
            let data = data.display();
            let text = format!(
                "dev = true\nname = \"{name}\"\ndata_dir = \"{data}\"\n[addresses]\nservice = [\"127.0.0.1\"]\nraft = \"127.0.0.1:{port}\"\napi = \"127.0.0.1:31\"\n"
            );
            let config = NodeConfig::parse(&text).expect("valid");
            let peers = [self.served.address];
            join(&config, &self.token, &peers, Duration::from_secs(30)).await
        }
    }

    fn code(joined: Result<Joined, JoinError>) -> FailureCode {
        match joined {
            Err(JoinError::Refused { failure, .. }) => failure.code,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_join_that_was_refused_is_judged_anew_when_it_asks_for_something_else() {
        let joins = Joins::new().await;
        for _ in 0..2 {
            assert_eq!(code(joins.join("n3", 20).await), FailureCode::AlreadyExists);
        }
        let joined = joins.join("n3", 30).await.expect("admitted");
        assert_eq!((joined.node, joined.news), (NodeId(3), true));
    }

    #[tokio::test]
    async fn a_join_that_was_refused_is_judged_anew_when_nothing_is_in_the_way_any_more() {
        let joins = Joins::new().await;
        assert_eq!(code(joins.join("n2", 30).await), FailureCode::AlreadyExists);
        joins.change(Change::RetireMember { id: NodeId(2) }).await;
        let joined = joins.join("n2", 30).await.expect("admitted");
        assert_eq!((joined.node, joined.news), (NodeId(3), true));
    }

    #[tokio::test]
    async fn a_join_that_was_cut_off_is_the_same_join_and_no_other_one() {
        use std::sync::atomic::Ordering;
        let joins = Joins::new().await;
        joins.served.group.lossy.store(1, Ordering::SeqCst);
        assert_eq!(
            code(joins.join("n3", 30).await),
            FailureCode::UnknownOutcome
        );
        let joined = joins.join("n3", 30).await.expect("admitted");
        assert_eq!((joined.node, joined.news), (NodeId(3), true));
        assert_eq!(joins.served.group.state().members().len(), 3);

        let joins = Joins::new().await;
        joins.served.group.lossy.store(1, Ordering::SeqCst);
        assert_eq!(
            code(joins.join("n3", 30).await),
            FailureCode::UnknownOutcome
        );
        // It is not the member that was admitted: it has another address.
        assert_eq!(code(joins.join("n3", 40).await), FailureCode::Conflict);
        assert_eq!(joins.served.group.state().members().len(), 3);
    }

    #[test]
    fn a_raft_port_is_named_as_such() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 7400));
        let told = |alert: &str| {
            let error = io::Error::new(io::ErrorKind::InvalidData, alert.to_owned());
            let status = tonic::Status::from_error(Box::new(error));
            refusal(peer, &status).to_string()
        };
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let raft = told(&alert.to_string());
        assert!(
            raft.contains("Raft port") && raft.contains("addresses.api"),
            "{raft}"
        );
        assert!(told("another cluster's").contains("another cluster's"));
    }
}
