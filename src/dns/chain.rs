//! An answer in several parts: what our zones say, what an upstream says of the name that they lead to, what our zones say of
//! the name that it leads to, and so on.
//!
//! Deciding code. Each name is answered by whom a question for just that name would go to: our zones, the built-in ones,
//! then a forwarder, which has the names that our zones delegate, too. An upstream is trusted beyond the names of its suffix
//! when it gives the data asked for, or denies it; but our own zones, and a forwarder that is set for just those names, know
//! better than one that says there is nothing.

use std::{borrow::Cow, sync::Arc};

use crate::model::{forwarder::Forwarder, snapshot::Snapshot};

use super::{
    answer::{self, Answer, Query, Source, WireName, forwarder_for},
    cache::Entry,
};

/// Questions to upstreams for one question of a client.
pub(super) const MAX_UPSTREAM: usize = 8;

/// One part of an answer.
#[derive(Debug)]
pub(super) enum Part<'a> {
    Own(Answer<'a>),
    /// The first `records` of the answer section; the whole entry, where it is the last part.
    Upstream {
        entry: &'a Entry,
        records: usize,
    },
}

/// The parts of an answer.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    /// Parts that lead on: of these only the answer sections count.
    pub before: Vec<Part<'a>>,
    pub last: Part<'a>,
}

/// Who said what an answer ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Zone,
    /// A zone that every server has, or what the server says of itself.
    BuiltIn,
    Upstream,
    /// Nobody was asked.
    Nobody,
    /// It ends with nothing: the aliases go in a circle through upstreams, or lead to them too often.
    Endless,
}

/// What became of a question.
#[derive(Debug)]
pub(super) enum Resolved<'a> {
    Answered(Chain<'a>),
    /// An upstream has to be asked for this name first.
    Ask(WireName<'a>, &'a Arc<Forwarder>),
    /// The name lies in none of our zones, and there is nobody who may be asked.
    Nowhere,
    /// The aliases go in a circle through upstreams, or lead to them too often.
    Endless,
}

/// A question, and what may be used to answer it.
pub(super) struct Resolver<'a> {
    pub snapshot: &'a Snapshot,
    pub query: Query<'a>,
    /// Whether upstreams may be asked.
    pub recursion: bool,
}

impl<'a> Chain<'a> {
    /// Whether the first owner name is in our authority (RFC 1035 section 4.1.1).
    pub fn is_authoritative(&self) -> bool {
        match self.before.first().unwrap_or(&self.last) {
            Part::Own(own) => own.authoritative,
            Part::Upstream { .. } => false,
        }
    }

    pub fn origin(&self) -> Origin {
        match &self.last {
            Part::Own(own) if own.built_in => Origin::BuiltIn,
            Part::Own(_) => Origin::Zone,
            Part::Upstream { .. } => Origin::Upstream,
        }
    }

    /// What a copy of the answer depends on, if that is our zones alone.
    pub fn into_source(self) -> Option<Source> {
        match self.last {
            Part::Own(own)
                if self.before.is_empty() && own.unresolved.is_none() && own.referral.is_none() =>
            {
                own.source
            }
            _ => None,
        }
    }
}

impl<'a> Resolver<'a> {
    /// Follows the question as far as `upstream`, the answers to what it asked for before, one after another, leads.
    pub fn resolve(&self, upstream: &'a [Arc<Entry>]) -> Resolved<'a> {
        let (mut before, mut asked) = (Vec::new(), Vec::new());
        let mut upstream = upstream.iter();
        let mut name: WireName<'a> = Cow::Borrowed(self.query.name);
        let mut own = answer::answer(self.snapshot, self.query);
        loop {
            let forwarder = match own {
                None => match self.forwarder(&name) {
                    None => return Resolved::Nowhere,
                    Some(forwarder) => forwarder,
                },
                Some(own) => {
                    let Some((next, forwarder)) = self.beyond(&own) else {
                        let last = Part::Own(own);
                        return Resolved::Answered(Chain { before, last });
                    };
                    before.push(Part::Own(own));
                    name = next;
                    forwarder
                }
            };
            if asked.len() == MAX_UPSTREAM || asked.contains(&name) {
                return Resolved::Endless;
            }
            let Some(entry) = upstream.next() else {
                return Resolved::Ask(name, forwarder);
            };
            let Some(next) = self.behind(entry, forwarder) else {
                let records = entry.answer.len();
                let last = Part::Upstream { entry, records };
                return Resolved::Answered(Chain { before, last });
            };
            let records = next.records;
            before.push(Part::Upstream { entry, records });
            asked.push(std::mem::replace(&mut name, Cow::Borrowed(next.name)));
            own = next.own;
        }
    }

    fn forwarder(&self, name: &[u8]) -> Option<&'a Arc<Forwarder>> {
        forwarder_for(self.snapshot, name, self.query.rtype).filter(|_| self.recursion)
    }

    /// What is left to ask when our zones have said their part: an alias that leads out of them, or a name in a delegated
    /// zone. A client that wants recursion can do nothing with a referral.
    fn beyond(&self, own: &Answer<'a>) -> Option<(WireName<'a>, &'a Arc<Forwarder>)> {
        let name = own.unresolved.as_ref().or(own.referral.as_ref())?;
        Some((name.clone(), self.forwarder(name)?))
    }

    /// Where an upstream's answer has to be left for somebody else's; none: nowhere.
    fn behind(&self, entry: &'a Entry, asked: &Forwarder) -> Option<Next<'a>> {
        for alias in &entry.aliases {
            let name = &*alias.target;
            let own = answer::answer(self.snapshot, Query { name, ..self.query });
            // Where the upstream has nothing, ours counts though it leads no further: the name exists here.
            let counts =
                |own: &Answer<'a>| self.is_whole(own) || entry.is_negative(self.query.rtype);
            if own.as_ref().is_some_and(counts) {
                let records = alias.records;
                return Some(Next { records, name, own });
            }
        }
        let last = entry.aliases.last()?;
        if !entry.is_negative(self.query.rtype) || !self.knows_better(&last.target, entry, asked) {
            return None;
        }
        Some(Next {
            records: last.records,
            name: &last.target,
            own: None,
        })
    }

    /// Whether an answer of ours leads to an end; one in a delegated zone, by a forwarder for just that zone.
    fn is_whole(&self, own: &Answer<'a>) -> bool {
        let Some((_, forwarder)) = self.beyond(own) else {
            return own.unresolved.is_none() && own.referral.is_none();
        };
        let cut = own.authority.first().filter(|_| own.referral.is_some());
        cut.is_none_or(|cut| answer::is_at_or_below(forwarder.suffix.as_wire(), &cut.owner))
    }

    /// Whether another forwarder than the one that was `asked` is to be believed on `name`, of which `entry` has no data.
    fn knows_better(&self, name: &[u8], entry: &Entry, asked: &Forwarder) -> bool {
        let ours = answer::zone_around(self.snapshot, name).is_some();
        let other = self
            .forwarder(name)
            .filter(|other| !ours && other.suffix != asked.suffix);
        // An upstream that denies has asked around as the servers for the root would.
        other.is_some_and(|other| !entry.is_denial() || !other.suffix.is_root())
    }
}

/// How an answer goes on behind a part of an upstream's.
struct Next<'a> {
    /// Records of that part.
    records: usize,
    name: &'a [u8],
    own: Option<Answer<'a>>,
}
