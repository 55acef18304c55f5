//! How long one upstream is waited for, so that those behind it are asked in time too.

use std::time::Duration;

/// A wait that would be shorter is not begun: nobody can be blamed for it.
const SHORTEST: Duration = Duration::from_millis(10);

/// The wait for the next of `servers` that are still to be asked: `timeout`, but at most an equal share of the time that is
/// `left` for the question. None when too little is left.
pub(super) fn share(left: Duration, servers: usize, timeout: Duration) -> Option<Duration> {
    let servers = u32::try_from(servers.max(1)).unwrap_or(u32::MAX);
    let wait = timeout.min(left / servers);
    (wait >= SHORTEST).then_some(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: Duration = Duration::from_secs(10);

    #[test]
    fn a_timeout_that_fits_is_kept_and_a_longer_one_is_shared() {
        let seconds = Duration::from_secs;
        assert_eq!(share(TOTAL, 5, seconds(2)), Some(seconds(2)));
        assert_eq!(share(TOTAL, 2, seconds(15)), Some(seconds(5)));
        assert_eq!(share(seconds(5), 1, seconds(15)), Some(seconds(5)));
        assert_eq!(share(Duration::ZERO, 1, seconds(1)), None);
        assert_eq!(share(Duration::from_millis(9), 1, seconds(1)), None);
    }

    proptest! {
        /// Though every upstream is silent: each is asked, and the time is kept.
        #[test]
        fn every_upstream_is_asked_in_time(servers in 1usize..=16, timeout in 10u64..=30_000) {
            let timeout = Duration::from_millis(timeout);
            let mut left = TOTAL;
            for at in 0..servers {
                let wait = share(left, servers - at, timeout);
                prop_assert!(wait.is_some_and(|wait| wait <= left && wait <= timeout));
                left -= wait.unwrap_or_default();
            }
        }
    }
}
