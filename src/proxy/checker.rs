//! Probing backends. One task a backend, owned by the [`Checker`] and aborted with it; the counting is `health`'s.
//!
//! Every node probes for its own forwarding and keeps its own verdict. A backend is probed whatever its state, so that the
//! verdict is known when it is enabled again. Probes of all backends share a bound; while it is reached they are late.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::connect,
    health::{Health, ProbeResult, Verdict},
    live::LiveBackend,
};
use crate::model::{
    health::{HealthCheck, Probe},
    label::Label,
};

/// The running health check of one backend; dropping it ends the check.
#[derive(Debug)]
pub struct Checker {
    definition: watch::Sender<HealthCheck>,
    _task: AbortOnDropHandle<()>,
}

impl Checker {
    /// Starts on the current runtime. `spread` places the first probe, see [`Health::new`].
    pub fn start(
        pool: Label,
        backend: Arc<LiveBackend>,
        check: HealthCheck,
        permits: Arc<Semaphore>,
        spread: u16,
    ) -> Self {
        let health = Health::new(&check, Instant::now(), spread);
        backend.note_health(&health, Instant::now());
        let (definition, changes) = watch::channel(check);
        let watcher = Watcher {
            pool,
            backend,
            health,
            permits,
            changes,
        };
        Self {
            definition,
            _task: AbortOnDropHandle::new(tokio::spawn(watcher.run())),
        }
    }

    /// Takes on a changed definition; the verdict stays.
    pub fn redefine(&self, check: HealthCheck) {
        self.definition.send_replace(check);
    }
}

struct Watcher {
    pool: Label,
    backend: Arc<LiveBackend>,
    health: Health,
    permits: Arc<Semaphore>,
    changes: watch::Receiver<HealthCheck>,
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let due = self.health.next_deadline().into();
            tokio::select! {
                // Neither branch holds anything; the deadline is computed anew.
                () = tokio::time::sleep_until(due) => self.probe_once().await,
                changed = self.changes.changed() => match changed {
                    Ok(()) => {
                        let check = self.changes.borrow_and_update().clone();
                        self.health.redefine(&check, Instant::now());
                    }
                    Err(_) => return, // the checker is gone
                },
            }
        }
    }

    async fn probe_once(&mut self) {
        let Ok(_permit) = self.permits.acquire().await else {
            return;
        };
        let check = self.changes.borrow().clone();
        let begun = Instant::now();
        let error = probe(self.backend.address, &check).await.err();
        let now = Instant::now();
        let result = match error {
            None => ProbeResult::Passed,
            Some(_) => ProbeResult::Failed,
        };
        let changed = self.health.handle_probe(result, begun, now);
        self.backend.note_probe(&self.health, error.clone(), now);
        if let Some(verdict) = changed {
            self.log_change(verdict, error);
        }
    }

    fn log_change(&self, verdict: Verdict, error: Option<String>) {
        let (pool, backend, address) = (&self.pool, &self.backend.name, self.backend.address);
        match verdict {
            Verdict::Up => tracing::info!(%pool, %backend, %address, "backend is up"),
            Verdict::Down => {
                let error = error.unwrap_or_default();
                tracing::warn!(%pool, %backend, %address, error, "backend is down");
            }
        }
    }
}

/// Carries out one probe.
async fn probe(address: SocketAddr, check: &HealthCheck) -> Result<(), String> {
    match check.probe {
        Probe::TcpConnect => connect(address, check.timeout)
            .await
            .map(drop)
            .map_err(|error| format!("health check: {error}")),
    }
}
