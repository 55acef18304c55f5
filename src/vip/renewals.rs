//! Renewals of addresses that are under way, beside everything else: the kernel may keep one waiting while another program changes many
//! devices or addresses, and permissions have to be renewed meanwhile.
//!
//! Ends what is under way when dropped.

use std::collections::BTreeMap;

use tokio::task::{AbortHandle, JoinSet};

use super::machine::Target;

/// One renewal for each address at most, each with an outcome.
#[derive(Debug)]
pub struct Renewals<T> {
    running: JoinSet<(Target, T)>,
    of_target: BTreeMap<Target, AbortHandle>,
}

impl<T> Default for Renewals<T> {
    fn default() -> Self {
        Self {
            running: JoinSet::new(),
            of_target: BTreeMap::new(),
        }
    }
}

impl<T: Send + 'static> Renewals<T> {
    /// Begins one, unless one of this address is under way. Must be called within a runtime.
    pub fn begin(&mut self, target: &Target, renewal: impl Future<Output = T> + Send + 'static) {
        if self.of_target.contains_key(target) {
            return;
        }
        let name = target.clone();
        let running = self.running.spawn(async move { (name, renewal.await) });
        self.of_target.insert(target.clone(), running);
    }

    /// Nothing of it is done any more after this, and it has no outcome. On a runtime of one thread.
    pub fn cancel(&mut self, target: &Target) {
        if let Some(running) = self.of_target.remove(target) {
            running.abort();
        }
    }

    /// The next outcome. Dropping the future loses nothing.
    pub async fn next(&mut self) -> (Target, T) {
        loop {
            match self.running.join_next_with_id().await {
                None => std::future::pending().await,
                Some(Ok((id, (target, outcome)))) => {
                    // Not one that was cancelled when it had ended already.
                    if self.of_target.get(&target).is_some_and(|r| r.id() == id) {
                        self.of_target.remove(&target);
                        return (target, outcome);
                    }
                }
                Some(Err(error)) => {
                    self.of_target
                        .retain(|_, running| running.id() != error.id());
                    if error.is_panic() {
                        tracing::error!(%error, "the renewal of an address panicked");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn vip(last: u8) -> Target {
        Target {
            address: [10, 77, 0, last].into(),
            interface: "vip".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn one_that_waits_holds_up_no_other_and_is_begun_once() {
        let mut renewals = Renewals::default();
        renewals.begin(&vip(1), pending());
        renewals.begin(&vip(1), ready("again"));
        renewals.begin(&vip(2), ready("two"));
        assert_eq!(renewals.next().await, (vip(2), "two"));
        renewals.begin(&vip(2), ready("two again"));
        assert_eq!(renewals.next().await, (vip(2), "two again"));
        renewals.cancel(&vip(1));
        renewals.begin(&vip(1), ready("one"));
        assert_eq!(renewals.next().await, (vip(1), "one"));
        assert!(futures::poll!(Box::pin(renewals.next())).is_pending());
    }

    #[tokio::test]
    async fn one_that_was_cancelled_has_no_outcome_though_it_had_ended() {
        let mut renewals = Renewals::default();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        renewals.begin(&vip(1), async move {
            ended.send(()).unwrap();
            "old"
        });
        has_ended.await.unwrap();
        renewals.cancel(&vip(1));
        renewals.begin(&vip(1), ready("new"));
        assert_eq!(renewals.next().await, (vip(1), "new"));
        assert!(futures::poll!(Box::pin(renewals.next())).is_pending());
    }
}
