//! The choice of a backend for a client outside of the cluster. Pure.
//!
//! It differs from [`crate::select`]'s in what a client is: an address and a port, from which every node draws the same.

use crate::abi::{
    Address, BackendEntry, BackendId, FLAG_DIRECT_RETURN, FLAG_LOCAL_ONLY, FLAG_MAGLEV,
    FLAG_SOURCE_RANGES, MAGLEV_CHUNK, MAGLEV_SIZE_SHIFT, MAGLEV_SIZES, MaglevKey, Place, Port,
    ServiceEntry, ServiceKey, ServiceRow, SourceRange,
};
use crate::flow::stir;
use crate::select::{ATTEMPTS, Caller, Picked, Served, Tables, at, draw, mix, with_affinity};

/// The rows that this choice reads besides.
pub trait OutsideTables: Tables {
    /// An entry of a part of a Maglev table.
    fn maglev(&self, key: &MaglevKey, entry: usize) -> Option<BackendId>;
    /// Whether there is a row of this key.
    fn is_service(&self, key: &ServiceKey) -> bool;
    /// Whether a service serves this client.
    fn serves(&self, client: &SourceRange) -> bool;
}

/// Who dials.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: Address,
    pub port: Port,
    pub now_ns: u64,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Not a service address: leave it alone.
    NotService,
    Backend {
        service_id: u32,
        id: BackendId,
        entry: BackendEntry,
        /// The service asks for its backends' nodes to answer clients themselves.
        is_direct: bool,
        /// The service sends clients to backends of this node only.
        is_local: bool,
    },
    /// No backend could answer, or rows were missing on every attempt.
    NoBackend { service_id: u32, is_hole: bool },
    /// The service is not for this client.
    NotServed,
}

impl Client {
    /// What stands for the address alone. Above the cookies of network namespaces, which are small.
    #[inline(always)]
    fn cookie(&self) -> u64 {
        mix(self.address_hash()) | 1 << 63
    }

    #[inline(always)]
    fn address_hash(&self) -> u32 {
        let mut hash = 1;
        for word in self.address.words() {
            hash = stir(hash, u32::from_be(word));
        }
        hash
    }

    /// What decides among a service's backends: of clients that are to keep theirs the address alone.
    #[inline(always)]
    fn hash(&self, service: &ServiceEntry) -> u32 {
        let hash = self.address_hash();
        if service.affinity_timeout_s != 0 {
            return hash;
        }
        let [a, b] = self.port;
        stir(hash, u32::from_be_bytes([0, 0, a, b]))
    }
}

impl Caller for Client {
    #[inline(always)]
    fn spread(&self) -> u32 {
        let [a, b] = self.port;
        stir(self.address_hash(), u32::from_be_bytes([0, 0, a, b]))
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        self.cookie()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Whom it speaks to is in the table of connections.
    #[inline(always)]
    fn last(&self) -> Option<Picked> {
        None
    }

    /// [`choose`] asks by its address.
    #[inline(always)]
    fn served(&self, _: u32) -> Served {
        Served::ByPacket
    }
}

/// Chooses for `client`, who dials `dialled`.
#[inline(always)]
pub fn choose(tables: &impl OutsideTables, client: &Client, dialled: &ServiceKey) -> Choice {
    let mut choice = Choice::NotService;
    for _ in 0..ATTEMPTS {
        let Some(ServiceRow {
            key,
            entry: service,
        }) = tables.service(dialled)
        else {
            return Choice::NotService;
        };
        let service_id = service.service_id;
        choice = Choice::NoBackend {
            service_id,
            is_hole: true,
        };
        if key != *dialled {
            continue;
        }
        if service.flags & FLAG_SOURCE_RANGES != 0 {
            let range = SourceRange {
                service_id: service_id.to_be_bytes(),
                address: client.address,
            };
            if !tables.serves(&range) {
                return Choice::NotServed;
            }
        }
        let Some(drawn) = draw(&service, mix(client.spread())) else {
            return Choice::NoBackend {
                service_id,
                is_hole: false,
            };
        };
        let new = || match service.flags & FLAG_MAGLEV {
            0 => at(tables, &service, drawn),
            _ => by_maglev(tables, &service, client.hash(&service)),
        };
        let picked = match service.affinity_timeout_s {
            0 => new(),
            _ => with_affinity(tables, client, &service, new),
        };
        if let Some(Picked { backend: id, .. }) = picked
            && let Some(entry) = tables.backend(id)
        {
            return Choice::Backend {
                service_id,
                id,
                entry,
                is_direct: service.flags & FLAG_DIRECT_RETURN != 0,
                is_local: service.flags & FLAG_LOCAL_ONLY != 0,
            };
        }
    }
    choice
}

/// Who has the same hash gets the same backend, on every node, and mostly also after the service's backends changed. In which
/// slot that stands is not said.
#[inline(always)]
fn by_maglev(tables: &impl OutsideTables, service: &ServiceEntry, hash: u32) -> Option<Picked> {
    let size = MAGLEV_SIZES[(service.flags >> MAGLEV_SIZE_SHIFT & 3) as usize];
    let entry = (mix(hash) >> 32) as u32 % size;
    let key = MaglevKey {
        service_id: service.service_id,
        generation: service.generation,
        chunk: entry / MAGLEV_CHUNK as u32,
    };
    let backend = tables.maglev(&key, entry as usize % MAGLEV_CHUNK)?;
    let place = Place {
        generation: service.generation,
        slot: u32::MAX,
    };
    Some(Picked { backend, place })
}

#[cfg(test)]
mod tests;
