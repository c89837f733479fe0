//! The decoders of the three formats behind one step.

use std::io;

use flate2::{Decompress, FlushDecompress, Status};
use liblzma::stream as xz;
use zstd::stream::raw::{DParameter, Decoder as ZstdContext, Operation};

use super::{Format, XZ_MEMORY_MAX, ZSTD_WINDOW_LOG_MAX};

/// Of data with something else behind its end.
const FOLLOWS: &str = "other bytes follow its end";

/// What a step did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    /// Bytes taken from the input.
    pub(super) used: usize,
    /// Bytes put into the output.
    pub(super) made: usize,
    /// Whether a member, frame or stream has ended and is all given out.
    pub(super) ended: bool,
}

/// A decoder of one format.
pub(super) trait Codec: Send {
    /// Decodes of `input` what fits into `out`. `last`: there is no more input, and `input` is
    /// empty.
    ///
    /// # Errors
    /// What is wrong with the data, in a few words.
    fn step(&mut self, input: &[u8], out: &mut [u8], last: bool) -> Result<Step, String>;

    /// Begins a further member or frame.
    fn again(&mut self);
}

/// The decoder of `format`; `None` for what is not compressed.
pub(super) fn new(format: Format) -> io::Result<Option<Box<dyn Codec>>> {
    Ok(match format {
        Format::Plain => None,
        Format::Gzip => Some(Box::new(Gzip {
            inflate: Decompress::new_gzip(15),
            again: false,
        })),
        Format::Zstd => {
            let mut context = ZstdContext::new()?;
            context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
            Some(Box::new(Zstd {
                context,
                again: false,
            }))
        }
        Format::Xz => Some(Box::new(Xz(xz::Stream::new_stream_decoder(
            XZ_MEMORY_MAX,
            xz::CONCATENATED,
        )?))),
    })
}

struct Gzip {
    inflate: Decompress,
    /// Whether this is a member behind another.
    again: bool,
}

impl Codec for Gzip {
    fn step(&mut self, input: &[u8], out: &mut [u8], _: bool) -> Result<Step, String> {
        let before = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(input, out, FlushDecompress::None)
            .map_err(|error| match error.message() {
                Some("incorrect header check") if self.again => FOLLOWS.to_owned(),
                Some(message) => format!("damaged, {message}"),
                None => "damaged".to_owned(),
            })?;
        let len = |after: u64, before: u64| usize::try_from(after - before).unwrap_or(usize::MAX);
        Ok(Step {
            used: len(self.inflate.total_in(), before.0),
            made: len(self.inflate.total_out(), before.1),
            ended: status == Status::StreamEnd,
        })
    }

    fn again(&mut self) {
        self.inflate.reset(true);
        self.again = true;
    }
}

struct Zstd {
    context: ZstdContext<'static>,
    /// Whether this is a frame behind another.
    again: bool,
}

impl Codec for Zstd {
    fn step(&mut self, input: &[u8], out: &mut [u8], _: bool) -> Result<Step, String> {
        let status = self.context.run_on_buffers(input, out).map_err(|error| {
            let text = error.to_string();
            if text.contains("too much memory") {
                format!(
                    "it needs a window of more than {} MiB, the most that is allowed",
                    1_u32 << (ZSTD_WINDOW_LOG_MAX - 20)
                )
            } else if self.again && text.contains("Unknown frame descriptor") {
                FOLLOWS.to_owned()
            } else {
                format!("damaged, {text}")
            }
        })?;
        Ok(Step {
            used: status.bytes_read,
            made: status.bytes_written,
            ended: status.remaining == 0,
        })
    }

    /// libzstd goes on with the next frame by itself.
    fn again(&mut self) {
        self.again = true;
    }
}

struct Xz(xz::Stream);

impl Codec for Xz {
    fn step(&mut self, input: &[u8], out: &mut [u8], last: bool) -> Result<Step, String> {
        let before = (self.0.total_in(), self.0.total_out());
        let action = if last {
            xz::Action::Finish
        } else {
            xz::Action::Run
        };
        let status = self
            .0
            .process(input, out, action)
            .map_err(|error| match error {
                xz::Error::MemLimit => format!(
                    "it needs more than {} MiB of memory, the most that is allowed",
                    XZ_MEMORY_MAX >> 20
                ),
                xz::Error::Options => "it uses options or filters that are not known".to_owned(),
                error => format!("damaged, {error}"),
            })?;
        let len = |after: u64, before: u64| usize::try_from(after - before).unwrap_or(usize::MAX);
        Ok(Step {
            used: len(self.0.total_in(), before.0),
            made: len(self.0.total_out(), before.1),
            ended: status == xz::Status::StreamEnd,
        })
    }

    /// liblzma passes from stream to stream by itself, and says when all have ended.
    fn again(&mut self) {}
}
