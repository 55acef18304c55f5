//! Whom a certificate names: a URI among its subject alternative names (RFC 5280 section 4.2.1.6),
//! `pontoon://CLUSTER/node/ID` or `pontoon://CLUSTER/admin/NAME`.

use std::fmt;

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::model::node::{ClusterId, NodeId};

/// The holder of a certificate, as its issuer named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub role: Role,
}

/// What the holder is to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Node(NodeId),
    Admin(String),
}

impl Identity {
    pub fn node(cluster: ClusterId, id: NodeId) -> Self {
        Self {
            cluster,
            role: Role::Node(id),
        }
    }

    pub fn admin(cluster: ClusterId, name: impl Into<String>) -> Self {
        Self {
            cluster,
            role: Role::Admin(name.into()),
        }
    }

    /// The common name of the certificate, and the author of what its holder changes.
    pub fn common_name(&self) -> String {
        match &self.role {
            Role::Node(id) => format!("node-{id}"),
            Role::Admin(name) => name.clone(),
        }
    }

    pub fn to_uri(&self) -> String {
        match &self.role {
            Role::Node(id) => format!("pontoon://{}/node/{id}", self.cluster),
            Role::Admin(name) => format!("pontoon://{}/admin/{name}", self.cluster),
        }
    }

    pub fn from_uri(uri: &str) -> Option<Self> {
        let (cluster, path) = uri.strip_prefix("pontoon://")?.split_once('/')?;
        let cluster = ClusterId(cluster.to_owned());
        let role = match path.split_once('/')? {
            ("node", id) => Role::Node(NodeId(id.parse().ok()?)),
            ("admin", name) if is_admin_name(name) => Role::Admin(name.to_owned()),
            _ => return None,
        };
        Some(Self { cluster, role })
    }

    /// Reads the identity out of a certificate (DER). Says nothing about whether the certificate is to be believed.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    names.general_names.iter().find_map(|name| match name {
                        GeneralName::URI(uri) => Self::from_uri(uri),
                        _ => None,
                    })
                }
                _ => None,
            })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Node(id) => write!(f, "node {id} of cluster {}", self.cluster),
            Role::Admin(name) => write!(f, "administrator {name} of cluster {}", self.cluster),
        }
    }
}

/// Names of administrators: 1 to 63 letters, digits, `-`, `_`, `.`, `@`.
pub fn is_admin_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@');
    (1..=63).contains(&name.len()) && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip_through_their_uri() {
        let cluster = ClusterId("c0ffee".into());
        for identity in [
            Identity::node(cluster.clone(), NodeId(7)),
            Identity::admin(cluster, "ann@example"),
        ] {
            assert_eq!(Identity::from_uri(&identity.to_uri()), Some(identity));
        }
        for bad in [
            "",
            "pontoon://c",
            "pontoon://c/node/x",
            "pontoon://c/admin/",
            "pontoon://c/root/1",
            "http://c/node/1",
        ] {
            assert_eq!(Identity::from_uri(bad), None, "{bad}");
        }
    }
}
