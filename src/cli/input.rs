//! The files that operators name: regular files, what a shell's `<(...)` makes, and `-` for stdin.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::exit;
use crate::{
    wire::error::Failure,
    zonefile::include::{MAX_FILE, SameDirectory},
};

/// A file that was read.
pub struct Input {
    /// What it is called in messages: its path, or `stdin`.
    pub name: String,
    pub octets: Vec<u8>,
    /// Where the files are that it may name: beside it; for what has no place of its own, the working directory.
    pub beside: SameDirectory,
}

impl Input {
    /// Reads all of it, up to `MAX_FILE` octets.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| exit::file(path, &error);
        let (octets, regular) = match path == Path::new("-") {
            true => (bounded(io::stdin().lock()).map_err(failed)?, false),
            false => {
                let file = File::open(path).map_err(failed)?;
                let kind = file.metadata().map_err(failed)?.file_type();
                if kind.is_dir() {
                    return Err(exit::unusable(path, "it is a directory", "name a file"));
                }
                (bounded(file).map_err(failed)?, kind.is_file())
            }
        };
        Ok(Self {
            name: exit::source(path),
            octets,
            beside: match regular {
                true => SameDirectory::of(path),
                false => SameDirectory::of(Path::new("./-")),
            },
        })
    }

    /// Its text.
    pub fn text(&self, path: &Path) -> Result<String, Failure> {
        String::from_utf8(self.octets.clone())
            .map_err(|e| exit::unusable(path, format!("it is no text in UTF-8: {e}"), "convert it"))
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut octets = Vec::new();
    reader.take(MAX_FILE + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > MAX_FILE {
        let problem = format!("more than {MAX_FILE} octets");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{wire::error::FailureCode, zonefile::Loader};

    #[test]
    fn pipes_are_read_as_files_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let to = pipe.clone();
        let writer = std::thread::spawn(move || std::fs::write(to, "text"));
        let input = Input::read(&pipe).expect("read");
        assert_eq!(input.octets, b"text");
        writer.join().expect("ends").expect("written");
        let mut beside = input.beside;
        assert!(beside.load("absent").is_err(), "the working directory");
    }

    #[test]
    fn what_cannot_be_read_says_what_to_do() {
        let absent = Input::read(Path::new("/absent/x")).err().expect("absent");
        assert_eq!(absent.code, FailureCode::NotFound);
        let directory = Input::read(Path::new("/")).err().expect("no file");
        for failure in [absent, directory] {
            assert!(!failure.hint.is_empty(), "{failure:?}");
        }
    }
}
