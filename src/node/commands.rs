//! The operator's executables that the configuration names: whether they are there and can be run. A look at the disk of this moment, so
//! `node --check` refuses what it finds, and a node that starts only warns: they may come later, with a mount or a package.

use std::{fs, io, path::Path};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access},
};

use crate::config::{Fault, node::NodeConfig};

/// One fault for each executable that this process's user could not run now.
pub fn faults(config: &NodeConfig) -> Vec<Fault> {
    let vip = &config.vip;
    let notify = vip.notify.as_deref().map(|path| ("vip.notify", path));
    let check = vip.check.as_ref();
    let check = check.map(|check| ("vip.check_script", check.path.as_path()));
    let named = [notify, check].into_iter().flatten();
    named
        .filter_map(|(key, path)| {
            let problem = problem(path)?;
            let path = path.display();
            let text = format!("\"{path}\" {problem}; give a file that the node's user can run");
            Some(Fault::new(key, text))
        })
        .collect()
}

/// Why a file cannot be run; none: it can.
fn problem(path: &Path) -> Option<String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("does not exist".to_owned()),
        Err(error) => Some(format!("cannot be looked at ({error})")),
        Ok(found) if !found.is_file() => Some("is not a file".to_owned()),
        Ok(_) => match access(path, AccessFlags::X_OK) {
            Ok(()) => None,
            Err(Errno::EACCES) => Some("is not executable".to_owned()),
            Err(error) => Some(format!("cannot be run ({error})")),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{
        config::ConfigError,
        node::{NodeError, check},
    };

    /// What `--check` says of a configuration with these executables.
    fn checked(directory: &Path, notify: &Path, script: &Path) -> Vec<(String, String)> {
        let config = directory.join("node.toml");
        let (data, notify, script) = (directory.display(), notify.display(), script.display());
        let text = format!(
            "name = \"n1\"\ndata_dir = \"{data}\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:7400\"\n\
             api = \"10.0.0.1:7401\"\n[vip]\nnotify = \"{notify}\"\ncheck_script = \"{script}\"\n"
        );
        fs::write(&config, text).unwrap();
        match check(&config) {
            Ok(()) => vec![],
            Err(NodeError::Config(ConfigError::Faults { faults, .. })) => faults
                .into_iter()
                .map(|fault| (fault.key, fault.problem))
                .collect(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_executable_that_cannot_be_run_is_a_fault_of_the_check() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let with_mode = |name: &str, mode: u32| {
            let path = directory.join(name);
            fs::write(&path, "#!/bin/sh\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (good, plain) = (with_mode("good", 0o755), with_mode("plain", 0o644));
        assert_eq!(checked(directory, &good, &good), []);

        let absent = directory.join("absent");
        let found = checked(directory, &absent, &plain);
        let expected = |path: &Path, problem: &str| {
            let path = path.display();
            format!("\"{path}\" {problem}; give a file that the node's user can run")
        };
        assert_eq!(
            found,
            [
                ("vip.notify".to_owned(), expected(&absent, "does not exist")),
                (
                    "vip.check_script".to_owned(),
                    expected(&plain, "is not executable")
                ),
            ]
        );
        let found = checked(directory, directory, &good);
        let expected = expected(directory, "is not a file");
        assert_eq!(found, [("vip.notify".to_owned(), expected)]);
    }
}
