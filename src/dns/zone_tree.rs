//! Finding a name in a zone's ordered tree: the node, the cut or DNAME above it, the wildcard that stands in for it.
//!
//! Keys are `NameKey` octets: every ancestor is a prefix, so all that exists at or below a name is one run of neighbours.
//! The closest encloser (RFC 4592 section 3.3.1) is the longest prefix, in labels, shared with the neighbour before or
//! after, and an empty non-terminal is a prefix of its next neighbour.

use crate::model::{
    name::{NameKey, push_key_label},
    rrset::{RecordType, Rrset},
    zone::{Node, Zone},
};

/// A name's way down from the apex, as key octets.
pub(super) struct Path {
    key: Vec<u8>,
    /// For each depth below the apex, 1 first: where the key of that depth ends.
    ends: [u16; 128],
    /// For each depth, 1 first: how many octets of the wire name lie in front of the name of that depth.
    above: [u8; 128],
    /// Where the apex starts in the wire name.
    apex_at: usize,
    depth: usize,
}

/// What a zone has for a name.
pub(super) enum Found<'a> {
    /// The name lies at or below a delegation, `depth` labels below the apex.
    Cut {
        set: &'a Rrset,
        depth: usize,
    },
    /// The name lies below a DNAME.
    Redirect {
        set: &'a Rrset,
        depth: usize,
    },
    /// The name owns records, or a wildcard does in its place.
    Node(&'a Node),
    /// The name, or the wildcard in its place, owns nothing but has names below it (RFC 4592 section 2.2.2).
    EmptyNonTerminal,
    Nothing,
}

impl Path {
    /// The way from the apex of `zone` to `name` (lower-case wire form). None when the name lies outside.
    pub fn new(name: &[u8], zone: &Zone) -> Option<Self> {
        let end = name.len().checked_sub(zone.apex.as_wire().len())?;
        if name.get(end..)? != zone.apex.as_wire() {
            return None;
        }
        let mut path = Self {
            key: Vec::with_capacity(end + 8),
            ends: [0; 128],
            above: [0; 128],
            apex_at: end,
            depth: 0,
        };
        let mut at = 0;
        while at < end {
            *path.above.get_mut(path.depth)? = at as u8;
            path.depth += 1;
            at += 1 + usize::from(*name.get(at)?);
        }
        if at != end {
            return None;
        }
        path.above[..path.depth].reverse();
        for depth in 1..=path.depth {
            let start = path.octets_above(depth);
            let length = usize::from(*name.get(start)?);
            push_key_label(&mut path.key, name.get(start + 1..start + 1 + length)?);
            path.ends[depth - 1] = path.key.len() as u16;
        }
        Some(path)
    }

    /// The key of the name itself.
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key of the ancestor `depth` labels below the apex.
    fn prefix(&self, depth: usize) -> &[u8] {
        let end = depth.checked_sub(1).map_or(0, |at| self.ends[at]);
        &self.key[..usize::from(end)]
    }

    /// Octets of the wire name in front of its ancestor at `depth`.
    pub fn octets_above(&self, depth: usize) -> usize {
        match depth.checked_sub(1) {
            Some(at) => usize::from(self.above[at]),
            None => self.apex_at,
        }
    }

    /// How many labels below the apex the longest prefix of this path goes that `key` shares.
    fn shared_depth(&self, key: &[u8]) -> usize {
        let ends = &self.ends[..self.depth];
        let same = self.key.iter().zip(key).take_while(|(a, b)| a == b).count();
        ends.partition_point(|end| usize::from(*end) <= same)
    }
}

/// Looks `path` up in `zone` for a question of type `rtype`.
pub(super) fn find<'a>(zone: &'a Zone, path: &Path, rtype: RecordType) -> Found<'a> {
    let exact = zone.nodes.get(path.key());
    let existing = match exact {
        Some(_) => path.depth,
        None => closest_encloser(zone, path),
    };
    if let Some(found) = cut_or_redirect(zone, path, existing, exact, rtype) {
        return found;
    }
    match exact {
        Some(node) => Found::Node(node),
        None if existing == path.depth => Found::EmptyNonTerminal,
        None => from_wildcard(zone, path.prefix(existing)),
    }
}

/// Depth of the deepest ancestor of the name that exists, or of the name itself (RFC 4592 section 3.3.1).
///
/// Names that share a prefix with the name are its neighbours, on one side or the other. The name's parent is the best
/// that is left once the name itself is no empty non-terminal, and the apex always exists, so that for most questions
/// one side is enough.
fn closest_encloser(zone: &Zone, path: &Path) -> usize {
    let shared = |neighbour: Option<(&NameKey, &Node)>| {
        neighbour.map_or(0, |(key, _)| path.shared_depth(key.as_bytes()))
    };
    let after = shared(zone.nodes.get_next(path.key()));
    if after + 1 >= path.depth {
        return after;
    }
    after.max(shared(zone.nodes.get_prev(path.key())))
}

/// The first delegation or DNAME on the way down to depth `existing`: what lies below it is not ours to look at.
fn cut_or_redirect<'a>(
    zone: &'a Zone,
    path: &Path,
    existing: usize,
    exact: Option<&'a Node>,
    rtype: RecordType,
) -> Option<Found<'a>> {
    for depth in 0..=existing {
        let is_name = depth == path.depth;
        if is_name && depth == 0 {
            break;
        }
        let node = match exact.filter(|_| is_name) {
            Some(node) => node,
            None => match zone.nodes.get(path.prefix(depth)) {
                Some(node) => node,
                None => continue,
            },
        };
        // The DS set of a cut belongs to this side of it (RFC 4035 section 3.1.4.1).
        let ns = node
            .find(RecordType::NS)
            .filter(|_| depth > 0 && !(is_name && rtype == RecordType::DS));
        if let Some(set) = ns {
            return Some(Found::Cut { set, depth });
        }
        if let Some(set) = node.find(RecordType::DNAME).filter(|_| !is_name) {
            return Some(Found::Redirect { set, depth });
        }
    }
    None
}

/// What the source of synthesis `*.<closest encloser>` holds (RFC 4592 section 3.3.1).
fn from_wildcard<'a>(zone: &'a Zone, encloser: &[u8]) -> Found<'a> {
    let mut key = Vec::with_capacity(encloser.len() + 2);
    key.extend_from_slice(encloser);
    push_key_label(&mut key, b"*");
    match zone.nodes.get_next(key.as_slice()) {
        Some((found, node)) if found.as_bytes() == key => Found::Node(node),
        Some((found, _)) if found.as_bytes().starts_with(&key) => Found::EmptyNonTerminal,
        _ => Found::Nothing,
    }
}
