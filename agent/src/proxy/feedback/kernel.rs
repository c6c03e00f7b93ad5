//! The backends as the kernel knows them: a thin effect.

use std::sync::Arc;

use agent_ebpf::abi::BackendId;

use super::super::policy::Target;
use super::ports::Look;
use super::signals::{Counters, Load};
use crate::dataplane::Maps;
use crate::pod::Loads;

/// Looks at the maps, and at the pods of this node.
pub struct Kernel {
    maps: Arc<Maps>,
    pods: Loads,
}

impl Kernel {
    pub fn new(maps: Arc<Maps>, pods: Loads) -> Self {
        Self { maps, pods }
    }
}

impl Look for Kernel {
    /// What cannot be read has not been used.
    fn counters(&mut self, backend: BackendId) -> Counters {
        self.maps
            .backend_stats(backend)
            .map_or_else(|_| Counters::default(), Counters::from)
    }

    fn load(&mut self, target: &Target) -> Load {
        let address = target.address.to_ip();
        Load {
            accept_queue: self.pods.backlog(address, target.port),
            cpu: self.pods.cpu(address),
        }
    }

    fn rest(&mut self) {
        self.pods.rest();
    }
}
