//! From what is in the maps and what is wanted to the writes between them. Pure.
//!
//! ```text
//!  PutRule …          whole tables under fresh numbers, for pods whose rules changed
//!  PutIdentity …      rows that say: from generation g+1 on this, before that
//!  PutPod …           the same
//!  Flip g+1           the one write after which every lookup answers as wanted; until then each answers as before
//!      ── when no program can be under way that began before it ──
//!  DeletePod, DeleteIdentity, DeleteRule: what no lookup meets any more
//! ```
//!
//! So it does not matter in which order rows are written before the flip, or whether the writer dies between two of them:
//! the next one finds rows of a generation that never came, and writes them anew.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::abi::policy::{Identity, IdentityRow, PodRow, PodRules, RuleKey, RuleTable};

use super::compile::{Access, Allow, Desired, Feature, Features, Wanted};
use super::prefix::{Lengths, Prefix};

/// A row of `POLICY_RULES`: a key, and how many bits of it count.
pub type RuleRow = (RuleKey, u32);

/// The maps of policy, as they stand in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    pub generation: u32,
    pub pods: BTreeMap<LinkIndex, PodRow>,
    pub identities: BTreeMap<Prefix, IdentityRow>,
    pub rules: BTreeSet<RuleRow>,
}

/// One write to one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyOp {
    PutRule(RuleKey, u32),
    PutIdentity(IdentityRow),
    PutPod(PodRow),
    Flip(u32),
    DeletePod(LinkIndex),
    DeleteIdentity(Prefix),
    DeleteRule(RuleKey, u32),
}

impl Pinned {
    /// What a write does.
    pub fn apply(&mut self, op: &PolicyOp) {
        match *op {
            PolicyOp::PutRule(key, bits) => drop(self.rules.insert((key, bits))),
            PolicyOp::PutIdentity(row) => {
                let prefix = Prefix {
                    address: row.prefix,
                    bits: row.bits,
                };
                self.identities.insert(prefix, row);
            }
            PolicyOp::PutPod(row) => drop(self.pods.insert(row.link, row)),
            PolicyOp::Flip(generation) => self.generation = generation,
            PolicyOp::DeletePod(link) => drop(self.pods.remove(&link)),
            PolicyOp::DeleteIdentity(prefix) => drop(self.identities.remove(&prefix)),
            PolicyOp::DeleteRule(key, bits) => drop(self.rules.remove(&(key, bits))),
        }
    }

    /// The writes that make empty maps like these.
    pub fn writes(&self) -> impl Iterator<Item = PolicyOp> {
        let rules = self.rules.iter();
        let rules = rules.map(|(key, bits)| PolicyOp::PutRule(*key, *bits));
        let identities = self.identities.values().copied();
        let pods = self.pods.values().copied();
        rules
            .chain(identities.map(PolicyOp::PutIdentity))
            .chain(pods.map(PolicyOp::PutPod))
            .chain([PolicyOp::Flip(self.generation)])
    }

    /// What holds for a pod.
    pub fn rules_of(&self, row: &PodRow) -> PodRules {
        match self.generation >= row.since {
            true => row.now,
            false => row.before,
        }
    }

    /// Whose a prefix is.
    pub fn identity_of(&self, row: &IdentityRow) -> Identity {
        match self.generation >= row.since {
            true => row.now,
            false => row.before,
        }
    }

    /// Whether any pod of the node was ever told its policies.
    pub fn is_new(&self) -> bool {
        self.generation == 0
    }
}

/// The rows of a table, without the number of the table.
type Rows = BTreeSet<(Identity, Option<u8>, super::ports::PortPrefix)>;

/// The numbers that are in use, and the rows as they were written.
#[derive(Clone, Debug, Default)]
pub struct PolicyState {
    pinned: Pinned,
    identities: BTreeMap<Features, Identity>,
    next_identity: u32,
    next_table: u32,
    /// What was wanted at the last plan: what rows are still needed.
    wanted: BTreeSet<Prefix>,
}

impl PolicyState {
    /// Takes over what is in the maps.
    pub fn adopt(pinned: Pinned) -> Self {
        let identities = pinned.identities.values();
        let identities = identities.flat_map(|row| [row.now, row.before]);
        let highest = identities.map(|it| it.0 & !Identity::NODE).max();
        let in_pods = pinned.pods.values().flat_map(|row| {
            let (now, before) = (row.now, row.before);
            [now.ingress, now.egress, before.ingress, before.egress]
        });
        let in_rules = pinned.rules.iter();
        let in_rules = in_rules.map(|(key, _)| RuleTable(u32::from_be_bytes(key.table)));
        let table = in_pods.chain(in_rules).max();
        Self {
            wanted: pinned.identities.keys().copied().collect(),
            next_identity: highest.unwrap_or(0) + 1,
            next_table: table.map_or(0, |it| it.0 + 1).max(RuleTable::FIRST.0),
            identities: BTreeMap::new(),
            pinned,
        }
    }

    /// The maps, as far as this writer knows.
    pub fn pinned(&self) -> &Pinned {
        &self.pinned
    }

    /// The number of an identity that is in use.
    pub fn number(&self, features: &Features) -> Option<Identity> {
        self.identities.get(features).copied()
    }

    /// A write was performed.
    pub fn done(&mut self, op: &PolicyOp) {
        self.pinned.apply(op);
    }

    /// The row for a pod that was connected just now: closed until its policies are known. Nothing when it has one.
    pub fn admit(&self, link: LinkIndex) -> Option<PolicyOp> {
        let row = PodRow {
            link,
            since: 0,
            now: PodRules::PENDING,
            before: PodRules::PENDING,
        };
        (!self.pinned.pods.contains_key(&link)).then_some(PolicyOp::PutPod(row))
    }

    /// What is to be written until the maps are as `desired` says, in order; nothing when they are. Each write that succeeded
    /// is to be told to [`Self::done`]; after one that failed the rest is not to be performed, and a new plan is due.
    pub fn plan(&mut self, desired: &Desired) -> Vec<PolicyOp> {
        let next = self.pinned.generation + 1;
        self.number_identities(desired);
        let mut ops = Vec::new();
        let rows = self.plan_pods(desired, next, &mut ops);
        self.plan_identities(desired, next, &mut ops);
        ops.extend(rows.into_iter().map(PolicyOp::PutPod));
        if !ops.is_empty() {
            ops.push(PolicyOp::Flip(next));
        }
        ops
    }

    /// What can be removed, once nothing that began before the last flip is under way. To be called after all of a plan was
    /// performed. `is_there` says which links are there now: one that came since the plan keeps its row.
    pub fn collect(&self, is_there: impl Fn(&LinkIndex) -> bool) -> Vec<PolicyOp> {
        let pinned = &self.pinned;
        let gone = pinned.pods.keys();
        let gone = gone.filter(|link| !is_there(link));
        let gone: Vec<LinkIndex> = gone.copied().collect();
        let live = pinned.pods.iter().filter(|(link, _)| !gone.contains(link));
        let named: BTreeSet<[u8; 4]> = live
            .flat_map(|(_, row)| {
                let rules = pinned.rules_of(row);
                [rules.ingress, rules.egress]
            })
            .map(|table| table.0.to_be_bytes())
            .collect();
        let prefixes = pinned.identities.keys();
        let prefixes = prefixes.filter(|prefix| !self.wanted.contains(prefix));
        let rules = pinned.rules.iter();
        let rules = rules.filter(|(key, _)| !named.contains(&key.table));
        gone.iter()
            .copied()
            .map(PolicyOp::DeletePod)
            .chain(prefixes.copied().map(PolicyOp::DeleteIdentity))
            .chain(rules.map(|(key, bits)| PolicyOp::DeleteRule(*key, *bits)))
            .collect()
    }

    /// Gives each set of features that is in use a number: the one that it has, else the one that its addresses have in the
    /// maps, else a fresh one.
    fn number_identities(&mut self, desired: &Desired) {
        let used: BTreeSet<&Features> = desired.addresses.values().collect();
        self.identities
            .retain(|features, _| used.contains(features));
        let mut taken: BTreeSet<Identity> = self.identities.values().copied().collect();
        for (prefix, features) in &desired.addresses {
            if self.identities.contains_key(features) {
                continue;
            }
            let node = match features.contains(&Feature::Node) {
                true => Identity::NODE,
                false => 0,
            };
            let there = self.pinned.identities.get(prefix);
            let there = there.map(|row| self.pinned.identity_of(row)).filter(|it| {
                let fits = *it != Identity::ANY && it.0 & Identity::NODE == node;
                fits && !features.is_empty() && !taken.contains(it)
            });
            let number = match there {
                _ if features.is_empty() => Identity::ANY,
                Some(number) => number,
                None => {
                    let number = Identity(self.next_identity | node);
                    self.next_identity = ((self.next_identity + 1) & !Identity::NODE).max(1);
                    number
                }
            };
            taken.insert(number);
            self.identities.insert(features.clone(), number);
        }
    }

    /// Writes the tables that pods need and that are not there. Gives the rows of pods that change.
    fn plan_pods(&mut self, desired: &Desired, next: u32, ops: &mut Vec<PolicyOp>) -> Vec<PodRow> {
        let mut tables = self.tables();
        let mut changed = Vec::new();
        for (link, wanted) in &desired.pods {
            let row = self.pinned.pods.get(link).copied();
            let there = row.map(|row| self.pinned.rules_of(&row));
            let rules = match wanted {
                Wanted::Unknown => there.unwrap_or(PodRules::PENDING),
                Wanted::Known { ingress, egress } => PodRules {
                    ingress: self.table(ingress, &mut tables, ops),
                    egress: self.table(egress, &mut tables, ops),
                },
            };
            let settled = row.is_some_and(|row| row.since <= self.pinned.generation);
            if !settled || there != Some(rules) {
                changed.push(PodRow {
                    link: *link,
                    since: next,
                    now: rules,
                    before: there.unwrap_or(PodRules::OPEN),
                });
            }
        }
        changed
    }

    /// The tables that are there, by what is in them.
    fn tables(&self) -> BTreeMap<Rows, RuleTable> {
        let mut found: BTreeMap<RuleTable, Rows> = BTreeMap::new();
        for (key, bits) in &self.pinned.rules {
            let table = RuleTable(u32::from_be_bytes(key.table));
            let identity = Identity(u32::from_be_bytes(key.identity));
            let protocol = (*bits > RuleKey::PEER_BITS).then_some(key.protocol);
            let port = super::ports::PortPrefix {
                base: u16::from_be_bytes(key.port),
                bits: bits.saturating_sub(RuleKey::PROTOCOL_BITS) as u8,
            };
            let rows = found.entry(table).or_default();
            rows.insert((identity, protocol, port));
        }
        found
            .into_iter()
            .map(|(table, rows)| (rows, table))
            .collect()
    }

    /// The table that allows what `access` says, written if it is not there.
    fn table(
        &mut self,
        access: &Access,
        tables: &mut BTreeMap<Rows, RuleTable>,
        ops: &mut Vec<PolicyOp>,
    ) -> RuleTable {
        let allowed = match access {
            Access::Open => return RuleTable::OPEN,
            Access::Only(allowed) if allowed.is_empty() => return RuleTable::CLOSED,
            Access::Only(allowed) => allowed,
        };
        let rows: Rows = allowed.iter().map(|it| self.row(it)).collect();
        if let Some(table) = tables.get(&rows) {
            return *table;
        }
        let table = RuleTable(self.next_table);
        self.next_table = self.next_table.checked_add(1).unwrap_or(RuleTable::FIRST.0);
        for (identity, protocol, port) in &rows {
            let key = RuleKey::new(
                table,
                *identity,
                protocol.unwrap_or(0),
                port.base.to_be_bytes(),
            );
            let bits = match protocol {
                None => RuleKey::PEER_BITS,
                Some(_) => RuleKey::PROTOCOL_BITS + u32::from(port.bits),
            };
            ops.push(PolicyOp::PutRule(key, bits));
        }
        tables.insert(rows, table);
        table
    }

    fn row(&self, allow: &Allow) -> (Identity, Option<u8>, super::ports::PortPrefix) {
        let identity = match &allow.who {
            None => Identity::ANY,
            // Every set of features that rules name is one that some prefix has, so it has a number.
            Some(features) => self.number(features).unwrap_or(Identity(Identity::NODE)),
        };
        (identity, allow.protocol, allow.port)
    }

    /// Rows for prefixes whose identity changes, or is to begin or end.
    fn plan_identities(&mut self, desired: &Desired, next: u32, ops: &mut Vec<PolicyOp>) {
        let pinned = &self.pinned;
        let (new, old) = (
            Lengths::of(&desired.addresses),
            Lengths::of(&pinned.identities),
        );
        let all: BTreeSet<&Prefix> = desired
            .addresses
            .keys()
            .chain(pinned.identities.keys())
            .collect();
        for prefix in all {
            let wanted = new.covering(&desired.addresses, prefix, u32::MAX);
            let wanted =
                wanted.map_or(Identity::ANY, |it| self.number(it).unwrap_or(Identity::ANY));
            let there = old.covering(&pinned.identities, prefix, u32::MAX);
            let there = there.map_or(Identity::ANY, |row| pinned.identity_of(row));
            let row = pinned.identities.get(prefix);
            let settled = row.is_some_and(|row| row.since <= pinned.generation);
            if settled && there == wanted {
                continue;
            }
            ops.push(PolicyOp::PutIdentity(IdentityRow {
                prefix: prefix.address,
                bits: prefix.bits,
                since: next,
                now: wanted,
                before: there,
            }));
        }
        self.wanted = desired.addresses.keys().copied().collect();
    }
}
