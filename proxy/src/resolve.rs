//! Names to addresses, and a connection to the first of them that answers.
//!
//! By DNS of our own, as `/etc/resolv.conf` says (search domains, `ndots`, `/etc/hosts`): the shipped binary is static, and
//! glibc's resolver is not there in one. The file is read anew and nothing is remembered, because it is asked for at each
//! new connection to the control plane only, and a control plane that moved must be found. A sidecar that is exempted by
//! mark instead of by user must not need DNS over TCP: those sockets are the library's and carry no mark.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::ResolverOpts;
use tokio::net::TcpStream;

/// All addresses of `host`, those of the two families in turn (RFC 8305 §4). An address is its own.
///
/// # Errors
/// If there is none, or nobody could be asked.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let unknown = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::NotFound, format!("{host}: {error}"));
    let mut builder = TokioResolver::builder_tokio().map_err(|error| unknown(&format!("/etc/resolv.conf: {error}")))?;
    adapt(builder.options_mut());
    let resolver = builder.build().map_err(|error| unknown(&error))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| unknown(&error))?;
    Ok(interleaved(found.iter()))
}

fn adapt(options: &mut ResolverOpts) {
    options.cache_size = 0;
    options.timeout = options.timeout.min(QUERY_TIMEOUT);
    options.attempts = options.attempts.max(QUERY_ATTEMPTS);
}

/// A connection to the first of `addresses` that takes one: the next is tried when one fails, and beside it when it does not
/// answer soon (RFC 8305 §5).
///
/// # Errors
/// The last one's, if all fail.
pub async fn first<F>(addresses: Vec<SocketAddr>, connect: impl Fn(SocketAddr) -> F) -> io::Result<TcpStream>
where
    F: Future<Output = io::Result<TcpStream>>,
{
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    let mut waiting = addresses.into_iter().peekable();
    let mut under_way = FuturesUnordered::new();
    loop {
        if let Some(address) = waiting.next() {
            let connection = connect(address);
            under_way.push(async move {
                connection.await.map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
            });
        }
        tokio::select! {
            Some(connected) = under_way.next() => match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = tokio::time::sleep(NEXT_AFTER), if waiting.peek().is_some() => {}
            else => {}
        }
        if under_way.is_empty() && waiting.peek().is_none() {
            return Err(last);
        }
    }
}

/// As they come, but no two of one family follow one another while the other family has some.
fn interleaved(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let all: Vec<_> = addresses.collect();
    let first_is_v6 = all.first().is_some_and(IpAddr::is_ipv6);
    let (mut ones, mut others): (Vec<_>, Vec<_>) = all.into_iter().partition(|ip| ip.is_ipv6() == first_is_v6);
    let mut mixed = Vec::with_capacity(ones.len() + others.len());
    ones.reverse();
    others.reverse();
    while let Some(one) = ones.pop().or_else(|| others.pop()) {
        mixed.push(one);
        mixed.extend(others.pop());
    }
    mixed
}

/// Wait for one answer. Chosen: a name server is a hop away; glibc's 5 s would use up the whole time to connect.
const QUERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Times a query is sent. Chosen: two may be lost.
const QUERY_ATTEMPTS: usize = 3;
/// Head start of an address before the next. RFC 8305 §5 recommends it.
const NEXT_AFTER: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Mutex;

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::rdata::A;
    use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns() {
        let mixed = interleaved(ips(&["fd77::1", "fd77::2", "fd77::3", "10.0.0.1"]).into_iter());
        assert_eq!(mixed, ips(&["fd77::1", "10.0.0.1", "fd77::2", "fd77::3"]));
        let mixed = interleaved(ips(&["10.0.0.1", "10.0.0.2", "fd77::1", "fd77::2", "fd77::3"]).into_iter());
        assert_eq!(mixed, ips(&["10.0.0.1", "fd77::1", "10.0.0.2", "fd77::2", "fd77::3"]));
    }

    #[tokio::test]
    async fn an_address_needs_nobody_to_be_asked() {
        assert_eq!(addresses("10.0.0.1").await.unwrap(), ips(&["10.0.0.1"]));
        assert_eq!(addresses("fd77::1").await.unwrap(), ips(&["fd77::1"]));
    }

    #[tokio::test]
    async fn the_first_address_that_answers_is_taken_and_a_silent_one_only_delays() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let alive = listener.local_addr().unwrap();
        let (refusing, silent): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "192.0.2.1:1".parse().unwrap());
        let tried = Mutex::new(Vec::new());
        let connect = |address| {
            tried.lock().unwrap().push(address);
            async move { if address == silent { std::future::pending().await } else { TcpStream::connect(address).await } }
        };

        let stream = first(vec![refusing, silent, alive], connect).await.unwrap();

        assert_eq!(stream.peer_addr().unwrap(), alive);
        assert_eq!(*tried.lock().unwrap(), [refusing, silent, alive]);
    }

    #[tokio::test]
    async fn if_all_fail_the_last_is_named() {
        let refusing: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
        let error = first(refusing, TcpStream::connect).await.unwrap_err();
        assert!(error.to_string().starts_with("127.0.0.1:2: "), "{error}");
        assert!(first(Vec::new(), TcpStream::connect).await.is_err());
    }

    /// Answers A queries for one name, and says of all others that they do not exist.
    async fn serve(socket: UdpSocket, name: Name, asked: mpsc::UnboundedSender<String>) {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.add_query(question.clone());
            let _ = asked.send(question.name().to_string());
            if *question.name() != name {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if question.query_type() == RecordType::A {
                answer.add_answer(Record::from_rdata(name.clone(), 5, RData::A(A::new(10, 96, 0, 7))));
            }
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    }

    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_short_name_is_looked_for_in_the_search_domains_and_asked_for_anew_each_time() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let (sender, mut asked) = mpsc::unbounded_channel();
        let full: Name = "heddle-control-plane.heddle-system.svc.cluster.local.".parse().unwrap();
        tokio::spawn(serve(socket, full, sender));
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let search = ["shop.svc.cluster.local.", "svc.cluster.local.", "cluster.local."];
        let search = search.iter().map(|domain| domain.parse().unwrap()).collect();
        let config = ResolverConfig::from_parts(None, search, vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().ndots = 5;
        adapt(builder.options_mut());
        let resolver = builder.build().unwrap();

        for _ in 0..2 {
            let found = resolver.lookup_ip("heddle-control-plane.heddle-system.svc").await.unwrap();
            assert_eq!(found.iter().collect::<Vec<_>>(), ips(&["10.96.0.7"]));
            let first = asked.recv().await.unwrap();
            assert_eq!(first, "heddle-control-plane.heddle-system.svc.shop.svc.cluster.local.");
            while asked.try_recv().is_ok() {}
        }
    }
}
