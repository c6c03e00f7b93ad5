//! The maps of network policy, typed. Their one writer is [`crate::policy`]'s worker.

use std::io;
use std::path::Path;

use agent_ebpf::abi::policy::{FlowKey, FlowRow, IdentityRow, PodRow, RuleKey};
use agent_ebpf::abi::{Address, LinkIndex, Member, maps as names};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError as AyaError};

use super::maps::{MapError, errno, open, read};
use crate::policy::prefix::Prefix;
use crate::policy::state::{Pinned, PolicyOp};

/// Why a map of policy could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PolicyMapError {
    #[error("map {map} is full at {max_entries} entries, so {op:?} was not written")]
    Full {
        map: &'static str,
        max_entries: u32,
        op: Box<PolicyOp>,
    },
    #[error("cannot perform {op:?} on map {map}")]
    Write {
        map: &'static str,
        op: Box<PolicyOp>,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The tables, as their one writer sees them: the kernel's [`PolicyMaps`], or a test's.
pub trait PolicyTables: Send {
    /// Performs one write. Idempotent: a row already there is replaced, a row already gone is no error.
    fn apply(&mut self, op: &PolicyOp) -> Result<(), PolicyMapError>;
    /// Notes conversations that are known to be allowed; what finds no room is left out.
    fn remember(&mut self, flows: &[(FlowKey, FlowRow)]);
}

/// Handles on the pinned maps.
pub struct PolicyMaps {
    pub(super) pods: HashMap<MapData, LinkIndex, PodRow>,
    pub(super) rules: LpmTrie<MapData, RuleKey, Member>,
    pub(super) identities: LpmTrie<MapData, Address, IdentityRow>,
    pub(super) generation: Array<MapData, u32>,
    pub(super) flows: HashMap<MapData, FlowKey, FlowRow>,
}

impl PolicyMaps {
    /// Opens the maps pinned in `dir`, which [`super::Dataplane::dir`] names.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Ok(Self {
            pods: open(dir, names::POLICY_PODS, Map::HashMap)?,
            rules: open(dir, names::POLICY_RULES, Map::LpmTrie)?,
            identities: open(dir, names::IDENTITIES, Map::LpmTrie)?,
            generation: open(dir, names::POLICY_GENERATION, Map::Array)?,
            flows: open(dir, names::POLICY_FLOWS, Map::LruHashMap)?,
        })
    }

    /// Reads everything back but the conversations.
    pub fn dump(&self) -> Result<Pinned, MapError> {
        let pods = self.pods.iter().collect::<Result<_, _>>();
        let identities = self.identities.iter().map(|row| {
            let (key, row) = row?;
            Ok((prefix(&key), row))
        });
        let identities = identities.collect::<Result<_, AyaError>>();
        let rules = self.rules.keys().map(|key| {
            let key = key?;
            Ok((key.data(), key.prefix_len()))
        });
        let rules = rules.collect::<Result<_, AyaError>>();
        Ok(Pinned {
            generation: self.generation()?,
            pods: pods.map_err(|source| read(names::POLICY_PODS, source))?,
            identities: identities.map_err(|source| read(names::IDENTITIES, source))?,
            rules: rules.map_err(|source| read(names::POLICY_RULES, source))?,
        })
    }

    /// As of which generation the tables are read.
    pub fn generation(&self) -> Result<u32, MapError> {
        let generation = self.generation.get(&0, 0);
        generation.map_err(|source| read(names::POLICY_GENERATION, source))
    }
}

impl PolicyTables for PolicyMaps {
    fn apply(&mut self, op: &PolicyOp) -> Result<(), PolicyMapError> {
        let (map, done) = match *op {
            PolicyOp::PutRule(key, bits) => {
                let done = self.rules.insert(&Key::new(bits, key), Member(0), 0);
                (names::POLICY_RULES, done)
            }
            PolicyOp::PutIdentity(row) => {
                let key = Key::new(row.bits, row.prefix);
                (names::IDENTITIES, self.identities.insert(&key, row, 0))
            }
            PolicyOp::PutPod(row) => (names::POLICY_PODS, self.pods.insert(row.link, row, 0)),
            PolicyOp::Flip(generation) => {
                let done = self.generation.set(0, generation, 0);
                (names::POLICY_GENERATION, done)
            }
            PolicyOp::DeletePod(link) => (names::POLICY_PODS, gone(self.pods.remove(&link))),
            PolicyOp::DeleteIdentity(prefix) => {
                let key = Key::new(prefix.bits, prefix.address);
                (names::IDENTITIES, gone(self.identities.remove(&key)))
            }
            PolicyOp::DeleteRule(key, bits) => {
                let done = gone(self.rules.remove(&Key::new(bits, key)));
                (names::POLICY_RULES, done)
            }
        };
        done.map_err(|error| {
            let (source, op) = (errno(error), Box::new(*op));
            match source.raw_os_error() {
                // What a full hash says, and what a full trie does.
                Some(libc::E2BIG | libc::ENOSPC) => PolicyMapError::Full {
                    map,
                    max_entries: self.max_entries(map),
                    op,
                },
                _ => PolicyMapError::Write { map, op, source },
            }
        })
    }

    fn remember(&mut self, flows: &[(FlowKey, FlowRow)]) {
        for (key, row) in flows {
            let _ = self.flows.insert(key, row, 0);
        }
    }
}

impl PolicyMaps {
    fn max_entries(&self, map: &str) -> u32 {
        let info = match map {
            names::POLICY_RULES => self.rules.map().info(),
            names::IDENTITIES => self.identities.map().info(),
            _ => self.pods.map().info(),
        };
        info.map_or(0, |info| info.max_entries())
    }
}

pub(super) fn prefix(key: &Key<Address>) -> Prefix {
    Prefix {
        address: key.data(),
        bits: key.prefix_len(),
    }
}

/// A row that is already gone is as it should be.
fn gone(removed: Result<(), AyaError>) -> Result<(), AyaError> {
    match removed {
        Err(AyaError::KeyNotFound) => Ok(()),
        Err(AyaError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}
