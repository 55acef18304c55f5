//! The service that runs a node of this host, as its systemd unit describes it: whose the node's data directory has to be.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, chown},
    path::{Path, PathBuf},
};

use nix::unistd::{Group, User};

/// The unit that the packages install.
const UNIT: &str = "pontoon.service";
/// Where systemd looks for units; what comes first goes before what comes later.
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
/// What `pontoon node` reads unless it is told another file.
const DEFAULT_CONFIG: &str = "/etc/pontoon/node.toml";

/// What a unit says of the process it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// None: root.
    user: Option<String>,
    /// None: the user's own.
    group: Option<String>,
    /// The configuration that its node reads.
    config: PathBuf,
}

impl Service {
    /// The service of this host whose node reads `config`; none: no unit says so.
    ///
    /// # Errors
    /// When a unit is there and cannot be read.
    pub fn of_node(config: &Path) -> io::Result<Option<Self>> {
        let texts = unit_texts(&UNIT_DIRECTORIES.map(Path::new))?;
        let found = Self::read(&texts);
        let config = std::path::absolute(config)?;
        Ok(found.filter(|service| service.config == config))
    }

    /// Reads a unit and what was dropped in, in their order; none: it starts nothing.
    fn read(texts: &[String]) -> Option<Self> {
        let (mut user, mut group, mut command) = (None, None, None);
        for text in texts {
            let mut section = "";
            for line in text.lines().map(str::trim) {
                if line.starts_with('[') {
                    section = line;
                    continue;
                }
                if section != "[Service]" || line.starts_with(['#', ';']) {
                    continue;
                }
                let Some((key, value)) = line.split_once('=') else {
                    continue;
                };
                // An empty value takes back what was said before.
                let value = Some(value.trim()).filter(|v| !v.is_empty());
                match key.trim() {
                    "User" => user = value.map(str::to_owned),
                    "Group" => group = value.map(str::to_owned),
                    "ExecStart" => command = value.map(str::to_owned),
                    _ => {}
                }
            }
        }
        let config = config_of(&command?);
        Some(Self {
            user,
            group,
            config,
        })
    }

    /// The numbers of its user and group; none: this host does not know them.
    fn numbers(&self) -> io::Result<Option<(u32, u32)>> {
        let name = self.user.as_deref().unwrap_or("root");
        let user = match name.parse() {
            Ok(number) => User::from_uid(nix::unistd::Uid::from_raw(number))?,
            Err(_) => User::from_name(name)?,
        };
        let Some(user) = user else {
            return Ok(None);
        };
        let group = match self.group.as_deref() {
            None => Some(user.gid.as_raw()),
            Some(name) => match name.parse() {
                Ok(number) => Some(number),
                Err(_) => Group::from_name(name)?.map(|group| group.gid.as_raw()),
            },
        };
        Ok(group.map(|group| (user.uid.as_raw(), group)))
    }
}

/// What follows `--config` in a command; else what a node reads without it.
fn config_of(command: &str) -> PathBuf {
    let mut words = command.split_whitespace();
    while let Some(word) = words.next() {
        let named = match word.strip_prefix("--config") {
            Some("") => words.next(),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        if let Some(named) = named {
            return named.trim_matches(['"', '\'']).into();
        }
    }
    DEFAULT_CONFIG.into()
}

/// The unit, if there is one, and what was dropped in, in the order in which systemd reads them.
fn unit_texts(directories: &[&Path]) -> io::Result<Vec<String>> {
    let Some(unit) = directories.iter().find_map(|dir| {
        let unit = dir.join(UNIT);
        unit.exists().then_some(unit)
    }) else {
        return Ok(Vec::new());
    };
    let mut dropped: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for directory in directories.iter().rev() {
        let entries = match fs::read_dir(directory.join(format!("{UNIT}.d"))) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            if let (Some(name), Some("conf")) = (
                path.file_name(),
                path.extension().and_then(|end| end.to_str()),
            ) {
                dropped.insert(name.to_owned(), path.clone());
            }
        }
    }
    let paths = std::iter::once(unit).chain(dropped.into_values());
    paths.map(fs::read_to_string).collect()
}

/// Makes an absent data directory, and gives it to the user of the service whose node it is of: `give_to_owner` then gives
/// whatever is made there to the same user. Does nothing unless root runs this and the unit names another user.
///
/// # Errors
/// When it cannot be made or given away.
pub fn prepare(data_dir: &Path, service: Option<&Service>) -> io::Result<()> {
    let Some(service) = service else {
        return Ok(());
    };
    if !nix::unistd::geteuid().is_root() || data_dir.try_exists()? {
        return Ok(());
    }
    let Some((user, group)) = service.numbers()?.filter(|(user, _)| *user != 0) else {
        return Ok(());
    };
    if let Some(parent) = data_dir.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::DirBuilder::new().mode(0o700).create(data_dir)?;
    chown(data_dir, Some(user), Some(group))
}

/// A warning when `data_dir` is root's and nothing says that the node runs as root.
///
/// # Errors
/// When it cannot be looked at.
pub fn left_to_root(data_dir: &Path, service: Option<&Service>) -> io::Result<Option<String>> {
    let owner = fs::metadata(data_dir)?.uid();
    Ok((owner == 0).then(|| root_text(data_dir, service)).flatten())
}

fn root_text(data_dir: &Path, service: Option<&Service>) -> Option<String> {
    let dir = data_dir.display();
    match service {
        None => Some(format!(
            "data directory {dir} belongs to root, and no unit {UNIT} says as whom its node runs: unless that is root, run `chown -R USER: {dir}` with the name of that user"
        )),
        Some(Service { user, group, .. }) => {
            let user = user
                .as_deref()
                .filter(|user| !["root", "0"].contains(user))?;
            let group = group.as_deref().unwrap_or_default();
            Some(format!(
                "data directory {dir} belongs to root, and {UNIT} runs its node as {user}: run `chown -R {user}:{group} {dir}`"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(user: &str, group: Option<&str>) -> Service {
        Service {
            user: Some(user.into()),
            group: group.map(str::to_owned),
            config: DEFAULT_CONFIG.into(),
        }
    }

    #[test]
    fn the_unit_of_the_packages_names_its_user() {
        let unit = include_str!("../../packaging/pontoon.service").to_owned();
        let found = Service::read(std::slice::from_ref(&unit));
        assert_eq!(found, Some(service("pontoon", Some("pontoon"))));
        // What is dropped in goes before, and an empty value takes back.
        let dropped = "[Unit]\nUser=nobody\n[Service]\n# User=x\nUser = ann\nGroup=\nExecStart=\nExecStart=/opt/pontoon node --config=/srv/n.toml\n";
        let found = Service::read(&[unit, dropped.to_owned()]);
        let expected = Service {
            config: "/srv/n.toml".into(),
            ..service("ann", None)
        };
        assert_eq!(found, Some(expected));
        for nothing in ["", "[Service]\nUser=ann\n", "[Service]\nExecStart=\n"] {
            assert_eq!(Service::read(&[nothing.to_owned()]), None, "{nothing}");
        }
        assert_eq!(
            config_of("/usr/bin/pontoon node"),
            Path::new(DEFAULT_CONFIG)
        );
    }

    #[test]
    fn units_of_the_administrator_go_before_those_of_packages() {
        let dir = tempfile::tempdir().expect("a directory");
        let (etc, lib) = (dir.path().join("etc"), dir.path().join("lib"));
        let directories = [etc.as_path(), lib.as_path()];
        assert!(unit_texts(&directories).expect("looked").is_empty());
        let put = |at: &Path, text: &str| {
            fs::create_dir_all(at.parent().expect("a parent")).expect("made");
            fs::write(at, text).expect("written");
        };
        put(&lib.join(UNIT), "unit");
        let dropped = format!("{UNIT}.d");
        put(&lib.join(&dropped).join("10.conf"), "hidden");
        put(&lib.join(&dropped).join("20.conf"), "last");
        put(&etc.join(&dropped).join("10.conf"), "first");
        put(&etc.join(&dropped).join("note.txt"), "no part of it");
        let texts = unit_texts(&directories).expect("read");
        assert_eq!(texts, ["unit", "first", "last"]);
        put(&etc.join(UNIT), "own");
        assert_eq!(unit_texts(&directories).expect("read")[0], "own");
    }

    #[test]
    fn a_new_data_directory_is_the_services() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "needs root");
            return crate::skipped::say("only root gives directories away");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("lib/pontoon");
        let root = service("root", None);
        for service in [None, Some(&root)] {
            prepare(&data, service).expect("looked");
            assert!(!data.exists(), "the node makes it as root");
        }
        let nobody = User::from_name("nobody").expect("looked").expect("there");
        let service = service("nobody", None);
        prepare(&data, Some(&service)).expect("made");
        let found = fs::metadata(&data).expect("there");
        assert_eq!(found.uid(), nobody.uid.as_raw());
        assert_eq!(found.gid(), nobody.gid.as_raw());
        assert_eq!(found.mode() & 0o777, 0o700);
        let told = left_to_root(&data, Some(&service)).expect("looked");
        assert_eq!(told, None);
        // One that is there is left to whom it belongs, and that is said.
        chown(&data, Some(0), Some(0)).expect("given");
        prepare(&data, Some(&service)).expect("looked");
        let told = left_to_root(&data, Some(&service)).expect("looked");
        let told = told.expect("a warning");
        assert!(told.contains("chown -R nobody: /"), "{told}");
    }

    #[test]
    fn what_stays_roots_is_told_unless_the_node_runs_as_root() {
        let dir = Path::new("/d");
        let told = |service: Option<&Service>| root_text(dir, service);
        let unknown = told(None).expect("a warning");
        assert!(unknown.contains("`chown -R USER: /d`"), "{unknown}");
        let known = told(Some(&service("ann", Some("staff")))).expect("a warning");
        assert!(known.contains("`chown -R ann:staff /d`"), "{known}");
        assert_eq!(told(Some(&service("root", None))), None);
        let unit = Service {
            user: None,
            ..service("", None)
        };
        assert_eq!(told(Some(&unit)), None);
    }
}
