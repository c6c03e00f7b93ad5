//! Who announces what, for people who ask.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::election::Nobody;
use crate::cluster::Name;

/// The announcing node of an address, or why there is none.
pub type Announced = Result<Name, Nobody>;

/// What this node knows of who announces which address. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Announcements(Arc<ArcSwap<BTreeMap<IpAddr, Announced>>>);

impl Announcements {
    pub(super) fn set(&self, all: BTreeMap<IpAddr, Announced>) {
        self.0.store(Arc::new(all));
    }

    /// `None` for an address that is no load balancer's of ours.
    pub fn of(&self, address: IpAddr) -> Option<Announced> {
        self.0.load().get(&address).cloned()
    }
}
