//! What a crash leaves at any step of an attach or of a clean-up.

use super::*;
use crate::network::addresses::{alias, host_mac, pod_mac, veth_name};

#[test]
fn attach_finishes_what_a_crash_left_at_any_step() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    for stack in STACKS {
        let mut lab = Lab::new();
        let [one, _two] = two_nodes(&mut lab);
        let addresses = stack.ranges(1).addresses(2).unwrap();
        // What a whole attach does, cut off after so many steps.
        for steps in 0..=6 {
            let uid = format!("uid-{steps}");
            let pod = lab.netns(&format!("pod-{steps}"));
            let (crashed, netns) = (uid.clone(), pod.clone());
            on_node(&one, move || async move {
                stack.set_up(1).await;
                let outside = Netlink::open().unwrap();
                let inside = Netlink::open_in(&netns).await.unwrap().unwrap();
                let name = veth_name(&crashed);
                let gateways = stack.gateways(1);
                if steps >= 1 {
                    let file = std::fs::File::open(&netns).unwrap();
                    let pair = VethPair {
                        host_name: &name,
                        host_mac: host_mac(&addresses),
                        pod_name: "eth0",
                        pod_mac: pod_mac(&addresses),
                        pod_netns: std::os::fd::AsFd::as_fd(&file),
                        mtu: 1400,
                    };
                    outside.add_veth(pair).await.unwrap();
                }
                let Some(link) = outside.link(&name).await.unwrap() else {
                    return;
                };
                if let Some(alias) = alias(&addresses).filter(|_| steps >= 2) {
                    outside.set_alias(link.index, &alias).await.unwrap();
                }
                let eth0 = inside.link("eth0").await.unwrap().unwrap();
                for (address, gateway) in addresses.iter().zip(gateways) {
                    if steps >= 3 {
                        inside
                            .put_address(eth0.index, address.into())
                            .await
                            .unwrap();
                    }
                    if steps >= 4 {
                        inside.set_up(eth0.index).await.unwrap();
                        inside.put_default_route(gateway, eth0.index).await.unwrap();
                    }
                    if steps >= 5 {
                        outside.set_up(link.index).await.unwrap();
                    }
                    if steps >= 6 {
                        outside
                            .put_host_route(address, link.index, gateway)
                            .await
                            .unwrap();
                    }
                }
            });
            // Without its alias, a link says nothing of the IPv6 address: the pod gets other addresses.
            let kept = steps != 1 || matches!(stack, Stack::V4 | Stack::V6);
            let given = attach(&one, stack, 1, &[(&uid, &pod)]).remove(0);
            assert_eq!(
                given == stack.pod(1, 2),
                kept,
                "{stack:?}: {steps} steps: {given:?}"
            );
            for (address, gateway) in given.iter().zip(stack.gateways(1)) {
                let (up, down) = (reach(&pod, &one, gateway), reach(&one, &pod, *address));
                assert_eq!(up.unwrap(), *address, "{stack:?}: {steps} steps");
                assert_eq!(down.unwrap(), gateway, "{stack:?}: {steps} steps");
            }
            on_node(&one, move || async move {
                stack.set_up(1).await.detach(&uid).await.unwrap();
            });
        }
    }
}

#[test]
fn a_clean_up_that_was_interrupted_can_be_repeated() {
    if !root_or_skip("network namespaces need root") {
        return;
    }
    for stack in STACKS {
        let mut lab = Lab::new();
        let [one, _two] = two_nodes(&mut lab);
        let pod = lab.netns("pod");
        let families = stack.gateways(1).len();
        // Gateways, unreachable routes, a pod's link and the tunnel, whose routes go with it.
        let things = 2 * families + 2;
        let far = [
            [198, 51, 100, 2].into(),
            [0x2001, 0xdb8, 9, 0, 0, 0, 0, 2].into(),
        ];
        for done in 0..=things {
            attach(&one, stack, 1, &[("uid", &pod)]);
            route(&one, stack, 1, &stack.cluster(&[(2, far.to_vec())]));
            on_node(&one, move || async move {
                let found = leftovers::find().await.unwrap();
                assert_eq!(found.len(), things, "{found:?}");
                for leftover in found.iter().take(done) {
                    leftovers::remove(leftover).await.unwrap();
                }
                for leftover in leftovers::find().await.unwrap() {
                    leftovers::remove(&leftover).await.unwrap();
                }
                let netlink = Netlink::open().unwrap();
                assert!(netlink.own_routes().await.unwrap().is_empty());
                let addresses = netlink.addresses().await.unwrap();
                let is_gateway = |address: IpAddr| stack.gateways(1).contains(&address);
                assert!(
                    !addresses
                        .iter()
                        .any(|(_, address)| is_gateway(address.addr())),
                    "after {done}: {addresses:?}"
                );
            });
            assert_eq!(link_names(&one), ["lo", "up0"]);
        }
    }
}
