//! `heddle-proxy capture`: redirects a pod's TCP connections to its sidecar.
//!
//! Speaks netlink itself: one nftables table, `inet heddle`, replaced in one transaction, so that running it again
//! changes nothing and no connection meets half a table. Connections that exist keep their way. Both IP families;
//! TCP only. No helper program, no sysctl: what comes in is redirected to the address it came in by and what goes out
//! to 127.0.0.1 or ::1, so the sidecar listens on every address.
//!
//! It does not decide what happens to a captured connection: a connection from outside to a port of the sidecar itself
//! is redirected like any other and closed there. Called by `main.rs`, by `heddle demo` and, with `--netns`, by a CNI
//! plugin.

mod args;
mod check;
mod encode;
mod loopback;
mod netlink;
mod rules;

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::IpNet;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use encode::Batch;
use netlink::Refusal;

pub use args::{CaptureArgs, is_installed_at, run};
pub use rules::{INBOUND_SOURCE_V4, INBOUND_SOURCE_V6};

/// What is captured and what is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// The sidecar's port for outgoing connections.
    pub outbound_port: u16,
    /// The sidecar's port for incoming connections.
    pub inbound_port: u16,
    /// The sidecar's port that is reached from outside as it is.
    pub metrics_port: u16,
    /// How the sidecar's own connections are told from the application's.
    pub exempt: Exempt,
    /// Destination ports that go out uncaptured. At most [`MAX_EXCLUSIONS`] ranges.
    pub exclude_outbound_ports: Vec<RangeInclusive<u16>>,
    /// Ports that are reached from outside uncaptured. At most [`MAX_EXCLUSIONS`] ranges.
    pub exclude_inbound_ports: Vec<RangeInclusive<u16>>,
    /// Destinations that go out uncaptured. At most [`MAX_EXCLUSIONS`].
    pub exclude_outbound_cidrs: Vec<IpNet>,
}

/// Entries a list of exclusions may have. Chosen: more than anyone writes by hand, and three full lists still fit one
/// netlink datagram (net.core.wmem_default is 208 KiB).
pub const MAX_EXCLUSIONS: usize = 128;

/// The user the sidecar runs as, by the convention of the field; NetworkPolicies and chart name it too.
pub const PROXY_UID: u32 = 1337;

impl Default for Rules {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            metrics_port: 15020,
            exempt: Exempt::Uid(PROXY_UID),
            exclude_outbound_ports: Vec::new(),
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_cidrs: Vec::new(),
        }
    }
}

/// How the sidecar's own connections are told from the application's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// By the user that owns the socket.
    Uid(u32),
    /// By SO_MARK on the socket. Anyone with CAP_NET_ADMIN or CAP_NET_RAW can set it, so only where uids cannot be told
    /// apart: in a user namespace that maps a single one.
    Mark(u32),
}

/// Why connections cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller may not change the namespace's rules.
    #[error(
        "may not change {subject}: {source}; capture needs CAP_NET_ADMIN in the pod's network namespace (in Kubernetes \
         securityContext.capabilities.add: [NET_ADMIN]; elsewhere run as root)"
    )]
    NotPermitted {
        /// What was to be changed.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel lacks a part.
    #[error(
        "the kernel does not know {subject}: {source}; capture needs nf_tables, nf_nat and nft_redir (try `modprobe -a \
         nf_tables nft_chain_nat nft_redir` on the node) and Linux 5.2 or newer"
    )]
    Unsupported {
        /// What was to be made.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("the kernel refused {subject}: {source}")]
    Refused {
        /// What was to be made.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// In this user namespace there is no such user, so its sockets cannot be recognised.
    #[error(
        "exempt uid {uid} is not mapped in this user namespace (/proc/self/uid_map), so the proxy's sockets cannot be \
         recognised by it; use --mark here and give the proxy the same mark"
    )]
    UidNotMapped {
        /// The user asked for.
        uid: u32,
    },
    /// The mark cannot tell anything apart.
    #[error("mark 0 is the mark of every socket that has none; use another value, such as 1337")]
    MarkZero,
    /// More exclusions than the rules may hold.
    #[error("{list} has {count} entries, at most {MAX_EXCLUSIONS} are possible; use ranges or wider networks")]
    TooMany {
        /// Which list.
        list: &'static str,
        /// How many there are.
        count: usize,
    },
    /// The namespace cannot be entered.
    #[error(
        "cannot enter network namespace {}: {source}; the path must be that of a network namespace, such as \
         /proc/<pid>/ns/net, and entering it needs CAP_SYS_ADMIN", path.display()
    )]
    Netns {
        /// The path given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody captures.
    #[error(
        "this pod's traffic is not captured: a connection to an address nobody has did not arrive at the sidecar's port \
         ({source}); is Heddle's CNI plugin installed on this node, and 192.0.2.0/24 not among the excluded networks?"
    )]
    NotCaptured {
        /// What became of it.
        source: io::Error,
    },
    /// The check cannot listen.
    #[error("cannot listen on {address}: {source}; the check must run before the sidecar")]
    CheckPort {
        /// Where.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The system cannot tell something capture must know.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Captures from now on, in the calling thread's network namespace. Replaces what an earlier call installed.
///
/// # Errors
/// If the rules cannot be, or the kernel refuses them; then nothing has changed but, perhaps, `::6` on `lo`.
pub fn install(rules: &Rules) -> Result<(), Error> {
    check(rules)?;
    // First, because the sidecar needs it from the first redirected connection on.
    loopback::add().map_err(|source| refused("address ::6/128 on lo".into(), source))?;
    send(Batch::install(&rules::output(rules), &rules::prerouting(rules)))
}

/// Captures no more, in the calling thread's network namespace; nothing of ours stays. Success too if nothing was
/// there. Redirected connections that are open go on.
///
/// # Errors
/// If the kernel refuses.
pub fn remove() -> Result<(), Error> {
    send(Batch::remove())?;
    loopback::remove().map_err(|source| refused("address ::6/128 on lo".into(), source))
}

/// Whether both of our chains are there, in the calling thread's network namespace. What their rules say is not compared:
/// nobody writes them but [`install`], whole.
///
/// # Errors
/// If the kernel may not be asked.
pub fn is_installed() -> Result<bool, Error> {
    for chain in [encode::OUTPUT, encode::PREROUTING] {
        let question = Batch::ask(chain);
        match netlink::exchange(NETLINK_NETFILTER, question.messages, 0) {
            Ok(()) => {}
            Err(refusal) if refusal.source.raw_os_error() == Some(Errno::ENOENT as i32) => return Ok(false),
            Err(refusal) => return Err(refused(format!("nat chain {chain}"), refusal.source)),
        }
    }
    Ok(true)
}

/// Whether `uid` exists in the caller's user namespace, so that [`Exempt::Uid`] can name it.
///
/// # Errors
/// If /proc is not mounted.
pub fn uid_is_mapped(uid: u32) -> io::Result<bool> {
    Ok(map_contains(&std::fs::read_to_string(UID_MAP)?, uid))
}

const UID_MAP: &str = "/proc/self/uid_map";

/// Reads user_namespaces(7)'s map: first uid inside, first uid outside, how many; one range a line.
fn map_contains(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(uid))
    })
}

fn check(rules: &Rules) -> Result<(), Error> {
    let lists = [
        ("exclude-outbound-ports", rules.exclude_outbound_ports.len()),
        ("exclude-inbound-ports", rules.exclude_inbound_ports.len()),
        ("exclude-outbound-cidrs", rules.exclude_outbound_cidrs.len()),
    ];
    for (list, count) in lists {
        if count > MAX_EXCLUSIONS {
            return Err(Error::TooMany { list, count });
        }
    }
    match rules.exempt {
        Exempt::Mark(0) => Err(Error::MarkZero),
        Exempt::Mark(_) => Ok(()),
        // The kernel takes such a rule and reads every socket's owner as the overflow uid: it would never match, and
        // the proxy would capture itself.
        Exempt::Uid(uid) => match uid_is_mapped(uid) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::UidNotMapped { uid }),
            Err(source) => Err(Error::Read { path: UID_MAP, source }),
        },
    }
}

fn send(batch: Batch) -> Result<(), Error> {
    let last = batch.last();
    let Batch { messages, subjects } = batch;
    netlink::exchange(NETLINK_NETFILTER, messages, last).map_err(|Refusal { message, source }| {
        let subject = message.and_then(|at| subjects.get(at).cloned());
        refused(subject.unwrap_or_else(|| "redirection rules (nf_tables)".into()), source)
    })
}

fn refused(subject: String, source: io::Error) -> Error {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => Error::NotPermitted { subject, source },
        // No netfilter netlink at all; no nf_tables; no family inet, nat chain or redirect.
        Some(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::ENOENT) => {
            Error::Unsupported { subject, source }
        }
        _ => Error::Refused { subject, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_mapped_if_a_range_of_the_map_holds_it() {
        assert!(map_contains("         0          0 4294967295\n", 1337));
        assert!(!map_contains("         0       1000          1\n", 1337));
        assert!(map_contains("0 1000 1\n1 100000 65536\n", 1337));
        assert!(!map_contains("0 1000 1\n1338 100000 65536\n", 1337));
        assert!(!map_contains("not a map\n", 0));
    }

    #[test]
    fn more_exclusions_than_possible_are_refused_by_the_name_of_the_list() {
        let rules = Rules { exclude_inbound_ports: vec![1..=1; MAX_EXCLUSIONS + 1], ..Rules::default() };

        let error = check(&rules).unwrap_err();

        assert!(error.to_string().starts_with("exclude-inbound-ports has 129 entries, at most 128"), "{error}");
    }

    #[test]
    fn three_full_lists_fit_one_datagram() {
        let rules = Rules {
            exclude_outbound_ports: (0..128).map(|i| i * 3..=i * 3 + 1).collect(),
            exclude_inbound_ports: (0..128).map(|i| i * 3..=i * 3 + 1).collect(),
            exclude_outbound_cidrs: (0..128).map(|i| format!("fd{i:02x}::/16").parse().unwrap()).collect(),
            ..Rules::default()
        };

        let batch = Batch::install(&rules::output(&rules), &rules::prerouting(&rules));

        let bytes: usize = batch.messages.iter().map(|message| message.buffer_len()).sum();
        // net.core.wmem_default of an untuned kernel, with a quarter of it in reserve.
        assert!(bytes < 212_992 * 3 / 4, "{bytes} bytes");
    }

    #[test]
    fn mark_zero_is_refused() {
        let rules = Rules { exempt: Exempt::Mark(0), ..Rules::default() };
        assert!(matches!(check(&rules), Err(Error::MarkZero)));
    }

    #[test]
    fn an_errno_becomes_what_the_operator_must_do() {
        let says = |errno: Errno| refused("nat chain output".into(), io::Error::from(errno)).to_string();

        assert!(says(Errno::EPERM).contains("CAP_NET_ADMIN"));
        assert!(says(Errno::ENOENT).contains("modprobe"));
        assert!(says(Errno::EOPNOTSUPP).contains("nf_nat"));
        assert!(says(Errno::EBUSY).starts_with("the kernel refused nat chain output"));
    }
}
