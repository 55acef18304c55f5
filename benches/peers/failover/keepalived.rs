//! keepalived, two hosts of it, as an operator would set it up: VRRP version 3, one VIP, a preferred master, and on each host the
//! service that answers on the VIP.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use jepsen_like::{
    lab::{
        Lab, LabError,
        cluster::{CLIENT, Fault, dns_at, vip4, wait_for},
        namespace::Namespace,
        network::{self, DEVICE},
    },
    traffic,
};
use nix::sys::signal::{Signal, kill};
use socket2::{Domain, Protocol, Socket, Type};

const HOSTS: [(&str, u8, u8); 2] = [("k1", 11, 200), ("k2", 12, 100)];
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Two hosts that run keepalived, and a client.
pub struct Pair {
    daemons: Vec<Daemon>,
    client: Arc<Namespace>,
    lab: Lab,
}

struct Daemon {
    name: &'static str,
    host: Arc<Namespace>,
    config: String,
    process: Option<Child>,
}

impl Pair {
    /// `advert` is the interval between advertisements in seconds.
    pub fn start(advert: &str, echo_port: u16) -> Result<Self, LabError> {
        let mut lab = Lab::create()?;
        let client = lab.add_host(CLIENT, 200)?;
        let mut daemons = vec![];
        for (name, number, priority) in HOSTS {
            let host = lab.add_host(name, number)?;
            let path = lab.directory().join(format!("{name}.conf"));
            let vip = vip4();
            let text = format!(
                "global_defs {{\n  router_id {name}\n  vrrp_version 3\n}}\n\
                 vrrp_instance front {{\n  state BACKUP\n  interface {DEVICE}\n  virtual_router_id 51\n  priority {priority}\n  \
                 advert_int {advert}\n  virtual_ipaddress {{\n    {vip}/32 dev {DEVICE}\n  }}\n}}\n"
            );
            fs::write(&path, text).map_err(LabError::Directory)?;
            serve(&host, echo_port)?;
            daemons.push(Daemon {
                name,
                host,
                config: path.display().to_string(),
                process: None,
            });
        }
        for daemon in &mut daemons {
            daemon.start()?;
        }
        Ok(Self {
            daemons,
            client,
            lab,
        })
    }

    pub fn client(&self) -> &Arc<Namespace> {
        &self.client
    }

    pub fn lab_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }

    /// Waits until the preferred host alone has the VIP.
    pub fn wait_until_settled(&self) -> Result<(), LabError> {
        let settled = wait_for("the VIP on the master alone", BACK_WITHIN, || {
            let [first, second] = self.holders()?;
            Ok((first && !second).then_some(()))
        });
        settled.map_err(|error| LabError::WithLogs {
            error: Box::new(error),
            logs: self.logs(),
        })
    }

    pub fn wait_for_other(&self) -> Result<(), LabError> {
        wait_for("the VIP on the other host", BACK_WITHIN, || {
            let [_, second] = self.holders()?;
            Ok(second.then_some(()))
        })
    }

    fn logs(&self) -> String {
        let log = |daemon: &Daemon| {
            let text = fs::read_to_string(daemon.log()).unwrap_or_default();
            format!("\n--- {}\n{text}", daemon.name)
        };
        self.daemons.iter().map(log).collect()
    }

    fn holders(&self) -> Result<[bool; 2], LabError> {
        let mut holds = [false; 2];
        for (place, daemon) in holds.iter_mut().zip(&self.daemons) {
            let shown = daemon.host.ip(&["-o", "address", "show"])?;
            *place = shown.contains(&format!(" {}/32 ", vip4()));
        }
        Ok(holds)
    }

    fn master(&mut self) -> Result<&mut Daemon, LabError> {
        self.daemons.first_mut().ok_or(LabError::NoNode)
    }

    pub fn inject(&mut self, fault: Fault) -> Result<(), LabError> {
        match fault {
            Fault::Kill => {
                // First held, then killed: neither its two processes may see the other end, and say farewell.
                self.master()?.signal(Signal::SIGSTOP);
                self.master()?.signal(Signal::SIGKILL);
                self.master()?.wait();
                let host = self.master()?.host.clone();
                wait_for("the end of keepalived", BACK_WITHIN, || {
                    Ok(host.processes().is_empty().then_some(()))
                })
            }
            Fault::Pause => {
                self.master()?.signal(Signal::SIGSTOP);
                Ok(())
            }
            Fault::Cut => self.lab.network().cut(HOSTS[0].0),
        }
    }

    pub fn heal(&mut self, fault: Fault) -> Result<(), LabError> {
        match fault {
            Fault::Kill => {
                // What a killed one left on the device is the operator's to remove.
                self.master()?.remove_leftover();
                self.master()?.start()
            }
            Fault::Pause => {
                self.master()?.signal(Signal::SIGCONT);
                Ok(())
            }
            Fault::Cut => self.lab.network().heal(HOSTS[0].0),
        }
    }

    /// A planned move: the master is told to end, and says so to the other.
    pub fn stop_master(&mut self) -> Result<(), LabError> {
        self.master()?.stop();
        Ok(())
    }

    pub fn start_master(&mut self) -> Result<(), LabError> {
        self.master()?.start()
    }
}

impl Daemon {
    fn log(&self) -> String {
        format!("{}.log", self.config)
    }

    fn start(&mut self) -> Result<(), LabError> {
        let mut command = self.host.command("keepalived")?;
        let mut log = fs::File::options();
        log.create(true).append(true);
        let log = log.open(self.log());
        let log = log.map_err(LabError::Directory)?;
        for kind in ["main", "vrrp"] {
            // Of one that was killed, and that it would take for one that runs.
            let _ = fs::remove_file(format!("{}.{kind}.pid", self.config));
        }
        let pid = |kind: &str| format!("{}.{kind}.pid", self.config);
        command
            .args(["--dont-fork", "--vrrp", "--log-console", "--use-file"])
            .arg(&self.config)
            .args(["--pid", &pid("main"), "--vrrp_pid", &pid("vrrp")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(LabError::Directory)?)
            .stderr(log);
        let process = command.spawn().map_err(|source| LabError::Start {
            command: format!("keepalived of {}", self.name),
            source,
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Its processes: the one that was started and what it started. The services are threads of ours, elsewhere.
    fn signal(&self, signal: Signal) {
        for pid in self.host.processes() {
            let _ = kill(pid, signal); // ended meanwhile: as well
        }
    }

    /// SIGTERM, and waits for the end.
    fn stop(&mut self) {
        if let Some(process) = &self.process {
            let pid = nix::unistd::Pid::from_raw(process.id() as i32);
            let _ = kill(pid, Signal::SIGTERM); // ended meanwhile: as well
        }
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.wait(); // it is our child, and nobody else waits for it
        }
    }

    fn remove_leftover(&self) {
        let address = format!("{}/32", vip4());
        // It may have none.
        let _ = self
            .host
            .ip(&["address", "delete", &address, "dev", DEVICE]);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }
}

/// A DNS service and an echo service at the VIP, whether or not this host has it at present.
fn serve(host: &Namespace, echo_port: u16) -> Result<(), LabError> {
    let failed = |source| LabError::Enter {
        namespace: host.name().to_owned(),
        source,
    };
    let IpAddr::V4(_) = vip4() else {
        return Err(LabError::NoNode);
    };
    let open = || -> std::io::Result<(UdpSocket, TcpListener)> {
        let dns = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        dns.set_freebind_v4(true)?;
        dns.bind(&dns_at(vip4()).into())?;
        let echo = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        echo.set_freebind_v4(true)?;
        echo.bind(&SocketAddr::new(vip4(), echo_port).into())?;
        echo.listen(1024)?;
        Ok((dns.into(), echo.into()))
    };
    let (dns, echo) = host.enter(open)?.map_err(failed)?;
    traffic::serve_echo(echo);
    std::thread::spawn(move || answer(&dns));
    Ok(())
}

/// Every question gets the same answer, an A record; until the process ends.
fn answer(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let Some(question) = buffer.get(..length).filter(|q| q.len() > 12) else {
            continue;
        };
        let mut reply = question.to_vec();
        if let Some(head) = reply.get_mut(2..8) {
            head.copy_from_slice(&[0x84, 0, 0, 1, 0, 1]);
        }
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(network::ipv4(210).octets());
        // A client that is gone is no fault of the service.
        let _ = socket.send_to(&reply, client);
    }
}
