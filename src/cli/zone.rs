//! `pontoon zone`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::Client,
    exit,
    input::Input,
    output::moment,
    rrsets::{
        self, RecordSet, completed, mailbox, parse_data, read_zone, received, received_as_json,
        ttl, zone_name,
    },
    whole_file,
    write::{Guards, commit, sound},
};
use crate::{
    model::{
        name::Name,
        rrset::{RecordType, Rrset},
        serial::Serial,
    },
    state::command::Change,
    wire::{error::Failure, v1},
    zonefile::{self, Finding, Loaded, Severity, Standard},
};

/// Zones: make, read, replace, compare and take back
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon zone create example.com
  pontoon zone import example.org example.org.zone
  pontoon zone history example.com
  pontoon zone rollback example.com 7")]
pub enum Zone {
    Create(Create),
    List(List),
    Show(Show),
    Import(Import),
    Export(Export),
    Check(Check),
    Delete(Delete),
    History(History),
    Diff(Diff),
    Rollback(Rollback),
}

/// Make a zone with an SOA and NS records
///
/// Without options the SOA names ns1.NAME and hostmaster.NAME, with refresh 1h, retry 15m, expire 2w and negative TTL 5m;
/// the one name server is ns1.NAME. The cluster owns the serial: it moves forward with every change, and goes on where a
/// deleted zone of this name had stopped.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon zone create example.com
  pontoon zone create example.com --ns ns1.example.net. --ns ns2.example.net. --mbox admin@example.net")]
pub struct Create {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// A name server; the first is the SOA's primary. Relative to the zone without a final dot, unless it ends in the
    /// zone's own name. Repeat for several [default: ns1 within the zone]
    #[arg(long = "ns", value_name = "NAME")]
    name_servers: Vec<String>,
    /// Mailbox of whoever is responsible: admin@example.com, or a domain name by the rule of --ns [default: hostmaster
    /// within the zone]
    #[arg(long, value_name = "NAME")]
    mbox: Option<String>,
    /// TTL of the SOA and NS records
    #[arg(long, default_value = "1h", value_parser = ttl)]
    ttl: u32,
    /// Lowest serial to begin with
    #[arg(long, default_value_t = 1)]
    serial: u32,
}

/// List the zones
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone list -o json")]
pub struct List {}

/// Show a zone and its records
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone show example.com --consistency linearizable")]
pub struct Show {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
}

/// Make a zone of a master file, or replace its contents whole, as one change
///
/// The file's serial is a floor. A file that says what the zone already holds changes nothing. $INCLUDE reads files of the
/// same directory only. A change of more than 64 MiB begins the history of the zone anew, with a warning.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon zone import example.com example.com.zone
  pontoon zone import example.com - < example.com.zone
  pontoon zone import example.com new.zone --if-serial 2024010101")]
pub struct Import {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// Master file (RFC 1035 section 5); - reads stdin
    file: PathBuf,
    #[command(flatten)]
    guards: Guards,
}

/// Write a zone as a master file
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone export example.com -f example.com.zone")]
pub struct Export {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// Write to this file, which is replaced when the new one is complete; - is stdout
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

/// Judge a master file as named-checkzone does, without asking a node
///
/// An import is less strict, because a new zone has to begin somewhere: a name server of the zone itself without an address, that
/// is an alias or that lies below a DNAME, and NS records at a wildcard are errors here and warnings there. Records below a DNAME
/// are errors for both (RFC 6672 section 2.4), though named-checkzone loads them. Without --origin the SOA record's owner
/// completes relative names.
///
/// Everything that is found is written to stdout, a line each, and how many errors there are to stderr.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon zone check example.com.zone
  pontoon zone check db.example --origin example.com")]
pub struct Check {
    /// Master file; - reads stdin
    file: PathBuf,
    /// Apex of the zone [default: the owner of the SOA record, which must then be absolute or follow a $ORIGIN]
    #[arg(long, alias = "zone", value_name = "NAME", value_parser = zone_name)]
    origin: Option<Name>,
}

/// Remove a zone and its history
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone delete example.com --if-serial 7")]
pub struct Delete {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    #[command(flatten)]
    guards: Guards,
}

/// List the kept versions of a zone, the newest first
///
/// Kept are the last 100, as far as their changes take no more than 64 MiB; 128 MiB in all zones together, where the largest
/// history gives way first. A larger change begins the history anew.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone history example.com --limit 10")]
pub struct History {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// At most this many, the newest [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

/// Show what differs between two versions of a zone
///
/// Without serials: what the last change did. With one: what was done since.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pontoon zone diff example.com\n  pontoon zone diff example.com 7 9"
)]
pub struct Diff {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// Serial of the older side
    from: Option<u32>,
    /// Serial of the newer side [default: the zone now]
    to: Option<u32>,
}

/// Take a zone back to the contents of an earlier serial, under a new serial
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon zone rollback example.com 7")]
pub struct Rollback {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    name: Name,
    /// Serial whose contents are to be had again
    serial: u32,
    #[command(flatten)]
    guards: Guards,
}

impl Zone {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Show(command) => command.run(context).await,
            Self::Import(command) => command.run(context).await,
            Self::Export(command) => command.run(context).await,
            Self::Check(command) => command.run(context),
            Self::Delete(command) => command.run(context).await,
            Self::History(command) => command.run(context).await,
            Self::Diff(command) => command.run(context).await,
            Self::Rollback(command) => command.run(context).await,
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let records = self.records()?;
        let dangling = dangling(&self.name, &records);
        // Of the zone's name this says all there is to say, once.
        let servers = records
            .iter()
            .filter(|(_, set)| set.rtype() == RecordType::NS);
        let findings = zonefile::check_names(servers.map(|(owner, set)| (owner, set)));
        let change = sound(Change::CreateZone {
            records,
            zone: self.name.clone(),
        })?;
        let object = object(&self.name);
        commit(
            context,
            &object,
            &format!("created {object}"),
            vec![],
            vec![change],
        )
        .await?;
        remark_on(context, &findings);
        for server in dangling {
            context.out.warn(format!(
                "the name server {server} has no address yet: `pontoon record set {} {server} A ADDRESS`",
                self.name
            ));
        }
        Ok(())
    }

    fn records(&self) -> Result<Vec<(Name, Rrset)>, Failure> {
        let zone = &self.name;
        let servers: Vec<Name> = match self.name_servers.is_empty() {
            true => vec![completed("ns1", zone)?],
            false => self
                .name_servers
                .iter()
                .map(|text| completed(text, zone))
                .collect::<Result<_, _>>()?,
        };
        let primary = servers.first().cloned().unwrap_or_else(|| zone.clone());
        let mbox = mailbox(self.mbox.as_deref().unwrap_or("hostmaster"), zone)?;
        let soa = format!("{primary} {mbox} {} 3600 900 1209600 300", self.serial);
        let soa = parse_data(RecordType::SOA, &soa, zone)?;
        let ns: Vec<Vec<u8>> = servers.iter().map(|n| n.as_wire().to_vec()).collect();
        let sets = [
            Rrset::new(RecordType::SOA, self.ttl, [soa]),
            Rrset::new(RecordType::NS, self.ttl, ns),
        ];
        Ok(sets
            .into_iter()
            .flatten()
            .map(|set| (zone.clone(), set))
            .collect())
    }
}

/// Warnings, on stderr.
pub fn remark_on(context: &Context, findings: &[Finding]) {
    for finding in findings {
        match &finding.place {
            Some(place) => context.out.warn_at(place, said(finding)),
            None => context.out.warn(said(finding)),
        }
    }
}

/// Name servers within the zone that have no address in it.
fn dangling(zone: &Name, records: &[(Name, Rrset)]) -> Vec<Name> {
    let servers = records
        .iter()
        .filter(|(_, set)| set.rtype() == RecordType::NS)
        .flat_map(|(_, set)| set.rdata())
        .filter_map(|wire| Name::from_wire(wire).ok());
    let addressed = |server: &Name| {
        records.iter().any(|(owner, set)| {
            owner == server && matches!(set.rtype(), RecordType::A | RecordType::AAAA)
        })
    };
    servers
        .filter(|server| server.is_within(zone) && !addressed(server))
        .collect()
}

#[derive(Serialize)]
struct Zones {
    revision: u64,
    stale: bool,
    zones: Vec<Summary>,
}

#[derive(Serialize)]
struct Summary {
    zone: String,
    serial: u32,
    /// Revision of the zone's last change.
    revision: u64,
    records: u64,
    data_bytes: u64,
}

impl From<v1::ZoneSummary> for Summary {
    fn from(zone: v1::ZoneSummary) -> Self {
        let v1::ZoneSummary {
            zone,
            serial,
            revision,
            records,
            data_bytes,
            content_hash: _,
        } = zone;
        Self {
            zone,
            serial,
            revision,
            records,
            data_bytes,
        }
    }
}

impl List {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let consistency = client.consistency();
        let reply = client
            .read("zones", async |attempt| {
                attempt
                    .admin()
                    .list_zones(attempt.request(v1::ListZonesRequest { consistency }))
                    .await
            })
            .await?
            .into_inner();
        let header = reply.header.unwrap_or_default();
        let zones = Zones {
            revision: header.revision,
            stale: header.stale,
            zones: reply.zones.into_iter().map(Into::into).collect(),
        };
        context.out.result(&zones, || {
            let row = |z: &Summary| {
                vec![
                    z.zone.clone(),
                    z.serial.to_string(),
                    z.records.to_string(),
                    z.revision.to_string(),
                ]
            };
            let rows: Vec<_> = zones.zones.iter().map(row).collect();
            context
                .out
                .table(&["ZONE", "SERIAL", "RECORDS", "REVISION"], &rows)
        })
    }
}

#[derive(Serialize)]
struct Shown {
    /// Revision of the state that was read.
    revision: u64,
    stale: bool,
    zone: String,
    serial: u32,
    record_count: u64,
    data_bytes: u64,
    records: Vec<RecordSet>,
}

impl Show {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let read = read_zone(&mut client, &self.name, None, None).await?;
        let shown = Shown {
            revision: read.header.revision,
            stale: read.header.stale,
            zone: read.zone.zone,
            serial: read.zone.serial,
            record_count: read.zone.records,
            data_bytes: read.zone.data_bytes,
            records: received_as_json(&object(&self.name), read.records)?,
        };
        context.out.result(&shown, || {
            format!(
                "zone {}  serial {}  records {}\n\n{}",
                shown.zone,
                shown.serial,
                shown.record_count,
                rrsets::table(&context.out, &shown.records)
            )
        })
    }
}

impl Import {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let object = object(&self.name);
        let loaded = load(Standard::Served, &self.file, Some(&self.name))?;
        if !loaded.report.is_loadable() {
            return Err(unloadable(&self.file, &loaded));
        }
        remark_on(context, &loaded.report.findings);
        let more = loaded.report.unshown_warnings();
        if more > 0 {
            context.out.warn(format!("and {more} more warnings"));
        }
        let preconditions = self.guards.preconditions(Some(&self.name));
        let change = Change::ReplaceZone {
            zone: self.name,
            records: loaded.records,
        };
        commit(
            context,
            &object,
            &format!("imported {object}"),
            preconditions,
            vec![change],
        )
        .await
    }
}

#[derive(Serialize)]
struct Exported {
    revision: u64,
    stale: bool,
    zone: String,
    serial: u32,
    /// The zone as a master file; null when it went to a file.
    text: Option<String>,
}

impl Export {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let read = read_zone(&mut client, &self.name, None, None).await?;
        let records = received(&object(&self.name), read.records)?;
        let sets = records.iter().map(|(owner, set)| (owner.clone(), set));
        let text = zonefile::write(&self.name, sets);
        let to_stdout = self.file == Path::new("-");
        if !to_stdout {
            whole_file::write(&context.out, &self.file, &text)?;
        }
        let exported = Exported {
            revision: read.header.revision,
            stale: read.header.stale,
            zone: read.zone.zone,
            serial: read.zone.serial,
            text: to_stdout.then_some(text),
        };
        context.out.result(&exported, || match &exported.text {
            Some(text) => text.clone(),
            None => format!(
                "wrote {} (serial {})\n",
                self.file.display(),
                exported.serial
            ),
        })
    }
}

#[derive(Serialize)]
struct Checked {
    zone: String,
    /// Null when the file holds no usable SOA.
    serial: Option<u32>,
    /// Whether a server may load it.
    ok: bool,
    errors: usize,
    warnings: usize,
    findings: Vec<Found>,
}

#[derive(Serialize)]
struct Found {
    severity: &'static str,
    file: Option<String>,
    line: Option<u32>,
    object: String,
    problem: String,
}

impl From<&Finding> for Found {
    fn from(finding: &Finding) -> Self {
        Self {
            severity: severity(finding.severity),
            file: finding.place.as_ref().map(|p| p.file.to_string()),
            line: finding.place.as_ref().map(|p| p.line),
            object: finding.object.clone(),
            problem: finding.problem.clone(),
        }
    }
}

impl Check {
    fn run(self, context: &Context) -> Result<(), Failure> {
        let loaded = load(Standard::Everywhere, &self.file, self.origin.as_ref())?;
        let report = &loaded.report;
        let checked = Checked {
            zone: loaded.apex.to_string(),
            serial: serial_of(&loaded),
            ok: report.is_loadable(),
            errors: report.errors,
            warnings: report.warnings,
            findings: report.findings.iter().map(Into::into).collect(),
        };
        context.out.result(&checked, || {
            let mut text: String = report
                .findings
                .iter()
                .map(|f| finding_text(f) + "\n")
                .collect();
            let serial = checked
                .serial
                .map_or_else(String::new, |s| format!(" serial {s}"));
            let verdict = if checked.ok { "OK" } else { "not loadable" };
            text.push_str(&format!(
                "zone {}:{serial} {verdict}, {} errors, {} warnings\n",
                checked.zone, checked.errors, checked.warnings
            ));
            text
        })?;
        match checked.ok {
            true => Ok(()),
            false => Err(exit::unusable(
                &self.file,
                format!("{} errors: no server should load it", checked.errors),
                "correct what stdout shows",
            )),
        }
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let object = object(&self.name);
        let preconditions = self.guards.preconditions(Some(&self.name));
        let change = Change::DeleteZone { zone: self.name };
        commit(
            context,
            &object,
            &format!("deleted {object}"),
            preconditions,
            vec![change],
        )
        .await
    }
}

#[derive(Serialize)]
struct Versions {
    revision: u64,
    stale: bool,
    zone: String,
    /// The newest first.
    versions: Vec<Version>,
}

#[derive(Serialize)]
struct Version {
    serial: u32,
    revision: u64,
    /// By the proposer's clock, RFC 3339.
    time: String,
    author: String,
    summary: String,
    /// Record sets added, changed ones included.
    added: u64,
    /// Record sets removed, changed ones included.
    removed: u64,
}

impl History {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let request = v1::ZoneHistoryRequest {
            consistency: client.consistency(),
            zone: self.name.to_string(),
            limit: self.limit.unwrap_or(0),
        };
        let reply = client
            .read(&object(&self.name), async |attempt| {
                attempt
                    .admin()
                    .zone_history(attempt.request(request.clone()))
                    .await
            })
            .await?
            .into_inner();
        let header = reply.header.unwrap_or_default();
        let version = |v: v1::ZoneVersion| Version {
            serial: v.serial,
            revision: v.revision,
            time: moment(v.proposed_at_ms),
            author: v.author,
            summary: v.summary,
            added: v.added,
            removed: v.removed,
        };
        let versions = Versions {
            revision: header.revision,
            stale: header.stale,
            zone: self.name.to_string(),
            versions: reply.versions.into_iter().map(version).collect(),
        };
        context.out.result(&versions, || {
            let row = |v: &Version| {
                let changes = format!("+{} -{}", v.added, v.removed);
                vec![
                    v.serial.to_string(),
                    v.time.clone(),
                    v.author.clone(),
                    changes,
                    v.summary.clone(),
                ]
            };
            let rows: Vec<_> = versions.versions.iter().map(row).collect();
            context
                .out
                .table(&["SERIAL", "TIME", "AUTHOR", "SETS", "WHAT"], &rows)
        })
    }
}

#[derive(Serialize)]
struct Difference {
    /// Revision of the state that was read.
    revision: u64,
    stale: bool,
    zone: String,
    from: u32,
    to: u32,
    removed: Vec<RecordSet>,
    added: Vec<RecordSet>,
}

impl Diff {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let object = object(&self.name);
        let mut client = Client::connect(context).await?;
        let request = v1::ZoneDiffRequest {
            consistency: client.consistency(),
            zone: self.name.to_string(),
            from: self.from,
            to: self.to,
        };
        let pages = client
            .read(&object, async |attempt| {
                let request = attempt.request(request.clone());
                let mut stream = attempt.admin().zone_diff(request).await?.into_inner();
                let mut pages = Vec::new();
                while let Some(page) = stream.message().await? {
                    pages.push(page);
                }
                Ok(pages)
            })
            .await?;
        let (from, to) = pages.first().map_or((0, 0), |first| (first.from, first.to));
        let header = pages.first().and_then(|p| p.header).unwrap_or_default();
        let mut difference = Difference {
            revision: header.revision,
            stale: header.stale,
            zone: self.name.to_string(),
            from,
            to,
            removed: Vec::new(),
            added: Vec::new(),
        };
        for page in pages {
            difference
                .removed
                .extend(received_as_json(&object, page.removed)?);
            difference
                .added
                .extend(received_as_json(&object, page.added)?);
        }
        context.out.result(&difference, || diff_text(&difference))
    }
}

/// Lines of records that went and came. Records on both sides are left out.
fn diff_text(difference: &Difference) -> String {
    let lines = |sets: &[RecordSet]| -> Vec<String> {
        let set = |s: &RecordSet| -> Vec<String> {
            let line = |d: &String| format!("{} {} {} {d}", s.name, s.ttl, s.rtype);
            s.data.iter().map(line).collect()
        };
        sets.iter().flat_map(set).collect()
    };
    let (removed, added) = (lines(&difference.removed), lines(&difference.added));
    let mut text = format!(
        "zone {}: serial {} to {}\n",
        difference.zone, difference.from, difference.to
    );
    let kept: std::collections::HashSet<&String> = added.iter().collect();
    for line in removed.iter().filter(|l| !kept.contains(l)) {
        text.push_str(&format!("- {line}\n"));
    }
    let had: std::collections::HashSet<&String> = removed.iter().collect();
    for line in added.iter().filter(|l| !had.contains(l)) {
        text.push_str(&format!("+ {line}\n"));
    }
    text
}

impl Rollback {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let object = object(&self.name);
        let preconditions = self.guards.preconditions(Some(&self.name));
        let done = format!("took {object} back to serial {}", self.serial);
        let change = Change::RollbackZone {
            zone: self.name,
            serial: Serial(self.serial),
        };
        commit(context, &object, &done, preconditions, vec![change]).await
    }
}

fn object(zone: &Name) -> String {
    format!("zone {zone}")
}

/// Reads and judges a master file.
fn load(standard: Standard, file: &Path, apex: Option<&Name>) -> Result<Loaded, Failure> {
    let mut input = Input::read(file)?;
    let loaded = zonefile::load_by(
        standard,
        &input.octets,
        apex,
        &input.name,
        &mut input.beside,
    );
    loaded.map_err(|zonefile::NoApex { place, problem }| {
        exit::unusable(
            file,
            format!("{place}: {problem}"),
            "give the name of the zone: --origin example.com",
        )
    })
}

fn unloadable(file: &Path, loaded: &Loaded) -> Failure {
    let errors: Vec<String> = loaded
        .report
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error)
        .map(finding_text)
        .collect();
    let hint = format!(
        "correct them; `pontoon zone check {} --origin {}` shows warnings too",
        file.display(),
        loaded.apex
    );
    exit::unusable(file, exit::lines_of(&errors, loaded.report.errors), hint)
}

fn finding_text(finding: &Finding) -> String {
    let place = finding
        .place
        .as_ref()
        .map_or_else(String::new, |p| format!("{p}: "));
    format!("{place}{}: {}", severity(finding.severity), said(finding))
}

/// What it is about, and what is wrong with it.
fn said(finding: &Finding) -> String {
    match finding.object.as_str() {
        "" => finding.problem.clone(),
        object => format!("{object}: {}", finding.problem),
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn serial_of(loaded: &Loaded) -> Option<u32> {
    let (_, soa) = loaded
        .records
        .iter()
        .find(|(owner, set)| set.rtype() == RecordType::SOA && *owner == loaded.apex)?;
    let text = crate::model::rdata::to_text(RecordType::SOA, soa.rdata().next()?);
    text.split(' ').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(arguments: &[&str]) -> Create {
        use clap::Parser;
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            create: Create,
        }
        Only::try_parse_from([&["create"], arguments].concat())
            .expect("parses")
            .create
    }

    #[test]
    fn a_zone_is_created_with_the_stated_defaults() {
        let records = create(&["example.com"]).records().expect("records");
        let text: Vec<String> = records
            .iter()
            .flat_map(|(name, set)| RecordSet::new(name, set).data)
            .collect();
        assert_eq!(
            text,
            [
                "ns1.example.com. hostmaster.example.com. 1 3600 900 1209600 300",
                "ns1.example.com."
            ]
        );
    }

    #[test]
    fn name_servers_may_be_given() {
        let create = create(&[
            "example.com",
            "--ns",
            "ns.example.net.",
            "--ns",
            "b",
            "--serial",
            "7",
        ]);
        let records = create.records().expect("records");
        let sets: Vec<RecordSet> = records.iter().map(|(n, s)| RecordSet::new(n, s)).collect();
        assert!(sets[0].data[0].starts_with("ns.example.net. hostmaster.example.com. 7 "));
        assert_eq!(sets[1].data.len(), 2);
    }

    #[test]
    fn names_of_a_new_zone_are_completed_by_the_rule_of_records() {
        let create = create(&[
            "m.test",
            "--ns",
            "ns1.m.test",
            "--ns",
            "ns.example.net.",
            "--mbox",
            "admin@m.test",
        ]);
        let records = create.records().expect("records");
        let soa = &RecordSet::new(&records[0].0, &records[0].1).data[0];
        assert!(soa.starts_with("ns1.m.test. admin.m.test. "), "{soa}");
        let zone: Name = "m.test".parse().expect("a name");
        let own: Name = "ns1.m.test".parse().expect("a name");
        assert_eq!(dangling(&zone, &records), [own]);
    }

    #[test]
    fn a_difference_shows_only_what_differs() {
        let set = |data: &[&str]| RecordSet {
            name: "a.".into(),
            rtype: "A".into(),
            ttl: 1,
            data: data.iter().map(|d| (*d).to_owned()).collect(),
        };
        let difference = Difference {
            revision: 9,
            stale: false,
            zone: ".".into(),
            from: 1,
            to: 2,
            removed: vec![set(&["1.1.1.1", "2.2.2.2"])],
            added: vec![set(&["2.2.2.2", "3.3.3.3"])],
        };
        assert_eq!(
            diff_text(&difference),
            "zone .: serial 1 to 2\n- a. 1 A 1.1.1.1\n+ a. 1 A 3.3.3.3\n"
        );
    }
}
