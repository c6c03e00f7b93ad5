//! What the node and its pods use of CPU and memory, as of now.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use super::paths::Paths;
use super::spec::QosClass;
use super::table::{ContainerSummary, PodSummary, PodTable};
use crate::runtime::cgroup;
use crate::runtime::cpu::CpuHierarchy;
use crate::runtime::memory::{MemoryCounters, MemoryHierarchy};

/// What something has used of the CPU since it began, and what it holds of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    pub at: Timestamp,
    pub cpu: Duration,
    pub memory: MemoryCounters,
}

/// A pod that runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    pub pod: PodSummary,
    pub all: Usage,
    /// Those that there are now.
    pub processes: Option<u64>,
    pub containers: Vec<(ContainerSummary, Usage)>,
}

/// The node with its pods.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeUsage {
    pub node: Option<Usage>,
    /// When the machine was started.
    pub booted_at: Timestamp,
    pub pods: Vec<PodUsage>,
}

/// Reads all of it.
pub fn read(pods: &PodTable, paths: &Paths) -> NodeUsage {
    let cpu = CpuHierarchy::find(&paths.hierarchies);
    let memory = MemoryHierarchy::find(&paths.hierarchies);
    let of = |cgroup: &Path| {
        Some(Usage {
            at: Timestamp::now(),
            cpu: cpu.as_ref()?.read(cgroup)?.used,
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
        let containers = running
            .filter_map(|container| Some((container.clone(), of(&cgroup.join(&container.id))?)));
        Some(PodUsage {
            containers: containers.collect(),
            all,
            processes: cgroup::processes(&paths.hierarchies, &cgroup),
            pod,
        })
    };
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    NodeUsage {
        node: node(&stat, &meminfo, Timestamp::now()),
        booted_at: booted_at(&stat),
        pods: pods.list().into_iter().filter_map(usage).collect(),
    }
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
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .ok()
    };
    let usage = kib("MemTotal")?.saturating_sub(kib("MemFree")?);
    Some(Usage {
        at,
        // The kernel counts in hundredths of a second.
        cpu: Duration::from_millis((user + nice + system + irq + softirq + steal) * 10),
        memory: MemoryCounters {
            usage: usage << 10,
            working_set: usage.saturating_sub(kib("Inactive(file)").unwrap_or(0)) << 10,
            anonymous: kib("AnonPages").unwrap_or(0) << 10,
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
        assert_eq!(booted_at(stat), Timestamp::from_second(1000).unwrap());
        assert_eq!(node("", "", Timestamp::UNIX_EPOCH), None);
    }
}
