//! Tar files as CLIP_benchmark lays them out: `SPLIT/nshards.txt`, `SPLIT/0.tar` ..., and beside
//! them `classnames.txt`, `zeroshot_classification_templates.txt` and `dataset_type.txt`. A sample
//! is an image and `cls` (a label id), `npy` (a vector of classes) or `txt` (a caption a line) of
//! the same key.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use twinlens_dataset::tar::{Member, TRUNCATED, TarItem, TarReader};
use twinlens_image::Limits;

use super::{Example, IMAGES, MALFORMED, SetFiles, TOO_MANY_BYTES, Take, Truth, io, npy};
use crate::error::EvalError;
use crate::images::{NO_IMAGE, NO_LABEL, Reject};

/// How many shards there are.
pub const SHARDS: &str = "nshards.txt";
/// Longest text or label, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// The shards of one split.
#[derive(Debug)]
pub struct WebDataset {
    root: PathBuf,
    split: String,
    shards: usize,
}

impl WebDataset {
    /// Reads how many shards there are.
    pub fn open(root: &Path, split: &str) -> Result<Self, EvalError> {
        let path = root.join(split).join(SHARDS);
        let text = fs::read_to_string(&path).map_err(io(&path))?;
        let shards = text.trim().parse().map_err(|_| {
            EvalError::set(split, format!("{} holds no number: {:?}", path.display(), text.trim()), None)
        })?;
        Ok(Self { root: root.to_path_buf(), split: split.into(), shards })
    }

    fn lines(&self, file: &str) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.root.join(file)).ok()?;
        let lines: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
        let last = lines.iter().rposition(|line| !line.is_empty())?;
        Some(lines[..=last].to_vec())
    }

    fn shard(&self, part: usize) -> String {
        format!("{}/{part}.tar", self.split)
    }
}

/// A sample of a shard: where its parts are.
#[derive(Debug, Default)]
struct Sample {
    key: String,
    image: Option<Member>,
    truth: Option<(Kind, Member)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Class,
    Vector,
    Captions,
}

/// Adds a member to the sample of its key; what is no part of one is passed over.
fn add(samples: &mut Vec<Sample>, keys: &mut HashMap<String, usize>, member: Member) {
    let base = member.name.rsplit('/').next().unwrap_or_default();
    let Some((stem, ending)) = base.split_once('.').filter(|(stem, _)| !stem.is_empty()) else { return };
    let key = member.name[..member.name.len() - base.len() + stem.len()].to_string();
    let ending = ending.to_ascii_lowercase();
    let kind = match ending.as_str() {
        "cls" => Some(Kind::Class),
        "npy" => Some(Kind::Vector),
        "txt" => Some(Kind::Captions),
        image if IMAGES.contains(&image) => None,
        _ => return,
    };
    let place = *keys.entry(key.clone()).or_insert_with(|| {
        samples.push(Sample { key, ..Sample::default() });
        samples.len() - 1
    });
    match kind {
        None => samples[place].image.get_or_insert(member),
        Some(kind) => &mut samples[place].truth.get_or_insert((kind, member)).1,
    };
}

impl SetFiles for WebDataset {
    fn parts(&self) -> Vec<String> {
        (0..self.shards).map(|part| self.shard(part)).collect()
    }

    fn names(&self) -> Option<Vec<String>> {
        self.lines("classnames.txt")
    }

    fn templates(&self) -> Option<Vec<String>> {
        self.lines("zeroshot_classification_templates.txt")
    }

    fn read(&self, part: usize, limits: &Limits, take: Take<'_>) -> Result<(), EvalError> {
        let shard = self.shard(part);
        let path = self.root.join(&shard);
        let refused = |place: String, code: &'static str, detail: String| Example {
            path: place.clone(),
            place,
            image: Err(Reject { code, detail: detail.clone() }),
            truth: Err(Reject { code, detail }),
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let why = format!("the shard is not there, although {SHARDS} says so");
                return take(refused(shard, TRUNCATED, why));
            }
            Err(error) => return Err(io(&path)(error)),
        };
        let length = file.metadata().map_err(io(&path))?.len();
        let (mut samples, mut keys, mut damage) = (Vec::new(), HashMap::new(), Vec::new());
        let mut members = TarReader::new(BufReader::new(file), length);
        for found in &mut members {
            match found.map_err(io(&path))? {
                TarItem::Member(member) => add(&mut samples, &mut keys, member),
                TarItem::Damage(range) => damage.push(range),
            }
        }
        let mut file = members.into_inner().into_inner();
        let mut bytes_of = |member: &Member, limit: u64| -> Result<Result<Vec<u8>, Reject>, EvalError> {
            let refuse = |code, detail| Ok(Err(Reject { code, detail }));
            if !member.is_complete {
                return refuse(TRUNCATED, format!("the file ends within {}", member.name));
            }
            if member.size > limit {
                return refuse(TOO_MANY_BYTES, format!("{}: {} bytes", member.name, member.size));
            }
            let mut bytes = vec![0; member.size as usize];
            let read = file.seek(SeekFrom::Start(member.offset)).and_then(|_| file.read_exact(&mut bytes));
            read.map_err(io(&path))?;
            Ok(Ok(bytes))
        };
        for sample in samples {
            let place = format!("{shard}/{}", sample.key);
            let name = sample.image.as_ref().map_or_else(|| place.clone(), |member| member.name.clone());
            let image = match &sample.image {
                Some(member) => bytes_of(member, limits.max_bytes)?,
                None => Err(Reject { code: NO_IMAGE, detail: "the sample has no image".into() }),
            };
            let truth = match &sample.truth {
                Some((kind, member)) => bytes_of(member, MAX_TEXT)?.and_then(|bytes| truth(*kind, &bytes)),
                None => {
                    Err(Reject { code: NO_LABEL, detail: "the sample has neither cls, npy nor txt".into() })
                }
            };
            take(Example { place, path: name, image, truth })?;
        }
        for found in damage {
            take(refused(format!("{shard} byte {}", found.offset), found.code, found.detail))?;
        }
        Ok(())
    }
}

fn truth(kind: Kind, bytes: &[u8]) -> Result<Truth, Reject> {
    let text = String::from_utf8_lossy(bytes);
    match kind {
        Kind::Class => text.trim().parse().map(Truth::Id).map_err(|_| Reject {
            code: MALFORMED,
            detail: format!(
                "the label is no whole number: {:?}",
                text.trim().chars().take(40).collect::<String>()
            ),
        }),
        Kind::Vector => match npy::nonzero(bytes) {
            Ok(present) => Ok(Truth::Ids { present, ignored: Vec::new() }),
            Err(why) => {
                Err(Reject { code: MALFORMED, detail: format!("the labels are no NumPy array: {why}") })
            }
        },
        Kind::Captions => {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            Ok(Truth::Captions(lines.map(String::from).collect()))
        }
    }
}
