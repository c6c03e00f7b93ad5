//! Pods as another party makes them: network namespaces below `/run/netns`, on a bridge of the node's.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::thread;

use kernelet_tests::command::{output, run};
use kernelet_tests::scenario::eventually;
use kernelet_tests::{Node, host};

use crate::PATIENCE;

/// Answers with the pod's name and the address of the client that it sees.
pub const ANSWERS: u16 = 8080;
/// Accepts, and says nothing.
pub const HOLDS: u16 = 9090;

/// The bridge to which bridge plugins connect pods.
pub fn bridge(node: &Node) {
    let steps = "ip link add cni0 type bridge && ip address add 10.88.0.1/24 dev cni0 && ip link set cni0 up \
                 && echo 1 > /proc/sys/net/ipv4/ip_forward";
    output(node.command("sh").args(["-ec", steps])).unwrap();
}

/// A pod on the bridge.
pub struct Pod {
    pub netns: String,
    pub address: Ipv4Addr,
}

impl Pod {
    pub fn new(node: &Node, prefix: &str, name: &str, last: u8) -> Pod {
        let netns = format!("{prefix}-{name}");
        let address = Ipv4Addr::new(10, 88, 0, last);
        run(&format!("ip netns add {netns}")).unwrap();
        let cable = format!(
            "ip link add name {name} type veth peer name eth0 netns {netns} && ip link set dev {name} master cni0 up"
        );
        output(node.command("sh").args(["-ec", &cable])).unwrap();
        for step in [
            format!("address add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
            "route add default via 10.88.0.1".to_owned(),
        ] {
            run(&format!("ip -n {netns} {step}")).unwrap();
        }
        Pod { netns, address }
    }

    /// Serves at both ports, until the test ends.
    pub fn serve(&self, name: &'static str) {
        let serve = || {
            let listener = TcpListener::bind(("0.0.0.0", ANSWERS)).unwrap();
            thread::spawn(move || {
                while let Ok((mut stream, client)) = listener.accept() {
                    let _ = write!(stream, "{name} {}", client.ip());
                }
            });
            let holds = TcpListener::bind(("0.0.0.0", HOLDS)).unwrap();
            thread::spawn(move || {
                let mut held = Vec::new();
                while let Ok(stream) = holds.accept() {
                    held.push(stream);
                }
            });
        };
        host::in_netns(&host::netns_path(&self.netns), serve).unwrap();
    }
}

/// A client that is connected, and reads until its connection ends.
pub struct Held(Child);

impl Held {
    /// `command` runs the line that follows, as a process of the node or of a pod.
    pub fn dial(mut command: Command, protocol: &str, address: &str, port: u16) -> Held {
        let line = format!("exec 3<>/dev/{protocol}/{address}/{port}; echo connected; cat <&3");
        command.args(["bash", "-c", &line]);
        let (said, errors) = (Stdio::piped(), Stdio::piped());
        let mut child = command.stdout(said).stderr(errors).spawn().unwrap();
        let mut said = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let held = Held(child);
        output.read_line(&mut said).unwrap();
        assert_eq!(said, "connected\n");
        held
    }

    pub fn is_open(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits until it is closed, and gives what its client is told.
    pub fn end(mut self) -> String {
        eventually("the connection is closed", PATIENCE, || {
            let open = self.is_open();
            (!open).then_some(()).ok_or_else(|| "it is open".to_owned())
        });
        let mut said = String::new();
        let mut errors = self.0.stderr.take().unwrap();
        errors.read_to_string(&mut said).unwrap();
        said
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
