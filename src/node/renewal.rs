//! Keeping this node's certificate good: renewed at two thirds of its life, and moved to a new authority after
//! `cluster ca rotate`. The authority's key is in the replicated state, so the node signs for itself.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    consensus::Consensus,
    enrol::{IdentityError, IdentityFile, identity_file::StoredCertificate, init::certificate},
    pki::{PkiError, authority::Authority, identity::Identity},
    state::State,
    transport::credentials::{CredentialsError, SharedCredentials},
};

/// Between two looks at the certificate when the state does not change.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Why the certificate was not renewed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("the new certificate: {0}")]
    Credentials(#[from] CredentialsError),
}

/// Between two looks while an authority is being replaced.
const LOOK_SOON: Duration = Duration::from_millis(500);

/// What has to be done about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    /// A new authority signs; this node goes over to it when every member believes it.
    Soon,
    /// Believe other authorities; the certificate stays.
    Trust,
    /// A new certificate, by the authority of the state.
    Certificate,
}

/// Decides what is due. `everyone_knows`: every member has applied the state that names the authorities.
pub(super) fn due(
    stored: &StoredCertificate,
    authority: &str,
    trusted: &str,
    everyone_knows: bool,
    now: SystemTime,
) -> Due {
    let signed_by_current = stored.authorities.starts_with(authority);
    if past_two_thirds(&stored.certificate, now) || (!signed_by_current && everyone_knows) {
        return Due::Certificate;
    }
    // The order tells whose signature ours is: the signer first.
    let known = trusted
        .split_inclusive("-----END CERTIFICATE-----")
        .all(|one| stored.authorities.contains(one.trim()));
    match (known, signed_by_current) {
        (false, _) => Due::Trust,
        (true, false) => Due::Soon,
        (true, true) => Due::Nothing,
    }
}

/// Renews for as long as the node runs.
pub(super) async fn run(consensus: Consensus, file: IdentityFile, credentials: SharedCredentials) {
    let mut states = consensus.states();
    loop {
        let done = renew(&consensus, &file, &credentials);
        let pause = match &done {
            Ok(Due::Soon | Due::Trust) => LOOK_SOON,
            _ => LOOK_AGAIN,
        };
        match done {
            Ok(Due::Nothing | Due::Soon) => {}
            Ok(Due::Trust) => tracing::info!("a new certificate authority is trusted from now on"),
            Ok(Due::Certificate) => tracing::info!("this node's certificate was renewed"),
            Err(error) => {
                tracing::warn!(%error, "this node's certificate was not renewed; it is tried again")
            }
        }
        let (authority, previous) = {
            let applied = states.newest_seen();
            let previous = applied.state.previous_ca().map(str::to_owned);
            (applied.state.ca().clone(), previous)
        };
        // Every applied entry is looked at: texts are compared, nothing is parsed.
        let changed = states.wait_for(|applied| {
            let state = &applied.state;
            *state.ca() != authority || state.previous_ca() != previous.as_deref()
        });
        // Elapsing is the usual end of the wait; a closed channel means the node stops.
        if let Ok(Err(_)) = tokio::time::timeout(pause, changed).await {
            return;
        }
    }
}

fn renew(
    consensus: &Consensus,
    file: &IdentityFile,
    credentials: &SharedCredentials,
) -> Result<Due, RenewalError> {
    let state = consensus.state();
    let Some(identity) = file.load()? else {
        return Ok(Due::Nothing);
    };
    let Some(stored) = identity.tls.clone() else {
        return Ok(Due::Nothing);
    };
    if state.cluster().is_none() {
        return Ok(Due::Nothing);
    }
    let authority = Authority::from_pem(&state.ca().0)?;
    let trusted = authorities(&state);
    let now = SystemTime::now();
    let due = due(
        &stored,
        authority.certificate_pem(),
        &trusted,
        everyone_applied(consensus),
        now,
    );
    let tls = match due {
        Due::Nothing | Due::Soon => return Ok(due),
        Due::Trust => StoredCertificate {
            authorities: format!("{}{trusted}", stored.authorities),
            ..stored
        },
        Due::Certificate => {
            let holder = Identity::node(identity.cluster.clone(), identity.node);
            let member = state.members().get(&identity.node);
            let addresses: Vec<_> = member.map(|m| m.api_address.ip()).into_iter().collect();
            StoredCertificate {
                authorities: trusted,
                ..certificate(&authority, &holder, &addresses, now)?
            }
        }
    };
    let fresh = tls.credentials()?;
    file.store(&identity.with_certificate(tls))?;
    credentials.replace(fresh);
    Ok(due)
}

/// The certificates that the state says are trusted, the current authority first.
fn authorities(state: &Arc<State>) -> String {
    let current = Authority::from_pem(&state.ca().0)
        .map(|a| a.certificate_pem().to_owned())
        .unwrap_or_default();
    format!("{current}{}", state.previous_ca().unwrap_or_default())
}

/// Whether every member is known to have applied what this node has.
fn everyone_applied(consensus: &Consensus) -> bool {
    let status = consensus.status();
    status.nodes.iter().all(|node| {
        node.applied
            .is_some_and(|applied| applied >= status.revision)
    })
}

fn past_two_thirds(pem: &str, now: SystemTime) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else {
        return true;
    };
    let Ok((_, certificate)) = X509Certificate::from_der(&pem.contents) else {
        return true;
    };
    let validity = certificate.validity();
    let (from, until) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let now = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
        .cast_signed();
    now >= from + (until - from) / 3 * 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::node::{ClusterId, NodeId};

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_certificate_is_renewed_by_age_and_after_a_rotation() {
        let cluster = ClusterId("c1".into());
        let now = SystemTime::now();
        let (old, new) = (
            Authority::create(&cluster, now).unwrap(),
            Authority::create(&cluster, now).unwrap(),
        );
        let stored = certificate(&old, &Identity::node(cluster, NodeId(1)), &[], now).unwrap();
        let (old, new) = (old.certificate_pem(), new.certificate_pem());
        let both = format!("{new}{old}");
        assert_eq!(due(&stored, old, old, true, now), Due::Nothing);
        assert_eq!(due(&stored, old, old, true, now + DAY * 200), Due::Nothing);
        assert_eq!(
            due(&stored, old, old, true, now + DAY * 250),
            Due::Certificate
        );
        // Rotated: trust both at once, change over when everyone trusts both.
        assert_eq!(due(&stored, new, &both, false, now), Due::Trust);
        let trusting = StoredCertificate {
            authorities: format!("{old}{both}"),
            ..stored
        };
        assert_eq!(due(&trusting, new, &both, false, now), Due::Soon);
        assert_eq!(due(&trusting, new, &both, true, now), Due::Certificate);
    }
}
