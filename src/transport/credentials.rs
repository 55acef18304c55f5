//! This process's certificate, its key and the authorities it believes, replaceable while it runs.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::NoServerSessionStorage,
};

use crate::{
    model::node::ClusterId,
    pki::{
        authority::fingerprint,
        identity::Identity,
        validity,
        verify::{ClientAuth, ClusterVerifier, Expected, PinnedVerifier, provider},
    },
};

/// Why a certificate, key or authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    #[error("{what} is no PEM text of the expected kind: {cause}")]
    Pem { what: &'static str, cause: String },
    #[error("the {what} holds no certificate")]
    Empty { what: &'static str },
    #[error(
        "the certificate names no Pontoon identity: it was not made by `cluster init`, `join`, `cluster admin` or `cluster ca`"
    )]
    NoIdentity,
    #[error("the file is that of {stated}, and its certificate that of {certified}")]
    OtherIdentity { stated: String, certified: String },
    #[error("certificate and key: {0}")]
    Tls(#[from] rustls::Error),
}

/// A certificate chain with its key, and the authorities it is checked against.
pub struct Credentials {
    identity: Identity,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    tolerated: Arc<AtomicU64>,
    /// What was made of these for connections that we accept.
    accepting: Accepting,
}

/// One for each way to ask for a client's certificate.
#[derive(Default)]
struct Accepting {
    mandatory: OnceLock<Arc<ServerConfig>>,
    optional: OnceLock<Arc<ServerConfig>>,
}

impl Credentials {
    /// Reads PEM texts: our certificate, its key, and the trusted authorities, the one that signed ours first.
    pub fn from_pem(
        certificate: &str,
        key: &str,
        authorities: &str,
    ) -> Result<Self, CredentialsError> {
        let mut chain = certificates("certificate", certificate)?;
        let roots = certificates("certificate authority", authorities)?;
        let identity = chain
            .first()
            .and_then(|leaf| Identity::of_certificate(leaf))
            .ok_or(CredentialsError::NoIdentity)?;
        let key =
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|e| CredentialsError::Pem {
                what: "key",
                cause: e.to_string(),
            })?;
        // A node that joins knows the authority only by its fingerprint, and finds it at the end of our chain.
        chain.extend(roots.iter().cloned());
        let credentials = Self {
            identity,
            chain,
            key,
            roots,
            tolerated: Arc::default(),
            accepting: Accepting::default(),
        };
        credentials.server_config(ClientAuth::Mandatory)?;
        credentials.client_config(Expected::AnyNode)?;
        Ok(credentials)
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Our own certificate (DER).
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0] // `from_pem` refuses an empty chain
    }

    /// When our own certificate ends; none when that cannot be read.
    pub fn end(&self) -> Option<SystemTime> {
        validity::end(self.leaf())
    }

    /// Fingerprint of the authority that signed our certificate.
    pub fn authority_fingerprint(&self) -> Option<String> {
        self.roots.first().map(|root| fingerprint(root))
    }

    /// Peer certificates believed only because clocks may differ; an alarm when it grows.
    pub fn tolerated(&self) -> u64 {
        self.tolerated.load(Ordering::Relaxed)
    }

    /// For connections we accept: a client certificate is asked for, and checked when shown. Made once: reading the certificates and the key
    /// takes longer than a handshake.
    pub fn server_config(
        &self,
        client_auth: ClientAuth,
    ) -> Result<Arc<ServerConfig>, rustls::Error> {
        let place = match client_auth {
            ClientAuth::Mandatory => &self.accepting.mandatory,
            ClientAuth::Optional => &self.accepting.optional,
        };
        if let Some(made) = place.get() {
            return Ok(Arc::clone(made));
        }
        let made = Arc::new(self.make_server_config(client_auth)?);
        Ok(Arc::clone(place.get_or_init(|| made)))
    }

    fn make_server_config(&self, client_auth: ClientAuth) -> Result<ServerConfig, rustls::Error> {
        let verifier = self.verifier(Expected::AnyNode)?;
        let verifier = Arc::new(verifier.with_client_auth(client_auth));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is resumed shows no certificate: each is to be checked by the time it is used.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For connections we make to `expected`.
    pub fn client_config(&self, expected: Expected) -> Result<ClientConfig, rustls::Error> {
        let verifier = Arc::new(self.verifier(expected)?);
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous() // rustls' word for any verifier but its own; ours is `pki::verify`
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn verifier(&self, expected: Expected) -> Result<ClusterVerifier, rustls::Error> {
        let cluster: ClusterId = self.identity.cluster.clone();
        ClusterVerifier::new(&self.roots, cluster, expected, Arc::clone(&self.tolerated))
    }
}

/// For the first connection of a node that joins: no certificate of its own, the authority known by its fingerprint.
pub fn pinned_client_config(fingerprint: &str) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedVerifier::new(fingerprint)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Credentials that can be replaced while connections live.
#[derive(Clone)]
pub struct SharedCredentials(Arc<ArcSwap<Credentials>>);

impl SharedCredentials {
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(credentials)))
    }

    pub fn current(&self) -> Arc<Credentials> {
        self.0.load_full()
    }

    /// New connections use `credentials` from now on; those that live go on.
    pub fn replace(&self, credentials: Credentials) {
        self.0.store(Arc::new(credentials));
    }
}

fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|e| CredentialsError::Pem {
        what,
        cause: e.to_string(),
    })?;
    if all.is_empty() {
        Err(CredentialsError::Empty { what })
    } else {
        Ok(all)
    }
}
