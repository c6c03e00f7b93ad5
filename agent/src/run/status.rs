//! How the state of the agent's parts is told to people.

use tokio::sync::watch;

use crate::network::uplinks;
use crate::network::xdp::Why;
use crate::node::status::{Health, Part};
use crate::server::ComponentHealth;
use crate::server::introspection::Introspection;

/// Adds the parts that [`Health`] knows to what `kernelet status` shows.
pub(super) fn show_health(introspection: &mut Introspection, health: &watch::Receiver<Health>) {
    let (runtime, network) = (health.clone(), health.clone());
    introspection.component("runtime", move || shown(&runtime.borrow().runtime));
    introspection.component("network", move || shown(&network.borrow().network));
}

/// Where packets go round the network stack, and why not elsewhere: neither is amiss.
pub(super) fn ways(paths: &uplinks::Paths) -> ComponentHealth {
    let way = |(link, why): (&String, &Option<Why>)| match why {
        None => format!("{link}: native"),
        Some(why) => format!("{link}: none, {why}"),
    };
    let ways: Vec<String> = paths.iter().map(way).collect();
    ComponentHealth {
        healthy: true,
        detail: ways.join("; "),
    }
}

pub(super) fn shown(part: &Part) -> ComponentHealth {
    match part {
        Part::Up => ComponentHealth {
            healthy: true,
            detail: String::new(),
        },
        Part::Down(why) => ComponentHealth {
            healthy: false,
            detail: why.clone(),
        },
    }
}
