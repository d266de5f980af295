//! Ramdisks: archives in cpio's "newc" format, which the Linux kernel unpacks at boot. Writes only, and the same entries are
//! always the same bytes.
//!
//! The format is that of the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Owner and group are root,
//! times are zero, inode numbers count from one, entries are sorted by path, and nothing is compressed: so nothing of the machine
//! that writes an archive is in it, and no compressor's version either.

use std::collections::BTreeMap;

/// The archive's size is a multiple of this, as cpio's own is: several archives behind each other then start aligned.
const BLOCK: usize = 512;
/// Longest path, without the zero that ends it. The kernel's own limit is `PATH_MAX`, 4,096 bytes with the zero.
const LONGEST_PATH: usize = 4_095;

/// What is in a ramdisk, by path. Folders that lead to an entry are made with it.
#[derive(Debug, Default)]
pub struct Ramdisk {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Folder,
    File { executable: bool, content: Vec<u8> },
    CharacterDevice { major: u32, minor: u32 },
}

impl Ramdisk {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an empty folder, mode 0755.
    ///
    /// # Errors
    /// [`RamdiskError`]
    pub fn folder(&mut self, path: &str) -> Result<(), RamdiskError> {
        self.put(path, Entry::Folder)
    }

    /// Adds a file that everybody may read: mode 0644, or 0755 for programs.
    ///
    /// # Errors
    /// [`RamdiskError`]
    pub fn file(&mut self, path: &str, content: Vec<u8>, executable: bool) -> Result<(), RamdiskError> {
        // Sizes are eight hexadecimal digits.
        if u32::try_from(content.len()).is_err() {
            return Err(RamdiskError::TooLarge { path: path.to_owned() });
        }
        self.put(path, Entry::File { executable, content })
    }

    /// Adds a character device, mode 0600.
    ///
    /// # Errors
    /// [`RamdiskError`]
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> Result<(), RamdiskError> {
        self.put(path, Entry::CharacterDevice { major, minor })
    }

    fn put(&mut self, path: &str, entry: Entry) -> Result<(), RamdiskError> {
        let proper = !path.is_empty()
            && path.len() <= LONGEST_PATH
            && !path.contains('\0')
            && path
                .split('/')
                .all(|name| !name.is_empty() && name != "." && name != "..");
        if !proper {
            return Err(RamdiskError::Path { path: path.to_owned() });
        }
        for (at, _) in path.match_indices('/') {
            let parent = self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder);
            if !matches!(parent, Entry::Folder) {
                return Err(RamdiskError::Twice {
                    path: path[..at].to_owned(),
                });
            }
        }
        match self.entries.get(path) {
            None => {
                self.entries.insert(path.to_owned(), entry);
                Ok(())
            }
            Some(Entry::Folder) if matches!(entry, Entry::Folder) => Ok(()),
            Some(_) => Err(RamdiskError::Twice { path: path.to_owned() }),
        }
    }

    /// The archive.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        // A folder sorts before what is in it, since its path is a prefix.
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            match entry {
                Entry::Folder => append(&mut archive, number, path, 0o040_755, (0, 0), &[]),
                Entry::File {
                    executable: true,
                    content,
                } => {
                    append(&mut archive, number, path, 0o100_755, (0, 0), content);
                }
                Entry::File {
                    executable: false,
                    content,
                } => {
                    append(&mut archive, number, path, 0o100_644, (0, 0), content);
                }
                Entry::CharacterDevice { major, minor } => {
                    append(&mut archive, number, path, 0o020_600, (*major, *minor), &[]);
                }
            }
        }
        append(&mut archive, 0, "TRAILER!!!", 0, (0, 0), &[]);
        pad(&mut archive, BLOCK);
        archive
    }
}

/// One member: a header of thirteen numbers of eight hexadecimal digits behind a magic number, the path, the content.
fn append(archive: &mut Vec<u8>, inode: u32, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    // Both were checked when the entry was put.
    let size = content.len() as u32;
    let path_size = path.len() as u32 + 1;
    // inode, mode, user, group, links, time, size, major and minor of the file system and of the device, path's size, check.
    let numbers = [
        inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, path_size, 0,
    ];
    archive.extend_from_slice(b"070701");
    for number in numbers {
        archive.extend_from_slice(format!("{number:08x}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    pad(archive, 4);
    archive.extend_from_slice(content);
    pad(archive, 4);
}

fn pad(archive: &mut Vec<u8>, multiple: usize) {
    archive.resize(archive.len().next_multiple_of(multiple), 0);
}

/// What cannot be put into a ramdisk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RamdiskError {
    /// Not a relative path without `.` and `..`.
    #[error("no path for a ramdisk: {path:?}")]
    Path {
        /// The path.
        path: String,
    },
    /// Two entries of one path.
    #[error("the ramdisk has this path already: {path:?}")]
    Twice {
        /// The path.
        path: String,
    },
    /// 4 GiB or more.
    #[error("4 GiB or more do not fit into a ramdisk: {path:?}")]
    TooLarge {
        /// The path.
        path: String,
    },
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_archive_is_these_bytes() {
        let mut ramdisk = Ramdisk::new();
        ramdisk.file("bin/run", b"#!".to_vec(), true).unwrap();
        let expected = [
            "070701000000010000",
            "41ed0000000000000000000000020000000000000000",
            "00000000000000000000000000000000",
            "0000000400000000bin\0\0\0",
            "070701000000020000",
            "81ed0000000000000000000000010000000000000002",
            "00000000000000000000000000000000",
            "0000000800000000bin/run\0\0\0#!\0\0",
            "070701000000000000",
            "00000000000000000000000000010000000000000000",
            "00000000000000000000000000000000",
            "0000000b00000000TRAILER!!!\0\0\0\0",
        ]
        .concat();
        let archive = ramdisk.to_bytes();
        assert_eq!(archive.len(), BLOCK);
        assert_eq!(
            String::from_utf8_lossy(archive.trim_ascii_end()).trim_end_matches('\0'),
            expected.trim_end_matches('\0')
        );
    }

    /// A reader that shares no code with the writer.
    fn read(mut archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut members = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let number = |index: usize| {
                u32::from_str_radix(
                    std::str::from_utf8(&archive[6 + 8 * index..14 + 8 * index]).unwrap(),
                    16,
                )
                .unwrap()
            };
            let (mode, size, path_size) = (number(1), number(6) as usize, number(11) as usize);
            assert_eq!((number(2), number(3), number(5)), (0, 0, 0), "owner, group, time");
            let path = String::from_utf8(archive[110..110 + path_size - 1].to_vec()).unwrap();
            let content_at = (110 + path_size).div_ceil(4) * 4;
            if path == "TRAILER!!!" {
                return members;
            }
            members.push((path, mode, archive[content_at..content_at + size].to_vec()));
            archive = &archive[(content_at + size).div_ceil(4) * 4..];
        }
    }

    proptest! {
        #[test]
        fn what_was_put_is_read_and_the_order_of_putting_does_not_matter(
            files in proptest::collection::btree_map("[a-z]{1,9}(/[a-z]{1,3}x){0,2}", proptest::collection::vec(any::<u8>(), 0..70), 0..9),
        ) {
            let mut forwards = Ramdisk::new();
            let mut kept = Vec::new();
            for (path, content) in &files {
                if forwards.file(path, content.clone(), false).is_ok() {
                    kept.push((path.clone(), content.clone()));
                }
            }
            let mut backwards = Ramdisk::new();
            for (path, content) in kept.iter().rev() {
                backwards.file(path, content.clone(), false).unwrap();
            }
            prop_assert_eq!(forwards.to_bytes(), backwards.to_bytes());
            let read = read(&forwards.to_bytes());
            let files: Vec<_> = read.iter().filter(|(_, mode, _)| *mode == 0o100_644).map(|(path, _, content)| (path.clone(), content.clone())).collect();
            prop_assert_eq!(files, kept);
            for (number, (path, ..)) in read.iter().enumerate() {
                if let Some((parent, _)) = path.rsplit_once('/') {
                    prop_assert!(read[..number].iter().any(|(path, mode, _)| path == parent && *mode == 0o040_755), "{} before its folder", path);
                }
            }
        }
    }

    #[test]
    fn the_cpio_of_the_system_lists_the_same() {
        let mut ramdisk = Ramdisk::new();
        ramdisk.character_device("dev/null", 1, 3).unwrap();
        ramdisk.file("init", vec![7; 700], true).unwrap();
        let spawned = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut cpio) = spawned else {
            crate::skip("cpio-lists-a-ramdisk: no cpio on this machine: install the package cpio");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&ramdisk.to_bytes()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "dev\ndev/null\ninit\n");
    }

    #[test]
    fn paths_that_leave_the_ramdisk_or_collide_are_refused() {
        let mut ramdisk = Ramdisk::new();
        for path in ["", "/init", "a//b", "../init", "a/./b", "a/", "a\0b"] {
            assert!(
                matches!(ramdisk.file(path, Vec::new(), false), Err(RamdiskError::Path { .. })),
                "{path:?}"
            );
        }
        ramdisk.file("init", Vec::new(), true).unwrap();
        assert!(matches!(
            ramdisk.file("init", Vec::new(), true),
            Err(RamdiskError::Twice { .. })
        ));
        assert!(matches!(
            ramdisk.file("init/x", Vec::new(), true),
            Err(RamdiskError::Twice { .. })
        ));
        assert!(matches!(ramdisk.folder("init"), Err(RamdiskError::Twice { .. })));
        ramdisk.folder("dev").unwrap();
        ramdisk.folder("dev").unwrap();
    }
}
