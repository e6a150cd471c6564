// Element header: f32 storage in single words, for tensors whose element count is not a multiple of 4, so that the
// last vector never reaches past the user's buffer.
alias Word = f32;
const WHOLE_VECTORS: bool = false;

fn first(word: Word) -> f32 {
    return word;
}

fn word(v: vec4<f32>) -> Word {
    return v.x;
}
