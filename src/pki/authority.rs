//! The cluster's certificate authority: made by `cluster init`, kept in the replicated state, used by whichever node signs.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};

use super::{
    PkiError,
    identity::{Identity, Role},
};
use crate::model::node::ClusterId;

const DAY: Duration = Duration::from_secs(86_400);
/// Certificates of nodes and administrators last a year.
pub const LEAF_LIFETIME: Duration = DAY.saturating_mul(365);
/// Certificates begin this long before they are made, so that a member whose clock is behind believes them.
pub const BACKDATE: Duration = Duration::from_secs(48 * 3600);
/// The authority outlives any of the machines; `cluster ca rotate` replaces it.
pub const CA_LIFETIME: Duration = DAY.saturating_mul(365 * 20);

/// A certificate authority with its key. The key is secret: never log or export it.
pub struct Authority {
    certificate_pem: String,
    key_pem: String,
}

/// A private key that stays where it was made, and the request for its certificate.
pub struct Request {
    pub key_pem: String,
    pub csr_pem: String,
}

impl Authority {
    /// Makes a new authority for `cluster`.
    pub fn create(cluster: &ClusterId, now: SystemTime) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::of("key of the certificate authority"))?;
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Pontoon cluster {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + CA_LIFETIME).into();
        let certificate = params
            .self_signed(&key)
            .map_err(PkiError::of("certificate authority"))?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    /// Reads what `to_pem` wrote: the certificate and its key.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let key_at = pem
            .find("-----BEGIN PRIVATE KEY-----")
            .ok_or(PkiError::Certificate {
                what: "certificate authority",
                cause: "the text holds no private key".into(),
            })?;
        let (certificate, key) = pem.split_at(key_at);
        let authority = Self {
            certificate_pem: certificate.to_owned(),
            key_pem: key.to_owned(),
        };
        authority.issuer()?;
        Ok(authority)
    }

    /// Certificate and key as one text. Secret.
    pub fn to_pem(&self) -> String {
        format!("{}{}", self.certificate_pem, self.key_pem)
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Signs a request, naming its holder `identity` whatever the request says. `addresses` are those of a node's API: our
    /// own programs look at the identity alone, others compare the address that they called (RFC 9525).
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        addresses: &[IpAddr],
        now: SystemTime,
    ) -> Result<String, PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(PkiError::of("certificate request"))?;
        request.params = leaf_params(identity, addresses, now)?;
        let certificate = request
            .signed_by(&self.issuer()?)
            .map_err(PkiError::of("certificate"))?;
        Ok(certificate.pem())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let key = KeyPair::from_pem(&self.key_pem)
            .map_err(PkiError::of("key of the certificate authority"))?;
        Issuer::from_ca_cert_pem(&self.certificate_pem, key)
            .map_err(PkiError::of("certificate authority"))
    }
}

/// Makes a key and a request for its certificate.
pub fn request() -> Result<Request, PkiError> {
    let key = KeyPair::generate().map_err(PkiError::of("private key"))?;
    let csr = CertificateParams::default()
        .serialize_request(&key)
        .and_then(|csr| csr.pem())
        .map_err(PkiError::of("certificate request"))?;
    Ok(Request {
        key_pem: key.serialize_pem(),
        csr_pem: csr,
    })
}

/// SHA-256 of a certificate (DER), in lower-case hexadecimal: what a join token pins.
pub fn fingerprint(der: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(der))
}

fn leaf_params(
    identity: &Identity,
    addresses: &[IpAddr],
    now: SystemTime,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, identity.common_name());
    let uri = identity
        .to_uri()
        .try_into()
        .map_err(PkiError::of("identity"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    if let Role::Node(_) = identity.role {
        let name = identity.common_name();
        let name = name.try_into().map_err(PkiError::of("identity"))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    let addresses = addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LEAF_LIFETIME).into();
    Ok(params)
}
