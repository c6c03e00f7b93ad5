//! Lifecycle hooks: what a container asks to be done after it was started, and before it is asked to stop.
//!
//! Each runs in a task of its own, so that the pod's worker goes on meanwhile. As long as a postStart hook runs, its container
//! is not told to run, and those that come after it are not started. A preStop hook has the time until the container is killed,
//! and the container then has a moment yet. An agent that begins anew meanwhile runs either again: a hook runs at least once.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, LifecycleHandler, Probe};
use tokio::sync::mpsc::UnboundedSender;

use super::check::{Answer, Asker, Check};
use super::events::Kind;
use super::observed::{Observed, Sandbox};
use super::shared::Shared;
use super::spec::PodView;
use crate::runtime::{Container, Runtime};

/// As long as a postStart hook may take, as upstream sets no bound.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// The hook of a container, by its id, that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    PostStart { id: String, is_good: bool },
    PreStop { id: String },
}

/// A hook of one container, ready to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Sleep(Duration),
    Check(Result<Check, String>),
}

impl Hook {
    fn of(handler: &LifecycleHandler, spec: &ContainerSpec, address: IpAddr) -> Hook {
        if let Some(sleep) = &handler.sleep {
            let seconds = u64::try_from(sleep.seconds).unwrap_or(0);
            return Hook::Sleep(Duration::from_secs(seconds));
        }
        // What a hook does, a probe can do, too.
        let probe = Probe {
            exec: handler.exec.clone(),
            http_get: handler.http_get.clone(),
            ..Probe::default()
        };
        Hook::Check(Check::of(&probe, spec, address, Asker::Hook))
    }

    async fn run(
        &self,
        container: &str,
        timeout: Duration,
        runtime: &Arc<dyn Runtime>,
    ) -> Result<(), String> {
        match self {
            Hook::Sleep(time) => {
                tokio::time::sleep((*time).min(timeout)).await;
                Ok(())
            }
            Hook::Check(Err(why)) => Err(why.clone()),
            Hook::Check(Ok(check)) => match check.try_once(container, timeout, runtime).await {
                // What of a redirection is not followed is an answer, too.
                Answer::Success | Answer::Warning(_) => Ok(()),
                Answer::Failure(why) | Answer::Unknown(why) => Err(why),
            },
        }
    }
}

/// Whether something is to be done after a container's start.
pub(super) fn has_post_start(spec: &ContainerSpec) -> bool {
    let lifecycle = spec.lifecycle.as_ref();
    lifecycle.is_some_and(|lifecycle| lifecycle.post_start.is_some())
}

/// Whether something is to be done before a container's stop.
pub(super) fn has_pre_stop(spec: &ContainerSpec) -> bool {
    let lifecycle = spec.lifecycle.as_ref();
    lifecycle.is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
}

/// The hooks of a container: after its start and before its stop.
fn hooks(pod: &PodView, name: &str, address: IpAddr) -> (Option<Hook>, Option<Hook>) {
    let Some(spec) = pod.all_containers().find(|spec| spec.name == name) else {
        return (None, None);
    };
    let hook = |handler: &Option<LifecycleHandler>| {
        let handler = handler.as_ref()?;
        Some(Hook::of(handler, spec, address))
    };
    let lifecycle = spec.lifecycle.as_ref();
    (
        lifecycle.and_then(|lifecycle| hook(&lifecycle.post_start)),
        lifecycle.and_then(|lifecycle| hook(&lifecycle.pre_stop)),
    )
}

/// Where a pod's processes are reached.
fn address(shared: &Shared, pod: &PodView, observed: &Observed) -> IpAddr {
    let own = match &observed.sandbox {
        Sandbox::Ready { addresses } if !pod.host_network() => addresses.first(),
        _ => shared.settings.host_addresses.first(),
    };
    own.copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Runs what is to be run after a container's start, and tells how that ended.
pub(super) fn after_start(
    shared: &Shared,
    pod: &PodView,
    observed: &Observed,
    container: &Container,
    ended: &UnboundedSender<Ended>,
) {
    let (Some(hook), _) = hooks(pod, &container.name, address(shared, pod, observed)) else {
        return;
    };
    let (runtime, events) = (shared.runtime.clone(), shared.events.clone());
    let (pod, container, ended) = (pod.id.clone(), container.clone(), ended.clone());
    tokio::spawn(async move {
        let result = hook.run(&container.id, LONG, &runtime).await;
        let is_good = result.is_ok();
        if let Err(why) = result {
            let text = format!("PostStartHook failed: {why}");
            let reason = "FailedPostStartHook";
            events.send(&pod, Some(&container.name), Kind::Warning, reason, text);
        } else if let Err(error) = runtime.note_hook(&container.id).await {
            tracing::warn!(%error, "the next agent runs it again");
        }
        let id = container.id;
        // Its pod may be gone by now.
        let _ = ended.send(Ended::PostStart { id, is_good });
    });
}

/// What comes after a hook before the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The container is asked to stop.
    Stop,
    /// Its turn is yet to come.
    Wait,
}

/// Runs what is to be run before a container's stop, tells when that is done, and what comes then is. False where there is
/// nothing to run.
pub(super) fn before_stop(
    shared: &Shared,
    pod: &PodView,
    observed: &Observed,
    container: &Container,
    (kill_at, then): (Timestamp, Then),
    ended: &UnboundedSender<Ended>,
) -> bool {
    let (_, Some(hook)) = hooks(pod, &container.name, address(shared, pod, observed)) else {
        return false;
    };
    let left = kill_at.duration_since(Timestamp::now());
    let left = Duration::try_from(left).unwrap_or_default();
    let (runtime, events) = (shared.runtime.clone(), shared.events.clone());
    let (pod, container, ended) = (pod.id.clone(), container.clone(), ended.clone());
    tokio::spawn(async move {
        if let Err(why) = hook.run(&container.id, left, &runtime).await {
            let text = format!("PreStopHook failed: {why}");
            let reason = "FailedPreStopHook";
            events.send(&pod, Some(&container.name), Kind::Warning, reason, text);
        }
        if then == Then::Stop
            && let Err(error) = runtime.signal(&container.id, container.stop_signal).await
        {
            tracing::warn!(%error, "a container was not asked to stop, and will be killed");
        }
        // Its pod may be gone by now.
        let _ = ended.send(Ended::PreStop { id: container.id });
    });
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_hook_is_what_its_handler_says() {
        let pod = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "a", "lifecycle": {
                "postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 5}},
            }}, {"name": "b"}]},
        });
        let pod = PodView::new(serde_json::from_value(pod).unwrap()).unwrap();
        let address = Ipv4Addr::LOCALHOST.into();
        let (after, before) = hooks(&pod, "a", address);
        assert_eq!(
            after,
            Some(Hook::Check(Ok(Check::Exec(vec!["true".into()]))))
        );
        assert_eq!(before, Some(Hook::Sleep(Duration::from_secs(5))));
        assert_eq!(hooks(&pod, "b", address), (None, None));
    }
}
