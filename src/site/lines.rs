//! Where things stand in a site document, for its faults: the line of every key, by the name that faults give it.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use crate::config::Fault;

/// The lines of a document's keys.
#[derive(Default)]
pub(super) struct Lines {
    keys: BTreeMap<String, u32>,
    /// Objects that are given twice: which of the two a fault means cannot be told.
    repeated: BTreeSet<String>,
    /// The line of the first line of texts that stand in the document as they are, without escapes.
    texts: BTreeMap<String, u32>,
}

impl Lines {
    /// Finds every key; of those given twice the last.
    pub(super) fn of(text: &str) -> Self {
        let mut lines = Self::default();
        let (table, _) = DeTable::parse_recoverable(text);
        Walk {
            text,
            line_starts: line_starts(text),
            lines: &mut lines,
        }
        .table(table.get_ref(), "");
        lines
    }

    /// The faults with their lines, in their order.
    pub(super) fn put(&self, mut faults: Vec<Fault>) -> Vec<Fault> {
        let clear = |fault: &&mut Fault| fault.line.is_none() && !self.is_ambiguous(&fault.key);
        for fault in faults.iter_mut().filter(clear) {
            let first = self.texts.get(&fault.key);
            if let Some((first, within)) = first.zip(fault.within) {
                fault.line = Some(first + within - 1);
                fault.within = None;
            } else {
                fault.line = self.line_of(&fault.key);
            }
        }
        faults.sort_by_key(|fault| fault.line.unwrap_or(u32::MAX));
        faults
    }

    /// Whether the key is inside an object that is given twice.
    fn is_ambiguous(&self, key: &str) -> bool {
        self.repeated.iter().any(|object| {
            let inside = key.strip_prefix(object.as_str());
            inside.is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// The line of a key; of one that is missing, that of the table it is missing from.
    fn line_of(&self, key: &str) -> Option<u32> {
        let mut key = key;
        loop {
            if let Some(line) = self.keys.get(key) {
                return Some(*line);
            }
            key = key.rsplit_once('.')?.0;
        }
    }
}

struct Walk<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
    lines: &'t mut Lines,
}

impl Walk<'_> {
    fn table(&mut self, table: &DeTable<'_>, path: &str) {
        for (key, value) in table.iter() {
            let name = match path {
                "" => key.get_ref().to_string(),
                path => format!("{path}.{}", key.get_ref()),
            };
            let line = line_at(&self.line_starts, key.span().start);
            self.lines.keys.insert(name.clone(), line);
            match value.get_ref() {
                DeValue::Table(table) => self.table(table, &name),
                DeValue::Array(items) => {
                    let tables = items.iter().enumerate();
                    for (at, item) in tables {
                        if let DeValue::Table(table) = item.get_ref() {
                            self.item(table, &name, at);
                        }
                    }
                }
                DeValue::String(content) => self.string(&name, value.span(), content),
                _ => {}
            }
        }
    }

    /// One table of a list, which faults call by what the operator calls it.
    fn item(&mut self, table: &DeTable<'_>, list: &str, at: usize) {
        let identity = match list {
            "forwarder" => "suffix",
            "vip" => "address",
            _ => "name",
        };
        let named = table.iter().find(|(key, _)| key.get_ref() == identity);
        let text = named.and_then(|(_, value)| value.get_ref().as_str());
        let called = match text {
            Some(text) => text.chars().take(255).collect(),
            None => (at + 1).to_string(),
        };
        let first = named.or_else(|| table.iter().min_by_key(|(key, _)| key.span().start));
        if let Some((key, _)) = first {
            let line = line_at(&self.line_starts, key.span().start);
            let object = format!("{list}[{called}]");
            if self.lines.keys.insert(object.clone(), line).is_some() {
                self.lines.repeated.insert(object);
            }
            // Faults that were found later name zones and suffixes in their full form.
            if let Some(name) = text.and_then(|t| t.parse::<crate::model::name::Name>().ok()) {
                self.lines.keys.insert(format!("{list}[{name}]"), line);
            }
        }
        self.table(table, &format!("{list}[{called}]"));
    }

    fn string(&mut self, name: &str, span: std::ops::Range<usize>, content: &str) {
        let raw = self.text.get(span.clone()).unwrap_or_default();
        let inner = raw
            .strip_prefix("'''")
            .or_else(|| raw.strip_prefix("\"\"\""));
        let line = line_at(&self.line_starts, span.start);
        // A line end right behind the opening quotation marks is no part of the text.
        let (inner, first) =
            match inner.map(|i| (i, i.strip_prefix("\r\n").or(i.strip_prefix('\n')))) {
                Some((_, Some(rest))) => (rest, line + 1),
                Some((inner, None)) => (inner, line),
                None => return,
            };
        if inner.lines().count() >= content.lines().count()
            && !(raw.starts_with('"') && inner.contains('\\'))
        {
            self.lines.texts.insert(name.to_owned(), first);
        }
    }
}

/// What keeps a text from being TOML.
pub(super) fn syntax_faults(text: &str) -> Vec<Fault> {
    let starts = line_starts(text);
    let (_, errors) = DeTable::parse_recoverable(text);
    let fault = |error: &toml::de::Error| Fault {
        line: error.span().map(|span| line_at(&starts, span.start)),
        ..Fault::new("", format!("this is no TOML: {}", error.message()))
    };
    errors.iter().map(fault).collect()
}

/// Where each line starts, in octets.
fn line_starts(text: &str) -> Vec<usize> {
    let ends = text.match_indices('\n').map(|(at, _)| at + 1);
    std::iter::once(0).chain(ends).collect()
}

/// The line of an octet, from 1.
fn line_at(starts: &[usize], at: usize) -> u32 {
    let line = starts.partition_point(|start| *start <= at);
    u32::try_from(line).unwrap_or(u32::MAX)
}
