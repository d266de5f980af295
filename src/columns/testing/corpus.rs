//! The index of the leak corpus (`tests/leak-corpus/index.tsv`): hostile spellings, and what must become of them.

/// The text that every case of the corpus hides.
pub const CORPUS_CANARY: &str = "canary-5d1f0c7b";
/// The number that stands for it in cases about numbers.
pub const CORPUS_CANARY_NUMBER: &str = "4929718264105373";

/// One record of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// File name beside the index.
    pub file: String,
    /// Paths of the policy's columns.
    pub columns: Vec<String>,
    /// What must happen.
    pub expect: Expect,
    /// What the case is about.
    pub why: String,
}

/// What must become of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// So many values are sealed, and no canary is left.
    Sealed(usize),
    /// A dead letter with that code.
    DeadLetter(String),
    /// So many values are sealed, and the canary stays: no policy looks where it stands.
    Clear(usize),
}

/// The cases of an index, or the first line that is none.
pub fn parse_index(text: &str) -> Result<Vec<Case>, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| parse_line(line).ok_or(line)).collect()
}

fn parse_line(line: &str) -> Option<Case> {
    let mut cells = line.split('\t');
    let (file, columns, expect, why) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
    let (kind, what) = expect.split_once(' ')?;
    let expect = match kind {
        "sealed" => Expect::Sealed(what.parse().ok()?),
        "dead" => Expect::DeadLetter(what.to_owned()),
        "clear" => Expect::Clear(what.parse().ok()?),
        _ => return None,
    };
    let columns = columns.split(' ').map(str::to_owned).collect();
    Some(Case {
        file: file.to_owned(),
        columns,
        expect,
        why: why.to_owned(),
    })
}
