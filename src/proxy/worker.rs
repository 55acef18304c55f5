//! Worker threads: one single-threaded runtime each, on which listeners accept and connections live from accept to end.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// One worker thread. It ends when stopped and its connections are over; dropping it does not end it.
#[derive(Debug)]
pub struct Worker {
    pub runtime: Handle,
    /// Owns the tasks of this worker's connections.
    pub connections: TaskTracker,
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    pub fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (connections, stop) = (TaskTracker::new(), CancellationToken::new());
        let (tracker, stopped) = (connections.clone(), stop.clone());
        let thread = thread::Builder::new()
            .name(format!("proxy-{number}"))
            .spawn(move || {
                runtime.block_on(async {
                    stopped.cancelled().await;
                    tracker.close();
                    tracker.wait().await;
                });
            })?;
        Ok(Self {
            runtime: handle,
            connections,
            stop,
            thread,
        })
    }

    /// Waits for its connections, which the caller has told to end, and for the thread.
    pub fn join(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("a proxy worker thread had panicked");
        }
    }
}
