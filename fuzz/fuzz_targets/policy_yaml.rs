//! Policies and domain documents: no input panics, every refusal says what to do, and what parses holds its rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::policy::{ColumnPath, DomainDocument, KeyTemplate, Policy};

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = DomainDocument::parse(bytes) {
        assert!(!error.help().is_empty());
    }
    let policy = match Policy::parse(bytes) {
        Ok(policy) => policy,
        Err(error) => {
            assert!(!error.help().is_empty() && !error.to_string().is_empty());
            return;
        }
    };
    for rule in &policy.columns {
        let path = rule.path.to_string();
        assert_eq!(path.parse::<ColumnPath>().as_ref(), Ok(&rule.path));
    }
    for (name, key) in &policy.keys {
        assert_eq!(KeyTemplate::parse(name).as_ref(), Ok(&key.name));
        assert!(key.name.is_template() || policy.key_by_name(name) == Some(key));
    }
    let labels: usize = policy.groups().iter().map(|group| group.labels.len()).sum();
    let randomised = policy.columns.iter().filter(|rule| rule.domain().is_none()).count();
    assert_eq!(labels, randomised);
});
