//! A file that a command writes whole: until it is complete, what lay there before lies there still.
//!
//! It is written beside its place and takes the name when it is on the disk. Only what is no file, such as a pipe, is written
//! through: nothing may take its place.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use super::{exit, output::Out};
use crate::wire::error::Failure;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A file, or nothing yet. Links are followed, to where a file would be made too.
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
            // The write would take the place of the link.
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => Err(exit::file(path, &e)),
            // A new one, or what the write will tell of.
            Err(_) => Ok(Self::File(end_of_links(path))),
        }
    }
}

/// What a path names through links of which the last leads to nothing. The kernel follows no more than 40.
fn end_of_links(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..40 {
        let Ok(next) = fs::read_link(&path) else {
            break;
        };
        path = directory_of(&path).join(next);
    }
    path
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Who may read the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Nobody but its owner.
    Owner,
    /// Who could before: owner, group and mode stay. Of a new file, whom the process's mask leaves.
    AsBefore,
}

/// A file that is not complete yet. Dropped, it is gone.
#[derive(Debug)]
pub struct WholeFile {
    file: tempfile::NamedTempFile,
    path: PathBuf,
    /// Who cannot read it any more, though they could before.
    lost: Option<String>,
}

impl WholeFile {
    /// Begins the file that is to lie at `path`, as `Place::File` has it.
    pub fn begin(path: PathBuf, readers: Readers) -> Result<Self, Failure> {
        let dir = directory_of(&path);
        let before = match readers {
            Readers::Owner => None,
            Readers::AsBefore => fs::metadata(&path).ok(),
        };
        let mode = match readers {
            Readers::Owner => 0o600,
            Readers::AsBefore => 0o666, // less the mask
        };
        let file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)
            .map_err(|e| not_begun(&path, dir, &e))?;
        let lost = match before {
            None => None,
            Some(before) => {
                keep_access(file.as_file(), &path, &before).map_err(|e| exit::file(&path, &e))?
            }
        };
        Ok(Self { file, path, lost })
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

    /// Gives it its name, which is on the disk then. Returns a warning, when somebody who could read the old file cannot read it.
    pub fn complete(self) -> Result<Option<String>, Failure> {
        self.synced()?;
        let Self { file, path, lost } = self;
        file.persist(&path)
            .map_err(|e| exit::file(&path, &e.error))?;
        let named = File::open(directory_of(&path)).and_then(|dir| dir.sync_all());
        named.map_err(|e| exit::file(&path, &e))?;
        Ok(lost)
    }
}

/// The file itself may be writable: it is the directory that has to be.
fn not_begun(path: &Path, dir: &Path, error: &io::Error) -> Failure {
    let failure = exit::file(path, error);
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Failure {
            problem: format!(
                "no file can be made in directory {}, from where the new one takes the name when it is complete: {error}",
                dir.display()
            ),
            hint: format!(
                "let this user make files in {}, or name a file elsewhere",
                dir.display()
            ),
            ..failure
        },
        _ => failure,
    }
}

/// Gives a file the owner, the group and the mode of the one whose place it takes. Only root gives a file to others: what another
/// user cannot keep is told, and never lets in whom the old file kept out.
fn keep_access(file: &File, path: &Path, before: &fs::Metadata) -> io::Result<Option<String>> {
    let mut failed = None;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (before.uid(), before.gid()) {
        failed = fchown(file, Some(before.uid()), Some(before.gid())).err();
        if failed.is_some() {
            // The group alone may be one of this user's; whether it is kept is looked at below.
            let _ = fchown(file, None, Some(before.gid()));
        }
    }
    let made = file.metadata()?;
    let mode = mode_kept(before.mode(), made.gid() == before.gid());
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    Ok(failed.map(|error| {
        format!(
            "{path} was a file of user {}, group {}, and is one of user {}, group {}, mode {mode:04o}, now: it cannot be given back ({error}); if need be, \
             run `chown {}:{} {path}` as root",
            before.uid(),
            before.gid(),
            made.uid(),
            made.gid(),
            before.uid(),
            before.gid(),
            path = path.display()
        )
    }))
}

/// The mode of the new file: another group than before may do no more than everybody.
fn mode_kept(before: u32, same_group: bool) -> u32 {
    let before = before & 0o777;
    match same_group {
        true => before,
        false => (before & !0o070) | (before & (before << 3) & 0o070),
    }
}

/// Writes a text to what `path` names.
pub fn write(out: &Out, path: &Path, text: &str) -> Result<(), Failure> {
    match Place::of(path)? {
        Place::Stream => fs::write(path, text).map_err(|e| exit::file(path, &e)),
        Place::File(found) => {
            let mut file = WholeFile::begin(found, Readers::AsBefore)?;
            file.write(text.as_bytes())?;
            if let Some(warning) = file.complete()? {
                out.warn(warning);
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::unix::fs::{chown, symlink},
    };

    use super::*;
    use crate::cli::output::Format;

    fn write(path: &Path, text: &str) -> Result<(), Failure> {
        super::write(&Out::keeping(Format::Table), path, text)
    }

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
        symlink(&path, &link).expect("made");
        write(&link, "new").expect("written");
        assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(fs::read_to_string(&path).expect("there"), "new");

        // So are those to a file that is not there yet, and those that lead nowhere are refused.
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        symlink("second", &first).expect("made");
        symlink("new", &second).expect("made");
        write(&first, "new").expect("written");
        let made = fs::read_to_string(dir.path().join("new"));
        assert_eq!(made.expect("there"), "new");
        assert!(fs::symlink_metadata(&second).expect("there").is_symlink());
        let round = dir.path().join("round");
        symlink("round", &round).expect("made");
        assert!(write(&round, "x").is_err());
        assert!(fs::symlink_metadata(&round).expect("there").is_symlink());

        // A full disk is told of; the device stays what it is.
        let full = write(Path::new("/dev/full"), "x").expect_err("full");
        assert_eq!(full.hint, "make room and run it again");
        assert_eq!(Place::of(Path::new("-")), Ok(Place::Stream));
        assert!(write(dir.path(), "x").is_err());
        assert!(write(&dir.path().join("absent/file"), "x").is_err());
    }

    #[test]
    fn what_root_writes_anew_stays_whose_it_was() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            return crate::skipped::say("only root gives files away");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("site.toml");
        fs::write(&path, "old").expect("written");
        chown(&path, Some(65_533), Some(65_534)).expect("given");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        let mut file = WholeFile::begin(path.clone(), Readers::AsBefore).expect("begun");
        file.write(b"new").expect("written");
        assert_eq!(file.complete().expect("named"), None);
        let found = fs::metadata(&path).expect("there");
        assert_eq!((found.uid(), found.gid()), (65_533, 65_534));
        assert_eq!(mode(&path), 0o640);
    }

    #[test]
    fn another_group_may_do_no_more_than_everybody() {
        for before in 0..=0o777 {
            assert_eq!(mode_kept(0o100_000 | before, true), before);
            let kept = mode_kept(before, false);
            let (group, others) = (kept >> 3 & 7, kept & 7);
            assert_eq!(kept & 0o707, before & 0o707, "{before:o}");
            assert_eq!(group & !others, 0, "{before:o}");
            assert_eq!(group & !(before >> 3 & 7), 0, "{before:o}");
        }
        assert_eq!(mode_kept(0o640, false), 0o600);
        assert_eq!(mode_kept(0o644, false), 0o644);
    }

    #[test]
    fn a_directory_that_takes_no_file_is_named() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let (path, dir) = (Path::new("/srv/site/site.toml"), Path::new("/srv/site"));
        let failure = not_begun(path, dir, &denied);
        assert_eq!(failure.object, "file /srv/site/site.toml");
        assert!(
            failure.problem.contains("directory /srv/site,"),
            "{failure:?}"
        );
        assert!(failure.hint.contains("files in /srv/site,"), "{failure:?}");
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
