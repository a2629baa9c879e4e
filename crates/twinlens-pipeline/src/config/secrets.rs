//! Finds the secrets in the values of a pipeline: headers, variables of programs, parts of URLs.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::secrets::{Secrets, is_secret_header};

/// Options that are tables of HTTP headers.
const HEADERS: &str = "headers";
/// Options that are tables of environment variables.
const ENV: &str = "env";
/// Parts of the names of variables that give access; others are settings, whose values are usual
/// words.
const SECRET_NAMES: &[&str] = &["AUTH", "CREDENTIAL", "KEY", "PASS", "SECRET", "TOKEN"];

/// The secrets in all values of a pipeline.
pub(super) fn of_values(root: &DeTable<'_>) -> Secrets {
    let mut secrets = none(root);
    add_table(root, &mut secrets);
    secrets
}

/// No secrets, by the rules of a pipeline.
pub(super) fn none(root: &DeTable<'_>) -> Secrets {
    let text = |name: &str| root.get(name).and_then(|value| value.get_ref().as_str());
    let parameters = root.get("secret_parameters").and_then(|names| names.get_ref().as_array());
    let parameters = parameters.into_iter().flat_map(|names| names.iter());
    let parameters = parameters.filter_map(|name| name.get_ref().as_str().map(String::from));
    Secrets::new(text("name").unwrap_or_default(), parameters.collect())
}

/// Adds the secrets in the values of a table. Those that have a name keep it.
pub(super) fn add_table(table: &DeTable<'_>, secrets: &mut Secrets) {
    for (key, value) in table.iter() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            (HEADERS, DeValue::Table(headers)) => add_headers(headers, secrets),
            (ENV, DeValue::Table(variables)) => add_variables(variables, secrets),
            _ => add_value(value, secrets),
        }
    }
}

fn add_value(value: &Spanned<DeValue<'_>>, secrets: &mut Secrets) {
    match value.get_ref() {
        DeValue::String(text) => secrets.add_urls(text),
        DeValue::Array(items) => items.iter().for_each(|item| add_value(item, secrets)),
        DeValue::Table(table) => add_table(table, secrets),
        _ => {}
    }
}

fn add_headers(headers: &DeTable<'_>, secrets: &mut Secrets) {
    for (name, value) in headers.iter() {
        // A variable that could not be filled in reveals nothing.
        let Some(value) = value.get_ref().as_str().filter(|value| !value.contains("${")) else { continue };
        if !is_secret_header(name.get_ref()) {
            secrets.add_urls(value);
            continue;
        }
        secrets.add_unnamed(value);
        // `Bearer TOKEN`
        if let Some((_, token)) = value.split_once(' ') {
            secrets.add_unnamed(token.trim());
        }
    }
}

/// Adds the texts of a line that is not TOML, if it may be one of headers or of variables that give
/// access: the message shows it.
pub(super) fn add_broken_line(line: &str, secrets: &mut Secrets) {
    let upper = line.to_ascii_uppercase();
    let words = SECRET_NAMES.iter().chain(&["COOKIE", "HEADERS"]);
    if words.into_iter().any(|word| upper.contains(word)) {
        line.split(['"', '\'']).skip(1).step_by(2).for_each(|text| secrets.add_unnamed(text));
    }
}

fn add_variables(variables: &DeTable<'_>, secrets: &mut Secrets) {
    for (name, value) in variables.iter() {
        let name = name.get_ref().to_ascii_uppercase();
        let Some(value) = value.get_ref().as_str() else { continue };
        if SECRET_NAMES.iter().any(|part| name.contains(part)) {
            secrets.add_unnamed(value);
        }
        secrets.add_urls(value);
    }
}

/// The names of the environment variables that programs are given.
pub(super) fn passed_on<'a>(root: &'a DeTable<'_>) -> impl Iterator<Item = &'a str> {
    let stages = root.get("stages").and_then(|stages| stages.get_ref().as_table());
    let stages = stages.into_iter().flat_map(|stages| stages.values());
    let lists = stages.filter_map(|stage| stage.get_ref().as_table()?.get("pass_env")?.get_ref().as_array());
    lists.flat_map(|list| list.iter()).filter_map(|name| name.get_ref().as_str())
}
