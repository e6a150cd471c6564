//! What tuning found, in a file that several adapters, drivers and versions share.

#[cfg(not(target_family = "wasm"))]
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Tuned;
use crate::{Caps, Choices, Error, Kernels, Plan, Problem, Result, Strategy, Walk};

/// The fastest choices by problem on one adapter, from run to run.
///
/// What was measured holds for the adapter, driver and version of this crate that it was measured with. A file has room
/// for several: a cache gives out what is this device's, and keeps the rest as it is. A problem's ε, momentum and slope
/// change no time; any other difference makes it another problem.
///
/// See [`Kernels::tune`](crate::Kernels::tune) for the whole of it.
#[derive(Debug, Clone)]
pub struct TuningCache {
    adapter: AdapterKey,
    caps: Caps,
    entries: Vec<Entry>,
    /// Of other adapters, drivers and versions.
    others: Vec<Section<Value>>,
}

/// The format's number, which a file begins with.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Document {
    format: u32,
    adapters: Vec<Section<Value>>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Section<T> {
    adapter: AdapterKey,
    tuned: T,
}

/// What a measurement depends on besides the problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AdapterKey {
    name: String,
    vendor: u32,
    device: u32,
    backend: String,
    driver: String,
    driver_info: String,
    /// Of this crate.
    version: String,
}

impl AdapterKey {
    pub(super) fn of(device: &wgpu::Device) -> Self {
        let info = device.adapter_info();
        AdapterKey {
            name: info.name,
            vendor: info.vendor,
            device: info.device,
            backend: info.backend.to_string(),
            driver: info.driver,
            driver_info: info.driver_info,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    problem: ProblemKey,
    choices: Stored,
    /// The winner's name and times: for people.
    name: String,
    forward_ms: f64,
    backward_ms: f64,
}

/// What of a problem changes times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProblemKey {
    groups: usize,
    outer: usize,
    channels: usize,
    inner: usize,
    dtype: String,
    activation: String,
    residual: bool,
    mask: bool,
}

impl ProblemKey {
    fn of(problem: &Problem) -> Self {
        let activation = problem.activation.to_string();
        ProblemKey {
            groups: problem.groups,
            outer: problem.outer,
            channels: problem.channels,
            inner: problem.inner,
            dtype: problem.dtype.to_string(),
            // Without a slope.
            activation: activation.split(':').next().unwrap_or_default().into(),
            residual: problem.residual,
            mask: problem.mask,
        }
    }
}

/// Choices by names that a file can have.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    strategy: Option<StoredStrategy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    walk: Option<StoredWalk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pieces: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reduce_workgroup: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flat_workgroup: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flat_workgroups: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredStrategy {
    Resident,
    Streaming,
    Split,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredWalk {
    Planar,
    Columns,
}

impl Stored {
    fn of(choices: &Choices) -> Self {
        Stored {
            strategy: choices.strategy.map(|strategy| match strategy {
                Strategy::Resident => StoredStrategy::Resident,
                Strategy::Streaming => StoredStrategy::Streaming,
                Strategy::Split => StoredStrategy::Split,
            }),
            walk: choices.walk.map(|walk| match walk {
                Walk::Planar => StoredWalk::Planar,
                Walk::Columns => StoredWalk::Columns,
            }),
            pieces: choices.pieces,
            reduce_workgroup: choices.reduce_workgroup,
            flat_workgroup: choices.flat_workgroup,
            flat_workgroups: choices.flat_workgroups,
        }
    }

    fn choices(&self) -> Choices {
        Choices {
            strategy: self.strategy.map(|strategy| match strategy {
                StoredStrategy::Resident => Strategy::Resident,
                StoredStrategy::Streaming => Strategy::Streaming,
                StoredStrategy::Split => Strategy::Split,
            }),
            walk: self.walk.map(|walk| match walk {
                StoredWalk::Planar => Walk::Planar,
                StoredWalk::Columns => Walk::Columns,
            }),
            pieces: self.pieces,
            reduce_workgroup: self.reduce_workgroup,
            flat_workgroup: self.flat_workgroup,
            flat_workgroups: self.flat_workgroups,
            device_type: None,
        }
    }
}

impl TuningCache {
    /// An empty one for the device of these kernels.
    pub fn new(kernels: &Kernels) -> Self {
        TuningCache {
            adapter: AdapterKey::of(kernels.device()),
            caps: kernels.caps().clone(),
            entries: Vec::new(),
            others: Vec::new(),
        }
    }

    /// Reads a file, for the device of these kernels. A file that is not there is an empty one.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or is damaged.
    #[cfg(not(target_family = "wasm"))]
    pub fn load(path: impl AsRef<Path>, kernels: &Kernels) -> Result<Self> {
        let path = path.as_ref();
        let file = path.to_string_lossy();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &file, kernels),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::new(kernels)),
            Err(error) => Err(damaged(&file, format!("it cannot be read: {error}"))),
        }
    }

    /// As [`TuningCache::load`], from the text of a file: for programs that keep it elsewhere, as in a browser.
    ///
    /// # Errors
    /// As there.
    pub fn from_json(text: &str, kernels: &Kernels) -> Result<Self> {
        Self::parse(text, "the text given", kernels)
    }

    fn parse(text: &str, file: &str, kernels: &Kernels) -> Result<Self> {
        let not_ours = |error: serde_json::Error| {
            damaged(file, format!("it is no file of tuned plans: {error}"))
        };
        let document: Document = serde_json::from_str(text).map_err(not_ours)?;
        if document.format != FORMAT {
            let problem = format!("its format is {}, not {FORMAT}", document.format);
            return Err(damaged(file, problem));
        }
        let mut cache = Self::new(kernels);
        for section in document.adapters {
            if section.adapter == cache.adapter {
                // Only what is this version's own need be what it would have written.
                let entries: Vec<Entry> =
                    serde_json::from_value(section.tuned).map_err(not_ours)?;
                cache.entries.extend(entries);
            } else {
                cache.others.push(section);
            }
        }
        Ok(cache)
    }

    /// Writes a file: a temporary one beside it, then renamed. What another process has saved since this was loaded is
    /// replaced.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    #[cfg(not(target_family = "wasm"))]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let written = crate::files::replace(path, self.to_json()?.as_bytes());
        written.map_err(|error| Error::File {
            file: path.to_string_lossy().into(),
            problem: format!("it cannot be written: {error}"),
            remedy: "give a path in a folder that exists and may be written to".into(),
        })
    }

    /// The text of a file.
    ///
    /// # Errors
    /// None that is known: numbers and texts are all there is.
    pub fn to_json(&self) -> Result<String> {
        let failed = |error: serde_json::Error| damaged("the tuned plans", error.to_string());
        let mut adapters = self.others.clone();
        if !self.entries.is_empty() {
            adapters.push(Section {
                adapter: self.adapter.clone(),
                tuned: serde_json::to_value(&self.entries).map_err(failed)?,
            });
        }
        let document = Document {
            format: FORMAT,
            adapters,
        };
        let text = serde_json::to_string_pretty(&document).map_err(failed)?;
        Ok(text + "\n")
    }

    /// Remembers what was found, in place of what was known of the same problem. Found on another adapter, it is kept for
    /// that one.
    pub fn insert(&mut self, tuned: &Tuned) {
        let winner = tuned.winner();
        let entry = Entry {
            problem: ProblemKey::of(&tuned.problem),
            choices: Stored::of(&winner.choices),
            name: winner.name.clone(),
            forward_ms: to_nanoseconds(winner.forward_ms),
            backward_ms: to_nanoseconds(winner.backward_ms),
        };
        if tuned.adapter == self.adapter {
            self.entries.retain(|known| known.problem != entry.problem);
            self.entries.push(entry);
            return;
        }
        let Ok(entry) = serde_json::to_value(entry) else {
            return;
        };
        let theirs = |section: &&mut Section<Value>| section.adapter == tuned.adapter;
        match self.others.iter_mut().find(theirs) {
            Some(Section {
                tuned: Value::Array(known),
                ..
            }) => {
                known.retain(|known| known["problem"] != entry["problem"]);
                known.push(entry);
            }
            _ => self.others.push(Section {
                adapter: tuned.adapter.clone(),
                tuned: Value::Array(vec![entry]),
            }),
        }
    }

    /// The fastest choices for a problem, for [`Plan::with`]; none where it has not been tuned on this adapter, or where a
    /// device with lower limits does not allow them.
    pub fn choices_for(&self, problem: &Problem) -> Option<Choices> {
        let key = ProblemKey::of(problem);
        let entry = self.entries.iter().find(|entry| entry.problem == key)?;
        let choices = entry.choices.choices();
        let allowed = Plan::with(problem, &self.caps, &choices).is_ok();
        allowed.then_some(choices)
    }
}

/// Milliseconds with so few digits that reading a file and writing it again changes nothing.
fn to_nanoseconds(ms: f64) -> f64 {
    (ms * 1e6).round() / 1e6
}

fn damaged(file: &str, problem: String) -> Error {
    Error::File {
        file: file.into(),
        problem,
        remedy: "remove it and tune anew, or give another path".into(),
    }
}
