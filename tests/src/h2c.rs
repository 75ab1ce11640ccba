//! HTTP/2 with prior knowledge: a client and an origin that see streams and resets, and a client that writes frames
//! by hand.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use tokio::net::TcpStream;

use crate::pods::MeshPod;
use crate::wire::Reader;
use crate::{PATIENCE, origin, talk};

/// Runs a test's client to its end, on a runtime of its own.
pub fn run<T>(client: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, client).await.expect("the client ends in time") })
}

/// A connection of a client.
pub struct Client {
    /// Opens streams.
    pub streams: h2::client::SendRequest<Bytes>,
    /// Ends with the connection.
    pub connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// Connects from inside `pod`.
pub async fn connect(pod: &MeshPod, to: SocketAddr) -> Client {
    let stream = talk::connect(pod, to);
    stream.set_nonblocking(true).unwrap();
    let stream = TcpStream::from_std(stream).unwrap();
    let (streams, connection) = h2::client::handshake(stream).await.unwrap();
    Client { streams, connection: tokio::spawn(connection) }
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// Status and fields.
    pub head: http::response::Parts,
    /// All data.
    pub body: Bytes,
    /// The fields at the end, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl Response {
    /// The status code.
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// The first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }
}

impl Client {
    /// Sends a request with this body and reads its response.
    ///
    /// # Errors
    /// How the stream or the connection ended instead.
    pub async fn exchange(&self, request: Request<()>, body: impl Into<Bytes>) -> Result<Response, h2::Error> {
        let body = body.into();
        let (response, mut sender) = self.streams.clone().ready().await?.send_request(request, body.is_empty())?;
        if !body.is_empty() {
            sender.send_data(body, true)?;
        }
        let (head, mut body) = response.await?.into_parts();
        let (body, trailers) = read(&mut body).await?;
        Ok(Response { head, body, trailers })
    }

    /// [`Client::exchange`] of a GET.
    ///
    /// # Errors
    /// As there.
    pub async fn get(&self, path: &str) -> Result<Response, h2::Error> {
        self.exchange(Request::get(format!("http://api.shop{path}")).body(()).unwrap(), "").await
    }
}

/// Everything that comes.
///
/// # Errors
/// How the stream ended instead.
pub async fn read(body: &mut RecvStream) -> Result<(Bytes, Option<HeaderMap>), h2::Error> {
    let mut all = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all.freeze(), body.trailers().await?))
}

/// Sends `data` as the windows allow and says how much went out before the other end reset the stream or, if
/// `blocked` comes first, before that.
pub async fn send(stream: &mut SendStream<Bytes>, data: &Bytes, blocked: impl Future<Output = ()>) -> usize {
    let mut sent = 0;
    let mut blocked = std::pin::pin!(blocked);
    while sent < data.len() {
        stream.reserve_capacity(data.len() - sent);
        let capacity = tokio::select! {
            capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)) => capacity,
            () = &mut blocked => return sent,
        };
        let Some(Ok(capacity)) = capacity else { return sent };
        let end = sent + capacity;
        if stream.send_data(data.slice(sent..end), end == data.len()).is_err() {
            return sent;
        }
        sent = end;
    }
    sent
}

/// An origin on every address of the pod; `serve` gets each stream.
pub fn origin<F: Future<Output = ()> + Send + 'static>(
    pod: &MeshPod,
    port: u16,
    serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
) {
    let serve = Arc::new(serve);
    for listener in origin::listen(pod, port) {
        let serve = serve.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(connection(stream, serve.clone()));
                }
            });
        });
    }
}

async fn connection<F: Future<Output = ()> + Send + 'static>(
    stream: TcpStream,
    serve: Arc<impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F>,
) {
    // How a connection ends is the test's to see from the client.
    let Ok(mut streams) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, response))) = streams.accept().await {
        tokio::spawn(serve(request, response));
    }
}

/// A gRPC message with its prefix (gRPC `PROTOCOL-HTTP2.md`, Length-Prefixed-Message), not compressed.
pub fn grpc_message(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], message].concat().into()
}

/// What came back for a request written by hand.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// A response with this status.
    Status(u16),
    /// RST_STREAM with this error code.
    Reset(u32),
    /// GOAWAY with this error code.
    GoAway(u32),
    /// The connection ended.
    End,
}

/// Sends one request whose fields, pseudo-fields included, are written as they are, with `data` behind them, and
/// reads what comes back.
pub fn by_hand(pod: &MeshPod, to: SocketAddr, fields: &[(&str, &str)], data: &[u8]) -> Answer {
    answer(&mut Reader::new(open_by_hand(pod, to, fields, data)))
}

/// [`by_hand`] without waiting for an answer.
pub fn open_by_hand(pod: &MeshPod, to: SocketAddr, fields: &[(&str, &str)], data: &[u8]) -> std::net::TcpStream {
    let mut stream = talk::connect(pod, to);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let flags = if data.is_empty() { END_HEADERS | END_STREAM } else { END_HEADERS };
    frame(&mut bytes, HEADERS, flags, 1, &literals(fields));
    if !data.is_empty() {
        frame(&mut bytes, DATA, END_STREAM, 1, data);
    }
    // A refused connection may be reset before everything was written.
    let _ = stream.write_all(&bytes);
    stream
}

fn answer<S: std::io::Read>(frames: &mut Reader<S>) -> Answer {
    loop {
        let Ok(head) = frames.bytes(9) else { return Answer::End };
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Ok(payload) = frames.bytes(length) else { return Answer::End };
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match head[3] {
            HEADERS => return Answer::Status(status(&payload)),
            RST_STREAM => return Answer::Reset(word(0)),
            GOAWAY if word(4) != 0 => return Answer::GoAway(word(4)),
            _ => {}
        }
    }
}

/// The status at the beginning of a header block: indexed, or a literal of three digits, perhaps with Huffman coding
/// (RFC 7541 §6, appendices A and B, where digits have 5 or 6 bits).
fn status(block: &[u8]) -> u16 {
    const INDEXED: [(u8, u16); 7] = [(8, 200), (9, 204), (10, 206), (11, 304), (12, 400), (13, 404), (14, 500)];
    if let Some((_, status)) = INDEXED.iter().find(|(index, _)| block[0] == 0x80 | index) {
        return *status;
    }
    let huffman = block[1] & 0x80 != 0;
    let value = &block[2..2 + usize::from(block[1] & 0x7f)];
    let digits = if huffman { huffman_digits(value) } else { String::from_utf8_lossy(value).into_owned() };
    digits.parse().unwrap()
}

fn huffman_digits(value: &[u8]) -> String {
    let bits: Vec<u8> = value.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut digits) = (0, String::new());
    let number = |from: usize, len: usize| bits[from..].iter().take(len).fold(0, |sum, bit| sum << 1 | *bit);
    while digits.len() < 3 {
        // 0, 1 and 2 are 00000 to 00010; 3 to 9 are 011001 to 011111.
        let short = number(at, 5);
        if short <= 2 {
            digits.push(char::from(b'0' + short));
            at += 5;
        } else {
            digits.push(char::from(b'3' + number(at, 6) - 0b01_1001));
            at += 6;
        }
    }
    digits
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Literal fields without indexing and without Huffman coding (RFC 7541 §6.2.2); texts below 127 octets.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer texts need more than one octet of length");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

// RFC 9113 §6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_every_form() {
        assert_eq!(status(&[0x8c]), 400);
        assert_eq!(status(b"\x48\x03503"), 503);
        // RFC 7541 §C.6.1 and §C.6.2.
        assert_eq!(status(&[0x48, 0x82, 0x64, 0x02]), 302);
        assert_eq!(status(&[0x48, 0x83, 0x64, 0x0e, 0xff]), 307);
    }
}
