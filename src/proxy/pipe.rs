//! Pipes for splice(2), pooled: a direction borrows one while bytes are on their way and gives it back when it runs dry.
//!
//! An idle connection therefore holds none, and their number is bounded for the whole process. Beyond the bound, or where
//! the kernel refuses, connections are copied.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};

/// Bytes that a pipe is asked to hold; four times the kernel's default, so that one round moves more. A kernel that grants
/// less (`pipe-user-pages-soft`) is taken at its word.
const PIPE_CAPACITY: i32 = 256 * 1024;

/// Pipes shared by the connections of all workers.
#[derive(Debug)]
pub struct PipePool {
    idle: Mutex<Vec<Pipe>>,
    open: AtomicU32,
    limit: u32,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
}

impl Pipe {
    fn try_new() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let granted = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_CAPACITY))
            .or_else(|_| fcntl(&writer, FcntlArg::F_GETPIPE_SZ))?;
        Ok(Self {
            reader,
            writer,
            capacity: usize::try_from(granted).unwrap_or(4096),
        })
    }
}

impl PipePool {
    /// At most `limit` pipes at one time, of two file descriptors each.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            open: AtomicU32::new(0),
            limit,
        })
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// An empty pipe; None when all are in use or none can be made.
    pub fn borrow(self: &Arc<Self>) -> Option<BorrowedPipe> {
        let pooled = self.idle().pop();
        let pipe = pooled.or_else(|| self.open_one())?;
        Some(BorrowedPipe {
            pipe: Some(pipe),
            held: 0,
            pool: self.clone(),
        })
    }

    fn open_one(&self) -> Option<Pipe> {
        let limit = self.limit;
        self.open
            .fetch_update(Relaxed, Relaxed, |n| (n < limit).then_some(n + 1))
            .ok()?;
        Pipe::try_new()
            .inspect_err(|_| {
                self.open.fetch_sub(1, Relaxed);
            })
            .ok()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Pipe>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pipes in existence.
    pub fn open(&self) -> u32 {
        self.open.load(Relaxed)
    }
}

/// A pipe on loan. Dropped empty it returns to its pool; dropped with bytes inside it is closed, so that no connection ever
/// sees another's bytes.
#[derive(Debug)]
pub struct BorrowedPipe {
    pipe: Option<Pipe>,
    held: usize,
    pool: Arc<PipePool>,
}

impl BorrowedPipe {
    /// Bytes inside.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves what `from` has into the pipe, at most its capacity; 0 when `from` has ended.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let room = pipe.capacity.saturating_sub(self.held);
        let moved = splice(from, None, &pipe.writer, None, room, flags())?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what the pipe holds to `to`.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let pipe = self.pipe.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let moved = splice(&pipe.reader, None, to, None, self.held, flags())?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

impl Drop for BorrowedPipe {
    fn drop(&mut self) {
        match self.pipe.take() {
            Some(pipe) if self.held == 0 => self.pool.idle().push(pipe),
            pipe => {
                drop(pipe);
                self.pool.open.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn socket_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (a, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_through_and_the_pipe_is_used_again() {
        let pool = PipePool::new(1);
        let (mut near, from) = socket_pair();
        let (to, mut far) = socket_pair();
        near.write_all(b"across").unwrap();
        let mut pipe = pool.borrow().unwrap();
        assert!(pool.borrow().is_none(), "the limit holds");
        assert_eq!(pipe.fill(&from).unwrap(), 6);
        assert_eq!(pipe.drain(&to).unwrap(), 6);
        let mut seen = [0; 6];
        far.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"across");
        drop(pipe);
        assert_eq!(pool.open(), 1);
        assert!(pool.borrow().is_some());
    }

    #[test]
    fn a_pipe_with_bytes_inside_is_not_used_again() {
        let pool = PipePool::new(1);
        let (mut near, from) = socket_pair();
        near.write_all(b"secret").unwrap();
        let mut pipe = pool.borrow().unwrap();
        pipe.fill(&from).unwrap();
        drop(pipe);
        assert_eq!(pool.open(), 0);
        assert_eq!(pool.borrow().unwrap().held(), 0);
    }
}
