//! Reading and writing tensor files: round trips, numpy's own files, and hostile ones.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wgpu_batchnorm_cli::file::{Dtype, FileError, Tensor, Tensors, check_extension, read, write};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

const LIMIT: u64 = 1 << 20;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn tensor(dtype: Dtype, shape: &[usize], data: &[u8]) -> Tensor {
    Tensor {
        dtype,
        shape: shape.to_vec(),
        data: data.to_vec(),
    }
}

fn tensors<const N: usize>(entries: [(&str, Tensor); N]) -> Tensors {
    entries
        .into_iter()
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .collect()
}

/// One tensor of every type but BF16, a scalar and an empty one.
fn sample() -> Tensors {
    tensors([
        (
            "double",
            tensor(
                Dtype::F64,
                &[2],
                &[1.5f64.to_le_bytes(), (-2f64).to_le_bytes()].concat(),
            ),
        ),
        ("empty", Tensor::from_f32(vec![0, 3], &[])),
        (
            "half",
            tensor(Dtype::F16, &[1, 3], &[0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00]),
        ),
        ("num_batches_tracked", Tensor::from_i64_scalar(i64::MAX - 1)),
        ("scalar", Tensor::from_f32(vec![], &[0.1])),
        (
            "single",
            Tensor::from_f32(vec![2, 1, 2], &[1.0, f32::NAN, f32::MIN_POSITIVE, -0.0]),
        ),
    ])
}

fn names(tensors: &Tensors) -> Vec<&str> {
    tensors.keys().map(String::as_str).collect()
}

/// Reads a file of these bytes, which has to fail soon, in one line that names the file.
fn refusal(file: &str, bytes: &[u8], wanted: &[&str]) -> FileError {
    let folder = folder();
    let path = folder.path().join(file);
    fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    let error = read(&path, wanted, LIMIT).unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{error}: took {:?}",
        start.elapsed()
    );
    one_line(&error, &path);
    error
}

fn one_line(error: &FileError, path: &Path) {
    let message = error.to_string();
    assert!(
        message.starts_with(&path.display().to_string()),
        "{message}"
    );
    assert!(!message.contains(char::is_control), "{message:?}");
    assert!(message.len() < 1000, "{message}");
}

fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        data,
    ]
    .concat()
}

/// A version 1 npy file with this text for its header.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u16 + 1).to_le_bytes();
    [
        b"\x93NUMPY\x01\x00",
        &length[..],
        header.as_bytes(),
        b"\n",
        data,
    ]
    .concat()
}

fn npy_f32(shape: &str, data: &[u8]) -> Vec<u8> {
    npy(
        &format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"),
        data,
    )
}

fn npz(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        archive.start_file(*name, options).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn stored(entries: &[(&str, &[u8])]) -> Vec<u8> {
    npz(entries, CompressionMethod::Stored)
}

/// Where the only central directory entry of a zip archive begins.
fn directory(zip: &[u8]) -> usize {
    zip.windows(4)
        .rposition(|bytes| bytes == b"PK\x01\x02")
        .unwrap()
}

#[test]
fn extensions() {
    for good in [
        "a.npz",
        "a.NPZ",
        "b/a.safetensors",
        "a.SafeTensors",
        "a.b.npz",
    ] {
        check_extension(Path::new(good)).unwrap();
    }
    for bad in ["a", "a.npy", ".npz", "npz", "a.npz.zip"] {
        let path = Path::new(bad);
        let error = check_extension(path).unwrap_err();
        one_line(&error, path);
        let message = error.to_string();
        assert!(
            message.contains(".safetensors") && message.contains(".npz"),
            "{message}"
        );
        assert!(matches!(
            read(path, &[], LIMIT),
            Err(FileError::Extension { .. })
        ));
        assert!(matches!(
            write(path, &sample()),
            Err(FileError::Extension { .. })
        ));
    }
}

#[test]
fn round_trips() {
    let folder = folder();
    let bf16 = tensor(Dtype::BF16, &[2], &[0x80, 0x3f, 0x01, 0xff]);
    let mut with_bf16 = sample();
    with_bf16.insert("brain".into(), bf16);
    for (file, written) in [
        ("a.safetensors", &with_bf16),
        ("a.npz", &sample()),
        ("none.safetensors", &Tensors::new()),
        ("none.npz", &Tensors::new()),
    ] {
        let path = folder.path().join(file);
        write(&path, written).unwrap();
        assert_eq!(
            &read(&path, &names(written), LIMIT).unwrap(),
            written,
            "{file}"
        );
        assert!(read(&path, &[], LIMIT).unwrap().is_empty(), "{file}");
        let some = read(&path, &["single", "absent"], LIMIT).unwrap();
        assert_eq!(some.get("single"), written.get("single"), "{file}");
        assert!(!some.contains_key("absent"), "{file}");

        let again = folder.path().join(format!("again-{file}"));
        write(&again, written).unwrap();
        assert_eq!(
            fs::read(&path).unwrap(),
            fs::read(&again).unwrap(),
            "{file} differs from run to run"
        );
    }
}

#[test]
fn conversions() {
    let brain = tensor(Dtype::BF16, &[2], &[0x80, 0x3f, 0x20, 0xc0]);
    assert_eq!(brain.to_f32(), Some(vec![1.0, -2.5]));
    let sample = sample();
    assert_eq!(
        sample["half"].to_f32(),
        Some(vec![1.0, -2.0, 2f32.powi(-24)])
    );
    assert_eq!(sample["double"].to_f32(), Some(vec![1.5, -2.0]));
    assert_eq!(sample["scalar"].to_f32(), Some(vec![0.1]));
    assert_eq!(sample["empty"].to_f32(), Some(vec![]));
    assert_eq!(sample["num_batches_tracked"].to_f32(), None);
    assert_eq!(
        sample["num_batches_tracked"].to_i64_scalar(),
        Some(i64::MAX - 1)
    );
    assert_eq!(sample["double"].to_i64_scalar(), None);
    assert_eq!(tensor(Dtype::I64, &[1], &[0; 8]).to_i64_scalar(), None);
}

/// The files of `tests/data/make.py`.
#[test]
fn files_of_numpy() {
    let ramp = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5];
    let count: Vec<f32> = (0..24).map(|i| i as f32).collect();
    for file in ["stored.npz", "deflated.npz", "numpy.safetensors"] {
        let wanted = [
            "single",
            "half",
            "double",
            "big",
            "big_half",
            "columns",
            "big_columns",
            "scalar",
            "empty",
        ];
        let tensors = read(&data(file), &wanted, LIMIT).unwrap();
        let npz = file.ends_with("npz");
        assert_eq!(tensors.len(), if npz { 9 } else { 5 }, "{file}");
        for (name, tensor) in &tensors {
            let (dtype, shape, values): (_, &[usize], &[f32]) = match name.as_str() {
                "single" | "big" => (Dtype::F32, &[2, 3], &ramp),
                "half" | "big_half" => (Dtype::F16, &[2, 3], &ramp),
                "double" => (Dtype::F64, &[2, 3], &ramp),
                "columns" => (Dtype::F32, &[2, 3, 4], &count),
                "big_columns" => (Dtype::F64, &[2, 3, 4], &count),
                "empty" => (Dtype::F32, &[0, 3], &[]),
                _ => {
                    assert_eq!(tensor, &Tensor::from_i64_scalar(-7), "{file}");
                    continue;
                }
            };
            assert_eq!(
                (tensor.dtype, tensor.shape.as_slice()),
                (dtype, shape),
                "{file}: {name}"
            );
            assert_eq!(tensor.to_f32().unwrap(), values, "{file}: {name}");
        }
    }
    for (file, name, found) in [
        ("stored.npz", "text", "<U2"),
        ("numpy.safetensors", "bytes", "U8"),
    ] {
        let path = data(file);
        let error = read(&path, &[name], LIMIT).unwrap_err();
        one_line(&error, &path);
        assert!(
            matches!(&error, FileError::Dtype { tensor, .. } if tensor == name),
            "{error}"
        );
        let message = error.to_string();
        assert!(
            message.contains(found) && message.contains("F32, F16, BF16, F64 and I64"),
            "{message}"
        );
    }
}

#[test]
fn names_with_and_without_npy() {
    let folder = folder();
    let path = folder.path().join("a.npz");
    let array = npy_f32("(1,)", &2f32.to_le_bytes());
    fs::write(
        &path,
        stored(&[("a", &array), ("b.npy", &array), ("c.npy.npy", &array)]),
    )
    .unwrap();
    let tensors = read(&path, &["a", "b", "c", "c.npy"], LIMIT).unwrap();
    assert_eq!(names(&tensors), ["a", "b", "c.npy"]);
    assert_eq!(tensors["a"], Tensor::from_f32(vec![1], &[2.0]));
}

/// Cut anywhere or with any byte changed, a file is refused in one line or read; never a panic.
#[test]
fn truncated_and_corrupted() {
    let folder = folder();
    let wanted = names(&sample()).join(" ");
    let wanted: Vec<&str> = wanted.split(' ').collect();
    for file in ["a.safetensors", "a.npz", "deflated.npz"] {
        let path = folder.path().join(file);
        if file == "deflated.npz" {
            fs::copy(data(file), &path).unwrap();
        } else {
            write(&path, &sample()).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let tensors = read(&path, &wanted, LIMIT).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            match read(&path, &wanted, LIMIT) {
                Ok(cut) => assert_eq!(cut, tensors, "{file} cut to {length}"),
                Err(error) => one_line(&error, &path),
            }
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] = !bytes[at];
            fs::write(&path, &bytes).unwrap();
            if let Err(error) = read(&path, &wanted, LIMIT) {
                one_line(&error, &path);
            }
        }
    }
}

#[test]
fn hostile_safetensors() {
    let entry = |shape: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |entry: String, data: &[u8]| safetensors(&format!(r#"{{"a":{entry}}}"#), data);
    let two = |a: String, b: String| safetensors(&format!(r#"{{"a":{a},"b":{b}}}"#), &[0; 8]);
    let huge = "[4294967296,4294967296]";
    for (bytes, says) in [
        (vec![], "0 bytes"),
        (vec![0; 7], "7 bytes"),
        (vec![0xff; 8], "18446744073709551615"),
        (
            [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),
            "18446744073709551615",
        ),
        (
            [&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(),
            "1099511627776",
        ),
        (safetensors("", b""), "header"),
        (safetensors("not json", b""), "header"),
        (safetensors("[]", b""), "object of tensors"),
        (safetensors("{\"a\":\"\n\"}", b""), "header"),
        (safetensors(&"[".repeat(100_000), b""), "header"),
        (
            safetensors(&format!("{{\"a\":{}", "{\"b\":".repeat(100_000)), b""),
            "header",
        ),
        (safetensors(r#"{"a":3}"#, b""), "header"),
        (one(entry("[-1]", 0, 4), &[0; 4]), "header"),
        (one(entry("[1]", 0, 4), &[0; 3]), "take 4 bytes, but 3"),
        (one(entry("[1]", 0, 4), &[0; 5]), "take 4 bytes, but 5"),
        (one(entry("[2]", 0, 4), &[0; 4]), "expected 8"),
        (
            one(entry(huge, 0, 4), &[0; 4]),
            "more than can be addressed",
        ),
        (one(entry("[1]", 4, 8), &[0; 8]), "`a` takes bytes 4 to 8"),
        (
            one(entry("[1]", 0, u64::MAX), &[0; 8]),
            "take 18446744073709551615 bytes",
        ),
        (two(entry("[1]", 4, 0), entry("[1]", 4, 8)), "`a`"),
        (two(entry("[1]", 0, 4), entry("[1]", 0, 4)), "`b`"),
        (two(entry("[2]", 0, 8), entry("[1]", 4, 8)), "`b`"),
    ] {
        let error = refusal("a.safetensors", &bytes, &["a"]);
        assert!(matches!(error, FileError::Malformed { .. }), "{error}");
        assert!(
            error.to_string().contains(says),
            "{error} does not say {says:?}"
        );
    }

    let entry = entry("[1]", 0, 4);
    let twice = safetensors(&format!(r#"{{"a":{entry},"a":{entry}}}"#), &[0; 4]);
    let error = refusal("a.safetensors", &twice, &[]);
    assert!(
        matches!(&error, FileError::Duplicate { tensor, .. } if tensor == "a"),
        "{error}"
    );

    // An unknown type matters only where it is wanted; a name cannot break the line.
    let odd = r#"{"a\n\u001b":{"dtype":"Q3\n","shape":[9],"data_offsets":[0,1]}}"#;
    let error = refusal("a.safetensors", &safetensors(odd, b"x"), &["a\n\u{1b}"]);
    assert!(matches!(error, FileError::Dtype { .. }), "{error}");
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    fs::write(&path, safetensors(odd, b"x")).unwrap();
    assert!(read(&path, &["a"], LIMIT).unwrap().is_empty());
}

#[test]
fn hostile_npz() {
    let header = |descr: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': True, 'shape': {shape}, }}")
    };
    let huge = "(4294967296, 4294967296)";
    let deep = |bracket: &str| npy(&bracket.repeat(9_000), b"");
    let long = [
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff".as_slice(),
        &[b' '; 100],
    ]
    .concat();
    // Says that there is one entry; many of them must not be searched one by one for it.
    let end_of_directory = b"PK\x05\x06\0\0\0\0\x01\0\x01\0\x2e\0\0\0\0\0\0\0\0\0";
    let version = [b"\x93NUMPY\x09\x00\x02\x00\x00\x00".as_slice(), b"{}"].concat();
    for (bytes, says) in [
        (vec![], "zip"),
        (b"not a zip".to_vec(), "zip"),
        (end_of_directory.repeat(40_000), "zip"),
        (stored(&[("a", b"")]), "`a`"),
        (stored(&[("a.npy", b"\x93NUMPY\x01\x00")]), "`a`"),
        (stored(&[("a.npy", &[0; 200])]), "`a` does not begin"),
        (stored(&[("a.npy", &long)]), "`a` does not begin"),
        (stored(&[("a.npy", &version)]), "`a` has a header"),
        (stored(&[("a.npy", &npy("", b""))]), "`a` has a header"),
        (stored(&[("a.npy", &npy("{}", b""))]), "`a` has a header"),
        (stored(&[("a.npy", &npy("{{{{", b""))]), "`a` has a header"),
        (stored(&[("a.npy", &deep("{"))]), "`a` does not begin"),
        (stored(&[("a.npy", &deep("("))]), "`a` does not begin"),
        (
            stored(&[("a.npy", &npy(&header("'<f4'", "(-1,)"), b""))]),
            "`a` has a header",
        ),
        (
            stored(&[("a.npy", &npy_f32("(2,)", &[0; 4]))]),
            "has 4 bytes, expected 8",
        ),
        (
            stored(&[("a.npy", &npy_f32("(2,)", &[0; 12]))]),
            "has 12 bytes, expected 8",
        ),
        (
            stored(&[("a.npy", &npy_f32(huge, &[0; 12]))]),
            "more than can be addressed",
        ),
        (
            stored(&[("a.npy", &npy(&header("'<f4'", huge), b""))]),
            "more than can be addressed",
        ),
        (
            stored(&[(
                "a.npy",
                &npy(&header("'<f4'", "(0, 4294967296, 4294967296)"), b""),
            )]),
            "too large",
        ),
    ] {
        let error = refusal("a.npz", &bytes, &["a"]);
        assert!(matches!(error, FileError::Malformed { .. }), "{error}");
        assert!(
            error.to_string().contains(says),
            "{error} does not say {says:?}"
        );
    }
    for descr in [
        "'<c8'",
        "'|b1'",
        "'=f4'",
        "'f4'",
        "'<f4x'",
        "''",
        "'é'",
        "[('x', '<f4', (2,))]",
        "3",
    ] {
        let bytes = stored(&[("a.npy", &npy(&header(descr, "(1,)"), &[0; 4]))]);
        let error = refusal("a.npz", &bytes, &["a"]);
        assert!(
            matches!(error, FileError::Dtype { .. }) || !descr.is_ascii(),
            "{descr}: {error}"
        );
    }
}

#[test]
fn duplicates_in_npz() {
    let array = npy_f32("(1,)", &[0; 4]);
    // The zip crate does not write two entries of one name, so one is renamed afterwards.
    let mut same = stored(&[("a.npy", &array), ("b.npy", &array)]);
    for at in 0..same.len() - 5 {
        if &same[at..at + 5] == b"b.npy" {
            same[at] = b'a';
        }
    }
    for bytes in [same, stored(&[("a.npy", &array), ("a", &array)])] {
        let error = refusal("a.npz", &bytes, &["a"]);
        assert!(
            matches!(&error, FileError::Duplicate { tensor, .. } if tensor == "a"),
            "{error}"
        );
    }
}

#[test]
fn zip_bombs() {
    // 64 MiB of zeros in some 64 kB: over the limit, and refused before anything is unpacked.
    let zeros = npy_f32("(16777216,)", &vec![0; 1 << 26]);
    let mut bomb = npz(&[("a.npy", &zeros)], CompressionMethod::Deflated);
    let error = refusal("a.npz", &bomb, &["a"]);
    assert!(
        matches!(error, FileError::TooLarge { unpacked: true, .. }),
        "{error}"
    );

    // The same, said to be small: refused by its header, or when more comes out than was said.
    let size = directory(&bomb) + 24;
    let honest_header = zeros.len() - (1 << 26);
    bomb[size..size + 4].copy_from_slice(&(honest_header as u32 + 4).to_le_bytes());
    let error = refusal("a.npz", &bomb, &["a"]);
    assert!(
        error.to_string().contains("has 4 bytes, expected 67108864"),
        "{error}"
    );
    let liar = npy_f32("(1,)", &vec![0; 1 << 26]);
    let mut bomb = npz(&[("a.npy", &liar)], CompressionMethod::Deflated);
    let size = directory(&bomb) + 24;
    let small = liar.len() - (1 << 26) + 4;
    bomb[size..size + 4].copy_from_slice(&(small as u32).to_le_bytes());
    let error = refusal("a.npz", &bomb, &["a"]);
    assert!(
        error.to_string().contains("more than the archive says"),
        "{error}"
    );

    // 4 GB declared, 4 bytes there: nothing is reserved for what is not there.
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let header = npy_f32("(1000000000,)", &[]);
        let mut bytes = npz(&[("a.npy", &[&header[..], &[0; 4]].concat())], method);
        let size = directory(&bytes) + 24;
        let declared = (header.len() as u32) + 4_000_000_000;
        bytes[size..size + 4].copy_from_slice(&declared.to_le_bytes());
        let folder = folder();
        let path = folder.path().join("a.npz");
        fs::write(&path, bytes).unwrap();
        let error = read(&path, &["a"], u64::MAX).unwrap_err();
        one_line(&error, &path);
        assert!(error.to_string().contains("cannot be unpacked"), "{error}");
    }
}

#[test]
fn changed_data_in_npz() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let mut bytes = npz(&[("a.npy", &npy_f32("(1,)", &[1; 4]))], method);
        let crc = directory(&bytes) + 16;
        bytes[crc] ^= 1;
        let error = refusal("a.npz", &bytes, &["a"]);
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}

#[test]
fn limits_and_paths() {
    let folder = folder();
    for extension in ["safetensors", "npz"] {
        let path = folder.path().join(format!("a.{extension}"));
        let error = read(&path, &[], LIMIT).unwrap_err();
        one_line(&error, &path);
        assert!(matches!(error, FileError::Missing { .. }), "{error}");

        write(&path, &sample()).unwrap();
        let bytes = fs::metadata(&path).unwrap().len();
        read(&path, &names(&sample()), bytes).unwrap();
        let error = read(&path, &[], bytes - 1).unwrap_err();
        one_line(&error, &path);
        assert!(error.to_string().contains("--max-bytes"), "{error}");
        assert!(
            matches!(
                error,
                FileError::TooLarge {
                    unpacked: false,
                    ..
                }
            ),
            "{error}"
        );

        let directory = folder.path().join(format!("folder.{extension}"));
        fs::create_dir(&directory).unwrap();
        for error in [
            read(&directory, &[], LIMIT).unwrap_err(),
            write(&directory, &sample()).unwrap_err(),
        ] {
            one_line(&error, &directory);
            assert!(matches!(error, FileError::NotAFile { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);

        let nowhere = folder.path().join(format!("nowhere/a.{extension}"));
        let error = write(&nowhere, &sample()).unwrap_err();
        one_line(&error, &nowhere);
        assert!(matches!(error, FileError::NoFolder { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
}

#[test]
fn failed_writes_leave_the_old_file() {
    let folder = folder();
    let path = folder.path().join("a.npz");
    write(&path, &sample()).unwrap();
    let old = fs::read(&path).unwrap();
    let bf16 = tensors([("brain", tensor(Dtype::BF16, &[1], &[0; 2]))]);
    let error = write(&path, &bf16).unwrap_err();
    one_line(&error, &path);
    assert!(
        error.to_string().contains("`brain`") && error.to_string().contains(".safetensors"),
        "{error}"
    );
    let short = tensors([("short", Tensor::from_f32(vec![2], &[1.0]))]);
    let error = write(&path, &short).unwrap_err();
    one_line(&error, &path);
    assert!(matches!(error, FileError::Size { bytes: 4, .. }), "{error}");
    // A name that zip cannot hold fails in the middle of writing, after the first tensor.
    let longest = "n".repeat(70_000);
    let fails_late = tensors([
        ("a", Tensor::from_f32(vec![1], &[1.0])),
        (&longest, Tensor::from_i64_scalar(1)),
    ]);
    let error = write(&path, &fails_late).unwrap_err();
    one_line(&error, &path);
    assert!(matches!(error, FileError::Write { .. }), "{error}");

    assert_eq!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // A success replaces it, and leaves nothing else either.
    write(&path, &Tensors::new()).unwrap();
    assert_ne!(fs::read(&path).unwrap(), old);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// As any program's new file, not as a temporary one.
#[cfg(unix)]
#[test]
fn permissions_are_ordinary() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let (ours, plain) = (folder.path().join("a.npz"), folder.path().join("plain"));
    write(&ours, &sample()).unwrap();
    fs::write(&plain, "").unwrap();
    assert_eq!(mode(&ours), mode(&plain));
}
