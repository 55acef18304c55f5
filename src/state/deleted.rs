//! The serials of deleted zones, so that a zone made again goes on from where it was.

use imbl::{OrdMap, OrdSet};

use super::{
    digest::Sum,
    limits,
    snapshot::v1::{DeletedZone, Stored},
};
use crate::model::{name::Name, serial::Serial};

/// The last deleted zones, up to a limit; beyond it the one longest gone is forgotten.
#[derive(Clone, Debug, Default)]
pub struct DeletedZones {
    zones: OrdMap<Name, DeletedZone>,
    by_age: OrdSet<(u64, Name)>,
    sum: Sum,
}

impl DeletedZones {
    pub fn serial(&self, apex: &Name) -> Option<Serial> {
        self.zones.get(apex).map(|zone| zone.serial)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &DeletedZone> {
        self.zones.values()
    }

    pub fn len(&self) -> usize {
        self.zones.len()
    }

    pub fn is_empty(&self) -> bool {
        self.zones.is_empty()
    }

    pub fn sum(&self) -> Sum {
        self.sum
    }

    pub fn remember(&mut self, apex: Name, serial: Serial, revision: u64) {
        self.forget(&apex);
        let zone = DeletedZone {
            apex: apex.clone(),
            serial,
            revision,
        };
        self.sum.add(zone.digest());
        self.by_age.insert((revision, apex.clone()));
        self.zones.insert(apex, zone);
        while self.zones.len() > limits::DELETED_ZONES
            && let Some((_, oldest)) = self.by_age.get_min().cloned()
        {
            self.forget(&oldest);
        }
    }

    pub fn forget(&mut self, apex: &Name) {
        if let Some(zone) = self.zones.remove(apex) {
            self.sum.remove(zone.digest());
            self.by_age.remove(&(zone.revision, zone.apex));
        }
    }
}
