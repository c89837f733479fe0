//! A strict reader of Prometheus' text format, version 0.0.4.

use std::collections::{BTreeMap, BTreeSet};

/// All samples, by name and labels as they are written.
pub(crate) type Samples = BTreeMap<String, f64>;

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_' || c == ':')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// `a="b",c="d"`.
fn labels(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest
            .split_once("=\"")
            .unwrap_or_else(|| panic!("a label: {text}"));
        assert!(is_name(name) && !name.contains(':'), "{text}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars
                .next()
                .unwrap_or_else(|| panic!("no end of a value: {text}"))
            {
                (at, '"') => break at,
                (_, '\\') => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, c @ ('"' | '\\'))) => value.push(c),
                    other => panic!("\\{other:?}: {text}"),
                },
                (_, c) => value.push(c),
            }
        };
        found.push((name.to_owned(), value));
        rest = &after[end + 1..];
        if !rest.is_empty() {
            rest = rest
                .strip_prefix(',')
                .unwrap_or_else(|| panic!("no comma: {text}"));
            assert!(!rest.is_empty(), "a comma at the end: {text}");
        }
    }
    let names: BTreeSet<_> = found.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), found.len(), "a label twice: {text}");
    found
}

fn value(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        number => {
            assert!(
                !number.contains(['i', 'I', 'n', 'N']),
                "not Go's spelling: {text}"
            );
            number.parse().unwrap_or_else(|_| panic!("value {text:?}"))
        }
    }
}

/// Fails where `text` is not of the format, or says what cannot be.
pub(crate) fn check(text: &str) -> Samples {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let mut helped = BTreeSet::new();
    let mut all = Samples::new();
    // Of histograms, by name and other labels: (bound, sum).
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut current = "";
    for line in text.lines() {
        assert_eq!(line.trim(), line, "white space: {line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && helped.insert(name), "{line}");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            assert_eq!(name, current, "TYPE of another than HELP");
            assert!(types.insert(name, kind).is_none(), "{line}: twice");
        } else {
            assert!(!line.is_empty() && !line.starts_with('#'), "{line:?}");
            let (key, number) = line.rsplit_once(' ').unwrap();
            let (name, said) = match key.split_once('{') {
                Some((name, rest)) => (name, rest.strip_suffix('}').unwrap()),
                None => (key, ""),
            };
            assert!(is_name(name), "{line}");
            let (labels, number) = (labels(said), value(number));
            let kind = types
                .get(current)
                .copied()
                .unwrap_or_else(|| panic!("no TYPE: {line}"));
            let suffix = name
                .strip_prefix(current)
                .unwrap_or_else(|| panic!("a sample of another: {line}"));
            match (kind, suffix) {
                ("histogram", "_bucket") => {
                    let le = labels.iter().find(|(name, _)| name == "le").unwrap();
                    let others: Vec<_> = labels.iter().filter(|l| l.0 != "le").collect();
                    let key = format!("{current} {others:?}");
                    buckets.entry(key).or_default().push((value(&le.1), number));
                }
                ("histogram", "_count") => {
                    let key = format!("{current} {:?}", labels.iter().collect::<Vec<_>>());
                    let of = &buckets[&key];
                    assert!(of.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{of:?}");
                    assert_eq!(of.last(), Some(&(f64::INFINITY, number)), "{line}");
                }
                ("histogram", "_sum") | ("counter" | "gauge", "") => {}
                _ => panic!("{kind} {suffix:?}: {line}"),
            }
            assert!(kind == "gauge" || number >= 0.0, "{line}");
            assert!(
                all.insert(key.to_owned(), number).is_none(),
                "{line}: twice"
            );
        }
    }
    assert_eq!(types.keys().copied().collect::<BTreeSet<_>>(), helped);
    assert!(!all.is_empty());
    all
}

#[test]
fn what_is_wrong_is_found() {
    let good = "# HELP a b\n# TYPE a counter\na{x=\"\\\"\\\\\\n}\"} 5\n";
    assert_eq!(check(good)["a{x=\"\\\"\\\\\\n}\"}"], 5.0);
    for bad in [
        "",
        "a 5\n",
        "# HELP a b\n# TYPE a counter\na 5",
        "# HELP a b\n# TYPE a counter\na -5\n",
        "# HELP a b\n# TYPE a counter\na 5\na 5\n",
        "# HELP a b\n# TYPE a counter\nb 5\n",
        "# HELP a b\n# TYPE a counter\na NaN\n",
        "# HELP a b\n# TYPE a counter\na{x=\"1\",} 5\n",
        "# HELP a b\n# TYPE a counter\na{x=\"1\",x=\"2\"} 5\n",
        "# HELP a b\n# TYPE a counter\na{x=\"\\t\"} 5\n",
        "# HELP a b\n# TYPE a histogram\na_bucket{le=\"1\"} 5\na_bucket{le=\"+Inf\"} 4\na_sum 1\na_count 4\n",
        "# HELP a b\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 4\na_sum 1\na_count 5\n",
    ] {
        let found = std::panic::catch_unwind(|| check(bad));
        assert!(found.is_err(), "{bad}");
    }
}
