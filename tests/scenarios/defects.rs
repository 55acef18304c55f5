//! No deliberate defect can be switched on in the program as it is built for service.

use std::process::{Command, Output};

use pontoon::defect::{Defect, NONE, VARIABLE};

use crate::support::PONTOON;

fn run(switch: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(PONTOON);
    command.args(arguments).env_remove(VARIABLE);
    if let Some(switch) = switch {
        command.env(VARIABLE, switch);
    }
    command.output().unwrap()
}

#[test]
fn every_switch_is_refused_at_once() {
    let names: Vec<_> = Defect::ALL.iter().map(|defect| defect.name()).collect();
    assert!(names.len() >= 11, "{names:?}");
    let node = ["node", "--config", "/nonexistent/node.toml"];
    let dev = ["dev", "--dir", "/nonexistent/dev"];
    let status = ["cluster", "status", "-o", "json"];
    for switch in names.into_iter().chain([NONE, "", "no-such-defect"]) {
        for arguments in [&node[..], &dev[..], &status[..], &["--version"]] {
            let refused = run(Some(switch), arguments);
            let said = String::from_utf8_lossy(&refused.stderr);
            assert_eq!(
                refused.status.code(),
                Some(2),
                "{switch:?} {arguments:?}: {said}"
            );
            assert!(said.contains(VARIABLE), "{switch:?} {arguments:?}: {said}");
            assert!(refused.stdout.is_empty(), "{switch:?} {arguments:?}");
        }
    }
    assert!(run(None, &["--version"]).status.success());
}
