//! Policies and domain documents: no input panics, every refusal says what to do, and what parses holds its rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealflow::acl::{Identity, Principal};
use sealflow::clock::UnixMillis;
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
        if let Some(hint) = &rule.hint {
            let column = &policy.columns[hint.column];
            assert!(column.hint.is_none() && column.domain().is_none());
            assert_eq!(rule.label, format!("{}{}", column.label, hint.derivation.suffix()));
        }
    }
    for (name, key) in &policy.keys {
        assert_eq!(KeyTemplate::parse(name).as_ref(), Ok(&key.name));
        assert!(key.name.is_template() || policy.key_by_name(name) == Some(key));
    }
    for acl in policy.acls.values() {
        for principal in acl.allow.iter().map(|grant| &grant.principal).chain(&acl.deny) {
            let text = principal.to_string();
            assert_eq!(text.parse::<Principal>().as_ref(), Ok(principal));
            assert!(principal.covers(principal) && principal.overlaps(principal));
            let Ok(who) = Identity::from_arn(&text) else { continue };
            assert!(principal.names(&who));
            // A later moment, or somebody more who is denied, opens nothing.
            let now = acl.decide(&who, None, UnixMillis(0));
            assert!(now.is_allowed() || !acl.decide(&who, None, UnixMillis(u64::MAX)).is_allowed());
            assert!(!acl.deny.contains(principal) || !now.is_allowed());
        }
    }
    let labels: usize = policy.groups().iter().map(|group| group.labels.len()).sum();
    let randomised = policy.columns.iter().filter(|rule| rule.domain().is_none()).count();
    assert_eq!(labels, randomised);
});
