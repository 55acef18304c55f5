//! Deliberate defects: what a node does wrong so that `jepsen-like self-test` can show that its checkers find it.
//!
//! Only a program built with the feature `defects` has any, and it does nothing unless the environment names one (or says
//! `none`). Any other program refuses to start where that variable is set, so that nobody runs a defective node by accident, or
//! takes a sound one for defective. Without the feature `is` is constant: what stands behind it is not compiled in.

use std::{ffi::OsStr, str::FromStr, time::Duration};

/// The environment variable that chooses a defect.
pub const VARIABLE: &str = "PONTOON_DEFECT";
/// What it says when the program is to have none.
pub const NONE: &str = "none";

macro_rules! defects {
    ($($name:ident = $text:literal, $doc:literal;)*) => {
        /// What a node does wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Defect { $(#[doc = $doc] $name,)* }

        impl Defect {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As the environment names it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// What is wrong, in one line.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $doc,)* }
            }
        }
    };
}

defects! {
    AcknowledgeBeforeCommit = "acknowledge-before-commit", "a leader says that a write is done before a majority has it";
    StaleReads = "stale-reads", "a linearizable read asks nobody and shows what this node has";
    BarrierWithoutFsync = "barrier-without-fsync", "what is written counts as durable before the disk was told to keep it";
    VipWithoutLease = "vip-without-lease", "a node that takes itself for the leader holds the VIPs, whether anybody answers it or not";
    FenceNeverExpires = "fence-never-expires", "the kernel's permission for a VIP's frames outlasts the lease by an hour";
    ApplyTwice = "apply-twice", "a retry of a command that was applied is applied again";
    SerialRestarts = "serial-restarts", "a zone that was deleted and is made again begins with its first serial";
    SnapshotMissesMap = "snapshot-misses-map", "snapshots leave out the commands that were applied lately";
    VoteNotPersisted = "vote-not-persisted", "a vote is given before it is stored, and never stored";
    VoteAfterRestart = "vote-after-restart", "a node votes as soon as it was started, whatever it promised before";
    BareTransfer = "bare-transfer", "leadership is handed over while the VIPs are still held";
}

/// No defect has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no defect is named {0}; `jepsen-like list` names them")]
pub struct UnknownDefect(String);

impl FromStr for Defect {
    type Err = UnknownDefect;

    fn from_str(text: &str) -> Result<Self, UnknownDefect> {
        Self::named(text).ok_or_else(|| UnknownDefect(text.to_owned()))
    }
}

impl Defect {
    fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|defect| defect.name() == name)
    }
}

/// The program may not run with this environment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    #[error(
        "it is {set:?}, and this program has no deliberate defects: it would be a sound node that is taken for a defective one"
    )]
    NoDefects { set: String },
    #[error(
        "it is not set, and this program was built with deliberate defects: it is not for service"
    )]
    NotSet,
    #[error("it is {set:?}, which is neither {NONE:?} nor the name of a defect")]
    Unknown { set: String },
}

impl SwitchError {
    /// What to do.
    pub fn hint(&self) -> String {
        match self {
            Self::NoDefects { .. } => format!(
                "unset {VARIABLE}; only `jepsen-like self-test` sets it, for a program that it builds with the feature `defects`"
            ),
            Self::NotSet | Self::Unknown { .. } => {
                let names: Vec<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
                format!(
                    "use another build, or set {VARIABLE} to {NONE:?} or one of {}",
                    names.join(", ")
                )
            }
        }
    }
}

/// What the environment asks of this program, if that is something it may do.
///
/// # Errors
/// Where the program has no defects and the variable is set, whatever to; where it has some and the variable is not set, or
/// names none of them.
pub fn chosen() -> Result<Option<Defect>, SwitchError> {
    choose(
        cfg!(feature = "defects"),
        std::env::var_os(VARIABLE).as_deref(),
    )
}

fn choose(has_defects: bool, set: Option<&OsStr>) -> Result<Option<Defect>, SwitchError> {
    let set = set.map(|set| set.to_string_lossy().into_owned());
    match (has_defects, set) {
        (false, None) => Ok(None),
        (false, Some(set)) => Err(SwitchError::NoDefects { set }),
        (true, None) => Err(SwitchError::NotSet),
        (true, Some(set)) if set == NONE => Ok(None),
        (true, Some(set)) => match Defect::named(&set) {
            Some(defect) => Ok(Some(defect)),
            None => Err(SwitchError::Unknown { set }),
        },
    }
}

/// Whether this process has the defect.
#[cfg(feature = "defects")]
pub fn is(defect: Defect) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<Defect>> =
        std::sync::LazyLock::new(|| chosen().ok().flatten());
    *CHOSEN == Some(defect)
}

/// Whether this process has the defect: no.
#[cfg(not(feature = "defects"))]
#[inline(always)]
pub const fn is(_: Defect) -> bool {
    false
}

/// The time by which a process with the defect is late; none without it.
pub fn extra(defect: Defect, time: Duration) -> Duration {
    if is(defect) { time } else { Duration::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_read_back() {
        for defect in Defect::ALL {
            assert_eq!(Defect::named(defect.name()), Some(*defect));
            assert_ne!(defect.name(), NONE);
        }
        assert_eq!(Defect::named(""), None);
    }

    #[test]
    fn a_program_without_defects_refuses_every_switch() {
        assert_eq!(choose(false, None), Ok(None));
        let names = Defect::ALL.iter().map(|defect| defect.name());
        for set in names.chain([NONE, "", "x"]) {
            let refused = choose(false, Some(OsStr::new(set))).unwrap_err();
            assert!(refused.hint().contains(VARIABLE), "{refused}");
            assert_eq!(
                refused,
                SwitchError::NoDefects {
                    set: set.to_owned()
                }
            );
        }
    }

    #[test]
    fn a_program_with_defects_does_nothing_unless_told() {
        assert_eq!(choose(true, None), Err(SwitchError::NotSet));
        assert_eq!(choose(true, Some(OsStr::new(NONE))), Ok(None));
        for defect in Defect::ALL {
            assert_eq!(
                choose(true, Some(OsStr::new(defect.name()))),
                Ok(Some(*defect))
            );
        }
        for unknown in ["", "vip", "VIP-WITHOUT-LEASE"] {
            let refused = choose(true, Some(OsStr::new(unknown))).unwrap_err();
            assert!(refused.hint().contains("bare-transfer"), "{refused}");
        }
    }

    #[cfg(not(feature = "defects"))]
    #[test]
    fn without_the_feature_there_are_none() {
        assert!(Defect::ALL.iter().all(|defect| !is(*defect)));
    }
}
