//! Where nodes are reached, and how connections to them are secured.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::OnceLock,
    time::SystemTime,
};

use tonic::transport::Channel;

use super::{Global, cluster::NODE_TOML, exit};
use crate::{
    config::node::NodeConfig,
    model::{moment::moment_of, quoted::quoted},
    pki::{validity::Left, verify::Expected},
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

/// Nodes separated by commas, at least one: a list that a script left empty must not mean another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints(Vec<Endpoint>);

impl FromStr for Endpoints {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty());
        let named: Vec<Endpoint> = parts.map(str::parse).collect::<Result<_, _>>()?;
        match named.is_empty() {
            true => Err(format!(
                "{text} names no node: expected HOST:PORT, http://HOST:PORT or unix:PATH, several separated by commas",
                text = quoted(text)
            )),
            false => Ok(Self(named)),
        }
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
    certificate: ClientCertificate,
}

impl Dialer {
    /// What the command line and the environment say; where they are silent, what is found on this machine.
    pub fn new(global: &Global) -> Self {
        let certificate = ClientCertificate::of(global);
        let named = global.endpoints.as_ref().map(|Endpoints(named)| named);
        let own = own_socket(Path::new(NODE_TOML), SOCKETS);
        match (named, own) {
            (Some(named), _) => Self {
                endpoints: named.clone(),
                expected: true,
                own_node: false,
                certificate,
            },
            (None, Some(socket)) => Self {
                endpoints: vec![Endpoint::Unix(socket)],
                expected: true,
                own_node: true,
                certificate,
            },
            (None, None) => Self {
                endpoints: dev_endpoints(),
                expected: false,
                own_node: false,
                certificate,
            },
        }
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
        match self.advice(endpoint, &failure) {
            Some(hint) => Failure { hint, ..failure },
            None => failure,
        }
    }

    /// What may be behind a failure to speak with a node that is there.
    fn advice(&self, endpoint: &Endpoint, failure: &Failure) -> Option<String> {
        let problem = failure.problem.as_str();
        let Endpoint::Secure { host, .. } = endpoint else {
            return None;
        };
        if problem.contains("refused") || problem.contains("No such file") {
            return None;
        }
        if let Ok(Found::Nothing { why }) = self.certificate.found() {
            return Some(format!(
                "without a client certificate a loopback address is spoken to in plaintext; if the node speaks TLS, give --cert, --key and --ca{}",
                and_why(why)
            ));
        }
        if let Some(ending) = self.ending(endpoint, SystemTime::now()) {
            return Some(ending);
        }
        if speaks_tls(problem) {
            return Some(
                "the certificates of the node and of this client are of different clusters or not valid now: give --cert, --key and --ca of the node's cluster"
                    .to_owned(),
            );
        }
        is_loopback(host)
            .then(|| "a node of `pontoon dev` speaks plaintext: give http://HOST:PORT".to_owned())
    }

    /// What to say of the certificate that `endpoint` is spoken to with, when it ends soon or has ended.
    pub fn ending(&self, endpoint: &Endpoint, now: SystemTime) -> Option<String> {
        match (endpoint, self.certificate.found()) {
            (Endpoint::Secure { .. }, Ok(Found::Credentials(found))) => {
                let credentials = found.current();
                let name = credentials.identity().common_name();
                ending(&name, credentials.end()?, now)
            }
            _ => None,
        }
    }

    /// A channel to `endpoint`. It connects when it is first used.
    pub async fn channel(&self, endpoint: &Endpoint) -> Result<Channel, Failure> {
        let (host, port, security) = match endpoint {
            Endpoint::Unix(path) => return Ok(connect::unix_channel(path.clone())),
            Endpoint::Plain { host, port } => (host, *port, Security::Plain),
            Endpoint::Secure { host, port } => match self.certificate.found()? {
                Found::Credentials(credentials) => {
                    (host, *port, Security::Tls(credentials.clone()))
                }
                Found::Nothing { .. } if is_loopback(host) => (host, *port, Security::Plain),
                Found::Nothing { why } => return Err(no_certificate(endpoint, why)),
            },
        };
        let address = resolve(endpoint, host, port).await?;
        Ok(connect::channel(address, &security, Expected::AnyNode))
    }
}

/// Whether what was found wrong shows that the other side speaks TLS, as `rustls` words it: a certificate that was not
/// believed, here or there.
fn speaks_tls(problem: &str) -> bool {
    problem.contains("certificate") || problem.contains("fatal alert")
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

fn no_certificate(endpoint: &Endpoint, why: &[String]) -> Failure {
    let hint = format!(
        "give --cert, --key and --ca, or put admin.pem, admin.key and ca.pem (made by `pontoon cluster init` and `cluster admin create`) in ~/.config/pontoon{}",
        and_why(why)
    );
    Failure::new(
        FailureCode::Unauthenticated,
        format!("endpoint {endpoint}"),
        "it needs mutual TLS, and there is no client certificate",
        hint,
    )
}

/// The end of a hint: what kept certificates that are there from being used.
fn and_why(why: &[String]) -> String {
    match why.is_empty() {
        true => String::new(),
        false => format!(". Not used: {}", why.join("; ")),
    }
}

/// What to say of the certificate of administrator `name` that ends at `end`; none while there is time.
fn ending(name: &str, end: SystemTime, now: SystemTime) -> Option<String> {
    let word = match Left::at(now, end) {
        Left::Enough => return None,
        Left::Little => "ends",
        Left::Nothing => "ended",
    };
    let end = moment_of(end);
    Some(format!(
        "your client certificate {word} at {end}: `pontoon cluster admin create {name}` makes another, on a node over its socket if need be"
    ))
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

/// The client certificate, read when a connection first needs one: the unix socket and plaintext need none, whatever lies in
/// the usual places.
struct ClientCertificate {
    source: Source,
    found: OnceLock<Result<Found, Failure>>,
}

enum Source {
    /// Certificate, key and authority that were named: what is wrong with them is an error.
    Named([PathBuf; 3]),
    /// Directories to look in.
    Usual(Vec<PathBuf>),
}

enum Found {
    Credentials(SharedCredentials),
    Nothing {
        /// What is there and cannot be used, and why.
        why: Vec<String>,
    },
}

impl ClientCertificate {
    fn of(global: &Global) -> Self {
        Self::from(match (&global.cert, &global.key, &global.ca) {
            (Some(cert), Some(key), Some(ca)) => {
                Source::Named([cert.clone(), key.clone(), ca.clone()])
            }
            _ => Source::Usual(vec![admin_dir(), PathBuf::from("/etc/pontoon")]),
        })
    }

    fn from(source: Source) -> Self {
        Self {
            source,
            found: OnceLock::new(),
        }
    }

    fn found(&self) -> Result<&Found, Failure> {
        let found = self.found.get_or_init(|| self.source.look());
        found.as_ref().map_err(Clone::clone)
    }
}

impl Source {
    fn look(&self) -> Result<Found, Failure> {
        let dirs = match self {
            Self::Named([cert, key, ca]) => return load(cert, key, ca).map(Found::Credentials),
            Self::Usual(dirs) => dirs,
        };
        let mut why = Vec::new();
        for dir in dirs {
            let cert = dir.join("admin.pem");
            // One that may not be looked for cannot be read either, and is told of.
            if !cert.try_exists().unwrap_or(true) {
                continue;
            }
            match load(&cert, &dir.join("admin.key"), &dir.join("ca.pem")) {
                Ok(credentials) => return Ok(Found::Credentials(credentials)),
                Err(failure) => why.push(format!("{}: {}", failure.object, failure.problem)),
            }
        }
        Ok(Found::Nothing { why })
    }
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

    fn dialer(source: Source) -> Dialer {
        Dialer {
            endpoints: Vec::new(),
            expected: true,
            own_node: false,
            certificate: ClientCertificate::from(source),
        }
    }

    #[tokio::test]
    async fn a_certificate_is_read_where_one_is_needed() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for name in ["admin.pem", "admin.key", "ca.pem"] {
            fs::write(at(name), "garbled").expect("written");
        }
        let unix = Endpoint::Unix(at("absent.sock"));
        let plain: Endpoint = "http://127.0.0.1:1".parse().expect("an endpoint");
        let loopback: Endpoint = "127.0.0.1:1".parse().expect("an endpoint");
        let remote: Endpoint = "192.0.2.1:1".parse().expect("an endpoint");
        // Nobody named it: it is as good as none, and the reason is told where one is needed.
        let usual = dialer(Source::Usual(vec![at("absent"), dir.path().to_owned()]));
        for endpoint in [&unix, &plain, &loopback] {
            assert!(usual.channel(endpoint).await.is_ok(), "{endpoint}");
        }
        let failure = usual.channel(&remote).await.expect_err("no certificate");
        assert_eq!(failure.code, FailureCode::Unauthenticated);
        assert!(failure.hint.contains("admin.pem"), "{failure:?}");
        assert!(failure.hint.contains("Not used: file "), "{failure:?}");
        // What was named must be good, where it is needed.
        let named = dialer(Source::Named(["admin.pem", "admin.key", "ca.pem"].map(at)));
        for endpoint in [&unix, &plain] {
            assert!(named.channel(endpoint).await.is_ok(), "{endpoint}");
        }
        for endpoint in [&loopback, &remote] {
            let failure = named.channel(endpoint).await.expect_err("garbled");
            assert_eq!(failure.code, FailureCode::Invalid, "{endpoint}");
        }
        let nothing = dialer(Source::Usual(vec![at("absent")]));
        let failure = nothing.channel(&remote).await.expect_err("no certificate");
        assert!(!failure.hint.contains("Not used"), "{failure:?}");
    }

    #[test]
    fn a_node_that_speaks_tls_is_not_taken_for_a_development_cluster() {
        use crate::pki::{authority::Authority, authority::request, identity::Identity};
        use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        let cluster = crate::model::node::ClusterId("c1".into());
        let now = SystemTime::now();
        let authority = Authority::create(&cluster, now).expect("authority");
        let asked = request().expect("request");
        let admin = Identity::admin(cluster, "ann");
        let certificate = authority.sign(&asked.csr_pem, &admin, &[], now);
        for (name, text) in [
            ("admin.pem", certificate.expect("signed").as_str()),
            ("admin.key", asked.key_pem.as_str()),
            ("ca.pem", authority.certificate_pem()),
        ] {
            fs::write(at(name), text).expect("written");
        }
        let dialer = dialer(Source::Usual(vec![dir.path().to_owned()]));
        let loopback: Endpoint = "127.0.0.1:1".parse().expect("an endpoint");
        for (error, is_tls) in [
            (Error::from(CertificateError::UnknownIssuer), true),
            (Error::AlertReceived(AlertDescription::UnknownCA), true),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                false,
            ),
        ] {
            let failure = Failure::new(FailureCode::Unreachable, "endpoint", &error, "");
            let hint = dialer.explained(&loopback, failure).hint;
            assert_eq!(hint.contains("http://"), !is_tls, "{error}: {hint}");
            assert_eq!(hint.contains("--ca"), is_tls, "{error}: {hint}");
        }
    }

    #[test]
    fn an_administrator_is_told_that_the_certificate_ends() {
        use std::time::{Duration, UNIX_EPOCH};
        let end = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let day = Duration::from_secs(86_400);
        assert_eq!(ending("ann", end, end - 31 * day), None);
        for (now, told) in [(end - 29 * day, "ends at"), (end + day, "ended at")] {
            let text = ending("ann", end, now).expect("a warning");
            assert!(
                text.contains(told) && text.contains("admin create ann"),
                "{text}"
            );
        }
    }

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
        for none in ["", ",", " , "] {
            let wrong = none.parse::<Endpoints>().expect_err(none);
            assert!(wrong.contains("names no node"), "{wrong}");
        }
        assert!("a:1,b".parse::<Endpoints>().is_err());
    }
}
