//! The node's program: built from this source when it is absent or older.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::LabError;

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
    let target = target.join("defects");
    let program = target.join("debug").join("pontoon");
    if is_current(&program, &source) {
        return Ok(program);
    }
    tracing::info!(target = %target.display(), "building pontoon with deliberate defects");
    let mut command = cargo(&source);
    command
        .args(["--package", "pontoon", "--features", "defects"])
        .arg("--target-dir")
        .arg(&target);
    built_by(command)
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
}
