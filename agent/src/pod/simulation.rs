//! Plans carried out in a simulated world: whatever happens in whatever order, each pod comes to its end, and no container
//! runs twice.

mod absence;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::PodStatus;
use proptest::prelude::*;
use serde_json::json;

use super::action::{Action, StopHow, StopReason};
use super::demand::{EVICTED, Eviction};
use super::holder;
use super::observed::{
    Failure, ImageState, Observed, PostStart, ProbeState, Sandbox, Stop, Volumes,
};
use super::plan::{Phase, phase, plan};
use super::probe;
use super::resize;
use super::spec::{Goal, PodView, Question, container_id, spec_hash};
use super::status::{Surroundings, status};
use crate::runtime::{Container, ContainerState, Exit, ExitCause};

/// A pod whose containers share their processes.
fn shared(policy: &str, init: usize, sidecar: bool, main: usize) -> PodView {
    let mut object = pod(policy, init, sidecar, main).object;
    if let Some(spec) = &mut object.spec {
        spec.share_process_namespace = Some(true);
    }
    PodView::new(object).unwrap()
}

fn pod(policy: &str, init: usize, sidecar: bool, main: usize) -> PodView {
    let probed = |name: String| {
        let probe = json!({"exec": {"command": ["true"]}});
        json!({"name": name, "image": "i:1", "livenessProbe": probe, "startupProbe": probe})
    };
    let container = |name: String| json!({"name": name, "image": "i:1"});
    let mut first: Vec<_> = (0..init).map(|n| container(format!("init-{n}"))).collect();
    if sidecar {
        let mut sidecar = probed("sidecar".into());
        sidecar["restartPolicy"] = json!("Always");
        first.insert(first.len() / 2, sidecar);
    }
    let object = json!({
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {
            "restartPolicy": policy,
            "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": first,
            "containers": (0..main).map(|n| probed(format!("main-{n}"))).collect::<Vec<_>>(),
        },
    });
    PodView::new(serde_json::from_value(object).unwrap()).unwrap()
}

/// What the simulated machine holds, and what the worker knows of it.
struct World {
    pod: PodView,
    goal: Goal,
    now: Timestamp,
    /// The containers as they are. The worker's view of them may be older.
    containers: BTreeMap<String, Container>,
    observed: Observed,
    finished: bool,
}

#[derive(Clone, Debug)]
enum Happening {
    /// The worker performs the first so many of the planned actions and looks.
    Work(usize),
    /// The agent is killed and begins anew.
    Crash,
    /// The `n`th running container ends.
    End(usize, i32),
    Time(u32),
    /// The next image or container fails to be made.
    ImageFails,
    /// A probe of the `n`th container comes to an end.
    Probe(usize, Question, bool),
    /// The node is short of something, so that the pod has to go; whether the API hears of it before anything else happens.
    Evict {
        is_told: bool,
    },
    /// The node is short of room.
    Discard,
    /// The hooks that run end.
    HooksEnd,
}

fn stopped(code: i32, at: Timestamp) -> ContainerState {
    ContainerState::Stopped(Some(Exit {
        code,
        at,
        cause: ExitCause::Process,
        message: String::new(),
    }))
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (0..4usize).prop_map(Happening::Work),
        1 => Just(Happening::Crash),
        2 => (0..4usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(n, code)| Happening::End(n, code)),
        2 => (0..400u32).prop_map(Happening::Time),
        1 => Just(Happening::ImageFails),
        2 => (0..4usize, prop_oneof![Just(Question::Startup), Just(Question::Liveness)], any::<bool>())
            .prop_map(|(n, question, passed)| Happening::Probe(n, question, passed)),
        1 => prop::option::weighted(0.2, any::<bool>())
            .prop_map(|told| told.map_or(Happening::Discard, |is_told| Happening::Evict { is_told })),
        2 => Just(Happening::HooksEnd),
    ]
}

impl World {
    fn new(pod: PodView) -> World {
        World {
            pod,
            goal: Goal::Run,
            now: Timestamp::UNIX_EPOCH,
            containers: BTreeMap::new(),
            observed: Observed::default(),
            finished: false,
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self
            .now
            .checked_add(SignedDuration::from_secs(seconds))
            .unwrap();
    }

    fn look(&mut self) {
        self.observed.containers = self.containers.values().cloned().collect();
    }

    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Work(count) => {
                self.work(*count);
            }
            Happening::Crash => {
                self.observed = Observed::default();
                self.look();
            }
            Happening::End(n, code) => self.end(*n, *code),
            Happening::Time(seconds) => {
                self.pass(i64::from(*seconds));
                self.look();
            }
            Happening::Probe(n, question, passed) => {
                let observed = self.observed.clone();
                let probes = probe::wanted(&self.pod, self.goal, &observed);
                let mut asked = probes.filter(|(id, _, _)| id.question == *question);
                if let Some((id, _, _)) = asked.nth(*n) {
                    let state = match passed {
                        true => ProbeState::Passed { failures: 0 },
                        false => ProbeState::Failed { successes: 0 },
                    };
                    self.observed.probes.insert(id, state);
                }
            }
            Happening::Evict { is_told } => {
                self.observed.evicted = Some(Eviction {
                    reason: EVICTED,
                    message: "The node was low on resource: memory. ".into(),
                    by: self.now.checked_add(SignedDuration::from_secs(2)).unwrap(),
                });
                if *is_told {
                    self.pod.object.status = Some(self.status());
                }
            }
            Happening::HooksEnd => _ = self.end_hooks(),
            Happening::Discard => {
                let until = self.now.checked_add(SignedDuration::from_secs(10));
                self.observed.discard_until = until.ok();
            }
            Happening::ImageFails => {
                let failure = Failure {
                    reason: "ErrImagePull",
                    message: "no".into(),
                    tries: 1,
                    retry_at: self.now.checked_add(SignedDuration::from_secs(10)).ok(),
                };
                self.observed
                    .images
                    .insert("i:1".into(), ImageState::Failed(failure));
            }
        }
    }

    fn status(&self) -> PodStatus {
        let before = self.pod.object.status.clone().unwrap_or_default();
        status(
            &self.pod,
            &self.observed,
            &Surroundings::default(),
            &before,
            self.now,
        )
    }

    /// Ends the hooks that run; false when there was none.
    fn end_hooks(&mut self) -> bool {
        let runs = |(_, hook): &(&String, &mut PostStart)| **hook == PostStart::Runs;
        let running: Vec<_> = self.observed.hooked.iter_mut().filter(runs).collect();
        let any = !running.is_empty();
        for (id, hook) in running {
            *hook = PostStart::Done;
            if let Some(container) = self.containers.get_mut(id) {
                container.hook_due = false;
            }
        }
        any
    }

    /// Gives every probe that holds something back a success.
    fn start_up(&mut self) {
        for (id, _, _) in probe::wanted(&self.pod, self.goal, &self.observed.clone()) {
            let passed = ProbeState::Passed { failures: 0 };
            self.observed.probes.insert(id, passed);
        }
    }

    fn end(&mut self, n: usize, code: i32) {
        let running = self
            .containers
            .values_mut()
            .filter(|container| matches!(container.state, ContainerState::Running { .. }));
        if let Some(container) = running.into_iter().nth(n) {
            container.state = stopped(code, self.now);
            if container.name == holder::NAME {
                self.end_namespace();
            }
        }
    }

    /// The kernel kills whatever is left in a process namespace that has lost its first process.
    fn end_namespace(&mut self) {
        for container in self.containers.values_mut().filter(|it| it.is_running()) {
            container.state = stopped(137, self.now);
        }
    }

    fn running_holder(&self) -> Option<&Container> {
        let mut all = self.containers.values();
        all.find(|it| it.name == holder::NAME && it.is_running())
    }

    /// Performs planned actions; false when there was none.
    fn work(&mut self, count: usize) -> bool {
        let plan = plan(Some(&self.pod), self.goal, &self.observed, self.now);
        if plan.actions.is_empty() {
            return false;
        }
        for action in plan.actions.iter().take(count.max(1)) {
            self.perform(action);
        }
        self.look();
        true
    }

    fn perform(&mut self, action: &Action) {
        match action {
            Action::PrepareSandbox => {
                assert_eq!(self.goal, Goal::Run);
                self.observed.sandbox = Sandbox::Ready {
                    addresses: Vec::new(),
                };
            }
            Action::PrepareVolumes => {
                assert!(matches!(self.observed.sandbox, Sandbox::Ready { .. }));
                self.observed.volumes = Volumes::Ready;
            }
            Action::Resize => panic!("no pod here is resized"),
            Action::PreStop { .. } => panic!("no sidecar here has a hook"),
            Action::RefreshVolumes => panic!("no volume here has contents"),
            Action::FetchVolumeImage { .. } => panic!("no volume here is an image"),
            Action::FetchImage { .. } => {
                self.observed
                    .images
                    .insert("i:1".into(), ImageState::Present);
            }
            Action::Run {
                container,
                attempt,
                streak,
            } => self.run(container, *attempt, *streak),
            Action::Start { id } => {
                self.assert_alone(id);
                self.containers.get_mut(id).unwrap().state = ContainerState::Running { pid: 1 };
            }
            Action::PostStart { id } => {
                self.observed.hooked.insert(id.clone(), PostStart::Runs);
            }
            Action::Reap { id } => {
                let container = self.containers.get_mut(id).unwrap();
                let ContainerState::Stopped(Some(exit)) = &container.state else {
                    panic!("{id} is {:?}", container.state);
                };
                container.state = ContainerState::Exited(exit.clone());
                let state = container.state.clone();
                self.observed.set_state(id, state);
            }
            Action::Stop { id, how, .. } => {
                let mut running = self.containers.values().filter(|it| it.is_running());
                let is_holder = self.running_holder().is_some_and(|it| it.id == *id);
                assert!(
                    !is_holder || running.all(|it| it.id == *id),
                    "a namespace was taken from its processes"
                );
                let container = self.containers.get_mut(id).unwrap();
                if (*how == StopHow::Kill || is_holder) && container.is_running() {
                    container.state = stopped(137, self.now);
                }
                let stop = match how {
                    StopHow::Ask { kill_at } => Stop::Asked {
                        kill_at: *kill_at,
                        hook: super::observed::StopHook::None,
                    },
                    StopHow::Kill => Stop::Killed,
                };
                self.observed.stops.insert(id.clone(), stop);
            }
            Action::Delete { id } => {
                let removed = self.containers.remove(id);
                let running =
                    removed.is_some_and(|c| matches!(c.state, ContainerState::Running { .. }));
                assert!(!running, "a running container was deleted");
            }
            Action::RemoveSandbox => {
                let mut states = self.containers.values().map(|container| &container.state);
                let running = states.any(|state| matches!(state, ContainerState::Running { .. }));
                assert!(!running, "the network was taken from a running container");
                self.observed.sandbox = Sandbox::Gone;
            }
            Action::RemoveVolumes => {
                assert_eq!(self.observed.sandbox, Sandbox::Gone);
                self.observed.volumes = Volumes::Gone;
            }
            Action::Finish => {
                assert!(self.containers.is_empty());
                self.finished = true;
            }
        }
    }

    fn run(&mut self, name: &str, attempt: u32, streak: u32) {
        assert!(matches!(self.observed.sandbox, Sandbox::Ready { .. }));
        let held = self.running_holder().is_some();
        if name == holder::NAME {
            assert!(!held, "one namespace is enough");
        } else {
            assert_eq!(self.observed.volumes, Volumes::Ready);
            assert_eq!(self.observed.images.get("i:1"), Some(&ImageState::Present));
        }
        let mut all = self.pod.all_containers().chain(&self.pod.holder);
        let spec = all.find(|spec| spec.name == name).unwrap();
        let id = container_id("u", name, attempt);
        assert!(
            !self.containers.contains_key(&id),
            "{name} {attempt} was made twice"
        );
        let container = Container {
            id: id.clone(),
            pod: self.pod.id.clone(),
            name: name.into(),
            attempt,
            streak,
            spec_hash: spec_hash(spec),
            image: "i:1".into(),
            image_id: String::new(),
            given: resize::note(spec),
            stop_signal: 15,
            user: None,
            created_at: self.now,
            earlier_boot: false,
            hook_due: name.starts_with("main"),
            state: ContainerState::Running { pid: 1 },
        };
        self.containers.insert(id.clone(), container);
        self.assert_alone(&id);
        self.assert_next(name);
    }

    /// The main containers before this one have begun, and done what they do after their start.
    fn assert_next(&self, name: &str) {
        let mut main = self.pod.containers().iter();
        if !main.any(|spec| spec.name == name) {
            return;
        }
        let before = self.pod.containers().iter();
        for spec in before.take_while(|spec| spec.name != name) {
            let mut made = self.containers.values().filter(|it| it.name == spec.name);
            assert!(
                made.all(|it| !it.is_running() || !it.hook_due) && self.made(&spec.name),
                "{name} is started before {}",
                spec.name
            );
        }
    }

    fn made(&self, name: &str) -> bool {
        self.containers.values().any(|it| it.name == name)
    }

    /// No other container of the same name runs.
    fn assert_alone(&self, id: &str) {
        let name = &self.containers[id].name;
        let others = self.containers.values().filter(|other| {
            other.id != id
                && other.name == *name
                && !matches!(other.state, ContainerState::Exited(_))
        });
        assert_eq!(others.count(), 0, "{name} would run twice");
    }

    /// Works until nothing is left to do, letting time pass as the plan says.
    fn settle(&mut self) {
        self.look();
        for _ in 0..1000 {
            if self.finished {
                return;
            }
            if !self.work(usize::MAX) && !self.end_hooks() {
                let plan = plan(Some(&self.pod), self.goal, &self.observed, self.now);
                match plan.wake {
                    Some(wake) => self.now = self.now.max(wake),
                    None => return,
                }
            }
        }
        panic!("it does not come to rest: {:?}", self.observed);
    }
}

proptest! {
    #[test]
    fn whatever_happens_a_pod_comes_to_rest_and_can_be_removed(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        init in 0..3usize,
        sidecar in any::<bool>(),
        main in 1..4usize,
        shares in any::<bool>(),
        before in prop::collection::vec(happening(), 0..40),
        after in prop::collection::vec(happening(), 0..20),
    ) {
        let of = if shares { shared } else { pod };
        let mut world = World::new(of(policy, init, sidecar, main));
        let mut previous = PodStatus::default();
        for happening in &before {
            world.happen(happening);
            let status = status(&world.pod, &world.observed, &Surroundings::default(), &previous, world.now);
            prop_assert_eq!(status.container_statuses.as_ref().unwrap().len(), main);
            if let Some(start) = &previous.start_time {
                prop_assert_eq!(status.start_time.as_ref(), Some(start), "the start does not move");
            }
            previous = status;
        }
        // Let every init container succeed, and see the pod in its steady state.
        for _ in 0..(init + 2) * 8 {
            world.settle();
            world.start_up();
            let names: Vec<String> = world.containers.values()
                .filter(|c| matches!(c.state, ContainerState::Running { .. }))
                .map(|c| c.name.clone()).collect();
            if let Some(at) = names.iter().position(|name| name.starts_with("init")) {
                world.end(at, 0);
                world.look();
            }
        }
        world.settle();
        let phase = phase(&world.pod, &world.observed, world.now);
        let running = world.containers.values()
            .filter(|c| c.is_running() && c.name != holder::NAME)
            .count();
        let held = world.running_holder().is_some();
        prop_assert_eq!(held, shares && phase == Phase::Active);
        let mut containers = world.containers.values();
        let is_without_hook = |c: &Container| c.hook_due && matches!(c.state, ContainerState::Running { .. });
        prop_assert!(!containers.any(is_without_hook), "a hook runs at least once");
        if phase == Phase::Active {
            prop_assert!(running > 0, "a pod that goes on has something running");
            if policy == "Always" {
                prop_assert_eq!(running, main + usize::from(sidecar));
            }
        } else {
            prop_assert_eq!(running, 0);
            prop_assert_eq!(&world.observed.volumes, &Volumes::Gone, "what has ended leaves the disk");
        }
        if phase == Phase::Evicted {
            prop_assert!(world.containers.is_empty());
            let status = world.status();
            prop_assert_eq!(status.reason.as_deref(), Some("Evicted"));
        }

        let by = world.now.checked_add(SignedDuration::from_secs(30)).unwrap();
        world.goal = Goal::Gone { by };
        for happening in &after {
            if !world.finished {
                world.happen(happening);
            }
        }
        world.settle();
        prop_assert!(world.finished);
        prop_assert!(world.containers.is_empty());
    }
}

#[test]
fn a_container_restarts_by_rules_of_its_own_and_the_pod_ends_as_its_containers_do() {
    let mut object = pod("Never", 0, false, 2).object;
    let rule = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    if let Some(spec) = &mut object.spec {
        spec.containers[0].restart_policy = Some("Never".into());
        spec.containers[0].restart_policy_rules = serde_json::from_value(rule).unwrap();
    }
    let mut world = World::new(PodView::new(object).unwrap());
    let phase_of = |world: &World| phase(&world.pod, &world.observed, world.now);
    let position = |world: &World, name: &str| {
        let mut running = world.containers.values().filter(|it| it.is_running());
        running.position(|it| it.name == name).unwrap()
    };
    world.settle();
    for attempt in 1..=2 {
        world.end(position(&world, "main-0"), 42);
        world.settle();
        assert_eq!(world.observed.latest("main-0").unwrap().attempt, attempt);
        assert_eq!(phase_of(&world), Phase::Active);
    }
    world.end(position(&world, "main-1"), 0);
    world.settle();
    assert_eq!(phase_of(&world), Phase::Active, "another one runs");
    world.end(position(&world, "main-0"), 1);
    world.settle();
    assert_eq!(phase_of(&world), Phase::Failed);
}

#[test]
fn a_container_is_not_started_before_the_hook_of_the_one_before_it_has_ended() {
    let mut world = World::new(pod("Always", 0, false, 2));
    let states = |world: &World| {
        let statuses = world.status().container_statuses.unwrap();
        statuses.into_iter().map(|it| {
            let state = it.state.unwrap();
            let waits = state.waiting.and_then(|waiting| waiting.reason);
            (waits.unwrap_or("runs".into()), it.started.unwrap())
        })
    };
    let words = |first: (&str, bool), second: (&str, bool)| {
        [first, second].map(|(state, started)| (state.to_owned(), started))
    };
    let creating = ("ContainerCreating", false);
    world.look();
    while world.work(usize::MAX) {}
    assert!(world.made("main-0") && !world.made("main-1"));
    assert!(states(&world).eq(words(creating, creating)));
    let probes = probe::wanted(&world.pod, world.goal, &world.observed);
    assert_eq!(probes.count(), 0, "nor is it asked how it is");
    assert!(world.end_hooks());
    while world.work(usize::MAX) {}
    world.start_up();
    assert!(world.made("main-1"));
    assert!(states(&world).eq(words(("runs", true), creating)));
    assert!(world.end_hooks());
    world.look();
    world.start_up();
    assert!(states(&world).eq(words(("runs", true), ("runs", true))));
}

#[test]
fn a_container_that_cannot_be_made_holds_up_no_other() {
    let mut world = World::new(pod("Always", 0, false, 2));
    let failure = Failure {
        reason: "CreateContainerConfigError",
        message: "no".into(),
        tries: 1,
        retry_at: world.now.checked_add(SignedDuration::from_secs(10)).ok(),
    };
    world.look();
    while !world.made("main-1") {
        world
            .observed
            .failures
            .insert("main-0".into(), failure.clone());
        let all = plan(Some(&world.pod), world.goal, &world.observed, world.now);
        assert!(!all.actions.is_empty());
        for action in &all.actions {
            if let Action::Run { container, .. } = action {
                assert_eq!(container, "main-1");
                return;
            }
            world.perform(action);
        }
        world.look();
    }
}

#[test]
fn a_pod_is_stopped_gently_and_then_killed() {
    let mut world = World::new(pod("Always", 0, false, 1));
    world.settle();
    let id = container_id("u", "main-0", 0);
    let by = world
        .now
        .checked_add(SignedDuration::from_secs(30))
        .unwrap();
    world.goal = Goal::Gone { by };
    let first = plan(Some(&world.pod), world.goal, &world.observed, world.now);
    assert!(
        matches!(&first.actions[..], [Action::Stop { how: StopHow::Ask { kill_at }, .. }] if *kill_at == by)
    );
    world.work(1);
    let wait = plan(Some(&world.pod), world.goal, &world.observed, world.now);
    assert_eq!((wait.actions.len(), wait.wake), (0, Some(by)));
    world.pass(30);
    let then = plan(Some(&world.pod), world.goal, &world.observed, world.now);
    assert!(
        matches!(&then.actions[..], [Action::Stop { id: of, how: StopHow::Kill, .. }] if *of == id)
    );
    world.settle();
    assert!(world.finished);
}

#[test]
fn a_container_that_fails_its_liveness_probe_is_stopped_within_the_probes_grace() {
    let mut pod = pod("Always", 0, false, 1);
    if let Some(spec) = &mut pod.object.spec
        && let Some(liveness) = &mut spec.containers[0].liveness_probe
    {
        liveness.termination_grace_period_seconds = Some(3);
    }
    let mut world = World::new(pod);
    world.settle();
    world.start_up();
    world.happen(&Happening::Probe(0, Question::Liveness, false));
    let by = world.now.checked_add(SignedDuration::from_secs(3)).unwrap();
    let stop = plan(Some(&world.pod), Goal::Run, &world.observed, world.now);
    let why = StopReason::Unhealthy {
        question: Question::Liveness,
        restarts: true,
    };
    assert_eq!(
        stop.actions,
        [Action::Stop {
            id: container_id("u", "main-0", 0),
            how: StopHow::Ask { kill_at: by },
            why
        }]
    );
    world.settle();
    let next = container_id("u", "main-0", 1);
    assert_eq!(
        world.containers[&next].state,
        ContainerState::Running { pid: 1 }
    );
    assert!(
        world.observed.probes.is_empty(),
        "the next one is probed anew"
    );
    assert_eq!(world.now, by, "the first restart is immediate");
}

#[test]
fn a_new_image_replaces_the_container() {
    let mut world = World::new(pod("Always", 0, false, 1));
    world.settle();
    if let Some(spec) = &mut world.pod.object.spec {
        spec.containers[0].image = Some("i:2".into());
    }
    let plan = plan(Some(&world.pod), Goal::Run, &world.observed, world.now);
    assert!(matches!(
        &plan.actions[..],
        [Action::Stop {
            how: StopHow::Ask { .. },
            ..
        }]
    ));
}

#[test]
fn an_end_is_told_before_it_is_written_down() {
    let mut world = World::new(pod("Never", 0, false, 1));
    world.settle();
    let told = |world: &World| {
        let around = Surroundings::default();
        let before = PodStatus::default();
        status(&world.pod, &world.observed, &around, &before, world.now)
    };
    assert_eq!(told(&world).phase.as_deref(), Some("Running"));
    world.end(0, 3);
    world.look();
    let at_once = told(&world);
    let states = at_once.container_statuses.iter().flatten();
    let mut ends = states.filter_map(|it| it.state.as_ref()?.terminated.as_ref());
    assert_eq!(ends.next().map(|end| end.exit_code), Some(3));
    assert_eq!(at_once.phase.as_deref(), Some("Failed"));
    assert!(world.work(1), "it is written down");
    assert_eq!(told(&world), at_once);
}

#[test]
fn containers_that_share_their_processes_wait_for_the_namespace_and_go_before_it() {
    let mut world = World::new(shared("Always", 0, true, 1));
    let names = |world: &World| {
        let running = world.containers.values().filter(|it| it.is_running());
        running.map(|it| it.name.clone()).collect::<BTreeSet<_>>()
    };
    while !world.containers.values().any(|it| it.name == holder::NAME) {
        assert!(world.work(usize::MAX) && world.containers.len() <= 1);
    }
    world.settle();
    world.start_up();
    world.settle();
    let all = ["POD", "main-0", "sidecar"].map(str::to_owned);
    assert_eq!(names(&world), all.clone().into());

    let first = world.running_holder().unwrap().id.clone();
    let at = world.containers.keys().position(|id| *id == first).unwrap();
    world.end(at, 137);
    world.settle();
    world.start_up();
    world.settle();
    assert_eq!(names(&world), all.into(), "the namespace is made anew");
    let second = world.running_holder().unwrap();
    assert_eq!((second.attempt, second.streak), (1, 1));

    world.goal = Goal::Gone { by: world.now };
    let mut before = names(&world);
    while !before.is_empty() {
        if !world.work(1) {
            // What is asked to stop late has a moment.
            world.pass(2);
        }
        let now = names(&world);
        assert!(now.is_empty() || now.contains(holder::NAME));
        before = now;
    }
}

#[test]
fn a_container_made_for_a_namespace_that_is_gone_is_made_anew() {
    let mut world = World::new(shared("Always", 0, false, 1));
    world.settle();
    let id = container_id("u", "main-0", 0);
    // As an agent finds it that begins after another was killed, and so was the namespace's first process.
    world.containers.get_mut(&id).unwrap().state = ContainerState::Created;
    let next = |world: &World| plan(Some(&world.pod), Goal::Run, &world.observed, world.now);
    world.look();
    assert_eq!(next(&world).actions, [Action::Start { id: id.clone() }]);
    let mut holder = world.running_holder().unwrap().clone();
    holder.created_at = world.now.checked_add(SignedDuration::from_secs(1)).unwrap();
    world.containers.insert(holder.id.clone(), holder);
    world.look();
    assert_eq!(next(&world).actions, [Action::Delete { id }]);
}
