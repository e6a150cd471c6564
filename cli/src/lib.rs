//! The command line `wgpu-batchnorm`, and what of it others use: the check against the reference, and the benchmark.
//!
//! Both are async at heart, because a browser's page may not block; off the web, `device::wait` runs them to their end.

#[cfg(not(target_family = "wasm"))]
pub mod args;
pub mod bench;
pub mod check;
mod device;
#[cfg(not(target_family = "wasm"))]
pub mod file;
pub mod info;
#[cfg(not(target_family = "wasm"))]
pub mod run;
#[cfg(not(target_family = "wasm"))]
mod table;
