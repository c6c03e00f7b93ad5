//! What the node and its pods use of CPU and memory, as of now.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::paths::Paths;
use super::spec::QosClass;
use super::table::{ContainerSummary, PodSummary, PodTable};
use crate::node::facts::{self, ONLINE};
use crate::runtime::cgroup;
use crate::runtime::cpu::{CpuCounters, CpuHierarchy};
use crate::runtime::memory::{MemoryCounters, MemoryHierarchy};

/// What something has used of the CPU since it began, and what it holds of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub at: Timestamp,
    pub cpu: Duration,
    /// How a cgroup's share of the CPU is limited; the machine's is not.
    pub quota: Option<CpuCounters>,
    pub memory: MemoryCounters,
}

/// What has passed a pod's link, as the pod sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received: Direction,
    pub sent: Direction,
}

/// In one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    pub pod: PodSummary,
    pub cgroup: PathBuf,
    /// Of one with a link of its own.
    pub traffic: Option<Traffic>,
    pub all: Usage,
    /// Those that there are now.
    pub processes: Option<u64>,
    pub containers: Vec<(ContainerSummary, Usage)>,
}

/// The node with its pods.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeUsage {
    pub node: Option<Usage>,
    pub cpus: usize,
    /// Bytes.
    pub memory: u64,
    /// When the machine was started.
    pub booted_at: Timestamp,
    pub pods: Vec<PodUsage>,
}

/// Reads all of it.
pub fn read(pods: &PodTable, paths: &Paths) -> NodeUsage {
    let cpu = CpuHierarchy::find(&paths.hierarchies);
    let memory = MemoryHierarchy::find(&paths.hierarchies);
    let of = |cgroup: &Path| {
        let quota = cpu.as_ref()?.read(cgroup)?;
        Some(Usage {
            at: Timestamp::now(),
            cpu: quota.used,
            quota: Some(quota),
            memory: memory.as_ref()?.read(cgroup)?,
        })
    };
    let usage = |pod: PodSummary| {
        let mut cgroups = QosClass::ALL
            .into_iter()
            .map(|class| paths.cgroup(&pod.uid, class));
        let (cgroup, all) = cgroups.find_map(|cgroup| {
            let usage = of(&cgroup)?;
            Some((cgroup, usage))
        })?;
        let running = pod
            .containers
            .iter()
            .filter(|container| container.state == "running");
        let containers: Vec<_> = running
            .filter_map(|container| Some((container.clone(), of(&cgroup.join(&container.id))?)))
            .collect();
        let own = containers.first().filter(|_| !pod.host_network);
        let process = own.and_then(|(container, _)| {
            cgroup::any_process(&paths.hierarchies, &cgroup.join(&container.id))
        });
        let devices =
            process.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/net/dev")).ok());
        Some(PodUsage {
            traffic: devices.as_deref().and_then(traffic),
            containers,
            all,
            processes: cgroup::processes(&paths.hierarchies, &cgroup),
            cgroup,
            pod,
        })
    };
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let online = fs::read_to_string(ONLINE).unwrap_or_default();
    NodeUsage {
        cpus: facts::online(&online),
        memory: kib(&meminfo, "MemTotal").unwrap_or(0) << 10,
        node: node(&stat, &meminfo, Timestamp::now()),
        booted_at: booted_at(&stat),
        pods: pods.list().into_iter().filter_map(usage).collect(),
    }
}

/// The counters of a pod's link, from the text of `/proc/net/dev`.
fn traffic(text: &str) -> Option<Traffic> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("eth0:"))?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    let direction = |fields: &[u64]| match *fields {
        [bytes, packets, errors, dropped, ..] => Some(Direction {
            bytes,
            packets,
            errors,
            dropped,
        }),
        _ => None,
    };
    Some(Traffic {
        received: direction(fields.get(..8)?)?,
        sent: direction(fields.get(8..)?)?,
    })
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// The node's own, from the text of `/proc/stat` and `/proc/meminfo`.
fn node(stat: &str, meminfo: &str, at: Timestamp) -> Option<Usage> {
    let ticks: Vec<u64> = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))?
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; a guest's time is in user's already.
    let [user, nice, system, _, _, irq, softirq, steal, ..] = *ticks else {
        return None;
    };
    let kib = |name: &str| kib(meminfo, name);
    let usage = kib("MemTotal")?.saturating_sub(kib("MemFree")?);
    Some(Usage {
        at,
        // The kernel counts in hundredths of a second.
        cpu: Duration::from_millis((user + nice + system + irq + softirq + steal) * 10),
        quota: None,
        memory: MemoryCounters {
            usage: usage << 10,
            working_set: usage.saturating_sub(kib("Inactive(file)").unwrap_or(0)) << 10,
            anonymous: kib("AnonPages").unwrap_or(0) << 10,
            files: kib("Cached").unwrap_or(0) << 10,
            limit: None,
        },
    })
}

fn booted_at(stat: &str) -> Timestamp {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|seconds| seconds.trim().parse().ok())
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_has_used_what_was_not_idle() {
        let stat = "cpu  100 10 50 9999 5 1 2 3 7 0\ncpu0 1 1\nbtime 1000\n";
        let meminfo =
            "MemTotal:  1000 kB\nMemFree: 300 kB\nInactive(file):  200 kB\nAnonPages: 50 kB\n";
        let usage = node(stat, meminfo, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(usage.cpu, Duration::from_millis(1660));
        assert_eq!(
            (usage.memory.usage, usage.memory.working_set),
            (700 << 10, 500 << 10)
        );
        let devices = "Inter-|   Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  \
            eth0: 10 2 3 4 0 0 0 0 50 6 7 8 0 0 0 0\n";
        let traffic = traffic(devices).unwrap();
        assert_eq!((traffic.received.bytes, traffic.received.dropped), (10, 4));
        assert_eq!((traffic.sent.bytes, traffic.sent.errors), (50, 7));
        assert_eq!(booted_at(stat), Timestamp::from_second(1000).unwrap());
        assert_eq!(node("", "", Timestamp::UNIX_EPOCH), None);
    }
}
