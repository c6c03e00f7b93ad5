//! What a network link's driver can do with XDP, asked of the kernel by generic netlink (family `netdev`, Linux 6.3).

use std::io::{self, Read as _, Write as _};

use socket2::{Domain, Socket, Type};

/// `GENL_ID_CTRL`, whose commands tell the ids of families.
const CONTROLLER: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr` and, behind it, `struct genlmsghdr`.
const HEADER_SIZE: usize = 16;
const GENERIC_SIZE: usize = 4;

/// What a driver can do: `NETDEV_XDP_ACT_*` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// Passes, drops, and sends back what comes.
    pub const BASIC: u64 = 1 << 0;
    /// Hands packets to other links.
    pub const REDIRECT: u64 = 1 << 1;
    /// Sends what other links hand to it. Of a veth pair the other end has to be ready, too.
    pub const SEND: u64 = 1 << 2;

    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

/// What the driver of the link with this index can do. `Unsupported` where the kernel cannot be asked.
pub fn xdp_features(link: u32) -> io::Result<XdpFeatures> {
    let protocol = Some(libc::NETLINK_GENERIC.into());
    let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = ask(&mut socket, CONTROLLER, CTRL_CMD_GETFAMILY, &name);
    let family = family.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::ErrorKind::Unsupported.into(),
        _ => error,
    })?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message");
    let family = number(&family, CTRL_ATTR_FAMILY_ID).ok_or_else(malformed)? as u16;
    let index = attribute(NETDEV_A_DEV_IFINDEX, &link.to_ne_bytes());
    let device = ask(&mut socket, family, NETDEV_CMD_DEV_GET, &index)?;
    let features = number(&device, NETDEV_A_DEV_XDP_FEATURES);
    Ok(XdpFeatures(features.ok_or_else(malformed)?))
}

/// Sends a request and gives the attributes of the answer.
fn ask(socket: &mut Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADER_SIZE + GENERIC_SIZE + attributes.len();
    let mut request = (length as u32).to_ne_bytes().to_vec();
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port id: one request is under way at a time, on a socket of its own.
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend(attributes);
    socket.write_all(&request)?;
    let mut buffer = vec![0; 1 << 14];
    let length = socket.read(&mut buffer)?;
    answer(&buffer[..length])
        .unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::InvalidData, "short message")))
}

/// The attributes of one message, or the error that it tells; `None` when it ends before it says.
fn answer(bytes: &[u8]) -> Option<io::Result<Vec<u8>>> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let body = bytes.get(HEADER_SIZE..length)?;
    if kind == NLMSG_ERROR {
        let errno = i32::from_ne_bytes(*body.first_chunk()?);
        return Some(Err(io::Error::from_raw_os_error(errno.wrapping_neg())));
    }
    Some(Ok(body.get(GENERIC_SIZE..)?.to_vec()))
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the attribute of this kind, of two, four or eight bytes.
fn number(mut attributes: &[u8], wanted: u16) -> Option<u64> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return match *value {
                [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
                [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
                _ => Some(u64::from_ne_bytes(*value.first_chunk()?)),
            };
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let all = [
            attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0"),
            attribute(CTRL_ATTR_FAMILY_ID, &21_u16.to_ne_bytes()),
            attribute(NETDEV_A_DEV_XDP_FEATURES, &7_u64.to_ne_bytes()),
        ];
        assert_eq!(number(&all.concat(), CTRL_ATTR_FAMILY_ID), Some(21));
        assert_eq!(number(&all.concat(), NETDEV_A_DEV_XDP_FEATURES), Some(7));
        assert_eq!(number(&all.concat(), 9), None);
    }

    #[test]
    fn the_loopback_has_a_driver_that_runs_nothing() {
        match xdp_features(1) {
            Ok(features) => assert!(!features.has(XdpFeatures::BASIC), "{features:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes: Vec<u8>) {
            let _ = answer(&bytes);
            let _ = number(&bytes, NETDEV_A_DEV_IFINDEX);
        }
    }
}
