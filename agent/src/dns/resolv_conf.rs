//! resolv.conf: reading the node's, and composing a pod's from its `dnsPolicy` and `dnsConfig`.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::ops::Bound;
use std::path::Path;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSpec};

use crate::cluster::View;
use crate::network::ranges::gateway;

/// glibc and musl read no more name servers than this.
const MAX_NAMESERVERS: usize = 3;
/// What the Kubernetes API allows in `dnsConfig.searches`, applied to the result too.
const MAX_SEARCHES: usize = 32;
/// The same for the length of the search list, separating spaces included, in characters.
const MAX_SEARCH_CHARS: usize = 2048;

/// The name servers that systemd-resolved asks, where it runs.
const BEHIND_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What a resolv.conf says. Name servers with an interface scope (`fe80::1%eth0`) are not kept: the interface means
/// nothing in another network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<IpAddr>,
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads a file's text. Lines that mean nothing are passed over, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.nameservers
                        .extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                // The last `search` or `domain` line counts.
                Some("search" | "domain") => conf.searches = words.map(str::to_owned).collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// What the node's file says, for pods. Where that only leads to systemd-resolved on the node's loopback, which pods
    /// cannot reach, what it asks itself. A file that cannot be read says nothing.
    pub fn of_node(path: &Path) -> Self {
        Self::of_files(path, Path::new(BEHIND_RESOLVED))
    }

    fn of_files(path: &Path, behind: &Path) -> Self {
        let read = |path| ResolvConf::parse(&fs::read_to_string(path).unwrap_or_default());
        let conf = read(path);
        if conf.nameservers.is_empty() || !conf.nameservers.iter().all(IpAddr::is_loopback) {
            return conf;
        }
        Some(read(behind))
            .filter(|behind| !behind.nameservers.is_empty())
            .unwrap_or(conf)
    }

    fn render(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            let _ = writeln!(text, "search {}", self.searches.join(" "));
        }
        for address in &self.nameservers {
            let _ = writeln!(text, "nameserver {address}");
        }
        if !self.options.is_empty() {
            let _ = writeln!(text, "options {}", self.options.join(" "));
        }
        text
    }
}

/// What the node offers its pods.
#[derive(Clone, Debug)]
pub struct ClusterDns {
    /// Where cluster DNS listens, see [`servers`].
    pub addresses: Vec<IpAddr>,
    /// `cluster.local`, without a dot at either end.
    pub domain: String,
    /// The node's own resolv.conf.
    pub node: ResolvConf,
}

/// Where the pods of node `own` find cluster DNS: at their own node's gateway, and at that of the node that follows by name.
/// The second is asked only when the first is silent, which it is while the agent of the node restarts. Both are of the
/// family that comes first among the pods' addresses: whoever wants the other family's records gets them there, too.
pub fn servers(view: &View, own: &str, own_gateway: IpAddr) -> Vec<IpAddr> {
    let behind = (Bound::Excluded(own), Bound::Unbounded);
    let before = (Bound::Unbounded, Bound::Excluded(own));
    let others = view
        .nodes
        .range::<str, _>(behind)
        .chain(view.nodes.range::<str, _>(before));
    let fallback = others
        .flat_map(|(_, node)| &node.pod_cidrs)
        .find(|range| range.addr().is_ipv4() == own_gateway.is_ipv4())
        .map(|range| gateway(*range));
    [own_gateway].into_iter().chain(fallback).collect()
}

/// A pod's resolv.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodResolvConf {
    pub text: String,
    /// What did not fit the limits of resolvers and was left out; one sentence each, for an Event.
    pub warnings: Vec<String>,
}

/// Composes the resolv.conf of a pod in `namespace`.
pub fn for_pod(namespace: &str, spec: &PodSpec, cluster: &ClusterDns) -> PodResolvConf {
    let host_network = spec.host_network.unwrap_or(false);
    let mut conf = match spec.dns_policy.as_deref() {
        Some("None") => ResolvConf::default(),
        Some("Default") => cluster.node.clone(),
        Some("ClusterFirstWithHostNet") => cluster_first(namespace, cluster),
        // `ClusterFirst`, which is also what an absent policy means.
        _ if host_network => cluster.node.clone(),
        _ => cluster_first(namespace, cluster),
    };
    if let Some(own) = &spec.dns_config {
        merge(&mut conf, own);
    }
    let warnings = fit(&mut conf);
    PodResolvConf {
        text: conf.render(),
        warnings,
    }
}

fn cluster_first(namespace: &str, cluster: &ClusterDns) -> ResolvConf {
    let domain = &cluster.domain;
    let mut searches = vec![
        format!("{namespace}.svc.{domain}"),
        format!("svc.{domain}"),
        domain.clone(),
    ];
    add_missing(&mut searches, cluster.node.searches.iter().cloned());
    ResolvConf {
        nameservers: cluster.addresses.clone(),
        searches,
        // Five dots, so that `name.namespace.svc` and SRV names below it still walk the search list. A second is long for
        // a server on the own node: whoever loses a packet to an agent that restarts asks the next server soon.
        options: vec!["ndots:5".into(), "timeout:1".into(), "attempts:3".into()],
    }
}

/// Adds the pod's own `dnsConfig`; an option of the same name replaces the one that is there.
fn merge(conf: &mut ResolvConf, own: &PodDNSConfig) {
    let addresses = own
        .nameservers
        .iter()
        .flatten()
        .filter_map(|address| address.parse().ok());
    add_missing(&mut conf.nameservers, addresses);
    add_missing(&mut conf.searches, own.searches.iter().flatten().cloned());
    for option in own.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = match option.value.as_deref() {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        };
        let same_name = |there: &String| there.split(':').next() == Some(name.as_str());
        match conf.options.iter_mut().find(|there| same_name(there)) {
            Some(there) => *there = text,
            None => conf.options.push(text),
        }
    }
}

/// Cuts what resolvers would not read and says so.
fn fit(conf: &mut ResolvConf) -> Vec<String> {
    let mut warnings = Vec::new();
    if conf.nameservers.len() > MAX_NAMESERVERS {
        let left_out: Vec<_> = conf
            .nameservers
            .drain(MAX_NAMESERVERS..)
            .map(|ip| ip.to_string())
            .collect();
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted: {}",
            left_out.join(" ")
        ));
    }
    let mut chars = 0;
    let fitting = conf
        .searches
        .iter()
        .take(MAX_SEARCHES)
        .take_while(|search| {
            chars += search.len() + usize::from(chars > 0);
            chars <= MAX_SEARCH_CHARS
        })
        .count();
    if fitting < conf.searches.len() {
        let left_out: Vec<_> = conf.searches.drain(fitting..).collect();
        warnings.push(format!(
            "Search line limits were exceeded, some search paths have been omitted: {}",
            left_out.join(" ")
        ));
    }
    warnings
}

fn add_missing<T: PartialEq>(list: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for item in more {
        if !list.contains(&item) {
            list.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    use super::*;

    fn cluster() -> ClusterDns {
        ClusterDns {
            addresses: vec!["10.244.1.1".parse().unwrap()],
            domain: "cluster.local".into(),
            node: ResolvConf::parse(
                "# node\nnameserver 192.0.2.1\nsearch example.org\noptions edns0\n",
            ),
        }
    }

    fn text(spec: PodSpec) -> String {
        for_pod("shop", &spec, &cluster()).text
    }

    const CLUSTER: &str = "search shop.svc.cluster.local svc.cluster.local cluster.local example.org\n\
                           nameserver 10.244.1.1\noptions ndots:5 timeout:1 attempts:3\n";
    const NODE: &str = "search example.org\nnameserver 192.0.2.1\noptions edns0\n";

    fn policy(policy: &str, host_network: bool) -> PodSpec {
        PodSpec {
            dns_policy: Some(policy.into()),
            host_network: Some(host_network),
            ..PodSpec::default()
        }
    }

    #[test]
    fn each_policy_names_its_servers() {
        assert_eq!(text(PodSpec::default()), CLUSTER);
        assert_eq!(text(policy("ClusterFirst", false)), CLUSTER);
        assert_eq!(text(policy("ClusterFirst", true)), NODE);
        assert_eq!(text(policy("ClusterFirstWithHostNet", true)), CLUSTER);
        assert_eq!(text(policy("Default", false)), NODE);
        assert_eq!(text(policy("None", false)), "");
    }

    #[test]
    fn dns_config_is_added_without_repeats_and_its_options_win() {
        let option = |name: &str, value: Option<&str>| PodDNSConfigOption {
            name: Some(name.into()),
            value: value.map(Into::into),
        };
        let spec = PodSpec {
            dns_config: Some(PodDNSConfig {
                nameservers: Some(vec!["10.244.1.1".into(), "192.0.2.9".into()]),
                searches: Some(vec!["cluster.local".into(), "shop.example".into()]),
                options: Some(vec![option("ndots", Some("2")), option("rotate", None)]),
            }),
            ..PodSpec::default()
        };
        assert_eq!(
            text(spec),
            "search shop.svc.cluster.local svc.cluster.local cluster.local example.org shop.example\n\
             nameserver 10.244.1.1\nnameserver 192.0.2.9\noptions ndots:2 timeout:1 attempts:3 rotate\n"
        );
    }

    #[test]
    fn what_resolvers_would_not_read_is_left_out_aloud() {
        let mut spec = policy("None", false);
        spec.dns_config = Some(PodDNSConfig {
            nameservers: Some((1..=5).map(|n| format!("192.0.2.{n}")).collect()),
            searches: Some((0..40).map(|n| format!("s{n}.example")).collect()),
            options: None,
        });
        let made = for_pod("shop", &spec, &cluster());
        assert_eq!(made.text.matches("nameserver").count(), 3);
        assert_eq!(made.text.matches(".example").count(), 32);
        assert_eq!(made.warnings.len(), 2);
        assert!(
            made.warnings[0].ends_with("192.0.2.4 192.0.2.5"),
            "{:?}",
            made.warnings
        );
    }

    #[test]
    fn the_last_search_line_counts_and_nonsense_is_passed_over() {
        let conf = ResolvConf::parse(
            "search a b\n; remark\nnameserver nonsense\nnameserver fe80::1%eth0\nnameserver ::1\nsearch c\n",
        );
        assert_eq!(conf.searches, ["c"]);
        assert_eq!(conf.nameservers, ["::1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn behind_a_resolver_on_loopback_are_those_that_it_asks() {
        let dir = tempfile::tempdir().unwrap();
        let (path, behind) = (dir.path().join("own"), dir.path().join("behind"));
        let servers = || ResolvConf::of_files(&path, &behind).nameservers;
        let write = |path: &Path, text: &str| fs::write(path, text).unwrap();
        let is = |expected: &str| assert_eq!(servers(), [expected.parse::<IpAddr>().unwrap()]);
        assert!(servers().is_empty());
        write(&path, "nameserver 127.0.0.53\n");
        is("127.0.0.53");
        write(&behind, "nameserver 192.0.2.1\n");
        is("192.0.2.1");
        write(&path, "nameserver 198.51.100.1\n");
        is("198.51.100.1");
    }

    #[test]
    fn the_next_node_by_name_is_the_fallback() {
        let mut view = View::default();
        let mut node = |name: &str, ranges: &[&str]| {
            let node = crate::cluster::Node {
                pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                internal_ips: Vec::new(),
                zone: None,
            };
            view.nodes.insert(name.into(), std::sync::Arc::new(node));
        };
        node("a", &["10.244.1.0/24"]);
        node("b", &[]);
        node("c", &["fd00::/64", "10.244.3.0/24"]);
        let servers = |own: &str, n| servers(&view, own, [10, 244, n, 1].into());
        assert_eq!(
            servers("a", 1),
            ["10.244.1.1", "10.244.3.1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!(
            servers("c", 3),
            ["10.244.3.1", "10.244.1.1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        let v6 = "fd00:0:0:1::1".parse().unwrap();
        assert_eq!(
            super::servers(&view, "a", v6),
            [v6, "fd00::1".parse().unwrap()],
            "of the family that is asked for"
        );
        view.nodes.clear();
        assert_eq!(super::servers(&view, "a", v6).len(), 1);
    }
}
