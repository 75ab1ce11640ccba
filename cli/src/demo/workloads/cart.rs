//! The cart: gRPC, unary and server streaming.

use std::pin::Pin;

use tokio_stream::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::Server;
use super::behaviour::Behaviour;

/// Generated from `proto/shop/cart.proto`.
pub mod proto {
    #![allow(missing_docs, clippy::all, unused_qualifications, reason = "generated")]
    tonic::include_proto!("shop");
}

use proto::cart_server::{Cart, CartServer};
use proto::{Change, ItemsRequest, ItemsResponse, WatchRequest};

/// Serves until killed.
pub async fn run(server: Server) -> anyhow::Result<()> {
    let listener = TcpListenerStream::new(server.listen().await?);
    let cart = Service { name: server.name, behaviour: Behaviour::new(server.behaviour) };
    tonic::transport::Server::builder().add_service(CartServer::new(cart)).serve_with_incoming(listener).await?;
    Ok(())
}

struct Service {
    name: String,
    behaviour: Behaviour,
}

impl Service {
    async fn misbehave(&self) -> Result<(), Status> {
        let misdeed = self.behaviour.next();
        tokio::time::sleep(misdeed.delay).await;
        if misdeed.fail { Err(Status::unavailable("the cart is out of order")) } else { Ok(()) }
    }
}

#[tonic::async_trait]
impl Cart for Service {
    async fn items(&self, request: Request<ItemsRequest>) -> Result<Response<ItemsResponse>, Status> {
        self.misbehave().await?;
        let customer = request.into_inner().customer;
        Ok(Response::new(ItemsResponse { items: vec![format!("{}: a shuttle for {customer}", self.name)] }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<Change, Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.misbehave().await?;
        let changes = request.into_inner().changes.min(MAX_CHANGES);
        let changes = (1..=changes).map(|count| Ok(Change { item: "shuttle".into(), count: count as i32 }));
        Ok(Response::new(Box::pin(tokio_stream::iter(changes.collect::<Vec<_>>()))))
    }
}

/// Chosen: a demo's stream is short.
const MAX_CHANGES: u32 = 1_000;
