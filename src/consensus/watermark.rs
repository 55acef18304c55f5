//! What this node has voted and shown, kept apart from the log.
//!
//! A log whose end is garbled looks like one that ends earlier: an append-only store takes the garbled part for a write
//! that power loss interrupted. A node that votes again in a term, or misses entries it acknowledged, breaks the cluster.
//! This small file holds a lower bound of both, so that such a log is refused at start.
//!
//! Two slots are written in turn, each with its own checksum: power loss during a write leaves the other one. The vote is
//! recorded at once, after the log has it; the published log id lazily, as one barrier per write is dear.

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

/// The file.
pub struct WatermarkFile {
    path: PathBuf,
    file: File,
    sequence: u64,
    current: Watermark,
}

impl WatermarkFile {
    /// Opens or makes the file; the second value is what it held, if it was there.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Watermark>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let found = newest(&file)?;
        let (sequence, current) = found.clone().unwrap_or_default();
        let mut opened = Self {
            path: path.to_owned(),
            file,
            sequence,
            current: current.clone(),
        };
        if found.is_none() {
            opened.write(current)?;
            opened.file.sync_all()?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
        }
        Ok((opened, found.map(|(_, watermark)| watermark)))
    }

    /// What the file holds, if it is there; changes nothing.
    pub fn read(path: &Path) -> io::Result<Option<Watermark>> {
        match File::open(path) {
            Ok(file) => Ok(newest(&file)?.map(|(_, watermark)| watermark)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
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

fn newest(file: &File) -> io::Result<Option<(u64, Watermark)>> {
    let mut found: Option<(u64, Watermark)> = None;
    for slot in 0..2 {
        if let Some(read) = read_slot(file, slot)?
            && found.as_ref().is_none_or(|found| found.0 < read.0)
        {
            found = Some(read);
        }
    }
    Ok(found)
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

    #[test]
    fn the_last_one_written_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let (mut file, found) = WatermarkFile::open(&path).unwrap();
        assert_eq!(found, None);
        for index in 0..5 {
            file.write(watermark(index)).unwrap();
            let (_, found) = WatermarkFile::open(&path).unwrap();
            assert_eq!(found, Some(watermark(index)));
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        let (mut file, _) = WatermarkFile::open(&path).unwrap();
        file.write(watermark(1)).unwrap();
        file.write(watermark(2)).unwrap();
        let slot = file.sequence % 2;
        file.file.write_all_at(b"garbage", slot * SLOT + 8).unwrap();
        let (_, found) = WatermarkFile::open(&path).unwrap();
        assert_eq!(found, Some(watermark(1)));
    }
}
