//! The links of a cluster: one bridge that all machines are on, or two with a router between.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Result;
use crate::command::run;
use crate::host::{create_bridge, create_netns};

/// The router's last byte on both links.
const ROUTER: u8 = 254;

/// How a cluster's links are called and numbered.
#[derive(Clone, Copy, Debug)]
pub struct Links<'a> {
    pub prefix: &'a str,
    /// Third byte of the addresses.
    pub subnet: u8,
    pub with_v6: bool,
}

impl Links<'_> {
    /// The IPv4 address of a machine.
    pub fn v4(&self, is_far: bool, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(172, 30 + u8::from(is_far), self.subnet, host)
    }

    /// Its IPv6 address, in a cluster with IPv6.
    pub fn v6(&self, is_far: bool, host: u8) -> Option<Ipv6Addr> {
        let link = 0x30 + u16::from(is_far);
        let (subnet, host) = (self.subnet.into(), host.into());
        let address = Ipv6Addr::new(0xfd72, link, subnet, 0, 0, 0, 0, host);
        self.with_v6.then_some(address)
    }

    fn bridge(&self, is_far: bool) -> String {
        let suffix = if is_far { "b2" } else { "br" };
        format!("{}-{suffix}", self.prefix)
    }

    /// Makes the first link, with the host's own addresses on it.
    pub fn create_near(&self) -> Result<()> {
        let bridge = self.bridge(false);
        create_bridge(&bridge, Some(self.v4(false, 1)))?;
        if let Some(address) = self.v6(false, 1) {
            run(&format!("ip address add {address}/64 dev {bridge} nodad"))?;
        }
        Ok(())
    }

    /// Makes the second link, and the router between the two.
    pub fn create_far(&self) -> Result<()> {
        create_bridge(&self.bridge(true), None)?;
        let router = format!("{}-router", self.prefix);
        let (near, far) = (format!("{}-r1", self.prefix), format!("{}-r2", self.prefix));
        create_netns(&router, &self.bridge(false), &near, self.v4(false, ROUTER))?;
        let address = self.v4(true, ROUTER);
        let bridge = self.bridge(true);
        run(&format!(
            "ip link add {far} type veth peer name eth1 netns {router}"
        ))?;
        run(&format!("ip link set {far} master {bridge} up"))?;
        run(&format!("ip -n {router} address add {address}/24 dev eth1"))?;
        run(&format!("ip -n {router} link set eth1 up"))?;
        for (is_far, link) in [(false, "eth0"), (true, "eth1")] {
            self.second_address(&router, is_far, ROUTER, link)?;
        }
        for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            run(&format!(
                "nsenter --net=/run/netns/{router} sysctl -qw {setting}=1"
            ))?;
        }
        Ok(())
    }

    /// Makes a machine's network namespace and puts it on one of the links, with a route to the other.
    pub fn attach(
        &self,
        netns: &str,
        cable: &str,
        is_far: bool,
        with_router: bool,
        host: u8,
    ) -> Result<()> {
        let cable = format!("{}-{cable}", self.prefix);
        create_netns(netns, &self.bridge(is_far), &cable, self.v4(is_far, host))?;
        self.second_address(netns, is_far, host, "eth0")?;
        if with_router {
            let (network, router) = (self.v4(!is_far, 0), self.v4(is_far, ROUTER));
            run(&format!(
                "ip -n {netns} route add {network}/24 via {router}"
            ))?;
            if let (Some(network), Some(router)) = (self.v6(!is_far, 0), self.v6(is_far, ROUTER)) {
                run(&format!(
                    "ip -n {netns} route add {network}/64 via {router}"
                ))?;
            }
        }
        Ok(())
    }

    fn second_address(&self, netns: &str, is_far: bool, host: u8, link: &str) -> Result<()> {
        let Some(address) = self.v6(is_far, host) else {
            return Ok(());
        };
        // Nobody else has it, and the machine shall reach others at once.
        run(&format!(
            "ip -n {netns} address add {address}/64 dev {link} nodad"
        ))?;
        Ok(())
    }
}
