//! Load balancers' addresses on the node's own links: one node answers ARP and NDP for each, and another within two seconds
//! when that one dies.
//!
//! ```text
//! view ─▶ wanted ──────────┐                        ┌─▶ speaker: answers, announcements
//! Leases ─▶ beats ─▶ election::decide ──────────────┼─▶ pulse: how the node's own Lease is renewed
//! links ─▶ links ──────────┘                        └─▶ announcements: what people see
//! ```
//!
//! No address is put on any link: the programs at the uplink translate packets to it before they are routed. Who
//! answers is decided by every node for itself, from the same facts, in [`election`]; it says what happens while the API
//! server is away. [`arp`] and [`ndp`] are bytes to bytes. What moves bytes is in [`socket`] and [`speaker`].

pub mod arp;
mod beats;
pub mod election;
mod formers;
mod links;
pub mod ndp;
mod rank;
mod run;
mod shown;
#[cfg(test)]
mod simulation;
mod socket;
pub mod speaker;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

pub use beats::ANNOTATION;
pub(crate) use beats::write as write_networks;
pub use run::Announcer;
pub use shown::{Announced, Announcements};

use crate::network::addresses::Mac;

/// How the node's Lease is renewed, and what it says beside the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Every [`election::BEAT`]; otherwise only as often as the node's own health asks for.
    pub fast: bool,
    /// The networks in which the node stands ready to announce addresses; none while it does not.
    pub networks: Vec<IpNet>,
}

/// What a frame on the wire calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Somebody asks for one of our addresses; the frame answers.
    Asked(Vec<u8>),
    /// Somebody else claims one of our addresses.
    Claimed(IpAddr, Mac),
}

/// The addresses that are answered for.
pub type Addresses = BTreeSet<IpAddr>;
