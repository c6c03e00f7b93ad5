//! The checks of the level `baseline` of AppArmor, SELinux and seccomp: a pod is confined as its node confines pods.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, SELinuxOptions};

use super::baseline::context;
use super::checks::{Subject, Violation, plural, quoted, setters};

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

pub(super) fn app_armor(pod: &Subject<'_>) -> Option<Violation> {
    let allowed = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let of_container = |container: &Container| {
        let kind = context(container, |c| {
            Some(c.app_armor_profile.as_ref()?.type_.clone())
        });
        kind.filter(|kind| !allowed(kind))
    };
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|c| Some(c.app_armor_profile.as_ref()?.type_.clone()));
    let of_pod = of_pod.filter(|kind| !allowed(kind));
    let bad = pod.those(|container| of_container(container).is_some());
    let values = pod.containers.iter().filter_map(of_container);
    let values: BTreeSet<String> = values.chain(of_pod.clone()).collect();
    let noted = pod.annotations.into_iter().flatten();
    let noted: Vec<String> = noted
        .filter(|(key, value)| {
            let fine = matches!(value.as_str(), "" | "runtime/default");
            key.starts_with(APP_ARMOR) && !fine && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut who = setters(of_pod.is_some(), &bad);
    if !noted.is_empty() {
        let and = if who.is_empty() { "" } else { " and " };
        who = format!(
            "{who}{and}{}",
            plural("annotation", "annotations", noted.len())
        );
    }
    if who.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(noted).collect();
    let reason = plural(
        "forbidden AppArmor profile",
        "forbidden AppArmor profiles",
        values.len(),
    );
    Violation::new(
        reason,
        format!(
            "{who} must not set AppArmor profile type to {}",
            quoted(values)
        ),
    )
}

pub(super) fn selinux(pod: &Subject<'_>) -> Option<Violation> {
    selinux_but(
        pod,
        &["", "container_t", "container_init_t", "container_kvm_t"],
    )
}

pub(super) fn selinux_with_engine(pod: &Subject<'_>) -> Option<Violation> {
    let allowed = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    selinux_but(pod, &allowed)
}

fn selinux_but(pod: &Subject<'_>, allowed: &[&str]) -> Option<Violation> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let is_bad = |options: &SELinuxOptions| {
        !allowed.contains(&text(&options.type_).as_str())
            || !text(&options.user).is_empty()
            || !text(&options.role).is_empty()
    };
    let of_container =
        |container: &Container| context(container, |c| c.se_linux_options.clone()).filter(is_bad);
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod
        .and_then(|c| c.se_linux_options.clone())
        .filter(is_bad);
    let bad = pod.those(|container| of_container(container).is_some());
    let all: Vec<SELinuxOptions> = pod
        .containers
        .iter()
        .filter_map(of_container)
        .chain(of_pod.clone())
        .collect();
    if all.is_empty() {
        return None;
    }
    let types: BTreeSet<String> = all.iter().map(|options| text(&options.type_)).collect();
    let types: Vec<String> = types
        .into_iter()
        .filter(|kind| !allowed.contains(&kind.as_str()))
        .collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        let word = plural("type", "types", types.len());
        data.push(format!("{word} {}", quoted(types)));
    }
    if all.iter().any(|options| !text(&options.user).is_empty()) {
        data.push("user may not be set".to_owned());
    }
    if all.iter().any(|options| !text(&options.role).is_empty()) {
        data.push("role may not be set".to_owned());
    }
    Violation::new(
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            setters(of_pod.is_some(), &bad),
            data.join("; ")
        ),
    )
}

/// Before 1.19 profiles were annotations.
pub(super) fn seccomp_annotations(pod: &Subject<'_>) -> Option<Violation> {
    let names = pod
        .containers
        .iter()
        .map(|c| format!("{SECCOMP_OF_CONTAINER}{}", c.name));
    let names = names.chain([SECCOMP_OF_POD.to_owned()]);
    let bad: BTreeSet<String> = names
        .filter_map(|name| {
            let value = pod.annotations?.get(&name)?;
            let fine = matches!(value.as_str(), "runtime/default" | "docker/default");
            let fine = fine || value.starts_with("localhost/");
            (!fine).then(|| format!("{name}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    let all: Vec<String> = bad.into_iter().collect();
    Violation::new(
        "seccompProfile",
        format!("forbidden {word} {}", all.join(", ")),
    )
}

pub(super) fn seccomp(pod: &Subject<'_>) -> Option<Violation> {
    let allowed = |kind: &String| matches!(kind.as_str(), "RuntimeDefault" | "Localhost");
    let of_container = |container: &Container| {
        let kind = context(container, |c| {
            Some(c.seccomp_profile.as_ref()?.type_.clone())
        });
        kind.filter(|kind| !allowed(kind))
    };
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|c| Some(c.seccomp_profile.as_ref()?.type_.clone()));
    let of_pod = of_pod.filter(|kind| !allowed(kind));
    let bad = pod.those(|container| of_container(container).is_some());
    let values = pod.containers.iter().filter_map(of_container);
    let values: BTreeSet<String> = values.chain(of_pod.clone()).collect();
    if values.is_empty() {
        return None;
    }
    Violation::new(
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters(of_pod.is_some(), &bad),
            quoted(values)
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
    fn profiles_are_the_runtimes_or_the_nodes() {
        let profile = |kind: &str| json!({"seccompProfile": {"type": kind}, "appArmorProfile": {"type": kind}});
        let odd = contexts(
            profile("Unconfined"),
            &[
                profile("Unconfined"),
                profile("Localhost"),
                profile("Unconfined"),
            ],
        );
        assert_eq!(
            detail(seccomp, odd.clone()),
            "seccompProfile (pod and containers \"a\", \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")"
        );
        assert_eq!(
            detail(app_armor, odd),
            "forbidden AppArmor profile (pod and containers \"a\", \"c\" must not set AppArmor profile type to \"Unconfined\")"
        );
        let noted = json!({"metadata": {"annotations": {
            "container.apparmor.security.beta.kubernetes.io/a": "unconfined",
            "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
        }}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(
            detail(app_armor, noted.clone()),
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/a=\\\"unconfined\\\"\")"
        );
        assert_eq!(
            detail(seccomp_annotations, noted),
            "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
        );
    }

    #[test]
    fn selinux_is_left_to_the_node() {
        let options =
            |kind: &str, user: &str| json!({"seLinuxOptions": {"type": kind, "user": user}});
        let odd = contexts(
            json!({}),
            &[options("spc_t", "root"), options("container_t", "")],
        );
        assert_eq!(
            detail(selinux, odd),
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)"
        );
        let engine = contexts(options("container_engine_t", ""), &[]);
        assert!(detail(selinux, engine.clone()).starts_with("seLinuxOptions (pod set"));
        assert_eq!(detail(selinux_with_engine, engine), "");
    }
}
