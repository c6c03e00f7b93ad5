//! What of a Service or its EndpointSlices cannot be used, and why: the agent believes no API server.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Why something is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// SCTP, which the socket hooks do not see, or a protocol that nobody knows.
    Protocol,
    /// 0 or beyond 65535.
    Port,
    /// Of two ports with one number and protocol the first counts.
    DuplicatePort,
    /// Loopback, link-local, multicast, unspecified, IPv4 written as IPv6, or no address at all.
    ServiceAddress,
    /// A Service with this address would take what is meant for the node.
    NodeAddress,
    /// A Service with this address would take what is meant for a pod.
    PodRange,
    /// An external IP that is a cluster IP: who makes Services would take what is meant for another.
    ClusterAddress,
    /// An external address of a family of which the service has no cluster IP, and so no backends.
    AddressFamily,
    /// More external addresses than one service may have.
    TooManyAddresses,
    /// A load balancer's source range that is none; nobody comes in by it.
    SourceRange,
    /// A port that a health check cannot have.
    HealthCheckPort,
    /// Another service had it before.
    AddressTaken,
    /// A value of the annotation that nobody knows.
    Locality,
    /// As [`Why::Locality`].
    Forwarding,
    /// A pod's `hostIP` that is none of the node's: it would take what is meant for another.
    HostAddress,
    /// A `hostIP` of a family of which the pod has no address.
    HostAddressFamily,
    /// As [`Why::ServiceAddress`], of an endpoint, or of another family than its slice.
    EndpointAddress,
    /// As [`Why::Port`], of a slice.
    EndpointPort,
    /// More endpoints than a slice may have.
    TooManyEndpoints,
}

impl Why {
    /// For a person.
    pub fn reason(self) -> &'static str {
        match self {
            Why::Protocol => "only TCP and UDP are translated",
            Why::Port => "a port is not between 1 and 65535",
            Why::DuplicatePort => "two ports have one number and protocol, and the first counts",
            Why::ServiceAddress => "a service cannot have this address",
            Why::NodeAddress => "a service cannot have a node's address",
            Why::PodRange => "a service cannot have a pod's address",
            Why::ClusterAddress => "an external IP cannot be a service's cluster IP",
            Why::AddressFamily => "the service has no cluster IP of this address's family",
            Why::TooManyAddresses => {
                "a service has more than 100 external addresses, and the first count"
            }
            Why::SourceRange => "a source range is no CIDR, and lets nobody in",
            Why::HealthCheckPort => "healthCheckNodePort is not between 1 and 65535",
            Why::AddressTaken => "another service has the address",
            Why::Locality => "kernelet.io/locality is neither node, zone nor cluster",
            Why::Forwarding => "kernelet.io/forwarding is neither snat nor dsr",
            Why::HostAddressFamily => "the pod has no address of its hostIP's family",
            Why::HostAddress => "a host port's hostIP is no address of this node",
            Why::EndpointAddress => "an endpoint cannot have this address",
            Why::EndpointPort => "an endpoint's port is not between 1 and 65535",
            Why::TooManyEndpoints => "a slice has more than 1000 endpoints, and the first count",
        }
    }

    /// The reason of the Event that tells it.
    pub fn event(self) -> &'static str {
        match self {
            Why::Protocol => "UnsupportedProtocol",
            Why::Port | Why::DuplicatePort | Why::HealthCheckPort => "InvalidPort",
            Why::ServiceAddress
            | Why::NodeAddress
            | Why::PodRange
            | Why::ClusterAddress
            | Why::AddressFamily
            | Why::TooManyAddresses => "InvalidAddress",
            Why::SourceRange => "InvalidSourceRange",
            Why::AddressTaken => "AddressTaken",
            Why::Locality => "InvalidLocality",
            Why::Forwarding => "InvalidForwarding",
            Why::HostAddress | Why::HostAddressFamily => "InvalidHostIP",
            Why::EndpointAddress | Why::EndpointPort | Why::TooManyEndpoints => "InvalidEndpoint",
        }
    }
}

/// Things of one object that are left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ignored {
    pub why: Why,
    /// The first of them.
    pub what: Box<str>,
    /// How many there are.
    pub count: u32,
}

/// The longest piece of an object's text that is repeated to people, in characters.
const MOST_SAID: usize = 80;

impl Ignored {
    pub fn one(why: Why, what: impl fmt::Display) -> Self {
        let (what, count) = (shortened(what), 1);
        Self { why, what, count }
    }
}

fn shortened(what: impl fmt::Display) -> Box<str> {
    let mut text = what.to_string();
    if let Some((at, _)) = text.char_indices().nth(MOST_SAID) {
        text.truncate(at);
        text.push('…');
    }
    // Nobody writes lines of their own into a log.
    text.replace(char::is_control, "?").into()
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why.reason(), self.what)?;
        match self.count {
            0 | 1 => Ok(()),
            more => write!(f, " and {} more", more - 1),
        }
    }
}

/// Gathers what is left out, however much it is, in little room.
#[derive(Debug, Default)]
pub struct Leftovers(BTreeMap<Why, (Box<str>, u32)>);

impl Leftovers {
    pub fn add(&mut self, why: Why, what: impl fmt::Display) {
        self.join(Ignored::one(why, what));
    }

    pub fn join(&mut self, ignored: Ignored) {
        let Ignored { why, what, count } = ignored;
        let (_, sum) = self.0.entry(why).or_insert((what, 0));
        *sum = sum.saturating_add(count);
    }

    /// One for each reason, in their order.
    pub fn into_vec(self) -> Vec<Ignored> {
        let all = self.0.into_iter();
        all.map(|(why, (what, count))| Ignored { why, what, count })
            .collect()
    }
}

/// Whether an address may be a service's or an endpoint's: others can reach a machine there, and it is written one way.
pub fn is_plain(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    !(is_link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_is_left_out_it_is_told_once() {
        let mut leftovers = Leftovers::default();
        for n in 0..5000 {
            leftovers.add(Why::EndpointAddress, format!("127.0.0.{n}"));
        }
        leftovers.add(Why::Port, format!("{}\n", "x".repeat(500)));
        let all = leftovers.into_vec();
        assert_eq!(all[0].what.chars().count(), MOST_SAID + 1);
        assert_eq!(
            all[1].to_string(),
            "an endpoint cannot have this address: 127.0.0.0 and 4999 more"
        );
        assert_eq!(&*Ignored::one(Why::Locality, "a\nb").what, "a?b");
    }

    #[test]
    fn plain_addresses_are_those_that_others_reach() {
        for ip in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"] {
            assert!(is_plain(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "127.0.0.1",
            "169.254.1.1",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_plain(ip.parse().unwrap()), "{ip}");
        }
    }
}
