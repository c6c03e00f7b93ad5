//! Questions to a pod's spec. Pure.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, ContainerRestartRule, Pod, PodSpec, Probe, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sha2::{Digest, Sha256};

use super::{ephemeral, holder, resources};
use crate::runtime::PodRef;

/// From which priority on pods are critical to the system (`system-cluster-critical`).
pub const SYSTEM_CRITICAL: i32 = 2_000_000_000;

/// The grace period where the spec names none.
pub const DEFAULT_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// Annotation of a pod from a file: identifies what it was made from.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation of a mirror: the hash of the pod that it shows.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";
/// Annotation that says where a pod comes from.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";

/// What a pod should come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Its containers run, as its spec says.
    Run,
    /// Nothing of it is left on this node, its processes gone by this time at the latest.
    Gone { by: Timestamp },
}

/// A pod as a worker keeps it: its object, whose parts that no worker reads are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct PodView {
    pub id: PodRef,
    pub object: Pod,
    /// Those that were added to the pod while it runs.
    pub ephemeral: Vec<Container>,
    /// What holds the process namespace that the others share, if they do.
    pub holder: Option<Container>,
}

/// When a container is run again after it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn of(name: Option<&str>) -> RestartPolicy {
        match name {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether a container that ended with `code` runs again.
    pub fn restarts(self, code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// Guaranteed, Burstable or BestEffort: who gives way first when the node runs short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// All of them.
    pub const ALL: [QosClass; 3] = [
        QosClass::Guaranteed,
        QosClass::Burstable,
        QosClass::BestEffort,
    ];

    /// The name in a pod's status.
    pub fn name(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

impl PodView {
    /// Takes what workers use of a pod object; `None` for one without an identity, which no API server gives.
    pub fn new(mut object: Pod) -> Option<PodView> {
        let meta = &mut object.metadata;
        meta.managed_fields = None;
        if let Some(annotations) = &mut meta.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        let id = PodRef {
            uid: meta.uid.clone()?,
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
        };
        let added = object.spec.as_ref()?.ephemeral_containers.clone();
        let ephemeral = added.into_iter().flatten().map(ephemeral::container);
        Some(PodView {
            id,
            ephemeral: ephemeral.collect(),
            holder: holder::of(object.spec.as_ref()?),
            object,
        })
    }

    pub fn spec(&self) -> &PodSpec {
        static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
        self.object
            .spec
            .as_ref()
            .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
    }

    pub fn restart_policy(&self) -> RestartPolicy {
        RestartPolicy::of(self.spec().restart_policy.as_deref())
    }

    /// Whether a container of the pod that ended with `code` runs again: as one of its rules says, or else its own policy, or
    /// else the pod's (KEP-5307).
    pub fn restarts(&self, container: &Container, code: i32) -> bool {
        let mut rules = container.restart_policy_rules.iter().flatten();
        if rules.any(|rule| rule.action == "Restart" && applies(rule, code)) {
            return true;
        }
        let policy = match container.restart_policy.as_deref() {
            Some(own) => RestartPolicy::of(Some(own)),
            None => self.restart_policy(),
        };
        policy.restarts(code)
    }

    pub fn init_containers(&self) -> &[Container] {
        self.spec().init_containers.as_deref().unwrap_or_default()
    }

    pub fn containers(&self) -> &[Container] {
        &self.spec().containers
    }

    /// Every container of the spec, in the order they start.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().chain(self.containers())
    }

    /// The same, and those that were added since.
    pub fn every_container(&self) -> impl Iterator<Item = &Container> {
        self.all_containers().chain(&self.ephemeral)
    }

    /// What of the object volumes show that may change: labels and annotations.
    pub fn shown(&self) -> [Option<&BTreeMap<String, String>>; 2] {
        let metadata = &self.object.metadata;
        [metadata.labels.as_ref(), metadata.annotations.as_ref()]
    }

    pub fn host_network(&self) -> bool {
        self.spec().host_network.unwrap_or(false)
    }

    pub fn grace(&self) -> SignedDuration {
        self.spec()
            .termination_grace_period_seconds
            .map_or(DEFAULT_GRACE, |seconds| {
                SignedDuration::from_secs(seconds.max(0))
            })
    }

    /// Whether somebody asked the API to delete the pod.
    pub fn is_being_deleted(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// When the pod's time is up, by `activeDeadlineSeconds`.
    pub fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec().active_deadline_seconds?;
        let start = self.object.status.as_ref()?.start_time.as_ref()?.0;
        start.checked_add(SignedDuration::from_secs(seconds)).ok()
    }

    /// The phase that the API knows.
    pub fn phase(&self) -> Option<&str> {
        self.object.status.as_ref()?.phase.as_deref()
    }

    /// The reason of the phase that the API knows.
    pub fn status_reason(&self) -> Option<&str> {
        self.object.status.as_ref()?.reason.as_deref()
    }

    /// Whether the pod stays whatever the node is short of.
    pub fn is_critical(&self) -> bool {
        self.is_static() || self.priority() >= SYSTEM_CRITICAL
    }

    /// Who gives way to whom, as admission has set it.
    pub fn priority(&self) -> i32 {
        self.spec().priority.unwrap_or(0)
    }

    /// Whether the pod comes from a file of this node, rather than from the API.
    pub fn is_static(&self) -> bool {
        let annotations = self.object.metadata.annotations.as_ref();
        let source = annotations.and_then(|all| all.get(CONFIG_SOURCE));
        source.is_some_and(|source| source != "api")
    }

    pub fn qos(&self) -> QosClass {
        qos(self)
    }

    /// The host name that the pod's processes see.
    pub fn hostname(&self) -> String {
        let spec = self.spec();
        let name = spec.hostname.as_deref().unwrap_or(&self.id.name);
        // Linux allows 64 bytes, DNS 63; pod names may be longer.
        name.chars()
            .take(63)
            .collect::<String>()
            .trim_end_matches(['-', '.'])
            .to_owned()
    }
}

/// Whether a rule is about this code.
fn applies(rule: &ContainerRestartRule, code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let is_named = codes.values.iter().flatten().any(|value| *value == code);
        match &*codes.operator {
            "In" => is_named,
            "NotIn" => !is_named,
            _ => false,
        }
    })
}

/// Whether a container of the init list keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Identifies what a container was made from; when it changes, the container is replaced. Of a pod's containers only
/// the image can change.
pub fn spec_hash(container: &Container) -> String {
    hex(&Sha256::digest(format!(
        "{}\n{}",
        container.name,
        container.image.as_deref().unwrap_or_default()
    )))[..16]
        .to_owned()
}

/// The id of a container: always the same for the same attempt, so that none is ever made twice.
pub fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    hex(&Sha256::digest(format!("{uid}/{name}/{attempt}")))
}

/// The other id that a container may have; see [`super::observed::Observed::remove`].
pub fn spare_container_id(uid: &str, name: &str, attempt: u32) -> String {
    hex(&Sha256::digest(format!("{uid}/{name}/{attempt}/spare")))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// By what the pod says as a whole, if it says anything, or else by what its containers do.
fn qos(pod: &PodView) -> QosClass {
    let mut said = Vec::new();
    for resource in ["cpu", "memory"] {
        if is_resourced(pod.spec()) {
            let limit = resources::as_a_whole(pod, LIMITS, resource);
            said.push((Some(resources::asked(pod, resource)), limit));
        } else {
            let of = |it| (request(it, resource), limit(it, resource));
            said.extend(pod.all_containers().map(of));
        }
    }
    let (mut any, mut guaranteed) = (false, true);
    for (request, limit) in said {
        let [request, limit] = [request, limit].map(|it| it.filter(|amount| *amount > 0.0));
        any |= request.is_some() || limit.is_some();
        guaranteed &= limit.is_some() && request == limit;
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// The limit of a container, in cores or bytes.
pub fn limit(container: &Container, resource: &str) -> Option<f64> {
    get(container.resources.as_ref(), LIMITS, resource)
}

/// The request of a container, in cores or bytes; where only a limit is given, that.
pub fn request(container: &Container, resource: &str) -> Option<f64> {
    let request = get(container.resources.as_ref(), REQUESTS, resource);
    request.or_else(|| limit(container, resource))
}

pub(super) type Side = fn(&ResourceRequirements) -> Option<&BTreeMap<String, Quantity>>;

pub(super) const LIMITS: Side = |resources| resources.limits.as_ref();
pub(super) const REQUESTS: Side = |resources| resources.requests.as_ref();

/// One amount of what a container, or a pod, says of resources, in cores or bytes.
pub(super) fn get(
    resources: Option<&ResourceRequirements>,
    side: Side,
    resource: &str,
) -> Option<f64> {
    side(resources?)?.get(resource).and_then(amount)
}

/// Whether a pod says anything of the resources of its containers together (KEP-2837).
pub(super) fn is_resourced(spec: &PodSpec) -> bool {
    let resources = spec.resources.iter();
    let mut sides = resources.flat_map(|resources| [LIMITS(resources), REQUESTS(resources)]);
    sides.any(|amounts| amounts.is_some_and(|amounts| !amounts.is_empty()))
}

/// The value of a quantity such as `250m`, `1Gi` or `1e3`.
pub fn amount(quantity: &Quantity) -> Option<f64> {
    let text = quantity.0.trim();
    // An exponent's letter is followed by digits; the suffix E stands at the end.
    let split = text
        .char_indices()
        .find(|(at, c)| {
            c.is_ascii_alphabetic()
                && !(matches!(c, 'e' | 'E')
                    && text[at + 1..]
                        .starts_with(|next: char| next.is_ascii_digit() || "+-".contains(next)))
        })
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(split);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|number| number * factor)
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Question {
    Startup,
    Liveness,
    Readiness,
}

impl Question {
    pub(super) const ALL: [Question; 3] =
        [Question::Startup, Question::Liveness, Question::Readiness];

    /// The probe of a container that asks this.
    pub fn of(self, spec: &Container) -> Option<&Probe> {
        match self {
            Question::Startup => spec.startup_probe.as_ref(),
            Question::Liveness => spec.liveness_probe.as_ref(),
            Question::Readiness => spec.readiness_probe.as_ref(),
        }
    }

    /// The word in events.
    pub fn name(self) -> &'static str {
        match self {
            Question::Startup => "startup",
            Question::Liveness => "liveness",
            Question::Readiness => "readiness",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_in_every_notation() {
        for (text, value) in [
            ("250m", 0.25),
            ("2", 2.0),
            ("1Gi", 1_073_741_824.0),
            ("1.5k", 1500.0),
            ("1e3", 1000.0),
            ("1E3", 1000.0),
            ("2E", 2e18),
        ] {
            assert_eq!(amount(&Quantity(text.into())), Some(value), "{text}");
        }
        assert_eq!(amount(&Quantity("1x".into())), None);
    }

    #[test]
    fn ids_differ_by_attempt_and_are_stable() {
        assert_eq!(container_id("u", "a", 0), container_id("u", "a", 0));
        assert_ne!(container_id("u", "a", 0), container_id("u", "a", 1));
        assert_eq!(container_id("u", "a", 0).len(), 64);
    }

    #[test]
    fn a_containers_rules_come_before_its_policy_and_that_before_the_pods() {
        let codes = |operator: &str| json!({"action": "Restart", "exitCodes": {"operator": operator, "values": [3, 42]}});
        let containers = json!([
            {"name": "plain"},
            {"name": "own", "restartPolicy": "OnFailure"},
            {"name": "in", "restartPolicy": "Never", "restartPolicyRules": [codes("In")]},
            {"name": "not-in", "restartPolicy": "Never", "restartPolicyRules": [codes("NotIn")]},
            {"name": "always", "restartPolicy": "Always", "restartPolicyRules": [codes("In")]},
        ]);
        let restarts = |policy: &str| {
            let object = json!({
                "metadata": {"name": "p", "namespace": "d", "uid": "u"},
                "spec": {"restartPolicy": policy, "containers": containers},
            });
            let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
            let of = |spec: &Container| [0, 1, 42].map(|code| pod.restarts(spec, code));
            pod.containers().iter().map(of).collect::<Vec<_>>()
        };
        let own = [
            [false, true, true],
            [false, false, true],
            [true, true, false],
            [true; 3],
        ];
        let all = |plain: [bool; 3]| [&[plain][..], &own[..]].concat();
        assert_eq!(restarts("Never"), all([false; 3]));
        assert_eq!(restarts("OnFailure"), all([false, true, true]));
        assert_eq!(restarts("Always"), all([true; 3]));
    }
}
