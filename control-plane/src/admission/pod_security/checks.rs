//! What pods are judged by: the checks in upstream's order and words.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec, PodTemplateSpec};

use super::levels::{Level, Standard, Version};
use super::{baseline, profiles, restricted};

/// One thing that a pod does and may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(reason: impl Into<String>, detail: impl Into<String>) -> Option<Self> {
        Some(Violation {
            reason: reason.into(),
            detail: detail.into(),
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail.as_str() {
            "" => f.write_str(&self.reason),
            detail => write!(f, "{} ({detail})", self.reason),
        }
    }
}

/// A pod, or what will become one.
pub(super) struct Subject<'a> {
    pub(super) annotations: Option<&'a BTreeMap<String, String>>,
    pub(super) spec: Cow<'a, PodSpec>,
    /// All containers, those that come first before the others.
    pub(super) containers: Vec<Container>,
}

impl<'a> Subject<'a> {
    pub(super) fn of_pod(pod: &'a Pod) -> Self {
        Self::new(pod.metadata.annotations.as_ref(), pod.spec.as_ref())
    }

    pub(super) fn of_template(template: &'a PodTemplateSpec) -> Self {
        let metadata = template.metadata.as_ref();
        let annotations = metadata.and_then(|metadata| metadata.annotations.as_ref());
        Self::new(annotations, template.spec.as_ref())
    }

    fn new(annotations: Option<&'a BTreeMap<String, String>>, spec: Option<&'a PodSpec>) -> Self {
        let spec = spec.map_or_else(|| Cow::Owned(PodSpec::default()), Cow::Borrowed);
        let init = spec.init_containers.iter().flatten().cloned();
        let debug = spec.ephemeral_containers.iter().flatten();
        let debug = debug.filter_map(as_container);
        let containers = init.chain(spec.containers.iter().cloned()).chain(debug);
        let containers = containers.collect();
        Subject {
            annotations,
            spec,
            containers,
        }
    }

    /// Names of the containers of which it holds.
    pub(super) fn those(&self, holds: impl Fn(&Container) -> bool) -> Vec<String> {
        let those = self.containers.iter().filter(|container| holds(container));
        those.map(|container| container.name.clone()).collect()
    }

    pub(super) fn is_windows(&self) -> bool {
        let os = self.spec.os.as_ref();
        os.is_some_and(|os| os.name == "windows")
    }
}

/// Ephemeral containers are containers with a field more.
fn as_container(ephemeral: &EphemeralContainer) -> Option<Container> {
    let fields = serde_json::to_value(ephemeral).ok()?;
    serde_json::from_value(fields).ok()
}

/// A check of a level, from a version on; a later version of the same check takes the place of an earlier.
struct Check {
    since: u32,
    run: fn(&Subject<'_>) -> Option<Violation>,
}

const fn since(minor: u32, run: fn(&Subject<'_>) -> Option<Violation>) -> Check {
    Check { since: minor, run }
}

/// Each row is one check in its versions.
const BASELINE: [&[Check]; 12] = [
    &[since(0, profiles::app_armor)],
    &[since(0, baseline::capabilities)],
    &[since(0, baseline::host_namespaces)],
    &[since(0, baseline::host_paths)],
    &[since(0, baseline::host_ports)],
    &[since(34, baseline::probe_hosts)],
    &[since(0, baseline::privileged)],
    &[since(0, baseline::proc_mount)],
    &[
        since(0, profiles::selinux),
        since(31, profiles::selinux_with_engine),
    ],
    &[
        since(0, profiles::seccomp_annotations),
        since(19, profiles::seccomp),
    ],
    &[
        since(0, baseline::sysctls),
        since(27, baseline::sysctls_27),
        since(29, baseline::sysctls_29),
        since(32, baseline::sysctls_32),
    ],
    &[since(0, baseline::windows_host_process)],
];

/// Each row is one check in its versions, and which row of the baseline it takes the place of.
const RESTRICTED: [(&[Check], Option<usize>); 6] = [
    (
        &[
            since(8, restricted::escalation),
            since(25, restricted::escalation_but_windows),
        ],
        None,
    ),
    (
        &[
            since(22, restricted::capabilities),
            since(25, restricted::capabilities_but_windows),
        ],
        Some(1),
    ),
    (&[since(0, restricted::volumes)], Some(3)),
    (&[since(0, restricted::run_as_non_root)], None),
    (&[since(23, restricted::run_as_user)], None),
    (
        &[
            since(19, restricted::seccomp),
            since(25, restricted::seccomp_but_windows),
        ],
        Some(9),
    ),
];

/// The check of a row that holds in a version.
fn current(row: &[Check], version: Version) -> Option<&Check> {
    let holds = |check: &&Check| Version::Minor(check.since) <= version;
    row.iter().rev().find(holds)
}

/// What the pod violates of a standard.
pub(super) fn violations(pod: &Subject<'_>, standard: Standard) -> Vec<Violation> {
    let Standard { level, version } = standard;
    if level == Level::Privileged {
        return Vec::new();
    }
    let mut stricter: Vec<&Check> = Vec::new();
    let mut replaced = BTreeSet::new();
    if level == Level::Restricted {
        for (row, replaces) in &RESTRICTED {
            if let Some(check) = current(row, version) {
                stricter.push(check);
                replaced.extend(*replaces);
            }
        }
    }
    let kept = BASELINE.iter().enumerate();
    let kept = kept.filter(|(index, _)| !replaced.contains(index));
    let kept = kept.filter_map(|(_, row)| current(row, version));
    kept.chain(stricter)
        .filter_map(|check| (check.run)(pod))
        .collect()
}

/// One word or the other.
pub(super) fn plural(one: &'static str, more: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { more }
}

/// `"a", "b"`
pub(super) fn quoted<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let quoted = names.into_iter().map(|name| format!("{:?}", name.as_ref()));
    quoted.collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`
pub(super) fn containers(names: &[String]) -> String {
    let word = plural("container", "containers", names.len());
    format!("{word} {}", quoted(names))
}

/// The pod, its containers or both, as who sets what they may not.
pub(super) fn setters(pod: bool, names: &[String]) -> String {
    let pod = pod.then(|| "pod".to_owned());
    let containers = (!names.is_empty()).then(|| containers(names));
    let all: Vec<String> = pod.into_iter().chain(containers).collect();
    all.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(spec: Value, level: Level, version: Version) -> Vec<String> {
        let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let found = violations(&Subject::of_pod(&pod), Standard { level, version });
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let plain = json!({"containers": [{"name": "nginx"}]});
        assert!(found(plain.clone(), Level::Baseline, Version::Latest).is_empty());
        assert_eq!(
            found(plain.clone(), Level::Restricted, Version::Latest),
            [
                "allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false)",
                "unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"])",
                "runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true)",
                "seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
            ]
        );
        assert_eq!(
            found(plain, Level::Restricted, Version::Minor(7)),
            [
                "runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true)"
            ]
        );
    }

    #[test]
    fn a_careful_pod_is_restricted() {
        let careful = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        assert_eq!(
            found(careful, Level::Restricted, Version::Latest),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_stricter_takes_the_place_of_what_is_not() {
        let spec = json!({
            "containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}],
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        });
        let baseline = found(spec.clone(), Level::Baseline, Version::Latest);
        assert_eq!(
            baseline,
            [
                "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
                "hostPath volumes (volume \"v\")",
            ]
        );
        let restricted = found(spec, Level::Restricted, Version::Latest);
        assert!(!restricted.iter().any(|text| baseline.contains(text)));
        assert!(
            restricted.contains(
                &"restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"
                    .to_owned()
            )
        );
    }

    #[test]
    fn debugging_is_no_way_around() {
        let spec = json!({"containers": [], "ephemeralContainers": [
            {"name": "d", "targetContainerName": "a", "securityContext": {"privileged": true}},
        ]});
        assert_eq!(
            found(spec, Level::Baseline, Version::Latest),
            ["privileged (container \"d\" must not set securityContext.privileged=true)"]
        );
    }

    #[test]
    fn versions_know_more_sysctls() {
        let spec = json!({
            "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem", "value": "1"}]},
            "containers": [],
        });
        let at = |version| found(spec.clone(), Level::Baseline, version).len();
        assert_eq!(
            (
                at(Version::Minor(31)),
                at(Version::Minor(32)),
                at(Version::Latest)
            ),
            (1, 0, 0)
        );
    }
}
