//! Bytes as an index, a manifest, a configuration, and as compressed data: an error in one line,
//! or what keeps its bounds, never a panic.

#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;
use tarnfs::compress::decoder;
use tarnfs::source::{Platform, oci};

fuzz_target!(|data: &[u8]| {
    let platform = Platform::here();
    match oci::document(data, None, "it") {
        Ok(oci::Document::Manifest(manifest)) => {
            assert!(manifest.layers.len() <= oci::LAYERS_MAX);
            assert!(manifest.layers.iter().all(|layer| layer.size <= oci::LAYER_MAX));
        }
        Ok(oci::Document::Index(_)) => {}
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Err(error) = oci::config(data, &platform, "it") {
        assert!(!error.to_string().contains('\n'));
    }
    if let Ok(decoder) = decoder(data) {
        // Much may come of little.
        let mut out = Vec::new();
        if let Err(error) = decoder.take(1 << 20).read_to_end(&mut out) {
            assert!(!error.to_string().contains('\n'));
        }
    }
});
