//! The same containerd through CRI, as the kubelet drives it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::lock::Mutex;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxPodSandboxConfig,
    PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopPodSandboxRequest,
};
use kernelet_tests::cluster::PAUSE;
use kernelet_tests::image::Image;
use kernelet_tests::{Node, command, debian, host};
use tonic::transport::{Channel, Endpoint};

use crate::IMAGE;

/// How long containerd may take to see the network's configuration.
const LIMIT: Duration = Duration::from_secs(10);

pub struct Cri {
    client: RuntimeServiceClient<Channel>,
    logs: PathBuf,
    cgroup: String,
    /// The sandboxes by their names.
    sandboxes: Mutex<std::collections::BTreeMap<String, String>>,
}

impl Cri {
    /// Gives the node's containerd what it needs for sandboxes: a program that waits, and a network.
    pub async fn new(node: &Node) -> Cri {
        import_pause(node);
        configure_network(node);
        let socket = format!("unix://{}", node.containerd_socket().display());
        let endpoint = Endpoint::from_shared(socket).expect("a path is a URI");
        let mut client = RuntimeServiceClient::new(endpoint.connect_lazy());
        let began = Instant::now();
        loop {
            let reply = client.status(StatusRequest::default()).await;
            let status = reply.expect("containerd has CRI").into_inner().status;
            let conditions = status.unwrap_or_default().conditions;
            if conditions.iter().all(|condition| condition.status) {
                break;
            }
            assert!(began.elapsed() < LIMIT, "CRI is not ready: {conditions:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Cri {
            client,
            logs: node.directory.join("cri-logs"),
            cgroup: format!("/{}/cri", node.cgroup),
            sandboxes: Mutex::default(),
        }
    }

    pub async fn start(&self, name: &str) -> Duration {
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.logs.join(name).display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "backend".to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.to_owned(),
                ..ImageSpec::default()
            }),
            log_path: "backend.log".to_owned(),
            ..ContainerConfig::default()
        };
        let mut client = self.client.clone();
        let began = Instant::now();
        let run = RunPodSandboxRequest {
            config: Some(config.clone()),
            ..RunPodSandboxRequest::default()
        };
        let reply = client.run_pod_sandbox(run).await;
        let reply = reply.unwrap_or_else(|status| panic!("sandbox {name}: {status}"));
        let sandbox = reply.into_inner().pod_sandbox_id;
        let create = CreateContainerRequest {
            pod_sandbox_id: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config),
        };
        let reply = client.create_container(create).await;
        let reply = reply.unwrap_or_else(|status| panic!("container of {name}: {status}"));
        let container_id = reply.into_inner().container_id;
        let start = StartContainerRequest { container_id };
        let started = client.start_container(start).await;
        started.unwrap_or_else(|status| panic!("starting {name}: {status}"));
        let elapsed = began.elapsed();
        self.sandboxes.lock().await.insert(name.to_owned(), sandbox);
        elapsed
    }

    pub async fn remove(&self, name: &str) {
        let sandbox = self.sandboxes.lock().await.remove(name);
        let pod_sandbox_id = sandbox.expect("it was started");
        let mut client = self.client.clone();
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        };
        let stopped = client.stop_pod_sandbox(stop).await;
        stopped.unwrap_or_else(|status| panic!("stopping {name}: {status}"));
        let remove = RemovePodSandboxRequest { pod_sandbox_id };
        let removed = client.remove_pod_sandbox(remove).await;
        removed.unwrap_or_else(|status| panic!("removing {name}: {status}"));
    }
}

fn import_pause(node: &Node) {
    let image = Image::of_program(PAUSE, "pause", kernelet::pod::HOLDER);
    let archive = image.and_then(|image| image.archive()).expect("an archive");
    let file = node.directory.join("pause.tar");
    host::write(&file, archive).unwrap_or_else(|error| panic!("{error}"));
    let mut ctr = node.command("ctr");
    ctr.arg("--address")
        .arg(node.containerd_socket())
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(file);
    command::output(&mut ctr).unwrap_or_else(|error| panic!("{error}"));
}

/// Each sandbox gets a pair of links and a route, as Kernelet's pods do.
fn configure_network(node: &Node) {
    let program = debian::program("containernetworking-plugins", "usr/lib/cni/ptp");
    let program = program.unwrap_or_else(|error| panic!("{error}"));
    let directory = node.cni_directory();
    let plugins = program.parent().expect("it is in a directory");
    std::os::unix::fs::symlink(plugins, directory.join("bin"))
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let config = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "bench",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": directory.join("addresses"),
                "ranges": [[{ "subnet": "10.250.0.0/22" }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    let file = directory.join("net.d/10-bench.conflist");
    host::write(file, config.to_string()).unwrap_or_else(|error| panic!("{error}"));
}
