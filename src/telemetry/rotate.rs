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

/// Writes to `path`; old files are `path.1` (the newest) to `path.<keep>`.
pub(super) struct RotatingFile {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    file: File,
    size: u64,
    reopen: Arc<AtomicBool>,
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
        let (file, size) = open_append(path)?;
        Ok(Self {
            path: path.to_owned(),
            max_size,
            keep,
            file,
            size,
            reopen: Arc::default(),
        })
    }

    pub(super) fn reopen_handle(&self) -> Reopen {
        Reopen(Arc::clone(&self.reopen))
    }

    fn rotate(&mut self) -> io::Result<()> {
        for age in (1..self.keep).rev() {
            rename_if_there(&old_path(&self.path, age), &old_path(&self.path, age + 1))?;
        }
        if self.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            rename_if_there(&self.path, &old_path(&self.path, 1))?;
        }
        (self.file, self.size) = open_append(&self.path)?;
        Ok(())
    }
}

impl Write for RotatingFile {
    /// Writes one line whole: a line is never split between files.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::Relaxed) {
            (self.file, self.size) = open_append(&self.path)?;
        }
        if self.size > 0 && self.size + line.len() as u64 > self.max_size {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.size += line.len() as u64;
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

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
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
}
