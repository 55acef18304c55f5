//! What commands write: tables for people, one JSON document for programs.

use std::{
    ffi::OsString,
    fmt::Display,
    io::{self, Write},
};

use clap::ValueEnum;
use serde::Serialize;
use serde_json::json;

use super::exit;
pub use crate::model::moment::moment;
use crate::wire::error::{Failure, FailureCode};

/// Widest a column becomes, in characters.
const WIDEST: usize = 48;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One document for programs
    Json,
}

/// Writes results to stdout and failures to stderr.
pub struct Out {
    format: Format,
    colour: bool,
    /// Takes what would go to stdout.
    #[cfg(test)]
    kept: Option<std::sync::Mutex<String>>,
    /// What went to stderr, a line each.
    #[cfg(test)]
    remarks: std::sync::Mutex<String>,
}

impl Out {
    /// `terminal`: stdout is one, so colours may be used. `NO_COLOR` forbids them.
    pub fn new(format: Format, terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            format,
            colour: terminal && !refused,
            #[cfg(test)]
            kept: None,
            #[cfg(test)]
            remarks: std::sync::Mutex::default(),
        }
    }

    /// Keeps what would go to stdout.
    #[cfg(test)]
    pub fn keeping(format: Format) -> Self {
        Self {
            kept: Some(std::sync::Mutex::default()),
            ..Self::new(format, false)
        }
    }

    /// What was kept since the last call.
    #[cfg(test)]
    pub fn take(&self) -> String {
        let kept = self.kept.as_ref().expect("made by `keeping`");
        std::mem::take(&mut *kept.lock().expect("no writer panics"))
    }

    /// What went to stderr since the last call, a line each.
    #[cfg(test)]
    pub fn take_remarks(&self) -> String {
        std::mem::take(&mut *self.remarks.lock().expect("no writer panics"))
    }

    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes a result in the form that was asked for.
    pub fn result(
        &self,
        json: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json_line(json),
            Format::Table => self.text(&text()),
        }
    }

    /// Writes one JSON document on a line.
    pub fn json_line(&self, json: &impl Serialize) -> Result<(), Failure> {
        let mut line = serde_json::to_string(json).map_err(|e| exit::internal("output", e))?;
        line.push('\n');
        self.text(&line)
    }

    /// Writes text as it is.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        #[cfg(test)]
        if let Some(kept) = &self.kept {
            kept.lock().expect("no writer panics").push_str(text);
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            // Whoever read our output has read enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            other => other.map_err(|e| exit::unwritten(&e)),
        }
    }

    /// A table with columns as wide as they need to be. A cell wider than `WIDEST` is written whole, and moves what follows
    /// in its own row alone.
    pub fn table(&self, header: &[&str], rows: &[Vec<String>]) -> String {
        let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                let cell = cell.chars().count();
                if cell <= WIDEST {
                    *width = (*width).max(cell);
                }
            }
        }
        let mut text = String::new();
        let titles: Vec<String> = header.iter().map(|h| (*h).to_owned()).collect();
        let heading = line(&titles, &widths);
        match self.colour {
            true => text.push_str(&format!("\x1b[1m{heading}\x1b[0m\n")),
            false => text.push_str(&format!("{heading}\n")),
        }
        for row in rows {
            text.push_str(&line(row, &widths));
            text.push('\n');
        }
        text
    }

    /// Writes a failure to stderr. Nothing can be done when that fails.
    pub fn failure(&self, failure: &Failure) {
        let failure = &exit::advised(failure.clone());
        self.stderr(&match self.format {
            Format::Json => serde_json::to_string(failure).unwrap_or_default(),
            Format::Table => failure_text(failure),
        });
    }

    /// Something that was done, or left out, and that may not be what was meant: on stderr, one JSON object with JSON.
    pub fn warn(&self, text: impl Display) {
        self.stderr(&match self.format {
            Format::Json => json!({ "warning": text.to_string() }).to_string(),
            Format::Table => format!("warning: {text}"),
        });
    }

    /// A warning about a place in a file.
    pub fn warn_at(&self, place: impl Display, text: impl Display) {
        match self.format {
            Format::Json => self.warn(format!("{place}: {text}")),
            Format::Table => self.stderr(&format!("{place}: warning: {text}")),
        }
    }

    /// A remark for people on how things go, on stderr; nothing with JSON.
    pub fn remark(&self, text: &str) {
        if self.format == Format::Table {
            self.stderr(text);
        }
    }

    /// Writes a line. Nothing can be done when that fails.
    fn stderr(&self, line: &str) {
        #[cfg(test)]
        self.remarks
            .lock()
            .expect("no writer panics")
            .push_str(&format!("{line}\n"));
        let _ = writeln!(io::stderr().lock(), "{line}");
    }
}

fn failure_text(failure: &Failure) -> String {
    let Failure {
        object,
        problem,
        hint,
        code,
    } = failure;
    let unknown = match code {
        FailureCode::UnknownOutcome => "the outcome is unknown: ",
        _ => "",
    };
    let hint = match hint.as_str() {
        "" => String::new(),
        hint => format!("\nhint: {hint}"),
    };
    // Several faults have a line each, below the first.
    let problem = problem.replace('\n', "\n  ");
    format!("error: {object}: {unknown}{problem}{hint}")
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| {
        let missing = width.saturating_sub(cell.chars().count());
        format!("{cell}{}", " ".repeat(missing))
    });
    let cells: Vec<String> = padded.collect();
    cells.join("  ").trim_end().to_owned()
}

/// Whether a command line that could not be read asked for JSON.
pub fn asks_for_json(arguments: &[OsString]) -> bool {
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    words
        .iter()
        .any(|w| matches!(*w, "-ojson" | "-o=json" | "--output=json"))
        || words
            .windows(2)
            .any(|pair| matches!(pair, ["-o" | "--output", "json"]))
}

/// A cell for something that may be absent.
pub fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_tidy() {
        let out = Out::new(Format::Table, false);
        let rows = [
            vec!["a".to_owned(), "long cell".to_owned()],
            vec!["abc".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            out.table(&["ID", "NAME"], &rows),
            "ID   NAME\na    long cell\nabc  x\n"
        );
    }

    #[test]
    fn a_long_cell_widens_its_own_row_alone() {
        let out = Out::new(Format::Table, false);
        let long = "x".repeat(255);
        let rows = [
            vec![long.clone(), "1".to_owned()],
            vec!["a".to_owned(), "2".to_owned()],
        ];
        let expected = format!("NAME  N\n{long}  1\na     2\n");
        assert_eq!(out.table(&["NAME", "N"], &rows), expected);
    }

    #[test]
    fn warnings_are_objects_with_json() {
        for (format, told) in [
            (Format::Table, "warning: a \"b\"\nf:3: warning: c\nso far\n"),
            (
                Format::Json,
                "{\"warning\":\"a \\\"b\\\"\"}\n{\"warning\":\"f:3: c\"}\n",
            ),
        ] {
            let out = Out::keeping(format);
            out.warn("a \"b\"");
            out.warn_at("f:3", "c");
            out.remark("so far");
            assert_eq!(out.take_remarks(), told);
        }
    }

    #[test]
    fn several_faults_have_a_line_each() {
        let failure = Failure::new(FailureCode::Invalid, "file x", "2 faults\na\nb", "mend");
        let text = failure_text(&failure);
        assert_eq!(text, "error: file x: 2 faults\n  a\n  b\nhint: mend");
    }

    #[test]
    fn json_is_recognised_in_a_wrong_command_line() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_json(&words("pontoon zone -o json")));
        assert!(asks_for_json(&words("pontoon --output=json zone")));
        assert!(!asks_for_json(&words("pontoon -o table json")));
    }
}
