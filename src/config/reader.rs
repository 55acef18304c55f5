//! Reads a TOML table key by key, collecting faults instead of stopping at the first, and refusing keys nobody asked for.

use std::{fmt::Display, str::FromStr};

use toml::{Table, Value};

use super::Fault;

/// One table of the file, with the faults found in it so far.
pub(crate) struct Section<'f> {
    path: String,
    table: Table,
    faults: &'f mut Vec<Fault>,
    /// Where all keys are described.
    manual: &'static str,
}

impl<'f> Section<'f> {
    pub(crate) fn root(table: Table, faults: &'f mut Vec<Fault>, manual: &'static str) -> Self {
        Self {
            path: String::new(),
            table,
            faults,
            manual,
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Whether `key` holds exactly this text.
    pub(crate) fn is_text(&self, key: &str, text: &str) -> bool {
        self.table.get(key).and_then(Value::as_str) == Some(text)
    }

    /// What `read` makes of each table in the list `key`. In faults a table is called by its text under `identity`.
    pub(crate) fn each<T>(
        &mut self,
        key: &str,
        identity: &str,
        mut read: impl FnMut(Section<'_>) -> Option<T>,
    ) -> Vec<T> {
        let items = match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                let found = other.type_str();
                self.fault(key, format!("expected [[{key}]] tables, found {found}"));
                Vec::new()
            }
        };
        let mut values = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            let Value::Table(table) = item else {
                self.fault(key, format!("expected a table, found {}", item.type_str()));
                continue;
            };
            let called = match table.get(identity).and_then(Value::as_str) {
                Some(text) => text.chars().take(255).collect(),
                None => (at + 1).to_string(),
            };
            values.extend(read(Section {
                path: format!("{}[{called}]", self.key(key)),
                table,
                faults: &mut *self.faults,
                manual: self.manual,
            }));
        }
        values
    }

    /// The table `key`; an empty one when it is absent.
    pub(crate) fn section(&mut self, key: &str) -> Section<'_> {
        let table = match self.table.remove(key) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.fault(key, format!("expected a table, found {}", other.type_str()));
                Table::new()
            }
        };
        Section {
            path: self.key(key),
            table,
            faults: &mut *self.faults,
            manual: self.manual,
        }
    }

    /// A text that `read` understands; `default` when absent.
    pub(crate) fn text<T, E: Display>(
        &mut self,
        key: &str,
        default: T,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        self.optional_text(key, read).unwrap_or(default)
    }

    pub(crate) fn optional_text<T, E: Display>(
        &mut self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        match self.table.remove(key)? {
            Value::String(text) => match read(&text) {
                Ok(value) => Some(value),
                Err(problem) => {
                    self.fault(key, problem.to_string());
                    None
                }
            },
            other => {
                self.fault(
                    key,
                    format!("expected a text in quotes, found {}", other.type_str()),
                );
                None
            }
        }
    }

    /// A text that must be there; the fault is recorded and `stand_in` returned when it is not.
    pub(crate) fn required_text<T, E: Display>(
        &mut self,
        key: &str,
        stand_in: T,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> T {
        if !self.table.contains_key(key) {
            self.fault(key, format!("missing: expected {expected}"));
            return stand_in;
        }
        self.optional_text(key, read).unwrap_or(stand_in)
    }

    /// A whole number within `range`; `default` when absent.
    pub(crate) fn number<T>(
        &mut self,
        key: &str,
        default: T,
        range: std::ops::RangeInclusive<T>,
    ) -> T
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let Some(value) = self.table.remove(key) else {
            return default;
        };
        let number = value
            .as_integer()
            .and_then(|n| T::try_from(n).ok())
            .filter(|n| range.contains(n));
        number.unwrap_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.fault(
                key,
                format!("{value} is not a whole number from {low} to {high}"),
            );
            default
        })
    }

    pub(crate) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.table.remove(key) {
            None => default,
            Some(Value::Boolean(flag)) => flag,
            Some(other) => {
                self.fault(
                    key,
                    format!("expected true or false, found {}", other.type_str()),
                );
                default
            }
        }
    }

    /// A list of texts.
    pub(crate) fn list<T: FromStr>(&mut self, key: &str, expected: &str) -> Vec<T>
    where
        T::Err: Display,
    {
        let items = match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => {
                self.fault(
                    key,
                    format!("expected a list of {expected}, found {}", other.type_str()),
                );
                Vec::new()
            }
        };
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            match item.as_str().map(str::parse::<T>) {
                Some(Ok(value)) => values.push(value),
                _ => self.fault(key, format!("{item} is not {expected}")),
            }
        }
        values
    }

    /// What is left, as texts by key: for tables whose keys are the operator's own names.
    pub(crate) fn take_texts(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (key, value) in std::mem::take(&mut self.table) {
            match value {
                Value::String(text) => all.push((key, text)),
                other => self.fault(
                    &key,
                    format!("expected a text in quotes, found {}", other.type_str()),
                ),
            }
        }
        all
    }

    pub(crate) fn fault(&mut self, key: &str, problem: impl Into<String>) {
        self.faults.push(Fault::new(self.key(key), problem));
    }

    /// Notes that line `within` of the text of `key` is wrong.
    pub(crate) fn fault_within(&mut self, key: &str, within: u32, problem: impl Into<String>) {
        self.faults.push(Fault {
            within: Some(within),
            ..Fault::new(self.key(key), problem)
        });
    }

    /// How many faults were found so far, in the whole file.
    pub(crate) fn fault_count(&self) -> usize {
        self.faults.len()
    }

    /// Ends the section: every key that nobody asked for is a fault.
    pub(crate) fn finish(mut self) {
        for key in std::mem::take(&mut self.table)
            .into_iter()
            .map(|(key, _)| key)
        {
            let problem = format!("unknown key; {} lists all keys", self.manual);
            self.fault(&key, problem);
        }
    }

    fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
}
