use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

fn written(chunks: &[&[u8]], limit: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/0.log");
    let log = Mutex::new(Log::new(&path, limit));
    pass(chunks, &log);
    (dir, path)
}

/// What a container that writes `chunks` and ends does to the log.
fn pass(chunks: &[&[u8]], log: &Mutex<Log>) {
    let dir = tempfile::tempdir().unwrap();
    let audience = Audience::open(&dir.path().join("0.log"));
    let (reader, writer) = io::pipe().unwrap();
    let mut input = Input::new(File::from(OwnedFd::from(reader)), Stream::Out);
    let mut writer = File::from(OwnedFd::from(writer));
    for chunk in chunks {
        writer.write_all(chunk).unwrap();
        assert!(input.pass_on(log, &audience).unwrap());
    }
    drop(writer);
    assert!(!input.pass_on(log, &audience).unwrap());
}

/// The entries without their times.
fn entries(path: &Path) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.parse::<Timestamp>().is_ok(), "{time}");
            assert_eq!(time.len(), "2026-01-02T03:04:05.123456789Z".len());
            rest.to_owned()
        })
        .collect()
}

#[test]
fn lines_are_put_together_from_pieces() {
    let (_dir, path) = written(&[b"one\ntw", b"o\n", b"three"], ROTATE_AT);
    assert_eq!(
        entries(&path),
        ["stdout F one", "stdout F two", "stdout P three"]
    );
}

#[test]
fn a_long_line_becomes_several_entries() {
    let long = vec![b'x'; LONGEST];
    let (_dir, path) = written(&[&long, b"end\n"], ROTATE_AT);
    let entries = entries(&path);
    assert_eq!(entries.len(), 2);
    assert!(entries[0].starts_with("stdout P xxx"));
    assert_eq!(entries[1], "stdout F end");
}

#[test]
fn a_full_log_is_rotated_and_old_ones_go() {
    let chunks = vec![b"0123456789\n".as_slice(); 40];
    let (_dir, path) = written(&chunks, 100);
    assert_eq!(files(&path).len(), KEEP as usize + 1);
    assert!(!rotated(&path, KEEP + 1).exists());
    for full in 1..=KEEP {
        assert!(fs::metadata(rotated(&path, full)).unwrap().len() >= 100);
    }
}

#[test]
fn a_log_that_cannot_be_opened_is_read_all_the_same_and_says_so_later() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("place/0.log");
    fs::write(dir.path().join("place"), "a file where a directory belongs").unwrap();
    let log = Mutex::new(Log::new(&path, ROTATE_AT));
    pass(&[b"lost\n", b"lost too\n"], &log);
    fs::remove_file(dir.path().join("place")).unwrap();
    pass(&[b"kept\n"], &log);
    let note = "stderr F kernelet: 2 entries of this log could not be written and are lost";
    assert_eq!(entries(&path), [note, "stdout F kept"]);
}

#[test]
fn a_full_disk_costs_lines_and_nothing_else() {
    if !crate::testing::root_or_skip("a small file system needs root") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("kn-pd").tempdir().unwrap();
    let options = Some(c"size=64k");
    rustix::mount::mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options).unwrap();
    let path = dir.path().join("0.log");
    let log = Mutex::new(Log::new(&path, ROTATE_AT));
    let filler = dir.path().join("filler");
    assert!(fs::write(&filler, vec![0; 1 << 20]).is_err());
    let long = [vec![b'x'; 10_000], vec![b'\n']].concat();
    pass(&[&long, b"lost\n"], &log);
    fs::remove_file(&filler).unwrap();
    pass(&[b"kept\n"], &log);
    let found = entries(&path);
    rustix::mount::unmount(dir.path(), UnmountFlags::DETACH).unwrap();
    let note = "stderr F kernelet: 2 entries of this log could not be written and are lost";
    assert_eq!(found, [note, "stdout F kept"]);
}

/// The log writer as the shim runs it, with its first output on the returned pipe and an empty second one.
fn process(log: &Path) -> (Child, File) {
    let (reader, writer) = io::pipe().unwrap();
    let child = Command::new("sh")
        .args([
            "-c",
            "exec 3<&0 4</dev/null 5>/dev/null \"$0\" --exact \"$1\"",
        ])
        .arg(std::env::current_exe().unwrap())
        .arg("runtime::testing::log_pipe_process")
        .env(crate::runtime::testing::LOG_PIPE, log)
        .stdin(reader)
        .stdout(Stdio::null())
        .spawn();
    (child.unwrap(), File::from(OwnedFd::from(writer)))
}

#[test]
fn sigterm_does_not_cost_the_last_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let (mut child, mut output) = process(&path);
    for _ in 0..500 {
        if path.exists() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    // The signal is there first; without a reader this fails or is lost.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let _ = output.write_all(b"last words\n");
    drop(output);
    assert!(child.wait().unwrap().success());
    assert_eq!(entries(&path), ["stdout F last words"]);
}
