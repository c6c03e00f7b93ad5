//! What the rows look like in memory.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv6Addr};

use super::*;

/// The size of a type without implicit padding is the sum of its fields'.
macro_rules! no_padding {
    ($type:ty: $($field:ident $size:literal),+ => $total:literal) => {{
        let mut end = 0;
        $(
            assert_eq!(offset_of!($type, $field), end, "hole before {}", stringify!($field));
            end += $size;
        )+
        assert_eq!(end, size_of::<$type>(), "{} ends in padding", stringify!($type));
        assert_eq!(end, $total);
    }};
}

#[test]
fn layouts_have_no_implicit_padding() {
    no_padding!(ServiceKey: address 16, port 2, protocol 1, scope 1 => 20);
    no_padding!(ServiceEntry: service_id 4, generation 4, local 4, zone 4, ready 4, terminating 4, flags 4,
        affinity_timeout_s 4, local_share 4 => 36);
    no_padding!(ServiceRow: key 20, entry 36 => 56);
    no_padding!(SlotKey: service_id 4, generation 4, slot 4 => 12);
    no_padding!(BackendEntry: address 16, port 2, protocol 1, pad 1 => 20);
    no_padding!(SocketEntry: started_ns 8, netns_cookie 8, flags 8, backend_address 16, backend_port 2, protocol 1,
        pad 1, service 28, detail 8 => 80);
    no_padding!(ReverseKey: cookie 8, address 16, port 2, pad 6 => 32);
    no_padding!(ReverseEntry: address 16, port 2, pad 2, backend 4, service_id 4 => 28);
    no_padding!(AffinityKey: netns_cookie 8, service_id 4, pad 4 => 16);
    no_padding!(AffinityEntry: last_use_ns 8, backend 4, generation 4, slot 4, pad 4 => 24);
    no_padding!(BackendStats: opens 8, closes 8, failures 8, bytes_sent 8, bytes_received 8, handshakes 8,
        handshake_ns 8, handshake_buckets 128 => 184);
    no_padding!(ServiceStats: no_backend 8, hole 8 => 16);
    no_padding!(PodRanges: ipv4 4, ipv4_mask 4, ipv6 16, ipv6_mask 16 => 40);
    no_padding!(ProgramConfig: sample_every 4, node_ports 4 => 8);
    no_padding!(MaglevKey: service_id 4, generation 4, chunk 4 => 12);
    no_padding!(SourceRange: service_id 4, address 16 => 20);
    assert_eq!(size_of::<MaglevChunk>(), 4 * MAGLEV_CHUNK);
    no_padding!(PodEntry: ipv4 16, ipv6 16 => 32);
    no_padding!(UplinkEntry: ipv4 16, ipv6 16 => 32);
    no_padding!(XdpLink: mac 6, flags 2 => 8);
    no_padding!(FlowKey: source 16, destination 16, source_port 2, destination_port 2, protocol 1, side 1, pad 2 => 40);
    no_padding!(Connection: key_hash 4, link 4, last_seen_ns 8, source 16, destination 16, source_port 2,
        destination_port 2, backend 4, service_id 4, kind 1, seen 1, pad 2, bytes 8, since_ns 8 => 80);
    no_padding!(FragmentKey: source 16, destination 16, identification 4, protocol 1, side 1, pad 2 => 40);
    no_padding!(FragmentPorts: source 2, destination 2 => 4);
    no_padding!(FlowEvent: time_ns 8, cookie 8, netns_cookie 8, duration_ns 8, bytes_sent 8, bytes_received 8,
        dialled 16, backend_address 16, dialled_port 2, backend_port 2, service_id 4, backend 4, pid 4, kind 1,
        protocol 1, by 1, reason 1, client_port 2, pad 2, comm 16 => 120);
    assert_eq!(size_of::<BackendId>(), 4);
}

#[test]
fn each_reason_has_a_counter_and_a_name_of_its_own() {
    for reason in DropReason::ALL {
        assert!((reason as u32) < DROP_COUNTERS);
    }
    let numbers: std::collections::BTreeSet<_> = DropReason::ALL.into();
    assert_eq!(numbers.len(), DropReason::ALL.len());
    let names: std::collections::BTreeSet<_> = DropReason::ALL.map(DropReason::name).into();
    assert_eq!(names.len(), DropReason::ALL.len());
}

#[test]
fn an_address_is_what_it_was_made_of() {
    for ip in [
        "10.96.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::",
        "::1",
        "fd00::7",
        "2001:db8::ffff:10.0.0.1",
    ] {
        let ip: IpAddr = ip.parse().unwrap();
        assert_eq!(Address::from(ip).to_ip(), ip);
    }
    let mapped: Ipv6Addr = "::ffff:10.96.0.1".parse().unwrap();
    assert_eq!(Address::from(mapped), Address::v4([10, 96, 0, 1]));
}
