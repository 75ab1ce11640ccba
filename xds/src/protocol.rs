//! What both protocol servers share: how a source answers for a name, what a stream reports, the limits and their errors.
//!
//! Called by [`crate::delta::server`], [`crate::sotw::server`] and [`crate::server`].

use std::sync::Arc;

use crate::resource::{Kind, Resource};
use crate::snapshot::Set;

/// What a source knows about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name has this resource.
    Present(Resource),
    /// The source is whole and the name has no resource. The client is told so.
    Absent,
    /// The source is not whole yet (a cache is still filling): nothing is said until it is.
    Unknown,
}

/// One client's view of the resources, as it is at the moment of the call.
pub trait View {
    /// The answer for one name.
    fn lookup(&self, kind: Kind, name: &str) -> Answer;

    /// Everything a wildcard subscription receives; none while the source is not whole.
    fn wildcard(&self, kind: Kind) -> Option<Arc<Set>>;
}

/// What one request did to a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Names subscribed to by this request and not before, `*` among them: to be authorized before anything is sent.
    pub subscribed: Vec<(Kind, Arc<str>)>,
    /// What the client said about earlier responses.
    pub verdicts: Vec<Verdict>,
}

/// A client's word on one resource of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The resource's type.
    pub kind: Kind,
    /// The resource's name.
    pub name: Arc<str>,
    /// The version that was sent.
    pub version: Arc<str>,
    /// Why it was refused, as the client wrote it, at most [`crate::nack::MAX_REASON_BYTES`] bytes; none if it was accepted.
    pub refused: Option<String>,
}

/// A request that breaks a limit. The stream ends with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More names than a stream may subscribe to.
    #[error("{kind}: {asked} names subscribed on one stream, at most {MAX_SUBSCRIPTIONS} are allowed")]
    TooManySubscriptions {
        /// The type.
        kind: Kind,
        /// How many names there would be.
        asked: usize,
    },
    /// A name that is too long to be one of ours.
    #[error("{kind}: a resource name of {bytes} bytes, at most {MAX_NAME_BYTES} are allowed")]
    NameTooLong {
        /// The type.
        kind: Kind,
        /// Its length.
        bytes: usize,
    },
}

/// Checks the names of one request against [`MAX_NAME_BYTES`].
pub(crate) fn check_names<'a>(kind: Kind, names: impl IntoIterator<Item = &'a String>) -> Result<(), Error> {
    match names.into_iter().find(|name| name.len() > MAX_NAME_BYTES) {
        Some(name) => Err(Error::NameTooLong { kind, bytes: name.len() }),
        None => Ok(()),
    }
}

/// Names one stream may subscribe to, for each type. Chosen: the 4,096 destinations of a sidecar, and its own few.
pub const MAX_SUBSCRIPTIONS: usize = 4096 + 64;
/// Bytes in a resource name. Chosen: two DNS names of 253 bytes (RFC 1035 section 2.3.4) and a port fit.
pub const MAX_NAME_BYTES: usize = 576;
/// Resource bytes after which a response is closed and the rest goes into the next. Chosen: a quarter of the 4 MiB that gRPC
/// clients take by default.
pub const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// Resources or removed names in one incremental response. Chosen: a refusal of all of them stays below the size of a
/// request ([`crate::server::MAX_REQUEST_BYTES`]).
pub const MAX_RESPONSE_RESOURCES: usize = 1024;

/// Refused versions remembered for each type of a stream; beyond it the oldest is forgotten. Chosen: a quarter of what a
/// stream can subscribe to being wrong at once is already an outage.
const MAX_REFUSED: usize = 1024;

/// Versions a client refused on this stream: they are not sent to it again. Bounded by [`MAX_REFUSED`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    oldest_first: std::collections::VecDeque<(Arc<str>, Arc<str>)>,
}

impl Refused {
    pub(crate) fn add(&mut self, name: Arc<str>, version: Arc<str>) {
        if self.contains(&name, &version) {
            return;
        }
        if self.oldest_first.len() == MAX_REFUSED {
            self.oldest_first.pop_front();
        }
        self.oldest_first.push_back((name, version));
    }

    /// Nearly always asked of an empty list.
    pub(crate) fn contains(&self, name: &str, version: &str) -> bool {
        self.oldest_first.iter().any(|(n, v)| **n == *name && **v == *version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_refusal_is_forgotten_when_there_are_too_many() {
        let mut refused = Refused::default();
        for number in 0..=MAX_REFUSED {
            refused.add(format!("{number}").into(), "1".into());
        }

        assert!(!refused.contains("0", "1"));
        assert!(refused.contains("1", "1"));
        assert!(refused.contains(&format!("{MAX_REFUSED}"), "1"));
    }
}
