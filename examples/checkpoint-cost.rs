//! What a checkpoint costs on a chain of them, beside reading the headers of all its layers again:
//!
//! ```text
//! tarnfs --store DIR import --name base image.tar
//! cargo run --release --example checkpoint-cost -- DIR base 50
//! ```
//! It leaves the chain in the store DIR, which is to be one for this alone.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use tarnfs::index::Flattening;
use tarnfs::stack::{NewLayer, Note, Stacked, add_layer};
use tarnfs::store::Store;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A layer of one file of 4 KiB, which is another each time.
fn layer(out: &mut dyn Write, n: u64) -> Result<(), Failure> {
    let mut header = [0; 512];
    let fields: [(usize, String); 7] = [
        (0, format!("checkpoint-{n}")),
        (100, "0000644\0".to_owned()),
        (108, "0000000\0".to_owned()),
        (116, "0000000\0".to_owned()),
        (124, format!("{:011o}\0", 4096)),
        (136, format!("{:011o}\0", 1)),
        (156, "0".to_owned()),
    ];
    for (at, text) in &fields {
        for (to, from) in header.iter_mut().skip(*at).zip(text.as_bytes()) {
            *to = *from;
        }
    }
    for (to, from) in header.iter_mut().skip(257).zip(b"ustar\x0000") {
        *to = *from;
    }
    for to in header.iter_mut().skip(148).take(8) {
        *to = b' ';
    }
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in header.iter_mut().skip(148).zip(sum.as_bytes()) {
        *to = *from;
    }
    out.write_all(&header)?;
    out.write_all(&n.to_le_bytes().repeat(512))?;
    Ok(out.write_all(&[0; 1024])?)
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let (Some(dir), Some(base), Some(depth)) = (args.next(), args.next(), args.next()) else {
        return Err("usage: checkpoint-cost STORE IMAGE DEPTH".into());
    };
    let store = Store::open(Path::new(&dir));
    let mut top = store.find(&base)?;
    println!("layers  checkpoint_ms  index_ms  all_headers_ms");
    for n in 0..depth.parse()? {
        let note = Note {
            id: n.to_string(),
            ..Note::default()
        };
        let start = Instant::now();
        let write = |out: &mut NewLayer| layer(out, n);
        let made: Stacked<()> = add_layer(&store, &top, &note, write, &mut |_| ())?;
        let whole = start.elapsed();
        top = made.digest;

        let layers = store.layers_of(&made.image)?;
        let start = Instant::now();
        drop(made.image.flattening(&layers)?);
        let index = start.elapsed();
        let start = Instant::now();
        let mut flattening = Flattening::new();
        for layer in &layers {
            flattening.add(layer.scan()?, layer.path())?;
        }
        drop(flattening);
        let all = start.elapsed();
        println!(
            "{:6}  {:13.1}  {:8.1}  {:14.1}",
            layers.len(),
            whole.as_secs_f64() * 1e3,
            index.as_secs_f64() * 1e3,
            all.as_secs_f64() * 1e3
        );
    }
    Ok(())
}
