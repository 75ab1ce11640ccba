//! What a gRPC client asks for: `xds:///cart.shop:7070` arrives as the listener name `cart.shop:7070`.

use crate::model::ServiceName;

/// A port of a Service as a target names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The Service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// Reads `<service>.<namespace>[.svc[.cluster.local]]:<port>`; `None`: no Service can be called so. There is no
    /// default port, and one port has one spelling.
    pub fn parse(name: &str) -> Option<Self> {
        let (host, digits) = name.rsplit_once(':')?;
        let port: u16 = digits.parse().ok().filter(|port| *port != 0)?;
        if port.to_string() != digits {
            return None;
        }
        let host = host.strip_suffix(CLUSTER_DOMAIN).unwrap_or(host);
        let (service, namespace) = host.strip_suffix(".svc").unwrap_or(host).split_once('.')?;
        (is_label(service) && is_label(namespace)).then(|| Self { service: ServiceName::new(namespace, service), port })
    }
}

/// RFC 1123 label: 1 to 63 lower-case letters, digits and inner hyphens.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('-') && !text.ends_with('-')
}

/// After `.svc`: Kubernetes' default cluster domain.
const CLUSTER_DOMAIN: &str = ".cluster.local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_full_names_are_the_same_target() {
        let expected = Target { service: ServiceName::new("shop", "cart"), port: 7070 };
        for name in ["cart.shop:7070", "cart.shop.svc:7070", "cart.shop.svc.cluster.local:7070"] {
            assert_eq!(Target::parse(name).as_ref(), Some(&expected), "{name}");
        }
    }

    #[test]
    fn what_names_no_service_port_is_no_target() {
        for name in [
            "",
            "cart",
            "cart.shop",
            "cart.shop:",
            "cart.shop:0",
            "cart.shop:07070",
            "cart.shop:70700",
            "cart:7070",
            ".shop:7070",
            "cart.:7070",
            "cart.shop.pod:7070",
            "Cart.shop:7070",
            "-cart.shop:7070",
            "[::1]:7070",
            "10.0.0.1:7070",
            "outbound/10.0.0.1:80",
        ] {
            assert_eq!(Target::parse(name), None, "{name}");
        }
    }
}
