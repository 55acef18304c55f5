//! `pontoon plan`, `apply` and `export`: the whole desired state as one document.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use serde::Serialize;

use super::{
    Context,
    client::Client,
    exit,
    input::Input,
    whole_file,
    write::{CHUNK, LEVEL, Written, warn},
};
use crate::{
    api::group::random_request,
    site::bundle,
    wire::{
        command::request_id_bytes,
        error::{Failure, FailureCode},
        v1,
    },
};

/// Show what applying a site document would change
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon plan -f site.toml")]
pub struct Plan {
    /// The site document; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Exit with 1 when there is something to change
    #[arg(long)]
    exit_code: bool,
}

/// Make the service as a site document says, as one change
///
/// What the document does not name is removed. An empty document is refused: one with the line `[dns]` alone removes everything.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon apply -f site.toml --if-revision 42")]
pub struct Apply {
    /// The site document; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Change nothing unless the state has this revision
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
}

/// Write the whole state as a site document
///
/// Applied again, it changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  pontoon export -f site.toml")]
pub struct Export {
    /// Write to this file, which is replaced when the new one is complete; - is stdout
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Write secrets in place of references to them
    #[arg(long)]
    secrets: bool,
}

#[derive(Serialize)]
struct Planned {
    revision: u64,
    stale: bool,
    changes: Vec<ChangeJson>,
}

#[derive(Serialize)]
struct ChangeJson {
    action: &'static str,
    object: String,
    /// Lines `- old` and `+ new`.
    details: Vec<String>,
}

impl From<v1::SiteChange> for ChangeJson {
    fn from(change: v1::SiteChange) -> Self {
        let v1::SiteChange {
            action,
            object,
            details,
        } = change;
        let action = match v1::SiteAction::try_from(action) {
            Ok(v1::SiteAction::Create) => "create",
            Ok(v1::SiteAction::Update) => "update",
            Ok(v1::SiteAction::Delete) => "delete",
            Ok(v1::SiteAction::Unspecified) | Err(_) => "unknown",
        };
        Self {
            action,
            object,
            details,
        }
    }
}

impl ChangeJson {
    fn text(&self) -> String {
        let details: String = self.details.iter().map(|d| format!("    {d}\n")).collect();
        format!("{} {}\n{details}", self.action, self.object)
    }
}

impl Plan {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut uploads = uploads(&read_document(context, &self.file)?, None, 0)?;
        let mut client = Client::connect(context).await?;
        if let Some(first) = uploads.first_mut() {
            first.consistency = client.consistency();
        }
        let pages = client
            .read("site", async |attempt| {
                let stream = tokio_stream::iter(uploads.clone());
                let plan = attempt.request(stream);
                let mut reply = attempt.admin().plan_site(plan).await?.into_inner();
                let mut pages = Vec::new();
                while let Some(page) = reply.message().await? {
                    pages.push(page);
                }
                Ok(pages)
            })
            .await?;
        let header = pages.first().and_then(|p| p.header).unwrap_or_default();
        if let Some(first) = pages.first() {
            warn(context, &first.warnings);
        }
        let changes = pages.into_iter().flat_map(|p| p.changes);
        let planned = Planned {
            revision: header.revision,
            stale: header.stale,
            changes: changes.map(Into::into).collect(),
        };
        context
            .out
            .result(&planned, || match planned.changes.len() {
                0 => "nothing to change\n".to_owned(),
                count => {
                    let text: String = planned.changes.iter().map(ChangeJson::text).collect();
                    format!("{text}{count} objects would change\n")
                }
            })?;
        match self.exit_code && !planned.changes.is_empty() {
            true => Err(Failure::new(
                FailureCode::PreconditionFailed,
                "site",
                format!("{} objects differ from the document", planned.changes.len()),
                "`pontoon apply` makes them equal",
            )),
            false => Ok(()),
        }
    }
}

#[derive(Serialize)]
struct Applied {
    #[serde(flatten)]
    written: Written,
    changes: Vec<ChangeJson>,
}

impl Apply {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let document = read_document(context, &self.file)?;
        let mut client = Client::connect(context).await?;
        let uploads = uploads(&document, self.if_revision, client.born())?;
        let reply = client
            .write("site", async |attempt| {
                let stream = tokio_stream::iter(uploads.clone());
                attempt.admin().apply_site(attempt.request(stream)).await
            })
            .await?
            .into_inner();
        warn(context, &reply.warnings);
        let applied = Applied {
            written: reply.applied.unwrap_or_default().into(),
            changes: reply.changes.into_iter().map(Into::into).collect(),
        };
        context.out.result(&applied, || {
            let changes: String = applied.changes.iter().map(ChangeJson::text).collect();
            format!("{changes}{}", applied.written.text("applied the site"))
        })
    }
}

#[derive(Serialize)]
struct Exported {
    revision: u64,
    stale: bool,
    /// The document; null when it went to a file.
    text: Option<String>,
}

impl Export {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut client = Client::connect(context).await?;
        let request = v1::ExportSiteRequest {
            consistency: client.consistency(),
            secrets: self.secrets,
        };
        let (header, data) = client
            .read("site", async |attempt| {
                let reply = attempt
                    .admin()
                    .export_site(attempt.request(request))
                    .await?;
                let mut pieces = reply.into_inner();
                let (mut header, mut data) = (v1::ReadHeader::default(), Vec::new());
                while let Some(piece) = pieces.message().await? {
                    header = piece.header.unwrap_or(header);
                    data.extend_from_slice(&piece.data);
                }
                Ok((header, data))
            })
            .await?;
        let text = String::from_utf8(data).map_err(|e| exit::internal("site", e))?;
        let to_stdout = self.file == Path::new("-");
        if !to_stdout {
            whole_file::write(&context.out, &self.file, &text)?;
        }
        let exported = Exported {
            revision: header.revision,
            stale: header.stale,
            text: to_stdout.then_some(text),
        };
        context.out.result(&exported, || match &exported.text {
            Some(text) => text.clone(),
            None => format!(
                "wrote {} (revision {})\n",
                self.file.display(),
                exported.revision
            ),
        })
    }
}

/// Reads a document and puts the files it names in their places.
fn read_document(context: &Context, file: &Path) -> Result<String, Failure> {
    let mut input = Input::read(file)?;
    let text = input.text(file)?;
    let bundled = bundle::bundle(&text, &mut input.beside).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        exit::faulty(file, &lines, "docs/site.md describes every key")
    })?;
    warn(context, &bundled.warnings);
    Ok(bundled.text)
}

/// The messages that carry a document.
fn uploads(
    document: &str,
    if_revision: Option<u64>,
    born: u64,
) -> Result<Vec<v1::SiteUpload>, Failure> {
    let packed =
        zstd::bulk::compress(document.as_bytes(), LEVEL).map_err(|e| exit::internal("site", e))?;
    let mut uploads: Vec<v1::SiteUpload> = packed
        .chunks(CHUNK)
        .map(|data| v1::SiteUpload {
            data: Bytes::copy_from_slice(data),
            ..v1::SiteUpload::default()
        })
        .collect();
    if let Some(first) = uploads.first_mut() {
        first.request_id = request_id_bytes(random_request());
        first.born = born;
        first.if_revision = if_revision;
    }
    Ok(uploads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::command::decompress;

    #[test]
    fn a_document_travels_in_pieces() {
        let text: String = (0..400_000u32)
            .map(|i| format!("{}\n", u64::from(i) * 7919 % 1_000_003))
            .collect();
        let uploads = uploads(&text, Some(4), 3).expect("packed");
        assert!(uploads.len() > 1);
        assert_eq!(uploads[0].request_id.len(), 16);
        assert_eq!((uploads[0].born, uploads[0].if_revision), (3, Some(4)));
        assert!(uploads[1].request_id.is_empty());
        let packed: Vec<u8> = uploads.iter().flat_map(|u| u.data.to_vec()).collect();
        assert_eq!(
            decompress(&packed, text.len()).expect("unpacks"),
            text.as_bytes()
        );
    }
}
