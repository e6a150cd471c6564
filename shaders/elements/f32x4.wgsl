// Element header: f32 storage in whole 16-byte vectors. For tensors whose element count is a multiple of 4.
alias Word = vec4<f32>;
const WHOLE_VECTORS: bool = true;

fn first(word: Word) -> f32 {
    return word.x;
}

fn word(v: vec4<f32>) -> Word {
    return v;
}
