//! Translated connections that are over: which they are is pure, removing their rows is not.
//!
//! The programs never remove a row. Where the table is full they let the longest idle give way, so this is for tidiness, and
//! for ports of the node to be free again.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd as _;
use std::time::Duration;

use agent_ebpf::abi::{
    CONNECTION_DIRECT, CONNECTION_FORMER, CONNECTION_REPLY, Connection, FlowKey, TCP, maps as names,
};
use agent_ebpf::nat::SEEN;
use agent_ebpf::packet::{TCP_ACK, TCP_FIN, TCP_RST};
use aya::maps::{IterableMap as _, MapError as AyaError};

use super::datagrams::{self, Offers};
use super::maps::{MapError, Maps, read};
use super::outside::{Outside, is_clients};
use super::sys::each_pair;

/// A connection that both ends have confirmed may be silent for a day.
const ESTABLISHED: Duration = Duration::from_secs(24 * 3600);
/// One that was begun, as long as a client goes on trying.
const OPENING: Duration = Duration::from_secs(60);
/// One that an end has closed: what was lost may be sent again for as long.
const CLOSING: Duration = Duration::from_secs(120);
/// One that was reset.
const RESET: Duration = Duration::from_secs(10);
/// Without connections, as upstream's connection tracking has it: unanswered, and answered.
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(120);
/// Connections whose answers do not come by this node.
const ELSEWHERE: u8 = CONNECTION_DIRECT | CONNECTION_FORMER;
/// Younger rows are not looked at.
const SHORTEST: Duration = RESET;

/// How long a connection may be silent, by what was seen in either direction.
fn lifetime(protocol: u8, there: u8, back: u8) -> Duration {
    let either = |flag| (there | back) & flag != 0;
    let both = |flag| there & back & flag != 0;
    match protocol {
        TCP if either(TCP_RST) => RESET,
        TCP if either(TCP_FIN) => CLOSING,
        TCP if both(TCP_ACK) => ESTABLISHED,
        TCP => OPENING,
        _ if both(SEEN) => ANSWERED,
        _ => UNANSWERED,
    }
}

/// Whether a row is over at `now_ns`. `other` is that of the other direction, which may have given way.
fn is_over(key: &FlowKey, row: &Connection, other: Option<&Connection>, now_ns: u64) -> bool {
    let last = other.map_or(0, |other| other.last_seen_ns);
    let idle = now_ns.saturating_sub(row.last_seen_ns.max(last));
    let lifetime = match other {
        // The answers do not come by this node.
        Some(other) if (row.kind | other.kind) & ELSEWHERE != 0 => {
            let seen = row.seen | other.seen;
            lifetime(key.protocol, seen, seen)
        }
        Some(other) => lifetime(key.protocol, row.seen, other.seen),
        // Half a connection lives on only with what repairs it.
        None => UNANSWERED,
    };
    idle > lifetime.as_nanos() as u64
}

/// Whether nothing need be looked up to tell that a row is not over.
fn is_young(row: &Connection, now_ns: u64) -> bool {
    now_ns.saturating_sub(row.last_seen_ns) <= SHORTEST.as_nanos() as u64
}

/// A client's connection, of which one row was found, and maybe the other.
fn clients(
    (key, row): (FlowKey, Connection),
    other: Option<(FlowKey, Connection)>,
) -> Option<Outside> {
    let pair = match row.kind & CONNECTION_REPLY {
        0 => Outside {
            key,
            row,
            answers: other.map(|(_, answers)| answers),
        },
        _ => {
            let (key, client) = other?;
            Outside {
                key,
                row: client,
                answers: Some(row),
            }
        }
    };
    is_clients(&pair.row).then_some(pair)
}

/// The table.
pub struct Connections {
    maps: Maps,
    /// Clients' connections that were over at the last look.
    told: BTreeSet<(FlowKey, u64)>,
}

/// What one look came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub fill: Fill,
    pub removed: u32,
    /// Clients' connections that are over, each told once.
    pub over: Vec<Outside>,
}

/// How full the table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Rows that were there, and how many there may be.
    pub rows: u32,
    pub most: u32,
}

impl Fill {
    /// Rows give way soon, if not already.
    pub fn is_crowded(&self) -> bool {
        u64::from(self.rows) * 10 > u64::from(self.most) * 9
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} rows", self.rows, self.most)?;
        if self.is_crowded() {
            f.write_str(
                ": nearly full, so the longest idle give way to new ones; see --max-connections",
            )?;
        }
        Ok(())
    }
}

impl Connections {
    pub fn new(maps: Maps) -> Self {
        Self {
            maps,
            told: BTreeSet::new(),
        }
    }

    fn row(&self, key: &FlowKey) -> Result<Option<Connection>, MapError> {
        match self.maps.connections.get(key, 0) {
            Ok(row) => Ok(Some(row)),
            Err(AyaError::KeyNotFound) => Ok(None),
            Err(source) => Err(read(names::CONNECTIONS, source)),
        }
    }

    /// Removes what has been over for as long as its state asks at `now_ns`, and says what clients' connections are over. Reads the table in batches; only rows that were silent for a while, or are of datagrams,
    /// are looked at more closely.
    pub fn sweep(&mut self, now_ns: u64) -> Result<Swept, MapError> {
        let failed = |source| read(names::CONNECTIONS, source);
        let map = self.maps.connections.map();
        let mut swept = Swept {
            fill: Fill {
                most: map.info().map_err(failed)?.max_entries(),
                rows: 0,
            },
            ..Swept::default()
        };
        let mut suspects = Vec::new();
        let rows = each_pair(map.fd().as_fd(), |key: FlowKey, row: Connection| {
            swept.fill.rows += 1;
            if !is_young(&row, now_ns) || datagrams::is_theirs(&key, &row) {
                suspects.push(key);
            }
        });
        rows.map_err(|error| failed(AyaError::IoError(error)))?;
        let mut told = BTreeSet::new();
        let mut offers = Offers::default();
        for key in suspects {
            // It may be another connection's by now, or no longer idle.
            let Some(row) = self.row(&key)? else {
                continue;
            };
            let other_key = key.answers(&row);
            let other = self.row(&other_key)?;
            let goes = is_over(&key, &row, other.as_ref(), now_ns)
                || !offers.keep(&self.maps, &key, &row)?;
            if let Some(pair) = clients((key, row), other.map(|other| (other_key, other)))
                && (goes || pair.is_over())
            {
                let it = (pair.key, pair.row.since_ns);
                if told.insert(it) && !self.told.contains(&it) {
                    swept.over.push(pair);
                }
            }
            if goes {
                // The answers' row last: until then the other leads to where it did.
                let keys = match row.kind & CONNECTION_REPLY {
                    0 => [key, other_key],
                    _ => [other_key, key],
                };
                for key in keys {
                    // It may have gone meanwhile.
                    swept.removed += u32::from(self.maps.connections.remove(&key).is_ok());
                }
            }
        }
        self.told = told;
        Ok(swept)
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::abi::UDP;
    use agent_ebpf::packet::TCP_SYN;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn row(last_seen_s: u64, seen: u8) -> Connection {
        Connection {
            last_seen_ns: last_seen_s * SECOND,
            seen: seen | SEEN,
            ..Connection::EMPTY
        }
    }

    /// For how many seconds after its last packet a connection is kept.
    fn kept(protocol: u8, there: u8, back: Option<u8>) -> u64 {
        let key = FlowKey {
            protocol,
            ..FlowKey::EMPTY
        };
        let (there, back) = (row(1, there), back.map(|seen| row(5, seen)));
        let last = back.map_or(1, |_| 5);
        let over = |s: &u64| is_over(&key, &there, back.as_ref(), (last + s) * SECOND + 1);
        (0..200_000).find(over).unwrap()
    }

    #[test]
    fn a_connection_is_kept_as_its_state_asks() {
        let (opened, open) = (TCP_SYN, TCP_SYN | TCP_ACK);
        assert_eq!(kept(TCP, opened, Some(0)), 60);
        assert_eq!(kept(TCP, open, Some(open)), 24 * 3600);
        assert_eq!(kept(TCP, open | TCP_FIN, Some(open)), 120);
        assert_eq!(kept(TCP, open, Some(open | TCP_FIN)), 120);
        assert_eq!(kept(TCP, open, Some(open | TCP_RST)), 10);
        assert_eq!(kept(UDP, 0, Some(0)), 120);
        assert_eq!(kept(TCP, open, None), 30);
        let unanswered = Connection {
            seen: 0,
            ..row(0, 0)
        };
        let key = FlowKey {
            protocol: UDP,
            ..FlowKey::EMPTY
        };
        assert!(is_over(&key, &row(1, 0), Some(&unanswered), 32 * SECOND));
    }

    #[test]
    fn of_a_connection_that_another_node_answers_one_direction_tells_all() {
        let key = FlowKey {
            protocol: TCP,
            ..FlowKey::EMPTY
        };
        let direct = Connection {
            kind: CONNECTION_DIRECT,
            ..row(1, TCP_SYN | TCP_ACK)
        };
        let unseen = Connection {
            seen: 0,
            ..row(1, 0)
        };
        for (row, other) in [(&direct, &unseen), (&unseen, &direct)] {
            assert!(!is_over(&key, row, Some(other), 3600 * SECOND));
        }
        assert!(is_over(&key, &unseen, Some(&unseen), 3600 * SECOND));
    }

    #[test]
    fn a_crowded_table_says_what_becomes_of_rows() {
        let fill = |rows| Fill { rows, most: 100 };
        assert_eq!(fill(90).to_string(), "90 of 100 rows");
        assert!(fill(91).to_string().contains("the longest idle give way"));
    }

    #[test]
    fn no_state_is_shorter_than_what_is_looked_at() {
        for protocol in [TCP, UDP] {
            for there in 0..=u8::MAX {
                for back in [0, TCP_ACK, TCP_RST, TCP_FIN, SEEN] {
                    assert!(lifetime(protocol, there, back) >= SHORTEST);
                }
            }
        }
    }
}
