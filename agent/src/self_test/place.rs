//! A place of its own for a test in the kernel: pins, a cgroup with this process in it, and what has to be mounted for
//! them. All of it goes with the value; what a killed run left is swept by the next of the same prefix.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::dataplane::{self, Config, MapSizes, Probe, ProbeError};
use crate::network::netlink::{Netlink, NetlinkError};

const PINS: &str = "/sys/fs/bpf";

/// Why there is no place to test in.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error("cannot mount {kind} at {}", path.display())]
    Mount {
        kind: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot use {}", path.display())]
    Path { path: PathBuf, source: io::Error },
    #[error("cannot make a network namespace")]
    Namespace(#[source] io::Error),
    #[error("cannot set the loopback of the network namespace up")]
    Loopback(#[source] NetlinkError),
    #[error("the network namespace has no loopback")]
    NoLoopback,
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
}

/// Pins, and a cgroup that this process is in.
pub(crate) struct Place {
    pub(crate) config: Config,
    pub(crate) probe: Probe,
    home: PathBuf,
    /// In the order in which they were made.
    mounts: Vec<Mounted>,
}

impl Place {
    /// Makes the place. Its names begin with `prefix` and end with the id of this process.
    pub(crate) fn new(prefix: &str) -> Result<Self, PlaceError> {
        let mut mounts = Vec::new();
        let mut probe = match dataplane::probe(None) {
            Err(ProbeError::NoCgroup2) => {
                let directory =
                    std::env::temp_dir().join(format!("{prefix}{}", std::process::id()));
                mounts.push(Mounted::new("cgroup2", directory, true)?);
                dataplane::probe(None)?
            }
            found => found?,
        };
        if !probe.has("bpf file system") {
            mounts.push(Mounted::new("bpf", PINS.into(), false)?);
        }
        sweep(prefix, &probe.cgroup);
        let name = format!("{prefix}{}", std::process::id());
        let cgroup = probe.cgroup.join(&name);
        let place = Self {
            home: own_cgroup(&probe.cgroup),
            config: Config {
                bpf_dir: Path::new(PINS).join(&name),
                cgroup: cgroup.clone(),
                sizes: MapSizes::default(),
            },
            probe: {
                probe.cgroup.clone_from(&cgroup);
                probe
            },
            mounts,
        };
        fs::create_dir_all(&cgroup).map_err(at(&cgroup))?;
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, "0").map_err(at(&procs))?;
        Ok(place)
    }
}

impl Place {
    /// Does something while the process is not in the cgroup: sockets that it makes then are translated nowhere.
    pub(super) fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        let move_to = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), "0");
        // Where it cannot leave, what it looks for is not there.
        let _ = move_to(&self.home);
        let outcome = work();
        let _ = move_to(&self.config.cgroup);
        outcome
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = dataplane::remove(&self.config.bpf_dir);
        let _ = fs::write(self.home.join("cgroup.procs"), "0");
        remove_cgroup(&self.config.cgroup);
        while self.mounts.pop().is_some() {}
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PlaceError {
    let path = path.to_owned();
    move |source| PlaceError::Path { path, source }
}

/// A file system that was not mounted before, and will not be after.
struct Mounted {
    path: PathBuf,
    /// The directory was made for it.
    made: bool,
}

impl Mounted {
    fn new(kind: &'static str, path: PathBuf, made: bool) -> Result<Self, PlaceError> {
        if made {
            fs::create_dir_all(&path).map_err(at(&path))?;
        }
        mount(kind, &path, kind, MountFlags::empty(), None).map_err(|error| PlaceError::Mount {
            kind,
            path: path.clone(),
            source: error.into(),
        })?;
        Ok(Self { path, made })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Moves the calling thread into a network namespace of its own, with a loopback that is up. Threads that it starts are
/// there too.
pub(crate) fn enter_new_netns() -> Result<(), PlaceError> {
    // SAFETY: only this thread's network namespace changes, which no other thread relies on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
        .map_err(|error| PlaceError::Namespace(error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(PlaceError::Runtime)?;
    runtime.block_on(async {
        let netlink = Netlink::open().map_err(PlaceError::Loopback)?;
        let loopback = netlink.link("lo").await.map_err(PlaceError::Loopback)?;
        let index = loopback.ok_or(PlaceError::NoLoopback)?.index;
        netlink.set_up(index).await.map_err(PlaceError::Loopback)
    })
}

/// The directory of the cgroup that this process is in now.
fn own_cgroup(root: &Path) -> PathBuf {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or("");
    root.join(path)
}

/// Removes what processes that are gone have left.
fn sweep(prefix: &str, root: &Path) {
    let dead = |name: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    for (dir, clear) in [
        (Path::new(PINS), remove_pins as fn(&Path)),
        (root, remove_cgroup),
    ] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        for entry in entries
            .flatten()
            .filter(|e| e.file_name().to_str().is_some_and(dead))
        {
            clear(&entry.path());
        }
    }
}

fn remove_pins(path: &Path) {
    let _ = dataplane::remove(path);
}

/// Removes a cgroup and those in it.
fn remove_cgroup(path: &Path) {
    for inner in fs::read_dir(path).into_iter().flatten().flatten() {
        let _ = fs::remove_dir(inner.path());
    }
    let _ = fs::remove_dir(path);
}
