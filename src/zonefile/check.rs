//! What is wrong with a zone as a whole, as `named-checkzone` judges it.
//!
//! Errors are what no server should serve; warnings are what works, but hardly as meant. The hard rules are enforced again
//! when a zone is proposed to the log; this report exists so that an operator learns of everything at once, before that.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{
    fault::{Fault, Faults, Place},
    parse::Doubt,
};
use crate::model::{
    name::Name,
    rdata,
    rrset::{MAX_TTL, RecordType, Rrset},
};

/// How many findings of each severity are kept; the rest is counted.
const MAX_FINDINGS: usize = 100;

/// What may stand beside a CNAME: itself and what DNSSEC puts there (RFC 2181 section 10.1, RFC 4034 sections 3 and 4), KEY
/// of old too.
const BESIDE_CNAME: [RecordType; 4] = [
    RecordType::CNAME,
    RecordType::RRSIG,
    RecordType::NSEC,
    RecordType(25),
];
/// Octets a set may take in a message of 65,535: what header, question, OPT record and a signature leave.
const MAX_SET: usize = 65_535 - 12 - 259 - 11 - 512;
/// Octets of a record in a message beside its data: a compressed owner, type, class, TTL and length.
const RECORD_OVERHEAD: usize = 12;

/// What was found in a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of the records, those about the whole zone first.
    pub findings: Vec<Finding>,
    /// How many errors there are, those left out of `findings` too.
    pub errors: usize,
    pub warnings: usize,
}

/// By what a zone is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// What we serve: `zone create` makes a zone before its name servers have addresses.
    Served,
    /// What `named-checkzone` accepts too, so that any server may load it: its own name servers have addresses and are no
    /// aliases, and no NS record is at a wildcard.
    Everywhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The zone must not be served.
    Error,
    Warning,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    /// Where the set is in the master file, if that is known.
    pub place: Option<Place>,
    /// The set it is about, such as `www.example.com. CNAME`; empty when `problem` says it.
    pub object: String,
    /// What is wrong, and what to do.
    pub problem: String,
}

impl Report {
    /// Whether the zone may be served.
    pub fn is_loadable(&self) -> bool {
        self.errors == 0
    }

    /// How many warnings there are beside those in `findings`.
    pub fn unshown_warnings(&self) -> usize {
        self.warnings - self.shown(Severity::Warning)
    }

    fn shown(&self, severity: Severity) -> usize {
        let of = self.findings.iter().filter(|f| f.severity == severity);
        of.count()
    }

    /// Adds what could not be read.
    pub(super) fn add_faults(&mut self, faults: &Faults) {
        for fault in &faults.list {
            self.push(Finding {
                severity: Severity::Error,
                place: Some(fault.place.clone()),
                object: String::new(),
                problem: format!("column {}: {}", fault.column, fault.problem),
            });
        }
        if faults.incomplete {
            self.push(Finding {
                severity: Severity::Error,
                place: None,
                object: String::new(),
                problem: "more may follow: reading stopped here".into(),
            });
        }
    }

    /// Adds the findings of another report.
    pub(super) fn add(&mut self, other: Self) {
        let more_errors = other.errors - other.shown(Severity::Error);
        let more_warnings = other.unshown_warnings();
        other.findings.into_iter().for_each(|f| self.push(f));
        self.errors += more_errors;
        self.warnings += more_warnings;
    }

    /// Adds what was noticed while reading.
    pub fn add_warnings(&mut self, warnings: &[Fault]) {
        for warning in warnings {
            self.push(Finding {
                severity: Severity::Warning,
                place: Some(warning.place.clone()),
                object: String::new(),
                problem: warning.problem.clone(),
            });
        }
    }

    fn push(&mut self, finding: Finding) {
        let count = match finding.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(match self.severity {
            Severity::Error => "error: ",
            Severity::Warning => "warning: ",
        })?;
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.problem)
    }
}

/// Judges the records of the zone `apex`. `places` says where each comes from; it may be empty.
pub fn check(apex: &Name, records: &[(Name, Rrset)], places: &[Place]) -> Report {
    check_doubting(Standard::Served, apex, records, places, &Doubt::default())
}

/// What is to be said of sets by their own names alone, whatever else their zone holds: the warnings that `check` gives of them.
pub fn check_names<'r>(sets: impl IntoIterator<Item = (&'r Name, &'r Rrset)>) -> Vec<Finding> {
    let findings = sets.into_iter().flat_map(|(owner, set)| {
        let judged = [spelling(owner, set), wildcard(owner, set)];
        judged
            .into_iter()
            .flatten()
            .map(move |(severity, problem)| Finding {
                severity,
                place: None,
                object: format!("{owner} {}", set.rtype()),
                problem,
            })
    });
    findings.collect()
}

/// As `check`, where some records could not be read: what is missing may be among them, and is not called missing.
pub(super) fn check_doubting(
    standard: Standard,
    apex: &Name,
    records: &[(Name, Rrset)],
    places: &[Place],
    doubt: &Doubt,
) -> Report {
    let zone = Contents::new(standard, apex, records, doubt);
    let mut report = Report::default();
    for (object, problem) in zone.apex_errors() {
        report.push(Finding {
            severity: Severity::Error,
            place: None,
            object,
            problem,
        });
    }
    for (at, (owner, set)) in records.iter().enumerate() {
        for (severity, problem) in zone.judge(owner, set) {
            report.push(Finding {
                severity,
                place: places.get(at).cloned(),
                object: format!("{owner} {}", set.rtype()),
                problem,
            });
        }
    }
    report
}

type Judgement = (Severity, String);

fn error(problem: impl Into<String>) -> Judgement {
    (Severity::Error, problem.into())
}

fn warning(problem: impl Into<String>) -> Judgement {
    (Severity::Warning, problem.into())
}

/// A zone's records by name. Names are keyed by their wire form, of which every ancestor is a tail: looking up an ancestor
/// allocates nothing.
struct Contents<'r> {
    standard: Standard,
    apex: &'r Name,
    nodes: HashMap<&'r [u8], Vec<&'r Rrset>>,
    /// Every name that exists, empty non-terminals too.
    existing: HashSet<&'r [u8]>,
    doubt: &'r Doubt,
}

/// What a server finds when it follows a name to addresses.
enum Target<'r> {
    /// In another zone.
    Elsewhere,
    /// Below a DNAME.
    Redirected,
    Address,
    Alias,
    NoAddress,
    /// Below the delegation of this name, without glue.
    Delegated(&'r [u8]),
}

impl<'r> Contents<'r> {
    fn new(
        standard: Standard,
        apex: &'r Name,
        records: &'r [(Name, Rrset)],
        doubt: &'r Doubt,
    ) -> Self {
        let mut nodes: HashMap<&[u8], Vec<&Rrset>> = HashMap::new();
        let mut existing = HashSet::new();
        for (owner, set) in records.iter().filter(|(owner, _)| owner.is_within(apex)) {
            nodes.entry(owner.as_wire()).or_default().push(set);
            for name in tails(owner.as_wire(), apex) {
                // Ancestors of a known name are known.
                if !existing.insert(name) {
                    break;
                }
            }
        }
        Self {
            standard,
            apex,
            nodes,
            existing,
            doubt,
        }
    }

    /// Whether such a set is certainly not there.
    fn lacks(&self, name: &[u8], rtype: RecordType) -> bool {
        !self.doubt.covers(rtype) && !self.has(name, rtype)
    }

    fn has(&self, name: &[u8], rtype: RecordType) -> bool {
        let sets = self.nodes.get(name).map_or(&[][..], Vec::as_slice);
        sets.iter().any(|set| set.rtype() == rtype)
    }

    fn has_address(&self, name: &[u8]) -> bool {
        self.has(name, RecordType::A) || self.has(name, RecordType::AAAA)
    }

    fn apex_errors(&self) -> Vec<(String, String)> {
        [RecordType::SOA, RecordType::NS]
            .iter()
            .filter(|rtype| self.lacks(self.apex.as_wire(), **rtype))
            .map(|rtype| {
                let problem = format!("expected {rtype} records at the apex, found none");
                (format!("zone {}", self.apex), problem)
            })
            .collect()
    }

    /// Everything that is to be said about one set.
    fn judge(&self, owner: &Name, set: &Rrset) -> Vec<Judgement> {
        if !owner.is_within(self.apex) {
            let problem = format!("lies outside of the zone {} and is ignored", self.apex);
            return vec![warning(problem)];
        }
        let mut found = Vec::new();
        found.extend(self.form(owner, set));
        found.extend(self.company(owner, set));
        found.extend(self.occlusion(owner, set));
        found.extend(spelling(owner, set));
        if matches!(
            set.rtype(),
            RecordType::NS | RecordType::MX | RecordType::SRV
        ) {
            found.extend(
                set.rdata()
                    .filter_map(|data| self.target(owner, set.rtype(), data)),
            );
        }
        found
    }

    /// A set by itself.
    fn form(&self, owner: &Name, set: &Rrset) -> Option<Judgement> {
        let single = [RecordType::SOA, RecordType::CNAME, RecordType::DNAME];
        if set.rtype() == RecordType::SOA && owner != self.apex {
            return Some(error(format!(
                "an SOA record belongs at the apex {} only",
                self.apex
            )));
        }
        if single.contains(&set.rtype()) && set.len() > 1 {
            return Some(error(format!("{} records: expected one", set.len())));
        }
        if set.ttl() > MAX_TTL {
            let problem = format!("TTL {}: expected at most {MAX_TTL}", set.ttl());
            return Some(error(problem));
        }
        let octets = set.packed_len() + set.len() * (RECORD_OVERHEAD - 2);
        (octets > MAX_SET).then(|| {
            error(format!(
                "its {} records take {octets} octets of a message: expected at most {MAX_SET}",
                set.len()
            ))
        })
    }

    /// A set beside the others of its name.
    fn company(&self, owner: &Name, set: &Rrset) -> Option<Judgement> {
        let name = owner.as_wire();
        let sets = self.nodes.get(name).map_or(&[][..], Vec::as_slice);
        match set.rtype() {
            RecordType::CNAME => {
                let other = sets
                    .iter()
                    .find(|other| !BESIDE_CNAME.contains(&other.rtype()))?;
                Some(error(format!(
                    "a CNAME record may have no other data beside it, but there is {}",
                    other.rtype()
                )))
            }
            RecordType::DNAME if owner != self.apex && self.has(name, RecordType::NS) => {
                Some(error(
                    "NS records stand beside it: a name is delegated or redirected, not both (RFC 6672 section 2.3)",
                ))
            }
            RecordType::DS if owner == self.apex => Some(error(
                "a DS record at the apex belongs in the parent zone (RFC 4035 section 2.4)",
            )),
            RecordType::DS if self.lacks(name, RecordType::NS) => Some(warning(
                "a DS record without NS records beside it: no delegation is here",
            )),
            RecordType::NS if owner.is_wildcard() && self.standard == Standard::Everywhere => {
                let problem = "at a wildcard its meaning is undefined, and servers refuse it (RFC 4592 section 4.2)";
                Some(error(problem))
            }
            RecordType::NS | RecordType::DNAME if owner.is_wildcard() => wildcard(owner, set),
            RecordType::SPF if self.lacks(name, RecordType::TXT) => Some(warning(
                "SPF records are not used any more (RFC 7208 section 3.1): use TXT",
            )),
            _ => None,
        }
    }

    /// A set that is never answered, because a delegation or a DNAME lies above it.
    fn occlusion(&self, owner: &Name, set: &Rrset) -> Option<Judgement> {
        let name = owner.as_wire();
        let glue = matches!(set.rtype(), RecordType::A | RecordType::AAAA);
        let at_cut = matches!(
            set.rtype(),
            RecordType::NS
                | RecordType::DS
                | RecordType::NSEC
                | RecordType::RRSIG
                | RecordType::DNAME
        );
        for above in tails(name, self.apex) {
            let itself = above.len() == name.len();
            let cut = above != self.apex.as_wire() && self.has(above, RecordType::NS);
            if cut && !glue && !(itself && at_cut) {
                return Some(warning(format!(
                    "hidden by the delegation of {}",
                    shown_name(above)
                )));
            }
            if !itself && self.has(above, RecordType::DNAME) {
                return Some(error(format!(
                    "lies below the DNAME at {}, where there can be nothing (RFC 6672 section 2.4)",
                    shown_name(above)
                )));
            }
        }
        None
    }

    /// The name that NS, MX and SRV data point to.
    fn target(&self, owner: &Name, rtype: RecordType, data: &[u8]) -> Option<Judgement> {
        let target = rdata::additional_name(rtype, data)?;
        if target.is_root() && rtype != RecordType::NS {
            // "No such service": RFC 2782, RFC 7505.
            return None;
        }
        let unsure = [RecordType::A, RecordType::AAAA, RecordType::CNAME]
            .iter()
            .any(|rtype| self.doubt.covers(*rtype));
        let own_server = rtype == RecordType::NS && owner == self.apex;
        let said = |problem: String| match (own_server, self.standard) {
            (true, Standard::Everywhere) => Some(error(problem)),
            _ => Some(warning(problem)),
        };
        match self.follow(target.as_wire()) {
            Target::Elsewhere | Target::Address => None,
            Target::NoAddress | Target::Delegated(_) if unsure => None,
            Target::Alias => said(format!(
                "{target} is a CNAME: expected a name with addresses (RFC 2181 section 10.3)"
            )),
            Target::Redirected if rtype == RecordType::NS => said(format!(
                "{target} is below a DNAME: expected a name with addresses (RFC 2181 section 10.3)"
            )),
            Target::Redirected => None,
            Target::NoAddress => said(format!("{target} has no address records (A or AAAA)")),
            Target::Delegated(cut) => {
                let needs_glue = rtype == RecordType::NS && cut == owner.as_wire();
                needs_glue.then(|| {
                    warning(format!(
                        "missing glue: {target} lies below the delegation and has no address records (A or AAAA)"
                    ))
                })
            }
        }
    }

    fn follow(&self, target: &[u8]) -> Target<'r> {
        let mut cut = None;
        let mut encloser = None;
        let mut within = false;
        let mut redirected = false;
        for above in tails(target, self.apex) {
            within |= above == self.apex.as_wire();
            let known = self.existing.get(above).copied();
            encloser = encloser.or(known);
            if known.is_some() && above != self.apex.as_wire() && self.has(above, RecordType::NS) {
                cut = known;
            }
            if above.len() < target.len() && self.has(above, RecordType::DNAME) {
                redirected = true;
            }
        }
        if !within {
            return Target::Elsewhere;
        }
        if redirected {
            return Target::Redirected;
        }
        if self.has_address(target) {
            return Target::Address;
        }
        if let Some(cut) = cut {
            return Target::Delegated(cut);
        }
        // A name that does not exist is made by a wildcard right below its closest encloser (RFC 4592 section 3.3.1).
        let wildcard = [b"\x01*", encloser.unwrap_or_default()].concat();
        let source = match self.existing.contains(target) {
            true => target,
            false => &wildcard,
        };
        if self.has(source, RecordType::CNAME) {
            Target::Alias
        } else if self.has_address(source) {
            Target::Address
        } else {
            Target::NoAddress
        }
    }
}

/// `name` and its ancestors, from itself up to `apex`; for a name outside of it, up to the root, `apex` not among them.
fn tails<'n>(name: &'n [u8], apex: &Name) -> impl Iterator<Item = &'n [u8]> {
    let mut next = Some(name);
    let shortest = apex.as_wire().len();
    std::iter::from_fn(move || {
        let here = next.filter(|here| here.len() >= shortest)?;
        let label = usize::from(*here.first()?);
        next = here.get(1 + label..).filter(|_| label > 0);
        Some(here)
    })
}

/// Owners of addresses and mail servers are host names (RFC 1123 section 2.1). Octets beyond ASCII are most likely a name that
/// was typed as it is read, which nobody will ask for, whatever its type.
fn spelling(owner: &Name, set: &Rrset) -> Option<Judgement> {
    let hosts = [RecordType::A, RecordType::AAAA, RecordType::MX];
    let mut labels = owner.labels().skip(usize::from(owner.is_wildcard()));
    if !owner.labels().all(<[u8]>::is_ascii) {
        return Some(warning(
            "the owner is no host name (letters, digits and hyphens): names in other scripts are written as xn--... (RFC 5891)",
        ));
    }
    (hosts.contains(&set.rtype()) && !labels.all(is_host_label))
        .then(|| warning("the owner is no host name (letters, digits and hyphens)"))
}

fn wildcard(owner: &Name, set: &Rrset) -> Option<Judgement> {
    let undefined = [RecordType::NS, RecordType::DNAME];
    (undefined.contains(&set.rtype()) && owner.is_wildcard())
        .then(|| warning("at a wildcard its meaning is undefined (RFC 4592 section 4)"))
}

fn is_host_label(label: &[u8]) -> bool {
    let inner = |o: &u8| o.is_ascii_alphanumeric() || *o == b'-';
    label.iter().all(inner) && !label.starts_with(b"-") && !label.ends_with(b"-")
}

fn shown_name(wire: &[u8]) -> String {
    Name::from_wire(wire).map_or_else(|_| String::new(), |name| name.to_string())
}
