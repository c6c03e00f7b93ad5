//! Streams as numbered channels of a WebSocket: the first byte of each message is the channel.
//!
//! Its newest version lets a client end a channel; before that, only the connection ends.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Connection, Incoming, Outgoing, QUEUE, Unread};

/// The longest message that is accepted, in bytes.
pub(super) const LONGEST: usize = 4 << 20;
/// A message on it ends the channel that its second byte names.
const CLOSE: u8 = 255;
/// Bytes that wait between a WebSocket and what is spoken through it.
const TUNNEL: usize = 64 << 10;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Binary,
    /// As text: the channel is a digit, the rest in base64.
    Base64,
}

/// Serves the channels 0 to `count`, without it; gives what the client writes on each.
pub(super) fn serve(socket: WebSocket, form: Form, count: u8) -> (Connection, Vec<Incoming>) {
    let (sink, stream) = socket.split();
    let (senders, incoming): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| mpsc::channel(QUEUE))
        .map(|(sender, incoming)| (Some(sender), incoming))
        .unzip();
    let connection = Connection::start(
        |_| read(stream, form, senders),
        |queued| async move { write(sink, form, queued).await.is_ok() },
    );
    (connection, incoming)
}

async fn read(
    mut stream: SplitStream<WebSocket>,
    form: Form,
    mut channels: Vec<Option<mpsc::Sender<Bytes>>>,
) {
    let unread = Unread::new();
    while let Some(Ok(message)) = stream.next().await {
        let data = match message {
            Message::Binary(data) => decode(Form::Binary, &data).map(|at| (at, data.slice(1..))),
            Message::Text(text) => decode_text(form, text.as_bytes()),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => break,
        };
        match data {
            Some((CLOSE, rest)) => {
                if let Some(ended) = rest
                    .first()
                    .and_then(|at| channels.get_mut(usize::from(*at)))
                {
                    *ended = None;
                }
            }
            Some((at, data)) => {
                let channel = channels.get(usize::from(at)).and_then(Option::as_ref);
                if let Some(channel) = channel
                    && !data.is_empty()
                {
                    // Nobody reads it any more: what comes is dropped.
                    let _ = channel.send(unread.hold(data).await).await;
                }
            }
            // An empty message, which some clients send to keep the connection.
            None => {}
        }
    }
}

fn decode(form: Form, message: &[u8]) -> Option<u8> {
    let first = *message.first()?;
    match form {
        Form::Binary => Some(first),
        Form::Base64 => first.checked_sub(b'0').filter(|digit| *digit < 10),
    }
}

fn decode_text(form: Form, message: &[u8]) -> Option<(u8, Bytes)> {
    let at = decode(form, message)?;
    let data = message.get(1..)?;
    Some(match form {
        Form::Binary => (at, Bytes::copy_from_slice(data)),
        Form::Base64 => (at, STANDARD.decode(data).ok()?.into()),
    })
}

fn encode(form: Form, channel: u8, data: &[u8]) -> Message {
    match form {
        Form::Binary => {
            let mut message = BytesMut::with_capacity(1 + data.len());
            message.put_u8(channel);
            message.put_slice(data);
            Message::Binary(message.freeze())
        }
        Form::Base64 => {
            let text = format!("{channel}{}", STANDARD.encode(data));
            Message::Text(text.into())
        }
    }
}

async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    form: Form,
    mut queued: mpsc::Receiver<Outgoing>,
) -> Result<(), axum::Error> {
    while let Some(outgoing) = queued.recv().await {
        match outgoing {
            Outgoing::Data(channel, data) => {
                // There are as many channels as a digit can name.
                let channel = u8::try_from(channel).unwrap_or_default();
                sink.send(encode(form, channel, &data)).await?;
            }
            Outgoing::Close => break,
            // A client knows the end of the one by that of all.
            Outgoing::Accept(_) | Outgoing::End(_) | Outgoing::Refuse(_) | Outgoing::Echo(_) => {}
        }
    }
    let farewell = CloseFrame {
        code: close_code::NORMAL,
        reason: "".into(),
    };
    sink.send(Message::Close(Some(farewell))).await
}

/// What is spoken through a WebSocket's binary messages, whatever their borders.
pub(super) fn tunnel(socket: WebSocket) -> impl AsyncRead + AsyncWrite + Send + 'static {
    let (near, far) = tokio::io::duplex(TUNNEL);
    let (mut sink, mut stream) = socket.split();
    let (mut from, mut to) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let done = match message {
                Message::Binary(data) => to.write_all(&data).await.is_err(),
                Message::Close(_) => true,
                _ => false,
            };
            if done {
                break;
            }
        }
        // Nobody listens where it was taken down already.
        let _ = to.shutdown().await;
    });
    tokio::spawn(async move {
        let mut bytes = BytesMut::with_capacity(TUNNEL);
        while from.read_buf(&mut bytes).await.is_ok_and(|count| count > 0) {
            let message = Message::Binary(bytes.split().freeze());
            if sink.send(message).await.is_err() {
                return;
            }
            bytes.reserve(TUNNEL);
        }
        let _ = sink.send(Message::Close(None)).await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        assert_eq!(
            encode(Form::Binary, 1, b"ab"),
            Message::Binary(Bytes::from_static(b"\x01ab"))
        );
        assert_eq!(
            encode(Form::Base64, 1, b"ab"),
            Message::Text("1YWI=".into())
        );
        assert_eq!(
            decode_text(Form::Base64, b"0YWI="),
            Some((0, Bytes::from_static(b"ab")))
        );
        assert_eq!(decode_text(Form::Base64, b"0!"), None);
        assert_eq!(decode_text(Form::Base64, b"xYWI="), None);
        assert_eq!(decode_text(Form::Base64, b""), None);
        assert_eq!(decode(Form::Binary, &[CLOSE, 0]), Some(CLOSE));
    }
}
