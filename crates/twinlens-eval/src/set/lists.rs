//! Two lists of class names side by side, for errors of lists that should match.

/// Lines of the comparison.
const SHOWN: usize = 12;
/// Widest left column, in characters.
const WIDEST: usize = 40;

/// Both lists with their titles, by position.
pub(crate) fn side_by_side(left: (&str, &[String]), right: (&str, &[String])) -> String {
    let names = left.1.iter().map(String::as_str).chain([left.0]);
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0).min(WIDEST);
    let longest = left.1.len().max(right.1.len());
    let mut table = format!("{:>5}  {:width$}  {}", "", left.0, right.0);
    for place in 0..longest.min(SHOWN) {
        let at = |list: &[String]| list.get(place).map_or("-".into(), String::clone);
        table += &format!("\n{place:>5}  {:width$}  {}", at(left.1), at(right.1));
    }
    if longest > SHOWN {
        table += &format!("\n       ... and {} more", longest - SHOWN);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_shown_by_position() {
        let strings = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let table = side_by_side(("directory", &strings(&["n01"])), ("names", &strings(&["a", "b"])));
        assert_eq!(table, "       directory  names\n    0  n01        a\n    1  -          b");
        let many = strings(&["x"; 20]);
        assert!(side_by_side(("l", &many), ("r", &many)).ends_with("... and 8 more"));
    }
}
