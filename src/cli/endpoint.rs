//! Where nodes are reached, and how connections to them are secured.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use tonic::transport::Channel;

use super::{Global, cluster::NODE_TOML, exit};
use crate::{
    config::node::NodeConfig,
    model::quoted::quoted,
    pki::verify::Expected,
    transport::{
        Security, connect,
        credentials::{Credentials, SharedCredentials},
    },
    wire::error::{Failure, FailureCode},
};

/// Sockets of a node on this machine, in the order they are looked for.
const SOCKETS: &[&str] = &["/var/lib/pontoon/pontoon.sock", "/run/pontoon/pontoon.sock"];
/// API ports of `pontoon dev` with its own port base.
const DEV_PORTS: [u16; 5] = [5401, 5402, 5403, 5404, 5405];

/// One node as the operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Unix(PathBuf),
    /// Plaintext, loopback only.
    Plain {
        host: String,
        port: u16,
    },
    /// Mutual TLS; plaintext when it is a loopback address and there is no client certificate.
    Secure {
        host: String,
        port: u16,
    },
}

/// Nodes separated by commas. An empty text, such as an environment variable set to nothing, names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        if let Some(rest) = text.strip_prefix("http://") {
            let (host, port) = host_and_port(rest.trim_end_matches('/'))?;
            return match is_loopback(&host) {
                true => Ok(Self::Plain { host, port }),
                false => Err(format!(
                    "http:// speaks plaintext and is for loopback only; {host} needs mutual TLS: give {host}:{port}"
                )),
            };
        }
        let (host, port) = host_and_port(text)?;
        Ok(Self::Secure { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Plain { host, port } | Self::Secure { host, port } if host.contains(':') => {
                write!(f, "[{host}]:{port}")
            }
            Self::Plain { host, port } | Self::Secure { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let expected = || {
        format!(
            "{text} is no endpoint: expected HOST:PORT, http://HOST:PORT or unix:PATH",
            text = quoted(text)
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(expected)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
        Some(_) => return Err(expected()),
        None => host,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'%');
    match !host.is_empty() && host.bytes().all(plain) {
        true => Ok((host.to_owned(), port)),
        false => Err(expected()),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The endpoints to try and how to connect to them.
pub struct Dialer {
    endpoints: Vec<Endpoint>,
    /// Whether a node is to be expected there: they were named, or this machine has a node.
    expected: bool,
    /// They were not named, and this machine has a node of its own.
    own_node: bool,
    credentials: Option<SharedCredentials>,
}

impl Dialer {
    /// What the command line and the environment say; where they are silent, what is found on this machine.
    pub fn new(global: &Global) -> Result<Self, Failure> {
        let credentials = credentials(global)?;
        let named = global.endpoints.as_ref().map(|Endpoints(named)| named);
        let own = own_socket(Path::new(NODE_TOML), SOCKETS);
        Ok(match (named, own) {
            (Some(named), _) if !named.is_empty() => Self {
                endpoints: named.clone(),
                expected: true,
                own_node: false,
                credentials,
            },
            (_, Some(socket)) => Self {
                endpoints: vec![Endpoint::Unix(socket)],
                expected: true,
                own_node: true,
                credentials,
            },
            (_, None) => Self {
                endpoints: dev_endpoints(),
                expected: false,
                own_node: false,
                credentials,
            },
        })
    }

    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether a node is to be expected there: a guess at the ports of `pontoon dev` is not worth waiting for.
    pub fn is_expected(&self) -> bool {
        self.expected
    }

    /// The same with the first endpoint alone.
    #[must_use]
    pub fn first_only(mut self) -> Self {
        self.endpoints.truncate(1);
        self
    }

    /// A failure to connect, with what may be behind it.
    pub fn explained(&self, endpoint: &Endpoint, failure: Failure) -> Failure {
        if self.own_node {
            return Failure {
                problem: format!("this machine's node is not reachable: {}", failure.problem),
                hint: "start it (`systemctl start pontoon`), run this as a user who may use its socket, or name other nodes with --endpoints".to_owned(),
                ..failure
            };
        }
        let refused =
            failure.problem.contains("refused") || failure.problem.contains("No such file");
        let hint = match endpoint {
            _ if refused => return failure,
            Endpoint::Secure { .. } if self.credentials.is_none() => {
                "without a client certificate a loopback address is spoken to in plaintext; if the node speaks TLS, give --cert, --key and --ca"
            }
            Endpoint::Secure { host, .. } if is_loopback(host) => {
                "a node of `pontoon dev` speaks plaintext: give http://HOST:PORT"
            }
            _ => return failure,
        };
        Failure {
            hint: hint.to_owned(),
            ..failure
        }
    }

    /// A channel to `endpoint`. It connects when it is first used.
    pub async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, Failure> {
        let (host, port, security) = match endpoint {
            Endpoint::Unix(path) => return Ok(connect::unix_channel(path.clone())),
            Endpoint::Plain { host, port } => (host, *port, Security::Plain),
            Endpoint::Secure { host, port } => match &self.credentials {
                Some(credentials) => (host, *port, Security::Tls(credentials.clone())),
                None if is_loopback(host) => (host, *port, Security::Plain),
                None => return Err(no_certificate(endpoint)),
            },
        };
        let address = resolve(endpoint, host, port).await?;
        Ok(connect::channel(address, &security, Expected::AnyNode))
    }
}

async fn resolve(endpoint: &Endpoint, host: &str, port: u16) -> Result<SocketAddr, Failure> {
    let unreachable = |problem: String| {
        Failure::new(
            FailureCode::Unreachable,
            format!("endpoint {endpoint}"),
            problem,
            "check the name",
        )
    };
    tokio::net::lookup_host((host, port))
        .await
        .map_err(|e| unreachable(format!("{host} cannot be resolved: {e}")))?
        .next()
        .ok_or_else(|| unreachable(format!("{host} has no address")))
}

fn no_certificate(endpoint: &Endpoint) -> Failure {
    Failure::new(
        FailureCode::Unauthenticated,
        format!("endpoint {endpoint}"),
        "it needs mutual TLS, and there is no client certificate",
        "give --cert, --key and --ca, or put admin.pem, admin.key and ca.pem (made by `pontoon cluster init`) in ~/.config/pontoon",
    )
}

/// The unix socket of this machine's node, when it has one: there is a socket, or a configuration that names it. Whoever
/// runs a node here means that node, also while it is down, and never by surprise a cluster of `pontoon dev`.
fn own_socket(config: &Path, sockets: &[&str]) -> Option<PathBuf> {
    // A directory that may not be looked into is no proof that nothing is there.
    let there = |path: &Path| path.try_exists().unwrap_or(true);
    let usual = || sockets.iter().map(PathBuf::from);
    if !there(config) {
        return usual().find(|path| there(path));
    }
    let named = NodeConfig::load(config).map(|config| config.addresses.socket);
    named
        .ok()
        .or_else(|| usual().find(|path| there(path)))
        .or_else(|| usual().next())
}

/// The nodes of `pontoon dev`.
fn dev_endpoints() -> Vec<Endpoint> {
    let node = |port: &u16| Endpoint::Plain {
        host: "127.0.0.1".to_owned(),
        port: *port,
    };
    DEV_PORTS.iter().map(node).collect()
}

/// Where the administrator's certificate is kept.
pub fn admin_dir() -> PathBuf {
    let config = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
    config.map_or_else(|| PathBuf::from("/etc/pontoon"), |dir| dir.join("pontoon"))
}

fn credentials(global: &Global) -> Result<Option<SharedCredentials>, Failure> {
    if let (Some(cert), Some(key), Some(ca)) = (&global.cert, &global.key, &global.ca) {
        return load(cert, key, ca).map(Some);
    }
    for dir in [admin_dir(), PathBuf::from("/etc/pontoon")] {
        let cert = dir.join("admin.pem");
        if cert.exists() {
            return load(&cert, &dir.join("admin.key"), &dir.join("ca.pem")).map(Some);
        }
    }
    Ok(None)
}

fn load(cert: &Path, key: &Path, ca: &Path) -> Result<SharedCredentials, Failure> {
    let read = |path: &Path| fs::read_to_string(path).map_err(|e| exit::file(path, &e));
    let credentials = Credentials::from_pem(&read(cert)?, &read(key)?, &read(ca)?);
    credentials.map(SharedCredentials::new).map_err(|e| {
        exit::unusable(
            cert,
            e,
            "give a certificate, its key and its authority in PEM",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_with_a_node_means_that_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let (config, first, second) = (at("node.toml"), at("a.sock"), at("b.sock"));
        let text = |path: &Path| path.to_str().expect("plain").to_owned();
        let (first_text, second_text) = (text(&first), text(&second));
        let sockets = [first_text.as_str(), second_text.as_str()];
        let own = || own_socket(&config, &sockets);
        assert_eq!(own(), None, "neither a socket nor a configuration");
        fs::write(&second, "").expect("written");
        assert_eq!(own().as_deref(), Some(second.as_path()));
        // A configuration is enough, whether the node runs or not.
        fs::write(&config, "faulty =").expect("written");
        assert_eq!(own().as_deref(), Some(second.as_path()));
        fs::remove_file(&second).expect("removed");
        assert_eq!(own().as_deref(), Some(first.as_path()));
        let node = "name = \"n\"\ndata_dir = \"/srv/p\"\n[addresses]\nservice = [\"10.0.0.1\"]\nraft = \"10.0.0.1:1\"\napi = \"10.0.0.1:2\"\n";
        fs::write(&config, node).expect("written");
        assert_eq!(own(), Some("/srv/p/pontoon.sock".into()));
    }

    #[test]
    fn endpoints_are_read_as_the_contract_says() {
        let secure = |host: &str, port| Endpoint::Secure {
            host: host.into(),
            port,
        };
        let plain = |host: &str, port| Endpoint::Plain {
            host: host.into(),
            port,
        };
        for (text, expected) in [
            ("127.0.0.1:5401", secure("127.0.0.1", 5401)),
            ("n1.example:7401", secure("n1.example", 7401)),
            ("[::1]:5401", secure("::1", 5401)),
            ("http://127.0.0.1:5401", plain("127.0.0.1", 5401)),
            ("http://[::1]:5401/", plain("::1", 5401)),
            ("http://localhost:1", plain("localhost", 1)),
            ("unix:/run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("/run/x.sock", Endpoint::Unix("/run/x.sock".into())),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:70000",
            "[x]:1",
            "a b:1",
            "http://10.0.0.1:1",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        assert_eq!(secure("::1", 1).to_string(), "[::1]:1");
        let two = Endpoints(vec![secure("a", 1), secure("b", 2)]);
        assert_eq!("a:1, b:2,".parse(), Ok(two));
        assert_eq!("".parse(), Ok(Endpoints::default()));
        assert!("a:1,b".parse::<Endpoints>().is_err());
    }
}
