// Element header: f32 in whole 16-byte vectors, moved as 64-bit integers: a software adapter loads and stores lane by lane
// and component by component, so that half the components take little more than half the time. For tensors whose element
// count is a multiple of 4, on devices with 64-bit integers.
alias Word = vec2<u64>;
const WORDS: u32 = 1u;

fn unpack(word: Word) -> vec4<f32> {
    let low = vec2<u32>(word);
    let high = vec2<u32>(word >> vec2(32u));
    return bitcast<vec4<f32>>(vec4(low.x, high.x, low.y, high.y));
}

fn pack(v: vec4<f32>) -> Word {
    let bits = bitcast<vec4<u32>>(v);
    return vec2<u64>(bits.xz) | (vec2<u64>(bits.yw) << vec2(32u));
}

fn keep_tail(word: Word, old: Word) -> Word {
    return word;
}
