//! The fence: the kernel lets this node's frames about a VIP pass only while its lease lasts.
//!
//! `ruleset` says which frames pass, `message` turns that into netlink messages and back, `socket` carries them; this module owns
//! the rules on this node. A process that is paused, killed or hangs falls silent by itself, because the elements that permit its
//! frames expire in the kernel.
//!
//! **A permission never outlives its lease**, although the kernel counts from when it takes the request and the process may be
//! stopped between looking at the clock and asking. So a permission is given in two transactions. The first marks the moment: an
//! element that lives for `MOMENT_LASTS`. Then the clock is read, and the second transaction gives what is left of the lease, less
//! `RESERVE`, and consumes the mark; if the mark is gone, the kernel refuses all of it. What is given therefore began less than
//! `MOMENT_LASTS` after the clock was read, and ends before the lease does.
//!
//! Rules are replaced in one transaction and never absent. They stay when the process ends; only `uninstall` takes them away.

pub mod chance;
pub mod message;
pub mod ruleset;
pub mod socket;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use nix::errno::Errno;

use self::{
    message::{Hook, OWNED, PERSISTENT, Step, Table, key_of},
    ruleset::{Addresses, Ruleset, TABLE},
    socket::{SocketError, TableWatch, Transactions},
};
use crate::defect::{self, Defect};

/// How long a marked moment lasts: between reading the clock and the kernel's taking the permission. Normally 0.1 ms pass.
pub const MOMENT_LASTS: Duration = Duration::from_millis(20);
/// The kernel counts in ticks (10 ms at most, at HZ=100) and may notice the end of one a tick late.
pub const TICK: Duration = Duration::from_millis(10);
/// How long before the end of a lease the permission ends at the latest.
pub const RESERVE: Duration = MOMENT_LASTS.saturating_add(TICK);
/// Addresses that are permitted in one transaction: as many as the kernel takes well within the moment.
const PERMITTED_TOGETHER: usize = 250;
/// Tries to give a permission when the mark was gone already: the processor was elsewhere.
const PERMIT_TRIES: u32 = 3;

/// Why there is no fence, or a permission was not given.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error(
        "no fence: this process has no CAP_NET_ADMIN; run it as root, or grant the capability (AmbientCapabilities= in the \
         systemd unit)"
    )]
    NotPermitted,
    #[error("no fence: {problem}; the kernel needs nf_tables with netdev egress (Linux 5.16)")]
    Unsupported { problem: SocketError },
    #[error(
        "the fence belongs to another process (netlink port {port}): two nodes in one network namespace cannot both hold VIPs; \
         end the other one"
    )]
    OwnedByAnother { port: u32 },
    #[error("the fence is not as it was made: {0}")]
    NotAsMade(String),
    #[error("the fence failed: {0}")]
    Kernel(#[from] SocketError),
    #[error(
        "a permission was not given: {PERMIT_TRIES} times more than {MOMENT_LASTS:?} went by unnoticed"
    )]
    TooSlow,
}

impl FenceError {
    /// Nothing that this process could do again later would help.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            FenceError::NotPermitted | FenceError::Unsupported { .. }
        )
    }
}

/// The rules of this node, and the socket that owns them.
#[derive(Debug)]
pub struct Fence {
    transactions: Transactions,
    flags: u32,
    /// What was read back.
    standing: Option<Ruleset>,
}

impl Fence {
    /// Opens the socket and looks whether this process may and the kernel can; makes nothing yet.
    pub fn open() -> Result<Self, FenceError> {
        let mut fence = Self {
            transactions: Transactions::open().map_err(explain)?,
            flags: OWNED | PERSISTENT,
            standing: None,
        };
        fence.existing()?;
        Ok(fence)
    }

    /// As `open`, with tables that belong to nobody, as on kernels before 6.9: others may change them, and that is noticed.
    pub fn open_unowned() -> Result<Self, FenceError> {
        let mut fence = Self::open()?;
        fence.flags = 0;
        Ok(fence)
    }

    /// Hears of changes of the table by others. Must be called within a runtime.
    pub fn watch(&self) -> Result<TableWatch, FenceError> {
        Ok(TableWatch::open(TABLE, self.transactions.port())?)
    }

    /// Whether exactly this was read back, and nothing was heard of a change since.
    pub fn stands_for(&self, address: IpAddr, device: &str) -> bool {
        self.standing
            .as_ref()
            .is_some_and(|s| s.vips.contains(&address) && s.devices.contains(device))
    }

    pub fn stands_on(&self, device: &str) -> bool {
        self.standing
            .as_ref()
            .is_some_and(|s| s.devices.contains(device))
    }

    /// Whether there are rules of ours to permit anything in.
    pub fn is_made(&self) -> bool {
        self.standing.is_some()
    }

    /// Whether the kernel has exactly these rules.
    pub fn is_whole(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        self.read_back(wanted)
    }

    /// Something may have happened to the rules: they count no more until they were read back.
    pub fn doubt(&mut self) -> Option<Ruleset> {
        self.standing.take()
    }

    /// Makes the rules what they have to be, if they are not, and reads them back. Whether something was amiss or new: then all
    /// permissions are void.
    pub fn ensure(&mut self, wanted: &Ruleset) -> Result<Ensured, FenceError> {
        if self.standing.as_ref() == Some(wanted) {
            return Ok(Ensured::Stood);
        }
        if let Some(standing) = self.standing.take() {
            match self.transactions.commit(&standing.change(wanted)) {
                Ok(()) => {
                    self.read_back(wanted)?;
                    self.standing = Some(wanted.clone());
                    return Ok(Ensured::Stood);
                }
                // A chain went with the last of its devices (before 6.16), or somebody took something away.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.read_back(wanted).is_ok() {
            self.standing = Some(wanted.clone());
            return Ok(Ensured::Stood);
        }
        self.replace(wanted)?;
        self.read_back(wanted)?;
        self.standing = Some(wanted.clone());
        Ok(Ensured::Replaced)
    }

    /// Takes the rules that an earlier process left, or makes new ones. Nothing is permitted afterwards.
    pub fn begin(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        self.standing = None;
        self.replace(wanted)?;
        self.read_back(wanted)?;
        self.standing = Some(wanted.clone());
        Ok(())
    }

    fn replace(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        loop {
            let there_is_one = self.existing()?.is_some();
            let outcome = self
                .transactions
                .commit(&wanted.replace(there_is_one, self.flags));
            match outcome {
                // No owner (before 5.12), or none whose table outlives it (before 6.9): then none at all. A table that went with
                // its owner would leave the addresses without a fence.
                Err(error)
                    if self.flags != 0
                        && matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP)) =>
                {
                    self.flags = 0;
                }
                other => return other.map_err(explain),
            }
        }
    }

    /// Flags and owner of the table, if it is there.
    fn existing(&mut self) -> Result<Option<(u32, Option<u32>)>, FenceError> {
        let own = self.transactions.port();
        let facts = match self.transactions.ask(&Table(TABLE).read()) {
            Ok(bodies) => bodies.first().map(|body| message::table_facts(body)),
            Err(error) if error.errno() == Some(Errno::ENOENT) => None,
            Err(error) => return Err(explain(error)),
        };
        match facts {
            Some((flags, Some(port))) if flags & OWNED != 0 && port != own => {
                Err(FenceError::OwnedByAnother { port })
            }
            facts => Ok(facts),
        }
    }

    /// Whether the kernel has exactly these rules.
    fn read_back(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        let Some((flags, _)) = self.existing()? else {
            return Err(FenceError::NotAsMade("there is no table".into()));
        };
        expect_same("flags of the table", &self.flags, &flags)?;
        self.read_back_sets(wanted)?;
        self.read_back_chains(wanted)
    }

    fn read_back_sets(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        let ours = |body: &Vec<u8>| message::table_of(body).as_deref() == Some(TABLE);
        let bodies = self.transactions.ask(&Table(TABLE).read_sets())?;
        let mut there: Vec<_> = bodies
            .iter()
            .filter(|body| ours(body))
            .map(|body| message::set_of(body).map(|set| (set.name, set.key_length, set.timed)))
            .collect();
        let mut expected: Vec<_> = ruleset::sets()
            .map(|(name, key_length, timed)| Some((name.to_owned(), key_length, timed)))
            .collect();
        there.sort();
        expected.sort();
        expect_same("sets", &expected, &there)?;
        for any in [
            IpAddr::from([0, 0, 0, 0]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 0]),
        ] {
            let set = Addresses::Vips.set_for(any);
            let bodies = self.transactions.ask(&Table(TABLE).read_elements(set))?;
            let there: BTreeSet<_> = bodies
                .iter()
                .flat_map(|body| message::keys_of(body))
                .collect();
            let expected: BTreeSet<_> = wanted
                .vips
                .iter()
                .filter(|address| address.is_ipv4() == any.is_ipv4())
                .map(|address| key_of(*address))
                .collect();
            expect_same(set, &expected, &there)?;
        }
        Ok(())
    }

    fn read_back_chains(&mut self, wanted: &Ruleset) -> Result<(), FenceError> {
        let ours = |body: &Vec<u8>| message::table_of(body).as_deref() == Some(TABLE);
        let chains = self.transactions.ask(&Table(TABLE).read_chains())?;
        let mut there: Vec<_> = chains
            .iter()
            .filter(|body| ours(body))
            .map(|body| message::chain_of(body))
            .collect();
        let mut expected: Vec<_> = wanted.chains().into_iter().map(Some).collect();
        let order = |chain: &Option<message::Chain>| chain.as_ref().map(|c| c.hook);
        there.sort_by_key(order);
        expected.sort_by_key(order);
        expect_same("chains", &expected, &there)?;

        let rules = self.transactions.ask(&Table(TABLE).read_rules())?;
        let rules: Vec<_> = rules
            .iter()
            .filter(|body| ours(body))
            .filter_map(|body| message::rule_of(body))
            .collect();
        for chain in wanted.chains() {
            let there: Vec<_> = rules
                .iter()
                .filter(|(name, _)| *name == chain.name)
                .map(|(_, steps)| steps.clone())
                .collect();
            expect_same("rules", &expected_rules(chain.hook), &there)?;
        }
        Ok(())
    }

    /// Permits the frames of these VIPs, held by this node, until `RESERVE` before `lease_until`. Replaces what was permitted for
    /// them before. Nothing is permitted when less than a millisecond is left.
    pub fn permit_holding(
        &mut self,
        vips: &BTreeSet<IpAddr>,
        lease_until: Instant,
    ) -> Result<(), FenceError> {
        self.permit(Addresses::Holding, vips, lease_until)
    }

    fn permit(
        &mut self,
        which: Addresses,
        addresses: &BTreeSet<IpAddr>,
        until: Instant,
    ) -> Result<(), FenceError> {
        let all: Vec<IpAddr> = addresses.iter().copied().collect();
        for some in all.chunks(PERMITTED_TOGETHER) {
            self.permit_together(which, &some.iter().copied().collect(), until)?;
        }
        Ok(())
    }

    fn permit_together(
        &mut self,
        which: Addresses,
        addresses: &BTreeSet<IpAddr>,
        until: Instant,
    ) -> Result<(), FenceError> {
        let until = until + defect::extra(Defect::FenceNeverExpires, Duration::from_secs(3600));
        for _ in 0..PERMIT_TRIES {
            self.transactions
                .commit(&ruleset::mark_moment(MOMENT_LASTS))?;
            // After the mark was made: less than `MOMENT_LASTS` may pass from here to the kernel's taking the permission.
            let read_at = Instant::now();
            let Some(lasts) = permission(read_at, until) else {
                return self.forbid(which, addresses);
            };
            match self
                .transactions
                .commit(&ruleset::permit(which, addresses, lasts))
            {
                Ok(()) if read_at.elapsed() < MOMENT_LASTS => return Ok(()),
                // The kernel itself was held up between stamping the elements and looking at the mark, or this process after it.
                Ok(()) => self.forbid(which, addresses)?,
                // The mark was gone, or an element expired while the transaction was prepared.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(FenceError::TooSlow)
    }

    /// Permits the answers to frames about these VIPs that another member passes on, for `lasts`.
    pub fn permit_serving(
        &mut self,
        vips: &BTreeSet<IpAddr>,
        macs: &BTreeSet<[u8; 6]>,
        members: &BTreeSet<IpAddr>,
        lasts: Duration,
    ) -> Result<(), FenceError> {
        let requests = ruleset::serve(vips, macs, members, lasts);
        match self.transactions.commit(&requests) {
            // An element expired while the transaction was prepared.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                Ok(self.transactions.commit(&requests)?)
            }
            other => Ok(other?),
        }
    }

    pub fn forbid_serving(&mut self, vips: &BTreeSet<IpAddr>) -> Result<(), FenceError> {
        self.forbid(Addresses::Serving, vips)
    }

    /// Forbids the frames of these VIPs at once.
    pub fn forbid_holding(&mut self, vips: &BTreeSet<IpAddr>) -> Result<(), FenceError> {
        self.forbid(Addresses::Holding, vips)
    }

    /// Rules that are in doubt may be there all the same, and a permission in them.
    fn forbid(&mut self, which: Addresses, addresses: &BTreeSet<IpAddr>) -> Result<(), FenceError> {
        let requests = ruleset::forbid(which, addresses);
        let is_gone = |error: &SocketError| error.errno() == Some(Errno::ENOENT);
        let outcome = match self.transactions.commit(&requests) {
            // An element expired while the transaction was prepared.
            Err(error) if is_gone(&error) => self.transactions.commit(&requests),
            other => other,
        };
        match outcome {
            // There are no rules, and no permission in them.
            Err(error) if is_gone(&error) && !self.is_made() => Ok(()),
            other => Ok(other?),
        }
    }

    /// What is permitted as held now, for tests and diagnosis.
    pub fn held_addresses(&mut self) -> Result<usize, FenceError> {
        let mut count = 0;
        for set in ["holding4", "holding6"] {
            let bodies = self.transactions.ask(&Table(TABLE).read_elements(set))?;
            count += bodies
                .iter()
                .map(|body| message::keys_of(body).len())
                .sum::<usize>();
        }
        Ok(count)
    }
}

/// What `ensure` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// The rules stood; permissions stand as well.
    Stood,
    /// They were made anew: nothing is permitted.
    Replaced,
}

/// Whether `uninstall` would be refused.
pub fn may_uninstall() -> Result<(), FenceError> {
    Fence::open().map(drop)
}

/// Takes the rules away. Whether there were any.
pub fn uninstall() -> Result<bool, FenceError> {
    let mut fence = Fence::open()?;
    if fence.existing()?.is_none() {
        return Ok(false);
    }
    fence
        .transactions
        .commit(&[Table(TABLE).delete()])
        .map_err(explain)?;
    Ok(true)
}

/// How long to permit at `now` so that it ends `RESERVE` before `until`; none below the kernel's millisecond.
fn permission(now: Instant, until: Instant) -> Option<Duration> {
    let end = until.checked_sub(RESERVE)?;
    let lasts = end.checked_duration_since(now)?;
    (lasts >= Duration::from_millis(1)).then_some(lasts)
}

fn expected_rules(hook: Hook) -> Vec<Vec<Option<Step>>> {
    let rules = ruleset::rules_of(hook);
    rules
        .into_iter()
        .map(|steps| steps.into_iter().map(Some).collect())
        .collect()
}

fn expect_same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    there: &T,
) -> Result<(), FenceError> {
    if expected == there {
        Ok(())
    } else {
        Err(FenceError::NotAsMade(format!(
            "{what}: expected {expected:?}, found {there:?}"
        )))
    }
}

fn explain(error: SocketError) -> FenceError {
    match error.errno() {
        Some(Errno::EPERM) => FenceError::NotPermitted,
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => {
            FenceError::Unsupported { problem: error }
        }
        _ => FenceError::Kernel(error),
    }
}

#[cfg(test)]
mod tests;
