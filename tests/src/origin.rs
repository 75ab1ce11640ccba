//! Applications inside pods.

use std::convert::Infallible;
use std::future::ready;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::pods::MeshPod;

/// An HTTP server on every address of the pod, port `port`, that answers requests read whole: HTTP/2 with prior knowledge or
/// HTTP/1, as each connection begins.
pub fn http<B>(pod: &MeshPod, port: u16, handler: impl Fn(Request<Bytes>) -> Response<B> + Send + Sync + 'static)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    http_in_time(pod, port, move |request| ready(handler(request)));
}

/// The same of a handler that may wait.
pub fn http_in_time<B, F>(pod: &MeshPod, port: u16, handler: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
{
    let handler = Arc::new(handler);
    for listener in listen(pod, port) {
        let handler = handler.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, handler));
        });
    }
}

async fn serve<B, F>(listener: TcpListener, handler: Arc<impl Fn(Request<Bytes>) -> F + Send + Sync + 'static>)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
{
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(handler(Request::from_parts(head, body)).await)
            }
        });
        tokio::spawn(async move {
            let mut begin = [0; 3];
            let len = stream.peek(&mut begin).await.unwrap_or(0);
            let io = TokioIo::new(stream);
            // How a connection ends is the test's to see from the client.
            if &begin[..len] == b"PRI" {
                let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
            } else {
                let _ = http1::Builder::new()
                    .preserve_header_case(true)
                    .half_close(true)
                    .serve_connection(io, service)
                    .await;
            }
        });
    }
}

/// An HTTP/1 server that says what it saw: request line, then fields, one a line.
pub fn echo(pod: &MeshPod, port: u16, name: &'static str) {
    http(pod, port, move |request| Response::new(Full::from(format!("{name}\n{}", seen(&request)))));
}

/// What a request looks like to the application.
pub fn seen(request: &Request<Bytes>) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text.push_str(&String::from_utf8_lossy(request.body()));
    text
}

/// A server that runs `talk` on each connection, in a thread of its own.
pub fn tcp(pod: &MeshPod, port: u16, talk: impl Fn(TcpStream) + Send + Sync + 'static) {
    let talk = Arc::new(talk);
    for listener in listen(pod, port) {
        let talk = talk.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let talk = talk.clone();
                thread::spawn(move || talk(stream.unwrap()));
            }
        });
    }
}

/// A server that says `greeting`, then everything it was sent, upper-case, once its client has ended.
pub fn greets(pod: &MeshPod, port: u16, greeting: &'static str) {
    tcp(pod, port, move |mut stream| {
        let _ = stream.write_all(greeting.as_bytes());
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let _ = stream.write_all(&said.to_ascii_uppercase());
    });
}

pub(crate) fn listen(pod: &MeshPod, port: u16) -> [TcpListener; 2] {
    let bind = |address: SocketAddr| pod.netns().run(|| TcpListener::bind(address)).unwrap().unwrap();
    [bind(pod.v4(port)), bind(pod.v6(port))]
}
