//! The hands of a scenario that does its faults in an order of its own. What a fault does is done to nodes by name, and noted in
//! the history by `begin` and `end`.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use pontoon::{
    model::{
        name::Name,
        rdata,
        rrset::{RecordType, Rrset},
        timing::Timing,
    },
    state::command::Change,
};

use crate::{
    history::Fault,
    lab::{
        LabError,
        cluster::{Node, vip4, vip6, wait_for, write_of},
        namespace,
        network::DEVICE,
    },
    nemesis::{Kind, inject::Nemesis},
};

/// For whatever a scenario waits for.
const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(5);
/// For one of several tries to write.
const WRITE: Duration = Duration::from_secs(1);
/// Operations under way end within this.
const HUSHED: Duration = Duration::from_millis(700);
/// The longest IP packet that can be TCP's word that data arrived, in octets: two headers with all their options. What TLS says
/// is longer, whatever it says.
const RECEIPT: u32 = 80;
/// The table that drops frames on a node's host.
const TABLE: &str = "selftest";
/// Records of one large write, some 150 octets each: more than a snapshot waits for in its scenario.
const MUCH: u32 = 1000;

pub struct Stage<'a, 'b> {
    nemesis: &'a mut Nemesis<'b>,
    is_over: &'a dyn Fn() -> bool,
}

impl<'a, 'b> Stage<'a, 'b> {
    pub fn new(nemesis: &'a mut Nemesis<'b>, is_over: &'a dyn Fn() -> bool) -> Self {
        Self { nemesis, is_over }
    }

    /// Clients go on for so long, and what ends by itself is started again.
    pub fn go_on(&mut self, time: Duration) -> Result<(), LabError> {
        self.nemesis.publish_processes();
        self.nemesis.rest(time, self.is_over)
    }

    /// Clients end what they are at, and begin nothing until told to go on.
    pub fn hush(&mut self) -> Result<(), LabError> {
        self.nemesis.board().set_quiet(true);
        self.go_on(HUSHED)
    }

    pub fn resound(&self) {
        self.nemesis.board().set_quiet(false);
    }

    pub fn begin<'n>(
        &mut self,
        kind: Kind,
        nodes: impl IntoIterator<Item = &'n String>,
        hit_leader: bool,
    ) -> Fault {
        self.begin_named(kind.name(), nodes, hit_leader)
    }

    pub fn begin_named<'n>(
        &mut self,
        kind: &str,
        nodes: impl IntoIterator<Item = &'n String>,
        hit_leader: bool,
    ) -> Fault {
        let nodes = nodes.into_iter().cloned().collect();
        tracing::info!(kind, ?nodes, "inject");
        let fault = Fault {
            kind: kind.to_owned(),
            nodes,
            began: self.nemesis.recorder().now(),
            healed: None,
            hit_leader,
            skipped: None,
        };
        self.nemesis.begin_scripted(fault.clone());
        fault
    }

    pub fn end(&mut self, fault: Fault) {
        tracing::info!(kind = fault.kind, "heal");
        self.nemesis.end_scripted(fault);
    }

    /// Who leads, and the rest.
    pub fn leader_and_others(&self) -> Result<(String, Vec<String>), LabError> {
        let leader = self.nemesis.cluster().leader()?.name().to_owned();
        Ok(self.others_of(leader, None))
    }

    /// Who leads and has the VIPs, and the rest.
    pub fn holder_and_others(&self) -> Result<(String, Vec<String>), LabError> {
        let leader = self.wait_for_leader("a leader that holds the VIPs", |leader| {
            self.has_vips(leader)
        })?;
        Ok(self.others_of(leader, None))
    }

    /// Who leads in the place of `former` and has the VIPs, and the rest, `former` among them.
    pub fn holder_other_than(&self, former: &str) -> Result<(String, Vec<String>), LabError> {
        let leader = self.wait_for_leader("another leader that holds the VIPs", |leader| {
            Ok(leader != former && self.has_vips(leader)?)
        })?;
        Ok(self.others_of(leader, None))
    }

    /// Who leads in the place of `former`, and who is neither.
    pub fn leader_other_than(&self, former: &str) -> Result<(String, Vec<String>), LabError> {
        let leader = self.wait_for_leader("another leader", |leader| Ok(leader != former))?;
        Ok(self.others_of(leader, Some(former)))
    }

    /// By what each node says of itself: a status of the cluster takes its time while a node is out of reach.
    fn wait_for_leader(
        &self,
        what: &str,
        is_meant: impl Fn(&str) -> Result<bool, LabError>,
    ) -> Result<String, LabError> {
        wait_for(what, PATIENCE, || match self.nemesis.board().leader() {
            Some(leader) if is_meant(&leader)? => Ok(Some(leader)),
            _ => Ok(None),
        })
    }

    fn has_vips(&self, node: &str) -> Result<bool, LabError> {
        let node = self.nemesis.cluster().node(node)?;
        Ok(node.has_address(vip4())? && node.has_address(vip6())?)
    }

    /// Until so many changes under a precondition have been asked for again after they were done: what is done twice then is
    /// refused the second time.
    pub fn wait_for_retries(&self, count: u64) -> Result<(), LabError> {
        let retries = self.nemesis.board().retries();
        wait_for("changes that are asked for again", PATIENCE, || {
            Ok((retries.load(Ordering::Relaxed) >= count).then_some(()))
        })
    }

    /// Until a write through this node is acknowledged.
    pub fn write_through(&self, node: &str) -> Result<(), LabError> {
        let client = self.nemesis.cluster().node(node)?.client();
        wait_for(&format!("a write through {node}"), PATIENCE, || {
            let text = rand::random::<u32>().to_string();
            Ok(client.propose(&[write_of(&text)], WRITE).ok())
        })
        .map(drop)
    }

    fn others_of(&self, leader: String, former: Option<&str>) -> (String, Vec<String>) {
        let names = self.nemesis.cluster().nodes().iter().map(Node::name);
        let others = names.filter(|name| *name != leader && Some(*name) != former);
        let others = others.map(str::to_owned).collect();
        (leader, others)
    }

    pub fn first(&self, nodes: &[String]) -> Result<String, LabError> {
        nodes.first().cloned().ok_or(LabError::NoNode)
    }

    /// One that has ended by itself before is dead as well, and its end is noted.
    pub fn kill(&mut self, node: &str) -> Result<(), LabError> {
        self.nemesis.kill(node).map(drop)
    }

    pub fn pause(&self, node: &str) -> Result<(), LabError> {
        self.nemesis.cluster().node(node)?.pause()
    }

    pub fn resume(&self, node: &str) -> Result<(), LabError> {
        self.nemesis.cluster().node(node)?.resume()
    }

    pub fn start(&mut self, node: &str) -> Result<(), LabError> {
        self.nemesis.cluster_mut().node_mut(node)?.start()
    }

    /// The node's link passes nothing.
    pub fn cut(&self, node: &str) -> Result<(), LabError> {
        self.nemesis.cluster().lab().network().cut(node)
    }

    /// Undoes `cut`.
    pub fn mend(&self, node: &str) -> Result<(), LabError> {
        self.nemesis.cluster().lab().network().heal(node)
    }

    /// A node and some others hear nothing of each other; clients and witnesses go on hearing all.
    pub fn part(&self, node: &str, others: &[String]) -> Result<(), LabError> {
        let this = [node.to_owned()];
        others
            .iter()
            .try_for_each(|other| self.deafen(other, &this))?;
        self.deafen(node, others)
    }

    /// A node hears nothing of some others.
    pub fn deafen(&self, node: &str, unheard: &[String]) -> Result<(), LabError> {
        self.refuse_frames(node, unheard, None)
    }

    /// A node is told by some others that what it sent has arrived, and nothing else: its connections go on carrying what it
    /// sends, where those of a node that is told nothing at all come to a halt within 200 ms.
    pub fn deafen_to_words(&self, node: &str, unheard: &[String]) -> Result<(), LabError> {
        let says_nothing = format!("ip protocol tcp ip length <= {RECEIPT}");
        self.refuse_frames(node, unheard, Some(&says_nothing))
    }

    /// A node takes no frames of some others, but for those that match.
    fn refuse_frames(
        &self,
        node: &str,
        unheard: &[String],
        taken: Option<&str>,
    ) -> Result<(), LabError> {
        let cluster = self.nemesis.cluster();
        let macs = unheard
            .iter()
            .map(|name| cluster.node(name)?.host().mac(DEVICE));
        let macs = macs.collect::<Result<Vec<_>, _>>()?.join(", ");
        let from_them = format!("add rule netdev {TABLE} in ether saddr {{ {macs} }}");
        let mut text = format!(
            "add table netdev {TABLE}; \
             add chain netdev {TABLE} in {{ type filter hook ingress device \"{DEVICE}\" priority -400; policy accept; }}; "
        );
        text.extend(taken.map(|taken| format!("{from_them} {taken} accept; ")));
        text += &format!("{from_them} drop");
        cluster.node(node)?.host().output("nft", &[&text]).map(drop)
    }

    /// Everybody hears everybody.
    pub fn unpart(&self) -> Result<(), LabError> {
        let text = format!("add table netdev {TABLE}; delete table netdev {TABLE}");
        let nodes = self.nemesis.cluster().nodes().iter();
        nodes
            .map(Node::host)
            .try_for_each(|host| host.output("nft", &[&text]).map(drop))
    }

    /// A leader that cannot, or says so, is as well.
    pub fn transfer(&self, leader: &str) -> Result<(), LabError> {
        let client = self.nemesis.cluster().node(leader)?.client();
        if let Err(refused) = client.transfer(Duration::from_secs(2)) {
            tracing::info!(%refused, "transfer");
        }
        Ok(())
    }

    /// From now on the cluster counts time so.
    pub fn set_timing(&self, timing: &Timing) -> Result<(), LabError> {
        let cluster = self.nemesis.cluster();
        cluster.leader()?.client().set_timing(timing, SHORT)?;
        let refusal = timing.election_timeout_max.as_millis();
        wait_for("every node to count time anew", PATIENCE, || {
            let Some(leader) = cluster.leader_now() else {
                return Ok(None);
            };
            let Ok(status) = leader.client().status(SHORT) else {
                return Ok(None);
            };
            let mut nodes = status.nodes.iter();
            let follows = nodes.all(|node| u128::from(node.election_timeout_max_ms) == refusal);
            Ok(follows.then_some(()))
        })
    }

    /// One large write, which can hardly be compressed.
    pub fn write_much(&self) -> Result<(), LabError> {
        let number: u32 = rand::random();
        let apex = name(&format!("much{number}.test."));
        let soa = format!("ns.{apex} admin.{apex} 1 3600 600 86400 60");
        let ns = format!("ns.{apex}");
        let mut records = vec![
            (apex.clone(), record(RecordType::SOA, &soa)),
            (apex.clone(), record(RecordType::NS, &ns)),
            (name(&ns), record(RecordType::A, "10.77.0.11")),
        ];
        records.extend((0..MUCH).map(|number| {
            let noise = [rand::random::<u128>(), rand::random(), rand::random()];
            let text = noise.map(|part| format!("{part:032x}")).concat();
            let owner = name(&format!("r{number}.{apex}"));
            (owner, record(RecordType::TXT, &format!("\"{text}\"")))
        }));
        let change = Change::CreateZone {
            zone: apex,
            records,
        };
        let leader = self.nemesis.cluster().leader()?;
        leader.client().propose(&[change], PATIENCE)?;
        Ok(())
    }

    /// Until a node says that it wrote one.
    pub fn wait_for_snapshot(&self, node: &str) -> Result<(), LabError> {
        let log = self.nemesis.cluster().node(node)?.log();
        wait_for(&format!("a snapshot of {node}"), PATIENCE, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains("snapshot written").then_some(()))
        })
    }

    /// From now on the file system of a node keeps to itself for minutes what nobody told it to give to the disk; that gets what there is.
    pub fn keep_back(&self, node: &str) -> Result<(), LabError> {
        let mounted = self.nemesis.cluster().node(node)?.data();
        tool("mount", &["-o", "remount,commit=300", text(&mounted)])
    }

    /// The power of a node's disk and processor goes at one instant: what the kernel had not given to the disk is gone. The node
    /// is not running afterwards.
    pub fn lose_power(&mut self, name: &str) -> Result<(), LabError> {
        let node = self.nemesis.cluster().node(name)?;
        let disk = node.disk().ok_or(LabError::NoNode)?;
        let (image, mounted) = (disk.image().to_owned(), node.data());
        let frozen = image.with_extension("frozen");
        node.pause()?;
        let began = Instant::now();
        tool("cp", &["--sparse=always", text(&image), text(&frozen)])?;
        tracing::info!(took = ?began.elapsed(), "the disk as it is without power");
        self.kill(name)?;
        tool("umount", &[text(&mounted)])?;
        fs::rename(&frozen, &image).map_err(LabError::Directory)?;
        tool("mount", &["-o", "loop", text(&image), text(&mounted)])
    }
}

fn tool(program: &str, arguments: &[&str]) -> Result<(), LabError> {
    let mut command = Command::new(program);
    command.args(arguments);
    namespace::finish(command, program, arguments).map(drop)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's own paths are ASCII")
}

fn record(rtype: RecordType, text: &str) -> Rrset {
    let data = rdata::parse(rtype, text, &Name::root()).expect("a record written in this file");
    Rrset::new(rtype, 60, [data]).expect("a set of one record")
}

fn name(text: &str) -> Name {
    Name::parse(text, &Name::root()).expect("a name written in this file")
}
