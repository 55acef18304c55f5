//! Moving bytes between a client and a backend, both ways, until both are done.
//!
//! Memory: a connection has no buffer of its own while both peers keep up; each worker reads into one scratch buffer and
//! writes on at once. What a slow peer does not take is kept, at most [`BUFFER`] bytes a direction, and nothing more is read
//! until it is gone. A direction that filled the scratch buffer [`FULL_READS`] times in a row goes on with splice(2) through
//! a borrowed pipe (at most 256 KiB of kernel memory while bytes are on their way) and returns to copying when the burst
//! is over, or for good where splice is refused. The kernel's socket buffers come on top (`tcp_rmem`, `tcp_wmem`).
//!
//! A side that closes is passed on as a half-close, and the other goes on: silence for the idle timeout ends the connection before
//! and after it alike, since an answer may take as long as it takes. The relay ends by itself; dropping the future at any point loses
//! the bytes in hand, so whoever drops it resets both sockets.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWriteExt, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::Instant,
};

use super::{
    ending::{Closing, Ending, Progress},
    pipe::{BorrowedPipe, PipePool},
};

/// Size of a worker's scratch buffer, and the most that is kept of a direction, in bytes.
pub const BUFFER: usize = 16 * 1024;

/// Full reads in a row after which a direction is spliced.
const FULL_READS: u32 = 3;

/// Rounds of splicing after which other connections get their turn: at most 4 MiB.
const ROUNDS_BEFORE_YIELDING: u32 = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Where the bytes of one direction are counted, as they are delivered.
#[derive(Clone, Copy, Debug)]
pub struct Meter<'a> {
    pub listener: &'a AtomicU64,
    pub backend: &'a AtomicU64,
}

impl Meter<'_> {
    fn add(&self, bytes: usize) {
        self.listener.fetch_add(bytes as u64, Relaxed);
        self.backend.fetch_add(bytes as u64, Relaxed);
    }
}

/// Where the bytes of both directions are counted.
#[derive(Clone, Copy, Debug)]
pub struct Meters<'a> {
    pub from_client: Meter<'a>,
    pub to_client: Meter<'a>,
}

/// Relays until both sides have closed, one fails, or nothing moves in either direction for `idle_timeout`.
pub async fn relay(
    client: &mut TcpStream,
    backend: &mut TcpStream,
    idle_timeout: Duration,
    pipes: &Arc<PipePool>,
    meters: Meters<'_>,
) -> Closing {
    let activity = Activity::new(idle_timeout);
    let (client_read, client_write) = client.split();
    let (backend_read, backend_write) = backend.split();
    let mut upward = Direction::new(
        client_read,
        backend_write,
        &activity,
        pipes,
        meters.from_client,
    );
    let mut downward = Direction::new(
        backend_read,
        client_write,
        &activity,
        pipes,
        meters.to_client,
    );
    let both = async {
        futures::try_join!(
            upward.run(Ending::ClientReset, Ending::BackendReset, Rest::Discarded),
            downward.run(Ending::BackendReset, Ending::ClientReset, Rest::Unread),
        )
    };
    let result = tokio::select! {
        // Dropping either loses nothing that is needed: the whole relay is over.
        result = both => Some(result),
        () = activity.silence() => None,
    };
    let answer = downward.progress();
    let ending = match result {
        Some(Ok((Ending::Completed, other) | (other, _))) => other,
        Some(Err(ending)) => ending,
        None => Ending::of_silence(upward.progress(), answer),
    };
    Closing { ending, answer }
}

/// When something last moved.
#[derive(Debug)]
struct Activity {
    begun: Instant,
    last_ms: AtomicU64,
    idle_timeout: Duration,
}

impl Activity {
    fn new(idle_timeout: Duration) -> Self {
        Self {
            begun: Instant::now(),
            last_ms: AtomicU64::new(0),
            idle_timeout,
        }
    }

    fn note(&self) {
        let elapsed = self.begun.elapsed().as_millis();
        self.last_ms
            .store(u64::try_from(elapsed).unwrap_or(u64::MAX), Relaxed);
    }

    /// Resolves when nothing has moved for too long.
    async fn silence(&self) {
        loop {
            let last = self.begun + Duration::from_millis(self.last_ms.load(Relaxed));
            let deadline = last + self.idle_timeout;
            if Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

/// A failure of one socket, by what was being done.
enum Fault {
    Reading,
    Writing,
}

/// What becomes of bytes that the destination refused to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// Read and thrown away: the client may still be sending when the backend has given its answer and closed, and a
    /// socket closed over unread bytes is reset, which can destroy that answer on its way (RFC 2525, 2.17).
    Discarded,
    /// Left alone: the client is gone, and its own side of the connection says so in a moment.
    Unread,
}

/// How a burst of splicing ended.
enum Burst {
    /// The source has nothing at the moment; so many bytes were moved.
    Dry(usize),
    SourceEnded,
    /// Splice does not work on these sockets; nothing was lost.
    Unsupported,
}

/// One way of a relay.
struct Direction<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    /// What was read but not yet taken by `to`; empty whenever something is read.
    pending: Vec<u8>,
    activity: &'a Activity,
    pipes: &'a Arc<PipePool>,
    meter: Meter<'a>,
    can_splice: bool,
    /// A pipe holds bytes that `to` has not taken.
    is_pipe_filled: bool,
    /// Set when nothing more is moved.
    end: Option<Progress>,
}

impl<'a> Direction<'a> {
    fn new(
        from: ReadHalf<'a>,
        to: WriteHalf<'a>,
        activity: &'a Activity,
        pipes: &'a Arc<PipePool>,
        meter: Meter<'a>,
    ) -> Self {
        Self {
            from,
            to,
            pending: Vec::new(),
            activity,
            pipes,
            meter,
            can_splice: true,
            is_pipe_filled: false,
            end: None,
        }
    }

    fn progress(&self) -> Progress {
        let is_holding = self.is_pipe_filled || !self.pending.is_empty();
        match self.end {
            Some(end) => end,
            None if is_holding => Progress::Holding,
            None => Progress::Open,
        }
    }

    /// Moves bytes until the source ends, then half-closes the destination.
    ///
    /// A source that fails ends the relay (`Err`). A destination that fails ends this way only (`Ok` with that ending): it
    /// may have sent an answer before it stopped listening, and that is still to be delivered.
    async fn run(
        &mut self,
        source_failed: Ending,
        sink_failed: Ending,
        rest: Rest,
    ) -> Result<Ending, Ending> {
        match self.move_all().await {
            Ok(()) => {
                self.end = Some(Progress::Ended);
                // Refused only if the peer is gone, which the other direction finds out.
                let _ = self.to.shutdown().await;
                self.activity.note();
                Ok(Ending::Completed)
            }
            Err(Fault::Writing) => {
                self.end = Some(Progress::Refused);
                self.activity.note();
                if rest == Rest::Discarded {
                    self.discard_all().await;
                }
                Ok(sink_failed)
            }
            Err(Fault::Reading) => Err(source_failed),
        }
    }

    /// Reads and throws away until the source ends or fails. Counts as silence, so the idle timeout bounds it.
    async fn discard_all(&mut self) {
        let from = &mut self.from;
        poll_fn(|cx| {
            SCRATCH.with_borrow_mut(|scratch| {
                loop {
                    let mut buffer = ReadBuf::new(scratch);
                    match ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer)) {
                        Ok(()) if !buffer.filled().is_empty() => {}
                        _ => return Poll::Ready(()),
                    }
                }
            })
        })
        .await;
    }

    async fn move_all(&mut self) -> Result<(), Fault> {
        let mut full_reads = 0;
        loop {
            match self.copy_once().await? {
                0 => return Ok(()),
                BUFFER => full_reads += 1,
                _ => full_reads = 0,
            }
            self.flush_pending().await?;
            if full_reads >= FULL_READS && self.can_splice {
                full_reads = 0;
                if self.splice_while_it_pays().await? {
                    return Ok(());
                }
            }
        }
    }

    /// Reads once and writes on what the destination takes. Returns the bytes read, 0 at the end.
    async fn copy_once(&mut self) -> Result<usize, Fault> {
        poll_fn(|cx| SCRATCH.with_borrow_mut(|scratch| self.poll_copy(cx, scratch))).await
    }

    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<usize, Fault>> {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(&mut self.from).poll_read(cx, &mut buffer)).map_err(|_| Fault::Reading)?;
        let read = buffer.filled();
        if !read.is_empty() {
            let (_, rest) = read.split_at(self.write_some(read)?);
            self.pending.extend_from_slice(rest);
        }
        Poll::Ready(Ok(read.len()))
    }

    /// Writes what can be written at once. Returns the number of bytes.
    fn write_some(&self, bytes: &[u8]) -> Result<usize, Fault> {
        self.activity.note();
        match self.to.try_write(bytes) {
            Ok(written) => {
                self.meter.add(written);
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Fault::Writing),
        }
    }

    async fn flush_pending(&mut self) -> Result<(), Fault> {
        let mut rest = &self.pending[..];
        while !rest.is_empty() {
            self.to.writable().await.map_err(|_| Fault::Writing)?;
            let written = match self.to.try_write(rest) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Fault::Writing),
            };
            self.activity.note();
            self.meter.add(written);
            rest = rest.split_at(written).1;
        }
        // Given back, so that a connection which was slow once does not keep the memory.
        self.pending = Vec::new();
        Ok(())
    }

    /// Splices burst after burst for as long as each is worth it. Returns whether the source has ended.
    async fn splice_while_it_pays(&mut self) -> Result<bool, Fault> {
        while let Some(pipe) = self.pipes.borrow() {
            match self.splice_burst(pipe).await? {
                Burst::SourceEnded => return Ok(true),
                Burst::Unsupported => {
                    self.can_splice = false;
                    return Ok(false);
                }
                Burst::Dry(moved) if moved < BUFFER => return Ok(false),
                // No pipe is held while waiting.
                Burst::Dry(_) => self.from.readable().await.map_err(|_| Fault::Reading)?,
            }
        }
        Ok(false)
    }

    async fn splice_burst(&mut self, mut pipe: BorrowedPipe) -> Result<Burst, Fault> {
        let mut burst = 0;
        for round in 1.. {
            let source = self.from.as_ref();
            match source.try_io(Interest::READABLE, || pipe.fill(source)) {
                Ok(0) => return Ok(Burst::SourceEnded),
                Ok(moved) => burst += moved,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Burst::Dry(burst));
                }
                Err(error) if is_unsupported(&error) => return Ok(Burst::Unsupported),
                Err(_) => return Err(Fault::Reading),
            }
            self.activity.note();
            self.drain(&mut pipe).await?;
            if round % ROUNDS_BEFORE_YIELDING == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(Burst::Dry(burst))
    }

    async fn drain(&mut self, pipe: &mut BorrowedPipe) -> Result<(), Fault> {
        self.is_pipe_filled = true;
        let sink = self.to.as_ref();
        while pipe.held() > 0 {
            match sink.try_io(Interest::WRITABLE, || pipe.drain(sink)) {
                Ok(0) => return Err(Fault::Writing),
                Ok(moved) => {
                    self.activity.note();
                    self.meter.add(moved);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sink.writable().await.map_err(|_| Fault::Writing)?;
                }
                Err(_) => return Err(Fault::Writing),
            }
        }
        self.is_pipe_filled = false;
        Ok(())
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)
    )
}
