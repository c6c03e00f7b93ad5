//! A containerd of a test's own, and images to run in it.

pub(crate) mod registry;
pub(crate) mod relay;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::containerd::Containerd;
use super::host::Host;
use super::image::sha256;
use super::{Runtime, cgroup, log_pipe};
use crate::testing::root_or_skip;

/// What everything made by these tests is called by.
pub(crate) const PREFIX: &str = "kn-pd";

/// Tells the test program to be a log writer; see [`log_pipe_process`].
pub(crate) const LOG_PIPE: &str = "KERNELET_TEST_LOG_PIPE";

/// A runtime that is configured beside the default one. It does the same, and leaves a file, its own name with `.used`.
pub(crate) const OTHER_RUNTIME: &str = "other";

/// containerd's configuration, in this directory. A runtime that it names takes the place of those there are without it.
fn config_file(directory: &Path) -> String {
    const CRI: &str = "plugins.\"io.containerd.grpc.v1.cri\"";
    const RUNTIMES: &str = "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes";
    const TYPE: &str = "runtime_type = \"io.containerd.runc.v2\"";
    let binary = directory.join(OTHER_RUNTIME);
    format!(
        "version = 2\n[{CRI}]\nrestrict_oom_score_adj = true\n[{RUNTIMES}.runc]\n{TYPE}\n\
        [{RUNTIMES}.{OTHER_RUNTIME}]\n{TYPE}\n\
        [{RUNTIMES}.{OTHER_RUNTIME}.options]\nBinaryName = {binary:?}\n"
    )
}

/// A containerd that ends with the test.
pub(crate) struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts it; `None`, with the reason printed, where that is not possible.
    pub(crate) async fn start() -> Option<Daemon> {
        if !root_or_skip("running containers needs root") {
            return None;
        }
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), config_file(dir.path())).unwrap();
        let other = dir.path().join(OTHER_RUNTIME);
        let script = "#!/bin/sh\ntouch \"$0.used\"\nexec runc \"$@\"\n";
        fs::write(&other, script).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        let logger = dir.path().join("logger");
        fs::write(
            &logger,
            format!(
                "#!/bin/sh\nshift\n{LOG_PIPE}=\"$*\" exec {} --exact runtime::testing::log_pipe_process\n",
                std::env::current_exe().unwrap().display()
            ),
        )
        .unwrap();
        fs::set_permissions(&logger, fs::Permissions::from_mode(0o755)).unwrap();
        let child = spawn(dir.path());
        let daemon = Daemon { child, dir };
        daemon.wait_until_it_answers().await;
        Some(daemon)
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A client, with nothing remembered from others.
    pub(crate) fn client(&self) -> Containerd {
        self.client_at(&self.socket())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("containerd.sock")
    }

    /// A client by way of another socket.
    pub(crate) fn client_at(&self, socket: &Path) -> Containerd {
        Containerd::new(
            socket,
            Host::probe(),
            &self.path().join("logger"),
            self.path(),
        )
    }

    /// Where the tests' cgroups go, below each hierarchy's root.
    pub(crate) fn cgroup(&self) -> PathBuf {
        Path::new("/").join(self.path().file_name().unwrap())
    }

    /// What containerd holds for images: names, blobs, and snapshots of layers.
    pub(crate) fn stored(&self) -> Vec<String> {
        let of = |args: &[&str]| {
            let text = self.ctr(args);
            let lines = text.lines().filter(|line| !line.starts_with("KEY"));
            let names = lines.filter_map(|line| line.split_whitespace().next());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        // containerd's CRI half gives each image another name, sooner or later.
        let is_extra = |name: &String| name.starts_with("sha256:");
        let mut stored = of(&["images", "ls", "-q"]);
        stored.retain(|name| !is_extra(name));
        let all = [&["content", "ls", "-q"][..], &["snapshots", "ls"]];
        stored.extend(all.into_iter().flat_map(of));
        stored.sort();
        stored
    }

    /// Runs containerd's own client; gives what it prints.
    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "k8s.io"]);
        let shown = command.args(args).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).into_owned()
    }

    /// Kills containerd, and starts it again over the same state.
    pub(crate) async fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.path());
        self.wait_until_it_answers().await;
    }

    /// Removes the root file system of a container that does not run.
    pub(crate) fn remove_root(&self, id: &str) {
        let removed = Command::new("ctr")
            .arg("--address")
            .arg(self.path().join("containerd.sock"))
            .args(["--namespace", "k8s.io", "snapshots", "rm", id])
            .status();
        assert!(removed.unwrap().success());
    }

    /// Kills the shim of a container, and the container with it, as when the machine runs short of memory.
    pub(crate) fn kill_shim(&self, id: &str, pid: u32) {
        end_processes(|line| {
            line.contains(&*self.path().to_string_lossy()) && line.contains(&format!("-id {id}"))
        });
        if let Some(pid) = i32::try_from(pid)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// Whatever there is of containers: records, tasks, roots, mounts, cgroups and files of processes. Shims are not counted:
    /// containerd 1.6 may leave one without a container when the creation of a task is cut off, and knows nothing of it.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let ctr = |args: &[&str]| {
            let text = self.ctr(args);
            let lines = text.lines().map(|line| format!("{args:?}: {line}"));
            lines.collect::<Vec<_>>()
        };
        let mut found = ctr(&["containers", "ls", "-q"]);
        found.extend(ctr(&["tasks", "ls", "-q"]));
        let snapshots = ctr(&["snapshots", "ls"]);
        found.extend(
            snapshots
                .into_iter()
                .filter(|line| !line.contains("Committed") && !line.contains("KIND")),
        );
        let own = self.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own))
                .map(str::to_owned),
        );
        for hierarchy in cgroup::mounted() {
            let kubepods = hierarchy
                .mount
                .join(self.path().file_name().unwrap_or_default())
                .join("kubepods");
            for class in ["", "burstable", "besteffort"] {
                let entries = fs::read_dir(kubepods.join(class))
                    .into_iter()
                    .flatten()
                    .flatten();
                let pods =
                    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pod"));
                found.extend(pods.map(|entry| entry.path().display().to_string()));
            }
        }
        // Of commands and of containers.
        let is_id = |name: &str| {
            matches!(name.len(), 32 | 64) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let entries = fs::read_dir(self.path()).into_iter().flatten().flatten();
        let of_processes = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            is_id(&name) || name.starts_with("layers-")
        });
        found.extend(of_processes.map(|entry| entry.path().display().to_string()));
        found
    }

    async fn wait_until_it_answers(&self) {
        let client = self.client();
        for _ in 0..200 {
            if client.version().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let log = fs::read_to_string(self.path().join("log")).unwrap();
        panic!("containerd did not start:\n{log}");
    }

    /// Stops and removes every container.
    pub(crate) async fn clear(&self) {
        let client = self.client();
        for container in client.list().await.unwrap() {
            client.signal(&container.id, libc::SIGKILL).await.unwrap();
            for _ in 0..100 {
                match client.state(&container.id).await.unwrap() {
                    Some(super::ContainerState::Running { .. }) => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    _ => break,
                }
            }
            client.delete(&container.id).await.unwrap();
        }
    }
}

fn spawn(dir: &Path) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .arg("--root")
        .arg(dir.join("root"))
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--address")
        .arg(dir.join("containerd.sock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("containerd is installed")
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        // Shims outlive containerd: each names this test's socket on its command line.
        end_processes_of(self.path());
        let own = self.path().to_string_lossy().into_owned();
        for mount in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
        {
            if mount.starts_with(&own) {
                let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
            }
        }
        let hierarchies = cgroup::hierarchies(&mounts);
        for hierarchy in &hierarchies {
            end_processes_in(
                &hierarchy
                    .mount
                    .join(self.path().file_name().unwrap_or_default()),
            );
        }
        // A killed process leaves its cgroup a moment later.
        for _ in 0..100 {
            if cgroup::remove(&hierarchies, &self.cgroup()).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Ends every process of a cgroup and of those below it: a container outlives its shim.
fn end_processes_in(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            end_processes_in(&entry.path());
        }
    }
    let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in pids
        .lines()
        .filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Ends the shims whose command line names `dir`.
fn end_processes_of(dir: &Path) {
    end_processes(|line| line.contains(&*dir.to_string_lossy()));
}

/// Ends the processes whose command line, with blanks between the arguments, is as asked.
fn end_processes(is_one: impl Fn(&str) -> bool) {
    for pid in processes(is_one) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The processes whose command line is as asked.
fn processes(is_one: impl Fn(&str) -> bool) -> Vec<rustix::process::Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let pid = entry.file_name().to_string_lossy().parse::<i32>().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        is_one(&line).then(|| rustix::process::Pid::from_raw(pid))?
    });
    found.collect()
}

/// Writes an OCI archive with one image of two layers: a static busybox and the links to it, and the users, of whom the first
/// layer knows none.
pub(crate) fn busybox_archive(path: &Path, name: &str, config: serde_json::Value) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut program = File::open("/bin/busybox").expect("busybox-static is installed");
    layer.append_file("bin/busybox", &mut program).unwrap();
    for link in [
        "sh", "sleep", "cat", "echo", "true", "false", "id", "hostname", "env", "ls", "httpd",
        "mount", "dd", "grep", "tty",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{link}"), "busybox")
            .unwrap();
    }
    append(&mut layer, "etc/passwd", b"root:x:0:0::/:/bin/sh\n");
    let programs = layer.into_inner().unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for (file, text) in [
        (
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\napp:x:1001:1002::/:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nteam:x:1003:\nextra:x:1004:app\n"),
    ] {
        append(&mut layer, file, text.as_bytes());
    }
    let users = layer.into_inner().unwrap();
    let config = serde_json::to_vec(&json!({
        "architecture": Host::probe().architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [sha256(&programs), sha256(&users)]},
    }))
    .unwrap();
    let descriptor = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": sha256(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &programs), descriptor("layer.v1.tar", &users)],
    }))
    .unwrap();
    let mut target = descriptor("manifest.v1+json", &manifest);
    target["annotations"] = json!({"io.containerd.image.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [target]})).unwrap();

    let mut archive = tar::Builder::new(File::create(path).unwrap());
    append(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    for blob in [&programs, &users, &config, &manifest] {
        append(
            &mut archive,
            &format!("blobs/{}", sha256(blob).replace(':', "/")),
            blob,
        );
    }
    append(&mut archive, "index.json", &index);
    archive.into_inner().unwrap().flush().unwrap();
}

fn append<W: Write>(archive: &mut tar::Builder<W>, path: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, path, bytes).unwrap();
}

/// No test but the log writer of the containers that tests run: [`Daemon::start`] has containerd start it so.
#[test]
fn log_pipe_process() {
    if let Some(log) = std::env::var_os(LOG_PIPE) {
        let args = log.to_string_lossy();
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let code = log_pipe::run(&args);
        std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
    }
}
