//! What the fuzz targets do with one case, as plain functions: libFuzzer gives them bytes, `cases` numbers from a seed.
//!
//! All but tensor files take their choices from `pick`, where `pick(n)` is a number below n. A case that breaks a promise
//! panics; one that is refused as documented does not.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod differential;
pub mod encode;
pub mod files;
pub mod plan;

/// Gives numbers below a bound.
pub type Pick<'a> = dyn FnMut(u64) -> u64 + 'a;

/// What became of a case that broke no promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Done,
    /// It was refused with an error of the kind that is documented.
    Refused,
}

/// Numbers from bytes, and zeros after them.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// From what a fuzzer gives.
    pub fn new(data: &'a [u8]) -> Self {
        Bytes(data)
    }

    /// A number below n, of as few bytes as n needs, so that the fuzzer's changes stay local.
    pub fn pick(&mut self, n: u64) -> u64 {
        let mut value = 0;
        let mut most = n - 1;
        while most > 0 {
            most >>= 8;
            let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
            value = value << 8 | u64::from(*first);
            self.0 = rest;
        }
        value % n
    }
}

/// Numbers from a seed: SplitMix64 (Steele et al. 2014).
pub struct Random(u64);

impl Random {
    /// Those of one case of a series: each can be repeated by itself.
    pub fn new(seed: u64, case: u64) -> Self {
        Random(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ case.wrapping_mul(0xa24b_aed4_963e_e407))
    }

    /// A number below n.
    pub fn pick(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}
