//! Client certificates of administrators. Nothing of them is kept: who has one is an administrator until it ends, or until
//! the authority that signed it has been replaced twice.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use pontoon_proto::v1;

use super::{
    Api,
    cluster::{authority, ca_certificates, cluster_id, internal},
};
use crate::{
    enrol::init::certificate,
    model::quoted::quoted,
    pki::{
        authority::LEAF_LIFETIME,
        identity::{Identity, is_admin_name},
    },
    state::State,
    wire::error::{Failure, FailureCode},
};

impl Api {
    /// Signs the request of an administrator.
    pub(super) async fn sign_admin(
        &self,
        author: &str,
        request: v1::CreateAdminRequest,
        deadline: Instant,
    ) -> Result<v1::CreateAdminReply, Failure> {
        let v1::CreateAdminRequest { name, csr_pem } = request;
        if !is_admin_name(&name) {
            let problem = format!(
                "{} is not 1 to 63 letters, digits, '-', '_', '.' or '@'",
                quoted(&name)
            );
            return Err(Failure::new(
                FailureCode::Invalid,
                "administrator",
                problem,
                "choose another name",
            ));
        }
        // Without a group it is not known yet what the cluster speaks.
        let group = self.group()?;
        if !self.speaks_tls() {
            return Err(Failure::new(
                FailureCode::Unsupported,
                format!("administrator {name}"),
                "this cluster speaks plaintext, as those of `pontoon dev` do, and asks for no certificate",
                "leave --cert, --key and --ca out",
            ));
        }
        // By the newest authority: one that was replaced is soon believed no more.
        group.catch_up(deadline).await?;
        let state = group.state();
        let now = SystemTime::now();
        let identity = Identity::admin(cluster_id(&state)?, &name);
        let signed = authority(&state)?.sign(&csr_pem, &identity, &[], now);
        let certificate_pem =
            signed.map_err(|e| Failure::new(FailureCode::Invalid, "certificate request", e, ""))?;
        tracing::info!(administrator = %name, by = %author, "a client certificate was made");
        let end = now
            .checked_add(LEAF_LIFETIME)
            .and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        Ok(v1::CreateAdminReply {
            certificate_pem,
            ca_certificates_pem: ca_certificates(&state),
            ends_at_ms: end.map_or(0, crate::wire::millis),
        })
    }

    /// A certificate of a new authority and its key, for whoever made it. Empty without TLS: one would only make the command line
    /// speak TLS to nodes that do not.
    pub(super) fn admin_of(
        &self,
        state: &Arc<State>,
        author: &str,
    ) -> Result<(String, String), Failure> {
        if !self.speaks_tls() {
            return Ok(Default::default());
        }
        let name = match is_admin_name(author) {
            true => author,
            false => "admin",
        };
        let identity = Identity::admin(cluster_id(state)?, name);
        let made = certificate(&authority(state)?, &identity, &[], SystemTime::now());
        let made = made.map_err(internal)?;
        Ok((made.certificate, made.key))
    }

    pub(super) fn speaks_tls(&self) -> bool {
        self.0.node.authority_fingerprint().is_some()
    }
}
