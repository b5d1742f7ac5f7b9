//! Sessions over streams in memory: noise, order, loss, foreign bytes.

use super::*;
use crate::protocol::{MAGIC, RefusalKind};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex, split};

fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        keelway: "0".into(),
        hostname: "h".into(),
        kernel: "6.1".into(),
        platform: keelway_model::Platform::host(),
        root: true,
        address: None,
        boot_id: "b".into(),
    }
}
fn hello() -> Hello {
    Hello { version: VERSION, keelway: "0".into(), binary: None }
}
fn order() -> Order {
    Order::Status { app: None }
}

/// A host that prints `noise`, greets, and answers in pairs, the second first.
async fn host(stream: DuplexStream, noise: &[u8], greeting: Greeting) {
    let (mut from, mut to) = split(stream);
    to.write_all(noise).await.unwrap();
    to.write_all(MAGIC).await.unwrap();
    let _: Hello = frame::read(&mut from).await.unwrap().unwrap();
    frame::write(&mut to, &greeting).await.unwrap();
    while let (Ok(Some(a)), Ok(Some(b))) =
        (frame::read::<Request>(&mut from).await, frame::read::<Request>(&mut from).await)
    {
        for (id, outcome) in [
            (b.id, Outcome::Done(Reply::Logs(vec![b.id.to_string()]))),
            (a.id, Outcome::Refused(Refusal::new(RefusalKind::Failed, "no"))),
        ] {
            frame::write(&mut to, &Response { id, outcome }).await.unwrap();
        }
    }
}

#[tokio::test]
async fn answers_find_their_calls_behind_a_noisy_shell() {
    let (ours, theirs) = duplex(1 << 16);
    let task =
        tokio::spawn(
            async move { host(theirs, b"Welcome to Debian!\n", Greeting::Welcome(welcome())).await },
        );
    let (from, to) = split(ours);
    let (session, w) = Session::open(from, to, &hello()).await.unwrap();
    assert_eq!(w, welcome());
    let second = Duration::from_secs(5);
    let (a, b) = tokio::join!(session.call(order(), second), session.call(order(), second));
    assert!(matches!(a, Err(OrderError::Refused(r)) if r.message == "no"));
    assert_eq!(b.unwrap(), Reply::Logs(vec!["2".into()]));
    // A call that nobody answers, then the end of the stream, which ends every call.
    assert_eq!(session.call(order(), Duration::from_millis(20)).await, Err(OrderError::Late));
    task.abort();
    let _ = task.await;
    assert!(matches!(session.call(order(), second).await, Err(OrderError::Unreachable(_))));
    assert!(!session.is_open());
}

#[tokio::test]
async fn a_host_that_says_no_or_is_not_keelway() {
    let (ours, theirs) = duplex(1 << 16);
    let no = Refusal::new(RefusalKind::Version, "too new");
    tokio::spawn(host(theirs, b"", Greeting::Refused(no.clone())));
    let (from, to) = split(ours);
    assert!(matches!(Session::open(from, to, &hello()).await, Err(OpenError::Refused(r)) if r == no));
    let (ours, mut theirs) = duplex(1 << 16);
    theirs.write_all(b"This account is currently not available.\n").await.unwrap();
    drop(theirs);
    let (from, to) = split(ours);
    let Err(e) = Session::open(from, to, &hello()).await else { panic!() };
    assert!(e.to_string().contains("currently not available"), "{e}");
}

#[tokio::test]
async fn a_stream_of_foreign_bytes_ends_the_session_and_takes_no_memory() {
    let long = (u32::MAX).to_be_bytes();
    assert!(matches!(frame::read::<Request>(&mut &long[..]).await, Err(FrameError::TooLong { .. })));
    assert!(matches!(frame::read::<Request>(&mut &[0u8, 0][..]).await, Err(FrameError::Cut)));
    assert!(matches!(frame::read::<Request>(&mut &[][..]).await, Ok(None)));
    let noise = vec![b'x'; crate::protocol::MAX_NOISE * 2];
    assert!(frame::skip_to_magic(&mut &noise[..]).await.is_err());
}
