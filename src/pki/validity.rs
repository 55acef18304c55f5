//! How long a certificate is good for.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate that ends this soon needs a person. Nodes renew theirs four months before, by themselves.
pub const SOON: Duration = Duration::from_secs(30 * 86_400);

/// What is left of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Enough,
    /// It ends within `SOON`.
    Little,
    /// It has ended.
    Nothing,
}

impl Left {
    /// Of a certificate that ends at `end`.
    pub fn at(now: SystemTime, end: SystemTime) -> Self {
        match end.duration_since(now) {
            Err(_) => Self::Nothing,
            Ok(left) if left <= SOON => Self::Little,
            Ok(_) => Self::Enough,
        }
    }
}

/// When a certificate (DER) ends; none: it is no certificate.
pub fn end(der: &[u8]) -> Option<SystemTime> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let end = certificate.validity().not_after.timestamp();
    // One from before 1970 has ended as well.
    let since = Duration::from_secs(u64::try_from(end).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;
    use crate::{
        model::node::ClusterId,
        pki::{
            authority::{Authority, LEAF_LIFETIME, request},
            identity::Identity,
        },
    };

    #[test]
    fn a_certificate_warns_a_month_before_its_end() {
        let now = SystemTime::now();
        let cluster = ClusterId("c".into());
        let authority = Authority::create(&cluster, now).expect("made");
        let asked = request().expect("made");
        let identity = Identity::admin(cluster, "ann");
        let pem = authority.sign(&asked.csr_pem, &identity, &[], now);
        let der = CertificateDer::from_pem_slice(pem.expect("signed").as_bytes());
        let end = end(&der.expect("a certificate")).expect("an end");
        let off = (now + LEAF_LIFETIME)
            .duration_since(end)
            .expect("not later");
        assert!(off < Duration::from_secs(1), "{off:?}");
        let second = Duration::from_secs(1);
        for (at, left) in [
            (now, Left::Enough),
            (end - SOON - second, Left::Enough),
            (end - SOON, Left::Little),
            (end, Left::Little),
            (end + second, Left::Nothing),
        ] {
            assert_eq!(Left::at(at, end), left, "{at:?}");
        }
        assert_eq!(super::end(b"no certificate"), None);
    }
}
