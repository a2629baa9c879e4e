//! `twinlens help`: the guide, which is compiled in, and the help texts of commands.

use std::io::Write;

use clap::CommandFactory;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::{Cli, HelpArgs};
use crate::errors::Failure;
use crate::text::Paint;

/// Subjects with their pages. Where a subject is also a command, its page goes before the help
/// text.
const GUIDE: [(&str, &str); 12] = [
    ("pipelines", include_str!("../docs/pipelines.md")),
    ("sources", include_str!("../docs/sources.md")),
    ("curation", include_str!("../docs/curation.md")),
    ("datasets", include_str!("../docs/datasets.md")),
    ("training", include_str!("../docs/training.md")),
    ("evaluation", include_str!("../docs/evaluation.md")),
    ("sql", include_str!("../docs/sql.md")),
    ("reports", include_str!("../docs/reports.md")),
    ("clusters", include_str!("../docs/clusters.md")),
    ("security", include_str!("../docs/security.md")),
    ("python", include_str!("../docs/python.md")),
    ("stages", include_str!("../docs/stages.md")),
];

pub(crate) fn execute(args: &HelpArgs) -> Result<(), Failure> {
    let paint = Paint::stdout();
    let text = match &args.subject {
        None => overview(paint),
        Some(name) => page(name, paint).or_else(|| command_help(name, paint)).ok_or_else(|| unknown(name))?,
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn overview(paint: Paint) -> String {
    let command = Cli::command();
    let commands = command.get_subcommands().map(|command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        format!("  {:10}  {about}\n", command.get_name())
    });
    let subjects = GUIDE.map(|(name, page)| format!("  {name:10}  {}\n", title(page)));
    format!(
        "{}\n{}\n{}\n{}\n`twinlens help NAME` shows a command or a subject.\n",
        paint.bold("Commands"),
        commands.collect::<String>(),
        paint.bold("Guide"),
        subjects.concat()
    )
}

/// The first heading of a page.
fn title(page: &str) -> &str {
    page.lines().next().unwrap_or_default().trim_start_matches(['#', ' '])
}

fn page(name: &str, paint: Paint) -> Option<String> {
    let (_, page) = GUIDE.iter().find(|(subject, _)| *subject == name)?;
    Some(render(page, paint))
}

/// Markdown; on a terminal with bold headings and without the fences of code blocks.
fn render(page: &str, paint: Paint) -> String {
    if !paint.is_on() {
        return page.into();
    }
    let (mut text, mut is_code) = (String::new(), false);
    for line in page.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let heading = line.trim_start_matches('#');
        text += &if is_code {
            format!("    {line}")
        } else if heading.len() < line.len() {
            paint.bold(heading.trim())
        } else {
            line.into()
        };
        text.push('\n');
    }
    text
}

/// The help text of a command, as `--help` shows it.
fn command_help(name: &str, paint: Paint) -> Option<String> {
    let mut command = Cli::command();
    command.build();
    let help = command.find_subcommand_mut(name)?.render_long_help();
    Some(if paint.is_on() { help.ansi().to_string() } else { help.to_string() })
}

fn unknown(name: &str) -> Failure {
    let command = Cli::command();
    let commands = command.get_subcommands().map(clap::Command::get_name);
    let subjects = GUIDE.iter().map(|(subject, _)| *subject);
    let hint = did_you_mean(name, subjects.chain(commands));
    Failure::user(format!("no help on `{name}`"))
        .hint(hint.unwrap_or_else(|| "`twinlens help` lists commands and subjects".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_are_bold_outside_of_code() {
        let page = "# Title\n\ntext\n\n```sh\n# comment\n```\n";
        assert_eq!(render(page, Paint::plain()), page);
        assert_eq!(render(page, Paint::colours()), "\x1b[1mTitle\x1b[0m\n\ntext\n\n    # comment\n");
    }

    #[test]
    fn every_subject_has_a_title() {
        for (name, page) in GUIDE {
            assert!(page.starts_with("# ") && title(page).len() > 2, "{name}");
        }
    }
}
