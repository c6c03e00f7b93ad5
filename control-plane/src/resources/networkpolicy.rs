//! NetworkPolicy.

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age, print,
    service::PROTOCOLS,
    validate::{self, Path, labels, names},
};

const POLICY_TYPES: &[&str] = &["Egress", "Ingress"];
const INVALID_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

impl Strategy for NetworkPolicy {
    const SINGULAR: &'static str = "networkpolicy";
    const SHORT_NAMES: &'static [&'static str] = &["netpol"];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Pod-Selector", "Which pods the policy applies to."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let chosen = self.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
        vec![
            json!(print::name(&self.metadata)),
            json!(chosen.map_or_else(|| print::NONE.to_owned(), print::selector)),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        for port in ports_mut(spec) {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
        // Every policy is about ingress unless it says otherwise; about egress it is when it has rules for that.
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            let types = ["Ingress"].into_iter().chain(egress.then_some("Egress"));
            spec.policy_types = Some(types.map(str::to_owned).collect());
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = self.spec != old.spec;
        super::kind::carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let Some(spec) = &self.spec else {
            return Vec::new();
        };
        let path = Path::new("spec");
        let mut errors = Vec::new();
        if let Some(chosen) = &spec.pod_selector {
            errors.extend(labels::selector(&path.child("podSelector"), chosen));
        }
        for (index, rule) in spec.ingress.iter().flatten().enumerate() {
            let path = path.child("ingress").index(index);
            errors.extend(ports(&path, rule.ports.as_deref()));
            errors.extend(peers(&path.child("from"), rule.from.as_deref()));
        }
        for (index, rule) in spec.egress.iter().flatten().enumerate() {
            let path = path.child("egress").index(index);
            errors.extend(ports(&path, rule.ports.as_deref()));
            errors.extend(peers(&path.child("to"), rule.to.as_deref()));
        }
        let path = path.child("policyTypes");
        let types = spec.policy_types.as_deref().unwrap_or_default();
        if types.len() > POLICY_TYPES.len() {
            errors.push(path.invalid(types, "may not specify more than two policyTypes"));
            return errors;
        }
        for (index, kind) in types.iter().enumerate() {
            if !POLICY_TYPES.contains(&kind.as_str()) {
                errors.push(path.index(index).unsupported(kind, POLICY_TYPES));
            }
        }
        errors
    }
}

fn ports_mut(
    spec: &mut k8s_openapi::api::networking::v1::NetworkPolicySpec,
) -> impl Iterator<Item = &mut NetworkPolicyPort> {
    let ingress = spec.ingress.iter_mut().flatten().map(|r| &mut r.ports);
    let egress = spec.egress.iter_mut().flatten().map(|r| &mut r.ports);
    ingress.chain(egress).flatten().flatten()
}

fn ports(rule: &Path, ports: Option<&[NetworkPolicyPort]>) -> Vec<FieldError> {
    let all = ports.unwrap_or_default().iter().enumerate();
    all.flat_map(|(index, one)| port(&rule.child("ports").index(index), one))
        .collect()
}

fn port(path: &Path, port: &NetworkPolicyPort) -> Vec<FieldError> {
    let (number, end) = (path.child("port"), path.child("endPort"));
    let mut errors = Vec::new();
    if let Some(protocol) = port.protocol.as_deref()
        && !PROTOCOLS.contains(&protocol)
    {
        errors.push(path.child("protocol").unsupported(protocol, PROTOCOLS));
    }
    match (&port.port, port.end_port) {
        (Some(IntOrString::Int(first)), last) => {
            errors.extend(validate::port_number(&number, *first));
            if let Some(last) = last {
                if last < *first {
                    errors.push(end.invalid(last, "must be greater than or equal to `port`"));
                }
                errors.extend(validate::port_number(&end, last));
            }
        }
        (Some(IntOrString::String(name)), last) => {
            if let Some(last) = last {
                let detail = "may not be specified when `port` is non-numeric";
                errors.push(end.invalid(last, detail));
            }
            errors.extend(number.invalid_all(name, names::port_name(name)));
        }
        (None, Some(last)) => {
            errors.push(end.invalid(last, "may not be specified when `port` is not specified"));
        }
        (None, None) => {}
    }
    errors
}

fn peers(path: &Path, peers: Option<&[NetworkPolicyPeer]>) -> Vec<FieldError> {
    let all = peers.unwrap_or_default().iter().enumerate();
    all.flat_map(|(index, one)| peer(&path.index(index), one))
        .collect()
}

fn peer(path: &Path, peer: &NetworkPolicyPeer) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(pods) = &peer.pod_selector {
        errors.extend(labels::selector(&path.child("podSelector"), pods));
    }
    if let Some(namespaces) = &peer.namespace_selector {
        let path = path.child("namespaceSelector");
        errors.extend(labels::selector(&path, namespaces));
    }
    if let Some(block) = &peer.ip_block {
        errors.extend(ip_block(&path.child("ipBlock"), block));
    }
    let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
    match (&peer.ip_block, selects) {
        (None, false) => errors.push(path.required("must specify a peer")),
        (Some(_), true) => {
            errors.push(path.forbidden("may not specify both ipBlock and another peer"));
        }
        _ => {}
    }
    errors
}

fn ip_block(path: &Path, block: &IPBlock) -> Vec<FieldError> {
    let at = path.child("cidr");
    if block.cidr.is_empty() {
        return vec![at.required("")];
    }
    let Ok(range) = block.cidr.parse::<IpNet>() else {
        return vec![at.invalid(block.cidr.as_str(), INVALID_CIDR)];
    };
    let mut errors = Vec::new();
    for (index, text) in block.except.iter().flatten().enumerate() {
        let at = path.child("except").index(index);
        match text.parse::<IpNet>() {
            Err(_) => errors.push(at.invalid(text.as_str(), INVALID_CIDR)),
            Ok(except) => {
                let inside = range.contains(&except.network());
                if !inside || range.prefix_len() >= except.prefix_len() {
                    errors.push(at.invalid(text.as_str(), "must be a strict subset of `cidr`"));
                }
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(value: Value) -> NetworkPolicy {
        let mut policy: NetworkPolicy = serde_json::from_value(value).unwrap();
        policy.set_defaults();
        policy
    }

    fn types(spec: Value) -> Vec<String> {
        let policy = policy(json!({ "spec": spec }));
        policy.spec.unwrap().policy_types.unwrap()
    }

    fn errors(spec: Value) -> Vec<String> {
        let errors = Strategy::validate(&policy(json!({ "spec": spec })), None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_policy_is_about_ingress_and_about_egress_if_it_has_rules_for_it() {
        assert_eq!(types(json!({})), ["Ingress"]);
        assert_eq!(types(json!({ "egress": [] })), ["Ingress"]);
        assert_eq!(types(json!({ "egress": [{}] })), ["Ingress", "Egress"]);
        assert_eq!(
            types(json!({ "egress": [{}], "policyTypes": ["Egress"] })),
            ["Egress"]
        );
    }

    #[test]
    fn ports_are_of_tcp_unless_they_say_otherwise() {
        let policy = policy(json!({ "spec": {
            "ingress": [{ "ports": [{ "port": 80 }] }],
            "egress": [{ "ports": [{ "port": "dns", "protocol": "UDP" }, {}] }],
        }}));
        let spec = serde_json::to_value(policy.spec).unwrap();
        assert_eq!(
            spec["ingress"][0]["ports"],
            json!([{ "port": 80, "protocol": "TCP" }])
        );
        assert_eq!(
            spec["egress"][0]["ports"],
            json!([{ "port": "dns", "protocol": "UDP" }, { "protocol": "TCP" }])
        );
    }

    #[test]
    fn what_makes_sense_is_taken() {
        let spec = json!({
            "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web"] }] },
            "ingress": [
                { "from": [
                    { "podSelector": {}, "namespaceSelector": { "matchLabels": { "team": "a" } } },
                    { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
                    { "ipBlock": { "cidr": "2001:db8::/32", "except": ["2001:db8:1::/48"] } },
                ], "ports": [{ "port": 80, "endPort": 80 }, { "port": "http" }, { "protocol": "SCTP" }] },
                {},
            ],
            "policyTypes": ["Ingress", "Egress"],
        });
        assert_eq!(errors(spec), Vec::<String>::new());
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        let spec = json!({
            "podSelector": { "matchLabels": { "a b": "c" } },
            "ingress": [{ "from": [
                {},
                { "podSelector": {}, "ipBlock": { "cidr": "10.0.0.0/8" } },
                { "ipBlock": { "cidr": "10.0.0.0" } },
                { "ipBlock": { "cidr": "" } },
                { "namespaceSelector": { "matchExpressions": [{ "key": "a", "operator": "Near" }] } },
            ] }],
            "egress": [{
                "to": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.0.0.0/8", "11.0.0.0/16", "x"] } }],
                "ports": [
                    { "port": 0 },
                    { "port": 80, "endPort": 79 },
                    { "port": "http", "endPort": 90 },
                    { "endPort": 90 },
                    { "port": "no_port", "protocol": "ICMP" },
                ],
            }],
            "policyTypes": ["Ingress", "Sideways"],
        });
        let found = errors(spec);
        let name = "name part must consist of alphanumeric characters";
        assert!(
            found[0].starts_with("spec.podSelector.matchLabels: Invalid value: \"a b\": ")
                && found[0].contains(name),
            "{}",
            found[0]
        );
        let cidr = INVALID_CIDR;
        assert_eq!(
            found[1..],
            [
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
                &format!(
                    "spec.ingress[0].from[2].ipBlock.cidr: Invalid value: \"10.0.0.0\": {cidr}"
                ),
                "spec.ingress[0].from[3].ipBlock.cidr: Required value",
                "spec.ingress[0].from[4].namespaceSelector.matchExpressions[0].operator: Invalid value: \"Near\": not a valid selector operator",
                "spec.egress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.egress[0].ports[1].endPort: Invalid value: 79: must be greater than or equal to `port`",
                "spec.egress[0].ports[2].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
                "spec.egress[0].ports[3].endPort: Invalid value: 90: may not be specified when `port` is not specified",
                "spec.egress[0].ports[4].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.egress[0].ports[4].port: Invalid value: \"no_port\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                "spec.egress[0].to[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                &format!("spec.egress[0].to[0].ipBlock.except[2]: Invalid value: \"x\": {cidr}"),
                "spec.policyTypes[1]: Unsupported value: \"Sideways\": supported values: \"Egress\", \"Ingress\"",
            ]
        );
        assert_eq!(
            errors(json!({ "policyTypes": ["Ingress", "Egress", "Ingress"] })),
            [
                "spec.policyTypes: Invalid value: [\"Ingress\",\"Egress\",\"Ingress\"]: may not specify more than two policyTypes"
            ]
        );
    }

    #[test]
    fn a_change_of_the_spec_is_a_new_generation() {
        let mut old = policy(json!({ "metadata": { "name": "p" } }));
        old.prepare_create();
        let mut new = old.clone();
        new.prepare_update(&old);
        assert_eq!(new.metadata.generation, Some(1));
        new.spec.get_or_insert_default().egress = Some(vec![]);
        new.prepare_update(&old);
        assert_eq!(new.metadata.generation, Some(2));
    }

    #[test]
    fn the_row_shows_which_pods_it_is_about() {
        let row = |selector| {
            policy(json!({
                "metadata": { "name": "p" }, "spec": { "podSelector": selector },
            }))
            .row(0)
        };
        assert_eq!(row(json!({})), ["p", "<none>", "<unknown>"]);
        assert_eq!(
            row(json!({ "matchLabels": { "app": "web" } })),
            ["p", "app=web", "<unknown>"]
        );
    }
}
