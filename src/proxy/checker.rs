//! Probing backends. One task a backend, owned by the [`Checker`] and aborted with it; the counting is `health`'s.
//!
//! Every node probes for its own forwarding and keeps its own verdict. A backend is probed whatever its state, so that the
//! verdict is known when it is enabled again. Probes of all backends share a bound; while it is reached they are late. What
//! this node lacks is no backend's fault: a probe that cannot be made is counted and changes no verdict.

use std::{io, net::SocketAddr, sync::Arc, time::Instant};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{
    connection::{Told, connect},
    health::{Health, ProbeResult, Verdict},
    live::LiveBackend,
    probing::ProbeBudget,
};
use crate::{
    model::{
        health::{HealthCheck, Probe},
        label::Label,
    },
    shortage::shortage,
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
        places: Arc<ProbeBudget>,
        told: Arc<Told>,
        spread: u16,
    ) -> Self {
        let health = Health::new(&check, Instant::now(), spread);
        backend.note_health(&health, Instant::now());
        let (definition, changes) = watch::channel(check);
        let watcher = Watcher {
            pool,
            backend,
            health,
            places,
            told,
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
    places: Arc<ProbeBudget>,
    told: Arc<Told>,
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
        let Ok(_place) = self.places.admit().await else {
            return;
        };
        let check = self.changes.borrow().clone();
        let begun = Instant::now();
        let outcome = probe(self.backend.address, &check).await;
        let now = Instant::now();
        let result = judge(&outcome);
        let changed = self.health.handle_probe(result, begun, now);
        let error = outcome.err().map(|error| format!("health check: {error}"));
        if result == ProbeResult::Unmade {
            self.backend.note_unmade_probe();
            if let Some(left_out) = self.told.probing.admit(now) {
                let (pool, backend, error) =
                    (&self.pool, &self.backend.name, error.unwrap_or_default());
                tracing::warn!(%pool, %backend, error, left_out, "a backend could not be probed for want of something on this node; its verdict stays");
            }
            return;
        }
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

/// What the outcome of a probe says of the backend: nothing, when this node could not make it.
fn judge(outcome: &io::Result<()>) -> ProbeResult {
    match outcome {
        Ok(()) => ProbeResult::Passed,
        Err(error) if shortage(error).is_some() => ProbeResult::Unmade,
        Err(_) => ProbeResult::Failed,
    }
}

/// Carries out one probe.
async fn probe(address: SocketAddr, check: &HealthCheck) -> io::Result<()> {
    match check.probe {
        Probe::TcpConnect => connect(address, check.timeout).await.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_this_node_could_not_make_is_no_failure() {
        let failed = |number| judge(&Err(io::Error::from_raw_os_error(number)));
        for number in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
        ] {
            assert_eq!(failed(number), ProbeResult::Unmade);
        }
        for number in [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH] {
            assert_eq!(failed(number), ProbeResult::Failed);
        }
        let late = judge(&Err(io::ErrorKind::TimedOut.into()));
        assert_eq!(
            (late, judge(&Ok(()))),
            (ProbeResult::Failed, ProbeResult::Passed)
        );
    }
}
