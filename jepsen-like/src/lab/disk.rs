//! A disk of one node: an ext4 file system in a file, mounted on the node's data directory. It can fill up, it can stall, and it can lose
//! what was written to it and not brought to it by fsync.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use nix::fcntl::{FallocateFlags, fallocate};

use super::{LabError, namespace::run};

/// Enough for the log of a long run, little enough to be filled in a second.
const SIZE: u64 = 256 << 20;
const FILLER: &str = "filler";
/// The journal is written when somebody asks for it (fsync), and else so seldom that no run sees it: a copy of the file is then of one
/// instant as far as anything durable goes, though taking it takes time.
const OPTIONS: &str = "loop,commit=3600";

/// A mounted disk. Dropping it unmounts it; the file goes with the lab's directory.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted_on: PathBuf,
}

impl Disk {
    /// Why disks cannot be made here; None when they can.
    pub fn missing() -> Option<String> {
        for (tool, argument) in [("mkfs.ext4", "-V"), ("losetup", "-V"), ("fsfreeze", "-V")] {
            if run(tool, &[argument]).is_err() {
                return Some(format!(
                    "{tool} (package e2fsprogs or util-linux) is not installed"
                ));
            }
        }
        run("losetup", &["--find"])
            .err()
            .map(|error| format!("no loop device: {error}"))
    }

    /// Makes a disk in `image` and mounts it on the new directory `on`.
    pub fn mount(image: &Path, on: &Path) -> Result<Self, LabError> {
        let file = File::create(image).map_err(LabError::Directory)?;
        file.set_len(SIZE).map_err(LabError::Directory)?;
        fs::create_dir_all(on).map_err(LabError::Directory)?;
        run("mkfs.ext4", &["-q", "-m", "0", text(image)])?;
        let disk = Self {
            image: image.to_owned(),
            mounted_on: on.to_owned(),
        };
        disk.attach()?;
        fs::remove_dir(on.join("lost+found")).map_err(LabError::Directory)?;
        Ok(disk)
    }

    fn attach(&self) -> Result<(), LabError> {
        let (image, directory) = (text(&self.image), text(&self.mounted_on));
        run("mount", &["-o", OPTIONS, image, directory]).map(drop)
    }

    /// The power fails: what the kernel still held of it is gone, what was durable is there. Nobody may have a file of it open.
    ///
    /// The file is copied as it is; what unmounting writes goes to the old one. Only what the file system still had in memory is lost
    /// this way: what it gave to the disk without asking for durability stays, as with a disk that has no cache.
    pub fn lose_power(&self) -> Result<(), LabError> {
        let kept = self.image.with_extension("kept");
        let copy = ["--sparse=always", "--", text(&self.image), text(&kept)];
        run("cp", &copy)?;
        run("umount", &[text(&self.mounted_on)])?;
        fs::rename(&kept, &self.image).map_err(LabError::Directory)?;
        self.attach()
    }

    /// The file that holds what the disk was given.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Takes all space that is left. It is claimed and not written: hundreds of MiB on their way to the machine's own disk would hold up
    /// every fsync of every node for seconds, also after they were taken away.
    pub fn fill(&self) -> Result<(), LabError> {
        let file = File::create(self.mounted_on.join(FILLER)).map_err(LabError::Directory)?;
        let mut end = 0;
        for piece in [16 << 20, 1 << 20, 64 << 10, 4096] {
            while fallocate(&file, FallocateFlags::empty(), end, piece).is_ok() {
                end += piece;
            }
        }
        Ok(())
    }

    /// Takes away what `fill` wrote.
    pub fn empty(&self) -> Result<(), LabError> {
        fs::remove_file(self.mounted_on.join(FILLER)).map_err(LabError::Directory)
    }

    /// Writes wait from now on; reads of what is cached do not.
    pub fn stall(&self) -> Result<(), LabError> {
        run("fsfreeze", &["--freeze", text(&self.mounted_on)]).map(drop)
    }

    /// Waiting writes go on.
    pub fn resume(&self) -> Result<(), LabError> {
        run("fsfreeze", &["--unfreeze", text(&self.mounted_on)]).map(drop)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mounted_on);
    }
}

/// Unmounts whatever labs left mounted below directories that `is_abandoned` accepts by name.
pub(super) fn clean(is_abandoned: impl Fn(&str) -> bool) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.map(Path::new) {
        let mut names = place.iter().filter_map(|name| name.to_str());
        if names.any(&is_abandoned) {
            unmount(place);
        }
    }
}

fn unmount(place: &Path) {
    let _ = run("fsfreeze", &["--unfreeze", text(place)]); // it was not frozen: as well
    if let Err(error) = run("umount", &[text(place)]) {
        // Somebody still has a file open there: gone when he ends.
        tracing::warn!(place = %place.display(), %error, "disk could not be unmounted");
        let _ = run("umount", &["--lazy", text(place)]);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the lab's own paths are ASCII")
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Write};

    use super::*;

    /// Root and loop devices; says `skipped` without, and fails where `CI=true`.
    fn can_mount() -> bool {
        let missing = match nix::unistd::geteuid().is_root() {
            true => Disk::missing(),
            false => Some("mounting needs root".to_owned()),
        };
        let Some(reason) = missing else { return true };
        crate::lab::skip(reason);
        false
    }

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_emptied() {
        if !can_mount() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, data) = (directory.path().join("disk"), directory.path().join("data"));
        let disk = Disk::mount(&image, &data).unwrap();
        disk.fill().unwrap();
        let written = fs::write(data.join("more"), [1; 5000]);
        assert_eq!(written.unwrap_err().kind(), ErrorKind::StorageFull);
        // Not what `fill` claimed is in the file, but no more than what the file system itself needs.
        let on_disk = std::os::unix::fs::MetadataExt::blocks(&image.metadata().unwrap()) * 512;
        assert!(on_disk < SIZE / 4, "{on_disk}");
        disk.empty().unwrap();
        fs::write(data.join("more"), [1; 5000]).unwrap();
    }

    #[test]
    fn what_was_not_synced_is_lost_with_the_power_and_what_was_is_not() {
        if !can_mount() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let (image, data) = (directory.path().join("disk"), directory.path().join("data"));
        let disk = Disk::mount(&image, &data).unwrap();
        for round in 0..3 {
            let (safe, lost) = (data.join(format!("safe{round}")), data.join("lost"));
            let mut file = File::create(&safe).unwrap();
            file.write_all(&[round; 100_000]).unwrap();
            file.sync_all().unwrap();
            File::open(&data).unwrap().sync_all().unwrap();
            drop(file);
            // Overwritten in place, and a file of its own: neither synced.
            let mut file = File::options().append(true).open(&safe).unwrap();
            file.write_all(&[0xff; 1000]).unwrap();
            drop(file);
            fs::write(&lost, [1; 100_000]).unwrap();

            disk.lose_power().unwrap();
            assert_eq!(fs::read(&safe).unwrap(), [round; 100_000]);
            assert!(!lost.exists());
        }
        drop(disk);
        assert!(fs::read_dir(&data).unwrap().next().is_none());
    }
}
