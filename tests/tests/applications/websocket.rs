//! WebSocket by Python's `websockets` on both ends: upgrade, messages, close.

use heddle_tests::meshed::Pair;
use heddle_tests::programs::{self, Server};

use super::{WORKERS, python};

const WEBSOCKETS: &str = "python3-websockets";

#[test]
fn websocket_messages_pass_both_ways_after_the_upgrade_and_either_side_may_close() {
    for workers in WORKERS {
        let pair = Pair::new(workers, 8765);
        let _server = Server::start(&pair.server, python("websocket_server.py", WEBSOCKETS), "ready");
        let mut command = python("websocket_client.py", WEBSOCKETS);
        command.arg(pair.vip.to_string());

        let said = programs::run(&pair.client, command).text();

        assert_eq!(said, "done");
        pair.assert_requests("http", 3, &["response_code=\"101\"", "cause=\"\""]);
    }
}
