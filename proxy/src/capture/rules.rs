//! Which connections are redirected: the rules in our words, in the order the kernel tries them. Pure.
//!
//! [`encode`](super::encode) turns them into netlink; [`Rules`](super::Rules) is what they are made from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Exempt, Rules};

/// IPv4 loopback, 127.0.0.0/8 (RFC 1122 §3.2.1.3).
const LOOPBACK_V4: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
/// IPv6 loopback, ::1/128 (RFC 4291 §2.5.3).
const LOOPBACK_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128));

/// Source of connections the inbound side makes to the application, IPv4: loopback, and not 127.0.0.1, which
/// applications use themselves.
pub const INBOUND_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same for IPv6; not loopback by itself, so [`install`](super::install) adds it to `lo`.
pub const INBOUND_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// One rule: what happens to a new connection if every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub when: Vec<Condition>,
    /// Then this.
    pub then: Action,
}

/// A condition on a connection's first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Any other transport than TCP.
    NotTcp,
    /// Destination port in the range.
    Port(RangeInclusive<u16>),
    /// Source address.
    From(IpAddr),
    /// Destination in the network.
    To(IpNet),
    /// Destination of the same family, but outside the network.
    NotTo(IpNet),
    /// Made by the proxy.
    ByProxy(Exempt),
    /// Leaves through `lo`: the destination is an address of this namespace.
    OverLoopback,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The connection goes where it wants to go.
    Leave,
    /// The connection goes to this port of this namespace.
    Redirect(u16),
}

/// Rules for connections made in this namespace.
pub fn output(rules: &Rules) -> Vec<Rule> {
    let mut all = vec![leave([Condition::NotTcp])];
    all.extend(merged(&rules.exclude_outbound_ports).into_iter().map(|range| leave([Condition::Port(range)])));
    all.extend(rules.exclude_outbound_cidrs.iter().map(|net| leave([Condition::To(net.trunc())])));
    all.push(leave([Condition::From(INBOUND_SOURCE_V4.into())]));
    all.push(leave([Condition::From(INBOUND_SOURCE_V6.into())]));
    // The application called a service whose chosen endpoint is its own pod.
    for loopback in [LOOPBACK_V4, LOOPBACK_V6] {
        all.push(Rule {
            when: vec![Condition::ByProxy(rules.exempt), Condition::OverLoopback, Condition::NotTo(loopback)],
            then: Action::Redirect(rules.inbound_port),
        });
    }
    all.push(leave([Condition::ByProxy(rules.exempt)]));
    all.push(leave([Condition::OverLoopback]));
    all.push(leave([Condition::To(LOOPBACK_V4)]));
    all.push(leave([Condition::To(LOOPBACK_V6)]));
    all.push(Rule { when: Vec::new(), then: Action::Redirect(rules.outbound_port) });
    all
}

/// Rules for connections that arrive from outside. Those over `lo` have passed [`output`] and are not asked again:
/// the kernel translates a connection once.
pub fn prerouting(rules: &Rules) -> Vec<Rule> {
    let mut all = vec![leave([Condition::NotTcp]), leave([Condition::Port(rules.metrics_port..=rules.metrics_port)])];
    all.extend(merged(&rules.exclude_inbound_ports).into_iter().map(|range| leave([Condition::Port(range)])));
    all.push(Rule { when: Vec::new(), then: Action::Redirect(rules.inbound_port) });
    all
}

fn leave<const N: usize>(when: [Condition; N]) -> Rule {
    Rule { when: when.into(), then: Action::Leave }
}

/// The same ports in as few ranges as possible, ascending.
fn merged(ranges: &[RangeInclusive<u16>]) -> Vec<RangeInclusive<u16>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_by_key(|range| (*range.start(), *range.end()));
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*last.end().max(range.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outgoing_connections_meet_exclusions_then_the_proxy_then_loopback_then_redirection() {
        let rules = Rules {
            exclude_outbound_ports: vec![3306..=3306],
            exclude_outbound_cidrs: vec!["10.1.2.3/8".parse().unwrap()],
            ..Rules::default()
        };
        let proxy = Condition::ByProxy(Exempt::Uid(1337));
        let v4: IpNet = "127.0.0.0/8".parse().unwrap();
        let v6: IpNet = "::1/128".parse().unwrap();

        let to_inbound = |net| Rule {
            when: vec![proxy.clone(), Condition::OverLoopback, Condition::NotTo(net)],
            then: Action::Redirect(15006),
        };
        assert_eq!(
            output(&rules),
            [
                leave([Condition::NotTcp]),
                leave([Condition::Port(3306..=3306)]),
                leave([Condition::To("10.0.0.0/8".parse().unwrap())]),
                leave([Condition::From("127.0.0.6".parse().unwrap())]),
                leave([Condition::From("::6".parse().unwrap())]),
                to_inbound(v4),
                to_inbound(v6),
                leave([proxy.clone()]),
                leave([Condition::OverLoopback]),
                leave([Condition::To(v4)]),
                leave([Condition::To(v6)]),
                Rule { when: vec![], then: Action::Redirect(15001) },
            ]
        );
    }

    #[test]
    fn incoming_connections_are_redirected_but_for_the_metrics_port_and_exclusions() {
        let rules = Rules { exclude_inbound_ports: vec![22..=22], ..Rules::default() };

        assert_eq!(
            prerouting(&rules),
            [
                leave([Condition::NotTcp]),
                leave([Condition::Port(15020..=15020)]),
                leave([Condition::Port(22..=22)]),
                Rule { when: vec![], then: Action::Redirect(15006) },
            ]
        );
    }

    #[test]
    fn overlapping_and_touching_port_ranges_become_one() {
        assert_eq!(merged(&[90..=95, 80..=85, 86..=86, 84..=88]), [80..=88, 90..=95]);
        assert_eq!(merged(&[65535..=65535, 0..=65535, 7..=7]), [0..=65535]);
        #[expect(clippy::reversed_empty_ranges, reason = "an empty range is what is tried")]
        let empty = merged(&[9..=8]);
        assert!(empty.is_empty());
    }
}
