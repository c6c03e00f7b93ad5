//! From a datagram to a question and from an answer to a datagram. Pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record};

use super::answer::{Answer, start_of_authority};

/// What a resolver without EDNS can take over UDP, in bytes (RFC 1035).
const PLAIN_UDP_LIMIT: u16 = 512;
/// The most that is sent over UDP, in bytes: it passes every link unfragmented.
const UDP_LIMIT: u16 = 1232;
/// Before the message over TCP stands its length in 16 bits, so this is the most there is.
const TCP_LIMIT: u16 = u16::MAX;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// A message that came in.
#[derive(Debug)]
pub enum Incoming {
    /// A question that can be answered.
    Question(Message, Query),
    /// A message that is answered with an error.
    Refused(Message, ResponseCode),
    /// No question at all: any answer might go round in circles.
    Ignored,
}

/// Reads a message.
pub fn read(bytes: &[u8]) -> Incoming {
    let Ok(message) = Message::from_vec(bytes) else {
        return malformed(bytes);
    };
    if message.metadata.message_type != MessageType::Query {
        return Incoming::Ignored;
    }
    if message.metadata.op_code != OpCode::Query {
        return Incoming::Refused(message, ResponseCode::NotImp);
    }
    if message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Incoming::Refused(message, ResponseCode::BADVERS);
    }
    match message.queries.as_slice() {
        [query] if query.query_class == DNSClass::IN => {
            let query = query.clone();
            Incoming::Question(message, query)
        }
        [_] => Incoming::Refused(message, ResponseCode::Refused),
        _ => Incoming::Refused(message, ResponseCode::FormErr),
    }
}

/// A message that cannot be read gets an answer when its first bytes say that it is a question.
fn malformed(bytes: &[u8]) -> Incoming {
    match bytes {
        [high, low, flags, _, ..] if bytes.len() >= 12 && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*high, *low]);
            let message = Message::new(id, MessageType::Query, OpCode::Query);
            Incoming::Refused(message, ResponseCode::FormErr)
        }
        _ => Incoming::Ignored,
    }
}

/// A response to `request` with nothing in it yet.
fn response_to(request: &Message, code: ResponseCode) -> Message {
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.metadata.recursion_desired = request.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = code;
    response.queries = request.queries.clone();
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LIMIT);
        edns.set_rcode_high(code.high());
        response.edns = Some(edns);
    }
    response
}

/// A response that says no more than `code`.
pub fn error_response(request: &Message, code: ResponseCode) -> Message {
    response_to(request, code)
}

/// A response with records.
pub fn records_response(
    request: &Message,
    answers: Vec<Record>,
    additionals: Vec<Record>,
) -> Message {
    let mut response = response_to(request, ResponseCode::NoError);
    response.metadata.authoritative = true;
    response.answers = answers;
    response.additionals = additionals;
    response
}

/// The response to a question that the cluster alone can answer; `None` when another server has to be asked.
pub fn cluster_response(request: &Message, zone: &Name, answer: &Answer) -> Option<Message> {
    let code = match answer {
        Answer::Records {
            answers,
            additionals,
        } => {
            return Some(records_response(
                request,
                answers.clone(),
                additionals.clone(),
            ));
        }
        Answer::NoData => ResponseCode::NoError,
        Answer::NoSuchName => ResponseCode::NXDomain,
        Answer::NotKnownYet => return Some(error_response(request, ResponseCode::ServFail)),
        Answer::Alias { .. } | Answer::NotOurs => return None,
    };
    let mut response = response_to(request, code);
    response.metadata.authoritative = true;
    // Of the reverse zones the cluster has single names only, so it cannot speak for those.
    if request
        .queries
        .iter()
        .any(|query| zone.zone_of(&query.name))
    {
        response.authorities.push(start_of_authority(zone));
    }
    Some(response)
}

/// The message's bytes, cut to what the client can take. What is cut is marked, so that the client asks again over TCP;
/// resolvers that do not ask again use what is there, so as many answers stay as fit.
pub fn encode(mut response: Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    let limit = usize::from(limit(request, transport));
    loop {
        let bytes = response.to_vec().ok()?;
        if bytes.len() <= limit {
            return Some(bytes);
        }
        if !response.additionals.is_empty() {
            // Additional records are a courtesy: without them the answer is still whole.
            response.additionals.clear();
            continue;
        }
        if response.answers.is_empty() {
            return None;
        }
        response.metadata.truncation = true;
        let fitting = response.answers.len() * limit / bytes.len();
        response
            .answers
            .truncate(fitting.min(response.answers.len() - 1));
    }
}

fn limit(request: &Message, transport: Transport) -> u16 {
    match (transport, &request.edns) {
        (Transport::Tcp, _) => TCP_LIMIT,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_LIMIT, UDP_LIMIT),
        (Transport::Udp, None) => PLAIN_UDP_LIMIT,
    }
}
