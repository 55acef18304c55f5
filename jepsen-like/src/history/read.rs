//! Reads history files, of either form, compressed or not, with a byte order mark or without; what a file is, is told by its first bytes
//! and not by its name.

use std::{
    collections::{BTreeMap, btree_map},
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;

use super::{
    Entry, History, Moment, Operation, Outcome, Run, plausible,
    registers::{self, RegisterHistory},
};
use crate::{nemesis::Kind, workload::Workload};

/// The history in the directory of a run.
pub const FILE: &str = "history.jsonl";
/// What some editors and programs put in front of a text in UTF-8; it is no part of it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Longest line that is read, in bytes.
const LONGEST_LINE: u64 = 256 << 20;
/// Without it neither the nodes nor the bounds are known.
const NO_HEAD: &str =
    "it has no line \"entry\": \"run\", which says what was run: give the whole file";

/// Why a file cannot be read as a history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("{}: cannot be read: {source}", shown(file))]
    Io { file: PathBuf, source: io::Error },
    #[error("{}: holds no history: it is empty", shown(file))]
    Empty { file: PathBuf },
    #[error("{}: {}", shown(file), NO_HEAD)]
    Headless { file: PathBuf },
    #[error("{}:{line}: {problem}", shown(file))]
    Line {
        file: PathBuf,
        line: u64,
        problem: String,
    },
}

/// How messages call a file.
fn shown(file: &Path) -> String {
    match file.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => file.display().to_string(),
    }
}

impl HistoryError {
    /// What could not be read: the file, and the line of it where it is one.
    pub fn object(&self) -> String {
        match self {
            Self::Io { file, .. } | Self::Empty { file } | Self::Headless { file } => shown(file),
            Self::Line { file, line, .. } => format!("{}:{line}", shown(file)),
        }
    }

    /// What is wrong with it.
    pub fn problem(&self) -> String {
        match self {
            Self::Io { source, .. } => format!("cannot be read: {source}"),
            Self::Empty { .. } => "holds no history: it is empty".to_owned(),
            Self::Headless { .. } => NO_HEAD.to_owned(),
            Self::Line { problem, .. } => problem.clone(),
        }
    }
}

/// What a file holds.
#[derive(Debug)]
pub enum Histories {
    /// The `history.jsonl` of a run.
    Run(Box<History>),
    /// Histories of one register, one a line; a line that is none leaves the others readable.
    Registers(Vec<Result<RegisterHistory, HistoryError>>),
}

/// Reads a file, or the history in the directory of a run; `-` is standard input.
pub fn read(path: &Path) -> Result<Histories, HistoryError> {
    let path = file_of(path);
    read_from(open(&path)?, &path)
}

/// Reads what `input` gives; `path` is its name in errors.
pub fn read_from(input: impl Read, path: &Path) -> Result<Histories, HistoryError> {
    Lines::new(unpacked(input, path)?, path).histories()
}

/// Reads the head of a run's history, named as for [`read`], and nothing behind it. None: it is no run's.
pub fn read_head(path: &Path) -> Result<Option<Run>, HistoryError> {
    let path = file_of(path);
    head_from(open(&path)?, &path)
}

/// As `read_head`, of what `input` gives.
pub(super) fn head_from(input: impl Read, path: &Path) -> Result<Option<Run>, HistoryError> {
    let mut lines = Lines::new(unpacked(input, path)?, path);
    let Some(first) = lines.next()? else {
        return Err(lines.empty());
    };
    if !is_entry(&first) {
        return Ok(None);
    }
    let mut assembly = Assembly::default();
    let entry = lines.entry(&first)?;
    (assembly.add(entry, lines.number)).map_err(|problem| lines.error(problem))?;
    Ok(assembly.has_run.then_some(assembly.history.run))
}

fn file_of(path: &Path) -> PathBuf {
    match path.is_dir() {
        true => path.join(FILE),
        false => path.to_owned(),
    }
}

fn open(path: &Path) -> Result<Box<dyn Read>, HistoryError> {
    Ok(match path.to_str() {
        Some("-") => Box::new(io::stdin()),
        _ => Box::new(File::open(path).map_err(|source| HistoryError::Io {
            file: path.to_owned(),
            source,
        })?),
    })
}

/// What is in a file, compressed or not.
fn unpacked<'a>(input: impl Read + 'a, path: &Path) -> Result<Box<dyn BufRead + 'a>, HistoryError> {
    let mut input = BufReader::new(input);
    let begins = input.fill_buf().map_err(|source| HistoryError::Io {
        file: path.to_owned(),
        source,
    })?;
    Ok(match begins.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(BufReader::new(MultiGzDecoder::new(input))),
        false => Box::new(input),
    })
}

/// The lines of a file that are not blank.
struct Lines<'a, R> {
    input: R,
    path: &'a Path,
    number: u64,
    /// The last line did not end in a line feed.
    is_torn: bool,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(input: R, path: &'a Path) -> Self {
        Self {
            input,
            path,
            number: 0,
            is_torn: false,
        }
    }

    /// The next line. After an error of a line the one behind it comes next; after [`HistoryError::Io`] nothing does.
    fn next(&mut self) -> Result<Option<Vec<u8>>, HistoryError> {
        loop {
            self.number += 1;
            let failed = |source| HistoryError::Io {
                file: self.path.to_owned(),
                source,
            };
            let mut line = vec![];
            let length = (&mut self.input)
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)
                .map_err(failed)?;
            if length == 0 {
                return Ok(None);
            }
            self.is_torn = line.last() != Some(&b'\n');
            if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
                line.drain(..BYTE_ORDER_MARK.len());
            }
            if length as u64 == LONGEST_LINE && self.is_torn {
                self.input.skip_until(b'\n').map_err(failed)?;
                return Err(self.error("a line of more than 256 MiB"));
            }
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn text<'b>(&self, line: &'b [u8]) -> Result<&'b str, HistoryError> {
        std::str::from_utf8(line).map_err(|_| self.error("not UTF-8"))
    }

    fn entry(&self, line: &[u8]) -> Result<Entry, HistoryError> {
        let entry = serde_json::from_str(self.text(line)?);
        entry.map_err(|error| self.error(format!("not an entry of a history: {error}")))
    }

    fn register(&self, line: &[u8]) -> Result<RegisterHistory, HistoryError> {
        registers::parse(self.text(line)?).map_err(|problem| self.error(problem))
    }

    fn empty(&self) -> HistoryError {
        HistoryError::Empty {
            file: self.path.to_owned(),
        }
    }

    fn error(&self, problem: impl ToString) -> HistoryError {
        HistoryError::Line {
            file: self.path.to_owned(),
            line: self.number,
            problem: problem.to_string(),
        }
    }

    fn histories(mut self) -> Result<Histories, HistoryError> {
        let mut line = match self.next() {
            Ok(None) => return Err(self.empty()),
            Ok(Some(first)) if is_entry(&first) => {
                return self.run(first).map(|run| Histories::Run(Box::new(run)));
            }
            Err(error @ HistoryError::Io { .. }) => return Err(error),
            other => other,
        };
        let mut read = vec![];
        loop {
            match line {
                Ok(None) => return Ok(Histories::Registers(read)),
                Ok(Some(text)) => read.push(self.register(&text)),
                // What was read before it is judged all the same.
                Err(error @ HistoryError::Io { .. }) => {
                    read.push(Err(error));
                    return Ok(Histories::Registers(read));
                }
                Err(error) => read.push(Err(error)),
            }
            line = self.next();
        }
    }

    fn run(mut self, first: Vec<u8>) -> Result<History, HistoryError> {
        let mut assembly = Assembly::default();
        let mut line = Some(first);
        while let Some(text) = line {
            match self.entry(&text) {
                Ok(entry) => {
                    (assembly.add(entry, self.number)).map_err(|problem| self.error(problem))?
                }
                // The run was killed in the middle of a write; the entry it would have been was not complete either.
                Err(_) if self.is_torn => break,
                Err(error) => return Err(error),
            }
            line = self.next()?;
        }
        match assembly.has_run {
            true => assembly.finish().map_err(|(line, problem)| {
                self.number = line;
                self.error(problem)
            }),
            false => Err(HistoryError::Headless {
                file: self.path.to_owned(),
            }),
        }
    }
}

/// Whether this first line says that the file is the history of a run.
fn is_entry(line: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(line)
        .is_ok_and(|value| value.get("entry").is_some())
}

/// What a head names and this program does not have. A checker that went by such a head would take what it does not know for done.
fn unknown_names(run: &Run) -> Option<String> {
    let listed = |what: &str, names: Vec<&str>| {
        let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        (!quoted.is_empty()).then(|| format!("no {what} is named {}", quoted.join(", ")))
    };
    let is_workload = |name: &&str| name.parse::<Workload>().is_ok();
    let is_fault = |name: &&str| name.parse::<Kind>().is_ok();
    let (workloads, faults) = (
        run.workloads.iter().map(String::as_str),
        run.nemeses.iter().map(String::as_str),
    );
    let unknown: Vec<_> = [
        listed(
            "workload",
            workloads.filter(|name| !is_workload(name)).collect(),
        ),
        listed("fault", faults.filter(|name| !is_fault(name)).collect()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let hint = "`jepsen-like list` names those of this program";
    (!unknown.is_empty()).then(|| format!("the head of the run: {}; {hint}", unknown.join("; ")))
}

/// A history in the making.
#[derive(Default)]
struct Assembly {
    history: History,
    operations: BTreeMap<u64, Operation>,
    /// The line that each operation is invoked in.
    lines: BTreeMap<u64, u64>,
    /// The line of each fault, in the order of the history's.
    fault_lines: Vec<u64>,
    /// When the run ended, by whatever says so.
    end: Option<Moment>,
    has_run: bool,
    was_interrupted: bool,
}

impl Assembly {
    fn add(&mut self, entry: Entry, line: u64) -> Result<(), String> {
        let history = &mut self.history;
        match entry {
            Entry::Run(run) if self.has_run => {
                return Err(format!("a second run (seed {}) in one file", run.seed));
            }
            Entry::Run(run) if run.format != 1 => {
                return Err(format!(
                    "format {} of a run; this program reads 1",
                    run.format
                ));
            }
            Entry::Run(run) => {
                if let Some(unknown) = unknown_names(&run) {
                    return Err(unknown);
                }
                history.run = run;
                self.has_run = true;
            }
            invoke @ Entry::Invoke { .. } => return self.invoke(invoke, line),
            complete @ Entry::Complete { .. } => return self.complete(complete),
            Entry::Fault(fault) => {
                // A self-test does faults of its own.
                if history.run.self_test.is_none() && fault.kind.parse::<Kind>().is_err() {
                    return Err(format!(
                        "no fault is named `{}`; `jepsen-like list` names those of this program",
                        fault.kind
                    ));
                }
                history.faults.push(fault);
                self.fault_lines.push(line);
            }
            Entry::Answer(answer) => history.answers.push(answer),
            Entry::Leader(leader) => history.leaders.push(leader),
            Entry::Hash(hash) => history.hashes.push(hash),
            Entry::Usage(usage) => history.usages.push(usage),
            Entry::Lateness(lateness) => history.latenesses.push(lateness),
            Entry::Session(session) => history.sessions.push(session),
            Entry::Notice(notice) => history.notices.push(notice),
            Entry::Unhealed(unhealed) => {
                self.end = self.end.max(Some(unhealed.at));
                history.unhealed.push(unhealed);
            }
            Entry::Breakdown(breakdown) => {
                self.end = self.end.max(Some(breakdown.at));
                history.breakdown = Some(breakdown);
            }
            Entry::End { at } => {
                self.end = self.end.max(Some(at));
                history.is_complete = true;
            }
            Entry::Interrupted { at } => {
                self.end = self.end.max(Some(at));
                self.was_interrupted = true;
            }
        }
        Ok(())
    }

    fn invoke(&mut self, entry: Entry, line: u64) -> Result<(), String> {
        let Entry::Invoke {
            id,
            process,
            node,
            at,
            call,
        } = entry
        else {
            return Ok(());
        };
        let btree_map::Entry::Vacant(place) = self.operations.entry(id) else {
            return Err(format!("operation {id} is invoked twice"));
        };
        self.lines.insert(id, line);
        place.insert(Operation {
            id,
            process,
            node,
            invoked: at,
            completed: None,
            call,
            outcome: Outcome::Unknown,
            reply: None,
            reason: None,
        });
        Ok(())
    }

    fn complete(&mut self, entry: Entry) -> Result<(), String> {
        let Entry::Complete {
            id,
            at,
            outcome,
            reply,
            reason,
        } = entry
        else {
            return Ok(());
        };
        let Some(operation) = self.operations.get_mut(&id) else {
            return Err(format!(
                "operation {id} completes and was not invoked before"
            ));
        };
        if operation.completed.is_some() {
            return Err(format!("operation {id} completes twice"));
        }
        if at < operation.invoked {
            return Err(format!("operation {id} completes before it was invoked"));
        }
        let misfit = match outcome {
            Outcome::Ok => operation.call.misfit(reply.as_ref()),
            _ => (reply.is_some()).then(|| "it is not ok and has a reply".to_owned()),
        };
        if let Some(misfit) = misfit {
            return Err(format!("operation {id}, {}: {misfit}", operation.call));
        }
        operation.completed = Some(at);
        operation.outcome = outcome;
        operation.reply = reply;
        operation.reason = reason;
        Ok(())
    }

    /// The error has the line that it is about.
    fn finish(mut self) -> Result<History, (u64, String)> {
        // Not before: the end of the run is the last that is written.
        for (fault, line) in self.history.faults.iter().zip(&self.fault_lines) {
            if let Some(problem) = plausible::refuted(fault, &self.history.run, self.end) {
                return Err((*line, problem));
            }
        }
        let mut operations: Vec<_> = self.operations.into_values().collect();
        operations.sort_by_key(|operation| (operation.invoked, operation.id));
        if let Some((id, problem)) = reuse(&operations) {
            let line = self.lines.get(&id).copied().unwrap_or_default();
            return Err((line, problem));
        }
        self.history.operations = operations;
        self.history.answers.sort_by_key(|answer| answer.earliest);
        self.history.faults.sort_by_key(|fault| fault.began);
        self.history.usages.sort_by_key(|usage| usage.at);
        let history = &mut self.history;
        history.is_cut_off = !history.is_complete
            && !self.was_interrupted
            && history.breakdown.is_none()
            && history.unhealed.is_empty();
        Ok(self.history)
    }
}

/// The first operation of a process that has one of unknown outcome before it, and what is wrong with that: what a client asked for may still
/// take effect, so whoever goes on is a process of its own. `operations` are in order of invocation.
fn reuse(operations: &[Operation]) -> Option<(u64, String)> {
    let mut unknown: BTreeMap<u64, u64> = BTreeMap::new();
    for operation in operations {
        let Operation { id, process, .. } = operation;
        if let Some(before) = unknown.get(process) {
            let problem = format!(
                "operation {id} is of process {process}, whose operation {before} is of unknown outcome: it is not used again"
            );
            return Some((*id, problem));
        }
        if operation.outcome == Outcome::Unknown {
            unknown.insert(*process, *id);
        }
    }
    None
}
