//! A pod's status as the API shows it, from its spec and what was observed. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState as ApiState, ContainerStateRunning,
    ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, ContainerUser as ApiUser,
    HostIP, LinuxContainerUser, PodIP, PodStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::host_ports::{NODE_PORTS, NOT_FREE};
use super::image_volumes;
use super::observed::{ImageState, Observed, Sandbox, Volumes};
use super::plan::{DEADLINE_EXCEEDED, Phase, is_initialized, phase, restart};
use super::probe;
use super::resize;
use super::spec::{PodView, is_sidecar};
use super::termination_message;
use super::volumes;
use crate::runtime::image::signal_name;
use crate::runtime::{Container, ContainerState, Exit, ExitCause};

/// What a status says beyond the pod and its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// The node's own addresses, the first one first.
    pub host_addresses: Vec<IpAddr>,
    /// The termination messages of containers that ended, by id.
    pub termination_messages: BTreeMap<String, String>,
}

/// The status; `previous` is the last one, whose start and transition times stay where nothing changed.
pub fn status(
    pod: &PodView,
    observed: &Observed,
    surroundings: &Surroundings,
    previous: &PodStatus,
    now: Timestamp,
) -> PodStatus {
    let mut view = View {
        pod,
        observed,
        surroundings,
        previous,
        phase: phase(pod, observed, now),
        now,
    };
    let init = view.statuses(pod.init_containers());
    let main = view.statuses(pod.containers());
    let mut ephemeral = view.statuses(&pod.ephemeral);
    for status in &mut ephemeral {
        // Nobody asks it.
        (status.ready, status.started) = (false, None);
    }
    view.phase = view.last_phase(&main);
    let addresses = view.addresses();
    let phase = view.phase_name(&main);
    let conditions = view.conditions(&init, &main);
    let (reason, message) = match view.phase {
        Phase::DeadlineExceeded => (
            Some(DEADLINE_EXCEEDED.to_owned()),
            Some("Pod was active on the node longer than the specified deadline".to_owned()),
        ),
        Phase::Rejected => (
            Some(NODE_PORTS.to_owned()),
            Some(format!("Pod was rejected: {NOT_FREE}")),
        ),
        Phase::Evicted => {
            let known = observed.evicted.as_ref().map(|eviction| {
                let reason = Some(eviction.reason.to_owned());
                (reason, Some(eviction.message.clone()))
            });
            let told = |status: &PodStatus| (status.reason.clone(), status.message.clone());
            known
                .or_else(|| pod.object.status.as_ref().map(told))
                .unwrap_or_default()
        }
        // Of a pod that runs, an Event tells.
        _ if phase == "Running" => (None, None),
        _ => match (&observed.sandbox, &observed.volumes) {
            (Sandbox::Failed(failure), _) | (_, Volumes::Failed(failure)) => {
                (None, Some(failure.message.clone()))
            }
            _ => (None, None),
        },
    };
    let hosts = &surroundings.host_addresses;
    PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        conditions: Some(conditions),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: hosts.first().map(ToString::to_string),
        host_ips: (!hosts.is_empty()).then(|| {
            hosts
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect()
        }),
        pod_ip: addresses.first().map(ToString::to_string),
        pod_ips: (!addresses.is_empty()).then(|| {
            addresses
                .iter()
                .map(|ip| PodIP { ip: ip.to_string() })
                .collect()
        }),
        start_time: previous.start_time.clone().or(Some(Time(seconds(now)))),
        qos_class: Some(pod.qos().name().to_owned()),
        observed_generation: pod.object.metadata.generation,
        ..PodStatus::default()
    }
}

pub(super) struct View<'a> {
    pub(super) pod: &'a PodView,
    pub(super) observed: &'a Observed,
    surroundings: &'a Surroundings,
    pub(super) previous: &'a PodStatus,
    pub(super) phase: Phase,
    pub(super) now: Timestamp,
}

impl View<'_> {
    /// Whether nothing of the pod will be started any more.
    fn is_done(&self) -> bool {
        self.phase != Phase::Active || self.pod.is_being_deleted()
    }

    /// A pod that is being deleted restarts nothing: it is done when its containers are, whatever its restart policy.
    fn last_phase(&self, main: &[ContainerStatus]) -> Phase {
        if self.phase != Phase::Active || !self.is_done() || self.observed.any_running() {
            return self.phase;
        }
        let code =
            |status: &ContainerStatus| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code);
        match main.iter().map(code).collect::<Option<Vec<i32>>>() {
            None => Phase::Active,
            Some(codes) if codes.iter().all(|code| *code == 0) => Phase::Succeeded,
            Some(_) => Phase::Failed,
        }
    }

    pub(super) fn is_initialized(&self) -> bool {
        is_initialized(self.pod, self.observed)
            // The records that say so may be gone by now.
            || self.is_done() && previously(self.previous, "Initialized")
    }

    fn addresses(&self) -> Vec<IpAddr> {
        match &self.observed.sandbox {
            Sandbox::Ready { .. } if self.pod.host_network() => {
                self.surroundings.host_addresses.clone()
            }
            Sandbox::Ready { addresses } => addresses.clone(),
            // A pod that is done is still shown with the address it had. So is one that runs while its agent has only just
            // begun, or finds it hard to look: its address must not come and go with the agent.
            sandbox
                if self.phase != Phase::Active
                    || *sandbox == Sandbox::Unknown
                    || self.observed.any_running() =>
            {
                let known = self.previous.pod_ips.iter().flatten();
                known.filter_map(|known| known.ip.parse().ok()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn statuses(&self, specs: &[ContainerSpec]) -> Vec<ContainerStatus> {
        specs.iter().map(|spec| self.container(spec)).collect()
    }

    fn container(&self, spec: &ContainerSpec) -> ContainerStatus {
        let latest = self.observed.latest(&spec.name);
        if latest.is_none()
            && self.is_done()
            && let Some(told) = self.told(&spec.name)
        {
            return told;
        }
        let previous = self.observed.previous(&spec.name);
        let state = self.state(spec, latest);
        // The end of the newest one is its last state while another is waited for.
        let last = match (latest, &state.waiting) {
            (Some(latest), Some(_)) => self
                .terminated(latest)
                .or(previous.and_then(|c| self.terminated(c))),
            _ => previous.and_then(|container| self.terminated(container)),
        };
        let running = state.running.is_some();
        let completed_init = self
            .pod
            .init_containers()
            .iter()
            .any(|init| init.name == spec.name)
            && !is_sidecar(spec)
            && state
                .terminated
                .as_ref()
                .is_some_and(|end| end.exit_code == 0);
        let given = latest.and_then(resize::given);
        ContainerStatus {
            name: spec.name.clone(),
            allocated_resources: given.as_ref().and_then(|given| given.requests.clone()),
            resources: given,
            image: spec.image.clone().unwrap_or_default(),
            image_id: latest
                .map(|container| container.image_id.clone())
                .unwrap_or_default(),
            container_id: latest.map(api_id),
            ready: completed_init
                || running && latest.is_some_and(|c| probe::is_ready(spec, c, self.observed)),
            started: Some(
                running && latest.is_some_and(|c| probe::is_started(spec, c, self.observed)),
            ),
            restart_count: latest.map_or(0, |container| count(container.attempt)),
            stop_signal: latest.and_then(|container| signal_name(container.stop_signal)),
            user: latest.and_then(user),
            volume_mounts: latest.and_then(|_| volume_mounts(spec)),
            state: Some(state),
            last_state: Some(ApiState {
                terminated: last,
                ..ApiState::default()
            }),
            ..ContainerStatus::default()
        }
    }

    /// What was told of a container whose record is gone since. It has ended, even if nobody saw how.
    fn told(&self, name: &str) -> Option<ContainerStatus> {
        let previous = self.previous;
        let init = previous.init_container_statuses.iter().flatten();
        let main = previous.container_statuses.iter().flatten();
        let ephemeral = previous.ephemeral_container_statuses.iter().flatten();
        let mut all = init.chain(main).chain(ephemeral);
        let mut status = all.find(|status| status.name == name)?.clone();
        let container_id = Some(status.container_id.clone()?);
        let state = status.state.get_or_insert_default();
        if let Some(running) = state.running.take() {
            state.terminated = Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some(
                    "The container could not be located when the pod was terminated".into(),
                ),
                started_at: running.started_at,
                finished_at: Some(Time(seconds(self.now))),
                container_id,
                ..ContainerStateTerminated::default()
            });
            status.ready = false;
            status.started = Some(false);
        }
        Some(status)
    }

    fn state(&self, spec: &ContainerSpec, latest: Option<&Container>) -> ApiState {
        let waiting = |reason: &str, message: Option<String>| ApiState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                message,
            }),
            ..ApiState::default()
        };
        let failure = || {
            let of_volumes = image_volumes::of(self.pod, spec);
            let of_volumes = of_volumes.map(|(_, source)| image_volumes::reference(source));
            let own = spec.image.as_deref().unwrap_or_default();
            let mut images = std::iter::once(own).chain(of_volumes);
            let of_image = images.find_map(|image| match self.observed.images.get(image) {
                Some(ImageState::Failed(failure)) => Some(failure),
                _ => None,
            });
            of_image.or(self.observed.failures.get(&spec.name))
        };
        // As upstream, which says so also of a pod that has been initialized.
        let unstarted = || match self.pod.init_containers() {
            [] => waiting("ContainerCreating", None),
            _ => waiting("PodInitializing", None),
        };
        let Some(container) = latest else {
            return match failure() {
                Some(failure) => waiting(failure.reason, Some(failure.message.clone())),
                None => unstarted(),
            };
        };
        match &container.state {
            ContainerState::Created => match failure() {
                Some(failure) => waiting(failure.reason, Some(failure.message.clone())),
                None => unstarted(),
            },
            ContainerState::Running { .. } if self.observed.awaits_hook(container) => unstarted(),
            // Until it is known how it ended it counts as running: that is a matter of milliseconds.
            ContainerState::Running { .. } | ContainerState::Stopped(None) => ApiState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(seconds(container.created_at))),
                }),
                ..ApiState::default()
            },
            ContainerState::Exited(exit) | ContainerState::Stopped(Some(exit)) => {
                let restart = restart(self.pod, spec, container, exit).filter(|_| !self.is_done());
                match (restart, failure()) {
                    (Some(_), Some(failure)) => {
                        waiting(failure.reason, Some(failure.message.clone()))
                    }
                    (Some(restart), None) if restart.at > self.now => {
                        let wait = restart.at.duration_since(exit.at).as_secs();
                        let id = &self.pod.id;
                        let text = format!(
                            "back-off {} restarting failed container={} pod={}_{}({})",
                            clock(wait),
                            spec.name,
                            id.name,
                            id.namespace,
                            id.uid
                        );
                        waiting("CrashLoopBackOff", Some(text))
                    }
                    _ => ApiState {
                        terminated: self.terminated(container),
                        ..ApiState::default()
                    },
                }
            }
        }
    }

    fn terminated(&self, container: &Container) -> Option<ContainerStateTerminated> {
        let exit = container.state.exit()?;
        let message = Some(exit.message.clone())
            .filter(|message| !message.is_empty())
            .or_else(|| {
                self.surroundings
                    .termination_messages
                    .get(&container.id)
                    .cloned()
            });
        let containers = self.pod.every_container().count();
        let message = message.map(|text| termination_message::share(text, containers));
        Some(ContainerStateTerminated {
            exit_code: exit.code,
            signal: None,
            reason: Some(reason(exit).to_owned()),
            message,
            started_at: Some(Time(seconds(container.created_at))),
            finished_at: Some(Time(seconds(exit.at))),
            container_id: Some(api_id(container)),
        })
    }

    /// While a container runs the pod is not told to be over, as then others take its name, its room and its ports.
    fn phase_name(&self, main: &[ContainerStatus]) -> &'static str {
        let told = |name: &str| self.previous.phase.as_deref() == Some(name);
        let is_over = !self.observed.any_running() || told("Succeeded") || told("Failed");
        match self.phase {
            Phase::Succeeded if is_over => return "Succeeded",
            Phase::Failed | Phase::DeadlineExceeded | Phase::Rejected | Phase::Evicted
                if is_over =>
            {
                return "Failed";
            }
            _ => {}
        }
        // A container that ran before is in the middle of its life, even while it waits.
        let begun = |status: &ContainerStatus| {
            let waiting = status
                .state
                .as_ref()
                .is_some_and(|state| state.waiting.is_some());
            let ran = status
                .last_state
                .as_ref()
                .is_some_and(|state| state.terminated.is_some());
            !waiting || ran
        };
        if self.is_initialized() && main.iter().all(begun) {
            "Running"
        } else {
            "Pending"
        }
    }
}

/// Whether a status says that the pod can take traffic.
pub fn is_ready(status: &PodStatus) -> bool {
    previously(status, "Ready")
}

/// Whether a condition was true in the last status.
pub(super) fn previously(previous: &PodStatus, kind: &str) -> bool {
    let mut conditions = previous.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == kind && condition.status == "True")
}

fn reason(exit: &Exit) -> &'static str {
    match exit.cause {
        ExitCause::OutOfMemory => "OOMKilled",
        ExitCause::Start => "StartError",
        ExitCause::Unknown => "ContainerStatusUnknown",
        ExitCause::Process if exit.code == 0 => "Completed",
        ExitCause::Process => "Error",
    }
}

/// Whom the container's first process runs as at its start (KEP-3619).
fn user(container: &Container) -> Option<ApiUser> {
    let user = container.user.as_ref()?;
    let groups = user.groups.iter().map(|group| i64::from(*group));
    Some(ApiUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: Some(groups.collect()),
        }),
    })
}

/// How volumes are mounted; of read-only ones, whether what is mounted below is, too (KEP-3857).
fn volume_mounts(spec: &ContainerSpec) -> Option<Vec<VolumeMountStatus>> {
    let status = |mount: &VolumeMount| {
        let read_only = mount.read_only == Some(true);
        let recursive = match volumes::is_recursive(mount) {
            true => "Enabled",
            false => "Disabled",
        };
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| recursive.to_owned()),
        }
    };
    let mounts = spec.volume_mounts.as_ref()?;
    (!mounts.is_empty()).then(|| mounts.iter().map(status).collect())
}

fn api_id(container: &Container) -> String {
    format!("containerd://{}", container.id)
}

fn count(attempt: u32) -> i32 {
    i32::try_from(attempt).unwrap_or(i32::MAX)
}

/// The API keeps whole seconds; a finer time would look like a change each time it comes back.
pub(super) fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Seconds as `10s`, `2m40s`, `5m0s`.
fn clock(seconds: i64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}
