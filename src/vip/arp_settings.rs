//! `arp_ignore` and `arp_announce` of devices: strict while a VIP is served from `lo`, and what they were afterwards.
//!
//! What they were is kept in a file before they are changed, so that a later process, or `vip uninstall`, restores them after this one
//! was killed. The file is in `/run`: memory, like the settings, so that writing waits for no disk, and gone with them at the next
//! boot. Its name holds the network namespace.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use tracing::{debug, info, warn};

/// Settings and the values that they need at least.
const STRICT: [(&str, u8); 2] = [("arp_ignore", 1), ("arp_announce", 2)];
const KEPT_IN: &str = "/run/pontoon";

/// Makes the settings of a device strict. Doing it twice changes nothing.
pub fn make_strict(device: &str) {
    let before = STRICT.map(|(name, _)| read(device, name).unwrap_or_default());
    if let Err(error) = keep(device, &before) {
        debug!(device, %error, "what the settings of ARP were is not kept for a later process");
    }
    for ((name, value), before) in STRICT.into_iter().zip(before) {
        if before.parse().is_ok_and(|present: u8| present < value)
            && let Err(error) = write(device, name, &value.to_string())
        {
            warn!(device, name, %error, "cannot be set: connections through a VIP that moves may be lost");
        }
    }
}

/// Puts back what was kept for a device, where nobody has changed it since.
pub fn restore(device: &str) {
    let Ok(path) = kept_at(device) else { return };
    let Ok(kept) = fs::read_to_string(&path) else {
        return;
    };
    for ((name, strict), before) in STRICT.into_iter().zip(kept.split_whitespace()) {
        let ours = read(device, name).is_ok_and(|present| present == strict.to_string());
        if ours && let Err(error) = write(device, name, before) {
            warn!(device, name, before, %error, "cannot be restored");
        }
    }
    let _ = fs::remove_file(path); // what is left over restores the same again
}

/// Restores what an earlier process in this network namespace left strict.
pub fn restore_all() {
    let Ok(prefix) = prefix() else { return };
    let Ok(entries) = fs::read_dir(KEPT_IN) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let device = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        if let Some(device) = device {
            restore(device);
            info!(
                device,
                "restored the settings of ARP that an earlier process had left"
            );
        }
    }
}

/// Writes down what the settings were, unless an earlier process did and could not restore them.
fn keep(device: &str, before: &[String; 2]) -> io::Result<()> {
    let path = kept_at(device)?;
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(KEPT_IN)?;
    let new = path.with_extension("new");
    fs::write(&new, before.join(" "))?;
    fs::rename(new, path)
}

fn kept_at(device: &str) -> io::Result<PathBuf> {
    Ok(Path::new(KEPT_IN).join(format!("{}{device}", prefix()?)))
}

/// Of the names of the files of this network namespace: that of the calling thread.
fn prefix() -> io::Result<String> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?;
    Ok(format!("arp-{}-", namespace.ino()))
}

fn setting(device: &str, name: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(device).join(name)
}

fn read(device: &str, name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(setting(device, name))?.trim().to_owned())
}

fn write(device: &str, name: &str, value: &str) -> io::Result<()> {
    fs::write(setting(device, name), value)
}
