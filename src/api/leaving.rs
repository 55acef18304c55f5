//! Leaves under way: they go on without their callers, and end with the API.
//!
//! A leave whose caller goes away must not be cut in the middle: the node would be removed, and its process go on. So each is a task, which
//! belongs to the API: whoever stops the API waits for it, and cancels it when patience ends.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::oneshot, task::JoinSet};

use crate::wire::error::{Failure, FailureCode};

/// The leaves that one API carries out. Dropping it cancels them.
#[derive(Default)]
pub struct Leaves(Mutex<JoinSet<()>>);

impl Leaves {
    /// Carries out a leave to its end, also when this future is dropped. How many there are at a time is the caller's to bound.
    pub async fn carry_out(
        &self,
        leave: impl Future<Output = Result<(), Failure>> + Send + 'static,
    ) -> Result<(), Failure> {
        let (end, ended) = oneshot::channel();
        {
            let mut tasks = self.tasks();
            while tasks.try_join_next().is_some() {} // they have told how they ended
            tasks.spawn(async move {
                let _ = end.send(leave.await); // the caller has gone
            });
        }
        ended.await.unwrap_or_else(|_| Err(cut_short()))
    }

    /// Waits until those under way have ended. Cancels them when this future is dropped.
    pub async fn wait_end(&self) {
        let mut tasks = mem::take(&mut *self.tasks());
        while tasks.join_next().await.is_some() {}
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The node stops, or the leave ended by a panic.
fn cut_short() -> Failure {
    Failure::new(
        FailureCode::UnknownOutcome,
        "node",
        "its leave was cut short",
        "`pontoon cluster status` on another node shows whether it is still a member",
    )
}

#[cfg(test)]
mod tests {
    use std::{future::ready, pin::pin, sync::Arc};

    use tokio::sync::{Notify, watch};

    use super::*;

    /// A leave that goes on when it is told to, and whether it has ended and how: `Some(true)` for a whole one, `Some(false)` for one that
    /// was cancelled.
    struct Held {
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
        end: watch::Receiver<Option<bool>>,
    }

    /// Tells of a leave that goes without having ended.
    struct Told(watch::Sender<Option<bool>>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send_if_modified(|end| {
                let is_cancelled = end.is_none();
                end.get_or_insert(false);
                is_cancelled
            });
        }
    }

    impl Held {
        /// One that is under way, and whose caller has gone.
        async fn begin(leaves: &Leaves) -> Self {
            let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (told, end) = watch::channel(None);
            let told = Told(told);
            let held = Self {
                begun: Arc::clone(&begun),
                go_on: Arc::clone(&go_on),
                end,
            };
            let call = leaves.carry_out(async move {
                begun.notify_one();
                go_on.notified().await;
                told.0.send_replace(Some(true));
                Ok(())
            });
            tokio::select! {
                ended = call => panic!("before it was told to go on: {ended:?}"),
                () = held.begun.notified() => {}
            }
            held
        }

        async fn is_whole(&mut self) -> bool {
            let end = self.end.wait_for(Option::is_some);
            end.await.expect("it tells").expect("it has ended")
        }
    }

    #[tokio::test]
    async fn a_leave_whose_caller_has_gone_is_waited_for() {
        let leaves = Leaves::default();
        let mut held = Held::begin(&leaves).await;
        let mut end = pin!(leaves.wait_end());
        tokio::select! {
            biased;
            () = &mut end => panic!("not while a leave is under way"),
            () = ready(()) => {}
        }
        held.go_on.notify_one();
        end.await;
        assert!(held.is_whole().await);
    }

    #[tokio::test]
    async fn whoever_has_no_more_patience_cancels_it() {
        let leaves = Leaves::default();
        let mut held = Held::begin(&leaves).await;
        {
            let mut end = pin!(leaves.wait_end());
            tokio::select! {
                biased;
                () = &mut end => panic!("not while a leave is under way"),
                () = ready(()) => {}
            }
        }
        assert!(!held.is_whole().await);
        let mut another = Held::begin(&leaves).await;
        drop(leaves);
        assert!(!another.is_whole().await);
    }

    #[tokio::test]
    async fn a_caller_that_stays_is_told_of_the_end() {
        let leaves = Leaves::default();
        assert_eq!(leaves.carry_out(ready(Ok(()))).await, Ok(()));
        let refused = Failure::new(
            FailureCode::Conflict,
            "node 1",
            "it would lose the quorum",
            "",
        );
        let told = leaves.carry_out(ready(Err(refused.clone()))).await;
        assert_eq!(told, Err(refused));
        let panicked = leaves
            .carry_out(async { panic!("a fault of the program") })
            .await;
        assert_eq!(panicked, Err(cut_short()));
    }
}
