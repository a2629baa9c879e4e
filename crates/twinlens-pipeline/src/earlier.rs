//! Names of earlier generations of datasets: `clip@1`.

/// Separates the name of a stage from the number of a generation.
const MARK: char = '@';

/// The stage and the number in a name.
pub(crate) fn parts(name: &str) -> Option<(&str, u64)> {
    let (stage, number) = name.rsplit_once(MARK)?;
    Some((stage, number.parse().ok()?))
}

/// The name of a generation.
pub(crate) fn name(stage: &str, number: u64) -> String {
    format!("{stage}{MARK}{number}")
}

/// A training in a name like `clip@step-500` or `runs/mine/clip@step-500/`, and the file with its
/// weights of that step.
pub(crate) fn step(name: &str) -> Option<(&str, String)> {
    let (training, step) = name.trim_end_matches('/').rsplit_once("@step-")?;
    let step: u64 = step.parse().ok()?;
    Some((training, format!("step-{step:010}.safetensors")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_parts() {
        assert_eq!((parts("clip@12"), parts("clip"), parts("clip@step-5")), (Some(("clip", 12)), None, None));
        let file = "step-0000000500.safetensors".to_string();
        assert_eq!(step("./runs/clip@step-500/"), Some(("./runs/clip", file.clone())));
        assert_eq!(step("clip@1@step-500"), Some(("clip@1", file)));
        assert_eq!(step("clip@step-x"), None);
    }
}
