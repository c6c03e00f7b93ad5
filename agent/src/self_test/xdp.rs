//! What is tried of packets that are sent on before the network stack sees them: with the programs on the stack's way gone,
//! whatever still arrives went round it.

use std::io;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use agent_ebpf::abi::LinkIndex;

use super::checks::expect;
use super::direct::answered;
use super::ethtool::{Offload, switch};
use super::lab::{Space, configure};
use super::outside::{
    CLIENT_LINK, FAMILIES, FAR_LINK, Family, Neighbours, PORT, Stream, THERE, ask, dial, dial_as,
    step, uplinks_of,
};
use super::packets::network;
use super::{Outcome, Refusal};
use crate::chain::chain;
use crate::dataplane::{Dataplane, Hook, Uplinks, XdpFeatures, xdp_features};

const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(50);
const STACK: [Hook; 2] = [Hook::UplinkIn, Hook::UplinkOut];

/// Connections to the far backend, by XDP alone. One of each family stays open.
pub(super) fn check(
    dataplane: &Dataplane,
    neighbours: &Neighbours,
    streams: &mut Vec<Stream>,
) -> Outcome {
    for space in [&neighbours.client, &neighbours.far] {
        ready(space)?;
    }
    let [client, far, _] = neighbours.links;
    for link in [client, far] {
        match xdp_features(link) {
            Ok(features) if features.has(XdpFeatures::SEND) => {}
            Ok(_) => return Err(skipped("veth pairs do not send what XDP does here")),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                return Err(skipped(
                    "older than Linux 6.3, which tells what drivers can do",
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let macs = configure(async |net| Ok([net.mac(CLIENT_LINK).await?, net.mac(FAR_LINK).await?]))?;
    let programs = &dataplane.link_programs;
    neighbours.xdp.set(macs.map(Some));
    let mut uplinks = Uplinks::new(programs.clone(), &dataplane.dir)?;
    uplinks.apply(&uplinks_of(neighbours))?;
    if let Some(error) = uplinks.refused().values().next() {
        return Err(Refusal::Failed(chain(error)));
    }
    let links = [client, far].map(LinkIndex);
    for link in links {
        for hook in STACK {
            programs.detach(hook, link)?;
        }
    }
    let went = FAMILIES
        .iter()
        .filter(|family| family.is_known())
        .try_for_each(|family| both(neighbours, family, streams));
    // As it is for whoever comes next, whatever was found.
    put_back(|| uplinks.apply(&uplinks_of(neighbours)))?;
    went?;
    Ok(
        "to a backend on another node and back, or handed to that node; with no other program there"
            .to_owned(),
    )
}

/// The kernel takes a moment to let go of what was detached, and does not attach it twice.
fn put_back<E>(mut attach: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    for _ in 0..ATTEMPTS {
        if attach().is_ok() {
            return Ok(());
        }
        thread::sleep(PAUSE);
    }
    attach()
}

fn both(
    neighbours: &Neighbours,
    family: &Family,
    streams: &mut Vec<Stream>,
) -> Result<(), Refusal> {
    let to = SocketAddr::new(family.balancer, PORT);
    let node = network(family.node_at_far).addr();
    let (stream, seen) = step(family.name, dial(&neighbours.client, to))?;
    expect("whom the far backend sees", seen.ip(), node)?;
    let seen = step(family.name, ask(&neighbours.client, to, 1))?;
    expect("of UDP", seen.ip(), node)?;
    streams.push(("the far backend by XDP", stream));
    // Answers leave by the link of their client, and not as the node's routes say.
    let roaming = network(family.roaming).addr();
    let dialled = dial_as(&neighbours.client, roaming, to);
    step("from where two links lead", dialled)?;
    answered(neighbours, family)
}

/// Makes the other end take what XDP sends, and send packets that are complete.
fn ready(space: &Space) -> Result<(), Refusal> {
    space.run(|| {
        switch(THERE, Offload::Receive, true)?;
        switch(THERE, Offload::SendChecksum, false)
    })??;
    Ok(())
}

fn skipped(why: &str) -> Refusal {
    Refusal::Skipped(why.to_owned())
}
