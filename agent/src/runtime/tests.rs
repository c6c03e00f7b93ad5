//! The runtime against a real containerd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::containerd::Containerd;
use super::testing::{Daemon, busybox_archive};
use super::*;

const IMAGE: &str = "busybox:test";

async fn with_image() -> Option<(Daemon, Containerd)> {
    let daemon = Daemon::start().await?;
    let client = daemon.client();
    let archive = daemon.path().join("busybox.tar");
    busybox_archive(&archive, IMAGE, json!({"Cmd": ["/bin/sleep", "1000"]}));
    let names = client.import(&archive).await.unwrap();
    assert_eq!(names, ["docker.io/library/busybox:test"]);
    Some((daemon, client))
}

fn config(daemon: &Daemon, name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        id: format!("test-{name}"),
        pod: PodRef {
            uid: "uid-1".into(),
            namespace: "default".into(),
            name: "pod".into(),
        },
        name: name.into(),
        attempt: 0,
        streak: 0,
        spec_hash: "hash".into(),
        handler: None,
        image: Some(IMAGE.into()),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        args: Vec::new(),
        env: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        namespaces: NamespacePaths::default(),
        cgroup: daemon
            .cgroup()
            .join("kubepods/burstable/poduid-1")
            .join(name),
        resources: Resources {
            cpu_shares: 102,
            ..Resources::default()
        },
        huge_pages: Default::default(),
        given: String::new(),
        oom_score_adj: -997,
        sysctls: Default::default(),
        security: Security {
            allow_privilege_escalation: true,
            ..Security::default()
        },
        stdio: Stdio::default(),
        stop_signal: None,
        hook_due: false,
    }
}

fn log(daemon: &Daemon, name: &str) -> PathBuf {
    daemon.path().join("logs").join(name).join("0.log")
}

async fn run(daemon: &Daemon, client: &Containerd, config: &ContainerConfig) -> ContainerState {
    client.create(config).await.unwrap();
    client
        .start(&config.id, &log(daemon, &config.name))
        .await
        .unwrap()
}

async fn exit_of(events: &mut mpsc::Receiver<RuntimeEvent>, id: &str) {
    let wanted = RuntimeEvent::Exited { id: id.into() };
    let wait = async { while events.recv().await.unwrap() != wanted {} };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .unwrap();
}

/// The log's text once it holds `wanted`: its writer is another process.
async fn log_with(path: &Path, wanted: &str) -> String {
    for _ in 0..200 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.contains(wanted) {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{wanted:?} did not appear in {}", path.display());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_ends_and_leaves_its_exit_code_and_log() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    assert!(
        client
            .version()
            .await
            .unwrap()
            .starts_with("containerd://1.")
    );
    let image = client.image(IMAGE).await.unwrap().unwrap();
    assert_eq!(image.config.cmd, ["/bin/sleep", "1000"]);
    assert!(client.image("absent:v1").await.unwrap().is_none());

    let mut events = client.events();
    assert_eq!(events.recv().await, Some(RuntimeEvent::Listening));

    let config = config(&daemon, "ends", "echo hello; echo oops >&2; exit 3");
    let made = client.create(&config).await.unwrap();
    assert_eq!(made.state, ContainerState::Created);
    assert_eq!(
        client.create(&config).await.unwrap().id,
        made.id,
        "asked again, it is the same"
    );
    client
        .start(&config.id, &log(&daemon, "ends"))
        .await
        .unwrap();
    exit_of(&mut events, &config.id).await;
    let stopped = client.state(&config.id).await.unwrap().unwrap();
    assert!(matches!(stopped, ContainerState::Stopped(_)));

    let ContainerState::Exited(exit) = client.reap(&config.id).await.unwrap() else {
        panic!()
    };
    assert_eq!((exit.code, exit.cause), (3, ExitCause::Process));
    let listed = daemon.client().list().await.unwrap();
    assert_eq!(
        listed[0].state,
        ContainerState::Exited(exit),
        "another client reads the same"
    );
    assert_eq!(listed[0].pod, config.pod);

    let text = log_with(&log(&daemon, "ends"), "stderr F oops").await;
    assert!(text.contains("stdout F hello"), "{text}");

    client.delete(&config.id).await.unwrap();
    client.delete(&config.id).await.unwrap();
    assert_eq!(client.list().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_and_its_log_outlive_containerd_and_the_client() {
    let Some((mut daemon, client)) = with_image().await else {
        return;
    };
    let config = config(
        &daemon,
        "stays",
        "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done",
    );
    let ContainerState::Running { pid } = run(&daemon, &client, &config).await else {
        panic!()
    };
    log_with(&log(&daemon, "stays"), "up").await;
    let mut events = client.events();
    assert_eq!(events.recv().await, Some(RuntimeEvent::Listening));

    daemon.restart().await;
    assert_eq!(
        events.recv().await,
        Some(RuntimeEvent::Listening),
        "listening begins anew"
    );
    assert_eq!(
        client.state(&config.id).await.unwrap(),
        Some(ContainerState::Running { pid })
    );
    assert_eq!(
        daemon
            .client()
            .start(&config.id, &log(&daemon, "stays"))
            .await
            .unwrap(),
        ContainerState::Running { pid }
    );

    client.signal(&config.id, libc::SIGTERM).await.unwrap();
    exit_of(&mut events, &config.id).await;
    log_with(&log(&daemon, "stays"), "bye").await;
    client.signal(&config.id, libc::SIGKILL).await.unwrap();
    let ContainerState::Exited(exit) = client.reap(&config.id).await.unwrap() else {
        panic!()
    };
    assert_eq!(exit.code, 0);
    daemon.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_shim_died_has_run() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let config = config(&daemon, "shim", "sleep 1000");
    let ContainerState::Running { pid } = run(&daemon, &client, &config).await else {
        panic!()
    };
    // That it was started is written down a moment later.
    tokio::time::sleep(Duration::from_secs(1)).await;
    daemon.kill_shim(&config.id, pid);
    let mut state = Some(ContainerState::Running { pid });
    for _ in 0..200 {
        // Until containerd has noticed, its answers are errors.
        state = client.state(&config.id).await.unwrap_or(state);
        if state != Some(ContainerState::Running { pid }) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(matches!(state, Some(ContainerState::Stopped(_))));
    // containerd needs a moment to let go of the shim.
    let mut reaped = client.reap(&config.id).await;
    for _ in 0..200 {
        if reaped.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        reaped = client.reap(&config.id).await;
    }
    let ContainerState::Exited(exit) = reaped.unwrap() else {
        panic!()
    };
    assert_eq!(exit.code, 137);
    daemon.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there_is_a_failed_start_that_is_remembered() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let mut config = config(&daemon, "broken", "");
    config.command = vec!["/no/such/program".into()];
    client.create(&config).await.unwrap();
    let error = client
        .start(&config.id, &log(&daemon, "broken"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Start(reason) if reason.contains("no such file")),
        "{error:?}"
    );
    let exit = Exit {
        code: 128,
        at: jiff::Timestamp::now(),
        cause: ExitCause::Start,
        message: error.to_string(),
    };
    client.record_failure(&config.id, &exit).await.unwrap();
    assert_eq!(
        client.state(&config.id).await.unwrap(),
        Some(ContainerState::Exited(exit))
    );
    daemon.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_in_a_container_and_is_ended_in_time() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let mut config = config(&daemon, "exec", "sleep 1000");
    config.security.user = Some(1001);
    run(&daemon, &client, &config).await;
    let command = |text: &str| vec!["/bin/sh".into(), "-c".into(), text.into()];
    let result = client
        .exec(
            &config.id,
            &command("id -u; exit 4"),
            Duration::from_secs(10),
        )
        .await
        .unwrap();
    assert_eq!(
        result,
        ExecResult {
            code: 4,
            output: "1001\n".into()
        }
    );
    // More than is kept, on both streams.
    let much = "i=0; while [ $i -lt 2000 ]; do echo 0123456789012345678901234567890123456789; echo >&2; i=$((i+1)); done";
    let result = client
        .exec(&config.id, &command(much), Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!((result.code, result.output.len()), (0, 10 << 10));
    // What it leaves behind holds its output open, and keeps nobody.
    let result = client
        .exec(
            &config.id,
            &command("yes & echo out"),
            Duration::from_secs(30),
        )
        .await
        .unwrap();
    assert_eq!(result.code, 0);
    let error = client
        .exec(
            &config.id,
            &command("sleep 100"),
            Duration::from_millis(300),
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("did not end within"), "{error}");
    daemon.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_ends_a_container_as_out_of_memory() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let mut config = config(
        &daemon,
        "hungry",
        "dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    config.resources.memory_limit = Some(32 << 20);
    let mut events = client.events();
    assert_eq!(events.recv().await, Some(RuntimeEvent::Listening));
    run(&daemon, &client, &config).await;
    exit_of(&mut events, &config.id).await;
    let ContainerState::Exited(exit) = client.reap(&config.id).await.unwrap() else {
        panic!()
    };
    assert_eq!(exit.cause, ExitCause::OutOfMemory, "{exit:?}");
    daemon.clear().await;
}

#[tokio::test]
async fn without_containerd_the_error_names_the_socket() {
    let client = Containerd::new(
        Path::new("/nowhere/c.sock"),
        host::Host::probe(),
        Path::new("/x"),
        Path::new("/x"),
    );
    let error = client.version().await.unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.to_string().contains("/nowhere/c.sock"), "{error}");
}

#[tokio::test]
async fn a_containerd_that_hangs_is_given_up_and_taken_for_absent() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("containerd.sock");
    // The kernel takes the connection; nobody ever reads from it.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let request = rpc::within(Duration::from_millis(100), tonic::Request::new(()));
    let mut client = VersionClient::new(rpc::connect(&socket));
    let status = client.version(request).await.unwrap_err();
    assert!(rpc::failed("ask", &status).is_unreachable(), "{status:?}");
}

#[test]
fn a_registry_that_hangs_is_no_absent_containerd() {
    let status = tonic::Status::unknown("failed to do request: context deadline exceeded");
    let error = pull::pull_failure("busybox:1", &status);
    assert!(matches!(error, RuntimeError::Pull { .. }), "{error}");
    assert!(rpc::failed("look", &status).is_unreachable());
    let away = tonic::Status::unavailable("connection refused");
    assert!(pull::pull_failure("busybox:1", &away).is_unreachable());
}

#[test]
fn only_what_runc_says_is_the_containers_own_failure() {
    let of = |message: &str| rpc::start_failure("id", &tonic::Status::unknown(message));
    let runc = "failed to create shim task: OCI runtime create failed: runc create failed: unable to start \
        container process: exec: \"/no/such\": stat /no/such: no such file or directory: unknown";
    assert!(matches!(of(runc), RuntimeError::Start(_)));
    for passing in [
        "failed to start shim: mkdir /run/containerd/io.containerd.runtime.v2.task/k8s.io/id: file exists",
        "failed to create shim task: ttrpc: closed: unknown",
        "failed to create shim task: OCI runtime create failed: container with given ID already exists: unknown",
    ] {
        assert!(
            matches!(of(passing), RuntimeError::Failed { .. }),
            "{passing}"
        );
    }
    assert!(of("context deadline exceeded").is_unreachable());
}

async fn read_all(pipe: Option<tokio::net::unix::pipe::Receiver>) -> String {
    let mut text = String::new();
    pipe.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_streams_and_is_found_by_the_next_agent() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let config = config(&daemon, "commands", "exec sleep 1000");
    run(&daemon, &client, &config).await;
    let command = |script: &str| Command {
        args: vec!["/bin/sh".into(), "-c".into(), script.into()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..Command::default()
    };
    let asked = command("cat; echo no >&2; exit 3");
    let (process, streams) = client.start_command(&config.id, &asked).await.unwrap();
    let mut stdin = streams.stdin.unwrap();
    stdin.write_all(b"words").await.unwrap();
    drop(stdin);
    client.close_stdin(&process).await.unwrap();
    assert_eq!(read_all(streams.stdout).await, "words");
    assert_eq!(read_all(streams.stderr).await, "no\n");
    assert_eq!(client.wait(&process).await.unwrap(), 3);
    client.remove_command(&process).await;

    let absent = Command {
        args: vec!["/no/such".into()],
        ..command("")
    };
    let refused = client.start_command(&config.id, &absent).await;
    assert!(
        matches!(refused, Err(RuntimeError::Start(_))),
        "{refused:?}"
    );

    let terminal = Command {
        tty: true,
        ..command("tty; sleep 1000")
    };
    let (left, streams) = client.start_command(&config.id, &terminal).await.unwrap();
    assert!(streams.stderr.is_none());
    let mut seen = [0; 8];
    let mut stdout = streams.stdout.unwrap();
    stdout.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"/dev/pts");
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    client.resize(&left, size).await.unwrap();
    // As if the agent had ended here.
    daemon.client().end_orphans().await;
    let gone = client.wait(&left).await;
    assert!(gone.is_err(), "{gone:?}");
    daemon.clear().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_followed_and_fed() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let mut config = config(&daemon, "fed", "cat; echo over");
    config.stdio = Stdio {
        stdin: true,
        stdin_once: true,
        tty: false,
    };
    run(&daemon, &client, &config).await;
    let path = log(&daemon, "fed");
    let mut attached = client.attach(&config.id, &path).await.unwrap();
    assert_eq!(attached.stdio, config.stdio);
    let mut stdin = attached.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    let heard = attached.output.next().await.unwrap();
    assert_eq!(heard, Some((OutputStream::Out, "one\n".into())));
    drop(stdin);
    let process = Process {
        container: config.id.clone(),
        exec: String::new(),
    };
    client.close_stdin(&process).await.unwrap();
    let heard = attached.output.next().await.unwrap();
    assert_eq!(heard, Some((OutputStream::Out, "over\n".into())));
    assert_eq!(attached.output.next().await.unwrap(), None);
    let text = log_with(&path, "over").await;
    assert!(text.contains("stdout F one\n"), "{text}");
    daemon.clear().await;
}

#[tokio::test]
async fn images_and_layers_are_measured_and_an_image_goes_with_its_last_name() {
    let Some((daemon, client)) = with_image().await else {
        return;
    };
    let images = client.images().await.unwrap();
    assert_eq!(images.len(), 1, "{images:?}");
    assert_eq!(images[0].names, ["docker.io/library/busybox:test"]);
    assert!(images[0].size_bytes > 0 && !images[0].in_use, "{images:?}");
    assert!(
        images[0].is_pinned,
        "it was put here on purpose: {images:?}"
    );
    let directory = client.image_directory().await.unwrap().unwrap();
    assert!(directory.starts_with(daemon.path()), "{directory:?}");

    let writer = config(
        &daemon,
        "writer",
        "head -c 1048576 /dev/urandom >/file; sync; sleep 1000",
    );
    run(&daemon, &client, &writer).await;
    assert!(client.images().await.unwrap()[0].in_use);
    let mut written = DiskUsage::default();
    for _ in 0..250 {
        written = client.written(&writer.id).await.unwrap().unwrap();
        if written.bytes >= 1 << 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    assert!(
        written.bytes >= 1 << 20 && written.inodes > 0,
        "{written:?}"
    );
    assert_eq!(client.written("absent").await.unwrap(), None);

    client.signal(&writer.id, libc::SIGKILL).await.unwrap();
    let mut state = client.reap(&writer.id).await.unwrap();
    for _ in 0..250 {
        if matches!(state, ContainerState::Exited(_)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
        state = client.reap(&writer.id).await.unwrap();
    }
    client.delete(&writer.id).await.unwrap();
    assert!(!client.images().await.unwrap()[0].in_use);
    let volume = ImageVolume {
        pod_uid: "uid".into(),
        name: "data".into(),
    };
    let layers = client.image_layers(IMAGE, &volume).await.unwrap();
    assert_eq!(layers.len(), 2, "{layers:?}");
    assert!(client.images().await.unwrap()[0].in_use, "by a volume");

    let digest = images[0].digest.clone();
    client.remove_image(&digest).await.unwrap();
    client.remove_image(&digest).await.unwrap();
    assert_eq!(client.images().await.unwrap(), []);
    assert_eq!(client.image(IMAGE).await.unwrap(), None);
    // Removing it has waited for the garbage collector.
    let bottom = layers[1].join("bin/busybox");
    assert!(bottom.exists(), "a volume keeps it");
    let holders = async || daemon.client().image_holders().await.unwrap();
    assert_eq!(holders().await, ["uid".to_owned()].into());
    client.release_images("another").await.unwrap();
    assert_eq!(holders().await.len(), 1);
    client.release_images("uid").await.unwrap();
    client.release_images("uid").await.unwrap();
    assert!(holders().await.is_empty());
}
