//! Long answers in messages of moderate size.

use crate::{
    model::{
        name::{Name, NameKey},
        zone::Zone,
    },
    wire::{records::owned_rrset, v1},
};

/// A page ends when it holds about this many octets.
const PAGE_OCTETS: usize = 256 << 10;
/// A page ends at this many sets.
const PAGE_SETS: usize = 2000;

/// Octets of a set in a page, about.
pub fn weight(owner: &Name, set: &v1::Rrset) -> usize {
    owner.as_wire().len() + 16 + set.rdata.iter().map(|d| d.len() + 4).sum::<usize>()
}

/// Whether a page is full.
pub fn is_full(octets: usize, sets: usize) -> bool {
    octets >= PAGE_OCTETS || sets >= PAGE_SETS
}

/// The sets of a zone after `last`, up to a full page, and the key they end at; none at the end.
pub fn of_zone(zone: &Zone, last: Option<&NameKey>) -> (Vec<v1::OwnedRrset>, Option<NameKey>) {
    use std::ops::Bound;
    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
    let mut page = Vec::new();
    let mut octets = 0;
    for (key, node) in zone.nodes.range::<_, NameKey>((from, Bound::Unbounded)) {
        let Some(owner) = key.to_name(&zone.apex) else {
            continue;
        };
        for set in node.rrsets() {
            let owned = owned_rrset(&owner, set);
            octets += owned.rrset.as_ref().map_or(0, |set| weight(&owner, set));
            page.push(owned);
        }
        if is_full(octets, page.len()) {
            return (page, Some(key.clone()));
        }
    }
    (page, None)
}

/// Cuts `items` into pages of moderate size, at least one.
pub fn cut<T>(items: Vec<T>, weight: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut pages = Vec::new();
    let mut page = Vec::new();
    let mut octets = 0;
    for item in items {
        octets += weight(&item);
        page.push(item);
        if is_full(octets, page.len()) {
            pages.push(std::mem::take(&mut page));
            octets = 0;
        }
    }
    if !page.is_empty() || pages.is_empty() {
        pages.push(page);
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_everything_in_order() {
        let items: Vec<usize> = (0..4500).collect();
        let pages = cut(items.clone(), |_| 10);
        assert!(pages.len() >= 3 && pages.iter().all(|p| p.len() <= PAGE_SETS));
        assert_eq!(pages.concat(), items);
        assert_eq!(cut(Vec::<u8>::new(), |_| 1), [Vec::<u8>::new()]);
        assert_eq!(cut(vec![1, 2], |_| PAGE_OCTETS).len(), 2);
    }
}
