//! Files made to exhaust their reader are refused within a second of a core and 200 MB, which are counted: this binary
//! has nothing else in it.

use std::fs;
use std::io::{Cursor, Write};
use std::time::Duration;

use cpu_time::ThreadTime;
use peak_alloc::PeakAlloc;
use wgpu_batchnorm::State;
use wgpu_batchnorm_cli::file::read;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

const MOST_MEGABYTES: f32 = 200.0;
const MOST_TIME: Duration = Duration::from_secs(1);

/// Runs a reading that has to fail, and counts.
fn refused<T>(what: &str, read: impl FnOnce() -> Result<T, String>) {
    let before = ALLOCATED.current_usage_as_mb();
    ALLOCATED.reset_peak_usage();
    let start = ThreadTime::now();
    let error = read().err().unwrap_or_else(|| panic!("{what}: accepted"));
    let (time, peak) = (start.elapsed(), ALLOCATED.peak_usage_as_mb() - before);
    assert!(time < MOST_TIME, "{what} took {time:?}: {error}");
    assert!(peak < MOST_MEGABYTES, "{what} took {peak} MB: {error}");
}

fn safetensors(header: &str, data: u64) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data as usize, 0);
    bytes
}

/// As many tensors without a byte as fit a header of so many bytes; the last one lies.
fn many_tensors(bytes: usize) -> String {
    let mut header = String::from("{");
    for number in 0.. {
        header += &format!(r#""{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#);
        if header.len() > bytes {
            break;
        }
    }
    header + r#""weight":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}"#
}

fn npz(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, bytes) in entries {
        archive.start_file(name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn npy(shape: &str, data: usize) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn files_made_to_exhaust_their_reader() {
    let folder = tempfile::tempdir().unwrap();
    let deep = format!("{{\"weight\":{}", "[".repeat(3_900_000));
    let long_name = format!("{{\"{}\":3}}", "x".repeat(3_900_000));
    let long_shape = format!(
        r#"{{"weight":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#,
        "1,".repeat(1_950_000)
    );
    for (what, header, data) in [
        ("a header of many tensors", many_tensors(3_900_000), 4),
        ("a header as long as the format allows", many_tensors(90_000_000), 4),
        ("a header of open brackets", deep, 4),
        ("a header of one name", long_name, 4),
        ("a shape of millions of axes", long_shape, 3),
        (
            "a tensor of 2^62 bytes",
            r#"{"weight":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4611686018427387904]}}"#.into(),
            4,
        ),
    ] {
        let path = folder.path().join("hostile.safetensors");
        fs::write(&path, safetensors(&header, data)).unwrap();
        drop(header);
        refused(what, || {
            read(&path, &["weight"], 8 << 30).map_err(|error| error.to_string())
        });
        refused(&format!("{what}, as a state"), || {
            State::load(&path, "").map_err(|error| error.to_string())
        });
    }

    let zeros = |shape: &str, bytes| vec![("weight.npy".to_owned(), npy(shape, bytes))];
    let crowd = (0..60_000).map(|n| (format!("{n}.npy"), npy("(1,)", 4)));
    let crowd = crowd.chain(zeros("(9,)", 4)).collect::<Vec<_>>();
    for (what, entries, limit) in [
        (
            "zeros beyond the limit",
            zeros("(75000000,)", 300_000_000),
            100 << 20,
        ),
        (
            "zeros that the header does not have",
            zeros("(9,)", 300_000_000),
            8 << 30,
        ),
        ("60 000 entries", crowd, 8 << 30),
    ] {
        let path = folder.path().join("hostile.npz");
        fs::write(&path, npz(&entries)).unwrap();
        drop(entries);
        refused(what, || {
            read(&path, &["weight"], limit).map_err(|error| error.to_string())
        });
    }
}
