//! The state of one end of the relay: which streams there are, what may be sent, and what was received and not yet read.

use std::collections::{BTreeMap, VecDeque};

use super::{MAX_DATA, MAX_STREAMS, Message, Refusal, Violation, WINDOW, is_host};

/// Credit is given back in portions of at least this many bytes.
const CREDIT_STEP: u32 = WINDOW / 2;

/// With so many messages waiting to be sent, no more data is taken.
const FULL: usize = 256;

/// With so many messages waiting, nothing is opened any more, and a request to open is a [`Violation::Flood`].
const FLOODED: usize = 4096;

/// One end. The worker's opens streams, the host's dials them; all else is the same for both.
///
/// Bounds: [`MAX_STREAMS`] streams, [`WINDOW`] bytes received and unread of each, and in front of the channel messages with at
/// most [`WINDOW`] bytes of each.
#[derive(Debug)]
pub struct Streams {
    opens: bool,
    /// The largest number so far.
    newest: u32,
    streams: BTreeMap<u32, Stream>,
    outgoing: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Stream {
    state: State,
    /// Received and unread.
    inbound: VecDeque<u8>,
    /// Bytes that the other end may still send.
    may_take: u32,
    /// Read, and not yet given back as credit.
    owed: u32,
    /// Bytes that this end may still send.
    may_send: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not dialled yet.
    Asked,
    Open,
    Refused(Refusal),
    /// The other end has closed it; what it sent before can still be read.
    Ended,
}

/// What a message means for whoever drives this end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// To be dialled, then [`Streams::opened`] or [`Streams::refuse`].
    Open {
        /// The stream.
        stream: u32,
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// Something about this stream has changed: it is open or refused, there are bytes to read, credit to write, or its end.
    Changed {
        /// The stream.
        stream: u32,
    },
    /// Nothing: it is about a stream that this end has closed, or there are too many.
    Nothing,
}

/// What [`Streams::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing yet.
    Later,
    /// All was read, and no more will come: [`Streams::close`] frees its place.
    End,
}

/// Why no stream can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// All are taken, or the channel is stuck.
    #[error("too many streams are open")]
    Busy,
    /// Not a host or port.
    #[error("not a host name and port that can be dialled")]
    BadHost,
    /// This end cannot open any (more).
    #[error("this end opens no streams")]
    Exhausted,
}

/// The stream does not exist any more, or its other end has closed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct Gone;

impl Stream {
    fn new() -> Self {
        Self {
            state: State::Asked,
            inbound: VecDeque::new(),
            may_take: WINDOW,
            owed: 0,
            may_send: WINDOW,
        }
    }
}

impl Streams {
    /// The end that opens streams: the worker's.
    #[must_use]
    pub fn opener() -> Self {
        Self::end(true)
    }

    /// The end that dials them: the host's.
    #[must_use]
    pub fn dialer() -> Self {
        Self::end(false)
    }

    fn end(opens: bool) -> Self {
        Self {
            opens,
            newest: 0,
            streams: BTreeMap::new(),
            outgoing: VecDeque::new(),
        }
    }

    /// Asks the other end to dial. The stream is there at once; [`Self::is_open`] says when it can be written.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(&mut self, host: &str, port: u16) -> Result<u32, OpenError> {
        if !self.opens {
            return Err(OpenError::Exhausted);
        }
        if !is_host(host) || port == 0 {
            return Err(OpenError::BadHost);
        }
        if self.streams.len() >= MAX_STREAMS || self.outgoing.len() >= FLOODED {
            return Err(OpenError::Busy);
        }
        let stream = self.newest.checked_add(1).ok_or(OpenError::Exhausted)?;
        self.newest = stream;
        self.streams.insert(stream, Stream::new());
        self.push(&Message::Open { stream, port, host });
        Ok(stream)
    }

    /// Whether the stream is dialled. `Ok(false)`: not yet.
    ///
    /// # Errors
    /// Why the other end does not dial; [`Refusal::Unreachable`] also if it has closed the stream.
    pub fn is_open(&self, stream: u32) -> Result<bool, Refusal> {
        match self.streams.get(&stream).map(|s| s.state) {
            Some(State::Asked) => Ok(false),
            Some(State::Open | State::Ended) => Ok(true),
            Some(State::Refused(refusal)) => Err(refusal),
            None => Err(Refusal::Unreachable),
        }
    }

    /// Says that the stream is dialled.
    ///
    /// # Errors
    /// [`Gone`] if the other end does not want it any more.
    pub fn opened(&mut self, stream: u32) -> Result<(), Gone> {
        match self.streams.get_mut(&stream) {
            Some(known) if known.state == State::Asked && !self.opens => known.state = State::Open,
            _ => return Err(Gone),
        }
        self.push(&Message::Opened { stream });
        Ok(())
    }

    /// Says that the stream is not dialled, and forgets it.
    pub fn refuse(&mut self, stream: u32, refusal: Refusal) {
        if self.opens {
            return;
        }
        if let Some(known) = self.streams.remove(&stream)
            && known.state == State::Asked
        {
            self.push(&Message::Refused { stream, refusal });
        }
    }

    /// Takes a message of the other end.
    ///
    /// # Errors
    /// [`Violation`]: the channel is not to be used any more.
    pub fn receive(&mut self, message: &[u8]) -> Result<Received, Violation> {
        match Message::decode(message)? {
            Message::Open { stream, port, host } => self.asked(stream, port, host),
            Message::Opened { stream } => self.answered(stream, State::Open),
            Message::Refused { stream, refusal } => self.answered(stream, State::Refused(refusal)),
            Message::Data { stream, bytes } => {
                let Some(known) = self.known(stream)? else {
                    return Ok(Received::Nothing);
                };
                if known.state != State::Open {
                    return Err(Violation::OutOfTurn);
                }
                let len = u32::try_from(bytes.len()).map_err(|_| Violation::Length)?;
                known.may_take = known.may_take.checked_sub(len).ok_or(Violation::Credit)?;
                known.inbound.extend(bytes);
                Ok(Received::Changed { stream })
            }
            Message::Credit { stream, bytes } => {
                let Some(known) = self.known(stream)? else {
                    return Ok(Received::Nothing);
                };
                if known.state != State::Open {
                    return Err(Violation::OutOfTurn);
                }
                let more = known.may_send.checked_add(bytes).filter(|sum| *sum <= WINDOW);
                known.may_send = more.ok_or(Violation::Credit)?;
                Ok(Received::Changed { stream })
            }
            Message::Close { stream } => self.closed(stream),
        }
    }

    fn asked(&mut self, stream: u32, port: u16, host: &str) -> Result<Received, Violation> {
        if self.opens || stream <= self.newest {
            return Err(Violation::OutOfTurn);
        }
        if self.outgoing.len() >= FLOODED {
            return Err(Violation::Flood);
        }
        self.newest = stream;
        if self.streams.len() >= MAX_STREAMS {
            // The worker has closed streams whose last bytes are still on their way out: no fault of its.
            let refusal = Refusal::Busy;
            self.push(&Message::Refused { stream, refusal });
            return Ok(Received::Nothing);
        }
        self.streams.insert(stream, Stream::new());
        Ok(Received::Open {
            stream,
            host: host.to_owned(),
            port,
        })
    }

    fn answered(&mut self, stream: u32, state: State) -> Result<Received, Violation> {
        if !self.opens {
            return Err(Violation::OutOfTurn);
        }
        let Some(known) = self.known(stream)? else {
            return Ok(Received::Nothing);
        };
        if known.state != State::Asked {
            return Err(Violation::OutOfTurn);
        }
        known.state = state;
        Ok(Received::Changed { stream })
    }

    fn closed(&mut self, stream: u32) -> Result<Received, Violation> {
        let opens = self.opens;
        let Some(known) = self.known(stream)? else {
            return Ok(Received::Nothing);
        };
        match known.state {
            // Closed before it was dialled: only who asked can do that.
            State::Asked if opens => return Err(Violation::OutOfTurn),
            State::Asked | State::Open => known.state = State::Ended,
            State::Refused(_) | State::Ended => return Err(Violation::OutOfTurn),
        }
        Ok(Received::Changed { stream })
    }

    /// `None`: this end has closed it.
    fn known(&mut self, stream: u32) -> Result<Option<&mut Stream>, Violation> {
        if stream == 0 || stream > self.newest {
            return Err(Violation::OutOfTurn);
        }
        Ok(self.streams.get_mut(&stream))
    }

    /// Takes as many of `bytes` as may be sent now, and says how many. None: ask again after a message came for the stream, or
    /// after messages were taken by [`Self::next_message`].
    ///
    /// # Errors
    /// [`Gone`]
    pub fn write(&mut self, stream: u32, bytes: &[u8]) -> Result<usize, Gone> {
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
            let is_full = self.outgoing.len() >= FULL;
            let known = self.streams.get_mut(&stream).ok_or(Gone)?;
            match known.state {
                State::Open if !is_full => {}
                State::Open | State::Asked => break,
                State::Refused(_) | State::Ended => return Err(Gone),
            }
            let credit = usize::try_from(known.may_send).unwrap_or(usize::MAX);
            let portion = rest.get(..credit.min(MAX_DATA)).unwrap_or(rest);
            let Some(len) = u32::try_from(portion.len()).ok().filter(|len| *len > 0) else {
                break;
            };
            known.may_send = known.may_send.saturating_sub(len);
            self.push(&Message::Data { stream, bytes: portion });
            taken += portion.len();
        }
        Ok(taken)
    }

    /// Reads what was received into `out`, which is not empty.
    pub fn read(&mut self, stream: u32, out: &mut [u8]) -> Read {
        let Some(known) = self.streams.get_mut(&stream) else {
            return Read::End;
        };
        let read = std::io::Read::read(&mut known.inbound, out).unwrap_or(0);
        if read == 0 {
            return match known.state {
                State::Asked | State::Open => Read::Later,
                State::Refused(_) | State::Ended => Read::End,
            };
        }
        if known.inbound.is_empty() {
            // An idle stream keeps no memory.
            known.inbound = VecDeque::new();
        }
        let len = u32::try_from(read).unwrap_or(u32::MAX);
        known.owed = known.owed.saturating_add(len);
        if known.owed >= CREDIT_STEP && known.state == State::Open {
            let bytes = std::mem::take(&mut known.owed);
            known.may_take = known.may_take.saturating_add(bytes);
            self.push(&Message::Credit { stream, bytes });
        }
        Read::Bytes(read)
    }

    /// Whether the other end has closed the stream; what it sent before may still be unread.
    #[must_use]
    pub fn is_ended(&self, stream: u32) -> bool {
        let state = self.streams.get(&stream).map(|s| s.state);
        !matches!(state, Some(State::Asked | State::Open))
    }

    /// Closes a stream: what was written before goes out, what was not read is dropped.
    pub fn close(&mut self, stream: u32) {
        match self.streams.remove(&stream).map(|known| known.state) {
            // Who was asked to dial has not answered yet, and no answer but this ends what was never open.
            Some(State::Asked) if !self.opens => self.push(&Message::Refused {
                stream,
                refusal: Refusal::Unreachable,
            }),
            Some(State::Asked | State::Open) => self.push(&Message::Close { stream }),
            Some(State::Refused(_) | State::Ended) | None => {}
        }
    }

    /// The next message for the other end.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        self.outgoing.pop_front()
    }

    /// Whether so many messages wait to be sent that no more data is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.outgoing.len() >= FULL
    }

    /// How many streams there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    fn push(&mut self, message: &Message<'_>) {
        self.outgoing.push_back(message.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Streams, Streams, u32) {
        let (mut worker, mut host) = (Streams::opener(), Streams::dialer());
        let stream = worker.open("kms.example", 443).unwrap();
        carry(&mut worker, &mut host);
        host.opened(stream).unwrap();
        carry(&mut host, &mut worker);
        (worker, host, stream)
    }

    fn carry(from: &mut Streams, to: &mut Streams) {
        while let Some(message) = from.next_message() {
            to.receive(&message).unwrap();
        }
    }

    #[test]
    fn a_stream_carries_its_window_and_goes_on_when_it_is_read() {
        let (mut worker, mut host, stream) = pair();
        let window = usize::try_from(WINDOW).unwrap();
        let sent: Vec<u8> = (0..2 * window).map(|i| u8::try_from(i % 251).unwrap()).collect();
        assert_eq!(worker.write(stream, &sent), Ok(window));
        assert_eq!(worker.write(stream, &sent), Ok(0));
        carry(&mut worker, &mut host);
        let mut received = vec![0; window];
        assert_eq!(host.read(stream, &mut received), Read::Bytes(window));
        assert_eq!(host.read(stream, &mut received), Read::Later);
        assert_eq!(received, sent[..window]);
        carry(&mut host, &mut worker);
        assert_eq!(worker.write(stream, &sent[window..]), Ok(window));
        worker.close(stream);
        assert_eq!(worker.write(stream, &sent), Err(Gone));
        carry(&mut worker, &mut host);
        assert_eq!(host.read(stream, &mut received), Read::Bytes(window));
        assert_eq!(received, sent[window..]);
        assert_eq!(host.read(stream, &mut received), Read::End);
        assert_eq!(host.write(stream, b"late"), Err(Gone));
    }

    #[test]
    fn bytes_beyond_their_credit_are_refused() {
        let (_, mut host, stream) = pair();
        let data = Message::Data {
            stream,
            bytes: &[7; MAX_DATA],
        }
        .encode();
        for _ in 0..8 {
            assert_eq!(host.receive(&data), Ok(Received::Changed { stream }));
        }
        assert_eq!(host.receive(&data), Err(Violation::Credit));
        let (mut worker, _, stream) = pair();
        let credit = Message::Credit { stream, bytes: 1 }.encode();
        assert_eq!(worker.receive(&credit), Err(Violation::Credit));
    }

    #[test]
    fn what_is_out_of_turn_is_refused_and_what_is_late_is_not() {
        let out_of_turn = |end: &mut Streams, message: Message<'_>| {
            assert_eq!(end.receive(&message.encode()), Err(Violation::OutOfTurn), "{message:?}");
        };
        let (mut worker, mut host, stream) = pair();
        let open = |stream| Message::Open {
            stream,
            port: 443,
            host: "a",
        };
        // Again, an older one, and none at all; a host opens nothing, a worker dials nothing.
        out_of_turn(&mut host, open(stream));
        out_of_turn(&mut host, open(0));
        out_of_turn(&mut host, Message::Opened { stream });
        out_of_turn(&mut worker, open(stream + 1));
        out_of_turn(&mut worker, Message::Opened { stream });
        let refused = Message::Refused {
            stream,
            refusal: Refusal::Busy,
        };
        out_of_turn(&mut worker, refused);
        assert_eq!(host.open("a", 443), Err(OpenError::Exhausted));
        for unknown in [0, stream + 1] {
            out_of_turn(&mut host, Message::Close { stream: unknown });
            let bytes = b"x";
            out_of_turn(&mut host, Message::Data { stream: unknown, bytes });
            out_of_turn(&mut worker, Message::Opened { stream: unknown });
        }
        // Data before the host has dialled, and after a Close.
        let (mut worker, mut host, stream) = pair();
        let asked = worker.open("a", 1).unwrap();
        out_of_turn(
            &mut worker,
            Message::Data {
                stream: asked,
                bytes: b"x",
            },
        );
        out_of_turn(&mut worker, Message::Close { stream: asked });
        assert_eq!(worker.write(asked, b"x"), Ok(0));
        let close = Message::Close { stream };
        host.receive(&close.encode()).unwrap();
        out_of_turn(&mut host, close);
        out_of_turn(&mut host, Message::Data { stream, bytes: b"x" });
        // Who has closed a stream takes what the other end had sent meanwhile.
        worker.close(stream);
        for late in [
            close,
            Message::Data { stream, bytes: b"x" },
            Message::Credit { stream, bytes: 1 },
        ] {
            assert_eq!(worker.receive(&late.encode()), Ok(Received::Nothing));
        }
    }

    #[test]
    fn there_are_64_streams_and_no_more() {
        let (mut worker, mut host) = (Streams::opener(), Streams::dialer());
        let streams: Vec<u32> = (0..MAX_STREAMS).map(|_| worker.open("a", 443).unwrap()).collect();
        assert_eq!(worker.open("a", 443), Err(OpenError::Busy));
        carry(&mut worker, &mut host);
        // Closed here, and there not yet: the next is refused, nothing breaks.
        worker.close(streams[0]);
        let extra = worker.open("a", 443).unwrap();
        carry(&mut worker, &mut host);
        assert_eq!(host.len(), MAX_STREAMS);
        carry(&mut host, &mut worker);
        assert_eq!(worker.is_open(extra), Err(Refusal::Busy));
        assert_eq!(host.opened(streams[0]), Err(Gone));
        host.close(streams[0]);
        assert_eq!(host.len(), MAX_STREAMS - 1);
    }

    #[test]
    fn a_flood_of_requests_is_refused_and_never_stored() {
        let mut host = Streams::dialer();
        let mut flooded = false;
        for stream in 1..10_000 {
            let port = 443;
            let open = Message::Open {
                stream,
                port,
                host: "a",
            };
            match host.receive(&open.encode()) {
                Ok(Received::Open { stream, .. }) => host.refuse(stream, Refusal::NotAllowed),
                Ok(_) => {}
                Err(violation) => {
                    assert_eq!(violation, Violation::Flood);
                    flooded = true;
                    break;
                }
            }
        }
        assert!(flooded && host.outgoing.len() <= FLOODED);
    }

    #[test]
    fn small_writes_do_not_pile_up() {
        let (mut worker, _, stream) = pair();
        let mut taken = 0;
        while worker.write(stream, b"x") == Ok(1) {
            taken += 1;
        }
        assert_eq!(taken, FULL);
        worker.next_message();
        assert_eq!(worker.write(stream, b"x"), Ok(1));
    }
}
