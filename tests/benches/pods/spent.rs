//! Processor time that a cluster's parts have spent.

use std::ops::{AddAssign, Sub};
use std::time::Duration;

use kernelet_tests::{Cluster, Node, Program, host};

#[derive(Clone, Copy, Default)]
pub struct Spent {
    /// All that runs on the worker, its pods' own processes apart.
    pub node: Duration,
    pub agent: Duration,
    pub control_plane: Duration,
}

impl Spent {
    pub fn now(cluster: &Cluster) -> Spent {
        let worker = cluster.workers().next().expect("there is a worker");
        let of = |node: &Node, program| {
            let process = &node.processes[&program];
            process.processor_time().expect("it runs")
        };
        Spent {
            node: of_system(worker),
            agent: of(worker, Program::Agent),
            control_plane: of(&cluster.nodes[0], Program::ControlPlane),
        }
    }
}

/// Shims, and what they run before it is in a pod's cgroup, count to containerd's.
fn of_system(node: &Node) -> Duration {
    let text = node
        .system_cgroup()
        .and_then(|cgroup| host::read(cgroup.join("cpu.stat")));
    let text = text.unwrap_or_else(|error| panic!("{error}"));
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    let micros = line.and_then(|number| number.parse().ok());
    Duration::from_micros(micros.expect("the kernel counts it"))
}

impl Sub for Spent {
    type Output = Spent;

    fn sub(self, before: Spent) -> Spent {
        Spent {
            node: self.node.saturating_sub(before.node),
            agent: self.agent.saturating_sub(before.agent),
            control_plane: self.control_plane.saturating_sub(before.control_plane),
        }
    }
}

impl AddAssign for Spent {
    fn add_assign(&mut self, more: Spent) {
        self.node += more.node;
        self.agent += more.agent;
        self.control_plane += more.control_plane;
    }
}
