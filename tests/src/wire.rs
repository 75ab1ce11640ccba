//! HTTP/1 as bytes: an origin that keeps what arrives, and a strict reading of messages.
//!
//! Nothing here is lenient: what two parsers could read differently is an error, so that a test that passes has seen
//! one framing only. Responses to HEAD and heads that end without a body must be told to [`Reader::response`].

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};

use crate::origin;
use crate::pods::MeshPod;

/// One HTTP/1 message, as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// Fields in order, names as sent.
    pub fields: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// The target of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.target().parse().unwrap_or(0)
    }

    /// All values of the field `name`, in any case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str()).collect()
    }

    /// The only value of the field `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why bytes are not one whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// The connection ended between messages.
    End,
    /// The connection ended within a message, of which this much is known.
    CutOff(Message),
    /// The bytes can be read in two ways, or in none.
    Ambiguous(String),
}

/// How a message's body ends.
enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// Reads messages from a connection and keeps every byte.
pub struct Reader<S> {
    stream: S,
    /// Everything that came.
    pub raw: Vec<u8>,
    at: usize,
}

impl<S: Read> Reader<S> {
    /// Nothing read yet.
    pub fn new(stream: S) -> Self {
        Self { stream, raw: Vec::new(), at: 0 }
    }

    /// The connection itself.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The next request.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn request(&mut self) -> Result<Message, Broken> {
        let head = self.request_head()?;
        self.body_of(head, true)
    }

    /// The next request up to its body, which [`Reader::body_of`] reads.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn request_head(&mut self) -> Result<Message, Broken> {
        let head = self.head()?;
        let words: Vec<&str> = head.start.split(' ').collect();
        if !matches!(words[..], [method, target, "HTTP/1.1" | "HTTP/1.0"] if !method.is_empty() && !target.is_empty()) {
            return Err(Broken::Ambiguous(format!("request line {:?}", head.start)));
        }
        if head.all("host").len() != 1 {
            return Err(Broken::Ambiguous(format!("hosts {:?}", head.all("host"))));
        }
        Ok(head)
    }

    /// The next response; `bodiless` if it answers HEAD.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn response(&mut self, bodiless: bool) -> Result<Message, Broken> {
        let head = self.head()?;
        if bodiless || matches!(head.status(), 100..=199 | 204 | 304) {
            return Ok(head);
        }
        self.body_of(head, false)
    }

    /// Reads until `count` more bytes are there and takes them.
    ///
    /// # Errors
    /// [`Broken::CutOff`].
    pub fn bytes(&mut self, count: usize) -> Result<Vec<u8>, Broken> {
        while self.raw.len() < self.at + count {
            if self.fill() == 0 {
                return Err(Broken::CutOff(Message::default()));
            }
        }
        let taken = self.raw[self.at..self.at + count].to_vec();
        self.at += count;
        Ok(taken)
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        while self.fill() > 0 {}
        let rest = self.raw[self.at..].to_vec();
        self.at = self.raw.len();
        rest
    }

    /// Completes a head with its body.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn body_of(&mut self, mut message: Message, request: bool) -> Result<Message, Broken> {
        match framing(&message, request)? {
            Framing::None => {}
            Framing::Length(length) => match self.bytes(length) {
                Ok(body) => message.body = body,
                Err(_) => {
                    message.body = self.rest();
                    return Err(Broken::CutOff(message));
                }
            },
            Framing::UntilClose => message.body = self.rest(),
            Framing::Chunked => self.chunks(&mut message)?,
        }
        Ok(message)
    }

    fn chunks(&mut self, message: &mut Message) -> Result<(), Broken> {
        loop {
            let Ok(line) = self.line() else { return Err(Broken::CutOff(message.clone())) };
            let line = line?;
            if line.is_empty() || !line.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(Broken::Ambiguous(format!("chunk size {line:?}")));
            }
            let size = usize::from_str_radix(&line, 16).map_err(|e| Broken::Ambiguous(format!("{line:?}: {e}")))?;
            if size == 0 {
                break;
            }
            let Ok(data) = self.bytes(size + 2) else { return Err(Broken::CutOff(message.clone())) };
            let Some(data) = data.strip_suffix(b"\r\n") else {
                return Err(Broken::Ambiguous("a chunk longer than its size".into()));
            };
            message.body.extend_from_slice(data);
        }
        message.trailers = self.fields().map_err(|broken| match broken {
            Broken::End | Broken::CutOff(_) => Broken::CutOff(message.clone()),
            ambiguous @ Broken::Ambiguous(_) => ambiguous,
        })?;
        Ok(())
    }

    fn head(&mut self) -> Result<Message, Broken> {
        let start = match self.line() {
            Ok(line) => line?,
            Err(()) if self.at == self.raw.len() => return Err(Broken::End),
            Err(()) => return Err(Broken::CutOff(Message::default())),
        };
        let fields = self.fields().map_err(|broken| match broken {
            Broken::End | Broken::CutOff(_) => Broken::CutOff(Message { start: start.clone(), ..Message::default() }),
            ambiguous @ Broken::Ambiguous(_) => ambiguous,
        })?;
        Ok(Message { start, fields, ..Message::default() })
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>, Broken> {
        let mut fields = Vec::new();
        loop {
            let Ok(line) = self.line() else { return Err(Broken::CutOff(Message::default())) };
            let line = line?;
            if line.is_empty() {
                return Ok(fields);
            }
            let token = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b':');
            match line.split_once(':') {
                Some((name, value)) if token(name) => fields.push((name.to_owned(), value.trim().to_owned())),
                _ => return Err(Broken::Ambiguous(format!("field line {line:?}"))),
            }
        }
    }

    /// One line without its CR LF; the outer error is the end of the connection.
    fn line(&mut self) -> Result<Result<String, Broken>, ()> {
        let mut from = self.at;
        loop {
            if let Some(found) = self.raw[from..].iter().position(|byte| *byte == b'\n') {
                let line = &self.raw[self.at..from + found];
                self.at = from + found + 1;
                let text = line.strip_suffix(b"\r").map(|line| line.iter().map(|b| char::from(*b)).collect::<String>());
                return Ok(match text {
                    Some(text) if !text.contains(['\r', '\0']) => Ok(text),
                    _ => Err(Broken::Ambiguous(format!("line {:?}", String::from_utf8_lossy(line)))),
                });
            }
            from = self.raw.len();
            if self.fill() == 0 {
                return Err(());
            }
        }
    }

    fn fill(&mut self) -> usize {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(len) => {
                self.raw.extend_from_slice(&chunk[..len]);
                len
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing more came; so far: {}", String::from_utf8_lossy(&self.raw))
            }
            // A reset ends it as well.
            Err(_) => 0,
        }
    }
}

fn framing(message: &Message, request: bool) -> Result<Framing, Broken> {
    let (codings, lengths) = (message.all("transfer-encoding"), message.all("content-length"));
    match (codings.as_slice(), lengths.as_slice()) {
        ([], []) if request => Ok(Framing::None),
        ([], []) => Ok(Framing::UntilClose),
        ([], [length]) if length.bytes().all(|digit| digit.is_ascii_digit()) => {
            let length = length.parse().map_err(|error| Broken::Ambiguous(format!("length {length:?}: {error}")))?;
            Ok(Framing::Length(length))
        }
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        _ => Err(Broken::Ambiguous(format!("framing {codings:?} {lengths:?}"))),
    }
}

/// What came to an origin, in order of its end.
#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Result<Message, Broken>>>>);

impl Record {
    /// Adds what came.
    pub fn push(&self, came: Result<Message, Broken>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(came);
    }

    /// What has come so far, forgotten from now on.
    pub fn take(&self) -> Vec<Result<Message, Broken>> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The only request that came.
    pub fn only(&self) -> Message {
        match self.take().as_slice() {
            [Ok(message)] => message.clone(),
            came => panic!("one whole request was to come: {came:?}"),
        }
    }
}

/// An origin that keeps every request and answers each with the bytes that `answer` gives; it closes after an answer
/// that says `Connection: close`.
pub fn origin(pod: &MeshPod, port: u16, answer: impl Fn(&Message) -> Vec<u8> + Send + Sync + 'static) -> Record {
    let record = Record::default();
    let kept = record.clone();
    origin::tcp(pod, port, move |stream| serve(stream, &kept, &answer));
    record
}

fn serve(stream: TcpStream, record: &Record, answer: &(impl Fn(&Message) -> Vec<u8> + ?Sized)) {
    let mut reader = Reader::new(stream);
    loop {
        match reader.request() {
            Ok(message) => {
                let answer = answer(&message);
                record.push(Ok(message));
                if reader.stream().write_all(&answer).is_err() || closes(&answer) {
                    return;
                }
            }
            Err(Broken::End) => return,
            Err(broken) => return record.push(Err(broken)),
        }
    }
}

fn closes(answer: &[u8]) -> bool {
    let head = String::from_utf8_lossy(answer);
    let head = head.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
    head.contains("connection: close")
}

/// An answer without anything special.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &str) -> Result<Message, Broken> {
        Reader::new(bytes.as_bytes()).request()
    }

    #[test]
    fn what_can_be_read_twice_is_no_message() {
        for bytes in [
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        ] {
            assert!(matches!(request(bytes), Err(Broken::Ambiguous(_))), "{bytes:?}: {:?}", request(bytes));
        }
    }

    #[test]
    fn a_message_cut_off_is_told_from_the_end() {
        assert_eq!(request(""), Err(Broken::End));
        assert!(matches!(request("GET / HT"), Err(Broken::CutOff(_))));
        let cut = request("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab");
        assert!(matches!(cut, Err(Broken::CutOff(message)) if message.body == b"ab"));
    }
}
