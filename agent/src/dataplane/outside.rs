//! What clients outside are to backends: how many connections those were given, and how many of them are open.
//!
//! The programs count what begins. What is open is read from the table of connections, so it is right whatever gave way there
//! or ended unheard.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use agent_ebpf::abi::{
    BackendId, BackendStats, CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_REPLY,
    CONNECTION_SERVICE, Connection, FlowKey, TCP, maps as names,
};
use agent_ebpf::nat::SEEN;
use agent_ebpf::packet::{TCP_ACK, TCP_FIN, TCP_RST};
use aya::maps::{IterableMap as _, MapError as AyaError};

use super::maps::{MapError, Maps, Sum as _, read};
use super::sys::each_pair;

/// Whether a row stands for a connection that a client outside has with a backend, or had. Of each there is one.
pub(super) fn is_clients(row: &Connection) -> bool {
    let is_service = row.kind & (CONNECTION_SERVICE | CONNECTION_REPLY) == CONNECTION_SERVICE;
    // Another node has counted it.
    let is_ours = row.kind & CONNECTION_FORMER == 0;
    is_service && is_ours && row.backend != BackendId(0)
}

/// Whether it is open.
fn is_open(key: &FlowKey, row: &Connection) -> bool {
    is_clients(row) && !(key.protocol == TCP && row.seen & (TCP_FIN | TCP_RST) != 0)
}

/// A connection of a client outside with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// As the client's packets come.
    pub key: FlowKey,
    pub row: Connection,
    /// The row of its answers, unless that gave way.
    pub answers: Option<Connection>,
}

impl Outside {
    /// Whether the backend has answered, as far as this node can tell.
    pub fn was_answered(&self) -> bool {
        let flag = match self.key.protocol {
            TCP => TCP_ACK,
            _ => SEEN,
        };
        self.seen_both_ways() & flag != 0
    }

    /// Whether it is over: reset, or closed by both ends. One that is silent may go on.
    pub(super) fn is_over(&self) -> bool {
        let seen = self.row.seen | self.answers.map_or(0, |answers| answers.seen);
        let closed = self.seen_both_ways() & TCP_FIN != 0;
        self.key.protocol == TCP && (seen & TCP_RST != 0 || closed)
    }

    /// What both directions have seen; of one whose answers do not come by this node, the one.
    fn seen_both_ways(&self) -> u8 {
        let answers = self
            .answers
            .filter(|_| self.row.kind & CONNECTION_DIRECT == 0);
        answers.map_or(self.row.seen, |answers| self.row.seen & answers.seen)
    }
}

/// The counters of connections of which so many were given and are open. Those that another version's programs gave are not
/// counted, and may be open.
fn counters(opens: u64, active: u64) -> BackendStats {
    let opens = opens.max(active);
    BackendStats {
        opens,
        closes: opens - active,
        ..BackendStats::default()
    }
}

impl Maps {
    /// The open connections of clients outside with backends.
    pub fn outside(&self) -> Result<Vec<(FlowKey, Connection)>, MapError> {
        let mut open = Vec::new();
        let map = self.connections.map().fd().as_fd();
        let rows = each_pair(map, |key: FlowKey, row: Connection| {
            if is_open(&key, &row) {
                open.push((key, row));
            }
        });
        rows.map_err(|error| read(names::CONNECTIONS, AyaError::IoError(error)))?;
        Ok(open)
    }

    /// The same, each with what passed the other way.
    pub fn outside_both_ways(&self) -> Result<Vec<Outside>, MapError> {
        let open = self.outside()?.into_iter().map(|(key, row)| {
            let answers = match self.connections.get(&key.answers(&row), 0) {
                Ok(answers) => Some(answers),
                Err(AyaError::KeyNotFound) => None,
                Err(source) => return Err(read(names::CONNECTIONS, source)),
            };
            Ok(Outside { key, row, answers })
        });
        open.collect()
    }

    /// Adds to the counters of sockets those of clients outside.
    pub(super) fn add_outside(
        &self,
        backends: &mut BTreeMap<BackendId, BackendStats>,
    ) -> Result<(), MapError> {
        let mut counts = BTreeMap::new();
        for row in self.outside_opens.iter() {
            let (id, cpus) = row.map_err(|source| read(names::OUTSIDE_OPENS, source))?;
            counts.insert(id, (cpus.iter().sum::<u64>(), 0));
        }
        for (_, row) in self.outside()? {
            counts.entry(row.backend).or_default().1 += 1;
        }
        for (id, (opens, active)) in counts {
            let row = backends.entry(id).or_default();
            *row = row.add(counters(opens, active));
        }
        Ok(())
    }

    /// What a backend's counters said last, when it goes: nothing is open any more.
    pub(super) fn last_words(&self, id: BackendId) -> Result<BackendStats, MapError> {
        let opens = match self.outside_opens.get(&id, 0) {
            Ok(cpus) => cpus.iter().sum(),
            Err(AyaError::KeyNotFound) => 0,
            Err(source) => return Err(read(names::OUTSIDE_OPENS, source)),
        };
        Ok(self.backend_stats(id)?.add(counters(opens, 0)))
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::UDP;

    use super::*;

    #[test]
    fn of_a_connection_one_row_counts_until_it_ends() {
        let key = |protocol| FlowKey {
            protocol,
            ..FlowKey::EMPTY
        };
        let row = |kind, seen, backend| Connection {
            kind,
            seen,
            backend: BackendId(backend),
            ..Connection::EMPTY
        };
        let service = CONNECTION_SERVICE;
        assert!(is_open(&key(TCP), &row(service, 0, 1)));
        assert!(is_open(&key(UDP), &row(service, TCP_FIN, 1)));
        for (kind, seen, backend) in [
            (service | CONNECTION_REPLY, 0, 1),
            (0, 0, 1),
            (CONNECTION_REPLY, 0, 1),
            (service, TCP_FIN, 1),
            (service, TCP_RST, 1),
            (service, 0, 0),
        ] {
            assert!(!is_open(&key(TCP), &row(kind, seen, backend)));
        }
    }

    #[test]
    fn what_is_open_was_given() {
        let of = |opens, active| {
            let stats = counters(opens, active);
            (stats.opens, stats.opens - stats.closes)
        };
        assert_eq!(of(7, 2), (7, 2));
        assert_eq!(of(0, 2), (2, 2));
    }
}
