//! What people dial, as addresses. Pure.

use std::net::{IpAddr, SocketAddr};

use agent_ebpf::abi::{Scope, ServiceKey, TCP, UDP};

use crate::cluster::{ObjectKey, Protocol, Service, ServicePort, View};

/// Why nothing can be traced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("{0:?} is not ADDRESS:PORT, nor [NAMESPACE/]SERVICE:PORT")]
    Malformed(String),
    #[error("{0:?} is no protocol that is traced; TCP and UDP are")]
    Protocol(String),
    #[error("there is no service {0}")]
    NoService(ObjectKey),
    #[error("service {service} has no port {port}; it has {has}")]
    NoPort {
        service: ObjectKey,
        port: String,
        has: String,
    },
    #[error("service {0} has no address of its own: DNS answers with {1}")]
    NoAddress(ObjectKey, &'static str),
}

/// The addresses that `to` means: one that is given as such, or all that a service has for the port.
pub fn destinations(view: &View, to: &str, protocol: &str) -> Result<Vec<ServiceKey>, TraceError> {
    let protocols: &[(Protocol, u8)] = match protocol.to_ascii_uppercase().as_str() {
        "" => &[(Protocol::Tcp, TCP), (Protocol::Udp, UDP)],
        "TCP" => &[(Protocol::Tcp, TCP)],
        "UDP" => &[(Protocol::Udp, UDP)],
        _ => return Err(TraceError::Protocol(protocol.to_owned())),
    };
    let key = |address: IpAddr, port: u16, protocol| ServiceKey {
        address: address.into(),
        port: port.to_be_bytes(),
        protocol,
        scope: Scope::CLUSTER,
    };
    if let Ok(address) = to.parse::<SocketAddr>() {
        return Ok(vec![key(address.ip(), address.port(), protocols[0].1)]);
    }
    let malformed = || TraceError::Malformed(to.to_owned());
    let (name, port) = to.rsplit_once(':').ok_or_else(malformed)?;
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    if namespace.is_empty() || name.is_empty() || port.is_empty() || name.contains([':', '/']) {
        return Err(malformed());
    }
    let owner = ObjectKey::new(namespace, name);
    let Some(service) = view.services.get(&owner) else {
        return Err(TraceError::NoService(owner));
    };
    if service.external_name.is_some() {
        return Err(TraceError::NoAddress(owner, "its external name"));
    }
    if service.headless {
        return Err(TraceError::NoAddress(owner, "its endpoints"));
    }
    let asked = |it: &&ServicePort| &*it.name == port || it.port.to_string() == port;
    let mut keys = Vec::new();
    for (kind, number) in protocols {
        let ports = service.ports.iter().filter(|it| it.protocol == *kind);
        for it in ports.filter(asked) {
            let addresses = service.cluster_ips.iter();
            keys.extend(addresses.map(|address| key(*address, it.port, *number)));
        }
    }
    if keys.is_empty() {
        return Err(TraceError::NoPort {
            service: owner,
            port: port.to_owned(),
            has: ports(service),
        });
    }
    Ok(keys)
}

pub(super) fn ports(service: &Service) -> String {
    let ports = service.ports.iter().map(|port| match &*port.name {
        "" => format!("{}/{}", port.port, port.protocol),
        name => format!("{name} ({}/{})", port.port, port.protocol),
    });
    ports.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{World, dialled};
    use super::*;

    #[test]
    fn what_is_dialled_may_be_an_address_or_a_service() {
        let world = World::new();
        let view = world.cluster.view();
        let to = |text: &str| destinations(&view, text, "");
        assert_eq!(to("10.96.0.1:80"), Ok(vec![dialled(1, 80)]));
        assert_eq!(to("shop/web:80"), Ok(vec![dialled(1, 80)]));
        assert_eq!(to("shop/web:http"), Ok(vec![dialled(1, 80)]));
        let [v6] = to("[fd00::1]:80").unwrap()[..] else {
            panic!("one address")
        };
        assert_eq!(v6.address.to_ip(), "fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(
            destinations(&view, "10.96.0.1:80", "udp").unwrap()[0].protocol,
            UDP
        );

        for text in ["web", "shop/:80", "a/b/c:80", ":80", "fd00::1", "web:"] {
            assert_eq!(to(text), Err(TraceError::Malformed(text.into())));
        }
        let default = ObjectKey::new("default", "web");
        assert_eq!(to("web:80"), Err(TraceError::NoService(default)));
        assert_eq!(
            to("shop/web:81").unwrap_err().to_string(),
            "service shop/web has no port 81; it has http (80/TCP), sig (81/SCTP)"
        );
        assert!(matches!(
            to("shop/headless:80"),
            Err(TraceError::NoAddress(..))
        ));
        assert!(matches!(
            destinations(&view, "shop/web:80", "sctp"),
            Err(TraceError::Protocol(_))
        ));
    }
}
