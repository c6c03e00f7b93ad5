//! What the maps hold, and the writes that lead from there to what is desired. Pure.
//!
//! One service address moves in one [`Flip`]: backends, slots and Maglev table of a new generation first, and source
//! ranges, then the one write of its `SERVICES` entry that switches to them. What that leaves behind is removed two calls
//! of [`LbState::collect`] later, so that no lookup is still in the middle of it. A flip is planned, performed, then
//! settled, before the next is planned: the state never claims a row that is not there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use agent_ebpf::abi::{BackendId, Scope, ServiceEntry, ServiceKey, UDP};
use ipnet::IpNet;

use super::backends::{Backends, Ids};
use super::live::{Live, Table};
use super::maglev;
use super::policy::{AddressKind, Backend, Class, Frontend, Preference, Target};
use super::ranges::Ranges;
use crate::cluster::{Ignored, ObjectKey, Why};
use crate::dataplane::{MapOp, Sockets, SourcePrefix};

/// The writes that move one service address to its next state. Perform them in order, stop at the first that fails, and
/// give the flip back to [`LbState::settle`].
#[derive(Debug)]
pub struct Flip {
    pub key: ServiceKey,
    pub ops: Vec<MapOp>,
    /// `None` removes the address.
    next: Option<Live>,
    /// Who is let in from then on.
    ranges: Vec<SourcePrefix>,
}

#[derive(Debug, Default)]
pub(super) struct Owned {
    pub(super) claims: Box<[ServiceKey]>,
    /// Addresses that another service has; see [`LbState::heir`].
    pub(super) waits_for: Box<[ServiceKey]>,
    pub(super) ignored: Box<[Ignored]>,
}

/// What the maps hold. Whoever changes the maps does it through this.
#[derive(Debug)]
pub struct LbState {
    pub(super) frontends: HashMap<ServiceKey, Live>,
    pub(super) backends: Backends,
    pub(super) service_ids: HashSet<u32>,
    pub(super) ids: Ids,
    pub(super) orphans: BTreeSet<ServiceKey>,
    /// Left behind since the last [`Self::collect`], and before it.
    pub(super) retired: Vec<Table>,
    retired_before: Vec<Table>,
    pub(super) ranges: Ranges,
    pub(super) owned: BTreeMap<ObjectKey, Owned>,
    waiting: BTreeMap<ServiceKey, BTreeSet<ObjectKey>>,
    /// Services that another's cluster IP keeps from having an address.
    pub(super) kept_off: BTreeSet<ObjectKey>,
    pub(super) synced: bool,
    /// The view has the host ports of all pods of this node.
    host_ports_known: bool,
}

impl LbState {
    /// The state of empty maps.
    pub fn new() -> Self {
        Self::starting_at(1, 1)
    }

    pub(super) fn starting_at(service_id: u32, backend_id: u32) -> Self {
        Self {
            frontends: HashMap::new(),
            backends: Backends::new(Ids::starting_at(backend_id)),
            service_ids: HashSet::new(),
            ids: Ids::starting_at(service_id),
            orphans: BTreeSet::new(),
            retired: Vec::new(),
            retired_before: Vec::new(),
            ranges: Ranges::default(),
            owned: BTreeMap::new(),
            waiting: BTreeMap::new(),
            kept_off: BTreeSet::new(),
            synced: false,
            host_ports_known: false,
        }
    }

    /// From now on the view is whole: what it does not name may go.
    pub fn set_synced(&mut self) {
        self.synced = true;
    }

    /// So it is with host ports, which come from this node's pods and not from the API.
    pub fn set_host_ports_known(&mut self) {
        self.host_ports_known = true;
    }

    /// Says which addresses `owner` has; the ones it no longer has become orphans. Returns the frontends to plan: those
    /// whose address no other service holds.
    pub fn assign(
        &mut self,
        owner: &ObjectKey,
        desired: Vec<Frontend>,
        ignored: Vec<Ignored>,
    ) -> Vec<Frontend> {
        let before = self.owned.remove(owner).unwrap_or_default();
        for key in &before.waits_for {
            if let Some(waiting) = self.waiting.get_mut(key) {
                waiting.remove(owner);
                if waiting.is_empty() {
                    self.waiting.remove(key);
                }
            }
        }
        match ignored.iter().any(|it| it.why == Why::ClusterAddress) {
            true => self.kept_off.insert(owner.clone()),
            false => self.kept_off.remove(owner),
        };
        let (mut granted, mut waits_for) = (Vec::<Frontend>::new(), Vec::new());
        let mut asked = HashSet::new();
        for frontend in desired {
            // Two ports that say the same number would take turns; the first has it.
            if !asked.insert(frontend.key) {
                continue;
            }
            match self.frontends.get_mut(&frontend.key) {
                Some(live) if live.holder_before(owner, &frontend, self.synced).is_some() => {
                    self.waiting
                        .entry(frontend.key)
                        .or_default()
                        .insert(owner.clone());
                    waits_for.push(frontend.key);
                    continue;
                }
                Some(live) => {
                    let holder = live.owner.replace(owner.clone());
                    live.created = frontend.created;
                    live.kind = frontend.kind;
                    self.orphans.remove(&frontend.key);
                    if let Some(holder) = holder.filter(|holder| holder != owner) {
                        self.displace(holder, frontend.key);
                    }
                }
                None => {}
            }
            granted.push(frontend);
        }
        let claims: Box<[ServiceKey]> = granted.iter().map(|frontend| frontend.key).collect();
        for key in before.claims.iter().filter(|key| !asked.contains(key)) {
            if let Some(live) = self.frontends.get_mut(key)
                && live.owner.as_ref() == Some(owner)
            {
                live.owner = None;
                self.orphans.insert(*key);
            }
        }
        if !(claims.is_empty() && waits_for.is_empty() && ignored.is_empty()) {
            let owned = Owned {
                claims,
                waits_for: waits_for.into(),
                ignored: ignored.into(),
            };
            self.owned.insert(owner.clone(), owned);
        }
        granted
    }

    /// A service that had an address has to wait for it from now on.
    fn displace(&mut self, holder: ObjectKey, key: ServiceKey) {
        if let Some(owned) = self.owned.get_mut(&holder) {
            let claims = owned.claims.iter().copied();
            owned.claims = claims.filter(|claim| *claim != key).collect();
            let waits_for = owned.waits_for.iter().copied();
            owned.waits_for = waits_for.chain([key]).collect();
        }
        self.waiting.entry(key).or_default().insert(holder);
    }

    /// The writes that bring one granted address to what is desired; `None` when it is so already.
    pub fn plan(&mut self, owner: &ObjectKey, frontend: &Frontend) -> Option<Flip> {
        let key = frontend.key;
        let live = self.frontends.get(&key);
        let kept = live
            .filter(|_| !self.synced)
            .map(|live| self.leftovers(live, frontend))
            .unwrap_or_default();
        // Where the policy changed to local-only and the view is partial, what was there stays usable.
        let partial = kept
            .iter()
            .any(|backend| !matches!(backend.class, Class::Local | Class::Draining));
        let preference = if partial && frontend.preference == Preference::LocalOnly {
            Preference::Node
        } else {
            frontend.preference
        };
        let mut backends: Vec<Backend> = frontend.offered().copied().collect();
        let draining = self.draining(live, frontend);
        backends.extend(draining);
        backends.extend(kept);
        backends.sort_unstable();

        let slots: Box<[BackendId]> = backends
            .iter()
            .map(|backend| self.backends.id_of(backend.target))
            .collect();
        let live = self.frontends.get(&key);
        let service_id = match live {
            Some(live) => live.entry.service_id,
            None => self.ids.allocate(|id| self.service_ids.contains(&id)),
        };
        let mut entry = entry(service_id, preference, frontend, &backends);
        let drawn = |entry: &ServiceEntry| (maglev::size(entry), maglev::pool(entry));
        let same_table = live.is_some_and(|live| {
            let same_maglev = maglev::size(&entry).is_none() && maglev::size(&live.entry).is_none()
                || drawn(&entry) == drawn(&live.entry);
            live.broken.is_none() && live.slots == slots && same_maglev
        });
        let last_generation = live.map_or(0, |live| live.last_generation);
        let generation = match live {
            Some(live) if same_table => live.entry.generation,
            _ => last_generation.wrapping_add(1),
        };
        entry.generation = generation;
        let next = Live {
            owner: Some(owner.clone()),
            created: frontend.created,
            port_name: frontend.port_name.clone(),
            kind: frontend.kind,
            preference,
            entry,
            slots,
            last_generation: if same_table {
                last_generation
            } else {
                generation
            },
            broken: None,
        };

        if !same_table {
            self.backends.hold(next.slots.iter());
        }
        let mut ops: Vec<MapOp> = next
            .slots
            .iter()
            .filter_map(|id| self.backends.write(*id))
            .map(|(id, row)| MapOp::PutBackend(id, row))
            .collect();
        // Whoever leaves the table while its service stays has gone.
        let left = self.frontends.get(&key).into_iter();
        let stays: HashSet<&BackendId> = next.slots.iter().collect();
        for id in left.flat_map(|live| live.slots.iter()) {
            if !stays.contains(id) {
                self.backends.when_idle(*id, Sockets::Close);
            }
        }
        if !same_table {
            ops.extend(
                next.table()
                    .rows()
                    .map(|(slot, id)| MapOp::PutSlot(slot, id)),
            );
            ops.extend(self.maglev(&next));
        }
        let ranges = ranges(service_id, frontend);
        let missing = self.ranges.missing(&ranges).into_iter();
        ops.extend(missing.map(MapOp::PutSourceRange));
        let live = self.frontends.get_mut(&key);
        if !same_table || live.as_ref().is_none_or(|live| live.entry != next.entry) {
            ops.push(MapOp::PutService(key, next.entry));
        }
        if ops.is_empty()
            && let Some(live) = live
        {
            // Nothing for the maps; names may have changed all the same, and who is let in no longer.
            *live = next;
            self.ranges.settle(service_id, &ranges);
            return None;
        }
        Some(Flip {
            key,
            ops,
            next: Some(next),
            ranges,
        })
    }

    /// Addresses whose service has gone, or whose pod. None while the view is partial.
    pub fn orphans(&self) -> Vec<ServiceKey> {
        let orphans = self.orphans.iter().copied();
        orphans.filter(|key| self.is_gone(key)).collect()
    }

    /// Whether it means something that nobody claims the address.
    fn is_gone(&self, key: &ServiceKey) -> bool {
        let live = self.frontends.get(key);
        let of_pod = live.is_some_and(|live| live.kind == AddressKind::HostPort);
        self.synced && (!of_pod || self.host_ports_known)
    }

    /// A service that asked for an address while another had it. Assigning and planning it anew hands the address over
    /// without a gap.
    pub fn heir(&self, key: &ServiceKey) -> Option<ObjectKey> {
        self.waiting.get(key)?.first().cloned()
    }

    /// The write that removes an orphan.
    pub fn remove(&mut self, key: ServiceKey) -> Option<Flip> {
        if !self.is_gone(&key) || !self.orphans.contains(&key) {
            return None;
        }
        let live = self.frontends.get(&key)?;
        let sockets = match live.kind {
            // The pod itself has gone.
            AddressKind::HostPort => Sockets::Close,
            _ => Sockets::Keep,
        };
        for id in live.slots.iter() {
            self.backends.when_idle(*id, sockets);
        }
        Some(Flip {
            key,
            ops: vec![MapOp::DeleteService(key)],
            next: None,
            ranges: Vec::new(),
        })
    }

    /// Takes note of what became of a flip. A failed one leaves the address as it was, and its rows to be collected.
    pub fn settle(&mut self, flip: Flip, performed: bool) {
        let Flip {
            key,
            ops,
            next,
            ranges,
        } = flip;
        if !performed {
            self.undo(key, &ops, next);
            return;
        }
        let before = match next {
            Some(next) => {
                self.service_ids.insert(next.entry.service_id);
                self.ranges.settle(next.entry.service_id, &ranges);
                let generation = next.entry.generation;
                self.frontends
                    .insert(key, next)
                    .filter(|before| before.entry.generation != generation)
            }
            None => {
                self.orphans.remove(&key);
                let before = self.frontends.remove(&key);
                if let Some(before) = &before {
                    self.service_ids.remove(&before.entry.service_id);
                    self.ranges.settle(before.entry.service_id, &[]);
                }
                before
            }
        };
        self.retired.extend(before.map(|before| before.table()));
    }

    fn undo(&mut self, key: ServiceKey, ops: &[MapOp], next: Option<Live>) {
        for op in ops {
            if let MapOp::PutBackend(id, _) = op {
                self.backends.unwritten(*id);
            }
        }
        self.ranges.undo(ops.iter().filter_map(|op| match op {
            MapOp::PutSourceRange(range) => Some(*range),
            _ => None,
        }));
        let Some(next) = next else { return };
        match self.frontends.get_mut(&key) {
            Some(live) if live.entry.generation == next.entry.generation => {}
            Some(live) => {
                live.last_generation = next.last_generation;
                self.retired.push(next.table());
            }
            None => self.retired.push(next.table()),
        }
    }

    /// Removes what flips left behind before the last call. Each of these writes may be repeated at any later time, while
    /// [`Self::may_go`] says so. Empty while the view is partial.
    pub fn collect(&mut self) -> Vec<MapOp> {
        if !self.synced {
            return Vec::new();
        }
        let due = std::mem::replace(&mut self.retired_before, std::mem::take(&mut self.retired));
        let ranges = self.ranges.collect().into_iter();
        let mut ops: Vec<MapOp> = ranges.map(MapOp::DeleteSourceRange).collect();
        for table in due {
            ops.extend(table.rows().map(|(slot, _)| MapOp::DeleteSlot(slot)));
            ops.extend(table.maglev_keys().map(MapOp::DeleteMaglev));
            self.backends.release(table.rows.iter().map(|(_, id)| id));
        }
        ops.extend(
            self.backends
                .take_idle()
                .into_iter()
                .map(|(id, sockets)| MapOp::DeleteBackend(id, sockets)),
        );
        ops
    }

    /// Whether a removal that [`Self::collect`] once gave is still right. Generations and ids do not come back; source
    /// ranges may.
    pub fn may_go(&self, op: &MapOp) -> bool {
        match op {
            MapOp::DeleteSourceRange(range) => self.ranges.may_go(range),
            _ => true,
        }
    }

    /// Whether [`Self::collect`] has something to do, now or at its next call.
    pub fn has_garbage(&self) -> bool {
        let tables = !self.retired.is_empty() || !self.retired_before.is_empty();
        self.synced && (tables || self.ranges.has_garbage() || self.backends.has_idle())
    }

    /// Backends that are offered no longer and still there: the connections that they have go on. While the view is partial
    /// they are among [`Self::leftovers`].
    fn draining(&self, live: Option<&Live>, frontend: &Frontend) -> Vec<Backend> {
        let Some(live) = live.filter(|_| self.synced) else {
            return Vec::new();
        };
        let offered: HashSet<Target> = frontend.offered().map(|backend| backend.target).collect();
        let there = |target: &Target| {
            let mut backends = frontend.backends.iter();
            backends.any(|backend| backend.target.address == target.address)
        };
        let class = Class::Draining;
        self.targets(live)
            .map(|(_, target)| target)
            // A connected UDP socket would send to it for ever and never know; closed, it is made anew.
            .filter(|target| target.protocol != UDP && !offered.contains(target) && there(target))
            .map(|target| Backend { class, target })
            .collect()
    }

    /// Backends of the live table that a partial view does not offer: they stay, where they stood.
    fn leftovers(&self, live: &Live, frontend: &Frontend) -> Vec<Backend> {
        let offered: HashSet<Target> = frontend.offered().map(|backend| backend.target).collect();
        let mut kept: Vec<Backend> = self
            .targets(live)
            .filter(|(_, target)| !offered.contains(target))
            .map(|(slot, target)| Backend {
                class: live.class(slot),
                target,
            })
            .collect();
        kept.sort_unstable_by_key(|backend| backend.target);
        kept.dedup_by_key(|backend| backend.target);
        kept
    }

    /// The writes of its Maglev table, if it has one.
    fn maglev(&self, live: &Live) -> Vec<MapOp> {
        let ServiceEntry {
            service_id,
            generation,
            ..
        } = live.entry;
        let table = self.maglev_table(&live.entry, &live.slots);
        maglev::rows(service_id, generation, &table)
            .map(|(key, chunk)| MapOp::PutMaglev(key, Box::new(chunk)))
            .collect()
    }

    /// What the Maglev table of these slots is; empty where there is to be none.
    pub(super) fn maglev_table(&self, entry: &ServiceEntry, slots: &[BackendId]) -> Vec<BackendId> {
        let pool = slots.get(maglev::pool(entry)).unwrap_or_default().iter();
        let pool = pool.filter_map(|id| Some((self.backends.target(*id)?, *id)));
        let pool: Vec<(Target, BackendId)> = pool.collect();
        match maglev::size(entry) {
            Some(size) if !pool.is_empty() => maglev::table(size, pool),
            _ => Vec::new(),
        }
    }

    /// Each slot of a table, with where its backend listens.
    fn targets<'a>(&'a self, live: &'a Live) -> impl Iterator<Item = (usize, Target)> + 'a {
        let slots = live.slots.iter().enumerate();
        slots.filter_map(|(slot, id)| Some((slot, self.backends.target(*id)?)))
    }
}

impl Default for LbState {
    fn default() -> Self {
        Self::new()
    }
}

/// Which of a frontend's source ranges are of its family, as rows of its service.
fn ranges(service_id: u32, frontend: &Frontend) -> Vec<SourcePrefix> {
    let is_v4 = frontend.key.address.as_v4().is_some();
    let of_family = |range: &&IpNet| range.addr().is_ipv4() == is_v4;
    let all = frontend.source_ranges.iter().flat_map(|all| all.iter());
    let all = all.filter(of_family);
    all.map(|range| SourcePrefix::new(service_id, *range))
        .collect()
}

/// The entry, of generation 0 as yet.
fn entry(
    service_id: u32,
    preference: Preference,
    frontend: &Frontend,
    backends: &[Backend],
) -> ServiceEntry {
    let local = count(backends, |b| b.class == Class::Local);
    let zone = count(backends, |b| b.class == Class::Zone);
    let terminating = count(backends, |b| b.class == Class::Terminating);
    let ready = count(backends, |b| b.class < Class::Terminating);
    let mut entry = ServiceEntry {
        service_id,
        generation: 0,
        local,
        zone,
        ready,
        terminating,
        flags: preference.flags() | frontend.flags(),
        affinity_timeout_s: frontend.affinity_timeout_s,
        local_share: match preference {
            Preference::Node if local > 0 && local < ready => frontend.node_share,
            _ => preference.local_share(local, zone, ready),
        },
    };
    let drawn = maglev::pool(&entry).len();
    if frontend.key.scope == Scope::EXTERNAL && drawn > 1 {
        entry.flags |= maglev::flags(drawn);
    }
    entry
}

/// A service has far fewer than 2³² backends: the maps have no room for more.
fn count(backends: &[Backend], which: impl Fn(&Backend) -> bool) -> u32 {
    u32::try_from(backends.iter().filter(|backend| which(backend)).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "state_properties.rs"]
mod properties;
#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
