//! Endpoints: the older, single-object form of a Service's backends.

use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    validate::{self, Path, names},
};

impl Strategy for Endpoints {
    const SINGULAR: &'static str = "endpoints";
    const SHORT_NAMES: &'static [&'static str] = &["ep"];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Endpoints", "Addresses and ports of the backends."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let addresses: Vec<_> = self.subsets.iter().flatten().flat_map(addresses).collect();
        vec![
            json!(print::name(&self.metadata)),
            json!(print::first_three(&addresses, print::NONE)),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        for port in self
            .subsets
            .iter_mut()
            .flatten()
            .flat_map(|subset| subset.ports.iter_mut().flatten())
        {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("subsets");
        self.subsets
            .iter()
            .flatten()
            .enumerate()
            .flat_map(|(index, one)| subset(&path.index(index), one))
            .collect()
    }
}

fn addresses(subset: &EndpointSubset) -> Vec<String> {
    let ports = subset.ports.as_deref().unwrap_or_default();
    let ready = subset.addresses.as_deref().unwrap_or_default();
    match ports.is_empty() {
        true => ready.iter().map(|address| address.ip.clone()).collect(),
        false => ports
            .iter()
            .flat_map(|port| {
                ready.iter().map(|address| match address.ip.contains(':') {
                    true => format!("[{}]:{}", address.ip, port.port),
                    false => format!("{}:{}", address.ip, port.port),
                })
            })
            .collect(),
    }
}

fn subset(path: &Path, subset: &EndpointSubset) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (ready, unready) = (&subset.addresses, &subset.not_ready_addresses);
    if ready.iter().chain(unready).flatten().next().is_none() {
        errors.push(path.required("must specify `addresses` or `notReadyAddresses`"));
    }
    for (field, addresses) in [("addresses", ready), ("notReadyAddresses", unready)] {
        for (index, address) in addresses.iter().flatten().enumerate() {
            let path = path.child(field).index(index);
            errors.extend(validate::plain_ip(&path.child("ip"), &address.ip));
            if let Some(hostname) = &address.hostname {
                let messages = names::dns1123_label(hostname, false);
                errors.extend(path.child("hostname").invalid_all(hostname, messages));
            }
            if let Some(node) = &address.node_name {
                let messages = names::dns1123_subdomain(node, false);
                errors.extend(path.child("nodeName").invalid_all(node, messages));
            }
        }
    }
    let ports = subset.ports.as_deref().unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        match port.name.as_deref().filter(|name| !name.is_empty()) {
            None if ports.len() > 1 => errors.push(path.child("name").required("")),
            None => {}
            Some(name) => errors.extend(
                path.child("name")
                    .invalid_all(name, names::dns1123_label(name, false)),
            ),
        }
        errors.extend(validate::port_number(&path.child("port"), port.port));
        errors.extend(validate::one_of(
            &path.child("protocol"),
            port.protocol.as_deref(),
            super::service::PROTOCOLS,
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_three_addresses_are_counted() {
        let endpoints: Endpoints = serde_json::from_value(json!({ "subsets": [{
            "addresses": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }, { "ip": "10.0.0.3" }, { "ip": "10.0.0.4" }],
            "ports": [{ "port": 80 }],
        }] }))
        .unwrap();
        assert_eq!(
            endpoints.row(0)[1],
            "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more..."
        );
    }

    #[test]
    fn an_endpoint_is_where_others_can_reach_it() {
        let endpoints: Endpoints = serde_json::from_value(json!({ "subsets": [{
            "addresses": [{ "ip": "127.0.0.1" }, { "ip": "10.0.0.1", "hostname": "A", "nodeName": "N_1" }],
            "notReadyAddresses": [{ "ip": "fe80::1" }],
        }] }))
        .unwrap();
        let paths: Vec<_> = Strategy::validate(&endpoints, None)
            .into_iter()
            .map(|error| error.path)
            .collect();
        assert_eq!(
            paths,
            [
                "subsets[0].addresses[0].ip",
                "subsets[0].addresses[1].hostname",
                "subsets[0].addresses[1].nodeName",
                "subsets[0].notReadyAddresses[0].ip",
            ]
        );
    }

    #[test]
    fn addresses_are_ip_addresses() {
        let mut endpoints: Endpoints = serde_json::from_value(
            json!({ "subsets": [{ "addresses": [{ "ip": "a" }], "ports": [{ "port": 0 }] }] }),
        )
        .unwrap();
        endpoints.set_defaults();
        let errors: Vec<_> = Strategy::validate(&endpoints, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "subsets[0].addresses[0].ip: Invalid value: \"a\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }
}
