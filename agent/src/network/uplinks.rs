//! At which links packets to and from other machines are translated: which they are is pure, keeping it so is
//! level-triggered.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use agent_ebpf::abi::{LinkIndex, PodEntry, UplinkEntry};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::addresses::is_pods_link;
use super::monitor::Monitor;
use super::netlink::{Link, LinkAddress, Netlink, NetlinkError};
use super::xdp::{Why, Xdp, choose};
use crate::chain::chain;
use crate::dataplane::{Uplink, UplinkError, Uplinks, xdp_features};

/// A pass without a change, should one have gone unheard.
const RESYNC: Duration = Duration::from_secs(60);
/// Until the next pass after one that failed.
const RETRY: Duration = Duration::from_secs(2);
/// Bytes of an Ethernet address. The programs read Ethernet frames.
const ETHERNET: usize = 6;
/// Starts the names of tunnels that agents make.
const TUNNEL: &str = "kn-";

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Uplink(#[from] UplinkError),
}

/// The links to other machines: all that have an address but `lo` and those of pods. A tunnel of ours has none: what leaves by it
/// without an address of the cluster's gets the pods' gateway's, which the others answer through the tunnel.
fn wanted(
    links: &[Link],
    addresses: &[LinkAddress],
    node_ips: &[IpAddr],
) -> BTreeMap<LinkIndex, Uplink> {
    let loopback = links.iter().find(|link| link.name == "lo");
    let own = |link: &Link| {
        let index = match loopback {
            Some(loopback) if link.name.starts_with(TUNNEL) => loopback.index,
            _ => link.index,
        };
        let on_it: Vec<IpAddr> = addresses
            .iter()
            .filter(|it| it.link == index && it.is_global && !it.address.is_loopback())
            .map(|it| it.address)
            .collect();
        let of = |is_family: fn(&IpAddr) -> bool| {
            let family = || on_it.iter().copied().filter(is_family);
            let chosen = family()
                .find(|it| node_ips.contains(it))
                .or(family().next());
            chosen.map_or(PodEntry::NONE, Into::into)
        };
        UplinkEntry {
            ipv4: of(IpAddr::is_ipv4),
            ipv6: of(IpAddr::is_ipv6),
        }
    };
    let has_own = |link: &Link| {
        let own = own(link);
        [own.ipv4, own.ipv6] != [PodEntry::NONE; 2]
    };
    let candidates = candidates(links).filter(|link| link.mac.len() == ETHERNET);
    candidates
        .filter(|link| below(link, links).is_none_or(|below| !has_own(below)))
        .map(|link| {
            let name = link.name.clone();
            let (own, xdp) = (own(link), None);
            (LinkIndex(link.index), Uplink { name, own, xdp })
        })
        .filter(|(_, uplink)| [uplink.own.ipv4, uplink.own.ipv6] != [PodEntry::NONE; 2])
        .collect()
}

/// The link whose programs see the packets of `link`, too, under addresses that do not tell them apart.
fn below<'a>(link: &Link, links: &'a [Link]) -> Option<&'a Link> {
    const SHARED: [&str; 4] = ["macvlan", "macvtap", "ipvlan", "ipvtap"];
    let kind = link.kind.as_deref()?;
    let mut links = links.iter();
    links.find(|it| SHARED.contains(&kind) && Some(it.index) == link.on)
}

/// Links by which other machines may be reached.
fn candidates(links: &[Link]) -> impl Iterator<Item = &Link> {
    let other = |link: &&Link| link.name != "lo" && !is_pods_link(&link.name);
    links.iter().filter(other)
}

/// Links with addresses that the programs cannot serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Names of links whose packets have no Ethernet header.
    pub links: Vec<String>,
    /// Names of links that share another one, with the name of that: there their packets are translated, once.
    pub shared: Vec<(String, String)>,
    /// One of either has an address of the node's.
    pub is_own: bool,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (link, below)) in self.shared.iter().enumerate() {
            let and = if n == 0 { "" } else { "; " };
            write!(
                f,
                "{and}packets by {link} are translated at {below}, which it shares, and pods' leave with the address of {below}: \
                 give only one of the two addresses"
            )?;
        }
        if self.links.is_empty() {
            return Ok(());
        }
        if !self.shared.is_empty() {
            f.write_str("; ")?;
        }
        write!(
            f,
            "packets by {} are not translated, as they have no Ethernet header: there, services are not answered to clients \
             outside, and pods' packets leave with their own addresses",
            self.links.join(", ")
        )
    }
}

/// Which links have to be left out, though packets may come by them.
fn left_out(links: &[Link], addresses: &[LinkAddress], node_ips: &[IpAddr]) -> LeftOut {
    let mut left = LeftOut::default();
    let on = |link: &Link| -> Vec<IpAddr> {
        let on_it = addresses
            .iter()
            .filter(|it| it.link == link.index && it.is_global);
        on_it.map(|it| it.address).collect()
    };
    for link in candidates(links) {
        let on_it = on(link);
        if on_it.is_empty() {
            continue;
        }
        match below(link, links) {
            _ if link.mac.len() != ETHERNET => left.links.push(link.name.clone()),
            Some(below) if !on(below).is_empty() => {
                left.shared.push((link.name.clone(), below.name.clone()));
            }
            _ => continue,
        }
        left.is_own |= on_it.iter().any(|ip| node_ips.contains(ip));
    }
    left
}

/// Each uplink but tunnels, and why the network stack is not gone round there, if so.
pub type Paths = BTreeMap<String, Option<Why>>;

/// What [`run`] is told.
#[derive(Debug)]
pub struct Settings {
    /// The node's own.
    pub addresses: Vec<IpAddr>,
    pub xdp: Xdp,
    /// Where it says what it did.
    pub paths: watch::Sender<Paths>,
    /// Where it says what it leaves out.
    pub left: watch::Sender<LeftOut>,
}

/// Keeps the programs at the uplinks until the process ends. They stay then: the kernel goes on serving without the agent.
pub async fn run(settings: Settings, mut uplinks: Uplinks) -> Result<(), NetlinkError> {
    let netlink = Netlink::open()?;
    let mut monitor = Monitor::open()?;
    let mut done = None;
    loop {
        let pause = match pass(&netlink, &settings, &mut uplinks, &mut done).await {
            Ok(()) => RESYNC,
            Err(error) => {
                done = None;
                let error = chain(&error);
                warn!(
                    error,
                    "packets to and from other machines are not translated everywhere; trying again"
                );
                RETRY
            }
        };
        // Either arm may be dropped: the next pass reads everything.
        tokio::select! {
            // Whatever is known: somebody may have taken a program away.
            () = tokio::time::sleep(pause) => done = None,
            () = monitor.changed() => {}
        }
    }
}

async fn pass(
    netlink: &Netlink,
    settings: &Settings,
    uplinks: &mut Uplinks,
    done: &mut Option<BTreeMap<LinkIndex, Uplink>>,
) -> Result<(), PassError> {
    let links = netlink.links().await?;
    let addresses = netlink.link_addresses().await?;
    let now = left_out(&links, &addresses, &settings.addresses);
    if *settings.left.borrow() != now {
        let text = now.to_string();
        settings.left.send_replace(now);
        if !text.is_empty() {
            warn!("{text}");
        }
    }
    let mut wanted = wanted(&links, &addresses, &settings.addresses);
    let mut paths = decide(settings.xdp, &links, &mut wanted);
    if done.as_ref() != Some(&wanted) {
        tokio::task::block_in_place(|| uplinks.apply(&wanted))?;
        let names: Vec<&str> = wanted.values().map(|it| it.name.as_str()).collect();
        debug!(links = names.join(" "), "packets are translated at these");
        for (index, error) in uplinks.refused() {
            let name = wanted.get(index).map(|uplink| uplink.name.clone());
            let error = chain(error);
            paths.extend(name.map(|name| (name, Some(Why::Refused { error }))));
        }
        settings.paths.send_if_modified(|shown| tell(shown, paths));
        *done = Some(wanted);
    }
    Ok(())
}

/// Says of each uplink whether it is to run the XDP program.
fn decide(mode: Xdp, links: &[Link], wanted: &mut BTreeMap<LinkIndex, Uplink>) -> Paths {
    let mut paths = Paths::new();
    for (index, uplink) in wanted {
        let Some(link) = links.iter().find(|link| link.index == index.0) else {
            continue;
        };
        let chosen = choose(mode, link, links, || xdp_features(link.index));
        uplink.xdp = chosen.as_ref().ok().copied();
        if !link.name.starts_with(TUNNEL) {
            paths.insert(link.name.clone(), chosen.err());
        }
    }
    paths
}

/// Replaces what is shown, and logs what is new of it; false when nothing is.
fn tell(shown: &mut Paths, paths: Paths) -> bool {
    for (link, why) in paths
        .iter()
        .filter(|(link, why)| shown.get(*link) != Some(why))
    {
        match why {
            None => info!(
                link,
                "packets that only pass through the node are sent on by XDP"
            ),
            Some(why) => info!(link, %why, "no XDP here"),
        }
    }
    let is_new = *shown != paths;
    *shown = paths;
    is_new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::addresses::veth_name;

    fn link(index: u32, name: &str, mac: &[u8]) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: mac.to_vec(),
            mtu: 1500,
            up: true,
            ..Link::default()
        }
    }

    fn on(link: u32, address: &str) -> LinkAddress {
        LinkAddress {
            link,
            address: address.parse().unwrap(),
            is_global: true,
        }
    }

    fn own(ipv4: &str, ipv6: &str) -> UplinkEntry {
        let of = |text: &str| text.parse::<IpAddr>().unwrap().into();
        UplinkEntry {
            ipv4: of(ipv4),
            ipv6: of(ipv6),
        }
    }

    #[test]
    fn uplinks_are_the_links_with_addresses_that_are_no_pods() {
        let links = [
            link(1, "lo", &[0; 6]),
            link(2, "eth0", &[2; 6]),
            link(3, "eth1", &[3; 6]),
            link(4, &veth_name("uid"), &[4; 6]),
            link(5, "tun0", &[]),
            link(6, "spare0", &[6; 6]),
            link(7, "kn-vxlan", &[7; 6]),
        ];
        let addresses = [
            on(1, "127.0.0.1"),
            on(1, "10.244.1.1"),
            on(1, "fd00:244:1::1"),
            on(2, "192.0.2.9"),
            on(2, "192.0.2.1"),
            on(2, "2001:db8::1"),
            on(3, "2001:db8:3::1"),
            on(4, "10.244.1.7"),
            on(5, "198.51.100.1"),
        ];
        let wanted = wanted(&links, &addresses, &["192.0.2.1".parse().unwrap()]);
        let shown: Vec<_> = wanted
            .values()
            .map(|uplink| (uplink.name.as_str(), uplink.own))
            .collect();
        let expected = [
            ("eth0", own("192.0.2.1", "2001:db8::1")),
            ("eth1", own("::", "2001:db8:3::1")),
            ("kn-vxlan", own("10.244.1.1", "fd00:244:1::1")),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn links_without_ethernet_are_told_not_passed_over() {
        let links = [
            link(1, "lo", &[0; 6]),
            link(2, "eth0", &[2; 6]),
            link(3, "tun0", &[]),
            link(4, "wg0", &[]),
        ];
        let addresses = [
            on(1, "127.0.0.1"),
            on(2, "192.0.2.1"),
            on(3, "198.51.100.1"),
        ];
        let left = |own: &str| left_out(&links, &addresses, &[own.parse().unwrap()]);
        let told = left("192.0.2.1");
        assert_eq!(
            (&*told.links, told.is_own),
            (&["tun0".to_owned()][..], false)
        );
        assert!(
            told.to_string()
                .starts_with("packets by tun0 are not translated")
        );
        assert!(left("198.51.100.1").is_own);
        assert_eq!(left_out(&links[..2], &addresses, &[]).to_string(), "");
    }

    #[test]
    fn links_that_share_an_uplink_are_served_there_alone_and_told() {
        let mut links = vec![
            link(1, "lo", &[0; 6]),
            link(2, "eth0", &[2; 6]),
            link(3, "eth1", &[3; 6]),
        ];
        for (index, name, kind, on) in [
            (4, "mv0", "macvlan", Some(2)),
            (5, "iv0", "ipvlan", Some(2)),
            // The links below have no address, and are in another namespace.
            (6, "mv1", "macvlan", Some(3)),
            (7, "mv2", "macvlan", None),
            // Of a VLAN the programs know the packets apart.
            (8, "eth0.5", "vlan", Some(2)),
        ] {
            let kind = Some(kind.to_owned());
            links.push(Link {
                kind,
                on,
                ..link(index, name, &[index as u8; 6])
            });
        }
        let addresses = [2, 4, 5, 6, 7, 8].map(|n| on(n, &format!("192.0.2.{n}")));
        let node_ip = |ip: &str| [ip.parse().unwrap()];
        let wanted = wanted(&links, &addresses, &node_ip("192.0.2.2"));
        let names: Vec<&str> = wanted.values().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["eth0", "mv1", "mv2", "eth0.5"]);
        let told = left_out(&links, &addresses, &node_ip("192.0.2.2"));
        assert!(!told.is_own);
        assert!(
            told.to_string()
                .starts_with("packets by mv0 are translated at eth0, which it shares,"),
            "{told}"
        );
        assert!(told.to_string().contains("packets by iv0"), "{told}");
        assert!(left_out(&links, &addresses, &node_ip("192.0.2.4")).is_own);
    }
}
