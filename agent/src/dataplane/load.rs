//! Load, pin, attach; adopt what an earlier process left; remove it all. What is pinned where, and what a start makes of
//! it, is in [`super::versions`].
//!
//! Where nothing is pinned, maps are made and programs attached. Where this version's maps are, they are used on, and each
//! link is told to run the new program in one atomic step, so no connect ever meets no program. Where another version
//! serves, ours is made beside it, and takes over when its tables are complete ([`TakeOver`]).

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use agent_ebpf::abi::maps as names;
use aya::maps::{MapInfo, ProgramArray};
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_obj::Object;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, mount};
use tracing::warn;

use super::diag::netns_cookie;
use super::maps::{MapError, Maps};
use super::object::object;
use super::probe::Probe;
use super::take_over::{Ends, TakeOver};
use super::tc::{Hook, LinkPrograms};
use super::versions::{Found, Layout, Layouts, Plan, is_version, own_directory, plan};
use super::{carry, links};

/// `BPF_FS_MAGIC`
const BPF_FS: i64 = 0xcafe_4a11;
const BPF_FS_ROOT: &str = "/sys/fs/bpf";

/// In this order: what reads a socket's row is there before what writes it.
pub(super) const PROGRAMS: [(&str, Ends); 12] = [
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
    ("kn_bind4", Ends::Nothing),
    ("kn_bind6", Ends::Nothing),
];

/// Counts connections that are carried over; attached nowhere.
pub(super) const OPENED: &str = "kn_opened";
/// Programs that those at network links go on in, in the order of their places in the map.
pub(super) const STAGES: [&str; 2] = ["kn_pod_dialled", "kn_pod_answered"];

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

/// Translated connections for which the map has room unless told otherwise.
pub const DEFAULT_CONNECTIONS: u32 = 65_536;

/// Rows that a map may hold. The tables grow row by row to at most this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSizes {
    /// Service ports.
    pub services: u32,
    pub backends: u32,
    /// Slots of all services. A service has up to three generations of slots while it changes.
    pub slots: u32,
    /// Client sockets that talk to a service at one time. Those beyond it are served, but not counted, and their
    /// `getpeername` shows the backend. Allocated at start, about 140 bytes each.
    pub sockets: u32,
    /// Clients remembered for session affinity. Allocated at start, about 100 bytes each.
    pub affinity: u32,
    /// Earlier destinations of unconnected UDP sockets. Allocated at start, about 100 bytes each.
    pub reverse: u32,
    /// Connections translated at uplinks, two rows each. Allocated at start, about 160 bytes a row. When it is full the
    /// longest idle give way.
    pub connections: u32,
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
            connections: DEFAULT_CONNECTIONS,
        }
    }

    /// Room for this many translated connections.
    #[must_use]
    pub fn with_connections(self, connections: u32) -> Self {
        Self {
            connections,
            ..self
        }
    }

    /// The sizes by map.
    fn of_maps(self) -> [(&'static str, u32); 9] {
        [
            (names::SERVICES, self.services),
            (names::SERVICE_STATS, self.services),
            (names::BACKENDS, self.backends),
            (names::STATS, self.backends),
            (names::BACKEND_TABLE, self.slots),
            (names::SOCKETS, self.sockets),
            (names::AFFINITY, self.affinity),
            (names::SOCK_REVERSE, self.reverse),
            (names::CONNECTIONS, self.connections.saturating_mul(2)),
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
    /// The programs that are attached to network links.
    pub link_programs: LinkPrograms,
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

    let mut ebpf = load(object, &dir, config.sizes, probe)?;
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
    for hook in Hook::ALL {
        let name = hook.program();
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
        links::load(name, program)?;
    }
    for (name, place) in STAGES.into_iter().zip(0..) {
        stage(&mut ebpf, name, place)?;
    }
    if !plan.sources.is_empty() {
        let name = OPENED;
        let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
        links::load(name, program)?;
    }
    let programs = Arc::new(Mutex::new(ebpf));
    let link_programs = LinkPrograms::new(programs.clone(), bpf_dir.join(LINKS), probe.tcx);
    // Once a take-over has begun our tables are complete, and theirs are old.
    let begun = link_of(bpf_dir, FIRST_TAKEN, Ends::Sockets).exists();
    for source in plan.sources.iter().filter(|_| !begun) {
        carry::tables(&bpf_dir.join(&source.directory), source.carried, &mut maps)?;
    }
    let take_over = (!plan.sources.is_empty()).then(|| TakeOver {
        programs,
        link_programs: link_programs.clone(),
        cgroup,
        bpf_dir: bpf_dir.clone(),
        sources: plan.sources,
    });
    Ok(Dataplane {
        dir,
        maps,
        adopted,
        link_programs,
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

/// Puts a program where others go on in it. What an earlier agent put there serves until then.
fn stage(ebpf: &mut Ebpf, name: &'static str, place: u32) -> Result<(), LoadError> {
    let program = ebpf.program_mut(name).ok_or(LoadError::Missing { name })?;
    links::load(name, program)?;
    let failed = |source| LoadError::Program {
        name,
        source: Box::new(source),
    };
    let program = program.fd().map_err(failed)?;
    let program = program.try_clone().map_err(at(Path::new(name)))?;
    let map = ebpf.map_mut(names::STAGES);
    let map = map.ok_or(LoadError::Missing {
        name: names::STAGES,
    })?;
    let failed = |source| {
        LoadError::Map(MapError::Put {
            map: names::STAGES,
            source,
        })
    };
    let mut stages = ProgramArray::try_from(map).map_err(failed)?;
    stages.set(place, &program, 0).map_err(failed)
}

fn load(object: &[u8], dir: &Path, sizes: MapSizes, probe: &Probe) -> Result<Ebpf, LoadError> {
    let set_retval = u32::from(probe.set_retval);
    let fast_paths = u32::from(probe.fast_paths);
    let own = Path::new("/proc/thread-self/ns/net");
    let netns = netns_cookie(own).map_err(at(own))?;
    let local = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let (first_port, port_count) = ports_of_others(&local);
    let mut loader = EbpfLoader::new();
    loader
        // The programs relocate nothing against the kernel's types, and parsing them takes megabytes.
        .btf(None)
        .override_global("HAS_SET_RETVAL", &set_retval, true)
        .override_global("FAST_PATHS", &fast_paths, true)
        .override_global("NODE_NETNS", &netns, true)
        .override_global("FIRST_PORT", &first_port, true)
        .override_global("PORT_COUNT", &port_count, true);
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

/// The ports that connections of others get at the node's address, by the text of `ip_local_port_range`, which the node's
/// own sockets take theirs from: those behind it, or where these are few, those before it, as far as they are not node
/// ports. Gives the first and their number.
fn ports_of_others(local: &str) -> (u32, u32) {
    const LAST: u32 = 65_535;
    const FEW: u32 = 4_096;
    const NODE_PORTS: RangeInclusive<u32> = 30_000..=32_767;
    let mut numbers = local.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last))) = (numbers.next(), numbers.next()) else {
        return (61_000, LAST - 60_999);
    };
    if last + FEW <= LAST {
        return (last + 1, LAST - last);
    }
    let end = match NODE_PORTS.contains(&first) || first > *NODE_PORTS.end() {
        true => *NODE_PORTS.start(),
        false => first,
    };
    let count = end.saturating_sub(1024).min(16_384);
    match count < FEW {
        // Everything is the node's own: a program looks for a socket before it gives a port away.
        true => (61_000, LAST - 60_999),
        false => (end - count, count),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_get_ports_that_the_nodes_sockets_do_not_take() {
        assert_eq!(ports_of_others("32768\t60999\n"), (61_000, 4_536));
        assert_eq!(ports_of_others("32768 65535"), (13_616, 16_384));
        assert_eq!(ports_of_others("10000 65000"), (1_024, 8_976));
        for odd in ["", "x y", "1024 65535"] {
            assert_eq!(ports_of_others(odd), (61_000, 4_536), "{odd}");
        }
    }
}
