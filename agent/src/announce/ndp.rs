//! Neighbour discovery for load balancers' addresses: frames to frames. Pure. RFC 4861.

use std::net::{IpAddr, Ipv6Addr};

use super::{Addresses, Heard};
use crate::network::addresses::Mac;

const ETHERTYPE: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// What never was forwarded.
const HOP_LIMIT: u8 = 255;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

const ETHERNET: usize = 14;
const IPV6: usize = 40;
/// Type, code, checksum, flags and target.
const MESSAGE: usize = 24;

/// What of a neighbour discovery message matters.
struct Message {
    kind: u8,
    source: Ipv6Addr,
    target: Ipv6Addr,
    /// The hardware address that the message tells, or that the frame came from.
    mac: Mac,
}

/// What to do about a frame that came in by the link with the hardware address `own`.
pub fn hear(frame: &[u8], own: Mac, answers: &Addresses) -> Option<Heard> {
    let message = parse(frame)?;
    if message.mac == own || !answers.contains(&IpAddr::V6(message.target)) {
        return None;
    }
    match message.kind {
        ADVERTISEMENT => Some(Heard::Claimed(message.target.into(), message.mac)),
        // Who has no address yet looks whether it may have ours. Everybody is told that it is taken.
        _ if message.source.is_unspecified() => {
            Some(Heard::Asked(announcement(own, message.target)))
        }
        _ => {
            let to = (message.mac, message.source);
            let flags = SOLICITED | OVERRIDE;
            Some(Heard::Asked(advertisement(own, message.target, to, flags)))
        }
    }
}

/// A frame that tells everybody that `address` is at `own` now.
pub fn announcement(own: Mac, address: Ipv6Addr) -> Vec<u8> {
    advertisement(own, address, (group_mac(ALL_NODES), ALL_NODES), OVERRIDE)
}

/// The multicast group to which questions for `address` are sent.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    )
}

/// The hardware address of a multicast group.
fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn parse(frame: &[u8]) -> Option<Message> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let (header, payload) = packet.split_at_checked(IPV6)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // Links pad short frames.
    let message = payload.get(..length)?;
    let is_discovery = ethernet[12..] == ETHERTYPE
        && header[0] >> 4 == 6
        && header[6] == ICMPV6
        && header[7] == HOP_LIMIT
        && message.len() >= MESSAGE
        && matches!(message[0], SOLICITATION | ADVERTISEMENT)
        && message[1] == 0;
    let address = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from);
    let (source, destination) = (address(&header[8..24])?, address(&header[24..40])?);
    if !is_discovery || checksum(source, destination, message) != 0 {
        return None;
    }
    let kind = message[0];
    let told = match kind {
        SOLICITATION => option(&message[MESSAGE..], SOURCE_MAC)?,
        _ => option(&message[MESSAGE..], TARGET_MAC)?,
    };
    Some(Message {
        kind,
        source,
        target: address(&message[8..24])?,
        mac: told.unwrap_or(ethernet[6..12].try_into().ok()?),
    })
}

/// The hardware address in an option. `None` for options that are malformed: the message is to be left alone.
fn option(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let [kind, length, ..] = *options {
        // In units of eight bytes.
        let (option, rest) = options.split_at_checked(usize::from(length) * 8)?;
        if option.is_empty() {
            return None;
        }
        if kind == wanted {
            found = Some(option[2..8].try_into().ok()?);
        }
        options = rest;
    }
    Some(found)
}

/// The address itself speaks: it is the one that the other side will have as a neighbour.
fn advertisement(own: Mac, address: Ipv6Addr, to: (Mac, Ipv6Addr), flags: u8) -> Vec<u8> {
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_MAC, 1]);
    message.extend(own);
    let sum = checksum(address, to.1, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = Vec::with_capacity(ETHERNET + IPV6 + message.len());
    frame.extend(to.0);
    frame.extend(own);
    frame.extend(ETHERTYPE);
    let length = u8::try_from(message.len()).unwrap_or_default();
    frame.extend([0x60, 0, 0, 0, 0, length, ICMPV6, HOP_LIMIT]);
    frame.extend(address.octets());
    frame.extend(to.1.octets());
    frame.extend(message);
    frame
}

/// The Internet checksum over pseudo header and message; 0 over a message that has the right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or_default();
    let mut bytes = Vec::with_capacity(IPV6 + message.len() + 1);
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(length.to_be_bytes());
    bytes.extend([0, 0, 0, ICMPV6]);
    bytes.extend(message);
    if bytes.len() % 2 == 1 {
        bytes.push(0);
    }
    let words = bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Folded to 16 bits above.
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 9];
    const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    const ADDRESS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);

    fn answers() -> Addresses {
        Addresses::from([ADDRESS.into()])
    }

    fn solicitation(source: Ipv6Addr, options: &[u8]) -> Vec<u8> {
        let group = solicited_node(ADDRESS);
        let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(ADDRESS.octets());
        message.extend(options);
        let sum = checksum(source, group, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut frame = group_mac(group).to_vec();
        frame.extend(PEER);
        frame.extend([
            0x86,
            0xdd,
            0x60,
            0,
            0,
            0,
            0,
            u8::try_from(message.len()).unwrap(),
            58,
            255,
        ]);
        frame.extend(source.octets());
        frame.extend(group.octets());
        frame.extend(message);
        frame
    }

    fn told(mac: Mac) -> Vec<u8> {
        [vec![SOURCE_MAC, 1], mac.to_vec()].concat()
    }

    #[test]
    fn groups_are_those_of_the_standard() {
        assert_eq!(solicited_node(ADDRESS).to_string(), "ff02::1:ff12:3456");
        assert_eq!(
            group_mac(solicited_node(ADDRESS)),
            [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]
        );
    }

    #[test]
    fn a_question_for_our_address_is_answered_to_who_asked() {
        let asked = solicitation(CLIENT, &told(PEER));
        let Some(Heard::Asked(answer)) = hear(&asked, OWN, &answers()) else {
            panic!("no answer");
        };
        assert_eq!(answer[..6], PEER);
        assert_eq!(answer[6..12], OWN);
        assert_eq!(answer[22..38], ADDRESS.octets(), "from the address itself");
        assert_eq!(answer[38..54], CLIENT.octets());
        assert_eq!(answer[54..56], [136, 0]);
        assert_eq!(answer[58], 0x60, "solicited, override");
        assert_eq!(answer[78..], [vec![2, 1], OWN.to_vec()].concat());
        assert_eq!(checksum(ADDRESS, CLIENT, &answer[54..]), 0);
        assert_eq!(hear(&asked, OWN, &Addresses::new()), None, "not ours");
        assert_eq!(hear(&asked, PEER, &answers()), None, "our own question");
    }

    #[test]
    fn who_wants_the_address_hears_that_it_is_taken() {
        let asked = solicitation(Ipv6Addr::UNSPECIFIED, &[]);
        let Some(Heard::Asked(answer)) = hear(&asked, OWN, &answers()) else {
            panic!("no answer");
        };
        assert_eq!(answer, announcement(OWN, ADDRESS));
        assert_eq!(answer[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(answer[58], 0x20, "override only");
    }

    #[test]
    fn announcements_of_others_are_claims_and_ours_are_not() {
        let frame = announcement(PEER, ADDRESS);
        let claimed = Heard::Claimed(ADDRESS.into(), PEER);
        assert_eq!(hear(&frame, OWN, &answers()), Some(claimed));
        assert_eq!(hear(&frame, PEER, &answers()), None);
    }

    #[test]
    fn what_is_not_as_the_standard_says_is_left_alone() {
        let good = solicitation(CLIENT, &told(PEER));
        for (at, what) in [
            (13, "no IPv6"),
            (20, "no ICMPv6"),
            (21, "was forwarded"),
            (54, "another message"),
            (55, "a code"),
            (57, "a wrong checksum"),
            (79, "an option that is too long"),
        ] {
            let mut frame = good.clone();
            frame[at] ^= 0x10;
            assert_eq!(hear(&frame, OWN, &answers()), None, "{what}");
        }
        let empty = solicitation(CLIENT, &[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            hear(&empty, OWN, &answers()),
            None,
            "an option of no length"
        );
        let mut padded = good;
        padded.extend([0; 9]);
        assert!(hear(&padded, OWN, &answers()).is_some());
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange(frame in prop::collection::vec(any::<u8>(), 0..120), options in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert!(!matches!(hear(&frame, OWN, &answers()), Some(Heard::Claimed(..))));
            let _ = hear(&solicitation(CLIENT, &options), OWN, &answers());
        }
    }
}
