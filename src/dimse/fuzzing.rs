//! What the fuzz targets call: bytes of a peer, without a network.

use std::{
    io::Cursor,
    pin::pin,
    task::{Context, Poll, Waker},
};

use super::{
    command::CommandSet,
    pdu_io::{PduLimits, PduStream, Transport},
};

impl Transport for Cursor<Vec<u8>> {}

/// Receives PDUs until the bytes end or are refused. Returns how many there were.
pub(crate) fn receive_all(bytes: &[u8]) -> usize {
    let limits = PduLimits { max_association_bytes: 1 << 20, max_p_data_bytes: 1 << 17 };
    let mut stream = PduStream::new(Box::new(Cursor::new(bytes.to_vec())), limits);
    let mut n_pdus = 0;
    // A cursor never waits, so each poll is the last one.
    while let Poll::Ready(Ok(_)) = pin!(stream.receive()).poll(&mut Context::from_waker(Waker::noop())) {
        n_pdus += 1;
    }
    n_pdus
}

/// Decodes a command set; what one that is understood is encoded to must be understood too, and be encoded to the same.
pub(crate) fn command_set(bytes: &[u8]) {
    let Ok(command_set) = CommandSet::decode(bytes) else { return };
    if let Ok(encoded) = command_set.encode() {
        assert!(encoded.len() % 2 == 0, "an odd command set");
        let again = CommandSet::decode(&encoded).and_then(|again| again.encode());
        assert_eq!(again.as_ref(), Ok(&encoded), "what we encode is not what we read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dimse::testing::{application_context, associate_rq, proposed_context, user_information};

    #[test]
    fn a_request_has_no_more_contexts_than_there_are_identifiers() {
        let request = |n_contexts: u8| {
            let contexts =
                (0..n_contexts).flat_map(|_| proposed_context(1, "1.2.840.10008.1.1", &["1.2.840.10008.1.2"]));
            let items = [application_context(), contexts.collect(), user_information(16_384)].concat();
            receive_all(&associate_rq(1, &items))
        };
        assert_eq!((request(128), request(129)), (1, 0));
    }
}
