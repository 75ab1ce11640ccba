//! What one connection costs before it holds any bytes: the size of the future that serves it.

/// The size of the future `serve` makes, without making one.
fn future_bytes<A, B, F: Future>(_serve: impl Fn(A, B) -> F) -> usize {
    size_of::<F>()
}

/// Octets. Measured, and a little room: whoever makes a connection dearer has to say so here.
const MAX_CONNECTION_BYTES: usize = 5 * 1024;

#[test]
fn an_idle_connection_costs_no_more_than_was_measured() {
    let outbound = future_bytes(crate::outbound::serve);
    let inbound = future_bytes(crate::inbound::serve);
    assert!(outbound <= MAX_CONNECTION_BYTES, "outbound: {outbound} octets");
    assert!(inbound <= MAX_CONNECTION_BYTES, "inbound: {inbound} octets");
}
