use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::model::serial::Serial;

fn origin() -> Name {
    "example.com.".parse().expect("a name")
}

fn rtype(text: &str) -> RecordType {
    RecordType::parse(text).expect("a type")
}

fn read(kind: &str, text: &str) -> Result<Vec<u8>, RdataError> {
    parse(rtype(kind), text, &origin())
}

fn problem(kind: &str, text: &str) -> String {
    match read(kind, text) {
        Ok(wire) => panic!("{kind} {text:?} was taken as {}", HEXLOWER.encode(&wire)),
        Err(error) => error.to_string(),
    }
}

/// Type, text as given, text as written back.
pub(crate) const TEXTS: &[(&str, &str, &str)] = &[
    ("A", "192.0.2.1", "192.0.2.1"),
    ("AAAA", "2001:DB8:0:0::1", "2001:db8::1"),
    ("AAAA", "::ffff:192.0.2.1", "::ffff:192.0.2.1"),
    ("NS", "NS1", "ns1.example.com."),
    ("CNAME", "@", "example.com."),
    ("DNAME", ".", "."),
    ("PTR", r"a\.b\046c.Example.", r"a\.b\.c.example."),
    (
        "SOA",
        "ns1 host.master 2024010101 2h 30m 2W 1d",
        "ns1.example.com. host.master.example.com. 2024010101 7200 1800 1209600 86400",
    ),
    ("MX", "10 mail", "10 mail.example.com."),
    ("MX", "0 .", "0 ."),
    ("KX", "10 kx", "10 kx.example.com."),
    ("AFSDB", "1 afs", "1 afs.example.com."),
    ("RP", "admin .", "admin.example.com. ."),
    (
        "TXT",
        "plain \"with blank\" \"\"",
        "\"plain\" \"with blank\" \"\"",
    ),
    ("TXT", r#""a\"b\\c\009;" \;"#, r#""a\"b\\c\009;" ";""#),
    ("SPF", "\"v=spf1 -all\"", "\"v=spf1 -all\""),
    (
        "HINFO",
        "PC-Intel-700mhz \"Redhat Linux\"",
        "\"PC-Intel-700mhz\" \"Redhat Linux\"",
    ),
    ("SRV", "0 5 5060 sip", "0 5 5060 sip.example.com."),
    (
        "NAPTR",
        r#"100 10 "S" "SIP+D2U" "!^.*$!sip:a@b!" _sip._udp"#,
        r#"100 10 "S" "SIP+D2U" "!^.*$!sip:a@b!" _sip._udp.example.com."#,
    ),
    (
        "URI",
        "10 1 \"ftp://ftp1.example.com/public\"",
        "10 1 \"ftp://ftp1.example.com/public\"",
    ),
    (
        "CAA",
        "0 issue \"ca.example.net; policy=ev\"",
        "0 issue \"ca.example.net; policy=ev\"",
    ),
    ("CAA", "128 issue \"\"", "128 issue \"\""),
    (
        "CAA",
        "0 iodef mailto:a@example.com",
        "0 iodef \"mailto:a@example.com\"",
    ),
    ("TLSA", "3 1 1 d2ab de24 0d7c", "3 1 1 D2ABDE240D7C"),
    ("SMIMEA", "3 0 0 0011", "3 0 0 0011"),
    (
        "SSHFP",
        "2 1 123456789abcdef67890123456789abcdef67890",
        "2 1 123456789ABCDEF67890123456789ABCDEF67890",
    ),
    (
        "DS",
        "60485 RSASHA1 1 ( 2BB183AF5F22588179A53B0A\n98631FAD1A292118 )",
        "60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118",
    ),
    ("CDS", "0 0 0 00", "0 0 0 00"),
    ("DNSKEY", "256 3 5 AQPS mmqo eBiA", "256 3 5 AQPSmmqoeBiA"),
    ("CDNSKEY", "0 3 0 AA==", "0 3 0 AA=="),
    (
        "RRSIG",
        "A 5 3 86400 20030322173103 1046107863 2642 @ oJB1",
        "A 5 3 86400 20030322173103 20030224173103 2642 example.com. oJB1",
    ),
    (
        "NSEC",
        "host A MX RRSIG NSEC TYPE1234",
        "host.example.com. A MX RRSIG NSEC TYPE1234",
    ),
    (
        "NSEC3",
        "1 1 12 aabbccdd 2vptu5timamqttgl4luu9kg21e0aor3s A RRSIG",
        "1 1 12 AABBCCDD 2VPTU5TIMAMQTTGL4LUU9KG21E0AOR3S A RRSIG",
    ),
    (
        "NSEC3",
        "1 1 12 - 2vptu5timamqttgl4luu9kg21e0aor3s",
        "1 1 12 - 2VPTU5TIMAMQTTGL4LUU9KG21E0AOR3S",
    ),
    ("NSEC3PARAM", "1 0 0 -", "1 0 0 -"),
    ("CSYNC", "66 3 A NS AAAA", "66 3 A NS AAAA"),
    (
        "ZONEMD",
        "2018031500 1 240 e2d523f654b9422a96c5a8f44607bbee",
        "2018031500 1 240 E2D523F654B9422A96C5A8F44607BBEE",
    ),
    ("CERT", "PKIX 1 RSASHA256 MxFcby9k", "1 1 8 MxFcby9k"),
    ("OPENPGPKEY", "mQ ENBA==", "mQENBA=="),
    (
        "DHCID",
        "AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=",
        "AAIBY2/AuCccgoJbsaxcQc9TUapptP69lOjxfNuVAA2kjEA=",
    ),
    ("EUI48", "00-00-5E-00-53-2a", "00-00-5e-00-53-2a"),
    (
        "EUI64",
        "00-00-5e-ef-10-00-00-2a",
        "00-00-5e-ef-10-00-00-2a",
    ),
    (
        "LOC",
        "42 21 54 N 71 06 18 W -24m 30m",
        "42 21 54.000 N 71 6 18.000 W -24.00m 30.00m 10000.00m 10.00m",
    ),
    (
        "LOC",
        "90 S 180 E 42849672.95 0 90000000.00m 0.09",
        "90 0 0.000 S 180 0 0.000 E 42849672.95m 0.00m 90000000.00m 0.09m",
    ),
    (
        "APL",
        "1:192.168.32.0/21 !1:192.168.38.0/28 2:2001:db8::/32 1:0.0.0.0/0",
        "1:192.168.32.0/21 !1:192.168.38.0/28 2:2001:db8::/32 1:0.0.0.0/0",
    ),
    ("APL", "", ""),
    ("SVCB", "0 foo", "0 foo.example.com."),
    (
        "HTTPS",
        "1 . port=8443 alpn=h2,h3 ipv6hint=2001:db8::1,2001:db8::2 ech=AAAB no-default-alpn ipv4hint=192.0.2.1",
        "1 . alpn=\"h2,h3\" no-default-alpn port=8443 ipv4hint=192.0.2.1 ech=AAAB ipv6hint=2001:db8::1,2001:db8::2",
    ),
    (
        "SVCB",
        "1 dns alpn=\"dot\" dohpath=\"/q{?dns}\" ohttp key65280=\"a b\\001\" mandatory=key7,alpn",
        "1 dns.example.com. mandatory=alpn,dohpath alpn=\"dot\" dohpath=\"/q{?dns}\" ohttp key65280=\"a b\\001\"",
    ),
    ("SVCB", "1 . key1=\\002h2", "1 . alpn=\"h2\""),
    ("TYPE65280", r"\# 4 0A00 0001", r"\# 4 0A000001"),
    ("TYPE65280", r"\# 0", r"\# 0"),
    ("NULL", r"\# 1 ff", r"\# 1 FF"),
    ("A", r"\# 4 0A000001", "10.0.0.1"),
];

#[test]
fn each_type_is_read_and_written() {
    for (kind, text, written) in TEXTS {
        let wire = read(kind, text).unwrap_or_else(|e| panic!("{kind} {text}: {e}"));
        let back = to_text(rtype(kind), &wire);
        assert_eq!(back, *written, "{kind} {text}");
        assert_eq!(read(kind, &back), Ok(wire.clone()), "{kind} {text}");
        assert_eq!(canonical(rtype(kind), &wire), Ok(wire), "{kind} {text}");
    }
}

#[test]
fn every_type_of_the_table_has_a_text_above() {
    for number in 0..=u16::MAX {
        let known = RecordType(number);
        if table::fields(known).is_some() {
            let listed = TEXTS.iter().any(|(kind, ..)| rtype(kind) == known);
            assert!(listed, "{known}");
        }
    }
}

/// RFC 9460 appendix D: text and wire form.
#[test]
fn service_bindings_have_the_octets_of_rfc_9460_appendix_d() {
    let foo = "03666f6f076578616d706c6503636f6d00";
    let foo_org = "03666f6f076578616d706c65036f726700";
    for (text, expected) in [
        ("0 foo.example.com.", format!("0000{foo}")),
        ("1 .", "000100".to_owned()),
        (
            "16 foo.example.com. port=53",
            format!("0010{foo}000300020035"),
        ),
        (
            "1 foo.example.com. key667=hello",
            format!("0001{foo}029b000568656c6c6f"),
        ),
        (
            r#"1 foo.example.com. key667="hello\210qoo""#,
            format!("0001{foo}029b000968656c6c6fd2716f6f"),
        ),
        (
            r#"1 foo.example.com. ipv6hint="2001:db8::1,2001:db8::53:1""#,
            format!(
                "0001{foo}0006002020010db800000000000000000000000120010db8000000000000000000530001"
            ),
        ),
        (
            r#"1 example.com. ipv6hint="2001:db8:122:344::192.0.2.33""#,
            "0001076578616d706c6503636f6d000006001020010db8012203440000000 0c0000221"
                .replace(' ', ""),
        ),
        (
            r#"16 foo.example.org. ( alpn=h2,h3-19 mandatory=ipv4hint,alpn
                 ipv4hint=192.0.2.1 )"#,
            format!("0010{foo_org}00000004000100040001000902683205683 32d313900040004c0000201")
                .replace(' ', ""),
        ),
        (
            r#"16 foo.example.org. alpn="f\\\\oo\\,bar,h2""#,
            format!("0010{foo_org}0001000c08665c6f6f2c626172026832"),
        ),
        (
            r"16 foo.example.org. alpn=f\\\092oo\092,bar,h2",
            format!("0010{foo_org}0001000c08665c6f6f2c626172026832"),
        ),
    ] {
        let wire = read("SVCB", text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(HEXLOWER.encode(&wire), expected, "{text}");
    }
}

#[test]
fn wrong_texts_are_refused_saying_what_was_expected() {
    for (kind, text, part) in [
        ("A", "192.0.2", "address: expected an IPv4 address"),
        ("A", "192.0.2.01", "expected an IPv4 address"),
        ("A", "", "but the data ends here"),
        (
            "A",
            "192.0.2.1 192.0.2.2",
            "expected the data to end here, found `192.0.2.2`",
        ),
        ("A", "\"192.0.2.1\"", "found the quoted string"),
        ("AAAA", "192.0.2.1", "expected an IPv6 address"),
        (
            "MX",
            "ten mail",
            "preference: expected a number from 0 to 65535, found `ten`",
        ),
        ("MX", "65536 mail", "preference"),
        ("MX", "+1 mail", "preference"),
        (
            "MX",
            "10",
            "mail server: expected a domain name, but the data ends here",
        ),
        ("MX", "10 a..b", "an empty label"),
        ("CNAME", "\"www\"", "expected a domain name"),
        ("TXT", "", "expected one or more strings"),
        ("TXT", r"\256", "three digits up to 255"),
        ("TXT", "v=DKIM1; k=rsa", "would start a comment"),
        ("TXT", "\"open", "closing quotation mark"),
        (
            "SOA",
            "a b 1 2 3 4",
            "minimum: expected a number of seconds",
        ),
        ("SOA", "a b 1 2 3 4 1x", "minimum"),
        ("SOA", "a b 1 2 3 4 1h30", "minimum"),
        ("CAA", "0 is-sue x", "tag: expected a tag"),
        ("CAA", "256 issue x", "flags"),
        ("DS", "1 8 2 abcd", "digest: 2 octets: expected 32"),
        (
            "DS",
            "1 8 2 abc",
            "digest: expected pairs of hexadecimal digits",
        ),
        ("SSHFP", "1 2 abcd", "fingerprint: 2 octets: expected 32"),
        ("DNSKEY", "256 3 8 A===", "public key: expected base64"),
        ("NSEC", "host", "types: expected record types"),
        ("NSEC", "host A BOGUS", "found `BOGUS`"),
        ("RRSIG", "A 8 2 60 20230230000000 0 1 . AAAA", "expiration"),
        ("EUI48", "00-00-5e-00-53", "6 hexadecimal pairs"),
        ("LOC", "91 N 0 E 0", "latitude"),
        ("LOC", "1 N 2 E", "altitude"),
        ("LOC", "1 60 N 2 E 0", "latitude"),
        ("APL", "1:192.0.2.0/33", "prefix"),
        ("APL", "3:192.0.2.0/24", "prefix"),
        ("URI", "1 1 \"\"", "target: expected at least 1 octets"),
        (
            "SVCB",
            "1 . port=a",
            "port: expected a port from 0 to 65535, found `a`",
        ),
        ("SVCB", "1 . port=1 port=2", "`port` is given twice"),
        ("SVCB", "1 . bogus=1", "expected key or key=value"),
        ("SVCB", "1 . key0001=1", "expected key or key=value"),
        ("SVCB", "1 . key65535=1", "reserved"),
        ("SVCB", "1 . mandatory=alpn", "found `alpn`"),
        ("SVCB", "1 . mandatory=mandatory", "not `mandatory` itself"),
        ("SVCB", "1 . alpn=h2 mandatory=alpn,alpn", "each once"),
        ("SVCB", "1 . no-default-alpn", "expected alpn beside it"),
        ("SVCB", "1 . alpn=h2 no-default-alpn=x", "expected no value"),
        ("SVCB", "1 . alpn=", "alpn"),
        ("SVCB", "1 . ipv4hint", "IPv4 addresses"),
        (
            "SVCB",
            "1 . alpn=\"h2\"port=1",
            "expected a blank before `port=1`",
        ),
        ("TYPE65280", "1.2.3.4", r"expected \# length hex"),
        (
            "TYPE65280",
            r"\# 3 0102",
            "3 octets announced, but 2 follow",
        ),
        ("TYPE65280", r"\# 1 1", "pairs of hexadecimal digits"),
        ("A", r"\# 3 010203", "address"),
        (
            "MX",
            r"\# 4 000a c000",
            "mail server: a compression pointer",
        ),
        (
            "MX",
            r"\# 6 000a 0161 00 00",
            "1 octets too many at the end",
        ),
        ("ANY", r"\# 0", "exists only in messages"),
    ] {
        let found = problem(kind, text);
        assert!(found.contains(part), "{kind} {text:?}: {found}");
        assert!(found.starts_with(kind), "{found}");
    }
}

#[test]
fn errors_point_at_the_word() {
    for (kind, text, word) in [
        ("MX", "ten mail", Some(0)),
        ("MX", "10 a..b", Some(1)),
        ("MX", "10", None),
        ("SRV", "1 2 x .", Some(2)),
        ("TXT", "a \\256", Some(1)),
        ("SVCB", "1 . alpn=h2 port=x", Some(3)),
        ("A", r"\# x", Some(1)),
    ] {
        assert_eq!(
            read(kind, text).map_err(|e| e.word),
            Err(word),
            "{kind} {text}"
        );
    }
}

#[test]
fn malformed_octets_are_refused_and_written_in_the_generic_form() {
    for (kind, hex) in [
        ("A", "010203"),
        ("A", "0102030405"),
        ("NS", "c000"),
        ("NS", "0361"),
        ("MX", "0001"),
        ("TXT", ""),
        ("TXT", "0561"),
        ("CAA", "0000"),
        ("CAA", "00012d"),
        ("NSEC", "00"),
        ("NSEC", "00000100"),
        ("NSEC", "00 01 01 40 00 01 40"),
        ("LOC", "01000000800000008000000000989680"),
        ("APL", "00010005c0a8260000"),
        ("SVCB", "000100 0003 0001 50"),
        ("SVCB", "000100 0003 0002 0050 0001 0003 026832"),
    ] {
        let octets = HEXLOWER
            .decode(hex.replace(' ', "").as_bytes())
            .expect("hex");
        assert!(check(rtype(kind), &octets).is_err(), "{kind} {hex}");
        assert!(
            to_text(rtype(kind), &octets).starts_with(r"\# "),
            "{kind} {hex}"
        );
    }
}

#[test]
fn embedded_names_are_found_where_they_stand() {
    let wire = read("SOA", "a b 1 2 3 4 5").expect("data");
    let found: Vec<_> = names(RecordType::SOA, &wire).collect();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].at, found[1].at), (0, found[0].wire.len()));
    assert!(found.iter().all(|n| n.compressible));
    let wire = read("SRV", "0 0 5060 sip").expect("data");
    let found: Vec<_> = names(RecordType::SRV, &wire).collect();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].at, found[0].compressible), (6, false));
    assert_eq!(
        additional_name(RecordType::SRV, &wire),
        Some("sip.example.com.".parse().expect("a name"))
    );
    assert_eq!(names(RecordType(65_280), &wire).count(), 0);
    assert_eq!(names(RecordType::MX, &[0]).count(), 0);
}

#[test]
fn names_are_folded_and_texts_are_not() {
    let wire = HEXLOWER.decode(b"000a014100").expect("hex");
    assert_eq!(
        canonical(RecordType::MX, &wire).map(|w| HEXLOWER.encode(&w)),
        Ok("000a016100".to_owned())
    );
    assert_eq!(canonical(RecordType::TXT, b"\x01A"), Ok(b"\x01A".to_vec()));
}

#[test]
fn soa_fields_are_read_and_the_serial_is_patched() {
    let wire = read("SOA", "ns1 admin 7 1h 15m 4w 60").expect("data");
    let soa = Soa::from_wire(&wire).expect("an SOA");
    assert_eq!(
        (soa.serial.0, soa.refresh, soa.expire),
        (7, 3_600, 2_419_200)
    );
    assert_eq!(soa.to_wire(), wire);
    assert_eq!(Soa::serial_of(&wire), Some(soa.serial));
    let patched = Soa::with_serial(&wire, soa.serial.next()).expect("patched");
    assert_eq!(
        Soa::from_wire(&patched),
        Ok(Soa {
            serial: soa.serial.next(),
            ..soa
        })
    );
    assert_eq!(Soa::with_serial(&wire[..10], Serial(1)), None);
    assert!(Soa::from_wire(&wire[1..]).is_err());
}

fn any_known_type() -> impl Strategy<Value = RecordType> {
    let known: Vec<RecordType> = (0..=u16::MAX)
        .map(RecordType)
        .filter(|t| table::fields(*t).is_some())
        .collect();
    proptest::sample::select(known)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_096))]

    #[test]
    fn octets_that_pass_the_check_survive_text(
        rtype in any_known_type(),
        wire in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..8, any::<u8>()], 0..48),
    ) {
        if let Ok(folded) = canonical(rtype, &wire) {
            let text = to_text(rtype, &wire);
            prop_assert_eq!(parse(rtype, &text, &Name::root()), Ok(folded), "{}", text);
        }
        let _ = names(rtype, &wire).count();
    }

    #[test]
    fn any_text_is_data_or_an_error(
        rtype in any_known_type(),
        text in r#"([0-9a-zA-Z=,.:"\\#()\-; ]|[0-9]{1,3} |\PC){0,40}"#,
    ) {
        if let Ok(wire) = parse(rtype, &text, &origin()) {
            prop_assert_eq!(canonical(rtype, &wire), Ok(wire.clone()));
            let back = to_text(rtype, &wire);
            prop_assert_eq!(parse(rtype, &back, &Name::root()), Ok(wire));
        }
    }
}
