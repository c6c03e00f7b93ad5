//! What people and metrics ask of the state. Pure.

use std::collections::BTreeMap;

use agent_ebpf::abi::{BackendId, FLAG_SOURCE_RANGES, Scope, ServiceKey};
use agent_ebpf::node_port;

use super::live::Live;
use super::policy::Target;
use super::state::LbState;
use crate::cluster::{Ignored, ObjectKey, Why};
use crate::dataplane::SourcePrefix;

impl LbState {
    pub fn frontends(&self) -> impl Iterator<Item = (&ServiceKey, &Live)> {
        self.frontends.iter()
    }

    /// What the maps have for one dialled address.
    pub fn frontend(&self, key: &ServiceKey) -> Option<&Live> {
        self.frontends.get(key)
    }

    /// What the maps have for an address that a socket was translated for: its own row, or that of a node port.
    pub fn dialled(&self, key: &ServiceKey) -> Option<&Live> {
        let node_port = || {
            self.frontends.get(&ServiceKey {
                address: node_port::any(&key.address),
                ..*key
            })
        };
        self.frontends.get(key).or_else(node_port)
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

    /// Who is let in to a service's address; `None` for everybody.
    pub fn source_ranges(&self, live: &Live) -> Option<impl Iterator<Item = &SourcePrefix>> {
        let guarded = live.entry.flags & FLAG_SOURCE_RANGES != 0;
        guarded.then(|| self.ranges.of(live.entry.service_id))
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

    /// Addresses that a service asks for and another has, with the one that has it. One that it lacks in both scopes is
    /// told once.
    pub fn conflicts_of(&self, owner: &ObjectKey) -> Vec<(ServiceKey, Option<&ObjectKey>)> {
        let waits_for = self
            .owned
            .get(owner)
            .map_or(&[][..], |owned| &owned.waits_for);
        let inside = |key: &ServiceKey| ServiceKey {
            scope: Scope::CLUSTER,
            ..*key
        };
        waits_for
            .iter()
            .filter(|key| key.scope == Scope::CLUSTER || !waits_for.contains(&inside(key)))
            .map(|key| {
                (
                    *key,
                    self.frontends.get(key).and_then(|live| live.owner.as_ref()),
                )
            })
            .collect()
    }
}
