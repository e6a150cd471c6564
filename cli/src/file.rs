//! Tensor files: `.safetensors` and `.npz`, told apart by extension.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use ndarray::{ArrayView, IxDyn, ShapeBuilder};
use ndarray_npy::npy::header::{Header as NpyHeader, Layout};
use py_literal::Value as PyValue;
use safetensors::tensor::{Dtype as StDtype, Metadata, TensorInfo};
use zip::read::{ArchiveOffset, Config};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// IEEE double precision.
    F64,
    /// Signed 64-bit integer.
    I64,
}

/// What error messages say a tensor may be.
const SUPPORTED: &str = "F32, F16, BF16, F64 and I64";

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 | Dtype::I64 => 8,
        }
    }

    /// Bytes of a tensor of this type and `shape`, or `None` where that overflows.
    fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        shape
            .iter()
            .try_fold(self.size(), |bytes, &n| bytes.checked_mul(n))
    }

    fn from_safetensors(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            "F64" => Dtype::F64,
            "I64" => Dtype::I64,
            _ => return None,
        })
    }

    fn to_safetensors(self) -> StDtype {
        match self {
            Dtype::F32 => StDtype::F32,
            Dtype::F16 => StDtype::F16,
            Dtype::BF16 => StDtype::BF16,
            Dtype::F64 => StDtype::F64,
            Dtype::I64 => StDtype::I64,
        }
    }

    /// The type that follows the byte order in a numpy descriptor.
    fn from_numpy(code: &str) -> Option<Self> {
        Some(match code {
            "f4" => Dtype::F32,
            "f2" => Dtype::F16,
            "f8" => Dtype::F64,
            "i8" => Dtype::I64,
            _ => return None,
        })
    }

    /// The little-endian numpy descriptor; numpy has none for BF16.
    fn to_numpy(self) -> Option<&'static str> {
        match self {
            Dtype::F32 => Some("<f4"),
            Dtype::F16 => Some("<f2"),
            Dtype::F64 => Some("<f8"),
            Dtype::I64 => Some("<i8"),
            Dtype::BF16 => None,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A tensor as it lies in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Length along each axis; `[]` is a scalar.
    pub shape: Vec<usize>,
    /// Contiguous, row-major, little-endian.
    pub data: Vec<u8>,
}

impl Tensor {
    /// An F32 tensor of `values`, in row-major order. [`write()`] refuses it if there are not as many as `shape` says.
    pub fn from_f32(shape: Vec<usize>, values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape,
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// An I64 tensor of shape `[]`.
    pub fn from_i64_scalar(v: i64) -> Self {
        Self {
            dtype: Dtype::I64,
            shape: Vec::new(),
            data: v.to_le_bytes().to_vec(),
        }
    }

    /// The elements as f32, F64 being rounded; `None` for I64.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        /// Copies each element out, since file data is aligned to nothing.
        fn convert<const N: usize>(data: &[u8], element: fn([u8; N]) -> f32) -> Vec<f32> {
            let (elements, _) = data.as_chunks::<N>();
            elements.iter().map(|&bytes| element(bytes)).collect()
        }
        match self.dtype {
            Dtype::F32 => Some(convert(&self.data, f32::from_le_bytes)),
            Dtype::F16 => Some(convert(&self.data, |b| f16::from_le_bytes(b).to_f32())),
            Dtype::BF16 => Some(convert(&self.data, |b| bf16::from_le_bytes(b).to_f32())),
            Dtype::F64 => Some(convert(&self.data, |b| f64::from_le_bytes(b) as f32)),
            Dtype::I64 => None,
        }
    }

    /// The value of an I64 tensor of shape `[]`; `None` for any other.
    pub fn to_i64_scalar(&self) -> Option<i64> {
        if self.dtype != Dtype::I64 || !self.shape.is_empty() {
            return None;
        }
        let bytes = self.data.as_slice().try_into().ok()?;
        Some(i64::from_le_bytes(bytes))
    }
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// Why a tensor file could not be read or written. Every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The extension names no format.
    #[error(
        "{}: unknown file extension; give a .safetensors or .npz file",
        shown(path)
    )]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("{}: no such file; check the path", shown(path))]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The path is a folder, a pipe or a device.
    #[error(
        "{}: not a regular file; give the path of a .safetensors or .npz file",
        shown(path)
    )]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The folder to write to does not exist.
    #[error(
        "{}: there is no folder {}; create it first",
        shown(path),
        shown(folder)
    )]
    NoFolder {
        /// The file to write.
        path: PathBuf,
        /// The folder it was to be in.
        folder: PathBuf,
    },
    /// The file, or what it unpacks to, is over the limit.
    #[error("{}: {bytes} bytes{}, over the limit of {limit}; raise --max-bytes", shown(path), if *unpacked { " once unpacked" } else { "" })]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Whether `bytes` is what its tensors unpack to, rather than its own size.
        unpacked: bool,
        /// What was found.
        bytes: u64,
        /// What was allowed.
        limit: u64,
    },
    /// The operating system failed to read the file.
    #[error(
        "{}: cannot be read: {reason}; check its permissions and the disk",
        shown(path)
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// The file could not be written; an older one is left as it was.
    #[error(
        "{}: cannot be written: {reason}; check the folder's permissions and free space",
        shown(path)
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// The content breaks the rules of its format.
    #[error(
        "{}: not a valid file of its kind: {what}; make it again, or copy it again in full",
        shown(path)
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        what: String,
    },
    /// Two tensors have one name.
    #[error(
        "{}: tensor `{}` is there more than once; keep one of them",
        shown(path),
        shown(tensor)
    )]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A wanted tensor has a type that is not supported.
    #[error(
        "{}: tensor `{}` is of type {}, which is not supported; convert it to one of {SUPPORTED}",
        shown(path),
        shown(tensor),
        shown(found)
    )]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its type, as the file says it.
        found: String,
    },
    /// A BF16 tensor was to be written to an `.npz` file.
    #[error(
        "{}: tensor `{}` is of type BF16, which .npz cannot hold; write a .safetensors file",
        shown(path),
        shown(tensor)
    )]
    Bf16InNpz {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor to be written has more or fewer bytes than its type and shape say.
    #[error(
        "{}: tensor `{}` of type {dtype} and shape {shape:?} has {bytes} bytes; give the bytes of its shape",
        shown(path),
        shown(tensor)
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes it has.
        bytes: usize,
    },
}

/// Text from outside, made fit for one line of an error message.
fn shown(text: impl AsRef<std::ffi::OsStr>) -> String {
    const LONGEST: usize = 300;
    let text = text.as_ref().to_string_lossy();
    let mut line: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        line.push('…');
    }
    line
}

fn malformed(path: &Path, what: impl AsRef<str>) -> FileError {
    FileError::Malformed {
        path: path.into(),
        what: shown(what.as_ref()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Safetensors,
    Npz,
}

fn format_of(path: &Path) -> Result<Format, FileError> {
    let is = |extension| {
        path.extension()
            .is_some_and(|e| e.eq_ignore_ascii_case(extension))
    };
    if is("safetensors") {
        Ok(Format::Safetensors)
    } else if is("npz") {
        Ok(Format::Npz)
    } else {
        Err(FileError::Extension { path: path.into() })
    }
}

/// Whether `path` has an extension that [`read`] and [`write()`] know: `.safetensors` or `.npz`, in any case.
///
/// # Errors
/// [`FileError::Extension`] where it has not.
pub fn check_extension(path: &Path) -> Result<(), FileError> {
    format_of(path).map(|_| ())
}

/// Reads the tensors of `path` whose names are in `wanted`; those that are not there are left out, others are ignored.
///
/// A file of more than `max_bytes`, or whose wanted tensors unpack to more, is refused before it is read.
/// Memory follows the bytes that are there, never a length that the file merely declares.
///
/// # Errors
/// A [`FileError`] that names the file and what is wrong with it.
pub fn read(path: &Path, wanted: &[&str], max_bytes: u64) -> Result<Tensors, FileError> {
    let format = format_of(path)?;
    let unreadable = |reason: io::Error| match reason.kind() {
        io::ErrorKind::NotFound => FileError::Missing { path: path.into() },
        _ => FileError::Read {
            path: path.into(),
            reason,
        },
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    let bytes = metadata.len();
    check_limit(path, false, bytes, max_bytes)?;
    let file = File::open(path).map_err(unreadable)?;
    match format {
        Format::Safetensors => read_safetensors(path, &file, bytes, wanted),
        Format::Npz => read_npz(path, &file, bytes, wanted, max_bytes),
    }
}

fn check_limit(path: &Path, unpacked: bool, bytes: u64, limit: u64) -> Result<(), FileError> {
    if bytes > limit {
        return Err(FileError::TooLarge {
            path: path.into(),
            unpacked,
            bytes,
            limit,
        });
    }
    Ok(())
}

/// Reads `length` bytes. At most `backed` bytes are reserved at the start; the rest grows with what is really there.
fn read_bytes(reader: &mut impl Read, length: u64, backed: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    data.try_reserve_exact(usize::try_from(length.min(backed)).unwrap_or(usize::MAX))?;
    reader.take(length).read_to_end(&mut data)?;
    if data.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(data)
}

/// A safetensors header, in the order of the file. Read here rather than by the crate, which refuses a whole file
/// for one tensor of a type it does not know, keeps the last of two tensors with one name, and names neither.
struct StHeader(Vec<(String, StEntry)>);

#[derive(serde::Deserialize)]
struct StEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl<'de> serde::Deserialize<'de> for StHeader {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = StHeader;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<StHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(StHeader(entries))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

fn read_safetensors(
    path: &Path,
    mut file: &File,
    bytes: u64,
    wanted: &[&str],
) -> Result<Tensors, FileError> {
    /// Names of some 50 000 tensors. The format allows 25 times that, which unpacks to a gigabyte.
    const LONGEST_HEADER: u64 = 4_000_000;
    let unreadable = |reason| FileError::Read {
        path: path.into(),
        reason,
    };

    let Some(after_length) = bytes.checked_sub(8) else {
        let what = format!("it has {bytes} bytes, and the length of its header alone takes 8");
        return Err(malformed(path, what));
    };
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(unreadable)?;
    let length = u64::from_le_bytes(length);
    if length > after_length.min(LONGEST_HEADER) {
        let most = after_length.min(LONGEST_HEADER);
        let what =
            format!("its header is said to take {length} bytes, of which there can be {most}");
        return Err(malformed(path, what));
    }
    let header = read_bytes(&mut file, length, length).map_err(unreadable)?;
    let StHeader(mut entries) = serde_json::from_slice(&header)
        .map_err(|error| malformed(path, format!("its header is not that of tensors: {error}")))?;

    let mut names = HashSet::new();
    if let Some((name, _)) = entries.iter().find(|(name, _)| !names.insert(name)) {
        return Err(FileError::Duplicate {
            path: path.into(),
            tensor: name.clone(),
        });
    }
    // The data must be covered without holes or overlaps, wanted or not.
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut covered = 0;
    for (name, entry) in &entries {
        let (begin, end) = entry.data_offsets;
        if begin != covered || end < begin {
            let name = shown(name);
            let what = format!("tensor `{name}` takes bytes {begin} to {end}, not from {covered}");
            return Err(malformed(path, what));
        }
        covered = end;
    }
    let data_start = 8 + length;
    if covered != bytes - data_start {
        let there = bytes - data_start;
        let what = format!("its tensors take {covered} bytes, but {there} follow the header");
        return Err(malformed(path, what));
    }

    let mut tensors = Tensors::new();
    for (name, entry) in entries {
        if !wanted.contains(&name.as_str()) {
            continue;
        }
        let Some(dtype) = Dtype::from_safetensors(&entry.dtype) else {
            return Err(FileError::Dtype {
                path: path.into(),
                tensor: name,
                found: entry.dtype,
            });
        };
        let (begin, end) = entry.data_offsets;
        check_size(path, &name, dtype, &entry.shape, end - begin)?;
        file.seek(SeekFrom::Start(data_start + begin))
            .map_err(unreadable)?;
        let data = read_bytes(&mut file, end - begin, end - begin).map_err(unreadable)?;
        let shape = entry.shape;
        tensors.insert(name, Tensor { dtype, shape, data });
    }
    Ok(tensors)
}

/// Whether the `there` bytes that a file has for a tensor are those of its type and shape.
fn check_size(
    path: &Path,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    there: u64,
) -> Result<(), FileError> {
    let expected = dtype.bytes_of(shape);
    if expected.is_some_and(|bytes| bytes as u64 == there) {
        return Ok(());
    }
    let expected = expected.map_or("more than can be addressed".into(), |n| n.to_string());
    let what = format!(
        "tensor `{}` has {there} bytes, expected {expected} for {dtype} of shape {shape:?}",
        shown(name)
    );
    Err(malformed(path, what))
}

fn read_npz(
    path: &Path,
    file: &File,
    bytes: u64,
    wanted: &[&str],
    max_bytes: u64,
) -> Result<Tensors, FileError> {
    let not_zip = |error| malformed(path, format!("as a zip archive: {error}"));
    // With nothing before the archive there is nothing to search for, which a hostile file makes take minutes.
    let config = Config {
        archive_offset: ArchiveOffset::Known(0),
    };
    let mut archive = ZipArchive::with_config(config, BufReader::new(file)).map_err(not_zip)?;
    if let Some(tensor) = duplicate_in_zip(file, archive.central_directory_start()) {
        let path = path.into();
        return Err(FileError::Duplicate { path, tensor });
    }
    let found: Vec<(usize, String)> = (0..archive.len())
        .filter_map(|index| {
            let name = archive.name_for_index(index)?;
            let name = name.strip_suffix(".npy").unwrap_or(name);
            wanted.contains(&name).then(|| (index, name.to_owned()))
        })
        .collect();

    let mut unpacked = 0u64;
    for (index, _) in &found {
        let entry = archive.by_index_raw(*index).map_err(not_zip)?;
        unpacked = unpacked.saturating_add(entry.size());
    }
    check_limit(path, true, unpacked, max_bytes)?;

    let mut tensors = Tensors::new();
    for (index, name) in found {
        let mut entry = archive.by_index(index).map_err(not_zip)?;
        let size = entry.size();
        let tensor = read_npy(path, &name, &mut entry, size, bytes)?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The first name that two entries of a zip archive have, less its `.npy`. The zip crate keeps only the last of
/// such entries, so the central directory, which begins at `start`, is gone through here.
fn duplicate_in_zip(file: &File, start: u64) -> Option<String> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).ok()?;
    let mut names = HashSet::new();
    loop {
        let mut fixed = [0; 46];
        // The directory ends where something else begins.
        reader.read_exact(&mut fixed).ok()?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return None;
        }
        let length = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let mut name = vec![0; length(28).into()];
        reader.read_exact(&mut name).ok()?;
        if name.ends_with(b".npy") {
            name.truncate(name.len() - 4);
        }
        let extra_and_comment = i64::from(length(30)) + i64::from(length(32));
        reader.seek_relative(extra_and_comment).ok()?;
        if let Some(name) = names.replace(name) {
            return Some(String::from_utf8_lossy(&name).into_owned());
        }
    }
}

/// Reads one `.npy` file of `size` bytes from `reader`, which is part of a file of `backed` bytes.
fn read_npy(
    path: &Path,
    name: &str,
    reader: &mut impl Read,
    size: u64,
    backed: u64,
) -> Result<Tensor, FileError> {
    let bad = |what: &str| malformed(path, format!("tensor `{}` {what}", shown(name)));
    let unreadable = |error: io::Error| bad(&format!("cannot be unpacked: {error}"));

    let head = read_npy_head(reader).map_err(unreadable)?;
    let head = head.ok_or_else(|| bad("does not begin as a numpy array does"))?;
    let header = NpyHeader::from_reader(&mut head.as_slice())
        .map_err(|_| bad("has a header that is not descr, fortran_order and shape"))?;

    let descriptor = &header.type_descriptor;
    let dtype = descriptor.as_string().and_then(|text| {
        let (order, code) = text.split_at_checked(1)?;
        let swapped = match order {
            "<" => false,
            ">" => true,
            _ => return None,
        };
        Some((swapped, Dtype::from_numpy(code)?))
    });
    let Some((swapped, dtype)) = dtype else {
        return Err(FileError::Dtype {
            path: path.into(),
            tensor: name.into(),
            found: descriptor.to_string(),
        });
    };

    let shape = header.shape;
    let length = size.saturating_sub(head.len() as u64);
    check_size(path, name, dtype, &shape, length)?;
    let mut data = read_bytes(reader, length, backed).map_err(unreadable)?;
    // The checksum is compared at the end of the entry, which has to be reached.
    if reader.read(&mut [0]).map_err(unreadable)? != 0 {
        return Err(bad("unpacks to more than the archive says"));
    }

    if swapped {
        data.chunks_exact_mut(dtype.size())
            .for_each(<[u8]>::reverse);
    }
    if header.layout == Layout::Fortran {
        let rows = match dtype.size() {
            2 => row_major::<2>(&shape, &data),
            4 => row_major::<4>(&shape, &data),
            _ => row_major::<8>(&shape, &data),
        };
        data = rows.ok_or_else(|| bad("has a shape that is too large"))?;
    }
    Ok(Tensor { dtype, shape, data })
}

/// Everything before an npy file's data, or `None` where it is not as numpy writes it.
fn read_npy_head(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    /// Longer ones are refused by numpy too.
    const LONGEST_HEADER: u64 = 10_000;
    /// `{[((`, as in a structured array. The parser of the literal recurses.
    const DEEPEST: usize = 4;

    let mut head = read_bytes(reader, 10, 10)?;
    let mut length = u64::from(u16::from_le_bytes([head[8], head[9]]));
    if head[6] > 1 {
        let high = read_bytes(reader, 2, 2)?;
        length |= u64::from(u16::from_le_bytes([high[0], high[1]])) << 16;
        head.extend(high);
    }
    if !head.starts_with(b"\x93NUMPY") || length > LONGEST_HEADER {
        return Ok(None);
    }
    let literal = read_bytes(reader, length, length)?;
    let mut depth = 0usize;
    for byte in &literal {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Ok(None);
        }
    }
    head.extend(literal);
    Ok(Some(head))
}

/// Column-major `data` of elements of `N` bytes, in row-major order.
fn row_major<const N: usize>(shape: &[usize], data: &[u8]) -> Option<Vec<u8>> {
    let (elements, _) = data.as_chunks::<N>();
    let columns = ArrayView::from_shape(IxDyn(shape).f(), elements).ok()?;
    Some(columns.iter().flatten().copied().collect())
}

/// Writes `tensors` to `path`. The same tensors give the same bytes.
///
/// The file takes its place only when it is complete and on the disk: an older one stays whole on any failure, and
/// nothing else is left behind.
///
/// # Errors
/// A [`FileError`] that names the file and, where there is one, the tensor at fault.
pub fn write(path: &Path, tensors: &Tensors) -> Result<(), FileError> {
    let format = format_of(path)?;
    for (name, tensor) in tensors {
        if format == Format::Npz && tensor.dtype == Dtype::BF16 {
            return Err(FileError::Bf16InNpz {
                path: path.into(),
                tensor: name.clone(),
            });
        }
        if tensor.dtype.bytes_of(&tensor.shape) != Some(tensor.data.len()) {
            return Err(FileError::Size {
                path: path.into(),
                tensor: name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                bytes: tensor.data.len(),
            });
        }
    }
    let folder = folder_of(path)?;
    replace(path, folder, |out| match format {
        Format::Safetensors => write_safetensors(out, tensors),
        Format::Npz => write_npz(out, tensors),
    })
    .map_err(|reason| FileError::Write {
        path: path.into(),
        reason,
    })
}

/// Whether [`write()`] can go to `path`, as far as that can be told beforehand: its extension, its folder, and that it
/// is no folder itself.
///
/// # Errors
/// A [`FileError`] that names the path and what is wrong with it.
pub fn check_target(path: &Path) -> Result<(), FileError> {
    check_extension(path)?;
    folder_of(path).map(|_| ())
}

/// The folder that a file is to be written in.
fn folder_of(path: &Path) -> Result<&Path, FileError> {
    if path.is_dir() {
        return Err(FileError::NotAFile { path: path.into() });
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(FileError::NoFolder {
            path: path.into(),
            folder: folder.into(),
        });
    }
    Ok(folder)
}

/// Writes a temporary file in `folder` and renames it to `path`.
pub(crate) fn replace(
    path: &Path,
    folder: &Path,
    content: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    // Those of any new file, which the umask then narrows; a temporary file's own are for its owner alone.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder)?;
    let mut out = BufWriter::new(temporary.as_file());
    content(&mut out)?;
    out.flush()?;
    drop(out);
    temporary.as_file().sync_all()?;
    temporary.persist(path)?;
    Ok(())
}

/// Streams the file, where the crate's `serialize` would copy all tensors to memory.
fn write_safetensors(out: &mut impl Write, tensors: &Tensors) -> io::Result<()> {
    let mut ordered: Vec<_> = tensors.iter().collect();
    // The widest first keeps every tensor aligned to its elements.
    ordered.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.size()));
    let mut end = 0;
    let entries = ordered.iter().map(|(name, tensor)| {
        let begin = end;
        end += tensor.data.len();
        let info = TensorInfo {
            dtype: tensor.dtype.to_safetensors(),
            shape: tensor.shape.clone(),
            data_offsets: (begin, end),
        };
        ((*name).clone(), info)
    });
    let metadata = Metadata::new(None, entries.collect()).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for (_, tensor) in ordered {
        out.write_all(&tensor.data)?;
    }
    Ok(())
}

fn write_npz(out: &mut (impl Write + Seek), tensors: &Tensors) -> io::Result<()> {
    let mut archive = ZipWriter::new(out);
    for (name, tensor) in tensors {
        let descriptor = tensor.dtype.to_numpy().ok_or(io::ErrorKind::Unsupported)?;
        let header = NpyHeader {
            type_descriptor: PyValue::String(descriptor.into()),
            layout: Layout::Standard,
            shape: tensor.shape.clone(),
        };
        let header = header.to_bytes().map_err(io::Error::other)?;
        let size = header.len() as u64 + tensor.data.len() as u64;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644)
            .large_file(size > u32::MAX.into());
        let entry = format!("{name}.npy");
        // The zip crate panics on a length that the format cannot hold.
        if entry.len() > u16::MAX.into() {
            return Err(io::Error::other("the name of a tensor is too long"));
        }
        archive.start_file(entry, options)?;
        archive.write_all(&header)?;
        archive.write_all(&tensor.data)?;
    }
    archive.finish()?;
    Ok(())
}
