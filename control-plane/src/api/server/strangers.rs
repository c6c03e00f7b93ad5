//! Connections of clients that nobody knows yet: they have no certificate, and have not shown a token so far.
//!
//! They have few places, and each network only a part of these. Whoever has shown a good token gives the place back, so that
//! those who never do take nothing from those who would.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::api::shares::{Share, Shares};

/// How many networks it takes to fill all places.
const NETWORKS: usize = 32;
/// The host's part of an address of IPv6: whoever has one has them all.
const HOST: u128 = (1 << 64) - 1;

pub(super) struct Strangers {
    places: Arc<Semaphore>,
    by_network: Shares<IpAddr>,
}

type Place = (OwnedSemaphorePermit, Share<IpAddr>);

/// A stranger's connection. It travels with each of its requests as an extension.
#[derive(Clone)]
pub(in crate::api) struct Stranger(Arc<Mutex<Option<Place>>>);

impl Strangers {
    pub(super) fn new(places: usize) -> Self {
        Strangers {
            places: Arc::new(Semaphore::new(places)),
            by_network: Shares::new(places.div_ceil(NETWORKS)),
        }
    }

    /// One more from there, unless there are too many.
    pub(super) fn admit(&self, from: IpAddr) -> Option<Stranger> {
        let share = self.by_network.take(network(from))?;
        let place = self.places.clone().try_acquire_owned().ok()?;
        Some(Stranger(Arc::new(Mutex::new(Some((place, share))))))
    }
}

impl Stranger {
    /// A request on the connection showed who its client is.
    pub(in crate::api) fn is_known(&self) {
        // Taking what is there cannot stop half-way.
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.take();
    }
}

/// Who is one client as far as addresses tell: an address of IPv4, the first half of one of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !HOST).into(),
        ip => ip,
    }
}

#[cfg(test)]
impl Stranger {
    /// Alone, with the semaphore that its place is of.
    pub(in crate::api) fn alone() -> (Self, Arc<Semaphore>) {
        let strangers = Strangers::new(1);
        let places = strangers.places.clone();
        let from = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
        (strangers.admit(from).expect("a place"), places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn no_network_takes_the_places_of_others() {
        let strangers = Strangers::new(2 * NETWORKS);
        let admit = |from| strangers.admit(ip(from));
        let first = [admit("10.0.0.1"), admit("::ffff:10.0.0.1")];
        assert!(first.iter().all(Option::is_some));
        assert!(admit("10.0.0.1").is_none());
        let other = admit("10.0.0.2");
        assert!(other.is_some());
        let sixes = [admit("fd00::1"), admit("fd00::ffff:0:0:2")];
        assert!(sixes.iter().all(Option::is_some));
        assert!(admit("fd00::3").is_none());
        assert!(admit("fd00:0:0:1::3").is_some());
    }

    #[test]
    fn who_is_known_or_gone_gives_the_place_back() {
        let strangers = Strangers::new(1);
        let from = ip("10.0.0.1");
        let first = strangers.admit(from).expect("a place");
        assert!(strangers.admit(from).is_none());
        first.is_known();
        let second = strangers.admit(from).expect("its place");
        first.is_known();
        assert!(strangers.admit(from).is_none());
        drop(second);
        assert!(strangers.admit(from).is_some());
    }
}
