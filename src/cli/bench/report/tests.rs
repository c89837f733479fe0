//! The page is well-formed and holds everybody; the axis and the figures are as they should be.

use super::super::contenders;
use super::super::environment::Environment;
use super::super::stats::{Summary, exponent};
use super::super::works;
use super::svg::Axis;
use super::*;

fn numbers(name: &'static str, base: f64) -> Numbers {
    let samples = vec![base, base * 1.1, base * 0.9];
    Numbers {
        name,
        unit: "s",
        summary: Summary::of(&samples),
        ratio: Summary::of(&samples),
        samples,
    }
}

/// Everybody did every work, but for one that could not and says why, with signs that XML minds.
fn report() -> Report {
    let works = works::ALL.iter().map(|work| WorkReport {
        name: work.name,
        group: work.group,
        what: work.what,
        baseline: work.baseline,
        results: contenders::ALL
            .iter()
            .enumerate()
            .map(|(n, contender)| {
                let could = contender.name != "erofs";
                Outcome {
                    contender: contender.name,
                    missing: (!could).then(|| "failed: <a> & \"b\"".to_owned()),
                    seconds: 1.5,
                    numbers: if could {
                        vec![numbers(
                            "time",
                            0.001 * 3_f64.powi(i32::try_from(n).unwrap()),
                        )]
                    } else {
                        Vec::new()
                    },
                }
            })
            .collect(),
    });
    let points: Vec<Point> = [10, 1_000, 100_000]
        .map(|x| Point {
            x,
            samples: vec![1.0],
            summary: Summary::of(&[super::super::stats::float(x) * 1e-6]).unwrap(),
        })
        .into();
    let fit: Vec<_> = points
        .iter()
        .map(|p| (super::super::stats::float(p.x), p.summary.median))
        .collect();
    Report {
        schema: SCHEMA,
        command: "tarnfs bench 'a & b.tar'".to_owned(),
        environment: Environment::default(),
        image: ImageReport {
            name: "a & b.tar".to_owned(),
            tar_bytes: 1,
            entries: 2,
            file_bytes: 3,
            small_files: 4,
            big_file_bytes: 5,
            command: vec!["/bin/true".to_owned()],
        },
        rounds: 3,
        seconds: 90.0,
        preparation_seconds: 3.0,
        quick: true,
        sizes: super::super::lab::Sizes::quick(),
        contenders: contenders::ALL
            .iter()
            .map(|contender| ContenderReport {
                name: contender.name,
                what: contender.what,
                mount_arguments: Vec::new(),
                options: Some("rw".to_owned()),
                missing: None,
            })
            .collect(),
        works: works.collect(),
        growth: vec![Series {
            chart: "time of an index",
            contender: "tarnfs",
            of: "entries",
            unit: "s",
            exponent: exponent(&fit),
            points,
            missing: None,
        }],
        not_measured: vec!["images of several blobs".to_owned()],
    }
}

/// Every tag is closed, in order, and every attribute is quoted.
fn assert_well_formed(page: &str) {
    let mut open: Vec<String> = Vec::new();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").unwrap();
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        assert!(
            open.last().is_some_and(|tag| tag == "style") || !text.contains('>'),
            "a bare > in {text}"
        );
        for piece in text.split('&').skip(1) {
            let entity = piece.split(';').next().unwrap();
            assert!(["amp", "lt", "gt", "quot"].contains(&entity), "&{entity}");
        }
        let end = tag.find('>').unwrap();
        let inner = &tag[1..end];
        assert!(!inner.contains('<'), "<{inner}>");
        // name="value" and nothing else: before a value is an equals sign, and none elsewhere.
        let parts: Vec<_> = inner.split('"').collect();
        assert_eq!(parts.len() % 2, 1, "<{inner}>");
        let (last, before) = parts.split_last().unwrap();
        assert!(!last.contains('='), "<{inner}>");
        for part in before.iter().step_by(2) {
            assert!(
                part.ends_with('=') && part.matches('=').count() == 1,
                "<{inner}>"
            );
        }
        if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name));
        } else if !inner.ends_with('/') {
            open.push(inner.split(' ').next().unwrap().to_owned());
        }
        rest = &tag[end + 1..];
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_page_is_well_formed_and_whole() {
    let page = html::page(&report()).unwrap();
    assert_well_formed(&page);
    for work in &works::ALL {
        assert!(
            page.contains(&format!("<h3>{}</h3>", work.name)),
            "{}",
            work.name
        );
    }
    for contender in &contenders::ALL {
        let swatch = format!("swatch c-{}\"", contender.name);
        assert!(page.contains(&swatch), "{}", contender.name);
    }
    assert!(page.contains("failed: &lt;a&gt; &amp; &quot;b&quot;"));
    assert!(page.contains("k = 1.00"));
    assert!(page.contains("tarnfs bench 'a &amp; b.tar'"));
    for outside in ["http", "<script", "url(", "@import", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_table_holds_every_work_with_everybody() {
    let text = table::text(&report()).unwrap();
    for work in &works::ALL {
        assert!(
            text.contains(&format!("\n  {}: ", work.name)),
            "{}",
            work.name
        );
    }
    assert!(text.contains("failed: <a>"));
    assert!(text.contains("overlayfs = 1×: "));
}

#[test]
fn the_json_has_every_sample() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["schema"], SCHEMA);
    let first = &json["works"][0]["results"][0];
    assert_eq!(first["contender"], "tarnfs");
    assert_eq!(first["numbers"][0]["samples"].as_array().unwrap().len(), 3);
    assert!(json["works"][0]["group"].is_string());
}

#[test]
fn axes_are_logarithmic_and_round() {
    let axis = Axis::of([0.3, 3.0].into_iter()).unwrap();
    assert!((axis.at(1.0) - 50.0).abs() < 1.0, "0.2 to 5");
    assert_eq!((axis.at(0.0001), axis.at(1e9)), (0.0, 100.0));
    let wide = Axis::of([1e-5, 1e5].into_iter()).unwrap();
    assert!(wide.ticks(6).len() <= 6 && wide.ticks(6).len() >= 2);
    assert_eq!(Axis::of([0.0].into_iter()), None);
    let point = Axis::of([1.0].into_iter()).unwrap();
    assert!(point.at(1.0).is_finite());
}

#[test]
fn figures_for_people() {
    assert_eq!(figure(0.0123, "s"), "12.3 ms");
    assert_eq!(figure(0.000_000_5, "s"), "500 ns");
    assert_eq!(figure(2.5, "s"), "2.50 s");
    assert_eq!(figure(512.0, "MiB"), "512 MiB");
    assert_eq!(figure(0.0, "MiB"), "0 MiB");
    assert_eq!(
        [0.042, 0.97, 12.34, 345.6].map(times),
        ["0.042×", "0.97×", "12.3×", "346×"]
    );
}
