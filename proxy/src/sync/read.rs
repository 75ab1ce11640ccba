//! What all resources are read with: errors with the path of the field, limits, durations, texts, facts.
//!
//! A path is put together on the way out, from the field to the resource, so that what is right costs nothing.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::address::Address as AnyAddress;
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, CidrRange, Metadata};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::{Any, Duration as PbDuration, StringValue, UInt32Value};
use http::HeaderName;
use ipnet::IpNet;
use prost::{Message, Name};
use regex::{Regex, RegexBuilder};
use serde::de::DeserializeOwned;

use crate::tables::{ServiceName, Sources};

/// Why a resource is refused: where, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Error {
    /// Path of the field, for example `virtual_hosts[0].routes[2].match.safe_regex`.
    pub field: String,
    /// What is wrong with its value, and what would be right.
    pub reason: String,
}

impl Error {
    /// An error of the field itself.
    pub(super) fn new(field: &str, reason: impl fmt::Display) -> Self {
        Self { field: field.to_owned(), reason: reason.to_string() }
    }

    /// The field is the `index`-th of the list `field`.
    pub(super) fn within_list(self, field: &str, index: usize) -> Self {
        self.within(&format!("{field}[{index}]"))
    }

    fn within(mut self, parent: &str) -> Self {
        // `a` in `b` is `b.a`; `[1]` in `b` is `b[1]`; a value that is wrong itself has no path of its own.
        let dot = if self.field.is_empty() || self.field.starts_with('[') { "" } else { "." };
        self.field = format!("{parent}{dot}{}", self.field);
        self
    }
}

/// Puts an error's field inside another one.
pub(super) trait Within<T> {
    /// The value's field is `field` of what is read.
    fn within(self, field: &str) -> Result<T, Error>;
    /// The value is the `index`-th of the list `field`.
    fn nth(self, field: &str, index: usize) -> Result<T, Error>;
}

impl<T> Within<T> for Result<T, Error> {
    fn within(self, field: &str) -> Self {
        self.map_err(|error| error.within(field))
    }

    fn nth(self, field: &str, index: usize) -> Self {
        self.map_err(|error| error.within(&format!("{field}[{index}]")))
    }
}

/// The message of a whole resource, or inside an `Any`.
pub(super) fn message<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| Error::new("", format!("does not decode: {error}")))
}

/// What an `Any` holds, if it is an `M`.
pub(super) fn unpack<M: Message + Name + Default>(any: Option<&Any>) -> Result<M, Error> {
    let any = any.ok_or_else(|| Error::new("typed_config", "is missing"))?;
    if any.type_url != M::type_url() {
        let reason = format!("is {:?}, must be {:?}", any.type_url, M::type_url());
        return Err(Error::new("typed_config.type_url", reason));
    }
    message(&any.value).within("typed_config")
}

/// Refuses a list that is too long.
pub(super) fn at_most<T>(field: &str, list: &[T], most: usize) -> Result<(), Error> {
    if list.len() <= most {
        return Ok(());
    }
    Err(Error::new(field, format!("has {} entries, at most {most} are taken", list.len())))
}

/// The name inside a resource must be the one it was delivered under.
pub(super) fn name(field: &str, found: &str, wanted: &str) -> Result<(), Error> {
    if found == wanted {
        return Ok(());
    }
    Err(Error::new(field, format!("is {found:?}, must be {wanted:?}")))
}

/// A number, or Envoy's default.
pub(super) fn uint32(value: Option<&UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A percentage from 0 to 100, cut to whole ones.
pub(super) fn percent(value: &Percent) -> Result<u32, Error> {
    if !(0.0..=100.0).contains(&value.value) {
        return Err(Error::new("", format!("is {}, must be from 0 to 100", value.value)));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 100")]
    Ok(value.value as u32)
}

/// As [`percent`], from a plain number.
pub(super) fn percent_uint32(value: u32) -> Result<u32, Error> {
    if value > 100 {
        return Err(Error::new("", format!("is {value}, must be from 0 to 100")));
    }
    Ok(value)
}

/// A length of time that is not negative.
pub(super) fn duration(value: &PbDuration) -> Result<Duration, Error> {
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Error::new("", format!("is {}s and {}ns, must not be negative", value.seconds, value.nanos))),
    }
}

/// A length of time above zero, or Envoy's default.
pub(super) fn positive(value: Option<&PbDuration>, default: Duration) -> Result<Duration, Error> {
    match value.map(duration).transpose()? {
        None => Ok(default),
        Some(Duration::ZERO) => Err(Error::new("", "is 0s, must be above")),
        Some(value) => Ok(value),
    }
}

/// An IP address and port.
pub(super) fn socket_address(address: Option<&Address>) -> Result<SocketAddr, Error> {
    let Some(AnyAddress::SocketAddress(socket)) = address.and_then(|address| address.address.as_ref()) else {
        return Err(Error::new("socket_address", "is missing; only addresses of IP sockets are taken"));
    };
    let ip: IpAddr = socket
        .address
        .parse()
        .map_err(|_| Error::new("socket_address.address", format!("is {:?}, must be an IP address", socket.address)))?;
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        Some(PortSpecifier::NamedPort(_)) | None => None,
    };
    let port = port.ok_or_else(|| Error::new("socket_address.port_value", "must be a number from 0 to 65535"))?;
    Ok(SocketAddr::new(ip, port))
}

/// A network.
pub(super) fn network(range: &CidrRange) -> Result<IpNet, Error> {
    let address: IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| Error::new("address_prefix", format!("is {:?}, must be an IP address", range.address_prefix)))?;
    let length = uint32(range.prefix_len.as_ref(), 0);
    u8::try_from(length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .ok_or_else(|| Error::new("prefix_len", format!("is {length}, must be at most the bits of {address}")))
}

/// An expression that matches a whole text.
pub(super) fn regex(matcher: &RegexMatcher) -> Result<Regex, Error> {
    let build = |expression: &str| {
        let built = RegexBuilder::new(expression).size_limit(MAX_REGEX_BYTES).build();
        built.map_err(|error| Error::new("regex", format!("{:?}: {error}", matcher.regex)))
    };
    // Alone first: `a)|(b` must not pass by closing the group it is put into.
    build(&matcher.regex)?;
    build(&format!(r"\A(?:{})\z", matcher.regex))
}

/// The name of a header that may be matched or changed.
pub(super) fn header_name(name: &str) -> Result<HeaderName, Error> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Error::new("", format!("is {name:?}, must be a header name (RFC 9110 §5.1)")))
}

/// `<namespace>/<name>` of a Service.
pub(super) fn service_name(text: &str) -> Result<ServiceName, Error> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ServiceName { namespace: namespace.into(), name: name.into() })
        }
        _ => Err(Error::new("", format!("is {text:?}, must be <namespace>/<name>"))),
    }
}

/// The facts Envoy has no field for: a JSON text in `typed_filter_metadata["heddle"]`. Fields that are not known here
/// are left alone, so that a newer control plane can say more. Without any, all fields are absent.
pub(super) fn facts<F: DeserializeOwned>(metadata: Option<&Metadata>) -> Result<F, Error> {
    let any = metadata.and_then(|metadata| metadata.typed_filter_metadata.get("heddle"));
    let text = match any {
        Some(any) => unpack::<StringValue>(Some(any)).within(FACTS)?.value,
        None => "{}".to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| Error::new(FACTS, error))
}

/// The objects that a resource was made from, where it says so.
pub(super) fn sources(metadata: Option<&Metadata>) -> Result<Sources, Error> {
    #[derive(serde::Deserialize)]
    struct Facts {
        #[serde(default)]
        sources: Vec<Box<str>>,
    }
    Ok(facts::<Facts>(metadata)?.sources.into())
}

/// Where facts stand.
const FACTS: &str = "metadata.typed_filter_metadata[\"heddle\"]";
/// Bytes of a compiled expression. Chosen: thousands of characters with classes fit; nested repetitions, which grow
/// without bound, do not.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn regex_of(expression: &str) -> Result<Regex, Error> {
        regex(&RegexMatcher { regex: expression.into(), ..RegexMatcher::default() })
    }

    #[test]
    fn an_expression_matches_whole_texts_only() {
        let regex = regex_of("a|b+").unwrap();
        assert!(regex.is_match("a"));
        assert!(regex.is_match("bb"));
        assert!(!regex.is_match("ab"));
        assert!(!regex.is_match("a\n"));
    }

    #[test]
    fn an_expression_cannot_leave_the_group_it_is_put_into() {
        assert_eq!(regex_of("a)|(?:b").unwrap_err().field, "regex");
    }

    #[test]
    fn an_expression_that_grows_too_large_is_refused() {
        assert!(regex_of("((a{100}){100}){100}").unwrap_err().reason.contains("size limit"));
    }

    #[test]
    fn a_path_is_put_together_from_the_inside() {
        let error: Result<(), Error> = Err(Error::new("", "is wrong"));
        let error = error.within("regex").nth("routes", 3).within("virtual_host").unwrap_err();
        assert_eq!(error.to_string(), "virtual_host.routes[3].regex: is wrong");
    }

    #[test]
    fn negative_durations_and_large_percentages_are_refused() {
        assert!(duration(&PbDuration { seconds: -1, nanos: 0 }).is_err());
        assert!(duration(&PbDuration { seconds: 0, nanos: -1 }).is_err());
        assert_eq!(duration(&PbDuration { seconds: 1, nanos: 5 }).unwrap(), Duration::new(1, 5));
        assert!(percent(&Percent { value: 100.5 }).is_err());
        assert!(percent(&Percent { value: f64::NAN }).is_err());
        assert_eq!(percent(&Percent { value: 20.0 }).unwrap(), 20);
    }
}
