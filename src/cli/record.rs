//! `pontoon record`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::Client,
    record_batch,
    rrsets::{
        self, DEFAULT_TTL, RecordSet, owner, parse_data, read_zone, received_as_json, record_type,
        ttl, zone_name,
    },
    write::{Guards, propose, sound},
    zone::remark_on,
};
use crate::{
    model::{
        name::Name,
        rrset::{RecordType, Rrset},
    },
    state::command::Change,
    wire::error::{Failure, FailureCode},
    zonefile::{self, Finding},
};

/// Most warnings about one batch.
const MOST_FINDINGS: usize = 100;

/// Records of a zone
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  pontoon record set example.com www A 192.0.2.1 192.0.2.2
  pontoon record delete example.com www A 192.0.2.2
  pontoon record list example.com
  pontoon record batch -f changes.txt")]
pub enum Record {
    Set(Set),
    Add(Add),
    Delete(Delete),
    List(List),
    Batch(Batch),
}

/// The set a command is about.
#[derive(Debug, Args)]
pub struct Target {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    pub zone: Name,
    /// Owner name: @ is the apex; relative to the zone without a final dot, unless it ends in the zone's own name
    pub name: String,
    /// Record type: A, MX, TYPE65280, ...
    #[arg(value_name = "TYPE", value_parser = record_type)]
    pub rtype: RecordType,
}

/// Put a set of records in place of the one of its name and type
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon record set example.com www A 192.0.2.1 192.0.2.2 --ttl 5m
  pontoon record set example.com @ MX \"10 mail.example.com.\" --if-serial 7
  pontoon record set example.com @ TXT '\"v=spf1 mx -all\"'")]
pub struct Set {
    #[command(flatten)]
    pub target: Target,
    /// Each is one record in presentation form
    #[arg(required = true, value_name = "DATA")]
    pub data: Vec<String>,
    /// Time to live in seconds, or as 1h30m [default: that of the set, else 1h]
    #[arg(long, value_parser = ttl)]
    pub ttl: Option<u32>,
    #[command(flatten)]
    pub guards: Guards,
}

/// Add records to a set, making it if need be
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon record add example.com www A 192.0.2.3")]
pub struct Add {
    #[command(flatten)]
    pub target: Target,
    /// Each is one record in presentation form
    #[arg(required = true, value_name = "DATA")]
    pub data: Vec<String>,
    /// Time to live of the whole set in seconds, or as 1h30m [default: that of the set, else 1h]
    #[arg(long, value_parser = ttl)]
    pub ttl: Option<u32>,
    #[command(flatten)]
    pub guards: Guards,
}

/// Take records away: those given, or the whole set
///
/// TYPE ANY removes every set of the name.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon record delete example.com www A 192.0.2.3
  pontoon record delete example.com www AAAA
  pontoon record delete example.com old ANY")]
pub struct Delete {
    #[command(flatten)]
    pub target: Target,
    /// Each is one record in presentation form; none: the whole set
    #[arg(value_name = "DATA")]
    pub data: Vec<String>,
    #[command(flatten)]
    pub guards: Guards,
}

/// List the records of a zone
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  pontoon record list example.com\n  pontoon record list example.com www A -o json"
)]
pub struct List {
    /// Apex of the zone
    #[arg(value_parser = zone_name)]
    zone: Name,
    /// Only this owner name
    name: Option<String>,
    /// Only this record type
    #[arg(value_name = "TYPE", value_parser = record_type)]
    rtype: Option<RecordType>,
}

/// Commit several changes as one
///
/// Each line of FILE is `set`, `add` or `delete` with the arguments of that command: words between spaces, quoted as in a
/// shell ('...', "...", \). Empty lines and those that begin with # are passed over. All lines apply, or none. A line without
/// --ttl keeps the TTL that its set has by then; a set that is not there by then, whatever took it away, begins with 1h.
#[derive(Debug, Args)]
#[command(after_help = "\
Example of a file:
  # move www
  set    example.com www A 192.0.2.9 --ttl 60
  add    example.com @   MX '20 backup.example.net.'
  delete example.com old ANY

Example:
  pontoon record batch -f changes.txt --if-serial 7")]
pub struct Batch {
    /// File with one change a line; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change nothing unless the state has this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    /// Change nothing unless the zone has this serial; all lines must then be about one zone
    #[arg(long, value_name = "N")]
    if_serial: Option<u32>,
}

impl Record {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Set(command) => command.run(context).await,
            Self::Add(command) => command.run(context).await,
            Self::Delete(command) => command.run(context).await,
            Self::List(command) => command.run(context).await,
            Self::Batch(command) => command.run(context).await,
        }
    }
}

impl Target {
    pub fn owner(&self) -> Result<Name, Failure> {
        owner(&self.name, &self.zone)
    }

    pub fn object(&self) -> String {
        format!("zone {}", self.zone)
    }

    /// The set of DATA; without a TTL, with that of a new set.
    fn set(&self, data: &[String], ttl: Option<u32>) -> Result<Rrset, Failure> {
        rrsets::rrset(self.rtype, ttl.unwrap_or(DEFAULT_TTL), data, &self.zone)
    }
}

impl Set {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let change = sound(self.change()?)?; // what is wrong in itself needs no node to say so
        send(context, &self.target, &self.guards, "set", change).await
    }

    /// Without a TTL, the state decides which: a node that lags would tell an old one.
    pub fn change(&self) -> Result<Change, Failure> {
        let zone = self.target.zone.clone();
        let name = self.target.owner()?;
        let rrset = self.target.set(&self.data, self.ttl)?;
        Ok(match self.ttl {
            Some(_) => Change::SetRrset { zone, name, rrset },
            None => Change::SetKeepingTtl { zone, name, rrset },
        })
    }
}

impl Add {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let change = sound(self.change()?)?;
        send(context, &self.target, &self.guards, "added", change).await
    }

    pub fn change(&self) -> Result<Change, Failure> {
        let zone = self.target.zone.clone();
        let name = self.target.owner()?;
        let rrset = self.target.set(&self.data, self.ttl)?;
        Ok(match self.ttl {
            Some(_) => Change::AddRecords { zone, name, rrset },
            None => Change::AddKeepingTtl { zone, name, rrset },
        })
    }
}

impl Delete {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let change = sound(self.change()?)?;
        send(context, &self.target, &self.guards, "deleted", change).await
    }

    pub fn change(&self) -> Result<Change, Failure> {
        let Target { zone, rtype, .. } = &self.target;
        let name = self.target.owner()?;
        let zone = zone.clone();
        if *rtype == RecordType::ANY {
            return match self.data.is_empty() {
                true => Ok(Change::DeleteName { zone, name }),
                false => Err(super::exit::wrong_argument(
                    format!("name {name}"),
                    "ANY takes no DATA",
                    "give the type of the records",
                )),
            };
        }
        let data = self.data.iter().map(|text| parse_data(*rtype, text, &zone));
        let data: Vec<Vec<u8>> = data.collect::<Result<_, _>>()?;
        Ok(Change::DeleteRecords {
            name,
            rtype: *rtype,
            rdata: (!data.is_empty()).then_some(data),
            zone,
        })
    }
}

async fn send(
    context: &Context,
    target: &Target,
    guards: &Guards,
    done: &str,
    change: Change,
) -> Result<(), Failure> {
    let preconditions = guards.preconditions(Some(&target.zone));
    let findings = findings(std::slice::from_ref(&change));
    let mut client = Client::connect(context).await?;
    let object = target.object();
    let written = propose(context, &mut client, &object, preconditions, vec![change]).await?;
    let done = format!("{done} {} {}", target.owner()?, target.rtype);
    context.out.result(&written, || written.text(&done))?;
    remark_on(context, &findings);
    Ok(())
}

/// What an import would say of the names of sets that are to be there, each once.
fn findings(changes: &[Change]) -> Vec<Finding> {
    let sets = changes.iter().filter_map(|change| match change {
        Change::SetRrset { name, rrset, .. }
        | Change::AddRecords { name, rrset, .. }
        | Change::SetKeepingTtl { name, rrset, .. }
        | Change::AddKeepingTtl { name, rrset, .. } => Some((name, rrset)),
        _ => None,
    });
    let mut findings: Vec<Finding> = Vec::new();
    for finding in zonefile::check_names(sets) {
        if !findings.contains(&finding) && findings.len() < MOST_FINDINGS {
            findings.push(finding);
        }
    }
    findings
}

#[derive(Serialize)]
struct Records {
    revision: u64,
    stale: bool,
    zone: String,
    serial: u32,
    records: Vec<RecordSet>,
}

impl List {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let owner = self
            .name
            .as_ref()
            .map(|n| owner(n, &self.zone))
            .transpose()?;
        let rtype = self.rtype.filter(|t| *t != RecordType::ANY);
        let mut client = Client::connect(context).await?;
        let read = read_zone(&mut client, &self.zone, owner.as_ref(), rtype).await?;
        let records = Records {
            revision: read.header.revision,
            stale: read.header.stale,
            zone: read.zone.zone,
            serial: read.zone.serial,
            records: received_as_json(&format!("zone {}", self.zone), read.records)?,
        };
        context
            .out
            .result(&records, || rrsets::table(&context.out, &records.records))
    }
}

impl Batch {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let changes = record_batch::read(&self.file)?;
        let zone = self.if_serial.map(|_| one_zone(&changes)).transpose()?;
        let guards = Guards::new(self.if_serial, self.if_revision);
        let preconditions = guards.preconditions(zone.as_ref());
        let mut client = Client::connect(context).await?;
        let count = changes.len();
        let findings = findings(&changes);
        let written = propose(context, &mut client, "batch", preconditions, changes).await?;
        context
            .out
            .result(&written, || written.text(&format!("made {count} changes")))?;
        remark_on(context, &findings);
        Ok(())
    }
}

/// The zone that all changes are about.
fn one_zone(changes: &[Change]) -> Result<Name, Failure> {
    let mut zones: Vec<&Name> = changes
        .iter()
        .filter_map(|change| match change {
            Change::SetRrset { zone, .. }
            | Change::AddRecords { zone, .. }
            | Change::SetKeepingTtl { zone, .. }
            | Change::AddKeepingTtl { zone, .. }
            | Change::DeleteRecords { zone, .. }
            | Change::DeleteName { zone, .. } => Some(zone),
            _ => None,
        })
        .collect();
    zones.dedup();
    match zones.as_slice() {
        [zone] => Ok((*zone).clone()),
        _ => Err(Failure::new(
            FailureCode::Usage,
            "batch",
            "--if-serial is about one zone, and the lines are about several",
            "give --if-revision",
        )),
    }
}
