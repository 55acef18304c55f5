//! How the group counts time: a setting of the whole cluster, held in the log.
//!
//! Three profiles have names, and any numbers that pass `check` may be set instead. What a leader may rely on is the time
//! for which voters refuse to elect another, so every number here is bound to the others; `check` says how, in numbers.

use std::{fmt, time::Duration};

use crate::config::units::format_duration;

/// How the group counts time. Whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// Between two rounds of heartbeats.
    pub heartbeat: Duration,
    /// From one attempt of a node to be elected to its next, at least.
    pub election_timeout_min: Duration,
    /// For this long after the last sign of life of a leader a voter elects nobody else.
    pub election_timeout_max: Duration,
}

/// The setting of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Nodes in one building.
    #[default]
    Lan,
    /// Nodes on one switch, with disks that flush in a few milliseconds, on machines with processor time to spare.
    Fast,
    /// Sites up to some 80 ms apart.
    Wan,
    Custom(Timing),
}

/// Numbers of a timing that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingFault {
    #[error("{what} is {is}, expected {least} to {most}", is = format_duration(*is), least = format_duration(*least), most = format_duration(*most))]
    OutOfRange {
        what: &'static str,
        is: Duration,
        least: Duration,
        most: Duration,
    },
    #[error("{what} is {is}, not a whole number of milliseconds", is = format_duration(*is))]
    NotWhole { what: &'static str, is: Duration },
    #[error(
        "election_timeout_min ({min}) has to be below election_timeout_max ({max})",
        min = format_duration(*min), max = format_duration(*max)
    )]
    MinAboveMax { min: Duration, max: Duration },
    #[error(
        "election_timeout_max {max} gives a lease of {lease} (nine tenths); less {margin} of margins, {left} are left for heartbeats, \
         and {ROUNDS} rounds at {heartbeat} need {needed}: lengthen election_timeout_max or shorten heartbeat",
        max = format_duration(*max), lease = format_duration(*lease), margin = format_duration(LEASE_MARGIN), left = format_duration(*left),
        heartbeat = format_duration(*heartbeat), needed = format_duration(*heartbeat * ROUNDS)
    )]
    FewRounds {
        max: Duration,
        lease: Duration,
        left: Duration,
        heartbeat: Duration,
    },
    #[error(
        "election_timeout_min is {min}, and one flush of a voter's disk took {flush} lately: an election needs two flushes one \
         after the other and as much again to spare, so at least {needed}: choose a slower profile or a faster disk",
        min = format_duration(*min), flush = format_duration(*flush), needed = format_duration(*flush * FLUSHES)
    )]
    SlowDisk { min: Duration, flush: Duration },
}

/// Rounds of heartbeats that have to fit into the usable part of a lease: one may be lost, one may be late.
const ROUNDS: u32 = 3;
/// Flushes that have to fit into the shortest time between two attempts: a vote and the first entry, twice over.
const FLUSHES: u32 = 4;
/// What VIPs take off a lease: 30 ms for a permission that the kernel counts (`vip::fence::RESERVE`), 30 ms for a late timer
/// (`vip::machine::Timing::margin`).
pub const LEASE_MARGIN: Duration = Duration::from_millis(60);
/// The shortest time of refusal. openraft's own lease, which cannot be changed while it runs, is this long.
pub const SHORTEST_REFUSAL: Duration = Duration::from_millis(180);
/// The longest time of refusal.
pub const LONGEST_REFUSAL: Duration = Duration::from_secs(30);
const SHORTEST_HEARTBEAT: Duration = Duration::from_millis(10);
/// openraft takes writes only while a quorum answered within `SHORTEST_REFUSAL`.
const LONGEST_HEARTBEAT: Duration = Duration::from_millis(60);
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(40);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

impl Timing {
    pub const LAN: Self = Self {
        heartbeat: ms(40),
        election_timeout_min: ms(200),
        election_timeout_max: ms(280),
    };
    pub const FAST: Self = Self {
        heartbeat: ms(20),
        election_timeout_min: ms(100),
        election_timeout_max: ms(180),
    };
    pub const WAN: Self = Self {
        heartbeat: ms(60),
        election_timeout_min: ms(1000),
        election_timeout_max: ms(2500),
    };

    /// How long a leader may rely on a round of heartbeats from the moment it sent it, if every voter keeps this timing:
    /// nine tenths of the time of refusal, for clocks that run up to 5 % apart on both sides.
    pub fn lease(&self) -> Duration {
        lease_of(self.election_timeout_max)
    }

    /// By how much later each voter campaigns than the one before it in rank.
    pub fn stagger(&self) -> Duration {
        (self
            .election_timeout_max
            .saturating_sub(self.election_timeout_min)
            / 2)
        .clamp(ms(10), ms(200))
    }

    /// The slowest flush of a voter's disk that leaves room for an election between two attempts.
    pub fn slowest_flush(&self) -> Duration {
        self.election_timeout_min / FLUSHES
    }

    /// Whether the numbers go together. `flush`: how long a flush of a voter's disk takes, where that was measured.
    ///
    /// # Errors
    /// The first thing that is wrong, with the numbers.
    pub fn check(&self, flush: Option<Duration>) -> Result<(), TimingFault> {
        let Self {
            heartbeat,
            election_timeout_min: min,
            election_timeout_max: max,
        } = *self;
        for (what, is, least, most) in [
            (
                "heartbeat",
                heartbeat,
                SHORTEST_HEARTBEAT,
                LONGEST_HEARTBEAT,
            ),
            (
                "election_timeout_min",
                min,
                SHORTEST_ATTEMPT,
                LONGEST_REFUSAL,
            ),
            (
                "election_timeout_max",
                max,
                SHORTEST_REFUSAL,
                LONGEST_REFUSAL,
            ),
        ] {
            if is.subsec_nanos() % 1_000_000 != 0 {
                return Err(TimingFault::NotWhole { what, is });
            }
            if is < least || is > most {
                return Err(TimingFault::OutOfRange {
                    what,
                    is,
                    least,
                    most,
                });
            }
        }
        if min >= max {
            return Err(TimingFault::MinAboveMax { min, max });
        }
        let lease = self.lease();
        let left = lease.saturating_sub(LEASE_MARGIN);
        if left < heartbeat * ROUNDS {
            return Err(TimingFault::FewRounds {
                max,
                lease,
                left,
                heartbeat,
            });
        }
        match flush {
            Some(flush) if min < flush * FLUSHES => Err(TimingFault::SlowDisk { min, flush }),
            _ => Ok(()),
        }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::LAN
    }
}

/// The lease that a time of refusal permits.
pub fn lease_of(refusal: Duration) -> Duration {
    refusal * 9 / 10
}

impl Profile {
    pub fn timing(self) -> Timing {
        match self {
            Self::Lan => Timing::LAN,
            Self::Fast => Timing::FAST,
            Self::Wan => Timing::WAN,
            Self::Custom(timing) => timing,
        }
    }

    /// `lan`, `fast`, `wan` or `custom`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Fast => "fast",
            Self::Wan => "wan",
            Self::Custom(_) => "custom",
        }
    }

    /// The profile of that name; none for `custom`, which has numbers of its own.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Lan, Self::Fast, Self::Wan]
            .into_iter()
            .find(|profile| profile.word() == word)
    }

    /// The profile with these numbers: a named one where there is one.
    pub fn of_timing(timing: Timing) -> Self {
        [Self::Lan, Self::Fast, Self::Wan]
            .into_iter()
            .find(|profile| profile.timing() == timing)
            .unwrap_or(Self::Custom(timing))
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timing(heartbeat: u64, min: u64, max: u64) -> Timing {
        Timing {
            heartbeat: ms(heartbeat),
            election_timeout_min: ms(min),
            election_timeout_max: ms(max),
        }
    }

    #[test]
    fn the_named_profiles_pass_their_own_check() {
        for profile in [Profile::Lan, Profile::Fast, Profile::Wan] {
            assert_eq!(profile.timing().check(Some(ms(20))), Ok(()), "{profile}");
            assert_eq!(Profile::of_word(profile.word()), Some(profile));
            assert_eq!(Profile::of_timing(profile.timing()), profile);
        }
        assert_eq!(Profile::of_word("custom"), None);
        assert_eq!(Timing::LAN.lease(), ms(252));
        assert_eq!(Timing::FAST.lease(), ms(162));
    }

    #[test]
    fn a_fault_prints_the_numbers() {
        // (timing, flush, what the message holds)
        let cases = [
            (
                timing(5, 200, 280),
                None,
                "heartbeat is 5ms, expected 10ms to 60ms",
            ),
            (
                timing(40, 200, 100),
                None,
                "election_timeout_max is 100ms, expected 180ms to 30s",
            ),
            (
                timing(40, 300, 280),
                None,
                "election_timeout_min (300ms) has to be below election_timeout_max (280ms)",
            ),
            (
                timing(60, 100, 200),
                None,
                "gives a lease of 180ms (nine tenths); less 60ms of margins, 120ms are left for heartbeats, and 3 rounds at 60ms need 180ms",
            ),
            (
                Timing::FAST,
                Some(ms(26)),
                "election_timeout_min is 100ms, and one flush of a voter's disk took 26ms",
            ),
            (Timing::FAST, Some(ms(26)), "at least 104ms"),
        ];
        for (timing, flush, text) in cases {
            let fault = timing.check(flush).unwrap_err().to_string();
            assert!(fault.contains(text), "{fault}");
        }
        let uneven = Timing {
            heartbeat: Duration::from_micros(40_500),
            ..Timing::LAN
        };
        assert!(matches!(
            uneven.check(None),
            Err(TimingFault::NotWhole { .. })
        ));
    }

    proptest! {
        /// What passes keeps the lease below the refusal even for clocks 5 % apart, with room for three rounds.
        #[test]
        fn what_passes_is_safe(heartbeat in 0u64..100, min in 0u64..40_000, max in 0u64..40_000, flush in 0u64..50) {
            let timing = timing(heartbeat, min, max);
            if timing.check(Some(ms(flush))).is_ok() {
                let slow_leader = timing.lease() * 105 / 100;
                let fast_voter = timing.election_timeout_max * 100 / 105;
                prop_assert!(slow_leader < fast_voter);
                prop_assert!(timing.lease() - LEASE_MARGIN >= timing.heartbeat * 3);
                prop_assert!(timing.election_timeout_max >= SHORTEST_REFUSAL);
                prop_assert!(ms(flush) * 4 <= timing.election_timeout_min);
            }
        }
    }
}
