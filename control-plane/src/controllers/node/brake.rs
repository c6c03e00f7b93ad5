//! How fast nodes that fail are cleared: when many do at once it is more likely the network than the nodes, and to move all
//! their pods would make it worse. Upstream's zones, states and default rates (kube-controller-manager's
//! `--node-eviction-rate`, `--secondary-node-eviction-rate`, `--unhealthy-zone-threshold`, `--large-cluster-size-threshold`).
//! No I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;

/// Time for one node, where few fail or a whole zone does.
const NORMAL: Duration = Duration::from_secs(10);
/// The same in a large zone of which most fail.
const SLOW: Duration = Duration::from_secs(100);
/// From this share of nodes on, in hundredths, most of a zone fail.
const MOST: usize = 55;
/// So few failing nodes are never most.
const FEW: usize = 2;
/// A zone with more nodes is large.
const LARGE: usize = 50;

/// Region and zone, empty where the node does not say them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Zone(String, String);

impl Zone {
    pub(super) fn of(node: &Node) -> Self {
        let labels = node.metadata.labels.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned();
        Self(
            label("topology.kubernetes.io/region").unwrap_or_default(),
            label("topology.kubernetes.io/zone").unwrap_or_default(),
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// No node of the cluster is well: it is more likely us who are cut off. What was begun is called off.
    CalledOff,
    /// No further node.
    Stopped,
    /// At most one node in this time.
    OneIn(Duration),
}

/// How fast nodes of `zone` may be cleared, given each node's zone and whether it is well.
pub(super) fn pace(zone: &Zone, nodes: &[(Zone, bool)]) -> Pace {
    if !nodes.iter().any(|(_, is_well)| *is_well) {
        return Pace::CalledOff;
    }
    let here = nodes.iter().filter(|(other, _)| other == zone);
    let (all, failing) = here.fold((0, 0), |(all, failing), (_, is_well)| {
        (all + 1, failing + usize::from(!is_well))
    });
    let most = failing > FEW && failing * 100 >= all * MOST;
    match (failing < all && most, all > LARGE) {
        (true, false) => Pace::Stopped,
        (true, true) => Pace::OneIn(SLOW),
        (false, _) => Pace::OneIn(NORMAL),
    }
}

/// The node that had its turn last, and when, by zone.
#[derive(Debug, Default)]
pub(super) struct Brake(HashMap<Zone, (String, Instant)>);

impl Brake {
    /// Whether it is the node's turn. It stays so until another one can have it, so that a write that fails can be tried
    /// again. Else how long to wait, where that is known.
    pub(super) fn turn(
        &mut self,
        node: &str,
        zone: &Zone,
        pace: Pace,
        now: Instant,
    ) -> Result<(), Option<Duration>> {
        let Pace::OneIn(time) = pace else {
            return Err(None);
        };
        if let Some((last, since)) = self.0.get(zone) {
            let left = time.saturating_sub(now.saturating_duration_since(*since));
            match (left.is_zero(), last == node) {
                (false, true) => return Ok(()),
                (false, false) => return Err(Some(left)),
                (true, _) => {}
            }
        }
        self.0.insert(zone.clone(), (node.to_owned(), now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> Zone {
        Zone(String::new(), name.to_owned())
    }

    fn nodes(zones: &[(&str, usize, usize)]) -> Vec<(Zone, bool)> {
        let of = |(name, well, failing): &(&str, usize, usize)| {
            let well = vec![(zone(name), true); *well];
            [well, vec![(zone(name), false); *failing]].concat()
        };
        zones.iter().flat_map(of).collect()
    }

    #[test]
    fn a_zone_is_told_by_its_labels() {
        let mut node = Node::default();
        assert_eq!(Zone::of(&node), Zone::default());
        let labels = [("region", "r"), ("zone", "z")];
        let labels = labels.map(|(key, it)| (format!("topology.kubernetes.io/{key}"), it.into()));
        node.metadata.labels = Some(labels.into());
        assert_eq!(Zone::of(&node), Zone("r".into(), "z".into()));
    }

    #[test]
    fn the_more_fail_the_slower_it_goes() {
        let of_a = |zones: &[(&str, usize, usize)]| pace(&zone("a"), &nodes(zones));
        let (normal, slow) = (Pace::OneIn(NORMAL), Pace::OneIn(SLOW));
        assert_eq!(of_a(&[("a", 2, 1)]), normal);
        assert_eq!(of_a(&[("a", 1, 2)]), normal, "two are never too many");
        assert_eq!(of_a(&[("a", 2, 3)]), Pace::Stopped);
        assert_eq!(of_a(&[("a", 46, 54)]), normal);
        assert_eq!(of_a(&[("a", 45, 55)]), slow);
        assert_eq!(of_a(&[("a", 22, 28)]), Pace::Stopped, "50 are not large");
        assert_eq!(of_a(&[("a", 22, 29)]), slow);
        assert_eq!(
            of_a(&[("a", 9, 1), ("b", 1, 9)]),
            normal,
            "others' zones are theirs"
        );
        assert_eq!(of_a(&[("a", 0, 9), ("b", 1, 0)]), normal, "a whole zone");
        assert_eq!(of_a(&[("a", 0, 1), ("b", 0, 1)]), Pace::CalledOff);
    }

    #[test]
    fn nodes_of_a_zone_take_turns() {
        let (mut brake, start) = (Brake::default(), Instant::now());
        let (a, normal) = (zone("a"), Pace::OneIn(NORMAL));
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(brake.turn("n1", &a, Pace::Stopped, at(0)), Err(None));
        assert_eq!(brake.turn("n1", &a, normal, at(0)), Ok(()));
        assert_eq!(brake.turn("n1", &a, normal, at(1)), Ok(()), "once more");
        assert_eq!(brake.turn("n3", &zone("b"), normal, at(1)), Ok(()));
        let wait = Err(Some(Duration::from_secs(7)));
        assert_eq!(brake.turn("n2", &a, normal, at(3)), wait);
        assert_eq!(brake.turn("n2", &a, normal, at(10)), Ok(()));
        assert!(brake.turn("n1", &a, normal, at(11)).is_err());
        assert_eq!(
            brake.turn("n2", &a, normal, at(50)),
            Ok(()),
            "it fails again"
        );
        assert!(brake.turn("n1", &a, normal, at(51)).is_err());
        assert_eq!(brake.turn("n1", &a, Pace::CalledOff, at(99)), Err(None));
    }
}
