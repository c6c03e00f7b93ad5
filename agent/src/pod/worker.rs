//! One pod's task: plan, perform, look again.
//!
//! It is woken by orders (the pod's object changed), by pokes (something happened in the runtime) and by the time that
//! the plan names. Whatever wakes it, it reads the world and plans anew; the wake-up itself carries no meaning.

use std::any::Any;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::action::{Action, Plan, StopHow, StopReason};
use super::check::Answer;
use super::deletion::Deletion;
use super::demand::TERMINATED;
use super::events::Kind;
use super::host_ports::{NODE_PORTS, NOT_FREE};
use super::observed::{Contents, ImageState, Observed, PostStart, Sandbox, Stop};
use super::perform::{self, Outcome, Read, run};
use super::plan::{DEADLINE_EXCEEDED, plan, restart};
use super::probe::{self, Rules, Try};
use super::probe_counts::ProbeSeries;
use super::prober::{Probers, Tried};
use super::pull::Wanted;
use super::report::{self, Report};
use super::resize::{self, Room};
use super::shared::{Order, Shared};
use super::spec::{Goal, PodView};
use super::status::{Surroundings, status};
use super::table::PodSummary;
use super::{hooks, mirror, pull, sandbox, termination_message, volumes};
use crate::runtime::{Container, ContainerState, PodRef};

/// The shortest and the longest wait after trouble.
const TROUBLE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Runs a pod until nothing of it is left.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: PodRef,
    containers: Vec<Container>,
    orders: watch::Receiver<Order>,
    poke: Arc<Notify>,
) {
    let order = orders.borrow().clone();
    let known = order
        .pod
        .as_ref()
        .and_then(|pod| pod.object.status.clone())
        .unwrap_or_default();
    let (reports, receiver) = watch::channel(Report::Nothing);
    let (client, of) = (shared.client.clone(), id.clone());
    let is_static = order.pod.as_ref().is_some_and(|pod| pod.is_static());
    let reporter = match is_static {
        true => tokio::spawn(mirror::run(client, of, receiver, orders.clone())),
        false => tokio::spawn(report::run(client, of, receiver, orders.clone())),
    };
    let mut reporter = AbortOnDropHandle::new(reporter);
    let mut worker = Worker {
        observed: Observed {
            probes: order
                .pod
                .as_ref()
                .map(|pod| probe::adopt(pod, &containers))
                .unwrap_or_default(),
            containers,
            is_rejected: order.is_rejected,
            ..Observed::default()
        },
        surroundings: Surroundings {
            host_addresses: shared.settings.host_addresses.clone(),
            ..Surroundings::default()
        },
        shared,
        id,
        order,
        deletion: None,
        orders,
        poke,
        status: Arc::new(known),
        reports,
        fetches: JoinSet::new(),
        fetching: Vec::new(),
        refresh: JoinSet::new(),
        probers: Probers::new(),
        ended_hooks: mpsc::unbounded_channel(),
        trouble: TROUBLE.0,
    };
    for container in &worker.observed.containers {
        worker.shared.pokes.listen(&container.id, &worker.poke);
    }
    worker.read_termination_messages();
    if worker.observed.is_rejected {
        let (events, id) = (&worker.shared.events, &worker.id);
        events.send(id, None, Kind::Warning, NODE_PORTS, NOT_FREE);
    }
    // What was listed at the start may have changed by now.
    worker.look().await;
    worker.observed.stale = worker
        .observed
        .unstarted()
        .map(|container| container.id.clone())
        .collect();
    tokio::select! {
        () = worker.work() => {}
        // As if the worker itself had: another one begins with both.
        panic = panic_of(&mut reporter) => std::panic::resume_unwind(panic),
    }
    worker.shared.host_ports.gone(&worker.id);
    worker.shared.table.remove(&worker.id.uid);
    worker.shared.tokens.forget(&worker.id.uid);
    worker.shared.last_env.forget(&worker.id.uid);
    let grants = worker.shared.grants.lock();
    grants
        .unwrap_or_else(PoisonError::into_inner)
        .remove(&worker.id.uid);
    // The object goes only when the API has heard of it; the sender has to live until then.
    if !reporter.is_finished() {
        // Should it panic now, the object stays, and with the next change of it a worker comes back.
        let _ = reporter.await;
    }
}

/// Waits for a task to panic, for ever if it ends otherwise.
async fn panic_of(task: &mut AbortOnDropHandle<()>) -> Box<dyn Any + Send> {
    match task.await.map_err(JoinError::try_into_panic) {
        Err(Ok(panic)) => panic,
        _ => std::future::pending().await,
    }
}

struct Worker {
    shared: Arc<Shared>,
    id: PodRef,
    observed: Observed,
    surroundings: Surroundings,
    order: Order,
    deletion: Option<Deletion>,
    orders: watch::Receiver<Order>,
    poke: Arc<Notify>,
    /// The newest status that was computed.
    status: Arc<PodStatus>,
    reports: watch::Sender<Report>,
    /// Images may take long to fetch, so that goes on beside everything else.
    fetches: JoinSet<Outcome>,
    /// Names of the images being fetched.
    fetching: Vec<String>,
    /// Reads what volumes shall show; an API server that is silent holds nothing else up.
    refresh: JoinSet<Read>,
    probers: Probers,
    /// Hooks of containers that have ended.
    ended_hooks: (
        UnboundedSender<hooks::Ended>,
        UnboundedReceiver<hooks::Ended>,
    ),
    /// How long to wait should the next action come to nothing.
    trouble: Duration,
}

impl Worker {
    async fn work(&mut self) {
        loop {
            self.take_order();
            self.look_for_room();
            let goal = self.goal();
            if goal != Goal::Run {
                self.fetches.abort_all();
                self.fetches = JoinSet::new();
                self.fetching.clear();
                self.refresh = JoinSet::new();
            }
            let plan = plan(
                self.order.pod.as_deref(),
                goal,
                &self.observed,
                Timestamp::now(),
            );
            self.publish();
            self.keep_probes(goal);
            if plan.actions.contains(&Action::Finish) {
                match sandbox::erase(&self.shared.settings.paths, &self.id).await {
                    Ok(()) => return self.finish(),
                    Err(error) => self.endure(&error.to_string()).await,
                }
                continue;
            }
            let wake = plan.wake;
            match self.perform(plan).await {
                Progress::Trouble(reason) => self.endure(&reason).await,
                Progress::Some => self.trouble = TROUBLE.0,
                Progress::None => self.rest(wake).await,
            }
        }
    }

    /// Of a pod that is resized, looks at what the node has for it.
    fn look_for_room(&mut self) {
        let pod = self.order.pod.as_deref();
        let pod = pod.filter(|pod| resize::is_pending(pod, &self.observed));
        // One after the other, until it is known what this one takes. Each change of it is one call.
        let grants = self.shared.grants.lock();
        let mut grants = grants.unwrap_or_else(PoisonError::into_inner);
        let Some(pod) = pod else {
            (self.observed.room, self.observed.resize_failure) = (None, None);
            grants.remove(&self.id.uid);
            return;
        };
        let others = self.shared.table.others(&self.id.uid);
        let allocatable = &self.shared.settings.allocatable;
        self.observed.room = Some(Room::of(allocatable, others.iter(), &grants));
        if resize::answer(pod, &self.observed) == Some(resize::Answer::Granted) {
            grants.insert(self.id.uid.clone(), resize::asked(pod));
        } else {
            grants.remove(&self.id.uid);
        }
    }

    fn goal(&self) -> Goal {
        let by = self.deletion.map(|deletion| deletion.by);
        match self.order.vanished_by.into_iter().chain(by).min() {
            Some(by) => Goal::Gone { by },
            None => Goal::Run,
        }
    }

    fn take_order(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        if order.imports != self.order.imports {
            self.observed
                .images
                .retain(|_, state| *state == ImageState::Present);
        }
        let changed = match (&order.pod, &self.order.pod) {
            (Some(new), Some(old)) => new.object.spec != old.object.spec,
            _ => false,
        };
        let (new, old) = (order.pod.as_deref(), self.order.pod.as_deref());
        if new.map(PodView::shown) != old.map(PodView::shown) {
            self.observed.contents = Contents::Unknown;
            self.refresh = JoinSet::new();
        }
        if changed {
            // What failed by the old spec may succeed by the new one.
            self.observed.failures.clear();
            self.observed.resize_failure = None;
        }
        if let (Some(eviction), None) = (&order.evicted, &self.observed.evicted) {
            let (events, text) = (&self.shared.events, &eviction.message);
            // Of one that ends with its node, the status tells.
            if eviction.reason != TERMINATED {
                events.send(&self.id, None, Kind::Warning, eviction.reason, text);
            }
        }
        self.observed.evicted.clone_from(&order.evicted);
        self.observed.discard_until = order.discard_until;
        if let Some(pod) = &order.pod {
            self.deletion = Deletion::seen(self.deletion, pod, Timestamp::now());
        }
        self.order = order;
    }

    /// Waits for something to happen.
    async fn rest(&mut self, wake: Option<Timestamp>) {
        let until = wake
            .map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        let timer = async {
            match until {
                // Timers may fire a little early, and the plan would then find nothing to do.
                Some(wait) => tokio::time::sleep(wait + Duration::from_millis(1)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Cancel-safe: a change that is not taken here is still unseen the next time.
            result = self.orders.changed() => if result.is_err() {
                // The manager is gone, and with it the agent: containers stay as they are.
                std::future::pending::<()>().await;
            },
            // Cancel-safe: a stored permit is not lost.
            () = self.poke.notified() => self.look().await,
            // Cancel-safe: a result stays in the set until it is given out.
            Some(result) = self.fetches.join_next() => if let Some(reason) = self.fetched(result) { self.endure(&reason).await },
            // Cancel-safe, as the last one.
            Some(read) = self.refresh.join_next() => self.refreshed(read),
            // Cancel-safe, both: what is not given out stays queued.
            Some(ended) = self.ended_hooks.1.recv() => self.hook_ended(ended),
            tried = self.probers.next() => self.probed(tried),
            () = timer => self.look().await,
        }
    }

    fn hook_ended(&mut self, ended: hooks::Ended) {
        match ended {
            hooks::Ended::PostStart { id, is_good } => {
                if let Some(hook) = self.observed.hooked.get_mut(&id) {
                    *hook = match is_good {
                        true => PostStart::Done,
                        false => PostStart::Failed,
                    };
                }
            }
            hooks::Ended::PreStop { id } => self.observed.hook_ended(&id, Timestamp::now()),
        }
    }

    fn keep_probes(&mut self, goal: Goal) {
        let address = self.status.pod_ip.as_deref().and_then(|ip| ip.parse().ok());
        let (Some(pod), Some(address)) = (self.order.pod.as_deref(), address) else {
            self.probers.stop();
            return;
        };
        self.probers.keep(
            probe::wanted(pod, goal, &self.observed),
            address,
            &self.shared.runtime,
        );
    }

    fn probed(&mut self, (id, answer, took): Tried) {
        let container = self
            .observed
            .containers
            .iter()
            .find(|container| container.id == id.container);
        let (Some(pod), Some(container)) = (self.order.pod.as_deref(), container) else {
            return;
        };
        if let Some((reason, text)) = id.question.tell(&answer) {
            let (events, name) = (&self.shared.events, Some(&*container.name));
            events.send(&self.id, name, Kind::Warning, reason, text);
        }
        let result = match answer {
            Answer::Success | Answer::Warning(_) => Try::Success,
            Answer::Failure(_) => Try::Failure,
            Answer::Unknown(_) => return,
        };
        let series = ProbeSeries {
            pod: self.id.clone(),
            container: container.name.clone(),
            question: id.question,
        };
        let counts = self.shared.table.probes();
        counts.add(series, result == Try::Success, took);
        let mut specs = pod.all_containers();
        let rules = specs
            .find(|spec| spec.name == container.name)
            .and_then(|spec| id.question.of(spec))
            .map(Rules::of);
        if let Some(rules) = rules {
            let state = self.observed.probe(&id.container, id.question);
            self.observed.probes.insert(id, state.step(&rules, result));
        }
    }

    /// Waits after trouble: longer each time, and no longer than until something happens.
    async fn endure(&mut self, reason: &str) {
        tracing::warn!(
            pod = self.id.name,
            namespace = self.id.namespace,
            reason,
            "trying again"
        );
        let wait = self.trouble;
        self.trouble = (wait * 2).min(TROUBLE.1);
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        loop {
            // All cancel-safe, as above.
            tokio::select! {
                () = &mut over => break,
                () = self.poke.notified() => break,
                _ = self.orders.changed() => break,
                Some(ended) = self.ended_hooks.1.recv() => self.hook_ended(ended),
                // What has nothing to do with the trouble goes on meanwhile, and is told.
                Some(result) = self.fetches.join_next() => {
                    self.fetched(result);
                    break;
                }
                tried = self.probers.next() => {
                    self.probed(tried);
                    self.publish();
                }
            }
        }
        self.look().await;
    }

    /// Asks the runtime about every container that may have changed.
    async fn look(&mut self) {
        let open: Vec<String> = self
            .observed
            .containers
            .iter()
            .filter(|container| !matches!(container.state, ContainerState::Exited(_)))
            .map(|container| container.id.clone())
            .collect();
        for id in open {
            match self.shared.runtime.state(&id).await {
                Ok(Some(state)) => self.observed.set_state(&id, state),
                Ok(None) => self.observed.remove(&id),
                // It is asked again when the runtime is back: that pokes every worker.
                Err(error) => tracing::debug!(%error, "a container was not looked at"),
            }
        }
        self.read_termination_messages();
    }

    async fn perform(&mut self, plan: Plan) -> Progress {
        let (fetches, rest): (Vec<Action>, Vec<Action>) =
            plan.actions.into_iter().partition(|action| {
                matches!(
                    action,
                    Action::FetchImage { .. }
                        | Action::FetchVolumeImage { .. }
                        | Action::RefreshVolumes
                )
            });
        for action in fetches {
            self.fetch(&action);
        }
        if rest.contains(&Action::PrepareVolumes) {
            // What that reads is newer.
            self.refresh = JoinSet::new();
        }
        if rest.is_empty() {
            return Progress::None;
        }
        let outcomes = join_all(rest.iter().map(|action| self.act(action))).await;
        let mut trouble = None;
        for outcome in outcomes.into_iter().flatten() {
            if let Outcome::Trouble(reason) = outcome {
                trouble = Some(reason);
            } else {
                self.apply(outcome);
            }
        }
        trouble.map_or(Progress::Some, Progress::Trouble)
    }

    fn fetch(&mut self, action: &Action) {
        let Some(pod) = self.order.pod.clone() else {
            return;
        };
        if *action == Action::RefreshVolumes {
            return self.refresh(pod);
        }
        let Some(wanted) = Wanted::by(&pod, action) else {
            return;
        };
        if self.fetching.contains(&wanted.image) {
            return;
        }
        let tries = match self.observed.images.get(&wanted.image) {
            Some(ImageState::Failed(failure)) => failure.tries + 1,
            _ => 1,
        };
        self.fetching.push(wanted.image.clone());
        let shared = self.shared.clone();
        self.fetches
            .spawn(async move { pull::fetch_image(&shared, &pod, wanted, tries).await });
    }

    fn refresh(&mut self, pod: Arc<PodView>) {
        if self.refresh.is_empty() {
            let (shared, sandbox) = (self.shared.clone(), self.observed.sandbox.clone());
            self.refresh
                .spawn(async move { perform::read_volumes(&shared, pod, &sandbox).await });
        }
    }

    /// Writes what was read: only this task writes the pod's files.
    fn refreshed(&mut self, read: Result<Read, JoinError>) {
        let at = match read {
            Ok(read) => perform::write_volumes(&self.shared, read),
            Err(error) => {
                tracing::error!(%error, pod = self.id.name, "volumes were not read");
                volumes::look_again(&self.id.uid, Timestamp::now())
            }
        };
        self.observed.contents = Contents::FreshUntil(at);
    }

    /// Why it came to nothing, if it did.
    fn fetched(&mut self, result: Result<Outcome, JoinError>) -> Option<String> {
        let reason = match result {
            Ok(Outcome::Trouble(reason)) => reason,
            Ok(outcome) => {
                self.apply(outcome);
                return None;
            }
            Err(error) => error.to_string(),
        };
        // Which one it was is not known: those under way may be asked for twice.
        self.fetching.clear();
        Some(reason)
    }

    async fn act(&self, action: &Action) -> Option<Outcome> {
        let (shared, observed) = (&*self.shared, &self.observed);
        let granted = self
            .order
            .pod
            .as_deref()
            .map(|pod| resize::granted(pod, observed));
        let pod = granted.as_deref();
        let container = |id: &String| {
            observed
                .containers
                .iter()
                .find(|container| container.id == *id)
        };
        let spec = |name: &String| {
            let mut all = pod?.every_container().chain(&pod?.holder);
            all.find(|spec| spec.name == *name)
        };
        Some(match action {
            Action::PrepareSandbox => perform::prepare_sandbox(shared, pod?, observed).await,
            Action::PrepareVolumes => perform::prepare_volumes(shared, pod?, observed).await,
            Action::Run {
                container,
                attempt,
                streak,
            } => {
                let id = observed.next_id(&self.id.uid, container, *attempt);
                shared.pokes.listen(&id, &self.poke);
                run::run_container(shared, pod?, spec(container)?, observed, *attempt, *streak)
                    .await
            }
            Action::Resize => perform::resize(shared, pod?, observed).await,
            Action::Start { id } => run::start_made(shared, pod?, container(id)?, observed).await,
            Action::PostStart { id } => {
                let ended = &self.ended_hooks.0;
                hooks::after_start(shared, pod?, observed, container(id)?, ended);
                Outcome::Hooked { id: id.clone() }
            }
            Action::Reap { id } => match shared.runtime.reap(id).await {
                Ok(state) => Outcome::State {
                    id: id.clone(),
                    state,
                },
                Err(error) => error.into(),
            },
            Action::PreStop { id, until } => {
                let (container, then) = (container(id)?, (*until, hooks::Then::Wait));
                let ended = &self.ended_hooks.0;
                let runs = hooks::before_stop(shared, pod?, observed, container, then, ended);
                let id = id.clone();
                Outcome::PreStop { id, runs }
            }
            Action::Stop { id, how, why } => {
                let (container, how) = (container(id)?, (*how, *why));
                let ended = &self.ended_hooks.0;
                perform::stop_container(shared, &self.id, pod, observed, container, how, ended)
                    .await
            }
            Action::Delete { id } => {
                perform::delete_container(shared, &self.id, container(id)?).await
            }
            Action::RemoveSandbox => perform::remove_sandbox(shared, &self.id, pod).await,
            Action::RemoveVolumes => perform::remove_volumes(shared, &self.id).await,
            // Handled apart: the last one after everything, the others beside everything else.
            Action::FetchImage { .. }
            | Action::FetchVolumeImage { .. }
            | Action::RefreshVolumes
            | Action::Finish => return None,
        })
    }

    fn apply(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Prepared { sandbox, handler } => {
                (self.observed.sandbox, self.observed.handler) = (sandbox, handler);
            }
            Outcome::SandboxGone => self.observed.sandbox = Sandbox::Gone,
            Outcome::Volumes(volumes, contents) => {
                (self.observed.volumes, self.observed.contents) = (volumes, contents);
            }
            Outcome::Image { name, state } => {
                self.fetching.retain(|fetching| *fetching != name);
                self.observed.images.insert(name, state);
            }
            Outcome::Container(container) => {
                if container.state != ContainerState::Created {
                    self.observed.failures.remove(&container.name);
                }
                // Whether the image is there is asked again before the next attempt.
                self.observed.images.remove(&container.image);
                let id = container.id.clone();
                self.observed.put(container);
                self.after_an_end(&id);
            }
            Outcome::State { id, state } => {
                let all = &self.observed.containers;
                let name = all.iter().find(|it| it.id == id).map(|it| it.name.clone());
                if let (ContainerState::Running { .. }, Some(name)) = (&state, name) {
                    self.observed.failures.remove(&name);
                }
                self.observed.set_state(&id, state);
                self.after_an_end(&id);
            }
            Outcome::Failed { container, failure } => {
                self.observed.fail(container, failure);
            }
            Outcome::Late { container, failure } => {
                self.observed.failures.insert(container, failure);
            }
            Outcome::Deleted { id } => {
                self.observed.remove(&id);
                self.surroundings.termination_messages.remove(&id);
                self.shared.pokes.forget(&id);
            }
            Outcome::PreStop { id, runs } => {
                self.observed.early_hooks.insert(id, runs);
            }
            Outcome::Hooked { id } => {
                self.observed.hooked.insert(id, PostStart::Runs);
            }
            Outcome::Stopping { id, how, why, hook } => {
                let mut all = self.observed.containers.iter_mut();
                if let (Some(container), StopReason::Resized) = (all.find(|it| it.id == id), why) {
                    container.given = resize::stopped(container);
                }
                let stop = match how {
                    StopHow::Ask { kill_at } => Stop::Asked { kill_at, hook },
                    StopHow::Kill => Stop::Killed,
                };
                self.observed.stops.insert(id, stop);
            }
            Outcome::Resized { given, failure } => {
                for (id, given) in given {
                    let mut all = self.observed.containers.iter_mut();
                    if let Some(container) = all.find(|container| container.id == id) {
                        container.given = given;
                    }
                }
                self.observed.resize_failure = failure;
            }
            Outcome::Trouble(_) => {}
        }
    }

    /// Tells of a container that ended and has to wait for its restart.
    fn after_an_end(&mut self, id: &str) {
        self.read_termination_messages();
        let Some(pod) = self
            .order
            .pod
            .as_deref()
            .filter(|_| self.goal() == Goal::Run)
        else {
            return;
        };
        let mut containers = self.observed.containers.iter();
        let Some(container) = containers.find(|container| container.id == id) else {
            return;
        };
        if let ContainerState::Exited(exit) = &container.state {
            let mut specs = pod.every_container();
            let spec = specs.find(|spec| spec.name == container.name);
            let waits = spec
                .and_then(|spec| restart(pod, spec, container, exit))
                .is_some_and(|restart| restart.at > Timestamp::now());
            if waits {
                let PodRef {
                    name,
                    namespace,
                    uid,
                } = &self.id;
                let text = format!(
                    "Back-off restarting failed container {} in pod {name}_{namespace}({uid})",
                    container.name
                );
                self.shared.events.send(
                    &self.id,
                    Some(&container.name),
                    Kind::Warning,
                    "BackOff",
                    text,
                );
            }
        }
    }

    /// Of a container whose message is not complete, the end is not told.
    fn read_termination_messages(&mut self) {
        let Some(pod) = self.order.pod.as_deref() else {
            return;
        };
        let mut incomplete = Vec::new();
        for container in &self.observed.containers {
            let Some(exit) = container.state.exit() else {
                continue;
            };
            if self
                .surroundings
                .termination_messages
                .contains_key(&container.id)
            {
                continue;
            }
            let spec = pod
                .every_container()
                .find(|spec| spec.name == container.name);
            let id = container.id.clone();
            match termination_message::read(&self.shared.settings.paths, spec, container, exit) {
                Some(message) => {
                    let messages = &mut self.surroundings.termination_messages;
                    messages.insert(id, message);
                }
                None => incomplete.push(id),
            }
        }
        for id in incomplete {
            self.observed.set_state(&id, ContainerState::Stopped(None));
        }
    }

    /// Makes the pod's state known, where it changed.
    fn publish(&mut self) {
        let Some(object) = self.order.pod.clone() else {
            return;
        };
        let pod = &*object;
        let status = status(
            pod,
            &self.observed,
            &self.surroundings,
            &self.status,
            Timestamp::now(),
        );
        let addresses = status.pod_ips.iter().flatten();
        let addresses = addresses.filter_map(|ip| ip.ip.parse().ok()).collect();
        let host_ports = &self.shared.host_ports;
        host_ports.tell(pod, &self.observed, addresses);
        let said = matches!(*self.reports.borrow(), Report::Status(_));
        let is_late = |status: &PodStatus| status.reason.as_deref() == Some(DEADLINE_EXCEEDED);
        if is_late(&status) && !is_late(&self.status) {
            let text = "Pod was active on the node longer than the specified deadline";
            let events = &self.shared.events;
            events.send(&self.id, None, Kind::Normal, DEADLINE_EXCEEDED, text);
        }
        if status != *self.status || !said {
            self.shared
                .table
                .put(PodSummary::of(pod, &status, &self.observed));
            self.status = Arc::new(status);
            // A pod that vanished from the API has nobody to report to; the mirror of one whose file vanished is still there.
            if self.order.vanished_by.is_none() || pod.is_static() {
                let report = Report::Status(self.status.clone());
                self.reports.send_replace(report);
            }
        }
        self.shared.table.show(&object, &self.status);
    }

    fn finish(&mut self) {
        let is_static = self.order.pod.as_ref().is_some_and(|pod| pod.is_static());
        let report = match self.order.vanished_by {
            // Dropping the sender ends the reporter.
            Some(_) if !is_static => {
                self.reports = watch::channel(Report::Nothing).0;
                return;
            }
            _ => Report::Gone(self.status.clone()),
        };
        self.reports.send_replace(report);
    }
}

/// What a round of actions came to.
enum Progress {
    /// There was nothing to do.
    None,
    Some,
    Trouble(String),
}
