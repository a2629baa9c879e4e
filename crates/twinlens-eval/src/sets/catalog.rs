//! The evaluation sets known by name: one TOML file each, compiled in.

use twinlens_pipeline::suggest::did_you_mean;

use super::declaration::Declaration;

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../sets/", $name, ".toml")))),*]
    };
}

/// Name and declaration of every set, sorted by name.
const FILES: &[(&str, &str)] = files![
    "birdsnap",
    "caltech101",
    "cifar10",
    "cifar100",
    "clevr-counts",
    "country211",
    "digits",
    "dtd",
    "eurosat",
    "fashion-mnist",
    "fer2013",
    "fgvc-aircraft",
    "flickr30k",
    "flowers102",
    "fluent-3d",
    "fluent-3d-activities",
    "fluent-3d-animals-nature",
    "fluent-3d-flags",
    "fluent-3d-food-drink",
    "fluent-3d-groups",
    "fluent-3d-objects",
    "fluent-3d-people-body",
    "fluent-3d-smileys-emotion",
    "fluent-3d-symbols",
    "fluent-3d-travel-places",
    "fluent-flat",
    "food101",
    "gtsrb",
    "hateful-memes",
    "imagenet",
    "imagenet-a",
    "imagenet-r",
    "imagenet-sketch",
    "imagenet-v2",
    "imagenet-vid",
    "iso-flags",
    "kinetics700",
    "kitti-distance",
    "letters",
    "mnist",
    "mscoco",
    "noto",
    "objectnet",
    "openmoji",
    "pcam",
    "pets",
    "resisc45",
    "sst2",
    "stanford-cars",
    "stl10",
    "sun397",
    "twemoji",
    "ucf101",
    "voc2007",
    "words",
    "youtube-bb",
];

/// Every set, sorted by name.
///
/// # Errors
/// A compiled-in declaration is invalid, which a test rules out.
pub fn all() -> Result<Vec<Declaration>, String> {
    FILES.iter().map(|(name, text)| read(name, text)).collect()
}

/// The names of all sets, sorted.
pub fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().map(|(name, _)| *name)
}

/// The set called `name`.
///
/// # Errors
/// There is no such set: message and hint.
pub fn named(name: &str) -> Result<Declaration, (String, String)> {
    let Some((name, text)) = FILES.iter().find(|(known, _)| *known == name) else {
        let hint = did_you_mean(name, names()).unwrap_or_else(|| {
            "`twinlens sets` lists the known sets; your own directory of classes has a `/` (`./mine/`), your own declaration ends in `.toml`".into()
        });
        return Err((format!("no such evaluation set: `{name}`"), hint));
    };
    read(name, text).map_err(|why| (why, String::new()))
}

fn read(name: &str, text: &str) -> Result<Declaration, String> {
    Declaration::parse(text).map_err(|why| format!("the declaration of the evaluation set `{name}`: {why}"))
}

#[cfg(test)]
mod tests {
    use super::super::Task;
    use super::*;

    #[test]
    fn every_declaration_is_valid_and_named_as_its_file() {
        let sets = all().unwrap();
        for ((name, _), set) in FILES.iter().zip(&sets) {
            assert_eq!(set.name, *name);
            assert!(
                set.chance.is_some() || set.chance().is_none(),
                "{name}: `chance` is derived: do not declare it"
            );
            assert!(
                set.class_count().is_some() || set.task == Task::Retrieval,
                "{name}: the number of classes is missing"
            );
        }
        assert!(FILES.is_sorted_by_key(|(name, _)| *name));
        assert!(sets.len() >= 36 + 12, "{}", sets.len());
    }

    #[test]
    fn the_sets_of_the_paper_have_the_published_number_of_classes_and_templates() {
        let counts = [
            ("birdsnap", 500, 1),
            ("cifar10", 10, 18),
            ("cifar100", 100, 18),
            ("clevr-counts", 8, 1),
            ("caltech101", 102, 34),
            ("country211", 211, 5),
            ("dtd", 47, 8),
            ("eurosat", 10, 3),
            ("fgvc-aircraft", 100, 2),
            ("fer2013", 7, 6),
            ("flowers102", 102, 1),
            ("food101", 101, 1),
            ("gtsrb", 43, 3),
            ("hateful-memes", 2, 1),
            ("kitti-distance", 4, 1),
            ("kinetics700", 700, 28),
            ("mnist", 10, 1),
            ("pets", 37, 1),
            ("voc2007", 20, 1),
            ("pcam", 2, 1),
            ("resisc45", 45, 18),
            ("sst2", 2, 1),
            ("stl10", 10, 2),
            ("sun397", 397, 2),
            ("stanford-cars", 196, 8),
            ("ucf101", 101, 48),
            ("imagenet", 1000, 80),
        ];
        for (name, classes, templates) in counts {
            let set = named(name).unwrap();
            assert_eq!((set.class_count(), set.templates.len()), (Some(classes), templates), "{name}");
        }
        let others = [
            "flickr30k",
            "mscoco",
            "imagenet-v2",
            "imagenet-a",
            "imagenet-r",
            "imagenet-sketch",
            "objectnet",
            "youtube-bb",
            "imagenet-vid",
        ];
        assert!(others.into_iter().all(|name| named(name).is_ok()));
    }

    #[test]
    fn a_misspelt_name_gets_a_suggestion() {
        assert_eq!(named("cifar-10").unwrap_err().1, "did you mean `cifar10`?");
        assert!(named("my own").unwrap_err().1.contains(".toml"));
    }
}
