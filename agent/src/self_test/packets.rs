//! What is tried of the packets' path: a pod that sends from its own address, and from others.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use agent_ebpf::abi::DropReason;
use ipnet::IpNet;

use super::checks::{expect, failed};
use super::lab::{Lab, LabError, Space, configure};
use super::place::Place;
use super::{Outcome, PREFIX, Refusal};
use crate::dataplane::{self, Dataplane, PodLinks};
use crate::network::LinkGuard as _;

/// The node's end of the pod's link, and the pod's.
const NODE_LINK: &str = "kn-st-pod";
const POD_LINK: &str = "eth0";
/// Where the node listens.
const PORT: u16 = 9;
/// For what should come, and what should not.
const PATIENCE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);

/// Addresses of one family: the node's, the pod's, and one of nobody.
struct Family {
    name: &'static str,
    node: &'static str,
    pod: &'static str,
    forged: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        node: "192.0.2.1/24",
        pod: "192.0.2.7/24",
        forged: "192.0.2.8/24",
    },
    Family {
        name: "IPv6",
        node: "2001:db8:2::1/64",
        pod: "2001:db8:2::7/64",
        forged: "2001:db8:2::8/64",
    },
];

/// A pod beside the node, with a link that the programs guard.
pub(super) fn pod_links(place: &Place, dataplane: &Dataplane) -> Outcome {
    let mut lab = Lab::new(&format!("{PREFIX}pod-"));
    let pod = lab.space("pod")?;
    let families: Vec<&Family> = FAMILIES
        .iter()
        .filter(|it| UdpSocket::bind((network(it.node).addr(), 0)).is_err_and(has_family))
        .collect();
    let node_end = pod.clone();
    let index = configure(async |net| {
        net.veth(NODE_LINK, &node_end, POD_LINK).await?;
        net.index(NODE_LINK).await
    });
    let index = match index {
        Ok(index) => index,
        Err(error) => return Err(Refusal::Skipped(format!("no veth pair: {error}"))),
    };
    let guard = |dataplane: &Dataplane| -> Result<(), Refusal> {
        let links = PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
        let own: Vec<IpAddr> = FAMILIES.iter().map(|it| network(it.pod).addr()).collect();
        Ok(links.guard(index, NODE_LINK, &own)?)
    };
    guard(dataplane)?;
    connect(&pod, &families)?;
    let dropped = |reason| -> Result<u64, Refusal> { Ok(dataplane.maps.drops()?[&reason]) };
    for family in &families {
        expect(family.name, arrives(&pod, family.node, family.pod)?, true)?;
        let before = dropped(DropReason::Spoofed)?;
        let forged = arrives(&pod, family.node, family.forged)?;
        expect("a forged address", forged, false)?;
        let counted = dropped(DropReason::Spoofed)? > before;
        expect("counted", counted, true)?;
    }
    // A second start has each link run its own programs.
    let again = dataplane::start(&place.config, &place.probe)?;
    guard(&again)?;
    for family in &families {
        expect(family.name, arrives(&pod, family.node, family.pod)?, true)?;
        let forged = arrives(&pod, family.node, family.forged)?;
        expect("a forged address after that", forged, false)?;
    }
    let names: Vec<&str> = families.iter().map(|it| it.name).collect();
    let how = match place.probe.tcx {
        true => "TCX links",
        false => "clsact filters",
    };
    match names.is_empty() {
        true => failed("no family".to_owned()),
        false => Ok(format!(
            "{how}: {} from the pod's own addresses only",
            names.join(" and ")
        )),
    }
}

/// A kernel without the family says so; one with it only lacks the address.
fn has_family(error: io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL)
}

pub(super) fn network(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| unreachable!("{text}"))
}

/// Both ends up, with addresses. The pod has the forged one, too: its own stack does not keep it from sending.
fn connect(pod: &Space, families: &[&Family]) -> Result<(), LabError> {
    let own: Vec<IpNet> = families.iter().map(|it| network(it.node)).collect();
    configure(async |net| {
        net.up(NODE_LINK).await?;
        for address in own {
            net.address(NODE_LINK, address).await?;
        }
        Ok(())
    })?;
    let addresses = families.iter().flat_map(|it| [it.pod, it.forged]);
    let addresses: Vec<IpNet> = addresses.map(network).collect();
    pod.configure(async move |net| {
        net.up(POD_LINK).await?;
        for address in addresses {
            net.address(POD_LINK, address).await?;
        }
        Ok(())
    })
}

/// Whether a datagram of the pod's from `source` arrives at the node.
fn arrives(pod: &Space, node: &str, source: &str) -> Result<bool, Refusal> {
    let (node, source) = (network(node).addr(), network(source).addr());
    let receiver = UdpSocket::bind((node, PORT))?;
    let forged = !FAMILIES.iter().any(|it| network(it.pod).addr() == source);
    receiver.set_read_timeout(Some(if forged { QUIET } else { PATIENCE }))?;
    pod.run(move || {
        let socket = UdpSocket::bind((source, 0))?;
        socket.send_to(b"?", (node, PORT)).map(drop)
    })??;
    match receiver.recv_from(&mut [0; 8]) {
        Ok((_, from)) => Ok(from.ip() == source),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
