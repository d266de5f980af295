//! Finds partitions that the group has given to nobody, and has the group balanced again.
//!
//! A cooperative rebalance (KIP-429) takes partitions away in one round and gives them to others in the next, for which
//! the member asks that gave them up. If that member dies in between and is back within its session, the coordinator
//! takes it for the static member that it was (KIP-345), hands it the assignment of the first round, and there is no
//! second one: what was taken away is read by nobody until a member happens to join or to leave. Only a process that
//! has just started can be that member, so each looks at the group after its start, until it has seen everything given
//! to somebody.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::groups::GroupInfo;

use crate::config::KafkaConfig;
use crate::error::RunError;
use crate::properties::source_observer;
use crate::topics::{ObserverClient, ask, observer};

/// Between two looks: longer than members need from one round of a rebalance to the next.
const INTERVAL: Duration = Duration::from_secs(3);
/// After a look that was not answered, as when a broker is away.
const INTERVAL_AFTER_ERROR: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(5);
/// How often in a row partitions are found with nobody before the group is balanced again.
const SIGHTINGS: u32 = 3;
/// How often a process has the group balanced again: what stays with nobody even so is no matter of a round that was lost,
/// and a group that is balanced for ever reads nothing.
const ATTEMPTS: u32 = 3;
/// How soon the end of the run is noticed.
const NAP: Duration = Duration::from_millis(200);

/// A partition by topic and number.
type Owned = (String, i32);

/// Looks at `group` until each of what `partitions` says now is somebody's, or the run is over, and calls `rejoin` when
/// some stay without anybody. Blocks, so it wants a thread of its own.
pub(crate) fn look(
    config: &KafkaConfig,
    group: &str,
    partitions: impl Fn() -> BTreeSet<Owned>,
    is_over: impl Fn() -> bool,
    rejoin: impl Fn(),
) {
    let observer = match observer(&source_observer(config), "source.kafka.properties") {
        Ok(observer) => observer,
        Err(error) => return tracing::warn!(error = %error, "the group cannot be looked at"),
    };
    let (mut sightings, mut attempts) = (0, 0);
    let mut interval = INTERVAL;
    while nap(interval, &is_over) {
        interval = INTERVAL;
        let given = match given(&observer, group) {
            Ok(given) => given,
            Err(error) => {
                tracing::debug!(error = %error, "the group cannot be looked at now");
                interval = INTERVAL_AFTER_ERROR;
                continue;
            }
        };
        // None while a rebalance is under way, which ends with somebody for each.
        let Some(given) = given else {
            sightings = 0;
            continue;
        };
        let unread = partitions().difference(&given).count();
        if unread == 0 {
            return;
        }
        sightings += 1;
        if sightings < SIGHTINGS {
            continue;
        }
        if attempts == ATTEMPTS {
            return tracing::warn!(
                partitions = unread,
                "partitions stay with nobody: the group is not looked at any more"
            );
        }
        tracing::warn!(
            partitions = unread,
            "partitions that the group gave to nobody: it is balanced again"
        );
        rejoin();
        (sightings, attempts) = (0, attempts + 1);
    }
}

/// Waits; whether the run goes on.
fn nap(interval: Duration, is_over: impl Fn() -> bool) -> bool {
    let until = Instant::now() + interval;
    while Instant::now() < until && !is_over() {
        std::thread::sleep(NAP);
    }
    !is_over()
}

/// What the members of a group that is at rest have been given.
fn given(observer: &ObserverClient, group: &str) -> Result<Option<BTreeSet<Owned>>, RunError> {
    ask(observer, || {
        let list = observer.fetch_group_list(Some(group), PATIENCE)?;
        let found = list.groups().iter().find(|found| found.name() == group);
        found
            .filter(|found| found.state() == "Stable")
            .map(of_members)
            .transpose()
    })
}

fn of_members(group: &GroupInfo) -> Result<BTreeSet<Owned>, KafkaError> {
    let mut given = BTreeSet::new();
    for member in group.members() {
        // A member that joined a moment ago has been given nothing yet.
        let bytes = member.assignment().unwrap_or_default();
        given.extend(decode(bytes).ok_or(KafkaError::Canceled)?);
    }
    Ok(given)
}

/// An assignment of the consumer protocol, any version: `version i16, [topic string16, [partition i32]]`, then what
/// does not matter here (Kafka protocol guide, ConsumerProtocolAssignment). No bytes are no partitions.
fn decode(bytes: &[u8]) -> Option<Vec<Owned>> {
    let mut owned = Vec::new();
    if bytes.is_empty() {
        return Some(owned);
    }
    let (_version, mut rest) = bytes.split_first_chunk::<2>()?;
    let topics = count(&mut rest)?;
    for _ in 0..topics {
        let (length, more) = rest.split_first_chunk::<2>()?;
        let (topic, more) = more.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let topic = str::from_utf8(topic).ok()?;
        rest = more;
        let partitions = count(&mut rest)?;
        for _ in 0..partitions {
            let (partition, more) = rest.split_first_chunk::<4>()?;
            owned.push((topic.to_owned(), i32::from_be_bytes(*partition)));
            rest = more;
        }
    }
    Some(owned)
}

/// The length of an array; each of its elements takes bytes, so a length that lies ends with them.
fn count(rest: &mut &[u8]) -> Option<u32> {
    let (length, more) = rest.split_first_chunk::<4>()?;
    *rest = more;
    u32::try_from(i32::from_be_bytes(*length)).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    #[test]
    fn an_assignment_is_read_to_the_last_partition_and_a_shorter_one_is_not() {
        let mut bytes = vec![0, 3, 0, 0, 0, 2];
        for (topic, partitions) in [("orders", &[0_i32, 7][..]), ("payments", &[2])] {
            bytes.extend_from_slice(&u16::try_from(topic.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(topic.as_bytes());
            bytes.extend_from_slice(&u32::try_from(partitions.len()).unwrap().to_be_bytes());
            partitions
                .iter()
                .for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
        }
        let wanted = [("orders", 0), ("orders", 7), ("payments", 2)].map(|(topic, number)| (topic.to_owned(), number));
        assert_eq!(decode(&bytes).unwrap(), wanted);
        for end in 1..bytes.len() {
            assert!(decode(&bytes[..end]).is_none(), "{end}");
        }
        // User data follows, of which nothing is read.
        bytes.extend_from_slice(&[0xff; 4]);
        assert_eq!(decode(&bytes).unwrap(), wanted);
        assert_eq!(decode(&[]).unwrap(), []);
        assert!(decode(&[0, 0, 0xff, 0xff, 0xff, 0xff]).is_none());
    }
}
