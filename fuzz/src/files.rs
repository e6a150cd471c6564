//! Any bytes as a tensor file and as a layer's state: tensors, or an error of one line, in memory that follows the bytes
//! that are there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use wgpu_batchnorm::{Naming, State};
use wgpu_batchnorm_cli::file::{self, FileError, Tensors};
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

use crate::{Outcome, Pick};

/// Bytes that are allocated, and the most that were.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static MOST_ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does all of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST_ALLOCATED.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `--max-bytes`: what packed files may unpack to.
const MAX_BYTES: u64 = 16 << 20;

const WANTED: [&str; 5] = [
    "input",
    "weight",
    "running_mean",
    "running_var",
    "num_batches_tracked",
];

/// A folder in memory where there is one: files are written through to the disk.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    }
    .expect("a folder for files")
});

/// What the bytes after the first are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Safetensors,
    /// A header, its length made to fit, and data after it: two bytes say where.
    SafetensorsHeader,
    Npz,
    /// An array, in an archive whose checksums are right.
    Npy,
    PackedNpy,
}

/// One case: the first byte says what the others are.
pub fn run(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else {
        return;
    };
    let kinds = [
        Kind::Safetensors,
        Kind::SafetensorsHeader,
        Kind::Npz,
        Kind::Npy,
        Kind::PackedNpy,
    ];
    let kind = kinds[usize::from(*first) % kinds.len()];
    let bytes = match kind {
        Kind::Safetensors | Kind::Npz => rest.to_vec(),
        Kind::SafetensorsHeader => with_length(rest),
        Kind::Npy => zipped(&[("input.npy", rest)], CompressionMethod::Stored),
        Kind::PackedNpy => zipped(&[("input.npy", rest)], CompressionMethod::Deflated),
    };
    read(kind, &bytes);
}

/// Reads bytes in every way there is.
fn read(kind: Kind, bytes: &[u8]) -> Outcome {
    let safetensors = matches!(kind, Kind::Safetensors | Kind::SafetensorsHeader);
    let path = FOLDER.path().join(match safetensors {
        true => "in.safetensors",
        false => "in.npz",
    });
    std::fs::write(&path, bytes).expect("the file");
    let allowed = if safetensors {
        (1 << 20) + 64 * bytes.len()
    } else {
        (4 << 20) + 64 * bytes.len() + 4 * MAX_BYTES as usize
    };
    let tensors = within(allowed, || file::read(&path, &WANTED, MAX_BYTES));
    if safetensors {
        for prefix in ["", "bn."] {
            let state = within(allowed, || State::from_bytes(bytes, prefix));
            let loaded = within(allowed, || State::load(&path, prefix));
            // NaN differs from itself, and paths are in errors.
            match (state, loaded) {
                (Ok(a), Ok(b)) => {
                    assert_eq!(bits(&a), bits(&b));
                    same_again(&a);
                }
                (Err(a), Err(b)) => {
                    one_line(&a.to_string());
                    one_line(&b.to_string());
                }
                (a, b) => panic!("as bytes {a:?}, as a file {b:?}"),
            }
        }
    }
    match tensors {
        Ok(tensors) => {
            written_again(&tensors);
            Outcome::Done
        }
        Err(error) => {
            one_line(&error.to_string());
            Outcome::Refused
        }
    }
}

/// Runs with a bound on what is allocated besides.
fn within<T>(allowed: usize, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.load(Ordering::Relaxed);
    MOST_ALLOCATED.store(before, Ordering::Relaxed);
    let result = work();
    let taken = MOST_ALLOCATED.load(Ordering::Relaxed) - before;
    assert!(
        taken <= allowed,
        "{taken} bytes were allocated, {allowed} allowed"
    );
    result
}

fn one_line(text: &str) {
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
    assert!(text.len() < 10_000, "{} bytes of an error", text.len());
}

/// What was read comes back from every format that can hold it.
fn written_again(tensors: &Tensors) {
    for tensor in tensors.values() {
        let elements = tensor.shape.iter().product::<usize>();
        assert_eq!(tensor.data.len(), elements * tensor.dtype.size());
        let _ = tensor.to_f32();
        let _ = tensor.to_i64_scalar();
    }
    for name in ["out.safetensors", "out.npz"] {
        let path: PathBuf = FOLDER.path().join(name);
        match file::write(&path, tensors) {
            Ok(()) => {
                let again = file::read(&path, &WANTED, u64::MAX).expect("what was written");
                assert_eq!(&again, tensors);
            }
            Err(FileError::Bf16InNpz { .. }) => {}
            // A shape of very many axes has a longer header than numpy reads.
            Err(error) => panic!("{error}"),
        }
    }
}

fn bits(state: &State) -> String {
    let bits = |v: &Option<Vec<f32>>| {
        v.as_ref()
            .map(|v| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>())
    };
    let vectors = [
        &state.weight,
        &state.bias,
        &state.running_mean,
        &state.running_var,
    ];
    format!("{:?} {:?}", vectors.map(bits), state.num_batches_tracked)
}

fn same_again(state: &State) {
    let bytes = state
        .to_bytes(Naming::Pytorch, "x.")
        .expect("what was read can be written");
    let again = State::from_bytes(&bytes, "x.").expect("what was written can be read");
    assert_eq!(bits(state), bits(&again));
    if let Ok(fold) = state.fold(1e-5) {
        let _ = fold.scale_shift();
    }
}

/// A header of text with its length before it: `[u16][header][data]`.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return bytes.to_vec();
    };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let mut file = (length as u64).to_le_bytes().to_vec();
    file.extend(rest);
    file
}

fn zipped(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        let options = SimpleFileOptions::default().compression_method(method);
        archive.start_file(*name, options).expect("in memory");
        archive.write_all(bytes).expect("in memory");
    }
    archive.finish().expect("in memory").into_inner()
}

/// One case of a series: a file as it should be, but for a few of its bytes or numbers.
pub fn arbitrary(pick: &mut Pick<'_>) -> Outcome {
    if pick(2) == 0 {
        let mut file = safetensors(pick);
        damage(&mut file, pick);
        return read(Kind::Safetensors, &file);
    }
    let method = match pick(2) {
        0 => CompressionMethod::Stored,
        _ => CompressionMethod::Deflated,
    };
    let mut arrays = Vec::new();
    for _ in 0..pick(4) {
        let mut array = npy(pick);
        damage(&mut array, pick);
        arrays.push((WANTED[pick(5) as usize], array));
    }
    let mut names = std::collections::HashSet::new();
    arrays.retain(|(name, _)| names.insert(*name)); // the writer refuses the second
    let entries: Vec<(String, &[u8])> = arrays
        .iter()
        .map(|(name, array)| (format!("{name}.npy"), array.as_slice()))
        .collect();
    let entries: Vec<(&str, &[u8])> = entries.iter().map(|(n, a)| (n.as_str(), *a)).collect();
    let mut file = zipped(&entries, method);
    damage(&mut file, pick);
    read(Kind::Npz, &file)
}

const DTYPES: [(&str, &str, usize); 6] = [
    ("F32", "<f4", 4),
    ("F16", "<f2", 2),
    ("BF16", "bf2", 2),
    ("F64", ">f8", 8),
    ("I64", "<i8", 8),
    ("I32", "<i4", 4),
];

fn length(pick: &mut Pick<'_>) -> u64 {
    match pick(16) {
        0 => pick(u64::MAX),
        1 => 1 << pick(64),
        2 => 0,
        _ => 1 + pick(6),
    }
}

fn shape(pick: &mut Pick<'_>) -> Vec<u64> {
    let rank = match pick(32) {
        0 => pick(70),
        _ => pick(4),
    };
    (0..rank).map(|_| length(pick)).collect()
}

fn safetensors(pick: &mut Pick<'_>) -> Vec<u8> {
    let mut header = Vec::new();
    let mut end = 0u64;
    for _ in 0..pick(5) {
        let (dtype, _, size) = DTYPES[pick(6) as usize];
        let shape = if pick(2) == 0 { vec![3] } else { shape(pick) };
        let bytes = shape.iter().fold(size as u64, |a, b| a.wrapping_mul(*b));
        let bytes = if pick(32) == 0 { length(pick) } else { bytes };
        let names = ["", "bn."];
        let (prefix, name) = (names[pick(2) as usize], WANTED[pick(5) as usize]);
        let begin = end;
        end = end.wrapping_add(bytes);
        header.push(format!(
            r#""{prefix}{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", header.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..end.min(4096)).map(|i| i as u8));
    file
}

fn npy(pick: &mut Pick<'_>) -> Vec<u8> {
    let (_, descriptor, size) = DTYPES[pick(6) as usize];
    let shape = shape(pick);
    let bytes = shape.iter().fold(size as u64, |a, b| a.wrapping_mul(*b));
    let list: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let fortran = if pick(3) == 0 { "True" } else { "False" };
    let header =
        format!("{{'descr': '{descriptor}', 'fortran_order': {fortran}, 'shape': ({list}), }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend((0..bytes.min(4096)).map(|i| i as u8));
    file
}

/// Leaves half of the files alone; changes, cuts, repeats or inserts a few bytes of the others.
fn damage(file: &mut Vec<u8>, pick: &mut Pick<'_>) {
    if pick(2) == 0 {
        return;
    }
    for _ in 0..1 + pick(3) {
        if file.is_empty() {
            return;
        }
        let at = pick(file.len() as u64) as usize;
        match pick(6) {
            0 => file.truncate(at),
            1 => file.insert(at, pick(256) as u8),
            2 => {
                file.remove(at);
            }
            3 => {
                let some = file[at..(at + 1 + pick(16) as usize).min(file.len())].to_vec();
                let to = pick(file.len() as u64) as usize;
                file.splice(to..to, some);
            }
            4 => {
                for byte in file.iter_mut().skip(at).take(1 + pick(8) as usize) {
                    *byte = [0, 0xff, 0x80, 0x7f][pick(4) as usize];
                }
            }
            _ => file[at] = pick(256) as u8,
        }
    }
}
