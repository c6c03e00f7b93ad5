//! The process namespace that a pod's containers share: a container of one tiny program holds it, as its first process.
//!
//! It is a container like the others, so a new agent finds it, and an end or a leftover of it is dealt with as theirs. To the
//! plan it is a sidecar that comes before all and goes after all. No status shows it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;

use k8s_openapi::api::core::v1::{Container as ContainerSpec, PodSpec};

use super::config::own_namespaces;
use super::observed::Observed;
use super::paths::Paths;
use super::spec::{PodView, spec_hash};
use crate::network::namespaces::Namespace;
use crate::runtime::{
    BindMount, Container, ContainerConfig, Handler, NamespacePaths, Resources, Seccomp, Security,
    Stdio, Users,
};

/// What the container is called, as upstream calls that which holds a pod's namespaces. No spec can name one so.
pub(super) const NAME: &str = "POD";

/// The program, `holder/main.rs`: it waits, and nothing else.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holder"));
/// Where the container has it, which holds nothing else.
const PROGRAM_PATH: &str = "/holder";
/// User and group of no one; upstream's pause runs as the same.
const NOBODY: u32 = 65535;
/// Killing it ends every process of the pod, so it goes last; the score is upstream's for pause.
const OOM_SCORE_ADJ: i32 = -998;

/// The container as the plan sees it, for a pod whose containers share their processes.
pub(super) fn of(spec: &PodSpec) -> Option<ContainerSpec> {
    let shares = spec.share_process_namespace == Some(true) && spec.host_pid != Some(true);
    shares.then(|| ContainerSpec {
        name: NAME.to_owned(),
        restart_policy: Some("Always".to_owned()),
        ..ContainerSpec::default()
    })
}

/// Whether a container of this name is one.
pub(super) fn is_one(name: &str) -> bool {
    name == NAME
}

/// Whether containers of the pod have a process namespace to join, if they join any.
pub(super) fn is_ready(pod: &PodView, observed: &Observed) -> bool {
    pod.holder.is_none() || observed.latest(NAME).is_some_and(Container::is_running)
}

/// Whether a container was made to join a namespace that is no more. Its config names it by a process id, which another
/// process may have by now.
pub(super) fn is_outlived(container: &Container, pod: &PodView, observed: &Observed) -> bool {
    let holder = observed.latest(NAME).filter(|_| pod.holder.is_some());
    holder.is_some_and(|holder| holder.created_at > container.created_at)
}

/// Puts the program where [`config`] says that it is.
pub(super) fn install(paths: &Paths) -> io::Result<()> {
    let path = paths.holder();
    if fs::read(&path).is_ok_and(|known| known == PROGRAM) {
        return Ok(());
    }
    // Beside it first: what runs cannot be written, and a half must never run.
    let directory = path.parent().unwrap_or(&path);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(PROGRAM)?;
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o555))?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}

/// The container as the runtime is told of it: with what it runs, and whom its users are, where that is not the default.
pub(super) fn config(
    pod: &PodView,
    spec: &ContainerSpec,
    id: String,
    (attempt, streak): (u32, u32),
    (handler, users): (Option<Handler>, Option<Users>),
    paths: &Paths,
) -> ContainerConfig {
    let uid = &pod.id.uid;
    let own = own_namespaces(pod);
    let path = |namespace| own.contains(&namespace).then(|| paths.pin(namespace, uid));
    ContainerConfig {
        pod: pod.id.clone(),
        name: NAME.to_owned(),
        attempt,
        streak,
        spec_hash: spec_hash(spec),
        // The namespace's processes can reach what the first of them sees: that is this file, which none can change.
        image: None,
        handler,
        mounts: vec![BindMount {
            source: paths.holder(),
            destination: PROGRAM_PATH.into(),
            read_only: true,
            ..BindMount::default()
        }],
        command: vec![PROGRAM_PATH.to_owned()],
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        namespaces: NamespacePaths {
            host_pid: false,
            pid: None,
            net: path(Namespace::Net),
            ipc: path(Namespace::Ipc),
            uts: path(Namespace::Uts),
            users,
        },
        cgroup: paths.cgroup(uid, pod.qos()).join(&id),
        resources: Resources::LEAST,
        huge_pages: BTreeMap::new(),
        given: String::new(),
        oom_score_adj: OOM_SCORE_ADJ,
        sysctls: BTreeMap::new(),
        security: Security {
            user: Some(NOBODY),
            group: Some(NOBODY),
            strict_groups: true,
            read_only_root: true,
            drop_capabilities: vec!["ALL".to_owned()],
            seccomp: Seccomp::RuntimeDefault,
            ..Security::default()
        },
        stdio: Stdio::default(),
        stop_signal: None,
        hook_due: false,
        id,
    }
}
