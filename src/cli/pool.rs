//! `pontoon pool`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::{
    Context,
    client::{Client, MAX_REPLY},
    duration, exit,
    write::{commit, sound},
};
use crate::{
    config::units::format_duration,
    model::{
        health::{HealthCheck, Probe},
        label::Label,
        pool::{Backend, BackendState, Policy, Pool as Model},
        quoted::quoted,
    },
    state::{
        command::{Change, Precondition},
        limits,
    },
    wire::{
        error::{Failure, FailureCode},
        v1::{self, admin_client::AdminClient},
    },
};

/// Pools of backends
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon pool create web --backend 10.0.0.1:80 --backend 10.0.0.2:80
  pontoon pool show web
  pontoon pool backend drain web 10.0.0.1:80")]
pub enum Pool {
    Create(Create),
    List(List),
    Show(Show),
    Delete(Delete),
    #[command(subcommand)]
    Backend(BackendCommand),
}

/// Backends of a pool
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon pool backend add web 10.0.0.3:80 --name b3
  pontoon pool backend set web b3 --weight 10
  pontoon pool backend drain web b3")]
pub enum BackendCommand {
    Add(Add),
    Remove(Remove),
    Set(Set),
    Drain(Drain),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PolicyName {
    /// Each in turn, in proportion to its weight
    RoundRobin,
    /// The one with the fewest connections for its weight
    LeastConnections,
    /// By a hash of the client's address
    SourceHash,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::RoundRobin => Self::RoundRobin,
            PolicyName::LeastConnections => Self::LeastConnections,
            PolicyName::SourceHash => Self::SourceHash,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StateName {
    /// Takes connections while healthy
    Enabled,
    /// Takes no new connection; those it has go on to their end
    Drain,
    /// Takes no connection, and those it has are ended
    Disabled,
}

impl From<StateName> for BackendState {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Enabled => Self::Enabled,
            StateName::Drain => Self::Drain,
            StateName::Disabled => Self::Disabled,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CheckName {
    /// Connect and close
    TcpConnect,
    /// Every backend counts as healthy
    None,
}

/// Make a pool
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon pool create web --backend 10.0.0.1:80 --backend 10.0.0.2:80
  pontoon pool create db --policy source-hash --health-check none --backend [fd00::1]:5432")]
pub struct Create {
    /// Name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
    name: Label,
    /// How a backend is chosen for a new connection
    #[arg(long, value_enum, default_value_t = PolicyName::RoundRobin)]
    policy: PolicyName,
    /// A backend, ADDRESS:PORT; repeat for several
    #[arg(long = "backend", value_name = "ADDRESS:PORT")]
    backends: Vec<SocketAddr>,
    /// How a node finds out whether a backend works
    #[arg(long, value_enum, default_value_t = CheckName::TcpConnect)]
    health_check: CheckName,
    /// Between probes of a backend that is up
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    interval: Duration,
    /// Between probes of a backend that is down
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    down_interval: Duration,
    /// Longest wait for one probe
    #[arg(long, default_value = "1s", value_parser = duration, value_name = "TIME")]
    probe_timeout: Duration,
    /// Successes in a row that bring a backend up
    #[arg(long, default_value_t = 2, value_name = "N")]
    rise: u8,
    /// Failures in a row that take it down
    #[arg(long, default_value_t = 3, value_name = "N")]
    fall: u8,
    /// Longest wait for a connection to one backend
    #[arg(long, default_value = "2s", value_parser = duration, value_name = "TIME")]
    connect_timeout: Duration,
    /// Further backends tried when a connection fails
    #[arg(long, default_value_t = 2, value_name = "N")]
    connect_retries: u8,
}

/// List the pools
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool list")]
pub struct List {}

/// Show a pool, its backends, and what every node makes of them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool show web -o json")]
pub struct Show {
    /// Name of the pool
    name: Label,
}

/// Remove a pool that no listener uses
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool delete web")]
pub struct Delete {
    /// Name of the pool
    name: Label,
}

/// Add a backend to a pool
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  pontoon pool backend add web 10.0.0.3:80 --weight 50 --name b3"
)]
pub struct Add {
    /// Name of the pool
    pool: Label,
    /// ADDRESS:PORT
    address: SocketAddr,
    /// Name, unique in the pool [default: made of the address]
    #[arg(long)]
    name: Option<Label>,
    /// Share of new connections, 0 to 1000
    #[arg(long, default_value_t = 1)]
    weight: u16,
    /// Whether it takes connections
    #[arg(long, value_enum, default_value_t = StateName::Enabled)]
    state: StateName,
}

/// Remove a backend from a pool
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool backend remove web b3")]
pub struct Remove {
    /// Name of the pool
    pool: Label,
    /// Name or ADDRESS:PORT of the backend
    backend: String,
}

/// Change the weight or state of a backend
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool backend set web b3 --weight 10 --state enabled")]
#[command(group(clap::ArgGroup::new("change").required(true).multiple(true)))]
pub struct Set {
    /// Name of the pool
    pool: Label,
    /// Name or ADDRESS:PORT of the backend
    backend: String,
    /// Share of new connections, 0 to 1000
    #[arg(long, group = "change", value_parser = clap::value_parser!(u16).range(..=i64::from(limits::WEIGHT)))]
    weight: Option<u16>,
    /// Whether it takes connections
    #[arg(long, value_enum, group = "change")]
    state: Option<StateName>,
}

/// Let a backend finish its connections and give it no new ones
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon pool backend drain web b3")]
pub struct Drain {
    /// Name of the pool
    pool: Label,
    /// Name or ADDRESS:PORT of the backend
    backend: String,
}

impl Pool {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::List(List {}) => list(context).await,
            Self::Show(command) => show(context, &command.name).await,
            Self::Delete(Delete { name }) => {
                let object = object(&name);
                let done = format!("deleted {object}");
                commit(
                    context,
                    &object,
                    &done,
                    vec![],
                    vec![Change::DeletePool { pool: name }],
                )
                .await
            }
            Self::Backend(command) => command.run(context).await,
        }
    }
}

impl BackendCommand {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Add(command) => command.run(context).await,
            Self::Remove(Remove { pool, backend }) => {
                let (backend, expected) = find(context, &pool, &backend).await?;
                let done = format!("removed backend {backend} from pool {pool}");
                let object = object(&pool);
                let change = Change::RemoveBackend { pool, backend };
                commit(context, &object, &done, expected, vec![change]).await
            }
            Self::Set(Set {
                pool,
                backend,
                weight,
                state,
            }) => set(context, pool, &backend, weight, state.map(Into::into)).await,
            Self::Drain(Drain { pool, backend }) => {
                set(context, pool, &backend, None, Some(BackendState::Drain)).await
            }
        }
    }
}

async fn set(
    context: &Context,
    pool: Label,
    backend: &str,
    weight: Option<u16>,
    state: Option<BackendState>,
) -> Result<(), Failure> {
    let (backend, expected) = find(context, &pool, backend).await?;
    let done = match (weight, state) {
        (None, Some(BackendState::Drain)) => format!("draining backend {backend} of pool {pool}"),
        _ => format!("set backend {backend} of pool {pool}"),
    };
    let object = object(&pool);
    let change = Change::SetBackend {
        pool,
        backend,
        weight,
        state,
    };
    commit(context, &object, &done, expected, vec![change]).await
}

impl Create {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let object = object(&self.name);
        let pool = self.pool()?;
        let change = sound(Change::PutPool { pool, create: true })?;
        commit(
            context,
            &object,
            &format!("created {object}"),
            vec![],
            vec![change],
        )
        .await
    }

    fn pool(self) -> Result<Model, Failure> {
        let check = HealthCheck {
            probe: Probe::TcpConnect,
            interval: self.interval,
            down_interval: self.down_interval,
            timeout: self.probe_timeout,
            rise: self.rise,
            fall: self.fall,
        };
        let backends: Result<Vec<Backend>, Failure> =
            self.backends.into_iter().map(backend_at).collect();
        let mut backends = backends?;
        backends.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Model {
            name: self.name,
            policy: self.policy.into(),
            backends,
            health_check: (self.health_check == CheckName::TcpConnect).then_some(check),
            connect_timeout: self.connect_timeout,
            connect_retries: self.connect_retries,
        })
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut backend = backend_at(self.address)?;
        backend.name = self.name.unwrap_or(backend.name);
        backend.weight = self.weight;
        backend.state = self.state.into();
        let object = object(&self.pool);
        let done = format!("added backend {} to {object}", backend.name);
        let change = sound(Change::PutBackend {
            pool: self.pool,
            backend,
            create: true,
        })?;
        commit(context, &object, &done, vec![], vec![change]).await
    }
}

/// A backend with the name that is made of its address: `10.0.0.1-80`, `fd00--1-80`.
fn backend_at(address: SocketAddr) -> Result<Backend, Failure> {
    let mut name = format!("{}-{}", address.ip(), address.port()).replace(':', "-");
    if name.starts_with('-') {
        name.insert(0, '0');
    }
    let name = name
        .parse()
        .map_err(|e| exit::wrong_argument(format!("backend {address}"), e, "give --name"))?;
    Ok(Backend {
        name,
        address,
        weight: 1,
        state: BackendState::Enabled,
    })
}

/// The name of a backend given by name or address, and what must hold of it when it is changed.
///
/// Which one has an address, the newest state says, whatever consistency is asked for; and it must have it still at the change:
/// its name may be given to another backend in between.
async fn find(
    context: &Context,
    pool: &Label,
    backend: &str,
) -> Result<(Label, Vec<Precondition>), Failure> {
    let Ok(address) = backend.parse::<SocketAddr>() else {
        let name = backend.parse().map_err(|e| {
            exit::wrong_argument(
                format!("backend {backend}", backend = quoted(backend)),
                e,
                "give its name or ADDRESS:PORT",
            )
        })?;
        return Ok((name, vec![]));
    };
    let mut client = Client::connect(context).await?;
    let newest = v1::Consistency::Linearizable.into();
    let reply = read(&mut client, pool.as_str(), newest).await?;
    let found = reply
        .pools
        .iter()
        .flat_map(|p| &p.backends)
        .find(|b| b.address.parse() == Ok(address));
    let name: Option<Label> = found.and_then(|b| b.name.parse().ok());
    let name = name.ok_or_else(|| {
        Failure::new(
            FailureCode::NotFound,
            format!("backend {address} of pool {pool}"),
            "does not exist",
            format!("`pontoon pool show {pool}` shows those that do"),
        )
    })?;
    let expected = Precondition::Backend {
        pool: pool.clone(),
        backend: name.clone(),
        address,
    };
    Ok((name, vec![expected]))
}

fn object(pool: &Label) -> String {
    format!("pool {pool}")
}

#[derive(Serialize)]
struct Pools {
    revision: u64,
    stale: bool,
    pools: Vec<PoolJson>,
}

#[derive(Serialize)]
struct PoolJson {
    name: String,
    policy: &'static str,
    /// Null: every backend counts as healthy.
    health_check: Option<CheckJson>,
    connect_timeout_ms: u64,
    connect_retries: u32,
    backends: Vec<BackendJson>,
}

/// A health check, here and in `watch`.
#[derive(Serialize)]
pub struct CheckJson {
    probe: &'static str,
    interval_ms: u64,
    down_interval_ms: u64,
    timeout_ms: u64,
    rise: u32,
    fall: u32,
}

#[derive(Serialize)]
struct BackendJson {
    name: String,
    address: String,
    weight: u32,
    state: &'static str,
    /// What each node that could be asked makes of it.
    health: Vec<HealthJson>,
}

#[derive(Serialize)]
struct HealthJson {
    node: u64,
    health: &'static str,
    /// For how long the verdict has stood.
    since_ms: u64,
    /// Why it is down, or what went wrong within the last minute.
    problem: Option<String>,
    connections: u64,
}

impl HealthJson {
    fn of(health: v1::BackendHealth) -> Self {
        let v1::BackendHealth {
            node,
            pool: _,
            backend: _,
            health,
            connections,
            problem,
            since_ms,
        } = health;
        Self {
            node,
            health: health_text(health),
            since_ms,
            problem: Some(problem).filter(|p| !p.is_empty()),
            connections,
        }
    }

    /// What went wrong, and for how long the verdict has stood: `1: health check: Connection refused, down for 185s`.
    fn problem_text(&self) -> Option<String> {
        let problem = self.problem.as_ref()?;
        let seconds = format_duration(Duration::from_secs(self.since_ms / 1000));
        Some(format!(
            "{}: {problem}, {} for {seconds}",
            self.node, self.health
        ))
    }
}

async fn read(
    client: &mut Client,
    name: &str,
    consistency: i32,
) -> Result<v1::ListPoolsReply, Failure> {
    let object = match name {
        "" => "pools".to_owned(),
        name => format!("pool {name}"),
    };
    let request = v1::ListPoolsRequest {
        consistency,
        name: name.to_owned(),
    };
    let reply = client
        .read(&object, async |attempt| {
            AdminClient::new(attempt.channel.clone())
                .max_decoding_message_size(MAX_REPLY)
                .list_pools(attempt.request(request.clone()))
                .await
        })
        .await?;
    Ok(reply.into_inner())
}

fn json_of(reply: v1::ListPoolsReply) -> Pools {
    let header = reply.header.unwrap_or_default();
    let mut health: Verdicts = BTreeMap::new();
    for verdict in reply.health {
        let key = (verdict.pool.clone(), verdict.backend.clone());
        health.entry(key).or_default().push(HealthJson::of(verdict));
    }
    let pools = reply.pools.into_iter().map(|pool| PoolJson {
        policy: policy_text(pool.policy),
        health_check: pool.health_check.map(check_json),
        connect_timeout_ms: pool.connect_timeout_ms,
        connect_retries: pool.connect_retries,
        backends: pool
            .backends
            .into_iter()
            .map(|backend| backend_json(&pool.name, backend, &mut health))
            .collect(),
        name: pool.name,
    });
    Pools {
        revision: header.revision,
        stale: header.stale,
        pools: pools.collect(),
    }
}

/// What the nodes make of each backend, by the names of its pool and its own.
type Verdicts = BTreeMap<(String, String), Vec<HealthJson>>;

fn backend_json(pool: &str, backend: v1::Backend, health: &mut Verdicts) -> BackendJson {
    let key = (pool.to_owned(), backend.name.clone());
    BackendJson {
        health: health.remove(&key).unwrap_or_default(),
        state: state_text(backend.state),
        name: backend.name,
        address: backend.address,
        weight: backend.weight,
    }
}

pub fn check_json(check: v1::HealthCheck) -> CheckJson {
    CheckJson {
        probe: match check.probe {
            Some(v1::health_check::Probe::TcpConnect(_)) => "tcp-connect",
            None => "unknown",
        },
        interval_ms: check.interval_ms,
        down_interval_ms: check.down_interval_ms,
        timeout_ms: check.timeout_ms,
        rise: check.rise,
        fall: check.fall,
    }
}

/// The word for a policy, as in site documents.
pub fn policy_text(number: i32) -> &'static str {
    match v1::Policy::try_from(number) {
        Ok(v1::Policy::RoundRobin) => "round-robin",
        Ok(v1::Policy::LeastConnections) => "least-connections",
        Ok(v1::Policy::SourceHash) => "source-hash",
        Ok(v1::Policy::Unspecified) | Err(_) => "unknown",
    }
}

/// The word for a backend's state, as in site documents.
pub fn state_text(number: i32) -> &'static str {
    match v1::BackendState::try_from(number) {
        Ok(v1::BackendState::Enabled) => "enabled",
        Ok(v1::BackendState::Drain) => "drain",
        Ok(v1::BackendState::Disabled) => "disabled",
        Ok(v1::BackendState::Unspecified) | Err(_) => "unknown",
    }
}

fn health_text(number: i32) -> &'static str {
    match v1::Health::try_from(number) {
        Ok(v1::Health::Up) => "up",
        Ok(v1::Health::Down) => "down",
        Ok(v1::Health::Unchecked) => "unchecked",
        Ok(v1::Health::Unknown | v1::Health::Unspecified) | Err(_) => "unknown",
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let consistency = client.consistency();
    let pools = json_of(read(&mut client, "", consistency).await?);
    context.out.result(&pools, || {
        let row = |p: &PoolJson| {
            let check = p.health_check.as_ref().map_or("none", |c| c.probe);
            vec![
                p.name.clone(),
                p.policy.to_owned(),
                p.backends.len().to_string(),
                check.to_owned(),
            ]
        };
        let rows: Vec<_> = pools.pools.iter().map(row).collect();
        context
            .out
            .table(&["POOL", "POLICY", "BACKENDS", "CHECK"], &rows)
    })
}

#[derive(Serialize)]
struct Shown {
    revision: u64,
    stale: bool,
    #[serde(flatten)]
    pool: PoolJson,
}

async fn show(context: &Context, name: &Label) -> Result<(), Failure> {
    let mut client = Client::connect(context).await?;
    let consistency = client.consistency();
    let pools = json_of(read(&mut client, name.as_str(), consistency).await?);
    let Some(pool) = pools.pools.into_iter().next() else {
        return Err(exit::internal(
            object(name),
            "the node's answer holds no pool",
        ));
    };
    let shown = Shown {
        revision: pools.revision,
        stale: pools.stale,
        pool,
    };
    context.out.result(&shown, || {
        let pool = &shown.pool;
        let row = |b: &BackendJson| {
            let health: Vec<String> = b
                .health
                .iter()
                .map(|h| format!("{}:{}", h.node, h.health))
                .collect();
            let connections: u64 = b.health.iter().map(|h| h.connections).sum();
            let problems: Vec<String> = b
                .health
                .iter()
                .filter_map(HealthJson::problem_text)
                .collect();
            vec![
                b.name.clone(),
                b.address.clone(),
                b.weight.to_string(),
                b.state.to_owned(),
                health.join(" "),
                connections.to_string(),
                problems.join("; "),
            ]
        };
        let rows: Vec<_> = pool.backends.iter().map(row).collect();
        let table = context.out.table(
            &[
                "BACKEND",
                "ADDRESS",
                "WEIGHT",
                "STATE",
                "HEALTH (NODE:VERDICT)",
                "CONNECTIONS",
                "PROBLEM (NODE: WHAT)",
            ],
            &rows,
        );
        let check = pool.health_check.as_ref().map_or("none", |c| c.probe);
        format!(
            "pool {}  policy {}  health check {check}\n\n{table}",
            pool.name, pool.policy
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_with_its_node_and_its_age() {
        let down = v1::BackendHealth {
            node: 2,
            pool: "web".into(),
            backend: "b".into(),
            health: v1::Health::Down.into(),
            connections: 0,
            problem: "health check: Connection refused".into(),
            since_ms: 185_400,
        };
        let told = HealthJson::of(down.clone()).problem_text();
        let expected = "2: health check: Connection refused, down for 185s";
        assert_eq!(told.as_deref(), Some(expected));
        let fine = v1::BackendHealth {
            problem: String::new(),
            ..down
        };
        assert_eq!(HealthJson::of(fine).problem_text(), None);
    }

    #[test]
    fn backends_are_named_after_their_addresses() {
        for (address, name) in [
            ("10.0.0.1:80", "10.0.0.1-80"),
            ("[fd00::1]:5432", "fd00--1-5432"),
            ("[::1]:80", "0--1-80"),
        ] {
            let backend = backend_at(address.parse().unwrap()).expect("a name");
            assert_eq!(backend.name.as_str(), name);
        }
    }
}
