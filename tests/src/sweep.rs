//! Removes everything that carries a prefix: what a run made, or what a run that was killed left.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::command::run;
use crate::host::{cgroup_mounts, cgroup2_mount};
use crate::{Error, Result};

/// What [`sweep`] removes.
pub struct Residue<'a> {
    /// First part of every name.
    pub prefix: &'a str,
    /// Directories that go with everything in them and mounted below them.
    pub directories: &'a [PathBuf],
}

/// Ends every process in the prefix's cgroups and removes its mounts, namespaces, links, cgroups and directories.
/// Succeeds when there is nothing left to do.
pub fn sweep(residue: &Residue) -> Result<()> {
    let prefix = residue.prefix;
    kill_cgroup(&cgroup2_mount()?.join(prefix))?;
    remove_shim_sockets(residue.directories);
    for directory in residue.directories {
        unmount_below(directory)?;
    }
    for name in names("ip netns list")? {
        if name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('-'))
        {
            run(&format!("ip netns delete {name}"))?;
        }
    }
    for name in link_names()? {
        if name
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('-'))
        {
            // A cable goes with its namespace, which may happen between the listing and this line.
            let _ = run(&format!("ip link delete {name}"));
        }
    }
    for mount in cgroup_mounts()? {
        remove_cgroup(&mount.join(prefix))?;
    }
    for directory in residue.directories {
        remove_directory(directory)?;
    }
    Ok(())
}

/// Kills all processes of a cgroup-v2 subtree and waits until it is empty.
fn kill_cgroup(cgroup: &Path) -> Result<()> {
    let kill = cgroup.join("cgroup.kill");
    if !kill.exists() {
        return Ok(());
    }
    crate::host::write(&kill, "1")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while crate::host::read(cgroup.join("cgroup.events"))?.contains("populated 1") {
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: format!("the end of the processes in {}", cgroup.display()),
                seconds: 10,
                hint: "see its cgroup.procs".into(),
            });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes a cgroup and those below it.
fn remove_cgroup(cgroup: &Path) -> Result<()> {
    let Ok(children) = std::fs::read_dir(cgroup) else {
        return Ok(());
    };
    for child in children.flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match std::fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            // A process that was just killed may still be on its way out.
            Err(error) if error.raw_os_error() == Some(16) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => {
                return Err(Error::File {
                    path: cgroup.to_owned(),
                    source,
                });
            }
        }
    }
}

/// Unmounts everything at or below a directory, the deepest first.
fn unmount_below(directory: &Path) -> Result<()> {
    // The kernel names mounts without `..` and links.
    let Ok(directory) = directory.canonicalize() else {
        return Ok(());
    };
    let mounts = crate::host::read("/proc/self/mountinfo")?;
    let mut targets: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|target| target.starts_with(&directory))
        .collect();
    targets.sort();
    for target in targets.iter().rev() {
        match rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH) {
            Ok(()) | Err(rustix::io::Errno::INVAL) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                return Err(Error::System {
                    what: format!("unmounting {}", target.display()),
                    source: error.into(),
                });
            }
        }
    }
    Ok(())
}

/// Removes the sockets of containerd's shims, which are kept outside of its state directory; each task names its own.
fn remove_shim_sockets(directories: &[PathBuf]) {
    let mut pending: Vec<PathBuf> = directories.to_vec();
    while let Some(directory) = pending.pop() {
        // A container's root file system is mounted at `rootfs` and may hold anything.
        if directory.file_name().is_some_and(|name| name == "rootfs") {
            continue;
        }
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !path.join("rootfs").exists() || path.join("address").exists() {
                    pending.push(path);
                }
            } else if entry.file_name() == "address"
                && let Ok(address) = std::fs::read_to_string(&path)
                && let Some(socket) = address.trim().strip_prefix("unix://")
            {
                let _ = std::fs::remove_file(socket);
            }
        }
    }
}

fn remove_directory(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// First words of a command's lines.
fn names(line: &str) -> Result<Vec<String>> {
    Ok(run(line)?
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Network links of the host.
fn link_names() -> Result<Vec<String>> {
    let directory = Path::new("/sys/class/net");
    let entries = std::fs::read_dir(directory).map_err(|source| Error::File {
        path: directory.to_owned(),
        source,
    })?;
    Ok(entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect())
}
