//! Host ports: which a pod asks for, whether they are free, and what the proxy is told of pods that run.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Container, ContainerPort};

use super::observed::Observed;
use super::spec::{PodView, is_sidecar};
use crate::cluster::{Cluster, HostPort, HostPorts, ObjectKey, Protocol};
use crate::runtime::{ContainerState, PodRef};

/// The reason of a pod whose host ports another one has, and what says so: upstream's words.
pub const NODE_PORTS: &str = "NodePorts";
pub(super) const NOT_FREE: &str = "Predicate NodePorts failed";

/// The containers that run beside each other, with their ports. One that ends before the others begin has none.
fn with_ports(pod: &PodView) -> impl Iterator<Item = (&Container, &ContainerPort)> {
    let sidecars = pod.init_containers().iter().filter(|it| is_sidecar(it));
    let containers = sidecars.chain(pod.containers());
    containers.flat_map(|container| {
        let ports = container.ports.iter().flatten();
        ports.map(move |port| (container, port))
    })
}

/// A port of the container as a host port, if it is to be one. What cannot be read was refused by the API server.
fn host_port(port: &ContainerPort) -> Option<HostPort> {
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    Some(HostPort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some("SCTP") => Protocol::Sctp,
            Some(_) => return None,
        },
        address: match port.host_ip.as_deref() {
            None | Some("") => None,
            Some(ip) => Some(ip.parse().ok()?),
        },
        port: number(port.host_port?)?,
        container_port: number(port.container_port)?,
    })
}

/// Whether two pods want one port: on equal addresses, or where one of them wants every address. As upstream's scheduler
/// and kubelet, those on the node's network count, too.
pub(super) fn clash(one: &PodView, other: &PodView) -> bool {
    let any = |address: Option<IpAddr>| address.is_none_or(|ip| ip.is_unspecified());
    let clashes = |a: &HostPort, b: &HostPort| {
        (a.port, a.protocol) == (b.port, b.protocol)
            && (a.address == b.address || any(a.address) || any(b.address))
    };
    let ports = |pod| with_ports(pod).filter_map(|(_, port)| host_port(port));
    ports(one).any(|a| ports(other).any(|b| clashes(&a, &b)))
}

/// The host ports of the containers that run. Nothing for a pod on the node's network, whose ports are there already.
fn of_running(pod: &PodView, observed: &Observed, addresses: Vec<IpAddr>) -> Option<HostPorts> {
    if pod.host_network() || addresses.is_empty() {
        return None;
    }
    let runs = |container: &Container| {
        let latest = observed.latest(&container.name);
        latest.is_some_and(|it| matches!(it.state, ContainerState::Running { .. }))
    };
    let ports = with_ports(pod).filter(|(container, _)| runs(container));
    let ports: Vec<HostPort> = ports.filter_map(|(_, port)| host_port(port)).collect();
    let made = pod.object.metadata.creation_timestamp.as_ref();
    (!ports.is_empty()).then(|| HostPorts {
        addresses,
        ports,
        created: made.map_or(0, |made| made.0.as_second()),
        uid: pod.id.uid.as_str().into(),
    })
}

/// Tells the proxy.
pub(super) struct Teller {
    cluster: Cluster,
    /// Pods of whom nothing was told yet, by uid; `None` until it is known which pods there are.
    awaited: Mutex<Option<BTreeSet<String>>>,
    /// Until then, those of whom something was told.
    told: Mutex<BTreeSet<String>>,
}

impl Teller {
    pub(super) fn new(cluster: Cluster) -> Self {
        let (awaited, told) = (Mutex::default(), Mutex::default());
        Self {
            cluster,
            awaited,
            told,
        }
    }

    /// What of a pod runs now.
    pub(super) fn tell(&self, pod: &PodView, observed: &Observed, addresses: Vec<IpAddr>) {
        let ports = of_running(pod, observed, addresses);
        self.set(&pod.id, ports);
    }

    /// Nothing of the pod is left.
    pub(super) fn gone(&self, pod: &PodRef) {
        self.set(pod, None);
    }

    fn set(&self, pod: &PodRef, ports: Option<HostPorts>) {
        let key = ObjectKey::of_pod(&pod.namespace, &pod.name);
        // Most pods have none, and say so often.
        if ports.is_some() || self.cluster.view().host_ports.contains_key(&key) {
            self.put(key, &pod.uid, ports);
        }
        match &mut *lock(&self.awaited) {
            Some(awaited) => {
                awaited.remove(&pod.uid);
            }
            None => {
                lock(&self.told).insert(pod.uid.clone());
            }
        }
        self.tell_whole();
    }

    fn put(&self, key: ObjectKey, uid: &str, ports: Option<HostPorts>) {
        self.cluster.update(|view| {
            // A pod of the same name may have come after it.
            let holder = view.host_ports.get(&key);
            let is_others = holder.is_some_and(|holder| *holder.uid != *uid);
            let change = match (is_others, ports) {
                (true, None) => None,
                (_, ports) => view.set_host_ports(key, ports),
            };
            change.into_iter().collect()
        });
    }

    /// These are all pods of the node, by uid. Once each of them was told of, what is not there has gone.
    pub(super) fn expect(&self, pods: impl Iterator<Item = String>) {
        lock(&self.awaited).get_or_insert_with(|| {
            let told = std::mem::take(&mut *lock(&self.told));
            pods.filter(|uid| !told.contains(uid)).collect()
        });
        self.tell_whole();
    }

    fn tell_whole(&self) {
        let awaited = lock(&self.awaited);
        if awaited.as_ref().is_some_and(BTreeSet::is_empty) && !self.cluster.view().host_ports_known
        {
            self.cluster
                .update(|view| view.set_host_ports_known().into_iter().collect());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one call that cannot stop half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, spec: Value) -> PodView {
        let object = json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
            "spec": spec,
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn with(name: &str, port: Value) -> PodView {
        pod(
            name,
            json!({"containers": [{"name": "main", "ports": [port]}]}),
        )
    }

    fn running(name: &str) -> Observed {
        let mut observed = Observed::default();
        observed.put(crate::runtime::Container {
            id: name.into(),
            pod: pod("a", json!({"containers": []})).id,
            name: name.into(),
            attempt: 0,
            streak: 0,
            spec_hash: String::new(),
            image: String::new(),
            image_id: String::new(),
            given: String::new(),
            stop_signal: 15,
            user: None,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            earlier_boot: false,
            hook_due: false,
            state: ContainerState::Running { pid: 1 },
        });
        observed
    }

    fn ip() -> Vec<IpAddr> {
        vec!["10.244.1.7".parse().unwrap()]
    }

    #[test]
    fn two_pods_clash_on_one_port_of_one_address() {
        let at = |port: Value| with("a", port);
        let tcp = |ip: &str| at(json!({"containerPort": 80, "hostPort": 8081, "hostIP": ip}));
        let udp = at(json!({"containerPort": 80, "hostPort": 8081, "protocol": "UDP"}));
        let none = at(json!({"containerPort": 8081}));
        assert!(clash(&tcp(""), &tcp("")));
        assert!(clash(&tcp("0.0.0.0"), &tcp("192.0.2.7")));
        assert!(clash(&tcp("192.0.2.7"), &tcp("192.0.2.7")));
        assert!(!clash(&tcp("192.0.2.7"), &tcp("127.0.0.1")));
        assert!(!clash(&tcp(""), &udp) && !clash(&tcp(""), &none));
        let port = json!({"containerPort": 9, "hostPort": 8081});
        let init = pod(
            "a",
            json!({"initContainers": [{"name": "i", "ports": [port]}], "containers": []}),
        );
        assert!(!clash(&init, &tcp("")), "it ends before the others begin");
        let sidecar = pod(
            "a",
            json!({"initContainers": [{"name": "i", "restartPolicy": "Always", "ports": [port]}],
                "containers": []}),
        );
        assert!(clash(&sidecar, &tcp("")));
    }

    #[test]
    fn a_container_that_runs_has_its_host_ports_and_no_other() {
        let port = json!({"name": "web", "containerPort": 80, "hostPort": 8081});
        let spec = json!({"containers": [
            {"name": "main", "ports": [port, {"containerPort": 81}]},
            {"name": "other", "ports": [{"containerPort": 82, "hostPort": 8082}]},
        ]});
        let both = pod("a", spec.clone());
        let ports = of_running(&both, &running("main"), ip()).unwrap().ports;
        assert_eq!(
            ports.iter().map(|it| it.port).collect::<Vec<_>>(),
            [8081],
            "the other does not run"
        );
        assert_eq!(of_running(&both, &Observed::default(), ip()), None);
        assert_eq!(of_running(&both, &running("main"), vec![]), None);
        let mut on_node = spec;
        on_node["hostNetwork"] = true.into();
        let on_node = pod("a", on_node);
        assert_eq!(of_running(&on_node, &running("main"), ip()), None);
    }

    #[test]
    fn nothing_is_taken_for_gone_before_every_pod_was_heard_of() {
        let cluster = Cluster::default();
        let teller = Teller::new(cluster.clone());
        let port = json!({"containerPort": 80, "hostPort": 8081});
        let (early, late) = (with("early", port.clone()), with("late", port));
        let known = || cluster.view().host_ports_known;
        teller.tell(&early, &running("main"), ip());
        assert!(!known(), "there may be others");
        teller.expect([&early, &late].map(|pod| pod.id.uid.clone()).into_iter());
        assert!(!known(), "one has said nothing");
        teller.tell(&late, &running("main"), ip());
        assert!(known());
        assert_eq!(cluster.view().host_ports.len(), 2);
        teller.gone(&late.id);
        assert_eq!(cluster.view().host_ports.len(), 1);
    }

    #[test]
    fn a_pods_end_takes_nothing_from_the_next_of_its_name() {
        let cluster = Cluster::default();
        let teller = Teller::new(cluster.clone());
        let port = json!({"containerPort": 80, "hostPort": 8081});
        let (old, mut new) = (with("web-0", port.clone()), with("web-0", port));
        new.id.uid = "new".to_owned();
        teller.tell(&old, &running("main"), ip());
        teller.tell(&new, &running("main"), ip());
        teller.gone(&old.id);
        assert_eq!(cluster.view().host_ports.len(), 1);
        teller.gone(&new.id);
        assert!(cluster.view().host_ports.is_empty());
    }
}
