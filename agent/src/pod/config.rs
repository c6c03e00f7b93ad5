//! A container's runtime config from its pod's spec. Pure, but for subPaths, which are pinned on the way.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, SecurityContext};

use super::app_armor::{self, Profile};
use super::env::expand;
use super::hooks;
use super::paths::Paths;
use super::spec::{PodView, QosClass, is_sidecar, request, spec_hash};
use super::sysctls;
use super::volumes;
use super::{resize, resources};
use crate::network::namespaces::Namespace;
use crate::runtime::{
    BindMount, ContainerConfig, Handler, NamespacePaths, Seccomp, Security, SelinuxLabel, Stdio,
    Users,
};

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

/// What a container is made from, besides the pod.
pub(super) struct Parts<'a> {
    pub(super) pod: &'a PodView,
    pub(super) container: &'a Container,
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) streak: u32,
    pub(super) env: Vec<(String, String)>,
    pub(super) paths: &'a Paths,
    /// Memory of the node in bytes, by which a request's weight is measured.
    pub(super) node_memory: f64,
    /// The name of the machine that it sees.
    pub(super) hostname: String,
    /// The process namespace that it joins.
    pub(super) processes: Option<PathBuf>,
    pub(super) seccomp: Seccomp,
    /// What the pod's RuntimeClass names.
    pub(super) handler: Option<Handler>,
    /// Whom its users are, if not the node's.
    pub(super) users: Option<Users>,
}

/// The config of a container.
pub(super) fn container(parts: Parts<'_>) -> Result<ContainerConfig, volumes::VolumeError> {
    let Parts {
        pod,
        container,
        id,
        attempt,
        streak,
        env,
        paths,
        node_memory,
        hostname,
        processes,
        seccomp,
        handler,
        users,
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
        id: id.clone(),
        pod: pod.id.clone(),
        name: container.name.clone(),
        attempt,
        streak,
        spec_hash: spec_hash(container),
        handler,
        image: Some(container.image.clone().unwrap_or_default()),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts: mounts(pod, container, attempt, &env, paths)?,
        namespaces: NamespacePaths {
            host_pid: pod.spec().host_pid.unwrap_or(false),
            pid: processes,
            net: path(Namespace::Net),
            ipc: path(Namespace::Ipc),
            uts: path(Namespace::Uts),
            users,
        },
        cgroup: paths.cgroup(uid, pod.qos()).join(id),
        resources: resources::of_container(pod, container),
        huge_pages: resources::huge_pages(container),
        given: resize::note(container),
        oom_score_adj: oom_score_adj(pod, container, node_memory),
        sysctls: sysctls::of(pod),
        security: security(pod, container, seccomp),
        env: with_hostname(env, pod, hostname),
        stdio: Stdio {
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
        },
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone()),
        hook_due: hooks::has_post_start(container),
    })
}

fn with_hostname(
    mut env: Vec<(String, String)>,
    pod: &PodView,
    hostname: String,
) -> Vec<(String, String)> {
    if !pod.host_network() && !env.iter().any(|(name, _)| name == "HOSTNAME") {
        env.insert(0, ("HOSTNAME".to_owned(), hostname));
    }
    env
}

fn mounts(
    pod: &PodView,
    container: &Container,
    attempt: u32,
    env: &[(String, String)],
    paths: &Paths,
) -> Result<Vec<BindMount>, volumes::VolumeError> {
    let uid = &pod.id.uid;
    let mut list = Vec::new();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let sub_path = volumes::sub_path(mount, env)?;
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
        let pin = paths
            .mounts(uid)
            .join(format!("subpath-{}-{at}", container.name));
        list.push(volumes::bind(
            volume,
            &root,
            mount,
            sub_path.as_deref(),
            pin,
        )?);
    }
    let bind = |source, destination: &str| BindMount {
        source,
        destination: destination.into(),
        ..BindMount::default()
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

/// Of containers that are killed last when memory runs out.
const KILLED_LAST: i32 = -997;

/// How readily the kernel kills a container when memory runs out: the less of the node it asked for, the sooner.
fn oom_score_adj(pod: &PodView, container: &Container, node_memory: f64) -> i32 {
    let class = pod.spec().priority_class_name.as_deref();
    if pod.is_critical() && class == Some("system-node-critical") {
        return KILLED_LAST;
    }
    match pod.qos() {
        QosClass::Guaranteed => KILLED_LAST,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let spare = pod.spare_request("memory");
            let asks = |container| request(container, "memory").unwrap_or(0.0) + spare;
            let least = pod.containers().iter().map(asks).fold(f64::MAX, f64::min);
            let own = match is_sidecar(container) {
                // It goes no sooner than those that it serves (KEP-753).
                true => asks(container).max(least),
                false => asks(container),
            };
            let share = own / node_memory.max(1.0);
            ((1000.0 - 1000.0 * share) as i32).clamp(3, 999)
        }
    }
}

/// What parts of a label are where nobody says otherwise: what container runtimes have.
const SELINUX: (&str, &str, &str, &str) = ("system_u", "system_r", "container_t", "s0");
/// The role and the type of what is in a container's file system.
const SELINUX_FILES: (&str, &str) = ("object_r", "container_file_t");

/// The container's own options go before its pod's, as a whole.
fn selinux(own: &SecurityContext, of_pod: &PodSecurityContext) -> Option<SelinuxLabel> {
    let options = own
        .se_linux_options
        .as_ref()
        .or(of_pod.se_linux_options.as_ref())?;
    let part = |said: &Option<String>, otherwise: &str| match said.as_deref() {
        None | Some("") => otherwise.to_owned(),
        Some(said) => said.to_owned(),
    };
    let (user, level) = (
        part(&options.user, SELINUX.0),
        part(&options.level, SELINUX.3),
    );
    let (role, kind) = (
        part(&options.role, SELINUX.1),
        part(&options.type_, SELINUX.2),
    );
    let (files_role, files_kind) = SELINUX_FILES;
    Some(SelinuxLabel {
        process: format!("{user}:{role}:{kind}:{level}"),
        files: format!("{user}:{files_role}:{files_kind}:{level}"),
    })
}

fn security(view: &PodView, container: &Container, seccomp: Seccomp) -> Security {
    let pod = &view.object;
    let own: SecurityContext = container.security_context.clone().unwrap_or_default();
    let of_pod: PodSecurityContext = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.clone())
        .unwrap_or_default();
    let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    let privileged = own.privileged.unwrap_or(false);
    let selinux = selinux(&own, &of_pod);
    let capabilities = own.capabilities.unwrap_or_default();
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
        strict_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        run_as_non_root: own
            .run_as_non_root
            .or(of_pod.run_as_non_root)
            .unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        privileged,
        allow_privilege_escalation: own.allow_privilege_escalation.unwrap_or(true),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        seccomp,
        app_armor: match app_armor::of(view, container) {
            Some(Profile::Localhost(name)) => Some(name),
            _ => None,
        },
        selinux,
    }
}
