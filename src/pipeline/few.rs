//! A map for what there are mostly a few of in a batch.

use std::collections::HashMap;
use std::hash::Hash;

/// Keys that are compared, each with the one looked for, before that is hashed.
const FIRST: usize = 16;

/// Compares a key with the first few before it hashes it: to hash one takes as long as to compare it with all of them.
pub(super) struct Few<K, V> {
    first: Vec<(K, V)>,
    rest: HashMap<K, V>,
}

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self {
            first: Vec::new(),
            rest: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash, V> Few<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        match self.first.iter().find(|(known, _)| known == key) {
            Some((_, value)) => Some(value),
            None if self.rest.is_empty() => None,
            None => self.rest.get(key),
        }
    }

    /// Adds a key that is not there.
    pub(super) fn insert(&mut self, key: K, value: V) {
        debug_assert!(self.get(&key).is_none());
        if self.first.len() < FIRST {
            self.first.push((key, value));
        } else {
            self.rest.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_all_others_are_found() {
        let mut few = Few::default();
        for n in 0..3 * FIRST {
            assert_eq!(few.get(&n), None);
            few.insert(n, n * 2);
            for known in 0..=n {
                assert_eq!(few.get(&known), Some(&(known * 2)));
            }
        }
    }
}
