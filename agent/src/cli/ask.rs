//! Asking the running agent, over its Unix socket.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::CliError;
use super::table::plain;
use crate::config::{DEFAULT_RUN_DIR, socket_in};
use crate::introspection::introspection_client::IntrospectionClient;

/// Flags of every command that asks the agent.
#[derive(Args, Clone, Debug)]
pub struct Ask {
    /// The agent's run directory
    #[arg(long, env = "KERNELET_RUN_DIR", value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// How to print the answer
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("the agent is not running: nothing answers on {} (is --run-dir right?)", socket.display())]
    NotRunning { socket: PathBuf },
    #[error("not allowed to open {}: run as root", socket.display())]
    NotAllowed { socket: PathBuf },
    #[error("cannot open {}", socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk to the agent")]
    Channel(#[source] tonic::transport::Error),
    #[error(
        "the agent closed the connection before it answered: it stopped, or did not come up; its log says why"
    )]
    Ended,
    #[error("{}", .0.message())]
    Refused(Status),
}

impl AskError {
    /// A status has a cause when it is not the agent's word: then the connection has failed.
    fn of(status: Status) -> Self {
        match status.source() {
            Some(_) => AskError::Ended,
            None => AskError::Refused(status),
        }
    }
}

/// Text of several lines for a terminal. Cells of tables have lost their line ends before.
fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

pub(super) type Client = IntrospectionClient<Channel>;

impl Ask {
    /// Connects, asks `question`, and renders the answer: with `table` for people.
    pub(super) fn render<T: Serialize>(
        &self,
        question: impl AsyncFnOnce(Client) -> Result<T, Status>,
        table: impl FnOnce(&T) -> String,
    ) -> Result<String, CliError> {
        let answer = self.ask(question)?;
        match self.output {
            Output::Table => Ok(lines(&table(&answer))),
            Output::Json => Ok(serde_json::to_string_pretty(&answer)? + "\n"),
        }
    }

    /// Connects and asks `question`.
    pub(super) fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Client) -> Result<T, Status>,
    ) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(CliError::Runtime)?;
        let answer = runtime.block_on(async {
            let client = self.connect().await?;
            question(client).await.map_err(AskError::of)
        })?;
        Ok(answer)
    }

    async fn connect(&self) -> Result<Client, AskError> {
        let socket = socket_in(&self.run_dir);
        // The first connection is made here, where its error still says why.
        let stream = UnixStream::connect(&socket)
            .await
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    AskError::NotRunning {
                        socket: socket.clone(),
                    }
                }
                io::ErrorKind::PermissionDenied => AskError::NotAllowed {
                    socket: socket.clone(),
                },
                _ => AskError::Connect {
                    socket: socket.clone(),
                    source,
                },
            })?;
        let mut stream = Some(stream);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        // The address is only what the request's headers say.
        let endpoint = Endpoint::from_static("http://kernelet");
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(AskError::Channel)?;
        Ok(Client::new(channel).max_decoding_message_size(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::StatusRequest;

    #[test]
    fn an_agent_that_ends_while_it_is_asked_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let ask = Ask {
            run_dir: dir.path().to_owned(),
            output: Output::Json,
        };
        let listener = std::os::unix::net::UnixListener::bind(socket_in(dir.path())).unwrap();
        let ending = std::thread::spawn(move || drop(listener.accept()));
        let asked = ask.ask(async |mut client| client.status(StatusRequest {}).await);
        ending.join().unwrap();
        assert!(
            matches!(asked, Err(CliError::Ask(AskError::Ended))),
            "{asked:?}"
        );
    }

    #[test]
    fn lines_end_and_nothing_else_is_done_to_the_terminal() {
        assert_eq!(lines("a\x1b]0;b\x07\nc\n"), "a\u{fffd}]0;b\u{fffd}\nc\n");
    }
}
