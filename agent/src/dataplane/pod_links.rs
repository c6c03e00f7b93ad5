//! What guards the node's end of each pod's link: the programs there, and the rows that say whose link it is and how the pod
//! is reached.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_ebpf::abi::pods::PodTarget;
use agent_ebpf::abi::{LinkIndex, PodEntry};

use super::maps::{MapError, Maps};
use super::tc::{AttachError, Hook, LinkPrograms, link_name};
use crate::network::addresses::{host_mac, pod_mac};
use crate::network::ranges::PodAddresses;
use crate::network::{LinkGuard, NetworkError};

/// Writes `PODS` and `POD_ADDRESSES`, and attaches `kn_pod_out` and `kn_pod_in`.
pub struct PodLinks {
    programs: LinkPrograms,
    maps: Mutex<Maps>,
}

/// Why a pod's link is not guarded.
#[derive(Debug, thiserror::Error)]
enum GuardError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Attach(#[from] AttachError),
}

impl PodLinks {
    /// For the maps pinned in `dir`.
    pub fn new(programs: LinkPrograms, dir: &Path) -> Result<Self, MapError> {
        let maps = Mutex::new(Maps::open(dir)?);
        Ok(Self { programs, maps })
    }

    /// Says at which of the node's addresses it refuses what pods dial by packets and no backend can answer.
    pub fn refuse_at(&self, own: &[IpAddr]) -> Result<(), MapError> {
        self.maps().put_pod(LinkIndex::NONE, entry(own))
    }

    fn guard(&self, index: LinkIndex, name: &str, addresses: &[IpAddr]) -> Result<(), GuardError> {
        // The row first: the program drops what comes from a pod that it does not know.
        self.maps().put_pod(index, entry(addresses))?;
        for hook in [Hook::PodOut, Hook::PodIn] {
            self.programs.attach(hook, index, name)?;
        }
        // And then others find the pod.
        for target in targets(index, addresses) {
            self.maps().put_pod_target(target)?;
        }
        Ok(())
    }

    fn forget_others(&self, links: &[LinkIndex]) -> Result<(), GuardError> {
        self.maps().keep_pods(links)?;
        Ok(self.programs.sweep()?)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        // It holds handles only, which a panic leaves as they are.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LinkGuard for PodLinks {
    fn guard(&self, index: u32, name: &str, addresses: &[IpAddr]) -> Result<(), NetworkError> {
        self.guard(LinkIndex(index), name, addresses)
            .map_err(|error| NetworkError::Guard(Box::new(error)))
    }

    fn withdraw(&self, index: u32) -> Result<(), NetworkError> {
        let removed = self.maps().remove_pod_targets(|link| link.0 == index);
        removed.map_err(|error| NetworkError::Guard(Box::new(error)))
    }

    fn forget(&self, index: u32) -> Result<(), NetworkError> {
        self.maps().forget_pod(LinkIndex(index));
        let swept = self.programs.sweep_link(LinkIndex(index));
        swept.map_err(|error| NetworkError::Guard(Box::new(error)))
    }

    fn sweep(&self) -> Result<(), NetworkError> {
        // A link that is made meanwhile is found: its index is that of no link before it.
        let is_gone = |link| link_name(link).is_none();
        let removed = self.maps().remove_pod_targets(is_gone);
        removed.map_err(|error| NetworkError::Guard(Box::new(error)))
    }

    fn keep_only(&self, links: &[u32]) -> Result<(), NetworkError> {
        let links: Vec<LinkIndex> = links.iter().copied().map(LinkIndex).collect();
        self.forget_others(&links)
            .map_err(|error| NetworkError::Guard(Box::new(error)))
    }
}

/// The row of a pod with these addresses: the first of each family.
fn entry(addresses: &[IpAddr]) -> PodEntry {
    let first = |is_wanted: fn(&IpAddr) -> bool| {
        let found = addresses.iter().copied().find(is_wanted);
        found.map_or(PodEntry::NONE, Into::into)
    };
    PodEntry {
        ipv4: first(IpAddr::is_ipv4),
        ipv6: first(IpAddr::is_ipv6),
    }
}

/// How a pod with these addresses is reached at each of them.
fn targets(link: LinkIndex, addresses: &[IpAddr]) -> impl Iterator<Item = PodTarget> {
    let pod: PodAddresses = addresses.iter().copied().collect();
    let (pod_mac, node_mac) = (pod_mac(&pod), host_mac(&pod));
    let own = entry(addresses);
    let own = [own.ipv4, own.ipv6].into_iter();
    own.filter(|address| *address != PodEntry::NONE)
        .map(move |address| PodTarget {
            address,
            link,
            pod_mac,
            node_mac,
        })
}

impl fmt::Debug for PodLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodLinks").finish_non_exhaustive()
    }
}
