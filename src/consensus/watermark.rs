//! What this node has voted and shown, kept apart from the log.
//!
//! A log whose end is garbled looks like one that ends earlier: an append-only store takes the garbled part for a write
//! that power loss interrupted. A node that votes again in a term, or misses entries it acknowledged, breaks the cluster.
//! This small file holds a lower bound of both, so that such a log is refused at start. It must therefore be there whenever
//! the log holds anything: without it nobody knows what the log should hold, and the start is refused as well.
//!
//! Two slots are written in turn, each with its own checksum: power loss during a write leaves the other one. A start writes
//! both, so one slot that is not whole is either that write or one of two copies. The vote is recorded at once, after the log
//! has it; the published log id lazily, as one barrier per write is dear.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    record::{self, Identity},
    types::{LogId, Vote},
};
use crate::defect::{self, Defect};

/// Far enough apart that no disk writes both at once.
const SLOT: u64 = 4096;

/// What the log must hold at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watermark {
    pub vote: Option<Vote>,
    /// The last log id whose state the servers were given. It was committed, and durable here.
    pub published: Option<LogId>,
}

/// What was found where the file belongs.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// No file, or one that nothing was ever written to.
    Missing,
    /// A file of which no slot is whole.
    Garbled,
    Whole {
        sequence: u64,
        watermark: Watermark,
        /// The other slot is whole too.
        both: bool,
    },
}

impl Found {
    /// Looks, and changes nothing.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::Missing),
            Err(e) => return Err(e),
        };
        let slots = [read_slot(&file, 0)?, read_slot(&file, 1)?];
        let both = slots.iter().all(Option::is_some);
        let newest = slots.into_iter().flatten().max_by_key(|slot| slot.0);
        Ok(match newest {
            Some((sequence, watermark)) => Self::Whole {
                sequence,
                watermark,
                both,
            },
            None if file.metadata()?.len() == 0 => Self::Missing,
            None => Self::Garbled,
        })
    }

    /// What the log must hold; the error says why nobody knows.
    pub fn watermark(&self) -> Result<&Watermark, &'static str> {
        match self {
            Self::Whole { watermark, .. } => Ok(watermark),
            Self::Missing => Err("missing"),
            Self::Garbled => Err("garbled"),
        }
    }
}

/// The file.
pub struct WatermarkFile {
    path: PathBuf,
    file: File,
    sequence: u64,
    current: Watermark,
}

impl WatermarkFile {
    /// Goes on from what was found, or begins anew where nothing was. Both slots are whole afterwards, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn go_on(path: &Path, found: &Found) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let (sequence, current, both) = match found {
            Found::Whole {
                sequence,
                watermark,
                both,
            } => (*sequence, watermark.clone(), *both),
            Found::Missing | Found::Garbled => (0, Watermark::default(), false),
        };
        let mut opened = Self {
            path: path.to_owned(),
            file: options.open(path)?,
            sequence,
            current: current.clone(),
        };
        if !both {
            opened.write(current.clone())?;
            opened.write(current)?;
            opened.file.sync_all()?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok(opened)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn current(&self) -> &Watermark {
        &self.current
    }

    /// Durable on return.
    pub fn write(&mut self, watermark: Watermark) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = sequence % 2;
        let sealed = record::seal(Identity::Watermark(slot), &(sequence, &watermark))
            .map_err(io::Error::other)?;
        let length = u16::try_from(sealed.len()).map_err(io::Error::other)?;
        let bytes = [&length.to_le_bytes()[..], &sealed].concat();
        self.file.write_all_at(&bytes, slot * SLOT)?;
        if !defect::is(Defect::BarrierWithoutFsync) {
            self.file.sync_data()?;
        }
        self.sequence = sequence;
        self.current = watermark;
        Ok(())
    }
}

/// A slot that holds nothing whole counts as empty: it was being written when the power went.
fn read_slot(file: &File, slot: u64) -> io::Result<Option<(u64, Watermark)>> {
    let mut bytes = vec![0; SLOT as usize];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, slot * SLOT + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return Ok(None);
    };
    let sealed = rest.get(..usize::from(u16::from_le_bytes(*length)));
    Ok(sealed.and_then(|sealed| record::open(Identity::Watermark(slot), sealed).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::vote::RaftLeaderId;

    fn watermark(index: u64) -> Watermark {
        Watermark {
            vote: None,
            published: Some(log_id(index)),
        }
    }

    fn log_id(index: u64) -> LogId {
        let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64>::new(1, 1);
        LogId::new(leader.to_committed(), index)
    }

    fn open(path: &Path) -> WatermarkFile {
        WatermarkFile::go_on(path, &Found::read(path).unwrap()).unwrap()
    }

    #[test]
    fn the_last_one_written_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        assert_eq!(Found::read(&path).unwrap(), Found::Missing);
        let mut file = open(&path);
        for index in 0..5 {
            file.write(watermark(index)).unwrap();
            let found = Found::read(&path).unwrap();
            assert_eq!(found.watermark(), Ok(&watermark(index)));
            assert!(matches!(found, Found::Whole { both: true, .. }));
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before_and_is_made_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let mut file = open(&path);
        file.write(watermark(1)).unwrap();
        file.write(watermark(2)).unwrap();
        let slot = file.sequence % 2;
        file.file.write_all_at(b"garbage", slot * SLOT + 8).unwrap();
        let found = Found::read(&path).unwrap();
        assert_eq!(found.watermark(), Ok(&watermark(1)));
        assert!(matches!(found, Found::Whole { both: false, .. }));

        let mut file = open(&path);
        let found = Found::read(&path).unwrap();
        assert_eq!(found.watermark(), Ok(&watermark(1)));
        assert!(matches!(found, Found::Whole { both: true, .. }));
        file.write(watermark(3)).unwrap();
        assert_eq!(Found::read(&path).unwrap().watermark(), Ok(&watermark(3)));
    }

    #[test]
    fn a_file_without_a_whole_slot_is_garbled_unless_it_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        drop(open(&path));
        let whole = std::fs::read(&path).unwrap();
        for (bytes, expected) in [
            (vec![], Found::Missing),
            (vec![0; whole.len()], Found::Garbled),
            (vec![0xff; 3], Found::Garbled),
            (whole.iter().map(|byte| !byte).collect(), Found::Garbled),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(Found::read(&path).unwrap(), expected);
        }
    }
}
