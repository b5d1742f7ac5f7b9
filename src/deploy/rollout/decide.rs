//! One decision: given what was just seen on every host, the one next step. The order of the questions is the order
//! of safety: first what is wrong, then what the balancers must know, then what is being taken away, then what is
//! added, and the end only where nothing of this is left.

use super::world::Spot;
use super::{Direction, Machine, Next, StepKind};
use crate::goal::Numbered;
use crate::protocol::{AppSettings, BackendState, Order, ReleaseRecord, ReleaseState, ReplicaState};
use keelway_model::ExitCode;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

impl Machine {
    /// What shall run in the end: `None` is nothing, after the first deploy of an app failed.
    fn target(&self) -> Option<Numbered> {
        match self.direction {
            Direction::Forward => Some(self.goal.new.clone()),
            Direction::Back => self.goal.base.clone(),
        }
    }

    /// Lays the target out over the hosts, and takes over what an earlier deployer left half drained. Once for each
    /// direction.
    pub(super) fn settle(&mut self) {
        if self.placement.is_some() {
            return;
        }
        let placement = self.target().map(|t| self.world.placement(&t)).unwrap_or_default();
        for &spot in &placement {
            // A replica that was healthy before this deploy is not judged by restarts of long ago.
            if let Some(r) = self.world.replica(spot).filter(|r| r.state == ReplicaState::Healthy) {
                self.restarts.insert(spot, r.restarts);
            }
        }
        self.placement = Some(placement);
    }

    pub(super) fn decide(&mut self, now: Duration) -> Next {
        let target = self.placement.clone().unwrap_or_default();
        let others: Vec<Spot> = self.world.spots().into_iter().filter(|s| !target.contains(s)).collect();
        for &spot in &others {
            if self.world.is_draining(spot) {
                self.draining.entry(spot).or_insert(now);
            }
        }
        self.note_progress(now, &target);
        if let Some((kind, reason, about)) = self.wrong(now, &target) {
            self.wants_log = about;
            return self.turn(kind, reason, now);
        }
        self.begin(now, &target)
            .or_else(|| self.balance(now, &target, &others))
            .or_else(|| self.take_away(now, &target, &others))
            .or_else(|| self.add(&target))
            .unwrap_or_else(|| self.finish(now))
    }

    fn turn(&mut self, kind: StepKind, reason: String, now: Duration) -> Next {
        self.failure = Some((kind, reason));
        self.next(now)
    }

    /// Whether something that an order should have settled at once is still not so after [`super::Knobs::reach`].
    fn is_overdue(&mut self, now: Duration, what: StepKind) -> bool {
        let since = *self.unsettled.entry(what).or_insert(now);
        now.saturating_sub(since) >= self.knobs.reach
    }

    fn note_progress(&mut self, now: Duration, target: &[Spot]) {
        let ready = target.iter().filter(|&&t| self.world.is_available(t)).count();
        let reached = (self.best.0.max(self.removed), self.best.1.max(ready));
        if reached > self.best || self.progress_at.is_none() {
            self.best = reached;
            self.progress_at = Some(now);
        }
    }

    /// The first thing that is wrong with the target.
    fn wrong(&mut self, now: Duration, target: &[Spot]) -> Option<(StepKind, String, Option<Spot>)> {
        let spec = self.target()?.release.spec;
        // What was completed before has proven itself: its supervisor starts it again, in its time.
        let proven = self.direction == Direction::Back
            || self.goal.base.as_ref().is_some_and(|b| b.revision == self.goal.new.revision);
        for &spot in target {
            let Some(report) = self.world.replica(spot).cloned() else { continue };
            let (host, id) = (self.world.hosts[spot.0].name.clone(), spot.1);
            if report.spec != spec {
                let reason =
                    format!("{host}: {id} is there with other settings than revision {} has", id.revision);
                return Some((StepKind::Start, reason, None));
            }
            let restarts = report.restarts.saturating_sub(self.restarts.get(&spot).copied().unwrap_or(0));
            if !proven && (report.state == ReplicaState::Exited || restarts > 0) {
                let ended = report.ended.as_deref().unwrap_or("its process ended");
                return Some((StepKind::Start, format!("{host}: {id} did not stay up: {ended}"), Some(spot)));
            }
            if self.world.is_available(spot) || report.state == ReplicaState::Stopped {
                self.awaited.remove(&spot);
                continue;
            }
            let healthy = report.state == ReplicaState::Healthy;
            let (since, was_healthy) = *self.awaited.entry(spot).or_insert((now, healthy));
            if healthy != was_healthy {
                self.awaited.insert(spot, (now, healthy));
                continue;
            }
            let mut waited = now.saturating_sub(since);
            if report.state == ReplicaState::Starting && report.restarts == 0 {
                waited = waited.max(Duration::from_millis(report.age_ms));
            }
            if healthy && waited >= self.knobs.reach {
                let not = |at: &usize| {
                    !self.world.entry(*at, spot).is_some_and(|e| e.usable && e.state == BackendState::Active)
                };
                let at =
                    (0..self.world.hosts.len()).find(not).map_or("a host", |at| &self.world.hosts[at].name);
                let reason = format!(
                    "{host}: {id} is healthy, but the balancer of {at} cannot reach it; is traffic between the hosts let through?"
                );
                return Some((StepKind::Add, reason, None));
            }
            if !healthy && waited >= spec.health.deadline {
                let said = report.last_bad.as_deref().unwrap_or("no answer yet");
                let limit = keelway_model::format_duration(spec.health.deadline);
                let reason =
                    format!("{host}: {id} was not healthy within {limit} (GET {}: {said})", spec.health.http);
                return Some((StepKind::Start, reason, Some(spot)));
            }
        }
        let stuck = now.saturating_sub(self.progress_at.unwrap_or(now));
        (stuck >= self.knobs.progress).then(|| {
            let limit = keelway_model::format_duration(self.knobs.progress);
            (StepKind::Start, format!("no progress for {limit}"), None)
        })
    }

    /// Image, record and balancer, before the first replica.
    fn begin(&mut self, now: Duration, target: &[Spot]) -> Option<Next> {
        let wanted = self.target();
        let absent = |&&(host, id): &&Spot| !matches!(self.world.state((host, id)), Some(s) if s != ReplicaState::Stopped);
        let missing: Vec<usize> = {
            let mut hosts: Vec<usize> = target.iter().filter(absent).map(|t| t.0).collect();
            hosts.dedup();
            hosts
        };
        let pull: Vec<usize> = missing.iter().copied().filter(|h| !self.pulled.contains(h)).collect();
        if let (Some(wanted), false) = (&wanted, pull.is_empty()) {
            let order = Order::EnsureImage {
                fence: self.fence(),
                image: wanted.release.spec.image.clone(),
                registry: self.registry.clone().for_image(&wanted.release.spec.image),
            };
            // On every host at once, before the first replica starts: a registry that fails costs nothing.
            let orders = pull.into_iter().map(|h| (h, order.clone())).collect();
            return Some(self.send(StepKind::Pull, None, orders));
        }
        if let Some(next) = self.record_beginning(!missing.is_empty()) {
            return Some(next);
        }
        let wanted = wanted?;
        let mut orders = Vec::new();
        for (h, view) in self.world.hosts.iter().enumerate() {
            let mut peers: Vec<_> = self
                .world
                .hosts
                .iter()
                .enumerate()
                .filter(|(o, _)| *o != h)
                .filter_map(|(_, v)| v.address)
                .collect();
            peers.sort_unstable();
            let settings = AppSettings { listen: wanted.release.listen.clone(), peers };
            if view.report.settings.as_ref() != Some(&settings) || !view.report.balancer.running {
                orders.push((h, Order::EnsureApp { fence: self.fence(), settings }));
            }
        }
        if orders.is_empty() {
            self.unsettled.remove(&StepKind::Prepare);
            return None;
        }
        if self.is_overdue(now, StepKind::Prepare) {
            let host = &self.world.hosts[orders[0].0].name;
            let reason = format!("{host}: the balancer does not come up on {}", wanted.release.listen);
            return Some(self.turn(StepKind::Prepare, reason, now));
        }
        self.pause = self.knobs.poll;
        Some(self.send(StepKind::Prepare, None, orders))
    }

    /// On the hosts: this release was begun, or it is being given up.
    fn record_beginning(&mut self, starts: bool) -> Option<Next> {
        let revision = self.goal.new.revision;
        let state = match self.direction {
            Direction::Forward => ReleaseState::Started,
            Direction::Back => ReleaseState::RollingBack,
        };
        let completed = |r: &ReleaseRecord| r.state == ReleaseState::Completed;
        if self.world.hosts.iter().filter_map(|h| h.record(revision)).any(completed) {
            return None;
        }
        let wrong =
            |h: &&usize| match (self.world.hosts[**h].record(revision).map(|r| r.state), self.direction) {
                (have, Direction::Forward) => starts && have != Some(state),
                (have, Direction::Back) => matches!(have, Some(ReleaseState::Started)),
            };
        let all: Vec<usize> = (0..self.world.hosts.len()).collect();
        let hosts: Vec<usize> = all.iter().filter(wrong).copied().collect();
        let record = Box::new(self.goal.record(state));
        let order = Order::RecordRelease { fence: self.fence(), record };
        let orders: Vec<_> = hosts.into_iter().map(|h| (h, order.clone())).collect();
        (!orders.is_empty()).then(|| self.send(StepKind::Record, None, orders))
    }

    /// Tells the balancers what their pools shall be, where they are anything else.
    fn balance(&mut self, now: Duration, target: &[Spot], others: &[Spot]) -> Option<Next> {
        let mut wanted: Vec<(Spot, BackendState)> = Vec::new();
        let (mut added, mut drained) = (None, None);
        for &spot in target {
            let member = self.world.is_member(spot);
            if self.world.state(spot) == Some(ReplicaState::Healthy)
                || (member && self.world.state(spot).is_some_and(ReplicaState::is_running))
            {
                wanted.push((spot, BackendState::Active));
                added = added.or((!member).then_some(spot));
            }
        }
        for &spot in others {
            if self.drained.contains(&spot) || !self.world.is_member(spot) {
                continue;
            }
            if self.draining.contains_key(&spot) {
                drained = drained.or(self.world.is_active(spot).then_some(spot));
                wanted.push((spot, BackendState::Draining));
            } else {
                wanted.push((spot, BackendState::Active));
            }
        }
        let pools: BTreeMap<usize, _> = (0..self.world.hosts.len())
            .map(|h| (h, self.world.pool(h, &wanted)))
            .filter(|(h, pool)| !self.world.is_applied(*h, pool))
            .filter(|(h, pool)| !(pool.is_empty() && self.world.hosts[*h].report.settings.is_none()))
            .collect();
        let Some(&first) = pools.keys().next() else {
            self.unsettled.remove(&StepKind::Add);
            return None;
        };
        if self.is_overdue(now, StepKind::Add) {
            let reason = format!("{}: the balancer does not take its pool", self.world.hosts[first].name);
            return Some(self.turn(StepKind::Add, reason, now));
        }
        self.generation += 1;
        let (fence, generation) = (self.fence(), self.generation);
        let order = |backends| Order::SetBackends { fence: fence.clone(), generation, backends };
        let orders = pools.into_iter().map(|(h, pool)| (h, order(pool))).collect();
        let (kind, about) = match (added, drained) {
            (Some(spot), _) => (StepKind::Add, Some(spot)),
            (None, Some(spot)) => (StepKind::Drain, Some(spot)),
            (None, None) => (StepKind::Detach, None),
        };
        self.pause = self.knobs.poll.min(Duration::from_millis(50));
        Some(self.send(kind, about, orders))
    }

    /// Goes on with what is being drained, stopped and removed; else picks what is next to go.
    fn take_away(&mut self, now: Duration, target: &[Spot], others: &[Spot]) -> Option<Next> {
        let floor = usize::try_from(self.goal.floor()).unwrap_or(usize::MAX);
        let available = target.iter().chain(others).filter(|&&s| self.world.is_available(s)).count();
        let drain = self.target().map_or(self.goal.new.release.drain, |t| t.release.drain);
        for &spot in others {
            if let Some(&since) = self
                .draining
                .get(&spot)
                .filter(|_| !self.drained.contains(&spot) && self.world.is_member(spot))
            {
                let left = self.world.in_flight(spot);
                if left > 0 && now.saturating_sub(since) < drain {
                    return Some(Next::Wait(self.knobs.poll.min(Duration::from_millis(100))));
                }
                self.cut = self.cut.saturating_add(left);
                self.drained.insert(spot);
                // The pools no longer hold what is decided now.
                return self.balance(now, target, others).or(Some(Next::Wait(self.knobs.poll)));
            }
        }
        for &spot in others {
            let state = self.world.state(spot)?;
            let detached = self.drained.contains(&spot) || !self.world.is_member(spot);
            if state == ReplicaState::Stopped {
                let order = Order::RemoveReplica { fence: self.fence(), replica: spot.1 };
                return Some(self.send(StepKind::Remove, Some(spot), vec![(spot.0, order)]));
            }
            // One that is healthy and in no pool may be there because the pools were lost: kept until others answer.
            if detached
                && (self.drained.contains(&spot) || state != ReplicaState::Healthy || available >= floor)
            {
                let grace = self.world.replica(spot).map_or(Duration::ZERO, |r| r.spec.stop_grace);
                let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                let order = Order::StopReplica { fence: self.fence(), replica: spot.1, grace_ms };
                return Some(self.send(StepKind::Stop, Some(spot), vec![(spot.0, order)]));
            }
        }
        let mut load = vec![0usize; self.world.hosts.len()];
        target
            .iter()
            .filter(|&&t| self.world.replica(t).is_some())
            .chain(others)
            .for_each(|s| load[s.0] += 1);
        let left_without = |s: Spot| available - usize::from(self.world.is_available(s));
        let next = others
            .iter()
            .copied()
            .filter(|&s| {
                self.world.is_member(s) && !self.draining.contains_key(&s) && left_without(s) >= floor
            })
            .min_by_key(|&s| (self.world.is_available(s), Reverse(load[s.0]), s))?;
        self.draining.insert(next, now);
        self.balance(now, target, others)
    }

    /// Starts the next replica of the target, or waits for the one that was started.
    fn add(&mut self, target: &[Spot]) -> Option<Next> {
        let spot = target.iter().copied().find(|&t| !self.world.is_available(t))?;
        self.complete_since = None;
        match self.world.state(spot) {
            None | Some(ReplicaState::Stopped) => {
                let spec = Box::new(self.target()?.release.spec);
                let order = Order::EnsureReplica { fence: self.fence(), replica: spot.1, spec };
                Some(self.send(StepKind::Start, Some(spot), vec![(spot.0, order)]))
            }
            Some(_) => Some(Next::Wait(self.knobs.poll)),
        }
    }

    /// Everything is as it shall be: holds it for a while, writes it down, ends.
    fn finish(&mut self, now: Duration) -> Next {
        let since = *self.complete_since.get_or_insert(now);
        if self.changed
            && self.direction == Direction::Forward
            && now.saturating_sub(since) < self.knobs.monitor
        {
            return Next::Wait(self.knobs.poll);
        }
        let revision = self.goal.new.revision;
        let forward = self.direction == Direction::Forward;
        let mut orders = Vec::new();
        for (h, view) in self.world.hosts.iter().enumerate() {
            let own = view.record(revision);
            let right = if forward {
                own.is_some_and(|r| r.state == ReleaseState::Completed && r.release == self.goal.new.release)
            } else {
                own.is_none_or(|r| matches!(r.state, ReleaseState::RolledBack | ReleaseState::Completed))
            };
            let record = if right {
                let open = |u: &&ReleaseRecord| {
                    view.record(u.revision)
                        .is_some_and(|r| matches!(r.state, ReleaseState::Started | ReleaseState::RollingBack))
                };
                self.goal
                    .unfinished
                    .iter()
                    .find(open)
                    .map(|u| ReleaseRecord { state: ReleaseState::RolledBack, ..u.clone() })
            } else if forward {
                Some(self.goal.record(ReleaseState::Completed))
            } else {
                Some(self.goal.record(ReleaseState::RolledBack))
            };
            if let Some(record) = record {
                orders.push((h, Order::RecordRelease { fence: self.fence(), record: Box::new(record) }));
            }
        }
        if !orders.is_empty() {
            return self.send(StepKind::Finish, None, orders);
        }
        let what = &self.goal.new;
        match (forward, &self.goal.base) {
            (true, _) if !self.changed => {
                let text = format!(
                    "nothing to do: revision {} ({}) runs already",
                    what.revision,
                    what.release.spec.image.digest()
                );
                self.end(ExitCode::Done, &text)
            }
            (true, _) => {
                let text = format!(
                    "revision {} ({}) runs on {} replicas",
                    what.revision,
                    what.release.spec.image.digest(),
                    what.release.replicas
                );
                self.end(ExitCode::Done, &text)
            }
            (false, Some(base)) => {
                let text = format!(
                    "rolled back to revision {} ({})",
                    base.revision,
                    base.release.spec.image.digest()
                );
                self.end(ExitCode::RolledBack, &text)
            }
            (false, None) => {
                self.end(ExitCode::RolledBack, "rolled back: nothing ran before, so nothing runs now")
            }
        }
    }
}
