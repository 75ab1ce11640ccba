//! The stock: a TCP service that speaks first, as SMTP and MySQL do.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;

use super::Server;

/// Serves until killed.
pub async fn run(server: Server) -> anyhow::Result<()> {
    let listener = server.listen().await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(converse(stream, server.name.clone()));
    }
}

async fn converse(stream: TcpStream, name: String) -> std::io::Result<()> {
    let mut stream = BufStream::new(stream);
    stream.write_all(format!("+OK {name} at your service\r\n").as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 && line.len() < MAX_LINE {
        stream.write_all(format!("+OK {} left of {}\r\n", 42, line.trim()).as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

/// Chosen: longer than any article's name.
const MAX_LINE: usize = 1_000;
