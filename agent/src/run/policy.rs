//! The parts that enforce network policies.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::{Parts, RunError, unfailing};
use crate::cluster::Name;
use crate::dataplane::{
    OpenConversation, PolicyMaps, PolicyTables as _, Records, conversations_in,
};
use crate::network::addresses::veth_name;
use crate::network::monitor::Monitor;
use crate::network::netlink::Netlink;
use crate::observe::Flows;
use crate::policy::drops;
use crate::policy::engine::Engine;
use crate::policy::state::{PolicyOp, PolicyState};
use crate::policy::watch::Known;
use crate::server::ComponentHealth;
use crate::server::introspection::Introspection;

/// Starts what keeps the maps in `dir` as policies want them, and shows how it is.
pub(super) fn start(
    node: &Name,
    addresses: &[IpAddr],
    client: kube::Client,
    dir: &Path,
    pins: PathBuf,
    flows: Flows,
    parts: &mut Parts,
) -> Result<Engine, RunError> {
    let maps = PolicyMaps::open(dir)?;
    let state = PolicyState::adopt(maps.dump()?);
    let known = Known::new(node.clone());
    let sockets = Box::new(move |link: &str| open_in(&pins, link));
    let engine = Engine::new(known.clone(), state, Box::new(maps), sockets);
    parts.spawn(unfailing(known.watch(client)));
    parts.spawn(unfailing(engine.clone().run()));
    let records = Records::open(dir)?;
    let telling = drops::run(node.clone(), engine.clone(), flows, records);
    parts.spawn(async { Ok(telling.await?) });
    let following = follow_addresses(engine.clone(), addresses.to_vec());
    parts.spawn(following);
    Ok(engine)
}

/// The conversations of the pod whose link has that name. The pins of pods' namespaces are named by the pods' uids.
fn open_in(pins: &Path, link: &str) -> Vec<OpenConversation> {
    let pods = fs::read_dir(pins).into_iter().flatten().flatten();
    let mut pods = pods.map(|entry| entry.path());
    let pin = pods.find(|path| {
        let uid = path.file_name().and_then(|name| name.to_str());
        uid.is_some_and(|uid| veth_name(uid) == link)
    });
    let Some(pin) = pin else {
        return Vec::new();
    };
    conversations_in(&pin).unwrap_or_else(|error| {
        warn!(pin = %pin.display(), %error, "cannot tell which conversations a pod has that becomes isolated; their answers may not pass");
        Vec::new()
    })
}

/// Shows how it is in `kernelet status`.
pub(super) fn show(introspection: &mut Introspection, engine: Engine) {
    introspection.show_policies(engine.clone());
    introspection.component("policy", move || {
        let problem = engine.problem();
        ComponentHealth {
            healthy: problem.is_none(),
            detail: problem.unwrap_or_default(),
        }
    });
}

/// What policies had closed is open again: this node is told to ignore them.
pub(super) fn release(dir: &Path) -> Result<(), RunError> {
    let mut maps = PolicyMaps::open(dir)?;
    for link in maps.dump()?.pods.into_keys() {
        maps.apply(&PolicyOp::DeletePod(link))?;
    }
    Ok(())
}

/// Tells which addresses are the node's own, as they come and go.
async fn follow_addresses(engine: Engine, own: Vec<IpAddr>) -> Result<(), RunError> {
    let netlink = Netlink::open()?;
    let mut monitor = Monitor::open()?;
    loop {
        let found = netlink.addresses().await?.into_iter();
        let found = found.map(|(_, range)| range.addr());
        let addresses: BTreeSet<IpAddr> = found.chain(own.iter().copied()).collect();
        engine.set_node_addresses(addresses);
        monitor.changed().await;
    }
}
