//! Commands that reach into a pod that runs: exec and cp.

use std::io::{BufRead, Read, Write};
use std::process::{Output, Stdio};
use std::time::Duration;

use kernelet_tests::command::output;
use kernelet_tests::scenario::{Scenario, eventually};
use serde_json::Value;

use crate::changing::REPAIR;
use crate::client::Client;

/// Pods whose containers have a shell and tar: the node's static busybox.
const REACHED: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: reached, labels: {app: reached}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: backend:v0.0.1
      ports:
        - containerPort: 8080
      volumeMounts:
        - {name: busybox, mountPath: /bin/sh}
        - {name: busybox, mountPath: /bin/tar}
        - {name: busybox, mountPath: /bin/busybox}
        - {name: scratch, mountPath: /tmp}
  volumes:
    - name: busybox
      hostPath: {path: /bin/busybox, type: File}
    - name: scratch
      emptyDir: {}
"#;

pub fn begin(client: &Client) {
    client.begin();
    client.fed("create -f -", REACHED);
    client.says("wait --for=condition=Ready pod/reached --timeout=60s");
}

/// Gives the API server's machine a route to the pods of each node, as a cloud's network has it.
pub fn lead_to_pods(scenario: &Scenario) {
    for node in scenario.list("nodes") {
        let range = node["spec"]["podCIDR"].as_str().unwrap();
        let addresses = node["status"]["addresses"].as_array().unwrap();
        let own = addresses.iter().find(|it| it["type"] == "InternalIP");
        let gateway = own.unwrap()["address"].as_str().unwrap();
        let server = scenario.node("control-plane").unwrap();
        let mut route = server.command("ip");
        route.args(["route", "add", range, "via", gateway]);
        output(&mut route).unwrap();
    }
}

pub fn the_server_passes_requests_on(client: &Client) {
    let raw = |path: &str| client.says(&format!("get --raw {path}"));
    let node = client.get("pod reached")["spec"]["nodeName"].clone();
    let node = format!("/api/v1/nodes/{}/proxy", node.as_str().unwrap());
    assert_eq!(raw(&format!("{node}/healthz")).trim(), "ok");
    let stats: Value = serde_json::from_str(&raw(&format!("{node}/stats/summary"))).unwrap();
    assert!(stats["node"]["nodeName"].is_string(), "{stats}");

    let own = format!("/api/v1/namespaces/{}", client.namespace);
    assert_eq!(raw(&format!("{own}/pods/reached/proxy/healthz")), "ok\n");
    let pod = format!("{own}/pods/reached:8080/proxy");
    assert_eq!(raw(&format!("{pod}/healthz")), "ok\n");
    let refused = client.refuses(&format!("get --raw {pod}/nowhere"));
    assert!(refused.contains("could not find"), "{refused}");
    let closed = format!("get --raw {own}/pods/reached:9/proxy/");
    let refused = client.refuses(&closed);
    assert!(
        refused.contains("error trying to reach service") && refused.contains("refused"),
        "{refused}"
    );

    client.says("expose pod reached --port=80 --target-port=8080");
    let service = format!("{own}/services/reached:80/proxy/healthz");
    eventually("the service has an endpoint", REPAIR, || {
        let asked = client
            .command(&["get", "--raw", &service])
            .output()
            .unwrap();
        match asked.stdout.as_slice() {
            b"ok\n" => Ok(()),
            _ => Err(format!("{asked:?}")),
        }
    });
}

pub fn exec_runs_a_command_and_says_how_it_ended(client: &Client) {
    let run = |script: &str, input: &[u8]| run(client, &["-i", "reached"], script, input);

    let output = run("echo out; echo err >&2; exit 7", b"");
    assert_eq!(text(&output.stdout), "out\n");
    let remarks = text(&output.stderr);
    assert!(remarks.starts_with("err\n"), "{remarks}");
    assert!(
        remarks.contains("command terminated with exit code 7"),
        "{remarks}"
    );
    assert_eq!(output.status.code(), Some(7));

    let output = run("busybox wc -c; echo done", &vec![b'x'; 300_000]);
    assert_eq!(text(&output.stdout), "300000\ndone\n", "{output:?}");
    let output = run("busybox head -c 5000000 /dev/zero", b"");
    assert_eq!(output.stdout.len(), 5_000_000);

    let said = client.says("exec reached -- /bin/sh -c id");
    assert!(said.contains("uid=0"), "{said}");
    let refused = client.refuses("exec reached -- /bin/nothing");
    assert!(refused.contains("no such file or directory"), "{refused}");
    let refused = client.refuses("exec reached -c nobody -- /bin/sh");
    assert!(
        refused.contains("container nobody is not valid for pod reached"),
        "{refused}"
    );
    let refused = client.refuses("exec nobody -- /bin/sh");
    assert!(refused.contains("pods \"nobody\" not found"), "{refused}");
}

/// A command in the container, whose input ends.
fn run(client: &Client, arguments: &[&str], script: &str, input: &[u8]) -> Output {
    let line = [&["exec"], arguments, &["--", "/bin/sh", "-c", script]].concat();
    let mut command = client.command(&line);
    command.stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `script` makes a terminal for kubectl, which would not ask for one otherwise.
pub fn exec_gives_a_terminal(client: &Client) {
    let mut session = Terminal::start(client, &["exec", "-it", "reached", "--", "/bin/sh"]);
    session.expect("# ");
    session.type_in("stty size; echo term=$TERM; tty\n");
    session.expect("30 100");
    session.expect("term=xterm");
    session.expect("/dev/pts/0");
    session.type_in("exit 3\n");
    assert_eq!(session.end(), Some(3));
}

/// kubectl on a terminal of 100 columns and 30 rows.
struct Terminal {
    child: std::process::Child,
    seen: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Terminal {
    fn start(client: &Client, arguments: &[&str]) -> Terminal {
        let kubectl = client.command(arguments);
        let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args());
        let line: Vec<_> = words
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let line = format!("stty rows 30 cols 100; exec {}", line.join(" "));
        let mut command = std::process::Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        for (name, value) in kubectl.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let seen = std::sync::Arc::<std::sync::Mutex<String>>::default();
        let (mut stdout, shared) = (child.stdout.take().unwrap(), seen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut bytes) {
                let mut seen = shared.lock().unwrap();
                seen.push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Terminal { child, seen }
    }

    fn type_in(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        stdin.write_all(text.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits until this is seen, and forgets what came up to there.
    fn expect(&mut self, wanted: &str) {
        eventually(wanted, Duration::from_secs(30), || {
            let mut seen = self.seen.lock().unwrap();
            match seen.find(wanted) {
                Some(at) => {
                    *seen = seen.split_off(at + wanted.len());
                    Ok(())
                }
                None => Err(seen.clone()),
            }
        });
    }

    fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

pub fn cp_moves_files_both_ways(client: &Client) {
    let (there, back) = (client.file("there"), client.file("back"));
    let content: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 251) as u8).collect();
    std::fs::write(&there, &content).unwrap();
    let line = format!("cp {} reached:/tmp/file", there.display());
    assert_eq!(client.says(&line), "");
    let line = format!("cp reached:/tmp/file {}", back.display());
    let output = client
        .command(&line.split(' ').collect::<Vec<_>>())
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(std::fs::read(&back).unwrap(), content);
}

/// A shell with a terminal of its own, for whoever attaches.
const SHELL: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: backend:v0.0.1
      command: [/bin/sh]
      stdin: true
      tty: true
      volumeMounts:
        - {name: busybox, mountPath: /bin/sh}
  volumes:
    - name: busybox
      hostPath: {path: /bin/busybox, type: File}
"#;

pub fn attach_joins_the_container(client: &Client) {
    client.fed("create -f -", SHELL);
    client.says("wait --for=condition=Ready pod/shell --timeout=60s");
    let mut session = Terminal::start(client, &["attach", "-it", "shell"]);
    session.type_in("\necho sum=$((20 + 3))\n");
    session.expect("sum=23");
    session.type_in("stty size\n");
    // kubectl makes the terminal a little smaller and as large again, so that a shell draws its line anew.
    session.expect("30 100");
    session.type_in("exit 0\n");
    assert_eq!(session.end(), Some(0));
    let log = client.says("logs shell");
    assert!(log.contains("sum=23"), "{log}");
    client.says("delete pod shell --grace-period=0 --wait=true");
}

pub fn port_forward_reaches_what_listens(client: &Client) {
    let mut command = client.command(&["port-forward", "pod/reached", ":8080", ":9"]);
    let mut forwarding = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(forwarding.stdout.take().unwrap()).lines();
    let mut ports = std::collections::BTreeMap::new();
    while ports.len() < 2 {
        let line = lines.next().unwrap().unwrap();
        if let Some((local, remote)) = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|rest| rest.split_once(" -> "))
        {
            ports.insert(remote.to_owned(), local.parse::<u16>().unwrap());
        }
    }
    let ask = |port: u16| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    // Several at once, on one connection to the API server.
    let open = ports["8080"];
    let asking: Vec<_> = (0..8)
        .map(|_| std::thread::spawn(move || ask(open)))
        .collect();
    for answer in asking {
        let answer = answer.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(ask(ports["9"]), "", "nobody listens there");
    let remark = std::io::BufReader::new(forwarding.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("error forwarding port 9"));
    assert!(remark.is_some_and(|remark| remark.contains("refused")));
    let _ = forwarding.kill();
    let _ = forwarding.wait();
}
pub fn run_feeds_a_pod_and_takes_it_away(client: &Client) {
    let overrides = serde_json::json!({"spec": {
        "containers": [{
            "name": "once", "image": "backend:v0.0.1", "stdin": true, "stdinOnce": true,
            "command": ["/bin/sh", "-c", "busybox wc -l; echo over"],
            "volumeMounts": [
                {"name": "busybox", "mountPath": "/bin/sh"},
                {"name": "busybox", "mountPath": "/bin/busybox"},
            ],
        }],
        "volumes": [{"name": "busybox", "hostPath": {"path": "/bin/busybox", "type": "File"}}],
    }});
    let overrides = format!("--overrides={overrides}");
    let mut command = client.command(&[
        "run",
        "once",
        "-i",
        "--rm",
        "--restart=Never",
        "--image=backend:v0.0.1",
        &overrides,
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\nthree\n").unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout);
    assert!(said.starts_with("3\nover\n"), "{output:?}");
    assert!(said.contains("pod \"once\" deleted"), "{output:?}");
    let gone = client.refuses("get pod once");
    assert!(gone.contains("NotFound"), "{gone}");
}

pub fn debug_looks_at_another_container(client: &Client) {
    let custom = client.file("debug.json");
    let mounts = serde_json::json!({"volumeMounts": [
        {"name": "busybox", "mountPath": "/bin/sh"},
        {"name": "busybox", "mountPath": "/bin/busybox"},
    ]});
    std::fs::write(&custom, mounts.to_string()).unwrap();
    let custom = format!("--custom={}", custom.display());
    let mut session = Terminal::start(
        client,
        &[
            "debug",
            "-it",
            "reached",
            "--image=backend:v0.0.1",
            "--target=main",
            "--container=debugger",
            &custom,
            "--",
            "/bin/sh",
        ],
    );
    session.type_in("\necho first=$(busybox cat /proc/1/comm)\n");
    session.expect("first=backend");
    session.type_in("exit 4\n");
    session.end();
    let pod = eventually("its end is told", Duration::from_secs(30), || {
        let pod = client.get("pod reached");
        let end = &pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"];
        match end["exitCode"].as_i64() {
            Some(4) => Ok(pod),
            _ => Err(pod["status"].to_string()),
        }
    });
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    let said = client.says("logs reached -c debugger");
    assert!(said.contains("first=backend"), "{said}");
}

const QUITTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: quitter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: main
      image: backend:v0.0.1
      command: [/bin/sh, -c, "echo one; echo two; exit 1"]
      volumeMounts:
        - {name: busybox, mountPath: /bin/sh}
  volumes:
    - name: busybox
      hostPath: {path: /bin/busybox, type: File}
"#;

pub fn logs_take_every_option(client: &Client) {
    client.fed("create -f -", QUITTER);
    eventually("it was restarted", Duration::from_secs(60), || {
        let pod = client.get("pod quitter");
        let status = &pod["status"]["containerStatuses"][0];
        match status["restartCount"].as_i64() {
            Some(1..) if !status["lastState"].as_object().unwrap().is_empty() => Ok(()),
            _ => Err(status.to_string()),
        }
    });
    assert_eq!(client.says("logs quitter --previous"), "one\ntwo\n");
    assert_eq!(
        client.says("logs quitter --previous --limit-bytes=5"),
        "one\nt"
    );
    assert_eq!(client.says("logs quitter --previous --tail=1"), "two\n");
    assert_eq!(
        client.says("logs quitter --previous --since=1h"),
        "one\ntwo\n"
    );
    let later = "--since-time=2999-01-01T00:00:00+02:00";
    assert_eq!(client.says(&format!("logs quitter --previous {later}")), "");
    let stamped = client.says("logs quitter --previous --timestamps --tail=1");
    assert!(stamped.ends_with("Z two\n"), "{stamped}");
    let refused = client.refuses("logs reached --previous");
    assert!(
        refused.contains("previous terminated container \"main\" in pod \"reached\" not found"),
        "{refused}"
    );
    client.says("delete pod quitter");
}
