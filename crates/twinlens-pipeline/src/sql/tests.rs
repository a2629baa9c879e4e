use super::*;
use datafusion::arrow::datatypes::Field;

fn context() -> SqlPlanner {
    SqlPlanner { session: SessionContext::new() }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("caption", DataType::Utf8, true),
        Field::new("width", DataType::Int32, true),
        Field::new("Licence", DataType::Utf8, true),
    ]))
}

/// The message, the marked words, and the hint.
fn parts(text: &str, fault: Fault) -> (String, String, Option<String>) {
    (
        fault.message,
        fault.within.map_or("*".into(), |place| text[place].to_string()),
        fault.hint.map(String::from),
    )
}

#[test]
fn valid_predicates_pass() {
    for text in [
        "width >= 64",
        "char_length(caption) >= 5 and not regexp_like(caption, '^(image|photo)[ _-]?[0-9]*$', 'i')",
        "\"Licence\" is null or width between 1 and 3",
        "starts_with(caption, 'a')",
        "true",
    ] {
        context().predicate(&Located::without_span(text.into()), &schema()).unwrap();
    }
}

#[test]
fn functions_may_be_called_by_any_of_their_names() {
    for text in ["length(caption)", "char_length(caption)", "character_length(caption)", "width"] {
        let (expr, kind) = context().expression(&Located::without_span(text.into()), &schema()).unwrap();
        assert!(kind == DataType::Int32 && !matches!(expr, Expr::Alias(_)), "{text}");
    }
}

#[test]
fn faults_of_predicates_point_at_the_word() {
    let cases = [
        (
            "width > 3 and captoin = ''",
            "unknown column `captoin`",
            "captoin",
            Some("did you mean `caption`?"),
        ),
        ("'ä' = captoin", "unknown column `captoin`", "captoin", Some("did you mean `caption`?")),
        ("width > 3 and\n  nothing = ''", "unknown column `nothing`", "nothing", None),
        (
            "Licence is null",
            "unknown column `licence`",
            "Licence",
            Some("names without quotes are lower-cased: write `\"Licence\"`"),
        ),
        (
            "char_lenght(caption) > 3",
            "unknown function `char_lenght`",
            "char_lenght",
            Some("did you mean `char_length`?"),
        ),
        ("width", "the predicate is an integer, not a condition", "*", None),
        ("caption", "the predicate is text, not a condition", "*", None),
    ];
    for (text, message, word, hint) in cases {
        let fault = context().predicate(&Located::without_span(text.into()), &schema()).unwrap_err();
        assert_eq!(parts(text, fault), (message.into(), word.into(), hint.map(String::from)), "{text}");
    }
    for text in [
        "",
        "width >",
        "width > 3)",
        "width > 'a",
        "width > 3; drop table x",
        "count(*) > 3",
        "exists (select 1)",
    ] {
        context().predicate(&Located::without_span(text.into()), &schema()).unwrap_err();
    }
}

/// What is still read out of a message: check it again when this version changes.
#[test]
fn positions_in_parser_messages_of_datafusion_55() {
    assert!(datafusion::DATAFUSION_VERSION.starts_with("55."), "{}", datafusion::DATAFUSION_VERSION);
    let cases = [
        ("width > > 3", "Expected: an expression, found: >", ">"),
        ("width > 3 and\n  = 2", "Expected: an expression, found: =", "="),
        ("'ä' = = 1", "Expected: an expression, found: =", "="),
        ("width > 'open", "Unterminated string literal", "'"),
    ];
    for (text, message, word) in cases {
        let fault = context().predicate(&Located::without_span(text.into()), &schema()).unwrap_err();
        assert_eq!(parts(text, fault), (message.into(), word.into(), None), "{text}");
    }
}

#[test]
fn queries_are_planned_over_stages_and_side_tables() {
    let tables =
        [("pages".to_string(), schema()), ("pages.stats".into(), schema()), ("stats".into(), schema())];
    let query = |text: &str| context().query(&Located::without_span(text.into()), &tables);
    let found = query(
        "select p.caption, count(*) as n from pages p join pages.stats s on p.width = s.width group by 1",
    )
    .unwrap();
    assert_eq!(
        found.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(),
        ["caption", "n"]
    );
    let cases = [
        ("select captoin from stats", "unknown column `captoin`", "captoin"),
        ("select caption from page", "unknown table `page`", "page"),
        ("select caption from pages.stat", "unknown table `pages.stat`", "pages.stat"),
        ("select 1 from (select * from \"Pages\")", "unknown table `\"Pages\"`", "\"Pages\""),
        ("with pages as (select 1 as n) select n from page", "unknown table `page`", "page"),
        ("select lenght(caption) from stats", "unknown function `lenght`", "lenght"),
        (
            "select caption, count(*) from stats group by width",
            "'stats.caption' must appear in GROUP BY clause because it's not an aggregate expression",
            "caption",
        ),
        ("drop table pages", "not a query", "*"),
        ("copy pages to 'x.csv'", "not a query", "*"),
        ("explain select 1", "not a query", "*"),
    ];
    for (text, message, word) in cases {
        let (actual_message, actual_word, _) = parts(text, query(text).unwrap_err());
        assert_eq!((actual_message.as_str(), actual_word.as_str()), (message, word), "{text}");
    }
    for text in [
        "select (select from pages) > 0",
        "select caption form pages",
        "select",
        "select * from pages where",
        "select 'x",
    ] {
        assert!(query(text).is_err(), "{text}");
    }
}

#[test]
fn checking_adds_no_tables_to_the_session() {
    let context = context();
    context.query(&Located::without_span("select 1 from t".into()), &[("t".into(), schema())]).unwrap();
    assert!(!context.session.table_exist("t").unwrap());
}

#[test]
fn the_largest_allowed_sql_does_not_overflow_the_stack() {
    let check = |text: String| context().predicate(&Located::without_span(text), &schema());
    let query = |text: String| context().query(&Located::without_span(text), &[("t".into(), schema())]);
    check(vec!["width=1"; MAX_SQL_OPERATORS / 2].join(" or ")).unwrap();
    check(format!("width{} = 1", " + 1".repeat(MAX_SQL_OPERATORS - 1))).unwrap();
    // These two chains nest the deepest frames.
    check(format!("width{} = 1", "::int".repeat(MAX_SQL_OPERATORS - 1))).unwrap();
    check(format!("width{}", " is null".repeat(MAX_SQL_OPERATORS))).unwrap();
    query(vec!["select width from t"; MAX_SQL_OPERATORS].join(" union all ")).unwrap();
    check(format!("width in ({}1)", "1, ".repeat(15_000))).unwrap();
    for too_deep in [
        vec!["width=1"; 3000].join(" or "),
        format!("width{} = 1", "::int".repeat(9_000)),
        format!("{}1 = 1", "- ".repeat(30_000)),
        format!("{}true", "not ".repeat(10_000)),
        format!("{}true{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("width{}", " is null".repeat(5_000)),
        format!("{}1{}", "case when true then ".repeat(2_000), " end".repeat(2_000)),
        format!("{}caption{} = ''", "upper(".repeat(5_000), ")".repeat(5_000)),
        "1 = 1".to_string() + &" ".repeat(MAX_SQL_BYTES),
    ] {
        check(too_deep).unwrap_err();
    }
    query(format!("{}select 1{}", "select * from (".repeat(3_000), ")".repeat(3_000))).unwrap_err();
    query(format!("select 1{}", " union all select 1".repeat(3_000))).unwrap_err();
}
