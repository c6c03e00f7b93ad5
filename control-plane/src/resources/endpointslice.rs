//! EndpointSlice.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    service::PROTOCOLS,
    validate::{self, Path, names},
};

const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
const MAX_HINTS: usize = 8;

impl Strategy for EndpointSlice {
    const SINGULAR: &'static str = "endpointslice";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("AddressType", "What kind of address the endpoints have."),
        Column::text("Ports", "The ports of every endpoint."),
        Column::text("Endpoints", "The endpoints' addresses."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let ports: Vec<_> = self
            .ports
            .iter()
            .flatten()
            .map(|port| {
                port.port
                    .map_or_else(|| "*".to_owned(), |port| port.to_string())
            })
            .collect();
        let addresses: Vec<_> = self
            .endpoints
            .iter()
            .flat_map(|endpoint| endpoint.addresses.clone())
            .collect();
        vec![
            json!(print::name(&self.metadata)),
            json!(self.address_type),
            json!(print::first_three(&ports, "<unset>")),
            json!(print::first_three(&addresses, "<unset>")),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.name.get_or_insert_default();
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = (&self.endpoints, &self.ports) != (&old.endpoints, &old.ports);
        super::kind::carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let kind = Path::new("addressType");
        errors.extend(validate::one_of(
            &kind,
            Some(&self.address_type),
            ADDRESS_TYPES,
        ));
        if let Some(old) = old {
            errors.extend(validate::immutable(
                &kind,
                &self.address_type,
                &old.address_type,
            ));
        }
        errors.extend(endpoints(self));
        errors.extend(ports(self));
        errors
    }
}

fn endpoints(slice: &EndpointSlice) -> Vec<FieldError> {
    let path = Path::new("endpoints");
    if slice.endpoints.len() > MAX_ENDPOINTS {
        return vec![path.too_many(slice.endpoints.len(), MAX_ENDPOINTS)];
    }
    let all = slice.endpoints.iter().enumerate();
    all.flat_map(|(index, one)| endpoint(&path.index(index), &slice.address_type, one))
        .collect()
}

fn endpoint(path: &Path, kind: &str, endpoint: &Endpoint) -> Vec<FieldError> {
    let addresses = path.child("addresses");
    let mut errors = Vec::new();
    match endpoint.addresses.len() {
        0 => errors.push(addresses.required("must contain at least 1 address")),
        1..=MAX_ADDRESSES => {}
        count => errors.push(addresses.too_many(count, MAX_ADDRESSES)),
    }
    for (index, address) in endpoint.addresses.iter().enumerate() {
        errors.extend(one_address(&addresses.index(index), kind, address));
    }
    if let Some(node) = &endpoint.node_name {
        let messages = names::dns1123_subdomain(node, false);
        errors.extend(path.child("nodeName").invalid_all(node, messages));
    }
    if let Some(hostname) = &endpoint.hostname {
        let messages = names::dns1123_label(hostname, false);
        errors.extend(path.child("hostname").invalid_all(hostname, messages));
    }
    if let Some(given) = &endpoint.hints {
        let path = path.child("hints");
        let nodes = given.for_nodes.iter().flatten().map(|it| &*it.name);
        let node_name: fn(&str) -> Vec<String> = |name| names::dns1123_subdomain(name, false);
        errors.extend(hints(&path.child("forNodes"), nodes.collect(), node_name));
        let zones = given.for_zones.iter().flatten().map(|it| &*it.name);
        errors.extend(hints(
            &path.child("forZones"),
            zones.collect(),
            names::label_value,
        ));
    }
    errors
}

fn hints(path: &Path, names: Vec<&str>, rule: fn(&str) -> Vec<String>) -> Vec<FieldError> {
    if names.len() > MAX_HINTS {
        return vec![path.too_many(names.len(), MAX_HINTS)];
    }
    let mut errors = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let path = path.index(index).child("name");
        if names[..index].contains(name) {
            errors.push(path.duplicate(*name));
        }
        errors.extend(path.invalid_all(name, rule(name)));
    }
    errors
}

fn one_address(path: &Path, kind: &str, address: &str) -> Vec<FieldError> {
    match (kind, address.parse::<IpAddr>()) {
        ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
            validate::plain_ip(path, address)
        }
        ("IPv4", _) => vec![path.invalid(address, "must be an IPv4 address")],
        ("IPv6", _) => vec![path.invalid(address, "must be an IPv6 address")],
        ("FQDN", _) => path.invalid_all(address, names::dns1123_subdomain(address, false)),
        _ => Vec::new(),
    }
}

fn ports(slice: &EndpointSlice) -> Vec<FieldError> {
    let path = Path::new("ports");
    let list = slice.ports.as_deref().unwrap_or_default();
    if list.len() > MAX_PORTS {
        return vec![path.too_many(list.len(), MAX_PORTS)];
    }
    let mut errors = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (index, port) in list.iter().enumerate() {
        let path = path.index(index);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            errors.extend(
                path.child("name")
                    .invalid_all(name, names::dns1123_label(name, false)),
            );
        }
        // Here the empty name counts too: two unnamed ports could not be told apart.
        if !seen.insert(name) {
            errors.push(path.child("name").duplicate(name));
        }
        if let Some(number) = port.port {
            errors.extend(validate::port_number(&path.child("port"), number));
        }
        errors.extend(validate::one_of(
            &path.child("protocol"),
            port.protocol.as_deref(),
            PROTOCOLS,
        ));
        if let Some(app) = &port.app_protocol {
            let messages = names::qualified(app);
            errors.extend(path.child("appProtocol").invalid_all(app, messages));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(value: Value) -> EndpointSlice {
        let mut slice: EndpointSlice = serde_json::from_value(value).unwrap();
        slice.set_defaults();
        slice
    }

    #[test]
    fn ports_get_a_name_and_a_protocol() {
        let slice = slice(json!({ "ports": [{ "port": 80 }] }));
        assert_eq!(
            serde_json::to_value(slice.ports).unwrap(),
            json!([{ "name": "", "port": 80, "protocol": "TCP" }])
        );
    }

    #[test]
    fn addresses_fit_their_type() {
        let slice = slice(json!({
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.0.0.1"] }, { "addresses": ["fd00::1"] }, { "addresses": [] }],
            "ports": [{ "port": 80 }, { "port": 70000 }],
        }));
        let errors: Vec<_> = Strategy::validate(&slice, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "endpoints[1].addresses[0]: Invalid value: \"fd00::1\": must be an IPv4 address",
                "endpoints[2].addresses: Required value: must contain at least 1 address",
                "ports[1].name: Duplicate value: \"\"",
                "ports[1].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ]
        );
    }

    fn paths(slice: &EndpointSlice) -> Vec<String> {
        let errors = Strategy::validate(slice, None);
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        let many: Vec<_> = (0..9).map(|n| json!({ "name": format!("z{n}") })).collect();
        let slice = slice(json!({
            "addressType": "IPv6",
            "endpoints": [
                { "addresses": ["fd00::1"], "nodeName": "n1", "hostname": "a",
                  "hints": { "forZones": [{ "name": "z" }], "forNodes": [{ "name": "n1" }] } },
                { "addresses": ["::1", "fe80::1", "::ffff:10.0.0.1"], "nodeName": "N_1", "hostname": "a.b" },
                { "addresses": ["fd00::2"], "hints": { "forZones": many, "forNodes": [{ "name": "n" }, { "name": "n" }] } },
            ],
            "ports": [{ "port": 0, "appProtocol": "a b" }],
        }));
        assert_eq!(
            paths(&slice),
            [
                "endpoints[1].addresses[0]",
                "endpoints[1].addresses[1]",
                "endpoints[1].addresses[2]",
                "endpoints[1].nodeName",
                "endpoints[1].hostname",
                "endpoints[2].hints.forNodes[1].name",
                "endpoints[2].hints.forZones",
                "ports[0].port",
                "ports[0].appProtocol",
            ]
        );
    }

    #[test]
    fn a_slice_holds_a_thousand_endpoints() {
        let endpoints: Vec<_> = (0..1001)
            .map(|n| json!({ "addresses": [format!("10.0.{}.{}", n / 250, n % 250 + 1)] }))
            .collect();
        let slice = slice(json!({ "addressType": "IPv4", "endpoints": endpoints }));
        let errors = Strategy::validate(&slice, None);
        assert_eq!(
            errors[0].to_string(),
            "endpoints: Too many: 1001: must have at most 1000 items"
        );
    }

    #[test]
    fn the_row_shows_ports_and_addresses() {
        let slice = slice(json!({
            "metadata": { "name": "web-1" }, "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.0.0.1"] }, { "addresses": ["10.0.0.2"] }], "ports": [{ "port": 80 }],
        }));
        assert_eq!(
            slice.row(0),
            ["web-1", "IPv4", "80", "10.0.0.1,10.0.0.2", "<unknown>"]
        );
    }
}
