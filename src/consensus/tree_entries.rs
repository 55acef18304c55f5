//! How log entries lie in the tree: under which keys, and what the values hold.
//!
//! Keys are `e | index (8) | chunk (4)`, big endian. An entry that is larger than a value may be is cut into chunks. Chunk 0 is
//! written last, and its value begins with the number of chunks (4); the others without it are leftovers of an unfinished write.
//!
//! Small entries that follow one another lie together in one value, a *run*, under the key of the first: each value costs the tree
//! more than such an entry does. It begins with the number of entries and a mark (4), and each follows behind its length (4).

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Largest chunk or run. 17 values and their keys stay below 128 KiB, with as much again to spare: see `engine_sled`.
pub const CHUNK: usize = 4096;
/// Largest entry that goes into a run: so four of them do.
const SMALL: usize = 1000;
/// Set in the first number of a value that is a run.
const RUN: u32 = 1 << 31;

pub fn entry_key(index: u64, chunk: u32) -> [u8; 13] {
    let mut key = [b'e'; 13];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// Behind the keys of all entries.
pub fn entries_end() -> [u8; 13] {
    let mut end = [0; 13];
    end[0] = b'e' + 1;
    end
}

/// Index and chunk; none: it is no key of an entry.
pub fn split_entry_key(key: &[u8]) -> Option<(u64, u32)> {
    let (index, chunk) = key.strip_prefix(b"e")?.split_first_chunk::<8>()?;
    Some((
        u64::from_be_bytes(*index),
        u32::from_be_bytes(chunk.try_into().ok()?),
    ))
}

/// Entries by their indexes, in ascending order.
pub type Entries<'a> = Vec<(u64, &'a [u8])>;

/// A run that is being put together; empty: of none yet.
#[derive(Debug, Default)]
pub struct Run {
    first: u64,
    count: u32,
    body: BytesMut,
}

impl Run {
    /// Whether an entry goes into a run at all.
    pub fn is_for(record: &Bytes) -> bool {
        record.len() <= SMALL
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the entry may be the next of this run.
    pub fn takes(&self, index: u64, record: &Bytes) -> bool {
        let follows = self.is_empty() || index == self.first.saturating_add(self.count.into());
        follows && Self::is_for(record) && self.body.len() + record.len() + 8 <= CHUNK
    }

    /// Adds an entry that it takes.
    pub fn push(&mut self, index: u64, record: &[u8]) {
        if self.is_empty() {
            self.first = index;
        }
        self.count += 1;
        self.body
            .put_u32(u32::try_from(record.len()).unwrap_or(u32::MAX));
        self.body.put_slice(record);
    }

    /// Where it lies, and its value. It is empty afterwards.
    pub fn take(&mut self) -> ([u8; 13], BytesMut) {
        let mut value = BytesMut::with_capacity(4 + self.body.len());
        value.put_u32(RUN | self.count);
        value.put_slice(&self.body);
        let key = entry_key(self.first, 0);
        self.body.clear();
        self.count = 0;
        (key, value)
    }
}

/// The entries of a value with chunk 0 of entry `first`; none when it is no run.
///
/// # Errors
/// When it is not what `Run` made.
pub fn entries_of_run(first: u64, value: &[u8]) -> Option<Result<Entries<'_>, String>> {
    let (head, mut rest) = value.split_first_chunk::<4>()?;
    let head = u32::from_be_bytes(*head);
    if head & RUN == 0 {
        return None;
    }
    let mut entry = |at: u32| {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (record, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some((first.checked_add(at.into())?, record))
    };
    let entries: Option<Entries<'_>> = (0..head & !RUN).map(&mut entry).collect();
    let entries = entries.filter(|_| rest.is_empty());
    Some(entries.ok_or_else(|| format!("the entries from {first} on cannot be told apart")))
}

/// Puts the entries of a range together again from their values, which come in ascending order of their keys.
#[derive(Debug)]
pub struct Assembly {
    range: Range<u64>,
    max_bytes: usize,
    done: Vec<(u64, Bytes)>,
    bytes: usize,
    open: Option<Open>,
}

/// An entry of which some chunks have been seen.
#[derive(Debug)]
struct Open {
    index: u64,
    count: u32,
    seen: u32,
    bytes: BytesMut,
}

impl Assembly {
    /// Of `range`: at least one entry if there is one, then until `max_bytes` are passed.
    pub fn new(range: Range<u64>, max_bytes: usize) -> Self {
        Self {
            range,
            max_bytes,
            done: Vec::new(),
            bytes: 0,
            open: None,
        }
    }

    /// Whether no further value is wanted but chunks of the entry that is open.
    pub fn is_full(&self) -> bool {
        self.bytes > self.max_bytes
    }

    pub fn add(&mut self, index: u64, chunk: u32, mut value: &[u8]) -> Result<(), String> {
        if chunk == 0 {
            self.close()?;
            if let Some(entries) = entries_of_run(index, value) {
                self.add_run(entries?);
                return Ok(());
            }
            if !self.range.contains(&index) {
                return Ok(()); // Whoever looks for a run begins before the first that is wanted.
            }
            if value.len() < 4 {
                return Err(format!("entry {index} is cut off"));
            }
            let count = value.get_u32();
            self.open = Some(Open {
                index,
                count,
                seen: 0,
                bytes: BytesMut::with_capacity(value.len()),
            });
        }
        let Some(open) = self.open.as_mut().filter(|open| open.index == index) else {
            return Ok(()); // A leftover without its first chunk.
        };
        if chunk >= open.count {
            return Ok(()); // A leftover of a longer record.
        }
        if chunk != open.seen {
            return Err(format!("part {} of entry {index} is missing", open.seen));
        }
        open.seen += 1;
        open.bytes.extend_from_slice(value);
        self.bytes += value.len();
        Ok(())
    }

    fn add_run(&mut self, entries: Entries<'_>) {
        for (index, record) in entries {
            if self.is_wanted(index) && !self.is_full() {
                self.bytes += record.len();
                self.done.push((index, Bytes::copy_from_slice(record)));
            }
        }
    }

    /// A purge that was interrupted left the end of a run twice.
    fn is_wanted(&self, index: u64) -> bool {
        let is_new = self.done.last().is_none_or(|(last, _)| index > *last);
        is_new && self.range.contains(&index)
    }

    fn close(&mut self) -> Result<(), String> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.seen != open.count {
            return Err(format!(
                "part {} of entry {} is missing",
                open.seen, open.index
            ));
        }
        if self.is_wanted(open.index) {
            self.done.push((open.index, open.bytes.freeze()));
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<Vec<(u64, Bytes)>, String> {
        self.close()?;
        Ok(self.done)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_run_is_taken_apart_as_it_was_put_together(
            first in 0u64..u64::MAX - 100,
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..SMALL), 1..20),
        ) {
            let mut run = Run::default();
            let mut taken = 0;
            for (index, record) in (first..).zip(&records) {
                if !run.takes(index, &Bytes::copy_from_slice(record)) {
                    break;
                }
                run.push(index, record);
                taken += 1;
            }
            prop_assert!(taken >= records.len().min(4));
            prop_assert!(!run.takes(first, &Bytes::new()), "it does not follow");
            let (key, value) = run.take();
            prop_assert!(run.is_empty() && value.len() <= CHUNK);
            prop_assert_eq!(split_entry_key(&key), Some((first, 0)));
            let found = entries_of_run(first, &value).unwrap().unwrap();
            let expected: Vec<_> = (first..).zip(records.iter().map(Vec::as_slice)).take(taken).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn garbage_is_an_error_or_no_run_and_no_panic(first: u64, value in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(Ok(entries)) = entries_of_run(first, &value) {
                prop_assert!(entries.len() <= value.len());
            }
            let mut assembly = Assembly::new(0..u64::MAX, usize::MAX);
            let _ = assembly.add(first, 0, &value).and_then(|()| assembly.finish());
        }
    }

    #[test]
    fn a_number_of_entries_that_cannot_be_there_asks_for_no_memory() {
        let value = (RUN | 0x7fff_ffff).to_be_bytes();
        assert!(entries_of_run(1, &value).unwrap().is_err());
    }
}
