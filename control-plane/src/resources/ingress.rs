//! Ingress: by which hosts and paths HTTP from outside reaches Services.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::TypedLocalObjectReference;
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, Ingress, IngressBackend, IngressLoadBalancerIngress, IngressRule, IngressSpec,
    IngressStatus,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    print,
    validate::{self, Path, names},
};

/// The older way to name a class.
pub const CLASS: &str = "kubernetes.io/ingress.class";
const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
const NOT_IN_PATHS: &[&str] = &["//", "/./", "/../", "%2f", "%2F"];
const NOT_AT_ENDS: &[&str] = &["/..", "/."];

impl Strategy for Ingress {
    const SINGULAR: &'static str = "ingress";
    const SHORT_NAMES: &'static [&'static str] = &["ing"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Class", "Who is to serve it."),
        Column::text("Hosts", "Hosts that it is about."),
        Column::text("Address", "Where it is served."),
        Column::text("Ports", "On which ports."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let annotated = self.metadata.annotations.as_ref();
        let annotated = annotated.and_then(|all| all.get(CLASS)).cloned();
        let hosts: Vec<String> = spec
            .rules
            .iter()
            .flatten()
            .filter_map(|r| r.host.clone())
            .collect();
        let status = self.status.clone().unwrap_or_default().load_balancer;
        let addresses: Vec<String> = status
            .iter()
            .flat_map(|status| status.ingress.iter().flatten())
            .filter_map(|one| one.ip.clone().or_else(|| one.hostname.clone()))
            .collect();
        let tls = spec.tls.as_ref().is_some_and(|tls| !tls.is_empty());
        vec![
            json!(print::name(&self.metadata)),
            json!(print::or_none(
                spec.ingress_class_name.or(annotated).as_deref()
            )),
            json!(print::first_three(&hosts, "*")),
            json!(addresses.join(",")),
            json!(if tls { "80, 443" } else { "80" }),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(IngressStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = of_spec(&Path::new("spec"), &spec);
        let annotated = self
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(CLASS));
        if let (None, Some(annotated), Some(class)) = (old, annotated, &spec.ingress_class_name)
            && annotated != class
        {
            errors.push(Path::new("annotations").child(CLASS).invalid(
                annotated.as_str(),
                "must match `ingressClassName` when both are specified",
            ));
        }
        let status = self.status.clone().unwrap_or_default().load_balancer;
        let path = Path::new("status").child("loadBalancer").child("ingress");
        for (index, one) in status
            .iter()
            .flat_map(|s| s.ingress.iter().flatten())
            .enumerate()
        {
            errors.extend(served_at(&path.index(index), one));
        }
        errors
    }
}

fn of_spec(path: &Path, spec: &IngressSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let rules = spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() && spec.default_backend.is_none() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.push(path.invalid(json!(spec.rules), why));
    }
    if let Some(default) = &spec.default_backend {
        errors.extend(backend(&path.child("defaultBackend"), default));
    }
    for (index, one) in rules.iter().enumerate() {
        errors.extend(rule(&path.child("rules").index(index), one));
    }
    for (index, tls) in spec.tls.iter().flatten().enumerate() {
        let path = path.child("tls").index(index);
        for (index, name) in tls.hosts.iter().flatten().enumerate() {
            errors.extend(host(&path.child("hosts").index(index), name));
        }
        if let Some(secret) = tls.secret_name.as_deref().filter(|name| !name.is_empty()) {
            let at = path.child("secretName");
            errors.extend(at.invalid_all(secret, names::dns1123_subdomain(secret, false)));
        }
    }
    if let Some(class) = &spec.ingress_class_name {
        let at = path.child("ingressClassName");
        errors.extend(at.invalid_all(class, names::dns1123_subdomain(class, false)));
    }
    errors
}

fn host(path: &Path, name: &str) -> Vec<FieldError> {
    let wrong = match name.contains('*') {
        true => names::wildcard_subdomain(name),
        false => names::dns1123_subdomain(name, false),
    };
    path.invalid_all(name, wrong)
}

fn no_address(path: &Path, name: &str) -> Option<FieldError> {
    let is_address = name.parse::<IpAddr>().is_ok();
    is_address.then(|| path.invalid(name, "must be a DNS name, not an IP address"))
}

fn rule(path: &Path, rule: &IngressRule) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(name) = rule.host.as_deref().filter(|name| !name.is_empty()) {
        let at = path.child("host");
        errors.extend(no_address(&at, name));
        errors.extend(host(&at, name));
    }
    if let Some(http) = &rule.http {
        let path = path.child("http").child("paths");
        if http.paths.is_empty() {
            errors.push(path.required(""));
        }
        for (index, one) in http.paths.iter().enumerate() {
            errors.extend(http_path(&path.index(index), one));
        }
    }
    errors
}

fn http_path(path: &Path, one: &HTTPIngressPath) -> Vec<FieldError> {
    let (at, text) = (path.child("path"), one.path.as_deref().unwrap_or_default());
    let mut errors = Vec::new();
    let absolute = text.starts_with('/');
    match one.path_type.as_str() {
        "" => {
            let at = path.child("pathType");
            return vec![at.required("pathType must be specified")];
        }
        "Exact" | "Prefix" => {
            if !absolute {
                errors.push(at.invalid(text, "must be an absolute path"));
            }
            for sequence in NOT_IN_PATHS.iter().filter(|s| text.contains(**s)) {
                errors.push(at.invalid(text, format!("must not contain '{sequence}'")));
            }
            for end in NOT_AT_ENDS.iter().filter(|end| text.ends_with(**end)) {
                errors.push(at.invalid(text, format!("cannot end with '{end}'")));
            }
        }
        "ImplementationSpecific" => {
            if !text.is_empty() && !absolute {
                errors.push(at.invalid(text, "must be an absolute path"));
            }
        }
        other => errors.push(path.child("pathType").unsupported(other, PATH_TYPES)),
    }
    errors.extend(backend(&path.child("backend"), &one.backend));
    errors
}

fn backend(path: &Path, backend: &IngressBackend) -> Vec<FieldError> {
    let service = match (&backend.resource, &backend.service) {
        (Some(_), Some(_)) => {
            return vec![path.invalid("", "cannot set both resource and service backends")];
        }
        (Some(resource), None) => return reference(&path.child("resource"), resource),
        (None, None) => return vec![path.invalid("", "resource or service backend is required")],
        (None, Some(service)) => service,
    };
    let at = path.child("service");
    let mut errors = match service.name.as_str() {
        "" => vec![at.child("name").required("")],
        name => at
            .child("name")
            .invalid_all(name, names::dns1035_label(name, false)),
    };
    let port = service.port.clone().unwrap_or_default();
    let name = port.name.as_deref().unwrap_or_default();
    match (name, port.number.unwrap_or_default()) {
        ("", 0) => errors.push(path.required("port name or number is required")),
        ("", number) => {
            let at = at.child("port").child("number");
            errors.extend(validate::port_number(&at, number));
        }
        (name, 0) => {
            let at = at.child("port").child("name");
            errors.extend(at.invalid_all(name, names::port_name(name)));
        }
        _ => errors.push(path.invalid("", "cannot set both port name & port number")),
    }
    errors
}

fn reference(path: &Path, to: &TypedLocalObjectReference) -> Vec<FieldError> {
    typed(path, to.api_group.as_deref(), &to.kind, &to.name)
}

/// What is wrong with group, kind and name of what is referred to.
pub(super) fn typed(path: &Path, group: Option<&str>, kind: &str, name: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(group) = group {
        let at = path.child("apiGroup");
        errors.extend(at.invalid_all(group, names::dns1123_subdomain(group, false)));
    }
    for (field, text) in [("kind", kind), ("name", name)] {
        let at = path.child(field);
        match text {
            "" => errors.push(at.required("")),
            text => errors.extend(at.invalid_all(text, names::path_segment(text, false))),
        }
    }
    errors
}

fn served_at(path: &Path, one: &IngressLoadBalancerIngress) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(ip) = one.ip.as_deref().filter(|ip| !ip.is_empty()) {
        errors.extend(validate::ip(&path.child("ip"), ip));
    }
    if let Some(name) = one.hostname.as_deref().filter(|name| !name.is_empty()) {
        let at = path.child("hostname");
        errors.extend(at.invalid_all(name, names::dns1123_subdomain(name, false)));
        errors.extend(no_address(&at, name));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(spec: Value) -> Vec<String> {
        let ingress: Ingress =
            serde_json::from_value(json!({"metadata": {"name": "i"}, "spec": spec})).unwrap();
        let errors = Strategy::validate(&ingress, None);
        errors.iter().map(ToString::to_string).collect()
    }

    fn to(port: Value) -> Value {
        json!({"service": {"name": "web", "port": port}})
    }

    #[test]
    fn an_ingress_leads_somewhere() {
        assert_eq!(
            texts(json!({})),
            ["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]
        );
        let path =
            json!({"path": "/a", "pathType": "Prefix", "backend": to(json!({"number": 80}))});
        let good = json!({
            "rules": [{"host": "*.example.com", "http": {"paths": [path]}}],
            "tls": [{"hosts": ["a.example.com"], "secretName": "s"}],
        });
        assert_eq!(texts(good), Vec::<String>::new());
    }

    #[test]
    fn nonsense_is_refused_where_it_stands() {
        let paths = json!([
            {"path": "a", "pathType": "Exact", "backend": to(json!({"name": "http", "number": 80}))},
            {"path": "/a/../b/.", "pathType": "Prefix", "backend": to(json!({}))},
            {"pathType": "Guess", "backend": {}},
            {"backend": {}},
        ]);
        assert_eq!(
            texts(json!({"rules": [{"host": "10.0.0.1", "http": {"paths": paths}}]})),
            [
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
                "spec.rules[0].http.paths[1].path: Invalid value: \"/a/../b/.\": must not contain '/../'",
                "spec.rules[0].http.paths[1].path: Invalid value: \"/a/../b/.\": cannot end with '/.'",
                "spec.rules[0].http.paths[1].backend: Required value: port name or number is required",
                "spec.rules[0].http.paths[2].pathType: Unsupported value: \"Guess\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"",
                "spec.rules[0].http.paths[2].backend: Invalid value: \"\": resource or service backend is required",
                "spec.rules[0].http.paths[3].pathType: Required value: pathType must be specified",
            ]
        );
    }

    #[test]
    fn the_row_shows_hosts_and_addresses() {
        let ingress: Ingress = serde_json::from_value(json!({
            "metadata": {"name": "i", "annotations": {CLASS: "old"}},
            "spec": {"rules": [{"host": "a"}, {"host": "b"}, {}], "tls": [{}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"hostname": "lb"}]}},
        }))
        .unwrap();
        assert_eq!(
            ingress.row(0),
            ["i", "old", "a,b", "10.0.0.1,lb", "80, 443", "<unknown>"]
        );
    }
}
