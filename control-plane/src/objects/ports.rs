//! Ports and networks that stay uncaptured, as `heddle-proxy capture` reads them: `3306`, `8000-8010`; `10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One port, or all from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// All of them.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a port from 1 to 65535 nor a range of them as 8000-8010");
        let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self { first, last }) } else { Err(wrong()) }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u32),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A network, or a single address as the network of only it.
pub(crate) fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(address.into()),
        Err(_) => {
            text.parse().map_err(|_| format!("`{text}` is neither a network as 10.0.0.0/8 or fd00::/8 nor an address"))
        }
    }
}

/// The items of a list with commas between them.
pub(crate) fn list<T>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect()
}

/// Entries a list of exclusions may have; `heddle-proxy capture` takes no more.
pub(crate) const MAX_EXCLUSIONS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_alone_and_in_ranges_and_written_the_same() {
        for text in ["1", "3306", "8000-8010", "65535"] {
            assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
        }
        assert!("8000 - 8010".parse::<PortRange>().unwrap().contains(8010));
    }

    #[test]
    fn what_is_no_port_is_named() {
        for text in ["0", "65536", "9-8", "http", "", "1-"] {
            assert!(text.parse::<PortRange>().unwrap_err().contains(&format!("`{text}`")), "{text}");
        }
    }
}
