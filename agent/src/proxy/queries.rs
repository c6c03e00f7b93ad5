//! What people and metrics ask of the state. Pure.

use std::collections::BTreeMap;

use agent_ebpf::abi::{BackendId, ServiceKey};

use super::live::Live;
use super::policy::{Ignored, Target};
use super::state::LbState;
use crate::cluster::ObjectKey;

impl LbState {
    pub fn frontends(&self) -> impl Iterator<Item = (&ServiceKey, &Live)> {
        self.frontends.iter()
    }

    /// What the maps have for one dialled address.
    pub fn frontend(&self, key: &ServiceKey) -> Option<&Live> {
        self.frontends.get(key)
    }

    /// The addresses of one service that are in the maps.
    pub fn frontends_of<'a>(
        &'a self,
        owner: &ObjectKey,
    ) -> impl Iterator<Item = (&'a ServiceKey, &'a Live)> + use<'a> {
        let claims = self.owned.get(owner).map(|owned| owned.claims.iter());
        claims
            .into_iter()
            .flatten()
            .filter_map(|key| self.frontends.get_key_value(key))
    }

    /// Every backend, with where it listens.
    pub fn backends(&self) -> impl Iterator<Item = (BackendId, Target)> + '_ {
        self.backends.iter()
    }

    /// Where a backend listens.
    pub fn backend(&self, id: BackendId) -> Option<Target> {
        self.backends.target(id)
    }

    pub fn backend_count(&self) -> usize {
        self.backends.len()
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// How many ports and addresses are left out, by reason.
    pub fn ignored(&self) -> BTreeMap<Ignored, usize> {
        let mut all = BTreeMap::new();
        for ignored in self.owned.values().flat_map(|owned| owned.ignored.iter()) {
            *all.entry(*ignored).or_default() += 1;
        }
        all
    }

    /// What is left out of one service.
    pub fn ignored_of(&self, owner: &ObjectKey) -> &[Ignored] {
        self.owned.get(owner).map_or(&[], |owned| &owned.ignored)
    }

    /// Addresses that a service asks for and another has, with the one that has it.
    pub fn conflicts_of(&self, owner: &ObjectKey) -> Vec<(ServiceKey, Option<&ObjectKey>)> {
        let waits_for = self
            .owned
            .get(owner)
            .map_or(&[][..], |owned| &owned.waits_for);
        waits_for
            .iter()
            .map(|key| {
                (
                    *key,
                    self.frontends.get(key).and_then(|live| live.owner.as_ref()),
                )
            })
            .collect()
    }
}
