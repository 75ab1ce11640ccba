//! Cases between workloads with certificates: servers that are told by xDS whom they take.

use heddle_tests::talk;

use super::calls::{Calls, PERMISSION_DENIED, UNAVAILABLE, counted};
use super::manifests;
use super::world::{Client, SERVERS, World};

/// Nobody without a certificate of the mesh is served there.
pub fn mutual_tls(world: &World, client: &Client) {
    for server in SERVERS {
        let counts = counted(&client.makes(&Calls::to(server).times(5)));
        assert_eq!(counts, [(server.to_owned(), 5)].into());
        let answer = talk::exchange(&client.pod, world.address_of(server), PREFACE);
        assert_ne!(answer.first(), Some(&0), "in plaintext there is no HTTP/2: {answer:?}");
    }
}

/// A server that shows a certificate of the mesh, but another's.
pub fn another_identity(_: &World, client: &Client) {
    let outcomes = client.makes(&Calls::to("impostor"));
    assert_eq!(outcomes[0].status, UNAVAILABLE, "{outcomes:?}");
}

/// By who calls, and by what is called.
pub fn authorization(world: &World, client: &Client) {
    for server in SERVERS {
        let status = |client: &Client, calls: &Calls| client.makes(calls)[0].status;
        assert_eq!(status(client, &Calls::to(server)), 0);
        assert_eq!(status(client, &Calls::to(server).ask()), PERMISSION_DENIED, "one method is denied");
        assert_eq!(status(&world.stranger, &Calls::to(server)), PERMISSION_DENIED, "the stranger is not allowed");
    }
}

/// A sidecar speaks mutual TLS to servers without one, and they know who calls.
pub fn from_a_sidecar(world: &World) {
    for service in manifests::SERVER_ADDRESSES {
        let calls = Calls::to_target(&format!("passthrough:///{service}:7070"));
        assert_eq!(world.sided.makes(&calls)[0].status, 0, "{service}");
        assert_eq!(world.sided.makes(&calls.ask())[0].status, PERMISSION_DENIED, "{service}");
    }
}

/// How a client of HTTP/2 begins, with empty settings (RFC 9113 §3.4); a server answers with a frame shorter than 64 KiB.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
