//! Kernel namespaces of pods, kept alive by a bind mount instead of by a process.
//!
//! A namespace lives as long as something refers to it. A mount of its `/proc` file does that without a process, so
//! there is no pause container, and it outlives the agent. Every function is idempotent: after a crash the caller
//! simply asks again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `f_type` of the file system that namespace files live on (`NSFS_MAGIC` in linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A kind of namespace that belongs to a pod rather than to one of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Net,
    Ipc,
    Uts,
}

impl Namespace {
    /// Name of its file in `/proc/<pid>/ns`.
    fn proc_name(self) -> &'static str {
        match self {
            Namespace::Net => "net",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
        }
    }

    /// Name of the directory below the run directory that holds the pins of this kind.
    pub fn pin_directory(self) -> &'static str {
        match self {
            Namespace::Net => "netns",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
        }
    }

    fn unshare_flag(self) -> UnshareFlags {
        match self {
            Namespace::Net => UnshareFlags::NEWNET,
            Namespace::Ipc => UnshareFlags::NEWIPC,
            Namespace::Uts => UnshareFlags::NEWUTS,
        }
    }

    fn link_type(self) -> LinkNameSpaceType {
        match self {
            Namespace::Net => LinkNameSpaceType::Network,
            Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        }
    }
}

/// What went wrong with a namespace, and at which step.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} the {} namespace at {}: {source}", namespace.proc_name(), path.display())]
pub struct NamespaceError {
    namespace: Namespace,
    path: PathBuf,
    step: &'static str,
    source: io::Error,
}

impl NamespaceError {
    /// For `map_err`: the error of one step.
    fn at(
        namespace: Namespace,
        path: &Path,
        step: &'static str,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| NamespaceError {
            namespace,
            path,
            step,
            source,
        }
    }
}

/// Makes a fresh namespace and pins it at `path`. Does nothing when one is pinned there already.
pub fn create_pinned(namespace: Namespace, path: &Path) -> Result<(), NamespaceError> {
    if is_pinned(path) {
        return Ok(());
    }
    let fail = |step| NamespaceError::at(namespace, path, step);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail("make the directory of"))?;
    }
    // An empty file that a crash left between these two steps serves as the mount point.
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(fail("make the mount point of"))?;

    // Namespaces belong to threads. One made for the purpose ends right after, so no other work ever runs in it.
    let target = path.to_owned();
    on_own_thread(move || {
        // SAFETY: only namespace flags are passed; the file descriptor table stays shared.
        unsafe { unshare_unsafe(namespace.unshare_flag())? };
        mount_bind(
            format!("/proc/thread-self/ns/{}", namespace.proc_name()),
            &target,
        )?;
        Ok::<_, io::Error>(())
    })
    .map_err(fail("start a thread for"))?
    .map_err(fail("create and pin"))
}

/// Removes the pin at `path`. The namespace itself ends with its last process. Does nothing when there is no pin.
pub fn remove_pinned(namespace: Namespace, path: &Path) -> Result<(), NamespaceError> {
    let fail = |step| NamespaceError::at(namespace, path, step);
    // More than one mount may be stacked there, if two agents ran at once by mistake: take all of them away.
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => continue,
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => return Err(fail("unmount")(errno.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(fail("remove the file of")(error))
        }
        _ => Ok(()),
    }
}

/// Whether a namespace is pinned at `path`.
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// Runs `work` inside the namespace at `path`, on a thread of its own, and gives its result. Blocks until it ends.
pub fn within<T: Send + 'static>(
    namespace: Namespace,
    path: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NamespaceError> {
    let fail = |step| NamespaceError::at(namespace, path, step);
    let file = File::open(path).map_err(fail("open"))?;
    on_own_thread(move || {
        move_into_link_name_space(file.as_fd(), Some(namespace.link_type()))?;
        Ok::<_, io::Error>(work())
    })
    .map_err(fail("start a thread for"))?
    .map_err(fail("enter"))
}

/// Runs `work` on a thread that exists for nothing else; a panic in it is passed on.
fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new()
        .name("namespace".into())
        .spawn(work)?;
    Ok(thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::testing::root_or_skip;

    fn inode(path: impl AsRef<Path>) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_pinned_namespace_is_its_own_stays_the_same_and_goes() {
        if !root_or_skip("namespaces need root") {
            return;
        }
        let dir = tempfile::Builder::new().prefix("kn-nt-").tempdir().unwrap();
        for namespace in [Namespace::Net, Namespace::Ipc, Namespace::Uts] {
            let path = dir.path().join(namespace.pin_directory()).join("uid");
            let own = format!("/proc/self/ns/{}", namespace.proc_name());

            create_pinned(namespace, &path).unwrap();
            let first = inode(&path);
            assert!(is_pinned(&path));
            assert_ne!(first, inode(&own), "it is not the caller's");

            create_pinned(namespace, &path).unwrap();
            assert_eq!(inode(&path), first, "asked again, it is the same");

            let link = format!("/proc/thread-self/ns/{}", namespace.proc_name());
            assert_eq!(
                within(namespace, &path, move || inode(link)).unwrap(),
                first
            );

            remove_pinned(namespace, &path).unwrap();
            assert!(!path.exists());
            remove_pinned(namespace, &path).unwrap();
        }
    }

    #[test]
    fn an_empty_file_left_by_a_crash_becomes_the_pin() {
        if !root_or_skip("namespaces need root") {
            return;
        }
        let dir = tempfile::Builder::new().prefix("kn-nt-").tempdir().unwrap();
        let path = dir.path().join("uid");
        fs::write(&path, "").unwrap();
        assert!(!is_pinned(&path));
        create_pinned(Namespace::Uts, &path).unwrap();
        assert!(is_pinned(&path));
        remove_pinned(Namespace::Uts, &path).unwrap();
    }

    #[test]
    fn entering_what_is_no_namespace_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = within(Namespace::Net, file.path(), || ()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot enter the net namespace at /"),
            "{error}"
        );
    }
}
