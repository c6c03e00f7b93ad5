//! Between a process's pipes and a client's streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Channel, Incoming};
use crate::runtime::TerminalSize;

/// So much is read at once, in bytes.
const PIECE: usize = 32 << 10;
/// A process that has ended may have left others that hold its output open: after so long without a byte it is over.
const QUIET: Duration = Duration::from_secs(5);

/// Writes what the client sends until it ends that, or nobody reads it.
pub(super) async fn to_process(mut incoming: Incoming, mut pipe: impl AsyncWrite + Unpin) {
    while let Some(data) = incoming.recv().await {
        if pipe.write_all(&data).await.is_err() {
            return;
        }
    }
}

/// Sends what the process writes until it ends that. Without a client it is read all the same, so that the process does
/// not wait for somebody who has gone.
pub(super) async fn to_client(mut pipe: impl AsyncRead + Unpin, channel: Channel, moved: &Moved) {
    let mut bytes = BytesMut::new();
    loop {
        bytes.reserve(PIECE);
        match pipe.read_buf(&mut bytes).await {
            Ok(1..) => {
                moved.waiting.fetch_add(1, Ordering::Relaxed);
                let _ = channel.send(bytes.split().freeze()).await;
                moved.pieces.fetch_add(1, Ordering::Relaxed);
                moved.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            Ok(0) | Err(_) => break,
        }
    }
    channel.end().await;
}

/// What has gone to a client, of one or two pipes.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pieces: AtomicU64,
    /// Pieces that the client has not taken yet.
    waiting: AtomicU64,
}

/// Returns when the process has written nothing for a while. A client that reads slowly is waited for.
pub(super) async fn quiet(moved: &Moved) {
    let mut before = moved.pieces.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(QUIET).await;
        let now = moved.pieces.load(Ordering::Relaxed);
        if now == before && moved.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        before = now;
    }
}

/// The sizes that a client has sent, one JSON object after the other; what is only begun stays in `bytes`.
pub(super) fn sizes(bytes: &mut BytesMut) -> Vec<TerminalSize> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let mut objects = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    let mut found = Vec::new();
    let mut read = 0;
    while let Some(next) = objects.next() {
        match next {
            Ok(size) => {
                found.push(TerminalSize {
                    columns: size.width,
                    rows: size.height,
                });
                read = objects.byte_offset();
            }
            Err(error) if error.is_eof() => break,
            // What is not a size says nothing, nor does what follows it.
            Err(_) => {
                read = bytes.len();
                break;
            }
        }
    }
    let _ = bytes.split_to(read);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(columns: u16, rows: u16) -> TerminalSize {
        TerminalSize { columns, rows }
    }

    #[test]
    fn sizes_come_whole_in_pieces_or_several_at_once() {
        let mut bytes = BytesMut::from(&br#"{"Width":80,"Height":24}{"Width":100,"#[..]);
        assert_eq!(sizes(&mut bytes), [size(80, 24)]);
        bytes.extend_from_slice(br#""Height":50}"#);
        assert_eq!(sizes(&mut bytes), [size(100, 50)]);
        assert!(bytes.is_empty());
        bytes.extend_from_slice(b"nonsense");
        assert_eq!(sizes(&mut bytes), []);
        assert!(bytes.is_empty(), "it does not pile up");
    }
}
