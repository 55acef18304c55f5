//! A log file that is replaced when it grows past a size; a stated number of old ones stays.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tries of a rotation that fails, while the file grows by its largest size.
const TRIES: u64 = 16;

/// Writes to `path`; old files are `path.1` (the newest) to `path.<keep>`.
///
/// A rotation that fails, or a file that cannot be opened again, costs no line: the file that is open goes on, standard
/// error is told once, and it is tried again.
pub(super) struct RotatingFile<E = io::Stderr> {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: File,
    size: u64,
    /// The size at which a rotation is tried: `max_size`, and more after one has failed.
    rotate_at: u64,
    reopen: Arc<AtomicBool>,
    is_told: bool,
    tell: E,
}

/// Makes the writer open its file again before the next line, for programs that rename log files themselves.
#[derive(Clone)]
pub(super) struct Reopen(Arc<AtomicBool>);

impl Reopen {
    pub(super) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl RotatingFile {
    /// `max_size` in octets.
    pub(super) fn open(path: &Path, max_size: u64, keep: u32) -> io::Result<Self> {
        Self::telling(path, max_size, keep, io::stderr())
    }
}

impl<E: Write> RotatingFile<E> {
    fn telling(path: &Path, max_size: u64, keep: u32, tell: E) -> io::Result<Self> {
        let (file, size) = open_append(path)?;
        Ok(Self {
            path: path.to_owned(),
            max_size,
            keep,
            file,
            size,
            rotate_at: max_size,
            reopen: Arc::default(),
            is_told: false,
            tell,
        })
    }

    pub(super) fn reopen_handle(&self) -> Reopen {
        Reopen(Arc::clone(&self.reopen))
    }

    /// The file of the name `path`, which may be another one by now.
    fn open_again(&mut self) -> io::Result<()> {
        (self.file, self.size) = open_append(&self.path)?;
        self.rotate_at = self.max_size;
        self.is_told = false;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // Others may have taken the file away: then there is nothing to move.
        if self.path.try_exists()? {
            self.move_away()?;
        }
        self.open_again()
    }

    fn move_away(&self) -> io::Result<()> {
        if self.keep == 0 {
            return done_if_gone(fs::remove_file(&self.path));
        }
        // Only those before a gap: a rotation that failed half way and is tried again must not push the oldest out.
        let moved = (1..self.keep).take_while(|age| old_path(&self.path, *age).exists());
        for age in moved.collect::<Vec<_>>().into_iter().rev() {
            let from = old_path(&self.path, age);
            done_if_gone(fs::rename(from, old_path(&self.path, age + 1)))?;
        }
        done_if_gone(fs::rename(&self.path, old_path(&self.path, 1)))
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        if !self.is_told {
            self.is_told = true;
            // Where standard error takes nothing, the lines are in the file all the same.
            let _ = writeln!(
                self.tell,
                "log {path}: {what}: {error}; lines go on into the file that is open, and it is tried again: \
                 let the node's user write to {directory}",
                path = self.path.display(),
                directory = self.path.parent().unwrap_or(&self.path).display()
            );
        }
    }
}

impl<E: Write> Write for RotatingFile<E> {
    /// Writes one line whole: a line is never split between files.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let length = line.len() as u64;
        if self.reopen.swap(false, Ordering::Relaxed)
            && let Err(error) = self.open_again()
        {
            self.reopen.store(true, Ordering::Relaxed);
            self.complain("it cannot be opened again", &error);
        }
        if self.size > 0
            && self.size + length > self.rotate_at
            && let Err(error) = self.rotate()
        {
            self.rotate_at = self.size + length + self.max_size / TRIES;
            self.complain("it has its full size and cannot be replaced", &error);
        }
        self.file.write_all(line)?;
        self.size += length;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn open_append(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn old_path(path: &Path, age: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    name.into()
}

/// Whoever took a file away first has done our work.
fn done_if_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_rotate_by_size_and_old_ones_are_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file = RotatingFile::open(&path, 10, 2).expect("opened");
        for line in ["one-----\n", "two-----\n", "three---\n", "four----\n"] {
            file.write_all(line.as_bytes()).expect("written");
        }
        let read = |path: PathBuf| fs::read_to_string(path).expect("there");
        assert_eq!(read(path.clone()), "four----\n");
        assert_eq!(read(old_path(&path, 1)), "three---\n");
        assert_eq!(read(old_path(&path, 2)), "two-----\n");
        assert!(!old_path(&path, 3).exists());
    }

    #[test]
    fn a_renamed_file_is_opened_anew_on_request() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut file = RotatingFile::open(&path, 1000, 0).expect("opened");
        file.write_all(b"before\n").expect("written");
        fs::rename(&path, dir.path().join("moved")).expect("renamed");
        file.reopen_handle().request();
        file.write_all(b"after\n").expect("written");
        assert_eq!(fs::read_to_string(&path).expect("there"), "after\n");
    }

    #[test]
    fn a_rotation_that_fails_costs_no_line_and_is_tried_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        // No file can take the place of a directory; the rights of one would mean nothing to root.
        let obstacle = old_path(&path, 1);
        fs::create_dir(&obstacle).expect("made");
        let mut file = RotatingFile::telling(&path, 160, 1, Vec::new()).expect("opened");
        for _ in 0..40 {
            file.write_all(b"a line\n").expect("written");
        }
        assert_eq!(fs::read(&path).expect("there").len(), 40 * 7);
        let told = String::from_utf8(file.tell.clone()).expect("text");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("cannot be replaced"), "{told}");
        fs::remove_dir(&obstacle).expect("removed");
        for _ in 0..2 {
            file.write_all(b"a line\n").expect("written");
        }
        assert!(fs::read(&obstacle).expect("there").len() >= 40 * 7);
        assert!(fs::read(&path).expect("there").len() <= 2 * 7);
    }

    #[test]
    fn a_file_that_was_renamed_outside_is_made_anew_at_its_full_size() {
        for keep in [0, 2] {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("log");
            let mut file = RotatingFile::telling(&path, 10, keep, Vec::new()).expect("opened");
            file.write_all(b"before--\n").expect("written");
            fs::rename(&path, dir.path().join("moved")).expect("renamed");
            file.write_all(b"after---\n").expect("written");
            assert_eq!(fs::read(&path).expect("there"), b"after---\n");
            assert!(file.tell.is_empty());
        }
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_goes_on_and_is_tried_with_each_line() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let moved = dir.path().join("moved");
        let mut file = RotatingFile::telling(&path, 1000, 1, Vec::new()).expect("opened");
        fs::rename(&path, &moved).expect("renamed");
        fs::create_dir(&path).expect("made");
        file.reopen_handle().request();
        file.write_all(b"one\n").expect("written");
        file.write_all(b"two\n").expect("written");
        assert_eq!(fs::read(&moved).expect("there"), b"one\ntwo\n");
        assert_eq!(file.tell.iter().filter(|octet| **octet == b'\n').count(), 1);
        fs::remove_dir(&path).expect("removed");
        file.write_all(b"three\n").expect("written");
        assert_eq!(fs::read(&path).expect("there"), b"three\n");
    }
}
