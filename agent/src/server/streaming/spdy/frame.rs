//! The frames of SPDY/3.1, from bytes and to bytes. Pure.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::SpdyError;
use super::headers::{Deflater, Headers, Inflater};

const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const HEAD: usize = 8;
/// Sent with the last frame of one direction of a stream.
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// The longest frame that is accepted, in bytes; clients send pieces of 32 KiB.
const LONGEST: usize = 4 << 20;

/// One frame. `last` says that its sender sends nothing more on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Open {
        stream: u32,
        headers: Headers,
        last: bool,
    },
    Accept {
        stream: u32,
        headers: Headers,
    },
    Headers {
        stream: u32,
        headers: Headers,
        last: bool,
    },
    Data {
        stream: u32,
        data: Bytes,
        last: bool,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last_stream: u32,
    },
    /// One that asks for nothing here: settings, and windows, which Go's clients neither keep nor open.
    Other(u16),
}

/// Reads frames.
pub(super) struct FrameDecoder(Inflater);

impl FrameDecoder {
    pub(super) fn new() -> FrameDecoder {
        FrameDecoder(Inflater::new())
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Frame, SpdyError> {
        let last = flags & FIN != 0;
        let number = |body: &mut Bytes| body.try_get_u32().map_err(|_| SpdyError::Short(kind));
        Ok(match kind {
            SYN_STREAM => {
                let stream = number(&mut body)?;
                if body.len() < 6 {
                    return Err(SpdyError::Short(kind));
                }
                // The stream that it belongs to, its priority, and a slot: none of them is used.
                body.advance(6);
                let headers = self.0.block(&body)?;
                Frame::Open {
                    stream,
                    headers,
                    last,
                }
            }
            SYN_REPLY => Frame::Accept {
                stream: number(&mut body)?,
                headers: self.0.block(&body)?,
            },
            HEADERS => Frame::Headers {
                stream: number(&mut body)?,
                headers: self.0.block(&body)?,
                last,
            },
            RST_STREAM => Frame::Reset {
                stream: number(&mut body)?,
                status: number(&mut body)?,
            },
            PING => Frame::Ping(number(&mut body)?),
            GOAWAY => Frame::GoAway {
                last_stream: number(&mut body)?,
            },
            other => Frame::Other(other),
        })
    }
}

impl Decoder for FrameDecoder {
    type Item = Frame;
    type Error = SpdyError;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        let Some(head) = bytes.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let [a, b, c, d, flags, e, f, g] = *head;
        let word = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if length > LONGEST {
            return Err(SpdyError::TooLong);
        }
        if bytes.len() < HEAD + length {
            bytes.reserve(HEAD + length - bytes.len());
            return Ok(None);
        }
        bytes.advance(HEAD);
        let body = bytes.split_to(length).freeze();
        if word & CONTROL == 0 {
            return Ok(Some(Frame::Data {
                stream: word,
                data: body,
                last: flags & FIN != 0,
            }));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        let kind = u16::from_be_bytes([c, d]);
        self.control(kind, flags, body).map(Some)
    }
}

/// Writes frames.
pub(super) struct FrameEncoder(Deflater);

impl FrameEncoder {
    pub(super) fn new() -> Result<FrameEncoder, SpdyError> {
        Ok(FrameEncoder(Deflater::new()?))
    }
}

impl Encoder<Frame> for FrameEncoder {
    type Error = SpdyError;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        let fin = |last: bool| if last { FIN } else { 0 };
        match frame {
            Frame::Open {
                stream,
                headers,
                last,
            } => {
                let block = self.0.block(&headers)?;
                control(out, SYN_STREAM, fin(last), 10 + block.len())?;
                out.put_u32(stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::Accept { stream, headers } => {
                let block = self.0.block(&headers)?;
                control(out, SYN_REPLY, 0, 4 + block.len())?;
                out.put_u32(stream);
                out.put_slice(&block);
            }
            Frame::Headers {
                stream,
                headers,
                last,
            } => {
                let block = self.0.block(&headers)?;
                control(out, HEADERS, fin(last), 4 + block.len())?;
                out.put_u32(stream);
                out.put_slice(&block);
            }
            Frame::Data { stream, data, last } => {
                out.put_u32(stream & !CONTROL);
                length(out, fin(last), data.len())?;
                out.put_slice(&data);
            }
            Frame::Reset { stream, status } => {
                control(out, RST_STREAM, 0, 8)?;
                out.put_u32(stream);
                out.put_u32(status);
            }
            Frame::Ping(id) => {
                control(out, PING, 0, 4)?;
                out.put_u32(id);
            }
            Frame::GoAway { last_stream } => {
                control(out, GOAWAY, 0, 8)?;
                out.put_u32(last_stream);
                out.put_u32(0);
            }
            Frame::Other(kind) => control(out, kind, 0, 0)?,
        }
        Ok(())
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, size: usize) -> Result<(), SpdyError> {
    out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    length(out, flags, size)
}

fn length(out: &mut BytesMut, flags: u8, size: usize) -> Result<(), SpdyError> {
    let size = u32::try_from(size)
        .ok()
        .filter(|size| *size < 1 << 24)
        .ok_or(SpdyError::TooLong)?;
    out.put_u32(u32::from(flags) << 24 | size);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers() -> impl Strategy<Value = Headers> {
        proptest::collection::vec(("[a-z]{1,12}", "[ -~]{0,40}"), 0..5).prop_map(Headers)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = 1u32..1 << 31;
        let data = proptest::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, last)| {
                Frame::Open {
                    stream,
                    headers,
                    last,
                }
            }),
            (stream.clone(), headers())
                .prop_map(|(stream, headers)| Frame::Accept { stream, headers }),
            (stream.clone(), headers(), any::<bool>()).prop_map(|(stream, headers, last)| {
                Frame::Headers {
                    stream,
                    headers,
                    last,
                }
            }),
            (stream.clone(), data, any::<bool>()).prop_map(|(stream, data, last)| Frame::Data {
                stream,
                data,
                last
            }),
            (stream.clone(), 1u32..12).prop_map(|(stream, status)| Frame::Reset { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            stream.prop_map(|last_stream| Frame::GoAway { last_stream }),
            prop_oneof![Just(4u16), Just(9), 10..u16::MAX].prop_map(Frame::Other),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_the_bytes_are_cut(
            frames in proptest::collection::vec(frame(), 0..12), piece in 1usize..50
        ) {
            let (mut encoder, mut decoder) = (FrameEncoder::new().unwrap(), FrameDecoder::new());
            let mut wire = BytesMut::new();
            for frame in &frames {
                encoder.encode(frame.clone(), &mut wire).unwrap();
            }
            let (mut seen, mut buffer) = (Vec::new(), BytesMut::new());
            for part in wire.chunks(piece) {
                buffer.extend_from_slice(part);
                while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn bytes_of_any_kind_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut decoder = FrameDecoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }

    #[test]
    fn frames_are_as_the_protocol_writes_them() {
        let mut wire = BytesMut::new();
        let mut encoder = FrameEncoder::new().unwrap();
        let data = Frame::Data {
            stream: 3,
            data: Bytes::from_static(b"hi"),
            last: true,
        };
        encoder.encode(data, &mut wire).unwrap();
        encoder.encode(Frame::Ping(7), &mut wire).unwrap();
        let reset = Frame::Reset {
            stream: 5,
            status: 3,
        };
        encoder.encode(reset, &mut wire).unwrap();
        assert_eq!(
            wire.as_ref(),
            [
                &[0, 0, 0, 3, 1, 0, 0, 2, b'h', b'i'][..],
                &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 7],
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 3],
            ]
            .concat()
        );
    }

    #[test]
    fn what_is_not_this_protocol_is_refused() {
        let mut decoder = FrameDecoder::new();
        let mut other = BytesMut::from(&[0x80, 2, 0, 1, 0, 0, 0, 0][..]);
        assert!(matches!(
            decoder.decode(&mut other),
            Err(SpdyError::Version(2))
        ));
        let mut long = BytesMut::from(&[0, 0, 0, 1, 0, 0xff, 0, 0][..]);
        assert!(matches!(decoder.decode(&mut long), Err(SpdyError::TooLong)));
        let mut short = BytesMut::from(&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0][..]);
        assert!(matches!(
            decoder.decode(&mut short),
            Err(SpdyError::Short(SYN_STREAM))
        ));
    }
}
