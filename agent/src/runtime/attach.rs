//! Following a container's output as it comes, and writing its input.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::log_pipe::{self, HEAD};

/// The longest message that is believed, in bytes.
const LONGEST: usize = 1 << 20;

/// Which output something was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    Out,
    Err,
}

/// How long the log's writer may take to let somebody in. One that an earlier agent started says nothing.
const JOINING: Duration = Duration::from_secs(1);

/// A container's output from now on.
#[derive(Debug)]
pub struct Output {
    stream: UnixStream,
    /// Said before it was asked for.
    heard: Option<(OutputStream, Bytes)>,
}

impl Output {
    /// Joins those who follow `log`: what is written after this returns is heard.
    pub(super) async fn follow(log: &Path) -> io::Result<Output> {
        let socket = log_pipe::socket(log);
        let connect = move || {
            log_pipe::by_short_name(&socket, |name| {
                let stream = std::os::unix::net::UnixStream::connect(name)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            })
        };
        let connected = tokio::task::spawn_blocking(connect).await;
        let stream = connected.map_err(io::Error::other)??;
        let stream = UnixStream::from_std(stream)?;
        let mut output = Output {
            stream,
            heard: None,
        };
        // A connection is there before its other end knows of it.
        if let Ok(first) = timeout(JOINING, output.next()).await {
            output.heard = first?.filter(|(_, text)| !text.is_empty());
        }
        Ok(output)
    }

    /// What was written next; `None` at the end.
    pub async fn next(&mut self) -> io::Result<Option<(OutputStream, Bytes)>> {
        if let Some(heard) = self.heard.take() {
            return Ok(Some(heard));
        }
        let mut head = [0; HEAD];
        match self.stream.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let [number, length @ ..] = head;
        let stream = match number {
            1 => OutputStream::Out,
            2 => OutputStream::Err,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let length = u32::from_be_bytes(length) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = BytesMut::zeroed(length);
        self.stream.read_exact(&mut text).await?;
        Ok(Some((stream, text.freeze())))
    }
}
