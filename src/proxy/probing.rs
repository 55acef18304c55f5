//! The bound on probes that are under way at one time, over all pools. Beyond it probes wait, and are late.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Places for probes.
#[derive(Debug)]
pub struct ProbeBudget {
    places: Semaphore,
    limit: usize,
    waiting: AtomicU32,
}

impl ProbeBudget {
    /// `limit`: at least one.
    pub fn new(limit: usize) -> Arc<Self> {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            places: Semaphore::new(limit),
            limit,
            waiting: AtomicU32::new(0),
        })
    }

    /// A place for one probe, as soon as there is one; given back when dropped.
    ///
    /// # Errors
    /// When there will never be one any more.
    pub async fn admit(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        match self.places.try_acquire() {
            Ok(place) => Ok(place),
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                self.places.acquire().await
            }
        }
    }

    /// Probes under way.
    pub fn under_way(&self) -> usize {
        self.limit.saturating_sub(self.places.available_permits())
    }

    /// Probes that are due and wait for a place.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    pub fn limit(&self) -> usize {
        self.limit
    }
}

/// One who waits is counted, also when its task is aborted meanwhile.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn probes_beyond_the_bound_wait_and_are_counted() {
        let budget = ProbeBudget::new(1);
        let first = budget.admit().await.unwrap();
        assert_eq!((budget.under_way(), budget.waiting()), (1, 0));
        let mut second = Box::pin(budget.admit());
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!((budget.under_way(), budget.waiting()), (1, 1));
        drop(first);
        let second = second.await.unwrap();
        assert_eq!((budget.under_way(), budget.waiting()), (1, 0));
        let mut gone = Box::pin(budget.admit());
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(second);
        assert_eq!((budget.under_way(), budget.waiting()), (0, 0));
    }
}
