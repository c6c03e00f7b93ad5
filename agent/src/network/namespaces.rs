//! Kernel namespaces of pods, kept alive by a bind mount instead of by a process.
//!
//! A namespace lives as long as something refers to it. A mount of its `/proc` file does that without a process, so
//! there is no pause container, and it outlives the agent. Every function is idempotent: after a crash the caller
//! simply asks again.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::statfs;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `f_type` of the file system that namespace files live on (`NSFS_MAGIC` in linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A kind of namespace that belongs to a pod rather than to one of its containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Net,
    Ipc,
    Uts,
    /// Of users; it owns the pod's others.
    User,
}

impl Namespace {
    /// Every kind; what owns the others goes last.
    pub const ALL: [Namespace; 4] = [
        Namespace::Net,
        Namespace::Ipc,
        Namespace::Uts,
        Namespace::User,
    ];

    /// Name of its file in `/proc/<pid>/ns`.
    fn proc_name(self) -> &'static str {
        match self {
            Namespace::Net => "net",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::User => "user",
        }
    }

    /// Name of the directory below the run directory that holds the pins of this kind.
    pub fn pin_directory(self) -> &'static str {
        match self {
            Namespace::Net => "netns",
            Namespace::Ipc => "ipc",
            Namespace::Uts => "uts",
            Namespace::User => "userns",
        }
    }

    fn unshare_flag(self) -> UnshareFlags {
        match self {
            Namespace::Net => UnshareFlags::NEWNET,
            Namespace::Ipc => UnshareFlags::NEWIPC,
            Namespace::Uts => UnshareFlags::NEWUTS,
            Namespace::User => UnshareFlags::NEWUSER,
        }
    }

    fn link_type(self) -> LinkNameSpaceType {
        match self {
            Namespace::Net => LinkNameSpaceType::Network,
            Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Namespace::User => LinkNameSpaceType::User,
        }
    }
}

/// The users and groups of the node that those of a user namespace are, which has them from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdRange {
    /// The node's number of user 0, and of group 0.
    pub first: u32,
}

impl IdRange {
    /// How many a user namespace has, as upstream (KEP-127).
    pub const SIZE: u32 = 1 << 16;

    /// Whether a user or group of the node is one of these.
    pub fn has(self, id: u32) -> bool {
        id.checked_sub(self.first).is_some_and(|it| it < Self::SIZE)
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
    make_mount_point(namespace, path)?;

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

fn make_mount_point(namespace: Namespace, path: &Path) -> Result<(), NamespaceError> {
    let fail = |step| NamespaceError::at(namespace, path, step);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail("make the directory of"))?;
    }
    // An empty file that a crash left before something was mounted on it serves as well.
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(fail("make the mount point of"))?;
    Ok(())
}

/// Makes a user namespace with these ids, of which all other `pins` are, too, and pins them. Does nothing when it is pinned
/// already: its own pin is made last.
///
/// Only a process of one thread can have a new user namespace, and the namespaces that are to be of it, so one runs
/// `waiter`, a program that does nothing until it is killed.
pub fn create_pinned_with_users(
    ids: IdRange,
    pins: &[(Namespace, PathBuf)],
    users: &Path,
    waiter: &Path,
) -> Result<(), NamespaceError> {
    if is_pinned(users) {
        return Ok(());
    }
    for (namespace, path) in pins {
        // Of another user namespace, whose pin never came to be.
        remove_pinned(*namespace, path)?;
        make_mount_point(*namespace, path)?;
    }
    make_mount_point(Namespace::User, users)?;
    let fail = |step| NamespaceError::at(Namespace::User, users, step);
    let flags = pins.iter().map(|(namespace, _)| namespace.unshare_flag());
    let flags = flags.fold(UnshareFlags::NEWUSER, |all, flag| all | flag);
    let (pins, users, waiter) = (pins.to_vec(), users.to_owned(), waiter.to_owned());
    // The process goes with the thread that made it, should this program be killed meanwhile.
    on_own_thread(move || {
        let mut command = Command::new(&waiter);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // SAFETY: between fork and exec the child makes two system calls, allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                unshare_unsafe(flags)?;
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        // Once this is over, the program runs, and so the namespaces are there.
        let mut process = command.spawn()?;
        let proc = PathBuf::from(format!("/proc/{}", process.id()));
        let pinned = pin_with_users(ids, &proc, &pins, &users);
        process.kill()?;
        process.wait()?;
        pinned
    })
    .map_err(fail("start a thread for"))?
    .map_err(fail("create and pin"))
}

/// Gives the user namespace of a process its ids, and pins the process's namespaces.
fn pin_with_users(
    ids: IdRange,
    proc: &Path,
    pins: &[(Namespace, PathBuf)],
    users: &Path,
) -> io::Result<()> {
    for file in ["uid_map", "gid_map"] {
        fs::write(
            proc.join(file),
            format!("0 {} {}", ids.first, IdRange::SIZE),
        )?;
    }
    let own = pins
        .iter()
        .map(|(namespace, path)| (*namespace, path.as_path()));
    for (namespace, path) in own.chain([(Namespace::User, users)]) {
        mount_bind(proc.join("ns").join(namespace.proc_name()), path)?;
    }
    Ok(())
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
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::testing::root_or_skip;

    /// Asks a namespace's file for the user namespace that owns it (linux/nsfs.h).
    const NS_GET_USERNS: libc::c_ulong = 0xb701;

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
    fn a_user_namespace_owns_the_others_that_are_made_with_it() {
        if !root_or_skip("namespaces need root") {
            return;
        }
        let dir = tempfile::Builder::new().prefix("kn-nt-").tempdir().unwrap();
        let waiter = dir.path().join("waiter");
        fs::write(&waiter, "#!/bin/sh\nexec sleep 60\n").unwrap();
        fs::set_permissions(&waiter, fs::Permissions::from_mode(0o555)).unwrap();
        let path = |namespace: Namespace| dir.path().join(namespace.pin_directory()).join("uid");
        let pins = [Namespace::Net, Namespace::Uts].map(|namespace| (namespace, path(namespace)));
        let ids = IdRange { first: 3 << 16 };
        let users = path(Namespace::User);
        // As of an agent that was killed before the last pin.
        create_pinned(Namespace::Uts, &pins[1].1).unwrap();
        // Held open: the number of one that is gone may be the next one's.
        let stranger = File::open(&pins[1].1).unwrap();
        let make = || create_pinned_with_users(ids, &pins, &users, &waiter).unwrap();
        make();
        let made = pins.each_ref().map(|(_, path)| inode(path));
        assert_ne!(made[1], stranger.metadata().unwrap().ino());
        make();
        assert_eq!(pins.each_ref().map(|(_, path)| inode(path)), made);
        for (namespace, path) in &pins {
            let file = File::open(path).unwrap();
            // SAFETY: the request takes no argument, and gives a descriptor or an error.
            let owner = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_USERNS) };
            assert!(owner >= 0, "{namespace:?}");
            // SAFETY: the kernel has just given it, to nobody else.
            let owner = File::from(unsafe { OwnedFd::from_raw_fd(owner) });
            assert_eq!(owner.metadata().unwrap().ino(), inode(&users));
        }
        assert!(ids.has(3 << 16) && ids.has((4 << 16) - 1));
        assert!(!ids.has(4 << 16) && !ids.has(0));
        for (namespace, path) in pins.iter().chain([&(Namespace::User, users.clone())]) {
            remove_pinned(*namespace, path).unwrap();
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
