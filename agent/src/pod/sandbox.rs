//! What a pod's containers share: namespaces, network, directories, files.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::config::own_namespaces;
use super::files::write_if_changed;
use super::hosts::{self, LONGEST_NAME};
use super::paths::Paths;
use super::shared::Settings;
use super::spec::{PodView, QosClass};
use super::users::{self, UsersError};
use super::{holder, mounts, resources};
use crate::dns::resolv_conf::{self, ClusterDns};
use crate::network::namespaces::{self, Namespace, NamespaceError};
use crate::network::{NetworkError, PodNetwork};
use crate::runtime::{PodRef, Resources, cgroup};

/// The node's own hosts file.
const NODE_HOSTS: &str = "/etc/hosts";
/// Size of the memory that a pod's containers share, in bytes: what container runtimes give a pod.
const SHM_BYTES: u64 = 64 << 20;

/// Why a sandbox could not be prepared or removed. Trying again is safe.
#[derive(Debug, thiserror::Error)]
pub(super) enum SandboxError {
    #[error("failed to set up pod network: {0}")]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error("cannot write {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot set up or remove cgroup {}: {source}", path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error(
        "Failed to construct FQDN from Pod hostname and cluster domain, FQDN {name} is too long ({LONGEST_NAME} characters is the max, {} characters requested)",
        name.len()
    )]
    HostName { name: String },
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error("cannot write {}, which user namespaces need: {source}", path.display())]
    Holder { path: PathBuf, source: io::Error },
    #[error("the task that did the work was cancelled")]
    Cancelled,
}

/// Prepares it, large enough for the pod as either of `sizes`; gives the pod's addresses, none for a pod on the node's network.
pub(super) async fn prepare(
    network: &dyn PodNetwork,
    dns: &ClusterDns,
    settings: &Settings,
    pod: &PodView,
    sizes: [PodView; 2],
) -> Result<Vec<IpAddr>, SandboxError> {
    let (uid, paths) = (pod.id.uid.clone(), &settings.paths);
    users::check(pod.spec())?;
    let name = hosts::machine_name(pod, &dns.domain);
    if name.len() > LONGEST_NAME {
        return Err(SandboxError::HostName { name });
    }
    let limited = limit_to(settings, sizes);
    // Both to their end: what goes on behind a failure could meet the next try.
    let (limited, addresses) = tokio::join!(limited, connect(network, paths, pod, &name));
    limited?;
    let addresses = addresses?;
    let seen = if pod.host_network() {
        &settings.host_addresses
    } else {
        &addresses
    };
    let of_node = if pod.host_network() {
        fs::read_to_string(NODE_HOSTS).unwrap_or_default()
    } else {
        String::new()
    };
    let files = [
        (
            paths.hosts(&uid),
            hosts::file(pod, &dns.domain, seen, &of_node),
        ),
        (paths.hostname(&uid), format!("{name}\n")),
        (
            paths.resolv_conf(&uid),
            resolv_conf::for_pod(&pod.id.namespace, pod.spec(), dns).text,
        ),
    ];
    for (path, text) in files {
        write_if_changed(&path, text.as_bytes())
            .map_err(|source| SandboxError::File { path, source })?;
    }
    Ok(addresses)
}

/// Makes the pod's namespaces and connects it.
async fn connect(
    network: &dyn PodNetwork,
    paths: &Paths,
    pod: &PodView,
    name: &str,
) -> Result<Vec<IpAddr>, SandboxError> {
    {
        let (pod, name, paths) = (pod.clone(), name.to_owned(), paths.clone());
        blocking(move || pin(&pod, &name, &paths)).await?;
    }
    if pod.host_network() {
        return Ok(Vec::new());
    }
    let uid = &pod.id.uid;
    Ok(network.attach(uid, &paths.pin(Namespace::Net, uid)).await?)
}

/// Makes the cgroup that holds all pods' ones, which keeps them from what is not for pods.
pub fn limit_all(paths: &Paths, resources: &Resources) -> io::Result<()> {
    let all = paths.class_cgroup(QosClass::Guaranteed);
    cgroup::create(&paths.hierarchies, &all, resources)
}

/// Makes the pod's cgroup, which decides how pods share the node; runc makes those of its containers below.
fn limit(
    pod: &PodView,
    resources: &Resources,
    paths: &Paths,
    max_pids: Option<u64>,
) -> Result<(), SandboxError> {
    let qos = pod.qos();
    let path = paths.cgroup(&pod.id.uid, qos);
    cgroup::create(&paths.hierarchies, &path, resources)
        .and_then(|()| match max_pids {
            Some(most) => cgroup::limit_pids(&paths.hierarchies, &path, most),
            None => Ok(()),
        })
        .and_then(|()| weigh(paths, qos))
        .map_err(|source| SandboxError::Cgroup { path, source })
}

/// Changes the pod's cgroup to what is enough for the pod as either of two.
pub(super) async fn limit_to(settings: &Settings, pods: [PodView; 2]) -> Result<(), SandboxError> {
    let (paths, max_pids) = (settings.paths.clone(), settings.pod_max_pids);
    blocking(move || {
        let [one, other] = pods.each_ref().map(resources::of_pod);
        limit(&pods[0], &one.or_more(&other), &paths, max_pids)
    })
    .await
}

/// Gives a class of pods the weight that it should have beside the others.
fn weigh(paths: &Paths, qos: QosClass) -> io::Result<()> {
    let class = paths.class_cgroup(qos);
    match qos {
        // Each stands for itself.
        QosClass::Guaranteed => Ok(()),
        QosClass::Burstable => cgroup::weigh_by_children(&paths.hierarchies, &class),
        // They get what the others leave.
        QosClass::BestEffort => cgroup::create(&paths.hierarchies, &class, &Resources::LEAST),
    }
}

fn pin(pod: &PodView, hostname: &str, paths: &Paths) -> Result<(), SandboxError> {
    let uid = &pod.id.uid;
    // Secrets lie below: for root only. Containers reach their part through mounts.
    private_directory(&paths.pod(uid))?;
    private_directory(&paths.logs(&pod.id))?;
    let own = own_namespaces(pod).into_iter();
    let own: Vec<_> = own
        .map(|namespace| (namespace, paths.pin(namespace, uid)))
        .collect();
    if let Some(users) = users::of(paths, pod)? {
        let waiter = paths.holder();
        holder::install(paths).map_err(|source| SandboxError::Holder {
            path: waiter.clone(),
            source,
        })?;
        namespaces::create_pinned_with_users(users.ids, &own, &users.namespace, &waiter)?;
    }
    for (namespace, path) in own {
        namespaces::create_pinned(namespace, &path)?;
        if namespace == Namespace::Ipc {
            share_memory(&paths.shm(uid))?;
        }
        if namespace == Namespace::Uts {
            let hostname = hostname.to_owned();
            namespaces::within(namespace, &path, move || {
                rustix::system::sethostname(hostname.as_bytes())
            })?
            .map_err(|errno| SandboxError::File {
                path,
                source: errno.into(),
            })?;
        }
    }
    Ok(())
}

fn share_memory(path: &Path) -> Result<(), SandboxError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mounts::memory(path, Some(SHM_BYTES), 0o1777, flags).map_err(|source| SandboxError::File {
        path: path.to_owned(),
        source,
    })
}

fn private_directory(path: &Path) -> Result<(), SandboxError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| SandboxError::File {
            path: path.to_owned(),
            source,
        })
}

/// Takes the network, the namespaces and the mounts away.
pub(super) async fn release(
    network: &dyn PodNetwork,
    paths: &Paths,
    pod: &PodRef,
) -> Result<(), SandboxError> {
    network.detach(&pod.uid).await?;
    let (uid, paths) = (pod.uid.clone(), paths.clone());
    blocking(move || {
        for namespace in Namespace::ALL {
            namespaces::remove_pinned(namespace, &paths.pin(namespace, &uid))?;
        }
        let path = paths.mounts(&uid);
        mounts::remove_all(&path).map_err(|source| SandboxError::File { path, source })
    })
    .await
}

/// Removes what is left of a pod on disk once its containers are gone: volumes, logs, cgroups.
pub(super) async fn erase(paths: &Paths, pod: &PodRef) -> Result<(), SandboxError> {
    let (pod, paths) = (pod.clone(), paths.clone());
    blocking(move || {
        for qos in [
            QosClass::Guaranteed,
            QosClass::Burstable,
            QosClass::BestEffort,
        ] {
            let path = paths.cgroup(&pod.uid, qos);
            cgroup::remove(&paths.hierarchies, &path)
                .map_err(|source| SandboxError::Cgroup { path, source })?;
        }
        let path = paths.class_cgroup(QosClass::Burstable);
        cgroup::weigh_by_children(&paths.hierarchies, &path)
            .map_err(|source| SandboxError::Cgroup { path, source })?;
        // Of a pod that only its files tell of, the name is not known.
        let logs = paths.all_logs().into_iter();
        let own_logs = logs.filter(|(_, found)| found.uid == pod.uid);
        for path in own_logs.map(|(path, _)| path).chain([paths.pod(&pod.uid)]) {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SandboxError::File {
                        path,
                        source: error,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| SandboxError::Cancelled)?
}
