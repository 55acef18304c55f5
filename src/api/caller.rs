//! Who calls: read from what the connection proved, never from the request.

use tonic::Request;

use crate::{
    model::node::NodeId,
    pki::identity::Role,
    transport::{Peer, PeerInfo},
    wire::error::{Failure, FailureCode},
};

/// A caller and by what right it calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// May do everything. The name goes into history.
    Admin(String),
    /// Another member.
    Node(NodeId),
    /// Showed no certificate: may join, and ask for health.
    Stranger,
}

impl Caller {
    /// Reads who made the connection of `request`.
    pub fn of<T>(request: &Request<T>) -> Result<Self, Failure> {
        let info = request.extensions().get::<PeerInfo>().ok_or_else(|| {
            let problem = "the connection says nothing of its other end";
            Failure::new(FailureCode::Unauthenticated, "caller", problem, "")
        })?;
        Ok(match &info.peer {
            Peer::Identified(identity) => match &identity.role {
                Role::Node(id) => Self::Node(*id),
                Role::Admin(name) => Self::Admin(name.clone()),
            },
            Peer::Anonymous => Self::Stranger,
            Peer::Local { uid } => Self::Admin(local_name(*uid)),
            Peer::Plain => Self::Admin("dev".to_owned()),
        })
    }

    /// The administrator that makes `request`; anyone else is refused.
    pub fn admin<T>(request: &Request<T>) -> Result<String, Failure> {
        match Self::of(request)? {
            Self::Admin(name) => Ok(name),
            other => Err(other.refused("only administrators may do this")),
        }
    }

    /// Lets administrators and members through.
    pub fn member_or_admin<T>(request: &Request<T>) -> Result<Self, Failure> {
        match Self::of(request)? {
            Self::Stranger => Err(Self::Stranger.refused("only administrators and members may")),
            caller => Ok(caller),
        }
    }

    /// The member that makes `request`; anyone else is refused.
    pub fn node<T>(request: &Request<T>) -> Result<NodeId, Failure> {
        match Self::of(request)? {
            Self::Node(id) => Ok(id),
            other => Err(other.refused("only members may do this")),
        }
    }

    fn refused(&self, problem: &str) -> Failure {
        let (code, who) = match self {
            Self::Admin(name) => (
                FailureCode::PermissionDenied,
                format!("administrator {name}"),
            ),
            Self::Node(id) => (FailureCode::PermissionDenied, format!("node {id}")),
            Self::Stranger => (FailureCode::Unauthenticated, "caller".to_owned()),
        };
        let hint = match self {
            Self::Stranger => {
                "give a client certificate (--cert, --key, --ca), or use the unix socket on the node"
            }
            _ => "",
        };
        Failure::new(code, who, problem, hint)
    }
}

/// A local user as history shows it.
fn local_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(uid.into()) {
        Ok(Some(user)) => user.name,
        _ => format!("uid-{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::node::ClusterId, pki::identity::Identity};

    fn request(peer: Peer) -> Request<()> {
        let mut request = Request::new(());
        let address = None;
        request.extensions_mut().insert(PeerInfo { address, peer });
        request
    }

    #[test]
    fn everyone_may_do_what_their_connection_proves() {
        let cluster = ClusterId("c".into());
        let admin = Peer::Identified(Identity::admin(cluster.clone(), "ann"));
        let node = Peer::Identified(Identity::node(cluster, NodeId(2)));
        assert_eq!(
            Caller::admin(&request(admin.clone())).ok().as_deref(),
            Some("ann")
        );
        assert!(Caller::admin(&request(Peer::Local { uid: 0 })).is_ok());
        assert!(Caller::admin(&request(Peer::Plain)).is_ok());
        assert_eq!(
            Caller::admin(&request(node.clone())).unwrap_err().code,
            FailureCode::PermissionDenied
        );
        assert_eq!(
            Caller::admin(&request(Peer::Anonymous)).unwrap_err().code,
            FailureCode::Unauthenticated
        );
        assert_eq!(Caller::node(&request(node.clone())), Ok(NodeId(2)));
        assert!(Caller::node(&request(admin.clone())).is_err());
        assert!(Caller::member_or_admin(&request(node)).is_ok());
        assert!(Caller::member_or_admin(&request(admin)).is_ok());
        assert!(Caller::member_or_admin(&request(Peer::Anonymous)).is_err());
        assert!(Caller::of(&Request::new(())).is_err());
    }
}
