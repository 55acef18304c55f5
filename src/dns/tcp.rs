//! The TCP side (RFC 7766): pipelined queries, replies as they get ready, bounds on everything a client can hold on to.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{timeout, timeout_at},
};

use super::{
    respond::{Client, Transport},
    service::{Progress, Service, TcpLimits},
    stats::{Counters, count},
};
use crate::telemetry::throttle::Throttle;

/// Octets of replies that one connection may have waiting to be written. Its reader waits for room, so that a client that
/// asks and never reads holds this much and no more, until the write times out.
const UNWRITTEN: usize = 128 * 1024;
/// Octets gathered for one write, when more than one reply is ready.
const GATHERED: usize = 4096;
/// Between two tries to accept when this node has no files left.
const REST_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// A reply on its way to the writer, with the room that it takes.
struct Outgoing {
    octets: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// Where replies of one connection go.
#[derive(Clone)]
struct Outbox {
    replies: mpsc::Sender<Outgoing>,
    room: Arc<Semaphore>,
}

/// The connection can take no more replies.
struct Closed;

impl Outbox {
    fn new() -> (Self, mpsc::Receiver<Outgoing>) {
        let (replies, ready) = mpsc::channel(16);
        let room = Arc::new(Semaphore::new(UNWRITTEN));
        (Self { replies, room }, ready)
    }

    async fn send(&self, octets: Vec<u8>) -> Result<(), Closed> {
        if octets.is_empty() {
            return Ok(());
        }
        let size = u32::try_from(octets.len().min(UNWRITTEN)).map_err(|_| Closed)?;
        let room = Arc::clone(&self.room).acquire_many_owned(size).await;
        let outgoing = Outgoing {
            octets,
            _room: room.map_err(|_| Closed)?,
        };
        self.replies.send(outgoing).await.map_err(|_| Closed)
    }
}

/// Connections of one server, by client.
pub(super) struct Connections {
    limits: TcpLimits,
    open: Mutex<Open>,
    /// When the log was last told that accepting fails.
    told: Throttle,
}

#[derive(Default)]
struct Open {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One connection's place among those that are allowed. Dropping it gives the place back.
struct Admission {
    connections: Arc<Connections>,
    client: IpAddr,
}

impl Connections {
    pub fn new(limits: TcpLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            open: Mutex::default(),
            told: Throttle::default(),
        })
    }

    pub fn open(&self) -> usize {
        self.locked().total
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Admission> {
        let mut open = self.locked();
        let own = open.by_client.get(&client).copied().unwrap_or(0);
        let full = open.total >= self.limits.max_connections;
        if full || own >= self.limits.max_connections_per_client {
            return None;
        }
        open.total += 1;
        *open.by_client.entry(client).or_insert(0) += 1;
        Some(Admission {
            connections: Arc::clone(self),
            client,
        })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut open = self.connections.locked();
        open.total -= 1;
        if let Some(count) = open.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.by_client.remove(&self.client);
            }
        }
    }
}

/// Accepts until it is cancelled. Connections are tasks of `Forwarding`, which ends them when the server stops; they
/// outlive the listener, so that taking an address away does not cut off answers under way.
pub(super) async fn accept(
    listener: TcpListener,
    service: Arc<Service>,
    connections: Arc<Connections>,
    counters: Arc<Counters>,
) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                count(&counters.accept_errors);
                if let Some(left_out) = connections.told.admit(Instant::now()) {
                    tracing::warn!(%error, left_out, "accepting DNS connections failed; trying again shortly. Raise the limit on open files");
                }
                tokio::time::sleep(REST_AFTER_FAILURE).await;
                continue;
            }
        };
        let Some(admission) = connections.admit(peer.ip()) else {
            count(&counters.connections_refused);
            continue;
        };
        count(&counters.connections_accepted);
        let connection = Connection {
            service: Arc::clone(&service),
            limits: connections.limits,
            counters: Arc::clone(&counters),
            peer,
        };
        let work = async move {
            connection.run(stream).await;
            drop(admission);
        };
        service.forwarding.spawn(&service.runtime, work);
    }
}

/// Errors of accept(2) that concern a connection which is gone already.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted
    )
}

struct Connection {
    service: Arc<Service>,
    limits: TcpLimits,
    counters: Arc<Counters>,
    peer: SocketAddr,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (reading, writing) = stream.into_split();
        let (outbox, ready) = Outbox::new();
        let deadline = tokio::time::Instant::now() + self.limits.lifetime;
        let work = async {
            let writer = write_replies(writing, ready, self.limits);
            tokio::pin!(writer);
            tokio::select! {
                // The reader may be dropped: with no way to reply, what it would read gets no answer.
                written = &mut writer => written,
                read = self.read_queries(reading, outbox) => {
                    // Replies that are under way still go out; the channel closes when the last is done.
                    let written = writer.await;
                    read.and(written)
                }
            }
        };
        let ended = timeout_at(deadline, work).await;
        let late = io::Error::from(io::ErrorKind::TimedOut);
        if ended
            .unwrap_or(Err(late))
            .is_err_and(|e| e.kind() == io::ErrorKind::TimedOut)
        {
            count(&self.counters.connections_timed_out);
        }
    }

    async fn read_queries(&self, mut reading: OwnedReadHalf, outbox: Outbox) -> io::Result<()> {
        let pipelined = Arc::new(Semaphore::new(self.limits.max_pipelined));
        let client = Client {
            address: self.peer.ip(),
            transport: Transport::Tcp,
        };
        while let Some(message) = self.read_query(&mut reading).await? {
            self.counters.query(Transport::Tcp, self.peer.is_ipv6());
            let snapshot = self.service.snapshot.load_full();
            let mut out = Vec::with_capacity(512);
            let progress =
                self.service
                    .handle(&snapshot, &message, client, &self.counters, &mut out);
            let Progress::Wait(pending) = progress else {
                if outbox.send(out).await.is_err() {
                    return Ok(());
                }
                continue;
            };
            let Ok(permit) = Arc::clone(&pipelined).acquire_owned().await else {
                return Ok(());
            };
            let (outbox, counters) = (outbox.clone(), Arc::clone(&self.counters));
            let work = async move {
                pending.finish(&counters, &mut out).await;
                // The client may be gone.
                let _ = outbox.send(out).await;
                drop(permit);
            };
            self.service.forwarding.spawn(&self.service.runtime, work);
        }
        Ok(())
    }

    /// One query; none at the end of the stream.
    async fn read_query(&self, reading: &mut OwnedReadHalf) -> io::Result<Option<Vec<u8>>> {
        let first = match timeout(self.limits.idle, reading.read_u8()).await? {
            Ok(first) => first,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let rest = async {
            let length = u16::from_be_bytes([first, reading.read_u8().await?]);
            // Grows as octets come: a client that only announces a long message holds no memory for it.
            let mut message = Vec::with_capacity(usize::from(length).min(512));
            reading
                .take(u64::from(length))
                .read_to_end(&mut message)
                .await?;
            if message.len() < usize::from(length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(Some(message))
        };
        timeout(self.limits.read, rest).await?
    }
}

async fn write_replies(
    mut writing: OwnedWriteHalf,
    mut ready: mpsc::Receiver<Outgoing>,
    limits: TcpLimits,
) -> io::Result<()> {
    let mut framed = Vec::with_capacity(1024);
    while let Some(first) = ready.recv().await {
        framed.clear();
        let mut next = Some(first);
        // What is ready together goes out together.
        while let Some(reply) = next {
            let Ok(length) = u16::try_from(reply.octets.len()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            framed.extend_from_slice(&length.to_be_bytes());
            framed.extend_from_slice(&reply.octets);
            next = if framed.len() < GATHERED {
                ready.try_recv().ok()
            } else {
                None
            };
        }
        timeout(limits.write, writing.write_all(&framed)).await??;
    }
    Ok(())
}
