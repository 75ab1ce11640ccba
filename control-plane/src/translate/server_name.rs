//! Names that TLS clients ask for (RFC 6066 §3), and which of several TLSRoutes has one.

use std::net::IpAddr;
use std::sync::Arc;

use super::accept::named_ports;
use super::age;
use super::problem::Problem;
use crate::objects::route::ParentRef;
use crate::objects::{Kind, Objects, Route, name_of, namespace_of};

/// The name in lower case, if it is one: labels of letters, digits and `-`, the first of them perhaps `*`.
pub(super) fn read(name: &str) -> Result<Arc<str>, Problem> {
    let lower = name.to_ascii_lowercase();
    let labels = lower.strip_prefix("*.").unwrap_or(&lower);
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let valid = lower.len() <= MAX_BYTES && labels.split('.').all(label) && labels.parse::<IpAddr>().is_err();
    if valid {
        return Ok(lower.into());
    }
    Err(Problem::Impossible(format!(
        "`{name}` is no name a TLS client can ask for: write a DNS name as `db.example.com`, or `*.example.com` for all \
         that end so"
    )))
}

/// What is wrong with the names of a TLSRoute by themselves; the route holds without those.
pub(super) fn problems(route: &Route) -> Vec<Problem> {
    if route.spec.hostnames.is_empty() {
        let text = "spec.hostnames is empty: name the hosts whose connections the route is for";
        return vec![Problem::Impossible(text.into())];
    }
    route.spec.hostnames.iter().filter_map(|name| read(name).err()).collect()
}

/// Names that older TLSRoutes of the same namespace have at all these ports of `parent`, each with that route.
pub(super) fn taken(objects: &Objects, route: &Route, parent: &ParentRef, ports: &[u16]) -> Vec<(Arc<str>, String)> {
    let names = route.spec.hostnames.iter().filter_map(|name| read(name).ok());
    names
        .filter_map(|name| {
            let mut holders = ports.iter().map(|port| holder(objects, route, parent, *port, &name));
            let first = holders.next()??;
            holders.all(|holder| holder.is_some()).then_some((name, first))
        })
        .collect()
}

fn holder(objects: &Objects, route: &Route, parent: &ParentRef, port: u16, name: &str) -> Option<String> {
    let own = namespace_of(&route.metadata);
    let namespace = parent.namespace.as_deref().unwrap_or(own);
    let mut others = objects.routes_of(namespace, &parent.name).filter(|other| {
        other.kind == Kind::TlsRoute
            && namespace_of(&other.metadata) == own
            && age(&other.metadata) < age(&route.metadata)
    });
    let has = |other: &Route| {
        let named = other.spec.hostnames.iter().any(|other| read(other).is_ok_and(|other| &*other == name));
        named
            && super::accept::parents(other, namespace, &parent.name)
                .any(|parent| named_ports(objects, other, parent).is_ok_and(|ports| ports.contains(&port)))
    };
    let other = others.find(|other| has(other))?;
    Some(format!("{} {own}/{}", other.kind, name_of(&other.metadata)))
}

/// RFC 1035 §2.3.4, without the length octets.
const MAX_BYTES: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_name_with_perhaps_a_star_for_its_first_label() {
        for (given, read_as) in [("DB.example.com", "db.example.com"), ("*.example", "*.example"), ("db", "db")] {
            assert_eq!(&*read(given).unwrap(), read_as);
        }
        for wrong in ["", "*", "*.", "a..b", "a.*.b", "*a.b", "-a.b", "a_b", "10.0.0.1", "a.b.", "a b", &"a".repeat(64)]
        {
            let Err(Problem::Impossible(text)) = read(wrong) else { panic!("{wrong} was taken") };
            assert!(text.starts_with(&format!("`{wrong}` is no name")), "{text}");
        }
    }
}
