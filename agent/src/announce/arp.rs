//! ARP for load balancers' addresses: frames to frames. Pure. RFC 826; RFC 5227 for announcements.

use std::net::{IpAddr, Ipv4Addr};

use super::{Addresses, Heard};
use crate::network::addresses::Mac;

const ETHERTYPE: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, and the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const BROADCAST: Mac = [0xff; 6];
/// Ethernet header and ARP.
const LENGTH: usize = 42;

/// What of an ARP packet matters.
struct Arp {
    operation: [u8; 2],
    sender_mac: Mac,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

/// What to do about a frame that came in by the link with the hardware address `own`.
pub fn hear(frame: &[u8], own: Mac, answers: &Addresses) -> Option<Heard> {
    let arp = parse(frame)?;
    if arp.sender_mac == own || arp.sender_mac[0] & 1 == 1 {
        return None;
    }
    if answers.contains(&IpAddr::V4(arp.sender)) {
        return Some(Heard::Claimed(arp.sender.into(), arp.sender_mac));
    }
    let asks = arp.operation == REQUEST && answers.contains(&IpAddr::V4(arp.target));
    asks.then(|| {
        let to = (arp.sender_mac, arp.sender);
        Heard::Asked(build(REPLY, arp.sender_mac, (own, arp.target), to))
    })
}

/// Frames that tell everybody that `address` is at `own` now. Some hosts heed only one of the two kinds.
pub fn announcements(own: Mac, address: Ipv4Addr) -> [Vec<u8>; 2] {
    [
        build(REQUEST, BROADCAST, (own, address), ([0; 6], address)),
        build(REPLY, BROADCAST, (own, address), (BROADCAST, address)),
    ]
}

fn parse(frame: &[u8]) -> Option<Arp> {
    let frame: &[u8; LENGTH] = frame.get(..LENGTH)?.try_into().ok()?;
    if frame[12..14] != ETHERTYPE || frame[14..20] != KIND {
        return None;
    }
    Some(Arp {
        operation: [frame[20], frame[21]],
        sender_mac: frame[22..28].try_into().ok()?,
        sender: <[u8; 4]>::try_from(&frame[28..32]).ok()?.into(),
        target: <[u8; 4]>::try_from(&frame[38..42]).ok()?.into(),
    })
}

fn build(
    operation: [u8; 2],
    destination: Mac,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> Vec<u8> {
    let mut frame = Vec::with_capacity(LENGTH);
    frame.extend(destination);
    frame.extend(sender.0);
    frame.extend(ETHERTYPE);
    frame.extend(KIND);
    frame.extend(operation);
    for (mac, address) in [sender, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = [2, 0, 0, 0, 0, 1];
    const PEER: Mac = [2, 0, 0, 0, 0, 9];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn answers() -> Addresses {
        Addresses::from([ADDRESS.into()])
    }

    /// "Who has 192.0.2.1? Tell 192.0.2.9", as it was on a wire.
    fn request() -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(PEER);
        frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
        frame.extend(PEER);
        frame.extend([192, 0, 2, 9]);
        frame.extend([0; 6]);
        frame.extend([192, 0, 2, 1]);
        // Links pad short frames.
        frame.extend([0; 18]);
        frame
    }

    #[test]
    fn a_question_for_our_address_is_answered_to_who_asked() {
        let mut expected = PEER.to_vec();
        expected.extend(OWN);
        expected.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2]);
        expected.extend(OWN);
        expected.extend([192, 0, 2, 1]);
        expected.extend(PEER);
        expected.extend([192, 0, 2, 9]);
        assert_eq!(
            hear(&request(), OWN, &answers()),
            Some(Heard::Asked(expected))
        );
        assert_eq!(hear(&request(), OWN, &Addresses::new()), None, "not ours");
        assert_eq!(hear(&request(), PEER, &answers()), None, "our own question");
        assert_eq!(hear(&request()[..41], OWN, &answers()), None, "cut off");
        for (at, what) in [
            (13, "no ARP"),
            (15, "no Ethernet"),
            (17, "no IPv4"),
            (21, "no request"),
        ] {
            let mut frame = request();
            frame[at] ^= 0x40;
            assert_eq!(hear(&frame, OWN, &answers()), None, "{what}");
        }
    }

    #[test]
    fn announcements_of_others_are_claims_and_ours_are_not() {
        for frame in announcements(PEER, ADDRESS) {
            assert_eq!(frame[..6], BROADCAST);
            let claimed = Heard::Claimed(ADDRESS.into(), PEER);
            assert_eq!(hear(&frame, OWN, &answers()), Some(claimed));
            assert_eq!(hear(&frame, PEER, &answers()), None);
            assert_eq!(hear(&frame, OWN, &Addresses::new()), None);
        }
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange(frame in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(Heard::Asked(reply)) = hear(&frame, OWN, &answers()) {
                prop_assert_eq!(reply.len(), LENGTH);
            }
        }
    }
}
