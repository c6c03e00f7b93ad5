//! The checks of the level `baseline`: what gives a pod power over its node.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    Container, HTTPGetAction, LifecycleHandler, Probe, SecurityContext, TCPSocketAction,
};

use super::checks::{Subject, Violation, containers, plural, quoted, setters};

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// In order of the versions that allowed them: so many in 1.0, 1.27, 1.29 and 1.32.
const SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Of what a container says of its security.
pub(super) fn context<T>(
    container: &Container,
    of: impl Fn(&SecurityContext) -> Option<T>,
) -> Option<T> {
    container.security_context.as_ref().and_then(of)
}

pub(super) fn capabilities(pod: &Subject<'_>) -> Option<Violation> {
    added_but(pod, &CAPABILITIES).map(|detail| Violation {
        reason: "non-default capabilities".to_owned(),
        detail,
    })
}

/// Which containers add capabilities that are not among these.
pub(super) fn added_but(pod: &Subject<'_>, allowed: &[&str]) -> Option<String> {
    let added = |container: &Container| -> BTreeSet<String> {
        let added = context(container, |c| c.capabilities.as_ref()?.add.clone());
        let added = added.unwrap_or_default().into_iter();
        added
            .filter(|name| !allowed.contains(&name.as_str()))
            .collect()
    };
    let bad = pod.those(|container| !added(container).is_empty());
    let all: BTreeSet<String> = pod.containers.iter().flat_map(added).collect();
    (!bad.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&bad),
            quoted(all)
        )
    })
}

pub(super) fn host_namespaces(pod: &Subject<'_>) -> Option<Violation> {
    let shared = [
        ("hostNetwork=true", pod.spec.host_network),
        ("hostPID=true", pod.spec.host_pid),
        ("hostIPC=true", pod.spec.host_ipc),
    ];
    let shared = shared.into_iter().filter(|(_, on)| *on == Some(true));
    let shared: Vec<&str> = shared.map(|(text, _)| text).collect();
    match shared.as_slice() {
        [] => None,
        some => Violation::new("host namespaces", some.join(", ")),
    }
}

pub(super) fn host_paths(pod: &Subject<'_>) -> Option<Violation> {
    let volumes = pod.spec.volumes.iter().flatten();
    let names: Vec<&str> = volumes
        .filter(|volume| volume.host_path.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    match names.len() {
        0 => None,
        count => {
            let word = plural("volume", "volumes", count);
            Violation::new("hostPath volumes", format!("{word} {}", quoted(names)))
        }
    }
}

pub(super) fn host_ports(pod: &Subject<'_>) -> Option<Violation> {
    let used = |container: &Container| -> BTreeSet<String> {
        let ports = container.ports.iter().flatten();
        let ports = ports.filter_map(|port| port.host_port.filter(|port| *port != 0));
        ports.map(|port| port.to_string()).collect()
    };
    let bad = pod.those(|container| !used(container).is_empty());
    let ports: BTreeSet<String> = pod.containers.iter().flat_map(used).collect();
    if bad.is_empty() {
        return None;
    }
    let ports: Vec<String> = ports.into_iter().collect();
    Violation::new(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers(&bad),
            plural("uses", "use", bad.len()),
            plural("hostPort", "hostPorts", ports.len()),
            ports.join(", ")
        ),
    )
}

pub(super) fn probe_hosts(pod: &Subject<'_>) -> Option<Violation> {
    let bad = pod.those(|container| !hosts(container).is_empty());
    let all: BTreeSet<String> = pod.containers.iter().flat_map(hosts).collect();
    if bad.is_empty() {
        return None;
    }
    let names: BTreeSet<&String> = bad.iter().collect();
    Violation::new(
        "probe or lifecycle host",
        format!(
            "{} {} {} {} {}",
            plural("container", "containers", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural(
                "probe or lifecycle host",
                "probe or lifecycle hosts",
                all.len()
            ),
            quoted(&all)
        ),
    )
}

/// The hosts that a container has others connect to.
fn hosts(container: &Container) -> Vec<String> {
    let of = |http: Option<&HTTPGetAction>, tcp: Option<&TCPSocketAction>| {
        let both = [
            http.and_then(|http| http.host.clone()),
            tcp.and_then(|tcp| tcp.host.clone()),
        ];
        both.into_iter().flatten().filter(|host| !host.is_empty())
    };
    let of_probe = |probe: &Probe| of(probe.http_get.as_ref(), probe.tcp_socket.as_ref());
    let of_hook = |hook: &LifecycleHandler| of(hook.http_get.as_ref(), hook.tcp_socket.as_ref());
    let probes = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
    ];
    let hooks = container.lifecycle.as_ref();
    let hooks = hooks.map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    let probes = probes.into_iter().flatten().flat_map(of_probe);
    let hooks = hooks.into_iter().flatten().flatten().flat_map(of_hook);
    probes.chain(hooks).collect()
}

pub(super) fn privileged(pod: &Subject<'_>) -> Option<Violation> {
    let bad = pod.those(|container| context(container, |c| c.privileged) == Some(true));
    match bad.as_slice() {
        [] => None,
        bad => Violation::new(
            "privileged",
            format!(
                "{} must not set securityContext.privileged=true",
                containers(bad)
            ),
        ),
    }
}

pub(super) fn proc_mount(pod: &Subject<'_>) -> Option<Violation> {
    let odd = |container: &Container| {
        let mount = context(container, |c| c.proc_mount.clone());
        mount.filter(|mount| mount != "Default")
    };
    let bad = pod.those(|container| odd(container).is_some());
    let values: BTreeSet<String> = pod.containers.iter().filter_map(odd).collect();
    if bad.is_empty() {
        return None;
    }
    Violation::new(
        "procMount",
        format!(
            "{} must not set securityContext.procMount to {}",
            containers(&bad),
            quoted(values)
        ),
    )
}

pub(super) fn sysctls(pod: &Subject<'_>) -> Option<Violation> {
    sysctls_but(pod, &SYSCTLS[..5])
}

pub(super) fn sysctls_27(pod: &Subject<'_>) -> Option<Violation> {
    sysctls_but(pod, &SYSCTLS[..6])
}

pub(super) fn sysctls_29(pod: &Subject<'_>) -> Option<Violation> {
    sysctls_but(pod, &SYSCTLS[..10])
}

pub(super) fn sysctls_32(pod: &Subject<'_>) -> Option<Violation> {
    sysctls_but(pod, &SYSCTLS)
}

fn sysctls_but(pod: &Subject<'_>, allowed: &[&str]) -> Option<Violation> {
    let all = pod.spec.security_context.iter();
    let all = all.flat_map(|context| context.sysctls.iter().flatten());
    let bad: Vec<&str> = all
        .map(|sysctl| sysctl.name.as_str())
        .filter(|name| !allowed.contains(name))
        .collect();
    match bad.as_slice() {
        [] => None,
        bad => Violation::new("forbidden sysctls", bad.join(", ")),
    }
}

pub(super) fn windows_host_process(pod: &Subject<'_>) -> Option<Violation> {
    let of_container =
        |c: &Container| context(c, |c| c.windows_options.as_ref()?.host_process) == Some(true);
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|c| c.windows_options.as_ref()?.host_process) == Some(true);
    let bad = pod.those(of_container);
    if !of_pod && bad.is_empty() {
        return None;
    }
    Violation::new(
        "hostProcess",
        format!(
            "{} must not set securityContext.windowsOptions.hostProcess=true",
            setters(of_pod, &bad)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    fn detail(check: fn(&Subject<'_>) -> Option<Violation>, pod: Value) -> String {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        check(&Subject::of_pod(&pod)).map_or(String::new(), |found| found.to_string())
    }

    fn contexts(of_pod: Value, of_containers: &[Value]) -> Value {
        let containers: Vec<Value> = of_containers
            .iter()
            .zip(["a", "b", "c"])
            .map(|(context, name)| json!({"name": name, "securityContext": context}))
            .collect();
        json!({"spec": {"securityContext": of_pod, "containers": containers}})
    }

    #[test]
    fn nodes_ports_and_namespaces_are_the_nodes() {
        let pod = json!({"spec": {
            "hostPID": true, "hostIPC": true,
            "containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2}]}],
            "initContainers": [{"name": "i", "ports": [{"containerPort": 1, "hostPort": 443}]}],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}],
        }});
        assert_eq!(
            detail(host_ports, pod.clone()),
            "hostPort (containers \"i\", \"a\" use hostPorts 443, 80)"
        );
        assert_eq!(
            detail(host_namespaces, pod.clone()),
            "host namespaces (hostPID=true, hostIPC=true)"
        );
        assert_eq!(detail(host_paths, pod), "hostPath volumes (volume \"v\")");
    }

    #[test]
    fn containers_do_not_look_behind_their_walls() {
        let contexts = contexts(
            json!({"windowsOptions": {"hostProcess": true}}),
            &[
                json!({"privileged": true, "procMount": "Unmasked"}),
                json!({"privileged": false, "procMount": "Default"}),
            ],
        );
        assert_eq!(
            detail(privileged, contexts.clone()),
            "privileged (container \"a\" must not set securityContext.privileged=true)"
        );
        assert_eq!(
            detail(proc_mount, contexts.clone()),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")"
        );
        assert_eq!(
            detail(windows_host_process, contexts),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)"
        );
    }

    #[test]
    fn probes_go_to_the_pod_itself() {
        let pod = json!({"spec": {"containers": [{
            "name": "a", "livenessProbe": {"httpGet": {"port": 1, "host": "10.0.0.1"}},
            "lifecycle": {"preStop": {"tcpSocket": {"port": 1, "host": "b"}}},
        }]}});
        assert_eq!(
            detail(probe_hosts, pod),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle hosts \"10.0.0.1\", \"b\")"
        );
    }
}
