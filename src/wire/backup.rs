//! Backup files: the whole replicated state behind a header, compressed, with a checksum at the end.
//!
//! `PONTOON-BACKUP 1\n`, then zstd of the encoded state followed by its BLAKE3 hash. Nothing of a file is
//! believed before its hash has been compared. It holds secrets: files are written with mode 0600.

use std::io::{self, Read, Write};

use crate::state::{DecodeError, State};

const MAGIC: &[u8] = b"PONTOON-BACKUP 1\n";
const HASH: usize = 32;
/// Most octets of an unpacked state that are read.
const MAX_STATE: u64 = 4 << 30;
const LEVEL: i32 = 3;

/// Why a file is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("backup: {0}")]
    Io(#[from] io::Error),
    #[error("backup: it does not begin with {:?}: it is no backup of Pontoon, or one of a newer version", String::from_utf8_lossy(MAGIC).trim_end())]
    Magic,
    #[error("backup: it is cut short or damaged (its checksum does not fit); use another one")]
    Damaged,
    #[error("backup: {0}")]
    State(#[from] DecodeError),
}

/// Writes the backup of `state`.
pub fn write(state: &State, out: &mut impl Write) -> io::Result<()> {
    out.write_all(MAGIC)?;
    let mut packed = zstd::stream::write::Encoder::new(out, LEVEL)?;
    let mut hashing = Hashing {
        out: &mut packed,
        hasher: blake3::Hasher::new(),
    };
    state.encode(&mut hashing)?;
    let hash = hashing.hasher.finalize();
    packed.write_all(hash.as_bytes())?;
    packed.finish()?;
    Ok(())
}

/// Reads what `write` wrote.
pub fn read(mut input: impl Read) -> Result<State, BackupError> {
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => BackupError::Magic,
        _ => BackupError::Io(e),
    })?;
    if magic != MAGIC {
        return Err(BackupError::Magic);
    }
    let mut plain = Vec::new();
    zstd::stream::read::Decoder::new(input)?
        .take(MAX_STATE)
        .read_to_end(&mut plain)
        .map_err(|_| BackupError::Damaged)?;
    let at = plain.len().checked_sub(HASH).ok_or(BackupError::Damaged)?;
    let (body, hash) = plain.split_at(at);
    if blake3::hash(body).as_bytes() != hash {
        return Err(BackupError::Damaged);
    }
    Ok(State::decode(&mut &*body)?)
}

/// Hashes what passes through.
struct Hashing<'a, W: Write> {
    out: &'a mut W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_read_back_and_a_damaged_one_refused() {
        let state = State::default();
        let mut file = Vec::new();
        write(&state, &mut file).expect("written");
        assert_eq!(read(&file[..]).expect("read").hash(), state.hash());
        for cut in 0..file.len() {
            assert!(read(&file[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x40;
            if let Ok(read) = read(&damaged[..]) {
                // zstd ignores a few bits of its header; what was read is then whole all the same.
                assert_eq!(read.hash(), state.hash(), "damaged at {at}");
            }
        }
        assert!(read(&b""[..]).is_err());
    }
}
