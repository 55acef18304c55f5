//! Domain names (RFC 1034 section 3.1, RFC 1035 section 2.3.4, RFC 4343) and their canonical order (RFC 4034 section 6.1).
//!
//! Names are case-folded when they are made: DNS compares them without regard to case, every replica must agree byte for
//! byte, and a client's own spelling comes back to it through compression against its question.

use std::{cmp::Ordering, fmt, str::FromStr, sync::Arc};

/// Longest name on the wire, in octets, the root label included.
pub const MAX_NAME: usize = 255;
/// Longest label, in octets.
pub const MAX_LABEL: usize = 63;

/// An absolute domain name in uncompressed wire form, ASCII letters in lower case.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<[u8]>);

/// Why bytes or text are no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    #[error("the name is longer than 255 octets")]
    NameTooLong,
    #[error("an empty label (two dots in a row, or a dot at the start)")]
    EmptyLabel,
    #[error("a backslash must be followed by a character or by three digits up to 255")]
    BadEscape,
    #[error("the name ends in the middle of a label")]
    Truncated,
    #[error("a compression pointer or an unknown label type where a plain label was expected")]
    BadLabelType,
    #[error("the name is empty")]
    Empty,
    #[error(
        "@ stands for a zone's own name, and no zone is meant here: write the name, or `.` for the root"
    )]
    NoOrigin,
}

impl Name {
    /// The root, `.`.
    pub fn root() -> Self {
        Self(Arc::from([0u8].as_slice()))
    }

    /// Reads one uncompressed name from the front of `wire` and says how many octets it took.
    pub fn parse_wire(wire: &[u8]) -> Result<(Self, usize), NameError> {
        let mut at = 0;
        loop {
            let length = usize::from(*wire.get(at).ok_or(NameError::Truncated)?);
            if length > MAX_LABEL {
                return Err(NameError::BadLabelType);
            }
            at += 1 + length;
            if at > MAX_NAME {
                return Err(NameError::NameTooLong);
            }
            if length == 0 {
                break;
            }
        }
        let octets = wire.get(..at).ok_or(NameError::Truncated)?;
        // Length octets are at most 63, below the letters: folding the whole run is safe.
        Ok((Self(octets.to_ascii_lowercase().into()), at))
    }

    /// Makes a name of `wire`, which must hold exactly one uncompressed name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        let (name, used) = Self::parse_wire(wire)?;
        if used == wire.len() {
            Ok(name)
        } else {
            Err(NameError::EmptyLabel)
        }
    }

    /// Makes a name of labels, the leftmost first, without the root label.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            push_label(&mut wire, label)?;
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(NameError::NameTooLong);
        }
        Ok(Self(wire.into()))
    }

    /// Reads presentation text (RFC 1035 section 5.1). A text without a final dot is completed with `origin`; `@` alone
    /// means `origin`. Escapes: `\DDD` for an octet in decimal, `\X` for the character X.
    pub fn parse(text: &str, origin: &Name) -> Result<Self, NameError> {
        Self::parse_octets(text.as_bytes(), origin)
    }

    /// As `parse`, of text that may hold octets that are no UTF-8, as old master files do.
    pub fn parse_octets(text: &[u8], origin: &Name) -> Result<Self, NameError> {
        match text {
            b"@" => return Ok(origin.clone()),
            b"." => return Ok(Self::root()),
            b"" => return Err(NameError::Empty),
            _ => {}
        }
        let (mut wire, absolute) = labels_of_text(text)?;
        if absolute {
            wire.push(0);
        } else {
            wire.extend_from_slice(&origin.0);
        }
        if wire.len() > MAX_NAME {
            return Err(NameError::NameTooLong);
        }
        Ok(Self(wire.into()))
    }

    /// The uncompressed wire form, root label included.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// The labels from the left, without the root label.
    pub fn labels(&self) -> Labels<'_> {
        Labels(&self.0)
    }

    /// Number of labels, the root label not counted.
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// Whether the leftmost label is `*` (RFC 4592 section 2.1.1).
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }

    /// The name without its leftmost label; none for the root.
    pub fn parent(&self) -> Option<Name> {
        let skip = 1 + usize::from(self.0[0]);
        (!self.is_root()).then(|| Self(self.0[skip..].into()))
    }

    /// Whether this is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &Name) -> bool {
        let Some(start) = self.0.len().checked_sub(ancestor.0.len()) else {
            return false;
        };
        if self.0[start..] != *ancestor.0 {
            return false;
        }
        // The shared tail must start at a label of ours, not in the middle of one.
        let mut at = 0;
        while at < start {
            at += 1 + usize::from(self.0[at]);
        }
        at == start
    }

    /// `label` in front of this name.
    pub fn child(&self, label: &[u8]) -> Result<Name, NameError> {
        Self::from_labels(std::iter::once(label).chain(self.labels()))
    }
}

/// A name borrowed from a message or from another name, to look up in a map of `Name` without allocating.
///
/// It holds what `Name` holds: one complete uncompressed name in lower case. Whoever makes one has checked that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NameRef<'a>(pub &'a [u8]);

impl NameRef<'_> {
    /// Where each label starts, the leftmost first, and how many there are (the root label not counted).
    fn starts(self) -> ([u8; 128], usize) {
        let mut starts = [0u8; 128];
        let (mut count, mut at) = (0, 0);
        while let Some(&length) = self.0.get(at).filter(|length| **length > 0) {
            let Some(start) = starts.get_mut(count) else {
                break;
            };
            *start = at as u8;
            count += 1;
            at += 1 + usize::from(length);
        }
        (starts, count)
    }
}

impl Ord for NameRef<'_> {
    /// The canonical order of RFC 4034 section 6.1: label by label from the root.
    fn cmp(&self, other: &Self) -> Ordering {
        let (ours, our_count) = self.starts();
        let (theirs, their_count) = other.starts();
        let ours = ours[..our_count]
            .iter()
            .rev()
            .map(|at| label_at(self.0, *at));
        let theirs = theirs[..their_count]
            .iter()
            .rev()
            .map(|at| label_at(other.0, *at));
        ours.cmp(theirs)
    }
}

impl PartialOrd for NameRef<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl equivalent::Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        *self.0 == *name.0
    }
}

impl equivalent::Comparable<Name> for NameRef<'_> {
    fn compare(&self, name: &Name) -> Ordering {
        self.cmp(&NameRef(&name.0))
    }
}

/// The label whose length octet is at `start`; empty where the octets end early.
fn label_at(wire: &[u8], start: u8) -> &[u8] {
    let rest = wire.get(usize::from(start)..).unwrap_or_default();
    match rest.split_first() {
        Some((&length, rest)) => rest.get(..usize::from(length)).unwrap_or_default(),
        None => &[],
    }
}

/// The labels of a name, the leftmost first.
#[derive(Clone)]
pub struct Labels<'a>(&'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at(usize::from(length));
        self.0 = rest;
        Some(label)
    }
}

impl Ord for Name {
    /// The canonical order of RFC 4034 section 6.1: label by label from the root.
    fn cmp(&self, other: &Self) -> Ordering {
        NameRef(&self.0).cmp(&NameRef(&other.0))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads an absolute name; the final dot may be left out. There is no origin for `@` to mean.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text {
            "@" => Err(NameError::NoOrigin),
            _ => Self::parse(text, &Name::root()),
        }
    }
}

impl fmt::Display for Name {
    /// Presentation text with the final dot and RFC 1035 escapes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            write_label(f, label)?;
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Name {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse()
            .map_err(|e| serde::de::Error::custom(format!("name {text:?}: {e}")))
    }
}

/// Writes one label in presentation form, escaping what RFC 1035 section 5.1 gives a meaning and what is not printable.
pub fn write_label(f: &mut impl fmt::Write, label: &[u8]) -> fmt::Result {
    for &octet in label {
        match octet {
            b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                write!(f, "\\{}", octet as char)?
            }
            0x21..=0x7e => write!(f, "{}", octet as char)?,
            _ => write!(f, "\\{octet:03}")?,
        }
    }
    Ok(())
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    match label.len() {
        0 => return Err(NameError::EmptyLabel),
        1..=MAX_LABEL => wire.push(label.len() as u8),
        _ => return Err(NameError::LabelTooLong),
    }
    wire.extend(label.iter().map(u8::to_ascii_lowercase));
    Ok(())
}

/// The labels of presentation text in wire form, without a root label, and whether the text ended in an unescaped dot.
fn labels_of_text(text: &[u8]) -> Result<(Vec<u8>, bool), NameError> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    let mut label = Vec::with_capacity(MAX_LABEL);
    let mut rest = text;
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        match octet {
            b'.' => {
                push_label(&mut wire, &label)?;
                label.clear();
            }
            b'\\' => label.push(take_escape(&mut rest)?),
            _ => label.push(octet),
        }
        if wire.len() + label.len() > MAX_NAME {
            // Bounded before anything is built of it; the two limits are told apart for the reader's sake.
            return Err(if label.len() > MAX_LABEL {
                NameError::LabelTooLong
            } else {
                NameError::NameTooLong
            });
        }
    }
    if label.is_empty() {
        return Ok((wire, true));
    }
    push_label(&mut wire, &label)?;
    Ok((wire, false))
}

/// Reads what follows a backslash: three decimal digits, or one character that stands for itself.
pub(crate) fn take_escape(rest: &mut &[u8]) -> Result<u8, NameError> {
    let (&first, tail) = rest.split_first().ok_or(NameError::BadEscape)?;
    if !first.is_ascii_digit() {
        *rest = tail;
        return Ok(first);
    }
    let digits = rest
        .get(..3)
        .filter(|d| d.iter().all(u8::is_ascii_digit))
        .ok_or(NameError::BadEscape)?;
    let value = digits
        .iter()
        .fold(0u16, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    *rest = &rest[3..];
    u8::try_from(value).map_err(|_| NameError::BadEscape)
}

/// A name relative to a zone's apex, as a byte string whose plain order is the canonical order and in which every
/// ancestor is a prefix. The apex itself is the empty key.
///
/// Labels run from the apex downwards; each ends in `0x00`, and the octets `0x00` and `0x01` inside a label are written
/// `0x01 0x01` and `0x01 0x02`, so that a shorter label sorts before a longer one that starts alike.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NameKey(KeyOctets);

/// Octets of a key. Short ones, which most are, stand in the value itself: a look-up in a large zone then compares what it
/// finds in the tree's own nodes, and need not follow a pointer, which is a wait for memory, at each comparison.
#[derive(Clone)]
enum KeyOctets {
    Short { octets: [u8; SHORT_KEY], length: u8 },
    Long(Arc<[u8]>),
}

/// Octets of the longest key that stands in the value; with them a key takes 24 octets.
const SHORT_KEY: usize = 22;

impl std::ops::Deref for KeyOctets {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short { octets, length } => &octets[..usize::from(*length)],
            Self::Long(octets) => octets,
        }
    }
}

impl From<&[u8]> for KeyOctets {
    fn from(key: &[u8]) -> Self {
        let mut octets = [0; SHORT_KEY];
        match octets.get_mut(..key.len()) {
            Some(front) => {
                front.copy_from_slice(key);
                let length = key.len() as u8;
                Self::Short { octets, length }
            }
            None => Self::Long(key.into()),
        }
    }
}

impl From<Vec<u8>> for KeyOctets {
    fn from(key: Vec<u8>) -> Self {
        key.as_slice().into()
    }
}

impl PartialEq for KeyOctets {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for KeyOctets {}

impl PartialOrd for KeyOctets {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for KeyOctets {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for KeyOctets {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl NameKey {
    /// The apex.
    pub fn apex() -> Self {
        Self([].as_slice().into())
    }

    /// The key of `name` in the zone `apex`; none when it lies outside.
    pub fn of(name: &Name, apex: &Name) -> Option<Self> {
        let mut key = Vec::with_capacity(name.as_wire().len());
        name.is_within(apex).then(|| {
            Self::write(name, apex, &mut key);
            Self(key.into())
        })
    }

    /// Reads the bytes of a key, as `as_bytes` gives them. None when they are no key of any name.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let complete = bytes.last().is_none_or(|last| *last == 0);
        let mut labels = bytes.split_inclusive(|octet| *octet == 0);
        let sound = complete && labels.all(|label| label_is_sound(&label[..label.len() - 1]));
        let key = Self(bytes.into());
        // Together with the root it must fit a name, else no apex could hold it.
        (sound && key.fits(&Name::root())).then_some(key)
    }

    /// Whether this key and `apex` together are short enough for a name.
    pub fn fits(&self, apex: &Name) -> bool {
        let mut length = apex.0.len();
        let mut octets = self.0.iter();
        while let Some(&octet) = octets.next() {
            // The end of a label here is its length octet there; an escape is one octet.
            length += 1;
            if octet == 1 {
                octets.next();
            }
        }
        length <= MAX_NAME
    }

    /// Appends the key of `name`, which must lie within `apex`, to `key`: for look-ups that must not allocate.
    pub fn write(name: &Name, apex: &Name, key: &mut Vec<u8>) {
        let mut starts = [0u8; 128];
        let (mut count, mut at) = (0, 0);
        let end = name.0.len() - apex.0.len();
        while at < end {
            starts[count] = at as u8;
            count += 1;
            at += 1 + usize::from(name.0[at]);
        }
        for &start in starts[..count].iter().rev() {
            let start = usize::from(start);
            push_key_label(key, &name.0[start + 1..=start + usize::from(name.0[start])]);
        }
    }

    /// The name this key stands for in the zone `apex`. None when the two together are too long for a name.
    pub fn to_name(&self, apex: &Name) -> Option<Name> {
        let mut labels: Vec<Vec<u8>> = self.labels().collect();
        labels.reverse();
        Name::from_labels(labels.iter().map(Vec::as_slice).chain(apex.labels())).ok()
    }

    /// The labels from the apex downwards, unescaped.
    pub fn labels(&self) -> impl Iterator<Item = Vec<u8>> {
        self.0.split_inclusive(|octet| *octet == 0).map(|escaped| {
            let mut label = Vec::with_capacity(escaped.len());
            let mut octets = escaped[..escaped.len() - 1].iter();
            while let Some(&octet) = octets.next() {
                label.push(if octet == 1 {
                    octets.next().copied().unwrap_or(1) - 1
                } else {
                    octet
                });
            }
            label
        })
    }

    /// This key one label down.
    pub fn child(&self, label: &[u8]) -> Self {
        let mut key = self.0.to_vec();
        push_key_label(&mut key, label);
        Self(key.into())
    }

    /// This key without its last label; none for the apex.
    pub fn parent(&self) -> Option<Self> {
        let body = self.0.len().checked_sub(1)?;
        let cut = self.0[..body]
            .iter()
            .rposition(|octet| *octet == 0)
            .map_or(0, |at| at + 1);
        Some(Self(self.0[..cut].into()))
    }

    /// Whether this is `ancestor` or lies below it.
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.0.starts_with(&ancestor.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for NameKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for NameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NameKey({})", self.0.escape_ascii())
    }
}

/// Whether a key's label is escaped as `push_key_label` does it, not empty and in lower case.
fn label_is_sound(escaped: &[u8]) -> bool {
    let mut octets = escaped.iter();
    let mut length = 0;
    while let Some(&octet) = octets.next() {
        let fits = match octet {
            1 => matches!(octets.next(), Some(1 | 2)),
            _ => !octet.is_ascii_uppercase(),
        };
        if !fits {
            return false;
        }
        length += 1;
    }
    (1..=MAX_LABEL).contains(&length)
}

/// Appends one label to a key; see `NameKey`.
pub fn push_key_label(key: &mut Vec<u8>, label: &[u8]) {
    for &octet in label {
        match octet {
            0 | 1 => key.extend_from_slice(&[1, octet + 1]),
            _ => key.push(octet),
        }
    }
    key.push(0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name in a test")
    }

    #[test]
    fn text_is_read_and_written_back() {
        for (text, shown) in [
            (".", "."),
            ("Example.COM", "example.com."),
            (r"a\.b.example.", r"a\.b.example."),
            (r"\000\255x.example.", r"\000\255x.example."),
            ("*.example.", "*.example."),
            (r"a\032b.", r"a\032b."),
        ] {
            assert_eq!(name(text).to_string(), shown);
            assert_eq!(name(shown), name(text));
        }
    }

    #[test]
    fn bad_text_is_refused_with_the_reason() {
        let long_label = "a".repeat(64);
        let long_name = "abcdefg.".repeat(32);
        for (text, problem) in [
            ("", NameError::Empty),
            ("@", NameError::NoOrigin),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            (r"a\", NameError::BadEscape),
            (r"a\256", NameError::BadEscape),
            (r"a\1", NameError::BadEscape),
            (long_label.as_str(), NameError::LabelTooLong),
            (long_name.as_str(), NameError::NameTooLong),
        ] {
            assert_eq!(text.parse::<Name>(), Err(problem), "{text:?}");
        }
        assert!("abcdefg.".repeat(31).parse::<Name>().is_ok());
    }

    #[test]
    fn relative_names_take_the_origin() {
        let origin = name("example.com.");
        assert_eq!(Name::parse("www", &origin), Ok(name("www.example.com.")));
        assert_eq!(Name::parse("@", &origin), Ok(origin.clone()));
        assert_eq!(Name::parse(r"\@", &origin), Ok(name(r"\@.example.com.")));
        assert_eq!(Name::parse("www.", &origin), Ok(name("www.")));
    }

    #[test]
    fn an_ancestor_is_recognised_by_labels_not_by_letters() {
        assert!(name("a.example.").is_within(&name("example.")));
        assert!(name("example.").is_within(&name("example.")));
        assert!(!name("anexample.").is_within(&name("example.")));
        assert!(name("example.").is_within(&Name::root()));
        // The tail `\007example\000` also occurs inside the label `\007example`'s octets here; it must not count.
        let tricky = Name::from_labels([b"x\x07example".as_slice()]).expect("a name");
        assert!(!tricky.is_within(&name("example.")));
    }

    #[test]
    fn canonical_order_is_that_of_rfc_4034_section_6_1() {
        let in_order = [
            "example.",
            "a.example.",
            "yljkjljk.a.example.",
            "Z.a.example.",
            "zABC.a.EXAMPLE.",
            "z.example.",
            r"\001.z.example.",
            "*.z.example.",
            r"\200.z.example.",
        ];
        for pair in in_order.windows(2) {
            assert!(name(pair[0]) < name(pair[1]), "{pair:?}");
        }
    }

    fn any_name() -> impl Strategy<Value = Name> {
        let octet = prop_oneof![
            Just(0u8),
            Just(1),
            Just(b'a'),
            Just(b'b'),
            Just(b'*'),
            any::<u8>()
        ];
        let label = proptest::collection::vec(octet, 1..6);
        proptest::collection::vec(label, 0..6)
            .prop_map(|labels| Name::from_labels(labels.iter().map(Vec::as_slice)).expect("short"))
    }

    proptest! {
        #[test]
        fn text_and_wire_round_trip(name in any_name()) {
            prop_assert_eq!(name.to_string().parse::<Name>(), Ok(name.clone()));
            prop_assert_eq!(Name::from_wire(name.as_wire()), Ok(name));
        }

        #[test]
        fn any_octets_are_a_name_or_an_error(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok((name, used)) = Name::parse_wire(&wire) {
                prop_assert!(used <= wire.len() && name.as_wire().len() == used);
            }
        }

        #[test]
        fn any_octets_are_a_key_or_none(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..300)) {
            if let Some(key) = NameKey::from_bytes(&bytes) {
                let apex = Name::from_labels([[b'a'; 63].as_slice(), &[b'b'; 60]]).expect("124 and the root");
                prop_assert_eq!(key.fits(&apex), key.to_name(&apex).is_some());
                let name = key.to_name(&Name::root()).expect("a key stands for a name");
                prop_assert_eq!(NameKey::of(&name, &Name::root()), Some(key));
            }
        }

        #[test]
        fn keys_sort_as_names_do(a in any_name(), b in any_name()) {
            let root = Name::root();
            let (ka, kb) = (NameKey::of(&a, &root).unwrap(), NameKey::of(&b, &root).unwrap());
            prop_assert_eq!(a.cmp(&b), ka.cmp(&kb));
            prop_assert_eq!(a.is_within(&b), ka.is_within(&kb));
            prop_assert_eq!(ka.to_name(&root), Some(a.clone()));
            prop_assert_eq!(NameKey::from_bytes(ka.as_bytes()), Some(ka.clone()));
            prop_assert!(ka.fits(&root));
            prop_assert_eq!(a.parent().map(|p| NameKey::of(&p, &root).unwrap()), ka.parent());
        }
    }
}
