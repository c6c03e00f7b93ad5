//! What containers, and pods as a whole, may use. Pure.

use k8s_openapi::api::core::v1::Container;

use super::spec::{PodView, amount, is_sidecar, limit, request};
use crate::runtime::Resources;
use crate::runtime::oci::CPU_PERIOD_US;

/// What a container may use.
pub(super) fn of_container(container: &Container) -> Resources {
    Resources {
        cpu_shares: shares(request(container, "cpu").unwrap_or(0.0)),
        cpu_quota_us: limit(container, "cpu").filter(positive).map(quota),
        memory_limit: limit(container, "memory")
            .filter(positive)
            .map(|bytes| bytes as i64),
    }
}

/// What a pod's containers may use together: at least what they ask for, at most their limits if each has one.
pub(super) fn of_pod(pod: &PodView) -> Resources {
    let most = |resource: &str| {
        let limited = |container: &Container| limit(container, resource).is_some_and(|l| l > 0.0);
        let all_are = pod.all_containers().all(limited);
        all_are.then(|| pod.limits(resource) + pod.overhead(resource))
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
        peak(self, |container| {
            request(container, resource).unwrap_or(0.0)
        }) + self.overhead(resource)
    }

    /// What running it takes beside its containers.
    fn overhead(&self, resource: &str) -> f64 {
        let overhead = self.spec().overhead.as_ref();
        overhead
            .and_then(|all| amount(all.get(resource)?))
            .unwrap_or(0.0)
    }

    /// What those of its containers that have a limit may use, all in all.
    pub fn limits(&self, resource: &str) -> f64 {
        peak(self, |container| limit(container, resource).unwrap_or(0.0))
    }
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
        let mut heavier = pod(json!([]), json!([limited, limited]));
        let spec = heavier.object.spec.as_mut().unwrap();
        spec.overhead = serde_json::from_value(json!({"cpu": "1", "memory": "1Mi"})).unwrap();
        let with_overhead = of_pod(&heavier);
        assert_eq!(
            (with_overhead.cpu_quota_us, with_overhead.memory_limit),
            (Some(200_000), Some(3 << 20))
        );
        assert_eq!(with_overhead.cpu_shares, 1024);
        let one = of_pod(&pod(json!([]), json!([limited, no_cpu])));
        assert_eq!((one.cpu_quota_us, one.memory_limit), (None, Some(2 << 20)));
    }
}
