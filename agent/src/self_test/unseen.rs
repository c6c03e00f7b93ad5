//! What is tried of pods whose sockets the programs do not see: services are translated at their links.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};

use agent_ebpf::abi::{Scope, TCP, UDP};
use ipnet::IpNet;

use super::checks::expect;
use super::lab::{Lab, Space, pod};
use super::outside::{SERVED, UNSERVED, ask, bulk, dial, mirrors, rows, step};
use super::packets::network;
use super::place::Place;
use super::policy::{forward, has_family};
use super::{Outcome, PREFIX, Refusal};
use crate::dataplane::{Dataplane, PodLinks, ServiceMaps as _};
use crate::network::LinkGuard as _;

/// A pod: its link, and its own address and the node's in each family.
struct Pod {
    link: &'static str,
    addresses: [(&'static str, &'static str); 2],
}

const CLIENT: Pod = Pod {
    link: "kn-st-unseen",
    addresses: [
        ("198.18.81.2/30", "198.18.81.1/30"),
        ("2001:db8:81a::2/64", "2001:db8:81a::1/64"),
    ],
};
const BACKEND: Pod = Pod {
    link: "kn-st-backend",
    addresses: [
        ("198.18.81.6/30", "198.18.81.5/30"),
        ("2001:db8:81b::2/64", "2001:db8:81b::1/64"),
    ],
};
/// The services' address, which no machine has, and their ports: to the backend, to nobody there, to no backend, to the
/// client itself.
const SERVICE: [&str; 2] = ["198.18.82.1", "2001:db8:82::1"];
const PORTS: [u16; 4] = [80, 81, 82, 83];

impl Pod {
    fn own(&self, family: usize) -> IpAddr {
        network(self.addresses[family].0).addr()
    }

    fn connect(&self, lab: &mut Lab, links: &PodLinks) -> Result<(Space, u32), Refusal> {
        let families = [0, 1].into_iter().filter(|it| has_family(*it));
        let addresses: Vec<(IpNet, IpNet)> = families
            .map(|family| self.addresses[family])
            .map(|(own, node)| (network(own), network(node)))
            .collect();
        pod(lab, self.link, &addresses, |index| {
            Ok(links.guard(index, self.link, &[self.own(0), self.own(1)])?)
        })
    }
}

/// A client that leaves the cgroup that the programs are attached to, and dials services all the same.
pub(super) fn services(place: &Place, dataplane: &mut Dataplane) -> Outcome {
    let families: Vec<usize> = [0, 1].into_iter().filter(|it| has_family(*it)).collect();
    forward(&families)?;
    let mut lab = Lab::new(&format!("{PREFIX}unseen-"));
    let links = PodLinks::new(dataplane.link_programs.clone(), &dataplane.dir)?;
    links.refuse_at(&[0, 1].map(|family| network(CLIENT.addresses[family].1).addr()))?;
    let (client, index) = CLIENT.connect(&mut lab, &links)?;
    let (backend, _) = BACKEND.connect(&mut lab, &links)?;
    let mut id = 2000;
    for family in &families {
        let [client, backend] = [&CLIENT, &BACKEND].map(|pod| pod.own(*family));
        let behind = [
            Some((backend, SERVED)),
            Some((backend, UNSERVED)),
            None,
            Some((client, SERVED)),
        ];
        for protocol in [TCP, UDP] {
            for (port, backend) in PORTS.into_iter().zip(behind) {
                id += 1;
                let at = (SERVICE[*family].parse()?, port, protocol);
                dataplane
                    .maps
                    .apply_all(&rows(id, at, Scope::CLUSTER, backend, 0))?;
            }
        }
    }
    place.outside(|| {
        for family in &families {
            mirrors(&client, (CLIENT.own(*family), SERVED), usize::MAX)?;
            mirrors(&backend, (BACKEND.own(*family), SERVED), usize::MAX)?;
        }
        // A pod of which nothing was to be translated has not paid for it.
        let seen = dataplane.maps.rows("TRANSLATING")?;
        let key = format!("link {index}");
        expect("at first", seen.iter().any(|row| row.key == key), false)?;
        families
            .iter()
            .try_for_each(|family| translated(&client, *family))?;
        let seen = dataplane.maps.rows("TRANSLATING")?;
        let is_seen = seen.iter().any(|row| row.key == key);
        expect("translated at the link", is_seen, true)
    })?;
    Ok(format!(
        "{} of 2 families: TCP, UDP, fragments, refusals, and a pod that calls itself",
        families.len()
    ))
}

fn translated(client: &Space, family: usize) -> Result<(), Refusal> {
    let service: IpAddr = SERVICE[family].parse()?;
    let at = |n: usize| SocketAddr::new(service, PORTS[n]);
    let own = CLIENT.own(family);
    let (mut stream, seen) = step("TCP", dial(client, at(0)))?;
    expect("whom the backend sees", seen.ip(), own)?;
    expect("whom the client sees", stream.peer_addr()?, at(0))?;
    expect(
        "whom the backend sees of UDP",
        step("UDP", ask(client, at(0), 1))?.ip(),
        own,
    )?;
    step("fragments", ask(client, at(0), 4000))?;
    step("much", bulk(client, at(0)))?;
    for (n, what) in [
        (1, "a port where nobody listens"),
        (2, "a service without backend"),
    ] {
        let refused = dial(client, at(n)).err().map(|error| error.kind());
        expect(what, refused, Some(ErrorKind::ConnectionRefused))?;
        let refused = ask(client, at(n), 1).err().map(|error| error.kind());
        expect(what, refused, Some(ErrorKind::ConnectionRefused))?;
    }
    let (_itself, seen) = step("TCP to itself", dial(client, at(3)))?;
    expect("whom it sees", seen.ip(), service)?;
    let seen = step("UDP to itself", ask(client, at(3), 1))?;
    expect("whom it sees of UDP", seen.ip(), service)?;
    echo(&mut stream)
}

/// What is open stays so.
fn echo(stream: &mut TcpStream) -> Result<(), Refusal> {
    use std::io::{Read as _, Write as _};
    let mut answer = [0];
    let went = stream
        .write_all(b"?")
        .and_then(|()| stream.read_exact(&mut answer));
    step("an open connection", went)
}
