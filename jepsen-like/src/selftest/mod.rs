//! `self-test`: the checkers can fail. Nodes with one deliberate defect at a time (`pontoon::defect`) are run through a scenario
//! that brings it out, and a checker has to find it.
//!
//! Each scenario is also run with the same program and no defect: there every checker has to hold. A scenario that fails anyway
//! proves nothing, and what it would have caught counts as not caught. Where the laboratory fails, a defect is not tested; the others are.

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
    /// The checker that had to find it, and did; or the one of logs, where a node ended of it.
    pub caught_by: Option<&'static str>,
    /// Where not, and it was not caught, nothing follows for it: the laboratory failed.
    pub tested: bool,
    /// Its first finding; or why the defect counts as not caught, or was not tested.
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

/// What became of all defects that were tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub caught: usize,
    pub missed: usize,
    /// Those that the laboratory failed at.
    pub untested: Vec<&'static str>,
}

impl Tally {
    pub fn count(&mut self, one: &Caught) {
        match (one.caught, one.tested) {
            (true, _) => self.caught += 1,
            (false, true) => self.missed += 1,
            (false, false) => self.untested.push(one.defect),
        }
    }

    /// What could not be tested; none: everything was.
    pub fn failure(&self) -> Option<Failure> {
        let names = self.untested.join(",");
        (!names.is_empty()).then(|| {
            Failure::new(
                Code::Laboratory,
                "laboratory",
                format!("it failed, which says nothing of these defects: {names}"),
                format!("see to what their findings say, and test them again: --defect {names}"),
            )
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.caught + self.missed + self.untested.len();
        write!(f, "{} of {all} defects caught", self.caught)?;
        match self.untested.len() {
            0 => Ok(()),
            untested => write!(f, ", {untested} not tested"),
        }
    }
}

/// What came of a scenario.
#[derive(Clone, Debug, PartialEq)]
enum Ran {
    /// It came to its end.
    Whole(Vec<Verdict>),
    /// The laboratory failed, or no sound cluster came to be: what was found until then, and why.
    Broken(Vec<Verdict>, String),
    /// The defective cluster did not come to be.
    NotBegun(String),
}

impl Ran {
    fn verdicts(&self) -> &[Verdict] {
        match self {
            Self::Whole(verdicts) | Self::Broken(verdicts, _) => verdicts,
            Self::NotBegun(_) => &[],
        }
    }
}

/// Why nothing can be tested here.
pub fn missing() -> Option<String> {
    let kinds = BTreeSet::from([Kind::PartitionLeader, Kind::SlowDisk]);
    let missing = run::missing(&kinds);
    crate::lab::missing().or_else(|| missing.into_values().next())
}

/// Tests one defect after the other and hands each result on.
///
/// # Errors
/// When `is_over` before all were tried, or a file cannot be written: what was not judged is not said to be missed.
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
    perform: &dyn Fn(Scenario, Option<Defect>) -> Result<Ran, Unfinished>,
    options: &Options,
    is_over: &dyn Fn() -> bool,
    mut each: impl FnMut(&Caught),
) -> Result<(), Unfinished> {
    let mut controls: BTreeMap<Scenario, Ran> = BTreeMap::new();
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
        if let Ran::Broken(_, why) = control {
            each(&Caught {
                history: directory(options, scenario, None).join(history::FILE),
                ..untested(*defect, why)
            });
            continue;
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
    /// A file could not be written: nothing follows for any that comes.
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
) -> Result<Ran, Unfinished> {
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
    ran(defect, finished)
}

/// What a run says of its scenario. A defective cluster may not come to be at all; a sound one does, or nothing can be tested with it.
fn ran(defect: Option<Defect>, finished: Result<Finished, RunError>) -> Result<Ran, Unfinished> {
    match finished {
        Ok(finished) => match (finished.unwritten.into_iter().next(), finished.breakdown) {
            (Some(file), _) => Err(Unfinished::Run(file.into())),
            (None, Some(breakdown)) => Ok(Ran::Broken(finished.verdicts, breakdown.to_string())),
            (None, None) => Ok(Ran::Whole(finished.verdicts)),
        },
        Err(RunError::Lab(error)) if defect.is_some() && error.is_of_cluster() => {
            Ok(Ran::NotBegun(error.to_string()))
        }
        Err(error @ (RunError::Lab(_) | RunError::History(_))) => {
            Ok(Ran::Broken(vec![], error.to_string()))
        }
        Err(error) => Err(Unfinished::Run(error)),
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

/// Finds what any defect may do: a node that panics, or ends though nobody told it to. What a scenario then cannot go on with is no failure of
/// the laboratory.
const ALWAYS: &str = "logs";

fn judge(defect: Defect, control: &Ran, defective: &Ran) -> Caught {
    let control = described(control);
    let verdicts = defective.verdicts();
    let finder = finder(expected(defect), verdicts).or_else(|| finder(&[ALWAYS], verdicts));
    let found = finder.and_then(|verdict| Some((verdict.checker, verdict.findings.first()?)));
    let is_sound = control == HOLDS;
    let finding = match (found, defective) {
        (Some(_), _) if !is_sound => "the scenario fails without the defect too".to_owned(),
        (Some((_, finding)), _) => format!("{}: {}", finding.kind, finding.text),
        (None, Ran::Whole(_)) => {
            let expected = expected(defect).join(", ");
            format!("nothing was found by: {expected}, {ALWAYS}")
        }
        (None, Ran::NotBegun(problem)) => problem.clone(),
        (None, Ran::Broken(_, why)) => format!("{LABORATORY}: {why}"),
    };
    let caught_by = found.filter(|_| is_sound).map(|(checker, _)| checker);
    Caught {
        defect: defect.name(),
        caught: caught_by.is_some(),
        caught_by,
        tested: caught_by.is_some() || !matches!(defective, Ran::Broken(..)),
        finding,
        violated: violated(verdicts),
        scenario: Scenario::of(defect).name(),
        control,
        seconds: 0.0,
        history: PathBuf::new(),
    }
}

/// A defect whose scenario failed without it, and which was therefore not tried.
fn untested(defect: Defect, why: &str) -> Caught {
    Caught {
        defect: defect.name(),
        caught: false,
        caught_by: None,
        tested: false,
        finding: "the scenario could not be run without the defect".to_owned(),
        violated: vec![],
        scenario: Scenario::of(defect).name(),
        control: format!("{LABORATORY}: {why}"),
        seconds: 0.0,
        history: PathBuf::new(),
    }
}

const HOLDS: &str = "holds";
const LABORATORY: &str = "the laboratory failed";

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
fn described(ran: &Ran) -> String {
    let verdicts = match ran {
        Ran::Whole(verdicts) if checker::conclusion(verdicts) == Conclusion::Holds => {
            return HOLDS.to_owned();
        }
        Ran::Whole(verdicts) => verdicts,
        Ran::Broken(_, why) => return format!("{LABORATORY}: {why}"),
        Ran::NotBegun(problem) => return problem.clone(),
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
        let by = match (self.caught_by, self.tested) {
            (Some(checker), _) => checker,
            (None, true) => "NOT CAUGHT",
            (None, false) => "NOT TESTED",
        };
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
    use std::cell::RefCell;

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
        let sound = Ran::Whole(vec![verdict("one responder", None), verdict("set", None)]);
        let two = Ran::Whole(vec![
            verdict("one responder", Some("n1, n2")),
            verdict("set", None),
        ]);
        let lost = Ran::Whole(vec![
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
        let not_begun = Ran::NotBegun("no leader".into());
        let failed = judge(Defect::VipWithoutLease, &sound, &not_begun);
        assert_eq!(
            (failed.caught, failed.tested, failed.finding.as_str()),
            (false, true, "no leader")
        );
    }

    #[test]
    fn a_node_that_ends_of_its_defect_gives_it_away_also_where_the_scenario_cannot_go_on() {
        let sound = Ran::Whole(vec![verdict("set", None), verdict("logs", None)]);
        let verdicts = || vec![verdict("set", None), verdict("logs", Some("n2: panicked"))];
        let no_process = || "no such process".to_owned();
        for defective in [
            Ran::Whole(verdicts()),
            Ran::Broken(verdicts(), no_process()),
        ] {
            let caught = judge(Defect::BareTransfer, &sound, &defective);
            assert_eq!(caught.caught_by, Some("logs"), "{caught:?}");
            assert!(caught.caught && caught.tested);
            let judged = judge(Defect::BareTransfer, &defective, &defective);
            assert!(!judged.caught, "without the defect too: {judged:?}");
        }
        // Nothing was found before the laboratory failed.
        let quiet = Ran::Broken(vec![verdict("logs", None)], no_process());
        let untested = judge(Defect::BareTransfer, &sound, &quiet);
        assert!(!untested.caught && !untested.tested, "{untested:?}");
        assert!(untested.finding.contains("no such process"));
        assert!(untested.to_string().contains("NOT TESTED"), "{untested}");
    }

    #[test]
    fn a_scenario_that_fails_anyway_catches_nothing() {
        let two = Ran::Whole(vec![verdict("one responder", Some("n1, n2"))]);
        let undecided = verdict("set", None).unless_undecided(Some("too much".into()));
        for control in [
            two.clone(),
            Ran::Whole(vec![verdict("logs", Some("panic"))]),
            Ran::Whole(vec![undecided]),
            Ran::Broken(vec![], "no namespaces".to_owned()),
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
            let failure = Failure::from(ran(Some(Defect::ApplyTwice), run).unwrap_err());
            assert_eq!(failure.object, "file out/history.jsonl");
            assert_eq!(failure.code.exit_code(), 3);
        }
    }

    #[test]
    fn with_a_sound_cluster_that_cannot_be_begun_nothing_is_tested() {
        let failed = || {
            Err(RunError::Lab(LabError::Waited {
                what: "a leader".into(),
                seconds: 30,
            }))
        };
        let problem = "a leader did not happen within 30 s".to_owned();
        let defective = ran(Some(Defect::ApplyTwice), failed()).unwrap();
        assert_eq!(defective, Ran::NotBegun(problem.clone()));
        assert_eq!(ran(None, failed()).unwrap(), Ran::Broken(vec![], problem));
    }

    #[test]
    fn where_the_laboratory_fails_no_defect_is_said_to_be_missed_and_the_others_are_tested() {
        let broken = || Finished {
            history: history::History::default(),
            verdicts: vec![verdict("one responder", None)],
            breakdown: Some(LabError::NoNode),
            unwritten: vec![],
        };
        let tried = RefCell::new(vec![]);
        let perform = |scenario, defect: Option<Defect>| {
            tried.borrow_mut().push((scenario, defect));
            match (scenario, defect) {
                (_, Some(Defect::ApplyTwice)) => ran(defect, Ok(broken())),
                (Scenario::Vote, None) => ran(defect, Err(RunError::Lab(LabError::NoNode))),
                (_, None) => Ok(Ran::Whole(vec![verdict("set", None)])),
                (_, Some(defect)) => {
                    let found = (defect != Defect::StaleReads).then_some("9");
                    Ok(Ran::Whole(vec![verdict(expected(defect)[0], found)]))
                }
            }
        };
        let defects = [
            Defect::VoteNotPersisted,
            Defect::ApplyTwice,
            Defect::BareTransfer,
            Defect::StaleReads,
        ];
        let tested = |defects: &[Defect]| {
            let options = Options {
                defects: defects.iter().copied().collect(),
                program: "pontoon".into(),
                out: "out".into(),
            };
            let (mut tally, mut lines) = (Tally::default(), 0);
            let ended = test_by(&perform, &options, &|| false, |caught| {
                tally.count(caught);
                lines += 1;
            });
            assert!(ended.is_ok() && lines == defects.len(), "{ended:?}");
            tally
        };
        let tally = tested(&defects);
        assert_eq!((tally.caught, tally.missed), (1, 1), "{tally:?}");
        assert_eq!(tally.to_string(), "1 of 4 defects caught, 2 not tested");
        let failure = tally.failure().unwrap();
        assert!(
            failure.hint.contains("apply-twice") && failure.hint.contains("vote-not-persisted"),
            "{failure}"
        );
        assert_eq!(
            (failure.code, failure.code.exit_code()),
            (Code::Laboratory, 3)
        );
        let with_defect = (Scenario::Vote, Some(Defect::VoteNotPersisted));
        assert!(!tried.borrow().contains(&with_defect), "in vain");
        assert_eq!(tested(&[Defect::BareTransfer]).failure(), None);
    }

    #[test]
    fn who_ends_the_test_during_a_control_waits_for_no_second_cluster() {
        let options = Options {
            defects: [Defect::ApplyTwice].into(),
            program: "pontoon".into(),
            out: "out".into(),
        };
        let runs = RefCell::new(vec![]);
        let perform = |_, defect: Option<Defect>| {
            runs.borrow_mut().push(defect);
            Ok(Ran::Whole(vec![verdict("set", None)]))
        };
        let is_over = || !runs.borrow().is_empty();
        let mut told = 0;
        let ended = test_by(&perform, &options, &is_over, |_| told += 1);
        assert!(matches!(ended, Err(Unfinished::Interrupted)), "{ended:?}");
        assert_eq!((runs.borrow().as_slice(), told), ([None].as_slice(), 0));
    }

    #[test]
    fn a_result_is_one_line_of_json() {
        let sound = Ran::Whole(vec![verdict("serials", None)]);
        let caught = judge(Defect::SerialRestarts, &sound, &sound);
        let json = serde_json::to_string(&caught).unwrap();
        let begins = "{\"defect\":\"serial-restarts\",\"caught\":false,\"caught_by\":null,";
        assert!(json.starts_with(begins) && !json.contains('\n'), "{json}");
    }
}
