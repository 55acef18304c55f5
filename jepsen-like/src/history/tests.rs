use std::{collections::BTreeSet, io::Write, path::Path};

use super::*;
use crate::{
    checker::register::{Action, Step},
    nemesis::Kind,
    workload::Workload,
};

fn run() -> Entry {
    Entry::Run(Run {
        format: 1,
        seed: 7,
        nodes: BTreeSet::from(["n1".to_owned()]),
        ..Run::default()
    })
}

fn invoke(id: u64, at: u64) -> Entry {
    Entry::Invoke {
        id,
        process: 3,
        node: Some("n1".into()),
        at: Moment(at),
        call: Call::Write {
            key: "a".into(),
            value: Some("1".into()),
        },
    }
}

fn complete(id: u64, at: u64) -> Entry {
    Entry::Complete {
        id,
        at: Moment(at),
        outcome: Outcome::Ok,
        reply: Some(Reply::Committed {
            revision: 4,
            serial: Some(9),
        }),
        reason: None,
    }
}

/// What is read from these lines.
fn parsed(text: &[u8]) -> Result<Histories, HistoryError> {
    read_from(text, Path::new("file"))
}

fn parsed_run(text: &str) -> History {
    match parsed(text.as_bytes()) {
        Ok(Histories::Run(history)) => *history,
        other => panic!("not a run: {other:?}"),
    }
}

fn parsed_registers(text: &[u8]) -> Vec<Result<registers::RegisterHistory, HistoryError>> {
    match parsed(text) {
        Ok(Histories::Registers(histories)) => histories,
        other => panic!("not registers: {other:?}"),
    }
}

fn lines(entries: &[Entry]) -> String {
    let line = |entry| serde_json::to_string(entry).unwrap() + "\n";
    entries.iter().map(line).collect()
}

#[test]
fn what_is_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.jsonl");
    let writer = HistoryWriter::create(&path).unwrap();
    writer.append(&run()).unwrap();
    writer
        .append_all(&[invoke(1, 20), invoke(0, 10), complete(0, 15)])
        .unwrap();
    let Ok(Histories::Run(history)) = read(&path) else {
        panic!("unfinished histories can be read");
    };
    assert_eq!((history.run.seed, history.is_complete), (7, false));
    let seen: Vec<_> = (history.operations.iter())
        .map(|one| (one.id, one.outcome, one.completed))
        .collect();
    assert_eq!(
        seen,
        [
            (0, Outcome::Ok, Some(Moment(15))),
            (1, Outcome::Unknown, None)
        ]
    );

    writer.append(&Entry::End { at: Moment(30) }).unwrap();
    writer.sync().unwrap();
    assert!(matches!(read(&path), Ok(Histories::Run(history)) if history.is_complete));
    assert!(
        HistoryWriter::create(&path).is_err(),
        "a history is never overwritten"
    );
}

#[test]
fn a_history_that_does_not_say_why_it_ends_is_cut_off() {
    let at = Moment(30);
    let text = "no mac".to_owned();
    let unhealed = Unhealed {
        at,
        text: text.clone(),
        fault: None,
    };
    for (last, is_cut_off, is_complete) in [
        (invoke(0, 10), true, false),
        (Entry::End { at }, false, true),
        (Entry::Interrupted { at }, false, false),
        (Entry::Breakdown(Breakdown { at, text }), false, false),
        (Entry::Unhealed(unhealed), false, false),
    ] {
        let history = parsed_run(&lines(&[run(), last.clone()]));
        let found = (history.is_cut_off, history.is_complete);
        assert_eq!(found, (is_cut_off, is_complete), "{last:?}");
    }
}

#[test]
fn a_history_without_a_head_is_not_judged() {
    let error = parsed(lines(&[invoke(0, 10), complete(0, 15)]).as_bytes()).unwrap_err();
    assert!(matches!(error, HistoryError::Headless { .. }), "{error}");
    assert!(error.to_string().starts_with("file: it has no line"));
}

#[test]
fn a_torn_last_line_is_left_out_and_any_other_named() {
    let whole = lines(&[run(), invoke(0, 10), complete(0, 15)]);
    let torn = &whole[..whole.len() - 9];
    let history = parsed_run(torn);
    assert_eq!(history.operations[0].outcome, Outcome::Unknown);

    let error = parsed(format!("{torn}\n").as_bytes())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("file:3: not an entry of a history: "),
        "{error}"
    );
}

#[test]
fn entries_that_contradict_each_other_are_named() {
    for (entries, problem) in [
        (
            vec![run(), run()],
            "file:2: a second run (seed 7) in one file",
        ),
        (
            vec![run(), complete(0, 1)],
            "file:2: operation 0 completes and was not invoked before",
        ),
        (
            vec![run(), invoke(0, 1), invoke(0, 1)],
            "file:3: operation 0 is invoked twice",
        ),
        (
            vec![run(), invoke(0, 1), complete(0, 2), complete(0, 2)],
            "file:4: operation 0 completes twice",
        ),
        (
            vec![run(), invoke(0, 3), complete(0, 2)],
            "file:3: operation 0 completes before it was invoked",
        ),
    ] {
        let error = parsed(lines(&entries).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), problem);
    }
    let later = lines(&[run()]).replace("\"format\":1", "\"format\":2");
    let error = parsed(later.as_bytes()).unwrap_err().to_string();
    assert_eq!(error, "file:1: format 2 of a run; this program reads 1");
    assert!(matches!(parsed(b"\n\n"), Err(HistoryError::Empty { .. })));
}

/// A call and how it completed, in lines of a file.
fn completed(call: &Call, outcome: Outcome, reply: Option<Reply>) -> String {
    let Entry::Invoke { process, node, .. } = invoke(5, 10) else {
        unreachable!("written above");
    };
    let invoked = Entry::Invoke {
        id: 5,
        process,
        node,
        at: Moment(10),
        call: call.clone(),
    };
    let ended = Entry::Complete {
        id: 5,
        at: Moment(20),
        outcome,
        reply,
        reason: None,
    };
    lines(&[run(), invoked, ended])
}

#[test]
fn a_reply_that_is_missing_or_of_another_call_is_named() {
    let read = Call::Read { key: "a".into() };
    let lookup = Call::Lookup { key: "a".into() };
    let elements = Call::Elements {
        set: "s".into(),
        local: false,
        is_final: true,
    };
    let add = Call::Add {
        set: "s".into(),
        element: 1,
    };
    let key = || "k".to_owned();
    let transaction = Call::Transaction {
        members: vec![
            Micro::Read { key: key() },
            Micro::Append {
                key: key(),
                element: 4,
            },
        ],
    };
    let dns = || Reply::Dns {
        node: None,
        value: None,
        serial: None,
        stale: false,
    };
    let committed = || Reply::Committed {
        revision: 1,
        serial: None,
    };
    let lists = |lists: &[Option<&[u64]>]| {
        let lists = lists.iter().map(|list| list.map(<[u64]>::to_vec));
        Reply::Lists(lists.collect())
    };
    let owed = [
        (&read, Reply::Value(None)),
        (&lookup, dns()),
        (&elements, Reply::Elements(vec![])),
        (&add, committed()),
        (&transaction, lists(&[Some(&[1]), None])),
    ];
    for (call, reply) in &owed {
        let good = completed(call, Outcome::Ok, Some(reply.clone()));
        assert_eq!(parsed_run(&good).operations[0].reply.as_ref(), Some(reply));
        let named = |outcome, reply| {
            let text = completed(call, outcome, reply);
            let error = parsed(text.as_bytes()).unwrap_err().to_string();
            let begins = format!("file:3: operation 5, {call}: ");
            assert!(error.starts_with(&begins), "{error}");
            error
        };
        let missing = named(Outcome::Ok, None);
        assert!(missing.ends_with("it is ok and has no reply"), "{missing}");
        for (_, other) in owed.iter().filter(|(other, _)| other != call) {
            let wrong = named(Outcome::Ok, Some(other.clone()));
            assert!(wrong.contains("its reply has to be of the kind"), "{wrong}");
        }
        for outcome in [Outcome::Fail, Outcome::Unknown] {
            named(outcome, Some(reply.clone()));
        }
    }
    for wrong in [
        lists(&[Some(&[1])]),
        lists(&[None, None]),
        lists(&[Some(&[1]), Some(&[])]),
    ] {
        let text = completed(&transaction, Outcome::Ok, Some(wrong.clone()));
        assert!(parsed(text.as_bytes()).is_err(), "{wrong:?}");
    }
}

#[test]
fn a_process_is_not_used_again_after_an_unknown_outcome() {
    let by_another = |id, at| match invoke(id, at) {
        Entry::Invoke { node, call, .. } => Entry::Invoke {
            id,
            process: 4,
            node,
            at: Moment(at),
            call,
        },
        other => other,
    };
    let unknown = Entry::Complete {
        id: 0,
        at: Moment(15),
        outcome: Outcome::Unknown,
        reply: None,
        reason: Some("no answer in time".into()),
    };
    let ended = [run(), invoke(0, 10), unknown, by_another(1, 20)];
    assert_eq!(parsed_run(&lines(&ended)).operations.len(), 2);
    let problem = "file:4: operation 2 is of process 3, whose operation 0 is of unknown outcome: it is not used again";
    let mut again = ended.to_vec();
    again[3] = invoke(2, 20);
    // One that never completed is of unknown outcome too.
    let endless = [run(), invoke(0, 10), by_another(1, 12), invoke(2, 20)];
    for entries in [again, endless.to_vec()] {
        let error = parsed(lines(&entries).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), problem);
    }
    let sound = [run(), invoke(0, 10), complete(0, 15), invoke(2, 20)];
    assert_eq!(parsed_run(&lines(&sound)).operations.len(), 2);
}

const REGISTER: &str = r#"{"id": 5, "linearizable": true, "events": [[0, "invoke", "read", "nil"],
 [1, "invoke", "write", "4"], [0, "ok", "read", "nil"], [1, "info", "write", "4"], [2, "invoke", "cas", "[4 2]"],
 [2, "fail", "cas", "[4 2]"], ["r", "invoke", "cas", [4, 7]], ["r", "ok", "cas", [4, 7]], [0, "invoke", "read", null]]}"#;

#[test]
fn recorded_registers_are_read_plain_or_compressed() {
    let line = REGISTER.replace('\n', "") + "\n";
    let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    packed.write_all(line.as_bytes()).unwrap();
    for text in [line.clone().into_bytes(), packed.finish().unwrap()] {
        let histories = parsed_registers(&text);
        let [Ok(history)] = histories.as_slice() else {
            panic!("one history");
        };
        assert_eq!(history.id, 5);
        assert_eq!(history.values, ["nil", "4", "2", "7"]);
        let step = |operation, invoked, completed, action| Step {
            operation,
            invoked,
            completed,
            action,
        };
        let swap = Action::CompareAndSet {
            expected: 1,
            new: 3,
        };
        let refused = Action::Refused {
            expected: 1,
            new: 2,
        };
        assert_eq!(
            history.steps,
            [
                step(0, 0, Some(2), Action::Read(Some(0))),
                step(1, 1, None, Action::Write(1)),
                step(2, 4, Some(5), refused),
                step(3, 6, Some(7), swap),
                step(4, 8, None, Action::Read(None)),
            ]
        );
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_history() {
    let packed = |text: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        packed.write_all(text).unwrap();
        packed.finish().unwrap()
    };
    let mark = "\u{feff}";
    let register = REGISTER.replace('\n', "");
    let registers = format!("{mark}{register}\n{register}\n");
    for text in [registers.clone().into_bytes(), packed(registers.as_bytes())] {
        let histories = parsed_registers(&text);
        assert_eq!(histories.len(), 2);
        assert!(histories.iter().all(Result::is_ok), "{histories:?}");
    }
    let whole = lines(&[run(), Entry::End { at: Moment(3) }]);
    let marked = format!("{mark}{whole}");
    for text in [marked.clone().into_bytes(), packed(marked.as_bytes())] {
        assert!(matches!(parsed(&text), Ok(Histories::Run(history)) if history.is_complete));
        let head = read::head_from(text.as_slice(), Path::new("file"));
        assert_eq!(head.unwrap().unwrap().seed, 7);
    }
    // Before a line of its own, and where there is nothing else.
    assert!(matches!(
        parsed(format!("{mark}\n{whole}").as_bytes()),
        Ok(Histories::Run(_))
    ));
    assert!(matches!(
        parsed(mark.as_bytes()),
        Err(HistoryError::Empty { .. })
    ));
    // It marks a beginning and nothing else.
    let within = parsed(format!("{whole}{mark}{whole}").as_bytes()).unwrap_err();
    assert!(within.to_string().starts_with("file:3: "), "{within}");
}

#[test]
fn a_head_that_names_what_there_is_not_is_refused() {
    let head = |workloads: &[&str], nemeses: &[&str]| {
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let head = Entry::Run(Run {
            format: 1,
            workloads: named(workloads),
            nemeses: named(nemeses),
            ..Run::default()
        });
        lines(&[head])
    };
    let workloads: Vec<_> = Workload::ALL.iter().map(|one| one.name()).collect();
    let faults: Vec<_> = Kind::ALL.iter().map(|one| one.name()).collect();
    assert!(parsed(head(&workloads, &faults).as_bytes()).is_ok());
    for (workloads, nemeses, problem) in [
        (
            &["set", "flood"][..],
            &[][..],
            "no workload is named `flood`;",
        ),
        (
            &["set"],
            &["kill", "melt", "burn"],
            "no fault is named `burn`, `melt`;",
        ),
        (
            &["all"],
            &["none"],
            "no workload is named `all`; no fault is named `none`;",
        ),
    ] {
        let text = head(workloads, nemeses);
        let errors = [
            parsed(text.as_bytes()).unwrap_err(),
            read::head_from(text.as_bytes(), Path::new("file")).unwrap_err(),
        ];
        for error in errors {
            let said = error.to_string();
            assert!(said.starts_with("file:1: the head of the run: "), "{said}");
            assert!(said.contains(problem), "{said}");
        }
    }
}

#[test]
fn what_the_disk_does_not_take_is_kept_and_the_file_ends_with_a_whole_line() {
    let directory = tempfile::tempdir().unwrap();
    let entries = [
        run(),
        invoke(0, 10),
        complete(0, 15),
        Entry::End { at: Moment(30) },
    ];
    let text = lines(&entries);
    for room in 0..=text.len() {
        let path = directory.path().join(room.to_string());
        let writer = HistoryWriter::onto(FullDisk::create(&path, room));
        let failures = entries.iter().filter(|entry| writer.append(entry).is_err());
        assert_eq!(
            failures.count(),
            usize::from(room < text.len()),
            "room {room}"
        );
        let rest = writer.take_rest().unwrap();
        let mut whole = std::fs::read(&path).unwrap();
        assert_eq!(rest.written, whole.len() as u64);
        assert!(whole.len() <= room);
        assert!(whole.is_empty() || whole.ends_with(b"\n"));
        whole.extend(rest.lines);
        assert_eq!(String::from_utf8(whole).unwrap(), text);
    }
}

#[test]
fn a_bad_line_among_registers_leaves_the_others() {
    let good = REGISTER.replace('\n', "");
    for (events, problem) in [
        (
            r#"[[0,"ok","read","1"]]"#,
            "event 1: process 0 completes and has no operation under way",
        ),
        (
            r#"[[0,"invoke","cas","3"]]"#,
            "event 1: \"3\" is not the value of a cas: [EXPECTED NEW]",
        ),
        (
            r#"[[0,"invoke","append","3"]]"#,
            "event 1: \"append\" is not read, write or cas",
        ),
        (
            r#"[[0,"begin","read","3"]]"#,
            "event 1: \"begin\" is not invoke, ok, fail or info",
        ),
        (
            r#"[[0,"invoke","read","nil"],[0,"invoke","read","nil"]]"#,
            "event 2: process 0 invokes while it has an operation under way",
        ),
        (
            r#"[[0,"invoke","read","nil"],[0,"ok","write","3"]]"#,
            "event 2: process 0 completes a write and had invoked a read",
        ),
        (
            r#"[[0,"invoke","write","3"],[0,"ok","write","4"]]"#,
            "event 2: process 0 completes a write of 4 and had invoked one of 3",
        ),
        (
            r#"[[0,"invoke","cas","[1 3]"],[0,"ok","cas","[1 4]"]]"#,
            "event 2: process 0 completes a cas of [1 4] and had invoked one of [1 3]",
        ),
        (
            r#"[[0,"invoke","cas","[1 3]"],[0,"fail","cas","[2 3]"]]"#,
            "event 2: process 0 completes a cas of [2 3] and had invoked one of [1 3]",
        ),
        (
            r#"[[0,"invoke","write","3"],[0,"info","write","3"],[0,"invoke","read","nil"]]"#,
            "event 3: process 0 is used again after an operation of unknown outcome",
        ),
    ] {
        let text = format!("{good}\n{{\"id\":6,\"events\":{events}}}\n{good}\n");
        let histories = parsed_registers(text.as_bytes());
        let [Ok(_), Err(error), Ok(_)] = histories.as_slice() else {
            panic!("three lines");
        };
        assert_eq!(error.to_string(), format!("file:2: {problem}"));
    }
    let [Err(error)] = &parsed_registers(b"hello\n")[..] else {
        panic!("one line");
    };
    assert!(
        error
            .to_string()
            .starts_with("file:1: not a history of a register")
    );
}

#[test]
fn a_word_may_stand_for_a_value_that_is_not_known() {
    for events in [
        r#"[[0,"invoke","write","3"],[0,"info","write",":timed-out"]]"#,
        r#"[[0,"invoke","cas","[1 3]"],[0,"info","cas",":timed-out"]]"#,
        r#"[[0,"invoke","cas","[1 3]"],[0,"fail","cas",":refused"]]"#,
        r#"[[0,"invoke","cas","[1 3]"],[0,"ok","cas",[1,3]]]"#,
        r#"[[0,"invoke","read","nil"],[0,"fail","read",":timed-out"],[0,"invoke","read","nil"]]"#,
        r#"[[0,"invoke","write","3"],[0,"ok","write",null],[0,"invoke","cas","[3 4]"],[0,"ok","cas","nil"]]"#,
        r#"[[0,"invoke","cas",[1,2]],[0,"fail","cas",null],[0,"invoke","cas",[1,2]],[0,"fail","cas","precondition failed"]]"#,
        r#"[["nemesis","info","start",null],[":nemesis","info","stop"],[0,":invoke",":read"],[0,":ok",":read",1]]"#,
    ] {
        let text = format!("{{\"id\":6,\"events\":{events}}}\n");
        let histories = parsed_registers(text.as_bytes());
        assert!(matches!(histories.as_slice(), [Ok(_)]), "{histories:?}");
    }
}

#[test]
fn what_a_cas_that_failed_has_seen_is_known_only_if_it_says_so() {
    for (value, has_seen) in [
        (r#""[1 2]""#, true),
        ("[1,2]", true),
        (r#"":timed-out""#, false),
        ("null", false),
    ] {
        let events = format!(r#"[[0,"invoke","cas",[1,2]],[0,"fail","cas",{value}]]"#);
        let text = format!("{{\"id\":6,\"events\":{events}}}\n");
        let histories = parsed_registers(text.as_bytes());
        let [Ok(history)] = histories.as_slice() else {
            panic!("{histories:?}");
        };
        let is_refused = matches!(history.steps[0].action, Action::Refused { .. });
        assert_eq!(is_refused, has_seen, "{value}");
    }
}

#[test]
fn bytes_that_are_no_text_leave_the_lines_beside_them() {
    let good = REGISTER.replace('\n', "");
    let text = [good.as_bytes(), b"\n\xff\xfe\n", good.as_bytes(), b"\n"].concat();
    let histories = parsed_registers(&text);
    let [Ok(_), Err(error), Ok(_)] = histories.as_slice() else {
        panic!("three lines: {histories:?}");
    };
    assert_eq!(error.to_string(), "file:2: not UTF-8");
    let first = [&b"\xff\n"[..], good.as_bytes()].concat();
    assert!(matches!(
        parsed_registers(&first).as_slice(),
        [Err(_), Ok(_)]
    ));
}

#[test]
fn a_compressed_file_that_was_cut_off_gives_what_came_before() {
    // Two members: the second one is cut.
    let pack = |text: &str| {
        let mut packed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap()
    };
    let line = REGISTER.replace('\n', "") + "\n";
    let mut text = pack(&line);
    let second = pack(&line);
    text.extend_from_slice(&second[..second.len() / 2]);
    let histories = parsed_registers(&text);
    let [Ok(_), Err(HistoryError::Io { .. })] = histories.as_slice() else {
        panic!("a line and the end: {histories:?}");
    };
}

#[test]
fn a_line_that_was_cut_within_a_letter_is_left_out_too() {
    let whole = lines(&[run(), invoke(0, 10)]);
    let torn = [
        whole.as_bytes(),
        b"{\"entry\":\"notice\",\"text\":\"\xe2\x82",
    ]
    .concat();
    let Ok(Histories::Run(history)) = parsed(&torn) else {
        panic!("a torn last line is left out");
    };
    assert_eq!(history.operations.len(), 1);
}

#[test]
fn the_head_of_a_run_is_read_without_what_follows() {
    let head = |text: &[u8]| read::head_from(text, Path::new("file"));
    let text = [lines(&[run()]).as_bytes(), b"no entry at all\n"].concat();
    assert_eq!(head(&text).unwrap().unwrap().seed, 7);
    assert!(
        head(REGISTER.replace('\n', "").as_bytes())
            .unwrap()
            .is_none()
    );
    assert!(head(lines(&[invoke(0, 1)]).as_bytes()).unwrap().is_none());
    assert!(matches!(head(b""), Err(HistoryError::Empty { .. })));
}

#[test]
fn bytes_that_only_look_compressed_are_an_error() {
    let error = parsed(&[0x1f, 0x8b, 8, 0, 1, 2, 3]).unwrap_err();
    assert!(matches!(error, HistoryError::Io { .. }), "{error}");
}

#[test]
fn why_a_fault_was_not_injected_is_read_as_it_was_written() {
    let fault = |skipped| {
        Entry::Fault(Fault {
            kind: "vip-move".into(),
            nodes: BTreeSet::new(),
            began: Moment(5),
            healed: None,
            hit_leader: false,
            skipped: Some(skipped),
        })
    };
    let missed = || Skip::Missed {
        missed: "n2 lags".into(),
    };
    let text = lines(&[run(), fault("no tool".into()), fault(missed())]);
    // What cannot be injected is a plain reason, as in histories of before.
    assert!(text.contains(r#""skipped":"no tool""#), "{text}");
    let read: Vec<_> = (parsed_run(&text).faults.into_iter())
        .filter_map(|fault| fault.skipped)
        .collect();
    assert_eq!(read, [Skip::Impossible("no tool".into()), missed()]);
}

#[test]
fn a_fault_that_its_run_cannot_have_had_is_refused_with_its_line() {
    let fault = |node: &str, began, healed| {
        Entry::Fault(Fault {
            kind: "kill".into(),
            nodes: [node.to_owned()].into(),
            began: Moment(began),
            healed: Some(Moment(healed)),
            hit_leader: true,
            skipped: None,
        })
    };
    let late = 10_000_000_000;
    let at = Moment(30);
    let text = || "no mac".to_owned();
    let ends = [
        Entry::End { at },
        Entry::Interrupted { at },
        Entry::Breakdown(Breakdown { at, text: text() }),
        Entry::Unhealed(Unhealed {
            at,
            text: text(),
            fault: None,
        }),
    ];
    for end in ends {
        let read = |bad: Entry| {
            let entries = [run(), fault("n1", 5, 6), bad, end.clone()];
            parsed(lines(&entries).as_bytes())
        };
        assert!(read(fault("n1", 7, 30)).is_ok());
        for (bad, problem) in [
            (fault("n1", 7, 6), "before it began"),
            (fault("n1", 31, 32), "after the end of the run"),
            (fault("n1", 7, late), "after the end of the run"),
            (fault("n7", 7, 8), "it names `n7`"),
        ] {
            let said = read(bad).unwrap_err().to_string();
            let is_told = said.starts_with("file:3: kill on n") && said.contains(problem);
            assert!(is_told, "{said}");
        }
    }
    // Where nobody knows when the run ended, and where its end is earlier in the file.
    assert!(parsed(lines(&[run(), fault("n1", 7, late)]).as_bytes()).is_ok());
    let turned = [run(), Entry::End { at }, fault("n1", 7, late)];
    let said = parsed(lines(&turned).as_bytes()).unwrap_err().to_string();
    assert!(said.starts_with("file:3: "), "{said}");
    // Before the run began.
    let negative = lines(&[run(), fault("n1", 7, 8)]).replace("\"began\":7", "\"began\":-7");
    let said = parsed(negative.as_bytes()).unwrap_err().to_string();
    assert!(
        said.starts_with("file:2: ") && said.contains("-7"),
        "{said}"
    );
}

#[test]
fn a_fault_that_this_program_does_not_have_is_refused_but_for_those_of_a_self_test() {
    let fault = |kind: &str| {
        Entry::Fault(Fault {
            kind: kind.into(),
            nodes: ["n1".to_owned()].into(),
            began: Moment(5),
            healed: Some(Moment(6)),
            hit_leader: true,
            skipped: None,
        })
    };
    let head = |self_test| {
        Entry::Run(Run {
            format: 1,
            self_test,
            ..Run::default()
        })
    };
    let read = |self_test, kind| parsed(lines(&[head(self_test), fault(kind)]).as_bytes());
    assert!(read(None, "kill").is_ok());
    let said = read(None, "lost-writes").unwrap_err().to_string();
    assert!(
        said.starts_with("file:2: no fault is named `lost-writes`;"),
        "{said}"
    );
    let test = SelfTest {
        scenario: "power".into(),
        defect: None,
    };
    assert!(read(Some(test), "lost-writes").is_ok());
}
