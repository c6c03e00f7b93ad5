//! Load, pin, attach; adopt what an earlier process left; remove it all.
//!
//! ```text
//! <bpf-dir>/v1/SERVICES …          maps
//! <bpf-dir>/v1/links/kn_connect4 … links; each holds its program
//! ```
//!
//! A start finds one of two things. Nothing pinned: maps are made, programs attached. Links pinned: the same maps are
//! used, and each link is told to run the new program in one atomic step, so no connect ever meets no program.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::{ABI_VERSION, maps as names};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};

use super::maps::{MapError, Maps};
use super::object::object;
use super::probe::Probe;
use super::sys;

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;
const BPF_FS_ROOT: &str = "/sys/fs/bpf";

/// In this order: what reads a socket's row is there before what writes it.
const PROGRAMS: [&str; 10] = [
    "kn_sock_release",
    "kn_getpeername4",
    "kn_getpeername6",
    "kn_recvmsg4",
    "kn_recvmsg6",
    "kn_sock_ops",
    "kn_sendmsg4",
    "kn_sendmsg6",
    "kn_connect4",
    "kn_connect6",
];

/// Why the programs could not be brought into the kernel, or out of it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("this binary was built without its BPF object; build it with `cargo xtask build`")]
    NoObject,
    #[error("cannot mount the BPF file system at {BPF_FS_ROOT}")]
    MountBpfFs(#[source] io::Error),
    #[error("{} is not on a BPF file system; choose a directory below {BPF_FS_ROOT}", dir.display())]
    NotBpfFs { dir: PathBuf },
    #[error("cannot use {}", path.display())]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel did not take the BPF object")]
    Object(#[source] Box<EbpfError>),
    #[error("the BPF object has no program {name}")]
    Missing { name: &'static str },
    #[error("cannot load or attach program {name}")]
    Program {
        name: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("the kernel gave no link for program {name}")]
    Link {
        name: &'static str,
        #[source]
        source: LinkError,
    },
    #[error("cannot pin the link of program {name}")]
    Pin {
        name: &'static str,
        #[source]
        source: aya::pin::PinError,
    },
    #[error("cannot replace program {name} in its pinned link")]
    Update {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Where the programs go, and how large the maps may grow.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory on a BPF file system for this node's pins.
    pub bpf_dir: PathBuf,
    /// cgroup v2 directory whose processes, and those below it, the programs serve.
    pub cgroup: PathBuf,
    pub sizes: MapSizes,
}

/// Rows that a map may hold. The tables grow row by row to at most this; maps that are already pinned keep their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Service ports.
    pub services: u32,
    pub backends: u32,
    /// Slots of all services. A service has up to three generations of slots while it changes.
    pub slots: u32,
    /// Client sockets that talk to a service at one time. Those beyond it are served, but not counted, and their
    /// `getpeername` shows the backend.
    pub sockets: u32,
    /// Clients remembered for session affinity. Allocated at start, about 100 bytes each.
    pub affinity: u32,
    /// Earlier destinations of unconnected UDP sockets. Allocated at start, about 100 bytes each.
    pub reverse: u32,
}

/// Ten thousand services of three backends fit three times over. A table's index is allocated whole, 16 bytes a row, and
/// a larger one is slower to search because less of it is in the CPU's caches.
impl Default for MapSizes {
    fn default() -> Self {
        Self {
            services: 32_768,
            backends: 65_536,
            slots: 131_072,
            sockets: 65_536,
            affinity: 16_384,
            reverse: 16_384,
        }
    }
}

/// Programs in place, maps open.
pub struct Dataplane {
    /// Where this version's maps and links are pinned.
    pub dir: PathBuf,
    pub maps: Maps,
    /// The links were there already: the maps may hold a state that an earlier process wrote.
    pub adopted: bool,
}

/// Brings the programs into the kernel and the maps under this process.
pub fn start(config: &Config, probe: &Probe) -> Result<Dataplane, LoadError> {
    let object = object().ok_or(LoadError::NoObject)?;
    let dir = version_dir(&config.bpf_dir);
    let links = dir.join("links");
    ensure_bpf_fs(&config.bpf_dir)?;
    fs::create_dir_all(&links).map_err(|source| LoadError::Path {
        path: links.clone(),
        source,
    })?;
    let cgroup = open_dir(&config.cgroup)?;

    let mut ebpf = load(object, &dir, config.sizes, probe.set_retval)?;
    let mut adopted = true;
    for name in PROGRAMS {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
        adopted &= attach(name, program, &cgroup, &links.join(name))?;
    }
    Ok(Dataplane {
        maps: Maps::open(&dir)?,
        dir,
        adopted,
    })
}

/// Removes every pin below `bpf_dir`. The kernel detaches the programs and frees the maps with the last of them.
pub fn remove(bpf_dir: &Path) -> Result<(), LoadError> {
    match fs::remove_dir_all(bpf_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LoadError::Path {
            path: bpf_dir.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Removes the pins of other ABI versions. Until this is called after an upgrade, the older programs go on translating;
/// so call it when the new maps hold the first full state.
pub fn remove_other_versions(bpf_dir: &Path) -> Result<(), LoadError> {
    let keep = version_dir(bpf_dir);
    let failed = |source| LoadError::Path {
        path: bpf_dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(bpf_dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path != keep && path.is_dir() {
            remove(&path)?;
        }
    }
    Ok(())
}

fn version_dir(bpf_dir: &Path) -> PathBuf {
    bpf_dir.join(format!("v{ABI_VERSION}"))
}

fn load(object: &[u8], dir: &Path, sizes: MapSizes, set_retval: bool) -> Result<Ebpf, LoadError> {
    let set_retval = u32::from(set_retval);
    let mut loader = EbpfLoader::new();
    loader
        // The programs relocate nothing against the kernel's types, and parsing them takes megabytes.
        .btf(None)
        .map_max_entries(names::SERVICES, sizes.services)
        .map_max_entries(names::SERVICE_STATS, sizes.services)
        .map_max_entries(names::BACKENDS, sizes.backends)
        .map_max_entries(names::STATS, sizes.backends)
        .map_max_entries(names::BACKEND_TABLE, sizes.slots)
        .map_max_entries(names::SOCKETS, sizes.sockets)
        .map_max_entries(names::AFFINITY, sizes.affinity)
        .map_max_entries(names::SOCK_REVERSE, sizes.reverse)
        .override_global("HAS_SET_RETVAL", &set_retval, true);
    for name in names::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    loader
        .load(object)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// Loads `program` and makes the link pinned at `pin` run it on `cgroup`. True when such a link was there already.
fn attach(
    name: &'static str,
    program: &mut Program,
    cgroup: &File,
    pin: &Path,
) -> Result<bool, LoadError> {
    let failed = |source| LoadError::Program {
        name,
        source: Box::new(source),
    };
    match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SockOps(p) => p.load(),
        _ => return Err(LoadError::Missing { name }),
    }
    .map_err(failed)?;

    if let Some(link) = pinned_on(cgroup, pin)? {
        let fd = program.fd().map_err(failed)?;
        sys::update_link(link.as_fd(), fd.as_fd())
            .map_err(|source| LoadError::Update { name, source })?;
        return Ok(true);
    }
    let link = new_link(name, program, cgroup)?;
    // The new link is attached before a pin of an older one, on another cgroup, gives way to it.
    let fresh = pin.with_file_name(format!("{name}_new"));
    let moved = |source| LoadError::Path {
        path: pin.to_owned(),
        source,
    };
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(moved(error)),
        _ => {}
    }
    link.pin(&fresh)
        .map_err(|source| LoadError::Pin { name, source })?;
    fs::rename(&fresh, pin).map_err(moved)?;
    Ok(false)
}

/// The link pinned at `pin`, if there is one and it still is on `cgroup`.
fn pinned_on(cgroup: &File, pin: &Path) -> Result<Option<std::os::fd::OwnedFd>, LoadError> {
    let failed = |source| LoadError::Path {
        path: pin.to_owned(),
        source,
    };
    let link = match sys::open_link(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    // The id of a cgroup is the inode of its directory.
    let wanted = cgroup.metadata().map_err(failed)?.ino();
    let attached = sys::cgroup_of(link.as_fd()).map_err(failed)?;
    Ok((attached == wanted).then_some(link))
}

fn new_link(name: &'static str, program: &mut Program, cgroup: &File) -> Result<FdLink, LoadError> {
    let failed = |source| LoadError::Program {
        name,
        source: Box::new(source),
    };
    // The kernel lets links share a cgroup with other programs whatever the mode; the flags of the other modes it refuses.
    let mode = CgroupAttachMode::Single;
    let link = match program {
        Program::CgroupSockAddr(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        Program::CgroupSock(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        Program::SockOps(p) => {
            let id = p.attach(cgroup, mode).map_err(failed)?;
            p.take_link(id).map_err(failed)?.try_into()
        }
        _ => return Err(LoadError::Missing { name }),
    };
    link.map_err(|source| LoadError::Link { name, source })
}

fn open_dir(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|source| LoadError::Path {
        path: path.to_owned(),
        source,
    })
}

/// Sees to it that `dir` lies on a BPF file system, mounting the usual one if it is not there yet.
fn ensure_bpf_fs(dir: &Path) -> Result<(), LoadError> {
    if on_bpf_fs(dir)? {
        return Ok(());
    }
    if !dir.starts_with(BPF_FS_ROOT) {
        return Err(LoadError::NotBpfFs {
            dir: dir.to_owned(),
        });
    }
    mount("bpf", BPF_FS_ROOT, "bpf", MountFlags::empty(), None)
        .map_err(|error| LoadError::MountBpfFs(error.into()))
}

/// Looks at the nearest ancestor that exists.
fn on_bpf_fs(dir: &Path) -> Result<bool, LoadError> {
    let existing = dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let found = statfs(existing).map_err(|error| LoadError::Path {
        path: existing.to_owned(),
        source: error.into(),
    })?;
    Ok(found.f_type == BPF_FS)
}
