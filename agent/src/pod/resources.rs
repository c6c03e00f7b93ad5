//! What containers, and pods as a whole, may use. Pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec::{
    LIMITS, PodView, REQUESTS, Side, amount, get, is_resourced, is_sidecar, limit, request,
};
use crate::runtime::Resources;
use crate::runtime::oci::CPU_PERIOD_US;

/// What the name of a resource begins with that is memory in pages of the size that follows.
const HUGE_PAGES: &str = "hugepages-";

/// What a container of the pod may use. Without a limit of its own it has the pod's, which some programs go by.
pub(super) fn of_container(pod: &PodView, container: &Container) -> Resources {
    let most = |resource: &str| {
        let own = limit(container, resource).filter(positive);
        own.or_else(|| as_a_whole(pod, LIMITS, resource))
    };
    Resources {
        cpu_shares: shares(request(container, "cpu").unwrap_or(0.0)),
        cpu_quota_us: most("cpu").map(quota),
        memory_limit: most("memory").map(|bytes| bytes as i64),
    }
}

/// By the size of a page, how much a container may have of such pages; in bytes.
pub(super) fn huge_pages(container: &Container) -> BTreeMap<u64, u64> {
    let limits = container
        .resources
        .iter()
        .flat_map(|all| &all.limits)
        .flatten();
    let pages = limits.filter_map(|(name, limit)| {
        let size = amount(&Quantity(name.strip_prefix(HUGE_PAGES)?.to_owned()))?;
        Some((size as u64, amount(limit)? as u64))
    });
    pages.collect()
}

/// The sizes of the huge pages that the pod's containers may have.
pub(super) fn huge_page_sizes(pod: &PodView) -> BTreeSet<u64> {
    let all = pod.all_containers().map(huge_pages);
    all.flat_map(BTreeMap::into_keys).collect()
}

/// What a pod's containers may use together: at least what they ask for, at most what the pod says, or else their limits if
/// each has one. The pod's overhead is on top.
pub(super) fn of_pod(pod: &PodView) -> Resources {
    let most = |resource: &str| {
        let limited = |container: &Container| limit(container, resource).is_some_and(|l| l > 0.0);
        let together = || {
            pod.all_containers()
                .all(limited)
                .then(|| peak(pod, |container| limit(container, resource).unwrap_or(0.0)))
        };
        let most = as_a_whole(pod, LIMITS, resource).or_else(together);
        most.map(|most| most + overhead(pod, resource))
    };
    Resources {
        cpu_shares: shares(pod.requests("cpu")),
        cpu_quota_us: most("cpu").map(quota),
        memory_limit: most("memory").map(|bytes| bytes as i64),
    }
}

impl PodView {
    /// What the pod asks for, all in all, in cores, bytes or pieces.
    pub fn requests(&self, resource: &str) -> f64 {
        asked(self, resource) + overhead(self, resource)
    }

    /// What the pod, or those of its containers that have a limit, may use, all in all.
    pub fn limits(&self, resource: &str) -> f64 {
        as_a_whole(self, LIMITS, resource)
            .unwrap_or_else(|| peak(self, |container| limit(container, resource).unwrap_or(0.0)))
    }

    /// What it asks for as a whole, beyond what its containers ask for, shared out among them.
    pub(super) fn spare_request(&self, resource: &str) -> f64 {
        if !is_resourced(self.spec()) {
            return 0.0;
        }
        let spare = asked(self, resource) - of_containers(self, resource);
        // There is a container in each pod.
        spare.max(0.0) / self.all_containers().count().max(1) as f64
    }
}

/// What a pod requests, without its overhead. One that says something as a whole, and not this, requests what its containers
/// do, or else its limit.
pub(super) fn asked(pod: &PodView, resource: &str) -> f64 {
    as_a_whole(pod, REQUESTS, resource).unwrap_or_else(|| {
        let together = of_containers(pod, resource);
        match as_a_whole(pod, LIMITS, resource) {
            Some(limit) if together <= 0.0 => limit,
            _ => together,
        }
    })
}

fn of_containers(pod: &PodView, resource: &str) -> f64 {
    peak(pod, |container| request(container, resource).unwrap_or(0.0))
}

pub(super) fn as_a_whole(pod: &PodView, side: Side, resource: &str) -> Option<f64> {
    get(pod.spec().resources.as_ref(), side, resource).filter(positive)
}

fn overhead(pod: &PodView, resource: &str) -> f64 {
    let overhead = pod.spec().overhead.as_ref();
    let overhead = overhead.and_then(|all| amount(all.get(resource)?));
    overhead.unwrap_or(0.0)
}

/// The most that is used at one time: init containers run one after the other, beside the sidecars before them.
fn peak(pod: &PodView, of: impl Fn(&Container) -> f64) -> f64 {
    let (mut sidecars, mut peak) = (0.0, 0.0_f64);
    for container in pod.init_containers() {
        let now = sidecars + of(container);
        peak = peak.max(now);
        if is_sidecar(container) {
            sidecars = now;
        }
    }
    let main: f64 = pod.containers().iter().map(of).sum();
    peak.max(sidecars + main)
}

/// The weight of a CPU request. The kernel's smallest is also what a container without a request gets.
fn shares(cores: f64) -> u64 {
    ((cores * 1024.0) as u64).clamp(2, 262_144)
}

fn quota(cores: f64) -> i64 {
    ((cores * CPU_PERIOD_US as f64) as i64).max(1000)
}

fn positive(amount: &f64) -> bool {
    *amount > 0.0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::spec::QosClass;

    fn pod(init: Value, containers: Value) -> PodView {
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"initContainers": init, "containers": containers},
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn asks(requests: Value, limits: Value) -> Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn huge_pages_are_limited_by_their_size() {
        let limits = json!({"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "cpu": "1"});
        let one = pod(json!([]), json!([asks(json!({}), limits), {"name": "d"}]));
        let pages = BTreeMap::from([(2 << 20, 4 << 20), (1 << 30, 1 << 30)]);
        assert_eq!(huge_pages(&one.containers()[0]), pages);
        assert_eq!(huge_page_sizes(&one), [2 << 20, 1 << 30].into());
        assert!(huge_pages(&one.containers()[1]).is_empty());
    }

    #[test]
    fn a_pod_gets_what_its_containers_ask_for_together() {
        let half = asks(json!({"cpu": "500m"}), json!({}));
        let together = of_pod(&pod(json!([]), json!([half, half])));
        let unlimited = Resources {
            cpu_shares: 1024,
            cpu_quota_us: None,
            memory_limit: None,
        };
        assert_eq!(together, unlimited);
        let nothing = of_pod(&pod(json!([]), json!([{"name": "c"}])));
        assert_eq!(nothing.cpu_shares, 2);
    }

    #[test]
    fn init_containers_count_by_the_largest_and_sidecars_beside_them() {
        let mut sidecar = asks(json!({"cpu": "250m"}), json!({}));
        sidecar["restartPolicy"] = json!("Always");
        let large = asks(json!({"cpu": "1"}), json!({}));
        let main = asks(json!({"cpu": "500m"}), json!({}));
        let shares = |init| of_pod(&pod(init, json!([main]))).cpu_shares;
        assert_eq!(shares(json!([large])), 1024);
        assert_eq!(shares(json!([sidecar])), 768);
        assert_eq!(shares(json!([sidecar, large])), 1280);
        assert_eq!(shares(json!([large, sidecar])), 1024);
    }

    #[test]
    fn a_pod_is_limited_only_if_each_of_its_containers_is() {
        let limited = asks(json!({}), json!({"cpu": "500m", "memory": "1Mi"}));
        let no_cpu = asks(json!({}), json!({"memory": "1Mi"}));
        let both = of_pod(&pod(json!([]), json!([limited, limited])));
        assert_eq!(
            (both.cpu_quota_us, both.memory_limit),
            (Some(100_000), Some(2 << 20))
        );
        let one = of_pod(&pod(json!([]), json!([limited, no_cpu])));
        assert_eq!((one.cpu_quota_us, one.memory_limit), (None, Some(2 << 20)));
        let mut over = pod(json!([]), json!([limited, no_cpu]));
        let overhead = json!({"cpu": "1", "memory": "1Mi"});
        over.object.spec.as_mut().unwrap().overhead = serde_json::from_value(overhead).unwrap();
        let over = of_pod(&over);
        assert_eq!(
            (over.cpu_shares, over.cpu_quota_us, over.memory_limit),
            (1536, None, Some(3 << 20))
        );
    }

    fn resourced(whole: Value, containers: Value) -> PodView {
        let mut pod = pod(json!([]), containers);
        let resources = serde_json::from_value(whole).unwrap();
        pod.object.spec.as_mut().unwrap().resources = Some(resources);
        pod
    }

    #[test]
    fn what_a_pod_says_as_a_whole_counts() {
        let some = asks(json!({"cpu": "500m", "memory": "1Mi"}), json!({}));
        let bounded = asks(json!({}), json!({"cpu": "500m", "memory": "1Mi"}));
        let whole = json!({"requests": {"cpu": "2", "memory": "7Mi"}, "limits": {"cpu": "3", "memory": "8Mi"}});
        let pod = resourced(whole.clone(), json!([some, bounded, {"name": "c"}]));
        let together = Resources {
            cpu_shares: 2048,
            cpu_quota_us: Some(300_000),
            memory_limit: Some(8 << 20),
        };
        assert_eq!(of_pod(&pod), together);
        let each = |at: usize| of_container(&pod, &pod.containers()[at]);
        assert_eq!(
            (each(0).cpu_shares, each(0).memory_limit),
            (512, Some(8 << 20))
        );
        assert_eq!(each(1).memory_limit, Some(1 << 20));
        assert_eq!(
            (each(2).cpu_shares, each(2).cpu_quota_us),
            (2, Some(300_000))
        );
        let mebibyte = f64::from(1 << 20);
        assert_eq!(pod.requests("memory"), 7.0 * mebibyte);
        assert_eq!(pod.limits("memory"), 8.0 * mebibyte);
        assert_eq!(pod.spare_request("memory"), 5.0 / 3.0 * mebibyte);
        assert_eq!(pod.qos(), QosClass::Burstable);

        // As the API server fills it in, of a pod from a file.
        let limited = json!({"limits": {"cpu": "3", "memory": "8Mi"}});
        let alone = resourced(limited.clone(), json!([{"name": "c"}]));
        assert_eq!(alone.requests("cpu"), 3.0);
        assert_eq!(alone.qos(), QosClass::Guaranteed);
        let asking = resourced(limited, json!([some]));
        assert_eq!(
            (asking.requests("cpu"), asking.qos()),
            (0.5, QosClass::Burstable)
        );
        let none = resourced(json!({}), json!([some]));
        assert_eq!(
            (none.spare_request("memory"), none.qos()),
            (0.0, QosClass::Burstable)
        );
    }
}
