//! Form of members, join tokens and the certificate authority.

use super::{invalid, too_many};
use crate::{
    model::{
        leadership::{COOL_DOWN, Preference},
        network::without_scope,
        node::{ClusterId, is_like_id},
        timing::Profile,
    },
    state::{
        command::{JoinToken, NewMember, Secret},
        limits,
        outcome::Refusal,
    },
};

pub fn member_object(name: &str) -> String {
    format!("node {name}")
}

pub fn token_object(id: &str) -> String {
    // An id comes from a token someone typed: never echo more of it than an id can have.
    format!(
        "token {}",
        id.chars().take(limits::TOKEN_OCTETS).collect::<String>()
    )
}

pub fn init(cluster: &ClusterId, authority: &Secret, first: &NewMember) -> Result<(), Refusal> {
    let hexadecimal = cluster.0.bytes().all(|b| b.is_ascii_hexdigit());
    if cluster.0.is_empty() || cluster.0.len() > 64 || !hexadecimal {
        return Err(invalid(
            "cluster",
            "its id is not 1 to 64 hexadecimal digits",
            "run `cluster init` again",
        ));
    }
    ca(authority)?;
    member(first)
}

pub fn ca(ca: &Secret) -> Result<(), Refusal> {
    if ca.0.is_empty() {
        return Err(invalid("cluster ca", "it is empty", ""));
    }
    if ca.0.len() > limits::CA_OCTETS {
        let problem = format!("it is longer than {} octets", limits::CA_OCTETS);
        return Err(too_many("cluster ca", problem));
    }
    Ok(())
}

/// That the numbers go together; what a disk takes is for whoever proposes it to find out.
pub fn profile(profile: Profile) -> Result<(), Refusal> {
    profile
        .timing()
        .check(None)
        .map_err(|fault| invalid("cluster profile", fault, ""))
}

/// That the cool-down is one that can be kept, in whole milliseconds.
pub fn preference(preference: &Preference) -> Result<(), Refusal> {
    let (shortest, longest) = COOL_DOWN;
    let cool_down = preference.cool_down;
    let whole = cool_down.subsec_nanos().is_multiple_of(1_000_000);
    if whole && (shortest..=longest).contains(&cool_down) {
        return Ok(());
    }
    let problem = format!(
        "a cool-down of {cool_down:?}, expected whole milliseconds from {shortest:?} to {longest:?}"
    );
    Err(invalid("preferred holder", problem, ""))
}

pub fn member(member: &NewMember) -> Result<(), Refusal> {
    let printable = member.name.chars().all(|c| c.is_ascii_graphic());
    if member.name.is_empty() || member.name.len() > limits::MEMBER_NAME || !printable {
        return Err(invalid(
            member_object(
                &member
                    .name
                    .chars()
                    .take(limits::MEMBER_NAME)
                    .collect::<String>(),
            ),
            "its name is not 1 to 63 printable ASCII characters without spaces",
            "set `name` in node.toml",
        ));
    }
    for address in [member.raft_address, member.api_address] {
        let ip = address.ip();
        let is_plain = address == without_scope(address);
        if !is_plain || address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(invalid(
                member_object(&member.name),
                format!("{address} is no address that other nodes can reach"),
                "advertise one address and port of the node in node.toml",
            ));
        }
    }
    Ok(())
}

/// That a name is not taken for an id: not one of those that members of earlier logs may have.
pub fn new_name(name: &str) -> Result<(), Refusal> {
    match is_like_id(name) {
        false => Ok(()),
        true => Err(invalid(
            member_object(name),
            "its name is digits alone, which commands take for a node's id",
            format!("set `name` in node.toml to one with a letter, as in n{name}"),
        )),
    }
}

pub fn token(token: &JoinToken) -> Result<(), Refusal> {
    for (what, text) in [("id", &token.id), ("hash", &token.secret_hash.0)] {
        if text.is_empty() || text.len() > limits::TOKEN_OCTETS {
            return Err(invalid(
                token_object(&token.id),
                format!("its {what} is not 1 to {} octets", limits::TOKEN_OCTETS),
                "",
            ));
        }
    }
    if token.used_by.is_some() {
        return Err(invalid(
            token_object(&token.id),
            "a new token is marked as used",
            "",
        ));
    }
    Ok(())
}
