//! Making the state of a new cluster from a backup.
//!
//! What the old cluster did after the backup is unknown: it may have served newer serials and revisions. So every serial
//! and the revision leap ahead, far enough that no secondary and no watcher takes the restored state for an older one.

use std::sync::Arc;

use super::{
    State, cluster::Cluster, command::UnixMillis, history::ZoneVersion, records::ZoneRecords,
    requests::Requests,
};
use crate::model::serial::Serial;

/// How far serials leap: more changes than a zone sees between two backups, and little of the 2^31 that RFC 1982 allows.
pub const SERIAL_LEAP: u32 = 1 << 20;
/// How far the revision leaps.
pub const REVISION_LEAP: u64 = 1 << 32;

impl State {
    /// This state, for a new cluster: the same service under later serials and a later revision, without cluster id,
    /// authority, members, tokens and remembered requests. `InitCluster` comes next. Histories are kept.
    #[must_use]
    pub fn restored(&self, at: UnixMillis, author: &str) -> Self {
        let mut next = self.clone();
        let revision = self.service.revision.saturating_add(REVISION_LEAP);
        next.service.revision = revision;
        next.requests = Requests::forgotten_before(revision);
        next.cluster = Arc::new(Cluster {
            feature_level: self.cluster.feature_level,
            profile: self.cluster.profile,
            ..Cluster::default()
        });
        // What became of their addresses since the backup is not known.
        next.service.unclaimed_vips = (self.service.vips.keys())
            .map(|address| (*address, revision))
            .collect();
        for deleted in self.deleted.iter() {
            let serial = leap(deleted.serial);
            next.deleted
                .remember(deleted.apex.clone(), serial, deleted.revision);
        }
        for zone in self.service.zones.values() {
            let serial = leap(zone.serial);
            let version = ZoneVersion {
                serial,
                revision,
                at,
                author: author.to_owned(),
                summary: format!("restored from a backup with serial {}", zone.serial),
                changes: Some(Arc::from([])),
            };
            let records = ZoneRecords::of(zone);
            next.histories.push(&zone.apex, version);
            next.put_zone(records.into_zone(zone.apex.clone(), serial, revision));
        }
        next
    }
}

fn leap(serial: Serial) -> Serial {
    Serial(serial.0.wrapping_add(SERIAL_LEAP))
}
