// Element header: f32 in whole 16-byte vectors. For tensors whose element count is a multiple of 4.
alias Word = vec4<f32>;
const WORDS: u32 = 1u;

fn unpack(word: Word) -> vec4<f32> {
    return word;
}

fn pack(v: vec4<f32>) -> Word {
    return v;
}

fn keep_tail(word: Word, old: Word) -> Word {
    return word;
}
