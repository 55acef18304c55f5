//! What clients do while faults happen: each workload is a few clients, each of which asks one node (or the VIP) and waits for its
//! answer before it asks again.
//!
//! A client writes every invocation before the request goes out, and an outcome that is not certain as unknown. It is then a new process:
//! the old one may still take effect.

pub mod acme;
pub mod api;
pub mod append;
pub mod dns;
pub mod query;
pub mod register;
pub mod served;
pub mod sessions;
pub mod set;
pub mod zones;

use std::{
    fmt,
    net::Ipv4Addr,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use pontoon::{
    model::{
        health::HealthCheck,
        label::Label,
        listener::{ListenAddress, Listener},
        name::Name,
        pool::{Backend, BackendState, Pool},
        rdata,
        rrset::{RecordType, Rrset},
    },
    state::command::Change,
};
use rand::RngExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    history::{Call, Outcome, Reply},
    lab::namespace::Namespace,
    observe::Board,
    recorder::Recorder,
};
use api::{Failed, NodeApi};
use served::Served;

macro_rules! workloads {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// A workload.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Workload { $(#[doc = $doc] $name,)* }

        impl Workload {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As `--workload` and the history name it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What it does, in one line.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

workloads! {
    Register = "register", "linearizable reads, writes, deletions and compare-and-sets of TXT sets";
    Set = "set", "unique additions and removals, with a final read on every node";
    Append = "append", "appends to several lists as one batch, and reads of all lists at once";
    Dns = "dns", "DNS queries for registers and serials at each node (with `register`)";
    Vip = "vip", "the same at the VIPs, and an ARP and ND question for each VIP every 5 ms";
    Sessions = "sessions", "TCP connections with traffic through the proxy of the VIP and of each node";
    Zones = "zones", "zones are made, changed, deleted and made again; every node is asked for their serials";
    Acme = "acme", "a TXT record is added, seen from every node, deleted, and seen no more";
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No workload has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no workload is named {0}; `jepsen-like list` names them")]
pub struct UnknownWorkload(String);

impl FromStr for Workload {
    type Err = UnknownWorkload;

    fn from_str(text: &str) -> Result<Self, UnknownWorkload> {
        let found = Self::ALL.iter().find(|workload| workload.name() == text);
        found
            .copied()
            .ok_or_else(|| UnknownWorkload(text.to_owned()))
    }
}

/// The port of the echo service behind the proxy.
pub const ECHO_PORT: u16 = 7;
const ZONES: [&str; 4] = [register::ZONE, set::ZONE, append::ZONE, acme::ZONE];
/// TTL of all records: with it two equal sets are equal.
const TTL: u32 = 60;
const TXT: u32 = 16;
/// A client waits so long for the answer to a write or a linearizable read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks whether clients may go on.
const QUIET: Duration = Duration::from_millis(10);
/// After a request that failed: a node that refuses at once is not asked thousands of times.
const REST: Duration = Duration::from_millis(50);

/// What the workloads need to be there: their zones, and an echo service behind the proxy.
pub fn site(echo: std::net::SocketAddr) -> Vec<Change> {
    let mut pool = Pool::new(label("echo"));
    pool.backends = vec![Backend {
        name: label("echo"),
        address: echo,
        weight: 1,
        state: BackendState::Enabled,
    }];
    pool.health_check = Some(HealthCheck::default());
    let mut listener = Listener::new(
        label("echo"),
        ListenAddress::EveryNode,
        ECHO_PORT,
        label("echo"),
    );
    listener.idle_timeout = Duration::from_secs(60);
    let mut changes = vec![
        Change::PutPool { pool, create: true },
        Change::PutListener {
            listener,
            create: true,
        },
    ];
    changes.extend(ZONES.map(zone));
    changes
}

fn zone(apex: &str) -> Change {
    let soa = format!("ns.{apex} admin.{apex} 1 3600 600 86400 60");
    Change::CreateZone {
        zone: name(apex),
        records: vec![
            (name(apex), record(RecordType::SOA, &soa)),
            (name(apex), record(RecordType::NS, &format!("ns.{apex}"))),
            (
                name(&format!("ns.{apex}")),
                record(RecordType::A, "10.77.0.11"),
            ),
        ],
    }
}

/// The zone that a name of some workload is in, if it is one.
pub fn zone_of(key: &str) -> Option<&str> {
    let is_of = |zone: &&str| {
        let labels = key.strip_suffix(*zone);
        labels.is_some_and(|labels| labels.is_empty() || labels.ends_with('.'))
    };
    match zones::is_apex(key) {
        true => Some(key),
        false => ZONES.into_iter().find(is_of),
    }
}

fn record(rtype: RecordType, text: &str) -> Rrset {
    let data = rdata::parse(rtype, text, &Name::root()).expect("a record written in this file");
    Rrset::new(rtype, TTL, [data]).expect("a set of one record")
}

fn name(text: &str) -> Name {
    Name::parse(text, &Name::root()).expect("a name written in this file")
}

fn label(text: &str) -> Label {
    text.parse().expect("a label written in this file")
}

/// A node as clients know it.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub socket: PathBuf,
    pub address: Ipv4Addr,
}

/// What all clients share.
#[derive(Debug)]
pub struct Context {
    pub recorder: Arc<Recorder>,
    pub board: Arc<Board>,
    /// The members from the beginning.
    pub targets: Vec<Target>,
    /// Where clients are.
    pub host: Arc<Namespace>,
    pub end: CancellationToken,
    /// The registers in use, for those who look them up.
    pub registers: register::Keys,
    /// Elements that are in the set, or may be.
    pub elements: Mutex<Vec<u64>>,
    /// Which lists are taken away next.
    pub lists: append::Epochs,
    /// Where clients were served lately.
    pub served: Served,
    /// What the cluster may take to recover from a fault.
    pub recovery: Duration,
    pub counter: std::sync::atomic::AtomicU64,
}

impl Context {
    /// A number that nobody else of the run has.
    pub fn unique(&self) -> u64 {
        self.counter
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    fn is_over(&self) -> bool {
        self.end.is_cancelled() || self.recorder.has_failed()
    }

    /// Waits between two operations, a little longer or shorter than asked; less at the end.
    async fn think(&self, about: Duration) {
        let pause = about.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.end.cancelled() => {}
        }
        while self.board.is_quiet() && !self.is_over() {
            tokio::time::sleep(QUIET).await;
        }
    }

    /// How far [`Context::unique`] is.
    fn counted(&self) -> u64 {
        self.counter.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) fn elements(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.elements.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the clients of the workloads; they end when the context does.
pub fn start(
    workloads: impl IntoIterator<Item = Workload>,
    context: &Arc<Context>,
    tasks: &mut JoinSet<()>,
) -> Result<(), crate::lab::LabError> {
    for workload in workloads {
        match workload {
            Workload::Vip => dns::start_vip(context, tasks)?,
            Workload::Dns => dns::start_nodes(context, tasks)?,
            Workload::Sessions => sessions::start(context, tasks),
            Workload::Acme => acme::start(context, tasks)?,
            Workload::Zones => zones::start(context, tasks)?,
            Workload::Register | Workload::Set | Workload::Append => {
                for target in &context.targets {
                    let client = Client::of(target, context);
                    match workload {
                        Workload::Register => {
                            tasks.spawn(register::run(client, context.clone()));
                            let second = Client::of(target, context);
                            tasks.spawn(register::run(second, context.clone()));
                        }
                        Workload::Set => drop(tasks.spawn(set::run(client, context.clone()))),
                        _ => drop(tasks.spawn(append::run(client, context.clone()))),
                    }
                }
            }
        }
    }
    Ok(())
}

/// A client: a process of the history that asks one node.
#[derive(Debug)]
pub struct Client {
    pub api: NodeApi,
    pub node: String,
    process: u64,
    recorder: Arc<Recorder>,
}

impl Client {
    pub fn of(target: &Target, context: &Context) -> Self {
        Self {
            api: NodeApi::counting(&target.socket, context.board.retries().clone()),
            node: target.name.clone(),
            process: context.recorder.new_process(),
            recorder: context.recorder.clone(),
        }
    }

    /// Does one operation and records it. None unless it is ok.
    pub async fn perform<T>(
        &mut self,
        call: Call,
        work: impl AsyncFnOnce(&NodeApi) -> Result<(T, Option<Reply>), Failed>,
    ) -> Option<T> {
        let id = self.recorder.invoke(self.process, &self.node, call);
        let (outcome, reply, reason, value) = match work(&self.api).await {
            Ok((value, reply)) => (Outcome::Ok, reply, None, Some(value)),
            Err(Failed::Nothing(why)) => (Outcome::Fail, None, Some(why), None),
            Err(Failed::Perhaps(why)) => (Outcome::Unknown, None, Some(why), None),
        };
        self.recorder.complete(id, outcome, reply, reason);
        match outcome {
            Outcome::Ok => {}
            Outcome::Unknown => self.process = self.recorder.new_process(),
            Outcome::Fail => tokio::time::sleep(REST).await,
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history;

    #[test]
    fn names_are_distinct_and_read_back() {
        for workload in Workload::ALL {
            assert_eq!(workload.name().parse(), Ok(*workload));
        }
        assert!("".parse::<Workload>().is_err());
    }

    #[tokio::test]
    async fn a_client_is_another_process_after_an_unknown_outcome() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(history::FILE);
        let recorder = Recorder::create(&path).unwrap();
        recorder.append(&history::Entry::Run(history::Run {
            format: 1,
            ..history::Run::default()
        }));
        let mut client = Client {
            api: NodeApi::to(&directory.path().join("sock")),
            node: "n1".to_owned(),
            process: recorder.new_process(),
            recorder: recorder.clone(),
        };
        let call = || Call::Read { key: "a".into() };
        let ok = async |_: &NodeApi| Ok(((), Some(Reply::Value(None))));
        let lost = async |_: &NodeApi| Err::<((), _), _>(Failed::Perhaps("lost".into()));
        client.perform(call(), ok).await;
        client.perform(call(), lost).await;
        client.perform(call(), ok).await;
        let Ok(history::Histories::Run(history)) = history::read(&path) else {
            panic!("what clients write is read");
        };
        let processes: Vec<_> = history.operations.iter().map(|one| one.process).collect();
        assert_eq!(processes, [0, 0, 1]);
    }

    #[test]
    fn a_name_is_in_the_zone_of_its_workload() {
        for (key, zone) in [
            ("r0-1.register.test.", Some(register::ZONE)),
            (register::ZONE, Some(register::ZONE)),
            ("_acme-challenge.h7.acme.test.", Some(acme::ZONE)),
            ("n2.comes-and-goes.test.", Some("n2.comes-and-goes.test.")),
            ("other-register.test.", None),
            ("r", None),
        ] {
            assert_eq!(zone_of(key), zone, "{key}");
        }
    }

    #[test]
    fn the_site_is_made_of_what_can_be_made() {
        assert_eq!(site(([10, 77, 0, 210], 8081).into()).len(), 2 + ZONES.len());
    }
}
