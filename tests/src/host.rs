//! The machine underneath: network namespaces, the bridge between them, cgroup hierarchies.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::command::run;
use crate::{Error, Result};

/// Where `ip netns` pins its namespaces.
const NETNS: &str = "/run/netns";

/// The file that names a network namespace made by [`create_netns`].
pub fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS).join(name)
}

/// Makes a bridge that is a link of a cluster, with an address of the host's on it if it shall reach the machines.
pub fn create_bridge(name: &str, address: Option<Ipv4Addr>) -> Result<()> {
    run(&format!("ip link add {name} type bridge"))?;
    if let Some(address) = address {
        run(&format!("ip address add {address}/24 dev {name}"))?;
    }
    run(&format!("ip link set {name} up"))?;
    Ok(())
}

/// Makes a network namespace with `eth0` on the bridge; the bridge's end of the cable is called `cable`.
pub fn create_netns(name: &str, bridge: &str, cable: &str, address: Ipv4Addr) -> Result<()> {
    run(&format!("ip netns add {name}"))?;
    run(&format!(
        "ip link add {cable} type veth peer name eth0 netns {name}"
    ))?;
    run(&format!("ip link set {cable} master {bridge} up"))?;
    run(&format!("ip -n {name} address add {address}/24 dev eth0"))?;
    run(&format!("ip -n {name} link set eth0 up"))?;
    run(&format!("ip -n {name} link set lo up"))?;
    Ok(())
}

/// Runs `work` on a thread of its own that has entered the network namespace.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = std::fs::File::open(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            use std::os::fd::AsFd;
            rustix::thread::move_into_link_name_space(
                namespace.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .map_err(|error| Error::System {
                what: format!("entering {}", path.display()),
                source: error.into(),
            })?;
            Ok(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Where the cgroup-v2 hierarchy is mounted.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = read("/proc/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .next()
        .ok_or_else(|| {
            Error::Unexpected("no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`".into())
        })
}

/// The mount points of all cgroup hierarchies, v1 and v2.
pub fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    Ok(read("/proc/mounts")?
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup" || kind == "cgroup2").then(|| PathBuf::from(target))
        })
        .collect())
}

/// Reads a file, naming it when that fails.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a file, naming it when that fails.
pub fn write(path: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    std::fs::write(path, contents).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

/// Makes a directory and its parents, naming it when that fails.
pub fn create_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}
