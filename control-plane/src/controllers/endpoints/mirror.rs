//! EndpointSlices after Endpoints that people write for a Service without a selector: only slices are read by those who
//! route. No I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::backends::{Family, Port};
use super::slices::{MANAGED_BY, Plan, SERVICE_NAME, is_owned_by, ports_of, slice_port};
use crate::controllers::pods::controlled_by;

pub(super) const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// On objects that serve to elect a leader and say nothing of endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that tell about the Endpoints object itself.
const NOT_COPIED: [&str; 2] = [
    super::trigger::LAST_CHANGE,
    "kubectl.kubernetes.io/last-applied-configuration",
];
/// As many as a slice may have.
const MAX_ENDPOINTS: usize = 1000;

/// `existing` are the slices that were mirrored for this Service before.
pub(super) fn plan(
    service: Option<&Service>,
    endpoints: Option<&Endpoints>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let mut left: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    let wanted = match (service, endpoints) {
        (Some(service), Some(endpoints)) if is_mirrored(service, endpoints) => wanted(endpoints),
        _ => Vec::new(),
    };
    let uid = endpoints.and_then(|it| it.metadata.uid.as_deref());
    for mut slice in wanted {
        let same = |old: &&Arc<EndpointSlice>| {
            is_owned_by(old, uid)
                && old.address_type == slice.address_type
                && ports_of(old) == ports_of(&slice)
        };
        let Some(at) = left.iter().position(same) else {
            plan.create.push(slice);
            continue;
        };
        let old = left.remove(at);
        // What the server and others keep in it stays.
        let mut metadata = old.metadata.clone();
        metadata.labels = slice.metadata.labels;
        metadata.annotations = slice.metadata.annotations;
        slice.metadata = metadata;
        if slice != **old {
            plan.update.push(slice);
        }
    }
    plan.delete = left
        .into_iter()
        .filter_map(|slice| slice.metadata.name.clone())
        .collect();
    plan
}

fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selector = service.spec.as_ref().and_then(|it| it.selector.as_ref());
    let labels = endpoints.metadata.labels.as_ref();
    let annotations = endpoints.metadata.annotations.as_ref();
    selector.is_none_or(BTreeMap::is_empty)
        && endpoints.metadata.deletion_timestamp.is_none()
        && labels.and_then(|it| it.get(SKIP)).map(String::as_str) != Some("true")
        && annotations.is_none_or(|it| !it.contains_key(LEADER))
}

/// One slice for each family and list of ports, more where they are too many.
fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<(Family, Vec<Port>), Vec<Endpoint>> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports = ports(subset);
        let ready = subset.addresses.iter().flatten().map(|it| (it, true));
        let unready = subset.not_ready_addresses.iter().flatten();
        for (address, ready) in ready.chain(unready.map(|it| (it, false))) {
            let Some(family) = Family::of_text(&address.ip) else {
                continue;
            };
            let group = groups.entry((family, ports.clone())).or_default();
            group.push(endpoint(address, ready));
        }
    }
    let slices = groups.iter().flat_map(|((family, ports), group)| {
        group
            .chunks(MAX_ENDPOINTS)
            .map(|chunk| slice(endpoints, *family, ports, chunk))
    });
    slices.collect()
}

fn slice(
    endpoints: &Endpoints,
    family: Family,
    ports: &[Port],
    members: &[Endpoint],
) -> EndpointSlice {
    let meta = &endpoints.metadata;
    let name = meta.name.clone().unwrap_or_default();
    let mut labels = meta.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let mut annotations = meta.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    let mut slice = EndpointSlice {
        address_type: family.as_str().into(),
        endpoints: members.to_vec(),
        ports: Some(ports.iter().map(slice_port).collect()),
        ..EndpointSlice::default()
    };
    slice.metadata.generate_name = Some(format!("{name}-"));
    slice.metadata.namespace = meta.namespace.clone();
    slice.metadata.labels = Some(labels);
    slice.metadata.annotations = (!annotations.is_empty()).then_some(annotations);
    slice.metadata.owner_references = Some(vec![controlled_by(endpoints)]);
    slice
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let ports = subset.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(selector: Value) -> Service {
        serde_json::from_value(
            json!({ "metadata": { "name": "db" }, "spec": { "selector": selector } }),
        )
        .unwrap()
    }

    fn endpoints(subsets: Value) -> Endpoints {
        serde_json::from_value(json!({
            "metadata": {
                "name": "db", "namespace": "default", "uid": "e", "labels": { "team": "a" },
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "n" },
            },
            "subsets": subsets,
        }))
        .unwrap()
    }

    fn two() -> Endpoints {
        endpoints(json!([{
            "addresses": [{ "ip": "192.0.2.1", "hostname": "a" }, { "ip": "2001:db8::1" }],
            "notReadyAddresses": [{ "ip": "192.0.2.2" }],
            "ports": [{ "name": "sql", "port": 5432 }],
        }]))
    }

    /// The slices as the API server would have them after the plan.
    fn stored(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
        let named = plan.create.iter().enumerate().map(|(n, slice)| {
            let mut slice = slice.clone();
            slice.metadata.name = Some(format!("db-{n}"));
            slice.metadata.uid = Some(format!("s{n}"));
            Arc::new(slice)
        });
        named.collect()
    }

    fn is_quiet(plan: &Plan) -> bool {
        plan.create.is_empty() && plan.update.is_empty() && plan.delete.is_empty()
    }

    #[test]
    fn what_people_write_is_said_in_slices() {
        let service = service(Value::Null);
        let first = plan(Some(&service), Some(&two()), &[]);
        let slice = serde_json::to_value(&first.create[0]).unwrap();
        assert_eq!(first.create.len(), 2, "one for each family");
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(
            slice["endpoints"],
            json!([
                { "addresses": ["192.0.2.1"], "conditions": { "ready": true }, "hostname": "a" },
                { "addresses": ["192.0.2.2"], "conditions": { "ready": false } },
            ])
        );
        assert_eq!(
            slice["ports"],
            json!([{ "name": "sql", "port": 5432, "protocol": "TCP" }])
        );
        assert_eq!(
            slice["metadata"]["labels"],
            json!({ "endpointslice.kubernetes.io/managed-by": MANAGER, "kubernetes.io/service-name": "db", "team": "a" })
        );
        assert_eq!(slice["metadata"]["annotations"], json!({ "note": "n" }));
        assert_eq!(slice["metadata"]["ownerReferences"][0]["kind"], "Endpoints");

        let existing = stored(&first);
        assert!(is_quiet(&plan(Some(&service), Some(&two()), &existing)));
        let fewer = endpoints(
            json!([{ "addresses": [{ "ip": "192.0.2.9" }], "ports": [{ "name": "sql", "port": 5432 }] }]),
        );
        let second = plan(Some(&service), Some(&fewer), &existing);
        assert_eq!(second.update[0].metadata.name.as_deref(), Some("db-0"));
        assert_eq!(second.update[0].endpoints[0].addresses, ["192.0.2.9"]);
        assert_eq!(
            (second.create.len(), second.delete),
            (0, vec!["db-1".into()])
        );
    }

    #[test]
    fn what_is_not_to_be_mirrored_is_cleared_away() {
        let free = service(Value::Null);
        let existing = stored(&plan(Some(&free), Some(&two()), &[]));
        let mut skipped = two();
        skipped.metadata.labels = Some([(SKIP.to_owned(), "true".to_owned())].into());
        let mut elects = two();
        elects.metadata.annotations = Some([(LEADER.to_owned(), "{}".to_owned())].into());
        let selecting = service(json!({ "app": "db" }));
        for (service, endpoints) in [
            (None, Some(&two())),
            (Some(&free), None),
            (Some(&selecting), Some(&two())),
            (Some(&free), Some(&skipped)),
            (Some(&free), Some(&elects)),
        ] {
            let plan = plan(service, endpoints, &existing);
            assert_eq!(plan.delete.len(), 2);
            assert!(plan.create.is_empty() && plan.update.is_empty());
        }
    }

    #[test]
    fn more_than_a_slice_holds_are_several() {
        let addresses: Vec<Value> = (0..1500)
            .map(|n| json!({ "ip": format!("10.0.{}.{}", n / 250, n % 250) }))
            .collect();
        let many = endpoints(json!([{ "addresses": addresses, "ports": [{ "port": 80 }] }]));
        let service = service(Value::Null);
        let first = plan(Some(&service), Some(&many), &[]);
        let sizes: Vec<usize> = first.create.iter().map(|it| it.endpoints.len()).collect();
        assert_eq!(sizes, [1000, 500]);
        assert!(is_quiet(&plan(
            Some(&service),
            Some(&many),
            &stored(&first)
        )));
    }
}
