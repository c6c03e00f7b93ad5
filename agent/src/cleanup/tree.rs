//! Removes a directory with all in it, and never what is mounted there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, open, openat2, statx, unlinkat,
};
use rustix::fs::{StatxAttributes, StatxFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes the directory at `path`. Stops with an error at the first mount in it, whatever else knows of it. One that is
/// gone is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        directory => empty(&directory?, path)?,
    }
    Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?)
}

/// Removes all that is in a directory; `path` is what it is called in errors.
fn empty(directory: &OwnedFd, path: &Path) -> io::Result<()> {
    for (name, kind) in entries(directory)? {
        let here = path.join(name.to_string_lossy().as_ref());
        let failed = |errno: Errno| {
            let why = match errno {
                Errno::XDEV => "something is mounted there".to_owned(),
                other => io::Error::from(other).to_string(),
            };
            io::Error::other(format!("{}: {why}", here.display()))
        };
        let flags = match kind {
            FileType::Directory => {
                // The kernel refuses what is another file system or a bind mount, so this cannot race with one.
                let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
                let below = openat2(directory, &name, DIRECTORY, Mode::empty(), resolve);
                empty(&below.map_err(failed)?, &here)?;
                AtFlags::REMOVEDIR
            }
            _ if is_mount(directory, &name).map_err(failed)? => return Err(failed(Errno::XDEV)),
            _ => AtFlags::empty(),
        };
        match unlinkat(directory, &name, flags) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn entries(directory: impl AsFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

fn is_mount(directory: impl AsFd, name: &CString) -> rustix::io::Result<bool> {
    let stat = statx(
        directory,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::empty(),
    )?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;
    use crate::testing::root_or_skip;

    #[test]
    fn everything_goes_and_links_are_not_followed() {
        let home = tempfile::tempdir().unwrap();
        let (outside, dir) = (home.path().join("outside"), home.path().join("dir"));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in [outside.join("kept"), dir.join("a/b/file")] {
            fs::write(file, "").unwrap();
        }
        symlink(&outside, dir.join("a/link")).unwrap();
        remove(&dir).unwrap();
        remove(&dir).unwrap();
        assert!(!dir.exists() && outside.join("kept").exists());
    }

    #[test]
    fn what_is_mounted_is_not_touched() {
        if !root_or_skip("mounting needs root") {
            return;
        }
        let home = tempfile::Builder::new().prefix("kn-ct").tempdir().unwrap();
        let (outside, dir) = (home.path().join("outside"), home.path().join("dir"));
        fs::create_dir_all(dir.join("pod/volume")).unwrap();
        fs::create_dir(&outside).unwrap();
        let kept = outside.join("kept");
        fs::write(&kept, "").unwrap();
        fs::write(dir.join("pod/file"), "").unwrap();
        for (source, target) in [
            (&outside, dir.join("pod/volume")),
            (&kept, dir.join("pod/file")),
        ] {
            mount_bind(source, &target).unwrap();
            let refused = remove(&dir).unwrap_err().to_string();
            let there = kept.exists();
            unmount(&target, UnmountFlags::DETACH).unwrap();
            assert!(there, "the host's file");
            let expected = format!("{}: something is mounted there", target.display());
            assert_eq!(refused, expected);
            fs::create_dir_all(dir.join("pod")).unwrap();
            fs::write(dir.join("pod/file"), "").unwrap();
        }
        remove(&dir).unwrap();
        assert!(!dir.exists());
    }
}
