//! One exchange with the kernel: some netlink messages in one datagram, and its verdict on them.
//!
//! Blocking, on a socket made for the occasion in the calling thread's network namespace. It does not dump and does
//! not listen for events. Called by the rest of [`capture`](super).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// Bytes; netlink messages and their answers start at multiples of this (linux/netlink.h, NLMSG_ALIGNTO).
const ALIGNMENT: usize = 4;

/// The kernel's refusal of an exchange.
#[derive(Debug)]
pub struct Refusal {
    /// The first refused message, counted from 0; `None` if no message was the reason.
    pub message: Option<usize>,
    /// Its errno.
    pub source: io::Error,
}

impl From<io::Error> for Refusal {
    fn from(source: io::Error) -> Self {
        Self { message: None, source }
    }
}

/// Sends `messages` in one datagram and waits for the kernel's answer to the one at `acknowledged`.
///
/// Only one acknowledgement is asked for, because those of a long batch would overflow the receive buffer; refusals
/// arrive unasked.
///
/// # Errors
/// The first refusal of any message, or the socket's own error.
pub fn exchange<T>(protocol: isize, mut messages: Vec<NetlinkMessage<T>>, acknowledged: usize) -> Result<(), Refusal>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut request = Vec::new();
    for (sequence, message) in (0u32..).zip(&mut messages) {
        message.header.sequence_number = sequence;
        message.header.flags |= NLM_F_REQUEST;
        if usize::try_from(sequence).is_ok_and(|at| at == acknowledged) {
            message.header.flags |= NLM_F_ACK;
        }
        message.finalize();
        let start = request.len();
        request.resize(start + message.buffer_len().next_multiple_of(ALIGNMENT), 0);
        message.serialize(&mut request[start..start + message.buffer_len()]);
    }

    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // The kernel has worked through the datagram and queued its answers when `send` returns: nothing to wait for.
    socket.set_non_blocking(true)?;
    let sent = socket.send(&request, 0)?;
    if sent != request.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "the kernel took only part of the request").into());
    }
    loop {
        let (answers, _) = socket.recv_from_full()?;
        if verdict::<T>(&answers, acknowledged)? {
            return Ok(());
        }
    }
}

/// Whether `answers` hold the acknowledgement; the first refusal among them is the error.
fn verdict<T: NetlinkDeserializable>(mut answers: &[u8], acknowledged: usize) -> Result<bool, Refusal> {
    while !answers.is_empty() {
        let answer = NetlinkMessage::<T>::deserialize(answers)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        let message = usize::try_from(answer.header.sequence_number).ok();
        if let NetlinkPayload::Error(error) = &answer.payload {
            match error.code {
                Some(_) => return Err(Refusal { message, source: error.to_io() }),
                None if message == Some(acknowledged) => return Ok(true),
                None => {}
            }
        }
        let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX).max(1);
        answers = answers.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use netlink_packet_netfilter::NetfilterMessage;

    use super::*;

    /// A kernel's answer to message `sequence`: NLMSG_ERROR with `errno` (0: an acknowledgement).
    fn answer(sequence: u32, errno: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(36u32.to_ne_bytes());
        bytes.extend(2u16.to_ne_bytes());
        bytes.extend(0u16.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend((-errno).to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn an_acknowledgement_of_the_awaited_message_is_success() {
        assert!(verdict::<NetfilterMessage>(&answer(5, 0), 5).unwrap());
    }

    #[test]
    fn an_acknowledgement_of_another_message_is_not_yet_an_answer() {
        assert!(!verdict::<NetfilterMessage>(&answer(4, 0), 5).unwrap());
    }

    #[test]
    fn the_first_refusal_of_a_datagram_is_the_one_reported() {
        let answers = [answer(1, 0), answer(3, 2), answer(5, 22)].concat();

        let refusal = verdict::<NetfilterMessage>(&answers, 5).unwrap_err();

        assert_eq!(refusal.message, Some(3));
        assert_eq!(refusal.source.raw_os_error(), Some(2));
    }

    #[test]
    fn bytes_that_are_no_netlink_message_are_an_error_and_no_panic() {
        assert!(verdict::<NetfilterMessage>(&[1, 2, 3], 0).is_err());
        assert!(verdict::<NetfilterMessage>(&[0xff; 64], 0).is_err());
    }
}
