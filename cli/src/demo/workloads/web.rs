//! The shop's front: HTTP/1.1, which asks catalog, cart and stock for each page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http2;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::Server;
use super::behaviour::Behaviour;
use super::cart::proto::cart_client::CartClient;
use super::cart::proto::{ItemsRequest, WatchRequest};

/// Whom it asks.
#[derive(Debug, Clone, Copy)]
pub struct Services {
    /// HTTP/2.
    pub catalog: SocketAddr,
    /// gRPC.
    pub cart: SocketAddr,
    /// TCP, speaks first.
    pub stock: SocketAddr,
}

/// Serves until killed.
pub async fn run(server: Server, services: Services) -> anyhow::Result<()> {
    let listener = server.listen().await?;
    let cart = Endpoint::from_shared(format!("http://{}", services.cart))?.connect_lazy();
    let shop = Arc::new(Shop {
        name: server.name,
        behaviour: Behaviour::new(server.behaviour),
        services,
        cart: CartClient::new(cart),
        catalog: Mutex::new(None),
    });
    loop {
        let (stream, _) = listener.accept().await?;
        let shop = shop.clone();
        let service = service_fn(move |request| {
            let shop = shop.clone();
            async move { Ok::<_, Infallible>(shop.answer(request).await) }
        });
        // How a client ends is its own affair.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

struct Shop {
    name: String,
    behaviour: Behaviour,
    services: Services,
    cart: CartClient<Channel>,
    catalog: Mutex<Option<http2::SendRequest<Empty<Bytes>>>>,
}

impl Shop {
    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        let misdeed = self.behaviour.next();
        tokio::time::sleep(misdeed.delay).await;
        if misdeed.fail {
            return status(StatusCode::SERVICE_UNAVAILABLE, "the web is out of order\n".to_owned());
        }
        if request.uri().path().starts_with("/admin") {
            return status(StatusCode::OK, "the till is open\n".to_owned());
        }
        match tokio::time::timeout(PAGE_TIMEOUT, self.page()).await {
            Ok(Ok(page)) => status(StatusCode::OK, page),
            Ok(Err(error)) => status(StatusCode::BAD_GATEWAY, format!("{error:#}\n")),
            Err(_) => status(StatusCode::GATEWAY_TIMEOUT, "the shop is slow\n".to_owned()),
        }
    }

    async fn page(&self) -> anyhow::Result<String> {
        let (catalog, cart, stock) = tokio::try_join!(self.catalog(), self.cart(), self.stock())?;
        Ok(format!("{}\n{catalog}{cart}\n{stock}", self.name))
    }

    /// Over one connection, as HTTP/2 clients do.
    async fn catalog(&self) -> anyhow::Result<String> {
        let mut sender = self.catalog_connection().await?;
        let uri = format!("http://{}/items", self.services.catalog);
        let response = sender.send_request(Request::get(uri).body(Empty::new())?).await.context("catalog")?;
        anyhow::ensure!(response.status().is_success(), "catalog answers {}", response.status());
        Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
    }

    async fn catalog_connection(&self) -> anyhow::Result<http2::SendRequest<Empty<Bytes>>> {
        let mut connection = self.catalog.lock().await;
        if let Some(sender) = connection.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(self.services.catalog).await.context("catalog")?;
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        *connection = Some(sender.clone());
        Ok(sender)
    }

    async fn cart(&self) -> anyhow::Result<String> {
        let mut cart = self.cart.clone();
        let items = cart.items(ItemsRequest { customer: "ada".into() }).await.context("cart")?.into_inner().items;
        let watch = WatchRequest { customer: "ada".into(), changes: 3 };
        let mut changes = cart.watch(watch).await.context("cart")?.into_inner();
        let mut seen = 0;
        while changes.message().await.context("cart")?.is_some() {
            seen += 1;
        }
        Ok(format!("{} and {seen} changes", items.join(", ")))
    }

    async fn stock(&self) -> anyhow::Result<String> {
        let mut stream = BufReader::new(TcpStream::connect(self.services.stock).await.context("stock")?);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).await.context("stock")?;
        anyhow::ensure!(greeting.starts_with("+OK"), "stock says {greeting:?}");
        stream.write_all(b"loom\r\n").await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await.context("stock")?;
        Ok(answer)
    }
}

fn status(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

/// Chosen: people leave sooner.
const PAGE_TIMEOUT: Duration = Duration::from_secs(5);
