// Element header: 16-bit floats, two to a 4-byte word. For tensors whose element count is not a multiple of 4; where it
// is odd, the upper half of the last word is not the tensor's and keeps what it holds.
alias Word = u32;
const WORDS: u32 = 2u;

fn unpack(word: Word) -> vec4<f32> {
    return decode(vec4(word & 0xffffu, word >> 16u, 0u, 0u));
}

fn pack(v: vec4<f32>) -> Word {
    let code = encode(v);
    return code.x | (code.y << 16u);
}

fn keep_tail(word: Word, old: Word) -> Word {
    return (word & 0xffffu) | (old & 0xffff0000u);
}
