//! The source address of inbound connections over IPv6: `::6/128` on `lo`, added and removed idempotently.
//!
//! 127.0.0.6 needs nothing, all of 127/8 is there; of IPv6 only `::1` is.

use std::io;
use std::net::Ipv6Addr;
use std::thread;
use std::time::Duration;

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

/// How often, and at most how many times, the kernel is asked whether the address takes packets: 1 s in all. It
/// completes a new address in the background, in less than a millisecond.
const READY_INTERVAL: Duration = Duration::from_millis(1);
const READY_TRIES: u32 = 1000;
/// The calling thread's IPv6 routes.
const ROUTES: &str = "/proc/thread-self/net/ipv6_route";
/// Flag of a route to an address of this machine; RTF_LOCAL of linux/ipv6_route.h.
const RTF_LOCAL: u32 = 0x8000_0000;

/// Adds the address and waits until it takes packets; success too if it is there, or if the namespace has no IPv6 at
/// all.
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
        Err(error) => Err(error),
        Ok(()) => {
            until_ready();
            Ok(())
        }
    }
}

/// Waits for the local route: without it, answers to the first connections from the address would be lost.
fn until_ready() {
    for _ in 0..READY_TRIES {
        match std::fs::read_to_string(ROUTES) {
            Ok(routes) if !is_local(&routes, INBOUND_SOURCE_V6) => thread::sleep(READY_INTERVAL),
            // Without /proc it cannot be known.
            Ok(_) | Err(_) => return,
        }
    }
    tracing::warn!(address = %INBOUND_SOURCE_V6, "address takes no packets yet; is lo up?");
}

/// Whether the kernel's table (net/ipv6/route.c, rt6_info_route: destination and prefix length first, flags last but
/// one, all hexadecimal) says that `address` is this machine's.
fn is_local(routes: &str, address: Ipv6Addr) -> bool {
    let destination = format!("{:032x}", address.to_bits());
    routes.lines().any(|line| {
        let mut fields = line.split_whitespace();
        let is_it = fields.next() == Some(&destination) && fields.next() == Some("80");
        let flags = fields.nth(6).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        is_it && flags.is_some_and(|flags| flags & RTF_LOCAL != 0)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_ready_when_its_local_route_is_there() {
        let zeros = "00000000000000000000000000000000";
        let route = |destination, length, flags| {
            format!("{destination} {length} {zeros} 00 {zeros} 00000100 00000001 00000000 {flags}       lo\n")
        };
        let six = "00000000000000000000000000000006";
        let not_yet = route(six, "80", "00200200") + &route("00000000000000000000000000000001", "80", "80200001");

        assert!(!is_local("", INBOUND_SOURCE_V6));
        assert!(!is_local(&not_yet, INBOUND_SOURCE_V6));
        assert!(is_local(&(not_yet + &route(six, "80", "80200001")), INBOUND_SOURCE_V6));
        assert!(!is_local(&route(six, "7f", "80200001"), INBOUND_SOURCE_V6));
    }
}
