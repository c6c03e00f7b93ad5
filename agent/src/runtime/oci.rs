//! The OCI runtime spec of a container, from its config, its image and the machine. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxIdMappingBuilder,
    LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources,
    LinuxResourcesBuilder, LinuxSeccomp, Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, User, UserBuilder,
};

use super::host::Host;
use super::image::{ImageConfig, signal_number};
use super::process::with_terminal;
use super::{
    ContainerConfig, ContainerUser, Propagation, Resources, RuntimeError, Seccomp, Security,
    seccomp,
};
use crate::network::namespaces::IdRange;

/// What containers may do as root by default; the set that Docker and containerd settled on.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability by its number in linux/capability.h.
const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Microseconds of the period that CPU quotas count in.
pub const CPU_PERIOD_US: u64 = 100_000;

/// Contents of the image's account files, for names in `USER`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// Text of `/etc/passwd`.
    pub passwd: String,
    /// Text of `/etc/group`.
    pub group: String,
}

/// The spec of a container, or why its config cannot be honoured.
pub fn spec(
    config: &ContainerConfig,
    image: &ImageConfig,
    accounts: &Accounts,
    host: &Host,
) -> Result<Spec, RuntimeError> {
    let args = command_line(config, image)?;
    let user = user(&config.security, &image.user, accounts)?;
    if config.namespaces.users.is_some() {
        within_range(&user)?;
    }
    let capabilities = capabilities(&config.security, host)?;
    let filter = filter(&config.security)?;
    if host.huge_pages.is_none() && !config.huge_pages.is_empty() {
        return Err(RuntimeError::Config(
            "huge pages cannot be limited on this node: it has no cgroup controller hugetlb".into(),
        ));
    }
    build(config, image, args, user, capabilities, filter, host)
        .map_err(|error| RuntimeError::Config(format!("no valid OCI spec: {error}")))
}

fn build(
    config: &ContainerConfig,
    image: &ImageConfig,
    args: Vec<String>,
    user: User,
    capabilities: HashSet<Capability>,
    filter: Option<LinuxSeccomp>,
    host: &Host,
) -> Result<Spec, OciSpecError> {
    let security = &config.security;
    // A user other than root keeps no capability across exec, unless it is ambient, which Kubernetes does not ask for.
    let held = if user.uid() == 0 {
        capabilities.clone()
    } else {
        HashSet::new()
    };
    let working_dir = [
        config.working_dir.as_deref(),
        Some(&image.working_dir),
        Some("/"),
    ]
    .into_iter()
    .flatten()
    .find(|dir| !dir.is_empty())
    .unwrap_or("/");
    let mut process = ProcessBuilder::default()
        .terminal(config.stdio.tty)
        .user(user)
        .args(args)
        .env(environment(config, image))
        .cwd(working_dir)
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities)
                .effective(held.clone())
                .permitted(held)
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .rlimits(Vec::new())
        .no_new_privileges(!security.allow_privilege_escalation && !security.privileged)
        .oom_score_adj(host.oom_score_adj(config.oom_score_adj))
        .build()?;

    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces(config, host)?)
        .cgroups_path(config.cgroup.clone())
        .resources(resources(config, host)?)
        .masked_paths(paths(MASKED_PATHS, security.privileged))
        .readonly_paths(paths(READ_ONLY_PATHS, security.privileged));
    if let Some(filter) = filter {
        linux = linux.seccomp(filter);
    }
    if let Some(users) = &config.namespaces.users {
        let ids = LinuxIdMappingBuilder::default()
            .container_id(0_u32)
            .host_id(users.ids.first)
            .size(IdRange::SIZE)
            .build()?;
        linux = linux.uid_mappings([ids]).gid_mappings([ids]);
    }
    if !config.sysctls.is_empty() {
        let all = config.sysctls.iter();
        let all = all.map(|(name, value)| (name.clone(), value.clone()));
        linux = linux.sysctl(all.collect::<HashMap<_, _>>());
    }

    // Nothing reaches a mount across a root that lets nothing through.
    let propagations = config.mounts.iter().map(|mount| mount.propagation);
    match propagations.max().unwrap_or_default() {
        Propagation::None => {}
        Propagation::FromNode => linux = linux.rootfs_propagation("rslave"),
        Propagation::Both => linux = linux.rootfs_propagation("rshared"),
    }

    if !security.privileged {
        process.set_apparmor_profile(security.app_armor.clone());
    }
    let label = security.selinux.as_ref();
    if let Some(label) = label.filter(|_| host.selinux && !security.privileged) {
        process.set_selinux_label(Some(label.process.clone()));
        linux = linux.mount_label(label.files.clone());
    }
    if config.stdio.tty {
        with_terminal(&mut process);
    }
    let mut spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(security.read_only_root)
                .build()?,
        )
        .process(process)
        .mounts(mounts(config, host)?)
        .linux(linux.build()?)
        .build()?;
    // The builder's default names a host; ours is set once, in the namespace that the pod's containers share.
    spec.set_hostname(None);
    Ok(spec)
}

/// A user namespace has no more users and groups than so many.
fn within_range(user: &User) -> Result<(), RuntimeError> {
    let groups = user.additional_gids().iter().flatten().copied();
    let mut all = [user.uid(), user.gid()].into_iter().chain(groups);
    match all.find(|id| *id >= IdRange::SIZE) {
        None => Ok(()),
        Some(id) => Err(RuntimeError::Config(format!(
            "user or group {id} is not in the pod's user namespace, which has 0 to {}",
            IdRange::SIZE - 1
        ))),
    }
}

/// What the container's system calls are filtered with; nothing holds back a privileged one.
fn filter(security: &Security) -> Result<Option<LinuxSeccomp>, RuntimeError> {
    let invalid = |error: &dyn std::error::Error| {
        RuntimeError::Config(format!("no valid seccomp profile: {error}"))
    };
    match &security.seccomp {
        _ if security.privileged => Ok(None),
        Seccomp::Unconfined => Ok(None),
        Seccomp::RuntimeDefault => {
            let profile = seccomp::default_profile(&security.add_capabilities);
            profile.map(Some).map_err(|error| invalid(&error))
        }
        Seccomp::Profile(text) => serde_json::from_str(text).map_err(|error| invalid(&error)),
    }
}

fn command_line(
    config: &ContainerConfig,
    image: &ImageConfig,
) -> Result<Vec<String>, RuntimeError> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        // The image's arguments belong to the entrypoint that is replaced.
        (false, _) => (&config.command, &config.args),
    };
    let line: Vec<String> = command.iter().chain(args).cloned().collect();
    if line.is_empty() {
        return Err(RuntimeError::Config(
            "no command specified: neither the container nor its image names one".into(),
        ));
    }
    Ok(line)
}

/// The image's environment with the container's on top; the last value of a name wins, at the place of its first.
fn environment(config: &ContainerConfig, image: &ImageConfig) -> Vec<String> {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let inherited = image.env.iter().filter_map(|entry| entry.split_once('='));
    let own = config
        .env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let mut merged: Vec<(&str, &str)> = vec![("PATH", PATH)];
    for (name, value) in inherited.chain(own) {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => merged.push((name, value)),
        }
    }
    merged
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn user(security: &Security, of_image: &str, accounts: &Accounts) -> Result<User, RuntimeError> {
    let (name, group) = match of_image.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (of_image, None),
    };
    let (uid, home_gid) = match security.user {
        Some(uid) => (
            uid,
            account(&accounts.passwd, &uid.to_string()).map(|entry| entry.1),
        ),
        None if name.is_empty() => (0, account(&accounts.passwd, "0").map(|entry| entry.1)),
        None => match (name.parse::<u32>(), account(&accounts.passwd, name)) {
            (Ok(uid), entry) => (uid, entry.map(|entry| entry.1)),
            (Err(_), Some((uid, gid))) => (uid, Some(gid)),
            (Err(_), None) => {
                return Err(RuntimeError::Config(format!(
                    "the image's user {name:?} is not in its /etc/passwd; set runAsUser to a number"
                )));
            }
        },
    };
    // The group of the image's USER only counts when its user does.
    let image_gid = match (security.user, group) {
        (None, Some(group)) if !group.is_empty() => Some(match group.parse::<u32>() {
            Ok(gid) => gid,
            Err(_) => account(&accounts.group, group).map(|entry| entry.0).ok_or_else(|| {
                RuntimeError::Config(format!(
                    "the image's group {group:?} is not in its /etc/group; set runAsGroup to a number"
                ))
            })?,
        }),
        _ => None,
    };
    let gid = security.group.or(image_gid).or(home_gid).unwrap_or(0);
    if security.run_as_non_root {
        if security.user.is_none() && !name.is_empty() && name.parse::<u32>().is_err() {
            return Err(RuntimeError::Config(format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
            )));
        }
        if uid == 0 {
            return Err(RuntimeError::Config(
                "container has runAsNonRoot and image will run as root".into(),
            ));
        }
    }
    let mut groups: BTreeSet<u32> = security.supplemental_groups.iter().copied().collect();
    groups.insert(gid);
    if !security.strict_groups {
        groups.extend(memberships(accounts, uid));
    }
    UserBuilder::default()
        .uid(uid)
        .gid(gid)
        .additional_gids(groups.into_iter().collect::<Vec<_>>())
        .build()
        .map_err(|error| RuntimeError::Config(error.to_string()))
}

/// The third and fourth field of the line of `/etc/passwd` or `/etc/group` whose name or id is `wanted`. A group has no
/// fourth number; 0 stands for it.
fn account(file: &str, wanted: &str) -> Option<(u32, u32)> {
    file.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let id = fields.get(2)?;
        if fields.first() != Some(&wanted) && *id != wanted {
            return None;
        }
        let second = fields
            .get(3)
            .and_then(|field| field.parse().ok())
            .unwrap_or(0);
        Some((id.parse().ok()?, second))
    })
}

/// The groups whose lines in the image's `/etc/group` name this user.
fn memberships(accounts: &Accounts, uid: u32) -> impl Iterator<Item = u32> {
    let user = accounts.passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    });
    accounts.group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        let mut members = fields.next()?.split(',');
        members
            .any(|member| Some(member.trim()) == user)
            .then_some(gid)
    })
}

/// Whom the first process of a container with this spec runs as.
pub fn user_of(spec: &Spec) -> ContainerUser {
    let user = spec
        .process()
        .as_ref()
        .map(|process| process.user().clone());
    let user = user.unwrap_or_default();
    ContainerUser {
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
    }
}

/// The signal that asks a container to stop: its own, or else its image's.
pub fn stop_signal(config: &ContainerConfig, image: &ImageConfig) -> Result<i32, RuntimeError> {
    let Some(name) = &config.stop_signal else {
        return Ok(image.stop_signal());
    };
    signal_number(name)
        .ok_or_else(|| RuntimeError::Config(format!("lifecycle.stopSignal: {name:?} is no signal")))
}

/// Whether [`spec`] needs to look at the image's account files.
pub fn needs_accounts(security: &Security, image: &ImageConfig) -> bool {
    if !security.strict_groups {
        return true;
    }
    let plain = |text: &str| text.is_empty() || text.parse::<u32>().is_ok();
    let (name, group) = image.user.split_once(':').unwrap_or((&image.user, ""));
    match security.user {
        Some(_) => security.group.is_none(),
        None => !(plain(name) && plain(group) && (name.is_empty() || !group.is_empty())),
    }
}

fn capabilities(security: &Security, host: &Host) -> Result<HashSet<Capability>, RuntimeError> {
    // What this process does not have itself, nobody can hand on.
    let available: HashSet<Capability> = ALL_CAPABILITIES
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| host.capabilities & (1 << bit) != 0)
        .map(|(_, capability)| capability)
        .collect();
    if security.privileged {
        return Ok(available);
    }
    let named = |name: &String| {
        parse_capability(name).ok_or_else(|| {
            RuntimeError::Config(format!(
                "securityContext.capabilities: {name:?} is not known"
            ))
        })
    };
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let mut set: HashSet<Capability> = DEFAULT_CAPABILITIES.into_iter().collect();
    if security.add_capabilities.iter().any(is_all) {
        set.extend(&available);
    }
    if security.drop_capabilities.iter().any(is_all) {
        set.clear();
    }
    for name in security
        .add_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        let capability = named(name)?;
        if !available.contains(&capability) {
            return Err(RuntimeError::Config(format!(
                "securityContext.capabilities: this node does not have {name} to give"
            )));
        }
        set.insert(capability);
    }
    for name in security
        .drop_capabilities
        .iter()
        .filter(|name| !is_all(name))
    {
        set.remove(&named(name)?);
    }
    set.retain(|capability| available.contains(capability));
    Ok(set)
}

fn parse_capability(name: &str) -> Option<Capability> {
    let upper = name.to_uppercase();
    let name = format!("CAP_{}", upper.strip_prefix("CAP_").unwrap_or(&upper));
    serde_json::from_value(serde_json::Value::String(name)).ok()
}

fn namespaces(config: &ContainerConfig, host: &Host) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    let join = |kind, path: &PathBuf| {
        LinuxNamespaceBuilder::default()
            .typ(kind)
            .path(path.clone())
            .build()
    };
    let paths = &config.namespaces;
    let mut list = vec![new(LinuxNamespaceType::Mount)?];
    if let Some(users) = &paths.users {
        list.push(join(LinuxNamespaceType::User, &users.namespace)?);
    }
    match &paths.pid {
        // runc cannot join the one that it is in.
        _ if paths.host_pid => {}
        Some(path) => list.push(join(LinuxNamespaceType::Pid, path)?),
        None => list.push(new(LinuxNamespaceType::Pid)?),
    }
    for (kind, path) in [
        (LinuxNamespaceType::Network, &paths.net),
        (LinuxNamespaceType::Ipc, &paths.ipc),
        (LinuxNamespaceType::Uts, &paths.uts),
    ] {
        if let Some(path) = path {
            list.push(join(kind, path)?);
        }
    }
    // With v1 hierarchies the container reads its limits through the node's view, as everywhere.
    if host.unified_cgroups && !config.security.privileged {
        list.push(new(LinuxNamespaceType::Cgroup)?);
    }
    Ok(list)
}

fn mounts(config: &ContainerConfig, host: &Host) -> Result<Vec<Mount>, OciSpecError> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(source)
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let access = if config.security.privileged {
        "rw"
    } else {
        "ro"
    };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        )?,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?,
    ];
    if config.namespaces.net.is_none() && !host.unified_cgroups && config.security.privileged {
        // A privileged container of the host's network sees the node's own /sys.
        list.retain(|mount| !mount.destination().starts_with("/sys"));
        list.push(mount("/sys", "bind", "/sys", &["rbind", "rprivate"])?);
    }
    // Shallow destinations first, so that none hides a deeper one.
    let mut binds: Vec<_> = config.mounts.iter().collect();
    binds.sort_by_key(|bind| bind.destination.components().count());
    if !binds
        .iter()
        .any(|bind| bind.destination.as_os_str() == "/dev/shm")
    {
        list.push(mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        )?);
    }
    for bind in binds {
        let access = match (bind.read_only, bind.is_recursive) {
            (false, _) => "rw",
            (true, false) => "ro",
            (true, true) => "rro",
        };
        let propagation = match bind.propagation {
            Propagation::None => "rprivate",
            Propagation::FromNode => "rslave",
            Propagation::Both => "rshared",
        };
        let mut options = vec!["rbind", propagation, access];
        let barred = [
            (bind.no_exec, "noexec"),
            (bind.no_suid, "nosuid"),
            (bind.no_dev, "nodev"),
        ];
        options.extend(barred.iter().filter(|it| it.0).map(|it| it.1));
        list.push(mount(
            &bind.destination.to_string_lossy(),
            "bind",
            &bind.source.to_string_lossy(),
            &options,
        )?);
    }
    Ok(list)
}

fn resources(config: &ContainerConfig, host: &Host) -> Result<LinuxResources, OciSpecError> {
    let resources = LinuxResourcesBuilder::default()
        .devices(device_rules(config.security.privileged)?)
        .cpu(cpu(&config.resources)?)
        .memory(memory(&config.resources)?)
        .hugepage_limits(huge_pages(config, host)?);
    match unified(host) {
        unified if unified.is_empty() => resources.build(),
        unified => resources.unified(unified).build(),
    }
}

/// Device access: everything for a privileged container; for the rest nothing beyond what runc itself grants (null, zero,
/// full, random, urandom, tty, ptmx and terminals), and making nodes.
fn device_rules(privileged: bool) -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    Ok(vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(privileged)
            .access("rwm")
            .build()?,
    ])
}

/// The limits alone, for a container that runs.
pub(super) fn limits(resources: &Resources) -> Result<LinuxResources, OciSpecError> {
    LinuxResourcesBuilder::default()
        .cpu(cpu(resources)?)
        .memory(memory(resources)?)
        .build()
}

fn cpu(resources: &Resources) -> Result<oci_spec::runtime::LinuxCpu, OciSpecError> {
    let cpu = LinuxCpuBuilder::default().shares(resources.cpu_shares);
    match resources.cpu_quota_us {
        Some(quota) => cpu.quota(quota).period(CPU_PERIOD_US).build(),
        None => cpu.build(),
    }
}

fn memory(resources: &Resources) -> Result<oci_spec::runtime::LinuxMemory, OciSpecError> {
    match resources.memory_limit {
        Some(limit) => LinuxMemoryBuilder::default().limit(limit).build(),
        None => LinuxMemoryBuilder::default().build(),
    }
}

/// What only cgroup v2 can do: when memory runs out a container ends as a whole, and none of its memory is swapped out, as
/// upstream has both unless told otherwise.
fn unified(host: &Host) -> HashMap<String, String> {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let oom = host.unified_cgroups.then(|| set("memory.oom.group", "1"));
    let swap = host.limits_swap.then(|| set("memory.swap.max", "0"));
    oom.into_iter().chain(swap).collect()
}

/// The limits of huge pages: of each size that the machine has, and that it asks for. It gets none that it does not ask for.
fn huge_pages(
    config: &ContainerConfig,
    host: &Host,
) -> Result<Vec<LinuxHugepageLimit>, OciSpecError> {
    let all = host.huge_pages.iter().flatten().copied();
    let sizes: BTreeSet<u64> = all.chain(config.huge_pages.keys().copied()).collect();
    let limit = |size: u64| {
        let bytes = config.huge_pages.get(&size).copied().unwrap_or(0);
        LinuxHugepageLimitBuilder::default()
            .page_size(page_size(size))
            .limit(i64::try_from(bytes).unwrap_or(i64::MAX))
            .build()
    };
    sizes.into_iter().map(limit).collect()
}

/// As the kernel's cgroup files name it: `2MB`.
fn page_size(bytes: u64) -> String {
    let units = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    let whole = units
        .into_iter()
        .find(|(unit, _)| bytes.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{bytes}B"),
        |(unit, name)| format!("{}{name}", bytes / unit),
    )
}

fn paths(list: &[&str], privileged: bool) -> Vec<String> {
    if privileged {
        return Vec::new();
    }
    list.iter().map(|path| (*path).to_owned()).collect()
}

#[cfg(test)]
mod tests;
