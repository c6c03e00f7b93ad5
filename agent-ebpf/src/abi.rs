//! Keys and values of the BPF maps.
//!
//! Every type is `repr(C)`, has no implicit padding, and is plain bytes: any bit pattern is a value, so a map can be read
//! back whoever wrote it. Addresses and ports are byte arrays in network order; counters and ids are host order.

mod address;
mod connections;
mod drops;
mod events;
mod links;
pub mod maps;
pub mod pods;
pub mod policy;
mod services;
mod sockets;
#[cfg(feature = "user")]
mod user;

pub use address::Address;
pub use connections::*;
pub use drops::*;
pub use events::*;
pub use links::*;
pub use services::*;
pub use sockets::*;

/// Version of these layouts. It is part of the pin path, so programs and maps of different layouts never meet.
pub const ABI_VERSION: u32 = 2;

/// Value of the maps that are sets.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member(pub u32);

/// A transport port in network order.
pub type Port = [u8; 2];

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// The one row of `CONFIG`: what user space asks of the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramConfig {
    /// One in so many sockets is recorded in `EVENTS`; 0 for none. Refusals always are.
    pub sample_every: u32,
    /// First and last node port; host order. Both 0: there are none.
    pub node_ports: [u16; 2],
}

#[cfg(test)]
mod tests;
