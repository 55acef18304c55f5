//! The node's program: built from this source when it is absent or older; one that is named is tried before anything is built on it.

use std::{
    fs,
    io::{self, Read},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{OnceLock, mpsc},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use pontoon::defect;

use super::LabError;

/// The environment variable that names the node's program.
const VARIABLE: &str = "PONTOON_BIN";
/// A program says its version within this time, on a busy machine too.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Most octets that are taken of what it says.
const LONGEST_ANSWER: u64 = 4096;

/// How the names of this workspace's packages and tests begin.
const OURS: [&str; 2] = ["pontoon", "jepsen"];

/// What named a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// `PONTOON_BIN`: a program without defects.
    Variable,
    /// `self-test --program`: one with defects.
    Option,
    /// Cargo built it: one with defects.
    Built,
}

impl NamedBy {
    pub fn name(self) -> &'static str {
        match self {
            Self::Variable => VARIABLE,
            Self::Option => "--program",
            Self::Built => "program with defects",
        }
    }

    /// What to do where it cannot be used.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Variable => {
                "name a pontoon program by its path; or unset PONTOON_BIN: the program of this source is built then"
            }
            Self::Option => {
                "name one that `cargo build --features defects` made; or leave --program out: one is built then"
            }
            Self::Built => "remove it, so that it is built again; or name another by --program",
        }
    }
}

/// A program that no node can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {} {problem}", named_by.name(), program.display())]
pub struct Unusable {
    pub named_by: NamedBy,
    pub program: PathBuf,
    /// Behind the program's path.
    pub problem: String,
}

/// The program that `PONTOON_BIN` names, by its whole path, once it has shown that it is a pontoon. None: the variable is not set, or empty.
pub fn named() -> Result<Option<PathBuf>, Unusable> {
    let named = std::env::var_os(VARIABLE).filter(|named| !named.is_empty());
    let tried = |named| tried(NamedBy::Variable, Path::new(&named), None);
    named.map(tried).transpose()
}

/// This program, by its whole path, once it has shown that it is a pontoon with deliberate defects.
pub fn with_defects(named_by: NamedBy, program: &Path) -> Result<PathBuf, Unusable> {
    tried(named_by, program, Some(defect::NONE))
}

/// Looks at the file, and asks the program for its version; with a choice of a defect, which only a program that has some accepts.
fn tried(named_by: NamedBy, program: &Path, defect: Option<&str>) -> Result<PathBuf, Unusable> {
    let unusable = |problem: String| Unusable {
        named_by,
        program: program.to_owned(),
        problem,
    };
    let file = program.metadata().map_err(|error| {
        unusable(match error.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            _ => format!("cannot be looked at: {error}"),
        })
    })?;
    if !file.is_file() {
        return Err(unusable("is not a file".to_owned()));
    }
    if file.permissions().mode() & 0o111 == 0 {
        return Err(unusable("is not executable".to_owned()));
    }
    // Without a slash it would be looked for elsewhere.
    let path = std::path::absolute(program)
        .map_err(|error| unusable(format!("has no whole path: {error}")))?;
    let mut command = Command::new(&path);
    command.arg("--version");
    if let Some(defect) = defect {
        command.env(defect::VARIABLE, defect);
    }
    let (status, said) = answer(command, ANSWERS_WITHIN).map_err(&unusable)?;
    let first = said.lines().next().unwrap_or_default();
    if !status.success() {
        let problem = format!("does not run: `--version` ended with {status}: {first}");
        return Err(unusable(problem));
    }
    if !first.starts_with("pontoon ") {
        let problem = format!("is not a pontoon: `--version` says {first:?}");
        return Err(unusable(problem));
    }
    Ok(path)
}

/// How a program ends, and the beginning of what it says on both its outputs.
fn answer(mut command: Command, within: Duration) -> Result<(ExitStatus, String), String> {
    let cannot = |error: io::Error| format!("cannot be started: {error}");
    let (reader, writer) = io::pipe().map_err(cannot)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(cannot)?)
        .stderr(writer)
        .process_group(0);
    let mut child = command.spawn().map_err(cannot)?;
    drop(command); // its ends of the pipe
    let (sender, receiver) = mpsc::channel();
    // Not waited for: what the program has started may hold the pipe open.
    std::thread::spawn(move || {
        let mut said = vec![];
        let read = reader.take(LONGEST_ANSWER).read_to_end(&mut said);
        let _ = sender.send(read.map(|_| said)); // nobody waits any more: as well
    });
    let deadline = Instant::now() + within;
    let late = || format!("did not end within {} s of `--version`", within.as_secs());
    let ended = match receiver.recv_timeout(within) {
        Ok(Ok(said)) => wait_until(&mut child, deadline)
            .map(|status| (status, String::from_utf8_lossy(&said).into_owned()))
            .ok_or_else(late),
        Ok(Err(error)) => Err(format!("cannot be heard: {error}")),
        Err(_) => Err(late()),
    };
    if ended.is_err() {
        if let Ok(group) = i32::try_from(child.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // ended already: as well
        }
        let _ = child.wait();
    }
    ended
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

/// The path of `pontoon`: that of [`named`], or else the one beside this program, made up to date by cargo once in each process.
pub fn pontoon() -> Result<PathBuf, LabError> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(named) = named()? {
        return Ok(named);
    }
    let built = BUILT.get_or_init(|| build().map_err(|error| error.to_string()));
    built.clone().map_err(LabError::Program)
}

/// The path of a `pontoon` that has deliberate defects: it lies in a target directory of its own, where nobody takes it for
/// another, and is made up to date by cargo. Never a release build.
pub fn defective() -> Result<PathBuf, LabError> {
    let source = source();
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => PathBuf::from(target),
        None => source.join("target"),
    };
    let sound = target.join("debug");
    let target = target.join("defects");
    let program = target.join("debug").join("pontoon");
    if is_current(&program, &source) {
        return Ok(program);
    }
    tracing::info!(target = %target.display(), "building pontoon with deliberate defects");
    if let Err(error) = take_over_libraries(&sound, &target.join("debug")) {
        tracing::warn!(%error, "the libraries are built once more");
    }
    let mut command = cargo(&source);
    // All packages: so the libraries are wanted with the features that they were built with.
    command
        .args(["--workspace", "--features", "pontoon/defects"])
        .arg("--target-dir")
        .arg(&target);
    built_by(command)
}

/// Gives a target directory that is not there yet what cargo has built of other people's crates in one beside it, so that it builds ours
/// only: a minute or two in the place of ten. Cargo looks at everything it finds and builds again what does not fit, so that a layout
/// we do not know costs no more than time.
fn take_over_libraries(from: &Path, to: &Path) -> std::io::Result<()> {
    if to.exists() || !from.is_dir() {
        return Ok(());
    }
    for (directory, libraries_only) in [(".fingerprint", false), ("build", false), ("deps", true)] {
        fs::create_dir_all(to.join(directory))?;
        for entry in fs::read_dir(from.join(directory))? {
            let path = entry?.path();
            if is_of_others(&path, libraries_only) {
                copy(&path, &to.join(directory))?;
            }
        }
    }
    Ok(())
}

/// Names that begin like those of our packages; in `deps` libraries begin with `lib`, and what has no ending is a program.
fn is_of_others(path: &Path, libraries_only: bool) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    let bare = name.strip_prefix("lib").unwrap_or(name);
    let is_ours = OURS.iter().any(|ours| bare.starts_with(ours));
    let is_library = ["rlib", "rmeta", "so", "d"]
        .iter()
        .any(|end| path.extension().is_some_and(|e| e == *end));
    !is_ours && (is_library || !libraries_only)
}

/// With the times of change: cargo goes by them. What is large and never written again in its place is linked.
fn copy(from: &Path, into: &Path) -> std::io::Result<()> {
    let Some(name) = from.file_name() else {
        return Ok(());
    };
    let to = into.join(name);
    if from.is_dir() {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(from)? {
            copy(&entry?.path(), &to)?;
        }
        return Ok(());
    }
    let is_large = from
        .extension()
        .is_some_and(|end| end == "rlib" || end == "rmeta");
    if is_large && fs::hard_link(from, &to).is_ok() {
        return Ok(());
    }
    fs::copy(from, &to)?;
    let changed = from.metadata()?.modified()?;
    fs::File::options()
        .write(true)
        .open(&to)?
        .set_modified(changed)
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn build() -> Result<PathBuf, LabError> {
    let source = source();
    if let Some(beside) = beside_us().filter(|program| is_current(program, &source)) {
        return Ok(beside);
    }
    let profile = if built_for_release() {
        "release"
    } else {
        "dev"
    };
    let mut command = cargo(&source);
    // The same features as `cargo test --workspace`: nothing is built twice.
    command.args(["--workspace", "--profile", profile]);
    built_by(command)
}

fn cargo(source: &Path) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = Command::new(cargo);
    command
        .current_dir(source)
        .args(["build", "--quiet", "--bin", "pontoon"])
        .arg("--message-format=json-render-diagnostics");
    command
}

/// Runs cargo; the executable that it made or found made.
fn built_by(command: Command) -> Result<PathBuf, LabError> {
    let printed = super::namespace::finish(command, "cargo build", &["--bin", "pontoon"])?;
    executable_in(&printed).ok_or_else(|| LabError::Output {
        command: "cargo build".to_owned(),
        problem: "no executable named".to_owned(),
    })
}

/// The program where cargo puts it: beside this one, or a directory up when this is a test.
fn beside_us() -> Option<PathBuf> {
    let us = std::env::current_exe().ok()?;
    let places = us.ancestors().skip(1).take(2);
    places
        .map(|dir| dir.join("pontoon"))
        .find(|path| path.is_file())
}

/// Whether nothing it is built from is newer than the program.
fn is_current(program: &Path, source: &Path) -> bool {
    let Ok(built) = program.metadata().and_then(|file| file.modified()) else {
        return false;
    };
    let inputs = ["src", "proto", "cluster", "Cargo.toml", "Cargo.lock"];
    let mut paths: Vec<PathBuf> = inputs.iter().map(|input| source.join(input)).collect();
    while let Some(path) = paths.pop() {
        match std::fs::read_dir(&path) {
            Ok(entries) => paths.extend(entries.flatten().map(|entry| entry.path())),
            Err(_) => match path.metadata().and_then(|file| file.modified()) {
                Ok(changed) if changed <= built => {}
                _ => return false,
            },
        }
    }
    true
}

/// The executable that cargo's messages, one JSON object a line, speak of.
fn executable_in(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .next_back()
}

fn built_for_release() -> bool {
    !cfg!(debug_assertions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_cargos_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/pontoon\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\nnot json\n";
        assert_eq!(executable_in(messages), Some("/t/debug/pontoon".into()));
        assert_eq!(executable_in(""), None);
    }

    /// A program of these lines. Another process writes it: what this one has open for writing, and with it what other threads fork,
    /// cannot be started.
    fn script(directory: &Path, name: &str, lines: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        let mut command = Command::new("sh");
        command
            .args(["-c", "printf %s \"$1\" > \"$0\""])
            .args([path.as_os_str(), lines.as_ref()]);
        assert!(command.status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_program_that_is_no_pontoon_is_refused_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path();
        let good = script(here, "good", "#!/bin/sh\necho pontoon 0.1.0\n", 0o755);
        assert_eq!(tried(NamedBy::Variable, &good, None), Ok(good.clone()));
        for (program, problem) in [
            (here.join("absent"), "does not exist"),
            (here.to_owned(), "is not a file"),
            (
                script(here, "plain", "#!/bin/sh\necho pontoon 1\n", 0o644),
                "is not executable",
            ),
            (
                script(here, "other", "#!/bin/sh\necho other 1\n", 0o755),
                "is not a pontoon: `--version` says \"other 1\"",
            ),
            (
                script(here, "endless", "#!/bin/sh\nexec yes\n", 0o755),
                "does not run: `--version` ended with signal: 13",
            ),
            (
                script(
                    here,
                    "fails",
                    "#!/bin/sh\necho no luck >&2\nexit 3\n",
                    0o755,
                ),
                "does not run: `--version` ended with exit status: 3: no luck",
            ),
            (
                script(here, "strange", "#!/no/such/interpreter\n", 0o755),
                "cannot be started: ",
            ),
        ] {
            let refused = tried(NamedBy::Variable, &program, None).unwrap_err();
            assert!(refused.problem.starts_with(problem), "{refused}");
            let text = refused.to_string();
            let names = format!("PONTOON_BIN: {}", program.display());
            assert!(text.starts_with(&names), "{text}");
        }
    }

    #[test]
    fn only_a_program_with_defects_passes_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let sound = "#!/bin/sh\n[ -z \"$PONTOON_DEFECT\" ] || { echo it has no defects; exit 2; }\necho pontoon 1\n";
        let defective = "#!/bin/sh\n[ \"$PONTOON_DEFECT\" = none ] || exit 2\necho pontoon 1\n";
        let sound = script(directory.path(), "sound", sound, 0o755);
        let defective = script(directory.path(), "defective", defective, 0o755);
        assert!(tried(NamedBy::Variable, &sound, None).is_ok());
        assert!(tried(NamedBy::Variable, &defective, None).is_err());
        assert!(with_defects(NamedBy::Option, &defective).is_ok());
        let refused = with_defects(NamedBy::Option, &sound).unwrap_err();
        assert!(refused.problem.contains("it has no defects"), "{refused}");
        assert_eq!(refused.named_by.name(), "--program");
    }

    #[test]
    fn a_program_that_does_not_end_is_not_waited_for() {
        let sleeps = || {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 1000"]);
            command
        };
        let refused = answer(sleeps(), Duration::from_millis(50)).unwrap_err();
        assert!(refused.starts_with("did not end within"), "{refused}");
    }

    #[test]
    fn a_new_target_directory_is_given_the_libraries_and_nothing_of_ours() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (
            directory.path().join("debug"),
            directory.path().join("defects"),
        );
        let files = [
            ".fingerprint/tokio-1a/lib-tokio",
            ".fingerprint/pontoon-2b/lib-pontoon",
            "build/libc-3c/out/flags",
            "deps/libtokio-1a.rlib",
            "deps/tokio-1a.d",
            "deps/libpontoon-2b.rlib",
            "deps/jepsen_like-4d.d",
            "deps/vip-5e",
        ];
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        for file in files {
            let path = from.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, file).unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(old).unwrap();
        }
        take_over_libraries(&from, &to).unwrap();
        let taken = |file: &&&str| to.join(file).is_file();
        let taken: Vec<_> = files.iter().filter(taken).copied().collect();
        assert_eq!(taken, [files[0], files[2], files[3], files[4]]);
        for file in taken {
            let copied = to.join(file).metadata().unwrap();
            assert_eq!(copied.modified().unwrap(), old, "{file}");
        }
        // One that is there already is cargo's own affair.
        fs::remove_file(to.join(files[3])).unwrap();
        take_over_libraries(&from, &to).unwrap();
        assert!(!to.join(files[3]).exists());
        assert!(take_over_libraries(&directory.path().join("none"), &to.join("new")).is_ok());
    }
}
