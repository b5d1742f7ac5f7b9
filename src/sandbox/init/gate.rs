//! The gate of a sandbox that was created and not started, and may outlive who created it: a listening socket where
//! whoever may reach it gives orders, one a connection.

use crate::proto::{self, Order, Report};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// How long somebody who connected may take to speak.
const PATIENCE: Duration = Duration::from_secs(2);

/// The supervisor's side.
pub(super) struct Gate {
    listener: UnixListener,
    /// Who asked for the start, until it is known what became of it.
    waiting: Option<UnixStream>,
}

impl Gate {
    pub(super) fn new(listener: OwnedFd) -> Self {
        Self { listener: listener.into(), waiting: None }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Takes one order. What is for PID 1, or for all of it, is given back.
    pub(super) fn ask(&mut self, started: bool) -> Option<Order> {
        let hear = || -> io::Result<(UnixStream, Option<Order>)> {
            let (stream, _) = self.listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let order = proto::receive::<Order>(stream.as_fd())?.map(|(order, _)| order);
            Ok((stream, order))
        };
        let (stream, order) = hear().ok()?;
        let answer = |stream: &UnixStream, started| {
            let _ = proto::send(stream.as_fd(), &Report::State { started }, &[]);
        };
        match order? {
            Order::Start if !started && self.waiting.is_none() => {
                self.waiting = Some(stream);
                Some(Order::Start)
            }
            Order::Signal(signal) if started => {
                answer(&stream, started);
                Some(Order::Signal(signal))
            }
            Order::Kill => {
                answer(&stream, started);
                Some(Order::Kill)
            }
            Order::State => {
                answer(&stream, started);
                None
            }
            // A second start, a signal for a program that is not there yet, or what only an owner may ask: the end of
            // the connection says no.
            Order::Start | Order::Signal(_) | Order::Exec(_) | Order::Release => None,
        }
    }

    /// Tells who asked for the start.
    pub(super) fn tell(&mut self, report: &Report) {
        if let Some(stream) = self.waiting.take() {
            let _ = proto::send(stream.as_fd(), report, &[]);
        }
    }
}
