//! The first content of a development cluster: the VIP alone, or the sample site with its ports moved to the port base.

use std::time::Duration;

use pontoon_proto::v1::{SiteUpload, admin_client::AdminClient};
use rand::RngExt;
use tonic::Code;

use super::{
    DEFAULT_PORT_BASE,
    layout::{Layout, VIP},
    progress::Progress,
};
use crate::{
    pki::verify::Expected,
    site::Site,
    transport::{Security, connect},
};

/// The site that a development cluster begins with; also an example for operators.
const SAMPLE_SITE: &str = include_str!("../../cluster/sample-site.toml");
/// The highest port of a development cluster on the default base.
const LAST_PORT: u16 = DEFAULT_PORT_BASE + 499;
const PAUSE: Duration = Duration::from_millis(30);

/// Commits the first content through node 1 and returns its revision.
pub(super) async fn load(
    layout: &Layout,
    empty: bool,
    progress: &mut Progress,
) -> Result<u64, String> {
    let document = if empty {
        format!("[[vip]]\naddress = \"{VIP}\"\n")
    } else {
        sample_site(layout.port_base)?
    };
    let data = zstd::encode_all(document.as_bytes(), 0).map_err(|e| e.to_string())?;
    let request_id = rand::rng().random::<u128>().to_be_bytes().to_vec();
    let upload = SiteUpload {
        request_id: request_id.into(),
        data: data.into(),
        ..SiteUpload::default()
    };
    while !progress.is_over() {
        let channel = connect::channel(layout.api(1), &Security::Plain, Expected::AnyNode);
        let sent = AdminClient::new(channel)
            .apply_site(futures::stream::iter([upload.clone()]))
            .await;
        match sent {
            Ok(reply) => {
                return reply
                    .into_inner()
                    .applied
                    .map(|a| a.revision)
                    .ok_or("no revision in the reply".into());
            }
            // Not up yet, or no leader yet: the same request again.
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Aborted
                ) =>
            {
                progress.note(format!("node 1: {}", status.message()));
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => return Err(status.message().to_owned()),
        }
    }
    Err(progress.obstacle())
}

/// The sample site with its ports moved from the default base to `base`.
fn sample_site(base: u16) -> Result<String, String> {
    let mut site = Site::parse(SAMPLE_SITE).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        lines.join("; ")
    })?;
    site.map_ports(|port| match port {
        DEFAULT_PORT_BASE..=LAST_PORT => port - DEFAULT_PORT_BASE + base,
        other => other,
    });
    Ok(site.to_toml())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_move_with_the_base() {
        let moved = Site::parse(&sample_site(20_000).expect("valid")).expect("read back");
        assert_eq!(
            moved.listeners.values().map(|l| l.port).collect::<Vec<_>>(),
            [20_400]
        );
        let upstreams: Vec<u16> = moved
            .forwarders
            .values()
            .flat_map(|f| &f.upstreams)
            .map(|a| a.port())
            .collect();
        assert_eq!(upstreams, [20_490]);
        let backends: Vec<u16> = moved
            .pools
            .values()
            .flat_map(|p| &p.backends)
            .map(|b| b.address.port())
            .collect();
        assert_eq!(backends, [20_491, 20_492]);
    }
}
