//! SPDY/3.1 on the server's side, as far as Kubernetes' clients use it: they open streams, both sides write on them.
//!
//! There are no windows: Go's clients neither announce nor respect them. What a reader does not take holds up the whole
//! connection, after a queue, and after so many bytes.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::codec::{Encoder, FramedRead};

pub(super) use headers::Headers;

use super::{Channel, Connection, Incoming, Outgoing, QUEUE, Unread};
use frame::{Frame, FrameDecoder, FrameEncoder};

/// What the `Upgrade` header says.
pub(super) const PROTOCOL: &str = "SPDY/3.1";

/// Streams at once on a connection. Each connection that is forwarded takes two.
const MAX_STREAMS: usize = 1024;
/// Status of a stream that is refused.
const REFUSED: u32 = 3;
/// So much is put together before it is written, in bytes.
const BATCH: usize = 64 << 10;

/// Why what came is no SPDY/3.1, or is more than is taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("the client speaks SPDY/{0}, not SPDY/3.1")]
    Version(u16),
    #[error("a frame or a header block is longer than is accepted")]
    TooLong,
    #[error("a control frame of type {0} is too short")]
    Short(u16),
    #[error("a header block is not compressed as SPDY/3 does it")]
    Compression,
    #[error("a header block does not hold what it says")]
    Headers,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A stream that the client has opened.
pub(super) struct Opened {
    pub(super) id: u32,
    pub(super) headers: Headers,
    pub(super) incoming: Incoming,
    pub(super) channel: Channel,
}

/// Serves a connection; its streams come as the client opens them.
pub(super) fn serve(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
) -> Result<(Connection, mpsc::Receiver<Opened>), SpdyError> {
    let (reader, writer) = tokio::io::split(io);
    let encoder = FrameEncoder::new()?;
    let (opened, streams) = mpsc::channel(QUEUE);
    let connection = Connection::start(
        |queue| async move {
            match read(reader, queue, opened).await {
                Err(SpdyError::Io(_)) | Ok(()) => {}
                Err(error) => tracing::debug!(%error, "a connection was cut"),
            }
        },
        |queued| async move { write(writer, encoder, queued).await.is_ok() },
    );
    Ok((connection, streams))
}

async fn read(
    reader: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Outgoing>,
    opened: mpsc::Sender<Opened>,
) -> Result<(), SpdyError> {
    let mut frames = FramedRead::new(reader, FrameDecoder::new());
    let unread = Unread::new();
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    while let Some(frame) = frames.next().await {
        let answer = match frame? {
            Frame::Open {
                stream,
                headers,
                last,
            } => {
                if streams.len() >= MAX_STREAMS || opened.is_closed() {
                    Some(Outgoing::Refuse(stream))
                } else {
                    let (sender, incoming) = mpsc::channel(QUEUE);
                    if !last {
                        streams.insert(stream, sender);
                    }
                    let channel = Channel {
                        id: stream,
                        queue: queue.clone(),
                    };
                    if queue.send(Outgoing::Accept(stream)).await.is_err() {
                        return Ok(());
                    }
                    let stream = Opened {
                        id: stream,
                        headers,
                        incoming,
                        channel,
                    };
                    // Whoever took streams may just have stopped: then this one goes unheard.
                    let _ = opened.send(stream).await;
                    None
                }
            }
            Frame::Data { stream, data, last } => {
                if let Some(sender) = streams.get(&stream)
                    && !data.is_empty()
                {
                    // Nobody reads it any more: what comes is dropped.
                    let _ = sender.send(unread.hold(data).await).await;
                }
                if last {
                    streams.remove(&stream);
                }
                None
            }
            Frame::Reset { stream, .. } => {
                streams.remove(&stream);
                None
            }
            Frame::Headers { stream, last, .. } => {
                if last {
                    streams.remove(&stream);
                }
                None
            }
            // An even one answers ours, of which there are none.
            Frame::Ping(id) => (id % 2 == 1).then_some(Outgoing::Echo(id)),
            Frame::Accept { .. } | Frame::GoAway { .. } | Frame::Other(_) => None,
        };
        if let Some(answer) = answer
            && queue.send(answer).await.is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Ends well once it was told to close.
async fn write(
    mut writer: impl AsyncWrite + Unpin,
    mut encoder: FrameEncoder,
    mut queued: mpsc::Receiver<Outgoing>,
) -> Result<(), SpdyError> {
    let mut bytes = BytesMut::new();
    let (mut last_stream, mut open) = (0, true);
    while open && let Some(first) = queued.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            open = outgoing != Outgoing::Close;
            if let Outgoing::Accept(stream) = &outgoing {
                last_stream = *stream;
            }
            encoder.encode(frame(outgoing, last_stream), &mut bytes)?;
            let more = open && bytes.len() < BATCH;
            next = more.then(|| queued.try_recv().ok()).flatten();
        }
        writer.write_all(&bytes).await?;
        writer.flush().await?;
        bytes.clear();
    }
    writer.shutdown().await?;
    Ok(())
}

fn frame(outgoing: Outgoing, last_stream: u32) -> Frame {
    match outgoing {
        Outgoing::Accept(stream) => Frame::Accept {
            stream,
            headers: Headers::default(),
        },
        Outgoing::Data(stream, data) => Frame::Data {
            stream,
            data,
            last: false,
        },
        Outgoing::End(stream) => Frame::Data {
            stream,
            data: Bytes::new(),
            last: true,
        },
        Outgoing::Refuse(stream) => Frame::Reset {
            stream,
            status: REFUSED,
        },
        Outgoing::Echo(id) => Frame::Ping(id),
        Outgoing::Close => Frame::GoAway { last_stream },
    }
}
