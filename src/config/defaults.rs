//! Bounds that hold where `node.toml` says nothing: for its reader, and for what is built without the file.

/// Those of `[dns]`.
pub mod dns {
    /// Octets of cached answers.
    pub const CACHE_SIZE: u64 = 64 << 20;
    pub const TCP_CONNECTIONS: u32 = 2_000;
    pub const TCP_CONNECTIONS_PER_CLIENT: u32 = 100;
    pub const UPSTREAM_QUERIES: u32 = 4_000;
    pub const WAITING_QUESTIONS: u32 = 10_000;
    pub const WAITING_QUESTIONS_PER_CLIENT: u32 = 1_000;
}

/// Those of `[proxy]`.
pub mod proxy {
    use std::time::Duration;

    pub const CONNECTIONS: u32 = 50_000;
    pub const DRAIN_REMOVED: Duration = Duration::from_secs(600);
    /// All that an unprivileged user gets at their size (`pipe-user-pages-soft`).
    pub const PIPES: u32 = 256;
    pub const PROBES: u32 = 512;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_says_the_same() {
        let manual = include_str!("../../docs/configuration.md");
        let mib = |octets: u64| format!("\"{}MiB\"", octets >> 20);
        let minutes = |time: std::time::Duration| format!("\"{}m\"", time.as_secs() / 60);
        let said = [
            ("cache_size", mib(dns::CACHE_SIZE)),
            ("tcp_connections", dns::TCP_CONNECTIONS.to_string()),
            (
                "tcp_connections_per_client",
                dns::TCP_CONNECTIONS_PER_CLIENT.to_string(),
            ),
            ("upstream_queries", dns::UPSTREAM_QUERIES.to_string()),
            ("waiting_questions", dns::WAITING_QUESTIONS.to_string()),
            (
                "waiting_questions_per_client",
                dns::WAITING_QUESTIONS_PER_CLIENT.to_string(),
            ),
            ("connections", proxy::CONNECTIONS.to_string()),
            ("drain_removed", minutes(proxy::DRAIN_REMOVED)),
            ("pipes", proxy::PIPES.to_string()),
            ("probes", proxy::PROBES.to_string()),
        ];
        for (key, value) in said {
            let line = format!("\n| `{key}` | `{value}` |");
            assert!(manual.contains(&line), "{line}");
        }
    }
}
