//! A file in front of the log's tree: what is to be durable is written here first, in one piece and with one wait for the disk.
//!
//! The file has its size from the beginning and is written again from its start when the tree has everything in it. So a write
//! changes nothing of the file but its contents, and `fdatasync` has nothing else to make known (a write-ahead log; C. Mohan et al.,
//! ARIES, 1992, redo only).
//!
//! Each time from start to end is a *generation*. The tree tells, durably, how many of them are wholly in it; the records of the
//! next one are what it may lack. Doing them again is harmless: they are all there, and the last one that touches a key decides.
//!
//! The first 512 octets are the file's own: `magic (4) | crc32c of the number (4) | number (16)`. The number is drawn when the file
//! is made, and stands in every record too: whoever writes entries does not know it, so nothing in an entry can be taken for
//! a record, wherever in the file an earlier generation has left it.
//!
//! A record begins at a multiple of 512 octets, so that no sector is written twice while it matters:
//! `magic (4) | length of the body (4) | generation (8) | number in it (4) | crc32c (4) | the file's number (16) | body`, little
//! endian. The body is a list of operations. A record that is not whole ends the generation: nobody was told that it is durable.
//! If whole ones follow it, it was whole once, and the file is corrupt.

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
const FILE_MAGIC: u32 = u32::from_le_bytes(*b"pjf2");
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"pjr2");
/// What a record began with when the file had no number; the first of them lay at its start.
const MAGIC_WITHOUT_NUMBER: u32 = u32::from_le_bytes(*b"pjr1");
const HEADER: usize = 40;

/// The number of a file: what tells its records from everything else.
type Number = [u8; 16];

/// The file, and where the next record goes.
#[derive(Debug)]
pub struct Journal {
    file: File,
    number: Number,
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
    #[error(
        "its journal is of an earlier form, which this program does not read: start the program that wrote it, or remove this \
         node from the cluster, empty its data directory and join anew"
    )]
    Form,
}

impl Journal {
    /// Opens the journal of a tree that has all generations before `generation`.
    pub fn open(path: &Path, generation: u64) -> Result<Found, JournalError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        if length < SIZE {
            let problem = format!("the journal has {length} octets instead of {SIZE}");
            return Err(JournalError::Corrupt(problem));
        }
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let number = number_of(&bytes)?;
        let Read {
            operations,
            count,
            end,
        } = read(&bytes, number, generation).map_err(JournalError::Corrupt)?;
        let at = end as u64;
        let journal = Self {
            file,
            number,
            generation,
            count,
            at,
        };
        Ok(Found {
            journal,
            operations,
        })
    }

    /// Makes the journal of a tree that has none yet. Whoever makes the file makes its name durable too.
    ///
    /// # Errors
    /// Also when there is one: it is that of a tree which is gone, and what is in it may be asked for yet.
    pub fn make(path: &Path, generation: u64, number: u128) -> Result<Found, JournalError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = options.open(path)?;
        let number = number.to_le_bytes();
        let mut bytes = file_header(number);
        bytes.resize(usize::try_from(SIZE).unwrap_or(0), 0);
        file.write_all_at(&bytes, 0)?;
        file.sync_all()?;
        let journal = Self {
            file,
            number,
            generation,
            count: 0,
            at: SECTOR as u64,
        };
        Ok(Found {
            journal,
            operations: vec![],
        })
    }

    /// Whether a record with a body of this size still goes into this generation.
    pub fn has_room(&self, body: usize) -> bool {
        self.at + sectors(HEADER + body) as u64 <= SIZE
    }

    /// Nothing was written since the generation began.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Writes a record. `is_durable`: waits until the disk has it.
    pub fn append(&mut self, body: &[u8], is_durable: bool) -> io::Result<()> {
        let record = frame(self.number, self.generation, self.count, body);
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
        self.at = SECTOR as u64;
    }
}

fn sectors(length: usize) -> usize {
    length.div_ceil(SECTOR) * SECTOR
}

fn file_header(number: Number) -> BytesMut {
    let mut header = BytesMut::with_capacity(SECTOR);
    header.put_u32_le(FILE_MAGIC);
    header.put_u32_le(crc32c::crc32c(&number));
    header.put_slice(&number);
    header.resize(SECTOR, 0);
    header
}

/// The number in the header of a file.
fn number_of(mut file: &[u8]) -> Result<Number, JournalError> {
    let garbled = || JournalError::Corrupt("the header of the journal is garbled".to_owned());
    let magic = file.try_get_u32_le().map_err(|_| garbled())?;
    let sum = file.try_get_u32_le().map_err(|_| garbled())?;
    let (number, _) = file.split_first_chunk().ok_or_else(garbled)?;
    match magic {
        FILE_MAGIC if crc32c::crc32c(number) == sum => Ok(*number),
        MAGIC_WITHOUT_NUMBER => Err(JournalError::Form),
        _ => Err(garbled()),
    }
}

fn frame(file: Number, generation: u64, number: u32, body: &[u8]) -> BytesMut {
    let mut record = BytesMut::with_capacity(sectors(HEADER + body.len()));
    record.put_u32_le(RECORD_MAGIC);
    record.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    record.put_u64_le(generation);
    record.put_u32_le(number);
    record.put_u32_le(checksum(file, generation, number, body));
    record.put_slice(&file);
    record.put_slice(body);
    record
}

fn checksum(file: Number, generation: u64, number: u32, body: &[u8]) -> u32 {
    let head = crc32c::crc32c(&file);
    let head = crc32c::crc32c_append(head, &generation.to_le_bytes());
    let head = crc32c::crc32c_append(head, &number.to_le_bytes());
    crc32c::crc32c_append(head, body)
}

/// The records of one generation.
#[derive(Debug)]
struct Read {
    operations: Vec<Operation>,
    count: u32,
    end: usize,
}

fn read(bytes: &[u8], file: Number, generation: u64) -> Result<Read, String> {
    let mut read = Read {
        operations: vec![],
        count: 0,
        end: SECTOR,
    };
    while let Some(body) = record_at(bytes, read.end, file, generation, Some(read.count)) {
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
    match rest.find(|at| record_at(bytes, *at, file, generation, None).is_some()) {
        None => Ok(read),
        Some(at) => Err(format!(
            "record {} of the journal is garbled: one that was written after it is whole at {at}",
            read.count
        )),
    }
}

/// The body of a whole record of this file and generation, and with this number if one is given.
fn record_at(
    bytes: &[u8],
    at: usize,
    file: Number,
    generation: u64,
    number: Option<u32>,
) -> Option<&[u8]> {
    let (mut header, rest) = bytes.get(at..)?.split_at_checked(HEADER)?;
    let magic = header.get_u32_le();
    let length = usize::try_from(header.get_u32_le()).ok()?;
    let of = header.get_u64_le();
    let found = header.get_u32_le();
    let sum = header.get_u32_le();
    let is_ours = magic == RECORD_MAGIC && header == file && of == generation;
    let is_wanted = is_ours && number.is_none_or(|n| n == found);
    let body = rest.get(..length).filter(|_| is_wanted)?;
    (checksum(file, of, found, body) == sum).then_some(body)
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

    const FILE: Number = [7; 16];

    fn open(path: &Path, generation: u64) -> Found {
        Journal::open(path, generation).unwrap()
    }

    fn make(path: &Path, generation: u64) -> Journal {
        let made = Journal::make(path, generation, u128::from_le_bytes(FILE)).unwrap();
        assert_eq!(made.operations, []);
        made.journal
    }

    /// An operation whose payload makes a record where its second sector begins: of this file, generation and number, if
    /// whoever wrote it knew them.
    fn forged(file: Number, generation: u64, number: u32) -> Operation {
        let mut record = frame(file, generation, number, &encode(&[put("forged")]));
        record.resize(SECTOR, 0);
        // Before the payload: the header, and what `encode` writes of an entry.
        let before = HEADER + 1 + 8 + 4;
        let mut payload = vec![0; SECTOR - before];
        payload.extend_from_slice(&record);
        Operation::Append {
            index: 1,
            record: payload.into(),
        }
    }

    #[test]
    fn what_was_written_is_found_until_the_tree_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = make(&path, 4);
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
    fn a_file_that_is_missing_short_garbled_or_of_an_earlier_form_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(matches!(
            Journal::open(&path, 1),
            Err(JournalError::Io(e)) if e.kind() == io::ErrorKind::NotFound
        ));
        drop(make(&path, 1));
        let whole = std::fs::read(&path).unwrap();
        let mut without_number = b"pjr1".to_vec();
        without_number.resize(whole.len(), 0);
        let mut other_number = whole.clone();
        other_number[9] ^= 1;
        for (bytes, told) in [
            (b"short".to_vec(), "has 5 octets"),
            (vec![0; whole.len()], "header of the journal is garbled"),
            (other_number, "header of the journal is garbled"),
            (without_number, "of an earlier form"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Journal::open(&path, 1).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    /// What an entry holds is not done again as if it were a record: neither where a torn record ends, nor where an earlier
    /// generation left it.
    #[test]
    fn a_payload_cannot_pass_for_a_record() {
        let dir = tempfile::tempdir().unwrap();
        let honest = put("honest");
        // Whether the writer of the entry knows the file's number.
        for knows in [false, true] {
            let file = if knows { FILE } else { [8; 16] };
            let path = dir.path().join(format!("journal {knows}"));
            let mut journal = make(&path, 4);
            journal
                .append(&encode(&[forged(file, 5, 1)]), true)
                .unwrap();
            journal.restart();
            let operations = std::slice::from_ref(&honest);
            journal.append(&encode(operations), true).unwrap();
            let found = open(&path, 5).operations;
            let forged_too = [honest.clone(), put("forged")];
            match knows {
                false => assert_eq!(found, operations),
                // The test would find it.
                true => assert_eq!(found, forged_too),
            }

            std::fs::remove_file(&path).unwrap();
            let mut journal = make(&path, 4);
            journal
                .append(&encode(&[forged(file, 4, 1)]), true)
                .unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[SECTOR + HEADER] ^= 1;
            let read = read(&bytes, FILE, 4);
            match knows {
                false => assert_eq!(read.unwrap().operations, []),
                true => assert!(read.is_err()),
            }
        }
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
            let mut at = SECTOR;
            for (number, operations) in records.iter().enumerate() {
                let record = frame(FILE, 9, u32::try_from(number).unwrap(), &encode(operations));
                bytes[at..at + record.len()].copy_from_slice(&record);
                ends.push((at, at + record.len()));
                at += sectors(record.len());
            }
            prop_assert_eq!(read(&bytes, FILE, 9).unwrap().operations, records.concat());

            let chosen = torn.index(records.len());
            let (from, to) = ends[chosen];
            let mut garbled = bytes.clone();
            let place = bit.index((to - from) * 8);
            garbled[from + place / 8] ^= 1 << (place % 8);
            match read(&garbled, FILE, 9) {
                Ok(read) => {
                    prop_assert_eq!(chosen, records.len() - 1);
                    prop_assert_eq!(read.operations, records[..chosen].concat());
                }
                Err(problem) => prop_assert!(problem.contains(&format!("record {chosen} ")), "{problem}"),
            }

            let kept = from + place / 8;
            bytes[kept] ^= 1;
            bytes[kept + 1..].fill(0);
            prop_assert_eq!(read(&bytes, FILE, 9).unwrap().operations, records[..chosen].concat());
        }

        #[test]
        fn garbage_is_no_journal_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let read = read(&bytes, FILE, 1).unwrap();
            prop_assert_eq!(read.count, 0);
            let _ = decode(&bytes);
            let _ = number_of(&bytes);
        }
    }
}
