//! `twinlens stages`: the kinds of stages, and the options of one. All of it comes from the code of
//! the kind.

use std::io::Write;

use serde_json::Value;
use twinlens_pipeline::config::{OptionDoc, options_doc};
use twinlens_pipeline::registry::Kind;
use twinlens_pipeline::suggest::did_you_mean;

use crate::cli::StagesArgs;
use crate::errors::Failure;
use crate::registry;

/// Lists the kinds, or explains one.
pub fn execute(args: &StagesArgs) -> Result<(), Failure> {
    let registry = registry::all();
    let mut out = std::io::stdout().lock();
    let Some(name) = &args.kind else {
        let width = registry.kinds().map(|kind| kind.name.len()).max().unwrap_or(0);
        for kind in registry.kinds() {
            writeln!(out, "{:width$}  {}", kind.name, about(kind))?;
        }
        return Ok(out.flush()?);
    };
    let Some(kind) = registry.kind(name) else {
        let known: Vec<&str> = registry.kinds().map(|kind| kind.name).collect();
        let hint = did_you_mean(name, known.iter().copied());
        let hint = hint.unwrap_or_else(|| format!("the kinds are {}", known.join(", ")));
        return Err(Failure::user(format!("there is no kind of stage `{name}`")).hint(hint));
    };
    out.write_all(explained(kind).as_bytes())?;
    Ok(out.flush()?)
}

fn about(kind: &Kind) -> &str {
    kind.about.trim_end_matches('.')
}

fn explained(kind: &Kind) -> String {
    let mut text = format!("{}: {}\n\noptions\n", kind.name, about(kind));
    for option in options_doc(kind) {
        text += &explained_option(&option);
    }
    text += "  rejects = \"keep\" | \"count\"\n      Whether refused rows are kept in the ledger, or only counted. [default: \"keep\"]\n";
    text += "  seed = integer\n      Where what the stage draws at random comes from. [default: the pipeline's seed]\n";
    text += "  sweep = table\n      Options, each with an array of values: the stage is made once for each combination, and so is what reads it.\n";
    text + "\nexample\n" + &kind.example.trim().lines().map(|line| format!("  {line}\n")).collect::<String>()
}

fn explained_option(option: &OptionDoc) -> String {
    let mut about = option.description.replace('\n', " ");
    if option.required {
        about += " [required]";
    }
    if let Some(default) = &option.default {
        about += &format!(" [default: {}]", toml_like(default));
    }
    let lines = wrapped(about.trim(), 94);
    format!(
        "  {} = {}\n{}",
        option.name,
        option.r#type,
        lines.iter().map(|line| format!("      {line}\n")).collect::<String>()
    )
}

/// A value as a pipeline file writes it.
fn toml_like(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_like).collect::<Vec<_>>().join(", ")),
        Value::Object(entries) => {
            let given = entries.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> =
                given.map(|(key, value)| format!("{key} = {}", toml_like(value))).collect();
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
    fn an_option_is_explained() {
        let option = OptionDoc {
            name: "resize".into(),
            r#type: "table".into(),
            default: Some(serde_json::json!({ "size": 96, "mode": "shortest", "upscale": null })),
            required: false,
            description: format!("To what size\nimages are brought. {}", "word ".repeat(15)),
        };
        let expected = "  resize = table
      To what size images are brought. word word word word word word word word word word word word
      word word word [default: { mode = \"shortest\", size = 96 }]
";
        assert_eq!(explained_option(&option), expected);
    }
}
