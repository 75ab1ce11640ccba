//! What of a request is hashed, where endpoints are chosen by a hash.

use std::net::IpAddr;

use http::request::Parts;

use super::session::cookies;
use crate::balance::hashed::{hash, hash_all};
use crate::tables::cluster::HashOn;

/// The hash of a request of `client` as that sent it: of the first of `hash_on` that it has.
pub fn of(hash_on: &[HashOn], head: &Parts, client: IpAddr) -> Option<u64> {
    hash_on.iter().find_map(|hash_on| one(hash_on, head, client))
}

fn one(hash_on: &HashOn, head: &Parts, client: IpAddr) -> Option<u64> {
    match hash_on {
        HashOn::Header(name) => {
            let mut values: Vec<_> = head.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
            values.sort_unstable();
            (!values.is_empty()).then(|| hash_all(values))
        }
        HashOn::Cookie(name) => {
            let (_, value) = cookies(&head.headers).find(|(given, _)| *given == name.as_bytes())?;
            (!value.is_empty()).then(|| hash(value))
        }
        HashOn::QueryParam(name) => {
            let mut pairs = head.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            pairs.find(|(given, _)| *given == &**name).map(|(_, value)| hash(value.as_bytes()))
        }
        HashOn::SourceIp => Some(of_client(client)),
        HashOn::Path => Some(hash(head.uri.path().as_bytes())),
    }
}

/// The hash of a client's address, which is all there is of a connection that is not looked into.
pub fn of_client(client: IpAddr) -> u64 {
    hash(client.to_canonical().to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn hashed(hash_on: &[HashOn], request: http::request::Builder) -> Option<u64> {
        of(hash_on, &request.body(()).unwrap().into_parts().0, [10, 0, 0, 1].into())
    }

    #[test]
    fn the_first_that_a_request_has_counts() {
        let all = [
            HashOn::Header("x-user".parse().unwrap()),
            HashOn::Cookie("id".into()),
            HashOn::QueryParam("user".into()),
            HashOn::Path,
        ];
        let get = || Request::get("/a?b=c&user=d&user=e");
        assert_eq!(hashed(&all, get().header("x-user", "u").header("cookie", "id=1")), Some(hash(b"u")));
        assert_eq!(hashed(&all, get().header("cookie", "x=y; id=1")), Some(hash(b"1")));
        assert_eq!(hashed(&all, get().header("cookie", "id=")), Some(hash(b"d")));
        assert_eq!(hashed(&all, Request::get("http://h/a?b=c")), Some(hash(b"/a")));
        assert_eq!(hashed(&[HashOn::SourceIp], get()), Some(hash(b"10.0.0.1")));
        assert_eq!(hashed(&all[..3], Request::get("/")), None);
    }

    #[test]
    fn several_fields_of_one_name_count_in_whatever_order_they_came() {
        let on = [HashOn::Header("x-user".parse().unwrap())];
        let both = |a, b| hashed(&on, Request::get("/").header("x-user", a).header("x-user", b));
        assert_eq!(both("a", "b"), both("b", "a"));
        assert_ne!(both("a", "b"), both("a", "a"));
    }
}
