//! Record sets between the command line and the wire: names, data, and their form in JSON and tables.

use serde::Serialize;

use super::{client::Client, exit, output::Out};
use crate::{
    model::{
        name::Name,
        quoted::quoted,
        rdata,
        rrset::{MAX_TTL, RecordType, Rrset},
    },
    wire::{
        error::{Failure, FailureCode},
        records::owned_rrset_from,
        v1,
    },
};

/// TTL of a new set when none is given, in seconds.
pub const DEFAULT_TTL: u32 = 3600;

/// A record set as JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RecordSet {
    /// Owner name, absolute.
    pub name: String,
    #[serde(rename = "type")]
    pub rtype: String,
    pub ttl: u32,
    /// Each record in presentation form.
    pub data: Vec<String>,
}

impl RecordSet {
    pub fn new(name: &Name, set: &Rrset) -> Self {
        let data = set.rdata().map(|data| rdata::to_text(set.rtype(), data));
        Self {
            name: name.to_string(),
            rtype: set.rtype().to_string(),
            ttl: set.ttl(),
            data: data.collect(),
        }
    }

    /// A row for each record.
    fn rows(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        self.data.iter().map(|data| {
            vec![
                self.name.clone(),
                self.ttl.to_string(),
                self.rtype.clone(),
                data.clone(),
            ]
        })
    }
}

/// A table of records.
pub fn table(out: &Out, sets: &[RecordSet]) -> String {
    let rows: Vec<Vec<String>> = sets.iter().flat_map(RecordSet::rows).collect();
    out.table(&["NAME", "TTL", "TYPE", "DATA"], &rows)
}

/// Sets that came from a node.
pub fn received(object: &str, sets: Vec<v1::OwnedRrset>) -> Result<Vec<(Name, Rrset)>, Failure> {
    sets.into_iter()
        .map(owned_rrset_from)
        .collect::<Result<_, _>>()
        .map_err(|e| Failure::new(FailureCode::Internal, object, e, ""))
}

/// The same as JSON.
pub fn received_as_json(
    object: &str,
    sets: Vec<v1::OwnedRrset>,
) -> Result<Vec<RecordSet>, Failure> {
    let sets = received(object, sets)?;
    Ok(sets
        .iter()
        .map(|(name, set)| RecordSet::new(name, set))
        .collect())
}

/// A zone, or a part of it, as a node has it.
pub struct ReadZone {
    pub header: v1::ReadHeader,
    pub zone: v1::ZoneSummary,
    pub records: Vec<v1::OwnedRrset>,
}

/// Reads the records of a zone. `name` and `rtype` narrow them.
pub async fn read_zone(
    client: &mut Client,
    zone: &Name,
    name: Option<&Name>,
    rtype: Option<RecordType>,
) -> Result<ReadZone, Failure> {
    let object = format!("zone {zone}");
    let request = v1::ReadZoneRequest {
        consistency: client.consistency(),
        zone: zone.to_string(),
        name: name.map(ToString::to_string).unwrap_or_default(),
        r#type: rtype.map_or(0, |t| t.0.into()),
    };
    client
        .read(&object, async |attempt| {
            let request = attempt.request(request.clone());
            let mut admin = attempt.admin();
            let mut pages = admin.read_zone(request).await?.into_inner();
            let mut read = ReadZone {
                header: v1::ReadHeader::default(),
                zone: v1::ZoneSummary::default(),
                records: Vec::new(),
            };
            while let Some(page) = pages.message().await? {
                let v1::ZonePage {
                    header,
                    zone,
                    records,
                } = page;
                read.header = header.unwrap_or(read.header);
                read.zone = zone.unwrap_or(read.zone);
                read.records.extend(records);
            }
            Ok(read)
        })
        .await
}

/// An owner name as operators write it: `@` and names without a final dot are relative to the zone, but a name that ends
/// in the zone's own name is taken as it is.
pub fn owner(text: &str, zone: &Name) -> Result<Name, Failure> {
    let name = completed(text, zone)?;
    match name.is_within(zone) {
        true => Ok(name),
        false => Err(exit::wrong_argument(
            format!("name {}", quoted(text)),
            format!("{name} is not within zone {zone}"),
            format!(
                "names of this zone end in {zone}; without a final dot they are completed with it"
            ),
        )),
    }
}

/// A name as operators write it beside a zone, by the same rule; it may lie elsewhere.
pub fn completed(text: &str, zone: &Name) -> Result<Name, Failure> {
    let ends_in_dot = text.ends_with('.') && !text.ends_with("\\.");
    let absolute: Option<Name> = text.parse().ok();
    match absolute.filter(|name| name.is_within(zone) && !zone.is_root()) {
        Some(name) if !ends_in_dot => Ok(name),
        _ => Name::parse(text, zone)
            .map_err(|e| exit::wrong_argument(format!("name {}", quoted(text)), e, "")),
    }
}

/// A mailbox as a domain name (RFC 1035 section 8). An address with `@` is written so: dots before it are part of a label.
pub fn mailbox(text: &str, zone: &Name) -> Result<Name, Failure> {
    let Some((local, domain)) = text.rsplit_once('@').filter(|_| text != "@") else {
        return completed(text, zone);
    };
    let wrong = |problem: String| {
        exit::wrong_argument(
            format!("mailbox {}", quoted(text)),
            problem,
            "give it as admin@example.com, or as a domain name such as admin.example.com.",
        )
    };
    if local.contains('@') {
        return Err(wrong("it has more than one @".into()));
    }
    let domain: Name = domain.parse().map_err(|e| wrong(format!("{e}")))?;
    match domain.is_root() {
        true => Err(wrong("it has no domain".into())),
        false => domain
            .child(local.as_bytes())
            .map_err(|e| wrong(e.to_string())),
    }
}

/// A record set of DATA arguments.
pub fn rrset(
    rtype: RecordType,
    ttl: u32,
    data: &[String],
    origin: &Name,
) -> Result<Rrset, Failure> {
    let rdata: Vec<Vec<u8>> = data
        .iter()
        .map(|text| parse_data(rtype, text, origin))
        .collect::<Result<_, _>>()?;
    Rrset::new(rtype, ttl, rdata).ok_or_else(|| {
        exit::wrong_argument(format!("{rtype} set"), "it has no record", "give DATA")
    })
}

/// One DATA argument.
pub fn parse_data(rtype: RecordType, text: &str, origin: &Name) -> Result<Vec<u8>, Failure> {
    rdata::parse(rtype, text, origin).map_err(|error| {
        let shown: String = text.chars().take(200).collect();
        let problem = match error.word {
            Some(word) => format!("{} (word {})", error.problem, word + 1),
            None => error.problem,
        };
        exit::wrong_argument(
            format!("{rtype} record {shown}", shown = quoted(&shown)),
            problem,
            "each DATA argument is one record in presentation form, such as \"10 mail.example.\"",
        )
    })
}

/// A record type argument: a mnemonic or TYPEn.
pub fn record_type(text: &str) -> Result<RecordType, String> {
    RecordType::parse(text).ok_or_else(|| {
        format!(
            "{text} is no record type: expected A, MX, TYPE65280 or the like",
            text = quoted(text)
        )
    })
}

/// A TTL argument: seconds, or with units as in master files.
pub fn ttl(text: &str) -> Result<u32, String> {
    let expected = || {
        format!(
            "{text} is no TTL: expected 0 to {MAX_TTL} seconds, or 1h30m",
            text = quoted(text)
        )
    };
    let mut total: u64 = 0;
    let mut digits = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let unit = match c.to_ascii_lowercase() {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 604_800,
            _ => return Err(expected()),
        };
        let number: u64 = digits.parse().map_err(|_| expected())?;
        total = number
            .checked_mul(unit)
            .and_then(|n| total.checked_add(n))
            .ok_or_else(expected)?;
        digits.clear();
    }
    if !digits.is_empty() {
        let number: u64 = digits.parse().map_err(|_| expected())?;
        total = total.checked_add(number).ok_or_else(expected)?;
    } else if text.is_empty() {
        return Err(expected());
    }
    u32::try_from(total)
        .ok()
        .filter(|ttl| *ttl <= MAX_TTL)
        .ok_or_else(expected)
}

/// A zone name argument.
pub fn zone_name(text: &str) -> Result<Name, String> {
    text.parse()
        .map_err(|e| format!("{text}: {e}", text = quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn owners_are_relative_unless_they_say_otherwise() {
        let zone = name("example.com.");
        for (text, expected) in [
            ("@", "example.com."),
            ("www", "www.example.com."),
            ("www.example.com", "www.example.com."),
            ("www.example.com.", "www.example.com."),
            ("example.com", "example.com."),
            ("*.a", "*.a.example.com."),
            ("notexample.com", "notexample.com.example.com."),
        ] {
            assert_eq!(owner(text, &zone).ok(), Some(name(expected)), "{text}");
        }
        assert!(owner("www.example.net.", &zone).is_err());
        assert!(owner("a..b", &zone).is_err());
        assert_eq!(owner("com", &Name::root()).ok(), Some(name("com.")));
        let code = |text: &str| owner(text, &zone).expect_err(text).code;
        assert_eq!(code("a..b"), FailureCode::Usage);
        assert_eq!(code(&"a".repeat(64)), FailureCode::Usage);
        assert_eq!(code("www.example.net."), FailureCode::Usage);
    }

    #[test]
    fn mailboxes_are_addresses_or_names() {
        let zone = name("m.test.");
        for (text, expected) in [
            ("hostmaster", "hostmaster.m.test."),
            ("admin.m.test", "admin.m.test."),
            ("admin.example.net.", "admin.example.net."),
            ("admin@m.test", "admin.m.test."),
            ("jane.doe@example.net", "jane\\.doe.example.net."),
            ("admin@example.net.", "admin.example.net."),
        ] {
            assert_eq!(mailbox(text, &zone).ok(), Some(name(expected)), "{text}");
        }
        for bad in ["@m.test", "a@", "a@.", "a@b..c", "a@@b", "a@b@c"] {
            assert!(mailbox(bad, &zone).is_err(), "{bad}");
        }
    }

    #[test]
    fn ttls_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("300", 300),
            ("1h30m", 5400),
            ("2W", 1_209_600),
            ("1m30", 90),
        ] {
            assert_eq!(ttl(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "-1",
            "h",
            "1x",
            "2147483648",
            "99999999999999999999",
            "9999999999w",
        ] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn data_is_one_record_an_argument() {
        let zone = name("example.com.");
        let data = ["10 mail".to_owned(), "20 mail.example.net.".to_owned()];
        let set = rrset(RecordType::MX, 60, &data, &zone).expect("two records");
        let json = RecordSet::new(&zone, &set);
        assert_eq!(json.data, ["10 mail.example.com.", "20 mail.example.net."]);
        let wrong = rrset(RecordType::A, 60, &["x".to_owned()], &zone).unwrap_err();
        assert!(wrong.object.contains("A record \"x\""), "{wrong}");
        assert!(rrset(RecordType::A, 60, &[], &zone).is_err());
    }
}
