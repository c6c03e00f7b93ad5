//! The checks of the level `restricted`: what a pod that wants no more than it needs says of itself.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Volume};
use serde_json::Value;

use super::baseline::{added_but, context};
use super::checks::{Subject, Violation, containers, plural, quoted, setters};
use super::profiles;

const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub(super) fn escalation(pod: &Subject<'_>) -> Option<Violation> {
    let may = |c: &Container| context(c, |c| c.allow_privilege_escalation) != Some(false);
    match pod.those(may).as_slice() {
        [] => None,
        bad => Violation::new(
            "allowPrivilegeEscalation != false",
            format!(
                "{} must set securityContext.allowPrivilegeEscalation=false",
                containers(bad)
            ),
        ),
    }
}

pub(super) fn escalation_but_windows(pod: &Subject<'_>) -> Option<Violation> {
    (!pod.is_windows()).then(|| escalation(pod))?
}

pub(super) fn capabilities(pod: &Subject<'_>) -> Option<Violation> {
    let keeps = pod.those(|container| {
        let dropped = context(container, |c| c.capabilities.as_ref()?.drop.clone());
        !dropped.iter().flatten().any(|name| name == "ALL")
    });
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeps)
        ));
    }
    details.extend(added_but(pod, &["NET_BIND_SERVICE"]));
    match details.as_slice() {
        [] => None,
        some => Violation::new("unrestricted capabilities", some.join("; ")),
    }
}

pub(super) fn capabilities_but_windows(pod: &Subject<'_>) -> Option<Violation> {
    (!pod.is_windows()).then(|| capabilities(pod))?
}

pub(super) fn volumes(pod: &Subject<'_>) -> Option<Violation> {
    let kind = |volume: &Volume| -> Option<String> {
        let fields = match serde_json::to_value(volume) {
            Ok(Value::Object(fields)) => fields,
            _ => return None,
        };
        let source = fields.into_iter().map(|(field, _)| field);
        let source = source.filter(|field| field != "name").find(|_| true);
        let source = source.unwrap_or_else(|| "unknown".to_owned());
        (!VOLUMES.contains(&source.as_str())).then_some(source)
    };
    let all = pod.spec.volumes.iter().flatten();
    let bad: Vec<(&str, String)> = all
        .filter_map(|volume| Some((volume.name.as_str(), kind(volume)?)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let names = bad.iter().map(|(name, _)| *name);
    let kinds: BTreeSet<&String> = bad.iter().map(|(_, kind)| kind).collect();
    Violation::new(
        "restricted volume types",
        format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", bad.len()),
            quoted(names),
            plural("uses", "use", bad.len()),
            plural(
                "restricted volume type",
                "restricted volume types",
                kinds.len()
            ),
            quoted(&kinds)
        ),
    )
}

pub(super) fn run_as_non_root(pod: &Subject<'_>) -> Option<Violation> {
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|context| context.run_as_non_root);
    let of = |container: &Container| context(container, |c| c.run_as_non_root);
    let bad = pod.those(|container| of(container) == Some(false));
    let who = setters(of_pod == Some(false), &bad);
    if !who.is_empty() {
        return Violation::new(
            "runAsNonRoot != true",
            format!("{who} must not set securityContext.runAsNonRoot=false"),
        );
    }
    let silent = pod.those(|container| of(container).is_none() && of_pod != Some(true));
    match silent.as_slice() {
        [] => None,
        silent => Violation::new(
            "runAsNonRoot != true",
            format!(
                "pod or {} must set securityContext.runAsNonRoot=true",
                containers(silent)
            ),
        ),
    }
}

pub(super) fn run_as_user(pod: &Subject<'_>) -> Option<Violation> {
    let of_pod = pod.spec.security_context.as_ref();
    let of_pod = of_pod.and_then(|context| context.run_as_user) == Some(0);
    let bad = pod.those(|container| context(container, |c| c.run_as_user) == Some(0));
    match setters(of_pod, &bad).as_str() {
        "" => None,
        who => Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0")),
    }
}

pub(super) fn seccomp(pod: &Subject<'_>) -> Option<Violation> {
    if let Some(found) = profiles::seccomp(pod) {
        return Some(found);
    }
    let of_pod = pod.spec.security_context.as_ref();
    let said = of_pod.is_some_and(|context| context.seccomp_profile.is_some());
    let silent = |container: &Container| {
        !said && context(container, |c| c.seccomp_profile.clone()).is_none()
    };
    match pod.those(silent).as_slice() {
        [] => None,
        silent => Violation::new(
            "seccompProfile",
            format!(
                "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
                containers(silent)
            ),
        ),
    }
}

pub(super) fn seccomp_but_windows(pod: &Subject<'_>) -> Option<Violation> {
    (!pod.is_windows()).then(|| seccomp(pod))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn detail(check: fn(&Subject<'_>) -> Option<Violation>, spec: Value) -> String {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        check(&Subject::of_pod(&pod)).map_or(String::new(), |found| found.to_string())
    }

    #[test]
    fn who_says_that_it_is_root_is_told_so() {
        let spec = json!({
            "securityContext": {"runAsNonRoot": false, "runAsUser": 0},
            "containers": [{"name": "a", "securityContext": {"runAsNonRoot": false, "runAsUser": 0}}, {"name": "b"}],
        });
        assert_eq!(
            detail(run_as_non_root, spec.clone()),
            "runAsNonRoot != true (pod and container \"a\" must not set securityContext.runAsNonRoot=false)"
        );
        assert_eq!(
            detail(run_as_user, spec),
            "runAsUser=0 (pod and container \"a\" must not set runAsUser=0)"
        );
    }

    #[test]
    fn a_container_may_say_what_the_pod_does_not() {
        let spec = json!({"containers": [
            {"name": "a", "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "Localhost"}}},
            {"name": "b"},
        ]});
        assert_eq!(
            detail(run_as_non_root, spec.clone()),
            "runAsNonRoot != true (pod or container \"b\" must set securityContext.runAsNonRoot=true)"
        );
        assert!(
            detail(seccomp, spec).starts_with("seccompProfile (pod or container \"b\" must set")
        );
    }

    #[test]
    fn capabilities_are_dropped_and_few_come_back() {
        let container = |name: &str, capabilities: Value| json!({"name": name, "securityContext": {"capabilities": capabilities}});
        let spec = json!({"containers": [
            container("a", json!({"drop": ["NET_RAW"]})),
            container("b", json!({"drop": ["ALL"], "add": ["CHOWN", "NET_BIND_SERVICE"]})),
        ]});
        assert_eq!(
            detail(capabilities, spec.clone()),
            "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; container \"b\" must not include \"CHOWN\" in securityContext.capabilities.add)"
        );
        let mut windows = spec;
        windows["os"] = json!({"name": "windows"});
        assert_eq!(detail(capabilities_but_windows, windows), "");
    }

    #[test]
    fn volumes_come_from_the_cluster() {
        let spec = json!({"containers": [], "volumes": [
            {"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "nfs": {"server": "s", "path": "/"}},
            {"name": "c", "secret": {"secretName": "s"}},
        ]});
        assert_eq!(
            detail(volumes, spec),
            "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")"
        );
    }
}
