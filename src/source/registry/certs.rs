//! Certificates of authorities that a machine trusts for one registry:
//! containers-certs.d(5), `DIRECTORY/HOST[:PORT]/*.crt`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use oci_client::client::{Certificate, CertificateEncoding};

use crate::source::SourceError;

/// Most bytes of a file of certificates.
const LONGEST: u64 = 1 << 20;

/// All certificates for `host` below `dirs`; a directory that is not there has none.
///
/// # Errors
/// [`SourceError::Io`] with the path where one cannot be read.
pub(super) fn certificates(dirs: &[PathBuf], host: &str) -> Result<Vec<Certificate>, SourceError> {
    let mut all = Vec::new();
    for dir in dirs {
        let dir = dir.join(host);
        let fails = |path: &Path, source: io::Error| SourceError::Io {
            what: path.display().to_string(),
            source,
        };
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(fails(&dir, e)),
        };
        for entry in entries {
            let path = entry.map_err(|e| fails(&dir, e))?.path();
            if path.extension().is_some_and(|ext| ext == "crt") {
                all.push(certificate(&path).map_err(|e| fails(&path, e))?);
            }
        }
    }
    Ok(all)
}

fn certificate(path: &Path) -> io::Result<Certificate> {
    let mut data = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut data)?;
    let is_text = data.windows(10).any(|bytes| bytes == b"-----BEGIN");
    Ok(Certificate {
        encoding: if is_text {
            CertificateEncoding::Pem
        } else {
            CertificateEncoding::Der
        },
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_the_host_alone() {
        let dir = tempfile::tempdir().unwrap();
        let of_host = dir.path().join("host:5000");
        fs::create_dir_all(&of_host).unwrap();
        fs::create_dir_all(dir.path().join("other")).unwrap();
        fs::write(of_host.join("a.crt"), "-----BEGIN CERTIFICATE-----").unwrap();
        fs::write(of_host.join("a.key"), "no").unwrap();
        fs::write(of_host.join("b.crt"), b"\x30\x82").unwrap();
        let dirs = [dir.path().to_owned(), dir.path().join("missing")];
        assert_eq!(certificates(&dirs, "host:5000").unwrap().len(), 2);
        assert_eq!(certificates(&dirs, "other").unwrap().len(), 0);
        assert_eq!(certificates(&dirs, "host").unwrap().len(), 0);
    }
}
