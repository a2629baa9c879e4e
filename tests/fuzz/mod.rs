//! Readers of strangers' bytes get mutants of sound files: each answers or refuses, in bounded
//! time. Those of the crawl are tested beside their code. `tests/fuzz/all` feeds them for longer.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use twinlens_curate::queries::{Namespaces, plain_text, read_dump, read_list_file};
use twinlens_dataset::foreign::ArrowBatches;
use twinlens_dataset::reader::ShardReader;
use twinlens_dataset::samples::{Index, Role, TarSamples};
use twinlens_dataset::storage::Location;
use twinlens_dataset::{Dataset, MAIN, manifest};
use twinlens_image::{Limits, decode, decode_reduced, probe};
use twinlens_model::{Activation, Clip, ClipConfig, Objective, TextConfig, Tokenizer, VitConfig};
use twinlens_pipeline::config::{InputSchemas, Overrides, check};
use twinlens_testkit::fuzz::Fuzz;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The files of a folder of the repository with one of these endings.
fn seeds(folder: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let fits =
        |path: &PathBuf| path.is_file() && endings.iter().any(|end| path.to_string_lossy().ends_with(end));
    let mut paths: Vec<PathBuf> = entries.filter(fits).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// A file that is written again and again.
struct Input(TempDir, PathBuf);

impl Input {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        Self(folder, path)
    }

    fn write(&self, bytes: &[u8]) -> &Path {
        fs::write(&self.1, bytes).unwrap();
        &self.1
    }
}

fn outcome<T, E: std::fmt::Display>(result: Result<T, E>, describe: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|error| format!("error: {error}"), describe)
}

fn images(name: &'static str, endings: &[&str], words: &[&'static [u8]]) {
    let folder = "crates/twinlens-image/tests/fixtures";
    let seeds = [seeds(folder, endings), seeds("tests/cases/jpeg", endings)].concat();
    let limits = Limits { max_bytes: 1 << 20, max_pixels: 1 << 20, ..Limits::default() };
    Fuzz::new(name, seeds).words(words).run(|bytes| {
        let header = outcome(probe(bytes, &limits), |header| format!("{:?}", header.format));
        let whole = outcome(decode(bytes, &limits), |image| format!("exif {}", image.exif.is_some()));
        let small = outcome(decode_reduced(bytes, &limits, 4), |_| String::new());
        format!("{header} {whole} {small}")
    });
}

#[test]
fn jpeg() {
    let words: [&[u8]; 8] = [
        b"\xff\xd8",
        b"\xff\xc2\x00\x11\x08",
        b"\xff\xda",
        b"\xff\xc4",
        b"\xff\xdd\x00\x04",
        b"\xff\xe1",
        b"Exif\x00\x00MM\x00*",
        b"ICC_PROFILE\x00\x01\x01",
    ];
    images("jpeg", &[".jpg"], &words);
}

#[test]
fn png() {
    images(
        "png",
        &[".png"],
        &[b"IHDR", b"eXIf", b"iCCP", b"tRNS", b"acTL", b"fdAT", b"IDAT", b"zTXt", b"PLTE"],
    );
}

#[test]
fn webp() {
    images("webp", &[".webp"], &[b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP"]);
}

#[test]
fn other_images() {
    let endings = [".gif", ".bmp", ".ico", ".qoi", ".tiff", ".pbm", ".pgm", ".ppm"];
    images(
        "images",
        &endings,
        &[b"II*\x00", b"MM\x00*", b"P6\n", b"GIF89a", b"!\xff\x0bNETSCAPE2.0", b"qoif"],
    );
}

#[test]
fn manifests() {
    let begin = r#"{"entry":"begin","format":1,"stage":"s","kind":"k","fingerprint":"f","tables":{"data":{"fields":[{"name":"a","data_type":"Int64","nullable":true,"dict_id":0,"dict_is_ordered":false,"metadata":{}}],"metadata":{}}}}"#;
    let commit = r#"{"entry":"commit","split":0,"label":"l","rows_in":3,"files":[{"table":"data","path":"data/000000-000.parquet","rows":3,"bytes":9,"sha256":"00"}],"rejects":{"s":{"c":1}}}"#;
    let entries =
        [begin, commit, r#"{"entry":"complete","splits":1}"#, r#"{"entry":"damaged","splits":[0]}"#];
    let line = |entry: &&str| manifest::encode(&serde_json::from_str(entry).unwrap()).unwrap();
    let input = Input::new("manifest.jsonl");
    let folder = Location::from(input.1.parent().unwrap());
    Fuzz::new("manifest", [entries.iter().map(line).collect::<String>().into_bytes()]).run(|bytes| {
        input.write(bytes);
        // Nothing else may be written than what the checksums cover.
        let entry = String::from_utf8_lossy(bytes).lines().next().map(manifest::decode);
        let state =
            outcome(manifest::read(&folder), |state| format!("{:?}", state.map(|state| state.complete)));
        format!("{state} {:?}", entry.map(|entry| entry.err()))
    });
    // Entries with a right checksum, as another program may write them.
    Fuzz::new("entry", entries.map(|entry| entry.as_bytes().to_vec())).run(|bytes| {
        let Ok(entry) = serde_json::from_slice(bytes) else { return "no entry".into() };
        let lines =
            [&serde_json::from_str(begin).unwrap(), &entry].map(|entry| manifest::encode(entry).unwrap());
        input.write(lines.concat().as_bytes());
        let opened = Dataset::open(folder.clone()).and_then(|dataset| dataset.damaged_splits());
        outcome(opened, |damaged| format!("{}", damaged.len().min(1)))
    });
}

#[test]
fn pipelines() {
    let registry = twinlens::registry();
    let all = [seeds("pipelines", &[".toml"]), seeds("pipelines/evaluation", &[".toml"])].concat();
    let words: [&[u8]; 10] = [
        b"[stages.",
        b"kind = \"sql\"\nquery = \"",
        b"\"\"\"",
        b"${",
        b"sweep = {",
        b"= [[[[",
        b"'",
        b"select * from ",
        b"repeat('a', 99999999)",
        b"[[tests]]\n",
    ];
    Fuzz::new("pipeline", all).words(&words).run(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let checked =
            check(Path::new("p.toml"), &text, &registry, &Overrides::default(), &InputSchemas::none());
        match checked {
            Ok(pipeline) => format!("{} stages", pipeline.nodes.len().min(2)),
            Err(report) => report.faults().first().map(|fault| fault.message.clone()).unwrap_or_default(),
        }
    });
}

#[test]
fn parquet() {
    let all =
        [seeds("tests/cases/tables", &[".parquet"]), seeds("tests/cases/queries", &[".parquet"])].concat();
    let input = Input::new("a.parquet");
    Fuzz::new("parquet", all).words(&[b"PAR1", b"\x15\x00", b"\x19\x1c", b"\x28\xb5\x2f\xfd"]).run(|bytes| {
        let read = Dataset::from_parquet(input.write(bytes)).and_then(|dataset| {
            let schema = dataset.schema(MAIN)?;
            let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            ShardReader::new(&dataset, MAIN, &columns, 100)
                .try_fold(0, |rows, batch| Ok(rows + batch?.num_rows()))
        });
        outcome(read, |rows| format!("{} rows", rows.min(1)))
    });
}

#[test]
fn arrow() {
    let input = Input::new("a.arrow");
    Fuzz::new("arrow", seeds("tests/cases/arrow", &[".arrow"])).run(|bytes| {
        let read = ArrowBatches::open(input.write(bytes));
        let read =
            read.and_then(|mut batches| batches.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows())));
        outcome(read, |rows| format!("{} rows", rows.min(1)))
    });
}

#[test]
fn tar_files() {
    const ROLES: [Role; 5] = [Role::Image, Role::Text, Role::Json, Role::Class, Role::Vector];
    let all = [seeds("tests/cases/tars", &[".tar"]), seeds("tests/cases/sets", &[".tar"])].concat();
    let input = Input::new("a.tar");
    let words: [&[u8]; 6] =
        [b"ustar", b"L", b"x", b"21 path=../../a.jpg\n", b"18 size=99999999\n", b"\x80\x00\x00"];
    Fuzz::new("tar", all).words(&words).run(|bytes| {
        let index = match Index::read(Cursor::new(bytes), bytes.len() as u64, 1 << 20, &ROLES) {
            Ok(index) => index,
            Err(error) => return format!("refused: {}", error.to_string().len().min(1)),
        };
        let refusals: Vec<_> = index.unread.iter().map(|unread| unread.refusal.0).collect();
        let mut samples = 0;
        if let Ok(mut file) = TarSamples::open(input.write(bytes), Some(input.0.path())) {
            let entries = file.index(1 << 20, &ROLES).map(|index| index.entries);
            for entry in entries.into_iter().flatten() {
                samples += usize::from(file.sample("a.tar", entry).is_ok());
            }
        }
        format!("{} {refusals:?}", samples.min(2))
    });
}

/// What the models of the fixtures are.
fn small() -> ClipConfig {
    ClipConfig {
        embed: 8,
        vision: VitConfig { image_size: 8, patch: 4, width: 16, layers: 1, heads: 2 }.into(),
        text: TextConfig { context: 6, vocab: 20, width: 16, layers: 1, heads: 2 },
        activation: Activation::Gelu,
        objective: Objective::CONTRASTIVE,
    }
}

#[test]
fn weights() {
    let formats = "crates/twinlens-model/tests/formats";
    let words: [&[u8]; 7] = [
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"\"F32\"",
        b"\"shape\":[",
        b"\"data_offsets\":[0,",
        b"ctorch._utils\n",
    ];
    for (name, folder, ending) in
        [("pt", formats, ".pt"), ("safetensors", &format!("{formats}/hugging_face"), ".safetensors")]
    {
        let input = Input::new(&format!("a{ending}"));
        Fuzz::new(name, seeds(folder, &[ending])).words(&words).run(|bytes| {
            let path = input.write(bytes);
            let model = outcome(Clip::load_weights(path, small()), |_| "a model".into());
            let tensors = outcome(twinlens_model::weights::read(path), |tensors| {
                format!("{} tensors", tensors.len().min(1))
            });
            format!("{model} {tensors}")
        });
    }
}

#[test]
fn model_folders() {
    let formats = root().join("crates/twinlens-model/tests/formats");
    for (name, folder, config) in
        [("hugging_face", "hugging_face", "config.json"), ("open_clip", "open_clip", "open_clip_config.json")]
    {
        let place = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(formats.join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
        }
        let seed = fs::read(formats.join(folder).join(config)).unwrap();
        let words: [&[u8]; 4] = [b"\"hidden_size\": ", b"1e9", b"null", b"{\"a\":"];
        Fuzz::new(name, [seed]).words(&words).run(|bytes| {
            fs::write(place.path().join(config), bytes).unwrap();
            outcome(Clip::load(place.path()), |_| "a model".into())
        });
    }
}

#[test]
fn tokenizers() {
    let words = ["a photo of a cat", "the dog 123", "é ü 犬", "a photo of a dog"].map(String::from);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    Tokenizer::train(words.into_iter().cycle().take(40), 290).unwrap().save(&path).unwrap();
    let json = fs::read(&path).unwrap();
    let merges = seeds("crates/twinlens-model/tests/tokenizer", &[".gz"]);
    let words: [&[u8]; 6] = [
        b"\"type\":\"Sequence\"",
        b"\"merges\":[",
        b"\"Regex\":\"(a+)+$\"",
        b"</w>",
        b"<|endoftext|>",
        b"\"vocab\":{",
    ];
    Fuzz::new("tokenizer", [merges, vec![json]].concat()).words(&words).run(|bytes| {
        fs::write(&path, bytes).unwrap();
        outcome(Tokenizer::load(&path), |tokenizer| {
            let ids = tokenizer.encode("a photo of a 犬 aaaaaaaaaaaaaaaaaaaaaaaaaaaa!", 16);
            format!("{} ids", ids.len())
        })
    });
}

#[test]
fn query_lists() {
    for ending in ["txt", "json"] {
        let input = Input::new(&format!("list.{ending}"));
        let name = if ending == "txt" { "list" } else { "list_json" };
        Fuzz::new(name, seeds("tests/cases/queries", &[".txt", ".json"])).run(|bytes| {
            outcome(read_list_file(input.write(bytes)), |queries| format!("{} queries", queries.len().min(2)))
        });
    }
}

#[test]
fn wikitext() {
    let page = "'''A''' is a [[dog|''x'']] {{cite|[[b]]}} <ref name=a>x</ref> <!-- c -->\n{| class=w\n|-\n| a || b\n|}\n\
                == H ==\n* [[File:a.jpg|thumb|b [[c]]]] [http://a b] <math>x</math> &eacute; __TOC__\n# {{a|{{b}}}}\n";
    let dump = format!(
        "<mediawiki xml:lang=\"de\"><siteinfo><namespaces><namespace key=\"6\">Datei</namespace></namespaces></siteinfo>\
         <page><title>A &amp; b</title><ns>0</ns><redirect title=\"x\" /><revision><text>{}</text></revision></page></mediawiki>",
        page.replace('&', "&amp;").replace('<', "&lt;")
    );
    let words: [&[u8]; 12] =
        [b"{{", b"}}", b"[[", b"]]", b"{|", b"|}", b"<ref", b"</ref>", b"<!--", b"-->", b"'''", b"<nowiki>"];
    let mut namespaces = Namespaces::default();
    namespaces.add("Datei");
    Fuzz::new("wikitext", [page.as_bytes().to_vec()]).words(&words).run(|bytes| {
        let plain = plain_text(&String::from_utf8_lossy(bytes), &namespaces);
        let marks = ["{{", "[[", "<", "|"].map(|mark| plain.contains(mark));
        format!("{marks:?} {}", plain.lines().count().min(12))
    });
    let input = Input::new("dump.xml");
    Fuzz::new("dump", [dump.into_bytes()])
        .words(&[b"<page>", b"</text>", b"<![CDATA[", b"&#xd800;", b"<!DOCTYPE"])
        .run(|bytes| {
            let mut pages = 0;
            let read = read_dump(input.write(bytes), |_, _| {
                pages += 1;
                Ok(())
            });
            outcome(read, |()| format!("{pages} pages"))
        });
}
