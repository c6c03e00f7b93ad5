//! Which Service gets which address. Pure.
//!
//! What a Service has is what its status says, so a restart forgets nothing. An address that is let go in one pass is
//! given to nobody before a later one, when the API server has stored that it is free: whichever writes fail, no
//! address is two Services'.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};

use super::pools::{Addresses, Pool, Pools};
use crate::controllers::cache::Key;
use crate::resources::Family;

/// The `loadBalancerClass` of ours. A Service without a class is ours, too.
pub(super) const CLASS: &str = "kernelet.io/arp";
/// Annotation: the addresses that the Service asks for, with commas between, one of each family at most.
pub(super) const ADDRESSES: &str = "kernelet.io/load-balancer-ips";
/// Annotation: the pool that the Service's addresses shall come from.
pub(super) const POOL: &str = "kernelet.io/load-balancer-pool";

/// What is to be done, and told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The addresses that each of these Services shall have in its status from now on.
    pub(super) writes: BTreeMap<Key, Vec<IpAddr>>,
    /// What is wrong with each Service, also where nothing is to be done about it.
    pub(super) troubles: BTreeMap<Key, Vec<Trouble>>,
}

/// Why a Service has not the address that it should have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    #[error("no pool has {} addresses to give; name some in the ConfigMap kube-system/kernelet-load-balancer", family.as_str())]
    NoPool { family: Family },
    #[error("no {} address is free in any pool", family.as_str())]
    Exhausted { family: Family },
    #[error("no {} address is free in pool {pool}", family.as_str())]
    PoolExhausted { family: Family, pool: String },
    #[error("there is no pool {0}")]
    UnknownPool(String),
    #[error("{0} is in no pool")]
    NotInPools(IpAddr),
    #[error("{address} is not in pool {pool}")]
    NotInPool { address: IpAddr, pool: String },
    #[error("{address} is the Service {by}'s")]
    Taken { address: IpAddr, by: Key },
    #[error("{0} is a node's own address")]
    NodeAddress(IpAddr),
    #[error("{0:?} is no address")]
    NotAnAddress(String),
    #[error("it asks for {0}, and is not of that family or asks for two addresses of it")]
    Surplus(IpAddr),
    #[error("it keeps {0}, which is in no pool any more")]
    Stray(IpAddr),
}

impl Trouble {
    /// The Event's reason.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Stray(_) => "AddressOutsidePools",
            _ => "AddressNotAssigned",
        }
    }
}

/// The steps from what `services` have to what they should have. `nodes` are the nodes' own addresses.
pub(super) fn plan(pools: &Pools, services: &[Arc<Service>], nodes: &BTreeSet<IpAddr>) -> Plan {
    let mut all: Vec<Known> = services
        .iter()
        .map(|service| Known::read(service))
        .collect();
    // Others' first, because what they have is not ours to change; then by age, so that the newcomer yields.
    all.sort_by(|a, b| (a.state, &a.age).cmp(&(b.state, &b.age)));
    let mut ledger = Ledger::new(nodes);
    for known in &all {
        for address in &known.has {
            ledger.claim(*address, &known.key);
        }
    }
    let mut plan = Plan::default();
    let mut wanted: BTreeMap<&Key, Vec<IpAddr>> = BTreeMap::new();
    // Those who ask for an address before those to whom any is right.
    let (asking, content): (Vec<&Known>, Vec<&Known>) = all
        .iter()
        .filter(|known| known.state == State::Ours)
        .partition(|known| !known.asks.is_empty());
    for known in asking.into_iter().chain(content) {
        let mut troubles = known.nonsense.clone();
        let mut addresses = Vec::new();
        for family in &known.families {
            let (address, trouble) = choose(pools, &mut ledger, known, *family);
            addresses.extend(address);
            troubles.extend(trouble);
        }
        wanted.insert(&known.key, addresses);
        if !troubles.is_empty() {
            plan.troubles.insert(known.key.clone(), troubles);
        }
    }
    for known in &all {
        let wanted = match known.state {
            State::Others => continue,
            State::Ours => wanted.remove(&known.key).unwrap_or_default(),
            State::None => Vec::new(),
        };
        if wanted != known.has || known.has_more {
            plan.writes.insert(known.key.clone(), wanted);
        }
    }
    plan
}

/// The address of that family that the Service shall have, and what is wrong with it.
fn choose<'a>(
    pools: &'a Pools,
    ledger: &mut Ledger<'a>,
    known: &'a Known,
    family: Family,
) -> (Option<IpAddr>, Option<Trouble>) {
    let has = known
        .has
        .iter()
        .find(|address| Family::of(**address) == family && ledger.is_of(**address, &known.key))
        .copied();
    if known.leaving {
        return (has, None);
    }
    let asked = known.asks.iter().find(|ip| Family::of(**ip) == family);
    let found = match (asked, &known.pool) {
        (Some(asked), _) if has == Some(*asked) => return (has, None),
        (Some(asked), pool) => asked_for(pools, ledger, known, *asked, pool.as_deref()),
        (None, Some(name)) => match pools.named(name) {
            None => Err(Trouble::UnknownPool(name.clone())),
            Some(pool) if has.is_some_and(|address| pool.contains(address)) => return (has, None),
            Some(pool) => {
                ledger
                    .take_from([pool], family, &known.key)
                    .ok_or_else(|| Trouble::PoolExhausted {
                        family,
                        pool: name.clone(),
                    })
            }
        },
        (None, None) => match has {
            Some(address) if pools.contain(address) => return (has, None),
            Some(address) => return (has, Some(Trouble::Stray(address))),
            None => ledger
                .take_from(pools.automatic(), family, &known.key)
                .ok_or_else(|| none_free(pools, family)),
        },
    };
    match found {
        Ok(address) => (Some(address), None),
        // What it has serves better than nothing.
        Err(trouble) => (has, Some(trouble)),
    }
}

fn asked_for<'a>(
    pools: &Pools,
    ledger: &mut Ledger<'a>,
    known: &'a Known,
    asked: IpAddr,
    pool: Option<&str>,
) -> Result<IpAddr, Trouble> {
    if !pools.contain(asked) {
        return Err(Trouble::NotInPools(asked));
    }
    if let Some(name) = pool
        && !pools.named(name).is_some_and(|pool| pool.contains(asked))
    {
        return Err(Trouble::NotInPool {
            address: asked,
            pool: name.to_owned(),
        });
    }
    ledger.take(asked, &known.key)
}

fn none_free(pools: &Pools, family: Family) -> Trouble {
    let mut spans = pools.automatic().flat_map(|pool| &pool.spans);
    if spans.any(|span| span.family() == family) {
        Trouble::Exhausted { family }
    } else {
        Trouble::NoPool { family }
    }
}

/// Who has which address.
struct Ledger<'a> {
    nodes: &'a BTreeSet<IpAddr>,
    holders: BTreeMap<IpAddr, &'a Key>,
    /// How far each span is given out, by its first address: a long pass does not go over it again.
    cursors: BTreeMap<IpAddr, Addresses>,
}

impl<'a> Ledger<'a> {
    fn new(nodes: &'a BTreeSet<IpAddr>) -> Self {
        Self {
            nodes,
            holders: BTreeMap::new(),
            cursors: BTreeMap::new(),
        }
    }

    /// Notes what a Service has, unless one before it has the same.
    fn claim(&mut self, address: IpAddr, key: &'a Key) {
        if !self.nodes.contains(&address) {
            self.holders.entry(address).or_insert(key);
        }
    }

    fn is_of(&self, address: IpAddr, key: &Key) -> bool {
        self.holders.get(&address) == Some(&key)
    }

    fn take(&mut self, address: IpAddr, key: &'a Key) -> Result<IpAddr, Trouble> {
        if self.nodes.contains(&address) {
            return Err(Trouble::NodeAddress(address));
        }
        match self.holders.get(&address) {
            Some(by) if *by != key => Err(Trouble::Taken {
                address,
                by: (*by).clone(),
            }),
            _ => {
                self.holders.insert(address, key);
                Ok(address)
            }
        }
    }

    /// The lowest free address.
    fn take_from<'p>(
        &mut self,
        pools: impl IntoIterator<Item = &'p Pool>,
        family: Family,
        key: &'a Key,
    ) -> Option<IpAddr> {
        let spans = pools.into_iter().flat_map(|pool| &pool.spans);
        for span in spans.filter(|span| span.family() == family) {
            let cursor = self.cursors.entry(span.first());
            let cursor = cursor.or_insert_with(|| span.addresses());
            let (nodes, holders) = (self.nodes, &self.holders);
            let free =
                |address: &IpAddr| !nodes.contains(address) && !holders.contains_key(address);
            if let Some(address) = cursor.find(free) {
                self.holders.insert(address, key);
                return Some(address);
            }
        }
        None
    }
}

/// In the order in which they may claim what they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// A load balancer of another class.
    Others,
    Ours,
    /// No load balancer; it has to have no address.
    None,
}

/// What matters of a Service.
struct Known {
    key: Key,
    state: State,
    /// When it was made, in seconds; the key decides between two of one time.
    age: (i64, Key),
    /// It is being deleted: it keeps what it has and gets nothing new.
    leaving: bool,
    families: Vec<Family>,
    /// The addresses in its status.
    has: Vec<IpAddr>,
    /// Its status says more than that.
    has_more: bool,
    asks: Vec<IpAddr>,
    pool: Option<String>,
    nonsense: Vec<Trouble>,
}

impl Known {
    fn read(service: &Service) -> Self {
        let key = Key::of(service);
        let meta = &service.metadata;
        let created = meta.creation_timestamp.as_ref();
        let families = families(service);
        let (asks, nonsense) = asks(service, &families);
        let ingress = ingress(service);
        let has: Vec<IpAddr> = ingress
            .iter()
            .filter_map(|it| it.ip.as_deref()?.parse().ok())
            .collect();
        Self {
            state: state(service),
            age: (
                created.map_or(i64::MAX, |time| time.0.as_second()),
                key.clone(),
            ),
            leaving: meta.deletion_timestamp.is_some(),
            has_more: has.len() != ingress.len() || ingress.iter().any(|it| it.hostname.is_some()),
            families,
            has,
            asks,
            pool: annotation(service, POOL).map(str::to_owned),
            nonsense,
            key,
        }
    }
}

fn state(service: &Service) -> State {
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|spec| spec.type_.as_deref());
    match spec.and_then(|spec| spec.load_balancer_class.as_deref()) {
        _ if kind != Some("LoadBalancer") => State::None,
        None | Some(CLASS) => State::Ours,
        Some(_) => State::Others,
    }
}

/// Whether the Service has, or shall have, something that is given here.
pub(super) fn matters(service: &Service) -> bool {
    state(service) != State::None || !ingress(service).is_empty()
}

pub(super) fn ingress(service: &Service) -> &[LoadBalancerIngress] {
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    balancer
        .and_then(|balancer| balancer.ingress.as_deref())
        .unwrap_or_default()
}

fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|text| Family::named(text))
        .collect();
    if !named.is_empty() {
        return named;
    }
    let of_ips = spec.cluster_ips.iter().flatten();
    let of_ips: Vec<Family> = of_ips.filter_map(|text| Family::of_text(text)).collect();
    if of_ips.is_empty() {
        vec![Family::V4]
    } else {
        of_ips
    }
}

/// The addresses that it asks for, one of each of its families at most; and what of that makes no sense.
fn asks(service: &Service, families: &[Family]) -> (Vec<IpAddr>, Vec<Trouble>) {
    let field = service
        .spec
        .as_ref()
        .and_then(|spec| spec.load_balancer_ip.as_deref());
    let text = annotation(service, ADDRESSES).or(field).unwrap_or_default();
    let mut asks: Vec<IpAddr> = Vec::new();
    let mut nonsense = Vec::new();
    for word in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let Ok(address) = word.parse::<IpAddr>() else {
            nonsense.push(Trouble::NotAnAddress(word.to_owned()));
            continue;
        };
        let family = Family::of(address);
        if !families.contains(&family) || asks.iter().any(|it| Family::of(*it) == family) {
            nonsense.push(Trouble::Surplus(address));
        } else {
            asks.push(address);
        }
    }
    (asks, nonsense)
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let all = service.metadata.annotations.as_ref()?;
    all.get(name)
        .map(|text| text.trim())
        .filter(|it| !it.is_empty())
}
