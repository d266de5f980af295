//! Full ARNs of KMS keys, checked for form.

/// Why a text is no ARN that a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArnError {
    /// `arn:…:alias/…`.
    #[error("an alias ARN, but a policy names keys themselves")]
    Alias,
    /// A bare key id or alias name.
    #[error("not a full ARN, expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID")]
    NotFull,
    /// Another service's ARN.
    #[error("not the ARN of a KMS key, expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID")]
    NotKms,
    /// A part that is empty or has characters that it cannot have.
    #[error("the {part} of the ARN is malformed, expected arn:PARTITION:kms:REGION:ACCOUNT:key/ID")]
    Malformed {
        /// Which part.
        part: &'static str,
    },
}

impl ArnError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::Alias => {
                "write the ARN of the key that the alias points to (`aws kms describe-key`): an alias can be moved \
                 to another key by whoever may call UpdateAlias, without the policy's owner signing it"
            }
            _ => {
                "copy the key's ARN from the KMS, for example arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
            }
        }
    }
}

/// Checks that `text` is the full ARN of one KMS key.
///
/// # Errors
/// [`ArnError`] with the part that is wrong.
pub fn check_key_arn(text: &str) -> Result<(), ArnError> {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [arn, partition, service, region, account, resource] = parts[..] else {
        return Err(if text.starts_with("alias/") {
            ArnError::Alias
        } else {
            ArnError::NotFull
        });
    };
    if arn != "arn" {
        return Err(ArnError::NotFull);
    }
    if service != "kms" {
        return Err(ArnError::NotKms);
    }
    if !is_word(partition) {
        return Err(ArnError::Malformed { part: "partition" });
    }
    if !is_word(region) {
        return Err(ArnError::Malformed { part: "region" });
    }
    if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ArnError::Malformed {
            part: "account (12 digits)",
        });
    }
    if resource.starts_with("alias/") {
        return Err(ArnError::Alias);
    }
    let Some(id) = resource.strip_prefix("key/") else {
        return Err(ArnError::NotKms);
    };
    let is_id =
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if !is_id {
        return Err(ArnError::Malformed { part: "key id" });
    }
    Ok(())
}

/// `[a-z0-9-]{1,32}`: partitions and regions.
fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_key_arns_are_taken() {
        for text in [
            "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab",
            "arn:aws:kms:local:000000000000:key/demo",
        ] {
            assert_eq!(check_key_arn(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn alias_arns_are_refused_with_an_explanation() {
        let error = check_key_arn("arn:aws:kms:eu-central-1:111122223333:alias/payments");
        assert_eq!(error, Err(ArnError::Alias));
        assert!(ArnError::Alias.help().contains("UpdateAlias"));
        assert_eq!(check_key_arn("alias/payments"), Err(ArnError::Alias));
    }

    #[test]
    fn anything_else_names_the_part_that_is_wrong() {
        let cases = [
            ("1234abcd-12ab-34cd-56ef-1234567890ab", ArnError::NotFull),
            ("arn:aws:s3:eu-central-1:111122223333:key/x", ArnError::NotKms),
            ("arn:aws:kms:eu-central-1:111122223333:grant/x", ArnError::NotKms),
            (
                "arn:*:kms:eu-central-1:111122223333:key/x",
                ArnError::Malformed { part: "partition" },
            ),
            (
                "arn:aws:kms:*:111122223333:key/x",
                ArnError::Malformed { part: "region" },
            ),
            (
                "arn:aws:kms:eu-central-1:11112222333:key/x",
                ArnError::Malformed {
                    part: "account (12 digits)",
                },
            ),
            (
                "arn:aws:kms:eu-central-1:111122223333:key/*",
                ArnError::Malformed { part: "key id" },
            ),
            (
                "arn:aws:kms:eu-central-1:111122223333:key/",
                ArnError::Malformed { part: "key id" },
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(check_key_arn(text), Err(expected), "{text}");
        }
    }
}
