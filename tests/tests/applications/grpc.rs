//! gRPC's own C++ core, by its Python face, on both ends.

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{self, Server};

use super::{WORKERS, python};

const GRPCIO: &str = "python3-grpcio";

#[test]
fn grpc_unary_streaming_both_ways_status_trailers_and_cancellation() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 50051);
        let _server = Server::start(&pair.server, python("grpc_server.py", GRPCIO), "ready");
        let mut command = python("grpc_client.py", GRPCIO);
        command.arg(pair.vip.to_string());

        let said = programs::run(&pair.client, command).text();

        assert_eq!(said, "done");
        // Three echoes, three streams, a sum, a chat, and whether the cancelled call has ended.
        for (status, count) in [("0", 9), ("9", 1), ("12", 1)] {
            pair.assert_requests("grpc", count, &[&format!("grpc_status=\"{status}\""), "cause=\"\""]);
        }
        // The call that was cancelled after its first message.
        pair.assert_requests("grpc", 1, &["response_code=\"200\"", "cause=\"downstream_closed\""]);
        // And the one that ran into its deadline, which client and server both watch: who is first, differs.
        pair.assert_requests("grpc", 13, &[]);
    }
}
