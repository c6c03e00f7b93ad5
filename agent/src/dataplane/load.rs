//! Load, pin, attach; adopt what an earlier process left; remove it all. What is pinned where, and what a start makes of
//! it, is in [`super::versions`].
//!
//! Where nothing is pinned, maps are made and programs attached. Where this version's maps are, they are used on, and each
//! link is told to run the new program in one atomic step, so no connect ever meets no program. Where another version
//! serves, ours is made beside it, and takes over when its tables are complete ([`TakeOver`]).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use agent_ebpf::abi::maps as names;
use aya::maps::MapInfo;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::Object;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};
use tracing::warn;

use super::maps::{MapError, Maps};
use super::object::object;
use super::probe::Probe;
use super::take_over::{Ends, TakeOver};
use super::versions::{Found, Layout, Layouts, Plan, is_version, own_directory, plan};
use super::{carry, links};

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;
const BPF_FS_ROOT: &str = "/sys/fs/bpf";

/// In this order: what reads a socket's row is there before what writes it.
pub(super) const PROGRAMS: [(&str, Ends); 10] = [
    ("kn_sock_release", Ends::Sockets),
    ("kn_sock_ops", Ends::Sockets),
    ("kn_getpeername4", Ends::Nothing),
    ("kn_getpeername6", Ends::Nothing),
    ("kn_recvmsg4", Ends::Nothing),
    ("kn_recvmsg6", Ends::Nothing),
    ("kn_sendmsg4", Ends::Nothing),
    ("kn_sendmsg6", Ends::Nothing),
    ("kn_connect4", Ends::Nothing),
    ("kn_connect6", Ends::Nothing),
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
    #[error("the BPF object in this binary cannot be read")]
    Parse(#[source] aya_obj::ParseError),
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

/// Service ports for which the maps have room unless told otherwise.
pub const DEFAULT_SERVICES: u32 = 32_768;

/// Rows that a map may hold. The tables grow row by row to at most this.
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

/// Ten thousand services of three backends fit three times over.
impl Default for MapSizes {
    fn default() -> Self {
        Self::for_services(DEFAULT_SERVICES)
    }
}

impl MapSizes {
    /// Room for this many service ports, with two backends each and two slots for each backend. A table's index is
    /// allocated whole, 16 bytes a row, and a larger one is slower to search because less of it is in the CPU's caches.
    pub fn for_services(services: u32) -> Self {
        Self {
            services,
            backends: services.saturating_mul(2),
            slots: services.saturating_mul(4),
            sockets: 65_536,
            affinity: 16_384,
            reverse: 16_384,
        }
    }

    /// The sizes by map.
    fn of_maps(self) -> [(&'static str, u32); 8] {
        [
            (names::SERVICES, self.services),
            (names::SERVICE_STATS, self.services),
            (names::BACKENDS, self.backends),
            (names::STATS, self.backends),
            (names::BACKEND_TABLE, self.slots),
            (names::SOCKETS, self.sockets),
            (names::AFFINITY, self.affinity),
            (names::SOCK_REVERSE, self.reverse),
        ]
    }
}

/// Programs in place, maps open.
pub struct Dataplane {
    /// Where this version's maps are pinned.
    pub dir: PathBuf,
    pub maps: Maps,
    /// The maps may hold a state that an earlier process wrote, and the programs that read it run.
    pub adopted: bool,
    /// There is another version, whose programs serve until these take over.
    pub take_over: Option<TakeOver>,
}

/// Brings the programs into the kernel and the maps under this process.
pub fn start(config: &Config, probe: &Probe) -> Result<Dataplane, LoadError> {
    let object = object().ok_or(LoadError::NoObject)?;
    let bpf_dir = &config.bpf_dir;
    ensure_bpf_fs(bpf_dir)?;
    let plan = planned(bpf_dir, config.sizes)?;
    let dir = bpf_dir.join(own_directory());
    for difference in &plan.differences {
        let (pinned, wanted) = (&difference.pinned, &difference.wanted);
        warn!(
            map = difference.map,
            ?pinned,
            ?wanted,
            "the pinned map is made in another way: it is replaced"
        );
    }
    if let Some(name) = &plan.set_aside {
        let aside = bpf_dir.join(name);
        fs::rename(&dir, &aside).map_err(at(&aside))?;
    }
    for links in [bpf_dir.join(LINKS), links_of(&dir)] {
        fs::create_dir_all(&links).map_err(at(&links))?;
    }
    let cgroup = File::open(&config.cgroup).map_err(at(&config.cgroup))?;

    let mut ebpf = load(object, &dir, config.sizes, probe.set_retval)?;
    let mut maps = Maps::open(&dir)?;
    let mut adopted = plan.sources.is_empty();
    for (name, ends) in PROGRAMS {
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
        links::load(name, program)?;
        if plan.sources.is_empty() {
            let pin = link_of(bpf_dir, name, ends);
            adopted &= links::attach(name, program, &cgroup, &pin, &[links_of(&dir).join(name)])?;
        }
    }
    // Once a take-over has begun our tables are complete, and theirs are old.
    let begun = link_of(bpf_dir, FIRST_TAKEN, Ends::Sockets).exists();
    for source in plan.sources.iter().filter(|_| !begun) {
        carry::tables(&bpf_dir.join(&source.directory), source.carried, &mut maps)?;
    }
    let take_over = (!plan.sources.is_empty()).then(|| TakeOver {
        programs: ebpf,
        cgroup,
        bpf_dir: bpf_dir.clone(),
        sources: plan.sources,
    });
    Ok(Dataplane {
        dir,
        maps,
        adopted,
        take_over,
    })
}

/// What a start with these sizes would do about what is pinned in `bpf_dir`. Changes nothing.
pub fn upgrade_check(bpf_dir: &Path, sizes: MapSizes) -> Result<Plan, LoadError> {
    planned(bpf_dir, sizes)
}

fn planned(bpf_dir: &Path, sizes: MapSizes) -> Result<Plan, LoadError> {
    let object = object().ok_or(LoadError::NoObject)?;
    Ok(plan(&found(bpf_dir)?, &wanted(object, sizes)?))
}

/// How the maps of the object are made.
fn wanted(object: &[u8], sizes: MapSizes) -> Result<Layouts, LoadError> {
    let object = Object::parse(object).map_err(LoadError::Parse)?;
    let maps = object.maps.into_iter();
    let ours = maps.filter(|(name, _)| names::ALL.contains(&name.as_str()));
    let layouts = ours.map(|(name, map)| {
        let chosen = sizes.of_maps().into_iter().find(|(of, _)| *of == name);
        let layout = Layout {
            kind: map.map_type(),
            key: map.key_size(),
            value: map.value_size(),
            size: chosen.map_or(map.max_entries(), |(_, size)| size),
        };
        (name, layout)
    });
    Ok(layouts.collect())
}

/// What is pinned below `bpf_dir`.
fn found(bpf_dir: &Path) -> Result<Found, LoadError> {
    let mut found = Found::default();
    if !bpf_dir.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(bpf_dir).map_err(at(bpf_dir))? {
        let path = entry.map_err(at(bpf_dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !path.is_dir() || !is_version(&name) {
            continue;
        }
        let mut maps = Layouts::new();
        for pin in fs::read_dir(&path).map_err(at(&path))? {
            let pin = pin.map_err(at(&path))?;
            // What is no map is the directory of links.
            if let Ok(map) = MapInfo::from_pin(pin.path()) {
                let layout = Layout {
                    kind: map.map_type().map_or(0, |kind| kind as u32),
                    key: map.key_size(),
                    value: map.value_size(),
                    size: map.max_entries(),
                };
                maps.insert(pin.file_name().to_string_lossy().into_owned(), layout);
            }
        }
        found.0.insert(name.into_owned(), maps);
    }
    Ok(found)
}

/// Removes every pin below `bpf_dir`. The kernel detaches the programs and frees the maps with the last of them.
pub fn remove(bpf_dir: &Path) -> Result<(), LoadError> {
    match fs::remove_dir_all(bpf_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(bpf_dir)(error)),
        _ => Ok(()),
    }
}

/// The first program that a take-over attaches.
const FIRST_TAKEN: &str = "kn_sock_release";

/// Name of the directories of links.
const LINKS: &str = "links";

/// The directory of links of one version.
pub(super) fn links_of(dir: &Path) -> PathBuf {
    dir.join(LINKS)
}

/// Where the link of a program of this version is pinned.
pub(super) fn link_of(bpf_dir: &Path, name: &str, ends: Ends) -> PathBuf {
    let dir = match ends {
        Ends::Sockets => links_of(&bpf_dir.join(own_directory())),
        Ends::Nothing => links_of(bpf_dir),
    };
    dir.join(name)
}

fn at(path: &Path) -> impl Fn(io::Error) -> LoadError + use<> {
    let path = path.to_owned();
    move |source| LoadError::Path {
        path: path.clone(),
        source,
    }
}

fn load(object: &[u8], dir: &Path, sizes: MapSizes, set_retval: bool) -> Result<Ebpf, LoadError> {
    let set_retval = u32::from(set_retval);
    let mut loader = EbpfLoader::new();
    loader
        // The programs relocate nothing against the kernel's types, and parsing them takes megabytes.
        .btf(None)
        .override_global("HAS_SET_RETVAL", &set_retval, true);
    for (name, size) in sizes.of_maps() {
        loader.map_max_entries(name, size);
    }
    for name in names::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    loader
        .load(object)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// Sees to it that `dir` lies on a BPF file system, mounting the usual one if it is not there yet.
fn ensure_bpf_fs(dir: &Path) -> Result<(), LoadError> {
    // The root itself is everybody's.
    if dir != Path::new(BPF_FS_ROOT) && on_bpf_fs(dir)? {
        return Ok(());
    }
    if !dir.starts_with(BPF_FS_ROOT) || dir == Path::new(BPF_FS_ROOT) {
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
