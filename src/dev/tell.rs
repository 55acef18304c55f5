//! What `pontoon dev` tells the person at the terminal.

use std::{
    collections::HashMap,
    fmt, fs,
    io::{self, Read, Seek, Write},
    path::Path,
};

use super::{
    DEFAULT_PORT_BASE, Dev, DevError,
    children::{End, NodeProcess},
    layout::VIP,
    standing::Standing,
};

impl Dev {
    /// A node without an identity, and how a member is made of it again.
    pub(super) fn say_absent(&self, node: u16, standing: Standing) -> Result<(), DevError> {
        let mut lines = self.absence(node, standing).into_iter();
        lines.try_for_each(|line| say(format_args!("{line}")))
    }

    /// The lines of `say_absent`. The commands begin with two blanks, and work as they stand.
    fn absence(&self, node: u16, standing: Standing) -> Vec<String> {
        let became = match standing {
            Standing::Left => "has left the cluster, or was removed from it",
            Standing::Member | Standing::Lost => "has lost its data",
        };
        let first = format!(
            "node {node} {became}; it is started again once it is admitted as a new member:"
        );
        let remove = format!(
            "  pontoon{} cluster remove n{node}    # unless that was done",
            self.endpoints_but(node)
        );
        let empty = format!("  rm -rf {}", quoted(&self.layout.node_data(node)));
        let join = format!("  {}", self.joining(node));
        match standing {
            Standing::Left => vec![first, empty, join],
            Standing::Member | Standing::Lost => vec![first, remove, empty, join],
        }
    }

    /// `: ` and why a node ended, if it chose to and said so.
    pub(super) fn last_words_of(&self, end: &End) -> Option<String> {
        let log = self.layout.node_dir(end.node).join("log");
        let words = last_words(&log).filter(|_| end.by_itself)?;
        Some(format!(": {words}"))
    }

    /// A node that cannot start as it is: why, and how it is replaced by one that can.
    pub(super) fn say_broken(&self, end: &End) -> Result<(), DevError> {
        let why = self.last_words_of(end).unwrap_or_default();
        let End { node, how, .. } = end;
        let dir = self.layout.node_dir(*node);
        let (data, dir) = (quoted(&self.layout.node_data(*node)), dir.display());
        say(format_args!("node {node} does not start ({how}){why}"))?;
        say(format_args!(
            "  its log is {dir}/log; the others go on without it. To replace it:"
        ))?;
        say(format_args!(
            "  pontoon{} cluster remove n{node} && rm -r {data}",
            self.endpoints_but(*node)
        ))?;
        say(format_args!("  {}", self.joining(*node)))?;
        say(format_args!("  and start `pontoon dev` again"))
    }

    /// The command that makes a member of a node whose directory holds no data.
    fn joining(&self, node: u16) -> String {
        let peers = self.others(node);
        let peers = peers.map(|peer| self.layout.api(peer).to_string());
        format!(
            "pontoon cluster join --token \"$(pontoon{} cluster token create)\" --peer {} --config {}",
            self.endpoints_but(node),
            peers.collect::<Vec<_>>().join(","),
            quoted(&self.layout.node_config(node))
        )
    }

    /// The members other than `node`.
    fn others(&self, node: u16) -> impl Iterator<Item = u16> {
        let all = self.layout.numbers();
        all.filter(move |other| *other != node && !self.absent.contains(other))
    }

    /// The option by which `pontoon` asks the members other than `node`, whatever the machine and the environment name.
    fn endpoints_but(&self, node: u16) -> String {
        // Without `http://` a client certificate in the usual place would make it speak TLS.
        let others = self.others(node);
        let apis = others.map(|other| format!("http://{}", self.layout.api(other)));
        format!(" --endpoints {}", apis.collect::<Vec<_>>().join(","))
    }

    /// The option by which `pontoon` finds this cluster; none for the ports where it looks by itself.
    fn endpoints(&self) -> String {
        match self.layout.port_base {
            DEFAULT_PORT_BASE => String::new(),
            _ => self.endpoints_but(0),
        }
    }

    pub(super) fn announce(
        &self,
        nodes: &HashMap<u16, NodeProcess>,
        sound: &[u16],
    ) -> Result<(), DevError> {
        let layout = &self.layout;
        let (count, all) = (sound.len(), usize::from(layout.nodes));
        let of = if count < all {
            format!(" of {all}")
        } else {
            String::new()
        };
        say(format_args!(
            "ready {count}{of} node{} in {}",
            if all == 1 { "" } else { "s" },
            layout.dir.display()
        ))?;
        for node in layout.numbers() {
            let Some(process) = nodes.get(&node).filter(|_| sound.contains(&node)) else {
                let why = match self.absent.contains(&node) {
                    true => "is no member",
                    false => "does not serve",
                };
                say(format_args!("  node {node}: {why}"))?;
                continue;
            };
            let pid = process.pid().unwrap_or_default();
            let (dns, api, http) = (layout.dns(node), layout.api(node), layout.http(node));
            say(format_args!(
                "  node {node}: DNS {dns}, API {api}, HTTP {http}, process {pid}"
            ))?;
        }
        say(format_args!(
            "  VIP: DNS {}, listeners on {VIP}",
            layout.vip_dns()
        ))?;
        if !self.empty {
            let (port, dns) = (
                layout.listener_port(),
                layout.dns(sound.first().copied().unwrap_or(1)),
            );
            say(format_args!("try:"))?;
            say(format_args!(
                "  dig @{} -p {} www.demo.test",
                dns.ip(),
                dns.port()
            ))?;
            say(format_args!(
                "  dig @{} -p {} anything.upstream.test",
                dns.ip(),
                dns.port()
            ))?;
            say(format_args!("  curl http://{VIP}:{port}/"))?;
        }
        let endpoints = self.endpoints();
        say(format_args!("  pontoon{endpoints} cluster status"))
    }
}

/// Tells the person at the terminal. If nobody reads it any more (`pontoon dev | head -1`), the cluster goes on all the same.
pub(super) fn say(line: fmt::Arguments<'_>) -> Result<(), DevError> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said.map_err(DevError::Output),
    }
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// What a log says last of why the node ended, cut to a readable length: its error, or else its last line.
fn last_words(log: &Path) -> Option<String> {
    const MOST: usize = 400;
    const TAIL: u64 = 8 << 10;
    let mut file = fs::File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(TAIL)))
        .ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let mut lines = tail.lines().rev().filter(|line| !line.trim().is_empty());
    let error = lines.clone().find_map(|line| line.strip_prefix("error: "));
    let line = error.or_else(|| lines.next())?;
    Some(line.trim().chars().take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::layout::Layout;

    fn dev(port_base: u16) -> Dev {
        Dev {
            layout: Layout {
                dir: "/tmp/it's".into(),
                nodes: 3,
                port_base,
            },
            seeded: true,
            empty: true,
            absent: [1].into(),
            removed: [].into(),
        }
    }

    /// With a client certificate in the usual place, bare loopback addresses would be spoken to by TLS.
    #[test]
    fn the_commands_speak_plaintext_to_the_members() {
        let others = " --endpoints http://127.0.0.1:12102,http://127.0.0.1:12103";
        assert_eq!(dev(12_000).endpoints(), others);
        assert_eq!(dev(DEFAULT_PORT_BASE).endpoints(), "");
        let peers = "127.0.0.1:12102,127.0.0.1:12103";
        let join = format!(
            r#"  pontoon cluster join --token "$(pontoon{others} cluster token create)" --peer {peers} --config '/tmp/it'\''s/n1/node.toml'"#
        );
        let empty = r"  rm -rf '/tmp/it'\''s/n1/data'";
        let left = dev(12_000).absence(1, Standing::Left);
        assert!(left[0].contains("has left the cluster"), "{left:?}");
        assert_eq!(left[1..], [empty, &join]);
        let lost = dev(12_000).absence(1, Standing::Lost);
        assert!(lost[0].contains("has lost its data"), "{lost:?}");
        let remove = format!("  pontoon{others} cluster remove n1    # unless that was done");
        assert_eq!(lost[1..], [remove.as_str(), empty, &join]);
        // What destroys something never goes to another cluster that the environment names.
        let lost = dev(DEFAULT_PORT_BASE).absence(1, Standing::Lost);
        let named = "--endpoints http://127.0.0.1:5402,";
        assert!(lost[1].contains(named), "{lost:?}");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        for (path, word) in [
            ("/tmp/d-1/n1", "/tmp/d-1/n1"),
            ("/tmp/a b", "'/tmp/a b'"),
            ("/tmp/$x", "'/tmp/$x'"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
