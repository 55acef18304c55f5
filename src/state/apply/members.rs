//! Changes of the cluster itself: members, join tokens, certificate authority, feature level.

use std::sync::Arc;

use imbl::OrdMap;

use super::{Work, exists, not_found, over_limit};
use crate::{
    model::{
        leadership::Preference,
        node::{ClusterId, Member, NodeId},
        timing::Profile,
    },
    state::{
        check::members::{member_object, token_object},
        cluster::{VipRelease, certificates},
        command::{JoinToken, NewMember, Secret},
        limits,
        outcome::{Refusal, RefusalKind},
    },
};

impl Work<'_> {
    pub(super) fn init_cluster(
        &mut self,
        cluster: &ClusterId,
        ca: &Secret,
        first: &NewMember,
    ) -> Result<(), Refusal> {
        if let Some(id) = &self.next.cluster.id {
            return Err(exists(
                format!("cluster {id}"),
                "it was initialised before; other nodes join it",
            ));
        }
        let own = Arc::make_mut(&mut self.next.cluster);
        own.id = Some(cluster.clone());
        own.ca = ca.clone();
        self.allocate(first)?;
        Ok(())
    }

    pub(super) fn create_token(&mut self, token: &JoinToken) -> Result<(), Refusal> {
        let tokens = &mut Arc::make_mut(&mut self.next.cluster).tokens;
        match tokens.get(&token.id) {
            Some(found) if found.as_ref() == token => return Ok(()),
            Some(_) => return Err(exists(token_object(&token.id), "create another")),
            None => {}
        }
        if tokens.len() >= limits::TOKENS {
            forget_used(tokens);
        }
        tokens.insert(token.id.clone(), Arc::new(token.clone()));
        if tokens.len() > limits::TOKENS {
            let object = token_object(&token.id);
            return Err(over_limit(object, "join tokens", limits::TOKENS));
        }
        self.changed = true;
        Ok(())
    }

    pub(super) fn delete_token(&mut self, id: &str) -> Result<(), Refusal> {
        let cluster = Arc::make_mut(&mut self.next.cluster);
        if cluster.tokens.remove(id).is_none() {
            return Err(not_found(token_object(id), ""));
        }
        self.changed = true;
        Ok(())
    }

    pub(super) fn add_member(&mut self, token: &str, member: &NewMember) -> Result<(), Refusal> {
        let another = "create another with `cluster token create`";
        let Some(found) = self.next.cluster.tokens.get(token) else {
            return Err(not_found(token_object(token), another));
        };
        if let Some(user) = found.used_by {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                token_object(token),
                format!("node {user} has used it; a token admits one node"),
                another,
            ));
        }
        let mut used = found.as_ref().clone();
        used.used_by = Some(self.allocate(member)?);
        let cluster = Arc::make_mut(&mut self.next.cluster);
        cluster.tokens.insert(token.to_owned(), Arc::new(used));
        Ok(())
    }

    /// Makes a member under the next id.
    fn allocate(&mut self, new: &NewMember) -> Result<NodeId, Refusal> {
        let own = [new.raft_address.ip(), new.api_address.ip()];
        let vips = &self.next.snapshot().vips;
        if let Some(vip) = own.iter().find(|address| vips.contains_key(*address)) {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                member_object(&new.name),
                format!("its address {vip} is a VIP of this cluster"),
                "give this node an address of its own in its node.toml",
            ));
        }
        let cluster = Arc::make_mut(&mut self.next.cluster);
        let object = || member_object(&new.name);
        for member in cluster.members.values() {
            let (taken, key) = if member.name == new.name {
                (format!("node {} has this name", member.id), "name")
            } else if member.raft_address == new.raft_address {
                let taken = format!("node {} has address {}", member.id, member.raft_address);
                (taken, "addresses.raft")
            } else {
                continue;
            };
            let hint = format!(
                "give this node another `{key}` in its node.toml; if it replaces node {id}, run `pontoon cluster remove {id}` first",
                id = member.id
            );
            return Err(Refusal::new(
                RefusalKind::AlreadyExists,
                object(),
                taken,
                hint,
            ));
        }
        if cluster.members.len() >= limits::MEMBERS {
            return Err(over_limit(object(), "members", limits::MEMBERS));
        }
        let id = cluster.next_node;
        let Some(next) = id.0.checked_add(1) else {
            return Err(over_limit(object(), "node ids", u64::MAX));
        };
        cluster.next_node = NodeId(next);
        let member = Member {
            id,
            name: new.name.clone(),
            raft_address: new.raft_address,
            api_address: new.api_address,
        };
        cluster.members.insert(id, Arc::new(member));
        self.node = Some(id);
        self.changed = true;
        Ok(id)
    }

    /// Retiring a member twice changes nothing; an id that was never given is not found.
    pub(super) fn retire_member(&mut self, id: NodeId) -> Result<(), Refusal> {
        if self.next.cluster.is_retired(id) {
            return Ok(());
        }
        let cluster = Arc::make_mut(&mut self.next.cluster);
        if cluster.members.remove(&id).is_none() {
            let hint = "`cluster status` lists the members";
            return Err(not_found(format!("node {id}"), hint));
        }
        cluster.preference = cluster.preference.filter(|p| p.node != id);
        self.changed = true;
        Ok(())
    }

    pub(super) fn rotate_ca(&mut self, ca: &Secret) -> Result<(), Refusal> {
        let cluster = Arc::make_mut(&mut self.next.cluster);
        if cluster.id.is_none() {
            return Err(not_found("cluster", "run `cluster init` first"));
        }
        if cluster.ca != *ca {
            cluster.previous_ca = certificates(&cluster.ca.0);
            cluster.ca = ca.clone();
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn set_profile(&mut self, profile: Profile) -> Result<(), Refusal> {
        if self.next.cluster.profile != profile {
            Arc::make_mut(&mut self.next.cluster).profile = profile;
            self.changed = true;
        }
        Ok(())
    }

    /// Terms never fall in a log; one that is late all the same says nothing.
    pub(super) fn release_vips(&mut self, to: NodeId, term: u64) -> Result<(), Refusal> {
        if !self.next.cluster.members.contains_key(&to) {
            return Err(not_found(
                format!("node {to}"),
                "`cluster status` lists the members",
            ));
        }
        let release = Some(VipRelease { to, term });
        let last = self.next.cluster.vip_release;
        if last.is_none_or(|last| last.term <= term) && last != release {
            Arc::make_mut(&mut self.next.cluster).vip_release = release;
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn take_vips(&mut self, term: u64) -> Result<(), Refusal> {
        let last = self.next.cluster.vip_release;
        if last.is_some_and(|last| last.term <= term) {
            Arc::make_mut(&mut self.next.cluster).vip_release = None;
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn set_preference(&mut self, preference: Option<Preference>) -> Result<(), Refusal> {
        if let Some(Preference { node, .. }) = preference
            && !self.next.cluster.members.contains_key(&node)
        {
            return Err(not_found(
                format!("node {node}"),
                "`cluster status` lists the members",
            ));
        }
        if self.next.cluster.preference != preference {
            Arc::make_mut(&mut self.next.cluster).preference = preference;
            self.changed = true;
        }
        Ok(())
    }

    pub(super) fn set_feature_level(&mut self, level: u32) -> Result<(), Refusal> {
        let present = self.next.cluster.feature_level;
        if level < present {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                "cluster",
                format!("its feature level is {present}, which never falls: {level} is below it"),
                "",
            ));
        }
        self.changed |= level > present;
        Arc::make_mut(&mut self.next.cluster).feature_level = level;
        Ok(())
    }
}

/// Makes room: the token used longest ago is of no more use than to say so.
fn forget_used(tokens: &mut OrdMap<String, Arc<JoinToken>>) {
    let used = tokens.values().filter(|t| t.used_by.is_some());
    if let Some(oldest) = used.min_by_key(|t| t.used_by).cloned() {
        tokens.remove(&oldest.id);
    }
}
