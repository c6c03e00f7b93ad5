//! As much of D-Bus as it takes to ask logind: calls with a few plain arguments, their answers, and signals. Descriptors that
//! come with a message are closed when a program is started, which not every library sees to.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// The longest message that is read: what is asked here has answers of some hundred bytes.
const LIMIT: usize = 1 << 20;
/// Descriptors in one message at most.
const DESCRIPTORS: usize = 16;

/// Why the bus, or whom it asked, did not answer.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("no D-Bus at {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the connection to D-Bus broke: {0}")]
    Broken(#[from] io::Error),
    #[error("D-Bus: {0}")]
    Nonsense(&'static str),
    #[error("{member}: {error}")]
    Refused { member: String, error: String },
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub destination: &'static str,
    pub path: &'static str,
    pub interface: &'static str,
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    Text(&'a str),
    Signed(i32),
    Unsigned(u32),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Call = 1,
    Answer = 2,
    Error = 3,
    Signal = 4,
}

/// A message, as far as it is looked at.
#[derive(Debug)]
pub struct Message {
    pub kind: Kind,
    pub serial: u32,
    pub reply_to: u32,
    pub member: String,
    pub sender: String,
    error: String,
    signature: String,
    body: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The truth value that it carries, alone or as the value of a property.
    pub fn truth(&self) -> Option<bool> {
        let mut body = self.carried("b")?;
        body.number().ok().map(|value| value != 0)
    }

    /// The large number that it carries, alone or as the value of a property.
    pub fn large_number(&self) -> Option<u64> {
        self.carried("t")?.large_number().ok()
    }

    /// Its body from where a value of that type is, which is all there is.
    fn carried(&self, kind: &str) -> Option<Reader<'_>> {
        let mut body = Reader::new(&self.body);
        let is_one = self.signature == kind
            || self.signature == "v" && body.signature().is_ok_and(|found| found == kind);
        is_one.then_some(body)
    }
}

/// A connection to a bus.
pub struct Bus {
    stream: UnixStream,
    serial: u32,
    /// What was read and not yet taken apart.
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
    /// Signals and calls that came while an answer was waited for.
    waiting: VecDeque<Message>,
}

const DAEMON: Target = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

impl Bus {
    /// Connects to the bus at a socket, as the user that this process runs as.
    pub async fn connect(path: &Path) -> Result<Bus, BusError> {
        let connected = UnixStream::connect(path).await;
        let stream = connected.map_err(|source| BusError::Connect {
            path: path.to_owned(),
            source,
        })?;
        let mut bus = Bus {
            stream,
            serial: 0,
            bytes: Vec::new(),
            descriptors: VecDeque::new(),
            waiting: VecDeque::new(),
        };
        let user: String = rustix::process::geteuid()
            .as_raw()
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        bus.say(format!("\0AUTH EXTERNAL {user}\r\n"), "OK ")
            .await?;
        bus.say("NEGOTIATE_UNIX_FD\r\n".into(), "AGREE_UNIX_FD")
            .await?;
        bus.stream.write_all(b"BEGIN\r\n").await?;
        bus.call(&DAEMON, "Hello", &[]).await?;
        Ok(bus)
    }

    /// One step of the introduction, which is in lines.
    async fn say(&mut self, line: String, expected: &str) -> Result<(), BusError> {
        self.stream.write_all(line.as_bytes()).await?;
        loop {
            if let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.bytes.drain(..end + 2).collect();
                return match line.starts_with(expected.as_bytes()) {
                    true => Ok(()),
                    false => Err(BusError::Nonsense("the bus does not take this process in")),
                };
            }
            self.read().await?;
        }
    }

    /// Asks to be sent the signals that a rule describes.
    pub async fn listen(&mut self, rule: &str) -> Result<(), BusError> {
        let rule = [Argument::Text(rule)];
        self.call(&DAEMON, "AddMatch", &rule).await.map(|_| ())
    }

    /// Calls a method, and waits for its answer.
    pub async fn call(
        &mut self,
        target: &Target,
        member: &str,
        arguments: &[Argument<'_>],
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        let fields = [
            (1, 'o', target.path),
            (2, 's', target.interface),
            (3, 's', member),
            (6, 's', target.destination),
        ];
        let bytes = message(Kind::Call, serial, &fields, None, arguments);
        self.stream.write_all(&bytes).await?;
        loop {
            let message = self.receive().await?;
            match message.kind {
                Kind::Answer if message.reply_to == serial => return Ok(message),
                Kind::Error if message.reply_to == serial => {
                    return Err(BusError::Refused {
                        member: member.to_owned(),
                        error: message.error,
                    });
                }
                Kind::Answer | Kind::Error => {}
                Kind::Signal | Kind::Call => self.waiting.push_back(message),
            }
        }
    }

    /// The next signal or call. Cancel-safe.
    pub async fn next(&mut self) -> Result<Message, BusError> {
        match self.waiting.pop_front() {
            Some(message) => Ok(message),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Message, BusError> {
        loop {
            if let Some((message, length)) = parse(&self.bytes, &mut self.descriptors)? {
                self.bytes.drain(..length);
                return Ok(message);
            }
            self.read().await?;
        }
    }

    /// Reads what is there, and waits for it if there is nothing. Cancel-safe: what was read is kept.
    async fn read(&mut self) -> Result<(), BusError> {
        let mut bytes = [0; 4096];
        let mut space =
            [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let stream = &self.stream;
        let reading = stream.async_io(Interest::READABLE, || {
            let parts = &mut [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = rustix::net::recvmsg(stream, parts, &mut control, flags)?;
            Ok(received.bytes)
        });
        let length = reading.await?;
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                self.descriptors.extend(descriptors);
            }
        }
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.bytes.extend_from_slice(&bytes[..length]);
        Ok(())
    }
}

/// A message with these header fields: code, type and value of each.
fn message(
    kind: Kind,
    serial: u32,
    fields: &[(u8, char, &str)],
    reply_to: Option<u32>,
    arguments: &[Argument<'_>],
) -> Vec<u8> {
    let (mut body, mut signature) = (Writer::default(), String::new());
    for argument in arguments {
        match argument {
            Argument::Text(text) => {
                signature.push('s');
                body.text(text);
            }
            Argument::Signed(number) => {
                signature.push('i');
                body.number(number.cast_unsigned());
            }
            Argument::Unsigned(number) => {
                signature.push('u');
                body.number(*number);
            }
        }
    }
    // The array of fields is measured from its first element, which the header puts at a multiple of 8.
    let mut array = Writer::default();
    for (code, kind, value) in fields {
        array.field(*code, *kind);
        array.text(value);
    }
    if let Some(serial) = reply_to {
        array.field(5, 'u');
        array.number(serial);
    }
    if !signature.is_empty() {
        array.field(8, 'g');
        array.signature(&signature);
    }
    let mut whole = Writer::default();
    whole.0.extend([b'l', kind as u8, 0, 1]);
    whole.number(body.0.len() as u32);
    whole.number(serial);
    whole.number(array.0.len() as u32);
    whole.0.extend(array.0);
    whole.align(8);
    whole.0.extend(body.0);
    whole.0
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u32);
        self.0.extend(text.bytes().chain([0]));
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend(text.bytes().chain([0]));
    }

    /// The beginning of a header field.
    fn field(&mut self, code: u8, kind: char) {
        self.align(8);
        self.0.push(code);
        self.signature(&kind.to_string());
    }
}

/// The first message of `bytes`, with its length; `None` while it is not all there.
fn parse(
    bytes: &[u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> Result<Option<(Message, usize)>, BusError> {
    if bytes.len() < 16 {
        return Ok(None);
    }
    if bytes[0] != b'l' {
        return Err(BusError::Nonsense("a message in another byte order"));
    }
    let kind = match bytes[1] {
        1 => Kind::Call,
        2 => Kind::Answer,
        3 => Kind::Error,
        4 => Kind::Signal,
        _ => return Err(BusError::Nonsense("a message of an unknown kind")),
    };
    let mut head = Reader { bytes, at: 4 };
    let (body, serial, fields) = (head.number()?, head.number()?, head.number()?);
    let begin = (16 + fields as usize).next_multiple_of(8);
    let end = begin + body as usize;
    if end > LIMIT {
        return Err(BusError::Nonsense("a message that is too long"));
    }
    if bytes.len() < end {
        return Ok(None);
    }
    let mut message = Message {
        kind,
        serial,
        reply_to: 0,
        member: String::new(),
        sender: String::new(),
        error: String::new(),
        signature: String::new(),
        body: bytes[begin..end].to_vec(),
        descriptors: Vec::new(),
    };
    let mut fields = Reader {
        bytes: &bytes[..16 + fields as usize],
        at: 16,
    };
    while fields.at < fields.bytes.len() {
        fields.align(8);
        let code = fields.byte()?;
        match (code, fields.signature()?.as_str()) {
            (3, "s") => message.member = fields.text()?,
            (4, "s") => message.error = fields.text()?,
            (5, "u") => message.reply_to = fields.number()?,
            (7, "s") => message.sender = fields.text()?,
            (8, "g") => message.signature = fields.signature()?,
            (9, "u") => {
                let count = fields.number()? as usize;
                message.descriptors = descriptors.drain(..count.min(descriptors.len())).collect();
            }
            (_, "s" | "o") => drop(fields.text()?),
            (_, "u") => drop(fields.number()?),
            _ => return Err(BusError::Nonsense("a header field of an unknown type")),
        }
    }
    Ok(Some((message, end)))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], BusError> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..length));
        self.at += length;
        taken.ok_or(BusError::Nonsense("a message that ends too early"))
    }

    fn byte(&mut self) -> Result<u8, BusError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, BusError> {
        self.align(4);
        let bytes = self.take(4)?.try_into();
        Ok(u32::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn large_number(&mut self) -> Result<u64, BusError> {
        self.align(8);
        let bytes = self.take(8)?.try_into();
        Ok(u64::from_le_bytes(bytes.unwrap_or_default()))
    }

    fn text(&mut self) -> Result<String, BusError> {
        let length = self.number()? as usize;
        self.words(length)
    }

    fn signature(&mut self) -> Result<String, BusError> {
        let length = self.byte()? as usize;
        self.words(length)
    }

    /// Text of a length that is known, and the zero after it.
    fn words(&mut self, length: usize) -> Result<String, BusError> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let fields = [(1, 'o', "/a"), (3, 's', "Member"), (7, 's', ":1.2")];
        let arguments = [Argument::Text("text"), Argument::Signed(-1)];
        let bytes = message(Kind::Call, 7, &fields, Some(3), &arguments);
        let mut none = VecDeque::new();
        let (read, length) = parse(&bytes, &mut none).unwrap().unwrap();
        assert_eq!((read.kind, read.serial, read.reply_to), (Kind::Call, 7, 3));
        assert_eq!(
            (read.member.as_str(), read.sender.as_str()),
            ("Member", ":1.2")
        );
        assert_eq!((read.signature.as_str(), length), ("si", bytes.len()));
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end], &mut none).unwrap().is_none(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..200), valid in any::<bool>()) {
            if let (true, Some(first)) = (valid, bytes.get_mut(0)) {
                *first = b'l';
            }
            let read = parse(&bytes, &mut VecDeque::new());
            if let Ok(Some((message, length))) = read {
                prop_assert!(length <= bytes.len());
                let _ = (message.truth(), message.large_number());
            }
        }
    }
}
