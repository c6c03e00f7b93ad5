//! What a container's spec says for what it was asked for.

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::runtime::{Capability, LinuxNamespaceType, LinuxSeccompAction, LinuxSeccompOperator};

use super::super::{BindMount, NamespacePaths, PodRef, SelinuxLabel, Stdio};
use super::*;

fn host() -> Host {
    Host {
        oom_score_floor: None,
        unified_cgroups: false,
        limits_swap: false,
        capabilities: u64::MAX,
        boot_id: "boot".into(),
        huge_pages: Some(vec![1 << 30]),
        selinux: true,
        architecture: "amd64",
    }
}

fn config() -> ContainerConfig {
    ContainerConfig {
        id: "id".into(),
        pod: PodRef {
            uid: "u".into(),
            namespace: "n".into(),
            name: "p".into(),
        },
        name: "c".into(),
        attempt: 0,
        streak: 0,
        spec_hash: String::new(),
        handler: None,
        image: Some("i".into()),
        command: Vec::new(),
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        namespaces: NamespacePaths {
            net: Some("/run/netns/u".into()),
            ..NamespacePaths::default()
        },
        cgroup: "/pods/u/id".into(),
        resources: Resources {
            cpu_shares: 512,
            cpu_quota_us: Some(50_000),
            memory_limit: Some(1 << 20),
        },
        huge_pages: Default::default(),
        given: String::new(),
        oom_score_adj: 1000,
        sysctls: Default::default(),
        security: Security {
            allow_privilege_escalation: true,
            ..Security::default()
        },
        stdio: Stdio::default(),
        stop_signal: None,
        hook_due: false,
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["arg".into()],
        env: vec!["A=image".into(), "B=image".into()],
        ..ImageConfig::default()
    }
}

fn made(config: &ContainerConfig, image: &ImageConfig) -> Spec {
    spec(config, image, &Accounts::default(), &host()).unwrap()
}

fn refused(config: &ContainerConfig, image: &ImageConfig) -> String {
    spec(config, image, &Accounts::default(), &host())
        .unwrap_err()
        .to_string()
}

fn args(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().unwrap().args().clone().unwrap()
}

fn bounding(spec: &Spec) -> HashSet<Capability> {
    let process = spec.process().as_ref().unwrap();
    process
        .capabilities()
        .as_ref()
        .unwrap()
        .bounding()
        .clone()
        .unwrap()
}

#[test]
fn command_and_args_replace_those_of_the_image_as_kubernetes_says() {
    let mut config = config();
    assert_eq!(args(&made(&config, &image())), ["/entry", "arg"]);
    config.args = vec!["x".into()];
    assert_eq!(args(&made(&config, &image())), ["/entry", "x"]);
    config.command = vec!["/c".into()];
    assert_eq!(args(&made(&config, &image())), ["/c", "x"]);
    config.args.clear();
    assert_eq!(args(&made(&config, &image())), ["/c"]);
    config.command.clear();
    assert!(refused(&config, &ImageConfig::default()).contains("no command specified"));
}

#[test]
fn the_environment_of_the_container_wins() {
    let mut config = config();
    config.env = vec![("B".into(), "own".into()), ("C".into(), "own".into())];
    let spec = made(&config, &image());
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env[1..], ["A=image", "B=own", "C=own"]);
    assert!(env[0].starts_with("PATH="));
}

#[test]
fn users_are_found_by_number_and_by_name() {
    let accounts = Accounts {
        passwd: "root:x:0:0::/:/bin/sh\napp:x:1001:1002::/:/bin/sh\n".into(),
        group: "root:x:0:\nteam:x:1003:\n".into(),
    };
    for (of_image, of_spec, expected) in [
        ("", None, (0, 0)),
        ("app", None, (1001, 1002)),
        ("app:team", None, (1001, 1003)),
        ("5", None, (5, 0)),
        ("5:6", None, (5, 6)),
        ("app:team", Some(1001), (1001, 1002)),
        ("app", Some(7), (7, 0)),
    ] {
        let security = Security {
            user: of_spec,
            ..Security::default()
        };
        let user = user(&security, of_image, &accounts).unwrap();
        assert_eq!((user.uid(), user.gid()), expected, "{of_image} {of_spec:?}");
    }
    let mut config = config();
    config.security.run_as_non_root = true;
    assert!(refused(&config, &image()).contains("will run as root"));
}

#[test]
fn groups_of_the_image_count_unless_the_policy_is_strict() {
    let accounts = Accounts {
        passwd: "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n".into(),
        group: "app:x:1000:\nextra:x:50000:other,app\nothers:x:50001:other\nbroken\n".into(),
    };
    let groups = |user_id, strict_groups| {
        let security = Security {
            user: Some(user_id),
            group: Some(3000),
            supplemental_groups: vec![4000],
            strict_groups,
            ..Security::default()
        };
        let user = user(&security, "app", &accounts).unwrap();
        user.additional_gids().clone().unwrap()
    };
    assert_eq!(groups(1000, false), [3000, 4000, 50000]);
    assert_eq!(groups(1000, true), [3000, 4000]);
    assert_eq!(groups(7, false), [3000, 4000], "nobody knows this user");
}

#[test]
fn an_image_s_user_by_name_may_be_anybody() {
    let accounts = Accounts {
        passwd: "app:x:1000:1000::/:/bin/sh\n".into(),
        group: String::new(),
    };
    let security = Security {
        run_as_non_root: true,
        ..Security::default()
    };
    let error = user(&security, "app", &accounts).unwrap_err();
    assert_eq!(
        error.to_string(),
        "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root"
    );
    assert_eq!(user(&security, "1000", &accounts).unwrap().uid(), 1000);
}

#[test]
fn the_spec_s_stop_signal_comes_before_the_image_s() {
    let quits = ImageConfig {
        stop_signal: "SIGQUIT".into(),
        ..image()
    };
    let mut config = config();
    assert_eq!(stop_signal(&config, &quits).unwrap(), libc::SIGQUIT);
    config.stop_signal = Some("SIGUSR1".into());
    assert_eq!(stop_signal(&config, &quits).unwrap(), libc::SIGUSR1);
    config.stop_signal = Some("SIGNOT".into());
    assert!(stop_signal(&config, &quits).is_err());
}

#[test]
fn capabilities_are_added_and_dropped() {
    let mut config = config();
    assert_eq!(
        bounding(&made(&config, &image())).len(),
        DEFAULT_CAPABILITIES.len()
    );
    config.security.drop_capabilities = vec!["ALL".into()];
    config.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    let only = HashSet::from([Capability::NetBindService]);
    assert_eq!(bounding(&made(&config, &image())), only);
    config.security.add_capabilities = vec!["NONSENSE".into()];
    assert!(refused(&config, &image()).contains("NONSENSE"));
    config.security.privileged = true;
    assert_eq!(
        bounding(&made(&config, &image())).len(),
        ALL_CAPABILITIES.len()
    );
}

#[test]
fn what_the_machine_lacks_is_not_given() {
    let mut host = host();
    host.capabilities = 1;
    host.oom_score_floor = Some(0);
    let mut config = config();
    config.oom_score_adj = -997;
    let spec = super::spec(&config, &image(), &Accounts::default(), &host).unwrap();
    assert_eq!(bounding(&spec), HashSet::from([Capability::Chown]));
    assert_eq!(spec.process().as_ref().unwrap().oom_score_adj(), Some(0));
    config.security.add_capabilities = vec!["NET_ADMIN".into()];
    let error = super::spec(&config, &image(), &Accounts::default(), &host).unwrap_err();
    assert!(
        error.to_string().contains("does not have NET_ADMIN"),
        "{error}"
    );
}

#[test]
fn a_container_joins_the_namespaces_it_was_given_and_no_others() {
    let spec = made(&config(), &image());
    let linux = spec.linux().as_ref().unwrap();
    let list = linux.namespaces().clone().unwrap();
    let joined: Vec<_> = list
        .iter()
        .filter(|namespace| namespace.path().is_some())
        .collect();
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].typ(), LinuxNamespaceType::Network);
    assert_eq!(joined[0].path(), &Some(PathBuf::from("/run/netns/u")));
    assert!(
        !list
            .iter()
            .any(|namespace| namespace.typ() == LinuxNamespaceType::Ipc)
    );
    assert!(
        spec.hostname().is_none(),
        "the name is set in the shared namespace"
    );
}

#[test]
fn deeper_mounts_come_after_shallower_ones() {
    let mut config = config();
    let bind = |destination: &str, read_only| BindMount {
        source: "/src".into(),
        destination: destination.into(),
        read_only,
        no_exec: read_only,
        ..BindMount::default()
    };
    config.mounts = vec![bind("/a/b", true), bind("/a", false)];
    config.mounts.push(BindMount {
        is_recursive: true,
        propagation: Propagation::FromNode,
        ..bind("/c", true)
    });
    let spec = made(&config, &image());
    let mounts = spec.mounts().clone().unwrap();
    let at = |path: &str| mounts.iter().position(|m| m.destination() == path).unwrap();
    assert!(at("/a") < at("/a/b"));
    let has = |path, option: &str| {
        let options = mounts[at(path)].options().clone().unwrap();
        options.iter().any(|it| it == option)
    };
    assert!(has("/c", "rro") && has("/c", "rslave") && has("/a", "rprivate"));
    let linux = spec.linux().clone().unwrap();
    assert_eq!(linux.rootfs_propagation().as_deref(), Some("rslave"));
    for option in ["ro", "noexec"] {
        assert!(has("/a/b", option) && !has("/a", option), "{option}");
    }
    assert!(mounts.iter().any(|mount| mount.destination() == "/dev/shm"));
}

#[test]
fn privilege_escalation_and_system_calls_are_barred_when_asked() {
    let mut config = config();
    config.security.allow_privilege_escalation = false;
    config.security.seccomp = Seccomp::RuntimeDefault;
    let spec = made(&config, &image());
    assert_eq!(
        spec.process().as_ref().unwrap().no_new_privileges(),
        Some(true)
    );
    let filter = |spec: &Spec| spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
    let rules = |spec: &Spec, name: &str| {
        let calls = filter(spec).syscalls().clone().unwrap_or_default();
        let of = calls
            .into_iter()
            .filter(|call| call.names().iter().any(|it| it == name));
        of.collect::<Vec<_>>()
    };
    // Whether whatever arguments are allowed.
    let allows = |spec: &Spec, name: &str| {
        let mut rules = rules(spec, name).into_iter();
        rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none())
    };
    assert_eq!(
        (
            filter(&spec).default_action(),
            filter(&spec).default_errno_ret()
        ),
        (LinuxSeccompAction::ScmpActErrno, Some(1))
    );
    for name in [
        "openat",
        "futex",
        "execve",
        "epoll_wait",
        "ptrace",
        "chroot",
    ] {
        assert!(allows(&spec, name), "{name}");
    }
    for name in [
        "mount",
        "clone",
        "clone3",
        "reboot",
        "syslog",
        "socket",
        "personality",
        "io_uring_setup",
    ] {
        assert!(!allows(&spec, name), "{name}");
    }
    let first = |name: &str| {
        let rules = rules(&spec, name);
        let [only] = &rules[..] else {
            panic!("{rules:?}")
        };
        let arguments = only.args().clone().unwrap();
        (
            arguments[0].index(),
            arguments[0].value(),
            arguments[0].op(),
        )
    };
    assert_eq!(first("socket"), (0, 40, LinuxSeccompOperator::ScmpCmpNe));
    assert_eq!(
        first("clone"),
        (0, 0x7e02_0000, LinuxSeccompOperator::ScmpCmpMaskedEq)
    );
    assert_eq!(rules(&spec, "clone3")[0].errno_ret(), Some(38));
    assert_eq!(rules(&spec, "personality").len(), 5);

    // Who may mount has to be able to call it.
    config.security.add_capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
    let spec = made(&config, &image());
    for name in ["mount", "clone", "clone3", "setns"] {
        assert!(allows(&spec, name), "{name}");
    }
    assert!(!allows(&spec, "reboot"));

    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}"#;
    config.security.seccomp = Seccomp::Profile(profile.to_owned());
    let calls = filter(&made(&config, &image())).syscalls().clone().unwrap();
    assert_eq!(calls[0].names(), &["chmod".to_owned()]);
    config.security.seccomp = Seccomp::Profile("{}x".to_owned());
    assert!(super::spec(&config, &image(), &Accounts::default(), &host()).is_err());
    config.security.privileged = true;
    let spec = made(&config, &image());
    assert!(spec.linux().as_ref().unwrap().seccomp().is_none());
}

#[test]
fn a_container_is_confined_as_it_asks_where_the_kernel_can() {
    let mut config = config();
    config.security.app_armor = Some("own".into());
    config.security.selinux = Some(SelinuxLabel {
        process: "u:r:t:s0".into(),
        files: "u:object_r:f:s0".into(),
    });
    let labels = |spec: &Spec| {
        let process = spec.process().clone().unwrap();
        let files = spec.linux().as_ref().unwrap().mount_label().clone();
        (
            process.apparmor_profile().clone(),
            process.selinux_label().clone(),
            files,
        )
    };
    let (profile, process, files) = labels(&made(&config, &image()));
    assert_eq!(profile.as_deref(), Some("own"));
    assert_eq!(
        (process.as_deref(), files.as_deref()),
        (Some("u:r:t:s0"), Some("u:object_r:f:s0"))
    );
    let mut without = host();
    without.selinux = false;
    let spec = super::spec(&config, &image(), &Accounts::default(), &without).unwrap();
    assert_eq!(labels(&spec), (Some("own".into()), None, None));
    config.security.privileged = true;
    assert_eq!(labels(&made(&config, &image())), (None, None, None));
}

#[test]
fn huge_pages_are_those_that_are_asked_for() {
    let mut config = config();
    config.huge_pages = [(2 << 20, 4 << 20)].into();
    let spec = made(&config, &image());
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    let limits = resources.hugepage_limits().clone().unwrap();
    let limits: Vec<_> = limits
        .iter()
        .map(|it| (it.page_size().clone(), it.limit()))
        .collect();
    assert_eq!(limits, [("2MB".into(), 4 << 20), ("1GB".into(), 0)]);
    let mut without = host();
    without.huge_pages = None;
    let error = super::spec(&config, &image(), &Accounts::default(), &without).unwrap_err();
    assert!(
        error.to_string().contains("no cgroup controller hugetlb"),
        "{error}"
    );
}

#[test]
fn kernel_parameters_are_the_containers_namespaces() {
    let mut config = config();
    let parameter = ("net.ipv4.tcp_syncookies".to_owned(), "0".to_owned());
    config.sysctls = [parameter.clone()].into();
    let spec = made(&config, &image());
    let set = spec.linux().as_ref().unwrap().sysctl().clone().unwrap();
    assert_eq!(set, [parameter].into());
}

#[test]
fn on_cgroup_v2_a_container_ends_as_a_whole_and_none_of_it_is_swapped_out() {
    let unified = |unified_cgroups, limits_swap| {
        let host = Host {
            unified_cgroups,
            limits_swap,
            ..host()
        };
        let spec = spec(&config(), &image(), &Accounts::default(), &host).unwrap();
        let linux = spec.linux().clone().unwrap();
        linux.resources().clone().unwrap().unified().clone()
    };
    assert_eq!(unified(false, false), None);
    let oom = ("memory.oom.group".to_owned(), "1".to_owned());
    assert_eq!(unified(true, false), Some([oom.clone()].into()));
    let swap = ("memory.swap.max".to_owned(), "0".to_owned());
    assert_eq!(unified(true, true), Some([oom, swap].into()));
}
