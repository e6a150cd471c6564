//! Makes a browser's module of the built page: `wgpu-batchnorm-bindgen IN.wasm FOLDER`.
//!
//! The same as the program `wasm-bindgen`, but always of the version that the page was built with, and from the lock file.

use anyhow::{Context, Result};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, folder] = arguments.as_slice() else {
        anyhow::bail!("give the built .wasm file, and the folder for the module");
    };
    Bindgen::new()
        .input_path(input)
        .out_name("batchnorm")
        .web(true)?
        .typescript(false)
        // The page names the .wasm file itself.
        .omit_default_module_path(false)
        .generate(folder)
        .with_context(|| format!("{input}: no module could be made of it"))
}
