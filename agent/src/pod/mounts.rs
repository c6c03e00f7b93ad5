//! Mounts that the agent makes for a pod: memory-backed directories, images, and parts of volumes that containers ask for by
//! path.
//!
//! They are all below one directory of the pod's, apart from its files: whatever removes the files never meets a mount,
//! behind which may be the node's own. They outlive the agent, like the pod's namespaces, and every function may be
//! repeated.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use crate::runtime::Propagation;
use crate::runtime::idmap::{self, detach};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, fchmod, fstat,
    mkdirat, open, openat, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

/// How often a path is looked up again that changes meanwhile.
const LOOKUPS: usize = 16;

/// A directory in memory for at most `bytes`, or half of the node's memory without that. `mode` as in `chmod`. Does nothing
/// where it is mounted already.
pub(super) fn memory(
    path: &Path,
    bytes: Option<u64>,
    mode: u32,
    flags: MountFlags,
) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    // Without a nul byte, as it is made of numbers.
    let options = CString::new(format!("mode={mode:o}{size}"))?;
    Ok(mount(
        "tmpfs",
        path,
        "tmpfs",
        flags,
        Some(options.as_c_str()),
    )?)
}

/// The same of huge pages of a size, at most so many bytes.
pub(super) fn huge_pages(path: &Path, page_size: u64, bytes: Option<u64>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if is_mounted(path)? {
        return Ok(());
    }
    let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    // Without a nul byte, as it is made of numbers.
    let options = CString::new(format!("mode=777,pagesize={page_size}{size}"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let options = Some(options.as_c_str());
    Ok(mount("hugetlbfs", path, "hugetlbfs", flags, options)?)
}

/// Mounts the file system that these directories make, the topmost first, for reading only; nothing in it runs as a program.
/// What is mounted there already stays. With `users` the files are shown under the ids of the user namespace at that path, for
/// which each layer is mounted beside `path`, too: nothing but what an overlay is made of can be.
pub(super) fn layers(path: &Path, layers: &[PathBuf], users: Option<&Path>) -> io::Result<()> {
    fs::create_dir_all(path)?;
    if !is_mounted(path)? {
        let show = |(at, layer): (usize, &PathBuf)| match users {
            None => Ok(layer.clone()),
            Some(users) => {
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{at}"));
                mapped(layer, Path::new(&name), users).map(|()| name.into())
            }
        };
        let layers: Vec<PathBuf> = layers
            .iter()
            .enumerate()
            .map(show)
            .collect::<Result<_, _>>()?;
        match layers.as_slice() {
            [] => return Err(io::Error::other("the image has no files")),
            [only] => mount_bind(only, path)?,
            many => overlay(path, many)?,
        }
    }
    // Of a bind mount that an earlier agent left half done, too.
    let flags = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount(path, MountFlags::BIND | flags, c"")?)
}

fn overlay(path: &Path, layers: &[PathBuf]) -> io::Result<()> {
    let open = |layer: &PathBuf| {
        open(
            layer,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    let opened: Vec<OwnedFd> = layers.iter().map(open).collect::<Result<_, _>>()?;
    // The kernel reads one page of options: the paths of many layers would not fit.
    let directories = opened
        .iter()
        .map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()));
    let lower = directories.collect::<Vec<_>>().join(":");
    let options = CString::new(format!("lowerdir={lower}"))?;
    Ok(mount(
        "overlay",
        path,
        "overlay",
        MountFlags::RDONLY,
        Some(options.as_c_str()),
    )?)
}

/// What becomes of a part of a volume that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is made, as directories with the mode of the volume's.
    Made,
    /// Nobody can make it.
    Refused,
}

/// Mounts what is at `path` below `root` at `target`, whatever was mounted there before.
///
/// A container that has the volume may change it meanwhile: nothing outside of `root` is made or mounted all the same.
pub(super) fn sub_path(
    root: &Path,
    path: &Path,
    target: &Path,
    missing: Missing,
) -> io::Result<()> {
    let root = open(
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // From here on it is this file that counts, not its name.
    let found = match missing {
        Missing::Made => find_or_make(&root, path)?,
        Missing::Refused => beneath(&root, path)?,
    };
    let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
    new_mount_point(target, kind == FileType::Directory)?;
    Ok(mount_bind(
        format!("/proc/self/fd/{}", found.as_raw_fd()),
        target,
    )?)
}

/// Mounts what is at `source` at `target`, under the ids of the user namespace at `users`, whatever was mounted there before.
pub(super) fn mapped(source: &Path, target: &Path, users: &Path) -> io::Result<()> {
    new_mount_point(target, fs::metadata(source)?.is_dir())?;
    idmap::mount(source, target, users)
}

/// Makes a place to mount a directory or a file at, in place of what was there.
fn new_mount_point(target: &Path, is_directory: bool) -> io::Result<()> {
    detach(target)?;
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    remove_mount_point(target)?;
    match is_directory {
        true => fs::create_dir(target),
        false => fs::File::create(target).map(|_| ()),
    }
}

/// Takes every mount directly below `directory` away, and then the directory.
pub(super) fn remove_all(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        detach(&path)?;
        // Never recursively: should something still be mounted there, it is not ours to remove.
        remove_mount_point(&path)?;
    }
    fs::remove_dir(directory)
}

/// Whether something is mounted at `path`.
pub(super) fn is_mounted(path: &Path) -> io::Result<bool> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// How far mounts below `path` are shared with the rest of the node.
pub(super) fn peers(path: &Path) -> io::Result<Propagation> {
    let real = path.canonicalize()?;
    Ok(peers_in(
        &fs::read_to_string("/proc/self/mountinfo")?,
        &real,
    ))
}

/// The same, by the text of `mountinfo`: of what is mounted on top at the longest way to the path.
fn peers_in(mountinfo: &str, path: &Path) -> Propagation {
    let mounts = mountinfo.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let point = Path::new(*fields.get(4)?);
        let optional = fields.iter().skip(6).take_while(|field| **field != "-");
        let has = |kind: &str| optional.clone().any(|field| field.starts_with(kind));
        let peers = match (has("shared:"), has("master:")) {
            (true, _) => Propagation::Both,
            (false, true) => Propagation::FromNode,
            (false, false) => Propagation::None,
        };
        let depth = point.components().count();
        path.starts_with(point).then_some((depth, peers))
    });
    // Of several at one point the last is the topmost.
    let nearest = mounts.max_by_key(|(depth, _)| *depth);
    nearest.map_or(Propagation::None, |(_, peers)| peers)
}

/// Removes an empty directory or a file, if there is one.
fn remove_mount_point(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn find_or_make(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    match beneath(root, path) {
        Err(Errno::NOENT) => {}
        found => return Ok(found?),
    }
    let mode = Mode::from_raw_mode(fstat(root)?.st_mode);
    let mut reached = PathBuf::new();
    let mut directory = root.try_clone()?;
    for part in path.components() {
        let name = match part {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            _ => return Err(Errno::INVAL.into()),
        };
        reached.push(name);
        directory = match beneath(root, &reached) {
            Err(Errno::NOENT) => make(&directory, Path::new(name), mode)?,
            found => found?,
        };
    }
    Ok(directory)
}

/// Opens what is there. Links are followed as long as they stay below `root`.
fn beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut found = Err(Errno::AGAIN);
    for _ in 0..LOOKUPS {
        found = openat2(root, path, flags, Mode::empty(), resolve);
        // The kernel could not tell, because something was renamed meanwhile.
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    found
}

/// Makes a directory; what was put into its place meanwhile is refused unless it is a directory itself.
fn make(parent: impl AsFd, name: &Path, mode: Mode) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let made = openat(
        &parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // The process's umask does not apply to what a pod's volume looks like.
    fchmod(&made, mode)?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::testing::root_or_skip;

    /// A volume, something outside of it, and where mounts go; they go with it.
    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Option<Place> {
            if !root_or_skip("mounting needs root") {
                return None;
            }
            let place = Place(tempfile::Builder::new().prefix("kn-pd").tempdir().unwrap());
            for dir in ["volume", "outside"] {
                fs::create_dir(place.path(dir)).unwrap();
            }
            fs::set_permissions(place.path("volume"), fs::Permissions::from_mode(0o777)).unwrap();
            Some(place)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn sub_path(&self, path: &str) -> io::Result<()> {
            let target = self.path("mounts/sub");
            let volume = self.path("volume");
            sub_path(&volume, Path::new(path), &target, Missing::Made)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = remove_all(&self.path("mounts"));
        }
    }

    #[test]
    fn a_mount_is_shared_as_far_as_the_one_that_it_is_on() {
        let text = "1 0 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
            2 1 8:2 / /data rw - ext4 /dev/b rw\n\
            3 1 8:3 / /data/from rw,noatime master:7 - ext4 /dev/c rw\n\
            4 1 8:4 / /over rw - ext4 /dev/d rw\n\
            5 1 8:5 / /over rw shared:9 master:1 - ext4 /dev/e rw\n";
        for (path, peers) in [
            ("/etc", Propagation::Both),
            ("/data/x", Propagation::None),
            ("/data/from", Propagation::FromNode),
            ("/database", Propagation::Both),
            ("/over/x", Propagation::Both),
        ] {
            assert_eq!(peers_in(text, Path::new(path)), peers, "{path}");
        }
        assert_eq!(peers_in("", Path::new("/")), Propagation::None);
    }

    #[test]
    fn layers_are_one_file_system_that_is_for_reading_only() {
        let Some(place) = Place::new() else { return };
        for (layer, files) in [("upper", ["both", "above"]), ("lower", ["both", "below"])] {
            fs::create_dir(place.path(layer)).unwrap();
            for file in files {
                fs::write(place.path(layer).join(file), layer).unwrap();
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(place.path(layer).join(file), mode).unwrap();
            }
        }
        for (name, of) in [("two", &["upper", "lower"][..]), ("one", &["upper"][..])] {
            let of: Vec<PathBuf> = of.iter().map(|layer| place.path(layer)).collect();
            let target = place.path("mounts").join(name);
            for _ in 0..2 {
                layers(&target, &of, None).unwrap();
                assert_eq!(fs::read_to_string(target.join("both")).unwrap(), "upper");
                assert!(target.join("above").exists());
                assert_eq!(target.join("below").exists(), name == "two");
                let written = fs::write(target.join("new"), "").unwrap_err();
                assert_eq!(written.kind(), io::ErrorKind::ReadOnlyFilesystem);
                let run = std::process::Command::new(target.join("above")).spawn();
                let denied = run.unwrap_err().kind();
                assert_eq!(denied, io::ErrorKind::PermissionDenied);
            }
        }
        // What is not there cannot be made, and what is there can be pinned.
        let pin = |path: &str| {
            let (root, target) = (place.path("mounts/two"), place.path("mounts/sub"));
            sub_path(&root, Path::new(path), &target, Missing::Refused)
        };
        assert_eq!(pin("none").unwrap_err().kind(), io::ErrorKind::NotFound);
        pin("below").unwrap();
        let nothing = layers(&place.path("mounts/none"), &[], None).unwrap_err();
        assert!(nothing.to_string().contains("no files"));
        remove_all(&place.path("mounts")).unwrap();
        assert!(place.path("upper/both").exists());
    }

    #[test]
    fn what_is_missing_is_made_with_the_volumes_mode() {
        let Some(place) = Place::new() else { return };
        place.sub_path("a/b").unwrap();
        for made in ["volume/a", "volume/a/b", "mounts/sub"] {
            let mode = fs::metadata(place.path(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o777, "{made}");
        }
        fs::write(place.path("mounts/sub/file"), "text").unwrap();
        assert!(place.path("volume/a/b/file").exists());

        // The same again, and then a file.
        place.sub_path("a/b").unwrap();
        place.sub_path("a/b/file").unwrap();
        let target = place.path("mounts/sub");
        assert_eq!(fs::read_to_string(&target).unwrap(), "text");

        remove_all(&place.path("mounts")).unwrap();
        assert!(!target.exists());
        assert!(place.path("volume/a/b/file").exists());
    }

    #[test]
    fn links_inside_are_followed_and_those_that_lead_out_are_not() {
        let Some(place) = Place::new() else { return };
        fs::create_dir_all(place.path("volume/real")).unwrap();
        symlink("real", place.path("volume/inside")).unwrap();
        symlink("../outside", place.path("volume/out")).unwrap();
        symlink(place.path("outside"), place.path("volume/absolute")).unwrap();
        place.sub_path("inside/new").unwrap();
        assert!(place.path("volume/real/new").is_dir());
        for path in ["out/new", "absolute/new", "out", "absolute", "../outside"] {
            assert!(place.sub_path(path).is_err(), "{path}");
        }
        let outside = fs::read_dir(place.path("outside")).unwrap();
        assert_eq!(outside.count(), 0, "nothing was made out there");
    }

    #[test]
    fn a_directory_in_memory_has_its_size_and_stays_when_asked_for_again() {
        let Some(place) = Place::new() else { return };
        let path = place.path("mounts/memory");
        let make = || memory(&path, Some(1 << 20), 0o1777, MountFlags::NOSUID).unwrap();
        make();
        fs::write(path.join("file"), "text").unwrap();
        make();
        assert!(path.join("file").exists());
        assert!(is_mounted(&path).unwrap());
        let stat = rustix::fs::statvfs(&path).unwrap();
        assert_eq!(stat.f_blocks * stat.f_frsize, 1 << 20);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
        let pages = place.path("mounts/pages");
        for _ in 0..2 {
            huge_pages(&pages, 2 << 20, Some(4 << 20)).unwrap();
        }
        let stat = rustix::fs::statvfs(&pages).unwrap();
        assert_eq!((stat.f_bsize, stat.f_blocks), (2 << 20, 2));
        remove_all(&place.path("mounts")).unwrap();
        remove_all(&place.path("mounts")).unwrap();
        assert!(!path.exists());
    }
}
