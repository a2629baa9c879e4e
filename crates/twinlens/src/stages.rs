//! `twinlens stages`: lists the kinds of stages, or the options of one.

use std::io::Write;

use serde_json::Value;
use twinlens_pipeline::Registry;
use twinlens_pipeline::config::{OptionDoc, options_doc};
use twinlens_pipeline::registry::Kind;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::StagesArgs;
use crate::errors::Failure;

pub(crate) fn execute(args: &StagesArgs, registry: &Registry) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let Some(name) = &args.kind else {
        let width = registry.kinds().map(|kind| kind.name.len()).max().unwrap_or(0);
        for kind in registry.kinds() {
            writeln!(out, "{:width$}  {}", kind.name, kind.summary().trim_end_matches('.'))?;
        }
        return Ok(out.flush()?);
    };
    let Some(kind) = registry.kind(name) else {
        let known: Vec<&str> = registry.kinds().map(|kind| kind.name).collect();
        let hint = did_you_mean(name, known.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("the kinds are {}", known.join(", ")));
        return Err(Failure::user(format!("unknown kind of stage `{name}`")).hint(hint));
    };
    out.write_all(help(kind).as_bytes())?;
    Ok(out.flush()?)
}

fn help(kind: &Kind) -> String {
    let about = format!("{}: {}", kind.name, kind.about());
    let mut text = wrapped(&about, 100).join("\n") + "\n\noptions\n";
    for option in options_doc(kind) {
        text += &option_help(&option);
    }
    text += "  rejects = \"keep\" | \"count\"\n      Whether rejected rows are kept in the ledger, or only counted. [default: \"keep\"]\n";
    text +=
        "  seed = integer\n      Seed of everything random in the stage. [default: the pipeline's seed]\n";
    text += "  sweep = table\n      Options, each with an array of values: the stage and those that read it run once per combination.\n";
    text + "\nexample\n" + &kind.example.trim().lines().map(|line| format!("  {line}\n")).collect::<String>()
}

fn option_help(option: &OptionDoc) -> String {
    let mut text = option.description.replace('\n', " ");
    if option.required {
        text += " [required]";
    }
    if let Some(default) = &option.default {
        text += &format!(" [default: {}]", to_toml(default));
    }
    let lines = wrapped(text.trim(), 94);
    format!(
        "  {} = {}\n{}",
        option.name,
        option.r#type,
        lines.iter().map(|line| format!("      {line}\n")).collect::<String>()
    )
}

/// A value in TOML syntax, on one line.
fn to_toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(to_toml).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let given = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> =
                given.map(|(key, value)| format!("{key} = {}", to_toml(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_explained() {
        let option = OptionDoc {
            name: "resize".into(),
            r#type: "table".into(),
            default: Some(serde_json::json!({ "size": 96, "mode": "shortest", "upscale": null })),
            required: false,
            description: format!("The size to which\nimages are scaled. {}", "word ".repeat(15)),
        };
        let expected = "  resize = table
      The size to which images are scaled. word word word word word word word word word word word
      word word word word [default: { mode = \"shortest\", size = 96 }]
";
        assert_eq!(option_help(&option), expected);
    }
}
