//! What people and metrics ask of the state. Pure.

use std::collections::BTreeMap;

use agent_ebpf::abi::{BackendId, ServiceKey};

use super::live::Live;
use super::policy::Target;
use super::state::LbState;
use crate::cluster::{Ignored, ObjectKey, Why};

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

    /// How much of the services is left out, by reason.
    pub fn ignored(&self) -> BTreeMap<Why, usize> {
        let mut all = BTreeMap::new();
        for ignored in self.owned.values().flat_map(|owned| owned.ignored.iter()) {
            *all.entry(ignored.why).or_default() += ignored.count as usize;
        }
        all
    }

    /// What is left out of one service.
    pub fn ignored_of(&self, owner: &ObjectKey) -> &[Ignored] {
        self.owned.get(owner).map_or(&[], |owned| &owned.ignored)
    }

    /// Services that a node's addresses or pods keep from having an address.
    pub(super) fn kept_off_by_nodes(&self) -> impl Iterator<Item = &ObjectKey> {
        let is_kept_off =
            |ignored: &Ignored| matches!(ignored.why, Why::NodeAddress | Why::PodRange);
        let owned = self.owned.iter();
        owned
            .filter(move |(_, owned)| owned.ignored.iter().any(is_kept_off))
            .map(|(key, _)| key)
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
