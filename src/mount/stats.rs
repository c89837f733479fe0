//! What a server tells of itself: put together when somebody asks.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use super::MountOptions;
use super::backing::Backing;
use super::control::{self, Control};
use super::usage::Watched;
use crate::fuse::{self, Freezer};
use crate::metrics::table as t;
use crate::metrics::{Class, Metric, Op, OpenedBy, Phase, Phases, Requests, Snapshot, Value};
use crate::overlay::{self, Overlay};
use crate::sys::resident::resident;

/// What whoever mounts knows of it and the server does not: for its statistics.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// The image's digest.
    pub digest: Option<String>,
    /// Whose root filesystem it is.
    pub actor: Option<String>,
    /// Whether the image was found ready, or had to be indexed or imported.
    pub image_hit: Option<bool>,
    /// What has been done for the mount already.
    pub phases: Phases,
}

/// Runs a piece of the making of a root filesystem, and notes and logs how long it took.
pub fn timed<T>(phases: &mut Phases, phase: Phase, work: impl FnOnce() -> T) -> T {
    let (done, took) = measured(phase, work);
    phases.note(phase, took);
    done
}

fn measured<T>(phase: Phase, work: impl FnOnce() -> T) -> (T, Duration) {
    let span = tracing::info_span!("phase", phase = phase.name());
    let _inside = span.enter();
    let began = Instant::now();
    let done = work();
    let took = began.elapsed();
    tracing::info!(seconds = took.as_secs_f64(), "phase is over");
    (done, took)
}

/// All that a server knows of itself.
#[derive(Debug)]
pub(super) struct Stats {
    /// None of its own: the overlay must be let go of when the mount has ended.
    overlay: Weak<Overlay>,
    requests: Arc<Requests>,
    phases: Mutex<Phases>,
    about: About,
    image: String,
    noopen: bool,
    /// Its rung, and whether it is another's.
    backing: OnceLock<(&'static str, bool)>,
    point: OnceLock<PathBuf>,
    upper: Watched,
    /// There once requests are served.
    freezer: OnceLock<Freezer>,
}

impl Stats {
    /// Of a server that is about to mount.
    pub(super) fn new(overlay: &Arc<Overlay>, options: &MountOptions) -> Self {
        Self {
            overlay: Arc::downgrade(overlay),
            requests: Arc::new(Requests::new(fuse::threads())),
            phases: Mutex::new(options.about.phases.clone()),
            about: options.about.clone(),
            image: options.fuse.source.to_string_lossy().into_owned(),
            noopen: options.serving.noopen,
            backing: OnceLock::new(),
            point: OnceLock::new(),
            upper: Watched::new(Arc::downgrade(overlay)),
            freezer: OnceLock::new(),
        }
    }

    pub(super) fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }

    fn phases(&self) -> MutexGuard<'_, Phases> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`timed`].
    pub(super) fn timed<T>(&self, phase: Phase, work: impl FnOnce() -> T) -> T {
        let (done, took) = measured(phase, work);
        self.phases().note(phase, took);
        done
    }

    /// How the kernel reads the image.
    pub(super) fn note_backing(&self, backing: Option<&Backing>) {
        let rung = backing.map_or("none", |backing| backing.rung().name());
        let shared = backing.is_some_and(Backing::is_shared);
        self.backing.get_or_init(|| (rung, shared));
    }

    /// The mount can be used, and be frozen.
    pub(super) fn ready(&self, point: Option<&PathBuf>, freezer: &Freezer) {
        self.freezer.get_or_init(|| freezer.clone());
        if let Some(point) = point {
            self.point.get_or_init(|| point.clone());
        }
        let seconds = self.phases().ready().as_secs_f64();
        tracing::info!(seconds, "ready");
    }

    /// Nothing more is told that takes the overlay.
    pub(super) fn stop(&self) {
        self.upper.stop();
    }

    fn put_requests(&self, to: &mut Snapshot) {
        let totals = self.requests.totals();
        for op in &totals.ops {
            let name = op.op.name();
            let count = match op.op {
                Op::Forget => totals.forgets,
                _ => op.answered.count(),
            };
            to.put(&t::REQUESTS, &[name], Value::Count(count));
            if op.answered.count() > 0 {
                let value = Value::Histogram(Box::new(op.answered.clone()));
                to.put(&t::REQUEST_SECONDS, &[name], value);
            }
            for (class, count) in Class::ALL.into_iter().zip(op.errors) {
                if count > 0 {
                    to.put(&t::ERRORS, &[name, class.name()], Value::Count(count));
                }
            }
        }
        let under_way = self.requests.under_way();
        to.put(&t::IN_FLIGHT, &[], Value::Count(under_way.in_flight));
        if let Some((op, age)) = under_way.oldest {
            let age = Value::Number(age.as_secs_f64());
            to.put(&t::OLDEST, &[op.name()], age);
        }
        for (by, count) in OpenedBy::ALL.into_iter().zip(totals.opened) {
            to.put(&t::OPENS, &[by.name()], Value::Count(count));
        }
        for (metric, count) in [
            (&t::ANSWERED, totals.answered()),
            (&t::SLOW, totals.slow),
            (&t::READ_BYTES, totals.read),
            (&t::WRITTEN_BYTES, totals.written),
            (&t::NOOPEN, self.noopen.into()),
        ] {
            to.put(metric, &[], Value::Count(count));
        }
    }

    fn put_overlay(&self, to: &mut Snapshot) {
        let Some(overlay) = self.overlay.upgrade() else {
            return;
        };
        let (did, asked) = (overlay.counters(), overlay.lower().counters());
        for (kind, count) in [
            ("file", &did.copied_files),
            ("directory", &did.copied_dirs),
            ("other", &did.copied_others),
        ] {
            to.put(&t::COPY_UPS, &[kind], Value::Count(count.get()));
        }
        let took = Duration::from_nanos(did.copying.get()).as_secs_f64();
        to.put(&t::COPY_UP_SECONDS, &[], Value::Number(took));
        let (inodes, files) = overlay.in_memory();
        for (metric, count) in [
            (&t::COPY_UP_BYTES, did.copied_bytes.get()),
            (&t::WHITEOUTS, did.whiteouts.get()),
            (&t::INDEX_LOOKUPS, asked.lookups.get()),
            (&t::IMAGE_READ_BYTES, asked.read_bytes.get()),
            (&t::INODES_IN_MEMORY, inodes as u64),
            (&t::OPEN_FILES, files as u64),
        ] {
            to.put(metric, &[], Value::Count(count));
        }
        // Not kept while somebody waits for the upper's usage: the mount may end meanwhile.
        let has_upper = overlay.upper().is_some();
        drop(overlay);
        if let Some(usage) = has_upper.then(|| self.upper.get()).flatten() {
            to.put(&t::UPPER_BYTES, &[], Value::Count(usage.bytes));
            to.put(&t::UPPER_INODES, &[], Value::Count(usage.inodes));
        }
    }

    fn put_start(&self, to: &mut Snapshot) {
        if let Some((rung, shared)) = self.backing.get() {
            let shared = if *shared { "true" } else { "false" };
            to.put(&t::BACKING_INFO, &[rung, shared], Value::Count(1));
        }
        if let Some(hit) = self.about.image_hit {
            to.put(&t::IMAGE_HIT, &[], Value::Count(hit.into()));
        }
        let phases = self.phases().clone();
        let first = self.requests.first().zip(phases.ready_at());
        let first = first.map(|(first, ready)| {
            let at = self.requests.since().checked_add(first);
            at.map_or(Duration::ZERO, |at| at.saturating_duration_since(ready))
        });
        for phase in Phase::ALL {
            let took = match phase {
                Phase::FirstRequest => first,
                _ => phases.took(phase),
            };
            if let Some(took) = took {
                let took = Value::Number(took.as_secs_f64());
                to.put(&t::PHASE_SECONDS, &[phase.name()], took);
            }
        }
    }

    fn put_process(&self, to: &mut Snapshot) {
        if let Ok(bytes) = resident() {
            to.put(&t::RSS, &[], Value::Count(bytes));
        }
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // Without the one that looks.
            let count = (fds.count() as u64).saturating_sub(1);
            to.put(&t::OPEN_FDS, &[], Value::Count(count));
        }
        let started = self.requests.started().duration_since(UNIX_EPOCH);
        let seconds = |metric: &'static Metric, time: Duration, to: &mut Snapshot| {
            to.put(metric, &[], Value::Number(time.as_secs_f64()));
        };
        seconds(&t::START_TIME, started.unwrap_or_default(), to);
        seconds(&t::UPTIME, self.requests.since().elapsed(), to);
    }
}

impl Control for Stats {
    fn stats(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let version = env!("CARGO_PKG_VERSION");
        snapshot.put(&t::BUILD_INFO, &[version], Value::Count(1));
        let about = &self.about;
        let point = self.point.get().map(|point| point.to_string_lossy());
        let info = [
            self.image.as_str(),
            about.digest.as_deref().unwrap_or_default(),
            about.actor.as_deref().unwrap_or_default(),
            point.as_deref().unwrap_or_default(),
        ];
        snapshot.put(&t::MOUNT_INFO, &info, Value::Count(1));
        self.put_requests(&mut snapshot);
        self.put_overlay(&mut snapshot);
        self.put_start(&mut snapshot);
        self.put_process(&mut snapshot);
        snapshot
    }

    fn freeze(&self) -> Result<Box<dyn control::Frozen>, String> {
        let freezer = self.freezer.get().ok_or("the mount is not ready yet")?;
        match freezer.freeze() {
            Ok(frozen) => Ok(Box::new(frozen)),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl control::Frozen for fuse::Frozen {
    fn keep(
        self: Box<Self>,
        files: &[u64],
    ) -> Result<Box<dyn control::Kept>, (Box<dyn control::Frozen>, String)> {
        match (*self).keep(files.iter().copied()) {
            Ok(kept) => Ok(Box::new(kept)),
            Err((frozen, error)) => Err((Box::new(frozen), error.to_string())),
        }
    }
}

impl control::Kept for overlay::Kept {
    fn log(&self) -> String {
        self.name().to_owned()
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        (*self).finish().map_err(|error| error.to_string())
    }
}
