//! Reading master files.
//!
//! One pass over the text, entry by entry. A faulty entry is reported and passed over, so that one reading shows many
//! faults. Everything that grows is bounded: octets read, records, nesting, an entry's length, faults.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range as Span,
    sync::Arc,
};

use super::{
    fault::{Fault, Faults, MAX_FAULTS, Place},
    generate::{Range, Template},
    include::{Loader, is_plain},
};
use crate::model::{
    name::Name,
    rdata::{
        self, Soa, seconds, shown,
        token::{LexError, Lexeme, Lexer, Token},
        unescaped,
    },
    rrset::{MAX_TTL, RecordType, Rrset},
};

/// Most octets read in all: files, included files and what `$GENERATE` makes.
pub const MAX_OCTETS: usize = 512 << 20;
/// Most records in all.
pub const MAX_RECORDS: usize = 5_000_000;
/// Longest entry, in octets: the longest data there is, every octet escaped, and room for comments.
pub const MAX_ENTRY: usize = 1 << 20;
/// How deep included files may include others.
pub const MAX_DEPTH: usize = 8;
/// How many warnings are kept.
const MAX_WARNINGS: usize = MAX_FAULTS;

/// The records of a master file.
#[derive(Clone, Debug)]
pub struct ParsedZone {
    /// In the order in which each set first appears.
    pub records: Vec<(Name, Rrset)>,
    /// Where each of `records` first appears.
    pub places: Vec<Place>,
    pub warnings: Vec<Fault>,
}

/// Reads a master file. Relative names are completed with `origin` until a `$ORIGIN`. `source` names the text in faults;
/// `loader` gives the files that `$INCLUDE` names.
pub fn parse(
    text: &[u8],
    origin: &Name,
    source: &str,
    loader: &mut dyn Loader,
) -> Result<ParsedZone, Faults> {
    let read = read(text, origin, true, source, loader);
    match read.faults.list.is_empty() {
        true => Ok(read.zone),
        false => Err(read.faults),
    }
}

/// What can be read of a master file.
pub(super) struct Read {
    pub zone: ParsedZone,
    pub faults: Faults,
    /// What the entries that could not be read may have been.
    pub doubt: Doubt,
    /// The first owner or origin that is relative, while nobody has said to what.
    pub unnamed: Option<Place>,
    /// Whether a record was read while nobody had said to what names are relative.
    pub guessed: bool,
}

/// Record types of which some may be missing, because the entries that hold them could not be read.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt {
    any: bool,
    types: BTreeSet<RecordType>,
}

impl Doubt {
    pub fn covers(&self, rtype: RecordType) -> bool {
        self.any || self.types.contains(&rtype)
    }

    /// Notes what an entry that could not be read may have been.
    fn note(&mut self, words: &[Token<'_>]) {
        for word in words.iter().filter(|word| !word.quoted) {
            // Directives make, or move, records of any type.
            self.any |= word.text.starts_with(b"$");
            let text = std::str::from_utf8(word.text).ok();
            self.types.extend(text.and_then(RecordType::parse));
        }
    }
}

/// As `parse`, but what is faulty is left out. `named`: `origin` is known to be the zone's, and not only a stand-in.
pub(super) fn read(
    text: &[u8],
    origin: &Name,
    named: bool,
    source: &str,
    loader: &mut dyn Loader,
) -> Read {
    let mut reader = Reader::new(loader);
    reader.named = named;
    if reader.spend(text.len()).is_ok() {
        reader.read_file(File::new(source, text, origin.clone(), None, 0));
    } else {
        let file = File::new(source, &[], origin.clone(), None, 0);
        reader.fault(
            &file,
            Problem::new(0, format!("expected at most {MAX_OCTETS} octets")),
        );
        reader.doubt.any = true;
    }
    reader.finish()
}

/// What is wrong with an entry, and at which octet of the file.
struct Problem {
    at: usize,
    text: String,
}

impl Problem {
    fn new(at: usize, text: impl Into<String>) -> Self {
        Self {
            at,
            text: text.into(),
        }
    }

    /// `expected`, but `found` is there, or nothing.
    fn expected(expected: &str, found: Option<&Token<'_>>, end: usize) -> Self {
        match found {
            Some(word) => Self::new(
                word.at,
                format!("expected {expected}, found {}", shown(word.text)),
            ),
            None => Self::new(end, format!("expected {expected}, but the entry ends here")),
        }
    }
}

/// One file being read.
struct File<'t> {
    name: Arc<str>,
    text: &'t [u8],
    origin: Name,
    /// The owner of the previous record.
    owner: Option<Name>,
    depth: usize,
    /// Where the current entry starts.
    entry: usize,
    /// The line it starts on.
    line: u32,
}

impl<'t> File<'t> {
    fn new(name: &str, text: &'t [u8], origin: Name, owner: Option<Name>, depth: usize) -> Self {
        Self {
            name: name.into(),
            // A byte order mark is the first thing in a file from some editors, and no part of a name.
            text: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text),
            origin,
            owner,
            depth,
            entry: 0,
            line: 1,
        }
    }

    /// Makes the octet `next` the start of the current entry.
    fn advance(&mut self, next: usize) {
        let passed = self.text.get(self.entry..next).unwrap_or_default();
        self.line += count_lines(passed);
        self.entry = next;
    }

    fn place(&self) -> Place {
        Place {
            file: Arc::clone(&self.name),
            line: self.line,
        }
    }

    /// Turns a problem of the current entry into a fault.
    fn locate(&self, problem: Problem) -> Fault {
        let before = self.text.get(..problem.at).unwrap_or(self.text);
        let line_start = before
            .iter()
            .rposition(|o| *o == b'\n')
            .map_or(0, |at| at + 1);
        let lines = count_lines(before.get(self.entry..).unwrap_or_default());
        Fault {
            place: Place {
                file: Arc::clone(&self.name),
                line: self.line + lines,
            },
            column: (before.len() - line_start) as u32 + 1,
            problem: problem.text,
        }
    }
}

fn count_lines(text: &[u8]) -> u32 {
    text.iter().filter(|octet| **octet == b'\n').count() as u32
}

/// A record set under construction.
struct Set {
    owner: Name,
    rtype: RecordType,
    ttl: u32,
    place: Place,
}

/// One record: the set it belongs to, its data in `Reader::data`, its line.
struct Entry {
    set: u32,
    data: Span<usize>,
    line: u32,
}

/// What a record's fields are before its data.
struct Header {
    ttl: Option<u32>,
    rtype: RecordType,
    /// How many words it took.
    words: usize,
}

struct Reader<'l> {
    loader: &'l mut dyn Loader,
    faults: Faults,
    warnings: Vec<Fault>,
    sets: Vec<Set>,
    index: HashMap<(Name, RecordType), u32>,
    entries: Vec<Entry>,
    /// The data of all records, end to end.
    data: Vec<u8>,
    octets_left: usize,
    /// Of `$TTL`; holds in all files read after it.
    default_ttl: Option<u32>,
    /// Last stated in a record.
    last_ttl: Option<u32>,
    doubt: Doubt,
    /// Whether the origin is known: given, or set by a `$ORIGIN`.
    named: bool,
    unnamed: Option<Place>,
    guessed: bool,
}

impl<'l> Reader<'l> {
    fn new(loader: &'l mut dyn Loader) -> Self {
        Self {
            loader,
            faults: Faults::default(),
            warnings: Vec::new(),
            sets: Vec::new(),
            index: HashMap::new(),
            entries: Vec::new(),
            data: Vec::new(),
            octets_left: MAX_OCTETS,
            default_ttl: None,
            last_ttl: None,
            doubt: Doubt::default(),
            named: true,
            unnamed: None,
            guessed: false,
        }
    }

    fn read_file(&mut self, mut file: File<'_>) {
        let mut words = Vec::new();
        let mut next = 0;
        while next < file.text.len() && !self.faults.is_full() {
            file.advance(next);
            words.clear();
            let blank = Lexer::starting_at(file.text, next).is_at_blank();
            let read = take_entry(file.text, &mut next, &mut words);
            let done = read.and_then(|()| self.handle(&mut file, &words, blank));
            if let Err(problem) = done {
                self.fault(&file, problem);
                self.doubt.note(&words);
            }
        }
    }

    fn fault(&mut self, file: &File<'_>, problem: Problem) {
        self.faults.push(file.locate(problem));
    }

    fn warn(&mut self, file: &File<'_>, at: usize, problem: String) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(file.locate(Problem::new(at, problem)));
        }
    }

    /// Takes octets from what may still be read.
    fn spend(&mut self, octets: usize) -> Result<(), String> {
        self.octets_left = self
            .octets_left
            .checked_sub(octets)
            .ok_or_else(|| format!("expected at most {MAX_OCTETS} octets in all"))?;
        Ok(())
    }

    fn handle(
        &mut self,
        file: &mut File<'_>,
        words: &[Token<'_>],
        blank: bool,
    ) -> Result<(), Problem> {
        let Some(first) = words.first() else {
            return Ok(());
        };
        if blank {
            let owner = file.owner.clone().ok_or_else(|| {
                Problem::new(
                    first.at,
                    "expected an owner name at the start of the line: no record stands before this one",
                )
            })?;
            return self.record(file, &owner, words, first.at, Origin::Text);
        }
        if !first.quoted && first.text.starts_with(b"$") {
            return self.directive(file, first, &words[1..]);
        }
        let owner = read_name(first, &file.origin, "an owner name")?;
        self.expect_named(file, first);
        file.owner = Some(owner.clone());
        self.record(file, &owner, &words[1..], end_of(first), Origin::Text)
    }

    fn directive(
        &mut self,
        file: &mut File<'_>,
        directive: &Token<'_>,
        words: &[Token<'_>],
    ) -> Result<(), Problem> {
        match directive.text.to_ascii_uppercase().as_slice() {
            b"$ORIGIN" => self.origin(file, directive, words),
            b"$TTL" => self.ttl(directive, words),
            b"$INCLUDE" => self.include(file, directive, words),
            b"$GENERATE" => self.generate(file, directive, words),
            _ => Err(Problem::expected(
                "$ORIGIN, $TTL, $INCLUDE or $GENERATE (an owner name that starts with a dollar sign is written `\\$`)",
                Some(directive),
                0,
            )),
        }
    }

    fn origin(
        &mut self,
        file: &mut File<'_>,
        directive: &Token<'_>,
        words: &[Token<'_>],
    ) -> Result<(), Problem> {
        let [word] = exactly(words, "one domain name", directive)?;
        file.origin = read_name(word, &file.origin, "a domain name")?;
        self.expect_named(file, word);
        self.named = true;
        Ok(())
    }

    /// Notes a relative name while nobody has said to what names are relative.
    fn expect_named(&mut self, file: &File<'_>, word: &Token<'_>) {
        let relative = |origin: &Name| Name::parse_octets(word.text, origin).ok();
        let stand_in = || Name::root().child(b"x").ok();
        if !self.named
            && self.unnamed.is_none()
            && stand_in().is_some_and(|origin| relative(&origin) != relative(&Name::root()))
        {
            self.unnamed = Some(file.place());
        }
    }

    fn ttl(&mut self, directive: &Token<'_>, words: &[Token<'_>]) -> Result<(), Problem> {
        let [word] = exactly(words, "one TTL", directive)?;
        self.default_ttl = Some(read_ttl(word)?);
        Ok(())
    }

    fn include(
        &mut self,
        file: &mut File<'_>,
        directive: &Token<'_>,
        words: &[Token<'_>],
    ) -> Result<(), Problem> {
        let (word, origin) = match words {
            [word] => (word, file.origin.clone()),
            [word, origin] => (word, read_name(origin, &file.origin, "a domain name")?),
            _ => {
                let expected = "a file name and at most one domain name";
                return Err(Problem::expected(expected, words.get(2), end_of(directive)));
            }
        };
        let wrong = |problem: String| Problem::new(word.at, format!("$INCLUDE: {problem}"));
        let name = unescaped(word.text)
            .and_then(|octets| String::from_utf8(octets).ok())
            .filter(|name| is_plain(name))
            .ok_or_else(|| {
                wrong(format!(
                    "expected the plain name of a file in the same directory, found {}",
                    shown(word.text)
                ))
            })?;
        if file.depth >= MAX_DEPTH {
            return Err(wrong(format!(
                "expected at most {MAX_DEPTH} files inside one another: a file may include itself"
            )));
        }
        let text = self
            .loader
            .load(&name)
            .map_err(|e| wrong(format!("cannot read {}: {e}", shown(name.as_bytes()))))?;
        // One octet more, so that empty files cannot be included without end.
        self.spend(text.len() + 1).map_err(wrong)?;
        // Owner and origin of this file are those of before again when the other has been read (RFC 1035 section 5.1).
        self.read_file(File::new(
            &name,
            &text,
            origin,
            file.owner.clone(),
            file.depth + 1,
        ));
        Ok(())
    }

    fn generate(
        &mut self,
        file: &mut File<'_>,
        directive: &Token<'_>,
        words: &[Token<'_>],
    ) -> Result<(), Problem> {
        let end = words.last().map_or(end_of(directive), end_of);
        let [range_word, owner_word, rest @ ..] = words else {
            return Err(Problem::new(
                end,
                "expected $GENERATE range owner [TTL] [class] type data",
            ));
        };
        let range = Range::parse(range_word.text).map_err(|p| Problem::new(range_word.at, p))?;
        let owners =
            Template::parse(owner_word.text).map_err(|p| Problem::new(owner_word.at, p))?;
        let header = read_header(rest, end)?;
        let (head, data_words) = rest.split_at_checked(header.words).unwrap_or((rest, &[]));
        let data_at = data_words.first().map_or(end, |word| word.at);
        if header.rtype == RecordType::SOA {
            return Err(Problem::new(
                data_at,
                "expected a type other than SOA: a zone has one",
            ));
        }
        let data =
            Template::parse(&template_text(data_words)).map_err(|p| Problem::new(data_at, p))?;
        for number in range.numbers() {
            let at = owner_word.at;
            let owner = owners.expand(number).map_err(|p| Problem::new(at, p))?;
            let text = data.expand(number).map_err(|p| Problem::new(data_at, p))?;
            self.spend(owner.len() + text.len())
                .map_err(|p| Problem::new(at, p))?;
            let owner = Name::parse_octets(&owner, &file.origin)
                .map_err(|e| Problem::new(at, format!("{}: {e}", shown(&owner))))?;
            let mut words = head.to_vec();
            let mut next = 0;
            take_entry(&text, &mut next, &mut words).map_err(|p| Problem::new(data_at, p.text))?;
            self.record(file, &owner, &words, end, Origin::Generated { at: data_at })?;
        }
        Ok(())
    }

    /// Reads `[TTL] [class] type data`.
    fn record(
        &mut self,
        file: &File<'_>,
        owner: &Name,
        words: &[Token<'_>],
        end: usize,
        origin: Origin,
    ) -> Result<(), Problem> {
        self.guessed |= !self.named;
        // Behind the owner, when nothing follows it.
        let end = words.last().map_or(end, end_of);
        let header = read_header(words, end)?;
        let data_words = words.get(header.words..).unwrap_or_default();
        let start = self.data.len();
        rdata::parse_words(header.rtype, data_words, &file.origin, &mut self.data).map_err(
            |error| {
                let word = error.word.and_then(|word| data_words.get(word));
                let at = match origin {
                    Origin::Generated { at } => at,
                    Origin::Text => word.map_or(end, |word| word.at),
                };
                Problem::new(at, error.to_string())
            },
        )?;
        let span = start..self.data.len();
        let ttl = self.ttl_of(file, &header, &span)?;
        self.add(file, owner, header.rtype, ttl, span)
    }

    /// The TTL of a record: its own, else that of `$TTL` (RFC 2308 section 4), else the last one stated (RFC 1035 section
    /// 5.1), else, for an SOA record, its last field.
    fn ttl_of(
        &mut self,
        file: &File<'_>,
        header: &Header,
        data: &Span<usize>,
    ) -> Result<u32, Problem> {
        if let Some(ttl) = header.ttl {
            self.last_ttl = Some(ttl);
            return Ok(ttl);
        }
        if let Some(ttl) = self.default_ttl.or(self.last_ttl) {
            return Ok(ttl);
        }
        let soa = (header.rtype == RecordType::SOA)
            .then(|| Soa::from_wire(self.data.get(data.clone())?).ok())
            .flatten()
            .ok_or_else(|| {
                Problem::new(
                    file.entry,
                    "expected a TTL: put it before the type, or a line `$TTL 3600` before the first record",
                )
            })?;
        let ttl = soa.minimum.min(MAX_TTL);
        self.warn(
            file,
            file.entry,
            format!("no TTL is given: the last field of the SOA record, {ttl}, is used"),
        );
        self.default_ttl = Some(ttl);
        Ok(ttl)
    }

    fn add(
        &mut self,
        file: &File<'_>,
        owner: &Name,
        rtype: RecordType,
        ttl: u32,
        data: Span<usize>,
    ) -> Result<(), Problem> {
        if self.entries.len() >= MAX_RECORDS {
            return Err(Problem::new(
                file.entry,
                format!("expected at most {MAX_RECORDS} records"),
            ));
        }
        let next = self.sets.len() as u32;
        let set = *self.index.entry((owner.clone(), rtype)).or_insert(next);
        if set == next {
            self.sets.push(Set {
                owner: owner.clone(),
                rtype,
                ttl,
                place: file.place(),
            });
        } else {
            self.agree_on_ttl(file, set, ttl);
        }
        self.entries.push(Entry {
            set,
            data,
            line: file.line,
        });
        Ok(())
    }

    /// All records of a set have one TTL; the lowest is taken (RFC 2181 section 5.2). Signatures of different types are no
    /// set in that sense.
    fn agree_on_ttl(&mut self, file: &File<'_>, set: u32, ttl: u32) {
        let Some(set) = self.sets.get_mut(set as usize).filter(|s| s.ttl != ttl) else {
            return;
        };
        let lowest = set.ttl.min(ttl);
        let problem = format!(
            "{} {}: TTL {ttl} differs from {} of the same set at {}: the lowest is used",
            set.owner, set.rtype, set.ttl, set.place
        );
        set.ttl = lowest;
        if set.rtype != RecordType::RRSIG {
            self.warn(file, file.entry, problem);
        }
    }

    fn finish(mut self) -> Read {
        self.doubt.any |= self.faults.incomplete;
        self.entries.sort_by_key(|entry| entry.set);
        let mut records = Vec::with_capacity(self.sets.len());
        let mut places = Vec::with_capacity(self.sets.len());
        let groups = self.entries.chunk_by(|a, b| a.set == b.set);
        for (set, group) in self.sets.into_iter().zip(groups) {
            let octets = |entry: &Entry| self.data.get(entry.data.clone()).unwrap_or_default();
            let Some(rrset) = Rrset::new(set.rtype, set.ttl, group.iter().map(octets)) else {
                continue;
            };
            if rrset.len() < group.len() && self.warnings.len() < MAX_WARNINGS {
                self.warnings.push(duplicate(&set, group, octets));
            }
            records.push((set.owner, rrset));
            places.push(set.place);
        }
        Read {
            zone: ParsedZone {
                records,
                places,
                warnings: self.warnings,
            },
            faults: self.faults,
            doubt: self.doubt,
            unnamed: self.unnamed,
            guessed: self.guessed,
        }
    }
}

/// Where a record's words come from.
#[derive(Clone, Copy)]
enum Origin {
    /// The file itself.
    Text,
    /// A `$GENERATE` whose data starts at an octet of the file; the words' own places mean nothing.
    Generated { at: usize },
}

/// The warning that some records of a set are there more than once.
fn duplicate<'d>(set: &Set, group: &[Entry], octets: impl Fn(&Entry) -> &'d [u8]) -> Fault {
    let mut sorted: Vec<(&[u8], u32)> = group.iter().map(|e| (octets(e), e.line)).collect();
    sorted.sort_unstable();
    let again = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0);
    Fault {
        place: Place {
            line: again.map_or(set.place.line, |pair| pair[1].1),
            file: Arc::clone(&set.place.file),
        },
        column: 1,
        problem: format!(
            "{} {}: the same record again: it is kept once",
            set.owner, set.rtype
        ),
    }
}

/// Appends the words of the entry at `next` to `words` and moves `next` behind it, past a faulty one too.
fn take_entry<'t>(
    text: &'t [u8],
    next: &mut usize,
    words: &mut Vec<Token<'t>>,
) -> Result<(), Problem> {
    let start = *next;
    // An entry that is not complete by then is reported without looking at the rest of the file.
    let limit = start + MAX_ENTRY;
    let mut lexer = Lexer::starting_at(text.get(..=limit).unwrap_or(text), start);
    let failed = loop {
        match lexer.next_lexeme() {
            Ok(Lexeme::LineEnd) if lexer.position() > limit => {
                break LexError::TooLong {
                    at: start,
                    limit: MAX_ENTRY,
                };
            }
            Ok(Lexeme::LineEnd) => {
                *next = lexer.position();
                return Ok(());
            }
            Ok(Lexeme::Token(word)) => words.push(word),
            Err(error) => break error,
        }
    };
    // A parenthesis that is never closed would swallow the rest of the file: go on with the line behind it.
    let resume = match failed {
        LexError::UnclosedParenthesis { at } => at,
        _ => lexer.position().max(start),
    };
    let mut lexer = Lexer::starting_at(text, resume);
    lexer.skip_line();
    *next = lexer.position() + 1;
    Err(Problem::new(failed.at(), failed.to_string()))
}

fn end_of(word: &Token<'_>) -> usize {
    word.at + word.text.len() + 2 * usize::from(word.quoted)
}

/// Exactly one word after a directive.
fn exactly<'t, 'a>(
    words: &'t [Token<'a>],
    expected: &str,
    directive: &Token<'_>,
) -> Result<[&'t Token<'a>; 1], Problem> {
    match words {
        [word] => Ok([word]),
        _ => Err(Problem::expected(expected, words.get(1), end_of(directive))),
    }
}

fn read_name(word: &Token<'_>, origin: &Name, expected: &str) -> Result<Name, Problem> {
    Name::parse_octets(word.text, origin).map_err(|e| {
        Problem::new(
            word.at,
            format!("expected {expected}, found {}: {e}", shown(word.text)),
        )
    })
}

fn read_ttl(word: &Token<'_>) -> Result<u32, Problem> {
    let ttl = seconds(word.text).filter(|ttl| !word.quoted && *ttl <= MAX_TTL);
    ttl.ok_or_else(|| {
        Problem::expected(
            "a TTL of 0 to 2147483647 seconds, such as 3600 or 1h30m",
            Some(word),
            0,
        )
    })
}

/// Reads `[TTL] [class] type`; TTL and class in either order (RFC 1035 section 5.1).
fn read_header(words: &[Token<'_>], end: usize) -> Result<Header, Problem> {
    let (mut ttl, mut class, mut at) = (None, false, 0);
    loop {
        let word = words.get(at).filter(|word| !word.quoted);
        let text = word.map_or(&[][..], |word| word.text);
        match word {
            Some(word) if ttl.is_none() && text.first().is_some_and(u8::is_ascii_digit) => {
                ttl = Some(read_ttl(word)?);
            }
            Some(word) if !class && is_class(text) => {
                if !is_internet(text) {
                    return Err(Problem::expected("the class IN", Some(word), end));
                }
                class = true;
            }
            _ => {
                let rtype = std::str::from_utf8(text).ok().and_then(RecordType::parse);
                let rtype = rtype.ok_or_else(|| no_type(words.get(at), end))?;
                return Ok(Header {
                    ttl,
                    rtype,
                    words: at + 1,
                });
            }
        }
        at += 1;
    }
}

fn no_type(found: Option<&Token<'_>>, end: usize) -> Problem {
    let mut problem = Problem::expected("a record type such as A, MX or TYPE65280", found, end);
    if found.is_some() {
        let unnamed = " (records of a type that has no name here are written as `TYPEn \\# length hex`, RFC 3597)";
        problem.text.push_str(unnamed);
    }
    problem
}

fn is_internet(text: &[u8]) -> bool {
    text.eq_ignore_ascii_case(b"IN") || text.eq_ignore_ascii_case(b"CLASS1")
}

/// Mnemonics of classes, and `CLASSn` (RFC 3597 section 5). `ANY` is left out: it is a type as well, and fits in neither place.
fn is_class(text: &[u8]) -> bool {
    let mnemonic = [
        &b"IN"[..],
        b"CH",
        b"HS",
        b"CS",
        b"CHAOS",
        b"HESIOD",
        b"NONE",
    ];
    let number = text
        .split_at_checked(5)
        .filter(|(class, _)| class.eq_ignore_ascii_case(b"CLASS"));
    mnemonic.iter().any(|m| m.eq_ignore_ascii_case(text))
        || number.is_some_and(|(_, n)| !n.is_empty() && n.iter().all(u8::is_ascii_digit))
}

/// The data of a `$GENERATE` as one text. A single quoted string stands for its content, which is how BIND lets the data
/// have several words.
fn template_text(words: &[Token<'_>]) -> Vec<u8> {
    let mut text = Vec::new();
    if let [only] = words
        && only.quoted
    {
        let mut rest = only.text;
        while let Some((&octet, tail)) = rest.split_first() {
            let quote = octet == b'\\' && tail.first() == Some(&b'"');
            rest = tail;
            if !quote {
                text.push(octet);
            }
        }
        return text;
    }
    for word in words {
        if !word.joined {
            text.push(b' ');
        }
        let mark: &[u8] = if word.quoted { b"\"" } else { b"" };
        text.extend([mark, word.text, mark].concat());
    }
    text
}
