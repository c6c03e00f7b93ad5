//! The protocol of remote commands, which exec and attach speak: which streams there are, in which of its versions.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::negotiate::Upgrade;
use super::spdy::{Opened, SpdyError};
use super::status::{Ending, Report, render};
use super::websocket::Form;
use super::{Channel, Connection, Incoming, spdy, websocket};

/// Versions over SPDY, the newest first.
pub(super) const SPDY: [&str; 4] = [
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];
/// Versions over WebSockets. A client that names none speaks the last.
pub(super) const WEBSOCKET: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "base64.channel.k8s.io",
    "channel.k8s.io",
];

/// How long a client may take to open its streams.
const PATIENCE: Duration = Duration::from_secs(30);

/// The channels of a WebSocket.
const STDIN: usize = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;
const RESIZE: usize = 4;

/// Which streams a client asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Asked {
    /// From the parameters of the query, in the kubelet's words or in the API's.
    pub(super) fn read(query: &[(String, String)]) -> Result<Asked, &'static str> {
        let is_set = |names: [&str; 2]| {
            let mut values = query
                .iter()
                .filter(|(name, _)| names.contains(&name.as_str()))
                .map(|(_, value)| value.as_str());
            values.any(|value| matches!(value, "1" | "true"))
        };
        let tty = is_set(["tty", "tty"]);
        let asked = Asked {
            stdin: is_set(["input", "stdin"]),
            stdout: is_set(["output", "stdout"]),
            // A terminal has one output.
            stderr: is_set(["error", "stderr"]) && !tty,
            tty,
        };
        if !asked.stdin && !asked.stdout && !asked.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr");
        }
        Ok(asked)
    }
}

/// A client with its streams.
pub(super) struct Remote {
    pub(super) connection: Connection,
    pub(super) stdin: Option<Incoming>,
    pub(super) stdout: Option<Channel>,
    pub(super) stderr: Option<Channel>,
    pub(super) resize: Option<Incoming>,
    error: Channel,
    report: Report,
}

/// Why a client has no streams.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("the client did not open its streams in time")]
    Late,
    #[error("the client went before it had opened its streams")]
    Gone,
    #[error("the client opened a stream of type {0:?}, which it did not ask for")]
    Stranger(String),
    #[error(transparent)]
    Spdy(#[from] SpdyError),
}

impl Remote {
    /// The streams of a connection that speaks `version`.
    pub(super) async fn open(
        upgrade: Upgrade,
        version: &str,
        asked: Asked,
    ) -> Result<Remote, RemoteError> {
        match upgrade {
            Upgrade::Spdy(io) => {
                let (connection, opened) = spdy::serve(io)?;
                let gathered = gather(connection, opened, version, asked);
                tokio::time::timeout(PATIENCE, gathered)
                    .await
                    .map_err(|_| RemoteError::Late)?
            }
            Upgrade::WebSocket(socket) => {
                let form = if version.contains("base64") {
                    Form::Base64
                } else {
                    Form::Binary
                };
                let (connection, incoming) = websocket::serve(*socket, form, 5);
                Ok(Remote::over_channels(connection, incoming, version, asked).await)
            }
        }
    }

    async fn over_channels(
        connection: Connection,
        incoming: Vec<Incoming>,
        version: &str,
        asked: Asked,
    ) -> Remote {
        let mut incoming: Vec<_> = incoming.into_iter().map(Some).collect();
        let mut take = |at: usize, wanted: bool| {
            let taken = incoming.get_mut(at).and_then(Option::take);
            taken.filter(|_| wanted)
        };
        let channel = |id, wanted: bool| wanted.then(|| connection.channel(id));
        let remote = Remote {
            stdin: take(STDIN, asked.stdin),
            resize: take(RESIZE, asked.tty),
            stdout: channel(STDOUT, asked.stdout),
            stderr: channel(STDERR, asked.stderr),
            error: connection.channel(ERROR),
            report: report(version),
            connection,
        };
        // An empty message tells the client that the connection stands.
        let first = [&remote.stdout, &remote.stderr]
            .into_iter()
            .flatten()
            .next();
        let _ = first.unwrap_or(&remote.error).send(Bytes::new()).await;
        remote
    }

    /// Tells the client how it ended, and closes.
    pub(super) async fn finish(self, ending: &Ending) {
        let told = render(ending, self.report);
        if !told.is_empty() {
            let _ = self.error.send(told).await;
        }
        for channel in [self.stdout, self.stderr, Some(self.error)]
            .into_iter()
            .flatten()
        {
            channel.end().await;
        }
        self.connection.close().await;
    }
}

/// Waits for each stream that the client has to open.
async fn gather(
    connection: Connection,
    mut opened: mpsc::Receiver<Opened>,
    version: &str,
    asked: Asked,
) -> Result<Remote, RemoteError> {
    let (mut error, mut stdin, mut stdout, mut stderr, mut resize) = (None, None, None, None, None);
    let resizes = asked.tty && has_resize(version);
    let wanted = [asked.stdin, asked.stdout, asked.stderr, resizes];
    let mut missing = 1 + wanted.into_iter().filter(|wanted| *wanted).count();
    while missing > 0 {
        let stream = opened.recv().await.ok_or(RemoteError::Gone)?;
        let kind = stream.headers.get("streamtype").to_owned();
        let is_new = match kind.as_str() {
            "error" => error.replace(stream.channel).is_none(),
            "stdin" if asked.stdin => stdin.replace(stream.incoming).is_none(),
            "stdout" if asked.stdout => stdout.replace(stream.channel).is_none(),
            "stderr" if asked.stderr => stderr.replace(stream.channel).is_none(),
            "resize" if resizes => resize.replace(stream.incoming).is_none(),
            _ => false,
        };
        if !is_new {
            return Err(RemoteError::Stranger(kind));
        }
        missing -= 1;
    }
    Ok(Remote {
        connection,
        stdin,
        stdout,
        stderr,
        resize,
        error: error.ok_or(RemoteError::Gone)?,
        report: report(version),
    })
}

fn has_resize(version: &str) -> bool {
    !matches!(version, "channel.k8s.io" | "v2.channel.k8s.io")
}

fn report(version: &str) -> Report {
    if version.starts_with("v4.") || version.starts_with("v5.") {
        Report::Status
    } else {
        Report::Text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &[(&str, &str)]) -> Result<Asked, &'static str> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Asked::read(&query.iter().map(own).collect::<Vec<_>>())
    }

    #[test]
    fn the_kubelets_words_and_the_apis_mean_the_same() {
        let kubelet = read(&[("input", "1"), ("output", "1"), ("error", "1")]).unwrap();
        let api = read(&[("stdin", "true"), ("stdout", "true"), ("stderr", "true")]).unwrap();
        assert_eq!(kubelet, api);
        assert!(kubelet.stdin && kubelet.stdout && kubelet.stderr && !kubelet.tty);
        let tty = read(&[("output", "1"), ("error", "1"), ("tty", "1")]).unwrap();
        assert!(!tty.stderr, "a terminal has one output");
        assert!(read(&[("tty", "1"), ("stdout", "false")]).is_err());
    }

    #[test]
    fn each_version_says_what_it_has() {
        assert!(has_resize("v3.channel.k8s.io") && !has_resize("v2.channel.k8s.io"));
        assert_eq!(report("v4.base64.channel.k8s.io"), Report::Status);
        assert_eq!(report("v3.channel.k8s.io"), Report::Text);
    }
}
