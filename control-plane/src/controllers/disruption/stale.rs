//! Pods that were to be disrupted and are still there are told so no longer.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::controllers::Context;
use crate::controllers::cache::Key;
use crate::controllers::driver::{Result, queue};
use crate::controllers::pods::{DISRUPTION_TARGET as TARGET, condition, has_ended};

const WORKERS: usize = 2;
/// A pod that is not even being deleted after this stays.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Registers with the caches; the returned future works until shutdown.
pub(in crate::controllers) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    context.caches.pods.on_change(move |_, new| {
        if let Some(pod) = new.filter(|pod| left(pod, Timestamp::now()).is_some()) {
            keys.add(Key::of(&**pod));
        }
    });
    context
        .clone()
        .drive("stale-disruption", wakeups, WORKERS, reconcile)
}

/// How long until the pod's condition is stale: zero when it is, `None` when it never will be.
fn left(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let said = condition(pod, TARGET).filter(|said| said.status == "True")?;
    // A node takes its time between saying so and doing it.
    let by_node = said.reason.as_deref() == Some("TerminationByKubelet");
    if by_node || has_ended(pod) || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let since = said.last_transition_time.as_ref()?.0;
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(TIMEOUT.saturating_sub(passed))
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let Some(pod) = context.caches.pods.get(key) else {
        return Ok(None);
    };
    let now = Timestamp::now();
    match left(&pod, now) {
        None => return Ok(None),
        Some(Duration::ZERO) => {}
        left => return Ok(left),
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let patch = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [
            {"type": TARGET, "status": "False", "reason": null, "message": null, "lastTransitionTime": now_in_seconds(now)},
        ]},
    });
    api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await?;
    Ok(None)
}

fn now_in_seconds(now: Timestamp) -> String {
    Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodCondition;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::controllers::testing::{PodBuilder, at, pod};

    fn told(reason: &str) -> PodBuilder {
        let condition = PodCondition {
            type_: TARGET.into(),
            status: "True".into(),
            reason: Some(reason.into()),
            last_transition_time: Some(Time(at(100))),
            ..PodCondition::default()
        };
        pod("a").ready_at(0).with(|pod| {
            let status = pod.status.get_or_insert_default();
            status.conditions.get_or_insert_default().push(condition);
        })
    }

    #[test]
    fn what_is_said_of_a_pod_that_stays_gets_stale() {
        let evicted = told("EvictionByEvictionAPI");
        let pod = evicted.build();
        assert_eq!(left(&pod, at(130)), Some(Duration::from_secs(90)));
        assert_eq!(left(&pod, at(220)), Some(Duration::ZERO));
        let going = told("EvictionByEvictionAPI").terminating().build();
        assert_eq!(left(&going, at(220)), None);
        assert_eq!(left(&told("TerminationByKubelet").build(), at(220)), None);
        assert_eq!(
            left(&crate::controllers::testing::pod("b").build(), at(220)),
            None
        );
    }
}
