//! What API servers that share a store may not give twice: Services' addresses and node ports, and nodes' ranges of pod
//! addresses. Each is a key beside the objects' keys, whose value names the holder. It is taken and given back in the same
//! commit as the holder is written, so the two never disagree, and of two servers that give the same thing one is refused.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde_json::Value;

use super::service_ip::{Holding, holding_of};
use crate::resources::Kind;
use crate::store::{Entry, Expect, Range, Store, StoreError, Write};

const PREFIX: &str = "/registry/kernelet/reserved/";
const ADDRESSES: &str = "/registry/kernelet/reserved/addresses/";
const NODE_PORTS: &str = "/registry/kernelet/reserved/node-ports/";
const POD_RANGES: &str = "/registry/kernelet/reserved/pod-ranges/";

/// The kinds whose objects hold something, by the prefix that they are stored under.
const HOLDERS: [(&str, &str); 2] = [
    ("services", "/registry/services/"),
    ("nodes", "/registry/nodes/"),
];

/// Whether objects of this kind hold anything.
pub fn concern(kind: &Kind) -> bool {
    kind.group.is_empty() && HOLDERS.iter().any(|(plural, _)| *plural == kind.plural)
}

/// The writes that go with one of an object: `old` is what is stored, None for a creation; `new` None for a deletion.
pub async fn writes(
    store: &dyn Store,
    kind: &Kind,
    holder: &str,
    old: Option<&Value>,
    new: Option<&Value>,
) -> Result<Vec<Write>, StoreError> {
    if !concern(kind) {
        return Ok(Vec::new());
    }
    let of = |object: Option<&Value>| object.map(|it| keys(kind.plural, it)).unwrap_or_default();
    let (before, after) = (of(old), of(new));
    let take = after.difference(&before);
    let mut writes: Vec<Write> = take
        .map(|key| Write::put(key, holder.to_owned(), Expect::Absent))
        .collect();
    for key in before.difference(&after) {
        // Somebody else's only where it was given twice before it was kept here.
        if let (Some(entry), _) = store.get(key).await?
            && entry.value == holder.as_bytes()
        {
            writes.push(Write::delete(key, entry.modified));
        }
    }
    Ok(writes)
}

/// Who holds an object's things: `namespace/name`, or the name alone.
pub fn holder(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        return name.to_owned();
    }
    format!("{namespace}/{name}")
}

/// The range of pod addresses that a key stands for.
pub fn pod_range(key: &str) -> Option<IpNet> {
    let text = key.strip_prefix(POD_RANGES)?;
    text.replace('-', "/").parse().ok()
}

/// The address or port of Services that a key stands for.
pub(super) fn of_service(key: &str) -> Option<Holding> {
    let mut holding = Holding::default();
    if let Some(text) = key.strip_prefix(ADDRESSES) {
        holding.addresses.push(text.parse().ok()?);
    } else {
        let (protocol, number) = key.strip_prefix(NODE_PORTS)?.split_once('/')?;
        let protocols = ["TCP", "UDP", "SCTP"];
        let protocol = protocols.into_iter().find(|it| *it == protocol)?;
        holding.ports.push((number.parse().ok()?, protocol));
    }
    Some(holding)
}

/// Makes the reservations those that the stored objects hold: they were stored by a version that kept none, perhaps.
pub async fn repair(store: &dyn Store) -> Result<(), StoreError> {
    let reserved = store.range(PREFIX, None, 0, None).await?;
    let mut held = BTreeMap::new();
    for (plural, prefix) in HOLDERS {
        let objects = store
            .range(prefix, None, 0, Some(reserved.revision))
            .await?;
        note_held(&mut held, plural, prefix, &objects);
    }
    for write in repairs(&held, &reserved.entries) {
        match store.commit(vec![write]).await {
            // Another server knows better.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Notes the holder of each key. The first to have it keeps it.
fn note_held(held: &mut BTreeMap<String, String>, plural: &str, prefix: &str, objects: &Range) {
    for entry in &objects.entries {
        let Ok(object) = serde_json::from_slice::<Value>(&entry.value) else {
            continue;
        };
        let holder = entry.key.strip_prefix(prefix).unwrap_or_default();
        for key in keys(plural, &object) {
            held.entry(key).or_insert_with(|| holder.to_owned());
        }
    }
}

/// What makes the `reserved` those that are `held`, at one revision.
fn repairs(held: &BTreeMap<String, String>, reserved: &[Entry]) -> Vec<Write> {
    let present: BTreeMap<&str, &Entry> = reserved
        .iter()
        .map(|entry| (entry.key.as_str(), entry))
        .collect();
    let stale = reserved
        .iter()
        .filter(|entry| !held.contains_key(&entry.key))
        .map(|entry| Write::delete(entry.key.as_str(), entry.modified));
    let mended = held.iter().filter_map(|(key, holder)| {
        let expect = match present.get(key.as_str()) {
            None => Expect::Absent,
            Some(entry) if entry.value != holder.as_bytes() => Expect::Modified(entry.modified),
            Some(_) => return None,
        };
        Some(Write::put(key.as_str(), holder.clone(), expect))
    });
    stale.chain(mended).collect()
}

/// The keys of what an object holds.
fn keys(plural: &str, object: &Value) -> BTreeSet<String> {
    let spec = &object["spec"];
    match plural {
        "services" => {
            let holding = holding_of(spec);
            let addresses = holding
                .addresses
                .iter()
                .map(|ip| format!("{ADDRESSES}{ip}"));
            let ports = holding.ports.iter();
            let ports = ports.map(|(number, protocol)| format!("{NODE_PORTS}{protocol}/{number}"));
            addresses.chain(ports).collect()
        }
        "nodes" => {
            let ranges = spec["podCIDRs"].as_array().into_iter().flatten();
            let ranges = ranges.chain([&spec["podCIDR"]]);
            ranges
                .filter_map(|text| text.as_str()?.parse::<IpNet>().ok())
                // A slash would end the part of the key.
                .map(|range| format!("{POD_RANGES}{}-{}", range.network(), range.prefix_len()))
                .collect()
        }
        _ => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::store::Revision;

    fn entry(key: &str, holder: &str, modified: u64) -> Entry {
        Entry {
            key: key.to_owned(),
            value: holder.to_owned().into(),
            created: Revision(modified),
            modified: Revision(modified),
        }
    }

    #[test]
    fn keys_name_what_is_held() {
        let service = json!({"spec": {
            "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9", "fd00::9"],
            "healthCheckNodePort": 30001,
            "ports": [{"port": 1, "nodePort": 30000}, {"port": 2, "nodePort": 30000, "protocol": "UDP"}, {"port": 3}],
        }});
        let found: Vec<_> = keys("services", &service).into_iter().collect();
        assert_eq!(
            found,
            [
                "/registry/kernelet/reserved/addresses/10.96.0.9",
                "/registry/kernelet/reserved/addresses/fd00::9",
                "/registry/kernelet/reserved/node-ports/TCP/30000",
                "/registry/kernelet/reserved/node-ports/TCP/30001",
                "/registry/kernelet/reserved/node-ports/UDP/30000",
            ]
        );
        let mut all = Holding::default();
        for key in &found {
            let one = of_service(key).expect("it is a service's");
            all.addresses.extend(one.addresses);
            all.ports.extend(one.ports);
        }
        let mut holding = holding_of(&service["spec"]);
        holding.ports.sort_unstable();
        all.ports.sort_unstable();
        assert_eq!(all, holding);

        let node = json!({"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}});
        let found: Vec<_> = keys("nodes", &node).into_iter().collect();
        let ranges: Vec<_> = found.iter().filter_map(|key| pod_range(key)).collect();
        let texts: Vec<_> = ranges.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.244.1.0/24", "fd00:1::/64"]);
        for nothing in ["None", ""] {
            let headless = json!({"spec": {"clusterIP": nothing, "clusterIPs": [nothing]}});
            assert!(keys("services", &headless).is_empty());
        }
    }

    #[test]
    fn repair_takes_what_is_missing_and_gives_back_what_nobody_holds() {
        let held = [("a", "x"), ("b", "x"), ("c", "y")];
        let held = held.map(|(key, holder)| (key.to_owned(), holder.to_owned()));
        let reserved = [
            entry("a", "x", 5),
            entry("c", "gone", 6),
            entry("d", "gone", 7),
        ];
        let expected = vec![
            Write::delete("d", Revision(7)),
            Write::put("b", "x", Expect::Absent),
            Write::put("c", "y", Expect::Modified(Revision(6))),
        ];
        assert_eq!(repairs(&held.into(), &reserved), expected);
    }
}
