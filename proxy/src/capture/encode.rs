//! Rules as nftables messages: one batch that replaces our table, or one that removes it. Pure.
//!
//! The kernel applies a batch whole or not at all, so at no moment is a connection seen by half a table. Knows what
//! the kernel's own machine (registers, payload offsets) looks like and nothing of why a rule is there.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_APPEND, NLM_F_CREATE, NetlinkMessage};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, Immediate, InetHookNumber, Meta,
    MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage,
    Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::Exempt;
use super::rules::{Action, Condition, Rule};

/// Our table, family inet: both IP families in one.
pub const TABLE: &str = "heddle";
/// Chain of connections made in the namespace.
pub const OUTPUT: &str = "output";
/// Chain of connections from outside.
pub const PREROUTING: &str = "prerouting";

/// Place among the chains of a hook; NF_IP_PRI_NAT_DST of linux/netfilter_ipv4.h, where destinations are translated.
const PRIORITY_DSTNAT: i32 = -100;
/// Subsystem number in a batch's begin and end; NFNL_SUBSYS_NFTABLES of linux/netfilter/nfnetlink.h.
const SUBSYSTEM_NFTABLES: u16 = 10;
/// Verdict of a base chain's end; NF_ACCEPT of linux/netfilter.h.
const POLICY_ACCEPT: u32 = 1;
/// Attribute of the `redir` expression: the register with the port; linux/netfilter/nf_tables.h.
const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
/// Payload bases; NFT_PAYLOAD_NETWORK_HEADER and _TRANSPORT_HEADER of linux/netfilter/nf_tables.h.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Interface index of `lo` in every network namespace; LOOPBACK_IFINDEX of the kernel's net/flow.h.
pub const LOOPBACK_INDEX: u32 = 1;
/// TCP among the transports; IANA protocol numbers.
const TCP: u8 = 6;
/// IPv4 and IPv6 among the families; linux/netfilter.h.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A batch, and for each message what it is about, for error messages.
pub struct Batch {
    /// In the order to send.
    pub messages: Vec<NetlinkMessage<NetfilterMessage>>,
    /// As long as `messages`.
    pub subjects: Vec<String>,
}

impl Batch {
    /// Replaces our table, whatever it was, by these chains.
    pub fn install(output: &[Rule], prerouting: &[Rule]) -> Self {
        let mut batch = Self::remove_open();
        batch.push(format!("table inet {TABLE}"), NLM_F_CREATE, NfTablesMessage::NewTable(table()));
        batch.push_chain(OUTPUT, InetHookNumber::LocalOut, output);
        batch.push_chain(PREROUTING, InetHookNumber::PreRouting, prerouting);
        batch.close()
    }

    /// Removes our table; no error if it is not there.
    pub fn remove() -> Self {
        Self::remove_open().close()
    }

    /// Asks for one of our chains; no transaction, since nothing is changed.
    pub fn ask(chain: &str) -> Self {
        let attributes = vec![ChainAttribute::Table(TABLE.into()), ChainAttribute::Name(chain.into())];
        let mut batch = Self { messages: Vec::new(), subjects: Vec::new() };
        batch.push(format!("nat chain {chain}"), 0, NfTablesMessage::GetChain(ChainMessage { attributes }));
        batch
    }

    /// The last message that is not the end of the batch; older kernels do not acknowledge the end itself.
    pub fn last(&self) -> usize {
        self.messages.len().saturating_sub(2)
    }

    fn remove_open() -> Self {
        let mut batch = Self { messages: Vec::new(), subjects: Vec::new() };
        batch.control("the transaction", ControlMessage::BatchBegin);
        // Deleting what is not there is refused, creating what is there is not.
        batch.push(format!("table inet {TABLE}"), NLM_F_CREATE, NfTablesMessage::NewTable(table()));
        batch.push(format!("table inet {TABLE}"), 0, NfTablesMessage::DeleteTable(table()));
        batch
    }

    fn close(mut self) -> Self {
        self.control("the transaction", ControlMessage::BatchEnd);
        self
    }

    fn push_chain(&mut self, name: &str, hook: InetHookNumber, rules: &[Rule]) {
        let chain = ChainMessage {
            attributes: vec![
                ChainAttribute::Table(TABLE.into()),
                ChainAttribute::Name(name.into()),
                ChainAttribute::Hook(vec![
                    Hook::Number(hook.into()),
                    // On the wire a signed number in an unsigned field.
                    Hook::Priority(PRIORITY_DSTNAT.cast_unsigned()),
                ]),
                ChainAttribute::Type("nat".into()),
                ChainAttribute::Policy(POLICY_ACCEPT),
            ],
        };
        self.push(format!("nat chain {name}"), NLM_F_CREATE, NfTablesMessage::NewChain(chain));
        for rule in rules {
            let message = RuleMessage {
                attributes: vec![
                    RuleAttribute::Table(TABLE.into()),
                    RuleAttribute::Chain(name.into()),
                    RuleAttribute::Expressions(expressions(rule).into_iter().map(Into::into).collect()),
                ],
            };
            let subject = format!("rule {:?} → {:?} in chain {name}", rule.when, rule.then);
            self.push(subject, NLM_F_CREATE | NLM_F_APPEND, NfTablesMessage::NewRule(message));
        }
    }

    fn push(&mut self, subject: String, flags: u16, message: NfTablesMessage) {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0);
        self.add(subject, flags, header, message.into());
    }

    fn control(&mut self, subject: &str, message: ControlMessage) {
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM_NFTABLES);
        self.add(subject.into(), 0, header, message.into());
    }

    fn add(&mut self, subject: String, flags: u16, header: NetfilterHeader, inner: NetfilterMessageInner) {
        let mut message = NetlinkMessage::from(NetfilterMessage::new(header, inner));
        message.header.flags = flags;
        self.messages.push(message);
        self.subjects.push(subject);
    }
}

fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.into())] }
}

fn expressions(rule: &Rule) -> Vec<Expressions> {
    let mut all: Vec<_> = rule.when.iter().flat_map(condition).collect();
    match rule.then {
        Action::Leave => all.push(Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Return)])),
        ])),
        Action::Redirect(port) => {
            all.push(Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Reg1),
                Immediate::Data(DataAttribute::Value(port.to_be_bytes().into())),
            ]));
            let register = u32::from(Register::Reg1).to_be_bytes();
            all.push(Expressions::Other {
                expression_type: "redir".into(),
                attributes: vec![DefaultNla::new(NFTA_REDIR_REG_PROTO_MIN, register.into())],
            });
        }
    }
    all
}

fn condition(condition: &Condition) -> Vec<Expressions> {
    match condition {
        Condition::NotTcp => meta(MetaKey::L4Proto, Operator::NotEqual, vec![TCP]),
        Condition::Port(range) => port(range),
        Condition::From(address) => network(IpNet::from(*address), Side::Source, Operator::Equal),
        Condition::To(net) => network(*net, Side::Destination, Operator::Equal),
        Condition::NotTo(net) => network(*net, Side::Destination, Operator::NotEqual),
        // Numbers the kernel keeps for itself are in its byte order, those of packets in the network's.
        Condition::ByProxy(Exempt::Uid(uid)) => meta(MetaKey::SocketUserId, Operator::Equal, uid.to_ne_bytes().into()),
        Condition::ByProxy(Exempt::Mark(mark)) => meta(MetaKey::Mark, Operator::Equal, mark.to_ne_bytes().into()),
        Condition::OverLoopback => meta(MetaKey::Oif, Operator::Equal, LOOPBACK_INDEX.to_ne_bytes().into()),
    }
}

fn port(range: &RangeInclusive<u16>) -> Vec<Expressions> {
    // Bytes 2 and 3 of a TCP header (RFC 9293 §3.1).
    let load = payload(TRANSPORT_HEADER, 2, 2);
    let compare = |operator, port: u16| cmp(operator, port.to_be_bytes().into());
    if range.start() == range.end() {
        return vec![load, compare(Operator::Equal, *range.start())];
    }
    vec![load, compare(Operator::GreatherThanEqual, *range.start()), compare(Operator::LessThanEqual, *range.end())]
}

/// Which address of a packet.
#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// The address's family, and the address compared with the network under its mask.
fn network(net: IpNet, side: Side, operator: Operator) -> Vec<Expressions> {
    let (family, offset, address, mask) = match (net.network(), net.netmask(), side) {
        // RFC 791 §3.1: source at byte 12, destination at 16.
        (IpAddr::V4(address), IpAddr::V4(mask), side) => {
            let offset = if matches!(side, Side::Source) { 12 } else { 16 };
            (NFPROTO_IPV4, offset, address.octets().to_vec(), mask.octets().to_vec())
        }
        // RFC 8200 §3: source at byte 8, destination at 24.
        (address, mask, side) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let offset = if matches!(side, Side::Source) { 8 } else { 24 };
            (NFPROTO_IPV6, offset, octets(address), octets(mask))
        }
    };
    let mut all = meta(MetaKey::Nfproto, Operator::Equal, vec![family]);
    // At most 16.
    let length = u32::from(net.max_prefix_len()) / 8;
    all.push(payload(NETWORK_HEADER, offset, length));
    if net.prefix_len() < net.max_prefix_len() {
        all.push(Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(length),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; address.len()])),
        ]));
    }
    all.push(cmp(operator, address));
    all
}

fn meta(key: MetaKey, operator: Operator, value: Vec<u8>) -> Vec<Expressions> {
    let load = Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]);
    vec![load, cmp(operator, value)]
}

fn payload(base: u32, offset: u32, length: u32) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

fn cmp(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(batch: &Batch) -> Vec<&'static str> {
        let kind = |message: &NetlinkMessage<NetfilterMessage>| match &message.payload {
            netlink_packet_core::NetlinkPayload::InnerMessage(message) => match &message.inner {
                NetfilterMessageInner::None(ControlMessage::BatchBegin) => "begin",
                NetfilterMessageInner::None(ControlMessage::BatchEnd) => "end",
                NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(_)) => "+table",
                NetfilterMessageInner::NfTables(NfTablesMessage::DeleteTable(_)) => "-table",
                NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(_)) => "+chain",
                NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(_)) => "+rule",
                other => panic!("unexpected {other:?}"),
            },
            other => panic!("unexpected {other:?}"),
        };
        batch.messages.iter().map(kind).collect()
    }

    #[test]
    fn a_batch_deletes_the_old_table_and_makes_the_new_one_in_one_transaction() {
        let rule = Rule { when: vec![], then: Action::Redirect(15001) };

        let batch = Batch::install(std::slice::from_ref(&rule), std::slice::from_ref(&rule));

        let expected = ["begin", "+table", "-table", "+table", "+chain", "+rule", "+chain", "+rule", "end"];
        assert_eq!(types(&batch), expected);
        assert_eq!(batch.subjects.len(), expected.len());
        assert_eq!(batch.last(), expected.len() - 2);
    }

    #[test]
    fn removal_never_asks_to_delete_what_may_not_be_there() {
        assert_eq!(types(&Batch::remove()), ["begin", "+table", "-table", "end"]);
    }

    #[test]
    fn a_whole_address_is_compared_without_a_mask_and_a_network_with_one() {
        let expressions = |net: &str| network(net.parse().unwrap(), Side::Destination, Operator::Equal);
        let has_mask = |net: &str| expressions(net).iter().any(|e| matches!(e, Expressions::Bitwise(_)));

        assert!(!has_mask("10.0.0.1/32"));
        assert!(has_mask("10.0.0.0/8"));
        assert!(!has_mask("::1/128"));
        assert!(has_mask("fd00::/9"));
    }
}
