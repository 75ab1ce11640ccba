//! NATS: its server speaks first, connections live long, and messages arrive without being asked for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{Program, Server};
use heddle_tests::talk;

use super::{WORKERS, noise};

/// A client in the protocol's own words (docs.nats.io, client protocol).
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connected, greeted, and taken.
    fn new(pair: &Pair) -> Self {
        let mut client = Self { stream: BufReader::new(talk::connect(&pair.client, pair.vip)) };
        let info = client.line();
        assert!(info.starts_with("INFO {"), "the server greets first: {info}");
        client.say(b"CONNECT {\"verbose\":false,\"pedantic\":true,\"protocol\":1}\r\n");
        client.settle();
        client
    }

    fn say(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n"), "the server has closed after {line:?}");
        line.trim_end().to_owned()
    }

    /// Until the server has taken everything said so far.
    fn settle(&mut self) {
        self.say(b"PING\r\n");
        assert_eq!(self.line(), "PONG");
    }

    fn publish(&mut self, subject: &str, payload: &[u8]) {
        self.say(format!("PUB {subject} {}\r\n", payload.len()).as_bytes());
        self.say(payload);
        self.say(b"\r\n");
    }

    /// Subject and payload of the next message.
    fn message(&mut self) -> (String, Vec<u8>) {
        let line = self.line();
        let ["MSG", subject, _, len] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("no message: {line}") };
        let mut payload = vec![0; len.parse::<usize>().unwrap() + 2];
        self.stream.read_exact(&mut payload).unwrap();
        assert!(payload.ends_with(b"\r\n"));
        payload.truncate(payload.len() - 2);
        (subject.to_owned(), payload)
    }
}

#[test]
fn nats_delivers_to_every_subscriber_what_is_published() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 4222);
        let mut command = Program { name: "nats-server", package: "nats-server" }.command();
        command.args(["--addr", "0.0.0.0", "--port", "4222"]);
        let _nats = Server::start(&pair.server, command, "Server is ready");
        let mut subscribers = [Client::new(&pair), Client::new(&pair)];
        for subscriber in &mut subscribers {
            subscriber.say(b"SUB orders.* 1\r\n");
            subscriber.settle();
        }
        let mut publisher = Client::new(&pair);
        let payloads = (0..20).map(|number| noise(number * 10_000)).collect::<Vec<_>>();

        for (number, payload) in payloads.iter().enumerate() {
            publisher.publish(&format!("orders.{number}"), payload);
        }
        publisher.publish("elsewhere", b"not for them");
        publisher.settle();

        for subscriber in &mut subscribers {
            for (number, payload) in payloads.iter().enumerate() {
                let (subject, received) = subscriber.message();
                assert_eq!(subject, format!("orders.{number}"));
                assert!(received == *payload, "message {number} differs");
            }
            subscriber.settle();
        }
        drop((subscribers, publisher));
        pair.assert_connections(3);
    }
}
