//! Records and what of them is sealed.

use sealflow::pipeline::Record;
use sealflow_benchmarks::engine::record;

/// A column as peers see it: members on the way, and the member of each element where the way ends in a list.
pub(super) struct Path {
    pub(super) members: Vec<String>,
    pub(super) each: Option<String>,
}

impl Path {
    fn of(text: &str) -> Self {
        let (members, each) = text
            .split_once("[*].")
            .map_or((text, None), |(list, each)| (list, Some(each)));
        Self {
            members: members.split('.').map(str::to_owned).collect(),
            each: each.map(str::to_owned),
        }
    }
}

/// Records and the columns to seal.
pub(super) struct Data {
    pub(super) records: Vec<Record>,
    pub(super) columns: Vec<String>,
}

impl Data {
    /// Sample records that are payments: all of these have all four columns.
    pub(super) fn payments(count: usize) -> Self {
        let payments = sealflow_samples::generate(3, u64::MAX).filter(|sample| sample.n % 5 < 3);
        Self {
            records: payments
                .zip(0..)
                .map(|(sample, n)| record(n, sample.value))
                .take(count)
                .collect(),
            columns: sealflow_samples::SEALED_PATHS.map(str::to_owned).into(),
        }
    }

    /// Records of about `bytes` bytes, with `fields` of 20 letters to seal spread evenly over it: whoever stops reading behind
    /// the last of them has read most.
    pub(super) fn spread(count: usize, fields: usize, bytes: usize) -> Self {
        let value = |n: usize| {
            let mut json = format!(r#"{{"id":"r-{n:010}""#);
            let mut other = 0;
            for field in 0..fields {
                // Each field is 31 bytes long, and what nobody asked for 45.
                while json.len() + 45 + 31 * (fields - field) < bytes * (field + 1) / fields {
                    json += &format!(
                        r#","other_{other:05}":"nothing to seal {:06}""#,
                        (n + other) % 1_000_000
                    );
                    other += 1;
                }
                json += &format!(r#","f{field}":"value {n:010} of it""#);
            }
            json + "}"
        };
        Self {
            records: (0..count)
                .zip(0..)
                .map(|(n, offset)| record(offset, value(n)))
                .collect(),
            columns: (0..fields).map(|field| format!("f{field}")).collect(),
        }
    }

    pub(super) fn paths(&self) -> Vec<Path> {
        self.columns.iter().map(|column| Path::of(column)).collect()
    }

    /// Bytes of all records.
    pub(super) fn bytes(&self) -> usize {
        self.values().map(<[u8]>::len).sum()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &[u8]> {
        self.records.iter().filter_map(|record| record.value.as_deref())
    }

    /// A policy that seals the columns and asks nothing more: no padding, no binding to rows, which peers do not do.
    pub(super) fn policy(&self) -> String {
        let columns = self.columns.iter();
        let columns: String = columns
            .map(|path| format!("  - {{ path: \"{path}\", key: default, acl: readers }}\n"))
            .collect();
        format!(
            r#"dataset: payments
version: 1
keys:
  default: {{ arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" }}
acls:
  readers: {{ allow: ["arn:aws:iam::111122223333:role/readers"] }}
columns:
{columns}"#
        )
    }
}
