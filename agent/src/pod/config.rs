//! A container's runtime config from its pod's spec. Pure, but for the paths it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, ResourceRequirements, SecurityContext,
};

use super::env::expand;
use super::resources;
use super::spec::{PodView, QosClass, container_id, request, spec_hash};
use super::volumes;
use crate::network::namespaces::Namespace;
use crate::runtime::cgroup::Hierarchy;
use crate::runtime::{BindMount, ContainerConfig, NamespacePaths, PodRef, Security};

/// Where everything of a pod is on the node.
#[derive(Clone, Debug)]
pub(super) struct Paths {
    pub(super) root_dir: PathBuf,
    pub(super) run_dir: PathBuf,
    pub(super) cgroup_parent: PathBuf,
    pub(super) hierarchies: Arc<[Hierarchy]>,
}

impl Paths {
    pub(super) fn pods(&self) -> PathBuf {
        self.root_dir.join("pods")
    }

    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub(super) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
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

    pub(super) fn logs(&self, pod: &PodRef) -> PathBuf {
        logs(&self.root_dir, pod)
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

    pub(super) fn log(&self, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
        log_path(&self.root_dir, pod, container, attempt)
    }

    pub(super) fn pin(&self, namespace: Namespace, uid: &str) -> PathBuf {
        self.run_dir.join(namespace.pin_directory()).join(uid)
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

fn logs(root_dir: &Path, pod: &PodRef) -> PathBuf {
    let PodRef {
        uid,
        namespace,
        name,
    } = pod;
    root_dir
        .join("logs")
        .join(format!("{namespace}_{name}_{uid}"))
}

/// The pod of a directory that [`logs`] names. None of the three parts may hold an underscore.
fn pod_of_logs(directory: &str) -> Option<PodRef> {
    let mut parts = directory.splitn(3, '_').map(str::to_owned);
    let pod = PodRef {
        namespace: parts.next()?,
        name: parts.next()?,
        uid: parts.next()?,
    };
    is_plain_name(&pod.uid).then_some(pod)
}

/// Where the log of a container is.
pub(super) fn log_path(root_dir: &Path, pod: &PodRef, container: &str, attempt: u32) -> PathBuf {
    logs(root_dir, pod)
        .join(container)
        .join(format!("{attempt}.log"))
}

/// Which of the pod's namespaces are its own rather than the node's.
pub(super) fn own_namespaces(pod: &PodView) -> Vec<Namespace> {
    let mut own = Vec::new();
    if !pod.host_network() {
        own.extend([Namespace::Net, Namespace::Uts]);
    }
    if !pod.spec().host_ipc.unwrap_or(false) {
        own.push(Namespace::Ipc);
    }
    own
}

/// What this node cannot do of what the spec asks; one sentence each. A container that asks for any of it is not made.
pub(super) fn refusals(pod: &PodView, container: &Container) -> Vec<String> {
    let spec = pod.spec();
    let security = container.security_context.clone().unwrap_or_default();
    let of_pod = spec.security_context.clone().unwrap_or_default();
    let mut found = Vec::new();
    let mut refuse = |asked: bool, what: &str| {
        if asked {
            found.push(format!("{what} is not supported on this node"));
        }
    };
    refuse(spec.host_pid == Some(true), "hostPID");
    refuse(
        spec.share_process_namespace == Some(true),
        "shareProcessNamespace",
    );
    refuse(spec.host_users == Some(false), "hostUsers: false");
    refuse(spec.runtime_class_name.is_some(), "runtimeClassName");
    refuse(spec.set_hostname_as_fqdn == Some(true), "setHostnameAsFQDN");
    refuse(
        of_pod.sysctls.as_ref().is_some_and(|list| !list.is_empty()),
        "securityContext.sysctls",
    );
    refuse(
        of_pod.se_linux_options.is_some() || security.se_linux_options.is_some(),
        "seLinuxOptions",
    );
    refuse(
        matches!(security.proc_mount.as_deref(), Some(kind) if kind != "Default"),
        "procMount other than Default",
    );
    let profile = security
        .seccomp_profile
        .as_ref()
        .or(of_pod.seccomp_profile.as_ref());
    refuse(
        profile.is_some_and(|profile| profile.type_ == "Localhost"),
        "a Localhost seccompProfile",
    );
    let armor = security
        .app_armor_profile
        .as_ref()
        .or(of_pod.app_armor_profile.as_ref());
    refuse(
        armor.is_some_and(|profile| profile.type_ != "Unconfined"),
        "an appArmorProfile other than Unconfined",
    );
    refuse(
        spec.resources.as_ref().is_some_and(names_amounts),
        "a limit or request of the pod as a whole",
    );
    refuse(container.tty == Some(true), "tty");
    refuse(container.stdin == Some(true), "stdin");
    refuse(container.lifecycle.is_some(), "lifecycle");
    let probes = [
        &container.startup_probe,
        &container.liveness_probe,
        &container.readiness_probe,
    ];
    refuse(
        probes
            .into_iter()
            .flatten()
            .any(|probe| probe.grpc.is_some()),
        "a grpc probe",
    );
    refuse(
        container
            .volume_devices
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        "volumeDevices",
    );
    let mounts = || container.volume_mounts.iter().flatten();
    refuse(
        mounts().any(|mount| mount.sub_path_expr.is_some()),
        "subPathExpr",
    );
    refuse(
        mounts().any(|mount| {
            mount
                .mount_propagation
                .as_deref()
                .is_some_and(|kind| kind != "None")
        }),
        "mountPropagation",
    );
    let ports = || container.ports.iter().flatten();
    refuse(
        !pod.host_network() && ports().any(|port| port.host_port.is_some_and(|port| port != 0)),
        "hostPort",
    );
    let limits = container
        .resources
        .as_ref()
        .and_then(|resources| resources.limits.as_ref());
    refuse(
        limits.is_some_and(|limits| limits.keys().any(|name| name.starts_with("hugepages-"))),
        "a hugepages limit",
    );
    found
}

/// Whether a pod names amounts for all its containers together.
fn names_amounts(resources: &ResourceRequirements) -> bool {
    [&resources.requests, &resources.limits]
        .into_iter()
        .flatten()
        .any(|amounts| !amounts.is_empty())
}

/// What a container is made from, besides the pod.
pub(super) struct Parts<'a> {
    pub(super) pod: &'a PodView,
    pub(super) container: &'a Container,
    pub(super) attempt: u32,
    pub(super) streak: u32,
    pub(super) env: Vec<(String, String)>,
    pub(super) paths: &'a Paths,
    /// Memory of the node in bytes, by which a request's weight is measured.
    pub(super) node_memory: f64,
}

/// The config of a container.
pub(super) fn container(parts: Parts<'_>) -> Result<ContainerConfig, volumes::VolumeError> {
    let Parts {
        pod,
        container,
        attempt,
        streak,
        env,
        paths,
        node_memory,
    } = parts;
    let uid = &pod.id.uid;
    let expanded = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|text| expand(text, &env))
            .collect::<Vec<_>>()
    };
    let own = own_namespaces(pod);
    let path = |namespace| own.contains(&namespace).then(|| paths.pin(namespace, uid));
    Ok(ContainerConfig {
        id: container_id(uid, &container.name, attempt),
        pod: pod.id.clone(),
        name: container.name.clone(),
        attempt,
        streak,
        spec_hash: spec_hash(container),
        image: container.image.clone().unwrap_or_default(),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts: mounts(pod, container, attempt, paths)?,
        namespaces: NamespacePaths {
            net: path(Namespace::Net),
            ipc: path(Namespace::Ipc),
            uts: path(Namespace::Uts),
        },
        cgroup: paths
            .cgroup(uid, pod.qos())
            .join(container_id(uid, &container.name, attempt)),
        resources: resources::of_container(container),
        oom_score_adj: oom_score_adj(pod.qos(), request(container, "memory"), node_memory),
        security: security(&pod.object, container),
        env: with_hostname(env, pod),
    })
}

fn with_hostname(mut env: Vec<(String, String)>, pod: &PodView) -> Vec<(String, String)> {
    if !pod.host_network() && !env.iter().any(|(name, _)| name == "HOSTNAME") {
        env.insert(0, ("HOSTNAME".to_owned(), pod.hostname()));
    }
    env
}

fn mounts(
    pod: &PodView,
    container: &Container,
    attempt: u32,
    paths: &Paths,
) -> Result<Vec<BindMount>, volumes::VolumeError> {
    let uid = &pod.id.uid;
    let mut list = Vec::new();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = pod
            .spec()
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == mount.name);
        let volume = volume.ok_or_else(|| volumes::VolumeError::Refused {
            volume: mount.name.clone(),
            reason: "the pod has no such volume".into(),
        })?;
        let root = volumes::path(paths, uid, volume);
        let writable = volume.host_path.is_some() || volume.empty_dir.is_some();
        let pin = paths
            .mounts(uid)
            .join(format!("subpath-{}-{at}", container.name));
        let read_only = mount.read_only == Some(true) || !writable;
        list.push(volumes::bind(
            &volume.name,
            &root,
            &mount.mount_path,
            mount.sub_path.as_deref(),
            pin,
            read_only,
        )?);
    }
    let bind = |source, destination: &str| BindMount {
        source,
        destination: destination.into(),
        read_only: false,
    };
    let message = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    let shm = if own_namespaces(pod).contains(&Namespace::Ipc) {
        paths.shm(uid)
    } else {
        "/dev/shm".into()
    };
    let files = [
        bind(shm, "/dev/shm"),
        bind(paths.hosts(uid), "/etc/hosts"),
        bind(paths.hostname(uid), "/etc/hostname"),
        bind(paths.resolv_conf(uid), "/etc/resolv.conf"),
        bind(
            paths.termination_log(uid, &container.name, attempt),
            message,
        ),
    ];
    // What the pod mounts at the same place is what it wants to see there.
    for file in files {
        if !list
            .iter()
            .any(|mount| mount.destination == file.destination)
        {
            list.push(file);
        }
    }
    Ok(list)
}

/// How readily the kernel kills a container when memory runs out: the less of the node it asked for, the sooner.
fn oom_score_adj(qos: QosClass, memory_request: Option<f64>, node_memory: f64) -> i32 {
    match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share = memory_request.unwrap_or(0.0) / node_memory.max(1.0);
            ((1000.0 - 1000.0 * share) as i32).clamp(3, 999)
        }
    }
}

fn security(pod: &Pod, container: &Container) -> Security {
    let own: SecurityContext = container.security_context.clone().unwrap_or_default();
    let of_pod: PodSecurityContext = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.clone())
        .unwrap_or_default();
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.unwrap_or_default();
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile);
    Security {
        user: number(own.run_as_user.or(of_pod.run_as_user)),
        group: number(own.run_as_group.or(of_pod.run_as_group)),
        supplemental_groups: of_pod
            .supplemental_groups
            .into_iter()
            .flatten()
            .chain(of_pod.fs_group)
            .filter_map(|group| number(Some(group)))
            .collect(),
        run_as_non_root: own
            .run_as_non_root
            .or(of_pod.run_as_non_root)
            .unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        privileged,
        allow_privilege_escalation: own.allow_privilege_escalation.unwrap_or(true),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        default_seccomp: profile.is_some_and(|profile| profile.type_ == "RuntimeDefault"),
    }
}

/// The name under which a pod's directory may be removed: only a plain file name is ever joined to a path.
pub(super) fn is_plain_name(uid: &str) -> bool {
    let mut parts = Path::new(uid).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(std::path::Component::Normal(_)), None)
    )
}
