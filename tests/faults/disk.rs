//! A disk that loses power: what of a record of calls survives if only what was synced is certain.
//!
//! The content of a file survives as of its last `fsync`, the names in a folder as of the last
//! `fsync` of that folder. What happened since may survive whole, in half, or not at all. A rename
//! is one change, be it between two folders. Changes of one name survive in their order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::shim::Call;

/// A folder and a name in it.
type Slot = (usize, String);
type Names = BTreeMap<Slot, usize>;

enum Node {
    Folder,
    File { now: Vec<u8>, durable: Vec<u8> },
}

/// A change of names that may not survive.
struct Change(Vec<(Slot, Option<usize>)>);

impl Change {
    fn shares_name(&self, other: &Self) -> bool {
        self.0.iter().any(|(slot, _)| other.0.iter().any(|(other, _)| slot == other))
    }

    fn apply(&self, names: &mut Names) {
        for (slot, node) in &self.0 {
            match node {
                Some(node) => drop(names.insert(slot.clone(), *node)),
                None => drop(names.remove(slot)),
            }
        }
    }
}

/// What survives of that which was not synced.
#[derive(Debug, Clone, Copy)]
pub(super) enum Survives {
    Nothing,
    /// Names, of files that are as of their last sync: empty, mostly.
    Names,
    /// Names, and half of what was written to files.
    NamesAndHalf,
    /// By a seed.
    Some(u64),
}

/// The files of a folder by relative path; `None` for a folder.
pub(super) type Image = BTreeMap<PathBuf, Option<Vec<u8>>>;

pub(super) struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// By the numbers of inodes, which are used again.
    inodes: HashMap<u64, usize>,
    now: Names,
    durable: Names,
    pending: Vec<Change>,
}

impl Disk {
    /// A folder, all of which is durable.
    pub(super) fn read(root: &Path) -> Self {
        let mut disk = Self {
            root: root.into(),
            nodes: vec![Node::Folder],
            inodes: HashMap::from([(fs::metadata(root).unwrap().ino(), 0)]),
            now: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
        };
        let mut folders = vec![(root.to_path_buf(), 0)];
        while let Some((folder, parent)) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let name = path.file_name().unwrap().to_str().unwrap().to_string();
                let node = if metadata.is_dir() {
                    folders.push((path, disk.nodes.len()));
                    Node::Folder
                } else {
                    let bytes = fs::read(&path).unwrap();
                    Node::File { now: bytes.clone(), durable: bytes }
                };
                let id = disk.add(metadata.ino(), node);
                disk.now.insert((parent, name), id);
            }
        }
        disk.durable = disk.now.clone();
        disk
    }

    fn add(&mut self, inode: u64, node: Node) -> usize {
        self.inodes.insert(inode, self.nodes.len());
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// The folder and the name of a path.
    fn slot(&self, path: &Path) -> Slot {
        let parts: Vec<&str> =
            path.strip_prefix(&self.root).unwrap().iter().map(|part| part.to_str().unwrap()).collect();
        let (name, folders) = parts.split_last().unwrap();
        let folder = folders.iter().fold(0, |folder, name| self.now[&(folder, (*name).to_string())]);
        (folder, (*name).to_string())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    /// The content of a file; `None` for one that never had a name.
    fn content(&mut self, inode: u64) -> Option<&mut Vec<u8>> {
        match &mut self.nodes[*self.inodes.get(&inode)?] {
            Node::File { now, .. } => Some(now),
            Node::Folder => panic!("inode {inode} is a folder"),
        }
    }

    /// Does what a call did.
    pub(super) fn apply(&mut self, call: &Call) {
        match call {
            Call::Create { inode, path } => {
                let id = self.add(*inode, Node::File { now: Vec::new(), durable: Vec::new() });
                self.change(Change(vec![(self.slot(path), Some(id))]));
            }
            Call::Folder { inode, path } => {
                let id = self.add(*inode, Node::Folder);
                self.change(Change(vec![(self.slot(path), Some(id))]));
            }
            Call::Truncate { inode, length } => {
                if let Some(content) = self.content(*inode) {
                    content.resize(*length, 0);
                }
            }
            Call::Write { inode, start, bytes } => {
                if let Some(content) = self.content(*inode) {
                    content.resize(content.len().max(start + bytes.len()), 0);
                    content[*start..start + bytes.len()].copy_from_slice(bytes);
                }
            }
            Call::Sync { inode } => {
                let Some(&id) = self.inodes.get(inode) else { return };
                match &mut self.nodes[id] {
                    Node::File { now, durable } => durable.clone_from(now),
                    Node::Folder => self.sync_names(id),
                }
            }
            Call::Rename { from, to } => {
                let (from, to) = (self.slot(from), self.slot(to));
                let id = self.now[&from];
                self.change(Change(vec![(from, None), (to, Some(id))]));
            }
            Call::Link { from, to } => {
                let id = self.now[&self.slot(from)];
                self.change(Change(vec![(self.slot(to), Some(id))]));
            }
            Call::Remove { path } => self.change(Change(vec![(self.slot(path), None)])),
            Call::Print { .. } => {}
        }
    }

    /// Which pending changes survive if those do that `wanted` names: with each, the earlier ones
    /// of the same names.
    fn closed(&self, wanted: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut kept = vec![false; self.pending.len()];
        for at in (0..kept.len()).rev() {
            let is_needed = |later: usize| kept[later] && self.pending[later].shares_name(&self.pending[at]);
            kept[at] = wanted(at) || (at + 1..kept.len()).any(is_needed);
        }
        kept
    }

    fn sync_names(&mut self, folder: usize) {
        let kept = self.closed(|at| self.pending[at].0.iter().any(|((within, _), _)| *within == folder));
        let mut kept = kept.into_iter();
        self.pending.retain(|change| {
            let survives = kept.next().unwrap_or(false);
            if survives {
                change.apply(&mut self.durable);
            }
            !survives
        });
    }

    /// What a power cut leaves now.
    pub(super) fn image(&self, survives: Survives) -> Image {
        let kept = match survives {
            Survives::Nothing => vec![false; self.pending.len()],
            Survives::Names | Survives::NamesAndHalf => vec![true; self.pending.len()],
            Survives::Some(seed) => self.closed(|at| random(seed, at).is_multiple_of(2)),
        };
        let mut names = self.durable.clone();
        let changes = self.pending.iter().zip(kept).filter(|(_, kept)| *kept);
        changes.for_each(|(change, _)| change.apply(&mut names));

        let mut image = Image::new();
        let mut folders = vec![(0, PathBuf::new())];
        while let Some((folder, path)) = folders.pop() {
            let within = names.range((folder, String::new())..(folder + 1, String::new()));
            for ((_, name), &id) in within {
                let path = path.join(name);
                match &self.nodes[id] {
                    Node::Folder => {
                        folders.push((id, path.clone()));
                        image.insert(path, None);
                    }
                    Node::File { now, durable } => {
                        let bytes = match survives {
                            Survives::Nothing | Survives::Names => durable.clone(),
                            Survives::NamesAndHalf => half(now, durable),
                            Survives::Some(seed) => match random(seed, id + 1_000_000) % 4 {
                                0 => durable.clone(),
                                1 => half(now, durable),
                                // The length, but not the bytes.
                                2 if now.len() > durable.len() => {
                                    [&durable[..], &vec![0; now.len() - durable.len()]].concat()
                                }
                                _ => now.clone(),
                            },
                        };
                        image.insert(path, Some(bytes));
                    }
                }
            }
        }
        image
    }
}

/// A file of whose last writes half survives.
fn half(now: &[u8], durable: &[u8]) -> Vec<u8> {
    let kept = now.iter().zip(durable).take_while(|(a, b)| a == b).count();
    let middle = kept + (now.len() - kept) / 2;
    let mut bytes = now[..middle].to_vec();
    bytes.extend(durable.get(middle..).unwrap_or_default());
    bytes
}

/// Splitmix64.
fn random(seed: u64, at: usize) -> u64 {
    let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(at as u64);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is written, synced, renamed, and its folder synced: what is left after each.
    #[test]
    fn only_what_was_synced_is_certain() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::write(root.join("old"), "old").unwrap();
        let mut disk = Disk::read(root);
        let inode = fs::metadata(root).unwrap().ino();
        let steps = [
            (Call::Create { inode: 1, path: root.join("new.part") }, "old", "new.part= old"),
            (Call::Write { inode: 1, start: 0, bytes: b"1234".to_vec() }, "old", "new.part=12 old"),
            (Call::Sync { inode: 1 }, "old", "new.part=1234 old"),
            (Call::Rename { from: root.join("new.part"), to: root.join("new") }, "old", "new=1234 old"),
            (Call::Sync { inode }, "new=1234 old", "new=1234 old"),
            (Call::Remove { path: root.join("old") }, "new=1234 old", "new=1234"),
            (Call::Write { inode: 1, start: 4, bytes: b"56".to_vec() }, "new=1234 old", "new=12345"),
            (Call::Truncate { inode: 1, length: 0 }, "new=1234 old", "new=1234"),
        ];
        let shown = |disk: &Disk, survives| -> String {
            let files = disk.image(survives).into_iter().map(|(path, bytes)| {
                let bytes = String::from_utf8(bytes.unwrap()).unwrap();
                let name = path.display().to_string();
                if name == "old" { name } else { format!("{name}={bytes}") }
            });
            files.collect::<Vec<_>>().join(" ")
        };
        for (call, nothing, half) in steps {
            disk.apply(&call);
            assert_eq!(shown(&disk, Survives::Nothing), nothing, "{call:?}");
            assert_eq!(shown(&disk, Survives::NamesAndHalf), half, "{call:?}");
        }
    }
}
