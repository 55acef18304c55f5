//! Arguments, and which part of the laboratory they mean.

mod arguments;

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use jepsen_like::{
    check::{self, Judged},
    checker::{self, Bounds, Conclusion},
    failover,
    failure::{Code, Failure},
    history, hold,
    lab::{
        self, LabError,
        cluster::{Cluster, Fault, NAME, vip4, vip6},
        program::{self, NamedBy},
    },
    nemesis::{Kind, schedule},
    output::{self, Format, Out},
    run::{self, Finished, Plan},
    selftest,
    workload::Workload,
};
use pontoon::defect::Defect;
use serde::Serialize;

use arguments::{Arguments, Command, LabCommand, RunArguments};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        // It would tell of a closed stderr there.
        .log_internal_errors(false)
        .init();
    let words: Vec<OsString> = std::env::args_os().collect();
    let (out, done) = match Arguments::try_parse_from(&words) {
        Ok(Arguments { output, command }) => {
            let out = Out { format: output };
            (out, execute_command(command, out))
        }
        // Help and the version are no errors.
        Err(error) if !error.use_stderr() || output::asked_for(&words) == Format::Table => {
            error.exit()
        }
        Err(error) => (
            Out {
                format: Format::Json,
            },
            Err(Failure::usage(&error)),
        ),
    };
    ExitCode::from(done.unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.code.exit_code()
    }))
}

/// Does it; the exit code.
fn execute_command(command: Command, out: Out) -> Result<u8, Failure> {
    match command {
        Command::Check {
            files,
            time_limit,
            configurations,
            allow_skip,
        } => {
            let options = check::Options {
                time_limit: Duration::from_secs(time_limit),
                configurations: usize::try_from(configurations).unwrap_or(usize::MAX),
                bounds: Bounds {
                    allow_skip,
                    ..Bounds::default()
                },
            };
            return Ok(check_files(&files, &options, out));
        }
        Command::Lab(LabCommand::Up { nodes, keep }) => lab_up(nodes, keep, out)?,
        Command::Failover { runs, fault, nodes } => measure_failover(runs, fault, nodes, out)?,
        Command::Run(arguments) => return run_suite(arguments, out),
        Command::Replay {
            file,
            out: directory,
            allow_skip,
        } => return replay(&file, directory, allow_skip, out),
        Command::SelfTest {
            defect,
            program,
            out: directory,
        } => return self_test(defect, program, directory, out),
        Command::List => {
            let listed = Listed::all();
            out.result(&listed, || listed.text())?;
        }
        Command::Clean => {
            let removed = lab::clean()?;
            let json = serde_json::json!({ "removed": removed });
            out.result(&json, || {
                let lines = removed.iter().map(|what| format!("removed {what}\n"));
                lines.collect()
            })?;
        }
        Command::Hold { device, addresses } => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::of_machine("runtime", error))?;
            runtime
                .block_on(hold::hold(&device, &addresses))
                .map_err(|error| Failure::of_machine("VIPs", error))?;
        }
    }
    Ok(0)
}

/// Judges histories: verdicts on stdout, what could not be read on stderr. Who reads no further ends nothing: the exit code is that of all.
fn check_files(files: &[PathBuf], options: &check::Options, out: Out) -> u8 {
    let mut told = Told::new(out);
    let tally = check::check(files, options, |result| match result {
        Ok(judged) => told.result(judged, || shown(judged)),
        Err(error) if out.format == Format::Json => out.failure(&error.into()),
        Err(error) => out.remark(&format!("jepsen-like: {error}")),
    });
    if out.format == Format::Table {
        told.text(&format!(
            "{} hold, {} violated, {} undecided, {} unreadable\n",
            tally.holding, tally.violated, tally.undecided, tally.unreadable
        ));
    }
    told.exit_code(tally.exit_code())
}

/// A verdict, and below it what was found.
fn shown(judged: &Judged) -> String {
    let id = judged
        .id
        .as_str()
        .map_or_else(|| judged.id.to_string(), str::to_owned);
    let lines = judged.text.lines().map(|line| format!("  {line}\n"));
    format!("{id}: {}\n", judged.verdict()) + &lines.collect::<String>()
}

/// What is written bit by bit, by a command that has other things to do than to end where that fails; and the first thing that failed.
struct Told {
    out: Out,
    failure: Option<Failure>,
}

impl Told {
    fn new(out: Out) -> Self {
        Self { out, failure: None }
    }

    fn result(&mut self, json: &impl Serialize, text: impl FnOnce() -> String) {
        let written = self.out.result(json, text);
        self.keep(written);
    }

    fn text(&mut self, text: &str) {
        let written = self.out.text(text);
        self.keep(written);
    }

    fn keep(&mut self, written: Result<(), Failure>) {
        if let Err(failure) = written {
            self.failure.get_or_insert(failure);
        }
    }

    /// What the command itself failed at: told first, and as one failure with what could not be written.
    fn also(&mut self, failure: Failure) {
        self.failure = Some(match self.failure.take() {
            Some(untold) => failure.and(&untold),
            None => failure,
        });
    }

    /// What a command ends with that found `code`: a finding stays one, whether it could be written or not.
    fn exit_code(self, code: u8) -> u8 {
        let Some(failure) = self.failure else {
            return code;
        };
        self.out.failure(&failure);
        match code {
            1 => 1,
            _ => failure.code.exit_code(),
        }
    }
}

fn run_suite(arguments: RunArguments, out: Out) -> Result<u8, Failure> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let time = Duration::from_secs(arguments.time);
    let recovery_bound = Duration::from_secs(arguments.recovery_bound);
    let (workloads, nemeses) = (arguments.workload, arguments.nemesis);
    let plan = Plan {
        nodes: arguments.nodes,
        peace: schedule::peace(&workloads, &nemeses, time, recovery_bound),
        workloads,
        nemeses,
        time,
        seed,
        recovery_bound,
        out: arguments.out.unwrap_or_else(|| out_of(seed)),
        allow_skip: arguments.allow_skip,
        self_test: None,
    };
    execute(&plan, out)
}

fn replay(
    file: &Path,
    directory: Option<PathBuf>,
    allow_skip: bool,
    out: Out,
) -> Result<u8, Failure> {
    let Some(head) = history::read_head(file)? else {
        let hint = "give the history.jsonl of a run, or its directory";
        return Err(Failure::new(
            Code::Unreadable,
            file.display(),
            "is not the history of a run",
            hint,
        ));
    };
    let directory = directory.unwrap_or_else(|| out_of(head.seed));
    execute(&Plan::of(&head, directory, allow_skip)?, out)
}

/// A line for each defect, as soon as it is known.
fn self_test(
    defects: BTreeSet<Defect>,
    program: Option<PathBuf>,
    directory: Option<PathBuf>,
    out: Out,
) -> Result<u8, Failure> {
    let directory =
        directory.unwrap_or_else(|| PathBuf::from("runs").join(format!("self-test-{}", now())));
    run::check_directory(&directory)?;
    // A program that is no use would pass for one whose defects are missed.
    let named = program.map(|named| program::with_defects(NamedBy::Option, &named));
    let named = named.transpose().map_err(LabError::from)?;
    selftest::require()?;
    let interrupted = interruption()?;
    let program = match named {
        Some(program) => program,
        None => {
            program::with_defects(NamedBy::Built, &program::defective()?).map_err(LabError::from)?
        }
    };
    let options = selftest::Options {
        defects,
        program,
        out: directory,
    };
    out.remark(&format!(
        "{} defects, histories in {}",
        options.defects.len(),
        options.out.display()
    ));
    let (mut told, mut tally) = (Told::new(out), selftest::Tally::default());
    let ended = selftest::test(&options, &|| interrupted.is_over(), |caught| {
        tally.count(caught);
        told.result(caught, || caught.to_string());
    });
    match ended {
        Ok(()) if out.format == Format::Table => told.text(&format!("{tally}\n")),
        Ok(()) => {}
        Err(unfinished) => told.also(unfinished.into()),
    }
    if let Some(failure) = tally.failure() {
        told.also(failure);
    }
    Ok(told.exit_code(u8::from(tally.missed > 0)))
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

fn execute(plan: &Plan, out: Out) -> Result<u8, Failure> {
    plan.check()?;
    require_lab()?;
    let missing = run::missing(&plan.nemeses);
    if !plan.allow_skip && !missing.is_empty() {
        let reasons = missing
            .iter()
            .map(|(kind, reason)| format!("{kind}: {reason}"));
        let reasons: Vec<_> = reasons.collect();
        return Err(Failure::new(
            Code::Unsupported,
            "faults",
            format!("cannot inject {}", reasons.join("; ")),
            "install what is missing, name other faults (--nemesis), or leave these out with --allow-skip",
        ));
    }
    let interrupted = interruption()?;
    let faults = plan.faults();
    let kinds: BTreeSet<Kind> = faults.iter().map(|fault| fault.kind).collect();
    let peace = match plan.peace.as_secs() {
        0 => String::new(),
        seconds => format!(", {seconds} s of peace behind them"),
    };
    out.remark(&format!(
        "seed {}, {} faults planned of {} of {} kinds{peace}, history in {}",
        plan.seed,
        faults.len(),
        kinds.len(),
        plan.nemeses.len(),
        plan.out.display()
    ));
    let finished = run::run(plan, &|| interrupted.is_over())?;
    let mut told = Told::new(out);
    told.result(&finished.document(plan), || summary(&finished, plan));
    let failure = finished.failure(plan);
    let has_failed = failure.is_some();
    if let Some(failure) = failure {
        told.also(failure);
    }
    let conclusion = checker::conclusion(&finished.verdicts);
    Ok(told.exit_code(exit_code(conclusion, has_failed)))
}

/// As `RUN_HELP` says.
fn exit_code(conclusion: Conclusion, has_failed: bool) -> u8 {
    match (conclusion, has_failed) {
        (Conclusion::Violated, _) => 1,
        (_, true) => 3,
        (Conclusion::NotExercised | Conclusion::Holds, false) => 0,
        (Conclusion::Undecided, false) => 4,
    }
}

fn summary(finished: &Finished, plan: &Plan) -> String {
    let mut text: String = finished.verdicts.iter().map(check::describe).collect();
    text += &finished.counts().to_string();
    let document = finished.document(plan);
    let report = document.report.map(|path| path.display().to_string());
    let report = report.unwrap_or_else(|| "could not be written".to_owned());
    text + &format!(
        "report: {report}\nseed {}: {}\n",
        plan.seed, document.verdict
    )
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

    fn text(&self) -> String {
        let mut text = String::new();
        for (title, width, listed) in [
            ("Workloads", 18, &self.workloads),
            ("Faults", 18, &self.faults),
            ("Checkers", 18, &self.checkers),
            ("Defects (self-test)", 26, &self.defects),
        ] {
            let _ = writeln!(text, "{title}:");
            for Named { name, about } in listed {
                let _ = writeln!(text, "  {name:<width$}{about}");
            }
        }
        text
    }
}

/// Fails with the reason when no lab can be made here, or its nodes' program cannot be used.
fn require_lab() -> Result<(), LabError> {
    program::named()?;
    lab::missing().map_or(Ok(()), |reason| Err(LabError::Missing(reason)))
}

/// What `lab up` says of a lab.
#[derive(Serialize)]
struct Whereabouts {
    vips: Vec<String>,
    /// The namespace of the client's host.
    client: String,
    nodes: Vec<NodeWhereabouts>,
}

#[derive(Serialize)]
struct NodeWhereabouts {
    name: String,
    namespace: String,
    /// Null: it does not run.
    pid: Option<i32>,
    api: String,
    log: PathBuf,
}

fn lab_up(nodes: u8, keep: bool, out: Out) -> Result<(), Failure> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    let whereabouts = Whereabouts::of(&cluster);
    out.result(&whereabouts, || {
        format!("{}\nready; Ctrl-C ends it\n", whereabouts.directions())
    })?;
    interrupted.wait();
    if keep {
        let kept = cluster.keep().display().to_string();
        let text = format!("kept {kept}\n");
        out.result(&serde_json::json!({ "kept": kept }), || text)?;
    }
    Ok(())
}

impl Whereabouts {
    fn of(cluster: &Cluster) -> Self {
        let nodes = cluster.nodes().iter().map(|node| NodeWhereabouts {
            name: node.name().to_owned(),
            namespace: node.host().name().to_owned(),
            pid: node.pid().map(nix::unistd::Pid::as_raw),
            api: format!("unix:{}", node.client().socket().display()),
            log: node.log(),
        });
        Self {
            vips: [vip4(), vip6()].map(|vip| vip.to_string()).into(),
            client: cluster.client().name().to_owned(),
            nodes: nodes.collect(),
        }
    }

    /// How to reach what runs in the lab.
    fn directions(&self) -> String {
        let (client, vip) = (&self.client, vip4());
        let mut text = format!(
            "VIPs {}\n  ip netns exec {client} dig @{vip} {NAME}\n  ip netns exec {client} curl http://{vip}/\n",
            self.vips.join(" and "),
        );
        for node in &self.nodes {
            let _ = writeln!(
                text,
                "{}: ip netns exec {} bash; process {}; API {}; log {}",
                node.name,
                node.namespace,
                node.pid.unwrap_or(0),
                node.api,
                node.log.display()
            );
        }
        text
    }
}

fn measure_failover(runs: u32, fault: Fault, nodes: u8, out: Out) -> Result<(), Failure> {
    require_lab()?;
    let interrupted = interruption()?;
    let mut cluster = Cluster::start(nodes)?;
    let mut measured = vec![];
    for run in 1..=runs {
        if interrupted.is_over() {
            return Err(Failure::new(
                Code::Interrupted,
                "failover",
                format!("it was told to end after {} of {runs} runs", run - 1),
                "run it again, with fewer --runs",
            ));
        }
        let gaps = failover::once(&mut cluster, fault).map_err(|error| cluster.with_logs(error))?;
        out.remark(&format!("run {run}: {gaps:?}"));
        measured.push(gaps);
    }
    let report = failover::Report {
        fault: format!("{fault:?}").to_lowercase(),
        runs: measured,
    };
    out.result(&report.to_json(), || report.to_string())
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

fn interruption() -> Result<Interruption, Failure> {
    watched_signals().map_err(|error| Failure::of_machine("signals", error))
}

fn watched_signals() -> io::Result<Interruption> {
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
    fn a_command_that_fails_and_cannot_tell_its_result_says_both_as_one() {
        let out = Out {
            format: Format::Json,
        };
        let full = || Failure::untold(&io::ErrorKind::StorageFull.into());
        let file = || Failure::new(Code::Unwritten, "file out/x", "is full", "make room");
        let mut told = Told::new(out);
        told.keep(Err(full()));
        told.keep(Err(full()));
        told.also(file());
        let one = told.failure.clone().unwrap();
        assert_eq!(one.object, "file out/x");
        assert!(
            one.problem.starts_with("is full; and standard output: "),
            "{one}"
        );
        assert_eq!(one.problem.matches("standard output").count(), 1, "{one}");
        assert_eq!(told.exit_code(0), 3);
        let mut alone = Told::new(out);
        alone.also(file());
        assert_eq!(alone.failure, Some(file()));
        assert_eq!(alone.exit_code(1), 1);
    }
}
