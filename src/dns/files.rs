//! Bounds of DNS against the files that the process may open.

use nix::sys::resource::{Resource, getrlimit};

use super::server::DnsConfig;

/// Files of one question to upstreams at its most: a socket, and one that finds the address it leaves from.
const PER_QUESTION: usize = 2;

impl DnsConfig {
    /// Lowers TCP connections (a file each) and questions to upstreams (two each) so that they take at most an eighth of
    /// `open_files`: connections half of it, and questions what is left, at least one of each. Peers and storage need the rest.
    pub(super) fn fit_into(mut self, open_files: u64) -> Self {
        let files = usize::try_from(open_files / 8).unwrap_or(usize::MAX);
        let connections = self.tcp.max_connections.min(files / 2).max(1);
        let questions = files.saturating_sub(connections) / PER_QUESTION;
        self.tcp.max_connections = connections;
        self.forward.max_outstanding = self.forward.max_outstanding.min(questions).max(1);
        self
    }

    /// Lowers the bounds to what the limit on open files allows, and warns of it.
    pub(super) fn fit(self) -> Self {
        let open_files = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((open_files, _)) => open_files,
            Err(error) => {
                tracing::warn!(%error, "the limit on open files is unknown: the bounds of DNS stay as configured");
                return self;
            }
        };
        let bounds = |config: &Self| (config.tcp.max_connections, config.forward.max_outstanding);
        let wanted = bounds(&self);
        let fitted = self.fit_into(open_files);
        let (tcp_connections, upstream_queries) = bounds(&fitted);
        if (tcp_connections, upstream_queries) != wanted {
            tracing::warn!(
                wanted_tcp_connections = wanted.0,
                tcp_connections,
                wanted_upstream_queries = wanted.1,
                upstream_queries,
                open_files,
                "DNS takes fewer connections, or asks upstream servers less, than configured: raise the limit on open files"
            );
        }
        fitted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bounds(config: &DnsConfig) -> (usize, usize) {
        (config.tcp.max_connections, config.forward.max_outstanding)
    }

    #[test]
    fn bounds_stay_as_configured_where_there_are_files_for_them() {
        let config = DnsConfig::new(Vec::new());
        let wanted = bounds(&config);
        assert_eq!(bounds(&config.clone().fit_into(1_048_576)), wanted);
        assert_eq!(bounds(&config.clone().fit_into(65_536)), (2000, 3096));
        assert_eq!(bounds(&config.clone().fit_into(4096)), (256, 128));
        assert_eq!(bounds(&config.fit_into(0)), (1, 1));
    }

    proptest! {
        #[test]
        fn bounds_fit_into_an_eighth_and_are_never_raised(
            connections in 1usize..1_000_000,
            questions in 1usize..60_000,
            open_files in 32u64..10_000_000,
        ) {
            let mut config = DnsConfig::new(Vec::new());
            config.tcp.max_connections = connections;
            config.forward.max_outstanding = questions;
            let fitted = bounds(&config.fit_into(open_files));
            prop_assert!(fitted.0 <= connections && fitted.1 <= questions);
            prop_assert!(fitted.0 >= 1 && fitted.1 >= 1);
            prop_assert!((fitted.0 + PER_QUESTION * fitted.1) as u64 <= open_files / 8);
        }
    }
}
