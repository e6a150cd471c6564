// Element header: 16-bit floats, four to an 8-byte word that is a 64-bit integer; see f32x4_by64.wgsl. For tensors whose
// element count is a multiple of 4, on devices with 64-bit integers.
alias Word = u64;
const WORDS: u32 = 1u;

fn unpack(word: Word) -> vec4<f32> {
    let low = u32(word);
    let high = u32(word >> 32u);
    return decode(vec4(low & 0xffffu, low >> 16u, high & 0xffffu, high >> 16u));
}

fn pack(v: vec4<f32>) -> Word {
    let code = encode(v);
    let bits = code.xz | (code.yw << vec2(16u));
    return u64(bits.x) | (u64(bits.y) << 32u);
}

fn keep_tail(word: Word, old: Word) -> Word {
    return word;
}
