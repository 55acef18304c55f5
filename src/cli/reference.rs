//! `docs/cli.md`, made from the declarations of the commands and the JSON forms below. A test compares it with the file;
//! with `PONTOON_WRITE_DOCS=1` it writes the file instead.

use std::path::Path;

use clap::CommandFactory;

use super::Cli;

/// What a command writes with `-o json`: an example, in which `|` stands between possible values.
const JSON: &[(&str, &str)] = &[
    ("node", CHECKED),
    ("node run", CHECKED),
    (
        "node reload",
        r#"{"applied": ["logging.level = \"debug\"", "log file opened again", "certificate read again"], "needs_restart": ["addresses.api"]}"#,
    ),
    (
        "node probe",
        r#"{"serving": true, "stale": false, "revision": 42, "problems": []}"#,
    ),
    (
        "cluster init",
        r#"{"changed": true, "cluster": "9f...", "node": 1, "admin_dir": "/root/.config/pontoon" | null, "kept": "/root/.config/pontoon/5d..." | null}"#,
    ),
    (
        "cluster token create",
        r#"{"token": "ID.SECRET.CA_SHA256", "id": "ID", "expires": "2026-01-01T00:00:00Z", "peer": "10.0.0.1:7401"}"#,
    ),
    (
        "cluster token list",
        r#"{"revision": 42, "stale": false, "tokens": [{"id": "ID", "expires": "2026-01-01T00:00:00Z", "used_by": 4 | null}]}"#,
    ),
    ("cluster token delete", r#"{"id": "ID"}"#),
    (
        "cluster join",
        r#"{"cluster": "9f...", "node": 4, "changed": true}"#,
    ),
    ("cluster leave", r#"{"node": 3}"#),
    ("cluster remove", r#"{"node": 3, "changed": true}"#),
    (
        "cluster status",
        r#"{"cluster": "9f...", "leader": 1 | null, "term": 3, "revision": 42,
 "nodes": [{"id": 1, "name": "n1", "role": "voter" | "learner",
            "state": "leader" | "follower" | "candidate" | "learner" | "starting" | "failed" | "unreachable",
            "applied": 57 | null, "lag": 0 | null, "address": "10.0.0.1:7401", "raft_address": "10.0.0.1:7400",
            "state_hash": "c0..." | null, "stale": false, "pid": 1234 | null,
            "version": "0.1.0" | null, "problem": "..." | null, "election_timeout_max_ms": 280 | null, "flush_us": 1900 | null,
            "unfit": "..." | null}],
 "vips": [{"address": "192.0.2.10", "interface": "vip", "holder": 1 | null, "fence": "kernel" | "none" | "loopback" | null}],
 "alarms": ["..."], "answered_by": 1,
 "timing": {"profile": "lan", "heartbeat_ms": 40, "election_timeout_min_ms": 200, "election_timeout_max_ms": 280, "lease_ms": 252},
 "preference": {"node": 2, "cool_down_ms": 60000} | null}"#,
    ),
    ("cluster transfer", r#"{"leader": 2, "term": 4}"#),
    ("cluster promote", r#"{"node": 4, "changed": true}"#),
    (
        "cluster profile show",
        r#"{"profile": "lan" | "fast" | "wan" | "custom", "heartbeat_ms": 40, "election_timeout_min_ms": 200, "election_timeout_max_ms": 280, "lease_ms": 252,
 "nodes": [{"node": 1, "election_timeout_max_ms": 280 | null}]}"#,
    ),
    (
        "cluster profile set",
        r#"{"profile": "fast", "heartbeat_ms": 20, "election_timeout_min_ms": 100, "election_timeout_max_ms": 180, "lease_ms": 162}"#,
    ),
    (
        "cluster admin create",
        r#"{"name": "ann", "admin_dir": "/root/.config/pontoon", "ends": "2027-01-01T00:00:00Z", "kept": "/root/.config/pontoon/5d..." | null}"#,
    ),
    (
        "cluster ca rotate",
        r#"{"ca_sha256": "5e...", "admin_dir": "/root/.config/pontoon" | null, "kept": "/root/.config/pontoon/5d..." | null}"#,
    ),
    ("zone create", WRITTEN),
    (
        "zone list",
        r#"{"revision": 42, "stale": false,
 "zones": [{"zone": "example.com.", "serial": 7, "revision": 40, "records": 12, "data_bytes": 230}]}"#,
    ),
    (
        "zone show",
        r#"{"revision": 42, "stale": false, "zone": "example.com.", "serial": 7, "record_count": 12, "data_bytes": 230,
 "records": [{"name": "www.example.com.", "type": "A", "ttl": 3600, "data": ["192.0.2.1", "192.0.2.2"]}]}"#,
    ),
    ("zone import", WRITTEN),
    (
        "zone export",
        r#"{"revision": 42, "stale": false, "zone": "example.com.", "serial": 7, "text": "$ORIGIN ..." | null}"#,
    ),
    (
        "zone check",
        r#"{"zone": "example.com.", "serial": 7 | null, "ok": true, "errors": 0, "warnings": 1,
 "findings": [{"severity": "error" | "warning", "file": "f.zone" | null, "line": 3 | null, "object": "...", "problem": "..."}]}"#,
    ),
    ("zone delete", WRITTEN),
    (
        "zone history",
        r#"{"revision": 42, "stale": false, "zone": "example.com.",
 "versions": [{"serial": 7, "revision": 40, "time": "2026-01-01T00:00:00Z", "author": "admin", "summary": "...",
               "added": 1, "removed": 0}]}"#,
    ),
    (
        "zone diff",
        r#"{"revision": 42, "stale": false, "zone": "example.com.", "from": 6, "to": 7,
 "removed": [{"name": "www.example.com.", "type": "A", "ttl": 60, "data": ["192.0.2.1"]}],
 "added": [{"name": "www.example.com.", "type": "A", "ttl": 60, "data": ["192.0.2.2"]}]}"#,
    ),
    ("zone rollback", WRITTEN),
    ("record set", WRITTEN),
    ("record add", WRITTEN),
    ("record delete", WRITTEN),
    (
        "record list",
        r#"{"revision": 42, "stale": false, "zone": "example.com.", "serial": 7,
 "records": [{"name": "www.example.com.", "type": "A", "ttl": 3600, "data": ["192.0.2.1"]}]}"#,
    ),
    ("record batch", WRITTEN),
    ("pool create", WRITTEN),
    (
        "pool list",
        r#"{"revision": 42, "stale": false, "pools": [POOL]}, where POOL is as in `pool show`, without `revision` and `stale`"#,
    ),
    (
        "pool show",
        r#"{"revision": 42, "stale": false, "name": "web",
 "policy": "round-robin" | "least-connections" | "source-hash",
 "health_check": {"probe": "tcp-connect", "interval_ms": 2000, "down_interval_ms": 2000, "timeout_ms": 1000, "rise": 2, "fall": 3} | null,
 "connect_timeout_ms": 2000, "connect_retries": 2,
 "backends": [{"name": "10.0.0.1-80", "address": "10.0.0.1:80", "weight": 1, "state": "enabled" | "drain" | "disabled",
               "health": [{"node": 1, "health": "up" | "down" | "unknown" | "unchecked", "since_ms": 185000,
                           "problem": "health check: Connection refused (os error 111)" | null, "connections": 0}]}]}"#,
    ),
    ("pool delete", WRITTEN),
    ("pool backend add", WRITTEN),
    ("pool backend remove", WRITTEN),
    ("pool backend set", WRITTEN),
    ("pool backend drain", WRITTEN),
    ("listener create", WRITTEN),
    (
        "listener list",
        r#"{"revision": 42, "stale": false, "listeners": [LISTENER]}, where LISTENER is as in `listener show`, without `revision` and `stale`"#,
    ),
    (
        "listener show",
        r#"{"revision": 42, "stale": false, "name": "web", "address": "192.0.2.10" | null, "port": 80, "pool": "web",
 "idle_timeout_ms": 300000, "max_connections": 10000,
 "nodes": [{"node": 1, "bound": ["10.0.0.1:80"], "problem": "..." | null, "connections": 0}]}"#,
    ),
    ("listener delete", WRITTEN),
    ("vip add", WRITTEN),
    ("vip remove", WRITTEN),
    (
        "vip list",
        r#"{"revision": 42, "stale": false,
 "vips": [{"address": "192.0.2.10", "interface": "vip", "holder": 1 | null, "fence": "kernel" | "none" | "loopback" | null}],
 "unfit": {"3": "..."}}"#,
    ),
    ("vip prefer", WRITTEN),
    ("vip move", r#"{"leader": 2, "term": 4}"#),
    (
        "vip uninstall",
        r#"{"addresses": ["192.0.2.10"], "fence": true | false}"#,
    ),
    ("forwarder create", WRITTEN),
    (
        "forwarder list",
        r#"{"revision": 42, "stale": false,
 "forwarders": [{"suffix": "corp.example.", "upstreams": ["10.0.0.53:53"], "timeout_ms": 1000}]}"#,
    ),
    ("forwarder delete", WRITTEN),
    (
        "dns query",
        r#"{"name": "www.example.com.", "type": "A",
 "nodes": [{"node": 1, "problem": "..." | null, "source": "zone" | "cache" | "forwarder" | "built-in" | "refused" | "endless" | null,
            "elapsed_us": 85,
            "answer": {"rcode": "NOERROR", "authoritative": true, "recursion_available": true,
                       "errors": [{"code": 15, "text": "..."}],
                       "answers": [{"name": "www.example.com.", "type": "A", "ttl": 3600, "data": "192.0.2.1"}],
                       "authority": [], "additional": []} | null}]}"#,
    ),
    (
        "dns stats",
        r#"{"nodes": [{"node": 1, "problem": "..." | null, "counters": {"cache_hits": 3}}]}"#,
    ),
    (
        "dns flush",
        r#"{"nodes": [{"node": 1, "problem": "..." | null, "entries": 10}]}"#,
    ),
    (
        "plan",
        r#"{"revision": 42, "stale": false,
 "changes": [{"action": "create" | "update" | "delete", "object": "pool web", "details": ["- old", "+ new"]}]}"#,
    ),
    (
        "apply",
        r#"{"changed": true, "revision": 43, "zones": [{"zone": "example.com.", "serial": 8}],
 "changes": [{"action": "create" | "update" | "delete", "object": "pool web", "details": []}]}"#,
    ),
    (
        "export",
        r#"{"revision": 42, "stale": false, "text": "..." | null}"#,
    ),
    (
        "backup",
        r#"{"file": "pontoon.backup", "bytes": 1234, "revision": 42}"#,
    ),
    (
        "restore",
        r#"{"cluster": "9f...", "node": 1, "admin_dir": "/root/.config/pontoon", "kept": "/root/.config/pontoon/5d..." | null}"#,
    ),
    ("recover", r#"{"revision": 43, "retired": [2, 3]}"#),
    (
        "watch",
        r#"{"revision": 43, "event": "change", "object": "zone", "name": "example.com.", "deleted": false, "serial": 8, "whole": false,
 "put": [{"name": "www.example.com.", "type": "A", "ttl": 3600, "data": ["192.0.2.1"]}],
 "removed": [{"name": "old.example.com.", "type": "A"}]}, where `whole` says that `put` is all there is
{"revision": 43, "event": "change", "object": "pool", "name": "web", "deleted": false, "policy": "round-robin",
 "health_check": {...} | null, "connect_timeout_ms": 2000, "connect_retries": 2,
 "backends": [{"name": "10.0.0.1-80", "address": "10.0.0.1:80", "weight": 1, "state": "enabled"}]}, words and `health_check` as in `pool show`
{"revision": 43, "event": "change", "object": "listener", "name": "web", "deleted": false, "address": "192.0.2.10" | null, "port": 80,
 "pool": "web", "idle_timeout_ms": 300000, "max_connections": 10000}
{"revision": 43, "event": "change", "object": "vip", "name": "192.0.2.10", "deleted": false, "interface": "vip"}
{"revision": 43, "event": "change", "object": "forwarder", "name": "corp.example.", "deleted": false, "upstreams": ["10.0.0.53:53"],
 "timeout_ms": 1000}
{"revision": 43, "event": "change", "object": "dns", "name": "", "deleted": false, "recursion_allowed": ["10.0.0.0/8"]}
{"revision": 43, "event": "change", "object": "pool", "name": "web", "deleted": true}, and so of every object but `dns`
{"revision": 43, "event": "caught_up", "state_hash": "c0..." | null, "applied": 57 | null}
{"revision": 43, "event": "compacted", "oldest": 40}"#,
    ),
];

/// What a configuration without faults answers.
const CHECKED: &str = r#"{"config": "node.toml", "ok": true}, with `--check`"#;

/// What every change answers.
const WRITTEN: &str =
    r#"{"changed": true, "revision": 43, "zones": [{"zone": "example.com.", "serial": 8}]}"#;

/// Commands that write no JSON.
const WITHOUT_JSON: &[&str] = &["dev", "completion", "man"];

const HEAD: &str = "\
# The command line

Made from the program's own declarations (`pontoon COMMAND --help` says the same); a test keeps this file true.

Options of every command, after or before its own:

| option | means |
| --- | --- |
| `--endpoints A,B,C` | nodes to ask, in this order; also `PONTOON_ENDPOINTS`. `HOST:PORT` (mutual TLS with the client certificate; plaintext for a loopback address without one), `http://HOST:PORT` (plaintext, loopback only), `unix:PATH`. Without it: the local unix socket, else the nodes of `pontoon dev` |
| `-o table`, `-o json` | how results are written to stdout, and errors and warnings to stderr |
| `--timeout TIME` | how long to try, while no node answers or none leads: `500ms`, `10s`, `2m`, or a number of seconds; 10 s unless given |
| `--consistency local`, `linearizable` | reads: the state of the node that is asked, or everything that was acknowledged before. `linearizable` is refused by `cluster status`, `cluster profile show` and `watch`, which tell what that node knows; commands that change something have no use for it |
| `--cert`, `--key`, `--ca` | client certificate, its key and the cluster's authority in PEM; also `PONTOON_CERT`, `PONTOON_KEY`, `PONTOON_CA`. Without them: `admin.pem`, `admin.key` and `ca.pem` in `~/.config/pontoon` or `/etc/pontoon`, which are looked for when a connection needs them, and passed over when they cannot be used |

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | refused or failed, on some of the nodes that were asked at least |
| 2 | wrong usage: a word of the command line can never be right (what is wrong in a file is 1) |
| 3 | no leader, or no node reachable: nothing was changed |
| 4 | the outcome is unknown: look before you repeat it |

With `-o json` an error is one object on stderr: `{\"object\": \"zone example.com.\", \"problem\": \"...\", \"hint\": \"...\", \"code\": \"...\"}`, with the
codes CODES. When several things are wrong with a file, `problem` has a line for each.
A warning is one object on a line of stderr: `{\"warning\": \"...\"}`, before the error if there is one, which is the last line; what is only
said of the progress (`no node answers yet`) is left out.

As long as no node answers, every command tries again until its time is up; a wrong certificate or a missing permission ends
it at once, and so does a machine where nothing was configured and no node is found. With several endpoints, one that is
silent does not use up the whole time.

A write is sent again under the same request id while there is time, and is applied once. `revision` is the log index of
the last change, `stale` says that the node serves state it recovered without a leader. A line `warning: ...` on stderr
(`FILE:LINE: warning: ...` about a file) tells of something that was done, or left out, and that may not be what was meant, such as
a forwarder that is never asked or records outside of their zone.
";

/// The whole document.
fn render() -> String {
    let codes: Vec<String> = crate::wire::error::FailureCode::ALL
        .iter()
        .map(|c| format!("`{}`", c.as_str()))
        .collect();
    let mut text = HEAD.replace("CODES", &codes.join(", "));
    for command in leaves(&Cli::command(), "") {
        text.push_str(&section(&command.path, &command.command));
    }
    text
}

struct Leaf {
    path: String,
    command: clap::Command,
}

/// Every command that does something, in the order of its declaration.
fn leaves(command: &clap::Command, path: &str) -> Vec<Leaf> {
    let mut found = Vec::new();
    for sub in command.get_subcommands().filter(|c| c.get_name() != "help") {
        let path = format!("{path} {}", sub.get_name()).trim().to_owned();
        let is_whole = !sub.is_subcommand_required_set();
        if !sub.has_subcommands() || is_whole {
            found.push(Leaf {
                path: path.clone(),
                command: sub.clone(),
            });
        }
        if sub.has_subcommands() {
            found.extend(leaves(sub, &path));
        }
    }
    found
}

fn section(path: &str, command: &clap::Command) -> String {
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    let mut text = format!("\n## `pontoon {path}`\n\n{about}\n\n");
    let arguments: Vec<&clap::Arg> = command
        .get_arguments()
        .filter(|a| !a.is_global_set() && !matches!(a.get_id().as_str(), "help" | "version"))
        .collect();
    if !arguments.is_empty() {
        text.push_str("| argument | means |\n| --- | --- |\n");
        for argument in arguments {
            text.push_str(&format!("| {} | {} |\n", form(argument), meaning(argument)));
        }
        text.push('\n');
    }
    if let Some(examples) = command.get_after_help() {
        text.push_str(&format!("```text\n{examples}\n```\n"));
    }
    if let Some((_, json)) = JSON.iter().find(|(of, _)| *of == path) {
        text.push_str(&format!("\nJSON:\n\n```text\n{json}\n```\n"));
    }
    text
}

fn form(argument: &clap::Arg) -> String {
    let values: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let takes = argument.get_action().takes_values();
    let value = if takes {
        values.join(" ")
    } else {
        String::new()
    };
    let name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long} {value}"),
        (None, Some(long)) => format!("--{long} {value}"),
        _ if argument.is_required_set() => value,
        _ => format!("[{value}]"),
    };
    format!("`{}`", name.trim())
}

fn meaning(argument: &clap::Arg) -> String {
    let help = argument
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let default: Vec<String> = argument
        .get_default_values()
        .iter()
        .filter_map(|v| v.to_str())
        .map(|v| format!("`{v}`"))
        .collect();
    let choices: Vec<String> = match argument.get_action().takes_values() {
        true => argument
            .get_possible_values()
            .iter()
            .map(|v| format!("`{}`", v.get_name()))
            .collect(),
        false => Vec::new(),
    };
    let mut text = help.replace('|', "\\|");
    if !choices.is_empty() {
        text.push_str(&format!(" ({})", choices.join(", ")));
    }
    if !default.is_empty()
        && !argument.is_hide_default_value_set()
        && argument.get_action().takes_values()
    {
        text.push_str(&format!("; {} unless given", default.join(" ")));
    }
    text
}

#[test]
fn docs_cli_md_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let made = render();
    if std::env::var_os("PONTOON_WRITE_DOCS").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == made,
        "docs/cli.md is not what the program says: run `PONTOON_WRITE_DOCS=1 cargo test --lib docs_cli_md_is_true`"
    );
}

#[test]
fn every_command_says_what_json_it_writes_and_gives_an_example() {
    let leaves = leaves(&Cli::command(), "");
    for leaf in &leaves {
        let path = leaf.path.as_str();
        let documented = JSON.iter().any(|(of, _)| *of == path);
        assert_ne!(documented, WITHOUT_JSON.contains(&path), "{path}");
        assert!(shows_example(&leaf.command), "{path} has no example");
        assert!(
            leaf.command.get_about().is_some(),
            "{path} says nothing of itself"
        );
    }
    for group in groups(&Cli::command()) {
        assert!(shows_example(&group), "{} has no example", group.get_name());
    }
    for (path, _) in JSON {
        assert!(
            leaves.iter().any(|l| l.path == *path),
            "{path} is no command"
        );
    }
}

/// What help shows can be typed.
#[test]
fn every_example_is_a_command() {
    let root = Cli::command();
    let commands = leaves(&root, "").into_iter().map(|leaf| leaf.command);
    let mut shown = 0;
    for command in commands.chain(groups(&root)).chain([root.clone()]) {
        let help = command.get_after_help().or(command.get_after_long_help());
        let help = help.map(ToString::to_string).unwrap_or_default();
        let is_head = |line: &str| matches!(line, "Example:" | "Examples:");
        let examples = help.split("\n\n").filter_map(|part| {
            let mut lines = part.lines();
            lines.next().filter(|head| is_head(head)).map(|_| lines)
        });
        for line in examples.flatten() {
            let words = super::tests::shown_command(line);
            let words = words.unwrap_or_else(|| panic!("{}: {line}", command.get_name()));
            let words: Vec<_> = words.iter().map(std::ffi::OsString::from).collect();
            let parsed = super::parse(&words);
            assert!(
                parsed.is_ok(),
                "{line}: {}",
                parsed.err().map(|e| e.to_string()).unwrap_or_default()
            );
            shown += 1;
        }
    }
    assert!(shown > 80, "only {shown} examples were found");
}

fn shows_example(command: &clap::Command) -> bool {
    let help = command.get_after_help().or(command.get_after_long_help());
    help.is_some_and(|help| help.to_string().contains("Example"))
}

/// The commands that have commands of their own.
fn groups(command: &clap::Command) -> Vec<clap::Command> {
    let own = command.get_subcommands().filter(|c| c.has_subcommands());
    own.flat_map(|group| std::iter::once(group.clone()).chain(groups(group)))
        .collect()
}
