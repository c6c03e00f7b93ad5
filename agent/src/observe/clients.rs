//! Whose network namespace a cookie names. The programs know clients by it.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agent_ebpf::abi::{EVENT_BY_POD, FlowEvent};

use crate::cluster::ObjectKey;
use crate::dataplane::netns_cookie;
use crate::pod::{PodSummary, PodTable};

/// The network namespace of the agent itself, and of pods on the host's network.
const HOST: &str = "/proc/self/ns/net";
/// Between two looks for namespaces that are new.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who dials.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Client {
    Pod(ObjectKey),
    /// A process of the node, or a pod on its network.
    Host,
    /// The cookie of a network namespace that is no pod's of this node, or was.
    Other(u64),
    /// Who has no socket on this node.
    Outside(SocketAddr),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Client::Pod(pod) => pod.fmt(f),
            Client::Host => f.write_str("host"),
            Client::Other(cookie) => write!(f, "netns {cookie}"),
            Client::Outside(address) => address.fmt(f),
        }
    }
}

/// The network namespaces of this node's pods. Clones share it.
#[derive(Clone, Debug)]
pub struct Clients(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Directory of the pins of the pods' network namespaces; each has the pod's uid for a name.
    pins: PathBuf,
    pods: PodTable,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    clients: HashMap<u64, Client>,
    /// By uid.
    cookies: HashMap<String, u64>,
    looked: Option<Instant>,
}

impl Clients {
    /// The pods of `pods`, whose network namespaces are pinned in `pins`.
    pub fn new(pins: PathBuf, pods: PodTable) -> Self {
        let mut known = Known::default();
        // Before Linux 5.14 there are no cookies to compare; then every client shows as a number.
        if let Ok(cookie) = netns_cookie(Path::new(HOST)) {
            known.clients.insert(cookie, Client::Host);
        }
        Self(Arc::new(Shared {
            pins,
            pods,
            known: Mutex::new(known),
        }))
    }

    /// Who dialled.
    pub fn of(&self, event: &FlowEvent) -> Client {
        let Some((address, port)) = event.client() else {
            return self.find(event.netns_cookie);
        };
        let ip = address.to_ip();
        let is_its = |pod: &PodSummary| !pod.host_network && pod.addresses.contains(&ip);
        let pod = match event.by {
            EVENT_BY_POD => self.0.pods.list().into_iter().find(is_its),
            _ => None,
        };
        match pod {
            Some(pod) => Client::Pod(ObjectKey::new(pod.namespace, pod.name)),
            None => Client::Outside(SocketAddr::new(ip, u16::from_be_bytes(port))),
        }
    }

    /// Who has the network namespace with this cookie.
    pub fn find(&self, cookie: u64) -> Client {
        let mut known = self.known();
        if let Some(client) = known.clients.get(&cookie) {
            return client.clone();
        }
        if known.looked.is_none_or(|at| at.elapsed() >= LOOK_AGAIN) {
            self.look(&mut known);
        }
        let client = known.clients.get(&cookie).cloned();
        client.unwrap_or(Client::Other(cookie))
    }

    /// The cookie of a client's network namespace; `None` for a pod that has none on this node, or is on the host's
    /// network.
    pub fn cookie(&self, client: &Client) -> Option<u64> {
        let mut known = self.known();
        self.look(&mut known);
        let found = known.clients.iter().find(|(_, it)| *it == client);
        found.map(|(cookie, _)| *cookie)
    }

    /// Every network namespace: the host's and the pods'.
    pub fn namespaces(&self) -> Vec<PathBuf> {
        let pins = fs::read_dir(&self.0.pins).into_iter().flatten().flatten();
        let pins = pins.map(|pin| pin.path());
        std::iter::once(HOST.into()).chain(pins).collect()
    }

    /// A pod of this node.
    pub fn pod(&self, key: &ObjectKey) -> Option<PodSummary> {
        let pods = self.0.pods.list();
        pods.into_iter()
            .find(|pod| pod.namespace == *key.namespace && pod.name == *key.name)
    }

    /// Whether the pod has a network namespace of its own.
    pub fn has_namespace(&self, pod: &PodSummary) -> bool {
        self.0.pins.join(&pod.uid).exists()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the cookies of namespaces that are new, and forgets those that are gone.
    fn look(&self, known: &mut Known) {
        known.looked = Some(Instant::now());
        let pods: HashMap<String, PodSummary> = self
            .0
            .pods
            .list()
            .into_iter()
            .map(|pod| (pod.uid.clone(), pod))
            .collect();
        known.cookies.retain(|uid, cookie| {
            let there = pods.contains_key(uid);
            if !there {
                known.clients.remove(cookie);
            }
            there
        });
        for (uid, pod) in pods {
            if known.cookies.contains_key(&uid) {
                continue;
            }
            // A pod that has no namespace yet, or is on the host's network, has no pin.
            if let Ok(cookie) = netns_cookie(&self.0.pins.join(&uid)) {
                let key = ObjectKey::new(pod.namespace, pod.name);
                known.clients.insert(cookie, Client::Pod(key));
                known.cookies.insert(uid, cookie);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::namespaces::{Namespace, create_pinned, remove_pinned};
    use crate::testing::root_or_skip;

    #[test]
    fn a_cookie_names_the_pod_whose_namespace_it_is() {
        if !root_or_skip("namespaces need root") {
            return;
        }
        let dir = tempfile::Builder::new().prefix("kn-oc-").tempdir().unwrap();
        let pin = dir.path().join("uid-1");
        create_pinned(Namespace::Net, &pin).unwrap();
        let (pods, web) = (PodTable::default(), ObjectKey::new("shop", "web-1"));
        pods.put(PodSummary {
            uid: "uid-1".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            ..PodSummary::default()
        });
        let clients = Clients::new(dir.path().to_owned(), pods.clone());
        let (own, cookie) = (
            netns_cookie(Path::new(HOST)).unwrap(),
            netns_cookie(&pin).unwrap(),
        );
        assert_eq!(clients.find(own), Client::Host);
        assert_eq!(clients.find(cookie), Client::Pod(web.clone()));
        assert_eq!(clients.cookie(&Client::Pod(web.clone())), Some(cookie));
        assert_eq!(clients.namespaces(), [Path::new(HOST), &pin]);
        assert_eq!(
            clients.find(1 << 60).to_string(),
            format!("netns {}", 1_u64 << 60)
        );

        pods.remove("uid-1");
        assert_eq!(clients.cookie(&Client::Pod(web)), None, "it is gone");
        assert_eq!(clients.find(cookie), Client::Other(cookie));
        remove_pinned(Namespace::Net, &pin).unwrap();
    }
}
