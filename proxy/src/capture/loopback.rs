//! The source address of inbound connections over IPv6: `::6/128` on `lo`, added and removed idempotently.
//!
//! 127.0.0.6 needs nothing, all of 127/8 is there; of IPv6 only `::1` is.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NetlinkMessage};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;

use super::encode::LOOPBACK_INDEX;
use super::netlink;
use super::rules::INBOUND_SOURCE_V6;

/// Adds the address; success too if it is there, or if the namespace has no IPv6 at all.
///
/// # Errors
/// What the kernel says.
pub fn add() -> io::Result<()> {
    match request(RouteNetlinkMessage::NewAddress(address()), NLM_F_CREATE | NLM_F_EXCL) {
        Err(error) if is(&error, &[Errno::EEXIST]) => Ok(()),
        Err(error) if is(&error, NO_IPV6) => {
            tracing::info!(%error, "no IPv6 in this network namespace; capturing IPv4 only");
            Ok(())
        }
        result => result,
    }
}

/// Removes the address; success too if it is not there.
///
/// # Errors
/// What the kernel says.
pub fn remove() -> io::Result<()> {
    match request(RouteNetlinkMessage::DelAddress(address()), 0) {
        Err(error) if is(&error, &[Errno::EADDRNOTAVAIL, Errno::ENXIO]) || is(&error, NO_IPV6) => Ok(()),
        result => result,
    }
}

/// Answers of a kernel without IPv6 (`ipv6.disable=1`) and of a namespace where it is off
/// (`net.ipv6.conf.*.disable_ipv6`).
const NO_IPV6: &[Errno] = &[Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EACCES];

fn is(error: &io::Error, expected: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|code| expected.contains(&Errno::from_raw(code)))
}

fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    netlink::exchange(NETLINK_ROUTE, vec![message], 0).map_err(|refusal| refusal.source)
}

fn address() -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header = AddressHeader {
        family: AddressFamily::Inet6,
        prefix_len: 128,
        flags: AddressHeaderFlags::Nodad,
        index: LOOPBACK_INDEX,
        ..AddressHeader::default()
    };
    message.attributes = vec![
        AddressAttribute::Local(INBOUND_SOURCE_V6.into()),
        AddressAttribute::Address(INBOUND_SOURCE_V6.into()),
        AddressAttribute::Flags(AddressFlags::Nodad),
    ];
    message
}
