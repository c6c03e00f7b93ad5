//! A machine of one program: a kernel under qemu, without KVM, and an initramfs that runs a command and powers off.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kernelet_tests::command::{command, output};
use kernelet_tests::kernels::Kernel;

/// What the agent asks of a kernel that has them as modules, in the order of their dependencies.
const MODULES: [&str; 6] = [
    "net/ipv4/inet_diag",
    "net/ipv4/tcp_diag",
    "net/ipv4/udp_diag",
    "drivers/net/veth",
    "net/sched/sch_ingress",
    "net/sched/cls_bpf",
];
/// A machine that hangs is ended after so many seconds.
const LIMIT: &str = "400";

/// Boots `kernel` and runs `program ARGUMENTS` on it as root. Gives what it printed and its exit code.
pub fn run(kernel: &Kernel, directory: &Path, program: &Path, arguments: &str) -> (String, String) {
    let archive = initramfs(kernel, directory, program, arguments);
    let mut machine = command(
        "timeout LIMIT qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 512 -nographic -no-reboot -nic none"
            .replace("LIMIT", LIMIT)
            .as_str(),
    );
    machine
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&archive)
        // A busy host lets the timer wait, which a kernel that tests it takes for broken.
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
        .stdin(Stdio::null());
    let said = output(&mut machine).unwrap().replace('\r', "");
    let printed = said
        .split_once("BEGIN\n")
        .and_then(|(_, rest)| rest.split_once("END "));
    let (printed, rest) =
        printed.unwrap_or_else(|| panic!("the machine did not get there: {said}"));
    let code = rest.lines().next().unwrap_or_default();
    (printed.to_owned(), code.to_owned())
}

fn initramfs(kernel: &Kernel, directory: &Path, program: &Path, arguments: &str) -> PathBuf {
    let root = directory.join("root");
    let _ = fs::remove_dir_all(&root);
    for inner in ["bin", "dev", "proc", "sys", "tmp", "modules"] {
        fs::create_dir_all(root.join(inner)).unwrap();
    }
    let busybox = kernelet_tests::cluster::find_program("busybox").unwrap();
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    output(
        Command::new("strip")
            .arg("-o")
            .arg(root.join("program"))
            .arg(program),
    )
    .unwrap();
    libraries(program, &root);
    for (number, name) in MODULES.iter().enumerate() {
        let target = root.join(format!("modules/{number}.ko"));
        module(&kernel.modules.join(name), &target);
    }
    let init = root.join("init");
    let script = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin\n\
         busybox mount -t proc proc /proc\n\
         busybox mount -t sysfs sysfs /sys\n\
         busybox mount -t devtmpfs dev /dev\n\
         for module in /modules/*.ko; do busybox insmod $module; done\n\
         echo BEGIN\n\
         /program {arguments}\n\
         echo END $?\n\
         busybox poweroff -f\n"
    );
    fs::write(&init, script).unwrap();
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
    let archive = directory.join("initramfs");
    let mut pack = Command::new("sh");
    pack.current_dir(&root)
        .arg("-c")
        .arg("find . | cpio --quiet -o -H newc > \"$0\"")
        .arg(&archive);
    output(&mut pack).unwrap();
    archive
}

/// Copies the shared libraries of a program to where it looks for them.
fn libraries(program: &Path, root: &Path) {
    let listed = output(Command::new("ldd").arg(program)).unwrap();
    let paths = listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths {
        let target = root.join(&path[1..]);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

/// Copies a module; newer packages have them compressed.
fn module(path: &Path, target: &Path) {
    let plain = path.with_extension("ko");
    if plain.exists() {
        fs::copy(plain, target).unwrap();
        return;
    }
    let unpacked = Command::new("xz")
        .arg("-dc")
        .arg(path.with_extension("ko.xz"))
        .stdout(fs::File::create(target).unwrap())
        .status()
        .unwrap();
    assert!(unpacked.success(), "{}", path.display());
}
