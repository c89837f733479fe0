//! What each metric is called and what it means: the one place.
//! [docs/METRICS.md](../../../docs/METRICS.md) repeats it, which a test holds.

/// How a metric's value behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Grows until the server ends.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How often something took how long.
    Histogram,
}

impl Kind {
    /// As Prometheus calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What is told of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*

        /// All of them.
        pub static TABLE: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    BUILD_INFO = "tarnfs_build_info", Gauge, ["version"],
        "Always 1; which tarnfs serves.";
    MOUNT_INFO = "tarnfs_mount_info", Gauge, ["image", "digest", "actor", "point"],
        "Always 1; what is mounted where: the image as it was called, its digest, whose root it is, the directory. Empty where there is none.";
    UPTIME = "tarnfs_uptime_seconds", Gauge, [],
        "How long the server has served.";
    REQUESTS = "tarnfs_requests_total", Counter, ["op"],
        "Requests by kind that were answered; of forget, which has no answer, that came.";
    ANSWERED = "tarnfs_requests_answered_total", Counter, [],
        "Round trips: requests of all kinds that were answered.";
    REQUEST_SECONDS = "tarnfs_request_seconds", Histogram, ["op"],
        "From reading a request to its answer, for the kinds that have come.";
    ERRORS = "tarnfs_request_errors_total", Counter, ["op", "class"],
        "Requests that were answered with an error, where there were any. A name that is not there counts as not_found.";
    SLOW = "tarnfs_requests_slow_total", Counter, [],
        "Requests that took longer than 1 second.";
    IN_FLIGHT = "tarnfs_requests_in_flight", Gauge, [],
        "Requests that are being answered.";
    OLDEST = "tarnfs_oldest_request_seconds", Gauge, ["op"],
        "How long the oldest request under way has been; absent where there is none.";
    READ_BYTES = "tarnfs_read_bytes_total", Counter, [],
        "Bytes that READ requests were answered with.";
    WRITTEN_BYTES = "tarnfs_written_bytes_total", Counter, [],
        "Bytes that WRITE requests have written.";
    OPENS = "tarnfs_opens_total", Counter, ["by"],
        "Files opened, by who reads and writes them: kernel (passthrough), maps (maps by the kernel, the rest by requests), requests.";
    NOOPEN = "tarnfs_noopen", Gauge, [],
        "1 where files are opened without asking the server, so that opens are not counted; else 0.";
    COPY_UPS = "tarnfs_copy_ups_total", Counter, ["kind"],
        "Inodes brought from the image to the upper: file, directory, other.";
    COPY_UP_BYTES = "tarnfs_copy_up_bytes_total", Counter, [],
        "Bytes of file data copied from the image to the upper.";
    COPY_UP_SECONDS = "tarnfs_copy_up_seconds_total", Counter, [],
        "Time that copying inodes to the upper has taken.";
    WHITEOUTS = "tarnfs_whiteouts_total", Counter, [],
        "Whiteouts made: names of the image that were removed or moved away.";
    INDEX_LOOKUPS = "tarnfs_index_lookups_total", Counter, [],
        "Names looked up in the image's index.";
    IMAGE_READ_BYTES = "tarnfs_image_read_bytes_total", Counter, [],
        "Bytes of the image's files that the server has read itself: for READ requests and copy-ups.";
    BACKING_INFO = "tarnfs_backing_info", Gauge, ["rung", "shared"],
        "Always 1; how the kernel reads the image by itself: erofs, loop or none, and whether by a mount that another process has made (true, false).";
    IMAGE_HIT = "tarnfs_image_hit", Gauge, [],
        "1 where the image was found ready, 0 where it had to be indexed or imported; absent where that is not known.";
    PHASE_SECONDS = "tarnfs_phase_seconds", Gauge, ["phase"],
        "What the phases of making the root filesystem took: image, upper, backing, create, attach; ready: all of them; first_request: from then until one came.";
    UPPER_BYTES = "tarnfs_upper_bytes", Gauge, [],
        "Bytes that the upper takes on disk, some seconds old at most if it is not too large for that.";
    UPPER_INODES = "tarnfs_upper_inodes", Gauge, [],
        "Inodes of the upper, likewise.";
    INODES_IN_MEMORY = "tarnfs_inodes_in_memory", Gauge, [],
        "Inodes that the server keeps in memory.";
    OPEN_FILES = "tarnfs_open_files", Gauge, [],
        "Files of the mount that are open.";
    RSS = "process_resident_memory_bytes", Gauge, [],
        "Memory of the server.";
    OPEN_FDS = "process_open_fds", Gauge, [],
        "Descriptors that the server has open.";
    START_TIME = "process_start_time_seconds", Gauge, [],
        "When the server began, in seconds since 1970.";
}

/// The metric of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Metric> {
    TABLE.iter().find(|metric| metric.name == name).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prometheus_names_and_each_its_own() {
        let mut names: Vec<_> = TABLE.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), TABLE.len());
        for metric in TABLE {
            let is_name = |text: &str| {
                text.bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
            };
            assert!(is_name(metric.name), "{}", metric.name);
            assert!(metric.labels.iter().all(|label| is_name(label)));
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Kind::Counter, "{}", metric.name);
        }
    }

    #[test]
    fn the_document_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let told: Vec<_> = document
            .lines()
            .skip_while(|line| *line != "## Metrics")
            .skip_while(|line| !line.starts_with('|'))
            .take_while(|line| line.starts_with('|'))
            .skip(2)
            .collect();
        let row = |metric: &&Metric| {
            let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
            let kind = metric.kind.name();
            let labels = labels.join(", ");
            format!(
                "| `{}` | {kind} | {labels} | {} |",
                metric.name, metric.help
            )
        };
        let meant: Vec<_> = TABLE.iter().map(row).collect();
        assert_eq!(
            told,
            meant,
            "docs/METRICS.md must say:\n{}",
            meant.join("\n")
        );
    }
}
