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
};

impl Dev {
    /// A node without data, and how it is admitted anew.
    pub(super) fn say_lost(&self, node: u16) -> Result<(), DevError> {
        let endpoints = self.endpoints();
        say(format_args!(
            "node {node} has lost its data and waits to be admitted anew:"
        ))?;
        say(format_args!(
            "  pontoon{endpoints} cluster remove n{node}    # unless that was done"
        ))?;
        say(format_args!("  {}", self.joining(node)))
    }

    /// A node that left the cluster, and how it may come back. Its data is emptied while it does not run.
    pub(super) fn say_left(&self, node: u16) -> Result<(), DevError> {
        let dir = self.layout.node_dir(node);
        say(format_args!(
            "node {node} has left the cluster; to admit it anew, end this command, and"
        ))?;
        say(format_args!(
            "  rm -r {}/data    # then start `pontoon dev` again, which says how to go on",
            dir.display()
        ))
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
        let dir = dir.display();
        say(format_args!("node {node} does not start ({how}){why}"))?;
        say(format_args!(
            "  its log is {dir}/log; the others go on without it. To replace it:"
        ))?;
        say(format_args!(
            "  pontoon{} cluster remove n{node} && rm -r {dir}/data",
            self.endpoints()
        ))?;
        say(format_args!("  {}", self.joining(*node)))?;
        say(format_args!("  and start `pontoon dev` again"))
    }

    /// The command that makes a member of a node whose directory holds no data.
    fn joining(&self, node: u16) -> String {
        let endpoints = self.endpoints();
        let peers: Vec<String> = (self.layout.numbers())
            .filter(|peer| *peer != node)
            .map(|peer| self.layout.api(peer).to_string())
            .collect();
        format!(
            "pontoon cluster join --token \"$(pontoon{endpoints} cluster token create)\" --peer {} --config {}",
            peers.join(","),
            self.layout.node_config(node).display()
        )
    }

    /// The option by which `pontoon` finds this cluster; none for the ports where it looks by itself.
    fn endpoints(&self) -> String {
        let apis = self
            .layout
            .numbers()
            .map(|n| self.layout.api(n).to_string());
        match self.layout.port_base {
            DEFAULT_PORT_BASE => String::new(),
            _ => format!(" --endpoints {}", apis.collect::<Vec<_>>().join(",")),
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
                say(format_args!("  node {node}: does not serve"))?;
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
