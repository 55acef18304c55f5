//! `arp_ignore` and `arp_announce` of devices: strict while a VIP is served from `lo`, and what they were afterwards.
//!
//! What they were is kept in a file before they are changed, so that a later process, or `vip uninstall`, restores them after this one
//! was killed. The file is in `/run`: memory, like the settings, so that writing waits for no disk, and gone with them at the next
//! boot. Its name holds the network namespace by a number that no other has before the next boot, and the file the index of the
//! device: neither a later namespace nor a device that was made anew is given what it never had.

use std::{
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
    path::{Path, PathBuf},
};

use nix::{getsockopt_impl, net::if_::if_nametoindex, sockopt_impl, sys::socket::getsockopt};
use tracing::{debug, info, warn};

/// Settings and the values that they need at least.
const STRICT: [(&str, u8); 2] = [("arp_ignore", 1), ("arp_announce", 2)];
const KEPT_IN: &str = "/run/pontoon";
/// Of `asm-generic/socket.h`, from Linux 5.14 on.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// Makes the settings of a device strict. Doing it twice changes nothing.
pub fn make_strict(device: &str) {
    let before = STRICT.map(|(name, _)| read(device, name).unwrap_or_default());
    if let Err(error) = keep(device, before.clone()) {
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
    let Ok(text) = fs::read_to_string(&path) else {
        return;
    };
    if let Some(kept) = Kept::of_text(&text).filter(|kept| kept.is_of(device)) {
        for ((name, strict), before) in STRICT.into_iter().zip(&kept.before) {
            let ours = read(device, name).is_ok_and(|present| present == strict.to_string());
            if ours && let Err(error) = write(device, name, before) {
                warn!(device, name, before, %error, "cannot be restored");
            }
        }
    }
    let _ = fs::remove_file(path); // what is left over restores the same again
}

/// Restores what an earlier process in this network namespace left strict, and removes what was kept for namespaces that are gone.
pub fn restore_all() {
    let (Ok(place), Ok(entries)) = (Place::here(), fs::read_dir(KEPT_IN)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        match name
            .to_str()
            .map_or(Owner::Other, |name| place.owner_of(name))
        {
            Owner::Here(device) => {
                restore(device);
                info!(
                    device,
                    "restored the settings of ARP that an earlier process had left"
                );
            }
            Owner::Gone => {
                let _ = fs::remove_file(entry.path()); // it says nothing to anybody
            }
            Owner::Other => {}
        }
    }
}

/// Writes down what the settings were, unless an earlier process did and could not restore them.
fn keep(device: &str, before: [String; 2]) -> io::Result<()> {
    let path = kept_at(device)?;
    let known = fs::read_to_string(&path).ok();
    if known
        .and_then(|text| Kept::of_text(&text))
        .is_some_and(|kept| kept.is_of(device))
    {
        return Ok(());
    }
    fs::create_dir_all(KEPT_IN)?;
    let new = path.with_extension("new");
    let kept = Kept {
        index: if_nametoindex(device)?,
        before,
    };
    fs::write(&new, kept.text())?;
    fs::rename(new, path)
}

/// What a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// Of the device: one that was made anew has another, and settings that nobody changed.
    index: u32,
    before: [String; 2],
}

impl Kept {
    fn of_text(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let index = words.next()?.parse().ok()?;
        let before = [words.next()?.to_owned(), words.next()?.to_owned()];
        Some(Self { index, before })
    }

    fn text(&self) -> String {
        format!("{} {}", self.index, self.before.join(" "))
    }

    fn is_of(&self, device: &str) -> bool {
        if_nametoindex(device).is_ok_and(|index| index == self.index)
    }
}

fn kept_at(device: &str) -> io::Result<PathBuf> {
    let file = format!("{}{device}", Place::here()?.prefix());
    Ok(Path::new(KEPT_IN).join(file))
}

/// A network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Its number among those that there are: another one may have it later.
    inode: u64,
    /// A number that no other one ever has, until the next boot.
    cookie: u64,
}

/// Whose a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner<'a> {
    /// A device of this namespace.
    Here(&'a str),
    /// One that had the number of this namespace before it.
    Gone,
    /// Another one, or it is none of these files.
    Other,
}

impl Place {
    /// That of the calling thread.
    fn here() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        Ok(Self {
            inode: fs::metadata("/proc/thread-self/ns/net")?.ino(),
            cookie: getsockopt(&socket, NamespaceCookie)?,
        })
    }

    fn of_number(self) -> String {
        format!("arp-{}-", self.inode)
    }

    fn prefix(self) -> String {
        format!("{}{}-", self.of_number(), self.cookie)
    }

    fn owner_of(self, file: &str) -> Owner<'_> {
        match file.strip_prefix(&self.prefix()) {
            Some(device) => Owner::Here(device),
            None if file.starts_with(&self.of_number()) => Owner::Gone,
            None => Owner::Other,
        }
    }
}

sockopt_impl!(
    /// The number of a socket's network namespace.
    NamespaceCookie,
    GetOnly,
    libc::SOL_SOCKET,
    SO_NETNS_COOKIE,
    u64
);

fn setting(device: &str, name: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(device).join(name)
}

fn read(device: &str, name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(setting(device, name))?.trim().to_owned())
}

fn write(device: &str, name: &str, value: &str) -> io::Result<()> {
    fs::write(setting(device, name), value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vip::namespace::{in_namespace, sh};

    #[test]
    fn a_file_is_of_this_namespace_or_of_one_before_it_or_of_another() {
        let here = Place {
            inode: 40,
            cookie: 7,
        };
        for (file, owner) in [
            ("arp-40-7-eth0", Owner::Here("eth0")),
            ("arp-40-7-br-1", Owner::Here("br-1")),
            ("arp-40-6-eth0", Owner::Gone),
            ("arp-40-71-eth0", Owner::Gone),
            ("arp-41-7-eth0", Owner::Other),
            ("arp-401-7-eth0", Owner::Other),
            ("backup.sock", Owner::Other),
        ] {
            assert_eq!(here.owner_of(file), owner, "{file}");
        }
    }

    #[test]
    fn a_text_that_is_not_whole_says_nothing() {
        let kept = Kept {
            index: 12,
            before: ["0".to_owned(), "1".to_owned()],
        };
        assert_eq!(Kept::of_text(&kept.text()), Some(kept));
        for text in ["", "12", "12 0", "eth0 0 1", "0 1"] {
            assert_eq!(Kept::of_text(text), None, "{text:?}");
        }
    }

    fn settings() -> [String; 2] {
        STRICT.map(|(name, _)| read("eth0", name).unwrap())
    }

    #[test]
    fn what_was_kept_is_put_back_on_the_device_that_it_was_kept_for() {
        in_namespace(|| {
            let loose = settings();
            let strict = ["1", "2"].map(str::to_owned);
            let path = kept_at("eth0").unwrap();
            make_strict("eth0");
            assert_eq!(settings(), strict);
            restore_all();
            assert_eq!(settings(), loose);
            assert!(!path.exists());

            // The process is killed; the device is made anew, and somebody has it strict.
            make_strict("eth0");
            let before = if_nametoindex("eth0").unwrap();
            sh("ip link del eth0; ip link add eth0 type veth peer name eth1");
            assert_ne!(if_nametoindex("eth0").unwrap(), before);
            for (name, value) in STRICT {
                write("eth0", name, &value.to_string()).unwrap();
            }
            restore_all();
            assert_eq!(settings(), strict);
            assert!(!path.exists());

            // A namespace that is gone had the number of this one.
            let gone = Place {
                cookie: 1,
                ..Place::here().unwrap()
            };
            let left = Path::new(KEPT_IN).join(format!("{}eth0", gone.prefix()));
            let index = if_nametoindex("eth0").unwrap();
            fs::create_dir_all(KEPT_IN).unwrap();
            fs::write(&left, format!("{index} 0 0")).unwrap();
            restore_all();
            assert_eq!(settings(), strict);
            assert!(!left.exists());
        });
    }
}
