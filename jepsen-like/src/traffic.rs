//! Connections with traffic through a VIP, and the echo service at their other end: what a planned move must not cost.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use pontoon::{
    model::{
        listener::{ListenAddress, Listener},
        pool::{Backend, BackendState, Pool},
    },
    state::command::Change,
};

use crate::lab::{LabError, cluster::wait_for, namespace::Namespace};

/// Between two exchanges of one connection.
const PACE: Duration = Duration::from_millis(100);
/// A connection that is silent for so long is lost.
const SILENCE: Duration = Duration::from_secs(8);
const EXCHANGED_WITHIN: Duration = Duration::from_secs(30);
/// Threads that only copy octets.
const STACK: usize = 64 << 10;
const MESSAGE: usize = 100;
/// Connections that may wait to be accepted.
const QUEUE: i32 = 4096;

/// The changes that put a listener on every address of the nodes in front of an echo service.
///
/// # Panics
/// Never: the names are valid.
pub fn echo_site(port: u16, service: SocketAddr) -> [Change; 2] {
    let name = || "echo".parse().expect("a valid label");
    let mut pool = Pool::new(name());
    pool.backends = vec![Backend {
        name: name(),
        address: service,
        weight: 1,
        state: BackendState::Enabled,
    }];
    let listener = Listener::new(name(), ListenAddress::EveryNode, port, name());
    [
        Change::PutPool { pool, create: true },
        Change::PutListener {
            listener,
            create: true,
        },
    ]
}

/// Sends back what comes to `listener`, until the process ends: a lab's hosts are gone before.
///
/// # Panics
/// When the listener takes no longer queue.
pub fn serve_echo(listener: TcpListener) {
    // A thousand connections may come before the first is accepted; those that find no room are lost without any fault of others.
    let queue = nix::sys::socket::Backlog::new(QUEUE).expect("a queue of that length");
    nix::sys::socket::listen(&listener, queue).expect("a listener listens");
    let serve = move || {
        loop {
            // One that has ended in the queue says nothing about the others.
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(PACE);
                continue;
            };
            let copying = std::thread::Builder::new().stack_size(STACK);
            if let Err(error) = copying.spawn(move || copy_back(stream)) {
                // Nobody is left to tell when that fails.
                let _ = writeln!(
                    io::stderr(),
                    "the echo service cannot serve a connection: {error}"
                );
            }
        }
    };
    std::thread::spawn(serve);
}

fn copy_back(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true); // only speed
    // Of a connection whose packets no longer find their way here nothing is heard ever again, not even its end.
    if stream.set_read_timeout(Some(2 * SILENCE)).is_err() {
        return;
    }
    let mut octets = [0; 256];
    while let Ok(read @ 1..) = stream.read(&mut octets) {
        let Some(came) = octets.get(..read) else {
            return;
        };
        if stream.write_all(came).is_err() {
            return;
        }
    }
}

/// How far a connection came.
#[derive(Debug, Default)]
struct Progress {
    exchanges: AtomicU64,
    has_ended: AtomicBool,
}

/// Connections with traffic, until they are told to end.
#[derive(Debug)]
pub struct Traffic {
    over: Arc<AtomicBool>,
    /// Of each connection.
    progress: Vec<Arc<Progress>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Traffic {
    /// Opens `count` connections from `client` to `service`.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn start(client: &Namespace, service: SocketAddr, count: usize) -> Result<Self, LabError> {
        let failed = |source| LabError::Enter {
            namespace: client.name().to_owned(),
            source,
        };
        let connect = || {
            let connect = |_| TcpStream::connect_timeout(&service, SILENCE);
            (0..count).map(connect).collect::<io::Result<Vec<_>>>()
        };
        let streams = client.enter(connect)?.map_err(failed)?;
        let mut traffic = Self {
            over: Arc::default(),
            progress: vec![],
            threads: vec![],
        };
        for (number, stream) in streams.into_iter().enumerate() {
            let (over, progress) = (traffic.over.clone(), Arc::<Progress>::default());
            traffic.progress.push(progress.clone());
            let talk = move || {
                let end = talk(stream, number, &over, &progress.exchanges);
                progress.has_ended.store(true, Ordering::Relaxed);
                end
            };
            let thread = std::thread::Builder::new().stack_size(STACK).spawn(talk);
            traffic.threads.push(thread.map_err(failed)?);
        }
        Ok(traffic)
    }

    /// Waits for so many more exchanges of each connection that lives. Only after the first is a connection known to be one: before,
    /// it may stand in some queue, and not all the way through.
    ///
    /// # Errors
    /// When they do not come.
    pub fn wait_for_exchanges(&self, more: u64) -> Result<(), LabError> {
        let now = |progress: &Arc<Progress>| progress.exchanges.load(Ordering::Relaxed);
        let wanted: Vec<u64> = self.progress.iter().map(|p| now(p) + more).collect();
        wait_for("an exchange on each connection", EXCHANGED_WITHIN, || {
            let came = self.progress.iter().zip(&wanted).all(|(progress, wanted)| {
                progress.has_ended.load(Ordering::Relaxed) || now(progress) >= *wanted
            });
            Ok(came.then_some(()))
        })
    }

    /// How many have come to an end that nobody told them to.
    pub fn ended(&self) -> usize {
        let has_ended = |progress: &&Arc<Progress>| progress.has_ended.load(Ordering::Relaxed);
        self.progress.iter().filter(has_ended).count()
    }

    /// Ends them all. Why each ended that came to an end before.
    pub fn finish(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        let ends = self.threads.into_iter().map(|thread| match thread.join() {
            Ok(end) => end,
            Err(_) => Err(io::Error::other("its thread panicked")),
        });
        ends.filter_map(|end| end.err().map(|error| error.to_string()))
            .collect()
    }
}

fn talk(
    mut stream: TcpStream,
    number: usize,
    over: &AtomicBool,
    exchanges: &AtomicU64,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let sent = [(number % 251) as u8; MESSAGE];
    while !over.load(Ordering::Relaxed) {
        stream.write_all(&sent)?;
        let mut came = [0; MESSAGE];
        stream.read_exact(&mut came)?;
        if came != sent {
            return Err(io::Error::other("other octets came back"));
        }
        exchanges.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PACE);
    }
    Ok(())
}
