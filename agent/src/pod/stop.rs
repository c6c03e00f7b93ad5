//! The steps by which containers are made to stop. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::action::{Action, Plan, StopHow, StopReason, add};
use super::deletion::LEAST;
use super::holder;
use super::hooks::has_pre_stop;
use super::observed::{Observed, Stop};
use super::spec::{PodView, is_sidecar};
use crate::runtime::{Container, ContainerState};

/// Stops everything that runs; sidecars only after the containers that they serve, the last that was started first, and what
/// holds the process namespace of all when nothing else is in it.
pub(super) fn stop_all(
    pod: Option<&PodView>,
    observed: &Observed,
    by: Timestamp,
    why: StopReason,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    // Which turn a container has: none for the main ones, which come first.
    let turn = |container: &Container| {
        if holder::is_one(&container.name) {
            return Some(0);
        }
        let mut init = pod.into_iter().flat_map(PodView::init_containers);
        let at = init.position(|spec| spec.name == container.name && is_sidecar(spec));
        at.map(|at| at + 1)
    };
    let running = || {
        let all = observed.containers.iter();
        all.filter(|container| matches!(container.state, ContainerState::Running { .. }))
    };
    let turns: BTreeSet<Option<usize>> = running().map(turn).collect();
    let first = match turns.first() {
        Some(None) => None,
        _ => turns.last().copied().flatten(),
    };
    // Those before may have used up the time: whose turn comes late is asked, too, before it is killed.
    let by = match (first, ended(observed)) {
        (Some(_), Some(turn_began)) => by.max(add(turn_began, LEAST)),
        _ => by,
    };
    for container in running().filter(|container| turn(container) == first) {
        stop(&mut plan, container, observed, by, why, now);
    }
    // What the others do before they stop need not wait for their turn, as upstream.
    for container in running().filter(|container| turn(container) != first) {
        let id = container.id.clone();
        let mut init = pod.into_iter().flat_map(PodView::init_containers);
        let has_hook = init.any(|spec| spec.name == container.name && has_pre_stop(spec));
        if has_hook && by > now && !observed.early_hooks.contains_key(&id) {
            plan.actions.push(Action::PreStop { id, until: by });
        }
    }
    plan
}

/// When the last container ended.
fn ended(observed: &Observed) -> Option<Timestamp> {
    let exits = observed.containers.iter().filter_map(|it| it.state.exit());
    exits.map(|exit| exit.at).max()
}

/// Asks a container to stop, or kills it when its time is up.
pub(super) fn stop(
    plan: &mut Plan,
    container: &Container,
    observed: &Observed,
    by: Timestamp,
    why: StopReason,
    now: Timestamp,
) {
    let id = container.id.clone();
    if observed.early_hooks.get(&id) == Some(&true) && by > now {
        plan.wake_at(by);
        return;
    }
    match observed.stops.get(&container.id) {
        // The end of a killed process is heard of; should that be missed, another look finds it.
        Some(Stop::Killed) => plan.wake_at(add(now, LOOK_AGAIN)),
        Some(Stop::Asked { kill_at, hook }) if hook.kill_at((*kill_at).min(by)) > now => {
            plan.wake_at(hook.kill_at((*kill_at).min(by)));
        }
        None if by > now => {
            plan.actions.push(Action::Stop {
                id,
                how: StopHow::Ask { kill_at: by },
                why,
            });
        }
        Some(Stop::Asked { .. }) | None => {
            plan.actions.push(Action::Stop {
                id,
                how: StopHow::Kill,
                why,
            });
        }
    }
}

/// When to look again at a container that should have ended.
const LOOK_AGAIN: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::super::observed::StopHook;
    use super::super::testing::failed;
    use super::*;

    #[test]
    fn a_sidecar_is_asked_even_where_others_have_used_up_the_time() {
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "initContainers": [{"name": "side", "restartPolicy": "Always"}],
                "containers": [{"name": "main"}],
            },
        });
        let pod = PodView::new(serde_json::from_value(pod).unwrap()).unwrap();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let (main, side) = (failed("main"), failed("side"));
        let side = Container {
            state: ContainerState::Running { pid: 1 },
            ..side
        };
        let id = side.id.clone();
        let mut observed = Observed {
            containers: vec![main, side],
            ..Observed::default()
        };
        // The main container has ended at 0 s, when the pod's time was up.
        let stops = |observed: &Observed, now| {
            stop_all(Some(&pod), observed, at(0), StopReason::PodEnds, at(now))
        };
        let ask = StopHow::Ask { kill_at: at(2) };
        let why = StopReason::PodEnds;
        let asked = Action::Stop {
            id: id.clone(),
            how: ask,
            why,
        };
        assert_eq!(stops(&observed, 0).actions, [asked]);
        let hook = StopHook::None;
        let kill_at = at(2);
        observed
            .stops
            .insert(id.clone(), Stop::Asked { kill_at, hook });
        let waits = stops(&observed, 1);
        assert_eq!((waits.actions, waits.wake), (vec![], Some(at(2))));
        let how = StopHow::Kill;
        assert_eq!(stops(&observed, 2).actions, [Action::Stop { id, how, why }]);
    }

    #[test]
    fn what_a_sidecar_does_before_its_stop_does_not_wait_for_its_turn() {
        let sleep = serde_json::json!({"preStop": {"sleep": {"seconds": 5}}});
        let pod = serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "initContainers": [{"name": "side", "restartPolicy": "Always", "lifecycle": sleep}],
                "containers": [{"name": "main"}],
            },
        });
        let pod = PodView::new(serde_json::from_value(pod).unwrap()).unwrap();
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let running = |name| Container {
            state: ContainerState::Running { pid: 1 },
            ..failed(name)
        };
        let mut observed = Observed {
            containers: vec![running("main"), running("side")],
            ..Observed::default()
        };
        let stops = |observed: &Observed| {
            stop_all(Some(&pod), observed, at(30), StopReason::PodEnds, at(0))
        };
        let ask = |name: &str| Action::Stop {
            id: name.into(),
            how: StopHow::Ask { kill_at: at(30) },
            why: StopReason::PodEnds,
        };
        let hook = Action::PreStop {
            id: "side".into(),
            until: at(30),
        };
        assert_eq!(stops(&observed).actions, [ask("main"), hook]);
        observed.early_hooks.insert("side".into(), true);
        assert_eq!(stops(&observed).actions, [ask("main")], "it runs once");
        observed.containers[0] = failed("main");
        let waits = stops(&observed);
        assert_eq!((waits.actions, waits.wake), (vec![], Some(at(30))));
        observed.hook_ended("side", at(5));
        assert_eq!(stops(&observed).actions, [ask("side")]);
    }

    #[test]
    fn whatever_time_a_hook_takes_its_container_has_a_moment_after_it() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        assert_eq!(StopHook::None.kill_at(at(30)), at(30));
        assert_eq!(StopHook::Runs.kill_at(at(30)), at(32), "it may end last");
        let ended = |seconds| StopHook::Ended { at: at(seconds) };
        assert_eq!(ended(5).kill_at(at(30)), at(30), "there is time enough");
        assert_eq!(ended(29).kill_at(at(30)), at(31));
        assert_eq!(ended(30).kill_at(at(30)), at(32));
        let mut observed = Observed::default();
        let asked = |hook| Stop::Asked {
            kill_at: at(30),
            hook,
        };
        observed.stops.insert("c".into(), asked(StopHook::Runs));
        observed.hook_ended("c", at(7));
        observed.hook_ended("other", at(7));
        assert_eq!(observed.stops["c"], asked(ended(7)));
        assert_eq!(observed.stops.len(), 1);
    }
}
