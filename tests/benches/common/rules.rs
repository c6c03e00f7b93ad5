//! Rules of the shape in which kube-proxy writes them.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use kernelet_tests::host::netns_path;

/// What the rules are about: so many services, of TCP and IPv4.
#[derive(Clone, Copy)]
pub struct Services {
    pub count: u32,
    /// How many endpoints each has.
    pub endpoints: u32,
    pub service: fn(u32) -> SocketAddr,
    /// An endpoint of a service.
    pub endpoint: fn(u32, u32) -> SocketAddr,
    /// The port at which nodes answer for it, if it is one that they answer for.
    pub node_port: fn(u32) -> Option<u16>,
}

/// One chain a service and an endpoint, found by walking along a list: kube-proxy's iptables mode.
pub fn iptables(netns: &str, services: Services) {
    let mut chains = String::new();
    for chain in [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
    ] {
        let _ = writeln!(chains, ":{chain} - [0:0]");
    }
    let mut rules = String::from(
        "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    for number in 0..services.count {
        let address = (services.service)(number);
        let chain = format!("KUBE-SVC-{number:016}");
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -m comment --comment \"default/service-{number} cluster IP\" -p tcp -d {}/32 --dport {} -j {chain}",
            address.ip(),
            address.port()
        );
        if let Some(port) = (services.node_port)(number) {
            let outside = format!("KUBE-EXT-{number:016}");
            let _ = writeln!(chains, ":{outside} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-NODEPORTS -m comment --comment \"default/service-{number}\" -p tcp -m tcp --dport {port} -j {outside}\n\
                 -A {outside} -m comment --comment \"masquerade traffic for external destinations\" -j KUBE-MARK-MASQ\n\
                 -A {outside} -j {chain}"
            );
        }
        for index in 0..services.endpoints {
            let target = (services.endpoint)(number, index);
            let end = format!("KUBE-SEP-{number:014}{index:02}");
            let _ = writeln!(chains, ":{end} - [0:0]");
            let left = services.endpoints - index;
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
    // The last rule of the list, as kube-proxy has it.
    rules += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";
    feed(
        netns,
        "iptables-restore",
        &["--noflush"],
        &format!("*nat\n{chains}{rules}COMMIT\n"),
    );
}

/// Maps from address and from port to chain, one chain a service and an endpoint: kube-proxy's nftables mode.
pub fn nftables(netns: &str, services: Services) {
    let mut text = String::from("table ip kube-proxy {\n");
    let (mut elements, mut ports) = (String::new(), String::new());
    for number in 0..services.count {
        let address = (services.service)(number);
        let mut choices = String::new();
        for index in 0..services.endpoints {
            let target = (services.endpoint)(number, index);
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
            " chain service-{number} {{\n  numgen random mod {} vmap {{ {choices} }}\n }}",
            services.endpoints
        );
        let _ = writeln!(
            elements,
            "{} . tcp . {} : goto service-{number},",
            address.ip(),
            address.port()
        );
        if let Some(port) = (services.node_port)(number) {
            let _ = writeln!(
                text,
                " chain external-{number} {{\n  jump mark-for-masquerade\n  goto service-{number}\n }}"
            );
            let _ = writeln!(ports, "tcp . {port} : goto external-{number},");
        }
    }
    let ports = match &*ports {
        "" => String::new(),
        ports => format!("  elements = {{ {ports} }}\n"),
    };
    let _ = write!(
        text,
        " chain mark-for-masquerade {{\n  meta mark set meta mark or 0x4000\n }}\n \
         map service-ips {{\n  type ipv4_addr . inet_proto . inet_service : verdict\n  elements = {{ {elements} }}\n }}\n \
         map service-nodeports {{\n  type inet_proto . inet_service : verdict\n{ports} }}\n \
         chain services {{\n  ip daddr . meta l4proto . th dport vmap @service-ips\n  \
         ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto . th dport vmap @service-nodeports\n }}\n \
         chain nat-output {{\n  type nat hook output priority -100; policy accept;\n  jump services\n }}\n \
         chain nat-prerouting {{\n  type nat hook prerouting priority dstnat; policy accept;\n  jump services\n }}\n \
         chain nat-postrouting {{\n  type nat hook postrouting priority srcnat; policy accept;\n  \
         meta mark & 0x4000 == 0 return\n  meta mark set meta mark xor 0x4000\n  masquerade fully-random\n }}\n}}\n"
    );
    feed(netns, "nft", &["-f", "-"], &text);
}

/// Has `program` read `text` in a namespace.
pub fn feed(netns: &str, program: &str, arguments: &[&str], text: &str) {
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
