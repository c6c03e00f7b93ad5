//! Node ports of a Service, and its health check's.

use rand::Rng;
use serde_json::{Value, json};

use super::pool::{Held, Holding, Pools};
use super::{protocol, wrong};
use crate::resources::FieldError;

/// Where node ports come from, as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

const ALLOCATED: &str = "provided port is already allocated";

/// Gives every port a node port whose Service wants one or asks for one by its number.
pub(super) fn give_ports(
    pools: &mut Pools,
    service: &mut Value,
    before: &Holding,
    held: &mut Held,
) -> Result<(), Box<FieldError>> {
    let spec = &mut service["spec"];
    let wants_ports = match spec["type"].as_str() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec["allocateLoadBalancerNodePorts"] != json!(false),
        _ => false,
    };
    // Two protocols of one port get one number, if it is free for both.
    let mut given: Vec<(Value, u16)> = Vec::new();
    for (at, port) in spec["ports"]
        .as_array_mut()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let protocol = protocol(port);
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 && !wants_ports {
            continue;
        }
        let path = format!("spec.ports[{at}].nodePort");
        let number = if asked == 0 {
            let twin = given
                .iter()
                .find(|(p, _)| *p == port["port"])
                .map(|(_, number)| *number);
            match twin.filter(|number| pools.ports.claim_free((*number, protocol), &held.holder)) {
                Some(number) => number,
                None => take_port(pools, protocol, &held.holder, &path)?,
            }
        } else {
            claim_port(pools, asked, protocol, before, &held.holder, &path)?
        };
        if !before.ports.contains(&(number, protocol)) {
            held.taken.ports.push((number, protocol));
        }
        given.push((port["port"].clone(), number));
        port["nodePort"] = json!(number);
    }
    Ok(())
}

/// Gives a Service of which load balancers ask the health the port for that, from among the node ports.
pub(super) fn give_health_check_port(
    pools: &mut Pools,
    service: &mut Value,
    before: &Holding,
    held: &mut Held,
) -> Result<(), Box<FieldError>> {
    const PATH: &str = "spec.healthCheckNodePort";
    if !is_health_checked(service) {
        return Ok(());
    }
    let spec = &mut service["spec"];
    let number = match spec["healthCheckNodePort"].as_u64().unwrap_or(0) {
        0 => take_port(pools, "TCP", &held.holder, PATH)?,
        asked => {
            let mut ports = spec["ports"].as_array().into_iter().flatten();
            if ports.any(|port| port["nodePort"] == asked && protocol(port) == "TCP") {
                return Err(wrong(PATH, json!(asked), ALLOCATED));
            }
            claim_port(pools, asked, "TCP", before, &held.holder, PATH)?
        }
    };
    if !before.ports.contains(&(number, "TCP")) {
        held.taken.ports.push((number, "TCP"));
    }
    spec["healthCheckNodePort"] = json!(number);
    Ok(())
}

/// Whether load balancers ask each node for the health of the Service.
pub(super) fn is_health_checked(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// Takes a port that the Service names, or had before.
fn claim_port(
    pools: &mut Pools,
    asked: u64,
    protocol: &'static str,
    before: &Holding,
    holder: &str,
    path: &str,
) -> Result<u16, Box<FieldError>> {
    let had = |number| before.ports.contains(&(number, protocol));
    let number = u16::try_from(asked).ok();
    let number = number.filter(|number| had(*number) || NODE_PORTS.contains(number));
    let number = number.ok_or_else(|| {
        wrong(
            path,
            json!(asked),
            "provided port is not in the valid range. The range of valid ports is 30000-32767",
        )
    })?;
    match had(number) || pools.ports.claim_free((number, protocol), holder) {
        true => Ok(number),
        false => Err(wrong(path, json!(asked), ALLOCATED)),
    }
}

fn take_port(
    pools: &mut Pools,
    protocol: &'static str,
    holder: &str,
    path: &str,
) -> Result<u16, Box<FieldError>> {
    let (low, high) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    let size = u32::from(high - low) + 1;
    let start = rand::rng().random_range(0..size);
    let candidate = |at: u32| (u16::try_from(u32::from(low) + at).unwrap_or(high), protocol);
    let taken = pools.ports.take(holder, start, size, candidate);
    let full = "failed to allocate a nodePort: range is full";
    taken
        .map(|(number, _)| number)
        .ok_or_else(|| wrong(path, json!(0), full))
}
