//! The rows of pods: at which link each is, how it is reached past the node's routes, what passed its link.

use std::collections::BTreeMap;

use agent_ebpf::abi::pods::{Passed, PodTarget, PodTraffic};
use agent_ebpf::abi::{Address, LinkIndex, PodEntry, maps as names};
use aya::maps::{MapError as AyaError, PerCpuValues};
use aya::util::nr_cpus;

use super::maps::{MapError, Maps, Sum, SumUp as _, read};

/// `BPF_NOEXIST`
const IF_ABSENT: u64 = 1;

impl Maps {
    /// Says which pod is at the other end of a network link. Its counters begin, or go on.
    pub(super) fn put_pod(&mut self, link: LinkIndex, pod: PodEntry) -> Result<(), MapError> {
        let put = self.pods.insert(link, pod, 0);
        put.map_err(failed(names::PODS))?;
        self.start_traffic(link, PodTraffic::default())
    }

    /// Puts the counters of a link, unless they are there.
    pub(super) fn start_traffic(
        &mut self,
        link: LinkIndex,
        traffic: PodTraffic,
    ) -> Result<(), MapError> {
        const MAP: &str = names::POD_TRAFFIC;
        let cpus = nr_cpus().map_err(|(_, error)| failed(MAP)(error.into()))?;
        let mut row = vec![PodTraffic::default(); cpus];
        row[0] = traffic;
        let row = PerCpuValues::try_from(row).map_err(|error| failed(MAP)(error.into()))?;
        match self.pod_traffic.insert(link, row, IF_ABSENT) {
            Err(error) if errno_of(&error) != Some(libc::EEXIST) => Err(failed(MAP)(error)),
            _ => Ok(()),
        }
    }

    /// Has packets to a pod's address go to it past the node's routes.
    pub(super) fn put_pod_target(&mut self, target: PodTarget) -> Result<(), MapError> {
        let present = self.pod_addresses.get(&target.address, 0);
        // What is there is not written anew: a program may be reading it.
        if present.is_ok_and(|present| present == target) {
            return Ok(());
        }
        let put = self.pod_addresses.insert(target.address, target, 0);
        put.map_err(failed(names::POD_ADDRESSES))
    }

    /// Leaves packets to the pod at a link to the node's routes.
    pub(super) fn remove_pod_targets(
        &mut self,
        goes: impl Fn(LinkIndex) -> bool,
    ) -> Result<(), MapError> {
        let rows: Result<Vec<_>, _> = self.pod_addresses.iter().collect();
        let rows = rows.map_err(|source| read(names::POD_ADDRESSES, source))?;
        for (address, target) in rows {
            if goes(target.link) {
                // It may have gone meanwhile.
                let _ = self.pod_addresses.remove(&address);
            }
        }
        Ok(())
    }

    /// Removes the rows of a network link that is gone.
    pub(super) fn forget_pod(&mut self, link: LinkIndex) {
        // It may have none.
        let _ = self.pods.remove(&link);
        let _ = self.pod_traffic.remove(&link);
    }

    /// Removes the rows of other network links than these.
    pub(super) fn keep_pods(&mut self, links: &[LinkIndex]) -> Result<(), MapError> {
        self.remove_pod_targets(|link| !links.contains(&link))?;
        let known = self.pods.keys().chain(self.pod_traffic.keys());
        let known: Result<Vec<LinkIndex>, _> = known.collect();
        let known = known.map_err(|source| read(names::PODS, source))?;
        let is_kept = |link: &LinkIndex| *link == LinkIndex::NONE || links.contains(link);
        for link in known.into_iter().filter(|link| !is_kept(link)) {
            self.forget_pod(link);
        }
        Ok(())
    }

    /// What passed the pods' links since these were made, by the pods' addresses.
    pub fn traffic(&self) -> Result<BTreeMap<Address, PodTraffic>, MapError> {
        let counted = self.pod_traffic()?;
        let mut found = BTreeMap::new();
        for row in self.pods.iter() {
            let (link, pod) = row.map_err(|source| read(names::PODS, source))?;
            let own = [pod.ipv4, pod.ipv6].into_iter();
            for address in own.filter(|address| *address != PodEntry::NONE) {
                found.insert(address, counted.get(&link).copied().unwrap_or_default());
            }
        }
        Ok(found)
    }

    /// The same by link.
    pub fn pod_traffic(&self) -> Result<BTreeMap<LinkIndex, PodTraffic>, MapError> {
        let rows = self.pod_traffic.iter().map(|row| {
            let (link, cpus) = row?;
            Ok((link, cpus.iter().copied().sum_up()))
        });
        let rows: Result<_, AyaError> = rows.collect();
        rows.map_err(|source| read(names::POD_TRAFFIC, source))
    }
}

fn failed(map: &'static str) -> impl FnOnce(AyaError) -> MapError {
    move |source| MapError::Put { map, source }
}

fn errno_of(error: &AyaError) -> Option<i32> {
    match error {
        AyaError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

impl Sum for PodTraffic {
    fn add(self, other: Self) -> Self {
        let sum = |a: Passed, b: Passed| Passed {
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
        };
        Self {
            sent: sum(self.sent, other.sent),
            received: sum(self.received, other.received),
        }
    }
}
