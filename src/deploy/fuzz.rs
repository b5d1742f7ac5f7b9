//! Entries for fuzzers: everything here that reads bytes which others wrote. None may panic, whatever comes.

use crate::frame;
use crate::protocol::{Greeting, Hello, ReplicaId, Request, Response};
use crate::ssh::{SshHost, classify};

/// A frame in either direction, a journal, a replica id, a host name, what ssh says.
pub fn fuzz_deploy(data: &[u8]) {
    let _ = frame::decode::<Request>(data);
    let _ = frame::decode::<Response>(data);
    let _ = frame::decode::<Greeting>(data);
    let _ = frame::decode::<Hello>(data);
    let _ = crate::journal::parse(data);
    let text = String::from_utf8_lossy(data);
    if let Ok(id) = text.parse::<ReplicaId>() {
        assert_eq!(id.to_string(), text, "one way to write an id");
    }
    if let Ok(host) = text.parse::<SshHost>() {
        assert!(!host.as_str().starts_with('-'), "a host is never an option");
    }
    let said = classify("h", &text).to_string();
    assert!(!said.contains('\u{1b}'), "no escape sequence reaches a terminal");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Fence, Order};
    use crate::rollout::fake::{app, release};
    use proptest::prelude::*;

    fn request() -> Vec<u8> {
        let fence =
            Fence { app: app(), epoch: crate::protocol::Epoch(3), target: crate::protocol::Revision(2) };
        let spec = Box::new(release("x", 1).spec);
        let order = Order::EnsureReplica { fence, replica: "r2-0".parse().unwrap(), spec };
        frame::encode(&Request { id: 1, deadline_ms: 1000, order }).unwrap()[4..].to_vec()
    }

    #[test]
    fn a_request_survives_the_way() {
        let request: Request = frame::decode(&request()).unwrap();
        let again = frame::encode(&request).unwrap();
        assert_eq!(frame::decode::<Request>(&again[4..]).unwrap(), request);
    }

    proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn random_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz_deploy(&data);
        }
        #[test]
        fn mutated_requests(at in 0usize..400, byte in any::<u8>(), cut in 0usize..500) {
            let mut data = request();
            let n = at % data.len();
            data[n] = byte;
            data.truncate(cut.max(1));
            fuzz_deploy(&data);
        }
        #[test]
        fn ids_and_hosts(text in "[r0-9@a-z.:-]{0,12}") {
            fuzz_deploy(text.as_bytes());
        }
    }
}
