#![no_main]

use wgpu_batchnorm_fuzz::{Bytes, differential};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    differential::run(&mut |n| bytes.pick(n));
});
