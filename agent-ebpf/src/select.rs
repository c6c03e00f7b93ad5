//! The choice of a backend for one dialled address.
//!
//! ```text
//! service? ──no──> NotService
//!    │ yes
//! for this client? ──no──> NotServed; its packets will tell ──> ByPacket
//!    │ yes
//! ready or terminating? ──no──> NoBackend
//!    │ yes
//! affinity still valid, or a UDP socket's last backend still offered? ──yes──> that backend
//!    │ no
//! draw a slot ──> slot row ──> backend row ──> Backend
//!                    └── gone ──────┴──> read the service again (its table has flipped), at most [`ATTEMPTS`] times
//! ```

use crate::abi::{
    AffinityEntry, AffinityKey, BackendEntry, BackendId, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES,
    Place, SHARE_ONE, ServiceEntry, ServiceKey, ServiceRow, SlotKey,
};

/// How often the service entry is read before a missing row counts as a hole.
pub const ATTEMPTS: u32 = 3;

/// How many slots are searched for a client's backend, or a UDP socket's, after its service's table has changed. A backend
/// that stands further behind loses its clients at a change.
pub const AFFINITY_SCAN: u32 = 128;

/// How old the last use in a client's affinity row may be before it is written anew, in nanoseconds. A client's timeout
/// may so begin this much too early; in return one that dials often costs a lookup and no write.
pub const AFFINITY_REFRESH_NS: u64 = 250_000_000;

/// The rows that a choice reads, and the one kind that it writes.
pub trait Tables {
    /// A row read while user space replaces it may hold another service's key: the choice checks it.
    fn service(&self, key: &ServiceKey) -> Option<ServiceRow>;
    fn slot(&self, key: &SlotKey) -> Option<BackendId>;
    fn backend(&self, id: BackendId) -> Option<BackendEntry>;
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry>;
    fn remember(&self, key: &AffinityKey, entry: &AffinityEntry);
}

/// The socket that dials.
pub trait Caller {
    /// What decides among equals: random for TCP, fixed for a socket and its destination for UDP.
    fn spread(&self) -> u32;
    /// Identity of the socket's network namespace.
    fn netns_cookie(&self) -> u64;
    /// Monotonic clock.
    fn now_ns(&self) -> u64;
    /// The backend that a UDP socket was sent to last, if what it dialled then is what it dials now.
    fn last(&self) -> Option<Picked>;
    /// Whether it is among those for whom a service with `FLAG_SOURCE_RANGES` is.
    fn served(&self, service_id: u32) -> Served;
}

/// Whether a service that is not for everybody is for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Yes,
    No,
    /// A socket in a pod does not know its address before it has sent something. Its packets say it: at the pod's link they
    /// are judged by it, and translated.
    ByPacket,
}

/// A backend in its service's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Picked {
    pub backend: BackendId,
    pub place: Place,
}

/// What becomes of one connect or one datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not a service address: leave it alone.
    NotService,
    /// Send it to this backend.
    Backend {
        service_id: u32,
        picked: Picked,
        entry: BackendEntry,
    },
    /// A service that is not for this client: refuse.
    NotServed { service_id: u32 },
    /// Leave it alone: its packets will be translated.
    ByPacket,
    /// A service without a backend that could answer: refuse.
    NoBackend { service_id: u32 },
    /// Rows were missing on every attempt: refuse. The update protocol makes this impossible; it is counted to prove it.
    Hole { service_id: u32 },
}

/// Chooses for `caller`, who dials `dialled`.
#[inline(always)]
pub fn choose(tables: &impl Tables, caller: &impl Caller, dialled: &ServiceKey) -> Verdict {
    let mut verdict = Verdict::NotService;
    for _ in 0..ATTEMPTS {
        let Some(ServiceRow {
            key,
            entry: service,
        }) = tables.service(dialled)
        else {
            return Verdict::NotService;
        };
        let service_id = service.service_id;
        if key != *dialled {
            verdict = Verdict::Hole { service_id };
            continue;
        }
        if service.flags & FLAG_SOURCE_RANGES != 0 {
            match caller.served(service_id) {
                Served::Yes => {}
                Served::No => return Verdict::NotServed { service_id },
                Served::ByPacket => return Verdict::ByPacket,
            }
        }
        let Some(drawn) = draw(&service, mix(caller.spread())) else {
            return Verdict::NoBackend { service_id };
        };
        let picked = if service.affinity_timeout_s == 0 {
            let last = caller.last().and_then(|last| find(tables, &service, last));
            last.or_else(|| at(tables, &service, drawn))
        } else {
            with_affinity(tables, caller, &service, || at(tables, &service, drawn))
        };
        if let Some(picked) = picked
            && let Some(entry) = tables.backend(picked.backend)
        {
            return Verdict::Backend {
                service_id,
                picked,
                entry,
            };
        }
        verdict = Verdict::Hole { service_id };
    }
    verdict
}

/// Draws a slot; `None` when the service has no backend. The low half of `bits` decides between near and far, the high
/// half decides the slot.
#[inline(always)]
pub fn draw(service: &ServiceEntry, bits: u64) -> Option<u32> {
    let ServiceEntry {
        local,
        zone,
        ready,
        terminating,
        ..
    } = *service;
    if ready == 0 {
        return if terminating == 0 {
            None
        } else {
            Some(pick(bits, terminating))
        };
    }
    if local > 0 {
        let stays = (bits as u32) % SHARE_ONE < service.local_share;
        if stays || local >= ready || service.flags & FLAG_LOCAL_ONLY != 0 {
            return Some(pick(bits, local));
        }
    }
    if zone > 0 {
        return Some(local + pick(bits, zone));
    }
    Some(local + pick(bits, ready - local))
}

/// The client's backend of last time if it is still among those the service offers, else the one that `draw` gives. Either way
/// the client will have the same one next time.
#[inline(always)]
pub(crate) fn with_affinity(
    tables: &impl Tables,
    caller: &impl Caller,
    service: &ServiceEntry,
    draw: impl FnOnce() -> Option<Picked>,
) -> Option<Picked> {
    let key = AffinityKey {
        netns_cookie: caller.netns_cookie(),
        service_id: service.service_id,
        pad: 0,
    };
    let now = caller.now_ns();
    let timeout = u64::from(service.affinity_timeout_s) * 1_000_000_000;
    let mut chosen = None;
    if let Some(last) = tables.affinity(&key) {
        let age = now.saturating_sub(last.last_use_ns);
        if age < timeout {
            let place = Place {
                generation: last.generation,
                slot: last.slot,
            };
            let last = Picked {
                backend: last.backend,
                place,
            };
            chosen = find(tables, service, last);
            if chosen == Some(last) && age < AFFINITY_REFRESH_NS {
                return chosen;
            }
        }
    }
    if chosen.is_none() {
        chosen = draw();
    }
    let Picked { backend, place } = chosen?;
    tables.remember(
        &key,
        &AffinityEntry {
            last_use_ns: now,
            backend,
            generation: place.generation,
            slot: place.slot,
            pad: 0,
        },
    );
    chosen
}

/// Where the backend of `last` stands in the live table, if it is offered.
#[inline(always)]
fn find(tables: &impl Tables, service: &ServiceEntry, last: Picked) -> Option<Picked> {
    let offered = if service.ready > 0 {
        service.ready
    } else {
        service.terminating
    };
    let Place { generation, slot } = last.place;
    if generation == service.generation {
        let same = slot < offered && tables.slot(&slot_key(service, slot)) == Some(last.backend);
        return if same { Some(last) } else { None };
    }
    for slot in 0..AFFINITY_SCAN {
        if slot >= offered {
            break;
        }
        if let Some(found) = at(tables, service, slot)
            && found.backend == last.backend
        {
            return Some(found);
        }
    }
    None
}

/// What stands in a slot of the live table.
#[inline(always)]
pub(crate) fn at(tables: &impl Tables, service: &ServiceEntry, slot: u32) -> Option<Picked> {
    let backend = tables.slot(&slot_key(service, slot))?;
    let place = Place {
        generation: service.generation,
        slot,
    };
    Some(Picked { backend, place })
}

#[inline(always)]
pub(crate) fn slot_key(service: &ServiceEntry, slot: u32) -> SlotKey {
    SlotKey {
        service_id: service.service_id,
        generation: service.generation,
        slot,
    }
}

/// A number below `n`, evenly, from the high half of `bits`.
#[inline(always)]
fn pick(bits: u64, n: u32) -> u32 {
    (((bits >> 32) * u64::from(n)) >> 32) as u32
}

/// Spreads 32 bits over 64, so that the near-or-far draw and the slot do not hang together (splitmix64's finalizer).
#[inline(always)]
pub fn mix(seed: u32) -> u64 {
    let mut x = u64::from(seed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
