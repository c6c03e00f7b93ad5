//! Header blocks: names and values, compressed with a dictionary that both sides know.
//!
//! All blocks of one direction of a connection are one zlib stream, so every block has to pass, in order, also those that
//! nobody reads.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// The longest block that is accepted, in bytes, before and after it is decompressed.
const LONGEST: usize = 64 << 10;

/// The words of the dictionary that the protocol gives a length, in its order.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";

/// The rest of it.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=\
    iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS.split_whitespace() {
        put(&mut bytes, &word.replace('_', " "));
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
});

/// The headers of a stream, names in lower case. A name may occur once; its values are joined by a zero byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(pub(super) Vec<(String, String)>);

impl Headers {
    /// The first value of a name; empty where there is none.
    pub(crate) fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(known, _)| known == name);
        let value = found.map_or("", |(_, value)| value.as_str());
        value.split('\0').next().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn of(all: Vec<(String, String)>) -> Headers {
        Headers(all)
    }

    fn plain(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(length(self.0.len()).to_be_bytes());
        for (name, value) in &self.0 {
            put(&mut bytes, name);
            put(&mut bytes, value);
        }
        bytes
    }

    fn parse(mut block: &[u8]) -> Option<Headers> {
        let count = number(&mut block)?;
        let mut all = Vec::new();
        for _ in 0..count {
            let name = text(&mut block)?.to_ascii_lowercase();
            all.push((name, text(&mut block)?));
        }
        Some(Headers(all))
    }
}

fn length(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}

fn put(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend(length(text.len()).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

fn number(block: &mut &[u8]) -> Option<u32> {
    let (first, rest) = block.split_first_chunk()?;
    *block = rest;
    Some(u32::from_be_bytes(*first))
}

fn text(block: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(number(block)?).ok()?;
    let (text, rest) = block.split_at_checked(length)?;
    *block = rest;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Compresses the blocks of one direction.
pub(super) struct Deflater(Compress);

impl Deflater {
    pub(super) fn new() -> Result<Deflater, SpdyError> {
        let mut stream = Compress::new(Compression::fast(), true);
        stream
            .set_dictionary(&DICTIONARY)
            .map_err(|_| SpdyError::Compression)?;
        Ok(Deflater(stream))
    }

    pub(super) fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let plain = headers.plain();
        let mut out = Vec::with_capacity(plain.len() + 64);
        let begun = self.0.total_in();
        loop {
            let done = usize::try_from(self.0.total_in() - begun).unwrap_or(usize::MAX);
            self.0
                .compress_vec(&plain[done..], &mut out, FlushCompress::Sync)
                .map_err(|_| SpdyError::Compression)?;
            // Room that is left says that nothing more is to come.
            if out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(1024);
        }
    }
}

/// Decompresses the blocks of the other direction.
pub(super) struct Inflater(Decompress);

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    pub(super) fn block(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        if block.len() > LONGEST {
            return Err(SpdyError::TooLong);
        }
        let mut out = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            let (read, wrote) = (self.0.total_in(), self.0.total_out());
            let step = self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let count = usize::try_from(self.0.total_in() - read).unwrap_or(usize::MAX);
            rest = rest.get(count..).unwrap_or_default();
            match step {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| SpdyError::Compression)?;
                    continue;
                }
                Err(_) => return Err(SpdyError::Compression),
                Ok(Status::StreamEnd) => break,
                Ok(_) => {}
            }
            if out.len() > LONGEST {
                return Err(SpdyError::TooLong);
            }
            if out.len() == out.capacity() {
                out.reserve(out.len());
            } else if rest.is_empty() || (count == 0 && self.0.total_out() == wrote) {
                break;
            }
        }
        Headers::parse(&out).ok_or(SpdyError::Headers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        let checksum = Compress::new(Compression::fast(), true).set_dictionary(&DICTIONARY);
        assert_eq!(checksum.unwrap(), 0xe3c6_a7c2);
    }

    #[test]
    fn what_is_no_header_block_is_refused() {
        let mut inflater = Inflater::new();
        assert!(matches!(
            inflater.block(b"no zlib stream"),
            Err(SpdyError::Compression)
        ));
        let mut deflater = Deflater::new().unwrap();
        let bomb = Headers(vec![("a".into(), "b".repeat(2 * LONGEST))]);
        let block = deflater.block(&bomb).unwrap();
        assert!(block.len() < LONGEST);
        assert!(matches!(
            Inflater::new().block(&block),
            Err(SpdyError::TooLong)
        ));
        assert_eq!(Headers::parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'a']), None);
    }

    proptest! {
        #[test]
        fn blocks_one_after_the_other_come_out_as_they_went_in(
            blocks in proptest::collection::vec(proptest::collection::vec(("[a-z]{0,30}", "\\PC{0,2000}"), 0..8), 1..6)
        ) {
            let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
            for headers in blocks.into_iter().map(Headers) {
                let block = deflater.block(&headers).unwrap();
                prop_assert_eq!(inflater.block(&block).unwrap(), headers);
            }
        }
    }
}
