//! Arguments, and which part of the laboratory they mean.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use jepsen_like::{
    check::{self, Judged},
    checker::{self, Bounds, Conclusion},
    failover,
    history::{self, HistoryError},
    hold,
    lab::{
        self, LabError,
        cluster::{Cluster, Fault, NAME, vip4, vip6},
    },
    names::{self, NamesError},
    nemesis::Kind,
    run::{self, Finished, LONGEST, LONGEST_RECOVERY, Plan, RunError},
    selftest,
    workload::Workload,
};
use pontoon::defect::Defect;
use serde::Serialize;

/// The fault laboratory of Pontoon: network namespaces, real nodes, real links to cut.
#[derive(Debug, Parser)]
#[command(version, after_help = HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Network namespaces on a bridge with real nodes in them.
    #[command(subcommand)]
    Lab(LabCommand),
    /// Loses the leader again and again, and prints how long a client was without an answer.
    Failover {
        /// How often.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        runs: u32,
        /// How the leader is lost.
        #[arg(long, value_enum, default_value_t = Fault::Kill)]
        fault: Fault,
        /// Nodes in the cluster.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=9))]
        nodes: u8,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Judges histories: a run's own history.jsonl, or recorded histories of a register.
    #[command(after_help = CHECK_HELP)]
    Check {
        /// History files, compressed with gzip or not, or directories of runs; `-` is standard input.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Seconds after which the search for an order of one register's operations ends as undecided.
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        time_limit: u64,
        /// Most configurations that the search holds at once, each about 100 bytes of memory; beyond, a history is undecided.
        #[arg(long, value_name = "COUNT", default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
        configurations: u64,
        /// Faults that were skipped in the run are no failure of the run.
        #[arg(long)]
        allow_skip: bool,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Runs clients and faults against a cluster, and judges what happened.
    #[command(after_help = RUN_HELP)]
    Run(RunArguments),
    /// Runs once more what the head of a history says: the same nodes, workloads, faults and seed.
    #[command(after_help = REPLAY_HELP)]
    Replay {
        /// A history.jsonl, or the directory of a run.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// A new directory for the history and the report.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Faults that cannot be injected here are left out, and are no failure.
        #[arg(long)]
        allow_skip: bool,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Shows that the checkers can fail: nodes with one deliberate defect at a time, each of which has to be caught.
    #[command(after_help = SELF_TEST_HELP)]
    SelfTest {
        /// `all`, or defects with commas between them.
        #[arg(long, value_name = "NAMES", default_value = "all", value_parser = defects)]
        defect: BTreeSet<Defect>,
        /// A pontoon built with the feature `defects`; default: built below the workspace's target directory.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        /// A new directory for the histories, the reports and the nodes' logs; default: runs/self-test-TIME.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Names the workloads, the faults, the checkers and the defects.
    List {
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Removes what labs left whose process was killed: namespaces, disks, directories.
    Clean,
    /// Holds VIPs on a device without a cluster, until killed.
    #[command(hide = true)]
    Hold {
        #[arg(long)]
        device: String,
        #[arg(long = "address", required = true)]
        addresses: Vec<IpAddr>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Nodes in the cluster: 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = nodes)]
    nodes: u8,
    /// `all`, or workloads with commas between them.
    #[arg(long, value_name = "NAMES", default_value = "all", value_parser = workloads)]
    workload: BTreeSet<Workload>,
    /// `all`, `none`, or faults with commas between them.
    #[arg(long, value_name = "NAMES", default_value = "all", value_parser = faults)]
    nemesis: BTreeSet<Kind>,
    /// How long faults are injected, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=LONGEST.as_secs()))]
    time: u64,
    /// Decides which faults come when; drawn and printed when absent.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Longest time from the last heal until writes and every service at every node and VIP are back, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=LONGEST_RECOVERY.as_secs()))]
    recovery_bound: u64,
    /// A new directory for the history, the report and the nodes' logs; default: runs/SEED-TIME.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Faults that cannot be injected here are left out, and are no failure.
    #[arg(long)]
    allow_skip: bool,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn nodes(text: &str) -> Result<u8, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("a run has 3 or 5 nodes".to_owned()),
    }
}

fn workloads(text: &str) -> Result<BTreeSet<Workload>, String> {
    let named = names::parse("workload", text, Workload::ALL, Workload::name);
    some(named, "a run needs a workload")
}

fn faults(text: &str) -> Result<BTreeSet<Kind>, NamesError> {
    names::parse("fault", text, Kind::ALL, Kind::name)
}

fn defects(text: &str) -> Result<BTreeSet<Defect>, String> {
    let named = names::parse("defect", text, Defect::ALL, Defect::name);
    some(named, "without a defect there is nothing to test")
}

fn some<T>(named: Result<BTreeSet<T>, NamesError>, without: &str) -> Result<BTreeSet<T>, String> {
    match named {
        Ok(named) if named.is_empty() => Err(without.to_owned()),
        Ok(named) => Ok(named),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Starts a cluster and keeps it until Ctrl-C.
    Up {
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// Keep data and logs afterwards.
        #[arg(long)]
        keep: bool,
    },
}

const HELP: &str = "\
Examples:
  jepsen-like run --time 300 --seed 7
      every workload and every fault on three nodes, then every checker
  jepsen-like list
      what workloads, faults, checkers and defects there are; one JSON document with -o json
  jepsen-like check runs/7-1763800000
      judges the history of a run once more
  jepsen-like lab up
      three nodes to try things on

Everything but list and check needs root. Nothing outside the laboratory's own network namespaces is touched.";

const RUN_HELP: &str = "\
Examples:
  jepsen-like run --time 300 --seed 7
      every workload and every fault on three nodes
  jepsen-like run --nodes 5 --workload register,vip --nemesis kill,pause,partition-leader -o json
      what is named, and one JSON document at the end
  jepsen-like run --nemesis none --time 30
      clients alone: what a quiet cluster does

Exit code:
  0  every checker holds
  1  at least one violation (a cluster that does not come back from a fault in its time is one), or the run could not be begun
  2  the arguments are wrong
  3  no violation, but the laboratory itself failed before the run's end
  4  no violation, but something is undecided

Whatever ends a run early, what happened until then is judged, and report.html is written.

A fault that finds nothing to be done to (the process is down, nobody leads, a move is refused) is missed: it counts for nothing,
and is listed with its reason. A run in which every fault was missed fails; one in which a kind was tried three times or more and
never done is undecided.";

const REPLAY_HELP: &str = "\
Examples:
  jepsen-like replay runs/7-1763800000
      that run once more; what it finds is in a new directory
  jepsen-like replay history.jsonl --out again -o json
      the same from a history alone

The faults, their times and lengths come again, and the nodes that they name; what clients draw does not, nor who leads when a
fault is aimed at the leader or the holder. The history of a
self-test is refused: its faults and its defect are not drawn from a seed (`jepsen-like self-test --defect NAME` does them again).

Exit code: as of run.";

const SELF_TEST_HELP: &str = "\
Examples:
  jepsen-like self-test
      every defect; a line each with the checker that caught it
  jepsen-like self-test --defect bare-transfer,apply-twice -o json
      one line a defect: {\"defect\":\"bare-transfer\",\"caught\":true,\"caught_by\":\"one responder\",...}

Each scenario is run without a defect too, where every checker has to hold.

Exit code:
  0  every defect was caught
  1  at least one was not, or the test could not be made
  2  the arguments are wrong";

const CHECK_HELP: &str = "\
Examples:
  jepsen-like check history.jsonl
      every checker on a run; what is violated, with the operations
  jepsen-like check -o json ../shared/checker-cases/registers.jsonl.gz
      one line a history: {\"id\":7,\"verdict\":\"linearizable\"}
  zcat cases.jsonl.gz | jepsen-like check --time-limit 10 -

Exit code:
  0  every history is linearizable (a run: every checker holds)
  1  at least one violation
  2  no violation, but a file or line could not be read (or the arguments)
  4  no violation, but a history is undecided: within the limits, or because it was cut off";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match execute_command(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("jepsen-like: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute_command(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match command {
        Command::Check {
            files,
            time_limit,
            configurations,
            allow_skip,
            output,
        } => {
            let options = check::Options {
                time_limit: Duration::from_secs(time_limit),
                configurations: usize::try_from(configurations)?,
                bounds: Bounds {
                    allow_skip,
                    ..Bounds::default()
                },
            };
            return Ok(check_files(&files, &options, output)?);
        }
        Command::Lab(LabCommand::Up { nodes, keep }) => lab_up(nodes, keep)?,
        Command::Failover {
            runs,
            fault,
            nodes,
            output,
        } => measure_failover(runs, fault, nodes, output)?,
        Command::Run(arguments) => return run_suite(arguments),
        Command::Replay {
            file,
            out,
            allow_skip,
            output,
        } => return replay(&file, out, allow_skip, output),
        Command::SelfTest {
            defect,
            program,
            out,
            output,
        } => return self_test(defect, program, out, output),
        Command::List { output } => list(output)?,
        Command::Clean => {
            for what in lab::clean()? {
                println!("removed {what}");
            }
        }
        Command::Hold { device, addresses } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(hold::hold(&device, &addresses))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Verdicts on stdout, what could not be read on stderr.
fn check_files(
    files: &[PathBuf],
    options: &check::Options,
    output: Output,
) -> io::Result<ExitCode> {
    let mut out = io::stdout().lock();
    let mut written = Ok(());
    let tally = check::check(files, options, |result| match result {
        Ok(judged) if written.is_ok() => written = print_judged(&mut out, judged, output),
        Ok(_) => {}
        Err(error) => print_unreadable(error, output),
    });
    if written.is_ok() && output == Output::Table {
        written = writeln!(
            out,
            "{} hold, {} violated, {} undecided, {} unreadable",
            tally.holding, tally.violated, tally.undecided, tally.unreadable
        );
    }
    match written.and_then(|()| out.flush()) {
        // Whoever reads it has read enough; the exit code is that of the histories all the same.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(ExitCode::from(tally.exit_code())),
    }
}

fn print_judged(out: &mut impl Write, judged: &Judged, output: Output) -> io::Result<()> {
    if output == Output::Json {
        return writeln!(out, "{}", judged.to_json());
    }
    let id = judged
        .id
        .as_str()
        .map_or_else(|| judged.id.to_string(), str::to_owned);
    writeln!(out, "{id}: {}", judged.verdict())?;
    judged
        .text
        .lines()
        .try_for_each(|line| writeln!(out, "  {line}"))
}

fn print_unreadable(error: &HistoryError, output: Output) {
    match output {
        Output::Table => eprintln!("jepsen-like: {error}"),
        Output::Json => eprintln!("{}", error.to_json()),
    }
}

fn run_suite(arguments: RunArguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let plan = Plan {
        nodes: arguments.nodes,
        workloads: arguments.workload,
        nemeses: arguments.nemesis,
        time: Duration::from_secs(arguments.time),
        seed,
        recovery_bound: Duration::from_secs(arguments.recovery_bound),
        out: arguments.out.unwrap_or_else(|| out_of(seed)),
        allow_skip: arguments.allow_skip,
        self_test: None,
    };
    execute(&plan, arguments.output)
}

fn replay(
    file: &Path,
    out: Option<PathBuf>,
    allow_skip: bool,
    output: Output,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let Some(head) = history::read_head(file)? else {
        return Err(format!("{}: not the history of a run", file.display()).into());
    };
    let out = out.unwrap_or_else(|| out_of(head.seed));
    execute(&Plan::of(&head, out, allow_skip)?, output)
}

/// A line for each defect, as soon as it is known.
fn self_test(
    defects: BTreeSet<Defect>,
    program: Option<PathBuf>,
    out: Option<PathBuf>,
    output: Output,
) -> Result<ExitCode, Box<dyn std::error::Error>> {
    selftest::require()?;
    let interrupted = interruption()?;
    let options = selftest::Options {
        defects,
        program: match program {
            Some(program) => program,
            None => lab::program::defective()?,
        },
        out: out.unwrap_or_else(|| PathBuf::from("runs").join(format!("self-test-{}", now()))),
    };
    eprintln!(
        "{} defects, histories in {}",
        options.defects.len(),
        options.out.display()
    );
    let mut missed = 0;
    selftest::test(&options, &|| interrupted.is_over(), |caught| {
        missed += usize::from(!caught.caught);
        match output {
            Output::Table => print!("{caught}"),
            Output::Json => println!("{}", caught.to_json()),
        }
    })?;
    if output == Output::Table {
        let all = options.defects.len();
        println!("{} of {all} defects caught", all - missed);
    }
    Ok(match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// A directory that no earlier run has.
fn out_of(seed: u64) -> PathBuf {
    PathBuf::from("runs").join(format!("{seed}-{}", now()))
}

/// Seconds since 1970.
fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

fn execute(plan: &Plan, output: Output) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if let Err(refused) = plan.check() {
        eprintln!("jepsen-like: {refused}");
        return Ok(ExitCode::from(match refused {
            RunError::TooShort { .. } => 2,
            _ => 1,
        }));
    }
    require_lab()?;
    let missing = run::missing(&plan.nemeses);
    if !plan.allow_skip && !missing.is_empty() {
        let reasons = missing
            .iter()
            .map(|(kind, reason)| format!("{kind}: {reason}"));
        let reasons: Vec<_> = reasons.collect();
        return Err(format!("cannot inject {} (or use --allow-skip)", reasons.join("; ")).into());
    }
    let interrupted = interruption()?;
    let faults = plan.faults();
    let kinds: BTreeSet<Kind> = faults.iter().map(|fault| fault.kind).collect();
    eprintln!(
        "seed {}, {} faults planned of {} of {} kinds, history in {}",
        plan.seed,
        faults.len(),
        kinds.len(),
        plan.nemeses.len(),
        plan.out.display()
    );
    let finished = run::run(plan, &|| interrupted.is_over())?;
    match output {
        Output::Json => println!("{}", serde_json::to_string(&finished.document(plan))?),
        Output::Table => print_finished(&finished, plan),
    }
    if let Some(breakdown) = &finished.breakdown {
        eprintln!(
            "jepsen-like: the laboratory failed before the end of the run, which says nothing of the cluster: {breakdown}; \
             the nodes' logs are in {}",
            plan.out.display()
        );
    }
    Ok(ExitCode::from(exit_code(
        checker::conclusion(&finished.verdicts),
        finished.breakdown.is_some(),
    )))
}

/// As `RUN_HELP` says.
fn exit_code(conclusion: Conclusion, is_broken: bool) -> u8 {
    match (conclusion, is_broken) {
        (Conclusion::Violated, _) => 1,
        (_, true) => 3,
        (Conclusion::NotExercised | Conclusion::Holds, false) => 0,
        (Conclusion::Undecided, false) => 4,
    }
}

fn print_finished(finished: &Finished, plan: &Plan) {
    for verdict in &finished.verdicts {
        print!("{}", check::describe(verdict));
    }
    print!("{}", finished.counts());
    println!("report: {}", finished.document(plan).report.display());
    println!(
        "seed {}: {}",
        plan.seed,
        checker::conclusion(&finished.verdicts)
    );
}

/// One of the things that a command can be told by name.
#[derive(Serialize)]
struct Named {
    name: &'static str,
    about: &'static str,
}

/// What `list` prints.
#[derive(Serialize)]
struct Listed {
    workloads: Vec<Named>,
    faults: Vec<Named>,
    checkers: Vec<Named>,
    defects: Vec<Named>,
}

impl Listed {
    fn all() -> Self {
        let named = |(name, about)| Named { name, about };
        let workloads = Workload::ALL.iter().map(|one| (one.name(), one.about()));
        let faults = Kind::ALL.iter().map(|one| (one.name(), one.about()));
        let defects = Defect::ALL.iter().map(|one| (one.name(), one.about()));
        Self {
            workloads: workloads.map(named).collect(),
            faults: faults.map(named).collect(),
            checkers: checker::ABOUT.into_iter().map(named).collect(),
            defects: defects.map(named).collect(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for (title, width, listed) in [
            ("Workloads", 18, &self.workloads),
            ("Faults", 18, &self.faults),
            ("Checkers", 18, &self.checkers),
            ("Defects (self-test)", 26, &self.defects),
        ] {
            writeln!(out, "{title}:")?;
            for Named { name, about } in listed {
                writeln!(out, "  {name:<width$}{about}")?;
            }
        }
        Ok(())
    }
}

fn list(output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let listed = Listed::all();
    let written = match output {
        Output::Table => listed.write(&mut out),
        Output::Json => writeln!(out, "{}", serde_json::to_string(&listed)?),
    };
    match written.and_then(|()| out.flush()) {
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Fails with the reason when no lab can be made here.
fn require_lab() -> Result<(), LabError> {
    lab::missing().map_or(Ok(()), |reason| Err(LabError::Missing(reason)))
}

fn lab_up(nodes: u8, keep: bool) -> Result<(), Box<dyn std::error::Error>> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    println!("{}", directions(&cluster));
    println!("ready; Ctrl-C ends it");
    interrupted.wait();
    if keep {
        println!("kept {}", cluster.keep().display());
    }
    Ok(())
}

/// How to reach what runs in the lab.
fn directions(cluster: &Cluster) -> String {
    let client = cluster.client().name();
    let mut text = format!(
        "VIPs {} and {}\n  ip netns exec {client} dig @{} {NAME}\n  ip netns exec {client} curl http://{}/\n",
        vip4(),
        vip6(),
        vip4(),
        vip4(),
    );
    for node in cluster.nodes() {
        let (name, host) = (node.name(), node.host().name());
        let (socket, log) = (node.client().socket().display(), node.log());
        let pid = node.pid().map_or(0, nix::unistd::Pid::as_raw);
        text += &format!(
            "{name}: ip netns exec {host} bash; process {pid}; API unix:{socket}; log {}\n",
            log.display()
        );
    }
    text
}

fn measure_failover(
    runs: u32,
    fault: Fault,
    nodes: u8,
    output: Output,
) -> Result<(), Box<dyn std::error::Error>> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    let mut measured = vec![];
    for run in 1..=runs {
        if interrupted.is_over() {
            return Err("interrupted".into());
        }
        let gaps = failover::once(&mut cluster, fault).map_err(|error| cluster.with_logs(error))?;
        eprintln!("run {run}: {gaps:?}");
        measured.push(gaps);
    }
    let report = failover::Report {
        fault: format!("{fault:?}").to_lowercase(),
        runs: measured,
    };
    match output {
        Output::Table => print!("{report}"),
        Output::Json => println!("{}", report.to_json()),
    }
    Ok(())
}

/// SIGINT, SIGTERM and SIGHUP, as something to wait for: the lab is to be taken down by its owner, not by the end of the process.
struct Interruption(std::sync::mpsc::Receiver<()>);

impl Interruption {
    fn wait(&self) {
        let _ = self.0.recv(); // an error is the end of the watcher: as well
    }

    fn is_over(&self) -> bool {
        self.0.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty)
    }
}

fn interruption() -> Result<Interruption, std::io::Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let (sender, receiver) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        let _ = sender.send(());
    });
    Ok(Interruption(receiver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_that_a_head_may_tell_of_can_be_asked_for_and_no_longer_one() {
        for (option, longest) in [("--time", LONGEST), ("--recovery-bound", LONGEST_RECOVERY)] {
            let taken = |seconds: u64| {
                Arguments::try_parse_from(["jepsen-like", "run", option, &seconds.to_string()])
                    .is_ok()
            };
            assert!(taken(longest.as_secs()), "{option}");
            assert!(!taken(longest.as_secs() + 1), "{option}");
        }
    }
}
