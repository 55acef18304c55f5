//! Rules between the fields of a record, beyond the form of each.

use super::super::rrset::RecordType;
use super::{svcb, wire};

/// What is wrong with `wire`, whose fields are well-formed each for itself.
pub(super) fn check(rtype: RecordType, wire: &[u8]) -> Result<(), String> {
    match rtype {
        RecordType::DS | RecordType::CDS => digest(field(rtype, wire, 2), field(rtype, wire, 3)),
        RecordType::SSHFP => fingerprint(field(rtype, wire, 1), field(rtype, wire, 2)),
        RecordType::ZONEMD => zone_digest(field(rtype, wire, 2), field(rtype, wire, 3)),
        RecordType::SVCB | RecordType::HTTPS => svcb::check_together(field(rtype, wire, 2)),
        _ => Ok(()),
    }
}

fn field(rtype: RecordType, wire: &[u8], index: usize) -> &[u8] {
    let found = wire::fields_of(rtype, wire).nth(index);
    found.map_or(&[], |field| field.octets)
}

/// RFC 4034 appendix A.2, RFC 4509, RFC 5933, RFC 6605.
fn digest(kind: &[u8], digest: &[u8]) -> Result<(), String> {
    length(
        "digest",
        kind,
        digest,
        &[(1, 20), (2, 32), (3, 32), (4, 48)],
    )
}

/// RFC 4255 section 3.1.2, RFC 6594.
fn fingerprint(kind: &[u8], print: &[u8]) -> Result<(), String> {
    length("fingerprint", kind, print, &[(1, 20), (2, 32)])
}

/// RFC 8976 section 2.2.4: at least 12 octets, whatever the algorithm.
fn zone_digest(kind: &[u8], digest: &[u8]) -> Result<(), String> {
    if digest.len() < 12 {
        return Err(format!(
            "digest: {} octets: expected at least 12",
            digest.len()
        ));
    }
    length("digest", kind, digest, &[(1, 48), (2, 64)])
}

fn length(name: &str, kind: &[u8], octets: &[u8], known: &[(u8, usize)]) -> Result<(), String> {
    let rule = known.iter().find(|(number, _)| kind == [*number]);
    match rule {
        Some((number, expected)) if octets.len() != *expected => Err(format!(
            "{name}: {} octets: expected {expected} for type {number}",
            octets.len()
        )),
        _ => Ok(()),
    }
}
