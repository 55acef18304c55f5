//! Command lines against an API in this process: what is parsed, written, refused and how it ends.

use std::{fs, sync::atomic::Ordering};

use serde_json::{Value, json};

use super::*;
use crate::{
    api::{group::Group, testing::Served},
    model::{
        node::NodeId,
        pool::{Backend, BackendState},
    },
    state::command::{Change, JoinToken, NewMember, Secret, UnixMillis},
    wire::error::FailureCode,
};

/// Runs a command line; its JSON, or its failure's exit code and `code`.
async fn run(served: &Served, line: &[&str]) -> Result<Value, (u8, &'static str)> {
    let text = run_as(served, Format::Json, line).await?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line:?}: {e}: {text}")))
}

async fn run_as(
    served: &Served,
    format: Format,
    line: &[&str],
) -> Result<String, (u8, &'static str)> {
    let (ended, text) = run_at(&served.address.to_string(), format, line).await;
    ended.map(|()| text)
}

/// How it ends, and what it wrote to stdout even so.
async fn run_both(served: &Served, line: &[&str]) -> (Result<(), (u8, &'static str)>, String) {
    run_at(&served.address.to_string(), Format::Json, line).await
}

async fn run_at(
    endpoints: &str,
    format: Format,
    line: &[&str],
) -> (Result<(), (u8, &'static str)>, String) {
    let words = [
        &["pontoon", "--endpoints", endpoints, "--timeout", "60s"],
        line,
    ]
    .concat();
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let cli = parse(&words).unwrap_or_else(|e| panic!("{line:?}: {e}"));
    let context = Context {
        global: cli.global,
        out: Out::keeping(format),
    };
    let ended = cli.command.run_client(&context).await.map_err(|failure| {
        assert!(
            !failure.object.is_empty() && !failure.problem.is_empty(),
            "{failure:?}"
        );
        (exit::code_of(&failure).0, failure.code.as_str())
    });
    (ended, context.out.take())
}

fn parses(line: &str) -> Result<(), clap::error::ErrorKind> {
    let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    parse(&words).map(|_| ()).map_err(|e| e.kind())
}

#[test]
fn the_declarations_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_of_the_contract_is_there() {
    for line in [
        "dev",
        "dev --nodes 3 --dir /tmp/d --port-base 5300 --empty",
        "node --config node.toml",
        "node --config node.toml --check",
        "node run --config node.toml",
        "node reload",
        "node probe",
        "node -o json probe",
        "node --endpoints unix:/run/p.sock reload",
        "node --timeout 3s run --config node.toml",
        "cluster init --config node.toml",
        "cluster token create",
        "cluster token list",
        "cluster token delete 0123",
        "cluster join --token a.b.c --peer 10.0.0.1:7401 --config node.toml",
        "cluster leave",
        "cluster remove 3",
        "cluster status -o json",
        "cluster transfer",
        "cluster transfer 2",
        "cluster transfer --to 2",
        "cluster promote 4",
        "cluster profile show",
        "cluster profile set fast",
        "cluster profile set --heartbeat 30ms --election-timeout-min 150ms --election-timeout-max 240ms",
        "cluster admin create ann",
        "cluster admin create ann --admin-dir d",
        "cluster ca rotate",
        "zone create example.com",
        "zone list",
        "zone show example.com",
        "zone import example.com f.zone --if-serial 3",
        "zone export example.com",
        "zone check f.zone",
        "zone delete example.com",
        "zone history example.com",
        "zone diff example.com 1 2",
        "zone rollback example.com 7",
        "record set example.com www A 192.0.2.1 --ttl 60 --if-serial 4",
        "record add example.com www A 192.0.2.1 192.0.2.2",
        "record delete example.com www A",
        "record list example.com",
        "record list example.com www A",
        "record batch -f changes.txt",
        "pool create web --backend 10.0.0.1:80",
        "pool list",
        "pool show web",
        "pool delete web",
        "pool backend add web 10.0.0.1:80",
        "pool backend remove web b1",
        "pool backend set web b1 --weight 5",
        "pool backend drain web b1",
        "listener create web --port 80 --pool web",
        "listener list",
        "listener show web",
        "listener delete web",
        "vip add 192.0.2.1",
        "vip remove 192.0.2.1",
        "vip list",
        "vip move",
        "vip move 2",
        "vip move --to n2",
        "vip uninstall",
        "forwarder create . 9.9.9.9",
        "forwarder list",
        "forwarder delete .",
        "dns query www.example.com",
        "dns query www.example.com AAAA --all",
        "dns stats --node 1",
        "dns flush www.example.com --subtree",
        "plan -f site.toml",
        "apply -f site.toml",
        "export",
        "backup -f b",
        "restore b --config node.toml",
        "recover --config node.toml --force",
        "watch --from 3",
        "completion bash",
        "man",
        "zone list --endpoints 127.0.0.1:5401,http://127.0.0.1:5402 --timeout 3s --consistency linearizable",
    ] {
        assert_eq!(parses(&format!("pontoon {line}")), Ok(()), "{line}");
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    for line in [
        "",
        "frobnicate",
        "zone",
        "zone create",
        "zone create a..b",
        "zone rollback example.com x",
        "record set example.com www A",
        "record set example.com www BOGUS x",
        "record set example.com www A 192.0.2.1 --ttl -1",
        "pool backend set web b1",
        "pool backend add web 10.0.0.1",
        "listener create web --pool web",
        "listener create web --pool web --port 0",
        "vip add 192.0.2.300",
        "cluster join --token x",
        "zone list --timeout 0s",
        "zone list -o yaml",
        "zone list --endpoints nohost",
        "zone list --endpoints ,",
        "zone list --endpoints=",
        "zone list --endpoints http://192.0.2.1:1",
        "zone history example.com --limit 0",
        "dns flush --subtree",
        "node --config node.toml probe",
        "node --check run",
        "cluster status --consistency linearizable",
        "cluster profile show --consistency linearizable",
        "watch --consistency linearizable",
        "cluster admin create a/b",
    ] {
        let error = parse(
            &format!("pontoon {line}")
                .split(' ')
                .map(OsString::from)
                .collect::<Vec<_>>(),
        );
        let error = error.expect_err(line);
        assert!(error.use_stderr(), "{line}");
        assert_eq!(exit::usage(&error).code.as_str(), "usage");
    }
    for help in ["--help", "zone --help", "record set --help", "--version"] {
        assert!(parses(&format!("pontoon {help}")).is_err_and(|kind| {
            matches!(
                kind,
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion
            )
        }));
    }
}

#[tokio::test]
async fn zones_and_records_live_their_lives() {
    let served = Served::start().await;
    let made = run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    assert_eq!(made["changed"], true);
    assert_eq!(
        made["zones"],
        json!([{"zone": "example.com.", "serial": 1}])
    );
    assert_eq!(
        run(&served, &["zone", "create", "example.com"]).await,
        Err((1, "already_exists"))
    );

    let set = [
        "record",
        "set",
        "example.com",
        "www",
        "A",
        "192.0.2.1",
        "--ttl",
        "60",
    ];
    let written = run(&served, &set).await.expect("set");
    assert_eq!(written["zones"][0]["serial"], 2);
    let again = run(&served, &set).await.expect("nothing to change");
    assert_eq!(again["changed"], false);
    let added = [
        "record",
        "add",
        "example.com",
        "www",
        "A",
        "192.0.2.2",
        "--if-serial",
        "2",
    ];
    run(&served, &added).await.expect("added");
    assert_eq!(run(&served, &added).await, Err((1, "precondition_failed")));

    let listed = run(&served, &["record", "list", "example.com", "www"])
        .await
        .expect("listed");
    assert_eq!(
        listed["records"],
        json!([{"name": "www.example.com.", "type": "A", "ttl": 60, "data": ["192.0.2.1", "192.0.2.2"]}])
    );
    assert_eq!(listed["serial"], 3);
    let diff = run(&served, &["zone", "diff", "example.com", "2", "3"])
        .await
        .expect("differs");
    assert_eq!(
        (&diff["revision"], &diff["stale"]),
        (&listed["revision"], &json!(false))
    );
    assert_eq!(diff["removed"][0]["data"], json!(["192.0.2.1"]));
    assert_eq!(diff["added"][0]["data"], json!(["192.0.2.1", "192.0.2.2"]));
    let history = run(&served, &["zone", "history", "example.com"])
        .await
        .expect("history");
    let serials: Vec<u64> = history["versions"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|v| v["serial"].as_u64())
        .collect();
    assert_eq!(serials, [3, 2, 1]);
    assert_eq!(history["versions"][0]["author"], "dev");

    run(&served, &["zone", "rollback", "example.com", "2"])
        .await
        .expect("taken back");
    let listed = run(&served, &["record", "list", "example.com", "www", "A"])
        .await
        .expect("listed");
    assert_eq!(listed["records"][0]["data"], json!(["192.0.2.1"]));
    assert_eq!(listed["serial"], 4);
    run(&served, &["record", "delete", "example.com", "www", "ANY"])
        .await
        .expect("deleted");
    let listed = run(&served, &["record", "list", "example.com", "www"])
        .await
        .expect("listed");
    assert_eq!(listed["records"], json!([]));

    let zones = run(&served, &["zone", "list"]).await.expect("listed");
    assert_eq!(zones["zones"][0]["zone"], "example.com.");
    assert_eq!(zones["zones"][0]["records"], 2);
    run(&served, &["zone", "delete", "example.com"])
        .await
        .expect("deleted");
    assert_eq!(
        run(&served, &["zone", "show", "example.com"]).await,
        Err((1, "not_found"))
    );
    let anew = run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made anew");
    assert_eq!(anew["zones"][0]["serial"], 6, "a serial never goes back");
}

#[tokio::test]
async fn master_files_come_and_go() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (file, out) = (dir.path().join("in.zone"), dir.path().join("out.zone"));
    let (file_arg, out_arg) = (file.to_str().expect("plain"), out.to_str().expect("plain"));
    let text = "$TTL 300\n@ SOA ns1 host 7 1h 15m 2w 5m\n@ NS ns1\nns1 A 192.0.2.53\n$GENERATE 1-3000 h$ A 192.0.2.1\n";
    fs::write(&file, text).expect("written");
    let checked = run(
        &served,
        &["zone", "check", file_arg, "--origin", "example.org"],
    )
    .await
    .expect("fine");
    assert_eq!(
        (&checked["ok"], &checked["serial"]),
        (&json!(true), &json!(7))
    );
    let imported = run(&served, &["zone", "import", "example.org", file_arg])
        .await
        .expect("imported");
    assert_eq!(imported["zones"][0]["serial"], 7);
    run(&served, &["zone", "export", "example.org", "-f", out_arg])
        .await
        .expect("exported");
    let again = run(&served, &["zone", "import", "example.org", out_arg])
        .await
        .expect("same");
    assert_eq!(again["changed"], false);
    let shown = run(&served, &["zone", "show", "example.org"])
        .await
        .expect("shown");
    assert_eq!(shown["record_count"], 3003);
    assert_eq!(shown["records"].as_array().map(Vec::len), Some(3003));

    fs::write(
        &file,
        "@ SOA broken\nx 60 A 1\ny 60 A 192.0.2.1\ny 60 CNAME x\n",
    )
    .expect("written");
    let (check, out) = run_both(
        &served,
        &["zone", "check", file_arg, "--origin", "example.org"],
    )
    .await;
    assert_eq!(check, Err((1, "invalid")));
    let judged: Value = serde_json::from_str(&out).expect("a document even so");
    assert_eq!(judged["ok"], false);
    let findings = judged["findings"].as_array().expect("a list");
    let lines: Vec<u64> = findings.iter().filter_map(|f| f["line"].as_u64()).collect();
    assert_eq!(
        lines,
        [1, 2, 4],
        "what cannot be read, and what contradicts: {judged}"
    );
    assert_eq!(judged["errors"], 4, "and no NS: {judged}");
    // Whose names these are, nobody has said.
    assert_eq!(
        run(&served, &["zone", "check", file_arg]).await,
        Err((1, "invalid"))
    );
    assert_eq!(
        run(&served, &["zone", "import", "example.org", file_arg]).await,
        Err((1, "invalid"))
    );
    assert_eq!(
        run(&served, &["zone", "import", "example.org", "/absent"]).await,
        Err((1, "not_found"))
    );
}

/// What is left out of an import is told to programs too, in their form.
#[tokio::test]
async fn warnings_are_objects_with_json() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("plain").to_owned()
    };
    let zone = "$TTL 300\n@ SOA ns1 host 7 1h 15m 2w 5m\n@ NS ns1\nns1 A 192.0.2.53\nwww.example.net. A 192.0.2.1\n";
    let zone = file("in.zone", zone);
    let batch = file("batch", "set example.org b\u{fc}cher A 192.0.2.1\n");
    let site = "[[zone]]\nname = \"example.org\"\nfile = \"in.zone\"\n";
    let site = file("site.toml", site);
    for line in [
        format!("zone import example.org {zone}"),
        format!("record batch -f {batch}"),
        "zone create example.test".to_owned(),
        "forwarder create example.org 192.0.2.1".to_owned(),
        format!("plan -f {site}"),
        format!("apply -f {site} --if-revision 1"),
    ] {
        let address = served.address.to_string();
        let words = ["pontoon", "-o", "json", "--endpoints", &address];
        let words: Vec<OsString> = words
            .into_iter()
            .chain(line.split(' '))
            .map(OsString::from)
            .collect();
        let cli = parse(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
        let context = Context {
            global: cli.global,
            out: Out::keeping(Format::Json),
        };
        if let Err(failure) = cli.command.run_client(&context).await {
            context.out.failure(&failure);
        }
        let told = context.out.take_remarks();
        let told: Vec<Value> = told
            .lines()
            .map(|object| {
                serde_json::from_str(object).unwrap_or_else(|e| panic!("{line}: {e}: {told}"))
            })
            .collect();
        assert!(told[0]["warning"].is_string(), "{line}: {told:?}");
        let refused = line.contains("--if-revision");
        assert_eq!(
            told.last().is_some_and(|o| o["code"].is_string()),
            refused,
            "{line}: {told:?}"
        );
    }
}

#[tokio::test]
async fn a_large_zone_goes_up_in_chunks() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("large.zone");
    let text = "$TTL 300\n@ SOA ns1 host 1 1h 15m 2w 5m\n@ NS ns1\nns1 A 192.0.2.53\n$GENERATE 1-60000 a-rather-long-name-$ TXT some-text-for-$\n";
    fs::write(&file, text).expect("written");
    run(
        &served,
        &[
            "zone",
            "import",
            "example.org",
            file.to_str().expect("plain"),
        ],
    )
    .await
    .expect("imported");
    let zones = run(&served, &["zone", "list"]).await.expect("listed");
    assert_eq!(zones["zones"][0]["records"], 60_003);
}

#[tokio::test]
async fn balancing_objects_are_made_and_shown() {
    let served = Served::start().await;
    run(
        &served,
        &["pool", "create", "web", "--backend", "10.0.0.1:80"],
    )
    .await
    .expect("made");
    run(
        &served,
        &[
            "pool",
            "backend",
            "add",
            "web",
            "10.0.0.2:80",
            "--name",
            "b2",
            "--weight",
            "5",
        ],
    )
    .await
    .expect("added");
    run(&served, &["pool", "backend", "drain", "web", "10.0.0.1:80"])
        .await
        .expect("drained");
    let pool = run(&served, &["pool", "show", "web"]).await.expect("shown");
    assert_eq!(pool["policy"], "round-robin");
    let health = json!([{
        "node": 1, "health": "down", "since_ms": 61_000,
        "problem": "health check: Connection refused", "connections": 2,
    }]);
    assert_eq!(
        pool["backends"],
        json!([
            {"name": "10.0.0.1-80", "address": "10.0.0.1:80", "weight": 1, "state": "drain",
             "health": health},
            {"name": "b2", "address": "10.0.0.2:80", "weight": 5, "state": "enabled",
             "health": health},
        ])
    );
    run(
        &served,
        &["listener", "create", "web", "--port", "80", "--pool", "web"],
    )
    .await
    .expect("made");
    assert_eq!(
        run(
            &served,
            &[
                "listener", "create", "web2", "--port", "80", "--pool", "web"
            ]
        )
        .await,
        Err((1, "conflict"))
    );
    assert_eq!(
        run(&served, &["pool", "delete", "web"]).await,
        Err((1, "conflict"))
    );
    let listener = run(&served, &["listener", "show", "web"])
        .await
        .expect("shown");
    assert_eq!(
        (&listener["port"], &listener["address"]),
        (&json!(80), &Value::Null)
    );
    run(&served, &["vip", "add", "192.0.2.10"])
        .await
        .expect("added");
    let vips = run(&served, &["vip", "list"]).await.expect("listed");
    assert_eq!(
        vips["vips"],
        json!([{"address": "192.0.2.10", "interface": "vip", "holder": 1, "fence": "loopback"}])
    );
    run(&served, &["forwarder", "create", "corp.example", "9.9.9.9"])
        .await
        .expect("made");
    let forwarders = run(&served, &["forwarder", "list"]).await.expect("listed");
    assert_eq!(
        forwarders["forwarders"],
        json!([{"suffix": "corp.example.", "upstreams": ["9.9.9.9:53"], "timeout_ms": 1000}])
    );
    for gone in [
        &["listener", "delete", "web"][..],
        &["pool", "backend", "remove", "web", "b2"],
        &["pool", "delete", "web"],
        &["vip", "remove", "192.0.2.10"],
        &["forwarder", "delete", "corp.example"],
    ] {
        assert_eq!(
            run(&served, gone).await.expect("gone")["changed"],
            true,
            "{gone:?}"
        );
    }
    assert_eq!(
        run(&served, &["pool", "show", "web"]).await,
        Err((1, "not_found"))
    );
}

#[tokio::test]
async fn a_node_that_left_says_so_in_the_status() {
    let served = Served::start().await;
    let left = Failure::new(
        FailureCode::NotReady,
        "node",
        "has left its cluster",
        "join again",
    );
    *served.group.outside.lock().expect("no test panics here") = Some(left.clone());
    let endpoint = served.address.to_string();
    for line in ["cluster status", "cluster profile show", "zone list"] {
        let words = ["pontoon", "--endpoints", &endpoint];
        let words = words.into_iter().chain(line.split(' '));
        let cli = parse(&words.map(OsString::from).collect::<Vec<_>>()).expect("a command");
        let context = Context {
            global: cli.global,
            out: Out::keeping(Format::Table),
        };
        let told = cli.command.run_client(&context).await;
        assert_eq!(told, Err(left.clone()), "{line}");
    }
}

/// A backend that other nodes know, and this one may not know yet.
fn other_backend(name: &str, address: &str) -> Change {
    Change::PutBackend {
        pool: "web".parse().expect("a label"),
        backend: Backend {
            name: name.parse().expect("a label"),
            address: address.parse().expect("an address"),
            weight: 1,
            state: BackendState::Enabled,
        },
        create: true,
    }
}

#[tokio::test]
async fn a_backend_is_found_by_its_address_in_the_newest_state() {
    let served = Served::start().await;
    for line in [
        "pool create web",
        "pool backend add web 10.0.0.3:80 --name b",
    ] {
        let line: Vec<_> = line.split(' ').collect();
        run(&served, &line).await.expect("made");
    }
    // Added by another node, and acknowledged.
    served.group.fall_behind();
    let added = other_backend("c", "10.0.0.4:80");
    served.group.apply_elsewhere(vec![added]);
    let drain = ["pool", "backend", "drain", "web", "10.0.0.4:80"];
    assert_eq!(run(&served, &drain).await.expect("found")["changed"], true);

    // The name has gone to another backend.
    served.group.fall_behind();
    let gone = Change::RemoveBackend {
        pool: "web".parse().expect("a label"),
        backend: "b".parse().expect("a label"),
    };
    let added = other_backend("b", "10.0.0.9:80");
    served.group.apply_elsewhere(vec![gone, added]);
    let remove = ["pool", "backend", "remove", "web", "10.0.0.3:80"];
    let refused = run(&served, &remove).await;
    assert_eq!(refused.map_err(|(_, code)| code), Err("not_found"));
    let pool = run(&served, &["pool", "show", "web"]).await.expect("shown");
    let left: Vec<_> = pool["backends"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    let addresses: Vec<_> = left.iter().map(|b| &b["address"]).collect();
    assert_eq!(addresses, ["10.0.0.9:80", "10.0.0.4:80"]);
}

#[tokio::test]
async fn a_node_is_found_by_its_name_in_the_newest_state() {
    let served = Served::start().await;
    let id = |n: u64| NodeId(n);
    let join = |token: &str, port: u16| {
        let token = JoinToken {
            id: token.into(),
            secret_hash: Secret("0".into()),
            expires_at: UnixMillis(0),
            used_by: None,
        };
        let member = NewMember {
            name: "n2".into(),
            raft_address: ([127, 0, 0, 1], port).into(),
            api_address: ([127, 0, 0, 1], port + 1).into(),
        };
        let by = token.id.clone();
        [
            Change::CreateToken { token },
            Change::AddMember { token: by, member },
        ]
    };
    served.group.apply_elsewhere(join("a", 11).into());
    // The machine was removed, and has joined anew under another id.
    let again = |port: u64| {
        served.group.fall_behind();
        let retire = Change::RetireMember { id: id(port / 10) };
        let mut changes = vec![retire];
        changes.extend(join(&port.to_string(), u16::try_from(port).expect("small")));
        served.group.apply_elsewhere(changes);
    };
    again(21);
    let transferred = run(&served, &["cluster", "transfer", "n2"]).await;
    assert_eq!(transferred.expect("found")["leader"], 3);
    again(31);
    let promoted = run(&served, &["cluster", "promote", "n2"]).await;
    assert_eq!(promoted.expect("found")["node"], 4);
    again(41);
    run(&served, &["vip", "prefer", "n2"]).await.expect("found");
    let preference = served.group.state().preference();
    assert_eq!(preference.map(|p| p.node), Some(id(5)));
    again(51);
    // Only a member of the newest state: the group in memory then refuses for another reason.
    let removed = run(&served, &["cluster", "remove", "n2"]).await;
    assert_eq!(removed.map_err(|(_, code)| code), Err("conflict"));
    let nobody = run(&served, &["cluster", "remove", "n9"]).await;
    assert_eq!(nobody.map_err(|(_, code)| code), Err("not_found"));
    // Digits alone are an id, however many there are.
    let too_large = run(&served, &["cluster", "remove", "18446744073709551616"]).await;
    assert_eq!(too_large.map_err(|(_, code)| code), Err("usage"));
}

#[tokio::test]
async fn what_is_no_backup_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (data, config, admin) = (at("data"), at("node.toml"), at("admin"));
    let text = format!(
        "name = \"n1\"\ndata_dir = \"{data}\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:2\"\n"
    );
    fs::write(&config, text).expect("written");
    fs::write(at("garbled"), "no backup").expect("written");
    for (file, code) in [
        (at("garbled"), "invalid"),
        (at(""), "invalid"),
        (at("missing"), "not_found"),
    ] {
        let line: [&str; 6] = ["restore", &file, "--config", &config, "--admin-dir", &admin];
        let (ended, _) = run_at("127.0.0.1:1", Format::Json, &line).await;
        assert_eq!(ended.map_err(|(_, code)| code), Err(code), "{file}");
        assert!(!dir.path().join("data").exists(), "{file}");
    }
}

#[tokio::test]
async fn a_site_is_planned_applied_and_exported() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (file, out) = (dir.path().join("site.toml"), dir.path().join("out.toml"));
    let (file_arg, out_arg) = (file.to_str().expect("plain"), out.to_str().expect("plain"));
    fs::write(
        dir.path().join("db.zone"),
        "$TTL 60\n@ SOA ns1 host 3 1h 15m 2w 5m\n@ NS ns1\nns1 A 192.0.2.53\n",
    )
    .expect("written");
    fs::write(
        &file,
        "[[vip]]\naddress = \"192.0.2.10\"\n[[zone]]\nname = \"example.org\"\nfile = \"db.zone\"\n",
    )
    .expect("written");
    let planned = run(&served, &["plan", "-f", file_arg])
        .await
        .expect("planned");
    let objects: Vec<&str> = planned["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|c| c["object"].as_str())
        .collect();
    assert_eq!(planned["changes"][0]["action"], "create");
    assert!(
        objects.contains(&"vip 192.0.2.10") && objects.contains(&"zone example.org."),
        "{objects:?}"
    );
    assert_eq!(
        run(&served, &["plan", "-f", file_arg, "--exit-code"]).await,
        Err((1, "precondition_failed"))
    );
    let applied = run(&served, &["apply", "-f", file_arg])
        .await
        .expect("applied");
    assert_eq!(applied["changed"], true);
    run(&served, &["export", "-f", out_arg])
        .await
        .expect("exported");
    let same = run(&served, &["apply", "-f", out_arg]).await.expect("same");
    assert_eq!(
        (&same["changed"], &same["changes"]),
        (&json!(false), &json!([]))
    );
    let nothing = run(&served, &["plan", "-f", file_arg, "--exit-code"])
        .await
        .expect("equal");
    assert_eq!(nothing["changes"], json!([]));
    assert_eq!(
        run(&served, &["apply", "-f", file_arg, "--if-revision", "1"]).await,
        Err((1, "precondition_failed"))
    );
    for no_vip in ["0.1.2.3", "240.0.0.1"] {
        fs::write(&file, format!("[[vip]]\naddress = \"{no_vip}\"\n")).expect("written");
        for command in ["plan", "apply"] {
            let refused = run(&served, &[command, "-f", file_arg]).await;
            assert_eq!(refused, Err((1, "invalid")), "{command} {no_vip}");
        }
    }
    fs::write(&file, "[[vip]]\naddress = 1\n[frob]\n").expect("written");
    assert_eq!(
        run(&served, &["apply", "-f", file_arg]).await,
        Err((1, "invalid"))
    );
}

#[tokio::test]
async fn a_batch_is_one_change() {
    let served = Served::start().await;
    run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("batch");
    let file_arg = file.to_str().expect("plain");
    fs::write(
        &file,
        "set example.com a A 192.0.2.1\nadd example.com @ MX '10 mail'\n",
    )
    .expect("written");
    let written = run(
        &served,
        &["record", "batch", "-f", file_arg, "--if-serial", "1"],
    )
    .await
    .expect("made");
    assert_eq!(
        written["zones"],
        json!([{"zone": "example.com.", "serial": 2}])
    );
    // The TTL of a set stays where a line gives none.
    for ttl in [60, 3600] {
        let set = format!("record set example.com a A 192.0.2.1 --ttl {ttl}");
        run(&served, &set.split(' ').collect::<Vec<_>>())
            .await
            .expect("set");
        fs::write(&file, "add example.com a A 192.0.2.2\n").expect("written");
        run(&served, &["record", "batch", "-f", file_arg])
            .await
            .expect("made");
        let listed = run(&served, &["record", "list", "example.com", "a"]).await;
        assert_eq!(listed.expect("listed")["records"][0]["ttl"], ttl);
    }
    fs::write(
        &file,
        "set example.com b A 192.0.2.1\nset example.com b CNAME a\n",
    )
    .expect("written");
    assert_eq!(
        run(&served, &["record", "batch", "-f", file_arg]).await,
        Err((1, "conflict"))
    );
    let listed = run(&served, &["record", "list", "example.com", "b"])
        .await
        .expect("listed");
    assert_eq!(listed["records"], json!([]), "all lines apply, or none");
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_applied_once() {
    let served = Served::start().await;
    run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    served.group.leaderless.store(2, Ordering::SeqCst);
    served.group.lossy.store(2, Ordering::SeqCst);
    let added = run(
        &served,
        &["record", "add", "example.com", "x", "A", "192.0.2.1"],
    )
    .await
    .expect("added");
    assert_eq!(added["zones"][0]["serial"], 2);
    assert_eq!(added["changed"], true);
    let history = run(&served, &["zone", "history", "example.com"])
        .await
        .expect("history");
    assert_eq!(history["versions"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn an_apply_whose_answer_was_lost_says_that_it_was_made() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("site.toml");
    fs::write(&file, "[[pool]]\nname = \"web\"\n").expect("written");
    let address = served.address.to_string();
    let words = [
        "pontoon",
        "-o",
        "json",
        "--endpoints",
        &address,
        "apply",
        "-f",
    ]
    .map(OsString::from);
    let words: Vec<OsString> = words.into_iter().chain([file.into_os_string()]).collect();
    let cli = parse(&words).expect("a command");
    let context = Context {
        global: cli.global,
        out: Out::keeping(Format::Json),
    };
    served.group.lossy.store(1, Ordering::SeqCst);
    let ended = cli.command.run_client(&context).await;
    assert!(ended.is_ok(), "{ended:?}");
    let written: Value = serde_json::from_str(&context.out.take()).expect("JSON");
    assert_eq!(written["changed"], true, "{written}");
    assert_eq!(written["changes"], json!([]), "{written}");
    let told = context.out.take_remarks();
    assert!(
        told.contains("an earlier try of this request was applied"),
        "{told}"
    );
}

#[tokio::test]
async fn a_transfer_is_repeated_where_that_is_harmless() {
    let served = Served::start().await;
    let group = &served.group;
    for (words, leaderless, lossy, ended, calls) in [
        // Nothing was begun: again, whoever is to lead.
        (&["cluster", "transfer"][..], 2, 0, Ok(()), 3),
        (&["cluster", "transfer", "--to", "1"], 2, 0, Ok(()), 3),
        // It may have been done: again to one node only.
        (&["cluster", "transfer", "--to", "1"], 0, 2, Ok(()), 3),
        (
            &["cluster", "transfer"],
            0,
            2,
            Err((4, "unknown_outcome")),
            1,
        ),
    ] {
        group.leaderless.store(leaderless, Ordering::SeqCst);
        group.lossy.store(lossy, Ordering::SeqCst);
        group.proposals.store(0, Ordering::SeqCst);
        let done = run(&served, words).await.map(|_| ());
        assert_eq!(done, ended, "{words:?}");
        let asked = group.proposals.load(Ordering::SeqCst);
        assert_eq!(asked, calls, "{words:?}");
    }
}

#[tokio::test]
async fn an_outcome_is_never_guessed() {
    let served = Served::start().await;
    served.group.leaderless.store(1000, Ordering::SeqCst);
    let words = ["zone", "create", "example.com", "--timeout", "600ms"];
    let endpoint = served.address.to_string();
    let run_brief = async |words: &[&str]| {
        let all = [&["pontoon", "--endpoints", &endpoint], words].concat();
        let all: Vec<OsString> = all.iter().map(OsString::from).collect();
        let cli = parse(&all).expect("parses");
        let context = Context {
            global: cli.global,
            out: Out::keeping(Format::Json),
        };
        let ended = cli.command.run_client(&context).await;
        ended.map_err(|failure| exit::code_of(&failure).0)
    };
    assert_eq!(run_brief(&words).await, Err(3), "no leader");
    served.group.leaderless.store(0, Ordering::SeqCst);
    served.group.lossy.store(1000, Ordering::SeqCst);
    assert_eq!(run_brief(&words).await, Err(4), "unknown");
    served.group.lossy.store(0, Ordering::SeqCst);
    assert_eq!(
        run_brief(&["zone", "create", "example.com"]).await,
        Err(1),
        "it had been made"
    );
    drop(served);
    let list = ["zone", "list", "--timeout", "600ms"];
    assert_eq!(run_brief(&list).await, Err(3), "unreachable");
}

/// A port on which nothing listens.
fn silent_port() -> std::net::SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound")
}

#[tokio::test]
async fn a_node_that_comes_back_is_waited_for() {
    let address = silent_port();
    let endpoint = address.to_string();
    let back = async {
        // It finds nobody first.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Served::start_at(address).await
    };
    let listed = run_at(&endpoint, Format::Json, &["zone", "list"]);
    let ((ended, text), _served) = tokio::join!(listed, back);
    assert_eq!(ended, Ok(()), "{text}");
}

#[tokio::test]
async fn a_hung_endpoint_leaves_time_for_the_others() {
    // It takes connections, and says nothing on them.
    let hung = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let served = Served::start().await;
    let endpoints = format!("{},{}", hung.local_addr().expect("bound"), served.address);
    for line in [
        &["cluster", "status"][..],
        &["zone", "create", "example.com"],
    ] {
        let line = [line, &["--timeout", "2s"]].concat();
        let words = [&["pontoon", "--endpoints", &endpoints], &line[..]].concat();
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let cli = parse(&words).expect("parses");
        let context = Context {
            global: cli.global,
            out: Out::keeping(Format::Json),
        };
        let ended = cli.command.run_client(&context).await;
        assert!(ended.is_ok(), "{ended:?}");
    }
}

#[tokio::test]
async fn a_call_that_hangs_names_its_endpoint() {
    let hung = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    let address = hung.local_addr().expect("bound").to_string();
    let words = [
        "pontoon",
        "--endpoints",
        &address,
        "--timeout",
        "500ms",
        "cluster",
        "status",
    ];
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let cli = parse(&words).expect("parses");
    let context = Context {
        global: cli.global,
        out: Out::keeping(Format::Json),
    };
    let failure = cli
        .command
        .run_client(&context)
        .await
        .expect_err("nobody answers");
    assert_eq!(exit::code_of(&failure).0, 3);
    assert!(failure.to_string().contains(&address), "{failure}");
}

#[test]
fn the_environment_stands_in_for_options() {
    let global = |line: &str, environment: &[(&str, &str)]| {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let cli = parse(&words).expect("parses");
        let find = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        cli.global.with_environment(find)
    };
    let endpoints = |text: &str| Some(text.parse().expect("endpoints"));
    let from = |line, environment| global(line, environment).expect("fine").endpoints;
    let named = [("PONTOON_ENDPOINTS", "127.0.0.1:1")];
    assert_eq!(from("pontoon zone list", &named), endpoints("127.0.0.1:1"));
    let line = "pontoon zone list --endpoints 127.0.0.1:2";
    assert_eq!(from(line, &named), endpoints("127.0.0.1:2"));
    assert_eq!(
        from("pontoon zone list", &[("PONTOON_ENDPOINTS", "")]),
        None
    );
    let all = [
        ("PONTOON_CERT", "c"),
        ("PONTOON_KEY", "k"),
        ("PONTOON_CA", "a"),
    ];
    assert!(global("pontoon zone list", &all).is_ok());
    for (line, environment) in [
        ("pontoon zone list", &[("PONTOON_ENDPOINTS", "nohost")][..]),
        ("pontoon zone list", &[("PONTOON_ENDPOINTS", ",")]),
        ("pontoon zone list", &all[..2]),
        ("pontoon zone list --cert c.pem", &[]),
    ] {
        let failure = global(line, environment).expect_err(line);
        assert_eq!(exit::code_of(&failure).0, 2, "{failure}");
    }
    // Wrong usage shows what is required, and only that.
    let words = ["pontoon", "record", "set", "example.com"].map(OsString::from);
    let usage = parse(&words).expect_err("incomplete").to_string();
    assert!(!usage.contains("--endpoints"), "{usage}");
}

#[tokio::test]
async fn wrong_names_are_wrong_usage_everywhere() {
    let served = Served::start().await;
    run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    let long = "x".repeat(64);
    for name in ["a..b", long.as_str()] {
        let set = ["record", "set", "example.com", name, "A", "192.0.2.1"];
        assert_eq!(run(&served, &set).await, Err((2, "usage")), "{name}");
    }
    for line in [
        "zone create @",
        "forwarder create @ 192.0.2.1",
        "record list @",
        "zone delete @",
    ] {
        let refused = parses(&format!("pontoon {line}"));
        assert!(refused.is_err(), "{line}");
    }
    let lines = ["record", "set", "example.com", "nl", "TXT", "a\nb CNAME x"];
    assert_eq!(run(&served, &lines).await, Err((2, "usage")));
}

/// The contract: 2 when a word of the command line can never be right, whoever finds out; 1 when a file, or what the cluster
/// holds, is in the way; 3 when nobody answers.
#[tokio::test]
async fn exit_codes_say_whose_fault_it_is() {
    let served = Served::start().await;
    for zone in ["example.com", "example.net"] {
        run(&served, &["zone", "create", zone]).await.expect("made");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, contents: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, contents).expect("written");
        path.to_str().expect("a path").to_owned()
    };
    let batch = file("batch", b"set example.com www A 192.0.2.300\n");
    let no_text = file("no-text", b"\xff\xfe");
    let site = file("site.toml", b"nonsense = 1\n");
    let zone = file("zone", b"www A 192.0.2.300\n");
    let node = file("node.toml", b"name = 1\n");
    let token = format!("{}.{}.{}", "0".repeat(16), "0".repeat(32), "0".repeat(64));
    let lines = [
        (2, "record set example.com www A 192.0.2.300".to_owned()),
        (2, "record add example.com www AAAA 192.0.2.3".into()),
        (2, "record delete example.com www MX mail".into()),
        (2, "record delete example.com www ANY 192.0.2.3".into()),
        (2, "record set example.com a..b A 192.0.2.3".into()),
        (2, "record set a..b www A 192.0.2.3".into()),
        (
            2,
            "record set example.com www.example.net. A 192.0.2.3".into(),
        ),
        (2, "record set example.com www BOGUS 192.0.2.3".into()),
        (2, "record set example.com www A 192.0.2.3 --ttl x".into()),
        (2, "record list example.com a..b".into()),
        (2, "zone create a..b".into()),
        (2, "zone create other.test --ns a..b".into()),
        (2, "zone create other.test --mbox a@b@c".into()),
        (2, "pool backend set web b!d --weight 1".into()),
        (2, "vip add 192.0.2.300".into()),
        (2, "vip add 224.0.0.1".into()),
        (2, "vip prefer 1 --cool-down 1s".into()),
        (2, "pool create web --rise 0".into()),
        (2, "pool create web --fall 101".into()),
        (2, "pool create web --interval 1ms".into()),
        (2, "pool create web --probe-timeout 2m".into()),
        (2, "pool create web --connect-retries 11".into()),
        (2, "pool create web --backend 0.0.0.0:80".into()),
        (2, "pool backend add web 10.0.0.1:80 --weight 1001".into()),
        (2, "pool backend add web 10.0.0.1:0".into()),
        (2, "pool backend set web 10.0.0.1:80 --weight 1001".into()),
        (2, "listener create web --port 80 --pool web --max-connections 0".into()),
        (2, "listener create web --port 80 --pool web --idle-timeout 2d".into()),
        (2, "listener create web --port 80 --pool web --address 224.0.0.1".into()),
        (2, "forwarder create . 0.0.0.0".into()),
        (2, "forwarder create . 9.9.9.9 9.9.9.9".into()),
        (2, "forwarder create . 9.9.9.9 --upstream-timeout 1m".into()),
        (2, "cluster token create --lifetime 31d".into()),
        (2, "cluster token create --lifetime 500ms".into()),
        (
            2,
            "cluster profile set --heartbeat 1ms --election-timeout-min 150ms --election-timeout-max 240ms".into(),
        ),
        (2, "cluster join --token x --peer 127.0.0.1:1".into()),
        (
            2,
            format!(
                "cluster join --token {token} --peer nowhere --config {}",
                served_config(&dir)
            ),
        ),
        (2, "dns query a..b".into()),
        (1, "record set absent.test www A 192.0.2.3".into()),
        (
            1,
            "record delete example.com www A 192.0.2.3 --if-serial 99".into(),
        ),
        (1, "zone create example.com".into()),
        (1, "zone rollback example.com 99".into()),
        (1, "pool show absent".into()),
        (1, format!("record batch -f {batch}")),
        (1, format!("record batch -f {no_text}")),
        (1, "record batch -f /absent".into()),
        (1, format!("plan -f {site}")),
        (1, format!("apply -f {no_text}")),
        (1, format!("zone import example.com {zone}")),
        (1, format!("zone check {zone} --origin example.com")),
        (
            1,
            format!("cluster join --token {token} --peer 127.0.0.1:1 --config {node}"),
        ),
    ];
    for (expected, line) in &lines {
        let here = served.address.to_string();
        assert_eq!(code_of(&here, line).await, *expected, "{line}");
    }
    // What is wrong in itself needs nobody to say so.
    let nobody = silent_port().to_string();
    for (_, line) in lines.iter().filter(|(code, _)| *code == 2) {
        assert_eq!(code_of(&nobody, line).await, 2, "{line}");
    }
    assert_eq!(code_of(&nobody, "zone list").await, 3);
}

/// A configuration that can be read.
fn served_config(dir: &tempfile::TempDir) -> String {
    let layout = crate::dev::layout::Layout {
        dir: dir.path().to_owned(),
        nodes: 1,
        port_base: 5300,
    };
    let path = dir.path().join("sound.toml");
    fs::write(&path, layout.config_text(1)).expect("written");
    path.to_str().expect("a path").to_owned()
}

async fn code_of(endpoints: &str, line: &str) -> u8 {
    let global = ["pontoon", "--endpoints", endpoints, "--timeout", "1s"];
    let words: Vec<OsString> = global
        .into_iter()
        .chain(line.split(' '))
        .map(OsString::from)
        .collect();
    let cli = match parse(&words) {
        Ok(cli) => cli,
        Err(error) => return exit::code_of(&exit::usage(&error)).0,
    };
    let context = Context {
        global: cli.global,
        out: Out::keeping(Format::Json),
    };
    match cli.command.run_client(&context).await {
        Ok(()) => 0,
        Err(failure) => exit::code_of(&failure).0,
    }
}

#[test]
fn a_wrong_value_is_repeated_once() {
    for (line, told) in [
        (
            "record set example.com www A 192.0.2.1 --ttl xx",
            "--ttl <TTL>: \"xx\" is no TTL: expected 0 to 2147483647 seconds, or 1h30m",
        ),
        (
            "zone create a..b",
            "<NAME>: \"a..b\": an empty label (two dots in a row, or a dot at the start)",
        ),
        (
            "listener create l --port 99999 --pool web",
            "--port <PORT>: 99999 is not in 1..=65535",
        ),
        // What does not repeat the value is told as it is.
        (
            "vip add 192.0.2.300",
            "invalid value '192.0.2.300' for '<ADDRESS>': invalid IP address syntax",
        ),
    ] {
        let words = format!("pontoon {line}");
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        let error = parse(&words).expect_err(line);
        assert_eq!(exit::usage(&error).problem, told);
    }
}

/// What an import says of names, the commands that make them say too, once.
#[tokio::test]
async fn names_that_nobody_will_ask_for_are_remarked_on() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let batch = dir.path().join("batch");
    fs::write(
        &batch,
        "set example.com b\u{fc}cher A 192.0.2.1\nadd example.com b\u{fc}cher A 192.0.2.2\n",
    )
    .expect("written");
    let batch = format!("record batch -f {}", batch.display());
    let scripts = "the owner is no host name (letters, digits and hyphens): names in other scripts are written as xn--";
    let wildcard = "at a wildcard its meaning is undefined";
    for (line, told) in [
        ("zone create example.com", None),
        ("zone create b\u{fc}cher.test", Some(scripts)),
        ("zone create *.test", Some(wildcard)),
        (
            "record set example.com b\u{fc}cher A 192.0.2.1",
            Some(scripts),
        ),
        ("record add example.com b\u{fc}cher TXT x", Some(scripts)),
        (
            "record set example.com a_b A 192.0.2.1",
            Some("the owner is no host name"),
        ),
        ("record set example.com _a._tcp TXT x", None),
        ("record set example.com * NS ns1", Some(wildcard)),
        (&batch, Some(scripts)),
        ("record delete example.com b\u{fc}cher A 192.0.2.1", None),
    ] {
        let address = served.address.to_string();
        let words = ["pontoon", "--endpoints", &address];
        let words: Vec<OsString> = words
            .into_iter()
            .chain(line.split(' '))
            .map(OsString::from)
            .collect();
        let cli = parse(&words).unwrap_or_else(|e| panic!("{line}: {e}"));
        let context = Context {
            global: cli.global,
            out: Out::keeping(Format::Table),
        };
        cli.command.run_client(&context).await.expect(line);
        let remarks = context.out.take_remarks();
        let warnings: Vec<&str> = remarks
            .lines()
            .filter(|line| line.starts_with("warning: ") && !line.contains("has no address yet"))
            .collect();
        match told {
            None => assert!(warnings.is_empty(), "{line}: {remarks}"),
            Some(told) => {
                assert_eq!(warnings.len(), 1, "{line}: {remarks}");
                assert!(warnings[0].contains(told), "{line}: {remarks}");
            }
        }
    }
}

#[tokio::test]
async fn the_cluster_and_its_nodes_answer() {
    let served = Served::start().await;
    run(&served, &["vip", "add", "192.0.2.10"])
        .await
        .expect("added");
    let status = run(&served, &["cluster", "status"]).await.expect("status");
    assert_eq!((&status["leader"], &status["term"]), (&json!(1), &json!(1)));
    let node = &status["nodes"][0];
    for key in [
        "id",
        "name",
        "role",
        "state",
        "applied",
        "lag",
        "address",
        "state_hash",
        "stale",
        "pid",
    ] {
        assert!(!node[key].is_null(), "{key}: {node}");
    }
    assert_eq!((&node["role"], &node["lag"]), (&json!("voter"), &json!(0)));
    assert_eq!(status["vips"][0]["holder"], 1);
    let table = run_as(&served, Format::Table, &["cluster", "status"])
        .await
        .expect("status");
    assert!(
        table.contains("leader node 1") && table.contains("192.0.2.10"),
        "{table}"
    );

    let token = run(
        &served,
        &["cluster", "token", "create", "--lifetime", "30m"],
    )
    .await
    .expect("a token");
    let text = token["token"].as_str().expect("text");
    assert!(text.parse::<crate::pki::token::Token>().is_ok(), "{text}");
    let tokens = run(&served, &["cluster", "token", "list"])
        .await
        .expect("tokens");
    assert_eq!(tokens["tokens"][0]["id"], token["id"]);
    run(&served, &["cluster", "token", "delete", text])
        .await
        .expect("deleted");
    assert_eq!(
        run(&served, &["cluster", "token", "delete", text]).await,
        Err((1, "not_found"))
    );
    assert_eq!(
        run(&served, &["cluster", "remove", "9"]).await,
        Err((1, "not_found"))
    );
    assert_eq!(
        run(&served, &["cluster", "remove", "n1"]).await,
        Err((1, "conflict"))
    );
    assert_eq!(
        run(&served, &["cluster", "promote", "n1"])
            .await
            .expect("a voter")["changed"],
        false
    );
    assert_eq!(
        run(&served, &["cluster", "transfer"]).await.expect("leads")["leader"],
        1
    );

    let stats = run(&served, &["dns", "stats"]).await.expect("stats");
    assert_eq!(stats["nodes"][0]["counters"]["cache_hits"], 3);
    let flushed = run(&served, &["dns", "flush", "example.com", "--subtree"])
        .await
        .expect("flushed");
    assert_eq!(flushed["nodes"][0]["entries"], 2);
    let answer = run(&served, &["dns", "query", "example.com", "MX"])
        .await
        .expect("an answer");
    assert_eq!(answer["nodes"][0]["answer"]["rcode"], "NOERROR");
    assert_eq!(answer["nodes"][0]["source"], "zone");
    let silent = ["dns", "query", "silent.example.com", "--timeout", "1s"];
    let (ended, written) = run_both(&served, &silent).await;
    assert_eq!(ended.map_err(|(_, code)| code), Err("not_ready"));
    let written: Value = serde_json::from_str(&written).expect("JSON");
    let problem = written["nodes"][0]["problem"].as_str().expect("a problem");
    assert!(problem.contains("upstream servers"), "{problem}");
    assert_eq!(
        run(&served, &["dns", "stats", "--node", "9"]).await,
        Err((1, "not_found"))
    );
}

/// A command line with a client certificate of the cluster, made so long ago.
fn with_certificate(
    served: &Served,
    dir: &std::path::Path,
    age: Duration,
    line: &str,
) -> (Command, Context) {
    use crate::{enrol::admin_files::StagedAdmin, pki::identity::Identity};
    let made_at = std::time::SystemTime::now() - age;
    let root = Identity::admin(served.group.cluster(), "root");
    let made = served.group.certificate(&root, made_at);
    StagedAdmin::stage(dir, &made)
        .and_then(StagedAdmin::put)
        .expect("written");
    with_files(served, dir, line)
}

/// A command line with the client certificate in `dir`.
fn with_files(served: &Served, dir: &std::path::Path, line: &str) -> (Command, Context) {
    let file = |name: &str| dir.join(name).display().to_string();
    let line = format!(
        "pontoon --endpoints {} --timeout 20s --cert {} --key {} --ca {} {line}",
        served.address,
        file("admin.pem"),
        file("admin.key"),
        file("ca.pem")
    );
    let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
    let cli = parse(&words).expect("parses");
    let out = Out::keeping(Format::Json);
    let global = cli.global;
    (cli.command, Context { global, out })
}

#[tokio::test]
async fn an_administrator_makes_another_certificate() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::start_with_certificate().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (root, ann) = (dir.path().join("root"), dir.path().join("ann"));
    let create = format!("cluster admin create ann --admin-dir {}", ann.display());
    let (command, context) = with_certificate(&served, &root, Duration::ZERO, &create);
    command.run_client(&context).await.expect("made");
    assert_eq!(context.out.take_remarks(), "", "nothing ends soon");
    let made: Value = serde_json::from_str(&context.out.take()).expect("JSON");
    assert_eq!(made["name"], "ann");
    assert!(
        made["ends"]
            .as_str()
            .is_some_and(|ends| ends.ends_with('Z'))
    );
    for name in ["admin.pem", "admin.key", "ca.pem"] {
        let mode = fs::metadata(ann.join(name))
            .expect(name)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    // It is as good as the one that made it, under its own name, and makes the next one of that name.
    for line in [
        "zone create example.com",
        "zone history example.com",
        create.as_str(),
    ] {
        let (command, context) = with_files(&served, &ann, line);
        command.run_client(&context).await.expect(line);
        if line.starts_with("zone history") {
            assert!(context.out.take().contains(r#""author":"ann""#));
        }
    }
    // Nobody else's is taken away.
    let bob = create.replace("create ann", "create bob");
    let (command, context) = with_files(&served, &root, &bob);
    let failure = command.run_client(&context).await.expect_err("refused");
    assert_eq!(
        failure.code,
        crate::wire::error::FailureCode::AlreadyExists,
        "{failure:?}"
    );
    assert!(failure.problem.contains("administrator ann"), "{failure:?}");
    let (command, context) = with_files(&served, &ann, "zone list");
    command.run_client(&context).await.expect("still good");
}

#[tokio::test]
async fn a_certificate_that_ends_is_told_of() {
    const DAY: Duration = Duration::from_secs(86_400);
    let served = Served::start_with_certificate().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (command, context) = with_certificate(&served, dir.path(), 340 * DAY, "zone list");
    command.run_client(&context).await.expect("still good");
    let told = context.out.take_remarks();
    assert!(told.contains("certificate ends at"), "{told}");
    let (command, context) = with_certificate(&served, dir.path(), 400 * DAY, "zone list");
    let failure = command.run_client(&context).await.expect_err("ended");
    assert!(failure.hint.contains("admin create root"), "{failure:?}");
}

#[tokio::test]
async fn a_cluster_that_speaks_plaintext_makes_no_certificates() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("admin");
    let dir_arg = at.to_str().expect("plain");
    let rotate = ["cluster", "ca", "rotate", "--admin-dir", dir_arg];
    let rotated = run(&served, &rotate).await.expect("rotated");
    assert_eq!(rotated["admin_dir"], Value::Null);
    let create = ["cluster", "admin", "create", "ann", "--admin-dir", dir_arg];
    assert_eq!(run(&served, &create).await, Err((1, "unsupported")));
    assert!(!at.exists());
}

#[tokio::test]
async fn a_plan_is_as_fresh_as_is_asked_for() {
    let served = Served::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let site = dir.path().join("site.toml");
    fs::write(&site, "[dns]\n").expect("written");
    let plan = ["plan", "-f", site.to_str().expect("plain")];
    run(&served, &plan).await.expect("planned");
    let asked = || served.group.catch_ups.load(Ordering::SeqCst);
    assert_eq!(asked(), 0);
    let fresh = [&plan[..], &["--consistency", "linearizable"]].concat();
    run(&served, &fresh).await.expect("planned");
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn a_backup_is_complete_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::start().await;
    run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("b");
    let written = run(&served, &["backup", "-f", file.to_str().expect("plain")])
        .await
        .expect("written");
    let state = crate::wire::backup::read(fs::File::open(&file).expect("there")).expect("a backup");
    use crate::api::group::Group;
    assert_eq!(state.hash(), served.group.state().hash());
    assert_eq!(written["revision"], state.revision());
    let mode = fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(run(&served, &["backup", "-f", "/absent/b"]).await.is_err());

    // Through a link into its file; a device, or standard output, is none.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("made");
    fs::write(&file, "old").expect("written");
    let path = link.to_str().expect("plain");
    run(&served, &["backup", "-f", path])
        .await
        .expect("written");
    assert!(fs::symlink_metadata(&link).expect("there").is_symlink());
    crate::wire::backup::read(fs::File::open(&file).expect("there")).expect("a backup");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("made");
    for no_file in ["-", fifo.to_str().expect("plain")] {
        let refused = run(&served, &["backup", "-f", no_file]).await;
        assert_eq!(refused.expect_err("no file").1, "invalid", "{no_file}");
    }
}

/// A relay to `to` that goes silent, without an end, once it has brought `octets` back.
async fn falls_silent_after(octets: usize, to: std::net::SocketAddr) -> std::net::SocketAddr {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, copy},
        net::{TcpListener, TcpStream},
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut left = octets;
        while let Ok((client, _)) = listener.accept().await {
            let Ok(node) = TcpStream::connect(to).await else {
                return;
            };
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_node, mut to_node) = node.into_split();
            let there = copy(&mut from_client, &mut to_node);
            let back = async {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = from_node.read(&mut buffer).await {
                    left = left.saturating_sub(read);
                    if left == 0 {
                        std::future::pending::<()>().await;
                    }
                    if to_client.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! { _ = there => {}, () = back => {} }
        }
    });
    address
}

#[tokio::test]
async fn a_backup_ends_when_the_node_falls_silent() {
    use crate::{
        api::group::Group,
        model::rrset::{RecordType, Rrset},
        state::command::{Change, Command, RequestId, UnixMillis},
    };
    use rand::RngExt;
    let served = Served::start().await;
    run(&served, &["zone", "create", "example.com"])
        .await
        .expect("made");
    // More than a megabyte that cannot be compressed.
    let zone = rrsets::zone_name("example.com").expect("a name");
    let mut rng = rand::rng();
    let set = |at: u8| {
        let data: Vec<u8> = (0..50_000).map(|_| rng.random()).collect();
        Change::SetRrset {
            zone: zone.clone(),
            name: zone.child(&[b'a' + at]).expect("a name"),
            rrset: Rrset::new(RecordType(65_280), 60, [data]).expect("a set"),
        }
    };
    let command = Command {
        request: RequestId(9),
        born: 0,
        proposed_at: UnixMillis(0),
        author: "ann".into(),
        preconditions: vec![],
        changes: (0..24).map(set).collect(),
    };
    let made = served.group.propose(command, std::time::Instant::now());
    made.await.expect("applied");
    let relay = falls_silent_after(600 << 10, served.address)
        .await
        .to_string();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("b");
    let file_arg = file.to_str().expect("plain");
    let words = [
        "pontoon",
        "--endpoints",
        &relay,
        "--timeout",
        "2s",
        "backup",
        "-f",
        file_arg,
    ];
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let cli = parse(&words).expect("parses");
    let context = Context {
        global: cli.global,
        out: Out::keeping(Format::Json),
    };
    let ended = cli.command.run_client(&context).await.expect_err("silence");
    assert!(ended.problem.contains("sent nothing for 2s"), "{ended:?}");
    assert_eq!((exit::code_of(&ended).0, file.exists()), (3, false));
}

/// Every command line in the documents is one that the program takes.
#[test]
fn the_documents_show_commands_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("README.md")];
    for dir in ["docs", "docs/operations", "docs/decisions", "cluster"] {
        let listed = fs::read_dir(root.join(dir)).map(|l| l.flatten().map(|f| f.path()).collect());
        files.extend(listed.unwrap_or_else(|_| Vec::new()));
    }
    files.retain(|f| f.extension().is_some_and(|e| e == "md"));
    let mut seen = 0;
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        for line in text.lines() {
            let Some(words) = shown_command(line) else {
                continue;
            };
            let parsed = parse(&words.iter().map(OsString::from).collect::<Vec<_>>());
            let fine = parsed.as_ref().map_or_else(|e| !e.use_stderr(), |_| true);
            assert!(
                fine,
                "{}: {line}: {}",
                file.display(),
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
            seen += 1;
        }
    }
    assert!(seen > 5, "only {seen} command lines were found");
}

/// The words of a line that shows a command: `pontoon ...`, after a prompt perhaps, up to whatever the shell makes of the rest.
pub(super) fn shown_command(line: &str) -> Option<Vec<String>> {
    let line = without_prompt(line.trim());
    let line = line
        .trim_start_matches("sudo ")
        .trim_start_matches("target/release/");
    if !line.starts_with("pontoon ") || line.contains("...") || line.contains(" | ") {
        return None;
    }
    let words = record_batch::words(line).ok()?;
    let end = |w: &String| {
        matches!(
            w.as_str(),
            ">" | "<" | "|" | "&" | "&&" | "||" | ";" | "2>" | "2>/dev/null"
        ) || w.starts_with("<(")
    };
    let words: Vec<String> = words.into_iter().take_while(|w| !end(w)).collect();
    let is_command =
        words.len() > 1 && words[1].starts_with(|c: char| c.is_ascii_lowercase() || c == '-');
    is_command.then_some(words)
}

/// The line behind its prompt: `$ `, `# `, or these behind the name of a machine.
fn without_prompt(line: &str) -> &str {
    let prompt = line.find(['$', '#']).filter(|at| {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        line.as_bytes()[..*at].iter().all(|b| is_name(*b))
    });
    let rest = prompt.and_then(|at| line[at + 1..].strip_prefix(' '));
    rest.unwrap_or(line)
}

#[test]
fn commands_are_found_behind_prompts() {
    for line in [
        "pontoon zone list",
        "$ pontoon zone list",
        "# pontoon zone list",
        "n1# pontoon zone list    # a remark",
        "member$ sudo pontoon zone list",
    ] {
        let words = shown_command(line).expect(line);
        assert_eq!(words, ["pontoon", "zone", "list"], "{line}");
    }
    assert_eq!(shown_command("`pontoon zone list` shows them"), None);
}

#[test]
fn completion_and_manual_come_from_the_declarations() {
    let context = |line: &str| {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let cli = parse(&words).expect("parses");
        let out = Out::keeping(Format::Table);
        (
            cli.command,
            Context {
                global: cli.global,
                out,
            },
        )
    };
    for shell in ["bash", "zsh", "fish"] {
        let (command, context) = context(&format!("pontoon completion {shell}"));
        command.run(&context).expect("written");
        let script = context.out.take();
        assert!(
            script.contains("rollback") && script.contains("forwarder"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (command, context) = context(&format!("pontoon man --dir {}", dir.path().display()));
    command.run(&context).expect("written");
    let page = fs::read_to_string(dir.path().join("pontoon-record-set.1")).expect("a page");
    assert!(page.contains("if\\-serial"), "{page}");
}
