//! The data of each record type as a list of fields: the one place that knows how a type is made up.
//!
//! The reader of text, the reader of octets and the writer of text all walk these lists, so that the types cannot drift apart.

use super::super::rrset::RecordType;
use Kind::*;

/// A field's name, as its RFC calls it, and what it holds.
pub(super) type Field = (&'static str, Kind);

/// What a field holds, on the wire and in text. Those marked *last* take everything that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A domain name; never compressed in our data.
    Name,
    U8,
    U16,
    U32,
    /// 32 bits; in text also with units, as in `1h30m` (a BIND habit that zone files rely on).
    Seconds,
    /// 32 bits of time since 1970 modulo 2^32 (RFC 4034 section 3.1.5); in text `YYYYMMDDHHmmSS` or a number.
    Time,
    Ipv4,
    Ipv6,
    /// A record type's number; in text its mnemonic or `TYPEn`.
    Type,
    /// A DNSSEC algorithm's number; its mnemonic is read too.
    Algorithm,
    /// A certificate type's number (RFC 4398 section 2.1); its mnemonic is read too.
    CertType,
    /// A character-string: one octet of length and up to 255 octets.
    String,
    /// *Last*: one or more character-strings.
    Strings,
    /// An octet of length and letters or digits (RFC 8659 section 4.1).
    Tag,
    /// *Last*: one string without a length octet, at least `0` octets long.
    Text {
        least: usize,
    },
    /// *Last*: at least one octet; in text base64, with blanks allowed inside.
    Base64,
    /// *Last*: at least one octet; in text hexadecimal digits, with blanks allowed inside.
    Hex,
    /// An octet of length and as many octets; in text hexadecimal, `-` for none (RFC 5155 section 3.3).
    Salt,
    /// An octet of length and at least one octet; in text base32hex without padding (RFC 5155 section 3.3).
    Hash,
    /// *Last*: a type bitmap (RFC 4034 section 4.1.2) that names at least one type.
    Types,
    /// *Last*: a type bitmap that may be empty (RFC 5155 section 3.2.1, RFC 7477 section 2.1.1).
    MaybeTypes,
    /// This many octets; in text hexadecimal pairs joined by `-` (RFC 7043).
    Eui(usize),
    /// *Last*: a location (RFC 1876).
    Loc,
    /// *Last*: address prefixes (RFC 3123).
    Prefixes,
    /// *Last*: service parameters (RFC 9460 section 2.2).
    SvcParams,
}

/// The fields of a type; none for a type we know nothing of, whose data is opaque (RFC 3597).
pub(super) fn fields(rtype: RecordType) -> Option<&'static [Field]> {
    Some(match rtype {
        RecordType::A => &[("address", Ipv4)],
        RecordType::AAAA => &[("address", Ipv6)],
        RecordType::NS => &[("name server", Name)],
        RecordType::CNAME | RecordType::DNAME => &[("target", Name)],
        RecordType::PTR => &[("name", Name)],
        RecordType::SOA => &[
            ("primary name server", Name),
            ("responsible mailbox", Name),
            ("serial", U32),
            ("refresh", Seconds),
            ("retry", Seconds),
            ("expire", Seconds),
            ("minimum", Seconds),
        ],
        RecordType::MX => &[("preference", U16), ("mail server", Name)],
        RecordType::KX => &[("preference", U16), ("exchanger", Name)],
        RecordType::AFSDB => &[("subtype", U16), ("hostname", Name)],
        RecordType::RP => &[("mailbox", Name), ("text name", Name)],
        RecordType::TXT | RecordType::SPF => &[("text", Strings)],
        RecordType::HINFO => &[("CPU", String), ("operating system", String)],
        RecordType::SRV => &[
            ("priority", U16),
            ("weight", U16),
            ("port", U16),
            ("target", Name),
        ],
        RecordType::NAPTR => &[
            ("order", U16),
            ("preference", U16),
            ("flags", String),
            ("services", String),
            ("regular expression", String),
            ("replacement", Name),
        ],
        RecordType::URI => &[
            ("priority", U16),
            ("weight", U16),
            ("target", Text { least: 1 }),
        ],
        RecordType::CAA => &[("flags", U8), ("tag", Tag), ("value", Text { least: 0 })],
        RecordType::TLSA | RecordType::SMIMEA => &[
            ("certificate usage", U8),
            ("selector", U8),
            ("matching type", U8),
            ("certificate association data", Hex),
        ],
        RecordType::SSHFP => &[
            ("algorithm", U8),
            ("fingerprint type", U8),
            ("fingerprint", Hex),
        ],
        RecordType::DS | RecordType::CDS => &[
            ("key tag", U16),
            ("algorithm", Algorithm),
            ("digest type", U8),
            ("digest", Hex),
        ],
        RecordType::DNSKEY | RecordType::CDNSKEY => &[
            ("flags", U16),
            ("protocol", U8),
            ("algorithm", Algorithm),
            ("public key", Base64),
        ],
        RecordType::RRSIG => &[
            ("type covered", Type),
            ("algorithm", Algorithm),
            ("labels", U8),
            ("original TTL", Seconds),
            ("expiration", Time),
            ("inception", Time),
            ("key tag", U16),
            ("signer", Name),
            ("signature", Base64),
        ],
        RecordType::NSEC => &[("next name", Name), ("types", Types)],
        RecordType::NSEC3 => &[
            ("hash algorithm", U8),
            ("flags", U8),
            ("iterations", U16),
            ("salt", Salt),
            ("next hashed owner", Hash),
            ("types", MaybeTypes),
        ],
        RecordType::NSEC3PARAM => &[
            ("hash algorithm", U8),
            ("flags", U8),
            ("iterations", U16),
            ("salt", Salt),
        ],
        RecordType::CSYNC => &[("serial", U32), ("flags", U16), ("types", MaybeTypes)],
        RecordType::ZONEMD => &[
            ("serial", U32),
            ("scheme", U8),
            ("hash algorithm", U8),
            ("digest", Hex),
        ],
        RecordType::CERT => &[
            ("type", CertType),
            ("key tag", U16),
            ("algorithm", Algorithm),
            ("certificate", Base64),
        ],
        RecordType::OPENPGPKEY => &[("public key", Base64)],
        RecordType::DHCID => &[("digest", Base64)],
        RecordType::EUI48 => &[("address", Eui(6))],
        RecordType::EUI64 => &[("address", Eui(8))],
        RecordType::LOC => &[("location", Loc)],
        RecordType::APL => &[("prefixes", Prefixes)],
        RecordType::SVCB | RecordType::HTTPS => &[
            ("priority", U16),
            ("target", Name),
            ("parameters", SvcParams),
        ],
        _ => return None,
    })
}

/// Whether names in this type's data may be compressed in messages: only in the types of RFC 1035, which every resolver
/// knows (RFC 3597 section 4).
pub(super) fn may_compress(rtype: RecordType) -> bool {
    matches!(
        rtype,
        RecordType::NS | RecordType::CNAME | RecordType::SOA | RecordType::PTR | RecordType::MX
    )
}

/// DNSSEC algorithm mnemonics (IANA "Domain Name System Security (DNSSEC) Algorithm Numbers").
pub(super) const ALGORITHMS: &[(&str, u8)] = &[
    ("RSAMD5", 1),
    ("DH", 2),
    ("DSA", 3),
    ("RSASHA1", 5),
    ("DSA-NSEC3-SHA1", 6),
    ("NSEC3DSA", 6),
    ("RSASHA1-NSEC3-SHA1", 7),
    ("NSEC3RSASHA1", 7),
    ("RSASHA256", 8),
    ("RSASHA512", 10),
    ("ECC-GOST", 12),
    ("ECDSAP256SHA256", 13),
    ("ECDSAP384SHA384", 14),
    ("ED25519", 15),
    ("ED448", 16),
    ("INDIRECT", 252),
    ("PRIVATEDNS", 253),
    ("PRIVATEOID", 254),
];

/// Certificate type mnemonics (RFC 4398 section 2.1).
pub(super) const CERT_TYPES: &[(&str, u16)] = &[
    ("PKIX", 1),
    ("SPKI", 2),
    ("PGP", 3),
    ("IPKIX", 4),
    ("ISPKI", 5),
    ("IPGP", 6),
    ("ACPKIX", 7),
    ("IACPKIX", 8),
    ("URI", 253),
    ("OID", 254),
];

impl Kind {
    /// What a reader expects, for errors.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Name => "a domain name",
            U8 => "a number from 0 to 255",
            U16 => "a number from 0 to 65535",
            U32 => "a number from 0 to 4294967295",
            Seconds => "a number of seconds up to 4294967295, or a time such as 1h30m",
            Time => "a time as YYYYMMDDHHmmSS from 1970 to 2106, or a number of seconds since 1970",
            Ipv4 => "an IPv4 address such as 192.0.2.1",
            Ipv6 => "an IPv6 address such as 2001:db8::1",
            Type => "a record type such as A or TYPE65280",
            Algorithm => {
                "an algorithm's number from 0 to 255, or a mnemonic such as ECDSAP256SHA256"
            }
            CertType => "a certificate type's number from 0 to 65535, or a mnemonic such as PKIX",
            String => "a string of at most 255 octets",
            Strings => "one or more strings of at most 255 octets each",
            Tag => "a tag of 1 to 255 letters and digits",
            Text { .. } => "a string",
            Base64 => "base64",
            Hex => "pairs of hexadecimal digits",
            Salt => "pairs of hexadecimal digits, at most 255 octets, or `-` for none",
            Hash => "base32hex digits, 1 to 255 octets",
            Types | MaybeTypes => "record types such as A or TYPE65280",
            Eui(6) => "6 hexadecimal pairs joined by `-`, such as 00-00-5e-00-53-2a",
            Eui(_) => "8 hexadecimal pairs joined by `-`, such as 00-00-5e-ef-10-00-00-2a",
            Loc => "a location such as 52 22 23.000 N 4 53 32.000 E -2.00m",
            Prefixes => "prefixes such as 1:192.0.2.0/24 or !2:2001:db8::/32",
            SvcParams => "parameters such as alpn=h2,h3 or port=8443",
        }
    }
}
