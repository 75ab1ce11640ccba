//! The catalog: HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::Server;
use super::behaviour::Behaviour;

/// Serves until killed.
pub async fn run(server: Server) -> anyhow::Result<()> {
    let listener = server.listen().await?;
    let name: Arc<str> = server.name.into();
    let behaviour = Arc::new(Behaviour::new(server.behaviour));
    loop {
        let (stream, _) = listener.accept().await?;
        let (name, behaviour) = (name.clone(), behaviour.clone());
        let service = service_fn(move |_| answer(name.clone(), behaviour.clone()));
        // How a client ends is its own affair.
        tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(name: Arc<str>, behaviour: Arc<Behaviour>) -> Result<Response<Full<Bytes>>, Infallible> {
    let misdeed = behaviour.next();
    tokio::time::sleep(misdeed.delay).await;
    let mut response =
        Response::new(Full::from(format!("{{\"catalog\":\"{name}\",\"items\":[\"loom\",\"thread\"]}}\n")));
    if misdeed.fail {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}
