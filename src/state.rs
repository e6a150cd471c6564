//! A layer's parameters and statistics on the host, and in safetensors files under the names of PyTorch or Keras.

use std::collections::BTreeSet;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
#[cfg(not(target_family = "wasm"))]
use std::path::Path;
use std::task::Poll;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo, TensorView};

#[cfg(not(target_family = "wasm"))]
use crate::files::replace;
use crate::fold::negative;
use crate::readback::Mapping;
use crate::{Error, Fold, Result};

/// What a batch norm layer has learned, on the host: vectors of one value per channel, `[C]`. Anything may be absent.
///
/// [`BatchNorm::set_state`](crate::BatchNorm::set_state) and
/// [`BatchNorm::submit_and_read_state`](crate::BatchNorm::submit_and_read_state) carry it to a layer and back. Files are
/// safetensors; what is F32 there keeps its bits, F16, BF16 and F64 are taken as f32.
///
/// A file does not hold ε, momentum or which variance is meant: they belong to the
/// [`Problem`](crate::Problem), for instance by [`Preset::Keras`](crate::Preset::Keras).
///
/// ```
/// use wgpu_batchnorm::{Naming, State};
///
/// let state = State {
///     running_mean: Some(vec![0.5, -0.5]),
///     running_var: Some(vec![1.0, 4.0]),
///     ..State::default()
/// };
/// let bytes = state.to_bytes(Naming::Keras, "stem/bn/")?;
/// assert_eq!(State::from_bytes(&bytes, "stem/bn/")?, state);
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// γ; Keras' `gamma`.
    pub weight: Option<Vec<f32>>,
    /// β; Keras' `beta`.
    pub bias: Option<Vec<f32>>,
    /// Keras' `moving_mean`.
    pub running_mean: Option<Vec<f32>>,
    /// Keras' `moving_variance`; 0 or more. Comes with the mean or not at all.
    pub running_var: Option<Vec<f32>>,
    /// Training batches so far. In a file of PyTorch's an I64 scalar of shape `[]`; Keras counts none.
    pub num_batches_tracked: Option<u64>,
}

/// Whose names the tensors of a file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Naming {
    /// `weight`, `bias`, `running_mean`, `running_var`, `num_batches_tracked`.
    Pytorch,
    /// `gamma`, `beta`, `moving_mean`, `moving_variance`.
    Keras,
}

/// The fields that are vectors, by their names in errors.
const FIELDS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];
const BATCHES: &str = "num_batches_tracked";

impl Naming {
    /// In the order of [`FIELDS`].
    fn names(self) -> [&'static str; 4] {
        match self {
            Naming::Pytorch => FIELDS,
            Naming::Keras => ["gamma", "beta", "moving_mean", "moving_variance"],
        }
    }
}

/// What is wrong with one field of a state.
struct Fault {
    /// Its place in [`FIELDS`].
    field: usize,
    problem: String,
    remedy: &'static str,
}

impl State {
    /// Reads the layer whose tensors are called `prefix` and then a name of PyTorch's or Keras', whichever are there.
    /// The prefix is taken as it is: `layer1.bn.` with its dot, or nothing. Other tensors are left alone, and unread.
    ///
    /// # Errors
    /// [`Error::File`]: the file cannot be read or is not safetensors; no tensor has such a name, with the prefixes of
    /// the batch norms that are there; both conventions have one; a tensor's type, shape or length is wrong; a
    /// variance is negative; a mean comes without variance or the other way round.
    #[cfg(not(target_family = "wasm"))]
    pub fn load(path: impl AsRef<Path>, prefix: &str) -> Result<Self> {
        let path = path.as_ref();
        let origin = shown(&path.to_string_lossy());
        let unreadable = |error: io::Error| Error::File {
            file: origin.clone(),
            problem: format!("it cannot be read: {error}"),
            remedy: "give the path of a safetensors file".into(),
        };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::other("it is not a regular file")));
        }
        let file = std::fs::File::open(path).map_err(unreadable)?;
        TensorFile::open(&origin, file, metadata.len())?.state(prefix)
    }

    /// As [`State::load`], from the bytes of a file.
    ///
    /// # Errors
    /// As there.
    pub fn from_bytes(bytes: &[u8], prefix: &str) -> Result<Self> {
        TensorFile::open("the bytes given", Cursor::new(bytes), bytes.len() as u64)?.state(prefix)
    }

    /// Writes a file with this layer alone. See [`State::save_all`].
    ///
    /// # Errors
    /// As there.
    #[cfg(not(target_family = "wasm"))]
    pub fn save(&self, path: impl AsRef<Path>, naming: Naming, prefix: &str) -> Result<()> {
        Self::save_all(path, naming, [(prefix, self)])
    }

    /// As [`State::save`], to the bytes of a file.
    ///
    /// # Errors
    /// As [`State::all_to_bytes`].
    pub fn to_bytes(&self, naming: Naming, prefix: &str) -> Result<Vec<u8>> {
        Self::all_to_bytes(naming, [(prefix, self)])
    }

    /// Writes a file with several layers, each under its prefix. The same layers give the same bytes.
    ///
    /// An older file stays whole until the new one is complete and on the disk. Keras' names have none for
    /// `num_batches_tracked`, which is left out there.
    ///
    /// # Errors
    /// As [`State::all_to_bytes`], and [`Error::File`] where the file cannot be written.
    #[cfg(not(target_family = "wasm"))]
    pub fn save_all<'a>(
        path: impl AsRef<Path>,
        naming: Naming,
        layers: impl IntoIterator<Item = (&'a str, &'a State)>,
    ) -> Result<()> {
        let path = path.as_ref();
        let bytes = Self::all_to_bytes(naming, layers)?;
        replace(path, &bytes).map_err(|error| Error::File {
            file: shown(&path.to_string_lossy()),
            problem: format!("it cannot be written: {error}"),
            remedy: "give a path in a folder that is there and may be written to".into(),
        })
    }

    /// As [`State::save_all`], to the bytes of a file.
    ///
    /// # Errors
    /// [`Error::Argument`]: a layer has no vector, or vectors of several lengths; a variance is negative; a mean comes
    /// without variance or the other way round; two layers have one prefix.
    pub fn all_to_bytes<'a>(
        naming: Naming,
        layers: impl IntoIterator<Item = (&'a str, &'a State)>,
    ) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        let mut prefixes = BTreeSet::new();
        for (prefix, state) in layers {
            let refuse = |tensor, problem: String, remedy: &str| Error::Argument {
                tensor,
                problem: format!("{problem} (layer `{}`)", shown(prefix)),
                remedy: remedy.into(),
            };
            if let Some(Fault {
                field,
                problem,
                remedy,
            }) = state.fault()
            {
                return Err(refuse(FIELDS[field], problem, remedy));
            }
            if state.channels().is_none() {
                let problem = "the layer has no vector to save".into();
                return Err(refuse("state", problem, "leave it out, or give it one"));
            }
            if !prefixes.insert(prefix) {
                let problem = "two layers have one prefix".into();
                return Err(refuse("state", problem, "give each a prefix of its own"));
            }
            for (name, vector) in naming.names().into_iter().zip(state.vectors()) {
                if let Some(vector) = vector {
                    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                    tensors.push((
                        format!("{prefix}{name}"),
                        Dtype::F32,
                        vec![vector.len()],
                        bytes,
                    ));
                }
            }
            if let (Naming::Pytorch, Some(batches)) = (naming, state.num_batches_tracked) {
                let Ok(batches) = i64::try_from(batches) else {
                    let problem = format!("{batches} is beyond the I64 of a file");
                    return Err(refuse(
                        BATCHES,
                        problem,
                        "give the number of batches so far",
                    ));
                };
                let bytes = batches.to_le_bytes().to_vec();
                tensors.push((format!("{prefix}{BATCHES}"), Dtype::I64, vec![], bytes));
            }
        }
        let unwritable = |problem: String| Error::Argument {
            tensor: "state",
            problem,
            remedy: "give at least one layer, of a size that fits a file".into(),
        };
        if tensors.is_empty() {
            return Err(unwritable("there is no layer to save".into()));
        }
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name, view))
        });
        views
            .collect::<Result<Vec<_>, _>>()
            .and_then(|views| safetensors::serialize(views, None))
            .map_err(|error| unwritable(shown(&error.to_string())))
    }

    /// These statistics and parameters, to be folded into the layer before; ε is not in a file.
    ///
    /// # Errors
    /// [`Error::Argument`] where the running mean or variance is absent.
    pub fn fold(&self, eps: f64) -> Result<Fold<'_, f32>> {
        let (mean, variance) = match (&self.running_mean, &self.running_var) {
            (Some(mean), Some(variance)) => (mean, variance),
            (mean, _) => {
                return Err(Error::Argument {
                    tensor: FIELDS[if mean.is_none() { 2 } else { 3 }],
                    problem: "the state has none".into(),
                    remedy: "give the state of a layer with running statistics".into(),
                });
            }
        };
        let mut fold = Fold::new(mean, variance, eps);
        if let Some(weight) = &self.weight {
            fold = fold.weight(weight);
        }
        if let Some(bias) = &self.bias {
            fold = fold.bias(bias);
        }
        Ok(fold)
    }

    /// In the order of [`FIELDS`].
    fn vectors(&self) -> [Option<&[f32]>; 4] {
        [
            &self.weight,
            &self.bias,
            &self.running_mean,
            &self.running_var,
        ]
        .map(|v| v.as_deref())
    }

    /// The first vector that is there: its place in [`FIELDS`] and its length.
    fn channels(&self) -> Option<(usize, usize)> {
        let mut vectors = self.vectors().into_iter().enumerate();
        vectors.find_map(|(field, vector)| Some((field, vector?.len())))
    }

    /// The vectors in the order of [`FIELDS`], after every check against a layer's channels.
    pub(crate) fn checked(&self, channels: usize) -> Result<[Option<&[f32]>; 4]> {
        if let Some(Fault {
            field,
            problem,
            remedy,
        }) = self.fault()
        {
            return Err(Error::Argument {
                tensor: FIELDS[field],
                problem,
                remedy: remedy.into(),
            });
        }
        match self.channels() {
            Some((field, given)) if given != channels => Err(Error::Shape {
                tensor: FIELDS[field],
                given: vec![given],
                expected: vec![channels],
            }),
            _ => Ok(self.vectors()),
        }
    }

    /// What no layer can have.
    fn fault(&self) -> Option<Fault> {
        let vectors = self.vectors();
        let (_, channels) = self.channels()?;
        for (field, vector) in vectors.into_iter().enumerate() {
            let problem = match vector.map(<[f32]>::len) {
                Some(0) => "it is empty".into(),
                Some(given) if given != channels => {
                    format!(
                        "it has {given} values, where another tensor of the layer has {channels}"
                    )
                }
                _ => continue,
            };
            return Some(Fault {
                field,
                problem,
                remedy: "all vectors of a layer have one value per channel",
            });
        }
        let (mean, variance) = (vectors[2], vectors[3]);
        if mean.is_some() != variance.is_some() {
            return Some(Fault {
                field: if mean.is_none() { 2 } else { 3 },
                problem: "it is missing, where the other running statistic is there".into(),
                remedy: "give both or neither",
            });
        }
        let (problem, remedy) = negative(variance?)?;
        Some(Fault {
            field: 3,
            problem,
            remedy,
        })
    }
}

/// An opened safetensors file, whose header has been checked against its length. Only what is asked for is read of the
/// rest.
struct TensorFile<'a, R> {
    origin: &'a str,
    source: R,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl<'a, R: Read + Seek> TensorFile<'a, R> {
    fn open(origin: &'a str, mut source: R, length: u64) -> Result<Self> {
        /// Names of some 50 000 tensors. The format allows 25 times that, which unpacks to gigabytes.
        const LONGEST_HEADER: u64 = 4_000_000;
        let malformed = |problem: String| Error::File {
            file: origin.into(),
            problem: shown(&problem),
            remedy: "give a whole safetensors file".into(),
        };
        let Some(after) = length.checked_sub(8) else {
            return Err(malformed(format!(
                "it has {length} bytes, and the length of its header alone takes 8"
            )));
        };
        let unread = |error: io::Error| malformed(format!("its header cannot be read: {error}"));
        let mut header = [0; 8];
        source.read_exact(&mut header).map_err(unread)?;
        let header = u64::from_le_bytes(header);
        let longest = after.min(LONGEST_HEADER);
        if header > longest {
            return Err(malformed(format!(
                "its header is said to take {header} bytes, of which there can be {longest}"
            )));
        }
        let json = read(&mut source, header).map_err(unread)?;
        // Not by the crate's own `deserialize`: it needs the whole file in memory, and panics where lengths that lie
        // add up to more than 64 bits.
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|error| malformed(format!("its header is not that of tensors: {error}")))?;
        let (covered, there) = (metadata.data_len(), after - header);
        if covered as u64 != there {
            return Err(malformed(format!(
                "its tensors take {covered} bytes, but {there} follow the header"
            )));
        }
        Ok(TensorFile {
            origin,
            source,
            metadata,
            data: 8 + header,
        })
    }

    fn state(mut self, prefix: &str) -> Result<State> {
        let naming = self.naming(prefix)?;
        let [weight, bias, running_mean, running_var] = naming
            .names()
            .map(|name| self.vector(&format!("{prefix}{name}")));
        let state = State {
            weight: weight?,
            bias: bias?,
            running_mean: running_mean?,
            running_var: running_var?,
            num_batches_tracked: self.batches(&format!("{prefix}{BATCHES}"))?,
        };
        match state.fault() {
            None => Ok(state),
            Some(Fault {
                field,
                problem,
                remedy,
            }) => {
                let name = format!("{prefix}{}", naming.names()[field]);
                Err(self.refuse(&name, &problem, remedy))
            }
        }
    }

    /// Which convention the tensors under a prefix follow.
    fn naming(&self, prefix: &str) -> Result<Naming> {
        let has = |naming: Naming| {
            let mut names = naming.names().into_iter();
            names.find(|name| self.metadata.info(&format!("{prefix}{name}")).is_some())
        };
        let refuse = |problem: String, remedy: String| Error::File {
            file: self.origin.into(),
            problem,
            remedy,
        };
        let under = format!("under the prefix `{}`", shown(prefix));
        match (has(Naming::Pytorch), has(Naming::Keras)) {
            (Some(_), None) => Ok(Naming::Pytorch),
            (None, Some(_)) => Ok(Naming::Keras),
            (Some(pytorch), Some(keras)) => Err(refuse(
                format!(
                    "{under} are both `{pytorch}`, a name of PyTorch's, and `{keras}`, one of Keras'"
                ),
                "give a file that has the layer under one convention".into(),
            )),
            (None, None) => {
                let problem = format!("no tensor of a batch norm is {under}");
                let mut names = self.metadata.offset_keys();
                names.sort();
                let prefixes: Vec<&str> = names
                    .iter()
                    .filter_map(|name| {
                        let mut means = [Naming::Pytorch, Naming::Keras]
                            .map(|n| n.names()[2])
                            .into_iter();
                        means.find_map(|mean| name.strip_suffix(mean))
                    })
                    .collect();
                let remedy = if !prefixes.is_empty() {
                    format!("give one of the prefixes that have: {}", list(&prefixes))
                } else if !names.is_empty() {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    format!(
                        "give a prefix and a file that fit; this one's tensors are {}",
                        list(&names)
                    )
                } else {
                    "give a file that has tensors".into()
                };
                Err(refuse(problem, remedy))
            }
        }
    }

    fn refuse(&self, name: &str, problem: &str, remedy: &str) -> Error {
        Error::File {
            file: self.origin.into(),
            problem: format!("tensor `{}`: {problem}", shown(name)),
            remedy: remedy.into(),
        }
    }

    fn bytes(&mut self, name: &str, (begin, end): (usize, usize)) -> Result<Vec<u8>> {
        let start = SeekFrom::Start(self.data + begin as u64);
        let bytes = self
            .source
            .seek(start)
            .and_then(|_| read(&mut self.source, (end - begin) as u64));
        bytes.map_err(|error| {
            let problem = format!("it cannot be read: {error}");
            self.refuse(
                name,
                &problem,
                "give a file that is whole and stays so while it is read",
            )
        })
    }

    /// A vector as f32, where the file has it. Its bytes are at any address, so they are never cast.
    fn vector(&mut self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(TensorInfo {
            dtype,
            shape,
            data_offsets,
        }) = self.metadata.info(name).cloned()
        else {
            return Ok(None);
        };
        if shape.len() != 1 {
            let problem = format!("it has shape {shape:?}, expected [channels]");
            return Err(self.refuse(name, &problem, "give the prefix of a batch norm layer"));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            let problem = format!("it is of type {dtype}, expected F32, F16, BF16 or F64");
            return Err(self.refuse(name, &problem, "save it as F32"));
        }
        let bytes = self.bytes(name, data_offsets)?;
        Ok(Some(match dtype {
            Dtype::F16 => each(&bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(&bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => each(&bytes, |b| f64::from_le_bytes(b) as f32),
            _ => each(&bytes, f32::from_le_bytes),
        }))
    }

    fn batches(&mut self, name: &str) -> Result<Option<u64>> {
        const REMEDY: &str = "save the number of batches as an I64 scalar of shape []";
        let Some(TensorInfo {
            dtype,
            shape,
            data_offsets,
        }) = self.metadata.info(name).cloned()
        else {
            return Ok(None);
        };
        if dtype != Dtype::I64 || !shape.is_empty() {
            let problem = format!("it is of type {dtype} and shape {shape:?}, expected I64 and []");
            return Err(self.refuse(name, &problem, REMEDY));
        }
        let given = each(&self.bytes(name, data_offsets)?, i64::from_le_bytes);
        let given = given.first().copied().unwrap_or_default();
        match u64::try_from(given) {
            Ok(batches) => Ok(Some(batches)),
            Err(_) => Err(self.refuse(name, &format!("it is {given}, expected 0 or more"), REMEDY)),
        }
    }
}

fn each<const N: usize, T>(bytes: &[u8], from: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().copied().map(from).collect()
}

/// Reads exactly so many bytes. Memory follows what is there, whatever the length says.
fn read(source: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Text from outside, fit for one line of an error message.
fn shown(text: &str) -> String {
    const LONGEST: usize = 300;
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

/// The first few names, and how many more there are.
fn list(names: &[&str]) -> String {
    const MOST: usize = 8;
    let shown: Vec<String> = names
        .iter()
        .take(MOST)
        .map(|name| format!("`{}`", shown(name)))
        .collect();
    let more = names.len().saturating_sub(MOST);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    shown.join(", ") + &more
}

/// A layer's state on its way to the host: a future. Somebody must poll the device, as in any wgpu program;
/// [`StateReadback::wait`] does.
#[derive(Debug)]
pub struct StateReadback {
    mapping: Mapping,
    channels: usize,
}

impl StateReadback {
    /// Maps what has been submitted: `[5, C]` words, which are weight, bias, mean, variance and batches.
    pub(crate) fn new(
        device: &wgpu::Device,
        staging: wgpu::Buffer,
        submitted: wgpu::SubmissionIndex,
        channels: usize,
    ) -> Self {
        let mapping = Mapping::start(device, staging, submitted, "reading a layer's state");
        StateReadback { mapping, channels }
    }

    /// Waits for the device and takes the state. Blocks.
    ///
    /// # Errors
    /// [`Error::DeviceLost`], and [`Error::Device`] where the memory cannot be mapped.
    #[cfg(not(target_family = "wasm"))]
    pub fn wait(self) -> Result<State> {
        self.mapping.wait(None)?;
        self.state()
    }

    /// Waits for the device, but no longer than `timeout`, and takes the state. Blocks.
    ///
    /// # Errors
    /// [`Error::Timeout`], after which this may be called again; those of [`wait`](Self::wait).
    #[cfg(not(target_family = "wasm"))]
    pub fn wait_timeout(&mut self, timeout: std::time::Duration) -> Result<State> {
        self.mapping.wait(Some(timeout))?;
        self.state()
    }

    fn state(&self) -> Result<State> {
        let range = self.mapping.view(..)?;
        let words = each(&range, u32::from_le_bytes);
        let row = |i: usize| {
            let row = words.iter().skip(i * self.channels).take(self.channels);
            row.map(|&word| f32::from_bits(word)).collect()
        };
        Ok(State {
            weight: Some(row(0)),
            bias: Some(row(1)),
            running_mean: Some(row(2)),
            running_var: Some(row(3)),
            num_batches_tracked: words.get(4 * self.channels).map(|&batches| batches.into()),
        })
    }
}

impl Future for StateReadback {
    type Output = Result<State>;

    fn poll(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Self::Output> {
        self.mapping.poll(context).map(|mapped| {
            mapped?;
            self.state()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind of bits: a quiet and a signalling NaN with payloads, -0, a subnormal, infinity.
    fn strange() -> Vec<f32> {
        [
            0x7fc0_1234,
            0x7f80_0001,
            0x8000_0000,
            0x0000_0001,
            0x7f80_0000,
        ]
        .map(f32::from_bits)
        .to_vec()
    }

    fn full() -> State {
        State {
            weight: Some(strange()),
            bias: Some(strange().into_iter().rev().collect()),
            running_mean: Some(vec![0.1, -0.2, 1e30, -0.0, 5.5]),
            running_var: Some(vec![0.0, -0.0, 1e-30, f32::INFINITY, f32::NAN]),
            num_batches_tracked: Some(1 << 40),
        }
    }

    fn bits(state: &State) -> Vec<Option<Vec<u32>>> {
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect();
        state.vectors().map(|v| v.map(bits)).to_vec()
    }

    /// A file made by hand: a header, then bytes.
    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            data,
        ]
        .concat()
    }

    fn entry(name: &str, dtype: &str, shape: &str, [begin, end]: [usize; 2]) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn refused(bytes: &[u8], prefix: &str, wanted: &[&str]) {
        named(State::from_bytes(bytes, prefix).unwrap_err(), wanted);
    }

    fn named(error: Error, wanted: &[&str]) {
        let error = error.to_string();
        assert!(
            wanted.iter().all(|w| error.contains(w)),
            "{error:?} lacks one of {wanted:?}"
        );
        assert!(!error.contains('\n') && error.len() < 3000, "{error:?}");
    }

    #[test]
    fn f32_keeps_its_bits_under_both_conventions() {
        let state = full();
        for (naming, batches) in [(Naming::Pytorch, Some(1 << 40)), (Naming::Keras, None)] {
            for prefix in ["", "layer1.bn.", "a/\"β\n"] {
                let bytes = state.to_bytes(naming, prefix).unwrap();
                // At an odd address too.
                for shift in 0..2 {
                    let moved = [&vec![0; shift], &bytes[..]].concat();
                    let got = State::from_bytes(&moved[shift..], prefix).unwrap();
                    assert_eq!(bits(&got), bits(&state));
                    assert_eq!(got.num_batches_tracked, batches);
                }
            }
        }
    }

    #[test]
    fn a_part_of_a_state_is_a_state() {
        let affine = State {
            bias: Some(vec![1.0, 2.0]),
            ..State::default()
        };
        let statistics = State {
            running_mean: Some(vec![1.0]),
            running_var: Some(vec![0.0]),
            num_batches_tracked: Some(0),
            ..State::default()
        };
        for state in [affine, statistics] {
            let bytes = state.to_bytes(Naming::Pytorch, "x.").unwrap();
            assert_eq!(State::from_bytes(&bytes, "x."), Ok(state));
        }
    }

    #[test]
    fn the_format_is_what_others_read() {
        let bytes = full().to_bytes(Naming::Pytorch, "bn.").unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort();
        let want = [
            "bias",
            "num_batches_tracked",
            "running_mean",
            "running_var",
            "weight",
        ];
        assert_eq!(names, want.map(|name| format!("bn.{name}")));
        let batches = file.tensor("bn.num_batches_tracked").unwrap();
        assert_eq!((batches.dtype(), batches.shape()), (Dtype::I64, &[][..]));
        assert_eq!(batches.data(), (1i64 << 40).to_le_bytes());
        assert_eq!((bytes.len() - batches.data().len()) % 4, 0);
    }

    /// At places that no alignment fits, as a file may have them.
    #[test]
    fn other_types_are_taken_as_f32() {
        let values = [1.5, -0.25, 3.0];
        let mut data = vec![7];
        data.extend(values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()));
        data.extend(values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()));
        data.extend([0.1, 1e300, 2.0].iter().flat_map(|v: &f64| v.to_le_bytes()));
        data.extend([0.1, 1e-50, 2.0].iter().flat_map(|v: &f64| v.to_le_bytes()));
        let header = [
            entry("first", "U8", "[1]", [0, 1]),
            entry("gamma", "F16", "[3]", [1, 7]),
            entry("beta", "BF16", "[3]", [7, 13]),
            entry("moving_mean", "F64", "[3]", [13, 37]),
            entry("moving_variance", "F64", "[3]", [37, 61]),
        ];
        let got =
            State::from_bytes(&file(&format!("{{{}}}", header.join(",")), &data), "").unwrap();
        let want = State {
            weight: Some(vec![1.5, -0.25, 3.0]),
            bias: Some(vec![1.5, -0.25, 3.0]),
            running_mean: Some(vec![0.1, f32::INFINITY, 2.0]),
            running_var: Some(vec![0.1, 0.0, 2.0]),
            num_batches_tracked: None,
        };
        assert_eq!(got, want);
    }

    #[test]
    fn several_layers_share_a_file_whose_bytes_repeat() {
        let small = State {
            weight: Some(vec![2.0]),
            ..State::default()
        };
        let layers = [("b.", &full()), ("a.", &small), ("", &small)];
        let bytes = State::all_to_bytes(Naming::Pytorch, layers).unwrap();
        for _ in 0..20 {
            assert_eq!(
                State::all_to_bytes(Naming::Pytorch, layers),
                Ok(bytes.clone())
            );
        }
        let turned = layers.into_iter().rev();
        assert_eq!(
            State::all_to_bytes(Naming::Pytorch, turned),
            Ok(bytes.clone())
        );
        assert_eq!(
            bits(&State::from_bytes(&bytes, "b.").unwrap()),
            bits(&full())
        );
        assert_eq!(State::from_bytes(&bytes, "a."), Ok(small.clone()));
        assert_eq!(State::from_bytes(&bytes, ""), Ok(small));
    }

    #[test]
    fn a_prefix_that_is_not_there_lists_those_that_are() {
        let state = full();
        let layers: Vec<String> = (0..12).map(|i| format!("layer{i:02}.bn.")).collect();
        let layers = layers.iter().map(|prefix| (prefix.as_str(), &state));
        let bytes = State::all_to_bytes(Naming::Pytorch, layers).unwrap();
        refused(
            &bytes,
            "layer01.bn",
            &["`layer01.bn`", "`layer00.bn.`, `layer01.bn.`", "and 4 more"],
        );
        let keras = state.to_bytes(Naming::Keras, "stem/").unwrap();
        refused(&keras, "stem.", &["`stem.`", "`stem/`"]);
        let none = file(
            &format!("{{{}}}", entry("conv.kernel", "F32", "[1]", [0, 4])),
            &[0; 4],
        );
        refused(&none, "bn.", &["`bn.`", "tensors are `conv.kernel`"]);
        refused(&file("{}", &[]), "bn.", &["`bn.`", "has tensors"]);
        let long = format!("{}\n", "x".repeat(5000));
        refused(&bytes, &long, &["xxx…"]);
    }

    #[test]
    fn what_no_layer_can_have_is_named() {
        let one = |name: &str, dtype: &str, shape: &str, data: &[u8]| {
            file(
                &format!("{{{}}}", entry(name, dtype, shape, [0, data.len()])),
                data,
            )
        };
        refused(
            &one("c.weight", "F32", "[1,1]", &[0; 4]),
            "c.",
            &["`c.weight`", "[1, 1]", "[channels]"],
        );
        refused(
            &one("c.weight", "F32", "[]", &[0; 4]),
            "c.",
            &["`c.weight`", "[]"],
        );
        refused(
            &one("c.weight", "F32", "[0]", &[]),
            "c.",
            &["`c.weight`", "empty"],
        );
        refused(
            &one("c.gamma", "I32", "[1]", &[0; 4]),
            "c.",
            &["`c.gamma`", "I32", "F64"],
        );
        refused(
            &one("running_var", "F32", "[1]", &[0; 4]),
            "",
            &["`running_mean`", "missing", "both"],
        );
        refused(
            &one("moving_mean", "F32", "[1]", &[0; 4]),
            "",
            &["`moving_variance`", "missing"],
        );
        let batches = [
            ("I64", "[1]", 1i64.to_le_bytes(), "[1]"),
            ("F64", "[]", 1f64.to_le_bytes(), "F64"),
            ("I64", "[]", (-1i64).to_le_bytes(), "-1"),
        ];
        for (dtype, shape, bytes, wanted) in batches {
            let header = [
                entry("weight", "F32", "[1]", [0, 4]),
                entry("num_batches_tracked", dtype, shape, [4, 12]),
            ];
            let data = [&[0; 4][..], &bytes].concat();
            let bytes = file(&format!("{{{}}}", header.join(",")), &data);
            refused(&bytes, "", &["`num_batches_tracked`", wanted, "I64"]);
        }
        let two = |[a, b]: [&str; 2], lengths: [usize; 2], data: &[f32]| {
            let header = [
                entry(a, "F32", &format!("[{}]", lengths[0]), [0, 4 * lengths[0]]),
                entry(
                    b,
                    "F32",
                    &format!("[{}]", lengths[1]),
                    [4 * lengths[0], 4 * data.len()],
                ),
            ];
            let data: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
            file(&format!("{{{}}}", header.join(",")), &data)
        };
        refused(
            &two(["weight", "bias"], [2, 1], &[0.0; 3]),
            "",
            &["`bias`", "1 values", "has 2"],
        );
        refused(
            &two(["weight", "beta"], [1, 1], &[0.0; 2]),
            "",
            &["PyTorch", "Keras", "`beta`"],
        );
        let statistics = two(
            ["x.running_mean", "x.running_var"],
            [2, 2],
            &[0.0, 0.0, 1.0, -0.5],
        );
        refused(&statistics, "x.", &["`x.running_var`", "channel 1", "-0.5"]);
    }

    #[test]
    fn a_state_that_no_file_can_hold_is_refused() {
        let refused = |state: &State, wanted: &[&str]| {
            named(state.to_bytes(Naming::Pytorch, "p.").unwrap_err(), wanted);
        };
        let one = || State {
            weight: Some(vec![1.0]),
            ..State::default()
        };
        refused(&State::default(), &["state", "no vector", "`p.`"]);
        refused(
            &State {
                num_batches_tracked: Some(1),
                ..State::default()
            },
            &["no vector"],
        );
        refused(
            &State {
                bias: Some(vec![1.0; 2]),
                ..one()
            },
            &["bias", "2 values", "has 1"],
        );
        refused(
            &State {
                running_mean: Some(vec![1.0]),
                ..one()
            },
            &["running_var", "both"],
        );
        let statistics = State {
            running_mean: Some(vec![1.0]),
            running_var: Some(vec![-1.0]),
            ..one()
        };
        refused(&statistics, &["running_var", "channel 0", "-1"]);
        refused(
            &State {
                num_batches_tracked: Some(u64::MAX),
                ..one()
            },
            &["num_batches_tracked", "I64"],
        );
        let error =
            State::all_to_bytes(Naming::Keras, [("p.", &one()), ("p.", &one())]).unwrap_err();
        named(error, &["one prefix", "`p.`"]);
        named(
            State::all_to_bytes(Naming::Keras, []).unwrap_err(),
            &["no layer"],
        );
    }

    /// Cut short anywhere, or with any byte of the header changed: never a panic, and cut short never a state.
    #[test]
    fn damaged_files_are_errors() {
        let bytes = full().to_bytes(Naming::Pytorch, "bn.").unwrap();
        for length in 0..bytes.len() {
            refused(&bytes[..length], "bn.", &["the bytes given"]);
        }
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for place in 0..8 + header {
            for byte in [0, b'"', b'0', b'9', b'}', b'[', 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[place] = byte;
                let _ = State::from_bytes(&bytes, "bn.");
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        refused(&longer, "bn.", &["follow the header"]);
        refused(
            &u64::MAX.to_le_bytes(),
            "",
            &["18446744073709551615 bytes", "can be 0"],
        );
        refused(&file("[1]", &[]), "", &["header"]);
        refused(&file("{\"weight\":\n1}", &[]), "", &["header"]);
        refused(&file(&"[".repeat(100_000), &[]), "", &["header"]);
        refused(&file(&"{\"a\":".repeat(100_000), &[]), "", &["header"]);
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        let one = |shape: &str, offsets| {
            file(
                &format!("{{{}}}", entry("weight", "F32", shape, offsets)),
                &[0; 8],
            )
        };
        assert!(State::from_bytes(&one("[2]", [0, 8]), "").is_ok());
        refused(&one("[1]", [4, 8]), "", &["`weight`"]);
        refused(&one("[1]", [8, 4]), "", &["`weight`"]);
        refused(&one("[3]", [0, 12]), "", &["12 bytes", "8 follow"]);
        refused(&one("[1]", [0, 8]), "", &["header"]);
        refused(&one("[18446744073709551615,2]", [0, 8]), "", &["header"]);
        refused(&one("[-1]", [0, 8]), "", &["header"]);
        // Their sum with the length of the header is beyond 64 bits.
        let n = (1usize << 61) - 1;
        let huge: Vec<String> = (0..8)
            .map(|i| {
                entry(
                    &format!("t{i}"),
                    "U8",
                    &format!("[{n}]"),
                    [i * n, (i + 1) * n],
                )
            })
            .collect();
        refused(
            &file(&format!("{{{}}}", huge.join(",")), &[]),
            "",
            &["0 follow"],
        );
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = std::env::temp_dir().join(format!("batchnorm-state-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("layer.safetensors");
        let (first, second) = (
            full(),
            State {
                weight: Some(vec![3.0]),
                ..State::default()
            },
        );
        first.save(&path, Naming::Pytorch, "bn.").unwrap();
        assert_eq!(bits(&State::load(&path, "bn.").unwrap()), bits(&first));
        let layers = [("x.", &second), ("y.", &first)];
        State::save_all(&path, Naming::Keras, layers).unwrap();
        assert_eq!(State::load(&path, "x."), Ok(second.clone()));
        assert_eq!(
            std::fs::read(&path).unwrap(),
            State::all_to_bytes(Naming::Keras, layers).unwrap()
        );

        // What fails leaves the old file, and nothing beside it.
        assert!(State::default().save(&path, Naming::Keras, "").is_err());
        let taken = folder.join("folder");
        std::fs::create_dir_all(taken.join("full")).unwrap();
        named(
            second.save(&taken, Naming::Keras, "").unwrap_err(),
            &["folder", "written"],
        );
        named(
            second
                .save(folder.join("no/layer"), Naming::Keras, "")
                .unwrap_err(),
            &["no/layer", "folder"],
        );
        named(
            second.save("", Naming::Keras, "").unwrap_err(),
            &["does not name a file"],
        );
        named(
            second.save("..", Naming::Keras, "").unwrap_err(),
            &["does not name a file"],
        );
        named(
            State::load(folder.join("none"), "").unwrap_err(),
            &["none", "read"],
        );
        named(State::load(&folder, "").unwrap_err(), &["regular file"]);
        assert_eq!(State::load(&path, "x."), Ok(second));
        let mut left: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|f| f.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["folder", "layer.safetensors"]);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_state_folds() {
        let mut state = State {
            weight: Some(vec![2.0]),
            bias: Some(vec![1.0]),
            running_mean: Some(vec![3.0]),
            running_var: Some(vec![4.0]),
            num_batches_tracked: None,
        };
        assert_eq!(
            state.fold(0.0).unwrap().scale_shift(),
            Ok((vec![1.0], vec![-2.0]))
        );
        state.running_var = None;
        named(state.fold(0.0).unwrap_err(), &["running_var", "none"]);
        state.running_mean = None;
        named(state.fold(0.0).unwrap_err(), &["running_mean", "none"]);
    }
}
