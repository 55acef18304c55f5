//! Snapshots of the state as files: written whole or not at all, checked before use, two of them kept.
//!
//! `magic (8) | version (4) | length of meta (4) | meta | state, zstd | blake3 of all before (32)`, numbers little endian.
//! The same bytes travel to a follower. A file is written under another name, synced, renamed, and its directory synced;
//! then it is read back, and only then the oldest of three goes. A garbled newest one is set aside and the one before is
//! used: the log still reaches back to that. One that came from the leader has no log behind it, so it is kept twice.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    health,
    log_store::lock,
    types::{SnapshotData, SnapshotMeta},
};
use crate::{shortage::shortage, state::State};

const MAGIC: &[u8; 8] = b"PONTSNAP";
const VERSION: u32 = 1;
const HASH: usize = 32;
/// Fast: one core packs about 400 MB/s of state, and it is packed beside the answers.
const LEVEL: i32 = 1;
const KEPT: usize = 2;
const SUFFIX: &str = "snapshot";
const UNFINISHED: &str = "unfinished";
const GARBLED: &str = "garbled";

/// A snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the snapshot {name} is garbled: {problem}")]
    Garbled { name: String, problem: String },
    #[error(
        "a snapshot of {bytes} octets has no room in {}: {free} octets are free, of which {reserve} are to stay free",
        directory.display()
    )]
    NoRoom {
        directory: PathBuf,
        bytes: u64,
        free: u64,
        reserve: u64,
    },
}

/// The directory of snapshots. Clones are the same directory.
#[derive(Clone, Debug)]
pub struct SnapshotFiles(Arc<Files>);

#[derive(Debug)]
struct Files {
    directory: PathBuf,
    /// In the order they were made.
    kept: Mutex<Vec<Kept>>,
    /// Counts those that were opened, for their names.
    blanks: AtomicU64,
    floor: watch::Sender<Option<u64>>,
}

impl SnapshotError {
    /// Whether this node lacked files or memory for it: nothing is wrong with what there is, and a later try may do.
    pub(super) fn is_want(&self) -> bool {
        match self {
            Self::File { source, .. } => shortage(source).is_some(),
            Self::Garbled { .. } | Self::NoRoom { .. } => false,
        }
    }

    /// Whether the disk has no room for it.
    pub(super) fn is_no_room(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        match self {
            Self::File { source, .. } => full.contains(&source.kind()),
            Self::NoRoom { .. } => true,
            Self::Garbled { .. } => false,
        }
    }
}

/// What a snapshot is written to, open already, so that writing it cannot fail for want of files. Unless it becomes one, it is
/// removed when dropped.
#[derive(Debug)]
pub(super) struct Blank {
    file: File,
    path: PathBuf,
    directory: File,
}

impl Blank {
    /// Makes it the snapshot at `path`, on disk when this returns, and says what reads back. The rest of it must not be used.
    fn become_snapshot(&mut self, path: &Path, bytes: &[u8]) -> Result<Vec<u8>, SnapshotError> {
        let written = self
            .file
            .write_all(bytes)
            .and_then(|()| self.file.sync_all());
        written.map_err(|e| file_error("write", &self.path, e))?;
        fs::rename(&self.path, path).map_err(|e| file_error("rename to", path, e))?;
        let synced = self.directory.sync_all();
        synced.map_err(|e| file_error("sync the directory of", path, e))?;
        let mut back = Vec::with_capacity(bytes.len());
        let read = self
            .file
            .rewind()
            .and_then(|()| self.file.read_to_end(&mut back));
        read.map_err(|e| file_error("read", path, e))?;
        Ok(back)
    }
}

impl Drop for Blank {
    fn drop(&mut self) {
        // Not there if it has become a snapshot; what is left of it is removed at the next start at the latest.
        let _ = fs::remove_file(&self.path);
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// Index of the last entry it covers; none: it covers nothing.
    index: Option<u64>,
    sequence: u64,
    path: PathBuf,
}

/// What becomes of it that the newest of these is garbled.
fn instead_of_newest(kept: &[Kept]) -> &'static str {
    match kept.len() {
        0 | 1 => "there is none before it",
        _ => "the one before is used",
    }
}

/// A snapshot that was read and checked.
#[derive(Debug)]
pub struct Loaded {
    pub meta: SnapshotMeta,
    pub state: State,
}

impl SnapshotFiles {
    /// Opens the directory and loads the newest snapshot that is whole.
    pub fn open(directory: &Path) -> Result<(Self, Option<Loaded>), SnapshotError> {
        let making = |e| file_error("make", directory, e);
        fs::create_dir_all(directory).map_err(making)?;
        sync_directory(directory)?;
        sync_directory(directory.parent().unwrap_or(directory))?;
        let mut kept = list(directory)?;
        let mut loaded = None;
        while let Some(newest) = kept.last() {
            match load(&newest.path) {
                Ok(found) => {
                    loaded = Some(found);
                    break;
                }
                Err(SnapshotError::Garbled { name, problem }) => {
                    let instead = instead_of_newest(&kept);
                    tracing::error!(snapshot = name, problem, "set aside; {instead}");
                    set_aside(&newest.path)?;
                    kept.pop();
                }
                Err(e) => return Err(e),
            }
        }
        let directory = directory.to_owned();
        let floor = watch::Sender::new(floor_of(&kept));
        let kept = Mutex::new(kept);
        let files = Files {
            directory,
            kept,
            blanks: AtomicU64::new(0),
            floor,
        };
        Ok((Self(Arc::new(files)), loaded))
    }

    /// The index up to which no log is needed even if the newest snapshot turns out garbled; none: all of it is needed.
    pub fn floor(&self) -> Option<u64> {
        *self.0.floor.borrow()
    }

    /// Follows `floor`.
    pub fn floors(&self) -> watch::Receiver<Option<u64>> {
        self.0.floor.subscribe()
    }

    /// Opens what the next snapshot is to be written to.
    pub(super) fn blank(&self) -> Result<Blank, SnapshotError> {
        let number = self.0.blanks.fetch_add(1, Relaxed);
        let path = self.0.directory.join(format!("{number}.{UNFINISHED}"));
        let opening = |e| file_error("open", &self.0.directory, e);
        let directory = File::open(&self.0.directory).map_err(opening)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let file = options.open(&path);
        let file = file.map_err(|e| file_error("make", &path, e))?;
        Ok(Blank {
            file,
            path,
            directory,
        })
    }

    /// Writes a snapshot and reads it back. Blocks for as long as packing takes.
    pub fn write(&self, meta: &SnapshotMeta, state: &State) -> Result<SnapshotData, SnapshotError> {
        self.write_within(0, None, meta, state)
    }

    /// As `write`, leaving `reserve` octets of the disk free. To `blank`, if there is one: it takes no further file.
    ///
    /// # Errors
    /// Also when there is no room; then nothing of it is left on the disk.
    pub(super) fn write_within(
        &self,
        reserve: u64,
        blank: Option<Blank>,
        meta: &SnapshotMeta,
        state: &State,
    ) -> Result<SnapshotData, SnapshotError> {
        let blank = match blank {
            Some(blank) => blank,
            None => self.blank()?,
        };
        let packed = self.pack(meta, state)?;
        let directory = &self.0.directory;
        let (free, _) = health::space(directory)
            .map_err(|e| file_error("look at the space of", directory, e))?;
        let bytes = packed.0.len() as u64;
        if free < bytes.saturating_add(reserve) {
            return Err(SnapshotError::NoRoom {
                directory: directory.clone(),
                bytes,
                free,
                reserve,
            });
        }
        self.save(blank, meta, &packed.0)?;
        Ok(packed)
    }

    /// A snapshot in memory alone. It takes no file.
    pub(super) fn pack(
        &self,
        meta: &SnapshotMeta,
        state: &State,
    ) -> Result<SnapshotData, SnapshotError> {
        let packed = encode(meta, state).map_err(|e| file_error("encode", &self.0.directory, e))?;
        Ok(SnapshotData(packed))
    }

    /// Opens what a snapshot from the leader is to be kept in.
    pub(super) fn blanks(&self) -> Result<[Blank; KEPT], SnapshotError> {
        Ok([self.blank()?, self.blank()?])
    }

    /// Checks and decodes a snapshot from a peer, and keeps it in `blanks`: it takes no further file.
    pub(super) fn install(
        &self,
        blanks: [Blank; KEPT],
        data: &SnapshotData,
    ) -> Result<Loaded, SnapshotError> {
        let loaded = decode("from the leader", &data.0)?;
        let index = loaded.meta.last_log_id.map(|id| id.index);
        for blank in blanks {
            self.save(blank, &loaded.meta, &data.0)?;
        }
        tracing::info!(index, bytes = data.0.len(), "snapshot installed");
        Ok(loaded)
    }

    /// The newest snapshot as it lies on disk, checked. A garbled one is set aside and reported.
    pub fn current(&self) -> Result<Option<(SnapshotMeta, SnapshotData)>, SnapshotError> {
        let mut kept = lock(&self.0.kept);
        let Some(path) = kept.last().map(|newest| newest.path.clone()) else {
            return Ok(None);
        };
        let bytes = read(&path)?;
        match check(&path.display().to_string(), &bytes) {
            Ok((meta, _)) => Ok(Some((meta, SnapshotData(bytes)))),
            Err(e) => {
                kept.pop();
                self.0.floor.send_replace(floor_of(&kept));
                set_aside(&path)?;
                Err(e)
            }
        }
    }

    fn save(
        &self,
        mut blank: Blank,
        meta: &SnapshotMeta,
        bytes: &Bytes,
    ) -> Result<(), SnapshotError> {
        let index = meta.last_log_id.map(|id| id.index);
        let mut kept = lock(&self.0.kept);
        if kept.last().is_some_and(|newest| newest.index > index) {
            return Ok(()); // A newer one was installed while this one was packed.
        }
        let sequence = kept.last().map_or(1, |last| last.sequence + 1);
        let name = format!(
            "{sequence:010}-{}.{SUFFIX}",
            index.map_or("none".to_owned(), |i| i.to_string())
        );
        let path = self.0.directory.join(name);
        let back = blank.become_snapshot(&path, bytes)?;
        if back != *bytes {
            set_aside(&path)?;
            return Err(garbled(
                &path.display().to_string(),
                "it reads back otherwise",
            ));
        }
        kept.push(Kept {
            index,
            sequence,
            path,
        });
        while kept.len() > KEPT {
            let oldest = kept.remove(0).path;
            fs::remove_file(&oldest).map_err(|e| file_error("remove", &oldest, e))?;
        }
        self.0.floor.send_replace(floor_of(&kept));
        Ok(())
    }
}

fn floor_of(kept: &[Kept]) -> Option<u64> {
    match kept {
        [.., older, _newer] => older.index,
        _ => None,
    }
}

/// Checks that a snapshot from elsewhere is whole, before anything is done with it.
pub fn verify(data: &SnapshotData) -> Result<SnapshotMeta, SnapshotError> {
    check("from the leader", &data.0).map(|(meta, _)| meta)
}

/// Snapshots in a directory, oldest first. Unfinished ones are removed.
fn list(directory: &Path) -> Result<Vec<Kept>, SnapshotError> {
    let failed = |e| file_error("read", directory, e);
    let mut kept = Vec::new();
    for file in fs::read_dir(directory).map_err(failed)? {
        let path = file.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == UNFINISHED) {
            fs::remove_file(&path).map_err(|e| file_error("remove", &path, e))?;
        } else if let Some((sequence, index)) = parse_name(&path) {
            kept.push(Kept {
                index,
                sequence,
                path,
            });
        }
    }
    kept.sort_by_key(|kept| kept.sequence);
    Ok(kept)
}

fn parse_name(path: &Path) -> Option<(u64, Option<u64>)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let (sequence, index) = stem.strip_suffix('.')?.split_once('-')?;
    let index = match index {
        "none" => None,
        number => Some(number.parse().ok()?),
    };
    Some((sequence.parse().ok()?, index))
}

fn sync_directory(directory: &Path) -> Result<(), SnapshotError> {
    if directory.as_os_str().is_empty() {
        return Ok(());
    }
    let synced = File::open(directory).and_then(|d| d.sync_all());
    synced.map_err(|e| file_error("sync", directory, e))
}

/// Keeps a garbled file for those who want to know, under a name nobody loads.
fn set_aside(path: &Path) -> Result<(), SnapshotError> {
    let aside = path.with_extension(GARBLED);
    fs::rename(path, &aside).map_err(|e| file_error("rename", path, e))
}

fn read(path: &Path) -> Result<Bytes, SnapshotError> {
    let bytes = fs::read(path).map_err(|e| file_error("read", path, e))?;
    Ok(bytes.into())
}

fn load(path: &Path) -> Result<Loaded, SnapshotError> {
    decode(&path.display().to_string(), &read(path)?)
}

fn encode(meta: &SnapshotMeta, state: &State) -> io::Result<Bytes> {
    let meta = postcard::to_stdvec(meta).map_err(io::Error::other)?;
    let length = u32::try_from(meta.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(1 << 20);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&meta);
    let mut packed = zstd::Encoder::new(bytes, LEVEL)?;
    {
        let mut buffered = io::BufWriter::with_capacity(1 << 16, &mut packed);
        state.encode(&mut buffered)?;
        buffered.flush()?;
    }
    let mut bytes = packed.finish()?;
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    Ok(bytes.into())
}

/// Checks that a snapshot is whole; gives its meta and the packed state.
fn check<'a>(name: &str, bytes: &'a [u8]) -> Result<(SnapshotMeta, &'a [u8]), SnapshotError> {
    let garbled = |problem: &str| garbled(name, problem);
    let (content, hash) = bytes
        .split_last_chunk::<HASH>()
        .ok_or_else(|| garbled("it is too short"))?;
    if blake3::hash(content) != *hash {
        return Err(garbled("its checksum does not match its contents"));
    }
    let rest = content
        .strip_prefix(MAGIC)
        .ok_or_else(|| garbled("it is no snapshot of this program"))?;
    let (version, rest) = take_u32(rest).ok_or_else(|| garbled("it is too short"))?;
    if version != VERSION {
        let problem =
            format!("version {version}; this program reads version {VERSION}: upgrade it");
        return Err(garbled(&problem));
    }
    let split = take_u32(rest)
        .and_then(|(length, rest)| rest.split_at_checked(usize::try_from(length).ok()?));
    let (meta, state) = split.ok_or_else(|| garbled("it is too short"))?;
    let meta = postcard::from_bytes(meta).map_err(|e| garbled(&e.to_string()))?;
    Ok((meta, state))
}

fn decode(name: &str, bytes: &[u8]) -> Result<Loaded, SnapshotError> {
    let (meta, packed) = check(name, bytes)?;
    let failed = |problem: String| garbled(name, &problem);
    let unpacked = zstd::Decoder::with_buffer(packed).map_err(|e| failed(e.to_string()))?;
    let mut unpacked = io::BufReader::with_capacity(1 << 16, unpacked);
    let state = State::decode(&mut unpacked).map_err(|e| failed(e.to_string()))?;
    let rest = unpacked.read(&mut [0]).map_err(|e| failed(e.to_string()))?;
    if rest != 0 {
        return Err(failed("there is more than a state in it".to_owned()));
    }
    Ok(Loaded { meta, state })
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn garbled(name: &str, problem: &str) -> SnapshotError {
    SnapshotError::Garbled {
        name: name.to_owned(),
        problem: problem.to_owned(),
    }
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::File {
        verb,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_garbled_snapshot_is_said_to_have_one_before_it_only_if_there_is_one() {
        let kept = |sequence| Kept {
            index: Some(sequence),
            sequence,
            path: PathBuf::new(),
        };
        for (count, told) in [
            (1, "there is none before it"),
            (2, "the one before is used"),
            (3, "the one before is used"),
        ] {
            let kept: Vec<Kept> = (0..count).map(kept).collect();
            assert_eq!(instead_of_newest(&kept), told);
        }
    }
}
