//! The application: answers every request with 1 KiB, on a thread of its own.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use bytes::Bytes;
use futures::future::ready;
use heddle::pods::Netns;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::load::Protocol;
use crate::machine;

/// Bytes of each answer's body (of its message, with gRPC).
pub const BODY: usize = 1024;

/// Starts it in `netns`, on both ports; it ends with this process.
pub fn start(netns: &Netns) -> anyhow::Result<()> {
    let listen = |protocol: Protocol| {
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, protocol.port())))??;
        listener.set_nonblocking(true)?;
        anyhow::Ok((protocol, listener))
    };
    let listeners = [listen(Protocol::Http1)?, listen(Protocol::Grpc)?];
    thread::Builder::new().name("origin".into()).spawn(move || -> anyhow::Result<()> {
        machine::pin_here(machine::APPLICATIONS)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let [first, second] = listeners;
            tokio::try_join!(serve(first), serve(second))?;
            Ok(())
        })
    })?;
    Ok(())
}

async fn serve((protocol, listener): (Protocol, TcpListener)) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let io = TokioIo::new(stream);
            // A connection that breaks shows as errors at the client, who counts them.
            match protocol {
                Protocol::Http1 => {
                    let answer = service_fn(|_| ready(Ok::<_, Infallible>(page())));
                    let _ = http1::Builder::new().serve_connection(io, answer).await;
                }
                Protocol::Grpc => {
                    let answer = service_fn(|request| async { Ok::<_, Infallible>(call(request).await) });
                    let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(io, answer).await;
                }
            }
        });
    }
}

fn page() -> Response<Full<Bytes>> {
    static PAGE: [u8; BODY] = [b'x'; BODY];
    Response::new(Full::from(Bytes::from_static(&PAGE)))
}

/// A unary call: one message in, one out (gRPC over HTTP/2, "Responses").
async fn call(request: Request<Incoming>) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    // A call that breaks off has no one to answer.
    let _ = request.into_body().collect().await;
    let trailers = ready(Some(Ok(HeaderMap::from_iter([(
        http::header::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )]))));
    let message = Full::from(grpc_message(BODY)).with_trailers(trailers).boxed_unsync();
    let mut response = Response::new(message);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A length-prefixed message of `len` bytes (gRPC over HTTP/2, "Length-Prefixed-Message").
pub fn grpc_message(len: usize) -> Bytes {
    let mut message = vec![0];
    // All messages here are far below 4 GiB.
    message.extend((len as u32).to_be_bytes());
    message.resize(5 + len, b'x');
    message.into()
}
