//! Our answers against those on which BIND, Knot, NSD and PowerDNS agree.

use std::{collections::BTreeSet, io::Read, path::PathBuf, process::Command};

use crate::model::rrset::RecordType;

use super::{
    message::{flag, upstream::Message},
    respond::{Client, Identity, Response, Transport, respond},
    testing::{lines, query, snapshot},
};

#[derive(serde::Deserialize)]
struct Case {
    id: u64,
    zone: String,
    qname: String,
    qtype: String,
    expect: Expected,
}

#[derive(serde::Deserialize)]
struct Expected {
    rcode: String,
    flags: Vec<String>,
    answer: Vec<String>,
    authority: Vec<String>,
    additional: Vec<String>,
}

/// The cases, or none with a note when they are not there.
fn cases() -> Option<Vec<Case>> {
    let root = std::env::var_os("PONTOON_CASES").map(PathBuf::from);
    let roots = root.into_iter().chain(
        ["../shared", "../../shared"].map(|up| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(up)),
    );
    let path = roots
        .map(|root| root.join("dns-cases/authoritative.jsonl.gz"))
        .find(|path| path.exists());
    let Some(path) = path else {
        crate::skipped::skip("no dns-cases in ../shared or PONTOON_CASES");
        return None;
    };
    let output = Command::new("gzip")
        .arg("-dc")
        .arg(&path)
        .output()
        .expect("gzip runs");
    let mut text = String::new();
    output
        .stdout
        .as_slice()
        .read_to_string(&mut text)
        .expect("UTF-8");
    Some(
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a case"))
            .collect(),
    )
}

/// What is wrong with our answer to a case.
fn deviations(case: &Case) -> Vec<String> {
    let snapshot = snapshot(&[&case.zone]);
    let rtype = RecordType::parse(&case.qtype).expect("a type");
    let message = query(7, &case.qname, rtype, 0, Some(4096));
    let client = Client {
        address: [127, 0, 0, 1].into(),
        transport: Transport::Tcp,
    };
    let mut out = Vec::new();
    let response = respond(&snapshot, &Identity::default(), &message, client, &mut out);
    assert!(matches!(response, Response::Reply(_)), "{response:?}");
    let ours = Message::decode(&out).expect("a reply that can be read");
    let set = |lines: &[String]| lines.iter().cloned().collect::<BTreeSet<_>>();
    let mut wrong = Vec::new();
    let mut compare = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            wrong.push(format!("{what}: ours {ours}, theirs {theirs}"));
        }
    };
    compare("rcode", ours.rcode.to_string(), case.expect.rcode.clone());
    let authoritative = case.expect.flags.iter().any(|flag| flag == "AA");
    compare(
        "AA",
        (ours.flags & flag::AA != 0).to_string(),
        authoritative.to_string(),
    );
    let show = |lines: BTreeSet<String>| format!("{lines:?}");
    compare(
        "answer",
        show(set(&lines(&ours.answer))),
        show(set(&case.expect.answer)),
    );
    let positive = !case.expect.answer.is_empty();
    let apex_ns = |line: &String| positive && line.contains(" IN NS ");
    let without = |lines: &[String]| show(lines.iter().filter(|l| !apex_ns(l)).cloned().collect());
    compare(
        "authority",
        without(&lines(&ours.authority)),
        without(&case.expect.authority),
    );
    compare(
        "additional",
        show(set(&lines(&ours.additional))),
        show(set(&case.expect.additional)),
    );
    wrong
}

#[test]
fn answers_agree_with_four_servers() {
    let Some(cases) = cases() else {
        return;
    };
    let mut failed = Vec::new();
    for case in &cases {
        let wrong = deviations(case);
        if !wrong.is_empty() {
            failed.push(format!(
                "case {} {} {}\n{}  {}",
                case.id,
                case.qname,
                case.qtype,
                case.zone,
                wrong.join("\n  ")
            ));
        }
    }
    let agreed = cases.len() - failed.len();
    println!("{agreed} of {} cases agree", cases.len());
    assert!(
        failed.is_empty(),
        "{agreed} of {} cases agree\n{}",
        cases.len(),
        failed[..failed.len().min(12)].join("\n")
    );
}
