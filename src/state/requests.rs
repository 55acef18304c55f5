//! The last commands and what became of them, so that a retry is applied once.

use std::sync::Arc;

use imbl::{OrdMap, Vector};

use super::{
    command::RequestId,
    digest::Sum,
    limits,
    outcome::{Applied, Outcome},
    snapshot::v1::Stored,
};

/// A command that was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub request: RequestId,
    /// Revision of the state after it.
    pub revision: u64,
    pub outcome: Outcome,
}

impl Remembered {
    /// Octets it takes to remember this. The words of a refusal count as their limit: nodes whose programs word it otherwise
    /// must forget the same commands.
    fn cost(&self) -> u64 {
        let size = match &self.outcome {
            Outcome::Applied(Applied { serials, .. }) => serials.len() * 64,
            Outcome::Refused(_) => limits::REFUSAL_OCTETS,
            Outcome::Unknown => 0,
        };
        160 + size as u64
    }
}

/// The last commands, up to a limit of count and of octets.
#[derive(Clone, Debug, Default)]
pub struct Requests {
    /// The place of each in the order of age, counted from the first ever. A number: each command changes another part of the map,
    /// and what is beside it there is copied.
    by_id: OrdMap<RequestId, u64>,
    /// The oldest first.
    by_age: Vector<Arc<Remembered>>,
    /// How many were before the oldest.
    gone: u64,
    /// Highest revision made by a command that is no longer remembered.
    forgotten: u64,
    cost: u64,
    sum: Sum,
}

impl Requests {
    /// An empty memory of a state that has already forgotten commands up to `revision`.
    pub fn forgotten_before(revision: u64) -> Self {
        Self {
            forgotten: revision,
            ..Self::default()
        }
    }

    pub fn find(&self, request: RequestId) -> Option<&Outcome> {
        let place = self.by_id.get(&request)?.checked_sub(self.gone)?;
        let place = usize::try_from(place).ok()?;
        self.by_age.get(place).map(|r| &r.outcome)
    }

    /// Whether a command first taken at revision `born` may have been applied and forgotten since. Its entry has an index
    /// above `born`; if that made a revision that is still remembered, its request id is, too.
    pub fn may_have_forgotten(&self, born: u64) -> bool {
        born < self.forgotten
    }

    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The oldest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Remembered> {
        self.by_age.iter().map(AsRef::as_ref)
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    /// The words of a refusal are kept up to their limit.
    pub fn remember(&mut self, mut remembered: Remembered) {
        if let Outcome::Refused(refusal) = &mut remembered.outcome {
            refusal.shorten(limits::REFUSAL_OCTETS);
        }
        let remembered = Arc::new(remembered);
        self.cost += remembered.cost();
        self.sum.add(remembered.digest());
        let place = self.gone + self.by_age.len() as u64;
        self.by_id.insert(remembered.request, place);
        self.by_age.push_back(remembered);
        while self.by_age.len() > limits::REQUESTS || self.cost > limits::REQUEST_OCTETS {
            let Some(oldest) = self.by_age.pop_front() else {
                return;
            };
            self.gone += 1;
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, oldest: &Remembered) {
        self.cost -= oldest.cost();
        self.sum.remove(oldest.digest());
        self.by_id.remove(&oldest.request);
        // A command that changed nothing may be decided anew; counting it would refuse every new command of a cluster
        // whose revision stands still.
        if matches!(&oldest.outcome, Outcome::Applied(applied) if applied.changed) {
            self.forgotten = self.forgotten.max(oldest.revision);
        }
    }
}
