//! Opaque bytes, both ways, with half-close: what one side ends, the other sees end, and the answer still comes.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Read at a time. Chosen: one TLS record (RFC 8446 §5.1) is at most 16 KiB.
const CHUNK_BYTES: usize = 16 * 1024;

/// What is told as octets are relayed.
pub trait Meter {
    /// `octets` more went from the client to the server.
    fn sent(&self, octets: u64);
    /// `octets` more went from the server to the client.
    fn received(&self, octets: u64);
}

/// One end of a relayed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Who connected.
    Client,
    /// Who was connected to.
    Server,
}

/// Relays until both directions have ended, or one broke.
///
/// # Errors
/// Whose end broke. Both streams are to be aborted then: the other side must not take it for an orderly end.
pub async fn both_ways<C, S>(client: &mut C, server: &mut S, meter: &impl Meter) -> Result<(), End>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client_read, client_write) = tokio::io::split(client);
    let (server_read, server_write) = tokio::io::split(server);
    let up = one_way(client_read, server_write, |octets| meter.sent(octets), [End::Client, End::Server]);
    let down = one_way(server_read, client_write, |octets| meter.received(octets), [End::Server, End::Client]);
    tokio::try_join!(up, down).map(|_| ())
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    count: impl Fn(u64),
    [source, sink]: [End; 2],
) -> Result<(), End> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let len = from.read(&mut chunk).await.map_err(|_| source)?;
        if len == 0 {
            // A peer that has gone meanwhile needs no end told.
            let _ = to.shutdown().await;
            return Ok(());
        }
        to.write_all(&chunk[..len]).await.map_err(|_| sink)?;
        to.flush().await.map_err(|_| sink)?;
        count(len as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[derive(Default)]
    struct Counts {
        sent: Cell<u64>,
        received: Cell<u64>,
    }

    impl Meter for Counts {
        fn sent(&self, octets: u64) {
            self.sent.set(self.sent.get() + octets);
        }

        fn received(&self, octets: u64) {
            self.received.set(self.received.get() + octets);
        }
    }

    #[tokio::test]
    async fn an_end_on_one_side_is_told_and_the_answer_still_comes() {
        let (mut client, mut client_end) = tokio::io::duplex(64);
        let (mut server_end, mut server) = tokio::io::duplex(64);
        let counts = Counts::default();
        let relay = both_ways(&mut client_end, &mut server_end, &counts);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut asked = Vec::new();
            server.read_to_end(&mut asked).await.unwrap();
            server.write_all(b"answer!").await.unwrap();
            server.shutdown().await.unwrap();
            let mut answered = Vec::new();
            client.read_to_end(&mut answered).await.unwrap();
            (asked, answered)
        };
        let (relayed, (asked, answered)) = tokio::join!(relay, talk);
        relayed.unwrap();
        assert_eq!((asked.as_slice(), answered.as_slice()), (&b"question"[..], &b"answer!"[..]));
        assert_eq!((counts.sent.get(), counts.received.get()), (8, 7));
    }
}
