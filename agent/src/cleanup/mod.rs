//! `kernelet cleanup`: everything that agents leave on a node on purpose, so that services and pods go on while no agent
//! runs, is found and removed.

mod files;
mod pods;
mod tree;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chain::chain;
use crate::dataplane;
use crate::network::leftovers::{self, Leftover};
use crate::runtime::cgroup;
use crate::runtime::containerd::Containerd;
use crate::runtime::host::Host;
use crate::runtime::{Container, ContainerState, Runtime, RuntimeError};

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

impl Places {
    /// The directories by their names without links, as the kernel calls what is mounted there.
    pub fn resolved(mut self) -> io::Result<Self> {
        for path in [&mut self.run_dir, &mut self.root_dir, &mut self.bpf_dir] {
            *path = match path.canonicalize() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    std::path::absolute(&*path)?
                }
                resolved => resolved?,
            };
        }
        Ok(self)
    }
}

/// One thing that an agent left.
#[derive(Clone, Debug)]
pub enum Residue {
    Container {
        id: String,
        of: String,
    },
    /// The snapshots of the images that a pod has as volumes.
    Images {
        pod_uid: String,
    },
    Network(Leftover),
    /// The programs at a network link, where they are filters.
    Filters(String),
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
            Residue::Images { pod_uid } => write!(f, "images of volumes of pod {pod_uid}"),
            Residue::Network(leftover) => leftover.fmt(f),
            Residue::Filters(link) => write!(f, "BPF filters at link {link}"),
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
    /// An agent ran pods here, and which of their containers there are could not be told: they may run.
    pub containers_unknown: bool,
}

/// Finds all that is left. Changes nothing.
pub async fn find(places: &Places) -> Found {
    let mut found = Found::default();
    let mut pods = pods::uids(places);
    let mut image_holders = BTreeSet::new();
    match containers(places).await {
        Ok((containers, holders)) => {
            pods.extend(containers.iter().map(|it| it.pod.uid.clone()));
            pods.extend(holders.iter().cloned());
            image_holders = holders;
            found.residues.extend(containers.into_iter().map(residue));
        }
        Err(why) => {
            found.containers_unknown = pods::ran(places);
            found.unseen.push(format!("containers: {why}"));
        }
    }
    match leftovers::find().await {
        Ok(leftovers) => found
            .residues
            .extend(leftovers.into_iter().map(Residue::Network)),
        Err(error) => found.unseen.push(format!("the network: {}", chain(&error))),
    }
    match dataplane::filtered_links(&places.bpf_dir) {
        Ok(links) => found
            .residues
            .extend(links.into_iter().map(Residue::Filters)),
        Err(error) => found.unseen.push(format!("BPF filters: {}", chain(&error))),
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
    // Once they are mounted no more.
    let images = image_holders.into_iter();
    let images = images.map(|pod_uid| Residue::Images { pod_uid });
    found.residues.extend(images);
    found.residues.extend(pods::cgroups(places, &pods));
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
        Residue::Images { pod_uid } => runtime(places)
            .release_images(pod_uid)
            .await
            .map_err(|error| chain(&error)),
        Residue::Network(leftover) => leftovers::remove(leftover)
            .await
            .map_err(|error| chain(&error)),
        Residue::Filters(link) => dataplane::remove_filters(link).map_err(|error| chain(&error)),
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

/// The containers of agents, and the pods for whose volumes images are held.
async fn containers(places: &Places) -> Result<(Vec<Container>, BTreeSet<String>), String> {
    let socket = &places.containerd;
    let absent = !socket
        .try_exists()
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    if absent && pods::ran(places) {
        return Err(format!(
            "pods ran here, and there is no {}; start containerd, or name its socket with --containerd",
            socket.display()
        ));
    }
    if absent {
        return Ok(Default::default());
    }
    let runtime = runtime(places);
    let listed = tokio::try_join!(runtime.list(), runtime.image_holders());
    listed.map_err(|error| chain(&error))
}

fn residue(container: Container) -> Residue {
    let Container { pod, name, id, .. } = container;
    let of = format!("{name} of pod {}/{}", pod.namespace, pod.name);
    Residue::Container { id, of }
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

/// Removes a directory's name when it was a link, and what it led to is gone.
pub fn remove_dangling(link: &Path) -> io::Result<()> {
    files::remove_dangling(link)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An agent's places below a directory, and no containerd.
    pub(crate) fn places_in(home: &Path) -> Places {
        Places {
            run_dir: home.join("run"),
            root_dir: home.join("root"),
            bpf_dir: home.join("bpf"),
            cgroup_parent: "/kn-cleanup-test".into(),
            containerd: home.join("containerd.sock"),
            all: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::places_in;
    use super::*;

    #[tokio::test]
    async fn containers_that_cannot_be_listed_are_unknown_only_where_pods_ran() {
        let home = tempfile::tempdir().unwrap();
        let places = places_in(home.path());
        std::fs::create_dir_all(&places.run_dir).unwrap();
        let found = find(&places).await;
        assert!(!found.containers_unknown);
        assert_eq!(found.unseen, Vec::<String>::new());

        std::fs::create_dir_all(places.root_dir.join("pods/uid")).unwrap();
        let unknown = async || {
            let found = find(&places).await;
            assert!(found.containers_unknown, "{found:?}");
            found.unseen.concat()
        };
        assert!(unknown().await.contains("start containerd"));
        // One that was killed leaves its socket.
        drop(std::os::unix::net::UnixListener::bind(&places.containerd).unwrap());
        let why = unknown().await;
        assert!(why.starts_with("containers: "), "{why}");
    }
}
