//! `run`: one run from its plan to its verdicts. Owns the lab, every client and every watcher, and stops them in order: faults first, then
//! clients, then the final reads, then those who watch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    io::{self, Read, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{runtime::Runtime, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    arp, canary, check,
    checker::{self, Bounds, Conclusion, Verdict, planned::Trial},
    failure::{Code, Failure},
    history::{
        self, Entry, FILE, Histories, History, HistoryError, Moment, Notice, NoticeKind, Rest, Run,
        SelfTest, Skip,
    },
    lab::{
        LabError,
        cluster::{self, BACKEND, CLIENT, Cluster, service_address, vip4, vip6},
        disk::Disk,
        network::{self, DEVICE},
        switch::Switch,
    },
    nemesis::{
        Kind, hits_leader,
        inject::{Nemesis, Outside, WITNESS},
        schedule::{self, Planned},
    },
    observe::{self, Board},
    recorder::Recorder,
    report,
    responders::{Surroundings, Watching},
    workload::{self, Client, Context, Target, Workload, api::NodeApi, sessions, set},
};

const REPORT: &str = "report.html";
const THIEF: &str = "thief";
const ECHO: u16 = 8081;
/// After the cluster is whole and serves again clients go on for so long.
const AFTERMATH: Duration = Duration::from_secs(2);
/// For the final reads of every node, at most; no longer than what is allowed for recovery.
const LAST_READS: Duration = Duration::from_secs(30);
/// The same where not every node came back.
const HOPELESS: Duration = Duration::from_secs(5);
/// Longest time of faults, and longest time for recovery: as the command line takes them, and as a head is believed.
pub const LONGEST: Duration = Duration::from_secs(86_400);
pub const LONGEST_RECOVERY: Duration = Duration::from_secs(600);
/// In so long any fault comes.
const ENOUGH: Duration = Duration::from_secs(600);
/// For the search for an order of one register's operations, and its memory (100 bytes each).
const SEARCH: Duration = Duration::from_secs(60);
const CONFIGURATIONS: usize = 4_000_000;
/// Octets that a disk must take before anything is started: less is full at once.
const LEAST_ROOM: usize = 64 << 10;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// 3 or 5.
    pub nodes: u8,
    pub workloads: BTreeSet<Workload>,
    pub nemeses: BTreeSet<Kind>,
    /// How long faults are injected, and clients left in peace behind them; at most [`LONGEST`].
    pub time: Duration,
    /// The last part of `time`, in which no fault comes ([`schedule::peace`]); at most half of it.
    pub peace: Duration,
    pub seed: u64,
    /// Allowed from the last heal until writes and every service at every place are back; at most [`LONGEST_RECOVERY`].
    pub recovery_bound: Duration,
    /// New; for the history, the report and the nodes' logs.
    pub out: PathBuf,
    /// Faults that cannot be injected here are no failure.
    pub allow_skip: bool,
    /// Set where the faults come from a self-test.
    pub self_test: Option<SelfTest>,
}

impl Plan {
    fn head(&self) -> Run {
        let nodes = 1..=self.nodes;
        Run {
            format: 1,
            seed: self.seed,
            nodes: nodes.map(|number| format!("n{number}")).collect(),
            vips: [vip4(), vip6()].map(|vip| vip.to_string()).into(),
            workloads: self.workloads.iter().map(ToString::to_string).collect(),
            nemeses: self.nemeses.iter().map(ToString::to_string).collect(),
            recovery_bound_ms: self
                .recovery_bound
                .as_millis()
                .try_into()
                .unwrap_or(u64::MAX),
            duration_ms: self.time.as_millis().try_into().unwrap_or(u64::MAX),
            peace_ms: self.peace.as_millis().try_into().unwrap_or(u64::MAX),
            self_test: self.self_test.clone(),
        }
    }

    /// The plan of an earlier run, by the head of its history.
    ///
    /// # Errors
    /// When that does not say what was done: a self-test's faults and defect are not drawn from its seed.
    pub fn of(run: &Run, out: PathBuf, allow_skip: bool) -> Result<Self, RunError> {
        if let Some(test) = &run.self_test {
            return Err(RunError::OfSelfTest(test.clone()));
        }
        if run.duration_ms == 0 {
            return Err(RunError::NoTime);
        }
        let unreadable = |problem: String| RunError::Replay(problem);
        let nodes = match run.nodes.len() {
            3 => 3,
            5 => 5,
            other => {
                let problem = format!("its head names {other} nodes, and a run has 3 or 5");
                return Err(unreadable(problem));
            }
        };
        for (what, milliseconds, most) in [
            ("time of faults", run.duration_ms, LONGEST),
            ("recovery bound", run.recovery_bound_ms, LONGEST_RECOVERY),
        ] {
            if Duration::from_millis(milliseconds) > most {
                let most = most.as_secs();
                let problem =
                    format!("its head has a {what} of {milliseconds} ms; at most {most} s is run");
                return Err(unreadable(problem));
            }
        }
        if run.peace_ms > run.duration_ms / 2 {
            let problem = format!(
                "its head has a time of peace of {} ms in {} ms; at most half of a run is",
                run.peace_ms, run.duration_ms
            );
            return Err(unreadable(problem));
        }
        let workloads = run.workloads.iter().map(|name| name.parse::<Workload>());
        let nemeses = run.nemeses.iter().map(|name| name.parse::<Kind>());
        Ok(Self {
            nodes,
            workloads: workloads
                .collect::<Result<_, _>>()
                .map_err(|error| unreadable(error.to_string()))?,
            nemeses: nemeses
                .collect::<Result<_, _>>()
                .map_err(|error| unreadable(error.to_string()))?,
            time: Duration::from_millis(run.duration_ms),
            peace: Duration::from_millis(run.peace_ms),
            seed: run.seed,
            recovery_bound: Duration::from_millis(run.recovery_bound_ms),
            out,
            allow_skip,
            self_test: None,
        })
    }

    /// The faults to come.
    pub fn faults(&self) -> Vec<Planned> {
        schedule::plan(self.seed, &self.nemeses, self.time_of_faults())
    }

    /// How long faults are injected.
    fn time_of_faults(&self) -> Duration {
        self.time.saturating_sub(self.peace)
    }

    /// Refuses what would end without a trial: a time in which no fault comes, an `out` that is no directory or has a history.
    pub fn check(&self) -> Result<(), RunError> {
        check_directory(&self.out)?;
        if self.out.join(FILE).exists() {
            return Err(RunError::Taken(self.out.clone()));
        }
        let enough = schedule::plan(self.seed, &self.nemeses, ENOUGH);
        match enough.first().map(|first| first.at + first.lasts) {
            Some(needed) if needed > self.time_of_faults() => Err(RunError::TooShort {
                given: self.time_of_faults().as_secs(),
                seed: self.seed,
                needed: needed.as_secs() + 1,
            }),
            _ => Ok(()),
        }
    }
}

/// Refuses a directory to come that cannot be made, as there is something else in its place.
///
/// # Errors
/// [`RunError::NoDirectory`] with what there is.
pub fn check_directory(directory: &Path) -> Result<(), RunError> {
    let mut places = directory.ancestors();
    match places.find(|place| place.symlink_metadata().is_ok()) {
        Some(place) if !place.is_dir() => Err(RunError::NoDirectory(place.to_owned())),
        _ => Ok(()),
    }
}

/// A run that could not be made, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    File(#[from] Unwritten),
    #[error("cannot read the run's own history: {0}")]
    History(#[from] HistoryError),
    #[error("cannot run that again: {0}")]
    Replay(String),
    #[error(
        "cannot run that again: it is scenario {} of a self-test, whose faults and defect no seed draws; do `jepsen-like self-test --defect {}`",
        .0.scenario,
        .0.defect.as_deref().unwrap_or("all")
    )]
    OfSelfTest(SelfTest),
    #[error(
        "cannot run that again: its history says that no fault was drawn for any time, as one of a self-test does; for that, do \
         `jepsen-like self-test --defect NAME`, where NAME is the directory that the history is in"
    )]
    NoTime,
    #[error("{}: there is a history in it; name another directory", .0.display())]
    Taken(PathBuf),
    #[error("{} is there, and is no directory", .0.display())]
    NoDirectory(PathBuf),
    #[error(
        "{given} s is too short for a fault: with seed {seed} the first ends {needed} s after the beginning"
    )]
    TooShort { given: u64, seed: u64, needed: u64 },
}

/// A file of a run that could not be written, or not whole.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct Unwritten {
    pub path: PathBuf,
    pub source: io::Error,
}

impl Unwritten {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { path, source }
    }
}

/// A run that was judged.
#[derive(Debug)]
pub struct Finished {
    pub history: History,
    pub verdicts: Vec<Verdict>,
    /// What ended it before its time, where that was the laboratory's own fault; what came before is judged all the same.
    pub breakdown: Option<LabError>,
    /// Files that are not whole. The history that was judged is: from the first failure on it was kept in memory, and the run ended.
    pub unwritten: Vec<Unwritten>,
}

/// What cannot be done here, and why.
pub fn missing(kinds: &BTreeSet<Kind>) -> BTreeMap<Kind, String> {
    let nft = cluster_tool("nft");
    let disks = kinds.iter().any(|kind| kind.needs_disks());
    let disks = disks.then(Disk::missing).flatten();
    let switch = kinds.iter().any(|kind| kind.needs_switch());
    let switch = switch.then(Switch::missing).flatten();
    let clock = faketime()
        .is_none()
        .then(|| "libfaketime.so.1 (package libfaketime) is not installed".to_owned());
    let reason = |kind: Kind| match kind {
        _ if kind.needs_clocks() => clock.clone(),
        _ if kind.needs_disks() => disks.clone(),
        _ if kind.needs_switch() => nft.clone().or_else(|| switch.clone()),
        Kind::PartitionLeader
        | Kind::PartitionHalves
        | Kind::PartitionRing
        | Kind::PartitionBridge
        | Kind::PartitionOneWay
        | Kind::PartitionClient
        | Kind::Flush => nft.clone(),
        _ => None,
    };
    kinds
        .iter()
        .filter_map(|kind| Some((*kind, reason(*kind)?)))
        .collect()
}

fn cluster_tool(tool: &str) -> Option<String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut directories = std::env::split_paths(&paths);
    let is_there = directories.any(|directory| directory.join(tool).is_file());
    (!is_there).then(|| format!("{tool} is not installed"))
}

/// The library that fakes wall clocks, where Debian, Fedora and Arch put it.
fn faketime() -> Option<PathBuf> {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib64/faketime",
        "/usr/lib/faketime",
    ];
    let mut libraries = places
        .iter()
        .map(|place| Path::new(place).join("libfaketimeMT.so.1"));
    libraries.find(|library| library.is_file())
}

/// Does faults and undoes all of them.
pub type Course<'a> = dyn Fn(&mut Nemesis<'_>, &dyn Fn() -> bool) -> Result<(), LabError> + 'a;

/// Runs a plan. `is_over` ends it early, and properly.
pub fn run(plan: &Plan, is_over: &dyn Fn() -> bool) -> Result<Finished, RunError> {
    let missing = missing(&plan.nemeses);
    let is_possible = |kind: Kind| plan.nemeses.contains(&kind) && !missing.contains_key(&kind);
    let options = cluster::Options {
        nodes: plan.nodes,
        spares: u8::from(is_possible(Kind::Join)),
        has_disks: (Kind::ALL.iter()).any(|kind| kind.needs_disks() && is_possible(*kind)),
        faketime: faketime().filter(|_| {
            let mut kinds = Kind::ALL.iter();
            kinds.any(|kind| kind.needs_clocks() && is_possible(*kind))
        }),
        // Its peers do not tell a node that its clients are cut off.
        configuration: match is_possible(Kind::PartitionClient) {
            true => format!("\n[vip]\nreachable = [\"{}\"]\n", network::ipv4(200)),
            false => String::new(),
        },
        ..cluster::Options::default()
    };
    let course = |nemesis: &mut Nemesis<'_>, is_over: &dyn Fn() -> bool| {
        nemesis.run(&plan.faults(), plan.time_of_faults(), is_over)
    };
    run_course(plan, &options, missing, &course, is_over)
}

/// Runs a plan on nodes as `options` say, with the faults of `course` instead of those that the seed draws.
pub fn run_course(
    plan: &Plan,
    options: &cluster::Options,
    missing: BTreeMap<Kind, String>,
    course: &Course<'_>,
    is_over: &dyn Fn() -> bool,
) -> Result<Finished, RunError> {
    fs::create_dir_all(&plan.out).map_err(Unwritten::at(&plan.out))?;
    let path = plan.out.join(FILE);
    if path.exists() {
        return Err(RunError::Taken(plan.out.clone()));
    }
    find_room(&plan.out)?;
    let mut cluster = Cluster::start_with(options)?;
    let ended = record(plan, &mut cluster, missing, &path, course, is_over);
    let uncopied = copy_logs(&cluster, &plan.out);
    let mut recorded = ended.map_err(|error| {
        for Unwritten { path, source } in &uncopied {
            tracing::warn!(file = %path.display(), error = %source, "a log could not be copied");
        }
        match error {
            RunError::Lab(error) => cluster.with_logs(error).into(),
            other => other,
        }
    })?;
    drop(cluster);
    recorded.unwritten.extend(uncopied);
    judge(&path, plan, recorded)
}

/// Refuses a directory in which nothing can be written, before there is anything to write.
fn find_room(directory: &Path) -> Result<(), Unwritten> {
    let tried = tempfile::NamedTempFile::new_in(directory).and_then(|mut file| {
        file.write_all(&vec![b'x'; LEAST_ROOM])?;
        file.as_file().sync_all()
    });
    tried.map_err(Unwritten::at(&directory.join(FILE)))
}

/// What was written of a run, and how it ended.
#[derive(Default)]
struct Recorded {
    rest: Rest,
    breakdown: Option<LabError>,
    unwritten: Vec<Unwritten>,
}

/// Reads the history back and judges it; writes the report.
fn judge(path: &Path, plan: &Plan, recorded: Recorded) -> Result<Finished, RunError> {
    let Recorded {
        rest,
        breakdown,
        mut unwritten,
    } = recorded;
    let history = match (read_back(path, &rest), unwritten.is_empty()) {
        (Ok(history), _) => history,
        (Err(error), true) => return Err(error.into()),
        // That it cannot be read follows from this.
        (Err(_), false) => return Err(unwritten.swap_remove(0).into()),
    };
    let bounds = Bounds {
        allow_skip: plan.allow_skip,
        ..Bounds::default()
    };
    let verdicts = check::within(CONFIGURATIONS, SEARCH, |limits| {
        checker::check(&history, &bounds, limits)
    });
    let page = plan.out.join(REPORT);
    if let Err(source) = fs::write(&page, report::page(&history, &verdicts)) {
        let _ = fs::remove_file(&page); // half a page misleads; the failure is told
        unwritten.push(Unwritten { path: page, source });
    }
    Ok(Finished {
        history,
        verdicts,
        breakdown,
        unwritten,
    })
}

/// The history as it is in the file and, behind that, in memory.
fn read_back(path: &Path, rest: &Rest) -> Result<History, HistoryError> {
    let file = File::open(path).map_err(|source| HistoryError::Io {
        file: path.to_owned(),
        source,
    })?;
    let whole = file.take(rest.written).chain(rest.lines.as_slice());
    match history::read_from(whole, path)? {
        Histories::Run(history) => Ok(*history),
        Histories::Registers(_) => Err(HistoryError::Headless {
            file: path.to_owned(),
        }),
    }
}

/// Runs a plan up to its last entry. What breaks it off once the clients have begun ends it in order, and is returned where it is the
/// laboratory's own fault; what the cluster owed and did not do is in the history. A history that cannot be written ends it as `is_over` does.
fn record(
    plan: &Plan,
    cluster: &mut Cluster,
    missing: BTreeMap<Kind, String>,
    path: &Path,
    course: &Course<'_>,
    is_over: &dyn Fn() -> bool,
) -> Result<Recorded, RunError> {
    let outside = Outside {
        witness: cluster.add_host(WITNESS, 220)?,
        thief: cluster.add_host(THIEF, 201)?,
    };
    let echo = (network::ipv4(210), ECHO).into();
    let changes = workload::site(echo);
    // Open before anybody looks for it: nodes wait seconds before they look again for a backend that was down.
    let echo = sessions::echo(cluster.lab().host(BACKEND)?, echo)?;
    cluster
        .leader()?
        .client()
        .propose(&changes, Duration::from_secs(10))
        .map_err(LabError::Call)?;

    let recorder = Recorder::create(path).map_err(Unwritten::at(path))?;
    recorder.append(&Entry::Run(plan.head()));
    let is_over = &|| is_over() || recorder.has_failed();
    let mut people = People::start(plan, cluster, &outside, &recorder)?;
    people.runtime.spawn(workload::sessions::serve_echo(
        echo,
        people.watch.end.clone(),
    ));
    let context = people.context.clone();
    let mut nemesis = Nemesis::new(
        cluster,
        outside,
        missing,
        people.board.clone(),
        recorder.clone(),
    )?;
    let inside = people.runtime.enter();
    workload::start(
        plan.workloads.iter().copied(),
        &context,
        &mut people.clients,
    )?;
    drop(inside);
    let mut ended = follow(plan, &mut nemesis, &mut people, course, is_over);
    people.stop_clients();
    let is_whole = matches!(ended, Ok(true));
    if let Err(error) = &ended {
        nemesis.abandon(error);
    }
    // What is read while faults hold is no last read: whoever is cut off answers too.
    if ended.is_ok() {
        people.last_reads(plan, if is_whole { LAST_READS } else { HOPELESS });
    }
    let was_interrupted = is_over();
    if ended.is_ok()
        && let Err(error) = nemesis.note_ends()
    {
        nemesis.abandon(&error);
        ended = Err(error);
    }
    note_panics(nemesis.cluster(), &recorder);
    people.stop_watching();
    if ended.is_ok() {
        let at = recorder.now();
        recorder.append(&match was_interrupted {
            true => Entry::Interrupted { at },
            false => Entry::End { at },
        });
    }
    let (rest, failure) = recorder.finish();
    Ok(Recorded {
        rest,
        breakdown: ended.err().filter(|error| !error.is_of_cluster()),
        unwritten: (failure.map(Unwritten::at(path))).into_iter().collect(),
    })
}

/// Does the faults, gives the cluster the time to be whole and to serve at every place again, and leaves it in peace as planned; says whether it
/// is whole.
fn follow(
    plan: &Plan,
    nemesis: &mut Nemesis<'_>,
    people: &mut People,
    course: &Course<'_>,
    is_over: &dyn Fn() -> bool,
) -> Result<bool, LabError> {
    course(nemesis, is_over)?;
    tracing::info!("all faults are healed");
    let healed = people.recorder.now();
    people.begin_anew(plan);
    let run = plan.head();
    let owed: Vec<Trial<'_>> = Trial::owed(&run)
        .into_iter()
        .filter(Trial::is_service)
        .collect();
    let served = |trial: &Trial<'_>| people.context.served.is_since(*trial, healed);
    let (mut is_whole, mut is_served) = (false, false);
    while people.recorder.now().since(healed) < plan.recovery_bound
        && !is_over()
        && !(is_whole && is_served)
    {
        nemesis.rest(Duration::from_millis(500), is_over)?;
        is_whole = is_whole || nemesis.cluster().is_whole_now();
        is_served = owed.iter().all(served);
    }
    // From the heal on, which may be late: it is the peace that has to be long enough.
    let peace = (plan.peace).saturating_sub(people.recorder.now().since(healed));
    nemesis.rest(peace.max(AFTERMATH), is_over)?;
    Ok(is_whole)
}

/// Everybody who takes part in a run but the nemesis.
struct People {
    runtime: Runtime,
    board: Arc<Board>,
    context: Arc<Context>,
    recorder: Arc<Recorder>,
    clients: JoinSet<()>,
    watchers: JoinSet<()>,
    watch: Watch,
}

/// The threads that watch: they end with this, however the run does.
struct Watch {
    /// Ends those that watch as tasks, too.
    end: CancellationToken,
    witness: Option<Watching>,
    canary: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(witness) = self.witness.take() {
            witness.join();
        }
        if let Some(canary) = self.canary.take() {
            let _ = canary.join(); // it has nothing to say
        }
    }
}

impl People {
    fn start(
        plan: &Plan,
        cluster: &Cluster,
        outside: &Outside,
        recorder: &Arc<Recorder>,
    ) -> Result<Self, RunError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(LabError::Runtime)?;
        let board = Arc::new(Board::default());
        let end_watch = CancellationToken::new();
        let mut targets = vec![];
        for node in cluster.nodes() {
            let IpAddr::V4(address) = service_address(node.name())? else {
                continue;
            };
            targets.push(Target {
                name: node.name().to_owned(),
                socket: node.client().socket().to_owned(),
                address,
            });
        }
        let mut watchers = JoinSet::new();
        for node in cluster.nodes().iter().chain(cluster.spares()) {
            let task = observe::observe(
                node.name().to_owned(),
                node.client().socket().to_owned(),
                board.clone(),
                recorder.clone(),
                end_watch.clone(),
            );
            watchers.spawn_on(task, runtime.handle());
        }
        let context = Arc::new(Context {
            recorder: recorder.clone(),
            board: board.clone(),
            targets,
            host: cluster.client().clone(),
            end: CancellationToken::new(),
            registers: workload::register::Keys::default(),
            elements: Mutex::default(),
            lists: workload::append::Epochs::default(),
            served: workload::served::Served::default(),
            recovery: plan.recovery_bound,
            counter: AtomicU64::new(1),
        });
        let watches =
            plan.workloads.contains(&Workload::Vip) || plan.workloads.contains(&Workload::Sessions);
        let witness = match watches {
            true => Some(watch(cluster, outside, &board, recorder, &end_watch)?),
            false => None,
        };
        let canary = canary::start(recorder.clone(), end_watch.clone());
        Ok(Self {
            runtime,
            board,
            context,
            recorder: recorder.clone(),
            clients: JoinSet::new(),
            watchers,
            watch: Watch {
                end: end_watch,
                witness,
                canary: Some(canary),
            },
        })
    }

    /// After the last fault: what is owed is to be asked for from now on.
    fn begin_anew(&mut self, plan: &Plan) {
        let _inside = self.runtime.enter();
        if plan.workloads.contains(&Workload::Sessions) {
            sessions::start_anew(&self.context, &mut self.clients);
        }
    }

    fn stop_clients(&mut self) {
        self.context.end.cancel();
        let clients = std::mem::take(&mut self.clients);
        self.runtime.block_on(clients.join_all());
    }

    fn stop_watching(mut self) {
        self.watch.end.cancel();
        let watchers = std::mem::take(&mut self.watchers);
        self.runtime.block_on(watchers.join_all());
        drop(self.watch);
    }

    /// What every node owes when all is over. What cannot be had is missing, and found missing by the checkers.
    fn last_reads(&self, plan: &Plan, patience: Duration) {
        let deadline = Instant::now() + patience.min(plan.recovery_bound);
        self.runtime.block_on(async {
            self.wait_for_one_state(deadline).await;
            for target in &self.context.targets {
                if plan.workloads.contains(&Workload::Set) {
                    let mut client = Client::of(target, &self.context);
                    while set::read(&mut client, true, true).await.is_none()
                        && Instant::now() < deadline
                    {}
                }
            }
        });
    }

    /// Waits until all nodes have a state of one index, and writes its hashes.
    async fn wait_for_one_state(&self, deadline: Instant) {
        loop {
            let mut hashes = vec![];
            for target in &self.context.targets {
                let api = NodeApi::to(&target.socket);
                if let Ok(status) = api.status().await {
                    let hash = observe::state_hash(&target.name, &status, true, &self.recorder);
                    hashes.extend(hash);
                }
            }
            let indexes: BTreeSet<u64> = hashes.iter().map(|hash| hash.index).collect();
            let is_one = indexes.len() == 1 && hashes.len() == self.context.targets.len();
            if is_one || Instant::now() >= deadline {
                let entries: Vec<_> = hashes.into_iter().map(Entry::Hash).collect();
                return self.recorder.append_all(&entries);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn watch(
    cluster: &Cluster,
    outside: &Outside,
    board: &Arc<Board>,
    recorder: &Arc<Recorder>,
    end: &CancellationToken,
) -> Result<Watching, RunError> {
    let (IpAddr::V4(vip4), IpAddr::V6(vip6)) = (vip4(), vip6()) else {
        return Err(LabError::NoNode.into());
    };
    let mac = |host: &crate::lab::namespace::Namespace| {
        let text = host.mac(DEVICE)?;
        arp::parse_mac(&text).ok_or(LabError::NoNode)
    };
    let mut nodes = BTreeMap::new();
    let mut hosts = vec![
        (WITNESS.to_owned(), mac(&outside.witness)?),
        (CLIENT.to_owned(), mac(cluster.client())?),
    ];
    for node in cluster.nodes().iter().chain(cluster.spares()) {
        let mac = mac(node.host())?;
        nodes.insert(mac, node.name().to_owned());
        hosts.push((node.name().to_owned(), mac));
    }
    Ok(Watching::start(
        &outside.witness,
        cluster.lab().network().switch(),
        &hosts,
        Surroundings { vip4, vip6, nodes },
        board.clone(),
        recorder.clone(),
        end.clone(),
    )?)
}

/// A panic anywhere in a node's log.
fn note_panics(cluster: &Cluster, recorder: &Recorder) {
    for node in cluster.nodes().iter().chain(cluster.spares()) {
        let log = fs::read(node.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        for line in log.lines().filter(|line| line.contains("panicked at")) {
            recorder.append(&Entry::Notice(Notice {
                at: recorder.now(),
                node: node.name().to_owned(),
                kind: NoticeKind::Panic,
                text: line.to_owned(),
            }));
        }
    }
}

/// Copies the nodes' logs; those that could not be copied whole.
fn copy_logs(cluster: &Cluster, out: &Path) -> Vec<Unwritten> {
    let nodes = cluster.nodes().iter().chain(cluster.spares());
    let copies = nodes.filter(|node| node.log().is_file()).map(|node| {
        let path = out.join(format!("{}.log", node.name()));
        match fs::copy(node.log(), &path) {
            Ok(_) => None,
            Err(source) => Some(Unwritten { path, source }),
        }
    });
    copies.flatten().collect()
}

/// What `run -o json` prints, in this order.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    pub seed: u64,
    pub nodes: u8,
    pub seconds: u64,
    pub verdict: Conclusion,
    /// Why the laboratory could not go on; absent where it could.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breakdown: Option<String>,
    /// What the laboratory failed at, as on stderr; absent where it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    pub checkers: &'a [Verdict],
    /// When the last fault was healed; zero where there was none.
    pub last_heal: Moment,
    pub history: PathBuf,
    /// None: it could not be written.
    pub report: Option<PathBuf>,
    #[serde(flatten)]
    pub counts: Counts<'a>,
}

/// What was tried, in numbers.
#[derive(Debug, Serialize)]
pub struct Counts<'a> {
    /// By outcome.
    pub operations: BTreeMap<&'static str, u64>,
    /// Injected ones, by kind.
    pub faults: BTreeMap<&'a str, u64>,
    /// Faults that hit whoever led.
    pub leader_hits: usize,
    /// What could not be injected here, and why.
    pub skipped_faults: BTreeMap<&'a str, &'a str>,
    /// What was tried and not done, by kind.
    pub missed_faults: BTreeMap<&'a str, Missed<'a>>,
}

/// Faults of one kind that were tried and not done.
#[derive(Debug, Serialize)]
pub struct Missed<'a> {
    pub count: u64,
    /// Why the first was not.
    pub why: &'a str,
}

impl Finished {
    /// One JSON document: verdicts, then operations by outcome, faults by kind, leader hits, skipped faults.
    pub fn document(&self, plan: &Plan) -> Document<'_> {
        let healed = self.history.faults.iter().filter_map(|fault| fault.healed);
        Document {
            seed: plan.seed,
            nodes: plan.nodes,
            seconds: plan.time.as_secs(),
            verdict: checker::conclusion(&self.verdicts),
            breakdown: self.breakdown.as_ref().map(ToString::to_string),
            error: self.failure(plan),
            checkers: &self.verdicts,
            last_heal: healed.max().unwrap_or(Moment(0)),
            history: plan.out.join(FILE),
            report: self.report(plan),
            counts: self.counts(),
        }
    }

    /// The page, if it is there.
    fn report(&self, plan: &Plan) -> Option<PathBuf> {
        let page = plan.out.join(REPORT);
        let is_absent = self.unwritten.iter().any(|file| file.path == page);
        (!is_absent).then_some(page)
    }

    /// What the laboratory failed at; what it found holds all the same. None: nothing.
    pub fn failure(&self, plan: &Plan) -> Option<Failure> {
        let unwritten = Failure::of_unwritten(&self.unwritten);
        let broke = self.breakdown.as_ref().map(|error| {
            let problem = format!(
                "it failed before the end of the run, which says nothing of the cluster: {error}"
            );
            let hint = format!("the nodes' logs are in {}", plan.out.display());
            Failure::new(Code::Laboratory, "laboratory", problem, hint)
        });
        match (unwritten, broke) {
            (Some(unwritten), Some(broke)) => Some(Failure {
                problem: format!("{}; and {}", unwritten.problem, broke.problem),
                ..unwritten
            }),
            (one, other) => one.or(other),
        }
    }

    pub fn counts(&self) -> Counts<'_> {
        let History {
            operations, faults, ..
        } = &self.history;
        let mut outcomes: BTreeMap<&str, u64> = [("ok", 0), ("fail", 0), ("unknown", 0)].into();
        for operation in operations {
            let outcome = match operation.outcome {
                history::Outcome::Ok => "ok",
                history::Outcome::Fail => "fail",
                history::Outcome::Unknown => "unknown",
            };
            *outcomes.entry(outcome).or_default() += 1;
        }
        let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
        for fault in faults.iter().filter(|fault| fault.skipped.is_none()) {
            *kinds.entry(&fault.kind).or_default() += 1;
        }
        let mut skipped = BTreeMap::new();
        let mut missed: BTreeMap<&str, Missed<'_>> = BTreeMap::new();
        for fault in faults {
            let kind = fault.kind.as_str();
            match &fault.skipped {
                None => {}
                Some(Skip::Impossible(why)) => {
                    skipped.insert(kind, why.as_str());
                }
                Some(Skip::Missed { missed: why }) => {
                    let first = Missed { count: 0, why };
                    missed.entry(kind).or_insert(first).count += 1;
                }
            }
        }
        Counts {
            operations: outcomes,
            faults: kinds,
            leader_hits: faults.iter().filter(|fault| hits_leader(fault)).count(),
            skipped_faults: skipped,
            missed_faults: missed,
        }
    }
}

impl fmt::Display for Counts<'_> {
    /// A line for each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |counts: &BTreeMap<&str, u64>| {
            let counts = counts.iter().map(|(name, count)| format!("{count} {name}"));
            or_none(counts.collect())
        };
        let skipped = (self.skipped_faults.iter()).map(|(kind, why)| format!("{kind} ({why})"));
        writeln!(f, "operations: {}", listed(&self.operations))?;
        writeln!(f, "faults: {}", listed(&self.faults))?;
        writeln!(f, "leader hits: {}", self.leader_hits)?;
        let missed = (self.missed_faults.iter())
            .map(|(kind, Missed { count, why })| format!("{count} {kind} ({why})"));
        writeln!(f, "skipped faults: {}", or_none(skipped.collect()))?;
        writeln!(f, "missed faults: {}", or_none(missed.collect()))
    }
}

fn or_none(parts: Vec<String>) -> String {
    match parts.is_empty() {
        true => "none".to_owned(),
        false => parts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            nodes: 5,
            workloads: [Workload::Set, Workload::Vip].into(),
            nemeses: [Kind::Kill, Kind::PartitionRing].into(),
            time: Duration::from_secs(90),
            peace: Duration::from_secs(32),
            seed: 77,
            recovery_bound: Duration::from_secs(20),
            out: "here".into(),
            allow_skip: true,
            self_test: None,
        }
    }

    #[test]
    fn a_run_is_run_again_from_the_head_of_its_history() {
        let plan = plan();
        let again = Plan::of(&plan.head(), "here".into(), true).unwrap();
        assert_eq!(again.head(), plan.head());
        assert_eq!(again.faults(), plan.faults());
        let ends = plan
            .faults()
            .into_iter()
            .map(|fault| fault.at + fault.lasts);
        assert!(
            ends.max()
                .is_some_and(|last| last <= plan.time - plan.peace)
        );
        // Written before runs had any.
        let text = serde_json::to_string(&plan.head()).unwrap();
        let old = text.replace(",\"peace_ms\":32000", "");
        assert_ne!(old, text);
        let old: Run = serde_json::from_str(&old).unwrap();
        let again = Plan::of(&old, "here".into(), true).unwrap();
        assert_eq!(again.faults(), schedule::plan(77, &plan.nemeses, plan.time));
        let unknown = Run {
            nemeses: ["flood".to_owned()].into(),
            ..plan.head()
        };
        let refused = Plan::of(&unknown, "here".into(), true).unwrap_err();
        assert!(refused.to_string().contains("flood"));
    }

    #[test]
    fn a_head_that_no_run_can_have_written_is_not_run_again() {
        let refused = |run: &Run| {
            let refused = Plan::of(run, "here".into(), true).unwrap_err();
            refused.to_string()
        };
        for count in [0, 1, 4, 255, 300] {
            let nodes = (0..count).map(|number| format!("n{number}")).collect();
            let run = Run {
                nodes,
                ..plan().head()
            };
            let said = refused(&run);
            assert!(said.contains(&format!("{count} nodes")), "{said}");
        }
        let endless = Run {
            duration_ms: u64::MAX,
            ..plan().head()
        };
        assert!(refused(&endless).contains("time of faults"));
        let patient = Run {
            recovery_bound_ms: 600_001,
            ..plan().head()
        };
        assert!(refused(&patient).contains("recovery bound"));
        let idle = Run {
            peace_ms: 45_001,
            ..plan().head()
        };
        assert!(refused(&idle).contains("peace"));
    }

    #[test]
    fn what_a_self_test_did_is_not_run_again_as_something_else() {
        let refused = |run: &Run| {
            let refused = Plan::of(run, "here".into(), true).unwrap_err();
            refused.to_string()
        };
        let test = |defect: Option<&str>| SelfTest {
            scenario: "transfer".into(),
            defect: defect.map(str::to_owned),
        };
        let of_test = |defect| Plan {
            time: Duration::ZERO,
            peace: Duration::ZERO,
            nemeses: BTreeSet::new(),
            self_test: Some(test(defect)),
            ..plan()
        };
        let said = refused(&of_test(Some("bare-transfer")).head());
        assert!(said.contains("scenario transfer"), "{said}");
        assert!(said.contains("self-test --defect bare-transfer`"), "{said}");
        let said = refused(&of_test(None).head());
        assert!(said.contains("self-test --defect all`"), "{said}");
        // Written before heads said so.
        let old = Run {
            self_test: None,
            ..of_test(None).head()
        };
        assert!(refused(&old).contains("jepsen-like self-test"));
    }

    /// A history of a run that began, with these further entries, judged.
    fn judged(entries: &[Entry], breakdown: Option<LabError>) -> (Finished, String) {
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan {
            out: directory.path().to_owned(),
            ..plan()
        };
        let path = plan.out.join(FILE);
        let writer = history::HistoryWriter::create(&path).unwrap();
        writer.append(&Entry::Run(plan.head())).unwrap();
        writer.append_all(entries).unwrap();
        let recorded = Recorded {
            rest: writer.take_rest().unwrap(),
            breakdown,
            ..Recorded::default()
        };
        let finished = judge(&path, &plan, recorded).unwrap();
        let page = fs::read_to_string(plan.out.join(REPORT)).unwrap();
        (finished, page)
    }

    #[test]
    fn a_run_that_ended_early_is_judged_and_reported() {
        let open = history::Fault {
            kind: "leave".into(),
            nodes: ["n2".to_owned()].into(),
            began: Moment(1),
            healed: None,
            hit_leader: false,
            skipped: None,
        };
        let panic = Entry::Notice(Notice {
            at: Moment(3),
            node: "n1".into(),
            kind: NoticeKind::Panic,
            text: "panicked at src/here".into(),
        });
        let text = "the leave of n2 did not happen within 90 s";
        let unhealed = Entry::Unhealed(history::Unhealed {
            at: Moment(2),
            text: text.into(),
            fault: Some(open.clone()),
        });
        let (finished, page) = judged(&[Entry::Fault(open), unhealed, panic.clone()], None);
        let violated = |finished: &Finished| -> Vec<_> {
            let verdicts = finished.verdicts.iter();
            let wrong = verdicts.filter(|verdict| verdict.conclusion == Conclusion::Violated);
            wrong.map(|verdict| verdict.checker).collect()
        };
        let found = violated(&finished);
        assert!(
            found.contains(&"healing") && found.contains(&"logs"),
            "{found:?}"
        );
        assert!(page.contains(text) && page.contains("panicked at"));

        let error = LabError::Output {
            command: "ip".into(),
            problem: "no mac".into(),
        };
        let broke = Entry::Breakdown(history::Breakdown {
            at: Moment(2),
            text: error.to_string(),
        });
        let (finished, page) = judged(&[broke, panic], Some(error));
        let found = violated(&finished);
        assert!(
            !found.contains(&"healing") && found.contains(&"logs"),
            "{found:?}"
        );
        assert!(page.contains("the laboratory failed at") && page.contains("no mac"));
        assert!(finished.document(&plan()).breakdown.is_some());
    }

    /// A register that is written and read: what was read is in the last entry.
    fn operations(seen: &str) -> Vec<Entry> {
        let (key, at) = ("r".to_owned(), Moment);
        let invoke = |id, at, call| Entry::Invoke {
            id,
            process: 0,
            node: Some("n1".into()),
            at,
            call,
        };
        let complete = |id, at, reply| Entry::Complete {
            id,
            at,
            outcome: history::Outcome::Ok,
            reply: Some(reply),
            reason: None,
        };
        let write = history::Call::Write {
            key: key.clone(),
            value: Some("1".into()),
        };
        let committed = history::Reply::Committed {
            revision: 3,
            serial: None,
        };
        vec![
            invoke(1, at(1), write),
            complete(1, at(2), committed),
            invoke(2, at(3), history::Call::Read { key }),
            complete(2, at(4), history::Reply::Value(Some(seen.into()))),
        ]
    }

    #[test]
    fn a_run_whose_disk_fills_up_is_judged_from_memory_and_says_which_file_is_not_whole() {
        let directory = tempfile::tempdir().unwrap();
        let head = serde_json::to_string(&Entry::Run(plan().head()))
            .unwrap()
            .len()
            + 1;
        for (number, room) in [0, 10, head, head + 1, head + 100].into_iter().enumerate() {
            for (seen, verdict) in [("1", Conclusion::Undecided), ("2", Conclusion::Violated)] {
                let plan = Plan {
                    out: directory.path().join(format!("{number}-{seen}")),
                    ..plan()
                };
                fs::create_dir(&plan.out).unwrap();
                // The page cannot be written either.
                fs::create_dir(plan.out.join(REPORT)).unwrap();
                let path = plan.out.join(FILE);
                let recorder = Recorder::onto(history::FullDisk::create(&path, room));
                recorder.append(&Entry::Run(plan.head()));
                assert_eq!(recorder.has_failed(), room < head);
                recorder.append_all(&operations(seen));
                assert!(recorder.has_failed());
                recorder.append(&Entry::Interrupted { at: Moment(5) });
                let (rest, failure) = recorder.finish();
                let written = fs::read(&path).unwrap();
                assert!(
                    written.is_empty() || written.ends_with(b"\n"),
                    "room {room}"
                );
                assert_eq!(rest.written, written.len() as u64);
                let recorded = Recorded {
                    rest,
                    breakdown: None,
                    unwritten: vec![Unwritten::at(&path)(failure.unwrap())],
                };

                let finished = judge(&path, &plan, recorded).unwrap();
                assert_eq!(finished.history.operations.len(), 2, "room {room}");
                assert!(!finished.history.is_cut_off);
                assert_eq!(checker::conclusion(&finished.verdicts), verdict);
                let document = serde_json::to_value(finished.document(&plan)).unwrap();
                let error = &document["error"];
                assert_eq!(error["code"], "unwritten");
                assert_eq!(error["object"], format!("file {}", path.display()));
                let problem = error["problem"].as_str().unwrap();
                assert!(
                    problem.contains("no storage space") && problem.contains(REPORT),
                    "{problem}"
                );
                assert_eq!(document["report"], serde_json::Value::Null);
            }
        }
    }

    #[test]
    fn whoever_watches_ends_with_a_run_that_could_not_be_begun() {
        let directory = tempfile::tempdir().unwrap();
        let recorder = Recorder::create(&directory.path().join(FILE)).unwrap();
        let end = CancellationToken::new();
        let watch = Watch {
            canary: Some(canary::start(recorder.clone(), end.clone())),
            end: end.clone(),
            witness: None,
        };
        drop(watch);
        assert!(end.is_cancelled());
        assert_eq!(Arc::strong_count(&recorder), 1, "the thread has ended");
    }

    #[test]
    fn a_directory_that_takes_nothing_is_refused_before_anything_is_started() {
        let directory = tempfile::tempdir().unwrap();
        assert!(find_room(directory.path()).is_ok());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        let refused = find_room(&directory.path().join("absent")).unwrap_err();
        assert!(refused.path.ends_with(FILE), "{refused}");
    }

    #[test]
    fn a_run_whose_own_history_contradicts_itself_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let plan = Plan {
            out: directory.path().to_owned(),
            ..plan()
        };
        let path = plan.out.join(FILE);
        let recorder = Recorder::create(&path).unwrap();
        recorder.append(&Entry::Run(plan.head()));
        let call = history::Call::Read { key: "a".into() };
        let id = recorder.invoke(0, "n1", call);
        recorder.complete(id, history::Outcome::Ok, None, None);
        let recorded = Recorded {
            rest: recorder.finish().0,
            ..Recorded::default()
        };
        let said = judge(&path, &plan, recorded).unwrap_err().to_string();
        let problem = "history.jsonl:3: operation 0, read a: it is ok and has no reply";
        assert!(
            said.starts_with("cannot read the run's own history"),
            "{said}"
        );
        assert!(said.ends_with(problem), "{said}");
    }

    #[test]
    fn the_summary_counts_outcomes_and_faults() {
        let fault = |kind: &str, hit_leader, skipped: Option<Skip>| history::Fault {
            kind: kind.into(),
            nodes: BTreeSet::new(),
            began: Moment(1),
            healed: Some(Moment(2)),
            hit_leader,
            skipped,
        };
        let missed = |why: &str| Skip::Missed { missed: why.into() };
        let history = History {
            faults: vec![
                fault("kill", true, None),
                fault("kill", false, None),
                fault("clock-step", false, Some("no tool".into())),
                fault("vip-move", false, Some(missed("n2 lags"))),
                fault("vip-move", false, Some(missed("nobody leads"))),
            ],
            ..History::default()
        };
        let finished = Finished {
            verdicts: vec![],
            breakdown: None,
            unwritten: vec![],
            history,
        };
        let text = serde_json::to_string(&finished.document(&plan())).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["faults"], serde_json::json!({ "kill": 2 }));
        assert_eq!(json["leader_hits"], 1);
        assert_eq!(json["skipped_faults"]["clock-step"], "no tool");
        let missed = serde_json::json!({ "vip-move": { "count": 2, "why": "n2 lags" } });
        assert_eq!(json["missed_faults"], missed);
        assert_eq!(json["operations"]["ok"], 0);
        let ends_with = [
            "\"verdict\"",
            "\"operations\"",
            "\"faults\"",
            "\"leader_hits\"",
            "\"skipped_faults\"",
        ];
        let places = ends_with.map(|name| text.find(name).unwrap());
        assert!(places.is_sorted(), "{text}");
        assert_eq!(
            finished.counts().to_string(),
            "operations: 0 fail, 0 ok, 0 unknown\nfaults: 2 kill\nleader hits: 1\nskipped faults: clock-step (no tool)\nmissed faults: 2 vip-move (n2 lags)\n"
        );
    }

    #[test]
    fn a_run_that_could_show_nothing_is_refused_before_it_begins() {
        let directory = tempfile::tempdir().unwrap();
        let mut plan = Plan {
            out: directory.path().to_owned(),
            ..plan()
        };
        assert!(plan.check().is_ok());
        (plan.time, plan.peace) = (Duration::from_secs(2), Duration::ZERO);
        let refused = plan.check().unwrap_err().to_string();
        assert!(refused.contains("2 s is too short"), "{refused}");
        plan.nemeses.clear();
        assert!(plan.check().is_ok(), "without faults any time will do");
        fs::write(directory.path().join(FILE), "").unwrap();
        assert!(matches!(plan.check(), Err(RunError::Taken(_))));
        let file = directory.path().join(FILE);
        for out in [file.clone(), file.join("run").join("further")] {
            plan.out = out;
            let refused = plan.check().unwrap_err().to_string();
            let told = format!("{} is there, and is no directory", file.display());
            assert_eq!(refused, told);
        }
        plan.out = directory.path().join("absent").join("further");
        assert!(plan.check().is_ok());
    }
}
