//! IP addresses: how they are written, and which of them are no machine's own.

use std::net::{IpAddr, Ipv6Addr};

use super::{FieldError, Path};

/// An IP address without leading zeros or IPv4 written as IPv6.
pub fn ip(path: &Path, text: &str) -> Option<FieldError> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            Some(path.invalid(text, "must not be an IPv4-mapped IPv6 address"))
        }
        Ok(_) => None,
        Err(_) => Some(path.invalid(
            text,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )),
    }
}

/// An IP address at which others may reach a machine: what endpoints and externalIPs have to be.
pub fn plain_ip(path: &Path, text: &str) -> Vec<FieldError> {
    match (ip(path, text), text.parse()) {
        (Some(error), _) => vec![error],
        (None, Ok(address)) => {
            let why = special(address).into_iter();
            why.map(|why| path.invalid(text, why)).collect()
        }
        (None, Err(_)) => Vec::new(),
    }
}

/// Whether others may reach a machine at the address.
pub fn is_plain(address: IpAddr) -> bool {
    special(address.to_canonical()).is_none()
}

/// What is special about an address that no machine has for others.
fn special(address: IpAddr) -> Option<String> {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let is_link_local_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => is_link_local_multicast_v6(address),
    };
    let why = if address.is_unspecified() {
        return Some(format!("may not be unspecified ({address})"));
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)"
    } else if is_link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
    } else if is_link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
    } else if address.is_multicast() {
        "may not be in the multicast range (224.0.0.0/4, ff00::/8)"
    } else {
        return None;
    };
    Some(why.to_owned())
}

fn is_link_local_multicast_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 0xff && second & 0x0f == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_can_reach_is_plain() {
        for text in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "fd00::1"] {
            assert!(plain_ip(&Path::new("ip"), text).is_empty(), "{text}");
            assert!(is_plain(text.parse().unwrap()));
        }
        for (text, why) in [
            ("0.0.0.0", "may not be unspecified (0.0.0.0)"),
            ("::", "may not be unspecified (::)"),
            ("127.0.0.1", "may not be in the loopback range"),
            ("::1", "may not be in the loopback range"),
            ("169.254.1.1", "may not be in the link-local range"),
            ("fe80::1", "may not be in the link-local range"),
            ("224.0.0.1", "may not be in the link-local multicast range"),
            ("ff02::1", "may not be in the link-local multicast range"),
            ("239.1.1.1", "may not be in the multicast range"),
            ("ff05::1", "may not be in the multicast range"),
            ("::ffff:10.0.0.1", "must not be an IPv4-mapped IPv6 address"),
            ("10.0.0.01", "must be a valid IP address"),
            ("a", "must be a valid IP address"),
        ] {
            let errors = plain_ip(&Path::new("ip"), text);
            assert_eq!(errors.len(), 1, "{text}");
            assert!(errors[0].detail.starts_with(why), "{text}: {}", errors[0]);
        }
        assert!(!is_plain("::ffff:127.0.0.1".parse().unwrap()));
    }
}
