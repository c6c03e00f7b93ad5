//! The kernel's settings that the pod network needs, below /proc/sys.

use std::fs;
use std::path::Path;

use super::NetworkError;
use super::netlink::Link;

/// Writes a kernel setting, unless it has the value: then a read-only /proc/sys is good enough.
pub fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    if get(name).as_deref() == Some(value) {
        return Ok(());
    }
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).map_err(|source| NetworkError::Sysctl {
        path,
        value: value.to_owned(),
        source,
    })
}

/// A kernel setting; `None` where the kernel does not have it.
fn get(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Makes the node forward IPv6. A router does not take router advertisements unless it is told to: links that took them
/// so far, which may be how the node has its own address and route, go on doing so.
pub fn forward_v6(links: &[Link]) -> Result<(), NetworkError> {
    const ALL: &str = "net/ipv6/conf/all/forwarding";
    if get(ALL).is_none() {
        return Err(NetworkError::NoIpv6);
    }
    for link in links {
        let of_link = |name: &str| format!("net/ipv6/conf/{}/{name}", link.name);
        let taking = get(&of_link("accept_ra")).as_deref() == Some("1")
            && get(&of_link("forwarding")).as_deref() == Some("0");
        if taking && link.name != "lo" && link.pod().is_none() {
            set(&of_link("accept_ra"), "2")?;
        }
    }
    set(ALL, "1")
}

/// Exempts "destination unreachable" from the kernel's rate limit, which is one a second for each address. Pods are to hear
/// of every packet that goes nowhere: to a pod that is gone, or to the DNS port while the agent restarts, where their
/// resolvers otherwise wait for seconds before they ask the next server.
pub fn refuse_at_once_v4() -> Result<(), NetworkError> {
    const NAME: &str = "net/ipv4/icmp_ratemask";
    /// `ICMP_DEST_UNREACH`
    const DESTINATION_UNREACHABLE: u32 = 3;
    let present = get(NAME).unwrap_or_default();
    match present.parse::<u32>() {
        Ok(mask) => set(NAME, &(mask & !(1 << DESTINATION_UNREACHABLE)).to_string()),
        // A kernel without the setting has no limit to lift.
        Err(_) => Ok(()),
    }
}

/// The same for IPv6.
pub fn refuse_at_once_v6() -> Result<(), NetworkError> {
    const NAME: &str = "net/ipv6/icmp/ratemask";
    /// `ICMPV6_DEST_UNREACH`
    const DESTINATION_UNREACHABLE: u32 = 1;
    match get(NAME) {
        Some(present) => set(NAME, &without(&present, DESTINATION_UNREACHABLE)),
        None => Ok(()),
    }
}

/// A list such as `0-1,3-127` without one of its numbers.
fn without(list: &str, number: u32) -> String {
    let parts = list.split(',').flat_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else {
            return vec![part.to_owned()];
        };
        if !(first..=last).contains(&number) {
            return vec![part.to_owned()];
        }
        let before = number.checked_sub(1).map(|end| (first, end));
        let behind = Some((number + 1, last));
        [before, behind]
            .into_iter()
            .flatten()
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| match first == last {
                true => first.to_string(),
                false => format!("{first}-{last}"),
            })
            .collect()
    });
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_out_of_a_list() {
        for (list, left) in [
            ("0-1,3-127", "0,3-127"),
            ("0,3-127", "0,3-127"),
            ("1", ""),
            ("0-127", "0,2-127"),
            ("1-5", "2-5"),
            ("", ""),
        ] {
            assert_eq!(without(list, 1), left, "{list}");
        }
        assert_eq!(without("0-2", 0), "1-2");
    }
}
