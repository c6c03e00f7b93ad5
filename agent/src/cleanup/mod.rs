//! `kernelet cleanup`: everything that agents leave on a node on purpose, so that services and pods go on while no agent
//! runs, is found and removed.

mod files;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chain::chain;
use crate::network::leftovers::{self, Leftover};
use crate::runtime::cgroup;
use crate::runtime::containerd::Containerd;
use crate::runtime::host::Host;
use crate::runtime::{ContainerState, Runtime, RuntimeError};

/// How long a container that was killed may take to end.
const END: Duration = Duration::from_secs(10);

/// Where an agent had its things.
#[derive(Clone, Debug)]
pub struct Places {
    pub run_dir: PathBuf,
    pub root_dir: PathBuf,
    pub bpf_dir: PathBuf,
    pub cgroup_parent: PathBuf,
    pub containerd: PathBuf,
    /// The data in `root_dir` go, too.
    pub all: bool,
}

/// One thing that an agent left.
#[derive(Clone, Debug)]
pub enum Residue {
    Container {
        id: String,
        of: String,
    },
    Network(Leftover),
    /// What is mounted for pods: their namespaces, and directories of theirs.
    Mount(PathBuf),
    /// A cgroup with those in it.
    Cgroup(PathBuf),
    /// A map or the link of a program.
    Pin(PathBuf),
    Directory(PathBuf),
}

impl fmt::Display for Residue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Residue::Container { id, of } => write!(f, "container {id} ({of})"),
            Residue::Network(leftover) => leftover.fmt(f),
            Residue::Mount(path) => write!(f, "mount {}", path.display()),
            Residue::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Residue::Pin(path) => match files::is_link(path) {
                true => write!(f, "BPF program {}", path.display()),
                false => write!(f, "BPF map {}", path.display()),
            },
            Residue::Directory(path) => write!(f, "directory {}", path.display()),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which it may go.
    pub residues: Vec<Residue>,
    /// What could not be looked at, and why.
    pub unseen: Vec<String>,
}

/// Finds all that is left. Changes nothing.
pub async fn find(places: &Places) -> Found {
    let mut found = Found::default();
    match containers(places).await {
        Ok(containers) => found.residues.extend(containers),
        Err(error) => found.unseen.push(format!("containers: {}", chain(&error))),
    }
    match leftovers::find().await {
        Ok(leftovers) => found
            .residues
            .extend(leftovers.into_iter().map(Residue::Network)),
        Err(error) => found.unseen.push(format!("the network: {}", chain(&error))),
    }
    let looks: [(&str, io::Result<Vec<Residue>>); 3] = [
        ("mounts", files::mounts(places)),
        ("BPF programs and maps", files::pins(&places.bpf_dir)),
        ("directories", files::directories(places)),
    ];
    let [mounts, pins, directories] = looks.map(|(what, found_here)| {
        found_here.unwrap_or_else(|error| {
            found.unseen.push(format!("{what}: {error}"));
            Vec::new()
        })
    });
    found.residues.extend(mounts);
    found.residues.extend(cgroups(places));
    found.residues.extend(pins);
    found.residues.extend(directories);
    found
}

/// Removes one of the things found. Does nothing when it is gone.
pub async fn remove(residue: &Residue, places: &Places) -> Result<(), String> {
    let io = |result: io::Result<()>| result.map_err(|error| chain(&error));
    match residue {
        Residue::Container { id, .. } => end(&runtime(places), id)
            .await
            .map_err(|error| chain(&error)),
        Residue::Network(leftover) => leftovers::remove(leftover)
            .await
            .map_err(|error| chain(&error)),
        Residue::Mount(path) => io(files::unmount_whole(path)),
        Residue::Cgroup(path) => io(cgroup::remove_tree(path)),
        Residue::Pin(path) => io(files::remove_pin(path, &places.bpf_dir)),
        Residue::Directory(path) => io(files::remove_directory(path)),
    }
}

fn runtime(places: &Places) -> Containerd {
    // It starts nothing, so nobody writes logs.
    let unused = Path::new("");
    Containerd::new(&places.containerd, Host::probe(), unused, unused)
}

async fn containers(places: &Places) -> Result<Vec<Residue>, RuntimeError> {
    if !places.containerd.exists() {
        return Ok(Vec::new());
    }
    let listed = runtime(places).list().await?;
    let found = listed.into_iter().map(|container| Residue::Container {
        of: format!(
            "{} of pod {}/{}",
            container.name, container.pod.namespace, container.pod.name
        ),
        id: container.id,
    });
    Ok(found.collect())
}

/// Kills a container, waits for its end and removes it.
async fn end(runtime: &impl Runtime, id: &str) -> Result<(), RuntimeError> {
    runtime.signal(id, libc::SIGKILL).await?;
    let ended = async {
        while let Some(ContainerState::Running { .. }) = runtime.state(id).await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok::<_, RuntimeError>(())
    };
    // One that does not end is refused by the removal, with the reason.
    let _ = tokio::time::timeout(END, ended).await;
    runtime.delete(id).await
}

/// The cgroups of our pods. Upstream's kubelet calls its own the same, so they are ours only where an agent ran pods.
fn cgroups(places: &Places) -> impl Iterator<Item = Residue> + use<> {
    let parent = &places.cgroup_parent;
    let below = parent.strip_prefix("/").unwrap_or(parent).join("kubepods");
    let hierarchies = match files::pods_ran(places) {
        true => cgroup::mounted(),
        false => Vec::new(),
    };
    hierarchies
        .into_iter()
        .map(move |hierarchy| hierarchy.mount.join(&below))
        .filter(|path| path.is_dir())
        .map(Residue::Cgroup)
}
