//! What the server serves, told to clients: `/api`, `/apis`, group and resource lists, and the same in one document.

use http::HeaderMap;
use serde_json::{Value, json};

use super::content;
use super::reviews::{self, Review};
use crate::resources::{self, Kind, Subresource};

const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

fn verbs(kind: &Kind) -> Vec<&'static str> {
    let mut verbs = VERBS.to_vec();
    verbs.retain(|verb| match *verb {
        "get" | "list" => true,
        "deletecollection" => kind.deletes_collections() && !kind.computed,
        _ => !kind.computed,
    });
    verbs
}

/// One served subresource.
pub(super) struct Sub {
    pub name: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// How a subresource of a kind is named, with the kind of its body and its verbs.
pub(super) fn sub(kind: &Kind, subresource: Subresource) -> Option<Sub> {
    let own = |name, verbs| Sub {
        name,
        group: kind.group,
        version: kind.version,
        kind: kind.kind,
        verbs,
    };
    let stream = |name, options| Sub {
        kind: options,
        ..own(name, &["create", "get"])
    };
    Some(match subresource {
        Subresource::Status => own("status", &["get", "patch", "update"]),
        Subresource::Approval => own("approval", &["get", "patch", "update"]),
        Subresource::Finalize => own("finalize", &["update"]),
        Subresource::EphemeralContainers => own("ephemeralcontainers", &["get", "patch", "update"]),
        Subresource::Resize => own("resize", &["get", "patch", "update"]),
        Subresource::Log => own("log", &["get"]),
        Subresource::Exec => stream("exec", "PodExecOptions"),
        Subresource::Attach => stream("attach", "PodAttachOptions"),
        Subresource::PortForward => stream("portforward", "PodPortForwardOptions"),
        Subresource::Proxy => Sub {
            kind: match kind.kind {
                "Node" => "NodeProxyOptions",
                "Pod" => "PodProxyOptions",
                _ => "ServiceProxyOptions",
            },
            ..own("proxy", &["create", "delete", "get", "patch", "update"])
        },
        Subresource::Scale => Sub {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: &["get", "patch", "update"],
        },
        Subresource::Binding => Sub {
            name: "binding",
            group: "",
            version: "v1",
            kind: "Binding",
            verbs: &["create"],
        },
        Subresource::Token => Sub {
            name: "token",
            group: "authentication.k8s.io",
            version: "v1",
            kind: "TokenRequest",
            verbs: &["create"],
        },
        Subresource::Eviction => Sub {
            name: "eviction",
            group: "policy",
            version: "v1",
            kind: "Eviction",
            verbs: &["create"],
        },
    })
}

fn subs(kind: &Kind) -> impl Iterator<Item = Sub> {
    kind.subresources.iter().filter_map(|s| sub(kind, *s))
}

/// The groups that are served, but for the core group, each with its versions.
fn groups() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let kinds = resources::kinds()
        .iter()
        .map(|kind| (kind.group, kind.version));
    let reviews = reviews::all()
        .iter()
        .map(|review| (review.form.group, review.form.version));
    for (name, version) in kinds.chain(reviews).filter(|(group, _)| !group.is_empty()) {
        match groups.iter_mut().find(|(group, _)| *group == name) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((name, vec![version])),
        }
    }
    groups
}

pub(super) fn kinds_of(group: &str, version: &str) -> Vec<&'static Kind> {
    resources::kinds()
        .iter()
        .filter(|k| k.group == group && k.version == version)
        .collect()
}

pub(super) fn reviews_of(group: &str, version: &str) -> Vec<&'static Review> {
    let all = reviews::all().iter();
    all.filter(|r| r.form.group == group && r.form.version == version)
        .collect()
}

/// `/api`.
pub fn core_versions(server_address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}],
    })
}

fn group_value(group: &str, versions: &[&str]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|v| json!({"groupVersion": format!("{group}/{v}"), "version": v}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

/// `/apis`.
pub fn group_list() -> Value {
    let groups: Vec<Value> = groups()
        .iter()
        .map(|(group, versions)| group_value(group, versions))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub fn group(name: &str) -> Option<Value> {
    let (group, versions) = groups().into_iter().find(|(group, _)| *group == name)?;
    let mut value = group_value(group, &versions);
    value["kind"] = json!("APIGroup");
    value["apiVersion"] = json!("v1");
    Some(value)
}

/// `/api/v1` and `/apis/GROUP/VERSION`.
pub fn resource_list(group: &str, version: &str) -> Option<Value> {
    let (kinds, reviews) = (kinds_of(group, version), reviews_of(group, version));
    if kinds.is_empty() && reviews.is_empty() {
        return None;
    }
    let mut all = Vec::new();
    for kind in kinds {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        all.push(entry);
        for sub in subs(kind) {
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.name),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": sub.kind,
                "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (group, version) {
                entry["group"] = json!(sub.group);
                entry["version"] = json!(sub.version);
            }
            all.push(entry);
        }
    }
    for review in reviews {
        all.push(json!({
            "name": review.plural,
            "singularName": review.singular,
            "namespaced": review.namespaced,
            "kind": review.form.kind,
            "verbs": ["create"],
        }));
    }
    if group.is_empty() {
        all.push(json!({"name": "bindings", "singularName": "binding", "namespaced": true, "kind": "Binding", "verbs": ["create"]}));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": all,
    }))
}

/// The version of aggregated discovery that the client wants first, if it wants it at all.
pub fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let first = content::accepted(headers).into_iter().find(|range| {
        range.essence == "application/json"
            && (range.parameter("as").is_empty()
                || (range.parameter("g") == "apidiscovery.k8s.io"
                    && matches!(range.parameter("v"), "v2" | "v2beta1")))
    })?;
    match first.parameter("v") {
        "v2" => Some("v2"),
        "v2beta1" => Some("v2beta1"),
        _ => None,
    }
}

/// `/api` (core) or `/apis` (all others) as one `APIGroupDiscoveryList`.
pub fn aggregated(core: bool, version: &str) -> Value {
    let groups = if core {
        vec![("", vec!["v1"])]
    } else {
        groups()
    };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(group, versions)| {
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|v| json!({"version": v, "resources": aggregated_resources(group, v), "freshness": "Current"}))
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let kind_value = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut all: Vec<Value> = kinds_of(group, version)
        .into_iter()
        .map(|kind| {
            let subresources: Vec<Value> = subs(kind)
                .map(|s| {
                    json!({
                        "subresource": s.name,
                        "responseKind": kind_value(s.group, s.version, s.kind),
                        "verbs": s.verbs,
                    })
                })
                .collect();
            let mut entry = json!({
                "resource": kind.plural,
                "responseKind": kind_value(kind.group, kind.version, kind.kind),
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": kind.singular,
                "verbs": verbs(kind),
            });
            if !kind.short_names.is_empty() {
                entry["shortNames"] = json!(kind.short_names);
            }
            if !kind.categories.is_empty() {
                entry["categories"] = json!(kind.categories);
            }
            if !subresources.is_empty() {
                entry["subresources"] = json!(subresources);
            }
            entry
        })
        .collect();
    for review in reviews_of(group, version) {
        all.push(json!({
            "resource": review.plural,
            "responseKind": kind_value(group, version, review.form.kind),
            "scope": if review.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": review.singular,
            "verbs": ["create"],
        }));
    }
    if group.is_empty() {
        all.push(json!({
            "resource": "bindings",
            "responseKind": kind_value("", "v1", "Binding"),
            "scope": "Namespaced",
            "singularResource": "binding",
            "verbs": ["create"],
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_same_resources() {
        let groups = aggregated(false, "v2");
        for group in groups["items"].as_array().expect("groups") {
            let name = group["metadata"]["name"].as_str().expect("a name");
            for version in group["versions"].as_array().expect("versions") {
                let list = resource_list(name, version["version"].as_str().expect("a version"))
                    .expect("a list");
                let plain: Vec<_> = list["resources"]
                    .as_array()
                    .expect("resources")
                    .iter()
                    .filter(|r| !r["name"].as_str().unwrap_or_default().contains('/'))
                    .map(|r| &r["name"])
                    .collect();
                let aggregated: Vec<_> = version["resources"]
                    .as_array()
                    .expect("resources")
                    .iter()
                    .map(|r| &r["resource"])
                    .collect();
                assert_eq!(plain, aggregated);
            }
        }
    }

    #[test]
    fn unknown_groups_are_not_there() {
        assert!(resource_list("nope", "v1").is_none());
        assert!(group("nope").is_none());
        assert!(group("apps").is_some());
    }

    #[test]
    fn aggregation_is_given_to_those_who_ask_first_for_it() {
        let accept = |text: &str| {
            let headers =
                HeaderMap::from_iter([(http::header::ACCEPT, text.parse().expect("a header"))]);
            aggregated_version(&headers)
        };
        assert_eq!(
            accept(
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
            ),
            Some("v2")
        );
        assert_eq!(accept("application/json"), None);
        assert_eq!(accept("*/*"), None);
    }
}
