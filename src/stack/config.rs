//! The configuration of an image that is made of another (the OCI image specification's
//! config.md): the other's, with other layers. What else is in it stays as it is, in its order.

use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::source::Platform;

/// How `created_by` of a layer begins in the history of an image where the layer is a checkpoint.
/// By this it is known again, also when the image comes back from elsewhere.
pub const CHECKPOINT: &str = "tarnfs checkpoint";

/// What the history of an image says of a new layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Note {
    /// What the checkpoint is called: `created_by` is [`CHECKPOINT`], a space and this.
    pub id: String,
    /// `comment`, if there is something more to say.
    pub comment: Option<String>,
    /// When it was made: `created` of the entry and of the image, seconds since the epoch. With
    /// another time it is another image of the same layers.
    pub created: u64,
}

impl Note {
    /// `created_by`.
    #[must_use]
    pub fn created_by(&self) -> String {
        match self.id.as_str() {
            "" => CHECKPOINT.to_owned(),
            id => format!("{CHECKPOINT} {id}"),
        }
    }

    fn entry(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("created".to_owned(), rfc3339(self.created).into());
        entry.insert("created_by".to_owned(), self.created_by().into());
        if let Some(comment) = &self.comment {
            entry.insert("comment".to_owned(), comment.as_str().into());
        }
        Value::Object(entry)
    }
}

/// A configuration that says nothing but what it must, of an image of `layers`.
#[must_use]
pub(super) fn minimal(layers: &[Digest]) -> Vec<u8> {
    let Platform {
        os,
        architecture,
        variant,
    } = Platform::here();
    let mut config = json!({ "architecture": architecture, "os": os });
    if let (Some(config), Some(variant)) = (config.as_object_mut(), variant) {
        config.insert("variant".to_owned(), variant.into());
    }
    if let Some(config) = config.as_object_mut() {
        let rootfs = json!({ "type": "layers", "diff_ids": layers });
        config.insert("rootfs".to_owned(), rootfs);
    }
    config.to_string().into_bytes()
}

/// The configuration `config` (none: of a bare tar) of an image of the layers `below`, with `layer`
/// on top of them.
pub(super) fn with_layer(
    config: Option<&[u8]>,
    below: &[Digest],
    layer: &Digest,
    note: &Note,
) -> Result<Vec<u8>, String> {
    let mut config = match config {
        Some(config) => object(config)?,
        None => object(&minimal(below))?,
    };
    restack(&mut config, below, below.len(), layer, note.entry())?;
    config.insert("created".to_owned(), rfc3339(note.created).into());
    serde_json::to_vec(&config).map_err(|e| e.to_string())
}

/// The configuration `config` of an image of `layers`, with `layer` in place of all but the lowest
/// `keep`. It says of itself what the highest of those that it replaces says: it is that checkpoint.
pub(super) fn squashed(
    config: Option<&[u8]>,
    layers: &[Digest],
    keep: usize,
    layer: &Digest,
) -> Result<Vec<u8>, String> {
    let mut config = match config {
        Some(config) => object(config)?,
        None => object(&minimal(layers))?,
    };
    let history = config.get("history").and_then(Value::as_array);
    let last = history.and_then(|all| all.iter().rev().find(|entry| has_layer(entry)));
    let mut entry = match last.and_then(Value::as_object) {
        Some(last) if is_checkpoint(last) => last.clone(),
        last => {
            let mut entry = Map::new();
            if let Some(created) = last.and_then(|last| last.get("created")) {
                entry.insert("created".to_owned(), created.clone());
            }
            entry.insert("created_by".to_owned(), CHECKPOINT.into());
            entry
        }
    };
    let comment = format!("{} layers as one", layers.len().saturating_sub(keep));
    entry.insert("comment".to_owned(), comment.into());
    restack(&mut config, layers, keep, layer, Value::Object(entry))?;
    serde_json::to_vec(&config).map_err(|e| e.to_string())
}

/// Puts `layer`, of which `entry` tells, on the lowest `keep` of `layers`.
fn restack(
    config: &mut Map<String, Value>,
    layers: &[Digest],
    keep: usize,
    layer: &Digest,
    entry: Value,
) -> Result<(), String> {
    let rootfs = config
        .get_mut("rootfs")
        .and_then(Value::as_object_mut)
        .ok_or("has no rootfs")?;
    let text = |digest: &Digest| Value::from(digest.to_string());
    // An image without layers may have none, null or an empty list.
    let named = rootfs.get("diff_ids").and_then(Value::as_array);
    let named = named.map(Vec::as_slice).unwrap_or_default();
    if !named.iter().cloned().eq(layers.iter().map(text)) {
        return Err("names other layers than the image has".to_owned());
    }
    let kept = layers.iter().take(keep).chain([layer]);
    rootfs.insert("diff_ids".to_owned(), kept.map(text).collect());

    let mut history = match config.get_mut("history").map(Value::take) {
        Some(Value::Array(history)) => history,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err("has a history that is no list".to_owned()),
    };
    // Without a history the layers below have none, but each is to have an entry where one has.
    if history.is_empty() {
        history.resize_with(layers.len(), || Value::Object(Map::new()));
    }
    let mut drop = layers.len().saturating_sub(keep);
    let mut behind = history.len();
    while drop > 0 && behind > 0 {
        behind -= 1;
        if history.get(behind).is_some_and(has_layer) {
            history.remove(behind);
            drop -= 1;
        }
    }
    history.push(entry);
    config.insert("history".to_owned(), Value::Array(history));
    Ok(())
}

/// Whether an entry of a history tells of a checkpoint.
fn is_checkpoint(entry: &Map<String, Value>) -> bool {
    let by = entry.get("created_by").and_then(Value::as_str);
    by.and_then(|by| by.strip_prefix(CHECKPOINT))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// How many of the `layers` of an image with the configuration `config` are checkpoints on top of
/// the others.
pub(super) fn checkpoints(config: &[u8], layers: usize) -> Result<usize, String> {
    let config = object(config)?;
    let history = config.get("history").and_then(Value::as_array);
    let entries = history.into_iter().flatten().rev();
    let on_top = entries
        .filter(|entry| has_layer(entry))
        .take_while(|entry| entry.as_object().is_some_and(is_checkpoint));
    Ok(on_top.count().min(layers))
}

/// Whether an entry of a history tells of a layer.
fn has_layer(entry: &Value) -> bool {
    entry.get("empty_layer").and_then(Value::as_bool) != Some(true)
}

fn object(config: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(config).map_err(|e| format!("is not the JSON that it should be: {e}"))
}

/// RFC 3339, of seconds since the epoch.
fn rfc3339(seconds: u64) -> String {
    // Beyond the year 9999 the format has no texts.
    let seconds = seconds.min(253_402_300_799);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March have their leap day last; 719,468 days are from the first such
    // year 0 to 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year + u64::from(month >= 10);
    let month = if month < 10 { month + 3 } else { month - 9 };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_703_980_800, "2023-12-31T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (u64::MAX, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), want);
        }
    }

    fn layers(n: u8) -> Vec<Digest> {
        (0..n).map(|n| Digest::of(&[n])).collect()
    }

    fn note(id: &str) -> Note {
        Note {
            id: id.to_owned(),
            comment: None,
            created: 1,
        }
    }

    #[test]
    fn what_is_unknown_stays_and_stays_where_it_is() {
        let (below, top) = (layers(2), Digest::of(b"top"));
        let config = format!(
            r#"{{"zzz":{{"b":1,"a":[18446744073709551615,0.1]}},"created":"x","config":{{"Env":["A=b"],"x.y":null}},"rootfs":{{"type":"layers","more":true,"diff_ids":["{}","{}"]}},"os":"linux","history":[{{"created_by":"a"}},{{"empty_layer":true}},{{"created_by":"b"}}]}}"#,
            below[0], below[1]
        );
        let note = Note {
            comment: Some("why".into()),
            ..note("one")
        };
        let got = with_layer(Some(config.as_bytes()), &below, &top, &note).unwrap();
        let want = config
            .replace(r#""created":"x""#, r#""created":"1970-01-01T00:00:01Z""#)
            .replace(r#""]},"os""#, &format!(r#"","{top}"]}},"os""#))
            .replace(
                r#"{"created_by":"b"}"#,
                r#"{"created_by":"b"},{"created":"1970-01-01T00:00:01Z","created_by":"tarnfs checkpoint one","comment":"why"}"#,
            );
        assert_eq!(String::from_utf8(got).unwrap(), want);
    }

    #[test]
    fn a_bare_tar_gets_a_configuration() {
        let (below, top) = (layers(1), Digest::of(b"top"));
        let got = with_layer(None, &below, &top, &note("")).unwrap();
        let got: Value = serde_json::from_slice(&got).unwrap();
        assert_eq!(got["rootfs"]["diff_ids"], json!([below[0], top]));
        assert_eq!(got["history"].as_array().unwrap().len(), 2);
        assert_eq!(got["history"][1]["created_by"], "tarnfs checkpoint");
        assert_eq!(got["os"], "linux");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let (below, top) = (layers(1), Digest::of(b"top"));
        let other = format!(r#"{{"rootfs":{{"diff_ids":["{top}"]}}}}"#);
        let odd = format!(
            r#"{{"rootfs":{{"diff_ids":["{}"]}},"history":1}}"#,
            below[0]
        );
        for (bad, why) in [
            ("", "JSON"),
            ("[]", "JSON"),
            ("{}", "no rootfs"),
            (r#"{"rootfs":{}}"#, "other layers"),
            (r#"{"rootfs":[]}"#, "no rootfs"),
            (&other, "other layers"),
            (&odd, "no list"),
        ] {
            let said = with_layer(Some(bad.as_bytes()), &below, &top, &note("")).unwrap_err();
            assert!(said.contains(why), "{bad}: {said}");
        }
    }

    #[test]
    fn checkpoints_are_known_by_the_history() {
        let mut all = layers(1);
        let mut config = minimal(&all);
        assert_eq!(checkpoints(&config, 1), Ok(0));
        for n in 1..=3 {
            let top = Digest::of(&[100 + n]);
            config = with_layer(Some(&config), &all, &top, &note("x")).unwrap();
            all.push(top);
            assert_eq!(checkpoints(&config, all.len()), Ok(usize::from(n)));
        }
        // Three become one.
        let one = Digest::of(b"one");
        let config = squashed(Some(&config), &all, 1, &one).unwrap();
        let got: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(got["rootfs"]["diff_ids"], json!([all[0], one]));
        assert_eq!(got["history"].as_array().unwrap().len(), 2);
        assert_eq!(checkpoints(&config, 2), Ok(1));
        let says = &got["history"][1];
        assert_eq!(says["created_by"], "tarnfs checkpoint x");
        assert_eq!(says["comment"], "3 layers as one");
        assert_eq!(got["created"], "1970-01-01T00:00:01Z");
        let strange = |by: &str| {
            let config = json!({"history": [{"created_by": by}]}).to_string();
            checkpoints(config.as_bytes(), 1)
        };
        assert_eq!(strange("tarnfs checkpoints"), Ok(0));
        assert_eq!(strange("tarnfs checkpoint"), Ok(1));
        assert_eq!(strange("RUN tarnfs checkpoint"), Ok(0));
    }
}
