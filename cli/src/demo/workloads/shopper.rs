//! The customers: HTTP/1.1 at a fixed rate, open loop, over keep-alive connections.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// What the customers have seen since the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Answered with 2xx.
    pub succeeded: u64,
    /// Answered otherwise, or not at all.
    pub failed: u64,
    /// Status of the last failure; 0: no answer.
    pub last_failure: u16,
}

/// Calls until killed.
pub async fn run(web: SocketAddr, rate: u32) -> anyhow::Result<()> {
    let customers = Arc::new(Customers { web, idle: Mutex::default(), tally: Mutex::default() });
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    let mut report = tokio::time::interval(REPORT);
    loop {
        tokio::select! {
            _ = ticks.tick() => drop(tokio::spawn(customers.clone().visit())),
            _ = report.tick() => customers.report()?,
        }
    }
}

type Sender = http1::SendRequest<Empty<Bytes>>;

struct Customers {
    web: SocketAddr,
    idle: Mutex<VecDeque<Sender>>,
    tally: Mutex<Tally>,
}

impl Customers {
    async fn visit(self: Arc<Self>) {
        let status = self.page().await.unwrap_or(0);
        let mut tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        if (200..300).contains(&status) {
            tally.succeeded += 1;
        } else {
            tally.failed += 1;
            tally.last_failure = status;
        }
    }

    async fn page(&self) -> anyhow::Result<u16> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let mut sender = match idle.filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.web).await?;
                let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        let request = Request::get("/").header("host", "web.shop").body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        if sender.ready().await.is_ok() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push_back(sender);
        }
        Ok(status)
    }

    fn report(&self) -> anyhow::Result<()> {
        let tally = *self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &tally)?;
        writeln!(out)?;
        Ok(out.flush()?)
    }
}

/// Chosen: short enough for a story that waits for it.
const REPORT: Duration = Duration::from_millis(200);
