//! Node ports of a Service.

use rand::Rng;
use serde_json::{Value, json};

use super::pool::{Held, Holding, Pools};
use super::{protocol, wrong};
use crate::resources::FieldError;

/// Where node ports come from, as upstream.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

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
                None => take_port(pools, protocol, &held.holder).ok_or_else(|| {
                    wrong(
                        &path,
                        json!(0),
                        "failed to allocate a nodePort: range is full",
                    )
                })?,
            }
        } else {
            let number = u16::try_from(asked)
                .ok()
                .filter(|n| before.ports.contains(&(*n, protocol)) || NODE_PORTS.contains(n));
            let number = number.ok_or_else(|| {
                wrong(&path, json!(asked), "provided port is not in the valid range. The range of valid ports is 30000-32767")
            })?;
            if !before.ports.contains(&(number, protocol))
                && !pools.ports.claim_free((number, protocol), &held.holder)
            {
                return Err(wrong(
                    &path,
                    json!(asked),
                    "provided port is already allocated",
                ));
            }
            number
        };
        if !before.ports.contains(&(number, protocol)) {
            held.taken.ports.push((number, protocol));
        }
        given.push((port["port"].clone(), number));
        port["nodePort"] = json!(number);
    }
    Ok(())
}

fn take_port(pools: &mut Pools, protocol: &'static str, holder: &str) -> Option<u16> {
    let (low, high) = (*NODE_PORTS.start(), *NODE_PORTS.end());
    let size = u32::from(high - low) + 1;
    let start = rand::rng().random_range(0..size);
    let candidate = |at: u32| (u16::try_from(u32::from(low) + at).unwrap_or(high), protocol);
    pools
        .ports
        .take(holder, start, size, candidate)
        .map(|(number, _)| number)
}
