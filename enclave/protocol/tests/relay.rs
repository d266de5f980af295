//! The relay between two ends under any order of events: no byte is lost, added or reordered, and the bounds hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use sealflow_enclave_protocol::relay::{MAX_MESSAGE, MAX_STREAMS, Message, Read, Received, Refusal, Streams, WINDOW};

/// What happens next. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Event {
    Open,
    /// The host dials, or refuses, what it was asked for.
    Answer {
        which: usize,
        refuses: bool,
    },
    Write {
        by_worker: bool,
        which: usize,
        len: usize,
    },
    Read {
        by_worker: bool,
        which: usize,
        len: usize,
    },
    Close {
        by_worker: bool,
        which: usize,
    },
    /// So many messages arrive.
    Carry {
        to_host: bool,
        messages: usize,
    },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let len = prop_oneof![1..200_usize, 30_000..300_000_usize];
    let which = 0..100_usize;
    let event = prop_oneof![
        3 => Just(Event::Open),
        3 => (which.clone(), prop::bool::weighted(0.1)).prop_map(|(which, refuses)| Event::Answer { which, refuses }),
        8 => (any::<bool>(), which.clone(), len.clone())
            .prop_map(|(by_worker, which, len)| Event::Write { by_worker, which, len }),
        8 => (any::<bool>(), which.clone(), len)
            .prop_map(|(by_worker, which, len)| Event::Read { by_worker, which, len }),
        1 => (any::<bool>(), which).prop_map(|(by_worker, which)| Event::Close { by_worker, which }),
        12 => (any::<bool>(), 1..40_usize).prop_map(|(to_host, messages)| Event::Carry { to_host, messages }),
    ];
    prop::collection::vec(event, 1..250)
}

/// One direction of one stream: the bytes are a running count, so that any loss, repetition or swap shows.
#[derive(Debug, Default)]
struct Direction {
    written: usize,
    read: usize,
}

impl Direction {
    fn bytes(&self, stream: u32, len: usize) -> Vec<u8> {
        (self.written..self.written + len).map(|at| byte(stream, at)).collect()
    }
}

fn byte(stream: u32, at: usize) -> u8 {
    u8::try_from((at + usize::try_from(stream).unwrap() * 7) % 251).unwrap()
}

struct Both {
    worker: Streams,
    host: Streams,
    to_host: VecDeque<Vec<u8>>,
    to_worker: VecDeque<Vec<u8>>,
    asked: Vec<u32>,
    /// By number: what the worker writes, what the host writes.
    streams: BTreeMap<u32, [Direction; 2]>,
    closed_by: BTreeMap<u32, [bool; 2]>,
}

impl Both {
    fn new() -> Self {
        Self {
            worker: Streams::opener(),
            host: Streams::dialer(),
            to_host: VecDeque::new(),
            to_worker: VecDeque::new(),
            asked: Vec::new(),
            streams: BTreeMap::new(),
            closed_by: BTreeMap::new(),
        }
    }

    fn end(&mut self, of_worker: bool) -> &mut Streams {
        if of_worker { &mut self.worker } else { &mut self.host }
    }

    fn pick(&self, which: usize) -> Option<u32> {
        let open: Vec<u32> = self.streams.keys().copied().collect();
        open.get(which % open.len().max(1)).copied()
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Open => {
                if let Ok(stream) = self.worker.open("kms.example", 443) {
                    self.streams.insert(stream, <[Direction; 2]>::default());
                }
            }
            Event::Answer { which, refuses } => {
                if !self.asked.is_empty() {
                    let stream = self.asked.remove(which % self.asked.len());
                    if refuses {
                        self.host.refuse(stream, Refusal::Unreachable);
                    } else {
                        let _ = self.host.opened(stream);
                    }
                }
            }
            Event::Write { by_worker, which, len } => {
                if let Some(stream) = self.pick(which) {
                    self.write(by_worker, stream, len);
                }
            }
            Event::Read { by_worker, which, len } => {
                if let Some(stream) = self.pick(which) {
                    self.read(by_worker, stream, len);
                }
            }
            Event::Close { by_worker, which } => {
                if let Some(stream) = self.pick(which) {
                    self.closed_by.entry(stream).or_default()[usize::from(!by_worker)] = true;
                    self.end(by_worker).close(stream);
                }
            }
            Event::Carry { to_host, messages } => self.carry(to_host, messages),
        }
        assert!(self.worker.len() <= MAX_STREAMS && self.host.len() <= MAX_STREAMS);
    }

    fn write(&mut self, by_worker: bool, stream: u32, len: usize) {
        let direction = &self.streams[&stream][usize::from(!by_worker)];
        let bytes = direction.bytes(stream, len);
        let unread = direction.written - direction.read;
        let taken = self.end(by_worker).write(stream, &bytes).unwrap_or(0);
        self.streams.get_mut(&stream).unwrap()[usize::from(!by_worker)].written += taken;
        assert!(
            unread + taken <= usize::try_from(WINDOW).unwrap(),
            "more than the window is on its way"
        );
    }

    fn read(&mut self, by_worker: bool, stream: u32, len: usize) -> Read {
        let mut out = vec![0; len];
        let read = self.end(by_worker).read(stream, &mut out);
        if let Read::Bytes(read) = read {
            let direction = &mut self.streams.get_mut(&stream).unwrap()[usize::from(by_worker)];
            for got in &out[..read] {
                assert_eq!(
                    *got,
                    byte(stream, direction.read),
                    "stream {stream} at {}",
                    direction.read
                );
                direction.read += 1;
            }
            assert!(direction.read <= direction.written);
        }
        read
    }

    fn carry(&mut self, to_host: bool, messages: usize) {
        for _ in 0..messages {
            while let Some(message) = self.worker.next_message() {
                self.to_host.push_back(message);
            }
            while let Some(message) = self.host.next_message() {
                self.to_worker.push_back(message);
            }
            let queue = if to_host {
                &mut self.to_host
            } else {
                &mut self.to_worker
            };
            let Some(message) = queue.pop_front() else { return };
            assert!(message.len() <= MAX_MESSAGE);
            // Between ends that keep the rules, nothing is a violation.
            let received = self.end(!to_host).receive(&message).unwrap();
            if let Received::Open { stream, .. } = received {
                self.asked.push(stream);
            }
        }
    }

    /// Carries and reads everything, then looks whether all that was written has arrived where nobody closed too early.
    fn settle(&mut self) {
        loop {
            let before = (self.to_host.len(), self.to_worker.len(), self.progress());
            self.carry(true, usize::MAX);
            self.carry(false, usize::MAX);
            for stream in self.streams.keys().copied().collect::<Vec<_>>() {
                while matches!(self.read(true, stream, 10_000), Read::Bytes(_)) {}
                while matches!(self.read(false, stream, 10_000), Read::Bytes(_)) {}
            }
            if before == (self.to_host.len(), self.to_worker.len(), self.progress()) {
                break;
            }
        }
        for (stream, [from_worker, from_host]) in &self.streams {
            let [worker_closed, host_closed] = self.closed_by.get(stream).copied().unwrap_or_default();
            // Who closes takes no more; what it wrote before arrives.
            assert!(
                host_closed || from_worker.written == from_worker.read,
                "{stream}: {from_worker:?}"
            );
            assert!(
                worker_closed || from_host.written == from_host.read,
                "{stream}: {from_host:?}"
            );
        }
    }

    fn progress(&self) -> usize {
        self.streams.values().flatten().map(|direction| direction.read).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_byte_is_lost_added_or_reordered_under_any_interleaving(events in events()) {
        let mut both = Both::new();
        for event in &events {
            both.apply(event);
        }
        both.settle();
    }

    #[test]
    fn any_bytes_are_a_message_or_a_violation(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(message.encode(), bytes);
        }
    }

    #[test]
    fn any_messages_leave_an_end_within_its_bounds(
        messages in prop::collection::vec((1..8_u8, 0..70_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..400),
        opens in any::<bool>(),
    ) {
        let mut end = if opens { Streams::opener() } else { Streams::dialer() };
        for _ in 0..20 {
            let _ = end.open("a", 443);
        }
        for (kind, stream, rest) in messages {
            let message = [&[kind], stream.to_le_bytes().as_slice(), &rest].concat();
            if let Ok(Received::Open { stream, .. }) = end.receive(&message) {
                let _ = end.opened(stream);
            }
            prop_assert!(end.len() <= MAX_STREAMS);
        }
    }
}
