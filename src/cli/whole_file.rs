//! A file that a command writes whole: until it is complete, what lay there before lies there still.
//!
//! It is written beside its place and takes the name when it is on the disk. Only what is no file, such as a pipe, is written
//! through: nothing may take its place.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::exit;
use crate::wire::error::Failure;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A file, or nothing yet. Links to a file are followed.
    File(PathBuf),
    /// A device, a pipe, standard output (`-`), or a directory, which the write will tell of.
    Stream,
}

impl Place {
    pub fn of(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self::Stream);
        }
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => Ok(Self::Stream),
            Ok(_) => {
                let found = path.canonicalize().map_err(|e| exit::file(path, &e))?;
                Ok(Self::File(found))
            }
            // A new one, or what the write will tell of.
            Err(_) => Ok(Self::File(path.to_owned())),
        }
    }
}

/// Who may read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Nobody but its owner.
    Owner,
    /// Who could before; of a new file, whom the process's mask leaves.
    AsBefore,
}

/// A file that is not complete yet. Dropped, it is gone.
#[derive(Debug)]
pub struct WholeFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl WholeFile {
    /// Begins the file that is to lie at `path`, as `Place::File` has it.
    pub fn begin(path: PathBuf, readers: Readers) -> Result<Self, Failure> {
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let before = match readers {
            Readers::Owner => None,
            Readers::AsBefore => fs::metadata(&path).ok().map(|found| found.permissions()),
        };
        let mode = match readers {
            Readers::Owner => 0o600,
            Readers::AsBefore => 0o666, // less the mask
        };
        let begun = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)
            .and_then(|file| {
                if let Some(before) = before {
                    file.as_file().set_permissions(before)?;
                }
                Ok(file)
            });
        let file = begun.map_err(|e| exit::file(&path, &e))?;
        Ok(Self { file, path })
    }

    pub fn write(&mut self, data: &[u8]) -> Result<(), Failure> {
        let written = self.file.write_all(data);
        written.map_err(|e| exit::file(&self.path, &e))
    }

    /// Where everything written so far lies on the disk.
    pub fn synced(&self) -> Result<&Path, Failure> {
        let synced = self.file.as_file().sync_all();
        synced.map_err(|e| exit::file(&self.path, &e))?;
        Ok(self.file.path())
    }

    /// Gives it its name.
    pub fn complete(self) -> Result<(), Failure> {
        self.synced()?;
        let Self { file, path } = self;
        let named = file.persist(&path);
        named.map_err(|e| exit::file(&path, &e.error)).map(drop)
    }
}

/// Writes a text to what `path` names.
pub fn write(path: &Path, text: &str) -> Result<(), Failure> {
    match Place::of(path)? {
        Place::Stream => fs::write(path, text).map_err(|e| exit::file(path, &e)),
        Place::File(found) => {
            let mut file = WholeFile::begin(found, Readers::AsBefore)?;
            file.write(text.as_bytes())?;
            file.complete()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn mode(path: &Path) -> u32 {
        let found = fs::metadata(path).expect("there");
        found.permissions().mode() & 0o777
    }

    #[test]
    fn the_old_file_is_whole_until_the_new_one_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("site.toml");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        let mut opened = fs::File::open(&path).expect("there");
        // One that is cut short leaves nothing behind.
        let mut cut = WholeFile::begin(path.clone(), Readers::AsBefore).expect("begun");
        cut.write(b"ne").expect("written");
        drop(cut);
        assert_eq!(fs::read_to_string(&path).expect("there"), "old");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);

        write(&path, "new").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), "new");
        assert_eq!(mode(&path), 0o640);
        let mut old = String::new();
        opened.read_to_string(&mut old).expect("read");
        assert_eq!(old, "old", "it was overwritten, not replaced");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    }

    #[test]
    fn links_are_followed_and_what_is_no_file_is_written_through() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&path, "old").expect("written");
        std::os::unix::fs::symlink(&path, &link).expect("made");
        write(&link, "new").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read_to_string(&path).expect("there"), "new");

        // A full disk is told of; the device stays what it is.
        let full = write(Path::new("/dev/full"), "x").expect_err("full");
        assert_eq!(full.hint, "make room and run it again");
        assert_eq!(Place::of(Path::new("-")), Ok(Place::Stream));
        assert!(write(dir.path(), "x").is_err());
        assert!(write(&dir.path().join("absent/file"), "x").is_err());
    }

    #[test]
    fn a_secret_file_is_its_owners() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("backup");
        fs::write(&path, "old").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("set");
        let file = WholeFile::begin(path.clone(), Readers::Owner).expect("begun");
        file.complete().expect("named");
        assert_eq!(mode(&path), 0o600);
    }
}
