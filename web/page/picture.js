// The live picture: distributions of a batch's features, before and after batch norm on the GPU.

const SAMPLES = 512;
const FEATURES = 8;
const RANGE = 10; // both panels show the same stretch, so that "after" is seen to be on one scale
const BINS = 120;
const EPS = 1e-5;

/** The same values at every visit (mulberry32). */
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const random = generator(2015);
const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

/** Features are shaped differently: normal, of two clusters, skewed, flat. */
const SHAPES = [
  normal,
  () => 0.55 * normal() + (random() < 0.4 ? 1.4 : -0.9),
  () => Math.exp(0.55 * normal()) - 1.15,
  () => 3.2 * (random() - 0.5),
];
const noise = Float64Array.from({ length: SAMPLES * FEATURES }, (_, i) => SHAPES[i % FEATURES % SHAPES.length]());
const wander = Array.from({ length: FEATURES }, () => ({
  center: 5.5 * (2 * random() - 1), width: 1.1 * (2 * random() - 1),
  speed: 0.25 + 0.5 * random(), other: 0.2 + 0.4 * random(), phase: 6.3 * random(),
}));

function batchAt(time, drift) {
  const moved = wander.map(({ center, width, speed, other, phase }) => ({
    mean: drift * (center + 1.2 * Math.sin(speed * time + phase)),
    std: Math.exp(drift * (0.7 * width + 0.25 * Math.sin(other * time + 2 * phase))),
  }));
  return Float32Array.from(noise, (v, i) => moved[i % FEATURES].mean + moved[i % FEATURES].std * v);
}

function moments(values, feature) {
  let sum = 0;
  for (let i = feature; i < values.length; i += FEATURES) sum += values[i];
  const mean = sum / SAMPLES;
  let squares = 0;
  for (let i = feature; i < values.length; i += FEATURES) squares += (values[i] - mean) ** 2;
  return { mean, variance: squares / SAMPLES };
}

const ACTIVATIONS = {
  none: (z) => z,
  relu: (z) => Math.max(z, 0),
  "leaky-relu:0.1": (z) => (z < 0 ? Math.fround(0.1) * z : z),
  silu: (z) => z / (1 + Math.exp(-z)),
  sigmoid: (z) => 1 / (1 + Math.exp(-z)),
  tanh: Math.tanh,
};
const SMOOTH = new Set(["silu", "sigmoid", "tanh"]);

/** Heights of a distribution over the panel, by a histogram smoothed with a normal kernel. */
function density(values, feature) {
  const counts = new Float64Array(BINS);
  for (let i = feature; i < values.length; i += FEATURES) {
    const bin = Math.floor((values[i] + RANGE) / (2 * RANGE) * BINS);
    if (bin >= 0 && bin < BINS) counts[bin] += 1;
  }
  const heights = new Float64Array(BINS);
  for (let i = 0; i < BINS; i++) {
    for (let d = -4; d <= 4; d++) heights[i] += (counts[i + d] ?? 0) * Math.exp(-d * d / 4.5);
  }
  const highest = Math.max(...heights);
  return highest > 0 ? heights.map((h) => h / highest) : heights;
}

/** max|got - wanted| / max(1, max|wanted|) of the values that it is given. */
class Difference {
  #largest = 1;
  #error = 0;

  take(got, wanted) {
    this.#largest = Math.max(this.#largest, Math.abs(wanted));
    const error = Math.abs(got - wanted);
    this.#error = Math.max(this.#error, Number.isNaN(error) ? Infinity : error);
  }

  get relative() {
    return this.#error / this.#largest;
  }
}

export class Picture {
  #parts;
  #live = null;
  #activation = null;
  #running = null;
  #time = 0;
  #before = null;
  #after = null;
  #playing;
  #held = false;
  #visible = true;
  #busy = false;
  #stale = true;
  #told = -Infinity;
  #clock = null;

  /** `open(samples, features, activation)` gives what computes a frame on the GPU. */
  constructor(parts) {
    this.#parts = parts;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#playing = !still;
    parts.toggle.addEventListener("click", () => {
      this.#playing = !this.#playing;
      this.#label();
    });
    for (const input of Object.values(parts.inputs)) {
      input.addEventListener("input", () => { this.#stale = true; this.#label(); });
    }
    new ResizeObserver(() => this.#draw()).observe(parts.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
    new IntersectionObserver(([entry]) => { this.#visible = entry.isIntersecting; }).observe(parts.canvas);
    this.#label();
    const loop = (now) => {
      const step = this.#clock === null ? 0 : Math.min((now - this.#clock) / 1000, 0.1);
      this.#clock = now;
      const moves = this.#playing && this.#visible;
      if (!this.#busy && !this.#held && (moves || this.#stale)) {
        if (moves) this.#time += step;
        this.#frame();
      }
      requestAnimationFrame(loop);
    };
    requestAnimationFrame(loop);
  }

  /** Leaves the GPU to others for a while. */
  hold(held) {
    this.#held = held;
  }

  #label() {
    const { inputs, toggle } = this.#parts;
    toggle.textContent = this.#playing ? "Pause" : "Play";
    for (const name of ["drift", "weight", "bias"]) {
      document.getElementById(`${name}-value`).textContent = Number(inputs[name].value).toFixed(name === "bias" ? 1 : 2);
    }
  }

  async #frame() {
    this.#busy = true;
    this.#stale = false;
    const { inputs, status } = this.#parts;
    try {
      if (this.#activation !== inputs.activation.value) {
        this.#live?.free();
        this.#live = null;
        this.#activation = inputs.activation.value;
        this.#live = await this.#parts.open(SAMPLES, FEATURES, this.#activation);
        // Running statistics begin anew, here and there.
        this.#running = Array.from({ length: FEATURES }, () => ({ mean: 0, variance: 1 }));
      }
      const [weight, bias] = [inputs.weight, inputs.bias].map((input) => Math.fround(input.value));
      const byRunning = inputs.statistics.value === "running";
      const batch = batchAt(this.#time, Number(inputs.drift.value));
      const values = await this.#live.frame(batch, weight, bias, byRunning);
      const [output, running] = [values.subarray(0, batch.length), values.subarray(batch.length)];
      [this.#before, this.#after] = [batch, output];
      this.#draw();
      const { error, bound } = this.#compare(batch, output, running, weight, bias, byRunning);
      const wrong = !(error <= bound);
      const now = performance.now();
      if (wrong || now - this.#told > 500) {
        this.#told = now;
        status.dataset.error = error;
        status.dataset.frames = Number(status.dataset.frames ?? 0) + 1;
        status.classList.toggle("bad", wrong);
        status.textContent = `Computed by ${this.#parts.adapter}. JavaScript's own result for this batch, in f64, differs by at most ${error.toExponential(1)}${wrong ? `, more than the ${bound.toExponential(0)} that is promised` : ""}.`;
      }
    } catch (error) {
      this.#playing = false;
      this.#label();
      status.classList.add("bad");
      status.textContent = String(error?.message ?? error);
    }
    this.#busy = false;
  }

  /**
   * The same batch norm in f64, and how far the GPU is from it: max|out - ref| / max(1, max|ref|), of the output or of the
   * running statistics, whichever is nearer to its bound. By running statistics the output is compared with that by the GPU's own, as
   * they are f32: a mean far from 0 has an error that is large beside a small spread.
   */
  #compare(batch, output, given, weight, bias, byRunning) {
    const activate = ACTIVATIONS[this.#activation];
    const smooth = SMOOTH.has(this.#activation) ? 3 : 1;
    const outputs = new Difference();
    const statistics = [new Difference(), new Difference()];
    for (let feature = 0; feature < FEATURES; feature++) {
      const own = moments(batch, feature);
      const running = this.#running[feature];
      running.mean = 0.9 * running.mean + 0.1 * own.mean;
      running.variance = 0.9 * running.variance + 0.1 * own.variance * SAMPLES / (SAMPLES - 1);
      const stored = { mean: given[feature], variance: given[FEATURES + feature] };
      statistics[0].take(stored.mean, running.mean);
      statistics[1].take(stored.variance, running.variance);
      const { mean, variance } = byRunning ? stored : own;
      const invstd = 1 / Math.sqrt(variance + EPS);
      for (let i = feature; i < batch.length; i += FEATURES) {
        outputs.take(output[i], activate(weight * (batch[i] - mean) * invstd + bias));
      }
    }
    const worst = statistics.map(({ relative }) => ({ error: relative, bound: 1e-6 }));
    worst.push({ error: outputs.relative, bound: 1e-6 * smooth });
    return worst.reduce((a, b) => (b.error / b.bound <= a.error / a.bound ? a : b));
  }

  #draw() {
    const { canvas } = this.#parts;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!this.#before || !width) return;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    const colors = { text: color("text"), soft: color("soft"), line: color("line"), back: color("back") };
    const gap = width < 500 ? 18 : 44;
    const panel = (width - gap) / 2;
    this.#panel(context, 0, panel, height, "before", this.#before, { ...colors, fill: color("before") });
    this.#panel(context, panel + gap, panel, height, "after", this.#after, { ...colors, fill: color("after") });
  }

  #panel(context, left, width, height, title, values, colors) {
    const [top, bottom] = [34, height - 26];
    const row = (bottom - top) / FEATURES;
    const at = (value) => left + (value + RANGE) / (2 * RANGE) * width;
    context.font = "600 15px system-ui, sans-serif";
    context.fillStyle = colors.text;
    context.textAlign = "left";
    context.fillText(title, left, 16);
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = colors.soft;
    context.strokeStyle = colors.line;
    context.lineWidth = 1;
    context.textAlign = "center";
    for (const tick of width < 260 ? [-5, 0, 5] : [-10, -5, 0, 5, 10]) {
      const x = Math.min(Math.max(at(tick), left + 0.5), left + width - 0.5);
      context.beginPath();
      context.moveTo(x, top);
      context.lineTo(x, bottom);
      context.stroke();
      context.textAlign = tick === -10 ? "left" : tick === 10 ? "right" : "center";
      context.fillText(String(tick).replace("-", "−"), x, bottom + 18);
    }
    context.save();
    context.beginPath();
    context.rect(left, 0, width, bottom + 8);
    context.clip();
    for (let feature = 0; feature < FEATURES; feature++) {
      const base = top + row * (feature + 1) - 4;
      const heights = density(values, feature);
      const [area, outline] = [new Path2D(), new Path2D()];
      area.moveTo(left, base);
      let drawn = false; // no line where there is nothing
      heights.forEach((h, i) => {
        const [x, y] = [left + (i + 0.5) / BINS * width, base - h * row * 0.92];
        area.lineTo(x, y);
        const near = Math.max(h, heights[i - 1] ?? 0, heights[i + 1] ?? 0) > 1e-3;
        if (near && drawn) outline.lineTo(x, y); else if (near) outline.moveTo(x, y);
        drawn = near;
      });
      area.lineTo(left + width, base);
      context.globalAlpha = 0.3;
      context.fillStyle = colors.fill;
      context.fill(area);
      context.globalAlpha = 1;
      context.strokeStyle = colors.fill;
      context.lineWidth = 1.6;
      context.stroke(outline);
      const { mean, variance } = moments(values, feature);
      const std = Math.sqrt(variance);
      context.strokeStyle = context.fillStyle = colors.text;
      context.lineWidth = 2.5;
      context.beginPath();
      context.moveTo(at(mean - std), base);
      context.lineTo(at(mean + std), base);
      context.stroke();
      context.beginPath();
      context.arc(at(mean), base, 3.6, 0, 7);
      context.fill();
    }
    context.restore();
  }
}
