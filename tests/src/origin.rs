//! Applications inside pods.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::pods::MeshPod;

/// Answers a request that was read whole.
pub type Handler = dyn Fn(Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync;

/// An HTTP server on every address of the pod, port `port`; HTTP/2 with prior knowledge, or HTTP/1.
pub fn http(
    pod: &MeshPod,
    port: u16,
    http2: bool,
    handler: impl Fn(Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
) {
    let handler: Arc<Handler> = Arc::new(handler);
    for listener in listen(pod, port) {
        let handler = handler.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, http2, handler));
        });
    }
}

async fn serve(listener: TcpListener, http2: bool, handler: Arc<Handler>) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(handler(Request::from_parts(head, body)))
            }
        });
        tokio::spawn(async move {
            let io = TokioIo::new(stream);
            // How a connection ends is the test's to see from the client.
            if http2 {
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
    http(pod, port, false, move |request| Response::new(Full::from(format!("{name}\n{}", seen(&request)))));
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
