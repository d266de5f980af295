//! Documents by name, and one question at a time about each: callers of one name wait for one answer, callers of others for
//! nothing, and what failed is answered from memory for a moment.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::source::PolicySourceError;
use crate::clock::Steady;

/// How long a failure is answered from memory.
pub(super) const HOLD_FAILED: Duration = Duration::from_secs(1);
/// The most questions that are remembered. Names may come from strangers.
const MOST_QUESTIONS: usize = 1_024;

/// What is known by name.
pub(super) struct Asked<K, T> {
    /// Only what was believed, so signers bound it.
    kept: Mutex<HashMap<K, Kept<T>>>,
    questions: Mutex<HashMap<K, Arc<Question>>>,
}

/// A document, and when it was read.
pub(super) struct Kept<T> {
    pub(super) read: Steady,
    pub(super) document: Arc<T>,
}

/// Locked while somebody asks, and what failed of late.
pub(super) type Question = tokio::sync::Mutex<Failures>;

/// What failed of late.
#[derive(Debug, Default)]
pub(super) struct Failures {
    /// The document could not be had.
    pub(super) document: Failed,
    /// Its lease does not hold.
    pub(super) lease: Failed,
}

/// A failure that is remembered.
#[derive(Debug, Default)]
pub(super) struct Failed(Option<(Steady, PolicySourceError)>);

impl Failed {
    /// The failure, if it is not older than [`HOLD_FAILED`].
    pub(super) fn recent(&self, now: Steady) -> Option<PolicySourceError> {
        let (at, error) = self.0.as_ref()?;
        (now.since(*at) < HOLD_FAILED).then(|| error.clone())
    }

    /// Remembers what came of asking.
    pub(super) fn note<T>(&mut self, answer: &Result<T, PolicySourceError>, now: Steady) {
        self.0 = answer.as_ref().err().map(|error| (now, error.clone()));
    }
}

impl<K, T> Default for Asked<K, T> {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            questions: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, T> Asked<K, T> {
    /// The document of that name that was read last.
    pub(super) fn kept<Q: Eq + Hash + ?Sized>(&self, name: &Q) -> Option<Kept<T>>
    where
        K: Borrow<Q>,
    {
        lock(&self.kept).get(name).cloned()
    }

    /// Keeps a document that was believed.
    pub(super) fn keep(&self, name: K, read: Steady, document: &Arc<T>) {
        let document = Arc::clone(document);
        lock(&self.kept).insert(name, Kept { read, document });
    }

    /// The question about that name. Whoever holds its lock asks; then look first whether it was answered meanwhile.
    pub(super) fn question(&self, name: K, now: Steady) -> Arc<Question> {
        let mut questions = lock(&self.questions);
        if let Some(question) = questions.get(&name) {
            return Arc::clone(question);
        }
        if questions.len() >= MOST_QUESTIONS {
            // Only this map hands questions out, so what it holds alone nobody asks.
            questions.retain(|_, question| Arc::strong_count(question) > 1 || failed_of_late(question, now));
        }
        if questions.len() >= MOST_QUESTIONS {
            questions.retain(|_, question| Arc::strong_count(question) > 1);
        }
        let question = Arc::default();
        questions.insert(name, Arc::clone(&question));
        question
    }
}

fn failed_of_late(question: &Question, now: Steady) -> bool {
    let failures = question.try_lock();
    failures.is_ok_and(|failures| failures.document.recent(now).is_some() || failures.lease.recent(now).is_some())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self {
            read: self.read,
            document: Arc::clone(&self.document),
        }
    }
}

impl<K, T> fmt::Debug for Asked<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Result<(), PolicySourceError> {
        Err(PolicySourceError::Missing { what: "x".to_owned() })
    }

    #[test]
    fn a_failure_is_remembered_for_a_second_and_an_answer_ends_it() {
        let mut failed = Failed::default();
        failed.note(&missing(), Steady(5_000));
        assert_eq!(failed.recent(Steady(5_999)), missing().err());
        assert_eq!(failed.recent(Steady(6_000)), None);
        failed.note(&missing(), Steady(7_000));
        failed.note(&Ok(()), Steady(7_001));
        assert_eq!(failed.recent(Steady(7_002)), None);
    }

    #[test]
    fn names_of_strangers_take_bounded_memory_and_no_question_that_is_being_asked() {
        let asked: Asked<String, ()> = Asked::default();
        let asking = asked.question("asking".to_owned(), Steady(0));
        let failed = asked.question("failed".to_owned(), Steady(0));
        failed.try_lock().unwrap().document.note(&missing(), Steady(0));
        drop(failed);
        for n in 0..10 * MOST_QUESTIONS {
            asked.question(n.to_string(), Steady(0));
            assert!(lock(&asked.questions).len() <= MOST_QUESTIONS);
        }
        assert!(Arc::ptr_eq(&asking, &asked.question("asking".to_owned(), Steady(0))));
        let failed = asked.question("failed".to_owned(), Steady(0));
        let remembered = failed.try_lock().unwrap().document.recent(Steady(0));
        assert_eq!(remembered, missing().err(), "those that did not fail go first");
    }
}
