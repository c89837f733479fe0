//! Progress bars: of one work, and of an import with a bar for each layer.

use std::collections::BTreeMap;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tarnfs::import::{Event, Watch};
use tarnfs::store::Progress;

/// Bars on a terminal, gone at the end; elsewhere nothing.
#[derive(Debug)]
pub(crate) struct Bars {
    all: MultiProgress,
    bars: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: usize,
    bars: BTreeMap<usize, ProgressBar>,
    /// What concerns the whole image.
    note: Option<ProgressBar>,
}

/// Of a layer whose length is known, and of one that comes as a stream.
const SIZED: &str = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const STREAM: &str = "{prefix} {spinner} {bytes} {bytes_per_sec}";

impl Bars {
    /// Nothing is drawn before something is told.
    pub(crate) fn new() -> Self {
        Self {
            all: MultiProgress::new(),
            bars: Mutex::default(),
        }
    }

    fn note(&self, state: &mut State, text: &'static str) {
        let bar = state
            .note
            .get_or_insert_with(|| self.all.add(ProgressBar::new_spinner()));
        bar.set_message(text);
        bar.tick();
    }
}

impl Watch for Bars {
    fn on(&self, event: Event) {
        let Ok(mut state) = self.bars.lock() else {
            return;
        };
        match event {
            Event::Layers(count) => state.layers = count,
            Event::Waiting(_) => self.note(&mut state, "waiting for another tarnfs"),
            Event::Begun(layer, len) => {
                let (template, bar) = match len {
                    Some(len) => (SIZED, ProgressBar::new(len)),
                    None => (STREAM, ProgressBar::new_spinner()),
                };
                let bar = bar.with_prefix(format!("layer {}/{}", layer + 1, state.layers));
                let bar = match ProgressStyle::with_template(template) {
                    Ok(style) => bar.with_style(style.progress_chars("=> ")),
                    Err(_) => bar,
                };
                state.bars.insert(layer, self.all.add(bar));
            }
            Event::Read(layer, bytes) => {
                if let Some(bar) = state.bars.get(&layer) {
                    bar.inc(bytes);
                }
            }
            Event::Done(layer) | Event::There(layer) => {
                if let Some(bar) = state.bars.remove(&layer) {
                    bar.finish_and_clear();
                }
            }
            Event::Indexing => self.note(&mut state, "indexing"),
            _ => {}
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.all.clear().ok();
    }
}

/// A progress bar that shows itself on a terminal only, and goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Bar {
    what: &'static str,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// A bar for work called `what`; nothing is drawn before the work tells of itself.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, bar: None }
    }

    /// Shows how far work of unknown length is.
    pub(crate) fn on_bytes(&mut self, done: u64) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner().with_message(self.what);
            match ProgressStyle::with_template("{msg} {spinner} {bytes} {bytes_per_sec}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            }
        });
        bar.set_position(done);
    }

    /// Shows how far the work is.
    pub(crate) fn on(&mut self, progress: Progress) {
        // indicatif draws on stderr, and not at all where that is no terminal.
        let bar = self.bar.get_or_insert_with(|| {
            let (done, total) = match progress {
                Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                    (done, total)
                }
                _ => (0, 0),
            };
            // All of it before it is first drawn: a bar of nothing would look like a full one.
            let bar = ProgressBar::new(total)
                .with_position(done)
                .with_message(self.what);
            match ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {eta}") {
                Ok(style) => bar.with_style(style.progress_chars("=> ")),
                Err(_) => bar,
            }
        });
        match progress {
            Progress::Indexing { done, total } | Progress::Hashing { done, total } => {
                bar.set_message(self.what);
                bar.set_length(total);
                bar.set_position(done);
            }
            Progress::Waiting => bar.set_message("waiting for another tarnfs"),
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
