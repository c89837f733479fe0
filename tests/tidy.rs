//! Holds the shape that docs/ARCHITECTURE.md draws: which module may use which, where each
//! external crate has its home, where `unsafe` is, and what no file may hold.
//!
//! The two tables of that document are read here; they are the rule, this is only the judge.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of code of a source file: tests, comments and empty lines aside. A tripwire: split
/// before it, do not raise it.
const MAX_LINES: usize = 600;

/// Words that stand for work not done, or left in by mistake.
const FORBIDDEN: [&str; 7] = [
    "TODO",
    "FIXME",
    "XXX",
    "HACK",
    "todo!",
    "unimplemented!",
    "dbg!",
];

// ---- reading Rust ----------------------------------------------------------------------------

/// The code of a source file: comments, strings and test modules blanked, lines kept.
fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let taken = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |n| n + 2)
        } else if c == '"' {
            string_end(rest)
        } else if let Some(hashes) = raw_string(rest) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = rest.find('"').unwrap_or(0) + 1;
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |n| open + n + close.len())
        } else if c == '\'' {
            char_end(rest)
        } else {
            0
        };
        if taken == 0 {
            // A whole word at once, so that the r of `bar"` is no raw string.
            let word = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let n = word.max(c.len_utf8());
            out.push_str(&rest[..n]);
            rest = &rest[n..];
        } else {
            out.extend(
                rest[..taken]
                    .chars()
                    .map(|c| if c == '\n' { '\n' } else { ' ' }),
            );
            rest = &rest[taken..];
        }
    }
    without_tests(&out)
}

/// Length of the string literal that `text` begins with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Number of `#` of the raw string that `text` begins with.
fn raw_string(text: &str) -> Option<usize> {
    let rest = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    rest[hashes..].starts_with('"').then_some(hashes)
}

/// Length of the character literal that `text` begins with; 0 for a lifetime.
fn char_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3.min(text.len())..].find('\'').map_or(0, |n| n + 4),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

/// Without `#[cfg(test)] mod … { … }` (up to the brace in the first column) and items of tests.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut lines = code.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            let mut body = lines.next().unwrap_or_default();
            let closes = |line: &str| line == "}" || line.starts_with("});");
            if !body.trim_end().ends_with(';') {
                while !closes(body) {
                    let Some(next) = lines.next() else { break };
                    body = next;
                }
            }
            continue;
        }
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// Identifiers and the signs that paths are made of.
fn tokens(code: &str) -> Vec<&str> {
    let mut all = Vec::new();
    let mut rest = code;
    while let Some(c) = rest.chars().next() {
        let n = if c.is_alphanumeric() || c == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            c.len_utf8()
        };
        if !c.is_whitespace() {
            all.push(&rest[..n]);
        }
        rest = &rest[n..];
    }
    all
}

/// Paths from the crate's root that the code names: `a::b` for `crate::a::b::…`. `depth`: how many
/// `super` lead from the file's module to the root.
fn paths(code: &str, depth: usize) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut found = BTreeSet::new();
    let at = |n: usize| tokens.get(n).copied().unwrap_or_default();
    for n in 0..tokens.len() {
        let behind_path = n > 0 && at(n - 1) == "::";
        let start = match at(n) {
            "crate" | "tarnfs" if !behind_path && at(n + 1) == "::" => n + 2,
            "super" if !behind_path => {
                let mut end = n;
                while at(end) == "super" && at(end + 1) == "::" {
                    end += 2;
                }
                if (end - n) / 2 < depth {
                    continue;
                }
                end
            }
            _ => continue,
        };
        if at(start) != "{" {
            found.insert(two(at(start), at(start + 1), at(start + 2)));
            continue;
        }
        // use crate::{a, b::c};
        let mut level = 0_usize;
        for m in start.. {
            match at(m) {
                "{" => level += 1,
                "}" => level = level.saturating_sub(1),
                _ => {}
            }
            if level == 0 || at(m).is_empty() {
                break;
            }
            if level == 1 && matches!(at(m), "{" | ",") {
                found.insert(two(at(m + 1), at(m + 2), at(m + 3)));
            }
        }
    }
    found
}

fn two(first: &str, sign: &str, second: &str) -> String {
    if sign == "::" && second.starts_with(char::is_lowercase) {
        format!("{first}::{second}")
    } else {
        first.to_owned()
    }
}

/// Whether the code names the external crate `name`. Where a module of ours has the same name,
/// only `::name::…` is the crate.
fn uses_crate(code: &str, name: &str, also_ours: bool) -> bool {
    let tokens = tokens(code);
    tokens.iter().enumerate().any(|(n, token)| {
        let before = n.checked_sub(1).map_or("", |n| tokens[n]);
        let before_that = n.checked_sub(2).map_or("", |n| tokens[n]);
        let after = tokens.get(n + 1).copied().unwrap_or_default();
        let leads = before == "::" && (!is_word(before_that) || before_that == "use");
        *token == name
            && if also_ours {
                leads
            } else {
                (before != "::" || leads) && (after == "::" || before == "use")
            }
    })
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

// ---- the rules -------------------------------------------------------------------------------

/// A module of the map: its place, and what it may use.
#[derive(Debug)]
struct Module {
    name: String,
    uses: BTreeSet<String>,
}

/// The rows of the table behind `heading`: cells, with the backticks taken off.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    document
        .lines()
        .skip_while(|line| line.trim_start_matches('#').trim() != heading)
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

fn list(cell: &str) -> BTreeSet<String> {
    let parts = cell.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty() && *part != "-")
        .map(str::to_owned)
        .collect()
}

fn map(document: &str) -> Vec<Module> {
    table(document, "The map")
        .into_iter()
        .map(|row| Module {
            name: row[0].clone(),
            uses: list(&row[2]),
        })
        .collect()
}

/// What is wrong with the map itself: a module may use only what stands above it.
fn map_errors(map: &[Module]) -> Vec<String> {
    let mut errors = Vec::new();
    let mut above = BTreeSet::new();
    for module in map {
        for used in &module.uses {
            if !above.contains(used) {
                errors.push(format!(
                    "the map: {} uses {used}, which is not above it",
                    module.name
                ));
            }
        }
        above.insert(module.name.clone());
    }
    errors
}

/// The row that a path belongs to: the longest that it begins with.
fn row<'a>(map: &'a [Module], path: &str) -> Option<&'a Module> {
    let begins = |name: &str| path == name || path.starts_with(&format!("{name}::"));
    map.iter()
        .filter(|module| begins(&module.name))
        .max_by_key(|module| module.name.len())
}

/// `index::tree` for `index/tree.rs`, `cli` for `main.rs`.
fn module_path(file: &Path) -> String {
    let mut parts: Vec<_> = file
        .with_extension("")
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .filter(|part| part != "mod")
        .collect();
    if parts == ["main"] {
        parts = vec!["cli".to_owned()];
    }
    parts.join("::")
}

/// Back edges of one file.
fn back_edges(map: &[Module], file: &Path, source: &str) -> Vec<String> {
    if file == Path::new("lib.rs") {
        return Vec::new();
    }
    let path = module_path(file);
    let Some(module) = row(map, &path) else {
        return vec![format!(
            "{}: not in the map of docs/ARCHITECTURE.md",
            file.display()
        )];
    };
    let depth = if file == Path::new("main.rs") {
        1
    } else {
        path.split("::").count()
    };
    let mut errors = Vec::new();
    for used in paths(&code(source), depth) {
        let Some(used) = row(map, &used) else {
            // A thing of the crate's root, or of the binary's own.
            continue;
        };
        if used.name != module.name && !module.uses.contains(&used.name) {
            errors.push(format!(
                "{}: {} uses {}, which the map does not allow",
                file.display(),
                module.name,
                used.name
            ));
        }
    }
    errors
}

/// Uses of external crates away from home.
fn strays(
    map: &[Module],
    homes: &BTreeMap<String, BTreeSet<String>>,
    file: &Path,
    source: &str,
) -> Vec<String> {
    let code = code(source);
    let path = module_path(file);
    let Some(module) = row(map, &path) else {
        return Vec::new();
    };
    homes
        .iter()
        .filter(|(name, homes)| {
            let ours = map.iter().any(|module| &module.name == *name);
            uses_crate(&code, name, ours) && !homes.contains(&module.name)
        })
        .map(|(name, _)| format!("{}: {name} has its home elsewhere", file.display()))
        .collect()
}

/// Everything else that holds for one source file.
fn untidy(file: &Path, source: &str) -> Vec<String> {
    let code = code(source);
    let shown = file.display();
    let mut errors = Vec::new();
    let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > MAX_LINES {
        errors.push(format!(
            "{shown}: {lines} lines of code, {MAX_LINES} are allowed"
        ));
    }
    if !source.starts_with("//!") {
        errors.push(format!("{shown}: does not begin with a module doc (//!)"));
    }
    let tokens = tokens(&code);
    let in_sys = file.starts_with("sys");
    if tokens.contains(&"unsafe") && !in_sys {
        errors.push(format!("{shown}: unsafe outside sys"));
    }
    let in_binary = file.starts_with("cli") || file == Path::new("main.rs");
    if !in_binary {
        for print in ["println", "eprintln", "print", "eprint"] {
            if tokens.windows(2).any(|pair| pair == [print, "!"]) {
                errors.push(format!("{shown}: the library prints ({print}!)"));
            }
        }
    }
    errors
}

/// What no file of the project may hold, tests and scripts included.
fn forbidden(file: &Path, text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let shown = format!("{}:{}", file.display(), n + 1);
        for word in FORBIDDEN {
            let found = line.match_indices(word).any(|(at, _)| {
                // A whole word: no letter on either side (XXXXXX is mktemp's).
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                !letter(before) && !letter(after)
            });
            if found {
                errors.push(format!("{shown}: {word}"));
            }
        }
        if line.trim_start().starts_with("#[ignore") {
            errors.push(format!("{shown}: an ignored test"));
        }
    }
    errors
}

// ---- the project -----------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &str, ends: &[&str]) -> Vec<(PathBuf, String)> {
    let top = root().join(dir);
    let mut all = Vec::new();
    let mut todo = vec![top.clone()];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.to_string_lossy().into_owned();
            if path.is_dir() {
                todo.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                let text = fs::read_to_string(&path).unwrap();
                all.push((path.strip_prefix(&top).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!all.is_empty(), "no files in {dir}");
    all.sort();
    all
}

/// A file of tests only: named so, or in a directory that is.
fn is_test(file: &Path) -> bool {
    file.iter().any(|part| {
        let part = part.to_string_lossy();
        let part = part.trim_end_matches(".rs");
        matches!(part, "tests" | "testing") || part.ends_with("_tests")
    })
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut all = files("src", &[".rs"]);
    all.retain(|(file, _)| !is_test(file));
    all
}

fn architecture() -> String {
    fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap()
}

fn homes(document: &str) -> BTreeMap<String, BTreeSet<String>> {
    table(document, "Homes of the external crates")
        .into_iter()
        .map(|row| (row[0].clone(), list(&row[1])))
        .collect()
}

fn assert_none(errors: &[String]) {
    assert!(errors.is_empty(), "\n{}", errors.join("\n"));
}

#[test]
fn data_flows_one_way() {
    let map = map(&architecture());
    assert!(map.len() > 10, "the map could not be read");
    let mut errors = map_errors(&map);
    for (file, source) in sources() {
        errors.extend(back_edges(&map, &file, &source));
    }
    assert_none(&errors);
}

#[test]
fn each_external_crate_has_its_home() {
    let document = architecture();
    let (map, homes) = (map(&document), homes(&document));
    let mut errors = Vec::new();
    for (file, source) in sources() {
        errors.extend(strays(&map, &homes, &file, &source));
    }
    // And each dependency stands in the table.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| {
            line.split_once('=')
                .map(|(name, _)| name.trim().replace('-', "_"))
        })
        .filter(|name| !name.starts_with('#'));
    for name in dependencies {
        if !homes.contains_key(&name) {
            errors.push(format!(
                "Cargo.toml: {name} has no home in docs/ARCHITECTURE.md"
            ));
        }
    }
    assert_none(&errors);
}

#[test]
fn each_file_is_tidy() {
    let mut errors = Vec::new();
    for (file, source) in sources() {
        errors.extend(untidy(&file, &source));
    }
    assert_none(&errors);
}

#[test]
fn nothing_is_left_undone() {
    let mut errors = Vec::new();
    for dir in ["src", "tests", "docs"] {
        for (file, text) in files(dir, &[".rs", ".sh", ".md"]) {
            // This file names the words.
            if file != Path::new("tidy.rs") {
                errors.extend(forbidden(&Path::new(dir).join(file), &text));
            }
        }
    }
    assert_none(&errors);
}

// ---- the judge is judged ---------------------------------------------------------------------

const MAP: &str = "
# The map

| module | what | uses |
|---|---|---|
| `name` | names | - |
| `index::tree` | the tree | `name` |
| `erofs` | the format | `index::tree`, `name` |
| `index` | building | `erofs`, `index::tree`, `name` |
| `cli` | the program | `index`, `name` |
";

fn planted(file: &str, source: &str) -> Vec<String> {
    back_edges(&map(MAP), Path::new(file), source)
}

#[test]
fn allowed_edges_pass() {
    for (file, source) in [
        (
            "index/mod.rs",
            "use crate::erofs::writer;\nuse crate::index::tree::Tree;",
        ),
        (
            "erofs/writer.rs",
            "use crate::index::tree::Tree;\nuse super::layout;",
        ),
        ("erofs/writer.rs", "use crate::{index::tree, name::Name};"),
        ("main.rs", "mod cli;\nfn main() { cli::main() }"),
        ("cli/ls.rs", "use tarnfs::index::build;\nuse super::Global;"),
        // Comments, strings and tests are no edges.
        (
            "name.rs",
            "//! [`crate::index`]\n/* crate::cli */ const A: &str = \"crate::cli::x\";",
        ),
        (
            "name.rs",
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    use crate::cli::x;\n}\n",
        ),
        ("name.rs", "const Q: char = '\"'; /* \" */ // crate::cli::x"),
        (
            "name.rs",
            "const Q: &str = r#\"crate::cli::x \"quoted\" \"#;",
        ),
    ] {
        assert_eq!(
            planted(file, source),
            Vec::<String>::new(),
            "{file}: {source}"
        );
    }
}

#[test]
fn back_edges_are_found() {
    for (file, source) in [
        ("erofs/writer.rs", "use crate::index::builder;"),
        ("erofs/writer.rs", "use crate::{name::Name, index};"),
        ("erofs/writer.rs", "fn f() -> crate::cli::Global {}"),
        ("erofs/writer.rs", "use super::super::index::builder;"),
        ("name.rs", "use super::erofs;"),
        (
            "name.rs",
            "fn a<'a>(x: &'a str) -> &'a str { crate::erofs::b(x) }",
        ),
        ("name.rs", "const S: &str = \"\\\"\"; use crate::erofs;"),
        ("name.rs", "#[cfg(test)]\nmod tests {\n}\nuse crate::erofs;"),
        ("cli/ls.rs", "use tarnfs::erofs::layout;"),
        ("elsewhere/mod.rs", ""),
    ] {
        assert_eq!(planted(file, source).len(), 1, "{file}: {source}");
    }
}

#[test]
fn a_map_that_points_down_is_refused() {
    let wrong = MAP.replace("| names | - |", "| names | `cli` |");
    assert_eq!(map_errors(&map(&wrong)).len(), 1);
    assert_eq!(map_errors(&map(MAP)), Vec::<String>::new());
}

#[test]
fn stray_crates_are_found() {
    let homes = BTreeMap::from([
        ("fuser".to_owned(), BTreeSet::from(["erofs".to_owned()])),
        ("name".to_owned(), BTreeSet::from(["erofs".to_owned()])),
    ]);
    let check = |file: &str, source: &str| strays(&map(MAP), &homes, Path::new(file), source).len();
    assert_eq!(check("index/mod.rs", "use fuser::Session;"), 1);
    assert_eq!(check("index/mod.rs", "fn f(x: fuser::Session) {}"), 1);
    assert_eq!(check("index/mod.rs", "use fuser;"), 1);
    assert_eq!(check("erofs/mod.rs", "use fuser::Session;"), 0);
    assert_eq!(
        check("index/mod.rs", "// fuser::Session\nuse crate::fuser::x;"),
        0
    );
    // A crate and a module of one name.
    assert_eq!(
        check(
            "index/mod.rs",
            "use crate::name::Name; fn f(x: name::Name) {}"
        ),
        0
    );
    assert_eq!(check("index/mod.rs", "use ::name::Builder;"), 1);
}

#[test]
fn untidy_files_are_found() {
    let check = |file: &str, source: &str| untidy(Path::new(file), source).len();
    assert_eq!(check("a.rs", "//! A.\nfn a() {}"), 0);
    assert_eq!(check("a.rs", "fn a() {}"), 1);
    assert_eq!(check("a.rs", "//! A.\nfn a() { unsafe { b() } }"), 1);
    assert_eq!(check("sys/a.rs", "//! A.\nfn a() { unsafe { b() } }"), 0);
    assert_eq!(check("a.rs", "//! A.\nfn a() { println!(\"x\") }"), 1);
    assert_eq!(check("cli/a.rs", "//! A.\nfn a() { println!(\"x\") }"), 0);
    let long = format!("//! A.\n{}", "fn a() {}\n".repeat(MAX_LINES + 1));
    assert_eq!(check("a.rs", &long), 1);
    let tested = format!(
        "//! A.\n#[cfg(test)]\nmod tests {{\n{}}}\n",
        "    fn a() {}\n".repeat(MAX_LINES + 1)
    );
    assert_eq!(check("a.rs", &tested), 0);
}

#[test]
fn forbidden_words_are_found() {
    let check = |text: &str| forbidden(Path::new("a"), text).len();
    assert_eq!(check("// TODO: all of it"), 1);
    assert_eq!(check("    todo!()"), 1);
    assert_eq!(check("#[ignore]\nfn a() {}"), 1);
    assert_eq!(check("#[ignore = \"slow\"]"), 1);
    assert_eq!(
        check("mktemp /tmp/a.XXXXXX; let todos = 1; // methodTODOx"),
        0
    );
}
