//! The UDP workers: each a thread with its own socket for every address, so that they share nothing but the snapshot.
//!
//! A worker blocks only in poll(2). It is told of changed sockets, and to stop, through a socket pair.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use super::{
    fast_path::FastPath,
    respond::{Client, Transport},
    service::{Progress, Service},
    socket::{BATCH, Batch, UdpPort, wait_readable, watched},
    stats::{Counters, Dropped},
};

/// Batches taken from one socket before the others have their turn.
const ROUNDS: usize = 8;

/// A worker as its owner sees it.
pub(super) struct Worker {
    shared: Arc<Shared>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ports: Mutex<Vec<Arc<UdpPort>>>,
    stop: AtomicBool,
}

impl Worker {
    pub fn start(name: String, service: Arc<Service>, counters: Arc<Counters>) -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let work = Work {
            shared: Arc::clone(&shared),
            woken,
            service,
            counters,
            batch: Batch::new(),
            fast_path: FastPath::new(),
        };
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || work.run())?;
        Ok(Self {
            shared,
            wake,
            thread: Some(thread),
        })
    }

    /// Gives the worker other sockets. Those it no longer has are closed at once.
    pub fn set_ports(&self, ports: Vec<Arc<UdpPort>>) {
        *self
            .shared
            .ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = ports;
        self.wake();
    }

    fn wake(&self) {
        // A full pair means that the worker has a wake-up waiting for it already.
        let _ = (&self.wake).write(&[0]);
    }

    /// Tells the worker to end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.set_ports(Vec::new());
    }

    /// Waits for the thread, which `stop` was called for.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a DNS worker had ended by a fault of its own");
        }
    }
}

/// A worker as its thread sees it.
struct Work {
    shared: Arc<Shared>,
    woken: UnixStream,
    service: Arc<Service>,
    counters: Arc<Counters>,
    batch: Batch,
    fast_path: FastPath,
}

impl Work {
    fn run(mut self) {
        let mut ports = Vec::new();
        let mut polled = vec![watched(self.woken.as_raw_fd())];
        loop {
            if let Err(error) = wait_readable(&mut polled, -1) {
                tracing::error!(%error, "a DNS worker cannot wait for queries");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            if polled.first().is_some_and(|wake| wake.revents != 0) {
                self.drain_wake_ups();
                if self.shared.stop.load(Ordering::Acquire) {
                    return;
                }
                ports = self.current_ports();
                polled.truncate(1);
                polled.extend(ports.iter().map(|port| watched(port.fd())));
                continue;
            }
            for (port, polled) in ports.iter().zip(&polled[1..]) {
                if polled.revents != 0 {
                    self.serve(port);
                }
            }
        }
    }

    fn drain_wake_ups(&mut self) {
        let mut octets = [0; 64];
        while matches!(self.woken.read(&mut octets), Ok(count) if count > 0) {}
    }

    fn current_ports(&self) -> Vec<Arc<UdpPort>> {
        self.shared
            .ports
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers what waits at one socket.
    fn serve(&mut self, port: &Arc<UdpPort>) {
        for _ in 0..ROUNDS {
            // An error here is of an earlier send (ICMP) or that nothing waits; poll tells what comes next.
            let Ok(count) = self.batch.receive(port) else {
                return;
            };
            for at in 0..count {
                // The thread must outlive whatever one message can do to it.
                let handled = catch_unwind(AssertUnwindSafe(|| self.handle(at, port)));
                if handled.is_err() {
                    self.counters.dropped(Dropped::Fault);
                    self.batch.replies[at].clear();
                }
            }
            for _ in 0..self.batch.send(port, count) {
                self.counters.dropped(Dropped::Unsendable);
            }
            if count < BATCH {
                return;
            }
        }
    }

    fn handle(&mut self, at: usize, port: &Arc<UdpPort>) {
        let Some(peer) = self.batch.peer(at).filter(|peer| peer.port() != 0) else {
            return self.counters.dropped(Dropped::Unsendable);
        };
        self.counters.query(Transport::Udp, peer.is_ipv6());
        if self.batch.message(at).is_none() {
            return self.counters.dropped(Dropped::TooLong);
        }
        let client = Client {
            address: peer.ip(),
            transport: Transport::Udp,
        };
        let snapshot = self.service.snapshot.load();
        let (message, out) = self.batch.pair(at);
        if let Some(copied) = self.fast_path.answer(&snapshot, message, client, out) {
            self.counters.copy(true);
            return self.counters.reply(copied.rcode, copied.truncated);
        }
        let progress = self
            .service
            .handle(&snapshot, message, client, &self.counters, out);
        let pending = match progress {
            Progress::Wait(pending) => pending,
            Progress::Done(replied) => {
                if let Some(source) = replied.and_then(|replied| replied.source) {
                    self.counters.copy(false);
                    self.fast_path.keep(&snapshot, message, out, source);
                }
                return;
            }
        };
        let way_back = self.batch.way_back(at, Arc::downgrade(port));
        let counters = Arc::clone(&self.counters);
        let work = async move {
            let mut reply = Vec::with_capacity(512);
            pending.finish(&counters, &mut reply).await;
            if way_back.send(&mut reply).is_err() {
                counters.dropped(Dropped::Unsendable);
            }
        };
        self.service.forwarding.spawn(&self.service.runtime, work);
    }
}
