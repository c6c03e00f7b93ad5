//! What the Node says of its parts, and when that is written.

use super::*;
use crate::housekeeping::signal::thresholds;
use crate::node::reserve::Reserved;

fn identity() -> Identity {
    Identity {
        name: "worker-1".into(),
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        labels: BTreeMap::new(),
        kubelet_port: 10250,
    }
}

fn facts() -> Facts {
    Facts {
        cpus: 4,
        memory_bytes: 8 << 30,
        storage_bytes: 100 << 30,
        kernel_version: "6.18.0".into(),
        architecture: "amd64",
        ..Facts::default()
    }
}

fn kept_back() -> KeptBack {
    let eviction = thresholds("memory.available<100Mi,nodefs.available<10%");
    KeptBack {
        reserved: Reserved::default(),
        eviction: eviction.unwrap(),
        max_pods: 110,
    }
}

#[test]
fn huge_pages_are_a_resource_of_their_own() {
    let facts = Facts {
        huge_pages: [(2 << 20, 1 << 30), (1 << 30, 0)].into(),
        ..facts()
    };
    let (whole, left) = (capacity(&facts, 110), allocatable(&facts, &kept_back()));
    for amounts in [&whole, &left] {
        assert_eq!(amounts["hugepages-2Mi"].0, "1Gi");
        assert_eq!(amounts["hugepages-1Gi"].0, "0");
    }
    assert_eq!(whole["memory"].0, "8Gi");
    assert_eq!(
        left["memory"].0, "7068Mi",
        "less the pages and the threshold"
    );
}

#[test]
fn what_becomes_of_the_node_is_told_once() {
    let status = |health: &Health, boot: &str| {
        let facts = Facts {
            boot_id: boot.into(),
            ..facts()
        };
        let now = Timestamp::UNIX_EPOCH;
        desired(
            &identity(),
            &facts,
            &kept_back(),
            health,
            &NodeStatus::default(),
            now,
        )
    };
    let reasons = |before: &NodeStatus, after: &NodeStatus| -> Vec<&str> {
        let told = happenings("n", before, after);
        told.into_iter().map(|(_, reason, _)| reason).collect()
    };
    let starting = status(&Health::default(), "a");
    let well = status(&healthy(), "a");
    assert_eq!(reasons(&starting, &well), ["NodeReady"]);
    assert_eq!(reasons(&well, &well), [""; 0]);
    let mut short = healthy();
    short.pressures.disk = true;
    assert_eq!(
        reasons(&well, &status(&short, "b")),
        ["Rebooted", "NodeHasDiskPressure"]
    );
    let (_, _, message) = happenings("n", &well, &starting).remove(0);
    assert_eq!(message, "Node n status is now: NodeNotReady");
}

#[test]
fn what_is_reserved_is_not_for_pods() {
    let kept = KeptBack {
        reserved: "cpu=500m,memory=924Mi,ephemeral-storage=10Gi"
            .parse()
            .unwrap(),
        ..kept_back()
    };
    let left = allocatable(&facts(), &kept);
    assert_eq!(left["cpu"].0, "3500m");
    assert_eq!(left["memory"].0, "7Gi");
    assert_eq!(left["ephemeral-storage"].0, (80_u64 << 30).to_string());
    assert_eq!(left["pods"].0, "110");
}

fn healthy() -> Health {
    Health {
        runtime: Part::Up,
        network: Part::Up,
        routes: None,
        runtime_version: "containerd://1.6.20".into(),
        handlers: Vec::new(),
        images: Vec::new(),
        pressures: Pressures::default(),
        is_shutting_down: false,
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn status(health: &Health, present: &NodeStatus, second: i64) -> NodeStatus {
    desired(
        &identity(),
        &facts(),
        &kept_back(),
        health,
        present,
        at(second),
    )
}

/// Type, status and reason of each condition.
fn told(status: &NodeStatus) -> Vec<String> {
    let conditions = status.conditions.iter().flatten();
    conditions
        .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.clone().unwrap()))
        .collect()
}

#[test]
fn a_healthy_node_says_so_in_upstreams_words() {
    let status = status(&healthy(), &NodeStatus::default(), 1000);
    assert_eq!(
        told(&status),
        [
            "Ready True KubeletReady",
            "MemoryPressure False KubeletHasSufficientMemory",
            "DiskPressure False KubeletHasNoDiskPressure",
            "PIDPressure False KubeletHasSufficientPID",
        ]
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["capacity"]["memory"], "8Gi");
    assert_eq!(json["allocatable"]["memory"], "8092Mi");
    assert_eq!(json["allocatable"]["pods"], "110");
    assert_eq!(json["addresses"][0]["address"], "192.0.2.1");
    assert_eq!(json["addresses"][1]["type"], "InternalIP");
    assert_eq!(json["addresses"][1]["address"], "2001:db8::1");
    assert_eq!(json["addresses"][2]["address"], "worker-1");
    assert_eq!(json["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
    assert!(
        json["nodeInfo"]["kubeletVersion"]
            .as_str()
            .unwrap()
            .starts_with("v1.34.")
    );
}

#[test]
fn quantities_are_written_as_the_api_server_writes_them() {
    assert_eq!(binary(24_579_456 * 1024), "24579456Ki");
    assert_eq!(
        [binary(0), binary(3 << 30), binary(1025)],
        ["0", "3Gi", "1Ki"]
    );
    assert_eq!(
        [decimal(96_636_764_160), decimal(5000)],
        ["96636764160", "5k"]
    );
}

#[test]
fn whether_other_nodes_pods_are_reached_is_a_condition_once_it_is_known() {
    let said = |routes| {
        let health = Health {
            routes,
            ..healthy()
        };
        let status = status(&health, &NodeStatus::default(), 1000);
        let found = condition_of(&status, "NetworkUnavailable").cloned();
        found.map(|it| {
            [
                it.status,
                it.reason.unwrap_or_default(),
                it.message.unwrap_or_default(),
            ]
        })
    };
    assert_eq!(said(None), None, "what the last agent said stays");
    let routed = ["False", "RouteCreated", "the other nodes' pods are routed"];
    assert_eq!(said(Some(Part::Up)).unwrap(), routed);
    let down = Some(Part::Down("no route".into()));
    assert_eq!(said(down).unwrap(), ["True", "NoRouteCreated", "no route"]);
}

#[test]
fn every_part_that_is_down_is_named() {
    let health = Health {
        runtime: Part::Down("connection refused".into()),
        network: Part::Down("no podCIDR yet".into()),
        ..healthy()
    };
    let status = status(&health, &NodeStatus::default(), 1000);
    let ready = condition_of(&status, "Ready").unwrap();
    assert_eq!(ready.status, "False");
    assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
    assert_eq!(
        ready.message.as_deref(),
        Some(
            "container runtime is not ready: connection refused; pod network is not ready: no podCIDR yet"
        )
    );
}

#[test]
fn a_node_that_shuts_down_is_not_ready() {
    let health = Health {
        is_shutting_down: true,
        ..healthy()
    };
    let status = status(&health, &NodeStatus::default(), 1000);
    let ready = condition_of(&status, "Ready").unwrap();
    let told = (
        ready.status.as_str(),
        ready.reason.as_deref(),
        ready.message.as_deref(),
    );
    let wanted = (
        "False",
        Some("KubeletNotReady"),
        Some("node is shutting down"),
    );
    assert_eq!(told, wanted);
}

#[test]
fn shortage_is_told() {
    let short = Health {
        pressures: Pressures {
            memory: true,
            disk: true,
            pid: true,
        },
        ..healthy()
    };
    assert_eq!(
        told(&status(&short, &NodeStatus::default(), 1000))[1..],
        [
            "MemoryPressure True KubeletHasInsufficientMemory",
            "DiskPressure True KubeletHasDiskPressure",
            "PIDPressure True KubeletHasInsufficientPID",
        ]
    );
}

#[test]
fn a_transition_is_dated_when_it_happens_and_not_again() {
    let first = status(&healthy(), &NodeStatus::default(), 1000);
    let later = status(&healthy(), &first, 2000);
    let ready = condition_of(&later, "Ready").unwrap();
    assert_eq!(ready.last_transition_time.as_ref().unwrap().0, at(1000));
    assert_eq!(ready.last_heartbeat_time.as_ref().unwrap().0, at(2000));

    let down = Health {
        network: Part::Down("gone".into()),
        ..healthy()
    };
    let changed = status(&down, &later, 3000);
    let ready = condition_of(&changed, "Ready").unwrap();
    assert_eq!(ready.last_transition_time.as_ref().unwrap().0, at(3000));
}

#[test]
fn only_a_change_or_time_causes_a_write() {
    let first = status(&healthy(), &NodeStatus::default(), 1000);
    assert!(needs_write(&NodeStatus::default(), &first, at(1000)));
    let soon = status(&healthy(), &first, 1010);
    assert!(!needs_write(&first, &soon, at(1010)));
    let late = status(&healthy(), &first, 1300);
    assert!(needs_write(&first, &late, at(1300)));
    let down = Health {
        runtime: Part::Down("gone".into()),
        ..healthy()
    };
    let changed = status(&down, &first, 1010);
    assert!(needs_write(&first, &changed, at(1010)));
    // The node lifecycle controller takes a silent node for lost; it has to be told otherwise.
    let mut lost = first.clone();
    for condition in lost.conditions.iter_mut().flatten() {
        condition.status = "Unknown".into();
    }
    assert!(needs_write(&lost, &soon, at(1010)));
}

#[test]
fn the_largest_images_are_told() {
    let image = |n: i64| Image {
        names: vec![format!("image-{n}")],
        size_bytes: n,
    };
    let health = Health {
        images: (0..60).map(image).collect(),
        ..healthy()
    };
    let status = status(&health, &NodeStatus::default(), 1000);
    let images = status.images.unwrap();
    assert_eq!(images.len(), 50);
    assert_eq!(images[0].size_bytes, Some(59));
}
