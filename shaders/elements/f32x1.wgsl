// Element header: f32 in single words, for tensors whose element count is not a multiple of 4, so that the last vector
// never reaches past the user's buffer.
alias Word = f32;
const WORDS: u32 = 4u;

fn unpack(word: Word) -> vec4<f32> {
    return vec4(word);
}

fn pack(v: vec4<f32>) -> Word {
    return v.x;
}

fn keep_tail(word: Word, old: Word) -> Word {
    return word;
}
