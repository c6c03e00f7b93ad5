use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::plan::{CLASS, Plan, Trouble, ingress, plan};
use super::pools::Pools;
use crate::controllers::cache::Key;
use crate::resources::Family;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pools(data: &[(&str, &str)]) -> Pools {
    let data = data
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let (pools, errors) = Pools::parse(&data.collect(), &[]);
    assert!(errors.is_empty(), "{errors:?}");
    pools
}

/// A load balancer of IPv4 with these addresses; `change` is merged into it.
fn service(name: &str, has: &[&str], change: Value) -> Arc<Service> {
    let ingress: Vec<_> = has.iter().map(|ip| json!({"ip": ip})).collect();
    let mut service = json!({
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"]},
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    json_patch::merge(&mut service, &change);
    Arc::new(serde_json::from_value(service).unwrap())
}

fn planned(pools: &Pools, services: &[Arc<Service>]) -> Plan {
    plan(pools, services, &BTreeSet::new())
}

fn writes(plan: &Plan) -> Vec<(&str, Vec<String>)> {
    let writes = plan.writes.iter();
    let texts = |all: &Vec<IpAddr>| all.iter().map(ToString::to_string).collect();
    writes.map(|(key, all)| (&*key.name, texts(all))).collect()
}

fn troubles(plan: &Plan) -> Vec<(&str, String)> {
    let all = plan.troubles.iter();
    all.flat_map(|(key, troubles)| troubles.iter().map(|it| (&*key.name, it.to_string())))
        .collect()
}

#[test]
fn one_address_of_each_family_from_the_pools_for_all() {
    let pools = pools(&[
        ("lan", "192.0.2.10-192.0.2.11, 2001:db8::1"),
        ("spare", "auto-assign=false 192.0.2.20"),
    ]);
    let both = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"]}});
    let services = [
        service("a", &[], both),
        service("b", &[], json!({"spec": {"loadBalancerClass": CLASS}})),
        service("c", &[], json!({})),
        service(
            "d",
            &[],
            json!({"spec": {"loadBalancerClass": "example.com/cloud"}}),
        ),
        service("e", &[], json!({"spec": {"type": "ClusterIP"}})),
    ];
    let plan = planned(&pools, &services);
    let given = [
        ("a", vec!["2001:db8::1".to_owned(), "192.0.2.10".to_owned()]),
        ("b", vec!["192.0.2.11".to_owned()]),
    ];
    assert_eq!(writes(&plan), given);
    let why = "no IPv4 address is free in any pool".to_owned();
    assert_eq!(troubles(&plan), [("c", why)]);
}

#[test]
fn what_was_given_stays_and_what_is_no_load_balancer_loses_it() {
    let pools = pools(&[("lan", "192.0.2.10-192.0.2.12")]);
    let services = [
        service("kept", &["192.0.2.12"], json!({})),
        service(
            "changed",
            &["192.0.2.10"],
            json!({"spec": {"type": "NodePort"}}),
        ),
        service("single", &["192.0.2.11", "2001:db8::1"], json!({})),
        service(
            "cloud's",
            &["203.0.113.1"],
            json!({"spec": {"loadBalancerClass": "example.com/cloud"}}),
        ),
    ];
    let plan = planned(&pools, &services);
    let expected = [
        ("changed", vec![]),
        ("single", vec!["192.0.2.11".to_owned()]),
    ];
    assert_eq!(writes(&plan), expected);
    assert!(plan.troubles.is_empty());
}

#[test]
fn an_address_let_go_is_nobodys_in_the_same_pass() {
    let pools = pools(&[("lan", "192.0.2.10")]);
    let gone = service(
        "gone",
        &["192.0.2.10"],
        json!({"spec": {"type": "ClusterIP"}}),
    );
    let plan = planned(&pools, &[gone, service("waits", &[], json!({}))]);
    assert_eq!(writes(&plan), [("gone", vec![])]);
    let gone = service("gone", &[], json!({"spec": {"type": "ClusterIP"}}));
    let plan = planned(&pools, &[gone, service("waits", &[], json!({}))]);
    assert_eq!(writes(&plan), [("waits", vec!["192.0.2.10".to_owned()])]);
}

#[test]
fn what_a_service_asks_for_it_gets_or_hears_why_not() {
    let pools = pools(&[
        ("lan", "192.0.2.10-192.0.2.19"),
        ("spare", "auto-assign=false 192.0.2.20"),
    ]);
    let nodes = BTreeSet::from([ip("192.0.2.15")]);
    let holder = service("holder", &["192.0.2.10"], json!({}));
    let asks = |field: Value| {
        let services = [holder.clone(), service("asks", &["192.0.2.11"], field)];
        let plan = plan(&pools, &services, &nodes);
        let got = writes(&plan).first().map(|(_, all)| all.join(","));
        let why = troubles(&plan).first().map(|(_, why)| why.clone());
        (got, why)
    };
    let annotations = |all: Value| json!({"metadata": {"annotations": all}});
    let ips = |text: &str| annotations(json!({"kernelet.io/load-balancer-ips": text}));
    let pool = |text: &str| annotations(json!({"kernelet.io/load-balancer-pool": text}));
    let field = json!({"spec": {"loadBalancerIP": "192.0.2.13"}});
    assert_eq!(asks(field).0.unwrap(), "192.0.2.13");
    assert_eq!(asks(ips("192.0.2.20")).0.unwrap(), "192.0.2.20");
    assert_eq!(asks(pool("spare")).0.unwrap(), "192.0.2.20");
    assert_eq!(asks(pool("lan")), (None, None));
    for (change, why) in [
        (ips("192.0.2.10"), "192.0.2.10 is the Service ns/holder's"),
        (ips("192.0.2.15"), "192.0.2.15 is a node's own address"),
        (ips("198.51.100.1"), "198.51.100.1 is in no pool"),
        (ips("web"), "\"web\" is no address"),
        (ips("2001:db8::1"), "it asks for 2001:db8::1, and is not"),
        (pool("none"), "there is no pool none"),
        (
            annotations(json!({
                "kernelet.io/load-balancer-ips": "192.0.2.12",
                "kernelet.io/load-balancer-pool": "spare",
            })),
            "192.0.2.12 is not in pool spare",
        ),
    ] {
        let (got, said) = asks(change.clone());
        assert_eq!(got, None, "it keeps what it has: {change}");
        assert!(said.as_ref().unwrap().starts_with(why), "{said:?}");
    }
}

#[test]
fn of_two_that_have_one_address_the_older_keeps_it() {
    let pools = pools(&[("lan", "192.0.2.10-192.0.2.12")]);
    let newer = json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}});
    let services = [
        service("a-newer", &["192.0.2.10"], newer),
        service("older", &["192.0.2.10"], json!({})),
    ];
    let plan = planned(&pools, &services);
    assert_eq!(writes(&plan), [("a-newer", vec!["192.0.2.11".to_owned()])]);
}

#[test]
fn nobody_loses_an_address_because_pools_go() {
    let stays = service("stays", &["192.0.2.10"], json!({}));
    let plan = planned(&Pools::default(), &[stays]);
    assert!(plan.writes.is_empty());
    let expected = vec![Trouble::Stray(ip("192.0.2.10"))];
    assert_eq!(plan.troubles.into_values().next(), Some(expected));
    let plan = planned(&Pools::default(), &[service("new", &[], json!({}))]);
    assert_eq!(
        troubles(&plan)[0].1,
        "no pool has IPv4 addresses to give; name some in the ConfigMap kube-system/kernelet-load-balancer"
    );
}

#[test]
fn a_service_that_goes_keeps_and_gets_nothing() {
    let pools = pools(&[("lan", "192.0.2.10-192.0.2.12")]);
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}});
    let services = [
        service("has", &["192.0.2.10"], going.clone()),
        service("has-not", &[], going),
    ];
    let plan = planned(&pools, &services);
    assert!(plan.writes.is_empty() && plan.troubles.is_empty());
}

/// Something that happens in a cluster.
#[derive(Clone, Debug)]
enum Step {
    /// A Service is there, with this spec, or changes to it.
    Put(u8, Value),
    Delete(u8),
    Pools(usize),
    /// A pass, of whose writes those fail whose number is in the list.
    Pass(Vec<u8>),
}

const POOLS: [&[(&str, &str)]; 4] = [
    &[("lan", "192.0.2.10-192.0.2.13 2001:db8::1-2001:db8::2")],
    &[("lan", "192.0.2.12-192.0.2.15"), ("spare", "192.0.2.16")],
    &[
        ("lan", "192.0.2.10"),
        ("spare", "auto-assign=false 192.0.2.11-192.0.2.13"),
    ],
    &[],
];

fn step() -> impl Strategy<Value = Step> {
    let families = prop_oneof![
        Just(json!(["IPv4"])),
        Just(json!(["IPv6", "IPv4"])),
        Just(json!(["IPv6"])),
    ];
    let kind = prop_oneof![4 => Just("LoadBalancer"), 1 => Just("ClusterIP")];
    let asks = prop_oneof![
        3 => Just(json!({})),
        1 => (10_u8..18).prop_map(|n| json!({"kernelet.io/load-balancer-ips": format!("192.0.2.{n}")})),
        1 => Just(json!({"kernelet.io/load-balancer-pool": "spare"})),
    ];
    let put = (0_u8..8, families, kind, asks).prop_map(|(n, families, kind, asks)| {
        let spec = json!({"type": kind, "ipFamilies": families});
        Step::Put(n, json!({"metadata": {"annotations": asks}, "spec": spec}))
    });
    prop_oneof![
        4 => put,
        1 => (0_u8..8).prop_map(Step::Delete),
        1 => (0..POOLS.len()).prop_map(Step::Pools),
        3 => prop::collection::vec(0_u8..8, 0..4).prop_map(Step::Pass),
    ]
}

/// What the API server holds.
#[derive(Default)]
struct World {
    services: BTreeMap<u8, Arc<Service>>,
}

impl World {
    fn all(&self) -> Vec<Arc<Service>> {
        self.services.values().cloned().collect()
    }

    fn put(&mut self, n: u8, change: Value) {
        let has: Vec<String> = self
            .services
            .get(&n)
            .map(|old| addresses(old).iter().map(ToString::to_string).collect())
            .unwrap_or_default();
        let has: Vec<&str> = has.iter().map(String::as_str).collect();
        self.services
            .insert(n, service(&format!("s{n}"), &has, change));
    }

    fn write(&mut self, key: &Key, has: &[IpAddr]) {
        let found = self
            .services
            .values_mut()
            .find(|it| Key::of(&***it) == *key);
        let service = Arc::make_mut(found.unwrap());
        let ingress: Vec<_> = has.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"loadBalancer": {"ingress": ingress}});
        service.status = Some(serde_json::from_value(status).unwrap());
    }
}

fn addresses(service: &Service) -> Vec<IpAddr> {
    let ingress = ingress(service).iter();
    ingress.map(|it| ip(it.ip.as_deref().unwrap())).collect()
}

fn is_balancer(service: &Service) -> bool {
    service.spec.as_ref().unwrap().type_.as_deref() == Some("LoadBalancer")
}

proptest! {
    #[test]
    fn no_history_gives_one_address_to_two_services(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::default();
        let mut now = pools(POOLS[0]);
        let nodes = BTreeSet::from([ip("192.0.2.11")]);
        for step in steps {
            match step {
                Step::Put(n, change) => world.put(n, change),
                Step::Delete(n) => { world.services.remove(&n); }
                Step::Pools(n) => now = pools(POOLS[n]),
                Step::Pass(fails) => {
                    let before = world.all();
                    let plan = plan(&now, &before, &nodes);
                    for (number, (key, has)) in plan.writes.iter().enumerate() {
                        for new in has {
                            let had = before.iter().any(|it| Key::of(&**it) == *key && addresses(it).contains(new));
                            prop_assert!(had || now.contain(*new) && !nodes.contains(new));
                        }
                        if !fails.iter().any(|it| usize::from(*it) == number) {
                            world.write(key, has);
                        }
                    }
                }
            }
            let mut all: Vec<IpAddr> = world.all().iter().flat_map(|it| addresses(it)).collect();
            let count = all.len();
            all.sort();
            all.dedup();
            prop_assert_eq!(all.len(), count, "two Services have one address");
        }
        // Once writes succeed, everything settles: nothing is left to do, and nobody waits beside a free address.
        for _ in 0..10 {
            for (key, has) in plan(&now, &world.all(), &nodes).writes {
                world.write(&key, &has);
            }
        }
        let last = plan(&now, &world.all(), &nodes);
        prop_assert_eq!(&last.writes, &BTreeMap::new());
        let taken: BTreeSet<IpAddr> = world.all().iter().flat_map(|it| addresses(it)).collect();
        for service in world.all() {
            let has = addresses(&service);
            if !is_balancer(&service) {
                prop_assert!(has.is_empty());
                continue;
            }
            if service.metadata.annotations.as_ref().is_some_and(|it| !it.is_empty()) {
                continue;
            }
            for family in service.spec.as_ref().unwrap().ip_families.iter().flatten() {
                let family = Family::named(family).unwrap();
                if has.iter().any(|it| Family::of(*it) == family) {
                    continue;
                }
                let spans = now.automatic().flat_map(|pool| &pool.spans).filter(|it| it.family() == family);
                let free = spans.flat_map(|it| it.addresses()).find(|it| !taken.contains(it) && !nodes.contains(it));
                prop_assert_eq!(free, None, "a Service waits beside a free address");
                prop_assert!(last.troubles.contains_key(&Key::of(&*service)), "and is told why");
            }
        }
    }
}
