// Element header: 16-bit floats, four to an 8-byte word. For tensors whose element count is a multiple of 4.
alias Word = vec2<u32>;
const WORDS: u32 = 1u;

fn unpack(word: Word) -> vec4<f32> {
    return decode(vec4(word.x & 0xffffu, word.x >> 16u, word.y & 0xffffu, word.y >> 16u));
}

fn pack(v: vec4<f32>) -> Word {
    let code = encode(v);
    return vec2(code.x | (code.y << 16u), code.z | (code.w << 16u));
}

fn keep_tail(word: Word, old: Word) -> Word {
    return word;
}
