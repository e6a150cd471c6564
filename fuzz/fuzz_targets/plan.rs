#![no_main]

use wgpu_batchnorm_fuzz::{Bytes, encode, plan};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    // Binding and encoding take a thousand times as long as planning.
    if bytes.pick(64) == 0 {
        encode::run(&mut |n| bytes.pick(n));
    } else {
        plan::run(&mut |n| bytes.pick(n));
    }
});
