//! What commands write: results on stdout, errors and remarks on stderr; for people, or in JSON for programs. Nothing here panics: whoever
//! reads may have read enough, and a command does its work and tells by its exit code all the same.

use std::{
    ffi::OsString,
    io::{self, Write},
};

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::Failure;

/// How results are written, and errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: one document (`check`, `self-test`: one a line), and errors as one object on stderr
    Json,
}

/// Writes results to stdout, and errors and remarks to stderr.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    pub format: Format,
}

impl Out {
    /// Writes a result in the form that was asked for.
    pub fn result(
        &self,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => match serde_json::to_string(json) {
                Ok(line) => self.text(&(line + "\n")),
                Err(error) => Err(Failure::untold(&error.into())),
            },
        }
    }

    /// Writes text as it is. A pipe that is closed is no failure.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        write_to(&mut io::stdout().lock(), text).map_err(|error| Failure::untold(&error))
    }

    /// Says why something could not be done.
    pub fn failure(&self, failure: &Failure) {
        match self.format {
            Format::Table => self.stderr(&format!("jepsen-like: {failure}")),
            Format::Json => self.stderr(&serde_json::to_string(failure).unwrap_or_default()),
        }
    }

    /// For people, on how things go; nothing with JSON.
    pub fn remark(&self, text: &str) {
        if self.format == Format::Table {
            self.stderr(text);
        }
    }

    /// Nobody is left to tell when that fails.
    fn stderr(&self, line: &str) {
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

fn write_to(out: &mut impl Write, text: &str) -> io::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads it has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// What a command line that could not be read asked for.
pub fn asked_for(arguments: &[OsString]) -> Format {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    let is_one_word = |word: &&str| matches!(*word, "-ojson" | "-o=json" | "--output=json");
    let is_json = words.iter().any(is_one_word)
        || (words.windows(2)).any(|pair| matches!(pair, ["-o" | "--output", "json"]));
    match is_json {
        true => Format::Json,
        false => Format::Table,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fails(io::ErrorKind);

    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_closed_pipe_is_no_failure() {
        assert!(write_to(&mut Fails(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write_to(&mut Fails(io::ErrorKind::StorageFull), "x").is_err());
    }

    #[test]
    fn json_is_recognised_in_a_wrong_command_line() {
        let asked = |line: &str| {
            let words: Vec<_> = line.split(' ').map(OsString::from).collect();
            asked_for(&words)
        };
        for line in [
            "run -o json",
            "-ojson run",
            "run --output=json",
            "run -o=json",
            "x --output json",
        ] {
            assert_eq!(asked(line), Format::Json, "{line}");
        }
        for line in ["run -o table json", "check json", "run"] {
            assert_eq!(asked(line), Format::Table, "{line}");
        }
    }
}
