//! systemd's logind, as far as shutdowns go: <https://systemd.io/INHIBITOR_LOCKS>.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;

use super::bus::{Argument, Bus, BusError, Kind, Target};

/// Where the system's bus listens.
pub const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// The file that lets processes delay a shutdown for as long as pods are given.
pub const CONFIG: &str = "/etc/systemd/logind.conf.d/99-kernelet.conf";

const DESTINATION: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: Target = Target {
    destination: DESTINATION,
    path: PATH,
    interface: "org.freedesktop.login1.Manager",
};
const PROPERTIES: Target = Target {
    interface: "org.freedesktop.DBus.Properties",
    ..MANAGER
};
const SYSTEMD: Target = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const SIGNAL: &str = "PrepareForShutdown";

/// Looks at whether logind has read its new configuration, and the pause between two of them.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Why a shutdown cannot be made to wait.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    #[error("logind cannot be asked: {0}")]
    Bus(#[from] BusError),
    #[error("logind gave no {0}")]
    Answer(&'static str),
    #[error("cannot write {}: {source}", path.display())]
    Config { path: PathBuf, source: io::Error },
    #[error(
        "logind lets a shutdown wait for {} s only, {} s are wanted: raise InhibitDelayMaxSec in logind.conf",
        allowed.as_secs(), wanted.as_secs()
    )]
    TooShort {
        allowed: SignedDuration,
        wanted: SignedDuration,
    },
}

/// While it is held, a shutdown waits, as long as logind allows.
#[derive(Debug)]
pub struct Lock {
    _descriptor: OwnedFd,
}

/// A connection to logind.
pub struct Logind(Bus);

impl Logind {
    /// Connects over the bus at a socket, and listens for shutdowns.
    pub async fn connect(bus: &Path) -> Result<Logind, LogindError> {
        let mut bus = Bus::connect(bus).await?;
        let interface = MANAGER.interface;
        bus.listen(&format!(
            "type='signal',sender='{DESTINATION}',path='{PATH}',interface='{interface}',member='{SIGNAL}'"
        ))
        .await?;
        Ok(Logind(bus))
    }

    /// Whether a shutdown is being prepared.
    pub async fn is_ending(&mut self) -> Result<bool, LogindError> {
        let name = "PreparingForShutdown";
        let value = self.property(name).await?;
        value.truth().ok_or(LogindError::Answer(name))
    }

    /// Makes logind let shutdowns wait for so long, where it does not already.
    pub async fn allow(
        &mut self,
        wanted: SignedDuration,
        config: &Path,
    ) -> Result<(), LogindError> {
        let mut allowed = self.allowed().await?;
        if allowed >= wanted {
            return Ok(());
        }
        write(config, wanted).map_err(|source| LogindError::Config {
            path: config.to_owned(),
            source,
        })?;
        let reload = [
            Argument::Text("systemd-logind.service"),
            Argument::Text("all"),
            Argument::Signed(libc::SIGHUP),
        ];
        self.0.call(&SYSTEMD, "KillUnit", &reload).await?;
        for _ in 0..LOOKS {
            allowed = self.allowed().await?;
            if allowed >= wanted {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(LogindError::TooShort { allowed, wanted })
    }

    /// Makes shutdowns wait.
    pub async fn inhibit(&mut self) -> Result<Lock, LogindError> {
        let arguments = [
            Argument::Text("shutdown"),
            Argument::Text("kernelet"),
            Argument::Text("pods need time to end"),
            Argument::Text("delay"),
        ];
        let answer = self.0.call(&MANAGER, "Inhibit", &arguments).await?;
        let descriptor = answer.descriptors.into_iter().next();
        let _descriptor = descriptor.ok_or(LogindError::Answer("inhibitor"))?;
        Ok(Lock { _descriptor })
    }

    /// Waits for the next word on it: whether a shutdown is being prepared, or is called off. Cancel-safe.
    pub async fn next(&mut self) -> Result<bool, LogindError> {
        loop {
            let message = self.0.next().await?;
            if message.kind == Kind::Signal && message.member == SIGNAL {
                return message.truth().ok_or(LogindError::Answer(SIGNAL));
            }
        }
    }

    async fn allowed(&mut self) -> Result<SignedDuration, LogindError> {
        let name = "InhibitDelayMaxUSec";
        let value = self.property(name).await?;
        let micros = value.large_number().ok_or(LogindError::Answer(name))?;
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        Ok(SignedDuration::from_micros(micros))
    }

    async fn property(&mut self, name: &str) -> Result<super::bus::Message, LogindError> {
        let arguments = [Argument::Text(MANAGER.interface), Argument::Text(name)];
        Ok(self.0.call(&PROPERTIES, "Get", &arguments).await?)
    }
}

fn write(path: &Path, wanted: SignedDuration) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let seconds = wanted.as_secs();
    let text = format!(
        "# Written by kernelet: pods have so long to end.\n[Login]\nInhibitDelayMaxSec={seconds}\n"
    );
    fs::write(path, text)
}
