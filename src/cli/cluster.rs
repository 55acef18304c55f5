//! `pontoon cluster`.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    admin::Admin,
    client::{Attempt, Client},
    data_dir::DataDir,
    data_failure, duration,
    endpoint::admin_dir,
    exit,
    output::{moment, or_dash},
    vip::{self, VipJson},
};
use crate::{
    api::group::random_request,
    config::node::NodeConfig,
    enrol::{
        admin_files::StagedAdmin,
        identity_file::StoredCertificate,
        init::{self, Initialised},
        join::{self, JoinError},
    },
    model::{
        node::is_like_id,
        quoted::quoted,
        timing::{Profile as TimingProfile, Timing},
    },
    pki::{
        identity::is_admin_name,
        token::{Token as JoinToken, checked_lifetime},
    },
    state::check,
    wire::{
        command::request_id_bytes,
        error::{Failure, FailureCode},
        v1::{self, cluster_client::ClusterClient},
    },
};

/// Where a node's configuration is unless another file is named.
pub const NODE_TOML: &str = "/etc/pontoon/node.toml";

/// Membership, leadership and certificates
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon cluster init --config /etc/pontoon/node.toml   # the first machine
  pontoon cluster token create                           # on a member, for another machine
  pontoon cluster status
  pontoon cluster transfer 2")]
pub enum Cluster {
    Init(Init),
    #[command(subcommand)]
    Token(Token),
    Join(Join),
    Leave(Leave),
    Remove(Remove),
    Status(Status),
    Transfer(Transfer),
    Promote(Promote),
    #[command(subcommand)]
    Profile(Profile),
    #[command(subcommand)]
    Admin(Admin),
    #[command(subcommand)]
    Ca(Ca),
}

/// Make a new cluster whose first member is this machine
///
/// Writes this node's identity into its data directory, and a client certificate for the first administrator. A certificate
/// of another cluster that is there is kept in a directory below, named by that cluster. The node may run already: it begins
/// as soon as it has its identity. Running it again changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster init --config /etc/pontoon/node.toml")]
pub struct Init {
    /// Configuration of this machine's node
    #[arg(long, default_value = NODE_TOML, value_name = "FILE")]
    config: PathBuf,
    /// Where the administrator's certificate goes: admin.pem, admin.key and ca.pem, mode 0600 [default: ~/.config/pontoon]
    #[arg(long, value_name = "DIR")]
    admin_dir: Option<PathBuf>,
    /// Name of the administrator, for history
    #[arg(long, default_value = "admin", value_parser = admin_name)]
    admin: String,
}

/// Join tokens: each lets one machine become a member
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon cluster token create --lifetime 30m
  pontoon cluster token list")]
pub enum Token {
    Create(TokenCreate),
    List(TokenList),
    Delete(TokenDelete),
}

/// Make a join token
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster token create --lifetime 30m")]
pub struct TokenCreate {
    /// How long it is good for, 1s to 30d
    #[arg(long, alias = "ttl", default_value = "1h", value_parser = lifetime, value_name = "TIME")]
    lifetime: Duration,
}

/// List the join tokens, without their secrets
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster token list")]
pub struct TokenList {}

/// Forget a join token
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster token delete 0123456789abcdef")]
pub struct TokenDelete {
    /// Public part of the token: what is before its first dot
    id: String,
}

/// Make this machine a member, by a token of the cluster
///
/// Writes this node's identity into its data directory. The node may run already: it begins as soon as it has its identity,
/// as a learner, and becomes a voter by itself when it has caught up.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon cluster join --token TOKEN --peer 10.0.0.1:7401 --config /etc/pontoon/node.toml"
)]
pub struct Join {
    /// What `pontoon cluster token create` printed on a member
    #[arg(long)]
    token: String,
    /// API address of a member; repeat, or separate by commas, for several
    #[arg(
        long = "peer",
        required = true,
        value_delimiter = ',',
        value_name = "HOST:PORT"
    )]
    peers: Vec<String>,
    /// Configuration of this machine's node
    #[arg(long, default_value = NODE_TOML, value_name = "FILE")]
    config: PathBuf,
}

/// Make this node (the first endpoint) leave the cluster for ever
///
/// Leadership and virtual addresses are handed over first, and its process ends; so does that of a node that was removed already.
/// Refused when the quorum would be lost.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon cluster leave --endpoints unix:/var/lib/pontoon/pontoon.sock"
)]
pub struct Leave {}

/// Remove a node, dead or alive, for ever
///
/// Its id is never used again: the machine may join anew, under a new id. Refused when the quorum would be lost. A second time, only
/// its id names it: its name is free for another node.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster remove 3")]
pub struct Remove {
    /// Node id or name
    node: String,
}

/// Show the leader, the nodes and the virtual addresses
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster status -o json")]
pub struct Status {}

/// Hand leadership, and the virtual addresses with it, to another voter
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon cluster transfer\n  pontoon cluster transfer 2")]
pub struct Transfer {
    /// Node id or name [default: the voter that is best caught up]
    #[arg(value_name = "NODE")]
    node: Option<String>,
    /// The same as NODE
    #[arg(long, value_name = "NODE", conflicts_with = "node")]
    to: Option<String>,
}

/// Make a learner a voter before its time
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster promote 4")]
pub struct Promote {
    /// Node id or name
    node: String,
}

/// How the group counts time: how soon a lost leader is replaced, and what it needs of network and disks
///
/// `lan` (the default) for nodes in one building, `fast` for nodes on one switch with disks that flush in a few milliseconds,
/// `wan` for sites up to some 80 ms apart; or numbers of its own. A change needs no restart and disturbs nobody.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon cluster profile show
  pontoon cluster profile set fast
  pontoon cluster profile set --heartbeat 30ms --election-timeout-min 150ms --election-timeout-max 240ms")]
pub enum Profile {
    Show(ProfileShow),
    Set(ProfileSet),
}

/// Show the profile, its numbers, and by which each node counts at present
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster profile show -o json")]
pub struct ProfileShow {}

/// Set the profile
///
/// Refused, with the numbers, when they do not go together or the slowest voter's disk needs more.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon cluster profile set fast
  pontoon cluster profile set --heartbeat 30ms --election-timeout-min 150ms --election-timeout-max 240ms")]
pub struct ProfileSet {
    /// lan, fast or wan
    #[arg(value_parser = ["lan", "fast", "wan"], required_unless_present = "heartbeat")]
    profile: Option<String>,
    /// Between two rounds of heartbeats, 10ms to 60ms
    #[arg(long, value_parser = duration, value_name = "TIME", conflicts_with = "profile", requires_all = ["election_timeout_min", "election_timeout_max"])]
    heartbeat: Option<Duration>,
    /// From one attempt of a node to be elected to its next, at least
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "heartbeat")]
    election_timeout_min: Option<Duration>,
    /// For how long after the last sign of life of a leader nobody else is elected, 180ms to 30s; nine tenths of it are the lease
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "heartbeat")]
    election_timeout_max: Option<Duration>,
}

/// The cluster's certificate authority
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  pontoon cluster ca rotate")]
pub enum Ca {
    Rotate(CaRotate),
}

/// Replace the certificate authority
///
/// The old one stays trusted until the next rotation, and every node takes a certificate of the new one. Writes a new
/// client certificate for you; in a cluster of `pontoon dev`, which speaks plaintext, none.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon cluster ca rotate")]
pub struct CaRotate {
    /// Where your new certificate goes [default: ~/.config/pontoon]
    #[arg(long, value_name = "DIR")]
    admin_dir: Option<PathBuf>,
}

impl Cluster {
    /// Why a linearizable answer has no meaning here; none: it has.
    pub fn always_local(&self) -> Option<String> {
        let command = match self {
            Self::Status(_) => "cluster status",
            Self::Profile(Profile::Show(_)) => "cluster profile show",
            _ => return None,
        };
        Some(format!(
            "`{command}` says what the node that is asked knows, also without a leader: leave --consistency linearizable out"
        ))
    }

    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Init(command) => command.run(context),
            Self::Token(Token::Create(command)) => command.run(context).await,
            Self::Token(Token::List(TokenList {})) => token_list(context).await,
            Self::Token(Token::Delete(command)) => command.run(context).await,
            Self::Join(command) => command.run(context).await,
            Self::Leave(Leave {}) => leave(context).await,
            Self::Remove(command) => command.run(context).await,
            Self::Status(Status {}) => status(context).await,
            Self::Transfer(command) => command.run(context).await,
            Self::Promote(command) => command.run(context).await,
            Self::Profile(Profile::Show(ProfileShow {})) => profile_show(context).await,
            Self::Profile(Profile::Set(command)) => command.run(context).await,
            Self::Admin(command) => command.run(context).await,
            Self::Ca(Ca::Rotate(command)) => command.run(context).await,
        }
    }
}

#[derive(Serialize)]
struct Made {
    /// False when this machine had an identity already.
    changed: bool,
    cluster: String,
    node: u64,
    /// Directory of the administrator's certificate; null when nothing was made.
    admin_dir: Option<String>,
    /// Where the certificate of another cluster is kept that had lain there.
    kept: Option<String>,
}

/// A line about a certificate of another cluster that had lain where the new one is.
pub fn kept_text(kept: Option<&str>) -> String {
    let line = |dir: &str| {
        format!(
            "the certificate of another cluster that was there is kept in {dir}: --cert {dir}/admin.pem --key {dir}/admin.key --ca {dir}/ca.pem\n"
        )
    };
    kept.map(line).unwrap_or_default()
}

impl Init {
    fn run(self, context: &Context) -> Result<(), Failure> {
        let config = load_config(&self.config)?;
        let dir = self.admin_dir.unwrap_or_else(admin_dir);
        let data_dir = DataDir::of(context, &config, &self.config);
        data_dir.prepare()?;
        let made = init::init(&config, &dir, &self.admin, SystemTime::now())
            .map_err(data_failure::of_init)?;
        data_dir.tell(context);
        let made = match made {
            Initialised::New {
                cluster,
                node,
                admin,
                kept,
            } => Made {
                changed: true,
                cluster: cluster.0,
                node: node.0,
                admin_dir: Some(admin.display().to_string()),
                kept: kept.map(|dir| dir.display().to_string()),
            },
            Initialised::Already { cluster, node } => Made {
                changed: false,
                cluster: cluster.0,
                node: node.0,
                admin_dir: None,
                kept: None,
            },
        };
        context.out.result(&made, || match &made.admin_dir {
            Some(dir) => format!(
                "made cluster {}; this machine is node {}\nadministrator's certificate: {dir}\n{}start the node, if it does not run yet: pontoon node --config {}\n",
                made.cluster,
                made.node,
                kept_text(made.kept.as_deref()),
                self.config.display()
            ),
            None => format!("nothing to change: this machine is node {} of cluster {}\n", made.node, made.cluster),
        })
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    checked_lifetime(duration(text)?)
}

#[derive(Serialize)]
struct TokenMade {
    token: String,
    id: String,
    /// RFC 3339.
    expires: String,
    /// API address of the member that was asked, for --peer.
    peer: String,
}

impl TokenCreate {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let lifetime_ms = crate::wire::millis(self.lifetime);
        // A retry makes another token; the first is never used and ends by itself.
        let reply = client
            .write("join token", async |attempt| {
                cluster_client(&attempt.channel)
                    .create_token(attempt.request(v1::CreateTokenRequest { lifetime_ms }))
                    .await
            })
            .await?
            .into_inner();
        let made = TokenMade {
            token: reply.token,
            id: reply.id,
            expires: moment(reply.expires_at_ms),
            peer: reply.peer,
        };
        context.out.remark(&format!(
            "good until {}; on the new machine:\n  pontoon cluster join --token TOKEN --peer {} --config {NODE_TOML}",
            made.expires, made.peer
        ));
        context.out.result(&made, || format!("{}\n", made.token))
    }
}

#[derive(Serialize)]
struct Tokens {
    revision: u64,
    stale: bool,
    tokens: Vec<TokenJson>,
}

#[derive(Serialize)]
struct TokenJson {
    id: String,
    expires: String,
    /// Id of the node that used it; null: unused.
    used_by: Option<u64>,
}

async fn token_list(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let consistency = client.consistency();
    let reply = client
        .read("join tokens", async |attempt| {
            cluster_client(&attempt.channel)
                .list_tokens(attempt.request(v1::ListTokensRequest { consistency }))
                .await
        })
        .await?
        .into_inner();
    let header = reply.header.unwrap_or_default();
    let token = |t: v1::TokenSummary| TokenJson {
        id: t.id,
        expires: moment(t.expires_at_ms),
        used_by: t.used_by,
    };
    let tokens = Tokens {
        revision: header.revision,
        stale: header.stale,
        tokens: reply.tokens.into_iter().map(token).collect(),
    };
    context.out.result(&tokens, || {
        let row = |t: &TokenJson| vec![t.id.clone(), t.expires.clone(), or_dash(t.used_by)];
        let rows: Vec<_> = tokens.tokens.iter().map(row).collect();
        context
            .out
            .table(&["TOKEN", "EXPIRES", "USED BY NODE"], &rows)
    })
}

#[derive(Serialize)]
struct Deleted<'a> {
    id: &'a str,
}

impl TokenDelete {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        // The whole token is taken too: only the part before the dot names it.
        let id = self.id.split('.').next().unwrap_or_default().to_owned();
        let request = v1::DeleteTokenRequest {
            id: id.clone(),
            request_id: request_id_bytes(random_request()),
        };
        client
            .write(&format!("join token {id}"), async |attempt| {
                cluster_client(&attempt.channel)
                    .delete_token(attempt.request(request.clone()))
                    .await
            })
            .await?;
        context.out.result(&Deleted { id: &id }, || {
            format!("deleted join token {id}\n")
        })
    }
}

#[derive(Serialize)]
struct Joined {
    cluster: String,
    node: u64,
    /// False: it was that member already.
    changed: bool,
}

impl Join {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let token: JoinToken = self.token.parse().map_err(|e| {
            exit::wrong_argument(
                "join token",
                e,
                "copy it again from `pontoon cluster token create`",
            )
        })?;
        let config = load_config(&self.config)?;
        let mut peers = Vec::new();
        for peer in &self.peers {
            peers.extend(resolve(peer).await?);
        }
        let data_dir = DataDir::of(context, &config, &self.config);
        data_dir.prepare()?;
        let joined = join::join(&config, &token, &peers, context.global.timeout)
            .await
            .map_err(join_failure)?;
        data_dir.tell(context);
        let joined = Joined {
            cluster: joined.cluster.0,
            node: joined.node.0,
            changed: joined.news,
        };
        context.out.result(&joined, || {
            format!(
                "this machine is node {} of cluster {}{}\nstart the node, if it does not run yet: pontoon node --config {}\n",
                joined.node,
                joined.cluster,
                if joined.changed { "" } else { " already: nothing was done" },
                self.config.display()
            )
        })
    }
}

async fn resolve(peer: &str) -> Result<Vec<SocketAddr>, Failure> {
    let found = tokio::net::lookup_host(peer).await.map_err(|e| {
        let hint = "--peer takes HOST:PORT, the API address of a member";
        let code = match e.kind() {
            std::io::ErrorKind::InvalidInput => FailureCode::Usage,
            _ => FailureCode::Unreachable,
        };
        Failure::new(code, format!("peer {}", quoted(peer)), e, hint)
    })?;
    Ok(found.collect())
}

/// What to do about a data directory that another cluster has used.
pub fn emptied(data_dir: &Path) -> String {
    format!(
        "stop the node, then: find {} -mindepth 1 -delete",
        data_dir.display()
    )
}

fn join_failure(error: JoinError) -> Failure {
    if let JoinError::OldData { data_dir } = &error {
        let hint = emptied(data_dir);
        return Failure::new(FailureCode::Conflict, "node", error, hint);
    }
    let (code, hint) = match &error {
        JoinError::Unreachable(_) => (
            FailureCode::Unreachable,
            "check --peer, and that the token is of the same cluster",
        ),
        JoinError::NotMembers(_) => (
            FailureCode::PermissionDenied,
            "--peer takes the API address of a member, and the token must be of its cluster: copy it again from `pontoon cluster token create`",
        ),
        JoinError::AlreadyMember { .. } | JoinError::OldData { .. } => (FailureCode::Conflict, ""),
        // What was wrong, and what helps, the member knows.
        JoinError::Refused { failure, .. } => return failure.clone(),
        JoinError::Identity(_) | JoinError::File { .. } => (FailureCode::Invalid, ""),
        JoinError::Pki(_) | JoinError::Answer { .. } => (FailureCode::Internal, ""),
    };
    Failure::new(code, "node", error, hint)
}

#[derive(Serialize)]
struct Left {
    node: u64,
}

async fn leave(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect_to_first(context).await?;
    // A node that has left ends: its silence cannot be told from that, so a lost answer is not asked for again.
    let reply = client
        .once("node", async |attempt| {
            cluster_client(&attempt.channel)
                .leave(attempt.request(v1::LeaveRequest {}))
                .await
        })
        .await?
        .into_inner();
    let left = Left {
        node: reply.node_id,
    };
    context.out.result(&left, || {
        format!("node {} has left the cluster\n", left.node)
    })
}

#[derive(Serialize)]
struct Membership {
    node: u64,
    /// False when it was so before.
    changed: bool,
}

impl Remove {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let node_id = node_id(&mut client, &self.node).await?;
        // Removing a node twice is harmless, so this may be tried again.
        let reply = client
            .write(&format!("node {node_id}"), async |attempt| {
                cluster_client(&attempt.channel)
                    .remove(attempt.request(v1::RemoveRequest { node_id }))
                    .await
            })
            .await?
            .into_inner();
        let removed = Membership {
            node: node_id,
            changed: reply.changed,
        };
        context.out.result(&removed, || match removed.changed {
            true => format!("removed node {node_id}\n"),
            false => format!("nothing to change: node {node_id} was removed before\n"),
        })
    }
}

#[derive(Serialize)]
struct Leader {
    leader: u64,
    term: u64,
}

impl Transfer {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        transfer(context, self.node.or(self.to)).await
    }
}

/// Hands leadership, and the virtual addresses with it, to a node, or to the one that is best caught up.
pub async fn transfer(context: &Context, node: Option<String>) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let to = match node {
        Some(node) => Some(node_id(&mut client, &node).await?),
        None => None,
    };
    let call = async |attempt: Attempt| {
        cluster_client(&attempt.channel)
            .transfer(attempt.request(v1::TransferRequest { to }))
            .await
    };
    let reply = match to {
        // To one node as often as it takes: when that leads, nothing more is done.
        Some(_) => client.write("leadership", call).await?,
        // "The best one" is another one after each transfer.
        None => client.once("leadership", call).await?,
    };
    let reply = reply.into_inner();
    let leader = Leader {
        leader: reply.leader,
        term: reply.term,
    };
    context
        .out
        .result(&leader, || format!("node {} leads\n", leader.leader))
}

impl Promote {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let node_id = node_id(&mut client, &self.node).await?;
        let reply = client
            .write(&format!("node {node_id}"), async |attempt| {
                cluster_client(&attempt.channel)
                    .promote(attempt.request(v1::PromoteRequest { node_id }))
                    .await
            })
            .await?
            .into_inner();
        let promoted = Membership {
            node: node_id,
            changed: reply.changed,
        };
        context.out.result(&promoted, || match promoted.changed {
            true => format!("node {node_id} is a voter\n"),
            false => format!("nothing to change: node {node_id} was a voter before\n"),
        })
    }
}

/// The timing of the cluster as JSON, here and in `cluster status`.
#[derive(Serialize)]
struct ProfileJson {
    /// `lan`, `fast`, `wan` or `custom`.
    profile: String,
    heartbeat_ms: u64,
    election_timeout_min_ms: u64,
    /// For so long after the last sign of life of a leader a voter elects nobody else.
    election_timeout_max_ms: u64,
    /// What a leader may rely on, if every node counts so.
    lease_ms: u64,
}

impl ProfileJson {
    fn new(profile: String, timing: Option<v1::Timing>) -> Self {
        let timing = Timing::from(timing.unwrap_or_default());
        let ms = crate::wire::millis;
        Self {
            profile,
            heartbeat_ms: ms(timing.heartbeat),
            election_timeout_min_ms: ms(timing.election_timeout_min),
            election_timeout_max_ms: ms(timing.election_timeout_max),
            lease_ms: ms(timing.lease()),
        }
    }

    fn text(&self) -> String {
        format!(
            "profile {}: heartbeat {} ms, election timeout {} to {} ms, lease {} ms\n",
            self.profile,
            self.heartbeat_ms,
            self.election_timeout_min_ms,
            self.election_timeout_max_ms,
            self.lease_ms
        )
    }
}

/// The same, and by what each node counts at present: a change is taken up by one after the other.
#[derive(Serialize)]
struct ProfileShown {
    #[serde(flatten)]
    profile: ProfileJson,
    nodes: Vec<CountsBy>,
}

#[derive(Serialize)]
struct CountsBy {
    node: u64,
    /// Null when it did not answer.
    election_timeout_max_ms: Option<u64>,
}

impl ProfileShown {
    fn new(reply: v1::StatusReply) -> Self {
        let nodes = reply.nodes.iter().map(|node| CountsBy {
            node: node.id,
            election_timeout_max_ms: Some(node.election_timeout_max_ms).filter(|ms| *ms > 0),
        });
        Self {
            nodes: nodes.collect(),
            profile: ProfileJson::new(reply.profile, reply.timing),
        }
    }

    fn text(&self) -> String {
        let mut text = self.profile.text();
        for node in &self.nodes {
            match node.election_timeout_max_ms {
                Some(ms) if ms != self.profile.election_timeout_max_ms => {
                    text.push_str(&format!("node {} still counts by {ms} ms\n", node.node));
                }
                _ => {}
            }
        }
        text
    }
}

async fn profile_show(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let reply = read_status(&mut client).await?;
    let shown = ProfileShown::new(reply);
    context.out.result(&shown, || shown.text())
}

impl ProfileSet {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let numbers = self
            .heartbeat
            .zip(self.election_timeout_min)
            .zip(self.election_timeout_max);
        let timing = numbers.map(
            |((heartbeat, election_timeout_min), election_timeout_max)| Timing {
                heartbeat,
                election_timeout_min,
                election_timeout_max,
            },
        );
        if let Some(timing) = timing {
            check::members::profile(TimingProfile::Custom(timing)).map_err(exit::never_right)?;
        }
        let timing = timing.map(v1::Timing::from);
        let request = v1::SetProfileRequest {
            profile: self.profile.unwrap_or_default(),
            timing,
            request_id: request_id_bytes(random_request()),
        };
        let mut client = Client::connect(context).await?;
        let reply = client
            .write("cluster profile", async |attempt| {
                cluster_client(&attempt.channel)
                    .set_profile(attempt.request(request.clone()))
                    .await
            })
            .await?
            .into_inner();
        let profile = ProfileJson::new(reply.profile, reply.timing);
        context.out.result(&profile, || profile.text())
    }
}

#[derive(Serialize)]
struct Rotated {
    /// SHA-256 of the new authority's certificate.
    ca_sha256: String,
    /// Directory of your new certificate; null when none was made, as in a cluster that speaks plaintext.
    admin_dir: Option<String>,
    /// Where the certificate of another cluster is kept that had lain there.
    kept: Option<String>,
}

impl CaRotate {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let dir = self.admin_dir.unwrap_or_else(admin_dir);
        let mut client = Client::connect(context).await?;
        let request = v1::RotateCaRequest {
            request_id: request_id_bytes(random_request()),
        };
        let reply = client
            .write("certificate authority", async |attempt| {
                cluster_client(&attempt.channel)
                    .rotate_ca(attempt.request(request.clone()))
                    .await
            })
            .await?
            .into_inner();
        let ca_sha256 = reply.ca_sha256.clone();
        let rotated = match reply.admin_certificate_pem.is_empty() {
            true => Rotated {
                ca_sha256,
                admin_dir: None,
                kept: None,
            },
            false => Rotated {
                ca_sha256,
                kept: put_admin(&dir, reply)?,
                admin_dir: Some(dir.display().to_string()),
            },
        };
        context.out.result(&rotated, || {
            let yours = match &rotated.admin_dir {
                Some(dir) => format!("your certificate: {dir}\n"),
                None => String::new(),
            };
            format!(
                "the certificate authority is replaced (SHA-256 {})\n{yours}{}",
                rotated.ca_sha256,
                kept_text(rotated.kept.as_deref())
            )
        })
    }
}

/// Writes the certificate that came with a new authority. Returns where one of another cluster is kept.
fn put_admin(dir: &Path, reply: v1::RotateCaReply) -> Result<Option<String>, Failure> {
    let made = StoredCertificate {
        certificate: reply.admin_certificate_pem,
        key: reply.admin_key_pem,
        authorities: reply.ca_certificates_pem,
    };
    let kept = StagedAdmin::stage(dir, &made)
        .and_then(StagedAdmin::put)
        .map_err(|e| {
            let hint = "the authority is replaced: `pontoon cluster admin create NAME` makes a certificate of it";
            exit::invalid("your new certificate", e, hint)
        })?;
    Ok(kept.map(|dir| dir.display().to_string()))
}

#[derive(Serialize)]
struct StatusJson {
    cluster: String,
    /// Node id; null when none is known.
    leader: Option<u64>,
    term: u64,
    revision: u64,
    nodes: Vec<NodeJson>,
    vips: Vec<VipJson>,
    /// What needs a person.
    alarms: Vec<String>,
    /// Id of the node that answered.
    answered_by: u64,
    timing: ProfileJson,
    /// Null: the VIPs stay wherever they are.
    preference: Option<PreferenceJson>,
}

#[derive(Serialize)]
struct PreferenceJson {
    node: u64,
    cool_down_ms: u64,
}

impl PreferenceJson {
    fn new(preference: v1::Preference) -> Option<Self> {
        let node = preference.node?;
        let cool_down_ms = preference.cool_down_ms;
        Some(Self { node, cool_down_ms })
    }
}

#[derive(Serialize)]
struct NodeJson {
    id: u64,
    name: String,
    role: &'static str,
    state: String,
    /// Log index; null when the node did not answer.
    applied: Option<u64>,
    /// Log entries behind the leader; null when that is not known.
    lag: Option<u64>,
    /// API.
    address: String,
    raft_address: String,
    /// Of the state at log index `applied`, hexadecimal; null when the node did not answer.
    state_hash: Option<String>,
    stale: bool,
    pid: Option<u32>,
    version: Option<String>,
    /// Null when it is well.
    problem: Option<String>,
    /// For how long it refuses to elect another leader, at present; null when the node did not answer.
    election_timeout_max_ms: Option<u64>,
    /// What a flush of its log takes on average, in microseconds; null when that is not known.
    flush_us: Option<u64>,
    /// Why it is unfit to hold VIPs; null: it is fit, or there are none.
    unfit: Option<String>,
}

impl From<v1::NodeSummary> for NodeJson {
    fn from(node: v1::NodeSummary) -> Self {
        let heard = !node.state_hash.is_empty();
        Self {
            id: node.id,
            name: node.name,
            role: match v1::Role::try_from(node.role) {
                Ok(v1::Role::Voter) => "voter",
                Ok(v1::Role::Learner) => "learner",
                Ok(v1::Role::Unspecified) | Err(_) => "unknown",
            },
            state: node.state,
            applied: node.applied,
            lag: node.lag,
            address: node.address,
            raft_address: node.raft_address,
            state_hash: heard.then(|| data_encoding::HEXLOWER.encode(&node.state_hash)),
            stale: node.stale,
            pid: Some(node.pid).filter(|pid| *pid != 0),
            version: Some(node.version).filter(|v| !v.is_empty()),
            problem: Some(node.problem).filter(|p| !p.is_empty()),
            election_timeout_max_ms: Some(node.election_timeout_max_ms).filter(|ms| *ms > 0),
            flush_us: Some(node.flush_us).filter(|us| *us > 0),
            unfit: Some(node.unfit).filter(|why| !why.is_empty()),
        }
    }
}

async fn read_status(client: &mut Client) -> Result<v1::StatusReply, Failure> {
    let reply = client
        .read("cluster", async |attempt| {
            cluster_client(&attempt.channel)
                .status(attempt.request(v1::StatusRequest {}))
                .await
        })
        .await?;
    Ok(reply.into_inner())
}

async fn status(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let reply = read_status(&mut client).await?;
    let status = StatusJson {
        cluster: reply.cluster_id,
        leader: reply.leader,
        term: reply.term,
        revision: reply.revision,
        nodes: reply.nodes.into_iter().map(Into::into).collect(),
        vips: reply.vips.into_iter().map(Into::into).collect(),
        alarms: reply.alarms,
        answered_by: reply.answered_by,
        timing: ProfileJson::new(reply.profile, reply.timing),
        preference: reply.preference.and_then(PreferenceJson::new),
    };
    context
        .out
        .result(&status, || status_text(context, &status))
}

fn status_text(context: &Context, status: &StatusJson) -> String {
    let leader = match status.leader {
        Some(id) => format!("node {id}"),
        None => "none".to_owned(),
    };
    let row = |n: &NodeJson| {
        vec![
            n.id.to_string(),
            n.name.clone(),
            n.role.to_owned(),
            if n.stale {
                format!("{}, stale", n.state)
            } else {
                n.state.clone()
            },
            or_dash(n.applied),
            or_dash(n.lag),
            n.address.clone(),
            or_dash(n.state_hash.as_deref().and_then(|h| h.get(..8))),
            or_dash(n.pid),
            n.problem.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = status.nodes.iter().map(row).collect();
    let mut text = format!(
        "cluster {}  leader {leader}  term {}  revision {}  profile {}\n\n{}",
        status.cluster,
        status.term,
        status.revision,
        status.timing.profile,
        context.out.table(
            &[
                "ID", "NAME", "ROLE", "STATE", "APPLIED", "LAG", "ADDRESS", "HASH", "PID",
                "PROBLEM"
            ],
            &rows
        )
    );
    if !status.vips.is_empty() {
        text.push('\n');
        text.push_str(&vip::table(&context.out, &status.vips));
        if let Some(PreferenceJson { node, .. }) = &status.preference {
            text.push_str(&format!("they are to be on node {node}\n"));
        }
    }
    for alarm in &status.alarms {
        text.push_str(&format!("\nalarm: {alarm}\n"));
    }
    text
}

/// A node given by id or by name. Whose name it is, the newest state says: a name may be used again, and a node that lags would
/// name the one that had it before.
pub async fn node_id(client: &mut Client, node: &str) -> Result<u64, Failure> {
    if is_like_id(node) {
        return node.parse().map_err(|_| {
            let object = format!("node {}", quoted(node));
            let problem = "is larger than any node's id";
            exit::wrong_argument(
                object,
                problem,
                "`pontoon cluster status` shows the ids and names",
            )
        });
    }
    let request = v1::FindMemberRequest {
        name: node.to_owned(),
    };
    let object = format!("node {}", quoted(node));
    let found = client
        .read(&object, async |attempt| {
            cluster_client(&attempt.channel)
                .find_member(attempt.request(request.clone()))
                .await
        })
        .await?;
    Ok(found.into_inner().node_id)
}

/// The Cluster service behind a channel.
pub fn cluster_client(
    channel: &tonic::transport::Channel,
) -> ClusterClient<tonic::transport::Channel> {
    ClusterClient::new(channel.clone())
}

/// Reads this machine's node.toml.
pub fn load_config(path: &Path) -> Result<NodeConfig, Failure> {
    NodeConfig::load(path).map_err(|e| {
        exit::invalid(
            "configuration",
            e,
            "docs/configuration.md describes every key",
        )
    })
}

/// Reads the name of an administrator.
pub fn admin_name(text: &str) -> Result<String, String> {
    match is_admin_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text} is not 1 to 63 letters, digits, '-', '_', '.' or '@'",
            text = quoted(text)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_says_by_what_each_node_counts() {
        let node = |id, election_timeout_max_ms| v1::NodeSummary {
            id,
            election_timeout_max_ms,
            ..v1::NodeSummary::default()
        };
        let lan = TimingProfile::Lan.timing();
        let own = crate::wire::millis(lan.election_timeout_max);
        let shown = ProfileShown::new(v1::StatusReply {
            profile: "lan".into(),
            timing: Some(lan.into()),
            nodes: vec![node(1, own), node(2, 2500), node(3, 0)],
            ..v1::StatusReply::default()
        });
        let json = serde_json::to_value(&shown).expect("plain");
        assert_eq!(json["profile"], "lan");
        let expected = serde_json::json!([
            {"node": 1, "election_timeout_max_ms": own},
            {"node": 2, "election_timeout_max_ms": 2500},
            {"node": 3, "election_timeout_max_ms": null},
        ]);
        assert_eq!(json["nodes"], expected);
        let text = shown.text();
        assert!(text.contains("node 2 still counts by 2500 ms\n"), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
