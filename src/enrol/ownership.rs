//! Who owns a data directory: the user of the service, though root ran the command.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, lchown},
    path::Path,
};

/// Gives everything under `directory` to the directory's own owner, when root runs this and that is somebody else: the
/// service, running as that user, must be able to use what `init`, `join`, `restore` and `recover` made.
///
/// # Errors
/// When the directory cannot be read or an owner not be set.
pub fn give_to_owner(directory: &Path) -> io::Result<()> {
    let owner = fs::metadata(directory)?;
    match nix::unistd::geteuid().is_root() && owner.uid() != 0 {
        true => give(directory, owner.uid(), owner.gid()),
        false => Ok(()),
    }
}

fn give(directory: &Path, user: u32, group: u32) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        lchown(entry.path(), Some(user), Some(group))?;
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user, group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_made_belongs_to_the_service() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skipped::skip("only root gives files away");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("storage")).unwrap();
        fs::write(dir.path().join("storage/file"), "x").unwrap();
        give_to_owner(dir.path()).unwrap();
        let owner = |name: &str| fs::symlink_metadata(dir.path().join(name)).unwrap().uid();
        assert_eq!(owner("storage/file"), 0);
        lchown(dir.path(), Some(65_534), Some(65_534)).unwrap();
        give_to_owner(dir.path()).unwrap();
        assert_eq!((owner("storage"), owner("storage/file")), (65_534, 65_534));
    }
}
