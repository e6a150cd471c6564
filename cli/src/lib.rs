//! The command line `wgpu-batchnorm`, and what of it others use: the check against the reference.

pub mod args;
pub mod bench;
pub mod check;
pub mod file;
pub mod info;
pub mod run;
