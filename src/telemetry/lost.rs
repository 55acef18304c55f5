//! Lines that the log's target did not take: none is lost without being counted.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// How many lines were lost. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Lost(Arc<AtomicU64>);

impl Lost {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Hands lines to a target. One that it refuses is counted; the first of several in a row is told to standard error.
pub(super) struct Counted<W, E = io::Stderr> {
    to: W,
    name: String,
    lost: Lost,
    is_told: bool,
    tell: E,
}

impl<W: Write> Counted<W> {
    /// `name`: what standard error is told about the target.
    pub(super) fn new(to: W, name: String) -> Self {
        Counted::telling(to, name, io::stderr())
    }
}

impl<W: Write, E: Write> Counted<W, E> {
    fn telling(to: W, name: String, tell: E) -> Self {
        Self {
            to,
            name,
            lost: Lost::default(),
            is_told: false,
            tell,
        }
    }

    pub(super) fn lost(&self) -> Lost {
        self.lost.clone()
    }
}

impl<W: Write, E: Write> Write for Counted<W, E> {
    /// Never fails: a line that is lost must not keep the next from being tried.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.to.write_all(line) {
            Ok(()) => self.is_told = false,
            Err(error) => {
                self.lost.add();
                if !self.is_told {
                    self.is_told = true;
                    // Where standard error takes nothing either, the metric remains.
                    let _ = writeln!(
                        self.tell,
                        "log {}: it does not take lines: {error}; what is lost is counted in pontoon_log_dropped_total",
                        self.name
                    );
                }
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a line if the next of its answers is true.
    struct Moody(Vec<bool>);

    impl Write for Moody {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            match self.0.remove(0) {
                true => Ok(line.len()),
                false => Err(io::ErrorKind::StorageFull.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_lost_line_is_counted_and_the_first_in_a_row_is_told() {
        let target = Moody(vec![true, false, false, true, false]);
        let mut counted = Counted::telling(target, "/var/log/x".into(), Vec::new());
        let lost = counted.lost();
        for expected in [0, 1, 2, 2, 3] {
            counted.write_all(b"line\n").expect("never fails");
            assert_eq!(lost.count(), expected);
        }
        let told = String::from_utf8(counted.tell).expect("text");
        assert_eq!(told.lines().count(), 2, "{told}");
        assert!(told.starts_with("log /var/log/x: "), "{told}");
    }
}
