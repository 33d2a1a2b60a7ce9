//! What happens in a running proxy, as it happens.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use crate::api::Event;
use crate::client::ClientError;
use crate::http::Lines;

/// The events of a running proxy; each call of `next` waits for one. Ends when the proxy does.
///
/// Who is away for too long misses events: the numbers tell, see [`Event::sequence`].
#[derive(Debug)]
pub struct Events {
    socket: PathBuf,
    lines: Lines<UnixStream>,
}

/// What a stream of events may carry, in the fields of one block (WHATWG HTML section 9.2.6).
#[derive(Debug, Default)]
struct Block {
    kind: String,
    data: String,
}

impl Events {
    pub(crate) fn new(socket: PathBuf, lines: Lines<UnixStream>) -> Self {
        Self { socket, lines }
    }

    /// Reads up to the end of a block; none at the end of the stream.
    fn block(&mut self) -> io::Result<Option<Block>> {
        let mut block = Block::default();
        while let Some(line) = self.lines.next()? {
            if line.is_empty() {
                return Ok(Some(block));
            }
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match name {
                "event" => block.kind = value.to_owned(),
                "data" => block.data.push_str(value),
                // A line that begins with a colon is a comment; other fields mean nothing here.
                _ => {}
            }
        }
        Ok(None)
    }
}

impl Iterator for Events {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let block = match self.block() {
                Ok(Some(block)) => block,
                Ok(None) => return None,
                // How the stream of a proxy that has ended looks from here.
                Err(error)
                    if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
                {
                    return None;
                }
                Err(source) => {
                    return Some(Err(ClientError::Exchange { path: self.socket.clone(), source }));
                }
            };
            // That some were lost is seen by the next one's number.
            if block.data.is_empty() || block.kind == "lost" {
                continue;
            }
            let event = serde_json::from_str(&block.data);
            let path = self.socket.clone();
            return Some(event.map_err(|source| ClientError::Document { path, status: 200, source }));
        }
    }
}
