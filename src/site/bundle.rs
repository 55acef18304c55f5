//! Making a site document stand alone: the files it names are read and put in its place.

use toml::Value;

use super::document;
use crate::{config::Fault, zonefile::Loader};

/// A document that stands alone.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundled {
    pub text: String,
    /// What is to be known, a line each: data that is ignored, for instance.
    pub warnings: Vec<String>,
}

/// The document with the text of every `file` key under `records`, and with every `$INCLUDE` resolved. `loader` reads
/// files beside the document. A document that needs none of it comes back as it is.
///
/// # Errors
/// Everything that is wrong with it and with its files.
pub fn bundle(text: &str, loader: &mut dyn Loader) -> Result<Bundled, Vec<Fault>> {
    let (site, warnings) = document::read(text, Some(loader))?;
    let zones = match document::table(text, &mut Vec::new()).and_then(|mut t| t.remove("zone")) {
        Some(Value::Array(zones)) => zones,
        _ => Vec::new(),
    };
    let text = match zones.iter().any(needs_files) {
        true => site.to_toml(),
        false => text.to_owned(),
    };
    Ok(Bundled { text, warnings })
}

fn needs_files(zone: &Value) -> bool {
    let includes = |text: &str| text.to_ascii_uppercase().contains("$INCLUDE");
    zone.get("file").is_some()
        || zone
            .get("records")
            .and_then(Value::as_str)
            .is_some_and(includes)
}
