use std::{
    collections::HashMap,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;

use super::*;
use crate::model::rdata;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn example() -> Name {
    name("example.com.")
}

/// Files in memory.
#[derive(Default)]
struct Files(HashMap<&'static str, &'static str>);

impl Loader for Files {
    fn load(&mut self, file: &str) -> io::Result<Vec<u8>> {
        let text = self.0.get(file).ok_or(io::ErrorKind::NotFound)?;
        Ok(text.as_bytes().to_vec())
    }
}

fn read(text: impl AsRef<[u8]>) -> Result<ParsedZone, Faults> {
    parse(text.as_ref(), &example(), "zone", &mut include::Nothing)
}

fn read_with(text: &str, files: &[(&'static str, &'static str)]) -> Result<ParsedZone, Faults> {
    let mut files = Files(files.iter().copied().collect());
    parse(text.as_bytes(), &example(), "zone", &mut files)
}

/// Each record as `owner ttl type data`.
fn lines(zone: &ParsedZone) -> Vec<String> {
    let mut lines = Vec::new();
    for (owner, set) in &zone.records {
        for data in set.rdata() {
            let (ttl, rtype) = (set.ttl(), set.rtype());
            lines.push(format!(
                "{owner} {ttl} {rtype} {}",
                rdata::to_text(rtype, data)
            ));
        }
    }
    lines
}

fn lines_of(text: &str) -> Vec<String> {
    lines(&read(text).unwrap_or_else(|faults| panic!("{faults}")))
}

fn faults_of(text: impl AsRef<[u8]>) -> Vec<String> {
    let faults = read(text).expect_err("faulty");
    faults.list.iter().map(ToString::to_string).collect()
}

#[test]
fn the_example_of_rfc_1035_section_5_3_is_read() {
    let text = r"
@   IN  SOA     VENERA      Action\.domains (
                                 20     ; SERIAL
                                 7200   ; REFRESH
                                 600    ; RETRY
                                 3600000; EXPIRE
                                 60)    ; MINIMUM

        NS      A.ISI.EDU.
        MX      10      VENERA
        MX      20      VAXA

A       A       26.3.0.103

VENERA  A       10.1.0.52
        A       128.9.0.32
$INCLUDE mailboxes
";
    let files = [("mailboxes", "MOE TXT x\nLARRY 5 TXT y ; and so on\n")];
    let zone = read_with(text, &files).expect("a zone");
    assert_eq!(
        lines(&zone),
        [
            r"example.com. 60 SOA venera.example.com. action\.domains.example.com. 20 7200 600 3600000 60",
            "example.com. 60 NS a.isi.edu.",
            "example.com. 60 MX 10 venera.example.com.",
            "example.com. 60 MX 20 vaxa.example.com.",
            "a.example.com. 60 A 26.3.0.103",
            "venera.example.com. 60 A 10.1.0.52",
            "venera.example.com. 60 A 128.9.0.32",
            "moe.example.com. 60 TXT \"x\"",
            "larry.example.com. 5 TXT \"y\"",
        ]
    );
    assert_eq!(zone.warnings.len(), 1);
    assert!(
        zone.warnings[0]
            .to_string()
            .starts_with("zone:2:1: no TTL is given")
    );
}

#[test]
fn fields_may_be_left_out_and_come_in_either_order() {
    for (text, expected) in [
        ("$TTL 60\na A 192.0.2.1", "a.example.com. 60 A 192.0.2.1"),
        ("a 1h30m IN A 192.0.2.1", "a.example.com. 5400 A 192.0.2.1"),
        ("a 1h1h IN A 192.0.2.1", "a.example.com. 7200 A 192.0.2.1"),
        ("a in 1W A 192.0.2.1\n", "a.example.com. 604800 A 192.0.2.1"),
        ("a CLASS1 5 TYPE1 192.0.2.1", "a.example.com. 5 A 192.0.2.1"),
        (
            "\u{feff}a 5 A 192.0.2.1\r\n",
            "a.example.com. 5 A 192.0.2.1",
        ),
        ("a\t5\tA\t( 192.0.2.1 )\t;x", "a.example.com. 5 A 192.0.2.1"),
        (
            "a ( 5 ; ttl )\n IN ; class\n A\n 192.0.2.1 )",
            "a.example.com. 5 A 192.0.2.1",
        ),
        ("in 5 IN A 192.0.2.1", "in.example.com. 5 A 192.0.2.1"),
        ("3600 5 A 192.0.2.1", "3600.example.com. 5 A 192.0.2.1"),
        ("@ 5 MX 10 @", "example.com. 5 MX 10 example.com."),
        (
            "$origin sub\n@ 5 A 192.0.2.1",
            "sub.example.com. 5 A 192.0.2.1",
        ),
        ("$ORIGIN .\ncom 5 NS ns", "com. 5 NS ns."),
        (r"\$ttl 5 A 192.0.2.1", r"\$ttl.example.com. 5 A 192.0.2.1"),
        (
            r"a\032b 5 A 192.0.2.1",
            r"a\032b.example.com. 5 A 192.0.2.1",
        ),
        (r"*.a 5 A 192.0.2.1", "*.a.example.com. 5 A 192.0.2.1"),
        (
            r#"a 5 TXT "x ; y" z\;"#,
            r#"a.example.com. 5 TXT "x ; y" "z;""#,
        ),
        ("a 5 TXT (\"x\"\n\"y\")", r#"a.example.com. 5 TXT "x" "y""#),
        (r"a 5 A \# 4 C0000201", "a.example.com. 5 A 192.0.2.1"),
        ("a 0 TYPE65280 \\# 0", r"a.example.com. 0 TYPE65280 \# 0"),
        (
            "a 2147483647 A 192.0.2.1",
            "a.example.com. 2147483647 A 192.0.2.1",
        ),
    ] {
        assert_eq!(lines_of(text), [expected], "{text:?}");
    }
}

#[test]
fn omitted_ttls_follow_the_directive_then_the_record_before() {
    let text = "a 5 A 192.0.2.1\nb A 192.0.2.1\n$TTL 9\nc 7 A 192.0.2.1\nd A 192.0.2.1\n$TTL 1m\ne A 192.0.2.1\n";
    let ttls: Vec<u32> = read(text)
        .expect("a zone")
        .records
        .iter()
        .map(|(_, set)| set.ttl())
        .collect();
    assert_eq!(ttls, [5, 5, 9 - 2, 9, 60]);
}

#[test]
fn owners_are_repeated_until_another_comes() {
    let text =
        "$TTL 1\na A 192.0.2.1\n\n; comment\n  TXT x\n$ORIGIN sub\n\tTXT y\nb AAAA ::\n AAAA ::1";
    assert_eq!(
        lines_of(text),
        [
            "a.example.com. 1 A 192.0.2.1",
            "a.example.com. 1 TXT \"x\"",
            "a.example.com. 1 TXT \"y\"",
            "b.sub.example.com. 1 AAAA ::",
            "b.sub.example.com. 1 AAAA ::1",
        ]
    );
}

#[test]
fn octets_that_are_no_text_are_kept() {
    let zone = read(b"a\xff 5 TXT \"\xfe\x00\"").expect("a zone");
    assert_eq!(lines(&zone), [r#"a\255.example.com. 5 TXT "\254\000""#]);
}

#[test]
fn faults_say_where_and_what_was_expected() {
    for (text, fault) in [
        (
            "a 5 A 192.0.2",
            "zone:1:7: A data: address: expected an IPv4 address such as 192.0.2.1, found `192.0.2`",
        ),
        (
            "a 5 A",
            "zone:1:6: A data: address: expected an IPv4 address such as 192.0.2.1, but the data ends here",
        ),
        (
            "a 5 A 192.0.2.1 x",
            "zone:1:17: A data: expected the data to end here, found `x`",
        ),
        (
            "\n\na 5 SOA a b (\n 1 2\n 3 x 5 )",
            "zone:5:4: SOA data: expire: expected a number of seconds",
        ),
        (
            "a 5 BOGUS x",
            "zone:1:5: expected a record type such as A, MX or TYPE65280, found `BOGUS` (records of a type that has no name here are written as `TYPEn \\# ",
        ),
        (
            "a 5 IN",
            "zone:1:7: expected a record type such as A, MX or TYPE65280, but the entry ends here",
        ),
        ("a 5 5 A 192.0.2.1", "zone:1:5: expected a record type"),
        (
            "a 5 CH A 192.0.2.1",
            "zone:1:5: expected the class IN, found `CH`",
        ),
        (
            "a CLASS3 A 192.0.2.1",
            "zone:1:3: expected the class IN, found `CLASS3`",
        ),
        (
            "a 1y A 192.0.2.1",
            "zone:1:3: expected a TTL of 0 to 2147483647 seconds, such as 3600 or 1h30m, found `1y`",
        ),
        (
            "a 2147483648 A 192.0.2.1",
            "zone:1:3: expected a TTL of 0 to 2147483647",
        ),
        (
            "a A 192.0.2.1",
            "zone:1:1: expected a TTL: put it before the type",
        ),
        (
            "  A 192.0.2.1",
            "zone:1:3: expected an owner name at the start of the line",
        ),
        (
            "a..b 5 A 192.0.2.1",
            "zone:1:1: expected an owner name, found `a..b`: an empty label",
        ),
        (
            "a 5 ANY x",
            "zone:1:10: ANY data: ANY exists only in messages",
        ),
        (
            "a 5 OPT \\# 0",
            "zone:1:13: OPT data: OPT exists only in messages",
        ),
        (
            "a 5 TXT \"x",
            "zone:1:9: a quoted string must end on the line it starts on",
        ),
        (
            "a 5 TXT x )",
            "zone:1:11: a closing parenthesis without an opening one",
        ),
        (
            "a 5 TXT ( x\n\n",
            "zone:1:9: an opening parenthesis is never closed",
        ),
        (
            "$TTL",
            "zone:1:5: expected one TTL, but the entry ends here",
        ),
        ("$TTL 5 6", "zone:1:8: expected one TTL, found `6`"),
        ("$TTL x", "zone:1:6: expected a TTL of 0"),
        ("$ORIGIN", "zone:1:8: expected one domain name"),
        (
            "$ORIGIN a..b",
            "zone:1:9: expected a domain name, found `a..b`: an empty label",
        ),
        (
            "$BOGUS",
            "zone:1:1: expected $ORIGIN, $TTL, $INCLUDE or $GENERATE",
        ),
        ("$INCLUDE", "zone:1:9: expected a file name"),
        (
            "$INCLUDE a b c",
            "zone:1:14: expected a file name and at most one domain name, found `c`",
        ),
        (
            "$INCLUDE file",
            "zone:1:10: $INCLUDE: cannot read `file`: this text came without its directory",
        ),
        ("$GENERATE 1-2 a", "zone:1:16: expected a record type"),
        ("$GENERATE 1-2", "zone:1:14: expected $GENERATE range owner"),
        (
            "$GENERATE 2-1 a$ 5 A 192.0.2.$",
            "zone:1:11: expected a range that counts up",
        ),
        (
            "$GENERATE 0-300 a$ 5 A 192.0.2.$",
            "zone:1:24: A data: address: expected an IPv4 address such as 192.0.2.1, found `192.0.2.256`",
        ),
        (
            "$GENERATE 0-1 a 5 SOA a b 1 2 3 4 $",
            "zone:1:23: expected a type other than SOA",
        ),
    ] {
        let found = faults_of(text);
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        assert!(found[0].starts_with(fault), "{text:?}: {}", found[0]);
    }
}

#[test]
fn many_faults_are_reported_together() {
    let text = "$TTL 5\na A x\nb A 192.0.2.1\nc MX x y\nd TXT \"\ne TXT (\nf A z\ng A 192.0.2.1\n";
    let found = faults_of(text);
    let places: Vec<&str> = found
        .iter()
        .map(|f| f.split(": ").next().unwrap_or(""))
        .collect();
    assert_eq!(
        places,
        ["zone:2:5", "zone:4:6", "zone:5:7", "zone:6:7", "zone:7:5"]
    );
    let faults = read("bad\n".repeat(1_000)).expect_err("faulty");
    assert_eq!(
        (faults.list.len(), faults.incomplete),
        (fault::MAX_FAULTS, true)
    );
    assert!(
        faults
            .to_string()
            .contains("zone:50:4: expected a record type")
    );
}

#[test]
fn hostile_texts_are_not_read_over_and_over() {
    // Quadratic work would keep this test from ending.
    for text in [
        "a 5 TXT ( x\n".repeat(200_000),
        "a 5 TXT (;\n".repeat(200_000),
        "(".repeat(1 << 20),
    ] {
        assert!(read(text).is_err());
    }
    assert!(read("$TTL 1\n".repeat(200_000)).is_ok());
}

#[test]
fn entries_are_bounded() {
    for (text, problem) in [
        (
            "x".repeat(2 << 20),
            "an entry is longer than 1048576 octets",
        ),
        (
            "x ".repeat(1 << 20),
            "an entry is longer than 1048576 octets",
        ),
        (
            format!("( {}", "\n".repeat(2 << 20)),
            "an opening parenthesis is never closed",
        ),
    ] {
        let found = faults_of(format!("{text}\nbad\n"));
        assert_eq!(found.len(), 2);
        assert!(found[0].starts_with("zone:1:1: "), "{}", found[0]);
        assert!(found[0].contains(problem), "{}", found[0]);
        assert!(found[1].contains("expected a record type"), "{}", found[1]);
    }
    let longest = format!("a 5 TXT{}", " x".repeat(30_000));
    assert_eq!(lines_of(&longest).len(), 1);
    let data = faults_of(format!("a 5 TXT{}", " x".repeat(40_000)));
    assert!(
        data[0].ends_with("80000 octets: expected at most 65535"),
        "{}",
        data[0]
    );
}

#[test]
fn differing_ttls_and_repeats_are_warned_of() {
    let zone =
        read("a 9 A 192.0.2.1\nb 1 A 192.0.2.9\na 5 A 192.0.2.2\na 7 A 192.0.2.1").expect("a zone");
    assert_eq!(zone.records.len(), 2);
    assert_eq!((zone.records[0].1.ttl(), zone.records[0].1.len()), (5, 2));
    let warnings: Vec<String> = zone.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "zone:3:1: a.example.com. A: TTL 5 differs from 9 of the same set at zone:1: the lowest is used",
            "zone:4:1: a.example.com. A: TTL 7 differs from 5 of the same set at zone:1: the lowest is used",
            "zone:4:1: a.example.com. A: the same record again: it is kept once",
        ]
    );
}

#[test]
fn included_files_have_their_own_origin_and_leave_ours_alone() {
    let files = [
        ("one", "a A 192.0.2.1\n$ORIGIN other.\nb A 192.0.2.1\n"),
        ("two", "  TXT x\n$TTL 9"),
    ];
    let text =
        "$TTL 1\nx A 192.0.2.1\n$INCLUDE one sub\n A 192.0.2.2\n$INCLUDE \"two\"\ny A 192.0.2.3\n";
    assert_eq!(
        lines(&read_with(text, &files).expect("a zone")),
        [
            "x.example.com. 1 A 192.0.2.1",
            "x.example.com. 1 A 192.0.2.2",
            "a.sub.example.com. 1 A 192.0.2.1",
            "b.other. 1 A 192.0.2.1",
            "x.example.com. 1 TXT \"x\"",
            "y.example.com. 9 A 192.0.2.3",
        ]
    );
}

#[test]
fn includes_are_plain_names_and_do_not_nest_for_ever() {
    for path in [
        "../x",
        "/etc/passwd",
        "a/b",
        r"a\\b",
        "..",
        ".hidden",
        "\"\"",
        "a\\000b",
    ] {
        let fault = &faults_of(format!("$INCLUDE {path}"))[0];
        assert!(
            fault.contains("expected the plain name of a file"),
            "{fault}"
        );
    }
    let faults = read_with("$INCLUDE me", &[("me", "$INCLUDE me")]).expect_err("endless");
    assert!(
        faults
            .to_string()
            .starts_with("me:1:10: $INCLUDE: expected at most 8 files")
    );
    let faults = read_with("$INCLUDE x", &[("x", "\na 5 A y\n")]).expect_err("faulty");
    assert!(faults.to_string().starts_with("x:2:7: A data"), "{faults}");
}

#[test]
fn included_files_come_from_the_same_directory_only() {
    let outer = tempfile::tempdir().expect("a directory");
    let inner = outer.path().join("zones");
    std::fs::create_dir(&inner).expect("a directory");
    std::fs::write(inner.join("part"), "a 5 A 192.0.2.1").expect("written");
    std::fs::write(outer.path().join("secret"), "s 5 TXT x").expect("written");
    std::os::unix::fs::symlink("../secret", inner.join("link")).expect("linked");
    std::fs::create_dir(inner.join("folder")).expect("a directory");
    let mut loader = include::SameDirectory::of(&inner.join("zone"));
    assert_eq!(loader.load("part").expect("loaded"), b"a 5 A 192.0.2.1");
    for bad in ["link", "folder", "missing"] {
        assert!(loader.load(bad).is_err(), "{bad}");
    }
}

#[test]
fn generated_records_are_those_written_out() {
    let generated = "$TTL 5\n$GENERATE 1-3/2 host-$ A 192.0.2.$\n$GENERATE 10-11 ${0,0,n} 7 IN PTR host-${-9,2}.x.\n$GENERATE 0-1 m MX \"1$ mail$\"\n$GENERATE 1-1 t$ TXT \"\\\"a b\\\"\" ; comment\n$GENERATE 1-1 $.u TXT x \"y $\"\n";
    assert_eq!(
        lines_of(generated),
        [
            "host-1.example.com. 5 A 192.0.2.1",
            "host-3.example.com. 5 A 192.0.2.3",
            "a.example.com. 7 PTR host-01.x.",
            "b.example.com. 7 PTR host-02.x.",
            "m.example.com. 5 MX 10 mail0.example.com.",
            "m.example.com. 5 MX 11 mail1.example.com.",
            "t1.example.com. 5 TXT \"a b\"",
            "1.u.example.com. 5 TXT \"x\" \"y 1\"",
        ]
    );
    assert_eq!(
        lines_of("$TTL 1\n$GENERATE 0-65535 h-$ A 192.0.2.1").len(),
        65_536
    );
}

#[test]
fn a_zone_is_written_tidily() {
    let text = "$TTL 300\n@ SOA ns1 admin 7 1h 15m 1w 60\n@ NS ns1\n@ NS ns2.example.net.\nwww 60 A 192.0.2.2\nwww 60 A 192.0.2.1\nns1 A 192.0.2.53\n@ MX 10 www\na\\.b TXT \"x y\" z\nother.net. A 192.0.2.7\nl APL\n";
    let zone = read(text).expect("a zone");
    let written = write(&example(), zone.records.iter().map(|(o, s)| (o.clone(), s)));
    let expected = r#"$ORIGIN example.com.
$TTL 300
@                  IN SOA        ns1.example.com. admin.example.com. (
                                 7          ; serial
                                 3600       ; refresh
                                 900        ; retry
                                 604800     ; expire
                                 60         ; minimum
                                 )
@                  IN NS         ns1.example.com.
@                  IN NS         ns2.example.net.
@                  IN MX         10 www.example.com.
a\.b               IN TXT        "x y" "z"
l                  IN APL
ns1                IN A          192.0.2.53
www             60 IN A          192.0.2.1
www             60 IN A          192.0.2.2
other.net.         IN A          192.0.2.7
"#;
    assert_eq!(written, expected);
}

/// What a zone is, whatever the order it was written in.
fn contents(records: Vec<(Name, Rrset)>) -> Vec<(Name, RecordType, Rrset)> {
    let mut sets: Vec<_> = records
        .into_iter()
        .map(|(o, s)| (o, s.rtype(), s))
        .collect();
    sets.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    sets
}

fn any_label() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![
        any::<u8>().prop_map(|o| o.to_ascii_lowercase()),
        proptest::sample::select(b"az09-_.@$\\\"();* \t\n\0".as_slice()),
    ];
    proptest::collection::vec(octet, 1..8)
}

fn any_owner(apex: Name) -> impl Strategy<Value = Name> {
    proptest::collection::vec(any_label(), 0..4).prop_map(move |labels| {
        let labels = labels.iter().map(Vec::as_slice);
        Name::from_labels(labels.chain(apex.labels())).expect("short enough")
    })
}

fn any_set() -> impl Strategy<Value = Rrset> {
    let known = proptest::sample::select(rdata::tests::TEXTS).prop_map(|(kind, text, _)| {
        let rtype = RecordType::parse(kind).expect("a type");
        (
            rtype,
            vec![rdata::parse(rtype, text, &example()).expect("data")],
        )
    });
    let strings = proptest::collection::vec(any::<u8>(), 0..40).prop_map(|mut octets| {
        octets.insert(0, octets.len() as u8);
        (RecordType::TXT, vec![octets])
    });
    let targets = any_owner(example()).prop_map(|n| (RecordType::NS, vec![n.as_wire().to_vec()]));
    let unknown = (
        65_280u16..65_535,
        proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..4),
    )
        .prop_map(|(number, data)| (RecordType(number), data));
    let ttl = prop_oneof![Just(300), Just(60), 0..=crate::model::rrset::MAX_TTL];
    (prop_oneof![known, strings, targets, unknown], ttl)
        .prop_map(|((rtype, data), ttl)| Rrset::new(rtype, ttl, data).expect("not empty"))
}

fn any_zone() -> impl Strategy<Value = (Name, Vec<(Name, Rrset)>)> {
    let apex = prop_oneof![Just(example()), Just(Name::root()), any_owner(name("x.")),];
    apex.prop_flat_map(|apex| {
        let record = (any_owner(apex.clone()), any_set());
        (Just(apex), proptest::collection::vec(record, 0..20))
    })
    .prop_map(|(apex, mut records)| {
        records.sort_by(|a, b| (&a.0, a.1.rtype()).cmp(&(&b.0, b.1.rtype())));
        records.dedup_by(|a, b| (&a.0, a.1.rtype()) == (&b.0, b.1.rtype()));
        (apex, records)
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_unchanged((apex, records) in any_zone()) {
        let text = write(&apex, records.iter().map(|(o, s)| (o.clone(), s)));
        let back = parse(text.as_bytes(), &name("elsewhere."), "written", &mut include::Nothing);
        let back = back.map_err(|faults| TestCaseError::fail(format!("{faults}\n{text}")))?;
        prop_assert_eq!(back.warnings, []);
        let again = write(&apex, back.records.iter().map(|(o, s)| (o.clone(), s)));
        prop_assert_eq!(contents(back.records), contents(records), "{}", text);
        prop_assert_eq!(again, text);
    }

    #[test]
    fn any_octets_are_a_zone_or_faults(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = load(&text, None, "zone", &mut include::Nothing);
    }

    #[test]
    fn any_pieces_of_zones_are_a_zone_or_faults(pieces in proptest::collection::vec(
        proptest::sample::select(&[
            "a", "@", " ", "\t", "\n", "\r\n", "(", ")", "\"", ";", "\\", "$TTL", "$ORIGIN", "$GENERATE", "$INCLUDE",
            "1-3", "$", "${0,1,n}", "IN", "5", "1h", "A", "192.0.2.1", "TXT", "SOA", "NS", "CNAME", "DNAME", "MX", "*", ".",
            "\\#", "4", "00", "HTTPS", "alpn=", "\u{feff}", "\u{ff}",
        ][..]), 0..60)) {
        let text = pieces.concat();
        if let Ok(loaded) = load(text.as_bytes(), Some(&example()), "zone", &mut include::Nothing) {
            let written = write(&loaded.apex, loaded.records.iter().map(|(o, s)| (o.clone(), s)));
            let back = parse(written.as_bytes(), &Name::root(), "written", &mut include::Nothing);
            prop_assert_eq!(back.map(|b| contents(b.records)), Ok(contents(loaded.records)));
        }
    }
}

/// A zone without anything to be said about it, with `more` at its end.
fn judged(more: &str) -> Vec<String> {
    let text = format!("$TTL 300\n@ SOA ns1 admin 1 2 3 4 5\n@ NS ns1\nns1 A 192.0.2.53\n{more}");
    let loaded = load(
        text.as_bytes(),
        Some(&example()),
        "zone",
        &mut include::Nothing,
    )
    .unwrap_or_else(|faults| panic!("{faults}"));
    let errors = loaded
        .report
        .findings
        .iter()
        .filter(|f| f.severity == Severity::Error);
    assert_eq!(loaded.report.errors, errors.count());
    loaded
        .report
        .findings
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn zones_are_judged_as_named_checkzone_does() {
    for (more, findings) in [
        (
            "www A 192.0.2.1\n*.w A 192.0.2.1\n@ MX 0 .\n_x._tcp SRV 0 0 0 .\nm MX 10 mail.example.net.",
            vec![],
        ),
        (
            "a SOA a b 1 2 3 4 5",
            vec![
                "zone:5: error: a.example.com. SOA: an SOA record belongs at the apex example.com. only",
            ],
        ),
        (
            "@ SOA a b 1 2 3 4 6",
            vec!["zone:2: error: example.com. SOA: 2 records: expected one"],
        ),
        (
            "@ CNAME a",
            vec![
                "zone:5: error: example.com. CNAME: a CNAME record may have no other data beside it, but there is SOA",
            ],
        ),
        (
            "w CNAME a\nw CNAME b",
            vec!["zone:5: error: w.example.com. CNAME: 2 records: expected one"],
        ),
        (
            "w CNAME a\nw A 192.0.2.1",
            vec![
                "zone:5: error: w.example.com. CNAME: a CNAME record may have no other data beside it, but there is A",
            ],
        ),
        ("w CNAME a\nw NSEC a A", vec![]),
        (
            "d DNAME a\nd DNAME b",
            vec!["zone:5: error: d.example.com. DNAME: 2 records: expected one"],
        ),
        (
            "other.net. A 192.0.2.1",
            vec![
                "zone:5: warning: other.net. A: lies outside of the zone example.com. and is ignored",
            ],
        ),
        (
            "m MX 1 nowhere",
            vec![
                "zone:5: warning: m.example.com. MX: nowhere.example.com. has no address records (A or AAAA)",
            ],
        ),
        (
            "m MX 1 w\nw CNAME ns1",
            vec![
                "zone:5: warning: m.example.com. MX: w.example.com. is a CNAME: expected a name with addresses (RFC 2181 section 10.3)",
            ],
        ),
        (
            "_s SRV 1 1 1 w.x\n*.x CNAME ns1",
            vec![
                "zone:5: warning: _s.example.com. SRV: w.x.example.com. is a CNAME: expected a name with addresses (RFC 2181 section 10.3)",
            ],
        ),
        ("m MX 1 w.x\n*.x A 192.0.2.1", vec![]),
        ("m MX 1 w.d\nd DNAME example.net.", vec![]),
        (
            "sub NS ns.sub\nns.sub A 192.0.2.1\nsub DS 1 8 1 0000000000000000000000000000000000000000",
            vec![],
        ),
        (
            "sub NS ns.sub",
            vec![
                "zone:5: warning: sub.example.com. NS: missing glue: ns.sub.example.com. lies below the delegation and has no address records (A or AAAA)",
            ],
        ),
        (
            "sub NS nowhere",
            vec![
                "zone:5: warning: sub.example.com. NS: nowhere.example.com. has no address records (A or AAAA)",
            ],
        ),
        (
            "sub NS ns1\nx.sub TXT x\nsub MX 0 .",
            vec![
                "zone:6: warning: x.sub.example.com. TXT: hidden by the delegation of sub.example.com.",
                "zone:7: warning: sub.example.com. MX: hidden by the delegation of sub.example.com.",
            ],
        ),
        (
            "d DNAME example.net.\nx.d TXT x",
            vec![
                "zone:6: error: x.d.example.com. TXT: lies below the DNAME at d.example.com., where there can be nothing (RFC 6672 section 2.4)",
            ],
        ),
        (
            "x DS 1 8 1 0000000000000000000000000000000000000000",
            vec![
                "zone:5: warning: x.example.com. DS: a DS record without NS records beside it: no delegation is here",
            ],
        ),
        (
            "@ DS 1 8 1 0000000000000000000000000000000000000000",
            vec![
                "zone:5: error: example.com. DS: a DS record at the apex belongs in the parent zone (RFC 4035 section 2.4)",
            ],
        ),
        (
            "d DNAME example.net.\nd NS ns1",
            vec![
                "zone:5: error: d.example.com. DNAME: NS records stand beside it: a name is delegated or redirected, not both (RFC 6672 section 2.3)",
            ],
        ),
        (
            "@ DNAME example.net.",
            vec![
                "zone:3: warning: example.com. NS: ns1.example.com. is below a DNAME: expected a name with addresses (RFC 2181 section 10.3)",
                "zone:4: error: ns1.example.com. A: lies below the DNAME at example.com., where there can be nothing (RFC 6672 section 2.4)",
            ],
        ),
        (
            "* NS ns1",
            vec![
                "zone:5: warning: *.example.com. NS: at a wildcard its meaning is undefined (RFC 4592 section 4)",
            ],
        ),
        (
            "a_b A 192.0.2.1",
            vec![
                "zone:5: warning: a_b.example.com. A: the owner is no host name (letters, digits and hyphens)",
            ],
        ),
        (
            "b\\195\\188cher TXT x",
            vec![
                "zone:5: warning: b\\195\\188cher.example.com. TXT: the owner is no host name (letters, digits and hyphens): names in other scripts are written as xn--... (RFC 5891)",
            ],
        ),
        (
            "s SPF \"v=spf1\"",
            vec![
                "zone:5: warning: s.example.com. SPF: SPF records are not used any more (RFC 7208 section 3.1): use TXT",
            ],
        ),
        (
            "ns1 A 192.0.2.53",
            vec!["zone:5: warning: ns1.example.com. A: the same record again: it is kept once"],
        ),
    ] {
        assert_eq!(judged(more), findings, "{more}");
    }
}

/// Whether `named-checkzone` accepts the zone; none when there is no such program.
fn bind_accepts(text: &str) -> Option<bool> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("zone");
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new("named-checkzone");
    // Names are not looked for on the network.
    command.args(["-i", "local", "example.com"]).arg(&file);
    match command.output() {
        Ok(output) => Some(output.status.success()),
        Err(error) => {
            crate::skipped::skip(format!("named-checkzone: {error} (Debian: bind9-utils)"));
            None
        }
    }
}

#[test]
fn what_only_others_refuse_is_an_error_of_the_check_and_a_warning_of_the_import() {
    let refused = |more: &str, problem: &str| {
        let text = format!("$TTL 300\n@ SOA ns1 admin 1 2 3 4 5\n{more}");
        let judged = |standard| {
            let nothing = &mut include::Nothing;
            let example = example();
            load_by(standard, text.as_bytes(), Some(&example), "zone", nothing)
                .expect("its name is given")
                .report
        };
        let served = judged(Standard::Served);
        assert!(served.is_loadable(), "{more}: {served:?}");
        let everywhere = judged(Standard::Everywhere);
        if let Some(accepted) = bind_accepts(&text) {
            assert_eq!(everywhere.is_loadable(), accepted, "{more}");
        }
        let errors = everywhere.findings.iter();
        let errors: Vec<String> = errors
            .filter(|f| f.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        match problem {
            "" => assert!(errors.is_empty(), "{more}: {errors:?}"),
            _ => {
                assert_eq!(errors.len(), 1, "{more}: {errors:?}");
                assert!(errors[0].contains(problem), "{more}: {errors:?}");
                assert!(served.warnings > 0, "{more}: {served:?}");
            }
        }
    };
    let own = "@ NS ns1\nns1 A 192.0.2.53\n";
    refused("@ NS ns1\n", "ns1.example.com. has no address records");
    refused(
        "@ NS o.test.\n@ NS ns1\nns1 TXT x\n",
        "has no address records",
    );
    refused("@ NS ns1\nns1 CNAME a\na A 192.0.2.1\n", "is a CNAME");
    refused("@ NS q.w\n*.w CNAME b\nb A 192.0.2.1\n", "is a CNAME");
    refused("@ NS ns.d\nd DNAME x.test.\n", "is below a DNAME");
    refused(&format!("{own}*.w NS ns1\n"), "at a wildcard");
    refused("@ NS q.w\n*.w A 192.0.2.1\n", "");
    refused("@ NS ns.sub\nsub NS ns.sub\n", "");
    refused(&format!("{own}sub NS nowhere\n*.w DNAME x.test.\n"), "");
    refused(&format!("{own}m MX 1 a.d\nd DNAME x.test.\n"), "");
}

#[test]
fn a_zone_that_names_itself_is_read_as_one_whose_name_is_given() {
    let records =
        "x.test. SOA ns1 h 1 2 3 4 5\nx.test. NS ns1\nns1.x.test. A 192.0.2.1\na.x.test. MX 1 m\n";
    for (before, apex) in [
        ("$TTL 5\n", Some("x.test.")),
        ("$TTL 5\n$ORIGIN o.\n", None),
    ] {
        let text = format!("{before}{records}");
        let read = |apex: Option<&Name>| {
            load(text.as_bytes(), apex, "zone", &mut include::Nothing).expect("it is named")
        };
        let alone = read(None);
        assert_eq!(alone.apex, name("x.test."));
        let given = read(Some(&name("x.test.")));
        assert_eq!(alone.records, given.records);
        assert_eq!(alone.report, given.report);
        let server = rdata::to_text(
            RecordType::NS,
            alone.records[1].1.rdata().next().expect("one"),
        );
        assert_eq!(server == "ns1.x.test.", apex.is_some(), "{server}");
    }
}

#[test]
fn a_zone_needs_its_apex_records() {
    let loaded = load(
        b"$TTL 5\nwww A 192.0.2.1",
        Some(&example()),
        "zone",
        &mut include::Nothing,
    )
    .expect("read");
    let found: Vec<String> = loaded
        .report
        .findings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "error: zone example.com.: expected SOA records at the apex, found none",
            "error: zone example.com.: expected NS records at the apex, found none",
        ]
    );
    assert!(!loaded.report.is_loadable());
}

#[test]
fn data_outside_of_the_zone_is_left_out() {
    let text = "$TTL 5\nx.test. SOA a b 1 2 3 4 5\nx.test. NS a.\na.x.test. A 192.0.2.1\ny.test. A 192.0.2.1\n";
    let loaded = load(text.as_bytes(), None, "zone", &mut include::Nothing).expect("read");
    assert_eq!(loaded.apex, name("x.test."));
    assert_eq!(loaded.records.len(), 3);
    assert!(loaded.report.is_loadable());
    assert_eq!(loaded.report.warnings, 1);
}

#[test]
fn sets_that_fit_no_message_are_refused() {
    let more: String = (0..4_000).map(|n| format!("big TXT {n:08}\n")).collect();
    let found = judged(&more);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].contains("big.example.com. TXT: its 4000 records take 84000 octets"),
        "{found:?}"
    );
}

#[test]
fn findings_are_bounded() {
    let more: String = (0..1_000).map(|n| format!("a_{n} A 192.0.2.1\n")).collect();
    assert_eq!(judged(&more).len(), 100);
}

/// One line of `dns-cases/authoritative.jsonl.gz`, as far as it matters here.
#[derive(serde::Deserialize)]
struct Case {
    id: u64,
    zone: String,
}

/// The zones of the cases that lie beside the repository, or in `$PONTOON_CASES`.
fn shared_cases() -> Option<Vec<Case>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = ["../shared", "../../shared"].map(|up| here.join(up));
    let named = std::env::var_os("PONTOON_CASES").map(PathBuf::from);
    let file = (named.into_iter().chain(beside))
        .map(|root| root.join("dns-cases/authoritative.jsonl.gz"))
        .find(|file| file.exists());
    let Some(file) = file else {
        crate::skipped::skip("no dns-cases in ../shared or PONTOON_CASES");
        return None;
    };
    let mut lines = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(file).expect("opened"))
        .read_to_string(&mut lines)
        .expect("gzipped text");
    let case = |line| serde_json::from_str(line).expect("each line is one case");
    Some(lines.lines().map(case).collect())
}

#[test]
fn every_zone_of_the_shared_cases_is_read_and_written() {
    let Some(cases) = shared_cases() else {
        return;
    };
    assert!(!cases.is_empty());
    for case in cases {
        let loaded = load(case.zone.as_bytes(), None, "case", &mut include::Nothing)
            .unwrap_or_else(|faults| panic!("case {}: {faults}\n{}", case.id, case.zone));
        assert!(
            loaded.report.is_loadable(),
            "case {}: {:?}",
            case.id,
            loaded.report
        );
        let written = write(
            &loaded.apex,
            loaded.records.iter().map(|(o, s)| (o.clone(), s)),
        );
        let back = parse(
            written.as_bytes(),
            &Name::root(),
            "case",
            &mut include::Nothing,
        );
        assert_eq!(
            back.map(|b| contents(b.records)),
            Ok(contents(loaded.records)),
            "case {}",
            case.id
        );
    }
}

/// A zone with every type and the less usual syntax, such that BIND takes it too.
fn zone_of_everything() -> String {
    let mut text = String::from(
        "$TTL 1h\n@ SOA ns1 host\\.master 1 2h 30m 2w 1d\n@ NS ns1\nns1 A 192.0.2.1\n\
         $GENERATE 0-31/8 ${0,2,x}.gen 300 A 192.0.2.$\n$GENERATE 1-3 ${15,7,n}.rev PTR host-${-1,3,d}\n\
         $GENERATE 7-8 q$ CAA \"0 issue \\\"ca$.example\\\"\"\n\
         $GENERATE 1-3 neg$ TXT \"${-5,0,x} ${-5,12,X} ${-5,0,o} ${-5,4,n} ${-5,12,N} ${-5,3,d}\"\n\
         twice 1h1h A 192.0.2.1\n\
         odd\\.\\032\\000\\255\\;\\\"\\(\\)\\@\\$name TXT \"\\\"\\\\\\000\\200;\" a\\\"b \"\"\n",
    );
    // BIND 9.18 does not know this parameter.
    let unknown = |text: &str| text.contains("ohttp");
    for (number, (kind, data, _)) in rdata::tests::TEXTS.iter().enumerate() {
        if !matches!(*kind, "SOA" | "NULL") && !unknown(data) {
            text.push_str(&format!("t{number} {number} IN {kind} ({data})\n"));
        }
    }
    text
}

/// The zone as `named-compilezone` understands it, a record a line; none when there is no such program.
fn as_bind_reads(text: &str) -> Option<Vec<String>> {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("zone");
    std::fs::write(&file, text).expect("written");
    let mut command = Command::new("named-compilezone");
    command.args([
        "-i",
        "none",
        "-k",
        "ignore",
        "-s",
        "full",
        "-o",
        "-",
        "example.com",
    ]);
    let output = match command.arg(&file).output() {
        Ok(output) => output,
        Err(error) => {
            crate::skipped::skip(format!("named-compilezone: {error} (Debian: bind9-utils)"));
            return None;
        }
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{text}");
    let lines = String::from_utf8(output.stdout).expect("ASCII");
    let records = lines.lines().filter(|line| !line.starts_with(';'));
    let mut lines: Vec<String> = records.map(str::to_owned).collect();
    // We fold the case of names, BIND does not.
    lines.sort_by_key(|line| line.to_ascii_lowercase());
    Some(lines)
}

#[test]
fn bind_understands_both_forms_alike() {
    let text = zone_of_everything();
    let zone = read(&text).unwrap_or_else(|faults| panic!("{faults}"));
    let written = write(&example(), zone.records.iter().map(|(o, s)| (o.clone(), s)));
    let Some(given) = as_bind_reads(&text) else {
        return;
    };
    let ours = as_bind_reads(&written).expect("the program was there a moment ago");
    assert_eq!((given.len(), ours.len()), (lines(&zone).len(), given.len()));
    for (given, ours) in given.iter().zip(&ours) {
        assert!(given.eq_ignore_ascii_case(ours), "{given}\n{ours}");
    }
    // And what BIND writes is the same zone to us.
    let theirs = read(given.join("\n")).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(contents(theirs.records), contents(zone.records));
}
