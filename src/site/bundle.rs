//! Making a site document stand alone: the files it names are read and put in its place.

use toml::Value;

use super::{MANUAL, document};
use crate::{
    config::{Fault, reader::Section},
    model::{name::Name, quoted::quoted},
    zonefile::{self, Loader},
};

/// The document with the text of every `file` key under `records`, and with every `$INCLUDE` resolved. `loader` reads
/// files beside the document. A document that needs none of it comes back as it is.
pub fn bundle(text: &str, loader: &mut dyn Loader) -> Result<String, Vec<Fault>> {
    let mut faults = Vec::new();
    let Some(mut table) = document::table(text, &mut faults) else {
        return Err(faults);
    };
    let mut zones = match table.remove("zone") {
        Some(Value::Array(zones)) => zones,
        // What else it may be is for the reader of the document to refuse.
        _ => return Ok(text.to_owned()),
    };
    if !zones.iter().any(needs_files) {
        return Ok(text.to_owned());
    }
    for zone in &mut zones {
        if needs_files(zone) {
            resolve(zone, loader, &mut faults);
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    table.insert("zone".into(), Value::Array(zones));
    toml::to_string(&table).map_err(|error| {
        vec![Fault {
            key: String::new(),
            problem: error.to_string(),
        }]
    })
}

fn needs_files(zone: &Value) -> bool {
    let includes = |text: &str| text.to_ascii_uppercase().contains("$INCLUDE");
    zone.get("file").is_some()
        || zone
            .get("records")
            .and_then(Value::as_str)
            .is_some_and(includes)
}

/// Puts the records of one zone in place of its file and its includes.
fn resolve(zone: &mut Value, loader: &mut dyn Loader, faults: &mut Vec<Fault>) {
    let Some(table) = zone.as_table_mut() else {
        return;
    };
    let name = table
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let key = format!("zone[{name}]");
    let fault = |part: &str, problem: String| Fault {
        key: format!("{key}.{part}"),
        problem,
    };
    let apex = match name.parse::<Name>() {
        Ok(apex) => apex,
        Err(error) => return faults.push(fault("name", error.to_string())),
    };
    let (source, text) = match (table.remove("file"), table.remove("records")) {
        (Some(_), Some(_)) => {
            let problem = "is given beside `records`: keep one of them";
            return faults.push(fault("file", problem.into()));
        }
        (Some(Value::String(file)), None) => match load(&file, loader) {
            Ok(text) => (file, text),
            Err(problem) => return faults.push(fault("file", problem)),
        },
        (None, Some(Value::String(text))) => ("records".to_owned(), text.into_bytes()),
        _ => return faults.push(fault("file", "expected a file name in quotes".into())),
    };
    let mut alone = Section::root(toml::Table::new(), faults, MANUAL);
    let Some(records) = document::records(&mut alone, &apex, &text, &source, loader) else {
        return;
    };
    let sets = records.iter().map(|(owner, set)| (owner.clone(), set));
    table.insert(
        "records".into(),
        Value::String(zonefile::write(&apex, sets)),
    );
}

fn load(file: &str, loader: &mut dyn Loader) -> Result<Vec<u8>, String> {
    if !zonefile::include::is_plain(file) {
        return Err(format!(
            "{file} is no plain file name: only files beside the document are read",
            file = quoted(file)
        ));
    }
    loader
        .load(file)
        .map_err(|error| format!("{file}: {error}"))
}
