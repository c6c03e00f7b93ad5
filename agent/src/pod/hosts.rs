//! The pod's `/etc/hosts`. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::spec::PodView;

/// Text of the hosts file of a pod with `addresses`. On the node's network it is the node's own, `of_node`. `domain` is the
/// cluster's.
pub(super) fn file(pod: &PodView, domain: &str, addresses: &[IpAddr], of_node: &str) -> String {
    let mut text = if pod.host_network() {
        let end = if of_node.ends_with('\n') || of_node.is_empty() {
            ""
        } else {
            "\n"
        };
        format!("# Managed by Kubernetes (host network).\n{of_node}{end}")
    } else {
        own(pod, domain, addresses)
    };
    for alias in pod.spec().host_aliases.iter().flatten() {
        let names = alias.hostnames.as_deref().unwrap_or_default().join(" ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}\t{names}", alias.ip);
    }
    text
}

/// The longest name that the kernel takes.
pub(super) const LONGEST_NAME: usize = 64;

/// The name of the machine that a pod's processes see: its host name, or its full one where it asks for that.
pub(super) fn machine_name(pod: &PodView, domain: &str) -> String {
    match pod.spec().set_hostname_as_fqdn {
        Some(true) => full_name(pod, domain).unwrap_or_else(|| pod.hostname()),
        _ => pod.hostname(),
    }
}

/// That of the headless service which governs the pod.
fn full_name(pod: &PodView, domain: &str) -> Option<String> {
    let (hostname, namespace) = (pod.hostname(), &pod.id.namespace);
    let subdomain = pod.spec().subdomain.as_deref();
    let subdomain = subdomain.filter(|subdomain| !subdomain.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{namespace}.svc.{domain}"))
}

fn own(pod: &PodView, domain: &str, addresses: &[IpAddr]) -> String {
    let mut text = "# Managed by Kubernetes.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let hostname = pod.hostname();
    let names = match full_name(pod, domain) {
        Some(full) => format!("{full} {hostname}"),
        None => hostname,
    };
    for address in addresses {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(spec: serde_json::Value, of_node: &str) -> String {
        let pod = json!({
            "metadata": {"name": "web-0", "namespace": "shop", "uid": "u"},
            "spec": spec,
        });
        let pod = PodView::new(serde_json::from_value(pod).unwrap()).unwrap();
        file(
            &pod,
            "cluster.local",
            &["10.244.1.2".parse().unwrap()],
            of_node,
        )
    }

    #[test]
    fn a_pod_of_a_headless_service_has_its_full_name() {
        let spec = json!({"containers": [], "subdomain": "web",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]});
        let text = text(spec, "198.51.100.1 node-only\n");
        let end = "10.244.1.2\tweb-0.web.shop.svc.cluster.local web-0\n192.0.2.9\ta b\n";
        assert!(text.ends_with(end), "{text}");
        assert!(!text.contains("node-only"));
    }

    #[test]
    fn on_the_nodes_network_the_nodes_entries_are_there() {
        let spec = json!({"containers": [], "hostNetwork": true,
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a"]}]});
        assert_eq!(
            text(spec, "198.51.100.1 registry"),
            "# Managed by Kubernetes (host network).\n198.51.100.1 registry\n192.0.2.9\ta\n"
        );
    }
}
