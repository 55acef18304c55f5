//! When a certificate is believed: it chains to the cluster's authority and names a holder we expect.
//!
//! Time is judged leniently: a certificate up to [`CLOCK_TOLERANCE`] out of its validity is believed (and counted), because
//! a node whose clock is wrong must not fall out of its cluster at night. Host names play no part: a peer is who its
//! certificate says, wherever it is reached. Whether a node is still a *member* is asked per call, by `consensus`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use super::{
    authority::fingerprint,
    identity::{Identity, Role},
};
use crate::model::node::{ClusterId, NodeId};

/// How far a peer's clock may be from ours.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(48 * 3600);

/// Whom a client wants to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Node(NodeId),
    AnyNode,
}

/// Whether a server demands a certificate of those who connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one the handshake fails.
    Mandatory,
    /// A node that joins has none yet. What is shown is checked all the same.
    Optional,
}

/// Believes certificates of one cluster's authority, past authorities included while they are trusted.
#[derive(Debug)]
pub struct ClusterVerifier {
    roots: Vec<TrustAnchor<'static>>,
    cluster: ClusterId,
    expected: Expected,
    client_auth: ClientAuth,
    provider: Arc<CryptoProvider>,
    /// Certificates believed only thanks to the tolerance.
    tolerated: Arc<AtomicU64>,
}

impl ClusterVerifier {
    /// `roots`: the authority's certificates (DER). `expected` matters to clients only.
    ///
    /// # Errors
    /// When a root is no certificate.
    pub fn new(
        roots: &[CertificateDer<'_>],
        cluster: ClusterId,
        expected: Expected,
        tolerated: Arc<AtomicU64>,
    ) -> Result<Self, Error> {
        let anchor = |der: &CertificateDer<'_>| {
            webpki::anchor_from_trusted_cert(der)
                .map(|a| a.to_owned())
                .map_err(|_| bad_encoding())
        };
        let roots = roots.iter().map(anchor).collect::<Result<_, _>>()?;
        Ok(Self {
            roots,
            cluster,
            expected,
            client_auth: ClientAuth::Mandatory,
            provider: provider(),
            tolerated,
        })
    }

    /// For a server that does not always demand a certificate, as it does unless told here.
    #[must_use]
    pub fn with_client_auth(self, client_auth: ClientAuth) -> Self {
        Self {
            client_auth,
            ..self
        }
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, Error> {
        let believed = |time| verify_chain(leaf, rest, &self.roots, time, usage, &self.provider);
        if let Err(error) = believed(now) {
            let shifted = shifted_time(&error, now).ok_or_else(|| error.clone())?;
            believed(shifted).map_err(|_| error)?;
            self.tolerated.fetch_add(1, Ordering::Relaxed);
        }
        let identity = Identity::of_certificate(leaf)
            .ok_or_else(|| refused("the certificate names no Pontoon identity"))?;
        if identity.cluster != self.cluster {
            return Err(refused(&format!(
                "the certificate is that of {identity}; this is cluster {}",
                self.cluster
            )));
        }
        Ok(identity)
    }
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let identity = self.verify(leaf, rest, now, KeyUsage::server_auth())?;
        match (&self.expected, &identity.role) {
            (Expected::AnyNode, Role::Node(_)) => {}
            (Expected::Node(wanted), Role::Node(found)) if wanted == found => {}
            (Expected::Node(wanted), _) => {
                return Err(refused(&format!(
                    "expected node {wanted}, found {identity}: check the address"
                )));
            }
            (Expected::AnyNode, Role::Admin(_)) => {
                return Err(refused("an administrator's certificate on a server"));
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for ClusterVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.client_auth == ClientAuth::Mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, rest, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// Believes one authority, known only by the fingerprint in a join token: servers send their chain with the authority's
/// certificate at its end.
#[derive(Debug)]
pub struct PinnedVerifier {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    /// `fingerprint`: as `authority::fingerprint` writes it.
    pub fn new(fingerprint: impl Into<String>) -> Self {
        Self {
            fingerprint: fingerprint.into(),
            provider: provider(),
        }
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = rest
            .iter()
            .find(|der| fingerprint(der) == self.fingerprint)
            .ok_or_else(|| {
                refused("its certificate authority is not the one that the join token names")
            })?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| bad_encoding())?;
        let anchors = [anchor];
        let believed = |time| {
            verify_chain(
                leaf,
                &[],
                &anchors,
                time,
                KeyUsage::server_auth(),
                &self.provider,
            )
        };
        let believed = believed(now).or_else(|error| match shifted_time(&error, now) {
            Some(shifted) => believed(shifted),
            None => Err(error),
        });
        believed.map_err(|error| match error {
            Error::InvalidCertificate(
                CertificateError::BadSignature | CertificateError::UnknownIssuer,
            ) => refused("the member's certificate is of another authority than the join token names: the token was made before `cluster ca rotate`, or that is under way; make a new token"),
            other => other,
        })?;
        match Identity::of_certificate(leaf).map(|identity| identity.role) {
            Some(Role::Node(_)) => Ok(ServerCertVerified::assertion()),
            _ => Err(refused("the server's certificate is not that of a node")),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The cryptography in use everywhere: `ring`.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn verify_chain(
    leaf: &CertificateDer<'_>,
    rest: &[CertificateDer<'_>],
    roots: &[TrustAnchor<'_>],
    time: UnixTime,
    usage: KeyUsage,
    provider: &CryptoProvider,
) -> Result<(), Error> {
    let certificate = EndEntityCert::try_from(leaf).map_err(|_| bad_encoding())?;
    let algorithms = provider.signature_verification_algorithms.all;
    certificate
        .verify_for_usage(algorithms, roots, rest, time, usage, None, None)
        .map(|_| ())
        .map_err(|error| match error {
            webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
            webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
            webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
            other => refused(&other.to_string()),
        })
}

/// The time at which to look again, when the fault was one of time.
fn shifted_time(error: &Error, now: UnixTime) -> Option<UnixTime> {
    let seconds = match error {
        Error::InvalidCertificate(CertificateError::Expired) => {
            now.as_secs().checked_sub(CLOCK_TOLERANCE.as_secs())?
        }
        Error::InvalidCertificate(CertificateError::NotValidYet) => {
            now.as_secs().checked_add(CLOCK_TOLERANCE.as_secs())?
        }
        _ => return None,
    };
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}

fn bad_encoding() -> Error {
    CertificateError::BadEncoding.into()
}

fn refused(why: &str) -> Error {
    Error::General(why.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::pki::authority::{Authority, request};

    const DAY: Duration = Duration::from_secs(86_400);

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate just made")
    }

    fn at(time: SystemTime) -> UnixTime {
        UnixTime::since_unix_epoch(
            time.duration_since(SystemTime::UNIX_EPOCH)
                .expect("after 1970"),
        )
    }

    struct Fixture {
        cluster: ClusterId,
        authority: Authority,
        now: SystemTime,
    }

    impl Fixture {
        fn new() -> Self {
            let cluster = ClusterId("c1".into());
            let now = SystemTime::now();
            Self {
                authority: Authority::create(&cluster, now).expect("authority"),
                cluster,
                now,
            }
        }

        fn node(&self, id: u64) -> CertificateDer<'static> {
            let identity = Identity::node(self.cluster.clone(), NodeId(id));
            der(&self
                .authority
                .sign(
                    &request().expect("request").csr_pem,
                    &identity,
                    &[],
                    self.now,
                )
                .expect("signed"))
        }

        fn verifier(&self, expected: Expected) -> ClusterVerifier {
            let root = der(self.authority.certificate_pem());
            ClusterVerifier::new(&[root], self.cluster.clone(), expected, Arc::default())
                .expect("verifier")
        }

        fn server_ok(
            &self,
            expected: Expected,
            leaf: &CertificateDer<'_>,
            now: SystemTime,
        ) -> bool {
            let name = ServerName::try_from("pontoon").expect("name");
            self.verifier(expected)
                .verify_server_cert(leaf, &[], &name, &[], at(now))
                .is_ok()
        }
    }

    #[test]
    fn a_node_is_believed_only_as_itself() {
        let f = Fixture::new();
        let leaf = f.node(3);
        assert!(f.server_ok(Expected::Node(NodeId(3)), &leaf, f.now));
        assert!(f.server_ok(Expected::AnyNode, &leaf, f.now));
        assert!(!f.server_ok(Expected::Node(NodeId(4)), &leaf, f.now));
    }

    #[test]
    fn an_administrator_is_no_server_and_another_cluster_is_nobody() {
        let f = Fixture::new();
        let admin = Identity::admin(f.cluster.clone(), "ann");
        let leaf = der(&f
            .authority
            .sign(&request().unwrap().csr_pem, &admin, &[], f.now)
            .unwrap());
        assert!(!f.server_ok(Expected::AnyNode, &leaf, f.now));
        assert!(
            f.verifier(Expected::AnyNode)
                .verify_client_cert(&leaf, &[], at(f.now))
                .is_ok()
        );
        let other = Fixture::new();
        assert!(!f.server_ok(Expected::AnyNode, &other.node(3), f.now));
        let renamed = Identity::node(ClusterId("c2".into()), NodeId(3));
        let leaf = der(&f
            .authority
            .sign(&request().unwrap().csr_pem, &renamed, &[], f.now)
            .unwrap());
        assert!(!f.server_ok(Expected::AnyNode, &leaf, f.now));
    }

    #[test]
    fn clocks_may_be_off_by_two_days_and_no_more() {
        let f = Fixture::new();
        let leaf = f.node(1);
        for (time, believed) in [
            (f.now - DAY * 3, true),
            (f.now - DAY * 5, false),
            (f.now + DAY * 366, true),
            (f.now + DAY * 368, false),
        ] {
            assert_eq!(f.server_ok(Expected::AnyNode, &leaf, time), believed);
        }
    }

    #[test]
    fn a_pin_believes_one_authority() {
        let f = Fixture::new();
        let root = der(f.authority.certificate_pem());
        let name = ServerName::try_from("pontoon").expect("name");
        let verifier = PinnedVerifier::new(fingerprint(&root));
        assert!(
            verifier
                .verify_server_cert(
                    &f.node(1),
                    std::slice::from_ref(&root),
                    &name,
                    &[],
                    at(f.now)
                )
                .is_ok()
        );
        assert!(
            verifier
                .verify_server_cert(&f.node(1), &[], &name, &[], at(f.now))
                .is_err()
        );
        let other = Fixture::new();
        let its_root = der(other.authority.certificate_pem());
        assert!(
            verifier
                .verify_server_cert(
                    &other.node(1),
                    std::slice::from_ref(&its_root),
                    &name,
                    &[],
                    at(f.now)
                )
                .is_err()
        );
        // The right authority shown beside a leaf that it never signed.
        assert!(
            verifier
                .verify_server_cert(&other.node(1), &[its_root, root], &name, &[], at(f.now))
                .is_err()
        );
    }
}
