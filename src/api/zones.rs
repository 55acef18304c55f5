//! Reading zones: summaries, records, history and differences.

use std::sync::Arc;

use pontoon_proto::v1;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    admin::{Pages, ready},
    pages,
};
use crate::{
    model::{
        name::{Name, NameKey},
        quoted::quoted,
        serial::Serial,
        zone::Zone,
    },
    state::{State, diff::SetChange, history::ZoneVersion},
    wire::{
        error::{Failure, FailureCode},
        records::{owned_rrset, record_type},
    },
};

/// A zone without its records.
pub fn summary(zone: &Zone) -> v1::ZoneSummary {
    v1::ZoneSummary {
        zone: zone.apex.to_string(),
        serial: zone.serial.0,
        revision: zone.revision,
        records: zone.record_count,
        data_bytes: zone.data_bytes,
        content_hash: bytes::Bytes::copy_from_slice(&zone.content_hash),
    }
}

/// The records of a zone, page by page. The permit lives as long as the stream.
pub fn read(
    state: &State,
    header: v1::ReadHeader,
    request: v1::ReadZoneRequest,
    permit: OwnedSemaphorePermit,
) -> Result<Pages<v1::ZonePage>, Failure> {
    let apex = name_of("zone", &request.zone)?;
    let zone = Arc::clone(find(state, &apex)?);
    let first = v1::ZonePage {
        header: Some(header),
        zone: Some(summary(&zone)),
        records: Vec::new(),
    };
    if request.name.is_empty() && request.r#type == 0 {
        return Ok(whole(zone, first, permit));
    }
    let records = selected(&zone, &request)?;
    let pages = pages::cut(records, |owned| {
        owned.name.len()
            + owned
                .rrset
                .as_ref()
                .map_or(0, |s| s.rdata.iter().map(|d| d.len() + 4).sum())
    });
    let rest = pages.into_iter().map(|records| v1::ZonePage {
        records,
        ..v1::ZonePage::default()
    });
    let pages = std::iter::once(first).chain(rest).collect();
    Ok(ready(pages, permit))
}

/// Every record, read from the tree as the client takes the pages.
fn whole(
    zone: Arc<Zone>,
    first: v1::ZonePage,
    permit: OwnedSemaphorePermit,
) -> Pages<v1::ZonePage> {
    use futures::StreamExt;
    enum Next {
        After(Option<NameKey>),
        End,
    }
    let rest = futures::stream::unfold(
        (zone, Next::After(None), permit),
        |(zone, next, permit)| async move {
            let Next::After(last) = next else {
                return None;
            };
            let (records, end) = pages::of_zone(&zone, last.as_ref());
            let next = end.map_or(Next::End, |key| Next::After(Some(key)));
            let page = v1::ZonePage {
                records,
                ..v1::ZonePage::default()
            };
            Some((Ok(page), (zone, next, permit)))
        },
    );
    Box::pin(futures::stream::once(async move { Ok(first) }).chain(rest))
}

fn selected(zone: &Zone, request: &v1::ReadZoneRequest) -> Result<Vec<v1::OwnedRrset>, Failure> {
    let rtype = match request.r#type {
        0 => None,
        number => Some(record_type(number)?),
    };
    let fits = |set: &&crate::model::rrset::Rrset| rtype.is_none_or(|t| set.rtype() == t);
    if request.name.is_empty() {
        let sets = zone.rrsets().filter(|(_, set)| fits(set));
        return Ok(sets.map(|(owner, set)| owned_rrset(&owner, set)).collect());
    }
    let owner = name_of("name", &request.name)?;
    if !owner.is_within(&zone.apex) {
        return Err(Failure::new(
            FailureCode::Invalid,
            format!("name {owner}"),
            format!("is not within zone {}", zone.apex),
            "",
        ));
    }
    let sets = zone.node(&owner).into_iter().flat_map(|node| node.rrsets());
    Ok(sets
        .filter(fits)
        .map(|set| owned_rrset(&owner, set))
        .collect())
}

/// The remembered versions of a zone, the newest first.
pub fn history(
    state: &State,
    request: &v1::ZoneHistoryRequest,
) -> Result<Vec<v1::ZoneVersion>, Failure> {
    let apex = name_of("zone", &request.zone)?;
    find(state, &apex)?;
    let limit = match request.limit {
        0 => usize::MAX,
        limit => usize::try_from(limit).unwrap_or(usize::MAX),
    };
    let versions = state
        .history(&apex)
        .into_iter()
        .flat_map(|h| h.versions().rev());
    Ok(versions.take(limit).map(version).collect())
}

fn version(version: &ZoneVersion) -> v1::ZoneVersion {
    let changes = version.changes.iter().flat_map(|c| c.iter());
    let (added, removed) = changes.fold((0, 0), |(added, removed), change| {
        (
            added + u64::from(change.after.is_some()),
            removed + u64::from(change.before.is_some()),
        )
    });
    v1::ZoneVersion {
        serial: version.serial.0,
        revision: version.revision,
        proposed_at_ms: version.at.0,
        author: version.author.clone(),
        added,
        removed,
        summary: version.summary.clone(),
    }
}

/// What differs between two serials of a zone.
pub fn diff(
    state: &State,
    header: v1::ReadHeader,
    request: &v1::ZoneDiffRequest,
) -> Result<Vec<v1::ZoneDiffPage>, Failure> {
    let apex = name_of("zone", &request.zone)?;
    let zone = find(state, &apex)?;
    let to = request.to.map_or(zone.serial, Serial);
    let from = match request.from {
        Some(from) => Serial(from),
        None => before(state, &apex, to)?,
    };
    let changes = state
        .zone_diff(&apex, from, to)
        .ok_or_else(|| not_kept(state, &apex, from, to))?;
    let pages = pages::cut(changes, |change| {
        usize::try_from(change.cost()).unwrap_or(usize::MAX)
    });
    let mut pages: Vec<v1::ZoneDiffPage> = pages
        .into_iter()
        .map(|changes| diff_page(&apex, &changes))
        .collect();
    if let Some(first) = pages.first_mut() {
        first.header = Some(header);
        first.from = from.0;
        first.to = to.0;
    }
    Ok(pages)
}

fn diff_page(apex: &Name, changes: &[SetChange]) -> v1::ZoneDiffPage {
    let mut page = v1::ZoneDiffPage::default();
    for change in changes {
        let Some(owner) = change.owner.to_name(apex) else {
            continue;
        };
        let owned = |set| owned_rrset(&owner, set);
        page.removed.extend(change.before.as_ref().map(owned));
        page.added.extend(change.after.as_ref().map(owned));
    }
    page
}

/// The version before `serial`.
fn before(state: &State, apex: &Name, serial: Serial) -> Result<Serial, Failure> {
    let serials: Vec<Serial> = state
        .history(apex)
        .into_iter()
        .flat_map(|h| h.versions().map(|v| v.serial))
        .collect();
    let at = serials.iter().rposition(|s| *s == serial);
    match at {
        None => Err(not_kept(state, apex, serial, serial)),
        Some(0) => Ok(serial), // nothing older is kept: no difference to show
        Some(at) => Ok(serials.get(at - 1).copied().unwrap_or(serial)),
    }
}

fn not_kept(state: &State, apex: &Name, from: Serial, to: Serial) -> Failure {
    let kept = |serial| {
        state
            .history(apex)
            .is_some_and(|h| h.find(serial).is_some())
    };
    let missing = if kept(from) { to } else { from };
    Failure::new(
        FailureCode::NotFound,
        format!("zone {apex}"),
        format!("its contents at serial {missing} are not kept"),
        format!("`pontoon zone history {apex}` shows the serials that are"),
    )
}

/// The zone with exactly this apex.
pub fn find<'a>(state: &'a State, apex: &Name) -> Result<&'a Arc<Zone>, Failure> {
    state.snapshot().zones.get(apex).ok_or_else(|| {
        Failure::new(
            FailureCode::NotFound,
            format!("zone {apex}"),
            "does not exist",
            "`pontoon zone list` shows those that do; `pontoon zone create` makes one",
        )
    })
}

/// Reads a domain name of a request.
pub fn name_of(kind: &str, text: &str) -> Result<Name, Failure> {
    text.parse().map_err(|e| {
        let shown: String = text.chars().take(300).collect();
        Failure::new(
            FailureCode::Invalid,
            format!("{kind} {shown}", shown = quoted(&shown)),
            e,
            "",
        )
    })
}
