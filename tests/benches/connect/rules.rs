//! Rules of the shape in which kube-proxy writes them, for a ClusterIP service with three endpoints.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use kernelet_tests::host::netns_path;

use super::{ENDPOINTS, Family, PORT};

fn service(number: u32) -> SocketAddr {
    super::service(Family::V4, number)
}

fn endpoint(number: u32, index: u32) -> SocketAddr {
    super::endpoint(Family::V4, number, index)
}

/// One chain a service and an endpoint, found by walking along a list: kube-proxy's iptables mode.
pub fn iptables(netns: &str, services: u32) {
    let mut chains = String::from(":KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n");
    let mut rules = String::from(
        "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for number in 0..services {
        let address = service(number);
        let chain = format!("KUBE-SVC-{number:016}");
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -m comment --comment \"default/service-{number} cluster IP\" -p tcp -d {}/32 --dport {PORT} -j {chain}",
            address.ip()
        );
        for index in 0..ENDPOINTS {
            let target = endpoint(number, index);
            let end = format!("KUBE-SEP-{number:014}{index:02}");
            let _ = writeln!(chains, ":{end} - [0:0]");
            let left = ENDPOINTS - index;
            let draw = if left > 1 {
                format!(
                    " -m statistic --mode random --probability {:.11}",
                    1.0 / f64::from(left)
                )
            } else {
                String::new()
            };
            let _ = writeln!(
                rules,
                "-A {chain} -m comment --comment \"default/service-{number} -> {target}\"{draw} -j {end}"
            );
            let _ = writeln!(rules, "-A {end} -s {}/32 -j KUBE-MARK-MASQ", target.ip());
            let _ = writeln!(
                rules,
                "-A {end} -p tcp -m tcp -j DNAT --to-destination {target}"
            );
        }
    }
    feed(
        netns,
        "iptables-restore",
        &["--noflush"],
        &format!("*nat\n{chains}{rules}COMMIT\n"),
    );
}

/// One map from address to chain, one chain a service and an endpoint: kube-proxy's nftables mode.
pub fn nftables(netns: &str, services: u32) {
    let mut text = String::from("table ip kube-proxy {\n");
    let mut elements = String::new();
    for number in 0..services {
        let address = service(number);
        let mut choices = String::new();
        for index in 0..ENDPOINTS {
            let target = endpoint(number, index);
            let end = format!("endpoint-{number}-{index}");
            let _ = writeln!(
                text,
                " chain {end} {{\n  ip saddr {} jump mark-for-masquerade\n  meta l4proto tcp dnat to {target}\n }}",
                target.ip()
            );
            let _ = write!(choices, "{index} : goto {end}, ");
        }
        let _ = writeln!(
            text,
            " chain service-{number} {{\n  numgen random mod {ENDPOINTS} vmap {{ {choices} }}\n }}"
        );
        let _ = writeln!(
            elements,
            "{} . tcp . {PORT} : goto service-{number},",
            address.ip()
        );
    }
    let _ = write!(
        text,
        " chain mark-for-masquerade {{\n  meta mark set meta mark or 0x4000\n }}\n \
         map service-ips {{\n  type ipv4_addr . inet_proto . inet_service : verdict\n  elements = {{ {elements} }}\n }}\n \
         chain services {{\n  ip daddr . meta l4proto . th dport vmap @service-ips\n }}\n \
         chain nat-output {{\n  type nat hook output priority -100; policy accept;\n  jump services\n }}\n \
         chain nat-prerouting {{\n  type nat hook prerouting priority dstnat; policy accept;\n  jump services\n }}\n}}\n"
    );
    feed(netns, "nft", &["-f", "-"], &text);
}

fn feed(netns: &str, program: &str, arguments: &[&str], text: &str) {
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", netns_path(netns).display()))
        .arg(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("nsenter starts");
    child
        .stdin
        .take()
        .expect("it was piped")
        .write_all(text.as_bytes())
        .expect("it reads its rules");
    assert!(
        child.wait().expect("it ends").success(),
        "{program} took the rules"
    );
}
