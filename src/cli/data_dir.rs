//! The data directory of this machine's node, as commands make it: root runs them, and the node's service may be another user's.

use std::path::Path;

use super::{Context, exit};
use crate::{
    config::node::NodeConfig,
    enrol::service::{self, Service},
    wire::error::Failure,
};

/// A data directory, and the service whose node uses it.
pub struct DataDir<'a> {
    path: &'a Path,
    /// None: no unit of this host names it.
    service: Option<Service>,
    /// Root runs this, and not for a node of `pontoon dev`.
    is_given: bool,
}

impl<'a> DataDir<'a> {
    /// That of the node of `file`, which `config` was read from.
    pub fn of(context: &Context, config: &'a NodeConfig, file: &Path) -> Self {
        let is_given = nix::unistd::geteuid().is_root() && !config.dev;
        let service = match is_given {
            true => Service::of_node(file),
            false => Ok(None),
        };
        let service = service.unwrap_or_else(|error| {
            let text = format!("the systemd unit of the node cannot be read: {error}");
            context.out.warn(text);
            None
        });
        Self {
            path: &config.data_dir,
            service,
            is_given,
        }
    }

    /// Makes an absent one for the user of the service.
    pub fn prepare(&self) -> Result<(), Failure> {
        if !self.is_given {
            return Ok(());
        }
        let made = service::prepare(self.path, self.service.as_ref());
        made.map_err(|e| exit::file(self.path, &e))
    }

    /// Warns when it is root's in the end, and the service another user's.
    pub fn tell(&self, context: &Context) {
        if !self.is_given {
            return;
        }
        match service::left_to_root(self.path, self.service.as_ref()) {
            Ok(None) => {}
            Ok(Some(warning)) => context.out.warn(warning),
            Err(error) => context.out.warn(format!(
                "data directory {}: {error}: look whose it is before the node is started",
                self.path.display()
            )),
        }
    }
}
