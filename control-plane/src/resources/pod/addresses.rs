//! A pod's addresses as its status tells them: one of each family, the primary one first.

use std::collections::HashSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodIP, PodStatus};
use serde_json::json;

use crate::resources::FieldError;
use crate::resources::validate::Path;

/// `podIP` is the first of `podIPs`; where a client says otherwise, it knows only the former.
pub fn default(status: &mut PodStatus) {
    let first = status.pod_ips.iter().flatten().next().map(|ip| &ip.ip);
    match (&status.pod_ip, first) {
        (None, Some(first)) => status.pod_ip = Some(first.clone()),
        (Some(one), first) if !one.is_empty() && first != Some(one) => {
            status.pod_ips = Some(vec![PodIP { ip: one.clone() }]);
        }
        _ => {}
    }
}

pub fn errors(path: &Path, status: &PodStatus) -> Vec<FieldError> {
    let pods = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let hosts = status.host_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut errors = of_list(&path.child("podIPs"), &pods.collect::<Vec<_>>());
    errors.extend(of_list(&path.child("hostIPs"), &hosts.collect::<Vec<_>>()));
    errors
}

fn of_list(path: &Path, addresses: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut families = HashSet::new();
    let mut more_than_one = false;
    for (index, text) in addresses.iter().enumerate() {
        match text.parse::<IpAddr>() {
            Ok(address) => more_than_one |= !families.insert(address.is_ipv4()),
            Err(_) => errors.push(path.index(index).invalid(
                *text,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )),
        }
    }
    if more_than_one {
        let why = "may specify no more than one IP for each IP family";
        errors.push(path.invalid(json!(addresses), why));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pod_ip: Option<&str>, pod_ips: &[&str]) -> PodStatus {
        let ips = pod_ips.iter().map(|ip| PodIP { ip: (*ip).into() });
        PodStatus {
            pod_ip: pod_ip.map(str::to_owned),
            pod_ips: (!pod_ips.is_empty()).then(|| ips.collect()),
            ..PodStatus::default()
        }
    }

    #[test]
    fn one_field_follows_from_the_other() {
        for (one, all, then_one, then_all) in [
            (
                None,
                vec!["fd00::2", "10.0.0.2"],
                Some("fd00::2"),
                vec!["fd00::2", "10.0.0.2"],
            ),
            (Some("10.0.0.2"), vec![], Some("10.0.0.2"), vec!["10.0.0.2"]),
            (
                Some("10.0.0.2"),
                vec!["10.0.0.3"],
                Some("10.0.0.2"),
                vec!["10.0.0.2"],
            ),
            (None, vec![], None, vec![]),
        ] {
            let mut given = status(one, &all);
            default(&mut given);
            assert_eq!(given, status(then_one, &then_all));
        }
    }

    #[test]
    fn there_is_one_address_of_each_family() {
        let texts = |ips: &[&str]| -> Vec<String> {
            let errors = errors(&Path::new("status"), &status(None, ips));
            errors.iter().map(ToString::to_string).collect()
        };
        assert!(texts(&["10.0.0.2", "fd00::2"]).is_empty());
        let refused = texts(&["10.0.0.2", "10.0.0.3"]);
        assert!(
            refused[0].ends_with("may specify no more than one IP for each IP family"),
            "{refused:?}"
        );
        assert!(texts(&["10.0.0"])[0].starts_with("status.podIPs[0]: Invalid value"));
    }
}
