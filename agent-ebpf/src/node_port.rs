//! Node ports, and pods' host ports: which dialled and which bound addresses may be one. Their rows stand under the
//! unspecified address.

use crate::abi::{Address, Port, ServiceKey};

/// The node, as a program sees it.
pub trait Node {
    /// First and last node port, in host order; both 0 for none.
    fn ports(&self) -> [u16; 2];
    /// Whether pods have it as a host port.
    fn is_host_port(&self, port: Port) -> bool;
    /// Whether node ports are answered at this address.
    fn has(&self, address: &Address) -> bool;
    /// Whether the socket is in the node's own network namespace: a pod's loopback is the pod's.
    fn is_here(&self) -> bool;
}

/// Under which address a node port's row stands that was dialled, or is to be bound, at this one.
#[inline(always)]
pub const fn any(address: &Address) -> Address {
    match address.as_v4() {
        Some(_) => ANY_V4,
        None => ANY_V6,
    }
}

pub const ANY_V4: Address = Address::v4_word(0);
pub const ANY_V6: Address = Address::from_words([0; 4]);

/// Whether what was dialled may be a node port: then its row stands under [`any`] address.
#[inline(always)]
pub fn is_dialled(node: &impl Node, dialled: &ServiceKey) -> bool {
    if !may_be(node, dialled.port) {
        false
    } else if is_loopback(&dialled.address) {
        node.is_here()
    } else {
        node.has(&dialled.address)
    }
}

/// Whether a socket that is bound there would take what is meant for a node port, if there is one.
#[inline(always)]
pub fn is_bound(node: &impl Node, bound: &ServiceKey) -> bool {
    let address = &bound.address;
    may_be(node, bound.port)
        && node.is_here()
        && (is_any(address) || is_loopback(address) || node.has(address))
}

/// Whether it is a socket that dials or binds its own loopback, where nothing of the node's is.
#[inline(always)]
pub fn is_elsewhere(node: &impl Node, address: &Address) -> bool {
    is_loopback(address) && !node.is_here()
}

#[inline(always)]
fn may_be(node: &impl Node, port: Port) -> bool {
    is_in(port, node.ports()) || node.is_host_port(port)
}

#[inline(always)]
fn is_in(port: Port, [first, last]: [u16; 2]) -> bool {
    let port = u16::from_be_bytes(port);
    // Nothing is dialled at port 0, so without node ports there is none.
    port != 0 && first <= port && port <= last
}

#[inline(always)]
fn is_any(address: &Address) -> bool {
    *address == ANY_V4 || *address == ANY_V6
}

#[inline(always)]
fn is_loopback(address: &Address) -> bool {
    const LOOPBACK_V6: Address = Address::from_words([0, 0, 0, 1_u32.to_be()]);
    match address.as_v4() {
        Some([first, ..]) => first == 127,
        None => *address == LOOPBACK_V6,
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::abi::{Scope, TCP};

    struct Told {
        ports: [u16; 2],
        here: bool,
    }

    impl Node for Told {
        fn ports(&self) -> [u16; 2] {
            self.ports
        }

        fn is_host_port(&self, port: Port) -> bool {
            port == 8081_u16.to_be_bytes()
        }

        fn has(&self, address: &Address) -> bool {
            [at("192.0.2.7", 0), at("2001:db8::7", 0)].contains(&ServiceKey {
                address: *address,
                ..at("::", 0)
            })
        }

        fn is_here(&self) -> bool {
            self.here
        }
    }

    fn at(ip: &str, port: u16) -> ServiceKey {
        ServiceKey {
            address: ip.parse::<IpAddr>().unwrap().into(),
            port: port.to_be_bytes(),
            protocol: TCP,
            scope: Scope::CLUSTER,
        }
    }

    const HOST: Told = Told {
        ports: [30_000, 32_767],
        here: true,
    };
    const POD: Told = Told {
        here: false,
        ..HOST
    };

    #[test]
    fn node_ports_are_dialled_at_the_nodes_addresses_and_on_the_node_at_loopback() {
        for ip in ["192.0.2.7", "2001:db8::7"] {
            assert!(is_dialled(&HOST, &at(ip, 30_000)) && is_dialled(&POD, &at(ip, 32_767)));
        }
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_dialled(&HOST, &at(ip, 30_080)), "{ip}");
            assert!(!is_dialled(&POD, &at(ip, 30_080)), "a pod's own: {ip}");
        }
        for (ip, port) in [
            ("192.0.2.8", 30_080),
            ("192.0.2.7", 29_999),
            ("127.0.0.1", 32_768),
            ("0.0.0.0", 30_080),
            ("::2", 30_080),
            ("1::", 30_080),
        ] {
            assert!(!is_dialled(&HOST, &at(ip, port)), "{ip} {port}");
        }
    }

    #[test]
    fn a_bind_is_looked_at_where_node_ports_are_answered() {
        for ip in ["0.0.0.0", "::", "127.0.0.1", "::1", "192.0.2.7"] {
            assert!(is_bound(&HOST, &at(ip, 30_080)), "{ip}");
            assert!(!is_bound(&POD, &at(ip, 30_080)), "{ip}");
            assert!(!is_bound(&HOST, &at(ip, 8080)), "{ip}");
        }
        assert!(!is_bound(&HOST, &at("192.0.2.8", 30_080)));
    }

    #[test]
    fn a_host_port_is_like_a_node_port_whatever_its_number() {
        for ip in ["192.0.2.7", "127.0.0.1", "::1"] {
            assert!(is_dialled(&HOST, &at(ip, 8081)) && is_bound(&HOST, &at(ip, 8081)));
            assert!(!is_dialled(&HOST, &at(ip, 8082)), "nobody has it");
        }
        assert!(is_dialled(&POD, &at("192.0.2.7", 8081)));
        assert!(!is_dialled(&POD, &at("127.0.0.1", 8081)));
        assert!(is_elsewhere(&POD, &at("127.0.0.1", 0).address));
        assert!(!is_elsewhere(&HOST, &at("::1", 0).address));
        assert!(!is_elsewhere(&POD, &at("192.0.2.7", 0).address));
    }

    #[test]
    fn without_node_ports_there_is_none() {
        let none = Told {
            ports: [0, 0],
            ..HOST
        };
        assert!(!is_dialled(&none, &at("127.0.0.1", 0)) && !is_bound(&none, &at("0.0.0.0", 0)));
    }

    #[test]
    fn rows_stand_under_the_address_of_the_family() {
        for (ip, wanted) in [("127.0.0.1", "0.0.0.0"), ("::1", "::")] {
            assert_eq!(any(&at(ip, 0).address), at(wanted, 0).address);
        }
    }
}
