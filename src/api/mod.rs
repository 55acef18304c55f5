//! The API: gRPC services over the group this node belongs to. Authenticate, decode, check, propose or read, encode.
//!
//! It owns no state but the limits, the log of the watch service and leaves under way. It decides nothing about the service: form is
//! checked by `state::check` before a command is proposed, everything else by apply. Stopping: the future given to
//! `serve` resolves, running calls get to end, and leaves without their callers; streams are cut.

mod admin;
mod administrators;
mod advice;
mod backup;
mod bootstrap;
pub mod caller;
mod cluster;
mod dns;
pub mod group;
mod health;
mod leaving;
mod node;
mod pages;
mod site;
pub mod status;
mod upload;
mod watch;
mod watch_log;
mod zones;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use pontoon_proto::{DESCRIPTORS, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::service::{Routes, interceptor::InterceptedService};

use self::{
    advice::Subjects,
    group::{Group, NodeControl},
    leaving::Leaves,
};
use crate::{
    model::node::NodeId,
    state::{
        State, check,
        command::{Change, Command, Precondition, RequestId, UnixMillis},
        outcome::{Applied, Outcome},
    },
    telemetry::throttle::Throttle,
    transport::accept::Incoming,
    wire::{
        command::{MAX_COMMAND, size_of_records},
        error::{Failure, FailureCode},
    },
};

/// Largest request message, in octets; larger batches are uploaded in chunks.
pub const MAX_MESSAGE: usize = 4 << 20;
/// Calls that change something, at one time.
const MAX_WRITES: usize = 1024;
/// Uploads in chunks, at one time: each may hold `wire::command::MAX_COMMAND` octets.
const MAX_UPLOADS: usize = 2;
/// Reads that stream a zone, a site or a backup, at one time.
const MAX_STREAMS: usize = 64;
/// Watchers at one time.
const MAX_WATCHES: usize = 256;
/// Machines that ask to be admitted, at one time: they are strangers until they have shown their token.
const MAX_ADMISSIONS: usize = 64;
/// A command of more record sets is checked on another thread.
const CHECKED_AT_ONCE: usize = 500;
/// Wait of a write or a linearizable read whose caller states no deadline.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait of any call.
const MAX_PATIENCE: Duration = Duration::from_secs(300);
/// Calls on one connection at one time.
const MAX_CALLS_PER_CONNECTION: u32 = 256;

/// The services of one node. Clones are the same services.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    node: Arc<dyn NodeControl>,
    writes: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    admissions: Arc<Semaphore>,
    watch_log: watch_log::WatchLog,
    leaves: Leaves,
    /// For the log, of members whose answers cannot be used.
    unusable: Throttle,
}

impl Api {
    pub fn new(node: Arc<dyn NodeControl>) -> Self {
        Self(Arc::new(Inner {
            node,
            writes: Arc::new(Semaphore::new(MAX_WRITES)),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            watches: Arc::new(Semaphore::new(MAX_WATCHES)),
            admissions: Arc::new(Semaphore::new(MAX_ADMISSIONS)),
            watch_log: watch_log::WatchLog::default(),
            leaves: Leaves::default(),
            unusable: Throttle::default(),
        }))
    }

    /// Serves connections until `stop` resolves; then lets running calls end, and leaves whose callers have gone.
    pub async fn serve(
        self,
        incoming: Incoming,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), tonic::transport::Error> {
        let mut background = tokio::task::JoinSet::new();
        background.spawn(self.clone().keep_watch_log());
        let served = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
            .initial_connection_window_size(4 << 20)
            .initial_stream_window_size(1 << 20)
            .add_routes(self.routes())
            .serve_with_incoming_shutdown(incoming, stop)
            .await;
        self.0.leaves.wait_end().await;
        served
    }

    /// Has changes kept for watchers as soon as this node has caught up: before, it repeats what others told long ago.
    async fn keep_watch_log(self) {
        const LOOK_EVERY: Duration = Duration::from_millis(200);
        loop {
            if let Some(group) = self.0.node.group() {
                let role = group.standing().role;
                if ["leader", "follower", "learner"].contains(&role) {
                    self.0.watch_log.of(&group);
                    return;
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// All services.
    pub fn routes(&self) -> Routes {
        use v1::{
            admin_server::AdminServer, bootstrap_server::BootstrapServer,
            cluster_server::ClusterServer, node_server::NodeServer, peer_server::PeerServer,
            watch_server::WatchServer,
        };
        let mut routes = Routes::new(health::service());
        routes = routes
            .add_service(AdminServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE))
            .add_service(ClusterServer::new(self.clone()))
            .add_service(BootstrapServer::new(self.clone()))
            .add_service(PeerServer::new(self.clone()))
            .add_service(NodeServer::new(self.clone()))
            .add_service(WatchServer::new(self.clone()));
        with_reflection(routes)
    }

    /// Calls under way and how many there may be, by kind.
    pub fn load(&self) -> [(&'static str, usize, usize); 5] {
        let inner = &self.0;
        [
            ("writes", &inner.writes, MAX_WRITES),
            ("uploads", &inner.uploads, MAX_UPLOADS),
            ("streams", &inner.streams, MAX_STREAMS),
            ("watches", &inner.watches, MAX_WATCHES),
            ("admissions", &inner.admissions, MAX_ADMISSIONS),
        ]
        .map(|(kind, limit, most)| (kind, most.saturating_sub(limit.available_permits()), most))
    }

    fn node(&self) -> &dyn NodeControl {
        self.0.node.as_ref()
    }

    /// The group whose state this node may tell.
    fn group(&self) -> Result<Arc<dyn Group>, Failure> {
        let group = self.own_group()?;
        match group.gone() {
            Some(why) => Err(why),
            None => Ok(group),
        }
    }

    /// The group, also one that this node was removed from.
    fn own_group(&self) -> Result<Arc<dyn Group>, Failure> {
        self.0.node.group().ok_or_else(|| self.0.node.outside())
    }

    /// The id of this node; 0 before it has one.
    fn id(&self) -> NodeId {
        self.0
            .node
            .group()
            .map_or(NodeId(0), |group| group.standing().id)
    }

    /// State to answer a read from.
    async fn read(
        &self,
        consistency: i32,
        deadline: Instant,
    ) -> Result<(Arc<State>, v1::ReadHeader), Failure> {
        let group = self.group()?;
        match v1::Consistency::try_from(consistency) {
            Ok(v1::Consistency::Linearizable) => group.catch_up(deadline).await?,
            Ok(v1::Consistency::Local | v1::Consistency::Unspecified) => {}
            Err(_) => {
                let problem = format!("consistency {consistency} is not known");
                return Err(Failure::new(FailureCode::Invalid, "request", problem, ""));
            }
        }
        let state = group.state();
        let standing = group.standing();
        let header = v1::ReadHeader {
            revision: state.revision(),
            stale: standing.stale,
            node: standing.id.0,
        };
        Ok((state, header))
    }

    /// Checks, commits and waits for a batch of changes.
    async fn commit(&self, proposal: Proposal) -> Result<Committed, Failure> {
        let _permit = admit(&self.0.writes, "writes")?;
        let group = self.group()?;
        let Proposal {
            author,
            request,
            born,
            preconditions,
            changes,
            deadline,
        } = proposal;
        let revision = group.state().revision();
        let command = Command {
            request,
            born: if born == 0 { revision } else { born },
            proposed_at: now(),
            author,
            preconditions,
            changes,
        };
        let command = checked(command).await?;
        let mut warnings = self.advise(&group, &command, deadline).await?;
        let before = group.state();
        let subjects = Subjects::of(before.snapshot(), &command.changes);
        match group.propose(command, deadline).await? {
            Outcome::Applied(applied) => {
                let after = group.state();
                warnings.extend(subjects.warnings(after.snapshot()));
                warnings.extend(advice::lost_histories(&before, &after, &applied));
                Ok(Committed { applied, warnings })
            }
            Outcome::Refused(refusal) => Err(refusal.into()),
            Outcome::Unknown => Err(Failure::new(
                FailureCode::UnknownOutcome,
                "request",
                "it is older than the remembered requests: it may have been applied before, or never",
                "look whether the change was made before you repeat it",
            )),
        }
    }
}

/// A batch that was applied.
struct Committed {
    applied: Applied,
    /// What the operator should know of it.
    warnings: Vec<String>,
}

/// Checks the form of a command; a large one where that holds up no other call.
async fn checked(command: Command) -> Result<Command, Failure> {
    let sets: usize = command.changes.iter().map(weight).sum();
    if sets <= CHECKED_AT_ONCE {
        check::proposal(&command)?;
        return Ok(command);
    }
    let checking = move || {
        let size = size_of_records(&command);
        if size > MAX_COMMAND {
            let problem =
                format!("its records take {size} octets; one command holds {MAX_COMMAND}");
            let hint = "split it: import zone by zone";
            return Err(Failure::new(
                FailureCode::LimitExceeded,
                "request",
                problem,
                hint,
            ));
        }
        match check::proposal(&command) {
            Ok(()) => Ok(command),
            Err(refusal) => Err(refusal.into()),
        }
    };
    tokio::task::spawn_blocking(checking)
        .await
        .unwrap_or_else(|e| Err(Failure::new(FailureCode::Internal, "request", e, "")))
}

/// Record sets of a change, about.
fn weight(change: &Change) -> usize {
    match change {
        Change::CreateZone { records, .. } | Change::ReplaceZone { records, .. } => records.len(),
        _ => 1,
    }
}

/// A batch of changes on its way into the log.
struct Proposal {
    author: String,
    request: RequestId,
    /// As the client knows it; 0: not known.
    born: u64,
    preconditions: Vec<Precondition>,
    changes: Vec<Change>,
    deadline: Instant,
}

/// When the answer to `request` must be ready: before the caller's own deadline, so that it hears what is known and need
/// not guess.
fn deadline_of<T>(request: &tonic::Request<T>) -> Instant {
    let asked = request
        .metadata()
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok())
        .and_then(grpc_timeout);
    let patience = match asked {
        Some(asked) => asked.saturating_sub((asked / 10).max(Duration::from_millis(50))),
        None => DEFAULT_PATIENCE,
    };
    Instant::now() + patience.min(MAX_PATIENCE)
}

/// Reads a `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = (digits.len() <= 8).then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Takes a place under a limit, at once or not at all.
fn admit(limit: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Failure> {
    Arc::clone(limit).try_acquire_owned().map_err(|_| {
        Failure::new(
            FailureCode::Overloaded,
            "node",
            format!("too many {what} at one time"),
            "try again, or ask another node",
        )
    })
}

/// Reflection in both versions that clients speak, for those that are known. Left out when our own descriptors cannot be read, which a test rules out.
fn with_reflection(routes: Routes) -> Routes {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    match (builder().build_v1(), builder().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes
            .add_service(InterceptedService::new(v1, known))
            .add_service(InterceptedService::new(v1alpha, known)),
        _ => routes,
    }
}

/// Lets administrators and members through to a service that asks nobody who they are.
fn known(request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    caller::Caller::member_or_admin(&request)?;
    Ok(request)
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixMillis(since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
}
