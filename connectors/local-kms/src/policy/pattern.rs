//! Wildcards of the policy language.

/// Each of the six parts of an ARN by itself: no wildcard stands for a colon, but one in the last part does for a slash.
pub(super) fn arn_like(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<&str>, Vec<&str>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    patterns.len() == 6 && parts.len() == 6 && patterns.iter().zip(&parts).all(|(pattern, part)| like(pattern, part))
}

/// Whether `text` matches `pattern`, where `*` is any run of characters and `?` any one.
pub(super) fn like(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how much of the text it has taken: the only place to go back to.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_pattern_without_wildcards_matches_only_itself(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(like(&a, &b), a == b);
            let (both, start, end) = (format!("{a}{b}"), format!("{a}*"), format!("*{b}"));
            prop_assert!(like(&start, &both) && like(&end, &both));
        }
    }
}
