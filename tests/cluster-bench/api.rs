//! Pages asked for over one kept connection from within a network: the API server's, through `kubectl proxy`, and a sidecar's.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Stdio;

use bytes::Bytes;
use heddle::pods::{Child, Netns};
use heddle_tests::cluster::Cluster;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::runtime::Runtime;

/// One connection.
pub struct Api {
    runtime: Runtime,
    sender: RefCell<SendRequest<Full<Bytes>>>,
    address: String,
    network: Netns,
    /// Killed with it.
    proxy: Option<Child>,
}

impl Api {
    /// The cluster's API server, with every right.
    pub fn open(cluster: &Cluster) -> Self {
        let mut command = cluster.in_node("kubectl");
        command.args(["proxy", "--port=0"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let network = cluster.network();
        let mut child = network.spawn(command).unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout().unwrap()).read_line(&mut said).unwrap();
        let address = said.trim().rsplit(' ').next().unwrap().to_owned();
        let mut api = Self::at(&network, &address);
        api.proxy = Some(child);
        api
    }

    /// Another connection to the same place.
    pub fn another(&self) -> Self {
        Self::at(&self.network, &self.address)
    }

    /// A server inside a network.
    pub fn at(network: &Netns, address: &str) -> Self {
        let stream = network.run(|| TcpStream::connect(address)).unwrap();
        let stream = stream.unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sender = runtime.block_on(async {
            let stream = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
            let (sender, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender
        });
        let network = Netns::open(&network.path()).unwrap();
        Self { runtime, sender: RefCell::new(sender), address: address.to_owned(), network, proxy: None }
    }

    /// Sends an object, or a merge patch of one; what is answered, which must be a success.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let answer = self.ask(method, path, kind, body.to_string());
        serde_json::from_str(&answer).unwrap()
    }

    /// What is at a path.
    pub fn page(&self, path: &str) -> String {
        self.ask("GET", path, "text/plain", String::new())
    }

    fn ask(&self, method: &str, path: &str, kind: &str, body: String) -> String {
        let request =
            Request::builder().method(method).uri(path).header("host", "localhost").header("content-type", kind);
        let request = request.body(Full::from(body)).unwrap();
        let mut sender = self.sender.borrow_mut();
        let (status, body) = self.runtime.block_on(async {
            sender.ready().await.unwrap();
            let response = sender.send_request(request).await.unwrap();
            (response.status(), response.into_body().collect().await.unwrap().to_bytes())
        });
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(status.is_success(), "{method} {path}: {status}: {body}");
        body
    }
}
