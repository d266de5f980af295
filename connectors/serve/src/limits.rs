//! Who may ask how often: token buckets by principal and by peer address, and places for requests under way.
//!
//! Bounded in memory: buckets that are full again are forgotten, and beyond a number of others all newcomers share one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sealflow::clock::{Clock, Steady};

/// The most buckets that are kept of one kind.
const MOST_BUCKETS: usize = 16_384;
/// The bucket that newcomers share when there are that many. No principal and no address is spelled so.
const OTHERS: &str = "";

/// Token buckets: `burst` at once, `rate` a second in the long run.
#[derive(Debug)]
pub(crate) struct Buckets {
    rate: f64,
    burst: f64,
    clock: Arc<dyn Clock>,
    kept: Mutex<HashMap<String, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Steady,
}

impl Buckets {
    pub(crate) fn new(rate: u32, burst: u32, clock: Arc<dyn Clock>) -> Self {
        Self {
            rate: f64::from(rate),
            burst: f64::from(burst),
            clock,
            kept: Mutex::default(),
        }
    }

    /// Takes `n`, or says how long to wait. More than a burst is taken when the bucket is full, and leaves a debt.
    pub(crate) fn take(&self, who: &str, n: usize) -> Result<(), Duration> {
        let n = tokens(n);
        self.with(who, |bucket, rate, burst| {
            let needed = n.min(burst);
            if bucket.level >= needed {
                bucket.level -= n;
                return Ok(());
            }
            Err(Duration::from_secs_f64(
                ((needed - bucket.level) / rate).clamp(0.0, 3_600.0),
            ))
        })
    }

    /// Takes `n` that were used already, into debt if need be.
    pub(crate) fn charge(&self, who: &str, n: usize) {
        self.with(who, |bucket, _, _| bucket.level -= tokens(n));
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, who: &str) {
        self.with(who, |bucket, _, burst| bucket.level = (bucket.level + 1.0).min(burst));
    }

    fn with<T>(&self, who: &str, act: impl FnOnce(&mut Bucket, f64, f64) -> T) -> T {
        let (now, rate, burst) = (self.clock.steady(), self.rate, self.burst);
        let filled = |bucket: &Bucket| (bucket.level + now.since(bucket.at).as_secs_f64() * rate).min(burst);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains_key(who) && kept.len() >= MOST_BUCKETS {
            kept.retain(|_, bucket| filled(bucket) < burst);
        }
        let who = if kept.contains_key(who) || kept.len() < MOST_BUCKETS {
            who
        } else {
            OTHERS
        };
        let bucket = kept.entry(who.to_owned()).or_insert(Bucket { level: burst, at: now });
        *bucket = Bucket {
            level: filled(bucket),
            at: now,
        };
        act(bucket, rate, burst)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.lock().unwrap().len()
    }
}

/// Counts of requests are far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn tokens(n: usize) -> f64 {
    n as f64
}

/// The name of a peer's bucket: an IPv4 address, or the /64 of an IPv6 one, which one host may have as a whole.
pub(crate) fn of_peer(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

/// Places for requests under way, some of them for one principal.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    taken: Mutex<HashMap<String, usize>>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    who: String,
}

impl Places {
    pub(crate) fn new(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most: usize::try_from(most).unwrap_or(usize::MAX),
            taken: Mutex::default(),
        })
    }

    /// A place for one more of `who`, if there is one.
    pub(crate) fn take(self: &Arc<Self>, who: &str) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(who.to_owned()).or_default();
        // Nobody who has none is refused, so that no entry of zero stays.
        if *count >= self.most.max(1) {
            return None;
        }
        *count += 1;
        Some(Place {
            places: Arc::clone(self),
            who: who.to_owned(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use sealflow::clock::ManualClock;

    use super::*;

    fn buckets(rate: u32, burst: u32) -> (Buckets, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::default());
        (Buckets::new(rate, burst, clock.clone()), clock)
    }

    #[test]
    fn one_bucket_that_is_empty_empties_no_other_and_fills_again() {
        let (buckets, clock) = buckets(2, 3);
        for _ in 0..3 {
            assert_eq!(buckets.take("a", 1), Ok(()));
        }
        assert_eq!(buckets.take("a", 1), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take("b", 3), Ok(()));
        clock.advance(Duration::from_millis(500));
        assert_eq!(buckets.take("a", 1), Ok(()));
        buckets.give_back("a");
        assert_eq!(buckets.take("a", 1), Ok(()));
        assert!(buckets.take("a", 1).is_err());
        clock.advance(Duration::from_secs(3_600));
        assert!(buckets.take("a", 3).is_ok() && buckets.take("a", 1).is_err());
    }

    #[test]
    fn more_than_a_burst_is_let_through_once_and_paid_for_afterwards() {
        let (buckets, clock) = buckets(10, 10);
        assert_eq!(buckets.take("a", 30), Ok(()));
        assert_eq!(buckets.take("a", 1), Err(Duration::from_millis(2_100)));
        clock.advance(Duration::from_millis(2_100));
        assert_eq!(buckets.take("a", 1), Ok(()));
        buckets.charge("a", 50);
        assert_eq!(buckets.take("a", 1), Err(Duration::from_millis(5_100)));
    }

    #[test]
    fn memory_is_bounded_and_strangers_in_numbers_take_nothing_from_those_who_were_there() {
        let (buckets, clock) = buckets(1, 2);
        buckets.take("known", 1).unwrap();
        for n in 0..MOST_BUCKETS * 2 {
            let _ = buckets.take(&n.to_string(), 1);
        }
        assert!(buckets.len() <= MOST_BUCKETS + 1);
        assert_eq!(buckets.take("known", 1), Ok(()));
        // Whoever rested is forgotten first.
        clock.advance(Duration::from_secs(10));
        assert_eq!(buckets.take("new", 2), Ok(()));
        assert!(buckets.len() <= 2);
    }

    #[test]
    fn an_address_of_ipv6_is_its_network_and_a_mapped_one_is_ipv4() {
        let of = |text: &str| of_peer(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn a_place_is_given_back_and_one_principal_takes_no_others() {
        let places = Places::new(2);
        let (first, _second) = (places.take("a").unwrap(), places.take("a").unwrap());
        assert!(places.take("a").is_none() && places.take("b").is_some());
        drop(first);
        assert!(places.take("a").is_some());
        assert_eq!(places.taken.lock().unwrap().len(), 1);
    }
}
