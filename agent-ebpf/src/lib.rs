//! The contract between the kernel and user space: the layout of every map key and value, and the pure logic that the
//! BPF programs run. `no_std`, so the same code is compiled into the programs and tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod abi;
pub mod checksum;
pub mod flow;
pub mod forward;
pub mod guard;
pub mod histogram;
pub mod nat;
pub mod node_port;
pub mod outside;
pub mod packet;
pub mod policy;
pub mod rewrite;
pub mod router;
pub mod select;
