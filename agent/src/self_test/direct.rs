//! What is tried of services whose backends' nodes answer clients themselves. The far backend plays such a node: it has the
//! service's address, and a way to the client that does not pass here.
//!
//! ```text
//! client ── node ── far backend
//!    └───────────────────┘
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use agent_ebpf::abi::{FLAG_DIRECT_RETURN, Scope, TCP, UDP};
use ipnet::IpNet;

use super::checks::expect;
use super::lab::LabError;
use super::outside::{
    DIRECT_PORT, FAMILIES, Family, Neighbours, SERVED, ask, bulk, dial, mirrors, rows, step,
};
use super::packets::network;
use super::{Outcome, Refusal};
use crate::dataplane::{Dataplane, ServiceMaps as _};

const LINK: &str = "direct";

/// By the programs on the stack's way.
pub(super) fn check(dataplane: &mut Dataplane, neighbours: &Neighbours) -> Outcome {
    connect(neighbours)?;
    let mut id = 2000;
    for family in &FAMILIES {
        for protocol in [TCP, UDP] {
            id += 1;
            let dialled = (family.balancer, DIRECT_PORT, protocol);
            let backend = (network(family.far).addr(), SERVED);
            let ops = rows(
                id,
                dialled,
                Scope::EXTERNAL,
                Some(backend),
                FLAG_DIRECT_RETURN,
            );
            dataplane.maps.apply_all(&ops)?;
        }
    }
    let served = || FAMILIES.iter().filter(|it| it.is_known());
    for family in served() {
        // Before the node knows that it shares a link with the other.
        let seen = step(family.name, ask(&neighbours.client, at(family), 1))?;
        let node = network(family.node_at_far).addr();
        expect("whom the far backend sees", seen.ip(), node)?;
    }
    let near: BTreeSet<IpNet> = FAMILIES
        .iter()
        .map(|it| network(it.far).addr().into())
        .collect();
    dataplane.maps.set_near(&near)?;
    for family in served() {
        mirrors(&neighbours.far, (family.balancer, DIRECT_PORT), usize::MAX)?;
        answered(neighbours, family)?;
        // The far link takes less at once than the client sends.
        let much = bulk(&neighbours.client, at(family));
        step(family.name, much)?;
    }
    Ok("the backend's node sees the client and answers it itself, TCP and UDP".to_owned())
}

/// The far end sees the client, and its answers come from the service.
pub(super) fn answered(neighbours: &Neighbours, family: &Family) -> Result<(), Refusal> {
    let client = network(family.client).addr();
    let (stream, seen) = step(family.name, dial(&neighbours.client, at(family)))?;
    expect("whom it sees", seen, stream.local_addr()?)?;
    let seen = step(family.name, ask(&neighbours.client, at(family), 1))?;
    expect("of UDP", seen.ip(), client)
}

fn at(family: &Family) -> SocketAddr {
    SocketAddr::new(family.balancer, DIRECT_PORT)
}

/// The way from the far backend to the client, and the service's address there.
fn connect(neighbours: &Neighbours) -> Result<(), LabError> {
    let (client, far) = (&neighbours.client, &neighbours.far);
    for space in [client, far] {
        space.run(|| -> io::Result<()> {
            fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0")?;
            fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "0")?;
            fs::write("/proc/sys/net/ipv4/conf/eth0/rp_filter", "0")
        })??;
    }
    let there = far.clone();
    client.configure(async move |net| {
        net.veth(LINK, &there, LINK).await?;
        net.up(LINK).await?;
        for family in &FAMILIES {
            net.address(LINK, network(family.client_at_far)).await?;
        }
        Ok(())
    })?;
    far.configure(async |net| {
        net.up(LINK).await?;
        for family in &FAMILIES {
            net.address(LINK, network(family.far_at_client)).await?;
            net.address("lo", family.balancer.into()).await?;
            let client: IpAddr = network(family.client).addr();
            let via = network(family.client_at_far).addr();
            net.route(client.into(), LINK, Some(via)).await?;
        }
        Ok(())
    })
}
