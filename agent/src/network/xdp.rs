//! Which uplinks send packets on before the network stack sees them, and why the others do not. Pure.

use std::fmt;
use std::io;

use super::netlink::Link;
use crate::chain::chain;
use crate::dataplane::XdpFeatures;

/// At which uplinks XDP is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xdp {
    /// At links of devices whose drivers run it
    #[default]
    Auto,
    /// At virtual links, too, which copy each packet for it
    Always,
    /// Nowhere
    Off,
}

/// Why an uplink's packets are all the network stack's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Off,
    Virtual { kind: String },
    Vlans { above: String },
    NotAsked { error: String },
    Driver,
    OtherEnd,
    Refused { error: String },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Off => f.write_str("--xdp off"),
            Why::Virtual { kind } => write!(
                f,
                "a {kind} link copies each packet for it: --xdp always takes that"
            ),
            Why::Vlans { above } => write!(
                f,
                "{above} lies on it, and devices take VLAN tags from packets"
            ),
            Why::NotAsked { error } => f.write_str(error),
            Why::Driver => f.write_str("its driver has no native XDP"),
            Why::OtherEnd => f.write_str(
                "its other end takes no packets that XDP sends: it needs GRO on, or a program of its own",
            ),
            Why::Refused { error } => f.write_str(error),
        }
    }
}

/// Whether `link`, one of `links`, is to send packets on; its hardware address then. `features` asks the kernel what its
/// driver can do.
pub(super) fn choose(
    mode: Xdp,
    link: &Link,
    links: &[Link],
    features: impl FnOnce() -> io::Result<XdpFeatures>,
) -> Result<[u8; 6], Why> {
    match (mode, &link.kind) {
        (Xdp::Off, _) => return Err(Why::Off),
        // A bond hands the program to its devices.
        (Xdp::Auto, Some(kind)) if kind != "bond" => {
            return Err(Why::Virtual { kind: kind.clone() });
        }
        _ => {}
    }
    let kinds = ["vlan", "ipvlan", "ipvtap"];
    let lies_on = |it: &&Link| {
        it.on == Some(link.index) && it.kind.as_deref().is_some_and(|kind| kinds.contains(&kind))
    };
    if let Some(above) = links.iter().find(lies_on) {
        let above = above.name.clone();
        return Err(Why::Vlans { above });
    }
    let features = features().map_err(|error| Why::NotAsked {
        error: match error.kind() {
            io::ErrorKind::Unsupported => {
                "the kernel does not tell what drivers can do: Linux 6.3 does".to_owned()
            }
            _ => format!(
                "cannot ask the kernel what its driver can do: {}",
                chain(&error)
            ),
        },
    })?;
    if !features.has(XdpFeatures::BASIC | XdpFeatures::REDIRECT) {
        return Err(Why::Driver);
    }
    // Of a veth pair that depends on the other end, and what is sent back would be lost.
    if link.kind.as_deref() == Some("veth") && !features.has(XdpFeatures::SEND) {
        return Err(Why::OtherEnd);
    }
    link.mac.as_slice().try_into().map_err(|_| Why::Driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = XdpFeatures::BASIC | XdpFeatures::REDIRECT | XdpFeatures::SEND;

    fn link(name: &str, kind: Option<&str>) -> Link {
        Link {
            index: 2,
            name: name.to_owned(),
            mac: vec![2, 0, 0, 0, 0, 1],
            kind: kind.map(str::to_owned),
            ..Link::default()
        }
    }

    fn chosen(mode: Xdp, kind: Option<&str>, features: u64) -> Result<[u8; 6], String> {
        let link = link("eth0", kind);
        let features = || Ok(XdpFeatures(features));
        choose(mode, &link, std::slice::from_ref(&link), features).map_err(|why| why.to_string())
    }

    #[test]
    fn a_device_whose_driver_sends_and_takes_is_used() {
        assert_eq!(chosen(Xdp::Auto, None, ALL), Ok([2, 0, 0, 0, 0, 1]));
        assert!(chosen(Xdp::Auto, Some("bond"), ALL).is_ok());
        assert!(chosen(Xdp::Always, Some("veth"), ALL).is_ok());
    }

    #[test]
    fn each_refusal_says_what_is_missing() {
        for (mode, kind, features, why) in [
            (Xdp::Off, None, ALL, "--xdp off"),
            (Xdp::Auto, Some("veth"), ALL, "a veth link copies"),
            (Xdp::Auto, None, 0, "no native XDP"),
            (
                Xdp::Always,
                Some("veth"),
                ALL & !XdpFeatures::SEND,
                "its other end",
            ),
        ] {
            let refused = chosen(mode, kind, features).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn an_older_kernel_is_named() {
        let link = link("eth0", None);
        let unknown = || Err(io::ErrorKind::Unsupported.into());
        let why = choose(Xdp::Auto, &link, &[], unknown).unwrap_err();
        assert!(why.to_string().contains("Linux 6.3"), "{why}");
    }

    #[test]
    fn a_link_below_vlans_is_left_alone() {
        let below = link("eth0", None);
        let mut above = link("eth0.5", Some("vlan"));
        (above.index, above.on) = (3, Some(2));
        let links = [below.clone(), above];
        let why = choose(Xdp::Auto, &below, &links, || Ok(XdpFeatures(ALL))).unwrap_err();
        assert!(why.to_string().contains("eth0.5 lies on it"), "{why}");
        let other = Link { index: 4, ..below };
        assert!(choose(Xdp::Auto, &other, &links, || Ok(XdpFeatures(ALL))).is_ok());
    }
}
