//! Machines of network namespaces: three with a member of an etcd cluster each, which speak TLS among each other and to
//! their clients, and some with a control plane on that etcd. No agents.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kernelet_tests::cluster::{binaries, find_program, target};
use kernelet_tests::command::run;
use kernelet_tests::host;
use kernelet_tests::links::Links;
use kernelet_tests::process::Process;
use kernelet_tests::scenario::eventually;
use kernelet_tests::sweep::{Residue, sweep};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustix::process::Signal;

/// How long something may take to start or to go.
pub const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: &str = "kdu";
const SUBNET: u8 = 147;

/// A machine and the program that it is for.
pub struct Machine {
    pub name: &'static str,
    pub address: Ipv4Addr,
    process: Option<Process>,
    /// How much its program had said before it was started last.
    log_before: usize,
}

/// All of them. They go when this is dropped.
pub struct Machines {
    pub members: Vec<Machine>,
    pub servers: Vec<Machine>,
    directory: PathBuf,
}

impl Machines {
    /// Makes the machines, with nothing running. None, with the reason printed, where they cannot be made; that is a failure
    /// under CI.
    pub fn make() -> Option<Self> {
        if let Some(reason) = obstacle() {
            assert!(std::env::var_os("CI").is_none(), "cannot run: {reason}");
            println!("skipped: {reason}");
            return None;
        }
        let directory = target().join("scenarios").join(PREFIX);
        clean(&directory);
        host::create_dir(&directory).unwrap();
        let links = Links {
            prefix: PREFIX,
            subnet: SUBNET,
            with_v6: false,
        };
        links.create_near().unwrap();
        let machine = |(name, number): (&'static str, u8)| {
            links
                .attach(&netns(name), name, false, false, number)
                .unwrap();
            host::create_dir(directory.join(name)).unwrap();
            Machine {
                name,
                address: links.v4(false, number),
                process: None,
                log_before: 0,
            }
        };
        let members: Vec<Machine> = [("e1", 11), ("e2", 12), ("e3", 13)].map(machine).into();
        let servers = [("c1", 21), ("c2", 22)].map(machine).into();
        certificates(&directory, &members);
        Some(Self {
            members,
            servers,
            directory,
        })
    }

    /// Starts a member, anew or with what it had.
    pub fn start_member(&mut self, at: usize) {
        let directory = self.directory.clone();
        let peers: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("{}=https://{}:2380", member.name, member.address))
            .collect();
        let member = &mut self.members[at];
        let (name, ip) = (member.name, member.address);
        let mut etcd = Command::new("etcd");
        etcd.args(["--name", name, "--logger=zap", "--log-level=warn"])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-token", PREFIX])
            .arg(format!("--listen-peer-urls=https://{ip}:2380"))
            .arg(format!("--initial-advertise-peer-urls=https://{ip}:2380"))
            .arg(format!("--listen-client-urls=https://{ip}:2379"))
            .arg(format!("--advertise-client-urls=https://{ip}:2379"))
            .args(["--client-cert-auth", "--peer-client-cert-auth"])
            .arg("--data-dir")
            .arg(directory.join(name).join("data"));
        for (flag, file) in [
            ("trusted-ca-file", "ca.pem"),
            ("cert-file", "cert.pem"),
            ("key-file", "key.pem"),
        ] {
            let file = directory.join(file).display().to_string();
            etcd.arg(format!("--{flag}={file}"));
            etcd.arg(format!("--peer-{flag}={file}"));
        }
        member.run(&etcd, &directory);
    }

    /// Starts a control plane; it need not answer yet.
    pub fn start_server(&mut self, at: usize) {
        let directory = self.directory.clone();
        let endpoints: Vec<String> = self
            .members
            .iter()
            .map(|member| format!("https://{}:2379", member.address))
            .collect();
        let server = &mut self.servers[at];
        let mut program = Command::new(binaries().join("kernelet-control-plane"));
        program
            .arg("--data-dir")
            .arg(directory.join(server.name).join("data"))
            .args(["--advertise-address", &server.address.to_string()])
            .args(["--etcd-endpoints", &endpoints.join(",")]);
        for (flag, file) in [
            ("--etcd-cafile", "ca.pem"),
            ("--etcd-certfile", "cert.pem"),
            ("--etcd-keyfile", "key.pem"),
        ] {
            program.arg(flag).arg(directory.join(file));
        }
        server.run(&program, &directory);
    }

    /// Waits until a control plane that was just started serves.
    pub fn await_server(&self, at: usize) {
        let server = &self.servers[at];
        let before = server.log_before;
        eventually(&format!("{} serves", server.name), PATIENCE, || {
            let said = self.log(server).split_off(before);
            match said.contains("serving listen=") {
                true => Ok(()),
                false => Err(said),
            }
        });
    }

    /// Gives a control plane that was never started the first one's keys.
    pub fn share_keys(&self, at: usize) {
        let data = |machine: &Machine| self.directory.join(machine.name).join("data");
        let (from, to) = (data(&self.servers[0]), data(&self.servers[at]));
        host::create_dir(to.join("pki")).unwrap();
        for file in ["pki/ca.crt", "pki/ca.key", "pki/sa.key", "join-token"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    }

    /// Removes what a control plane has on disk.
    pub fn wipe(&self, at: usize) {
        let data = self.directory.join(self.servers[at].name).join("data");
        std::fs::remove_dir_all(data).unwrap();
    }

    pub fn kubeconfig(&self, at: usize) -> PathBuf {
        let name = self.servers[at].name;
        self.directory.join(name).join("data/admin.kubeconfig")
    }

    /// What a machine's program has said.
    pub fn log(&self, machine: &Machine) -> String {
        let name = machine.name;
        std::fs::read_to_string(log_of(&self.directory, name)).unwrap_or_default()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in self.members.iter().chain(&self.servers) {
                let log = self.log(machine);
                let lines: Vec<&str> = log.lines().rev().take(40).collect();
                let lines: Vec<&str> = lines.into_iter().rev().collect();
                eprintln!("--- {}\n{}", machine.name, lines.join("\n"));
            }
        }
        clean(&self.directory);
    }
}

impl Machine {
    fn run(&mut self, program: &Command, directory: &Path) {
        let cgroup = host::cgroup2_mount().unwrap().join(PREFIX).join(self.name);
        host::create_dir(&cgroup).unwrap();
        let netns = host::netns_path(&netns(self.name));
        let log = log_of(directory, self.name);
        self.log_before = std::fs::read(&log).map_or(0, |said| said.len());
        self.process = Some(Process::spawn(program, &netns, &cgroup, &log).unwrap());
    }

    /// Sends its program a signal that ends it, and waits for that.
    pub fn end(&mut self, signal: Signal) {
        let process = self.process.take().unwrap();
        process.signal(signal).unwrap();
        assert!(process.wait(PATIENCE), "{} does not end", self.name);
    }

    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::alive)
    }

    /// Takes its cable out, or puts it in again.
    pub fn connect(&self, is_connected: bool) {
        let state = if is_connected { "up" } else { "down" };
        run(&format!("ip link set {PREFIX}-{} {state}", self.name)).unwrap();
    }
}

fn netns(name: &str) -> String {
    format!("{PREFIX}-{name}")
}

fn log_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.log"))
}

fn clean(directory: &Path) {
    let directories = [directory.to_owned()];
    let residue = Residue {
        prefix: PREFIX,
        directories: &directories,
    };
    sweep(&residue).unwrap();
}

fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("needs root".into());
    }
    let program = binaries().join("kernelet-control-plane");
    if !program.exists() {
        let program = program.display();
        return Some(format!("{program} is not there: run `cargo xtask build`"));
    }
    ["etcd", "ip", "nsenter"]
        .into_iter()
        .find(|program| find_program(program).is_none())
        .map(|program| format!("{program} is not installed: run `cargo xtask setup`"))
}

/// `ca.pem`, and one certificate with its key for all members and clients.
fn certificates(directory: &Path, members: &[Machine]) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    host::write(directory.join("ca.pem"), pem).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = members.iter().map(|it| it.address.to_string()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    host::write(directory.join("cert.pem"), certificate).unwrap();
    host::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
}
