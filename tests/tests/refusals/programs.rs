//! Programs that cannot do what they were told.

use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use kernelet_tests::Node;
use kernelet_tests::command::{output, run};
use kernelet_tests::host;
use kernelet_tests::scenario::Scenario;

/// Runs a program that must fail by itself, and gives its one sentence.
fn fails(command: &mut Command) -> String {
    let mut limited = Command::new("timeout");
    limited
        .arg("60")
        .arg(command.get_program())
        .args(command.get_args());
    let Output {
        status,
        stdout,
        stderr,
    } = limited.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{command:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&stdout), "", "{command:?}");
    let sentences: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("kernelet"))
        .collect();
    assert_eq!(sentences.len(), 1, "one sentence: {said}");
    assert!(
        !said.contains("panicked") && !said.contains("Error("),
        "{said}"
    );
    sentences[0].to_owned()
}

/// What a scenario gives to programs that will not start.
struct Room<'a> {
    scenario: &'a Scenario,
    directory: PathBuf,
}

impl Room<'_> {
    fn program(&self, name: &str) -> PathBuf {
        self.scenario.spec.binaries.join(name)
    }

    fn worker(&self) -> &Node {
        self.scenario.node("worker-1").unwrap()
    }

    fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn bpf(&self) -> PathBuf {
        Path::new("/sys/fs/bpf")
            .join(&self.scenario.spec.prefix)
            .join("refused")
    }

    /// An agent on the worker, with the worker's identity but pins of its own.
    fn agent(&self, run_directory: &Path) -> Command {
        let node = self.worker();
        self.agent_at(node.address, run_directory, &node.containerd_socket())
    }

    /// The same at another address of the worker and with another containerd.
    fn agent_at(&self, address: Ipv4Addr, run_directory: &Path, containerd: &Path) -> Command {
        let node = self.worker();
        let mut command = node.command(self.program("kernelet"));
        command.args(["run", "--node-name", "worker-1", "--node-ip"]);
        command.arg(address.to_string());
        command
            .arg("--root-dir")
            .arg(node.directory.join("kernelet"));
        command.arg("--run-dir").arg(run_directory);
        command.arg("--bpf-dir").arg(self.bpf());
        command
            .arg("--cgroup-root")
            .arg(host::cgroup2_mount().unwrap().join(&node.cgroup));
        command
            .arg("--cgroup-parent")
            .arg(format!("/{}", node.cgroup));
        command.arg("--containerd").arg(containerd);
        command
    }

    fn assert_nothing_left(&self) {
        let socket = self.run_directory().join("kernelet.sock");
        assert!(!socket.exists(), "{} is left", socket.display());
        assert!(!self.bpf().exists(), "{} is left", self.bpf().display());
        let links = output(self.worker().command("ip").args(["-o", "link"])).unwrap();
        assert_eq!(links.lines().count(), 2, "loopback and its cable: {links}");
    }
}

fn room(scenario: &Scenario) -> Room<'_> {
    let directory = scenario.spec.directory.join("refused");
    host::create_dir(&directory).unwrap();
    Room {
        scenario,
        directory,
    }
}

pub fn an_agent_that_cannot_start_leaves_nothing(scenario: &Scenario) {
    let room = room(scenario);
    let kernelet = room.program("kernelet");

    // A copy, since a stranger may not even enter the directory of the original.
    let copy = Path::new("/run")
        .join(&scenario.spec.prefix)
        .join("kernelet-copy");
    std::fs::copy(&kernelet, &copy).unwrap();
    let mut stranger = Command::new("setpriv");
    stranger
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .arg("run");
    let said = fails(&mut stranger);
    assert!(said.contains("needs root"), "{said}");

    let mut asking = Command::new(&kernelet);
    asking
        .args(["status", "--run-dir"])
        .arg(room.run_directory());
    let said = fails(&mut asking);
    assert!(said.contains("the agent is not running"), "{said}");

    let mut unjoined = room.agent(&room.run_directory());
    unjoined
        .arg("--kubeconfig")
        .arg(room.directory.join("none"));
    let said = fails(&mut unjoined);
    assert!(
        said.contains("cannot use the kubeconfig") && said.contains("none"),
        "{said}"
    );
    room.assert_nothing_left();

    let said = fails(&mut room.agent(&room.run_directory()));
    assert!(
        said.contains(":10250") && said.contains("is another kubelet running"),
        "{said}"
    );
    room.assert_nothing_left();

    let nobody = room.directory.join("containerd.sock");
    let said = fails(&mut room.agent_at(Ipv4Addr::LOCALHOST, &room.run_directory(), &nobody));
    assert!(said.contains("containerd does not answer at"), "{said}");
    room.assert_nothing_left();

    let said = fails(&mut room.agent(&room.worker().agent_run_directory()));
    assert!(said.contains("another agent is running already"), "{said}");
    scenario.kernelet("worker-1", "status");
}

pub fn joining_fails_with_the_reason(scenario: &Scenario) {
    let room = room(scenario);
    let data = scenario.nodes[0].directory.join("data");
    let authority = data.join("pki/ca.crt");
    let token = host::read(data.join("join-token")).unwrap();
    let root = room.directory.join("joining");
    let join = |server: &str, token: &str, authority: &Path, name: &str| {
        let mut command = Command::new(room.program("kernelet"));
        command.args(["join", server, "--token", token.trim(), "--node-name", name]);
        command.arg("--ca-file").arg(authority);
        command.arg("--root-dir").arg(&root);
        let said = fails(&mut command);
        assert!(!root.exists(), "{} is left", root.display());
        said
    };
    let server = scenario.server();

    let said = join(&server, "abcdef.0123456789abcdef", &authority, "other");
    assert!(said.contains("does not accept the token"), "{said}");
    // Any authority that did not sign the server's certificate is a wrong one.
    let other = room.directory.join("other.crt");
    output(
        Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args([
                "-nodes",
                "-subj",
                "/CN=other",
                "-keyout",
                "/dev/null",
                "-out",
            ])
            .arg(&other),
    )
    .unwrap();
    let said = join(&server, &token, &other, "other");
    assert!(said.contains("check the address and the CA file"), "{said}");
    let unreachable = server.replace(":6443", ":9");
    let said = join(&unreachable, &token, &authority, "other");
    assert!(
        said.contains("cannot reach the API server at") && said.contains("Connection refused"),
        "{said}"
    );
    let said = join(&server, &token, &authority, "Bad_Name");
    assert!(said.contains("\"Bad_Name\" is no node name"), "{said}");
    let nodes = scenario.kubectl("get nodes -o name");
    assert_eq!(nodes, "node/worker-1\n");
}

pub fn a_control_plane_that_cannot_start_says_why(scenario: &Scenario) {
    let room = room(scenario);
    let node = room.worker();
    let start = |data: &Path, more: &[&str]| {
        let mut command = node.command(room.program("kernelet-control-plane"));
        command.arg("--data-dir").arg(data).args(more);
        fails(&mut command)
    };
    let data = room.directory.join("data");

    let address = "127.0.0.1:6443";
    let taken = node.inside(|| TcpListener::bind(address).unwrap()).unwrap();
    let said = start(&data, &["--listen", address]);
    assert!(
        said.contains("127.0.0.1:6443 is in use by another program"),
        "{said}"
    );
    assert!(!data.exists(), "{} is left", data.display());
    drop(taken);

    let locked = scenario.nodes[0].directory.join("data");
    let said = start(&locked, &["--listen", address]);
    assert!(
        said.contains("another process has this store open"),
        "{said}"
    );

    let file = room.directory.join("file");
    host::write(&file, "").unwrap();
    let said = start(&file, &["--listen", address]);
    assert!(said.contains("cannot keep the cluster's keys in"), "{said}");

    let etcd = [
        "--listen",
        address,
        "--etcd-endpoints",
        "http://127.0.0.1:9",
    ];
    let said = start(&data, &etcd);
    assert!(
        said.contains("etcd at http://127.0.0.1:9") && said.contains("Connection refused"),
        "{said}"
    );

    // The disk fills up at the keys, and a little later at the store.
    for pages in [0, 12] {
        let full = room.directory.join(format!("full-{pages}"));
        host::create_dir(&full).unwrap();
        let mount = format!("mount -t tmpfs -o size=64k tmpfs {}", full.display());
        run(&mount).unwrap();
        std::fs::write(full.join("ballast"), vec![0; (16 - pages) * 4096]).unwrap();
        let said = start(&full.join("data"), &["--listen", address]);
        assert!(
            said.contains("No space left") || said.contains("the disk is full"),
            "{said}"
        );
        let torn = output(Command::new("find").arg(&full).args(["-name", "*.new"])).unwrap();
        run(&format!("umount {}", full.display())).unwrap();
        assert_eq!(torn, "", "no half-written file is left");
    }
}
