//! The command line: what can be asked for, and the help that says so.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf};

use clap::{Parser, Subcommand};
use jepsen_like::{
    lab::cluster::Fault,
    names::{self, NamesError},
    nemesis::Kind,
    output::Format,
    run::{LONGEST, LONGEST_RECOVERY},
    workload::Workload,
};
use pontoon::defect::Defect;

/// The fault laboratory of Pontoon: network namespaces, real nodes, real links to cut.
#[derive(Debug, Parser)]
#[command(version, after_help = HELP)]
pub struct Arguments {
    /// How results are written to stdout, and errors to stderr.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
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
    },
    /// Names the workloads, the faults, the checkers and the defects.
    #[command(after_help = LIST_HELP)]
    List,
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
pub struct RunArguments {
    /// Nodes in the cluster: 3 or 5.
    #[arg(long, default_value_t = 3, value_parser = nodes)]
    pub nodes: u8,
    /// `all`, or workloads with commas between them.
    #[arg(long, value_name = "NAMES", default_value = "all", value_parser = workloads)]
    pub workload: BTreeSet<Workload>,
    /// `all`, `none`, or faults with commas between them.
    #[arg(long, value_name = "NAMES", default_value = "all", value_parser = faults)]
    pub nemesis: BTreeSet<Kind>,
    /// How long faults are injected, and clients left in peace behind them (below), in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=LONGEST.as_secs()))]
    pub time: u64,
    /// Decides which faults come when; drawn and printed when absent.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Longest time from the last heal until writes and every service at every node and VIP are back, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=LONGEST_RECOVERY.as_secs()))]
    pub recovery_bound: u64,
    /// A new directory for the history, the report and the nodes' logs; default: runs/SEED-TIME.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Faults that cannot be injected here are left out, and are no failure.
    #[arg(long)]
    pub allow_skip: bool,
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
pub enum LabCommand {
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

Everything but list and check needs root. Nothing outside the laboratory's own network namespaces is touched.
With -o json an error is one object on stderr: {\"object\", \"problem\", \"hint\", \"code\"}. PONTOON_BIN names the nodes' program.

Exit code, where the command does not say more:
  0  done
  2  the arguments are wrong, or PONTOON_BIN is
  3  this machine or the laboratory cannot do it";

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
  1  at least one violation (a cluster that does not come back from a fault in its time is one)
  2  the arguments are wrong, PONTOON_BIN is, or --out is no directory or has a history already
  3  no violation, but the run could not be begun, the laboratory itself failed before its end, or a file could not be written
  4  no violation, but something is undecided

With the workload acme, the end of a --time of 300 or more is without faults: as many seconds as --recovery-bound says, and 12 more. Clients
go on, and look in peace for what was changed (the checker visibility). Where that would be more than half of the time, all of it is for faults.

Whatever ends a run early, what happened until then is judged, and report.html is written. A disk that fills up ends it, too: the verdict is
of what happened until then, and the error names the file.

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

Exit code: as of run; 2 also where the history cannot be read or run again.";

const SELF_TEST_HELP: &str = "\
Examples:
  jepsen-like self-test
      every defect; a line each with the checker that caught it
  jepsen-like self-test --defect bare-transfer,apply-twice -o json
      one line a defect: {\"defect\":\"bare-transfer\",\"caught\":true,\"caught_by\":\"one responder\",...}

Each scenario is run without a defect too, where every checker has to hold.

Exit code:
  0  every defect was caught
  1  at least one was missed
  2  the arguments are wrong, --program is no pontoon with the feature `defects`, or --out is no directory or has a history already
  3  none was missed, but the test could not be made, or not to its end (a file could not be written, it was told to end), or not for each

A defect whose scenario the laboratory failed at, or the one without a defect that goes before, is not tested (\"tested\":false), and not said to
be missed. The others are tested all the same.";

const LIST_HELP: &str = "\
Examples:
  jepsen-like list
      a line for each workload, fault, checker and defect
  jepsen-like list -o json
      one document: {\"workloads\":[{\"name\",\"about\"},...],\"faults\":[...],\"checkers\":[...],\"defects\":[...]}";

const CHECK_HELP: &str = "\
Examples:
  jepsen-like check history.jsonl
      every checker on a run; what is violated, with the operations
  jepsen-like check -o json cases.jsonl.gz
      one line a history: {\"id\":7,\"verdict\":\"linearizable\"}
  zcat cases.jsonl.gz | jepsen-like check --time-limit 10 -
      from standard input, with less time for each

Exit code:
  0  every history is linearizable (a run: every checker holds)
  1  at least one violation
  2  no violation, but a file or line could not be read (or the arguments), names what this program does not have, or tells of a fault
     that its run cannot have had
  3  no violation, but the verdicts could not be written
  4  no violation, but a history is undecided: within the limits, or because it was cut off or lacks lines";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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

    #[test]
    fn every_example_of_the_help_is_a_command_line() {
        let command = Arguments::command();
        let mut helps = vec![command.get_after_help()];
        helps.extend(command.get_subcommands().map(clap::Command::get_after_help));
        let mut examples = 0;
        for help in helps.into_iter().flatten() {
            let help = help.to_string();
            let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
            for line in lines.filter(|line| !line.starts_with(' ')) {
                let Some((_, example)) = line.split_once("jepsen-like ") else {
                    continue;
                };
                let words = ["jepsen-like"].into_iter().chain(example.split(' '));
                let parsed = Arguments::try_parse_from(words);
                assert!(parsed.is_ok(), "{line}: {parsed:?}");
                examples += 1;
            }
        }
        assert!(examples >= 14, "{examples}");
    }
}
