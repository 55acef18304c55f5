//! `pontoon cluster admin`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Context,
    client::Client,
    cluster::{admin_name, cluster_client, kept_text},
    endpoint::admin_dir,
    exit,
    output::moment,
};
use crate::{
    enrol::{
        admin_files::{StagedAdmin, holder},
        identity_file::StoredCertificate,
    },
    pki::{authority, identity::Role},
    wire::{
        error::{Failure, FailureCode},
        v1,
    },
};

/// Client certificates of administrators
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  pontoon cluster admin create ann --admin-dir ann-certificate")]
pub enum Admin {
    Create(Create),
}

/// Make a client certificate for an administrator
///
/// It is good for 365 days; the command line warns in the last 30. Run it again to replace the certificate of that name. On a
/// node it needs no certificate, by the node's socket. Certificates are recorded nowhere: what takes one away before its
/// time is `pontoon cluster ca rotate`, twice.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon cluster admin create admin                            # a new one for yourself, if that is your name
  pontoon cluster admin create ann --admin-dir ann-certificate  # one for a colleague")]
pub struct Create {
    /// Name of the administrator, for history
    #[arg(value_parser = admin_name)]
    name: String,
    /// Where the certificate goes: admin.pem, admin.key and ca.pem, mode 0600 [default: ~/.config/pontoon]
    #[arg(long, value_name = "DIR")]
    admin_dir: Option<PathBuf>,
}

#[derive(Serialize)]
struct Made {
    name: String,
    admin_dir: String,
    /// When it ends, in RFC 3339.
    ends: String,
    /// Where the certificate of another cluster is kept that had lain there.
    kept: Option<String>,
}

impl Admin {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        match self {
            Self::Create(command) => command.run(context).await,
        }
    }
}

impl Create {
    async fn run(self, context: &Context) -> Result<(), Failure> {
        let dir = self.admin_dir.unwrap_or_else(admin_dir);
        let object = format!("administrator {}", self.name);
        // The key stays on this machine.
        let asked = authority::request().map_err(|e| exit::internal(&object, e))?;
        let request = v1::CreateAdminRequest {
            name: self.name.clone(),
            csr_pem: asked.csr_pem,
        };
        let mut client = Client::connect(context).await?;
        // Signed again under the same name, it is as good.
        let reply = client
            .write(&object, async |attempt| {
                cluster_client(&attempt.channel)
                    .create_admin(attempt.request(request.clone()))
                    .await
            })
            .await?
            .into_inner();
        let made = StoredCertificate {
            certificate: reply.certificate_pem,
            key: asked.key_pem,
            authorities: reply.ca_certificates_pem,
        };
        not_of_another(&dir, &made)?;
        let kept = StagedAdmin::stage(&dir, &made)
            .and_then(StagedAdmin::put)
            .map_err(|e| exit::invalid(&object, e, "name another directory by --admin-dir"))?;
        let made = Made {
            name: self.name,
            admin_dir: dir.display().to_string(),
            ends: moment(reply.ends_at_ms),
            kept: kept.map(|dir| dir.display().to_string()),
        };
        context.out.result(&made, || {
            format!(
                "made a certificate of administrator {}, good until {}: {}\n{}",
                made.name,
                made.ends,
                made.admin_dir,
                kept_text(made.kept.as_deref())
            )
        })
    }
}

/// Refuses to replace the certificate of somebody else in the same cluster: it would be gone.
fn not_of_another(dir: &Path, made: &StoredCertificate) -> Result<(), Failure> {
    let credentials = made
        .credentials()
        .map_err(|e| exit::internal("the node's answer", e))?;
    let ours = credentials.identity();
    match holder(dir) {
        Some(theirs) if theirs.cluster == ours.cluster && theirs.role != ours.role => {
            let other = match theirs.role {
                Role::Admin(name) => format!("administrator {name}"),
                Role::Node(id) => format!("node {id}"),
            };
            Err(Failure::new(
                FailureCode::AlreadyExists,
                ours.to_string(),
                format!("{} holds the certificate of {other}", dir.display()),
                "name another directory by --admin-dir",
            ))
        }
        _ => Ok(()),
    }
}
