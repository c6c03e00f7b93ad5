//! Who is near: by what the service prefers, or by the hints of its endpoints. Pure.

use super::{Class, Preference};
use crate::cluster::{Endpoint, Locality, Name, Service, View};

/// The node from whose point of view things are local.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) node: &'a str,
    zone: Option<&'a str>,
}

impl<'a> Here<'a> {
    pub(super) fn new(view: &'a View, node: &'a str) -> Self {
        let zone = view.nodes.get(node).and_then(|node| node.zone.as_deref());
        Self { node, zone }
    }

    fn has(self, endpoint: &Endpoint) -> bool {
        endpoint.node.as_deref() == Some(self.node)
    }

    fn is_in_zone_of(self, endpoint: &Endpoint) -> bool {
        self.zone.is_some() && endpoint.zone.as_deref() == self.zone
    }
}

/// What the service prefers: Kubernetes' own fields win over the annotation, and that over what the node was told.
fn preference(here: Here<'_>, service: &Service, default: Locality) -> Preference {
    // Without a zone of its own no node is in anybody's zone, and upstream's proxy spreads evenly.
    let zone = match here.zone {
        Some(_) => Preference::SameZone,
        None => Preference::Even,
    };
    match service.traffic_distribution.as_deref() {
        Some("PreferSameNode") => Preference::SameNode,
        Some("PreferSameZone" | "PreferClose") => zone,
        _ => match service.locality.unwrap_or(default) {
            Locality::Node => Preference::Node,
            Locality::Zone => zone,
            Locality::Cluster => Preference::Even,
        },
    }
}

/// How the endpoints of one port are told apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nearness<'a> {
    here: Here<'a>,
    pub(super) preference: Preference,
    publish_not_ready: bool,
    hinted: Option<By>,
}

/// Which hints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nodes,
    Zones,
}

impl<'a> Nearness<'a> {
    /// For the cluster IP.
    pub(super) fn new(
        here: Here<'a>,
        service: &Service,
        default: Locality,
        endpoints: &[&Endpoint],
    ) -> Self {
        match service.internal_local {
            true => Self::unhinted(here, service, Preference::LocalOnly),
            false => Self::whoever_is_near(here, service, default, endpoints),
        }
    }

    /// For the addresses of the outside, dialled in the cluster: as upstream's proxy, that is not bound to this node by
    /// any policy.
    pub(super) fn whoever_is_near(
        here: Here<'a>,
        service: &Service,
        default: Locality,
        endpoints: &[&Endpoint],
    ) -> Self {
        let preference = preference(here, service, default);
        Self::unhinted(here, service, preference).with_hints(endpoints)
    }

    /// For what comes from outside. Nothing but the policy makes nodes differ, so that each finds the same backend.
    pub(super) fn from_outside(here: Here<'a>, service: &Service) -> Self {
        let local = service.exposed.as_ref().is_some_and(|it| it.local);
        let preference = match local {
            true => Preference::LocalOnly,
            false => Preference::Even,
        };
        Self::unhinted(here, service, preference)
    }

    fn unhinted(here: Here<'a>, service: &Service, preference: Preference) -> Self {
        Self {
            here,
            preference,
            publish_not_ready: service.publish_not_ready,
            hinted: None,
        }
    }

    /// As upstream's proxy, hints count if every ready endpoint has some and at least one of them is for here: those for
    /// nodes first, else those for zones. The others are then used only when the hinted ones have gone.
    fn with_hints(self, endpoints: &[&Endpoint]) -> Self {
        let (mut nearness, here) = (self, self.here);
        let ready: Vec<&Endpoint> = endpoints
            .iter()
            .copied()
            .filter(|endpoint| nearness.is_ready(endpoint))
            .collect();
        let counts = |by: &By| {
            ready.iter().all(|it| !by.names(it).is_empty())
                && ready.iter().any(|it| nearness.is_hinted(*by, it))
        };
        let Some(by) = [By::Nodes, By::Zones].into_iter().find(counts) else {
            return nearness;
        };
        let mut hinted = ready.iter().filter(|it| nearness.is_hinted(by, it));
        nearness.preference = if by == By::Nodes && hinted.all(|it| here.has(it)) {
            Preference::SameNode
        } else {
            // Evenly over all that are hinted.
            Preference::SameZone
        };
        nearness.hinted = Some(by);
        nearness
    }

    fn is_ready(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.publish_not_ready
    }

    fn is_hinted(&self, by: By, endpoint: &Endpoint) -> bool {
        let wanted = match by {
            By::Nodes => Some(self.here.node),
            By::Zones => self.here.zone,
        };
        let mut names = by.names(endpoint).iter();
        names.any(|name| Some(&**name) == wanted)
    }

    pub(super) fn classify(&self, endpoint: &Endpoint) -> Class {
        let local = self.here.has(endpoint);
        if self.preference == Preference::LocalOnly && !local {
            return Class::Draining;
        }
        if !self.is_ready(endpoint) {
            let serves = endpoint.terminating && endpoint.serving;
            return if serves {
                Class::Terminating
            } else {
                Class::Draining
            };
        }
        let near = match self.hinted {
            Some(by) => self.is_hinted(by, endpoint),
            None => local || self.here.is_in_zone_of(endpoint),
        };
        match (local, near) {
            (true, true) => Class::Local,
            // Where all are equal there is no zone between.
            (false, true) if self.preference != Preference::Even => Class::Zone,
            _ => Class::Rest,
        }
    }
}

impl By {
    fn names(self, endpoint: &Endpoint) -> &[Name] {
        match (self, &endpoint.hints) {
            (_, None) => &[],
            (By::Nodes, Some(hints)) => &hints.nodes,
            (By::Zones, Some(hints)) => &hints.zones,
        }
    }
}
