//! A file in front of the log's tree: what is to be durable is written here first, in one piece and with one wait for the disk.
//!
//! The file has its size from the beginning and is written again from its start when the tree has everything in it. So a write
//! changes nothing of the file but its contents, and `fdatasync` has nothing else to make known (a write-ahead log; C. Mohan et al.,
//! ARIES, 1992, redo only).
//!
//! Each time from start to end is a *generation*. The tree tells, durably, how many of them are wholly in it; the records of the
//! next one are what it may lack. Doing them again is harmless: they are all there, and the last one that touches a key decides.
//!
//! A record begins at a multiple of 512 octets, so that no sector is written twice while it matters:
//! `magic (4) | length of the body (4) | generation (8) | number in it (4) | crc32c (4) | body`, little endian. The body is a list of
//! operations. A record that is not whole ends the generation: nobody was told that it is durable. If whole ones follow it, it was
//! whole once, and the file is corrupt.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::engine::{MetadataKey, Operation};

/// Size of the file.
pub const SIZE: u64 = 1024 * 1024;
/// Largest record. What is larger goes into the tree at once.
pub const LARGEST: usize = 256 * 1024;
const SECTOR: usize = 512;
const MAGIC: u32 = u32::from_le_bytes(*b"pjr1");
const HEADER: usize = 24;

/// The file, and where the next record goes.
#[derive(Debug)]
pub struct Journal {
    file: File,
    generation: u64,
    /// Records of this generation.
    count: u32,
    at: u64,
}

/// A journal that was found.
#[derive(Debug)]
pub struct Found {
    pub journal: Journal,
    /// What the tree may lack, in order.
    pub operations: Vec<Operation>,
}

/// What is in the file is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Corrupt(String),
}

impl Journal {
    /// Opens the journal of a tree that has all generations before `generation`, or makes one. `is_new`: there may be none yet. Whoever
    /// makes the file makes its name durable too.
    pub fn open(path: &Path, generation: u64, is_new: bool) -> Result<Found, JournalError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_new => {
                options.create(true).truncate(false).open(path)?
            }
            opened => opened?,
        };
        let length = file.metadata()?.len();
        if length < SIZE {
            if !is_new {
                let problem = format!("the journal has {length} octets instead of {SIZE}");
                return Err(JournalError::Corrupt(problem));
            }
            file.write_all_at(&vec![0; usize::try_from(SIZE).unwrap_or(0)], 0)?;
            file.sync_all()?;
        }
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let read = read(&bytes, generation).map_err(JournalError::Corrupt)?;
        let journal = Self {
            file,
            generation,
            count: read.count,
            at: read.end as u64,
        };
        let operations = read.operations;
        Ok(Found {
            journal,
            operations,
        })
    }

    /// Whether a record with a body of this size still goes into this generation.
    pub fn has_room(&self, body: usize) -> bool {
        self.at + sectors(HEADER + body) as u64 <= SIZE
    }

    /// Nothing was written since the generation began.
    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes a record. `is_durable`: waits until the disk has it.
    pub fn append(&mut self, body: &[u8], is_durable: bool) -> io::Result<()> {
        let record = frame(self.generation, self.count, body);
        self.file.write_all_at(&record, self.at)?;
        if is_durable {
            self.file.sync_data()?;
        }
        self.at += sectors(record.len()) as u64;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    /// The tree has all of this generation, durably.
    pub fn restart(&mut self) {
        self.generation += 1;
        self.count = 0;
        self.at = 0;
    }
}

fn sectors(length: usize) -> usize {
    length.div_ceil(SECTOR) * SECTOR
}

fn frame(generation: u64, number: u32, body: &[u8]) -> BytesMut {
    let mut record = BytesMut::with_capacity(sectors(HEADER + body.len()));
    record.put_u32_le(MAGIC);
    record.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    record.put_u64_le(generation);
    record.put_u32_le(number);
    record.put_u32_le(checksum(generation, number, body));
    record.put_slice(body);
    record
}

fn checksum(generation: u64, number: u32, body: &[u8]) -> u32 {
    let head = crc32c::crc32c(&generation.to_le_bytes());
    let head = crc32c::crc32c_append(head, &number.to_le_bytes());
    crc32c::crc32c_append(head, body)
}

/// The records of one generation.
#[derive(Debug, Default)]
struct Read {
    operations: Vec<Operation>,
    count: u32,
    end: usize,
}

fn read(bytes: &[u8], generation: u64) -> Result<Read, String> {
    let mut read = Read::default();
    while let Some(body) = record_at(bytes, read.end, generation, Some(read.count)) {
        let operations = decode(body).ok_or_else(|| {
            format!(
                "record {} of the journal cannot be read: it is of a newer program",
                read.count
            )
        })?;
        read.operations.extend(operations);
        read.count += 1;
        read.end += sectors(HEADER + body.len());
    }
    let mut rest = (read.end..bytes.len()).step_by(SECTOR);
    match rest.find(|at| record_at(bytes, *at, generation, None).is_some()) {
        None => Ok(read),
        Some(at) => Err(format!(
            "record {} of the journal is garbled: one that was written after it is whole at {at}",
            read.count
        )),
    }
}

/// The body of a whole record of this generation, and with this number if one is given.
fn record_at(bytes: &[u8], at: usize, generation: u64, number: Option<u32>) -> Option<&[u8]> {
    let (mut header, rest) = bytes.get(at..)?.split_at_checked(HEADER)?;
    let magic = header.get_u32_le();
    let length = usize::try_from(header.get_u32_le()).ok()?;
    let of = header.get_u64_le();
    let found = header.get_u32_le();
    let sum = header.get_u32_le();
    let is_ours = magic == MAGIC && of == generation && number.is_none_or(|n| n == found);
    let body = rest.get(..length).filter(|_| is_ours)?;
    (checksum(of, found, body) == sum).then_some(body)
}

const APPEND: u8 = 1;
const TRUNCATE: u8 = 2;
const PURGE: u8 = 3;
const PUT: u8 = 4;

/// Operations as the body of a record.
pub fn encode(operations: &[Operation]) -> BytesMut {
    let mut body = BytesMut::with_capacity(operations.iter().map(Operation::size).sum());
    for operation in operations {
        match operation {
            Operation::Append { index, record } => {
                body.put_u8(APPEND);
                body.put_u64_le(*index);
                put_bytes(&mut body, record);
            }
            Operation::Truncate { from } => {
                body.put_u8(TRUNCATE);
                body.put_u64_le(*from);
            }
            Operation::Purge { through } => {
                body.put_u8(PURGE);
                body.put_u64_le(*through);
            }
            Operation::Put { key, record } => {
                body.put_u8(PUT);
                body.put_u8(*key as u8);
                put_bytes(&mut body, record);
            }
        }
    }
    body
}

fn put_bytes(body: &mut BytesMut, bytes: &Bytes) {
    // A record is smaller than that.
    body.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    body.put_slice(bytes);
}

/// None: it is of another form.
fn decode(mut body: &[u8]) -> Option<Vec<Operation>> {
    let mut operations = vec![];
    while body.has_remaining() {
        let operation = match body.try_get_u8().ok()? {
            APPEND => Operation::Append {
                index: body.try_get_u64_le().ok()?,
                record: take_bytes(&mut body)?,
            },
            TRUNCATE => Operation::Truncate {
                from: body.try_get_u64_le().ok()?,
            },
            PURGE => Operation::Purge {
                through: body.try_get_u64_le().ok()?,
            },
            PUT => Operation::Put {
                key: MetadataKey::of(body.try_get_u8().ok()?)?,
                record: take_bytes(&mut body)?,
            },
            _ => return None,
        };
        operations.push(operation);
    }
    Some(operations)
}

fn take_bytes(body: &mut &[u8]) -> Option<Bytes> {
    let length = usize::try_from(body.try_get_u32_le().ok()?).ok()?;
    let (bytes, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some(Bytes::copy_from_slice(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_operation() -> impl Strategy<Value = Operation> {
        let record = || prop::collection::vec(any::<u8>(), 0..1500).prop_map(Bytes::from);
        let keys = [
            MetadataKey::Vote,
            MetadataKey::Committed,
            MetadataKey::Purged,
        ];
        prop_oneof![
            (any::<u64>(), record())
                .prop_map(|(index, record)| Operation::Append { index, record }),
            any::<u64>().prop_map(|from| Operation::Truncate { from }),
            any::<u64>().prop_map(|through| Operation::Purge { through }),
            (prop::sample::select(keys.to_vec()), record())
                .prop_map(|(key, record)| Operation::Put { key, record }),
        ]
    }

    fn put(text: &str) -> Operation {
        Operation::Put {
            key: MetadataKey::Vote,
            record: Bytes::copy_from_slice(text.as_bytes()),
        }
    }

    fn open(path: &Path, generation: u64) -> Found {
        Journal::open(path, generation, true).unwrap()
    }

    #[test]
    fn what_was_written_is_found_until_the_tree_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = open(&path, 4).journal;
        assert!(journal.is_empty());
        for text in ["a", "b", "c"] {
            journal.append(&encode(&[put(text)]), true).unwrap();
        }
        assert_eq!(open(&path, 4).operations, [put("a"), put("b"), put("c")]);
        assert_eq!(open(&path, 5).operations, []);

        // Written again from the start: what is left of the generation before does not count.
        journal.restart();
        journal.append(&encode(&[put("d")]), true).unwrap();
        let mut found = open(&path, 5);
        assert_eq!(found.operations, [put("d")]);
        found.journal.append(&encode(&[put("e")]), true).unwrap();
        assert_eq!(open(&path, 5).operations, [put("d"), put("e")]);
    }

    #[test]
    fn a_file_that_is_missing_or_too_short_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(matches!(
            Journal::open(&path, 1, false),
            Err(JournalError::Io(e)) if e.kind() == io::ErrorKind::NotFound
        ));
        std::fs::write(&path, "short").unwrap();
        let error = Journal::open(&path, 1, false).unwrap_err().to_string();
        assert!(error.contains("has 5 octets"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A write that was cut off takes nothing with it but itself; one that was garbled later is told, or was the last.
        #[test]
        fn a_torn_record_ends_the_journal_and_a_garbled_one_is_told(
            records in prop::collection::vec(prop::collection::vec(any_operation(), 1..4), 1..8),
            torn in any::<prop::sample::Index>(),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
            let mut ends = vec![];
            let mut at = 0;
            for (number, operations) in records.iter().enumerate() {
                let record = frame(9, u32::try_from(number).unwrap(), &encode(operations));
                bytes[at..at + record.len()].copy_from_slice(&record);
                ends.push((at, at + record.len()));
                at += sectors(record.len());
            }
            prop_assert_eq!(read(&bytes, 9).unwrap().operations, records.concat());

            let chosen = torn.index(records.len());
            let (from, to) = ends[chosen];
            let mut garbled = bytes.clone();
            let place = bit.index((to - from) * 8);
            garbled[from + place / 8] ^= 1 << (place % 8);
            match read(&garbled, 9) {
                Ok(read) => {
                    prop_assert_eq!(chosen, records.len() - 1);
                    prop_assert_eq!(read.operations, records[..chosen].concat());
                }
                Err(problem) => prop_assert!(problem.contains(&format!("record {chosen} ")), "{problem}"),
            }

            let kept = from + place / 8;
            bytes[kept] ^= 1;
            bytes[kept + 1..].fill(0);
            prop_assert_eq!(read(&bytes, 9).unwrap().operations, records[..chosen].concat());
        }

        #[test]
        fn garbage_is_no_journal_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let read = read(&bytes, 1).unwrap();
            prop_assert_eq!(read.count, 0);
            let _ = decode(&bytes);
        }
    }
}
