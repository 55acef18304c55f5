//! The node's program: built from this source when it is absent or older.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::LabError;

/// How the names of this workspace's packages and tests begin.
const OURS: [&str; 2] = ["pontoon", "jepsen"];

/// The path of `pontoon`: `PONTOON_BIN`, or else the one beside this program, made up to date by cargo once in each process.
pub fn pontoon() -> Result<PathBuf, LabError> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(given) = std::env::var_os("PONTOON_BIN") {
        return Ok(given.into());
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
