//! The lines of `pontoon record batch`: words as in a shell, read by the same declarations as the commands themselves.

use std::path::Path;

use clap::Parser;

use super::{
    exit,
    input::Input,
    record::{Add, Delete, Set},
};
use crate::{state::command::Change, wire::error::Failure};

/// What to do about a wrong line.
const HINT: &str =
    "lines are `set`, `add` or `delete` with the arguments of those commands; nothing was changed";

#[derive(Debug, Parser)]
#[command(
    no_binary_name = true,
    disable_help_flag = true,
    disable_help_subcommand = true
)]
enum Line {
    Set(Set),
    Add(Add),
    Delete(Delete),
}

/// Reads a file of changes; - is stdin.
pub fn read(file: &Path) -> Result<Vec<Change>, Failure> {
    let text = Input::read(file)?.text(file)?;
    parse(&text).map_err(|faults| exit::faulty(file, &faults, HINT))
}

/// Reads all lines, or says what is wrong with each that is.
fn parse(text: &str) -> Result<Vec<Change>, Vec<String>> {
    let (mut changes, mut faults) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let read = match words(line) {
            Ok(words) if words.is_empty() => continue,
            Ok(words) => change(&words).map_err(|failure| failure.to_string()),
            Err(problem) => Err(problem.to_owned()),
        };
        match read {
            Ok(change) => changes.push(change),
            Err(problem) => faults.push(format!("line {}: {problem}", at + 1)),
        }
    }
    if changes.is_empty() && faults.is_empty() {
        faults.push("it holds no change".to_owned());
    }
    match faults.is_empty() {
        true => Ok(changes),
        false => Err(faults),
    }
}

fn change(words: &[String]) -> Result<Change, Failure> {
    let line = Line::try_parse_from(words).map_err(|error| {
        let usage = exit::usage(&error);
        exit::invalid("change", usage.problem, HINT)
    })?;
    let guards = match &line {
        Line::Set(set) => &set.guards,
        Line::Add(add) => &add.guards,
        Line::Delete(delete) => &delete.guards,
    };
    if !guards.is_empty() {
        let problem = "--if-serial and --if-revision are about the whole batch";
        return Err(exit::invalid(
            "change",
            problem,
            "give them to `record batch` itself",
        ));
    }
    match line {
        Line::Set(set) => set.change(),
        Line::Add(add) => add.change(),
        Line::Delete(delete) => delete.change(),
    }
}

/// Splits a line into words: quotes and backslashes as in a shell, `#` begins a comment where a word would begin.
pub fn words(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut rest = line.chars().peekable();
    while let Some(&first) = rest.peek() {
        if first.is_whitespace() {
            rest.next();
            continue;
        }
        if first == '#' {
            break;
        }
        words.push(word(&mut rest)?);
    }
    Ok(words)
}

fn word(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String, &'static str> {
    let mut word = String::new();
    while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
        match c {
            '\'' => loop {
                match rest.next().ok_or("a single quote is not closed")? {
                    '\'' => break,
                    inner => word.push(inner),
                }
            },
            '"' => loop {
                match rest.next().ok_or("a double quote is not closed")? {
                    '"' => break,
                    '\\' => match rest.next().ok_or("a double quote is not closed")? {
                        escaped @ ('"' | '\\') => word.push(escaped),
                        // As in a shell, a backslash before anything else stays: master files use it.
                        other => word.extend(['\\', other]),
                    },
                    inner => word.push(inner),
                }
            },
            '\\' => word.push(rest.next().ok_or("the line ends in a backslash")?),
            plain => word.push(plain),
        }
    }
    Ok(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::rrsets::DEFAULT_TTL;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (line, expected) in [
            ("", vec![]),
            ("  # nothing", vec![]),
            ("a  b\tc", vec!["a", "b", "c"]),
            ("'a b' \"c d\" e\\ f", vec!["a b", "c d", "e f"]),
            (
                r#"'"x y"' "\"z\"" "\065""#,
                vec!["\"x y\"", "\"z\"", "\\065"],
            ),
            ("a#b # c", vec!["a#b"]),
            ("''", vec![""]),
        ] {
            assert_eq!(
                words(line),
                Ok(expected.into_iter().map(String::from).collect()),
                "{line}"
            );
        }
        for bad in ["'a", "\"a", "a\\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_are_the_commands() {
        let text = "# move\nset example.com www A 192.0.2.9 --ttl 60\n\nadd example.com @ MX '20 b.example.net.'\ndelete example.com old ANY\ndelete example.com x A\n";
        let changes = parse(text).expect("four changes");
        assert!(matches!(&changes[0], Change::SetRrset { rrset, .. } if rrset.ttl() == 60));
        assert!(matches!(
            &changes[1],
            Change::AddKeepingTtl { rrset, .. } if rrset.ttl() == DEFAULT_TTL
        ));
        assert!(matches!(&changes[2], Change::DeleteName { .. }));
        assert!(matches!(
            &changes[3],
            Change::DeleteRecords { rdata: None, .. }
        ));
        assert_eq!(changes.len(), 4);
    }

    #[test]
    fn a_line_without_a_ttl_leaves_it_to_the_set() {
        let text = "set e. a A 192.0.2.1\nadd e. a A 192.0.2.2\nset e. a A 192.0.2.1 --ttl 9\nadd e. a A 192.0.2.2 --ttl 9\n";
        let changes = parse(text).expect("sound");
        assert!(matches!(&changes[0], Change::SetKeepingTtl { .. }));
        assert!(matches!(&changes[1], Change::AddKeepingTtl { .. }));
        assert!(matches!(&changes[2], Change::SetRrset { rrset, .. } if rrset.ttl() == 9));
        assert!(matches!(&changes[3], Change::AddRecords { rrset, .. } if rrset.ttl() == 9));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for bad in [
            "frob x",
            "set example.com www A",
            "set example.com www A x",
            "set example.com www A 192.0.2.1 --if-serial 1",
            "add 'x",
        ] {
            let text = format!("delete example.com x A\n{bad}\n");
            let faults = parse(&text).unwrap_err();
            assert!(faults[0].starts_with("line 2: "), "{bad}: {faults:?}");
        }
        assert!(parse("# nothing\n").is_err());
        let text =
            "frob\n\nset example.com a..b A 192.0.2.1\nset example.com a A 192.0.2.1\nadd 'x\n";
        let faults = parse(text).unwrap_err();
        let starts = [
            "line 1: change: ",
            "line 3: name \"a..b\": ",
            "line 5: a single quote",
        ];
        assert_eq!(faults.len(), starts.len(), "{faults:?}");
        for (fault, start) in faults.iter().zip(starts) {
            assert!(fault.starts_with(start), "{fault}");
        }
    }
}
