#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wgpu_batchnorm_fuzz::files::run(data));
