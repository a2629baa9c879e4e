//! The report for every kind of mistake.

use super::checked;

/// Mistakes: the name of the snapshot, the file, and the `--set` arguments.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("typo_in_an_option", "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwher = 'width > 3'", &[]),
    ("typo_at_the_top", "sede = 3\n[stage.kept]\nkind = 'keep'", &[]),
    (
        "unknown_kind",
        "[stages.kept]\nkind = 'kep'\n[stages.other]\ninput = 'pages'\n[stages.third]\nkind = 3",
        &[],
    ),
    (
        "unknown_input",
        "[stages.kept]\nkind = 'keep'\ninput = 'page'\nwhere = 'true'\n[stages.more]\nkind = 'keep'\ninput = 'clip.per_clas'\nwhere = 'true'\n[stages.clip]\nkind = 'learn'\ninput = 'rejects'",
        &[],
    ),
    (
        "ambiguous_input",
        "[stages.one]\nkind = 'learn'\ninput = 'pages'\n[stages.two]\nkind = 'learn'\ninput = 'pages'\n[stages.kept]\nkind = 'keep'\ninput = 'per_class'\nwhere = 'good'",
        &[],
    ),
    (
        "cycle",
        "[stages.a]\nkind = 'keep'\ninput = 'c'\nwhere = 'true'\n\n[stages.b]\nkind = 'keep'\ninput = 'a'\nwhere = 'true'\n\n[stages.c]\nkind = 'keep'\ninput = 'b'\nwhere = 'true'\n\n[stages.after]\nkind = 'keep'\ninput = 'c'\nwhere = 'nonsense'\n\n[stages.self]\nkind = 'learn'\ninput = 'self'",
        &[],
    ),
    (
        "undefined_variable",
        "[vars]\nepochs = 3\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = \"${epohcs}\"\nmodel = \"a\\t${HOME}-${TWIN_UNSET}-${\"",
        &[],
    ),
    (
        "variable_of_the_wrong_type",
        "[vars]\nepochs = 'many'\nlist = [1]\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = '${epochs}'\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nverbose = '${share}'",
        &["share=0.5"],
    ),
    (
        "unknown_column",
        "[vars]\nlong = 'a longer word'\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = \"width >= 64 and \\\"caption\\\" <> '${long}' and captoin <> ''\"",
        &[],
    ),
    (
        "unknown_column_in_a_long_string",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = '''\nwidth > 3\n  and widht < 9\n'''",
        &[],
    ),
    (
        "predicate_of_another_type",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'width + 1'\n[stages.more]\nkind = 'keep'\ninput = 'kept'\nwhere = 'not reported, since its input failed'",
        &[],
    ),
    (
        "sql_syntax",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'width > > 3'\n[stages.more]\nkind = 'keep'\ninput = 'pages'\nwhere = \"caption = 'open\"",
        &[],
    ),
    (
        "wrong_types",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 3\nshare = 'half'\nwidths = [1, 'two', 70000, -1]\nresize = { size = -3, mode = 'shortset' }\nverbose = 1",
        &[],
    ),
    (
        "missing_options",
        "[stages.kept]\nkind = 'keep'\n[stages.more]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nresize = {}\n[stages.clip]\nkind = 'learn'\nepochs = 'x'",
        &[],
    ),
    (
        "several_at_once",
        "sites = ['galery']\nmax_reject_share = 2\n[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwher = 'true'\nshar = 0.5\nverbos = true\nresize = { siez = 3 }\nreject = 'keep'\n[stages.More-Of]\nkind = 'keep'\ninput = 'pages'\nwhere = 'height > 3'\nrejects = 'drop'\n[stages.rejects]\nkind = 'learn'\ninput = 'pages'\n[stages.flat]\n",
        &[],
    ),
    ("toml_syntax", "[stages.kept\nkind = \ninput = 'pages\nwhere = 'a'\nwhere = 'b'", &[]),
    (
        "toml_syntax_on_several_lines",
        "[stages.kept]\nkind = \ninput = 'pages\nwhere = 'a'\nwhere = 'b'\n[stages.kept]\nx = 1__0",
        &[],
    ),
    (
        "rejects_that_are_not_kept",
        "[stages.one]\nkind = 'learn'\ninput = 'two.rejects'\n[stages.two]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'\nrejects = 'count'\n[stages.three]\nkind = 'keep'\ninput = 'pages.rejects'\nwhere = \"reject_code = 'x'\"\n[stages.top]\nkind = 'report'\ntables = ['pages']\nquery = 'select 1'\n[stages.four]\nkind = 'keep'\ninput = 'top.rejects'\nwhere = 'true'",
        &[],
    ),
    (
        "bad_tests",
        "[[tests]]\nthat = 'a column'\nsql = 'select widht from pages'\nexpect = 'empty'\n\n[[tests]]\nthat = 'a table'\nsql = 'select * from pagse'\nexpect = 'non-empty'\n\n[[tests]]\nthat = 'syntax'\nsql = 'selekt 1'\nexpect = 'true'\n\n[[tests]]\nthat = 'a boolean'\nsql = 'select caption from pages'\nexpect = 'true'\n\n[[tests]]\nsql = 'drop table pages'\nexpect = 'nothing'\n\n[[tests]]\nthat = 'time'\nsql = 'select 1'\nexpect = 'empty'\ntimeout = -1",
        &[],
    ),
    (
        "bad_set",
        "[vars]\nepochs = 3\n[stages.clip]\nkind = 'learn'\ninput = 'pages'\nepochs = '${epochs}'",
        &[
            "epoch=4",
            "clip.epoch=4",
            "clp.epochs=4",
            "clip.model=[1]",
            "stages.clip=3",
            "nonsense",
            "clip.input=pagse",
        ],
    ),
    (
        "set_points_into_a_predicate",
        "[stages.kept]\nkind = 'keep'\ninput = 'pages'\nwhere = 'true'",
        &["kept.where=width > 3 and captoin = ''"],
    ),
    ("no_stages", "seed = -1", &[]),
];

#[test]
fn every_mistake_is_reported_with_its_position() {
    for (name, text, set) in MISTAKES {
        let head = if text.starts_with("[stages.kept\n") || *name == "no_stages" {
            String::new()
        } else {
            // Top-level keys first, then the source that the cases read.
            "name = 'toy'\nenv = ['TWIN_UNSET']\n".into()
        };
        let pages = if *name == "no_stages" { "" } else { "\n[stages.pages]\nkind = 'list'\nfiles = []\n" };
        let file = format!("{head}{text}{pages}");
        let report = match checked(&file, set) {
            Ok(_) => panic!("{name} passed"),
            Err(report) => report,
        };
        assert!(!report.faults().is_empty());
        insta::assert_snapshot!(*name, report.render(false));
    }
}

#[test]
fn colour_is_optional_and_control_characters_are_removed() {
    let report = checked("name = 'toy'\n\"\\u001b[31m\" = 1", &[]).unwrap_err();
    assert!(!report.render(false).contains('\u{1b}'));
    assert!(report.render(true).contains('\u{1b}') && !report.render(true).contains("\u{1b}[31m`"));
}
