//! A control plane without nodes, on an address of this machine that only it has.

use std::fs::File;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::binaries;
use crate::{Error, Result, host};

/// How long a start may take.
const START: Duration = Duration::from_secs(60);

/// A control plane that ends with its value.
pub struct ControlPlane {
    child: Child,
    directory: PathBuf,
    address: Ipv4Addr,
}

impl ControlPlane {
    /// Starts one on port 6443 of a loopback address that nobody else uses, on what `directory` holds.
    pub fn start(directory: &Path, address: Ipv4Addr, arguments: &[&str]) -> Result<ControlPlane> {
        let program = binaries().join("kernelet-control-plane");
        host::create_dir(directory)?;
        let failed = |source| Error::System {
            what: format!("starting {}", program.display()),
            source,
        };
        let log = File::create(directory.join("log")).map_err(failed)?;
        let child = Command::new(&program)
            .arg("--data-dir")
            .arg(directory)
            .args(["--advertise-address", &address.to_string()])
            .args(["--listen", &format!("{address}:6443")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        let mut server = ControlPlane {
            child,
            directory: directory.to_owned(),
            address,
        };
        server.wait()?;
        Ok(server)
    }

    /// Until it listens and the administrator's kubeconfig is there. Either may be first.
    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while !self.kubeconfig().exists() || TcpStream::connect((self.address, 6443)).is_err() {
            if Instant::now() >= deadline || !self.runs() {
                return Err(Error::Unexpected(format!(
                    "the control plane does not serve: {}",
                    host::read(self.directory.join("log"))?
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Whether it has not ended.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `https://ADDRESS:6443`
    pub fn url(&self) -> String {
        format!("https://{}:6443", self.address)
    }

    /// The administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("admin.kubeconfig")
    }

    /// `kubectl` as the administrator.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.directory.join("cache"));
        command
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
