//! `self-test`: the checkers can fail. Nodes with one deliberate defect at a time (`pontoon::defect`) are run through a scenario
//! that brings it out, and a checker has to find it.
//!
//! Each scenario is also run with the same program and no defect: there every checker has to hold. A scenario that fails anyway
//! proves nothing, and what it would have caught counts as not caught.

pub mod scenario;
mod stage;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use pontoon::defect::{Defect, NONE, VARIABLE};
use serde::Serialize;

use crate::{
    checker::{self, Conclusion, Verdict},
    failure::{Code, Failure},
    history::{self, SelfTest},
    lab::LabError,
    nemesis::Kind,
    run::{self, Finished, Plan, RunError},
};
use scenario::Scenario;

/// What is to be tested.
#[derive(Clone, Debug)]
pub struct Options {
    pub defects: BTreeSet<Defect>,
    /// A `pontoon` with the feature `defects` that has shown that it is one (`lab::program::with_defects`).
    pub program: PathBuf,
    /// New; a directory for each run.
    pub out: PathBuf,
}

/// What became of one defect; in JSON one line, the defect and what became of it first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caught {
    pub defect: &'static str,
    pub caught: bool,
    /// The checker that had to find it, and did.
    pub caught_by: Option<&'static str>,
    /// Its first finding; or why the defect counts as not caught.
    pub finding: String,
    /// Every checker that found something.
    pub violated: Vec<&'static str>,
    pub scenario: &'static str,
    /// What came of the scenario without the defect: `holds`, or what was wrong.
    pub control: String,
    /// Of the run with the defect.
    pub seconds: f64,
    pub history: PathBuf,
}

/// One run: its verdicts, or why there are none.
type Judged = Result<Vec<Verdict>, String>;

/// Why nothing can be tested here.
pub fn missing() -> Option<String> {
    let kinds = BTreeSet::from([Kind::PartitionLeader, Kind::SlowDisk]);
    let missing = run::missing(&kinds);
    crate::lab::missing().or_else(|| missing.into_values().next())
}

/// Tests one defect after the other and hands each result on.
///
/// # Errors
/// When `is_over` before all were tested, a file cannot be written, the laboratory fails, or a scenario cannot be begun without a defect either:
/// what was not judged is not said to be missed.
pub fn test(
    options: &Options,
    is_over: &dyn Fn() -> bool,
    each: impl FnMut(&Caught),
) -> Result<(), Unfinished> {
    let perform = |scenario, defect| perform(options, scenario, defect, is_over);
    test_by(&perform, options, is_over, each)
}

/// As `test`, each run by `perform`: a scenario, with a defect or without one.
fn test_by(
    perform: &dyn Fn(Scenario, Option<Defect>) -> Result<Judged, Unfinished>,
    options: &Options,
    is_over: &dyn Fn() -> bool,
    mut each: impl FnMut(&Caught),
) -> Result<(), Unfinished> {
    let mut controls: BTreeMap<Scenario, Judged> = BTreeMap::new();
    for defect in &options.defects {
        let scenario = Scenario::of(*defect);
        let control = match controls.entry(scenario) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                tracing::info!(%scenario, "without a defect");
                unknown.insert(perform(scenario, None)?)
            }
        };
        // Before another cluster is built.
        if is_over() {
            return Err(Unfinished::Interrupted);
        }
        tracing::info!(%scenario, defect = defect.name(), "with a defect");
        let began = Instant::now();
        let defective = perform(scenario, Some(*defect))?;
        if is_over() {
            return Err(Unfinished::Interrupted);
        }
        let mut caught = judge(*defect, control, &defective);
        caught.seconds = began.elapsed().as_secs_f64();
        caught.history = directory(options, scenario, Some(*defect)).join(history::FILE);
        each(&caught);
    }
    Ok(())
}

/// The test was ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    #[error("interrupted")]
    Interrupted,
    /// The laboratory failed, a file could not be written, or a scenario could not be begun without a defect: nothing follows for any.
    #[error(transparent)]
    Run(RunError),
}

impl From<Unfinished> for Failure {
    fn from(unfinished: Unfinished) -> Self {
        match unfinished {
            Unfinished::Interrupted => Self::new(
                Code::Interrupted,
                "self-test",
                "it was told to end; what was not tested is not judged",
                "run it again, with --defect for what is left",
            ),
            Unfinished::Run(error) => error.into(),
        }
    }
}

fn directory(options: &Options, scenario: Scenario, defect: Option<Defect>) -> PathBuf {
    let name = match defect {
        Some(defect) => defect.name().to_owned(),
        None => format!("control-{scenario}"),
    };
    options.out.join(name)
}

fn perform(
    options: &Options,
    scenario: Scenario,
    defect: Option<Defect>,
    is_over: &dyn Fn() -> bool,
) -> Result<Judged, Unfinished> {
    let plan = Plan {
        nodes: scenario.nodes(),
        workloads: scenario.workloads(),
        nemeses: BTreeSet::new(),
        time: Duration::ZERO,
        peace: Duration::ZERO,
        seed: 0,
        recovery_bound: recovery_bound(defect),
        out: directory(options, scenario, defect),
        allow_skip: false,
        self_test: Some(SelfTest {
            scenario: scenario.name().to_owned(),
            defect: defect.map(|defect| defect.name().to_owned()),
        }),
    };
    let mut cluster = scenario.cluster();
    cluster.program = Some(options.program.clone());
    let name = defect.map_or(NONE, Defect::name);
    cluster.environment = vec![(VARIABLE.to_owned(), name.to_owned())];
    let course = scenario.course();
    let finished = run::run_course(&plan, &cluster, BTreeMap::new(), &course, is_over);
    judged(defect, finished)
}

/// What a run says of its scenario. A defective cluster may not come to be at all; a sound one does, or nothing can be tested with it. Where the
/// laboratory failed, neither says anything.
fn judged(
    defect: Option<Defect>,
    finished: Result<Finished, RunError>,
) -> Result<Judged, Unfinished> {
    match (defect, finished) {
        (_, Ok(finished)) => match finished.unwritten.into_iter().next() {
            Some(file) => Err(Unfinished::Run(file.into())),
            None => match finished.breakdown {
                Some(breakdown) => Err(Unfinished::Run(breakdown.into())),
                None => Ok(Ok(finished.verdicts)),
            },
        },
        (Some(_), Err(RunError::Lab(error))) if error.is_of_cluster() => Ok(Err(error.to_string())),
        (_, Err(error)) => Err(Unfinished::Run(error)),
    }
}

/// A defective cluster need not recover: it is waited for where that is what finds the defect.
fn recovery_bound(defect: Option<Defect>) -> Duration {
    match defect {
        Some(defect) if !expected(defect).contains(&"recovery") => scenario::RECOVERY / 2,
        _ => scenario::RECOVERY,
    }
}

/// The checkers that have to find a defect; one of them is enough.
fn expected(defect: Defect) -> &'static [&'static str] {
    match defect {
        Defect::AcknowledgeBeforeCommit => &["set", "linearizability"],
        // A vote that is given twice in a term may make two leaders of it.
        Defect::VoteNotPersisted => &["set", "linearizability", "leaders"],
        // A node alone whose log has a hole in it does not start again, and says so.
        Defect::BarrierWithoutFsync => &["set", "recovery"],
        Defect::StaleReads | Defect::ApplyTwice => &["linearizability"],
        Defect::VipWithoutLease
        | Defect::FenceNeverExpires
        | Defect::VoteAfterRestart
        | Defect::BareTransfer => &["one responder"],
        Defect::SerialRestarts => &["serials"],
        Defect::SnapshotMissesMap => &["state hashes"],
    }
}

fn judge(defect: Defect, control: &Judged, defective: &Judged) -> Caught {
    let control = described(control);
    let (finder, violated) = match defective {
        Ok(verdicts) => (finder(expected(defect), verdicts), violated(verdicts)),
        Err(_) => (None, vec![]),
    };
    let found = finder.and_then(|verdict| Some((verdict.checker, verdict.findings.first()?)));
    let is_sound = control == HOLDS;
    let finding = match (found, defective) {
        (Some(_), _) if !is_sound => "the scenario fails without the defect too".to_owned(),
        (Some((_, finding)), _) => format!("{}: {}", finding.kind, finding.text),
        (None, Ok(_)) => format!("nothing was found by: {}", expected(defect).join(", ")),
        (None, Err(problem)) => problem.clone(),
    };
    let caught_by = found.filter(|_| is_sound).map(|(checker, _)| checker);
    Caught {
        defect: defect.name(),
        caught: caught_by.is_some(),
        caught_by,
        finding,
        violated,
        scenario: Scenario::of(defect).name(),
        control,
        seconds: 0.0,
        history: PathBuf::new(),
    }
}

const HOLDS: &str = "holds";

/// The first of the expected checkers that found something.
fn finder<'a>(expected: &[&str], verdicts: &'a [Verdict]) -> Option<&'a Verdict> {
    expected.iter().find_map(|name| {
        let mut verdicts = verdicts.iter();
        verdicts
            .find(|verdict| verdict.checker == *name && verdict.conclusion == Conclusion::Violated)
    })
}

fn violated(verdicts: &[Verdict]) -> Vec<&'static str> {
    let violated = verdicts
        .iter()
        .filter(|verdict| verdict.conclusion == Conclusion::Violated);
    violated.map(|verdict| verdict.checker).collect()
}

/// `holds`, or what is wrong with a run.
fn described(judged: &Judged) -> String {
    let verdicts = match judged {
        Ok(verdicts) if checker::conclusion(verdicts) == Conclusion::Holds => {
            return HOLDS.to_owned();
        }
        Ok(verdicts) => verdicts,
        Err(problem) => return problem.clone(),
    };
    let wrong = verdicts
        .iter()
        .filter(|verdict| verdict.conclusion > Conclusion::Holds);
    let texts = wrong.map(|verdict| match verdict.findings.first() {
        Some(finding) => format!("{}: {}: {}", verdict.checker, finding.kind, finding.text),
        None => format!("{}: undecided: {}", verdict.checker, verdict.summary),
    });
    texts.collect::<Vec<_>>().join("; ")
}

impl fmt::Display for Caught {
    /// A line of the table, then why it is so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = self.caught_by.unwrap_or("NOT CAUGHT");
        writeln!(
            f,
            "{:<26} {by:<16} {:>5.1} s  {}",
            self.defect, self.seconds, self.scenario
        )?;
        if self.control != HOLDS {
            writeln!(f, "    control: {}", self.control)?;
        }
        writeln!(f, "    {}", self.finding)
    }
}

/// Where and why nothing can be tested, for the command line.
///
/// # Errors
/// The reason.
pub fn require() -> Result<(), LabError> {
    missing().map_or(Ok(()), |reason| Err(LabError::Missing(reason)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        checker::{ABOUT, Finding},
        run::Unwritten,
    };

    fn verdict(checker: &'static str, found: Option<&str>) -> Verdict {
        let findings = found.map(|text| Finding::new("two responders", text.to_owned()));
        Verdict::of(checker, String::new(), findings.into_iter().collect())
    }

    #[test]
    fn every_defect_has_a_checker_that_exists() {
        for defect in Defect::ALL {
            assert!(!expected(*defect).is_empty());
            for checker in expected(*defect) {
                assert!(ABOUT.iter().any(|(name, _)| name == checker), "{checker}");
            }
        }
    }

    #[test]
    fn a_defect_is_caught_by_the_checker_that_has_to_find_it_and_by_no_other() {
        let sound = Ok(vec![verdict("one responder", None), verdict("set", None)]);
        let two = Ok(vec![
            verdict("one responder", Some("n1, n2")),
            verdict("set", None),
        ]);
        let lost = Ok(vec![
            verdict("one responder", None),
            verdict("set", Some("9")),
        ]);
        let caught = judge(Defect::VipWithoutLease, &sound, &two);
        assert_eq!(caught.caught_by, Some("one responder"));
        assert_eq!(caught.finding, "two responders: n1, n2");
        assert_eq!(caught.control, "holds");

        let other = judge(Defect::VipWithoutLease, &sound, &lost);
        assert!(!other.caught && other.violated == ["set"], "{other:?}");
        let nothing = judge(Defect::VipWithoutLease, &sound, &sound);
        assert!(!nothing.caught && nothing.violated.is_empty());
        let failed = judge(Defect::VipWithoutLease, &sound, &Err("no leader".into()));
        assert_eq!(
            (failed.caught, failed.finding.as_str()),
            (false, "no leader")
        );
    }

    #[test]
    fn a_scenario_that_fails_anyway_catches_nothing() {
        let two = Ok(vec![verdict("one responder", Some("n1, n2"))]);
        let undecided = verdict("set", None).unless_undecided(Some("too much".into()));
        for control in [
            two.clone(),
            Ok(vec![verdict("logs", Some("panic"))]),
            Ok(vec![undecided]),
            Err("no namespaces".to_owned()),
        ] {
            let caught = judge(Defect::FenceNeverExpires, &control, &two);
            assert!(!caught.caught && caught.caught_by.is_none(), "{caught:?}");
            assert_ne!(caught.control, "holds");
        }
    }

    #[test]
    fn a_run_whose_files_could_not_be_written_is_no_defect_that_was_missed() {
        let unwritten = || Unwritten {
            path: "out/history.jsonl".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        };
        let finished = Finished {
            history: history::History::default(),
            verdicts: vec![],
            breakdown: None,
            unwritten: vec![unwritten()],
        };
        for run in [Ok(finished), Err(RunError::File(unwritten()))] {
            let failure = Failure::from(judged(Some(Defect::ApplyTwice), run).unwrap_err());
            assert_eq!(failure.object, "file out/history.jsonl");
            assert_eq!(failure.code.exit_code(), 3);
        }
    }

    #[test]
    fn a_sound_cluster_that_cannot_be_begun_ends_the_test() {
        let failed = || {
            Err(RunError::Lab(LabError::Waited {
                what: "a leader".into(),
                seconds: 30,
            }))
        };
        let defective = judged(Some(Defect::ApplyTwice), failed()).unwrap();
        let problem = "a leader did not happen within 30 s";
        assert_eq!(defective, Err(problem.to_owned()));
        let failure = Failure::from(judged(None, failed()).unwrap_err());
        assert!(failure.problem.contains(problem), "{failure}");
        assert_eq!(failure.code.exit_code(), 3);
    }

    #[test]
    fn where_the_laboratory_fails_no_defect_is_said_to_be_missed() {
        let broken = || Finished {
            history: history::History::default(),
            verdicts: vec![verdict("one responder", Some("n1, n2"))],
            breakdown: Some(LabError::NoNode),
            unwritten: vec![],
        };
        for defect in [None, Some(Defect::VipWithoutLease)] {
            for run in [Ok(broken()), Err(RunError::Lab(LabError::NoNode))] {
                let failure = Failure::from(judged(defect, run).unwrap_err());
                assert!(failure.problem.contains("a cluster needs a node"));
                assert_eq!(
                    (failure.code, failure.code.exit_code()),
                    (Code::Laboratory, 3)
                );
            }
        }
    }

    #[test]
    fn who_ends_the_test_during_a_control_waits_for_no_second_cluster() {
        let options = Options {
            defects: [Defect::ApplyTwice].into(),
            program: "pontoon".into(),
            out: "out".into(),
        };
        let runs = std::cell::RefCell::new(vec![]);
        let perform = |_, defect: Option<Defect>| {
            runs.borrow_mut().push(defect);
            Ok(Ok(vec![verdict("set", None)]))
        };
        let is_over = || !runs.borrow().is_empty();
        let mut told = 0;
        let ended = test_by(&perform, &options, &is_over, |_| told += 1);
        assert!(matches!(ended, Err(Unfinished::Interrupted)), "{ended:?}");
        assert_eq!((runs.borrow().as_slice(), told), ([None].as_slice(), 0));
    }

    #[test]
    fn a_result_is_one_line_of_json() {
        let sound = Ok(vec![verdict("serials", None)]);
        let caught = judge(Defect::SerialRestarts, &sound, &sound);
        let json = serde_json::to_string(&caught).unwrap();
        let begins = "{\"defect\":\"serial-restarts\",\"caught\":false,\"caught_by\":null,";
        assert!(json.starts_with(begins) && !json.contains('\n'), "{json}");
    }
}
