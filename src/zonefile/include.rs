//! Where `$INCLUDE` gets its text: from the caller, who decides whether and from where.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Largest file that is read, in octets.
pub const MAX_FILE: u64 = 256 << 20;
/// Longest file name, in octets.
const MAX_FILE_NAME: usize = 255;

/// Loads the file that an `$INCLUDE` names.
pub trait Loader {
    /// `file` is a plain file name (see `is_plain`).
    fn load(&mut self, file: &str) -> io::Result<Vec<u8>>;
}

/// Refuses every `$INCLUDE`: for text that came without a directory, over the network for instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Loader for Nothing {
    fn load(&mut self, _: &str) -> io::Result<Vec<u8>> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this text came without its directory: put the included text in its place",
        ))
    }
}

/// Loads regular files of one directory, and nothing that a link leads to outside of it.
#[derive(Clone, Debug)]
pub struct SameDirectory(PathBuf);

impl SameDirectory {
    /// The directory that holds `file`.
    pub fn of(file: &Path) -> Self {
        match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => Self(parent.to_owned()),
            _ => Self(PathBuf::from(".")),
        }
    }
}

impl Loader for SameDirectory {
    fn load(&mut self, file: &str) -> io::Result<Vec<u8>> {
        let directory = fs::canonicalize(&self.0)?;
        let path = fs::canonicalize(directory.join(file))?;
        if path.parent() != Some(&directory) {
            return Err(io::Error::other("a link that leads out of the directory"));
        }
        read_bounded(&path)
    }
}

/// Reads a regular file of at most `MAX_FILE` octets.
pub fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    // Before opening: opening a FIFO would wait for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {MAX_FILE} octets"),
        ));
    }
    Ok(text)
}

/// Whether `file` names a file in the directory at hand and nothing else: no path, no hidden file.
pub fn is_plain(file: &str) -> bool {
    !file.is_empty()
        && file.len() <= MAX_FILE_NAME
        && !file.starts_with('.')
        && !file
            .chars()
            .any(|c| matches!(c, '/' | '\\') || c.is_control())
}
