//! Where everything of a pod is on the node.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::spec::QosClass;
use crate::network::namespaces::Namespace;
use crate::runtime::PodRef;
use crate::runtime::cgroup::{self, Hierarchy};

/// Where everything of a pod is on the node.
#[derive(Clone, Debug)]
pub struct Paths {
    root_dir: PathBuf,
    run_dir: PathBuf,
    cgroup_parent: PathBuf,
    pub(super) hierarchies: Arc<[Hierarchy]>,
}

impl Paths {
    /// `root_dir` holds pods' files, logs and archives of images; `run_dir` the pins of pods' namespaces. Pods' cgroups go
    /// into `kubepods` under `cgroup_parent`, which is below every cgroup hierarchy's root.
    pub fn new(root_dir: PathBuf, run_dir: PathBuf, cgroup_parent: PathBuf) -> Paths {
        Paths {
            root_dir,
            run_dir,
            cgroup_parent,
            hierarchies: cgroup::mounted().into(),
        }
    }

    /// Of pods' files.
    pub fn root(&self) -> &Path {
        &self.root_dir
    }

    /// Archives of images that are taken in.
    pub(super) fn images(&self) -> PathBuf {
        self.root_dir.join("images")
    }

    /// The program of containers that hold process namespaces.
    pub(super) fn holder(&self) -> PathBuf {
        self.root_dir.join("holder")
    }

    /// A file with a filter of system calls, which pods name relative to a directory.
    pub(super) fn seccomp_profile(&self, name: &str) -> PathBuf {
        self.root_dir.join("seccomp").join(name)
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub(super) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// Which ids of the node the users of a pod are, where they are the pod's own.
    pub(super) fn users(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("userns")
    }

    pub(super) fn hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("hosts")
    }

    pub(super) fn hostname(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("hostname")
    }

    pub(super) fn resolv_conf(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("resolv.conf")
    }

    pub(super) fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid)
            .join("termination-log")
            .join(format!("{container}-{attempt}"))
    }

    /// The directory of a pod's logs.
    pub(super) fn logs(&self, pod: &PodRef) -> PathBuf {
        let PodRef {
            uid,
            namespace,
            name,
        } = pod;
        self.root_dir
            .join("logs")
            .join(format!("{namespace}_{name}_{uid}"))
    }

    /// The directories of logs that there are, and whose each is.
    pub(super) fn all_logs(&self) -> Vec<(PathBuf, PodRef)> {
        let entries = std::fs::read_dir(self.root_dir.join("logs"));
        let found = entries.into_iter().flatten().flatten().filter_map(|entry| {
            let pod = pod_of_logs(&entry.file_name().to_string_lossy())?;
            Some((entry.path(), pod))
        });
        found.collect()
    }

    /// The log of a container.
    pub fn log(&self, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
        self.logs(pod)
            .join(container)
            .join(format!("{attempt}.log"))
    }

    /// The pins of pods' namespaces of one kind.
    pub(super) fn pins(&self, namespace: Namespace) -> PathBuf {
        self.run_dir.join(namespace.pin_directory())
    }

    pub fn pin(&self, namespace: Namespace, uid: &str) -> PathBuf {
        self.pins(namespace).join(uid)
    }

    /// The mounts that the agent makes for a pod, each directly below.
    pub(super) fn mounts(&self, uid: &str) -> PathBuf {
        self.run_dir.join("mounts").join(uid)
    }

    /// The memory that the pod's containers share.
    pub(super) fn shm(&self, uid: &str) -> PathBuf {
        self.mounts(uid).join("shm")
    }

    /// The cgroup of a pod, below every hierarchy's root.
    pub(super) fn cgroup(&self, uid: &str, qos: QosClass) -> PathBuf {
        self.class_cgroup(qos).join(format!("pod{uid}"))
    }

    /// The cgroup that holds the pods of a class. The guaranteed ones have none of their own, as upstream.
    pub(super) fn class_cgroup(&self, qos: QosClass) -> PathBuf {
        let all = self.cgroup_parent.join("kubepods");
        match qos {
            QosClass::Guaranteed => all,
            QosClass::Burstable => all.join("burstable"),
            QosClass::BestEffort => all.join("besteffort"),
        }
    }
}

/// The pod of a directory that [`Paths::logs`] names. None of the three parts may hold an underscore.
fn pod_of_logs(directory: &str) -> Option<PodRef> {
    let mut parts = directory.splitn(3, '_').map(str::to_owned);
    let pod = PodRef {
        namespace: parts.next()?,
        name: parts.next()?,
        uid: parts.next()?,
    };
    is_plain_name(&pod.uid).then_some(pod)
}

/// The name under which a pod's directory may be removed: only a plain file name is ever joined to a path.
pub(super) fn is_plain_name(uid: &str) -> bool {
    let mut parts = Path::new(uid).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    )
}
