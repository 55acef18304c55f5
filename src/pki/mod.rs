//! Who is who: the cluster's certificate authority, the certificates of nodes and administrators, join tokens, and the
//! rules by which a certificate is believed.
//!
//! Everything here is deciding code, given the time and (for keys) the system's randomness through `rcgen`. Sockets and
//! files are in `transport` and `config`. The authority's key lives in the replicated state, so that any leader can sign.

pub mod authority;
pub mod identity;
pub mod token;
pub mod validity;
pub mod verify;

/// Why a certificate, key or token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("{what}: {cause}")]
    Certificate { what: &'static str, cause: String },
    #[error("join token: {0}")]
    Token(&'static str),
}

impl PkiError {
    fn of(what: &'static str) -> impl Fn(rcgen::Error) -> Self {
        move |cause| Self::Certificate {
            what,
            cause: cause.to_string(),
        }
    }
}
