//! EndpointSlice.

use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    service::PROTOCOLS,
    validate::{self, Path, names},
};

const ADDRESS_TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;

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
    let mut errors = Vec::new();
    if slice.endpoints.len() > MAX_ENDPOINTS {
        errors.push(path.too_many(slice.endpoints.len(), MAX_ENDPOINTS));
    }
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let path = path.index(index).child("addresses");
        match endpoint.addresses.len() {
            0 => errors.push(path.required("must contain at least 1 address")),
            1..=MAX_ADDRESSES => {}
            count => errors.push(path.too_many(count, MAX_ADDRESSES)),
        }
        for (index, address) in endpoint.addresses.iter().enumerate() {
            errors.extend(one_address(
                &path.index(index),
                &slice.address_type,
                address,
            ));
        }
    }
    errors
}

fn one_address(path: &Path, kind: &str, address: &str) -> Vec<FieldError> {
    match kind {
        "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
            vec![path.invalid(address, "must be an IPv4 address")]
        }
        "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
            vec![path.invalid(address, "must be an IPv6 address")]
        }
        "FQDN" => path.invalid_all(address, names::dns1123_subdomain(address, false)),
        _ => Vec::new(),
    }
}

fn ports(slice: &EndpointSlice) -> Vec<FieldError> {
    let path = Path::new("ports");
    let list = slice.ports.as_deref().unwrap_or_default();
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
